//! `sterna replicate pause` and `resume`, of one replication or of each in a group: the methods of Google's.

use serde_json::json;
use sterna_shared::job::JobStatus;
use sterna_shared::view::google::{Method, MigratingVmName};

use crate::cli::error::CliError;
use crate::client::Client;

/// Stops a replication until it is resumed, and says so. The cycle under way is cancelled.
pub(in crate::cli) async fn pause(replication: &JobStatus, client: &Client) -> Result<String, CliError> {
    let vm = ask(Method::MigratingVmsPause, replication, client).await?;
    Ok(format!("{vm}: replication is paused; go on with sterna replicate resume {vm}"))
}

/// Has a replication go on, and says so.
pub(in crate::cli) async fn resume(replication: &JobStatus, client: &Client) -> Result<String, CliError> {
    let vm = ask(Method::MigratingVmsResume, replication, client).await?;
    Ok(format!("{vm}: replication goes on; see it with sterna replicate show {vm}"))
}

async fn ask(method: Method, replication: &JobStatus, client: &Client) -> Result<String, CliError> {
    let name = MigratingVmName::of(replication);
    let request = json!({ "migratingVm": name.to_string() }).to_string();
    client.google(method, &request, replication.job).await?;
    Ok(replication.plan.vm.name.to_string())
}
