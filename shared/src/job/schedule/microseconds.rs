//! Lengths of time in whole microseconds: what instants here and CIM's intervals are made of.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whole microseconds of a length of time, held to what 64 bits hold.
pub(super) fn of(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

/// Whether it can be written without loss.
pub(super) fn fits(length: Duration) -> bool {
    Duration::from_micros(of(length)) == length
}

pub(super) fn serialize<S: Serializer>(length: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    of(*length).serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_micros)
}
