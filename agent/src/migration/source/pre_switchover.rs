//! Knowing when QEMU has paused the guest.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::hypervisor::qemu::{Machine, MachineError, Migration, MigrationStatus};
use crate::migration::context::MoveError;

/// How long memory may take to get to the switchover.
const MEMORY_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The moment at which QEMU pauses the guest, seen by a task of its own, whatever the job is busy with.
#[derive(Debug)]
pub(super) struct PreSwitchover {
    outcome: watch::Receiver<Option<Reached>>,
    _task: JoinSet<()>,
}

/// How far the migration was then, or why it never will be; and when that was.
#[derive(Debug, Clone)]
struct Reached {
    migration: Result<Migration, Arc<MachineError>>,
    at: Instant,
}

impl PreSwitchover {
    pub(super) fn watch(machine: Machine) -> Self {
        let (sender, outcome) = watch::channel(None);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let reached = machine.migration_reached(&[MigrationStatus::PreSwitchover], MEMORY_WAIT).await;
            sender.send_replace(Some(Reached { migration: reached.map_err(Arc::new), at: Instant::now() }));
        });
        Self { outcome, _task: task }
    }

    /// Whether it is reached, or cannot be reached any more.
    pub(super) fn is_reached(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Waits until it is reached, or cannot be reached any more.
    pub(super) async fn reached(&mut self) {
        let _ = self.outcome.wait_for(Option::is_some).await;
    }

    /// Waits until the guest has been paused for `limit`; for ever where it never is.
    pub(super) fn overdue(&self, limit: Duration) -> impl Future<Output = ()> + 'static {
        let mut outcome = self.outcome.clone();
        async move {
            let paused = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
            match paused {
                Some(Reached { migration: Ok(_), at }) => tokio::time::sleep_until(at + limit).await,
                _ => std::future::pending().await,
            }
        }
    }

    pub(super) fn outcome(self) -> Result<(Migration, Instant), MoveError> {
        let outcome = self.outcome.borrow().clone();
        let Reached { migration, at } = outcome.ok_or(MoveError::NotConnected)?;
        Ok((migration.map_err(MoveError::MigrationEnded)?, at))
    }
}
