//! One lane: a numbered, acknowledged stream of frames each way, over one connection at a time.
//!
//! ```text
//!   commands ─▶ Outbox: kept until acknowledged ─▶ ┐            ┌ ─▶ numbers checked ─▶ Inlets
//!                    ▲ acknowledged, credit        │ connection │        │
//!                    └────────────────── peer ◀────┘            └────────┘ received
//! ```
//!
//! The task that runs a lane owns all of its state. Connections come and go; `received` of the peer says, at each
//! attachment, where sending goes on. One poll does both directions, so neither starves the other, and the time is looked
//! at on ticks only, not on each frame.

use std::future::Future;
use std::io::{self};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use sterna_shared::peer::frame::{ABORTED, ANSWER_NOW, FrameKind, HEADER_LENGTH, Header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::flow::{Flow, Inlets, Windows};
use super::outbox::Outbox;
use super::session::LaneStatus;
use super::{LinkError, Timing};
use crate::buffers::{Buffer, Pool};

/// Commands taken over at a time.
const COMMANDS_MAX: usize = 64;
/// Frames read before other events get their turn.
const FRAMES_MAX: usize = 16;
/// Breaches of the protocol that end the session; fewer cost a connection each.
const BREACHES_MAX: u32 = 8;
/// Ticks in one heartbeat.
const TICKS_PER_HEARTBEAT: u32 = 10;
/// What comes before the bulk in a payload: offset and length at most.
pub(super) const PREFIX_LENGTH_MAX: usize = 16;

/// A frame as it is handed to a lane.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: FrameKind,
    pub(super) flags: u8,
    pub(super) channel: u16,
    pub(super) prefix: Prefix,
    pub(super) payload: Bytes,
}

/// The first bytes of a payload, held inline.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Prefix {
    pub(super) bytes: [u8; PREFIX_LENGTH_MAX],
    pub(super) length: usize,
}

impl Prefix {
    pub(super) fn one(number: u64) -> Self {
        let mut prefix = Self { length: 8, ..Self::default() };
        prefix.bytes[..8].copy_from_slice(&number.to_be_bytes());
        prefix
    }

    pub(super) fn two(first: u64, second: u64) -> Self {
        let mut prefix = Self { length: 16, ..Self::one(first) };
        prefix.bytes[8..].copy_from_slice(&second.to_be_bytes());
        prefix
    }
}

impl Frame {
    pub(super) fn payload_length(&self) -> usize {
        self.prefix.length + self.payload.len()
    }

    pub(super) fn close(aborted: bool) -> Self {
        let flags = if aborted { ABORTED } else { 0 };
        Self { kind: FrameKind::Close, flags, channel: 0, prefix: Prefix::default(), payload: Bytes::new() }
    }

    fn credit(flow: Flow, bytes: usize) -> Self {
        let (kind, channel) = flow.name();
        let prefix = Prefix::one(u64::try_from(bytes).unwrap_or(u64::MAX));
        Self { kind: FrameKind::Credit, flags: kind as u8, channel, prefix, payload: Bytes::new() }
    }
}

/// What the session asks of a lane.
#[derive(Debug)]
pub(super) enum Command {
    Send(Frame),
    /// Have the peer acknowledge all that was sent, now.
    Solicit,
    /// The last frame.
    Close {
        aborted: bool,
    },
}

/// Where connections come from: dialled at the source, accepted at the target.
pub(super) trait Supply: Send {
    type Connection: AsyncRead + AsyncWrite + Unpin + Send;

    /// A connection that has attached, and what the peer has received on this lane. `received` is what we have.
    fn next(&mut self, received: u64) -> impl Future<Output = Result<(Self::Connection, u64), LinkError>> + Send;

    /// Waits until the peer has made another connection, while one is in use. Cancelling loses nothing.
    fn replaced(&mut self) -> impl Future<Output = ()> + Send;
}

/// What all lanes of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) lanes: u8,
    pub(super) timing: Timing,
    pub(super) windows: Windows,
    pub(super) end: watch::Sender<Option<LinkError>>,
    pub(super) status: watch::Sender<Vec<LaneStatus>>,
    /// By lane, how many commands' frames the peer has acknowledged.
    pub(super) delivered: Vec<watch::Sender<u64>>,
    /// All was delivered and a Close is on its way: a peer that has ended by then is no failure.
    pub(super) closing: AtomicBool,
    /// The data lanes are of no use any more: see [`Session::give_up_bulk`](super::Session::give_up_bulk).
    pub(super) bulk_given_up: watch::Sender<bool>,
}

