//! The records on a disk: their bytes, their places, and what may be found where.
//!
//! ```text
//!   block 0        never written: a place for whatever the image wants there
//!   block 1 …      one record each, 4 KiB; record n at 1 + (n-1) * step mod slots, step coprime with slots
//!
//!   record:  magic 8 · seed 8 · disk 8 · number 8 · body 4056 (follows from the three) · checksum 8
//! ```
//!
//! Numbers start at 1 and are written strictly one after another, the next only after the last was acknowledged. So a
//! disk that lost nothing holds, for an acknowledged `n`, exactly the last `slots` records up to `n`, and perhaps `n + 1`.
//! The place of a number needs no table, and a record that lies at the wrong place is told from a damaged one.

use std::io;

use crate::pattern::{Words, mix, scatter_step};
use crate::protocol::DiskVerification;

/// Bytes of a record, and of the disk's blocks.
pub const RECORD_BYTES: usize = 4096;
/// Records read from a disk at once.
const WINDOW_RECORDS: u64 = 256;
const MAGIC: u64 = u64::from_le_bytes(*b"STERNWIT");
const WORDS: usize = RECORD_BYTES / 8;

/// One block in memory, aligned as `O_DIRECT` demands.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; RECORD_BYTES]);

/// Which disk of which run: what a record's bytes and place follow from, together with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records {
    /// The run's seed.
    pub seed: u64,
    /// The disk's index, from 0.
    pub disk: u64,
    slots: u64,
    step: u64,
}

/// What one block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A whole record with this number, of this seed and disk.
    Record(u64),
    /// A whole record of another seed or disk.
    Foreign {
        /// Its seed.
        seed: u64,
        /// Its disk.
        disk: u64,
        /// Its number.
        number: u64,
    },
    /// Nothing but zeroes.
    Zeroes,
    /// Anything else: a torn or damaged record, or other data.
    Damaged,
}

impl Records {
    /// The records of a disk of `disk_bytes`. Returns `None` where it has no room for one.
    pub fn new(seed: u64, disk: u64, disk_bytes: u64) -> Option<Self> {
        let slots = (disk_bytes / RECORD_BYTES as u64).checked_sub(1).filter(|slots| *slots > 0)?;
        Some(Self { seed, disk, slots, step: scatter_step(slots) })
    }

    /// How many records the disk holds before the first is overwritten.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// The block of record `number` (from 1).
    pub fn block_of(&self, number: u64) -> u64 {
        let place = u128::from(number - 1) * u128::from(self.step) % u128::from(self.slots);
        1 + u64::try_from(place).expect("smaller than slots")
    }

    /// Writes record `number` into `block`.
    pub fn fill(&self, number: u64, block: &mut Block) {
        let header = [MAGIC, self.seed, self.disk, number];
        let body = Words::new(self.seed, self.disk, number);
        let mut checksum = 0;
        let (words, _) = block.0.as_chunks_mut::<8>();
        for (place, word) in words.iter_mut().zip(header.into_iter().chain(body).take(WORDS - 1)) {
            *place = word.to_le_bytes();
            checksum = mix(checksum ^ word);
        }
        words[WORDS - 1] = checksum.to_le_bytes();
    }

    /// Says what `block` holds.
    pub fn examine(&self, block: &[u8]) -> Found {
        let words = || block.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        if words().all(|word| word == 0) {
            return Found::Zeroes;
        }
        let mut header = words();
        let mut take = || header.next().unwrap_or_default();
        let (magic, seed, disk, number) = (take(), take(), take(), take());
        let checksum = words().take(WORDS - 1).fold(0, |sum, word| mix(sum ^ word));
        if magic != MAGIC || block.len() != RECORD_BYTES || words().next_back() != Some(checksum) {
            Found::Damaged
        } else if (seed, disk) == (self.seed, self.disk) {
            Found::Record(number)
        } else {
            Found::Foreign { seed, disk, number }
        }
    }

