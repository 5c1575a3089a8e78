//! Replications: when their cycles begin and when not, what is told of them, and clones beside them.

use sterna_shared::bus::{ApiError, ApiErrorKind};
use sterna_shared::id::VmId;
use sterna_shared::job::{JobKind, Missed, Progress, RefusalCode, StepKind, Volume};
use sterna_shared::replica::{Consistency, ReplicaState, ReplicaView, Snapshot};
use sterna_shared::view::google::Rates;

use super::*;

/// The pause between two cycles of these tests, in seconds.
const IDLE: u32 = 10;

impl World {
    pub(super) fn replicate(&mut self) -> ApiReply {
        let request = MoveRequest { kind: JobKind::Replicate, vm: "vm0".into(), ..example::request() };
        let policy = Box::new(Policy { schedule: Some(Schedule::after_pauses(IDLE)), ..Policy::default() });
        let job = example::job(60 + u8::try_from(self.begun.len()).expect("few"));
        self.ask(ApiRequest::Migrate { request, dry_run: false, job, policy })
    }

    /// A VM whose replication was just asked for; its recurring job.
    pub(super) fn replicating() -> (Self, JobId) {
        let mut world = Self::new(1, 1);
        let job = started(&world.replicate());
        world.wait(1);
        (world, job)
    }

