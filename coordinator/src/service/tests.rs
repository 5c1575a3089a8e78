//! Jobs from their submission to their end, without a broker: what waits, what begins, and what comes of what.

mod checks;
mod gone;
mod google;
mod lifetime;
mod listed;
mod replication;
mod sent;
mod trust;

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest, ApiReply, ApiRequest, JobChange};
use sterna_shared::host::{Inventory, VmState};
use sterna_shared::id::{Epoch, HostId, JobId, Token};
use sterna_shared::job::{
    Event as JobEvent, EventBody, FailureCode, FailureReport, JobState, JobStatus, MoveRequest, Plan, Policy, Recovery,
    Reporter, RequestedState, ReturnCode, Rule, Schedule, Zone,
};
use sterna_shared::replica::Replica;
use sterna_shared::time::Timestamp;

use super::check::{Check, CheckAnswers, CheckQuestions};
use super::state::{Action, Event, Job, Message, Now, State};
use crate::planner::example;

struct World {
    state: State,
    /// Seconds since it began, by both clocks.
    clock: u64,
    vms: u8,
    /// Jobs in the order in which their plans went out.
    begun: Vec<JobId>,
    /// Checks that wait for their agents, the first asked last.
    asked: Vec<(Box<Check>, Box<CheckQuestions>)>,
    /// Whom commands went to.
    commanded: Vec<HostId>,
    /// By what the broker tells these commands from others of their job to the host.
    kinds: Vec<String>,
    /// Plans that are kept until their hosts have them.
    plans: BTreeMap<JobId, Plan>,
    answers: Vec<ApiReply>,
    /// Replicas that the second host has.
    replicas: Vec<Replica>,
    /// Whether the VMs are at the second host, and the first keeps the way back of the first of them.
    cut_over: bool,
    keeps: bool,
    /// Whether the VMs are shut down, and since which cycle the first of them has not run.
    shut_down: bool,
    unchanged_since: Option<JobId>,
    /// Whether the second host is not heard of.
    target_silent: bool,
    /// What hosts were asked to let go of, and have not answered.
    letting_go: Vec<(JobId, HostId, AgentRequest)>,
    /// Requests that were handed on to hosts, and hosts that were to remove what cut moves have left.
    forwarded: Vec<(HostId, AgentRequest)>,
    dropping: Vec<HostId>,
    /// Last values of the feed, by their keys, and how many documents there were.
    feed: BTreeMap<String, serde_json::Value>,
    fed: usize,
    /// All events that are kept.
    events: Vec<JobEvent>,
    drawn: u8,
}

impl World {
    /// Two hosts, the first with that many VMs, the second taking on so many at a time.
    fn new(vms: u8, inbound: u16) -> Self {
        let fleet = crate::fleet::Fleet::default();
        let state = State::new("one".parse().expect("a name"), Epoch(1), "2.11".into(), fleet, None);
        let mut world = Self {
            state,
            clock: 0,
            vms,
            begun: vec![],
            asked: vec![],
            commanded: vec![],
            kinds: vec![],
            plans: BTreeMap::new(),
            answers: vec![],
            replicas: vec![],
            cut_over: false,
            keeps: false,
            shut_down: false,
            unchanged_since: None,
            target_silent: false,
            letting_go: vec![],
            forwarded: vec![],
            dropping: vec![],
            feed: BTreeMap::new(),
            fed: 0,
            events: vec![],
            drawn: 100,
        };
        world.apply(Event::Replayed);
        world.beat(inbound);
        world
    }

    fn now(&self) -> Now {
        let at = example::now().unix_microseconds() + i64::try_from(self.clock).expect("small") * 1_000_000;
        Now { at: Timestamp::from_unix_microseconds(at), clock: Duration::from_secs(self.clock) }
    }

    /// Another coordinator takes over, which knows what is in the stream.
    fn restart(&mut self) {
        self.take_over([]);
    }

    /// Another coordinator takes over, which knows what is in the stream, and jobs as they were kept besides.
    fn take_over(&mut self, kept: impl IntoIterator<Item = JobStatus>) {
        let fleet = crate::fleet::Fleet::default();
        self.state = State::new("two".parse().expect("a name"), Epoch(2), "2.11".into(), fleet, None);
        self.state.remember(kept, 30);
        self.state.remember_sent(self.plans.values().cloned());
        for event in std::mem::take(&mut self.events) {
            self.events.push(event.clone());
            self.apply(Event::Told(Box::new(event)));
            let fed = self.fed;
            self.apply(Event::Tick);
            assert_eq!(self.fed, fed, "nothing is told of how replications stood");
        }
        self.apply(Event::Replayed);
        self.apply(Event::Tick);
        self.beat(1);
    }

