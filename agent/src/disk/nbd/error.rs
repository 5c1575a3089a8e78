//! What can go wrong between the client and a server, and who is to blame.

use std::path::PathBuf;
use std::sync::Arc;

use sterna_shared::vm::DISK_SIZE_MAX;

use super::{NEGOTIATION_MAX, SILENCE_MAX, STATUSES_MAX, wire};

/// Why an NBD operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The socket could not be connected to.
    #[error("cannot connect to the NBD socket {}; is the export's server running?", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The negotiation failed.
    #[error("the NBD negotiation failed")]
    Negotiation {
        /// Why.
        #[source]
        cause: Failure,
    },
    /// The server refused the export or the contexts.
    #[error(
        "the NBD server refuses export {export:?} (reply {reply:#x}, {message:?}); is it exported under that name?"
    )]
    Refused {
        /// The export.
        export: String,
        /// The server's reply.
        reply: u32,
        /// The server's words.
        message: String,
    },
    /// The server granted the export, but not that context.
    #[error("the NBD export has no context {context:?}; was it exported with that bitmap?")]
    NoContext {
        /// The context.
        context: String,
    },
    /// The server cannot do what Sterna needs.
    #[error("the NBD server has no {lacks}; QEMU 7.2 or later has it")]
    Incompatible {
        /// What it lacks.
        lacks: &'static str,
    },
    /// The export is larger than any disk may be.
    #[error("the NBD export has {size} bytes; the largest disk has {DISK_SIZE_MAX}")]
    TooLarge {
        /// Its size.
        size: u64,
    },
    /// The caller asked for something the protocol cannot say.
    #[error("{what} is {value}, and must be {must}")]
    Argument {
        /// What is wrong.
        what: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        must: String,
    },
    /// The range is not within the disk, or not in whole blocks.
    #[error(
        "a {operation} of {length} bytes at {offset} does not fit an export of {size} bytes in blocks of {block_min} \
         and requests of at most {length_max} bytes"
    )]
    Range {
        /// The operation.
        operation: &'static str,
        /// Its first byte.
        offset: u64,
        /// Its length.
        length: u64,
        /// The disk's size.
        size: u64,
        /// The smallest block.
        block_min: u32,
        /// The longest request.
        length_max: u64,
    },
    /// The export does not allow the operation.
    #[error("the NBD export does not allow a {operation}; export it with what the operation needs (writable, discard)")]
    NotAllowed {
        /// The operation.
        operation: &'static str,
    },
    /// The server tried and failed.
    #[error("the NBD server failed a {operation} of {length} bytes at {offset} with error {errno} {message:?}")]
    Server {
        /// The operation.
        operation: &'static str,
        /// Its first byte.
        offset: u64,
        /// Its length.
        length: u32,
        /// The server's error number, as NBD numbers them: 1 EPERM, 5 EIO, 12 ENOMEM, 22 EINVAL, 28 ENOSPC, 75
        /// EOVERFLOW, 95 ENOTSUP, 108 ESHUTDOWN.
        errno: u32,
        /// The server's words.
        message: String,
    },
    /// The connection ended before the operation did. Whether a write took effect is unknown.
    #[error("the NBD connection ended during a {operation}")]
    Lost {
        /// The operation.
        operation: &'static str,
        /// Why.
        #[source]
        cause: Arc<Failure>,
    },
    /// A disk so fragmented that the list of its extents is over its limit.
    #[error("context {context} has over {STATUSES_MAX} extents in one range; ask for smaller ranges")]
    TooFragmented {
        /// The context.
        context: String,
    },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[source] std::io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Ended,
    /// The server did something that the protocol does not allow.
    #[error("the server broke the protocol")]
    Violation(#[from] Violation),
    /// The server did not answer in time.
    #[error("the server did not answer in time (negotiation {NEGOTIATION_MAX:?}, requests {SILENCE_MAX:?})")]
    Silent,
    /// This side closed the connection.
    #[error("this side closed the connection")]
    Closed,
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof { Self::Ended } else { Self::Io(error) }
    }
}

/// What a peer did that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A fixed word was something else: it is no NBD server, or the stream is out of step.
    #[error("expected {expected} and got {got:#x}; is this the socket of an NBD server?")]
    Magic {
        /// What should have been there.
        expected: &'static str,
        /// What was.
        got: u64,
    },
    /// A length is over its limit.
    #[error("{what} of {length} bytes; at most {max} are accepted")]
    TooLong {
        /// What has that length.
        what: &'static str,
        /// The announced length.
        length: u64,
        /// The limit.
        max: u64,
    },
    /// A length does not fit what it is the length of.
    #[error("{what} has {length} bytes, which is not a length it can have")]
    Length {
        /// What has that length.
        what: &'static str,
        /// The announced length.
        length: u64,
    },
    /// An answer to something that was not asked.
    #[error("an answer to option {got} came where one to option {expected} was awaited")]
    WrongOption {
        /// The option that was sent.
        expected: u32,
        /// The option that was answered.
        got: u32,
    },
    /// An answer of a kind that the option does not have.
    #[error("option {option} was answered by a reply of kind {reply:#x}, which it does not have")]
    WrongOptionReply {
        /// The option.
        option: u32,
        /// The kind of answer.
        reply: u32,
    },
    /// Answers to an option without end.
    #[error("option {option} was answered more than {} times without an end", wire::OPTION_REPLIES_MAX)]
    EndlessOption {
        /// The option.
        option: u32,
    },
    /// The server agreed to use an export without saying how large it is.
    #[error("the server accepted the export without telling its size")]
    NoSize,
    /// The connections of one client got to see different exports.
    #[error("one connection sees {first} bytes and another {other}; the export changed while connecting")]
    SizeChanged {
        /// The size first told.
        first: u64,
        /// The size told later.
        other: u64,
    },
    /// Block sizes that are no powers of two or contradict each other.
    #[error("block sizes of at least {min} and at most {max} bytes make no sense")]
    BlockSizes {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// A reply to a request that is not in flight.
    #[error("a reply to request {cookie:#x}, which is not in flight")]
    UnknownCookie {
        /// The request's number.
        cookie: u64,
    },
    /// A reply of a kind that the request does not have.
    #[error("a reply of kind {kind:#x} to a {command}, which has none such")]
    WrongReply {
        /// The request.
        command: &'static str,
        /// The kind of reply.
        kind: u32,
    },
    /// Bytes outside the range that was asked for, or twice.
    #[error("a reply for {length} bytes at {offset} to a request for other bytes, or for bytes already replied")]
    WrongRange {
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// A reply ended before all of it was there.
    #[error("a reply to a {command} ended with {missing} bytes missing")]
    Incomplete {
        /// The request.
        command: &'static str,
        /// What is missing.
        missing: u64,
    },
    /// A reply in more parts than any needs.
    #[error("a reply to a {command} in more than {max} parts")]
    EndlessReply {
        /// The request.
        command: &'static str,
        /// The limit.
        max: usize,
    },
    /// An error reply whose number says success.
    #[error("an error reply with the number 0, which is success")]
    ErrorZero,
}