    fn views(&mut self) -> Vec<ReplicaView> {
        match self.ask(ApiRequest::ReplicaList) {
            ApiReply::Replicas { replicas } => replicas,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn view(&mut self) -> ReplicaView {
        let mut views = self.views();
        assert_eq!(views.len(), 1);
        views.remove(0)
    }

    /// The agents take the latest job on.
    pub(super) fn accept(&mut self) {
        let job = *self.begun.last().expect("a job");
        let accepted = self.accepted(job);
        self.tell(job, [accepted]);
    }

    /// The cycle under way is over, and the target has its snapshot.
    pub(super) fn end_cycle(&mut self) {
        let cycle = *self.begun.last().expect("a cycle");
        let spec = self.inventories(1)[0].vms[0].spec.clone();
        if self.replicas.is_empty() {
            self.replicas = vec![Replica::new(spec.clone(), spec.disks, "alpha".parse().expect("a name"))];
        }
        let (at, number) = (self.now().at, self.replicas[0].next);
        let consistency = if self.shut_down { Consistency::Stopped } else { Consistency::Crash };
        let written = sterna_shared::units::ByteCount(0);
        self.replicas[0].add(Snapshot {
            number,
            cycle,
            attempt: 0,
            taken_at: at,
            complete_at: at,
            consistency,
            written,
            damaged: false,
        });
        self.end(cycle, DONE);
        self.beat(1);
    }

    fn ask_for(&mut self, job: JobId, wanted: RequestedState) {
        let reply = self.ask(ApiRequest::JobState { job, requested: wanted.number(), timeout_ms: None });
        assert!(
            matches!(reply, ApiReply::StateRequested { code: ReturnCode::Completed | ReturnCode::Started, .. }),
            "{reply:?}"
        );
    }
}

fn started(reply: &ApiReply) -> JobId {
    match reply {
        ApiReply::JobStarted { status } => status.job,
        other => panic!("{other:?}"),
    }
}

pub(super) fn error(reply: ApiReply) -> ApiError {
    match reply {
        ApiReply::Error { error } => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cycle_begins_at_once_and_the_next_a_pause_after_it_has_ended() {
    let (mut world, job) = World::replicating();
    assert_eq!(world.begun.len(), 1);
    assert_eq!(world.state_of(job), JobState::Running);
    assert_eq!(world.commanded, ["beta", "alpha"].map(|host| host.parse::<HostId>().expect("a name")));
    world.accept();
    world.wait(60);
    assert_eq!(world.begun.len(), 1, "one at a time, however long it takes");
    world.end_cycle();
    world.wait(u64::from(IDLE) - 2);
    assert_eq!(world.begun.len(), 1);
    world.wait(3);
    assert_eq!(world.begun.len(), 2);
    world.end(world.begun[1], failed());
    world.wait(u64::from(IDLE) + 2);
    assert_eq!(world.begun.len(), 3, "also after one that failed");
    let policy = &world.state.jobs[&world.begun[0]].status.policy;
    assert_eq!((policy.delete_on_completion, policy.keep_seconds), (true, 86_400), "cycles do not fill the list");
    assert!(!world.state.jobs[&job].status.policy.delete_on_completion);
}

#[test]
fn a_new_bandwidth_is_of_the_cycle_under_way_and_of_those_to_come() {
    let (mut world, job) = World::replicating();
    world.accept();
    let (commanded, slow) = (world.commanded.len(), Some(sterna_shared::units::Bandwidth(1 << 20)));
    assert_eq!(world.ask(ApiRequest::JobBandwidth { job, bandwidth: slow }), ApiReply::Done);
    assert_eq!(world.commanded.len(), commanded + 2, "both hosts of the cycle are told");
    let bandwidth = |world: &World, job: JobId| world.state.jobs[&job].status.plan.bandwidth;
    assert_eq!(bandwidth(&world, world.begun[0]), slow);
    world.end_cycle();
    world.wait(u64::from(IDLE) + 2);
    assert_eq!((world.begun.len(), bandwidth(&world, world.begun[1])), (2, slow));
    world.accept();
    world.end_cycle();
    let commanded = world.commanded.len();
    assert_eq!(world.ask(ApiRequest::JobBandwidth { job, bandwidth: None }), ApiReply::Done);
    assert_eq!(world.commanded.len(), commanded, "between two cycles nobody is");
    world.wait(u64::from(IDLE) + 2);
    assert_eq!((world.begun.len(), bandwidth(&world, world.begun[2])), (3, None));
}

#[test]
fn no_cycle_begins_while_another_job_holds_the_vm() {
    let mut world = World::new(1, 1);
    let moving = world.submit(0, Policy::default());
    world.accept();
    let job = started(&world.replicate());
    world.wait(20);
    assert_eq!(world.begun, [moving]);
    assert_eq!(world.state.jobs[&job].status.runs.count, 0, "its turn waits, and is not used up");
    world.end(moving, DONE);
    world.wait(1);
    assert_eq!(world.begun.len(), 2);
}

#[test]
fn a_move_waits_for_the_cycle_under_way_and_goes_before_the_next() {
    let (mut world, _) = World::replicating();
    world.accept();
    let moving = world.submit(0, Policy::default());
    world.wait(30);
    assert_eq!(world.begun.len(), 1, "the cycle has the VM");
    world.end_cycle();
    world.wait(1);
    world.accept();
    world.wait(30);
    assert_eq!(world.begun.last(), Some(&moving));
    assert_eq!(world.begun.len(), 2, "no cycle meanwhile");
    world.end(moving, DONE);
    world.wait(1);
    assert_eq!(world.begun.len(), 3);
}

#[test]
fn a_verification_waits_for_the_cycle_under_way_and_the_next_for_it() {
    let (mut world, _) = World::replicating();
    world.accept();
    world.end_cycle();
    world.wait(u64::from(IDLE) + 1);
    world.accept();
    let request = MoveRequest { kind: JobKind::Verify, vm: "vm0".into(), target: None, ..example::request() };
    let (job, policy) = (example::job(90), Box::new(Policy::default()));
    let verifying = started(&world.ask(ApiRequest::Migrate { request, dry_run: false, job, policy }));
    world.wait(20);
    assert_eq!(world.begun.len(), 2, "the cycle has the replica");
    world.end_cycle();
    world.wait(1);
    assert_eq!(world.begun.last(), Some(&verifying));
    world.accept();
    world.wait(60);
    assert_eq!(world.begun.len(), 3, "no cycle meanwhile");
    world.end(verifying, DONE);
    world.wait(1);
    assert_eq!(world.begun.len(), 4);
}

#[test]
fn a_vm_that_is_shut_down_is_replicated_once_and_again_when_it_may_have_run() {
    let (mut world, job) = World::replicating();
    world.accept();
    world.end_cycle();
    world.shut_down = true;
    world.wait(u64::from(IDLE) + 2);
    assert_eq!(world.begun.len(), 2, "what it wrote until it was off is not there yet");
    world.unchanged_since = Some(world.begun[1]);
    world.accept();
    world.end_cycle();
    world.wait(600);
    assert_eq!(world.begun.len(), 2, "there is nothing to be sent");
    let view = world.view();
    assert_eq!((view.state, view.age_seconds, view.late), (ReplicaState::Active, Some(0), false));

    // It was started and stopped between two looks; or its agent was started anew, and does not know.
    world.unchanged_since = None;
    world.wait(1);
    assert_eq!(world.begun.len(), 3);
    // What was taken before a cycle that came to nothing is not what the latest snapshot is of.
    world.unchanged_since = Some(world.begun[2]);
    world.end(world.begun[2], failed());
    world.wait(u64::from(IDLE) + 2);
    assert_eq!(world.begun.len(), 4);
    world.unchanged_since = Some(world.begun[3]);
    world.end_cycle();
    world.wait(600);
    assert_eq!(world.begun.len(), 4);

    // A snapshot that is damaged is none, and who wants a cycle gets one.
    world.replicas[0].mark_damaged(&[3].into());
    world.wait(1);
    assert_eq!(world.begun.len(), 5);
    world.unchanged_since = Some(world.begun[4]);
    world.end_cycle();
    world.wait(60);
    world.ask_for(job, RequestedState::Start);
    world.wait(1);
    assert_eq!(world.begun.len(), 6);
    world.unchanged_since = Some(world.begun[5]);
    world.end_cycle();
    world.wait(60);
    (world.shut_down, world.unchanged_since) = (false, None);
    world.wait(1);
    assert_eq!(world.begun.len(), 7, "it runs");
}

#[test]
fn no_cycle_begins_while_a_host_is_offline() {
    let (mut world, job) = World::replicating();
    world.accept();
    let only_the_source = |world: &mut World, seconds: u64| {
        for _ in 0..seconds {
            world.clock += 1;
            let [source, _] = world.inventories(1);
            world.apply(Event::Heartbeat(Box::new(source)));
            world.apply(Event::Tick);
        }
    };
    only_the_source(&mut world, 12);
    world.end(world.begun[0], failed());
    only_the_source(&mut world, 40);
    let begun = world.begun.len();
    world.wait(1);
    assert_eq!((begun, world.begun.len()), (1, 2), "the target is there again");
    assert_eq!(world.state_of(job), JobState::Running);
}

#[test]
fn a_vm_is_replicated_once() {
    let (mut world, job) = World::replicating();
    let refused = error(world.replicate());
    assert_eq!((refused.kind, refused.refusals.len()), (ApiErrorKind::Refused, 1));
    assert_eq!(refused.refusals[0].code, RefusalCode::VmInJob);
    assert!(refused.refusals[0].message.contains(&job.to_string()), "{refused:?}");
    world.ask(ApiRequest::JobCancel { job });
    assert_eq!(world.state_of(job), JobState::Terminated);
    world.end(world.begun[0], EventBody::Terminated);
    assert_ne!(started(&world.replicate()), job);
}

#[test]
fn what_cannot_be_replicated_is_refused_at_once_and_not_at_its_turn() {
    let mut world = World::new(1, 1);
    let request = MoveRequest {
        kind: JobKind::Replicate,
        vm: "vm0".into(),
        bandwidth: Some(sterna_shared::units::Bandwidth(1)),
        ..example::request()
    };
    let asked = |request: &MoveRequest, idle: u32| ApiRequest::Migrate {
        request: request.clone(),
        dry_run: false,
        job: example::job(60),
        policy: Box::new(Policy { schedule: Some(Schedule::after_pauses(idle)), ..Policy::default() }),
    };
    let refused = error(world.ask(asked(&request, 10)));
    assert_eq!(refused.refusals.iter().map(|refusal| refusal.code).collect::<Vec<_>>(), [RefusalCode::InvalidValue]);
    assert!(refused.message.contains("vm0 cannot be replicated"), "{}", refused.message);
    assert_eq!(error(world.ask(asked(&MoveRequest { bandwidth: None, ..request }, 0))).kind, ApiErrorKind::Invalid);
}

#[test]
fn a_pause_lasts_until_it_is_resumed_and_then_a_cycle_begins() {
    let (mut world, job) = World::replicating();
    world.ask_for(job, RequestedState::Suspend);
    world.ask(ApiRequest::JobCancel { job: world.begun[0] });
    world.end(world.begun[0], EventBody::Terminated);
    world.wait(100);
    assert_eq!((world.begun.len(), world.state_of(job)), (1, JobState::Suspended));
    assert_eq!(world.view().state, ReplicaState::Paused);
    assert!(!world.view().late, "nobody waits for it");
    world.ask_for(job, RequestedState::Start);
    world.wait(1);
    assert_eq!((world.begun.len(), world.state_of(job)), (2, JobState::Running));
}

#[test]
fn how_a_replication_stands_is_told_in_the_words_of_a_migrating_vm() {
    let mut world = World::new(1, 1);
    let moving = world.submit(0, Policy::default());
    let job = started(&world.replicate());
    assert_eq!(world.view().state, ReplicaState::Ready);
    world.end(moving, DONE);
    world.wait(1);
    let view = world.view();
    assert_eq!((view.state, view.replication, view.age_seconds), (ReplicaState::FirstSync, Some(job), None));
    assert!(view.replica.is_none() && view.host.as_str() == "beta" && view.name.as_str() == "vm0");
    world.end_cycle();
    world.wait(5);
    let view = world.view();
    assert_eq!((view.state, view.age_seconds, view.late), (ReplicaState::Active, Some(5), false));
    assert_eq!((view.cycles.len(), view.idle_seconds), (1, Some(IDLE)));
    world.wait(10);
    world.end(*world.begun.last().expect("the second"), failed());
    world.wait(1);
    assert_eq!(world.view().state, ReplicaState::Error);
    world.wait(u64::from(IDLE) + 1);
    world.accept();
    world.wait(60);
    let view = world.view();
    assert_eq!((view.state, view.late), (ReplicaState::Active, true), "the third cycle takes too long");
    world.end_cycle();
    assert!(!world.view().late);
    world.ask(ApiRequest::JobCancel { job });
    let view = world.view();
    assert_eq!((view.state, view.replication, view.late), (ReplicaState::Finalized, None, false));
    assert!(view.replica.is_some(), "it is kept until it is removed");
    let names =
        [ReplicaState::Ready, ReplicaState::FirstSync, ReplicaState::Active, ReplicaState::Paused, ReplicaState::Error];
    for state in names {
        assert_eq!(serde_json::to_value(state).expect("JSON"), state.to_string());
    }
}

/// Other jobs of a group run one after the other, and end when one before them fails.
#[test]
fn cycles_of_a_group_do_not_wait_for_each_other() {
    let mut world = World::new(2, 5);
    let policy = |group: Option<&str>| Policy {
        schedule: Some(Schedule::after_pauses(IDLE)),
        group: group.map(ToOwned::to_owned),
        ..Policy::default()
    };
    for (number, group) in [(0, Some("shop")), (1, None)] {
        let request = MoveRequest { kind: JobKind::Replicate, vm: format!("vm{number}"), ..example::request() };
        world.submit_as(example::job(60 + number), request, policy(group));
    }
    let changes = vec![JobChange::Group { group: Some("shop".to_owned()) }];
    assert!(matches!(world.ask(ApiRequest::JobEdit { job: example::job(61), changes }), ApiReply::Done));
    world.wait(2);
    assert_eq!(world.begun.len(), 2);
    world.end(world.begun[0], failed());
    world.wait(1);
    assert!(!world.state_of(world.begun[1]).is_final(), "one that fails is no matter of the other");
    match world.ask(ApiRequest::JobGroup { group: "shop".into() }) {
        ApiReply::Jobs { jobs, .. } => {
            let jobs: Vec<JobId> = jobs.iter().map(|status| status.job).collect();
            assert_eq!(jobs, [example::job(60), example::job(61)]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_replica_in_use_is_not_dropped() {
    let (mut world, job) = World::replicating();
    let ask = |vm: &str| ApiRequest::ReplicaDrop { vm: vm.to_owned(), host: "beta".parse().expect("a name") };
    world.end_cycle();
    world.wait(u64::from(IDLE) + 2);
    world.accept();
    assert!(error(world.ask(ask("vm0"))).message.contains("uses the replica"));
    world.ask(ApiRequest::JobCancel { job });
    assert_eq!(error(world.ask(ask("vm0"))).kind, ApiErrorKind::Refused, "its cycle is not over yet");
    world.end(*world.begun.last().expect("a cycle"), EventBody::Terminated);
    assert_eq!(error(world.ask(ask("other"))).kind, ApiErrorKind::NotFound);
    let before = world.answers.len();
    world.apply(Event::Asked { call: 9, request: Box::new(ask("vm0")), token: Token::from_bytes([7; 32]) });
    assert_eq!(world.answers.len(), before, "its host answers");
}

#[test]
fn a_clone_is_made_while_replication_goes_on() {
    let (mut world, _) = World::replicating();
    world.end_cycle();
    world.wait(u64::from(IDLE) + 2);
    assert_eq!(world.begun.len(), 2);
    world.commanded.clear();
    let request = MoveRequest { vm: "vm0".into(), ..example::clone_request() };
    let clone = world.submit_as(example::job(70), request, Policy::default());
    assert_eq!(world.begun.last(), Some(&clone));
    assert_eq!(world.commanded, ["beta".parse::<HostId>().expect("a name")], "its host alone has a part in it");
    let plan = &world.state.jobs[&clone].status.plan;
    let (of, id): (VmId, VmId) = (plan.clone.as_ref().expect("a clone").replica, plan.vm.id);
    assert_eq!((of, world.state_of(clone)), (world.replicas[0].vm.id, JobState::New));
    assert_ne!(of, id);
    world.end(clone, DONE);
    assert_eq!(world.state_of(clone), JobState::Completed);
}

#[test]
fn a_vm_that_stands_on_something_is_made_by_a_clone_only() {
    let mut world = World::new(1, 1);
    let mut spec = example::vm("new");
    spec.id = "0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID");
    let pool = "fast".parse().expect("a name");
    spec.disks[0].base = Some(sterna_shared::replica::Base { replica: spec.id, layer: 1, pool });
    let host = "alpha".parse().expect("a name");
    let refused = error(world.ask(ApiRequest::VmDefine { host, spec: Box::new(spec) }));
    assert!(refused.hints.iter().any(|hint| hint.contains("sterna clone create")), "{refused:?}");
}

#[test]
fn how_fast_a_cycle_was_of_late_is_kept_while_it_copies() {
    let (mut world, _) = World::replicating();
    world.accept();
    let cycle = *world.begun.last().expect("a cycle");
    let heard = |world: &mut World, host: &str, done: u64| {
        let progress = Progress {
            job: cycle,
            host: host.parse().expect("a name"),
            at: example::now(),
            step: StepKind::CopyDisks,
            pass: 0,
            disk: Volume { total: 1 << 30, done, ..Volume::default() },
            memory: Volume::default(),
            bytes_per_second: 0,
            remaining_seconds: None,
        };
        world.apply(Event::Progressed(Box::new(progress)));
    };
    let rates = |world: &mut World| match world.ask(ApiRequest::JobShow { job: cycle }) {
        ApiReply::Job { rates, .. } => rates,
        other => panic!("{other:?}"),
    };
    assert_eq!(rates(&mut world), Rates::default(), "nothing was heard");
    heard(&mut world, "alpha", 1_000);
    world.wait(10);
    heard(&mut world, "alpha", 21_000);
    heard(&mut world, "beta", 5);
    assert_eq!(rates(&mut world), Rates { two_minutes: Some(2_000), thirty_minutes: Some(2_000) });
    let listed = |world: &mut World| match world.ask(ApiRequest::JobList) {
        ApiReply::Jobs { progress, .. } => progress.iter().map(|progress| progress.job).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(listed(&mut world), [cycle], "a list tells how far jobs are");
    world.wait(200);
    heard(&mut world, "alpha", 21_000);
    assert_eq!(rates(&mut world), Rates { two_minutes: Some(0), thirty_minutes: Some(20_000 / 210) });
    world.end(cycle, DONE);
    assert_eq!(rates(&mut world), Rates::default(), "it is over");
    assert_eq!(listed(&mut world), Vec::<JobId>::new(), "nor has it progress any more");
}

#[test]
fn the_feed_has_the_age_of_each_replica_and_marks_those_that_are_late() {
    let (mut world, job) = World::replicating();
    world.accept();
    world.wait(2);
    let key = format!("replica.{}", world.view().vm);
    let first = world.feed[&key].clone();
    assert_eq!(
        (&first["state"], &first["snapshot"], &first["late"]),
        (&"FIRST_SYNC".into(), &().into(), &false.into())
    );
    world.end_cycle();
    world.wait(1);
    let told = world.feed[&key].clone();
    assert_eq!((&told["state"], &told["snapshot"], &told["host"]), (&"ACTIVE".into(), &1.into(), &"beta".into()));
    assert_eq!((&told["job"], &told["age_seconds"]), (&job.to_string().into(), &1.into()));
    // The next cycle does not end.
    world.wait(u64::from(IDLE) + 2);
    world.accept();
    let before = world.fed;
    world.wait(600);
    let late = &world.feed[&key];
    assert_eq!((&late["snapshot"], &late["late"]), (&1.into(), &true.into()));
    let age = late["age_seconds"].as_u64().expect("an age");
    assert!((550..=613).contains(&age), "{age}");
    assert!((10..=12).contains(&(world.fed - before)), "an age alone is told once a minute: {}", world.fed - before);
}

#[test]
fn the_last_value_of_a_replication_goes_with_it() {
    let (mut world, job) = World::replicating();
    world.accept();
    world.end_cycle();
    world.wait(1);
    let key = format!("replica.{}", world.view().vm);
    world.ask(ApiRequest::JobCancel { job });
    world.target_silent = true;
    world.wait(60);
    assert_eq!(world.feed[&key]["job"], serde_json::Value::Null, "nothing keeps the replica, which is there");
    world.target_silent = false;
    world.replicas.clear();
    world.wait(2);
    assert!(!world.feed.contains_key(&key));
}

#[test]
fn turns_that_wait_for_a_vm_that_is_shut_down_are_told_of_once_and_together() {
    let mut world = World::new(1, 1);
    // Not at the time of a turn.
    world.clock = 43_200;
    world.wait(1);
    let schedule = Schedule { missed: Missed::Skip, ..Schedule::repeated(Rule::daily(Duration::ZERO, Zone::Utc)) };
    let request = MoveRequest { kind: JobKind::Replicate, vm: "vm0".into(), ..example::request() };
    let policy = Policy { schedule: Some(schedule), ..Policy::default() };
    let job = world.submit_as(example::job(60), request, policy);
    world.ask_for(job, RequestedState::Start);
    world.wait(1);
    (world.shut_down, world.unchanged_since) = (true, Some(world.begun[0]));
    world.accept();
    world.end_cycle();
    let told =
        |world: &World| world.events.iter().filter(|event| matches!(event.body, EventBody::RunsSkipped { .. })).count();
    let days = |world: &mut World, days: u32| {
        for _ in 0..days {
            world.clock += 86_400;
            world.wait(1);
        }
    };
    days(&mut world, 20);
    assert_eq!((world.begun.len(), told(&world)), (1, 0), "there was nothing to be sent");
    (world.shut_down, world.unchanged_since) = (false, None);
    days(&mut world, 1);
    let notices = &world.state.jobs[&job].status.notices;
    assert_eq!((world.begun.len(), told(&world), notices.len()), (1, 1, 1), "one word of all of them");
    assert!(notices[0].text.starts_with("21 turns"), "{notices:?}");
    days(&mut world, 2);
    assert_eq!(told(&world), 3, "of a VM that runs each is told");
}