impl Shared {
    /// Ends the session, unless it has ended already: the first reason counts.
    pub(super) fn finish(&self, reason: LinkError) {
        let gone = matches!(reason, LinkError::StateLost | LinkError::Refused(_));
        let reason = if gone && self.closing.load(Ordering::Acquire) { LinkError::Closed } else { reason };
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(reason);
            }
            first
        });
        self.windows.close();
    }

    fn report(&self, lane: u8, status: LaneStatus) {
        self.status.send_modify(|lanes| lanes[usize::from(lane)] = status);
    }
}

/// One lane's state, and the task that owns it.
#[derive(Debug)]
pub(super) struct Lane {
    index: u8,
    shared: Arc<Shared>,
    inlets: Inlets,
    commands: mpsc::Receiver<Command>,
    outbox: Outbox,
    received: u64,
    breaches: u32,
    /// The peer's Close has come; what is left is to acknowledge it.
    closed: Option<LinkError>,
}

impl Lane {
    pub(super) fn new(index: u8, shared: Arc<Shared>, inlets: Inlets, commands: mpsc::Receiver<Command>) -> Self {
        let outbox = Outbox::default();
        Self { index, shared, inlets, commands, outbox, received: 0, breaches: 0, closed: None }
    }

    /// Runs until the session ends, or the bulk that a data lane carries is given up.
    pub(super) async fn run(mut self, mut supply: impl Supply) {
        let shared = Arc::clone(&self.shared);
        let mut end = shared.end.subscribe();
        let mut given_up = shared.bulk_given_up.subscribe();
        let carries_bulk = self.index != 0;
        tokio::select! {
            () = self.serve(&mut supply) => {}
            _ = end.wait_for(Option::is_some) => {}
            _ = given_up.wait_for(|given_up| *given_up), if carries_bulk => {}
        }
        shared.report(self.index, LaneStatus::Ended);
    }

    async fn serve(&mut self, supply: &mut impl Supply) {
        loop {
            let broken = match supply.next(self.received).await {
                Ok((mut connection, peer_received)) => {
                    if !self.outbox.resume(peer_received) {
                        return self.shared.finish(LinkError::StateLost);
                    }
                    self.publish_delivered();
                    self.shared.report(self.index, LaneStatus::Up);
                    self.carry(&mut connection, supply).await
                }
                Err(error) => return self.shared.finish(error),
            };
            if let Some(reason) = self.closed.take() {
                return self.shared.finish(reason);
            }
            let Some(error) = broken else { continue };
            if self.index != 0 && self.shared.closing.load(Ordering::Acquire) {
                // The peer, which has everything, was the first to let go; the end of the session is a moment away.
                return std::future::pending().await;
            }
            self.breaches += u32::from(error.breach());
            if self.breaches >= BREACHES_MAX {
                return self.shared.finish(error);
            }
            tracing::info!(lane = self.index, reason = %Chain(&error), "the lane is down");
            self.shared.report(self.index, LaneStatus::Down { since: Instant::now(), why: Arc::new(error) });
        }
    }

    /// Carries frames over one connection until it breaks; `None` where the peer has made another.
    async fn carry<C>(&mut self, connection: &mut C, supply: &mut impl Supply) -> Option<LinkError>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let timing = self.shared.timing;
        let shared = Arc::clone(&self.shared);
        let ledger = Arc::clone(&self.inlets.ledger);
        let mut reader = Reader::default();
        let mut frames = Vec::with_capacity(FRAMES_MAX);
        let mut commands = Vec::with_capacity(COMMANDS_MAX);
        let mut ticks = interval((timing.heartbeat / TICKS_PER_HEARTBEAT).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut beat_at = heard_at;
        loop {
            tokio::select! {
                count = self.commands.recv_many(&mut commands, COMMANDS_MAX) => {
                    if count == 0 {
                        shared.finish(LinkError::Abandoned);
                        return Some(LinkError::Abandoned);
                    }
                    commands.drain(..).for_each(|command| self.outbox.accept(command));
                }
                result = exchange(connection, &mut reader, &mut self.outbox, self.received, &mut frames) => {
                    let arrived = frames.drain(..).try_for_each(|(header, payload)| self.arrived(header, payload));
                    if let Err(error) = arrived {
                        return Some(error);
                    }
                    if let Err(error) = result {
                        return Some(error);
                    }
                    if self.closed.is_some() && !self.outbox.urgent() {
                        return Some(LinkError::Closed);
                    }
                }
                () = ledger.creditable(self.index) => {
                    for (flow, bytes) in ledger.credits(self.index) {
                        self.outbox.push(&Frame::credit(flow, bytes), false);
                    }
                }
                () = supply.replaced() => return None,
                now = ticks.tick() => {
                    if std::mem::take(&mut reader.heard) {
                        heard_at = now;
                    } else if now.saturating_duration_since(heard_at) >= timing.silence_max {
                        return Some(LinkError::Silent { limit: timing.silence_max });
                    }
                    self.outbox.acknowledge_where_due(self.received);
                    if now.saturating_duration_since(beat_at) >= timing.heartbeat {
                        beat_at = now;
                        self.outbox.heartbeat();
                    }
                }
            }
        }
    }

