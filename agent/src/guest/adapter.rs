//! The helper guest that adapts a clone's disks: a QEMU without a network, that boots [`sterna_adapter`] on them and ends.
//!
//! No kernel of this host ever mounts what a guest has written. All that comes back is the guest's word: lines of some length, so
//! many at most, until a deadline, shown to people and believed by nobody.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sterna_adapter::protocol::{HOOK_WAIT, LINE_BYTES_MAX, Order, PORT, REPORTS_MAX, Report, TEXT_CHARACTERS_MAX};
use sterna_shared::host::Accelerator;
use sterna_shared::vm::{DiskBus, DiskSpec, VmSpec};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::hooks::HookError;
use super::launcher::{Launch, LaunchError, Launched, launch};
use super::process::Ended;
use crate::hypervisor::qemu::command_line::{CommandLineError, Image, SANDBOX, disk_nodes, escaped, place, top_node};
use crate::hypervisor::qemu::runtime::RuntimeDirectory;

/// How long its QEMU may take to answer.
const START_WAIT: Duration = Duration::from_secs(20);
/// How long it may take in all, hooks apart: a hundred times what it takes on a host with KVM, ten times without.
const ADAPT_WAIT: Duration = Duration::from_secs(240);
/// How long it may take to power off after its last word.
const END_WAIT: Duration = Duration::from_secs(30);
const MEMORY_MIB: u32 = 256;
const DISK_SLOT: usize = 0x04;
const PORT_SLOT: usize = 0x0a;
const RANDOM_SLOT: usize = 0x0b;

/// A helper guest to start.
#[derive(Debug)]
pub struct Adapter<'a> {
    /// QEMU.
    pub program: &'a Path,
    /// Its kernel.
    pub kernel: &'a Path,
    /// The initramfs with the helper guest.
    pub initrd: &'a Path,
    /// How it is executed.
    pub accelerator: Accelerator,
    /// The disks.
    pub disks: Vec<(&'a DiskSpec, Image)>,
    /// Where its sockets are.
    pub runtime: RuntimeDirectory,
    /// What its systemd scope's name begins with.
    pub unit: String,
}

