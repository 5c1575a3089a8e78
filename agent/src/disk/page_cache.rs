//! Images that are written through the host's page cache, and leave it to others.
//!
//! A copy that goes through the page cache is read back from there: that is as fast as memory, and no reading competes with
//! the writing for the medium. But a disk is larger than memory, and what is cached of it is of no use to anybody. So what
//! was read back is sent on to the medium, in steps, and let go of a step later. That also leaves little to the flush.

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
    telling: Option<JoinHandle<()>>,
}

impl PageCache {
    /// That of an image; any handle of it will do.
    #[must_use]
    pub fn of(image: File) -> Self {
        Self { image: Arc::new(image), now: ExtentSet::new(), before: ExtentSet::new(), telling: None }
    }

    /// Notes that nobody has a use any more for what is cached of a range.
    pub(super) fn done_with(&mut self, extent: Extent) {
        self.now.insert(extent);
        if self.now.total() < STEP || self.telling.as_ref().is_some_and(|telling| !telling.is_finished()) {
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
