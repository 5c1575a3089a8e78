//! The fence command: what the operators have configured to make sure that a host executes nothing any more.
//!
//! ```text
//!   job query_pending ──after_seconds──▶ target offline? ──▶ command HOST ──exit 0──▶ as `sterna vm resolve --fenced HOST`
//!                                             │ no                    └─anything else─▶ told, and tried again
//!                                             └─▶ the agents resolve it by themselves
//! ```
//!
//! Its exit code 0 is believed as an operator's word is: the host is off, or cut from all storage and networks, and will
//! not start again by itself. It must be harmless to run twice: a coordinator that loses the lead may still have it
//! running when another begins.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::JobStatus;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// The most arguments of the command.
pub const ARGUMENTS_MAX: usize = 32;
/// The longest that the command may be given, in seconds.
pub const TIMEOUT_SECONDS_MAX: u32 = 600;
/// The longest that a handover may be left to the agents alone, in seconds.
pub const AFTER_SECONDS_MAX: u32 = 86_400;
/// How long after the command failed it is run again.
const RETRY: Duration = Duration::from_secs(60);
/// The most of what the command says that is read.
const OUTPUT_MAX: u64 = 64 << 10;
/// The most of it that is told.
const TOLD_MAX: usize = 200;

/// The configured command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The program, with its whole path, and its arguments; the host's id is added as the last.
    pub command: Vec<String>,
    /// For how long a handover may be unresolved before the command is run.
    #[serde(default = "a_minute")]
    pub after_seconds: u32,
    /// How long the command may take; then it is killed and has failed.
    #[serde(default = "a_minute")]
    pub timeout_seconds: u32,
}

const fn a_minute() -> u32 {
    60
}

/// The handovers that wait, and since when on the coordinator's monotonic clock. Pure.
#[derive(Debug, Default)]
pub struct Fencing {
    due: BTreeMap<JobId, Option<Duration>>,
    told: BTreeMap<JobId, Duration>,
}

impl Fence {
    /// What is wrong with it: the key, its value, and what to give.
    #[must_use]
    pub fn fault(&self) -> Option<(&'static str, String, &'static str)> {
        let program = self.command.first().map(String::as_str).unwrap_or_default();
        if !program.starts_with('/') || self.command.len() > ARGUMENTS_MAX {
            return Some((
                "fence.command",
                format!("{:?}", self.command),
                "give a program's whole path and up to 31 arguments",
            ));
        }
        if !(1..=TIMEOUT_SECONDS_MAX).contains(&self.timeout_seconds) {
            return Some(("fence.timeout_seconds", self.timeout_seconds.to_string(), "give 1 to 600"));
        }
        if self.after_seconds > AFTER_SECONDS_MAX {
            return Some(("fence.after_seconds", self.after_seconds.to_string(), "give 0 to 86400"));
        }
        None
    }

    /// Runs the command against a host.
    ///
    /// # Errors
    /// Why the host does not count as fenced.
    pub async fn run(&self, host: &HostId) -> Result<(), String> {
        run_command(&self.command, host.as_str(), &[], Duration::from_secs(self.timeout_seconds.into())).await
    }
}

