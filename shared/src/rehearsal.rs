//! Rehearsals: what is asked of a clone that is booted for nothing else, and deleted again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::ProbeName;
use crate::vm::IsolatedAddress;

/// The most probes of one rehearsal.
pub const PROBES_MAX: usize = 16;
/// How long a guest has from its start to answer all probes, where nobody says how long, in seconds.
pub const PROBE_DEFAULT_SECONDS: u32 = 120;
/// The longest that it may have, in seconds: an hour.
pub const PROBE_MAX_SECONDS: u32 = 3600;
/// The longest path of an HTTP probe, and the longest text that a console is searched for, in bytes.
pub const PROBE_TEXT_BYTES_MAX: usize = 256;

/// What a rehearsal is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rehearsal {
    /// What the guest has to answer, each for itself.
    pub probes: Vec<HealthProbe>,
    /// How long it has from its start to answer all of them, in seconds.
    #[serde(default = "default_seconds")]
    pub probe_seconds: u32,
    /// The address of its first interface, in a network that it is alone in.
    #[serde(default)]
    pub address: IsolatedAddress,
}

fn default_seconds() -> u32 {
    PROBE_DEFAULT_SECONDS
}

/// A sign that a guest is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = "^(tcp:[0-9]{1,5}|http:[0-9]{1,5}(/.*)?|agent|console:.+|command:[A-Za-z0-9][A-Za-z0-9_-]{0,23}:[0-9]{1,5})$")))]
#[serde(try_from = "String", into = "String")]
pub enum HealthProbe {
    /// It accepts a connection at this port: `tcp:22`.
    Tcp(u16),
    /// It answers a GET there with a status below 400: `http:80/health`.
    Http {
        /// The port.
        port: u16,
        /// The path, which begins with a stroke.
        path: String,
    },
    /// Its QEMU guest agent answers: `agent`.
    Agent,
    /// Its serial console has shown this text: `console:login:`.
    Console(String),
    /// A command of the host's operators, which is given a way to this port, ends with exit code 0: `command:orders:5432`.
    Command {
        /// Its name in the host's agent.toml.
        name: ProbeName,
        /// The port.
        port: u16,
    },
}

impl HealthProbe {
    /// The port of the guest that it connects to, if it does.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp(port) | Self::Http { port, .. } | Self::Command { port, .. } => Some(*port),
            Self::Agent | Self::Console(_) => None,
        }
    }
}

impl FromStr for HealthProbe {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || {
            format!(
                "{text:?} is no probe; give tcp:PORT, http:PORT/PATH, agent, console:TEXT or command:NAME:PORT, such as http:80/"
            )
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(invalid);
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "tcp" => Ok(Self::Tcp(port(rest)?)),
            "http" => {
                let (number, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let path = if path.is_empty() { "/" } else { path };
                // It becomes a part of a request's first line.
                let plain = path.len() <= PROBE_TEXT_BYTES_MAX && path.bytes().all(|byte| byte.is_ascii_graphic());
                plain.then_some(()).ok_or_else(invalid)?;
                Ok(Self::Http { port: port(number)?, path: path.to_owned() })
            }
            "console" if !rest.is_empty() && rest.len() <= PROBE_TEXT_BYTES_MAX && !rest.contains(char::is_control) => {
                Ok(Self::Console(rest.to_owned()))
            }
            "agent" if text == "agent" => Ok(Self::Agent),
            "command" => {
                let (name, number) = rest.rsplit_once(':').ok_or_else(invalid)?;
                Ok(Self::Command { name: name.parse().map_err(|_| invalid())?, port: port(number)? })
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for HealthProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp:{port}"),
            Self::Http { port, path } => write!(f, "http:{port}{path}"),
            Self::Agent => f.write_str("agent"),
            Self::Console(text) => write!(f, "console:{text}"),
            Self::Command { name, port } => write!(f, "command:{name}:{port}"),
        }
    }
}

impl TryFrom<String> for HealthProbe {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HealthProbe> for String {
    fn from(probe: HealthProbe) -> Self {
        probe.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_as_they_are_written() {
        for text in ["tcp:22", "http:8080/health?deep=1", "agent", "console:web login: ", "command:orders:5432"] {
            let probe: HealthProbe = text.parse().expect("a probe");
            assert_eq!(probe.to_string(), text);
        }
        assert_eq!("http:80".parse::<HealthProbe>().map(|probe| probe.to_string()), Ok("http:80/".to_owned()));
    }

    #[test]
    fn what_is_no_probe_is_refused() {
        let long = format!("console:{}", "x".repeat(PROBE_TEXT_BYTES_MAX + 1));
        for wrong in [
            "",
            "tcp",
            "tcp:0",
            "tcp:65536",
            "tcp:22/",
            "udp:53",
            "http:/",
            "http:80/a b",
            "http:80/\r\nHost: x",
            "agent:",
            "console:",
            "console:a\nb",
            "command:orders",
            "command:orders:0",
            "command::80",
            "command:../sh:80",
            &long,
        ] {
            assert!(wrong.parse::<HealthProbe>().is_err(), "{wrong:?}");
        }
    }
}
