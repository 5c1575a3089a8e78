//! Volume groups with real LVM on a loop device.
//!
//! Where the kernel has no device mapper, LVM keeps its metadata all the same and activates nothing; the script below then
//! plays the device mapper's part, with a second loop device over the very extents that LVM gave out. Where a machine lets
//! nobody make loop devices, or has no LVM, a test says so and does not run.

#![expect(clippy::print_stderr, reason = "a test that cannot run says why")]

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use sterna_agent::disk::copy::source;
use sterna_agent::disk::copy::target::{Origin, Writer};
use sterna_agent::disk::digest::DigestTable;
use sterna_agent::disk::pool::{Lvm, Pool, PoolError};
use sterna_agent::hypervisor::qemu::command_line::ImageKind;
use sterna_shared::id::{DiskName, VmId};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskFormat;
use tempfile::TempDir;

use crate::copying::pass;
use crate::harness::{Server, directory, image, random};

const GROUP_SIZE: u64 = 128 << 20;
const EXTENT: ByteCount = ByteCount::mebibytes(4);
/// Not a multiple of the extent.
const SIZE: ByteCount = ByteCount::mebibytes(6);
/// What earlier owners left all over the device.
const OLD: u8 = 0xa5;

/// Real `lvm` without activation. `$dir/run` is what the tests call; it makes and ends the devices.
const WITHOUT_DEVICE_MAPPER: &str = r#"#!/bin/sh
dir=$(dirname "$0")
export LVM_SYSTEM_DIR=$dir
lvm "$@" || exit
case $1 in lvcreate|lvremove) ;; *) exit 0 ;; esac
lvm lvs --noheadings -o lv_name,seg_pe_ranges GROUP 2>/dev/null | while read -r name range; do
  [ -e "$dir/dev/GROUP/$name" ] && continue
  pes=${range##*:}; first=${pes%-*}; last=${pes#*-}
  loop=$(losetup --find --show --offset $((1048576 + first * 4194304)) --sizelimit $(((last - first + 1) * 4194304)) DEVICE)
  ln -s "$loop" "$dir/dev/GROUP/$name"
done
for link in "$dir/dev/GROUP"/*; do
  [ -L "$link" ] || continue
  lvm lvs GROUP/"$(basename "$link")" >/dev/null 2>&1 && continue
  losetup --detach "$(readlink "$link")"; rm "$link"
done
exit 0
"#;

/// A volume group that is gone with this.
struct Group {
    folder: TempDir,
    name: String,
    device: String,
    lvm: Lvm,
}

impl Group {
    /// None, and why, where this machine cannot have one.
    fn make() -> Option<Self> {
        let folder = directory();
        let image = folder.path().join("physical");
        // What earlier owners of the space left behind.
        fs::write(&image, vec![OLD; usize::try_from(GROUP_SIZE).expect("small")]).expect("a file");
        if let Err(why) = run(Command::new("lvm").arg("version")) {
            return not_run(&format!("there is no lvm (package lvm2): {why}"));
        }
        let device = match run(Command::new("losetup").args(["--find", "--show"]).arg(&image)) {
            Ok(device) => device.trim().to_owned(),
            Err(why) => return not_run(&format!("no loop device can be made here: {why}")),
        };
        let name = format!("sterna-test-{}", uuid::Uuid::new_v4().simple());
        let activates =
            Path::new("/dev/mapper/control").exists() && run(Command::new("dmsetup").arg("version")).is_ok();
        let group = Self { lvm: set_up(folder.path(), &name, &device, activates), folder, name, device };
        for arguments in
            [&["pvcreate", "--yes", "--zero", "y", &group.device][..], &["vgcreate", &group.name, &group.device]]
        {
            run(group.lvm().args(arguments)).expect("a volume group");
        }
        eprintln!("volume group {} on {}; device mapper: {}", group.name, group.device, activates);
        Some(group)
    }

    async fn pool(&self) -> Pool {
        let name = self.name.clone().try_into().expect("a name of a volume group");
        Pool::open_volume_group("fast".parse().expect("a name"), name, self.lvm.clone()).await.expect("opened")
    }

    fn lvm(&self) -> Command {
        let mut command = Command::new(&self.lvm.program);
        command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
        command
    }

    /// Writes old content all over the space that is free now, behind LVM's own data.
    fn spoil(&self) {
        let file = fs::File::options().write(true).open(&self.device).expect("the device");
        file.write_all_at(&vec![OLD; 32 << 20], 1 << 20).expect("written");
    }

    /// The names of all volumes.
    fn volumes(&self) -> Vec<String> {
        let listed = run(self.lvm().args(["lvs", "--noheadings", "-o", "lv_name", &self.name])).expect("a list");
        listed.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = run(self.lvm().args(["lvremove", "--yes", &self.name]));
        let _ = run(self.lvm().args(["vgremove", "--yes", &self.name]));
        let _ = run(Command::new("losetup").args(["--detach", &self.device]));
        drop(fs::remove_dir_all(self.folder.path()));
    }
}

fn set_up(folder: &Path, group: &str, device: &str, activates: bool) -> Lvm {
    if activates {
        return Lvm::default();
    }
    let configuration = format!(
        "global {{ activation = 0\n locking_dir = \"{0}/lock\" }}\nbackup {{ backup = 0\n archive = 0 }}\n\
         devices {{ use_devicesfile = 0\n obtain_device_list_from_udev = 0\n external_device_info_source = \"none\"\n\
         filter = [ \"a|^{device}$|\", \"r|.*|\" ] }}\n",
        folder.display()
    );
    fs::write(folder.join("lvm.conf"), configuration).expect("written");
    fs::create_dir_all(folder.join("dev").join(group)).expect("a directory");
    let program = folder.join("run");
    let script = WITHOUT_DEVICE_MAPPER.replace("GROUP", group).replace("DEVICE", device);
    fs::write(&program, script).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    Lvm { program, devices: folder.join("dev") }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn not_run<T>(why: &str) -> Option<T> {
    eprintln!("NOT RUN: {why}");
    None
}

fn names() -> (VmId, DiskName) {
    ("0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID"), "root".parse().expect("a name"))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("the device")
}

#[tokio::test]
async fn a_volume_is_made_whole_checked_and_removed() {
    let Some(group) = Group::make() else { return };
    let (pool, (vm, disk)) = (group.pool().await, names());
    assert_eq!((pool.extent(), pool.kind(), pool.origin()), (Some(EXTENT), ImageKind::BlockDevice, Origin::Used));
    let before = pool.space().expect("known");
    assert!(before.free == before.capacity && before.free > ByteCount::mebibytes(100), "{before:?}");

    let path = pool.create(vm, &disk, DiskFormat::Raw, SIZE).await.expect("made");
    assert_eq!(path, pool.image_path(vm, &disk, DiskFormat::Raw));
    let content = read(&path);
    assert_eq!(content.len() as u64, 2 * EXTENT.0, "whole extents");
    assert!(content.iter().all(|byte| *byte == 0), "what others left is not shown");
    assert_eq!(pool.space().expect("known").free, ByteCount(before.free.0 - 2 * EXTENT.0));
    let image = pool.check(vm, &disk, DiskFormat::Raw, SIZE).await.expect("sound");
    assert_eq!((image.virtual_size, image.allocated), (SIZE, ByteCount(2 * EXTENT.0)));
    let other = pool.check(vm, &disk, DiskFormat::Raw, ByteCount::mebibytes(9)).await;
    assert!(matches!(other, Err(PoolError::SizeDiffers { .. })), "{other:?}");
    fs::File::options().write(true).open(&path).expect("the device").write_all_at(&[7; 512], 0).expect("written");
    let again = pool.create(vm, &disk, DiskFormat::Raw, SIZE).await;
    assert!(matches!(again, Err(PoolError::Exists { .. })), "{again:?}");
    assert_eq!(read(&path)[0], 7, "a second creation harms nothing");

    let qcow2 = pool.create(vm, &disk, DiskFormat::Qcow2, SIZE).await;
    assert!(matches!(qcow2, Err(PoolError::NotRaw { .. })), "{qcow2:?}");
    assert!(matches!(pool.create_variable_store(vm, b"variables"), Err(PoolError::NoFiles { .. })));
    let large = pool.create(vm, &"big".parse().expect("a name"), DiskFormat::Raw, ByteCount(GROUP_SIZE)).await;
    assert!(
        matches!(&large, Err(PoolError::Lvm { verb: "lvcreate", message, .. }) if message.contains("free")),
        "{large:?}"
    );

    pool.delete(vm, &disk, DiskFormat::Raw).await.expect("removed");
    pool.delete(vm, &disk, DiskFormat::Raw).await.expect("gone is gone");
    assert!(matches!(pool.check(vm, &disk, DiskFormat::Raw, SIZE).await, Err(PoolError::Missing { .. })));
    assert_eq!((group.volumes(), pool.space().expect("known")), (vec![], before));
}

#[tokio::test]
async fn what_is_not_tagged_as_the_vms_is_left_alone() {
    let Some(group) = Group::make() else { return };
    let (pool, (vm, disk)) = (group.pool().await, names());
    let name = format!("sterna-{vm}-{disk}");
    for tags in [
        &[][..],
        &["--addtag", "sterna"],
        &["--addtag", "sterna", "--addtag", "sterna.vm=0197c0de-0000-7000-8000-000000000002"],
    ] {
        let make = ["lvcreate", "--yes", "--name", &name, "--size", "8m"];
        run(group.lvm().args(make).args(tags).arg(&group.name)).expect("made");
        for outcome in [
            pool.delete(vm, &disk, DiskFormat::Raw).await,
            pool.check(vm, &disk, DiskFormat::Raw, ByteCount::mebibytes(8)).await.map(drop),
        ] {
            assert!(matches!(outcome, Err(PoolError::NotOurs { .. })), "{tags:?}: {outcome:?}");
        }
        let made = pool.create(vm, &disk, DiskFormat::Raw, SIZE).await;
        assert!(matches!(made, Err(PoolError::Exists { .. })), "{made:?}");
        assert_eq!(group.volumes(), [name.clone()]);
        run(group.lvm().args(["lvremove", "--yes", &format!("{}/{name}", group.name)])).expect("removed");
    }
}

#[tokio::test]
async fn a_group_that_is_not_there_is_named() {
    let Some(group) = Group::make() else { return };
    let name = String::from("no-such-group").try_into().expect("a name");
    let opened = Pool::open_volume_group("fast".parse().expect("a name"), name, group.lvm.clone()).await;
    let error = opened.map(drop).expect_err("not there").to_string();
    assert!(error.contains("no-such-group") && error.contains("vgcreate"), "{error}");
}

/// Copies an image to a volume; whether the proof holds.
async fn copied(image: &Path, volume: &Path, beside: &Path, origin: Origin) -> bool {
    let (from, to) = (Server::start(image, "raw", &["-r"]), Server::start_device(volume, SIZE.0, beside));
    let (reader, target) = (from.plain_client().await, to.plain_client().await);
    let mut writer = Writer::new(target.clone(), 0, SIZE.0, origin).expect("the disk's size, and no more");
    let mut table = DigestTable::new(SIZE.0);
    let spans = source::whole_disk(&reader).await.expect("a block status");
    pass(&reader, spans, &mut table, &mut writer, |block| block).await;
    writer.flush().await.expect("flushed");
    writer.verify().await.expect("read back");
    let (sent, there) = (table.root(), writer.table().root());
    assert!(sent.is_some() && there.is_some());
    drop(writer);
    reader.close().await;
    target.close().await;
    from.stop().await;
    to.stop().await;
    sent == there
}

#[tokio::test]
async fn a_sparse_disk_arrives_as_zeroes_and_the_proof_sees_where_it_does_not() {
    let Some(group) = Group::make() else { return };
    let (pool, (vm, disk)) = (group.pool().await, names());
    let image = image(&group.folder, "sparse", "raw", SIZE.0);
    let data = fs::File::options().write(true).open(&image).expect("the image");
    data.write_all_at(&random(1 << 20, 1), 2 << 20).expect("written");
    for (origin, equal) in [(Origin::Fresh, false), (pool.origin(), true)] {
        let volume = pool.create_to_fill(vm, &disk, DiskFormat::Raw, SIZE).await.expect("made");
        assert!(read(&volume)[..1 << 20].contains(&OLD), "the volume has old content, or this proves nothing");
        let beside = group.folder.path().join("volume.raw");
        assert_eq!(copied(&image, &volume, &beside, origin).await, equal, "{origin:?}");
        let content = read(&volume);
        let (on_disk, beyond) = content.split_at(usize::try_from(SIZE.0).expect("small"));
        assert_eq!(on_disk == read(&image), equal, "{origin:?}");
        assert!(beyond.iter().all(|byte| *byte == OLD), "nothing is written beyond the disk");
        pool.delete(vm, &disk, DiskFormat::Raw).await.expect("removed");
        group.spoil();
    }
}
