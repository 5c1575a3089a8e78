//! Which coordinator leads: a lease in the bucket `sterna_leader`, taken and renewed by compare-and-set.
//!
//! ```text
//!            nothing there, released, or no new revision for 6 s: write (epoch + 1) at the revision seen
//!   Following ────────────────────────────────────────────────────────────────────▶ Leading(epoch)
//!       ▲                                                                             │ renew every 2 s
//!       └──────── another wrote · not renewed for 4 s since it was last *sent* ───────┘
//! ```
//!
//! No wall clock is read or compared. A follower counts from when it first *saw* a revision, a leader from before it
//! *sent* the write that made it; since 4 s < 6 s, a leader that cannot renew has stopped before a follower may start,
//! as far as both clocks run at one rate. Where they do not (a leader that was stopped and goes on), the epoch decides:
//! it travels with each command, and agents refuse an older one than they have journalled. The lease only keeps two
//! from working at once; it is the epoch that makes it safe.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sterna_shared::id::Epoch;

/// How often a leader renews.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(2);
/// How long after sending its last successful write a leader still leads.
pub const LEAD_MAX: Duration = Duration::from_secs(4);
/// How long a follower must have seen no new revision before it takes over.
pub const TAKEOVER_SILENCE: Duration = Duration::from_secs(6);
/// How often a follower looks.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a follower listens to agents where there is no lease at all: their heartbeats tell the highest epoch that
/// ever was, also where the broker has lost everything. A little over one heartbeat interval.
pub const EMPTY_WAIT: Duration = Duration::from_millis(2500);

/// What stands in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The leading coordinator's configured name, for people.
    pub name: String,
    /// Which run of which coordinator: a restarted one is another.
    pub instance: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it has laid the lease down.
    pub released: bool,
}

/// A record with the revision it stands at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The record.
    pub record: Record,
    /// Its revision in the bucket.
    pub revision: u64,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It stands, at that revision.
    Done(u64),
    /// Another was there first.
    Conflict,
    /// No answer came: it may stand or not.
    Unknown,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read the record and tell [`Lease::observed`].
    Look,
    /// Write it, if the bucket's revision is still that (0: no record), and tell [`Lease::written`].
    Write {
        /// What to write.
        record: Record,
        /// The revision it replaces.
        revision: u64,
    },
    /// Do nothing before that time.
    WaitUntil(Duration),
}

/// One coordinator's side of the lease. All times are of its own monotonic clock.
#[derive(Debug)]
pub struct Lease {
    name: String,
    instance: String,
    state: State,
    next_at: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Following {
        /// What was last seen, and since when; before the first look nothing is known.
        seen: Option<(Option<Held>, Duration)>,
        /// Whether the bucket was read since the last write.
        looked: bool,
    },
    Leading {
        epoch: Epoch,
        revision: u64,
        /// When the last write that stands was sent.
        sent_at: Duration,
    },
}

const UNKNOWN: State = State::Following { seen: None, looked: false };

impl Lease {
    /// A coordinator that follows, until it knows more.
    #[must_use]
    pub fn new(name: &str, instance: &str) -> Self {
        Self { name: name.into(), instance: instance.into(), state: UNKNOWN, next_at: Duration::ZERO }
    }

    /// The epoch it leads in, and until when at most; none while it follows.
    #[must_use]
    pub fn leading(&self, now: Duration) -> Option<(Epoch, Duration)> {
        match self.state {
            State::Leading { epoch, sent_at, .. } if now < sent_at + LEAD_MAX => Some((epoch, sent_at + LEAD_MAX)),
            _ => None,
        }
    }

