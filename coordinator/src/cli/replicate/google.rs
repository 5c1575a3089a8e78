//! Replications as Google has them.

use clap::ValueEnum;
use sterna_shared::view::google::MigratingVmList;

use crate::cli::error::{CliError, Exit};
use crate::cli::labels::{self, Wanted};
use crate::cli::now;
use crate::cli::output::{Format, Output};
use crate::client::Client;

/// How much is told of a replication, in the words of Google's `MigratingVmView`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum View {
    /// All but the latest clone and cutover jobs
    Basic,
    /// All
    Full,
}

impl View {
    fn of(self, list: MigratingVmList) -> MigratingVmList {
        match self {
            Self::Basic => list.basic(),
            Self::Full => list,
        }
    }
}

/// A view is of what Google's programs read, and of nothing else.
pub(super) fn check(view: Option<View>, output: Output) -> Result<(), CliError> {
    if view.is_none() || output.format == Format::Google {
        return Ok(());
    }
    Err(CliError::new(Exit::Usage, "--view is of replications as Google has them").hint("give --output google with it"))
}

pub(super) async fn list(
    wanted: &[Wanted],
    view: Option<View>,
    client: &Client,
    output: Output,
) -> Result<Exit, CliError> {
    let mut list = client.replications(now()).await?.known().migrating_vms(None);
    list.migrating_vms.retain(|vm| labels::are_wanted(&vm.labels, wanted));
    output.json(&view.unwrap_or(View::Full).of(list))?;
    Ok(Exit::Ok)
}

pub(super) async fn show(vm: &str, view: Option<View>, client: &Client, output: Output) -> Result<Exit, CliError> {
    let found = client.replications(now()).await?.known().migrating_vms(Some(vm));
    if found.migrating_vms.is_empty() {
        return Err(no_replication(vm));
    }
    output.json(&view.unwrap_or(View::Full).of(found))?;
    Ok(Exit::Ok)
}

/// All cycles that are remembered; or the one of that number.
pub(super) async fn cycles(vm: &str, number: Option<u32>, client: &Client, output: Output) -> Result<Exit, CliError> {
    let told = client.replications(now()).await?;
    let known = told.known();
    if known.migrating_vms(Some(vm)).migrating_vms.is_empty() {
        return Err(no_replication(vm));
    }
    match number {
        Some(number) => {
            let cycle = known.replication_cycle(vm, number).ok_or_else(|| no_cycle(vm, number))?;
            output.json(&cycle)?;
        }
        None => output.json(&known.replication_cycles(vm))?,
    }
    Ok(Exit::Ok)
}

/// Nothing is known that this face could be made of.
fn no_replication(vm: &str) -> CliError {
    CliError::new(Exit::NotFound, format!("no job that is listed replicates VM {vm}, or did"))
        .hint(format!("a replica that is left is told by sterna replicate show {vm} without --output google"))
}

pub(super) fn no_cycle(vm: &str, number: u32) -> CliError {
    CliError::new(Exit::NotFound, format!("no cycle {number} of VM {vm} is remembered"))
        .hint(format!("see those that are: sterna replicate cycles {vm}"))
}
