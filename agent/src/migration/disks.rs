//! The source's disks in a move: passes over dirty bitmaps, from a running guest or a stopped one.
//!
//! ```text
//!   open       NBD server; a bitmap on every disk, recording from one instant       (running guest only)
//!   pass 0     every extent of base:allocation
//!   pass n     transaction: what was recorded since n-1 moves to a pass bitmap; its extents are read and sent
//!   last pass  the guest stands still: the same with as few questions as will do
//!   close      the server and its exports are gone: QEMU can hand its images over
//!   roots      one digest a disk
//! ```
//!
//! Disks are read side by side: in the pause the slowest counts, and not the sum.
//!
//! Blocks go into a bounded channel; what carries them (lanes, or a writer on this host) is not known here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use sterna_shared::id::JobId;
use sterna_shared::job::{DiskMove, Volume};
use sterna_shared::units::ByteCount;
use tokio::sync::{mpsc, watch};

use crate::disk::copy::source::{Known, PassStatistics, dirty, send_pass, whole_disk};
use crate::disk::copy::{Block, Body, CopyError};
use crate::disk::digest::{Digest, DigestTable};
use crate::disk::nbd::{BASE_ALLOCATION, Client, NbdError, dirty_bitmap};
use crate::hypervisor::qemu::command_line::format_node;
use crate::hypervisor::qemu::qmp::QmpError;
use crate::hypervisor::qemu::{BitmapOptions, Export, Machine, MachineError};

/// Bytes that one bit of a dirty bitmap stands for.
pub const GRANULARITY: u32 = 64 << 10;
/// NBD connections to one export for all of a disk.
const CONNECTIONS: usize = 2;
/// And for what was dirtied: opening a second one takes longer than it saves.
const CONNECTIONS_DIRTY: usize = 1;
/// How long an export may take to go.
const EXPORT_REMOVAL_WAIT: Duration = Duration::from_secs(10);

/// The disks of one job at its source.
#[derive(Debug)]
pub struct SourceDisks {
    machine: Machine,
    socket: PathBuf,
    disks: Vec<Disk>,
    /// The bitmap that records; none while the guest is stopped.
    main: Option<String>,
    passes: u32,
    blocks: u64,
    volume: watch::Sender<Volume>,
}

#[derive(Debug)]
struct Disk {
    index: u16,
    node: String,
    table: DigestTable,
    /// What the target has said that it holds, until pass 0 has made use of it.
    at_target: Option<DigestTable>,
}

/// Why the source's disks could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// QEMU did not do as told.
    #[error("the source's disks could not be served")]
    Machine(#[from] MachineError),
    /// An export could not be reached.
    #[error("the source's disk {disk} could not be opened")]
    Open {
        /// The disk, by its place in the plan.
        disk: u16,
        /// Why.
        #[source]
        source: NbdError,
    },
    /// A pass failed.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A disk was not digested wholly: a fault of ours.
    #[error("disk {disk} has parts that no pass covered; this is a fault of Sterna")]
    NotProven {
        /// The disk.
        disk: u16,
    },
}

impl SourceDisks {
    /// Serves the disks and, where the guest `runs`, records its writes from here on.
    ///
    /// # Errors
    /// QEMU refuses; nothing is left behind then.
    pub async fn open(
        machine: Machine,
        socket: PathBuf,
        job: JobId,
        moves: &[DiskMove],
        runs: bool,
    ) -> Result<Self, DiskError> {
        let mut disks = Vec::with_capacity(moves.len());
        let mut total = 0;
        for (index, disk) in moves.iter().enumerate() {
            let node = match runs {
                true => machine.format_node_in_use(&disk.source).await?,
                false => format_node(&disk.source.name),
            };
            total += disk.source.size.0;
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            disks.push(Disk { index, node, table: DigestTable::new(disk.source.size.0), at_target: None });
        }
        let (volume, _) = watch::channel(Volume { total, ..Volume::default() });
        let main = runs.then(|| bitmap_name(job));
        let opened = Self { machine, socket, disks, main, passes: 0, blocks: 0, volume };
        let _ = std::fs::remove_file(&opened.socket);
        opened.machine.nbd_server_start(&opened.socket).await?;
        if let Some(main) = &opened.main {
            let options = BitmapOptions { granularity: GRANULARITY, persistent: false };
            if let Err(error) = opened.machine.bitmap_add(&opened.nodes(), main, options).await {
                opened.machine.nbd_server_stop().await?;
                return Err(error.into());
            }
        }
        Ok(opened)
    }

    /// Takes note of what the target holds of a disk, so that pass 0 leaves out what is equal.
    pub fn at_target(&mut self, disk: u16, table: DigestTable) {
        if let Some(found) = self.disks.iter_mut().find(|found| found.index == disk) {
            found.at_target = Some(table);
        }
    }

    /// How much has been read and sent, and every change of it.
    #[must_use]
    pub fn volume(&self) -> watch::Receiver<Volume> {
        self.volume.subscribe()
    }

