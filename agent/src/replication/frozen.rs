//! The source's disks in a cycle, as they were at one point in time: taken, served, read, put away.
//!
//! ```text
//!   bitmap of the latest snapshot (records) ──▶ the point in time ──▶ stands still: what is read
//!                                    bitmap of this cycle, records from just before ──▶ the next cycle's
//! ```
//!
//! Each bitmap is named after the cycle since whose snapshot it has recorded, and after its attempt: one that was suspended goes on
//! from another point in time, and finds what the attempt before has left. A cycle that comes to nothing leaves both, and
//! the next one joins what it finds: so nothing that was written is ever left out, whoever fell out when. Where the bitmap of the
//! target's latest snapshot is not there on every disk, or one was not closed well, everything is read and digests are
//! compared.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sterna_shared::id::JobId;
use sterna_shared::job::{Plan, Volume};
use sterna_shared::replica::Consistency;
use sterna_shared::time::Timestamp;
use sterna_shared::vm::{DiskFormat, DiskSpec};
use tokio::sync::{mpsc, watch};

use super::rest::Rest;
use crate::clock;
use crate::disk::copy::Block;
use crate::disk::copy::changes::send_changes;
use crate::disk::copy::source::{Content, Known, Span, dirty, send_pass, whole_disk};
use crate::disk::digest::{Chunk, Digest, DigestTable};
use crate::disk::extent::ExtentSet;
use crate::disk::nbd::{BASE_ALLOCATION, Client, dirty_bitmap};
use crate::disk::pool::LayerFile;
use crate::guest::launcher::Launched;
use crate::hypervisor::qemu::command_line::format_node;
use crate::hypervisor::qemu::{Bitmap, Export, FrozenDisk, Machine, Node, frozen_node};
use crate::migration::context::{Context, MoveError};
use crate::migration::disks::{DiskError, GRANULARITY, SourceDisks, forward};
use crate::migration::images::{self, ImageError};

/// What the bitmaps of all cycles begin with.
const BITMAPS: &str = "sterna-cycle-";
/// NBD connections to one disk.
const CONNECTIONS: usize = 2;
/// How long an export may take to go.
const EXPORT_REMOVAL_WAIT: Duration = Duration::from_secs(10);

/// The disks of a VM at one point in time, served for reading.
#[derive(Debug)]
pub struct FrozenDisks {
    context: Arc<Context>,
    machine: Machine,
    /// Serves the disks of a guest that is stopped.
    daemon: Option<Launched>,
    socket: PathBuf,
    /// The bitmap that says what has changed; none where everything is read.
    changes: Option<String>,
    /// Whether the target has a part of that already: then digests are compared, and not only what was sent.
    part: bool,
    taken_at: Timestamp,
    consistency: Consistency,
    volume: watch::Sender<Volume>,
}

/// The point in time of an attempt of a cycle, since which a bitmap records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// The cycle.
    pub job: JobId,
    /// Which attempt of it.
    pub attempt: u32,
}

impl Since {
    /// That of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self { job: plan.job, attempt: plan.attempt }
    }

    /// The bitmap that records since then.
    fn bitmap(self) -> String {
        match self {
            Self { job, attempt: 0 } => format!("{BITMAPS}{job}"),
            Self { job, attempt } => format!("{BITMAPS}{job}-{attempt}"),
        }
    }
}

impl FrozenDisks {
    /// Takes the point in time, and serves it. `latest` is that of the latest snapshot that the target has; `part` whether it has
    /// something of a later one too.
    ///
    /// # Errors
    /// It cannot be taken; what was put up goes with [`clear`].
    pub async fn take(context: &Arc<Context>, latest: Option<Since>, part: bool) -> Result<Self, MoveError> {
        let (host, plan) = (&context.host, &context.plan);
        let volume = watch::Sender::new(Volume::default());
        let Some(machine) = context.keeper.machine().await? else {
            // Before anything is read: a guest that is started meanwhile takes it back.
            context.keeper.stands_still(Some(plan.job)).await?;
            let daemon = images::serve_source(host, plan).await?;
            let (machine, socket) = (daemon.machine.clone(), daemon.runtime.nbd_socket());
            machine.nbd_server_start(&socket).await?;
            let (context, consistency, taken_at) = (Arc::clone(context), Consistency::Stopped, clock::now());
            let daemon = Some(daemon);
            return Ok(Self { context, machine, daemon, socket, changes: None, part, taken_at, consistency, volume });
        };
        clear(&machine, context).await?;
        let socket = host.runtime(plan.vm.id).map_err(MoveError::Runtime)?.nbd_socket();
        let _ = std::fs::remove_file(&socket);
        machine.nbd_server_start(&socket).await?;
        let taken = match frozen_disks(&machine, context).await {
            Ok(disks) => take_of_guest(&machine, context, &disks, latest).await,
            Err(error) => Err(error),
        };
        // QEMU has them open, and nobody else needs them: nothing of them is left, whoever falls out.
        remove_scratch(context);
        let Taken { changes, taken_at, consistency } = taken?;
        let context = Arc::clone(context);
        Ok(Self { context, machine, daemon: None, socket, changes, part, taken_at, consistency, volume })
    }