    fn beat(&mut self, inbound: u16) {
        let heard = if self.target_silent { 1 } else { 2 };
        for inventory in self.inventories(inbound).into_iter().take(heard) {
            self.apply(Event::Heartbeat(Box::new(inventory)));
        }
    }

    fn inventories(&self, inbound: u16) -> [Inventory; 2] {
        let mut source = example::inventory("alpha");
        source.limits.outbound_moves_max = 100;
        source.vms = (0..self.vms)
            .map(|number| {
                let mut spec = example::vm("web");
                spec.id = format!("0197c0de-0000-7000-8000-0000000003{number:02x}").parse().expect("a UUID");
                spec.name = format!("vm{number}").parse().expect("a name");
                example::report(&spec)
            })
            .collect();
        if self.shut_down {
            source.vms.iter_mut().for_each(|vm| vm.state = VmState::Stopped);
            source.vms[0].unchanged_since = self.unchanged_since;
        }
        let mut target = example::inventory("beta");
        target.limits.inbound_moves_max = inbound;
        target.replicas.clone_from(&self.replicas);
        if self.keeps {
            source.partials.push(example::partial(&source.vms[0].spec));
        }
        if self.cut_over {
            target.vms.append(&mut source.vms);
        }
        [source, target]
    }

    /// Applies an event, and all that comes of it.
    fn apply(&mut self, event: Event) {
        let now = self.now();
        for action in self.state.apply(event, now) {
            match action {
                Action::Draw => {
                    self.drawn += 1;
                    let job = example::job(self.drawn);
                    self.apply(Event::Drawn { job, token: Token::from_bytes([8; 32]) });
                }
                Action::Publish { messages, answer } => {
                    self.answers.extend(answer.map(|(_, reply)| *reply));
                    for message in messages {
                        if let Message::Event(event) = &message {
                            self.events.push(JobEvent::clone(event));
                        }
                        match message {
                            Message::Event(event) if matches!(event.body, EventBody::Planned { .. }) => {
                                self.begun.push(event.job);
                            }
                            Message::Event(_) => {}
                            Message::Plan(plan) => drop(self.plans.insert(plan.job, *plan)),
                            Message::Command { host, kind, .. } => {
                                self.commanded.push(host);
                                self.kinds.push(kind);
                            }
                        }
                    }
                }
                Action::Answer { reply, .. } => self.answers.push(*reply),
                Action::LetGo { job, host, request } => self.letting_go.push((job, host, *request)),
                Action::Forward { host, request, .. } => self.forwarded.push((host, *request)),
                Action::DropKept { host, .. } => self.dropping.push(host),
                Action::Feed(document) => {
                    self.fed += usize::from(document.key.starts_with("replica."));
                    self.feed.insert(document.key, serde_json::from_slice(&document.body).expect("JSON"));
                }
                Action::RemovePlan(job) => drop(self.plans.remove(&job)),
                Action::RemoveVm(vm) => drop(self.feed.remove(&format!("vm.{vm}"))),
                Action::RemoveFeed(key) => drop(self.feed.remove(&key)),
                Action::Check { check, questions } => self.asked.push((check, questions)),
                _ => {}
            }
        }
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.clock += 1;
            self.beat(1);
            self.apply(Event::Tick);
        }
    }

    fn ask(&mut self, request: ApiRequest) -> ApiReply {
        self.apply(Event::Asked { call: 1, request: Box::new(request), token: Token::from_bytes([7; 32]) });
        self.answers.pop().expect("an answer")
    }

    /// Asks to move a VM; the job.
    fn submit(&mut self, number: u8, policy: Policy) -> JobId {
        let job = example::job(number + 1);
        let request = MoveRequest { vm: format!("vm{number}"), ..example::request() };
        self.submit_as(job, request, policy)
    }

    fn submit_as(&mut self, job: JobId, request: MoveRequest, policy: Policy) -> JobId {
        let reply = self.ask(ApiRequest::Migrate { request, dry_run: false, job, policy: Box::new(policy) });
        assert!(matches!(reply, ApiReply::JobStarted { .. }), "{reply:?}");
        job
    }

    /// The agent that leads tells how a job goes.
    fn tell(&mut self, job: JobId, bodies: impl IntoIterator<Item = EventBody>) {
        let leads = self.state.jobs[&job].status.plan.parties().last().map_or("alpha".into(), ToString::to_string);
        for (sequence, body) in (1 + 10 * u64::from(self.attempt(job))..).zip(bodies) {
            self.tell_as(&leads, job, sequence, body);
        }
    }

    fn tell_as(&mut self, host: &str, job: JobId, sequence: u64, body: EventBody) {
        let reporter = Reporter::Host(host.parse().expect("a name"));
        let event = JobEvent { job, reporter, sequence, at: self.now().at, body };
        self.events.push(event.clone());
        self.apply(Event::Told(Box::new(event)));
    }

    fn attempt(&self, job: JobId) -> u32 {
        self.state.jobs[&job].status.plan.attempt
    }

    fn accepted(&self, job: JobId) -> EventBody {
        EventBody::Accepted { plan: Box::new(self.state.jobs[&job].status.plan.clone()) }
    }

    fn end(&mut self, job: JobId, last: EventBody) {
        let accepted = self.accepted(job);
        self.tell(job, [accepted, last]);
    }

    fn state_of(&self, job: JobId) -> JobState {
        self.state.jobs[&job].status.state
    }
}

