//! The guest agent's end of a virtio-serial port: QEMU's protocol, as much of it as freezing needs.
//!
//! A witness has no file systems. What it freezes are the writers of records: each stands still between two records, and where they
//! go in lockstep all stand at the same one.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::Config;
use crate::{boot, console, disk};

/// The port's name, which QEMU's own agent listens on too.
const PORT: &str = "org.qemu.guest_agent.0";
/// The longest request.
const REQUEST_BYTES_MAX: usize = 4096;
/// What comes before a request of a peer that does not know what was said before it, and before its answer.
const DELIMITER: u8 = 0xff;
/// How often the port is looked at while nobody is at its other end: it cannot be waited for.
const ALONE_POLL: Duration = Duration::from_millis(20);

/// Answers on the port, in a thread of its own.
pub(crate) fn spawn(config: &Config, disks: Vec<SyncSender<disk::Request>>) -> Result<(), boot::BootError> {
    let path = boot::find(port).ok_or(boot::BootError::NoPort(PORT))?;
    let failed = |error| boot::BootError::Read(path.clone(), error);
    let port = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    let freezing = Duration::from_millis(config.freeze_ms);
    let writers = Writers { disks, lockstep: config.lockstep, freezing, frozen: false };
    std::thread::Builder::new().name("agent".into()).spawn(move || serve(port, writers)).map_err(failed)?;
    Ok(())
}

/// Without udev no link names the port, but the kernel does.
fn port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    let named =
        |port: &fs::DirEntry| fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == PORT);
    let device = ports.filter(named).map(|port| Path::new("/dev").join(port.file_name())).next()?;
    device.exists().then_some(device)
}

fn serve(mut port: File, mut writers: Writers) {
    let mut requests = Requests::default();
    let mut buffer = [0; REQUEST_BYTES_MAX];
    loop {
        match port.read(&mut buffer) {
            Ok(0) => std::thread::sleep(ALONE_POLL),
            Ok(length) => {
                for byte in &buffer[..length] {
                    let Some(request) = requests.take(*byte) else { continue };
                    let answer = answer(&request, &mut writers);
                    if let Err(error) = port.write_all(&answer) {
                        console(format_args!("AGENT cannot answer: {error}"));
                    }
                }
            }
            Err(error) => {
                console(format_args!("AGENT cannot read: {error}"));
                std::thread::sleep(ALONE_POLL);
            }
        }
    }
}

/// What has come of a request so far.
#[derive(Debug, Default)]
struct Requests(Vec<u8>);

impl Requests {
    /// One more byte; a whole request where it is its last.
    fn take(&mut self, byte: u8) -> Option<Vec<u8>> {
        match byte {
            DELIMITER => self.0.clear(),
            b'\n' => return Some(std::mem::take(&mut self.0)).filter(|request| !request.is_empty()),
            _ if self.0.len() == REQUEST_BYTES_MAX => self.0.clear(),
            _ => self.0.push(byte),
        }
        None
    }
}

/// What the freezing is about.
trait Freezes {
    fn is_frozen(&self) -> bool;
    /// How many writers stand still.
    fn freeze(&mut self) -> Result<usize, String>;
    /// How many go on.
    fn thaw(&mut self) -> usize;
}

fn answer(request: &[u8], writers: &mut impl Freezes) -> Vec<u8> {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let command = request["execute"].as_str().unwrap_or_default();
    let refused = |class: &str, text: String| json!({ "error": { "class": class, "desc": text } });
    let answer = match command {
        "guest-sync" | "guest-sync-delimited" => json!({ "return": request["arguments"]["id"] }),
        "guest-ping" => json!({ "return": {} }),
        "guest-fsfreeze-status" => json!({ "return": if writers.is_frozen() { "frozen" } else { "thawed" } }),
        "guest-fsfreeze-freeze" => match writers.freeze() {
            Ok(count) => json!({ "return": count }),
            Err(text) => refused("GenericError", text),
        },
        "guest-fsfreeze-thaw" => json!({ "return": writers.thaw() }),
        _ => refused("CommandNotFound", format!("The command {command:?} has not been found")),
    };
    let delimiter = (command == "guest-sync-delimited").then_some(DELIMITER);
    delimiter.into_iter().chain(format!("{answer}\n").into_bytes()).collect()
}

