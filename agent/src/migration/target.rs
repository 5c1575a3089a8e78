//! The target of a move: it follows, step by step, what the source leads.
//!
//! ```text
//!   Open ─▶ Prepare ─▶ PassEnd … ─▶ MemoryOpen ─▶ PassEnd … ─▶ Prove ─▶ cede ─▶ Finished
//!     any end before the cede: the record forgets the VM, its QEMU ends, its images go or are kept for another try
//! ```
//!
//! **Contract.** Until the keeper's record says `Activating`, the VM is the source's: whatever ends this job early,
//! `Target::undo` leaves nothing of it on this host but images that the journal says are kept ([`partial`]). From then on the VM is this host's, and nothing is undone.

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::id::Generation;
use sterna_shared::job::{DiskMove, FailureCode, FailureReport, MoveMode};
use sterna_shared::ownership::{Input, Move, Record};
use sterna_shared::peer::message::Message;
use sterna_shared::vm::DiskSpec;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::disk::digest::pack;
use crate::disk::extent::ExtentSet;
use crate::guest::launcher::Launched;
use crate::hypervisor::qemu::command_line::format_node;
use crate::hypervisor::qemu::{Export, Machine};
use crate::link::Session;
use crate::memory::TargetRelay;
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::conversation::Conversation;
use crate::migration::cutover;
use crate::migration::dial::{Arrival, arrival};
use crate::migration::gate::Wish;
use crate::migration::images;
use crate::migration::partial;
use crate::migration::source::settings;
use crate::migration::target_disks::{Images, Ledger, Place, TargetDiskError, TargetDisks, export_name};

/// How long the source may take to have the last answer.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How long it may take to write down what was received, before the images are let go.
const SAVE_WAIT: Duration = Duration::from_secs(5);
/// How long the lanes may take to deliver the end.
const FINISH_WAIT: Duration = Duration::from_secs(10);

/// A move, followed by this host.
#[derive(Debug)]
pub struct Target {
    context: Arc<Context>,
    machine: Option<Machine>,
    /// Serves the images of a VM that is stopped.
    daemon: Option<Launched>,
    disks: Option<TargetDisks>,
    relay: Option<TargetRelay>,
    prepared: bool,
    /// Why the move is given up, as far as that was said.
    cause: Option<FailureCode>,
}

