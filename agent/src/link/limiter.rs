//! How fast a job may send: one token bucket, shared by all its lanes, whose rate can be changed while it is in use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sterna_shared::units::Bandwidth;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// How much of a second's worth may be sent at once after a pause.
const BURST_SECONDS: f64 = 0.05;
/// The burst never falls below one frame of the usual size, or small rates would be kept in slivers.
const BURST_BYTES_MIN: f64 = 256.0 * 1024.0;
/// Stands for no limit in [`Limiter::rate`].
const UNLIMITED: u64 = u64::MAX;

/// The pure core: a bucket that fills with `rate` bytes a second, up to a burst, and may be overdrawn by one frame.
///
/// Overdrawing keeps frames whole: one that is larger than the burst goes out when the bucket is full, and the debt it
/// leaves delays the next.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket. A rate of zero is taken as one byte a second.
    #[must_use]
    pub fn new(rate: Bandwidth, now: Instant) -> Self {
        let mut bucket = Self { rate: 0.0, level: 0.0, at: now };
        bucket.change(rate, now);
        bucket.level = bucket.burst();
        bucket
    }

    /// Changes the rate from `now` on; what was gathered by then is kept, up to the new burst.
    pub fn change(&mut self, rate: Bandwidth, now: Instant) {
        self.fill(now);
        // Rates are far below 2^53 bytes a second; above, the error would be one in 10^15.
        #[allow(clippy::cast_precision_loss)]
        let rate = rate.0.max(1) as f64;
        self.rate = rate;
        self.level = self.level.min(self.burst());
    }

    /// Takes `bytes`, or says how long to wait before asking again.
    pub fn take(&mut self, now: Instant, bytes: u64) -> Option<Duration> {
        self.fill(now);
        #[allow(clippy::cast_precision_loss)]
        let bytes = bytes as f64;
        let missing = bytes.min(self.burst()) - self.level;
        if missing > 0.0 {
            // A microsecond more, so that rounding never makes the caller ask in vain.
            return Some(Duration::from_secs_f64((missing / self.rate).min(1e6)) + Duration::from_micros(1));
        }
        self.level -= bytes;
        None
    }

    fn burst(&self) -> f64 {
        (self.rate * BURST_SECONDS).max(BURST_BYTES_MIN)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * self.rate).min(self.burst());
    }
}

/// A [`Bucket`] that tasks wait on, first come first served. Without a limit it costs one relaxed load.
#[derive(Debug)]
pub struct Limiter {
    rate: AtomicU64,
    changed: watch::Sender<u64>,
    bucket: Mutex<Bucket>,
}

impl Limiter {
    /// A limiter of that rate; `None` is no limit.
    #[must_use]
    pub fn new(rate: Option<Bandwidth>) -> Self {
        let rate = rate.map_or(UNLIMITED, |rate| rate.0);
        Self {
            rate: AtomicU64::new(rate),
            changed: watch::Sender::new(rate),
            bucket: Mutex::new(Bucket::new(Bandwidth(rate), Instant::now())),
        }
    }

    /// Changes the rate, also for those who are waiting already.
    pub fn change(&self, rate: Option<Bandwidth>) {
        let rate = rate.map_or(UNLIMITED, |rate| rate.0);
        self.rate.store(rate, Ordering::Relaxed);
        self.changed.send_replace(rate);
    }

    /// The rate now; `None` is no limit.
    #[must_use]
    pub fn rate(&self) -> Option<Bandwidth> {
        match self.rate.load(Ordering::Relaxed) {
            UNLIMITED => None,
            rate => Some(Bandwidth(rate)),
        }
    }

    /// Waits until `bytes` may be sent. Given up half-way, it has taken nothing.
    pub async fn take(&self, bytes: usize) {
        if self.rate.load(Ordering::Relaxed) == UNLIMITED {
            return;
        }
        let mut changed = self.changed.subscribe();
        let mut bucket = self.bucket.lock().await;
        loop {
            let rate = *changed.borrow_and_update();
            if rate == UNLIMITED {
                return;
            }
            let now = Instant::now();
            bucket.change(Bandwidth(rate), now);
            let Some(wait) = bucket.take(now, u64::try_from(bytes).unwrap_or(u64::MAX)) else { return };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The sender of the channel is in `self`: it cannot be gone.
                _ = changed.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_rate_is_kept_over_time() {
        let start = Instant::now();
        let mut now = start;
        let mut bucket = Bucket::new(Bandwidth(100 * MIB), now);
        let mut sent = 0;
        while now - start < Duration::from_secs(10) {
            match bucket.take(now, MIB) {
                None => sent += MIB,
                Some(wait) => now += wait,
            }
        }
        let excess = sent.abs_diff(1000 * MIB);
        assert!(excess <= 7 * MIB, "sent {sent} bytes in 10 s at 100 MiB/s");
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Bandwidth(MIB), start);
        assert_eq!(bucket.take(start, MIB), None);
        let wait = bucket.take(start, 1).expect("in debt");
        assert!(wait > Duration::from_millis(740) && wait < Duration::from_millis(760), "{wait:?}");
        assert_eq!(bucket.take(start + wait, 1), None);
    }

    #[test]
    fn time_that_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(1);
        let mut bucket = Bucket::new(Bandwidth(MIB), start);
        assert_eq!(bucket.take(start, MIB), None);
        assert!(bucket.take(start - Duration::from_secs(1), 1).is_some());
        assert!(bucket.take(start, 1).expect("in debt") > Duration::from_millis(700));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_tasks_share_the_rate_and_follow_a_change() {
        let limiter = Arc::new(Limiter::new(Some(Bandwidth(MIB))));
        let start = Instant::now();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let limiter = Arc::clone(&limiter);
                tokio::spawn(async move {
                    for _ in 0..4 {
                        limiter.take(1 << 20).await;
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(3500)).await;
        limiter.change(Some(Bandwidth(100 * MIB)));
        for task in tasks {
            task.await.expect("it ends");
        }
        let elapsed = start.elapsed();
        assert!(elapsed > Duration::from_millis(3500) && elapsed < Duration::from_millis(4000), "{elapsed:?}");
        limiter.take(1 << 20).await;
        limiter.change(None);
        let start = Instant::now();
        limiter.take(usize::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(limiter.rate(), None);
    }
}
