//! Replications that expire, and are extended; and that are finalized: when they may be, what goes first, and that a coordinator which
//! takes over goes on with it.

use sterna_shared::bus::ApiErrorKind;
use sterna_shared::job::{EXTENSIONS_MAX, Expiration, Finalization, JobKind, JobStatus, RefusalCode};
use sterna_shared::replica::ReplicaState;

use super::replication::error;
use super::*;

impl World {
    /// A replication whose VM was cut over; its recurring job.
    pub(super) fn cut_over() -> (Self, JobId) {
        let (mut world, job) = Self::replicating();
        world.accept();
        world.end_cycle();
        let request = MoveRequest { kind: JobKind::Cutover, vm: "vm0".into(), target: None, ..example::request() };
        let cutover = world.submit_as(example::job(80), request, Policy::default());
        assert_eq!(world.begun.last(), Some(&cutover));
        world.end(cutover, DONE);
        (world.cut_over, world.keeps) = (true, true);
        world.beat(1);
        (world, job)
    }

    /// A replication with a cycle every ten seconds that expires after so many.
    fn expiring(seconds: i64) -> (Self, JobId) {
        let mut world = Self::new(1, 1);
        let expiration = Some(Expiration::at(example::later(seconds)));
        let policy = Policy { schedule: Some(Schedule::after_pauses(10)), expiration, ..Policy::default() };
        let request = MoveRequest { kind: JobKind::Replicate, vm: "vm0".into(), ..example::request() };
        let job = world.submit_as(example::job(60), request, policy);
        world.wait(1);
        (world, job)
    }

    fn extend(&mut self, by_seconds: u32) -> ApiReply {
        self.ask(ApiRequest::ReplicaExtend { vm: "vm0".into(), by_seconds: Some(by_seconds) })
    }

    /// Cycles are made as soon as they may be, for so long.
    fn cycles(&mut self, seconds: u64) {
        for _ in 0..seconds {
            if !self.state_of(*self.begun.last().expect("a cycle")).is_final() {
                self.accept();
                self.end_cycle();
            }
            self.wait(1);
        }
    }

    fn finalize(&mut self) -> JobStatus {
        match self.ask(ApiRequest::ReplicaFinalize { vm: "vm0".into() }) {
            ApiReply::Job { status, .. } => *status,
            other => panic!("{other:?}"),
        }
    }

    /// What a host was asked, which answers so.
    fn answer(&mut self, host: &str, reply: Result<AgentReply, String>) -> AgentRequest {
        let place = self.letting_go.iter().position(|(_, asked, _)| asked.as_str() == host).expect("it was asked");
        let (job, host, request) = self.letting_go.remove(place);
        self.apply(Event::LetGo { job, host, reply });
        request
    }

    fn is_asked(&self) -> Vec<&str> {
        self.letting_go.iter().map(|(_, host, _)| host.as_str()).collect()
    }
}

#[test]
fn what_is_not_cut_over_is_not_finalized() {
    let (mut world, _) = World::replicating();
    let ask = |world: &mut World, vm: &str| error(world.ask(ApiRequest::ReplicaFinalize { vm: vm.into() }));
    assert_eq!(ask(&mut world, "other").kind, ApiErrorKind::NotFound);
    world.accept();
    world.end_cycle();
    let refused = ask(&mut world, "vm0");
    assert_eq!((refused.kind, refused.refusals[0].code), (ApiErrorKind::Refused, RefusalCode::NotCutOver));
    assert!(refused.refusals[0].message.contains("is at alpha, and its replica at beta"), "{refused:?}");
    assert!(refused.refusals[0].remedy.contains("sterna cutover start vm0"), "{refused:?}");
    // And not while it is moved back.
    let (mut world, _) = World::cut_over();
    let back = MoveRequest { vm: "vm0".into(), target: "alpha".parse().ok(), ..example::request() };
    world.submit_as(example::job(81), back, Policy::default());
    assert_eq!(ask(&mut world, "vm0").refusals[0].code, RefusalCode::VmInJob);
}

