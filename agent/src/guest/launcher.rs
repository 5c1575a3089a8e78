//! Starts QEMU so that it outlives the agent, and finds it again.
//!
//! ```text
//!   launch:  [systemd-run --scope] ─▶ setsid ─▶ sh: umask ─▶ QEMU        one process id all the way, by exec
//!                 └ its own cgroup      └ its own session
//!   attach:  runtime directory ─▶ monitor socket ─▶ the kernel names the process behind it ─▶ the same Launched
//! ```
//!
//! The process behind a monitor is taken from the socket's credentials, not from the pid file: a pid file goes stale, and
//! a reused process id must never be taken for a guest. A connected socket has its process alive at the other end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::process::{Ended, KillError, Process};
use crate::hypervisor::qemu::Machine;
use crate::hypervisor::qemu::command_line::CommandLineError;
use crate::hypervisor::qemu::qmp::QmpError;
use crate::hypervisor::qemu::runtime::{RuntimeDirectory, RuntimeError};

/// How often a starting QEMU's monitor is tried.
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);
/// How much of what QEMU said last an error repeats, in bytes.
const LOG_TAIL_BYTES_MAX: u64 = 4 << 10;
/// Exists where systemd runs the host.
const SYSTEMD_BOOTED: &str = "/run/systemd/system";
/// What is kept of the agent's environment for QEMU; the rest may hold secrets, or sockets that are the agent's.
const ENVIRONMENT_KEPT: [&str; 3] = ["PATH", "TMPDIR", "LANG"];
/// Has QEMU's allocator keep up to 32 MiB for the next request of its NBD server. By default it gives each request's
/// buffer back to the kernel: faults on it were two fifths of the processor time of a target that is being filled.
const ALLOCATOR: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=33554432");

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Launch {
    /// QEMU, or its storage daemon.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where it puts its monitor and its process id.
    pub runtime: RuntimeDirectory,
    /// What its systemd scope's name begins with, where there is systemd: such as `sterna-vm-ID`.
    pub unit: String,
}

/// A QEMU or a storage daemon that runs. Dropping it leaves the process alone.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The process.
    pub process: Process,
    /// Its monitor.
    pub machine: Machine,
    /// Its directory.
    pub runtime: RuntimeDirectory,
}

impl Launched {
    /// Ends the process, by force after `grace`, and removes its runtime directory with its logs.
    ///
    /// # Errors
    /// [`LaunchError`]; after [`LaunchError::Kill`] the process may still run, and its directory stays.
    pub async fn end(self, grace: Duration) -> Result<Ended, LaunchError> {
        let ended = self.process.kill(grace).await?;
        self.runtime.remove()?;
        Ok(ended)
    }
}

/// Starts it and returns when its monitor answers. One whose monitor stays silent has done nothing so far: it is ended, and
/// started once more. On failure nothing runs. A caller that stops waiting leaves a process that does not execute its guest, and
/// that [`attach`] finds.
///
/// A storage daemon of QEMU 10.0 was seen once to greet, and then to answer nothing.
///
/// # Errors
/// [`LaunchError`].
pub async fn launch(launch: &Launch, wait: Duration) -> Result<Launched, LaunchError> {
    // Whoever waits does so no longer than he said, for both.
    match start(launch, wait / 2).await {
        Err(LaunchError::Silent { pid, .. }) => {
            warn!(pid, program = %launch.program.display(), "its monitor stayed silent: it is started once more");
            start(launch, wait / 2).await
        }
        outcome => outcome,
    }
}

async fn start(launch: &Launch, wait: Duration) -> Result<Launched, LaunchError> {
    let Launch { program, runtime, .. } = launch;
    let failed = |source| LaunchError::Spawn { program: program.clone(), source };
    // Before its sockets and its pid file are taken from under it.
    if recorded(runtime).is_some() {
        return Err(LaunchError::Occupied { path: runtime.path().to_owned() });
    }
    runtime.create()?;
    let log = File::options().create(true).append(true).mode(0o600).open(runtime.log()).map_err(failed)?;
    let log_start = log.metadata().map_err(failed)?.len();
    let child = command(launch, &log).and_then(|mut command| command.spawn()).map_err(failed)?;
    let process = Process::of_child(child).map_err(failed)?;
    let outcome = tokio::select! {
        outcome = monitor(&process, runtime, wait) => outcome,
        ended = process.ended() => {
            Err(LaunchError::Ended { program: program.clone(), ended, log: tail(&runtime.log(), log_start) })
        }
    };
    match outcome {
        Ok(machine) => Ok(Launched { process, machine, runtime: runtime.clone() }),
        Err(error) => {
            let threads = process.threads();
            warn!(pid = process.identity().pid, ?threads, "it is ended, since it cannot be used");
            process.kill(Duration::ZERO).await?;
            Err(error)
        }
    }
}

