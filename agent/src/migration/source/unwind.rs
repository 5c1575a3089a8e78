//! Undoing: whatever ended a move early, nothing of it is left, at either host.

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{EventBody, MoveMode, StepFigures, Volume};
use sterna_shared::peer::message::Message;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::shut_down::shuts_down;
use super::{ABORT_WAIT, Source};
use crate::hypervisor::qemu::{Machine, MigrationStatus, RunState};
use crate::memory::SourceRelay;
use crate::migration::context::{MoveError, Outcome};
use crate::migration::conversation::ConversationError;
use crate::migration::dial::ADMISSION_WAIT;
use crate::migration::disks::SourceDisks;
use crate::migration::gate::Wish;
use crate::migration::images;

/// How long QEMU may take to give a migration up.
const CANCEL_WAIT: Duration = Duration::from_secs(10);
/// How long QEMU may take to say how its migration is, before it is taken to be stuck in it.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// How long a job that is suspended waits for the target to take what is on its way.
const DRAIN_WAIT: Duration = Duration::from_secs(15);
/// A target that has ended the job may have been told to, and have heard of it sooner: how long the same word may take.
const WORD_WAIT: Duration = Duration::from_secs(2);
/// The number of no pass: what was on its way when a job was suspended.
const PASS_DRAINED: u32 = u32::MAX;
/// How long after its end a job goes on trying to tell its target that it was given up: as long as lanes may be down.
const ABORT_LINGER: Duration = Duration::from_secs(150);

impl Source {
    /// Takes away what the move put up, at both hosts. The guest goes on here.
    pub(super) async fn unwind(mut self, error: MoveError) -> Outcome {
        let context = Arc::clone(&self.context);
        info!(job = %context.plan.job, reason = %error, "unwinding");
        if error.is_over_at_target() && self.blackout.deadline().is_none() {
            let _ = tokio::time::timeout(WORD_WAIT, context.gate.ended()).await;
        }
        // Where the job was to end, that is what became of it, whatever it met on the way.
        let error = context.gate.wish().map_or(error, MoveError::Ended);
        context.unwinding(&error).await;
        let figures = self.done_so_far();
        if matches!(error, MoveError::Ended(Wish::Suspend)) && self.blackout.deadline().is_none() {
            let _ = tokio::time::timeout(DRAIN_WAIT, self.drain()).await;
        }
        self.blackout.over();
        // The target is told while the guest is cared for: neither waits for the other.
        let told = self.say_abort(&error);
        if let Some(machine) = self.machine.clone() {
            self.give_up_migration(&machine).await;
        }
        self.put_away().await;
        if self.link.is_none() && matches!(error, MoveError::AgentRestarted) {
            // The guest is cared for; now the target, which still knows the session of the agent that was.
            let reached = tokio::time::timeout(ADMISSION_WAIT, self.connect()).await;
            if !matches!(reached, Ok(Ok(()))) {
                info!(job = %context.plan.job, "the target is not reached; it gives up by itself");
            }
        }
        let told = told.or_else(|| self.say_abort(&error));
        self.await_undone(told).await;
        // It may have been suspended first, and then cancelled while it unwound.
        let error = context.gate.wish().map_or(error, MoveError::Ended);
        error.outcome(&context.host, figures)
    }

    /// What the copying has come to.
    fn done_so_far(&mut self) -> StepFigures {
        let memory = self.relay.as_ref().map_or(0, SourceRelay::sent);
        let volume = self.disks.as_ref().map_or_else(Volume::default, |disks| *disks.volume().borrow());
        StepFigures {
            bytes_total: volume.done,
            bytes_sent: volume.sent.saturating_add(memory),
            bytes_resumed: volume.resumed,
            passes: self.disks.as_ref().map_or(0, SourceDisks::passes),
            ..StepFigures::default()
        }
    }

    /// Has the target take what is on its way: what it has need not be sent when the job goes on.
    async fn drain(&mut self) {
        let (Some((blocks, pump)), Some(conversation)) = (self.pump.take(), &mut self.conversation) else { return };
        drop(blocks);
        let Ok(blocks) = pump.await else { return };
        let end = Message::PassEnd { pass: PASS_DRAINED, blocks };
        if conversation.say(&end).await.is_err() {
            return;
        }
        // The answer to what was asked before may come first.
        while let Ok(message) = conversation.next().await {
            if matches!(message, Message::PassApplied { pass: PASS_DRAINED }) {
                return;
            }
        }
    }

