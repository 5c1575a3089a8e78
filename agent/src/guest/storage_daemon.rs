//! The disks of a stopped VM, served by QEMU's storage daemon: the same nodes, exports and bitmaps as a running guest
//! has, by the same [`Machine`](crate::hypervisor::qemu::Machine), so that one disk loop serves both.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use sterna_shared::vm::DiskSpec;

use super::launcher::{Launch, LaunchError, Launched, launch};
use crate::hypervisor::qemu::command_line::{CommandLineError, Image, disk_nodes, escaped};
use crate::hypervisor::qemu::runtime::RuntimeDirectory;

/// What may be done to the disks served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading alone; the images are not changed in any way.
    Read,
    /// Reading and writing, also of disks that the guest may only read: they have to be filled once.
    Write,
}

/// Serves disks, each as the nodes that `command_line` names. Nothing is exported yet.
///
/// # Errors
/// [`LaunchError`].
pub async fn serve(
    program: &Path,
    disks: &[(&DiskSpec, Image)],
    access: Access,
    runtime: &RuntimeDirectory,
    unit: String,
    wait: Duration,
) -> Result<Launched, LaunchError> {
    let arguments = arguments(disks, access, runtime)?;
    launch(&Launch { program: program.to_owned(), arguments, runtime: runtime.clone(), unit }, wait).await
}

fn arguments(
    disks: &[(&DiskSpec, Image)],
    access: Access,
    runtime: &RuntimeDirectory,
) -> Result<Vec<OsString>, CommandLineError> {
    let mut line = Vec::<OsString>::new();
    for (disk, image) in disks {
        let disk = DiskSpec { read_only: access == Access::Read, ..(*disk).clone() };
        for node in disk_nodes(&disk, image)? {
            line.extend(["--blockdev".into(), node.to_string().into()]);
        }
    }
    for (id, socket) in [("qmp", runtime.qmp_socket()), ("diagnosis", runtime.diagnosis_socket())] {
        let socket = format!("socket,id={id},path={},server=on,wait=off", escaped(&socket)?);
        line.extend(["--chardev".into(), socket.into(), "--monitor".into(), format!("chardev={id}").into()]);
    }
    line.extend(["--pidfile".into(), runtime.pid_file().into()]);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::qemu::command_line::ImageKind;

    #[test]
    fn access_decides_and_not_what_the_guest_may_do() {
        let disk: DiskSpec =
            toml::from_str("name = \"root\"\npool = \"p\"\nsize = \"1 MiB\"\nread_only = true").expect("a disk");
        let image = Image { path: "/p/root.qcow2".into(), kind: ImageKind::File };
        let runtime = RuntimeDirectory::new("/run/x,y").expect("a directory");
        let line = |access| arguments(&[(&disk, image.clone())], access, &runtime).expect("arguments");
        let text = |line: Vec<OsString>| line.join(OsString::from(" ").as_os_str()).into_string().expect("text");
        assert_eq!(text(line(Access::Read)).matches("\"read-only\":true").count(), 3);
        assert_eq!(text(line(Access::Write)).matches("\"read-only\":false").count(), 3);
        assert!(text(line(Access::Read)).contains("path=/run/x,,y/qmp.sock"));
    }
}
