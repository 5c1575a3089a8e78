//! The bytes of the NBD protocol, encoded and decoded without I/O.
//!
//! Source of every number: the NetworkBlockDevice protocol description (`doc/proto.md` of the NBD project). All integers
//! are big-endian. Decoders take what they need as fixed arrays or as payloads whose length was already checked against
//! a limit below, and answer with a [`Violation`]: they never panic and never allocate by a length they have not checked.

use bytes::{BufMut, Bytes, BytesMut};

use super::Violation;

/// The server's first word, `NBDMAGIC`.
pub(super) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: the server's second word, and the start of each option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The start of each answer to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The longest export or context name that the protocol knows, in bytes.
pub(super) const NAME_LENGTH_MAX: usize = 4096;
/// The longest answer to one option: a name, and room for the fields around it.
pub(super) const OPTION_REPLY_LENGTH_MAX: u32 = 8 << 10;
/// The most answers to one option before its end is a violation.
pub(super) const OPTION_REPLIES_MAX: usize = 64;
/// The most block-status entries in one reply; QEMU sends at most 1 MiB of them.
pub(super) const STATUS_ENTRIES_MAX: usize = 128 << 10;
/// The longest text that goes with an error.
pub(super) const ERROR_MESSAGE_LENGTH_MAX: usize = 4096;
/// The length of an encoded request.
pub(super) const REQUEST_LENGTH: usize = 28;

/// Server: speaks fixed newstyle. The client's own flag has the same value.
pub(super) const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
/// Server: can leave out the padding after `EXPORT_NAME`. The client's own flag has the same value.
pub(super) const HANDSHAKE_NO_ZEROES: u16 = 2;

/// Option: end the negotiation.
pub(super) const OPTION_ABORT: u32 = 2;
/// Option: use an export.
pub(super) const OPTION_GO: u32 = 7;
/// Option: structured replies, please.
pub(super) const OPTION_STRUCTURED_REPLY: u32 = 8;
/// Option: which block-status contexts are wanted.
pub(super) const OPTION_SET_META_CONTEXT: u32 = 10;

/// Answer: the option is done.
pub(super) const REPLY_ACK: u32 = 1;
/// Answer: a fact about the export.
pub(super) const REPLY_INFO: u32 = 3;
/// Answer: a context is granted, under a number.
pub(super) const REPLY_META_CONTEXT: u32 = 4;
/// Set in every answer that is a refusal.
pub(super) const REPLY_ERROR: u32 = 1 << 31;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// What an export allows; bits of the transmission flags.
pub(super) mod can {
    /// The export refuses writes.
    pub(in crate::disk::nbd) const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub(in crate::disk::nbd) const FLUSH: u16 = 1 << 2;
    /// TRIM is understood.
    pub(in crate::disk::nbd) const TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub(in crate::disk::nbd) const WRITE_ZEROES: u16 = 1 << 6;
    /// A flush on one connection covers what all have written.
    pub(in crate::disk::nbd) const MULTI_CONN: u16 = 1 << 8;
    /// FUA is understood.
    pub(in crate::disk::nbd) const FUA: u16 = 1 << 3;
    /// FAST_ZERO is understood.
    pub(in crate::disk::nbd) const FAST_ZERO: u16 = 1 << 11;
}

/// Flags of one request.
pub(super) mod flag {
    /// Answer only once the bytes are on stable storage.
    pub(in crate::disk::nbd) const FUA: u16 = 1 << 0;
    /// Write zeroes without making a hole.
    pub(in crate::disk::nbd) const NO_HOLE: u16 = 1 << 1;
    /// Fail rather than write zeroes the slow way.
    pub(in crate::disk::nbd) const FAST_ZERO: u16 = 1 << 4;
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
}

impl Command {
    const fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }

    /// The word for it in errors.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write of zeroes",
            Self::BlockStatus => "block status",
        }
    }
}

/// Encodes a request's header.
pub(super) fn request(command: Command, flags: u16, cookie: u64, offset: u64, length: u32) -> Bytes {
    let mut header = BytesMut::with_capacity(REQUEST_LENGTH);
    header.put_u32(REQUEST_MAGIC);
    header.put_u16(flags);
    header.put_u16(command.code());
    header.put_u64(cookie);
    header.put_u64(offset);
    header.put_u32(length);
    header.freeze()
}

/// Encodes an option.
pub(super) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.put_u64(OPTION_MAGIC);
    bytes.put_u32(number);
    bytes.put_u32(length_u32(data));
    bytes.extend_from_slice(data);
    bytes
}

/// The data of `OPTION_GO`: the export, and that its block sizes are wanted.
pub(super) fn go(export: &str) -> Vec<u8> {
    let mut data = named(export);
    data.put_u16(1);
    data.put_u16(INFO_BLOCK_SIZE);
    data
}

