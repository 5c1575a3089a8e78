//! How much of memory may be on its way: what the link delivers in a moment, and no more.
//!
//! QEMU reckons what it has handed over as sent, and pauses the guest when little is left. What then still waits in the lanes
//! is waited for by a guest that stands still: four channels of 4 MiB are nothing on a fast link, and seconds on a slow one.
//! The same holds for a pass over the disks: its blocks wait behind what of memory is in the lanes already.
//! So the room of the channels follows the rate at which the target takes data, for a time that the move sets. It begins
//! small; where it is what holds the rate down, the rate it allows makes it grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::PIECE_LENGTH;
use crate::link::{InFlight, Sender};

/// How often the room follows the rate.
const INTERVAL: Duration = Duration::from_millis(100);
/// So much time's worth of data may be on its way at most. More than a round trip of the longest links, or the rate would
/// not grow.
pub(super) const IN_FLIGHT_MAX: Duration = Duration::from_millis(250);
/// How much of the rate's past counts: the mean over about so many intervals.
const RATE_MEMORY: u64 = 4;

/// What the channels of one end keep to.
#[derive(Debug)]
pub(super) struct Pace {
    piece_length: AtomicUsize,
    time: watch::Sender<Duration>,
}

impl Default for Pace {
    /// Nothing is held back.
    fn default() -> Self {
        Self { piece_length: AtomicUsize::new(PIECE_LENGTH), time: watch::Sender::new(IN_FLIGHT_MAX) }
    }
}

impl Pace {
    /// The most that may be sent in one piece, so that a small room takes several.
    pub(super) fn piece_length(&self) -> usize {
        self.piece_length.load(Ordering::Relaxed)
    }

    /// From now on what the link delivers in `time` may be on its way.
    pub(super) fn allow(&self, time: Duration) {
        self.time.send_replace(time.min(IN_FLIGHT_MAX));
    }

    /// Keeps the room of the channels to the rate at which the target takes what `sent` counts, for as long as it is polled.
    pub(super) async fn keep(self: Arc<Self>, sender: Sender, channels: u16, sent: Arc<AtomicU64>) {
        let mut rate = Rate::default();
        let mut time = self.time.subscribe();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = Instant::now();
        loop {
            let bytes = rate.in_flight(*time.borrow_and_update(), channels);
            let rooms: Vec<InFlight> =
                (0..channels).filter_map(|channel| sender.limit_in_flight(channel, bytes)).collect();
            let piece_length = rooms.iter().map(InFlight::piece_length).min().unwrap_or(PIECE_LENGTH);
            self.piece_length.store(piece_length.min(PIECE_LENGTH), Ordering::Relaxed);
            tokio::select! {
                now = ticks.tick() => {
                    let waiting: usize = rooms.iter().map(|room| room.now).sum();
                    let delivered = sent.load(Ordering::Relaxed).saturating_sub(waiting as u64);
                    rate.observe(delivered, now.saturating_duration_since(before));
                    before = now;
                }
                // The sender of the times is our own.
                _ = time.changed() => {}
            }
        }
    }
}

/// The pure core: bytes a second, smoothed downwards and never upwards.
#[derive(Debug, Default)]
struct Rate {
    delivered: u64,
    bytes_per_second: u64,
}

impl Rate {
    fn observe(&mut self, delivered: u64, elapsed: Duration) {
        let Ok(elapsed_us @ 1..) = u64::try_from(elapsed.as_micros()) else { return };
        let rate = delivered.saturating_sub(self.delivered).saturating_mul(1_000_000) / elapsed_us;
        self.delivered = delivered.max(self.delivered);
        let before = (self.bytes_per_second / RATE_MEMORY).saturating_mul(RATE_MEMORY - 1);
        self.bytes_per_second = rate.max(before.saturating_add(rate / RATE_MEMORY));
    }

    /// Bytes of each channel; what takes it holds it to its window.
    fn in_flight(&self, time: Duration, channels: u16) -> usize {
        // The main channel carries little: the others share all of it.
        let sharing = u64::from(channels.saturating_sub(1)).max(1);
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        usize::try_from((self.bytes_per_second / 1000).saturating_mul(time_ms) / sharing).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_room_follows_the_rate_up_at_once_and_down_slowly() {
        let mut rate = Rate::default();
        assert_eq!(rate.in_flight(IN_FLIGHT_MAX, 5), 0);
        rate.observe(80 * MIB, Duration::from_millis(100));
        let fast = rate.in_flight(IN_FLIGHT_MAX, 5);
        assert!(fast > 48 << 20 && fast <= 50 << 20, "800 MiB/s for 250 ms, by 4: {fast}");
        rate.observe(80 * MIB, Duration::from_millis(100));
        assert!(rate.in_flight(IN_FLIGHT_MAX, 5) >= fast / 2, "one pause is no slow link");
        for tick in 0..50 {
            rate.observe(80 * MIB + tick * MIB / 2, Duration::from_millis(100));
        }
        let slow = rate.in_flight(IN_FLIGHT_MAX, 5);
        assert!(slow > 300 << 10 && slow < 330 << 10, "5 MiB/s for 250 ms, by 4: {slow}");
        let short = rate.in_flight(Duration::from_millis(50), 5);
        assert!(short.abs_diff(slow / 5) < 1024, "a fifth of the time, {short}, a fifth of {slow}");
    }

    #[test]
    fn odd_figures_are_survived() {
        let mut rate = Rate::default();
        rate.observe(u64::MAX, Duration::from_micros(1));
        rate.observe(0, Duration::ZERO);
        rate.observe(0, Duration::MAX);
        rate.observe(5, Duration::from_millis(1));
        assert!(rate.in_flight(IN_FLIGHT_MAX, 0) > 0);
    }
}
