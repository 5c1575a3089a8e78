//! Checks that are jobs.

use sterna_shared::bus::AgentReply;
use sterna_shared::job::{
    CheckReport, DiskPlacement, Finding, JobKind, Refusal, RefusalCode, Severity, StepFigures, StepKind,
};
use sterna_shared::probe::ProbeReport;

use super::*;

impl World {
    fn check(&mut self, number: u8, kind: JobKind, change: impl FnOnce(&mut MoveRequest)) -> JobId {
        let mut request = MoveRequest { kind, vm: format!("vm{number}"), ..example::request() };
        change(&mut request);
        self.submit_as(example::job(50 + number), request, Policy::default())
    }

    /// Both agents answer the oldest check that waits for them, with clocks that are right and nothing measured.
    fn agents_answer(&mut self) {
        let (check, _) = self.asked.remove(0);
        let at = self.now().at;
        let probed = || {
            let report = ProbeReport { at, path: None, guest: None };
            Ok(AgentReply::Probed { report: Box::new(report) })
        };
        let answers = CheckAnswers { expect: Ok(AgentReply::Done), probe: probed(), clock: probed() };
        self.apply(Event::Checked { check, answers: Box::new(answers) });
    }

    fn report_of(&self, job: JobId) -> &CheckReport {
        self.state.jobs[&job].status.check.as_deref().expect("a report")
    }
}

#[test]
fn a_check_takes_no_slot_and_is_in_nobodys_way() {
    let mut world = World::new(2, 1);
    world.submit(1, Policy::default());
    let check = world.check(0, JobKind::Check, |_| {});
    assert_eq!(world.state_of(check), JobState::Running, "the target's one slot is taken, and it needs none");
    let moved = world.submit(0, Policy::default());
    assert_eq!(world.state_of(moved), JobState::New);
    world.end(world.begun[0], EventBody::Completed { blackout_us: 1 });
    assert!(world.begun.contains(&moved), "its VM is not held by the check");
    world.commanded.clear();
    world.agents_answer();
    assert_eq!(world.state_of(check), JobState::Completed);
    assert!(world.report_of(check).migratable);
    assert_eq!(world.state.jobs[&check].status.blackout_us, None, "the guest was left alone");
    assert!(world.commanded.is_empty(), "no agent has a part in it");
}

#[test]
fn a_check_that_is_not_passed_fails_with_all_that_it_found() {
    let mut world = World::new(1, 1);
    let check = world.check(0, JobKind::Check, |request| {
        request.lanes = Some(99);
        let (disk, pool) = ("root".parse().expect("a name"), "nowhere".parse().expect("a name"));
        request.disks = vec![DiskPlacement { disk, pool, format: None }];
    });
    world.agents_answer();
    let status = &world.state.jobs[&check].status;
    assert_eq!(status.state, JobState::Exception);
    let failure = status.failure.as_ref().expect("a failure");
    assert_eq!(failure.code, FailureCode::NotMigratable);
    // The certificates of the example do not last.
    let codes: Vec<RefusalCode> = world.report_of(check).findings.iter().map(|found| found.reason.code).collect();
    let soon = RefusalCode::CertificateExpiring;
    assert_eq!(codes, [RefusalCode::UnknownPool, RefusalCode::InvalidValue, soon, soon]);
    assert!(failure.message.contains("no pool nowhere"), "{}", failure.message);
    assert_eq!(failure.causes.len(), 3);
    assert!(failure.causes[0].contains("99 lanes") && failure.causes[0].contains("; give 1 to"), "{failure:?}");
}

