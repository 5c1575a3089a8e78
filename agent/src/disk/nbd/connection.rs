//! One connection in transmission: many requests in flight, replies in any order.
//!
//! ```text
//!   handles ──Request──▶ writer task ──header, payload──▶ socket ──▶ server
//!                            │ Pending, before the bytes                │
//!                            ▼                                          │
//!   handles ◀──reply───── reader task ◀───────────────── socket ◀───────┘
//! ```
//!
//! The reader alone owns the table of requests in flight. The writer registers a request with it *before* the first byte
//! leaves, so when a reply is there its request is too: either in the table, or in the channel, which the reader empties
//! before it looks. Permits bound the requests and bytes in flight; a request holds its own until it is answered,
//! which also bounds the channel. Either task's end ends the other, and every request in flight with them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::wire::{self, Command, ReplyHeader};
use super::{BYTES_IN_FLIGHT_MAX, CLOSE_MAX, Failure, NbdError, Piece, REQUESTS_IN_FLIGHT_MAX, Violation};
use crate::buffers::Pool;

/// Permits for bytes are counted in this unit, since a semaphore counts to 2³² at most.
const BYTE_PERMIT_UNIT: u32 = 4 << 10;
/// Bytes taken from the socket at once for headers; payloads larger than this go from the socket to where they stay.
const HEADER_BUFFER: usize = 4 << 10;
/// The most parts of one reply besides one for each 512 bytes it covers.
const REPLY_PARTS_MIN: usize = 64;

/// A request as the client makes it.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) payload: Bytes,
}

/// What a request was answered, with success.
#[derive(Debug)]
pub(super) enum Reply {
    Done,
    Pieces(Vec<Piece>),
    Status(Vec<wire::StatusChunk>),
}

/// A cloneable handle of one connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    requests: mpsc::Sender<Order>,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    ended: watch::Receiver<Option<Arc<Failure>>>,
}

impl Connection {
    /// Starts the two tasks over the halves of a negotiated connection, which ends when a request was in flight for `silence`
    /// and nothing came.
    pub(super) fn start<R, W>(reader: R, writer: W, silence: Duration) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, orders) = mpsc::channel(REQUESTS_IN_FLIGHT_MAX);
        // Never full: it holds requests in flight only.
        let (registry, registrations) = mpsc::channel(REQUESTS_IN_FLIGHT_MAX);
        let (alive, writer_ended) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let input = BufReader::with_capacity(HEADER_BUFFER, reader);
        let reader = Reader { input, silence, registrations, pending: HashMap::new(), pool: Pool::default() };
        tokio::spawn(reader.run(writer_ended, end));
        tokio::spawn(write(writer, orders, registry, alive));
        Self {
            requests,
            count: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX)),
            bytes: Arc::new(Semaphore::new((BYTES_IN_FLIGHT_MAX / BYTE_PERMIT_UNIT) as usize)),
            ended,
        }
    }

    /// Whether both are handles of one connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.requests.same_channel(&other.requests)
    }

    /// How many more requests could start now.
    pub(super) fn room(&self) -> usize {
        self.count.available_permits()
    }

    /// Sends a request, once there is room for it in the window, and waits for its reply.
    pub(super) async fn call(&self, request: Request) -> Result<Reply, NbdError> {
        let (operation, offset, length) = (request.command.as_str(), request.offset, request.length);
        match self.exchange(request).await {
            Some(Ok(reply)) => Ok(reply),
            Some(Err((errno, message))) => Err(NbdError::Server { operation, offset, length, errno, message }),
            None => {
                // The reader always says why it ended, or is gone with the runtime.
                let mut ended = self.ended.clone();
                let cause = ended.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone());
                Err(NbdError::Lost { operation, cause: cause.unwrap_or_else(|| Arc::new(Failure::Closed)) })
            }
        }
    }

    /// A request's answer; none if the connection has ended or ends.
    async fn exchange(&self, request: Request) -> Option<Answer> {
        let count = self.count.clone().acquire_owned().await.ok()?;
        let carries = matches!(request.command, Command::Read | Command::Write);
        let cost = if carries { request.length.min(BYTES_IN_FLIGHT_MAX).div_ceil(BYTE_PERMIT_UNIT) } else { 0 };
        let bytes = self.bytes.clone().acquire_many_owned(cost).await.ok()?;
        let (reply, answer) = oneshot::channel();
        self.requests.send(Order::Request { request, reply, permits: (count, bytes) }).await.ok()?;
        answer.await.ok()
    }

    /// Waits for the requests in flight, says goodbye, and waits until the server has closed the connection, or
    /// [`CLOSE_MAX`]. Requests made from now on fail.
    pub(super) async fn close(&self) {
        // Every permit in hand means that nothing is in flight; closing the semaphore lets nothing start.
        let window = u32::try_from(REQUESTS_IN_FLIGHT_MAX).unwrap_or(u32::MAX);
        if let Ok(all) = self.count.acquire_many(window).await {
            self.count.close();
            drop(all);
            let _ = self.requests.send(Order::Goodbye).await;
        }
        self.requests.closed().await;
    }
}

