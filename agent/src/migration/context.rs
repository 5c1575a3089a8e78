//! What every part of a job needs: its plan, its VM's keeper, and the ways to tell how it goes.

use std::sync::Arc;

use sterna_shared::id::{DiskName, HostId};
use sterna_shared::job::{EventBody, FailureCode, FailureReport, Finding, Plan, StepFigures, StepKind};
use tokio::sync::watch;
use tracing::info;

use crate::disk::copy::CopyError;
use crate::disk::nbd::NbdError;
use crate::guest::adapter::AdapterError;
use crate::guest::health;
use crate::host::Host;
use crate::host::headroom::NearlyFull;
use crate::host::room::RoomError;
use crate::hypervisor::qemu::MachineError;
use crate::hypervisor::qemu::runtime::RuntimeError;
use crate::journal::JournalError;
use crate::link::{LaneStatus, Limiter, LinkError};
use crate::memory::RelayError;
use crate::migration::conversation::ConversationError;
use crate::migration::disks::DiskError;
use crate::migration::gate::{Gate, Wish};
use crate::migration::images::ImageError;
use crate::migration::keeper::{Keeper, KeeperError, Stopping};
use crate::migration::progress::ProgressBoard;
use crate::migration::target_disks::TargetDiskError;
use crate::teller::NotTold;

/// NBD's number of a server that has no room.
const NBD_NO_SPACE: u32 = 28;

/// What every part of a job needs.
#[derive(Debug)]
pub struct Context {
    /// This host.
    pub host: Arc<Host>,
    /// What is to be done.
    pub plan: Plan,
    /// Who keeps the VM.
    pub keeper: Keeper,
    /// The job's rate.
    pub limiter: Arc<Limiter>,
    /// Until when it can be ended.
    pub gate: Gate,
    /// How far it is.
    pub progress: ProgressBoard,
}

/// How a job ended at this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it should.
    Completed {
        /// How long the guest did not execute.
        blackout_us: u64,
    },
    /// It was cancelled; the VM is as it was.
    Terminated,
    /// It was killed, which everybody knows already; the VM is as it was.
    Killed,
    /// It was suspended; the VM is as it was, and what the target has received is kept.
    Suspended {
        /// What was done.
        figures: StepFigures,
    },
    /// The target cannot take the VM as planned, and an operator may know better; the VM is as it was.
    Asked {
        /// Why not.
        failure: FailureReport,
        /// What was done.
        figures: StepFigures,
    },
    /// Every disk was read through; the coordinator goes on with the check.
    Read {
        /// What could not be read.
        findings: Vec<Finding>,
        /// What was.
        figures: StepFigures,
    },
    /// It failed; the VM is as it was.
    Failed(FailureReport),
    /// This host followed, and its part is over; the source tells the end.
    Followed,
    /// The agent is stopping: the job is taken up by the next one.
    Stopping,
}

impl Context {
    /// Tells that a step begins.
    ///
    /// # Errors
    /// The journal's writer is gone.
    pub async fn begin(&self, step: StepKind) -> Result<StepKind, MoveError> {
        self.progress.step(step);
        info!(job = %self.plan.job, %step, "step begins");
        self.host.tell(self.plan.job, EventBody::StepStarted { step }).await?;
        Ok(step)
    }

    /// Tells that a step has ended well.
    ///
    /// # Errors
    /// The journal's writer is gone.
    pub async fn end(&self, step: StepKind, figures: StepFigures) -> Result<(), MoveError> {
        self.host.tell(self.plan.job, EventBody::StepFinished { step, figures }).await?;
        Ok(())
    }

    /// Tells something that may be lost when the agent is stopping.
    pub async fn tell(&self, body: EventBody) {
        let _ = self.host.tell(self.plan.job, body).await;
    }

    /// Tells that the job is being undone; one that is suspended or waits for an answer has not failed in its step.
    pub async fn unwinding(&self, error: &MoveError) {
        if matches!(error, MoveError::Ended(Wish::Suspend | Wish::Kill)) || error.can_be_answered() {
            return;
        }
        if let Some(step) = self.progress.current_step() {
            self.tell(EventBody::StepFailed { step, failure: error.report(&self.host) }).await;
        }
    }

