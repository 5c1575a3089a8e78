//! `sterna replicate finalize`: the end of a replication, for good, once its VM is cut over.

use std::time::Duration;

use sterna_shared::job::{JobState, JobStatus, Refusal, RefusalCode};

use super::confirm;
use super::error::{CliError, Exit};
use super::output::Output;
use super::replicate::POLL_INTERVAL;
use super::vm::done;
use crate::client::Client;

/// How long hosts may take to let go before the command ends. They go on.
const FINALIZE_PATIENCE: Duration = Duration::from_secs(60);

/// Finalizes a replication, and waits until nothing of it is left.
pub(super) async fn finalize(
    vm: &str,
    yes: bool,
    detach: bool,
    client: &Client,
    output: Output,
) -> Result<Exit, CliError> {
    confirm(&format!("End the replication of {vm} for good, with its replica and the way back of its cutover?"), yes)?;
    let mut status = client.finalize(vm).await?.status;
    if detach {
        output.result(&serde_json::json!({ "job": status.job }), || status.job.to_string())?;
        return Ok(Exit::Ok);
    }
    let begun = tokio::time::Instant::now();
    while !status.state.is_final() {
        if begun.elapsed() > FINALIZE_PATIENCE {
            return Err(not_yet(vm, &status));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        status = client.job(status.job).await?.status;
    }
    if status.state != JobState::Completed {
        return Err(CliError::new(Exit::Cancelled, format!("the replication of {vm} was ended before all of it was gone"))
            .hint(format!("see what is left: sterna job show {}, sterna host show HOST", status.job)));
    }
    done(Ok(()), format!("{vm}: the replication is finalized; its replica and the way back are gone"), output)
}

fn not_yet(vm: &str, status: &JobStatus) -> CliError {
    let hosts = status.finalization.iter().flat_map(|of| &of.hosts).map(ToString::to_string);
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    CliError::new(Exit::Failed, format!("{vm} is being finalized, and one of its hosts still keeps something: {hosts}"))
        .hint(format!("it goes on as soon as that host is heard of; see sterna job show {}", status.job))
        .hint(format!("where a host is gone for good, end it without: sterna job cancel {}", status.job))
}

/// Why there is no way back after a cutover: its replication was finalized since.
pub(super) fn no_way_back(cutover: &JobStatus, jobs: &[JobStatus]) -> Option<CliError> {
    let (vm, target) = (&cutover.plan.vm, &cutover.plan.target.id);
    let finalized = jobs.iter().find(|job| {
        let since = job.finalization.as_ref().map(|of| of.asked_at);
        (job.plan.vm.id, &job.plan.target.id) == (vm.id, target) && since > cutover.finished_at
    })?;
    let mut error = CliError::new(Exit::Refused, format!("the cutover of {} cannot be reverted", vm.name));
    error.refusals.push(Refusal {
        code: RefusalCode::ReplicationFinalized,
        message: format!("the replication of VM {} to {target} was finalized, by job {}", vm.name, finalized.job),
        remedy: format!("move it as any other, which sends all of it: `sterna migrate {} --to HOST`", vm.name),
    });
    Some(error)
}
