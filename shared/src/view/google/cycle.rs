//! `ReplicationCycle`: a run of a replication, a job of its own.

use serde::Serialize;

use crate::id::JobId;
use crate::job::{JobState, JobStatus, Plan, Progress, Run, StepKind, StepState, StepStatus};
use crate::time::Timestamp;

use super::averages::{self, Rates};
use super::error::{MigrationWarning, RpcStatus};
use super::name::{MigratingVmName, ReplicationCycleName};
use super::values::ReplicationCycleState;
use super::wellknown::{Empty, Int64, ProtoDuration, ProtoTimestamp, resource};

resource! {
    /// A replication cycle, as Google has it. What Sterna has nothing to say of is left out.
    ReplicationCycle {
        /// Its name.
        name: ReplicationCycleName = "name",
        /// The how-manieth it is of its replication, from 1.
        cycle_number: u32 = "cycleNumber",
        /// When its first step began.
        start_time: Option<ProtoTimestamp> = "startTime",
        /// When it was over.
        end_time: Option<ProtoTimestamp> = "endTime",
        /// How long it was paused since it began. None where it has gone on after a pause: a status keeps no sum of them.
        total_pause_duration: Option<ProtoDuration> = "totalPauseDuration",
        /// How far it is, rounded down; 100 only where it did what it should. Deprecated there for the steps.
        progress_percent: Option<i32> = "progressPercent",
        /// The steps that have begun.
        steps: Vec<CycleStep> = "steps",
        /// Its state.
        state: ReplicationCycleState = "state",
        /// Why it failed, or waits.
        error: Option<RpcStatus> = "error",
        /// What watchers should know of it.
        warnings: Vec<MigrationWarning> = "warnings",
    }
}

/// A step of a cycle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CycleStep {
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<ProtoTimestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<ProtoTimestamp>,
    /// Which it is.
    #[serde(flatten)]
    pub step: CycleStepKind,
}

/// Which step of a cycle it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum CycleStepKind {
    /// The point in time is taken, and there is room for it at the target.
    InitializingReplication(Empty),
    /// What was written since the latest snapshot is sent.
    Replicating(ReplicatingStep),
    /// Both ends' digests are compared, and the snapshot is there.
    PostProcessing(Empty),
}

resource! {
    /// How far the copying is. What is not known is left out.
    ReplicatingStep {
        /// Bytes of content there are to be carried.
        total_bytes: Option<Int64> = "totalBytes",
        /// Bytes of these that are done, also where they need not cross.
        replicated_bytes: Option<Int64> = "replicatedBytes",
        /// Bytes done a second over the last two minutes of the step; over all of it where no samples tell.
        last_two_minutes_average_bytes_per_second: Option<Int64> = "lastTwoMinutesAverageBytesPerSecond",
        /// The same over half an hour.
        last_thirty_minutes_average_bytes_per_second: Option<Int64> = "lastThirtyMinutesAverageBytesPerSecond",
    }
}

/// What is known of a cycle that is under way beside its events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace<'a> {
    /// How far it is, as it last said. Of another job it is left aside.
    pub progress: Option<&'a Progress>,
    /// What its progress has said of late of [`Volume::done`](crate::job::Volume::done) of its disks, a second.
    pub rates: Rates,
}

impl ReplicationCycleState {
    /// The state of a cycle, by its job's. One that was cancelled has failed: Google has no word for it, and its snapshot is not
    /// there.
    #[must_use]
    pub const fn of(state: JobState) -> Self {
        match state {
            JobState::New | JobState::Starting | JobState::Running | JobState::ShuttingDown => Self::Running,
            JobState::Suspended | JobState::Service | JobState::QueryPending => Self::Paused,
            JobState::Completed => Self::Succeeded,
            JobState::Terminated | JobState::Killed | JobState::Exception => Self::Failed,
        }
    }
}

impl ReplicationCycle {
    /// The cycle with that status, the how-manieth of that replication; `now` is for how long it has been paused.
    #[must_use]
    pub fn of(vm: &MigratingVmName, number: u32, status: &JobStatus, pace: Pace<'_>, now: Timestamp) -> Self {
        Self {
            name: vm.cycle(status.job),
            cycle_number: number,
            start_time: status.started_at.map(ProtoTimestamp),
            end_time: status.finished_at.map(ProtoTimestamp),
            total_pause_duration: paused(status, now),
            progress_percent: Some(percent(status.percent(pace.progress))),
            steps: status.steps.iter().filter_map(|step| CycleStep::of(status, step, pace)).collect(),
            state: ReplicationCycleState::of(status.state),
            error: RpcStatus::of_job(status)
                .or_else(|| RpcStatus::of_end(&status.plan, status.state, "the cycle", status.finished_at?)),
            warnings: status.notices.iter().map(MigrationWarning::from).collect(),
        }
    }

