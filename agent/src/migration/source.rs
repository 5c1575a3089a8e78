//! The source of a move.
//!
//! ```text
//!   prepare ─▶ copy_disks ─▶ copy_memory ─▶ switchover ─▶ prove ─▶ handover ─▶ release      live
//!   prepare ─▶ copy_disks ───────────────────────────────▶ prove ─▶ handover ─▶ release      cold
//!   prepare ─▶ copy_disks ─▶ shut_down ───▶ switchover ─▶ prove ─▶ handover ─▶ release      cold cutover of a guest that runs
//!      └──────────── any failure, any cancel ──────────────┘  │         │
//!                             ▼                          gate closes    └─ the keeper settles it, for ever
//!                          unwind
//! ```
//!
//! **Contract.** Until the gate closes, whatever happens, the VM is and stays this host's: `Source::unwind` takes away
//! what the move put up, lets the guest go on if it was paused, and has the target undo its part. From [`Input::BeginCede`]
//! on only the ownership machine decides; this file waits for its verdict and tells it.

mod blackout;
mod copy_memory;
mod pre_switchover;
pub mod resume;
mod shut_down;
mod unwind;

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::id::Generation;
use sterna_shared::job::{CpuCapping, EventBody, MoveMode, Plan, StepFigures, StepKind};
use sterna_shared::ownership::{Input, Move, Record};
use sterna_shared::peer::attach::SessionId;
use sterna_shared::peer::message::Message;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::blackout::Blackout;
use self::shut_down::shuts_down;
use crate::disk::copy::Block;
use crate::guest::launcher::Launched;
use crate::hypervisor::qemu::{Machine, MigrationSettings, MigrationStatus, Throttle};
use crate::link::Session;
use crate::memory::SourceRelay;
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::conversation::Conversation;
use crate::migration::dial::{dial, pump};
use crate::migration::disks::SourceDisks;
use crate::migration::handover::View;
use crate::migration::images;
use crate::migration::tally::Tally;

/// How long the target may take to make its images and start its QEMU.
const PREPARE_WAIT: Duration = Duration::from_secs(120);
/// How long that of a cutover may take, which makes the images of its replica.
const PREPARE_CUTOVER_WAIT: Duration = Duration::from_secs(24 * 3600);
/// How long the target may take to write what a pass has sent.
const PASS_WAIT: Duration = Duration::from_secs(600);
/// How long a job that is given up waits for its target to have undone its part.
const ABORT_WAIT: Duration = Duration::from_secs(20);
/// Passes before memory follows: what little is left then is carried on while memory is copied.
const PASSES_BEFORE_MEMORY_MAX: u32 = 6;
/// So little dirtied that another pass would gain nothing.
const DIRTY_LITTLE: u64 = 4 << 20;
/// What QEMU may expect to need for the rest of memory when it goes to the switchover, until it is told otherwise.
const DOWNTIME_LIMIT: Duration = Duration::from_millis(100);
/// After this long without a verdict everybody is told that the guest waits.
const UNRESOLVED_AFTER: Duration = Duration::from_secs(5);
/// Between two attempts to open a session for what is unsettled.
const REDIAL_PAUSE: Duration = Duration::from_secs(1);
/// Blocks between the reader of the disks and the lanes.
const BLOCKS_MAX: usize = 32;

/// A move, led by this host.
#[derive(Debug)]
pub struct Source {
    context: Arc<Context>,
    session: SessionId,
    incarnation: u32,
    link: Option<Session>,
    conversation: Option<Conversation>,
    machine: Option<Machine>,
    /// Serves the images of a VM that is stopped.
    daemon: Option<Launched>,
    disks: Option<SourceDisks>,
    /// How much of each disk the target has from an earlier move.
    held: Vec<u64>,
    /// Carries blocks to the lanes; tells how many once there are no more.
    pump: Option<(mpsc::Sender<Block>, JoinHandle<u64>)>,
    relay: Option<SourceRelay>,
    generation: Generation,
    blackout: Blackout,
    writes_held_back: bool,
    /// The guest may be on its way down.
    power_button_pressed: bool,
    tally: Tally,
    hypervisor_blackout_ms: Option<u64>,
}

