//! The first message of each lane after the hello, its answer, and the rule by which a token admits one session.
//!
//! A token admits the first session that presents it, and that session only: the target remembers its id. A lane that is
//! dialled again presents the same id, and goes on. Another id with the same token is a replay. The same id with a higher
//! incarnation is the source's agent after a restart: it has lost what its lanes held, and all of them start anew.
//!
//! On the wire: a big-endian u32 length, at most [`ATTACH_LENGTH_MAX`], then MessagePack with named fields.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::{JobId, Token};

/// The most bytes an attach message or its answer may have.
pub const ATTACH_LENGTH_MAX: usize = 4096;
/// The most bytes of text in a refusal.
pub const REFUSAL_TEXT_LENGTH_MAX: usize = 1024;
/// The most data lanes of a session. Lane 0, which carries control, comes on top.
pub const DATA_LANES_MAX: u8 = 16;

const DEPTH_MAX: usize = 8;

/// One connection set of one job, drawn at random by the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub Uuid);

/// What the target drew at random when it made its lanes. It tells whether the lane state of before is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub Uuid);

/// What the source asks for a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The job that the session serves.
    pub job: JobId,
    /// The secret of that job.
    pub token: Token,
    /// The session.
    pub session: SessionId,
    /// How often the source has lost the state of its lanes.
    pub incarnation: u32,
    /// Which lane this connection carries: 0 for control, then 1 to `lanes`.
    pub lane: u8,
    /// How many data lanes the session has.
    pub lanes: u8,
    /// The highest frame number that the source has received on this lane.
    pub received: u64,
    /// The target's lane state that the source has met before; none at first.
    pub instance: Option<InstanceId>,
}

impl Attach {
    /// Holds the numbers to their limits.
    ///
    /// # Errors
    /// [`AttachError::Lanes`].
    pub fn check(&self) -> Result<(), AttachError> {
        if self.lanes == 0 || self.lanes > DATA_LANES_MAX || self.lane > self.lanes {
            return Err(AttachError::Lanes { lane: self.lane, lanes: self.lanes });
        }
        Ok(())
    }
}

/// What the target answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The lane goes on.
    Attached {
        /// The highest frame number that the target has received on this lane.
        received: u64,
        /// The target's lane state.
        instance: InstanceId,
    },
    /// The connection ends here.
    Refused(Refusal),
}

/// Why a connection is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text} ({code:?})")]
pub struct Refusal {
    /// The reason, for programs.
    pub code: RefusalCode,
    /// The reason and the remedy, for people.
    pub text: String,
}

impl Refusal {
    /// A refusal, its text held to [`REFUSAL_TEXT_LENGTH_MAX`].
    #[must_use]
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        let mut length = text.len().min(REFUSAL_TEXT_LENGTH_MAX);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        text.truncate(length);
        Self { code, text }
    }
}

/// Why a connection is not taken, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The certificate is not that of a host.
    WrongRole,
    /// The target has no such job in its journal.
    UnknownJob,
    /// The job names another host as its source.
    WrongHost,
    /// The token is not that of the job.
    WrongToken,
    /// The token has admitted another session.
    Replayed,
    /// A later incarnation of the session has attached.
    Outdated,
    /// The target does not have the state of the lanes: the session has ended there, or its agent was restarted.
    /// A higher incarnation starts anew.
    StateLost,
    /// The message is not well-formed.
    Malformed,
    /// Too much is going on; the same connection may be taken later.
    Busy,
    /// A reason that a newer agent knows.
    #[serde(other)]
    Unknown,
}

impl RefusalCode {
    /// Whether the same attach may succeed later without anybody's doing.
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Busy)
    }
}

/// Which session a token has admitted. The target keeps it with the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// The session.
    pub session: SessionId,
    /// Its highest incarnation so far.
    pub incarnation: u32,
}

impl Admitted {
    /// Applies the rule of this module: what is to be remembered after `attach`, whose token is right, given what was
    /// remembered `before`.
    ///
    /// # Errors
    /// [`RefusalCode::Replayed`] and [`RefusalCode::Outdated`].
    pub fn admit(before: Option<Self>, attach: &Attach) -> Result<Self, Refusal> {
        match before {
            Some(before) if before.session != attach.session => Err(Refusal::new(
                RefusalCode::Replayed,
                "this job's token has admitted another session; ask the coordinator for a new plan",
            )),
            Some(before) if before.incarnation > attach.incarnation => Err(Refusal::new(
                RefusalCode::Outdated,
                format!(
                    "incarnation {} of this session has attached; this is {}",
                    before.incarnation, attach.incarnation
                ),
            )),
            _ => Ok(Self { session: attach.session, incarnation: attach.incarnation }),
        }
    }
}

