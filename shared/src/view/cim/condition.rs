//! How a job is doing, in the eight ways in which CIM asks: one row a state, and on top of it the contact with the hosts.
//!
//! ```text
//!   state ──▶ row ──┐
//!                   ├─▶ OperationalStatus[] StatusDescriptions[] Status HealthState PrimaryStatus DetailedStatus
//!   contacts ───────┘   OperatingStatus CommunicationStatus
//! ```
//!
//! A host that is not heard of degrades a job that would be well, and is told beside what is wrong with one that is not: the
//! move goes on without coordinators, but nobody here knows how far. Of a job that is over no contact is told, since nothing
//! of it depends on its hosts any more. A reader asks for the error where the first indicator is not OK; so that he finds one,
//! the error code is 0 exactly where the first indicator is OK, Degraded or In Service.

use crate::bus::HostView;
use crate::id::HostId;
use crate::job::{FailureCode, FailureReport, JobState, JobStatus, MoveMode, Plan, StepKind};

use super::values::{
    CommunicationStatus, DetailedStatus, ErrorCode, HealthState, OperatingStatus, OperationalStatus, PrimaryStatus,
};

/// Whether a host is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// Lately.
    Online,
    /// Once, and not lately.
    Lost,
    /// Never, as far as the coordinators know.
    Never,
}

/// The contact with the two hosts of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contacts {
    /// With the source.
    pub source: Contact,
    /// With the target. The same in a storage move.
    pub target: Contact,
}

impl Contacts {
    /// Of a plan's hosts, as the coordinators' list of all hosts tells.
    #[must_use]
    pub fn of(plan: &Plan, hosts: &[HostView]) -> Self {
        let contact = |id: &HostId| match hosts.iter().find(|host| host.inventory.host == *id) {
            Some(host) if host.online => Contact::Online,
            Some(_) => Contact::Lost,
            None => Contact::Never,
        };
        Self { source: contact(&plan.source.id), target: contact(&plan.target.id) }
    }
}

/// How a job is doing.
pub(super) struct Condition {
    /// Each with its description; the first counts, and there always is one.
    pub(super) indicators: Vec<(OperationalStatus, String)>,
    pub(super) health: HealthState,
    pub(super) communication: CommunicationStatus,
    pub(super) detailed: DetailedStatus,
    pub(super) operating: OperatingStatus,
    pub(super) primary: PrimaryStatus,
}

impl Condition {
    /// `told` describes the first indicator: what the job says of itself.
    pub(super) fn of(status: &JobStatus, contacts: Contacts, told: &str) -> Self {
        let row = row(status, Fault::of(status).is_some());
        let mut first = row.first;
        let mut condition = Self {
            indicators: Vec::new(),
            health: row.health,
            communication: CommunicationStatus::NotAvailable,
            detailed: row.detailed,
            operating: row.operating,
            primary: row.primary,
        };
        let silent = if status.state.is_final() { Vec::new() } else { silent(&status.plan, contacts) };
        if !status.state.is_final() {
            condition.communication = silent.first().map_or(CommunicationStatus::Ok, |(contact, _)| match contact {
                OperationalStatus::NoContact => CommunicationStatus::NoContact,
                _ => CommunicationStatus::Lost,
            });
        }
        if first == OperationalStatus::Ok && !silent.is_empty() {
            first = OperationalStatus::Degraded;
            condition.health = HealthState::Degraded;
            condition.detailed = DetailedStatus::SupportingEntityInError;
            condition.primary = PrimaryStatus::Degraded;
        }
        condition.indicators.push((first, told.to_owned()));
        condition.indicators.extend(row.second.map(|(second, words)| (second, words.to_owned())));
        condition.indicators.extend(silent);
        condition
    }
}

/// Why a job failed or cannot go on.
pub(super) struct Fault {
    pub(super) code: ErrorCode,
    /// In one sentence.
    pub(super) summary: String,
    /// With causes, place and remedy.
    pub(super) description: String,
}

impl Fault {
    pub(super) fn of(status: &JobStatus) -> Option<Self> {
        let plain = |code, text: &str| Self { code, summary: text.to_owned(), description: text.to_owned() };
        match status.state {
            JobState::New
            | JobState::Starting
            | JobState::Running
            | JobState::Suspended
            | JobState::Service
            | JobState::Completed => None,
            // A client that cancels a job finds an error there, as CIM has it.
            JobState::Terminated => Some(plain(ErrorCode::Cancelled, "cancelled; the VM is as it was")),
            JobState::Killed => Some(plain(ErrorCode::Cancelled, "ended at once; something may be left to clean")),
            JobState::QueryPending if !status.is_unresolved() => status.failure.as_ref().map(Self::reported),
            JobState::QueryPending => {
                let reason = unresolved(status).unwrap_or("the handover is not resolved");
                let remedy = "if a host is gone for good: sterna vm resolve";
                Some(Self { description: format!("{reason}; {remedy}"), ..plain(ErrorCode::Unresolved, reason) })
            }
            JobState::ShuttingDown => step_failure(status).map(Self::reported),
            JobState::Exception => status.failure.as_ref().or_else(|| step_failure(status)).map(Self::reported),
        }
    }

    fn reported(report: &FailureReport) -> Self {
        let mut description = report.to_string();
        if let Some(host) = &report.host {
            description = format!("{host}: {description}");
        }
        if !report.remedy.is_empty() {
            description = format!("{description}; {}", report.remedy);
        }
        Self { code: report.code.into(), summary: report.message.clone(), description }
    }
}

