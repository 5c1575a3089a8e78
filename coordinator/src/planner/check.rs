//! The checks, one function each, and the one list of them.

use std::collections::{BTreeMap, BTreeSet};

use sterna_shared::host::{Accelerator, VmState};
use sterna_shared::id::PoolName;
use sterna_shared::job::{JobKind, ModeWish, Refusal, RefusalCode, StorageWish};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{DiskFormat, Firmware};

use super::placement::{self, placed};
use super::{BANDWIDTH_MIN, BLACKOUT_MAX_MS, BLACKOUT_MIN_MS, Case, cpu, planned, slots};
use crate::fleet::{FindError, Member};

/// A check adds its reasons; that it adds none means that nothing speaks against the request as far as it can see.
pub(super) type Check = fn(&Case, &mut Vec<Refusal>);

/// All checks, in the order in which their reasons are told.
pub(super) const CHECKS: &[Check] = &[
    vm_is_known,
    source_is_online,
    target_is_given_and_known,
    target_is_another_host,
    vm_is_in_no_job,
    vm_state_fits_the_mode,
    vm_is_owned,
    memory_suffices,
    placements_name_disks,
    pools_exist,
    pools_have_room,
    volume_groups_hold_raw_disks,
    shared_pools_without_copy,
    clones_take_all_along,
    storage_move_moves_something,
    bridges_exist,
    machine_type_exists,
    cpu_model_runs,
    accelerator_is_the_same,
    firmware_exists,
    boot_files_exist,
    name_is_free,
    certificates_hold,
    authority_is_the_same,
    slots::moves_are_let_through,
    slots::hosts_have_a_slot,
    target_can_be_dialled,
    values_are_in_range,
    super::settings::settings_can_be_kept,
    planned::planned_can_be_used,
    planned::wishes_about_planned_vms_make_sense,
];

/// For a plan that no check speaks against and that can yet not be made: a fault of Sterna.
pub(super) fn incomplete() -> Refusal {
    refusal(
        RefusalCode::InvalidValue,
        "the request passed every check and yet leaves something open",
        "report this as a fault of Sterna, with the request",
    )
}

pub(super) fn refusal(code: RefusalCode, message: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), remedy: remedy.into() }
}

pub(super) fn vm_is_known(case: &Case, out: &mut Vec<Refusal>) {
    let Err(error) = &case.found else { return };
    out.push(match error {
        FindError::Unknown { .. } => {
            refusal(RefusalCode::UnknownVm, error.to_string(), "see `sterna vm list`, and whether its host is online")
        }
        FindError::Ambiguous { ids, .. } => {
            let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
            refusal(RefusalCode::AmbiguousVm, error.to_string(), format!("give its id: {}", ids.join(" or ")))
        }
    });
}

pub(super) fn offline(member: &Member) -> Refusal {
    let host = &member.inventory.host;
    refusal(
        RefusalCode::HostOffline,
        format!("host {host} was last heard of at {}", member.heard_at),
        format!("start sterna-agent on {host}, or mend its way to NATS (`sterna doctor`)"),
    )
}

pub(super) fn source_is_online(case: &Case, out: &mut Vec<Refusal>) {
    out.extend(case.source().filter(|source| !source.online).map(offline));
}

pub(super) fn target_is_given_and_known(case: &Case, out: &mut Vec<Refusal>) {
    match &case.request.target {
        None if case.request.storage_only || case.request.kind == JobKind::Cutover => {}
        None => out.push(refusal(
            RefusalCode::NoTarget,
            "no target was given",
            "give --to HOST, or --storage-only to move disks within the VM's host",
        )),
        Some(host) => match case.fleet.host(host) {
            None => out.push(refusal(
                RefusalCode::UnknownHost,
                format!("no host {host} was ever heard of"),
                "see `sterna host list`",
            )),
            Some(target) if !target.online && !case.request.storage_only => out.push(offline(target)),
            Some(_) => {}
        },
    }
}

