//! Instants. Where one is read from a clock is decided at the edges; here they are only compared, printed and parsed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An instant with microseconds, printed as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("format" = "date-time")))]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(jiff::Timestamp);

/// A text that is no instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an RFC 3339 time such as 2026-11-21T22:47:03.000000Z")]
pub struct InvalidTimestamp {
    text: String,
}

impl Timestamp {
    /// The instant that many microseconds after 1970 began, held to the range that can be printed.
    #[must_use]
    pub fn from_unix_microseconds(microseconds: i64) -> Self {
        let fallback = if microseconds < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        Self(jiff::Timestamp::from_microsecond(microseconds).unwrap_or(fallback))
    }

    /// Microseconds since 1970 began.
    #[must_use]
    pub fn unix_microseconds(self) -> i64 {
        self.0.as_microsecond()
    }

    /// Seconds from `earlier` to here; negative where a clock went back.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        let microseconds = self.unix_microseconds() - earlier.unix_microseconds();
        // A difference of printable instants is far below 2^53 microseconds.
        #[allow(clippy::cast_precision_loss)]
        let seconds = microseconds as f64 / 1e6;
        seconds
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.6}", self.0))
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        text.parse().map(Self).map_err(|_| InvalidTimestamp { text: text.chars().take(48).collect() })
    }
}

impl TryFrom<String> for Timestamp {
    type Error = InvalidTimestamp;
    fn try_from(text: String) -> Result<Self, InvalidTimestamp> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(at: Timestamp) -> Self {
        at.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_microseconds_in_utc() {
        let at = Timestamp::from_unix_microseconds(1_795_300_023_000_001);
        assert_eq!(at.to_string().parse(), Ok(at));
        assert!(at.to_string().ends_with(".000001Z"), "{at}");
        assert!("yesterday".parse::<Timestamp>().is_err());
    }
}