impl Source {
    /// A move that has just been accepted, or is to be undone after a restart of the agent.
    #[must_use]
    pub fn new(context: Arc<Context>, session: SessionId, incarnation: u32) -> Self {
        let blackout = Blackout::new(&context.plan);
        Self {
            context,
            session,
            incarnation,
            link: None,
            conversation: None,
            machine: None,
            daemon: None,
            disks: None,
            held: Vec::new(),
            pump: None,
            relay: None,
            generation: Generation(0),
            blackout,
            writes_held_back: false,
            power_button_pressed: false,
            tally: Tally::default(),
            hypervisor_blackout_ms: None,
        }
    }

    /// Carries the move out, to whatever end.
    pub async fn run(mut self) -> Outcome {
        match self.until_handover().await {
            Ok(()) => self.await_verdict().await,
            // The journal may have taken the cede and failed to say so: then nothing may be undone here.
            Err(error) if !self.owns() => {
                warn!(job = %self.plan().job, %error, "the cede was written; its outcome is awaited");
                self.await_verdict().await
            }
            Err(error) => self.unwind(error).await,
        }
    }

    /// After a restart of the agent: what was not ceded is undone, what was is settled.
    pub async fn recover(mut self) -> Outcome {
        self.machine = self.context.keeper.machine().await.ok().flatten();
        self.power_button_pressed = shut_down::shuts_down(self.plan());
        match self.owns() {
            true => self.unwind(MoveError::AgentRestarted).await,
            false => self.await_verdict().await,
        }
    }

    /// Whether nothing has been ceded.
    fn owns(&self) -> bool {
        matches!(self.context.keeper.record().ownership, Record::Owner { .. })
    }

    /// Whether the guest runs while its disks are copied.
    fn guest_runs(&self) -> bool {
        self.plan().mode == MoveMode::Live || shuts_down(self.plan())
    }

    fn plan(&self) -> &Plan {
        &self.context.plan
    }

    /// The phases, in order. Whatever ends them early, nothing has been ceded.
    async fn until_handover(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        tokio::select! {
            biased;
            wish = context.gate.ended() => Err(MoveError::Ended(wish)),
            done = self.phases() => done,
        }
    }

    async fn phases(&mut self) -> Result<(), MoveError> {
        self.prepare().await?;
        match self.plan().mode {
            MoveMode::Live => {
                self.copy_disks().await?;
                self.copy_memory().await?;
                self.switchover().await?;
                self.prove().await?;
            }
            MoveMode::Cold | MoveMode::Storage => {
                self.copy_disks().await?;
                if shuts_down(self.plan()) {
                    self.shut_down().await?;
                    self.final_sync().await?;
                }
                self.prove().await?;
            }
        }
        self.hand_over().await
    }

