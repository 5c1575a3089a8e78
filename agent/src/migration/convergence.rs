//! When a live move may pause its guest: pure decisions from what is seen of disks and memory.
//!
//! ```text
//!            little is dirty after a pass: QEMU may pause the guest
//!    Held ───────────────────────────────────────────────────────────▶ Open ──▶ (the guest is paused)
//!     ▲ │ passes; where they no longer shrink, the guest's writes are held back   │
//!     │ └─ pass ─┘                                                                │ memory does not get there:
//!     └───────────────────────────────────────────────────────────────────────────┤ more of the blackout is allowed to it
//!                 much was dirtied since                                          └─┘
//! ```
//!
//! QEMU pauses a guest when the rest of its memory would fit into a time that we set. While a pass is made that time is next to
//! nothing, so that the pause falls neither into it nor on disks of which much is dirty; then it grows, step by step, to
//! what the blackout's limit leaves to memory.

use std::time::Duration;

use sterna_shared::units::Bandwidth;

/// What QEMU may need for the rest of memory, at first: with more it would pause an idle guest a round too early.
const MEMORY_SHARE_MIN: Duration = Duration::from_millis(10);
/// How long memory is given to get there before it is allowed more, once all of it was sent: before that it cannot.
const PATIENCE: Duration = Duration::from_secs(1);
/// The part of the blackout's limit that the last pass may take.
const LAST_PASS_PART: u32 = 20;
/// Memory may have this part of what is left: QEMU only estimates what it will need.
const MEMORY_PART: u32 = 2;
/// A last pass of so little is never too much.
const FEW_MIN: u64 = 256 << 10;
/// A last pass of more is always too much.
const FEW_MAX: u64 = 16 << 20;
/// What may be dirtied while the guest is about to be paused before another pass is worth it.
const STALE: u64 = 512 << 10;
/// Passes of less say nothing about the rate.
const MEASURED_MIN: u64 = 1 << 20;
/// Passes in a row that did not shrink, before the guest's writes are held back a step further.
const STUCK_MAX: u32 = 2;
/// The guest's writes are held back so that what it dirties takes this part of the link.
const DIRTIED_PART: u64 = 4;
/// Writes are never held back to less than this, all disks together.
const WRITES_MIN: u64 = 128 << 10;

/// How it stands between two passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Since memory began to be copied.
    pub at: Duration,
    /// Bytes of the disks that are dirty.
    pub dirty: u64,
    /// Whether QEMU has sent all of memory once.
    pub round_over: bool,
}

/// What a pass came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Bytes sent.
    pub sent: u64,
    /// How long it took, until it was applied.
    pub took: Duration,
    /// Bytes that were dirtied meanwhile.
    pub dirty: u64,
    /// Bytes that the guest wrote meanwhile.
    pub written: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing has changed: look again later.
    Wait,
    /// One more pass; QEMU must not pause the guest in it.
    Pass,
    /// QEMU may pause the guest as soon as the rest of its memory fits into this time.
    Open(Duration),
}

/// The decisions of one move.
#[derive(Debug, Clone)]
pub struct Convergence {
    limit: Duration,
    /// What QEMU may need; nothing while the guest must not be paused.
    open: Option<Duration>,
    memory_share: Duration,
    /// Since when it could get there with that; passes between do not make it begin anew.
    waiting_since: Option<Duration>,
    /// Whether a pass was made since the guest must not be paused: what came before it is safe at the target by then.
    passed: bool,
    /// Bytes a second that passes got through, once one was large enough to tell.
    rate: Option<u64>,
    dirty_before: u64,
    stuck: u32,
    writes: Option<u64>,
}

