//! Ranges of a disk, and sets of them. Pure.
//!
//! A set keeps its ranges apart, in order and merged, so that equal sets are equal values and their encodings equal
//! bytes. The encoding is what the journal keeps of what was received: for each range the gap before it and its length,
//! as variable-length integers, in the unit given by the caller's data (bytes). A disk copied in order is a few bytes.

use std::collections::BTreeMap;

/// The most ranges that a set is decoded with; the encoding of that many is at most 80 MiB.
pub const RANGES_MAX: usize = 4 << 20;

/// A range of bytes: never empty, and its end fits a `u64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    offset: u64,
    end: u64,
}

impl Extent {
    /// The range of `length` bytes from `offset`, unless it is empty or does not fit.
    #[must_use]
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        Self::between(offset, offset.checked_add(length)?)
    }

    /// The range from `offset` up to, and without, `end`, unless it is empty.
    #[must_use]
    pub const fn between(offset: u64, end: u64) -> Option<Self> {
        if offset < end { Some(Self { offset, end }) } else { None }
    }

    /// Its first byte.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// The first byte after it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Its length in bytes, at least 1.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.end - self.offset
    }

    /// The part that is also in `other`.
    #[must_use]
    pub fn clip(self, other: Self) -> Option<Self> {
        Self::between(self.offset.max(other.offset), self.end.min(other.end))
    }

    /// Whether they have a byte in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.clip(other).is_some()
    }

    /// Grown at both ends to whole multiples of `unit`, but not past `size`.
    ///
    /// # Panics
    /// If `unit` is 0.
    #[must_use]
    pub fn aligned(self, unit: u64, size: u64) -> Self {
        let offset = self.offset - self.offset % unit;
        // Growing never loses a byte of the range itself, whatever the size.
        let end = self.end.checked_next_multiple_of(unit).unwrap_or(u64::MAX).min(size).max(self.end);
        Self { offset, end }
    }

    /// Its parts, cut wherever a multiple of `unit` is passed.
    ///
    /// # Panics
    /// If `unit` is 0.
    pub fn split(self, unit: u64) -> impl Iterator<Item = Self> {
        let mut next = self.offset;
        std::iter::from_fn(move || {
            let cut = (next - next % unit).saturating_add(unit).min(self.end);
            let part = Self::between(next, cut)?;
            next = cut;
            Some(part)
        })
    }
}

/// A set of bytes, as ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtentSet {
    /// Start to end; neither touching nor overlapping.
    ranges: BTreeMap<u64, u64>,
}

/// Why bytes are not the encoding of a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More ranges than are accepted, or than the bytes have room for.
    #[error("a set of {count} ranges in {length} bytes; at most {RANGES_MAX} ranges of at least 2 bytes are accepted")]
    Count {
        /// The announced number.
        count: u64,
        /// The length of the encoding.
        length: usize,
    },
    /// The bytes end too early, go on too long, or hold a number that no set has.
    #[error("the encoding of a set of ranges is damaged; discard it and copy the disk anew")]
    Damaged,
}