impl Target {
    /// A move that has just been accepted, or is taken up after a restart of the agent.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, machine: None, daemon: None, disks: None, relay: None, prepared: false, cause: None }
    }

    /// Follows the source, to whatever end.
    pub async fn run(mut self, mut sessions: mpsc::Receiver<Session>) -> Outcome {
        match arrival(&self.context, &mut sessions).await {
            Arrival::Came(session) => self.follow(session).await,
            Arrival::Nobody => {}
            Arrival::Stopping => return Outcome::Stopping,
        }
        self.undo().await;
        self.answer_rest(sessions).await;
        Outcome::Followed
    }

    /// After a restart of the agent: what was not ceded is undone; the source learns of it when it asks.
    pub async fn recover(mut self, sessions: mpsc::Receiver<Session>) -> Outcome {
        self.prepared = true;
        self.undo().await;
        self.answer_rest(sessions).await;
        Outcome::Followed
    }

    /// A source whose agent was restarted has come while its earlier session was being undone: it waits for an answer.
    async fn answer_rest(&self, mut sessions: mpsc::Receiver<Session>) {
        sessions.close();
        while let Some(session) = sessions.recv().await {
            tokio::spawn(Self::answer(Arc::clone(&self.context), session));
        }
    }

    /// Answers a source that comes after the job is over here: there is nothing left to undo.
    pub async fn answer(context: Arc<Context>, mut session: Session) {
        let Ok(control) = session.control() else { return };
        let keeper = context.keeper.clone();
        let conversation =
            Conversation::open(session.peer().clone(), context.plan.job, session.sender(), control, keeper).await;
        Self::answer_in(context, conversation, session).await;
    }

    /// The same in a conversation that has been opened; the session lasts as long.
    async fn answer_in(context: Arc<Context>, mut conversation: Conversation, _session: Session) {
        let plan = &context.plan;
        while let Ok(message) = conversation.next().await {
            if matches!(message, Message::Abort { .. } | Message::Finished) {
                settled(&context).await;
            }
            let answer = match message {
                Message::Abort { failure } => {
                    // What this job has left for the next may be wanted no more.
                    if !partial::worth_keeping(Some(failure.code))
                        && let Err(error) = context.host.journal.give_up_partial(plan.vm.id, plan.job).await
                    {
                        warn!(job = %plan.job, %error, "kept images stay until their time is up");
                    }
                    Message::Aborted
                }
                Message::Finished => break,
                _ => Message::Failed { failure: over(&context) },
            };
            if conversation.say(&answer).await.is_err() {
                break;
            }
        }
    }

    async fn follow(&mut self, mut session: Session) {
        let context = Arc::clone(&self.context);
        let Ok(control) = session.control() else { return };
        let keeper = context.keeper.clone();
        let mut conversation =
            Conversation::open(session.peer().clone(), context.plan.job, session.sender(), control, keeper).await;
        let (mut failed, mut spoken) = (false, false);
        loop {
            let next = tokio::select! {
                biased;
                next = conversation.next() => next,
                // A source that is ended while it opens its session does not say so. Its VM could not come here again until
                // the lanes are given up.
                _ = context.gate.ended(), if !spoken => {
                    info!(job = %context.plan.job, "ended before the source said anything");
                    tokio::spawn(Self::answer_in(context, conversation, session));
                    return;
                }
                error = fault_of(self.disks.as_ref()), if !failed => {
                    failed = true;
                    let failure = self.cannot_go_on("writing", error.into());
                    match conversation.say(&Message::Failed { failure }).await {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
            };
            let message = match next {
                Ok(message) => message,
                Err(error) => {
                    info!(job = %context.plan.job, %error, "the source is gone");
                    return;
                }
            };
            let name = message.name();
            spoken = true;
            if matches!(message, Message::Abort { .. } | Message::Finished) {
                settled(&context).await;
            }
            // What makes files or processes is done to its end, or nobody would know what to undo.
            let patient = !matches!(message, Message::PassEnd { .. } | Message::Prove | Message::Held { .. });
            let given_up = conversation.given_up();
            // A replica may take long to be copied: whoever gives the job up, or is gone, is not waited for. Only who says so wants
            // nothing of what was copied.
            let (told, gone) = (conversation.given_up(), conversation.failure());
            let nobody_waits = async {
                tokio::select! {
                    biased;
                    () = told => MoveError::Ended(Wish::Cancel),
                    gone = gone => gone.into(),
                }
            };
            let began = Instant::now();
            let obeyed = tokio::select! {
                biased;
                () = given_up, if !patient => continue,
                obeyed = self.obey(message, &mut session, nobody_waits) => obeyed,
            };
            debug!(job = %context.plan.job, message = name, us = u64::try_from(began.elapsed().as_micros()).ok(), "obeyed");
            let answer = match obeyed {
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    // The source ends the session: did both, each would find its lanes broken, and dial them again.
                    let _ = tokio::time::timeout(FINISH_WAIT, session.ended()).await;
                    return;
                }
                Err(error) => {
                    failed = true;
                    Message::Failed { failure: self.cannot_go_on(name, error) }
                }
            };
            let over = matches!(answer, Message::Aborted);
            if over {
                self.undo().await;
            }
            if let Err(error) = conversation.say(&answer).await {
                info!(job = %context.plan.job, %error, "the source is gone");
                return;
            }
            if over {
                // Once the source has the answer; what it had still on its way is of no use to anybody.
                let _ = session.close(CLOSE_WAIT).await;
                return;
            }
        }
    }

    /// What the source is told of an error in something that it asked for, or that goes on meanwhile.
    fn cannot_go_on(&mut self, what: &str, error: MoveError) -> FailureReport {
        warn!(job = %self.context.plan.job, what, error = &error as &dyn std::error::Error, "the target cannot go on");
        let failure = error.report(&self.context.host);
        self.cause = Some(failure.code);
        failure
    }

    /// Does what the source asks; nothing is answered to what ends the job.
    async fn obey(
        &mut self,
        message: Message,
        session: &mut Session,
        nobody_waits: impl Future<Output = MoveError>,
    ) -> Result<Option<Message>, MoveError> {
        Ok(Some(match message {
            Message::Open => {
                let seen = self.context.keeper.record().ownership.seen();
                Message::Opened { seen }
            }
            Message::Prepare { generation, variables } => {
                let held = self.prepare(generation, variables, session, nobody_waits).await?;
                Message::Prepared { held }
            }
            Message::Held { disk, first } => {
                let chunks = self.disks()?.held(disk, first).await?;
                Message::HeldDigests { disk, first, chunks: pack(&chunks) }
            }
            Message::PassEnd { pass, blocks } => {
                self.disks()?.applied(blocks).await?;
                Message::PassApplied { pass }
            }
            Message::MemoryOpen { channels } => {
                self.open_memory(channels, session).await?;
                Message::MemoryReady
            }
            Message::Prove => {
                let disks = self.disks.take().ok_or(MoveError::OutOfOrder { message: "prove" })?;
                let proofs = disks.prove(false).await?;
                let roots = proofs.into_iter().map(|proof| proof.digest).collect();
                self.close_disks().await?;
                Message::Proof { roots }
            }
            Message::Abort { failure } => {
                info!(job = %self.context.plan.job, reason = %failure, "the source gives the move up");
                self.cause = Some(failure.code);
                Message::Aborted
            }
            Message::Finished => return Ok(None),
            other => return Err(MoveError::OutOfOrder { message: other.name() }),
        }))
    }

    /// Makes what the VM needs here; how many bytes of each disk an earlier move has left.
    async fn prepare(
        &mut self,
        generation: Generation,
        variables: Option<Vec<u8>>,
        session: &mut Session,
        nobody_waits: impl Future<Output = MoveError>,
    ) -> Result<Vec<u64>, MoveError> {
        let context = Arc::clone(&self.context);
        let plan = &context.plan;
        if self.prepared {
            return Err(MoveError::OutOfOrder { message: "prepare" });
        }
        let from = Move { job: plan.job, peer: plan.source.id.clone() };
        let runs = plan.mode == MoveMode::Live;
        // The record first: what is made from here on is known to be this job's, also after a crash.
        // A guest that is shut down for a cutover is started here.
        let wanted = runs || plan.cutover.is_some_and(|of| of.runs);
        context.keeper.prepare(Input::Prepare { generation, from }, plan.vm_at_target.clone(), wanted).await?;
        self.prepared = true;
        // After the record, so that of two that come at one time the later sees the earlier.
        context.host.expect_room_for(plan)?;
        let mut held = partial::prepare(&context.host, plan, variables).await?;
        tokio::select! {
            biased;
            nobody = nobody_waits, if plan.cutover.is_some() => return Err(nobody),
            filled = cutover::fill(&context.host, plan, &mut held) => filled?,
        }
        let held_bytes = held.iter().map(|held| held.as_ref().map_or(0, ExtentSet::total)).collect();
        let socket = if runs {
            let machine = context.keeper.launch_incoming().await?;
            let socket = context.host.runtime(plan.vm.id).map_err(MoveError::Runtime)?.nbd_socket();
            self.machine = Some(machine);
            socket
        } else {
            let daemon = images::serve_target(&context.host, plan).await?;
            let socket = daemon.runtime.nbd_socket();
            self.machine = Some(daemon.machine.clone());
            self.daemon = Some(daemon);
            socket
        };
        if plan.disks.is_empty() {
            return Ok(held_bytes);
        }
        let machine = self.machine.as_ref().ok_or(MoveError::NotConnected)?;
        machine.nbd_server_start(&socket).await?;
        for (index, disk) in plan.disks.iter().enumerate() {
            let name = export_name(index);
            let node = format_node(&disk.target.name);
            machine.export_add(&Export { id: name.clone(), node, name, writable: true, bitmaps: Vec::new() }).await?;
        }
        let blocks = session.blocks().map_err(|source| MoveError::Connect { peer: plan.source.id.clone(), source })?;
        let ledger =
            Ledger { journal: context.host.journal.clone(), vm: plan.vm.id, job: plan.job, place: Place::Partial };
        // A QEMU that waits for its guest caches images as the guest will have it.
        let through = |disk: &DiskMove| context.host.page_cache(plan.vm.id, &disk.target).filter(|_| !runs);
        let page_caches = plan.disks.iter().map(through).collect();
        let origin = |disk: &DiskSpec| context.host.origin(disk);
        let images = Images { held, origin, page_caches, tables: Vec::new(), ledger: Some(ledger) };
        self.disks = Some(TargetDisks::open(&socket, &plan.disks, images, blocks).await?);
        Ok(held_bytes)
    }

    async fn open_memory(&mut self, channels: u16, session: &mut Session) -> Result<(), MoveError> {
        let machine = self.machine.as_ref().ok_or(MoveError::OutOfOrder { message: "memory open" })?;
        let settings = settings(&self.context.plan);
        if channels != u16::from(settings.multifd_channels) + 1 {
            return Err(MoveError::OutOfOrder { message: "memory open" });
        }
        let runtime = self.context.host.runtime(self.context.plan.vm.id).map_err(MoveError::Runtime)?;
        machine.migration_set_up(&settings).await?;
        machine.migrate_incoming(&runtime.memory_socket()).await?;
        self.relay = Some(TargetRelay::connect(&runtime.memory_socket(), channels, session)?);
        Ok(())
    }

    /// Before the guest may run, nothing else may write to its images.
    async fn close_disks(&mut self) -> Result<(), MoveError> {
        if let Some(machine) = &self.machine {
            // All exports go with it: in the pause one question is better than three a disk.
            machine.nbd_server_stop().await?;
        }
        if let Some(daemon) = self.daemon.take() {
            images::end_daemon(daemon).await;
        }
        Ok(())
    }

    fn disks(&self) -> Result<&TargetDisks, MoveError> {
        self.disks.as_ref().ok_or(MoveError::OutOfOrder { message: "pass end" })
    }

    /// Leaves nothing of the move, unless the VM is this host's by now.
    async fn undo(&mut self) {
        let context = Arc::clone(&self.context);
        if !self.prepared {
            // Nothing was promised to the source, which so has nothing to ask.
            settled(&context).await;
        }
        let keeps = context.host.config.keep_partial_seconds > 0;
        let ended = context.gate.wish().is_some_and(|wish| wish > Wish::Suspend);
        let wanted = keeps && !ended && partial::worth_keeping(self.cause);
        if let Some(disks) = self.disks.as_ref().filter(|_| wanted) {
            // In vain where the disk does not do; then what was written down before is what there is.
            let _ = tokio::time::timeout(SAVE_WAIT, disks.save()).await;
        }
        if let Record::Incoming { .. } = context.keeper.record().ownership {
            // The cede may come in between: then the table refuses this, and the record below tells.
            if let Err(error) = context.keeper.feed(Input::Abort).await {
                info!(job = %context.plan.job, %error, "not undone");
            }
        }
        self.relay = None;
        self.disks = None;
        if let Some(daemon) = self.daemon.take() {
            images::end_daemon(daemon).await;
        }
        let settled = match context.keeper.record().ownership {
            Record::Absent { .. } if self.prepared => {
                let sound = partial::is_sound(self.cause);
                partial::settle(&context.host, &context.plan, wanted, sound).await
            }
            Record::Owner { .. } => partial::forget(&context.host, &context.plan).await,
            // Not decided yet: the service sees to what is left once it is.
            _ => Ok(()),
        };
        if let Err(error) = settled {
            warn!(job = %context.plan.job, error = &error as &dyn std::error::Error, "what became of the images is not noted");
        }
    }
}

/// Why the disks of a target can no longer be written, once they cannot.
async fn fault_of(disks: Option<&TargetDisks>) -> TargetDiskError {
    match disks {
        Some(disks) => disks.failed().await,
        None => std::future::pending().await,
    }
}

/// Notes that the source has the VM for certain, or has let go of it for certain: either way it asks no more.
async fn settled(context: &Context) {
    if let Err(error) = context.host.journal.note_settled(context.plan.job).await {
        warn!(job = %context.plan.job, %error, "the job will be remembered for longer than it need be");
    }
}

fn over(context: &Context) -> FailureReport {
    FailureReport {
        code: FailureCode::AgentRestarted,
        message: format!("job {} is over at {}", context.plan.job, context.host.id()),
        causes: Vec::new(),
        remedy: "start the move again".to_owned(),
        host: Some(context.host.id().clone()),
    }
}
