//! `sterna host`: the hosts of the fleet.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use sterna_shared::bus::HostView;
use sterna_shared::host::LimitsChange;
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
    /// Show one host: its hypervisor, settings, moves in hand, pools, bridges, certificate and VMs
    Show {
        /// Its id
        host: HostId,
    },
    /// Set what a host takes on at once, from now on and over restarts of its agent
    #[command(after_help = "Examples:\n  \
        sterna host set alpha --outbound 2 --inbound 2\n  \
        sterna host set alpha --migration off\n  \
        sterna host set alpha --reset")]
    Set(SetArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    /// VMs move out of the host and into it
    On,
    /// They do not; disks still move between its pools
    Off,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("settings").required(true).multiple(true)
    .args(["outbound", "inbound", "storage", "lanes", "migration", "reset"])))]
pub(super) struct SetArgs {
    /// Its id
    host: HostId,
    /// Moves out of it at a time; 0 lets no VM out
    #[arg(long, value_name = "COUNT")]
    outbound: Option<u16>,
    /// Moves into it at a time; 0 lets no VM in
    #[arg(long, value_name = "COUNT")]
    inbound: Option<u16>,
    /// Storage moves within it at a time; 0 allows none
    #[arg(long, value_name = "COUNT")]
    storage: Option<u16>,
    /// Lanes of one move
    #[arg(long, value_name = "COUNT")]
    lanes: Option<u8>,
    /// Whether VMs move out of it and into it at all
    #[arg(long, value_enum)]
    migration: Option<Switch>,
    /// Go back to what its agent.toml says, before anything else that is given here is set
    #[arg(long)]
    reset: bool,
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
        HostCommand::Set(args) => {
            let set = client.set_host(&args.host, change(args), args.reset).await?;
            output.result(&set, || settings(&set))?;
        }
    }
    Ok(Exit::Ok)
}

fn change(args: &SetArgs) -> LimitsChange {
    LimitsChange {
        enabled: args.migration.map(|switch| matches!(switch, Switch::On)),
        outbound_moves_max: args.outbound,
        inbound_moves_max: args.inbound,
        storage_moves_max: args.storage,
        lanes_max: args.lanes,
    }
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
        (
            "uefi",
            match (inventory.hypervisor.uefi, inventory.hypervisor.secure_boot) {
                (false, false) => "no",
                (true, false) => "yes, without secure boot",
                (_, true) => "yes, also with secure boot",
            }
            .to_owned(),
        ),
        ("processor", format!("{} × {}", inventory.cpu.count, inventory.cpu.model)),
        (
            "memory",
            format!(
                "{} free of {}, {} held for planned VMs",
                inventory.memory_free, inventory.memory_total, inventory.memory_reserved
            ),
        ),
        ("bridges", join(inventory.bridges.iter().map(ToString::to_string).collect())),
        ("boot files", join(inventory.boot_files.iter().map(|file| file.as_str().to_owned()).collect())),
        ("adapts clones", if inventory.adapts { "yes" } else { "no" }.to_owned()),
        ("probe commands", join(inventory.probe_commands.iter().map(ToString::to_string).collect())),
        (
            "certificate",
            format!("{} to {}", moment(inventory.certificate.not_before), moment(inventory.certificate.not_after)),
        ),
    ]);
    let limits = settings(host);
    let pools = table(
        ["POOL", "KIND", "FREE", "HELD", "CAPACITY", "SHARED"],
        inventory.pools.iter().map(|pool| {
            let shared = pool.shared.clone().unwrap_or_else(|| "-".to_owned());
            let kind = if pool.extent.is_some() { "volume group" } else { "directory" };
            let [free, held, capacity] = [pool.free, pool.reserved, pool.capacity].map(|bytes| bytes.to_string());
            [pool.name.to_string(), kind.to_owned(), free, held, capacity, shared]
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
    let mut text = format!("{head}\n\n{limits}\n\n{pools}\n\n{vms}");
    if !inventory.planned.is_empty() {
        let rows = inventory.planned.iter().map(|planned| {
            let (memory, disks) = (planned.spec.memory.to_string(), planned.disk_bytes().to_string());
            [planned.spec.name.to_string(), memory, disks, moment(planned.expires_at), planned.id.to_string()]
        });
        text += "\n\n";
        text += &table(["PREPARED FOR", "MEMORY", "DISKS", "UNTIL", "PLANNED"], rows);
    }
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

/// What a host takes on at once, what of it is in hand, and who says so.
fn settings(host: &HostView) -> String {
    let (limits, set, moves) = (host.inventory.limits, host.inventory.limits_set, host.moves);
    let row = |name: &str, value: String, in_hand: Option<usize>, was_set: bool| {
        let by = if was_set { "sterna host set" } else { "agent.toml" };
        [name.to_owned(), value, super::output::or_dash(in_hand), by.to_owned()]
    };
    let migration = if limits.enabled { "on" } else { "off" };
    let count = |most: u16| most.to_string();
    table(
        ["SETTING", "VALUE", "IN HAND", "SET BY"],
        [
            row("migration", migration.to_owned(), None, set.enabled.is_some()),
            row("moves out", count(limits.outbound_moves_max), Some(moves.outbound), set.outbound_moves_max.is_some()),
            row("moves in", count(limits.inbound_moves_max), Some(moves.inbound), set.inbound_moves_max.is_some()),
            row("storage moves", count(limits.storage_moves_max), Some(moves.storage), set.storage_moves_max.is_some()),
            row("lanes of a move", limits.lanes_max.to_string(), None, set.lanes_max.is_some()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: HostCommand,
    }

    fn request(arguments: &[&str]) -> Result<(HostId, LimitsChange, bool), clap::Error> {
        let line = Line::try_parse_from([&["host", "set"], arguments].concat())?;
        match &line.command {
            HostCommand::Set(args) => Ok((args.host.clone(), change(args), args.reset)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_given_is_set() {
        let host = || -> HostId { "alpha".parse().expect("a name") };
        let change = LimitsChange { enabled: Some(false), inbound_moves_max: Some(0), ..LimitsChange::default() };
        let given = request(&["alpha", "--inbound", "0", "--migration", "off"]).expect("a request");
        assert_eq!(given, (host(), change, false));
        let reset = request(&["alpha", "--reset"]).expect("a request");
        assert_eq!(reset, (host(), LimitsChange::default(), true));
        for wrong in [&["alpha"][..], &["alpha", "--inbound", "-1"], &["alpha", "--lanes", "300"], &["--reset"]] {
            assert!(request(wrong).is_err(), "{wrong:?}");
        }
    }
}
