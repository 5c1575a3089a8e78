//! Jobs: a request becomes a plan, a plan becomes events, and status is a fold of events.
//!
//! ```text
//!   Request ──planner──▶ Plan ──agents──▶ Event, Event, … ──fold──▶ Status
//!   (wishes)   (pure)    (immutable)      (kept for ever)           (what people see)
//! ```
//!
//! [`JobState`] has the numbers of `Msvm_MigrationJob`; which event is legal in which state stands in one table there.

mod event;
mod failure;
mod forecast;
mod percent;
mod plan;
mod progress;
mod request;
mod state;
mod status;
mod step;

pub use event::{Event, EventBody, Reporter};
pub use failure::{FailureCode, FailureReport, Refusal, RefusalCode};
pub use forecast::{Estimate, Forecast, ForecastInput};
pub use plan::{DiskMove, Host, MoveMode, Plan};
pub use progress::{Progress, Volume};
pub use request::{DiskPlacement, ModeWish, MoveRequest, StorageWish};
pub use state::{IllegalTransition, JobState, StateInput};
pub use status::{Ignored, JobStatus, NOTICES_MAX, Notice};
pub use step::{StepFigures, StepKind, StepState, StepStatus};
