//! A process that must not be mistaken for another: known by its id *and* its start time.
//!
//! Process ids are reused. The pair of id and start time is not, within one boot of the host; and where the kernel has
//! process file descriptors, a signal through one reaches this process or nobody.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a process may take to end after SIGKILL: as long as I/O that is stuck in the kernel.
const KILL_WAIT_MAX: Duration = Duration::from_secs(30);
/// The most threads of a process that are told.
const THREADS_TOLD_MAX: usize = 32;
/// How often a process is looked at where the kernel has no process file descriptors (before Linux 5.3).
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// One process. Clones are the same process; dropping them all does nothing to it.
#[derive(Debug, Clone)]
pub struct Process {
    identity: Identity,
    descriptor: Option<Arc<OwnedFd>>,
    ended: watch::Receiver<Option<Ended>>,
}

/// What tells one process from every other of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since the host's boot: field 22 of `/proc/PID/stat`.
    pub started_ticks: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its status; unknown for one that an earlier agent started.
    pub status: Option<ExitStatus>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => status.fmt(f),
            None => f.write_str("status unknown, as an earlier agent started it"),
        }
    }
}

/// Why a process could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The system refused the signal.
    #[error("cannot signal process {pid}; does the agent run as the same user, or as root?")]
    Signal {
        /// Its id.
        pid: u32,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is still there.
    #[error("process {pid} is still there {wait:?} after SIGKILL; its I/O is stuck in the kernel: look at its storage")]
    Stuck {
        /// Its id.
        pid: u32,
        /// How long it was given.
        wait: Duration,
    },
}

impl Process {
    /// What its threads do, for whoever asks why it hangs: the name of each, its state, and where in the kernel it waits.
    #[must_use]
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.identity.pid)).into_iter().flatten().flatten();
        let told = |task: std::fs::DirEntry| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            // The state comes after the name, which is in brackets.
            let state = read("stat").rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?');
            format!("{} {state} {}", read("comm").trim(), read("wchan"))
        };
        tasks.take(THREADS_TOLD_MAX).map(told).collect()
    }

    /// Takes over a child: it is reaped when it ends, and is not ended when this is dropped.
    ///
    /// # Errors
    /// What the system says where `/proc` does not show it.
    pub(super) fn of_child(mut child: Child) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the child is not in /proc");
        // Until it is reaped, which only the task below does, its id belongs to it.
        let pid = child.id().ok_or_else(gone)?;
        let identity = Identity { pid, started_ticks: started_ticks(pid).ok_or_else(gone)? };
        let (sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            sender.send_replace(Some(Ended { status }));
        });
        Ok(Self { identity, descriptor: descriptor(pid).map(Arc::new), ended })
    }

    /// Takes over a process that somebody else started; none where no such process lives. The caller makes sure, after
    /// this, that the process it got is the one it meant.
    pub(super) fn of_pid(pid: u32) -> Option<Self> {
        let descriptor = descriptor(pid).map(Arc::new);
        let identity = Identity { pid, started_ticks: started_ticks(pid)? };
        let (sender, ended) = watch::channel(None);
        let watched = descriptor.clone();
        tokio::spawn(async move {
            outlive(identity, watched).await;
            sender.send_replace(Some(Ended { status: None }));
        });
        Some(Self { identity, descriptor, ended })
    }

    /// What tells it from every other process.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn has_ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Waits until it ends.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        // An error means that the runtime drops its tasks: then nobody knows the status.
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        ended.unwrap_or(Ended { status: None })
    }

    /// Ends it: SIGTERM to its process group, and SIGKILL after `grace`. Returns when it has ended; it having ended
    /// before is no error.
    ///
    /// # Errors
    /// [`KillError`]; then it may still run.
    pub async fn kill(&self, grace: Duration) -> Result<Ended, KillError> {
        if !grace.is_zero() {
            self.signal(Signal::TERM)?;
            if let Ok(ended) = timeout(grace, self.ended()).await {
                return Ok(ended);
            }
        }
        self.signal(Signal::KILL)?;
        let stuck = |_| KillError::Stuck { pid: self.identity.pid, wait: KILL_WAIT_MAX };
        timeout(KILL_WAIT_MAX, self.ended()).await.map_err(stuck)
    }

    fn signal(&self, signal: Signal) -> Result<(), KillError> {
        if self.has_ended().is_some() || !self.identity.lives() {
            return Ok(());
        }
        let Some(pid) = pid(self.identity.pid) else { return Ok(()) };
        // Its group first, which has its id because it leads a session; whoever it started goes with it.
        let group = rustix::process::kill_process_group(pid, signal);
        let outcome = match (&self.descriptor, group) {
            (Some(descriptor), _) => rustix::process::pidfd_send_signal(descriptor, signal),
            (None, Ok(())) => Ok(()),
            (None, Err(_)) => rustix::process::kill_process(pid, signal),
        };
        match outcome {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(KillError::Signal { pid: self.identity.pid, source: errno.into() }),
        }
    }
}

