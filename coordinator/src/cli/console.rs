//! `sterna vm console`: what a VM's serial console said, and what is typed into it.

use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::error::{CliError, Exit};
use super::output::{Output, write_out};
use crate::client::Client;

/// How often the log is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The longest line that is typed at once; a longer one is cut into several.
const LINE_LENGTH_MAX: usize = 4096;
/// Lines that wait to be typed.
const LINES_WAITING_MAX: usize = 16;
/// How many times in a row the console may be out of reach, as while its VM moves to another host.
const FAILURES_MAX: u32 = 150;

pub(super) async fn run(
    vm: &str,
    follow: bool,
    from_start: bool,
    client: &Client,
    output: Output,
) -> Result<Exit, CliError> {
    let mut offset = from_start.then_some(0);
    if !follow {
        // One answer is bounded; what there is now may take several.
        loop {
            let chunk = client.console(vm, offset, Vec::new()).await?;
            let last = chunk.bytes.is_empty() || !from_start;
            offset = Some(chunk.end);
            write_out(&chunk.bytes)?;
            if last {
                return Ok(Exit::Ok);
            }
        }
    }
    let mut lines = typed_lines();
    if lines.is_some() {
        output.remark(&format!("console of {vm}; lines you type go to it; Ctrl-C leaves"));
    }
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = 0;
    loop {
        let input = tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
            _ = ticks.tick() => Vec::new(),
            line = next_line(&mut lines) => line,
        };
        let typed = !input.is_empty();
        match client.console(vm, offset, input).await.map_err(CliError::from) {
            Ok(chunk) => {
                failures = 0;
                offset = Some(chunk.end);
                write_out(&chunk.bytes)?;
            }
            // A VM that moves changes hosts under the console: the log goes on at its new host.
            Err(error) if error.exit == Exit::Unreachable && !typed && failures < FAILURES_MAX => failures += 1,
            Err(error) => return Err(error),
        }
    }
}

/// The lines typed on a terminal; none elsewhere. Read by a thread of its own, which ends with the process: a blocked
/// read of a terminal cannot be called off.
fn typed_lines() -> Option<mpsc::Receiver<Vec<u8>>> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let (sender, receiver) = mpsc::channel(LINES_WAITING_MAX);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(mut line) = line else { return };
            line.push('\n');
            for part in line.as_bytes().chunks(LINE_LENGTH_MAX) {
                if sender.blocking_send(part.to_vec()).is_err() {
                    return;
                }
            }
        }
    });
    Some(receiver)
}

/// The next typed line; waits for ever where nobody types, or nobody can any more.
async fn next_line(lines: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Vec<u8> {
    match lines {
        Some(receiver) => match receiver.recv().await {
            Some(line) => line,
            None => {
                *lines = None;
                std::future::pending().await
            }
        },
        None => std::future::pending().await,
    }
}
