//! Checks of a replication: a VM's disks are copied to a host that does not run it. What only a guest needs, memory,
//! processor, networks, is asked for when a clone is made.

use std::collections::BTreeMap;

use sterna_shared::job::{Refusal, RefusalCode};
use sterna_shared::replica::{Replica, limit_reached};

use super::check::{self, Check, refusal};
use super::placement::{self, placed};
use super::{Case, planned, settings, slots};

/// All checks, in the order in which their reasons are told.
pub(super) const CHECKS: &[Check] = &[
    check::vm_is_known,
    check::source_is_online,
    check::target_is_given_and_known,
    check::target_is_another_host,
    check::vm_is_in_no_job,
    check::vm_state_fits_the_mode,
    check::vm_is_owned,
    wish_makes_sense,
    there_is_something_to_replicate,
    check::placements_name_disks,
    check::pools_exist,
    replica_is_of_these_disks,
    host_takes_another_layer,
    new_replicas_have_room,
    pools_are_directories,
    source_pools_are_directories,
    check::certificates_hold,
    check::authority_is_the_same,
    slots::moves_are_let_through,
    check::target_can_be_dialled,
    check::values_are_in_range,
    settings::settings_can_be_kept,
    planned::wishes_about_planned_vms_make_sense,
];

/// The replica of the VM that the target has already.
pub(super) fn replica<'a>(case: &Case<'a>) -> Option<&'a Replica> {
    let id = case.vm()?.id();
    case.target()?.inventory.replicas.iter().find(|replica| replica.vm.id == id)
}

fn wish_makes_sense(case: &Case, out: &mut Vec<Refusal>) {
    if case.request.storage_only {
        out.push(refusal(
            RefusalCode::InvalidValue,
            "a replica is at another host, and a move of disks within the VM's host was asked for",
            "give --to HOST, and leave out --storage-only",
        ));
    }
    let retention = case.request.replication.clone().unwrap_or_default().retention;
    for fault in retention.faults() {
        out.push(refusal(
            RefusalCode::InvalidValue,
            fault,
            "give other numbers with --keep, such as --keep last=3,hourly=24,daily=7",
        ));
    }
}

fn there_is_something_to_replicate(case: &Case, out: &mut Vec<Refusal>) {
    let Some(spec) = case.vm().map(|vm| &vm.spec) else { return };
    if spec.disks.is_empty() {
        out.push(refusal(
            RefusalCode::NothingToMove,
            format!("VM {} has no disk", spec.name),
            "replicate a VM that has disks",
        ));
    }
}

/// A replica goes on only with the disks that it has, where it has them.
fn replica_is_of_these_disks(case: &Case, out: &mut Vec<Refusal>) {
    let (Some(vm), Some(target), Some(replica)) = (case.vm(), case.target(), replica(case)) else { return };
    let placed = placed(case);
    let wanted: BTreeMap<_, _> =
        placed.iter().map(|disk| (&disk.target.name, (disk.source.size, &disk.target.pool))).collect();
    let there: BTreeMap<_, _> = replica.disks.iter().map(|disk| (&disk.name, (disk.size, &disk.pool))).collect();
    if wanted != there {
        let (name, host) = (&vm.spec.name, &target.inventory.host);
        out.push(refusal(
            RefusalCode::ReplicaMismatch,
            format!("{host} has a replica of VM {name} with other disks, or other sizes or pools of them"),
            format!("remove it and begin anew: `sterna replicate remove {name}`, then `sterna replicate add {name} --to {host}`"),
        ));
    }
}

fn host_takes_another_layer(case: &Case, out: &mut Vec<Refusal>) {
    let (Some(vm), Some(target)) = (case.vm(), case.target()) else { return };
    let host = &target.inventory.host;
    out.extend(limit_reached(&target.inventory.replicas, vm.id()).map(|reached| {
        refusal(
            RefusalCode::ReplicaLimit,
            format!("host {host} takes no further snapshot: {reached}"),
            "keep fewer snapshots with --keep, remove replicas that nobody needs, delete clones of old snapshots, or replicate to another host",
        )
    }));
}

/// What a replica takes already it need not find again.
fn new_replicas_have_room(case: &Case, out: &mut Vec<Refusal>) {
    if replica(case).is_none() {
        check::pools_have_room(case, out);
    }
}

fn pools_are_directories(case: &Case, out: &mut Vec<Refusal>) {
    let Some(target) = case.target() else { return };
    let host = &target.inventory.host;
    for disk in placed(case).into_iter().map(|disk| disk.target) {
        if placement::pool(target, &disk.pool).is_some_and(|pool| pool.extent.is_some()) {
            let (name, pool) = (&disk.name, &disk.pool);
            out.push(refusal(
                RefusalCode::PoolKind,
                format!("pool {pool} of {host} is a volume group, and a replica's layers are files"),
                format!("give disk {name} a pool that is a directory: --disk {name}=POOL"),
            ));
        }
    }
}

/// While a cycle reads, what the guest overwrites is put aside in a file beside its images.
fn source_pools_are_directories(case: &Case, out: &mut Vec<Refusal>) {
    let (Some(vm), Some(source)) = (case.vm(), case.source()) else { return };
    let host = &source.inventory.host;
    for disk in &vm.spec.disks {
        if placement::pool(source, &disk.pool).is_some_and(|pool| pool.extent.is_some()) {
            let (vm, name, pool) = (&vm.spec.name, &disk.name, &disk.pool);
            out.push(refusal(
                RefusalCode::PoolKind,
                format!("disk {name} of VM {vm} is in pool {pool} of {host}, which is a volume group, and what a guest overwrites while a cycle reads is put aside in files of its own pool"),
                format!("move the disk to a pool that is a directory first: `sterna migrate {vm} --storage-only --disk {name}=POOL`"),
            ));
        }
    }
}
