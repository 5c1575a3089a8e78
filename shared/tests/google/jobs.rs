//! Replications, cycles and clones to look at, each told by the events that make it what it is. All times are fixed.

use serde_json::json;
use sterna_shared::id::{Generation, JobId, Token};
use sterna_shared::job::{
    DiskMove, Event, EventBody, FailureCode, FailureReport, Host, JobKind, JobState, JobStatus, MoveMode, MoveRequest,
    MoveSettings, Plan, Policy, Progress, Reporter, Schedule, StepFigures, StepKind, Volume,
};
use sterna_shared::replica::{CloneOf, Consistency, CutoverOf, Replica, Retention, SeedWish, Snapshot};
use sterna_shared::time::Timestamp;
use sterna_shared::units::ByteCount;
use sterna_shared::view::google::MigratingVmName;
use sterna_shared::vm::VmSpec;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const VM: &str = "0197c0de-0000-7000-8000-00000000abcd";
pub(crate) const NAME: &str = "projects/sterna/locations/bravo/sources/alpha/migratingVms/web";

/// So many seconds after the plan, 2026-11-21T22:26:40Z.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_microseconds((1_795_300_000 + second) * 1_000_000)
}

/// The same as Google prints it, of a second below 20.
pub(crate) fn printed(second: u32) -> String {
    format!("2026-11-21T22:26:{}Z", 40 + second)
}

pub(crate) fn job(number: u8) -> JobId {
    format!("0197c0de-0000-7000-8000-0000000000{number:02x}").parse().expect("a UUID")
}

pub(crate) fn name() -> MigratingVmName {
    NAME.parse().expect("a name")
}

fn spec(name: &str, id: &str, pool: &str) -> VmSpec {
    serde_json::from_value(json!({
        "name": name,
        "id": id,
        "memory": "512 MiB",
        "vcpus": 2,
        "firmware": "uefi",
        "disk": [{ "name": "root", "pool": pool, "size": "1536 MiB" }],
        "nic": [{ "mac": "52:54:00:12:34:56", "bridge": "br0" }, { "mac": "52:54:00:12:34:57" }],
    }))
    .expect("a specification")
}

fn plan(job: JobId, kind: JobKind) -> Plan {
    let host = |name: &str| Host { id: name.parse().expect("a name"), addresses: vec![] };
    let (vm, vm_at_target) = (spec("web", VM, "fast"), spec("web", VM, "slow"));
    Plan {
        job,
        planned_at: at(0),
        attempt: 0,
        kind,
        mode: MoveMode::Cold,
        disks: vec![DiskMove { source: vm.disks[0].clone(), target: vm_at_target.disks[0].clone() }],
        vm,
        vm_at_target,
        source: host("alpha"),
        target: host("bravo"),
        generation: Generation(3),
        token: Token::from_bytes([9; 32]),
        lanes: 4,
        bandwidth: None,
        blackout_max_ms: 2000,
        settings: MoveSettings::default(),
        planned: None,
        hold_seconds: None,
        retention: Some(Retention::default()),
        clone: None,
        cutover: None,
        steps: Plan::steps_of(kind, MoveMode::Cold, true),
    }
}

pub(crate) fn cycle_plan(number: u8) -> Plan {
    plan(job(number), JobKind::Replicate)
}

pub(crate) fn clone_plan(number: u8) -> Plan {
    let plan = plan(job(number), JobKind::Clone);
    let vm = spec("web-test", "0197c0de-0000-7000-8000-00000000cdef", "slow");
    let hostname = Some("web.example".parse().expect("a host name"));
    let replica = VM.parse().expect("a UUID");
    let of =
        CloneOf { replica, snapshot: 2, full: false, start: true, hostname, seed: SeedWish::Auto, rehearsal: None };
    Plan {
        source: plan.target.clone(),
        vm_at_target: vm.clone(),
        vm,
        disks: vec![],
        clone: Some(of),
        cutover: None,
        retention: None,
        ..plan
    }
}

/// A cold cutover of the replicated VM.
pub(crate) fn cutover_plan(number: u8) -> Plan {
    let of = CutoverOf { snapshot: 1, runs: true, force: false, revert_seconds: 60, forecast: None };
    Plan { cutover: Some(of), retention: None, ..plan(job(number), JobKind::Cutover) }
}

