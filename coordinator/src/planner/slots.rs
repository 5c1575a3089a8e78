//! Slots: whether a host lets a move through at all, and whether it has room for one more at present.
//!
//! The first does not change by itself, so that a request is refused for it; for the second a job waits. How many moves a
//! host has in hand follows from the jobs alone: a slot is free once the status of its job says so, whatever the agent at the
//! other end is still clearing up.

use sterna_shared::host::{Limits, MovesInHand};
use sterna_shared::id::HostId;
use sterna_shared::job::{JobKind, JobStatus, MoveMode, Refusal, RefusalCode};

use super::Case;
use super::check::refusal;
use crate::fleet::Member;

/// The moves that a host has in hand, of these jobs.
pub fn in_hand<'a>(host: &HostId, jobs: impl IntoIterator<Item = &'a JobStatus>) -> MovesInHand {
    let mut moves = MovesInHand::default();
    for plan in jobs.into_iter().filter(takes_a_slot).map(|status| &status.plan) {
        let (leaves, comes) = (plan.source.id == *host, plan.target.id == *host);
        match plan.mode {
            MoveMode::Storage => moves.storage += usize::from(leaves),
            MoveMode::Live | MoveMode::Cold => {
                moves.outbound += usize::from(leaves);
                moves.inbound += usize::from(comes);
            }
        }
    }
    moves
}

/// A check takes none, since it carries nothing, and neither does the making of a planned VM.
fn takes_a_slot(status: &&JobStatus) -> bool {
    status.is_active() && status.plan.moves()
}

/// A part in a move, and what of a host's settings it is held against.
#[derive(Debug, Clone, Copy)]
enum Part {
    Out,
    In,
    Storage,
}

impl Part {
    fn most(self, limits: Limits) -> u16 {
        match self {
            Self::Out => limits.outbound_moves_max,
            Self::In => limits.inbound_moves_max,
            Self::Storage => limits.storage_moves_max,
        }
    }

    fn in_hand(self, moves: MovesInHand) -> usize {
        match self {
            Self::Out => moves.outbound,
            Self::In => moves.inbound,
            Self::Storage => moves.storage,
        }
    }

    /// In a sentence.
    const fn moves(self) -> &'static str {
        match self {
            Self::Out => "moves out",
            Self::In => "moves in",
            Self::Storage => "storage moves",
        }
    }

    /// Of `sterna host set`.
    const fn option(self) -> &'static str {
        match self {
            Self::Out => "--outbound",
            Self::In => "--inbound",
            Self::Storage => "--storage",
        }
    }
}

/// The hosts that take part, each with its part; none where they are not known, or one as both ends of a move.
fn parts<'a>(case: &Case<'a>) -> Vec<(&'a Member, Part)> {
    // Disks that are read and stay where they are move nowhere.
    if case.request.storage_only && case.request.kind == JobKind::DeepCheck {
        return Vec::new();
    }
    if case.request.storage_only {
        return case.source().map(|host| (host, Part::Storage)).into_iter().collect();
    }
    case.hosts().map_or_else(Vec::new, |(source, target)| vec![(source, Part::Out), (target, Part::In)])
}

pub(super) fn moves_are_let_through(case: &Case, out: &mut Vec<Refusal>) {
    for (member, part) in parts(case) {
        let (host, limits) = (&member.inventory.host, member.inventory.limits);
        if !limits.enabled && !matches!(part, Part::Storage) {
            out.push(refusal(
                RefusalCode::MigrationDisabled,
                format!("migration is switched off at host {host}"),
                format!("switch it on, `sterna host set {host} --migration on`, or choose another host"),
            ));
        }
        // A replica is no move, whatever the number of these.
        if part.most(limits) == 0 && !case.replicates() {
            let (moves, option) = (part.moves(), part.option());
            out.push(refusal(
                RefusalCode::MigrationDisabled,
                format!("the limit of {moves} is 0 at host {host}"),
                format!("raise it: `sterna host set {host} {option} 1`"),
            ));
        }
    }
}

pub(super) fn hosts_have_a_slot(case: &Case, out: &mut Vec<Refusal>) {
    if case.stages() {
        return; // It is done at once, and nothing crosses.
    }
    for (member, part) in parts(case) {
        let host = &member.inventory.host;
        let most = part.most(member.inventory.limits);
        let count = part.in_hand(in_hand(host, case.jobs.iter().copied()));
        // A limit of 0 is refused by the other check: to wait for it would be in vain.
        if most > 0 && count >= usize::from(most) {
            let (moves, option) = (part.moves(), part.option());
            out.push(refusal(
                RefusalCode::HostBusy,
                format!("host {host} has {count} {moves} in hand, of at most {most}"),
                format!(
                    "wait for one to end (`sterna job list`), or raise the limit: `sterna host set {host} {option} {}`",
                    count + 1
                ),
            ));
        }
    }
}
