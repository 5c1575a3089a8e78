//! Instances in CIM-XML (DSP0201): `INSTANCE`, with a `PROPERTY` or `PROPERTY.ARRAY` for each property.
//!
//! ```text
//!   <INSTANCE CLASSNAME="Msvm_MigrationJob">
//!     <PROPERTY NAME="JobState" TYPE="uint16"><VALUE>4</VALUE></PROPERTY>
//!     <PROPERTY NAME="Notify" TYPE="string"></PROPERTY>                        NULL: no VALUE
//!     …
//! ```
//!
//! No message and no declaration around it, so that it can stand in either. Element and attribute names are constants; all
//! that comes from elsewhere stands between `VALUE` tags, and is escaped there. Characters that XML 1.0 has no way to write
//! become U+FFFD, since a message about a hostile file must not make the document unreadable.

use std::fmt::Write as _;

use super::{MigrationJob, MsvmError};

const JOB_CLASS: &str = "Msvm_MigrationJob";
const ERROR_CLASS: &str = "Msvm_Error";
const ALLOCATION_CLASS: &str = "Msvm_StorageAllocationSettingData";

/// A job as an instance, one property a line.
pub(super) fn of(job: &MigrationJob) -> String {
    instance(JOB_CLASS, &properties(job))
}

/// An error as an instance, one property a line.
pub(super) fn error(error: &MsvmError) -> String {
    instance(ERROR_CLASS, &error_properties(error))
}

/// A disk of a storage move and where it goes, as an instance on one line, to be embedded.
pub(super) fn allocation(instance_id: &str, name: &str, connection: &str) -> String {
    let properties = [
        Property::one("ElementName", "string", Some(name)),
        Property::one("InstanceID", "string", Some(instance_id)),
        Property::many("Connection", "string", Some([connection])),
    ];
    let elements: String = properties.iter().map(Property::element).collect();
    format!("<INSTANCE CLASSNAME=\"{ALLOCATION_CLASS}\">{elements}</INSTANCE>")
}

fn instance(class: &str, properties: &[Property]) -> String {
    let mut text = format!("<INSTANCE CLASSNAME=\"{class}\">\n");
    for property in properties {
        let _ = writeln!(text, "  {}", property.element());
    }
    text.push_str("</INSTANCE>");
    text
}

