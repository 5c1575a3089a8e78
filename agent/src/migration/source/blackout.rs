//! The time for which the guest stands still: how long it may last, and what it is spent on.

use std::time::Duration;

use sterna_shared::job::Plan;
use tokio::time::Instant;
use tracing::debug;

use crate::journal::{Journal, Quiet};
use crate::migration::context::MoveError;

/// The blackout of one move. Until [`Blackout::begin`] the guest executes.
#[derive(Debug)]
pub(super) struct Blackout {
    limit_ms: u32,
    patience: Duration,
    began: Option<Instant>,
    lap: Option<Instant>,
    /// Events wait until it is over: their transactions would stand before those of the handover.
    quiet: Option<Quiet>,
}

impl Blackout {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { limit_ms: plan.blackout_max_ms, patience: plan.patience(), began: None, lap: None, quiet: None }
    }

    /// The guest has been paused, at that time.
    pub(super) fn begin(&mut self, at: Instant, journal: &Journal) {
        self.began = Some(at);
        self.lap = Some(at);
        self.quiet = Some(journal.quiet());
        self.part("seen");
    }

    /// It is over, or lasts for longer than anybody should be kept from being told.
    pub(super) fn over(&mut self) {
        self.quiet = None;
    }

    /// A part of it is over: what it cost is in the log of those who look for milliseconds.
    pub(super) fn part(&mut self, name: &'static str) {
        if let Some(lap) = &mut self.lap {
            debug!(part = name, us = microseconds(*lap), total_us = self.began.map(microseconds), "blackout");
            *lap = Instant::now();
        }
    }

    /// How long it has lasted, in microseconds.
    pub(super) fn us(&self) -> u64 {
        self.began.map_or(0, microseconds)
    }

    /// What it is to last at most: what copying aims at.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_millis(u64::from(self.limit_ms))
    }

    /// What it may last before the move is given up.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// When it has lasted for too long; nothing where the guest is not paused.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.began.map(|began| began + self.patience)
    }

    /// Waits for `work`, at most until the deadline.
    pub(super) async fn bounded<T, E>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, MoveError>
    where
        MoveError: From<E>,
    {
        match self.deadline() {
            Some(deadline) => Ok(tokio::time::timeout_at(deadline, work).await.map_err(|_| self.exceeded())??),
            None => Ok(work.await?),
        }
    }

    pub(super) fn exceeded(&self) -> MoveError {
        MoveError::Blackout { limit_ms: self.limit_ms }
    }
}

fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
