//! Replications that are finalized: when they may be, what goes first, and that a coordinator which takes over goes on with it.

use sterna_shared::bus::{AgentReply, ApiErrorKind};
use sterna_shared::job::{Finalization, JobKind, JobStatus, RefusalCode};
use sterna_shared::replica::ReplicaState;

use super::replication::error;
use super::*;

impl World {
    /// A replication whose VM was cut over; its recurring job.
    fn cut_over() -> (Self, JobId) {
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
    assert_eq!(ask(&mut world, "vm0").refusals[0].code, RefusalCode::VmInJob, "a cycle has it");
    world.accept();
    world.end_cycle();
    let refused = ask(&mut world, "vm0");
    assert_eq!((refused.kind, refused.refusals[0].code), (ApiErrorKind::Refused, RefusalCode::NotCutOver));
    assert!(refused.refusals[0].message.contains("is at alpha, and its replica at beta"), "{refused:?}");
    assert!(refused.refusals[0].remedy.contains("sterna cutover start vm0"), "{refused:?}");
}

#[test]
fn a_finalized_replication_is_over_once_no_host_keeps_anything() {
    let (mut world, job) = World::cut_over();
    let Finalization { hosts, .. } = world.finalize().finalization.expect("it is finalized");
    assert_eq!(hosts, ["alpha", "beta"].map(|host| host.parse::<HostId>().expect("a name")));
    assert_eq!(world.view().state, ReplicaState::Finalizing);
    world.wait(2);
    assert_eq!(world.is_asked(), ["alpha", "beta"], "each once");
    assert!(matches!(world.answer("beta", Ok(AgentReply::Done)), AgentRequest::ReplicaDrop { .. }));
    world.replicas.clear();
    world.answer("alpha", Err("no answer".into()));
    world.wait(8);
    assert!(world.is_asked().is_empty(), "it is asked again after a while");
    world.wait(3);
    assert!(matches!(world.answer("alpha", Ok(AgentReply::Done)), AgentRequest::ReplicaDrop { .. }));
    world.wait(1);
    assert!(matches!(world.answer("alpha", Ok(AgentReply::Done)), AgentRequest::VmDrop { .. }), "the way back");
    assert!(!world.state_of(job).is_final(), "whether it is gone its next heartbeat tells");
    let notices = &world.state.jobs[&job].status.notices;
    assert_eq!(notices.iter().filter(|notice| notice.text.contains("alpha does not let go")).count(), 1, "{notices:?}");
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
    assert_eq!(world.is_asked(), ["alpha", "beta"], "all anew");
    world.keeps = false;
    for host in ["alpha", "beta"] {
        world.answer(host, Ok(AgentReply::Done));
    }
    world.wait(1);
    assert_eq!(world.state_of(job), JobState::Completed);
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