pub(super) fn target_is_another_host(case: &Case, out: &mut Vec<Refusal>) {
    let (Some(source), Some(target)) = (case.source(), &case.request.target) else { return };
    let same = source.inventory.host == *target;
    if same && !case.request.storage_only {
        out.push(refusal(
            RefusalCode::SameHost,
            format!("the VM is on {target} already"),
            "give another host, or --storage-only to move its disks between pools",
        ));
    }
    if !same && case.request.storage_only {
        out.push(refusal(
            RefusalCode::InvalidValue,
            format!("a storage move keeps the VM on {}, and {target} was given as target", source.inventory.host),
            "leave out --to, or --storage-only",
        ));
    }
}

pub(super) fn vm_is_in_no_job(case: &Case, out: &mut Vec<Refusal>) {
    // What is only prepared for does not touch the VM.
    let Some(vm) = case.vm().filter(|_| !case.stages()) else { return };
    let planned = case.jobs.iter().find(|status| status.plan.vm.id == vm.id()).map(|status| status.job);
    if let Some(job) = planned.or(vm.job.filter(|job| *job != case.job)) {
        out.push(refusal(
            RefusalCode::VmInJob,
            format!("VM {} is held by job {job}", vm.spec.name),
            format!("wait for it (`sterna job watch {job}`), or cancel it (`sterna job cancel {job}`)"),
        ));
    }
}

/// How the command that was given makes a cold move: of a cutover the guest need not be stopped before.
fn cold(case: &Case) -> &'static str {
    match case.request.kind {
        JobKind::Cutover => "with --cold",
        _ => "stopped, with --mode cold",
    }
}

pub(super) fn vm_state_fits_the_mode(case: &Case, out: &mut Vec<Refusal>) {
    let Some(vm) = case.vm() else { return };
    let name = &vm.spec.name;
    let wish = if case.replicates() { ModeWish::Auto } else { case.request.mode };
    let remedy = match (wish, vm.state) {
        (ModeWish::Auto, VmState::Running | VmState::Stopped)
        | (ModeWish::Live, VmState::Running)
        | (ModeWish::Cold, VmState::Stopped) => return,
        // It is shut down when its turn is there.
        (ModeWish::Cold, VmState::Running) if case.boots_at_target() => return,
        (ModeWish::Live, VmState::Stopped) => {
            format!("start it (`sterna vm start {name}`), or move it {}", cold(case))
        }
        (ModeWish::Cold, VmState::Running) => format!("stop it (`sterna vm stop {name}`), or move it with --mode live"),
        (_, VmState::Failed) => format!("stop it (`sterna vm stop {name} --force`), then move it {}", cold(case)),
        (_, VmState::Paused | VmState::Incoming) => {
            format!("let it run, or stop it; if a handover of it is unresolved, see `sterna vm show {name}`")
        }
    };
    let wanted = match wish {
        ModeWish::Auto => "running or stopped",
        ModeWish::Live => "running for a live move",
        ModeWish::Cold => "stopped for a cold move",
    };
    out.push(refusal(RefusalCode::VmState, format!("VM {name} is {}; it must be {wanted}", vm.state), remedy));
}

pub(super) fn vm_is_owned(case: &Case, out: &mut Vec<Refusal>) {
    let Some(vm) = case.vm().filter(|vm| !vm.owned) else { return };
    let name = &vm.spec.name;
    out.push(refusal(
        RefusalCode::VmUnresolved,
        format!("no online host owns VM {name}: its last handover is not resolved"),
        format!(
            "bring both hosts of the handover up, or fence one and say so: `sterna vm resolve {name} --fenced HOST`"
        ),
    ));
}

