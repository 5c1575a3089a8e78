//! `sterna replicate extend` and `finalize`: how long a replication lasts, and its end for good, once its VM is cut over.

use std::time::Duration;

use sterna_shared::id::VmName;
use sterna_shared::job::{EXTENSION_MAX_SECONDS, JobState, JobStatus, Refusal, RefusalCode};
use sterna_shared::replica::ReplicaView;
use sterna_shared::time::Timestamp;

use super::error::{CliError, Exit};
use super::output::{Output, moment};
use super::replicate::POLL_INTERVAL;
use super::vm::done;
use super::{confirm, now, schedule};
use crate::client::Client;

/// How long hosts may take to let go before the command ends. They go on.
const FINALIZE_PATIENCE: Duration = Duration::from_secs(60);

/// Pushes back when a replication expires.
pub(super) async fn extend(vm: &str, by: Option<u32>, client: &Client, output: Output) -> Result<Exit, CliError> {
    let status = client.extend(vm, by).await?.status;
    let until = status.policy.expiration.map_or_else(String::new, |of| moment(of.at));
    done(Ok(()), format!("{vm}: the replication expires at {until}"), output)
}

/// When a replication expires, for people.
pub(super) fn expiry(view: &ReplicaView) -> String {
    match view.expires_at.map(moment) {
        Some(at) if view.expires_soon => format!("{at}, soon"),
        Some(at) => at,
        None => "-".to_owned(),
    }
}

/// An instant, or a span of time from now on.
pub(super) fn parse_expiry(text: &str) -> Result<Timestamp, String> {
    let after =
        |seconds: u32| Timestamp::from_unix_microseconds(now().unix_microseconds() + i64::from(seconds) * 1_000_000);
    let at = schedule::parse_seconds(text).map(after).or_else(|| text.parse().ok());
    at.ok_or_else(|| "give a time such as 2026-12-01T02:00:00Z, or a number with s, m, h or d".to_owned())
}

pub(super) fn parse_extension(text: &str) -> Result<u32, String> {
    schedule::parse_seconds(text)
        .filter(|seconds| (1..=EXTENSION_MAX_SECONDS).contains(seconds))
        .ok_or_else(|| format!("give a number with s, m, h or d, from 1s to {}d", EXTENSION_MAX_SECONDS / 86_400))
}

/// Finalizes a replication, and waits until nothing of it is left.
pub(super) async fn finalize(
    vm: &str,
    yes: bool,
    detach: bool,
    client: &Client,
    output: Output,
) -> Result<Exit, CliError> {
    confirm(&format!("End the replication of {vm} for good, with its replica and the way back of its cutover?"), yes)?;
    let status = client.finalize(vm).await?.status;
    if detach {
        output.result(&serde_json::json!({ "job": status.job }), || status.job.to_string())?;
        return Ok(Exit::Ok);
    }
    done(Ok(()), until_gone(*status, client).await?, output)
}

/// Waits until nothing of a replication is left that is being finalized, and says so.
pub(super) async fn until_gone(mut status: JobStatus, client: &Client) -> Result<String, CliError> {
    let vm = status.plan.vm.name.clone();
    let begun = tokio::time::Instant::now();
    while !status.state.is_final() {
        if begun.elapsed() > FINALIZE_PATIENCE {
            return Err(not_yet(&vm, &status));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        status = *client.job(status.job).await?.status;
    }
    if status.state != JobState::Completed {
        return Err(CliError::new(
            Exit::Cancelled,
            format!("the replication of {vm} was ended before all of it was gone"),
        )
        .hint(format!("see what is left: sterna job show {}, sterna host show HOST", status.job)));
    }
    Ok(format!("{vm}: the replication is finalized; its replica and the way back are gone"))
}

fn not_yet(vm: &VmName, status: &JobStatus) -> CliError {
    let hosts = status.finalization.iter().flat_map(|of| &of.hosts).map(ToString::to_string);
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    CliError::new(Exit::Failed, format!("{vm} is being finalized, and one of its hosts still keeps something: {hosts}"))
        .hint(format!(
            "it goes on as soon as that host and the VM's own are heard of; see sterna job show {}",
            status.job
        ))
        .hint(format!("where a host is gone for good, end it without: sterna job cancel {}", status.job))
}

/// Why there is no way back after a cutover: its replication was finalized since.
pub(super) fn no_way_back(cutover: &JobStatus, jobs: &[JobStatus]) -> Option<CliError> {
    let (vm, target) = (&cutover.plan.vm, &cutover.plan.target.id);
    let finalized = jobs.iter().find(|job| {
        let since = job.finalization.as_ref().map(|of| of.asked_at);
        let holds = job.is_finalizing() || job.state == JobState::Completed;
        (job.plan.vm.id, &job.plan.target.id) == (vm.id, target) && since > Some(cutover.submitted_at) && holds
    })?;
    let mut error = CliError::new(Exit::Refused, format!("the cutover of {} cannot be reverted", vm.name));
    error.refusals.push(Refusal {
        code: RefusalCode::ReplicationFinalized,
        message: format!("the replication of VM {} to {target} was finalized, by job {}", vm.name, finalized.job),
        remedy: format!("move it as any other, which sends all of it: `sterna migrate {} --to HOST`", vm.name),
    });
    Some(error)
}