type Answer = Result<Reply, (u32, String)>;
type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

enum Order {
    Request { request: Request, reply: oneshot::Sender<Answer>, permits: Permits },
    Goodbye,
}

/// Writes requests until the handles are gone, a goodbye is said, or the connection fails. Dropping `_alive` at the end
/// tells the reader.
async fn write<W: AsyncWrite + Unpin>(
    mut output: W,
    mut orders: mpsc::Receiver<Order>,
    registry: mpsc::Sender<Pending>,
    alive: oneshot::Sender<std::io::Error>,
) {
    let mut cookie = 0_u64;
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            () = registry.closed() => return,
        };
        let Some(Order::Request { request, reply, permits }) = order else { break };
        cookie += 1;
        let header = wire::request(request.command, request.flags, cookie, request.offset, request.length);
        let Request { command, offset, length, payload, .. } = request;
        let pending = Pending::new(cookie, command, offset, length, reply, permits);
        if registry.try_send(pending).is_err() {
            return;
        }
        let mut bytes = header.chain(payload);
        let written = tokio::select! {
            written = output.write_all_buf(&mut bytes) => written,
            () = registry.closed() => return,
        };
        if let Err(error) = written {
            let _ = alive.send(error);
            return;
        }
    }
    let goodbye = async {
        output.write_all(&wire::request(Command::Disconnect, 0, 0, 0, 0)).await?;
        output.shutdown().await?;
        registry.closed().await;
        Ok::<(), std::io::Error>(())
    };
    // Whether the server heard it or not: the connection ends here.
    let _ = timeout(CLOSE_MAX, goodbye).await;
}

/// A request that was, or is about to be, sent.
struct Pending {
    cookie: u64,
    command: Command,
    offset: u64,
    length: u32,
    since: Instant,
    parts: usize,
    missing: u64,
    pieces: Vec<(u64, Piece)>,
    status: Vec<wire::StatusChunk>,
    error: Option<(u32, String)>,
    reply: oneshot::Sender<Answer>,
    _permits: Permits,
}

impl Pending {
    fn new(
        cookie: u64,
        command: Command,
        offset: u64,
        length: u32,
        reply: oneshot::Sender<Answer>,
        permits: Permits,
    ) -> Self {
        let missing = if command == Command::Read { u64::from(length) } else { 0 };
        Self {
            cookie,
            command,
            offset,
            length,
            since: Instant::now(),
            parts: 0,
            missing,
            pieces: Vec::new(),
            status: Vec::new(),
            error: None,
            reply,
            _permits: permits,
        }
    }

    fn wrong_reply(&self, kind: u32) -> Violation {
        Violation::WrongReply { command: self.command.as_str(), kind }
    }

    /// Counts one more part, and refuses one too many.
    fn count_part(&mut self) -> Result<(), Violation> {
        let max = REPLY_PARTS_MIN + self.length as usize / 512;
        self.parts += 1;
        if self.parts > max {
            return Err(Violation::EndlessReply { command: self.command.as_str(), max });
        }
        Ok(())
    }

    /// Whether `length` bytes at `offset` are asked for and could still be missing: what is checked before allocating.
    fn expect(&mut self, offset: u64, length: u64) -> Result<(), Violation> {
        let wrong = Violation::WrongRange { offset, length };
        let start = offset.checked_sub(self.offset).ok_or(wrong.clone())?;
        let inside = start.checked_add(length).is_some_and(|end| end <= u64::from(self.length));
        if length == 0 || !inside || length > self.missing {
            return Err(wrong);
        }
        self.missing -= length;
        Ok(())
    }

    /// Puts the parts of a finished read in order, each byte exactly once.
    fn finish(mut self) -> Result<(), Violation> {
        let answer = match (self.error.take(), self.command) {
            (Some(error), _) => Err(error),
            (None, Command::Read) => {
                if self.missing > 0 {
                    let missing = self.missing;
                    return Err(Violation::Incomplete { command: self.command.as_str(), missing });
                }
                // The lengths add up to the request's; in order and without an overlap they are the request.
                self.pieces.sort_unstable_by_key(|(offset, _)| *offset);
                let mut next = self.offset;
                for (offset, piece) in &self.pieces {
                    if *offset != next {
                        return Err(Violation::WrongRange { offset: *offset, length: piece.length() });
                    }
                    next += piece.length();
                }
                Ok(Reply::Pieces(self.pieces.into_iter().map(|(_, piece)| piece).collect()))
            }
            (None, Command::BlockStatus) => Ok(Reply::Status(self.status)),
            (None, _) => Ok(Reply::Done),
        };
        // The caller may have stopped waiting; then nobody wants the answer.
        let _ = self.reply.send(answer);
        Ok(())
    }
}