    /// What to do now. `epoch_floor` is the highest epoch known of from elsewhere, such as the agents' inventories.
    pub fn next(&mut self, now: Duration, epoch_floor: Epoch) -> Step {
        if matches!(self.state, State::Leading { epoch, .. } if self.leading(now).is_none() || epoch < epoch_floor) {
            self.follow(now);
        }
        if now < self.next_at {
            return Step::WaitUntil(self.next_at);
        }
        match &self.state {
            State::Leading { epoch, revision, .. } => {
                Step::Write { record: self.record(*epoch, false), revision: *revision }
            }
            State::Following { seen: Some((held, since)), looked: true } if claimable(held.as_ref(), *since, now) => {
                let last = held.as_ref().map_or(Epoch(0), |held| held.record.epoch).max(epoch_floor);
                let epoch = Epoch(last.0.saturating_add(1));
                Step::Write {
                    record: self.record(epoch, false),
                    revision: held.as_ref().map_or(0, |held| held.revision),
                }
            }
            State::Following { looked: true, .. } => {
                // Not yet: look again in a while.
                self.rest(now + LOOK_INTERVAL);
                Step::WaitUntil(self.next_at)
            }
            State::Following { .. } => Step::Look,
        }
    }

    /// The bucket was read: this stands in it.
    pub fn observed(&mut self, now: Duration, held: Option<Held>) {
        let State::Following { seen, looked } = &mut self.state else { return };
        *looked = true;
        let revision = |held: &Option<Held>| held.as_ref().map(|held| held.revision);
        match seen {
            Some((known, _)) if revision(known) == revision(&held) => {}
            _ => *seen = Some((held, now)),
        }
    }

    /// The bucket could not be read.
    pub fn unseen(&mut self, now: Duration) {
        self.rest(now + LOOK_INTERVAL);
    }

    /// A write of `record` that was sent at `sent_at` came to this.
    pub fn written(&mut self, now: Duration, sent_at: Duration, record: &Record, outcome: Written) {
        match outcome {
            Written::Done(revision) => {
                self.state = State::Leading { epoch: record.epoch, revision, sent_at };
                self.next_at = sent_at + RENEW_INTERVAL;
            }
            Written::Conflict => self.follow(now),
            // It leads on as long as its last known write lets it. The revision is uncertain now, so the next renewal
            // may meet a conflict of its own making: then it follows, and waits its turn like everybody.
            Written::Unknown => self.next_at = now + LOOK_INTERVAL,
        }
        if matches!((&self.state, outcome), (State::Following { .. }, Written::Unknown)) {
            self.follow(now);
            self.rest(now + LOOK_INTERVAL);
        }
    }

    /// Lays the lease down: what to write, if it leads.
    pub fn release(&mut self, now: Duration) -> Option<(Record, u64)> {
        let State::Leading { epoch, revision, .. } = self.state else { return None };
        let record = self.record(epoch, true);
        self.follow(now);
        Some((record, revision))
    }

    fn follow(&mut self, now: Duration) {
        self.state = UNKNOWN;
        self.next_at = now;
    }

    /// Waits, and looks afresh after it.
    fn rest(&mut self, until: Duration) {
        self.next_at = until;
        if let State::Following { looked, .. } = &mut self.state {
            *looked = false;
        }
    }

    fn record(&self, epoch: Epoch, released: bool) -> Record {
        Record { name: self.name.clone(), instance: self.instance.clone(), epoch, released }
    }
}

