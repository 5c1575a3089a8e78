//! `sterna cutover`: move a replicated VM over to the host that has its replica, for good; and back, as long as that is wanted.
//!
//! A cutover is a move that begins with what the replica holds. What a command here does beside that can be done with
//! `sterna job` and `sterna migrate` too.

use clap::{Args, Subcommand};
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{DiskMove, DiskPlacement, JobKind, JobState, JobStatus, ModeWish, MoveRequest, Plan};
use sterna_shared::replica::{CutoverWish, REVERT_MAX_SECONDS};
use sterna_shared::units::Bandwidth;

use super::error::{CliError, Exit};
use super::migrate::{SubmitArgs, parse_placement, show_plan};
use super::output::{Format, Output, moment, or_dash, table};
use super::page::{self, PageArgs};
use super::vm::done;
use super::{failover, job, lifetime, now, schedule};
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum CutoverCommand {
    /// Move a VM over to the host that has its replica: live, or with the guest shut down and started there
    #[command(
        long_about = "Move a VM over to the host that has its replica: live, or with the guest shut down and started there.\n\n\
        With --from-replica the VM is started there from its latest snapshot, because its own host is gone. Only do this when \
        that host is off, or cut from the network and from all storage the VM uses, and will not start by itself. What the VM \
        wrote since the snapshot is lost. If the host still runs the VM, it runs twice until the host is heard of."
    )]
    Start(Box<StartArgs>),
    /// List cutovers, newest first; also as Google has them, with --output google
    #[command(visible_alias = "ls")]
    List(PageArgs),
    /// Show one, with what it was expected to take; also as Google has it, with --output google
    Show {
        /// Its id
        job: JobId,
    },
    /// Cancel one: the VM stays where it is, and the replica as it is
    Cancel {
        /// Its id
        job: JobId,
    },
    /// Move a VM back to where it was cut over from, live if it runs: only what differs from what is kept there is sent
    Revert(Box<RevertArgs>),
}

/// How the VM is moved, there or back.
#[derive(Debug, Args)]
pub(super) struct WayArgs {
    /// The VM's name or id
    vm: String,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    submit: SubmitArgs,
}

/// What a move there or back stays under.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// A rate that disks and memory together stay under, such as 100MiB/s
    #[arg(long, value_name = "RATE", value_parser = job::parse_rate)]
    bandwidth: Option<Bandwidth>,
    /// The longest the guest may stand still in a live one before it is given up
    #[arg(long, value_name = "MILLISECONDS")]
    max_blackout: Option<u32>,
}

/// How a VM is cut over, whichever it is.
#[derive(Debug, Args)]
pub(super) struct MannerArgs {
    /// Shut the guest down, and start it at the other host; it is moved live where this is left out
    #[arg(long)]
    cold: bool,
    /// How long the source keeps its images for the way back, such as 12h or 3d; 0s for not at all [default: 1d]
    #[arg(long, value_name = "TIME", value_parser = parse_window)]
    revert_window: Option<u32>,
    /// Do not wait until the guest has shut down when it does not obey its power button: stop it as a power cut would
    #[arg(long, requires = "cold")]
    force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sterna cutover start web\n  \
    sterna cutover start web --cold --revert-window 3d\n  \
    sterna cutover start web --dry-run\n  \
    sterna cutover start web --from-replica --fenced alpha")]
pub(super) struct StartArgs {
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    manner: MannerArgs,
    /// The host whose replica it is moved to; where it is left out, that with the latest snapshot
    #[arg(long, value_name = "HOST")]
    to: Option<HostId>,
    /// Where one disk goes; the others go to the pool of their replica
    #[arg(long = "disk", value_name = "NAME=POOL[:FORMAT]", value_parser = parse_placement)]
    disks: Vec<DiskPlacement>,
    /// Start it from its latest snapshot, without its host: what it wrote since is lost
    #[arg(long, requires = "fenced", conflicts_with_all = [
        "cold", "disks", "revert_window", "bandwidth", "max_blackout", "dry_run", "detach", "job", "PolicyArgs", "ScheduleArgs",
    ])]
    from_replica: bool,
    /// The VM's host, which is gone and was fenced
    #[arg(long, value_name = "HOST", requires = "from_replica")]
    fenced: Option<HostId>,
    /// Do not ask whether the host is gone
    #[arg(long, short, requires = "from_replica")]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct RevertArgs {
    #[command(flatten)]
    way: WayArgs,
}

