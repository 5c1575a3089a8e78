//! What CIM's numbers mean. Each list is whole, also where Sterna never says a value, so that a reader of what it says finds
//! them here. In JSON and XML they are the numbers.

use serde::{Serialize, Serializer};

use crate::job::FailureCode;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident: $number:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr($number)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $value,)*
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// CIM's number.
            #[must_use]
            pub const fn number(self) -> $number {
                self as $number
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.number().serialize(serializer)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let values = Self::ALL.iter().map(|value| (i64::from(value.number()), format!("{value:?}")));
                $crate::view::cim::values::number_schema(values)
            }
        }
    };
}

pub(super) use numbered;

/// One of these numbers, each with its name.
#[cfg(feature = "schema")]
pub(super) fn number_schema(values: impl Iterator<Item = (i64, String)>) -> schemars::Schema {
    let one_of: Vec<schemars::Schema> =
        values.map(|(number, name)| schemars::json_schema!({ "const": number, "title": name })).collect();
    schemars::json_schema!({ "type": "integer", "oneOf": one_of })
}

numbered!(
    /// How a thing is doing; a job has several at once, the first of which counts.
    OperationalStatus: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// None of these.
        Other = 1,
        /// All is well.
        Ok = 2,
        /// It works, and less well than it could.
        Degraded = 3,
        /// It works, and somebody should look.
        Stressed = 4,
        /// It works, and expects not to for long.
        PredictiveFailure = 5,
        /// Something went wrong.
        Error = 6,
        /// Something went wrong that cannot be put right.
        NonRecoverableError = 7,
        /// It is about to begin.
        Starting = 8,
        /// It is about to end.
        Stopping = 9,
        /// It was ended on purpose.
        Stopped = 10,
        /// Somebody is at work on it.
        InService = 11,
        /// It is known of, and was never reached.
        NoContact = 12,
        /// It was reached, and now is not.
        LostCommunication = 13,
        /// It ended at once; something may be left of it.
        Aborted = 14,
        /// It does nothing at present.
        Dormant = 15,
        /// It cannot go on because of something that it depends on.
        SupportingEntityInError = 16,
        /// It is over; the value beside it tells how it went.
        Completed = 17,
        /// See its power management.
        PowerMode = 18,
    }
);

numbered!(
    /// Whether a thing can still do what it is for.
    HealthState: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// Fully.
        Ok = 5,
        /// Fully, and less well than it could.
        Degraded = 10,
        /// All that it is for, some of it badly.
        MinorFailure = 15,
        /// Some or all of it not.
        MajorFailure = 20,
        /// No, and perhaps never again.
        CriticalFailure = 25,
        /// Never again.
        NonRecoverableError = 30,
    }
);

numbered!(
    /// Whether whoever reports can reach what is reported on.
    CommunicationStatus: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// Is not told, on purpose.
        NotAvailable = 1,
        /// It can.
        Ok = 2,
        /// It could, and now cannot.
        Lost = 3,
        /// It never could.
        NoContact = 4,
    }
);

numbered!(
    /// What there is to add to a [`PrimaryStatus`].
    DetailedStatus: u16 {
        /// Is not told, on purpose.
        NotAvailable = 0,
        /// Nothing.
        NoAdditionalInformation = 1,
        /// Somebody should look.
        Stressed = 2,
        /// It will soon fail.
        PredictiveFailure = 3,
        /// Only a person can put it right.
        NonRecoverableError = 4,
        /// The fault is with something that it depends on.
        SupportingEntityInError = 5,
    }
);

numbered!(
    /// What a thing is doing at present.
    OperatingStatus: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// Is not told, on purpose.
        NotAvailable = 1,
        /// It is being worked on.
        Servicing = 2,
        /// It is being set up.
        Starting = 3,
        /// It is being ended in good order.
        Stopping = 4,
        /// It was ended on purpose.
        Stopped = 5,
        /// It ended as nobody expected.
        Aborted = 6,
        /// Nothing.
        Dormant = 7,
        /// It has done what it does; the primary status tells how that went.
        Completed = 8,
        /// It moves from one host to another.
        Migrating = 9,
        /// It leaves its host.
        Emigrating = 10,
        /// It arrives at a host.
        Immigrating = 11,
        /// A copy of it as it is now is being made.
        Snapshotting = 12,
        /// It is being ended at once.
        ShuttingDown = 13,
        /// It is being tried out.
        InTest = 14,
        /// It is between two states and wholly in neither.
        Transitioning = 15,
        /// It does its work.
        InService = 16,
    }
);

numbered!(
    /// The one word for how a thing is doing.
    PrimaryStatus: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// Well.
        Ok = 1,
        /// Less well than it could.
        Degraded = 2,
        /// Badly.
        Error = 3,
    }
);

