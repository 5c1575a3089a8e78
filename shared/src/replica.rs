//! Replicas: a VM's disks at another host, as they were at points in time, while the VM runs where it is.
//!
//! ```text
//!   cycle 1 ──▶ layer 1   everything                      snapshot 1 ─┐
//!   cycle 2 ──▶ layer 2   what was written since          snapshot 2 ─┼─▶ a clone's disks stand on any of them
//!   cycle 3 ──▶ layer 3   what was written since          snapshot 3 ─┘
//! ```
//!
//! A snapshot is what its layer and all layers below hold together. One record, written at once, says which there are: a
//! cycle that is not over is in none. A snapshot that goes leaves its layer, which others stand on; layers without one are
//! merged downwards, but for those that a clone stands on.
//!
//! Google's Migrate to VMs calls the whole a `MigratingVm`, and a cycle a `ReplicationCycle`.

mod seed;
mod standing;
mod view;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::{BridgeName, HostId, HostName, JobId, PoolName, VmId, VmName};
use crate::job::CutoverForecast;
use crate::rehearsal::Rehearsal;
use crate::time::Timestamp;
use crate::units::ByteCount;
use crate::vm::{DiskSpec, Firmware, VmSpec};

pub use seed::{SEED_SIZE, SeedWish};
pub use standing::{CutoverStanding, ReplicaState, Standing};
pub use view::ReplicaView;

/// The most layers of one replica: each opens a file of every disk in a clone's QEMU.
pub const LAYERS_MAX: usize = 200;
/// The most replicas of one host: its heartbeat tells all of them in one message, beside its VMs.
pub const HOST_REPLICAS_MAX: usize = 200;
/// The most layers of all replicas of one host together, likewise.
pub const HOST_LAYERS_MAX: usize = 1500;
/// How long nothing is done between two cycles where nobody says how long, in seconds.
pub const IDLE_DEFAULT_SECONDS: u32 = 300;
/// The longest pause between two cycles, in seconds: 30 days.
pub const IDLE_MAX_SECONDS: u32 = 30 * 86_400;

/// A VM's disks at a host that does not run it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Replica {
    /// The VM as it was at its host when the latest cycle began.
    pub vm: VmSpec,
    /// Its disks at this host: the pool of each, and its size. All are qcow2.
    pub disks: Vec<DiskSpec>,
    /// The host that the latest cycle came from.
    pub source: HostId,
    /// The layers, the lowest first. Empty until the first cycle is over.
    pub layers: Vec<Layer>,
    /// The number of the next layer.
    pub next: u32,
}

/// A layer of a replica: one file of each disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Layer {
    /// Its number, which its files are named by.
    pub number: u32,
    /// What it and the layers below it hold together, where that can be had.
    pub snapshot: Option<Snapshot>,
}

/// A VM's disks at one point in time, all of them at the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Snapshot {
    /// Its number, from 1: that of the layer that it was made with.
    pub number: u32,
    /// The cycle, a job of its own.
    pub cycle: JobId,
    /// Which attempt of it: one that was suspended goes on as another, from another point in time.
    #[serde(default)]
    pub attempt: u32,
    /// The point in time, by the source's clock.
    pub taken_at: Timestamp,
    /// When it was whole at this host, by this host's clock.
    pub complete_at: Timestamp,
    /// What state the guest had its disks in.
    pub consistency: Consistency,
    /// What the cycle wrote.
    pub written: ByteCount,
    /// Whether some of what it holds is no longer what was written, as a verification has found: no clone is made of it.
    #[serde(default)]
    pub damaged: bool,
}

/// What state a guest had its disks in at a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// As after a loss of power: everything that was acknowledged is there.
    Crash,
    /// The guest agent had its file systems frozen.
    Application,
    /// The guest was shut down.
    Stopped,
}

/// Which snapshots are kept. The latest one always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// So many of the latest.
    pub last: u32,
    /// The latest of each of so many hours in which there is one.
    pub hourly: u32,
    /// The latest of each of so many days likewise, by UTC.
    pub daily: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { last: 3, hourly: 0, daily: 0 }
    }
}

