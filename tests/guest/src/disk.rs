//! The threads that own a disk each: write records one after another, say each number once the disk has it.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::config::Config;
use crate::hub::{Event, Hub};
use crate::protocol::{DiskVerification, Latency};
use crate::record::{Block, RECORD_BYTES, Records};

/// How often a disk looks whether the others have come as far.
const PACE: Duration = Duration::from_millis(1);
/// Writes whose time is remembered; then it begins anew.
const LATENCIES_MAX: usize = 1 << 16;
/// Requests that may wait.
const REQUESTS_MAX: usize = 16;
/// How long to wait before a write that failed is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// What the owner of a disk can be asked for. Each is answered on the channel it brings.
#[derive(Debug)]
pub(crate) enum Request {
    /// Check the records up to the last acknowledged, or up to another.
    Verify(UpTo, SyncSender<Result<DiskVerification, String>>),
    /// Say how long the writes took since this was last asked.
    Latency(SyncSender<Latency>),
    /// Write so many records per second.
    Rate(u64, SyncSender<()>),
    /// Stop or go on writing.
    Pause(bool, SyncSender<()>),
    /// Stop writing, once the record of this number is written where one is named: the last that is.
    Freeze(Option<u64>, SyncSender<u64>),
    /// Go on after that.
    Thaw,
}

/// How far records are expected.
#[derive(Debug, Clone, Copy)]
pub(crate) enum UpTo {
    /// The last this guest has seen acknowledged.
    Acknowledged,
    /// A number that somebody else has seen acknowledged.
    Number(u64),
    /// The highest that is on the disk.
    Found,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot use the disk {path}")]
    Open { path: String, source: io::Error },
    #[error("the disk {path} has {bytes} bytes: records need at least two blocks of {RECORD_BYTES}")]
    Small { path: String, bytes: u64 },
}

/// Opens the disk and starts its owner.
pub(crate) fn spawn(
    config: &Config,
    index: usize,
    path: &Path,
    hub: Hub,
    pace: Pace,
) -> Result<SyncSender<Request>, DiskError> {
    let failed = |source| DiskError::Open { path: path.display().to_string(), source };
    let mut disk = Disk::open(config, index, path)?;
    if config.continues {
        disk.acknowledged = disk.highest().map_err(failed)?;
    }
    pace.acknowledged(index, disk.acknowledged);
    let (sender, requests) = sync_channel(REQUESTS_MAX);
    let rate = config.records;
    let builder = std::thread::Builder::new().name(format!("disk {index}"));
    builder.spawn(move || disk.run(rate, &requests, &hub, &pace)).map_err(failed)?;
    Ok(sender)
}

/// How far all disks are, where they go in lockstep: none writes the next record before all have the last.
#[derive(Debug, Clone)]
pub(crate) struct Pace(Option<Arc<[AtomicU64]>>);

impl Pace {
    pub(crate) fn new(disks: usize, lockstep: bool) -> Self {
        Self(lockstep.then(|| (0..disks).map(|_| AtomicU64::new(0)).collect()))
    }

    fn acknowledged(&self, disk: usize, number: u64) {
        if let Some(disk) = self.0.as_ref().and_then(|disks| disks.get(disk)) {
            disk.store(number, Ordering::Release);
        }
    }

    /// Whether a disk that has this number must wait for another.
    fn holds_back(&self, number: u64) -> bool {
        self.0.as_ref().is_some_and(|disks| disks.iter().any(|disk| disk.load(Ordering::Acquire) < number))
    }
}

struct Disk {
    index: usize,
    file: File,
    records: Records,
    acknowledged: u64,
    /// How long writes took, the latest at the end.
    took_us: Vec<u64>,
    /// Aligned and allocated once: a write must not need memory.
    block: Box<Block>,
}

impl Disk {
    fn open(config: &Config, index: usize, path: &Path) -> Result<Self, DiskError> {
        let name = || path.display().to_string();
        let failed = |source| DiskError::Open { path: name(), source };
        let flags = (OFlags::DIRECT | OFlags::DSYNC).bits() as i32;
        let mut file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(failed)?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let records = Records::new(config.seed, index as u64, bytes);
        let records = records.ok_or_else(|| DiskError::Small { path: name(), bytes })?;
        Ok(Self {
            index,
            file,
            records,
            acknowledged: 0,
            took_us: Vec::new(),
            block: Box::new(Block([0; RECORD_BYTES])),
        })
    }

