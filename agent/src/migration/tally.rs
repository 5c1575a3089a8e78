//! What the steps of a move have told of it so far, so that no byte is told by two of them.
//!
//! Disks and memory count from the start of a job, and a step tells what came since the one before: passes over the disks
//! that are made while memory is copied are part of that step.

use sterna_shared::job::{StepFigures, Volume};

/// What was told.
#[derive(Debug, Default)]
pub struct Tally {
    volume: Volume,
    passes: u32,
    memory_bytes: u64,
}

impl Tally {
    /// What is to be told of the disks, which have come to `volume` in so many `passes` in all.
    pub fn disks(&mut self, volume: Volume, passes: u32) -> StepFigures {
        let before = std::mem::replace(&mut self.volume, volume);
        let passes_before = std::mem::replace(&mut self.passes, passes);
        let content = |volume: Volume| volume.done.saturating_add(volume.redone);
        StepFigures {
            bytes_total: content(volume).saturating_sub(content(before)),
            bytes_sent: volume.sent.saturating_sub(before.sent),
            bytes_resumed: volume.resumed.saturating_sub(before.resumed),
            passes: passes.saturating_sub(passes_before),
            ..StepFigures::default()
        }
    }

    /// How many bytes are to be told of memory, of which so many were `sent` in all.
    pub fn memory(&mut self, sent: u64) -> u64 {
        sent.saturating_sub(std::mem::replace(&mut self.memory_bytes, sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_and_pass_is_told_once() {
        let mut tally = Tally::default();
        let first = Volume { total: 100, done: 100, dirtied: 20, redone: 20, sent: 60, resumed: 30 };
        let told = tally.disks(first, 2);
        assert_eq!((told.bytes_total, told.bytes_sent, told.bytes_resumed, told.passes), (120, 60, 30, 2));
        let told = tally.disks(Volume { dirtied: 50, redone: 50, sent: 85, ..first }, 4);
        assert_eq!((told.bytes_total, told.bytes_sent, told.bytes_resumed, told.passes), (30, 25, 0, 2));
        assert_eq!((tally.memory(7), tally.memory(9), tally.memory(9)), (7, 2, 0));
    }
}
