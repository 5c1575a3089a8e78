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
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream};

    const WAIT: Duration = Duration::from_secs(5);
    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    /// The other end, played by the test.
    struct Peer(BufReader<DuplexStream>);

    impl Peer {
        async fn says(&mut self, text: &str) {
            // The client may have hung up on what was said before.
            let _ = self.0.get_mut().write_all(text.as_bytes()).await;
        }

        async fn hears(&mut self) -> Value {
            let mut line = String::new();
            self.0.read_line(&mut line).await.expect("the client's line");
            serde_json::from_str(&line).expect("JSON")
        }

        async fn answers(&mut self, id: &Value, answer: &str) {
            self.says(&format!("{{\"return\": {answer}, \"id\": {id}}}\n")).await;
        }
    }

    fn pair() -> (DuplexStream, Peer) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (ours, Peer(BufReader::new(theirs)))
    }

    async fn connected() -> (Qmp, Peer) {
        let (ours, mut peer) = pair();
        let negotiation = async {
            peer.says(GREETING).await;
            let hello = peer.hears().await;
            assert_eq!(hello["execute"], "qmp_capabilities");
            peer.answers(&hello["id"], "{}").await;
        };
        let (qmp, ()) = tokio::join!(Qmp::over(ours, WAIT), negotiation);
        (qmp.expect("a connection"), peer)
    }

    #[tokio::test]
    async fn answers_find_their_commands_out_of_order() {
        let (qmp, mut peer) = connected().await;
        let play = async {
            let (first, second) = (peer.hears().await, peer.hears().await);
            peer.answers(&second["id"], "\"second\"").await;
            peer.answers(&first["id"], "\"first\"").await;
            (first, second)
        };
        let (first, second, heard) =
            tokio::join!(qmp.execute("one", json!({"a": 1}), WAIT), qmp.execute("two", Value::Null, WAIT), play);
        assert_eq!((first.expect("an answer"), second.expect("an answer")), (json!("first"), json!("second")));
        assert_eq!(heard.0["arguments"], json!({"a": 1}));
        assert_eq!(heard.1.get("arguments"), None);
    }

    #[tokio::test]
    async fn a_refusal_keeps_class_and_description() {
        let (qmp, mut peer) = connected().await;
        let play = async {
            let id = peer.hears().await["id"].clone();
            peer.says(&format!("{{\"id\": {id}, \"error\": {{\"class\": \"DeviceNotFound\", \"desc\": \"no x\"}}}}\n"))
                .await;
        };
        let (outcome, ()) = tokio::join!(qmp.execute("one", Value::Null, WAIT), play);
        assert!(matches!(outcome, Err(QmpError::Refused { class, description, .. })
            if class == "DeviceNotFound" && description == "no x"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_dropped_and_the_connection_goes_on() {
        let (qmp, mut peer) = connected().await;
        let outcome = qmp.execute("slow", Value::Null, Duration::from_secs(1)).await;
        assert!(matches!(outcome, Err(QmpError::Timeout { command: "slow", .. })));
        let slow = peer.hears().await;
        peer.answers(&slow["id"], "\"late\"").await;
        let play = async {
            let quick = peer.hears().await;
            peer.answers(&quick["id"], "\"in time\"").await;
        };
        let (outcome, ()) = tokio::join!(qmp.execute("quick", Value::Null, WAIT), play);
        assert_eq!(outcome.expect("an answer"), json!("in time"));
    }

    #[tokio::test]
    async fn the_end_of_qemu_fails_everything_in_flight() {
        let (qmp, mut peer) = connected().await;
        let mut events = qmp.events();
        let play = async {
            peer.hears().await;
            drop(peer);
        };
        let (outcome, ()) = tokio::join!(qmp.execute("one", Value::Null, WAIT), play);
        assert!(matches!(outcome, Err(QmpError::Lost { command: "one", lost: Lost::Closed })), "{outcome:?}");
        let later = qmp.execute("two", Value::Null, WAIT).await;
        assert!(matches!(later, Err(QmpError::Lost { command: "two", lost: Lost::Closed })), "{later:?}");
        assert!(matches!(events.next().await, Err(EventGap::Lost(Lost::Closed))));
        assert!(matches!(qmp.lost().await, Lost::Closed));
    }

    #[tokio::test]
    async fn events_pass_through_and_a_slow_reader_learns_what_it_missed() {
        let (qmp, mut peer) = connected().await;
        let mut events = qmp.events();
        peer.says("{\"event\": \"NEW_IN_QEMU_99\", \"data\": {\"x\": [1]}, \"more\": 1}\n").await;
        let event = events.next().await.expect("an event");
        assert_eq!((event.name.as_str(), event.data["x"].clone()), ("NEW_IN_QEMU_99", json!([1])));
        for _ in 0..EVENTS_KEPT_MAX + 10 {
            peer.says("{\"event\": \"TICK\"}\n").await;
        }
        // The answer comes after the events, so they have all been taken in.
        let play = async {
            let id = peer.hears().await["id"].clone();
            peer.answers(&id, "{}").await;
        };
        let (outcome, ()) = tokio::join!(qmp.execute("fence", Value::Null, WAIT), play);
        outcome.expect("an answer");
        assert!(matches!(events.next().await, Err(EventGap::Missed { count: 10 })));
        assert_eq!(events.next().await.expect("an event").name, "TICK");
    }

    #[tokio::test]
    async fn hostile_bytes_end_the_connection_and_say_why() {
        let deep = format!("{}\n", "[".repeat(100_000));
        let cases: [(&str, &str); 9] = [
            ("garbage\n", "a JSON object"),
            ("\n", "a JSON object"),
            ("\u{0}\u{1}\u{2}\n", "a JSON object"),
            ("[1, 2]\n", "a JSON object"),
            (&deep, "a JSON object"),
            ("{\"return\": {}, \"id\": 4711}\n", "the id of a command in flight"),
            ("{\"error\": {\"class\": \"GenericError\", \"desc\": \"what?\"}}\n", "the id of a command in flight"),
            ("{\"return\": 1, \"error\": 2, \"id\": 1}\n", "one of event, return and error"),
            ("{\"error\": 7, \"id\": 1}\n", "an error with class and desc"),
        ];
        for (bytes, wanted) in cases {
            let (qmp, mut peer) = connected().await;
            peer.says(bytes).await;
            let lost = qmp.lost().await;
            assert!(
                matches!(&lost, Lost::Violation { expected, got } if *expected == wanted && got.len() < 1000),
                "{lost}"
            );
        }
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_off() {
        let (qmp, mut peer) = connected().await;
        let flood = async {
            let block = "x".repeat(1 << 14);
            let mut sent = 0;
            while peer.0.get_mut().write_all(block.as_bytes()).await.is_ok() {
                sent += block.len();
            }
            sent
        };
        let (lost, sent) = tokio::join!(qmp.lost(), flood);
        assert!(matches!(lost, Lost::Violation { expected: "a line of at most 1 MiB", .. }), "{lost}");
        assert!(sent < 2 * LINE_BYTES_MAX, "{sent} bytes were taken");
    }

    #[tokio::test(start_paused = true)]
    async fn no_greeting_a_wrong_one_and_half_of_one_are_told_apart() {
        let (ours, _peer) = pair();
        assert!(matches!(Qmp::over(ours, WAIT).await, Err(QmpError::Timeout { .. })));
        let (ours, mut peer) = pair();
        peer.says("{\"hello\": 1}\n").await;
        let outcome = Qmp::over(ours, WAIT).await;
        assert!(matches!(outcome, Err(QmpError::Lost { lost: Lost::Violation { .. }, .. })), "{outcome:?}");
        let (ours, mut peer) = pair();
        peer.says("{\"QMP\": {\"ver").await;
        drop(peer);
        assert!(matches!(Qmp::over(ours, WAIT).await, Err(QmpError::Lost { lost: Lost::Closed, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn commands_beyond_the_limit_wait_within_their_own_time() {
        let (qmp, mut peer) = connected().await;
        let commands = (0..=COMMANDS_IN_FLIGHT_MAX).map(|_| qmp.execute("hang", Value::Null, Duration::from_secs(1)));
        let outcomes = futures_util::future::join_all(commands).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(QmpError::Timeout { .. }))));
        for _ in 0..COMMANDS_IN_FLIGHT_MAX {
            assert_eq!(peer.hears().await["execute"], "hang");
        }
        // All that were sent are still unanswered, so nothing more may be sent; the one left over never is.
        let blocked = qmp.execute("more", Value::Null, Duration::from_secs(1)).await;
        assert!(matches!(blocked, Err(QmpError::Timeout { command: "more", .. })));
        peer.answers(&json!(1), "{}").await;
        let play = async {
            let heard = peer.hears().await;
            assert_eq!(heard["execute"], "last");
            peer.answers(&heard["id"], "{}").await;
        };
        let (outcome, ()) = tokio::join!(qmp.execute("last", Value::Null, WAIT), play);
        outcome.expect("an answer");
    }
}
