//! How far a job is: gathered where it happens, told at most twice a second.

use std::time::Duration;

use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{Progress, StepKind, Volume};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::bus::Bus;
use crate::clock;
use crate::hypervisor::qemu::Machine;

/// Between two tellings.
const INTERVAL: Duration = Duration::from_millis(500);
/// How much of the rate's past counts: the mean over about this many tellings.
const RATE_MEMORY: u64 = 6;
/// Sources of figures that a job may hand in before they are looked at.
const FEEDS_MAX: usize = 4;

/// Where a job's parts say how far they are. Dropping it ends the telling.
#[derive(Debug)]
pub struct ProgressBoard {
    step: watch::Sender<Option<StepKind>>,
    pass: watch::Sender<u32>,
    feeds: mpsc::Sender<Feed>,
}

/// A source of figures.
#[derive(Debug)]
enum Feed {
    Disks(watch::Receiver<Volume>),
    Memory(Machine),
}

impl ProgressBoard {
    /// Begins to tell, if this host is the one that `leads` the job: one voice a job is enough.
    #[must_use]
    pub fn start(bus: Bus, job: JobId, host: HostId, leads: bool) -> Self {
        let (feeds, receiver) = mpsc::channel(FEEDS_MAX);
        let board = Self { step: watch::Sender::new(None), pass: watch::Sender::new(0), feeds };
        let reporter = Reporter {
            bus,
            job,
            host,
            step: board.step.subscribe(),
            pass: board.pass.subscribe(),
            disks: None,
            machine: None,
            memory: Volume::default(),
            sent_before: 0,
            rate: 0,
            told_at: Instant::now(),
        };
        if leads {
            tokio::spawn(reporter.run(receiver));
        }
        board
    }

    /// A step begins.
    pub fn step(&self, step: StepKind) {
        self.step.send_replace(Some(step));
    }

    /// The step under way.
    #[must_use]
    pub fn current_step(&self) -> Option<StepKind> {
        *self.step.borrow()
    }

    /// A pass begins.
    pub fn pass(&self, pass: u32) {
        self.pass.send_replace(pass);
    }

    /// Where the disks' figures are.
    pub fn disks(&self, volume: watch::Receiver<Volume>) {
        let _ = self.feeds.try_send(Feed::Disks(volume));
    }

    /// Whom to ask for the memory's figures.
    pub fn memory(&self, machine: Machine) {
        let _ = self.feeds.try_send(Feed::Memory(machine));
    }
}

struct Reporter {
    bus: Bus,
    job: JobId,
    host: HostId,
    step: watch::Receiver<Option<StepKind>>,
    pass: watch::Receiver<u32>,
    disks: Option<watch::Receiver<Volume>>,
    machine: Option<Machine>,
    memory: Volume,
    sent_before: u64,
    rate: u64,
    told_at: Instant,
}

impl Reporter {
    async fn run(mut self, mut feeds: mpsc::Receiver<Feed>) {
        // The first is told when there is something to tell, and not half a second later.
        if self.step.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                feed = feeds.recv() => match feed {
                    Some(Feed::Disks(volume)) => self.disks = Some(volume),
                    Some(Feed::Memory(machine)) => self.machine = Some(machine),
                    None => return,
                },
                _ = ticks.tick() => self.tell().await,
            }
        }
    }

    async fn tell(&mut self) {
        let Some(step) = *self.step.borrow() else { return };
        // In the blackout QEMU has better things to do than to answer questions.
        if step <= StepKind::CopyMemory {
            self.ask_memory().await;
        }
        let disk = self.disks.as_ref().map_or_else(Volume::default, |volume| *volume.borrow());
        let sent = disk.sent + self.memory.sent;
        self.smooth(sent);
        let left = disk.remaining() + self.memory.remaining();
        let progress = Progress {
            job: self.job,
            host: self.host.clone(),
            at: clock::now(),
            step,
            pass: *self.pass.borrow(),
            disk,
            memory: self.memory,
            bytes_per_second: self.rate,
            remaining_seconds: left.checked_div(self.rate).and_then(|seconds| u32::try_from(seconds).ok()),
        };
        self.bus.publish_progress(&progress).await;
    }

    fn smooth(&mut self, sent: u64) {
        let elapsed_ms = u64::try_from(self.told_at.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = sent.saturating_sub(self.sent_before).saturating_mul(1000) / elapsed_ms;
        self.rate = if self.rate == 0 { rate } else { (self.rate * (RATE_MEMORY - 1) + rate) / RATE_MEMORY };
        self.sent_before = sent;
        self.told_at = Instant::now();
    }

    /// QEMU counts what it has sent and what remains; what was dirtied anew follows from the two, and only grows.
    async fn ask_memory(&mut self) {
        let Some(machine) = &self.machine else { return };
        let Ok(migration) = machine.migration().await else { return };
        let Some(ram) = migration.ram else { return };
        let (total, sent, remaining) = (ram.total.0, ram.transferred.0, ram.remaining.0);
        let first_round = ram.iterations <= 1;
        let memory = &mut self.memory;
        memory.total = total;
        memory.sent = sent;
        if first_round {
            memory.done = memory.done.max(total.saturating_sub(remaining));
            return;
        }
        memory.done = total;
        memory.redone = memory.redone.max(sent.saturating_sub(total));
        memory.dirtied = memory.dirtied.max(memory.redone + remaining);
    }
}
