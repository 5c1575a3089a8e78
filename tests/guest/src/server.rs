//! Answers over TCP: one thread a connection, which asks the owners and writes down what they say.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use serde_json::json;

use crate::hub::{Event, Hub};
use crate::protocol::{
    CONNECTIONS_MAX, DiskVerification, Hello, Latency, MemoryVerification, REQUEST_BYTES_MAX, SUBSCRIBER_LINES_MAX,
    Verification,
};
use crate::{boot, disk, memory};

/// Whom a connection can ask.
pub(crate) struct Owners {
    pub(crate) hello: Hello,
    pub(crate) hub: Hub,
    pub(crate) memory: SyncSender<memory::Request>,
    pub(crate) disks: Vec<SyncSender<disk::Request>>,
}

/// Listens on TCP for requests and on UDP for listeners to ticks.
pub(crate) fn spawn(port: u16, owners: Owners) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let hub = owners.hub.clone();
    std::thread::Builder::new().name("accept".into()).spawn(move || accept(&listener, owners))?;
    std::thread::Builder::new().name("datagrams".into()).spawn(move || {
        let mut buffer = [0; 64];
        loop {
            if let Ok((_, from)) = socket.recv_from(&mut buffer)
                && let Ok(socket) = socket.try_clone()
            {
                hub.tell(Event::Listen(socket, from));
            }
        }
    })?;
    Ok(())
}

fn accept(listener: &TcpListener, owners: Owners) {
    let owners = Arc::new(owners);
    for stream in listener.incoming().flatten() {
        // Each connection's thread holds one, and this loop one more.
        if Arc::strong_count(&owners) <= CONNECTIONS_MAX {
            let owners = Arc::clone(&owners);
            // A thread that cannot be started closes the connection, which says enough.
            let _ = std::thread::Builder::new().name("connection".into()).spawn(move || serve(&stream, &owners));
        }
    }
}

/// Serves one connection to its end; an error on it is its end.
fn serve(stream: &TcpStream, owners: &Owners) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if requests.by_ref().take(REQUEST_BYTES_MAX as u64).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            _ if !line.ends_with('\n') => Err(format!("a request has at most {REQUEST_BYTES_MAX} bytes")),
            ["subscribe"] => return feed(stream, owners),
            ["power-off"] => {
                write_line(stream, &json!({"ok": true}))?;
                boot::power_off();
                return Ok(());
            }
            words => answer(words, line.trim_end(), owners),
        };
        write_line(stream, &answer.unwrap_or_else(|error| json!({ "error": error })))?;
    }
}

fn answer(words: &[&str], line: &str, owners: &Owners) -> Result<serde_json::Value, String> {
    let ok = json!({"ok": true});
    let said = |error: serde_json::Error| error.to_string();
    match words {
        ["hello"] => serde_json::to_value(&owners.hello).map_err(said),
        ["status"] => {
            let status = ask(|answer| {
                owners.hub.tell(Event::Status(answer));
                Ok(())
            })?;
            serde_json::to_value(status).map_err(said)
        }
        ["verify"] => serde_json::to_value(owners.verify()?).map_err(said),
        ["check", disk, number] => {
            let up_to = disk::UpTo::Number(parse(number)?);
            serde_json::to_value(owners.verify_disk(parse(disk)?, up_to)?).map_err(said)
        }
        ["survey", disk] => serde_json::to_value(owners.verify_disk(parse(disk)?, disk::UpTo::Found)?).map_err(said),
        ["latency", disk] => serde_json::to_value(owners.latency(parse(disk)?)?).map_err(said),
        ["pause-writes"] => owners.pause(true).map(|()| ok),
        ["resume-writes"] => owners.pause(false).map(|()| ok),
        ["rate", "memory", mib] => {
            let mib = parse(mib)?;
            owners.ask_memory(|answer| memory::Request::Rate(mib, answer)).map(|()| ok)
        }
        ["rate", "disk", records] => {
            let records = parse(records)?;
            let mut disks = owners.disks.iter();
            disks.try_for_each(|disk| ask(|answer| gone(disk.send(disk::Request::Rate(records, answer))))).map(|()| ok)
        }
        ["poke", "memory", page] => {
            let page = parse(page)?;
            let found = owners.ask_memory(|answer| memory::Request::Poke(page, answer))?;
            found.then_some(ok).ok_or_else(|| format!("there is no page {page}"))
        }
        ["echo", ..] => Ok(json!({ "echo": line.trim_start().trim_start_matches("echo").trim_start() })),
        _ => Err(format!("unknown request {line:?}: the list is in the documentation of sterna_witness::protocol")),
    }
}

/// Everything that happens, until the reader goes away or falls too far behind.
fn feed(mut stream: &TcpStream, owners: &Owners) -> io::Result<()> {
    let (sender, lines) = sync_channel(SUBSCRIBER_LINES_MAX);
    write_line(stream, &json!({"ok": true}))?;
    owners.hub.tell(Event::Subscribe(sender));
    for line in lines {
        stream.write_all(line.as_bytes())?;
    }
    stream.write_all(b"lagged\n")
}

impl Owners {
    fn verify(&self) -> Result<Verification, String> {
        let memory: MemoryVerification = self.ask_memory(memory::Request::Verify)?;
        let disks = (0..self.disks.len())
            .map(|index| self.verify_disk(index, disk::UpTo::Acknowledged))
            .collect::<Result<Vec<_>, _>>()?;
        let ok = memory.mismatches == 0 && disks.iter().all(|disk| disk.mismatches == 0);
        Ok(Verification { ok, memory, disks })
    }

    fn latency(&self, disk: usize) -> Result<Latency, String> {
        let disk = self.disks.get(disk).ok_or_else(|| format!("there is no disk {disk}"))?;
        ask(|answer| gone(disk.send(disk::Request::Latency(answer))))
    }

    fn verify_disk(&self, index: usize, up_to: disk::UpTo) -> Result<DiskVerification, String> {
        let disk = self.disks.get(index).ok_or_else(|| format!("there is no disk {index}"))?;
        ask(|answer| gone(disk.send(disk::Request::Verify(up_to, answer))))?
    }

    fn pause(&self, pause: bool) -> Result<(), String> {
        self.ask_memory(|answer| memory::Request::Pause(pause, answer))?;
        let mut disks = self.disks.iter();
        disks.try_for_each(|disk| ask(|answer| gone(disk.send(disk::Request::Pause(pause, answer)))))
    }

    fn ask_memory<T>(&self, request: impl FnOnce(SyncSender<T>) -> memory::Request) -> Result<T, String> {
        ask(|answer| gone(self.memory.send(request(answer))))
    }
}

/// Sends a request with a channel for its answer, and waits for that.
pub(crate) fn ask<T>(send: impl FnOnce(SyncSender<T>) -> Result<(), String>) -> Result<T, String> {
    let (sender, answer) = sync_channel(1);
    send(sender)?;
    gone(answer.recv())
}

/// An owner's thread ends only by a fault of its own, which the console shows.
fn gone<T, E>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|_| "the thread that owns this has ended: see the console".to_owned())
}

fn parse<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number in range"))
}

fn write_line(mut stream: &TcpStream, value: &serde_json::Value) -> io::Result<()> {
    stream.write_all(format!("{value}\n").as_bytes())
}