impl Retention {
    /// Everything that is wrong with it, each in a sentence.
    #[must_use]
    pub fn faults(self) -> Vec<String> {
        let all = [self.last, self.hourly, self.daily].iter().fold(0_u32, |sum, some| sum.saturating_add(*some));
        let most = u32::try_from(LAYERS_MAX / 2).unwrap_or(u32::MAX);
        let faults = [
            (self.last == 0).then(|| "no snapshot would be kept; give last=1 or more".to_owned()),
            (all > most).then(|| format!("{all} snapshots are too many to keep; give at most {most} together")),
        ];
        faults.into_iter().flatten().collect()
    }
}

/// What an operator wants of a replication, beside where to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ReplicationWish {
    /// Which snapshots are kept.
    pub retention: Retention,
}

/// The VM that an operator wants made of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CloneWish {
    /// Its id, which the asker draws.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// The snapshot that it is made from; the latest where it is left out.
    #[serde(default)]
    pub snapshot: Option<u32>,
    /// Where its disks are made; each in the pool of its replica where it is left out.
    #[serde(default)]
    pub pool: Option<PoolName>,
    /// Its virtual processors; those of the replicated VM where it is left out.
    #[serde(default)]
    pub vcpus: Option<u16>,
    /// Its memory likewise.
    #[serde(default)]
    pub memory: Option<ByteCount>,
    /// What it has to boot by, which is what the replicated VM has, or it is not made.
    #[serde(default)]
    pub firmware: Option<Firmware>,
    /// Whether its UEFI firmware starts only what is signed; as that of the replicated VM where it is left out.
    #[serde(default)]
    pub secure_boot: Option<bool>,
    /// What its interfaces are connected to.
    #[serde(default)]
    pub network: NetworkWish,
    /// Whether it stands on nothing but its own disks: what the replica holds is copied.
    #[serde(default)]
    pub full: bool,
    /// Whether it is started.
    #[serde(default)]
    pub start: bool,
    /// Whether the system on its disks is left as it is, with the host name, the keys and the ids of the replicated VM.
    #[serde(default)]
    pub skip_os_adaptation: bool,
    /// What that system calls itself; made of the clone's name where it is left out.
    #[serde(default)]
    pub hostname: Option<HostName>,
    /// Whether it has a seed for cloud-init.
    #[serde(default)]
    pub seed: SeedWish,
    /// Of a rehearsal: what it is about. Its clone's id is the job's.
    #[serde(default)]
    pub rehearsal: Option<Rehearsal>,
}

/// What the interfaces of a clone are connected to. Each has a new address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum NetworkWish {
    /// To nothing: each is alone in a network of its own.
    #[default]
    Isolated,
    /// Each to the bridge that the replicated VM's is connected to.
    Same,
    /// All to this bridge.
    Bridge(BridgeName),
}

/// What the disks of a clone stand on, or are copied from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CloneOf {
    /// The replicated VM.
    pub replica: VmId,
    /// The snapshot.
    pub snapshot: u32,
    /// Whether what it holds is copied.
    pub full: bool,
    /// Whether the clone is started.
    pub start: bool,
    /// What the system on its disks calls itself; made of the clone's name where it is left out.
    #[serde(default)]
    pub hostname: Option<HostName>,
    /// Whether it has a seed, one disk more than it is planned with.
    #[serde(default = "SeedWish::never")]
    pub seed: SeedWish,
    /// Of a rehearsal: what the clone has to answer before it is deleted.
    #[serde(default)]
    pub rehearsal: Option<Rehearsal>,
}

/// How long the way back is kept after a cutover where nobody says how long, in seconds: a day.
pub const REVERT_DEFAULT_SECONDS: u32 = 86_400;
/// The longest that the way back is kept after a cutover, in seconds: 30 days.
pub const REVERT_MAX_SECONDS: u32 = 30 * 86_400;

