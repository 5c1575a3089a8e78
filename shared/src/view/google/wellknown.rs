//! How Google's JSON writes what JSON has no type for (the proto's *well-known types*), and what it leaves out.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::time::Timestamp;

const MICROSECONDS: i64 = 1_000_000;
/// The first instant that Google's timestamps can be: the year 1 begins.
const FIRST_US: i64 = -62_135_596_800 * MICROSECONDS;

/// What stands in no JSON where it says nothing: the proto's default values, but for numbers and texts that are known.
pub trait Unset {
    /// Whether it is left out.
    fn is_unset(&self) -> bool;
}

impl<T> Unset for Option<T> {
    fn is_unset(&self) -> bool {
        self.is_none()
    }
}

impl<T> Unset for Vec<T> {
    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl<K, V> Unset for BTreeMap<K, V> {
    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

/// A resource or a part of one: its fields under their names in JSON, each left out where it is [`Unset`].
macro_rules! resource {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $json:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub struct $name {
            $(
                $(#[$field_doc])*
                #[serde(rename = $json, skip_serializing_if = "crate::view::google::wellknown::Unset::is_unset")]
                pub $field: $type,
            )*
        }

        impl $name {
            /// The names of its fields, as they are in JSON.
            pub const FIELDS: &[&str] = &[$($json,)*];
        }

        impl $crate::view::google::wellknown::Unset for $name {
            fn is_unset(&self) -> bool {
                false
            }
        }
    };
}

/// What is written as a text, by its `Display`, and is there always.
macro_rules! text {
    ($($name:ident: $pattern:literal,)*) => { $(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl $crate::view::google::wellknown::Unset for $name {
            fn is_unset(&self) -> bool {
                false
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    )* };
}

pub(super) use {resource, text};

macro_rules! always_there {
    ($($type:ty),*) => { $(impl Unset for $type { fn is_unset(&self) -> bool { false } })* };
}
always_there!(bool, i32, u32, String, &'static str);

/// A message without fields: that it is there is what it says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Empty {}

/// `google.protobuf.Timestamp`: RFC 3339 in UTC (`Z`), with 0, 3, 6 or 9 digits of a second, as few as say it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtoTimestamp(pub Timestamp);

/// `google.protobuf.Duration`: seconds with an `s` behind them, and 0, 3, 6 or 9 digits of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtoDuration {
    microseconds: u64,
}

/// `int64`: a text, since not every reader of JSON has numbers of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Int64(pub u64);

text! {
    ProtoTimestamp: r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.(\d{3}|\d{6}|\d{9}))?Z$",
    ProtoDuration: r"^\d+(\.(\d{3}|\d{6}|\d{9}))?s$",
    Int64: r"^\d+$",
}

impl From<Timestamp> for ProtoTimestamp {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

impl ProtoDuration {
    /// So many seconds.
    #[must_use]
    pub fn from_seconds(seconds: u32) -> Self {
        Self { microseconds: u64::from(seconds) * MICROSECONDS.unsigned_abs() }
    }

    /// So many milliseconds.
    #[must_use]
    pub fn from_milliseconds(milliseconds: u64) -> Self {
        Self { microseconds: milliseconds.saturating_mul(1000) }
    }

    /// From one instant to another; none where a clock went back.
    #[must_use]
    pub fn between(from: Timestamp, to: Timestamp) -> Self {
        let microseconds = to.unix_microseconds().saturating_sub(from.unix_microseconds());
        Self { microseconds: u64::try_from(microseconds).unwrap_or(0) }
    }
}

impl fmt::Display for ProtoTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let microseconds = self.0.unix_microseconds().max(FIRST_US);
        let part = microseconds.rem_euclid(MICROSECONDS);
        let whole = Timestamp::from_unix_microseconds(microseconds - part).to_string();
        let to_the_second = whole.split('.').next().unwrap_or_default();
        write!(f, "{to_the_second}{}Z", fraction(nanoseconds(part.unsigned_abs())))
    }
}

impl fmt::Display for ProtoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = MICROSECONDS.unsigned_abs();
        write!(f, "{}{}s", self.microseconds / second, fraction(nanoseconds(self.microseconds % second)))
    }
}

impl fmt::Display for Int64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The proto's numbers have a sign.
        write!(f, "{}", self.0.min(i64::MAX.unsigned_abs()))
    }
}

fn nanoseconds(microseconds: u64) -> u32 {
    u32::try_from(microseconds * 1000).unwrap_or(0)
}

/// A part of a second: in threes of digits, as many as it needs.
fn fraction(nanoseconds: u32) -> String {
    let all = format!("{nanoseconds:09}");
    let needed = all.trim_end_matches('0').len().div_ceil(3) * 3;
    if needed == 0 { String::new() } else { format!(".{}", &all[..needed]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_second_come_in_threes() {
        for (nanoseconds, text) in [
            (0, ""),
            (500_000_000, ".500"),
            (1_000_000, ".001"),
            (1_000, ".000001"),
            (120_450_000, ".120450"),
            (1, ".000000001"),
            (123_456_789, ".123456789"),
            (999_999_990, ".999999990"),
        ] {
            assert_eq!(fraction(nanoseconds), text);
        }
    }

    #[test]
    fn times_are_as_google_prints_them() {
        let printed = |microseconds| ProtoTimestamp(Timestamp::from_unix_microseconds(microseconds)).to_string();
        assert_eq!(printed(0), "1970-01-01T00:00:00Z");
        assert_eq!(printed(1_795_300_023_000_000), "2026-11-21T22:27:03Z");
        assert_eq!(printed(1_795_300_023_120_000), "2026-11-21T22:27:03.120Z");
        assert_eq!(printed(1_795_300_023_000_001), "2026-11-21T22:27:03.000001Z");
        assert_eq!(printed(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(printed(i64::MIN), "0001-01-01T00:00:00Z", "there is nothing before it");
        assert!(printed(i64::MAX).starts_with("9999-12-3"));
    }

    #[test]
    fn durations_and_long_numbers_are_texts() {
        let at = Timestamp::from_unix_microseconds;
        assert_eq!(ProtoDuration::from_seconds(300).to_string(), "300s");
        assert_eq!(ProtoDuration::between(at(0), at(1_500_000)).to_string(), "1.500s");
        assert_eq!(ProtoDuration::between(at(0), at(7)).to_string(), "0.000007s");
        assert_eq!(ProtoDuration::between(at(7), at(0)).to_string(), "0s");
        assert_eq!(serde_json::to_value(Int64(1 << 60)).expect("JSON"), "1152921504606846976");
        assert_eq!(Int64(u64::MAX).to_string(), i64::MAX.to_string());
        assert_eq!(serde_json::to_string(&Empty {}).expect("JSON"), "{}");
    }
}
