//! An NBD client: how Sterna reads and writes disks, through the servers of QEMU, qemu-nbd and qemu-storage-daemon.
//!
//! ```text
//!   Client ──┬─ Connection ── UNIX socket ──┐
//!            ├─ Connection ── UNIX socket ──┼── one export
//!            └─ …        (if it allows it) ─┘
//! ```
//!
//! Each connection keeps many requests in flight, and replies come in any order (see `connection`). Read data lands once
//! in the memory it is handed out in; write payloads go to the socket from where they are.
//!
//! The server is not trusted: a guest may have broken its QEMU. Every length it sends is checked against what was asked
//! for and a named limit before anything is allocated, and every wait has an end. What it does wrong ends the connection
//! with a typed error; it never hangs or panics. Only UNIX sockets: no NBD byte crosses a network by itself.
//!
//! Costs of this shape: a server without structured replies (QEMU before 2.11) is refused, which saves a second reply
//! parser; and a request larger than the window takes the whole window, and not more memory than its own length.

mod connection;
mod error;
mod negotiate;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use sterna_shared::vm::DISK_SIZE_MAX;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;

use self::connection::{Connection, Reply, Request};
use self::negotiate::Terms;
use self::wire::{Command, can, flag};
use super::extent::Extent;
use crate::buffers::widen;

pub use self::error::{Failure, NbdError, Violation};

/// The most requests in flight on one connection; QEMU's server takes up to 16 at a time, the rest waits in the socket.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 32;
/// The most payload bytes in flight on one connection, in either direction.
pub const BYTES_IN_FLIGHT_MAX: u32 = 16 << 20;
/// The most connections of one client.
pub const CONNECTIONS_MAX: usize = 8;
/// The most block-status contexts of one client.
pub const CONTEXTS_MAX: usize = 8;
/// The longest a negotiation may take.
pub const NEGOTIATION_MAX: Duration = Duration::from_secs(10);
/// The longest a request may be in flight without an answer: longer than any healthy storage takes, and an end.
pub const SILENCE_MAX: Duration = Duration::from_secs(120);
/// The longest that a client which only reads waits in silence: then it asks again over a new connection, until
/// [`SILENCE_MAX`] has passed. QEMU was seen, once in thousands of passes, to leave a read unanswered that it answers so.
pub const SILENCE_READING_MAX: Duration = Duration::from_secs(10);
/// The longest a goodbye may take.
pub const CLOSE_MAX: Duration = Duration::from_secs(5);
/// The most extents that one reading of a whole context may give, 24 bytes each.
pub const STATUSES_MAX: usize = 4 << 20;

/// Block statuses are asked for in steps of this.
const STATUS_STEP: u32 = 1 << 30;
/// Zeroes are written, and ranges discarded, in steps of this, so that each step answers well within [`SILENCE_MAX`].
const ZERO_STEP: u32 = 256 << 20;

/// The context that tells data from holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The name of the context of a dirty bitmap.
#[must_use]
pub fn dirty_bitmap(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

/// A part of what was read, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes, which may be zeroes too.
    Data(Bytes),
    /// That many bytes that read as zeroes.
    Hole(u64),
}

impl Piece {
    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Hole(length) => *length,
        }
    }
}

/// What a context says of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The range.
    pub extent: Extent,
    /// The context's flags.
    pub flags: u32,
}

impl Status {
    /// For [`BASE_ALLOCATION`]: whether the range reads as zeroes. (A hole alone need not.)
    #[must_use]
    pub const fn reads_as_zero(&self) -> bool {
        self.flags & 2 != 0
    }

    /// For [`BASE_ALLOCATION`]: whether nothing is allocated.
    #[must_use]
    pub const fn is_hole(&self) -> bool {
        self.flags & 1 != 0
    }

    /// For a [`dirty_bitmap`]: whether the range was written.
    #[must_use]
    pub const fn is_dirty(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// How zeroes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMode {
    /// The server may leave a hole.
    MayPunch,
    /// The server must keep, or make, the range allocated.
    Allocate,
    /// The server must fail (95, ENOTSUP) rather than write the zeroes one by one.
    Fast,
}

/// A connection, and what was agreed on it: each has its own numbers for the contexts.
#[derive(Debug, Clone)]
struct Line {
    connection: Connection,
    terms: Arc<Terms>,
}

/// A disk, reached over one or more connections. Clones share them.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    export: String,
    contexts: Vec<String>,
    /// What was agreed on the first line; the others agree in all that matters.
    terms: Arc<Terms>,
    lines: Vec<RwLock<Line>>,
    /// Held while a line is replaced, so that those who wait for one answer replace it once.
    renewal: Mutex<()>,
}

