//! `Operation`: what has become of a request, as `google.longrunning` has it.
//!
//! One that makes a job is done as soon as the job is there and has begun, and **not when the job is over**; the job is what tells
//! of that. One that finalizes a replication is done when nothing is left of it.

use serde::Serialize;

use crate::job::{JobKind, JobStatus};
use crate::time::Timestamp;

use super::clone_job::CloneJob;
use super::cutover_job::CutoverJob;
use super::error::{RpcCode, RpcStatus};
use super::migrating_vm::MigratingVm;
use super::name::{MigratingVmName, OperationName};
use super::wellknown::{Empty, ProtoTimestamp, Unset, resource};

/// The version of Google's interface that is told.
const API_VERSION: &str = "v1";

resource! {
    /// An operation. Where it is done it has an error or a response.
    Operation {
        /// Its name.
        name: OperationName = "name",
        /// What it is about.
        metadata: AnyMetadata = "metadata",
        /// Whether it is over.
        done: bool = "done",
        /// Why it came to nothing.
        error: Option<RpcStatus> = "error",
        /// What came of it.
        response: Option<OperationResponse> = "response",
    }
}

resource! {
    /// What an operation is about.
    OperationMetadata {
        /// When it was asked for.
        create_time: ProtoTimestamp = "createTime",
        /// When it was done.
        end_time: Option<ProtoTimestamp> = "endTime",
        /// The name of what it makes or changes.
        target: String = "target",
        /// What it does with that.
        verb: &'static str = "verb",
        /// The state of its job.
        status_message: String = "statusMessage",
        /// Whether somebody has called it off.
        requested_cancellation: bool = "requestedCancellation",
        /// The version of the interface.
        api_version: &'static str = "apiVersion",
    }
}

/// The metadata, with its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "@type")]
pub enum AnyMetadata {
    /// The only one that there is.
    #[serde(rename = "type.googleapis.com/google.cloud.vmmigration.v1.OperationMetadata")]
    Operation(OperationMetadata),
}

/// What came of an operation, with its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "@type")]
pub enum OperationResponse {
    /// A clone job, which goes on.
    #[serde(rename = "type.googleapis.com/google.cloud.vmmigration.v1.CloneJob")]
    CloneJob(Box<CloneJob>),
    /// A cutover job, which goes on.
    #[serde(rename = "type.googleapis.com/google.cloud.vmmigration.v1.CutoverJob")]
    CutoverJob(Box<CutoverJob>),
    /// A replication, which goes on.
    #[serde(rename = "type.googleapis.com/google.cloud.vmmigration.v1.MigratingVm")]
    MigratingVm(Box<MigratingVm>),
    /// Nothing of a replication is left.
    #[serde(rename = "type.googleapis.com/google.cloud.vmmigration.v1.FinalizeMigrationResponse")]
    Finalized(Empty),
}

impl Unset for AnyMetadata {
    fn is_unset(&self) -> bool {
        false
    }
}

impl Operation {
    /// The operation that has made a job, which is told as `made`.
    pub(super) fn creating(of: &MigratingVmName, status: &JobStatus, target: String, made: OperationResponse) -> Self {
        // A replication is there as soon as it is submitted, whenever its first cycle is; what else is over before it has begun has
        // come to nothing.
        let began_at =
            if status.plan.kind == JobKind::Replicate { Some(status.submitted_at) } else { status.started_at };
        let failed = if began_at.is_none() { why(status) } else { None };
        let (name, over_at) = (of.operation(status.job), began_at.or(status.finished_at));
        Self::of(name, status, "create", target, (status.submitted_at, over_at), failed.map_or(Ok(made), Err))
    }

    /// The operation that finalizes a replication; none of one that is not finalized.
    pub(super) fn finalizing(of: &MigratingVmName, status: &JobStatus) -> Option<Self> {
        let times = (status.finalization.as_ref()?.asked_at, status.finished_at);
        let outcome = why(status).map_or(Ok(OperationResponse::Finalized(Empty {})), Err);
        Some(Self::of(of.finalization(status.job), status, "finalize", of.to_string(), times, outcome))
    }

    fn of(
        name: OperationName,
        status: &JobStatus,
        verb: &'static str,
        target: String,
        (asked_at, over_at): (Timestamp, Option<Timestamp>),
        outcome: Result<OperationResponse, RpcStatus>,
    ) -> Self {
        let metadata = OperationMetadata {
            create_time: asked_at.into(),
            end_time: over_at.map(ProtoTimestamp),
            target,
            verb,
            status_message: status.state.to_string(),
            requested_cancellation: outcome.as_ref().is_err_and(|error| error.code == RpcCode::Cancelled),
            api_version: API_VERSION,
        };
        let (response, error) = match outcome {
            _ if over_at.is_none() => (None, None),
            Ok(response) => (Some(response), None),
            Err(error) => (None, Some(error)),
        };
        Self { name, metadata: AnyMetadata::Operation(metadata), done: over_at.is_some(), error, response }
    }

    /// What it is about.
    #[must_use]
    pub fn metadata(&self) -> &OperationMetadata {
        let AnyMetadata::Operation(metadata) = &self.metadata;
        metadata
    }
}

/// Why a job is over that has not done what it should.
fn why(status: &JobStatus) -> Option<RpcStatus> {
    RpcStatus::of_job(status).or_else(|| RpcStatus::of_end(&status.plan, status.state, "the job", status.finished_at?))
}
