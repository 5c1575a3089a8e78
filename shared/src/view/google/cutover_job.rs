//! `CutoverJob`: a VM is moved over to the host that has its replica.

use serde::Serialize;

use crate::job::{JobState, JobStatus, Progress, StepKind, StepState, StepStatus};

use super::clone_job::CloneStage;
use super::error::RpcStatus;
use super::name::{CutoverJobName, MigratingVmName};
use super::target::{ComputeEngineTargetDetails, TargetVmDetails};
use super::values::{CloneJobState, CutoverJobState};
use super::wellknown::{Empty, ProtoDuration, ProtoTimestamp, resource};

resource! {
    /// A job that moves a VM over to the host that has its replica, as Google has it. What Sterna has nothing to say of is left out.
    CutoverJob {
        /// When it was submitted.
        create_time: ProtoTimestamp = "createTime",
        /// When it was over.
        end_time: Option<ProtoTimestamp> = "endTime",
        /// Its name.
        name: CutoverJobName = "name",
        /// The VM as it will be, as Google described it before. Deprecated there.
        target_details: TargetVmDetails = "targetDetails",
        /// Its state. The numbers are other ones than a clone job's.
        state: CutoverJobState = "state",
        /// When its state last changed.
        state_time: ProtoTimestamp = "stateTime",
        /// How far it is, rounded down.
        progress_percent: i32 = "progressPercent",
        /// Why it failed, or waits.
        error: Option<RpcStatus> = "error",
        /// Its state, with the step under way.
        state_message: String = "stateMessage",
        /// The steps that have begun, in their order.
        steps: Vec<CutoverStep> = "steps",
        /// The same as `targetDetails`. Deprecated there.
        compute_engine_vm_details: TargetVmDetails = "computeEngineVmDetails",
        /// The VM as it will be.
        compute_engine_target_details: ComputeEngineTargetDetails = "computeEngineTargetDetails",
    }
}

resource! {
    /// What a cutover would take now.
    CutoverForecast {
        /// From the command to the end.
        estimated_cutover_job_duration: ProtoDuration = "estimatedCutoverJobDuration",
    }
}

/// A step of a cutover job: one or more of Sterna's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CutoverStep {
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<ProtoTimestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<ProtoTimestamp>,
    /// Which it is.
    #[serde(flatten)]
    pub step: CutoverStepKind,
}

/// Which step of a cutover job it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum CutoverStepKind {
    /// What was written since the latest snapshot is sent while the guest runs on, and its memory where it moves live.
    PreviousReplicationCycle(Empty),
    /// The guest is shut down.
    ShuttingDownSourceVm(Empty),
    /// The guest stands still: what is left is sent, and both ends are compared.
    FinalSync(Empty),
    /// The images are made, of what the replica holds.
    PreparingVmDisks(Empty),
    /// The right to run the VM goes to the target, where it runs.
    InstantiatingMigratedVm(Empty),
}

impl CutoverStepKind {
    /// Which of Google's steps one of Sterna's belongs to; none of those of other jobs.
    #[must_use]
    pub const fn of(step: StepKind) -> Option<Self> {
        Some(match step {
            StepKind::Prepare => Self::PreparingVmDisks(Empty {}),
            StepKind::CopyDisks | StepKind::CopyMemory => Self::PreviousReplicationCycle(Empty {}),
            StepKind::ShutDown => Self::ShuttingDownSourceVm(Empty {}),
            StepKind::Switchover | StepKind::Prove => Self::FinalSync(Empty {}),
            StepKind::Handover | StepKind::Release => Self::InstantiatingMigratedVm(Empty {}),
            StepKind::ReadDisks
            | StepKind::Check
            | StepKind::Commit
            | StepKind::AdaptOs
            | StepKind::CloneDisks
            | StepKind::Instantiate
            | StepKind::Probe => {
                return None;
            }
        })
    }
}

impl CutoverJobState {
    /// The state of a cutover job, by its job's, as of a clone job with other numbers: `begun` where a step has begun, `fails` where it unwinds from a failure and not
    /// because it was cancelled.
    #[must_use]
    pub const fn of(state: JobState, begun: bool, fails: bool) -> Self {
        match CloneJobState::of(state, if begun { CloneStage::Begun } else { CloneStage::Waiting }, fails) {
            CloneJobState::Unspecified => Self::Unspecified,
            CloneJobState::Pending => Self::Pending,
            CloneJobState::Active | CloneJobState::AdaptingOs => Self::Active,
            CloneJobState::Cancelling => Self::Cancelling,
            CloneJobState::Succeeded => Self::Succeeded,
            CloneJobState::Cancelled => Self::Cancelled,
            CloneJobState::Failed => Self::Failed,
        }
    }
}

impl CutoverJob {
    /// The job with that status, a cutover of that replication; `progress` is how far it is, as it last said.
    #[must_use]
    pub fn of(replicated: &MigratingVmName, status: &JobStatus, progress: Option<&Progress>) -> Self {
        let (vm, host, labels) = (&status.plan.vm_at_target, &status.plan.target.id, &status.policy.labels);
        let step = status.current_step().filter(|_| !status.state.is_final());
        Self {
            create_time: status.submitted_at.into(),
            end_time: status.finished_at.map(ProtoTimestamp),
            name: replicated.cutover_job(status.job),
            target_details: TargetVmDetails::of(vm, host, labels),
            state: CutoverJobState::of(status.state, status.started_at.is_some(), status.fails()),
            state_time: status.changed_at.into(),
            progress_percent: whole(status.percent(progress)),
            error: RpcStatus::of_job(status),
            state_message: match step {
                Some(step) => format!("{}: {}", status.state, step.kind),
                None => status.state.to_string(),
            },
            steps: CutoverStep::all(&status.steps),
            compute_engine_vm_details: TargetVmDetails::of(vm, host, labels),
            compute_engine_target_details: ComputeEngineTargetDetails::of(&status.plan, labels),
        }
    }
}

impl CutoverStep {
    /// The names of its fields in JSON; of the last five there is one.
    pub const FIELDS: &[&str] = &[
        "startTime",
        "endTime",
        "previousReplicationCycle",
        "shuttingDownSourceVm",
        "finalSync",
        "preparingVmDisks",
        "instantiatingMigratedVm",
    ];

    /// Those that have begun. Steps that follow each other and are one of Google's are told as one, which is over when all of them
    /// are.
    fn all(steps: &[StepStatus]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for status in steps {
            let Some(step) = CutoverStepKind::of(status.kind) else { continue };
            let (start_time, end_time) =
                (status.started_at.map(ProtoTimestamp), status.finished_at.map(ProtoTimestamp));
            match all.last_mut().filter(|last| last.step == step) {
                Some(last) => last.end_time = end_time,
                None if status.state == StepState::Waiting => {}
                None => all.push(Self { start_time, end_time, step }),
            }
        }
        all
    }
}

/// It is between 0 and 100.
#[allow(clippy::cast_possible_truncation)]
fn whole(percent: f64) -> i32 {
    percent.floor() as i32
}
