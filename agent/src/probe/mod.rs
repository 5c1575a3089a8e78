//! Measurements for the checks of a move, made when they are asked for: nothing is changed, journalled or kept.
//!
//! ```text
//!   source  Prober ─┬─▶ path ─▶ each address: TCP, TLS, hello ─▶ a session ─▶ random bytes, for a while ─▶ closed
//!                   └─▶ guest ─▶ QEMU: memory, dirty rate, writes, images
//!   target  ExpectedProbes ─▶ admission ─▶ the session is read, thrown away, and held to limits
//! ```
//!
//! The bytes take the way of a move's (TLS, frames, windows, as many lanes), so what they tell is what a move will get: no
//! more than the processors of both hosts can encrypt, and no more than other moves leave. For as long as it is measured the
//! path is full, which the moves under way feel too: half a second of it at most, and no more than
//! [`PROBE_BYTES_MAX`](sterna_shared::probe::PROBE_BYTES_MAX) bytes.

mod expected;
mod guest;
mod path;

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::id::VmId;
use sterna_shared::probe::{
    GuestReport, Measured, PROBE_TIME_MS_MAX, PROBE_TIME_MS_MIN, PathReport, ProbePeer, ProbeReport,
};
use tokio::sync::Semaphore;

pub use expected::{DrainLimits, EXPECTED_FOR, EXPECTED_MAX, ExpectedProbes, TooMany};
pub use guest::measure_machine;

use crate::clock;
use crate::link::Tls;
use crate::migration::keeper::Keeper;

/// Probes that a host makes at a time: each would measure what the others leave.
pub const PROBES_MAX: usize = 4;

/// What makes probes. Clones share the limit.
#[derive(Debug, Clone)]
pub struct Prober {
    tls: Arc<Tls>,
    places: Arc<Semaphore>,
}

impl Prober {
    /// Probes with this host's certificate.
    #[must_use]
    pub fn new(tls: Arc<Tls>) -> Self {
        Self { tls, places: Arc::new(Semaphore::new(PROBES_MAX)) }
    }

    /// Measures the way to `peer` and the guest of `vm`, side by side; each measurement takes about `time_ms`, held to its
    /// limits. `keeper` is that VM's, if this host has it. What cannot be measured says why.
    pub async fn probe(
        &self,
        vm: Option<VmId>,
        keeper: Option<Keeper>,
        peer: Option<ProbePeer>,
        time_ms: u32,
    ) -> ProbeReport {
        let time = Duration::from_millis(time_ms.clamp(PROBE_TIME_MS_MIN, PROBE_TIME_MS_MAX).into());
        let Ok(_place) = self.places.try_acquire() else {
            let why = format!("this host makes {PROBES_MAX} probes already; ask again in a moment");
            let nothing = || PathReport {
                addresses: Vec::new(),
                throughput: Measured::unknown(why.as_str()),
                round_trip_us: Measured::unknown(why.as_str()),
            };
            let (path, guest) = (peer.map(|_| nothing()), vm.map(|_| GuestReport::unknown(&why)));
            return ProbeReport { at: clock::now(), path, guest };
        };
        let path = async {
            match peer {
                Some(peer) => Some(path::measure(&self.tls, peer, time).await),
                None => None,
            }
        };
        let guest = async {
            match vm {
                Some(_) => Some(guest::measure(keeper, time).await),
                None => None,
            }
        };
        let (path, guest) = tokio::join!(path, guest);
        ProbeReport { at: clock::now(), path, guest }
    }
}

/// An error and its causes, in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}