/// Why bytes are not an attach message or its answer.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The length is zero or beyond [`ATTACH_LENGTH_MAX`].
    #[error("the peer announced an attach message of {length} bytes; 1 to {ATTACH_LENGTH_MAX} are allowed")]
    Length {
        /// The length.
        length: usize,
    },
    /// The bytes are not MessagePack of the expected fields.
    #[error("the peer's attach message cannot be decoded")]
    Decode(#[source] rmp_serde::decode::Error),
    /// Bytes follow the message.
    #[error("the peer's attach message has {count} bytes too many")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// Our own message cannot be encoded.
    #[error("an attach message cannot be encoded; this is a fault of Sterna")]
    Encode(#[source] rmp_serde::encode::Error),
    /// The lane is not one of the session.
    #[error("the peer asks for lane {lane} of {lanes} data lanes; a session has 1 to {DATA_LANES_MAX}")]
    Lanes {
        /// The lane asked for.
        lane: u8,
        /// The data lanes of the session.
        lanes: u8,
    },
}

/// Reads the length prefix.
///
/// # Errors
/// Where it is zero or too large.
pub fn decode_length(prefix: [u8; 4]) -> Result<usize, AttachError> {
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if (1..=ATTACH_LENGTH_MAX).contains(&length) { Ok(length) } else { Err(AttachError::Length { length }) }
}

/// The length prefix and the message.
///
/// # Errors
/// Where it would be too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, AttachError> {
    let body = rmp_serde::to_vec_named(message).map_err(AttachError::Encode)?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    decode_length(length.to_be_bytes())?;
    Ok([&length.to_be_bytes(), body.as_slice()].concat())
}

/// Reads a message without its prefix.
///
/// # Errors
/// Where the bytes are too many, too deep, or not the message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, AttachError> {
    if body.is_empty() || body.len() > ATTACH_LENGTH_MAX {
        return Err(AttachError::Length { length: body.len() });
    }
    let mut rest = body;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(DEPTH_MAX);
    let message = T::deserialize(&mut deserializer).map_err(AttachError::Decode)?;
    if rest.is_empty() { Ok(message) } else { Err(AttachError::Trailing { count: rest.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attach(session: u128, incarnation: u32) -> Attach {
        Attach {
            job: JobId::from_uuid(Uuid::from_u128(1)),
            token: Token::from_bytes([255; 32]),
            session: SessionId(Uuid::from_u128(session)),
            incarnation,
            lane: 4,
            lanes: 4,
            received: u64::MAX,
            instance: Some(InstanceId(Uuid::from_u128(3))),
        }
    }

    #[test]
    fn a_token_admits_one_session() {
        let first = Admitted::admit(None, &attach(7, 1)).expect("the first is admitted");
        assert_eq!(Admitted::admit(Some(first), &attach(7, 1)), Ok(first), "a lane dialled again");
        let later = Admitted::admit(Some(first), &attach(7, 2)).expect("the source restarted");
        assert_eq!(later.incarnation, 2);
        let code = |result: Result<Admitted, Refusal>| result.map_err(|refusal| refusal.code);
        assert_eq!(code(Admitted::admit(Some(later), &attach(7, 1))), Err(RefusalCode::Outdated));
        assert_eq!(code(Admitted::admit(Some(later), &attach(8, 3))), Err(RefusalCode::Replayed));
    }

    #[test]
    fn messages_come_back() {
        let bytes = encode(&attach(7, 1)).expect("it encodes");
        assert_eq!(decode_length([bytes[0], bytes[1], bytes[2], bytes[3]]).expect("a length"), bytes.len() - 4);
        assert_eq!(decode::<Attach>(&bytes[4..]).expect("it decodes"), attach(7, 1));
        let longest = Refusal::new(RefusalCode::Busy, "é".repeat(4000));
        let bytes = encode(&Answer::Refused(longest.clone())).expect("it encodes");
        assert_eq!(decode::<Answer>(&bytes[4..]).expect("it decodes"), Answer::Refused(longest));
    }

    #[test]
    fn bounds_hold() {
        assert!(matches!(decode_length([0; 4]), Err(AttachError::Length { length: 0 })));
        assert!(matches!(decode_length([255; 4]), Err(AttachError::Length { .. })));
        assert!(matches!(decode::<Attach>(&vec![0x91; ATTACH_LENGTH_MAX]), Err(AttachError::Decode(_))), "too deep");
        for (lane, lanes) in [(0, 0), (5, 4), (0, 17), (255, 255)] {
            assert!(Attach { lane, lanes, ..attach(7, 1) }.check().is_err(), "{lane} of {lanes}");
        }
        assert!(attach(7, 1).check().is_ok());
    }

    #[test]
    fn reasons_of_newer_agents_are_read() {
        let code: RefusalCode = decode(&rmp_serde::to_vec_named("from_the_future").expect("it encodes")).expect("read");
        assert_eq!(code, RefusalCode::Unknown);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..512), at: usize) {
            let _ = decode::<Attach>(&bytes);
            let mut mutated = encode(&attach(7, 1)).expect("it encodes").split_off(4);
            let at = at % mutated.len();
            mutated[at] = bytes.first().copied().unwrap_or(0);
            let _ = decode::<Attach>(&mutated);
            prop_assert!(decode::<Answer>(&mutated).is_err());
        }
    }
}
