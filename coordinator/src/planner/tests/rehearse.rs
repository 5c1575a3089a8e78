//! Rehearsals: clones that are booted to be probed, and what of a clone does not go for them.

use sterna_shared::job::JobKind;
use sterna_shared::rehearsal::Rehearsal;
use sterna_shared::replica::{CloneWish, NetworkWish};
use sterna_shared::vm::IsolatedAddress;

use super::*;

fn rehearsal(probes: &[&str]) -> Rehearsal {
    let probes = probes.iter().map(|probe| probe.parse().expect("a probe")).collect();
    Rehearsal { probes, probe_seconds: 60, address: "192.0.2.10/24".parse().expect("an address") }
}

fn sound() -> World {
    let mut world = World::sound();
    world.target.replicas = vec![example::replica()];
    world.request = MoveRequest { kind: JobKind::Rehearse, ..example::clone_request() };
    wish(&mut world).rehearsal = Some(rehearsal(&["tcp:22"]));
    world
}

fn wish(world: &mut World) -> &mut CloneWish {
    world.request.clone.as_deref_mut().expect("a wish")
}

#[test]
fn a_rehearsal_is_a_clone_of_its_own_that_is_probed_where_it_is_alone() {
    let mut world = sound();
    let mut second = world.target.replicas[0].vm.nics[0].clone();
    second.mac = "52:54:00:00:00:02".parse().expect("a MAC");
    world.target.replicas[0].vm.nics.push(second);
    let plan = world.plan().expect("a plan");
    assert_eq!(plan.steps, [StepKind::CloneDisks, StepKind::AdaptOs, StepKind::Instantiate, StepKind::Probe]);
    assert_eq!(plan.parties(), [&world.target.host]);
    let clone = plan.clone.as_ref().expect("of a snapshot");
    assert_eq!((clone.start, &clone.rehearsal), (true, &Some(rehearsal(&["tcp:22"]))));
    assert_eq!(plan.vm.id.uuid(), plan.job.uuid(), "each run makes another VM");
    let nics: Vec<_> = plan.vm.nics.iter().map(|nic| (nic.bridge.is_none(), nic.isolated)).collect();
    let addresses = ["192.0.2.10/24", "10.0.2.15/24"].map(|address| address.parse::<IsolatedAddress>().ok());
    assert_eq!(nics, addresses.map(|address| (true, address)));
}

#[test]
fn every_reason_why_there_is_no_rehearsal_is_told() {
    let faults: [(RefusalCode, Plant); 10] = [
        (RefusalCode::InvalidValue, |world| wish(world).rehearsal = None),
        (RefusalCode::InvalidValue, |world| world.request.kind = JobKind::Clone),
        (RefusalCode::InvalidValue, |world| wish(world).rehearsal = Some(rehearsal(&[]))),
        (RefusalCode::InvalidValue, |world| wish(world).rehearsal = Some(rehearsal(&["tcp:1"; 17]))),
        (RefusalCode::InvalidValue, |world| {
            wish(world).rehearsal = Some(Rehearsal { probe_seconds: 0, ..rehearsal(&["tcp:1"]) });
        }),
        (RefusalCode::InvalidValue, |world| wish(world).network = NetworkWish::Same),
        (RefusalCode::ProbeImpossible, |world| wish(world).rehearsal = Some(rehearsal(&["agent"]))),
        (RefusalCode::ProbeImpossible, |world| world.target.replicas[0].vm.nics.clear()),
        (RefusalCode::ProbeImpossible, |world| {
            world.target.probe_commands = vec!["orders".parse().expect("a name")];
            wish(world).rehearsal = Some(rehearsal(&["command:orders:22", "command:mail:25"]));
        }),
        // What speaks against a clone speaks against it too.
        (RefusalCode::NoAdapter, |world| world.target.adapts = false),
    ];
    for (number, (code, plant)) in faults.iter().enumerate() {
        let mut world = sound();
        plant(&mut world);
        assert_eq!(world.codes(), BTreeSet::from([*code]), "{number}");
    }
}

#[test]
fn a_guest_may_be_probed_without_a_network() {
    let mut world = sound();
    world.target.replicas[0].vm.nics.clear();
    world.target.replicas[0].vm.guest_agent = true;
    wish(&mut world).rehearsal = Some(rehearsal(&["agent", "console:login:"]));
    assert!(world.plan().is_ok());
}
