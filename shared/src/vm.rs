//! What a VM is: the declarative specification that operators write, agents keep, and plans carry.
//!
//! The specification names disks, pools and bridges; it never names a path of a host. Where an image lives follows from
//! the pool, the VM's id and the disk's name alone, so that a specification means the same at the source and the target
//! and nothing outside the configured pools can be asked for (invariant 10).

mod isolated;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{BridgeName, DiskName, PoolName, VmId, VmName};
use crate::replica::Base;
use crate::units::ByteCount;

pub use isolated::IsolatedAddress;

/// The most disks one VM may have.
pub const DISKS_MAX: usize = 32;
/// The most network interfaces one VM may have.
pub const NICS_MAX: usize = 16;
/// The most virtual processors one VM may have.
pub const VCPUS_MAX: u16 = 512;
/// The least memory a VM may have.
pub const MEMORY_MIN: ByteCount = ByteCount::mebibytes(16);
/// The most memory a VM may have.
pub const MEMORY_MAX: ByteCount = ByteCount::mebibytes(16 << 20);
/// The largest disk.
pub const DISK_SIZE_MAX: ByteCount = ByteCount::mebibytes(64 << 20);
/// Disks are whole multiples of this, because every format and transport Sterna uses can address that.
pub const DISK_SIZE_UNIT: u64 = 64 << 10;

/// A VM, wholly described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The name people use.
    pub name: VmName,
    /// The identity, shown to the guest as its SMBIOS UUID.
    pub id: VmId,
    /// Guest memory.
    pub memory: ByteCount,
    /// Virtual processors.
    #[serde(default = "one")]
    pub vcpus: u16,
    /// QEMU's name of the CPU model. `max` under TCG, or a named model that all hosts have, moves best.
    #[serde(default = "default_cpu")]
    pub cpu: String,
    /// QEMU's versioned machine type, such as `pc-q35-7.2`: both hosts of a move must have it.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// What starts the guest.
    #[serde(default)]
    pub firmware: Firmware,
    /// Whether UEFI firmware starts only what is signed by one of the keys that it has: Microsoft's, to begin with.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secure_boot: bool,
    /// A kernel to start directly, in place of a boot loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelBoot>,
    /// The disks, in the order the guest sees them.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskSpec>,
    /// The network interfaces, in the order the guest sees them.
    #[serde(default, rename = "nic")]
    pub nics: Vec<NicSpec>,
    /// Whether the guest has a channel for the QEMU guest agent.
    #[serde(default)]
    pub guest_agent: bool,
    /// Further QEMU arguments, each checked against the agent's allow-list.
    #[serde(default)]
    pub extra_arguments: Vec<String>,
}

fn one() -> u16 {
    1
}

fn default_cpu() -> String {
    "max".to_owned()
}

fn default_machine() -> String {
    // The newest machine type that both supported ends of QEMU's range (7.2 and later) have.
    "pc-q35-7.2".to_owned()
}

/// What starts the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF, with a variable store that goes where the VM goes.
    Uefi,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bios => "BIOS",
            Self::Uefi => "UEFI",
        })
    }
}

/// A kernel started directly. Its files are in the host's boot directory, under the same names on every host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct KernelBoot {
    /// The kernel image.
    pub image: BootFile,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<BootFile>,
    /// The kernel command line.
    #[serde(default)]
    pub append: String,
}

/// The name of a file in a host's boot directory: no separators, and not hidden.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = r"^[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}$")))]
#[serde(try_from = "String", into = "String")]
pub struct BootFile(String);

impl BootFile {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BootFile {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+');
        if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.bytes().all(valid) {
            return Err(format!(
                "{text:?} is not the name of a boot file: 1 to 128 of A-Z a-z 0-9 . _ - +, not starting with a point"
            ));
        }
        Ok(Self(text))
    }
}

impl From<BootFile> for String {
    fn from(file: BootFile) -> Self {
        file.0
    }
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Its name within the VM.
    pub name: DiskName,
    /// The pool its image lives in.
    pub pool: PoolName,
    /// The image's format. Never probed: what a guest writes must not decide how its image is read.
    #[serde(default)]
    pub format: DiskFormat,
    /// What the guest sees, in bytes.
    pub size: ByteCount,
    /// How the guest reaches it.
    #[serde(default)]
    pub bus: DiskBus,
    /// How the host caches it.
    #[serde(default)]
    pub cache: CacheMode,
    /// Whether what the guest discards becomes a hole.
    #[serde(default = "yes")]
    pub discard: bool,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// What it stands on, of a clone: what was never written to it is read from there. Nobody writes this by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
}

