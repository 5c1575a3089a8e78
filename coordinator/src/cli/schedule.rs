//! When a job runs, as the command line says it: a moment, or a calendar in the words of `Msvm_MigrationJob`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use sterna_shared::job::{DayOfWeek, Missed, Month, Rule, Schedule, Weekday, Zone};
use sterna_shared::time::Timestamp;

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MissedWish {
    /// Run once as soon as it can, however many were missed
    RunOnce,
    /// Wait for the next one
    Skip,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "When it runs")]
pub(super) struct ScheduleArgs {
    /// Begin then, such as 2026-12-01T02:00:00Z (ScheduledStartTime)
    #[arg(long, value_name = "TIME", conflicts_with = "start")]
    at: Option<Timestamp>,
    /// Run by a calendar, at that time of day, such as 02:00 (RunStartInterval)
    #[arg(long, value_name = "HH:MM", value_parser = parse_start)]
    start: Option<Duration>,
    /// In that month only (RunMonth)
    #[arg(long, value_name = "MONTH", requires = "start", value_parser = parse_month)]
    month: Option<Month>,
    /// On that day of the month; -1 is its last (RunDay)
    #[arg(long, value_name = "DAY", requires = "start", allow_hyphen_values = true)]
    day: Option<i8>,
    /// On that weekday: the first on or after --day, or with a - the last on or before it (RunDayOfWeek)
    #[arg(long, value_name = "[-]WEEKDAY", requires = "start", allow_hyphen_values = true, value_parser = parse_weekday)]
    weekday: Option<DayOfWeek>,
    /// The zone whose clock shows it, such as Europe/Berlin; UTC where it is left out (LocalOrUtcTime)
    #[arg(long, value_name = "ZONE", requires = "start")]
    zone: Option<String>,
    /// How often it runs; 0 is until --until, or for ever (JobRunTimes)
    #[arg(long, value_name = "COUNT", requires = "start")]
    times: Option<u32>,
    /// Begin no later than that (UntilTime)
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// What becomes of turns that were missed in an outage
    #[arg(long, value_enum, default_value = "run-once")]
    missed: MissedWish,
}

impl ScheduleArgs {
    /// The schedule they come to; none where nothing says when.
    pub(super) fn schedule(&self) -> Option<Schedule> {
        let rule = self.start.map(|start| Rule {
            month: self.month,
            day: self.day,
            day_of_week: self.weekday.unwrap_or_default(),
            start,
            zone: self.zone.clone().map_or(Zone::Utc, Zone::Local),
        });
        if self.at.is_none() && rule.is_none() {
            return None;
        }
        let missed = match self.missed {
            MissedWish::RunOnce => Missed::RunOnce,
            MissedWish::Skip => Missed::Skip,
        };
        let run_times = self.times.unwrap_or(1);
        Some(Schedule { at: self.at, rule, run_times, until: self.until, missed, ..Schedule::default() })
    }
}

/// A span of time: a number of what the letter behind it says, seconds, minutes, hours or days.
pub(super) fn parse_seconds(text: &str) -> Option<u32> {
    let unit = match text.as_bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        b'd' => 86_400,
        _ => return None,
    };
    text[..text.len() - 1].parse::<u32>().ok()?.checked_mul(unit)
}

fn parse_start(text: &str) -> Result<Duration, String> {
    let wanted = || format!("{text:?} is no time of day; give HH:MM, such as 02:00");
    let (hour, minute) = text.split_once(':').ok_or_else(wanted)?;
    let (hour, minute): (u64, u64) = (hour.parse().map_err(|_| wanted())?, minute.parse().map_err(|_| wanted())?);
    if hour > 23 || minute > 59 {
        return Err(wanted());
    }
    Ok(Duration::from_secs((hour * 60 + minute) * 60))
}

fn parse_month(text: &str) -> Result<Month, String> {
    let place = MONTHS.iter().position(|month| *month == text.to_lowercase());
    let month = place.and_then(|place| u8::try_from(place).ok()).and_then(Month::from_number);
    month.ok_or_else(|| format!("{text:?} is no month; give one of: {}", MONTHS.join(", ")))
}

fn parse_weekday(text: &str) -> Result<DayOfWeek, String> {
    let (before, name) = match text.strip_prefix('-') {
        Some(name) => (true, name),
        None => (false, text),
    };
    let place = WEEKDAYS.iter().position(|day| *day == name.to_lowercase());
    let weekday = place.map(|place| Weekday::ALL[place]);
    weekday
        .map(|weekday| if before { DayOfWeek::OnOrBefore(weekday) } else { DayOfWeek::OnOrAfter(weekday) })
        .ok_or_else(|| {
            format!("{text:?} is no weekday; give one of: {}, or one with a - before it", WEEKDAYS.join(", "))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_calendar() {
        assert_eq!(parse_month("March"), Ok(Month::March));
        assert_eq!(parse_weekday("sunday"), Ok(DayOfWeek::OnOrAfter(Weekday::Sunday)));
        assert_eq!(parse_weekday("-saturday"), Ok(DayOfWeek::OnOrBefore(Weekday::Saturday)));
        assert_eq!(parse_start("02:30"), Ok(Duration::from_secs(9000)));
        for bad in ["", "24:00", "2", "02:60", "-1:00"] {
            assert!(parse_start(bad).is_err(), "{bad}");
        }
        assert!(parse_weekday("someday").is_err() && parse_month("12").is_err());
    }
}
