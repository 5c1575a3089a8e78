//! What is on a device, by the first bytes of it: what kind of file system, and the UUID that `/etc/fstab` may name it by.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::boot::{FileSystem, Part};
use crate::protocol::Order;

/// As much of a device as holds all that is looked at.
const HEAD_BYTES: usize = 0x1_0100;
const EXT_SUPERBLOCK: usize = 0x400;
const BTRFS_SUPERBLOCK: usize = 0x1_0000;
const SWAP_PAGE: usize = 0x1000;
const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
const SECTOR_BYTES: u64 = 512;

/// What can be mounted of a device; none where it holds no file system that this knows.
pub(crate) fn mountable(device: &Path) -> Option<FileSystem> {
    let head = head(device)?;
    match &head {
        head if is_ext(head) => Some(FileSystem::Ext4),
        head if head.starts_with(b"XFSB") => Some(FileSystem::Xfs),
        _ => None,
    }
}

/// What holds on a device what nobody here looks into, where something does: a system may be in there, or a part of one.
pub(crate) fn container(device: &Path, has_partitions: bool) -> Option<&'static str> {
    let head = head(device)?;
    // One half of a mirror looks like the whole of it, and must not be changed without the other.
    if has_md_at_end(device) {
        return Some("md");
    }
    // What a file system or a partition table was made over is of no account.
    if has_partitions || is_ext(&head) || head.starts_with(b"XFSB") { None } else { container_by_head(&head) }
}

fn container_by_head(head: &[u8]) -> Option<&'static str> {
    let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let label = |sector: usize| has(sector * 512, b"LABELONE") && has(sector * 512 + 24, b"LVM2");
    let found = [
        ("LUKS", has(0, b"LUKS\xba\xbe")),
        ("dm-verity", has(0, b"verity\0\0")),
        ("LVM2", (0..4).any(label)),
        ("md", has(0, &MD_MAGIC) || has(0x1000, &MD_MAGIC)),
        ("btrfs", has(BTRFS_SUPERBLOCK + 0x40, b"_BHRfS_M")),
    ];
    found.into_iter().find_map(|(name, is)| is.then_some(name))
}

/// md's versions 1.0 and 0.90 are at the end of a device, so that it can be mounted without md.
fn has_md_at_end(device: &Path) -> bool {
    let Ok(mut file) = File::open(device) else { return false };
    let Ok(size) = file.seek(SeekFrom::End(0)) else { return false };
    md_places(size / SECTOR_BYTES).into_iter().flatten().any(|sector| {
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, sector * SECTOR_BYTES).is_ok() && magic == MD_MAGIC
    })
}

/// Where its superblock is in a device of so many sectors: 8 KiB before the end, or in the last whole 64 KiB.
fn md_places(sectors: u64) -> [Option<u64>; 2] {
    [sectors.checked_sub(16).map(|at| at & !7), (sectors & !127).checked_sub(128)]
}

/// Of each device that the guest's own kernel has, by the name that it has there, the UUID of what is on it. One that several
/// have says of none which it is.
pub(crate) fn devices(parts: &[Part], order: &Order) -> BTreeMap<String, String> {
    let of_each = parts.iter().filter_map(|part| Some((part.name.as_str(), uuid_of(&head(&part.device)?)?)));
    named(&of_each.collect::<Vec<_>>(), order)
}

fn named(parts: &[(&str, String)], order: &Order) -> BTreeMap<String, String> {
    let alone = |uuid: &String| parts.iter().filter(|(_, other)| other == uuid).count() == 1;
    let alone = parts.iter().filter(|(_, uuid)| alone(uuid));
    alone.filter_map(|(name, uuid)| Some((name_in_guest(name, order)?, uuid.clone()))).collect()
}

/// What the guest calls `vdb1`: its second disk, by whatever name, and the same partition.
fn name_in_guest(name: &str, order: &Order) -> Option<String> {
    let letters = name.strip_prefix("vd")?;
    let partition = letters.trim_start_matches(|letter: char| letter.is_ascii_lowercase());
    let letters = letters.strip_suffix(partition)?;
    // More than 26 disks are named with two letters; those are left as they are.
    let [letter] = letters.as_bytes() else { return None };
    let disk = order.disks.get(usize::from(letter.checked_sub(b'a')?))?.as_ref()?;
    Some(format!("{disk}{partition}"))
}

fn head(device: &Path) -> Option<Vec<u8>> {
    let file = File::open(device).ok()?;
    let mut head = vec![0; HEAD_BYTES];
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], u64::try_from(filled).ok()?) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(_) => return None,
        }
    }
    Some(head)
}

fn is_ext(head: &[u8]) -> bool {
    head.get(EXT_SUPERBLOCK + 0x38..EXT_SUPERBLOCK + 0x3a) == Some(&[0x53, 0xef])
}

