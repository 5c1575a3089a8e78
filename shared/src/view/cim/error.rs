//! `Msvm_Error`: what is wrong with a job, in full; and `GetError` and `GetErrorEx`, which ask for it.
//!
//! ```text
//!   trouble ───────────────▶ the error        of the code of the report, or of the state
//!   its causes ────────────▶ one each         STERNA-J005, where it says something that was not said before
//!   findings of a check ───▶ one each         of their codes, in place of the causes, which repeat them
//!   other steps' failures ─▶ one each         of their codes, and their causes
//!   silent hosts ──────────▶ one each         STERNA-J003
//! ```
//!
//! A reader asks for the error where the first indicator of a job is not OK. There is one exactly then: that rule is kept also
//! for a job that is Degraded, which is well and has a host that is not heard of, since a program that asks by the rule should
//! not be given nothing. It costs that such a job has an error record and the error code 0: the code is about the job, the record about
//! its host.

use serde::Serialize;

use crate::id::HostId;
use crate::job::{
    CheckReport, ConditionCode, ErrorEntry, FailureCode, FailureReport, Finding, JobStatus, Plan, Refusal, RemedyNames,
    StepKind, StepState,
};

use super::condition::{Condition, Contact, Contacts, Trouble, failed_steps, silence, silent_hosts};
use super::error_class::ErrorClass;
use super::error_values::{CimStatusCode, ErrorSourceFormat, ErrorType, PerceivedSeverity, ProbableCause};
use super::values::OperationalStatus;
use super::xml;

/// Who gives the message ids their meaning.
pub const OWNING_ENTITY: &str = "Sterna";

/// The most records of one job. Reports come from agents, and each cause is compared with all that was told before.
pub const ERRORS_MAX: usize = 32;

/// An error, as CIM has it. `None` is CIM's NULL. Where Sterna has nothing to say, the field says why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct MsvmError {
    /// What kind of error it is.
    pub error_type: ErrorType,
    /// The kind in words, where it has no number.
    pub other_error_type: Option<&'static str>,
    /// [`OWNING_ENTITY`].
    pub owning_entity: &'static str,
    /// The id in the catalogue, docs/errors.md.
    #[serde(rename = "MessageID")]
    pub message_id: &'static str,
    /// What happened, in one sentence: the report's, which the agent has made where it happened.
    pub message: String,
    /// What it is about, each at its place: job, VM, source, target, the host where it happened, the step, and then the disks
    /// that the message names. What is not known is an empty text. Of a refusal none, since it is of no job.
    pub message_arguments: Vec<String>,
    /// How bad it is.
    pub perceived_severity: PerceivedSeverity,
    /// What probably led to it, by its code.
    pub probable_cause: ProbableCause,
    /// The same in words, of the catalogue. None of a cause, which is known.
    pub probable_cause_description: Option<String>,
    /// The report's remedy, then those of the catalogue, with the job's names in them.
    pub recommended_actions: Vec<String>,
    /// The host where it happened, or the job's `InstanceID` where it is of no host. None of a refusal.
    pub error_source: Option<String>,
    /// A text for people: the class has it so, always.
    pub error_source_format: ErrorSourceFormat,
    /// None: that is for a format that has no number.
    pub other_error_source_format: Option<String>,
    /// As the outcome of a CIM operation.
    #[serde(rename = "CIMStatusCode")]
    pub cim_status_code: CimStatusCode,
    /// The name of that code.
    #[serde(rename = "CIMStatusCodeDescription")]
    pub cim_status_code_description: &'static str,
}

/// The first error of a job in CIM-XML, as `GetError` gives it; none where its first indicator is OK.
#[must_use]
pub fn get_error(status: &JobStatus, contacts: Contacts) -> Option<String> {
    MsvmError::with_contacts(status, contacts).first().map(MsvmError::to_xml)
}

/// All errors of a job in CIM-XML, as `GetErrorEx` gives them; none where its first indicator is OK.
#[must_use]
pub fn get_error_ex(status: &JobStatus, contacts: Contacts) -> Option<Vec<String>> {
    let errors = MsvmError::with_contacts(status, contacts);
    (!errors.is_empty()).then(|| errors.iter().map(MsvmError::to_xml).collect())
}

impl MsvmError {
    /// The errors of a job, the main one first; none where all is well with it, whoever is not heard of.
    #[must_use]
    pub fn of(status: &JobStatus) -> Vec<Self> {
        Self::with_contacts(status, Contacts { source: Contact::Online, target: Contact::Online })
    }

