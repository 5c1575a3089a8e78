//! Pools that are volume groups, with real LVM and real block devices.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sterna_agent::disk::copy::source;
use sterna_agent::disk::copy::target::{Origin, Writer};
use sterna_agent::disk::digest::DigestTable;
use sterna_agent::disk::pool::{Lvm, Pool, PoolError};
use sterna_agent::hypervisor::qemu::command_line::ImageKind;
use sterna_shared::id::{DiskName, VmId};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskFormat;

use crate::copying::pass;
use crate::harness::{Server, directory, image, random};
use crate::lvm::{Group, OLD, run};

const GROUP_SIZE: u64 = 128 << 20;
const EXTENT: ByteCount = ByteCount::mebibytes(4);
/// Not a multiple of the extent.
const SIZE: ByteCount = ByteCount::mebibytes(6);

async fn pool(group: &Group) -> Pool {
    let name = group.name.clone().try_into().expect("a name of a volume group");
    Pool::open_volume_group("fast".parse().expect("a name"), name, lvm(group)).await.expect("opened")
}

fn lvm(group: &Group) -> Lvm {
    Lvm { program: group.programs.join("lvm"), ..Lvm::default() }
}

fn names() -> (VmId, DiskName) {
    ("0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID"), "root".parse().expect("a name"))
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("the device")
}

#[tokio::test]
async fn a_volume_is_made_whole_checked_and_removed() {
    let Some(group) = Group::make(GROUP_SIZE) else { return };
    let (pool, (vm, disk)) = (pool(&group).await, names());
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
    let Some(group) = Group::make(GROUP_SIZE) else { return };
    let (pool, (vm, disk)) = (pool(&group).await, names());
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
        assert_eq!(group.volumes(), std::slice::from_ref(&name));
        run(group.lvm().args(["lvremove", "--yes", &format!("{}/{name}", group.name)])).expect("removed");
    }
}

#[tokio::test]
async fn a_group_that_is_not_there_is_named() {
    let Some(group) = Group::make(GROUP_SIZE) else { return };
    let name = String::from("no-such-group").try_into().expect("a name");
    let opened = Pool::open_volume_group("fast".parse().expect("a name"), name, lvm(&group)).await;
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
    let Some(group) = Group::make(GROUP_SIZE) else { return };
    let (pool, (vm, disk)) = (pool(&group).await, names());
    let folder = directory();
    let image = image(&folder, "sparse", "raw", SIZE.0);
    let data = fs::File::options().write(true).open(&image).expect("the image");
    data.write_all_at(&random(1 << 20, 1), 2 << 20).expect("written");
    for (origin, equal) in [(Origin::Fresh, false), (pool.origin(), true)] {
        let volume = pool.create_to_fill(vm, &disk, DiskFormat::Raw, SIZE).await.expect("made");
        assert!(read(&volume)[..1 << 20].contains(&OLD), "the volume has old content, or this proves nothing");
        let beside = folder.path().join("volume.raw");
        assert_eq!(copied(&image, &volume, &beside, origin).await, equal, "{origin:?}");
        let content = read(&volume);
        let (on_disk, beyond) = content.split_at(usize::try_from(SIZE.0).expect("small"));
        assert_eq!(on_disk == read(&image), equal, "{origin:?}");
        assert!(beyond.iter().all(|byte| *byte == OLD), "nothing is written beyond the disk");
        pool.delete(vm, &disk, DiskFormat::Raw).await.expect("removed");
        group.spoil();
    }
}