    async fn prepare(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Prepare).await?;
        self.connect().await?;
        let runs = self.guest_runs();
        self.machine = self.context.keeper.machine().await?;
        if runs && self.machine.is_none() {
            return Err(MoveError::Stale { what: "the guest has stopped since the move was planned" });
        }
        let own = self.context.keeper.record().ownership.seen();
        let conversation = self.conversation.as_mut().ok_or(MoveError::NotConnected)?;
        let seen = conversation
            .ask(&Message::Open, "opened", PREPARE_WAIT, |answer| match answer {
                Message::Opened { seen } => Some(*seen),
                _ => None,
            })
            .await?;
        self.generation = own.max(seen).next().ok_or(MoveError::Stale { what: "the generations are used up" })?;
        let variables = images::read_variable_store(&self.context.host, &self.context.plan)?;
        let prepare = Message::Prepare { generation: self.generation, variables };
        let held = |answer: &Message| match answer {
            Message::Prepared { held } => Some(held.clone()),
            _ => None,
        };
        let wait = if self.context.plan.cutover.is_some() { PREPARE_CUTOVER_WAIT } else { PREPARE_WAIT };
        self.held = conversation.ask(&prepare, "prepared", wait, held).await?;
        self.context.end(step, StepFigures::default()).await
    }

    async fn connect(&mut self) -> Result<(), MoveError> {
        let (link, conversation) = dial(&self.context, self.session, self.incarnation).await?;
        (self.link, self.conversation) = (Some(link), Some(conversation));
        Ok(())
    }

    async fn copy_disks(&mut self) -> Result<(), MoveError> {
        if self.plan().disks.is_empty() {
            return Ok(());
        }
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::CopyDisks).await?;
        let runs = self.guest_runs();
        let runtime = context.host.runtime(context.plan.vm.id).map_err(MoveError::Runtime)?;
        let (machine, socket) = match &self.machine {
            Some(machine) if runs => (machine.clone(), runtime.nbd_socket()),
            _ => {
                let daemon = images::serve_source(&context.host, &context.plan).await?;
                let parts = (daemon.machine.clone(), daemon.runtime.nbd_socket());
                self.daemon = Some(daemon);
                parts
            }
        };
        let disks = SourceDisks::open(machine, socket, context.plan.job, &context.plan.disks, runs).await?;
        context.progress.disks(disks.volume());
        self.disks = Some(disks);
        let (blocks, queue) = mpsc::channel(BLOCKS_MAX);
        let sender = self.link.as_ref().ok_or(MoveError::NotConnected)?.sender();
        self.pump = Some((blocks, tokio::spawn(pump(queue, sender))));

        self.ask_what_is_held().await?;
        self.pass().await?;
        self.tell_what_was_held().await;
        let mut before = u64::MAX;
        for _ in 1..PASSES_BEFORE_MEMORY_MAX {
            let dirty = self.disks.as_ref().ok_or(MoveError::NotConnected)?.dirty().await?.0;
            // Passes that no longer shrink are left to the time in which memory is copied.
            if dirty <= DIRTY_LITTLE || dirty >= before {
                break;
            }
            before = dirty;
            self.pass().await?;
        }
        let figures = self.disk_figures();
        context.end(step, figures).await
    }

    /// One pass, applied at the target before this returns.
    async fn pass(&mut self) -> Result<(), MoveError> {
        let (Some(disks), Some((blocks, _)), Some(conversation)) =
            (&mut self.disks, &self.pump, &mut self.conversation)
        else {
            return Err(MoveError::NotConnected);
        };
        let pass = disks.passes();
        self.context.progress.pass(pass);
        let failure = conversation.failure();
        tokio::select! {
            biased;
            failed = failure => return Err(failed.into()),
            read = disks.pass(blocks) => drop(read?),
        }
        let end = Message::PassEnd { pass, blocks: disks.blocks() };
        conversation
            .ask(&end, "pass applied", PASS_WAIT, |answer| {
                matches!(answer, Message::PassApplied { pass: applied } if *applied == pass).then_some(())
            })
            .await?;
        Ok(())
    }

    /// The guest stands still: the last pass. While the target writes it, QEMU sends the rest of memory.
    async fn switchover(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Switchover).await?;
        if let Some(limit) = self.blackout.deadline() {
            let last = tokio::time::timeout_at(limit, self.last_pass()).await;
            last.map_err(|_| self.blackout.exceeded())??;
        }
        if let Some(machine) = &self.machine {
            // Nothing is lost by it: until the cede this guest can go on from where it will be.
            self.blackout.bounded(machine.migrate_continue()).await?;
        }
        self.blackout.part("continue");
        let figures = StepFigures { blackout_us: self.blackout.us(), ..self.disk_figures() };
        context.end(step, figures).await
    }

    /// The pass of a guest that stands still, and at once the question whether the copies are equal.
    async fn last_pass(&mut self) -> Result<(), MoveError> {
        let Some(disks) = &mut self.disks else { return Ok(()) };
        let (Some((blocks, _)), Some(conversation)) = (&self.pump, &self.conversation) else {
            return Err(MoveError::NotConnected);
        };
        let pass = disks.passes();
        self.context.progress.pass(pass);
        let failure = conversation.failure();
        tokio::select! {
            biased;
            failed = failure => return Err(failed.into()),
            read = disks.last_pass(blocks) => drop(read?),
        }
        self.blackout.part("last pass read");
        conversation.say(&Message::PassEnd { pass, blocks: disks.blocks() }).await?;
        conversation.say(&Message::Prove).await?;
        disks.close().await?;
        self.blackout.part("exports closed");
        Ok(())
    }

    /// Both ends' digests of every disk must be equal.
    async fn prove(&mut self) -> Result<(), MoveError> {
        let Some(disks) = &mut self.disks else { return Ok(()) };
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Prove).await?;
        let conversation = self.conversation.as_mut().ok_or(MoveError::NotConnected)?;
        if context.plan.mode == MoveMode::Live {
            let applied = |answer: &Message| matches!(answer, Message::PassApplied { .. }).then_some(());
            self.blackout.bounded(conversation.hear("pass applied", PASS_WAIT, applied)).await?;
            self.blackout.part("last pass applied");
        } else {
            disks.close().await?;
            conversation.say(&Message::Prove).await?;
        }
        let pick = |answer: &Message| match answer {
            Message::Proof { roots } => Some(roots.clone()),
            _ => None,
        };
        let theirs = self.blackout.bounded(conversation.hear("proof", PASS_WAIT, pick)).await?;
        let ours = disks.roots()?;
        let differing = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        if let Some(disk) = differing.and_then(|index| context.plan.disks.get(index)) {
            return Err(MoveError::DigestsDiffer { disk: disk.source.name.clone() });
        }
        if ours.len() != theirs.len() {
            return Err(MoveError::ProofIncomplete { expected: ours.len(), found: theirs.len() });
        }
        self.blackout.part("proof");
        context.end(step, StepFigures { blackout_us: self.blackout.us(), ..StepFigures::default() }).await
    }

    /// When QEMU has sent the rest, and no cancel came first, the right to run the VM is offered.
    async fn hand_over(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        context.begin(StepKind::Handover).await?;
        if let (MoveMode::Live, Some(machine), Some(deadline)) =
            (context.plan.mode, &self.machine, self.blackout.deadline())
        {
            // Over a link that is down QEMU may be stuck in sending, and answer nothing.
            let sent = machine.migration_reached(&[MigrationStatus::Completed], self.blackout.patience());
            let conversation = self.conversation.as_ref().ok_or(MoveError::NotConnected)?;
            let sent = tokio::select! {
                biased;
                failed = conversation.failure() => return Err(failed.into()),
                sent = tokio::time::timeout_at(deadline, sent) => sent,
            };
            let migration = sent.map_err(|_| self.blackout.exceeded())??;
            self.hypervisor_blackout_ms = migration.downtime_ms;
            self.blackout.part("QEMU has sent all");
        }
        if !context.gate.close() {
            return Err(MoveError::Ended(context.gate.ended().await));
        }
        let to = Move { job: context.plan.job, peer: context.plan.target.id.clone() };
        context.keeper.feed(Input::BeginCede { generation: self.generation, to }).await?;
        self.blackout.part("ceded");
        Ok(())
    }

    /// From here on the ownership machine decides. Ends when it has.
    async fn await_verdict(mut self) -> Outcome {
        let context = Arc::clone(&self.context);
        let mut view = context.keeper.view();
        let decided = async {
            let decided = |view: &View| !matches!(view.record.ownership, Record::Ceding { .. });
            view.wait_for(decided).await.map(|view| view.record.ownership.clone())
        };
        let unresolved = async {
            tokio::time::sleep(UNRESOLVED_AFTER).await;
            let target = &context.plan.target.id;
            let reason = format!(
                "the VM was offered to {target}, which has not answered: the guest stands still until it does; if {target} is gone for good, say so with `sterna vm resolve {} --fenced {target}`",
                context.plan.vm.name
            );
            warn!(job = %context.plan.job, reason, "unresolved");
            context.tell(EventBody::Unresolved { reason }).await;
            std::future::pending::<()>().await;
        };
        let record = tokio::select! {
            biased;
            record = decided => record,
            // Neither of the two ever ends.
            () = unresolved => return Outcome::Stopping,
            () = self.keep_reachable() => return Outcome::Stopping,
        };
        match record {
            Ok(record) => {
                let blackout_us = self.blackout.us();
                self.blackout.part("verdict");
                self.blackout.over();
                self.finish(&record, blackout_us, view).await
            }
            Err(_) => Outcome::Stopping,
        }
    }

    /// Dials the target anew whenever the session has ended, for ever: the keeper's questions go over its lanes.
    async fn keep_reachable(&mut self) {
        loop {
            if let Some(link) = &self.link {
                let reason = link.ended().await;
                info!(job = %self.plan().job, %reason, "the session has ended; dialling anew");
                self.conversation = None;
                self.link = None;
                match self.context.host.journal.raise_incarnation(self.plan().job).await {
                    Ok(incarnation) => self.incarnation = incarnation,
                    Err(error) => warn!(job = %self.plan().job, %error, "not dialled anew"),
                }
            }
            if let Err(error) = self.connect().await {
                info!(job = %self.plan().job, error = &error as &dyn std::error::Error, "the target is not reached");
                tokio::time::sleep(REDIAL_PAUSE).await;
            }
        }
    }

    /// The verdict is there: the keeper lets go of its copy, or runs it again.
    async fn finish(&mut self, record: &Record, blackout_us: u64, mut view: watch::Receiver<View>) -> Outcome {
        let context = Arc::clone(&self.context);
        if let Record::Owner { .. } | Record::Activating { .. } = record {
            // The target refused. The keeper makes the guest run here again, however often it has to try.
            let runs = |view: &View| matches!(view.record.ownership, Record::Owner { .. });
            if view.wait_for(runs).await.is_err() {
                return Outcome::Stopping;
            }
            let error = MoveError::Refused { target: context.plan.target.id.clone() };
            if let Some(machine) = self.machine.clone() {
                self.let_writes_go(&machine).await;
                if shut_down::shuts_down(self.plan()) {
                    self.let_run_again(&machine).await;
                }
                if let Err(error) = SourceDisks::clear(&machine, context.plan.job).await {
                    warn!(job = %context.plan.job, %error, "bitmaps are left over until the guest ends");
                }
            }
            self.put_away().await;
            let told = self.say_abort(&error);
            self.await_undone(told).await;
            return Outcome::Failed(error.report(&context.host));
        }
        let figures = StepFigures {
            blackout_us,
            bytes_sent: self.memory_sent(),
            hypervisor_blackout_ms: self.hypervisor_blackout_ms,
            ..StepFigures::default()
        };
        context.end(StepKind::Handover, figures).await.ok();
        self.tell_writes_free().await;
        if context.begin(StepKind::Release).await.is_ok() {
            let released = |view: &View| matches!(view.record.ownership, Record::Absent { .. });
            if view.wait_for(released).await.is_err() {
                return Outcome::Stopping;
            }
            self.put_away().await;
            if let Some(conversation) = &self.conversation {
                // The target would find out by itself; this spares it the wait.
                let _ = conversation.say(&Message::Finished).await;
            }
            if let Some(link) = self.link.take() {
                let _ = link.close(ABORT_WAIT).await;
            }
            context.end(StepKind::Release, StepFigures::default()).await.ok();
        }
        Outcome::Completed { blackout_us }
    }

    fn disk_figures(&mut self) -> StepFigures {
        let Some(disks) = &self.disks else { return StepFigures::default() };
        self.tally.disks(*disks.volume().borrow(), disks.passes())
    }

    fn memory_sent(&mut self) -> u64 {
        self.tally.memory(self.relay.as_ref().map_or(0, SourceRelay::sent))
    }
}

/// The same at both ends.
#[must_use]
pub fn settings(plan: &Plan) -> MigrationSettings {
    MigrationSettings {
        multifd_channels: plan.lanes,
        bandwidth: None,
        downtime_limit: DOWNTIME_LIMIT,
        auto_converge: Some(match plan.settings.cpu_capping {
            CpuCapping::Low => Throttle { first: 10, step: 10 },
            CpuCapping::Normal => Throttle { first: 20, step: 10 },
            CpuCapping::High => Throttle { first: 40, step: 20 },
        }),
        compress: plan.settings.compress_memory,
    }
}
