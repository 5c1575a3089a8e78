//! Jobs: a request becomes a plan, a plan becomes events, and status is a fold of events.
//!
//! ```text
//!   Request ──planner──▶ Plan ──agents──▶ Event, Event, … ──fold──▶ Status
//!   (wishes)   (pure)    (immutable)      (kept for ever)           (what people see)
//! ```
//!
//! [`JobState`] has the numbers of `Msvm_MigrationJob`; which event is legal in which state stands in one table there.

mod check;
mod cutover;
mod event;
mod failure;
mod forecast;
mod labels;
mod lifetime;
mod percent;
mod plan;
mod policy;
mod progress;
mod record;
mod request;
mod request_state;
mod runs;
mod schedule;
mod settings;
mod state;
mod status;
mod step;

pub use check::{CheckReport, Finding, Severity};
pub use cutover::{CutoverForecast, CutoverScore};
pub use event::{Event, EventBody, Reporter};
pub use failure::{ConditionCode, ErrorEntry, FailureCode, FailureReport, Refusal, RefusalCode, RemedyNames};
pub use forecast::{Estimate, Forecast, ForecastInput};
pub use labels::{LABEL_BYTES_MAX, LABEL_LENGTH_MAX, LABELS_MAX, label_faults};
pub use lifetime::{
    EXPIRY_NOTICE_SECONDS, EXTENSION_DEFAULT_SECONDS, EXTENSION_MAX_SECONDS, EXTENSIONS_MAX, Expiration, Finalization,
};
pub use plan::{DiskMove, Host, MoveMode, Plan};
pub use policy::{
    KEEP_DEFAULT_SECONDS, Notify, PAUSE_MAX_SECONDS, PRIORITY_DEFAULT, Policy, RERUNS_MAX, Recovery, TEXT_LENGTH_MAX,
};
pub use progress::{Progress, Volume};
pub use record::JobRecord;
pub use request::{DiskPlacement, JobKind, ModeWish, MoveRequest, StorageWish};
pub use request_state::{Hands, RequestedState, ReturnCode, STANDINGS, Verdict, verdict};
pub use runs::{RUNS_MAX, Run, Runs};
pub use schedule::{DayOfWeek, Due, Missed, Month, Rule, SEARCH_YEARS, Schedule, Weekday, Zone};
pub use settings::{ADDRESSES_MAX, CpuCapping, MoveSettings};
pub use state::{IllegalTransition, JobState, StateInput};
pub use status::{Dispatch, Ignored, JobStatus, NOTICES_MAX, Notice};
pub use step::{StepFigures, StepKind, StepState, StepStatus};
