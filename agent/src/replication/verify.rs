//! A replica is read through and held against the digests of what was written.
//!
//! ```text
//!   the latest snapshot   every chunk of every disk, by way of a storage daemon over its layers: read only, past the cache
//!   each older one        the chunks that it has for itself, and those that a later one has damaged
//!   a chunk is bad        it cannot be read, or has another digest than when it was written
//!   what is bad           the snapshot is marked, and of the latest what those chunks hold is no longer known
//! ```
//!
//! **Contract.** No layer is written to. The next cycle after something bad was found compares everything, and sends what is
//! not known: its layer covers what is damaged below. Snapshots that were taken before stay damaged, and are not read again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{EventBody, FailureCode, FailureReport, StepFigures, StepKind, Volume};
use sterna_shared::replica::{Replica, Snapshot};
use sterna_shared::vm::{DiskSpec, Firmware};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{layers, variables};
use crate::disk::copy::CopyError;
use crate::disk::copy::source::{Content, whole_disk};
use crate::disk::copy::target::read_back;
use crate::disk::digest::{CHUNK_SIZE, Chunk, DigestTable, pack};
use crate::disk::extent::{Extent, ExtentSet};
use crate::disk::nbd::{BASE_ALLOCATION, Client, NbdError};
use crate::disk::pool::Note;
use crate::guest::launcher::Launched;
use crate::host::Host;
use crate::hypervisor::qemu::Export;
use crate::hypervisor::qemu::command_line::format_node;
use crate::journal::ReplicaChange;
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::disks::DiskError;
use crate::migration::images::{self, ImageError};

/// NBD connections to the disk that is read: one read is under way at a time.
const CONNECTIONS: usize = 1;
/// How long an export may take to go.
const EXPORT_REMOVAL_WAIT: Duration = Duration::from_secs(10);
/// Ranges of one disk that are told; of the others their number is.
const RANGES_MAX: usize = 8;

/// A verification.
#[derive(Debug)]
pub struct Verifier {
    context: Arc<Context>,
    daemon: Option<Launched>,
    volume: watch::Sender<Volume>,
    /// What is bad, each disk of a snapshot in a sentence.
    damage: Vec<String>,
    /// The snapshots that it is in.
    damaged: BTreeSet<u32>,
    /// Whether something was read that is not what was written, and not only what cannot be read.
    altered: bool,
}

/// A disk of a snapshot that is verified.
struct Subject<'a> {
    index: usize,
    spec: &'a DiskSpec,
    /// What it held when it was written, where that is known.
    table: Option<DigestTable>,
    /// The chunks to be read.
    chunks: BTreeSet<usize>,
    bad: BTreeSet<usize>,
}

/// What reading a chunk has come to.
enum Found {
    Good,
    Altered,
    Unreadable(String),
}