impl Client {
    /// Connects to `export` at the UNIX socket, with these block-status `contexts`, over `connections` connections; over
    /// one where the export does not allow several.
    ///
    /// # Errors
    /// When the socket, the server or the export is not there, lacks a context, or breaks the protocol.
    pub async fn connect(socket: &Path, export: &str, contexts: &[&str], connections: usize) -> Result<Self, NbdError> {
        check_names(export, contexts, connections)?;
        let first = connect_one(socket, export, contexts).await?;
        let terms = Arc::clone(&first.terms);
        if terms.size > DISK_SIZE_MAX.0 {
            return Err(NbdError::TooLarge { size: terms.size });
        }
        let connections = if terms.flags & can::MULTI_CONN == 0 { 1 } else { connections };
        let mut lines = vec![RwLock::new(first)];
        while lines.len() < connections {
            lines.push(RwLock::new(connect_same(socket, export, contexts, &terms).await?));
        }
        let contexts = contexts.iter().map(|context| (*context).to_owned()).collect();
        let (socket, export, renewal) = (socket.to_owned(), export.to_owned(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { socket, export, contexts, terms, lines, renewal }) })
    }

    /// The disk's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.terms().size
    }

    /// How many connections it has.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lines.len()
    }

    /// Whether the export refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.allows(can::READ_ONLY)
    }

    /// Whether that context was negotiated.
    #[must_use]
    pub fn has_context(&self, context: &str) -> bool {
        self.terms().contexts.iter().any(|(name, _)| name == context)
    }

    /// Reads `length` bytes at `offset`. The pieces are in order and have exactly that length together.
    ///
    /// # Errors
    /// As all operations here: a bad range, a failure the server reports, or the connection's end.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<Piece>, NbdError> {
        self.check(Command::Read, offset, length.into(), self.terms().payload_max.into())?;
        match self.call(Command::Read, 0, offset, length, Bytes::new()).await? {
            Reply::Pieces(pieces) => Ok(pieces),
            _ => Ok(Vec::new()),
        }
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// As [`Self::read`], or a read-only export.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), NbdError> {
        self.write_flagged(offset, bytes, 0).await
    }

    /// Writes `bytes` at `offset`, and returns when they are on stable storage.
    ///
    /// # Errors
    /// As [`Self::write`], or an export without FUA.
    pub async fn write_durable(&self, offset: u64, bytes: Bytes) -> Result<(), NbdError> {
        self.require(Command::Write, can::FUA)?;
        self.write_flagged(offset, bytes, flag::FUA).await
    }

    /// Makes `length` bytes at `offset` read as zeroes.
    ///
    /// # Errors
    /// As [`Self::write`], or an export without WRITE_ZEROES (or FAST_ZERO, for that mode).
    pub async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), NbdError> {
        let flags = match mode {
            ZeroMode::MayPunch => 0,
            ZeroMode::Allocate => flag::NO_HOLE,
            ZeroMode::Fast => flag::FAST_ZERO,
        };
        self.require(Command::WriteZeroes, can::WRITE_ZEROES)?;
        if mode == ZeroMode::Fast {
            self.require(Command::WriteZeroes, can::FAST_ZERO)?;
        }
        self.in_steps(Command::WriteZeroes, flags, offset, length).await
    }

    /// Tells the server that `length` bytes at `offset` are not needed; what they read as afterwards is undefined.
    ///
    /// # Errors
    /// As [`Self::write`], or an export without TRIM.
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), NbdError> {
        self.require(Command::Trim, can::TRIM)?;
        self.in_steps(Command::Trim, 0, offset, length).await
    }

    /// Puts every completed write, of all connections, on stable storage.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn flush(&self) -> Result<(), NbdError> {
        if !self.allows(can::FLUSH) {
            return if self.is_read_only() { Ok(()) } else { Err(not_allowed(Command::Flush)) };
        }
        self.call(Command::Flush, 0, 0, 0, Bytes::new()).await.map(drop)
    }

    /// What `context` says of `range`, from its start to its end, neighbours with equal flags made one.
    ///
    /// # Errors
    /// As [`Self::read`], a context that was not negotiated, or more than [`STATUSES_MAX`] extents.
    pub async fn block_status(&self, context: &str, range: Extent) -> Result<Vec<Status>, NbdError> {
        if !self.has_context(context) {
            return Err(NbdError::NoContext { context: context.to_owned() });
        }
        self.check(Command::BlockStatus, range.offset(), range.length(), u64::MAX)?;
        let mut statuses: Vec<Status> = Vec::new();
        let mut next = range.offset();
        while next < range.end() {
            let length = step(range.end() - next, STATUS_STEP);
            for (length, flags) in self.status_entries(context, next, length).await? {
                // The last entry may reach past what was asked for.
                let Some(extent) = Extent::between(next, next.saturating_add(length.into()).min(range.end())) else {
                    break;
                };
                next = extent.end();
                if let Some(last) = statuses.last_mut().filter(|last| last.flags == flags) {
                    last.extent = Extent::between(last.extent.offset(), next).unwrap_or(last.extent);
                } else if statuses.len() < STATUSES_MAX {
                    statuses.push(Status { extent, flags });
                } else {
                    return Err(NbdError::TooFragmented { context: context.to_owned() });
                }
            }
        }
        Ok(statuses)
    }

    /// What `context` says of the whole disk.
    ///
    /// # Errors
    /// As [`Self::block_status`].
    pub async fn extents(&self, context: &str) -> Result<Vec<Status>, NbdError> {
        match Extent::between(0, self.size()) {
            Some(whole) => self.block_status(context, whole).await,
            None => Ok(Vec::new()),
        }
    }

    /// Waits for the operations in flight, says goodbye, and waits until the server has closed its side (at most
    /// [`CLOSE_MAX`]). Operations of clones fail from now on. Close clients before their server is stopped.
    pub async fn close(self) {
        for place in 0..self.connections() {
            self.line(place).connection.close().await;
        }
    }

    async fn write_flagged(&self, offset: u64, bytes: Bytes, flags: u16) -> Result<(), NbdError> {
        self.require(Command::Write, 0)?;
        self.check(Command::Write, offset, bytes.len() as u64, self.terms().payload_max.into())?;
        // The check holds the length to a u32.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.call(Command::Write, flags, offset, length, bytes).await.map(drop)
    }

    async fn in_steps(&self, command: Command, flags: u16, offset: u64, length: u64) -> Result<(), NbdError> {
        self.check(command, offset, length, u64::MAX)?;
        let (mut next, end) = (offset, offset + length);
        while next < end {
            let length = step(end - next, ZERO_STEP);
            self.call(command, flags, next, length, Bytes::new()).await?;
            next += u64::from(length);
        }
        Ok(())
    }

    /// One block-status request; the entries cover at least a part of the range.
    async fn status_entries(&self, context: &str, offset: u64, length: u32) -> Result<Vec<(u32, u32)>, NbdError> {
        let request = Request { command: Command::BlockStatus, flags: 0, offset, length, payload: Bytes::new() };
        let (reply, line) = self.ask(request).await?;
        let id = line.terms.contexts.iter().find(|(name, _)| name == context).map(|(_, id)| *id);
        let chunk = match reply {
            Reply::Status(chunks) => chunks.into_iter().find(|chunk| Some(chunk.context) == id),
            _ => None,
        };
        chunk.map(|chunk| chunk.entries).ok_or_else(|| {
            let violation = Violation::Incomplete { command: Command::BlockStatus.as_str(), missing: length.into() };
            NbdError::Lost { operation: Command::BlockStatus.as_str(), cause: Arc::new(violation.into()) }
        })
    }

    async fn call(
        &self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        payload: Bytes,
    ) -> Result<Reply, NbdError> {
        self.ask(Request { command, flags, offset, length, payload }).await.map(|(reply, _)| reply)
    }

    /// Asks over the least busy line, and says which that was. What only reads is asked again where the server is silent.
    async fn ask(&self, request: Request) -> Result<(Reply, Line), NbdError> {
        let began = Instant::now();
        let reads = matches!(request.command, Command::Read | Command::BlockStatus);
        loop {
            let (place, line) = self.least_busy();
            match line.connection.call(request.clone()).await {
                Ok(reply) => return Ok((reply, line)),
                Err(NbdError::Lost { cause, .. })
                    if reads && matches!(*cause, Failure::Silent) && began.elapsed() < SILENCE_MAX =>
                {
                    self.renew(place, &line).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts a new line in the place of one that has ended, unless another asker has done so.
    async fn renew(&self, place: usize, ended: &Line) -> Result<(), NbdError> {
        let Shared { socket, export, contexts, terms, lines, renewal } = &*self.shared;
        let _renewal = renewal.lock().await;
        if !self.line(place).connection.is(&ended.connection) {
            return Ok(());
        }
        warn!(export, socket = %socket.display(), "the NBD server is silent; asked again over a new connection");
        let contexts: Vec<&str> = contexts.iter().map(String::as_str).collect();
        let line = connect_same(socket, export, &contexts, terms).await?;
        *lines[place].write().unwrap_or_else(PoisonError::into_inner) = line;
        Ok(())
    }

    fn terms(&self) -> &Terms {
        &self.shared.terms
    }

    fn line(&self, place: usize) -> Line {
        self.shared.lines[place].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn least_busy(&self) -> (usize, Line) {
        let lines = (0..self.connections()).map(|place| (place, self.line(place)));
        lines.max_by_key(|(_, line)| line.connection.room()).unwrap_or_else(|| (0, self.line(0)))
    }

    fn allows(&self, flag: u16) -> bool {
        self.terms().flags & flag != 0
    }

    fn require(&self, command: Command, flag: u16) -> Result<(), NbdError> {
        if self.is_read_only() || self.terms().flags & flag != flag {
            return Err(not_allowed(command));
        }
        Ok(())
    }

    fn check(&self, command: Command, offset: u64, length: u64, length_max: u64) -> Result<(), NbdError> {
        let Terms { size, block_min, .. } = *self.terms();
        let whole = |value: u64| value.is_multiple_of(block_min.into());
        let inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if length == 0 || length > length_max || !inside || !whole(offset) || !whole(length) {
            let operation = command.as_str();
            return Err(NbdError::Range { operation, offset, length, size, block_min, length_max });
        }
        Ok(())
    }
}

fn not_allowed(command: Command) -> NbdError {
    NbdError::NotAllowed { operation: command.as_str() }
}

fn step(rest: u64, step: u32) -> u32 {
    u32::try_from(rest).map_or(step, |rest| rest.min(step))
}

fn check_names(export: &str, contexts: &[&str], connections: usize) -> Result<(), NbdError> {
    let argument = |what, value: String, must: String| Err(NbdError::Argument { what, value, must });
    for name in contexts.iter().chain([&export]) {
        if name.len() > wire::NAME_LENGTH_MAX {
            let must = format!("at most {} bytes", wire::NAME_LENGTH_MAX);
            return argument("the length of an export or context name", name.len().to_string(), must);
        }
    }
    if contexts.len() > CONTEXTS_MAX {
        return argument("the number of contexts", contexts.len().to_string(), format!("at most {CONTEXTS_MAX}"));
    }
    if !(1..=CONNECTIONS_MAX).contains(&connections) {
        return argument("the number of connections", connections.to_string(), format!("1 to {CONNECTIONS_MAX}"));
    }
    Ok(())
}

async fn connect_one(socket: &Path, export: &str, contexts: &[&str]) -> Result<Line, NbdError> {
    let connect = async {
        let mut stream = UnixStream::connect(socket)
            .await
            .map_err(|source| NbdError::Connect { socket: socket.to_owned(), source })?;
        widen(&stream);
        let terms = negotiate::negotiate(&mut stream, export, contexts).await?;
        let (reader, writer) = stream.into_split();
        let silence = if terms.flags & can::READ_ONLY == 0 { SILENCE_MAX } else { SILENCE_READING_MAX };
        Ok(Line { connection: Connection::start(reader, writer, silence), terms: Arc::new(terms) })
    };
    timeout(NEGOTIATION_MAX, connect).await.map_err(|_| NbdError::Negotiation { cause: Failure::Silent })?
}

/// A further line to what was connected to before, which must still be as large.
async fn connect_same(socket: &Path, export: &str, contexts: &[&str], first: &Terms) -> Result<Line, NbdError> {
    let line = connect_one(socket, export, contexts).await?;
    if line.terms.size != first.size {
        let violation = Violation::SizeChanged { first: first.size, other: line.terms.size };
        return Err(NbdError::Negotiation { cause: Failure::Violation(violation) });
    }
    Ok(line)
}
