//! When a job runs: once, at a moment, or by a calendar that is read in a zone.
//!
//! ```text
//!   at:   one moment ──────────────────────┐
//!   rule: month, day, weekday, start, zone ┴─▶ turns: instant < instant < … ──▶ next(after)          when to wake
//!                                              up to `until`, `run_times` of them ─▶ due(considered, now)  what to run
//! ```
//!
//! A *turn* is an instant at which the job is to start. The fields are those of CIM's job (`ScheduledStartTime`, the
//! `Run…` properties, `JobRunTimes`, `UntilTime`); where CIM's text is silent, the field says what was decided.
//!
//! Nothing here looks at a clock, a file or the host's zone. Who keeps a schedule remembers two things, up to which
//! instant it has looked and how often the job has run, and asks. The zones' rules are in the program; a zone that
//! changes its mind about daylight saving is known to a newer program only.

mod calendar;
mod microseconds;
mod rule;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::replica::IDLE_MAX_SECONDS;
use crate::time::Timestamp;

pub use calendar::SEARCH_YEARS;
pub use rule::{DayOfWeek, Month, Rule, Weekday, Zone};

/// When a job runs.
///
/// Fields that are not known are refused: one that was misspelt, or that a newer program wrote, narrows the schedule,
/// and a schedule without it would run at times that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The one moment it runs (`ScheduledStartTime`). Either this or a rule. A moment that is past when the job is
    /// asked for is no turn any more; to refuse it then is the asker's to do, who has a clock.
    pub at: Option<Timestamp>,
    /// The calendar it runs by (`RunMonth`, `RunDay`, `RunDayOfWeek`, `RunStartInterval`, `LocalOrUtcTime`).
    pub rule: Option<Rule>,
    /// It runs again so many seconds after it last began or ended, and for the first time at once. Either this, or a moment,
    /// or a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// How often it runs (`JobRunTimes`): 0 is until `until`, or for ever; 1, CIM's default, is once. Only runs count:
    /// a turn that was missed and not made up for uses up none of them.
    pub run_times: u32,
    /// The last instant at which it may start (`UntilTime`, after which "the job becomes invalid"); a turn at this very
    /// instant still counts. None is for ever. CIM writes it as a local time, UTC or an interval; here it is an
    /// instant.
    pub until: Option<Timestamp>,
    /// What becomes of turns that were missed.
    pub missed: Missed,
    /// How long after its turn a start is still on time; one that is later was missed. Microseconds in what is written.
    #[serde(rename = "late_after_us", with = "microseconds")]
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub late_after: Duration,
}

/// What becomes of turns that nobody was there to take, as in an outage of the fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// The job runs once, as soon as somebody is there, however many turns were missed.
    #[default]
    RunOnce,
    /// It waits for its next turn.
    Skip,
}

/// What is to be done now. Turns that are older than the one named are over, run or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing: there was no turn.
    Nothing,
    /// The job runs now, once.
    Run {
        /// The newest turn, which this run is for.
        turn: Timestamp,
        /// Turns before it that no run is made for.
        missed: u32,
    },
    /// Turns were missed, and the job does not run.
    Skip {
        /// The newest turn.
        turn: Timestamp,
        /// All that were missed, this one among them: at least 1.
        missed: u32,
    },
}

/// No moment and no rule yet; once, for ever, made up for when missed, late after five minutes. That is far more than a
/// coordinator takes to follow another one, and too little for anybody to wonder why a job ran when it did.
impl Default for Schedule {
    fn default() -> Self {
        Self {
            at: None,
            rule: None,
            idle_seconds: None,
            run_times: 1,
            until: None,
            missed: Missed::default(),
            late_after: Duration::from_secs(300),
        }
    }
}

impl Schedule {
    /// A schedule of one moment, with the defaults.
    #[must_use]
    pub fn once(at: Timestamp) -> Self {
        Self { at: Some(at), ..Self::default() }
    }

    /// A schedule by a rule, for ever, with the other defaults.
    #[must_use]
    pub fn repeated(rule: Rule) -> Self {
        Self { rule: Some(rule), run_times: 0, ..Self::default() }
    }

    /// A schedule that leaves so many seconds between two runs, for ever, with the other defaults.
    #[must_use]
    pub fn after_pauses(idle_seconds: u32) -> Self {
        Self { idle_seconds: Some(idle_seconds), run_times: 0, ..Self::default() }
    }

