//! What a host is and has: the inventory that its agent reports and the planner decides on.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{BridgeName, Epoch, Generation, HostId, JobId, PoolName, ProbeName, VmId, VmName};
use crate::peer::attach::DATA_LANES_MAX;
use crate::planned::PlannedVm;
use crate::replica::Replica;
use crate::time::Timestamp;
use crate::units::ByteCount;
use crate::vm::{BootFile, Firmware, VmSpec};

/// The seconds between two heartbeats of an agent.
pub const HEARTBEAT_INTERVAL_SECONDS: u64 = 2;
/// A host not heard of for this many seconds is offline.
pub const HEARTBEAT_SILENCE_SECONDS_MAX: u64 = 10;

/// All that the fleet knows of a host, as its agent last said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Inventory {
    /// The host.
    pub host: HostId,
    /// When the agent said so, by its own clock.
    pub at: Timestamp,
    /// The agent's version.
    pub version: String,
    /// Where its data-plane port is reached, best first.
    pub addresses: Vec<SocketAddr>,
    /// Its hypervisor.
    pub hypervisor: Hypervisor,
    /// The processor.
    pub cpu: Cpu,
    /// Memory for guests in all.
    pub memory_total: ByteCount,
    /// Memory that no guest and no reservation holds.
    pub memory_free: ByteCount,
    /// What of the rest is held for planned VMs.
    #[serde(default)]
    pub memory_reserved: ByteCount,
    /// Its pools.
    pub pools: Vec<Pool>,
    /// Its bridges.
    pub bridges: Vec<BridgeName>,
    /// The files in its boot directory.
    pub boot_files: Vec<BootFile>,
    /// Its certificate.
    pub certificate: Certificate,
    /// What it takes on at once.
    pub limits: Limits,
    /// What of these was set while it ran, and not by its agent.toml.
    #[serde(default)]
    pub limits_set: LimitsChange,
    /// The highest coordinator epoch it has accepted a command of.
    pub epoch: Epoch,
    /// The VMs it has a record of.
    pub vms: Vec<VmReport>,
    /// What moves into it that were cut have left for the next.
    #[serde(default)]
    pub partials: Vec<PartialReport>,
    /// The VMs that it is prepared for.
    #[serde(default)]
    pub planned: Vec<PlannedVm>,
    /// The replicas that it has of VMs of other hosts.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// Whether it has a helper guest, which adapts the system on the disks of a clone.
    #[serde(default)]
    pub adapts: bool,
    /// The commands that its operators have given it to probe a rehearsed guest with.
    #[serde(default)]
    pub probe_commands: Vec<ProbeName>,
}

/// The hypervisor of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hypervisor {
    /// QEMU's version, such as `10.0.2`.
    pub version: String,
    /// How guests are executed.
    pub accelerator: Accelerator,
    /// The versioned machine types it has.
    pub machines: Vec<String>,
    /// The CPU models that it can run.
    pub cpu_models: Vec<String>,
    /// Whether it has firmware for UEFI guests.
    pub uefi: bool,
    /// Whether it has firmware for UEFI guests with secure boot.
    #[serde(default)]
    pub secure_boot: bool,
}

impl Hypervisor {
    /// The firmware that a VM needs and the host lacks, if it lacks any.
    #[must_use]
    pub fn lacks_firmware(&self, vm: &VmSpec) -> Option<&'static str> {
        match vm.firmware {
            Firmware::Bios => None,
            Firmware::Uefi if vm.secure_boot => (!self.secure_boot).then_some("UEFI firmware with secure boot"),
            Firmware::Uefi => (!self.uefi).then_some("UEFI firmware"),
        }
    }
}

/// How guests are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor's own virtualisation.
    Kvm,
    /// By translation; slow, and everywhere.
    Tcg,
}

impl Accelerator {
    /// QEMU's word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The processor of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cpu {
    /// Its model, as the kernel names it.
    pub model: String,
    /// Its feature flags, as the kernel names them.
    pub features: Vec<String>,
    /// Logical processors.
    pub count: u16,
}

/// A place where images live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pool {
    /// Its name on this host.
    pub name: PoolName,
    /// What storage it is, where several hosts see the same: pools with one `shared` text hold the same images.
    pub shared: Option<String>,
    /// What it can hold.
    pub capacity: ByteCount,
    /// What is free and held for nobody. Images kept of moves that were cut count as free: they go when a move needs the room.
    pub free: ByteCount,
    /// What is free and held for planned VMs.
    #[serde(default)]
    pub reserved: ByteCount,
    /// Of a volume group: its extents, of which each disk takes whole ones. Images there are raw, and nothing but disks
    /// can be there. None for a directory.
    #[serde(default)]
    pub extent: Option<ByteCount>,
}

impl Pool {
    /// What a disk takes of the pool at most.
    #[must_use]
    pub fn room_for(&self, disk: ByteCount) -> ByteCount {
        let extent = self.extent.map_or(1, |extent| extent.0.max(1));
        ByteCount(disk.0.checked_next_multiple_of(extent).unwrap_or(u64::MAX))
    }
}

/// The agent's certificate, as far as planning needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Certificate {
    /// SHA-256 of the authority's key, in hex: two hosts that trust one authority report the same.
    pub authority: String,
    /// From when it holds.
    pub not_before: Timestamp,
    /// Until when it holds.
    pub not_after: Timestamp,
}

