mod clone;
mod cutover;
mod planned;
mod rehearse;
mod replicate;
mod verify;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use sterna_shared::host::{Accelerator, Inventory, Limits, MovesInHand, VmState};
use sterna_shared::id::Generation;
use sterna_shared::job::{
    DiskPlacement, JobStatus, ModeWish, MoveMode, MoveRequest, Plan, Refusal, RefusalCode, StepKind, StorageWish,
};
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::vm::{DiskFormat, Firmware, VmSpec};

use super::{BLACKOUT_DEFAULT_MS, LANES_DEFAULT, example, in_hand, passes, plan};
use crate::fleet::Fleet;

/// A request and everything it is planned on, before a fault is planted.
struct World {
    source: Inventory,
    target: Inventory,
    source_silent: bool,
    target_silent: bool,
    jobs: Vec<JobStatus>,
    request: MoveRequest,
}

impl World {
    fn sound() -> Self {
        let mut source = example::inventory("alpha");
        source.vms = vec![example::report(&example::vm("web"))];
        Self {
            source,
            target: example::inventory("beta"),
            source_silent: false,
            target_silent: false,
            jobs: vec![],
            request: example::request(),
        }
    }

    fn spec(&mut self) -> &mut VmSpec {
        &mut self.source.vms[0].spec
    }

    fn plan(&self) -> Result<Plan, Vec<Refusal>> {
        let mut fleet = Fleet::default();
        let late = Duration::from_secs(100);
        for (inventory, silent) in [(&self.source, self.source_silent), (&self.target, self.target_silent)] {
            fleet.heard(inventory.clone(), example::now(), if silent { Duration::ZERO } else { late });
        }
        fleet.silence(late);
        plan(&fleet, &self.jobs, &self.request, example::seeds())
    }

    fn codes(&self) -> BTreeSet<RefusalCode> {
        self.plan().err().unwrap_or_default().into_iter().map(|refusal| refusal.code).collect()
    }

    /// A job in hand for another VM, on the same two hosts.
    fn job_in_hand(&self, number: u8) -> JobStatus {
        let mut plan = World::sound().plan().expect("a plan");
        plan.job = example::job(number);
        plan.vm.id = format!("0197c0de-0000-7000-8000-0000000002{number:02x}").parse().expect("a UUID");
        JobStatus::planned(plan)
    }
}

type Plant = fn(&mut World);

/// Faults that can all be present at once, and the code each must give.
const FAULTS: &[(RefusalCode, Plant)] = &[
    (RefusalCode::HostOffline, |world| world.target_silent = true),
    (RefusalCode::HostOffline, |world| world.source_silent = true),
    (RefusalCode::VmInJob, |world| world.source.vms[0].job = Some(example::job(9))),
    (RefusalCode::VmState, |world| world.source.vms[0].state = VmState::Paused),
    (RefusalCode::VmUnresolved, |world| world.source.vms[0].owned = false),
    (RefusalCode::Memory, |world| world.target.memory_free = ByteCount::mebibytes(1)),
    (RefusalCode::UnknownDisk, |world| world.request.disks.push(placement("swap", "fast"))),
    (RefusalCode::UnknownPool, |world| world.request.disks.push(placement("data", "slow"))),
    (RefusalCode::PoolSpace, |world| world.target.pools[0].free = ByteCount(1)),
    (RefusalCode::PoolKind, |world| world.target.pools[0].extent = Some(ByteCount::mebibytes(4))),
    (RefusalCode::UnknownBridge, |world| world.target.bridges.clear()),
    (RefusalCode::MachineType, |world| world.target.hypervisor.machines.clear()),
    (RefusalCode::CpuModel, |world| world.spec().cpu = "EPYC".into()),
    (RefusalCode::Accelerator, |world| world.target.hypervisor.accelerator = Accelerator::Kvm),
    (RefusalCode::Firmware, |world| {
        world.spec().firmware = Firmware::Uefi;
        world.target.hypervisor.uefi = false;
    }),
    (RefusalCode::Firmware, |world| {
        (world.spec().firmware, world.spec().secure_boot) = (Firmware::Uefi, true);
        world.target.hypervisor.secure_boot = false;
    }),
    (RefusalCode::BootFile, |world| world.target.boot_files.clear()),
    (RefusalCode::NameTaken, |world| {
        let mut other = example::vm("web");
        other.id = "0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID");
        let mut report = example::report(&other);
        report.state = VmState::Stopped;
        world.target.vms.push(report);
        world.request.vm = world.source.vms[0].id().to_string();
    }),
    (RefusalCode::CertificateExpired, |world| world.target.certificate.not_after = example::later(-1)),
    (RefusalCode::CertificateExpired, |world| world.source.certificate.not_before = example::later(1)),
    (RefusalCode::CertificateAuthority, |world| world.target.certificate.authority = "cd34".into()),
    (RefusalCode::HostBusy, |world| {
        world.target.limits.inbound_moves_max = 1;
        let job = world.job_in_hand(2);
        world.jobs.push(job);
    }),
    (RefusalCode::MigrationDisabled, |world| world.target.limits.enabled = false),
    (RefusalCode::MigrationDisabled, |world| world.source.limits.outbound_moves_max = 0),
    (RefusalCode::InvalidValue, |world| world.request.lanes = Some(17)),
    (RefusalCode::InvalidValue, |world| world.request.blackout_max_ms = Some(9)),
    (RefusalCode::InvalidValue, |world| world.request.bandwidth = Some(Bandwidth(1))),
    (RefusalCode::InvalidValue, |world| world.target.addresses.clear()),
];

