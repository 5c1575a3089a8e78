//! `sterna replicate pause` and `resume`, of one replication or of each in a group.

use sterna_shared::job::{JobStatus, RequestedState, ReturnCode};
use sterna_shared::replica::ReplicaState;

use crate::cli::error::{CliError, Exit};
use crate::cli::lifetime;
use crate::client::Client;

/// Stops a replication until it is resumed, and says so. The cycle under way is cancelled.
pub(in crate::cli) async fn pause(replication: &JobStatus, client: &Client) -> Result<String, CliError> {
    ask_for(replication, RequestedState::Suspend, client).await?;
    // Asked for anew: a cycle may have begun just before.
    let status = client.job(replication.job).await?.status;
    if let Some(cycle) = status.runs.current() {
        let cancelled = client.cancel(cycle).await;
        // It may have come to its end meanwhile.
        if cancelled.is_err() && !client.job(cycle).await?.status.state.is_final() {
            cancelled?;
        }
    }
    let vm = &status.plan.vm.name;
    Ok(format!("{vm}: replication is paused; go on with sterna replicate resume {vm}"))
}

/// Has a replication go on, and says so.
pub(in crate::cli) async fn resume(replication: &JobStatus, client: &Client) -> Result<String, CliError> {
    let vm = &replication.plan.vm.name;
    let views = client.replicas().await?;
    for view in views.iter().filter(|view| view.replication == Some(replication.job)) {
        match view.state {
            ReplicaState::Expired => return Err(lifetime::expired(vm.as_str())),
            ReplicaState::Cutover => return Err(lifetime::cut_over(vm.as_str(), view)),
            _ => {}
        }
    }
    ask_for(replication, RequestedState::Start, client).await?;
    Ok(format!("{vm}: replication goes on; see it with sterna replicate show {vm}"))
}

async fn ask_for(replication: &JobStatus, wanted: RequestedState, client: &Client) -> Result<(), CliError> {
    let change = client.request_state(replication.job, wanted, None).await?;
    if matches!(change.code, ReturnCode::Completed | ReturnCode::Started) {
        return Ok(());
    }
    let reason = change.reason.unwrap_or_else(|| format!("job {} is {}", replication.job, change.status.state));
    Err(CliError::new(Exit::Refused, reason).hint(format!("see sterna job show {}", replication.job)))
}
