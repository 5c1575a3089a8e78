//! What a move will be like, foreseen from what was measured: whether it gets there, how long it takes, and for how long
//! the guest will stand still. Pure.
//!
//! ```text
//!   disks    D ──▶ D·q ──▶ D·q² ──▶ …            six passes at most, q = written / path
//!   memory            M ──▶ M·q ──▶ M·q² ──▶ …   until a round is as short as rounds get, q = (dirtied + written) / path
//!   blackout                              └─ the rest, what waits in the lanes, and what every blackout costs
//! ```
//!
//! Each pass carries what was dirtied while the one before it was made, so both are geometric rows: below q = 1 they come
//! to an end, from there on only a guest whose whole memory fits into the blackout moves. Sums are taken to infinity, which
//! is a little more than will be sent.
//!
//! The forecast is made twice: as measured (p50), and with a slower path and a busier guest (p95). A measurement of half a
//! second is a glance at both, so the second is no statistic: it is what a careful person would reckon with.
//!
//! What it does not know: how fast the disks read and write, how much of the path other moves will take, and what QEMU's
//! throttling of a busy guest would gain.

use serde::{Deserialize, Serialize};

use crate::units::{Bandwidth, ByteCount};

/// From the command to the first byte, in seconds: the sessions, the images, a QEMU at the target. Measured at about one
/// second under TCG on two cores.
const PREPARE_SECONDS: f64 = 1.0;
/// What each lane adds to that, in seconds: its handshake. On loopback, both hosts on two cores, 16 lanes are up after 6 to
/// 9 ms, and one after 0.8.
const LANE_SECONDS: f64 = 0.0005;
/// What every blackout costs, in seconds, with two disks and next to no memory left: the bench of the README has 47 and
/// 49 ms as medians, QEMU by itself 40 to 100.
const BLACKOUT_SECONDS: f64 = 0.05;
/// The same on a bad day.
const BLACKOUT_SECONDS_CAUTIOUS: f64 = 0.1;
/// What of memory waits in the lanes when the guest is paused, in bytes for each of them: the room that the agent leaves a
/// channel at least (`link/flow.rs`, `MEMORY_IN_FLIGHT_MIN`). On a slow link it is always full.
const QUEUED_PER_LANE: f64 = 1_048_576.0;
/// How often that is waited for: by the rest of memory, and by the pass over the disks that the pause falls into. Fitted, not
/// derived: in two runs of `scenarios::check` a guest of 192 MiB stood still for 77 to 106 ms at 800 Mbit/s, 98 and 291 at 600,
/// 203 to 552 at 400, and 1295 and 1773 at 200, where it is too little.
const QUEUES: f64 = 2.0;
/// The same on a bad day: the passes of a guest that writes come one after the other, and lanes may share a full link badly,
/// which is assumed. Fitted to the first of those runs; the second exceeded it once, at 200 Mbit/s.
const QUEUES_CAUTIOUS: f64 = 5.0;
/// The shortest round over memory, in seconds: what is dirtied in it is left for the blackout. QEMU looks ten times a second
/// whether little enough is left, so it is half of that on average; assumed, and not measured.
const ROUND_SECONDS: f64 = 0.05;
/// The same on a bad day.
const ROUND_SECONDS_CAUTIOUS: f64 = 0.1;
/// What two agents get through, in bytes a second, however fast the path: beside encrypting, memory goes through QEMU at both
/// ends, and disks are read, digested, written and read back. The bench of the README has 1 GiB of memory in 1.61 s and of a
/// disk in 1.73 s, both hosts on two cores; hosts with more of them get more through.
const HANDLED_MAX: Bandwidth = Bandwidth(600 << 20);
/// What is expected of the path where less is to be relied on. Chosen, and not measured.
const PATH_PART_CAUTIOUS: f64 = 0.7;
/// And of what the guest dirties. Chosen, and not measured.
const DIRTIED_FACTOR_CAUTIOUS: f64 = 1.5;
/// Everything else that is fixed, on a bad day. Chosen, and not measured.
const PREPARE_FACTOR_CAUTIOUS: f64 = 2.0;

// As the agent decides it (`migration/convergence.rs`, `migration/source.rs`).
/// Passes over the disks before memory begins.
const DISK_PASSES_MAX: u32 = 6;
/// The guest's writes to its disks are held back to this part of the path where they do not let it get there.
const WRITES_HELD_PART: f64 = 0.25;
/// The part of the blackout's limit that the rest of memory may take.
const MEMORY_SHARE_PART: f64 = 0.475;
/// What it may take at first, in seconds. It is doubled until memory gets there.
const MEMORY_SHARE_SECONDS_MIN: f64 = 0.01;
/// How long it is given before each doubling, in seconds.
const PATIENCE_SECONDS: f64 = 1.0;

