//! Subjects: built and parsed in one place, so that no other module spells one.

use std::fmt;
use std::str::FromStr;

use crate::id::{HostId, JobId, VmId};

/// The stream that keeps commands until their host has taken them.
pub const STREAM_COMMANDS: &str = "STERNA_CMD";
/// The stream that keeps events.
pub const STREAM_EVENTS: &str = "STERNA_EVT";
/// The stream that keeps what jobs came to, for as long as is configured.
pub const STREAM_ARCHIVE: &str = "STERNA_ARC";
/// The bucket of folded job statuses.
pub const BUCKET_JOBS: &str = "sterna_jobs";
/// The bucket of VM owners and generations as last reported.
pub const BUCKET_VMS: &str = "sterna_vms";
/// The bucket of host inventories.
pub const BUCKET_HOSTS: &str = "sterna_hosts";
/// The bucket of plans, tokens and all, that were sent and that not all of their hosts have yet.
pub const BUCKET_PLANS: &str = "sterna_plans";
/// The bucket that says which coordinator leads.
pub const BUCKET_LEADER: &str = "sterna_leader";

/// A subject of Sterna's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A request of an operator to the coordinators: resource and verb.
    Api(String, String),
    /// A request of a coordinator to a host's agent.
    Agent(HostId),
    /// A message of the handover from another host's agent: the one thing that agents may ask of each other.
    Handover(HostId),
    /// A command to a host about a job.
    Command(HostId, JobId),
    /// An event of a host about a job.
    Event(HostId, JobId),
    /// An event of the coordinators about a job.
    CoordinatorEvent(JobId),
    /// The record of a job that is over.
    Archive(JobId),
    /// Progress of a job at a host.
    Progress(HostId, JobId),
    /// A host's heartbeat.
    Host(HostId),
    /// The public feed of a job.
    FeedJob(JobId),
    /// The public feed of a host.
    FeedHost(HostId),
    /// The public feed of a VM.
    FeedVm(VmId),
    /// The public feed of a VM's replication.
    FeedReplica(VmId),
    /// What is told of jobs that are over and name it.
    FeedNotify(String),
}

/// In place of a host where the coordinators report events; no host may be called so.
const COORDINATOR: &str = "_coordinator";

/// A text that is no subject of Sterna's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a subject of Sterna's")]
pub struct InvalidSubject {
    text: String,
}

impl Subject {
    /// All commands to a host: the filter of its consumer.
    #[must_use]
    pub fn commands_of(host: &HostId) -> String {
        format!("sterna.v1.cmd.{host}.*")
    }

    /// Every command: what the command stream keeps.
    pub const COMMANDS: &str = "sterna.v1.cmd.*.*";
    /// Every event: what the event stream keeps.
    pub const EVENTS: &str = "sterna.v1.evt.*.*";
    /// Every record: what the archive stream keeps.
    pub const ARCHIVE: &str = "sterna.v1.archive.*";
    /// Every progress message.
    pub const PROGRESS: &str = "sterna.v1.progress.*.*";
    /// Every heartbeat.
    pub const HOSTS: &str = "sterna.v1.host.*";
    /// Every API request.
    pub const API: &str = "sterna.v1.api.*.*";
    /// The handover's messages to every host.
    pub const HANDOVERS: &str = "sterna.v1.handover.*";
    /// The whole public feed.
    pub const FEED: &str = "sterna.v1.feed.>";
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(resource, verb) => write!(f, "sterna.v1.api.{resource}.{verb}"),
            Self::Agent(host) => write!(f, "sterna.v1.agent.{host}"),
            Self::Handover(host) => write!(f, "sterna.v1.handover.{host}"),
            Self::Command(host, job) => write!(f, "sterna.v1.cmd.{host}.{job}"),
            Self::Event(host, job) => write!(f, "sterna.v1.evt.{host}.{job}"),
            Self::CoordinatorEvent(job) => write!(f, "sterna.v1.evt.{COORDINATOR}.{job}"),
            Self::Archive(job) => write!(f, "sterna.v1.archive.{job}"),
            Self::Progress(host, job) => write!(f, "sterna.v1.progress.{host}.{job}"),
            Self::Host(host) => write!(f, "sterna.v1.host.{host}"),
            Self::FeedJob(job) => write!(f, "sterna.v1.feed.job.{job}"),
            Self::FeedHost(host) => write!(f, "sterna.v1.feed.host.{host}"),
            Self::FeedVm(vm) => write!(f, "sterna.v1.feed.vm.{vm}"),
            Self::FeedReplica(vm) => write!(f, "sterna.v1.feed.replica.{vm}"),
            Self::FeedNotify(name) => write!(f, "sterna.v1.feed.notify.{name}"),
        }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;
    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let parse = || -> Option<Self> {
            let rest = text.strip_prefix("sterna.v1.")?;
            let tokens: Vec<&str> = rest.splitn(4, '.').collect();
            Some(match tokens[..] {
                ["api", resource, verb] if token(resource) && token(verb) => {
                    Self::Api(resource.to_owned(), verb.to_owned())
                }
                ["agent", host] => Self::Agent(host.parse().ok()?),
                ["handover", host] => Self::Handover(host.parse().ok()?),
                ["cmd", host, job] => Self::Command(host.parse().ok()?, job.parse().ok()?),
                ["evt", COORDINATOR, job] => Self::CoordinatorEvent(job.parse().ok()?),
                ["evt", host, job] => Self::Event(host.parse().ok()?, job.parse().ok()?),
                ["archive", job] => Self::Archive(job.parse().ok()?),
                ["progress", host, job] => Self::Progress(host.parse().ok()?, job.parse().ok()?),
                ["host", host] => Self::Host(host.parse().ok()?),
                ["feed", "job", job] => Self::FeedJob(job.parse().ok()?),
                ["feed", "host", host] => Self::FeedHost(host.parse().ok()?),
                ["feed", "vm", vm] => Self::FeedVm(vm.parse().ok()?),
                ["feed", "replica", vm] => Self::FeedReplica(vm.parse().ok()?),
                ["feed", "notify", name] if token(name) => Self::FeedNotify(name.to_owned()),
                _ => return None,
            })
        };
        parse().ok_or_else(|| InvalidSubject { text: text.chars().take(80).collect() })
    }
}

fn token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_comes_back() {
        let host: HostId = "alpha".parse().expect("a name");
        let job: JobId = "0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID");
        let vm: VmId = "0197c0de-0000-7000-8000-000000000002".parse().expect("a UUID");
        for subject in [
            Subject::Api("vm".into(), "start".into()),
            Subject::Agent(host.clone()),
            Subject::Handover(host.clone()),
            Subject::Command(host.clone(), job),
            Subject::Event(host.clone(), job),
            Subject::CoordinatorEvent(job),
            Subject::Archive(job),
            Subject::Progress(host.clone(), job),
            Subject::Host(host.clone()),
            Subject::FeedJob(job),
            Subject::FeedHost(host),
            Subject::FeedVm(vm),
            Subject::FeedReplica(vm),
            Subject::FeedNotify("night".into()),
        ] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
    }

    #[test]
    fn strangers_are_refused() {
        for bad in [
            "",
            "sterna.v1.cmd.alpha",
            "sterna.v2.host.alpha",
            "sterna.v1.host.a.b",
            "sterna.v1.api.vm.*",
            "sterna.v1.host.>",
        ] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
        }
    }
}
