//! The CIM face of a job: Hyper-V's `Msvm_MigrationJob`, in JSON or CIM-XML, read only.
//!
//! | file | what |
//! | --- | --- |
//! | `migration_job` | every property of the class, and where each comes from |
//! | `condition` | the properties that say how a job is doing: one row a state, and the contact with its hosts |
//! | `values` | what the numbers mean |
//! | `schedule` | from a schedule's words to those |
//! | `datetime` | instants and intervals as CIM writes them |
//! | `xml` | the same as an `INSTANCE` element |
//!
//! Which property comes from where, and which test shows it, is also in docs/job-model.md, held to this by a test.

mod condition;
mod datetime;
mod migration_job;
mod schedule;
mod values;
mod xml;

pub use condition::{Contact, Contacts};
pub use datetime::{CimDateTime, CimInterval, CimTimestamp, DATETIME_LENGTH, Forever, InvalidDateTime};
pub use migration_job::{CAPTION_LENGTH_MAX, MigrationJob};
pub use values::{
    CommunicationStatus, DayOfWeek, DetailedStatus, ErrorCode, HealthState, JobType, LocalOrUtcTime, MigrationType,
    OperatingStatus, OperationalStatus, PrimaryStatus, RecoveryAction, RunMonth,
};
