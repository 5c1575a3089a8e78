//! What events add up to, and what they leave alone.

use proptest::prelude::*;

use super::super::{CutoverForecast, CutoverScore, Hands, Host, JobKind, MoveMode, MoveSettings, StepFigures};
use super::*;
use crate::id::Generation;
use crate::replica::CutoverOf;
use crate::units::ByteCount;
use crate::vm::VmSpec;

fn plan() -> Plan {
    let host = |id: &str| Host { id: id.parse().expect("a name"), addresses: Vec::new() };
    let vm = VmSpec {
        name: "web".parse().expect("a name"),
        id: "0197c0de-0000-7000-8000-000000000002".parse().expect("a UUID"),
        memory: ByteCount::mebibytes(64),
        vcpus: 1,
        cpu: "max".into(),
        machine: "pc-q35-7.2".into(),
        firmware: crate::vm::Firmware::Bios,
        secure_boot: false,
        kernel: None,
        disks: Vec::new(),
        nics: Vec::new(),
        guest_agent: false,
        extra_arguments: Vec::new(),
    };
    Plan {
        job: "0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID"),
        planned_at: Timestamp::from_unix_microseconds(0),
        attempt: 0,
        kind: JobKind::Move,
        mode: MoveMode::Live,
        vm_at_target: vm.clone(),
        vm,
        source: host("alpha"),
        target: host("bravo"),
        disks: Vec::new(),
        generation: Generation(1),
        token: Token::from_bytes([7; 32]),
        lanes: 4,
        planned: None,
        hold_seconds: None,
        retention: None,
        clone: None,
        cutover: None,
        bandwidth: None,
        blackout_max_ms: 2000,
        settings: MoveSettings::default(),
        steps: Plan::steps_of(JobKind::Move, MoveMode::Live, false),
    }
}

fn event(host: &str, sequence: u64, body: EventBody) -> Event {
    let reporter = Reporter::Host(host.parse().expect("a name"));
    let at = Timestamp::from_unix_microseconds(i64::try_from(sequence).expect("small") * 1_000_000);
    Event { job: plan().job, reporter, sequence, at, body }
}

#[test]
fn a_cutover_that_is_over_has_a_score_where_it_began_with_a_forecast() {
    let sent = ByteCount(0);
    let forecast = CutoverForecast { duration_ms: 3_000, duration_cautious_ms: Some(3_500), blackout_ms: 2, sent };
    let mut status = JobStatus::planned(plan());
    status.plan.cutover =
        Some(CutoverOf { snapshot: 1, runs: true, force: false, revert_seconds: 60, forecast: Some(forecast) });
    status.state = JobState::Running;
    let instant = |second: i64| Some(Timestamp::from_unix_microseconds(second * 1_000_000));
    (status.started_at, status.finished_at) = (instant(10), instant(14));
    status.blackout_us = Some(1_500);
    assert_eq!(CutoverScore::of(&status), None, "it is not over");
    status.state = JobState::Completed;
    let score = CutoverScore::of(&status).expect("a score");
    assert_eq!((score.duration_ms, score.duration_error_ms, score.within_range), (4_000, 1_000, Some(false)));
    assert_eq!(score.blackout_error_ms, Some(0));
    status.plan.mode = MoveMode::Cold;
    assert_eq!(CutoverScore::of(&status).expect("a score").blackout_error_ms, None, "the guest was off");
    status.plan.cutover = None;
    assert_eq!(CutoverScore::of(&status), None, "nothing was foreseen");
}

fn by_coordinator(sequence: u64, body: EventBody) -> Event {
    Event { reporter: Reporter::Coordinator, ..event("alpha", sequence, body) }
}

fn accepted(plan: Plan) -> EventBody {
    EventBody::Accepted { plan: Box::new(plan) }
}

fn submitted(draft: Plan) -> EventBody {
    let request = Box::new(MoveRequest::of(&draft));
    EventBody::Submitted { draft: Box::new(draft), request, policy: Box::default(), parent: None }
}

/// What a source tells of a move without disks.
fn story() -> Vec<Event> {
    let mut bodies = vec![EventBody::Accepted { plan: Box::new(plan()) }];
    for step in plan().steps {
        bodies.push(EventBody::StepStarted { step });
        bodies.push(EventBody::StepFinished { step, figures: StepFigures::default() });
    }
    bodies.push(EventBody::Completed { blackout_us: 1500 });
    (1..).zip(bodies).map(|(sequence, body)| event("alpha", sequence, body)).collect()
}

