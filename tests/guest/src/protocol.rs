//! What the witness is asked over TCP, and what it answers.
//!
//! Lines of text both ways. A request is a line of words; its answer is one line of JSON, in the order of the requests.
//! A request that fails is answered by `{"error": "…"}`. Connections are independent; at most [`CONNECTIONS_MAX`].
//!
//! | request | answer |
//! | --- | --- |
//! | `hello` | [`Hello`] |
//! | `status` | [`Status`] |
//! | `verify` | [`Verification`]: all memory, and all acknowledged records of every disk |
//! | `check DISK N` | [`DiskVerification`] as if the records up to `N` had been acknowledged: a guest started anew |
//! | `survey DISK` | [`DiskVerification`] up to the highest record found: is the disk an exact prefix of the writes? |
//! | `latency DISK` | [`Latency`] of the records written since it was last asked |
//! | `pause-writes`, `resume-writes` | `{"ok":true}`; once answered, no memory and no record is being written |
//! | `rate memory MIB`, `rate disk N` | `{"ok":true}`; MiB per second; records per second and disk |
//! | `poke memory PAGE` | `{"ok":true}`; damages one word of a page, so that a test can see `verify` fail |
//! | `echo TEXT` | `{"echo":"TEXT"}` |
//! | `power-off` | `{"ok":true}`, then the machine is switched off |
//! | `subscribe` | `{"ok":true}`, then for ever `tick N` every 5 ms and `ack DISK N` for each acknowledged record |
//!
//! Ticks come by UDP as well: whoever sends a datagram to the same port gets `tick N` datagrams for the next
//! [`DATAGRAM_LEASE_MS`]. TCP waits longer and longer after a loss; datagrams show a pause as long as it was.
//!
//! A subscriber that falls [`SUBSCRIBER_LINES_MAX`] lines behind is told `lagged` and cut off: the records go on.

use serde::{Deserialize, Serialize};

/// The protocol's version, in [`Hello`].
pub const VERSION: u32 = 1;
/// The port, unless the command line says otherwise.
pub const DEFAULT_PORT: u16 = 7007;
/// Milliseconds between two ticks.
pub const TICK_MS: u64 = 5;
/// Connections at once; further ones are closed at once.
pub const CONNECTIONS_MAX: usize = 64;
/// The longest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 1024;
/// Lines that may wait for one subscriber: five minutes of ticks.
pub const SUBSCRIBER_LINES_MAX: usize = 60_000;
/// How long one datagram asks for ticks.
pub const DATAGRAM_LEASE_MS: u64 = 10_000;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// Random at each start of the guest: unchanged means the very same run.
    pub boot_id: String,
    /// Of the pattern and the records.
    pub seed: u64,
    /// Memory filled, MiB.
    pub memory_mib: u64,
    /// How many disks are written.
    pub disks: usize,
}

/// How it is going.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Ticks since the start, one each 5 ms of the guest's running time.
    pub ticks: u64,
    /// The longest time between two ticks by the guest's monotonic clock, milliseconds. The clock stands still while
    /// QEMU is paused, so a blackout is measured from outside and compared with this.
    pub gap_monotonic_ms_max: u64,
    /// The same by the clock that goes on through suspend.
    pub gap_boottime_ms_max: u64,
    /// How often all of memory was rewritten.
    pub memory_passes: u64,
    /// Pages rewritten in all.
    pub memory_pages_rewritten: u64,
    /// Of each disk.
    pub disks: Vec<DiskStatus>,
    /// Subscribers cut off because they did not keep up.
    pub subscribers_lagged: u64,
}

/// How one disk is going.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// The last number acknowledged; 0 before the first.
    pub acknowledged: u64,
    /// Writes that failed; each was tried again.
    pub errors: u64,
    /// What the last of them said.
    pub error_last: Option<String>,
}

/// How long the writes of records took, from the call to the disk's answer, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured: of very many the latest.
    pub count: usize,
    /// Half of them took less.
    pub p50_us: u64,
    /// Of a hundred, one took longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Latency {
    /// Of these.
    #[must_use]
    pub fn of(mut took_us: Vec<u64>) -> Self {
        took_us.sort_unstable();
        let at = |share: usize| took_us.get(took_us.len() * share / 100).or(took_us.last()).copied().unwrap_or(0);
        Self { count: took_us.len(), p50_us: at(50), p99_us: at(99), max_us: took_us.last().copied().unwrap_or(0) }
    }
}

/// The result of `verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Nothing is lost.
    pub ok: bool,
    /// Of memory.
    pub memory: MemoryVerification,
    /// Of each disk.
    pub disks: Vec<DiskVerification>,
}

/// All pages, recomputed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryVerification {
    /// Pages compared.
    pub checked: u64,
    /// Pages that differ.
    pub mismatches: u64,
    /// The first of them, in words.
    pub first: Option<String>,
}

/// All records that must be on a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskVerification {
    /// Which disk.
    pub disk: u64,
    /// The number up to which records were expected.
    pub acknowledged: u64,
    /// Records compared.
    pub checked: u64,
    /// Records that are not there, or not whole.
    pub mismatches: u64,
    /// The first of them, in words.
    pub first: Option<String>,
}