fn memory_suffices(case: &Case, out: &mut Vec<Refusal>) {
    let (Some((_, target)), Some(vm)) = (case.hosts(), case.vm()) else { return };
    let (free, held) = planned::memory(case, target);
    // A VM that is stopped needs none now. Where memory is held it must not take of it when it is started; and for a planned
    // VM it is held in any case.
    let needs = case.runs_at_target() || case.boots_at_target() || case.stages() || held.0 > 0;
    if needs && free < vm.spec.memory {
        let besides = planned::besides(held);
        out.push(refusal(
            RefusalCode::Memory,
            format!(
                "VM {} needs {} of memory; {} has {free} free{besides}",
                vm.spec.name, vm.spec.memory, target.inventory.host
            ),
            "free memory there by moving or stopping a VM, or choose another target",
        ));
    }
}

pub(super) fn placements_name_disks(case: &Case, out: &mut Vec<Refusal>) {
    let Some(vm) = case.vm() else { return };
    let names: Vec<_> = vm.spec.disks.iter().map(|disk| disk.name.to_string()).collect();
    let mut seen = BTreeSet::new();
    for placement in &case.request.disks {
        if vm.spec.disk(&placement.disk).is_none() {
            out.push(refusal(
                RefusalCode::UnknownDisk,
                format!("VM {} has no disk {}", vm.spec.name, placement.disk),
                if names.is_empty() { "it has none at all".into() } else { format!("it has: {}", names.join(", ")) },
            ));
        }
        if !seen.insert(&placement.disk) {
            out.push(refusal(
                RefusalCode::InvalidValue,
                format!("disk {} is given twice", placement.disk),
                "give each disk one pool",
            ));
        }
    }
}

pub(super) fn pools_exist(case: &Case, out: &mut Vec<Refusal>) {
    let Some(target) = case.target() else { return };
    let wanted: BTreeSet<PoolName> = placed(case).into_iter().map(|disk| disk.target.pool).collect();
    let have: Vec<_> = target.inventory.pools.iter().map(|pool| pool.name.to_string()).collect();
    for pool in wanted.iter().filter(|pool| placement::pool(target, pool).is_none()) {
        out.push(refusal(
            RefusalCode::UnknownPool,
            format!("host {} has no pool {pool}", target.inventory.host),
            format!("give --disk NAME=POOL with one of: {}; or add [pools.{pool}] there", have.join(", ")),
        ));
    }
}

pub(super) fn pools_have_room(case: &Case, out: &mut Vec<Refusal>) {
    let Some(target) = case.target() else { return };
    let mut needed: BTreeMap<PoolName, ByteCount> = BTreeMap::new();
    for disk in placed(case).into_iter().filter(|disk| disk.copied) {
        let Some(pool) = placement::pool(target, &disk.target.pool) else { continue };
        let sum = needed.entry(disk.target.pool).or_default();
        *sum = sum.plus(pool.room_for(disk.target.size));
    }
    for (name, bytes) in needed {
        let Some(pool) = placement::pool(target, &name) else { continue };
        let (room, besides) = (planned::room(case, pool), planned::besides(pool.reserved));
        if room >= bytes {
            continue;
        }
        out.push(refusal(
            RefusalCode::PoolSpace,
            format!("the disks need {bytes} in pool {name} of {}; it has {room} free{besides}", target.inventory.host),
            "free room there, or give the disks another pool with --disk NAME=POOL",
        ));
    }
}

fn volume_groups_hold_raw_disks(case: &Case, out: &mut Vec<Refusal>) {
    let (Some(target), Some(vm)) = (case.target(), case.vm()) else { return };
    let host = &target.inventory.host;
    for (index, disk) in placed(case).into_iter().map(|disk| disk.target).enumerate() {
        if placement::pool(target, &disk.pool).is_none_or(|pool| pool.extent.is_none()) {
            continue;
        }
        let (name, pool) = (&disk.name, &disk.pool);
        if disk.format != DiskFormat::Raw {
            out.push(refusal(
                RefusalCode::PoolKind,
                format!(
                    "disk {name} would be {} in pool {pool} of {host}, a volume group, which holds raw disks only",
                    disk.format
                ),
                format!("give --disk {name}={pool}:raw, or another pool"),
            ));
        }
        if index == 0 && vm.spec.firmware == Firmware::Uefi {
            out.push(refusal(
                RefusalCode::PoolKind,
                format!("the UEFI variables of VM {} live beside its first disk {name}, and pool {pool} of {host} is a volume group, which holds no files", vm.spec.name),
                format!("give disk {name} a pool that is a directory: --disk {name}=POOL"),
            ));
        }
    }
}

