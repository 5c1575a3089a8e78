//! Pools: where images live, and the only door to them.
//!
//! ```text
//!   Pool ─┬─ directory       files, raw and qcow2, and UEFI variables beside them
//!         └─ volume group    logical volumes of LVM, raw
//! ```
//!
//! Where an image is follows from the pool, the VM's id and the disk's name, all of which are valid by construction;
//! nothing else, and no image header, decides what is touched. Which of the two kinds a pool is matters to nobody but for
//! three things: what a new image holds ([`Pool::origin`]), whether its path is that of a device ([`Pool::kind`]), and how
//! much room it takes ([`Pool::extent`]).

mod directory;
mod layers;
mod program;
mod volume_group;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sterna_shared::id::{DiskName, PoolName, VmId};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{DISK_SIZE_MAX, DISK_SIZE_UNIT, DiskFormat};

use self::directory::Directory;
pub use self::layers::{LayerFile, Note, chain};
use self::volume_group::VolumeGroup;
pub use self::volume_group::{Lvm, VolumeGroupName};
use super::copy::target::Origin;
use crate::hypervisor::qemu::command_line::ImageKind;

/// The longest that `qemu-img` may take for one small task.
pub const QEMU_IMG_MAX: Duration = Duration::from_secs(30);
/// The largest UEFI variable store; OVMF's is 528 KiB to 4 MiB.
pub const VARIABLE_STORE_MAX: usize = 64 << 20;

/// A configured pool.
#[derive(Debug)]
pub struct Pool {
    name: PoolName,
    shared: Option<String>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(Directory),
    VolumeGroup(VolumeGroup),
}

/// What a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What it can hold.
    pub capacity: ByteCount,
    /// What is free for this agent, reservations not taken off.
    pub free: ByteCount,
}

/// An image that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// What it takes of the pool.
    pub allocated: ByteCount,
}

/// Why a pool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The configured directory cannot be used.
    #[error("pool {pool} cannot use its directory {}; make the directory, or correct the configuration", directory.display())]
    Directory {
        /// The pool.
        pool: PoolName,
        /// Its directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is there already, and is not overwritten.
    #[error("{} exists already; delete it first, if nothing needs it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file is not there.
    #[error("{} does not exist; was it created, or is it in another pool or format?", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A link, or something else that is no regular file, is in the place of an image or on the way to it.
    #[error("{} is, or is behind, something else than a plain directory or file (a link?); remove that from the pool", path.display())]
    NotPlain {
        /// The file.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A size that no disk has.
    #[error("a disk of {size} cannot be made; give a multiple of 64 KiB up to {DISK_SIZE_MAX}")]
    DiskSize {
        /// The size.
        size: ByteCount,
    },
    /// The image is not in the format it is said to be in.
    #[error("{} is not a qcow2 image of version 2 or 3", path.display())]
    NotQcow2 {
        /// The image.
        path: PathBuf,
    },
    /// The image's header names another file.
    #[error("{} has a {reference}; only images that stand alone are accepted: flatten it with qemu-img convert -f qcow2 -O qcow2", path.display())]
    Reference {
        /// The image.
        path: PathBuf,
        /// What it names: a backing file or an external data file.
        reference: &'static str,
    },
    /// The image marks itself as corrupt.
    #[error("{} marks itself as corrupt; repair it with qemu-img check -f qcow2 -r all", path.display())]
    Corrupt {
        /// The image.
        path: PathBuf,
    },
    /// The image's size is another than the specification says.
    #[error("{} shows the guest {actual}, and the specification says {expected}; correct the specification or resize the image", path.display())]
    SizeDiffers {
        /// The image.
        path: PathBuf,
        /// What it has.
        actual: ByteCount,
        /// What it should have.
        expected: ByteCount,
    },
    /// `qemu-img` failed.
    #[error("qemu-img {verb} failed for {}: {message}", path.display())]
    QemuImg {
        /// What it was asked to do.
        verb: &'static str,
        /// The image.
        path: PathBuf,
        /// The last of what it said.
        message: String,
    },
    /// The configured volume group cannot be used.
    #[error(
        "pool {pool} cannot use the volume group {group}: {message}; make it with vgcreate, or correct the configuration"
    )]
    VolumeGroup {
        /// The pool.
        pool: PoolName,
        /// Its volume group.
        group: VolumeGroupName,
        /// What LVM says.
        message: String,
    },
    /// LVM failed.
    #[error("lvm {verb} failed for {}: {message}", path.display())]
    Lvm {
        /// What it was asked to do.
        verb: &'static str,
        /// The logical volume.
        path: PathBuf,
        /// The last of what it said.
        message: String,
    },
    /// A logical volume of that name is there and does not carry the tags by which Sterna knows its own.
    #[error("{} is not tagged as this VM's by Sterna, and is left alone; rename or remove it if nothing needs it", path.display())]
    NotOurs {
        /// The logical volume.
        path: PathBuf,
    },
    /// A logical volume that is there has no device.
    #[error("{} is no block device of {size} or more; activate the logical volume with lvchange --activate y", path.display())]
    NotActive {
        /// Where its device should be.
        path: PathBuf,
        /// How much it should hold.
        size: ByteCount,
    },
    /// A format that a logical volume cannot be in.
    #[error("pool {pool} is a volume group, and disks in it are raw; give format raw, or a pool that is a directory")]
    NotRaw {
        /// The pool.
        pool: PoolName,
    },
    /// A volume group holds no files.
    #[error(
        "pool {pool} is a volume group and holds no files, which UEFI variables and replication need; move the disk to a pool that is a directory"
    )]
    NoFiles {
        /// The pool.
        pool: PoolName,
    },
    /// A variable store that is too large or empty.
    #[error("a UEFI variable store of {length} bytes; 1 to {VARIABLE_STORE_MAX} are accepted")]
    VariableStore {
        /// Its length.
        length: usize,
    },
}

