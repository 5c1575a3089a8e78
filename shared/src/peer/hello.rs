//! The first 16 bytes each way on every lane. They are frozen: every agent, however old or new, can read them, and so two
//! agents always find out whether they have a version in common, instead of misreading each other.
//!
//! ```text
//!   0        8        10       12       14       16     numbers are big-endian
//!   │ magic  │ chosen │ oldest │ newest │ zero   │      chosen = 0 in an offer, and where no version is in common
//! ```

/// How many bytes a hello has.
pub const HELLO_LENGTH: usize = 16;
/// What a hello begins with. The line end breaks where a text protocol or a translating proxy is in between.
pub const HELLO_MAGIC: [u8; 8] = *b"STERNA\r\n";
/// The versions that this build speaks.
pub const SUPPORTED: Versions = Versions { oldest: 1, newest: 1 };

/// An unbroken range of protocol versions, from 1 up.
///
/// Version 1: the first. Frames of 24-byte headers, credits by flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    oldest: u16,
    newest: u16,
}

/// Why bytes are not a hello, or lead to no version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The other end speaks something else.
    #[error("the peer did not open with a hello of Sterna; check that the address is the data-plane port of an agent")]
    NotSterna,
    /// The range is empty or has the version zero.
    #[error("the peer offers the version range {oldest} to {newest}, which is none")]
    Range {
        /// Its oldest version.
        oldest: u16,
        /// Its newest version.
        newest: u16,
    },
    /// Bytes that must be zero are not.
    #[error("the reserved bytes of the peer's hello are not zero")]
    Reserved,
    /// The two ends have no version in common.
    #[error("the peer speaks the versions {oldest} to {newest} and we speak {} to {}; upgrade the older agent", SUPPORTED.oldest, SUPPORTED.newest)]
    NoCommonVersion {
        /// Its oldest version.
        oldest: u16,
        /// Its newest version.
        newest: u16,
    },
    /// The answer names a version that was not offered.
    #[error("the peer chose the version {chosen}, which was not offered")]
    NotOffered {
        /// The version it chose.
        chosen: u16,
    },
}

impl Versions {
    /// The range from `oldest` to `newest`, both included.
    ///
    /// # Errors
    /// Where it is empty or begins with zero.
    pub const fn new(oldest: u16, newest: u16) -> Result<Self, HelloError> {
        if oldest == 0 || oldest > newest {
            return Err(HelloError::Range { oldest, newest });
        }
        Ok(Self { oldest, newest })
    }

    /// The oldest and the newest version.
    #[must_use]
    pub const fn bounds(self) -> (u16, u16) {
        (self.oldest, self.newest)
    }

    /// The newest version in both ranges.
    #[must_use]
    pub const fn common(self, other: Self) -> Option<u16> {
        let newest = if self.newest < other.newest { self.newest } else { other.newest };
        if newest >= self.oldest && newest >= other.oldest { Some(newest) } else { None }
    }
}

/// The opening of the end that dials.
#[must_use]
pub fn encode_offer(offered: Versions) -> [u8; HELLO_LENGTH] {
    encode(0, offered)
}

/// Reads the opening of the end that dials.
///
/// # Errors
/// Where the bytes are no offer.
pub fn decode_offer(bytes: &[u8; HELLO_LENGTH]) -> Result<Versions, HelloError> {
    let (chosen, offered) = decode(bytes)?;
    if chosen == 0 { Ok(offered) } else { Err(HelloError::NotOffered { chosen }) }
}

/// The reply of the end that was dialled: the version chosen, if there is one in common, and its own range.
#[must_use]
pub fn encode_reply(chosen: Option<u16>, ours: Versions) -> [u8; HELLO_LENGTH] {
    encode(chosen.unwrap_or(0), ours)
}

/// Reads the reply and gives the version to speak.
///
/// # Errors
/// Where the bytes are no reply, where there is no version in common, or where the one chosen was not offered.
pub fn decode_reply(bytes: &[u8; HELLO_LENGTH], offered: Versions) -> Result<u16, HelloError> {
    let (chosen, theirs) = decode(bytes)?;
    if chosen == 0 {
        return Err(HelloError::NoCommonVersion { oldest: theirs.oldest, newest: theirs.newest });
    }
    if chosen < offered.oldest || chosen > offered.newest {
        return Err(HelloError::NotOffered { chosen });
    }
    Ok(chosen)
}

fn encode(chosen: u16, versions: Versions) -> [u8; HELLO_LENGTH] {
    let mut bytes = [0; HELLO_LENGTH];
    bytes[..8].copy_from_slice(&HELLO_MAGIC);
    bytes[8..10].copy_from_slice(&chosen.to_be_bytes());
    bytes[10..12].copy_from_slice(&versions.oldest.to_be_bytes());
    bytes[12..14].copy_from_slice(&versions.newest.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8; HELLO_LENGTH]) -> Result<(u16, Versions), HelloError> {
    let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    if bytes[..8] != HELLO_MAGIC {
        return Err(HelloError::NotSterna);
    }
    if number(14) != 0 {
        return Err(HelloError::Reserved);
    }
    Ok((number(8), Versions::new(number(10), number(12))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_frozen() {
        let range = Versions::new(1, 0x0203).expect("a range");
        assert_eq!(&encode_offer(range), b"STERNA\r\n\x00\x00\x00\x01\x02\x03\x00\x00");
        assert_eq!(&encode_reply(Some(2), range), b"STERNA\r\n\x00\x02\x00\x01\x02\x03\x00\x00");
        assert_eq!(&encode_reply(None, range), b"STERNA\r\n\x00\x00\x00\x01\x02\x03\x00\x00");
    }

    #[test]
    fn the_newest_common_version_wins() {
        let range = |oldest, newest| Versions::new(oldest, newest).expect("a range");
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).common(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 2)), None);
    }

    #[test]
    fn what_is_no_hello_is_told_apart() {
        assert_eq!(decode_offer(b"GET / HTTP/1.1\r\n"), Err(HelloError::NotSterna));
        let mut reserved = encode_offer(SUPPORTED);
        reserved[15] = 1;
        assert_eq!(decode_offer(&reserved), Err(HelloError::Reserved));
        let none = encode_reply(None, Versions { oldest: 7, newest: 9 });
        assert_eq!(decode_reply(&none, SUPPORTED), Err(HelloError::NoCommonVersion { oldest: 7, newest: 9 }));
        let unasked = encode_reply(Some(9), SUPPORTED);
        assert_eq!(decode_reply(&unasked, SUPPORTED), Err(HelloError::NotOffered { chosen: 9 }));
    }

    proptest! {
        #[test]
        fn a_decoded_offer_encodes_to_the_same_bytes(bytes: [u8; HELLO_LENGTH], magic: bool) {
            let mut bytes = bytes;
            if magic {
                bytes[..8].copy_from_slice(&HELLO_MAGIC);
                bytes[8..10].fill(0);
                bytes[14..].fill(0);
            }
            if let Ok(offered) = decode_offer(&bytes) {
                prop_assert_eq!(encode_offer(offered), bytes);
            }
        }
    }
}
