//! The target's disks in a move: one task that writes what comes, and proves it.
//!
//! ```text
//!   lanes ── blocks ──▶ task ── Writer per disk ──▶ NBD
//!                        ▲
//!   job ── applied(n) ───┤  answers once n blocks are written; then flushes and reads back, while the source prepares the next pass
//!       ── held(c) ──────┤  what an earlier move has left, read back
//!       ── prove() ──────┘  flush, read back, roots; the writers are gone after that
//! ```
//!
//! So a later answer also says that what an earlier pass brought is on stable storage: the pause pays for its own pass only.
//!
//! Until pass 0 has come wholly, what was received is journalled every two seconds while it grows: a flush that begins
//! with the ranges written so far, and then one transaction. Both run beside the writing, which they do not hold up.

use std::path::Path;
use std::time::Duration;

use futures_util::future::try_join_all;
use sterna_shared::id::{JobId, VmId};
use sterna_shared::job::DiskMove;
use sterna_shared::vm::DiskSpec;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{debug, warn};

use crate::disk::copy::changes::digest_changes;
use crate::disk::copy::target::{Origin, Writer};
use crate::disk::copy::{Block, Body, CopyError};
use crate::disk::digest::{Chunk, Digest, DigestTable};
use crate::disk::extent::ExtentSet;
use crate::disk::nbd::{BASE_ALLOCATION, Client, NbdError};
use crate::disk::page_cache::PageCache;
use crate::journal::{Journal, ReplicaChange};
use crate::link::{BlockFrame, Content, LinkError, Receiver};

/// NBD connections to one export.
const CONNECTIONS: usize = 4;
/// Questions of the job that wait for the task.
const QUESTIONS_MAX: usize = 4;
/// Between two writings of what was received, so also how much copying a crash can cost at most.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);

/// The name under which a disk of the plan is exported at the target.
#[must_use]
pub fn export_name(index: usize) -> String {
    format!("sterna-target-{index}")
}

/// The disks of one job at its target.
#[derive(Debug)]
pub struct TargetDisks {
    questions: mpsc::Sender<Question>,
    failed: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Question {
    Applied { blocks: u64, reply: oneshot::Sender<Result<(), TargetDiskError>> },
    Held { disk: u16, first: u64, reply: oneshot::Sender<Result<Vec<Chunk>, TargetDiskError>> },
    Save { reply: oneshot::Sender<()> },
    Prove { changes: bool, reply: oneshot::Sender<Result<Vec<Proof>, TargetDiskError>> },
}

/// What a disk holds in the end.
#[derive(Debug, Clone)]
pub struct Proof {
    /// Of the whole disk, or of what was received.
    pub digest: Digest,
    /// Of each MiB.
    pub table: DigestTable,
    /// How much was received.
    pub received: u64,
}

/// What the images of a job hold at its beginning, and where it is written down what comes.
pub struct Images<F> {
    /// What an earlier move has received of each disk, in the plan's order; none where the image is new.
    pub held: Vec<Option<ExtentSet>>,
    /// What a new image holds.
    pub origin: F,
    /// The place of each in the page cache, in the plan's order, where they are written through it.
    pub page_caches: Vec<Option<PageCache>>,
    /// What is known of the content of each, in the plan's order; nothing where that is left out.
    pub tables: Vec<Option<DigestTable>>,
    /// Where it is written down; nowhere where nothing is to be kept of a copy that is cut.
    pub ledger: Option<Ledger>,
}

/// Where it is written down what was received.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// The journal.
    pub journal: Journal,
    /// The VM.
    pub vm: VmId,
    /// The job.
    pub job: JobId,
    /// Where in the journal.
    pub place: Place,
}

/// Of what the images are that are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Of a move into this host.
    Partial,
    /// Of a replica here: a layer.
    Replica,
}

