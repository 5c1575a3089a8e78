//! A directory that images live in, and the only door to it.
//!
//! ```text
//!   <pool directory>/<vm id>/<disk>.<raw|qcow2>
//!                           /uefi-variables.fd
//! ```
//!
//! A path follows from the pool, the VM's id and the disk's name, all of which are valid by construction; nothing else, and
//! no image header, decides which file is touched. Files are opened below the pool's own descriptor with `openat2`, which
//! refuses links and `..` on the way. `qemu-img` gets the opened file as its standard input, and so cannot be led elsewhere
//! either; it is always told the format.
//!
//! Calls here are few and small (metadata), and block only as long as the file system does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use sterna_shared::id::{DiskName, PoolName, VmId};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskFormat;
use tokio::process::Command;

use super::{Image, PoolError, QEMU_IMG_MAX, Space, VARIABLE_STORE_MAX, program};

const VARIABLE_STORE: &str = "uefi-variables.fd";
/// Standard input, as a path: the image that was opened for `qemu-img`.
const OPENED_IMAGE: &str = "/proc/self/fd/0";

/// A pool's directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) directory: PathBuf,
    root: OwnedFd,
}

impl Directory {
    /// Opens the directory, which must exist.
    pub(super) fn open(pool: &PoolName, directory: &Path) -> Result<Self, PoolError> {
        let failed = |source| PoolError::Directory { pool: pool.clone(), directory: directory.to_owned(), source };
        // The operator's own path may have links; from here on none are followed.
        let directory = directory.canonicalize().map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&directory, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Self { directory, root })
    }

    /// Where a disk's image is, whether it exists or not.
    pub(super) fn image_path(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> PathBuf {
        self.directory.join(image_name(vm, disk, format))
    }

    /// Where a VM's UEFI variable store is, whether it exists or not.
    pub(super) fn variable_store_path(&self, vm: VmId) -> PathBuf {
        self.directory.join(format!("{vm}/{VARIABLE_STORE}"))
    }

    /// What the pool's file system has.
    pub(super) fn space(&self) -> Result<Space, PoolError> {
        let failed = |errno: Errno| self.io("ask for the free space of", Path::new(""), errno.into());
        let status = rustix::fs::fstatvfs(&self.root).map_err(failed)?;
        let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(status.f_frsize));
        Ok(Space { capacity: bytes(status.f_blocks), free: bytes(status.f_bavail) })
    }

    /// Makes an image that reads as zeroes and takes next to no space: its path.
    pub(super) async fn create(
        &self,
        vm: VmId,
        disk: &DiskName,
        format: DiskFormat,
        size: ByteCount,
    ) -> Result<PathBuf, PoolError> {
        let name = image_name(vm, disk, format);
        let file = self.create_file(vm, &name)?;
        let made = match format {
            DiskFormat::Raw => file.set_len(size.0).map_err(|source| self.io("size", &name, source)),
            DiskFormat::Qcow2 => self.create_qcow2(&name, &file, size).await,
        };
        self.settle(vm, &name, &file, made)
    }

    /// Makes a VM's UEFI variable store with that content: its path.
    pub(super) fn create_variable_store(&self, vm: VmId, content: &[u8]) -> Result<PathBuf, PoolError> {
        if content.is_empty() || content.len() > VARIABLE_STORE_MAX {
            return Err(PoolError::VariableStore { length: content.len() });
        }
        self.create_with(vm, &PathBuf::from(format!("{vm}/{VARIABLE_STORE}")), content)
    }

    /// Makes a raw image with that content: its path.
    pub(super) fn create_of(&self, vm: VmId, disk: &DiskName, content: &[u8]) -> Result<PathBuf, PoolError> {
        self.create_with(vm, &image_name(vm, disk, DiskFormat::Raw), content)
    }

    fn create_with(&self, vm: VmId, name: &Path, content: &[u8]) -> Result<PathBuf, PoolError> {
        let mut file = self.create_file(vm, name)?;
        let made = file.write_all(content).map_err(|source| self.io("write", name, source));
        self.settle(vm, name, &file, made)
    }

    /// The content of a VM's UEFI variable store.
    pub(super) fn read_variable_store(&self, vm: VmId) -> Result<Vec<u8>, PoolError> {
        let name = PathBuf::from(format!("{vm}/{VARIABLE_STORE}"));
        let (file, _) = self.open_file(&name)?;
        let mut content = Vec::new();
        let read = file.take(VARIABLE_STORE_MAX as u64 + 1).read_to_end(&mut content);
        read.map_err(|source| self.io("read", &name, source))?;
        if content.is_empty() || content.len() > VARIABLE_STORE_MAX {
            return Err(PoolError::VariableStore { length: content.len() });
        }
        Ok(content)
    }

    /// Deletes an image, and the VM's directory when it was the last file in it. One that is gone already is no error.
    pub(super) fn delete(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> Result<(), PoolError> {
        self.delete_file(vm, &image_name(vm, disk, format))
    }

    /// Renames an image to its name with a mark.
    pub(super) fn set_aside(
        &self,
        vm: VmId,
        disk: &DiskName,
        format: DiskFormat,
        mark: &str,
    ) -> Result<PathBuf, PoolError> {
        let name = image_name(vm, disk, format);
        let aside = PathBuf::from(format!("{}.{mark}", name.display()));
        let (Some(directory), Some(from), Some(to)) = (self.vm_directory(vm)?, name.file_name(), aside.file_name())
        else {
            return Err(PoolError::Missing { path: self.directory.join(name) });
        };
        match rustix::fs::renameat_with(&directory, from, &directory, to, RenameFlags::NOREPLACE) {
            Ok(()) => self.sync_directory(&name, &directory)?,
            // It was done before.
            Err(Errno::NOENT) if self.open_file(&aside).is_ok() => {}
            Err(errno) => return Err(self.refused("rename", &name, errno)),
        }
        Ok(self.directory.join(aside))
    }

    /// Deletes a VM's UEFI variable store likewise.
    pub(super) fn delete_variable_store(&self, vm: VmId) -> Result<(), PoolError> {
        self.delete_file(vm, &PathBuf::from(format!("{vm}/{VARIABLE_STORE}")))
    }

    /// Checks that an image is there, is a plain file in that format that names no other file, and has that size.
    pub(super) async fn check(
        &self,
        vm: VmId,
        disk: &DiskName,
        format: DiskFormat,
        size: ByteCount,
    ) -> Result<Image, PoolError> {
        let name = image_name(vm, disk, format);
        let path = self.directory.join(&name);
        let (file, status) = self.open_file(&name)?;
        let virtual_size = match format {
            // What a raw image starts with is the guest's business; its length is all there is to know.
            DiskFormat::Raw => ByteCount(u64::try_from(status.st_size).unwrap_or(0)),
            DiskFormat::Qcow2 => {
                let mut header = [0; QCOW2_HEADER];
                let read = file.read_exact_at(&mut header, 0);
                read.map_err(|_| PoolError::NotQcow2 { path: path.clone() })?;
                check_qcow2(&path, &header)?;
                self.qcow2_size(&name, &file).await?
            }
        };
        if virtual_size != size {
            return Err(PoolError::SizeDiffers { path, actual: virtual_size, expected: size });
        }
        Ok(Image { path, virtual_size, allocated: allocated(&status) })
    }

    /// What an image takes; nothing where there is none.
    pub(super) fn allocated(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> ByteCount {
        let opened = self.open_file(&image_name(vm, disk, format));
        opened.map_or(ByteCount(0), |(_, status)| allocated(&status))
    }

    /// A disk's image, to read.
    pub(super) fn open_image(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> Result<File, PoolError> {
        self.open_file(&image_name(vm, disk, format)).map(|(file, _)| file)
    }

    /// Frees what a QEMU that was killed has allocated in a qcow2 image and not come to use.
    pub(super) async fn free_leaks(&self, vm: VmId, disk: &DiskName) -> Result<(), PoolError> {
        let name = image_name(vm, disk, DiskFormat::Qcow2);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = self.open_below(&name, flags, Mode::empty());
        let file = File::from(opened.map_err(|errno| self.refused("open", &name, errno))?);
        let arguments = ["check", "-q", "-f", "qcow2", "-r", "leaks", OPENED_IMAGE];
        self.qemu_img(&name, &file, "check", &arguments).await.map(drop)
    }

    pub(super) async fn create_qcow2(&self, name: &Path, file: &File, size: ByteCount) -> Result<(), PoolError> {
        let options = "compat=1.1,cluster_size=65536,lazy_refcounts=off,extended_l2=off,preallocation=off";
        let arguments = ["create", "-q", "-f", "qcow2", "-o", options, OPENED_IMAGE, &size.0.to_string()];
        self.qemu_img(name, file, "create", &arguments).await.map(drop)
    }

    async fn qcow2_size(&self, name: &Path, file: &File) -> Result<ByteCount, PoolError> {
        // -U: a guest that runs may hold the image's lock, and its size does not change meanwhile.
        let arguments = ["info", "-U", "-f", "qcow2", "--output", "json", OPENED_IMAGE];
        let output = self.qemu_img(name, file, "info", &arguments).await?;
        let info: ImageInfo = serde_json::from_slice(&output).map_err(|error| PoolError::QemuImg {
            verb: "info",
            path: self.directory.join(name),
            message: format!("its output was not understood: {error}"),
        })?;
        Ok(ByteCount(info.virtual_size))
    }

    async fn qemu_img(
        &self,
        name: &Path,
        file: &File,
        verb: &'static str,
        arguments: &[&str],
    ) -> Result<Vec<u8>, PoolError> {
        let path = self.directory.join(name);
        let failed = |message: String| PoolError::QemuImg { verb, path: path.clone(), message };
        let image = file.try_clone().map_err(|source| self.io("share", name, source))?;
        let mut command = Command::new("qemu-img");
        program::run(command.args(arguments).stdin(Stdio::from(image)), QEMU_IMG_MAX).await.map_err(failed)
    }

    /// Makes a file that was not there, and the VM's directory if need be.
    pub(super) fn create_file(&self, vm: VmId, name: &Path) -> Result<File, PoolError> {
        match rustix::fs::mkdirat(&self.root, vm.to_string(), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.refused("make the directory of", name, errno)),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_below(name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|errno| self.refused("create", name, errno))
    }

    /// Opens a file for reading, which must be plain.
    pub(super) fn open_file(&self, name: &Path) -> Result<(File, rustix::fs::Stat), PoolError> {
        // Not blocking: opening a FIFO in the place of an image must not wait for somebody to write to it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = self.open_below(name, flags, Mode::empty());
        let file = opened.map_err(|errno| self.refused("open", name, errno))?;
        let status = rustix::fs::fstat(&file).map_err(|errno| self.refused("examine", name, errno))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(PoolError::NotPlain { path: self.directory.join(name) });
        }
        Ok((file.into(), status))
    }

    fn open_below(&self, name: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, name, flags, mode, resolve)
    }

    /// The VM's directory; nothing where there is none.
    fn vm_directory(&self, vm: VmId) -> Result<Option<OwnedFd>, PoolError> {
        let name = PathBuf::from(vm.to_string());
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.open_below(&name, flags, Mode::empty()) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.refused("open", &name, errno)),
        }
    }

    /// Puts a new file, and that it exists, on stable storage; or takes it away again if making it failed.
    pub(super) fn settle(
        &self,
        vm: VmId,
        name: &Path,
        file: &File,
        made: Result<(), PoolError>,
    ) -> Result<PathBuf, PoolError> {
        let settled = made.and_then(|()| {
            file.sync_all().map_err(|source| self.io("store", name, source))?;
            if let Some(directory) = self.vm_directory(vm)? {
                self.sync_directory(name, directory.as_fd())?;
            }
            self.sync_directory(name, self.root.as_fd())
        });
        match settled {
            Ok(()) => Ok(self.directory.join(name)),
            Err(error) => {
                // The first error is the one to tell.
                let _ = self.delete_file(vm, name);
                Err(error)
            }
        }
    }

    fn sync_directory(&self, name: &Path, directory: impl AsFd) -> Result<(), PoolError> {
        rustix::fs::fsync(directory).map_err(|errno| self.io("store the directory of", name, errno.into()))
    }

    pub(super) fn delete_file(&self, vm: VmId, name: &Path) -> Result<(), PoolError> {
        let Some(directory) = self.vm_directory(vm)? else { return Ok(()) };
        let Some(file) = name.file_name() else { return Ok(()) };
        match rustix::fs::unlinkat(&directory, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.refused("delete", name, errno)),
        }
        self.sync_directory(name, &directory)?;
        match rustix::fs::unlinkat(&self.root, vm.to_string(), AtFlags::REMOVEDIR) {
            Ok(()) => self.sync_directory(name, &self.root),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.refused("delete the directory of", name, errno)),
        }
    }

    fn refused(&self, action: &'static str, name: &Path, errno: Errno) -> PoolError {
        let path = self.directory.join(name);
        match errno {
            Errno::EXIST => PoolError::Exists { path },
            Errno::NOENT => PoolError::Missing { path },
            Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO => PoolError::NotPlain { path },
            other => PoolError::Io { action, path, source: other.into() },
        }
    }

    pub(super) fn io(&self, action: &'static str, name: &Path, source: io::Error) -> PoolError {
        PoolError::Io { action, path: self.directory.join(name), source }
    }
}