fn yes() -> bool {
    true
}

/// An image format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Bytes as the guest sees them.
    Raw,
    /// QEMU's copy-on-write format; holds a dirty bitmap across restarts.
    #[default]
    Qcow2,
}

impl DiskFormat {
    /// QEMU's word for it, also the image's file name extension.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DiskFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("{text:?} is not a disk format; give raw or qcow2")),
        }
    }
}

/// The bus a disk is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI.
    Sata,
}

/// How the host caches an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Direct I/O; the guest's flushes reach the disk.
    #[default]
    None,
    /// The host's page cache; the guest's flushes reach the disk.
    Writeback,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The address the guest sees; it moves with the VM.
    pub mac: MacAddress,
    /// What it is connected to: a bridge of the host by name, or none for QEMU's user-mode network, whose connections do
    /// not survive a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeName>,
    /// Of a user-mode network: whether the guest is alone in it and reaches nothing, not even its host; and its address there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<IsolatedAddress>,
}

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")))]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The six bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// One that nobody was given for a card: locally administered, and unicast.
    #[must_use]
    pub const fn local(bytes: [u8; 5]) -> Self {
        let [b, c, d, e, g] = bytes;
        Self([0x52, b, c, d, e, g])
    }
}

impl FromStr for MacAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a unicast MAC address such as 52:54:00:12:34:56");
        let mut bytes = [0_u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(invalid());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl VmSpec {
    /// The disk of that name.
    #[must_use]
    pub fn disk(&self, name: &DiskName) -> Option<&DiskSpec> {
        self.disks.iter().find(|disk| disk.name == *name)
    }

    /// What secure boot needs of a VM and this one lacks; nothing of one that can have it.
    pub fn secure_boot_lacks(&self) -> impl Iterator<Item = &'static str> {
        // Its firmware keeps the keys by the system management mode of that machine.
        let needs = [
            (self.firmware == Firmware::Uefi, "firmware = \"uefi\""),
            (self.machine.starts_with("pc-q35-"), "a machine of a type pc-q35-…, such as pc-q35-7.2"),
        ];
        needs.into_iter().filter(|(has, _)| !has).map(|(_, need)| need)
    }

    /// Everything that is wrong with the specification on any host, each with what to do; empty when it is sound.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, fault: &dyn Fn() -> String| {
            if !holds {
                faults.push(fault());
            }
        };
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 128
                && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
        };
        check((MEMORY_MIN..=MEMORY_MAX).contains(&self.memory) && self.memory.0.is_multiple_of(1 << 20), &|| {
            format!("memory is {}; give whole MiB from {MEMORY_MIN} to {MEMORY_MAX}", self.memory)
        });
        check((1..=VCPUS_MAX).contains(&self.vcpus), &|| format!("vcpus is {}; give 1 to {VCPUS_MAX}", self.vcpus));
        check(word(&self.cpu), &|| format!("cpu {:?} is not a CPU model's name", self.cpu));
        check(word(&self.machine) && !self.machine.contains(','), &|| {
            format!("machine {:?} is not a machine type's name, such as pc-q35-7.2", self.machine)
        });
        check(self.machine.bytes().any(|b| b.is_ascii_digit()) && self.machine.contains('-'), &|| {
            format!(
                "machine {:?} has no version; give a versioned type such as pc-q35-7.2, so that it means the same on every host",
                self.machine
            )
        });
        check(self.disks.len() <= DISKS_MAX, &|| {
            format!("{} disks; at most {DISKS_MAX} are allowed", self.disks.len())
        });
        check(self.nics.len() <= NICS_MAX, &|| format!("{} nics; at most {NICS_MAX} are allowed", self.nics.len()));
        for disk in &self.disks {
            let sized = disk.size.0 > 0 && disk.size <= DISK_SIZE_MAX && disk.size.0.is_multiple_of(DISK_SIZE_UNIT);
            check(sized, &|| {
                format!(
                    "disk {} has a size of {}; give a multiple of 64 KiB up to {DISK_SIZE_MAX}",
                    disk.name, disk.size
                )
            });
        }
        check(self.disks.iter().map(|disk| &disk.name).collect::<BTreeSet<_>>().len() == self.disks.len(), &|| {
            "two disks have one name; give each its own".to_owned()
        });
        check(self.nics.iter().map(|nic| nic.mac).collect::<BTreeSet<_>>().len() == self.nics.len(), &|| {
            "two nics have one MAC address; give each its own".to_owned()
        });
        check(self.nics.iter().all(|nic| nic.bridge.is_none() || nic.isolated.is_none()), &|| {
            "a nic is on a bridge and isolated; give one of the two".to_owned()
        });
        check(self.kernel.is_none() || self.firmware == Firmware::Bios, &|| {
            "a kernel started directly needs firmware = \"bios\"".to_owned()
        });
        for need in self.secure_boot_lacks().filter(|_| self.secure_boot) {
            check(false, &|| format!("secure_boot = true needs {need}"));
        }
        let command_line = self.kernel.as_ref().map_or("", |kernel| &kernel.append);
        check(command_line.len() <= 2048 && command_line.chars().all(|c| !c.is_control()), &|| {
            "the kernel command line may have at most 2048 bytes and no control characters".to_owned()
        });
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        let disk = |name: &str| DiskSpec {
            name: name.parse().expect("a name"),
            pool: "fast".parse().expect("a name"),
            format: DiskFormat::Raw,
            size: ByteCount::mebibytes(64),
            bus: DiskBus::Virtio,
            cache: CacheMode::None,
            discard: true,
            read_only: false,
            base: None,
        };
        VmSpec {
            name: "web".parse().expect("a name"),
            id: "0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID"),
            memory: ByteCount::mebibytes(512),
            vcpus: 1,
            cpu: "max".to_owned(),
            machine: "pc-q35-7.2".to_owned(),
            firmware: Firmware::Bios,
            secure_boot: false,
            kernel: None,
            disks: vec![disk("root"), disk("data")],
            nics: vec![],
            guest_agent: false,
            extra_arguments: vec![],
        }
    }

    #[test]
    fn a_sound_specification_has_no_faults() {
        assert_eq!(spec().faults(), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_found_at_once() {
        let mut bad = spec();
        bad.memory = ByteCount(1);
        bad.vcpus = 0;
        bad.machine = "q35".to_owned();
        bad.disks[1].name = bad.disks[0].name.clone();
        bad.disks[0].size = ByteCount(1000);
        assert_eq!(bad.faults().len(), 5, "{:?}", bad.faults());
    }

    #[test]
    fn secure_boot_needs_uefi_and_q35_and_is_told_only_where_it_is_on() {
        let mut spec = VmSpec { machine: "pc-i440fx-7.2".to_owned(), ..spec() };
        assert_eq!(spec.faults(), Vec::<String>::new());
        assert_eq!(serde_json::to_value(&spec).expect("JSON").get("secure_boot"), None);
        spec.secure_boot = true;
        let faults = spec.faults();
        assert!(faults.len() == 2 && faults[0].contains("uefi") && faults[1].contains("pc-q35-7.2"), "{faults:?}");
        (spec.firmware, spec.machine) = (Firmware::Uefi, "pc-q35-7.2".to_owned());
        assert_eq!(spec.faults(), Vec::<String>::new());
        let text = serde_json::to_string(&spec).expect("JSON");
        assert_eq!(serde_json::from_str::<VmSpec>(&text).expect("a specification"), spec);
    }

    #[test]
    fn boot_files_and_macs_are_held_to_their_form() {
        assert!(BootFile::try_from("../../etc/passwd".to_owned()).is_err());
        assert!(BootFile::try_from("vmlinuz-6.1".to_owned()).is_ok());
        assert!("53:54:00:00:00:01".parse::<MacAddress>().is_err(), "multicast");
        assert_eq!(
            "52:54:00:AB:00:01".parse::<MacAddress>().map(|m| m.to_string()),
            Ok("52:54:00:ab:00:01".to_owned())
        );
    }
}
