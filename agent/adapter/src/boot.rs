//! From a bare kernel to mounted file systems, and back: what an init does, and nothing else.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

use crate::protocol::PORT;

/// How long what was killed may take to let go of a file system.
const UNMOUNT_WAIT: Duration = Duration::from_secs(5);
/// How long a device may take to appear after its driver was loaded.
const DEVICE_WAIT: Duration = Duration::from_secs(20);
const DEVICE_POLL: Duration = Duration::from_millis(10);
/// The most partitions of all disks together that are looked at.
const PARTS_MAX: usize = 256;

/// A whole disk or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// What the kernel here calls it, such as `vda1`.
    pub(crate) name: String,
    /// Its device.
    pub(crate) device: PathBuf,
}

impl Part {
    /// Whether it is on that disk, as `vda1` is on `vda`.
    pub(crate) fn is_partition_of(&self, disk: &Self) -> bool {
        let number = self.name.strip_prefix(disk.name.as_str()).unwrap_or_default();
        disk.name.ends_with(|letter: char| letter.is_ascii_lowercase())
            && number.starts_with(|c: char| c.is_ascii_digit())
    }
}

/// What a file system is mounted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// To be looked at: not a bit of it changes.
    Look,
    /// To be changed.
    Change,
}

/// What the machine lacks, or does not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot mount {0}")]
    Mount(PathBuf, #[source] Errno),
    #[error("cannot unmount {0}: what was changed there may not be on the disk")]
    Unmount(PathBuf, #[source] Errno),
    #[error("what was changed on {0} is not all on the disk")]
    Sync(PathBuf, #[source] Errno),
    #[error("cannot load the module {0}: it must be of the kernel that runs; build the initramfs again")]
    Module(String, #[source] Errno),
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{found} of {wanted} disks appeared within {DEVICE_WAIT:?}")]
    Disks { wanted: usize, found: usize },
    #[error("no virtio-serial port {PORT} appeared within {DEVICE_WAIT:?}")]
    NoPort,
}

/// Mounts the kernel's own file systems.
pub(crate) fn mount_all() -> Result<(), BootError> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_kernel(kind, place)?;
    }
    Ok(())
}

/// Mounts one of the kernel's own file systems.
pub(crate) fn mount_kernel(kind: &str, place: &str) -> Result<(), BootError> {
    match mount(kind, place, kind, MountFlags::empty(), None) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(BootError::Mount(place.into(), error)),
    }
}

/// Mounts a file system that is in memory only, of some MiB.
pub(crate) fn mount_memory(place: &str) -> Result<(), BootError> {
    let safe = MountFlags::NODEV | MountFlags::NOSUID;
    mount("tmpfs", place, "tmpfs", safe, Some(c"size=8m,mode=755"))
        .map_err(|error| BootError::Mount(place.into(), error))
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

/// The port to the agent.
pub(crate) fn find_port() -> Result<PathBuf, BootError> {
    wait_for(|| {
        entries("/sys/class/virtio-ports").into_iter().find_map(|name| {
            let folder = Path::new("/sys/class/virtio-ports").join(&name);
            let device = Path::new("/dev").join(&name);
            let named = fs::read_to_string(folder.join("name")).ok()?;
            (named.trim() == PORT && device.exists()).then_some(device)
        })
    })
    .ok_or(BootError::NoPort)
}

/// All disks and their partitions, in order; waits until so many disks are there.
pub(crate) fn find_parts(disks: usize) -> Result<Vec<Part>, BootError> {
    let found = || -> Vec<String> {
        let mut names = entries("/sys/block");
        names.retain(|name| name.starts_with("vd") && Path::new("/dev").join(name).exists());
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    };
    let all = wait_for(|| Some(found()).filter(|names| names.len() == disks));
    let names = all.ok_or_else(|| BootError::Disks { wanted: disks, found: found().len() })?;
    let mut parts = Vec::new();
    for disk in names {
        let mut inside = entries(Path::new("/sys/block").join(&disk));
        inside.retain(|name| name.starts_with(&disk));
        inside.sort_by_key(|name| (name.len(), name.clone()));
        parts.extend(std::iter::once(disk).chain(inside));
    }
    parts.truncate(PARTS_MAX);
    Ok(parts.into_iter().map(|name| Part { device: Path::new("/dev").join(&name), name }).collect())
}

/// Mounts a file system of the guest. Nothing in it counts as a device, or gives rights to who runs it.
pub(crate) fn mount_part(device: &Path, kind: FileSystem, place: &str, access: Access) -> Result<(), BootError> {
    let safe = MountFlags::NODEV | MountFlags::NOSUID;
    let (flags, options) = match access {
        Access::Look => (safe | MountFlags::RDONLY, Some(kind.without_replay())),
        Access::Change => (safe, None),
    };
    mount(device, place, kind.as_str(), flags, options).map_err(|error| BootError::Mount(device.to_owned(), error))
}

/// A file system that can be mounted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// And ext2, and ext3.
    Ext4,
    Xfs,
}

impl FileSystem {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// What has it mounted as it is, with what its journal holds left there.
    fn without_replay(self) -> &'static CStr {
        match self {
            Self::Ext4 => c"noload",
            Self::Xfs => c"norecovery",
        }
    }
}

/// Has everything on the disk of a file system that `root` is of, and tells what failed to get there since `root` was opened:
/// an unmount does not.
pub(crate) fn sync(root: &File, place: &str) -> Result<(), BootError> {
    rustix::fs::syncfs(root).map_err(|error| BootError::Sync(place.into(), error))
}

/// Unmounts, with everything on the disk. What was killed a moment ago may hold it still.
pub(crate) fn unmount(place: &str) -> Result<(), BootError> {
    let deadline = Instant::now() + UNMOUNT_WAIT;
    loop {
        match rustix::mount::unmount(place, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(DEVICE_POLL),
            unmounted => return unmounted.map_err(|error| BootError::Unmount(place.into(), error)),
        }
    }
}

/// Writes everything out and switches the machine off. As pid 1 it is the last thing that is done.
pub(crate) fn power_off() {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        console(&format!("ADAPTER FAILED cannot power off: {error}"));
    }
}

/// Prints one line on the console. A console that cannot be written to is nobody's fault in here.
pub(crate) fn console(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn entries(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn read(path: &Path) -> Result<String, BootError> {
    fs::read_to_string(path).map_err(|error| BootError::Read(path.to_owned(), error))
}

/// Devices announce themselves by uevents, but a poll of a few lines does for a boot.
fn wait_for<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + DEVICE_WAIT;
    loop {
        match look() {
            None if Instant::now() < deadline => std::thread::sleep(DEVICE_POLL),
            found => return found,
        }
    }
}
