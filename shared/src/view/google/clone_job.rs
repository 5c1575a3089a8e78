//! `CloneJob`: a VM is made of a replica.

use serde::Serialize;

use crate::job::{JobState, JobStatus, StepKind, StepState, StepStatus};
use crate::time::Timestamp;

use super::error::RpcStatus;
use super::name::{CloneJobName, MigratingVmName};
use super::target::{ComputeEngineTargetDetails, TargetVmDetails};
use super::values::CloneJobState;
use super::wellknown::{Empty, ProtoTimestamp, resource};

resource! {
    /// A job that makes a VM of a replica, as Google has it. What Sterna has nothing to say of is left out.
    CloneJob {
        /// When it was submitted.
        create_time: ProtoTimestamp = "createTime",
        /// When it was over.
        end_time: Option<ProtoTimestamp> = "endTime",
        /// Its name.
        name: CloneJobName = "name",
        /// The VM that it makes, as Google described it before. Deprecated there.
        target_details: TargetVmDetails = "targetDetails",
        /// Its state.
        state: CloneJobState = "state",
        /// When its state last changed.
        state_time: ProtoTimestamp = "stateTime",
        /// Why it failed, or waits.
        error: Option<RpcStatus> = "error",
        /// The steps that have begun.
        steps: Vec<CloneStep> = "steps",
        /// The same as `targetDetails`. Deprecated there.
        compute_engine_vm_details: TargetVmDetails = "computeEngineVmDetails",
        /// The VM that it makes.
        compute_engine_target_details: ComputeEngineTargetDetails = "computeEngineTargetDetails",
    }
}

/// A step of a clone job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CloneStep {
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<ProtoTimestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<ProtoTimestamp>,
    /// Which it is.
    #[serde(flatten)]
    pub step: CloneStepKind,
}

/// Which step of a clone job it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum CloneStepKind {
    /// The system on its disks gets an identity of its own.
    AdaptingOs(Empty),
    /// Its disks are made.
    PreparingVmDisks(Empty),
    /// It is defined, and started where that is asked.
    InstantiatingMigratedVm(Empty),
}

/// How far a clone job is, as far as its state depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneStage {
    /// No step has begun.
    Waiting,
    /// One has.
    Begun,
    /// The system on its disks is adapted at this moment.
    AdaptingOs,
}

impl CloneStage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Begun, Self::AdaptingOs];

    fn of(status: &JobStatus) -> Self {
        match status.current_step().map(|step| step.kind) {
            Some(StepKind::AdaptOs) => Self::AdaptingOs,
            _ if status.started_at.is_some() => Self::Begun,
            _ => Self::Waiting,
        }
    }
}

impl CloneJobState {
    /// The state of a clone job, by its job's and how far that is.
    #[must_use]
    pub const fn of(state: JobState, stage: CloneStage, fails: bool) -> Self {
        use JobState as J;
        let begun = !matches!(stage, CloneStage::Waiting);
        match (state, begun) {
            (J::Running, _) if matches!(stage, CloneStage::AdaptingOs) => Self::AdaptingOs,
            (J::New | J::Starting | J::Suspended | J::Service | J::QueryPending, false) => Self::Pending,
            (J::New | J::Starting | J::Suspended | J::Service | J::QueryPending, true) | (J::Running, _) => {
                Self::Active
            }
            (J::ShuttingDown, _) if fails => Self::Active,
            (J::ShuttingDown, _) => Self::Cancelling,
            (J::Completed, _) => Self::Succeeded,
            (J::Terminated | J::Killed, _) => Self::Cancelled,
            (J::Exception, _) => Self::Failed,
        }
    }
}

impl CloneJob {
    /// The job with that status, a clone of that replication.
    #[must_use]
    pub fn of(replicated: &MigratingVmName, status: &JobStatus) -> Self {
        let (vm, host, labels) = (&status.plan.vm, &status.plan.target.id, &status.policy.labels);
        Self {
            create_time: status.submitted_at.into(),
            end_time: status.finished_at.map(ProtoTimestamp),
            name: replicated.clone_job(status.job),
            target_details: TargetVmDetails::of(vm, host, labels),
            state: CloneJobState::of(status.state, CloneStage::of(status), status.fails()),
            state_time: state_time(status).into(),
            error: RpcStatus::of_job(status),
            steps: status.steps.iter().filter_map(CloneStep::of).collect(),
            compute_engine_vm_details: TargetVmDetails::of(vm, host, labels),
            compute_engine_target_details: ComputeEngineTargetDetails::of(&status.plan, labels),
        }
    }
}

impl CloneStep {
    /// The names of its fields in JSON; of the last three there is one.
    pub const FIELDS: &[&str] = &["startTime", "endTime", "adaptingOs", "preparingVmDisks", "instantiatingMigratedVm"];

    /// That step, once it has begun; none of those of other jobs.
    fn of(step: &StepStatus) -> Option<Self> {
        let kind = match step.kind {
            StepKind::CloneDisks => CloneStepKind::PreparingVmDisks(Empty {}),
            StepKind::AdaptOs => CloneStepKind::AdaptingOs(Empty {}),
            StepKind::Instantiate => CloneStepKind::InstantiatingMigratedVm(Empty {}),
            _ => return None,
        };
        (step.state != StepState::Waiting).then(|| Self {
            start_time: step.started_at.map(ProtoTimestamp),
            end_time: step.finished_at.map(ProtoTimestamp),
            step: kind,
        })
    }
}

/// When its state last changed. A step is a state of its own here, as long as the job runs.
fn state_time(status: &JobStatus) -> Timestamp {
    let adapted =
        status.steps.iter().filter(|step| step.kind == StepKind::AdaptOs && status.state == JobState::Running);
    let turns = adapted.flat_map(|step| [step.started_at, step.finished_at]).flatten();
    turns.fold(status.changed_at, Timestamp::max)
}
