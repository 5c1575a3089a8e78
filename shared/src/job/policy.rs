//! Policy: what the submitter of a job says beside his wish, and may change while the job lives. They are the read/write
//! properties of `Msvm_MigrationJob`, with its recovery action and its group.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Expiration, MoveRequest, Schedule, label_faults};

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
    /// Who is told when it is over: `subject:NAME` or `command:NAME` ([`Notify`]).
    pub notify: Option<String>,
    /// When it runs; none for as soon as its hosts have a slot.
    pub schedule: Option<Schedule>,
    /// What is done when it fails.
    pub recovery: Recovery,
    /// The group that it is part of: jobs of one group run one after the other, in the order in which they were submitted.
    pub group: Option<String>,
    /// Of a replication that goes on: when it expires. None for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Expiration>,
    /// By what operators find it again, and what it makes: keys and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            owner: None,
            priority: PRIORITY_DEFAULT,
            delete_on_completion: false,
            keep_seconds: KEEP_DEFAULT_SECONDS,
            notify: None,
            schedule: None,
            recovery: Recovery::default(),
            group: None,
            expiration: None,
            labels: BTreeMap::new(),
        }
    }
}

/// Who is told when a job is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notify {
    /// Whoever listens to `sterna.v1.feed.notify.NAME`.
    Subject(String),
    /// The command of that name in the coordinators' configuration.
    Command(String),
}

impl std::str::FromStr for Notify {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |name: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !name.is_empty() && name.len() <= 64 && name.bytes().all(plain)
        };
        match text.split_once(':') {
            Some(("subject", name)) if fits(name) => Ok(Self::Subject(name.to_owned())),
            Some(("command", name)) if fits(name) => Ok(Self::Command(name.to_owned())),
            _ => Err(format!(
                "{text:?} names nobody to tell; give subject:NAME or command:NAME, the name of letters, digits, - and _"
            )),
        }
    }
}

/// What is done when a job fails (`CIM_Job.RecoveryAction`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Recovery {
    /// Nothing; what comes after it in its group is not begun.
    #[default]
    Stop,
    /// Nothing; the next job of its group runs all the same.
    Next,
    /// The same wish again, as a job of its own, after a pause that doubles with each.
    Rerun {
        /// How often at most.
        times: u32,
        /// The first pause, in seconds.
        pause_seconds: u32,
    },
    /// Another wish.
    Run {
        /// What.
        request: Box<MoveRequest>,
    },
    /// What people know how to do.
    Other {
        /// In words (`OtherRecoveryAction`).
        text: String,
    },
}

/// The most times that a failed job is run again.
pub const RERUNS_MAX: u32 = 100;
/// The longest pause before a failed job is run again, in seconds.
pub const PAUSE_MAX_SECONDS: u32 = 86_400;

impl Policy {
    /// Everything that is wrong with it, each in a sentence.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.owner.as_ref().is_some_and(|owner| owner.len() > TEXT_LENGTH_MAX || owner.chars().any(char::is_control))
        {
            faults.push(format!("the owner is too long or not plain text; give at most {TEXT_LENGTH_MAX} bytes"));
        }
        let named =
            |name: &String| !name.is_empty() && name.len() <= TEXT_LENGTH_MAX && !name.chars().any(char::is_control);
        if self.group.as_ref().is_some_and(|group| !named(group)) {
            faults.push(format!("the group has no name, or none in plain text of at most {TEXT_LENGTH_MAX} bytes"));
        }
        faults.extend(self.notify.as_ref().and_then(|notify| notify.parse::<Notify>().err()));
        match &self.recovery {
            Recovery::Rerun { times, pause_seconds } => {
                if !(1..=RERUNS_MAX).contains(times) || *pause_seconds > PAUSE_MAX_SECONDS {
                    faults.push(format!(
                        "a failed job is run again 1 to {RERUNS_MAX} times, after a pause of at most {PAUSE_MAX_SECONDS} s"
                    ));
                }
            }
            Recovery::Other { text } if !named(text) => {
                faults.push(format!("say what is done when the job fails, in at most {TEXT_LENGTH_MAX} bytes"));
            }
            Recovery::Stop | Recovery::Next | Recovery::Run { .. } | Recovery::Other { .. } => {}
        }
        faults.extend(self.schedule.iter().flat_map(Schedule::faults));
        if self.expiration.is_some() && !self.recurs() {
            faults.push("the job runs once, and does not expire; leave the expiry out".to_owned());
        }
        faults.extend(label_faults(&self.labels));
        faults
    }

    /// Whether the job stands for a number of runs, each a job of its own.
    #[must_use]
    pub fn recurs(&self) -> bool {
        self.schedule.as_ref().is_some_and(|schedule| schedule.run_times != 1)
    }
}