    /// Whether only what has changed since the latest snapshot is sent, and proven by itself.
    #[must_use]
    pub fn reads_changes(&self) -> bool {
        self.changes.is_some() && !self.part
    }

    /// When the point in time was, and what state the guest had its disks in.
    #[must_use]
    pub fn point(&self) -> (Timestamp, Consistency) {
        (self.taken_at, self.consistency)
    }

    /// How much has been read and sent.
    #[must_use]
    pub fn volume(&self) -> watch::Receiver<Volume> {
        self.volume.subscribe()
    }

    /// Reads all disks, side by side, and sends what the target does not have. `known` is what it says that it has of each. One
    /// digest a disk: of the changes, or of all of it.
    ///
    /// # Errors
    /// Reading fails, or nobody takes the blocks any more.
    pub async fn read(
        &self,
        known: &[Option<DigestTable>],
        blocks: &mpsc::Sender<Block>,
    ) -> Result<(u64, Vec<Digest>), MoveError> {
        let disks = &self.context.plan.disks;
        let mut exports = Vec::with_capacity(disks.len());
        for (index, disk) in (0_u16..).zip(disks) {
            let export = self.export(index, &disk.source).await?;
            self.machine.export_add(&export).await?;
            exports.push(export);
        }
        let reads = (0_u16..).zip(disks).zip(&exports).map(|((index, disk), export)| {
            let known = known.get(usize::from(index)).and_then(Option::as_ref);
            self.read_one(index, disk.source.size.0, &export.name, known, blocks)
        });
        let reads = join_all(reads).await;
        for export in &exports {
            self.machine.export_remove(&export.id, EXPORT_REMOVAL_WAIT).await?;
        }
        let (mut sent, mut digests) = (0, Vec::with_capacity(reads.len()));
        for read in reads {
            let (blocks, digest) = read?;
            sent += blocks;
            digests.push(digest);
        }
        Ok((sent, digests))
    }

    async fn export(&self, index: u16, disk: &DiskSpec) -> Result<Export, MoveError> {
        let id = format!("{BITMAPS}{index}");
        let (node, bitmaps) = match (&self.daemon, &self.changes) {
            (Some(_), _) => (format_node(&disk.name), Vec::new()),
            (None, None) => (frozen_node(&disk.name), Vec::new()),
            (None, Some(changes)) => {
                let below = self.machine.format_node_in_use(disk).await?;
                (frozen_node(&disk.name), vec![(below, changes.clone())])
            }
        };
        Ok(Export { name: id.clone(), id, node, writable: false, bitmaps })
    }

