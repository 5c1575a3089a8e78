//! What the word of one host is worth: of its own jobs all, of others' nothing.

use super::*;

#[test]
fn a_host_submits_nothing_and_plans_nothing() {
    let mut world = World::new(1, 1);
    let mut shown = World::new(1, 1);
    let job = shown.submit(0, Policy::default());
    for (sequence, event) in (1..).zip(shown.events) {
        world.tell_as("gamma", job, sequence, event.body);
    }
    world.wait(5);
    assert!(world.state.jobs.is_empty(), "{:?}", world.state.jobs);
    assert_eq!((&world.begun[..], &world.commanded[..]), (&[][..], &[][..]));
}

#[test]
fn a_host_ends_no_job_of_others() {
    let mut world = World::new(1, 1);
    let job = world.submit(0, Policy::default());
    let accepted = world.accepted(job);
    world.tell(job, [accepted]);
    let before = world.state.jobs[&job].status.clone();
    for (sequence, body) in (1..).zip([DONE, failed(), EventBody::Terminated, EventBody::Resumed]) {
        world.tell_as("gamma", job, sequence, body);
    }
    assert_eq!(world.state.jobs[&job].status, before);
    world.tell_as("beta", job, 1, EventBody::Notice { text: "here".into() });
    assert_eq!(world.state.jobs[&job].status.notices.len(), 1, "the target has a part in it");
}

#[test]
fn an_attempt_far_ahead_does_no_harm() {
    let mut world = World::new(2, 2);
    let job = world.submit(0, Policy::default());
    let plan = world.state.jobs[&job].status.plan.clone();
    let ahead = |job| EventBody::Accepted { plan: Box::new(Plan { job, attempt: u32::MAX, ..plan.clone() }) };
    world.tell_as("alpha", job, 1, ahead(job));
    assert_eq!(world.attempt(job), 0);
    // Of a job that nobody else knows it is believed, and is the last.
    let lost = example::job(50);
    world.tell_as("alpha", lost, 1, ahead(lost));
    world.tell_as("alpha", lost, 2, EventBody::Suspended { figures: Default::default() });
    let requested = RequestedState::Start.number();
    world.ask(ApiRequest::JobState { job: lost, requested, timeout_ms: None });
    world.wait(3);
    assert_eq!(world.attempt(lost), u32::MAX);
}
