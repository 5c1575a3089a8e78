//! A client of the QEMU Machine Protocol: commands out, answers and events in, JSON a line, over a UNIX socket.
//!
//! ```text
//!   Qmp (cloned at will) ──Request──▶ ┌────────────┐ ──line──▶
//!        ◀────one answer each──────── │ Connection │           QEMU
//!   Events ◀──bounded broadcast────── └────────────┘ ◀──line──
//! ```
//!
//! One task owns the socket, so that any number of commands may be in flight and an answer finds its command by id. It
//! never stops reading while it writes: QEMU stops reading from a client that does not take its answers, and two sides
//! that only write would wait for each other for ever.
//!
//! QEMU is not trusted here: a guest that broke out of it must not take the agent with it. Lines, commands in flight and
//! events kept are bounded, and whatever breaks the protocol ends the connection with what was expected and what came.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

/// The longest line taken from QEMU, in bytes. The longest one Sterna asks for, `query-named-block-nodes` of a VM with
/// all its disks and bitmaps, stays under 300 KiB.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// The most commands that wait for an answer at once; one more waits for its turn, within its own time.
pub const COMMANDS_IN_FLIGHT_MAX: usize = 64;
/// The most events kept for a subscriber that does not keep up; it is told how many it missed.
pub const EVENTS_KEPT_MAX: usize = 256;
/// The most bytes of an offending line that an error repeats.
const EXCERPT_BYTES_MAX: usize = 120;
/// How much room is made for each read.
const READ_BYTES: usize = 16 << 10;

/// A connection to QEMU's monitor. Clones share it; it closes when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    // Only to subscribe from: a sender here would keep the subscribers from seeing the end of the connection.
    events: Arc<broadcast::Receiver<Event>>,
    lost: watch::Receiver<Option<Lost>>,
    peer: Option<u32>,
}

impl Qmp {
    /// Connects to the monitor at `path` and negotiates. QEMU serves one client a socket: while another is connected,
    /// no greeting comes and this ends in [`QmpError::Timeout`] after `wait`.
    ///
    /// # Errors
    /// [`QmpError`], by who is to blame.
    pub async fn connect(path: &Path, wait: Duration) -> Result<Self, QmpError> {
        let refused = |source| QmpError::Connect { path: path.to_owned(), source: Arc::new(source) };
        let stream = UnixStream::connect(path).await.map_err(refused)?;
        let credentials = stream.peer_cred().map_err(refused)?;
        let mut qmp = Self::over(stream, wait).await?;
        qmp.peer = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        Ok(qmp)
    }

    /// Negotiates over a stream that is connected already, such as the standard input and output of a QEMU.
    ///
    /// # Errors
    /// [`QmpError`], by who is to blame.
    pub async fn over<S>(stream: S, wait: Duration) -> Result<Self, QmpError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let (request_sender, requests) = mpsc::channel(COMMANDS_IN_FLIGHT_MAX);
        let (event_sender, events) = broadcast::channel(EVENTS_KEPT_MAX);
        let (lost_sender, lost) = watch::channel(None);
        let mut connection = Connection {
            reader,
            writer,
            input: BytesMut::new(),
            searched: 0,
            output: BytesMut::new(),
            pending: HashMap::new(),
            next_id: 0,
            requests,
            events: event_sender,
        };
        timeout(wait, connection.greeting())
            .await
            .map_err(|_| QmpError::Timeout { command: "(greeting)", wait })?
            .map_err(|lost| QmpError::Lost { command: "(greeting)", lost })?;
        tokio::spawn(async move {
            let reason = connection.run().await;
            tracing::debug!(%reason, "the monitor connection ended");
            // Before the pending answers are dropped with the connection: whoever wakes up finds the reason.
            lost_sender.send_replace(Some(reason));
            drop(connection);
        });
        let qmp = Self { requests: request_sender, events: Arc::new(events), lost, peer: None };
        qmp.execute("qmp_capabilities", json!({}), wait).await?;
        Ok(qmp)
    }

    /// Has QEMU execute `command` and returns its answer. A `null` for `arguments` means none.
    ///
    /// After `wait` the caller gets [`QmpError::Timeout`]; QEMU may still execute the command, and its late answer is
    /// dropped. A command that has not been sent by then never is.
    ///
    /// # Errors
    /// [`QmpError`], by who is to blame.
    pub async fn execute(&self, command: &'static str, arguments: Value, wait: Duration) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let lost = || QmpError::Lost { command, lost: self.reason() };
            self.requests.send(Request { command, arguments, reply }).await.map_err(|_| lost())?;
            let answer = answer.await.map_err(|_| lost())?;
            answer.map_err(|Refusal { class, description }| QmpError::Refused { command, class, description })
        };
        timeout(wait, exchange).await.map_err(|_| QmpError::Timeout { command, wait })?
    }

    /// The events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events { events: self.events.resubscribe(), lost: self.lost.clone() }
    }

    /// Waits until the connection ends, and tells why. QEMU's end shows here first.
    pub async fn lost(&self) -> Lost {
        let mut lost = self.lost.clone();
        // An error means that the task ended without leaving a reason: it was dropped with its runtime.
        let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or(Lost::Closed)
    }

    /// The process at the other end, as the kernel says. While the connection lives so does that process.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        self.peer
    }

    fn reason(&self) -> Lost {
        self.lost.borrow().clone().unwrap_or(Lost::Closed)
    }
}

