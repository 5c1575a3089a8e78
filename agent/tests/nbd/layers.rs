//! Layers of replicas, with real `qemu-img` and `qemu-io`: what they show together, merged or not.

use std::path::{Path, PathBuf};
use std::process::Command;

use sterna_agent::disk::pool::{LayerFile, Note, Pool, chain};
use sterna_shared::id::{DiskName, VmId};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::DiskFormat;

use crate::harness::directory;

const SIZE: ByteCount = ByteCount::mebibytes(4);
const UNIT: usize = 64 << 10;

fn write(layers: &[PathBuf], commands: &[&str]) {
    let mut io = Command::new("qemu-io");
    for command in commands {
        io.args(["-c", command]);
    }
    let done = io.arg(format!("json:{}", chain(layers))).output().expect("qemu-io runs");
    assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn read(layers: &[PathBuf], directory: &Path) -> Vec<u8> {
    let raw = directory.join("read.raw");
    let image = format!("json:{}", chain(layers));
    let done = Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw", &image])
        .arg(&raw)
        .output()
        .expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::read(raw).expect("what was read")
}

#[tokio::test]
async fn merged_layers_show_what_they_showed_before_zeroes_too() {
    let (folder, elsewhere) = (directory(), directory());
    let pool = Pool::open("fast".parse().expect("a name"), folder.path(), None).expect("a pool");
    let vm: VmId = "0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID");
    let disk: DiskName = "root".parse().expect("a name");
    let mut layers = Vec::new();
    for number in 1..=4 {
        layers.push(pool.create_layer(vm, &disk, LayerFile::Layer(number), SIZE).await.expect("made"));
        let content = [u8::try_from(number).expect("small")];
        pool.write_note(vm, &disk, number, Note::Digests, &content).expect("written");
        if number != 3 {
            pool.write_note(vm, &disk, number, Note::Variables, &content).expect("written");
        }
        let pattern = format!("write -q -P {number} 0 {}", 3 * UNIT);
        match number {
            1 => write(&layers, &["write -q -P 1 0 2M"]),
            // What a lower layer has is made zero here, and must not come back.
            2 => write(&layers, &[&pattern, "write -q -z -u 512k 256k", "discard -q 1M 128k"]),
            3 => write(&layers, &["write -q -P 3 3M 64k"]),
            _ => write(&layers, &[&pattern]),
        }
    }
    let shown: Vec<Vec<u8>> = (1..=4).map(|count| read(&layers[..count], elsewhere.path())).collect();
    assert_eq!((shown[1][512 << 10], shown[1][1 << 20], shown[1][UNIT]), (0, 0, 2));

    // Layer 3 goes into layer 2, whose own snapshot nobody wants.
    pool.merge_layer(vm, &disk, &[1, 2, 3]).await.expect("merged");
    for note in [Note::Digests, Note::Variables] {
        pool.take_over_note(vm, &disk, note, 3, 2).expect("taken over");
    }
    pool.delete_layer(vm, &disk, LayerFile::Layer(3)).expect("deleted");
    let left = [layers[0].clone(), layers[1].clone(), layers[3].clone()];
    assert_eq!(read(&left[..1], elsewhere.path()), shown[0], "what is below is as it was");
    assert_eq!(read(&left[..2], elsewhere.path()), shown[2]);
    assert_eq!(read(&left, elsewhere.path()), shown[3]);
    assert_eq!(pool.read_note(vm, &disk, 2, Note::Digests).expect("read"), [3]);
    pool.read_note(vm, &disk, 2, Note::Variables).expect_err("layer 3 had none");

    // And all the rest into the lowest.
    pool.merge_layer(vm, &disk, &[1, 2]).await.expect("merged");
    pool.merge_layer(vm, &disk, &[1, 4]).await.expect("merged");
    assert_eq!(read(&left[..1], elsewhere.path()), shown[3]);
    let mut there = pool.layers_there(vm, &disk);
    there.dedup();
    assert!(there.contains(&1) && !there.contains(&3), "{there:?}");

    // A copy stands on nothing.
    let copy = pool.create(vm, &disk, DiskFormat::Qcow2, SIZE).await.expect("made");
    pool.copy_layers(&left[..1], &copy, DiskFormat::Qcow2).await.expect("copied");
    pool.check(vm, &disk, DiskFormat::Qcow2, SIZE).await.expect("sound, and names no other file");
    assert_eq!(read(&[copy], elsewhere.path()), shown[3]);
    for number in [1, 2, 4] {
        pool.delete_layer(vm, &disk, LayerFile::Layer(number)).expect("deleted");
    }
    pool.delete(vm, &disk, DiskFormat::Qcow2).await.expect("deleted");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the pool").count(), 0, "nothing is left");
}
