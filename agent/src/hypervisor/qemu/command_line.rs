//! A VM as QEMU arguments. Pure: the same specification gives the same machine, on every host, every time.
//!
//! ```text
//!   each disk:   device disk-NAME ─▶ top-NAME (raw) ─▶ format-NAME (raw, qcow2) ─▶ file-NAME (file, host_device)
//!                                       ▲ a filter or another image is swapped in here under a running guest
//!   PCI slots:   02–03 nics · 04–07 virtio disks · 08 SCSI · 09 guest agent · 0a SATA · 10 others    (8 functions a slot)
//! ```
//!
//! Every device has an address that follows from its place among its own kind, so that source and target build the same
//! machine, and a disk added later moves no nic. Arguments are JSON wherever QEMU takes it: a path needs no quoting there.
//! Every start has `-S`; only the handover lets a guest run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sterna_shared::host::Accelerator;
use sterna_shared::id::DiskName;
use sterna_shared::vm::{CacheMode, DiskBus, DiskFormat, DiskSpec, IsolatedAddress, VmSpec};

use super::extra_arguments;
use super::runtime::RuntimeDirectory;

const NIC_SLOT: usize = 0x02;
const VIRTIO_DISK_SLOT: usize = 0x04;
const SCSI_SLOT: usize = 0x08;
const GUEST_AGENT_SLOT: usize = 0x09;
const SATA_SLOT: usize = 0x0a;
const EXTRA_SLOT: usize = 0x10;
/// The most further devices: they fill one slot.
const EXTRA_DEVICES_MAX: usize = 8;
/// Disks on one AHCI controller.
const SATA_PORTS: usize = 6;
/// What no QEMU may do, whatever its guest makes of it.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// How much of a disk's name fits its serial number on every bus.
const SERIAL_BYTES_MAX: usize = 20;

/// Where on this host a VM's parts are.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Its sockets, logs and process id.
    pub runtime: RuntimeDirectory,
    /// The image of each disk.
    pub images: BTreeMap<DiskName, Image>,
    /// Where kernels and initial RAM disks are.
    pub boot_directory: PathBuf,
    /// What a UEFI guest starts from.
    pub uefi: Option<UefiPlacement>,
    /// For each nic, in order: its tap device, where it is on a bridge.
    pub taps: Vec<Option<String>>,
    /// How the guest is executed.
    pub accelerator: Accelerator,
    /// Whether it waits for a migration, and does not start by itself.
    pub incoming: bool,
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its path.
    pub path: PathBuf,
    /// What is at the path.
    pub kind: ImageKind,
    /// The layers of a replica that it stands on, the lowest first; none of a disk that stands alone.
    pub layers: Vec<PathBuf>,
}

/// What an image is to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// UEFI firmware of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiPlacement {
    /// The firmware's code, only read.
    pub code: PathBuf,
    /// This VM's own variable store, a raw file.
    pub variables: PathBuf,
}

/// Why a VM cannot be put as a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// The agent left something out of the placement.
    #[error("the placement has no {what}; this is a fault of the agent")]
    NotPlaced {
        /// What is missing.
        what: String,
    },
    /// A path is no UTF-8 text, which QEMU's JSON needs.
    #[error("the path {path:?} is not UTF-8 text; rename it")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Sterna gives out PCI addresses, and knows them for these machine types only.
    #[error("machine {machine:?} is not one Sterna can lay out; give a versioned pc-q35-… or pc-i440fx-… type")]
    Machine {
        /// The type asked for.
        machine: String,
    },
    /// AHCI has no read-only disks.
    #[error("disk {disk} is read-only on SATA, which QEMU does not offer; put it on virtio or scsi")]
    ReadOnlySata {
        /// The disk.
        disk: DiskName,
    },
    /// A further argument is not allowed.
    #[error("extra argument {argument:?} is not allowed: {reason}")]
    ExtraArgument {
        /// The argument.
        argument: String,
        /// What is allowed in its place.
        reason: String,
    },
}

