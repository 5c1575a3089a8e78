//! Asking the witness, and writing down all it says.
//!
//! [`Witness`] asks and waits for the answer; [`Recording`] holds everything a subscription brought: which numbers were
//! acknowledged and when each tick arrived, by the clock of the test, which does not stand still when the guest does.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use sterna_witness::protocol::{DATAGRAM_LEASE_MS, DiskVerification, Hello, Latency, Status, Verification};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::namespace::Host;

const CONNECT_WAIT: Duration = Duration::from_secs(20);
/// A verification reads all of the guest's memory and disks, under an emulated processor.
const ANSWER_WAIT: Duration = Duration::from_secs(120);
/// Disks of one guest that a recording follows.
const DISKS_MAX: usize = 64;
/// How often the lease on datagrams is renewed: twice may be lost.
const RENEW: Duration = Duration::from_millis(DATAGRAM_LEASE_MS / 4);

/// A connection to a witness.
#[derive(Debug)]
pub struct Witness {
    lines: Lines<BufReader<OwnedReadHalf>>,
    requests: OwnedWriteHalf,
}

impl Witness {
    /// Connects from `client`'s namespace to the guest's address.
    pub async fn connect(client: &Host, guest: Ipv4Addr, port: u16) -> anyhow::Result<Self> {
        let (client, address) = (client.clone(), SocketAddr::from((guest, port)));
        let connect = move || client.connect_tcp(address, CONNECT_WAIT);
        let stream = tokio::task::spawn_blocking(connect).await?;
        let stream = stream.with_context(|| format!("the witness at {address} does not answer"))?;
        stream.set_nonblocking(true)?;
        Self::over(TcpStream::from_std(stream)?)
    }

    /// Speaks over a connection that is there already (a port that QEMU's user network forwards, say).
    pub fn over(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        let (read, requests) = stream.into_split();
        Ok(Self { lines: BufReader::new(read).lines(), requests })
    }

    /// Who answers.
    pub async fn hello(&mut self) -> anyhow::Result<Hello> {
        self.ask("hello").await
    }

    /// How it is going.
    pub async fn status(&mut self) -> anyhow::Result<Status> {
        self.ask("status").await
    }

    /// Proves all memory and all acknowledged records.
    pub async fn verify(&mut self) -> anyhow::Result<Verification> {
        self.ask("verify").await
    }

    /// Proves a disk up to a number that somebody saw acknowledged before the guest was started anew.
    pub async fn check(&mut self, disk: usize, number: u64) -> anyhow::Result<DiskVerification> {
        self.ask(&format!("check {disk} {number}")).await
    }

    /// Proves that a disk is an exact prefix of what was written, and says how far it goes.
    pub async fn survey(&mut self, disk: usize) -> anyhow::Result<DiskVerification> {
        self.ask(&format!("survey {disk}")).await
    }

    /// How long the writes of a disk took since this was last asked.
    pub async fn latency(&mut self, disk: usize) -> anyhow::Result<Latency> {
        self.ask(&format!("latency {disk}")).await
    }

    /// Has the machine switched off. Nothing is waited for: the answer may go with it.
    pub async fn power_off(&mut self) -> anyhow::Result<()> {
        Ok(self.requests.write_all(b"power-off\n").await?)
    }

    /// Sends a request that is answered by `{"ok":true}`: `pause-writes`, `resume-writes`, `rate …`, `poke …`.
    pub async fn tell(&mut self, request: &str) -> anyhow::Result<()> {
        self.ask::<serde_json::Value>(request).await.map(drop)
    }

    /// Sends a request and reads its answer.
    pub async fn ask<T: DeserializeOwned>(&mut self, request: &str) -> anyhow::Result<T> {
        let exchange = async {
            self.requests.write_all(format!("{request}\n").as_bytes()).await?;
            self.lines.next_line().await
        };
        let answer = tokio::time::timeout(ANSWER_WAIT, exchange).await;
        let answer = answer.with_context(|| format!("no answer to {request:?} within {ANSWER_WAIT:?}"))??;
        let answer = answer.with_context(|| format!("the connection ended before {request:?} was answered"))?;
        let value: serde_json::Value = serde_json::from_str(&answer)?;
        if let Some(error) = value.get("error") {
            bail!("the witness refuses {request:?}: {error}");
        }
        serde_json::from_value(value).with_context(|| format!("{request:?} is answered by {answer}"))
    }

    /// Turns the connection into a stream of ticks and acknowledgements, written down by a task of its own.
    pub async fn subscribe(mut self) -> anyhow::Result<Subscription> {
        self.tell("subscribe").await?;
        let (sender, recording) = watch::channel(Recording::default());
        let task = tokio::spawn(async move {
            // Dropping this half would tell the witness that nobody listens.
            let _requests = self.requests;
            while let Ok(Some(line)) = self.lines.next_line().await {
                sender.send_modify(|recording| recording.take(&line, Instant::now()));
            }
        });
        Ok(Subscription { recording, task })
    }
}

/// What a witness said, with the time at which it arrived.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// The highest number acknowledged, by disk.
    pub acknowledged: Vec<u64>,
    /// The last tick, and when it arrived.
    pub tick_last: Option<(u64, Instant)>,
    /// The longest time between two ticks as the test saw it.
    pub gap_max: Duration,
    /// Lines that must not be: a number that came twice, out of order, or after a gap. Empty is good.
    pub faults: Vec<String>,
}

