//! CIM's datetime: one text of 25 characters that is an instant or a length of time.
//!
//! ```text
//!   20261121224703.000001+000    an instant:  yyyymmddHHMMSS . microseconds, then minutes east (+) or west (-) of UTC
//!   00000001120032.000000:000    an interval: ddddddddHHMMSS . microseconds, then always :000
//! ```
//!
//! A whole field of an instant that is not used is written in asterisks. Several properties may hold either kind, and give
//! a meaning of their own to all zeroes and all nines, which are no instants: hence [`CimDateTime`], of which each text is
//! exactly one value, and which prints the text that it was parsed from.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Every CIM datetime has that many characters.
pub const DATETIME_LENGTH: usize = 25;

/// The most of a wrong text that an error repeats, in characters.
const SHOWN_MAX: usize = 48;

/// An instant. A field may be unused; a `Timestamp` can be made of it only when none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CimTimestamp {
    year: Option<u16>,
    month: Option<u8>,
    day: Option<u8>,
    hour: Option<u8>,
    minute: Option<u8>,
    second: Option<u8>,
    microsecond: Option<u32>,
    /// Whether the offset is written with `-`. Kept beside the minutes, since `-000` is a text of its own.
    west: bool,
    offset_minutes: Option<u16>,
}

/// A length of time, from nothing to 99 999 999 days and the rest of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = r"^[0-9]{14}\.[0-9]{6}:000$")))]
#[serde(try_from = "String", into = "String")]
pub struct CimInterval {
    microseconds: u64,
}

/// What a property holds that may be an instant, an interval, or a word in zeroes or nines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = r"^[0-9*]{14}\.[0-9*]{6}[+:-][0-9]{3}$")))]
#[serde(try_from = "String", into = "String")]
pub enum CimDateTime {
    /// An instant.
    Timestamp(CimTimestamp),
    /// A length of time.
    Interval(CimInterval),
    /// All zeroes in the shape of an instant. What it means is the property's to say.
    Zeroes,
    /// All nines.
    Forever(Forever),
}

/// All nines. No literal is published, and four are found: either shape, with zeroes or nines at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forever(&'static str);

const ZEROES: &str = "00000000000000.000000+000";
const NINES: [&str; 4] = [
    "99999999999999.999999:000",
    "99999999999999.999999:999",
    "99999999999999.999999+000",
    "99999999999999.999999+999",
];

/// Why a text is no CIM datetime, or none of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDateTime {
    /// It is too long, too short, or has characters that no datetime has.
    #[error(
        "{text:?} has {length} characters; a CIM datetime is {DATETIME_LENGTH} of 0-9 * . + - : such as \
         20261121224703.000000+000"
    )]
    Length {
        /// The text, or its beginning.
        text: String,
        /// Its length in characters.
        length: usize,
    },
    /// The point is not where it must be.
    #[error(
        "{text:?} has no point before its microseconds; write it after 14 characters, as in 20261121224703.000000+000"
    )]
    Point {
        /// The text.
        text: String,
    },
    /// It is neither an instant nor an interval.
    #[error("{text:?} has {found:?} after its microseconds; write + or - for an instant, : for an interval")]
    Kind {
        /// The text.
        text: String,
        /// What stands there.
        found: char,
    },
    /// A field is no number, or one out of its range.
    #[error("{text:?} has {found:?} for its {field}; write {least} to {most}, with leading zeroes")]
    Field {
        /// The text.
        text: String,
        /// Which field.
        field: &'static str,
        /// What stands there.
        found: String,
        /// The least that may stand there.
        least: u32,
        /// The most.
        most: u32,
    },
    /// The month has fewer days.
    #[error("{text:?} has day {day} of a month of {days} days")]
    Day {
        /// The text.
        text: String,
        /// The day.
        day: u8,
        /// The days of that month.
        days: u8,
    },
    /// An interval where an instant must be.
    #[error("{text:?} is an interval; write an instant, such as 20261121224703.000000+000")]
    NotTimestamp {
        /// The text.
        text: String,
    },
    /// An instant where an interval must be.
    #[error("{text:?} is an instant; write an interval, such as 00000001120032.000000:000")]
    NotInterval {
        /// The text.
        text: String,
    },
    /// A field that is needed is unused.
    #[error("{text:?} leaves its {field} open; one point in time needs every field")]
    Open {
        /// The text.
        text: String,
        /// Which field.
        field: &'static str,
    },
    /// No [`Timestamp`] goes that far.
    #[error("{text:?} is not before 9999-12-30 22:00 UTC, the last instant there is here")]
    TooLate {
        /// The text.
        text: String,
    },
}

