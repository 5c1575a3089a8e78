//! Steps: the phases of a job, under the same names in logs, events, progress and documents.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::FailureReport;
use crate::id::HostId;
use crate::time::Timestamp;

/// A phase of a job: those of a move in the order in which a live one passes through them, then those of
/// a check, of a replication, of a clone and of a rehearsal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The target reserves memory, disks and ports, and starts its QEMU; the session is open.
    Prepare,
    /// Disk passes, until what the guest dirties between two is little.
    CopyDisks,
    /// QEMU's precopy, through the lanes.
    CopyMemory,
    /// The guest is shut down, by its power button; of a cold cutover.
    ShutDown,
    /// The guest is paused, or was shut down; the last disk pass.
    Switchover,
    /// Both ends' digests are compared.
    Prove,
    /// The right to run the VM goes to the target.
    Handover,
    /// The source lets go of its copy.
    Release,
    /// Every disk is read through; of a deep check.
    ReadDisks,
    /// Everything that speaks for and against a move is looked at; of a check.
    Check,
    /// Both ends' digests are compared, and the snapshot is there from one instant on; of a replication.
    Commit,
    /// Its disks are made, on those of the replica or as copies of them; of a clone.
    CloneDisks,
    /// The system on its disks gets an identity of its own; of a clone.
    AdaptOs,
    /// It is defined, and started where that is asked; of a clone.
    Instantiate,
    /// The guest is asked whether it is healthy, until it is; of a rehearsal.
    Probe,
}

impl StepKind {
    /// The name in events, logs and documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::CopyDisks => "copy_disks",
            Self::CopyMemory => "copy_memory",
            Self::Switchover => "switchover",
            Self::ShutDown => "shut_down",
            Self::Prove => "prove",
            Self::Handover => "handover",
            Self::Release => "release",
            Self::ReadDisks => "read_disks",
            Self::Check => "check",
            Self::Commit => "commit",
            Self::CloneDisks => "clone_disks",
            Self::AdaptOs => "adapt_os",
            Self::Instantiate => "instantiate",
            Self::Probe => "probe",
        }
    }

    /// Whether a job in this step can still be cancelled: until the right to run is ceded.
    #[must_use]
    pub const fn cancellable(self) -> bool {
        !matches!(self, Self::Handover | Self::Release)
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    #[default]
    Waiting,
    /// Begun.
    Running,
    /// Done.
    Finished,
    /// Ended by a failure or a cancel.
    Failed,
}

/// What a step did, in numbers. Zero where a number means nothing for the step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StepFigures {
    /// Bytes of content the step had to carry, as the guest sees them.
    pub bytes_total: u64,
    /// Bytes of payload it put on the link.
    pub bytes_sent: u64,
    /// Bytes of content that did not cross, since an earlier move had left them at the target.
    pub bytes_resumed: u64,
    /// Passes over the disks or rounds over memory.
    pub passes: u32,
    /// How long the guest stood still in this step, in microseconds, by the source's clock.
    pub blackout_us: u64,
    /// How long it stood still as the source's hypervisor counts it, in milliseconds: from its pause to when all of it
    /// was sent. Told by the step in which a live guest's memory ends.
    pub hypervisor_blackout_ms: Option<u64>,
    /// How long it took from the guest's start until it had answered every probe, in milliseconds; of a rehearsal.
    pub healthy_ms: Option<u64>,
}

impl StepFigures {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            bytes_total: self.bytes_total.saturating_add(other.bytes_total),
            bytes_sent: self.bytes_sent.saturating_add(other.bytes_sent),
            bytes_resumed: self.bytes_resumed.saturating_add(other.bytes_resumed),
            passes: self.passes.saturating_add(other.passes),
            blackout_us: self.blackout_us.saturating_add(other.blackout_us),
            hypervisor_blackout_ms: self.hypervisor_blackout_ms.or(other.hypervisor_blackout_ms),
            healthy_ms: self.healthy_ms.or(other.healthy_ms),
        }
    }
}

/// A step of a job, as folded from events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StepStatus {
    /// Which.
    pub kind: StepKind,
    /// Where it stands.
    pub state: StepState,
    /// Who reports it.
    pub host: Option<HostId>,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What it did.
    pub figures: StepFigures,
    /// Why it failed.
    pub failure: Option<FailureReport>,
}

impl StepStatus {
    /// A step that has not begun.
    #[must_use]
    pub fn waiting(kind: StepKind) -> Self {
        Self {
            kind,
            state: StepState::Waiting,
            host: None,
            started_at: None,
            finished_at: None,
            figures: StepFigures::default(),
            failure: None,
        }
    }

    /// How long it took, once it has ended.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        Some(self.finished_at?.seconds_since(self.started_at?))
    }
}