    /// Passes begun so far.
    #[must_use]
    pub fn passes(&self) -> u32 {
        self.passes
    }

    /// Blocks sent so far, all passes together.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// What the guest has dirtied since the last pass began.
    ///
    /// # Errors
    /// QEMU does not say.
    pub async fn dirty(&self) -> Result<ByteCount, DiskError> {
        match &self.main {
            Some(main) => Ok(self.machine.dirty_bytes(&self.nodes(), main).await?),
            None => Ok(ByteCount(0)),
        }
    }

    /// Runs the next pass: the first over everything, the others over what was dirtied since the one before.
    ///
    /// # Errors
    /// Reading fails, or `blocks` is closed. What the pass had not sent is in the next one.
    pub async fn pass(&mut self, blocks: &mpsc::Sender<Block>) -> Result<PassStatistics, DiskError> {
        let number = self.passes;
        self.passes += 1;
        let (main, pass) = match (self.main.clone(), number) {
            (_, 0) => return self.read(None, |_| true, blocks, Exports::Removed).await,
            (None, _) => return Ok(PassStatistics::default()),
            (Some(main), _) => (main.clone(), format!("{main}-{number}")),
        };
        self.machine.pass_begin(&self.nodes(), &main, &pass, GRANULARITY).await?;
        let read = async {
            let dirty = self.machine.dirty_bytes_each(&self.nodes(), &pass).await?;
            self.read(Some(&pass), |position| dirty[position].0 > 0, blocks, Exports::Removed).await
        };
        match read.await {
            Ok(statistics) => {
                self.machine.pass_end(&self.nodes(), &pass).await?;
                Ok(statistics)
            }
            Err(error) => {
                // The bits go back, so that no later pass can miss them; the first error is the one to tell.
                let _ = self.machine.pass_abandon(&self.nodes(), &main, &pass).await;
                Err(error)
            }
        }
    }

    /// The last pass over the disks of a guest that stands still, with as few questions to QEMU as will do. What it puts up is
    /// left to [`SourceDisks::close`] and [`SourceDisks::clear`].
    ///
    /// # Errors
    /// Reading fails, or `blocks` is closed: the disks are not copied, and there is no other pass.
    pub async fn last_pass(&mut self, blocks: &mpsc::Sender<Block>) -> Result<PassStatistics, DiskError> {
        let number = self.passes;
        self.passes += 1;
        let mut statistics = PassStatistics::default();
        if let Some(main) = self.main.clone() {
            // Nothing changes any more: what the recording bitmap says now is what the pass will have.
            let dirty = self.machine.dirty_bytes_each(&self.nodes(), &main).await?;
            let is_dirty = |position: usize| dirty[position].0 > 0;
            let nodes = self.nodes().into_iter().enumerate().filter(|(position, _)| is_dirty(*position));
            let nodes: Vec<&str> = nodes.map(|(_, node)| node).collect();
            if !nodes.is_empty() {
                let pass = format!("{main}-{number}");
                self.machine.pass_begin(&nodes, &main, &pass, GRANULARITY).await?;
                statistics = self.read(Some(&pass), is_dirty, blocks, Exports::Kept).await?;
            }
        }
        Ok(statistics)
    }

    /// Ends the server and all exports, so that QEMU can hand its images over. The bitmaps go with QEMU, or with
    /// [`SourceDisks::clear`].
    ///
    /// # Errors
    /// QEMU holds on to them.
    pub async fn close(&self) -> Result<(), DiskError> {
        Ok(self.machine.nbd_server_stop().await?)
    }

    /// One digest a disk, in the plan's order. Right once the guest stands still and the last pass is done.
    ///
    /// # Errors
    /// A disk has parts that no pass has read.
    pub fn roots(&mut self) -> Result<Vec<Digest>, DiskError> {
        let root = |disk: &mut Disk| disk.table.root().ok_or(DiskError::NotProven { disk: disk.index });
        self.disks.iter_mut().map(root).collect()
    }

    /// Takes away what a job has put up in a QEMU, known or not: also for an agent that starts anew.
    ///
    /// # Errors
    /// QEMU holds on to some of it.
    pub async fn clear(machine: &Machine, job: JobId) -> Result<(), DiskError> {
        for export in machine.exports().await? {
            machine.export_remove(&export, EXPORT_REMOVAL_WAIT).await?;
        }
        match machine.nbd_server_stop().await {
            // There was none.
            Ok(()) | Err(MachineError::Qmp(QmpError::Refused { .. })) => {}
            Err(error) => return Err(error.into()),
        }
        let prefix = bitmap_name(job);
        for node in machine.nodes().await? {
            for bitmap in node.bitmaps.iter().filter(|bitmap| bitmap.name.starts_with(&prefix)) {
                machine.bitmap_remove(&[&node.name], &bitmap.name).await?;
            }
        }
        Ok(())
    }