/// Finds the process that an earlier agent started in this runtime directory; none where none runs.
///
/// # Errors
/// [`AttachError::Unreachable`] where one runs and cannot be driven: the VM must not be taken for stopped then. The
/// error carries the process, so that it can be ended.
pub async fn attach(runtime: &RuntimeDirectory, wait: Duration) -> Result<Option<Launched>, AttachError> {
    let machine = match Machine::connect(&runtime.qmp_socket(), wait).await {
        Ok(machine) => machine,
        Err(source) => {
            return match recorded(runtime) {
                Some(process) => Err(AttachError::Unreachable { process: Box::new(process), source }),
                None => Ok(None),
            };
        }
    };
    let pid = machine.qmp().peer_pid().ok_or(AttachError::NoCredentials)?;
    let process = Process::of_pid(pid).ok_or(AttachError::NoCredentials)?;
    // It answers, so it lives, so the process looked up above is the one at the other end.
    match machine.qmp().execute("query-name", serde_json::Value::Null, wait).await {
        Ok(_) => Ok(Some(Launched { process, machine, runtime: runtime.clone() })),
        // A storage daemon has no such command, and says so.
        Err(QmpError::Refused { .. }) => Ok(Some(Launched { process, machine, runtime: runtime.clone() })),
        Err(QmpError::Lost { .. }) if !process.identity().lives() => Ok(None),
        Err(source) => Err(AttachError::Unreachable { process: Box::new(process), source }),
    }
}

/// The process that the pid file names, if it lives and was told to write that very file.
fn recorded(runtime: &RuntimeDirectory) -> Option<Process> {
    let file = runtime.pid_file();
    let pid = pid_in(&file)?;
    let process = Process::of_pid(pid)?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let file = file.to_str()?.as_bytes();
    arguments.split(|byte| *byte == 0).any(|argument| argument == file).then_some(process)
}