/// The data of `OPTION_SET_META_CONTEXT`.
pub(super) fn meta_contexts(export: &str, contexts: &[&str]) -> Vec<u8> {
    let mut data = named(export);
    data.put_u32(u32::try_from(contexts.len()).unwrap_or(u32::MAX));
    for context in contexts {
        data.extend_from_slice(&named(context));
    }
    data
}

fn named(name: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(4 + name.len());
    data.put_u32(length_u32(name.as_bytes()));
    data.extend_from_slice(name.as_bytes());
    data
}

/// Names are at most [`NAME_LENGTH_MAX`] bytes, checked on entry: nothing encoded here comes near 4 GiB.
fn length_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// The header of an answer to an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OptionReply {
    /// What it says.
    pub(super) reply: u32,
    /// The length of what follows, within [`OPTION_REPLY_LENGTH_MAX`].
    pub(super) length: usize,
}

/// Decodes the header of an answer to `option`.
pub(super) fn option_reply(option: u32, bytes: [u8; 20]) -> Result<OptionReply, Violation> {
    let mut fields = Fields::new("the answer to an option", &bytes);
    let magic = fields.u64()?;
    if magic != OPTION_REPLY_MAGIC {
        return Err(Violation::Magic { expected: "an answer to an option", got: magic });
    }
    let (got, reply, length) = (fields.u32()?, fields.u32()?, fields.u32()?);
    if got != option {
        return Err(Violation::WrongOption { expected: option, got });
    }
    if length > OPTION_REPLY_LENGTH_MAX {
        let (length, max) = (u64::from(length), u64::from(OPTION_REPLY_LENGTH_MAX));
        return Err(Violation::TooLong { what: "the answer to an option", length, max });
    }
    Ok(OptionReply { reply, length: length as usize })
}

/// A fact about an export.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Info {
    /// How large it is, and what it allows.
    Export { size: u64, flags: u16 },
    /// What requests it takes: offsets and lengths are multiples of `min`, payloads at most `max`.
    BlockSize { min: u32, max: u32 },
    /// Something this client does not need.
    Other,
}

/// Decodes the payload of [`REPLY_INFO`].
pub(super) fn info(payload: &[u8]) -> Result<Info, Violation> {
    let mut fields = Fields::new("a fact about the export", payload);
    let info = match fields.u16()? {
        INFO_EXPORT => Info::Export { size: fields.u64()?, flags: fields.u16()? },
        INFO_BLOCK_SIZE => {
            let (min, _preferred, max) = (fields.u32()?, fields.u32()?, fields.u32()?);
            if !min.is_power_of_two() || max < min {
                return Err(Violation::BlockSizes { min, max });
            }
            Info::BlockSize { min, max }
        }
        _ => return Ok(Info::Other),
    };
    fields.end()?;
    Ok(info)
}

/// Decodes the payload of [`REPLY_META_CONTEXT`]: the number of a context, and its name.
pub(super) fn meta_context(payload: &[u8]) -> Result<(u32, String), Violation> {
    let mut fields = Fields::new("a context", payload);
    let id = fields.u32()?;
    Ok((id, String::from_utf8_lossy(fields.rest).into_owned()))
}

/// The header of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReplyHeader {
    /// All of a reply to a request that has no payload.
    Simple { cookie: u64, errno: u32 },
    /// A part of a reply; its length is in the next four bytes.
    Chunk { cookie: u64, done: bool, kind: u16 },
}

/// Decodes the first 16 bytes of a reply.
pub(super) fn reply_header(bytes: [u8; 16]) -> Result<ReplyHeader, Violation> {
    let mut fields = Fields::new("a reply", &bytes);
    match fields.u32()? {
        SIMPLE_REPLY_MAGIC => {
            let errno = fields.u32()?;
            Ok(ReplyHeader::Simple { cookie: fields.u64()?, errno })
        }
        STRUCTURED_REPLY_MAGIC => {
            let (flags, kind) = (fields.u16()?, fields.u16()?);
            Ok(ReplyHeader::Chunk { cookie: fields.u64()?, done: flags & 1 != 0, kind })
        }
        other => Err(Violation::Magic { expected: "a reply", got: u64::from(other) }),
    }
}

/// Kinds of reply parts.
pub(super) mod chunk {
    /// No payload.
    pub(in crate::disk::nbd) const NONE: u16 = 0;
    /// Offset and data.
    pub(in crate::disk::nbd) const DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub(in crate::disk::nbd) const HOLE: u16 = 2;
    /// A context's number, and lengths with flags.
    pub(in crate::disk::nbd) const STATUS: u16 = 5;
    /// Set in every kind that is an error.
    pub(in crate::disk::nbd) const ERROR: u16 = 1 << 15;
}

/// Decodes the payload of a hole: where it is, and how long.
pub(super) fn hole(payload: [u8; 12]) -> Result<(u64, u32), Violation> {
    let mut fields = Fields::new("a hole", &payload);
    Ok((fields.u64()?, fields.u32()?))
}