    fn nodes(&self) -> Vec<&str> {
        self.disks.iter().map(|disk| disk.node.as_str()).collect()
    }

    /// Reads the disks that are `wanted`, side by side: all of each, or what a pass's bitmap says.
    async fn read(
        &mut self,
        pass: Option<&str>,
        wanted: impl Fn(usize) -> bool,
        blocks: &mpsc::Sender<Block>,
        after: Exports,
    ) -> Result<PassStatistics, DiskError> {
        let Self { machine, socket, disks, volume, .. } = self;
        let wanted = disks.iter_mut().enumerate().filter(|(position, _)| wanted(*position)).map(|(_, disk)| disk);
        let mut wanted: Vec<&mut Disk> = wanted.collect();
        // Exports come and go while nothing is read: QEMU halts every disk for a change of what is above them.
        let exports: Vec<Export> = wanted.iter().map(|disk| disk.export(pass)).collect();
        for export in &exports {
            machine.export_add(export).await?;
        }
        let reads = wanted.iter_mut().zip(&exports);
        let reads = reads.map(|(disk, export)| disk.read(socket, &export.name, pass, blocks, volume));
        // Each is read to its end: an export that is cut off in the middle would be left over.
        let reads = join_all(reads).await;
        let mut removed = Ok(());
        for export in exports.iter().filter(|_| after == Exports::Removed) {
            removed = removed.and(machine.export_remove(&export.id, EXPORT_REMOVAL_WAIT).await);
        }
        let mut sum = PassStatistics::default();
        for read in reads {
            let read = read?;
            sum.read_bytes += read.read_bytes;
            sum.data_bytes += read.data_bytes;
            sum.zero_bytes += read.zero_bytes;
            sum.blocks += read.blocks;
        }
        removed?;
        self.blocks += sum.blocks;
        Ok(sum)
    }
}

/// What becomes of the exports of a pass when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exports {
    /// They go.
    Removed,
    /// They go with the server.
    Kept,
}

impl Disk {
    fn export(&self, pass: Option<&str>) -> Export {
        let id = format!("sterna-source-{}", self.index);
        let bitmaps = pass.map(|pass| (self.node.clone(), pass.to_owned())).into_iter().collect();
        Export { name: id.clone(), id, node: self.node.clone(), writable: false, bitmaps }
    }

    async fn read(
        &mut self,
        socket: &Path,
        export: &str,
        pass: Option<&str>,
        blocks: &mpsc::Sender<Block>,
        volume: &watch::Sender<Volume>,
    ) -> Result<PassStatistics, DiskError> {
        let index = self.index;
        let open = |source| DiskError::Open { disk: index, source };
        let context = pass.map_or_else(|| BASE_ALLOCATION.to_owned(), dirty_bitmap);
        let connections = if pass.is_some() { CONNECTIONS_DIRTY } else { CONNECTIONS };
        let client = Client::connect(socket, export, &[&context], connections).await.map_err(open)?;
        let spans = match pass {
            None => whole_disk(&client).await,
            Some(pass) => dirty(&client, pass).await,
        };
        let spans = spans.map_err(open)?;
        let covered: u64 = spans.iter().map(|span| span.extent.length()).sum();
        if pass.is_some() {
            volume.send_modify(|volume| volume.dirtied += covered);
        }
        // The pass's own channel counts what goes through it.
        let (counted, counting) = mpsc::channel::<Block>(1);
        let forward = forward(counting, blocks, volume, pass.is_some());
        let at_target = self.at_target.take().filter(|_| pass.is_none());
        let skipped = |bytes: u64| {
            volume.send_modify(|volume| {
                volume.done += bytes;
                volume.resumed += bytes;
            });
        };
        let known = at_target.as_ref().map(|table| Known { table, skipped: &skipped });
        let read = async {
            let never = std::future::pending();
            let read = send_pass(&client, index, spans, &mut self.table, known, &counted, never).await;
            drop(counted);
            read
        };
        let (statistics, ()) = tokio::join!(read, forward);
        client.close().await;
        Ok(statistics?)
    }
}

/// The bitmap that records for a job; its passes' bitmaps have this and a number.
/// Carries blocks on, and counts them: as done, or as done `again`.
pub(crate) async fn forward(
    mut counting: mpsc::Receiver<Block>,
    blocks: &mpsc::Sender<Block>,
    volume: &watch::Sender<Volume>,
    again: bool,
) {
    while let Some(block) = counting.recv().await {
        let (length, data) = (block.body.length(), matches!(block.body, Body::Data(_)));
        if blocks.send(block).await.is_err() {
            return; // The channel's end is seen by the sender as its own.
        }
        volume.send_modify(|volume| {
            *(if again { &mut volume.redone } else { &mut volume.done }) += length;
            volume.sent += if data { length } else { 0 };
        });
    }
}

fn bitmap_name(job: JobId) -> String {
    format!("sterna-{job}")
}