/// Runs a command that the operators have configured, with one more argument, and `input` to read.
///
/// # Errors
/// Why it counts as failed: it could not be started, took longer than `limit`, or its exit code is not 0.
pub(crate) async fn run_command(command: &[String], last: &str, input: &[u8], limit: Duration) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Err("no command is given".into()) };
    let mut child = Command::new(program)
        .args(arguments)
        .arg(last)
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} could not be started: {error}"))?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A command that does not read what it is given has not failed.
            let _ = stdin.write_all(input).await;
        }
    };
    let read = async {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            stderr.take(OUTPUT_MAX).read_to_end(&mut said).await?;
        }
        Ok::<_, std::io::Error>((said, child.wait().await?))
    };
    let finished = tokio::time::timeout(limit, async { tokio::join!(write, read).1 }).await;
    let finished = finished.map_err(|_| format!("{program} took longer than {} s and was killed", limit.as_secs()))?;
    let (said, status) = finished.map_err(|error| format!("{program} could not be followed: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&said)
        .lines()
        .next_back()
        .unwrap_or("it said nothing")
        .chars()
        .take(TOLD_MAX)
        .collect();
    Err(format!("{program} ended with {status}: {said}"))
}

impl Fencing {
    /// Takes note of where a job stands. The time counts from when this coordinator first sees it wait.
    pub fn observe(&mut self, status: &JobStatus, clock: Duration, after: Duration) {
        if status.is_unresolved() {
            self.due.entry(status.job).or_insert(Some(clock + after));
        } else {
            self.due.remove(&status.job);
            self.told.remove(&status.job);
        }
    }

    /// The jobs for whose target the command is due, of those that `offline` is true of; none comes again before
    /// [`Fencing::failed`] says so.
    pub fn due(&mut self, clock: Duration, offline: impl Fn(JobId) -> bool) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for (job, due) in &mut self.due {
            if due.is_some_and(|due| due <= clock) && offline(*job) {
                *due = None;
                jobs.push(*job);
            }
        }
        jobs
    }

    /// The command, or what follows from it, came to nothing: it is due again in a while.
    pub fn failed(&mut self, job: JobId, clock: Duration) {
        if let Some(due) = self.due.get_mut(&job) {
            *due = Some(clock + RETRY);
        }
    }

    /// Whether a failure is to be told in the job: at first, and then no more often than every `interval`.
    pub fn may_tell(&mut self, job: JobId, clock: Duration, interval: Duration) -> bool {
        let may = self.told.get(&job).is_none_or(|last| clock.saturating_sub(*last) >= interval);
        if may {
            self.told.insert(job, clock);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(script: &str, timeout_seconds: u32) -> Fence {
        let command = ["/bin/sh", "-c", script, "fence"].map(str::to_owned).to_vec();
        Fence { command, after_seconds: 0, timeout_seconds }
    }

    async fn run(script: &str, timeout_seconds: u32) -> Result<(), String> {
        fence(script, timeout_seconds).run(&"bravo".parse().expect("a name")).await
    }

    #[tokio::test]
    async fn only_exit_code_0_in_time_declares_a_host_fenced() {
        assert_eq!(run("test \"$1\" = bravo", 30).await, Ok(()), "the host is the last argument");
        let failed = run("echo power unit does not answer >&2; exit 3", 30).await.expect_err("it failed");
        assert!(failed.contains('3') && failed.contains("power unit does not answer"), "{failed}");
        assert!(run("kill -9 $$", 30).await.is_err(), "ended by a signal");
        let late = run("exec sleep 600", 1).await.expect_err("killed");
        assert!(late.contains("longer than 1 s"), "{late}");
        let missing = Fence { command: vec!["/no/such/program".into()], after_seconds: 0, timeout_seconds: 1 };
        let missing = missing.run(&"bravo".parse().expect("a name")).await.expect_err("not there");
        assert!(missing.contains("/no/such/program"), "{missing}");
    }

    #[tokio::test]
    async fn a_command_that_says_much_is_not_waited_for_in_vain() {
        assert!(run("head -c 10000000 /dev/zero >&2; exit 1", 30).await.is_err());
    }

    #[test]
    fn values_have_ranges() {
        assert_eq!(fence("true", 60).fault(), None);
        let fault = |change: fn(&mut Fence)| {
            let mut fence = fence("true", 60);
            change(&mut fence);
            fence.fault().map(|(key, ..)| key)
        };
        assert_eq!(fault(|fence| fence.command.clear()), Some("fence.command"));
        assert_eq!(fault(|fence| fence.command[0] = "sh".into()), Some("fence.command"));
        assert_eq!(fault(|fence| fence.timeout_seconds = 0), Some("fence.timeout_seconds"));
        assert_eq!(fault(|fence| fence.after_seconds = 86_401), Some("fence.after_seconds"));
    }
}