/// Why the handover waits: the notice that came with the state. The last one, where none has its instant.
fn unresolved(status: &JobStatus) -> Option<&str> {
    let with_the_state = status.notices.iter().find(|notice| notice.at == status.changed_at);
    with_the_state.or(status.notices.last()).map(|notice| notice.text.as_str())
}

/// The failure that a job unwinds from; none where a cancel ended the step.
fn step_failure(status: &JobStatus) -> Option<&FailureReport> {
    let mut failures = status.steps.iter().filter_map(|step| step.failure.as_ref());
    failures.find(|failure| failure.code != FailureCode::Cancelled)
}

/// The hosts that are not heard of, those that once were first.
fn silent(plan: &Plan, contacts: Contacts) -> Vec<(OperationalStatus, String)> {
    let mut hosts = vec![(&plan.source.id, contacts.source)];
    if plan.target.id != plan.source.id {
        hosts.push((&plan.target.id, contacts.target));
    }
    let with = |wanted, indicator, words: &str| {
        let names: Vec<&str> = hosts.iter().filter(|host| host.1 == wanted).map(|host| host.0.as_str()).collect();
        (!names.is_empty()).then(|| (indicator, format!("{}: {words}", names.join(", "))))
    };
    let lost = with(Contact::Lost, OperationalStatus::LostCommunication, "not heard of lately");
    let never = with(Contact::Never, OperationalStatus::NoContact, "never heard of");
    lost.into_iter().chain(never).collect()
}

/// What a state alone says.
struct Row {
    first: OperationalStatus,
    second: Option<(OperationalStatus, &'static str)>,
    health: HealthState,
    detailed: DetailedStatus,
    operating: OperatingStatus,
    primary: PrimaryStatus,
}

fn row(status: &JobStatus, failing: bool) -> Row {
    use OperationalStatus as Indicator;
    let well = |second, operating| Row {
        first: Indicator::Ok,
        second,
        health: HealthState::Ok,
        detailed: DetailedStatus::NoAdditionalInformation,
        operating,
        primary: PrimaryStatus::Ok,
    };
    let stopping = Some((Indicator::Stopping, "what the move put up is taken away"));
    match status.state {
        JobState::New => well(Some((Indicator::Dormant, "no agent has taken it on")), OperatingStatus::Dormant),
        JobState::Starting => well(Some((Indicator::Starting, "no step has begun")), OperatingStatus::Starting),
        JobState::Running => well(None, movement(status)),
        JobState::Suspended => well(Some((Indicator::Stopped, "it can go on")), OperatingStatus::Stopped),
        JobState::ShuttingDown if failing => Row {
            first: Indicator::Error,
            second: stopping,
            health: HealthState::MajorFailure,
            detailed: DetailedStatus::NonRecoverableError,
            operating: OperatingStatus::Stopping,
            primary: PrimaryStatus::Error,
        },
        JobState::ShuttingDown => well(stopping, OperatingStatus::Stopping),
        JobState::Completed => well(Some((Indicator::Completed, "it is over")), OperatingStatus::Completed),
        JobState::Terminated => Row { first: Indicator::Stopped, ..well(None, OperatingStatus::Stopped) },
        JobState::Killed => Row {
            first: Indicator::Stopped,
            second: Some((Indicator::Aborted, "something may be left to clean")),
            health: HealthState::Degraded,
            detailed: DetailedStatus::Stressed,
            operating: OperatingStatus::Aborted,
            primary: PrimaryStatus::Degraded,
        },
        // Not the last grade of health: what the target has received may serve the next move.
        JobState::Exception => Row {
            first: Indicator::Error,
            second: Some((Indicator::Completed, "it is over")),
            health: HealthState::CriticalFailure,
            detailed: DetailedStatus::NonRecoverableError,
            operating: OperatingStatus::Completed,
            primary: PrimaryStatus::Error,
        },
        JobState::Service => Row { first: Indicator::InService, ..well(None, OperatingStatus::Servicing) },
        // An error although the job may yet complete: the guest stands still, or the target cannot take it.
        JobState::QueryPending => Row {
            first: Indicator::Error,
            second: Some(match status.is_unresolved() {
                true => (Indicator::SupportingEntityInError, "the hosts cannot settle which of them runs the VM"),
                false => (Indicator::SupportingEntityInError, "the target cannot take it as planned; an answer is needed"),
            }),
            health: HealthState::MajorFailure,
            detailed: DetailedStatus::SupportingEntityInError,
            operating: OperatingStatus::Transitioning,
            primary: PrimaryStatus::Error,
        },
    }
}

/// Where the VM is on its way, by the step under way: it is moved while it is copied, leaves the source from the pause on, and
/// has come to the target once only the source's copy is left. Disks that move under a VM that stays move it nowhere.
fn movement(status: &JobStatus) -> OperatingStatus {
    match status.current_step().map(|step| step.kind) {
        _ if status.plan.mode == MoveMode::Storage => OperatingStatus::InService,
        None | Some(StepKind::Prepare | StepKind::CopyDisks | StepKind::CopyMemory) => OperatingStatus::Migrating,
        Some(StepKind::Switchover | StepKind::Prove | StepKind::Handover) => OperatingStatus::Emigrating,
        Some(StepKind::Release) => OperatingStatus::Immigrating,
    }
}