struct Reader<R> {
    input: BufReader<R>,
    silence: Duration,
    registrations: mpsc::Receiver<Pending>,
    pending: HashMap<u64, Pending>,
    pool: Pool,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(
        mut self,
        writer_ended: oneshot::Receiver<std::io::Error>,
        ended: watch::Sender<Option<Arc<Failure>>>,
    ) {
        let failure = tokio::select! {
            failure = self.read_replies() => failure,
            error = writer_ended => error.map_or(Failure::Closed, Failure::from),
        };
        ended.send_replace(Some(Arc::new(failure)));
        drop(self);
    }

    async fn read_replies(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.read_reply().await {
                return failure;
            }
        }
    }

    async fn read_reply(&mut self) -> Result<(), Failure> {
        self.await_reply().await?;
        let mut head = [0; 16];
        self.read_exact(&mut head).await?;
        let header = wire::reply_header(head)?;
        let (ReplyHeader::Simple { cookie, .. } | ReplyHeader::Chunk { cookie, .. }) = header;
        self.register();
        let mut pending = self.pending.remove(&cookie).ok_or(Violation::UnknownCookie { cookie })?;
        pending.count_part()?;
        match header {
            ReplyHeader::Simple { errno, .. } => {
                if errno != 0 {
                    pending.error = Some((errno, String::new()));
                } else if matches!(pending.command, Command::Read | Command::BlockStatus) {
                    return Err(pending.wrong_reply(0).into());
                }
                pending.finish()?;
            }
            ReplyHeader::Chunk { done, kind, .. } => {
                self.read_chunk(kind, &mut pending).await?;
                if done {
                    pending.finish()?;
                } else {
                    self.pending.insert(cookie, pending);
                }
            }
        }
        Ok(())
    }

    /// Waits for the first byte of a reply, for as long as nothing in flight waits too long.
    async fn await_reply(&mut self) -> Result<(), Failure> {
        loop {
            match timeout(self.silence, self.input.fill_buf()).await {
                Ok(Ok([])) => return Err(Failure::Ended),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    self.register();
                    if self.pending.values().any(|pending| pending.since.elapsed() >= self.silence) {
                        return Err(Failure::Silent);
                    }
                }
            }
        }
    }

    fn register(&mut self) {
        while let Ok(pending) = self.registrations.try_recv() {
            self.pending.insert(pending.cookie, pending);
        }
    }

    async fn read_chunk(&mut self, kind: u16, pending: &mut Pending) -> Result<(), Failure> {
        let mut length = [0; 4];
        self.read_exact(&mut length).await?;
        let length = u32::from_be_bytes(length);
        match (kind, pending.command) {
            (wire::chunk::NONE, _) if length == 0 => {}
            (wire::chunk::DATA, Command::Read) => {
                let size = length.checked_sub(8).ok_or(Violation::Length { what: "data", length: length.into() })?;
                let mut offset = [0; 8];
                self.read_exact(&mut offset).await?;
                let offset = u64::from_be_bytes(offset);
                pending.expect(offset, size.into())?;
                let data = self.read_data(size as usize).await?;
                pending.pieces.push((offset, Piece::Data(data)));
            }
            (wire::chunk::HOLE, Command::Read) if length == 12 => {
                let mut payload = [0; 12];
                self.read_exact(&mut payload).await?;
                let (offset, size) = wire::hole(payload)?;
                pending.expect(offset, size.into())?;
                pending.pieces.push((offset, Piece::Hole(size.into())));
            }
            (wire::chunk::STATUS, Command::BlockStatus) => {
                let payload = self.read_data(wire::check_status_length(length)?).await?;
                let chunk = wire::status(&payload)?;
                if pending.status.iter().any(|other| other.context == chunk.context) {
                    return Err(pending.wrong_reply(kind.into()).into());
                }
                pending.status.push(chunk);
            }
            (kind, _) if kind & wire::chunk::ERROR != 0 => {
                let payload = self.read_data(wire::check_error_length(length)?).await?;
                pending.error.get_or_insert(wire::error(&payload)?);
            }
            (kind, _) => return Err(pending.wrong_reply(kind.into()).into()),
        }
        Ok(())
    }

    async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), Failure> {
        timeout(self.silence, self.input.read_exact(bytes)).await.map_err(|_| Failure::Silent)??;
        Ok(())
    }

    /// Reads a payload whose length was checked. Each part of it may take as long as a silence may be.
    async fn read_data(&mut self, length: usize) -> Result<Bytes, Failure> {
        let mut data = self.pool.take(length);
        let mut filled = 0;
        while filled < length {
            let read = self.input.read(&mut data[filled..length]);
            match timeout(self.silence, read).await.map_err(|_| Failure::Silent)?? {
                0 => return Err(Failure::Ended),
                count => filled += count,
            }
        }
        Ok(data.freeze(length))
    }
}