/// Why the system on a clone's disks was not adapted.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The helper guest was not started.
    #[error("the helper guest did not start")]
    Launch(#[from] LaunchError),
    /// What it is to run beside cannot be had.
    #[error("the hooks of this host are not as they have to be")]
    Hooks(#[from] HookError),
    /// Its port does not work.
    #[error("the helper guest's port cannot be used")]
    Port(#[source] io::Error),
    /// It says what nobody understands.
    #[error("the helper guest says {line:?}, which is no report; do its files belong to this version of the agent?")]
    Violation {
        /// What it said, as much as is shown.
        line: String,
    },
    /// It says too much.
    #[error("the helper guest said more than {REPORTS_MAX} things")]
    Chatter,
    /// It could not do it.
    #[error("the helper guest could not do it: {text}")]
    Failed {
        /// Why, in its words.
        text: String,
    },
    /// It ended too early.
    #[error("the helper guest ended before it was done")]
    Cut,
    /// It took too long.
    #[error("the helper guest was not done after {wait:?}; the host may be overloaded")]
    Late {
        /// What it had.
        wait: Duration,
    },
    /// It did not power off.
    #[error("the helper guest said that it was over, and did not end within {END_WAIT:?}")]
    Lingers,
}

impl Adapter<'_> {
    /// Starts it. A caller that stops waiting leaves one that runs.
    ///
    /// # Errors
    /// [`AdapterError::Launch`].
    pub async fn start(&self) -> Result<Launched, AdapterError> {
        let arguments = self.arguments().map_err(LaunchError::from)?;
        let (program, runtime, unit) = (self.program.to_owned(), self.runtime.clone(), self.unit.clone());
        Ok(launch(&Launch { program, arguments, runtime, unit }, START_WAIT).await?)
    }

    fn arguments(&self) -> Result<Vec<OsString>, CommandLineError> {
        let mut line: Vec<OsString> = ["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from).to_vec();
        let mut option = |name: &str, value: String| line.extend([name.into(), value.into()]);
        option("-display", "none".to_owned());
        option("-msg", "timestamp=on".to_owned());
        option("-sandbox", SANDBOX.to_owned());
        option("-machine", format!("q35,accel={}", self.accelerator.as_str()));
        option("-cpu", "max".to_owned());
        option("-m", format!("{MEMORY_MIB}M"));
        for socket in [self.runtime.qmp_socket(), self.runtime.diagnosis_socket()] {
            option("-qmp", format!("unix:{},server=on,wait=off", escaped(&socket)?));
        }
        option("-pidfile", text(&self.runtime.pid_file())?);
        option("-kernel", text(self.kernel)?);
        option("-initrd", text(self.initrd)?);
        option("-append", "quiet panic=-1".to_owned());
        for (index, (disk, image)) in self.disks.iter().enumerate() {
            // It has them for itself, and is thrown away with them where it fails.
            let disk = DiskSpec { read_only: false, ..(*disk).clone() };
            for node in disk_nodes(&disk, image)? {
                option("-blockdev", node.to_string());
            }
            let mut device = json!({ "drive": top_node(&disk.name), "write-cache": "on" });
            place(&mut device, "virtio-blk-pci", DISK_SLOT, index);
            option("-device", device.to_string());
        }
        option("-object", json!({ "qom-type": "rng-builtin", "id": "random" }).to_string());
        let mut random = json!({ "rng": "random" });
        place(&mut random, "virtio-rng-pci", RANDOM_SLOT, 0);
        option("-device", random.to_string());
        option(
            "-chardev",
            format!("socket,id=reports,path={},server=on,wait=off", escaped(&self.runtime.adapter_socket())?),
        );
        let mut serial = json!({ "id": "serial" });
        place(&mut serial, "virtio-serial-pci", PORT_SLOT, 0);
        option("-device", serial.to_string());
        let port =
            json!({ "driver": "virtserialport", "bus": "serial.0", "nr": 1, "chardev": "reports", "name": PORT });
        option("-device", port.to_string());
        Ok(line)
    }
}

/// Has a helper guest that was started do what is ordered, and waits until it has ended. What it reports is told by `tell`, one at
/// a time. Whatever comes of it, the caller ends it.
///
/// # Errors
/// [`AdapterError`]; the disks are in an unknown state then.
pub async fn adapt<F>(launched: &Launched, order: &Order, tell: impl FnMut(Report) -> F) -> Result<(), AdapterError>
where
    F: Future<Output = ()>,
{
    let hooks = u32::try_from(order.hooks.len()).unwrap_or(u32::MAX);
    let wait = ADAPT_WAIT + HOOK_WAIT.saturating_mul(hooks);
    timeout(wait, converse(launched, order, tell)).await.map_err(|_| AdapterError::Late { wait })??;
    // Only what has ended in good order has written everything.
    let Ended { status } = timeout(END_WAIT, launched.process.ended()).await.map_err(|_| AdapterError::Lingers)?;
    if status.is_some_and(|status| status.success()) { Ok(()) } else { Err(AdapterError::Cut) }
}

async fn converse<F>(launched: &Launched, order: &Order, mut tell: impl FnMut(Report) -> F) -> Result<(), AdapterError>
where
    F: Future<Output = ()>,
{
    let mut stream = UnixStream::connect(launched.runtime.adapter_socket()).await.map_err(AdapterError::Port)?;
    let mut line = serde_json::to_vec(order).map_err(|error| AdapterError::Port(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(AdapterError::Port)?;
    let mut reader = BufReader::new(stream);
    for _ in 0..REPORTS_MAX {
        let mut line = Vec::new();
        let read = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        match read {
            Ok(0) => return Err(AdapterError::Cut),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(AdapterError::Cut),
            Err(error) => return Err(AdapterError::Port(error)),
        }
        let report = serde_json::from_slice(&line)
            .map_err(|_| AdapterError::Violation { line: shown(&String::from_utf8_lossy(&line)) })?;
        match bounded(report) {
            Report::Over => return Ok(()),
            Report::Failed { text } => return Err(AdapterError::Failed { text }),
            report => tell(report).await,
        }
    }
    Err(AdapterError::Chatter)
}

/// The report with texts that can be shown.
fn bounded(report: Report) -> Report {
    match report {
        Report::Found { device, system, cloud_init } => {
            Report::Found { device: shown(&device), system: shown(&system), cloud_init }
        }
        Report::Unrecognised { text } => Report::Unrecognised { text: shown(&text) },
        Report::Changed { action, text } => Report::Changed { action, text: shown(&text) },
        Report::Left { action, text } => Report::Left { action, text: shown(&text) },
        Report::Failed { text } => Report::Failed { text: shown(&text) },
        Report::Over => Report::Over,
    }
}

/// A guest's text in one line, as much of it as is kept.
fn shown(text: &str) -> String {
    let visible = text.trim().chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter });
    visible.take(TEXT_CHARACTERS_MAX).collect()
}

/// What the guest's own kernel calls its disks. SCSI and SATA share one kind of name, in an order that nobody promises.
#[must_use]
pub fn names_in_guest(spec: &VmSpec) -> Vec<Option<String>> {
    let count = |bus: DiskBus| spec.disks.iter().filter(|disk| disk.bus == bus).count();
    let one_kind = count(DiskBus::Scsi) == 0 || count(DiskBus::Sata) == 0;
    let (mut virtio, mut other) = (b'a'..=b'z', b'a'..=b'z');
    let named = spec.disks.iter().map(|disk| match disk.bus {
        DiskBus::Virtio => virtio.next().map(|letter| format!("vd{}", char::from(letter))),
        DiskBus::Scsi | DiskBus::Sata => {
            other.next().filter(|_| one_kind).map(|letter| format!("sd{}", char::from(letter)))
        }
    });
    named.collect()
}

fn text(path: &Path) -> Result<String, CommandLineError> {
    path.to_str().map(str::to_owned).ok_or_else(|| CommandLineError::Path { path: PathBuf::from(path) })
}

#[cfg(test)]
mod tests {
    use sterna_adapter::protocol::Action;

    use super::*;
    use crate::hypervisor::qemu::command_line::ImageKind;

    fn disk(name: &str, bus: &str) -> DiskSpec {
        let text = format!("name = \"{name}\"\npool = \"p\"\nsize = \"1 MiB\"\nread_only = true\nbus = \"{bus}\"");
        toml::from_str(&text).expect("a disk")
    }

    #[test]
    fn a_helper_guest_has_the_disks_and_nothing_else_of_the_world() {
        let (root, data) = (disk("root", "virtio"), disk("data", "sata"));
        let image = |name: &str| Image { path: format!("/p/{name}.raw").into(), kind: ImageKind::File, layers: vec![] };
        let adapter = Adapter {
            program: Path::new("qemu"),
            kernel: Path::new("/k"),
            initrd: Path::new("/i"),
            accelerator: Accelerator::Tcg,
            disks: vec![(&root, image("root")), (&data, image("data"))],
            runtime: RuntimeDirectory::new("/run/x,y").expect("a directory"),
            unit: "u".to_owned(),
        };
        let line = adapter.arguments().expect("arguments");
        let words: Vec<&str> = line.iter().filter_map(|word| word.to_str()).collect();
        assert_eq!(&words[..3], ["-nodefaults", "-no-user-config", "-no-reboot"]);
        let line = words.join(" ");
        assert_eq!(line.matches("\"read-only\":false").count(), 6, "{line}");
        assert_eq!(line.matches("virtio-blk-pci").count(), 2, "whatever bus the guest has them on");
        assert!(line.contains("path=/run/x,,y/adapter.sock") && line.contains("spawn=deny"), "{line}");
        assert!(!line.contains("net"), "{line}");
    }

    #[test]
    fn disks_have_the_names_that_their_guest_gives_them() {
        let names = |buses: &[&str]| {
            let mut spec: VmSpec = serde_json::from_value(serde_json::json!({
                "name": "web", "id": "0197c0de-0000-7000-8000-000000000001", "memory": 512 << 20,
            }))
            .expect("a specification");
            spec.disks = buses.iter().map(|bus| disk("d", bus)).collect();
            names_in_guest(&spec).into_iter().map(|name| name.unwrap_or_else(|| "-".to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(names(&["virtio", "scsi", "virtio", "scsi"]), ["vda", "sda", "vdb", "sdb"]);
        assert_eq!(names(&["sata", "virtio", "scsi"]), ["-", "vda", "-"]);
    }

    #[test]
    fn what_a_guest_says_is_shown_in_one_line_of_some_length() {
        assert_eq!(shown(" a\n\u{1b}[2Jb "), "a\u{fffd}\u{fffd}[2Jb");
        let long = Report::Changed { action: Action::Fstab, text: "ä".repeat(5000) };
        let Report::Changed { text, .. } = bounded(long) else { panic!("another report") };
        assert_eq!(text.chars().count(), TEXT_CHARACTERS_MAX);
    }
}
