//! What is on a device, by the first bytes of it: what kind of file system, and the UUID that `/etc/fstab` may name it by.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::boot::{FileSystem, Part};
use crate::protocol::Order;

/// As much of a device as holds all that is looked at.
const HEAD_BYTES: usize = 0x1_0100;
const EXT_SUPERBLOCK: usize = 0x400;
const BTRFS_SUPERBLOCK: usize = 0x1_0000;
const SWAP_PAGE: usize = 0x1000;

/// What can be mounted of a device; none where it holds no file system that this knows.
pub(crate) fn mountable(device: &Path) -> Option<FileSystem> {
    let head = head(device)?;
    match &head {
        head if is_ext(head) => Some(FileSystem::Ext4),
        head if head.starts_with(b"XFSB") => Some(FileSystem::Xfs),
        _ => None,
    }
}

/// Of each device that the guest's own kernel has, by the name that it has there, the UUID of what is on it.
pub(crate) fn devices(parts: &[Part], order: &Order) -> BTreeMap<String, String> {
    let named = parts.iter().filter_map(|part| {
        let uuid = uuid_of(&head(&part.device)?)?;
        Some((name_in_guest(&part.name, order)?, uuid))
    });
    named.collect()
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

    #[test]
    fn a_device_has_the_name_that_the_guest_gives_it() {
        let disks = vec![Some("vda".to_owned()), Some("sda".to_owned()), None];
        let order = Order { hostname: "a".into(), machine_id: "b".into(), disks };
        for (here, there) in
            [("vda1", Some("vda1")), ("vdb", Some("sda")), ("vdb14", Some("sda14")), ("vdc1", None), ("vdaa", None)]
        {
            assert_eq!(name_in_guest(here, &order).as_deref(), there, "{here}");
        }
        assert_eq!(name_in_guest("loop0", &order), None);
        assert_eq!(name_in_guest("vdz", &order), None);
    }
}
