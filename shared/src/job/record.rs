//! Records: what is kept of a job when it is over and has left the list.

use serde::{Deserialize, Serialize};

use super::{FailureReport, JobKind, JobState, JobStatus, MoveMode, Policy, Run, StepFigures};
use crate::id::{HostId, JobId, VmId, VmName};
use crate::time::Timestamp;

/// A job that is over, in little: its plan, its steps and its notices are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobRecord {
    /// The job.
    pub job: JobId,
    /// The VM's name at the time.
    pub vm: VmName,
    /// The VM.
    pub vm_id: VmId,
    /// The host that had it.
    pub source: HostId,
    /// The host that was to have it.
    pub target: HostId,
    /// What it did about the VM.
    #[serde(default)]
    pub kind: JobKind,
    /// How the VM moved, or would have.
    pub mode: MoveMode,
    /// How the job was treated.
    pub policy: Policy,
    /// How it ended.
    pub state: JobState,
    /// Why it failed.
    pub failure: Option<FailureReport>,
    /// How long the guest did not execute, in microseconds.
    pub blackout_us: Option<u64>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Timestamp,
    /// How often it was begun before: a suspended job goes on as the next attempt.
    pub attempt: u32,
    /// What its steps did, all attempts together.
    pub figures: StepFigures,
    /// The job that it was a run of, or that it followed since that one failed.
    pub parent: Option<JobId>,
    /// Its runs, oldest first, where it recurred; of many the last.
    pub runs: Vec<Run>,
}

impl JobRecord {
    /// What is to be kept of a job; none before it is over.
    #[must_use]
    pub fn of(status: &JobStatus) -> Option<Self> {
        let finished_at = status.finished_at.filter(|_| status.state.is_final())?;
        let plan = &status.plan;
        Some(Self {
            job: status.job,
            vm: plan.vm.name.clone(),
            vm_id: plan.vm.id,
            source: plan.source.id.clone(),
            target: plan.target.id.clone(),
            kind: plan.kind,
            mode: plan.mode,
            policy: status.policy.clone(),
            state: status.state,
            failure: status.failure.clone(),
            blackout_us: status.blackout_us,
            submitted_at: status.submitted_at,
            started_at: status.started_at,
            finished_at,
            attempt: plan.attempt,
            figures: status.figures(),
            parent: status.parent,
            runs: status.runs.latest.clone(),
        })
    }

    /// Whether it is about a VM of that name or id, and was over at `since` or later; what is not asked for fits.
    #[must_use]
    pub fn fits(&self, vm: Option<&str>, since: Option<Timestamp>) -> bool {
        let named = |vm: &str| vm == self.vm.as_str() || vm.parse() == Ok(self.vm_id);
        vm.is_none_or(named) && since.is_none_or(|since| self.finished_at >= since)
    }
}