pub(super) async fn run(command: &CutoverCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    match command {
        CutoverCommand::Start(args) => match &args.fenced {
            Some(fenced) => failover::fail_over(&args.way.vm, fenced, args.to.as_ref(), args.yes, client, output).await,
            None => submit(&args.way, &request(args), client, output).await,
        },
        CutoverCommand::List(args) if output.format == Format::Google => {
            let page = args.page(output.format);
            output.json(&client.replications(now()).await?.known().cutover_jobs(&page))?;
            Ok(Exit::Ok)
        }
        CutoverCommand::Show { job } if output.format == Format::Google => {
            let found = client.replications(now()).await?.known().cutover_job(*job);
            output.json(&found.ok_or_else(|| no_such_job(*job))?)?;
            Ok(Exit::Ok)
        }
        CutoverCommand::List(args) => page::list(JobKind::Cutover, args, list, client, output).await,
        CutoverCommand::Show { job } => {
            let view = job::of_kind(*job, JobKind::Cutover, client).await?.ok_or_else(|| no_such_job(*job))?.view();
            output.result(&view, || job::show(&view))?;
            Ok(Exit::Ok)
        }
        CutoverCommand::Cancel { job } => {
            job::of_kind(*job, JobKind::Cutover, client).await?.ok_or_else(|| no_such_job(*job))?;
            let told = format!("cancel of {job} was sent; sterna job watch {job} tells when everything is back");
            done(client.cancel(*job).await, told, output)
        }
        CutoverCommand::Revert(args) => revert(&args.way, client, output).await,
    }
}

async fn revert(args: &WayArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let jobs = client.jobs().await?;
    let last = last_of(&args.vm, &jobs).ok_or_else(|| no_cutover(&args.vm))?;
    if let Some(refused) = lifetime::no_way_back(last, &jobs) {
        return Err(refused);
    }
    let plan = &last.plan;
    let hosts = client.hosts().await?;
    let back_at = hosts.iter().find(|view| view.inventory.host == plan.source.id);
    let kept = back_at.is_some_and(|view| view.inventory.partials.iter().any(|kept| kept.vm == plan.vm.id));
    if !kept {
        output.remark(&format!("{} keeps nothing of the VM any more; everything is sent", plan.source.id));
    }
    submit(args, &way_back(plan, args), client, output).await
}

async fn submit(args: &WayArgs, request: &MoveRequest, client: &Client, output: Output) -> Result<Exit, CliError> {
    let mut policy = args.submit.policy.policy(client.sender());
    args.submit.policy.recover(request, &mut policy)?;
    args.submit.submit(request, &policy, show_plan, client, output).await
}

/// The latest cutover of a VM that did what it should.
fn last_of<'a>(vm: &str, jobs: &'a [JobStatus]) -> Option<&'a JobStatus> {
    let is_one = |status: &&JobStatus| {
        let plan = &status.plan;
        let of = plan.vm.name.as_str() == vm || plan.vm.id.to_string() == vm;
        of && plan.kind == JobKind::Cutover && status.state == JobState::Completed
    };
    jobs.iter().filter(is_one).max_by_key(|status| (status.finished_at, status.job))
}

fn no_such_job(job: JobId) -> CliError {
    CliError::new(Exit::NotFound, format!("no job {job} is listed that is a cutover")).hint("see sterna cutover list")
}

fn no_cutover(vm: &str) -> CliError {
    CliError::new(Exit::NotFound, format!("no cutover of a VM {vm} is listed that came to its end"))
        .hint(format!("see sterna cutover list; any VM is moved by sterna migrate {vm} --to HOST"))
}

fn wish(vm: &str, limits: &LimitArgs) -> MoveRequest {
    MoveRequest {
        bandwidth: limits.bandwidth,
        blackout_max_ms: limits.max_blackout,
        ..MoveRequest::plain(JobKind::Move, vm, None)
    }
}

/// A cutover to the latest snapshot's host, each disk to the pool of its replica.
pub(super) fn request_of(vm: &str, limits: &LimitArgs, manner: &MannerArgs) -> MoveRequest {
    MoveRequest {
        kind: JobKind::Cutover,
        mode: if manner.cold { ModeWish::Cold } else { ModeWish::Auto },
        cutover: Some(CutoverWish { revert_seconds: manner.revert_window, force: manner.force }),
        ..wish(vm, limits)
    }
}

fn request(args: &StartArgs) -> MoveRequest {
    MoveRequest {
        target: args.to.clone(),
        disks: args.disks.clone(),
        ..request_of(&args.way.vm, &args.way.limits, &args.manner)
    }
}

/// Each disk goes where it was, in the format that it had: there is what it is compared with.
fn way_back(plan: &Plan, args: &WayArgs) -> MoveRequest {
    let place = |disk: &DiskMove| DiskPlacement {
        disk: disk.source.name.clone(),
        pool: disk.source.pool.clone(),
        format: Some(disk.source.format),
    };
    MoveRequest {
        vm: plan.vm.id.to_string(),
        target: Some(plan.source.id.clone()),
        disks: plan.disks.iter().map(place).collect(),
        ..wish(&args.vm, &args.limits)
    }
}

