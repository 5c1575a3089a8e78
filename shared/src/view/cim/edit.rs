//! What may be changed of a job by the names of CIM: the read/write properties of the class, from text.

use crate::job::{DayOfWeek, Month, Policy, Rule, Schedule, Zone};
use crate::time::Timestamp;

use super::{CimDateTime, CimInterval};

/// The properties that may be changed.
pub const READ_WRITE: [&str; 12] = [
    "ScheduledStartTime",
    "JobRunTimes",
    "RunMonth",
    "RunDay",
    "RunDayOfWeek",
    "RunStartInterval",
    "LocalOrUtcTime",
    "UntilTime",
    "Notify",
    "Priority",
    "DeleteOnCompletion",
    "TimeBeforeRemoval",
];

/// The properties that may not.
pub const READ_ONLY: [&str; 34] = [
    "Caption",
    "Description",
    "ElementName",
    "InstallDate",
    "OperationalStatus",
    "StatusDescriptions",
    "Status",
    "HealthState",
    "CommunicationStatus",
    "DetailedStatus",
    "OperatingStatus",
    "PrimaryStatus",
    "JobStatus",
    "TimeSubmitted",
    "StartTime",
    "ElapsedTime",
    "Owner",
    "PercentComplete",
    "ErrorCode",
    "ErrorDescription",
    "RecoveryAction",
    "OtherRecoveryAction",
    "InstanceID",
    "Name",
    "JobState",
    "TimeOfLastStateChange",
    "Cancellable",
    "ErrorSummaryDescription",
    "MigrationType",
    "VirtualSystemName",
    "DestinationHost",
    "NewSystemSettingData",
    "NewResourceSettingData",
    "JobType",
];

/// Why a property was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditFault {
    /// The class has no such property.
    #[error("a job has no property {name}; those that can be changed are: {}", READ_WRITE.join(", "))]
    Unknown {
        /// What was given.
        name: String,
    },
    /// It tells of the job, and is not for clients to write.
    #[error("{name} is read-only; those that can be changed are: {}", READ_WRITE.join(", "))]
    ReadOnly {
        /// The property.
        name: &'static str,
    },
    /// The value is none of the property's.
    #[error("{value:?} is no value of {name}; give {wanted}")]
    Value {
        /// The property.
        name: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        wanted: &'static str,
    },
    /// It says nothing without another.
    #[error("{name} needs a calendar, and the job has none; set RunStartInterval first")]
    NoRule {
        /// The property.
        name: &'static str,
    },
}

/// Changes one property. An empty value is CIM's NULL. `now` is what intervals count from.
///
/// # Errors
/// [`EditFault`]; the policy is then as it was.
pub fn edit(policy: &mut Policy, name: &str, value: &str, now: Timestamp) -> Result<(), EditFault> {
    if let Some(name) = READ_ONLY.into_iter().find(|known| *known == name) {
        return Err(EditFault::ReadOnly { name });
    }
    let Some(name) = READ_WRITE.into_iter().find(|known| *known == name) else {
        return Err(EditFault::Unknown { name: name.to_owned() });
    };
    let refused = |wanted| EditFault::Value { name, value: value.to_owned(), wanted };
    let null = value.is_empty();
    match name {
        "Priority" => policy.priority = value.parse().map_err(|_| refused("a number from 0 to 4294967295"))?,
        "DeleteOnCompletion" => {
            policy.delete_on_completion = value.parse().map_err(|_| refused("true or false"))?;
        }
        "TimeBeforeRemoval" => {
            let wanted = "an interval of whole seconds, such as 00000000000500.000000:000";
            let interval: CimInterval = value.parse().map_err(|_| refused(wanted))?;
            policy.keep_seconds = u32::try_from(interval.microseconds() / 1_000_000).map_err(|_| refused(wanted))?;
        }
        "Notify" => policy.notify = (!null).then(|| value.to_owned()),
        "ScheduledStartTime" if null => policy.schedule = None,
        "ScheduledStartTime" => {
            let wanted = "an instant or an interval from now on, in CIM's 25 characters";
            let at = instant(value, now).ok_or_else(|| refused(wanted))?;
            let before = policy.schedule.take().unwrap_or_default();
            policy.schedule = Some(Schedule { at: Some(at), rule: None, run_times: 1, ..before });
        }
        "UntilTime" => {
            let wanted = "an instant, an interval from now on, or all nines, in CIM's 25 characters";
            let schedule = policy.schedule.as_mut().ok_or(EditFault::NoRule { name })?;
            schedule.until = match value.parse() {
                Ok(CimDateTime::Forever(_)) => None,
                _ if null => None,
                _ => Some(instant(value, now).ok_or_else(|| refused(wanted))?),
            };
        }
        "JobRunTimes" => {
            let times = value.parse().map_err(|_| refused("a number from 0 to 4294967295"))?;
            policy.schedule.as_mut().ok_or(EditFault::NoRule { name })?.run_times = times;
        }
        "RunStartInterval" => {
            let wanted = "an interval below 24 hours, such as 00000000020000.000000:000";
            let start: CimInterval = value.parse().map_err(|_| refused(wanted))?;
            let start = std::time::Duration::from_micros(start.microseconds());
            let schedule = policy.schedule.get_or_insert_default();
            schedule.at = None;
            schedule.rule.get_or_insert_with(|| Rule::daily(start, Zone::Utc)).start = start;
        }
        _ => {
            let rule = policy.schedule.as_mut().and_then(|schedule| schedule.rule.as_mut());
            let rule = rule.ok_or(EditFault::NoRule { name })?;
            match name {
                "RunMonth" if null => rule.month = None,
                "RunMonth" => {
                    let month = value.parse().ok().and_then(Month::from_number);
                    rule.month = Some(month.ok_or_else(|| refused("0 (January) to 11 (December)"))?);
                }
                "RunDay" if null => rule.day = None,
                "RunDay" => rule.day = Some(value.parse().map_err(|_| refused("-31 to 31, and not 0"))?),
                "RunDayOfWeek" => {
                    let day = value.parse().ok().and_then(DayOfWeek::from_number);
                    rule.day_of_week = day.ok_or_else(|| refused("-7 to 7"))?;
                }
                _ => match (value, &rule.zone) {
                    ("2", _) => rule.zone = Zone::Utc,
                    ("1", Zone::Local(_)) => {}
                    _ => return Err(refused("2 (UTC); for local time name the zone: sterna job schedule --zone")),
                },
            }
        }
    }
    Ok(())
}

fn instant(value: &str, now: Timestamp) -> Option<Timestamp> {
    match value.parse().ok()? {
        CimDateTime::Timestamp(timestamp) => Timestamp::try_from(timestamp).ok(),
        CimDateTime::Interval(interval) => {
            let length = i64::try_from(interval.microseconds()).ok()?;
            Some(Timestamp::from_unix_microseconds(now.unix_microseconds().checked_add(length)?))
        }
        CimDateTime::Zeroes | CimDateTime::Forever(_) => None,
    }
}