/// Name and type of each property as the class declares them. That none is missing, and that values are those of the JSON, is
/// held by a test.
fn properties(job: &MigrationJob) -> Vec<Property> {
    let resources = Property::many("NewResourceSettingData", "string", job.new_resource_setting_data.as_ref());
    vec![
        Property::one("Caption", "string", Some(&job.caption)),
        Property::one("Description", "string", Some(&job.description)),
        Property::one("ElementName", "string", Some(&job.element_name)),
        Property::one("InstallDate", "datetime", job.install_date),
        Property::many("OperationalStatus", "uint16", Some(job.operational_status.iter().map(|it| it.number()))),
        Property::many("StatusDescriptions", "string", Some(&job.status_descriptions)),
        Property::one("Status", "string", Some(job.status)),
        Property::one("HealthState", "uint16", Some(job.health_state.number())),
        Property::one("CommunicationStatus", "uint16", Some(job.communication_status.number())),
        Property::one("DetailedStatus", "uint16", Some(job.detailed_status.number())),
        Property::one("OperatingStatus", "uint16", Some(job.operating_status.number())),
        Property::one("PrimaryStatus", "uint16", Some(job.primary_status.number())),
        Property::one("JobStatus", "string", Some(&job.job_status)),
        Property::one("TimeSubmitted", "datetime", Some(job.time_submitted)),
        Property::one("ScheduledStartTime", "datetime", job.scheduled_start_time),
        Property::one("StartTime", "datetime", job.start_time),
        Property::one("ElapsedTime", "datetime", Some(job.elapsed_time)),
        Property::one("JobRunTimes", "uint32", Some(job.job_run_times)),
        Property::one("RunMonth", "uint8", job.run_month.map(|month| month.number())),
        Property::one("RunDay", "sint8", job.run_day),
        Property::one("RunDayOfWeek", "sint8", job.run_day_of_week.map(|day| day.number())),
        Property::one("RunStartInterval", "datetime", job.run_start_interval),
        Property::one("LocalOrUtcTime", "uint16", Some(job.local_or_utc_time.number())),
        Property::one("UntilTime", "datetime", Some(job.until_time)),
        Property::one("Notify", "string", job.notify.as_ref()),
        Property::one("Owner", "string", job.owner.as_ref()),
        Property::one("Priority", "uint32", Some(job.priority)),
        Property::one("PercentComplete", "uint16", Some(job.percent_complete)),
        Property::one("DeleteOnCompletion", "boolean", Some(job.delete_on_completion)),
        Property::one("ErrorCode", "uint16", Some(job.error_code.number())),
        Property::one("ErrorDescription", "string", job.error_description.as_ref()),
        Property::one("RecoveryAction", "uint16", Some(job.recovery_action.number())),
        Property::one("OtherRecoveryAction", "string", job.other_recovery_action.as_ref()),
        Property::one("InstanceID", "string", Some(&job.instance_id)),
        Property::one("Name", "string", Some(&job.name)),
        Property::one("JobState", "uint16", Some(job.job_state.number())),
        Property::one("TimeOfLastStateChange", "datetime", Some(job.time_of_last_state_change)),
        Property::one("TimeBeforeRemoval", "datetime", Some(job.time_before_removal)),
        Property::one("Cancellable", "boolean", Some(job.cancellable)),
        Property::one("ErrorSummaryDescription", "string", job.error_summary_description.as_ref()),
        Property::one("MigrationType", "uint16", Some(job.migration_type.number())),
        Property::one("VirtualSystemName", "string", Some(&job.virtual_system_name)),
        Property::one("DestinationHost", "string", job.destination_host.as_ref()),
        Property::one("NewSystemSettingData", "string", job.new_system_setting_data.as_ref()).embedded(),
        resources.embedded(),
        Property::one("JobType", "uint16", Some(job.job_type.number())),
    ]
}

/// The same of an error.
fn error_properties(error: &MsvmError) -> Vec<Property> {
    vec![
        Property::one("ErrorType", "uint16", Some(error.error_type.number())),
        Property::one("OtherErrorType", "string", error.other_error_type),
        Property::one("OwningEntity", "string", Some(error.owning_entity)),
        Property::one("MessageID", "string", Some(error.message_id)),
        Property::one("Message", "string", Some(&error.message)),
        Property::many("MessageArguments", "string", Some(&error.message_arguments)),
        Property::one("PerceivedSeverity", "uint16", Some(error.perceived_severity.number())),
        Property::one("ProbableCause", "uint16", Some(error.probable_cause.number())),
        Property::one("ProbableCauseDescription", "string", error.probable_cause_description.as_ref()),
        Property::many("RecommendedActions", "string", Some(&error.recommended_actions)),
        Property::one("ErrorSource", "string", error.error_source.as_ref()),
        Property::one("ErrorSourceFormat", "uint16", Some(error.error_source_format.number())),
        Property::one("OtherErrorSourceFormat", "string", error.other_error_source_format.as_ref()),
        Property::one("CIMStatusCode", "uint32", Some(error.cim_status_code.number())),
        Property::one("CIMStatusCodeDescription", "string", Some(error.cim_status_code_description)),
    ]
}

struct Property {
    name: &'static str,
    cim_type: &'static str,
    value: Value,
    /// Whether its text is an instance, to be read once more.
    embedded: bool,
}

enum Value {
    One(Option<String>),
    Many(Option<Vec<String>>),
}

