//! `sterna plan`: make a planned VM at another host, which holds there what a later move of the VM needs; list planned VMs,
//! and drop them.

use clap::{Args, Subcommand};
use sterna_shared::id::{HostId, PlannedVmId};
use sterna_shared::job::{DiskPlacement, JobKind, MoveRequest, MoveSettings};
use sterna_shared::planned::{HOLD_MAX_SECONDS, HOLD_MIN_SECONDS, PlannedView};

use super::error::{CliError, Exit};
use super::migrate::{Mode, Storage, SubmitArgs, parse_placement, show_plan};
use super::output::{Output, moment, table};
use super::schedule::parse_seconds;
use super::vm;
use crate::client::Client;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
    sterna plan web --to beta --hold 2h\n  \
    sterna plan list\n  \
    sterna migrate web --to beta\n  \
    sterna plan drop 0197c0de-0000-7000-8000-000000000001"
)]
pub(super) struct PlanArgs {
    #[command(subcommand)]
    command: Option<PlanCommand>,
    #[command(flatten)]
    make: MakeArgs,
}

#[derive(Debug, Subcommand)]
enum PlanCommand {
    /// List all planned VMs
    #[command(visible_alias = "ls")]
    List,
    /// Drop a planned VM: what it holds is free again
    Drop {
        /// Its id
        planned: PlannedVmId,
    },
}

#[derive(Debug, Args)]
struct MakeArgs {
    /// The VM's name or id; it runs on where it is
    #[arg(required = true)]
    vm: Option<String>,
    /// The host that is to be prepared for it
    #[arg(long, value_name = "HOST", required = true)]
    to: Option<HostId>,
    /// How the VM is to move later
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// Whether its disks are to go along
    #[arg(long, value_enum, default_value = "all")]
    storage: Storage,
    /// Where one disk is to go; the others go to the pool of the same name
    #[arg(long = "disk", value_name = "NAME=POOL[:FORMAT]", value_parser = parse_placement)]
    disks: Vec<DiskPlacement>,
    /// How long it is held, such as 90m, 2h or 7d [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = parse_hold)]
    hold: Option<u32>,
    #[command(flatten)]
    submit: SubmitArgs,
}

pub(super) async fn run(args: &PlanArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    match &args.command {
        Some(PlanCommand::List) => {
            let planned = client.planned_vms().await?;
            output.result(&planned, || list(&planned))?;
        }
        Some(PlanCommand::Drop { planned }) => {
            client.drop_planned_vm(*planned).await?;
            output.remark(&format!("planned VM {planned} is dropped"));
        }
        None => {
            let (request, mut policy) = (request(&args.make)?, args.make.submit.policy.policy(client.sender()));
            args.make.submit.policy.recover(&request, &mut policy)?;
            return args.make.submit.submit(&request, &policy, show_plan, client, output).await;
        }
    }
    Ok(Exit::Ok)
}

fn request(args: &MakeArgs) -> Result<MoveRequest, CliError> {
    // The command line asks for it, but for where a subcommand is given.
    let vm = args.vm.clone().ok_or_else(|| CliError::new(Exit::Usage, "no VM was given"))?;
    Ok(MoveRequest {
        kind: JobKind::Stage,
        vm,
        target: args.to.clone(),
        mode: args.mode.into(),
        storage: args.storage.into(),
        disks: args.disks.clone(),
        storage_only: false,
        bandwidth: None,
        blackout_max_ms: None,
        lanes: None,
        planned: None,
        settings: MoveSettings::default(),
        hold_seconds: args.hold,
        replication: None,
        clone: None,
        cutover: None,
    })
}

fn list(planned: &[PlannedView]) -> String {
    let rows = planned.iter().map(|PlannedView { host, planned, usable }| {
        [
            planned.id.to_string(),
            planned.spec.name.to_string(),
            host.to_string(),
            planned.spec.memory.to_string(),
            planned.disk_bytes().to_string(),
            moment(planned.expires_at),
            vm::yes_or_no(*usable).to_owned(),
        ]
    });
    table(["PLANNED", "VM", "HOST", "MEMORY", "DISKS", "UNTIL", "USABLE"], rows)
}

fn parse_hold(text: &str) -> Result<u32, String> {
    let wrong =
        || format!("give a number with s, m, h or d, from {HOLD_MIN_SECONDS}s to {}d", HOLD_MAX_SECONDS / 86_400);
    let within = |held: &u32| (HOLD_MIN_SECONDS..=HOLD_MAX_SECONDS).contains(held);
    parse_seconds(text).filter(within).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: PlanArgs,
    }

    fn line(arguments: &[&str]) -> Result<PlanArgs, clap::Error> {
        Line::try_parse_from([&["plan"], arguments].concat()).map(|line| line.args)
    }

    #[test]
    fn a_planned_vm_is_asked_for_listed_and_dropped() {
        let args = line(&["web", "--to", "beta", "--disk", "root=bulk:raw", "--hold", "2h", "--detach"]).expect("args");
        let request = request(&args.make).expect("a request");
        assert_eq!((request.kind, request.vm.as_str(), request.hold_seconds), (JobKind::Stage, "web", Some(7200)));
        assert_eq!(request.disks.len(), 1);
        assert!(matches!(line(&["list"]).expect("args").command, Some(PlanCommand::List)));
        let id = "0197c0de-0000-7000-8000-000000000001";
        let dropped = line(&["drop", id]).expect("args").command;
        assert!(matches!(dropped, Some(PlanCommand::Drop { planned }) if planned.to_string() == id));
        for wrong in
            [&["web"][..], &["--to", "beta"], &["drop"], &["drop", "web"], &["web", "--to", "beta", "--hold", "2w"]]
        {
            assert!(line(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_time_is_a_number_with_a_letter_and_within_bounds() {
        assert_eq!(parse_hold("60s"), Ok(60));
        assert_eq!(parse_hold("90m"), Ok(5400));
        assert_eq!(parse_hold("30d"), Ok(HOLD_MAX_SECONDS));
        for wrong in ["", "60", "59s", "31d", "h", "-1h", "1.5h", "2é", "99999999d"] {
            assert!(parse_hold(wrong).is_err(), "{wrong}");
        }
    }
}