/// The UUID of a file system or of swap space, as `/etc/fstab` has it.
fn uuid_of(head: &[u8]) -> Option<String> {
    let dashed = |at: usize| {
        let digits: String = head.get(at..at + 16)?.iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        Some(parts.join("-"))
    };
    if is_ext(head) {
        return dashed(EXT_SUPERBLOCK + 0x68);
    }
    if head.starts_with(b"XFSB") {
        return dashed(0x20);
    }
    if head.get(BTRFS_SUPERBLOCK + 0x40..BTRFS_SUPERBLOCK + 0x48) == Some(b"_BHRfS_M") {
        return dashed(BTRFS_SUPERBLOCK + 0x20);
    }
    if head.get(SWAP_PAGE - 10..SWAP_PAGE) == Some(b"SWAPSPACE2") {
        return dashed(0x40c);
    }
    // FAT has a serial number of 32 bits in one of two places.
    let at = [(0x52, 0x43), (0x36, 0x27)];
    let at = at.iter().find(|(name, _)| head.get(*name..name + 3) == Some(b"FAT"))?.1;
    let [d, c, b, a] = head.get(at..at + 4)?.try_into().ok()?;
    Some(format!("{a:02X}{b:02X}-{c:02X}{d:02X}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[at..at + bytes.len()].copy_from_slice(bytes);
        head
    }

    fn numbered(mut head: Vec<u8>, at: usize) -> Option<String> {
        for (byte, number) in head[at..at + 16].iter_mut().zip(1..) {
            *byte = number;
        }
        uuid_of(&head)
    }

    #[test]
    fn what_is_on_a_device_is_told_by_its_first_bytes() {
        let uuid = Some("01020304-0506-0708-090a-0b0c0d0e0f10".to_owned());
        assert_eq!(numbered(with(0x438, &[0x53, 0xef]), 0x468), uuid);
        assert_eq!(numbered(with(0, b"XFSB"), 0x20), uuid);
        assert_eq!(numbered(with(0x1_0040, b"_BHRfS_M"), 0x1_0020), uuid);
        assert_eq!(numbered(with(0xff6, b"SWAPSPACE2"), 0x40c), uuid);
        let mut fat = with(0x52, b"FAT32");
        fat[0x43..0x47].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(uuid_of(&fat), Some("0403-0201".to_owned()));
        assert_eq!(uuid_of(&with(0, b"LUKS")), None);
        assert_eq!(uuid_of(&[]), None);
    }

    fn order(disks: Vec<Option<String>>) -> Order {
        Order { hostname: "a".into(), machine_id: "b".into(), disks, hooks: vec![], hooks_may_fail: false }
    }

    #[test]
    fn a_device_has_the_name_that_the_guest_gives_it() {
        let disks = vec![Some("vda".to_owned()), Some("sda".to_owned()), None];
        let order = order(disks);
        for (here, there) in
            [("vda1", Some("vda1")), ("vdb", Some("sda")), ("vdb14", Some("sda14")), ("vdc1", None), ("vdaa", None)]
        {
            assert_eq!(name_in_guest(here, &order).as_deref(), there, "{here}");
        }
        assert_eq!(name_in_guest("loop0", &order), None);
        assert_eq!(name_in_guest("vdz", &order), None);
    }

    #[test]
    fn what_several_have_names_none_of_them() {
        let disks = vec![Some("vda".to_owned()), None];
        let order = order(disks);
        let parts = [("vda1", "1".to_owned()), ("vda2", "2".to_owned()), ("vdb1", "1".to_owned())];
        assert_eq!(named(&parts, &order), BTreeMap::from([("vda2".to_owned(), "2".to_owned())]));
    }

    #[test]
    fn what_holds_another_system_is_told() {
        let label = [b"LABELONE".as_slice(), &[0; 16], b"LVM2 001"].concat();
        for (at, magic, name) in [
            (0, b"LUKS\xba\xbe".as_slice(), "LUKS"),
            (0, b"verity\0\0", "dm-verity"),
            (512, &label, "LVM2"),
            (0x1000, &MD_MAGIC, "md"),
            (0x1_0040, b"_BHRfS_M", "btrfs"),
        ] {
            assert_eq!(container_by_head(&with(at, magic)), Some(name));
        }
        assert_eq!(container_by_head(&with(4 * 512, &label)), None, "it is in one of the first four sectors");
        assert_eq!(container_by_head(&[]), None);
        assert_eq!(md_places(2048), [Some(2032), Some(1920)]);
        assert_eq!(md_places(8), [None, None]);
    }

    #[test]
    fn one_half_of_a_mirror_is_no_file_system_of_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let mut disk = with(0x438, &[0x53, 0xef]);
        disk[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        disk.resize(1 << 20, 0);
        std::fs::write(&path, &disk).expect("written");
        assert_eq!(container(&path, false), None, "an older file system was there");
        disk[2032 * 512..2032 * 512 + 4].copy_from_slice(&MD_MAGIC);
        std::fs::write(&path, &disk).expect("written");
        assert_eq!(container(&path, false), Some("md"));
        disk[0x438] = 0;
        disk[2032 * 512] = 0;
        std::fs::write(&path, &disk).expect("written");
        assert_eq!((container(&path, false), container(&path, true)), (Some("btrfs"), None));
    }
}
