//! What an operator asks for. Wishes may be incomplete or impossible; the planner decides or says every reason why not.

use serde::{Deserialize, Serialize};

use super::{MoveMode, Plan};
use crate::id::{DiskName, HostId, PoolName};
use crate::units::Bandwidth;
use crate::vm::DiskFormat;

/// A wish to move a VM, its disks, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MoveRequest {
    /// The VM, by name or id.
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
}

impl MoveRequest {
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