impl Pool {
    /// Opens a pool's directory, which must exist. `shared` names the storage where several hosts see the same.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(name: PoolName, directory: &Path, shared: Option<String>) -> Result<Self, PoolError> {
        let place = Place::Directory(Directory::open(&name, directory)?);
        Ok(Self { name, shared, place })
    }

    /// Opens a volume group, which must exist. It is this host's alone.
    ///
    /// # Errors
    /// When LVM does not know it.
    pub async fn open_volume_group(name: PoolName, group: VolumeGroupName, lvm: Lvm) -> Result<Self, PoolError> {
        let place = Place::VolumeGroup(VolumeGroup::open(&name, group, lvm).await?);
        Ok(Self { name, shared: None, place })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &PoolName {
        &self.name
    }

    /// What storage it is, where several hosts see the same.
    #[must_use]
    pub fn shared(&self) -> Option<&str> {
        self.shared.as_deref()
    }

    /// What its images are to QEMU.
    #[must_use]
    pub fn kind(&self) -> ImageKind {
        match self.place {
            Place::Directory(_) => ImageKind::File,
            Place::VolumeGroup(_) => ImageKind::BlockDevice,
        }
    }

    /// What an image holds that was made to be filled.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self.place {
            Place::Directory(_) => Origin::Fresh,
            Place::VolumeGroup(_) => Origin::Used,
        }
    }

    /// The extents of a volume group, of which each disk takes whole ones; none for a directory.
    #[must_use]
    pub fn extent(&self) -> Option<ByteCount> {
        match &self.place {
            Place::Directory(_) => None,
            Place::VolumeGroup(group) => Some(group.extent()),
        }
    }

    /// Where a disk's image is, whether it exists or not.
    #[must_use]
    pub fn image_path(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> PathBuf {
        match &self.place {
            Place::Directory(directory) => directory.image_path(vm, disk, format),
            Place::VolumeGroup(group) => group.image_path(vm, disk),
        }
    }

    /// Where a VM's UEFI variable store is, whether it exists or not.
    ///
    /// # Errors
    /// When the pool is a volume group.
    pub fn variable_store_path(&self, vm: VmId) -> Result<PathBuf, PoolError> {
        Ok(self.files()?.variable_store_path(vm))
    }

    /// What the pool has; of a volume group, as of the last change or [`Pool::refresh`].
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn space(&self) -> Result<Space, PoolError> {
        match &self.place {
            Place::Directory(directory) => directory.space(),
            Place::VolumeGroup(group) => Ok(group.space()),
        }
    }

    /// Asks a volume group for its free space anew: others may use it too.
    ///
    /// # Errors
    /// When LVM does not say.
    pub async fn refresh(&self) -> Result<(), PoolError> {
        match &self.place {
            Place::Directory(_) => Ok(()),
            Place::VolumeGroup(group) => group.refresh().await,
        }
    }

    /// Makes an image that reads as zeroes: its path. A logical volume is overwritten for that, which takes as long as its
    /// device needs.
    ///
    /// # Errors
    /// When it exists already, the size is none, or the file system or a program fails; then nothing is left behind.
    pub async fn create(
        &self,
        vm: VmId,
        disk: &DiskName,
        format: DiskFormat,
        size: ByteCount,
    ) -> Result<PathBuf, PoolError> {
        let path = self.create_to_fill(vm, disk, format, size).await?;
        if let Place::VolumeGroup(group) = &self.place
            && let Err(error) = group.zero(vm, disk).await
        {
            // The first error is the one to tell.
            let _ = group.delete(vm, disk).await;
            return Err(error);
        }
        Ok(path)
    }

    /// Makes an image that will be written from end to end, and that holds until then what [`Pool::origin`] says.
    ///
    /// # Errors
    /// As [`Pool::create`].
    pub async fn create_to_fill(
        &self,
        vm: VmId,
        disk: &DiskName,
        format: DiskFormat,
        size: ByteCount,
    ) -> Result<PathBuf, PoolError> {
        if size.0 == 0 || size > DISK_SIZE_MAX || !size.0.is_multiple_of(DISK_SIZE_UNIT) {
            return Err(PoolError::DiskSize { size });
        }
        match &self.place {
            Place::Directory(directory) => directory.create(vm, disk, format, size).await,
            Place::VolumeGroup(group) => {
                self.expect_raw(format)?;
                group.create(vm, disk, size).await
            }
        }
    }

    /// Makes a raw image with that content: its path.
    ///
    /// # Errors
    /// When it exists already, the file system fails, or the pool is a volume group; then nothing is left behind.
    pub fn create_of(&self, vm: VmId, disk: &DiskName, content: &[u8]) -> Result<PathBuf, PoolError> {
        self.files()?.create_of(vm, disk, content)
    }

    /// Makes a VM's UEFI variable store with that content: its path.
    ///
    /// # Errors
    /// When it exists already, is too large, or the file system fails; then nothing is left behind.
    pub fn create_variable_store(&self, vm: VmId, content: &[u8]) -> Result<PathBuf, PoolError> {
        self.files()?.create_variable_store(vm, content)
    }

    /// The content of a VM's UEFI variable store.
    ///
    /// # Errors
    /// When it is not there, too large, or cannot be read.
    pub fn read_variable_store(&self, vm: VmId) -> Result<Vec<u8>, PoolError> {
        self.files()?.read_variable_store(vm)
    }

    /// Deletes an image, and the VM's directory when it was the last file in it. One that is gone already is no error.
    ///
    /// # Errors
    /// When the file system or LVM fails, or a logical volume of that name is not Sterna's.
    pub async fn delete(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> Result<(), PoolError> {
        match &self.place {
            Place::Directory(directory) => directory.delete(vm, disk, format),
            Place::VolumeGroup(group) => group.delete(vm, disk).await,
        }
    }

    /// Gives an image another name, with `mark` at its end, under which it is no disk's: its path then. Again is no error.
    ///
    /// # Errors
    /// When the file system fails, or the pool is a volume group.
    pub fn set_aside(&self, vm: VmId, disk: &DiskName, format: DiskFormat, mark: &str) -> Result<PathBuf, PoolError> {
        match &self.place {
            Place::Directory(directory) => directory.set_aside(vm, disk, format, mark),
            Place::VolumeGroup(_) => Err(PoolError::NoFiles { pool: self.name.clone() }),
        }
    }

    /// Deletes a VM's UEFI variable store likewise.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn delete_variable_store(&self, vm: VmId) -> Result<(), PoolError> {
        match &self.place {
            Place::Directory(directory) => directory.delete_variable_store(vm),
            Place::VolumeGroup(_) => Ok(()),
        }
    }

    /// Checks that an image is there, has that size, and is what it should be: a plain file in that format that names no
    /// other file, or a logical volume of Sterna's with its device.
    ///
    /// # Errors
    /// Each way in which it is not so.
    pub async fn check(
        &self,
        vm: VmId,
        disk: &DiskName,
        format: DiskFormat,
        size: ByteCount,
    ) -> Result<Image, PoolError> {
        match &self.place {
            Place::Directory(directory) => directory.check(vm, disk, format, size).await,
            Place::VolumeGroup(group) => {
                self.expect_raw(format)?;
                group.check(vm, disk, size).await
            }
        }
    }

    fn files(&self) -> Result<&Directory, PoolError> {
        match &self.place {
            Place::Directory(directory) => Ok(directory),
            Place::VolumeGroup(_) => Err(PoolError::NoFiles { pool: self.name.clone() }),
        }
    }

    /// Whether images that are no VM's may stay in it: not where another host could come to use the same place, nor in a
    /// volume group, where each takes its whole size.
    #[must_use]
    pub fn may_keep(&self) -> bool {
        self.shared.is_none() && matches!(self.place, Place::Directory(_))
    }

    /// What an image of a directory takes of it; nothing where there is none, or the pool is a volume group.
    #[must_use]
    pub fn allocated(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> ByteCount {
        match &self.place {
            Place::Directory(directory) => directory.allocated(vm, disk, format),
            Place::VolumeGroup(_) => ByteCount(0),
        }
    }

    /// A disk's image, to read; nothing where there is none, or the pool is a volume group.
    #[must_use]
    pub fn open_image(&self, vm: VmId, disk: &DiskName, format: DiskFormat) -> Option<File> {
        self.files().ok()?.open_image(vm, disk, format).ok()
    }

    /// Frees what a QEMU that was killed has allocated in a qcow2 image and not come to use.
    ///
    /// # Errors
    /// The image is damaged beyond that, or not to be opened, or the pool is a volume group.
    pub async fn free_leaks(&self, vm: VmId, disk: &DiskName) -> Result<(), PoolError> {
        self.files()?.free_leaks(vm, disk).await
    }

    fn expect_raw(&self, format: DiskFormat) -> Result<(), PoolError> {
        match format {
            DiskFormat::Raw => Ok(()),
            DiskFormat::Qcow2 => Err(PoolError::NotRaw { pool: self.name.clone() }),
        }
    }
}