impl CimDateTime {
    /// Of a time of submission: there is none to report.
    pub const NOT_REPORTED: Self = Self::Zeroes;
    /// Of a scheduled start: the job is past it.
    pub const ALREADY_EXECUTING: Self = Self::Zeroes;
    /// Of the last change of state: there was none.
    pub const UNCHANGED: Self = Self::Interval(CimInterval::ZERO);
    /// Of an end: there is none. Printed as an interval, whose days alone could not be exceeded.
    pub const FOREVER: Self = Self::Forever(Forever(NINES[0]));

    /// Whether it is all zeroes, in either shape.
    #[must_use]
    pub fn is_zeroes(self) -> bool {
        matches!(self, Self::Zeroes | Self::UNCHANGED)
    }
}

impl From<Timestamp> for CimDateTime {
    fn from(at: Timestamp) -> Self {
        Self::Timestamp(at.into())
    }
}

impl FromStr for CimDateTime {
    type Err = InvalidDateTime;
    fn from_str(text: &str) -> Result<Self, InvalidDateTime> {
        if text == ZEROES {
            return Ok(Self::Zeroes);
        }
        if let Some(nines) = NINES.into_iter().find(|nines| *nines == text) {
            return Ok(Self::Forever(Forever(nines)));
        }
        let parts = Parts::of(text)?;
        if parts.kind == ':' { parts.interval().map(Self::Interval) } else { parts.timestamp().map(Self::Timestamp) }
    }
}

impl fmt::Display for CimDateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timestamp(timestamp) => timestamp.fmt(f),
            Self::Interval(interval) => interval.fmt(f),
            Self::Zeroes => f.pad(ZEROES),
            Self::Forever(Forever(nines)) => f.pad(nines),
        }
    }
}

/// An instant in UTC, to the microsecond. Years before 0, which four digits cannot say, become the beginning of year 0.
impl From<Timestamp> for CimTimestamp {
    fn from(at: Timestamp) -> Self {
        // Of the last second that a Timestamp can be in, jiff takes none of the microseconds.
        let instant = jiff::Timestamp::from_microsecond(at.unix_microseconds()).unwrap_or(jiff::Timestamp::MAX);
        let earliest = jiff::civil::datetime(0, 1, 1, 0, 0, 0, 0);
        let civil = jiff::tz::Offset::UTC.to_datetime(instant).max(earliest);
        Self {
            year: Some(civil.year().unsigned_abs()),
            month: Some(civil.month().unsigned_abs()),
            day: Some(civil.day().unsigned_abs()),
            hour: Some(civil.hour().unsigned_abs()),
            minute: Some(civil.minute().unsigned_abs()),
            second: Some(civil.second().unsigned_abs()),
            microsecond: Some(civil.subsec_nanosecond().unsigned_abs() / 1000),
            west: false,
            offset_minutes: Some(0),
        }
    }
}

