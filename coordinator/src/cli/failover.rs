//! `sterna cutover start --from-replica`: a VM whose host is gone runs where its replica is.

use clap::{Args, Subcommand};
use sterna_shared::id::HostId;
use sterna_shared::replica::{Replica, Snapshot};

use super::error::{CliError, Exit};
use super::output::{Output, moment};
use super::replicate::span;
use super::vm::done;
use super::{confirm, now};
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum CutoverCommand {
    /// Run a VM where its replica is
    #[command(
        long_about = "Run a VM where its replica is, from its latest snapshot, because its own host is gone.\n\n\
        Only do this when that host is off, or cut from the network and from all storage the VM uses, and will not start by \
        itself. What the VM wrote since the snapshot is lost. If the host still runs the VM, it runs twice until the host is \
        heard of."
    )]
    Start(FailoverArgs),
}

#[derive(Debug, Args)]
pub(super) struct FailoverArgs {
    /// The VM's name or id
    vm: String,
    /// From its latest snapshot, without its host
    #[arg(long, required = true)]
    from_replica: bool,
    /// The VM's host, which is gone and was fenced
    #[arg(long, value_name = "HOST")]
    fenced: HostId,
    /// The host whose replica it is; where it is left out, that with the latest snapshot
    #[arg(long, value_name = "HOST")]
    at: Option<HostId>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(command: &CutoverCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    let CutoverCommand::Start(args) = command;
    fail_over(&args.vm, &args.fenced, args.at.as_ref(), args.yes, client, output).await
}

/// Has a VM run from its latest sound snapshot, once somebody has said that its host is gone.
pub(super) async fn fail_over(
    vm: &str,
    fenced: &HostId,
    at: Option<&HostId>,
    yes: bool,
    client: &Client,
    output: Output,
) -> Result<Exit, CliError> {
    let mut views = client.replicas().await?;
    views.retain(|view| view.name.as_str() == vm || view.vm.to_string() == vm);
    views.retain(|view| at.is_none_or(|host| view.host == *host));
    let snapshot = |replica: &Replica| replica.snapshots().rev().find(|snapshot| !snapshot.damaged).cloned();
    let found = views.into_iter().filter_map(|view| Some((view.host, snapshot(view.replica.as_ref()?)?)));
    let Some((host, snapshot)) = found.max_by_key(|(_, snapshot)| snapshot.taken_at) else {
        return Err(CliError::new(Exit::NotFound, format!("no host has a snapshot of VM {vm} that it could run from"))
            .hint("see sterna replicate list"));
    };
    output.remark(&lost(vm, fenced, &host, &snapshot));
    let question = format!("{fenced} can no longer run VM {vm}, and what it wrote since then may be lost. Is that so?");
    confirm(&question, yes)?;
    client.fail_over(vm, fenced, &host, snapshot.number).await?;
    let (number, taken_at) = (snapshot.number, moment(snapshot.taken_at));
    let told = format!(
        "{vm} runs at {host} from snapshot {number}, as it was at {taken_at}; {fenced} lets go of it when it comes back"
    );
    done(Ok(()), told, output)
}

/// What a failover starts from, and what it gives up.
fn lost(vm: &str, fenced: &HostId, host: &HostId, snapshot: &Snapshot) -> String {
    let Snapshot { number, taken_at, .. } = snapshot;
    let age = now().unix_microseconds().saturating_sub(taken_at.unix_microseconds()) / 1_000_000;
    let age = span(u64::try_from(age).unwrap_or(0));
    format!(
        "{vm} starts at {host} from snapshot {number}, taken at {}, {age} ago. All that it wrote since, at {fenced}, is lost to it.",
        moment(*taken_at)
    )
}