    fn arrived(&mut self, header: Header, payload: Bytes) -> Result<(), LinkError> {
        let breach = |what| LinkError::Protocol { lane: self.index, what };
        if !self.outbox.acknowledged(header.acknowledged) {
            return Err(breach("it acknowledges what was never sent"));
        }
        self.publish_delivered();
        if !header.kind.numbered() {
            if header.kind == FrameKind::Heartbeat && header.flags & ANSWER_NOW != 0 {
                self.outbox.answer();
            }
            return Ok(());
        }
        if header.sequence <= self.received {
            return Ok(());
        }
        if header.sequence != self.received + 1 {
            return Err(breach("a frame is missing"));
        }
        match header.kind {
            FrameKind::Credit => {
                let flow = FrameKind::try_from(header.flags).ok().and_then(|kind| Flow::of(kind, header.channel));
                let flow = flow.filter(|flow| flow.allowed_on(self.index, self.shared.lanes));
                let bytes = <[u8; 8]>::try_from(&payload[..]).map(u64::from_be_bytes).unwrap_or(u64::MAX);
                if !flow.is_some_and(|flow| self.shared.windows.credited(flow, self.index, bytes)) {
                    return Err(breach("it gives credit for what it never got"));
                }
            }
            FrameKind::Close => {
                let aborted = header.flags & ABORTED != 0;
                self.closed = Some(if aborted { LinkError::AbandonedByPeer } else { LinkError::Closed });
                self.outbox.answer();
            }
            _ => self.inlets.deliver(self.index, self.shared.lanes, header, payload).map_err(breach)?,
        }
        self.received = header.sequence;
        Ok(())
    }

    fn publish_delivered(&self) {
        let delivered = &self.shared.delivered[usize::from(self.index)];
        if *delivered.borrow() != self.outbox.delivered {
            delivered.send_replace(self.outbox.delivered);
        }
    }
}

/// Prints an error with all its causes, for a log line.
pub(super) struct Chain<'a>(pub(super) &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut error = self.0.source();
        while let Some(cause) = error {
            write!(f, ": {cause}")?;
            error = cause.source();
        }
        Ok(())
    }
}

/// Takes frames out of a connection. A payload is read straight into the memory in which it is handed on.
#[derive(Debug, Default)]
struct Reader {
    head: [u8; HEADER_LENGTH],
    filled: usize,
    /// The frame that is being read, and how much of its payload is.
    payload: Option<(Header, Buffer, usize)>,
    pool: Pool,
    /// Whether anything came since the last tick.
    heard: bool,
}

impl Reader {
    fn poll_frame<C: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut C,
    ) -> Poll<Result<(Header, Bytes), LinkError>> {
        loop {
            if let Some((header, payload, _)) =
                self.payload.take_if(|(header, _, read)| *read == header.length as usize)
            {
                self.filled = 0;
                return Poll::Ready(Ok((header, payload.freeze(header.length as usize))));
            }
            let count = if let Some((header, payload, read)) = &mut self.payload {
                let count = ready!(pin!(connection.read(&mut payload[*read..header.length as usize])).poll(cx))?;
                *read += count;
                count
            } else {
                let count = ready!(pin!(connection.read(&mut self.head[self.filled..])).poll(cx))?;
                self.filled += count;
                if self.filled == HEADER_LENGTH {
                    // The length is within the limit of its kind: see `Header::decode`.
                    let header = Header::decode(&self.head)?;
                    self.payload = Some((header, self.pool.take(header.length as usize), 0));
                }
                count
            };
            if count == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            self.heard = true;
        }
    }
}

/// Reads and writes until something was done. Cancelling loses nothing: all progress is in `reader`, `outbox`, `frames`.
async fn exchange<C: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut C,
    reader: &mut Reader,
    outbox: &mut Outbox,
    received: u64,
    frames: &mut Vec<(Header, Bytes)>,
) -> Result<(), LinkError> {
    std::future::poll_fn(|cx| {
        let mut wrote = false;
        if let Poll::Ready(result) = outbox.poll_write(cx, connection, received) {
            wrote = result?;
        }
        while frames.len() < FRAMES_MAX {
            match reader.poll_frame(cx, connection) {
                Poll::Ready(Ok(frame)) => frames.push(frame),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if wrote || !frames.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}
