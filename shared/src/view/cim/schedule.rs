//! The words of a schedule in CIM's numbers. Both lists are CIM's; they stand twice since a job knows no face.

use super::{CimInterval, DayOfWeek, LocalOrUtcTime, RunMonth};
use crate::job;

impl From<job::Month> for RunMonth {
    fn from(month: job::Month) -> Self {
        match month {
            job::Month::January => Self::January,
            job::Month::February => Self::February,
            job::Month::March => Self::March,
            job::Month::April => Self::April,
            job::Month::May => Self::May,
            job::Month::June => Self::June,
            job::Month::July => Self::July,
            job::Month::August => Self::August,
            job::Month::September => Self::September,
            job::Month::October => Self::October,
            job::Month::November => Self::November,
            job::Month::December => Self::December,
        }
    }
}

impl From<job::DayOfWeek> for DayOfWeek {
    fn from(day_of_week: job::DayOfWeek) -> Self {
        use job::DayOfWeek::{Exact, OnOrAfter, OnOrBefore};
        match day_of_week {
            Exact => Self::ExactDayOfMonth,
            OnOrAfter(job::Weekday::Sunday) => Self::Sunday,
            OnOrAfter(job::Weekday::Monday) => Self::Monday,
            OnOrAfter(job::Weekday::Tuesday) => Self::Tuesday,
            OnOrAfter(job::Weekday::Wednesday) => Self::Wednesday,
            OnOrAfter(job::Weekday::Thursday) => Self::Thursday,
            OnOrAfter(job::Weekday::Friday) => Self::Friday,
            OnOrAfter(job::Weekday::Saturday) => Self::Saturday,
            OnOrBefore(job::Weekday::Sunday) => Self::SundayBefore,
            OnOrBefore(job::Weekday::Monday) => Self::MondayBefore,
            OnOrBefore(job::Weekday::Tuesday) => Self::TuesdayBefore,
            OnOrBefore(job::Weekday::Wednesday) => Self::WednesdayBefore,
            OnOrBefore(job::Weekday::Thursday) => Self::ThursdayBefore,
            OnOrBefore(job::Weekday::Friday) => Self::FridayBefore,
            OnOrBefore(job::Weekday::Saturday) => Self::SaturdayBefore,
        }
    }
}

/// Which place "local" is of, CIM cannot say.
impl From<&job::Zone> for LocalOrUtcTime {
    fn from(zone: &job::Zone) -> Self {
        match zone {
            job::Zone::Utc => Self::Utc,
            job::Zone::Local(_) => Self::Local,
        }
    }
}

/// A length of time, to the microsecond and held to [`CimInterval::MAX`].
impl From<std::time::Duration> for CimInterval {
    fn from(length: std::time::Duration) -> Self {
        Self::from_microseconds(u64::try_from(length.as_micros()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_have_the_same_numbers() {
        assert!(job::Month::ALL.into_iter().map(RunMonth::from).eq(RunMonth::ALL.iter().copied()));
        assert!(job::Month::ALL.into_iter().all(|month| RunMonth::from(month).number() == month.number()));
        for day_of_week in DayOfWeek::ALL {
            let own = job::DayOfWeek::from_number(day_of_week.number()).expect("a number of CIM's");
            assert_eq!(DayOfWeek::from(own), *day_of_week);
        }
        assert_eq!(LocalOrUtcTime::from(&job::Zone::Utc), LocalOrUtcTime::Utc);
        assert_eq!(LocalOrUtcTime::from(&job::Zone::Local("Europe/Berlin".into())), LocalOrUtcTime::Local);
    }

    #[test]
    fn two_oclock_is_written_as_cims_example() {
        let start = CimInterval::from(std::time::Duration::from_secs(7200));
        assert_eq!(start.to_string(), "00000000020000.000000:000");
        assert_eq!(CimInterval::from(std::time::Duration::MAX), CimInterval::MAX);
    }
}
