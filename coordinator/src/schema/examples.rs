//! Messages of every kind, made by the code that makes them elsewhere: each request with the answers that it may get, jobs in
//! every state that can be told apart, and the documents of the feed.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sterna_shared::bus::{
    ApiError, ApiErrorKind, ApiReply, ApiRequest, ConsoleChunk, HostView, JobAnswer, JobChange, SystemView,
};
use sterna_shared::host::{LimitsChange, MovesInHand};
use sterna_shared::id::{Epoch, HostId};
use sterna_shared::job::{
    CheckReport, DayOfWeek, DiskPlacement, Event, EventBody, Expiration, FailureCode, FailureReport, Finding, Forecast,
    ForecastInput, JobKind, JobRecord, JobStatus, Month, MoveRequest, Plan, Policy, Progress, Refusal, RefusalCode,
    Reporter, ReturnCode, Rule, Schedule, Severity, StepFigures, StepKind, Volume, Weekday, Zone,
};
use sterna_shared::planned::{PlannedView, PlannedVm};
use sterna_shared::probe::{AddressOutcome, AddressReport, Measured, PathReport, ProbeReport};
use sterna_shared::replica::{ReplicaView, ReplicationWish, Retention};
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::view::google::{Method, Rates};

use crate::feed::{Document, Limiter, Replicas, host_changed, vm_changed};
use crate::fleet::{Fleet, vm_view};
use crate::planner::{example, plan};

pub(super) fn host(name: &str) -> HostId {
    name.parse().expect("a name")
}

pub(super) fn json<T: Serialize>(message: &T) -> Value {
    serde_json::to_value(message).expect("JSON")
}

/// Two hosts, one with a VM, a volume group, and images of a move that was cut.
fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    let mut source = example::inventory("alpha");
    let vm = example::vm("web");
    source.pools[1].extent = Some(ByteCount::mebibytes(4));
    source.partials = vec![example::partial(&vm)];
    source.vms = vec![example::report(&vm)];
    source.planned = vec![a_planned_vm()];
    fleet.heard(source, example::now(), Duration::ZERO);
    fleet.heard(example::inventory("beta"), example::now(), Duration::ZERO);
    fleet
}

fn a_planned_vm() -> PlannedVm {
    example::planned(&example::vm("web"))
}

pub(super) fn a_plan() -> Plan {
    let mut plan = plan(&fleet(), [], &example::request(), example::seeds()).expect("a plan");
    plan.bandwidth = Some(Bandwidth(100 << 20));
    plan
}

fn failure() -> FailureReport {
    FailureReport {
        code: FailureCode::LinkLost,
        message: "disk root could not be copied".into(),
        causes: vec!["no answer for 120 s".into()],
        remedy: "look at the switch".into(),
        host: Some(host("alpha")),
    }
}

/// Jobs that went through various things.
pub(super) fn statuses() -> Vec<JobStatus> {
    let figures = StepFigures { bytes_total: 1 << 20, bytes_sent: 4096, passes: 1, ..StepFigures::default() };
    let begun = [
        EventBody::Accepted { plan: Box::new(a_plan()) },
        EventBody::StepStarted { step: StepKind::Prepare },
        EventBody::StepFinished { step: StepKind::Prepare, figures },
        EventBody::StepStarted { step: StepKind::CopyDisks },
        EventBody::Notice { text: "lane 2 was dialled again".into() },
    ];
    let endings = [
        vec![],
        vec![EventBody::Completed { blackout_us: 12_345 }],
        vec![EventBody::CancelAccepted],
        vec![EventBody::Terminated],
        vec![EventBody::Killed],
        vec![EventBody::StepFailed { step: StepKind::CopyDisks, failure: failure() }],
        vec![EventBody::Failed { failure: failure() }],
        vec![EventBody::Suspended { figures }],
        vec![EventBody::Asked { failure: failure(), figures }],
        vec![EventBody::Unresolved { reason: "beta is silent".into() }],
    ];
    let told = endings.into_iter().map(|ending| status(begun.iter().cloned().chain(ending)));
    std::iter::once(JobStatus::planned(a_plan())).chain(told).collect()
}

