//! A command of this host's operators that says whether a guest is healthy, by its exit code.
//!
//! It is given a way to one port of the guest, and knows what to ask there: Sterna need not speak what a service speaks. It is
//! tried until it succeeds, so that a try that is given up ends with whatever it has started.

use std::io;
use std::net::SocketAddrV4;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use sterna_shared::id::VmName;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use super::health::shown;

/// The most of the end of what it says that is kept, in bytes.
const SAID_BYTES_MAX: usize = 4 << 10;
/// How long its last words may take after it has ended.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(200);

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
        status: ExitStatus,
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
    let mut said = Said::default();
    if let Some(mut stderr) = run.0.stderr.take() {
        tokio::select! {
            status = run.0.wait() => {
                // The last of it may be on its way; what the command has left running may never let go of it.
                let _ = timeout(LAST_WORDS_WAIT, said.hear(&mut stderr)).await;
                return said.verdict(status.map_err(failed)?);
            }
            heard = said.hear(&mut stderr) => heard.map_err(failed)?,
        }
    }
    said.verdict(run.0.wait().await.map_err(failed)?)
}

/// The end of what a command says.
#[derive(Default)]
struct Said(Vec<u8>);

impl Said {
    /// Hears it to its end. What was heard stays if this is dropped.
    async fn hear(&mut self, stderr: &mut ChildStderr) -> io::Result<()> {
        while stderr.read_buf(&mut self.0).await? > 0 {
            self.0.drain(..self.0.len().saturating_sub(SAID_BYTES_MAX));
        }
        Ok(())
    }

    fn verdict(&self, status: ExitStatus) -> Result<(), ProbeCommandError> {
        let text = String::from_utf8_lossy(&self.0);
        let last_line = text.lines().rfind(|line| !line.trim().is_empty()).map(shown);
        status.success().then_some(()).ok_or(ProbeCommandError::Failed { status, last_line })
    }
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
    use rustix::process::kill_process;

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
        let long = ran("head -c 200000 /dev/zero | tr '\\0' x >&2; exec 2>&-; true").await;
        assert!(long.is_ok(), "however much it says: {long:?}");
        let escapes = ran("printf 'a\\033[2Jb%0500d' 1 >&2; exit 1").await.expect_err("not").to_string();
        assert!(escapes.contains("a\u{fffd}[2Jb000") && escapes.len() < 250, "{escapes}");
        let leaves = ran("sleep 600 & echo $! >&2; exit 7").await.expect_err("not").to_string();
        let pid = leaves.rsplit(' ').next().and_then(|id| Pid::from_raw(id.parse().ok()?)).expect("its id");
        kill_process(pid, Signal::KILL).expect("it was left running");
        assert!(leaves.starts_with("the command ended with exit status: 7"), "{leaves}");
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
