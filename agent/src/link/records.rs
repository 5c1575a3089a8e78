//! TLS 1.3's record layer, for a connection on which rustls has made the handshake.
//!
//! ```text
//!   handshake, hello, attachment    rustls over a Cork, which gives it one record at a time: nothing that follows is with it
//!          │                        when its keys are taken over
//!          ▼ keys, numbers
//!   frames: Records                 socket ─▶ wire buffer ─▶ opened straight into the reader's memory
//!                                   slices ─▶ sealed where they were gathered ─▶ socket
//! ```
//!
//! On the wire it is TLS as before. What is gained are copies: rustls moves what it received three times before a reader
//! has it, which was a tenth of an agent's processor time while bulk flows. What is given up are messages after the
//! handshake. There are none between agents: no tickets are sent, and a connection whose key has protected all it may is
//! dropped, and so dialled again with new keys by its lane.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A record's header: type, version, length (RFC 8446, 5.2).
const HEADER_LENGTH: usize = 5;
/// The most content in one record, and the most that its length may say: padding, type and tag included.
const CONTENT_LENGTH_MAX: usize = 16 << 10;
const PROTECTED_LENGTH_MAX: usize = CONTENT_LENGTH_MAX + 256;
const RECORD_LENGTH_MAX: usize = HEADER_LENGTH + PROTECTED_LENGTH_MAX;
/// The authentication tag of every cipher of TLS 1.3.
const TAG_LENGTH: usize = 16;
/// Types of content.
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// The alert that ends a direction in good order.
const CLOSE_NOTIFY: u8 = 0;
/// Bytes taken from the socket at a time.
const WIRE_LENGTH: usize = 256 << 10;
/// Content sealed at a time: large enough for few system calls, small enough to be in a cache still when the socket copies it.
const BATCH_LENGTH: usize = 256 << 10;
/// Records that one key of AES-GCM protects safely (RFC 8446, 5.5); 256 GiB.
const RECORDS_MAX: u64 = 1 << 24;
/// Records without content that are taken one after the other: each costs us more than the peer.
const EMPTY_MAX: u32 = 32;