numbered!(
    /// By which clock a schedule's times are meant.
    LocalOrUtcTime: u16 {
        /// That of the place.
        Local = 1,
        /// UTC.
        Utc = 2,
    }
);

numbered!(
    /// What is done when a job has failed.
    RecoveryAction: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// What another property says in words.
        Other = 1,
        /// The job ends, and says so.
        DoNotContinue = 2,
        /// The next job in line is run.
        ContinueWithNextJob = 3,
        /// It is run again.
        RerunJob = 4,
        /// A job that puts things right is run.
        RunRecoveryJob = 5,
    }
);

numbered!(
    /// What a move takes along, as `Msvm_VirtualSystemMigrationSettingData` numbers it.
    MigrationType: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// The VM without its disks.
        VirtualSystem = 32768,
        /// Disks without their VM.
        Storage = 32769,
        /// Nothing yet: a VM is set up at the target and not run.
        Staged = 32770,
        /// The VM with its disks.
        VirtualSystemAndStorage = 32771,
        /// Nothing: disks are examined.
        StorageDeepCheck = 32772,
    }
);

numbered!(
    /// What a job does.
    JobType: u16 {
        /// Cannot be told.
        Unknown = 0,
        /// Sets a VM up at the target.
        CreatingRemoteVirtualMachine = 300,
        /// Asks whether a VM could move.
        CheckingVirtualMachine = 301,
        /// Asks whether a VM could move with its disks.
        CheckingVirtualMachineAndStorage = 302,
        /// Asks whether disks would fit.
        CheckingStorage = 303,
        /// Asks whether disks could move.
        CheckingStorageMigration = 304,
        /// Moves a VM whose disks both hosts see.
        MovingVirtualMachine = 305,
        /// Moves a VM with its disks.
        MovingVirtualMachineAndStorage = 306,
        /// Moves disks.
        MovingStorage = 307,
    }
);

numbered!(
    /// The month of a schedule, from 0.
    RunMonth: u8 {
        /// The first.
        January = 0,
        /// The second.
        February = 1,
        /// The third.
        March = 2,
        /// The fourth.
        April = 3,
        /// The fifth.
        May = 4,
        /// The sixth.
        June = 5,
        /// The seventh.
        July = 6,
        /// The eighth.
        August = 7,
        /// The ninth.
        September = 8,
        /// The tenth.
        October = 9,
        /// The eleventh.
        November = 10,
        /// The twelfth.
        December = 11,
    }
);

numbered!(
    /// The day of the week of a schedule, sought from a day of the month: below 0 backwards from it, above 0 forwards.
    DayOfWeek: i8 {
        /// The last Saturday up to that day.
        SaturdayBefore = -7,
        /// The last Friday up to that day.
        FridayBefore = -6,
        /// The last Thursday up to that day.
        ThursdayBefore = -5,
        /// The last Wednesday up to that day.
        WednesdayBefore = -4,
        /// The last Tuesday up to that day.
        TuesdayBefore = -3,
        /// The last Monday up to that day.
        MondayBefore = -2,
        /// The last Sunday up to that day.
        SundayBefore = -1,
        /// That day, whatever its name.
        ExactDayOfMonth = 0,
        /// The first Sunday from that day on.
        Sunday = 1,
        /// The first Monday from that day on.
        Monday = 2,
        /// The first Tuesday from that day on.
        Tuesday = 3,
        /// The first Wednesday from that day on.
        Wednesday = 4,
        /// The first Thursday from that day on.
        Thursday = 5,
        /// The first Friday from that day on.
        Friday = 6,
        /// The first Saturday from that day on.
        Saturday = 7,
    }
);

numbered!(
    /// Why a job failed or cannot go on: Sterna's own numbers, since CIM leaves them to the vendor. A number is never given
    /// another meaning; a new [`FailureCode`] gets the next one.
    ErrorCode: u16 {
        /// It did not.
        None = 0,
        /// See [`FailureCode::Cancelled`]; also of a job that was cancelled without a report.
        Cancelled = 1,
        /// See [`FailureCode::TargetRefused`].
        TargetRefused = 2,
        /// See [`FailureCode::LinkLost`].
        LinkLost = 3,
        /// See [`FailureCode::PeerMisbehaved`].
        PeerMisbehaved = 4,
        /// See [`FailureCode::DiskRead`].
        DiskRead = 5,
        /// See [`FailureCode::DiskWrite`].
        DiskWrite = 6,
        /// See [`FailureCode::DigestMismatch`].
        DigestMismatch = 7,
        /// See [`FailureCode::Hypervisor`].
        Hypervisor = 8,
        /// See [`FailureCode::MemoryCopy`].
        MemoryCopy = 9,
        /// See [`FailureCode::BlackoutExceeded`].
        BlackoutExceeded = 10,
        /// See [`FailureCode::AgentRestarted`].
        AgentRestarted = 11,
        /// See [`FailureCode::Journal`].
        Journal = 12,
        /// See [`FailureCode::PlanStale`].
        PlanStale = 13,
        /// See [`FailureCode::Internal`].
        Internal = 14,
        /// The handover is not resolved: the job has not failed, and waits.
        Unresolved = 15,
        /// See [`FailureCode::PoolFull`].
        PoolFull = 16,
        /// See [`FailureCode::Suspended`].
        Suspended = 17,
        /// See [`FailureCode::NotMigratable`].
        NotMigratable = 18,
        /// See [`FailureCode::OsAdaptation`].
        OsAdaptation = 19,
        /// See [`FailureCode::GuestNotShutDown`].
        GuestNotShutDown = 20,
        /// See [`FailureCode::PoolNearlyFull`].
        PoolNearlyFull = 21,
        /// See [`FailureCode::Unhealthy`].
        Unhealthy = 24,
    }
);

