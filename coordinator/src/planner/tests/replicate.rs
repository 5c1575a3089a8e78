//! Replications: what is planned, and every reason why not.

use sterna_shared::job::JobKind;
use sterna_shared::replica::{HOST_REPLICAS_MAX, ReplicationWish, Retention};
use sterna_shared::vm::DiskSpec;

use super::*;

/// A world in which the VM is to be replicated.
fn sound() -> World {
    let mut world = World::sound();
    world.request.kind = JobKind::Replicate;
    world
}

/// A world in which the target has a replica of the VM, with its disks where they are asked for.
fn replicated() -> World {
    let mut world = sound();
    world.target.replicas = vec![example::replica()];
    world
}

#[test]
fn all_disks_are_copied_into_qcow2_whatever_the_guest_does_and_the_pools_share() {
    for state in [VmState::Running, VmState::Stopped] {
        let mut world = sound();
        world.source.vms[0].state = state;
        world.spec().disks[0].format = DiskFormat::Raw;
        let plan = world.plan().expect("a plan");
        assert_eq!((plan.kind, plan.mode), (JobKind::Replicate, MoveMode::Cold));
        assert_eq!(plan.steps, [StepKind::Prepare, StepKind::CopyDisks, StepKind::Commit]);
        assert_eq!(plan.disks.len(), 2, "also the disk in the shared pool");
        assert!(plan.disks.iter().all(|disk| disk.target.format == DiskFormat::Qcow2 && disk.target.base.is_none()));
        assert_eq!(plan.retention, Some(Retention::default()));
        assert!(!plan.moves());
    }
}

#[test]
fn what_only_a_guest_needs_is_not_asked_for() {
    let free: [Plant; 8] = [
        |world| world.target.memory_free = ByteCount(0),
        |world| world.target.bridges.clear(),
        |world| world.target.hypervisor.machines.clear(),
        |world| world.target.hypervisor.cpu_models.clear(),
        |world| world.target.hypervisor.accelerator = Accelerator::Kvm,
        |world| world.target.boot_files.clear(),
        |world| world.target.limits.inbound_moves_max = 0,
        |world| {
            world.target.limits.inbound_moves_max = 1;
            let job = world.job_in_hand(2);
            world.jobs.push(job);
        },
    ];
    for (number, plant) in free.iter().enumerate() {
        let mut world = sound();
        plant(&mut world);
        assert_eq!(world.codes(), BTreeSet::new(), "{number}");
    }
    let mut status = JobStatus::planned(sound().plan().expect("a plan"));
    status.job = example::job(5);
    assert_eq!(in_hand(&sound().target.host, [&status]), MovesInHand::default(), "it takes no slot");
}

