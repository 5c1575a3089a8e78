//! The log of a guest's serial console, and that of its QEMU, of which the latest is kept.
//!
//! QEMU appends to the first whatever the guest says, and the guest decides how much that is; it is in the runtime directory, which is
//! memory. What is old is cut out of the file as a hole: the places of what is left stay as they are for whoever reads on.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// How much of a log there may be when it is looked at, in bytes.
pub const LOG_BYTES_MAX: u64 = 16 << 20;
/// How much of its end stays where there is more, in bytes.
pub const LOG_BYTES_KEPT: u64 = 8 << 20;
/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// What the kernel counts blocks in, in bytes.
const SECTOR_BYTES: u64 = 512;

/// Keeps the logs in the runtime directories of guests, each a directory in that one, for as long as the agent runs.
pub async fn keep_bounded(runtimes: PathBuf) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let runtimes = runtimes.clone();
        // One look ends before the next begins.
        let _ = tokio::task::spawn_blocking(move || bound_all(&runtimes)).await;
    }
}

fn bound_all(runtimes: &Path) {
    // Without guests there may be no directory yet.
    for runtime in std::fs::read_dir(runtimes).into_iter().flatten().flatten() {
        for entry in std::fs::read_dir(runtime.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "log")
                && let Err(error) = bound(&path)
            {
                warn!(log = %path.display(), %error, "a guest's log grows");
            }
        }
    }
}

/// Cuts the beginning out of a log that has grown too large; one that is not there any more has not.
fn bound(log: &Path) -> io::Result<()> {
    let length = match log.metadata() {
        Ok(of) if of.blocks() * SECTOR_BYTES > LOG_BYTES_MAX => of.len(),
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(old) = length.checked_sub(LOG_BYTES_KEPT).filter(|old| *old > 0) else { return Ok(()) };
    let file = OpenOptions::new().write(true).open(log)?;
    Ok(rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, old)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Of a line, with its end.
    const LINE_BYTES: u64 = 64;

    fn lines(numbers: std::ops::Range<u64>) -> String {
        numbers.map(|number| format!("{number:>63}\n")).collect()
    }

    #[test]
    fn the_latest_stays_where_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("vm")).expect("made");
        let path = folder.path().join("vm/console.log");
        let mut log = OpenOptions::new().create(true).append(true).open(&path).expect("opened");
        let mut count = 0;
        for _ in 0..3 {
            let next = count + LOG_BYTES_MAX / LINE_BYTES + 1;
            log.write_all(lines(count..next).as_bytes()).expect("written");
            log.sync_all().expect("blocks are counted");
            count = next;
            bound_all(folder.path());
            let of = path.metadata().expect("there");
            assert!(of.blocks() * SECTOR_BYTES <= LOG_BYTES_KEPT + (64 << 10), "{of:?}");
            let text = std::fs::read(&path).expect("read");
            assert_eq!(text.len() as u64, count * LINE_BYTES, "what is appended goes behind it");
            assert!(text.ends_with(lines(count - LOG_BYTES_KEPT / LINE_BYTES..count).as_bytes()));
        }
    }

    #[test]
    fn what_is_no_log_and_what_is_small_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("vm")).expect("made");
        for (name, length) in [("console.log", 4 << 10), ("vars.fd", 17 << 20)] {
            let path = folder.path().join("vm").join(name);
            std::fs::write(&path, vec![b'x'; length]).expect("written");
            bound_all(folder.path());
            assert_eq!(std::fs::read(&path).expect("read"), vec![b'x'; length], "{name}");
        }
        bound_all(&folder.path().join("none"));
    }
}
