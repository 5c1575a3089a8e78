//! Identifiers. Each is parsed once, at the edge; inside the program an identifier is valid by construction.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest name a host, VM, disk, pool or bridge may have, in bytes. Names become NATS subject tokens, file names and
/// QEMU node names; 31 is the longest node name QEMU takes, and a disk's nodes carry a prefix of at most 7 (`format-`).
pub const NAME_LENGTH_MAX: usize = 24;
/// The longest host name, in bytes: Linux takes no longer one.
pub const HOST_NAME_LENGTH_MAX: usize = 64;
const HOST_NAME_PART_MAX: usize = 63;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Nothing was given.
    #[error("a {what} is empty; give 1 to {NAME_LENGTH_MAX} of the characters A-Z a-z 0-9 _ -")]
    Empty {
        /// The kind of identifier.
        what: &'static str,
    },
    /// It is longer than [`NAME_LENGTH_MAX`].
    #[error("the {what} starting {start:?} has {length} bytes; at most {NAME_LENGTH_MAX} are allowed")]
    TooLong {
        /// The kind of identifier.
        what: &'static str,
        /// Its first characters.
        start: String,
        /// Its length in bytes.
        length: usize,
    },
    /// It has a character outside `[A-Za-z0-9_-]`, or starts with `-` or `_`.
    #[error("the {what} {text:?} may only have the characters A-Z a-z 0-9 _ - and may not start with - or _")]
    Character {
        /// The kind of identifier.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// It is not what a system can call itself.
    #[error(
        "{text:?} is no host name: give parts of A-Z a-z 0-9 - with points between, each of 1 to 63 characters with no - at its \
         ends, {HOST_NAME_LENGTH_MAX} in all, and the last part not of digits alone"
    )]
    HostName {
        /// The first characters of the text.
        text: String,
    },
    /// It is not a UUID.
    #[error("the {what} {text:?} is not a UUID such as 0197c0de-0000-7000-8000-000000000001")]
    Uuid {
        /// The kind of identifier.
        what: &'static str,
        /// The first characters of the text.
        text: String,
    },
}

fn parse_name(what: &'static str, text: &str) -> Result<String, InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty { what });
    }
    if text.len() > NAME_LENGTH_MAX {
        return Err(InvalidId::TooLong { what, start: text.chars().take(12).collect(), length: text.len() });
    }
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    // No name begins with a dash, which commands take for an option, or an underscore, which is kept for ourselves.
    if !text.bytes().all(valid) || text.starts_with(['-', '_']) {
        return Err(InvalidId::Character { what, text: text.to_owned() });
    }
    Ok(text.to_owned())
}