impl Property {
    fn one(name: &'static str, cim_type: &'static str, value: Option<impl ToString>) -> Self {
        let value = Value::One(value.map(|value| value.to_string()));
        Self { name, cim_type, value, embedded: false }
    }

    fn many<T: ToString>(
        name: &'static str,
        cim_type: &'static str,
        values: Option<impl IntoIterator<Item = T>>,
    ) -> Self {
        let value = Value::Many(values.map(|values| values.into_iter().map(|value| value.to_string()).collect()));
        Self { name, cim_type, value, embedded: false }
    }

    fn embedded(self) -> Self {
        Self { embedded: true, ..self }
    }

    fn element(&self) -> String {
        let (tag, content) = match &self.value {
            Value::One(value) => ("PROPERTY", value.as_ref().map(|value| self.value_element(value))),
            Value::Many(values) => {
                let elements = values.as_ref().map(|all| all.iter().map(|value| self.value_element(value)).collect());
                ("PROPERTY.ARRAY", elements.map(|elements: String| format!("<VALUE.ARRAY>{elements}</VALUE.ARRAY>")))
            }
        };
        let embedded = if self.embedded { " EmbeddedObject=\"instance\"" } else { "" };
        let (name, cim_type, content) = (self.name, self.cim_type, content.unwrap_or_default());
        format!("<{tag} NAME=\"{name}\" TYPE=\"{cim_type}\"{embedded}>{content}</{tag}>")
    }

    fn value_element(&self, value: &str) -> String {
        // CIM-XML writes truth in capitals.
        let text = if self.cim_type == "boolean" { value.to_uppercase() } else { escaped(value) };
        format!("<VALUE>{text}</VALUE>")
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // A reader would make a line feed of it.
            '\r' => escaped.push_str("&#13;"),
            '\n' | '\t' => escaped.push(character),
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_ends_its_element() {
        for (text, told) in [
            ("<&\">'", "&lt;&amp;&quot;&gt;'"),
            ("]]></VALUE>", "]]&gt;&lt;/VALUE&gt;"),
            ("a\u{0}b\u{1b}[2Jc\u{7f}\u{fffe}", "a\u{fffd}b\u{fffd}[2Jc\u{7f}\u{fffd}"),
            ("line\r\n\tnext", "line&#13;\n\tnext"),
            ("Übergröße 🐦", "Übergröße 🐦"),
        ] {
            assert_eq!(escaped(text), told);
        }
    }

    #[test]
    fn null_has_no_value_and_an_empty_text_has_one() {
        let element = |value: Option<&str>| Property::one("Notify", "string", value).element();
        assert_eq!(element(None), "<PROPERTY NAME=\"Notify\" TYPE=\"string\"></PROPERTY>");
        assert_eq!(element(Some("")), "<PROPERTY NAME=\"Notify\" TYPE=\"string\"><VALUE></VALUE></PROPERTY>");
        let none: Option<[&str; 0]> = None;
        let array = Property::many("A", "string", none).embedded().element();
        assert_eq!(array, "<PROPERTY.ARRAY NAME=\"A\" TYPE=\"string\" EmbeddedObject=\"instance\"></PROPERTY.ARRAY>");
    }

    #[test]
    fn a_disk_is_an_instance_of_its_own() {
        assert_eq!(
            allocation("Sterna:1/root", "root", "slow/root"),
            "<INSTANCE CLASSNAME=\"Msvm_StorageAllocationSettingData\">\
             <PROPERTY NAME=\"ElementName\" TYPE=\"string\"><VALUE>root</VALUE></PROPERTY>\
             <PROPERTY NAME=\"InstanceID\" TYPE=\"string\"><VALUE>Sterna:1/root</VALUE></PROPERTY>\
             <PROPERTY.ARRAY NAME=\"Connection\" TYPE=\"string\"><VALUE.ARRAY><VALUE>slow/root</VALUE></VALUE.ARRAY>\
             </PROPERTY.ARRAY></INSTANCE>"
        );
    }
}
