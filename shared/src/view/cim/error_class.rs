//! What kind of error each code is, in CIM's numbers: one row a code.
//!
//! A move that fails leaves its VM as it was, so that a failure is of medium severity: somebody should act, in his own time. High
//! is what should not wait, since something is wrong beside the move or the guest stands still; low, what only a request has
//! to be made otherwise for. Nothing is fatal: that would be data lost, which a failed move does not do.

use crate::job::{ConditionCode, FailureCode, RefusalCode};

use super::error_values::{CimStatusCode, ErrorType, PerceivedSeverity, ProbableCause};

/// What kind of error it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorClass {
    /// The kind.
    pub error_type: ErrorType,
    /// The kind in words, exactly where it is [`ErrorType::Other`].
    pub other_error_type: Option<&'static str>,
    /// What probably led to it.
    pub probable_cause: ProbableCause,
    /// How bad it is.
    pub severity: PerceivedSeverity,
    /// As the outcome of a CIM operation.
    pub status_code: CimStatusCode,
}

use CimStatusCode as Status;
use ErrorType as Type;
use PerceivedSeverity::{High, Low, Medium};
use ProbableCause as Cause;

impl ErrorClass {
    const fn new(error_type: ErrorType, probable_cause: ProbableCause, severity: PerceivedSeverity) -> Self {
        Self { error_type, other_error_type: None, probable_cause, severity, status_code: CimStatusCode::Failed }
    }

    const fn other(kind: &'static str, probable_cause: ProbableCause, severity: PerceivedSeverity) -> Self {
        Self { other_error_type: Some(kind), ..Self::new(ErrorType::Other, probable_cause, severity) }
    }

    const fn status(self, status_code: CimStatusCode) -> Self {
        Self { status_code, ..self }
    }
}

impl From<FailureCode> for ErrorClass {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::Cancelled => Self::other("cancelled by a client", Cause::Other, Low),
            FailureCode::Suspended => Self::other("suspended by a client", Cause::Other, Low),
            FailureCode::PoolFull | FailureCode::PoolNearlyFull => {
                Self::new(Type::UnavailableResource, Cause::StorageCapacityProblem, Medium)
            }
            FailureCode::TargetRefused => {
                Self::new(Type::UnavailableResource, Cause::UnderlyingResourceUnavailable, Medium)
            }
            FailureCode::LinkLost => Self::new(Type::Communications, Cause::CommunicationsSubsystemFailure, Medium),
            FailureCode::PeerMisbehaved => Self::new(Type::Communications, Cause::CommunicationsProtocolError, Medium),
            // The image that the guest runs from: it is in danger, moved or not.
            FailureCode::DiskRead => Self::new(Type::Hardware, Cause::IoDeviceError, High),
            FailureCode::DiskWrite => Self::new(Type::UnavailableResource, Cause::StorageCapacityProblem, Medium),
            // What alters the data of a move alters that of other guests.
            FailureCode::DigestMismatch => Self::new(Type::Hardware, Cause::CorruptData, High),
            FailureCode::Hypervisor => Self::new(Type::Software, Cause::ApplicationSubsystemFailure, Medium),
            FailureCode::MemoryCopy => Self::new(Type::Communications, Cause::TransmissionError, Medium),
            FailureCode::BlackoutExceeded => Self::new(Type::QualityOfService, Cause::ThresholdCrossed, Medium),
            FailureCode::AgentRestarted => Self::new(Type::Software, Cause::ElementReinitialized, Medium),
            // Until it is mended the agent does next to nothing, for no guest.
            FailureCode::Journal => Self::new(Type::UnavailableResource, Cause::LoggingProblems, High),
            FailureCode::PlanStale => Self::other("stale plan", Cause::SyncLossOrMismatch, Low),
            FailureCode::Internal => Self::new(Type::Software, Cause::SoftwareError, High),
            FailureCode::GuestNotShutDown => Self::new(Type::QualityOfService, Cause::ThresholdCrossed, Low),
            FailureCode::NotMigratable => {
                Self::new(Type::UnavailableResource, Cause::UnderlyingResourceUnavailable, Low)
            }
            FailureCode::Unhealthy => Self::new(Type::Software, Cause::ApplicationSubsystemFailure, High),
            FailureCode::OsAdaptation => Self::new(Type::Software, Cause::ApplicationSubsystemFailure, Medium),
        }
    }
}

impl From<ConditionCode> for ErrorClass {
    fn from(code: ConditionCode) -> Self {
        match code {
            ConditionCode::Killed => Self::other("ended by a client", Cause::Other, Medium),
            // The guest stands still.
            ConditionCode::Unresolved => Self::new(Type::Communications, Cause::CommunicationsSubsystemFailure, High),
            ConditionCode::HostSilent => Self::new(Type::Communications, Cause::CommunicationsSubsystemFailure, Medium),
            ConditionCode::InService => Self::other("held for service", Cause::OutOfService, Low),
            // It is a text, whose kind nobody knows; how bad it is was told with what it led to.
            ConditionCode::Cause => Self::new(Type::Unknown, Cause::Unknown, PerceivedSeverity::Unknown),
        }
    }
}

