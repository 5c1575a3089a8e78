//! `sterna clone`: make a VM of a replica, while its replication goes on and the replicated VM is left alone.

use clap::{Args, Subcommand};
use sterna_shared::id::{HostId, JobId, PoolName, VmId, VmName};
use sterna_shared::job::{JobKind, JobStatus, ModeWish, MoveRequest, MoveSettings, Plan, Policy, StorageWish};
use sterna_shared::replica::{CloneWish, NetworkWish};
use sterna_shared::units::ByteCount;

use super::error::{CliError, Exit};
use super::job;
use super::migrate::submit;
use super::output::{Output, moment, or_dash, pairs, table};
use super::vm::{done, yes_or_no};
use crate::client::Client;
use crate::view::{JobView, PlanView};

#[derive(Debug, Subcommand)]
pub(super) enum CloneCommand {
    /// Make a VM of a replica, at the host that has it
    Create(CreateArgs),
    /// List the jobs that make clones, or made them, newest first
    #[command(visible_alias = "ls")]
    List,
    /// Show one such job
    Show {
        /// Its id
        job: JobId,
    },
    /// Cancel one: what it has made is removed
    Cancel {
        /// Its id
        job: JobId,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sterna clone create web --name web-trial --start\n  \
    sterna clone create web --snapshot 7 --network same --memory 1GiB --vcpus 2\n  \
    sterna clone create web --at beta --full --pool bulk --dry-run")]
pub(super) struct CreateArgs {
    /// The replicated VM's name or id
    vm: String,
    /// The clone's name [default: the VM's, and -clone behind it]
    #[arg(long)]
    name: Option<VmName>,
    /// The host whose replica it is made of; where it is left out, that with the latest snapshot
    #[arg(long, value_name = "HOST")]
    at: Option<HostId>,
    /// The snapshot it is made from; where it is left out, the latest
    #[arg(long, value_name = "NUMBER")]
    snapshot: Option<u32>,
    /// The pool its disks are made in; where it is left out, those of the replica
    #[arg(long)]
    pool: Option<PoolName>,
    /// Its virtual processors; where it is left out, as many as the VM has
    #[arg(long, value_name = "COUNT")]
    vcpus: Option<u16>,
    /// Its memory, such as 512MiB; where it is left out, as much as the VM has
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteCount>,
    /// What it is connected to: isolated (nothing), same (the bridges the VM is connected to), or a bridge
    #[arg(long, value_name = "isolated|same|BRIDGE", default_value = "isolated", value_parser = parse_network)]
    network: NetworkWish,
    /// Copy all that the snapshot holds, so that it stands on nothing but its own disks
    #[arg(long)]
    full: bool,
    /// Start it
    #[arg(long)]
    start: bool,
    /// Check and show what it would be, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not watch the job; print its id
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Id of the job, a UUID: asking twice with one id makes one job
    #[arg(long, value_name = "UUID")]
    job: Option<JobId>,
}

pub(super) async fn run(command: &CloneCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    match command {
        CloneCommand::Create(args) => create(args, client, output).await,
        CloneCommand::List => {
            let mut jobs = client.jobs().await?;
            jobs.retain(|status| status.plan.kind == JobKind::Clone);
            let views: Vec<JobView> = jobs.iter().map(|status| JobView::new(status, None)).collect();
            output.result(&views, || list(&jobs))?;
            Ok(Exit::Ok)
        }
        CloneCommand::Show { job } => {
            let view = client.job(*job).await?.view();
            output.result(&view, || job::show(&view))?;
            Ok(Exit::Ok)
        }
        CloneCommand::Cancel { job } => {
            let told = format!("cancel of {job} was sent; sterna job watch {job} tells when everything is back");
            done(client.cancel(*job).await, told, output)
        }
    }
}

async fn create(args: &CreateArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let id = args.job.unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::now_v7()));
    let request = request(args, VmId::from_uuid(uuid::Uuid::now_v7()))?;
    let policy = Policy { owner: Some(client.sender().to_owned()), ..Policy::default() };
    if args.dry_run {
        let draft = client.plan(id, &request, &policy).await?;
        for wait in &draft.waits_for {
            output.remark(&format!("it would wait: {wait}"));
        }
        output.result(&PlanView::new(&draft.plan), || show_plan(&draft.plan))?;
        return Ok(Exit::Ok);
    }
    submit(id, &request, &policy, args.detach, client, output).await
}

fn request(args: &CreateArgs, id: VmId) -> Result<MoveRequest, CliError> {
    let named = || format!("{}-clone", args.vm).parse();
    let name = args.name.clone().map_or_else(named, Ok).map_err(|error| {
        CliError::new(Exit::Usage, format!("the clone cannot be called {}-clone: {error}", args.vm)).hint("give --name")
    })?;
    let wish = CloneWish {
        id,
        name,
        snapshot: args.snapshot,
        pool: args.pool.clone(),
        vcpus: args.vcpus,
        memory: args.memory,
        network: args.network.clone(),
        full: args.full,
        start: args.start,
    };
    Ok(MoveRequest {
        kind: JobKind::Clone,
        vm: args.vm.clone(),
        target: args.at.clone(),
        mode: ModeWish::Auto,
        storage: StorageWish::All,
        disks: Vec::new(),
        storage_only: false,
        bandwidth: None,
        blackout_max_ms: None,
        lanes: None,
        settings: MoveSettings::default(),
        planned: None,
        hold_seconds: None,
        replication: None,
        clone: Some(Box::new(wish)),
    })
}

