//! Writes the archive that the kernel unpacks as its first file system: cpio "newc", uncompressed.
//!
//! ```text
//!   070701 · thirteen numbers of 8 hexadecimal digits · name and NUL · padding to 4 · contents · padding to 4
//!   … and an entry named TRAILER!!! at the end
//! ```

/// An archive that grows by entries; folders before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    pub(crate) fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, (0, 0), &[]);
    }

    pub(crate) fn file(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, FILE, (0, 0), contents);
    }

    pub(crate) fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[]);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(contents.len()).expect("a file of the initramfs is smaller than 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("names are short");
        // inode, mode, uid, gid, links, mtime, size, device (2), the device it is (2), length of the name, checksum
        let numbers = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, major, minor, name_length, 0];
        self.bytes.extend(b"070701");
        for number in numbers {
            self.bytes.extend(format!("{number:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_lie_where_the_format_says() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.file("init", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let header = |at: usize| std::str::from_utf8(&bytes[at..at + 110]).expect("text");
        assert!(header(0).starts_with("0707010000000100004"), "{}", header(0));
        // 110 bytes and "dev\0" make 114, padded to 116.
        assert_eq!(&header(116)[54..62], "00000005");
        assert_eq!(&bytes[116 + 110..116 + 115], b"init\0");
        assert_eq!(&bytes[116 + 116..116 + 121], b"hello");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
