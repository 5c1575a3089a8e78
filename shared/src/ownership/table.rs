//! The table of transitions: one match, total over records and inputs.

use super::{Action, Illegal, Input, Message, Move, Record};
use crate::id::{Generation, HostId};

/// Where an input leads.
pub(super) enum Step {
    /// The record stays; do this.
    Stay(Vec<Action>),
    /// Journal this record, and only then do this.
    Go(Record, Vec<Action>),
}

/// How far above what it has seen a host follows a peer or a plan. Each move takes two generations at most, so no honest
/// one comes near; without the limit one lie would use up all generations of a VM on this host.
pub const GENERATION_JUMP_MAX: u64 = 1 << 32;

const NOTHING: Result<Step, Illegal> = Ok(Step::Stay(Vec::new()));

/// The one table. `first_cont` says that the only `cont` a ceded guest ever got is still unanswered.
pub(super) fn next(record: &Record, first_cont: bool, input: &Input) -> Result<Step, Illegal> {
    use Input as I;
    use Record as R;
    let not_now = || Err(Illegal::NotNow { state: record.name(), input: input.name() });
    match (record, input) {
        // What is left to do, and what peers say, depends on the state in ways of their own.
        (_, I::Tick) => Ok(Step::Stay(record.unfinished().into_iter().collect())),
        (_, I::Received { from, message: Message::Cede { generation } }) => asked(record, from, *generation, true),
        (_, I::Received { from, message: Message::Resolve { generation } }) => asked(record, from, *generation, false),
        (
            R::Ceding { owned, generation, to },
            I::Received { from, message: Message::Activated { generation: n } | Message::Refused { generation: n } },
        ) if n == generation => {
            expect_peer(to, from)?;
            match input {
                I::Received { message: Message::Activated { .. }, .. } => {
                    let ceded = R::Ceded { owned: *owned, generation: *generation, to: to.clone() };
                    Ok(Step::Go(ceded, vec![Action::Release]))
                }
                _ => take_back(*owned, *generation),
            }
        }
        // An answer to a question that is settled: repeated or late.
        (_, I::Received { message: Message::Activated { .. } | Message::Refused { .. }, .. }) => NOTHING,

        // A VM begins and ends.
        (R::Absent { seen, .. }, I::Create) => Ok(Step::Go(R::Owner { generation: after(*seen)? }, Vec::new())),
        (R::Owner { .. }, I::Create) | (R::Absent { .. }, I::Delete) => NOTHING,
        (R::Owner { generation }, I::Delete) => {
            Ok(Step::Go(R::Absent { owned: *generation, seen: *generation }, vec![Action::Destroy]))
        }

        // It begins anew where a replica of it is, since its owner is gone for good.
        (R::Absent { seen, .. }, I::TakeOver { above }) => {
            plausible(record, *above)?;
            Ok(Step::Go(R::Owner { generation: after(*seen.max(above))? }, Vec::new()))
        }
        (R::Owner { generation }, I::TakeOver { above }) if generation > above => NOTHING,

        // The target before the cede.
        (R::Incoming { generation, from, .. }, I::Prepare { generation: n, from: f })
            if (n, f) == (generation, from) =>
        {
            NOTHING
        }
        (_, I::Prepare { generation, .. }) if *generation <= record.seen() => {
            Err(Illegal::Stale { generation: *generation, seen: record.seen() })
        }
        (R::Absent { owned, .. }, I::Prepare { generation, from }) => {
            plausible(record, *generation)?;
            let incoming = R::Incoming { owned: *owned, generation: *generation, from: from.clone() };
            Ok(Step::Go(incoming, Vec::new()))
        }
        (R::Incoming { owned, generation, .. }, I::Abort) => {
            Ok(Step::Go(R::Absent { owned: *owned, seen: *generation }, vec![Action::Destroy]))
        }
        (R::Absent { .. }, I::Abort) => NOTHING,

        // The new owner, at either end.
        (R::Activating { generation, ceded_by, .. }, I::GuestRuns) => {
            let answer = |by: &Move| send(&by.peer, Message::Activated { generation: *generation });
            Ok(Step::Go(R::Owner { generation: *generation }, ceded_by.iter().map(answer).collect()))
        }
        (R::Owner { .. }, I::GuestRuns) => NOTHING,
        (_, I::GuestRuns) => Err(Illegal::MayNotRun { state: record.name() }),
        (R::Activating { owned, generation, ceded_by: Some(by) }, I::CannotRun) if first_cont => {
            let refused = send(&by.peer, Message::Refused { generation: *generation });
            Ok(Step::Go(R::Absent { owned: *owned, seen: *generation }, vec![Action::Destroy, refused]))
        }
        (R::Activating { generation, .. }, I::CannotRun) => Err(Illegal::MustRun { generation: *generation }),

        // The source.
        (R::Ceding { generation, to, .. }, I::BeginCede { generation: n, to: t }) if (n, t) == (generation, to) => {
            NOTHING
        }
        (R::Owner { generation: owned }, I::BeginCede { generation, to }) => {
            if generation <= owned {
                return Err(Illegal::Stale { generation: *generation, seen: *owned });
            }
            after(*generation)?;
            let ceding = R::Ceding { owned: *owned, generation: *generation, to: to.clone() };
            Ok(Step::Go(ceding, vec![send(&to.peer, Message::Cede { generation: *generation })]))
        }
        (R::Ceded { owned, generation, .. }, I::Released) => {
            Ok(Step::Go(R::Absent { owned: *owned, seen: *generation }, Vec::new()))
        }
        (R::Absent { .. }, I::Released) => NOTHING,

        // An operator's word.
        (R::Ceding { owned, generation, to }, I::Fenced { host }) => {
            expect_peer(to, host)?;
            take_back(*owned, *generation)
        }
        (R::Ceding { .. } | R::Ceded { .. }, I::Superseded { .. }) => not_now(),
        (_, I::Superseded { generation }) if *generation <= record.seen() => NOTHING,
        (_, I::Superseded { generation }) => {
            // A grant that was fenced off counts as owned: it may have run here.
            let owned = record.may_run().unwrap_or(record.owned());
            Ok(Step::Go(R::Absent { owned, seen: *generation }, vec![Action::Destroy]))
        }

        (_, I::Create | I::Delete | I::Prepare { .. } | I::Abort | I::BeginCede { .. })
        | (_, I::CannotRun | I::Released | I::Fenced { .. } | I::TakeOver { .. } | I::Journalled) => not_now(),
    }
}

