//! A command of this host's operators that says whether a guest is healthy, by its exit code.
//!
//! It is given a way to one port of the guest, and knows what to ask there: Sterna need not speak what a service speaks. It is
//! tried until it succeeds, so that none of its tries may outlive what it is tried for: whatever it has started ends with it.

use std::io;
use std::net::SocketAddrV4;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use sterna_shared::id::VmName;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

/// The most of what it complains about that is read, in bytes.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// Why a command does not say that a guest is healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeCommandError {
    /// The host's configuration does not have it.
    #[error("the host has no such command; name it under [probe_commands] in its agent.toml")]
    Unknown,
    /// It cannot be run.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// Its program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It says no.
    #[error("the command ended with {status}: {}", last_line.as_deref().unwrap_or("it said nothing"))]
    Failed {
        /// How.
        status: std::process::ExitStatus,
        /// The last line that it wrote to its standard error.
        last_line: Option<String>,
    },
}

/// Runs a command once, and ends it when it is dropped; at `way` it reaches the port that it is to ask.
///
/// # Errors
/// [`ProbeCommandError`].
pub async fn run(command: &[String], vm: &VmName, way: SocketAddrV4) -> Result<(), ProbeCommandError> {
    let (program, arguments) = command.split_first().ok_or(ProbeCommandError::Unknown)?;
    let failed = |source| ProbeCommandError::Run { program: program.clone(), source };
    let child = Command::new(program)
        .args(arguments)
        // What the agent was started with is no business of a probe.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs([
            ("STERNA_VM", vm.as_str()),
            ("STERNA_ADDRESS", &way.ip().to_string()),
            ("STERNA_PORT", &way.port().to_string()),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut run = Run(child);
    let mut said = Vec::new();
    if let Some(stderr) = run.0.stderr.take() {
        stderr.take(OUTPUT_BYTES_MAX).read_to_end(&mut said).await.map_err(failed)?;
    }
    let status = run.0.wait().await.map_err(failed)?;
    let last_line =
        String::from_utf8_lossy(&said).lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned);
    status.success().then_some(()).ok_or(ProbeCommandError::Failed { status, last_line })
}

/// A run that ends, with all that it has started, when nobody waits for it any more.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        // None once it was waited for: only until then the group's id is surely its own.
        if let Some(leader) = self.0.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WAY: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 40_123);

    fn script(text: &str) -> Vec<String> {
        ["/bin/sh", "-c", text, "probe", "--deep"].map(str::to_owned).to_vec()
    }

    fn web() -> VmName {
        "web".parse().expect("a name")
    }

    async fn ran(text: &str) -> Result<(), ProbeCommandError> {
        run(&script(text), &web(), WAY).await
    }

    #[tokio::test]
    async fn only_exit_code_0_says_that_a_guest_is_healthy() {
        ran("test \"$STERNA_VM $STERNA_ADDRESS:$STERNA_PORT $1\" = 'web 127.0.0.1:40123 --deep'")
            .await
            .expect("healthy");
        let failed =
            ran("echo no >&2; echo orders are locked >&2; echo >&2; exit 3").await.expect_err("not").to_string();
        assert_eq!(failed, "the command ended with exit status: 3: orders are locked");
        let silent = ran("kill -9 $$").await.expect_err("not").to_string();
        assert!(silent.contains("signal: 9") && silent.ends_with("it said nothing"), "{silent}");
        let missing = run(&["/no/such/program".to_owned()], &web(), WAY).await.expect_err("not there").to_string();
        assert!(missing.starts_with("/no/such/program cannot be run: No such file"), "{missing}");
    }

    #[tokio::test]
    async fn it_is_told_nothing_else() {
        let names = "env | grep -v -E '^(PATH|STERNA_VM|STERNA_ADDRESS|STERNA_PORT|PWD|SHLVL|_)=' >&2 && exit 1; true";
        ran(names).await.expect("nothing else");
    }

    #[tokio::test]
    async fn whatever_it_has_started_ends_with_a_try_that_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let text = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", pid.display());
        let (command, web) = (script(&text), web());
        let started = async {
            while !pid.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            ended = run(&command, &web, WAY) => panic!("it waits: {ended:?}"),
            () = started => {}
        }
        let pid: u32 = std::fs::read_to_string(&pid).expect("an id").trim().parse().expect("a number");
        let stat = format!("/proc/{pid}/stat");
        // It is a zombie until whoever inherits it takes note.
        let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..500 {
            if !lives() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("process {pid} still runs");
    }
}