fn placement(disk: &str, pool: &str) -> DiskPlacement {
    DiskPlacement { disk: disk.parse().expect("a name"), pool: pool.parse().expect("a name"), format: None }
}

fn planted(faults: &[(RefusalCode, Plant)]) -> World {
    let mut world = World::sound();
    for (_, plant) in faults {
        plant(&mut world);
    }
    world
}

#[test]
fn a_sound_request_becomes_a_plan() {
    let plan = World::sound().plan().expect("a plan");
    assert_eq!((plan.mode, plan.lanes, plan.blackout_max_ms), (MoveMode::Live, LANES_DEFAULT, BLACKOUT_DEFAULT_MS));
    assert_eq!(plan.generation, Generation(3));
    let copied: Vec<_> = plan.disks.iter().map(|disk| disk.source.name.as_str()).collect();
    assert_eq!(copied, ["root"], "the disk in the shared pool stays where it is");
    assert_eq!(plan.steps.len(), 7);
    assert_eq!(plan.token, example::seeds().token);
}

#[test]
fn each_fault_gives_its_code_and_only_its_code() {
    for (number, fault) in FAULTS.iter().enumerate() {
        let codes = planted(&[*fault]).codes();
        assert_eq!(codes, BTreeSet::from([fault.0]), "fault {number}");
    }
}

#[test]
fn all_faults_together_give_all_codes() {
    let codes = planted(FAULTS).codes();
    assert_eq!(codes, FAULTS.iter().map(|(code, _)| *code).collect());
}

proptest! {
    #[test]
    fn any_faults_give_all_their_codes_and_never_a_plan(chosen in proptest::sample::subsequence(FAULTS, 0..=FAULTS.len())) {
        let world = planted(&chosen);
        let expected: BTreeSet<_> = chosen.iter().map(|(code, _)| *code).collect();
        match world.plan() {
            Ok(_) => prop_assert!(expected.is_empty()),
            Err(refusals) => {
                prop_assert!(!refusals.is_empty());
                prop_assert!(refusals.iter().all(|refusal| !refusal.message.is_empty() && !refusal.remedy.is_empty()));
                let codes: BTreeSet<_> = refusals.into_iter().map(|refusal| refusal.code).collect();
                prop_assert_eq!(codes, expected);
            }
        }
    }
}

#[test]
fn unknown_things_are_all_named_at_once() {
    let mut world = World::sound();
    world.request.vm = "nobody".into();
    world.request.target = Some("gamma".parse().expect("a name"));
    world.request.lanes = Some(0);
    let expected = [RefusalCode::UnknownVm, RefusalCode::UnknownHost, RefusalCode::InvalidValue];
    assert_eq!(world.codes(), expected.into());
    world.request.target = None;
    assert!(world.codes().contains(&RefusalCode::NoTarget));
}

#[test]
fn a_volume_group_takes_raw_disks_by_whole_extents() {
    let mut world = World::sound();
    let extent = ByteCount::mebibytes(4);
    world.target.pools[0].extent = Some(extent);
    let refusals = world.plan().expect_err("qcow2");
    assert!(matches!(&refusals[..], [refusal] if refusal.message.contains("disk root would be qcow2")), "{refusals:?}");
    // One unit above whole extents.
    let root = &mut world.spec().disks[0];
    (root.format, root.size) = (DiskFormat::Raw, ByteCount::mebibytes(8).plus(ByteCount(64 << 10)));
    world.target.pools[0].free = ByteCount(3 * extent.0);
    assert!(world.plan().is_ok());
    world.target.pools[0].free = ByteCount(3 * extent.0 - 1);
    assert_eq!(world.codes(), [RefusalCode::PoolSpace].into());
    world.target.pools[0].free = ByteCount(3 * extent.0);
    (world.spec().firmware, world.target.hypervisor.uefi) = (Firmware::Uefi, true);
    assert_eq!(world.codes(), [RefusalCode::PoolKind].into(), "variables are a file");
}

