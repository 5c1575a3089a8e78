//! Handing over to a system on a disk: the guest is then that system, booted as its own initramfs would boot it.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::boot;

const ROOT: &str = "/root";
const INIT: &str = "/sbin/init";

/// Why the system was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("no /dev/{0} appeared: check witness.root")]
    NoDevice(String),
    #[error("cannot {0}")]
    Step(&'static str, #[source] Errno),
    #[error("cannot run {INIT} of the root")]
    Init(#[source] io::Error),
}

/// Makes the file system on that device the root, and its init this process.
pub(crate) fn hand_over(device: &str) -> Result<(), RootError> {
    let path = Path::new("/dev").join(device);
    let path = boot::find(|| path.exists().then(|| path.clone()));
    let path = path.ok_or_else(|| RootError::NoDevice(device.to_owned()))?;
    let step = |what| move |error| RootError::Step(what, error);
    mount(&path, ROOT, "ext4", MountFlags::empty(), None).map_err(step("mount the root"))?;
    for place in ["/dev", "/proc", "/sys"] {
        mount_move(place, format!("{ROOT}{place}")).map_err(step("move the kernel's file systems"))?;
    }
    rustix::process::chdir(ROOT).map_err(step("enter the root"))?;
    mount_move(".", "/").map_err(step("move the root"))?;
    rustix::process::chroot(".").map_err(step("make the root the root"))?;
    Err(RootError::Init(Command::new(INIT).exec()))
}