    /// Tells of lanes that go down and come back, for as long as the session lasts.
    pub fn watch_lanes(self: &Arc<Self>, mut status: watch::Receiver<Vec<LaneStatus>>) {
        let context = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut down_before = 0;
            while status.changed().await.is_ok() {
                let lanes = status.borrow_and_update().clone();
                if lanes.iter().any(|lane| matches!(lane, LaneStatus::Ended)) {
                    return; // The session is over; nothing waits for it any more.
                }
                let down = lanes.iter().filter(|lane| matches!(lane, LaneStatus::Down { .. })).count();
                let text = match (down_before, down) {
                    (0, 1..) => {
                        format!("lanes down: {down} of {}; what they carry waits until they are back", lanes.len())
                    }
                    (1.., 0) => "all lanes are up again; the move goes on where it was".to_owned(),
                    _ => continue,
                };
                down_before = down;
                let Some(context) = context.upgrade() else { return };
                context.tell(EventBody::Notice { text }).await;
            }
        });
    }
}

/// Why a move was given up. The VM is unharmed in each case.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// An operator ended it, for good or for now.
    #[error("the job was {}", match .0 { Wish::Suspend => "suspended", Wish::Cancel => "cancelled", Wish::Kill => "killed" })]
    Ended(Wish),
    /// The agent was restarted while disks or memory were copied.
    #[error("the agent was restarted in the middle of the job")]
    AgentRestarted,
    /// The world is not as it was when the move was planned.
    #[error("{what}")]
    Stale {
        /// What has changed.
        what: &'static str,
    },
    /// A phase came before the one it needs: a fault of ours.
    #[error("a part of the move is missing; this is a fault of Sterna")]
    NotConnected,
    /// The target's agent is not reached.
    #[error("no session with {peer}")]
    Connect {
        /// The target.
        peer: HostId,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The two agents could not go on talking.
    #[error(transparent)]
    Conversation(#[from] ConversationError),
    /// A disk could not be copied.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk could not be written.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// What came for the disks could not be taken.
    #[error(transparent)]
    TargetDisk(#[from] TargetDiskError),
    /// The source asked for something before its time.
    #[error("the source said {message:?} before its time")]
    OutOfOrder {
        /// What it said.
        message: &'static str,
    },
    /// The agent is stopping.
    #[error(transparent)]
    NotTold(#[from] NotTold),
    /// An image could not be made or served.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// QEMU did not do as told.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// QEMU's migration ended before its time.
    #[error(transparent)]
    MigrationEnded(Arc<MachineError>),
    /// The VM does not allow it.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Memory could not be carried.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The runtime directory is not usable.
    #[error(transparent)]
    Runtime(RuntimeError),
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The guest would have stood still for too long.
    #[error("the guest would have stood still for more than {limit_ms} ms")]
    Blackout {
        /// The limit.
        limit_ms: u32,
    },
    /// The copies differ.
    #[error("disk {disk} at the target does not equal the source's")]
    DigestsDiffer {
        /// The disk.
        disk: DiskName,
    },
    /// The target proved too little.
    #[error("the target proved {found} disks of {expected}")]
    ProofIncomplete {
        /// How many there are.
        expected: usize,
        /// How many it proved.
        found: usize,
    },
    /// The guest did not obey its power button.
    #[error("the guest did not shut down within {seconds} s after its power button was pressed")]
    NotShutDown {
        /// How long it had.
        seconds: u64,
    },
    /// The system on a clone's disks was not adapted.
    #[error(transparent)]
    Adaptation(#[from] AdapterError),
    /// A guest that was rehearsed is not healthy.
    #[error(transparent)]
    Unhealthy(#[from] health::Unhealthy),
    /// What is free here is held for others.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// A replication cycle leaves room for guests.
    #[error(transparent)]
    NearlyFull(#[from] NearlyFull),
    /// The target would not run the VM.
    #[error("{target} would not run the VM")]
    Refused {
        /// The target.
        target: HostId,
    },
}

impl From<Stopping> for MoveError {
    fn from(stopping: Stopping) -> Self {
        Self::Keeper(stopping.into())
    }
}

impl MoveError {
    /// Whether an operator may know what to do: the target would take the VM if it had the room.
    #[must_use]
    pub fn can_be_answered(&self) -> bool {
        match self {
            Self::Conversation(ConversationError::Failed { failure, .. }) => failure.code == FailureCode::PoolFull,
            _ => false,
        }
    }

    /// How a job ends that ended so.
    #[must_use]
    pub fn outcome(&self, host: &Host, figures: StepFigures) -> Outcome {
        match self {
            Self::Ended(Wish::Cancel) => Outcome::Terminated,
            Self::Ended(Wish::Kill) => Outcome::Killed,
            Self::Ended(Wish::Suspend) => Outcome::Suspended { figures },
            error if error.can_be_answered() => Outcome::Asked { failure: error.report(host), figures },
            error => Outcome::Failed(error.report(host)),
        }
    }

    /// Whether the target says that the job is over there.
    #[must_use]
    pub fn is_over_at_target(&self) -> bool {
        matches!(self, Self::Conversation(ConversationError::Failed { failure, .. })
            if failure.code == FailureCode::AgentRestarted)
    }

    /// As everybody is told.
    #[must_use]
    pub fn report(&self, host: &Host) -> FailureReport {
        use FailureCode as F;
        let (code, remedy) = match self {
            Self::Ended(Wish::Suspend) => (F::Suspended, "let it go on with `sterna job state JOB start`"),
            Self::Ended(Wish::Cancel | Wish::Kill) => (F::Cancelled, "nothing is left to do"),
            Self::AgentRestarted => (F::AgentRestarted, "give the same command again"),
            Self::Stale { .. } => (F::PlanStale, "look at the VM and plan the move again"),
            Self::NotConnected => (F::Internal, "report this with the agent's log"),
            Self::Connect { .. } => {
                (F::LinkLost, "check the target's agent, its address and its certificate with `sterna doctor`")
            }
            Self::Conversation(ConversationError::Failed { failure, .. }) => return FailureReport::clone(failure),
            Self::Conversation(ConversationError::Link { .. } | ConversationError::Late { .. }) => {
                (F::LinkLost, "check the network between the two hosts, then start the move again")
            }
            Self::Conversation(_) => (F::PeerMisbehaved, "check that both agents are of fitting versions"),
            Self::Disk(_) => (F::DiskRead, "check the source's pool and disk, then start the move again"),
            Self::OutOfOrder { .. } => (F::PeerMisbehaved, "check that both agents are of fitting versions"),
            Self::NotTold(_) => (F::AgentRestarted, "start the move again"),
            Self::TargetDisk(TargetDiskError::Link(_)) => {
                (F::LinkLost, "check the network between the two hosts, then start the move again")
            }
            Self::Room(RoomError::Journal(_)) => (F::Journal, "check the disk that holds the agent's state directory"),
            Self::Room(RoomError::Memory { .. }) => {
                (F::TargetRefused, "choose another target, or drop a planned VM there: `sterna plan list`")
            }
            Self::Room(RoomError::Pool { .. }) => (
                F::PoolFull,
                "drop a planned VM (`sterna plan list`), or give the disks another pool: `sterna job answer JOB`",
            ),
            Self::NearlyFull(_) => {
                (F::PoolNearlyFull, "make room in the pool: keep fewer snapshots, or move a VM elsewhere")
            }
            Self::TargetDisk(_) | Self::Copy(_) | Self::Image(_) if no_room(self) => {
                (F::PoolFull, "make room in the pool, or give its disks another: `sterna job answer JOB`")
            }
            Self::TargetDisk(_) => (F::DiskWrite, "check the free space and the health of the target's pool"),
            Self::Copy(CopyError::Write { .. } | CopyError::Flush { .. }) => {
                (F::DiskWrite, "check the free space and the health of the target's pool")
            }
            Self::Copy(_) => (F::DiskRead, "check the pool and the disk, then start the move again"),
            Self::Image(_) => (F::DiskWrite, "remove what stands in the way at the target, or choose another pool"),
            Self::Machine(_) | Self::Runtime(_) => (F::Hypervisor, "look at QEMU's log on the host named"),
            Self::Keeper(_) => (F::Hypervisor, "look at the VM with `sterna vm show`"),
            Self::Relay(_) | Self::MigrationEnded(_) => (F::MemoryCopy, "start the move again"),
            Self::Journal(_) => (F::Journal, "check the disk that holds the agent's state directory"),
            Self::Blackout { .. } => (F::BlackoutExceeded, "allow more with --max-blackout, or move at a quieter time"),
            Self::NotShutDown { .. } => (
                F::GuestNotShutDown,
                "shut it down from inside and cut it over again, or have it stopped with --force, or move it live",
            ),
            Self::DigestsDiffer { .. } | Self::ProofIncomplete { .. } => {
                (F::DigestMismatch, "check the target's disk and memory for faults before moving again")
            }
            Self::Adaptation(_) => {
                (F::OsAdaptation, "make it of another snapshot, or leave the system as it is with --skip-os-adaptation")
            }
            Self::Unhealthy(_) => (
                F::Unhealthy,
                "look at such a clone yourself (`sterna clone create VM --start`, `sterna vm console CLONE`), or give it longer with --probe-timeout",
            ),
            Self::Refused { .. } => (F::TargetRefused, "look at the target agent's log, then start the move again"),
        };
        host.failure(code, self, remedy)
    }
}

/// Whether it came to this because a file system or a volume group is full.
fn no_room(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull);
        io || matches!(cause.downcast_ref::<NbdError>(), Some(NbdError::Server { errno: NBD_NO_SPACE, .. }))
    })
}
