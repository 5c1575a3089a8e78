//! The CIM face of a job: Hyper-V's `Msvm_MigrationJob` and its `Msvm_Error`, in JSON or CIM-XML, read only.
//!
//! | file | what |
//! | --- | --- |
//! | `migration_job` | every property of the class, and where each comes from |
//! | `condition` | the properties that say how a job is doing: one row a state, and the contact with its hosts |
//! | `error` | every property of an error record, and which records a job has |
//! | `error_class` | what kind of error each code is: one row a code |
//! | `schedule` | from a schedule's words to the class's |
//! | `edit` | which properties may be changed, and to what |
//! | `values`, `error_values` | what the numbers mean |
//! | `datetime` | instants and intervals as CIM writes them |
//! | `xml` | the same as an `INSTANCE` element |
//!
//! Which property comes from where, and which test shows it, is also in docs/job-model.md, held to this by a test.

mod condition;
mod datetime;
mod edit;
mod error;
mod error_class;
mod error_values;
mod migration_job;
mod schedule;
mod setting;
mod values;
mod xml;

pub use condition::{Contact, Contacts};
pub use datetime::{CimDateTime, CimInterval, CimTimestamp, DATETIME_LENGTH, Forever, InvalidDateTime};
pub use edit::{EditFault, READ_ONLY, READ_WRITE, edit};
pub use error::{ERRORS_MAX, MsvmError, OWNING_ENTITY, get_error, get_error_ex};
pub use error_class::ErrorClass;
pub use error_values::{CimStatusCode, ErrorSourceFormat, ErrorType, PerceivedSeverity, ProbableCause};
pub use migration_job::{CAPTION_LENGTH_MAX, MigrationJob};
pub use setting::{BandwidthUnit, SETTINGS, Setting, SettingFault, Settings};
pub use values::{
    CommunicationStatus, DayOfWeek, DetailedStatus, ErrorCode, HealthState, JobType, LocalOrUtcTime, MigrationType,
    OperatingStatus, OperationalStatus, PrimaryStatus, RecoveryAction, RunMonth,
};