impl From<FailureCode> for ErrorCode {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::Cancelled => Self::Cancelled,
            FailureCode::Suspended => Self::Suspended,
            FailureCode::TargetRefused => Self::TargetRefused,
            FailureCode::LinkLost => Self::LinkLost,
            FailureCode::PeerMisbehaved => Self::PeerMisbehaved,
            FailureCode::DiskRead => Self::DiskRead,
            FailureCode::DiskWrite => Self::DiskWrite,
            FailureCode::PoolFull => Self::PoolFull,
            FailureCode::DigestMismatch => Self::DigestMismatch,
            FailureCode::Hypervisor => Self::Hypervisor,
            FailureCode::MemoryCopy => Self::MemoryCopy,
            FailureCode::BlackoutExceeded => Self::BlackoutExceeded,
            FailureCode::AgentRestarted => Self::AgentRestarted,
            FailureCode::Journal => Self::Journal,
            FailureCode::PlanStale => Self::PlanStale,
            FailureCode::Internal => Self::Internal,
            FailureCode::NotMigratable => Self::NotMigratable,
            FailureCode::OsAdaptation => Self::OsAdaptation,
            FailureCode::GuestNotShutDown => Self::GuestNotShutDown,
            FailureCode::PoolNearlyFull => Self::PoolNearlyFull,
            FailureCode::Unhealthy => Self::Unhealthy,
        }
    }
}

impl OperationalStatus {
    /// The word of the deprecated property `Status`, of at most 10 characters. Some values have none there.
    #[must_use]
    pub const fn status(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Degraded => "Degraded",
            Self::Stressed => "Stressed",
            Self::PredictiveFailure => "Pred Fail",
            Self::Error => "Error",
            Self::NonRecoverableError => "NonRecover",
            Self::Starting => "Starting",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
            Self::InService => "Service",
            Self::NoContact => "No Contact",
            Self::LostCommunication => "Lost Comm",
            Self::Unknown
            | Self::Other
            | Self::Aborted
            | Self::Dormant
            | Self::SupportingEntityInError
            | Self::Completed
            | Self::PowerMode => "Unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_whole() {
        let numbers = |list: &[OperationalStatus]| list.iter().map(|value| value.number()).collect::<Vec<_>>();
        assert_eq!(numbers(OperationalStatus::ALL), (0..=18).collect::<Vec<_>>());
        assert!(OperatingStatus::ALL.iter().map(|value| value.number()).eq(0..=16));
        assert!(HealthState::ALL.iter().map(|value| value.number()).eq([0, 5, 10, 15, 20, 25, 30]));
        assert!(CommunicationStatus::ALL.iter().map(|value| value.number()).eq(0..=4));
        assert!(DetailedStatus::ALL.iter().map(|value| value.number()).eq(0..=5));
        assert!(PrimaryStatus::ALL.iter().map(|value| value.number()).eq(0..=3));
        assert!(RecoveryAction::ALL.iter().map(|value| value.number()).eq(0..=5));
        assert!(MigrationType::ALL.iter().map(|value| value.number()).eq(std::iter::once(0).chain(32768..=32772)));
        assert!(JobType::ALL.iter().map(|value| value.number()).eq(std::iter::once(0).chain(300..=307)));
        assert!(RunMonth::ALL.iter().map(|value| value.number()).eq(0..=11));
        assert!(DayOfWeek::ALL.iter().map(|value| value.number()).eq(-7..=7));
        assert!(ErrorCode::ALL.iter().map(|value| value.number()).eq((0..=21).chain([24])));
    }

    #[test]
    fn every_word_of_the_old_status_fits() {
        assert!(OperationalStatus::ALL.iter().all(|value| value.status().len() <= 10));
    }

    #[test]
    fn values_are_written_as_numbers() {
        let json = serde_json::to_string(&(MigrationType::Storage, DayOfWeek::SaturdayBefore)).expect("JSON");
        assert_eq!(json, "[32769,-7]");
    }
}
