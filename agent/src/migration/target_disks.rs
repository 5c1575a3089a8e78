//! The target's disks in a move: one task that writes what comes, and proves it.
//!
//! ```text
//!   lanes ── blocks ──▶ task ── Writer per disk ──▶ NBD
//!                        ▲
//!   job ── applied(n) ───┤  answers once n blocks are written; then flushes and reads back, while the source prepares the next pass
//!       ── prove() ──────┘  flush, read back, roots; the writers are gone after that
//! ```
//!
//! So a later answer also says that what an earlier pass brought is on stable storage: the pause pays for its own pass only.

use std::path::Path;

use futures_util::future::try_join_all;
use sterna_shared::job::DiskMove;
use sterna_shared::vm::DiskSpec;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::disk::copy::target::{Origin, Writer};
use crate::disk::copy::{Block, Body, CopyError};
use crate::disk::digest::Digest;
use crate::disk::nbd::{BASE_ALLOCATION, Client, NbdError};
use crate::link::{BlockFrame, Content, LinkError, Receiver};

/// NBD connections to one export.
const CONNECTIONS: usize = 4;
/// Questions of the job that wait for the task.
const QUESTIONS_MAX: usize = 4;

/// The name under which a disk of the plan is exported at the target.
#[must_use]
pub fn export_name(index: usize) -> String {
    format!("sterna-target-{index}")
}

/// The disks of one job at its target.
#[derive(Debug)]
pub struct TargetDisks {
    questions: mpsc::Sender<Question>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Question {
    Applied { blocks: u64, reply: oneshot::Sender<Result<(), TargetDiskError>> },
    Prove { reply: oneshot::Sender<Result<Vec<Digest>, TargetDiskError>> },
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
    /// The session ended before all had come.
    #[error("the session ended before all blocks had come")]
    Link(#[from] LinkError),
    /// The task is gone: an earlier error was told.
    #[error("the disks of this job are no longer written")]
    Gone,
}

impl TargetDisks {
    /// Opens the exports and begins to write. The images are new; `origin` says what one holds.
    ///
    /// # Errors
    /// An export cannot be opened, or has another size than the plan says.
    pub async fn open(
        socket: &Path,
        disks: &[DiskMove],
        origin: impl Fn(&DiskSpec) -> Origin,
        blocks: Receiver<BlockFrame>,
    ) -> Result<Self, TargetDiskError> {
        let mut writers = Vec::with_capacity(disks.len());
        for (index, disk) in disks.iter().enumerate() {
            let client = Client::connect(socket, &export_name(index), &[BASE_ALLOCATION], CONNECTIONS).await;
            let client = client.map_err(|source| TargetDiskError::Open { disk: index, source })?;
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            writers.push(Writer::new(client, number, disk.target.size.0, origin(&disk.target))?);
        }
        let (questions, receiver) = mpsc::channel(QUESTIONS_MAX);
        let task = tokio::spawn(Task { writers, applied: 0, fault: None }.run(blocks, receiver));
        Ok(Self { questions, task })
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

    /// Flushes, reads back what was not yet, and gives one digest a disk. Nothing is written after that.
    ///
    /// # Errors
    /// Reading or flushing failed.
    pub async fn prove(self) -> Result<Vec<Digest>, TargetDiskError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Prove { reply }).await.map_err(|_| TargetDiskError::Gone)?;
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
}

impl Task {
    async fn run(mut self, mut blocks: Receiver<BlockFrame>, mut questions: mpsc::Receiver<Question>) {
        let mut open = true;
        let mut due: Option<(u64, oneshot::Sender<Result<(), TargetDiskError>>)> = None;
        loop {
            if let Some((count, reply)) = due.take() {
                if self.applied < count && self.fault.is_none() && open {
                    due = Some((count, reply));
                } else {
                    let outcome = self.settle(count).await;
                    let sound = outcome.is_ok();
                    let _ = reply.send(outcome);
                    // The source now reads for the next pass; what was written is proven meanwhile.
                    if sound && let Err(error) = self.secure().await {
                        self.fault = Some(error);
                    }
                }
            }
            tokio::select! {
                block = blocks.recv(), if open && self.fault.is_none() => match block {
                    Ok(Some(frame)) => if let Err(error) = self.apply(frame).await {
                        self.fault = Some(error);
                    },
                    Ok(None) => open = false,
                    Err(error) => {
                        open = false;
                        self.fault = Some(error.into());
                    }
                },
                question = questions.recv() => match question {
                    Some(Question::Applied { blocks, reply }) => due = Some((blocks, reply)),
                    Some(Question::Prove { reply }) => {
                        let _ = reply.send(self.prove().await);
                        return;
                    }
                    None => return,
                },
            }
        }
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

    async fn prove(&mut self) -> Result<Vec<Digest>, TargetDiskError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        self.secure().await?;
        self.writers.iter_mut().map(|writer| writer.table().root().ok_or(TargetDiskError::Gone)).collect()
    }
}
