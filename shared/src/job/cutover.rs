//! What a cutover will take, foreseen from what the cycles of the replication have measured. Pure.
//!
//! ```text
//!   cycles      bytes a second, sent and read ──┐
//!   snapshots   written between them ───────────┼─▶ a move (`forecast`) that sends what was written since the latest, and reads
//!   replica     age, disks ─────────────────────┘   everything at both ends
//! ```
//!
//! What no cycle has measured is not known, and then there is no forecast: the first cycle, which reads everything, is enough.
//! Once the cutover is over, its forecast has a score: what it took, beside what was foreseen.

use serde::{Deserialize, Serialize};

use super::{Estimate, Forecast, ForecastInput, JobKind, JobState, JobStatus, MoveMode, StepKind};
use crate::replica::Replica;
use crate::time::Timestamp;
use crate::units::{Bandwidth, ByteCount};
use crate::vm::VmSpec;

/// A cycle that has carried less says nothing of how fast it could be.
const TELLING_BYTES: u64 = 4 << 20;
/// What is reckoned with where the plan does not say otherwise.
const LANES: u8 = 4;
/// The same: how long the guest may stand still.
const BLACKOUT_MAX_MS: u32 = 2_000;
/// Copying a replica into images, and reading the disks at each end, are that many readings of them one after the other.
const READINGS: f64 = 3.0;

/// What a cutover was expected to take when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CutoverForecast {
    /// From its beginning to its end, in milliseconds: as likely less as more.
    pub duration_ms: u64,
    /// What will seldom be exceeded, in milliseconds; none where that is not foreseen to come to an end.
    pub duration_cautious_ms: Option<u64>,
    /// For how long the guest stands still, in milliseconds; 0 where it is moved stopped.
    pub blackout_ms: u64,
    /// Bytes sent.
    pub sent: ByteCount,
}

impl CutoverForecast {
    /// What moving that VM over to that replica would take now; none where nothing was measured. `jobs` may be any: the cycles
    /// among them count.
    #[must_use]
    pub fn of<'a>(
        vm: &VmSpec,
        replica: &Replica,
        live: bool,
        jobs: impl IntoIterator<Item = &'a JobStatus>,
        now: Timestamp,
    ) -> Option<Self> {
        let measured = Measured::of(vm, jobs);
        let (latest, written) = (replica.latest()?, written_a_second(replica));
        let age = now.seconds_since(latest.taken_at).max(0.0);
        let forecast = Forecast::of(&ForecastInput {
            live,
            memory: vm.memory,
            disks: ByteCount(whole(written * age)),
            path: Bandwidth(whole(measured.sent?)),
            limit: None,
            // Of a guest's memory a cycle measures nothing: what dirties disks dirties memory first.
            memory_dirty_rate: Bandwidth(whole(written)),
            disk_write_rate: Bandwidth(whole(written)),
            lanes: LANES,
            blackout_max_ms: BLACKOUT_MAX_MS,
        });
        let all: u64 = vm.disks.iter().map(|disk| disk.size.0).fold(0, u64::saturating_add);
        let reading_ms = whole(READINGS * 1000.0 * float(all) / measured.read?.max(1.0));
        let whole_of = |estimate: Estimate| estimate.duration_ms.saturating_add(reading_ms);
        let expected = forecast.p50?;
        Some(Self {
            duration_ms: whole_of(expected),
            duration_cautious_ms: forecast.p95.map(whole_of),
            blackout_ms: expected.blackout_ms,
            sent: expected.sent,
        })
    }
}

/// What was expected of a cutover, held against what it took. Errors are above 0 where it took longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CutoverScore {
    /// What it took from its beginning to its end, in milliseconds.
    pub duration_ms: u64,
    /// By how much that is more than was expected, in milliseconds.
    pub duration_error_ms: i64,
    /// Whether it took no longer than what was to be exceeded seldom; none where nothing was said of that.
    pub within_range: Option<bool>,
    /// By how much longer the guest stood still than was expected, in milliseconds; none where it was moved stopped.
    pub blackout_error_ms: Option<i64>,
}

