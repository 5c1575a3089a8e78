//! How long a replication lasts: until it expires, which may be pushed back; or until it is finalized, for good.

use serde::{Deserialize, Serialize};

use crate::id::HostId;
use crate::time::Timestamp;

/// How often an expiry may be pushed back. With Google it is once; there, by 100 days.
pub const EXTENSIONS_MAX: u32 = 10;
/// By how long it is where nobody says, in seconds: Google's 100 days.
pub const EXTENSION_DEFAULT_SECONDS: u32 = 100 * 86_400;
/// By how long at most, in seconds: ten years.
pub const EXTENSION_MAX_SECONDS: u32 = 3_650 * 86_400;
/// How long before a replication expires it says so, in seconds: two weeks, in which it is that Google's can be extended.
pub const EXPIRY_NOTICE_SECONDS: u32 = 14 * 86_400;

/// When a replication expires: from then on no cycle is made. The replica stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Expiration {
    /// When.
    pub at: Timestamp,
    /// How often it was pushed back.
    #[serde(default)]
    pub extensions: u32,
    /// Whether the job has said that it is near.
    #[serde(default)]
    pub noticed: bool,
}

/// A replication is over for good as soon as nothing of it is left: neither the replica nor the way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finalization {
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// The hosts that keep something of it, or may.
    pub hosts: Vec<HostId>,
}

impl Expiration {
    /// At that time, never pushed back so far.
    #[must_use]
    pub const fn at(at: Timestamp) -> Self {
        Self { at, extensions: 0, noticed: false }
    }

    /// Whether it is past.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.at
    }

    /// Whether it is to come, and soon.
    #[must_use]
    pub fn is_near(&self, now: Timestamp) -> bool {
        !self.is_over(now) && after(now, EXPIRY_NOTICE_SECONDS) >= self.at
    }

    /// Whether it may be pushed back.
    #[must_use]
    pub const fn is_extendable(&self) -> bool {
        self.extensions < EXTENSIONS_MAX
    }

    /// The same, that much later; counted from now where it is past, so that it is to come again. None where it was pushed back often
    /// enough.
    #[must_use]
    pub fn extended(&self, by_seconds: u32, now: Timestamp) -> Option<Self> {
        let at = after(self.at.max(now), by_seconds);
        self.is_extendable().then(|| Self { at, extensions: self.extensions + 1, noticed: false })
    }
}

fn after(instant: Timestamp, seconds: u32) -> Timestamp {
    Timestamp::from_unix_microseconds(instant.unix_microseconds().saturating_add(i64::from(seconds) * 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_microseconds(second * 1_000_000)
    }

    #[test]
    fn it_is_near_for_two_weeks_and_then_over() {
        let expiration = Expiration::at(at(2_000_000));
        let stands = |second: i64| (expiration.is_near(at(second)), expiration.is_over(at(second)));
        assert_eq!(stands(2_000_000 - 14 * 86_400 - 1), (false, false));
        assert_eq!(stands(2_000_000 - 14 * 86_400), (true, false));
        assert_eq!(stands(1_999_999), (true, false));
        assert_eq!(stands(2_000_000), (false, true));
    }

    #[test]
    fn it_is_pushed_back_so_often_and_to_come_again() {
        let first = Expiration { noticed: true, ..Expiration::at(at(100)) };
        assert_eq!(first.extended(50, at(10)), Some(Expiration { extensions: 1, ..Expiration::at(at(150)) }));
        assert_eq!(first.extended(50, at(900)).map(|later| later.at), Some(at(950)), "it was past");
        let last = (0..EXTENSIONS_MAX).try_fold(first, |expiration, _| expiration.extended(1, at(0)));
        let last = last.expect("as often as it may be");
        assert_eq!((last.at, last.is_extendable(), last.extended(1, at(0))), (at(110), false, None));
        let far = Expiration::at(Timestamp::from_unix_microseconds(i64::MAX));
        assert_eq!(far.extended(u32::MAX, at(0)).map(|later| later.at), Some(far.at), "there is nothing after it");
    }
}
