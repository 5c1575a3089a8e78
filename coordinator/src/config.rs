//! The coordinator's configuration file, `/etc/sterna/coordinator.toml`.
//!
//! ```toml
//! name = "coordinator-1"
//!
//! [nats]
//! servers = ["tls://nats.example:4222"]
//! ca_file = "/etc/sterna/ca.pem"
//! nkey_file = "/etc/sterna/coordinator.nk"
//!
//! [retention]
//! events_days = 365
//! archive_days = 90
//!
//! [fence]
//! command = ["/usr/local/sbin/fence", "--off"]
//!
//! [notify.mail]
//! command = ["/usr/local/bin/mail-operators"]
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sterna_shared::bus::NatsSettings;
use sterna_shared::id::HostId;

use crate::fence::Fence;
use crate::notify::{Commands, NotifyCommand};

/// Where the file is, unless told otherwise.
pub const PATH_DEFAULT: &str = "/etc/sterna/coordinator.toml";
/// The largest configuration file that is read.
pub const LENGTH_MAX: u64 = 1 << 20;
/// Servers of the cluster that can be listed.
const SERVERS_MAX: usize = 32;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What this coordinator is called, in logs, answers and the lease. Of the same characters as a host id.
    pub name: HostId,
    /// How to reach NATS.
    pub nats: NatsSettings,
    /// How long things are kept.
    #[serde(default)]
    pub retention: Retention,
    /// What puts a host out of action whose last handover is not resolved; an operator, where it is left out.
    #[serde(default)]
    pub fence: Option<Fence>,
    /// What is run when a job is over that names one of these.
    #[serde(default)]
    pub notify: Commands,
}

/// How long things are kept in JetStream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Events, and with them finished jobs, in days; 0 keeps them for ever. Jobs that are not over stay, however old.
    pub events_days: u32,
    /// What jobs came to, in days since each was over; 0 keeps nothing of them, and no `sterna job history`.
    pub archive_days: u32,
    /// Copies of each stream and bucket in a cluster of nats-servers: 1, 3 or 5.
    pub replicas: u8,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events_days: 0, archive_days: 90, replicas: 1 }
    }
}

/// Why the configuration cannot be used. Each names the file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{} cannot be read; make it after the example in the install page, or give --config FILE", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than [`LENGTH_MAX`].
    #[error("{} has {length} bytes, over the limit of {LENGTH_MAX}; it is hardly a configuration file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// It is not what is expected.
    #[error("{}:{line}: {message}; correct or remove it", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value is out of its range.
    #[error("{}: {key} is {value}; {remedy}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What to give.
        remedy: &'static str,
    },
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and where in it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        let length = std::fs::metadata(path).map_err(read)?.len();
        if length > LENGTH_MAX {
            return Err(ConfigError::TooLong { path: path.into(), length });
        }
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    /// Reads the text of a file; `path` is for messages only.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] or [`ConfigError::Value`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Invalid {
            path: path.into(),
            line: error.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count()),
            message: error.message().replace('\n', " "),
        })?;
        let value = |key, value: String, remedy| Err(ConfigError::Value { path: path.into(), key, value, remedy });
        if !(1..=SERVERS_MAX).contains(&config.nats.servers.len()) {
            let count = format!("a list of {}", config.nats.servers.len());
            return value("nats.servers", count, "give 1 to 32 servers, such as tls://nats.example:4222");
        }
        if config.nats.nkey_file.is_some() && config.nats.credentials_file.is_some() {
            return value("nats.nkey_file", "given beside credentials_file".into(), "give one of the two");
        }
        if !matches!(config.retention.replicas, 1 | 3 | 5) {
            return value("retention.replicas", config.retention.replicas.to_string(), "give 1, 3 or 5");
        }
        let mut faults = config.notify.values().filter_map(NotifyCommand::fault);
        if let Some((key, found, remedy)) = config.fence.as_ref().and_then(Fence::fault).or_else(|| faults.next()) {
            return value(key, found, remedy);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/etc/sterna/coordinator.toml"), text).map_err(|error| error.to_string())
    }

    const SOUND: &str = "name = \"one\"\n\n[nats]\nservers = [\"nats://127.0.0.1:4222\"]\n";

    #[test]
    fn the_least_is_enough() {
        let config = parse(SOUND).expect("sound");
        assert_eq!((config.name.as_str(), config.retention), ("one", Retention::default()));
        let without = parse(&format!("{SOUND}[retention]\narchive_days = 0\n")).expect("sound").retention;
        assert_eq!((Retention::default().archive_days, without.archive_days, without.replicas), (90, 0, 1));
    }

    #[test]
    fn faults_name_file_line_and_remedy() {
        let error = parse(&format!("{SOUND}port = 1\n")).expect_err("unknown key");
        assert!(error.starts_with("/etc/sterna/coordinator.toml:5: unknown field `port`"), "{error}");
        assert!(error.ends_with("correct or remove it"), "{error}");
        let error = parse("name = \"a b\"\n[nats]\nservers = [\"x\"]").expect_err("bad name");
        assert!(error.starts_with("/etc/sterna/coordinator.toml:1: "), "{error}");
        let error = parse(&SOUND.replace("\"nats://127.0.0.1:4222\"", "")).expect_err("no servers");
        assert!(error.contains("nats.servers") && error.contains("give 1 to 32"), "{error}");
        let error = parse(&format!("{SOUND}[retention]\nreplicas = 2\n")).expect_err("two replicas");
        assert!(error.contains("give 1, 3 or 5"), "{error}");
        let error = parse(&format!("{SOUND}[fence]\ncommand = [\"fence\"]\n")).expect_err("no whole path");
        assert!(error.contains("fence.command is [\"fence\"]") && error.contains("whole path"), "{error}");
    }
}
