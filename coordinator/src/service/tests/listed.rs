//! The list of jobs of a coordinator that takes over: what is kept of them beside the stream, and what agents' journals tell.

use super::super::list::JOBS_MAX;
use super::*;

/// A leader that has read nothing yet.
fn taking_over() -> State {
    State::new("two".parse().expect("a name"), Epoch(2), "2.11".into(), crate::fleet::Fleet::default(), None)
}

fn id(number: usize) -> JobId {
    format!("0197c0de-0000-7000-8000-{number:012x}").parse().expect("a UUID")
}

/// A job that is submitted, and ended before it has begun.
fn story(number: usize) -> [JobEvent; 2] {
    let mut shown = World::new(1, 1);
    let draft = shown.submit(0, Policy::default());
    let mut plan = shown.state.jobs[&draft].status.plan.clone();
    plan.job = id(number);
    let request = Box::new(MoveRequest::of(&plan));
    let submitted = EventBody::Submitted { draft: Box::new(plan), request, policy: Box::default(), parent: None };
    let event = |sequence, body| JobEvent {
        job: id(number),
        reporter: Reporter::Coordinator,
        sequence,
        at: example::now(),
        body,
    };
    [event(1, submitted), event(2, EventBody::Terminated)]
}

fn stories(count: usize) -> impl Iterator<Item = JobEvent> {
    let of_one = story(0);
    (0..count).flat_map(move |number| {
        of_one.clone().map(|mut event| {
            event.job = id(number);
            if let EventBody::Submitted { draft, .. } = &mut event.body {
                draft.job = id(number);
            }
            event
        })
    })
}

fn apply(state: &mut State, event: Event) -> Vec<Action> {
    state.apply(event, Now { at: example::now(), clock: Duration::ZERO })
}

fn told(state: &mut State, events: impl IntoIterator<Item = JobEvent>) -> Vec<Action> {
    events.into_iter().flat_map(|event| apply(state, Event::Told(Box::new(event)))).collect()
}

#[test]
fn what_was_over_and_has_left_the_stream_does_not_come_back_by_a_journal() {
    let mut world = World::new(1, 1);
    let job = world.submit(0, Policy::default());
    let accepted = world.accepted(job);
    world.end(job, DONE);
    let kept = world.state.jobs[&job].status.clone();
    let read = |world: &mut World| {
        let host: HostId = "beta".parse().expect("a name");
        let (reporter, at) = (Reporter::Host(host.clone()), world.now().at);
        let event = JobEvent { job, reporter, sequence: 1, at, body: accepted.clone() };
        world.apply(Event::Journalled {
            host,
            skip: 0,
            page: Ok(AgentReply::Events { events: vec![event], more: false }),
        });
        world.state.jobs.contains_key(&job)
    };
    world.events.clear();
    world.take_over([kept]);
    assert!(!read(&mut world), "it is kept as one that is over");
    world.take_over([]);
    assert!(read(&mut world), "the stream has lost it");
}

#[test]
fn a_journal_brings_back_nothing_that_is_older_than_what_the_stream_keeps() {
    let mut world = World::new(1, 1);
    let job = world.submit(0, Policy::default());
    let accepted = world.accepted(job);
    world.events.clear();
    let read = |world: &mut World, age_days: i64| {
        world.take_over([]);
        let host: HostId = "alpha".parse().expect("a name");
        let at = world.now().at.unix_microseconds() - age_days * 86_400_000_000;
        let (reporter, at) = (Reporter::Host(host.clone()), Timestamp::from_unix_microseconds(at));
        let event = JobEvent { job, reporter, sequence: 1, at, body: accepted.clone() };
        let [mut source, _] = world.inventories(1);
        source.vms[0].job = (age_days > 100).then_some(job);
        world.apply(Event::Heartbeat(Box::new(source)));
        world.apply(Event::Journalled {
            host,
            skip: 0,
            page: Ok(AgentReply::Events { events: vec![event], more: false }),
        });
        let back = world.state.jobs.contains_key(&job);
        world.events.clear();
        back
    };
    assert!(read(&mut world, 29));
    assert!(!read(&mut world, 31));
    assert!(read(&mut world, 101), "its host has it in hand");
}

