//! The seed of a clone: a small disk that tells cloud-init in the guest who the guest is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{DiskName, PoolName};
use crate::units::ByteCount;
use crate::vm::{CacheMode, DiskBus, DiskFormat, DiskSpec};

/// What the guest sees of it.
pub const SEED_SIZE: ByteCount = ByteCount::mebibytes(1);

/// Whether a clone has a seed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SeedWish {
    /// Where the system on its disks has cloud-init, as the helper guest finds.
    #[default]
    Auto,
    /// Whatever there is on its disks.
    Always,
    /// It has none.
    Never,
}

impl SeedWish {
    /// What a clone was made with before there were seeds.
    pub(super) const fn never() -> Self {
        Self::Never
    }

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for SeedWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for SeedWish {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Auto, Self::Always, Self::Never].into_iter().find(|wish| wish.as_str() == text);
        found.ok_or_else(|| format!("{text:?} says not whether there is a seed; give auto, always or never"))
    }
}

impl DiskSpec {
    /// A clone's seed, in that pool.
    #[must_use]
    pub fn seed(pool: PoolName) -> Self {
        Self {
            name: DiskName::seed(),
            pool,
            format: DiskFormat::Raw,
            size: SEED_SIZE,
            bus: DiskBus::Virtio,
            cache: CacheMode::Writeback,
            discard: false,
            read_only: true,
            base: None,
        }
    }

    /// Whether it is one, whatever its pool and its format.
    #[must_use]
    pub fn is_seed(&self) -> bool {
        self.name == DiskName::seed() && self.size == SEED_SIZE && self.read_only
    }
}