#[test]
fn a_finalized_replication_is_over_once_no_host_keeps_anything() {
    let (mut world, job) = World::cut_over();
    let Finalization { hosts, .. } = world.finalize().finalization.expect("it is finalized");
    assert_eq!(hosts, ["alpha", "beta"].map(|host| host.parse::<HostId>().expect("a name")));
    assert_eq!(world.view().state, ReplicaState::Finalizing);
    world.wait(2);
    assert_eq!(world.is_asked(), ["beta"], "once, and the way back goes last");
    world.answer("beta", Err("no answer".into()));
    world.wait(8);
    assert!(world.is_asked().is_empty(), "it is asked again after a while");
    world.wait(3);
    assert!(matches!(world.answer("beta", Ok(AgentReply::Done)), AgentRequest::ReplicaDrop { .. }));
    world.replicas.clear();
    world.wait(2);
    assert!(matches!(world.answer("alpha", Ok(AgentReply::Done)), AgentRequest::VmDrop { .. }), "the way back");
    world.wait(2);
    assert!(
        !world.state_of(job).is_final() && world.is_asked().is_empty(),
        "its next heartbeat tells whether it is gone"
    );
    let notices = &world.state.jobs[&job].status.notices;
    assert_eq!(notices.iter().filter(|notice| notice.text.contains("beta does not let go")).count(), 1, "{notices:?}");
    world.keeps = false;
    world.wait(1);
    assert_eq!(world.state_of(job), JobState::Completed);
    assert_eq!((world.finalize().job, world.is_asked()), (job, vec![]), "asked again, it is as it was");
    world.wait(60);
    assert!(world.letting_go.is_empty(), "nobody is asked any more");
}

#[test]
fn a_coordinator_that_takes_over_goes_on_finalizing() {
    let (mut world, job) = World::cut_over();
    world.finalize();
    world.wait(1);
    world.answer("beta", Ok(AgentReply::Done));
    world.letting_go.clear();
    world.restart();
    assert_eq!(world.view().state, ReplicaState::Finalizing);
    assert_eq!(world.is_asked(), ["beta"], "anew");
    world.answer("beta", Ok(AgentReply::Done));
    world.wait(2);
    assert!(!world.state_of(job).is_final());
    assert!(matches!(world.answer("alpha", Ok(AgentReply::Done)), AgentRequest::VmDrop { .. }));
    world.keeps = false;
    world.wait(1);
    assert_eq!(world.state_of(job), JobState::Completed);
}

/// The way back, or the replica, may be all that there is.
#[test]
fn nothing_goes_while_the_vm_is_not_certainly_at_the_target() {
    let (mut world, job) = World::cut_over();
    world.target_silent = true;
    world.wait(60);
    let refused = error(world.ask(ApiRequest::ReplicaFinalize { vm: "vm0".into() }));
    assert_eq!(refused.refusals[0].code, RefusalCode::HostOffline, "{refused:?}");
    world.target_silent = false;
    world.wait(1);
    world.finalize();
    world.wait(1);
    world.answer("beta", Ok(AgentReply::Done));
    // It is gone between the one and the other.
    world.target_silent = true;
    world.wait(1);
    world.letting_go.clear();
    world.restart();
    world.wait(60);
    assert!(world.is_asked().is_empty(), "{:?}", world.letting_go);
    world.target_silent = false;
    world.wait(1);
    assert_eq!(world.is_asked(), ["beta"]);
    world.answer("beta", Ok(AgentReply::Done));
    // It was moved away.
    world.cut_over = false;
    world.wait(60);
    assert!(world.is_asked().is_empty() && !world.state_of(job).is_final(), "{:?}", world.letting_go);
}

