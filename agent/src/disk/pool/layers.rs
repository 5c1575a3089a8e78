//! The files of replicas, in a directory beside those of VMs, and what is thrown away while a point in time is read.
//!
//! ```text
//!   <pool directory>/<vm id>/<disk>.layer-<number>.qcow2     what one cycle has brought
//!                           /<disk>.layer-<number>.digests   what the disk holds with it, a digest each MiB
//!                           /<disk>.layer-<number>.variables a UEFI guest's variables then, beside its first disk
//!                           /<disk>.scratch.qcow2            what a guest overwrites while the old is read
//! ```
//!
//! No disk's name has a point in it, so that these are in the way of no image. A layer's header names no file below it: which
//! there are, the journal says, and QEMU is told. So nothing that is written into a file can lead anywhere else.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sterna_shared::id::{DiskName, VmId};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskFormat;
use tokio::process::Command;

use super::directory::Directory;
use super::{Pool, PoolError, program};

/// The longest that two layers may take to be merged, or a snapshot to be copied.
const COPY_MAX: Duration = Duration::from_secs(6 * 3600);
/// The largest file of notes: the digests of the largest disk.
const NOTE_MAX: u64 = 4 << 30;

/// A file of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerFile {
    /// What a cycle has brought.
    Layer(u32),
    /// What is kept aside while a point in time is read.
    Scratch,
}

impl LayerFile {
    fn name(self, vm: VmId, disk: &DiskName) -> PathBuf {
        match self {
            Self::Layer(number) => PathBuf::from(format!("{vm}/{disk}.layer-{number}.qcow2")),
            Self::Scratch => PathBuf::from(format!("{vm}/{disk}.scratch.qcow2")),
        }
    }
}

/// What is written down beside a layer of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// What the disk holds with it, a digest each MiB.
    Digests,
    /// A UEFI guest's variables, beside its first disk.
    Variables,
}

impl Note {
    const ALL: [Self; 2] = [Self::Digests, Self::Variables];

    const fn suffix(self) -> &'static str {
        match self {
            Self::Digests => ".digests",
            Self::Variables => ".variables",
        }
    }

    fn name(self, vm: VmId, disk: &DiskName, layer: u32) -> PathBuf {
        PathBuf::from(format!("{vm}/{disk}.layer-{layer}{}", self.suffix()))
    }
}

impl Pool {
    /// Where a file of a replica is, whether it exists or not.
    ///
    /// # Errors
    /// The pool is a volume group, as in all of these.
    pub fn layer_path(&self, vm: VmId, disk: &DiskName, file: LayerFile) -> Result<PathBuf, PoolError> {
        Ok(self.files()?.path_of(&file.name(vm, disk)))
    }

    /// Makes an empty file of a replica: its path. One that is there already is nobody's, and goes.
    ///
    /// # Errors
    /// The file system or `qemu-img` fails; then nothing is left.
    pub async fn create_layer(
        &self,
        vm: VmId,
        disk: &DiskName,
        file: LayerFile,
        size: ByteCount,
    ) -> Result<PathBuf, PoolError> {
        let directory = self.files()?;
        let name = file.name(vm, disk);
        directory.delete_file(vm, &name)?;
        let opened = directory.create_file(vm, &name)?;
        let made = directory.create_qcow2(&name, &opened, size).await;
        directory.settle(vm, &name, &opened, made)
    }

    /// Deletes a file of a replica, and what is noted beside a layer. One that is gone already is no error.
    ///
    /// # Errors
    /// The file system fails.
    pub fn delete_layer(&self, vm: VmId, disk: &DiskName, file: LayerFile) -> Result<(), PoolError> {
        let directory = self.files()?;
        if let LayerFile::Layer(number) = file {
            for note in Note::ALL {
                directory.delete_file(vm, &note.name(vm, disk, number))?;
            }
        }
        directory.delete_file(vm, &file.name(vm, disk))
    }

    /// The numbers of the layers of a disk that have a file here, in no order.
    #[must_use]
    pub fn layers_there(&self, vm: VmId, disk: &DiskName) -> Vec<u32> {
        let Ok(directory) = self.files() else { return Vec::new() };
        let entries = std::fs::read_dir(directory.path_of(&PathBuf::from(vm.to_string())));
        let names = entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let number = |name: String| {
            let rest = name.strip_prefix(&format!("{disk}.layer-"))?;
            let suffixes = Note::ALL.map(Note::suffix).into_iter().chain([".qcow2"]);
            suffixes.into_iter().find_map(|suffix| rest.strip_suffix(suffix))?.parse().ok()
        };
        names.filter_map(number).collect()
    }

