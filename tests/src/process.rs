//! A child process whose every line is kept, and which ends with its owner.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

/// Lines shown when a wait fails.
const TAIL_LINES: usize = 20;

/// A running child. What it prints goes, line by line, into its log file and can be waited for. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    lines: watch::Receiver<Vec<String>>,
}

impl Process {
    /// Starts `command`; `log` receives what it prints on both channels.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        let (sender, lines) = watch::channel(Vec::new());
        let sender = Arc::new(sender);
        if let Some(output) = child.stdout.take() {
            keep_lines(output, file.try_clone()?, Arc::clone(&sender));
        }
        if let Some(output) = child.stderr.take() {
            keep_lines(output, file, sender);
        }
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), lines })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output is kept.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Everything it printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    /// Waits until it has printed a line that contains `text`, and returns the first such line.
    ///
    /// # Errors
    /// It ended, or the time ran out; the last lines are in the error.
    pub async fn wait_for_line(&self, text: &str, timeout: Duration) -> anyhow::Result<String> {
        let mut lines = self.lines.clone();
        let mut seen = 0;
        let mut found = None;
        let wait = lines.wait_for(|lines| {
            found = lines[seen..].iter().find(|line| line.contains(text)).cloned();
            seen = lines.len();
            found.is_some()
        });
        let why = match tokio::time::timeout(timeout, wait).await {
            Ok(Ok(_)) => None,
            Ok(Err(_)) => Some("ended".to_owned()),
            Err(_) => Some(format!("ran for {timeout:?}")),
        };
        match (found, why) {
            (Some(line), None) => Ok(line),
            (_, why) => {
                let lines = self.lines.borrow();
                let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
                bail!("{} {} without saying {text:?}; its last lines:\n  {tail}", self.name, why.unwrap_or_default())
            }
        }
    }

    /// Sends a signal: `KILL`, `TERM`; `STOP` freezes it and `CONT` lets it go on.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process id out of range"))?;
        Ok(kill_process(pid, signal)?)
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Waits for its own end, which the end of its output announces.
    pub async fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let mut lines = self.lines.clone();
        let ended = async { while lines.changed().await.is_ok() {} };
        if tokio::time::timeout(timeout, ended).await.is_err() {
            bail!("{} still runs after {timeout:?}", self.name);
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Reads to the end on a thread of its own, so that a child is never held up by its own output.
fn keep_lines(output: impl Read + Send + 'static, mut log: File, lines: Arc<watch::Sender<Vec<String>>>) {
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let _ = log.write_all(&line);
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            lines.send_modify(|lines| lines.push(text));
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str, log: &Path) -> Process {
        Process::spawn("shell", Command::new("sh").args(["-c", script]), log).expect("sh starts")
    }

    #[tokio::test]
    async fn lines_are_awaited_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut process = shell("echo one; echo two >&2; exit 3", &log);
        assert_eq!(process.wait_for_line("tw", SOON).await.expect("said"), "two");
        assert_eq!(process.wait(SOON).await.expect("ended").code(), Some(3));
        let error = process.wait_for_line("three", SOON).await.expect_err("never said").to_string();
        assert!(error.contains("ended without saying \"three\"") && error.contains("one"), "{error}");
        assert!(std::fs::read_to_string(&log).expect("log").contains("two\n"));
    }

    #[tokio::test]
    async fn dropping_kills() {
        let folder = tempfile::tempdir().expect("a folder");
        let process = shell("echo up; exec sleep 600", &folder.path().join("log"));
        process.wait_for_line("up", SOON).await.expect("said");
        let proc = format!("/proc/{}", process.id());
        assert!(Path::new(&proc).exists());
        drop(process);
        assert!(!Path::new(&proc).exists());
    }
}