impl ExtentSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new() }
    }

    /// The number of ranges.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The number of bytes in it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(Extent::length).sum()
    }

    /// Its ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.ranges.iter().map(|(&offset, &end)| Extent { offset, end })
    }

    /// Adds a range.
    pub fn insert(&mut self, extent: Extent) {
        let (mut offset, mut end) = (extent.offset, extent.end);
        // The ranges that touch it are those that start at or before its end, from the last one back.
        while let Some((&start, &stop)) = self.ranges.range(..=end).next_back() {
            if stop < offset {
                break;
            }
            self.ranges.remove(&start);
            offset = offset.min(start);
            end = end.max(stop);
        }
        self.ranges.insert(offset, end);
    }

    /// Takes a range away.
    pub fn remove(&mut self, extent: Extent) {
        while let Some((&start, &stop)) = self.ranges.range(..extent.end).next_back() {
            if stop <= extent.offset {
                break;
            }
            self.ranges.remove(&start);
            if stop > extent.end {
                self.ranges.insert(extent.end, stop);
            }
            if start < extent.offset {
                self.ranges.insert(start, extent.offset);
            }
        }
    }

    /// The parts of `extent` that are in the set, in order.
    pub fn within(&self, extent: Extent) -> impl Iterator<Item = Extent> + '_ {
        let before = self.ranges.range(..=extent.offset).next_back();
        let first = before.map_or(extent.offset, |(&start, _)| start);
        self.ranges.range(first..extent.end).filter_map(move |(&offset, &end)| Extent { offset, end }.clip(extent))
    }

    /// The parts of `extent` that are not in the set, in order.
    pub fn missing_in(&self, extent: Extent) -> impl Iterator<Item = Extent> + '_ {
        let mut next = extent.offset;
        let past_the_end = Extent { offset: extent.end, end: extent.end };
        self.within(extent).chain([past_the_end]).filter_map(move |part| {
            let gap = Extent::between(next, part.offset);
            next = part.end;
            gap
        })
    }

    /// Whether all of `extent` is in the set.
    #[must_use]
    pub fn contains(&self, extent: Extent) -> bool {
        self.missing_in(extent).next().is_none()
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        self.iter().flat_map(|extent| other.missing_in(extent)).collect()
    }

    /// The set as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.count() * 6);
        put_varint(&mut bytes, self.count() as u64);
        let mut last = 0;
        for extent in self.iter() {
            put_varint(&mut bytes, extent.offset - last);
            put_varint(&mut bytes, extent.length());
            last = extent.end;
        }
        bytes
    }

    /// The set that was encoded.
    ///
    /// # Errors
    /// When the bytes are no such encoding; nothing is allocated by a number in them before it is checked.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = bytes;
        let count = take_varint(&mut rest)?;
        if count > RANGES_MAX as u64 || count > rest.len() as u64 / 2 {
            return Err(DecodeError::Count { count, length: bytes.len() });
        }
        let (mut ranges, mut last) = (BTreeMap::new(), 0_u64);
        for index in 0..count {
            let (gap, length) = (take_varint(&mut rest)?, take_varint(&mut rest)?);
            let offset = last.checked_add(gap).ok_or(DecodeError::Damaged)?;
            let extent = Extent::new(offset, length).ok_or(DecodeError::Damaged)?;
            if gap == 0 && index > 0 {
                return Err(DecodeError::Damaged);
            }
            ranges.insert(extent.offset, extent.end);
            last = extent.end;
        }
        if rest.is_empty() { Ok(Self { ranges }) } else { Err(DecodeError::Damaged) }
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = Self::new();
        extents.into_iter().for_each(|extent| set.insert(extent));
        set
    }
}