fn shared_pools_without_copy(case: &Case, out: &mut Vec<Refusal>) {
    if case.request.storage != StorageWish::None || case.request.storage_only {
        return;
    }
    for disk in placed(case) {
        let name = &disk.source.name;
        if !disk.shared {
            out.push(refusal(
                RefusalCode::PoolNotShared,
                format!(
                    "disk {name} is in pool {}, which is not the target's pool {}",
                    disk.source.pool, disk.target.pool
                ),
                "move with --storage all, or give both pools one `shared` name if they are the same storage",
            ));
        } else if disk.source.format != disk.target.format {
            out.push(refusal(
                RefusalCode::InvalidValue,
                format!("disk {name} cannot change its format without being copied"),
                "leave out the format, or move with --storage all",
            ));
        }
    }
}

/// A disk that stands on a replica of its host cannot go to another as it is; and onto itself it cannot be copied.
fn clones_take_all_along(case: &Case, out: &mut Vec<Refusal>) {
    if case.hosts().is_none() {
        return;
    }
    let stays = |disk: &placement::Placed| disk.source.base.is_some() && disk.shared && !disk.copied;
    for disk in placed(case).into_iter().filter(stays) {
        let name = &disk.source.name;
        out.push(refusal(
            RefusalCode::PoolNotShared,
            format!(
                "disk {name} is a clone's and stands on a replica, and both hosts share its pool {}",
                disk.source.pool
            ),
            format!("have it copied into another pool: --storage all --disk {name}=POOL"),
        ));
    }
}

fn storage_move_moves_something(case: &Case, out: &mut Vec<Refusal>) {
    // A deep check reads disks that stay where they are.
    if case.request.kind == JobKind::DeepCheck {
        return;
    }
    if case.request.storage_only && case.vm().is_some() && !placed(case).iter().any(|disk| disk.copied) {
        out.push(refusal(
            RefusalCode::NothingToMove,
            "every disk is where it is asked to go",
            "give --disk NAME=POOL with another pool or format, and leave out --storage none",
        ));
    }
}

fn bridges_exist(case: &Case, out: &mut Vec<Refusal>) {
    let (Some((_, target)), Some(vm)) = (case.hosts(), case.vm()) else { return };
    let wanted: BTreeSet<_> = vm.spec.nics.iter().filter_map(|nic| nic.bridge.as_ref()).collect();
    for bridge in wanted.into_iter().filter(|bridge| !target.inventory.bridges.contains(bridge)) {
        out.push(refusal(
            RefusalCode::UnknownBridge,
            format!("host {} has no bridge {bridge}", target.inventory.host),
            format!(
                "make it there and list it under `bridges` in agent.toml, or choose another target than {}",
                target.inventory.host
            ),
        ));
    }
}

fn machine_type_exists(case: &Case, out: &mut Vec<Refusal>) {
    let (Some((_, target)), Some(vm)) = (case.hosts(), case.vm()) else { return };
    let hypervisor = &target.inventory.hypervisor;
    if !hypervisor.machines.contains(&vm.spec.machine) {
        out.push(refusal(
            RefusalCode::MachineType,
            format!("QEMU {} of {} has no machine type {}", hypervisor.version, target.inventory.host, vm.spec.machine),
            "upgrade QEMU there, or define the VM with a machine type that both hosts have",
        ));
    }
}

