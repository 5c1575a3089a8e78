//! The face of Google's Migrate to VMs: the replication of a VM as a `MigratingVm`, its cycles, and its clones as `CloneJob`s; JSON,
//! read only. (A clone, and a change of a replication, may also be asked for in that form: the crate of the coordinators reads it.)
//!
//! ```text
//!   a recurring replication ─▶ MigratingVm                 its state: one table over job, cycles and replica
//!     its runs              ─▶   ReplicationCycle          prepare, copy_disks, commit
//!   clones of its replica   ─▶   CloneJob                  clone_disks, instantiate
//!   cutovers to it          ─▶   CutoverJob                the steps of a move
//!     its job's group       ─▶   Group                     a name, and no more
//!   failure reports         ─▶     RpcStatus               with a MigrationError
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `migrating_vm`, `cycle`, `clone_job`, `cutover_job` | every field of the resource, where each comes from, and the table of its states |
//! | `group` | replications that belong together |
//! | `operation` | what has become of a request |
//! | `lists` | all that coordinators tell, as Google's lists |
//! | `target` | what is made of a replica |
//! | `error` | what an error is in Google's terms: one row a code |
//! | `name` | resource names, made and read, and what lists are of |
//! | `method` | the methods that the coordinators answer |
//! | `values` | enumerations, with names and numbers |
//! | `averages` | rates over the last minutes |
//! | `wellknown` | times, durations and long numbers as Google's JSON has them, and what is left out |
//!
//! Enumerations are their names in JSON, times end in `Z`, and what is not set is left out. Which field comes from where, which is
//! not built yet, and which test shows it, is in docs/clone-job.md, held to this by a test.

mod averages;
mod clone_job;
mod cutover_job;
mod cycle;
mod error;
mod group;
mod lists;
mod method;
mod migrating_vm;
mod name;
mod operation;
mod page;
mod target;
mod values;
mod wellknown;

pub use averages::{Averages, Rates, SAMPLES_MAX};
pub use clone_job::{CloneJob, CloneStage, CloneStep, CloneStepKind};
pub use cutover_job::{CutoverForecast, CutoverJob, CutoverStep, CutoverStepKind};
pub use cycle::{CycleStep, CycleStepKind, Pace, ReplicatingStep, ReplicationCycle};
pub use error::{
    ERROR_DOMAIN, ErrorDetail, ErrorInfo, HelpLink, LOCALE, LocalizedMessage, MigrationError, MigrationWarning,
    RpcCode, RpcStatus,
};
pub use group::Group;
pub use lists::{
    CloneJobList, CutoverJobList, GroupList, Known, MigratingVmList, OperationList, PAGE_DEFAULT, ReplicationCycleList,
};
pub use method::Method;
pub use migrating_vm::{Expiration, MigratingVm, Replication, ReplicationSync, SchedulePolicy};
pub use name::{
    CloneJobName, CutoverJobName, GroupName, InvalidName, MigratingVmName, OperationName, PROJECT, Parent,
    ReplicationCycleName,
};
pub use operation::{AnyMetadata, Operation, OperationMetadata, OperationResponse};
pub use page::{Page, PageToken};
pub use target::{
    ComputeEngineTargetDefaults, ComputeEngineTargetDetails, InvalidMachineType, MachineType, NetworkInterface,
    TargetVmDetails,
};
pub use values::{
    BootOption, CloneJobState, ComputeEngineBootOption, CutoverJobState, MigratingVmState, MigrationErrorCode,
    MigrationTargetType, MigrationWarningCode, ReplicationCycleState,
};
pub use wellknown::{Empty, Int64, ProtoDuration, ProtoTimestamp, Unset};
