//! One pass over one disk: the source half reads and sends, the target half writes and proves.
//!
//! ```text
//!   source::send_pass                                                      target::Writer
//!     ranges ─▶ read whole chunks ─▶ digest ─▶ Block ══ any transport ══▶ check ─▶ write ─▶ read back ─▶ digest
//!                (NBD, a window)                                           (NBD, a window)
//! ```
//!
//! # Why the two tables are right at the end
//!
//! The dirty bitmap is recording before pass 0 asks what is allocated, and each pass starts by taking the bitmap's content
//! and clearing it in one transaction. Every chunk that a pass touches is read whole, once, *after* that transaction, and
//! what is sent of it and its digest come from that one read. So for a guest's write to a chunk there are two cases:
//!
//! * it came before the chunk's last read: then the digest covers it. Its range was dirty when that pass, or an earlier
//!   one, started, or was written after the pass's start, and then the next case holds for the pass too;
//! * it came after (or during) the chunk's last read: then it set a bit after the pass's transaction, the chunk is in
//!   a later pass and is read again, so that was not its last read.
//!
//! For chunks that pass 0 does not read, since `base:allocation` says that they are zeroes, that answer counts as the read.
//!
//! In the last pass the guest is paused, and nothing comes after. So at the end each digest is of what the chunk holds.
//! A pass that fails half-way leaves its chunks unknown: there is no root until they were sent and digested again.
//!
//! At the target a chunk becomes unknown before a block touches it, and known again only by reading back what was written.
//! Writes, and reads back, that overlap never run at the same time: blocks take effect in the order they were accepted.

pub mod changes;
pub mod source;
pub mod target;

use bytes::Bytes;

use super::digest::{self, CHUNK_SIZE, Chunk};
use super::nbd::{NbdError, Piece};

/// The most bytes of data in one block.
pub const BLOCK_DATA_MAX: u64 = CHUNK_SIZE;
/// The unit in which zeroes are told from data, and to which everything sent is aligned: what all formats and bitmaps use,
/// and a multiple of every sector size.
pub const UNIT: u64 = 64 << 10;

/// What crosses from the source to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The disk, by its place in the plan.
    pub disk: u16,
    /// Its first byte.
    pub offset: u64,
    /// What is there.
    pub body: Body,
}

/// What a block says of its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// These bytes, at most [`BLOCK_DATA_MAX`].
    Data(Bytes),
    /// That many zeroes.
    Zero(u64),
}

impl Body {
    /// The length of the range in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zero(length) => *length,
        }
    }
}

/// Why a pass, or a part of it, failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// This host's export could not be read.
    #[error("disk {disk} could not be read at {offset}")]
    Read {
        /// The disk.
        disk: u16,
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: NbdError,
    },
    /// An image of this host could not be read back.
    #[error("disk {disk} could not be read back at {offset}")]
    ReadImage {
        /// The disk.
        disk: u16,
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// This host's export could not be written.
    #[error("disk {disk} could not be written ({length} bytes at {offset})")]
    Write {
        /// The disk.
        disk: u16,
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Why.
        #[source]
        source: NbdError,
    },
    /// This host's export could not be flushed.
    #[error("disk {disk} could not be flushed; what was written may not be on stable storage")]
    Flush {
        /// The disk.
        disk: u16,
        /// Why.
        #[source]
        source: NbdError,
    },
    /// The export is not as large as the plan says.
    #[error("disk {disk} is exported with {exported} bytes, and the plan says {planned}; export the planned image")]
    Size {
        /// The disk.
        disk: u16,
        /// The export's size.
        exported: u64,
        /// The plan's.
        planned: u64,
    },
    /// The peer sent a block of another disk.
    #[error("the peer sent a block of disk {got} where only disk {disk} is written; end the session")]
    WrongDisk {
        /// The disk of this writer.
        disk: u16,
        /// The disk of the block.
        got: u16,
    },
    /// The peer sent a block that the disk has no place for.
    #[error("the peer sent a block of {length} bytes at {offset} for disk {disk}, which has {size}; end the session")]
    Outside {
        /// The disk.
        disk: u16,
        /// The block's offset.
        offset: u64,
        /// Its length.
        length: u64,
        /// The disk's size.
        size: u64,
    },
    /// The peer sent more data in a block than is allowed.
    #[error(
        "the peer sent {length} bytes in a block of disk {disk}; at most {BLOCK_DATA_MAX} are allowed; end the session"
    )]
    TooLong {
        /// The disk.
        disk: u16,
        /// The length.
        length: u64,
    },
    /// An earlier block failed, so that this disk's copy is not whole.
    #[error("disk {disk} failed before; make a new writer and send again what is missing")]
    Broken {
        /// The disk.
        disk: u16,
    },
    /// The pass was cancelled, or nobody takes its blocks any more.
    #[error("the pass over disk {disk} was stopped")]
    Stopped {
        /// The disk.
        disk: u16,
    },
    /// A task of this agent ended without a result; the agent is stopping, or has a fault.
    #[error("a task of this agent that worked on disk {disk} ended without a result")]
    Task {
        /// The disk.
        disk: u16,
        /// Why.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// What a chunk that was read as these pieces holds.
fn digest_of(pieces: &[Piece]) -> Chunk {
    let zero = |piece: &Piece| match piece {
        Piece::Data(bytes) => digest::is_zero(bytes),
        Piece::Hole(_) => true,
    };
    if pieces.iter().all(zero) {
        return Chunk::Zero;
    }
    let mut hasher = blake3::Hasher::new();
    for piece in pieces {
        match piece {
            Piece::Data(bytes) => {
                hasher.update(bytes);
            }
            Piece::Hole(length) => {
                let length = usize::try_from(*length).unwrap_or(usize::MAX).min(digest::ZEROES.len());
                hasher.update(&digest::ZEROES[..length]);
            }
        }
    }
    Chunk::Known(*hasher.finalize().as_bytes())
}
