//! The source half: reads what a pass covers, sends it as blocks, and keeps the digests.
//!
//! A chunk is read whole even when only a part of it is sent, since its digest is of all of it; the rest comes from the
//! local export and crosses no network. [`READ_WINDOW`] chunks are read and digested at a time, digests on threads of
//! their own, and results are taken in order.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use super::super::digest::{self, CHUNK_SIZE, Chunk, DigestTable};
use super::super::extent::{Extent, ExtentSet};
use super::super::nbd::{BASE_ALLOCATION, Client, NbdError, Piece, dirty_bitmap};
use super::{Block, Body, CopyError, UNIT, digest_of};

/// The chunks read and digested at a time, so also the digests computed in parallel.
pub const READ_WINDOW: usize = 8;

/// A range to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The range.
    pub extent: Extent,
    /// What is known of it.
    pub content: Content,
}

/// What is known of a range before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// It reads as zeroes.
    Zero,
    /// Nothing.
    Unread,
}

/// What is known to be at the target already: chunks that are equal are not sent.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// What the target read back in this job.
    pub table: &'a DigestTable,
    /// Told of the bytes of each range that is not sent.
    pub skipped: &'a (dyn Fn(u64) + Send + Sync),
}

impl Known<'_> {
    /// Whether the target holds that content of a chunk.
    fn has(&self, index: usize, chunk: Chunk) -> bool {
        chunk != Chunk::Unknown && self.table.chunk(index) == chunk
    }
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassStatistics {
    /// Bytes read from the export, those included that were read for a digest only.
    pub read_bytes: u64,
    /// Bytes sent as data.
    pub data_bytes: u64,
    /// Bytes sent as lengths.
    pub zero_bytes: u64,
    /// Blocks sent.
    pub blocks: u64,
}

/// What pass 0 sends: the whole disk, with what `base:allocation` says reads as zeroes. A client with that context.
///
/// # Errors
/// As [`Client::extents`].
pub async fn whole_disk(client: &Client) -> Result<Vec<Span>, NbdError> {
    let size = client.size();
    let mut spans = Vec::new();
    let mut next = 0;
    let statuses = client.extents(BASE_ALLOCATION).await?;
    for status in statuses.iter().filter(|status| status.reads_as_zero()) {
        // Zeroes shrink to whole units, and what is between them is read.
        let Some(zero) = whole_units(status.extent, UNIT, size) else { continue };
        spans.extend(Extent::between(next, zero.offset()).map(|extent| Span { extent, content: Content::Unread }));
        spans.push(Span { extent: zero, content: Content::Zero });
        next = zero.end();
    }
    spans.extend(Extent::between(next, size).map(|extent| Span { extent, content: Content::Unread }));
    Ok(spans)
}

/// What a later pass sends: the ranges of the pass's dirty bitmap. A client with the context of that bitmap.
///
/// # Errors
/// As [`Client::extents`].
pub async fn dirty(client: &Client, bitmap: &str) -> Result<Vec<Span>, NbdError> {
    let statuses = client.extents(&dirty_bitmap(bitmap)).await?;
    let dirty = statuses.iter().filter(|status| status.is_dirty());
    let span = |extent: Extent| Span { extent: extent.aligned(UNIT, client.size()), content: Content::Unread };
    Ok(dirty.map(|status| span(status.extent)).collect())
}

/// Sends `spans` of a disk, in the order given, and updates `table` (see the module [`super`] for why it is right). Whole
/// chunks that are `known` to be at the target are read and digested, and not sent.
///
/// Ends at once when `cancelled` ends or the channel closes. Unless the result is `Ok`, an unknown part was sent, and the
/// chunks not reached are unknown in the table.
///
/// # Errors
/// When reading fails, or the pass is stopped.
pub async fn send_pass(
    client: &Client,
    disk: u16,
    spans: Vec<Span>,
    table: &mut DigestTable,
    known: Option<Known<'_>>,
    blocks: &mpsc::Sender<Block>,
    cancelled: impl Future<Output = ()>,
) -> Result<PassStatistics, CopyError> {
    if client.size() != table.size() {
        return Err(CopyError::Size { disk, exported: client.size(), planned: table.size() });
    }
    spans.iter().for_each(|span| table.mark_stale(span.extent));
    let sender = Sender::new(disk, blocks);
    tokio::select! {
        biased;
        () = cancelled => Err(CopyError::Stopped { disk }),
        () = blocks.closed() => Err(CopyError::Stopped { disk }),
        result = run(client, disk, spans, table, known, sender) => result,
    }
}

