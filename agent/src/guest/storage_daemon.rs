//! The disks of a stopped VM, served by QEMU's storage daemon: the same nodes, exports and bitmaps as a running guest
//! has, by the same [`Machine`](crate::hypervisor::qemu::Machine), so that one disk loop serves both.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use sterna_shared::vm::{CacheMode, DiskFormat, DiskSpec};

use super::launcher::{Launch, LaunchError, Launched, launch};
use crate::hypervisor::qemu::command_line::{CommandLineError, Image, ImageKind, disk_nodes, escaped};
use crate::hypervisor::qemu::runtime::RuntimeDirectory;

/// What may be done to the disks served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading alone; the images are not changed in any way, and cached as the disk says.
    Read,
    /// Reading and writing, also of disks that the guest may only read: they have to be filled once.
    Write {
        /// How the host caches raw files, whatever it does for the guest. All else is written past the cache.
        raw_files: CacheMode,
    },
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
        let disk = match access {
            Access::Read => DiskSpec { read_only: true, ..(*disk).clone() },
            Access::Write { raw_files } => {
                let is_raw_file = image.kind == ImageKind::File && disk.format == DiskFormat::Raw;
                let cache = if is_raw_file { raw_files } else { CacheMode::None };
                DiskSpec { read_only: false, cache, ..(*disk).clone() }
            }
        };
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

    fn line(format: &str, access: Access) -> String {
        let spec = format!("name = \"root\"\npool = \"p\"\nsize = \"1 MiB\"\nread_only = true\nformat = \"{format}\"");
        let disk: DiskSpec = toml::from_str(&spec).expect("a disk");
        let image = Image { path: format!("/p/root.{format}").into(), kind: ImageKind::File, layers: Vec::new() };
        let runtime = RuntimeDirectory::new("/run/x,y").expect("a directory");
        let line = arguments(&[(&disk, image)], access, &runtime).expect("arguments");
        line.join(OsString::from(" ").as_os_str()).into_string().expect("text")
    }

    #[test]
    fn access_decides_and_not_what_the_guest_may_do() {
        let written = |format, raw_files| line(format, Access::Write { raw_files });
        assert_eq!(line("qcow2", Access::Read).matches("\"read-only\":true").count(), 3);
        assert_eq!(written("qcow2", CacheMode::None).matches("\"read-only\":false").count(), 3);
        assert!(line("raw", Access::Read).contains("path=/run/x,,y/qmp.sock"));
    }

    #[test]
    fn only_raw_files_are_filled_through_the_page_cache_and_only_where_that_is_wanted() {
        let direct = |format, raw_files| line(format, Access::Write { raw_files }).contains("\"direct\":true");
        assert!(!direct("raw", CacheMode::Writeback));
        assert!(direct("raw", CacheMode::None));
        assert!(direct("qcow2", CacheMode::Writeback));
    }
}
