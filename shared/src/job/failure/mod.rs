//! Why something failed or was refused: a stable code, a sentence, and what to do next.
//!
//! A report says what happened there and then. What is to be said of its kind wherever it occurs, with the id that stands for
//! it, is in the [catalogue](ErrorEntry): a new code gets its row in `failures` or `refusals`, and the compiler asks for it.

mod catalogue;
mod failures;
mod refusals;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::HostId;

pub use catalogue::{ErrorEntry, RemedyNames};

/// The kinds of failure. The code is stable: scripts and documents may rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// An operator cancelled the job.
    Cancelled,
    /// An operator suspended the job: it is no failure, and what was received is kept for when it goes on.
    Suspended,
    /// The target would not take the VM.
    TargetRefused,
    /// The two agents could not talk for longer than allowed.
    LinkLost,
    /// The peer broke the protocol.
    PeerMisbehaved,
    /// An image could not be read.
    DiskRead,
    /// An image could not be written.
    DiskWrite,
    /// A pool of the target has no room left for what was to be written.
    PoolFull,
    /// The copies at the two hosts differ.
    DigestMismatch,
    /// QEMU would not start, ended, or refused a command.
    Hypervisor,
    /// QEMU's migration of the memory failed.
    MemoryCopy,
    /// The guest would have stood still for longer than allowed.
    BlackoutExceeded,
    /// An agent was restarted in a phase that cannot be resumed; the VM is unharmed.
    AgentRestarted,
    /// The agent's journal could not be written.
    Journal,
    /// The VM is not, or no longer, what the plan says.
    PlanStale,
    /// A fault of Sterna itself.
    Internal,
    /// A check has found that the VM cannot be moved as was asked.
    NotMigratable,
    /// The system on a clone's disks could not be given an identity of its own.
    OsAdaptation,
    /// A guest that was to be shut down for a cutover did not obey its power button.
    GuestNotShutDown,
    /// A replication cycle would have filled a pool that guests write to.
    PoolNearlyFull,
    /// A guest that was rehearsed did not answer its probes.
    Unhealthy,
}

/// What a job has to tell as an error although it has not failed: what CIM reports beside failures. Of a job that was
/// cancelled see [`FailureCode::Cancelled`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionCode {
    /// It was ended at once; something may be left to clean.
    Killed,
    /// Its handover is not resolved; it waits.
    Unresolved,
    /// A host of it is not heard of.
    HostSilent,
    /// It is held by somebody who is at work on it.
    InService,
    /// What led to an error that is told before it.
    Cause,
}

/// What went wrong, for a reader who was not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FailureReport {
    /// Its kind.
    pub code: FailureCode,
    /// What happened, in one sentence that names the thing.
    pub message: String,
    /// What led to it, nearest first.
    #[serde(default)]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default)]
    pub remedy: String,
    /// Where it happened.
    pub host: Option<HostId>,
}

/// The most causes a report keeps of an error's chain.
const CAUSES_MAX: usize = 8;

impl FailureReport {
    /// Flattens an error and its chain of sources into text: done once, where an error leaves the program.
    #[must_use]
    pub fn from_error(code: FailureCode, host: &HostId, error: &dyn std::error::Error, remedy: &str) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source.filter(|_| causes.len() < CAUSES_MAX) {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self { code, message: error.to_string(), causes, remedy: remedy.to_owned(), host: Some(host.clone()) }
    }
}

impl fmt::Display for FailureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

/// Why a request cannot become a plan. The code is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No host reports that VM.
    UnknownVm,
    /// Several VMs have that name.
    AmbiguousVm,
    /// No such host.
    UnknownHost,
    /// The host has not been heard of lately.
    HostOffline,
    /// Source and target are one.
    SameHost,
    /// No target was named and none is implied.
    NoTarget,
    /// Another job holds the VM.
    VmInJob,
    /// The VM is in a state in which it cannot move that way.
    VmState,
    /// No host owns the VM: a handover of it is unresolved.
    VmUnresolved,
    /// The target lacks memory.
    Memory,
    /// A pool lacks room.
    PoolSpace,
    /// The target has no such pool.
    UnknownPool,
    /// A pool cannot hold what is to go there: a volume group holds raw disks only.
    PoolKind,
    /// The VM has no such disk.
    UnknownDisk,
    /// A pool is not shared by both hosts though no disk is to be copied.
    PoolNotShared,
    /// The disk is where it is asked to go.
    NothingToMove,
    /// The target has no such bridge.
    UnknownBridge,
    /// The target's QEMU lacks the machine type.
    MachineType,
    /// The target cannot run the CPU model, or lacks features of it.
    CpuModel,
    /// The target lacks the UEFI firmware that the VM needs.
    Firmware,
    /// The target lacks a boot file.
    BootFile,
    /// The target has a VM of that name or id.
    NameTaken,
    /// A certificate has expired or is not yet valid.
    CertificateExpired,
    /// The two hosts trust different authorities.
    CertificateAuthority,
    /// A host takes no further move now.
    HostBusy,
    /// A value is out of its range.
    InvalidValue,
    /// A guest cannot run the same way at both hosts.
    Accelerator,
    /// A host's settings let no move through.
    MigrationDisabled,
    /// The source does not reach the target's data-plane port.
    PortUnreachable,
    /// One of the two hosts does not accept the other's certificate.
    PeerCertificate,
    /// A host's clock is wrong.
    ClockSkew,
    /// The guest dirties more than the path carries.
    NotConverging,
    /// A certificate expires soon.
    CertificateExpiring,
    /// The target's QEMU is older than the source's.
    OlderHypervisor,
    /// The target has fewer processors than the guest.
    FewProcessors,
    /// Something could not be looked at.
    NotMeasured,
    /// No host has the planned VM that was named.
    PlannedUnknown,
    /// The planned VM that was named is of another VM, or at another host.
    PlannedMismatch,
    /// The planned VM that was named is held no longer.
    PlannedExpired,
    /// The VM is no longer what it was when the planned VM was made.
    PlannedChanged,
    /// A part of a disk cannot be read.
    DiskUnreadable,
    /// The host has no helper guest to adapt the system of a clone.
    NoAdapter,
    /// No host has a replica of that VM.
    ReplicaUnknown,
    /// The replica that is there is not one of the VM as it is now.
    ReplicaMismatch,
    /// The replica has no such snapshot.
    SnapshotUnknown,
    /// The snapshot does not hold what was written to it.
    SnapshotDamaged,
    /// The VM is not at the host that has its replica.
    NotCutOver,
    /// The replication of the VM was finalized.
    ReplicationFinalized,
    /// The replication of the VM cannot be extended.
    NotExtendable,
    /// The target has as many replicas, or layers of them, as one host may have.
    ReplicaLimit,
    /// The replication of the VM has expired.
    ReplicationExpired,
    /// The VM lacks what a probe of a rehearsal would reach it by.
    ProbeImpossible,
    /// The VM lacks what a clone of it would need to have secure boot.
    SecureBootImpossible,
    /// A clone is to boot otherwise than the VM.
    BootOptionImpossible,
}

/// One reason why not, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refusal {
    /// Its kind.
    pub code: RefusalCode,
    /// The reason, naming the thing.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.remedy)
    }
}