async fn run(
    client: &Client,
    disk: u16,
    spans: Vec<Span>,
    table: &mut DigestTable,
    known: Option<Known<'_>>,
    mut sender: Sender<'_>,
) -> Result<PassStatistics, CopyError> {
    let work = plan(spans, client.size());
    let mut results = stream::iter(work.map(|work| perform(client, disk, work))).buffered(READ_WINDOW);
    while let Some(result) = results.next().await {
        match result? {
            Done::Zero(extent) => {
                table.touched(extent).for_each(|index| table.set(index, Chunk::Zero));
                for missing in zeroes_missing(extent, table, known) {
                    sender.send(missing.offset(), Body::Zero(missing.length())).await?;
                }
            }
            Done::Chunk { extent, chunk, parts } => {
                table.touched(extent).for_each(|index| table.set(index, chunk));
                sender.read(extent.length());
                // As the table has it: a digest of zeroes is no digest there.
                let mut touched = table.touched(extent).map(|index| (index, table.chunk(index)));
                if let Some(known) = known
                    && touched.all(|(index, chunk)| known.has(index, chunk))
                {
                    (known.skipped)(parts.iter().map(|(_, body)| body.length()).sum());
                    continue;
                }
                for (offset, body) in parts {
                    sender.send(offset, body).await?;
                }
            }
        }
    }
    sender.finish().await
}

/// The chunks of a range of zeroes that the target is not known to have as zeroes, neighbours as one.
fn zeroes_missing(extent: Extent, table: &DigestTable, known: Option<Known<'_>>) -> Vec<Extent> {
    let Some(known) = known else { return vec![extent] };
    let mut missing = ExtentSet::new();
    for index in table.touched(extent) {
        let Some(chunk) = table.extent(index).and_then(|chunk| chunk.clip(extent)) else { continue };
        match known.has(index, Chunk::Zero) {
            true => (known.skipped)(chunk.length()),
            false => missing.insert(chunk),
        }
    }
    missing.iter().collect()
}

/// A piece of a pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Whole chunks known to be zeroes.
    Zero(Extent),
    /// A chunk to read, and the ranges of it to send.
    Chunk { extent: Extent, send: Vec<Extent> },
}

/// Turns spans into work: whole chunks of zeroes need no reading; the rest is cut into chunks, and neighbouring parts of one
/// chunk are read once. Lazy, since a disk has millions of chunks.
fn plan(spans: Vec<Span>, size: u64) -> impl Iterator<Item = Work> {
    let mut parts = spans.into_iter().flat_map(move |span| cut(span, size)).peekable();
    std::iter::from_fn(move || match parts.next()? {
        Span { extent, content: Content::Zero } => Some(Work::Zero(extent)),
        Span { extent, content: Content::Unread } => {
            let chunk = extent.aligned(CHUNK_SIZE, size);
            let mut send = vec![extent];
            let in_chunk = |part: &Span| part.content == Content::Unread && part.extent.overlaps(chunk);
            while let Some(part) = parts.next_if(in_chunk) {
                send.push(part.extent);
            }
            Some(Work::Chunk { extent: chunk, send })
        }
    })
}

/// Cuts a span into whole chunks of zeroes, as one, and parts of single chunks to read.
fn cut(span: Span, size: u64) -> impl Iterator<Item = Span> {
    let disk = Extent::between(0, size);
    let extent = disk.and_then(|disk| span.extent.clip(disk));
    let zero = match span.content {
        Content::Zero => extent.and_then(|extent| whole_units(extent, CHUNK_SIZE, size)),
        Content::Unread => None,
    };
    let (before, after) = match (extent, zero) {
        (Some(all), Some(zero)) => {
            (Extent::between(all.offset(), zero.offset()), Extent::between(zero.end(), all.end()))
        }
        (all, _) => (all, None),
    };
    let parts = |part: Option<Extent>| {
        let cuts = part.into_iter().flat_map(|part| part.split(CHUNK_SIZE));
        cuts.map(|extent| Span { extent, content: Content::Unread })
    };
    let zero = zero.map(|extent| Span { extent, content: Content::Zero });
    parts(before).chain(zero).chain(parts(after))
}

/// The part of `extent` that is whole multiples of `unit`; the disk's end counts as one.
fn whole_units(extent: Extent, unit: u64, size: u64) -> Option<Extent> {
    let start = extent.offset().checked_next_multiple_of(unit)?;
    let end = if extent.end() == size { size } else { extent.end() - extent.end() % unit };
    Extent::between(start, end)
}

pub(super) enum Done {
    Zero(Extent),
    Chunk { extent: Extent, chunk: Chunk, parts: Vec<(u64, Body)> },
}