fn claimable(held: Option<&Held>, since: Duration, now: Duration) -> bool {
    let silent = now.saturating_sub(since);
    match held {
        Some(held) if held.record.released => true,
        Some(_) => silent >= TAKEOVER_SILENCE,
        None => silent >= EMPTY_WAIT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bucket.
    #[derive(Default)]
    struct Bucket(Option<Held>);

    impl Bucket {
        fn write(&mut self, record: Record, revision: u64) -> Written {
            let current = self.0.as_ref().map_or(0, |held| held.revision);
            if current != revision {
                return Written::Conflict;
            }
            self.0 = Some(Held { record, revision: current + 1 });
            Written::Done(current + 1)
        }
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Does what the lease asks until it waits; `reaches` says whether the bucket answers.
    fn turn(lease: &mut Lease, bucket: &mut Bucket, now: Duration, reaches: bool) {
        for _ in 0..4 {
            match lease.next(now, Epoch(0)) {
                Step::WaitUntil(_) => return,
                Step::Look if reaches => lease.observed(now, bucket.0.clone()),
                Step::Look => lease.unseen(now),
                Step::Write { record, revision } => {
                    let outcome = if reaches { bucket.write(record.clone(), revision) } else { Written::Unknown };
                    lease.written(now, now, &record, outcome);
                }
            }
        }
    }

    #[test]
    fn the_first_leads_in_epoch_one_and_renews() {
        let (mut lease, mut bucket) = (Lease::new("a", "a1"), Bucket::default());
        for at in (0..20_000).step_by(500) {
            turn(&mut lease, &mut bucket, ms(at), true);
            assert_eq!(lease.leading(ms(at)).map(|(epoch, _)| epoch), (at >= 3_000).then_some(Epoch(1)), "{at}");
        }
        assert!(bucket.0.expect("a record").revision > 5, "renewed");
    }

    #[test]
    fn a_cut_off_leader_stops_before_another_starts() {
        let (mut one, mut two, mut bucket) = (Lease::new("a", "a1"), Lease::new("b", "b1"), Bucket::default());
        let mut changes = Vec::new();
        for at in (0..40_000).step_by(100) {
            turn(&mut one, &mut bucket, ms(at), at < 10_000);
            turn(&mut two, &mut bucket, ms(at), true);
            let leading = (one.leading(ms(at)).map(|l| l.0), two.leading(ms(at)).map(|l| l.0));
            if changes.last() != Some(&leading) {
                changes.push(leading);
            }
        }
        assert_eq!(changes, [(None, None), (Some(Epoch(1)), None), (None, None), (None, Some(Epoch(2)))]);
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let (mut one, mut two, mut bucket) = (Lease::new("a", "a1"), Lease::new("b", "b1"), Bucket::default());
        for at in (0..5_000).step_by(100) {
            turn(&mut one, &mut bucket, ms(at), true);
            turn(&mut two, &mut bucket, ms(at), true);
        }
        let (record, revision) = one.release(ms(5_000)).expect("it led");
        assert_eq!(bucket.write(record, revision), Written::Done(revision + 1));
        for at in (5_000..6_200).step_by(100) {
            turn(&mut two, &mut bucket, ms(at), true);
        }
        assert_eq!(two.leading(ms(6_200)).map(|(epoch, _)| epoch), Some(Epoch(2)));
    }

    #[test]
    fn the_epoch_is_above_what_agents_have_seen() {
        let mut lease = Lease::new("a", "a1");
        lease.observed(ms(0), None);
        let Step::Write { record, revision: 0 } = lease.next(EMPTY_WAIT, Epoch(7)) else { panic!("no write") };
        assert_eq!(record.epoch, Epoch(8));
        lease.written(EMPTY_WAIT, EMPTY_WAIT, &record, Written::Done(1));
        assert!(lease.leading(EMPTY_WAIT).is_some());
        // An agent that has seen a higher one: this leadership is worth nothing.
        lease.next(EMPTY_WAIT + ms(1), Epoch(9));
        assert!(lease.leading(EMPTY_WAIT + ms(1)).is_none());
    }

    proptest! {
        /// Three coordinators, each cut off and back at random: never two lead at once, and epochs only grow.
        #[test]
        fn never_two_at_once(cuts in proptest::collection::vec((0_usize..3, 0_u64..60_000, 100_u64..20_000), 0..12)) {
            let mut leases: Vec<Lease> = ["a", "b", "c"].iter().map(|name| Lease::new(name, name)).collect();
            let mut bucket = Bucket::default();
            let mut highest = Epoch(0);
            for at in (0..80_000).step_by(250) {
                for (number, lease) in leases.iter_mut().enumerate() {
                    let cut = cuts.iter().any(|(who, from, length)| *who == number && (*from..from + length).contains(&at));
                    turn(lease, &mut bucket, ms(at), !cut);
                }
                let leading: Vec<Epoch> = leases.iter().filter_map(|lease| lease.leading(ms(at))).map(|l| l.0).collect();
                prop_assert!(leading.len() <= 1, "{at} ms: {leading:?}");
                for epoch in leading {
                    prop_assert!(epoch >= highest);
                    highest = epoch;
                }
            }
        }
    }
}
