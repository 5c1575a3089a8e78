//! Plans on their way: who has been told, and who is told again.

use super::*;

impl World {
    /// A move whose target has taken it on, and whose source was never told.
    fn half_sent() -> (Self, JobId) {
        let mut world = Self::new(1, 1);
        let job = world.submit(0, Policy::default());
        let accepted = world.accepted(job);
        world.tell_as("beta", job, 1, accepted);
        world.commanded.clear();
        (world, job)
    }

    fn commanded(&self) -> Vec<&str> {
        self.commanded.iter().map(HostId::as_str).collect()
    }
}

#[test]
fn whoever_takes_over_tells_those_that_were_not_told() {
    let (mut world, job) = World::half_sent();
    let token = world.plans[&job].token.clone();
    assert_ne!(token, world.state.jobs[&job].status.plan.token);
    world.restart();
    assert_eq!(world.commanded(), ["alpha"], "the other has it");
    assert_eq!(world.plans[&job].token, token, "which would not let it in with another");
    let accepted = world.accepted(job);
    world.tell_as("alpha", job, 1, accepted);
    assert!(world.plans.is_empty(), "{:?}", world.plans);
    world.restart();
    world.wait(40);
    assert_eq!((world.commanded(), world.state_of(job)), (vec!["alpha"], JobState::Starting));
}

#[test]
fn of_two_that_were_not_told_both_are() {
    let mut world = World::new(1, 1);
    world.submit(0, Policy::default());
    world.commanded.clear();
    world.restart();
    assert_eq!(world.commanded(), ["beta", "alpha"]);
}

#[test]
fn a_job_that_its_source_never_takes_on_is_given_up() {
    let (mut world, job) = World::half_sent();
    world.wait(40);
    assert_eq!(world.state_of(job), JobState::Exception);
    assert!(world.plans.is_empty());
    assert_eq!(world.commanded(), ["beta", "alpha"], "what its target has of it is wanted no more");
}

#[test]
fn a_plan_is_kept_no_longer_than_it_is_of_use() {
    let (mut world, job) = World::half_sent();
    world.end(job, DONE);
    assert!(world.plans.is_empty());
    // Whoever led fell out before it told of the plan that it had kept.
    let (mut world, job) = World::half_sent();
    world.events.retain(|event| !matches!(event.body, EventBody::Planned { .. } | EventBody::Accepted { .. }));
    world.plans.entry(job).and_modify(|plan| plan.attempt = 3);
    world.restart();
    assert_eq!(world.attempt(job), 0);
    assert_eq!(world.plans[&job].attempt, 0, "it is begun with a plan of this moment");
}

/// The stream is lost, and of the job nobody speaks but its target.
#[test]
fn a_job_is_not_given_up_while_its_source_may_have_it() {
    let (mut world, job) = World::half_sent();
    let accepted = world.accepted(job);
    world.events.clear();
    world.plans.clear();
    world.restart();
    let silent_source = |world: &mut World, seconds: u64| {
        for _ in 0..seconds {
            world.clock += 1;
            let [_, target] = world.inventories(1);
            world.apply(Event::Heartbeat(Box::new(target)));
            world.apply(Event::Tick);
        }
    };
    silent_source(&mut world, 40);
    world.tell_as("beta", job, 1, accepted.clone());
    silent_source(&mut world, 100);
    assert_eq!(world.state_of(job), JobState::Starting);
    let host: HostId = "alpha".parse().expect("a name");
    world.wait(1);
    let page = Ok(AgentReply::Events { events: vec![], more: false });
    world.apply(Event::Journalled { host, skip: 0, page });
    world.wait(70);
    assert_eq!(world.state_of(job), JobState::Exception, "it is there, and does not have it");
}
