//! The header of a frame. Bulk bytes follow it raw; they never pass through serde.
//!
//! ```text
//!   0      1       2         4        8          16             24      numbers are big-endian
//!   │ kind │ flags │ channel │ length │ sequence │ acknowledged │ payload …
//! ```
//!
//! | kind | channel | payload | numbered |
//! | --- | --- | --- | --- |
//! | Control | 0 | one control message | yes |
//! | Memory | QEMU's migration channel, 0 = main | a piece of its stream | yes |
//! | Data | disk index | u64 offset, then the bytes | yes |
//! | Zero | disk index | u64 offset, u64 length | yes |
//! | Acknowledge | 0 | none | no |
//! | Heartbeat | 0 | none; flag [`ANSWER_NOW`] asks for an Acknowledge at once | no |
//! | Credit | channel | flags = kind of the flow; u64 bytes that its reader has consumed | yes |
//! | Close | 0 | none; flag [`ABORTED`] where work was left undone | yes |
//!
//! Numbered frames count from 1 on each lane and direction. `acknowledged` is the highest number received in order by the
//! sender of the header, on every frame, numbered or not.

/// How many bytes a header has.
pub const HEADER_LENGTH: usize = 24;
/// The most bytes of disk or memory content in one frame.
pub const CONTENT_LENGTH_MAX: usize = 1 << 20;
/// The most bytes a payload may have: [`CONTENT_LENGTH_MAX`] and what describes it.
pub const PAYLOAD_LENGTH_MAX: usize = CONTENT_LENGTH_MAX + 64;
/// Flag of a Heartbeat: its receiver acknowledges at once.
pub const ANSWER_NOW: u8 = 1;
/// Flag of a Close: the session was given up.
pub const ABORTED: u8 = 1;
/// What a flow is charged at least for a frame, so that a window bounds the number of frames as well as their bytes.
pub const CHARGE_MIN: usize = 1024;

/// What a frame is. Zero is never valid on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A message between the two agents.
    Control = 1,
    /// A piece of a migration channel.
    Memory = 2,
    /// Disk content.
    Data = 3,
    /// A range of a disk that reads as zeroes.
    Zero = 4,
    /// Nothing but its acknowledgement.
    Acknowledge = 5,
    /// A sign of life.
    Heartbeat = 6,
    /// Room in a flow's window.
    Credit = 7,
    /// The end of the session.
    Close = 8,
}

impl FrameKind {
    /// Whether frames of this kind are numbered, kept and sent again.
    #[must_use]
    pub const fn numbered(self) -> bool {
        !matches!(self, Self::Acknowledge | Self::Heartbeat)
    }

    /// How many bytes a payload of this kind may have, from least to most.
    #[must_use]
    pub const fn payload_lengths(self) -> (usize, usize) {
        match self {
            Self::Control | Self::Memory => (1, CONTENT_LENGTH_MAX),
            Self::Data => (9, CONTENT_LENGTH_MAX + 8),
            Self::Zero => (16, 16),
            Self::Credit => (8, 8),
            Self::Acknowledge | Self::Heartbeat | Self::Close => (0, 0),
        }
    }
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;
    fn try_from(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            1 => Self::Control,
            2 => Self::Memory,
            3 => Self::Data,
            4 => Self::Zero,
            5 => Self::Acknowledge,
            6 => Self::Heartbeat,
            7 => Self::Credit,
            8 => Self::Close,
            kind => return Err(FrameError::Kind { kind }),
        })
    }
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: FrameKind,
    /// Bits whose meaning depends on the kind.
    pub flags: u8,
    /// Which migration channel or disk it belongs to.
    pub channel: u16,
    /// Bytes of payload that follow.
    pub length: u32,
    /// Its number on this lane, from 1; zero where the kind is not numbered.
    pub sequence: u64,
    /// The highest number received in order by whoever sends this.
    pub acknowledged: u64,
}

