//! What a lane has still to write, and what it keeps until the peer has it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use sterna_shared::peer::frame::{ANSWER_NOW, FrameKind, HEADER_LENGTH, Header};
use tokio::io::AsyncWrite;

use super::lane::{Command, Frame, PREFIX_LENGTH_MAX};

/// Slices given to one vectored write.
const SLICES_MAX: usize = 64;
/// Bytes given to one vectored write: what is sealed at a time, and a frame more.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// What was handed to a lane and is not yet acknowledged, and how much of it is written to the connection of now.
/// Bounded by the windows: a flow's frames are let in only where the peer has room for them.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    kept: VecDeque<Kept>,
    /// The first in `kept` that is not wholly written, and how many bytes of it are.
    next: usize,
    offset: usize,
    /// The number given last.
    sequence: u64,
    /// The highest number that the peer has acknowledged.
    acknowledged: u64,
    /// How many of the acknowledged frames came from commands.
    pub(super) delivered: u64,
    /// The highest number of the peer's that we have acknowledged.
    told: u64,
    /// Frames without a number go between others, one at a time.
    loose: Option<([u8; HEADER_LENGTH], usize)>,
    answer_due: bool,
    heartbeat_due: bool,
    solicit_due: bool,
    flush_due: bool,
}

#[derive(Debug)]
struct Kept {
    head: [u8; HEADER_LENGTH + PREFIX_LENGTH_MAX],
    head_length: usize,
    payload: Bytes,
    from_command: bool,
}

impl Kept {
    fn length(&self) -> usize {
        self.head_length + self.payload.len()
    }
}

impl Outbox {
    pub(super) fn accept(&mut self, command: Command) {
        match command {
            Command::Send(frame) => self.push(&frame, true),
            Command::Solicit => self.solicit_due = true,
            Command::Close { aborted } => {
                self.push(&Frame::close(aborted), true);
                self.solicit_due = true;
            }
        }
    }

    pub(super) fn push(&mut self, frame: &Frame, from_command: bool) {
        self.sequence += 1;
        let header = Header {
            kind: frame.kind,
            flags: frame.flags,
            channel: frame.channel,
            length: u32::try_from(frame.payload_length()).unwrap_or(u32::MAX),
            sequence: self.sequence,
            acknowledged: 0,
        };
        let mut head = [0; HEADER_LENGTH + PREFIX_LENGTH_MAX];
        head[..HEADER_LENGTH].copy_from_slice(&header.encode());
        head[HEADER_LENGTH..].copy_from_slice(&frame.prefix.bytes);
        let head_length = HEADER_LENGTH + frame.prefix.length;
        self.kept.push_back(Kept { head, head_length, payload: frame.payload.clone(), from_command });
    }

    /// Begins anew on another connection, after what the peer has received. False where it claims what cannot be.
    pub(super) fn resume(&mut self, peer_received: u64) -> bool {
        (self.next, self.offset, self.loose) = (self.kept.len(), 0, None);
        let possible = self.acknowledged(peer_received);
        self.next = 0;
        self.flush_due = false;
        possible && peer_received == self.acknowledged
    }

    /// Forgets what the peer has. False where that was never written.
    pub(super) fn acknowledged(&mut self, number: u64) -> bool {
        let written = self.acknowledged + u64::try_from(self.next).unwrap_or(0);
        if number > written {
            return false;
        }
        while self.acknowledged < number {
            let Some(kept) = self.kept.pop_front() else { return false };
            self.acknowledged += 1;
            self.next -= 1;
            self.delivered += u64::from(kept.from_command);
        }
        true
    }

    pub(super) fn answer(&mut self) {
        self.answer_due = true;
    }

    pub(super) fn heartbeat(&mut self) {
        self.heartbeat_due = true;
    }

    pub(super) fn acknowledge_where_due(&mut self, received: u64) {
        self.answer_due |= received > self.told;
    }