/// What an operator wants of a cutover, beside where to and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CutoverWish {
    /// How long the source keeps its images for the way back, in seconds; not at all where it is 0, and
    /// [`REVERT_DEFAULT_SECONDS`] where it is left out.
    pub revert_seconds: Option<u32>,
    /// Whether a guest that does not obey its power button is stopped as by a power cut, in a cold one.
    pub force: bool,
}

/// What a cutover begins with at its target, and what it leaves at its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CutoverOf {
    /// The snapshot of the replica whose content the images are made with.
    pub snapshot: u32,
    /// Whether the guest runs when it is planned, is shut down in the course of it where it is cold, and is to run at the target.
    pub runs: bool,
    /// Whether it is stopped as by a power cut where it does not obey its power button.
    pub force: bool,
    /// How long the source keeps its images for the way back, in seconds.
    pub revert_seconds: u32,
    /// What it was expected to take when it began; none where nothing was measured.
    #[serde(default)]
    pub forecast: Option<CutoverForecast>,
}

/// The snapshot of a replica that a disk of a clone stands on: what was never written to it is read from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Base {
    /// The replicated VM.
    pub replica: VmId,
    /// The layer whose file the disk stands on.
    pub layer: u32,
    /// The pool that the replica's files of this disk are in.
    pub pool: PoolName,
}

/// Why a host that has these replicas takes no other layer of a VM's; none where it does.
#[must_use]
pub fn limit_reached(replicas: &[Replica], vm: VmId) -> Option<String> {
    let layers: usize = replicas.iter().map(|replica| replica.layers.len()).sum();
    let is_new = replicas.iter().all(|replica| replica.vm.id != vm);
    if layers >= HOST_LAYERS_MAX {
        return Some(format!("it has {layers} layers of replicas, and may have {HOST_LAYERS_MAX}"));
    }
    let full = is_new && replicas.len() >= HOST_REPLICAS_MAX;
    full.then(|| format!("it has {} replicas, and may have {HOST_REPLICAS_MAX}", replicas.len()))
}

impl Replica {
    /// The replica of a VM of which no cycle is over yet.
    #[must_use]
    pub fn new(vm: VmSpec, disks: Vec<DiskSpec>, source: HostId) -> Self {
        Self { vm, disks, source, layers: Vec::new(), next: 1 }
    }

    /// All snapshots, the oldest first.
    pub fn snapshots(&self) -> impl DoubleEndedIterator<Item = &Snapshot> {
        self.layers.iter().filter_map(|layer| layer.snapshot.as_ref())
    }

    /// The latest snapshot. It is that of the uppermost layer.
    #[must_use]
    pub fn latest(&self) -> Option<&Snapshot> {
        self.snapshots().next_back()
    }

    /// Notes that snapshots do not hold what was written. The next cycle compares all, and makes one that does.
    pub fn mark_damaged(&mut self, snapshots: &BTreeSet<u32>) {
        for snapshot in self.layers.iter_mut().filter_map(|layer| layer.snapshot.as_mut()) {
            snapshot.damaged |= snapshots.contains(&snapshot.number);
        }
    }

    /// The layer that a snapshot is of.
    #[must_use]
    pub fn layer_of(&self, snapshot: u32) -> Option<u32> {
        let is_of = |layer: &&Layer| layer.snapshot.as_ref().is_some_and(|found| found.number == snapshot);
        self.layers.iter().find(is_of).map(|layer| layer.number)
    }

    /// A layer and all below it, the lowest first; none where there is no such layer.
    #[must_use]
    pub fn chain(&self, layer: u32) -> Option<Vec<u32>> {
        let place = self.layers.iter().position(|found| found.number == layer)?;
        Some(self.layers[..=place].iter().map(|layer| layer.number).collect())
    }

    /// A cycle is over: its layer is the uppermost from here on.
    pub fn add(&mut self, snapshot: Snapshot) {
        self.next = snapshot.number + 1;
        self.layers.push(Layer { number: snapshot.number, snapshot: Some(snapshot) });
    }

