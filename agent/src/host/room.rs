//! Room: whether something still fits on this host beside what it holds for planned VMs.
//!
//! ```text
//!   memory    what the host has   = VMs that are here or on their way + held for planned VMs + free
//!   a pool    what is free in it  = still to come of moves under way  + held for planned VMs + free
//! ```
//!
//! Only what is new here is held against it: a move in, disks of a storage move, a VM that is defined, another planned VM.
//! Where nothing is held for others, room is not looked at here, as it always was: a pool may be filled by what is thin. What
//! guests that are here already write into their thin images is not bounded by this either.
//!
//! The sums are pure; what they are taken of is in the journal, so that every part of the agent sees the same.

use sterna_shared::host::Pool as PoolReport;
use sterna_shared::id::{PoolName, VmId};
use sterna_shared::job::Plan;
use sterna_shared::ownership::Record;
use sterna_shared::planned::PlannedVm;
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskSpec;

use super::Host;
use crate::disk::pool::Pool;
use crate::journal::{JournalError, Partial, VmRecord};

/// What something new takes of this host at most.
#[derive(Debug, Clone, Copy)]
pub struct Need<'a> {
    /// The VM. What is held for itself does not stand in its way.
    pub vm: VmId,
    /// Memory.
    pub memory: ByteCount,
    /// Disks that are to be made.
    pub disks: &'a [DiskSpec],
    /// Whether it is to be held, and not used now: then it must be there, whether anything else is held or not.
    pub hold: bool,
}

/// Why something does not fit.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// Too little memory.
    #[error("{needed} of memory are needed; of {total} here {used} are in use, and {held} are held for planned VMs")]
    Memory {
        /// What is needed.
        needed: ByteCount,
        /// What there is in all.
        total: ByteCount,
        /// What VMs have.
        used: ByteCount,
        /// What is held.
        held: ByteCount,
    },
    /// Too little room in a pool.
    #[error(
        "{needed} of pool {pool} are needed; of {free} that are free there {coming} are for moves under way, and {held} are held for planned VMs"
    )]
    Pool {
        /// The pool.
        pool: PoolName,
        /// What is needed.
        needed: ByteCount,
        /// What is free.
        free: ByteCount,
        /// What moves under way still take of it.
        coming: ByteCount,
        /// What is held.
        held: ByteCount,
    },
    /// What is held is not known.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What there is of a thing, and what of it is spoken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Balance {
    there: ByteCount,
    taken: ByteCount,
    held: ByteCount,
}

impl Balance {
    fn admits(self, needed: ByteCount, hold: bool) -> bool {
        let looked_at = hold || self.held.0 > 0;
        !looked_at || self.taken.plus(self.held).plus(needed) <= self.there
    }
}

/// Of memory, as a VM sees it.
fn balance_of_memory(total: ByteCount, vms: &[VmRecord], planned: &[PlannedVm], vm: VmId) -> Balance {
    let here = |record: &&VmRecord| !matches!(record.ownership, Record::Absent { .. } | Record::Ceded { .. });
    let here: Vec<_> = vms.iter().filter(here).map(|record| &record.spec).collect();
    let used = here.iter().filter(|spec| spec.id != vm);
    // What is on its way has what was held for it.
    let held = planned.iter().filter(|planned| planned.spec.id != vm);
    let held = held.filter(|planned| here.iter().all(|spec| spec.id != planned.spec.id));
    Balance {
        there: total,
        taken: used.fold(ByteCount(0), |sum, spec| sum.plus(spec.memory)),
        held: held.fold(ByteCount(0), |sum, planned| sum.plus(planned.spec.memory)),
    }
}

/// Of a pool of which that much is free, as a VM sees it. `left` says what an image still takes that is being filled.
fn balance_of_pool(
    free: ByteCount,
    pool: &PoolReport,
    planned: &[PlannedVm],
    filling: &[Partial],
    vm: VmId,
    left: impl Fn(VmId, &DiskSpec) -> ByteCount,
) -> Balance {
    let of_others = |of: VmId, disk: &DiskSpec| of != vm && disk.pool == pool.name;
    let coming = filling.iter().flat_map(|partial| partial.disks.iter().map(|disk| (partial.vm, &disk.spec)));
    let coming: Vec<_> = coming.filter(|(of, disk)| of_others(*of, disk)).collect();
    let held = planned.iter().flat_map(|planned| planned.disks.iter().map(|disk| (planned.spec.id, disk)));
    let held = held.filter(|(of, disk)| of_others(*of, disk));
    // A disk for which room is held, and which is being filled: what it still takes is held, and no more.
    let is_filled = |of: VmId, disk: &DiskSpec| coming.iter().any(|(vm, other)| *vm == of && other.name == disk.name);
    let held = held.filter(|(of, disk)| !is_filled(*of, disk));
    let held = held.fold(ByteCount(0), |sum, (_, disk)| sum.plus(pool.room_for(disk.size)));
    let planned_for = |of: VmId| planned.iter().any(|planned| planned.spec.id == of);
    let (ours, taken): (Vec<_>, Vec<_>) = coming.iter().partition(|(of, _)| planned_for(*of));
    let sum =
        |disks: Vec<(VmId, &DiskSpec)>| disks.iter().fold(ByteCount(0), |sum, (of, disk)| sum.plus(left(*of, disk)));
    Balance { there: free, taken: sum(taken), held: held.plus(sum(ours)) }
}