    /// What a layer takes; nothing where there is none.
    #[must_use]
    pub fn layer_allocated(&self, vm: VmId, disk: &DiskName, layer: u32) -> ByteCount {
        self.files().map_or(ByteCount(0), |files| files.allocated_at(&LayerFile::Layer(layer).name(vm, disk)))
    }

    /// Writes a note beside a layer, and puts it on stable storage.
    ///
    /// # Errors
    /// The file system fails.
    pub fn write_note(
        &self,
        vm: VmId,
        disk: &DiskName,
        layer: u32,
        note: Note,
        content: &[u8],
    ) -> Result<(), PoolError> {
        let (directory, name) = (self.files()?, note.name(vm, disk, layer));
        directory.delete_file(vm, &name)?;
        let mut file = directory.create_file(vm, &name)?;
        let written = file.write_all(content).map_err(|source| directory.io("write", &name, source));
        directory.settle(vm, &name, &file, written).map(drop)
    }

    /// What was written so.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn read_note(&self, vm: VmId, disk: &DiskName, layer: u32, note: Note) -> Result<Vec<u8>, PoolError> {
        let (directory, name) = (self.files()?, note.name(vm, disk, layer));
        let (file, _) = directory.open_file(&name)?;
        let mut content = Vec::new();
        file.take(NOTE_MAX).read_to_end(&mut content).map_err(|source| directory.io("read", &name, source))?;
        Ok(content)
    }

    /// Gives a layer the note of the one above it, which is merged into it: none where that has none.
    ///
    /// # Errors
    /// The file system fails.
    pub fn take_over_note(&self, vm: VmId, disk: &DiskName, note: Note, from: u32, to: u32) -> Result<(), PoolError> {
        match self.read_note(vm, disk, from, note) {
            Ok(content) => self.write_note(vm, disk, to, note, &content),
            Err(PoolError::Missing { .. }) => self.files()?.delete_file(vm, &note.name(vm, disk, to)),
            Err(error) => Err(error),
        }
    }

    /// Has `qemu-img` write what the uppermost of these layers holds into the one below it. `layers` are all that there are up
    /// to that one, the lowest first: without those below, zeroes would be taken for nothing.
    ///
    /// # Errors
    /// `qemu-img` fails; what the uppermost layer shows is as it was.
    pub async fn merge_layer(&self, vm: VmId, disk: &DiskName, layers: &[u32]) -> Result<(), PoolError> {
        let directory = self.files()?;
        let paths: Vec<PathBuf> =
            layers.iter().map(|layer| directory.path_of(&LayerFile::Layer(*layer).name(vm, disk))).collect();
        let image = format!("json:{}", chain(&paths));
        let mut command = Command::new("qemu-img");
        // -d: it is deleted in a moment, and need not be emptied.
        command.args(["commit", "-q", "-f", "qcow2", "-d", &image]).stdin(Stdio::null());
        let path = paths.last().cloned().unwrap_or_default();
        let failed = |message| PoolError::QemuImg { verb: "commit", path, message };
        program::run(&mut command, COPY_MAX).await.map(drop).map_err(failed)
    }

    /// Copies what layers, the lowest first, hold together into a disk's image that was just made.
    ///
    /// # Errors
    /// `qemu-img` fails, or the image cannot be opened.
    pub async fn copy_layers(&self, layers: &[PathBuf], image: &Path, format: DiskFormat) -> Result<(), PoolError> {
        let from = format!("json:{}", chain(layers));
        let mut command = Command::new("qemu-img");
        command
            .args(["convert", "-q", "-n", "-W", "-f", "qcow2", "-O", format.as_str(), &from])
            .arg(image)
            .stdin(Stdio::null());
        let failed = |message| PoolError::QemuImg { verb: "convert", path: image.to_owned(), message };
        program::run(&mut command, COPY_MAX).await.map(drop).map_err(failed)
    }
}

/// A chain of layers, the lowest first, as QEMU takes the uppermost; where each lies it is told here, and reads in no header.
#[must_use]
pub fn chain(layers: &[PathBuf]) -> serde_json::Value {
    layers.iter().fold(serde_json::Value::Null, |backing, path| {
        serde_json::json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": path.to_string_lossy() },
            "backing": backing,
        })
    })
}

impl Directory {
    fn path_of(&self, name: &Path) -> PathBuf {
        self.directory.join(name)
    }

    fn allocated_at(&self, name: &Path) -> ByteCount {
        self.open_file(name).map_or(ByteCount(0), |(_, status)| super::directory::allocated(&status))
    }
}