fn parse_network(text: &str) -> Result<NetworkWish, String> {
    Ok(match text {
        "isolated" => NetworkWish::Isolated,
        "same" => NetworkWish::Same,
        bridge => NetworkWish::Bridge(bridge.parse().map_err(|error: sterna_shared::id::InvalidId| error.to_string())?),
    })
}

fn list(jobs: &[JobStatus]) -> String {
    let rows = jobs.iter().map(|status| {
        let plan = &status.plan;
        [
            status.job.to_string(),
            plan.vm.name.to_string(),
            plan.target.id.to_string(),
            or_dash(plan.clone.as_ref().map(|clone| clone.snapshot)),
            or_dash(plan.clone.as_ref().map(|clone| clone.replica)),
            status.state.to_string(),
            moment(status.submitted_at),
        ]
    });
    table(["JOB", "CLONE", "HOST", "SNAPSHOT", "OF", "STATE", "SUBMITTED"], rows)
}

fn show_plan(plan: &Plan) -> String {
    let spec = &plan.vm;
    let of = plan.clone.as_ref();
    let head = pairs([
        ("clone", format!("{} ({})", spec.name, spec.id)),
        ("host", plan.target.id.to_string()),
        ("of", or_dash(of.map(|of| format!("{}, snapshot {}", of.replica, of.snapshot)))),
        ("memory", spec.memory.to_string()),
        ("vcpus", spec.vcpus.to_string()),
        ("started", yes_or_no(of.is_some_and(|of| of.start)).to_owned()),
    ]);
    let disks = table(
        ["DISK", "POOL", "SIZE", "STANDS ON"],
        spec.disks.iter().map(|disk| {
            let base = disk.base.as_ref().map(|base| format!("layer {} in pool {}", base.layer, base.pool));
            [disk.name.to_string(), disk.pool.to_string(), disk.size.to_string(), or_dash(base)]
        }),
    );
    let nics = table(
        ["MAC", "BRIDGE"],
        spec.nics
            .iter()
            .map(|nic| [nic.mac.to_string(), nic.bridge.as_ref().map_or("isolated".to_owned(), ToString::to_string)]),
    );
    format!("{head}\n\n{disks}\n\n{nics}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::fleet::Fleet;
    use crate::planner::{example, plan};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: CloneCommand,
    }

    fn line(arguments: &[&str]) -> Result<CloneCommand, clap::Error> {
        Line::try_parse_from([&["clone"], arguments].concat()).map(|line| line.command)
    }

    fn wished(arguments: &[&str]) -> CloneWish {
        let CloneCommand::Create(args) = line(&[&["create", "web"], arguments].concat()).expect("a command") else {
            panic!("another command")
        };
        let request = request(&args, example::vm("web").id).expect("a request");
        assert_eq!((request.kind, request.vm.as_str()), (JobKind::Clone, "web"));
        *request.clone.expect("a wish")
    }

    #[test]
    fn a_clone_is_asked_for() {
        let wish = wished(&[]);
        assert_eq!(
            (wish.name.as_str(), wish.network, wish.start, wish.full),
            ("web-clone", NetworkWish::Isolated, false, false)
        );
        let all =
            ["--name", "trial", "--snapshot", "7", "--pool", "bulk", "--vcpus", "2", "--memory", "1GiB", "--full"];
        let wish = wished(&all);
        assert_eq!((wish.name.as_str(), wish.snapshot, wish.vcpus), ("trial", Some(7), Some(2)));
        assert_eq!((wish.memory, wish.full), (Some(ByteCount::mebibytes(1024)), true));
        assert_eq!(wished(&["--network", "same"]).network, NetworkWish::Same);
        assert_eq!(wished(&["--network", "lan"]).network, NetworkWish::Bridge("lan".parse().expect("a name")));
        for wrong in
            [&["create"][..], &["create", "web", "--network", "a/b"], &["create", "web", "--dry-run", "--detach"]]
        {
            assert!(line(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn people_see_what_it_would_be() {
        let mut target = example::inventory("beta");
        target.replicas = vec![example::replica()];
        let mut fleet = Fleet::default();
        fleet.heard(target, example::now(), Duration::ZERO);
        let plan = plan(&fleet, [], &example::clone_request(), example::seeds()).expect("a plan");
        let text = show_plan(&plan);
        assert!(
            text.contains("trial") && text.contains("snapshot 2") && text.contains("layer 2 in pool fast"),
            "{text}"
        );
        let text = list(&[JobStatus::planned(plan)]);
        assert!(text.contains("trial") && text.contains("beta"), "{text}");
    }
}