/// What a forecast is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForecastInput {
    /// Whether the guest executes meanwhile. Where it does not, nothing but the disks is moved.
    pub live: bool,
    /// Bytes of memory in use; all of the guest's where that is not known.
    pub memory: ByteCount,
    /// Bytes of the disks to be copied: what is allocated, or their sizes where that is not known.
    pub disks: ByteCount,
    /// What the path carries, in bytes a second.
    pub path: Bandwidth,
    /// What the job may send, in bytes a second; none for no limit.
    pub limit: Option<Bandwidth>,
    /// Memory that the guest dirties, in bytes a second.
    pub memory_dirty_rate: Bandwidth,
    /// What the guest writes to the disks to be copied, in bytes a second.
    pub disk_write_rate: Bandwidth,
    /// Data lanes of the session. The path is taken to have been measured with as many.
    pub lanes: u8,
    /// The longest blackout that is allowed, in milliseconds.
    pub blackout_max_ms: u32,
}

/// What a move will be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Forecast {
    /// Whether the move is expected to get there, if all stays as it was measured.
    pub converges: bool,
    /// Why, or why not, in a sentence.
    pub reason: String,
    /// As likely less as more; none where it does not converge.
    pub p50: Option<Estimate>,
    /// What will seldom be exceeded: never less than `p50`, and none where the move would not converge on a slower path
    /// with a busier guest.
    pub p95: Option<Estimate>,
}

/// One outlook. Numbers that would not fit are the largest that do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Estimate {
    /// From the command to the end, in milliseconds.
    pub duration_ms: u64,
    /// For how long the guest stands still, in milliseconds; 0 where it does not execute anyway.
    pub blackout_ms: u64,
    /// Bytes sent.
    pub sent: ByteCount,
}

/// The same input, as it is and as it may turn out.
#[derive(Debug, Clone, Copy)]
struct Case {
    memory: f64,
    disks: f64,
    /// What the path, the agents and the limit leave.
    rate: f64,
    dirtied: f64,
    written: f64,
    prepare: f64,
    blackout: f64,
    /// Bytes that wait in the lanes when the guest is paused, and how often they are waited for.
    queued: f64,
    queues: f64,
    round: f64,
    limit: f64,
}

/// Why there is no estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    NoPath,
    Dirtied,
    Blackout { needed_ms: u64 },
}

impl Forecast {
    /// Foresees a move. Any numbers will do.
    #[must_use]
    pub fn of(input: &ForecastInput) -> Self {
        let expected = Case::expected(input);
        let estimate = |case: Case| if input.live { case.live() } else { case.cold() };
        let (p50, p95) = (estimate(expected), estimate(expected.cautious()));
        let reason = match (p50, p95) {
            (Err(hindrance), _) => hindrance.reason(input),
            (Ok(_), _) if !input.live => "The guest does not execute, so its disks are sent once.".to_owned(),
            (Ok(_), Err(hindrance)) => {
                format!(
                    "It gets there as measured, with little to spare. On a slower path: {}",
                    hindrance.reason(input)
                )
            }
            (Ok(_), Ok(_)) if expected.written >= expected.rate => format!(
                "The guest writes {} to its disks, more than the {} that can be sent: its writes will be held back.",
                input.disk_write_rate,
                sendable(input)
            ),
            (Ok(_), Ok(_)) => format!(
                "The guest dirties {} of memory and {} of disks, and {} can be sent.",
                input.memory_dirty_rate,
                input.disk_write_rate,
                sendable(input)
            ),
        };
        Self { converges: p50.is_ok(), reason, p50: p50.ok(), p95: p95.ok() }
    }
}

/// What the path, the agents and the limit leave.
fn sendable(input: &ForecastInput) -> Bandwidth {
    input.limit.unwrap_or(HANDLED_MAX).min(input.path).min(HANDLED_MAX)
}

impl Hindrance {
    fn reason(self, input: &ForecastInput) -> String {
        match self {
            Self::NoPath => "Nothing gets through to the target.".to_owned(),
            Self::Dirtied => format!(
                "The guest dirties {} of memory and {} of disks, and {} can be sent: there would always be too much left; \
                 move it at a quieter time, over a faster path, or stopped.",
                input.memory_dirty_rate,
                input.disk_write_rate,
                sendable(input)
            ),
            Self::Blackout { needed_ms } => format!(
                "The guest would have to stand still for about {needed_ms} ms, and {} ms are allowed, of which memory may \
                 take about half; allow it more.",
                input.blackout_max_ms
            ),
        }
    }
}