impl TryFrom<CimTimestamp> for Timestamp {
    type Error = InvalidDateTime;
    fn try_from(cim: CimTimestamp) -> Result<Self, InvalidDateTime> {
        let text = || cim.to_string();
        let open = |field| move || InvalidDateTime::Open { text: cim.to_string(), field };
        let small = |value: Option<u8>, field| value.map(u8::cast_signed).ok_or_else(open(field));
        let civil = jiff::civil::DateTime::new(
            cim.year.ok_or_else(open("year"))?.cast_signed(),
            small(cim.month, "month")?,
            small(cim.day, "day")?,
            small(cim.hour, "hour")?,
            small(cim.minute, "minute")?,
            small(cim.second, "second")?,
            (cim.microsecond.ok_or_else(open("microseconds"))? * 1000).cast_signed(),
        );
        let minutes = i32::from(cim.offset_minutes.ok_or_else(open("offset"))?);
        let offset = jiff::tz::Offset::from_seconds(60 * if cim.west { -minutes } else { minutes });
        let instant = civil.and_then(|civil| offset?.to_timestamp(civil));
        let instant = instant.map_err(|_| InvalidDateTime::TooLate { text: text() })?;
        Ok(Self::from_unix_microseconds(instant.as_microsecond()))
    }
}

impl FromStr for CimTimestamp {
    type Err = InvalidDateTime;
    fn from_str(text: &str) -> Result<Self, InvalidDateTime> {
        Parts::of(text)?.timestamp()
    }
}

impl fmt::Display for CimTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |value: Option<u32>, width: usize| match value {
            Some(value) => format!("{value:0width$}"),
            None => "*".repeat(width),
        };
        let pairs = [self.month, self.day, self.hour, self.minute, self.second];
        let pairs: String = pairs.into_iter().map(|pair| field(pair.map(u32::from), 2)).collect();
        f.pad(&format!(
            "{}{pairs}.{}{}{}",
            field(self.year.map(u32::from), 4),
            field(self.microsecond, 6),
            if self.west { '-' } else { '+' },
            field(self.offset_minutes.map(u32::from), 3),
        ))
    }
}

impl CimInterval {
    /// No time at all.
    pub const ZERO: Self = Self { microseconds: 0 };
    /// The longest that can be written: 99 999 999 days and all but a microsecond of one more.
    pub const MAX: Self = Self { microseconds: 100_000_000 * MICROSECONDS_A_DAY - 1 };

    /// That many microseconds, held to [`CimInterval::MAX`].
    #[must_use]
    pub fn from_microseconds(microseconds: u64) -> Self {
        Self { microseconds }.min(Self::MAX)
    }

    /// That many seconds.
    #[must_use]
    pub fn from_seconds(seconds: u32) -> Self {
        Self::from_microseconds(u64::from(seconds) * MICROSECONDS_A_SECOND)
    }

    /// From one instant to another; none where a clock went back.
    #[must_use]
    pub fn between(earlier: Timestamp, later: Timestamp) -> Self {
        let microseconds = later.unix_microseconds().saturating_sub(earlier.unix_microseconds());
        Self::from_microseconds(u64::try_from(microseconds).unwrap_or(0))
    }

    /// Its length in microseconds.
    #[must_use]
    pub const fn microseconds(self) -> u64 {
        self.microseconds
    }
}

const MICROSECONDS_A_SECOND: u64 = 1_000_000;
const MICROSECONDS_A_DAY: u64 = 86_400 * MICROSECONDS_A_SECOND;

impl FromStr for CimInterval {
    type Err = InvalidDateTime;
    fn from_str(text: &str) -> Result<Self, InvalidDateTime> {
        Parts::of(text)?.interval()
    }
}

impl fmt::Display for CimInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.microseconds / MICROSECONDS_A_SECOND, self.microseconds % MICROSECONDS_A_SECOND);
        let (days, hour, minute, second) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        f.pad(&format!("{days:08}{hour:02}{minute:02}{second:02}.{rest:06}:000"))
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = InvalidDateTime;
            fn try_from(text: String) -> Result<Self, InvalidDateTime> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}
as_text!(CimTimestamp, CimInterval, CimDateTime);

