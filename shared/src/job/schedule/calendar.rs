//! From a rule to instants: which dates it means, and when the clock of its zone shows its time on them.
//!
//! ```text
//!   months from the one before ──▶ dates of each ──▶ date + start, as a clock shows it ──▶ first instant that it shows it
//! ```
//!
//! The month before comes first, since a weekday that is sought from its end may lie in the month asked about. The
//! dates rise: days of two months are at least 28 days apart, and a weekday is less than seven from its day. Instants
//! never fall where local times rise, because each is the first at which the clock has come that far. So the first one
//! that is late enough is the answer.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};

use super::rule::{DayOfWeek, Rule, Weekday, Zone};
use crate::time::Timestamp;

/// How many years are searched for a turn. The longest wait there is between two is eight years, from 29 February 2096
/// to that of 2104, since 2100 is no leap year; the ninth makes room for the months at both ends.
pub const SEARCH_YEARS: u16 = 9;

/// The first turn of a rule strictly after an instant. None: none within [`SEARCH_YEARS`], or a rule that has a fault.
pub(super) fn turn_after(rule: &Rule, after: Timestamp) -> Option<Timestamp> {
    let (clock, time) = (clock_of(&rule.zone)?, time_of(rule.start)?);
    let shown = clock.to_datetime(jiff::Timestamp::from_microsecond(after.unix_microseconds()).ok()?);
    months_from(shown.date())
        .filter(|first| rule.month.is_none_or(|month| i32::from(month.number()) + 1 == i32::from(first.month())))
        .flat_map(|first| dates_of(rule, first))
        .map(|date| date.to_datetime(time))
        // What the clock has shown already came then or before. This only saves work; the instants decide.
        .filter(|local| *local >= shown)
        .filter_map(|local| first_shown(&clock, local))
        .map(|instant| Timestamp::from_unix_microseconds(instant.as_microsecond()))
        .find(|turn| *turn > after)
}

/// The clock of a zone; none where no such zone is known.
pub(super) fn clock_of(zone: &Zone) -> Option<TimeZone> {
    match zone {
        Zone::Utc => Some(TimeZone::UTC),
        // Said by name rather than by jiff's default, which would read the host's files if any crate turned that
        // feature on.
        Zone::Local(name) => TimeZoneDatabase::bundled().get(name).ok().filter(|clock| !clock.is_unknown()),
    }
}

/// What a clock shows so long after midnight; none where the day is over by then.
pub(super) fn time_of(start: Duration) -> Option<Time> {
    Time::midnight().checked_add(start).ok()
}

/// The first days of all months that are searched, from the one before that of a date.
fn months_from(date: Date) -> impl Iterator<Item = Date> {
    let months = SEARCH_YEARS * 12 + 2;
    let first = date.first_of_month();
    // Before the first month that can be written there is none to begin with.
    let begin = first.yesterday().map_or(first, Date::first_of_month);
    std::iter::successors(Some(begin), |first| first.last_of_month().tomorrow().ok()).take(months.into())
}

/// The dates that a rule means in the month that begins so, whatever month it names. They rise.
fn dates_of(rule: &Rule, first: Date) -> Vec<Date> {
    let days = first.days_in_month();
    let date = |day: i8| Date::new(first.year(), first.month(), day).ok();
    let Some(day) = rule.day else {
        let every = (1..=days).filter_map(date);
        return match rule.day_of_week {
            DayOfWeek::Exact => every.collect(),
            DayOfWeek::OnOrAfter(weekday) => every.filter(|date| days_until(*date, weekday) == 0).collect(),
            DayOfWeek::OnOrBefore(_) => Vec::new(),
        };
    };
    let from_beginning = if day < 0 { days.saturating_add(1).saturating_add(day) } else { day };
    let found = date(from_beginning).and_then(|day| match rule.day_of_week {
        DayOfWeek::Exact => Some(day),
        DayOfWeek::OnOrAfter(weekday) => moved(day, days_until(day, weekday)),
        // The seven days up to that day have each weekday once.
        DayOfWeek::OnOrBefore(weekday) => {
            let sixth_before = moved(day, -6)?;
            moved(sixth_before, days_until(sixth_before, weekday))
        }
    });
    found.into_iter().collect()
}

