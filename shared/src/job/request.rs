//! What an operator asks for. Wishes may be incomplete or impossible; the planner decides or says every reason why not.

use serde::{Deserialize, Serialize};

use super::{MoveMode, MoveSettings, Plan};
use crate::id::{DiskName, HostId, PlannedVmId, PoolName};
use crate::replica::{CloneWish, CutoverWish, ReplicationWish};
use crate::units::Bandwidth;
use crate::vm::DiskFormat;

/// What a job does about a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// It is moved, its disks are, or both.
    #[default]
    Move,
    /// Nothing is changed: everything that speaks for and against the move is told.
    Check,
    /// As a check, and every disk is read through.
    DeepCheck,
    /// A planned VM is made at the target: what a later move needs is reserved there, and nothing runs.
    Stage,
    /// Its disks are replicated to the target, while it stays: once, or in cycles.
    Replicate,
    /// It is made, of a replica; the replicated VM is left alone.
    Clone,
    /// It is made of a replica, booted where nothing can reach it, asked whether it is healthy, and deleted; the replicated VM is
    /// left alone.
    Rehearse,
    /// A replica of it is read through, and compared with what was written; the VM is left alone.
    Verify,
    /// It is moved to the host that has its replica, beginning with what the replica holds.
    Cutover,
}

impl JobKind {
    /// Whether it only looks, and changes nothing anywhere: then it takes no slot of a host.
    #[must_use]
    pub const fn only_looks(self) -> bool {
        matches!(self, Self::Check | Self::DeepCheck)
    }

    /// Whether no other job may touch the VM meanwhile.
    #[must_use]
    pub const fn holds_vm(self) -> bool {
        matches!(self, Self::Move | Self::DeepCheck | Self::Replicate | Self::Clone | Self::Rehearse | Self::Cutover)
    }
}

/// A wish to move a VM, its disks, or both; or to know whether that could be, or to have it prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MoveRequest {
    /// What the job does about it.
    #[serde(default)]
    pub kind: JobKind,
    /// The VM, by name or id; of a clone and of a rehearsal the replicated one.
    pub vm: String,
    /// Where to. Left out for a storage move within the VM's host.
    pub target: Option<HostId>,
    /// Whether the guest may stop meanwhile.
    #[serde(default)]
    pub mode: ModeWish,
    /// Whether the disks go along.
    #[serde(default)]
    pub storage: StorageWish,
    /// Where single disks go; the others go to the pool of the same name.
    #[serde(default)]
    pub disks: Vec<DiskPlacement>,
    /// Disks only: the guest stays on its host.
    #[serde(default)]
    pub storage_only: bool,
    /// A rate that the job's disk and memory traffic together stay under.
    pub bandwidth: Option<Bandwidth>,
    /// The longest the guest may stand still before the move gives up, in milliseconds.
    pub blackout_max_ms: Option<u32>,
    /// Data lanes of the session.
    pub lanes: Option<u8>,
    /// How it is carried out beside that.
    #[serde(default)]
    pub settings: MoveSettings,
    /// The planned VM at the target that a move uses; where it is left out, the one that is there for the VM, if any.
    #[serde(default)]
    pub planned: Option<PlannedVmId>,
    /// How long a planned VM that is to be made is held, in seconds; [`HOLD_DEFAULT_SECONDS`](crate::planned::HOLD_DEFAULT_SECONDS)
    /// where it is left out.
    #[serde(default)]
    pub hold_seconds: Option<u32>,
    /// Of a replication: what is wanted of it.
    #[serde(default)]
    pub replication: Option<ReplicationWish>,
    /// Of a clone, and of a rehearsal: what is to be made.
    #[serde(default)]
    pub clone: Option<Box<CloneWish>>,
    /// Of a cutover: what is wanted of it.
    #[serde(default)]
    pub cutover: Option<CutoverWish>,
}

impl MoveRequest {
    /// A wish that says no more than this: the rest is as it is where nobody says anything.
    #[must_use]
    pub fn plain(kind: JobKind, vm: &str, target: Option<HostId>) -> Self {
        Self {
            kind,
            vm: vm.to_owned(),
            target,
            mode: ModeWish::Auto,
            storage: StorageWish::All,
            disks: Vec::new(),
            storage_only: false,
            bandwidth: None,
            blackout_max_ms: None,
            lanes: None,
            settings: MoveSettings::default(),
            planned: None,
            hold_seconds: None,
            replication: None,
            clone: None,
            cutover: None,
        }
    }

    /// A wish to make something of the replica of a VM: a clone, or a rehearsal.
    #[must_use]
    pub fn making(kind: JobKind, vm: &str, target: Option<HostId>, wish: CloneWish) -> Self {
        Self { clone: Some(Box::new(wish)), ..Self::plain(kind, vm, target) }
    }

    /// A wish that such a plan can come of: for a job of which only the plan is known.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let storage_only = plan.mode == MoveMode::Storage;
        let placements = plan.disks.iter().map(|disk| DiskPlacement {
            disk: disk.target.name.clone(),
            pool: disk.target.pool.clone(),
            format: Some(disk.target.format),
        });
        Self {
            kind: plan.kind,
            vm: plan.vm.id.to_string(),
            target: (!storage_only).then(|| plan.target.id.clone()),
            mode: match plan.mode {
                MoveMode::Live => ModeWish::Live,
                MoveMode::Cold => ModeWish::Cold,
                MoveMode::Storage => ModeWish::Auto,
            },
            storage: if plan.disks.is_empty() && !storage_only { StorageWish::None } else { StorageWish::All },
            disks: placements.collect(),
            storage_only,
            bandwidth: plan.bandwidth,
            blackout_max_ms: Some(plan.blackout_max_ms),
            lanes: Some(plan.lanes),
            settings: plan.settings.clone(),
            planned: plan.planned.filter(|_| plan.kind != JobKind::Stage),
            hold_seconds: plan.hold_seconds,
            replication: plan.retention.map(|retention| ReplicationWish { retention }),
            // What it was asked for is not all in its plan, and it is not asked for again.
            clone: None,
            cutover: plan.cutover.map(|of| CutoverWish { revert_seconds: Some(of.revert_seconds), force: of.force }),
        }
    }
}

/// Whether the guest may stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ModeWish {
    /// Live if the guest runs, cold if it is stopped.
    #[default]
    Auto,
    /// The guest runs on, but for the blackout.
    Live,
    /// The guest is stopped; a running one is refused.
    Cold,
}

/// Whether disks go along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum StorageWish {
    /// All disks are copied.
    #[default]
    All,
    /// No disk is copied: every pool involved is shared by both hosts.
    None,
}

/// Where one disk goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskPlacement {
    /// The disk.
    pub disk: DiskName,
    /// The pool at the target.
    pub pool: PoolName,
    /// The format at the target; the same as at the source where it is left out.
    pub format: Option<DiskFormat>,
}
