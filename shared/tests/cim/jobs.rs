//! Jobs to look at, each told by the events that make it what it is. All times are fixed.

use serde_json::json;
use sterna_shared::id::{Generation, Token};
use sterna_shared::job::{
    CheckReport, DiskMove, Event, EventBody, FailureCode, FailureReport, Finding, Host, JobKind, JobStatus, MoveMode,
    MoveRequest, MoveSettings, Plan, Policy, Progress, Reporter, StepFigures, StepKind, Volume,
};
use sterna_shared::rehearsal::{HealthProbe, Rehearsal};
use sterna_shared::replica::{CloneOf, CutoverOf, Retention, SeedWish};
use sterna_shared::time::Timestamp;
use sterna_shared::units::Bandwidth;
use sterna_shared::view::cim::{Contact, Contacts};
use sterna_shared::vm::{IsolatedAddress, VmSpec};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) const ONLINE: Contacts = Contacts { source: Contact::Online, target: Contact::Online };

/// So many seconds after the plan.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_microseconds((1_795_300_000 + second) * 1_000_000)
}

fn spec(pool: &str) -> VmSpec {
    serde_json::from_value(json!({
        "name": "web",
        "id": "0197c0de-0000-7000-8000-00000000abcd",
        "memory": "512 MiB",
        "disk": [{ "name": "root", "pool": pool, "size": "1536 MiB" }],
    }))
    .expect("a specification")
}

pub(crate) fn plan(mode: MoveMode, copies_disks: bool) -> Plan {
    let host = |name: &str| Host { id: name.parse().expect("a name"), addresses: vec![] };
    let (vm, vm_at_target) = (spec("fast"), spec(if copies_disks { "slow" } else { "fast" }));
    let moved = |source: &VmSpec, target: &VmSpec| DiskMove {
        source: source.disks[0].clone(),
        target: target.disks[0].clone(),
    };
    Plan {
        job: "0197c0de-0000-7000-8000-00000000000a".parse().expect("a UUID"),
        planned_at: at(0),
        attempt: 0,
        kind: JobKind::Move,
        mode,
        disks: if copies_disks { vec![moved(&vm, &vm_at_target)] } else { vec![] },
        vm,
        vm_at_target,
        source: host("alpha"),
        target: host(if mode == MoveMode::Storage { "alpha" } else { "bravo" }),
        generation: Generation(3),
        token: Token::from_bytes([9; 32]),
        lanes: 4,
        bandwidth: Some(Bandwidth(100 * MIB)),
        blackout_max_ms: 2000,
        settings: MoveSettings::default(),
        planned: None,
        hold_seconds: None,
        retention: None,
        clone: None,
        cutover: None,
        steps: Plan::steps_of(JobKind::Move, mode, copies_disks),
    }
}

/// The host that leads accepts the plan and then tells these, one a second: the source where it has a part.
pub(crate) fn told(plan: Plan, bodies: Vec<EventBody>) -> JobStatus {
    let leader = plan.parties().last().copied().expect("an agent has a part").clone();
    let mut status = JobStatus::planned(plan);
    let accepted = EventBody::Accepted { plan: Box::new(status.plan.clone()) };
    for (sequence, body) in (1..).zip(std::iter::once(accepted).chain(bodies)) {
        let reporter = Reporter::Host(leader.clone());
        let second = i64::try_from(sequence).expect("small");
        let event = Event { job: status.job, reporter, sequence, at: at(second), body };
        status.apply(&event).expect("a legal event");
    }
    status
}

/// A job that has to do with a replica of VM `web` at `bravo`, planned as the coordinator plans it, and completed.
pub(crate) fn of_a_replica(kind: JobKind) -> JobStatus {
    let copies = matches!(kind, JobKind::Replicate | JobKind::Cutover);
    let (mode, blackout_us) = if kind == JobKind::Cutover { (MoveMode::Live, 12_345) } else { (MoveMode::Cold, 0) };
    let steps = Plan::steps_of(kind, mode, copies);
    let mut plan = Plan { kind, steps: steps.clone(), ..plan(mode, copies) };
    if !copies {
        plan.source = plan.target.clone();
    }
    match kind {
        JobKind::Replicate => plan.retention = Some(Retention::default()),
        JobKind::Cutover => {
            plan.cutover =
                Some(CutoverOf { snapshot: 2, runs: true, force: false, revert_seconds: 86_400, forecast: None });
        }
        JobKind::Clone | JobKind::Rehearse => {
            let probes = vec![HealthProbe::Tcp(22), HealthProbe::Agent];
            let rehearsal = Rehearsal { probes, probe_seconds: 120, address: IsolatedAddress::default() };
            plan.clone = Some(CloneOf {
                replica: plan.vm.id,
                snapshot: 2,
                full: false,
                start: true,
                hostname: None,
                seed: SeedWish::Auto,
                rehearsal: (kind == JobKind::Rehearse).then_some(rehearsal),
            });
            plan.vm.name = "web-test".parse().expect("a name");
            plan.vm.id = "0197c0de-0000-7000-8000-00000000cdef".parse().expect("a UUID");
            plan.vm_at_target = plan.vm.clone();
        }
        _ => {}
    }
    let taken =
        |step| [EventBody::StepStarted { step }, EventBody::StepFinished { step, figures: StepFigures::default() }];
    let mut bodies: Vec<EventBody> = steps.into_iter().flat_map(taken).collect();
    bodies.push(EventBody::Completed { blackout_us });
    told(plan, bodies)
}

