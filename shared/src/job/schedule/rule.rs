//! The calendar of a schedule, with CIM's words and numbers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{calendar, microseconds};

/// On which days a job runs, and when on them. With a `start` alone it is every day.
///
/// | `day` | `day_of_week` | days |
/// | --- | --- | --- |
/// | none | exact | every day |
/// | none | on or after | every such weekday |
/// | none | on or before | refused: there is no day to seek from; the last one of a month is sought from day -1 |
/// | given | exact | that day |
/// | given | on or after | one a month: the first such weekday from that day on, maybe in the month that follows |
/// | given | on or before | one a month: the last such weekday up to that day, maybe in the month before |
///
/// CIM says nothing of a missing `RunDay`; the first three lines are decided here. `month` is the month of `day`, also
/// where the weekday sought from it lies in another; without a `day` it is the month of the weekday. **A month that
/// does not have the day is left out**, 31 in April, and nothing is sought from there either: whoever means the last
/// day says -1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The month (`RunMonth`); none is every month.
    pub month: Option<Month>,
    /// The day of the month (`RunDay`), 1 to 31 from its beginning, -1 to -31 from its end; none is as in the table.
    /// CIM's bounds include 0 and say no meaning of it: it is refused.
    pub day: Option<i8>,
    /// The weekday (`RunDayOfWeek`).
    pub day_of_week: DayOfWeek,
    /// How far into the day, in whole microseconds, below 24 hours (`RunStartInterval`). It is what the clock of the
    /// zone shows rather than time that has gone by. CIM has the job run "on or after" it, and so it is where clocks
    /// are changed: a turn is **the first instant at which the clock shows this time or a later one**. A time that is
    /// left out runs as soon as the clock was put forward, as with cron; one that comes twice runs the first time only.
    /// Microseconds in what is written.
    #[serde(rename = "start_us", with = "microseconds")]
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub start: Duration,
    /// Whose clock shows it (`LocalOrUtcTime`).
    pub zone: Zone,
}

/// A month, by CIM's numbers from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // Each says it itself.
pub enum Month {
    January = 0,
    February,
    March,
    April,
    May,
    June,
    July,
    August,
    September,
    October,
    November,
    December,
}

/// A day of the week, by CIM's numbers from Sunday, 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // Each says it itself.
pub enum Weekday {
    Sunday = 1,
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
}

/// Which weekday is sought from a day of the month, and which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DayOfWeek {
    /// None: the day itself.
    #[default]
    Exact,
    /// The first such weekday from that day on, the day among them.
    OnOrAfter(Weekday),
    /// The last such weekday up to that day, the day among them.
    OnOrBefore(Weekday),
}

/// Whose clock a time is read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Zone {
    /// UTC, which is never changed.
    #[default]
    Utc,
    /// The clock of a place, by its name in the IANA database, such as Europe/Berlin. A fleet has no place of its own,
    /// so that CIM's "local" is always said with one.
    Local(String),
}

/// The most of a wrong name that a fault repeats, in characters.
const SHOWN_MAX: usize = 48;

impl Rule {
    /// Every day at that time after midnight.
    #[must_use]
    pub fn daily(start: Duration, zone: Zone) -> Self {
        Self { month: None, day: None, day_of_week: DayOfWeek::Exact, start, zone }
    }

    /// What is wrong with it, each in a sentence that says what to do.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match (self.day, self.month, self.day_of_week) {
            (Some(day @ (0 | ..-31 | 32..)), ..) => faults.push(format!(
                "day {day} is in no month; give 1 to 31, or -1 to -31 from the end of the month, or leave it out"
            )),
            (Some(day), Some(month), _) if day.unsigned_abs() > month.days_max() => faults.push(format!(
                "{month:?} never has a day {day}, so that the job would never run; give at most {} days, or another month",
                month.days_max()
            )),
            (None, _, DayOfWeek::OnOrBefore(weekday)) => faults.push(format!(
                "no day says up to where a {weekday:?} is sought; give day -1 for the last one of the month, or seek on or \
                 after for every one"
            )),
            _ => {}
        }
        if calendar::time_of(self.start).is_none() {
            let start = self.start;
            faults.push(format!("{start:?} after midnight is no longer that day; give less than 24 hours"));
        }
        if !microseconds::fits(self.start) {
            let start = self.start;
            faults.push(format!("{start:?} after midnight is finer than a microsecond; round it"));
        }
        if let Zone::Local(name) = &self.zone
            && calendar::clock_of(&self.zone).is_none()
        {
            let shown: String = name.chars().take(SHOWN_MAX).collect();
            faults
                .push(format!("{shown:?} is no time zone that is known here; give an IANA name such as Europe/Berlin"));
        }
        faults
    }
}