fn cpu_model_runs(case: &Case, out: &mut Vec<Refusal>) {
    let (Some((source, target)), Some(vm)) = (case.hosts(), case.vm()) else { return };
    let (model, host) = (vm.spec.cpu.split(',').next().unwrap_or_default(), &target.inventory.host);
    let is_named = !matches!(model, "host" | "max");
    if is_named && !target.inventory.hypervisor.cpu_models.iter().any(|known| known == model) {
        out.push(refusal(
            RefusalCode::CpuModel,
            format!("host {host} cannot run CPU model {model}"),
            "choose a target with at least that processor, or define the VM with a model that both hosts have",
        ));
    }
    // Under translation processors are QEMU's own and need nothing of the host's; a guest that starts anew at the
    // target takes what it finds there.
    if source.inventory.hypervisor.accelerator != Accelerator::Kvm || !case.runs_at_target() {
        return;
    }
    if is_named {
        let (of_source, of_target) = (&source.inventory.cpu.features, &target.inventory.cpu.features);
        let lost = cpu::lost(&vm.spec.cpu, of_source, of_target);
        if !lost.is_empty() {
            out.push(refusal(
                RefusalCode::CpuModel,
                format!("the guest was given features beside its CPU model {model}; {host} lacks: {}", lost.join(" ")),
                format!("choose a target that has them, define the VM without them, or move it {}", cold(case)),
            ));
        }
        return;
    }
    let has: BTreeSet<_> = target.inventory.cpu.features.iter().collect();
    let lacking: Vec<_> =
        source.inventory.cpu.features.iter().filter(|feature| !has.contains(feature)).map(String::as_str).collect();
    if !lacking.is_empty() {
        out.push(refusal(
            RefusalCode::CpuModel,
            format!("the guest sees the source's whole processor (cpu {model}); {host} lacks: {}", lacking.join(" ")),
            format!("define the VM with a named CPU model that both hosts have, or move it {}", cold(case)),
        ));
    }
}

fn accelerator_is_the_same(case: &Case, out: &mut Vec<Refusal>) {
    let Some((source, target)) = case.hosts().filter(|_| case.runs_at_target()) else { return };
    let of = |member: &Member| member.inventory.hypervisor.accelerator;
    if of(source) != of(target) {
        out.push(refusal(
            RefusalCode::Accelerator,
            format!(
                "{} runs guests by {} and {} by {}",
                source.inventory.host,
                of(source).as_str(),
                target.inventory.host,
                of(target).as_str()
            ),
            format!("choose a target with the same accelerator, or move it {}", cold(case)),
        ));
    }
}

fn firmware_exists(case: &Case, out: &mut Vec<Refusal>) {
    let (Some((_, target)), Some(vm)) = (case.hosts(), case.vm()) else { return };
    if let Some(lacking) = target.inventory.hypervisor.lacks_firmware(&vm.spec) {
        out.push(refusal(
            RefusalCode::Firmware,
            format!("host {} has no {lacking}", target.inventory.host),
            "install OVMF there (package ovmf), or choose another target",
        ));
    }
}

fn boot_files_exist(case: &Case, out: &mut Vec<Refusal>) {
    let (Some((_, target)), Some(kernel)) = (case.hosts(), case.vm().and_then(|vm| vm.spec.kernel.as_ref())) else {
        return;
    };
    for file in std::iter::once(&kernel.image).chain(&kernel.initrd) {
        if !target.inventory.boot_files.contains(file) {
            out.push(refusal(
                RefusalCode::BootFile,
                format!("host {} has no boot file {}", target.inventory.host, file.as_str()),
                "copy it into the boot directory there, under the same name",
            ));
        }
    }
}

