//! A client of the agent in a guest, QEMU's `qemu-ga`: as much of its protocol as it takes to freeze the guest's file systems.
//!
//! ```text
//!   sync ──▶ freeze ──▶ (the point in time) ──▶ thaw
//!              └── dropped before it is thawed: a task goes on until the guest says that it is
//! ```
//!
//! Whoever is root in the guest says what comes here, so it is believed nothing: lines and waits are bounded, and what breaks the
//! protocol costs the connection. Answers carry no id. What the guest still had to say to somebody else is therefore passed over
//! up to the answer to a `guest-sync-delimited` of our own.
//!
//! QEMU serves one client a port. While an earlier one still thaws the guest, a new one is not answered.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// How long an agent may take to answer at all.
pub const SYNC_WAIT: Duration = Duration::from_secs(1);
/// How long it may take to say whether file systems are frozen.
pub const STATUS_WAIT: Duration = Duration::from_secs(1);
/// How long it may take to freeze them: what is dirty is written out first.
pub const FREEZE_WAIT: Duration = Duration::from_secs(10);
/// How long it may take to thaw them.
pub const THAW_WAIT: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How often a guest that may be frozen is told to thaw, where it does not say that it is thawed.
const THAWS_MAX: u32 = 30;
/// The pause between two of them.
const THAW_PAUSE: Duration = Duration::from_secs(1);
/// How long is waited for a guest that may have been left frozen; then it is seen to while other things go on.
const LEFT_FROZEN_WAIT: Duration = Duration::from_secs(2);
/// What comes before an answer to [`SYNC`]: no text holds it.
const DELIMITER: u8 = 0xff;
/// How much room is made for each read.
const READ_BYTES: usize = 4 << 10;
/// The most bytes of an offending answer that an error repeats.
const EXCERPT_BYTES_MAX: usize = 120;

const SYNC: &str = "guest-sync-delimited";
const STATUS: &str = "guest-fsfreeze-status";
const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";

/// The agent in a guest, which has answered. Where it is dropped with the guest frozen, a task thaws it.
#[derive(Debug)]
pub struct GuestAgent {
    path: PathBuf,
    /// None only while it is dropped.
    connection: Option<Connection>,
    /// Whether the guest was told to freeze and has not said that it is thawed.
    frozen: bool,
}

impl GuestAgent {
    /// Connects to the port at `path`, and waits for the guest to answer.
    ///
    /// # Errors
    /// [`GuestAgentError`]; nobody answers within [`SYNC_WAIT`] where the guest runs no agent.
    pub async fn connect(path: &Path) -> Result<Self, GuestAgentError> {
        let mut connection = Connection::open(path).await?;
        connection.sync(SYNC_WAIT).await?;
        Ok(Self { path: path.to_owned(), connection: Some(connection), frozen: false })
    }

    /// Freezes the guest's file systems: what was written to them is on the disks, and nothing more is written. How many they are.
    ///
    /// # Errors
    /// [`GuestAgentError`]; some may be frozen.
    pub async fn freeze(&mut self) -> Result<u64, GuestAgentError> {
        let connection = self.connection.as_mut().ok_or(GuestAgentError::Closed { command: FREEZE })?;
        // Before it is sent: whatever becomes of the answer, it must be undone.
        self.frozen = true;
        match connection.ask(FREEZE, FREEZE_WAIT).await?.as_u64() {
            Some(0) => Err(GuestAgentError::NothingFrozen),
            Some(count) => Ok(count),
            None => Err(GuestAgentError::Violation { command: FREEZE, got: "something else than a number".to_owned() }),
        }
    }

    /// Thaws them.
    ///
    /// # Errors
    /// [`GuestAgentError`]; a task goes on trying when this is dropped.
    pub async fn thaw(&mut self) -> Result<(), GuestAgentError> {
        let connection = self.connection.as_mut().ok_or(GuestAgentError::Closed { command: THAW })?;
        connection.ask(THAW, THAW_WAIT).await?;
        self.frozen = false;
        Ok(())
    }
}

impl Drop for GuestAgent {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take().filter(|_| self.frozen) else { return };
        // At once, and whether anybody runs the task below or not: this may be the end of the program.
        let _ = rustix::io::write(&connection.stream, &request(THAW, &Value::Null));
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(insist(self.path.clone(), Some(connection)));
        }
    }
}

/// Thaws a guest that was left frozen, by an agent of this host that was killed. Returns after 2 s at the latest; where the guest has
/// not answered by then, it is seen to until it has, within bounds.
pub async fn thaw_left_frozen(path: &Path) {
    let thawing = tokio::spawn(insist(path.to_owned(), None));
    let _ = timeout(LEFT_FROZEN_WAIT, thawing).await;
}

/// Has a guest thaw until it says that it is thawed, or has nothing to say of it.
async fn insist(path: PathBuf, mut connection: Option<Connection>) {
    for _ in 0..THAWS_MAX {
        match thawed(&path, connection.take()).await {
            Ok(was_frozen) => {
                if was_frozen {
                    info!(path = %path.display(), "a guest that was left frozen is thawed");
                }
                return;
            }
            // QEMU has ended, or the agent does not know what freezing is.
            Err(error @ (GuestAgentError::Connect { .. } | GuestAgentError::Refused { .. })) => {
                debug!(path = %path.display(), %error, "the guest is not thawed");
                return;
            }
            Err(error) => debug!(path = %path.display(), %error, "the guest does not say that it is thawed"),
        }
        sleep(THAW_PAUSE).await;
    }
    warn!(path = %path.display(), "a guest's agent does not answer; if the guest stands still, thaw it from inside with fsfreeze -u, or restart it");
}