#[test]
fn what_is_not_known_at_all_is_refused_and_what_is_no_more_is_found() {
    let mut world = World::new(1, 1);
    let request = MoveRequest { kind: JobKind::Check, vm: "nobody".into(), ..example::request() };
    let ask =
        ApiRequest::Migrate { request, dry_run: false, job: example::job(60), policy: Box::new(Policy::default()) };
    let reply = world.ask(ask);
    assert!(
        matches!(&reply, ApiReply::Error { error } if error.refusals[0].code == RefusalCode::UnknownVm),
        "{reply:?}"
    );

    let minute = Timestamp::from_unix_microseconds(world.now().at.unix_microseconds() + 60_000_000);
    let schedule = Some(Schedule::once(minute));
    let request = MoveRequest { kind: JobKind::Check, vm: "vm0".into(), ..example::request() };
    let check = world.submit_as(example::job(61), request, Policy { schedule, ..Policy::default() });
    world.vms = 0;
    world.wait(63);
    assert_eq!(world.state_of(check), JobState::New, "it may be heard of yet");
    world.wait(10);
    assert_eq!(world.state_of(check), JobState::Exception);
    assert_eq!(world.report_of(check).findings[0].reason.code, RefusalCode::UnknownVm);
}

#[test]
fn a_check_under_way_can_be_ended_suspended_and_begun_anew() {
    let mut world = World::new(1, 1);
    let check = world.check(0, JobKind::Check, |_| {});
    let suspend = ApiRequest::JobState { job: check, requested: RequestedState::Suspend.number(), timeout_ms: None };
    world.ask(suspend);
    assert_eq!(world.state_of(check), JobState::Suspended);
    world.agents_answer();
    assert_eq!(world.state_of(check), JobState::Suspended, "nobody waits for that answer any more");
    world.ask(ApiRequest::JobState { job: check, requested: RequestedState::Start.number(), timeout_ms: None });
    assert_eq!((world.state_of(check), world.attempt(check)), (JobState::Running, 1));
    world.ask(ApiRequest::JobCancel { job: check });
    assert_eq!(world.state_of(check), JobState::Terminated);
    world.agents_answer();
    assert_eq!(world.state_of(check), JobState::Terminated);
    assert!(world.commanded.is_empty());
}

#[test]
fn a_coordinator_that_takes_over_begins_a_check_anew() {
    let mut world = World::new(1, 1);
    let check = world.check(0, JobKind::Check, |_| {});
    assert_eq!(world.asked.len(), 1);
    // All that the next one has is the events.
    world.state.checks.clear();
    world.asked.clear();
    world.apply(Event::Tick);
    assert_eq!(world.asked.len(), 1, "the agents are asked again");
    world.apply(Event::Tick);
    assert_eq!(world.asked.len(), 1, "once");
    world.agents_answer();
    assert_eq!(world.state_of(check), JobState::Completed);
}

#[test]
fn a_deep_check_is_read_by_the_source_and_then_made() {
    let mut world = World::new(1, 1);
    let stays = |request: &mut MoveRequest| {
        (request.target, request.storage_only, request.disks) = (None, true, vec![]);
    };
    let check = world.check(0, JobKind::DeepCheck, stays);
    assert_eq!(world.commanded, ["alpha".parse::<HostId>().expect("a name")]);
    let finding = Finding {
        severity: Severity::Error,
        reason: Refusal {
            code: RefusalCode::DiskUnreadable,
            message: "disk root cannot be read at 65536".to_owned(),
            remedy: "save it".to_owned(),
        },
    };
    let accepted = world.accepted(check);
    world.tell(
        check,
        [
            accepted,
            EventBody::StepStarted { step: StepKind::ReadDisks },
            EventBody::DisksRead { findings: vec![finding.clone()], figures: StepFigures::default() },
        ],
    );
    world.agents_answer();
    let failure = world.state.jobs[&check].status.failure.clone().expect("a failure");
    assert_eq!((failure.code, failure.message.as_str()), (FailureCode::DiskRead, "disk root cannot be read at 65536"));
    assert_eq!(world.report_of(check).findings[0], finding);
    assert_eq!(world.report_of(check).findings.len(), 2, "and its one host's certificate");
}