#[test]
fn a_vm_name_of_two_is_ambiguous() {
    let mut world = World::sound();
    let mut other = example::vm("web");
    other.id = "0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID");
    world.target.vms = vec![example::report(&other)];
    assert_eq!(world.codes(), [RefusalCode::AmbiguousVm].into());
}

#[test]
fn the_same_host_is_no_target() {
    let mut world = World::sound();
    world.request.target = Some("alpha".parse().expect("a name"));
    assert_eq!(world.codes(), [RefusalCode::SameHost].into());
}

#[test]
fn a_job_in_hand_holds_its_vm() {
    let mut world = World::sound();
    let mut job = world.job_in_hand(2);
    job.plan.vm.id = world.source.vms[0].id();
    world.jobs = vec![job];
    assert_eq!(world.codes(), [RefusalCode::VmInJob].into());
}

#[test]
fn the_mode_follows_the_state() {
    let mut world = World::sound();
    world.request.mode = ModeWish::Cold;
    assert_eq!(world.codes(), [RefusalCode::VmState].into());
    world.source.vms[0].state = VmState::Stopped;
    let plan = world.plan().expect("a plan");
    assert_eq!(plan.mode, MoveMode::Cold);
    assert!(!plan.steps.contains(&StepKind::CopyMemory));
    world.target.memory_free = ByteCount(0);
    assert!(world.plan().is_ok(), "a stopped VM takes no memory");
    world.request.mode = ModeWish::Live;
    assert_eq!(world.codes(), [RefusalCode::VmState, RefusalCode::Memory].into());
}

#[test]
fn without_storage_every_pool_must_be_shared() {
    let mut world = World::sound();
    world.request.storage = StorageWish::None;
    assert_eq!(world.codes(), [RefusalCode::PoolNotShared].into());
    world.spec().disks.remove(0);
    let plan = world.plan().expect("a plan");
    assert!(plan.disks.is_empty());
    assert!(!plan.steps.contains(&StepKind::CopyDisks));
}

#[test]
fn another_format_on_shared_storage_is_a_copy() {
    let mut world = World::sound();
    world.request.disks = vec![DiskPlacement { format: Some(DiskFormat::Raw), ..placement("data", "san") }];
    let plan = world.plan().expect("a plan");
    assert_eq!(plan.disks.len(), 2);
    assert_eq!(plan.vm_at_target.disks[1].format, DiskFormat::Raw);
}

#[test]
fn a_storage_move_stays_on_its_host() {
    let mut world = World::sound();
    world.request.target = None;
    world.request.storage_only = true;
    assert_eq!(world.codes(), [RefusalCode::NothingToMove].into());
    world.request.disks = vec![placement("root", "san")];
    let plan = world.plan().expect("a plan");
    assert_eq!((plan.mode, plan.source.id == plan.target.id), (MoveMode::Storage, true));
    assert_eq!(plan.disks.len(), 1);
    world.request.target = Some("beta".parse().expect("a name"));
    assert_eq!(world.codes(), [RefusalCode::InvalidValue].into());
}

#[test]
fn a_host_that_is_switched_off_lets_nothing_in_or_out_and_says_so_for_good() {
    let either: [Plant; 2] = [|world| world.source.limits.enabled = false, |world| world.target.limits.enabled = false];
    for off in either {
        let mut world = World::sound();
        off(&mut world);
        assert_eq!(world.codes(), [RefusalCode::MigrationDisabled].into());
    }
    assert!(!passes(RefusalCode::MigrationDisabled), "a job that waited for it would wait for an operator");
    let mut world = World::sound();
    (world.source.limits.enabled, world.target.limits.enabled) = (false, false);
    let refusals = world.plan().expect_err("switched off");
    let named = |host| refusals.iter().any(|refusal| refusal.message.contains(host) && refusal.remedy.contains(host));
    assert!(refusals.len() == 2 && named("alpha") && named("beta"), "{refusals:?}");
}

#[test]
fn a_limit_of_none_is_not_waited_for() {
    let either: [Plant; 2] =
        [|world| world.source.limits.outbound_moves_max = 0, |world| world.target.limits.inbound_moves_max = 0];
    for none in either {
        let mut world = World::sound();
        none(&mut world);
        assert_eq!(world.codes(), [RefusalCode::MigrationDisabled].into());
    }
    let mut world = World::sound();
    (world.source.limits.inbound_moves_max, world.target.limits.outbound_moves_max) = (0, 0);
    assert!(world.plan().is_ok(), "the other way is not asked for");
}