fn folded<'a>(events: impl IntoIterator<Item = &'a Event>) -> JobStatus {
    let mut status = JobStatus::planned(plan());
    for event in events {
        let _ = status.apply(event);
    }
    status
}

#[test]
fn a_whole_story_ends_completed_with_every_step_timed() {
    let status = folded(&story());
    assert_eq!((status.state, status.blackout_us), (JobState::Completed, Some(1500)));
    assert!(status.steps.iter().all(|step| step.state == StepState::Finished && step.seconds() == Some(1.0)));
    assert!(!status.cancellable());
}

#[test]
fn no_status_shows_the_token() {
    assert!(folded(&story()).plan.token.matches(&[0; 32]));
}

#[test]
fn a_story_cut_short_by_a_failure_keeps_the_step_and_the_reason() {
    let mut events: Vec<Event> = story().into_iter().take(4).collect();
    let failure = FailureReport {
        code: super::super::FailureCode::LinkLost,
        message: "the link is gone".into(),
        causes: Vec::new(),
        remedy: "mend it".into(),
        host: None,
    };
    let step = StepKind::CopyMemory;
    events.push(event("alpha", 5, EventBody::StepFailed { step, failure: failure.clone() }));
    events.push(event("alpha", 6, EventBody::Failed { failure: failure.clone() }));
    let status = folded(&events);
    assert_eq!((status.state, status.failure), (JobState::Exception, Some(failure)));
    assert_eq!(status.steps[1].state, StepState::Failed);
}

#[test]
fn what_is_undone_was_not_ceded_however_far_it_was() {
    // Until the handover has begun, and no further.
    let handover = EventBody::StepStarted { step: StepKind::Handover };
    let mut events = story();
    events.truncate(events.iter().position(|event| event.body == handover).expect("it is told") + 1);
    let mut status = folded(&events);
    assert_eq!((status.state, status.hands()), (JobState::Running, Hands::Ceded));
    // A cancel that was sent before came in time all the same, and can be made a kill.
    events.push(event("alpha", 99, EventBody::CancelAccepted));
    status = folded(&events);
    assert_eq!((status.state, status.hands()), (JobState::ShuttingDown, Hands::Agents));
}

#[test]
fn a_suspend_that_met_a_failure_leaves_a_job_that_can_go_on() {
    let mut events: Vec<Event> = story().into_iter().take(4).collect();
    let failure = FailureReport {
        code: super::super::FailureCode::AgentRestarted,
        message: "the job is over at bravo".into(),
        causes: Vec::new(),
        remedy: "start it again".into(),
        host: None,
    };
    events.push(event("alpha", 5, EventBody::StepFailed { step: StepKind::CopyMemory, failure }));
    events.push(event("alpha", 6, EventBody::Suspended { figures: StepFigures::default() }));
    let mut status = folded(&events);
    assert_eq!((status.state, status.hands()), (JobState::Suspended, Hands::Coordinator));
    assert_eq!(status.apply(&by_coordinator(1, EventBody::Resumed)), Ok(()));
    assert_eq!((status.state, status.failure), (JobState::Starting, None));
}

#[test]
fn an_attempt_that_was_put_away_is_not_taken_up_by_a_word_that_comes_late() {
    let accepted = |host: &str, sequence: u64, attempt: u32| {
        event(host, sequence, EventBody::Accepted { plan: Box::new(Plan { attempt, ..plan() }) })
    };
    let failure = FailureReport {
        code: super::super::FailureCode::PoolFull,
        message: "the pool is full".into(),
        causes: Vec::new(),
        remedy: "choose another".into(),
        host: None,
    };
    let asked = EventBody::Asked { failure, figures: StepFigures::default() };
    let suspended = EventBody::Suspended { figures: StepFigures::default() };
    for (put_away, state) in [(asked, JobState::QueryPending), (suspended, JobState::Suspended)] {
        let mut status = folded(&[accepted("alpha", 1, 0), event("alpha", 2, put_away)]);
        assert_eq!(status.apply(&accepted("bravo", 1, 0)), Err(Ignored::OldAttempt(0)));
        assert_eq!((status.state, status.hands()), (state, Hands::Coordinator));
        assert_eq!(status.apply(&by_coordinator(1, EventBody::Resumed)), Ok(()));
        assert_eq!(status.apply(&accepted("bravo", 2, 0)), Err(Ignored::OldAttempt(0)));
        assert!(status.is_queued(), "it waits for its next attempt");
        assert_eq!(status.apply(&accepted("bravo", 3, 1)), Ok(()));
        assert_eq!((status.plan.attempt, status.hands()), (1, Hands::Agents));
    }
}

