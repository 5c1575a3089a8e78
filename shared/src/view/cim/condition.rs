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
//! the error code is 0 exactly where the first indicator is OK, Degraded or In Service, and there is an error record of these
//! two as well (`error`).

use crate::bus::HostView;
use crate::id::HostId;
use crate::job::{FailureCode, FailureReport, JobState, JobStatus, MoveMode, Notice, Plan, StepKind, StepStatus};

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
        let row = row(status, Trouble::of(status).is_some());
        let mut first = row.first;
        let mut condition = Self {
            indicators: Vec::new(),
            health: row.health,
            communication: CommunicationStatus::NotAvailable,
            detailed: row.detailed,
            operating: row.operating,
            primary: row.primary,
        };
        let silent = silent(status, contacts);
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

/// What is wrong with a job, as its events tell.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trouble<'a> {
    /// It fails, or has failed.
    Reported(&'a FailureReport),
    /// It was cancelled: a client that does so finds an error there, as CIM has it.
    Cancelled,
    /// It was ended at once.
    Killed,
    /// It waits for its handover, and why.
    Unresolved(Option<&'a Notice>),
}

impl<'a> Trouble<'a> {
    pub(super) fn of(status: &'a JobStatus) -> Option<Self> {
        let step_failure = || failed_steps(status).next().map(|(_, failure)| failure);
        match status.state {
            JobState::New
            | JobState::Starting
            | JobState::Running
            | JobState::Suspended
            | JobState::Service
            | JobState::Completed => None,
            JobState::Terminated => Some(Self::Cancelled),
            JobState::Killed => Some(Self::Killed),
            JobState::QueryPending if status.is_unresolved() => Some(Self::Unresolved(unresolved(status))),
            JobState::QueryPending => status.failure.as_ref().map(Self::Reported),
            JobState::ShuttingDown => step_failure().map(Self::Reported),
            JobState::Exception => status.failure.as_ref().or_else(step_failure).map(Self::Reported),
        }
    }

    /// In one sentence.
    pub(super) fn summary(self) -> &'a str {
        match self {
            Self::Reported(report) => &report.message,
            Self::Cancelled => "cancelled; the VM is as it was",
            Self::Killed => "ended at once; something may be left to clean",
            Self::Unresolved(notice) => notice.map_or("the handover is not resolved", |notice| &notice.text),
        }
    }
}

/// Why a job failed or cannot go on, as the properties of the job itself have it.
pub(super) struct Fault {
    pub(super) code: ErrorCode,
    /// In one sentence.
    pub(super) summary: String,
    /// With causes, place and remedy.
    pub(super) description: String,
}

impl Fault {
    pub(super) fn of(status: &JobStatus) -> Option<Self> {
        let trouble = Trouble::of(status)?;
        let summary = trouble.summary().to_owned();
        let (code, description) = match trouble {
            Trouble::Reported(report) => (report.code.into(), described(report)),
            Trouble::Cancelled | Trouble::Killed => (ErrorCode::Cancelled, summary.clone()),
            Trouble::Unresolved(_) => {
                let remedy = "if a host is gone for good: sterna vm resolve";
                (ErrorCode::Unresolved, format!("{summary}; {remedy}"))
            }
        };
        Some(Self { code, summary, description })
    }
}

fn described(report: &FailureReport) -> String {
    let mut description = report.to_string();
    if let Some(host) = &report.host {
        description = format!("{host}: {description}");
    }
    if !report.remedy.is_empty() {
        description = format!("{description}; {}", report.remedy);
    }
    description
}

/// Why the handover waits: the notice that came with the state. The last one, where none has its instant.
fn unresolved(status: &JobStatus) -> Option<&Notice> {
    let with_the_state = status.notices.iter().find(|notice| notice.at == status.changed_at);
    with_the_state.or(status.notices.last())
}

/// The steps that failed, each with its report; not those that a cancel ended.
pub(super) fn failed_steps(status: &JobStatus) -> impl Iterator<Item = (&StepStatus, &FailureReport)> {
    let failures = status.steps.iter().filter_map(|step| Some((step, step.failure.as_ref()?)));
    failures.filter(|(_, failure)| failure.code != FailureCode::Cancelled)
}

/// The hosts that are not heard of, those that once were first; of a job that is over none.
pub(super) fn silent_hosts(status: &JobStatus, contacts: Contacts) -> Vec<(&HostId, Contact)> {
    let plan = &status.plan;
    let mut hosts = vec![(&plan.source.id, contacts.source)];
    if plan.target.id != plan.source.id {
        hosts.push((&plan.target.id, contacts.target));
    }
    hosts.retain(|(_, contact)| *contact != Contact::Online && !status.state.is_final());
    hosts.sort_by_key(|(_, contact)| *contact == Contact::Never);
    hosts
}

/// What is told of a host in that contact.
pub(super) fn silence(contact: Contact) -> &'static str {
    match contact {
        Contact::Online => "heard of",
        Contact::Lost => "not heard of lately",
        Contact::Never => "never heard of",
    }
}

/// An indicator for each way of not being heard of, with the hosts that it is about.
fn silent(status: &JobStatus, contacts: Contacts) -> Vec<(OperationalStatus, String)> {
    let hosts = silent_hosts(status, contacts);
    let with = |wanted, indicator| {
        let names: Vec<&str> = hosts.iter().filter(|host| host.1 == wanted).map(|host| host.0.as_str()).collect();
        (!names.is_empty()).then(|| (indicator, format!("{}: {}", names.join(", "), silence(wanted))))
    };
    let lost = with(Contact::Lost, OperationalStatus::LostCommunication);
    let never = with(Contact::Never, OperationalStatus::NoContact);
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
        JobState::Running if status.throttled => Row {
            detailed: DetailedStatus::Stressed,
            ..well(Some((Indicator::Stressed, "the guest's writes are held back")), movement(status))
        },
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
                false => {
                    (Indicator::SupportingEntityInError, "the target cannot take it as planned; an answer is needed")
                }
            }),
            health: HealthState::MajorFailure,
            detailed: DetailedStatus::SupportingEntityInError,
            operating: OperatingStatus::Transitioning,
            primary: PrimaryStatus::Error,
        },
    }
}

/// Where the VM is on its way, by the step under way: it is moved while it is copied, leaves the source from the pause on, and
/// has come to the target once only the source's copy is left. Disks that move under a VM that stays move it nowhere, nor does a
/// planned VM that is made for it, and a check moves nothing at all.
fn movement(status: &JobStatus) -> OperatingStatus {
    match status.current_step().map(|step| step.kind) {
        // It is tried out whether it could.
        _ if status.plan.kind.only_looks() => OperatingStatus::InTest,
        _ if status.plan.mode == MoveMode::Storage || !status.plan.moves() => OperatingStatus::InService,
        None | Some(StepKind::Prepare | StepKind::CopyDisks | StepKind::CopyMemory) => OperatingStatus::Migrating,
        Some(StepKind::Switchover | StepKind::ShutDown | StepKind::Prove | StepKind::Handover) => {
            OperatingStatus::Emigrating
        }
        Some(StepKind::Release) => OperatingStatus::Immigrating,
        Some(StepKind::ReadDisks | StepKind::Check) => OperatingStatus::InTest,
        Some(StepKind::Commit | StepKind::CloneDisks | StepKind::AdaptOs | StepKind::Instantiate | StepKind::Probe) => {
            OperatingStatus::InService
        }
    }
}