fn failed() -> EventBody {
    let failure = FailureReport {
        code: FailureCode::LinkLost,
        message: "the link is gone".into(),
        causes: vec![],
        remedy: "mend it".into(),
        host: None,
    };
    EventBody::Failed { failure }
}

const DONE: EventBody = EventBody::Completed { blackout_us: 1 };

fn with_priority(priority: u32) -> Policy {
    Policy { priority, ..Policy::default() }
}

#[test]
fn jobs_wait_for_a_slot_and_go_by_priority_and_then_by_age() {
    let mut world = World::new(4, 1);
    let jobs: Vec<JobId> = [(0, 9), (1, 5), (2, 1), (3, 1)]
        .map(|(number, priority)| world.submit(number, with_priority(priority)))
        .to_vec();
    assert_eq!(world.begun, [jobs[0]], "the first has the only slot");
    for _ in 0..4 {
        let last = *world.begun.last().expect("one has begun");
        world.end(last, DONE);
        world.wait(1);
    }
    assert_eq!(world.begun, [jobs[0], jobs[2], jobs[3], jobs[1]]);
    assert!(jobs.iter().all(|job| world.state_of(*job) == JobState::Completed));
}

#[test]
fn a_suspended_job_gives_its_slot_away_and_takes_the_next() {
    let mut world = World::new(2, 1);
    let (first, second) = (world.submit(0, with_priority(1)), world.submit(1, with_priority(2)));
    let accepted = world.accepted(first);
    world.tell(first, [accepted, EventBody::Suspended { figures: Default::default() }]);
    world.wait(1);
    assert_eq!(world.begun, [first, second]);
    let requested = RequestedState::Start.number();
    let reply = world.ask(ApiRequest::JobState { job: first, requested, timeout_ms: None });
    assert!(matches!(reply, ApiReply::StateRequested { code: ReturnCode::Started, .. }), "{reply:?}");
    assert_eq!(world.begun, [first, second], "the slot is taken");
    world.end(second, DONE);
    world.wait(1);
    assert_eq!(world.begun, [first, second, first]);
    assert_eq!(world.attempt(first), 1);
}

#[test]
fn an_answer_can_wait_for_a_state_and_gives_up_when_its_time_is_over() {
    let mut world = World::new(1, 1);
    let job = world.submit(0, Policy::default());
    let accepted = world.accepted(job);
    world.tell(job, [accepted]);
    let requested = RequestedState::Suspend.number();
    let wait = |timeout_ms| ApiRequest::JobState { job, requested, timeout_ms: Some(timeout_ms) };
    for (call, request) in [(1, wait(2000)), (2, wait(9000))] {
        world.apply(Event::Asked { call, request: Box::new(request), token: Token::from_bytes([7; 32]) });
    }
    assert!(world.answers.is_empty());
    world.wait(3);
    let reply = world.answers.pop().expect("the first has waited long enough");
    assert!(matches!(reply, ApiReply::StateRequested { code: ReturnCode::Timeout, .. }), "{reply:?}");
    let accepted = world.accepted(job);
    world.tell(job, [accepted, EventBody::Suspended { figures: Default::default() }]);
    let reply = world.answers.pop().expect("the second has what it waited for");
    assert!(matches!(reply, ApiReply::StateRequested { code: ReturnCode::Completed, .. }), "{reply:?}");
    let reply = world.ask(ApiRequest::JobState { job, requested: 7, timeout_ms: None });
    assert!(matches!(reply, ApiReply::StateRequested { code: ReturnCode::InvalidParameter, .. }), "{reply:?}");
}