/// One context's part of a block-status reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StatusChunk {
    /// The context's number.
    pub(super) context: u32,
    /// Lengths, none 0, and flags, one after the other from the request's offset.
    pub(super) entries: Vec<(u32, u32)>,
}

/// Decodes the payload of a block-status part, whose length was checked by [`check_status_length`].
pub(super) fn status(payload: &[u8]) -> Result<StatusChunk, Violation> {
    let mut fields = Fields::new("a block status", payload);
    let context = fields.u32()?;
    let mut entries = Vec::with_capacity((payload.len() / 8).min(STATUS_ENTRIES_MAX));
    while !fields.rest.is_empty() {
        let (length, flags) = (fields.u32()?, fields.u32()?);
        if length == 0 {
            return Err(Violation::Length { what: "an extent of a block status", length: 0 });
        }
        entries.push((length, flags));
    }
    Ok(StatusChunk { context, entries })
}

/// Checks the length of a block-status part before it is read.
pub(super) fn check_status_length(length: u32) -> Result<usize, Violation> {
    const MAX: usize = 4 + 8 * STATUS_ENTRIES_MAX;
    if length as usize > MAX {
        return Err(Violation::TooLong { what: "a block status", length: length.into(), max: MAX as u64 });
    }
    if length < 12 || !(length - 4).is_multiple_of(8) {
        return Err(Violation::Length { what: "a block status", length: length.into() });
    }
    Ok(length as usize)
}

/// Decodes the payload of an error: its number and text.
pub(super) fn error(payload: &[u8]) -> Result<(u32, String), Violation> {
    let mut fields = Fields::new("an error", payload);
    let (errno, length) = (fields.u32()?, usize::from(fields.u16()?));
    if errno == 0 {
        return Err(Violation::ErrorZero);
    }
    let text = fields.take(length)?;
    Ok((errno, String::from_utf8_lossy(text).into_owned()))
}

/// Checks the length of an error before it is read.
pub(super) fn check_error_length(length: u32) -> Result<usize, Violation> {
    // Number, length of the text, the text, and an offset in one of the kinds.
    const MAX: usize = 4 + 2 + ERROR_MESSAGE_LENGTH_MAX + 8;
    if length as usize > MAX {
        return Err(Violation::TooLong { what: "an error", length: length.into(), max: MAX as u64 });
    }
    Ok(length as usize)
}

/// Reads big-endian fields off a payload.
struct Fields<'a> {
    what: &'static str,
    length: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, length: bytes.len(), rest: bytes }
    }

    fn wrong_length(&self) -> Violation {
        Violation::Length { what: self.what, length: self.length as u64 }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Violation> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.wrong_length())?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(|| self.wrong_length())?;
        self.rest = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, Violation> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Violation> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Violation> {
        self.array().map(u64::from_be_bytes)
    }

    fn end(&self) -> Result<(), Violation> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.wrong_length()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_has_the_bytes_of_the_protocol() {
        let bytes = request(Command::WriteZeroes, flag::NO_HOLE, 0x0102, 0x1_0000, 0x200);
        let expected = [0x25, 0x60, 0x95, 0x13, 0, 2, 0, 6, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0];
        assert_eq!(bytes.as_ref(), expected);
    }

    #[test]
    fn option_data_has_the_bytes_of_the_protocol() {
        assert_eq!(go("ab"), [0, 0, 0, 2, b'a', b'b', 0, 1, 0, 3]);
        assert_eq!(meta_contexts("a", &["b:c"]), [0, 0, 0, 1, b'a', 0, 0, 0, 1, 0, 0, 0, 3, b'b', b':', b'c']);
    }

    #[test]
    fn lengths_over_the_limit_are_refused_before_reading() {
        let mut header = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        header.extend_from_slice(&[0, 0, 0, 7, 0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]);
        let header = header.try_into().expect("20 bytes");
        assert!(matches!(option_reply(OPTION_GO, header), Err(Violation::TooLong { .. })));
        assert!(matches!(check_status_length(u32::MAX), Err(Violation::TooLong { .. })));
        assert!(matches!(check_status_length(13), Err(Violation::Length { .. })));
        assert!(matches!(check_error_length(1 << 20), Err(Violation::TooLong { .. })));
    }

    #[test]
    fn an_extent_of_no_length_would_never_end_and_is_refused() {
        let payload = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3];
        assert_eq!(status(&payload), Err(Violation::Length { what: "an extent of a block status", length: 0 }));
    }

    proptest! {
        #[test]
        fn no_payload_makes_a_decoder_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = info(&payload);
            let _ = meta_context(&payload);
            let _ = error(&payload);
            if let Ok(chunk) = status(&payload) {
                prop_assert_eq!(chunk.entries.len() * 8 + 4, payload.len());
            }
        }

        #[test]
        fn no_header_makes_a_decoder_panic(bytes in any::<[u8; 20]>(), head in any::<[u8; 16]>()) {
            let _ = option_reply(OPTION_GO, bytes);
            let _ = reply_header(head);
        }
    }
}
