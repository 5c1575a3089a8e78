//! Settings of a move by the names of `Msvm_VirtualSystemMigrationSettingData`, from text. What Sterna cannot or will not do is
//! refused by name, with the reason.

use std::net::IpAddr;

use crate::job::{ADDRESSES_MAX, CpuCapping, JobKind, MoveRequest, Policy, StorageWish};
use crate::units::Bandwidth;

/// A property of the class, and what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// The values that it takes here, in words.
    pub takes: &'static str,
    /// Why other values, or all, are refused; empty where none is.
    pub refused: &'static str,
}

const fn setting(name: &'static str, takes: &'static str, refused: &'static str) -> Setting {
    Setting { name, takes, refused }
}

/// The properties of the class that a client sets.
pub const SETTINGS: [Setting; 15] = [
    setting("MigrationType", "32768, 32769, 32770, 32771 or 32772", ""),
    setting(
        "TransportType",
        "3 or 4, which are TLS",
        "nothing travels but in TLS: neither by SMB (32768) nor in clear TCP (5)",
    ),
    setting("Priority", "a number from 0 to 4294967295", ""),
    setting("Bandwidth", "a number of BandwidthUnit, which is bit/s where none is given", ""),
    setting("BandwidthUnit", "bit/s, kbit/s, Mbit/s, B/s, KiB/s or MiB/s", ""),
    setting("CPUCappingMagnitude", "0 (normal), 1 (low) or 2 (high)", ""),
    setting("CancelIfBlackoutThresholdExceeded", "true or false", ""),
    setting("EnableCompression", "true or false", ""),
    setting("DestinationIPAddressList", "one to eight addresses of the target, with commas between them", ""),
    setting("DestinationPlannedVirtualSystemId", "the id of a planned VM at the target", ""),
    setting("RetainVhdCopiesOnSource", "true or false", ""),
    setting("AvoidRemovingVHDs", "true or false", ""),
    setting(
        "AllowOverwriteExistingFile",
        "false",
        "a file in the way at the target may be another VM's disk; look at it, and delete it yourself if nothing needs it",
    ),
    setting("UnmanagedVhds", "nothing", "a VM has only the disks of its specification; add the file to it as a disk"),
    setting("RemoveSourceUnmanagedVhds", "false", "a move touches only the disks of the VM's specification"),
];

/// Why a setting was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingFault {
    /// The class has no such property.
    #[error("a move has no setting {name}; there are {}", names())]
    Unknown {
        /// What was given.
        name: String,
    },
    /// The value is none of the setting's.
    #[error("{value:?} is no value of {name}; give {takes}{}{refused}", if refused.is_empty() { "" } else { ": " })]
    Value {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        takes: &'static str,
        /// Why not.
        refused: &'static str,
    },
}

fn names() -> String {
    SETTINGS.map(|setting| setting.name).join(", ")
}

/// A wish with its policy, to which settings are applied one after the other.
#[derive(Debug)]
pub struct Settings<'a> {
    /// What is wished for.
    pub request: &'a mut MoveRequest,
    /// How the job is to be treated.
    pub policy: &'a mut Policy,
    /// The unit of a bandwidth that follows; Hyper-V's own where none was given.
    pub unit: BandwidthUnit,
}

/// What a bandwidth counts, in bytes per second and, for the small ones, the divisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BandwidthUnit {
    /// Bits.
    #[default]
    Bit,
    /// Thousands of bits.
    KiloBit,
    /// Millions of bits.
    MegaBit,
    /// Bytes.
    Byte,
    /// 1024 bytes.
    Kibibyte,
    /// 1024² bytes.
    Mebibyte,
}

impl BandwidthUnit {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "bit/s" => Self::Bit,
            "kbit/s" => Self::KiloBit,
            "Mbit/s" => Self::MegaBit,
            "B/s" => Self::Byte,
            "KiB/s" => Self::Kibibyte,
            "MiB/s" => Self::Mebibyte,
            _ => return None,
        })
    }

    fn bandwidth(self, count: u64) -> Option<Bandwidth> {
        match self {
            Self::Bit => Some(count / 8),
            Self::KiloBit => count.checked_mul(125),
            Self::MegaBit => count.checked_mul(125_000),
            Self::Byte => Some(count),
            Self::Kibibyte => count.checked_mul(1 << 10),
            Self::Mebibyte => count.checked_mul(1 << 20),
        }
        .map(Bandwidth)
    }
}

impl Settings<'_> {
    /// Applies one setting, given as text.
    ///
    /// # Errors
    /// [`SettingFault`]; nothing was changed then.
    pub fn apply(&mut self, name: &str, value: &str) -> Result<(), SettingFault> {
        let Some(setting) = SETTINGS.into_iter().find(|setting| setting.name == name) else {
            return Err(SettingFault::Unknown { name: name.to_owned() });
        };
        let Setting { name, takes, refused } = setting;
        self.set(name, value).ok_or_else(|| SettingFault::Value { name, value: value.to_owned(), takes, refused })
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let Self { request, policy, unit } = self;
        let settings = &mut request.settings;
        match name {
            "MigrationType" => return migration_type(request, value),
            "TransportType" => return matches!(value, "3" | "4").then_some(()),
            "Priority" => policy.priority = value.parse().ok()?,
            "BandwidthUnit" => *unit = BandwidthUnit::parse(value)?,
            "Bandwidth" => request.bandwidth = Some(unit.bandwidth(value.parse().ok()?)?),
            "CPUCappingMagnitude" => {
                settings.cpu_capping = match value {
                    "0" => CpuCapping::Normal,
                    "1" => CpuCapping::Low,
                    "2" => CpuCapping::High,
                    _ => return None,
                }
            }
            "CancelIfBlackoutThresholdExceeded" => settings.exceed_blackout = !value.parse::<bool>().ok()?,
            "EnableCompression" => settings.compress_memory = value.parse().ok()?,
            "DestinationIPAddressList" => {
                let addresses: Vec<IpAddr> =
                    value.split(',').map(|address| address.trim().parse().ok()).collect::<Option<_>>()?;
                settings.addresses = (addresses.len() <= ADDRESSES_MAX).then_some(addresses)?;
            }
            "DestinationPlannedVirtualSystemId" => request.planned = Some(value.parse().ok()?),
            "RetainVhdCopiesOnSource" | "AvoidRemovingVHDs" => settings.keep_source_images = value.parse().ok()?,
            "AllowOverwriteExistingFile" | "RemoveSourceUnmanagedVhds" => return (value == "false").then_some(()),
            _ => return None,
        }
        Some(())
    }
}

/// What the migration type says of a wish: the inverse of what the face shows of a plan. A check stays one.
fn migration_type(request: &mut MoveRequest, value: &str) -> Option<()> {
    let moves = request.kind == JobKind::Move;
    (request.kind, request.storage, request.storage_only) = match value {
        "32768" => (request.kind, StorageWish::None, false),
        "32769" => (request.kind, StorageWish::All, true),
        "32770" if moves => (JobKind::Stage, request.storage, false),
        "32771" => (request.kind, StorageWish::All, false),
        "32772" if moves || request.kind.only_looks() => (JobKind::DeepCheck, request.storage, request.storage_only),
        _ => return None,
    };
    Some(())
}
