//! Planned VMs: what a host holds ready for a VM that is elsewhere, until a move uses it, its time is up, or an operator
//! drops it. Hyper-V calls them the same.
//!
//! ```text
//!   job of kind Stage ──▶ planned VM at the target ──┬─ the VM moves there ──▶ gone: what it held is the VM's
//!                         memory and room are held   ├─ its time is up ──────▶ gone
//!                                                    └─ dropped ─────────────▶ gone
//! ```
//!
//! Nothing is made for it: no image, no process. What is held is a number of bytes that everybody else is refused. A host
//! has at most one planned VM of a VM; making another takes the place of the first.

use serde::{Deserialize, Serialize};

use crate::host::Pool;
use crate::id::{HostId, JobId, PlannedVmId, PoolName};
use crate::time::Timestamp;
use crate::units::ByteCount;
use crate::vm::{DiskSpec, VmSpec};

/// How long a planned VM is held where nobody says how long, in seconds.
pub const HOLD_DEFAULT_SECONDS: u32 = 86_400;
/// The shortest time that one may be held, in seconds.
pub const HOLD_MIN_SECONDS: u32 = 60;
/// The longest, in seconds: 30 days.
pub const HOLD_MAX_SECONDS: u32 = 30 * 86_400;
/// The most planned VMs that one host holds: each is part of every heartbeat.
pub const PLANNED_PER_HOST_MAX: usize = 64;

/// A VM that a host is prepared for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlannedVm {
    /// Its id: that of the job that made it, as a UUID.
    pub id: PlannedVmId,
    /// The VM as it will be at this host.
    pub spec: VmSpec,
    /// Those of its disks that would be copied here: room is held for them.
    pub disks: Vec<DiskSpec>,
    /// The job that made it.
    pub job: JobId,
    /// The host that had the VM then.
    pub source: HostId,
    /// When it was made, by its host's clock.
    pub made_at: Timestamp,
    /// Until when it is held, by its host's clock.
    pub expires_at: Timestamp,
}

impl PlannedVm {
    /// Whether its time is up.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }

    /// Whether it is of this VM, as that is now: where its disks are at its present host does not matter.
    #[must_use]
    pub fn fits(&self, vm: &VmSpec) -> bool {
        let mut there = vm.clone();
        for (disk, planned) in there.disks.iter_mut().zip(&self.spec.disks) {
            (disk.pool, disk.format) = (planned.pool.clone(), planned.format);
        }
        there == self.spec
    }

    /// What it holds of a pool of its host, as long as nothing of it is there.
    #[must_use]
    pub fn room_in(&self, pool: &Pool) -> ByteCount {
        let disks = self.disks.iter().filter(|disk| disk.pool == pool.name);
        disks.fold(ByteCount(0), |sum, disk| sum.plus(pool.room_for(disk.size)))
    }

    /// What its disks take at most, whole extents not counted.
    #[must_use]
    pub fn disk_bytes(&self) -> ByteCount {
        self.disks.iter().fold(ByteCount(0), |sum, disk| sum.plus(disk.size))
    }

    /// The pools that it holds room of, each once, in their order.
    #[must_use]
    pub fn pools(&self) -> Vec<&PoolName> {
        let mut pools: Vec<_> = self.disks.iter().map(|disk| &disk.pool).collect();
        pools.sort();
        pools.dedup();
        pools
    }
}

/// A planned VM, as the coordinators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlannedView {
    /// The host that holds it.
    pub host: HostId,
    /// What that host says.
    pub planned: PlannedVm,
    /// Whether a move of the VM would use it: the VM is known, and is still what it was.
    pub usable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        serde_json::from_value(serde_json::json!({
            "name": "web", "id": "0197c0de-0000-7000-8000-000000000001", "memory": 512 << 20, "vcpus": 1, "cpu": "max",
            "machine": "pc-q35-7.2",
            "disk": [
                { "name": "root", "pool": "fast", "size": 65536 * 3 },
                { "name": "data", "pool": "san", "size": 65536, "format": "raw" },
            ],
        }))
        .expect("a specification")
    }

    fn planned() -> PlannedVm {
        let at = Timestamp::from_unix_microseconds;
        let mut spec = spec();
        spec.disks[0].pool = "bulk".parse().expect("a name");
        let id = "0197c0de-0000-7000-8000-000000000101";
        PlannedVm {
            id: id.parse().expect("a UUID"),
            disks: vec![spec.disks[0].clone()],
            spec,
            job: id.parse().expect("a UUID"),
            source: "alpha".parse().expect("a name"),
            made_at: at(0),
            expires_at: at(60_000_000),
        }
    }

    #[test]
    fn it_fits_its_vm_wherever_the_disks_are_and_no_changed_one() {
        assert!(planned().fits(&spec()));
        let mut elsewhere = spec();
        elsewhere.disks[0].pool = "slow".parse().expect("a name");
        assert!(planned().fits(&elsewhere));
        let changes: [fn(&mut VmSpec); 4] = [
            |vm| vm.memory = ByteCount::mebibytes(1024),
            |vm| vm.disks[0].size = ByteCount(65536 * 4),
            |vm| drop(vm.disks.pop()),
            |vm| vm.id = "0197c0de-0000-7000-8000-0000000000ff".parse().expect("a UUID"),
        ];
        for change in changes {
            let mut changed = spec();
            change(&mut changed);
            assert!(!planned().fits(&changed), "{changed:?}");
        }
    }

    #[test]
    fn it_holds_whole_extents_of_the_pools_of_copied_disks() {
        let pool = |name: &str, extent: Option<u64>| Pool {
            name: name.parse().expect("a name"),
            shared: None,
            capacity: ByteCount(1 << 40),
            free: ByteCount(1 << 40),
            reserved: ByteCount(0),
            extent: extent.map(ByteCount),
        };
        assert_eq!(planned().room_in(&pool("bulk", None)), ByteCount(65536 * 3));
        assert_eq!(planned().room_in(&pool("bulk", Some(65536 * 2))), ByteCount(65536 * 4));
        assert_eq!(planned().room_in(&pool("san", None)), ByteCount(0), "it is not copied");
        assert_eq!(planned().pools().len(), 1);
    }

    #[test]
    fn its_time_is_up_at_the_instant_and_not_before() {
        let at = Timestamp::from_unix_microseconds;
        assert!(!planned().is_expired(at(59_999_999)));
        assert!(planned().is_expired(at(60_000_000)));
    }
}
