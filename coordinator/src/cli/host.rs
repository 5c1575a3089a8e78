//! `sterna host`: the hosts of the fleet.

use clap::Subcommand;
use sterna_shared::bus::HostView;
use sterna_shared::id::HostId;

use super::error::{CliError, Exit};
use super::output::{Output, moment, pairs, table};
use super::vm;
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// List all hosts
    #[command(visible_alias = "ls")]
    List,
    /// Show one host: its hypervisor, pools, bridges, certificate and VMs
    Show {
        /// Its id
        host: HostId,
    },
}

pub(super) async fn run(command: &HostCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    match command {
        HostCommand::List => {
            let hosts = client.hosts().await?;
            output.result(&hosts, || list(&hosts))?;
        }
        HostCommand::Show { host } => {
            let shown = client.host(host).await?;
            output.result(&shown, || show(&shown))?;
        }
    }
    Ok(Exit::Ok)
}

fn state(host: &HostView) -> &'static str {
    if host.online { "online" } else { "offline" }
}

fn list(hosts: &[HostView]) -> String {
    let rows = hosts.iter().map(|host| {
        let inventory = &host.inventory;
        [
            inventory.host.to_string(),
            state(host).to_owned(),
            inventory.vms.iter().filter(|vm| vm.owned).count().to_string(),
            format!("{} of {}", inventory.memory_free, inventory.memory_total),
            format!("QEMU {} ({})", inventory.hypervisor.version, inventory.hypervisor.accelerator.as_str()),
            inventory.version.clone(),
        ]
    });
    table(["HOST", "STATE", "VMS", "MEMORY FREE", "HYPERVISOR", "AGENT"], rows)
}

fn show(host: &HostView) -> String {
    let inventory = &host.inventory;
    let join = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(", ") };
    let head = pairs([
        ("host", inventory.host.to_string()),
        ("state", format!("{}, last heard of {}", state(host), moment(host.heard_at))),
        ("agent", inventory.version.clone()),
        ("addresses", join(inventory.addresses.iter().map(ToString::to_string).collect())),
        (
            "hypervisor",
            format!("QEMU {} ({})", inventory.hypervisor.version, inventory.hypervisor.accelerator.as_str()),
        ),
        ("uefi", if inventory.hypervisor.uefi { "yes" } else { "no" }.to_owned()),
        ("processor", format!("{} × {}", inventory.cpu.count, inventory.cpu.model)),
        ("memory", format!("{} free of {}", inventory.memory_free, inventory.memory_total)),
        ("bridges", join(inventory.bridges.iter().map(ToString::to_string).collect())),
        ("boot files", join(inventory.boot_files.iter().map(|file| file.as_str().to_owned()).collect())),
        (
            "certificate",
            format!("{} to {}", moment(inventory.certificate.not_before), moment(inventory.certificate.not_after)),
        ),
        (
            "limits",
            format!(
                "{} moves out, {} in, {} lanes each",
                inventory.limits.outbound_moves_max, inventory.limits.inbound_moves_max, inventory.limits.lanes_max
            ),
        ),
    ]);
    let pools = table(
        ["POOL", "KIND", "FREE", "CAPACITY", "SHARED"],
        inventory.pools.iter().map(|pool| {
            let shared = pool.shared.clone().unwrap_or_else(|| "-".to_owned());
            let kind = if pool.extent.is_some() { "volume group" } else { "directory" };
            [pool.name.to_string(), kind.to_owned(), pool.free.to_string(), pool.capacity.to_string(), shared]
        }),
    );
    let vms = table(
        ["VM", "STATE", "OWNED", "GENERATION", "JOB"],
        inventory.vms.iter().map(|report| {
            [
                report.spec.name.to_string(),
                report.state.to_string(),
                vm::yes_or_no(report.owned).to_owned(),
                report.generation.to_string(),
                super::output::or_dash(report.job),
            ]
        }),
    );
    let mut text = format!("{head}\n\n{pools}\n\n{vms}");
    if !inventory.partials.is_empty() {
        let rows = inventory.partials.iter().map(|partial| {
            let (received, allocated) = (partial.received.to_string(), partial.allocated.to_string());
            [partial.name.to_string(), received, allocated, moment(partial.since), partial.job.to_string()]
        });
        text += "\n\n";
        text += &table(["KEPT FOR THE NEXT MOVE OF", "RECEIVED", "ALLOCATED", "SINCE", "LEFT BY JOB"], rows);
    }
    text
}