/// A text whose outline is right: ASCII, as long as it must be, with point and kind in their places.
struct Parts<'a> {
    text: &'a str,
    kind: char,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, InvalidDateTime> {
        if text.len() != DATETIME_LENGTH || !text.is_ascii() {
            let shown = text.chars().take(SHOWN_MAX).collect();
            return Err(InvalidDateTime::Length { text: shown, length: text.chars().count() });
        }
        if text.as_bytes()[14] != b'.' {
            return Err(InvalidDateTime::Point { text: text.to_owned() });
        }
        match char::from(text.as_bytes()[21]) {
            kind @ ('+' | '-' | ':') => Ok(Self { text, kind }),
            found => Err(InvalidDateTime::Kind { text: text.to_owned(), found }),
        }
    }

    fn timestamp(&self) -> Result<CimTimestamp, InvalidDateTime> {
        if self.kind == ':' {
            return Err(InvalidDateTime::NotTimestamp { text: self.text.to_owned() });
        }
        let cim = CimTimestamp {
            year: self.optional("year", 0, 4, 0..=9999)?,
            month: self.optional("month", 4, 2, 1..=12)?,
            day: self.optional("day", 6, 2, 1..=31)?,
            hour: self.optional("hour", 8, 2, 0..=23)?,
            minute: self.optional("minute", 10, 2, 0..=59)?,
            second: self.optional("second", 12, 2, 0..=59)?,
            microsecond: self.optional("microseconds", 15, 6, 0..=999_999)?,
            west: self.kind == '-',
            offset_minutes: self.optional("offset", 22, 3, 0..=999)?,
        };
        let days = days_of(cim.year, cim.month);
        match cim.day {
            Some(day) if day > days => Err(InvalidDateTime::Day { text: self.text.to_owned(), day, days }),
            _ => Ok(cim),
        }
    }

    fn interval(&self) -> Result<CimInterval, InvalidDateTime> {
        if self.kind != ':' {
            return Err(InvalidDateTime::NotInterval { text: self.text.to_owned() });
        }
        let field = |field, start, width, range| self.number(field, start, width, range).map(u64::from);
        field("end", 22, 3, 0..=0)?;
        let days = field("days", 0, 8, 0..=99_999_999)?;
        let hours = days * 24 + field("hours", 8, 2, 0..=23)?;
        let minutes = hours * 60 + field("minutes", 10, 2, 0..=59)?;
        let seconds = minutes * 60 + field("seconds", 12, 2, 0..=59)?;
        let microseconds = seconds * MICROSECONDS_A_SECOND + field("microseconds", 15, 6, 0..=999_999)?;
        Ok(CimInterval { microseconds })
    }

    /// A field that may be all asterisks.
    fn optional<T: TryFrom<u32>>(
        &self,
        field: &'static str,
        start: usize,
        width: usize,
        range: RangeInclusive<u32>,
    ) -> Result<Option<T>, InvalidDateTime> {
        if self.text[start..start + width].bytes().all(|byte| byte == b'*') {
            return Ok(None);
        }
        self.number(field, start, width, range).map(|number| T::try_from(number).ok())
    }

    fn number(
        &self,
        field: &'static str,
        start: usize,
        width: usize,
        range: RangeInclusive<u32>,
    ) -> Result<u32, InvalidDateTime> {
        let found = &self.text[start..start + width];
        // A sign would be read as part of the number.
        let number = found.bytes().all(|byte| byte.is_ascii_digit()).then(|| found.parse().ok()).flatten();
        number.filter(|number| range.contains(number)).ok_or_else(|| InvalidDateTime::Field {
            text: self.text.to_owned(),
            field,
            found: found.to_owned(),
            least: *range.start(),
            most: *range.end(),
        })
    }
}

/// The most days that the month can have: where it or its year is unused, the longest that fits.
fn days_of(year: Option<u16>, month: Option<u8>) -> u8 {
    let leap = year.is_none_or(|year| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    match month {
        Some(2) => 28 + u8::from(leap),
        Some(4 | 6 | 9 | 11) => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests;