pub(super) async fn perform(client: &Client, disk: u16, work: Work) -> Result<Done, CopyError> {
    let (extent, send) = match work {
        Work::Zero(extent) => return Ok(Done::Zero(extent)),
        Work::Chunk { extent, send } => (extent, send),
    };
    let length = u32::try_from(extent.length()).unwrap_or(u32::MAX);
    let pieces = client.read(extent.offset(), length).await.map_err(|source| CopyError::Read {
        disk,
        offset: extent.offset(),
        source,
    })?;
    let analyse = move || {
        let chunk = digest_of(&pieces);
        let parts = if chunk == Chunk::Zero {
            send.iter().map(|part| (part.offset(), Body::Zero(part.length()))).collect()
        } else {
            bodies(extent, in_units(pieces), &send)
        };
        Done::Chunk { extent, chunk, parts }
    };
    tokio::task::spawn_blocking(analyse).await.map_err(|source| CopyError::Task { disk, source })
}

/// Pieces whose borders are on units: as they are, where that is so, and else copied into one.
fn in_units(pieces: Vec<Piece>) -> Vec<Piece> {
    let (last, others) = pieces.split_last().map_or((None, &[][..]), |(last, others)| (Some(last), others));
    if others.iter().all(|piece| piece.length().is_multiple_of(UNIT)) {
        return pieces;
    }
    let length: u64 = others.iter().chain(last).map(Piece::length).sum();
    let mut flat = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
    for piece in &pieces {
        match piece {
            Piece::Data(bytes) => flat.extend_from_slice(bytes),
            Piece::Hole(zeroes) => flat.resize(flat.len() + usize::try_from(*zeroes).unwrap_or(0), 0),
        }
    }
    vec![Piece::Data(flat.freeze())]
}

/// What to send of a chunk: for each range to send, runs of data and of zeroes, told apart unit by unit.
fn bodies(extent: Extent, pieces: Vec<Piece>, send: &[Extent]) -> Vec<(u64, Body)> {
    let mut bodies = Vec::new();
    for range in send {
        let mut start = extent.offset();
        for piece in &pieces {
            let here = Extent::new(start, piece.length());
            start += piece.length();
            let Some(part) = here.and_then(|here| here.clip(*range)) else { continue };
            match piece {
                Piece::Hole(_) => bodies.push((part.offset(), Body::Zero(part.length()))),
                Piece::Data(bytes) => {
                    let base = start - piece.length();
                    runs(part.offset(), &slice(bytes, part.offset() - base, part.length()), &mut bodies);
                }
            }
        }
    }
    bodies
}

/// Splits data into runs of zero and of other units.
fn runs(offset: u64, bytes: &Bytes, bodies: &mut Vec<(u64, Body)>) {
    let length = bytes.len() as u64;
    let Some(all) = Extent::new(0, length) else { return };
    let mut from = 0;
    let mut kind = None;
    let mut close = |from: u64, to: u64, zero: bool| {
        let body = if zero { Body::Zero(to - from) } else { Body::Data(slice(bytes, from, to - from)) };
        bodies.push((offset + from, body));
    };
    for unit in all.split(UNIT) {
        let zero = digest::is_zero(&slice(bytes, unit.offset(), unit.length()));
        if let Some(last) = kind.filter(|last| *last != zero) {
            close(from, unit.offset(), last);
            from = unit.offset();
        }
        kind = Some(zero);
    }
    close(from, length, kind.unwrap_or(false));
}

/// A part of some bytes, by numbers that were clipped to them.
fn slice(bytes: &Bytes, offset: u64, length: u64) -> Bytes {
    let index = |value: u64| usize::try_from(value).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(offset)..index(offset + length))
}

/// Sends blocks, neighbouring zeroes as one.
pub(super) struct Sender<'a> {
    disk: u16,
    blocks: &'a mpsc::Sender<Block>,
    zero: Option<Extent>,
    statistics: PassStatistics,
}

impl<'a> Sender<'a> {
    pub(super) fn new(disk: u16, blocks: &'a mpsc::Sender<Block>) -> Self {
        Self { disk, blocks, zero: None, statistics: PassStatistics::default() }
    }

    /// Notes that so much was read.
    pub(super) fn read(&mut self, bytes: u64) {
        self.statistics.read_bytes += bytes;
    }

    /// Sends what is held back, and says what was done.
    pub(super) async fn finish(mut self) -> Result<PassStatistics, CopyError> {
        self.send_zero().await?;
        Ok(self.statistics)
    }

    pub(super) async fn send(&mut self, offset: u64, body: Body) -> Result<(), CopyError> {
        if let Body::Zero(length) = body {
            let joined = self.zero.filter(|zero| zero.end() == offset);
            if joined.is_none() {
                self.send_zero().await?;
            }
            let start = joined.map_or(offset, Extent::offset);
            self.zero = Extent::between(start, offset.saturating_add(length));
            return Ok(());
        }
        self.send_zero().await?;
        self.statistics.data_bytes += body.length();
        self.send_block(offset, body).await
    }

