//! Headroom: what replication leaves free of a pool, for the guests that write to it.
//!
//! ```text
//!   free    ≥ headroom            a cycle may begin
//!           ≥ half of it          one that runs goes on
//!                                 layers are merged, if that is left beside what is there twice meanwhile
//!           below                 it is given up, and what it has put aside or written goes
//! ```
//!
//! What guests overwrite while a cycle reads is put aside in the pool of their own disks, and at the target a new layer grows.
//! Nobody knows before how much that will be, and a pool that is full stops guests: so free room is looked at, again and again. A
//! cycle that is given up costs nothing but its sending.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use sterna_shared::id::PoolName;
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskSpec;
use tokio::time::{MissedTickBehavior, interval};

use super::Host;

/// The headroom of a pool whose configuration does not say: that part of it, but no more than [`DEFAULT_MAX`].
const DEFAULT_PART: u64 = 10;
/// See [`DEFAULT_PART`]: a guest does not write more while a cycle is given up, however large the pool is.
const DEFAULT_MAX: ByteCount = ByteCount::mebibytes(4096);
/// What part of the headroom a cycle that runs may use up.
const USABLE_PART: u64 = 2;
/// How often free room is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A pool is too full for a cycle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pool {pool} has {free} free, and a replication cycle {} {least} free for guests", match .begun { true => "that runs leaves", false => "begins only with" })]
pub struct NearlyFull {
    /// The pool.
    pub pool: PoolName,
    /// What is free there.
    pub free: ByteCount,
    /// What has to be.
    pub least: ByteCount,
    /// Whether the cycle was under way.
    pub begun: bool,
}

/// The headroom of a pool with that capacity.
fn headroom(capacity: ByteCount, configured: Option<ByteCount>) -> ByteCount {
    configured.unwrap_or_else(|| ByteCount(capacity.0 / DEFAULT_PART).min(DEFAULT_MAX))
}

/// What must be free at least.
fn least(headroom: ByteCount, begun: bool) -> ByteCount {
    if begun { ByteCount(headroom.0 / USABLE_PART) } else { headroom }
}

/// Whether that much is left once more has been taken.
fn suffices(free: ByteCount, more: ByteCount, least: ByteCount) -> bool {
    free.0.checked_sub(more.0).is_some_and(|left| left >= least.0)
}

impl Host {
    /// Whether the pools of these disks are empty enough for a cycle to begin.
    ///
    /// # Errors
    /// One is not.
    pub fn expect_headroom<'a>(&self, disks: impl IntoIterator<Item = &'a DiskSpec>) -> Result<(), NearlyFull> {
        pools_of(disks).iter().try_for_each(|pool| self.expect_headroom_in(pool, false, ByteCount(0)))
    }

    /// Ends once one of the pools of these disks has become too full for the cycle that runs.
    pub async fn headroom_is_used_up<'a>(&self, disks: impl IntoIterator<Item = &'a DiskSpec>) -> NearlyFull {
        let pools = pools_of(disks);
        let look = async {
            let mut ticks = interval(LOOK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                pools.iter().try_for_each(|pool| self.expect_headroom_in(pool, true, ByteCount(0)))?;
            }
        };
        let Err::<Infallible, _>(full) = look.await;
        full
    }

    /// Whether the pools of these disks have room for what is merged into a layer of each, so much: it is there twice for a while.
    #[must_use]
    pub fn has_room_to_merge<'a>(&self, grows: impl IntoIterator<Item = (&'a DiskSpec, ByteCount)>) -> bool {
        let pools = sum_of_pools(grows);
        pools.iter().all(|(pool, more)| self.expect_headroom_in(pool, true, *more).is_ok())
    }

    fn expect_headroom_in(&self, name: &PoolName, begun: bool, more: ByteCount) -> Result<(), NearlyFull> {
        // Where it cannot be told, writing will tell. A volume of a volume group never grows.
        let Some(pool) = self.pools.get(name).filter(|pool| pool.extent().is_none()) else { return Ok(()) };
        let Ok(space) = pool.space() else { return Ok(()) };
        let configured = self.config.pools.get(name).and_then(|settings| settings.headroom);
        let least = least(headroom(space.capacity, configured), begun);
        if suffices(space.free, more, least) {
            return Ok(());
        }
        Err(NearlyFull { pool: name.clone(), free: space.free, least, begun })
    }
}

fn pools_of<'a>(disks: impl IntoIterator<Item = &'a DiskSpec>) -> BTreeSet<PoolName> {
    disks.into_iter().map(|disk| disk.pool.clone()).collect()
}

fn sum_of_pools<'a>(grows: impl IntoIterator<Item = (&'a DiskSpec, ByteCount)>) -> BTreeMap<PoolName, ByteCount> {
    let mut sums = BTreeMap::new();
    for (disk, more) in grows {
        let sum = sums.entry(disk.pool.clone()).or_insert(ByteCount(0));
        *sum = sum.plus(more);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: ByteCount = ByteCount::mebibytes(1024);

    #[test]
    fn a_pool_has_a_tenth_of_headroom_but_no_more_than_a_guest_fills_meanwhile() {
        assert_eq!(headroom(ByteCount(10 * GIB.0), None), GIB);
        assert_eq!(headroom(ByteCount(1000 * GIB.0), None), DEFAULT_MAX);
        assert_eq!(headroom(ByteCount(u64::MAX), None), DEFAULT_MAX);
        assert_eq!(headroom(ByteCount(10 * GIB.0), Some(ByteCount(3))), ByteCount(3));
        assert_eq!(headroom(GIB, Some(ByteCount(0))), ByteCount(0), "nobody has to want any");
    }

    #[test]
    fn a_cycle_that_runs_has_half_of_it_to_use() {
        assert_eq!(least(GIB, false), GIB);
        assert_eq!(least(GIB, true), ByteCount::mebibytes(512));
    }

    #[test]
    fn layers_are_merged_where_a_cycle_could_go_on_with_what_is_there_twice() {
        let half = least(GIB, true);
        let upper = ByteCount::mebibytes(300);
        assert!(suffices(half.plus(upper), upper, half));
        assert!(!suffices(half, upper, half), "enough for a cycle, and not for the merge");
        assert!(!suffices(upper, GIB, ByteCount(0)), "nor where nobody wants any headroom");
        let disk = |name: &str, pool: &str| -> DiskSpec {
            let disk = serde_json::json!({ "name": name, "pool": pool, "format": "qcow2", "size": 1 << 20 });
            serde_json::from_value(disk).expect("a disk")
        };
        let disks = [disk("root", "fast"), disk("data", "bulk"), disk("logs", "fast")];
        let sums = sum_of_pools(disks.iter().zip([ByteCount(3), ByteCount(5), ByteCount(4)]));
        assert_eq!(sums.values().copied().collect::<Vec<_>>(), [ByteCount(5), ByteCount(7)], "bulk, and both of fast");
    }

    #[test]
    fn what_is_too_full_is_told_with_its_figures() {
        let told = |begun| {
            let pool = "fast".parse().expect("a name");
            NearlyFull { pool, free: ByteCount::mebibytes(3), least: ByteCount::mebibytes(64), begun }.to_string()
        };
        assert_eq!(
            told(false),
            "pool fast has 3 MiB free, and a replication cycle begins only with 64 MiB free for guests"
        );
        assert_eq!(
            told(true),
            "pool fast has 3 MiB free, and a replication cycle that runs leaves 64 MiB free for guests"
        );
    }
}