fn name_is_free(case: &Case, out: &mut Vec<Refusal>) {
    let (Some((_, target)), Some(vm)) = (case.hosts(), case.vm()) else { return };
    let host = &target.inventory.host;
    for other in &target.inventory.vms {
        // A host that once had the VM may keep its old record: an idle one that owns nothing is no hindrance.
        let same = other.id() == vm.id();
        let idle = !other.owned && other.state == VmState::Stopped && other.job.is_none();
        if same && !idle {
            out.push(refusal(
                RefusalCode::NameTaken,
                format!("host {host} has a VM with the id {} itself ({})", other.id(), other.state),
                format!("see `sterna vm show {}` and delete or resolve the one that is not wanted", other.id()),
            ));
        } else if !same && other.spec.name == vm.spec.name {
            out.push(refusal(
                RefusalCode::NameTaken,
                format!("host {host} has another VM called {} ({})", other.spec.name, other.id()),
                "rename or move one of the two, or choose another target",
            ));
        }
    }
}

pub(super) fn certificates_hold(case: &Case, out: &mut Vec<Refusal>) {
    let Some((source, target)) = case.hosts() else { return };
    for member in [source, target] {
        let (host, certificate) = (&member.inventory.host, &member.inventory.certificate);
        let fault = if case.now >= certificate.not_after {
            format!("the certificate of {host} expired at {}", certificate.not_after)
        } else if case.now < certificate.not_before {
            format!("the certificate of {host} is valid from {} on; it is now {}", certificate.not_before, case.now)
        } else {
            continue;
        };
        out.push(refusal(
            RefusalCode::CertificateExpired,
            fault,
            format!("set the clocks right, or issue a new one: `sterna pki issue host {host} --address ADDRESS --dir DIRECTORY --force`"),
        ));
    }
}

pub(super) fn authority_is_the_same(case: &Case, out: &mut Vec<Refusal>) {
    let Some((source, target)) = case.hosts() else { return };
    if source.inventory.certificate.authority != target.inventory.certificate.authority {
        out.push(refusal(
            RefusalCode::CertificateAuthority,
            format!("{} and {} trust different authorities", source.inventory.host, target.inventory.host),
            "issue both certificates by one fleet authority (`sterna pki issue host HOST --address ADDRESS --dir DIRECTORY --force`)",
        ));
    }
}

pub(super) fn target_can_be_dialled(case: &Case, out: &mut Vec<Refusal>) {
    let Some((_, target)) = case.hosts().filter(|(_, target)| target.inventory.addresses.is_empty()) else { return };
    out.push(refusal(
        RefusalCode::InvalidValue,
        format!("host {} announces no address for its data-plane port", target.inventory.host),
        "set `advertise` in its agent.toml",
    ));
}

pub(super) fn values_are_in_range(case: &Case, out: &mut Vec<Refusal>) {
    let mut check = |holds: bool, message: String, remedy: String| {
        if !holds {
            out.push(refusal(RefusalCode::InvalidValue, message, remedy));
        }
    };
    let lanes_max = case.lanes_max();
    if let Some(lanes) = case.request.lanes {
        let most = format!("give 1 to {lanes_max}, which both hosts allow");
        check((1..=lanes_max).contains(&lanes), format!("{lanes} lanes are out of range"), most);
    } else if lanes_max == 0 {
        check(false, "a host allows no lanes at all".into(), "raise it: `sterna host set HOST --lanes 4`".into());
    }
    if let Some(bandwidth) = case.request.bandwidth {
        let least = format!("give at least {}/s, or leave it out", ByteCount(BANDWIDTH_MIN));
        check(bandwidth.0 >= BANDWIDTH_MIN, format!("a bandwidth of {bandwidth} is too low"), least);
    }
    if let Some(blackout) = case.request.blackout_max_ms {
        let range = format!("give {BLACKOUT_MIN_MS} to {BLACKOUT_MAX_MS} ms");
        let holds = (BLACKOUT_MIN_MS..=BLACKOUT_MAX_MS).contains(&blackout);
        check(holds, format!("a blackout limit of {blackout} ms is out of range"), range);
    }
}
