//! What each page of memory and each body of a record holds: words that follow from a few numbers and do not compress.
//!
//! xorshift64 from a mixed start: three shifts a word, which is what an emulated processor does fast, and no repetition
//! that a compressor or a zero-page check could use.

/// Bytes in a page of the pattern.
pub const PAGE_BYTES: usize = 4096;
/// Words in a page of the pattern.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Versions back that [`diagnose`] recognises: a page that a move brought in an older state.
const STALE_VERSIONS_MAX: u32 = 64;

/// The endless sequence of words that follows from three numbers.
#[derive(Debug, Clone)]
pub struct Words(u64);

impl Words {
    /// The sequence for `(seed, index, version)`; different triples give unrelated sequences.
    pub fn new(seed: u64, index: u64, version: u64) -> Self {
        // xorshift has one fixed point, zero.
        Self(mix(mix(mix(seed) ^ index) ^ version) | 1)
    }
}

impl Iterator for Words {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some(self.0)
    }
}

/// One page of the pattern, aligned as the processor's pages are, so that it is one page of guest memory too.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page(pub [u64; PAGE_WORDS]);

impl Page {
    /// A page of zeroes.
    pub const ZERO: Self = Self([0; PAGE_WORDS]);

    /// Writes the contents of page `index` at `version`.
    pub fn fill(&mut self, seed: u64, index: u64, version: u32) {
        for (word, value) in self.0.iter_mut().zip(Words::new(seed, index, version.into())) {
            *word = value;
        }
    }

    /// The first word that is not as it must be, or `None` when the page is right.
    pub fn first_difference(&self, seed: u64, index: u64, version: u32) -> Option<usize> {
        self.0.iter().zip(Words::new(seed, index, version.into())).position(|(word, value)| *word != value)
    }
}

/// Says what a wrong page holds instead: that tells a lost page from a stale one and from damage.
pub fn diagnose(page: &Page, seed: u64, index: u64, version: u32) -> String {
    if page.0.iter().all(|word| *word == 0) {
        return "zeroes".to_owned();
    }
    let oldest = version.saturating_sub(STALE_VERSIONS_MAX);
    if let Some(stale) = (oldest..version).rev().find(|v| page.first_difference(seed, index, *v).is_none()) {
        return format!("version {stale}, an older state of the page");
    }
    let wrong = page.0.iter().zip(Words::new(seed, index, version.into())).filter(|(word, value)| **word != *value);
    format!("{} wrong words of {PAGE_WORDS}", wrong.count())
}

/// The finishing step of SplitMix64: every bit of the input moves about half of the bits of the output.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A step that is coprime with `count` and near its golden section: `n * step % count` visits every place once a
/// round, scattered, and the place of `n` needs no table.
pub fn scatter_step(count: u64) -> u64 {
    fn gcd(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let start = u64::try_from(u128::from(count) * 618 / 1000).expect("smaller than count").max(1);
    (start..).find(|step| gcd(*step, count) == 1).expect("a number above count is coprime with it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_proves_itself_and_no_other() {
        let mut page = Page::ZERO;
        page.fill(7, 42, 3);
        assert_eq!(page.first_difference(7, 42, 3), None);
        for (seed, index, version) in [(8, 42, 3), (7, 43, 3), (7, 42, 4)] {
            assert!(page.first_difference(seed, index, version).is_some());
        }
        assert_eq!(diagnose(&page, 7, 42, 9), "version 3, an older state of the page");
        assert_eq!(diagnose(&Page::ZERO, 7, 42, 9), "zeroes");
        page.0[511] ^= 1;
        assert_eq!(page.first_difference(7, 42, 3), Some(511));
        assert_eq!(diagnose(&page, 7, 42, 3), "1 wrong words of 512");
    }

    #[test]
    fn scattered_places_are_all_different() {
        for count in [1, 2, 3, 10, 4096, 65_535] {
            let step = scatter_step(count);
            let mut seen = vec![false; usize::try_from(count).expect("small")];
            for n in 0..count {
                let place = usize::try_from(n * step % count).expect("small");
                assert!(!std::mem::replace(&mut seen[place], true), "{count}: {n} falls on a place that is taken");
            }
        }
    }
}
