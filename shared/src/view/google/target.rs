//! What is made of a replica: a VM, as Google describes one of its own. What has no counterpart among a VM's specification has no
//! field here, and is left out of JSON; docs/clone-job.md has a row for each.

use std::collections::BTreeMap;

use crate::id::{BridgeName, HostId, HostName, VmName};
use crate::job::Plan;
use crate::vm::{Firmware, NicSpec, VmSpec};

use super::name::PROJECT;
use super::values::{BootOption, ComputeEngineBootOption};
use super::wellknown::{Unset, resource, text};

resource! {
    /// The VM that a clone job makes.
    ComputeEngineTargetDetails {
        /// Its name.
        vm_name: VmName = "vmName",
        /// The project that it is in, the only one.
        project: &'static str = "project",
        /// The host that it is made at.
        zone: HostId = "zone",
        /// Its processors and its memory.
        machine_type: MachineType = "machineType",
        /// What it is connected to, in the order in which the guest sees it.
        network_interfaces: Vec<NetworkInterface> = "networkInterfaces",
        /// The labels of the job that makes it.
        labels: BTreeMap<String, String> = "labels",
        /// Whether its firmware starts only what is signed.
        secure_boot: Option<bool> = "secureBoot",
        /// What starts it.
        boot_option: ComputeEngineBootOption = "bootOption",
        /// What the system on its disks calls itself, where that was asked for.
        hostname: Option<HostName> = "hostname",
    }
}

resource! {
    /// The same as Google described it before, under the names of then. Deprecated there.
    TargetVmDetails {
        /// Its name.
        name: VmName = "name",
        /// The project that it is in, the only one.
        target_project: &'static str = "targetProject",
        /// The host that it is made at.
        zone: HostId = "zone",
        /// Its processors and its memory.
        machine_type: MachineType = "machineType",
        /// What it is connected to.
        network_interfaces: Vec<NetworkInterface> = "networkInterfaces",
        /// The labels of the job that makes it.
        labels: BTreeMap<String, String> = "labels",
        /// Whether its firmware starts only what is signed.
        secure_boot: Option<bool> = "secureBoot",
        /// What starts it.
        boot_option: BootOption = "bootOption",
    }
}

resource! {
    /// What a clone is like where nothing is said of it.
    ComputeEngineTargetDefaults {
        /// The project that it is in, the only one.
        target_project: &'static str = "targetProject",
        /// The host that it is made at: that of the replica.
        zone: HostId = "zone",
        /// Its processors and its memory: those of the replicated VM.
        machine_type: MachineType = "machineType",
        /// As many interfaces as the replicated VM has, connected to nothing that leaves their host.
        network_interfaces: Vec<NetworkInterface> = "networkInterfaces",
        /// Whether its firmware starts only what is signed: as of the replicated VM.
        secure_boot: Option<bool> = "secureBoot",
        /// What starts it: likewise.
        boot_option: ComputeEngineBootOption = "bootOption",
    }
}

resource! {
    /// An interface. One that is connected to nothing that leaves its host has no network.
    NetworkInterface {
        /// The bridge that it is connected to.
        network: Option<BridgeName> = "network",
    }
}

/// A machine type as Google names those that are none of its own: `custom-VCPUS-MEBIBYTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineType {
    /// Virtual processors.
    pub vcpus: u16,
    /// Memory. Of a part of a mebibyte the whole.
    pub memory_mib: u64,
}

text! {
    MachineType: r"^custom-\d+-\d+$",
}

impl std::fmt::Display for MachineType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "custom-{}-{}", self.vcpus, self.memory_mib)
    }
}

/// A text that names no machine type which Sterna could make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no machine type here; give custom-VCPUS-MEBIBYTES, such as custom-2-4096")]
pub struct InvalidMachineType {
    /// The first characters of it.
    text: String,
}

impl std::str::FromStr for MachineType {
    type Err = InvalidMachineType;
    fn from_str(text: &str) -> Result<Self, InvalidMachineType> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let numbers = || {
            let (vcpus, memory) = text.strip_prefix("custom-")?.split_once('-')?;
            if !digits(vcpus) || !digits(memory) {
                return None;
            }
            let (vcpus, memory_mib): (u16, u64) = (vcpus.parse().ok()?, memory.parse().ok()?);
            let fits = vcpus > 0 && memory_mib > 0 && memory_mib <= u64::MAX >> 20;
            fits.then_some(Self { vcpus, memory_mib })
        };
        numbers().ok_or_else(|| InvalidMachineType { text: text.chars().take(48).collect() })
    }
}

impl From<&VmSpec> for MachineType {
    fn from(vm: &VmSpec) -> Self {
        Self { vcpus: vm.vcpus, memory_mib: vm.memory.0.div_ceil(1 << 20) }
    }
}

impl From<&NicSpec> for NetworkInterface {
    fn from(nic: &NicSpec) -> Self {
        Self { network: nic.bridge.clone() }
    }
}

impl From<Firmware> for ComputeEngineBootOption {
    fn from(firmware: Firmware) -> Self {
        match firmware {
            Firmware::Bios => Self::Bios,
            Firmware::Uefi => Self::Efi,
        }
    }
}

impl From<Firmware> for BootOption {
    fn from(firmware: Firmware) -> Self {
        match firmware {
            Firmware::Bios => Self::Bios,
            Firmware::Uefi => Self::Efi,
        }
    }
}

/// That it is off is what nothing is said of.
fn secure_boot(vm: &VmSpec) -> Option<bool> {
    vm.secure_boot.then_some(true)
}

macro_rules! always_there {
    ($($type:ty),*) => { $(impl Unset for $type { fn is_unset(&self) -> bool { false } })* };
}
always_there!(VmName, HostId);

impl ComputeEngineTargetDetails {
    /// The VM as it will be by that plan, of a job with those labels.
    #[must_use]
    pub fn of(plan: &Plan, labels: &BTreeMap<String, String>) -> Self {
        let (vm, host) = (&plan.vm_at_target, &plan.target.id);
        Self {
            vm_name: vm.name.clone(),
            project: PROJECT,
            zone: host.clone(),
            machine_type: vm.into(),
            network_interfaces: vm.nics.iter().map(NetworkInterface::from).collect(),
            labels: labels.clone(),
            secure_boot: secure_boot(vm),
            boot_option: vm.firmware.into(),
            hostname: plan.clone.as_ref().and_then(|clone| clone.hostname.clone()),
        }
    }
}

impl TargetVmDetails {
    /// That VM, at that host, of a job with those labels.
    #[must_use]
    pub fn of(vm: &VmSpec, host: &HostId, labels: &BTreeMap<String, String>) -> Self {
        Self {
            name: vm.name.clone(),
            target_project: PROJECT,
            zone: host.clone(),
            machine_type: vm.into(),
            network_interfaces: vm.nics.iter().map(NetworkInterface::from).collect(),
            labels: labels.clone(),
            secure_boot: secure_boot(vm),
            boot_option: vm.firmware.into(),
        }
    }
}

impl ComputeEngineTargetDefaults {
    /// What a clone of that VM is like, of a replica at that host.
    #[must_use]
    pub fn of(vm: &VmSpec, host: &HostId) -> Self {
        Self {
            target_project: PROJECT,
            zone: host.clone(),
            machine_type: vm.into(),
            network_interfaces: vm.nics.iter().map(|_| NetworkInterface { network: None }).collect(),
            secure_boot: secure_boot(vm),
            boot_option: vm.firmware.into(),
        }
    }
}
