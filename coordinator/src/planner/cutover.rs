//! What a cutover is checked on beside a move: it goes to the host that has the VM's replica, and begins with what that holds.
//!
//! Only the beginning differs. What the target's images are made with is compared, digest by digest, with what the source has,
//! as what a cut move has left is ([ADR 22](../../docs/adr/0022-a-cutover-is-a-move-that-begins-with-a-replica.md)): so nothing
//! here need be certain that a replica is what it should be.

use sterna_shared::host::VmState;
use sterna_shared::id::HostId;
use sterna_shared::job::{JobKind, MoveMode, MoveRequest, Plan, Refusal, RefusalCode, StepKind};
use sterna_shared::replica::{CutoverOf, REVERT_DEFAULT_SECONDS, REVERT_MAX_SECONDS, Replica, Snapshot};

use super::check::{Check, refusal};
use super::placement::placed;
use super::{Case, replica, replicate};
use crate::fleet::Fleet;

/// All checks, in the order in which their reasons are told, after those of a move.
pub(super) const CHECKS: &[Check] =
    &[replica_is_there, snapshot_is_there, shared_disks_stay_with_their_guest, wish_makes_sense];

/// Where a cutover goes that names no host: to the one that has the VM's replica; where several have one, that with the latest
/// snapshot.
#[must_use]
pub fn target(fleet: &Fleet, request: &MoveRequest) -> Option<HostId> {
    let of =
        |request: &MoveRequest| replica::find(fleet, request).ok().map(|(member, _)| member.inventory.host.clone());
    match fleet.find(&request.vm) {
        // Another VM may have had its name when it was replicated.
        Ok((_, vm)) => of(&MoveRequest { vm: vm.id().to_string(), ..request.clone() }),
        Err(_) => None,
    }
}

/// What its images are made with.
fn snapshot<'a>(case: &Case<'a>) -> Option<&'a Snapshot> {
    replicate::replica(case)?.snapshots().rev().find(|snapshot| !snapshot.damaged)
}

/// Whether the guest is shut down in the course of it, and runs at the target afterwards.
pub(super) fn shuts_down(case: &Case) -> bool {
    let runs = case.vm().is_some_and(|vm| vm.state == VmState::Running);
    case.request.kind == JobKind::Cutover && case.mode() == Some(MoveMode::Cold) && runs
}

/// What a plan says of it.
pub(super) fn decide(case: &Case) -> Option<CutoverOf> {
    if case.request.kind != JobKind::Cutover {
        return None;
    }
    Some(CutoverOf {
        snapshot: snapshot(case)?.number,
        runs: case.vm()?.state == VmState::Running,
        force: case.request.cutover.unwrap_or_default().force,
        revert_seconds: revert_seconds(case),
        // What cycles have measured is told by jobs that are over, which no plan is made on.
        forecast: None,
    })
}

/// The steps of a job: a guest that is stopped need not be shut down.
pub(super) fn steps(case: &Case, mode: MoveMode, copies_disks: bool) -> Vec<StepKind> {
    let mut steps = Plan::steps_of(case.request.kind, mode, copies_disks);
    if case.request.kind == JobKind::Cutover && mode == MoveMode::Cold && !shuts_down(case) {
        steps.retain(|step| !matches!(step, StepKind::ShutDown | StepKind::Switchover));
    }
    steps
}

fn revert_seconds(case: &Case) -> u32 {
    case.request.cutover.unwrap_or_default().revert_seconds.unwrap_or(REVERT_DEFAULT_SECONDS)
}

fn replica_is_there(case: &Case, out: &mut Vec<Refusal>) {
    let Some(vm) = case.vm() else { return };
    let name = &vm.spec.name;
    let message = match case.target() {
        Some(_) if replicate::replica(case).is_some() => return,
        Some(member) => format!("host {} has no replica of VM {name}", member.inventory.host),
        None if case.request.target.is_some() => return, // It is not known, which is told already.
        None => format!("no host has a replica of VM {name}"),
    };
    let remedy = format!("make one, `sterna replicate add {name} --to HOST`; or move the VM: `sterna migrate {name}`");
    out.push(refusal(RefusalCode::ReplicaUnknown, message, remedy));
}

fn snapshot_is_there(case: &Case, out: &mut Vec<Refusal>) {
    let (Some(vm), Some(replica)) = (case.vm(), replicate::replica(case)) else { return };
    if snapshot(case).is_some() {
        return;
    }
    let (name, host) = (&vm.spec.name, case.target().map(|member| &member.inventory.host));
    let at = host.map_or_else(String::new, |host| format!(" at {host}"));
    let wait = format!("wait until a cycle is over: `sterna replicate show {name}`");
    out.push(match Replica::latest(replica) {
        None => refusal(
            RefusalCode::SnapshotUnknown,
            format!("the replica of VM {name}{at} has no complete snapshot yet"),
            wait,
        ),
        Some(_) => refusal(
            RefusalCode::SnapshotDamaged,
            format!("no snapshot of the replica of VM {name}{at} holds what was written to it"),
            wait,
        ),
    });
}

/// A guest that was shut down starts at the target while the source's QEMU, which is off, still has its disks open.
fn shared_disks_stay_with_their_guest(case: &Case, out: &mut Vec<Refusal>) {
    let Some(vm) = case.vm().filter(|_| shuts_down(case)) else { return };
    for disk in placed(case).into_iter().filter(|disk| !disk.copied) {
        let (disk, name) = (&disk.source.name, &vm.spec.name);
        out.push(refusal(
            RefusalCode::PoolKind,
            format!("disk {disk} of VM {name} lies in a pool that both hosts share, and a guest that is shut down on the way is not moved with such a disk"),
            format!("leave out --cold; or stop it, `sterna vm stop {name}`, and give the command again"),
        ));
    }
}

fn wish_makes_sense(case: &Case, out: &mut Vec<Refusal>) {
    if revert_seconds(case) > REVERT_MAX_SECONDS {
        out.push(refusal(
            RefusalCode::InvalidValue,
            format!("the way back is kept for {REVERT_MAX_SECONDS} s at most"),
            "give a shorter time with --revert-window",
        ));
    }
    if case.request.storage_only {
        out.push(refusal(
            RefusalCode::InvalidValue,
            "a cutover goes to another host, and a move of disks within the VM's host was asked for",
            "leave out --storage-only",
        ));
    }
}