/// The way back may be all that is left of a VM whose host is silent.
#[test]
fn the_way_back_goes_once_the_vm_is_deleted_and_not_when_that_is_refused() {
    let (mut world, _) = World::cut_over();
    let delete = || ApiRequest::VmDelete { vm: "vm0".into(), delete_disks: true };
    world.target_silent = true;
    world.wait(11);
    assert_eq!(error(world.ask(delete())).kind, ApiErrorKind::Unreachable);
    assert!(world.dropping.is_empty());
    world.target_silent = false;
    world.wait(1);
    let busy = crate::api::fault(ApiErrorKind::Refused, "the VM runs", "stop it");
    for (call, reply) in [(5, Ok(AgentReply::Error { error: busy })), (6, Err("no answer".into()))] {
        world.apply(Event::Asked { call, request: Box::new(delete()), token: Token::from_bytes([7; 32]) });
        let (host, request) = world.forwarded.pop().expect("its host is asked");
        assert!(matches!(request, AgentRequest::VmDelete { .. }), "{request:?}");
        world.apply(Event::Answered { call, host, reply });
        assert!(matches!(world.answers.pop(), Some(ApiReply::Error { .. })));
        assert!(world.dropping.is_empty());
    }
    world.apply(Event::Asked { call: 7, request: Box::new(delete()), token: Token::from_bytes([7; 32]) });
    let host = "beta".parse().expect("a name");
    world.apply(Event::Answered { call: 7, host, reply: Ok(AgentReply::Done) });
    assert!(matches!(world.answers.pop(), Some(ApiReply::Done)));
    assert_eq!(world.dropping, ["alpha".parse::<HostId>().expect("a name")]);
}

#[test]
fn no_job_of_a_vm_begins_while_its_replication_is_finalized_nor_is_it_while_one_waits() {
    let (mut world, job) = World::cut_over();
    let move_it = |at: Option<i64>| {
        let schedule = at.map(|seconds| Schedule::once(example::later(seconds)));
        let policy = Box::new(Policy { schedule, ..Policy::default() });
        let request =
            MoveRequest { vm: "vm0".into(), target: Some("alpha".parse().expect("a name")), ..example::request() };
        ApiRequest::Migrate { request, dry_run: false, job: example::job(90), policy }
    };
    assert!(matches!(world.ask(move_it(Some(100_000))), ApiReply::JobStarted { .. }));
    let refused = error(world.ask(ApiRequest::ReplicaFinalize { vm: "vm0".into() }));
    assert_eq!(refused.refusals[0].code, RefusalCode::VmInJob, "{refused:?}");
    world.ask(ApiRequest::JobCancel { job: example::job(90) });
    world.finalize();
    let mut again = move_it(Some(100_000));
    let ApiRequest::Migrate { job: id, .. } = &mut again else { unreachable!() };
    *id = example::job(91);
    let refused = error(world.ask(again));
    assert!(refused.refusals.iter().any(|why| why.message.contains("is being finalized")), "{refused:?}");
    assert!(matches!(world.ask(ApiRequest::JobCancel { job }), ApiReply::Done | ApiReply::Job { .. }));
    // Called off, it does not bar a second try.
    assert_eq!(error(world.ask(ApiRequest::ReplicaFinalize { vm: "vm0".into() })).kind, ApiErrorKind::Refused);
}

#[test]
fn a_failed_cycle_is_not_tried_again_once_its_replication_has_expired() {
    let mut world = World::new(1, 1);
    let expiration = Some(Expiration::at(example::later(20)));
    let recovery = Recovery::Rerun { times: 9, pause_seconds: 5 };
    let policy = Policy { schedule: Some(Schedule::after_pauses(1000)), expiration, recovery, ..Policy::default() };
    let request = MoveRequest { kind: JobKind::Replicate, vm: "vm0".into(), ..example::request() };
    world.submit_as(example::job(60), request, policy);
    world.wait(1);
    for _ in 0..60 {
        let last = *world.begun.last().expect("a cycle");
        if !world.state_of(last).is_final() {
            world.end(last, failed());
        }
        world.wait(1);
    }
    let queued = world.state.jobs.values().filter(|job| job.status.parent.is_some() && !job.status.state.is_final());
    assert_eq!((world.begun.len(), queued.count()), (3, 0), "at once, after 5 and after 15 s");
}