    /// What is wrong with it, each in a sentence that says what to do. A schedule that has a fault never runs.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match (self.at, &self.rule) {
            (None, None) if self.idle_seconds.is_some() => {}
            _ if self.idle_seconds.is_some() => {
                faults.push("the job runs after pauses, and at moments of its own; leave one of them out".to_owned());
            }
            (None, None) => faults.push("nothing says when the job runs; give a moment or a calendar rule".to_owned()),
            (Some(_), Some(_)) => {
                faults
                    .push("both a moment and a calendar rule say when the job runs; leave one of them out".to_owned());
            }
            (Some(at), None) => {
                if self.run_times != 1 {
                    let times = self.run_times;
                    faults
                        .push(format!("a job cannot run {times} times at one moment; set 1, or give a calendar rule"));
                }
                if let Some(until) = self.until.filter(|until| *until < at) {
                    faults.push(format!("the job would start at {at} and no later than {until}; move one of the two"));
                }
            }
            (None, Some(rule)) => faults.extend(rule.faults()),
        }
        if let Some(idle) = self.idle_seconds.filter(|idle| !(1..=IDLE_MAX_SECONDS).contains(idle)) {
            faults.push(format!("a pause of {idle} s is out of range; give 1 to {IDLE_MAX_SECONDS} s"));
        }
        if !microseconds::fits(self.late_after) {
            let late_after = self.late_after;
            faults.push(format!("late after {late_after:?} is finer than a microsecond, or far too long; round it"));
        }
        faults
    }

    /// The first turn strictly after an instant, for a job that has run that often. None: there is no more turn, or the
    /// schedule has a fault. A later instant never gives an earlier turn.
    #[must_use]
    pub fn next(&self, after: Timestamp, runs_done: u32) -> Option<Timestamp> {
        if self.has_run(runs_done) || !self.faults().is_empty() { None } else { self.turn_after(after) }
    }

    /// What is to be done at `now`, when all was done up to `considered`: the same answer after a second as after an
    /// outage of days. From then on `now` is what was considered, whatever the answer was.
    ///
    /// The newest turn decides. On time, it is run. Later than that it was missed, and is run only if missed turns are
    /// made up for and `until` is not past. The next turn stands as it is, also when it follows a run that made up for
    /// others at once. Of turns more than [`SEARCH_YEARS`] ago nothing is said.
    #[must_use]
    pub fn due(&self, considered: Timestamp, now: Timestamp, runs_done: u32) -> Due {
        if self.has_run(runs_done) || !self.faults().is_empty() {
            return Due::Nothing;
        }
        // However long nobody looked, one pause is over: there are no turns to be counted.
        if self.idle_seconds.is_some() {
            let first = if runs_done == 0 { Some(now) } else { self.turn_after(considered) };
            return match first.filter(|turn| *turn <= now && self.until.is_none_or(|until| now <= until)) {
                Some(_) => Due::Run { turn: now, missed: 0 },
                None => Due::Nothing,
            };
        }
        let horizon = Timestamp::from_unix_microseconds(now.unix_microseconds().saturating_sub(LOOK_BACK_US));
        // At most one turn a day: the walk is no longer than the days since the horizon.
        let turn_after = |after| self.turn_after(after).filter(|turn| *turn <= now);
        let turns = std::iter::successors(turn_after(considered.max(horizon)), |turn| turn_after(*turn));
        let Some((older, turn)) = (0_u32..).zip(turns).last() else { return Due::Nothing };

        let late = now.unix_microseconds().saturating_sub(turn.unix_microseconds());
        let on_time = i128::from(late) <= microseconds::of(self.late_after).into();
        let is_over = self.until.is_some_and(|until| now > until);
        if on_time || (self.missed == Missed::RunOnce && !is_over) {
            Due::Run { turn, missed: older }
        } else {
            Due::Skip { turn, missed: older + 1 }
        }
    }

    /// Whether it has run as often as it should.
    fn has_run(&self, runs_done: u32) -> bool {
        self.run_times != 0 && runs_done >= self.run_times
    }

    fn after_pause(&self, after: Timestamp) -> Option<Timestamp> {
        let pause_us = i64::from(self.idle_seconds?).saturating_mul(1_000_000).max(1);
        Some(Timestamp::from_unix_microseconds(after.unix_microseconds().saturating_add(pause_us)))
    }

    fn turn_after(&self, after: Timestamp) -> Option<Timestamp> {
        let turn = match &self.rule {
            None => self.at.filter(|at| *at > after).or_else(|| self.after_pause(after)),
            Some(rule) => calendar::turn_after(rule, after),
        };
        turn.filter(|turn| self.until.is_none_or(|until| *turn <= until))
    }
}

const LOOK_BACK_US: i64 = SEARCH_YEARS as i64 * 366 * 86_400 * 1_000_000;

#[cfg(test)]
mod tests;