impl Convergence {
    /// For a move whose guest may stand still for `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            open: None,
            memory_share: MEMORY_SHARE_MIN.min(share_max(limit)),
            waiting_since: None,
            passed: false,
            rate: None,
            dirty_before: u64::MAX,
            stuck: 0,
            writes: None,
        }
    }

    /// What to do, as it stands now. What it says is taken as done.
    pub fn next(&mut self, look: Look) -> Next {
        if look.round_over && self.waiting_since.is_none() {
            self.waiting_since = Some(look.at);
        }
        match self.open {
            Some(_) if look.dirty > STALE.min(self.few()) => {
                self.open = None;
                self.passed = false;
                Next::Pass
            }
            Some(_) if self.is_due(look.at) => self.open(look.at),
            Some(_) => Next::Wait,
            None if self.passed && look.dirty <= self.few() => self.open(look.at),
            None => Next::Pass,
        }
    }

    /// A pass has been made. Gives back how fast the guest may write from now on, where that is to change.
    pub fn passed(&mut self, pass: Passed) -> Option<Bandwidth> {
        self.passed = true;
        if pass.sent >= MEASURED_MIN {
            self.rate = Some(per_second(pass.sent, pass.took));
        }
        let shrinks = pass.dirty <= self.few() || pass.dirty < self.dirty_before / 8 * 7;
        self.dirty_before = pass.dirty;
        if shrinks {
            self.stuck = 0;
            return None;
        }
        self.stuck += 1;
        if self.stuck < STUCK_MAX {
            return None;
        }
        self.stuck = 0;
        let slower = match self.writes {
            Some(writes) => writes / 2,
            // One write of a few bytes makes a whole piece of a disk dirty: it is the ratio that counts.
            None => {
                let wanted = u128::from(self.rate.unwrap_or(0) / DIRTIED_PART);
                let dirtied = u128::from(per_second(pass.dirty, pass.took)).max(1);
                let written = u128::from(per_second(pass.written, pass.took));
                u64::try_from(written * wanted.min(dirtied) / dirtied).unwrap_or(u64::MAX)
            }
        };
        let slower = slower.max(WRITES_MIN);
        let changed = self.writes != Some(slower);
        self.writes = Some(slower);
        changed.then_some(Bandwidth(slower))
    }

    /// Whether memory is to be allowed more.
    fn is_due(&self, at: Duration) -> bool {
        let waited = self.waiting_since.is_some_and(|since| at.saturating_sub(since) >= PATIENCE);
        waited && self.memory_share < share_max(self.limit)
    }

    fn open(&mut self, at: Duration) -> Next {
        if self.is_due(at) {
            self.memory_share = (self.memory_share * 2).min(share_max(self.limit));
            self.waiting_since = Some(at);
        }
        self.open = Some(self.memory_share);
        Next::Open(self.memory_share)
    }

    /// What the last pass may carry.
    fn few(&self) -> u64 {
        let time = u64::try_from((self.limit / LAST_PASS_PART).as_millis()).unwrap_or(u64::MAX);
        let carried = self.rate.map_or(FEW_MIN, |rate| rate.saturating_mul(time) / 1000);
        carried.clamp(FEW_MIN, FEW_MAX)
    }
}

