//! Averages over the last minutes, of a count that grows: what a replicating step says of its rate.
//!
//! Whoever follows a job feeds what it hears of its progress; samples that say nothing new about the last half hour go, so that
//! a job of days takes no more room than one of an hour.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

const SECOND_US: i64 = 1_000_000;
const TWO_MINUTES: u32 = 120;
const THIRTY_MINUTES: u32 = 1800;
/// The longest time that an average is asked for.
const KEPT_US: i64 = 30 * 60 * SECOND_US;
/// Between two samples that are kept. An average over two minutes is right to a twelfth of what changed meanwhile.
const SPACING_US: i64 = 10 * SECOND_US;
/// The most samples that are kept: 180 of half an hour, the one before them, and the newest, which waits for its place.
pub const SAMPLES_MAX: usize = 182;

/// What was counted when, of late.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Averages {
    /// The oldest first; both times and counts only grow.
    samples: VecDeque<(Timestamp, u64)>,
}

/// Averages as they were at an instant, in bytes a second; none where nothing tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rates {
    /// Over two minutes.
    pub two_minutes: Option<u64>,
    /// Over half an hour.
    pub thirty_minutes: Option<u64>,
}

impl Averages {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// So many bytes had been done by then, in all. A count or a clock that went back is of a new beginning: what was before it is
    /// forgotten.
    pub fn feed(&mut self, at: Timestamp, bytes: u64) {
        match self.samples.back() {
            Some((last, count)) if at < *last || bytes < *count => self.samples.clear(),
            Some((last, _)) if at == *last => _ = self.samples.pop_back(),
            _ => {}
        }
        // The newest is always kept, and gives way to a newer one until it is far enough from the one before it.
        if let [.., before, last] = self.samples.make_contiguous()
            && last.0.unix_microseconds().saturating_sub(before.0.unix_microseconds()) < SPACING_US
        {
            self.samples.pop_back();
        }
        self.samples.push_back((at, bytes));
        // One that is older than asked for is kept, from which the count at the beginning is reckoned.
        let beginning = at.unix_microseconds().saturating_sub(KEPT_US);
        while self.samples.get(1).is_some_and(|(second, _)| second.unix_microseconds() <= beginning) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second over so many seconds before an instant, at most half an hour; none where nothing tells.
    #[must_use]
    pub fn rate(&self, seconds: u32, until: Timestamp) -> Option<u64> {
        let beginning = until.unix_microseconds().saturating_sub(i64::from(seconds).saturating_mul(SECOND_US));
        let known = self.samples.iter().take_while(|(at, _)| *at <= until);
        let known: Vec<(i64, u64)> = known.map(|(at, bytes)| (at.unix_microseconds(), *bytes)).collect();
        let (end, total) = known.last().copied().filter(|(at, _)| *at > beginning)?;
        let first_in = known.iter().position(|(at, _)| *at >= beginning)?;
        let (from, bytes) = match first_in.checked_sub(1) {
            Some(before) => (beginning, count_at(beginning, known[before], known[first_in])),
            None => known[first_in],
        };
        rate(total.saturating_sub(bytes), end.saturating_sub(from))
    }

    /// What a replicating step says of its rate.
    #[must_use]
    pub fn rates(&self, until: Timestamp) -> Rates {
        let over = |seconds| self.rate(seconds, until);
        Rates { two_minutes: over(TWO_MINUTES), thirty_minutes: over(THIRTY_MINUTES) }
    }

    /// How many samples it keeps: [`SAMPLES_MAX`] at most.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether it knows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// Bytes a second, of so many in so many microseconds; none where no time has passed.
pub(super) fn rate(bytes: u64, microseconds: i64) -> Option<u64> {
    let microseconds = u128::try_from(microseconds).ok().filter(|microseconds| *microseconds > 0)?;
    Some(u64::try_from(u128::from(bytes) * 1_000_000 / microseconds).unwrap_or(u64::MAX))
}

/// What the count was between two samples, as if it had grown evenly.
fn count_at(at: i64, (before, low): (i64, u64), (after, high): (i64, u64)) -> u64 {
    let whole = u128::from(after.abs_diff(before)).max(1);
    let grown = u128::from(high.saturating_sub(low)) * u128::from(at.abs_diff(before)) / whole;
    low.saturating_add(u64::try_from(grown).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_unix_microseconds(1_795_300_000_000_000 + milliseconds * 1000)
    }

    /// Two samples a second, at so many bytes a second.
    fn steady(seconds: i64, rate: u64) -> Averages {
        let mut averages = Averages::new();
        for half in 0..=seconds * 2 {
            averages.feed(at(half * 500), half.unsigned_abs() * rate / 2);
        }
        averages
    }

    #[test]
    fn a_steady_rate_is_that_rate_over_any_time() {
        for seconds in [1, 5, 119, 121, 1799, 1801, 90_000] {
            let averages = steady(seconds, 1000);
            assert!(averages.len() <= SAMPLES_MAX, "{} samples", averages.len());
            for over in [120, 1800] {
                assert_eq!(averages.rate(over, at(seconds * 1000)), Some(1000), "{over} of {seconds} s");
            }
        }
    }

    #[test]
    fn a_change_shows_in_the_shorter_average_first() {
        let mut averages = steady(3600, 1000);
        for second in 3601..=3720 {
            averages.feed(at(second * 1000), 3_600_000 + (second - 3600).unsigned_abs() * 5000);
        }
        let until = at(3_720_000);
        assert_eq!(averages.rate(120, until), Some(5000));
        assert_eq!(averages.rate(1800, until), Some((1680 * 1000 + 120 * 5000) / 1800));
        assert_eq!(averages.rate(120, at(3_600_000)), Some(1000), "as it was then");
    }

    #[test]
    fn nothing_is_made_up() {
        assert_eq!(Averages::new().rate(120, at(0)), None);
        let mut one = Averages::new();
        one.feed(at(0), 5);
        assert_eq!(one.rate(120, at(0)), None, "one sample is no rate");
        let old = steady(100, 1000);
        assert_eq!(old.rate(120, at(300_000)), None, "nothing was heard of for longer");
        assert_eq!(old.rate(1800, at(300_000)), Some(1000));
    }

    #[test]
    fn what_begins_anew_forgets() {
        let mut averages = steady(100, 1000);
        averages.feed(at(101_000), 7);
        assert_eq!((averages.len(), averages.rate(120, at(101_000))), (1, None));
        averages.feed(at(102_000), 27);
        assert_eq!(averages.rate(120, at(102_000)), Some(20));
        averages.feed(at(50_000), 30);
        assert_eq!(averages.len(), 1, "a clock that went back");
    }

    proptest! {
        #[test]
        fn whatever_is_fed_it_stays_small_and_between(steps in prop::collection::vec((1_i64..40_000, 0_u64..1 << 40), 1..600)) {
            let mut averages = Averages::new();
            let (mut milliseconds, mut bytes) = (0, 0);
            let mut fastest = 0;
            for (pause, more) in steps {
                milliseconds += pause;
                bytes += more;
                averages.feed(at(milliseconds), bytes);
                prop_assert!(averages.len() <= SAMPLES_MAX);
                fastest = fastest.max(u128::from(more) * 1000 / u128::from(pause.unsigned_abs()));
            }
            for over in [120, 1800] {
                if let Some(rate) = averages.rate(over, at(milliseconds)) {
                    // The count at the beginning is rounded down: that makes a byte more, in a millisecond at least.
                    prop_assert!(u128::from(rate) <= fastest + 1001, "{rate} is more than {fastest}");
                }
            }
        }
    }
}