    async fn read_one(
        &self,
        index: u16,
        size: u64,
        export: &str,
        known: Option<&DigestTable>,
        blocks: &mpsc::Sender<Block>,
    ) -> Result<(u64, Digest), MoveError> {
        let open = |source| DiskError::Open { disk: index, source };
        let bitmap = self.changes.as_deref().map(dirty_bitmap);
        let wanted: Vec<&str> = std::iter::once(BASE_ALLOCATION).chain(bitmap.as_deref()).collect();
        let client = Client::connect(&self.socket, export, &wanted, CONNECTIONS).await.map_err(open)?;
        let (counted, counting) = mpsc::channel::<Block>(1);
        let skipped = |bytes: u64| {
            self.volume.send_modify(|volume| {
                volume.done += bytes;
                volume.resumed += bytes;
            });
        };
        let more = |bytes: u64| self.volume.send_modify(|volume| volume.total += bytes);
        let read = async {
            let mut changed = ExtentSet::new();
            if let Some(changes) = &self.changes {
                let spans = dirty(&client, changes).await.map_err(open)?;
                spans.iter().for_each(|span| changed.insert(span.extent));
            }
            let read = match known.and_then(|known| beyond(known, &changed)) {
                _ if self.reads_changes() => {
                    more(changed.total());
                    send_changes(&client, index, &changed, &counted).await?
                }
                rest => {
                    // What has not changed is as the target has proven it before.
                    let (spans, mut table) = match rest.filter(|_| self.changes.is_some()) {
                        Some(table) => (unread(&changed), table),
                        None => (whole_disk(&client).await.map_err(open)?, DigestTable::new(size)),
                    };
                    more(spans.iter().map(|span| span.extent.length()).sum());
                    let known = known.map(|table| Known { table, skipped: &skipped });
                    let never = std::future::pending();
                    let pass = send_pass(&client, index, spans, &mut table, known, &counted, never).await?;
                    (pass, table.root().ok_or(DiskError::NotProven { disk: index })?)
                }
            };
            drop(counted);
            Ok::<_, DiskError>(read)
        };
        let (read, ()) = tokio::join!(read, forward(counting, blocks, &self.volume, false));
        client.close().await;
        let (statistics, digest) = read?;
        Ok((statistics.blocks, digest))
    }

    /// The target has the snapshot: of the bitmaps only the one that records from it on is needed.
    ///
    /// # Errors
    /// QEMU holds on to one; the next cycle then reads a little more.
    pub async fn forget_older_bitmaps(&self) -> Result<(), MoveError> {
        match self.daemon {
            Some(_) => Ok(()),
            None => {
                let plan = &self.context.plan;
                forget_bitmaps(&self.machine, &plan.vm.disks, Some(Since::of(plan))).await
            }
        }
    }

    /// Takes the point in time away.
    ///
    /// # Errors
    /// Some of it is left until the guest ends.
    pub async fn put_away(self) -> Result<(), MoveError> {
        match self.daemon {
            Some(daemon) => {
                images::end_daemon(daemon).await;
                Ok(())
            }
            None => clear(&self.machine, &self.context).await,
        }
    }
}

/// Takes away what cycles have put up in a guest's QEMU, known or not: also for an agent that starts anew.
///
/// # Errors
/// Some of it is left.
pub async fn clear(machine: &Machine, context: &Context) -> Result<(), MoveError> {
    SourceDisks::clear(machine, context.plan.job).await?;
    machine.forget_point_in_time(&context.plan.vm.disks).await?;
    Ok(())
}

/// Removes the bitmaps of cycles from a guest's disks, but for that of one.
///
/// # Errors
/// QEMU holds on to one.
pub async fn forget_bitmaps(machine: &Machine, disks: &[DiskSpec], but: Option<Since>) -> Result<(), MoveError> {
    let kept = but.map(Since::bitmap);
    let nodes = machine.nodes().await?;
    for disk in disks {
        let node = machine.format_node_in_use(disk).await?;
        for bitmap in of_cycles(&nodes, &node).filter(|bitmap| Some(&bitmap.name) != kept.as_ref()) {
            machine.bitmap_remove(&[&node], &bitmap.name).await?;
        }
    }
    Ok(())
}

/// What is known of a disk beside its changes; none where that is not all the rest.
fn beyond(known: &DigestTable, changed: &ExtentSet) -> Option<DigestTable> {
    let mut table = known.clone();
    for extent in changed.iter() {
        table.touched(extent).for_each(|index| table.set(index, Chunk::Zero));
    }
    let whole = table.unknown() == 0;
    changed.iter().for_each(|extent| table.mark_stale(extent));
    whole.then_some(table)
}

fn unread(changed: &ExtentSet) -> Vec<Span> {
    changed.iter().map(|extent| Span { extent, content: Content::Unread }).collect()
}

fn of_cycles<'a>(nodes: &'a [Node], node: &'a str) -> impl Iterator<Item = &'a Bitmap> {
    let found = nodes.iter().filter(move |found| found.name == node);
    found.flat_map(|node| &node.bitmaps).filter(|bitmap| bitmap.name.starts_with(BITMAPS))
}

