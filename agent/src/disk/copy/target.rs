//! The target half: writes blocks as they come, and proves what it wrote by reading it back.
//!
//! ```text
//!   apply(block) ─▶ check ─▶ wait for a place in the window and for what overlaps ─▶ task: write
//!                                         a few chunks behind the writes           ─▶ task: read back, digest
//! ```
//!
//! Reading back runs behind the writes, so that little is left to prove when the guest is paused. One owner keeps all state;
//! the tasks only carry an operation and bring its outcome.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::super::digest::{self, CHUNK_SIZE, Chunk, DigestTable};
use super::super::extent::{Extent, ExtentSet};
use super::super::nbd::{BASE_ALLOCATION, Client, NbdError, Piece, ZeroMode};
use super::super::page_cache::PageCache;
use super::{BLOCK_DATA_MAX, Block, Body, CopyError, digest_of};

/// The writes in flight at a time, so also at most that many MiB of blocks held.
pub const WRITE_WINDOW: usize = 16;
/// The chunks read back at a time, so also the digests computed in parallel. Besides the writes: a source that is faster
/// than the target keeps those at their limit, and reading back would wait for the end of the pass.
pub const READ_BACK_WINDOW: usize = 8;
/// Runs of fewer unknown chunks are read without asking first whether they are zeroes: a hole is known by what is read.
const STATUS_CHUNKS_MIN: usize = 8;
/// How many chunks reading back stays behind writing: the blocks of one chunk come together, and this is when they have.
pub const READ_BACK_DISTANCE: usize = 16;
/// How many touched chunks are remembered for reading back: what reading may be behind by, and a bound on what a peer that
/// touches the same chunks for ever makes us keep. The others are left to [`Writer::verify`].
const BEHIND_MAX: usize = 4096;
/// Of the chunks that are due, how many are looked at: more than can be busy with writes.
const READ_BACK_LOOK: usize = 2 * (WRITE_WINDOW + READ_BACK_WINDOW);

/// What the target image held before the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was just created and reads as zeroes: zeroes need writing only where data was written before.
    Fresh,
    /// Anything.
    Used,
}

/// The most chunks that are told of at a time, see [`Writer::held`]: 1 GiB of disk, 33 KiB of answer.
pub const HELD_CHUNKS_MAX: usize = 1024;

/// What a writer did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteStatistics {
    /// Blocks applied.
    pub blocks: u64,
    /// Bytes written as data.
    pub data_bytes: u64,
    /// Bytes made zero.
    pub zero_bytes: u64,
    /// Of those, bytes that already were and cost nothing.
    pub zero_bytes_skipped: u64,
    /// Bytes read back.
    pub read_back_bytes: u64,
}

/// The writer of one disk. When it is dropped, operations in flight may still take effect at the server: close the client
/// before the image is used otherwise.
pub struct Writer {
    client: Client,
    disk: u16,
    origin: Origin,
    table: DigestTable,
    /// Where data was ever written to a fresh image.
    written: ExtentSet,
    received: ExtentSet,
    /// Touched chunks, not yet read back, in the order of writing, at most [`BEHIND_MAX`]. A chunk that is touched again
    /// later may be there twice.
    behind: VecDeque<usize>,
    tasks: JoinSet<Done>,
    /// How many of the tasks read back.
    reading: usize,
    /// The ranges of the tasks; no two overlap.
    active: Vec<Extent>,
    broken: bool,
    /// Whether something was given to the server since it was last flushed.
    unflushed: bool,
    /// Where the image lies in the host's page cache; none where it is written past it.
    page_cache: Option<PageCache>,
    /// Whether it shows what another image holds where nothing was written to it.
    stands_on_another: bool,
    statistics: WriteStatistics,
}

struct Done {
    extent: Extent,
    reads_back: bool,
    outcome: Result<Outcome, CopyError>,
}

enum Outcome {
    Data,
    Zero,
    ReadBack(Chunk),
}

impl Writer {
    /// A writer of disk number `disk` of the plan, which the plan says has `size` bytes.
    ///
    /// # Errors
    /// When the export's size is another.
    pub fn new(client: Client, disk: u16, size: u64, origin: Origin) -> Result<Self, CopyError> {
        if client.size() != size {
            return Err(CopyError::Size { disk, exported: client.size(), planned: size });
        }
        Ok(Self {
            client,
            disk,
            origin,
            table: DigestTable::new(size),
            written: ExtentSet::new(),
            received: ExtentSet::new(),
            behind: VecDeque::new(),
            tasks: JoinSet::new(),
            reading: 0,
            active: Vec::with_capacity(WRITE_WINDOW + READ_BACK_WINDOW),
            broken: false,
            unflushed: false,
            page_cache: None,
            stands_on_another: false,
            statistics: WriteStatistics::default(),
        })
    }

