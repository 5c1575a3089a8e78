//! The public feed: JSON for people with `nats sub`, dashboards and scripts. Described in docs/feed.md.
//!
//! ```text
//!   JobStatus + Progress ─┐              ┌─▶ sterna.v1.feed.job.<job>   CloudEvents headers, JSON body
//!   Member ───────────────┼─▶ Document ──┤
//!   VmReport ─────────────┘              └─▶ bucket sterna_feed, key job.<job>   the last value
//! ```
//!
//! The structures here are the contract with readers: they are apart from the internal ones on purpose, so that those
//! may change and the feed does not. Everything is pure; [`Limiter`] is handed the time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sterna_shared::bus::Subject;
use sterna_shared::host::VmReport;
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{FailureReport, JobState, JobStatus, MoveMode, Progress, StepKind, StepState, Volume};
use sterna_shared::time::Timestamp;
use sterna_shared::units::ByteCount;

use crate::fleet::Member;

/// The bucket of last values.
pub const BUCKET_FEED: &str = "sterna_feed";
/// The shortest time between two documents of one job that tell of progress only.
pub const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// One message of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it is published.
    pub subject: String,
    /// Its key in [`BUCKET_FEED`].
    pub key: String,
    /// CloudEvents attributes, as headers.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Vec<u8>,
}

/// A job.
#[derive(Debug, Serialize)]
struct JobDocument {
    job: String,
    state: String,
    state_number: u16,
    vm: VmName,
    source: String,
    target: String,
    mode: MoveMode,
    percent: u8,
    steps: Vec<StepDocument>,
    progress: Option<ProgressDocument>,
    failure: Option<FailureDocument>,
    blackout_ms: Option<f64>,
    hypervisor_blackout_ms: Option<u64>,
    notices: Vec<NoticeDocument>,
    submitted_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    changed_at: Timestamp,
}

#[derive(Debug, Serialize)]
struct VmName {
    name: String,
    id: String,
}

#[derive(Debug, Serialize)]
struct StepDocument {
    step: StepKind,
    state: StepState,
    host: Option<String>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    seconds: Option<f64>,
    bytes_total: u64,
    bytes_sent: u64,
    passes: u32,
    bytes_per_second: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ProgressDocument {
    step: StepKind,
    pass: u32,
    disk: VolumeDocument,
    memory: VolumeDocument,
    bytes_per_second: u64,
    remaining_seconds: Option<u32>,
    at: Timestamp,
}

#[derive(Debug, Serialize)]
struct VolumeDocument {
    total: u64,
    done: u64,
    dirtied: u64,
    redone: u64,
    sent: u64,
    remaining: u64,
}

#[derive(Debug, Serialize)]
struct FailureDocument {
    code: String,
    message: String,
    causes: Vec<String>,
    remedy: String,
    host: Option<String>,
}

#[derive(Debug, Serialize)]
struct NoticeDocument {
    at: Timestamp,
    host: Option<String>,
    text: String,
}

#[derive(Debug, Serialize)]
struct HostDocument {
    host: String,
    online: bool,
    heard_at: Timestamp,
    version: String,
    hypervisor: String,
    accelerator: &'static str,
    memory_total: ByteCount,
    memory_free: ByteCount,
    pools: Vec<PoolDocument>,
    certificate_not_after: Timestamp,
    vms: usize,
}

#[derive(Debug, Serialize)]
struct PoolDocument {
    name: String,
    shared: Option<String>,
    capacity: ByteCount,
    free: ByteCount,
}

#[derive(Debug, Serialize)]
struct VmDocument {
    vm: String,
    name: String,
    host: String,
    state: String,
    owned: bool,
    generation: u64,
    job: Option<String>,
    memory: ByteCount,
    vcpus: u16,
}

/// Keeps what the feed must remember of each job: when it was last told of, and the highest percentage told.
#[derive(Debug, Default)]
pub struct Limiter {
    jobs: BTreeMap<JobId, Told>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    at: Option<Duration>,
    percent: u8,
}

impl Limiter {
    /// The document of a job whose state changed; always one.
    ///
    /// # Errors
    /// Where it does not become JSON, a fault of Sterna's.
    pub fn job_changed(
        &mut self,
        source: &HostId,
        status: &JobStatus,
        progress: Option<&Progress>,
        now: Timestamp,
        clock: Duration,
    ) -> Result<Document, serde_json::Error> {
        let told = self.jobs.entry(status.job).or_default();
        *told = Told { at: Some(clock), percent: told.percent.max(percent(status, progress)) };
        let percent = told.percent;
        if status.state.is_final() {
            self.jobs.remove(&status.job);
        }
        document(Subject::FeedJob(status.job), "job", source, now, &job_document(status, progress, percent))
    }