async fn frozen_disks(machine: &Machine, context: &Context) -> Result<Vec<FrozenDisk>, MoveError> {
    let plan = &context.plan;
    context.host.expect_headroom(source_disks(plan))?;
    let mut disks = Vec::with_capacity(plan.disks.len());
    for disk in source_disks(plan) {
        let pool = context.host.pool(disk).map_err(ImageError::from)?;
        let scratch = pool.create_layer(plan.vm.id, &disk.name, LayerFile::Scratch, disk.size).await;
        disks.push(FrozenDisk {
            node: machine.format_node_in_use(disk).await?,
            scratch: scratch.map_err(ImageError::from)?,
            keeps_bitmaps: disk.format == DiskFormat::Qcow2 && !disk.read_only,
            spec: disk.clone(),
        });
    }
    Ok(disks)
}

/// The disks that are read.
pub fn source_disks(plan: &Plan) -> impl Iterator<Item = &DiskSpec> {
    plan.disks.iter().map(|disk| &disk.source)
}

/// Removes the scratch images of a VM.
pub fn remove_scratch(context: &Context) {
    for disk in source_disks(&context.plan) {
        let removed =
            context.host.pool(disk).map(|pool| pool.delete_layer(context.plan.vm.id, &disk.name, LayerFile::Scratch));
        if let Ok(Err(error)) = removed {
            tracing::warn!(job = %context.plan.job, %error, "a scratch image is left over");
        }
    }
}

/// A point in time of a running guest.
struct Taken {
    /// The bitmap that says what has changed, where there is one on every disk.
    changes: Option<String>,
    taken_at: Timestamp,
    consistency: Consistency,
}

/// Takes the point in time of a running guest. The guest is at rest for no longer than the one command takes that makes it.
async fn take_of_guest(
    machine: &Machine,
    context: &Context,
    disks: &[FrozenDisk],
    latest: Option<Since>,
) -> Result<Taken, MoveError> {
    let nodes = machine.nodes().await?;
    let mut older = Vec::new();
    for disk in disks {
        for bitmap in of_cycles(&nodes, &disk.node) {
            match bitmap.inconsistent {
                true => machine.bitmap_remove(&[&disk.node], &bitmap.name).await?,
                false if !older.contains(&bitmap.name) => older.push(bitmap.name.clone()),
                false => {}
            }
        }
    }
    let changes = latest.map(Since::bitmap).filter(|changes| {
        disks.iter().all(|disk| {
            let sound = || of_cycles(&nodes, &disk.node).filter(|bitmap| !bitmap.inconsistent);
            let since = sound().any(|bitmap| bitmap.name == *changes && bitmap.granularity == GRANULARITY);
            // Where nothing records now, something has been written that no bitmap has.
            since && sound().any(|bitmap| bitmap.recording)
        })
    });
    machine.prepare_point_in_time(disks, &Since::of(&context.plan).bitmap(), GRANULARITY).await?;
    let rest = Rest::begin(context).await?;
    let taken = machine.take_point_in_time(disks).await;
    let taken_at = clock::now();
    // Whatever came of it.
    let consistency = rest.end(context).await;
    taken?;
    machine.serve_point_in_time(disks, &older).await?;
    for disk in disks {
        let here =
            of_cycles(&nodes, &disk.node).filter(|bitmap| !bitmap.inconsistent).map(|bitmap| bitmap.name.clone());
        let others: Vec<String> = here.filter(|name| Some(name) != changes.as_ref()).collect();
        match &changes {
            Some(changes) if !others.is_empty() => machine.bitmaps_join(&disk.node, changes, &others).await?,
            Some(_) => {}
            None => {
                for other in others {
                    machine.bitmap_remove(&[&disk.node], &other).await?;
                }
            }
        }
    }
    Ok(Taken { changes, taken_at, consistency })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_a_cycle_record_in_bitmaps_of_their_own() {
        let job = "0197c0de-0000-7000-8000-000000000101".parse().expect("a UUID");
        let bitmaps = [0, 1, 12].map(|attempt| Since { job, attempt }.bitmap());
        assert_eq!(bitmaps[0], format!("sterna-cycle-{job}"), "as it was before there were attempts");
        assert_ne!(bitmaps[1], bitmaps[2]);
        assert!(bitmaps[1..].iter().all(|bitmap| bitmap.starts_with(BITMAPS) && *bitmap != bitmaps[0]));
    }
}