/// What was received and not yet used up.
#[derive(Debug)]
struct Wire {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Wire {
    /// A buffer that begins with what was received already.
    fn of(length: usize, received: &[u8]) -> Self {
        let mut bytes = vec![0; length].into_boxed_slice();
        bytes[..received.len()].copy_from_slice(received);
        Self { bytes, start: 0, end: received.len() }
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The header of the first record and its length without it, once the header is there.
    fn header(&self) -> io::Result<Option<([u8; HEADER_LENGTH], usize)>> {
        let Some(header) = self.filled().first_chunk::<HEADER_LENGTH>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        match length <= PROTECTED_LENGTH_MAX {
            true => Ok(Some((*header, length))),
            false => Err(invalid("the peer sent a TLS record that is longer than any may be")),
        }
    }

    /// Takes more from the socket, at least one byte; none at its end.
    fn poll_fill<S: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, socket: &mut S) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < RECORD_LENGTH_MAX {
            // What is left is less than a record.
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(socket).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}

/// A socket that gives away no byte of a record before the one before it was taken whole.
#[derive(Debug)]
pub struct Cork<S> {
    socket: S,
    wire: Wire,
    /// Of the record that is being taken.
    left: usize,
}

impl<S> Cork<S> {
    pub(super) fn new(socket: S) -> Self {
        // Who is at the other end is not known yet: one record's worth must do.
        Self { socket, wire: Wire::of(RECORD_LENGTH_MAX, &[]), left: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cork<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, wire, left } = self.get_mut();
        loop {
            if *left == 0
                && let Some((_, length)) = wire.header()?
            {
                *left = HEADER_LENGTH + length;
            }
            if *left > 0 && !wire.filled().is_empty() {
                break;
            }
            if ready!(wire.poll_fill(cx, socket))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let count = buffer.remaining().min(*left).min(wire.filled().len());
        buffer.put_slice(&wire.filled()[..count]);
        wire.start += count;
        *left -= count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cork<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// One direction's key, and the number of its next record.
#[derive(Debug)]
struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    number: u64,
}

impl Key {
    fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<Self> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(invalid("a cipher was negotiated that Sterna does not know")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref());
        let iv = <[u8; NONCE_LEN]>::try_from(iv.as_ref());
        match (key, iv) {
            (Ok(key), Ok(iv)) => Ok(Self { key: LessSafeKey::new(key), iv, number }),
            _ => Err(invalid("the key of a connection does not fit its cipher")),
        }
    }

    /// The nonce of the next record (RFC 8446, 5.3). No two records get the same.
    fn nonce(&mut self) -> io::Result<Nonce> {
        if self.number >= RECORDS_MAX {
            return Err(io::Error::other("the keys of the connection have protected all they may; it is made anew"));
        }
        let mut nonce = self.iv;
        nonce[NONCE_LEN - 8..].iter_mut().zip(self.number.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.number += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// A connection in which both directions are protected.
#[derive(Debug)]
pub(super) struct Records<S> {
    socket: S,
    wire: Wire,
    opening: Key,
    /// Where in the wire's buffer content lies that was opened there and is not read yet. Nothing is received until it is.
    opened: std::ops::Range<usize>,
    empty: u32,
    closed: bool,
    sealing: Key,
    sealed: Vec<u8>,
    /// How much of `sealed` is in the socket.
    written: usize,
}

impl<S> Records<S> {
    /// Takes over from rustls, which has given all that it had received to its reader, and has nothing more to send.
    ///
    /// # Errors
    /// The peer has sent what does not belong here, or the cipher is not known.
    pub(super) fn new(cork: Cork<S>, secrets: ExtractedSecrets) -> io::Result<Self> {
        let Cork { socket, wire, left } = cork;
        if left != 0 {
            return Err(invalid("the peer cut a TLS record in two where its attachment ends"));
        }
        let wire = Wire::of(WIRE_LENGTH, wire.filled());
        let (opening, sealing) = (Key::new(secrets.rx)?, Key::new(secrets.tx)?);
        let (sealed, written, opened) = (Vec::new(), 0, 0..0);
        Ok(Self { socket, wire, opening, opened, empty: 0, closed: false, sealing, sealed, written })
    }

    /// Opens the first record of the wire: into `buffer` where it has room for it, else where it is.
    fn open(&mut self, header: [u8; HEADER_LENGTH], length: usize, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        let [APPLICATION_DATA, 3, 3, ..] = header else {
            return Err(invalid("the peer sent a TLS record that is not protected"));
        };
        let Some(inner) = length.checked_sub(TAG_LENGTH) else {
            return Err(invalid("the peer sent a TLS record that is too short"));
        };
        let nonce = self.opening.nonce()?;
        let start = self.wire.start + HEADER_LENGTH;
        self.wire.start = start + length;
        let (content, tag) = self.wire.bytes[start..start + length].split_at_mut(inner);
        let in_place = buffer.remaining() < inner;
        let plain: &[u8] = if in_place {
            self.opening.key.open_in_place_separate_tag(nonce, Aad::from(header), tag, content).map_err(damaged)?
        } else {
            let room = buffer.initialize_unfilled_to(inner);
            self.opening.key.open_separate_gather(nonce, Aad::from(header), content, tag, room).map_err(damaged)?;
            room
        };
        // Content, its type, and zeroes for padding.
        let end = plain.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        match (plain.get(end), &plain[..end]) {
            (Some(&APPLICATION_DATA), []) => {
                self.empty += 1;
                if self.empty > EMPTY_MAX {
                    return Err(invalid("the peer sends TLS records without content"));
                }
            }
            (Some(&APPLICATION_DATA), _) => {
                self.empty = 0;
                if in_place {
                    self.opened = start..start + end;
                } else {
                    buffer.advance(end);
                }
            }
            (Some(&ALERT), [_, CLOSE_NOTIFY]) => self.closed = true,
            (Some(&ALERT), [_, alert]) => {
                return Err(io::Error::other(format!("the peer ended the connection with the TLS alert {alert}")));
            }
            _ => return Err(invalid("the peer sent a TLS message that is not expected after the handshake")),
        }
        Ok(())
    }

    /// Seals content, as much as one batch holds; gives back how much that was.
    fn seal(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.written = 0;
        self.sealed.clear();
        let mut slices = slices.iter().map(|slice| &slice[..]).filter(|slice| !slice.is_empty());
        let mut slice = slices.next().unwrap_or_default();
        let mut taken = 0;
        while !slice.is_empty() && taken < BATCH_LENGTH {
            let start = self.sealed.len();
            self.sealed.extend_from_slice(&[0; HEADER_LENGTH]);
            let mut room = CONTENT_LENGTH_MAX;
            while room > 0 && !slice.is_empty() {
                let (now, later) = slice.split_at(slice.len().min(room));
                self.sealed.extend_from_slice(now);
                (room, taken) = (room - now.len(), taken + now.len());
                slice = if later.is_empty() { slices.next().unwrap_or_default() } else { later };
            }
            self.sealed.push(APPLICATION_DATA);
            let (head, content) = self.sealed[start..].split_at_mut(HEADER_LENGTH);
            // At most CONTENT_LENGTH_MAX and a little.
            let [.., high, low] = (content.len() + TAG_LENGTH).to_be_bytes();
            let header = [APPLICATION_DATA, 3, 3, high, low];
            head.copy_from_slice(&header);
            let nonce = self.sealing.nonce()?;
            let tag = self.sealing.key.seal_in_place_separate_tag(nonce, Aad::from(header), content);
            self.sealed.extend_from_slice(tag.map_err(damaged)?.as_ref());
        }
        Ok(taken)
    }
}

impl<S: AsyncWrite + Unpin> Records<S> {
    /// Puts what is sealed into the socket.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.sealed.len() {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.sealed[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Records<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        while buffer.remaining() > 0 && !this.closed {
            if !this.opened.is_empty() {
                let count = this.opened.len().min(buffer.remaining());
                buffer.put_slice(&this.wire.bytes[this.opened.start..this.opened.start + count]);
                this.opened.start += count;
                continue;
            }
            match this.wire.header()? {
                Some((header, length)) if this.wire.filled().len() >= HEADER_LENGTH + length => {
                    this.open(header, length, buffer)?;
                }
                // What is there is given first; the socket is asked when there is nothing else.
                _ if buffer.filled().len() > before => break,
                _ if ready!(this.wire.poll_fill(cx, &mut this.socket))? == 0 => break,
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let taken = this.seal(slices)?;
        // What is sealed is taken: what the socket has no room for goes before all that comes.
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn damaged(_: aws_lc_rs::error::Unspecified) -> io::Error {
    invalid("a TLS record is damaged, or was made with other keys")
}

#[cfg(test)]
mod tests;