impl Host {
    /// Whether something fits beside what is held for others.
    ///
    /// # Errors
    /// [`RoomError`] says what does not suffice.
    pub fn expect_room(&self, need: Need<'_>) -> Result<(), RoomError> {
        let (vms, planned, partials) = (self.journal.vms()?, self.journal.planned()?, self.journal.partials()?);
        let total = self.probe.memory;
        let memory = balance_of_memory(total, &vms, &planned, need.vm);
        if need.memory.0 > 0 && !memory.admits(need.memory, need.hold) {
            let (needed, used, held) = (need.memory, memory.taken, memory.held);
            return Err(RoomError::Memory { needed, total, used, held });
        }
        let (kept, filling): (Vec<_>, Vec<_>) = partials.into_iter().partition(|partial| partial.kept.is_some());
        for pool in self.pools.values() {
            let report = self.pool_report(pool, &kept, &[]);
            let disks = need.disks.iter().filter(|disk| disk.pool == report.name);
            let own = |disk: &DiskSpec| match kept.iter().any(|kept| kept.vm == need.vm) {
                true => report.room_for(disk.size), // What there is of it counts as free.
                false => self.left(pool, need.vm, disk),
            };
            let needed = disks.fold(ByteCount(0), |sum, disk| sum.plus(own(disk)));
            let left = |vm: VmId, disk: &DiskSpec| self.left(pool, vm, disk);
            let balance = balance_of_pool(report.free, &report, &planned, &filling, need.vm, left);
            if needed.0 > 0 && !balance.admits(needed, need.hold) {
                let Balance { there: free, taken: coming, held } = balance;
                return Err(RoomError::Pool { pool: report.name, needed, free, coming, held });
            }
        }
        Ok(())
    }

    /// Whether what a move or a storage move makes here fits beside what is held for others.
    ///
    /// # Errors
    /// As [`Self::expect_room`].
    pub fn expect_room_for(&self, plan: &Plan) -> Result<(), RoomError> {
        let disks: Vec<DiskSpec> = plan.disks.iter().map(|disk| disk.target.clone()).collect();
        // A VM that comes stopped takes its memory when it is started, and nobody asks then.
        let memory = if plan.source.id == plan.target.id { ByteCount(0) } else { plan.vm.memory };
        self.expect_room(Need { vm: plan.vm.id, memory, disks: &disks, hold: false })
    }

    /// What is held of a pool for other VMs than this, or still taken of it by their moves.
    pub(crate) fn spoken_for(&self, pool: &Pool, vm: VmId) -> Result<ByteCount, JournalError> {
        let (planned, partials) = (self.journal.planned()?, self.journal.partials()?);
        let filling: Vec<_> = partials.into_iter().filter(|partial| partial.kept.is_none()).collect();
        let report = self.pool_report(pool, &[], &[]);
        let left = |vm: VmId, disk: &DiskSpec| self.left(pool, vm, disk);
        let balance = balance_of_pool(report.free, &report, &planned, &filling, vm, left);
        Ok(if balance.held.0 > 0 { balance.taken.plus(balance.held) } else { ByteCount(0) })
    }

    /// A pool as it is reported: what of it is free, and what is held for planned VMs.
    pub(super) fn pool_report(&self, pool: &Pool, kept: &[Partial], planned: &[PlannedVm]) -> PoolReport {
        let (capacity, free) = pool.space().map_or((ByteCount(0), ByteCount(0)), |space| (space.capacity, space.free));
        let free = kept.iter().map(|kept| self.allocated(kept, Some(pool.name()))).fold(free, ByteCount::plus);
        let (name, shared) = (pool.name().clone(), pool.shared().map(str::to_owned));
        let report = PoolReport { name, shared, capacity, free, reserved: ByteCount(0), extent: pool.extent() };
        let held = planned.iter().fold(ByteCount(0), |sum, planned| {
            let is_kept = kept.iter().any(|kept| kept.vm == planned.spec.id);
            let disks = planned.disks.iter().filter(|disk| disk.pool == report.name);
            disks.fold(sum, |sum, disk| {
                let whole = report.room_for(disk.size);
                sum.plus(if is_kept { whole } else { self.left(pool, planned.spec.id, disk) })
            })
        });
        let reserved = held.min(free);
        PoolReport { free: ByteCount(free.0.saturating_sub(reserved.0)), reserved, ..report }
    }

