//! What went wrong, for a person or a program: a kind that sets the exit code, causes, reasons, and what to do next.

use std::error::Error as StdError;
use std::process::ExitCode;

use serde::Serialize;
use sterna_shared::bus::{ApiError, ApiErrorKind};
use sterna_shared::job::{JobState, Refusal};

use crate::client::ClientError;

/// How the command ended. The numbers are a promise to scripts (docs/operations.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub(super) enum Exit {
    /// It was done.
    Ok = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The command line, or a file it names, makes no sense.
    Usage = 2,
    /// It cannot be done now; every reason was told.
    Refused = 3,
    /// There is no such thing.
    NotFound = 4,
    /// Who must do it cannot be reached.
    Unreachable = 5,
    /// The job was cancelled and put everything back.
    Cancelled = 6,
    /// The job waits for a word from the operator: an answer, or that a host is fenced.
    NeedsOperator = 7,
    /// Interrupted; a job that was watched goes on.
    Interrupted = 130,
}

impl Exit {
    /// How a job's state ends the command that watched it; none while the job goes on.
    #[must_use]
    pub(super) const fn of_job(state: JobState) -> Option<Self> {
        match state {
            JobState::Completed => Some(Self::Ok),
            JobState::Exception => Some(Self::Failed),
            JobState::Terminated | JobState::Killed => Some(Self::Cancelled),
            JobState::QueryPending => Some(Self::NeedsOperator),
            JobState::New
            | JobState::Starting
            | JobState::Running
            | JobState::Suspended
            | JobState::ShuttingDown
            | JobState::Service => None,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The table of exit codes, as `--help` shows it.
pub(super) const EXIT_CODES_HELP: &str = "\
Exit codes:
    0  done
    1  tried and failed
    2  the command line, or a file it names, makes no sense
    3  refused; every reason is given, with what to do about it
    4  no such host, VM or job
    5  the broker, the coordinators or a host cannot be reached
    6  the job was cancelled and put everything back
    7  the job waits for an operator; what it waits for, and what to answer, is told
  130  interrupted; a job that was watched goes on";

/// An error, ready to be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct CliError {
    /// Its kind.
    #[serde(rename = "kind")]
    pub(super) exit: Exit,
    /// What, in one sentence.
    pub(super) message: String,
    /// What led to it, nearest first.
    pub(super) causes: Vec<String>,
    /// Every reason, each with its remedy.
    pub(super) refusals: Vec<Refusal>,
    /// What to do next.
    pub(super) hints: Vec<String>,
}

impl CliError {
    /// An error without causes.
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), causes: Vec::new(), refusals: Vec::new(), hints: Vec::new() }
    }

    /// Flattens an error and its sources.
    pub(super) fn from_source(exit: Exit, error: &dyn StdError) -> Self {
        let mut flat = Self::new(exit, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Some libraries repeat their source in their own text; once is enough.
            let last = flat.causes.last().unwrap_or(&flat.message);
            if !last.contains(&text) {
                flat.causes.push(text);
            }
            source = cause.source();
        }
        flat
    }

    /// Adds what to do next.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// As people read it: several lines, each part where it is looked for.
    #[must_use]
    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!("error: {}", self.message)];
        lines.extend(self.causes.iter().map(|cause| format!("  because: {cause}")));
        for refusal in &self.refusals {
            lines.push(format!("  - {}", refusal.message));
            if !refusal.remedy.is_empty() {
                lines.push(format!("    → {}", refusal.remedy));
            }
        }
        lines.extend(self.hints.iter().map(|hint| format!("hint: {hint}")));
        lines.join("\n")
    }

    /// As programs read it.
    #[must_use]
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "error": self, "exit_code": self.exit as u8 })
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        let exit = match error.kind {
            ApiErrorKind::Invalid => Exit::Usage,
            ApiErrorKind::NotFound => Exit::NotFound,
            ApiErrorKind::Refused => Exit::Refused,
            ApiErrorKind::Unreachable => Exit::Unreachable,
            ApiErrorKind::Failed => Exit::Failed,
        };
        Self { exit, message: error.message, causes: Vec::new(), refusals: error.refusals, hints: error.hints }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Servers { .. }
            | ClientError::File { .. }
            | ClientError::Mode { .. }
            | ClientError::Seed { .. } => Exit::Usage,
            ClientError::Connect { .. }
            | ClientError::NoCoordinator
            | ClientError::TimedOut { .. }
            | ClientError::Request { .. } => Exit::Unreachable,
            ClientError::Denied { .. } => Exit::Refused,
            ClientError::NotFound { .. } => Exit::NotFound,
            ClientError::Version { .. }
            | ClientError::Envelope { .. }
            | ClientError::Service { .. }
            | ClientError::Changing
            | ClientError::Unexpected { .. }
            | ClientError::Api { .. } => Exit::Failed,
        };
        let flat = Self::from_source(exit, &error);
        match error {
            // It says itself of what kind it is.
            ClientError::Api { error } => error.into(),
            ClientError::Connect { remedy, .. } => flat.hint(remedy),
            ClientError::NoCoordinator => {
                flat.hint("start one: systemctl start sterna-coordinator; after a failover one answers within 10 s")
            }
            ClientError::TimedOut { .. } => flat.hint("sterna doctor tells what is amiss; --timeout allows more time"),
            ClientError::Denied { .. } => {
                flat.hint("use an operator's nkey; sterna nats-config --operator NAME makes one")
            }
            ClientError::NotFound { what, .. } => flat.hint(format!("sterna {} list shows all", what.to_lowercase())),
            ClientError::Envelope { .. } | ClientError::Unexpected { .. } => {
                flat.hint("are command and coordinator of one version? sterna doctor tells")
            }
            ClientError::Changing => flat.hint("ask again in a moment"),
            _ => flat,
        }
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::job::RefusalCode;

    use super::*;

    #[test]
    fn every_reason_is_shown_with_its_remedy() {
        let refusal = |code, message: &str, remedy: &str| Refusal {
            code,
            message: message.to_owned(),
            remedy: remedy.to_owned(),
        };
        let error = CliError::from(ApiError {
            kind: ApiErrorKind::Refused,
            message: "web cannot move to beta".to_owned(),
            hints: vec!["sterna host show beta tells what it has".to_owned()],
            refusals: vec![
                refusal(RefusalCode::Memory, "beta has 512 MiB free of the 2 GiB that web needs", "free memory there"),
                refusal(RefusalCode::UnknownPool, "beta has no pool fast", "give --disk root=POOL"),
            ],
        });
        assert_eq!(error.exit, Exit::Refused);
        insta::assert_snapshot!(error.text(), @r"
        error: web cannot move to beta
          - beta has 512 MiB free of the 2 GiB that web needs
            → free memory there
          - beta has no pool fast
            → give --disk root=POOL
        hint: sterna host show beta tells what it has
        ");
        insta::assert_snapshot!(error.json().to_string(), @r#"{"error":{"kind":"refused","message":"web cannot move to beta","causes":[],"refusals":[{"code":"memory","message":"beta has 512 MiB free of the 2 GiB that web needs","remedy":"free memory there"},{"code":"unknown_pool","message":"beta has no pool fast","remedy":"give --disk root=POOL"}],"hints":["sterna host show beta tells what it has"]},"exit_code":3}"#);
    }

    #[test]
    fn every_final_state_ends_a_watch() {
        for state in JobState::ALL {
            let ends = Exit::of_job(state).is_some();
            assert_eq!(ends, state.is_final() || state == JobState::QueryPending, "{state}");
        }
    }
}
