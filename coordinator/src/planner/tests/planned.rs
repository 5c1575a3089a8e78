//! Planned VMs: what is planned with one, what of the target's room is held for it, and every reason why not.

use sterna_shared::id::PlannedVmId;
use sterna_shared::job::JobKind;
use sterna_shared::planned::{HOLD_DEFAULT_SECONDS, HOLD_MAX_SECONDS, HOLD_MIN_SECONDS, PlannedVm};

use super::*;

/// A world in which the target holds a planned VM for the VM, whose root disk is to be raw in pool `san`.
fn held() -> World {
    let mut world = World::sound();
    let mut planned = example::planned(&world.source.vms[0].spec);
    for disk in [&mut planned.spec.disks[0], &mut planned.disks[0]] {
        (disk.pool, disk.format) = ("san".parse().expect("a name"), DiskFormat::Raw);
    }
    world.target.planned = vec![planned];
    world
}

/// The id that the target's planned VM has.
fn id(world: &World) -> Option<PlannedVmId> {
    world.target.planned.first().map(|planned| planned.id)
}

fn stage(world: &mut World) {
    world.request.kind = JobKind::Stage;
}

/// All that is there is held.
fn full(world: &mut World) {
    world.target.memory_free = ByteCount(0);
    world.target.memory_reserved = world.source.vms[0].spec.memory;
    for pool in &mut world.target.pools {
        (pool.free, pool.reserved) = (ByteCount(0), ByteCount::mebibytes(1024));
    }
}

#[test]
fn a_planned_vm_is_prepared_and_nothing_else() {
    let mut world = World::sound();
    stage(&mut world);
    let plan = world.plan().expect("a plan");
    assert_eq!((plan.kind, plan.steps.as_slice()), (JobKind::Stage, &[StepKind::Prepare][..]));
    assert_eq!(plan.planned, Some(PlannedVmId::from_uuid(plan.job.uuid())));
    assert_eq!(plan.hold_seconds, Some(HOLD_DEFAULT_SECONDS));
    world.request.hold_seconds = Some(HOLD_MIN_SECONDS);
    assert_eq!(world.plan().expect("a plan").hold_seconds, Some(HOLD_MIN_SECONDS));
    assert!(!plan.moves());
}

#[test]
fn a_job_that_prepares_holds_no_vm_and_takes_no_slot_nor_waits_for_either() {
    let mut world = World::sound();
    stage(&mut world);
    let mut staging = world.plan().expect("a plan");
    staging.job = example::job(5);
    let staging = JobStatus::planned(staging);
    assert_eq!(in_hand(&world.target.host, [&staging]), MovesInHand::default());
    let mut moving = World::sound();
    moving.jobs = vec![staging];
    moving.target.limits.inbound_moves_max = 1;
    assert_eq!(moving.codes(), BTreeSet::new());
    // Nor does it wait for a move of the VM, or for a slot.
    let mut plan = moving.plan().expect("a plan");
    plan.job = example::job(6);
    world.jobs = vec![JobStatus::planned(plan)];
    world.source.vms[0].job = Some(example::job(6));
    world.target.limits.inbound_moves_max = 1;
    assert_eq!(world.codes(), BTreeSet::new());
}

#[test]
fn what_a_move_needs_a_planned_vm_needs_too() {
    let asked_of_both =
        |(code, _): &&(RefusalCode, Plant)| !matches!(code, RefusalCode::VmInJob | RefusalCode::HostBusy);
    for (number, fault) in FAULTS.iter().enumerate().filter(|(_, fault)| asked_of_both(fault)) {
        let mut world = planted(&[*fault]);
        stage(&mut world);
        assert_eq!(world.codes(), BTreeSet::from([fault.0]), "fault {number}");
    }
    let mut world = World::sound();
    world.source.vms[0].state = VmState::Stopped;
    world.target.memory_free = ByteCount(0);
    assert_eq!(world.codes(), BTreeSet::new(), "a cold move needs no memory");
    stage(&mut world);
    assert_eq!(world.codes(), [RefusalCode::Memory].into(), "to be held it must be there");
}

#[test]
fn a_move_uses_what_is_there_for_it_named_or_not() {
    let mut world = held();
    for named in [None, id(&world)] {
        world.request.planned = named;
        let plan = world.plan().expect("a plan");
        assert_eq!(plan.planned, id(&world));
        let root = &plan.vm_at_target.disks[0];
        assert_eq!((root.pool.as_str(), root.format), ("san", DiskFormat::Raw), "as it was planned");
    }
    world.request.disks = vec![placement("root", "fast")];
    let plan = world.plan().expect("a plan");
    let root = &plan.vm_at_target.disks[0];
    assert_eq!((root.pool.as_str(), root.format), ("fast", DiskFormat::Qcow2), "what is asked for goes first");
    assert_eq!(plan.planned, id(&world));
    // One whose time is up, or that no longer fits, is left aside where it was not named.
    let faults: [Plant; 2] = [
        |world| world.target.planned[0].expires_at = example::now(),
        |world| world.spec().memory = ByteCount::mebibytes(256),
    ];
    for fault in faults {
        let mut world = held();
        fault(&mut world);
        let plan = world.plan().expect("a plan");
        assert_eq!((plan.planned, plan.vm_at_target.disks[0].pool.as_str()), (None, "fast"));
    }
}

