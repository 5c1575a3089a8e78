//! Commands: what a coordinator tells an agent about a job, kept until the agent has taken it.

use serde::{Deserialize, Serialize};

use crate::id::JobId;
use crate::job::Plan;
use crate::units::Bandwidth;

/// A command. Taking one twice has the effect of taking it once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Command {
    /// Carry out your part of the plan.
    Run {
        /// The plan, with its token.
        plan: Box<Plan>,
    },
    /// End the job and put everything back.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// Stop the job so that it can go on later: put everything back but what was received.
    Suspend {
        /// The job.
        job: JobId,
        /// The plan that it is about: one that the job was resumed with meanwhile is not stopped by a late command.
        attempt: u32,
    },
    /// End the job at once; everything is put back afterwards.
    Kill {
        /// The job.
        job: JobId,
    },
    /// Change the job's rate limit.
    SetBandwidth {
        /// The job.
        job: JobId,
        /// The new limit; none lifts it.
        bandwidth: Option<Bandwidth>,
    },
}

impl Command {
    /// The job it is about.
    #[must_use]
    pub fn job(&self) -> JobId {
        match self {
            Self::Run { plan } => plan.job,
            Self::Cancel { job } | Self::Kill { job } | Self::Suspend { job, .. } | Self::SetBandwidth { job, .. } => {
                *job
            }
        }
    }
}