/// Why bytes are not a header. Each is the peer's fault, and costs it the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind is zero or unknown.
    #[error("the peer sent a frame of the unknown kind {kind}")]
    Kind {
        /// The byte.
        kind: u8,
    },
    /// The payload is shorter or longer than its kind allows.
    #[error("the peer sent a frame of kind {kind:?} with {length} bytes; {} to {} are allowed", kind.payload_lengths().0, kind.payload_lengths().1)]
    Length {
        /// The kind.
        kind: FrameKind,
        /// The length in the header.
        length: u32,
    },
    /// A numbered kind has the number zero, or an unnumbered kind has one.
    #[error("the peer sent a frame of kind {kind:?} with the number {sequence}")]
    Sequence {
        /// The kind.
        kind: FrameKind,
        /// The number in the header.
        sequence: u64,
    },
}

impl Header {
    /// The bytes of this header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = self.kind as u8;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.channel.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.acknowledged.to_be_bytes());
        bytes
    }

    /// Reads a header, and holds it to the limits of its kind before anything is allocated for it.
    ///
    /// # Errors
    /// Where the kind is unknown, or the length or the number does not go with it.
    pub fn decode(bytes: &[u8; HEADER_LENGTH]) -> Result<Self, FrameError> {
        let [kind, flags, c0, c1, l0, l1, l2, l3, s0, s1, s2, s3, s4, s5, s6, s7, rest @ ..] = *bytes;
        let kind = FrameKind::try_from(kind)?;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let (least, most) = kind.payload_lengths();
        if !usize::try_from(length).is_ok_and(|length| (least..=most).contains(&length)) {
            return Err(FrameError::Length { kind, length });
        }
        let sequence = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        if kind.numbered() == (sequence == 0) {
            return Err(FrameError::Sequence { kind, sequence });
        }
        let channel = u16::from_be_bytes([c0, c1]);
        Ok(Self { kind, flags, channel, length, sequence, acknowledged: u64::from_be_bytes(rest) })
    }
}

/// What a flow's window is charged for a frame with a payload of `length` bytes. Both ends count alike.
#[must_use]
pub const fn charge(length: usize) -> usize {
    let bytes = length + HEADER_LENGTH;
    if bytes < CHARGE_MIN { CHARGE_MIN } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_fixed() {
        let header = Header {
            kind: FrameKind::Data,
            flags: 0x80,
            channel: 0x0102,
            length: 0x0304,
            sequence: 0x0506,
            acknowledged: 0x0708,
        };
        let bytes = header.encode();
        assert_eq!(
            bytes,
            [3, 0x80, 1, 2, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 5, 6, 0, 0, 0, 0, 0, 0, 7, 8],
            "a change of these bytes needs a new protocol version"
        );
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn limits_hold_before_allocation() {
        assert_eq!(Header::decode(&[0; 24]), Err(FrameError::Kind { kind: 0 }));
        let mut header =
            Header { kind: FrameKind::Memory, flags: 0, channel: 0, length: u32::MAX, sequence: 1, acknowledged: 0 };
        assert!(matches!(Header::decode(&header.encode()), Err(FrameError::Length { length: u32::MAX, .. })));
        header.length = 1;
        header.sequence = 0;
        assert!(matches!(Header::decode(&header.encode()), Err(FrameError::Sequence { .. })));
        header.kind = FrameKind::Heartbeat;
        assert!(matches!(Header::decode(&header.encode()), Err(FrameError::Length { .. })));
    }

    proptest! {
        #[test]
        fn a_decoded_header_is_within_limits_and_encodes_to_the_same_bytes(bytes: [u8; HEADER_LENGTH], kind in 0_u8..12, short: bool) {
            let mut bytes = bytes;
            bytes[0] = kind;
            if short {
                bytes[4..7].fill(0);
            }
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.length as usize <= PAYLOAD_LENGTH_MAX);
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