fn status(bodies: impl Iterator<Item = EventBody>) -> JobStatus {
    let mut status = JobStatus::planned(a_plan());
    for (second, body) in (1..).zip(bodies) {
        let sequence = u64::try_from(second).expect("small");
        let reporter = Reporter::Host(host("alpha"));
        let event = Event { job: status.job, reporter, sequence, at: example::later(second), body };
        status.apply(&event).expect("a legal event");
    }
    status
}

pub(super) fn progress() -> Progress {
    Progress {
        job: a_plan().job,
        host: host("alpha"),
        at: example::later(6),
        step: StepKind::CopyDisks,
        pass: 1,
        disk: Volume { total: 1000, done: 500, dirtied: 10, redone: 5, sent: 400, resumed: 100 },
        memory: Volume::default(),
        bytes_per_second: 100,
        remaining_seconds: Some(5),
    }
}

/// One document of each kind that the feed has.
pub(super) fn documents() -> [Document; 4] {
    let (fleet, status) = (fleet(), statuses().remove(1));
    let (member, report) = fleet.find("web").expect("there");
    let (source, now) = (host("one"), example::later(7));
    let job = Limiter::default().job_changed(&source, &status, Some(&progress()), now, Duration::ZERO);
    let view = ReplicaView::of(&host("beta"), Some(&example::replica()), None, None, now).expect("a view");
    let replica = Replicas::default().tell(&source, &[view], now, Duration::ZERO).remove(0);
    let documents = [job, host_changed(&source, member, now), vm_changed(&source, member, report, now), replica];
    documents.map(|document| document.expect("a document"))
}

/// Every request, and the kinds of answer that are no error.
pub(crate) fn requests() -> Vec<(ApiRequest, &'static [&'static str])> {
    let vm = || "web".to_owned();
    let job = example::job(1);
    let place =
        DiskPlacement { disk: "root".parse().expect("a name"), pool: "fast".parse().expect("a name"), format: None };
    let mut request = example::request();
    request.disks = vec![place.clone()];
    request.bandwidth = Some(Bandwidth(1 << 20));
    let migrate = |dry_run| ApiRequest::Migrate { request: request.clone(), dry_run, job, policy: Box::default() };
    let mut all: Vec<(ApiRequest, &'static [&'static str])> = vec![
        (ApiRequest::HostList, &["hosts", "part"]),
        (ApiRequest::HostShow { host: host("alpha") }, &["hosts"]),
        (
            ApiRequest::HostSet {
                host: host("alpha"),
                change: LimitsChange { inbound_moves_max: Some(2), ..LimitsChange::default() },
                reset: true,
            },
            &["hosts"],
        ),
        (ApiRequest::VmDefine { host: host("alpha"), spec: Box::new(example::vm("web")) }, &["done"]),
        (ApiRequest::VmList, &["vms", "part"]),
        (ApiRequest::VmShow { vm: vm() }, &["vms"]),
        (ApiRequest::VmStart { vm: vm() }, &["done"]),
        (ApiRequest::VmStop { vm: vm(), force: false, timeout_seconds: 60 }, &["done"]),
        (ApiRequest::VmDelete { vm: vm(), delete_disks: false }, &["done"]),
        (ApiRequest::VmDrop { vm: vm(), host: host("beta") }, &["done"]),
        (ApiRequest::VmConsole { vm: vm(), offset: None, input: b"ls\n".to_vec() }, &["console"]),
        (ApiRequest::VmResolve { vm: vm(), fenced: host("beta") }, &["done"]),
        (ApiRequest::VmFailover { vm: vm(), fenced: host("alpha"), target: host("beta"), snapshot: 2 }, &["done"]),
        (migrate(true), &["plan", "job_started"]),
        (migrate(false), &["plan", "job_started"]),
        (ApiRequest::Check { request: request.clone() }, &["checked"]),
        (ApiRequest::PlanList, &["planned", "part"]),
        (ApiRequest::PlanDrop { planned: a_planned_vm().id }, &["done"]),
        (ApiRequest::ReplicaList, &["replicas", "part"]),
        (ApiRequest::ReplicaDrop { vm: vm(), host: host("beta") }, &["done"]),
        (ApiRequest::ReplicaExtend { vm: vm(), by_seconds: Some(86_400) }, &["job"]),
        (ApiRequest::ReplicaFinalize { vm: vm() }, &["job"]),
        (replicate(), &["plan", "job_started"]),
        (clone(), &["plan", "job_started"]),
        (ApiRequest::JobList, &["jobs", "part"]),
        (ApiRequest::Rest { of: Box::new(ApiRequest::JobList), skip: 400 }, &["jobs", "part"]),
        (ApiRequest::JobGroup { group: "night".into() }, &["jobs", "part"]),
        (
            ApiRequest::JobHistory { job: Some(job), vm: Some(vm()), since: Some(example::now()), before: Some(7) },
            &["history"],
        ),
        (ApiRequest::JobShow { job }, &["job"]),
        (ApiRequest::JobCancel { job }, &["done"]),
        (ApiRequest::JobState { job, requested: 3, timeout_ms: Some(500) }, &["state_requested"]),
        (ApiRequest::JobKill { job, delete: true }, &["state_requested"]),
        (ApiRequest::JobAnswer { job, answer: JobAnswer::Place { disks: vec![place] } }, &["done"]),
        (ApiRequest::JobAnswer { job, answer: JobAnswer::Retry }, &["done"]),
        (ApiRequest::JobAnswer { job, answer: JobAnswer::Fenced }, &["done"]),
        (ApiRequest::JobEdit { job, changes: changes() }, &["done"]),
        (ApiRequest::JobBandwidth { job, bandwidth: Some(Bandwidth(1 << 20)) }, &["done"]),
        (ApiRequest::SystemShow, &["system"]),
    ];
    all.extend(Method::ALL.iter().map(|method| (google(*method), &["google"][..])));
    all
}

