//! How to reach NATS: the same section `[nats]` in every configuration file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the broker is and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsSettings {
    /// Servers of one cluster, such as `tls://nats.example:4222`; tried in turn.
    pub servers: Vec<String>,
    /// The authority that the servers' certificates are of. The system's own where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// An nkey seed (`SU…`), mode 0600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nkey_file: Option<PathBuf>,
    /// A credentials file (JWT and seed), mode 0600, in place of an nkey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
}

/// The oldest nats-server that works: the first with the API that KV buckets are read by.
pub const NATS_VERSION_MIN: (u64, u64, u64) = (2, 10, 0);
/// The oldest nats-server without known security faults; `sterna doctor` warns below it.
pub const NATS_VERSION_ADVISED: (u64, u64, u64) = (2, 12, 7);

/// The three numbers of a version such as `2.12.8-RC.1`.
#[must_use]
pub fn version_numbers(text: &str) -> Option<(u64, u64, u64)> {
    let release = text.trim().trim_start_matches('v').split(['-', '+']).next()?;
    let mut numbers = release.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(version_numbers("2.9.10") < Some(NATS_VERSION_MIN));
        assert!(version_numbers("2.10.26") > Some(NATS_VERSION_MIN));
        assert_eq!(version_numbers("v2.12.8-RC.1"), Some((2, 12, 8)));
        assert_eq!(version_numbers("new"), None);
    }
}
