//! The envelope of every internal message: a head that can be read whatever the body is.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::Epoch;

/// The version of the messages this build speaks.
pub const VERSION: u16 = 1;
/// The largest message taken from NATS, envelope included. nats-server's own default limit is 1 MiB.
pub const BODY_LENGTH_MAX: usize = 1 << 20;
/// How deep a message may nest.
pub const DEPTH_MAX: usize = 32;

/// A message, as it crosses NATS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Envelope {
    /// The version of the body.
    pub version: u16,
    /// What the body is, such as `command` or `event`.
    pub kind: String,
    /// Who sent it: a host id, or a coordinator's name. Told for people; what a sender may say is decided by the
    /// broker's permissions.
    pub sender: String,
    /// The coordinators' epoch it was sent in; zero from agents and operators.
    pub epoch: Epoch,
    /// The message itself, MessagePack.
    #[serde(with = "serde_bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<u8>"))]
    pub body: Vec<u8>,
}

/// Why a message cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is larger than [`BODY_LENGTH_MAX`].
    #[error("a message of {length} bytes is over the limit of {BODY_LENGTH_MAX}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// It is not MessagePack of the expected shape.
    #[error("a message is not a valid {what}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// What the decoder says.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// It is of another kind.
    #[error("a message of kind {found:?} came where {expected:?} was expected")]
    Kind {
        /// What was expected.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// It is of a version this build does not speak.
    #[error("a message of version {found} came; this build speaks {VERSION}: upgrade the older end")]
    Version {
        /// What came.
        found: u16,
    },
    /// It could not be encoded: a fault of ours.
    #[error("a {what} could not be encoded")]
    Encode {
        /// What.
        what: &'static str,
        /// What the encoder says.
        #[source]
        source: rmp_serde::encode::Error,
    },
}

impl Envelope {
    /// Wraps a message.
    ///
    /// # Errors
    /// When the message does not encode or is over the limit.
    pub fn seal<T: Serialize>(
        kind: &'static str,
        sender: &str,
        epoch: Epoch,
        message: &T,
    ) -> Result<Vec<u8>, EnvelopeError> {
        let body = encode(kind, message)?;
        encode("envelope", &Self { version: VERSION, kind: kind.to_owned(), sender: sender.to_owned(), epoch, body })
    }

    /// Reads the head; the body stays as it is.
    ///
    /// # Errors
    /// When it is too long, malformed, or of another version.
    pub fn open(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let envelope: Self = decode("envelope", bytes)?;
        if envelope.version != VERSION {
            return Err(EnvelopeError::Version { found: envelope.version });
        }
        Ok(envelope)
    }

    /// Reads the body, if it is of that kind.
    ///
    /// # Errors
    /// When it is of another kind, or malformed.
    pub fn message<T: DeserializeOwned>(&self, kind: &'static str) -> Result<T, EnvelopeError> {
        if self.kind != kind {
            return Err(EnvelopeError::Kind { expected: kind, found: self.kind.chars().take(32).collect() });
        }
        decode(kind, &self.body)
    }
}

/// MessagePack with named fields.
///
/// # Errors
/// When the message does not encode or is over the limit.
pub fn encode<T: Serialize>(what: &'static str, message: &T) -> Result<Vec<u8>, EnvelopeError> {
    let mut bytes = Vec::new();
    // Addresses are texts: a compact one does not come back from within a tagged enum, whose content serde buffers.
    let mut serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map().with_human_readable();
    message.serialize(&mut serializer).map_err(|source| EnvelopeError::Encode { what, source })?;
    if bytes.len() > BODY_LENGTH_MAX {
        return Err(EnvelopeError::TooLong { length: bytes.len() });
    }
    Ok(bytes)
}

/// Reads MessagePack, bounded in size and depth.
///
/// # Errors
/// When it is too long or not of the shape of `T`.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, EnvelopeError> {
    if bytes.len() > BODY_LENGTH_MAX {
        return Err(EnvelopeError::TooLong { length: bytes.len() });
    }
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
    deserializer.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut deserializer).map_err(|source| EnvelopeError::Malformed { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back() {
        let sealed = Envelope::seal("text", "alpha", Epoch(3), &"hello").expect("sealed");
        let envelope = Envelope::open(&sealed).expect("opened");
        assert_eq!((envelope.epoch, envelope.sender.as_str()), (Epoch(3), "alpha"));
        assert_eq!(envelope.message::<String>("text").expect("a text"), "hello");
        assert!(matches!(envelope.message::<String>("command"), Err(EnvelopeError::Kind { .. })));
    }

    #[test]
    fn another_version_is_named() {
        let other = Envelope { version: 9, kind: "x".into(), sender: "a".into(), epoch: Epoch(0), body: vec![] };
        let bytes = encode("envelope", &other).expect("encoded");
        assert!(matches!(Envelope::open(&bytes), Err(EnvelopeError::Version { found: 9 })));
    }

    #[test]
    fn deep_nesting_is_refused() {
        // 10,000 arrays of one element each.
        let bytes = vec![0x91; 10_000];
        assert!(decode::<serde_json::Value>("value", &bytes).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = Envelope::open(&bytes).map(|envelope| envelope.message::<crate::bus::Command>("command"));
        }
    }
}
