//! `sterna replicate remove`: the replication is ended, and then whatever hosts keep of it goes.

use std::collections::BTreeSet;
use std::time::Duration;

use sterna_shared::id::{HostId, JobId};

use super::{POLL_INTERVAL, is_of, not_replicated};
use crate::cli::confirm;
use crate::cli::error::{CliError, Exit};
use crate::cli::output::Output;
use crate::cli::vm::done;
use crate::client::Client;

/// How long a cycle that was cancelled may take to put everything back before the removal gives up.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn remove(vm: &str, yes: bool, client: &Client, output: Output) -> Result<Exit, CliError> {
    let mut views = client.replicas().await?;
    views.retain(|view| is_of(view, vm));
    // Where no replica is left, its host may have been away when the rest was removed.
    let known = client.vm(vm).await.ok();
    let Some(id) = views.first().map(|view| view.vm).or(known.as_ref().map(|known| known.report.id())) else {
        return Err(not_replicated(vm));
    };
    confirm(&format!("End the replication of {vm} and remove its replica with all snapshots?"), yes)?;
    for job in views.iter().filter_map(|view| view.replication) {
        end(job, client).await?;
    }
    // The VM may have moved since the latest cycle: at every host that it was replicated from something may be left.
    let sources = views.iter().map(|view| &view.source).chain(known.as_ref().map(|known| &known.host));
    let hosts: BTreeSet<&HostId> = views.iter().map(|view| &view.host).chain(sources).collect();
    let mut failed = Vec::new();
    for host in hosts {
        if let Err(error) = client.drop_replica(&id.to_string(), host).await {
            failed.push(CliError::from(error));
        }
    }
    let mut failed = failed.into_iter();
    let Some(mut first) = failed.next() else {
        return done(Ok(()), format!("{vm} is not replicated any more, and its replica is removed"), output);
    };
    first.causes.extend(failed.map(|error| error.message));
    Err(first.hint(format!("the replication is ended; remove what is left: sterna replicate remove {vm}")))
}

/// Cancels a replication with the cycle that is under way, and waits until that has put everything back.
async fn end(job: JobId, client: &Client) -> Result<(), CliError> {
    let status = client.job(job).await?.status;
    let last = status.runs.current().unwrap_or(job);
    client.cancel(job).await?;
    let begun = tokio::time::Instant::now();
    while !client.job(last).await?.status.state.is_final() {
        if begun.elapsed() > CANCEL_PATIENCE {
            return Err(CliError::new(Exit::Failed, format!("cycle {last} is not over yet, though it was cancelled"))
                .hint(format!("see sterna job show {last}, and give the command again")));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
