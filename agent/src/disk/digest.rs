//! What each 1 MiB chunk of a disk is known to hold, and one root for the whole disk.
//!
//! ```text
//!   chunk    BLAKE3 of its bytes (the last may be short)                   unknown ─set─▶ known ─mark_stale─▶ unknown
//!   group    BLAKE3 of the digests of 1024 chunks (1 GiB), kept until one of them changes
//!   root     BLAKE3 of the disk's size (8 bytes, little-endian) and the group digests, in order
//! ```
//!
//! The level of groups is there for the pause: the root of a large disk costs what the last pass has touched, and not 32
//! bytes for every MiB of it. A chunk of zeroes has a constant digest, so a hole at one end equals written zeroes at the
//! other, and costs no hashing. A table takes 33 MiB of memory for each TiB of disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;

use super::extent::Extent;

/// The bytes that one digest stands for.
pub const CHUNK_SIZE: u64 = 1 << 20;
/// The chunks that one cached digest of digests stands for.
const GROUP_CHUNKS: usize = 1024;

/// Bytes of a file that are read and digested at a time.
const FILE_PIECE: usize = 64 << 10;

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// Some zeroes, to compare with and to hash.
pub(super) static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
const _: () = assert!(ZEROES.len() as u64 == CHUNK_SIZE);

static ZERO_CHUNK: LazyLock<Digest> = LazyLock::new(|| *blake3::hash(&ZEROES).as_bytes());
static ZERO_GROUP: LazyLock<Digest> = LazyLock::new(|| {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..GROUP_CHUNKS {
        hasher.update(&*ZERO_CHUNK);
    }
    *hasher.finalize().as_bytes()
});

/// What a chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// Not known, or written since it was.
    Unknown,
    /// Zeroes.
    Zero,
    /// Bytes with that digest.
    Known(Digest),
}

/// Chunks as bytes, for the other host: 0, 1, or 2 and a digest.
#[must_use]
pub fn pack(chunks: &[Chunk]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunks.len() * (1 + size_of::<Digest>()));
    for chunk in chunks {
        match chunk {
            Chunk::Unknown => bytes.push(0),
            Chunk::Zero => bytes.push(1),
            Chunk::Known(digest) => {
                bytes.push(2);
                bytes.extend_from_slice(digest);
            }
        }
    }
    bytes
}

/// The chunks that were packed; nothing where the bytes are no such packing. Takes memory by the bytes' length only.
#[must_use]
pub fn unpack(mut bytes: &[u8]) -> Option<Vec<Chunk>> {
    let mut chunks = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let (chunk, rest) = match kind {
            0 => (Chunk::Unknown, rest),
            1 => (Chunk::Zero, rest),
            2 => rest.split_first_chunk().map(|(digest, rest)| (Chunk::Known(*digest), rest))?,
            _ => return None,
        };
        chunks.push(chunk);
        bytes = rest;
    }
    Some(chunks)
}

/// Why two tables cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "digests of a disk of {left} bytes cannot be compared with those of one of {right}; both ends must have one size"
)]
pub struct SizesDiffer {
    /// The one disk's size.
    pub left: u64,
    /// The other's.
    pub right: u64,
}

/// The digests of one disk.
#[derive(Debug, Clone)]
pub struct DigestTable {
    size: u64,
    chunks: Vec<Chunk>,
    groups: Vec<Option<Digest>>,
    unknown: usize,
    /// The digest of a last chunk of zeroes, where that is short.
    zero_tail: Digest,
}