#[test]
fn what_is_asked_for_once_more_is_no_repeat_to_the_broker() {
    let mut world = World::new(1, 1);
    let job = world.submit(0, Policy::default());
    world.end(job, EventBody::Notice { text: "the copying begins".into() });
    for wish in [RequestedState::Terminate, RequestedState::Suspend, RequestedState::Kill] {
        world.kinds.clear();
        for _ in 0..2 {
            world.ask(ApiRequest::JobState { job, requested: wish.number(), timeout_ms: None });
            world.wait(1);
        }
        let [first, _, second, _] = &world.kinds[..] else { panic!("to both hosts, twice: {:?}", world.kinds) };
        assert_ne!(first, second);
    }
}

#[test]
fn a_job_waits_for_its_time_and_its_vm_does_not() {
    let mut world = World::new(1, 1);
    let at = Timestamp::from_unix_microseconds(world.now().at.unix_microseconds() + 60_000_000);
    let job = world.submit(0, Policy { schedule: Some(Schedule::once(at)), ..Policy::default() });
    world.wait(58);
    assert!(world.begun.is_empty());
    assert!(!world.state.jobs[&job].status.holds_vm(world.now().at));
    world.wait(3);
    assert_eq!(world.begun, [job]);
}

#[test]
fn a_failed_job_is_tried_again_as_often_as_was_said_after_pauses_that_double() {
    let mut world = World::new(1, 1);
    let recovery = Recovery::Rerun { times: 2, pause_seconds: 10 };
    world.submit(0, Policy { recovery, ..Policy::default() });
    for (pause, begun) in [(10, 2), (20, 3), (100, 3)] {
        let last = *world.begun.last().expect("one has begun");
        world.end(last, failed());
        world.wait(pause - 1);
        assert_eq!(world.begun.len(), begun.min(world.begun.len()), "not before its pause is over");
        let before = world.begun.len();
        world.wait(2);
        assert_eq!(world.begun.len(), begun, "{before}");
    }
}

#[test]
fn what_follows_in_a_group_waits_and_ends_with_what_failed_before_it() {
    for (recovery, expected) in [(Recovery::Stop, JobState::Terminated), (Recovery::Next, JobState::New)] {
        let mut world = World::new(2, 2);
        let policy = Policy { group: Some("night".into()), recovery, ..Policy::default() };
        let (first, second) = (world.submit(0, policy.clone()), world.submit(1, policy));
        world.wait(2);
        assert_eq!(world.begun, [first], "one after the other");
        world.end(first, failed());
        world.wait(2);
        assert_eq!(world.state_of(second), expected);
        assert_eq!(world.begun.contains(&second), expected == JobState::New);
    }
}

#[test]
fn what_is_run_again_in_a_group_goes_before_what_follows_it() {
    let mut world = World::new(2, 2);
    let recovery = Recovery::Rerun { times: 2, pause_seconds: 1 };
    let policy = Policy { group: Some("night".into()), recovery, ..Policy::default() };
    let (first, second) = (world.submit(0, policy.clone()), world.submit(1, policy));
    for tries in 1..=2 {
        world.end(world.begun[tries - 1], failed());
        world.wait(5);
        assert_eq!(world.begun.len(), tries + 1, "the second does not go before it, nor the other way round");
        assert!(!world.begun.contains(&second));
    }
    world.end(world.begun[2], DONE);
    world.wait(1);
    assert_eq!((world.begun[0], world.begun[3], world.begun.len()), (first, second, 4));
}