fn apply(status: &mut JobStatus, reporter: Reporter, sequence: u64, second: i64, body: EventBody) {
    let event = Event { job: status.job, reporter, sequence, at: at(second), body };
    status.apply(&event).expect("a legal event");
}

/// A host accepts the plan and then tells these, one a second; a coordinator what only it may tell.
pub(crate) fn told(plan: Plan, bodies: Vec<EventBody>) -> JobStatus {
    let host = plan.parties()[0].clone();
    let mut status = JobStatus::planned(plan);
    let accepted = EventBody::Accepted { plan: Box::new(status.plan.clone()) };
    for (second, body) in (1..).zip(std::iter::once(accepted).chain(bodies)) {
        let reporter = if body.is_of_agents() { Reporter::Host(host.clone()) } else { Reporter::Coordinator };
        apply(&mut status, reporter, u64::try_from(second).expect("small"), second, body);
    }
    status
}

pub(crate) fn begun(step: StepKind) -> EventBody {
    EventBody::StepStarted { step }
}

pub(crate) fn done(step: StepKind, bytes_total: u64) -> EventBody {
    EventBody::StepFinished { step, figures: StepFigures { bytes_total, ..StepFigures::default() } }
}

pub(crate) fn failure(code: FailureCode, host: Option<&str>) -> FailureReport {
    FailureReport {
        code,
        message: "image root of web could not be written".to_owned(),
        causes: vec!["no space left on device".to_owned()],
        remedy: "make room in pool slow".to_owned(),
        host: host.map(|host| host.parse().expect("a name")),
    }
}

/// The replication's job: submitted in second 0, told these by the coordinator, each in its second.
pub(crate) fn replication(bodies: Vec<(i64, EventBody)>) -> JobStatus {
    let draft = Box::new(cycle_plan(10));
    let policy = Policy {
        schedule: Some(Schedule::after_pauses(300)),
        group: Some("night/shift".to_owned()),
        ..Policy::default()
    };
    let submitted = EventBody::Submitted {
        request: Box::new(MoveRequest::of(&draft)),
        draft,
        policy: Box::new(policy),
        parent: None,
    };
    let event = Event { job: job(10), reporter: Reporter::Coordinator, sequence: 1, at: at(0), body: submitted };
    let mut status = JobStatus::from_event(&event).expect("a job");
    for (sequence, (second, body)) in (2..).zip(bodies) {
        apply(&mut status, Reporter::Coordinator, sequence, second, body);
    }
    status
}

pub(crate) fn run_begun(second: i64, number: u8) -> (i64, EventBody) {
    (second, EventBody::RunBegun { run: job(number), turn: at(second) })
}

pub(crate) fn run_ended(second: i64, number: u8, state: JobState) -> (i64, EventBody) {
    let failure = (state == JobState::Exception).then(|| failure(FailureCode::DiskWrite, Some("bravo")));
    (second, EventBody::RunEnded { run: job(number), state, failure, more: true })
}

/// The replica of that many snapshots, one every two seconds from the first on.
pub(crate) fn replica(snapshots: u32) -> Replica {
    let plan = cycle_plan(10);
    let mut replica = Replica::new(plan.vm, plan.vm_at_target.disks, plan.source.id);
    for number in 1..=snapshots {
        replica.add(Snapshot {
            number,
            cycle: job(11),
            attempt: 0,
            taken_at: Timestamp::from_unix_microseconds(at(i64::from(number) * 2).unix_microseconds() + 250_000),
            complete_at: at(i64::from(number) * 2 + 1),
            consistency: Consistency::Crash,
            written: ByteCount(MIB),
            damaged: false,
        });
    }
    replica
}

pub(crate) fn progress(number: u8, second: i64, done: u64) -> Progress {
    Progress {
        job: job(number),
        host: "alpha".parse().expect("a name"),
        at: at(second),
        step: StepKind::CopyDisks,
        pass: 0,
        disk: Volume { total: 512 * MIB, done, ..Volume::default() },
        memory: Volume::default(),
        bytes_per_second: MIB,
        remaining_seconds: None,
    }
}