fn parse_window(text: &str) -> Result<u32, String> {
    schedule::parse_seconds(text)
        .filter(|seconds| *seconds <= REVERT_MAX_SECONDS)
        .ok_or_else(|| format!("give a number with s, m, h or d, of at most {}d", REVERT_MAX_SECONDS / 86_400))
}

fn list(jobs: &[JobStatus]) -> String {
    let rows = jobs.iter().map(|status| {
        let plan = &status.plan;
        [
            status.job.to_string(),
            plan.vm.name.to_string(),
            format!("{} → {}", plan.source.id, plan.target.id),
            job::mode_name(plan.mode).to_owned(),
            status.state.to_string(),
            or_dash(status.blackout_us.map(|us| format!("{} ms", us.div_ceil(1000)))),
            moment(status.submitted_at),
        ]
    });
    table(["JOB", "VM", "FROM → TO", "MODE", "STATE", "BLACKOUT", "SUBMITTED"], rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use sterna_shared::job::{Finalization, RefusalCode};

    use super::*;
    use crate::planner::{example, plan};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: CutoverCommand,
    }

    fn line(arguments: &[&str]) -> Result<CutoverCommand, clap::Error> {
        Line::try_parse_from([&["cutover"], arguments].concat()).map(|line| line.command)
    }

    fn started(arguments: &[&str]) -> MoveRequest {
        match line(&[&["start", "web"], arguments].concat()).expect("a command") {
            CutoverCommand::Start(args) => request(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cutover_is_asked_for() {
        let plain = started(&[]);
        assert_eq!((plain.kind, plain.mode, plain.target), (JobKind::Cutover, ModeWish::Auto, None));
        assert_eq!(plain.cutover, Some(CutoverWish::default()));
        let all = started(&["--to", "beta", "--cold", "--force", "--revert-window", "3d", "--disk", "root=bulk:raw"]);
        assert_eq!((all.mode, all.disks.len()), (ModeWish::Cold, 1));
        assert_eq!(all.cutover, Some(CutoverWish { revert_seconds: Some(3 * 86_400), force: true }));
        assert_eq!(started(&["--revert-window", "0s"]).cutover.and_then(|wish| wish.revert_seconds), Some(0));
        for wrong in [&["--force"][..], &["--revert-window", "31d"], &["--revert-window", "1"], &["--disk", "root"]] {
            assert!(line(&[&["start", "web"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_revert_goes_back_to_where_the_latest_cutover_came_from() {
        let CutoverCommand::Revert(args) = line(&["revert", "web"]).expect("a command") else { panic!("a revert") };
        let mut target = example::inventory("beta");
        target.replicas = vec![example::replica()];
        let mut source = example::inventory("alpha");
        source.vms = vec![example::report(&example::vm("web"))];
        let mut fleet = crate::fleet::Fleet::default();
        for inventory in [source, target] {
            fleet.heard(inventory, example::now(), std::time::Duration::ZERO);
        }
        let cutover = MoveRequest { kind: JobKind::Cutover, ..example::request() };
        let mut over = JobStatus::planned(plan(&fleet, [], &cutover, example::seeds()).expect("a plan"));
        assert_eq!(last_of("web", std::slice::from_ref(&over)), None, "it is not over");
        over.state = JobState::Completed;
        let jobs = [over];
        let plan = &last_of("web", &jobs).expect("a cutover").plan;
        let back = way_back(plan, &args.way);
        assert_eq!((back.kind, &back.target, back.cutover), (JobKind::Move, &Some(plan.source.id.clone()), None));
        let places: Vec<_> = back.disks.iter().map(|place| (&place.disk, &place.pool, place.format)).collect();
        let were: Vec<_> = plan.disks.iter().map(|disk| &disk.source).collect();
        let were: Vec<_> = were.iter().map(|disk| (&disk.name, &disk.pool, Some(disk.format))).collect();
        assert!(!places.is_empty() && places == were, "{places:?}");
        assert_eq!(last_of("other", &jobs), None);
        // Its replication was finalized before, or since.
        let mut replication = jobs[0].clone();
        replication.plan.kind = JobKind::Replicate;
        let refused = |replication: &mut JobStatus, cut_over, asked| {
            let mut jobs = jobs.clone();
            jobs[0].submitted_at = example::later(cut_over);
            replication.finalization = Some(Finalization { asked_at: example::later(asked), hosts: vec![] });
            lifetime::no_way_back(&jobs[0], std::slice::from_ref(replication))
        };
        assert_eq!(refused(&mut replication, 9, 8), None);
        let refused = refused(&mut replication, 8, 9).expect("an error");
        assert_eq!((refused.exit, refused.refusals[0].code), (Exit::Refused, RefusalCode::ReplicationFinalized));
        // One that was called off has left the way back alone.
        replication.state = JobState::Terminated;
        assert_eq!(lifetime::no_way_back(&jobs[0], &[replication.clone()]), None);
        assert_eq!(lifetime::no_way_back(&jobs[0], &jobs), None);
    }
}
