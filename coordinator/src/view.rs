//! What programs see of a job and a plan: stable JSON, apart from the internal types. It is written once: the command
//! line prints it, and the public feed carries it.
//!
//! ```text
//!   JobStatus (fold of events) ─┐
//!                               ├─▶ JobView ─▶ sterna job show --output json, the feed, progress bars
//!   Progress  (latest, a hint) ─┘
//! ```
//!
//! Pure: the same status and progress always give the same view. Names here are a promise to scripts; a field may be
//! added, none is renamed or dropped within `sterna.v1`. The token of a plan is not part of any view.

use std::collections::BTreeMap;

use serde::Serialize;
use sterna_shared::id::{DiskName, Generation, HostId, JobId, PlannedVmId, PoolName, VmId, VmName};
use sterna_shared::job::{
    CheckReport, CutoverForecast, CutoverScore, DiskMove, FailureReport, JobKind, JobRecord, JobState, JobStatus,
    MoveMode, Notice, Plan, Progress, StepKind, StepState, StepStatus, Volume,
};
use sterna_shared::time::Timestamp;
use sterna_shared::units::Bandwidth;
use sterna_shared::vm::DiskFormat;

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JobView {
    /// Its id.
    pub job: JobId,
    /// Its state's name, such as `running` or `query_pending`.
    pub state: JobState,
    /// Its state's number in CIM.
    pub state_number: u16,
    /// The VM that moves.
    pub vm: VmRef,
    /// The host that has the VM at the start.
    pub source: HostId,
    /// The host that is to have it.
    pub target: HostId,
    /// What it does: a move, a check, a deep check, the making of a planned VM.
    pub kind: JobKind,
    /// How it moves.
    pub mode: MoveMode,
    /// 0 to 100. Within one life of a job's progress it never falls; 100 only when completed.
    pub percent: f64,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// The latest progress, while it runs.
    pub progress: Option<ProgressView>,
    /// Why it failed.
    pub failure: Option<FailureReport>,
    /// What a check has found.
    pub check: Option<CheckReport>,
    /// How long the guest did not execute, in milliseconds: at most, since the source counts until it knows that the
    /// guest executes at the target.
    pub blackout_ms: Option<f64>,
    /// The same as the source's hypervisor counts it, from the guest's pause to when all of it was sent.
    pub hypervisor_blackout_ms: Option<u64>,
    /// What watchers should know, oldest first.
    pub notices: Vec<Notice>,
    /// When it was planned.
    pub submitted_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Option<Timestamp>,
    /// When its state last changed.
    pub changed_at: Timestamp,
    /// Who submitted it.
    pub owner: Option<String>,
    /// Its labels; left out where it has none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which jobs go first where not all can: lower numbers.
    pub priority: u32,
    /// How often it was begun before: a suspended job goes on as the next attempt.
    pub attempt: u32,
    /// Bytes of payload that it has put on the link, all attempts together.
    pub bytes_sent: u64,
    /// What it waits for while it is `query_pending`.
    pub question: Option<Question>,
    /// Of a cutover: what it was expected to take when it began.
    pub forecast: Option<CutoverForecast>,
    /// Of a cutover that is completed: that, held against what it took.
    pub score: Option<CutoverScore>,
}

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Which of its hosts may run the VM: that the target answers, or that it is fenced.
    Handover,
    /// What to do, since the target cannot take the VM as planned: `failure` says why.
    Target,
}

/// A VM, named both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmRef {
    /// For people.
    pub name: VmName,
    /// For certain.
    pub id: VmId,
}

/// A step of a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepView {
    /// Which.
    pub step: StepKind,
    /// Where it stands.
    pub state: StepState,
    /// Who reports it.
    pub host: Option<HostId>,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How long it took, once it has ended.
    pub seconds: Option<f64>,
    /// Bytes of content it had to carry, as the guest sees them.
    pub bytes_total: u64,
    /// Bytes of payload it put on the link.
    pub bytes_sent: u64,
    /// Bytes of content that did not cross, since an earlier move had left them at the target.
    pub bytes_resumed: u64,
    /// Passes over the disks or rounds over memory.
    pub passes: u32,
    /// Its mean rate on the link, once it has ended.
    pub bytes_per_second: Option<u64>,
    /// Of a rehearsal's probes: how long it took from the guest's start until all were answered, in milliseconds.
    pub healthy_ms: Option<u64>,
}

/// How far a running job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProgressView {
    /// The step under way.
    pub step: StepKind,
    /// The pass or round under way, from 0.
    pub pass: u32,
    /// Disk content.
    pub disk: VolumeView,
    /// Memory.
    pub memory: VolumeView,
    /// Bytes a second on the link of late.
    pub bytes_per_second: u64,
    /// Seconds until the blackout, as far as the rates tell.
    pub remaining_seconds: Option<u32>,
    /// When the source said so.
    pub at: Timestamp,
}

