//! How a replication stands, in the words of Google's `MigratingVm`: one table, of which every face tells. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Replica;
use crate::id::{HostId, VmId};
use crate::job::{JobKind, JobState, JobStatus, StepKind};
use crate::time::Timestamp;

/// How a replication stands, in the words of Google's `MigratingVm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReplicaState {
    /// Nothing was copied yet; or nothing keeps the replica up to date.
    Ready,
    /// The first cycle is under way.
    FirstSync,
    /// There is a snapshot, and cycles go on.
    Active,
    /// No cycle begins until it is resumed.
    Paused,
    /// The latest cycle has failed, or the replication as a whole.
    Error,
    /// A cutover is under way, and the guest runs at the source.
    CuttingOver,
    /// Of a cutover: the guest stands still, or is off, and what is left is sent.
    FinalSync,
    /// The VM is at the host that has its replica: no cycle begins until it is elsewhere again.
    Cutover,
    /// It has expired: no cycle begins unless that is pushed back.
    Expired,
    /// It is about to be over for good: the replica goes, and the way back of the cutover.
    Finalizing,
    /// It is over, and no cycle will begin.
    Finalized,
    /// It is over, and had expired before.
    FinalizedExpired,
}

impl fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "READY",
            Self::FirstSync => "FIRST_SYNC",
            Self::Active => "ACTIVE",
            Self::Paused => "PAUSED",
            Self::Error => "ERROR",
            Self::CuttingOver => "CUTTING_OVER",
            Self::FinalSync => "FINAL_SYNC",
            Self::Cutover => "CUTOVER",
            Self::Expired => "EXPIRED",
            Self::Finalizing => "FINALIZING",
            Self::Finalized => "FINALIZED",
            Self::FinalizedExpired => "FINALIZED_EXPIRED",
        })
    }
}

/// How far a replicated VM is on its way to the host that has its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutoverStanding {
    /// A cutover is under way, and the guest runs at the source.
    UnderWay,
    /// It stands still, or is off, and what is left is sent.
    FinalSync,
    /// The VM is there.
    Over,
}

impl CutoverStanding {
    /// How far that VM is on its way to that host, where it is or is not yet. `jobs` may be any: the cutovers among them count.
    #[must_use]
    pub fn of<'a>(
        vm: VmId,
        host: &HostId,
        jobs: impl IntoIterator<Item = &'a JobStatus>,
        is_there: bool,
    ) -> Option<Self> {
        let under_way = jobs.into_iter().find(|status| {
            let plan = &status.plan;
            let is_ours = plan.kind == JobKind::Cutover && plan.vm.id == vm && plan.target.id == *host;
            is_ours && !status.state.is_final() && status.started_at.is_some()
        });
        match under_way.map(|status| status.current_step().map(|step| step.kind)) {
            Some(Some(StepKind::Switchover | StepKind::Prove)) => Some(Self::FinalSync),
            Some(_) => Some(Self::UnderWay),
            None => is_there.then_some(Self::Over),
        }
    }
}

/// What the state of a replication is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its job's state.
    pub state: JobState,
    /// Whether the job unwinds from a failure, and not because it was cancelled.
    pub fails: bool,
    /// Whether a cycle is under way.
    pub under_way: bool,
    /// Whether there is a snapshot.
    pub synced: bool,
    /// Whether the cycle failed that was last over.
    pub failed: bool,
    /// How far a cutover is, if there is any.
    pub cutover: Option<CutoverStanding>,
    /// Whether it is about to be over for good.
    pub finalizing: bool,
    /// Whether it has expired, or had when it was over.
    pub expired: bool,
}

impl Standing {
    /// Of a replica that nothing keeps up to date.
    #[must_use]
    pub const fn without_job(cutover: Option<CutoverStanding>) -> Self {
        Self {
            state: JobState::New,
            fails: false,
            under_way: false,
            synced: false,
            failed: false,
            cutover,
            finalizing: false,
            expired: false,
        }
    }

    /// Of a job that replicates, whose cycles have ended so, the oldest first; none is the end of one that is under way. The
    /// replica is as its host last told of it.
    #[must_use]
    pub fn of(
        job: &JobStatus,
        cycles: &[Option<JobState>],
        replica: Option<&Replica>,
        cutover: Option<CutoverStanding>,
        now: Timestamp,
    ) -> Self {
        Self {
            state: job.state,
            fails: job.fails(),
            under_way: cycles.last().is_some_and(Option::is_none),
            synced: match replica {
                Some(replica) => replica.latest().is_some(),
                None => cycles.contains(&Some(JobState::Completed)),
            },
            failed: cycles.iter().rev().find_map(|end| *end) == Some(JobState::Exception),
            cutover,
            finalizing: job.is_finalizing(),
            expired: job.has_expired(now),
        }
    }
}

impl ReplicaState {
    /// The state of a replication: the whole table.
    #[must_use]
    pub const fn of(standing: Standing) -> Self {
        use JobState as J;
        if !standing.state.is_final() && !matches!(standing.state, J::ShuttingDown) {
            if standing.finalizing {
                return Self::Finalizing;
            }
            match standing.cutover {
                Some(CutoverStanding::UnderWay) => return Self::CuttingOver,
                Some(CutoverStanding::FinalSync) => return Self::FinalSync,
                Some(CutoverStanding::Over) => return Self::Cutover,
                None if standing.expired => return Self::Expired,
                None => {}
            }
        }
        match (standing.state, standing.under_way, standing.synced) {
            (J::Suspended, ..) => Self::Paused,
            (J::ShuttingDown, ..) if standing.fails => Self::Error,
            (J::ShuttingDown, ..) => Self::Finalizing,
            (J::Completed | J::Terminated | J::Killed, ..) if standing.expired => Self::FinalizedExpired,
            (J::Completed | J::Terminated | J::Killed, ..) => Self::Finalized,
            (J::Exception, ..) => Self::Error,
            (_, true, false) => Self::FirstSync,
            (_, true, true) => Self::Active,
            (_, false, _) if standing.failed => Self::Error,
            (_, false, false) => Self::Ready,
            // It is held, and no cycle will be made until somebody lets go of it.
            (J::Service, false, true) => Self::Paused,
            (J::New | J::Starting | J::Running | J::QueryPending, false, true) => Self::Active,
        }
    }

    /// Whether nobody waits for a cycle.
    #[must_use]
    pub const fn is_at_rest(self) -> bool {
        !matches!(self, Self::Ready | Self::FirstSync | Self::Active | Self::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_spelt_alike_for_people_and_for_programs() {
        use ReplicaState as R;
        for state in [
            R::Ready,
            R::FirstSync,
            R::Active,
            R::Paused,
            R::Error,
            R::CuttingOver,
            R::FinalSync,
            R::Cutover,
            R::Expired,
            R::Finalizing,
            R::Finalized,
            R::FinalizedExpired,
        ] {
            assert_eq!(serde_json::to_value(state).expect("JSON"), state.to_string());
        }
    }

    #[test]
    fn a_replica_without_a_job_waits_for_one_unless_its_vm_comes_to_it() {
        for (cutover, state) in [
            (None, ReplicaState::Ready),
            (Some(CutoverStanding::UnderWay), ReplicaState::CuttingOver),
            (Some(CutoverStanding::FinalSync), ReplicaState::FinalSync),
            (Some(CutoverStanding::Over), ReplicaState::Cutover),
        ] {
            assert_eq!(ReplicaState::of(Standing::without_job(cutover)), state);
        }
    }
}