fn share_max(limit: Duration) -> Duration {
    (limit - limit / LAST_PASS_PART) / MEMORY_PART
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(2000);
    const MIB: u64 = 1 << 20;

    fn look(at_ms: u64, dirty: u64) -> Look {
        Look { at: Duration::from_millis(at_ms), dirty, round_over: true }
    }

    fn pass(sent: u64, took_ms: u64, dirty: u64, written: u64) -> Passed {
        Passed { sent, took: Duration::from_millis(took_ms), dirty, written }
    }

    #[test]
    fn the_pause_comes_after_a_pass_that_left_little_and_not_before() {
        // Dirty before, dirty after; the pass took 100 ms for 10 MiB, so that 100 ms carry 10 MiB.
        for (left, expected) in [(0, true), (4 * MIB, true), (11 * MIB, false)] {
            let mut convergence = Convergence::new(LIMIT);
            assert_eq!(convergence.next(look(0, 0)), Next::Pass, "the target has what came before only after a pass");
            assert_eq!(convergence.passed(pass(10 * MIB, 100, left, 0)), None);
            let next = convergence.next(look(100, left));
            assert_eq!(next, if expected { Next::Open(MEMORY_SHARE_MIN) } else { Next::Pass }, "{left}");
        }
    }

    #[test]
    fn without_a_measured_rate_only_very_little_is_little() {
        let mut convergence = Convergence::new(LIMIT);
        assert_eq!(convergence.passed(pass(64 << 10, 1, FEW_MIN + 1, 0)), None);
        assert_eq!(convergence.next(look(0, FEW_MIN + 1)), Next::Pass);
        assert_ne!(convergence.next(look(0, FEW_MIN)), Next::Pass);
    }

    #[test]
    fn what_is_dirtied_while_the_pause_is_near_holds_it_back_again() {
        let mut convergence = Convergence::new(LIMIT);
        convergence.passed(pass(100 * MIB, 200, 0, 0));
        assert_eq!(convergence.next(look(0, 0)), Next::Open(MEMORY_SHARE_MIN));
        assert_eq!(convergence.next(look(200, STALE)), Next::Wait);
        assert_eq!(convergence.next(look(400, STALE + 1)), Next::Pass);
        assert_eq!(convergence.next(look(400, 0)), Next::Pass, "until that pass is made");
        convergence.passed(pass(STALE, 20, 0, 0));
        assert_eq!(convergence.next(look(420, 0)), Next::Open(MEMORY_SHARE_MIN));
    }

    #[test]
    fn memory_that_does_not_get_there_is_allowed_more_up_to_what_the_limit_leaves() {
        // Limit of the blackout in ms, and the times allowed one after the other.
        for (limit, expected) in [
            (2000, vec![10, 20, 40, 80, 160, 320, 640, 950]),
            (300, vec![10, 20, 40, 80, 142]),
            (100, vec![10, 20, 40, 47]),
            (60_000, vec![10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 20_480, 28_500]),
        ] {
            let mut convergence = Convergence::new(Duration::from_millis(limit));
            convergence.passed(pass(0, 1, 0, 0));
            let looks = (0..200).map(|tick| convergence.next(look(tick * 200, 0)));
            let opened: Vec<u128> = looks
                .filter_map(|next| if let Next::Open(time) = next { Some(time.as_millis()) } else { None })
                .collect();
            assert_eq!(opened, expected, "{limit}");
        }
    }

    #[test]
    fn memory_is_allowed_no_more_before_all_of_it_was_sent() {
        let mut convergence = Convergence::new(LIMIT);
        convergence.passed(pass(0, 1, 0, 0));
        let first_round = |tick: u64| Look { round_over: false, ..look(tick * 1000, 0) };
        assert_eq!(convergence.next(first_round(0)), Next::Open(MEMORY_SHARE_MIN));
        assert!((1..60).all(|tick| convergence.next(first_round(tick)) == Next::Wait), "a slow link is no busy guest");
        assert_eq!(convergence.next(look(60_000, 0)), Next::Wait);
        assert_eq!(convergence.next(look(61_000, 0)), Next::Open(MEMORY_SHARE_MIN * 2));
    }

    #[test]
    fn a_guest_that_never_stops_writing_does_not_keep_memory_from_more() {
        let mut convergence = Convergence::new(LIMIT);
        convergence.passed(pass(100 * MIB, 200, 0, 0));
        let mut allowed = Vec::new();
        for tick in 0..25 {
            // Every other look finds so much dirty again that a pass is made.
            match convergence.next(look(tick * 100, if tick % 2 == 0 { 0 } else { 2 * STALE })) {
                Next::Open(time) => allowed.push(time.as_millis()),
                Next::Pass => assert_eq!(convergence.passed(pass(2 * STALE, 10, 0, 0)), None),
                Next::Wait => {}
            }
        }
        allowed.dedup();
        assert_eq!(allowed, [10, 20, 40]);
    }

    #[test]
    fn writes_are_held_back_in_steps_where_passes_do_not_shrink() {
        let mut convergence = Convergence::new(LIMIT);
        // The link carries 10 MiB/s; the guest writes 1 MiB/s, which makes 16 MiB/s dirty.
        let stuck = |dirty| pass(10 * MIB, 1000, dirty, MIB);
        assert_eq!(convergence.passed(stuck(16 * MIB)), None, "the first has nothing to be compared with");
        assert_eq!(convergence.passed(stuck(16 * MIB)), None);
        // A quarter of the link is 2.5 MiB/s dirty, which are 160 KiB/s written.
        assert_eq!(convergence.passed(stuck(16 * MIB)), Some(Bandwidth(160 << 10)));
        assert_eq!(convergence.passed(stuck(15 * MIB)), None);
        assert_eq!(convergence.passed(stuck(15 * MIB)), Some(Bandwidth(WRITES_MIN)), "half, but never nothing");
        assert_eq!((convergence.passed(stuck(15 * MIB)), convergence.passed(stuck(15 * MIB))), (None, None));
        assert_eq!(convergence.passed(stuck(2 * MIB)), None, "they shrink");
    }

    #[test]
    fn nothing_is_held_back_where_little_is_left() {
        let mut convergence = Convergence::new(LIMIT);
        for _ in 0..10 {
            assert_eq!(convergence.passed(pass(10 * MIB, 1000, FEW_MIN, MIB)), None);
        }
    }

    #[test]
    fn odd_figures_are_survived() {
        let mut convergence = Convergence::new(Duration::ZERO);
        for (sent, took, dirty, written) in [(0, 0, 0, 0), (u64::MAX, 0, u64::MAX, u64::MAX), (1, u64::MAX, 1, 0)] {
            for _ in 0..4 {
                convergence.passed(Passed { sent, took: Duration::from_micros(took), dirty, written });
                convergence.next(Look { at: Duration::MAX, dirty, round_over: true });
            }
        }
    }
}