impl Month {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::January,
        Self::February,
        Self::March,
        Self::April,
        Self::May,
        Self::June,
        Self::July,
        Self::August,
        Self::September,
        Self::October,
        Self::November,
        Self::December,
    ];

    /// CIM's number of it, from 0.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The month that has this number in CIM, if any has.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|month| month.number() == number)
    }

    /// The days that it has in its longest year.
    #[must_use]
    pub const fn days_max(self) -> u8 {
        match self {
            Self::February => 29,
            Self::April | Self::June | Self::September | Self::November => 30,
            _ => 31,
        }
    }
}

impl Weekday {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Sunday, Self::Monday, Self::Tuesday, Self::Wednesday, Self::Thursday, Self::Friday, Self::Saturday];

    /// CIM's number of it, from 1.
    #[must_use]
    pub const fn number(self) -> i8 {
        self as i8
    }
}

impl DayOfWeek {
    /// CIM's number of it: 0, above 0 for on or after, below 0 for on or before.
    #[must_use]
    pub const fn number(self) -> i8 {
        match self {
            Self::Exact => 0,
            Self::OnOrAfter(weekday) => weekday.number(),
            Self::OnOrBefore(weekday) => -weekday.number(),
        }
    }

    /// What this number says in CIM, if it says anything.
    #[must_use]
    pub fn from_number(number: i8) -> Option<Self> {
        let weekday = Weekday::ALL.into_iter().find(|weekday| weekday.number().unsigned_abs() == number.unsigned_abs());
        match (weekday, number) {
            (None, 0) => Some(Self::Exact),
            (None, _) => None,
            (Some(weekday), 1..) => Some(Self::OnOrAfter(weekday)),
            (Some(weekday), _) => Some(Self::OnOrBefore(weekday)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_cims_and_lead_back() {
        assert!((0..=11).all(|number| Month::from_number(number).map(Month::number) == Some(number)));
        assert_eq!((Month::from_number(12), DayOfWeek::from_number(8), DayOfWeek::from_number(-8)), (None, None, None));
        assert!((-7..=7).all(|number| DayOfWeek::from_number(number).map(DayOfWeek::number) == Some(number)));
        assert_eq!(DayOfWeek::from_number(-7), Some(DayOfWeek::OnOrBefore(Weekday::Saturday)));
        assert_eq!(DayOfWeek::from_number(i8::MIN), None);
    }

    #[test]
    fn each_fault_is_told_with_what_to_do() {
        let good = Rule::daily(Duration::from_secs(7200), Zone::Local("Europe/Berlin".into()));
        assert_eq!(good.faults(), Vec::<String>::new());
        let february = |day| Rule { month: Some(Month::February), day: Some(day), ..good.clone() };
        assert_eq!((february(29).faults(), february(-29).faults()), (vec![], vec![]));
        let backwards = DayOfWeek::OnOrBefore(Weekday::Friday);
        let zone = |name: &str| Rule { zone: Zone::Local(name.into()), ..good.clone() };
        for (rule, words) in [
            (Rule { day: Some(0), ..good.clone() }, "day 0 is in no month"),
            (Rule { day: Some(32), ..good.clone() }, "day 32 is in no month"),
            (Rule { day: Some(i8::MIN), ..good.clone() }, "day -128 is in no month"),
            (february(30), "February never has a day 30"),
            (february(-31), "February never has a day -31"),
            (Rule { day_of_week: backwards, ..good.clone() }, "give day -1 for the last one of the month"),
            (Rule { start: Duration::from_secs(86_400), ..good.clone() }, "less than 24 hours"),
            (Rule { start: Duration::from_nanos(1), ..good.clone() }, "finer than a microsecond"),
            (zone("Europe/Atlantis"), "\"Europe/Atlantis\" is no time zone"),
            (zone(""), "\"\" is no time zone"),
            (zone("../etc/localtime"), "is no time zone"),
            (zone("Etc/Unknown"), "is no time zone"),
        ] {
            let faults = rule.faults();
            assert!(faults.len() == 1 && faults[0].contains(words), "{words}: {faults:?}");
        }
        assert_eq!(Rule { day: Some(0), start: Duration::MAX, ..zone(&"x".repeat(999)) }.faults().len(), 4);
    }
}