/// What a host takes on at once. They are the settings of Hyper-V's `Msvm_VirtualSystemMigrationServiceSettingData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Whether VMs move out of the host and into it at all. Disks move between its pools either way.
    pub enabled: bool,
    /// Moves out of the host at a time; 0 lets no VM out.
    pub outbound_moves_max: u16,
    /// Moves into the host at a time; 0 lets no VM in.
    pub inbound_moves_max: u16,
    /// Storage moves within the host at a time; 0 has its disks stay where they are.
    pub storage_moves_max: u16,
    /// Lanes of one session.
    pub lanes_max: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            enabled: true,
            outbound_moves_max: 4,
            inbound_moves_max: 4,
            storage_moves_max: 4,
            lanes_max: DATA_LANES_MAX,
        }
    }
}

impl Limits {
    /// These, but for what was changed.
    #[must_use]
    pub fn with(self, change: LimitsChange) -> Self {
        Self {
            enabled: change.enabled.unwrap_or(self.enabled),
            outbound_moves_max: change.outbound_moves_max.unwrap_or(self.outbound_moves_max),
            inbound_moves_max: change.inbound_moves_max.unwrap_or(self.inbound_moves_max),
            storage_moves_max: change.storage_moves_max.unwrap_or(self.storage_moves_max),
            lanes_max: change.lanes_max.unwrap_or(self.lanes_max),
        }
    }
}

/// What an operator sets of a host's [`Limits`] while it runs; the rest is as its agent.toml says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct LimitsChange {
    /// Of [`Limits::enabled`].
    pub enabled: Option<bool>,
    /// Of [`Limits::outbound_moves_max`].
    pub outbound_moves_max: Option<u16>,
    /// Of [`Limits::inbound_moves_max`].
    pub inbound_moves_max: Option<u16>,
    /// Of [`Limits::storage_moves_max`].
    pub storage_moves_max: Option<u16>,
    /// Of [`Limits::lanes_max`].
    pub lanes_max: Option<u8>,
}

impl LimitsChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Everything that is wrong with it, each in a sentence with what to give instead.
    #[must_use]
    pub fn faults(self) -> Vec<String> {
        let lanes = self.lanes_max.filter(|lanes| !(1..=DATA_LANES_MAX).contains(lanes));
        lanes.map(|lanes| format!("lanes_max is {lanes}; give 1 to {DATA_LANES_MAX}")).into_iter().collect()
    }
}

/// How many moves a host has in hand: what its [`Limits`] are held against. A job counts from when its plan goes to the
/// agents until it is over, also while its handover is not resolved; one that waits or is suspended does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct MovesInHand {
    /// Out of the host.
    pub outbound: usize,
    /// Into it.
    pub inbound: usize,
    /// Of disks between its pools.
    pub storage: usize,
}

/// Images that a move into the host has left when it was cut: the next move of that VM uses them on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PartialReport {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The job that left them.
    pub job: JobId,
    /// Since when they are kept.
    pub since: Timestamp,
    /// What was received of them.
    pub received: ByteCount,
    /// What they take of the host's pools.
    pub allocated: ByteCount,
}

/// A VM as its host reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmReport {
    /// What it is. For a VM that was ceded to another host and not yet released, what it was.
    pub spec: VmSpec,
    /// Whether its guest executes.
    pub state: VmState,
    /// The generation of this host's ownership record.
    pub generation: Generation,
    /// Whether this host may run it.
    pub owned: bool,
    /// The job that holds it, if one does.
    pub job: Option<JobId>,
    /// The replication cycle since whose point in time nothing has written to its disks, since it has not run; none where that is not
    /// known.
    #[serde(default)]
    pub unchanged_since: Option<JobId>,
}

impl VmReport {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> VmId {
        self.spec.id
    }
}

/// Whether a VM's guest executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// No QEMU runs.
    Stopped,
    /// The guest executes.
    Running,
    /// QEMU runs and the guest does not execute.
    Paused,
    /// QEMU waits for a migration, or is loading one.
    Incoming,
    /// QEMU ended by itself, or reports an internal error.
    Failed,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Incoming => "incoming",
            Self::Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_earlier_version_are_read() {
        let limits: Limits = serde_json::from_str(r#"{"outbound_moves_max": 2, "lanes_max": 8}"#).expect("limits");
        assert_eq!(limits, Limits { outbound_moves_max: 2, lanes_max: 8, ..Limits::default() });
        assert!(limits.enabled && limits.storage_moves_max > 0);
    }

    #[test]
    fn what_is_not_set_stays() {
        let change = LimitsChange { enabled: Some(false), storage_moves_max: Some(0), ..LimitsChange::default() };
        let limits = Limits::default().with(change);
        assert_eq!(limits, Limits { enabled: false, storage_moves_max: 0, ..Limits::default() });
        assert_eq!(limits.with(LimitsChange::default()), limits);
        assert!(LimitsChange::default().is_empty() && !change.is_empty());
    }

    #[test]
    fn a_bad_value_is_named_with_what_to_give() {
        for lanes in [0, DATA_LANES_MAX + 1] {
            let faults = LimitsChange { lanes_max: Some(lanes), ..LimitsChange::default() }.faults();
            assert_eq!(faults, [format!("lanes_max is {lanes}; give 1 to {DATA_LANES_MAX}")]);
        }
        let sound = LimitsChange {
            outbound_moves_max: Some(0),
            inbound_moves_max: Some(u16::MAX),
            lanes_max: Some(DATA_LANES_MAX),
            ..LimitsChange::default()
        };
        assert!(sound.faults().is_empty(), "0 is a way to let none through");
    }
}
