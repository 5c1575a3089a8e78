//! Pools on a real file system, with real `qemu-img`.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};

use sterna_agent::disk::pool::{Pool, PoolError};
use sterna_shared::id::{DiskName, VmId};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskFormat;
use tempfile::TempDir;

use crate::harness::{directory, qemu_img};

const SIZE: ByteCount = ByteCount::mebibytes(64);

fn pool(directory: &TempDir) -> Pool {
    Pool::open("fast".parse().expect("a name"), directory.path(), None).expect("a directory")
}

fn names() -> (VmId, DiskName) {
    ("0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID"), "root".parse().expect("a name"))
}

#[tokio::test]
async fn an_image_is_made_once_checked_and_deleted_with_its_directory() {
    let directory = directory();
    let (pool, (vm, disk)) = (pool(&directory), names());
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        let path = pool.create(vm, &disk, format, SIZE).await.expect("made");
        assert_eq!(path, pool.image_path(vm, &disk, format));
        let image = pool.check(vm, &disk, format, SIZE).await.expect("sound");
        assert_eq!((&image.path, image.virtual_size), (&path, SIZE));
        assert!(image.allocated < ByteCount::mebibytes(1));
        let before = fs::read(&path).expect("the image");
        assert!(matches!(pool.create(vm, &disk, format, SIZE).await, Err(PoolError::Exists { .. })));
        assert_eq!(fs::read(&path).expect("the image"), before, "a second creation harms nothing");
        let other = ByteCount::mebibytes(65);
        assert!(matches!(pool.check(vm, &disk, format, other).await, Err(PoolError::SizeDiffers { .. })));
    }
    pool.delete(vm, &disk, DiskFormat::Raw).await.expect("deleted");
    assert!(matches!(pool.check(vm, &disk, DiskFormat::Raw, SIZE).await, Err(PoolError::Missing { .. })));
    pool.check(vm, &disk, DiskFormat::Qcow2, SIZE).await.expect("the other is still there");
    pool.delete(vm, &disk, DiskFormat::Qcow2).await.expect("deleted");
    assert_eq!(fs::read_dir(directory.path()).expect("the pool").count(), 0);
    pool.delete(vm, &disk, DiskFormat::Qcow2).await.expect("gone is gone");
    let space = pool.space().expect("space");
    assert!(space.free <= space.capacity && space.free.0 > 0);
}

#[tokio::test]
async fn sizes_that_no_disk_has_leave_nothing_behind() {
    let directory = directory();
    let (pool, (vm, disk)) = (pool(&directory), names());
    for size in [0, 1, 65537, 1 << 60] {
        let made = pool.create(vm, &disk, DiskFormat::Qcow2, ByteCount(size)).await;
        assert!(matches!(made, Err(PoolError::DiskSize { .. })));
    }
    assert_eq!(fs::read_dir(directory.path()).expect("the pool").count(), 0);
}

#[tokio::test]
async fn links_are_not_followed_wherever_they_are() {
    let (directory, outside) = (directory(), directory());
    let (pool, (vm, disk)) = (pool(&directory), names());
    let victim = outside.path().join("root.raw");
    fs::write(&victim, vec![1; 65536]).expect("a file");
    let size = ByteCount(65536);

    // The VM's directory is a link out of the pool.
    symlink(outside.path(), directory.path().join(vm.to_string())).expect("a link");
    assert!(matches!(pool.check(vm, &disk, DiskFormat::Raw, size).await, Err(PoolError::NotPlain { .. })));
    let made = pool.create(vm, &"new".parse().expect("a name"), DiskFormat::Raw, size).await;
    assert!(matches!(made, Err(PoolError::NotPlain { .. })), "{made:?}");
    assert!(matches!(pool.delete(vm, &disk, DiskFormat::Raw).await, Err(PoolError::NotPlain { .. })));
    fs::remove_file(directory.path().join(vm.to_string())).expect("removed");

    // The image is a link, also one that dangles.
    fs::create_dir(directory.path().join(vm.to_string())).expect("a directory");
    let image = pool.image_path(vm, &disk, DiskFormat::Raw);
    symlink(&victim, &image).expect("a link");
    assert!(matches!(pool.check(vm, &disk, DiskFormat::Raw, size).await, Err(PoolError::NotPlain { .. })));
    let made = pool.create(vm, &disk, DiskFormat::Raw, size).await;
    assert!(matches!(made, Err(PoolError::Exists { .. } | PoolError::NotPlain { .. })), "{made:?}");
    assert_eq!(fs::read(&victim).expect("the file"), vec![1; 65536]);
    fs::remove_file(&image).expect("removed");

    // The image is a directory, or something that opening would wait for.
    fs::create_dir(&image).expect("a directory");
    assert!(matches!(pool.check(vm, &disk, DiskFormat::Raw, size).await, Err(PoolError::NotPlain { .. })));
}

#[tokio::test]
async fn an_image_that_names_another_file_is_refused_unless_it_is_raw() {
    let directory = directory();
    let (pool, (vm, disk)) = (pool(&directory), names());
    let raw = pool.create(vm, &disk, DiskFormat::Raw, SIZE).await.expect("made");
    let path = pool.image_path(vm, &disk, DiskFormat::Qcow2);

    let backing = format!("backing_file={},backing_fmt=raw", raw.display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &backing], &path, &[]);
    let checked = pool.check(vm, &disk, DiskFormat::Qcow2, SIZE).await;
    assert!(matches!(checked, Err(PoolError::Reference { reference: "backing file", .. })), "{checked:?}");
    // A guest may write such a header onto its raw disk: it stays what it is.
    let header = fs::read(&path).expect("the image");
    let file = fs::File::options().write(true).open(&raw).expect("the image");
    file.write_all_at(&header, 0).expect("written");
    assert_eq!(pool.check(vm, &disk, DiskFormat::Raw, SIZE).await.expect("raw").virtual_size, SIZE);

    fs::remove_file(&path).expect("removed");
    let data_file = format!("data_file={}", directory.path().join("data").display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data_file], &path, &["64M"]);
    let checked = pool.check(vm, &disk, DiskFormat::Qcow2, SIZE).await;
    assert!(matches!(checked, Err(PoolError::Reference { reference: "external data file", .. })), "{checked:?}");

    fs::write(&path, vec![0; 1 << 20]).expect("written");
    assert!(matches!(pool.check(vm, &disk, DiskFormat::Qcow2, SIZE).await, Err(PoolError::NotQcow2 { .. })));
}

#[test]
fn a_variable_store_is_kept_beside_the_images() {
    let directory = directory();
    let (pool, (vm, _)) = (pool(&directory), names());
    let content = vec![7; 528 << 10];
    let path = pool.create_variable_store(vm, &content).expect("made");
    assert_eq!(path, pool.variable_store_path(vm).expect("a path"));
    assert_eq!(pool.read_variable_store(vm).expect("read"), content);
    assert!(matches!(pool.create_variable_store(vm, &content), Err(PoolError::Exists { .. })));
    assert!(matches!(pool.create_variable_store(vm, &[]), Err(PoolError::VariableStore { .. })));
    pool.delete_variable_store(vm).expect("deleted");
    assert_eq!(fs::read_dir(directory.path()).expect("the pool").count(), 0);
}
