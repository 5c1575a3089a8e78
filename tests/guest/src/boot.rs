//! From a bare kernel to a machine with disks and a network: what an init does, and nothing else.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::config::Network;
use crate::netlink;

/// How long a device may take to appear after its driver was loaded.
const DEVICE_WAIT: Duration = Duration::from_secs(10);
const DEVICE_POLL: Duration = Duration::from_millis(10);
/// The name of the one network device.
const DEVICE: &str = "eth0";

/// What the machine lacks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot mount {0}")]
    Mount(&'static str, #[source] Errno),
    #[error("cannot load the module {0}: it must be of the kernel that runs; build the initramfs again")]
    Module(String, #[source] Errno),
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{found} of {wanted} disks appeared within {DEVICE_WAIT:?}: give QEMU as many as witness.disks says")]
    Disks { wanted: usize, found: usize },
    #[error(
        "no virtio-serial port {0} appeared within {DEVICE_WAIT:?}: say guest_agent = true, or leave witness.agent out"
    )]
    NoPort(&'static str),
    #[error("no {DEVICE} appeared within {DEVICE_WAIT:?}: give QEMU a virtio-net device, or leave witness.ip out")]
    NoNetwork,
    #[error("cannot {step}")]
    Network { step: &'static str, source: io::Error },
}

/// Mounts the kernel's own file systems.
pub(crate) fn mount_all() -> Result<(), BootError> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        match mount(kind, place, kind, MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(BootError::Mount(place, error)),
        }
    }
    Ok(())
}

/// Loads the modules that `/lib/modules/order` lists, one file name a line, each after what it depends on.
pub(crate) fn load_modules() -> Result<(), BootError> {
    let folder = Path::new("/lib/modules");
    for name in read(&folder.join("order"))?.lines() {
        let path = folder.join(name);
        let file = File::open(&path).map_err(|error| BootError::Read(path, error))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(BootError::Module(name.to_owned(), error)),
        }
    }
    Ok(())
}

/// The first `wanted` disks, virtio before SCSI before NVMe, each kind in its order; waits until they are there.
pub(crate) fn find_disks(wanted: usize) -> Result<Vec<PathBuf>, BootError> {
    let mut found = Vec::new();
    wait_until(|| {
        found = ["vd", "sd", "nvme"].into_iter().flat_map(disks_of_kind).take(wanted).collect();
        found.len() == wanted
    });
    if found.len() < wanted {
        return Err(BootError::Disks { wanted, found: found.len() });
    }
    Ok(found)
}

fn disks_of_kind(prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.starts_with(prefix) && Path::new("/dev").join(name).exists());
    names.sort_by_key(|name| (name.len(), name.clone()));
    names.into_iter().map(|name| Path::new("/dev").join(name)).collect()
}

/// Looks for something until it is there, for as long as a device may take to appear.
pub(crate) fn find<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let mut found = None;
    wait_until(|| {
        found = look();
        found.is_some()
    });
    found
}

/// Gives `eth0` its address and brings it up.
pub(crate) fn bring_up(network: &Network) -> Result<(), BootError> {
    let index_file = Path::new("/sys/class/net").join(DEVICE).join("ifindex");
    if !wait_until(|| index_file.exists()) {
        return Err(BootError::NoNetwork);
    }
    let index = read(&index_file)?.trim().parse().map_err(|_| BootError::NoNetwork)?;
    netlink::configure(index, network).map_err(|(step, source)| BootError::Network { step, source })
}

/// Writes everything out and switches the machine off. As pid 1 it is the last thing that is done.
pub(crate) fn power_off() {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        crate::console(format_args!("WITNESS FAILED cannot power off: {error}"));
    }
}

fn read(path: &Path) -> Result<String, BootError> {
    fs::read_to_string(path).map_err(|error| BootError::Read(path.to_owned(), error))
}

/// Devices announce themselves by uevents, but a poll of a few lines does for a boot.
fn wait_until(mut ready: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + DEVICE_WAIT;
    loop {
        if ready() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(DEVICE_POLL);
    }
}