    /// A writer that goes on with an image of which an earlier one has `received` so much; see [`Self::new`].
    ///
    /// # Errors
    /// When the export's size is another.
    pub fn resume(client: Client, disk: u16, size: u64, received: ExtentSet) -> Result<Self, CopyError> {
        let writer = Self::new(client, disk, size, Origin::Used)?;
        Ok(Self { received, ..writer })
    }

    /// The same writer, of an image that stands on another, of whose content that much is known.
    #[must_use]
    pub fn knowing(self, table: DigestTable) -> Self {
        if table.size() == self.table.size() { Self { table, stands_on_another: true, ..self } } else { self }
    }

    /// The same writer, of an image that is written through the host's page cache: it is kept from filling it.
    #[must_use]
    pub fn through(self, page_cache: Option<PageCache>) -> Self {
        Self { page_cache, ..self }
    }

    /// Accepts a block: checks it, waits for a place, and starts writing it. A future dropped before it is done has not
    /// accepted the block.
    ///
    /// # Errors
    /// When the block does not fit the disk (the peer's fault), or this or an earlier one could not be written. After an
    /// error of writing the writer refuses everything.
    pub async fn apply(&mut self, block: Block) -> Result<(), CopyError> {
        self.check_sound()?;
        let extent = self.check(&block)?;
        self.collect_finished()?;
        while self.active.len() - self.reading >= WRITE_WINDOW || self.is_active(extent) {
            self.complete_one().await?;
            self.read_back_due();
        }
        self.table.mark_stale(extent);
        let (client, disk) = (self.client.clone(), self.disk);
        match block.body {
            Body::Data(bytes) => {
                if self.origin == Origin::Fresh {
                    self.written.insert(extent);
                }
                self.unflushed = true;
                self.start(extent, async move {
                    let written = client.write(extent.offset(), bytes).await;
                    written.map(|()| Outcome::Data).map_err(|source| write_error(disk, extent, source))
                });
                self.read_back_behind(extent);
            }
            Body::Zero(_) if self.origin == Origin::Fresh && self.written.within(extent).next().is_none() => {
                self.statistics.zero_bytes_skipped += extent.length();
                self.finish(extent, &Outcome::Zero);
            }
            Body::Zero(length) => {
                self.unflushed = true;
                self.start(extent, async move {
                    let written = client.write_zeroes(extent.offset(), length, ZeroMode::MayPunch).await;
                    written.map(|()| Outcome::Zero).map_err(|source| write_error(disk, extent, source))
                });
            }
        }
        Ok(())
    }

    /// Waits until every accepted block is applied (and everything started to be read back is).
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn barrier(&mut self) -> Result<(), CopyError> {
        self.check_sound()?;
        while !self.tasks.is_empty() {
            self.complete_one().await?;
        }
        Ok(())
    }