/// A method of Google's, without what it may be asked about.
fn google(method: Method) -> ApiRequest {
    ApiRequest::Google { method, body: "{}".into(), job: example::job(4) }
}

/// A replication in cycles.
fn replicate() -> ApiRequest {
    let schedule = Some(Schedule::after_pauses(300));
    ApiRequest::Migrate {
        request: MoveRequest {
            kind: JobKind::Replicate,
            replication: Some(ReplicationWish { retention: Retention { last: 3, hourly: 24, daily: 7 } }),
            ..example::request()
        },
        dry_run: false,
        job: example::job(2),
        policy: Box::new(Policy {
            schedule,
            expiration: Some(Expiration::at(example::later(86_400))),
            labels: [("team".to_owned(), "shop".to_owned())].into(),
            ..Policy::default()
        }),
    }
}

/// A clone that is started.
fn clone() -> ApiRequest {
    let request = example::clone_request();
    ApiRequest::Migrate { request, dry_run: false, job: example::job(3), policy: Box::default() }
}

/// Changes of every kind.
fn changes() -> Vec<JobChange> {
    let rule = Rule { month: Some(Month::March), day: Some(-1), ..Rule::daily(Duration::from_secs(7200), Zone::Utc) };
    let day_of_week = DayOfWeek::OnOrBefore(Weekday::Sunday);
    let local = Rule { day_of_week, zone: Zone::Local("Europe/Berlin".into()), ..rule.clone() };
    let schedules = [Schedule::once(example::later(60)), Schedule::repeated(rule), Schedule::repeated(local)];
    let schedules = schedules.into_iter().map(|schedule| JobChange::Schedule { schedule: Some(Box::new(schedule)) });
    let priority = JobChange::Property { name: "Priority".into(), value: "5".into() };
    let labels = [Some("shop".to_owned()), None].map(|value| JobChange::Label { key: "team".into(), value });
    let group = JobChange::Group { group: Some("shop".into()) };
    schedules.chain([JobChange::Schedule { schedule: None }, priority, group]).chain(labels).collect()
}