fn parse_host_name(text: &str) -> Result<String, InvalidId> {
    let is_part = |part: &str| {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=HOST_NAME_PART_MAX).contains(&part.len())
            && part.bytes().all(valid)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    // What ends in a number is read as an address.
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let valid = text.len() <= HOST_NAME_LENGTH_MAX
        && text.split('.').all(is_part)
        && !text.rsplit('.').next().is_some_and(is_number);
    if valid { Ok(text.to_owned()) } else { Err(InvalidId::HostName { text: text.chars().take(48).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        name!($(#[$doc])* $name, "^[A-Za-z0-9][A-Za-z0-9_-]{0,23}$", |text| parse_name($what, text));
    };
    ($(#[$doc:meta])* $name:ident, $pattern:literal, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("pattern" = $pattern)))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                $parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// A hypervisor machine: the name its certificate carries and its subjects end in.
    HostId, "host id"
);
name!(
    /// A VM's name, unique in the fleet as far as the coordinator knows, and on each host for certain.
    VmName, "VM name"
);
name!(
    /// A disk's name within its VM.
    DiskName, "disk name"
);
name!(
    /// A place on a host where images live.
    PoolName, "pool name"
);
name!(
    /// A network bridge on a host.
    BridgeName, "bridge name"
);
name!(
    /// A command of a host's operators that probes a rehearsed guest.
    ProbeName, "name of a probe"
);

name!(
    /// What a guest's system calls itself: a host name as RFC 1123 has them, with or without a domain.
    HostName, r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$", parse_host_name
);

impl DiskName {
    /// The name of a clone's seed, by which nothing else of a clone is called.
    #[must_use]
    pub fn seed() -> Self {
        Self("cidata".to_owned())
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("format" = "uuid")))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID made elsewhere; this crate reads no clock and no randomness.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId::Uuid { what: $what, text: text.chars().take(48).collect() };
                // Only the hyphenated form: one identifier has one spelling, also as a file name and a subject token.
                if text.len() != 36 {
                    return Err(invalid());
                }
                Uuid::try_parse(text).map(Self).map_err(|_| invalid())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.as_hyphenated(), f)
            }
        }
    };
}

uuid_id!(
    /// One job. Version 7, so that jobs sort by the time they were asked for.
    JobId, "job id"
);
uuid_id!(
    /// One VM, wherever it runs: the UUID the guest sees in its SMBIOS tables.
    VmId, "VM id"
);
uuid_id!(
    /// One planned VM: what a host holds ready for a VM that is elsewhere.
    PlannedVmId, "planned VM id"
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this; `None` at the end of the range, which no honest peer reaches.
            #[must_use]
            pub const fn next(self) -> Option<Self> {
                match self.0.checked_add(1) {
                    Some(next) => Some(Self(next)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Which grant of the right to run a VM this is. It only grows; no two grants share one.
    Generation
);
counter!(
    /// Which leadership of the coordinators a command comes from. Agents refuse an older one.
    Epoch
);

/// How many bytes a [`Token`] has.
pub const TOKEN_LENGTH: usize = 32;

/// The secret that admits one job's source to its target, once. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Token([u8; TOKEN_LENGTH]);

impl Token {
    /// Wraps bytes drawn from a secure source.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; TOKEN_LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be sent over an encrypted lane and nowhere else.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; TOKEN_LENGTH] {
        &self.0
    }

    /// Compares in a time that does not depend on where the first difference is.
    #[must_use]
    pub fn matches(&self, other: &[u8; TOKEN_LENGTH]) -> bool {
        self.0.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_subject_tokens() {
        assert_eq!("alpha-1".parse::<HostId>().map(String::from), Ok("alpha-1".to_owned()));
        assert!(matches!("".parse::<HostId>(), Err(InvalidId::Empty { .. })));
        assert!(matches!("-rf".parse::<DiskName>(), Err(InvalidId::Character { .. })));
        for bad in ["_coordinator", "a.b", "a b", "a>", "*", "ä", "a/b", ".."] {
            assert!(matches!(bad.parse::<VmName>(), Err(InvalidId::Character { .. })), "{bad}");
        }
        assert!(matches!("x".repeat(25).parse::<PoolName>(), Err(InvalidId::TooLong { length: 25, .. })));
    }

    #[test]
    fn host_names_are_what_a_system_can_call_itself() {
        let longest = format!("{}.b", "a".repeat(62));
        for good in ["web", "Web-01.example.org", "1and1.example", "0.a", "a", &"a".repeat(63), &longest] {
            assert_eq!(good.parse::<HostName>().map(String::from), Ok(good.to_owned()));
        }
        let (part, whole) = ("a".repeat(64), format!("{}.bc", "a".repeat(62)));
        let hostile =
            ["", ".", "a.", ".a", "a..b", "-a", "a-", "a.-b", "a_b", "a b", "a\n", "a\0", "ä", "../a", "$(a)", "42"];
        for bad in hostile.into_iter().chain(["10.0.0.1", "a.7", &part, &whole, &"a.".repeat(1 << 20)]) {
            let error = bad.parse::<HostName>().expect_err(bad);
            assert!(matches!(error, InvalidId::HostName { .. }) && error.to_string().len() < 512, "{error}");
        }
        assert!(serde_json::from_str::<HostName>("\"a b\"").is_err(), "on the wire likewise");
    }

    #[test]
    fn ids_have_one_spelling() {
        let text = "0197c0de-0000-7000-8000-000000000001";
        assert_eq!(text.parse::<JobId>().map(|id| id.to_string()), Ok(text.to_owned()));
        assert!("0197c0de000070008000000000000001".parse::<JobId>().is_err());
    }

    #[test]
    fn tokens_stay_secret() {
        let token = Token::from_bytes([7; 32]);
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert!(token.matches(&[7; 32]));
        assert!(!token.matches(&[8; 32]));
    }
}