/// A check that was made and not passed.
pub(crate) fn check_failed(findings: Vec<Finding>) -> JobStatus {
    let steps = Plan::steps_of(JobKind::Check, MoveMode::Live, true);
    let mut status = JobStatus::planned(Plan { kind: JobKind::Check, steps, ..plan(MoveMode::Live, true) });
    let causes = findings.iter().skip(1).map(|finding| finding.reason.to_string()).collect();
    let message = format!("VM web cannot be moved like that: {}", findings[0].reason.message);
    let remedy = findings[0].reason.remedy.clone();
    let failure = FailureReport { code: FailureCode::NotMigratable, message, causes, remedy, host: None };
    let report = Box::new(CheckReport::new(findings, None, None, None));
    let bodies = [
        EventBody::StepStarted { step: StepKind::Check },
        EventBody::Checked { report },
        EventBody::Failed { failure },
    ];
    for (sequence, body) in (1..).zip(bodies) {
        let second = i64::try_from(sequence).expect("small");
        let event = Event { job: status.job, reporter: Reporter::Coordinator, sequence, at: at(second), body };
        status.apply(&event).expect("a legal event");
    }
    status
}

/// What a live move tells until that step has begun.
fn until(last: StepKind) -> Vec<EventBody> {
    let mut bodies = Vec::new();
    for step in Plan::steps_of(JobKind::Move, MoveMode::Live, true) {
        bodies.push(EventBody::StepStarted { step });
        if step == last {
            break;
        }
        bodies.push(EventBody::StepFinished { step, figures: StepFigures::default() });
    }
    bodies
}

fn live(step: StepKind, more: impl IntoIterator<Item = EventBody>) -> JobStatus {
    told(plan(MoveMode::Live, true), until(step).into_iter().chain(more).collect())
}

pub(crate) fn planned() -> JobStatus {
    JobStatus::planned(plan(MoveMode::Live, true))
}

pub(crate) fn running() -> JobStatus {
    live(StepKind::CopyDisks, [])
}

pub(crate) fn progress() -> Progress {
    Progress {
        job: plan(MoveMode::Live, true).job,
        host: "alpha".parse().expect("a name"),
        at: at(9),
        step: StepKind::CopyDisks,
        pass: 1,
        disk: Volume { total: 1536 * MIB, done: 768 * MIB, dirtied: 8 * MIB, ..Volume::default() },
        memory: Volume::default(),
        bytes_per_second: 5 * MIB,
        remaining_seconds: Some(12),
    }
}

pub(crate) fn completed() -> JobStatus {
    live(StepKind::Release, [EventBody::Completed { blackout_us: 12_345 }])
}

pub(crate) fn failure(message: &str) -> FailureReport {
    FailureReport {
        code: FailureCode::LinkLost,
        message: message.to_owned(),
        causes: vec!["no answer for 120 s".to_owned()],
        remedy: "look at the network, then move it again".to_owned(),
        host: Some("alpha".parse().expect("a name")),
    }
}

pub(crate) fn unwinding(message: &str) -> JobStatus {
    let step = StepKind::CopyMemory;
    live(step, [EventBody::StepFailed { step, failure: failure(message) }])
}

pub(crate) fn failed(message: &str) -> JobStatus {
    let step = StepKind::CopyMemory;
    let failure = failure(message);
    live(step, [EventBody::StepFailed { step, failure: failure.clone() }, EventBody::Failed { failure }])
}

pub(crate) fn terminated() -> JobStatus {
    live(StepKind::CopyDisks, [EventBody::CancelAccepted, EventBody::Terminated])
}

pub(crate) fn query_pending() -> JobStatus {
    let reason = "bravo does not answer whether it has taken web".to_owned();
    live(StepKind::Handover, [EventBody::Unresolved { reason }])
}

/// A job that its submitter has said something about, and that waits for its turn.
pub(crate) fn submitted(policy: Policy) -> JobStatus {
    let draft = Box::new(plan(MoveMode::Live, true));
    let body = EventBody::Submitted {
        request: Box::new(MoveRequest::of(&draft)),
        draft,
        policy: Box::new(policy),
        parent: None,
    };
    let job = plan(MoveMode::Live, true).job;
    JobStatus::from_event(&Event { job, reporter: Reporter::Coordinator, sequence: 1, at: at(0), body }).expect("a job")
}