/// Why the target's disks are not whole.
#[derive(Debug, thiserror::Error)]
pub enum TargetDiskError {
    /// An export could not be opened.
    #[error("the target's disk {disk} could not be opened")]
    Open {
        /// The disk, by its place in the plan.
        disk: usize,
        /// Why.
        #[source]
        source: NbdError,
    },
    /// A block could not be written, or did not fit.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The peer sent a block of a disk that the plan does not have.
    #[error("the source sent a block of disk {disk}; the plan has {count}")]
    UnknownDisk {
        /// The disk.
        disk: u16,
        /// How many there are.
        count: usize,
    },
    /// The source asked for a chunk that no disk has.
    #[error("the source asked what chunk {chunk} of disk {disk} holds, which there is not; end the session")]
    UnknownChunk {
        /// The disk.
        disk: u16,
        /// The chunk.
        chunk: u64,
    },
    /// The session ended before all had come.
    #[error("the session ended before all blocks had come")]
    Link(#[from] LinkError),
    /// The task is gone: an earlier error was told.
    #[error("the disks of this job are no longer written")]
    Gone,
}

impl TargetDisks {
    /// Opens the exports and begins to write; [`Images`] says what is in them.
    ///
    /// # Errors
    /// An export cannot be opened, or has another size than the plan says.
    pub async fn open(
        socket: &Path,
        disks: &[DiskMove],
        images: Images<impl Fn(&DiskSpec) -> Origin>,
        blocks: Receiver<BlockFrame>,
    ) -> Result<Self, TargetDiskError> {
        let mut writers = Vec::with_capacity(disks.len());
        let mut held = images.held.into_iter();
        let mut page_caches = images.page_caches.into_iter();
        let mut tables = images.tables.into_iter();
        for (index, disk) in disks.iter().enumerate() {
            let client = Client::connect(socket, &export_name(index), &[BASE_ALLOCATION], CONNECTIONS).await;
            let client = client.map_err(|source| TargetDiskError::Open { disk: index, source })?;
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            let size = disk.target.size.0;
            let writer = match held.next().flatten() {
                Some(received) => Writer::resume(client, number, size, received)?,
                None => Writer::new(client, number, size, (images.origin)(&disk.target))?,
            };
            let writer = writer.through(page_caches.next().flatten());
            writers.push(match tables.next().flatten() {
                Some(table) => writer.knowing(table),
                None => writer,
            });
        }
        let (questions, receiver) = mpsc::channel(QUESTIONS_MAX);
        let saved = received_bytes(&writers);
        let (tell_failed, failed) = watch::channel(false);
        let task = Task {
            writers,
            applied: 0,
            fault: None,
            tell_failed,
            ledger: images.ledger,
            saved,
            saving: JoinSet::new(),
            pass_0: true,
        };
        let task = tokio::spawn(task.run(blocks, receiver));
        Ok(Self { questions, failed, task })
    }

    /// Waits until no more can be written, and says why. A source whose blocks nobody takes any more would wait for room, and
    /// never come to ask.
    pub async fn failed(&self) -> TargetDiskError {
        let mut failed = self.failed.clone();
        let _ = failed.wait_for(|failed| *failed).await;
        // To whoever asked first the reason was told then.
        self.applied(0).await.err().unwrap_or(TargetDiskError::Gone)
    }

    /// Waits until that many blocks of the session are written.
    ///
    /// # Errors
    /// One could not be, or the session ended.
    pub async fn applied(&self, blocks: u64) -> Result<(), TargetDiskError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Applied { blocks, reply }).await.map_err(|_| TargetDiskError::Gone)?;
        answer.await.map_err(|_| TargetDiskError::Gone)?
    }

    /// What the chunks of a disk hold from `first` on, as far as an earlier move has left them; at least one of them.
    ///
    /// # Errors
    /// Reading failed, or there is no such chunk.
    pub async fn held(&self, disk: u16, first: u64) -> Result<Vec<Chunk>, TargetDiskError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Held { disk, first, reply }).await.map_err(|_| TargetDiskError::Gone)?;
        answer.await.map_err(|_| TargetDiskError::Gone)?
    }

    /// Writes down what was received, now; in vain where the disks or the journal do not do.
    pub async fn save(&self) {
        let (reply, answer) = oneshot::channel();
        if self.questions.send(Question::Save { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Flushes, reads back what was not yet, and gives one digest a disk: of all of it, or of the `changes` alone that were
    /// received. Nothing is written after that.
    ///
    /// # Errors
    /// Reading or flushing failed.
    pub async fn prove(self, changes: bool) -> Result<Vec<Proof>, TargetDiskError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Prove { changes, reply }).await.map_err(|_| TargetDiskError::Gone)?;
        answer.await.map_err(|_| TargetDiskError::Gone)?
    }
}

impl Drop for TargetDisks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    writers: Vec<Writer>,
    applied: u64,
    fault: Option<TargetDiskError>,
    tell_failed: watch::Sender<bool>,
    ledger: Option<Ledger>,
    /// How many bytes the journal has as received, or will have once `saving` is done.
    saved: u64,
    saving: JoinSet<()>,
    /// Whether the first pass is still coming: afterwards there is nothing that was not received.
    pass_0: bool,
}