/// The name of a disk's device, for commands such as `block_set_io_throttle`.
#[must_use]
pub fn device_id(disk: &DiskName) -> String {
    format!("disk-{disk}")
}

/// The node under a disk's device. What is below it may be swapped while the guest runs.
#[must_use]
pub fn top_node(disk: &DiskName) -> String {
    format!("top-{disk}")
}

/// The node that holds a disk's contents as the guest sees them, and its dirty bitmaps.
#[must_use]
pub fn format_node(disk: &DiskName) -> String {
    format!("format-{disk}")
}

/// The other name of the node that holds a disk's contents: a move between pools opens the new image under whichever of
/// the two is free. No longer than the first, so that every disk's name fits QEMU's 31 bytes.
#[must_use]
pub fn spare_format_node(disk: &DiskName) -> String {
    format!("forma2-{disk}")
}

/// The other name of the node of a disk's image file.
#[must_use]
pub fn spare_file_node(disk: &DiskName) -> String {
    format!("fil2-{disk}")
}

/// The node of a disk's image file.
#[must_use]
pub fn file_node(disk: &DiskName) -> String {
    format!("file-{disk}")
}

/// The options of a disk's top node over the node `below`: what `blockdev-add` and `blockdev-reopen` take. A reopen
/// resets whatever it does not name, so both must come from here.
#[must_use]
pub fn top_options(disk: &DiskSpec, below: &str) -> Value {
    node_options(disk, "raw", &top_node(&disk.name), json!({ "file": below }))
}

/// The three nodes of a disk, lowest first: what `-blockdev` and `blockdev-add` take.
///
/// # Errors
/// [`CommandLineError::Path`].
pub fn disk_nodes(disk: &DiskSpec, image: &Image) -> Result<[Value; 3], CommandLineError> {
    let (file, format) = (file_node(&disk.name), format_node(&disk.name));
    let driver = match image.kind {
        ImageKind::File => "file",
        ImageKind::BlockDevice => "host_device",
    };
    let mut format_options = node_options(disk, disk.format.as_str(), &format, json!({ "file": file }));
    if image.kind == ImageKind::BlockDevice && disk.format == DiskFormat::Raw {
        // A device may be longer than the disk: a logical volume has whole extents.
        format_options["size"] = json!(disk.size.0);
    }
    if !image.layers.is_empty() {
        format_options["backing"] = layer_nodes(&image.layers)?;
    }
    if disk.discard && !disk.read_only {
        // At the format node, because writes of the guest and of a copy into this disk both pass it.
        format_options["detect-zeroes"] = json!("unmap");
    }
    Ok([
        node_options(disk, driver, &file, json!({ "filename": text(&image.path)? })),
        format_options,
        top_options(disk, &format),
    ])
}

/// The nodes of layers, each below the next: only read, and named by nobody. That the lowest stands on nothing is said, so that
/// no header is asked.
fn layer_nodes(layers: &[PathBuf]) -> Result<Value, CommandLineError> {
    let mut below = Value::Null;
    for path in layers {
        let file = json!({ "driver": "file", "filename": text(path)?, "read-only": true });
        below = json!({ "driver": "qcow2", "read-only": true, "file": file, "backing": below });
    }
    Ok(below)
}

/// The node of a UEFI guest's variables; below it is a file node of one of two names.
pub const VARIABLES_NODE: &str = "uefi-variables";
/// The names of the file below [`VARIABLES_NODE`]: the first from the start on, and one to change to.
pub const VARIABLES_FILE_NODES: [&str; 2] = ["uefi-variables-file", "uefi-variables-file-2"];

/// A file of the firmware.
///
/// # Errors
/// [`CommandLineError::Path`].
pub fn firmware_file_node(name: &str, path: &Path, read_only: bool) -> Result<Value, CommandLineError> {
    Ok(json!({ "driver": "file", "node-name": name, "filename": text(path)?, "read-only": read_only }))
}

