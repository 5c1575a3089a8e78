//! What the agent and the helper guest say to each other over a virtio-serial port: JSON, a line each.
//!
//! The agent says one [`Order`]; the helper guest answers by [`Report`]s, of which the last is [`Report::Over`] or
//! [`Report::Failed`], and powers off.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The name of the port.
pub const PORT: &str = "org.sterna.adapter.0";
/// The longest report, in bytes.
pub const LINE_BYTES_MAX: u64 = 16 << 10;
/// The longest order, in bytes: hooks are in it, each of whose bytes may take six.
pub const ORDER_BYTES_MAX: u64 = 1 << 20;
/// The most hooks.
pub const HOOKS_MAX: usize = 16;
/// The longest that all hooks may be together, in bytes.
pub const HOOKS_BYTES_MAX: usize = 128 << 10;
/// How long one hook may take.
pub const HOOK_WAIT: Duration = Duration::from_secs(60);
/// The most reports that there are of one system.
pub const REPORTS_MAX: usize = 64;
/// The longest text of a report that is kept, in characters.
pub const TEXT_CHARACTERS_MAX: usize = 400;

/// Who the clone is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its host name: in the domain that its old name was in, unless this one has a domain.
    pub hostname: String,
    /// What systemd tells machines apart by: 32 hexadecimal digits.
    pub machine_id: String,
    /// Of each disk, in order, what the guest's own kernel calls it (`vda`, `sdb`); none where that cannot be told.
    pub disks: Vec<Option<String>>,
    /// What is run in the system after all that, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Whether a hook that fails is no more than told of.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hooks_may_fail: bool,
}

/// A script of the host's operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// What its file is called.
    pub name: String,
    /// What is in it, from its `#!` on.
    pub script: String,
}

/// What the helper guest found, did, or could not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Report {
    /// There is a system that can be adapted.
    Found {
        /// The device that its root is on, as the helper guest has it.
        device: String,
        /// What it calls itself.
        system: String,
        /// Whether it has cloud-init, which is to be told who the clone is.
        #[serde(default)]
        cloud_init: bool,
    },
    /// There is none, or more than one, or what may hold another: nothing was changed.
    Unrecognised {
        /// Why.
        text: String,
    },
    /// Something was changed.
    Changed {
        /// What about.
        action: Action,
        /// What, and what of it could not be.
        text: String,
    },
    /// Something could not be changed, and is as it was.
    Left {
        /// What about.
        action: Action,
        /// Why.
        text: String,
    },
    /// It could not be done to the end; the disks are in an unknown state.
    Failed {
        /// Why.
        text: String,
    },
    /// All is done, and on the disks.
    Over,
}

/// What is changed of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Its host name, and the lines that name it.
    Hostname,
    /// What systemd and D-Bus tell machines apart by.
    MachineId,
    /// What ssh clients know it by.
    HostKeys,
    /// What its random numbers begin with.
    RandomSeed,
    /// Names of network interfaces that are bound to addresses.
    NetworkRules,
    /// Where it mounts its file systems from.
    Fstab,
    /// A script of the host's operators was run in it.
    Hook,
}

impl Action {
    /// Its name, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hostname => "host name",
            Self::MachineId => "machine id",
            Self::HostKeys => "ssh host keys",
            Self::RandomSeed => "random seed",
            Self::NetworkRules => "network rules",
            Self::Fstab => "fstab",
            Self::Hook => "hook",
        }
    }
}

impl Order {
    /// A host name that every system takes, made of a VM's name: small letters, digits and dashes, 63 at most.
    #[must_use]
    pub fn hostname_of(name: &str) -> String {
        let kept = name.chars().map(|letter| match letter.to_ascii_lowercase() {
            letter if letter.is_ascii_lowercase() || letter.is_ascii_digit() => letter,
            _ => '-',
        });
        let kept: String = kept.take(63).collect();
        match kept.trim_matches('-') {
            "" => "clone".to_owned(),
            kept => kept.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_one_whatever_the_vm_is_called() {
        for (name, hostname) in [
            ("web-clone", "web-clone"),
            ("Web_01.test", "web-01-test"),
            ("--", "clone"),
            ("-a-", "a"),
            ("größe", "gr--e"),
        ] {
            assert_eq!(Order::hostname_of(name), hostname, "{name}");
        }
        assert_eq!(Order::hostname_of(&"a".repeat(200)).len(), 63);
    }

    #[test]
    fn lines_read_as_they_are_written() {
        let report = Report::Changed { action: Action::HostKeys, text: "rsa".to_owned() };
        let line = serde_json::to_string(&report).expect("JSON");
        assert_eq!(line, r#"{"say":"changed","action":"host_keys","text":"rsa"}"#);
        assert_eq!(serde_json::from_str::<Report>(&line).expect("a report"), report);
        let found: Report = serde_json::from_str(r#"{"say":"found","device":"vda1","system":"Debian"}"#)
            .expect("of an older helper guest");
        assert!(matches!(found, Report::Found { cloud_init: false, .. }));
        assert_eq!(serde_json::to_string(&Report::Over).expect("JSON"), r#"{"say":"over"}"#);
    }
}