impl Task {
    async fn run(mut self, mut blocks: Receiver<BlockFrame>, mut questions: mpsc::Receiver<Question>) {
        let mut open = true;
        let mut ticks = interval_at(Instant::now() + SAVE_INTERVAL, SAVE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Option<(u64, oneshot::Sender<Result<(), TargetDiskError>>)> = None;
        loop {
            if let Some((count, reply)) = due.take() {
                if self.applied < count && self.fault.is_none() && open {
                    due = Some((count, reply));
                } else {
                    let outcome = self.settle(count).await;
                    let sound = outcome.is_ok();
                    if sound && self.pass_0 {
                        self.begin_to_save();
                        self.pass_0 = false;
                    }
                    let _ = reply.send(outcome);
                    // The source now reads for the next pass; what was written is proven meanwhile.
                    if sound && let Err(error) = self.secure().await {
                        self.fail(error);
                    }
                }
            }
            tokio::select! {
                block = blocks.recv(), if open && self.fault.is_none() => match block {
                    Ok(Some(frame)) => if let Err(error) = self.apply(frame).await {
                        self.fail(error);
                    },
                    Ok(None) => open = false,
                    Err(error) => {
                        open = false;
                        self.fail(error.into());
                    }
                },
                question = questions.recv() => match question {
                    Some(Question::Applied { blocks, reply }) => due = Some((blocks, reply)),
                    Some(Question::Held { disk, first, reply }) => drop(reply.send(self.held(disk, first).await)),
                    Some(Question::Save { reply }) => {
                        while self.saving.join_next().await.is_some() {}
                        self.begin_to_save();
                        while self.saving.join_next().await.is_some() {}
                        let _ = reply.send(());
                    }
                    Some(Question::Prove { changes, reply }) => {
                        let _ = reply.send(self.prove(changes).await);
                        return;
                    }
                    None => return,
                },
                _ = ticks.tick(), if self.pass_0 => self.begin_to_save(),
            }
        }
    }

    fn fail(&mut self, fault: TargetDiskError) {
        self.fault = Some(fault);
        self.tell_failed.send_replace(true);
    }

    async fn apply(&mut self, frame: BlockFrame) -> Result<(), TargetDiskError> {
        let BlockFrame { disk, offset, content } = frame;
        let count = self.writers.len();
        let writer = self.writers.get_mut(usize::from(disk)).ok_or(TargetDiskError::UnknownDisk { disk, count })?;
        let body = match content {
            Content::Data(bytes) => Body::Data(bytes),
            Content::Zero(length) => Body::Zero(length),
        };
        writer.apply(Block { disk, offset, body }).await?;
        self.applied += 1;
        Ok(())
    }

    async fn held(&mut self, disk: u16, first: u64) -> Result<Vec<Chunk>, TargetDiskError> {
        let count = self.writers.len();
        let writer = self.writers.get_mut(usize::from(disk)).ok_or(TargetDiskError::UnknownDisk { disk, count })?;
        let unknown = TargetDiskError::UnknownChunk { disk, chunk: first };
        let first = usize::try_from(first).ok().filter(|first| *first < writer.table().count()).ok_or(unknown)?;
        Ok(writer.held(first).await?)
    }

    /// Has what was received so far written down beside what comes, if it is more than before and no earlier writing is
    /// still on its way.
    fn begin_to_save(&mut self) {
        while self.saving.try_join_next().is_some() {}
        let Some(ledger) = self.ledger.clone() else { return };
        let received_bytes = received_bytes(&self.writers);
        if received_bytes == self.saved || !self.saving.is_empty() {
            return;
        }
        self.saved = received_bytes;
        let received = self.writers.iter().map(|writer| writer.received().clone()).collect();
        let clients = self.writers.iter().map(|writer| writer.client().clone()).collect();
        self.saving.spawn(save(ledger, received, clients));
    }

    async fn settle(&mut self, count: u64) -> Result<(), TargetDiskError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if self.applied < count {
            return Err(TargetDiskError::Link(LinkError::Closed));
        }
        for writer in &mut self.writers {
            writer.barrier().await?;
        }
        Ok(())
    }

    async fn secure(&mut self) -> Result<(), TargetDiskError> {
        try_join_all(self.writers.iter_mut().map(Writer::secure)).await?;
        Ok(())
    }

    async fn prove(&mut self, changes: bool) -> Result<Vec<Proof>, TargetDiskError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        self.secure().await?;
        let mut proofs = Vec::with_capacity(self.writers.len());
        for (disk, writer) in (0_u16..).zip(&mut self.writers) {
            let root = writer.table().root().ok_or(TargetDiskError::Gone)?;
            let digest = match changes {
                true => digest_changes(writer.client(), disk, writer.received()).await?,
                false => root,
            };
            let received = writer.received().total();
            proofs.push(Proof { digest, table: writer.table().clone(), received });
        }
        Ok(proofs)
    }
}

fn received_bytes(writers: &[Writer]) -> u64 {
    writers.iter().map(|writer| writer.received().total()).sum()
}

/// Flushes what was received, and journals it. A failure costs the next move what it would have spared, and is not this
/// one's end: a disk that cannot be written is told by its writes.
async fn save(ledger: Ledger, received: Vec<ExtentSet>, clients: Vec<Client>) {
    let Ledger { journal, vm, job, place } = ledger;
    for client in clients {
        if let Err(error) = client.flush().await {
            debug!(%job, %error, "what was received is not written down");
            return;
        }
    }
    let noted = match place {
        Place::Partial => journal.note_received(vm, job, received).await,
        Place::Replica => journal.change_replica(vm, ReplicaChange::Received(received)).await.map(drop),
    };
    if let Err(error) = noted {
        warn!(%job, error = &error as &dyn std::error::Error, "what was received is not written down");
    }
}