/// How much of something has crossed: what there was at the start and what was dirtied anew, told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VolumeView {
    /// Bytes there were at the start.
    pub total: u64,
    /// Bytes of these that are done.
    pub done: u64,
    /// Bytes dirtied anew since.
    pub dirtied: u64,
    /// Bytes of the dirtied that were sent again.
    pub redone: u64,
    /// Bytes of payload put on the link.
    pub sent: u64,
    /// Of the done, bytes that did not cross, since an earlier move had left them at the target.
    pub resumed: u64,
    /// Bytes still to be carried.
    pub remaining: u64,
}

/// A plan, as a dry run shows it: without its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlanView {
    /// The job it would be.
    pub job: JobId,
    /// The VM.
    pub vm: VmRef,
    /// From where.
    pub source: HostId,
    /// To where.
    pub target: HostId,
    /// How.
    pub mode: MoveMode,
    /// The disks whose content would be copied.
    pub disks: Vec<DiskMoveView>,
    /// Memory that would be copied, in bytes: none unless live.
    pub memory_bytes: u64,
    /// What the copied disks hold at most, in bytes.
    pub disk_bytes: u64,
    /// The generation under which the source owns the VM.
    pub generation: Generation,
    /// Data lanes.
    pub lanes: u8,
    /// The rate limit in bytes a second.
    pub bandwidth: Option<Bandwidth>,
    /// The longest blackout allowed, in milliseconds.
    pub blackout_max_ms: u32,
    /// The planned VM that it would make, or use.
    pub planned: Option<PlannedVmId>,
    /// The steps, in order.
    pub steps: Vec<StepKind>,
    /// When it was planned.
    pub planned_at: Timestamp,
}

/// One disk of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiskMoveView {
    /// Its name.
    pub disk: DiskName,
    /// Its size in bytes, as the guest sees it.
    pub bytes: u64,
    /// The pool it is in.
    pub source_pool: PoolName,
    /// Its format there.
    pub source_format: DiskFormat,
    /// The pool it goes to.
    pub target_pool: PoolName,
    /// Its format there.
    pub target_format: DiskFormat,
}

impl JobView {
    /// The same once it is over, by what is kept of it.
    #[must_use]
    pub fn ended(self, record: JobRecord) -> Self {
        let is_done = record.state == JobState::Completed;
        Self {
            state: record.state,
            state_number: record.state.number(),
            percent: if is_done { 100.0 } else { self.percent },
            progress: None,
            failure: record.failure,
            blackout_ms: record.blackout_us.map(milliseconds).or(self.blackout_ms),
            finished_at: Some(record.finished_at),
            changed_at: record.finished_at,
            question: None,
            ..self
        }
    }

    /// The view of a status, with the latest progress where there is one. Progress of a job that is over is left out.
    #[must_use]
    pub fn new(status: &JobStatus, progress: Option<&Progress>) -> Self {
        let progress = status.latest(progress);
        Self {
            job: status.job,
            state: status.state,
            state_number: status.state.number(),
            vm: VmRef::of(&status.plan),
            source: status.plan.source.id.clone(),
            target: status.plan.target.id.clone(),
            kind: status.plan.kind,
            mode: status.plan.mode,
            percent: status.percent(progress),
            steps: status.steps.iter().map(StepView::new).collect(),
            progress: progress.map(ProgressView::new),
            failure: status.failure.clone(),
            check: status.check.as_deref().cloned(),
            blackout_ms: status.blackout_us.map(milliseconds),
            hypervisor_blackout_ms: status.hypervisor_blackout_ms(),
            notices: status.notices.clone(),
            submitted_at: status.submitted_at,
            started_at: status.started_at,
            finished_at: status.finished_at,
            changed_at: status.changed_at,
            owner: status.policy.owner.clone(),
            labels: status.policy.labels.clone(),
            priority: status.policy.priority,
            attempt: status.plan.attempt,
            bytes_sent: status.figures().bytes_sent,
            question: (status.state == JobState::QueryPending).then(|| match status.is_unresolved() {
                true => Question::Handover,
                false => Question::Target,
            }),
            forecast: status.plan.cutover.and_then(|of| of.forecast),
            score: CutoverScore::of(status),
        }
    }
}

impl VmRef {
    fn of(plan: &Plan) -> Self {
        Self { name: plan.vm.name.clone(), id: plan.vm.id }
    }
}

impl StepView {
    fn new(step: &StepStatus) -> Self {
        let seconds = step.seconds();
        Self {
            step: step.kind,
            state: step.state,
            host: step.host.clone(),
            started_at: step.started_at,
            finished_at: step.finished_at,
            seconds,
            bytes_total: step.figures.bytes_total,
            bytes_sent: step.figures.bytes_sent,
            bytes_resumed: step.figures.bytes_resumed,
            passes: step.figures.passes,
            bytes_per_second: seconds.and_then(|seconds| rate(step.figures.bytes_sent, seconds)),
            healthy_ms: step.figures.healthy_ms,
        }
    }
}