#[test]
fn every_reason_why_a_vm_is_not_replicated_is_told() {
    let faults: [(RefusalCode, Plant); 20] = [
        (RefusalCode::HostOffline, |world| world.target_silent = true),
        (RefusalCode::HostOffline, |world| world.source_silent = true),
        (RefusalCode::SameHost, |world| world.request.target = Some("alpha".parse().expect("a name"))),
        (RefusalCode::NoTarget, |world| world.request.target = None),
        (RefusalCode::VmInJob, |world| world.source.vms[0].job = Some(example::job(9))),
        (RefusalCode::VmState, |world| world.source.vms[0].state = VmState::Paused),
        (RefusalCode::VmUnresolved, |world| world.source.vms[0].owned = false),
        (RefusalCode::InvalidValue, |world| {
            let retention = Retention { last: 0, hourly: 0, daily: 0 };
            world.request.replication = Some(ReplicationWish { retention });
        }),
        (RefusalCode::InvalidValue, |world| {
            (world.request.storage_only, world.request.target) = (true, None);
        }),
        (RefusalCode::NothingToMove, |world| world.spec().disks.clear()),
        (RefusalCode::UnknownDisk, |world| world.request.disks.push(placement("swap", "fast"))),
        (RefusalCode::UnknownPool, |world| world.request.disks.push(placement("data", "slow"))),
        (RefusalCode::PoolSpace, |world| world.target.pools[0].free = ByteCount(1)),
        (RefusalCode::PoolKind, |world| world.target.pools[0].extent = Some(ByteCount::mebibytes(4))),
        (RefusalCode::PoolKind, |world| world.source.pools[0].extent = Some(ByteCount::mebibytes(4))),
        (RefusalCode::ReplicaLimit, |world| {
            world.target.replicas = vec![example::replica(); HOST_REPLICAS_MAX];
            let other = "0197c0de-0000-7000-8000-0000000000ff".parse().expect("an id");
            world.target.replicas.iter_mut().for_each(|replica| replica.vm.id = other);
        }),
        (RefusalCode::MigrationDisabled, |world| world.target.limits.enabled = false),
        (RefusalCode::CertificateExpired, |world| world.target.certificate.not_after = example::later(-1)),
        (RefusalCode::CertificateAuthority, |world| world.target.certificate.authority = "cd34".into()),
        (RefusalCode::InvalidValue, |world| world.request.bandwidth = Some(Bandwidth(1))),
    ];
    for (number, (code, plant)) in faults.iter().enumerate() {
        let mut world = sound();
        plant(&mut world);
        let refusals = world.plan().err().unwrap_or_else(|| panic!("{number} is refused, with {code:?}"));
        assert!(refusals.iter().any(|refusal| refusal.code == *code), "{number}: {refusals:?}");
        assert!(refusals.iter().all(|refusal| !refusal.remedy.is_empty()), "{number}");
    }
}

#[test]
fn a_replica_goes_on_where_it_is_and_needs_no_room_for_that() {
    let mut world = replicated();
    world.target.pools[0].free = ByteCount(0);
    let plan = world.plan().expect("a plan");
    assert!(plan.disks.iter().all(|disk| disk.target.pool.as_str() == "fast"), "where the replica has them");
    let others: [Plant; 3] = [
        |world| world.spec().disks[1].size = ByteCount::mebibytes(2048),
        |world| drop(world.spec().disks.pop()),
        |world| world.request.disks = vec![placement("root", "san")],
    ];
    for (number, plant) in others.iter().enumerate() {
        let mut world = replicated();
        plant(&mut world);
        assert_eq!(world.codes(), BTreeSet::from([RefusalCode::ReplicaMismatch]), "{number}");
    }
}

#[test]
fn a_disk_in_a_volume_group_is_to_be_moved_first() {
    let mut world = sound();
    world.source.pools[0].extent = Some(ByteCount::mebibytes(4));
    let refusals = world.plan().expect_err("refused");
    let [refusal] = &refusals[..] else { panic!("one: {refusals:?}") };
    assert!(refusal.message.contains("of alpha"), "{refusal:?}");
    assert!(refusal.remedy.contains("sterna migrate web --storage-only --disk root=POOL"), "{refusal:?}");
}

#[test]
fn what_a_clone_stands_on_stays_behind_when_it_moves() {
    let based = |world: &mut World| {
        let base = sterna_shared::replica::Base {
            replica: "0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID"),
            layer: 1,
            pool: "fast".parse().expect("a name"),
        };
        world.spec().disks.iter_mut().for_each(|disk| disk.base = Some(base.clone()));
    };
    let standing = |disks: &[DiskSpec]| disks.iter().filter(|disk| disk.base.is_some()).count();
    let mut world = World::sound();
    based(&mut world);
    assert_eq!(world.codes(), BTreeSet::from([RefusalCode::PoolNotShared]), "the shared disk cannot go onto itself");
    world.request.disks = vec![placement("data", "fast")];
    let plan = world.plan().expect("a plan");
    assert_eq!((standing(&plan.vm.disks), standing(&plan.vm_at_target.disks)), (2, 0));
    let mut world = sound();
    based(&mut world);
    assert_eq!(standing(&world.plan().expect("a plan").vm_at_target.disks), 0);
}
