//! What an earlier move of the VM has left at the target is not sent again, where it equals what is here now.

use std::time::Duration;

use sterna_shared::job::EventBody;
use sterna_shared::peer::message::Message;
use sterna_shared::units::ByteCount;

use super::Source;
use crate::disk::digest::{Chunk, DigestTable, unpack};
use crate::migration::context::MoveError;
use crate::migration::conversation::Conversation;

/// How long the target may take to read back one page of chunks.
const HELD_WAIT: Duration = Duration::from_secs(300);

impl Source {
    /// Asks the target what the chunks of each disk hold of which an earlier move has left something. Whatever it answers
    /// can only spare what the proof would find equal.
    pub(super) async fn ask_what_is_held(&mut self) -> Result<(), MoveError> {
        let (Some(disks), Some(conversation)) = (&mut self.disks, &mut self.conversation) else {
            return Err(MoveError::NotConnected);
        };
        for (disk, moved) in (0_u16..).zip(&self.context.plan.disks) {
            if self.held.get(usize::from(disk)).is_none_or(|held| *held == 0) {
                continue;
            }
            let table = held_table(conversation, disk, moved.source.size.0).await?;
            disks.at_target(disk, table);
        }
        Ok(())
    }

    /// Tells what that has spared.
    pub(super) async fn tell_what_was_held(&self) {
        let resumed = self.disks.as_ref().map_or(0, |disks| disks.volume().borrow().resumed);
        if self.held.iter().all(|held| *held == 0) {
            return;
        }
        let (target, bytes) = (&self.plan().target.id, ByteCount(resumed));
        let text = match self.plan().cutover {
            Some(_) => {
                format!("the images at {target} were made of its replica: {bytes} in them were right and were not sent")
            }
            None => {
                format!(
                    "an earlier move had left images at {target}: {bytes} in them were right and were not sent again"
                )
            }
        };
        self.context.tell(EventBody::Notice { text }).await;
    }
}

/// What the target says that it holds of a disk.
///
/// # Errors
/// It does not say.
pub async fn held_table(conversation: &mut Conversation, disk: u16, size: u64) -> Result<DigestTable, MoveError> {
    let mut table = DigestTable::new(size);
    let mut first = 0;
    while first < table.count() {
        let question = Message::Held { disk, first: first as u64 };
        let pick = |answer: &Message| page(answer, disk, first, table.count());
        let chunks = conversation.ask(&question, "held digests", HELD_WAIT, pick).await?;
        for chunk in chunks {
            table.set(first, chunk);
            first += 1;
        }
    }
    Ok(table)
}

/// The chunks of an answer, if it is one to what was asked: at least one, and none beyond the disk.
fn page(answer: &Message, disk: u16, first: usize, count: usize) -> Option<Vec<Chunk>> {
    match answer {
        Message::HeldDigests { disk: told, first: from, chunks } if *told == disk && *from == first as u64 => {
            unpack(chunks).filter(|chunks| !chunks.is_empty() && chunks.len() <= count - first)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::digest::pack;

    #[test]
    fn only_an_answer_to_the_question_is_taken() {
        let chunks = vec![Chunk::Zero, Chunk::Known([7; 32])];
        let answer = |disk, first, chunks: &[Chunk]| Message::HeldDigests { disk, first, chunks: pack(chunks) };
        assert_eq!(page(&answer(1, 5, &chunks), 1, 5, 7), Some(chunks.clone()));
        assert_eq!(page(&answer(0, 5, &chunks), 1, 5, 7), None, "another disk");
        assert_eq!(page(&answer(1, 4, &chunks), 1, 5, 7), None, "another place");
        assert_eq!(page(&answer(1, 5, &chunks), 1, 5, 6), None, "beyond the disk");
        assert_eq!(page(&answer(1, 5, &[]), 1, 5, 7), None, "nothing would be asked for for ever");
        assert_eq!(page(&Message::Aborted, 1, 5, 7), None);
    }
}