#[test]
fn every_reason_why_a_named_one_cannot_be_used_is_told() {
    let faults: [(RefusalCode, Plant); 8] = [
        (RefusalCode::PlannedUnknown, |world| world.target.planned.clear()),
        (RefusalCode::PlannedMismatch, |world| {
            world.target.planned[0].spec.id = "0197c0de-0000-7000-8000-0000000000ff".parse().expect("a UUID");
        }),
        (RefusalCode::PlannedMismatch, |world| world.source.planned = std::mem::take(&mut world.target.planned)),
        (RefusalCode::PlannedExpired, |world| world.target.planned[0].expires_at = example::now()),
        (RefusalCode::PlannedChanged, |world| world.spec().vcpus = 2),
        (RefusalCode::PlannedChanged, |world| drop(world.spec().nics.pop())),
        (RefusalCode::InvalidValue, stage),
        (RefusalCode::InvalidValue, |world| world.request.hold_seconds = Some(HOLD_DEFAULT_SECONDS)),
    ];
    for (number, (code, fault)) in faults.into_iter().enumerate() {
        let mut world = held();
        world.request.planned = id(&world);
        assert_eq!(world.codes(), BTreeSet::new());
        fault(&mut world);
        assert_eq!(world.codes(), [code].into(), "fault {number}");
    }
    let mut both = held();
    both.request.planned = id(&both);
    both.target.planned[0].expires_at = example::now();
    both.spec().vcpus = 2;
    assert_eq!(both.codes(), [RefusalCode::PlannedExpired, RefusalCode::PlannedChanged].into(), "and all at once");
}

#[test]
fn a_planned_vm_is_held_within_bounds_and_for_a_move_between_hosts() {
    for (seconds, holds) in [
        (HOLD_MIN_SECONDS, true),
        (HOLD_MIN_SECONDS - 1, false),
        (HOLD_MAX_SECONDS, true),
        (HOLD_MAX_SECONDS + 1, false),
    ] {
        let mut world = World::sound();
        stage(&mut world);
        world.request.hold_seconds = Some(seconds);
        assert_eq!(world.plan().is_ok(), holds, "{seconds} s");
    }
    let mut world = World::sound();
    stage(&mut world);
    (world.request.storage_only, world.request.target) = (true, None);
    world.request.disks = vec![placement("root", "san")];
    assert_eq!(world.codes(), [RefusalCode::InvalidValue].into());
}

#[test]
fn what_is_held_is_room_for_its_vm_and_for_no_other() {
    let mut world = held();
    full(&mut world);
    assert_eq!(world.codes(), BTreeSet::new());
    // Also where it is not the one that is used: the VM's own does not stand in its way.
    world.spec().vcpus = 2;
    world.request.disks = vec![placement("root", "san")];
    assert_eq!(world.plan().expect("a plan").planned, None);
    // But only where it is held: another pool has nothing for it.
    world.request.disks = vec![placement("root", "fast")];
    assert_eq!(world.codes(), [RefusalCode::PoolSpace].into());

    let mut other = held();
    full(&mut other);
    other.target.planned[0].spec.id = "0197c0de-0000-7000-8000-0000000000ff".parse().expect("a UUID");
    let refusals = other.plan().expect_err("it is held for another");
    let codes: BTreeSet<_> = refusals.iter().map(|refusal| refusal.code).collect();
    assert_eq!(codes, [RefusalCode::Memory, RefusalCode::PoolSpace].into());
    assert!(refusals.iter().all(|refusal| refusal.message.contains("held for planned VMs")), "{refusals:?}");
}

#[test]
fn a_stopped_vm_comes_where_no_memory_is_and_not_where_it_is_held_for_others() {
    let mut world = World::sound();
    world.source.vms[0].state = VmState::Stopped;
    world.target.memory_free = ByteCount(0);
    assert_eq!(world.codes(), BTreeSet::new());
    world.target.memory_reserved = ByteCount(1);
    assert_eq!(world.codes(), [RefusalCode::Memory].into());
    world.target.planned = vec![example::planned(&world.source.vms[0].spec)];
    world.target.memory_reserved = world.source.vms[0].spec.memory;
    assert_eq!(world.codes(), BTreeSet::new(), "it is held for this one");
    world.target.memory_reserved = world.target.memory_reserved.plus(ByteCount(1));
    assert_eq!(world.codes(), BTreeSet::new(), "and what is held for others is not touched");
}

#[test]
fn no_more_is_counted_as_held_than_there_is() {
    let mut world = held();
    full(&mut world);
    // Something has eaten into it since: half of it is left.
    world.target.memory_reserved = ByteCount::mebibytes(256);
    world.target.pools[1].reserved = ByteCount::mebibytes(512);
    assert_eq!(world.codes(), [RefusalCode::Memory, RefusalCode::PoolSpace].into());
}

#[test]
fn another_one_takes_the_place_of_the_first() {
    let mut world = held();
    full(&mut world);
    stage(&mut world);
    world.request.disks = vec![placement("root", "san")];
    let plan = world.plan().expect("what the first holds is room for the second");
    assert_ne!(plan.planned, id(&world));
    let PlannedVm { spec, .. } = &world.target.planned[0];
    assert!(plan.vm_at_target.disks[0].format != spec.disks[0].format, "and it is not made like the first");
}
