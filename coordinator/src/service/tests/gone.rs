//! VMs that are no more leave the buckets and the feed, and others stay.

use sterna_shared::id::VmId;

use super::*;

impl World {
    /// The VMs that the feed has.
    fn fed_vms(&self) -> Vec<&str> {
        self.feed.keys().filter_map(|key| key.strip_prefix("vm.")).collect()
    }

    fn vm(&self, number: usize) -> VmId {
        self.inventories(1)[0].vms[number].id()
    }
}

#[test]
fn a_vm_that_no_host_has_is_removed_and_may_come_again() {
    let mut world = World::new(2, 1);
    assert_eq!(world.fed_vms().len(), 2);
    world.vms = 1;
    world.wait(2);
    assert_eq!(world.fed_vms(), [world.vm(0).to_string()]);
    assert_eq!((world.state.vms.len(), world.state.owners.len()), (1, 1));
    world.vms = 2;
    world.wait(2);
    assert_eq!((world.fed_vms().len(), world.state.owners.len()), (2, 2));
}

#[test]
fn a_host_that_is_silent_may_have_any_vm() {
    let mut world = World::new(2, 1);
    world.target_silent = true;
    world.wait(60);
    world.vms = 1;
    world.wait(60);
    assert_eq!(world.fed_vms().len(), 2);
    world.target_silent = false;
    world.wait(2);
    assert_eq!(world.fed_vms().len(), 1);
}

#[test]
fn a_vm_stays_while_a_job_is_about_it() {
    let mut world = World::new(2, 1);
    let job = world.submit(1, Policy::default());
    let accepted = world.accepted(job);
    world.tell(job, [accepted.clone()]);
    world.vms = 1;
    world.wait(5);
    assert_eq!(world.fed_vms().len(), 2);
    world.tell(job, [accepted, DONE]);
    world.wait(2);
    assert_eq!(world.fed_vms().len(), 1);
}

#[test]
fn what_predecessors_left_of_a_vm_goes_too_once_all_hosts_were_heard_of() {
    let (gone, silent) = (example::vm("web").id, World::new(1, 1).vm(0));
    let fleet = crate::fleet::Fleet::default();
    let mut state = State::new("two".parse().expect("a name"), Epoch(2), "2.11".into(), fleet, None);
    let now = Now { at: example::now(), clock: Duration::ZERO };
    state.apply(Event::Kept { jobs: [].into(), vms: [gone, silent].into(), replicas: [gone].into() }, now);
    state.apply(Event::Replayed, now);
    let removed = |actions: Vec<Action>| {
        let text = |action| match action {
            Action::RemoveVm(vm) => Some(format!("vm.{vm}")),
            Action::RemoveFeed(key) => Some(key),
            _ => None,
        };
        actions.into_iter().filter_map(text).collect::<Vec<_>>()
    };
    assert_eq!(removed(state.apply(Event::Tick, now)), Vec::<String>::new(), "nobody was heard of");
    for inventory in World::new(1, 1).inventories(1) {
        state.apply(Event::Heartbeat(Box::new(inventory)), now);
    }
    let both = [format!("replica.{gone}"), format!("vm.{gone}")];
    assert_eq!(removed(state.apply(Event::Tick, now)), both);
    assert_eq!(removed(state.apply(Event::Tick, now)), Vec::<String>::new());
}
