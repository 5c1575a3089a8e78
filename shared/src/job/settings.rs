//! Settings of a move beside where to and how: what `Msvm_VirtualSystemMigrationSettingData` can say that means something
//! here. The defaults are what suits nearly every move.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The most addresses that a move can be held to.
pub const ADDRESSES_MAX: usize = 8;

/// How a move is carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct MoveSettings {
    /// Of the target's advertised addresses only these are used, in this order; all of them where this is empty
    /// (`DestinationIPAddressList`).
    pub addresses: Vec<IpAddr>,
    /// Memory is compressed on its way (`EnableCompression`): worth its processor time on a link below some 500 Mbit/s.
    pub compress_memory: bool,
    /// How hard the guest is slowed down where it writes faster than the link carries (`CPUCappingMagnitude`).
    pub cpu_capping: CpuCapping,
    /// A guest that stands still for longer than allowed goes on waiting for the target, and the move is not given up
    /// (`CancelIfBlackoutThresholdExceeded` false).
    pub exceed_blackout: bool,
    /// The source's images stay when the move is over, under another name (`RetainVhdCopiesOnSource`, and for a storage move
    /// `AvoidRemovingVHDs`).
    pub keep_source_images: bool,
}

/// How hard a guest is slowed down that writes faster than its memory can follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum CpuCapping {
    /// From a tenth of its time on, by a tenth more in every round.
    Low,
    /// From a fifth of its time on, by a tenth more in every round.
    #[default]
    Normal,
    /// From two fifths of its time on, by a fifth more in every round.
    High,
}