impl Verifier {
    /// A verification that has just been accepted, or was under way when the agent was restarted.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        let volume = watch::Sender::new(Volume::default());
        Self { context, daemon: None, volume, damage: Vec::new(), damaged: BTreeSet::new(), altered: false }
    }

    /// Reads everything, to whatever end.
    pub async fn run(mut self) -> Outcome {
        let context = Arc::clone(&self.context);
        let read = tokio::select! {
            biased;
            wish = context.gate.ended() => Err(MoveError::Ended(wish)),
            read = self.read() => read,
        };
        let latest = match read {
            Ok(latest) => latest,
            Err(error) => return self.unwind(&error).await,
        };
        if !context.gate.close() {
            let wish = context.gate.ended().await;
            return self.unwind(&MoveError::Ended(wish)).await;
        }
        match self.conclude(&latest).await {
            Ok(outcome) => outcome,
            Err(error) => self.unwind(&error).await,
        }
    }

    /// After a restart of the agent.
    pub async fn recover(self) -> Outcome {
        images::end_leftover_daemons(&self.context.host, &self.context.plan).await;
        self.unwind(&MoveError::AgentRestarted).await
    }

    /// Reads all snapshots; the replica, and what is bad of each disk of its latest snapshot.
    async fn read(&mut self) -> Result<Latest, MoveError> {
        let context = Arc::clone(&self.context);
        let (host, plan) = (&context.host, &context.plan);
        context.begin(StepKind::ReadDisks).await?;
        context.progress.disks(self.volume.subscribe());
        // The plan is in the journal: from here on no layer goes. One that is being merged is waited for.
        let replica = {
            let _in_use = host.layers_in_use.lock().await;
            let record = host.journal.replica(plan.vm.id)?.filter(|record| !record.dropped);
            record.ok_or(MoveError::Stale { what: "the replica is no longer there" })?.replica
        };
        let mut latest = None;
        let mut newer: Vec<Subject> = Vec::new();
        for snapshot in replica.snapshots().rev() {
            if snapshot.damaged && latest.is_some() {
                let text = format!("snapshot {} is known to be damaged, and is not read", snapshot.number);
                context.tell(EventBody::Notice { text }).await;
                continue;
            }
            let mut subjects = self.subjects(&replica, snapshot, &newer).await;
            self.read_snapshot(&replica, snapshot, &mut subjects).await?;
            self.read_variables(&replica, snapshot);
            if latest.is_none() {
                latest = Some(subjects.iter().map(|subject| (subject.table.clone(), subject.bad.clone())).collect());
            }
            newer = subjects;
        }
        let latest = latest.ok_or(MoveError::Stale { what: "the replica has no snapshot" })?;
        drop(newer);
        Ok(Latest { disks: latest, replica })
    }

    /// What is to be read of a snapshot, beside what was read of a newer one.
    async fn subjects<'a>(&self, replica: &'a Replica, snapshot: &Snapshot, newer: &[Subject<'a>]) -> Vec<Subject<'a>> {
        let host = &self.context.host;
        let layer = replica.layer_of(snapshot.number).unwrap_or_default();
        let mut subjects = Vec::with_capacity(replica.disks.len());
        for (index, spec) in replica.disks.iter().enumerate() {
            let table = layers::table_of(host, replica, spec, layer);
            if table.is_none() {
                let (disk, number) = (&spec.name, snapshot.number);
                let text = format!("nothing says what disk {disk} of snapshot {number} held: it is only read");
                self.context.tell(EventBody::Notice { text }).await;
            }
            let chunks = match (newer.get(index), &table) {
                (Some(Subject { table: Some(above), bad, .. }), Some(table)) => match table.differing(above) {
                    Ok(differing) => differing.chain(bad.iter().copied()).collect(),
                    Err(_) => every_chunk(spec),
                },
                _ => every_chunk(spec),
            };
            subjects.push(Subject { index, spec, table, chunks, bad: BTreeSet::new() });
        }
        subjects
    }

    async fn read_snapshot(
        &mut self,
        replica: &Replica,
        snapshot: &Snapshot,
        subjects: &mut [Subject<'_>],
    ) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let (host, plan) = (&context.host, &context.plan);
        let layer = replica.layer_of(snapshot.number).unwrap_or_default();
        let extent = |subject: &Subject, index: &usize| chunk_extent(subject.spec, *index).map_or(0, Extent::length);
        let bytes = |subject: &Subject| subject.chunks.iter().map(|index| extent(subject, index)).sum::<u64>();
        let total: u64 = subjects.iter().map(bytes).sum();
        if total == 0 {
            return Ok(());
        }
        self.volume.send_modify(|volume| volume.total += total);
        let daemon = layers::serve_to_read(host, plan, replica, layer).await?;
        let (machine, socket) = (daemon.machine.clone(), daemon.runtime.nbd_socket());
        self.daemon = Some(daemon);
        let _ = std::fs::remove_file(&socket);
        machine.nbd_server_start(&socket).await?;
        for subject in subjects {
            let id = format!("sterna-verify-{}", subject.index);
            let node = format_node(&subject.spec.name);
            let export = Export { name: id.clone(), id, node, writable: false, bitmaps: Vec::new() };
            machine.export_add(&export).await?;
            self.read_disk(&socket, &export.name, snapshot, subject).await?;
            machine.export_remove(&export.id, EXPORT_REMOVAL_WAIT).await?;
        }
        self.put_away().await;
        Ok(())
    }

    fn read_variables(&mut self, replica: &Replica, snapshot: &Snapshot) {
        let layer = replica.layer_of(snapshot.number).unwrap_or_default();
        if replica.vm.firmware == Firmware::Uefi
            && let Err(error) = variables::read(&self.context.host, replica, layer)
        {
            self.altered = true;
            self.find(snapshot, format!("snapshot {}: {error}", snapshot.number));
        }
    }

    async fn read_disk(
        &mut self,
        socket: &Path,
        export: &str,
        snapshot: &Snapshot,
        subject: &mut Subject<'_>,
    ) -> Result<(), MoveError> {
        let disk = u16::try_from(subject.index).unwrap_or(u16::MAX);
        let open = |source| DiskError::Open { disk, source };
        let client = Client::connect(socket, export, &[BASE_ALLOCATION], CONNECTIONS).await.map_err(open)?;
        let content = content(&client).await.map_err(open)?;
        let (mut altered, mut unreadable, mut words) = (ExtentSet::new(), ExtentSet::new(), None);
        for index in subject.chunks.iter().copied() {
            let Some(extent) = chunk_extent(subject.spec, index) else { continue };
            let expected = subject.table.as_ref().map(|table| table.chunk(index));
            match self.read_chunk(&client, disk, extent, &content, expected).await? {
                Found::Good => {}
                Found::Altered => {
                    altered.insert(extent);
                    subject.bad.insert(index);
                }
                Found::Unreadable(why) => {
                    unreadable.insert(extent);
                    subject.bad.insert(index);
                    words.get_or_insert(why);
                }
            }
            self.volume.send_modify(|volume| volume.done += extent.length());
        }
        client.close().await;
        let of = format!("disk {} of snapshot {}", subject.spec.name, snapshot.number);
        if !altered.is_empty() {
            self.altered = true;
            self.find(snapshot, format!("{of} does not hold what was written to it, at {}", told(&altered)));
        }
        if let Some(words) = words {
            self.find(snapshot, format!("{of} cannot be read at {}: {words}", told(&unreadable)));
        }
        Ok(())
    }

    /// Reads a chunk at the job's rate. One of which nothing is known where all else is was found to be bad before.
    async fn read_chunk(
        &self,
        client: &Client,
        disk: u16,
        extent: Extent,
        content: &ExtentSet,
        expected: Option<Chunk>,
    ) -> Result<Found, MoveError> {
        let mut found = Chunk::Zero;
        if content.within(extent).next().is_some() {
            self.context.limiter.take(usize::try_from(extent.length()).unwrap_or(0)).await;
            found = match read_back(client, disk, extent).await {
                Ok(chunk) => chunk,
                Err(CopyError::Read { source: NbdError::Server { errno, message, .. }, .. }) => {
                    return Ok(Found::Unreadable(format!("error {errno} {message}")));
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(match expected {
            Some(expected) if expected != found => Found::Altered,
            Some(_) | None => Found::Good,
        })
    }

    fn find(&mut self, snapshot: &Snapshot, message: String) {
        warn!(job = %self.context.plan.job, message, "a replica is damaged");
        self.damaged.insert(snapshot.number);
        self.damage.push(message);
    }

    /// Everything was read: what is bad is marked, and told.
    async fn conclude(&mut self, latest: &Latest) -> Result<Outcome, MoveError> {
        let context = Arc::clone(&self.context);
        let (host, plan) = (&context.host, &context.plan);
        if self.damage.is_empty() {
            context.end(StepKind::ReadDisks, self.figures()).await?;
            return Ok(Outcome::Completed { blackout_us: 0 });
        }
        latest.forget_bad(host)?;
        // After the digests: where the agent falls out in between, the next verification finds the same.
        host.journal.change_replica(plan.vm.id, ReplicaChange::Damaged(self.damaged.clone())).await?;
        let failure = self.failure();
        context.tell(EventBody::StepFailed { step: StepKind::ReadDisks, failure: failure.clone() }).await;
        Ok(Outcome::Failed(failure))
    }

    fn failure(&self) -> FailureReport {
        let (host, vm) = (self.context.host.id(), &self.context.plan.vm.name);
        let mut damage = self.damage.iter().cloned();
        FailureReport {
            code: if self.altered { FailureCode::DigestMismatch } else { FailureCode::DiskRead },
            message: damage.next().unwrap_or_default(),
            causes: damage.collect(),
            remedy: format!(
                "the next cycle repairs it, and older snapshots stay damaged: see `sterna replicate show {vm}`; \
                 look for errors of the medium: `journalctl -k` on {host}"
            ),
            host: Some(host.clone()),
        }
    }

    fn figures(&self) -> StepFigures {
        StepFigures { bytes_total: self.volume.borrow().done, passes: 1, ..StepFigures::default() }
    }

    async fn unwind(mut self, error: &MoveError) -> Outcome {
        let context = Arc::clone(&self.context);
        info!(job = %context.plan.job, reason = %error, "unwinding");
        self.put_away().await;
        let ended = context.gate.wish().map(MoveError::Ended);
        let error = ended.as_ref().unwrap_or(error);
        context.unwinding(error).await;
        match error.outcome(&context.host, self.figures()) {
            // What serves the layers reads their heads, and writes nothing.
            Outcome::Failed(failure) if matches!(error, MoveError::Image(_)) => Outcome::Failed(FailureReport {
                code: FailureCode::DiskRead,
                remedy: format!(
                    "see that the pools of {} are mounted; where a layer is lost, remove the replica and begin anew: \
                     `sterna replicate remove {}`",
                    context.host.id(),
                    context.plan.vm.name
                ),
                ..failure
            }),
            outcome => outcome,
        }
    }

    /// Ends what serves the layers.
    async fn put_away(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            images::end_daemon(daemon).await;
        }
    }
}

/// The latest snapshot, read.
struct Latest {
    replica: Replica,
    /// Of each disk what it held, and which chunks are bad.
    disks: Vec<(Option<DigestTable>, BTreeSet<usize>)>,
}

impl Latest {
    /// Notes that it is not known what bad chunks hold, so that they are sent again.
    fn forget_bad(&self, host: &Host) -> Result<(), ImageError> {
        let layer = self.replica.latest().and_then(|latest| self.replica.layer_of(latest.number)).unwrap_or_default();
        for (disk, (table, bad)) in self.replica.disks.iter().zip(&self.disks) {
            let Some(table) = table.as_ref().filter(|_| !bad.is_empty()) else { continue };
            let chunk = |index| if bad.contains(&index) { Chunk::Unknown } else { table.chunk(index) };
            let chunks: Vec<Chunk> = (0..table.count()).map(chunk).collect();
            host.pool(disk)?.write_note(self.replica.vm.id, &disk.name, layer, Note::Digests, &pack(&chunks))?;
        }
        Ok(())
    }
}

/// What of a disk is not known to be zeroes. All of it where what says so may be what is damaged.
async fn content(client: &Client) -> Result<ExtentSet, NbdError> {
    match whole_disk(client).await {
        Ok(spans) => {
            let unread = spans.into_iter().filter(|span| span.content == Content::Unread);
            let mut content = ExtentSet::new();
            unread.for_each(|span| content.insert(span.extent));
            Ok(content)
        }
        Err(NbdError::Server { .. }) => {
            let mut content = ExtentSet::new();
            Extent::between(0, client.size()).into_iter().for_each(|whole| content.insert(whole));
            Ok(content)
        }
        Err(error) => Err(error),
    }
}

fn chunk_extent(disk: &DiskSpec, index: usize) -> Option<Extent> {
    let offset = (index as u64).checked_mul(CHUNK_SIZE)?;
    Extent::between(offset, offset.saturating_add(CHUNK_SIZE).min(disk.size.0))
}

fn every_chunk(disk: &DiskSpec) -> BTreeSet<usize> {
    (0..usize::try_from(disk.size.0.div_ceil(CHUNK_SIZE)).unwrap_or(usize::MAX)).collect()
}

/// Ranges for people.
fn told(ranges: &ExtentSet) -> String {
    let range = |range: Extent| format!("{} for {} bytes", range.offset(), range.length());
    let mut told: Vec<String> = ranges.iter().take(RANGES_MAX).map(range).collect();
    if ranges.count() > RANGES_MAX {
        told.push(format!("{} more ranges, {} bytes in all", ranges.count() - RANGES_MAX, ranges.total()));
    }
    told.join(", ")
}