impl Case {
    fn expected(input: &ForecastInput) -> Self {
        Self {
            memory: float(input.memory.0),
            disks: float(input.disks.0),
            rate: float(sendable(input).0),
            dirtied: float(input.memory_dirty_rate.0),
            written: float(input.disk_write_rate.0),
            prepare: PREPARE_SECONDS + LANE_SECONDS * f64::from(input.lanes),
            blackout: BLACKOUT_SECONDS,
            queued: QUEUED_PER_LANE * f64::from(input.lanes),
            queues: QUEUES,
            round: ROUND_SECONDS,
            limit: f64::from(input.blackout_max_ms) / 1000.0,
        }
    }

    /// Nothing in it is better than before, and every estimate grows with what is worse: p95 is so never below p50.
    fn cautious(self) -> Self {
        Self {
            rate: self.rate * PATH_PART_CAUTIOUS,
            dirtied: self.dirtied * DIRTIED_FACTOR_CAUTIOUS,
            written: self.written * DIRTIED_FACTOR_CAUTIOUS,
            prepare: self.prepare * PREPARE_FACTOR_CAUTIOUS,
            blackout: BLACKOUT_SECONDS_CAUTIOUS,
            queues: QUEUES_CAUTIOUS,
            round: ROUND_SECONDS_CAUTIOUS,
            ..self
        }
    }

    fn cold(self) -> Result<Estimate, Hindrance> {
        if self.rate <= 0.0 {
            return Err(Hindrance::NoPath);
        }
        Ok(Estimate {
            duration_ms: milliseconds(self.prepare + self.disks / self.rate),
            blackout_ms: 0,
            sent: ByteCount(whole(self.disks)),
        })
    }

    fn live(self) -> Result<Estimate, Hindrance> {
        if self.rate <= 0.0 {
            return Err(Hindrance::NoPath);
        }
        // A pass over the disks cannot dirty more than there is, so from q = 1 on all passes are alike.
        let shrink = (self.written / self.rate).min(1.0);
        let (mut disks_sent, mut disks_left) = (0.0, self.disks);
        for _ in 0..DISK_PASSES_MAX {
            disks_sent += disks_left;
            disks_left *= shrink;
        }
        let left = self.memory + disks_left;
        let dirtied = self.dirtied + self.written.min(self.rate * WRITES_HELD_PART);
        let (memory_seconds, rest_seconds) = self.memory_rounds(left, dirtied / self.rate)?;
        let blackout = self.pause() + rest_seconds;
        Ok(Estimate {
            duration_ms: milliseconds(self.prepare + disks_sent / self.rate + memory_seconds + blackout),
            blackout_ms: milliseconds(blackout),
            sent: ByteCount(whole(disks_sent + left + dirtied * memory_seconds)),
        })
    }

    /// The blackout but for the rest of memory, in seconds: what waits in the lanes is no more than there is.
    fn pause(&self) -> f64 {
        self.blackout + self.queues * self.queued.min(self.memory) / self.rate
    }

    /// How long memory takes until the guest can be paused, and what is then left of it, both in seconds. There are two ways:
    /// rounds that get shorter, and a memory so small that all of it can be left.
    fn memory_rounds(&self, left: f64, ratio: f64) -> Result<(f64, f64), Hindrance> {
        let all = left / self.rate;
        let whole_memory = self.settled(all, all);
        if ratio >= 1.0 {
            return whole_memory.ok_or(Hindrance::Dirtied);
        }
        let last_round = (self.round * ratio).min(all);
        let needed_ms = milliseconds(self.pause() + last_round);
        match (self.settled(all / (1.0 - ratio), last_round), whole_memory) {
            // Of two ways the sooner is taken, and the shorter blackout is the one that rounds end in.
            (Some((seconds, rest)), Some((other_seconds, _))) => Ok((seconds.min(other_seconds), rest)),
            (Some(way), None) | (None, Some(way)) => Ok(way),
            (None, None) => Err(Hindrance::Blackout { needed_ms }),
        }
    }

    /// Whether so much may be left, and when it is let go then: memory is allowed more of the blackout step by step.
    fn settled(&self, seconds: f64, rest: f64) -> Option<(f64, f64)> {
        if rest > self.limit * MEMORY_SHARE_PART || self.pause() + rest > self.limit {
            return None;
        }
        // The limit is a u32 of milliseconds: some thirty steps at most.
        let (mut share, mut waited) = (MEMORY_SHARE_SECONDS_MIN, 0.0);
        while share < rest {
            share *= 2.0;
            waited += PATIENCE_SECONDS;
        }
        Some((seconds + waited, rest))
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

fn milliseconds(seconds: f64) -> u64 {
    whole(seconds * 1000.0)
}

#[cfg(test)]
mod tests;