impl DigestTable {
    /// A table of a disk of `size` bytes, about which nothing is known. The size is the disk's own, as exported, and
    /// never a peer's word: memory is taken by it.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let count = usize::try_from(size.div_ceil(CHUNK_SIZE)).unwrap_or(usize::MAX);
        let tail = match usize::try_from(size % CHUNK_SIZE) {
            Ok(0) | Err(_) => *ZERO_CHUNK,
            Ok(length) => *blake3::hash(&ZEROES[..length]).as_bytes(),
        };
        Self {
            size,
            chunks: vec![Chunk::Unknown; count],
            groups: vec![None; count.div_ceil(GROUP_CHUNKS)],
            unknown: count,
            zero_tail: tail,
        }
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many chunks the disk has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.chunks.len()
    }

    /// How many chunks are unknown.
    #[must_use]
    pub fn unknown(&self) -> usize {
        self.unknown
    }

    /// What a chunk holds; beyond the disk, it is unknown.
    #[must_use]
    pub fn chunk(&self, index: usize) -> Chunk {
        self.chunks.get(index).copied().unwrap_or(Chunk::Unknown)
    }

    /// The range of a chunk.
    #[must_use]
    pub fn extent(&self, index: usize) -> Option<Extent> {
        let offset = (index as u64).checked_mul(CHUNK_SIZE)?;
        Extent::between(offset, offset.saturating_add(CHUNK_SIZE).min(self.size))
    }

    /// Says what a chunk holds. A digest of zeroes becomes [`Chunk::Zero`]; a chunk beyond the disk is ignored.
    pub fn set(&mut self, index: usize, chunk: Chunk) {
        let chunk = match chunk {
            Chunk::Known(digest) if digest == self.zero_digest(index) => Chunk::Zero,
            other => other,
        };
        let Some(slot) = self.chunks.get_mut(index) else { return };
        if *slot == chunk {
            return;
        }
        match (*slot, chunk) {
            (Chunk::Unknown, _) => self.unknown -= 1,
            (_, Chunk::Unknown) => self.unknown += 1,
            _ => {}
        }
        *slot = chunk;
        self.groups[index / GROUP_CHUNKS] = None;
    }

    /// Forgets every chunk that `extent` touches.
    pub fn mark_stale(&mut self, extent: Extent) {
        self.touched(extent).for_each(|index| self.set(index, Chunk::Unknown));
    }

    /// The chunks that `extent` touches.
    pub fn touched(&self, extent: Extent) -> impl Iterator<Item = usize> + use<> {
        let end = extent.end().min(self.size).div_ceil(CHUNK_SIZE);
        let range = (extent.offset() / CHUNK_SIZE).min(end)..end;
        // Below the number of chunks, which is a usize.
        range.map(|index| usize::try_from(index).unwrap_or(usize::MAX))
    }

    /// The first unknown chunk at or after `from`.
    #[must_use]
    pub fn next_unknown(&self, from: usize) -> Option<usize> {
        if self.unknown == 0 {
            return None;
        }
        let rest = self.chunks.get(from..)?;
        rest.iter().position(|chunk| *chunk == Chunk::Unknown).map(|found| from + found)
    }

    /// The digest of the whole disk, once every chunk is known.
    pub fn root(&mut self) -> Option<Digest> {
        if self.unknown > 0 {
            return None;
        }
        let mut root = blake3::Hasher::new();
        root.update(&self.size.to_le_bytes());
        for group in 0..self.groups.len() {
            let digest = self.groups[group].unwrap_or_else(|| self.group_digest(group));
            self.groups[group] = Some(digest);
            root.update(&digest);
        }
        Some(*root.finalize().as_bytes())
    }

    /// The chunks that are not known to be equal in both tables.
    ///
    /// # Errors
    /// When the disks have different sizes.
    pub fn differing(&self, other: &Self) -> Result<impl Iterator<Item = usize>, SizesDiffer> {
        if self.size != other.size {
            return Err(SizesDiffer { left: self.size, right: other.size });
        }
        let pairs = self.chunks.iter().zip(&other.chunks).enumerate();
        Ok(pairs.filter(|(_, (left, right))| left != right || **left == Chunk::Unknown).map(|(index, _)| index))
    }

    fn zero_digest(&self, index: usize) -> Digest {
        if index + 1 == self.chunks.len() { self.zero_tail } else { *ZERO_CHUNK }
    }

    fn group_digest(&self, group: usize) -> Digest {
        let first = group * GROUP_CHUNKS;
        let chunks = &self.chunks[first..self.chunks.len().min(first + GROUP_CHUNKS)];
        // The last group has its own zero digest: it may be short, or end in a short chunk.
        if group + 1 < self.groups.len() && chunks.iter().all(|chunk| *chunk == Chunk::Zero) {
            return *ZERO_GROUP;
        }
        let mut hasher = blake3::Hasher::new();
        for (index, chunk) in (first..).zip(chunks) {
            match chunk {
                Chunk::Known(digest) => hasher.update(digest),
                Chunk::Zero | Chunk::Unknown => hasher.update(&self.zero_digest(index)),
            };
        }
        *hasher.finalize().as_bytes()
    }
}