    /// The document of a job that made progress; none where the last one is less than [`PROGRESS_INTERVAL_MIN`] old.
    ///
    /// # Errors
    /// Where it does not become JSON, a fault of Sterna's.
    pub fn job_progressed(
        &mut self,
        source: &HostId,
        status: &JobStatus,
        progress: &Progress,
        now: Timestamp,
        clock: Duration,
    ) -> Result<Option<Document>, serde_json::Error> {
        let last = self.jobs.get(&status.job).and_then(|told| told.at);
        if status.state.is_final() || last.is_some_and(|last| clock.saturating_sub(last) < PROGRESS_INTERVAL_MIN) {
            return Ok(None);
        }
        self.job_changed(source, status, Some(progress), now, clock).map(Some)
    }
}

/// The document of a host.
///
/// # Errors
/// Where it does not become JSON, a fault of Sterna's.
pub fn host_changed(source: &HostId, member: &Member, now: Timestamp) -> Result<Document, serde_json::Error> {
    let inventory = &member.inventory;
    let pools = inventory.pools.iter().map(|pool| PoolDocument {
        name: pool.name.to_string(),
        shared: pool.shared.clone(),
        capacity: pool.capacity,
        free: pool.free,
    });
    let data = HostDocument {
        host: inventory.host.to_string(),
        online: member.online,
        heard_at: member.heard_at,
        version: inventory.version.clone(),
        hypervisor: inventory.hypervisor.version.clone(),
        accelerator: inventory.hypervisor.accelerator.as_str(),
        memory_total: inventory.memory_total,
        memory_free: inventory.memory_free,
        pools: pools.collect(),
        certificate_not_after: inventory.certificate.not_after,
        vms: inventory.vms.len(),
    };
    document(Subject::FeedHost(inventory.host.clone()), "host", source, now, &data)
}

/// The document of a VM.
///
/// # Errors
/// Where it does not become JSON, a fault of Sterna's.
pub fn vm_changed(
    source: &HostId,
    member: &Member,
    report: &VmReport,
    now: Timestamp,
) -> Result<Document, serde_json::Error> {
    let data = VmDocument {
        vm: report.id().to_string(),
        name: report.spec.name.to_string(),
        host: member.inventory.host.to_string(),
        state: report.state.to_string(),
        owned: report.owned,
        generation: report.generation.0,
        job: report.job.map(|job| job.to_string()),
        memory: report.spec.memory,
        vcpus: report.spec.vcpus,
    };
    document(Subject::FeedVm(report.id()), "vm", source, now, &data)
}

fn document<T: Serialize>(
    subject: Subject,
    kind: &str,
    source: &HostId,
    now: Timestamp,
    data: &T,
) -> Result<Document, serde_json::Error> {
    let body = serde_json::to_vec(data)?;
    let subject = subject.to_string();
    let thing = subject.rsplit('.').next().unwrap_or_default().to_owned();
    let headers = vec![
        ("ce-specversion", "1.0".to_owned()),
        // Random and not derived: the same change told by two coordinators is two events.
        ("ce-id", uuid::Uuid::now_v7().to_string()),
        ("ce-source", format!("sterna://coordinator/{source}")),
        ("ce-type", format!("sterna.v1.{kind}.changed")),
        ("ce-time", now.to_string()),
        ("ce-subject", thing.clone()),
        ("ce-datacontenttype", "application/json".to_owned()),
    ];
    Ok(Document { key: format!("{kind}.{thing}"), subject, headers, body })
}

fn job_document(status: &JobStatus, progress: Option<&Progress>, percent: u8) -> JobDocument {
    let plan = &status.plan;
    let name = |host: &Option<HostId>| host.as_ref().map(ToString::to_string);
    let running = progress.filter(|_| !status.state.is_final());
    JobDocument {
        job: status.job.to_string(),
        state: status.state.to_string(),
        state_number: status.state.number(),
        vm: VmName { name: plan.vm.name.to_string(), id: plan.vm.id.to_string() },
        source: plan.source.id.to_string(),
        target: plan.target.id.to_string(),
        mode: plan.mode,
        percent,
        steps: steps(status),
        progress: running.map(|progress| ProgressDocument {
            step: progress.step,
            pass: progress.pass,
            disk: volume(&progress.disk),
            memory: volume(&progress.memory),
            bytes_per_second: progress.bytes_per_second,
            remaining_seconds: progress.remaining_seconds,
            at: progress.at,
        }),
        failure: status.failure.as_ref().map(failure),
        blackout_ms: status.blackout_us.map(milliseconds),
        hypervisor_blackout_ms: status.hypervisor_blackout_ms(),
        notices: status
            .notices
            .iter()
            .map(|notice| NoticeDocument { at: notice.at, host: name(&notice.host), text: notice.text.clone() })
            .collect(),
        submitted_at: plan.planned_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        changed_at: status.changed_at,
    }
}

fn steps(status: &JobStatus) -> Vec<StepDocument> {
    let one = |step: &sterna_shared::job::StepStatus| {
        let seconds = step.seconds();
        StepDocument {
            step: step.kind,
            state: step.state,
            host: step.host.as_ref().map(ToString::to_string),
            started_at: step.started_at,
            finished_at: step.finished_at,
            seconds,
            bytes_total: step.figures.bytes_total,
            bytes_sent: step.figures.bytes_sent,
            passes: step.figures.passes,
            bytes_per_second: seconds.and_then(|seconds| rate(step.figures.bytes_sent, seconds)),
        }
    };
    status.steps.iter().map(one).collect()
}

/// Bytes a second; none where the time is too short to tell.
// A rate needs no more than the 53 bits of a float, and is not negative here.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rate(bytes: u64, seconds: f64) -> Option<u64> {
    (seconds > 0.0 && bytes > 0).then(|| (bytes as f64 / seconds) as u64)
}

