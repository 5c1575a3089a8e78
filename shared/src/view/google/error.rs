//! Errors as Google tells them: a `google.rpc.Status`, whose details say what Sterna's failure report says.
//!
//! ```text
//!   FailureReport.code    ─▶ Status.code             what kind of error it is to any program: one row a code
//!                         ─▶ MigrationError.code     what it is about: a clone, the source of a replication, its target
//!                .message ─▶ errorMessage, Status.message
//!                .remedy  ─▶ actionItem
//!   the catalogue's id    ─▶ ErrorInfo.metadata      with the host, for programs that know Sterna
//! ```

use std::collections::BTreeMap;

use serde::Serialize;

use crate::job::{FailureCode, FailureReport, JobKind, JobState, JobStatus, Notice, Plan};
use crate::time::Timestamp;

use super::values::{MigrationErrorCode, MigrationWarningCode};
use super::wellknown::{ProtoTimestamp, Unset, resource};

/// The language of all texts.
pub const LOCALE: &str = "en-US";
/// Who gives the reasons of errors their meaning.
pub const ERROR_DOMAIN: &str = "sterna";

resource! {
    /// `google.rpc.Status`.
    RpcStatus {
        /// What kind of error it is; JSON has the number.
        code: RpcCode = "code",
        /// What happened, with what led to it.
        message: String = "message",
        /// The same for programs.
        details: Vec<ErrorDetail> = "details",
    }
}

/// `google.rpc.Code`: the kinds of errors there are. In JSON they are numbers, since the field of the status is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum RpcCode {
    /// It was cancelled.
    Cancelled = 1,
    /// It took too long.
    DeadlineExceeded = 4,
    /// There is no room for it.
    ResourceExhausted = 8,
    /// Things are not as it needs them to be.
    FailedPrecondition = 9,
    /// Something else came between.
    Aborted = 10,
    /// Something that ought to work did not.
    Internal = 13,
    /// Somebody could not be reached.
    Unavailable = 14,
    /// Data could not be read, or are not what they were.
    DataLoss = 15,
}

/// One of the details of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "@type")]
pub enum ErrorDetail {
    /// What Google's programs look at.
    #[serde(rename = "type.googleapis.com/google.cloud.vmmigration.v1.MigrationError")]
    Migration(MigrationError),
    /// What tells errors apart.
    #[serde(rename = "type.googleapis.com/google.rpc.ErrorInfo")]
    Info(ErrorInfo),
}

resource! {
    /// An error of a migration.
    MigrationError {
        /// What it is about.
        code: MigrationErrorCode = "code",
        /// What happened.
        error_message: LocalizedMessage = "errorMessage",
        /// What to do about it; none where the report says nothing.
        action_item: Option<LocalizedMessage> = "actionItem",
        /// Where there is more to read. None: docs/errors.md has no address that holds for every reader.
        help_links: Vec<HelpLink> = "helpLinks",
        /// When it occurred.
        error_time: ProtoTimestamp = "errorTime",
    }
}

resource! {
    /// `google.rpc.ErrorInfo`.
    ErrorInfo {
        /// The code of the report, in capitals.
        reason: String = "reason",
        /// [`ERROR_DOMAIN`].
        domain: &'static str = "domain",
        /// The id in the catalogue, and the host where it happened.
        metadata: BTreeMap<&'static str, String> = "metadata",
    }
}

resource! {
    /// A warning of a migration.
    MigrationWarning {
        /// What it is about. Google has a value for one thing only, and that is not built yet.
        code: MigrationWarningCode = "code",
        /// What there is to know.
        warning_message: LocalizedMessage = "warningMessage",
        /// What to do about it. None: a notice is a sentence.
        action_item: Option<LocalizedMessage> = "actionItem",
        /// Where there is more to read. None likewise.
        help_links: Vec<HelpLink> = "helpLinks",
        /// When it was told.
        warning_time: ProtoTimestamp = "warningTime",
    }
}

resource! {
    /// A text in a language.
    LocalizedMessage {
        /// The language: [`LOCALE`].
        locale: &'static str = "locale",
        /// The text.
        message: String = "message",
    }
}

resource! {
    /// Where there is more to read.
    HelpLink {
        /// What it is.
        description: String = "description",
        /// Where it is.
        url: String = "url",
    }
}

impl Unset for RpcCode {
    fn is_unset(&self) -> bool {
        false
    }
}

impl Serialize for RpcCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.number().serialize(serializer)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for RpcCode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RpcCode".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "integer", "minimum": 1, "maximum": 16 })
    }
}

impl LocalizedMessage {
    fn new(message: &str) -> Self {
        Self { locale: LOCALE, message: message.to_owned() }
    }
}