#[test]
fn a_recurring_job_ends_once_when_no_turn_is_left() {
    let mut world = World::new(1, 1);
    let rule = Rule::daily(Duration::from_secs(0), Zone::Utc);
    let until = Timestamp::from_unix_microseconds(world.now().at.unix_microseconds() + 5_000_000);
    let schedule = Schedule { until: Some(until), ..Schedule::repeated(rule) };
    let job = world.submit(0, Policy { schedule: Some(schedule), ..Policy::default() });
    world.wait(30);
    assert_eq!(world.state_of(job), JobState::Completed);
    assert!(world.state.jobs[&job].own_sequence <= 3, "it is told once");
}

#[test]
fn a_recurring_job_has_as_many_runs_as_was_said_and_none_more() {
    let mut world = World::new(1, 1);
    let rule = Rule::daily(Duration::from_secs(0), Zone::Utc);
    let schedule = Schedule { run_times: 2, ..Schedule::repeated(rule) };
    let job = world.submit(0, Policy { schedule: Some(schedule), ..Policy::default() });
    let requested = RequestedState::Start.number();
    for runs in 1..=2 {
        world.ask(ApiRequest::JobState { job, requested, timeout_ms: None });
        world.wait(1);
        assert_eq!(world.begun.len(), runs);
        let run = *world.begun.last().expect("a run");
        assert_eq!(world.state_of(job), JobState::Running);
        world.end(run, DONE);
        world.wait(1);
    }
    assert_eq!(world.state_of(job), JobState::Completed);
    let reply = world.ask(ApiRequest::JobState { job, requested, timeout_ms: None });
    assert!(matches!(reply, ApiReply::StateRequested { code: ReturnCode::InvalidTransition, .. }), "{reply:?}");
    assert_eq!(world.begun.len(), 2);
}

/// Their journals tell of it for long after it has left the list.
#[test]
fn a_job_that_left_the_list_is_not_taken_for_a_new_one_when_agents_tell_of_it_again() {
    let mut world = World::new(1, 1);
    let policy = Policy { delete_on_completion: true, keep_seconds: 0, ..Policy::default() };
    let job = world.submit(0, policy);
    let accepted = world.accepted(job);
    world.end(job, DONE);
    let again = |world: &mut World, host: &str| {
        let host: HostId = host.parse().expect("a name");
        let body = accepted.clone();
        let event = JobEvent { job, reporter: Reporter::Host(host.clone()), sequence: 1, at: world.now().at, body };
        let kept = world.events.len();
        let page = Ok(AgentReply::Events { events: vec![event.clone()], more: false });
        world.apply(Event::Journalled { host, skip: 0, page });
        world.apply(Event::Told(Box::new(event)));
        (world.state.jobs.len(), world.events.len() - kept)
    };
    world.wait(1);
    assert_eq!(again(&mut world, "beta"), (0, 0));
    assert_eq!(again(&mut world, "alpha"), (0, 0));
    let (request, policy) = (MoveRequest { vm: "vm0".into(), ..example::request() }, Box::default());
    let reply = world.ask(ApiRequest::Migrate { request, dry_run: false, job, policy });
    assert!(matches!(reply, ApiReply::Error { .. }), "asked twice, made once: {reply:?}");
    // Whoever takes over reads the whole story before anything leaves the list.
    world.restart();
    world.wait(1);
    assert_eq!(again(&mut world, "beta"), (0, 0));
}

#[test]
fn a_rerun_that_was_to_leave_the_list_is_not_made_again() {
    let mut world = World::new(1, 1);
    let recovery = Recovery::Rerun { times: 1, pause_seconds: 1 };
    let job = world.submit(0, Policy { recovery, ..Policy::default() });
    world.end(job, failed());
    world.wait(3);
    let again = *world.begun.last().expect("a rerun");
    assert_ne!(again, job);
    world.ask(ApiRequest::JobKill { job: again, delete: true });
    world.end(again, EventBody::Killed);
    world.wait(310);
    assert_eq!(world.begun, [job, again]);
}

#[test]
fn reruns_are_counted_though_none_of_them_is_to_stay_on_the_list() {
    let mut world = World::new(1, 1);
    let recovery = Recovery::Rerun { times: 2, pause_seconds: 2 };
    world.submit(0, Policy { recovery, delete_on_completion: true, keep_seconds: 0, ..Policy::default() });
    for begun in 1..=3 {
        assert_eq!(world.begun.len(), begun);
        world.end(world.begun[begun - 1], failed());
        world.wait(10);
    }
    assert_eq!((world.begun.len(), world.state.jobs.len()), (3, 0), "then they leave it together");
}