    /// A cycle of which no more is known than the replication's own job remembers; `plan` is that job's.
    #[must_use]
    pub fn of_run(vm: &MigratingVmName, number: u32, plan: &Plan, run: &Run) -> Self {
        let state = run.state.unwrap_or(JobState::Running);
        let failed = |failure| RpcStatus::of(plan, failure, run.ended_at.unwrap_or(run.began_at));
        Self {
            name: vm.cycle(run.job),
            cycle_number: number,
            start_time: Some(run.began_at.into()),
            end_time: run.ended_at.map(ProtoTimestamp),
            total_pause_duration: None,
            progress_percent: (state == JobState::Completed).then_some(100),
            steps: Vec::new(),
            state: ReplicationCycleState::of(state),
            error: run
                .failure
                .as_ref()
                .map(failed)
                .or_else(|| RpcStatus::of_end(plan, state, "the cycle", run.ended_at?)),
            warnings: Vec::new(),
        }
    }

    /// The cycle's job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.name.job
    }
}

/// A cycle that has gone on after a pause has a newer plan; how long the pause was, its status no longer tells.
fn paused(status: &JobStatus, now: Timestamp) -> Option<ProtoDuration> {
    match (status.started_at, ReplicationCycleState::of(status.state)) {
        (None, _) => Some(ProtoDuration::from_seconds(0)),
        _ if status.plan.attempt > 0 => None,
        (_, ReplicationCycleState::Paused) => Some(ProtoDuration::between(status.changed_at, now)),
        _ => Some(ProtoDuration::from_seconds(0)),
    }
}

/// A percent is between 0 and 100.
#[allow(clippy::cast_possible_truncation)]
fn percent(percent: f64) -> i32 {
    percent as i32
}

impl CycleStep {
    /// The names of its fields in JSON; of the last three there is one.
    pub const FIELDS: &[&str] = &["startTime", "endTime", "initializingReplication", "replicating", "postProcessing"];

    /// That step, once it has begun; none of those of other jobs.
    fn of(status: &JobStatus, step: &StepStatus, pace: Pace<'_>) -> Option<Self> {
        let kind = match step.kind {
            StepKind::Prepare => CycleStepKind::InitializingReplication(Empty {}),
            StepKind::CopyDisks => CycleStepKind::Replicating(ReplicatingStep::of(status, step, pace)),
            StepKind::Commit => CycleStepKind::PostProcessing(Empty {}),
            _ => return None,
        };
        (step.state != StepState::Waiting).then(|| Self {
            start_time: step.started_at.map(ProtoTimestamp),
            end_time: step.finished_at.map(ProtoTimestamp),
            step: kind,
        })
    }
}

impl ReplicatingStep {
    fn of(status: &JobStatus, step: &StepStatus, pace: Pace<'_>) -> Self {
        // What was to be carried, what of it is done, and when that was so.
        let volume = match step.state {
            StepState::Finished => Some((step.figures.bytes_total, step.figures.bytes_total, step.finished_at)),
            StepState::Running => {
                let progress = status.latest(pace.progress).filter(|progress| progress.step == step.kind);
                progress.map(|progress| (progress.disk.total, progress.disk.done, Some(progress.at)))
            }
            StepState::Waiting | StepState::Failed => None,
        };
        let whole = volume.and_then(|(_, done, at)| {
            let microseconds = at?.unix_microseconds().saturating_sub(step.started_at?.unix_microseconds());
            averages::rate(done, microseconds)
        });
        // Rates are of now: of a step that is over the whole of it tells more.
        let is_of_late = step.state == StepState::Running && volume.is_some();
        let average = |rate: Option<u64>| rate.filter(|_| is_of_late).or(whole).map(Int64);
        Self {
            total_bytes: volume.map(|(total, _, _)| Int64(total)),
            replicated_bytes: volume.map(|(_, done, _)| Int64(done)),
            last_two_minutes_average_bytes_per_second: average(pace.rates.two_minutes),
            last_thirty_minutes_average_bytes_per_second: average(pace.rates.thirty_minutes),
        }
    }
}