/// A peer offers generation `n` (`cede`) or asks what became of it.
fn asked(record: &Record, peer: &HostId, n: Generation, cede: bool) -> Result<Step, Illegal> {
    use Record as R;
    // At or below what was owned: taken, long ago perhaps. Above it and at or below what was seen: never taken.
    let answer = |owned: Generation| {
        let message = match n <= owned {
            true => Message::Activated { generation: n },
            false => Message::Refused { generation: n },
        };
        Ok(Step::Stay(vec![send(peer, message)]))
    };
    let refused = || send(peer, Message::Refused { generation: n });
    match record {
        R::Absent { owned, seen } if n > *seen => {
            plausible(record, n)?;
            Ok(Step::Go(R::Absent { owned: *owned, seen: n }, vec![refused()]))
        }
        R::Incoming { owned, generation, from } if n >= *generation => {
            plausible(record, n)?;
            if n == *generation {
                expect_peer(from, peer)?;
                if cede {
                    let ceded_by = Some(from.clone());
                    let activating = R::Activating { owned: *owned, generation: n, ceded_by };
                    return Ok(Step::Go(activating, vec![Action::Cont]));
                }
            }
            Ok(Step::Go(R::Absent { owned: *owned, seen: n }, vec![Action::Destroy, refused()]))
        }
        R::Activating { generation, ceded_by: Some(by), .. } if n == *generation => {
            expect_peer(by, peer)?;
            NOTHING // The answer follows when the guest runs.
        }
        R::Activating { generation, .. }
        | R::Owner { generation }
        | R::Ceding { generation, .. }
        | R::Ceded { generation, .. }
            if n > *generation || (n == *generation && record.owned() < n) =>
        {
            let (state, held) = (record.name(), *generation);
            Err(Illegal::Contradiction { peer: peer.clone(), generation: n, state, held })
        }
        _ => answer(record.owned()),
    }
}

/// The source takes its guest back, as a generation above the one that was refused.
fn take_back(owned: Generation, refused: Generation) -> Result<Step, Illegal> {
    let activating = Record::Activating { owned, generation: after(refused)?, ceded_by: None };
    Ok(Step::Go(activating, vec![Action::Cont]))
}

fn plausible(record: &Record, generation: Generation) -> Result<(), Illegal> {
    let seen = record.seen();
    if generation.0.saturating_sub(seen.0) > GENERATION_JUMP_MAX {
        return Err(Illegal::Implausible { generation, seen });
    }
    after(generation).map(|_| ())
}

fn after(generation: Generation) -> Result<Generation, Illegal> {
    generation.next().ok_or(Illegal::Exhausted { generation })
}

fn expect_peer(expected: &Move, host: &HostId) -> Result<(), Illegal> {
    if expected.peer == *host {
        return Ok(());
    }
    Err(Illegal::WrongPeer { expected: expected.peer.clone(), host: host.clone() })
}

fn send(to: &HostId, message: Message) -> Action {
    Action::Send { to: to.clone(), message }
}