impl ProgressView {
    fn new(progress: &Progress) -> Self {
        Self {
            step: progress.step,
            pass: progress.pass,
            disk: VolumeView::new(progress.disk),
            memory: VolumeView::new(progress.memory),
            bytes_per_second: progress.bytes_per_second,
            remaining_seconds: progress.remaining_seconds,
            at: progress.at,
        }
    }
}

impl VolumeView {
    fn new(volume: Volume) -> Self {
        Self {
            total: volume.total,
            done: volume.done,
            dirtied: volume.dirtied,
            redone: volume.redone,
            sent: volume.sent,
            resumed: volume.resumed,
            remaining: volume.remaining(),
        }
    }
}

impl PlanView {
    /// The view of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            job: plan.job,
            vm: VmRef::of(plan),
            source: plan.source.id.clone(),
            target: plan.target.id.clone(),
            mode: plan.mode,
            disks: plan.disks.iter().map(DiskMoveView::new).collect(),
            memory_bytes: plan.memory_bytes().0,
            disk_bytes: plan.disk_bytes().0,
            generation: plan.generation,
            lanes: plan.lanes,
            bandwidth: plan.bandwidth,
            blackout_max_ms: plan.blackout_max_ms,
            planned: plan.planned,
            steps: plan.steps.clone(),
            planned_at: plan.planned_at,
        }
    }
}

impl DiskMoveView {
    fn new(disk: &DiskMove) -> Self {
        Self {
            disk: disk.source.name.clone(),
            bytes: disk.source.size.0,
            source_pool: disk.source.pool.clone(),
            source_format: disk.source.format,
            target_pool: disk.target.pool.clone(),
            target_format: disk.target.format,
        }
    }
}

fn rate(bytes: u64, seconds: f64) -> Option<u64> {
    if seconds <= 0.0 || bytes == 0 {
        return None;
    }
    // Rates are far below 2^53, and seconds are positive.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some((float(bytes) / seconds) as u64)
}

fn milliseconds(microseconds: u64) -> f64 {
    float(microseconds) / 1000.0
}

