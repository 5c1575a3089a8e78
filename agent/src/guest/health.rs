//! A guest that is asked, from outside, whether it is healthy: over ways into its network that QEMU opens, by its agent, by its
//! console, by a command that knows what to ask.
//!
//! ```text
//!   tcp, http ──▶ a port of the host's loopback address ──▶ QEMU's user-mode network ──▶ the guest's port
//!   agent ──────▶ the channel of its guest agent
//!   console ────▶ the log of its serial console
//!   command ────▶ a command of the operators, which takes the way of tcp and http
//! ```
//!
//! Whatever the guest says is bounded, shown to people, and decides no more than whether a probe was answered.

use std::collections::{BTreeMap, btree_map::Entry};
use std::io::{self, SeekFrom};
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use sterna_shared::id::{ProbeName, VmName};
use sterna_shared::rehearsal::{HealthProbe, Rehearsal};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::probe_command::{self, ProbeCommandError};
use crate::hypervisor::qemu::guest_agent::{GuestAgent, GuestAgentError};
use crate::hypervisor::qemu::runtime::RuntimeDirectory;
use crate::hypervisor::qemu::{Machine, MachineError};

/// How long a guest may take over one try of a probe.
const TRY_WAIT: Duration = Duration::from_secs(5);
/// How long a command may take over one.
const COMMAND_WAIT: Duration = Duration::from_secs(30);
/// How often QEMU is asked whether the guest has accepted a connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The longest first line of an answer to a GET, in bytes.
const STATUS_LINE_BYTES_MAX: u64 = 1 << 10;
/// The lowest status of HTTP that is no answer of a healthy guest.
const STATUS_FAULTY: u16 = 400;
/// How much of a console's log is read at a time, in bytes.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;
/// How much of its end people are shown of a guest that is not healthy, in bytes.
const LAST_WORDS_BYTES_MAX: i64 = 600;
/// The most characters of an answer that an error repeats.
const SHOWN_CHARACTERS_MAX: usize = 120;

/// Why a guest is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// A probe got no answer, or another than it should.
    #[error("probe {probe} was not answered within {seconds} s of the guest's start: {seen}")]
    Unanswered {
        /// Which.
        probe: HealthProbe,
        /// How long it was given.
        seconds: u32,
        /// What the last try saw.
        seen: Box<Miss>,
    },
    /// The guest is not there any more.
    #[error("the guest ended {seconds} s after its start, before every probe was answered")]
    Ended {
        /// When.
        seconds: u64,
    },
}