    /// Gives up the snapshots that are not to be kept: their numbers. Layers that a clone stands on keep theirs.
    pub fn prune(&mut self, retention: Retention, used_layers: &BTreeSet<u32>) -> Vec<u32> {
        let kept = self.kept(retention);
        let mut gone = Vec::new();
        for layer in &mut self.layers {
            if used_layers.contains(&layer.number) {
                continue;
            }
            if let Some(snapshot) = layer.snapshot.take_if(|snapshot| !kept.contains(&snapshot.number)) {
                gone.push(snapshot.number);
            }
        }
        gone
    }

    fn kept(&self, retention: Retention) -> BTreeSet<u32> {
        const HOUR_US: i64 = 3_600_000_000;
        let mut kept = BTreeSet::new();
        let newest_first = || self.snapshots().rev();
        kept.extend(newest_first().take(retention.last.max(1) as usize).map(|snapshot| snapshot.number));
        for (unit, count) in [(HOUR_US, retention.hourly), (24 * HOUR_US, retention.daily)] {
            let mut units = BTreeSet::new();
            for snapshot in newest_first() {
                let of = snapshot.taken_at.unix_microseconds().div_euclid(unit);
                if !units.contains(&of) && units.len() < count as usize {
                    units.insert(of);
                    kept.insert(snapshot.number);
                }
            }
        }
        kept
    }

    /// The next two layers to be merged: what the second holds goes into the first, whose own snapshot is gone. None of those
    /// that a clone stands on, nor of what is below.
    #[must_use]
    pub fn mergeable(&self, used_layers: &BTreeSet<u32>) -> Option<(u32, u32)> {
        let free = self.layers.iter().rposition(|layer| used_layers.contains(&layer.number)).map_or(0, |used| used + 1);
        let pairs = self.layers[free..].windows(2);
        let mut pairs = pairs.filter(|pair| pair[0].snapshot.is_none());
        pairs.next().map(|pair| (pair[0].number, pair[1].number))
    }