/// Seven bits a byte, lowest first, the top bit set in all but the last.
fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push((value & 0x7f) as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(DecodeError::Damaged)?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        // Neither bits that do not fit, nor a last byte that adds nothing: each number has one encoding.
        if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
            return Err(DecodeError::Damaged);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 256;

    fn extent() -> impl Strategy<Value = Extent> {
        (0..SIZE as u64 - 1).prop_flat_map(|offset| {
            (Just(offset), offset + 1..SIZE as u64)
                .prop_map(|(offset, end)| Extent::between(offset, end).expect("not empty"))
        })
    }

    fn steps() -> impl Strategy<Value = Vec<(bool, Extent)>> {
        proptest::collection::vec((any::<bool>(), extent()), 0..40)
    }

    fn indices(extent: Extent) -> std::ops::Range<usize> {
        let index = |value| usize::try_from(value).expect("small");
        index(extent.offset())..index(extent.end())
    }

    fn fill(model: &mut [bool], extent: Extent, value: bool) {
        model[indices(extent)].fill(value);
    }

    fn build(steps: &[(bool, Extent)]) -> (ExtentSet, Vec<bool>) {
        let (mut set, mut model) = (ExtentSet::new(), vec![false; SIZE]);
        for &(add, extent) in steps {
            if add {
                set.insert(extent)
            } else {
                set.remove(extent)
            }
            fill(&mut model, extent, add);
        }
        (set, model)
    }

    fn bitmap(extents: impl Iterator<Item = Extent>) -> Vec<bool> {
        let mut bits = vec![false; SIZE];
        extents.for_each(|extent| fill(&mut bits, extent, true));
        bits
    }

    proptest! {
        #[test]
        fn a_set_is_the_bitmap_it_stands_for(steps in steps(), probe in extent()) {
            let (set, model) = build(&steps);
            prop_assert_eq!(bitmap(set.iter()), model.clone());
            prop_assert_eq!(set.total(), model.iter().filter(|bit| **bit).count() as u64);
            let touching = set.iter().zip(set.iter().skip(1)).any(|(a, b)| a.end() >= b.offset());
            prop_assert!(!touching, "ranges are kept merged");
            let window = indices(probe);
            prop_assert_eq!(set.contains(probe), model[window.clone()].iter().all(|bit| *bit));
            let inside: Vec<bool> = (0..SIZE).map(|i| window.contains(&i) && model[i]).collect();
            let outside: Vec<bool> = (0..SIZE).map(|i| window.contains(&i) && !model[i]).collect();
            prop_assert_eq!(bitmap(set.within(probe)), inside);
            prop_assert_eq!(bitmap(set.missing_in(probe)), outside);
        }

        #[test]
        fn subtraction_is_that_of_bitmaps(a in steps(), b in steps()) {
            let ((a, model_a), (b, model_b)) = (build(&a), build(&b));
            let expected: Vec<bool> = model_a.iter().zip(&model_b).map(|(a, b)| *a && !*b).collect();
            prop_assert_eq!(bitmap(a.subtract(&b).iter()), expected);
        }

        #[test]
        fn a_set_comes_back_from_its_encoding(steps in steps()) {
            let (set, _) = build(&steps);
            prop_assert_eq!(ExtentSet::decode(&set.encode()), Ok(set));
        }

        #[test]
        fn what_decodes_has_one_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Ok(set) = ExtentSet::decode(&bytes) {
                prop_assert_eq!(set.encode(), bytes);
            }
        }

        #[test]
        fn splitting_loses_nothing_and_passes_no_multiple(extent in extent(), unit in 1_u64..50) {
            let parts: Vec<Extent> = extent.split(unit).collect();
            prop_assert_eq!(parts.first().map(|part| part.offset()), Some(extent.offset()));
            prop_assert_eq!(parts.last().map(|part| part.end()), Some(extent.end()));
            prop_assert!(parts.windows(2).all(|pair| pair[0].end() == pair[1].offset()));
            prop_assert!(parts.iter().all(|part| part.offset() / unit == (part.end() - 1) / unit));
        }

        #[test]
        fn aligning_grows_by_less_than_a_unit(extent in extent(), unit in 1_u64..50) {
            let aligned = extent.aligned(unit, SIZE as u64);
            prop_assert!(aligned.offset() <= extent.offset() && aligned.end() >= extent.end());
            prop_assert!(aligned.offset().is_multiple_of(unit) && extent.offset() - aligned.offset() < unit);
            prop_assert!(aligned.end().is_multiple_of(unit) || aligned.end() == SIZE as u64);
            prop_assert!(aligned.end() - extent.end() < unit);
        }
    }

    #[test]
    fn ranges_at_the_very_end_of_the_number_line_are_kept() {
        let last = Extent::between(u64::MAX - 5, u64::MAX).expect("not empty");
        assert_eq!(Extent::new(u64::MAX, 1), None);
        assert_eq!(last.split(4).map(Extent::length).sum::<u64>(), 5);
        assert_eq!(last.aligned(4096, u64::MAX).end(), u64::MAX);
        let set: ExtentSet = [last].into_iter().collect();
        assert_eq!(ExtentSet::decode(&set.encode()), Ok(set));
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused_before_allocating() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, u64::MAX);
        assert!(matches!(ExtentSet::decode(&bytes), Err(DecodeError::Count { .. })));
    }
}