/// What a probe saw instead of an answer.
#[derive(Debug, thiserror::Error)]
pub enum Miss {
    /// Neither the guest says anything, nor a command.
    #[error("there is no answer")]
    Silent,
    /// The guest does not want the connection.
    #[error("the guest refuses the connection, or closes it at once")]
    Refused,
    /// It answers something else than it should.
    #[error("the answer is {line:?}")]
    Answer {
        /// Its first line.
        line: String,
    },
    /// Its console says other things.
    #[error("the console has not shown that")]
    NotShown,
    /// The way to it does not work.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its agent does not answer.
    #[error(transparent)]
    Agent(#[from] GuestAgentError),
    /// A command says no.
    #[error(transparent)]
    Command(#[from] ProbeCommandError),
    /// QEMU does not do as told.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// A guest that can be asked.
#[derive(Debug)]
pub struct Patient {
    machine: Machine,
    runtime: RuntimeDirectory,
    ways: BTreeMap<u16, Way>,
    vm: VmName,
    commands: BTreeMap<ProbeName, Vec<String>>,
}

/// How a port of the guest is reached.
#[derive(Debug)]
struct Way {
    guest: SocketAddrV4,
    host: SocketAddrV4,
}

impl Patient {
    /// Opens the ways that the probes of a VM's rehearsal take; `commands` are those that the host has.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn reach(
        machine: Machine,
        runtime: RuntimeDirectory,
        rehearsal: &Rehearsal,
        vm: VmName,
        commands: BTreeMap<ProbeName, Vec<String>>,
    ) -> Result<Self, MachineError> {
        let mut ways = BTreeMap::new();
        for port in rehearsal.probes.iter().filter_map(HealthProbe::port) {
            let guest = SocketAddrV4::new(rehearsal.address.guest(), port);
            if let Entry::Vacant(way) = ways.entry(port) {
                way.insert(Way { guest, host: machine.forward(0, guest).await? });
            }
        }
        Ok(Self { machine, runtime, ways, vm, commands })
    }

    /// Tries a probe once. `search` is how far its console was searched by earlier tries.
    ///
    /// # Errors
    /// [`Miss`].
    pub async fn answers(&self, probe: &HealthProbe, search: &mut Search) -> Result<(), Miss> {
        let wait = if let HealthProbe::Command { .. } = probe { COMMAND_WAIT } else { TRY_WAIT };
        let tried = async {
            match probe {
                HealthProbe::Tcp(port) => self.accepts(self.way(*port)?).await,
                HealthProbe::Http { port, path } => gets(self.way(*port)?, path).await,
                HealthProbe::Agent => Ok(GuestAgent::connect(&self.runtime.guest_agent_socket()).await.map(drop)?),
                HealthProbe::Console(text) => {
                    search.has_found(&self.runtime.console_log(), text).await?.then_some(()).ok_or(Miss::NotShown)
                }
                HealthProbe::Command { name, port } => {
                    let command = self.commands.get(name).ok_or(ProbeCommandError::Unknown)?;
                    Ok(probe_command::run(command, &self.vm, self.way(*port)?.host).await?)
                }
            }
        };
        timeout(wait, tried).await.unwrap_or(Err(Miss::Silent))
    }

    fn way(&self, port: u16) -> Result<&Way, Miss> {
        self.ways.get(&port).ok_or(Miss::Silent)
    }

    /// Whether the guest accepts a connection: it says something, or QEMU knows.
    async fn accepts(&self, way: &Way) -> Result<(), Miss> {
        let mut stream = TcpStream::connect(way.host).await?;
        let mut byte = [0];
        let known = async {
            while !self.machine.has_accepted(way.guest).await? {
                sleep(LOOK_INTERVAL).await;
            }
            Ok(())
        };
        tokio::select! {
            read = stream.read(&mut byte) => if matches!(read, Ok(1..)) { Ok(()) } else { Err(Miss::Refused) },
            known = known => known,
        }
    }

    /// The end of what it said on its console, in one line.
    pub async fn last_words(&self) -> Option<String> {
        last_words(&self.runtime.console_log()).await
    }
}

async fn gets(way: &Way, path: &str) -> Result<(), Miss> {
    let mut stream = TcpStream::connect(way.host).await?;
    let host = way.guest;
    let asked = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sterna\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(asked.as_bytes()).await?;
    let mut line = Vec::new();
    // A connection that is refused ends so too.
    let _ = BufReader::new(stream.take(STATUS_LINE_BYTES_MAX)).read_until(b'\n', &mut line).await;
    let line = String::from_utf8_lossy(&line);
    match status(&line) {
        _ if line.is_empty() => Err(Miss::Refused),
        Some(..STATUS_FAULTY) => Ok(()),
        _ => Err(Miss::Answer { line: shown(&line) }),
    }
}

/// The status that the first line of an answer says.
fn status(line: &str) -> Option<u16> {
    let (version, rest) = line.strip_prefix("HTTP/1.")?.split_once(' ')?;
    let code = rest.split_ascii_whitespace().next().filter(|code| code.len() == 3)?;
    version.parse::<u8>().ok().and_then(|_| code.parse().ok())
}

/// How far a console's log was searched.
#[derive(Debug, Default)]
pub struct Search {
    read: u64,
    /// The end of what was read, in which the text may begin.
    tail: Vec<u8>,
}

impl Search {
    async fn has_found(&mut self, log: &Path, text: &str) -> io::Result<bool> {
        let mut file = File::open(log).await?;
        file.seek(SeekFrom::Start(self.read)).await?;
        let mut more = Vec::new();
        self.read += file.take(CONSOLE_BYTES_MAX).read_to_end(&mut more).await? as u64;
        Ok(self.finds(&more, text.as_bytes()))
    }

    fn finds(&mut self, more: &[u8], text: &[u8]) -> bool {
        self.tail.extend(more);
        let found = self.tail.windows(text.len()).any(|part| part == text);
        self.tail.drain(..self.tail.len().saturating_sub(text.len()));
        found
    }
}

async fn last_words(log: &Path) -> Option<String> {
    let mut file = File::open(log).await.ok()?;
    let length = i64::try_from(file.metadata().await.ok()?.len()).ok()?;
    file.seek(SeekFrom::End(-length.min(LAST_WORDS_BYTES_MAX))).await.ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES_MAX.unsigned_abs()).read_to_end(&mut bytes).await.ok()?;
    let text = visible(&String::from_utf8_lossy(&bytes));
    (!text.is_empty()).then_some(text)
}

/// As much of an answer as an error repeats, in the form of [`visible`].
pub(super) fn shown(text: &str) -> String {
    visible(text).chars().take(SHOWN_CHARACTERS_MAX).collect()
}

/// A guest's text in one line: lines apart by a stroke, and nothing that a terminal obeys.
fn visible(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let plain = |line: &str| line.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect();
    lines.map(plain).collect::<Vec<String>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status() {
        assert_eq!(status("HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status("HTTP/1.0 503\r\n"), Some(503));
        for none in ["", "HTTP/1.1 20\r\n", "HTTP/2 200\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200"] {
            let expected = (none == "HTTP/1.1 200").then_some(200);
            assert_eq!(status(none), expected, "{none}");
        }
    }

    /// What a probe comes to where the guest's first words are these.
    async fn got(words: &'static [u8]) -> Result<(), Miss> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let std::net::SocketAddr::V4(host) = listener.local_addr().expect("an address") else { panic!("not IPv4") };
        let guest = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut asked).await.expect("a request");
            }
            stream.write_all(words).await.expect("written");
            asked
        });
        let gotten = gets(&Way { guest: "192.0.2.10:80".parse().expect("an address"), host }, "/up").await;
        assert!(guest.await.expect("it ends").starts_with(b"GET /up HTTP/1.1\r\nHost: 192.0.2.10:80\r\n"));
        gotten
    }

    #[tokio::test]
    async fn a_page_is_got_or_what_came_instead_is_told() {
        got(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n").await.expect("an answer");
        assert_eq!(
            got(b"HTTP/1.1 500 Oh\r\n").await.expect_err("a fault").to_string(),
            "the answer is \"HTTP/1.1 500 Oh\""
        );
        let endless = got(&[b'x'; 5000]).await.expect_err("no HTTP").to_string();
        assert!(endless.starts_with("the answer is \"xxx") && endless.len() < 200, "{endless}");
        assert!(matches!(got(b"").await, Err(Miss::Refused)));
    }

    #[test]
    fn a_text_is_found_wherever_reading_stops() {
        let mut search = Search::default();
        assert!(!search.finds(b"web lo", b"login:"));
        assert!(!search.finds(b"gin", b"login:"));
        assert!(search.finds(b": ", b"login:"));
        let mut search = Search::default();
        assert!(!search.finds(&[b'x'; 5000], b"login:") && search.tail.len() <= 6);
    }

    #[test]
    fn what_a_guest_says_is_one_line_that_no_terminal_obeys() {
        assert_eq!(visible("\r\n  panic\u{1b}[2J \r\n\r\nend"), "panic\u{fffd}[2J | end");
    }
}