    /// Whether an answer is still to be written.
    pub(super) fn urgent(&self) -> bool {
        self.answer_due || self.loose.is_some() || self.flush_due
    }

    /// Makes the next frame without a number, if one is due.
    fn prepare(&mut self, received: u64) {
        if self.loose.is_some() {
            return;
        }
        let all_written = self.next == self.kept.len();
        let (kind, flags) = if self.solicit_due && all_written {
            self.solicit_due = false;
            (FrameKind::Heartbeat, ANSWER_NOW)
        } else if self.answer_due {
            (FrameKind::Acknowledge, 0)
        } else if self.heartbeat_due {
            self.heartbeat_due = false;
            // A question lost with a connection is so asked again.
            (FrameKind::Heartbeat, if self.kept.is_empty() { 0 } else { ANSWER_NOW })
        } else {
            return;
        };
        self.answer_due = false;
        self.told = received;
        let header = Header { kind, flags, channel: 0, length: 0, sequence: 0, acknowledged: received };
        self.loose = Some((header.encode(), 0));
    }

    /// Writes as much as the connection takes at once. Ready with false: there is nothing to write.
    pub(super) fn poll_write<C: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut C,
        received: u64,
    ) -> Poll<io::Result<bool>> {
        self.prepare(received);
        if self.loose.is_none() && self.next == self.kept.len() {
            if self.flush_due {
                ready!(Pin::new(connection).poll_flush(cx))?;
                self.flush_due = false;
                return Poll::Ready(Ok(true));
            }
            return Poll::Ready(Ok(false));
        }
        let mut bytes = 0;
        for (place, kept) in self.kept.iter_mut().enumerate().skip(self.next) {
            if bytes >= BATCH_BYTES_MAX || place - self.next >= SLICES_MAX / 2 - 1 {
                break;
            }
            // A header that is partly written must not change.
            if place > self.next || self.offset == 0 {
                kept.head[HEADER_LENGTH - 8..HEADER_LENGTH].copy_from_slice(&received.to_be_bytes());
            }
            bytes += kept.length();
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        let mut put = |slice| {
            slices[used] = IoSlice::new(slice);
            used += 1;
        };
        let loose = self.loose.as_ref().map(|(bytes, offset)| &bytes[*offset..]);
        // Between frames, and never within one.
        let loose_first = self.offset == 0;
        if let Some(loose) = loose.filter(|_| loose_first) {
            put(loose);
        }
        let mut offset = self.offset;
        let mut batch = 0;
        for (place, kept) in self.kept.iter().skip(self.next).enumerate() {
            if batch >= BATCH_BYTES_MAX || place >= SLICES_MAX / 2 - 1 {
                break;
            }
            batch += kept.length();
            put(&kept.head[offset.min(kept.head_length)..kept.head_length]);
            put(&kept.payload[offset.saturating_sub(kept.head_length)..]);
            if let Some(loose) = loose.filter(|_| !loose_first && place == 0) {
                put(loose);
            }
            offset = 0;
        }
        let count = ready!(Pin::new(connection).poll_write_vectored(cx, &slices[..used]))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(count, received);
        self.flush_due = true;
        Poll::Ready(Ok(true))
    }

    fn advance(&mut self, mut count: usize, received: u64) {
        while count > 0 {
            if self.offset == 0
                && let Some((bytes, offset)) = &mut self.loose
            {
                let part = count.min(bytes.len() - *offset);
                *offset += part;
                count -= part;
                if *offset == bytes.len() {
                    self.loose = None;
                }
                continue;
            }
            let Some(kept) = self.kept.get(self.next) else { return };
            if self.offset == 0 {
                self.told = received;
            }
            let part = count.min(kept.length() - self.offset);
            self.offset += part;
            count -= part;
            if self.offset == kept.length() {
                (self.next, self.offset) = (self.next + 1, 0);
            }
        }
    }
}