/// Something QEMU says unasked.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QEMU's name of it, such as `MIGRATION`.
    pub name: String,
    /// What comes with it, as it came.
    pub data: Map<String, Value>,
}

/// A subscription to [`Event`]s.
#[derive(Debug)]
pub struct Events {
    events: broadcast::Receiver<Event>,
    lost: watch::Receiver<Option<Lost>>,
}

impl Events {
    /// The next event. Dropping the future loses none.
    ///
    /// # Errors
    /// [`EventGap::Missed`] once for each gap, after which the subscription goes on; [`EventGap::Lost`] at the end.
    pub async fn next(&mut self) -> Result<Event, EventGap> {
        self.events.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(count) => EventGap::Missed { count },
            broadcast::error::RecvError::Closed => EventGap::Lost(self.lost.borrow().clone().unwrap_or(Lost::Closed)),
        })
    }
}

/// Why there is no next event.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EventGap {
    /// The subscriber was slow.
    #[error(
        "{count} events were missed, since at most {EVENTS_KEPT_MAX} are kept; ask for the state that they told of"
    )]
    Missed {
        /// How many.
        count: u64,
    },
    /// There will be no more.
    #[error("no more events will come")]
    Lost(#[source] Lost),
}

/// Why a command failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// There is no monitor to talk to.
    #[error("cannot connect to QEMU's monitor at {path:?}; check that it runs and that the agent may open the socket")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// QEMU understood and said no.
    #[error("QEMU refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's error class: `GenericError`, `CommandNotFound`, `DeviceNotFound`, …
        class: String,
        /// For people; not to be taken apart.
        description: String,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not answer {command} within {wait:?}; it hangs, or another client holds this monitor")]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long it was given.
        wait: Duration,
    },
    /// The connection is gone. Whether the command was executed is not known.
    #[error("the monitor connection ended before QEMU answered {command}")]
    Lost {
        /// The command.
        command: &'static str,
        /// Why it is gone.
        #[source]
        lost: Lost,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Lost {
    /// QEMU closed it, most often by ending.
    #[error("QEMU closed the connection")]
    Closed,
    /// The system broke it.
    #[error("the socket failed")]
    Io(#[source] Arc<io::Error>),
    /// QEMU broke the protocol.
    #[error("QEMU broke the monitor protocol: expected {expected}, got {got}")]
    Violation {
        /// What should have come.
        expected: &'static str,
        /// The start of what came.
        got: String,
    },
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

#[derive(Debug)]
struct Request {
    command: &'static str,
    arguments: Value,
    reply: oneshot::Sender<Result<Value, Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    class: String,
    description: String,
}

/// The owner of the socket.
struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    input: BytesMut,
    /// How much of `input` is known to hold no line end, so that a long line is searched once.
    searched: usize,
    output: BytesMut,
    /// An entry stays until its answer comes, also when nobody waits any more: its id is taken until then.
    pending: HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>,
    next_id: u64,
    requests: mpsc::Receiver<Request>,
    events: broadcast::Sender<Event>,
}

enum Step {
    Received(usize),
    Sent(usize),
    Asked(Request),
    Abandoned,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    async fn greeting(&mut self) -> Result<(), Lost> {
        loop {
            if let Some(line) = self.line()? {
                return match parse(&line)? {
                    message if message.get("QMP").is_some_and(Value::is_object) => Ok(()),
                    _ => Err(violation("a greeting with the member QMP", &line)),
                };
            }
            self.input.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.input).await? == 0 {
                return Err(Lost::Closed);
            }
        }
    }

    async fn run(&mut self) -> Lost {
        loop {
            let outcome = match self.select().await {
                Ok(step) => self.apply(step),
                Err(error) => Err(error.into()),
            };
            if let Err(lost) = outcome {
                return lost;
            }
        }
    }

    async fn select(&mut self) -> io::Result<Step> {
        self.input.reserve(READ_BYTES);
        let may_ask = self.output.is_empty() && self.pending.len() < COMMANDS_IN_FLIGHT_MAX;
        tokio::select! {
            count = self.reader.read_buf(&mut self.input) => count.map(Step::Received),
            count = self.writer.write(&self.output), if !self.output.is_empty() => count.map(Step::Sent),
            request = self.requests.recv(), if may_ask => Ok(request.map_or(Step::Abandoned, Step::Asked)),
        }
    }

    fn apply(&mut self, step: Step) -> Result<(), Lost> {
        match step {
            Step::Received(0) | Step::Sent(0) | Step::Abandoned => return Err(Lost::Closed),
            Step::Sent(count) => self.output.advance(count),
            Step::Asked(request) if request.reply.is_closed() => {}
            Step::Asked(request) => self.ask(request),
            Step::Received(_) => {
                while let Some(line) = self.line()? {
                    self.receive(&line)?;
                }
            }
        }
        Ok(())
    }

    fn ask(&mut self, request: Request) {
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({ "execute": request.command, "id": id });
        if !request.arguments.is_null() {
            message["arguments"] = request.arguments;
        }
        self.output.extend_from_slice(message.to_string().as_bytes());
        self.output.extend_from_slice(b"\n");
        self.pending.insert(id, request.reply);
    }

    /// Takes the next whole line off the input.
    fn line(&mut self) -> Result<Option<BytesMut>, Lost> {
        let Some(end) = self.input[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.input.len();
            return if self.searched > LINE_BYTES_MAX {
                Err(violation("a line of at most 1 MiB", &self.input))
            } else {
                Ok(None)
            };
        };
        let line = self.input.split_to(self.searched + end + 1);
        self.searched = 0;
        Ok(Some(line))
    }

    fn receive(&mut self, line: &[u8]) -> Result<(), Lost> {
        let mut message = parse(line)?;
        if let Some(Value::String(name)) = message.get("event") {
            let name = name.clone();
            let data = match message.remove("data") {
                Some(Value::Object(data)) => data,
                _ => Map::new(),
            };
            // Fails where nobody subscribes.
            let _ = self.events.send(Event { name, data });
            return Ok(());
        }
        let outcome = match (message.remove("return"), message.remove("error")) {
            (Some(answer), None) => Ok(answer),
            (None, Some(error)) => match (&error["class"], &error["desc"]) {
                (Value::String(class), Value::String(description)) => {
                    Err(Refusal { class: class.clone(), description: description.clone() })
                }
                _ => return Err(violation("an error with class and desc", line)),
            },
            _ => return Err(violation("one of event, return and error", line)),
        };
        let id = message.get("id").and_then(Value::as_u64);
        let Some(reply) = id.and_then(|id| self.pending.remove(&id)) else {
            return Err(violation("the id of a command in flight", line));
        };
        // Fails where the caller has stopped waiting.
        let _ = reply.send(outcome);
        Ok(())
    }
}

fn parse(line: &[u8]) -> Result<Map<String, Value>, Lost> {
    serde_json::from_slice(line).map_err(|_| violation("a JSON object", line))
}

fn violation(expected: &'static str, got: &[u8]) -> Lost {
    let start = String::from_utf8_lossy(&got[..got.len().min(EXCERPT_BYTES_MAX)]);
    Lost::Violation { expected, got: format!("{:?}", start.trim_end()) }
}

#[cfg(test)]
mod tests;
