//! Copying memory, while what the guest writes to its disks follows pass by pass; and pausing the guest at a good moment.

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{EventBody, StepFigures, StepKind};
use sterna_shared::peer::message::Message;
use sterna_shared::units::Bandwidth;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::pre_switchover::PreSwitchover;
use super::{PREPARE_WAIT, Source, settings};
use crate::hypervisor::qemu::{Machine, MigrationSettings};
use crate::memory::SourceRelay;
use crate::migration::context::MoveError;
use crate::migration::convergence::{Convergence, Look, Next, Passed};

/// Between two looks at how far disks and memory are.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Rounds over memory that QEMU has begun when the first is over.
const ROUNDS_BEGUN: u64 = 2;
/// So much time's worth of memory may be in the lanes while a pass is made: its blocks wait behind it, and what the guest
/// dirties meanwhile is more for the next.
const IN_FLIGHT_PASS: Duration = Duration::from_millis(20);
/// And while QEMU may pause the guest, at first: what is in the lanes then is a part of the blackout, and may so grow with
/// what of that is allowed to memory.
const IN_FLIGHT_OPEN_MIN: Duration = Duration::from_millis(50);

impl Source {
    /// Memory is copied, until QEMU has paused the guest.
    pub(super) async fn copy_memory(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::CopyMemory).await?;
        let machine = self.machine.clone().ok_or(MoveError::NotConnected)?;
        self.open_memory(&machine).await?;
        let mut pre_switchover = PreSwitchover::watch(machine.clone());
        self.converge(&machine, &mut pre_switchover).await?;
        let (migration, paused_at) = pre_switchover.outcome()?;
        self.blackout.begin(paused_at, &context.host.journal);
        let ram = migration.ram;
        let disks = self.disk_figures();
        let figures = StepFigures {
            bytes_total: ram.map_or(0, |ram| ram.total.0).saturating_add(disks.bytes_total),
            bytes_sent: self.memory_sent().saturating_add(disks.bytes_sent),
            passes: ram.map_or(0, |ram| u32::try_from(ram.iterations).unwrap_or(u32::MAX)),
            ..StepFigures::default()
        };
        context.end(step, figures).await
    }

    async fn open_memory(&mut self, machine: &Machine) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let runtime = context.host.runtime(context.plan.vm.id).map_err(MoveError::Runtime)?;
        // QEMU keeps to the job's rate by itself too: what it sends faster only waits in the lanes, where it reckons it done
        // and pauses the guest long before it is.
        let settings = MigrationSettings { bandwidth: context.limiter.rate(), ..settings(&context.plan) };
        machine.migration_set_up(&settings).await?;
        let channels = u16::from(settings.multifd_channels) + 1;
        let link = self.link.as_mut().ok_or(MoveError::NotConnected)?;
        let relay = SourceRelay::listen(&runtime.memory_socket(), channels, link)?;
        let conversation = self.conversation.as_mut().ok_or(MoveError::NotConnected)?;
        conversation
            .ask(&Message::MemoryOpen { channels }, "memory ready", PREPARE_WAIT, |answer| {
                matches!(answer, Message::MemoryReady).then_some(())
            })
            .await?;
        context.progress.memory(machine.clone());
        machine.migrate(&runtime.memory_socket()).await?;
        self.relay = Some(relay);
        Ok(())
    }

    /// Makes passes, and lets QEMU pause the guest, until it has.
    async fn converge(&mut self, machine: &Machine, paused: &mut PreSwitchover) -> Result<(), MoveError> {
        let began = Instant::now();
        let mut convergence = Convergence::new(self.blackout.limit());
        if self.disks.is_none() {
            convergence.passed(Passed::default());
        }
        let failure = self.conversation.as_ref().ok_or(MoveError::NotConnected)?.failure();
        tokio::pin!(failure);
        loop {
            let dirty = match &self.disks {
                Some(disks) => disks.dirty().await?.0,
                None => 0,
            };
            let ram = machine.migration().await?.ram;
            let round_over = ram.is_some_and(|ram| ram.iterations >= ROUNDS_BEGUN);
            let next = convergence.next(Look { at: began.elapsed(), dirty, round_over });
            if next != Next::Wait {
                debug!(job = %self.plan().job, dirty, ?next, "look");
            }
            match next {
                Next::Wait => {}
                Next::Open(time) => {
                    self.allow_in_flight(time.max(IN_FLIGHT_OPEN_MIN));
                    machine.migration_go_on(self.context.limiter.rate(), time).await?;
                }
                Next::Pass => {
                    self.allow_in_flight(IN_FLIGHT_PASS);
                    machine.migration_hold(self.context.limiter.rate()).await?;
                    self.measured_pass(machine, &mut convergence, paused).await?;
                }
            }
            // What a pass has left is looked at without delay: it may be little enough to pause the guest.
            let pause = if next == Next::Pass { Duration::ZERO } else { LOOK_PAUSE };
            tokio::select! {
                biased;
                () = paused.reached() => return Ok(()),
                failed = &mut failure => return Err(failed.into()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One pass, and what it tells of the guest and the link.
    async fn measured_pass(
        &mut self,
        machine: &Machine,
        convergence: &mut Convergence,
        paused: &PreSwitchover,
    ) -> Result<(), MoveError> {
        let (began, sent_before) = (Instant::now(), self.disks_redone());
        let written_before = machine.written_bytes().await?.0;
        // The guest may be paused in spite of all while the pass is on its way: from then on its limit counts.
        let overdue = paused.overdue(self.blackout.patience());
        tokio::select! {
            biased;
            done = self.pass() => done?,
            () = overdue => return Err(self.blackout.exceeded()),
        }
        let Some(disks) = &self.disks else { return Ok(()) };
        if paused.is_reached() {
            return Ok(());
        }
        let pass = Passed {
            sent: self.disks_redone().saturating_sub(sent_before),
            took: began.elapsed(),
            dirty: disks.dirty().await?.0,
            written: machine.written_bytes().await?.0.saturating_sub(written_before),
        };
        debug!(job = %self.plan().job, ?pass, "pass");
        match convergence.passed(pass) {
            Some(limit) => self.hold_writes_back(machine, limit).await,
            None => Ok(()),
        }
    }

    fn allow_in_flight(&self, time: Duration) {
        if let Some(relay) = &self.relay {
            relay.allow_in_flight(time);
        }
    }

    fn disks_redone(&self) -> u64 {
        self.disks.as_ref().map_or(0, |disks| disks.volume().borrow().redone)
    }

    /// The guest writes faster than its disks can follow: it is slowed down, and everybody is told.
    async fn hold_writes_back(&mut self, machine: &Machine, limit: Bandwidth) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let disks = &context.plan.disks;
        let each = Bandwidth((limit.0 / u64::try_from(disks.len()).unwrap_or(1).max(1)).max(1));
        self.writes_held_back = true;
        for disk in disks {
            machine.throttle_writes(&disk.source, Some(each)).await?;
        }
        let text =
            format!("the guest writes faster than the link carries: each of its disks takes {each} at most for now");
        warn!(job = %context.plan.job, text, "throttled");
        context.tell(EventBody::Throttled { held_back: true, text }).await;
        Ok(())
    }

    /// The guest writes as fast as it likes again, if it runs on here.
    pub(super) async fn let_writes_go(&mut self, machine: &Machine) {
        let context = Arc::clone(&self.context);
        for disk in &context.plan.disks {
            if let Err(error) = machine.throttle_writes(&disk.source, None).await {
                warn!(job = %context.plan.job, disk = %disk.source.name, %error, "writes may still be held back");
            }
        }
        self.tell_writes_free().await;
    }

    /// The guest's writes are held back no more; the target's QEMU never did.
    pub(super) async fn tell_writes_free(&mut self) {
        if std::mem::take(&mut self.writes_held_back) {
            let text = "the guest's disk writes are no longer held back".to_owned();
            self.context.tell(EventBody::Throttled { held_back: false, text }).await;
        }
    }
}
