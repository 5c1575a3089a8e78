//! The runs of a recurring job, each a job of its own.

use serde::{Deserialize, Serialize};

use super::{FailureReport, JobState};
use crate::id::JobId;
use crate::time::Timestamp;

/// The most runs of a recurring job that its status lists; the oldest go first, and are still counted.
pub const RUNS_MAX: usize = 64;

/// The runs of a recurring job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Runs {
    /// How many have begun.
    pub count: u32,
    /// Up to which instant the schedule was looked at.
    pub considered: Timestamp,
    /// The latest, the oldest first.
    pub latest: Vec<Run>,
}

/// One run of a recurring job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Run {
    /// The run, a job of its own.
    pub job: JobId,
    /// The turn that it is for.
    pub turn: Timestamp,
    /// When it was submitted.
    pub began_at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub state: Option<JobState>,
    /// Why it failed.
    pub failure: Option<FailureReport>,
}

impl Runs {
    /// The run that is not over.
    #[must_use]
    pub fn current(&self) -> Option<JobId> {
        self.latest.last().filter(|run| run.state.is_none()).map(|run| run.job)
    }

    /// A run was submitted for a turn.
    pub(super) fn begin(&mut self, job: JobId, turn: Timestamp, at: Timestamp) {
        if self.latest.len() == RUNS_MAX {
            self.latest.remove(0);
        }
        self.latest.push(Run { job, turn, began_at: at, ended_at: None, state: None, failure: None });
        self.count += 1;
        self.considered = self.considered.max(turn);
    }

    /// A run is over.
    pub(super) fn end(&mut self, job: JobId, state: JobState, failure: Option<FailureReport>, at: Timestamp) {
        if let Some(run) = self.latest.iter_mut().find(|run| run.job == job) {
            (run.state, run.failure, run.ended_at) = (Some(state), failure, Some(at));
        }
    }
}