/// What a file takes of its file system.
pub(super) fn allocated(status: &rustix::fs::Stat) -> ByteCount {
    ByteCount(u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512))
}

fn image_name(vm: VmId, disk: &DiskName, format: DiskFormat) -> PathBuf {
    PathBuf::from(format!("{vm}/{disk}.{format}"))
}

/// What is needed of `qemu-img info --output json`.
#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageInfo {
    virtual_size: u64,
}

/// The length of a qcow2 header up to its incompatible features (QEMU's docs/interop/qcow2.rst).
const QCOW2_HEADER: usize = 80;

/// Refuses a header that is not qcow2, or that names another file; before any program is let near the image.
fn check_qcow2(path: &Path, header: &[u8; QCOW2_HEADER]) -> Result<(), PoolError> {
    const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
    const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
    let path = || path.to_owned();
    let word = |at: usize| header[at..at + 8].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let version = word(0) & 0xffff_ffff;
    if header[..4] != *b"QFI\xfb" || !(2..=3).contains(&version) {
        return Err(PoolError::NotQcow2 { path: path() });
    }
    if word(8) != 0 {
        return Err(PoolError::Reference { path: path(), reference: "backing file" });
    }
    // Version 2 ends before its features; it has none.
    let features = if version == 3 { word(72) } else { 0 };
    if features & INCOMPATIBLE_DATA_FILE != 0 {
        return Err(PoolError::Reference { path: path(), reference: "external data file" });
    }
    if features & INCOMPATIBLE_CORRUPT != 0 {
        return Err(PoolError::Corrupt { path: path() });
    }
    Ok(())
}