    /// What the layer `upper` held is in the one below it, which has its snapshot from here on; its files are nobody's.
    pub fn merged(&mut self, upper: u32) {
        let Some(place) = self.layers.iter().position(|layer| layer.number == upper).filter(|place| *place > 0) else {
            return;
        };
        let Layer { snapshot, .. } = self.layers.remove(place);
        self.layers[place - 1].snapshot = snapshot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(hours: &[i64]) -> Replica {
        let vm: VmSpec = serde_json::from_value(serde_json::json!({
            "name": "web", "id": "0197c0de-0000-7000-8000-000000000001", "memory": 512 << 20,
        }))
        .expect("a specification");
        let mut replica = Replica::new(vm, Vec::new(), "alpha".parse().expect("a name"));
        for (number, hour) in (1..).zip(hours) {
            let at = Timestamp::from_unix_microseconds(hour * 3_600_000_000);
            replica.add(Snapshot {
                number,
                cycle: "0197c0de-0000-7000-8000-000000000101".parse().expect("a UUID"),
                attempt: 0,
                taken_at: at,
                complete_at: at,
                consistency: Consistency::Crash,
                written: ByteCount(0),
                damaged: false,
            });
        }
        replica
    }

    fn numbers(replica: &Replica) -> Vec<u32> {
        replica.snapshots().map(|snapshot| snapshot.number).collect()
    }

    #[test]
    fn a_host_with_all_that_it_may_have_tells_it_in_one_message() {
        let many = HOST_LAYERS_MAX / LAYERS_MAX + 1;
        let mut all: Vec<Replica> = (0..many).map(|_| replica(&vec![500_000; LAYERS_MAX])).collect();
        let vm = all[0].vm.id;
        assert!(limit_reached(&all, vm).is_some_and(|reached| reached.contains("layers")));
        all[many - 1].layers.truncate(HOST_LAYERS_MAX - (many - 1) * LAYERS_MAX - 1);
        assert_eq!(limit_reached(&all, vm), None);
        all.resize(HOST_REPLICAS_MAX, replica(&[]));
        assert_eq!(limit_reached(&all, vm), None, "one that is there goes on");
        let other = "0197c0de-0000-7000-8000-000000000002".parse().expect("a UUID");
        assert!(limit_reached(&all, other).is_some_and(|reached| reached.contains("200 replicas")));
        for replica in &mut all {
            let disk = serde_json::json!({ "name": "a-disk-with-a-name", "pool": "a-pool", "format": "qcow2", "size": 1_u64 << 40 });
            replica.disks = vec![serde_json::from_value(disk).expect("a disk"); 2];
            replica.vm.disks.clone_from(&replica.disks);
        }
        let told = crate::bus::encode("replicas", &all).expect("encoded").len();
        assert!(told < crate::bus::BODY_LENGTH_MAX * 3 / 4, "{told} bytes leave too little for VMs");
    }

    #[test]
    fn the_last_and_the_latest_of_hours_and_days_are_kept() {
        let hours = [1, 1, 2, 25, 26, 49, 50, 50];
        let kept = |last, hourly, daily| {
            let mut replica = replica(&hours);
            replica.prune(Retention { last, hourly, daily }, &BTreeSet::new());
            numbers(&replica)
        };
        assert_eq!(kept(2, 0, 0), [7, 8]);
        assert_eq!(kept(1, 3, 0), [5, 6, 8]);
        assert_eq!(kept(1, 0, 9), [3, 5, 8]);
        assert_eq!(kept(0, 0, 0), [8], "the latest stays whatever is asked");
        assert_eq!(kept(100, 0, 0).len(), hours.len());
    }

    #[test]
    fn what_a_clone_stands_on_keeps_its_snapshot_and_is_not_merged() {
        let used = BTreeSet::from([3]);
        let mut replica = replica(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(replica.prune(Retention { last: 1, hourly: 0, daily: 0 }, &used), [1, 2, 4, 5]);
        assert_eq!(numbers(&replica), [3, 6]);
        assert_eq!(replica.chain(3), Some(vec![1, 2, 3]));
        let mut merged = Vec::new();
        while let Some((lower, upper)) = replica.mergeable(&used) {
            merged.push((lower, upper));
            replica.merged(upper);
        }
        assert_eq!(merged, [(4, 5), (4, 6)]);
        assert_eq!(replica.layer_of(6), Some(4), "the latest snapshot is in the fourth layer's files");
        assert_eq!(replica.chain(4), Some(vec![1, 2, 3, 4]));
        assert_eq!(replica.next, 7);
    }

    #[test]
    fn with_no_clone_all_that_is_left_is_one_layer() {
        let mut replica = replica(&[1, 2, 3]);
        replica.prune(Retention { last: 1, hourly: 0, daily: 0 }, &BTreeSet::new());
        while let Some((_, upper)) = replica.mergeable(&BTreeSet::new()) {
            replica.merged(upper);
        }
        assert_eq!(replica.layers.len(), 1);
        assert_eq!((replica.layer_of(3), replica.latest().map(|latest| latest.number)), (Some(1), Some(3)));
    }

    #[test]
    fn what_is_damaged_stays_so_wherever_its_layer_goes() {
        let mut replica = replica(&[1, 2, 3]);
        replica.mark_damaged(&BTreeSet::from([2, 7]));
        replica.mark_damaged(&BTreeSet::new());
        let damaged =
            |replica: &Replica| replica.snapshots().filter(|one| one.damaged).map(|one| one.number).collect::<Vec<_>>();
        assert_eq!(damaged(&replica), [2]);
        replica.layers[0].snapshot = None;
        replica.merged(2);
        assert_eq!((damaged(&replica), replica.layer_of(2)), (vec![2], Some(1)));
    }

    #[test]
    fn too_many_and_none_are_refused() {
        assert!(Retention::default().faults().is_empty());
        assert_eq!(Retention { last: 0, hourly: 90, daily: 90 }.faults().len(), 2);
    }
}