    async fn send_zero(&mut self) -> Result<(), CopyError> {
        let Some(zero) = self.zero.take() else { return Ok(()) };
        self.statistics.zero_bytes += zero.length();
        self.send_block(zero.offset(), Body::Zero(zero.length())).await
    }

    async fn send_block(&mut self, offset: u64, body: Body) -> Result<(), CopyError> {
        self.statistics.blocks += 1;
        let block = Block { disk: self.disk, offset, body };
        self.blocks.send(block).await.map_err(|_| CopyError::Stopped { disk: self.disk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const UNIT_LENGTH: usize = 64 << 10;

    fn extent(offset: u64, end: u64) -> Extent {
        Extent::between(offset, end).expect("not empty")
    }

    fn span(offset: u64, end: u64, content: Content) -> Span {
        Span { extent: extent(offset, end), content }
    }

    #[test]
    fn whole_chunks_of_zeroes_are_not_read_and_ragged_ends_are() {
        let spans = vec![
            span(0, MIB / 2, Content::Unread),
            span(MIB / 2, 3 * MIB + UNIT, Content::Zero),
            span(3 * MIB + UNIT, 4 * MIB + UNIT, Content::Unread),
        ];
        let work: Vec<Work> = plan(spans, 4 * MIB + UNIT).collect();
        let expected = [
            Work::Chunk { extent: extent(0, MIB), send: vec![extent(0, MIB / 2), extent(MIB / 2, MIB)] },
            Work::Zero(extent(MIB, 3 * MIB)),
            Work::Chunk {
                extent: extent(3 * MIB, 4 * MIB),
                send: vec![extent(3 * MIB, 3 * MIB + UNIT), extent(3 * MIB + UNIT, 4 * MIB)],
            },
            Work::Chunk { extent: extent(4 * MIB, 4 * MIB + UNIT), send: vec![extent(4 * MIB, 4 * MIB + UNIT)] },
        ];
        assert_eq!(work, expected);
    }

    #[test]
    fn zeroes_up_to_the_end_of_the_disk_are_whole_and_spans_beyond_it_are_nothing() {
        let spans = vec![span(0, 2 * MIB + UNIT, Content::Zero), span(1 << 40, 1 << 41, Content::Unread)];
        assert_eq!(plan(spans, 2 * MIB + UNIT).collect::<Vec<_>>(), [Work::Zero(extent(0, 2 * MIB + UNIT))]);
    }

    #[test]
    fn the_caller_decides_the_order() {
        let spans = vec![span(2 * MIB, 3 * MIB, Content::Unread), span(0, UNIT, Content::Unread)];
        let order: Vec<Work> = plan(spans, 8 * MIB).collect();
        assert!(matches!(&order[..], [Work::Chunk { extent: first, .. }, Work::Chunk { extent: second, .. }]
            if first.offset() == 2 * MIB && second.offset() == 0));
    }

    #[test]
    fn zero_units_within_data_are_sent_as_lengths_without_copying_the_rest() {
        let mut content = vec![0_u8; 4 * UNIT_LENGTH];
        content[0] = 1;
        content[3 * UNIT_LENGTH] = 1;
        let bytes = Bytes::from(content);
        let pieces = vec![Piece::Hole(UNIT), Piece::Data(bytes.clone())];
        let bodies = bodies(extent(0, 5 * UNIT), pieces, &[extent(0, 2 * UNIT), extent(3 * UNIT, 5 * UNIT)]);
        let expected = [
            (0, Body::Zero(UNIT)),
            (UNIT, Body::Data(bytes.slice(..UNIT_LENGTH))),
            (3 * UNIT, Body::Zero(UNIT)),
            (4 * UNIT, Body::Data(bytes.slice(3 * UNIT_LENGTH..))),
        ];
        assert_eq!(bodies, expected);
        let Body::Data(sent) = &bodies[1].1 else { panic!("data") };
        assert_eq!(sent.as_ptr(), bytes.as_ptr());
    }

    #[test]
    fn pieces_with_borders_off_the_unit_become_one() {
        let pieces = vec![Piece::Hole(4096), Piece::Data(Bytes::from(vec![5; UNIT_LENGTH - 4096]))];
        let flat = in_units(pieces.clone());
        assert_eq!(flat.iter().map(Piece::length).collect::<Vec<_>>(), [UNIT]);
        assert_eq!(digest_of(&flat), digest_of(&pieces));
    }
}