#[test]
fn moves_out_and_in_are_counted_apart() {
    let mut world = World::sound();
    (world.source.limits.outbound_moves_max, world.target.limits.inbound_moves_max) = (2, 2);
    let back = |number| {
        let mut job = World::sound().job_in_hand(number);
        std::mem::swap(&mut job.plan.source, &mut job.plan.target);
        job
    };
    world.jobs = vec![world.job_in_hand(2), back(3), back(4)];
    assert!(world.plan().is_ok(), "one goes this way, two the other");
    world.jobs.push(world.job_in_hand(5));
    let refusals = world.plan().expect_err("no slot");
    assert_eq!(world.codes(), [RefusalCode::HostBusy].into());
    assert!(passes(RefusalCode::HostBusy) && refusals.len() == 2, "{refusals:?}");
    assert!(refusals[1].remedy.contains("`sterna host set beta --inbound 3`"), "{refusals:?}");
    world.source.limits.outbound_moves_max = 3;
    world.target.limits.inbound_moves_max = 3;
    assert!(world.plan().is_ok(), "raised");
}

#[test]
fn a_storage_move_takes_a_storage_slot_and_no_other() {
    let mut world = World::sound();
    (world.request.target, world.request.storage_only) = (None, true);
    world.request.disks = vec![placement("root", "san")];
    world.source.limits = Limits { storage_moves_max: 1, outbound_moves_max: 1, enabled: false, ..Limits::default() };
    world.jobs = vec![world.job_in_hand(2)];
    let mut first = JobStatus::planned(world.plan().expect("moves of VMs are not counted, nor need they be allowed"));
    first.plan.vm.id = "0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID");
    (first.job, first.plan.job) = (example::job(3), example::job(3));
    world.jobs.push(first);
    let alpha = "alpha".parse().expect("a name");
    assert_eq!(in_hand(&alpha, &world.jobs), MovesInHand { outbound: 1, inbound: 0, storage: 1 });
    assert_eq!(world.codes(), [RefusalCode::HostBusy].into());
    world.source.limits.storage_moves_max = 0;
    assert_eq!(world.codes(), [RefusalCode::MigrationDisabled].into());
    // A move to another host needs no such slot.
    (world.request, world.source.limits.enabled) = (example::request(), true);
    world.source.limits.outbound_moves_max = 2;
    assert!(world.plan().is_ok());
}

#[test]
fn a_whole_processor_needs_all_its_features() {
    let mut world = World::sound();
    for inventory in [&mut world.source, &mut world.target] {
        inventory.hypervisor.accelerator = Accelerator::Kvm;
    }
    assert!(world.plan().is_ok());
    world.target.cpu.features.pop();
    assert_eq!(world.codes(), [RefusalCode::CpuModel].into());
    world.source.vms[0].state = VmState::Stopped;
    assert!(world.plan().is_ok(), "a stopped guest finds what there is when it starts");
}

#[test]
fn features_beside_a_named_model_are_needed_too() {
    let mut world = World::sound();
    for inventory in [&mut world.source, &mut world.target] {
        inventory.hypervisor.accelerator = Accelerator::Kvm;
        inventory.hypervisor.cpu_models.push("Skylake-Client".into());
    }
    world.source.cpu.features.push("avx512f".into());
    world.spec().cpu = "Skylake-Client".into();
    assert!(world.plan().is_ok());
    world.spec().cpu = "Skylake-Client,+avx512f".into();
    let refusals = world.plan().expect_err("the guest would lose it");
    assert!(refusals.len() == 1 && refusals[0].message.ends_with("beta lacks: avx512f"), "{refusals:?}");
    world.source.vms[0].state = VmState::Stopped;
    assert!(world.plan().is_ok(), "a stopped guest finds what there is when it starts");
    world.source.vms[0].state = VmState::Running;
    for inventory in [&mut world.source, &mut world.target] {
        inventory.hypervisor.accelerator = Accelerator::Tcg;
    }
    assert!(world.plan().is_ok(), "QEMU translates what the processor lacks, or has not got it anywhere");
}

#[test]
fn an_old_idle_record_at_the_target_is_no_hindrance() {
    let mut world = World::sound();
    let mut old = example::report(&example::vm("web"));
    (old.owned, old.state, old.generation) = (false, VmState::Stopped, Generation(2));
    world.target.vms = vec![old];
    assert!(world.plan().is_ok());
    world.target.vms[0].state = VmState::Incoming;
    assert_eq!(world.codes(), [RefusalCode::NameTaken].into());
}
