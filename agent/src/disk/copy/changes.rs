//! A pass over changes alone: nothing is read but what is sent, and the two ends compare digests of just that.
//!
//! ```text
//!   source   changes ─▶ parts of 1 MiB at most ─▶ read ─▶ Block …                      ┌─▶ one digest
//!   target   received ─▶ the same parts ─▶ read back, once all is on stable storage ───┘
//! ```
//!
//! The digest is BLAKE3 of each part's place, length and content, in order. What the rest of the disk holds at the target was
//! proven when it came there.

use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::super::digest::{CHUNK_SIZE, Chunk, Digest};
use super::super::extent::{Extent, ExtentSet};
use super::super::nbd::Client;
use super::source::{Done, PassStatistics, READ_WINDOW, Sender, Work, perform};
use super::{Block, CopyError};

/// Sends what a disk holds in `changes`, and says what that was.
///
/// # Errors
/// Reading fails, or nobody takes the blocks any more.
pub async fn send_changes(
    client: &Client,
    disk: u16,
    changes: &ExtentSet,
    blocks: &mpsc::Sender<Block>,
) -> Result<(PassStatistics, Digest), CopyError> {
    let mut sender = Sender::new(disk, blocks);
    let mut digest = blake3::Hasher::new();
    let mut parts = Box::pin(parts(client, disk, changes));
    while let Some(part) = parts.next().await {
        let (extent, chunk, bodies) = part?;
        note(&mut digest, extent, chunk);
        sender.read(extent.length());
        for (offset, body) in bodies {
            sender.send(offset, body).await?;
        }
    }
    Ok((sender.finish().await?, *digest.finalize().as_bytes()))
}

/// What a disk holds in `changes`.
///
/// # Errors
/// Reading fails.
pub async fn digest_changes(client: &Client, disk: u16, changes: &ExtentSet) -> Result<Digest, CopyError> {
    let mut digest = blake3::Hasher::new();
    let mut parts = Box::pin(parts(client, disk, changes));
    while let Some(part) = parts.next().await {
        let (extent, chunk, _) = part?;
        note(&mut digest, extent, chunk);
    }
    Ok(*digest.finalize().as_bytes())
}

type Part = (Extent, Chunk, Vec<(u64, super::Body)>);

fn parts<'a>(
    client: &'a Client,
    disk: u16,
    changes: &'a ExtentSet,
) -> impl stream::Stream<Item = Result<Part, CopyError>> + 'a {
    let extents = changes.iter().flat_map(|extent| extent.split(CHUNK_SIZE));
    let read = move |extent: Extent| async move {
        match perform(client, disk, Work::Chunk { extent, send: vec![extent] }).await? {
            Done::Chunk { extent, chunk, parts } => Ok((extent, chunk, parts)),
            Done::Zero(extent) => Ok((extent, Chunk::Zero, Vec::new())),
        }
    };
    stream::iter(extents.map(read)).buffered(READ_WINDOW)
}

fn note(digest: &mut blake3::Hasher, extent: Extent, chunk: Chunk) {
    digest.update(&extent.offset().to_le_bytes()).update(&extent.length().to_le_bytes());
    match chunk {
        Chunk::Known(content) => digest.update(&[2]).update(&content),
        Chunk::Zero | Chunk::Unknown => digest.update(&[1]),
    };
}
