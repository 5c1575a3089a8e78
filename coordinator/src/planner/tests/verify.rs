//! Verifications: what is planned, what they wait for, and what waits for them.

use sterna_shared::job::JobKind;

use super::*;

/// A world in which the target has a replica that is to be verified; the VM's own host is of no use to it.
fn sound() -> World {
    let mut world = World::sound();
    world.source_silent = true;
    world.target.replicas = vec![example::replica()];
    (world.request.kind, world.request.target) = (JobKind::Verify, None);
    world
}

/// A job of another id that has begun.
fn begun(plan: Plan) -> JobStatus {
    JobStatus::planned(Plan { job: example::job(5), ..plan })
}

#[test]
fn the_host_that_has_the_replica_reads_it_and_nobody_else_has_a_part() {
    let world = sound();
    let plan = world.plan().expect("a plan");
    assert_eq!((plan.kind, &plan.steps[..]), (JobKind::Verify, &[StepKind::ReadDisks][..]));
    assert_eq!((plan.parties(), &plan.source), (vec![&world.target.host], &plan.target));
    assert_eq!(plan.vm, example::replica().vm);
    assert!(plan.disks.is_empty() && !plan.moves() && !plan.kind.holds_vm());
}

#[test]
fn every_reason_why_it_is_not_verified_is_told() {
    let faults: [(RefusalCode, Plant); 6] = [
        (RefusalCode::ReplicaUnknown, |world| world.target.replicas.clear()),
        (RefusalCode::UnknownHost, |world| world.request.target = Some("gamma".parse().expect("a name"))),
        (RefusalCode::HostOffline, |world| world.target_silent = true),
        (RefusalCode::SnapshotUnknown, |world| world.target.replicas[0].layers.clear()),
        (RefusalCode::VmInJob, |world| world.jobs.push(begun(world.plan().expect("a plan")))),
        (RefusalCode::VmInJob, |world| {
            let mut cloning = sound();
            cloning.request = example::clone_request();
            world.jobs.push(begun(cloning.plan().expect("a plan")));
        }),
    ];
    for (number, (code, plant)) in faults.into_iter().enumerate() {
        let mut world = sound();
        plant(&mut world);
        assert_eq!(world.codes(), BTreeSet::from([code]), "{number}");
    }
}

#[test]
fn a_cycle_to_that_host_waits_for_it() {
    let mut world = World::sound();
    world.request.kind = JobKind::Replicate;
    world.target.replicas = vec![example::replica()];
    assert_eq!(world.codes(), BTreeSet::new());
    let plan = sound().plan().expect("a plan");
    let mut elsewhere = plan.clone();
    world.jobs.push(begun(plan));
    assert_eq!(world.codes(), BTreeSet::from([RefusalCode::VmInJob]));
    elsewhere.target.id = world.source.host.clone();
    world.jobs[0] = begun(elsewhere);
    assert_eq!(world.codes(), BTreeSet::new(), "a replica at another host is no hindrance");
}