impl Recording {
    fn take(&mut self, line: &str, now: Instant) {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let numbers: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
        match (kind, numbers.as_deref()) {
            ("tick", Some(&[tick])) => self.tick(tick, now),
            ("ack", Some(&[disk, number])) => {
                let disk = usize::try_from(disk).unwrap_or(usize::MAX);
                if disk < DISKS_MAX {
                    self.acknowledge(disk, number);
                } else {
                    self.faults.push(format!("no such disk: {line}"));
                }
            }
            _ => self.faults.push(line.to_owned()),
        }
    }

    fn tick(&mut self, tick: u64, now: Instant) {
        if let Some((last, arrived)) = self.tick_last {
            self.gap_max = self.gap_max.max(now - arrived);
            if tick != last + 1 {
                self.faults.push(format!("tick {tick} follows tick {last}"));
            }
        }
        self.tick_last = Some((tick, now));
    }

    fn acknowledge(&mut self, disk: usize, number: u64) {
        if self.acknowledged.len() <= disk {
            self.acknowledged.resize(disk + 1, 0);
        }
        let last = std::mem::replace(&mut self.acknowledged[disk], number);
        // The first that is seen may be any: the subscription began in the middle.
        if last != 0 && number != last + 1 {
            self.faults.push(format!("record {number} of disk {disk} follows record {last}"));
        }
    }
}

/// A subscription whose task writes the recording. It ends when this is dropped.
#[derive(Debug)]
pub struct Subscription {
    recording: watch::Receiver<Recording>,
    task: JoinHandle<()>,
}

impl Subscription {
    /// Everything up to now.
    pub fn recording(&self) -> Recording {
        self.recording.borrow().clone()
    }

    /// Waits until the recording is as wanted.
    ///
    /// # Errors
    /// The time ran out or the connection ended; the recording is in the error.
    pub async fn wait_for(
        &self,
        timeout: Duration,
        wanted: impl FnMut(&Recording) -> bool,
    ) -> anyhow::Result<Recording> {
        let mut recording = self.recording.clone();
        let waited = tokio::time::timeout(timeout, recording.wait_for(wanted)).await;
        let why = match waited {
            Ok(Ok(recording)) => return Ok(recording.clone()),
            Ok(Err(_)) => "the connection to the witness ended".to_owned(),
            Err(_) => format!("the witness did not get there in {timeout:?}"),
        };
        bail!("{why}: {:?}", self.recording())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ticks by datagram: what a blackout is measured by, since datagrams do not wait to be sent again.
#[derive(Debug)]
pub struct Ticks {
    gaps: watch::Receiver<Gaps>,
    task: JoinHandle<()>,
}

/// How the datagrams came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gaps {
    /// Ticks that arrived.
    pub count: u64,
    /// The longest time without one.
    pub longest: Duration,
    /// The last tick's number, and when it arrived.
    pub last: Option<(u64, Instant)>,
}

impl Ticks {
    /// Listens from `client`'s namespace to the ticks of the guest.
    pub fn listen(client: &Host, guest: Ipv4Addr, port: u16) -> anyhow::Result<Self> {
        let socket = client.connect_udp((guest, port).into())?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        let (sender, gaps) = watch::channel(Gaps::default());
        Ok(Self { gaps, task: tokio::spawn(measure(socket, sender)) })
    }

    /// How it went up to now.
    pub fn gaps(&self) -> Gaps {
        *self.gaps.borrow()
    }

    /// Waits until so many ticks have arrived.
    pub async fn wait_for(&mut self, count: u64, timeout: Duration) -> anyhow::Result<Gaps> {
        let waited = tokio::time::timeout(timeout, self.gaps.wait_for(|gaps| gaps.count >= count)).await;
        let gaps = waited.with_context(|| format!("fewer than {count} ticks within {timeout:?}"))?;
        Ok(*gaps.context("the task that measures has ended")?)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn measure(socket: UdpSocket, gaps: watch::Sender<Gaps>) {
    let mut renew = tokio::time::interval(RENEW);
    let mut buffer = [0; 64];
    loop {
        tokio::select! {
            // Errors are the guest's absence, told by ICMP: it is what is measured.
            _ = renew.tick() => { let _ = socket.send(b"ticks").await; }
            received = socket.recv(&mut buffer) => {
                let text = received.ok().and_then(|length| std::str::from_utf8(&buffer[..length]).ok());
                let Some(tick) = text.and_then(|text| text.strip_prefix("tick ")?.trim().parse().ok()) else { continue };
                let now = Instant::now();
                gaps.send_modify(|gaps| {
                    gaps.count += 1;
                    gaps.longest = gaps.longest.max(gaps.last.map_or(Duration::ZERO, |(_, last)| now - last));
                    gaps.last = Some((tick, now));
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_names_what_must_not_be() {
        let mut recording = Recording::default();
        let start = Instant::now();
        for (line, ms) in [("tick 7", 0), ("ack 1 40", 1), ("tick 8", 5), ("ack 1 41", 6), ("tick 9", 95)] {
            recording.take(line, start + Duration::from_millis(ms));
        }
        assert_eq!(recording.acknowledged, [0, 41]);
        assert_eq!(recording.gap_max, Duration::from_millis(90));
        assert!(recording.faults.is_empty(), "{:?}", recording.faults);
        for line in ["ack 1 41", "ack 1 43", "tick 9", "lagged", "ack 9999 1", "tick x"] {
            let before = recording.faults.len();
            recording.take(line, start + Duration::from_secs(1));
            assert_eq!(recording.faults.len(), before + 1, "{line}");
        }
    }
}
