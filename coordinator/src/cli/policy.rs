//! How a job is to be treated, as the command line says it: the same words for jobs of every kind.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use sterna_shared::id::HostId;
use sterna_shared::job::{KEEP_DEFAULT_SECONDS, MoveRequest, PRIORITY_DEFAULT, Policy, Recovery};

use super::error::{CliError, Exit};
use super::schedule::ScheduleArgs;

/// The largest file with a move that is read, in bytes.
const REQUEST_LENGTH_MAX: u64 = 1 << 20;

/// How a job is to be treated.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    /// Which jobs go first where not all can: lower numbers
    #[arg(long, value_name = "NUMBER", default_value_t = PRIORITY_DEFAULT)]
    priority: u32,
    /// Take the job off the list once it is over and its time there is up
    #[arg(long)]
    delete_on_completion: bool,
    /// How long it is listed then
    #[arg(long, value_name = "SECONDS", default_value_t = KEEP_DEFAULT_SECONDS)]
    keep: u32,
    /// Tell somebody when it is over: subject:NAME, or command:NAME of the coordinators' configuration
    #[arg(long, value_name = "WHOM")]
    notify: Option<String>,
    /// Run it after the jobs of that group that were submitted before it
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// When it fails, let the next job of its group run all the same
    #[arg(long, conflicts_with_all = ["reruns", "on_failure", "otherwise_to", "otherwise"])]
    go_on: bool,
    /// When it fails, try again, at most that often
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["on_failure", "otherwise_to", "otherwise"])]
    reruns: Option<u32>,
    /// The pause before it is tried again, which doubles each time
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "reruns")]
    rerun_pause: u32,
    /// What people do when it fails, in words
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["otherwise_to", "otherwise"])]
    on_failure: Option<String>,
    /// When it fails, do the same with that host as target, as a job of its own
    #[arg(long, value_name = "HOST", conflicts_with = "otherwise")]
    otherwise_to: Option<HostId>,
    /// When it fails, run the move that this file asks for in JSON, as a job of its own: vm, target, mode and the like
    #[arg(long, value_name = "FILE")]
    otherwise: Option<PathBuf>,
    #[command(flatten)]
    schedule: ScheduleArgs,
}

impl PolicyArgs {
    /// The policy that they come to, for a job of that owner.
    pub(super) fn policy(&self, owner: &str) -> Policy {
        Policy {
            owner: Some(owner.to_owned()),
            priority: self.priority,
            delete_on_completion: self.delete_on_completion,
            keep_seconds: self.keep,
            notify: self.notify.clone(),
            schedule: self.schedule.schedule(),
            recovery: match (self.reruns, &self.on_failure) {
                (Some(times), _) => Recovery::Rerun { times, pause_seconds: self.rerun_pause },
                (None, Some(text)) => Recovery::Other { text: text.clone() },
                (None, None) if self.go_on => Recovery::Next,
                (None, None) => Recovery::Stop,
            },
            group: self.group.clone(),
            ..Policy::default()
        }
    }

    /// What is done when it fails, where that is another job: one like `request`, or one from a file.
    ///
    /// # Errors
    /// The file holds none.
    pub(super) fn recover(&self, request: &MoveRequest, policy: &mut Policy) -> Result<(), CliError> {
        let instead = match (&self.otherwise_to, &self.otherwise) {
            (Some(host), _) if request.storage_only => {
                let message = format!("a storage move has no target that {host} could take the place of");
                return Err(
                    CliError::new(Exit::Usage, message).hint("leave out --otherwise-to, or give --otherwise FILE")
                );
            }
            (Some(host), _) => MoveRequest { target: Some(host.clone()), ..request.clone() },
            (None, Some(file)) => read_request(file)?,
            (None, None) => return Ok(()),
        };
        policy.recovery = Recovery::Run { request: Box::new(instead) };
        Ok(())
    }
}

fn read_request(file: &Path) -> Result<MoveRequest, CliError> {
    let faulty = |cause: String| {
        let mut error = CliError::new(Exit::Usage, format!("{} holds no move", file.display()))
            .hint("give a file such as {\"vm\": \"web\", \"target\": \"beta\"}; docs/schema has all there may be in a request");
        error.causes.push(cause);
        error
    };
    let length = std::fs::metadata(file).map_err(|error| faulty(error.to_string()))?.len();
    if length > REQUEST_LENGTH_MAX {
        return Err(faulty(format!("it has {length} bytes, over the limit of {REQUEST_LENGTH_MAX}")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| faulty(error.to_string()))?;
    parse_request(&text).map_err(faulty)
}

/// A wish in JSON. What it does not know it does not pass over: a limit that is misspelt would be none.
fn parse_request(text: &str) -> Result<MoveRequest, String> {
    let request: MoveRequest = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (given, known) = (serde_json::from_str(text), serde_json::to_value(&request));
    let (Ok(Value::Object(given)), Ok(Value::Object(known))) = (given, known) else {
        return Err("it is no JSON object".to_owned());
    };
    match given.keys().find(|key| !known.contains_key(*key)) {
        Some(key) => Err(format!("a move has no {key:?}")),
        None => Ok(request),
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::job::ModeWish;

    use super::*;

    #[test]
    fn a_move_in_a_file_is_parsed_or_explained() {
        let request = parse_request(r#"{"vm": "web", "target": "beta", "lanes": 2}"#).expect("a move");
        assert_eq!((request.vm.as_str(), request.lanes, request.mode), ("web", Some(2), ModeWish::Auto));
        for (bad, told) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"target": "beta"}"#, "missing field `vm`"),
            (r#"{"vm": "web", "max_blackout": 5}"#, "no \"max_blackout\""),
        ] {
            let error = parse_request(bad).expect_err(bad);
            assert!(error.contains(told), "{bad}: {error}");
        }
    }
}
