//! Planned VMs at the target: which one a move uses, and what of the target's room is held for it.
//!
//! A move uses the planned VM that is named, or else the one that its target holds for the VM as it is now. What is held for
//! the VM is room for its move in any case, also where the planned VM itself is not used because the VM has changed.

use sterna_shared::host::Pool;
use sterna_shared::job::{JobKind, Refusal, RefusalCode};
use sterna_shared::planned::{HOLD_MAX_SECONDS, HOLD_MIN_SECONDS, PlannedVm};
use sterna_shared::units::ByteCount;

use super::Case;
use super::check::refusal;
use crate::fleet::Member;

/// What the target holds for the VM.
fn held<'a>(case: &Case<'a>) -> impl Iterator<Item = &'a PlannedVm> {
    // A replica is nothing that a planned VM was made for.
    let vm = case.vm().filter(|_| !case.replicates()).map(|vm| vm.spec.id);
    let planned = case.target().map_or(&[][..], |target| &target.inventory.planned);
    planned.iter().filter(move |planned| Some(planned.spec.id) == vm)
}

/// The planned VM that the move uses, if any: where its disks go, unless the request says otherwise.
pub(super) fn used<'a>(case: &Case<'a>) -> Option<&'a PlannedVm> {
    let vm = case.vm().filter(|_| case.request.kind != JobKind::Stage)?;
    let named = |planned: &&PlannedVm| case.request.planned.is_none_or(|id| id == planned.id);
    held(case).filter(named).find(|planned| !planned.is_expired(case.now) && planned.fits(&vm.spec))
}

/// What the VM may take of a pool of the target.
pub(super) fn room(case: &Case, pool: &Pool) -> ByteCount {
    let own = held(case).fold(ByteCount(0), |sum, planned| sum.plus(planned.room_in(pool)));
    pool.free.plus(own.min(pool.reserved))
}

/// What it may take of the target's memory, and what of that is held for others.
pub(super) fn memory(case: &Case, target: &Member) -> (ByteCount, ByteCount) {
    let reserved = target.inventory.memory_reserved;
    let own = held(case).fold(ByteCount(0), |sum, planned| sum.plus(planned.spec.memory)).min(reserved);
    (target.inventory.memory_free.plus(own), ByteCount(reserved.0 - own.0))
}

/// In a sentence: what of a thing is not free because it is held for others.
pub(super) fn besides(reserved: ByteCount) -> String {
    if reserved.0 == 0 { String::new() } else { format!(", and {reserved} held for planned VMs (`sterna plan list`)") }
}

pub(super) fn planned_can_be_used(case: &Case, out: &mut Vec<Refusal>) {
    let Some(id) = case.request.planned else { return };
    let found = case.fleet.hosts().find_map(|member| {
        let planned = member.inventory.planned.iter().find(|planned| planned.id == id);
        planned.map(|planned| (&member.inventory.host, planned))
    });
    let Some((host, planned)) = found else {
        out.push(refusal(
            RefusalCode::PlannedUnknown,
            format!("no host has a planned VM {id}"),
            "see `sterna plan list`, or leave out --planned",
        ));
        return;
    };
    let listed = "see `sterna plan list`, or leave out --planned";
    let Some(vm) = case.vm() else { return };
    if planned.spec.id != vm.spec.id {
        let message = format!("planned VM {id} is of VM {} ({})", planned.spec.name, planned.spec.id);
        return out.push(refusal(RefusalCode::PlannedMismatch, message, listed));
    }
    if let Some(target) = case.target().filter(|target| target.inventory.host != *host) {
        let message = format!("planned VM {id} is at {host}, and the VM is to go to {}", target.inventory.host);
        out.push(refusal(RefusalCode::PlannedMismatch, message, format!("give --to {host}, or leave out --planned")));
    }
    if planned.is_expired(case.now) {
        out.push(refusal(
            RefusalCode::PlannedExpired,
            format!("planned VM {id} was held until {}", planned.expires_at),
            "leave out --planned, or make it anew with `sterna plan`",
        ));
    }
    if !planned.fits(&vm.spec) {
        out.push(refusal(
            RefusalCode::PlannedChanged,
            format!("VM {} is no longer what it was when planned VM {id} was made", vm.spec.name),
            "make it anew with `sterna plan`, or leave out --planned",
        ));
    }
}

/// What is asked of a planned VM, and of the making of one.
pub(super) fn wishes_about_planned_vms_make_sense(case: &Case, out: &mut Vec<Refusal>) {
    let request = case.request;
    let stages = request.kind == JobKind::Stage;
    let mut check = |holds: bool, message: String, remedy: &str| {
        if !holds {
            out.push(refusal(RefusalCode::InvalidValue, message, remedy));
        }
    };
    let between = !request.storage_only;
    check(!stages || between, "a planned VM is made at another host".into(), "give a host and no storage move");
    let used = request.planned.is_none() || (between && !stages && request.kind != JobKind::Replicate);
    check(used, "only a move between hosts uses a planned VM".into(), "leave out the planned VM");
    let held = request.hold_seconds;
    check(stages || held.is_none(), "only a planned VM is held for a time".into(), "leave the time out");
    if let Some(seconds) = held {
        let range = format!("give {HOLD_MIN_SECONDS} to {HOLD_MAX_SECONDS} seconds");
        let holds = (HOLD_MIN_SECONDS..=HOLD_MAX_SECONDS).contains(&seconds);
        check(holds, format!("a planned VM cannot be held for {seconds} s"), &range);
    }
}
