//! `CloneJob`: a VM is made of a replica.

use serde::Serialize;

use crate::job::{JobState, JobStatus, StepKind, StepState, StepStatus};

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
    /// The guest's operating system is changed. Not built yet, and never said.
    AdaptingOs(Empty),
    /// Its disks are made.
    PreparingVmDisks(Empty),
    /// It is defined, and started where that is asked.
    InstantiatingMigratedVm(Empty),
}

impl CloneJobState {
    /// The state of a clone job, by its job's: `begun` where a step has begun, `fails` where it unwinds from a failure and not
    /// because it was cancelled.
    #[must_use]
    pub const fn of(state: JobState, begun: bool, fails: bool) -> Self {
        use JobState as J;
        match (state, begun) {
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
        let (vm, host) = (&status.plan.vm, &status.plan.target.id);
        Self {
            create_time: status.submitted_at.into(),
            end_time: status.finished_at.map(ProtoTimestamp),
            name: replicated.clone_job(status.job),
            target_details: TargetVmDetails::of(vm, host),
            state: CloneJobState::of(status.state, status.started_at.is_some(), fails(status)),
            state_time: status.changed_at.into(),
            error: RpcStatus::of_job(status),
            steps: status.steps.iter().filter_map(CloneStep::of).collect(),
            compute_engine_vm_details: TargetVmDetails::of(vm, host),
            compute_engine_target_details: ComputeEngineTargetDetails::of(vm, host),
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

/// Whether a step of it has failed, and not because it was cancelled.
pub(super) fn fails(status: &JobStatus) -> bool {
    let failures = status.steps.iter().filter_map(|step| step.failure.as_ref());
    failures.chain(&status.failure).any(|failure| failure.code != crate::job::FailureCode::Cancelled)
}