/// Days from a date to the first such weekday from it on: 0 to 6.
fn days_until(date: Date, weekday: Weekday) -> i64 {
    i64::from(weekday.number() - date.weekday().to_sunday_one_offset()).rem_euclid(7)
}

fn moved(date: Date, days: i64) -> Option<Date> {
    date.checked_add(jiff::Span::new().try_days(days).ok()?).ok()
}

/// The first instant at which a clock shows a time or a later one.
fn first_shown(clock: &TimeZone, local: DateTime) -> Option<jiff::Timestamp> {
    match clock.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset: before } | AmbiguousOffset::Fold { before, .. } => {
            before.to_timestamp(local).ok()
        }
        // A time that is left out, read by the offset that holds after the gap, is an instant before it.
        AmbiguousOffset::Gap { after, .. } => {
            let earlier = after.to_timestamp(local).ok()?;
            let change = clock.following(earlier).find(|change| change.offset() == after)?;
            Some(change.timestamp())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Month;
    use super::*;

    /// The turns of a rule after an instant, to the minute, in UTC.
    fn turns(rule: &Rule, after: &str, count: usize) -> Vec<String> {
        let first = turn_after(rule, after.parse().expect("an instant"));
        let all = std::iter::successors(first, |turn| turn_after(rule, *turn));
        all.take(count).map(|turn| turn.to_string().replace(":00.000000Z", "")).collect()
    }

    fn daily(hour: u64, minute: u64, zone: &str) -> Rule {
        Rule::daily(Duration::from_secs(hour * 3600 + minute * 60), Zone::Local(zone.into()))
    }

    #[track_caller]
    fn check(rule: &Rule, after: &str, expected: &[&str]) {
        assert_eq!(turns(rule, after, expected.len()), expected, "{rule:?}");
    }

    #[test]
    fn berlin_runs_a_time_left_out_when_the_clock_was_put_forward() {
        let expected = ["2024-03-30T01:30", "2024-03-31T01:00", "2024-04-01T00:30"];
        check(&daily(2, 30, "Europe/Berlin"), "2024-03-29T12:00:00Z", &expected);
        // Three o'clock is that same instant.
        check(&daily(3, 0, "Europe/Berlin"), "2024-03-30T12:00:00Z", &["2024-03-31T01:00", "2024-04-01T01:00"]);
    }

    #[test]
    fn berlin_runs_a_time_that_comes_twice_the_first_time() {
        let rule = daily(2, 30, "Europe/Berlin");
        check(&rule, "2024-10-25T12:00:00Z", &["2024-10-26T00:30", "2024-10-27T00:30", "2024-10-28T01:30"]);
        // The clock shows 02:15 for the second time.
        check(&rule, "2024-10-27T01:15:00Z", &["2024-10-28T01:30"]);
    }

    #[test]
    fn new_york_both_ways() {
        let expected = ["2024-03-09T07:30", "2024-03-10T07:00", "2024-03-11T06:30"];
        check(&daily(2, 30, "America/New_York"), "2024-03-08T12:00:00Z", &expected);
        let expected = ["2024-11-02T05:30", "2024-11-03T05:30", "2024-11-04T06:30"];
        check(&daily(1, 30, "America/New_York"), "2024-11-01T12:00:00Z", &expected);
    }

    #[test]
    fn lord_howe_changes_by_half_an_hour() {
        let expected = ["2024-10-04T15:45", "2024-10-05T15:30", "2024-10-06T15:15"];
        check(&daily(2, 15, "Australia/Lord_Howe"), "2024-10-04T12:00:00Z", &expected);
        let expected = ["2024-04-05T14:45", "2024-04-06T14:45", "2024-04-07T15:15"];
        check(&daily(1, 45, "Australia/Lord_Howe"), "2024-04-05T12:00:00Z", &expected);
    }

    #[test]
    fn a_midnight_that_is_left_out_runs_at_one() {
        let expected = ["2018-11-03T03:00", "2018-11-04T03:00", "2018-11-05T02:00"];
        check(&daily(0, 0, "America/Sao_Paulo"), "2018-11-02T12:00:00Z", &expected);
        let expected = ["2024-03-29T22:30", "2024-03-30T22:00", "2024-03-31T21:30"];
        check(&daily(0, 30, "Asia/Beirut"), "2024-03-29T12:00:00Z", &expected);
    }

    #[test]
    fn a_day_that_is_left_out_runs_when_the_next_begins() {
        // Samoa went from the 29th of December 2011 to the 31st.
        let expected = ["2011-12-29T22:00", "2011-12-30T10:00", "2011-12-30T22:00"];
        check(&daily(12, 0, "Pacific/Apia"), "2011-12-29T12:00:00Z", &expected);
        // At midnight that is the same instant for both days, and one turn.
        check(&daily(0, 0, "Pacific/Apia"), "2011-12-29T12:00:00Z", &["2011-12-30T10:00", "2011-12-31T10:00"]);
    }

    #[test]
    fn utc_is_never_changed() {
        let expected = ["2024-03-30T02:30", "2024-03-31T02:30", "2024-04-01T02:30"];
        check(&Rule { zone: Zone::Utc, ..daily(2, 30, "") }, "2024-03-29T12:00:00Z", &expected);
    }

    fn monthly(month: Option<Month>, day: i8, number: i8) -> Rule {
        let day_of_week = DayOfWeek::from_number(number).expect("a weekday of CIM's");
        Rule { month, day: Some(day), day_of_week, start: Duration::ZERO, zone: Zone::Utc }
    }

    #[test]
    fn a_weekday_may_lie_in_the_month_beside() {
        // The 31st of January 2026 is a Saturday; February and April have no 31st to seek from.
        let expected = ["2026-02-01T00:00", "2026-04-05T00:00", "2026-05-31T00:00"];
        check(&monthly(None, 31, 1), "2026-01-20T00:00:00Z", &expected);
        check(&monthly(Some(Month::January), 31, 1), "2026-01-31T12:00:00Z", &["2026-02-01T00:00", "2027-01-31T00:00"]);
        check(&monthly(Some(Month::December), -1, 5), "2026-12-31T12:00:00Z", &["2028-01-06T00:00"]);
        // The last Monday up to the first of March 2026, a Sunday.
        check(&monthly(Some(Month::March), 1, -2), "2026-02-20T00:00:00Z", &["2026-02-23T00:00", "2027-03-01T00:00"]);
        check(&monthly(Some(Month::January), 1, -7), "2026-06-01T00:00:00Z", &["2026-12-26T00:00", "2028-01-01T00:00"]);
    }

    #[test]
    fn days_count_from_either_end() {
        check(&monthly(None, 31, 0), "2026-01-31T00:00:00Z", &["2026-03-31T00:00", "2026-05-31T00:00"]);
        check(&monthly(None, -1, 0), "2024-01-31T00:00:00Z", &["2024-02-29T00:00", "2024-03-31T00:00"]);
        check(&monthly(None, -31, 0), "2026-01-01T00:00:00Z", &["2026-03-01T00:00", "2026-05-01T00:00"]);
        // The last Friday of each month, and the second Tuesday.
        check(&monthly(None, -1, -6), "2026-01-01T00:00:00Z", &["2026-01-30T00:00", "2026-02-27T00:00"]);
        check(&monthly(None, 8, 3), "2026-01-01T00:00:00Z", &["2026-01-13T00:00", "2026-02-10T00:00"]);
    }

    #[test]
    fn without_a_day_a_weekday_is_every_one() {
        let rule = Rule { day: None, ..monthly(Some(Month::January), 1, 2) };
        let expected = ["2026-01-19T00:00", "2026-01-26T00:00", "2027-01-04T00:00"];
        check(&rule, "2026-01-12T00:00:00Z", &expected);
    }

    #[test]
    fn the_longest_wait_is_within_the_search_and_the_search_ends() {
        let leap = monthly(Some(Month::February), 29, 0);
        check(&leap, "2096-02-29T00:00:00Z", &["2104-02-29T00:00"]);
        check(
            &Rule { month: Some(Month::February), ..monthly(None, -29, -1) },
            "2096-02-01T00:00:00Z",
            &["2104-01-27T00:00"],
        );
        assert_eq!(turns(&monthly(Some(Month::February), 31, 0), "2026-01-01T00:00:00Z", 1), Vec::<String>::new());
        assert_eq!(turns(&leap, "9999-06-01T00:00:00Z", 1), Vec::<String>::new());
        assert_eq!(turn_after(&leap, Timestamp::from_unix_microseconds(i64::MAX)), None);
        assert!(turn_after(&leap, Timestamp::from_unix_microseconds(i64::MIN)).is_some());
    }
}