    /// Checks that every record up to `acknowledged` that was not overwritten since is there. `read(offset, buffer)`
    /// fills the buffer from the disk; its errors end the check.
    pub fn verify(
        &self,
        acknowledged: u64,
        mut read: impl FnMut(u64, &mut [Block]) -> io::Result<()>,
    ) -> io::Result<DiskVerification> {
        let oldest = acknowledged.saturating_sub(self.slots) + 1;
        let mut expected: Vec<(u64, u64)> = (oldest..=acknowledged).map(|n| (self.block_of(n), n)).collect();
        expected.sort_unstable();

        let mut result = DiskVerification { disk: self.disk, acknowledged, ..DiskVerification::default() };
        let mut window = vec![Block([0; RECORD_BYTES]); WINDOW_RECORDS as usize];
        let mut rest = expected.as_slice();
        while let Some(&(first, _)) = rest.first() {
            let (now, later) = rest.split_at(rest.partition_point(|(block, _)| *block < first + WINDOW_RECORDS));
            let length = now.last().map_or(0, |(last, _)| last - first + 1) as usize;
            read(first * RECORD_BYTES as u64, &mut window[..length])?;
            for &(block, number) in now {
                let found = self.examine(&window[(block - first) as usize].0);
                result.checked += 1;
                // The number after the last acknowledged may have reached the disk without its answer reaching us.
                let unanswered = found == Found::Record(acknowledged + 1) && self.block_of(acknowledged + 1) == block;
                if found != Found::Record(number) && !unanswered {
                    result.mismatches += 1;
                    result.first.get_or_insert_with(|| {
                        format!("record {number} (block {block}): expected it whole, found {found:?}")
                    });
                }
            }
            rest = later;
        }
        Ok(result)
    }

    /// The highest number of this seed and disk that lies whole at its own place, or 0: reads the whole disk.
    pub fn highest(&self, mut read: impl FnMut(u64, &mut [Block]) -> io::Result<()>) -> io::Result<u64> {
        let mut window = vec![Block([0; RECORD_BYTES]); WINDOW_RECORDS as usize];
        let mut highest = 0;
        for first in (1..=self.slots).step_by(WINDOW_RECORDS as usize) {
            let length = WINDOW_RECORDS.min(self.slots + 1 - first) as usize;
            read(first * RECORD_BYTES as u64, &mut window[..length])?;
            for (block, content) in (first..).zip(&window[..length]) {
                match self.examine(&content.0) {
                    Found::Record(number) if number > 0 && self.block_of(number) == block => {
                        highest = highest.max(number);
                    }
                    _ => {}
                }
            }
        }
        Ok(highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk(Vec<Block>);

    impl Disk {
        fn written(records: &Records, last: u64) -> Self {
            let mut disk = Self(vec![Block([0; RECORD_BYTES]); records.slots() as usize + 1]);
            for number in 1..=last {
                records.fill(number, &mut disk.0[records.block_of(number) as usize]);
            }
            disk
        }

        fn read(&self) -> impl FnMut(u64, &mut [Block]) -> io::Result<()> {
            |offset, blocks| {
                let first = offset as usize / RECORD_BYTES;
                blocks.clone_from_slice(&self.0[first..first + blocks.len()]);
                Ok(())
            }
        }
    }

    fn records() -> Records {
        Records::new(5, 1, 1000 * RECORD_BYTES as u64).expect("room for records")
    }

    #[test]
    fn a_whole_disk_verifies_before_and_after_going_round() {
        for last in [0, 1, 998, 999, 1000, 5432] {
            let disk = Disk::written(&records(), last);
            let result = records().verify(last, disk.read()).expect("reads");
            assert_eq!((result.checked, result.mismatches), (last.min(999), 0), "after {last}: {:?}", result.first);
            assert_eq!(records().highest(disk.read()).expect("reads"), last);
        }
    }

    #[test]
    fn every_kind_of_loss_is_found() {
        let records = records();
        let last = 2500;
        let place = records.block_of(2400) as usize;
        let other = Records::new(6, 1, 1000 * RECORD_BYTES as u64).expect("room");
        let mut stale = Block([0; RECORD_BYTES]);
        records.fill(2400 - records.slots(), &mut stale);
        let mut foreign = Block([0; RECORD_BYTES]);
        other.fill(2400, &mut foreign);
        let mut flipped = Disk::written(&records, last).0.swap_remove(place);
        flipped.0[2000] ^= 4;
        for (wrong, said) in [
            (stale, "found Record(1401)"),
            (foreign, "found Foreign { seed: 6, disk: 1, number: 2400 }"),
            (Block([0; RECORD_BYTES]), "found Zeroes"),
            (flipped, "found Damaged"),
        ] {
            let mut disk = Disk::written(&records, last);
            disk.0[place] = wrong;
            let result = records.verify(last, disk.read()).expect("reads");
            assert_eq!(result.mismatches, 1);
            let first = result.first.expect("a mismatch is described");
            assert!(first.contains("record 2400 ") && first.ends_with(said), "{first}");
        }
    }

    #[test]
    fn the_last_unanswered_record_is_no_loss_but_a_later_one_is() {
        let disk = Disk::written(&records(), 2001);
        assert_eq!(records().verify(2000, disk.read()).expect("reads").mismatches, 0);
        assert_eq!(records().verify(1999, disk.read()).expect("reads").mismatches, 1);
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        assert_eq!(Records::new(1, 0, 4096), None);
        assert!(Records::new(1, 0, 8192).is_some());
    }
}