    /// The same, and then those hosts that are not heard of. Empty exactly where the job's first indicator, with these
    /// contacts, is OK.
    #[must_use]
    pub fn with_contacts(status: &JobStatus, contacts: Contacts) -> Vec<Self> {
        let condition = Condition::of(status, contacts, "");
        if condition.indicators.first().is_none_or(|(first, _)| *first == OperationalStatus::Ok) {
            return Vec::new();
        }
        let mut errors = Errors { status, told: Vec::new() };
        match Trouble::of(status) {
            Some(trouble) => {
                errors.trouble(trouble);
                errors.other_steps();
            }
            None => errors.state(condition.indicators.first().map(|(first, _)| *first)),
        }
        for (host, contact) in silent_hosts(status, contacts) {
            let code = ConditionCode::HostSilent;
            let message = format!("{host}: {}", silence(contact));
            errors.tell(code.entry(), code.into(), message, Place { host: Some(host), step: None });
        }
        errors.told
    }

    /// One reason why a request cannot become a plan.
    #[must_use]
    pub fn of_refusal(refusal: &Refusal) -> Self {
        let mut error =
            Self::new(refusal.code.entry(), refusal.code.into(), refusal.message.clone(), RemedyNames::default());
        error.recommend_first(&refusal.remedy);
        error
    }

    /// The same as a CIM-XML instance.
    #[must_use]
    pub fn to_xml(&self) -> String {
        xml::error(self)
    }

    fn new(entry: &ErrorEntry, class: ErrorClass, message: String, names: RemedyNames<'_>) -> Self {
        Self {
            error_type: class.error_type,
            other_error_type: class.other_error_type,
            owning_entity: OWNING_ENTITY,
            message_id: entry.message_id,
            message,
            message_arguments: Vec::new(),
            perceived_severity: class.severity,
            probable_cause: class.probable_cause,
            probable_cause_description: Some(entry.causes.join(" ")),
            recommended_actions: entry.remedies(names),
            error_source: None,
            error_source_format: ErrorSourceFormat::Unknown,
            other_error_source_format: None,
            cim_status_code: class.status_code,
            cim_status_code_description: class.status_code.name(),
        }
    }

    fn recommend_first(&mut self, remedy: &str) {
        if !remedy.is_empty() && !self.recommended_actions.iter().any(|action| action == remedy) {
            self.recommended_actions.insert(0, remedy.to_owned());
        }
    }
}

/// Where in a job an error is.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    host: Option<&'a HostId>,
    step: Option<StepKind>,
}

/// The records of a job, as they are made.
struct Errors<'a> {
    status: &'a JobStatus,
    told: Vec<MsvmError>,
}