#[test]
fn a_job_is_taken_once_the_host_that_leads_has_it() {
    let missing = |status: &JobStatus| status.missing().iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut status = JobStatus::planned(plan());
    assert_eq!(missing(&status), ["bravo", "alpha"]);
    assert_eq!(status.apply(&event("bravo", 1, accepted(plan()))), Ok(()));
    assert_eq!((status.state, status.dispatch), (JobState::Starting, Dispatch::Sent));
    assert_eq!(missing(&status), ["alpha"]);
    assert_eq!(status.apply(&event("alpha", 1, accepted(plan()))), Ok(()));
    assert_eq!((status.state, status.dispatch), (JobState::Starting, Dispatch::Taken));
    assert_eq!(missing(&status), Vec::<String>::new());
    // Of its next attempt nobody has said anything.
    let suspended = EventBody::Suspended { figures: StepFigures::default() };
    assert_eq!(status.apply(&event("alpha", 2, suspended)), Ok(()));
    assert_eq!(missing(&status), Vec::<String>::new(), "nobody was told");
    let planned = EventBody::Planned { plan: Box::new(Plan { attempt: 1, ..plan() }) };
    for (sequence, body) in (1..).zip([EventBody::Resumed, planned]) {
        assert_eq!(status.apply(&by_coordinator(sequence, body)), Ok(()));
    }
    assert_eq!(missing(&status), ["bravo", "alpha"]);
}

/// Both journals of a job of two attempts, read one after the other in either order; nothing else is left of it.
#[test]
fn a_job_of_two_attempts_is_rebuilt_from_its_journals() {
    let of = |attempt| accepted(Plan { attempt, ..plan() });
    let figures = StepFigures { bytes_sent: 7, ..StepFigures::default() };
    let step = StepKind::Prepare;
    let source = [
        of(0),
        EventBody::StepStarted { step },
        EventBody::Suspended { figures },
        of(1),
        EventBody::StepStarted { step },
    ];
    let journal = |host: &str, bodies: &[EventBody]| -> Vec<Event> {
        (1..).zip(bodies).map(|(sequence, body)| event(host, sequence, body.clone())).collect()
    };
    let (source, target) = (journal("alpha", &source), journal("bravo", &[of(0), of(1)]));
    for events in [[target.clone(), source.clone()].concat(), [source, target].concat()] {
        let mut status = JobStatus::from_event(&events[0]).expect("a job");
        for event in &events[1..] {
            let _ = status.apply(event);
        }
        assert_eq!((status.plan.attempt, status.state, status.dispatch), (1, JobState::Running, Dispatch::Taken));
        assert_eq!((status.hands(), status.missing()), (Hands::Agents, vec![]));
        assert_eq!(status.figures().bytes_sent, 7, "what was done before counts once");
        assert_eq!(status.current_step().map(|step| step.kind), Some(step));
    }
}

#[test]
fn an_agent_that_has_forgotten_an_earlier_attempt_is_heard_of_the_next() {
    let suspended = EventBody::Suspended { figures: StepFigures::default() };
    let mut status = folded(&[event("alpha", 1, accepted(plan())), event("alpha", 7, suspended)]);
    assert_eq!(status.apply(&by_coordinator(1, EventBody::Resumed)), Ok(()));
    let planned = EventBody::Planned { plan: Box::new(Plan { attempt: 1, ..plan() }) };
    assert_eq!(status.apply(&by_coordinator(2, planned)), Ok(()));
    let next = event("alpha", 1, accepted(Plan { attempt: 1, ..plan() }));
    assert_eq!(status.apply(&next), Ok(()));
    assert_eq!(status.apply(&next), Err(Ignored::Repeated { sequence: 1 }));
    let step = EventBody::StepStarted { step: StepKind::Prepare };
    assert_eq!(status.apply(&event("alpha", 2, step)), Ok(()));
}

#[test]
fn an_unresolved_handover_waits_for_an_operator_and_can_still_complete() {
    let mut events: Vec<Event> = story().into_iter().take(9).collect();
    events.push(event("alpha", 10, EventBody::Unresolved { reason: "bravo is silent".into() }));
    let mut status = folded(&events);
    assert_eq!(status.state, JobState::QueryPending);
    assert_eq!(status.apply(&event("alpha", 11, EventBody::Completed { blackout_us: 1 })), Ok(()));
    assert_eq!(status.state, JobState::Completed);
}