fn pid_in(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn command(launch: &Launch, log: &File) -> io::Result<Command> {
    let mut words: Vec<OsString> = Vec::new();
    if Path::new(SYSTEMD_BOOTED).is_dir() {
        words.extend(["systemd-run", "--scope", "--collect", "--quiet"].map(OsString::from));
        words.extend([format!("--description={}", launch.unit).into(), scope(&launch.unit).into(), "--".into()]);
    }
    // The umask is the shell's to set: the agent's own belongs to all its threads.
    words.extend(["setsid", "sh", "-c", "umask 077 && exec \"$@\"", "sterna"].map(OsString::from));
    words.push(launch.program.clone().into());
    words.extend(launch.arguments.iter().cloned());
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?).current_dir("/");
    command.env_clear();
    command.env(ALLOCATOR.0, ALLOCATOR.1);
    command.envs(ENVIRONMENT_KEPT.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
    Ok(command)
}

/// A scope's name is taken until systemd has seen that its last process is gone, and a guest that left may be back
/// before: each launch has a name of its own.
fn scope(unit: &str) -> String {
    static LAUNCHES: AtomicU64 = AtomicU64::new(1);
    format!("--unit={unit}-{}-{}", std::process::id(), LAUNCHES.fetch_add(1, Ordering::Relaxed))
}

/// Connects to the monitor of a process that is just starting.
async fn monitor(process: &Process, runtime: &RuntimeDirectory, wait: Duration) -> Result<Machine, LaunchError> {
    let deadline = Instant::now() + wait;
    let pid = process.identity().pid;
    // A storage daemon may lose some of what it is sent by who connects before its loop runs; it writes this file just before.
    while pid_in(&runtime.pid_file()) != Some(pid) && Instant::now() < deadline {
        sleep(CONNECT_INTERVAL).await;
    }
    loop {
        match Machine::connect(&runtime.qmp_socket(), deadline.saturating_duration_since(Instant::now())).await {
            Ok(machine) if machine.qmp().peer_pid() == Some(pid) => return Ok(machine),
            Ok(_) => return Err(LaunchError::Occupied { path: runtime.path().to_owned() }),
            // Not listening yet, or ended: the caller watches for the end.
            Err(QmpError::Connect { .. } | QmpError::Lost { .. }) if Instant::now() < deadline => {
                sleep(CONNECT_INTERVAL).await;
            }
            Err(source) => return Err(LaunchError::Silent { pid, wait, source }),
        }
    }
}

/// The end of what a log got since `start`.
fn tail(path: &Path, start: u64) -> String {
    let read = || -> io::Result<String> {
        let mut log = File::open(path)?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        log.take(LOG_TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"))
}

/// Why a process could not be started, or not be ended.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// What was asked for cannot be put as a command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// The runtime directory will not do.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The system did not start it.
    #[error("cannot start {program:?}; check that it, setsid and sh are installed")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It ended before its monitor answered.
    #[error("{program:?} ended while it was starting ({ended}); its last words: {log}")]
    Ended {
        /// The program.
        program: PathBuf,
        /// How.
        ended: Ended,
        /// The end of its log.
        log: String,
    },
    /// It runs and its monitor does not answer.
    #[error("process {pid} has no working monitor after {wait:?}; the host may be overloaded")]
    Silent {
        /// Its id; it has been ended.
        pid: u32,
        /// How long it was given.
        wait: Duration,
        /// The last try.
        #[source]
        source: QmpError,
    },
    /// Another process serves the monitor there.
    #[error("another process uses the runtime directory {path:?}; attach to it or end it first")]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// It could not be ended.
    #[error(transparent)]
    Kill(#[from] KillError),
}

/// Why a process could not be found again.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It runs and cannot be driven.
    #[error("process {} runs and its monitor cannot be used; look at it, or have it ended", process.identity().pid)]
    Unreachable {
        /// The process.
        process: Box<Process>,
        /// What is wrong with the monitor.
        #[source]
        source: QmpError,
    },
    /// The kernel does not say who is at the other end of the monitor.
    #[error("the kernel does not tell which process serves the monitor; does the agent see the host's /proc?")]
    NoCredentials,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(script: &str, folder: &Path) -> Launch {
        Launch {
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            runtime: RuntimeDirectory::new(folder.join("guest")).expect("a directory"),
            unit: format!("sterna-test-{}", std::process::id()),
        }
    }

    #[tokio::test]
    async fn the_last_words_of_a_process_that_ends_at_once_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "echo earlier >&2; exit 3";
        let wait = Duration::from_secs(20);
        launch(&failing(script, folder.path()), wait).await.expect_err("it ends");
        let error = launch(&failing("echo no such disk >&2; exit 4", folder.path()), wait).await.expect_err("it ends");
        let LaunchError::Ended { ended, log, .. } = error else { panic!("{error}") };
        assert_eq!((ended.status.and_then(|status| status.code()), log.as_str()), (Some(4), "no such disk"));
    }

    #[tokio::test]
    async fn a_process_without_a_monitor_is_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = format!("echo $$ >> {}; exec sleep 600", folder.path().join("pids").display());
        let error = launch(&failing(&script, folder.path()), Duration::from_secs(2)).await.expect_err("silent");
        assert!(matches!(error, LaunchError::Silent { .. }), "{error}");
        let pids = std::fs::read_to_string(folder.path().join("pids")).expect("both have begun");
        assert_eq!(pids.lines().count(), 2);
        assert!(pids.lines().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "{pids}");
    }

    #[tokio::test]
    async fn one_whose_monitor_stays_silent_is_started_once_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let mark = folder.path().join("mark");
        let script = format!("[ ! -e {0} ] || exit 4; touch {0}; exec sleep 600", mark.display());
        let error = launch(&failing(&script, folder.path()), Duration::from_secs(3)).await.expect_err("it ends");
        let LaunchError::Ended { ended, .. } = error else { panic!("{error}") };
        assert_eq!(ended.status.and_then(|status| status.code()), Some(4));
    }

    #[tokio::test]
    async fn a_stale_pid_file_is_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = RuntimeDirectory::new(folder.path().join("guest")).expect("a directory");
        assert!(attach(&runtime, Duration::from_secs(5)).await.expect("an answer").is_none());
        runtime.create().expect("made");
        // This test's own process lives, and was never told to write that file.
        std::fs::write(runtime.pid_file(), std::process::id().to_string()).expect("written");
        assert!(attach(&runtime, Duration::from_secs(5)).await.expect("an answer").is_none());
    }
}
