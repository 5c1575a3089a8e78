//! Memory for bulk content, used again and again.
//!
//! ```text
//!   Pool::take ─▶ Buffer ─▶ filled by a read ─▶ freeze ─▶ Bytes, cloned and cut by whoever has them
//!     ▲                                                     │ the last of them is dropped, anywhere
//!     └──────────────── channel, bounded ◀──────────────────┘
//! ```
//!
//! An allocator gives large pieces back to the kernel, and takes them anew a moment later: each page of them then costs
//! a fault and is cleared, which was a sixth of the processor time of a move. A pool belongs to one reader (a lane, a
//! connection of the NBD client, a migration channel) and goes with it, so that an idle agent keeps nothing.

use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use sterna_shared::peer::frame::PAYLOAD_LENGTH_MAX;

/// The lengths of buffers, least first, and how many of each a pool keeps while nobody uses them. The last holds the
/// longest frame and the longest chunk of a disk.
const CLASSES: [(usize, usize); 2] = [(256 << 10, 16), (PAYLOAD_LENGTH_MAX, 16)];
/// What is shorter is allocated, as is what is longer than the last class: keeping it would gain nothing, or too much.
const LENGTH_MIN: usize = 64 << 10;

/// What a socket to a QEMU should hold of what is written to it. The system allows less, unless it was told otherwise
/// (`net.core.wmem_max`), and twice its default even then.
const SOCKET_LENGTH: usize = 2 << 20;

/// Lets a socket to a QEMU hold more: each time that it is full costs a change of process, twice.
pub(crate) fn widen(socket: impl AsFd) {
    // In vain where the system does not allow it: then it is slower, and no less right.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, SOCKET_LENGTH);
}

/// Buffers that nobody uses at the moment. It has one owner; its buffers go anywhere.
#[derive(Debug)]
pub(crate) struct Pool {
    shelves: [Shelf; CLASSES.len()],
}

/// The free buffers of one length, and their way back.
#[derive(Debug)]
struct Shelf {
    home: SyncSender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
}

/// Some memory to read into, of at least the length it was taken for. Its content is left over from earlier.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// Where it goes when it is dropped.
    home: Option<SyncSender<Vec<u8>>>,
}

impl Default for Pool {
    fn default() -> Self {
        let shelf = |(_, kept)| {
            let (home, free) = sync_channel(kept);
            Shelf { home, free }
        };
        Self { shelves: CLASSES.map(shelf) }
    }
}

impl Pool {
    /// A buffer of at least `length` bytes, which was checked by the caller.
    pub(crate) fn take(&self, length: usize) -> Buffer {
        let class = CLASSES.iter().position(|(most, _)| length <= *most).filter(|_| length >= LENGTH_MIN);
        let Some(class) = class else { return Buffer { bytes: vec![0; length], home: None } };
        let Shelf { home, free } = &self.shelves[class];
        let bytes = free.try_recv().unwrap_or_else(|_| vec![0; CLASSES[class].0]);
        Buffer { bytes, home: Some(home.clone()) }
    }
}

impl Buffer {
    /// Its first `length` bytes, to be handed on. The memory comes back once all of them are dropped.
    pub(crate) fn freeze(mut self, length: usize) -> Bytes {
        if self.home.is_none() {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.truncate(length);
            return bytes.into();
        }
        let length = length.min(self.bytes.len());
        Bytes::from_owner(self).slice(..length)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // Where the shelf is full, or its pool is gone, so is the memory.
            let _ = home.try_send(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_once_the_last_who_has_it_lets_go() {
        let pool = Pool::default();
        let mut buffer = pool.take(100_000);
        buffer[..3].copy_from_slice(b"abc");
        let place = buffer.as_ptr();
        let bytes = buffer.freeze(3);
        let part = bytes.slice(1..2);
        drop(bytes);
        assert_eq!(part.as_ref(), b"b");
        assert_ne!(pool.take(100_000).as_ptr(), place, "somebody still has it");
        drop(part);
        let again = [pool.take(100_000), pool.take(100_000)];
        assert!(again.iter().any(|buffer| buffer.as_ptr() == place));
    }

    #[test]
    fn every_length_is_served_and_none_of_a_size_that_should_not_be_kept() {
        let pool = Pool::default();
        for length in [0, 1, LENGTH_MIN - 1, LENGTH_MIN, 256 << 10, (256 << 10) + 1, PAYLOAD_LENGTH_MAX, 8 << 20] {
            let buffer = pool.take(length);
            assert!(buffer.len() >= length);
            assert_eq!(buffer.home.is_some(), (LENGTH_MIN..=PAYLOAD_LENGTH_MAX).contains(&length), "{length}");
            assert_eq!(buffer.freeze(length).len(), length);
        }
    }

    #[test]
    fn no_more_is_kept_than_the_limit_and_nothing_outlives_the_pool() {
        let pool = Pool::default();
        let buffers: Vec<Buffer> = (0..40).map(|_| pool.take(1 << 20)).collect();
        drop(buffers);
        assert_eq!(pool.shelves[1].free.try_iter().count(), CLASSES[1].1);
        let late = pool.take(1 << 20);
        drop(pool);
        drop(late);
    }
}