#[test]
fn no_cycle_is_made_of_a_replication_that_is_finalized() {
    let (mut world, job) = World::cut_over();
    world.finalize();
    let begun = world.begun.len();
    // Somebody has moved the VM away.
    (world.cut_over, world.keeps) = (false, false);
    world.wait(60);
    assert_eq!(world.begun.len(), begun);
    world.ask(ApiRequest::JobCancel { job });
    assert_eq!(world.state_of(job), JobState::Terminated, "it can be ended without the hosts");
    world.wait(60);
    assert_eq!(world.begun.len(), begun);
}

#[test]
fn what_has_expired_makes_no_cycle_until_it_is_extended() {
    let (mut world, job) = World::expiring(25);
    let notices = |world: &World| {
        let notices = &world.state.jobs[&job].status.notices;
        notices.iter().filter(|notice| notice.text.contains("sterna replicate extend vm0")).count()
    };
    assert!(world.view().expires_soon && notices(&world) == 1, "it says so before");
    world.cycles(40);
    assert_eq!((world.begun.len(), notices(&world)), (3, 1), "at once, after 11 and after 22 s; and once is enough");
    let view = world.view();
    assert_eq!((view.state, view.late, view.expires_soon), (ReplicaState::Expired, false, false));
    assert!(view.replica.is_some() && view.expires_at == Some(example::later(25)), "the replica stays");
    world.restart();
    world.wait(20);
    assert_eq!((world.begun.len(), world.view().state), (3, ReplicaState::Expired));
    assert!(matches!(world.extend(100), ApiReply::Job { .. }));
    world.cycles(2);
    assert_eq!((world.begun.len(), world.view().state), (4, ReplicaState::Active));
    let expiration = world.state.jobs[&job].status.policy.expiration.expect("it expires");
    assert!(expiration.extensions == 1 && expiration.is_near(world.now().at) && notices(&world) == 2, "{expiration:?}");
    let cycle = &world.state.jobs[world.begun.last().expect("a cycle")].status;
    assert_eq!(cycle.policy.expiration, None, "it is the replication that expires");
}

#[test]
fn an_expiry_is_pushed_back_so_often() {
    let (mut world, _) = World::expiring(1_000);
    assert_eq!(error(world.extend(0)).kind, ApiErrorKind::Invalid);
    for _ in 0..EXTENSIONS_MAX {
        assert!(matches!(world.extend(10), ApiReply::Job { .. }));
    }
    assert_eq!(world.view().expires_at, Some(example::later(1_000 + 10 * i64::from(EXTENSIONS_MAX))));
    assert_eq!(error(world.extend(10)).refusals[0].code, RefusalCode::NotExtendable);
    let (mut world, _) = World::replicating();
    let refused = error(world.extend(10));
    assert!(refused.refusals[0].message.contains("does not expire"), "{refused:?}");
}

#[test]
fn only_a_replication_that_goes_on_expires_and_not_before_it_was_asked_for() {
    let mut world = World::new(1, 1);
    let mut ask = |kind, schedule, seconds| {
        let policy =
            Policy { schedule, expiration: Some(Expiration::at(example::later(seconds))), ..Policy::default() };
        let request = MoveRequest { kind, vm: "vm0".into(), ..example::request() };
        let (job, policy) = (example::job(60), Box::new(policy));
        world.ask(ApiRequest::Migrate { request, dry_run: true, job, policy })
    };
    let again = || Some(Schedule::after_pauses(10));
    for (kind, schedule, seconds) in
        [(JobKind::Move, again(), 60), (JobKind::Replicate, None, 60), (JobKind::Replicate, again(), 0)]
    {
        assert_eq!(error(ask(kind, schedule, seconds)).kind, ApiErrorKind::Invalid, "{kind:?} {seconds}");
    }
    assert!(matches!(ask(JobKind::Replicate, again(), 60), ApiReply::Plan { .. }));
}