impl Errors<'_> {
    fn trouble(&mut self, trouble: Trouble<'_>) {
        let step = ended_step(self.status);
        let (entry, class, host) = match trouble {
            Trouble::Reported(report) => {
                let failed = failed_steps(self.status).find(|(_, failure)| *failure == report);
                return self.report(report, failed.map(|(step, _)| step.kind).or(step));
            }
            Trouble::Cancelled => (FailureCode::Cancelled.entry(), FailureCode::Cancelled.into(), None),
            Trouble::Killed => (ConditionCode::Killed.entry(), ConditionCode::Killed.into(), None),
            Trouble::Unresolved(notice) => {
                let host = notice.and_then(|notice| notice.host.as_ref());
                (ConditionCode::Unresolved.entry(), ConditionCode::Unresolved.into(), host)
            }
        };
        self.tell(entry, class, trouble.summary().to_owned(), Place { host, step });
    }

    /// Of a job with which nothing is wrong by its events, and whose first indicator yet is not OK.
    fn state(&mut self, first: Option<OperationalStatus>) {
        let (entry, class, message) = match first {
            // The hosts are told of below.
            Some(OperationalStatus::Degraded) => return,
            Some(OperationalStatus::InService) => {
                let code = ConditionCode::InService;
                (code.entry(), code.into(), "held for service; nothing is wrong with it")
            }
            // A job that fails says why; one that did not, says at least that.
            _ => {
                let code = FailureCode::Internal;
                (code.entry(), code.into(), "the job failed, and nobody has told why")
            }
        };
        self.tell(entry, class, message.to_owned(), Place { host: None, step: ended_step(self.status) });
    }

    /// A step may have failed otherwise than the job: the target's report beside the source's, or a handover that is not
    /// resolved after a step that failed.
    fn other_steps(&mut self) {
        for (step, failure) in failed_steps(self.status) {
            if self.is_new(&failure.message) {
                self.report(failure, Some(step.kind));
            }
        }
    }

    fn report(&mut self, report: &FailureReport, step: Option<StepKind>) {
        let place = Place { host: report.host.as_ref(), step };
        let status = self.status;
        if let Some(error) = self.tell(report.code.entry(), report.code.into(), report.message.clone(), place) {
            let texts: Vec<&str> = std::iter::once(&report.message).chain(&report.causes).map(String::as_str).collect();
            error.message_arguments.extend(disks_named(&status.plan, &texts));
            error.recommend_first(&report.remedy);
        }
        // What a check has found is told whole, and not as causes.
        if let Some(check) = status.check.as_ref().filter(|check| !check.migratable) {
            return self.findings(check, place);
        }
        for cause in &report.causes {
            if self.told.len() < ERRORS_MAX && self.is_new(cause) {
                let code = ConditionCode::Cause;
                if let Some(error) = self.tell(code.entry(), code.into(), cause.trim().to_owned(), place) {
                    error.message_arguments.extend(disks_named(&status.plan, &[cause.as_str()]));
                    error.probable_cause_description = None;
                }
            }
        }
    }

    fn findings(&mut self, check: &CheckReport, place: Place<'_>) {
        let plan = &self.status.plan;
        for Finding { reason, .. } in &check.findings {
            let class = reason.code.into();
            if let Some(error) = self.tell(reason.code.entry(), class, reason.message.clone(), place) {
                error.message_arguments.extend(disks_named(plan, &[&reason.message]));
                error.recommend_first(&reason.remedy);
            }
        }
    }

    /// Whether a text says something that was not said before. An error that passes its source on repeats it word for word.
    fn is_new(&self, text: &str) -> bool {
        let text = text.trim();
        !text.is_empty() && !self.told.iter().any(|error| error.message.contains(text))
    }

    /// None where there is no room for another.
    fn tell(
        &mut self,
        entry: &ErrorEntry,
        class: ErrorClass,
        message: String,
        place: Place<'_>,
    ) -> Option<&mut MsvmError> {
        if self.told.len() >= ERRORS_MAX {
            return None;
        }
        let plan = &self.status.plan;
        let (job, host) = (self.status.job.to_string(), place.host.map(HostId::as_str));
        let names = RemedyNames {
            vm: Some(plan.vm.name.as_str()),
            job: Some(&job),
            source: Some(plan.source.id.as_str()),
            target: Some(plan.target.id.as_str()),
            host,
        };
        let mut error = MsvmError::new(entry, class, message, names);
        error.message_arguments = arguments(&job, plan, place);
        error.error_source = Some(host.map_or_else(|| format!("Sterna:{job}"), str::to_owned));
        self.told.push(error);
        self.told.last_mut()
    }
}

/// The arguments that have a place, before the disks.
fn arguments(job: &str, plan: &Plan, place: Place<'_>) -> Vec<String> {
    let host = place.host.map(ToString::to_string).unwrap_or_default();
    let step = place.step.map(|step| step.to_string()).unwrap_or_default();
    let (vm, source, target) = (plan.vm.name.to_string(), plan.source.id.to_string(), plan.target.id.to_string());
    vec![job.to_owned(), vm, source, target, host, step]
}

/// The step under way, or the last that did not end well.
fn ended_step(status: &JobStatus) -> Option<StepKind> {
    let failed = || status.steps.iter().rev().find(|step| step.state == StepState::Failed);
    status.current_step().or_else(failed).map(|step| step.kind)
}

/// The VM's disks that one of the texts speaks of, as `disk NAME`.
fn disks_named(plan: &Plan, texts: &[&str]) -> Vec<String> {
    let names = plan.vm.disks.iter().map(|disk| disk.name.as_str());
    let named = names.filter(|name| texts.iter().any(|text| names_disk(text, name)));
    named.map(str::to_owned).collect()
}

fn names_disk(text: &str, name: &str) -> bool {
    let words = format!("disk {name}");
    let goes_on = |rest: &str| rest.starts_with(|next: char| next.is_alphanumeric() || matches!(next, '-' | '_'));
    text.match_indices(&words).any(|(at, found)| !goes_on(&text[at + found.len()..]))
}
