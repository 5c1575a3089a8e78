//! The wall clock: read here and nowhere else, and only to tell people when something happened. What to do next is
//! never decided by it, but for how long jobs are remembered that are over, and how long planned VMs are held.

use std::time::SystemTime;

use sterna_shared::time::Timestamp;

/// The present instant.
#[must_use]
#[allow(clippy::disallowed_methods)] // This is the one place.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_microseconds(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}