/// What a range of a raw image holds, read in pieces that stay in the processor's cache until they are digested.
///
/// # Errors
/// It cannot be read, or the image ends before.
pub(super) fn of_file(image: &File, extent: Extent) -> io::Result<Chunk> {
    let mut piece = vec![0; FILE_PIECE];
    let (mut hasher, mut zero) = (blake3::Hasher::new(), true);
    for part in extent.split(FILE_PIECE as u64) {
        let read = &mut piece[..usize::try_from(part.length()).unwrap_or(FILE_PIECE)];
        image.read_exact_at(read, part.offset())?;
        zero &= is_zero(read);
        hasher.update(read);
    }
    Ok(if zero { Chunk::Zero } else { Chunk::Known(*hasher.finalize().as_bytes()) })
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROES.len()).all(|part| part == &ZEROES[..part.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The table of a disk with that content.
    fn table(disk: &[u8]) -> DigestTable {
        let mut table = DigestTable::new(disk.len() as u64);
        for (index, chunk) in disk.chunks(ZEROES.len()).enumerate() {
            table.set(index, Chunk::Known(*blake3::hash(chunk).as_bytes()));
        }
        table
    }

    fn extent(offset: u64, length: u64) -> Extent {
        Extent::new(offset, length).expect("not empty")
    }

    #[test]
    fn written_zeroes_and_a_hole_have_one_root_also_in_a_short_last_chunk() {
        for size in [CHUNK_SIZE, 3 * CHUNK_SIZE + 65536, 65536] {
            let written = vec![0; usize::try_from(size).expect("small")];
            let mut hole = DigestTable::new(size);
            (0..hole.count()).for_each(|index| hole.set(index, Chunk::Zero));
            assert_eq!(table(&written).root(), hole.root());
            assert!(hole.root().is_some());
        }
    }

    #[test]
    fn disks_of_zeroes_of_different_sizes_have_different_roots() {
        assert_ne!(table(&vec![0; 65536]).root(), table(&vec![0; 131_072]).root());
    }

    #[test]
    fn there_is_no_root_while_a_chunk_is_unknown() {
        let mut table = table(&vec![7; 2 << 20]);
        let root = table.root();
        table.mark_stale(extent(CHUNK_SIZE, 1));
        assert_eq!((table.root(), table.unknown(), table.next_unknown(0)), (None, 1, Some(1)));
        table.set(1, Chunk::Known(*blake3::hash(&vec![7; 1 << 20]).as_bytes()));
        assert_eq!(table.root(), root);
    }

    #[test]
    fn a_changed_chunk_in_a_group_with_a_kept_digest_changes_the_root() {
        let mut table = DigestTable::new(3 << 30);
        (0..table.count()).for_each(|index| table.set(index, Chunk::Zero));
        let zero = table.root();
        table.set(1500, Chunk::Known([1; 32]));
        let one = table.root();
        assert_ne!(zero, one);
        table.set(1500, Chunk::Zero);
        assert_eq!(table.root(), zero);
        assert_ne!(one, None);
    }

    #[test]
    fn a_group_of_zeroes_has_the_digest_it_would_be_hashed_to() {
        let mut long = DigestTable::new(2 << 30);
        (0..long.count()).for_each(|index| long.set(index, Chunk::Zero));
        let mut expected = blake3::Hasher::new();
        expected.update(&(2_u64 << 30).to_le_bytes());
        expected.update(&*ZERO_GROUP);
        expected.update(&long.group_digest(1));
        assert_eq!(long.group_digest(1), *ZERO_GROUP);
        assert_eq!(long.root(), Some(*expected.finalize().as_bytes()));
    }

    #[test]
    fn tables_tell_where_disks_differ() {
        let mut disk = vec![3; 4 << 20];
        let before = table(&disk);
        disk[(2 << 20) + 5] ^= 1;
        let mut after = table(&disk);
        after.mark_stale(extent(0, 1));
        assert_eq!(before.differing(&after).map(Iterator::collect::<Vec<_>>), Ok(vec![0, 2]));
        assert!(before.differing(&DigestTable::new(1)).is_err());
    }

    #[test]
    fn chunks_beyond_the_disk_are_neither_touched_nor_set() {
        let mut table = DigestTable::new(CHUNK_SIZE + 1);
        assert_eq!(table.touched(extent(0, u64::MAX)).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(table.touched(extent(1 << 40, 5)).count(), 0);
        table.set(2, Chunk::Zero);
        assert_eq!((table.unknown(), table.chunk(2)), (2, Chunk::Unknown));
    }

    #[test]
    fn what_is_no_packing_is_refused() {
        assert_eq!(unpack(&[]), Some(vec![]));
        assert_eq!(unpack(&[0, 1, 3]), None);
        assert_eq!(unpack(&[&[2][..], &[9; 31]].concat()), None);
    }

    proptest! {
        #[test]
        fn chunks_come_back_from_their_packing(kinds in proptest::collection::vec(0_u8..5, 0..40)) {
            let chunk = |kind| match kind { 0 => Chunk::Unknown, 1 => Chunk::Zero, other => Chunk::Known([other; 32]) };
            let chunks: Vec<Chunk> = kinds.into_iter().map(chunk).collect();
            prop_assert_eq!(unpack(&pack(&chunks)), Some(chunks));
        }

        #[test]
        fn unknown_chunks_are_counted_right(steps in proptest::collection::vec((0_usize..6, 0_u8..3), 0..60)) {
            let mut table = DigestTable::new(5 * CHUNK_SIZE);
            for (index, kind) in steps {
                table.set(index, match kind { 0 => Chunk::Unknown, 1 => Chunk::Zero, other => Chunk::Known([other; 32]) });
            }
            let unknown = (0..5).filter(|index| table.chunk(*index) == Chunk::Unknown).count();
            prop_assert_eq!(table.unknown(), unknown);
            prop_assert_eq!(table.root().is_some(), unknown == 0);
        }
    }
}
