//! Fixed newstyle negotiation: from a fresh connection to an export in use.
//!
//! ```text
//!   server                                   client
//!     NBDMAGIC IHAVEOPT flags  ───────────▶
//!                              ◀───────────  flags
//!                              ◀───────────  STRUCTURED_REPLY            → ACK, or this is not for us
//!                              ◀───────────  SET_META_CONTEXT (if any)   → META_CONTEXT each granted, ACK
//!                              ◀───────────  GO with BLOCK_SIZE          → INFO…, ACK: transmission begins
//! ```

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire::{self, Info};
use super::{CONTEXTS_MAX, Failure, NbdError, Violation};

/// The largest payload of a server that tells no limit; the protocol's own default.
const PAYLOAD_MAX_DEFAULT: u32 = 32 << 20;

/// What was agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// The size of the export in bytes.
    pub(super) size: u64,
    /// What it allows: bits of [`wire::can`].
    pub(super) flags: u16,
    /// Offsets and lengths are multiples of this.
    pub(super) block_min: u32,
    /// The largest payload of a request.
    pub(super) payload_max: u32,
    /// The contexts granted, each with its number on this connection.
    pub(super) contexts: Vec<(String, u32)>,
}

/// Negotiates the use of `export` with `contexts`. Every context asked for is granted, or it is an error.
pub(super) async fn negotiate<S>(stream: &mut S, export: &str, contexts: &[&str]) -> Result<Terms, NbdError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    greet(stream).await?;
    require_structured_replies(stream).await?;
    let contexts = if contexts.is_empty() { Vec::new() } else { request_contexts(stream, export, contexts).await? };
    let mut terms = go(stream, export).await?;
    terms.contexts = contexts;
    Ok(terms)
}

async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), NbdError> {
    let magic = stream.read_u64().await.map_err(failed)?;
    if magic != wire::INIT_MAGIC {
        return Err(violated(Violation::Magic { expected: "NBDMAGIC", got: magic }));
    }
    let magic = stream.read_u64().await.map_err(failed)?;
    if magic != wire::OPTION_MAGIC {
        return Err(violated(Violation::Magic { expected: "IHAVEOPT", got: magic }));
    }
    let flags = stream.read_u16().await.map_err(failed)?;
    if flags & wire::HANDSHAKE_FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Incompatible { lacks: "fixed newstyle negotiation" });
    }
    let answer = flags & (wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES);
    stream.write_u32(answer.into()).await.map_err(failed)
}

async fn require_structured_replies<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), NbdError> {
    let option = wire::OPTION_STRUCTURED_REPLY;
    stream.write_all(&wire::option(option, &[])).await.map_err(failed)?;
    match reply(stream, option).await? {
        (wire::REPLY_ACK, _) => Ok(()),
        (reply, _) if reply & wire::REPLY_ERROR != 0 => {
            abort(stream).await;
            Err(NbdError::Incompatible { lacks: "structured replies" })
        }
        (reply, _) => Err(violated(Violation::WrongOptionReply { option, reply })),
    }
}

async fn request_contexts<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    export: &str,
    contexts: &[&str],
) -> Result<Vec<(String, u32)>, NbdError> {
    let option = wire::OPTION_SET_META_CONTEXT;
    let request = wire::option(option, &wire::meta_contexts(export, contexts));
    stream.write_all(&request).await.map_err(failed)?;
    let mut granted = Vec::with_capacity(contexts.len());
    for _ in 0..=CONTEXTS_MAX {
        match reply(stream, option).await? {
            (wire::REPLY_META_CONTEXT, payload) => {
                let (id, name) = wire::meta_context(&payload).map_err(violated)?;
                granted.push((name, id));
            }
            (wire::REPLY_ACK, _) => {
                let missing = contexts.iter().find(|asked| !granted.iter().any(|(name, _)| name == *asked));
                return match missing {
                    None => Ok(granted),
                    Some(context) => {
                        abort(stream).await;
                        Err(NbdError::NoContext { context: (*context).to_owned() })
                    }
                };
            }
            (reply, payload) => return Err(refused_or_violated(stream, export, option, reply, &payload).await),
        }
    }
    Err(violated(Violation::EndlessOption { option }))
}

async fn go<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, export: &str) -> Result<Terms, NbdError> {
    let option = wire::OPTION_GO;
    stream.write_all(&wire::option(option, &wire::go(export))).await.map_err(failed)?;
    let (mut told, mut sizes) = (None, (1, PAYLOAD_MAX_DEFAULT));
    for _ in 0..wire::OPTION_REPLIES_MAX {
        match reply(stream, option).await? {
            (wire::REPLY_INFO, payload) => match wire::info(&payload).map_err(violated)? {
                Info::Export { size, flags } => told = Some((size, flags)),
                Info::BlockSize { min, max } => sizes = (min, max),
                Info::Other => {}
            },
            (wire::REPLY_ACK, _) => {
                let (size, flags) = told.ok_or_else(|| violated(Violation::NoSize))?;
                let (block_min, payload_max) = sizes;
                return Ok(Terms { size, flags, block_min, payload_max, contexts: Vec::new() });
            }
            (reply, payload) => return Err(refused_or_violated(stream, export, option, reply, &payload).await),
        }
    }
    Err(violated(Violation::EndlessOption { option }))
}

/// Reads one answer to `option`: its kind and payload.
async fn reply<S: AsyncRead + Unpin>(stream: &mut S, option: u32) -> Result<(u32, Vec<u8>), NbdError> {
    let mut header = [0; 20];
    stream.read_exact(&mut header).await.map_err(failed)?;
    let header = wire::option_reply(option, header).map_err(violated)?;
    let mut payload = vec![0; header.length];
    stream.read_exact(&mut payload).await.map_err(failed)?;
    Ok((header.reply, payload))
}

async fn refused_or_violated<S: AsyncWrite + Unpin>(
    stream: &mut S,
    export: &str,
    option: u32,
    reply: u32,
    payload: &[u8],
) -> NbdError {
    if reply & wire::REPLY_ERROR == 0 {
        return violated(Violation::WrongOptionReply { option, reply });
    }
    abort(stream).await;
    let text = &payload[..payload.len().min(wire::ERROR_MESSAGE_LENGTH_MAX)];
    let message = String::from_utf8_lossy(text).into_owned();
    NbdError::Refused { export: export.to_owned(), reply, message }
}

/// Says goodbye in negotiation. A server that is gone needs no goodbye, so a failure to send it is none.
async fn abort<S: AsyncWrite + Unpin>(stream: &mut S) {
    let _ = stream.write_all(&wire::option(wire::OPTION_ABORT, &[])).await;
}

fn failed(error: std::io::Error) -> NbdError {
    NbdError::Negotiation { cause: error.into() }
}

fn violated(violation: Violation) -> NbdError {
    NbdError::Negotiation { cause: Failure::Violation(violation) }
}