/// Whether a guest that is thawed now was frozen. One that still freezes answers when it has done so.
async fn thawed(path: &Path, connection: Option<Connection>) -> Result<bool, GuestAgentError> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => Connection::open(path).await?,
    };
    connection.sync(THAW_WAIT).await?;
    if connection.ask(STATUS, STATUS_WAIT).await? != "frozen" {
        return Ok(false);
    }
    connection.ask(THAW, THAW_WAIT).await?;
    Ok(true)
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    input: BytesMut,
}

impl Connection {
    async fn open(path: &Path) -> Result<Self, GuestAgentError> {
        let stream = UnixStream::connect(path).await;
        let stream = stream.map_err(|source| GuestAgentError::Connect { path: path.to_owned(), source })?;
        Ok(Self { stream, input: BytesMut::new() })
    }

    /// Passes over all that was said before the answer to this.
    async fn sync(&mut self, wait: Duration) -> Result<(), GuestAgentError> {
        // It need not be secret, but other than those of clients before.
        let id = RandomState::new().hash_one(()) & u64::from(u32::MAX);
        let synced = async {
            let mut asked = vec![DELIMITER];
            asked.extend(request(SYNC, &json!({ "id": id })));
            self.write(SYNC, &asked).await?;
            loop {
                self.pass_over_to_delimiter().await?;
                let line = self.line(SYNC).await?;
                // What is no answer at all is passed over too.
                if serde_json::from_slice::<Answer>(&line).is_ok_and(|answer| answer.returned == Some(json!(id))) {
                    return Ok(());
                }
            }
        };
        within(SYNC, wait, synced).await
    }

    /// Asks one thing and takes the next line for its answer.
    async fn ask(&mut self, command: &'static str, wait: Duration) -> Result<Value, GuestAgentError> {
        let asked = async {
            self.write(command, &request(command, &Value::Null)).await?;
            let line = self.line(command).await?;
            let violation = || GuestAgentError::Violation { command, got: excerpt(&line) };
            match serde_json::from_slice(&line).map_err(|_| violation())? {
                Answer { error: Some(Refusal { class, desc: description }), .. } => {
                    Err(GuestAgentError::Refused { command, class, description })
                }
                Answer { returned: Some(answer), .. } => Ok(answer),
                Answer { returned: None, error: None } => Err(violation()),
            }
        };
        within(command, wait, asked).await
    }

    async fn write(&mut self, command: &'static str, bytes: &[u8]) -> Result<(), GuestAgentError> {
        self.stream.write_all(bytes).await.map_err(|source| GuestAgentError::Io { command, source })
    }

    async fn read(&mut self, command: &'static str) -> Result<(), GuestAgentError> {
        self.input.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) => Err(GuestAgentError::Closed { command }),
            Ok(_) => Ok(()),
            Err(source) => Err(GuestAgentError::Io { command, source }),
        }
    }

    async fn pass_over_to_delimiter(&mut self) -> Result<(), GuestAgentError> {
        loop {
            if let Some(place) = self.input.iter().position(|byte| *byte == DELIMITER) {
                self.input.advance(place + 1);
                return Ok(());
            }
            self.input.clear();
            self.read(SYNC).await?;
        }
    }

    async fn line(&mut self, command: &'static str) -> Result<BytesMut, GuestAgentError> {
        let mut searched = 0;
        loop {
            if let Some(place) = self.input[searched..].iter().position(|byte| *byte == b'\n') {
                return Ok(self.input.split_to(searched + place + 1));
            }
            searched = self.input.len();
            if searched > ANSWER_BYTES_MAX {
                return Err(GuestAgentError::Violation { command, got: excerpt(&self.input) });
            }
            self.read(command).await?;
        }
    }
}

async fn within<T>(
    command: &'static str,
    wait: Duration,
    what: impl Future<Output = Result<T, GuestAgentError>>,
) -> Result<T, GuestAgentError> {
    timeout(wait, what).await.map_err(|_| GuestAgentError::Silent { command, wait })?
}

fn request(command: &str, arguments: &Value) -> Vec<u8> {
    let mut message = json!({ "execute": command });
    if !arguments.is_null() {
        message["arguments"] = arguments.clone();
    }
    format!("{message}\n").into_bytes()
}

fn excerpt(line: &[u8]) -> String {
    let start = String::from_utf8_lossy(&line[..line.len().min(EXCERPT_BYTES_MAX)]);
    format!("{:?}", start.trim_end())
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// Why a guest's file systems could not be frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum GuestAgentError {
    /// There is no port.
    #[error(
        "cannot connect to the guest agent's port {path:?}; the VM may have been started before guest_agent was set"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The guest says nothing.
    #[error("the guest agent did not answer {command} within {wait:?}; check that qemu-guest-agent runs in the guest")]
    Silent {
        /// What was asked.
        command: &'static str,
        /// How long it was given.
        wait: Duration,
    },
    /// The guest said no.
    #[error("the guest agent refused {command}: {description} ({class})")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// The class of the error, such as `CommandNotFound`.
        class: String,
        /// For people; not to be taken apart.
        description: String,
    },
    /// Nothing in the guest can be frozen.
    #[error("the guest agent found no file system to freeze; check what is mounted in the guest")]
    NothingFrozen,
    /// What came is no answer.
    #[error("the guest agent answered {command} with {got}, which is not of its protocol")]
    Violation {
        /// What was asked.
        command: &'static str,
        /// The start of what came.
        got: String,
    },
    /// QEMU closed the port.
    #[error("QEMU closed the guest agent's port before {command} was answered")]
    Closed {
        /// What was asked.
        command: &'static str,
    },
    /// The socket failed.
    #[error("the guest agent's port failed at {command}")]
    Io {
        /// What was asked.
        command: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
