//! Running a small program (`qemu-img`, `lvm`): bounded in time and in what is read of it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

/// The most output that is read of a program.
const OUTPUT_MAX: u64 = 4 << 20;

/// The most lines of complaint that are told, the last ones: the very last may only say where help is.
const LINES_TOLD_MAX: usize = 3;

/// Runs a program to its end and gives what it wrote. A program that takes longer is killed.
///
/// # Errors
/// What happened, or the last thing that the program said.
pub(super) async fn run(command: &mut Command, time_max: Duration) -> Result<Vec<u8>, String> {
    use std::process::Stdio;
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("it could not be started: {error}; is it installed?"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let run = async { tokio::try_join!(bounded(stdout), bounded(stderr), child.wait()) };
    let finished = timeout(time_max, run).await.map_err(|_| format!("it took longer than {time_max:?}"))?;
    let (output, errors, status) = finished.map_err(|error| error.to_string())?;
    if !status.success() {
        let said = String::from_utf8_lossy(&errors);
        let mut last: Vec<&str> =
            said.lines().rev().map(str::trim).filter(|line| !line.is_empty()).take(LINES_TOLD_MAX).collect();
        last.reverse();
        return Err(if last.is_empty() { "it said nothing".to_owned() } else { last.join(" / ") });
    }
    Ok(output)
}

async fn bounded<R: AsyncRead + Unpin>(output: Option<R>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(output) = output {
        output.take(OUTPUT_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
