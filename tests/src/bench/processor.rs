//! Processor time of everything that runs in some namespaces, also of what ends meanwhile.
//!
//! Each side of a comparison has namespaces of its own, so what runs there is what it costs. Processes are looked at
//! every [`LOOK`]; what one uses between the last look and its end is not seen, 50 ms at most.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::namespace::Host;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Counts from its start to [`Meter::stop`].
#[derive(Debug)]
pub(super) struct Meter {
    stop: watch::Sender<bool>,
    task: JoinHandle<f64>,
}

/// A process, told apart from a later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    pid: u32,
    started: u64,
}

impl Meter {
    /// Begins to count what runs on these hosts, and what will.
    ///
    /// # Errors
    /// A namespace is not there.
    pub(super) fn start(hosts: &[&Host]) -> anyhow::Result<Self> {
        let inode = |host: &&Host| {
            let path = Path::new("/run/netns").join(host.namespace());
            Ok(std::fs::metadata(&path).with_context(|| format!("no namespace {}", path.display()))?.ino())
        };
        let namespaces = hosts.iter().map(inode).collect::<anyhow::Result<Vec<u64>>>()?;
        let before = look(&namespaces);
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut latest = before.clone();
            loop {
                let over = tokio::time::timeout(LOOK, stopped.wait_for(|stop| *stop)).await.is_ok();
                latest.extend(look(&namespaces));
                if over {
                    return seconds(used(&before, &latest));
                }
            }
        });
        Ok(Self { stop, task })
    }

    /// The seconds used since the start, on all processors together.
    ///
    /// # Errors
    /// The counting task has failed.
    pub(super) async fn stop(self) -> anyhow::Result<f64> {
        self.stop.send_replace(true);
        Ok(self.task.await?)
    }
}

/// Clock ticks between two looks, of processes that were there before and of new ones.
fn used(before: &HashMap<Identity, u64>, latest: &HashMap<Identity, u64>) -> u64 {
    latest.iter().map(|(process, ticks)| ticks.saturating_sub(before.get(process).copied().unwrap_or(0))).sum()
}

#[expect(clippy::cast_precision_loss, reason = "a run takes minutes, and not millions of years")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// The clock ticks used so far by each process of the namespaces.
fn look(namespaces: &[u64]) -> HashMap<Identity, u64> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // A process that ends while it is looked at is not there.
    pids.filter_map(|pid| {
        let namespace = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
        if !namespaces.contains(&namespace) {
            return None;
        }
        let (started, ticks) = parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some((Identity { pid, started }, ticks))
    })
    .collect()
}

/// From a line of `/proc/PID/stat`: when the process started, and the ticks it has used in user and kernel mode.
fn parse(stat: &str) -> Option<(u64, u64)> {
    // After the name, which may hold anything, these are the 12th, 13th and 20th fields.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((number(19)?, number(11)? + number(12)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_process_is_called() {
        let stat = "42 (a) b 7) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 4 0 123456 1000 200 rest";
        assert_eq!(parse(stat), Some((123_456, 300)));
        assert_eq!(parse("42 (cut off) S 1"), None);
        assert!(parse(&std::fs::read_to_string("/proc/self/stat").expect("Linux")).is_some());
    }

    #[test]
    fn what_was_used_before_does_not_count_and_what_ended_does() {
        let process = |pid, started| Identity { pid, started };
        let before = HashMap::from([(process(1, 10), 100), (process(2, 20), 50)]);
        // 1 went on; 2 has ended, seen last at 60; 3 is new; and 1's number was given out again.
        let latest =
            HashMap::from([(process(1, 10), 130), (process(2, 20), 60), (process(3, 30), 7), (process(1, 99), 5)]);
        assert_eq!(used(&before, &latest), 30 + 10 + 7 + 5);
    }
}