/// A check that has found something and measured something.
fn report_of_a_check(refusal: &Refusal) -> CheckReport {
    let input = ForecastInput {
        live: true,
        memory: ByteCount(1 << 30),
        disks: ByteCount(1 << 30),
        path: Bandwidth(1 << 30),
        limit: None,
        memory_dirty_rate: Bandwidth(1 << 20),
        disk_write_rate: Bandwidth(0),
        lanes: 4,
        blackout_max_ms: 2000,
    };
    let reached = AddressReport {
        address: "127.0.0.1:7001".parse().expect("an address"),
        outcome: AddressOutcome::Reached,
        text: "reached".into(),
        certificate: None,
    };
    let path = PathReport {
        addresses: vec![reached],
        throughput: Measured::Known(Bandwidth(1 << 30)),
        round_trip_us: Measured::unknown("no time"),
    };
    let probe = ProbeReport { at: example::now(), path: Some(path), guest: None };
    let finding = Finding { severity: Severity::Error, reason: refusal.clone() };
    CheckReport::new(vec![finding], Some(Box::new(a_plan())), Some(probe), Some(Forecast::of(&input)))
}

/// An answer of every kind.
pub(super) fn replies() -> Vec<ApiReply> {
    let fleet = fleet();
    let (member, report) = fleet.find("web").expect("there");
    let host_view = HostView {
        inventory: member.inventory.clone(),
        online: member.online,
        heard_at: member.heard_at,
        moves: MovesInHand { outbound: 1, inbound: 2, storage: 0 },
    };
    let refusal = Refusal { code: RefusalCode::Memory, message: "no memory".into(), remedy: "free some".into() };
    let status = || Box::new(statuses().remove(1));
    vec![
        ApiReply::Hosts { hosts: vec![host_view] },
        ApiReply::Vms { vms: vec![vm_view(member, report)] },
        ApiReply::Done,
        ApiReply::Console { chunk: ConsoleChunk { end: 7, bytes: b"login: ".to_vec() } },
        ApiReply::Plan { plan: Box::new(a_plan()), waits_for: vec![refusal.clone()] },
        ApiReply::Checked { report: Box::new(report_of_a_check(&refusal)) },
        ApiReply::Planned { planned: vec![PlannedView { host: host("beta"), planned: a_planned_vm(), usable: true }] },
        ApiReply::Replicas {
            replicas: ReplicaView::of(&host("beta"), Some(&example::replica()), None, None, example::later(60))
                .into_iter()
                .collect(),
        },
        ApiReply::JobStarted { status: status() },
        ApiReply::StateRequested { code: ReturnCode::Started, reason: None, status: status() },
        ApiReply::Jobs { jobs: statuses(), progress: vec![progress()] },
        ApiReply::Part { list: Box::new(ApiReply::Jobs { jobs: statuses(), progress: vec![] }) },
        ApiReply::Job {
            status: status(),
            progress: Some(progress()),
            rates: Rates { two_minutes: Some(1), thirty_minutes: None },
        },
        ApiReply::History { records: statuses().iter().filter_map(JobRecord::of).collect(), next: Some(7) },
        ApiReply::Google { body: r#"{"cloneJobs":[]}"#.into(), warnings: vec!["orderBy is left aside".into()] },
        ApiReply::System {
            system: SystemView {
                coordinator: "one".into(),
                version: "0.1.0".into(),
                epoch: Epoch(4),
                nats_version: "2.12.8".into(),
                now: example::now(),
            },
        },
        ApiReply::Error {
            error: ApiError {
                kind: ApiErrorKind::Refused,
                message: "web cannot move".into(),
                hints: vec!["sterna host show beta".into()],
                refusals: vec![refusal],
            },
        },
    ]
}