// Microseconds of a blackout are far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

fn volume(volume: &Volume) -> VolumeDocument {
    let Volume { total, done, dirtied, redone, sent } = *volume;
    VolumeDocument { total, done, dirtied, redone, sent, remaining: volume.remaining() }
}

fn failure(failure: &FailureReport) -> FailureDocument {
    // The code's stable spelling is the one that serde gives it.
    let code = serde_json::to_value(failure.code).ok().and_then(|code| code.as_str().map(str::to_owned));
    FailureDocument {
        code: code.unwrap_or_default(),
        message: failure.message.clone(),
        causes: failure.causes.clone(),
        remedy: failure.remedy.clone(),
        host: failure.host.as_ref().map(ToString::to_string),
    }
}

/// How far a job is, as far as that is one number: content carried over content there is, dirtied parts counted on both
/// sides. 100 is for completed jobs alone. May fall when a guest dirties much; [`Limiter`] keeps it from being seen.
fn percent(status: &JobStatus, progress: Option<&Progress>) -> u8 {
    if status.state == JobState::Completed {
        return 100;
    }
    let finished = |kind: StepKind| {
        status
            .steps
            .iter()
            .any(|step| step.kind == kind && matches!(step.state, StepState::Finished | StepState::Running))
    };
    if finished(StepKind::Release) || finished(StepKind::Handover) {
        return 99;
    }
    let Some(progress) = progress else { return 0 };
    let sum = |of: fn(&Volume) -> u64| u128::from(of(&progress.disk)) + u128::from(of(&progress.memory));
    let whole = sum(|volume| volume.total.saturating_add(volume.dirtied));
    let carried = sum(|volume| volume.done.saturating_add(volume.redone));
    u8::try_from((carried * 98).checked_div(whole).unwrap_or(0).min(98)).unwrap_or(98)
}

#[cfg(test)]
mod tests;
