//! What is read off a status: in whose hands a job is, what it holds, and what may be done about it.

use super::{Dispatch, JobStatus};
use crate::id::{HostId, VmId};
use crate::job::{Due, FailureCode, Hands, JobKind, JobState, Plan, StepFigures, StepState, StepStatus};
use crate::time::Timestamp;

impl JobStatus {
    /// In whose hands it is.
    #[must_use]
    pub fn hands(&self) -> Hands {
        match self.dispatch {
            Dispatch::Waiting => Hands::Coordinator,
            _ if self.state.is_final() => Hands::Coordinator,
            // Also one that was cancelled, or failed, in the last moment before the cede.
            _ if self.state == JobState::ShuttingDown => Hands::Agents,
            _ if self.is_unresolved() || !self.cancellable() => Hands::Ceded,
            Dispatch::Sent | Dispatch::Taken => Hands::Agents,
        }
    }

    /// Whether the job waits in the queue: for its time, or for a slot at its hosts.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.dispatch == Dispatch::Waiting
            && matches!(self.state, JobState::New | JobState::Starting)
            && !self.policy.recurs()
    }

    /// Whether its time has come: it has no schedule, its turn is there, or somebody said that it is to begin.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        match &self.policy.schedule {
            Some(schedule) if self.state == JobState::New => {
                matches!(schedule.due(self.runs.considered, now, self.runs.count), Due::Run { .. })
            }
            _ => true,
        }
    }

    /// Whether it holds its VM, so that no other job may move it. One whose time has not come holds nothing, one that
    /// recurs has runs that do, and a check that reads no disk is in nobody's way.
    #[must_use]
    pub fn holds_vm(&self, now: Timestamp) -> bool {
        let holds = self.plan.kind.holds_vm() && !self.policy.recurs();
        holds && !self.state.is_final() && (self.has_begun() || self.is_due(now))
    }

    /// Whether other jobs may have to wait for it: it holds its VM, or a replica.
    #[must_use]
    pub fn is_in_the_way(&self, now: Timestamp) -> bool {
        self.holds_vm(now) || self.holds_replica(self.plan.vm.id, &self.plan.target.id)
    }

    /// Whether it has the replica of a VM at a host in hand, and no cycle may change that.
    #[must_use]
    pub fn holds_replica(&self, vm: VmId, host: &HostId) -> bool {
        let Plan { kind, vm: of, target, .. } = &self.plan;
        let verifies = *kind == JobKind::Verify && of.id == vm && target.id == *host;
        verifies && !self.state.is_final() && self.has_begun()
    }

    /// Whether it is a check whose turn to look has come: it has begun, and the coordinator has it in hand. Where nobody
    /// looks, one has fallen out in the middle of it, and it begins anew.
    #[must_use]
    pub fn is_checking(&self) -> bool {
        self.plan.kind.only_looks()
            && self.state == JobState::Running
            && self.dispatch == Dispatch::Waiting
            && !self.policy.recurs()
    }

    /// When its next turn is, while it waits for one.
    #[must_use]
    pub fn next_turn(&self, now: Timestamp) -> Option<Timestamp> {
        let waits = self.state == JobState::New && self.dispatch == Dispatch::Waiting;
        self.policy.schedule.as_ref().filter(|_| waits)?.next(now, self.runs.count)
    }

    /// Whether it was begun before: it is under way, or was, and goes on from there.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// The attempt that it would begin as now.
    #[must_use]
    pub fn next_attempt(&self) -> u32 {
        self.plan.attempt.saturating_add(u32::from(self.begun))
    }

    /// Whether it takes a slot at its hosts.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.dispatch != Dispatch::Waiting && !self.state.is_final()
    }

    /// The hosts with a part in it that have not said that they have its plan.
    #[must_use]
    pub fn missing(&self) -> Vec<&HostId> {
        let lacks = |host: &&HostId| self.accepted.get(host.as_str()) != Some(&self.plan.attempt);
        if self.is_active() { self.plan.parties().into_iter().filter(lacks).collect() } else { Vec::new() }
    }

    /// Whether it waits because nobody may run the VM until the handover is resolved, and not for another word.
    #[must_use]
    pub fn is_unresolved(&self) -> bool {
        self.state == JobState::QueryPending && self.dispatch != Dispatch::Waiting
    }

    /// Whether it is a replication that is over as soon as nothing of it is left: until then no cycle is made.
    #[must_use]
    pub fn is_finalizing(&self) -> bool {
        self.finalization.is_some() && !self.state.is_final()
    }

    /// Whether something has failed in it, and it does not unwind because it was cancelled.
    #[must_use]
    pub fn fails(&self) -> bool {
        let failures = self.steps.iter().filter_map(|step| step.failure.as_ref());
        failures.chain(&self.failure).any(|failure| failure.code != FailureCode::Cancelled)
    }

    /// Whether it is a replication that has expired, or had when it was over.
    #[must_use]
    pub fn has_expired(&self, now: Timestamp) -> bool {
        let then = self.finalization.as_ref().map(|of| of.asked_at).or(self.finished_at).unwrap_or(now);
        self.policy.expiration.is_some_and(|expiration| expiration.is_over(then))
    }

    /// What it has done, the time before it was last suspended counted in.
    #[must_use]
    pub fn figures(&self) -> StepFigures {
        self.steps.iter().fold(self.before, |sum, step| sum.plus(&step.figures))
    }

    /// Whether a cancel can still be honoured.
    #[must_use]
    pub fn cancellable(&self) -> bool {
        !self.state.is_final()
            && self.steps.iter().all(|step| step.kind.cancellable() || step.state == StepState::Waiting)
    }

    /// The step under way.
    #[must_use]
    pub fn current_step(&self) -> Option<&StepStatus> {
        self.steps.iter().rev().find(|step| step.state == StepState::Running)
    }

    /// How long the guest stood still as the source's hypervisor counts it, in milliseconds, once a step has told it.
    #[must_use]
    pub fn hypervisor_blackout_ms(&self) -> Option<u64> {
        self.steps.iter().find_map(|step| step.figures.hypervisor_blackout_ms)
    }
}