    fn run(&mut self, mut rate: u64, requests: &Receiver<Request>, hub: &Hub, pace: &Pace) {
        let (mut paused, mut frozen) = (false, false);
        let mut due = Instant::now();
        loop {
            let idle = paused || frozen || rate == 0;
            let request = if idle {
                requests.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                requests.recv_timeout(due.saturating_duration_since(Instant::now()))
            };
            match request {
                Ok(Request::Verify(up_to, answer)) => {
                    let _ = answer.send(self.verify(up_to).map_err(|error| error.to_string()));
                }
                Ok(Request::Latency(answer)) => {
                    let _ = answer.send(Latency::of(std::mem::take(&mut self.took_us)));
                }
                Ok(Request::Rate(records, answer)) => {
                    rate = records;
                    let _ = answer.send(());
                }
                Ok(Request::Pause(pause, answer)) => {
                    paused = pause;
                    let _ = answer.send(());
                }
                Ok(Request::Freeze(up_to, answer)) => {
                    frozen = true;
                    // Where a record cannot be written the answer tells.
                    while up_to.is_some_and(|number| self.acknowledged < number)
                        && self.write_and_tell(rate, hub, pace).is_ok()
                    {}
                    let _ = answer.send(self.acknowledged);
                }
                Ok(Request::Thaw) => frozen = false,
                Err(RecvTimeoutError::Timeout) if pace.holds_back(self.acknowledged) => due = Instant::now() + PACE,
                Err(RecvTimeoutError::Timeout) => {
                    let wait = match self.write_and_tell(rate, hub, pace) {
                        Ok(()) => Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX),
                        Err(_) => RETRY,
                    };
                    // No bursts after a pause: what was not written then is not owed.
                    due = (due + wait).max(Instant::now());
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write_and_tell(&mut self, rate: u64, hub: &Hub, pace: &Pace) -> io::Result<()> {
        let written = self.write_next();
        match &written {
            Ok(()) => {
                pace.acknowledged(self.index, self.acknowledged);
                hub.tell(Event::Acknowledged { disk: self.index, number: self.acknowledged, rate });
            }
            Err(error) => {
                let reason = format!("record {}: {error}", self.acknowledged + 1);
                hub.tell(Event::DiskError { disk: self.index, reason });
            }
        }
        written
    }

    fn write_next(&mut self) -> io::Result<()> {
        let number = self.acknowledged + 1;
        self.records.fill(number, &mut self.block);
        let began = Instant::now();
        self.file.write_all_at(&self.block.0, self.records.block_of(number) * RECORD_BYTES as u64)?;
        if self.took_us.len() == LATENCIES_MAX {
            self.took_us.clear();
        }
        self.took_us.push(began.elapsed().as_micros() as u64);
        self.acknowledged = number;
        Ok(())
    }

    fn verify(&self, up_to: UpTo) -> io::Result<DiskVerification> {
        let number = match up_to {
            UpTo::Acknowledged => self.acknowledged,
            UpTo::Number(number) => number,
            UpTo::Found => self.highest()?,
        };
        self.records.verify(number, self.reader())
    }

    fn highest(&self) -> io::Result<u64> {
        self.records.highest(self.reader())
    }

    /// Reads past every cache of the guest: what counts is what the disk answers.
    fn reader(&self) -> impl FnMut(u64, &mut [Block]) -> io::Result<()> {
        |offset, blocks| {
            let bytes = blocks.len() * RECORD_BYTES;
            let mut parts: Vec<IoSliceMut<'_>> = blocks.iter_mut().map(|block| IoSliceMut::new(&mut block.0)).collect();
            let read = rustix::io::preadv(&self.file, &mut parts, offset)?;
            if read == bytes { Ok(()) } else { Err(io::Error::other(format!("{read} of {bytes} bytes at {offset}"))) }
        }
    }
}
