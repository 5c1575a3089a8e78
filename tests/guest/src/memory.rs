//! The thread that owns the pattern in memory: rewrites it at a rate, proves it on demand.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::hub::{Event, Hub};
use crate::pattern::{PAGE_BYTES, Page, diagnose, scatter_step};
use crate::protocol::MemoryVerification;

/// Requests that may wait.
const REQUESTS_MAX: usize = 16;
/// Pages are rewritten in batches this far apart.
const BATCH: Duration = Duration::from_millis(10);
/// Batches that are made up for after the processor was away; what is older is let go.
const LATE_MAX: u32 = 10;
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES as u64;

/// What the owner of memory can be asked for. Each is answered on the channel it brings.
#[derive(Debug)]
pub(crate) enum Request {
    /// Recompute every page and compare.
    Verify(SyncSender<MemoryVerification>),
    /// Rewrite so many MiB per second.
    Rate(u64, SyncSender<()>),
    /// Stop or go on rewriting.
    Pause(bool, SyncSender<()>),
    /// Damage one word of a page. Answers whether there is such a page.
    Poke(u64, SyncSender<bool>),
}

/// Fills the memory and starts its owner.
pub(crate) fn spawn(config: &Config, hub: Hub) -> io::Result<SyncSender<Request>> {
    let (sender, requests) = sync_channel(REQUESTS_MAX);
    let mut memory = Memory::filled(config.seed, config.memory_mib * PAGES_PER_MIB);
    let rate = config.rewrite_mib;
    std::thread::Builder::new().name("memory".into()).spawn(move || memory.run(rate, &requests, &hub))?;
    Ok(sender)
}

struct Memory {
    seed: u64,
    pages: Vec<Page>,
    /// Apart from the pages, so that a page that went missing cannot take its own version along.
    versions: Vec<u32>,
    step: u64,
    rewritten: u64,
}

impl Memory {
    fn filled(seed: u64, pages: u64) -> Self {
        let mut filled = vec![Page::ZERO; pages as usize];
        for (page, index) in filled.iter_mut().zip(0..) {
            page.fill(seed, index, 0);
        }
        Self { seed, versions: vec![0; filled.len()], pages: filled, step: scatter_step(pages.max(1)), rewritten: 0 }
    }

    fn run(&mut self, mut rate: u64, requests: &Receiver<Request>, hub: &Hub) {
        let mut paused = false;
        let mut owed = Duration::ZERO;
        let mut last = Instant::now();
        loop {
            let idle = paused || rate == 0 || self.pages.is_empty();
            let request = if idle {
                requests.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                requests.recv_timeout(BATCH.saturating_sub(last.elapsed()))
            };
            match request {
                Ok(Request::Verify(answer)) => {
                    let _ = answer.send(self.verify());
                }
                Ok(Request::Rate(mib, answer)) => {
                    rate = mib;
                    let _ = answer.send(());
                }
                Ok(Request::Pause(pause, answer)) => {
                    paused = pause;
                    let _ = answer.send(());
                }
                Ok(Request::Poke(page, answer)) => {
                    let _ = answer.send(self.poke(page));
                }
                Err(RecvTimeoutError::Timeout) => {
                    // What is left of a page is owed to the next batch, or low rates would round to nothing.
                    owed += last.elapsed().min(BATCH * LATE_MAX);
                    last = Instant::now();
                    let per_second = rate * PAGES_PER_MIB;
                    let due = owed.as_nanos() * u128::from(per_second) / 1_000_000_000;
                    owed -= Duration::from_nanos((due * 1_000_000_000 / u128::from(per_second)) as u64);
                    (0..due).for_each(|_| self.rewrite_next());
                    hub.tell(Event::Memory { rewritten: self.rewritten, pages: self.pages.len() as u64 });
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if idle {
                last = Instant::now();
            }
        }
    }

    fn rewrite_next(&mut self) {
        let count = self.pages.len() as u64;
        let index = (u128::from(self.rewritten) * u128::from(self.step) % u128::from(count)) as usize;
        self.versions[index] = self.versions[index].wrapping_add(1);
        self.pages[index].fill(self.seed, index as u64, self.versions[index]);
        self.rewritten += 1;
    }

    fn verify(&self) -> MemoryVerification {
        let mut result = MemoryVerification::default();
        for ((page, version), index) in self.pages.iter().zip(&self.versions).zip(0..) {
            result.checked += 1;
            if let Some(word) = page.first_difference(self.seed, index, *version) {
                result.mismatches += 1;
                result.first.get_or_insert_with(|| {
                    let holds = diagnose(page, self.seed, index, *version);
                    format!("page {index}: expected version {version}, differs at byte {}, holds {holds}", word * 8)
                });
            }
        }
        result
    }

    fn poke(&mut self, page: u64) -> bool {
        let page = usize::try_from(page).ok().and_then(|page| self.pages.get_mut(page));
        page.map(|page| page.0[1] ^= 1).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_verifies_while_it_is_rewritten_and_a_wrong_page_is_found() {
        let mut memory = Memory::filled(3, 100);
        for rewritten in 0..250 {
            assert_eq!(memory.verify().mismatches, 0, "after {rewritten}");
            memory.rewrite_next();
        }
        assert!(memory.versions.iter().all(|version| [2, 3].contains(version)), "pages take turns");
        assert!(memory.poke(17));
        assert!(!memory.poke(100));
        let result = memory.verify();
        assert_eq!((result.checked, result.mismatches), (100, 1));
        assert!(result.first.expect("described").starts_with("page 17: "));
    }

    #[test]
    fn a_page_left_behind_is_called_stale() {
        let mut memory = Memory::filled(3, 10);
        let old = memory.pages[4].clone();
        (0..30).for_each(|_| memory.rewrite_next());
        memory.pages[4] = old;
        let first = memory.verify().first.expect("found");
        assert!(first.ends_with("holds version 0, an older state of the page"), "{first}");
    }
}
