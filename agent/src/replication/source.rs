//! The source of a replication cycle.
//!
//! ```text
//!   prepare ─────────────────────────────▶ copy_disks ────────────▶ commit
//!   which snapshot has the target?         what has changed, or     the target compares digests, and has
//!   the point in time, of all disks        differs, is sent         the snapshot from one instant on
//!      └─────────── any failure, any cancel: the point in time goes, its bitmaps stay for the next cycle
//! ```
//!
//! **Contract.** The guest runs on, and waits for nobody. Whatever ends a cycle, the next one sends what is missing: what was
//! recorded is given up only once the target has said that the snapshot is whole. What is put aside for it never takes the last room
//! of the guest's own pool ([`crate::host::headroom`]).

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{StepFigures, StepKind, Volume};
use sterna_shared::peer::attach::SessionId;
use sterna_shared::peer::message::Message;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::frozen::{FrozenDisks, Since, clear, remove_scratch, source_disks};
use super::{rest, variables};
use crate::link::Session;
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::conversation::Conversation;
use crate::migration::dial::{ADMISSION_WAIT, dial, pump};
use crate::migration::source::resume::held_table;
use crate::migration::tally::Tally;

/// How long the target may take to make a layer and serve it.
const BEGIN_WAIT: Duration = Duration::from_secs(120);
/// How long it may take to write what was sent, and then to read it back.
const APPLY_WAIT: Duration = Duration::from_secs(600);
/// How long it may take to undo its part.
const ABORT_WAIT: Duration = Duration::from_secs(20);
/// How long the lanes may take to deliver the end.
const CLOSE_WAIT: Duration = Duration::from_secs(10);
/// Blocks between reading and the lanes.
const BLOCKS_MAX: usize = 32;

/// A cycle, led by this host.
#[derive(Debug)]
pub struct CycleSource {
    context: Arc<Context>,
    session: SessionId,
    incarnation: u32,
    link: Option<Session>,
    conversation: Option<Conversation>,
    disks: Option<FrozenDisks>,
    /// How much of each disk the target can tell of.
    held: Vec<u64>,
    volume: Option<watch::Receiver<Volume>>,
    tally: Tally,
}

impl CycleSource {
    /// A cycle that has just been accepted, or is taken up after a restart of the agent.
    #[must_use]
    pub fn new(context: Arc<Context>, session: SessionId, incarnation: u32) -> Self {
        let (link, conversation, disks, volume) = (None, None, None, None);
        Self {
            context,
            session,
            incarnation,
            link,
            conversation,
            disks,
            held: Vec::new(),
            volume,
            tally: Tally::default(),
        }
    }

    /// Carries the cycle out, to whatever end.
    pub async fn run(mut self) -> Outcome {
        let context = Arc::clone(&self.context);
        let done = tokio::select! {
            biased;
            wish = context.gate.ended() => Err(MoveError::Ended(wish)),
            full = pools_fill_up(&context) => Err(full),
            done = self.steps() => done,
        };
        match done {
            Ok(()) => {
                self.put_away().await;
                self.close().await;
                Outcome::Completed { blackout_us: 0 }
            }
            Err(error) => self.unwind(error).await,
        }
    }

    /// After a restart of the agent: the next cycle does better.
    pub async fn recover(mut self) -> Outcome {
        // Before anything else: it may stand still.
        rest::end_left_over(&self.context).await;
        // The target still knows the session of the agent that was.
        let reached = tokio::time::timeout(ADMISSION_WAIT, self.connect()).await;
        if !matches!(reached, Ok(Ok(()))) {
            info!(job = %self.context.plan.job, "the target is not reached; it gives up by itself");
        }
        self.unwind(MoveError::AgentRestarted).await
    }

    async fn connect(&mut self) -> Result<(), MoveError> {
        let (link, conversation) = dial(&self.context, self.session, self.incarnation).await?;
        (self.link, self.conversation) = (Some(link), Some(conversation));
        Ok(())
    }

    async fn steps(&mut self) -> Result<(), MoveError> {
        self.prepare().await?;
        let digests = self.copy_disks().await?;
        self.commit(digests).await
    }