impl CutoverScore {
    /// The score of the forecast that a cutover began with; none before it is completed, and where it began with none.
    #[must_use]
    pub fn of(status: &JobStatus) -> Option<Self> {
        let forecast = status.plan.cutover?.forecast?;
        if status.state != JobState::Completed {
            return None;
        }
        let took = status.finished_at?.seconds_since(status.started_at?).max(0.0);
        let blackout_us = status.blackout_us.filter(|_| status.plan.mode == MoveMode::Live);
        Some(forecast.score(whole(took * 1000.0), blackout_us.map(|us| us.div_ceil(1000))))
    }
}

impl CutoverForecast {
    fn score(&self, duration_ms: u64, blackout_ms: Option<u64>) -> CutoverScore {
        CutoverScore {
            duration_ms,
            duration_error_ms: error(duration_ms, self.duration_ms),
            within_range: self.duration_cautious_ms.map(|cautious| duration_ms <= cautious),
            blackout_error_ms: blackout_ms.map(|blackout| error(blackout, self.blackout_ms)),
        }
    }
}

/// How much more something is than was expected.
fn error(actual: u64, expected: u64) -> i64 {
    let distance = i64::try_from(actual.abs_diff(expected)).unwrap_or(i64::MAX);
    if actual < expected { -distance } else { distance }
}

/// The best that cycles have shown, in bytes a second: what slowed them down need not slow a cutover down.
struct Measured {
    sent: Option<f64>,
    read: Option<f64>,
}

impl Measured {
    fn of<'a>(vm: &VmSpec, jobs: impl IntoIterator<Item = &'a JobStatus>) -> Self {
        let mut measured = Self { sent: None, read: None };
        for job in jobs.into_iter().filter(|job| {
            job.plan.kind == JobKind::Replicate && job.plan.vm.id == vm.id && job.state == JobState::Completed
        }) {
            let copied = job.steps.iter().find(|step| step.kind == StepKind::CopyDisks);
            let Some((step, seconds)) = copied.and_then(|step| Some((step, step.seconds()?))) else { continue };
            for (best, bytes) in
                [(&mut measured.sent, step.figures.bytes_sent), (&mut measured.read, step.figures.bytes_total)]
            {
                let rate = float(bytes) / seconds.max(0.001);
                if bytes >= TELLING_BYTES && best.is_none_or(|best| rate > best) {
                    *best = Some(rate);
                }
            }
        }
        measured
    }
}

/// What the guest writes, by the latest two snapshots; nothing where there is only one.
fn written_a_second(replica: &Replica) -> f64 {
    let mut snapshots = replica.snapshots().rev();
    match (snapshots.next(), snapshots.next()) {
        (Some(latest), Some(before)) => {
            float(latest.written.0) / latest.taken_at.seconds_since(before.taken_at).max(1.0)
        }
        _ => 0.0,
    }
}

/// Bytes are far below 2^53; above, the error would be one in 10^15.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

/// Up to the next whole number; the largest where it does not fit.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // `as` holds it to the range, and takes no number for 0.
fn whole(number: f64) -> u64 {
    number.ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORECAST: CutoverForecast = CutoverForecast {
        duration_ms: 10_000,
        duration_cautious_ms: Some(15_000),
        blackout_ms: 100,
        sent: ByteCount(1 << 20),
    };

    #[test]
    fn a_forecast_is_scored_by_what_it_took() {
        let right = FORECAST.score(10_000, Some(100));
        assert_eq!((right.duration_error_ms, right.blackout_error_ms, right.within_range), (0, Some(0), Some(true)));
        let quicker = FORECAST.score(7_500, Some(40));
        assert_eq!((quicker.duration_error_ms, quicker.blackout_error_ms), (-2_500, Some(-60)));
        assert_eq!(quicker.within_range, Some(true), "sooner is within what was expected");
        let slower = FORECAST.score(15_000, Some(350));
        assert_eq!((slower.duration_error_ms, slower.blackout_error_ms), (5_000, Some(250)));
        assert_eq!(slower.within_range, Some(true));
        assert_eq!(FORECAST.score(15_001, None).within_range, Some(false));
        assert_eq!(FORECAST.score(15_001, None).blackout_error_ms, None, "it was moved stopped");
        let open = CutoverForecast { duration_cautious_ms: None, ..FORECAST };
        assert_eq!(open.score(15_001, None).within_range, None, "nothing was said of it");
        assert_eq!(error(u64::MAX, 0), i64::MAX);
        assert_eq!(error(0, u64::MAX), -i64::MAX);
    }
}