/// What the firmware's device stands on.
#[must_use]
pub fn firmware_node(name: &str, file: &str, read_only: bool) -> Value {
    json!({ "driver": "raw", "node-name": name, "file": file, "read-only": read_only })
}

/// The whole command line, without the program.
///
/// # Errors
/// [`CommandLineError`].
pub fn command_line(vm: &VmSpec, placement: &Placement) -> Result<Vec<OsString>, CommandLineError> {
    let mut line = Line::default();
    line.machine(vm, placement)?;
    line.monitors(&placement.runtime)?;
    line.boot(vm, placement)?;
    line.disks(vm, placement)?;
    line.nics(vm, placement)?;
    if vm.guest_agent {
        line.guest_agent(&placement.runtime)?;
    }
    line.extra_arguments(&vm.extra_arguments)?;
    if placement.incoming {
        line.option("-incoming", "defer");
    }
    line.flag("-S");
    Ok(line.0)
}

/// The arguments as they grow.
#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn machine(&mut self, vm: &VmSpec, placement: &Placement) -> Result<(), CommandLineError> {
        if !vm.machine.starts_with("pc-q35-") && !vm.machine.starts_with("pc-i440fx-") {
            return Err(CommandLineError::Machine { machine: vm.machine.clone() });
        }
        let mut machine = format!("{},accel={},memory-backend=ram", vm.machine, placement.accelerator.as_str());
        if let Some(uefi) = uefi(vm, placement)? {
            let nodes = [
                firmware_file_node("uefi-code-file", &uefi.code, true)?,
                firmware_node("uefi-code", "uefi-code-file", true),
                firmware_file_node(VARIABLES_FILE_NODES[0], &uefi.variables, false)?,
                firmware_node(VARIABLES_NODE, VARIABLES_FILE_NODES[0], false),
            ];
            for node in nodes {
                self.json("-blockdev", &node);
            }
            machine += ",pflash0=uefi-code,pflash1=uefi-variables";
            if vm.secure_boot {
                // Only the firmware, in system management mode, may write to its keys: the guest's system may not.
                machine += ",smm=on";
                self.option("-global", "driver=cfi.pflash01,property=secure,value=on");
                // Builds of 64 bits throughout do not start where they could be woken from S3.
                self.option("-global", "ICH9-LPC.disable_s3=1");
            }
        }
        self.option("-name", &format!("guest={},debug-threads=on", vm.name));
        self.option("-uuid", &vm.id.to_string());
        self.flag("-nodefaults");
        self.flag("-no-user-config");
        self.option("-display", "none");
        self.option("-msg", "timestamp=on");
        self.option("-sandbox", SANDBOX);
        self.json("-object", &json!({ "qom-type": "memory-backend-ram", "id": "ram", "size": vm.memory.0 }));
        self.option("-machine", &machine);
        self.option("-cpu", &vm.cpu);
        self.option("-m", &format!("{}M", vm.memory.0 >> 20));
        self.option("-smp", &vm.vcpus.to_string());
        Ok(())
    }

    fn monitors(&mut self, runtime: &RuntimeDirectory) -> Result<(), CommandLineError> {
        for socket in [runtime.qmp_socket(), runtime.diagnosis_socket()] {
            self.option("-qmp", &format!("unix:{},server=on,wait=off", escaped(&socket)?));
        }
        self.option("-pidfile", text(&runtime.pid_file())?);
        let (socket, log) = (escaped(&runtime.console_socket())?, escaped(&runtime.console_log())?);
        self.option(
            "-chardev",
            &format!("socket,id=console,path={socket},server=on,wait=off,logfile={log},logappend=on"),
        );
        self.option("-serial", "chardev:console");
        Ok(())
    }

    fn boot(&mut self, vm: &VmSpec, placement: &Placement) -> Result<(), CommandLineError> {
        self.option("-boot", "strict=on");
        let Some(kernel) = &vm.kernel else { return Ok(()) };
        let file = |name: &str| placement.boot_directory.join(name);
        self.option("-kernel", text(&file(kernel.image.as_str()))?);
        if let Some(initrd) = &kernel.initrd {
            self.option("-initrd", text(&file(initrd.as_str()))?);
        }
        if !kernel.append.is_empty() {
            self.option("-append", &kernel.append);
        }
        Ok(())
    }

    fn disks(&mut self, vm: &VmSpec, placement: &Placement) -> Result<(), CommandLineError> {
        let (mut virtio, mut scsi, mut sata) = (0, 0, 0);
        for (index, disk) in vm.disks.iter().enumerate() {
            let image =
                placement.images.get(&disk.name).ok_or_else(|| not_placed(format!("image of disk {}", disk.name)))?;
            // The image of an incoming one is filled below the node that its device is on.
            let below = DiskSpec { read_only: disk.read_only && !placement.incoming, ..disk.clone() };
            let [file, format, _] = disk_nodes(&below, image)?;
            for node in [file, format, top_options(disk, &format_node(&disk.name))] {
                self.json("-blockdev", &node);
            }
            let mut device = json!({
                "id": device_id(&disk.name),
                "drive": top_node(&disk.name),
                "bootindex": index + 1,
                "serial": disk.name.as_str().chars().take(SERIAL_BYTES_MAX).collect::<String>(),
                // The guest's own flushes decide, whichever way the host caches.
                "write-cache": "on",
            });
            match disk.bus {
                DiskBus::Virtio => {
                    place(&mut device, "virtio-blk-pci", VIRTIO_DISK_SLOT, virtio);
                    device["discard"] = json!(disk.discard);
                    virtio += 1;
                }
                DiskBus::Scsi => {
                    if scsi == 0 {
                        self.controller("virtio-scsi-pci", "scsi", SCSI_SLOT, 0);
                    }
                    device["driver"] = json!("scsi-hd");
                    device["bus"] = json!("scsi.0");
                    device["scsi-id"] = json!(scsi);
                    device["lun"] = json!(0);
                    scsi += 1;
                }
                DiskBus::Sata if disk.read_only => {
                    return Err(CommandLineError::ReadOnlySata { disk: disk.name.clone() });
                }
                DiskBus::Sata => {
                    let (controller, port) = (sata / SATA_PORTS, sata % SATA_PORTS);
                    if port == 0 {
                        self.controller("ich9-ahci", &format!("sata{controller}"), SATA_SLOT, controller);
                    }
                    device["driver"] = json!("ide-hd");
                    device["bus"] = json!(format!("sata{controller}.{port}"));
                    sata += 1;
                }
            }
            self.json("-device", &device);
        }
        Ok(())
    }

    fn nics(&mut self, vm: &VmSpec, placement: &Placement) -> Result<(), CommandLineError> {
        for (index, nic) in vm.nics.iter().enumerate() {
            let network = format!("net-{index}");
            let backend = match (&nic.bridge, placement.taps.get(index).and_then(Option::as_deref)) {
                (None, _) => user_network(&network, nic.isolated),
                (Some(_), Some(tap)) => {
                    json!({ "type": "tap", "id": network, "ifname": tap, "script": "no", "downscript": "no" })
                }
                (Some(bridge), None) => {
                    return Err(not_placed(format!("tap device of nic {index} on bridge {bridge}")));
                }
            };
            self.json("-netdev", &backend);
            let mut device = json!({
                "id": format!("nic-{index}"),
                "netdev": network,
                "mac": nic.mac.to_string(),
                // No boot ROM: its size, which differs between packages of QEMU, would have to be equal on both hosts.
                "romfile": "",
            });
            place(&mut device, "virtio-net-pci", NIC_SLOT, index);
            self.json("-device", &device);
        }
        Ok(())
    }

    fn guest_agent(&mut self, runtime: &RuntimeDirectory) -> Result<(), CommandLineError> {
        let socket = escaped(&runtime.guest_agent_socket())?;
        self.controller("virtio-serial-pci", "serial", GUEST_AGENT_SLOT, 0);
        self.option("-chardev", &format!("socket,id=guest-agent,path={socket},server=on,wait=off"));
        self.json(
            "-device",
            &json!({
                "driver": "virtserialport", "id": "guest-agent-port", "bus": "serial.0", "nr": 1,
                "chardev": "guest-agent", "name": "org.qemu.guest_agent.0",
            }),
        );
        Ok(())
    }

    fn extra_arguments(&mut self, arguments: &[String]) -> Result<(), CommandLineError> {
        let checked = extra_arguments::checked(arguments)?;
        for (index, driver) in checked.devices.into_iter().enumerate() {
            if index >= EXTRA_DEVICES_MAX {
                let reason = format!("at most {EXTRA_DEVICES_MAX} further devices are allowed");
                return Err(CommandLineError::ExtraArgument { argument: driver.to_owned(), reason });
            }
            // As JSON and in a place of its own: QEMU makes all other devices first and gives them the first free
            // places, which may be meant for disks and nics.
            self.controller(driver, &format!("extra-{index}"), EXTRA_SLOT, index);
        }
        self.0.extend(checked.plain.into_iter().map(OsString::from));
        Ok(())
    }

    fn controller(&mut self, driver: &str, id: &str, slot: usize, index: usize) {
        let mut device = json!({ "id": id });
        place(&mut device, driver, slot, index);
        self.json("-device", &device);
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.option(option, &value.to_string());
    }

    fn option(&mut self, option: &str, value: &str) {
        self.0.extend([option.into(), value.into()]);
    }

    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }
}