/// A job that recurs, begun by hand, and its first run; the runs are to leave the list at once.
fn recurring(world: &mut World, run_times: u32) -> (JobId, JobId) {
    let rule = Rule::daily(Duration::from_secs(0), Zone::Utc);
    let schedule = Some(Schedule { run_times, ..Schedule::repeated(rule) });
    let job = world.submit(0, Policy { schedule, delete_on_completion: true, keep_seconds: 0, ..Policy::default() });
    start(world, job);
    (job, *world.begun.last().expect("a run"))
}

fn start(world: &mut World, job: JobId) {
    world.ask(ApiRequest::JobState { job, requested: RequestedState::Start.number(), timeout_ms: None });
    world.wait(1);
}

#[test]
fn a_run_that_was_never_submitted_is_not_waited_for() {
    let mut world = World::new(1, 1);
    let (job, run) = recurring(&mut world, 0);
    // Whoever began it fell out after it had told so.
    world.events.retain(|event| event.job != run);
    world.restart();
    assert_eq!(world.state_of(job), JobState::New, "it waits for its next turn");
    start(&mut world, job);
    assert_eq!(world.begun.len(), 2);
}

#[test]
fn a_run_that_ended_while_nobody_led_is_told_before_it_leaves_the_list() {
    let mut world = World::new(1, 1);
    let (job, run) = recurring(&mut world, 0);
    for (sequence, body) in [(1, world.accepted(run)), (2, DONE)] {
        let reporter = Reporter::Host("alpha".parse().expect("a name"));
        world.events.push(JobEvent { job: run, reporter, sequence, at: world.now().at, body });
    }
    world.restart();
    let status = &world.state.jobs[&job].status;
    assert_eq!((status.state, status.runs.latest[0].state), (JobState::New, Some(JobState::Completed)));
    world.wait(1);
    assert!(!world.state.jobs.contains_key(&run));
    start(&mut world, job);
    assert_eq!(world.begun.len(), 2);
}

#[test]
fn a_job_that_has_had_all_its_runs_is_over_when_it_is_started() {
    let mut world = World::new(1, 1);
    let (job, run) = recurring(&mut world, 3);
    world.end(run, DONE);
    start(&mut world, job);
    world.end(world.begun[1], DONE);
    world.wait(1);
    world.ask(ApiRequest::JobState { job, requested: RequestedState::Suspend.number(), timeout_ms: None });
    let changes = vec![JobChange::Property { name: "JobRunTimes".into(), value: "2".into() }];
    assert!(matches!(world.ask(ApiRequest::JobEdit { job, changes }), ApiReply::Done));
    assert_eq!(world.state_of(job), JobState::Suspended);
    let requested = RequestedState::Start.number();
    world.ask(ApiRequest::JobState { job, requested, timeout_ms: None });
    world.apply(Event::Tick);
    assert_eq!((world.state_of(job), world.begun.len()), (JobState::Completed, 2));
}

#[test]
fn jobs_that_are_not_over_go_on_though_the_stream_has_forgotten_how_they_began() {
    let mut world = World::new(1, 1);
    let (job, run) = recurring(&mut world, 0);
    world.tell(run, [world.accepted(run)]);
    let kept: Vec<JobStatus> = world.state.jobs.values().map(|job| job.status.clone()).collect();
    let told = world.state.jobs[&job].own_sequence;
    let reporter = Reporter::Host("alpha".parse().expect("a name"));
    // Of the recurring job nothing is left, of its run only the end, which nobody has heard.
    world.events = vec![JobEvent { job: run, reporter, sequence: 2, at: world.now().at, body: DONE }];
    world.take_over(kept);
    let Job { status, own_sequence, .. } = &world.state.jobs[&job];
    assert_eq!((status.state, status.runs.latest[0].state), (JobState::New, Some(JobState::Completed)));
    assert!(*own_sequence > told, "its numbers go on");
    start(&mut world, job);
    assert_eq!(world.begun.len(), 2);
    // What is over goes with its events.
    let over = world.begun[1];
    world.end(over, DONE);
    let kept: Vec<JobStatus> = world.state.jobs.values().map(|job| job.status.clone()).collect();
    assert!(kept.iter().any(|status| status.job == over));
    world.events.clear();
    world.take_over(kept);
    assert!(world.state.jobs.contains_key(&job) && !world.state.jobs.contains_key(&over));
}
