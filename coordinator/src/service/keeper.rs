//! Keeps the lease: does what [`Lease`] says, and tells how it stands.

use tokio::sync::watch;
use tokio::time::Instant;

use sterna_shared::id::{Epoch, HostId};

use super::{Clock, Standing};
use crate::lease::{Lease, Step, Written};
use crate::store::Store;

/// Runs until `stopped` becomes true, then lays the lease down.
pub(super) async fn keep(
    name: HostId,
    store: Store,
    clock: Clock,
    floor: watch::Receiver<Epoch>,
    standing: watch::Sender<Standing>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut lease = Lease::new(name.as_str(), &uuid::Uuid::new_v4().to_string());
    let now = || clock.now().clock;
    while !*stopped.borrow() {
        let epoch_floor = *floor.borrow();
        match lease.next(now(), epoch_floor) {
            Step::Look => match store.read_lease().await {
                Ok(held) => lease.observed(now(), held),
                Err(error) => {
                    // A broker that is back without its store has no lease to be read, and nobody else makes one.
                    let made = store.make().await;
                    tracing::warn!(%error, remade = made.is_ok(), "the lease cannot be read");
                    lease.unseen(now());
                }
            },
            Step::Write { record, revision } => {
                let sent_at = now();
                let outcome = store.write_lease(&record, revision).await;
                if outcome != Written::Conflict {
                    tracing::trace!(?outcome, epoch = %record.epoch, "lease written");
                }
                lease.written(now(), sent_at, &record, outcome);
            }
            Step::WaitUntil(until) => {
                tokio::select! {
                    () = tokio::time::sleep_until(clock.instant(until)) => {}
                    _ = stopped.changed() => {}
                }
            }
        }
        let current = lease.leading(now()).map(|(epoch, until)| (epoch, clock.instant(until)));
        standing.send_if_modified(|told| {
            let changed = *told != current;
            *told = current;
            changed
        });
    }
    if let Some((record, revision)) = lease.release(now()) {
        standing.send_replace(None::<(Epoch, Instant)>);
        store.write_lease(&record, revision).await;
    }
}
