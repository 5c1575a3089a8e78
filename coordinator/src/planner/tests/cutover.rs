//! Cutovers: what is planned beside a move, and every reason why not.

use sterna_shared::job::JobKind;
use sterna_shared::replica::{CutoverOf, CutoverWish, REVERT_DEFAULT_SECONDS, REVERT_MAX_SECONDS};

use super::*;
use crate::planner::cutover_target;

/// A world in which the VM is to be cut over to the host that has its replica.
fn sound() -> World {
    let mut world = World::sound();
    world.request.kind = JobKind::Cutover;
    world.target.replicas = vec![example::replica()];
    world
}

#[test]
fn a_guest_that_runs_moves_live_and_begins_with_the_latest_snapshot() {
    let plan = sound().plan().expect("a plan");
    assert_eq!((plan.kind, plan.mode, plan.moves()), (JobKind::Cutover, MoveMode::Live, true));
    assert_eq!(plan.steps, Plan::steps_of(JobKind::Move, MoveMode::Live, true), "a move, step by step");
    let latest = example::replica().latest().expect("a snapshot").number;
    let of = CutoverOf {
        snapshot: latest,
        runs: true,
        force: false,
        revert_seconds: REVERT_DEFAULT_SECONDS,
        forecast: None,
    };
    assert_eq!(plan.cutover, Some(of));
    assert_eq!(World::sound().plan().expect("a plan").cutover, None, "a move begins with nothing");
}

#[test]
fn disks_go_where_their_replica_is() {
    let mut world = sound();
    let mut bulk = world.target.pools[0].clone();
    bulk.name = "bulk".parse().expect("a name");
    let elsewhere = bulk.name.clone();
    world.target.pools.push(bulk);
    for disk in &mut world.target.replicas[0].disks {
        disk.pool = elsewhere.clone();
    }
    let plan = world.plan().expect("a plan");
    assert!(!plan.disks.is_empty() && plan.disks.iter().all(|disk| disk.target.pool == elsewhere), "{:?}", plan.disks);
    assert!(plan.disks.iter().all(|disk| disk.target.format == disk.source.format), "as they are, and not as layers");
}

#[test]
fn a_cold_one_shuts_a_guest_down_that_runs() {
    let mut world = sound();
    world.request.mode = ModeWish::Cold;
    world.request.cutover = Some(CutoverWish { revert_seconds: Some(0), force: true });
    let plan = world.plan().expect("a plan, though the guest runs");
    let shut_down = [StepKind::ShutDown, StepKind::Switchover];
    assert_eq!(plan.mode, MoveMode::Cold);
    assert!(shut_down.iter().all(|step| plan.steps.contains(step)), "{:?}", plan.steps);
    let of = plan.cutover.expect("a cutover");
    assert_eq!((of.runs, of.force, of.revert_seconds), (true, true, 0));
    // It runs at the target afterwards.
    world.target.memory_free = ByteCount(0);
    assert_eq!(world.codes(), BTreeSet::from([RefusalCode::Memory]));
    world.source.vms[0].state = VmState::Stopped;
    let plan = world.plan().expect("a stopped one needs none now");
    assert!(!shut_down.iter().any(|step| plan.steps.contains(step)), "{:?}", plan.steps);
    assert!(!plan.cutover.expect("a cutover").runs);
    let mut moved = World::sound();
    moved.request.mode = ModeWish::Cold;
    assert_eq!(moved.codes(), BTreeSet::from([RefusalCode::VmState]), "a move does not");
}

#[test]
fn every_fault_is_told_by_its_own_code() {
    let cases: [(Plant, RefusalCode); 5] = [
        (|world| world.target.replicas.clear(), RefusalCode::ReplicaUnknown),
        (|world| world.target.replicas[0].layers.clear(), RefusalCode::SnapshotUnknown),
        (
            |world| {
                let all = world.target.replicas[0].snapshots().map(|snapshot| snapshot.number).collect();
                world.target.replicas[0].mark_damaged(&all);
            },
            RefusalCode::SnapshotDamaged,
        ),
        (
            |world| {
                let wish = CutoverWish { revert_seconds: Some(REVERT_MAX_SECONDS + 1), force: false };
                world.request.cutover = Some(wish);
            },
            RefusalCode::InvalidValue,
        ),
        // What speaks against a move speaks against it too.
        (|world| world.target.bridges.clear(), RefusalCode::UnknownBridge),
    ];
    for (plant, code) in cases {
        let mut world = sound();
        plant(&mut world);
        assert_eq!(world.codes(), BTreeSet::from([code]));
    }
}

#[test]
fn a_damaged_snapshot_is_passed_over() {
    let mut world = sound();
    let replica = &mut world.target.replicas[0];
    let numbers: Vec<u32> = replica.snapshots().map(|snapshot| snapshot.number).collect();
    let (last, before) = (numbers[numbers.len() - 1], numbers[numbers.len() - 2]);
    replica.mark_damaged(&BTreeSet::from([last]));
    assert_eq!(world.plan().expect("a plan").cutover.map(|of| of.snapshot), Some(before));
}

#[test]
fn without_a_host_it_goes_to_the_replica() {
    let world = sound();
    let mut fleet = Fleet::default();
    for inventory in [&world.source, &world.target] {
        fleet.heard(inventory.clone(), example::now(), Duration::ZERO);
    }
    let request = MoveRequest { target: None, ..world.request.clone() };
    assert_eq!(cutover_target(&fleet, &request), Some(world.target.host.clone()));
    let nobody = MoveRequest { vm: "nobody".to_owned(), ..request };
    assert_eq!(cutover_target(&fleet, &nobody), None);
}