#[test]
fn a_host_tells_what_agents_tell_of_jobs_in_which_it_has_a_part() {
    let policy = Box::<Policy>::default();
    let request = Box::new(MoveRequest::of(&plan()));
    let of_coordinators = [
        submitted(plan()),
        EventBody::Planned { plan: Box::new(plan()) },
        EventBody::Edited { policy },
        EventBody::Finalizing { hosts: vec![] },
        EventBody::Resumed,
        EventBody::Held,
        EventBody::Answered { request, text: "retry".into() },
    ];
    for body in of_coordinators {
        let mut status = folded(&story()[..4]);
        let before = status.clone();
        let told = event("alpha", 99, body.clone());
        assert!(matches!(status.apply(&told), Err(Ignored::NotItsOwn(host)) if host.as_str() == "alpha"), "{body:?}");
        assert_eq!(status, before, "not even that it was seen");
        assert_eq!(JobStatus::from_event(&told), None);
    }
    let strange = event("gamma", 1, EventBody::Completed { blackout_us: 1 });
    let mut status = folded(&story()[..4]);
    assert!(matches!(status.apply(&strange), Err(Ignored::NotItsOwn(_))));
    assert_eq!(status, folded(&story()[..4]));
    assert_eq!(status.apply(&event("bravo", 1, EventBody::Notice { text: "here".into() })), Ok(()));
}

#[test]
fn a_host_brings_no_plan_of_others_and_none_far_ahead() {
    let elsewhere = || Plan { target: Host { id: "gamma".parse().expect("a name"), addresses: vec![] }, ..plan() };
    assert_eq!(JobStatus::from_event(&event("gamma", 1, accepted(plan()))), None);
    let ahead = |attempt| accepted(Plan { attempt, ..plan() });
    let mut status = folded(&story()[..4]);
    for body in [ahead(2), ahead(u32::MAX)] {
        assert!(matches!(status.apply(&event("alpha", 99, body)), Err(Ignored::NotItsOwn(_))));
    }
    let next = Plan { attempt: 1, ..elsewhere() };
    assert!(matches!(status.apply(&event("gamma", 1, accepted(next.clone()))), Err(Ignored::NotItsOwn(_))));
    assert_eq!(status.apply(&event("alpha", 99, accepted(next))), Ok(()), "the word of it was lost here");
}

#[test]
fn a_job_that_waits_is_taken_on_by_a_host_that_its_draft_did_not_name() {
    let mut status = JobStatus::from_event(&by_coordinator(1, submitted(plan()))).expect("a job");
    let gamma = Host { id: "gamma".parse().expect("a name"), addresses: vec![] };
    let begun = Plan { target: gamma.clone(), ..plan() };
    assert_eq!(status.apply(&event("gamma", 1, accepted(begun))), Ok(()));
    assert_eq!((status.dispatch, &status.plan.target), (Dispatch::Sent, &gamma));
    assert!(matches!(status.apply(&event("bravo", 1, EventBody::Terminated)), Err(Ignored::NotItsOwn(_))));
}

#[test]
fn attempts_do_not_run_over() {
    let last = Plan { attempt: u32::MAX, ..plan() };
    let mut status = JobStatus::from_event(&event("alpha", 1, accepted(last))).expect("a job");
    let rested = EventBody::Suspended { figures: StepFigures::default() };
    assert_eq!(status.apply(&event("alpha", 2, rested)), Ok(()));
    assert_eq!(status.next_attempt(), u32::MAX);
    assert_eq!(status.apply(&by_coordinator(1, EventBody::Resumed)), Ok(()));
    let again = event("alpha", 3, accepted(Plan { attempt: u32::MAX, ..plan() }));
    assert_eq!(status.apply(&again), Err(Ignored::OldAttempt(u32::MAX)));
}

proptest! {
    /// The broker may send anything again, at any time: it changes nothing.
    #[test]
    fn repeats_change_nothing(repeats in proptest::collection::vec(0_usize..15, 0..40)) {
        let story = story();
        let mut events = Vec::new();
        for (index, event) in story.iter().enumerate() {
            events.push(event);
            events.extend(repeats.iter().filter(|repeat| **repeat <= index).map(|repeat| &story[*repeat]));
        }
        prop_assert_eq!(folded(events), folded(&story));
    }
}