    /// Brings the guest's QEMU back to where it was before the move.
    async fn give_up_migration(&mut self, machine: &Machine) {
        if self.relay.is_some() && tokio::time::timeout(STUCK_AFTER, machine.migration()).await.is_err() {
            // It hears nothing while it is stuck in sending what nobody takes. Without its channels it gives up by itself.
            warn!(job = %self.plan().job, "QEMU does not answer; its migration channels are closed");
            self.relay = None;
        }
        let context = Arc::clone(&self.context);
        let plan = &context.plan;
        if self.guest_runs() {
            self.let_writes_go(machine).await;
        }
        if plan.mode == MoveMode::Live
            && let Ok(migration) = machine.migration().await
            && migration.status != MigrationStatus::None
            && !migration.status.is_final()
        {
            let over = [MigrationStatus::Cancelled, MigrationStatus::Failed, MigrationStatus::Completed];
            let _ = machine.migrate_cancel().await;
            if let Err(error) = machine.migration_reached(&over, CANCEL_WAIT).await {
                warn!(job = %plan.job, %error, "QEMU does not give the migration up");
            }
        }
        if let Err(error) = SourceDisks::clear(machine, plan.job).await {
            warn!(job = %plan.job, %error, "exports or bitmaps are left over until the guest ends");
        }
        if shuts_down(plan) {
            self.let_run_again(machine).await;
        }
        let runs = machine.run_state().await;
        let wanted = self.context.keeper.record().wanted_running;
        let halted = [RunState::Paused, RunState::PostMigrate, RunState::FinishMigrate];
        if wanted
            && runs.is_ok_and(|state| halted.contains(&state))
            && let Err(error) = self.context.keeper.resume().await
        {
            warn!(job = %plan.job, %error, "the guest is still paused");
        }
    }

    /// Ends what serves the move on this host.
    pub(super) async fn put_away(&mut self) {
        self.relay = None;
        if let Some((blocks, pump)) = self.pump.take() {
            drop(blocks);
            pump.abort();
        }
        self.disks = None;
        match self.daemon.take() {
            Some(daemon) => images::end_daemon(daemon).await,
            // A cancel may have come while it was being started.
            None if self.plan().mode != MoveMode::Live => {
                images::end_leftover_daemons(&self.context.host, self.plan()).await;
            }
            None => {}
        }
    }

    /// Has the target undo its part, and ends the session, on a task of its own; none where there is no session. What was
    /// still to be sent is dropped: on a slow link the target would hear of the end only after it.
    pub(super) fn say_abort(&mut self, error: &MoveError) -> Option<JoinHandle<()>> {
        let failure = error.report(&self.context.host);
        let (mut conversation, link) = (self.conversation.take()?, self.link.take()?);
        let job = self.plan().job;
        link.give_up_bulk();
        Some(tokio::spawn(async move {
            let told = async {
                conversation.say(&Message::Abort { failure }).await?;
                // Answers to earlier questions may still be on their way.
                while !matches!(conversation.next().await?, Message::Aborted) {}
                Ok::<(), ConversationError>(())
            };
            match tokio::time::timeout(ABORT_LINGER, told).await {
                // Nobody waits for what else was on its way.
                Ok(Ok(())) => link.abort().await,
                Ok(Err(error)) => info!(%job, %error, "the target did not say that it has undone its part"),
                Err(_) => link.abort().await,
            }
        }))
    }

    /// Waits until the target has undone its part. One that is out of reach is told as soon as the lanes are up again,
    /// while the job is over already: the guest here waits for nobody.
    pub(super) async fn await_undone(&self, told: Option<JoinHandle<()>>) {
        let Some(told) = told else { return };
        if tokio::time::timeout(ABORT_WAIT, told).await.is_err() {
            let text = format!("{} is not reached; it undoes its part when it is", self.plan().target.id);
            self.context.tell(EventBody::Notice { text }).await;
        }
    }
}