/// Counts of bytes and microseconds are below 2^53 wherever a fraction of them is shown.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use sterna_shared::id::Token;
    use sterna_shared::job::{Event, EventBody, Host, JobKind, MoveSettings, Reporter, StepFigures};
    use sterna_shared::vm::VmSpec;

    use super::*;
    use crate::schema;

    const MIB: u64 = 1 << 20;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_microseconds((1_795_300_000 + second) * 1_000_000)
    }

    fn plan() -> Plan {
        let spec: VmSpec = toml::from_str(
            "name = \"web\"\nid = \"0197c0de-0000-7000-8000-000000000001\"\nmemory = \"512 MiB\"\n\
             [[disk]]\nname = \"root\"\npool = \"fast\"\nsize = \"1536 MiB\"\n",
        )
        .expect("a specification");
        let host = |name: &str| Host { id: name.parse().expect("a name"), addresses: vec![] };
        Plan {
            job: "0197c0de-0000-7000-8000-00000000000a".parse().expect("a UUID"),
            planned_at: at(0),
            attempt: 0,
            kind: JobKind::Move,
            mode: MoveMode::Live,
            disks: vec![DiskMove { source: spec.disks[0].clone(), target: spec.disks[0].clone() }],
            vm: spec.clone(),
            vm_at_target: spec,
            source: host("alpha"),
            target: host("beta"),
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
            steps: Plan::steps_of(JobKind::Move, MoveMode::Live, true),
        }
    }

    /// A job that has gone through these, one a second.
    fn status(bodies: Vec<EventBody>) -> JobStatus {
        let mut status = JobStatus::planned(plan());
        let accepted = EventBody::Accepted { plan: Box::new(status.plan.clone()) };
        for (sequence, body) in (1..).zip(std::iter::once(accepted).chain(bodies)) {
            let reporter = Reporter::Host("alpha".parse().expect("a name"));
            let second = i64::try_from(sequence).expect("small");
            let event = Event { job: status.job, reporter, sequence, at: at(second), body };
            status.apply(&event).expect("a legal event");
        }
        status
    }

    fn progress(disk_done: u64, memory: Volume) -> Progress {
        Progress {
            job: plan().job,
            host: "alpha".parse().expect("a name"),
            at: at(9),
            step: StepKind::CopyDisks,
            pass: 1,
            disk: Volume {
                total: 1536 * MIB,
                done: disk_done,
                dirtied: 8 * MIB,
                redone: 2 * MIB,
                sent: 3 * MIB,
                resumed: 5 * MIB,
            },
            memory,
            bytes_per_second: 5 * MIB,
            remaining_seconds: Some(12),
        }
    }

    #[test]
    fn a_running_job_reads_as_promised() {
        let started = |step| EventBody::StepStarted { step };
        let figures = StepFigures { bytes_sent: 4096, ..StepFigures::default() };
        let status = status(vec![
            started(StepKind::Prepare),
            EventBody::StepFinished { step: StepKind::Prepare, figures },
            started(StepKind::CopyDisks),
            EventBody::Notice { text: "lane 2 was dialled again".to_owned() },
        ]);
        let view = JobView::new(&status, Some(&progress(768 * MIB, Volume::default())));
        let mut json = serde_json::to_value(&view).expect("JSON");
        schema::expect_valid("job", &json);
        // The waiting steps all look alike.
        json["steps"].as_array_mut().expect("steps").truncate(3);
        insta::assert_snapshot!(json.to_string(), @r#"{"job":"0197c0de-0000-7000-8000-00000000000a","state":"running","state_number":4,"vm":{"name":"web","id":"0197c0de-0000-7000-8000-000000000001"},"source":"alpha","target":"beta","kind":"move","mode":"live","percent":36.8,"steps":[{"step":"prepare","state":"finished","host":"alpha","started_at":"2026-11-21T22:26:42.000000Z","finished_at":"2026-11-21T22:26:43.000000Z","seconds":1.0,"bytes_total":0,"bytes_sent":4096,"bytes_resumed":0,"passes":0,"bytes_per_second":4096,"healthy_ms":null},{"step":"copy_disks","state":"running","host":"alpha","started_at":"2026-11-21T22:26:44.000000Z","finished_at":null,"seconds":null,"bytes_total":0,"bytes_sent":0,"bytes_resumed":0,"passes":0,"bytes_per_second":null,"healthy_ms":null},{"step":"copy_memory","state":"waiting","host":null,"started_at":null,"finished_at":null,"seconds":null,"bytes_total":0,"bytes_sent":0,"bytes_resumed":0,"passes":0,"bytes_per_second":null,"healthy_ms":null}],"progress":{"step":"copy_disks","pass":1,"disk":{"total":1610612736,"done":805306368,"dirtied":8388608,"redone":2097152,"sent":3145728,"resumed":5242880,"remaining":811597824},"memory":{"total":0,"done":0,"dirtied":0,"redone":0,"sent":0,"resumed":0,"remaining":0},"bytes_per_second":5242880,"remaining_seconds":12,"at":"2026-11-21T22:26:49.000000Z"},"failure":null,"check":null,"blackout_ms":null,"hypervisor_blackout_ms":null,"notices":[{"at":"2026-11-21T22:26:45.000000Z","host":"alpha","text":"lane 2 was dialled again"}],"submitted_at":"2026-11-21T22:26:40.000000Z","started_at":"2026-11-21T22:26:42.000000Z","finished_at":null,"changed_at":"2026-11-21T22:26:42.000000Z","owner":null,"priority":100,"attempt":0,"bytes_sent":4096,"question":null,"forecast":null,"score":null}"#);
    }

    #[test]
    fn percent_does_not_fall_when_memory_joins_in() {
        let running = status(vec![
            EventBody::StepStarted { step: StepKind::CopyDisks },
            EventBody::StepStarted { step: StepKind::CopyMemory },
        ]);
        let half = 768 * MIB;
        let none = Volume::default();
        let begun = Volume { total: 512 * MIB, ..none };
        let done = Volume { done: 512 * MIB, ..begun };
        let mut last = 0.0;
        for progress in [
            progress(0, none),
            progress(half, none),
            progress(half, begun),
            progress(half, done),
            progress(1536 * MIB, done),
        ] {
            let percent = JobView::new(&running, Some(&progress)).percent;
            assert!(percent >= last && percent <= 95.0, "{percent} after {last}");
            last = percent;
        }
        assert!((last - 95.0).abs() < 0.11, "{last}");
    }

    #[test]
    fn what_is_over_has_no_progress_and_nothing_shows_a_token() {
        let mut over = status(vec![EventBody::Completed { blackout_us: 12_345 }]);
        over.plan.token = Token::from_bytes([9; 32]);
        let view = JobView::new(&over, Some(&progress(0, Volume::default())));
        assert!(view.progress.is_none());
        assert_eq!((view.percent, view.blackout_ms, view.state_number), (100.0, Some(12.345), 7));
        schema::expect_valid("job", &serde_json::to_value(&view).expect("JSON"));
        schema::expect_valid("plan", &serde_json::to_value(PlanView::new(&plan())).expect("JSON"));
        let json = serde_json::to_string(&(view, PlanView::new(&plan()))).expect("JSON");
        assert!(!json.contains("token"), "{json}");
    }
}
