//! How a job is to be treated, as the command line says it: the same words for jobs of every kind.

use clap::Args;
use sterna_shared::job::{KEEP_DEFAULT_SECONDS, PRIORITY_DEFAULT, Policy, Recovery};

use super::schedule::ScheduleArgs;

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
    #[arg(long, conflicts_with_all = ["reruns", "on_failure"])]
    go_on: bool,
    /// When it fails, try again, at most that often
    #[arg(long, value_name = "COUNT", conflicts_with = "on_failure")]
    reruns: Option<u32>,
    /// The pause before it is tried again, which doubles each time
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "reruns")]
    rerun_pause: u32,
    /// What people do when it fails, in words
    #[arg(long, value_name = "TEXT")]
    on_failure: Option<String>,
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
        }
    }
}