    /// A barrier, and then everything applied is on stable storage: what [`Self::received`] says may now be journalled.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn flush(&mut self) -> Result<(), CopyError> {
        self.barrier().await?;
        if !self.unflushed {
            return Ok(());
        }
        let flushed = self.client.flush().await;
        self.flushed(flushed)
    }

    /// [`Self::flush`] and [`Self::verify`], both at a time.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn secure(&mut self) -> Result<(), CopyError> {
        self.barrier().await?;
        if !self.unflushed {
            return self.verify().await;
        }
        let client = self.client.clone();
        let (flushed, verified) = tokio::join!(client.flush(), self.verify());
        self.flushed(flushed)?;
        verified
    }

    fn flushed(&mut self, outcome: Result<(), NbdError>) -> Result<(), CopyError> {
        self.broken |= outcome.is_err();
        outcome.map_err(|source| CopyError::Flush { disk: self.disk, source })?;
        self.unflushed = false;
        Ok(())
    }

    /// Reads back every chunk that is not known, by block status where that says zeroes, so that the table is whole.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn verify(&mut self) -> Result<(), CopyError> {
        self.barrier().await?;
        self.behind.clear();
        self.recognise_zeroes().await?;
        let mut next = 0;
        while let Some(index) = self.table.next_unknown(next) {
            while self.reading >= READ_BACK_WINDOW {
                self.complete_one().await?;
            }
            self.start_read_back(index);
            next = index + 1;
        }
        self.barrier().await
    }

    /// What the chunks from `first` on hold, at most [`HELD_CHUNKS_MAX`] of them, read back where an earlier writer had
    /// received all of them, or some where the image stands on another. The others are zeroes where block status says so, or as they were known, and else unknown.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn held(&mut self, first: usize) -> Result<Vec<Chunk>, CopyError> {
        self.barrier().await?;
        if first == 0 {
            self.recognise_zeroes().await?;
        }
        let range = first..self.table.count().min(first.saturating_add(HELD_CHUNKS_MAX));
        for index in range.clone() {
            let received = self.table.extent(index).is_some_and(|chunk| match self.stands_on_another {
                true => self.received.within(chunk).next().is_some(),
                false => self.received.contains(chunk),
            });
            if received && self.table.chunk(index) == Chunk::Unknown {
                while self.active.len() >= WRITE_WINDOW {
                    self.complete_one().await?;
                }
                self.start_read_back(index);
            }
        }
        self.barrier().await?;
        Ok(range.map(|index| self.table.chunk(index)).collect())
    }

    /// A barrier, and then forgets what is known of a range, so that the next [`Self::verify`] reads it again.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn forget(&mut self, extent: Extent) -> Result<(), CopyError> {
        self.barrier().await?;
        self.table.mark_stale(extent);
        Ok(())
    }

    /// The digests. The root is there after a [`Self::verify`] that nothing followed.
    pub fn table(&mut self) -> &mut DigestTable {
        &mut self.table
    }

    /// The ranges applied, data and zeroes, by this writer and the one it goes on from. On stable storage once a flush of
    /// [`Self::client`] ends that began no earlier than this was asked for.
    #[must_use]
    pub fn received(&self) -> &ExtentSet {
        &self.received
    }

    /// The connection it writes through.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What was done so far.
    #[must_use]
    pub fn statistics(&self) -> WriteStatistics {
        self.statistics
    }

    fn check_sound(&self) -> Result<(), CopyError> {
        if self.broken { Err(CopyError::Broken { disk: self.disk }) } else { Ok(()) }
    }

    /// The range of a block, which the peer may have made up.
    fn check(&self, block: &Block) -> Result<Extent, CopyError> {
        let (disk, offset, length, size) = (self.disk, block.offset, block.body.length(), self.table.size());
        if block.disk != disk {
            return Err(CopyError::WrongDisk { disk, got: block.disk });
        }
        if matches!(block.body, Body::Data(_)) && length > BLOCK_DATA_MAX {
            return Err(CopyError::TooLong { disk, length });
        }
        Extent::new(offset, length).filter(|extent| extent.end() <= size).ok_or(CopyError::Outside {
            disk,
            offset,
            length,
            size,
        })
    }

    fn is_active(&self, extent: Extent) -> bool {
        self.active.iter().any(|active| active.overlaps(extent))
    }

    fn start(&mut self, extent: Extent, operation: impl Future<Output = Result<Outcome, CopyError>> + Send + 'static) {
        self.active.push(extent);
        self.tasks.spawn(async move { Done { extent, reads_back: false, outcome: operation.await } });
    }

    /// Notes that data touched these chunks, and reads back those that are far enough behind.
    fn read_back_behind(&mut self, extent: Extent) {
        for index in self.table.touched(extent) {
            if self.behind.back() == Some(&index) {
                continue;
            }
            if self.behind.len() >= BEHIND_MAX {
                self.behind.pop_front();
            }
            self.behind.push_back(index);
        }
        self.read_back_due();
    }

    /// Reads back chunks that are far enough behind and not written at the moment, as many as there is room for.
    fn read_back_due(&mut self) {
        while self.reading < READ_BACK_WINDOW {
            let due = self.behind.len().saturating_sub(READ_BACK_DISTANCE).min(READ_BACK_LOOK);
            let idle = |index: &usize| self.table.extent(*index).is_some_and(|chunk| !self.is_active(chunk));
            let Some(place) = self.behind.iter().take(due).position(idle) else { return };
            let Some(index) = self.behind.remove(place) else { return };
            if self.table.chunk(index) == Chunk::Unknown {
                self.start_read_back(index);
            }
        }
    }

    fn start_read_back(&mut self, index: usize) {
        let Some(extent) = self.table.extent(index) else { return };
        let (client, disk) = (self.client.clone(), self.disk);
        let image = self.page_cache.as_ref().map(PageCache::image);
        self.reading += 1;
        self.active.push(extent);
        self.tasks.spawn(async move {
            let chunk = match image {
                Some(image) => read_back_image(image, disk, extent).await,
                None => read_back(&client, disk, extent).await,
            };
            Done { extent, reads_back: true, outcome: chunk.map(Outcome::ReadBack) }
        });
    }

    /// Makes known, without reading, the unknown chunks that block status says are zeroes.
    async fn recognise_zeroes(&mut self) -> Result<(), CopyError> {
        if !self.client.has_context(BASE_ALLOCATION) {
            return Ok(());
        }
        let mut next = 0;
        while let Some(first) = self.table.next_unknown(next) {
            let run = (first..self.table.count()).take_while(|index| self.table.chunk(*index) == Chunk::Unknown);
            let last = run.last().unwrap_or(first);
            next = last + 1;
            if next - first < STATUS_CHUNKS_MIN {
                continue;
            }
            let (Some(start), Some(end)) = (self.table.extent(first), self.table.extent(last)) else { return Ok(()) };
            let Some(range) = Extent::between(start.offset(), end.end()) else { return Ok(()) };
            let statuses = self.client.block_status(BASE_ALLOCATION, range).await;
            let statuses = statuses.map_err(|source| self.read_error(range, source))?;
            for zero in statuses.iter().filter(|status| status.reads_as_zero()) {
                for index in self.table.touched(zero.extent) {
                    let inside = self.table.extent(index).is_some_and(|chunk| chunk.clip(zero.extent) == Some(chunk));
                    if inside {
                        self.table.set(index, Chunk::Zero);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_error(&mut self, extent: Extent, source: NbdError) -> CopyError {
        self.broken = true;
        CopyError::Read { disk: self.disk, offset: extent.offset(), source }
    }

    async fn complete_one(&mut self) -> Result<(), CopyError> {
        match self.tasks.join_next().await {
            Some(joined) => self.complete(joined),
            None => Ok(()),
        }
    }

    fn collect_finished(&mut self) -> Result<(), CopyError> {
        while let Some(joined) = self.tasks.try_join_next() {
            self.complete(joined)?;
        }
        Ok(())
    }

    fn complete(&mut self, joined: Result<Done, tokio::task::JoinError>) -> Result<(), CopyError> {
        let disk = self.disk;
        let done = joined.map_err(|source| CopyError::Task { disk, source }).and_then(|done| {
            self.active.retain(|active| *active != done.extent);
            self.reading -= usize::from(done.reads_back);
            done.outcome.map(|outcome| (done.extent, outcome))
        });
        match done {
            Ok((extent, outcome)) => self.finish(extent, &outcome),
            Err(error) => {
                self.broken = true;
                return Err(error);
            }
        }
        Ok(())
    }

    fn finish(&mut self, extent: Extent, outcome: &Outcome) {
        let length = extent.length();
        match outcome {
            Outcome::ReadBack(chunk) => {
                self.statistics.read_back_bytes += length;
                // No write to the chunk can have started since: it would have waited for this.
                self.table.touched(extent).for_each(|index| self.table.set(index, *chunk));
                if let Some(page_cache) = &mut self.page_cache {
                    page_cache.done_with(extent);
                }
                return;
            }
            Outcome::Data => self.statistics.data_bytes += length,
            Outcome::Zero => self.statistics.zero_bytes += length,
        }
        self.statistics.blocks += 1;
        self.received.insert(extent);
    }
}

/// What a chunk holds now.
///
/// # Errors
/// It cannot be read.
pub async fn read_back(client: &Client, disk: u16, extent: Extent) -> Result<Chunk, CopyError> {
    let length = u32::try_from(extent.length().min(CHUNK_SIZE)).unwrap_or(u32::MAX);
    let pieces = client.read(extent.offset(), length).await.map_err(|source| CopyError::Read {
        disk,
        offset: extent.offset(),
        source,
    })?;
    if pieces.iter().all(|piece| matches!(piece, Piece::Hole(_))) {
        return Ok(Chunk::Zero);
    }
    let digest = tokio::task::spawn_blocking(move || digest_of(&pieces));
    digest.await.map_err(|source| CopyError::Task { disk, source })
}

/// What a chunk of a raw image holds now that is written through the page cache.
async fn read_back_image(image: Arc<File>, disk: u16, extent: Extent) -> Result<Chunk, CopyError> {
    let read = tokio::task::spawn_blocking(move || digest::of_file(&image, extent)).await;
    let read = read.map_err(|source| CopyError::Task { disk, source })?;
    read.map_err(|source| CopyError::ReadImage { disk, offset: extent.offset(), source })
}

fn write_error(disk: u16, extent: Extent, source: NbdError) -> CopyError {
    CopyError::Write { disk, offset: extent.offset(), length: extent.length(), source }
}
