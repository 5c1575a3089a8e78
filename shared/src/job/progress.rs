//! Progress: frequent, not kept, never more than a hint.

use serde::{Deserialize, Serialize};

use super::StepKind;
use crate::id::{HostId, JobId};
use crate::time::Timestamp;

/// How far a job is, at most twice a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// Who says so.
    pub host: HostId,
    /// When.
    pub at: Timestamp,
    /// The step under way.
    pub step: StepKind,
    /// The pass or round under way, from 0.
    pub pass: u32,
    /// Disk content.
    pub disk: Volume,
    /// Memory.
    pub memory: Volume,
    /// Bytes a second on the link of late.
    pub bytes_per_second: u64,
    /// Seconds until the blackout, as far as the rates tell; none where they tell nothing.
    pub remaining_seconds: Option<u32>,
}

/// How much of something has crossed. What was there at the start and what was dirtied anew are told apart, so that
/// neither number ever runs backwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Volume {
    /// Bytes there were at the start.
    pub total: u64,
    /// Bytes of these that are done, holes and zeroes counted.
    pub done: u64,
    /// Bytes dirtied anew since, in all.
    pub dirtied: u64,
    /// Bytes of the dirtied that were sent again.
    pub redone: u64,
    /// Bytes of payload put on the link.
    pub sent: u64,
    /// Of the done, bytes that did not cross, since an earlier move had left them at the target.
    pub resumed: u64,
}

impl Volume {
    /// What is still to be carried.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.total.saturating_sub(self.done).saturating_add(self.dirtied.saturating_sub(self.redone))
    }
}