/// Gives a device the `index`-th place from `slot` on, eight to a slot.
pub(crate) fn place(device: &mut Value, driver: &str, slot: usize, index: usize) {
    let (slot, function) = (slot + index / 8, index % 8);
    device["driver"] = json!(driver);
    device["addr"] = json!(format!("{slot:x}.{function:x}"));
    if function == 0 {
        // Also for one alone: whether there is a second must not change the first.
        device["multifunction"] = json!(true);
    }
}

/// QEMU's user-mode network. An isolated guest has it to itself: nothing it sends leaves it, and it learns of nobody.
fn user_network(id: &str, isolated: Option<IsolatedAddress>) -> Value {
    let Some(address) = isolated else { return json!({ "type": "user", "id": id }) };
    let [host, dns] = address.others();
    json!({
        "type": "user", "id": id, "restrict": true, "ipv6": false, "net": address.network(), "host": host, "dns": dns,
        "dhcpstart": address.guest(),
    })
}

fn node_options(disk: &DiskSpec, driver: &str, name: &str, rest: Value) -> Value {
    let mut options = json!({
        "driver": driver,
        "node-name": name,
        "read-only": disk.read_only,
        "discard": if disk.discard { "unmap" } else { "ignore" },
        "cache": { "direct": disk.cache == CacheMode::None, "no-flush": false },
    });
    if let (Value::Object(options), Value::Object(rest)) = (&mut options, rest) {
        options.extend(rest);
    }
    options
}

fn uefi<'a>(vm: &VmSpec, placement: &'a Placement) -> Result<Option<&'a UefiPlacement>, CommandLineError> {
    match vm.firmware {
        sterna_shared::vm::Firmware::Bios => Ok(None),
        sterna_shared::vm::Firmware::Uefi => {
            placement.uefi.as_ref().map(Some).ok_or_else(|| not_placed("UEFI firmware".to_owned()))
        }
    }
}

fn not_placed(what: String) -> CommandLineError {
    CommandLineError::NotPlaced { what }
}

fn text(path: &Path) -> Result<&str, CommandLineError> {
    path.to_str().ok_or_else(|| CommandLineError::Path { path: path.to_owned() })
}

/// A path as the value of `key=value,…`, where a comma is written twice.
pub(crate) fn escaped(path: &Path) -> Result<String, CommandLineError> {
    Ok(text(path)?.replace(',', ",,"))
}

#[cfg(test)]
mod tests;
