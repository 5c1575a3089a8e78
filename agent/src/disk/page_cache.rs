//! Images that are written through the host's page cache, and leave it to others.
//!
//! A copy that goes through the page cache is read back from there: that is as fast as memory, and no reading competes with
//! the writing for the medium. It is read by this process, from the file: over NBD each byte would be copied twice more, by
//! two processes that wait for each other. But a disk is larger than memory, and what is cached of it is of no use to
//! anybody. So what was read back is sent on to the medium, in steps, and let go of a step later. That also leaves little to
//! the flush.

use std::fs::File;
use std::num::NonZeroU64;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use tokio::task::JoinHandle;

use super::extent::{Extent, ExtentSet};

/// The kernel is told of so many bytes at a time. About three times as much of an image is in the cache.
const STEP: u64 = 64 << 20;

/// One image's place in the page cache.
#[derive(Debug)]
pub struct PageCache {
    image: Arc<File>,
    /// What was read back since the last step, and in the step before.
    now: ExtentSet,
    before: ExtentSet,
    step: u64,
    telling: Option<JoinHandle<()>>,
}

impl PageCache {
    /// That of an image; any handle of it will do.
    #[must_use]
    pub fn of(image: File) -> Self {
        let (now, before) = (ExtentSet::new(), ExtentSet::new());
        Self { image: Arc::new(image), now, before, step: STEP, telling: None }
    }

    /// The image itself. It is raw: what a disk holds at some offset, it holds there.
    pub(super) fn image(&self) -> Arc<File> {
        Arc::clone(&self.image)
    }

    /// Notes that nobody has a use any more for what is cached of a range.
    pub(super) fn done_with(&mut self, extent: Extent) {
        self.now.insert(extent);
        if self.now.total() < self.step || self.telling.as_ref().is_some_and(|telling| !telling.is_finished()) {
            return;
        }
        let before = std::mem::replace(&mut self.before, std::mem::take(&mut self.now));
        let ranges: Vec<Extent> = before.iter().chain(self.before.iter()).collect();
        let image = Arc::clone(&self.image);
        self.telling = Some(tokio::task::spawn_blocking(move || {
            for range in ranges {
                // What is clean is dropped, what is dirty begins to be written. Advice: its failure changes nothing.
                let _ = fadvise(&*image, range.offset(), NonZeroU64::new(range.length()), Advice::DontNeed);
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Bytes of a file that are in the page cache.
    fn cached(path: &Path) -> u64 {
        let output = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output();
        let output = output.expect("fincore, of util-linux, runs");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
    }

    #[tokio::test]
    async fn what_was_read_back_does_not_stay() {
        // Not in a temporary file system, which is nothing but cache.
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.write_all(&vec![7; 16 << 20]).expect("written");
        file.as_file().sync_all().expect("flushed");
        assert_eq!(cached(file.path()), 16 * MIB);
        let mut page_cache = PageCache { step: 4 * MIB, ..PageCache::of(file.reopen().expect("another handle")) };
        for chunk in 0..12 {
            page_cache.done_with(Extent::new(chunk * MIB, MIB).expect("a chunk"));
            if let Some(telling) = page_cache.telling.take() {
                telling.await.expect("told");
            }
        }
        // What nobody is done with stays.
        assert_eq!(cached(file.path()), 4 * MIB);
    }
}