    /// What a disk still takes of its pool, beside what there is of its image.
    fn left(&self, pool: &Pool, vm: VmId, disk: &DiskSpec) -> ByteCount {
        let is_there = || pool.image_path(vm, &disk.name, disk.format).exists();
        match pool.extent() {
            // A volume takes all that it is to have when it is made.
            Some(_) if is_there() => ByteCount(0),
            Some(extent) => ByteCount(disk.size.0.checked_next_multiple_of(extent.0.max(1)).unwrap_or(u64::MAX)),
            None => ByteCount(disk.size.0.saturating_sub(pool.allocated(vm, &disk.name, disk.format).0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::id::{Generation, JobId};
    use sterna_shared::ownership::Move;

    use super::*;
    use crate::journal::planned_tests::planned;
    use crate::journal::{PartialDisk, VmRecord};

    const WEB: &str = "0197c0de-0000-7000-8000-000000000011";
    const MAIL: &str = "0197c0de-0000-7000-8000-000000000012";
    const MIB: u64 = 1 << 20;

    fn id(text: &str) -> VmId {
        text.parse().expect("a UUID")
    }

    fn record(vm: &str, ownership: Record) -> VmRecord {
        VmRecord { spec: planned(vm, "fast", MIB).spec, ownership, wanted_running: true }
    }

    fn pool(extent: Option<u64>) -> PoolReport {
        PoolReport {
            name: "fast".parse().expect("a name"),
            shared: None,
            capacity: ByteCount(100 * MIB),
            free: ByteCount(100 * MIB),
            reserved: ByteCount(0),
            extent: extent.map(ByteCount),
        }
    }

    /// In MiB: taken and held.
    fn figures(balance: Balance) -> (u64, u64) {
        (balance.taken.0 / MIB, balance.held.0 / MIB)
    }

    #[test]
    fn memory_is_held_for_a_vm_until_the_vm_itself_has_it() {
        let owner = Record::Owner { generation: Generation(1) };
        let from = Move { job: JobId::from_uuid(id(WEB).uuid()), peer: "alpha".parse().expect("a name") };
        let incoming = Record::Incoming { owned: Generation(0), generation: Generation(2), from };
        let total = ByteCount(200 * MIB);
        let held = [planned(WEB, "fast", MIB)];
        let seen = |vms: &[VmRecord], by: &str| figures(balance_of_memory(total, vms, &held, id(by)));
        // Each VM has 64 MiB.
        assert_eq!(seen(&[], MAIL), (0, 64));
        assert_eq!(seen(&[], WEB), (0, 0), "its own does not stand in its way");
        assert_eq!(seen(&[record(MAIL, owner.clone())], WEB), (64, 0));
        assert_eq!(seen(&[record(WEB, incoming)], MAIL), (64, 0), "what comes has what was held, and not twice");
        assert_eq!(seen(&[record(WEB, owner)], MAIL), (64, 0));
        assert_eq!(seen(&[record(WEB, Record::default())], MAIL), (0, 64), "a tombstone takes nothing");
    }

    #[test]
    fn room_of_a_pool_is_held_until_it_is_filled() {
        let held = [planned(WEB, "fast", 10 * MIB), planned(MAIL, "bulk", 50 * MIB)];
        let filling = |vm: &str| Partial {
            vm: id(vm),
            name: "web".parse().expect("a name"),
            job: JobId::from_uuid(id(WEB).uuid()),
            disks: vec![PartialDisk::new(planned(vm, "fast", 10 * MIB).disks[0].clone(), &Default::default())],
            kept: None,
            way_back_seconds: None,
        };
        let seen = |filling: &[Partial], extent: Option<u64>, by: &str| {
            let (pool, left) = (pool(extent), |_: VmId, _: &DiskSpec| ByteCount(3 * MIB));
            figures(balance_of_pool(pool.free, &pool, &held, filling, id(by), left))
        };
        assert_eq!(seen(&[], None, MAIL), (0, 10));
        assert_eq!(seen(&[], Some(4 * MIB), MAIL), (0, 12), "whole extents");
        assert_eq!(seen(&[], None, WEB), (0, 0), "what is held of another pool does not matter here");
        assert_eq!(seen(&[filling(WEB)], None, MAIL), (0, 3), "only what is still to come of it");
        let other = "0197c0de-0000-7000-8000-000000000013";
        assert_eq!(seen(&[filling(other)], None, MAIL), (3, 10));
        assert_eq!(seen(&[filling(other)], None, other), (0, 10));
    }

    #[test]
    fn what_is_held_is_refused_to_others_and_nothing_is_where_nothing_is_held() {
        let balance = |taken, held| Balance { there: ByteCount(100), taken: ByteCount(taken), held: ByteCount(held) };
        assert!(balance(20, 30).admits(ByteCount(50), false));
        assert!(!balance(20, 30).admits(ByteCount(51), false));
        assert!(balance(90, 0).admits(ByteCount(50), false), "as ever");
        assert!(!balance(90, 0).admits(ByteCount(50), true), "what is to be held must be there");
        assert!(!balance(u64::MAX, 1).admits(ByteCount(u64::MAX), false), "no sum goes round");
    }
}