    async fn prepare(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Prepare).await?;
        self.connect().await?;
        let conversation = self.conversation.as_mut().ok_or(MoveError::NotConnected)?;
        let latest = |answer: &Message| match answer {
            Message::CycleOpened { latest, attempt, part } => {
                Some((latest.map(|job| Since { job, attempt: *attempt }), *part))
            }
            _ => None,
        };
        let (latest, part) = conversation.ask(&Message::CycleOpen, "cycle opened", BEGIN_WAIT, latest).await?;
        let disks = FrozenDisks::take(&context, latest, part).await?;
        context.progress.disks(disks.volume());
        self.volume = Some(disks.volume());
        let ((taken_at, consistency), changes) = (disks.point(), disks.reads_changes());
        self.disks = Some(disks);
        let variables = variables::capture(&context.host, &context.plan)?;
        let begin = Message::CycleBegin { taken_at, consistency, changes, variables };
        let held = |answer: &Message| match answer {
            Message::Prepared { held } => Some(held.clone()),
            _ => None,
        };
        self.held = conversation.ask(&begin, "prepared", BEGIN_WAIT, held).await?;
        info!(job = %context.plan.job, changes, "the point in time is taken");
        context.end(step, StepFigures::default()).await
    }

    async fn copy_disks(&mut self) -> Result<Vec<[u8; 32]>, MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::CopyDisks).await?;
        let (Some(disks), Some(link), Some(conversation)) = (&self.disks, &self.link, &mut self.conversation) else {
            return Err(MoveError::NotConnected);
        };
        let mut known = Vec::new();
        if !disks.reads_changes() {
            for (index, disk) in (0_u16..).zip(&context.plan.disks) {
                let tells = self.held.get(usize::from(index)).is_some_and(|held| *held > 0);
                known.push(match tells {
                    true => Some(held_table(conversation, index, disk.source.size.0).await?),
                    false => None,
                });
            }
        }
        let (blocks, queue) = mpsc::channel(BLOCKS_MAX);
        let pump = pump(queue, link.sender());
        let failure = conversation.failure();
        let read = async {
            let read = tokio::select! {
                biased;
                failed = failure => Err(MoveError::from(failed)),
                read = disks.read(&known, &blocks) => read,
            };
            drop(blocks);
            read
        };
        let (read, _) = tokio::join!(read, pump);
        let (blocks, digests) = read?;
        let applied = |answer: &Message| matches!(answer, Message::PassApplied { .. }).then_some(());
        conversation.ask(&Message::PassEnd { pass: 0, blocks }, "pass applied", APPLY_WAIT, applied).await?;
        let figures = self.figures();
        context.end(step, figures).await?;
        Ok(digests)
    }

    async fn commit(&mut self, roots: Vec<[u8; 32]>) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Commit).await?;
        let conversation = self.conversation.as_mut().ok_or(MoveError::NotConnected)?;
        let committed = |answer: &Message| matches!(answer, Message::CycleCommitted).then_some(());
        conversation.ask(&Message::CycleCommit { roots }, "cycle committed", APPLY_WAIT, committed).await?;
        if let Some(disks) = &self.disks
            && let Err(error) = disks.forget_older_bitmaps().await
        {
            info!(job = %context.plan.job, %error, "the next cycle may send a little twice");
        }
        context.end(step, StepFigures::default()).await
    }

    fn figures(&mut self) -> StepFigures {
        let volume = self.volume.as_ref().map_or_else(Volume::default, |volume| *volume.borrow());
        self.tally.disks(volume, 1)
    }

    async fn unwind(mut self, error: MoveError) -> Outcome {
        let context = Arc::clone(&self.context);
        info!(job = %context.plan.job, reason = %error, "unwinding");
        let error = context.gate.wish().map_or(error, MoveError::Ended);
        context.unwinding(&error).await;
        let figures = self.figures();
        // An attempt that comes to nothing is not what the target's snapshot is of.
        let _ = context.keeper.stands_still(None).await;
        self.put_away().await;
        if let (Some(conversation), Some(link)) = (&mut self.conversation, &self.link) {
            link.give_up_bulk();
            let abort = Message::Abort { failure: error.report(&context.host) };
            let told = async {
                conversation.say(&abort).await?;
                // The answer to what was asked before may come first.
                while !matches!(conversation.next().await?, Message::Aborted) {}
                Ok::<_, MoveError>(())
            };
            if !matches!(tokio::time::timeout(ABORT_WAIT, told).await, Ok(Ok(()))) {
                info!(job = %context.plan.job, "the target does not say that it has given the cycle up");
            }
        }
        if let Some(link) = self.link.take() {
            link.abort().await;
        }
        error.outcome(&context.host, figures)
    }

    /// The guest's disks are as if nothing had been.
    async fn put_away(&mut self) {
        let context = Arc::clone(&self.context);
        let put_away = match self.disks.take() {
            Some(disks) => disks.put_away().await,
            // It may have been ended while it was taken.
            None => match context.keeper.machine().await {
                Ok(Some(machine)) => clear(&machine, &context).await,
                Ok(None) | Err(_) => {
                    crate::migration::images::end_leftover_daemons(&context.host, &context.plan).await;
                    Ok(())
                }
            },
        };
        remove_scratch(&context);
        if let Err(error) = put_away {
            warn!(job = %context.plan.job, error = &error as &dyn std::error::Error, "the point in time is left over until the next cycle");
        }
    }

    async fn close(&mut self) {
        if let Some(conversation) = self.conversation.take() {
            let _ = conversation.say(&Message::Finished).await;
        }
        if let Some(link) = self.link.take() {
            let _ = link.close(CLOSE_WAIT).await;
        }
    }
}

/// Ends once a guest that runs might not find room for what it writes any more, since what it overwrites is put aside for the
/// cycle. That of one that is stopped is nowhere.
async fn pools_fill_up(context: &Context) -> MoveError {
    match context.keeper.machine().await {
        Ok(Some(_)) => context.host.headroom_is_used_up(source_disks(&context.plan)).await.into(),
        Ok(None) | Err(_) => std::future::pending().await,
    }
}