struct Writers {
    disks: Vec<SyncSender<disk::Request>>,
    lockstep: bool,
    /// How long it takes beyond what it takes.
    freezing: Duration,
    frozen: bool,
}

impl Writers {
    /// Has every writer stand still, after the record `up_to` where one is named: the number of each.
    fn hold(&self, up_to: Option<u64>) -> Result<Vec<u64>, String> {
        let held = self.disks.iter().map(|disk| {
            crate::server::ask(|answer| {
                disk.send(disk::Request::Freeze(up_to, answer)).map_err(|error| error.to_string())
            })
        });
        held.collect()
    }
}

impl Freezes for Writers {
    fn is_frozen(&self) -> bool {
        self.frozen
    }

    fn freeze(&mut self) -> Result<usize, String> {
        if self.frozen {
            return Err("the file systems are frozen already".to_owned());
        }
        let mut held = self.hold(None);
        if self.lockstep
            && let Ok(numbers) = &held
            && let Some(furthest) = numbers.iter().copied().max()
        {
            held = self.hold(Some(furthest));
        }
        match held {
            Ok(numbers) if !self.lockstep || numbers.iter().all(|number| Some(number) == numbers.first()) => {
                self.frozen = true;
                console(format_args!("AGENT frozen at {numbers:?}"));
                std::thread::sleep(self.freezing);
                Ok(numbers.len())
            }
            held => {
                self.thaw();
                Err(format!("the disks do not stand still at one record: {held:?}"))
            }
        }
    }

    fn thaw(&mut self) -> usize {
        for disk in &self.disks {
            // A writer that has ended is shown on the console.
            let _ = disk.send(disk::Request::Thaw);
        }
        let thawed = if self.frozen { self.disks.len() } else { 0 };
        self.frozen = false;
        console(format_args!("AGENT thawed"));
        thawed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Frozen(bool);

    impl Freezes for Frozen {
        fn is_frozen(&self) -> bool {
            self.0
        }

        fn freeze(&mut self) -> Result<usize, String> {
            let already = std::mem::replace(&mut self.0, true);
            if already { Err("again".to_owned()) } else { Ok(2) }
        }

        fn thaw(&mut self) -> usize {
            if std::mem::replace(&mut self.0, false) { 2 } else { 0 }
        }
    }

    #[test]
    fn requests_are_answered_in_the_words_of_qemus_agent() {
        let mut frozen = Frozen::default();
        let mut said = |request: &str| String::from_utf8_lossy(&answer(request.as_bytes(), &mut frozen)).into_owned();
        let sync = r#"{"execute":"guest-sync","arguments":{"id":7}}"#;
        assert_eq!(said(sync), "{\"return\":7}\n");
        let delimited = said(&sync.replace("guest-sync", "guest-sync-delimited"));
        assert_eq!(delimited, "\u{fffd}{\"return\":7}\n");
        assert_eq!(said(r#"{"execute":"guest-fsfreeze-status"}"#), "{\"return\":\"thawed\"}\n");
        assert_eq!(said(r#"{"execute":"guest-fsfreeze-freeze"}"#), "{\"return\":2}\n");
        assert!(said(r#"{"execute":"guest-fsfreeze-freeze"}"#).contains("GenericError"));
        assert_eq!(said(r#"{"execute":"guest-fsfreeze-status"}"#), "{\"return\":\"frozen\"}\n");
        assert_eq!(said(r#"{"execute":"guest-fsfreeze-thaw"}"#), "{\"return\":2}\n");
        assert!(said("no JSON").contains("CommandNotFound"));
    }

    #[test]
    fn half_a_request_is_forgotten_at_the_delimiter_and_an_endless_one_costs_nothing() {
        let mut requests = Requests::default();
        let mut feed = |bytes: &[u8]| bytes.iter().filter_map(|byte| requests.take(*byte)).collect::<Vec<_>>();
        assert_eq!(feed(b"half\xff{}\n\n[]\n"), [b"{}".to_vec(), b"[]".to_vec()]);
        assert!(feed(&[b'x'; 3 * REQUEST_BYTES_MAX]).is_empty());
        assert!(requests.0.len() <= REQUEST_BYTES_MAX);
    }
}