impl From<RefusalCode> for ErrorClass {
    fn from(code: RefusalCode) -> Self {
        let missing = Self::new(Type::UnavailableResource, Cause::ElementMissing, Low).status(Status::NotFound);
        let unsupported = |cause| Self::new(Type::UnsupportedOperation, cause, Low);
        match code {
            RefusalCode::UnknownVm
            | RefusalCode::UnknownHost
            | RefusalCode::UnknownPool
            | RefusalCode::UnknownDisk
            | RefusalCode::UnknownBridge
            | RefusalCode::Firmware
            | RefusalCode::BootFile
            | RefusalCode::NoAdapter => missing,
            RefusalCode::AmbiguousVm => unsupported(Cause::IdentifierDuplication).status(Status::InvalidParameter),
            RefusalCode::HostOffline => Self::new(Type::Communications, Cause::CommunicationsSubsystemFailure, Medium),
            RefusalCode::SameHost => unsupported(Cause::ProceduralError).status(Status::InvalidParameter),
            RefusalCode::NoTarget => unsupported(Cause::InformationMissing).status(Status::InvalidParameter),
            RefusalCode::VmInJob => Self::new(Type::UnavailableResource, Cause::UnderlyingResourceUnavailable, Low),
            RefusalCode::VmState
            | RefusalCode::NotCutOver
            | RefusalCode::ReplicationFinalized
            | RefusalCode::NotExtendable => unsupported(Cause::ProceduralError),
            // The guest stands still.
            RefusalCode::VmUnresolved => Self::new(Type::UnavailableResource, Cause::ElementUnavailable, High),
            RefusalCode::Memory => Self::new(Type::Oversubscription, Cause::OutOfMemory, Medium),
            RefusalCode::PoolSpace => Self::new(Type::Oversubscription, Cause::StorageCapacityProblem, Medium),
            RefusalCode::ProbeImpossible => unsupported(Cause::ConfigurationCustomizationError),
            RefusalCode::PoolKind
            | RefusalCode::PoolNotShared
            | RefusalCode::SecureBootImpossible
            | RefusalCode::BootOptionImpossible => {
                unsupported(Cause::ConfigurationCustomizationError).status(Status::NotSupported)
            }
            RefusalCode::NothingToMove => unsupported(Cause::ProceduralError).status(Status::InvalidParameter),
            RefusalCode::MachineType => unsupported(Cause::VersionMismatch).status(Status::NotSupported),
            RefusalCode::CpuModel => unsupported(Cause::UnderlyingResourceUnavailable).status(Status::NotSupported),
            RefusalCode::NameTaken => unsupported(Cause::IdentifierDuplication).status(Status::AlreadyExists),
            RefusalCode::CertificateExpired => Self::new(Type::Security, Cause::KeyExpired, Medium),
            RefusalCode::CertificateAuthority => Self::new(Type::Security, Cause::SecurityCredentialMismatch, Medium),
            RefusalCode::HostBusy | RefusalCode::ReplicaLimit => {
                Self::new(Type::Oversubscription, Cause::ResourceAtOrNearingCapacity, Low)
            }
            RefusalCode::InvalidValue => unsupported(Cause::UnexpectedInformation).status(Status::InvalidParameter),
            RefusalCode::MigrationDisabled => Self::new(Type::UnavailableResource, Cause::OutOfService, Low),
            RefusalCode::PortUnreachable => {
                Self::new(Type::Communications, Cause::ConnectionEstablishmentError, Medium)
            }
            RefusalCode::PeerCertificate => Self::new(Type::Security, Cause::SecurityCredentialMismatch, Medium),
            RefusalCode::ClockSkew => Self::new(Type::Environmental, Cause::TimingProblem, Medium),
            RefusalCode::NotConverging => Self::new(Type::QualityOfService, Cause::Congestion, Low),
            RefusalCode::CertificateExpiring => Self::new(Type::Security, Cause::KeyExpired, Low),
            RefusalCode::OlderHypervisor => unsupported(Cause::VersionMismatch),
            RefusalCode::FewProcessors => Self::new(Type::Oversubscription, Cause::ResourceAtOrNearingCapacity, Low),
            RefusalCode::PlannedUnknown | RefusalCode::ReplicaUnknown | RefusalCode::SnapshotUnknown => missing,
            RefusalCode::PlannedMismatch | RefusalCode::ReplicaMismatch => {
                unsupported(Cause::InformationMissing).status(Status::InvalidParameter)
            }
            RefusalCode::PlannedExpired | RefusalCode::ReplicationExpired => {
                Self::new(Type::UnavailableResource, Cause::TimingProblem, Low)
            }
            RefusalCode::PlannedChanged => Self::other("stale plan", Cause::SyncLossOrMismatch, Low),
            RefusalCode::NotMeasured => Self::new(Type::Software, Cause::UnderlyingResourceUnavailable, Low),
            RefusalCode::SnapshotDamaged => Self::new(Type::Hardware, Cause::CorruptData, High),
            // The image that the guest runs from.
            RefusalCode::DiskUnreadable => Self::new(Type::Hardware, Cause::IoDeviceError, High),
            RefusalCode::Accelerator => unsupported(Cause::SoftwareEnvironmentProblem).status(Status::NotSupported),
        }
    }
}