impl RpcCode {
    /// Google's number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl From<FailureCode> for RpcCode {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::Cancelled | FailureCode::Suspended => Self::Cancelled,
            FailureCode::LinkLost => Self::Unavailable,
            FailureCode::DiskRead | FailureCode::DigestMismatch => Self::DataLoss,
            FailureCode::PoolFull | FailureCode::PoolNearlyFull => Self::ResourceExhausted,
            FailureCode::BlackoutExceeded | FailureCode::GuestNotShutDown | FailureCode::Unhealthy => {
                Self::DeadlineExceeded
            }
            FailureCode::AgentRestarted => Self::Aborted,
            FailureCode::TargetRefused | FailureCode::PlanStale | FailureCode::NotMigratable => {
                Self::FailedPrecondition
            }
            FailureCode::PeerMisbehaved
            | FailureCode::DiskWrite
            | FailureCode::Hypervisor
            | FailureCode::MemoryCopy
            | FailureCode::OsAdaptation
            | FailureCode::Journal
            | FailureCode::Internal => Self::Internal,
        }
    }
}

impl MigrationErrorCode {
    /// What a failure is about, of a job with such a plan. What the target refuses is the target's, whoever tells of it; of
    /// other failures the host where they happened decides, and where there is none, what the code says.
    #[must_use]
    pub fn of(plan: &Plan, failure: &FailureReport) -> Self {
        match (plan.kind, failure.code) {
            (JobKind::Clone, FailureCode::OsAdaptation) => return Self::OsAdaptation,
            (JobKind::Clone, _) => return Self::Clone,
            (JobKind::Cutover, _) => return Self::Cutover,
            (JobKind::Replicate, FailureCode::TargetRefused | FailureCode::PoolFull) => return Self::TargetReplication,
            (JobKind::Replicate, _) => {}
            // Google has none of these jobs.
            (
                JobKind::Move
                | JobKind::Check
                | JobKind::DeepCheck
                | JobKind::Stage
                | JobKind::Rehearse
                | JobKind::Verify,
                _,
            ) => {
                return Self::Unknown;
            }
        }
        match &failure.host {
            Some(host) if *host == plan.target.id => Self::TargetReplication,
            Some(host) if *host == plan.source.id => Self::SourceReplication,
            _ => match failure.code {
                FailureCode::DiskWrite => Self::TargetReplication,
                FailureCode::DiskRead | FailureCode::PlanStale => Self::SourceReplication,
                _ => Self::Unknown,
            },
        }
    }
}

impl RpcStatus {
    /// A failure of a job with such a plan, at that time.
    #[must_use]
    pub fn of(plan: &Plan, failure: &FailureReport, at: Timestamp) -> Self {
        let migration = MigrationError {
            code: MigrationErrorCode::of(plan, failure),
            error_message: LocalizedMessage::new(&failure.message),
            action_item: (!failure.remedy.is_empty()).then(|| LocalizedMessage::new(&failure.remedy)),
            help_links: Vec::new(),
            error_time: at.into(),
        };
        let entry = failure.code.entry();
        let mut metadata = BTreeMap::from([("messageId", entry.message_id.to_owned())]);
        if let Some(host) = &failure.host {
            metadata.insert("host", host.to_string());
        }
        let info = ErrorInfo { reason: entry.name.to_uppercase(), domain: ERROR_DOMAIN, metadata };
        Self {
            code: failure.code.into(),
            message: failure.to_string(),
            details: vec![ErrorDetail::Migration(migration), ErrorDetail::Info(info)],
        }
    }

    /// That somebody has ended a job of such a plan, which is called `what`: the error of a state that has none of its own.
    #[must_use]
    pub fn of_end(plan: &Plan, state: JobState, what: &str, at: Timestamp) -> Option<Self> {
        let how = match state {
            JobState::Terminated => "cancelled",
            JobState::Killed => "ended at once",
            _ => return None,
        };
        let failure = FailureReport {
            code: FailureCode::Cancelled,
            message: format!("{what} was {how}"),
            causes: Vec::new(),
            remedy: String::new(),
            host: None,
        };
        Some(Self::of(plan, &failure, at))
    }

    /// Why a job failed, or waits for an answer; none where it did not and does not.
    #[must_use]
    pub fn of_job(status: &JobStatus) -> Option<Self> {
        let failure = status.failure.as_ref()?;
        Some(Self::of(&status.plan, failure, status.finished_at.unwrap_or(status.changed_at)))
    }
}

impl From<&Notice> for MigrationWarning {
    fn from(notice: &Notice) -> Self {
        Self {
            code: MigrationWarningCode::Unspecified,
            warning_message: LocalizedMessage::new(&notice.text),
            action_item: None,
            help_links: Vec::new(),
            warning_time: notice.at.into(),
        }
    }
}
