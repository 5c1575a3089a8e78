//! Telling somebody that a job is over: whoever listens to a subject, or a command that the operators have configured. Whatever
//! becomes of it, the job stays as it is.
//!
//! A job names a command by its name only: what is run on a coordinator is decided by whoever may write its configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::{ARGUMENTS_MAX, TIMEOUT_SECONDS_MAX, run_command};

/// The pauses between tries; after the last one nobody is told.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];

/// The configured commands, by name.
pub type Commands = BTreeMap<String, NotifyCommand>;

/// A command that is run when a job is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifyCommand {
    /// The program, with its whole path, and its arguments; the job's state is added as the last. It reads the job, as the feed
    /// has it, from its standard input.
    pub command: Vec<String>,
    /// How long it may take; then it is killed and has failed.
    #[serde(default = "half_a_minute")]
    pub timeout_seconds: u32,
}

const fn half_a_minute() -> u32 {
    30
}

impl NotifyCommand {
    /// What is wrong with it: the key, its value, and what to give.
    #[must_use]
    pub fn fault(&self) -> Option<(&'static str, String, &'static str)> {
        let program = self.command.first().map(String::as_str).unwrap_or_default();
        if !program.starts_with('/') || self.command.len() > ARGUMENTS_MAX {
            let remedy = "give a program's whole path and up to 31 arguments";
            return Some(("notify.NAME.command", format!("{:?}", self.command), remedy));
        }
        if !(1..=TIMEOUT_SECONDS_MAX).contains(&self.timeout_seconds) {
            return Some(("notify.NAME.timeout_seconds", self.timeout_seconds.to_string(), "give 1 to 600"));
        }
        None
    }

    /// Runs it, and again after each of the pauses while it fails.
    ///
    /// # Errors
    /// Why it failed the last time.
    pub async fn run(&self, state: &str, document: &[u8]) -> Result<(), String> {
        let limit = Duration::from_secs(self.timeout_seconds.into());
        let mut outcome = run_command(&self.command, state, document, limit).await;
        for pause in PAUSES {
            if outcome.is_ok() {
                break;
            }
            tokio::time::sleep(pause).await;
            outcome = run_command(&self.command, state, document, limit).await;
        }
        outcome
    }
}