#[test]
fn what_is_kept_as_if_it_went_on_is_written_anew_once_it_is_over() {
    let mut state = taking_over();
    let [submitted, _] = story(0);
    state.remember([JobStatus::from_event(&submitted).expect("a job")], 30);
    told(&mut state, stories(200));
    let actions = apply(&mut state, Event::Replayed);
    let written = |action: &Action| match action {
        Action::StoreJob(status) if status.job == id(0) => Some(status.state),
        _ => None,
    };
    assert_eq!(actions.iter().find_map(written), Some(JobState::Terminated));
    let count = actions.iter().filter(|action| matches!(action, Action::StoreJob(_))).count();
    assert_eq!(count, 101, "of others that are over only the latest are");
}

#[test]
fn what_was_written_of_a_job_and_told_to_nobody_is_no_job() {
    let mut shown = World::new(1, 1);
    let draft = shown.submit(0, Policy::default());
    let plan = Plan { job: id(0), ..shown.state.jobs[&draft].status.plan.clone() };
    let status = JobStatus::planned(plan.clone());
    assert_eq!(status.dispatch, sterna_shared::job::Dispatch::Sent);
    let listed = |plans: Vec<Plan>, of: JobStatus| {
        let mut state = taking_over();
        state.remember([of], 0);
        state.remember_sent(plans);
        let actions = apply(&mut state, Event::Replayed);
        let removed = actions.iter().any(|action| matches!(action, Action::RemoveJob(job) if *job == id(0)));
        (state.jobs.contains_key(&id(0)), removed)
    };
    assert_eq!(listed(vec![], status.clone()), (false, true));
    assert_eq!(listed(vec![plan.clone()], status.clone()), (true, false), "its plan is kept, and sent again");
    let mut accepted = status;
    let reporter = Reporter::Host(plan.source.id.clone());
    let body = EventBody::Accepted { plan: Box::new(plan) };
    let event = JobEvent { job: id(0), reporter, sequence: 1, at: example::now(), body };
    accepted.apply(&event).expect("legal");
    assert_eq!(listed(vec![], accepted), (true, false), "a host has it");
}

#[test]
fn what_was_forgotten_for_its_age_does_not_go_on_as_it_was_kept() {
    let mut state = taking_over();
    let [submitted, _] = story(0);
    state.remember([JobStatus::from_event(&submitted).expect("a job")], 30);
    told(&mut state, stories(JOBS_MAX + 1));
    apply(&mut state, Event::Replayed);
    assert!(!state.jobs.contains_key(&id(0)));
    assert_eq!(state.jobs.len(), JOBS_MAX);
}

#[test]
fn what_is_forgotten_leaves_the_buckets_too() {
    let removed = |actions: Vec<Action>| {
        let removed = |action| match action {
            Action::RemoveJob(job) => Some(job),
            _ => None,
        };
        actions.into_iter().filter_map(removed).collect::<Vec<_>>()
    };
    let mut state = taking_over();
    // A status that nothing is known of may be all that is left of its job.
    let (vms, replicas, jobs) = ([].into(), [].into(), [id(0), id(7), id(JOBS_MAX + 9)].into());
    apply(&mut state, Event::Kept { jobs, vms, replicas });
    assert_eq!(removed(told(&mut state, stories(JOBS_MAX + 2))), []);
    assert_eq!(removed(apply(&mut state, Event::Replayed)), [id(0)], "and not what nobody has kept");
    let next = story(JOBS_MAX + 3);
    assert_eq!(removed(told(&mut state, next)), [id(2)], "there is room for one more");
}
