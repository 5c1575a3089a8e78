//! Policy: what the submitter of a job says beside his wish, and may change while the job lives. They are the read/write
//! properties of `Msvm_MigrationJob`, with its recovery action and its group.

use serde::{Deserialize, Serialize};

/// The priority of a job that names none. Lower numbers come first, as in `CIM_Job.Priority`.
pub const PRIORITY_DEFAULT: u32 = 100;
/// How long a job that is over is listed where nothing else was said, in seconds: five minutes, the default of
/// `CIM_ConcreteJob.TimeBeforeRemoval`. Its history is kept for longer.
pub const KEEP_DEFAULT_SECONDS: u32 = 300;
/// The longest owner, and the longest subject or command of a notice, in bytes.
pub const TEXT_LENGTH_MAX: usize = 256;

/// How a job is to be treated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Policy {
    /// Who asked for it.
    pub owner: Option<String>,
    /// Which jobs go first where not all can: the lower number; of equal ones the older job.
    pub priority: u32,
    /// Whether it goes from the list of jobs once it is over, whatever came of it. Its history stays.
    pub delete_on_completion: bool,
    /// How long it is listed all the same once it is over, in seconds.
    pub keep_seconds: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            owner: None,
            priority: PRIORITY_DEFAULT,
            delete_on_completion: false,
            keep_seconds: KEEP_DEFAULT_SECONDS,
        }
    }
}

impl Policy {
    /// Everything that is wrong with it, each in a sentence.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.owner.as_ref().is_some_and(|owner| owner.len() > TEXT_LENGTH_MAX || owner.chars().any(char::is_control))
        {
            faults.push(format!("the owner is too long or not plain text; give at most {TEXT_LENGTH_MAX} bytes"));
        }
        faults
    }
}