impl Identity {
    /// Whether this very process is there, if only as a zombie.
    #[must_use]
    pub fn lives(self) -> bool {
        started_ticks(self.pid) == Some(self.started_ticks)
    }
}

/// Waits until a process that is no child ends.
#[expect(
    deprecated,
    reason = "what replaces AsyncFd::new is unsafe to call; this descriptor is owned and never replaced"
)]
async fn outlive(identity: Identity, descriptor: Option<Arc<OwnedFd>>) {
    if let Some(descriptor) = descriptor
        && let Ok(descriptor) = AsyncFd::new(descriptor)
        // Readable when the process ends.
        && descriptor.readable().await.is_ok()
    {
        return;
    }
    while identity.lives() {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

fn descriptor(number: u32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(pid(number)?, PidfdFlags::empty()).ok()
}

fn started_ticks(pid: u32) -> Option<u64> {
    parse_started_ticks(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22; the command name, field 2, is in parentheses and may hold anything, also spaces and parentheses.
/// How many bytes of memory of its own, not of files, a process has touched, swapped ones included.
///
/// # Errors
/// What the system says; also where it does not tell.
pub fn touched_bytes(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_touched_bytes(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc does not tell"))
}

fn parse_touched_bytes(status: &str) -> Option<u64> {
    let kibibytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    kibibytes("RssAnon")?.saturating_add(kibibytes("VmSwap").unwrap_or(0)).checked_mul(1024)
}

fn parse_started_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::process::Command;

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let rest = "S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 8 9";
        assert_eq!(parse_started_ticks(&format!("7 (qemu) {rest}")), Some(4711));
        assert_eq!(parse_started_ticks(&format!("7 (a) R 1 2 (b) c) {rest}")), Some(4711));
        assert_eq!(parse_started_ticks("7 (qemu) S 1"), None);
        assert_eq!(parse_started_ticks(""), None);
    }

    #[test]
    fn what_a_process_has_touched_is_counted_with_what_was_swapped_out() {
        let status = "Name:\tRssAnon: 7 kB\nVmRSS:\t   90 kB\nRssAnon:\t      40 kB\nVmSwap:\t       2 kB\n";
        assert_eq!(parse_touched_bytes(status), Some(42 << 10));
        assert_eq!(parse_touched_bytes("RssAnon:\t1 kB\n"), Some(1024));
        assert_eq!(parse_touched_bytes("RssAnon:\t99999999999999999999 kB\n"), None);
        assert_eq!(parse_touched_bytes("VmSwap:\t1 kB\n"), None, "a kernel thread has none");
        assert!(touched_bytes(std::process::id()).expect("it tells") > 1 << 16);
    }

    #[tokio::test]
    async fn a_stranger_with_the_same_id_is_never_signalled() {
        let child = Command::new("sleep").arg("600").process_group(0).kill_on_drop(true).spawn().expect("a child");
        let process = Process::of_child(child).expect("a process");
        let mut earlier = process.clone();
        earlier.identity.started_ticks -= 1;
        earlier.signal(Signal::KILL).expect("nothing to do");
        assert!(process.identity.lives());
        let ended = process.kill(Duration::from_secs(10)).await.expect("ended");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.status.expect("a child's status")), Some(15));
        process.kill(Duration::ZERO).await.expect("ended before");
    }

    #[tokio::test]
    async fn the_end_of_another_ones_child_is_seen() {
        let child = Command::new("sleep").arg("600").process_group(0).kill_on_drop(true).spawn().expect("a child");
        let owned = Process::of_child(child).expect("a process");
        let adopted = Process::of_pid(owned.identity.pid).expect("a process");
        assert_eq!(adopted.identity(), owned.identity());
        assert_eq!(adopted.has_ended(), None);
        assert_eq!(adopted.kill(Duration::ZERO).await.expect("ended"), Ended { status: None });
        owned.ended().await;
    }
}
