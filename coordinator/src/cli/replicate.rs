//! `sterna replicate`: keep a VM's disks at another host as they were at points in time, while it runs where it is.
//!
//! A replication is a recurring job; each of its cycles is a job of its own. What a command here does can be done with
//! `sterna job` too, but for the replica itself.

mod google;
mod pause;
mod remove;
mod shown;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use sterna_shared::bus::JobChange;
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{DiskPlacement, Expiration, JobKind, JobStatus, MoveRequest, Policy, Schedule};
use sterna_shared::replica::{
    IDLE_DEFAULT_SECONDS, IDLE_MAX_SECONDS, Replica, ReplicaView, ReplicationWish, Retention,
};
use sterna_shared::time::Timestamp;
use sterna_shared::units::Bandwidth;

use super::error::{CliError, Exit};
use super::labels::Wanted;
use super::migrate::{parse_placement, submit};
use super::output::{Format, Output, moment};
use super::vm::done;
use super::{body, job, labels, lifetime, schedule};
use crate::client::Client;
use crate::google::VmBody;

use google::View;
pub(super) use pause::{pause, resume};
use remove::remove;
pub(super) use shown::span;
use shown::{cycles_of, list, list_cycles, show, show_cycle};

pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is asked for what a host says with its next heartbeat.
const HEARTBEAT_POLLS: u32 = 10;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    sterna replicate add web --to beta --idle 10m --keep last=3,hourly=24\n  \
    sterna replicate list\n  \
    sterna replicate show web\n  \
    sterna replicate verify web --bandwidth 100MiB/s\n  \
    sterna clone create web --name web-trial --start")]
pub(super) enum ReplicateCommand {
    /// Replicate a VM to another host, again and again
    Add(AddArgs),
    /// List all replicas and how they stand; also as Google has replications, with --output google
    #[command(visible_alias = "ls")]
    List {
        /// Those only that have this label; of several, all of them
        #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = labels::parse_wanted)]
        labels: Vec<Wanted>,
        /// How much is told of each, with --output google [default: full]
        #[arg(long, value_enum)]
        view: Option<View>,
    },
    /// Show the replica of a VM with its snapshots; also as Google has replications, with --output google
    Show {
        /// The VM's name or id
        vm: String,
        /// How much is told, with --output google [default: full]
        #[arg(long, value_enum)]
        view: Option<View>,
    },
    /// List the latest cycles of a VM's replication, or show one; also as Google has them, with --output google
    Cycles {
        /// The VM's name or id
        vm: String,
        /// The one with that number: the first cycle of a replication is 1
        #[arg(long, value_name = "NUMBER")]
        cycle: Option<u32>,
    },
    /// Stop replicating until it is resumed; a cycle under way is cancelled, and what it sent is not lost
    Pause {
        /// The VM's name or id
        vm: String,
    },
    /// Go on replicating, with a cycle at once
    Resume {
        /// The VM's name or id
        vm: String,
    },
    /// Read a VM's replica through, and compare it with what was written; what is damaged, the next cycle repairs
    Verify(VerifyArgs),
    /// Change the labels of a VM's replication
    Label {
        /// The VM's name or id
        vm: String,
        /// KEY=VALUE for one to be set, KEY- for one to go
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = labels::parse_change)]
        changes: Vec<JobChange>,
    },
    /// Change what a MigratingVm of Google's form says of a VM's replication: its pause, and its labels
    #[command(after_help = "Examples:\n  \
        sterna replicate update web --from vm.json --update-mask policy.idleDuration\n  \
        echo '{\"labels\": {\"team\": \"shop\"}}' | sterna replicate update web --from -")]
    Update {
        /// The VM's name or id
        vm: String,
        /// A file with a MigratingVm as Google's Migrate to VMs has it, in JSON; - reads stdin
        #[arg(long, value_name = "FILE.json")]
        from: PathBuf,
        /// The fields that count, and are afterwards as the file has them: policy.idleDuration, labels [default: all that it has]
        #[arg(long, value_name = "FIELD,FIELD", value_delimiter = ',')]
        update_mask: Vec<String>,
    },
    /// Push back when a VM's replication expires
    Extend {
        /// The VM's name or id
        vm: String,
        /// By how long, such as 30d [default: 100d]
        #[arg(long, value_name = "TIME", value_parser = lifetime::parse_extension)]
        by: Option<u32>,
    },
    /// End the replication of a VM that is cut over, for good: its replica goes, and the way back of the cutover
    Finalize {
        /// The VM's name or id
        vm: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Do not wait until nothing of it is left; print the job's id
        #[arg(long)]
        detach: bool,
    },
    /// End a VM's replication and remove its replica with all snapshots
    Remove {
        /// The VM's name or id
        vm: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The VM's name or id; it runs on where it is
    vm: String,
    /// The host that is to have the replica
    #[arg(long, value_name = "HOST")]
    to: HostId,
    /// Where one disk goes; the others go to the pool of the same name
    #[arg(long = "disk", value_name = "NAME=POOL", value_parser = parse_pool)]
    disks: Vec<DiskPlacement>,
    /// The pause between two cycles, such as 90s, 5m or 1h [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_idle, conflicts_with = "once")]
    idle: Option<u32>,
    /// Which snapshots are kept: the last ones, and the latest of each hour and day [default: last=3]
    #[arg(long, value_name = "last=N,hourly=N,daily=N", value_parser = parse_keep)]
    keep: Option<Retention>,
    /// No cycle is made from then on: a time such as 2026-12-01T02:00:00Z, or how long it is until then, such as 30d
    #[arg(long, value_name = "TIME", value_parser = lifetime::parse_expiry, conflicts_with = "once")]
    expires: Option<Timestamp>,
    /// A label to find it again by; may be given more than once
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::parse_label)]
    labels: Vec<(String, String)>,
    /// A rate that a cycle stays under, such as 100MiB/s
    #[arg(long, value_name = "RATE", value_parser = job::parse_rate)]
    bandwidth: Option<Bandwidth>,
    /// One cycle, and no more
    #[arg(long)]
    once: bool,
    /// Do not watch the one cycle; print its id
    #[arg(long)]
    detach: bool,
    /// Id of the job, a UUID: asking twice with one id makes one job
    #[arg(long, value_name = "UUID")]
    job: Option<JobId>,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The replicated VM's name or id
    vm: String,
    /// The host whose replica it is; where it is left out, that with the latest snapshot
    #[arg(long, value_name = "HOST")]
    at: Option<HostId>,
    /// A rate that the reading stays under, such as 100MiB/s
    #[arg(long, value_name = "RATE", value_parser = job::parse_rate)]
    bandwidth: Option<Bandwidth>,
    /// Do not watch the job; print its id
    #[arg(long)]
    detach: bool,
    /// Id of the job, a UUID: asking twice with one id makes one job
    #[arg(long, value_name = "UUID")]
    job: Option<JobId>,
}

pub(super) async fn run(command: &ReplicateCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    match command {
        ReplicateCommand::List { labels, view } if output.format == Format::Google => {
            google::list(labels, *view, client, output).await
        }
        ReplicateCommand::Show { vm, view } if output.format == Format::Google => {
            google::show(vm, *view, client, output).await
        }
        ReplicateCommand::Cycles { vm, cycle } if output.format == Format::Google => {
            google::cycles(vm, *cycle, client, output).await
        }
        ReplicateCommand::Add(args) => add(args, client, output).await,
        ReplicateCommand::List { labels, view } => {
            google::check(*view, output)?;
            let mut views = client.replicas().await?;
            views.retain(|view| labels::are_wanted(&view.labels, labels));
            output.result(&views, || list(&views))?;
            Ok(Exit::Ok)
        }
        ReplicateCommand::Show { vm, view } => {
            google::check(*view, output)?;
            let views = of(vm, client).await?;
            output.result(&views, || views.iter().map(show).collect::<Vec<_>>().join("\n\n"))?;
            Ok(Exit::Ok)
        }
        ReplicateCommand::Cycles { vm, cycle } => {
            let mut views = of(vm, client).await?;
            // What goes on counts more than what is over.
            views.sort_by_key(|view| view.replication.is_none());
            let mut cycles = views.iter().flat_map(cycles_of);
            match cycle {
                Some(number) => {
                    let cycle = cycles.find(|cycle| cycle.number == *number);
                    let cycle = cycle.ok_or_else(|| google::no_cycle(vm, *number))?;
                    output.result(&cycle, || show_cycle(&cycle))?;
                }
                None => {
                    let cycles: Vec<_> = cycles.collect();
                    output.result(&cycles, || list_cycles(&cycles))?;
                }
            }
            Ok(Exit::Ok)
        }
        ReplicateCommand::Pause { vm } => {
            let status = kept_by(vm, client).await?;
            done(Ok(()), pause(&status, client).await?, output)
        }
        ReplicateCommand::Resume { vm } => {
            let status = kept_by(vm, client).await?;
            done(Ok(()), resume(&status, client).await?, output)
        }
        ReplicateCommand::Verify(args) => verify(args, client, output).await,
        ReplicateCommand::Label { vm, changes } => {
            let status = kept_by(vm, client).await?;
            let told = format!("{vm}: the labels of its replication are changed");
            done(client.edit(status.job, changes.clone()).await, told, output)
        }
        ReplicateCommand::Update { vm, from, update_mask } => update(vm, from, update_mask, client, output).await,
        ReplicateCommand::Extend { vm, by } => lifetime::extend(vm, *by, client, output).await,
        ReplicateCommand::Finalize { vm, yes, detach } => lifetime::finalize(vm, *yes, *detach, client, output).await,
        ReplicateCommand::Remove { vm, yes } => remove(vm, *yes, client, output).await,
    }
}

async fn add(args: &AddArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let (request, policy) = (request(args), policy(args, client.sender()));
    let id = args.job.unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::now_v7()));
    if !args.once {
        output.remark(&format!("see how it stands: sterna replicate show {}", args.vm));
    }
    let exit = submit(id, &request, &policy, args.detach, client, output).await?;
    if args.once && !args.detach && matches!(exit, Exit::Ok) {
        tell_snapshot(id, client, output).await?;
    }
    Ok(exit)
}

/// Tells which snapshot a cycle has made. Its host says so with its next heartbeat.
async fn tell_snapshot(cycle: JobId, client: &Client, output: Output) -> Result<(), CliError> {
    for _ in 0..HEARTBEAT_POLLS {
        let views = client.replicas().await?;
        let mut snapshots = views.iter().filter_map(|view| view.replica.as_ref()).flat_map(Replica::snapshots);
        if let Some(snapshot) = snapshots.find(|snapshot| snapshot.cycle == cycle) {
            output.remark(&format!("snapshot {}, taken at {}", snapshot.number, moment(snapshot.taken_at)));
            break;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

async fn verify(args: &VerifyArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let policy = Policy { owner: Some(client.sender().to_owned()), ..Policy::default() };
    let id = args.job.unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::now_v7()));
    submit(id, &verification(args), &policy, args.detach, client, output).await
}

fn request(args: &AddArgs) -> MoveRequest {
    MoveRequest {
        disks: args.disks.clone(),
        replication: Some(ReplicationWish { retention: args.keep.unwrap_or_default() }),
        ..wish(JobKind::Replicate, &args.vm, Some(&args.to), args.bandwidth)
    }
}

fn verification(args: &VerifyArgs) -> MoveRequest {
    wish(JobKind::Verify, &args.vm, args.at.as_ref(), args.bandwidth)
}

fn wish(kind: JobKind, vm: &str, host: Option<&HostId>, bandwidth: Option<Bandwidth>) -> MoveRequest {
    MoveRequest { bandwidth, ..MoveRequest::plain(kind, vm, host.cloned()) }
}

fn policy(args: &AddArgs, owner: &str) -> Policy {
    let schedule = (!args.once).then(|| Schedule::after_pauses(args.idle.unwrap_or(IDLE_DEFAULT_SECONDS)));
    let expiration = args.expires.map(Expiration::at);
    Policy {
        owner: Some(owner.to_owned()),
        schedule,
        expiration,
        labels: args.labels.iter().cloned().collect(),
        ..Policy::default()
    }
}

/// The replicas of a VM, and its replication where it has none yet.
async fn of(vm: &str, client: &Client) -> Result<Vec<ReplicaView>, CliError> {
    let mut views = client.replicas().await?;
    views.retain(|view| is_of(view, vm));
    if views.is_empty() { Err(not_replicated(vm)) } else { Ok(views) }
}

fn is_of(view: &ReplicaView, vm: &str) -> bool {
    view.name.as_str() == vm || view.vm.to_string() == vm
}

fn not_replicated(vm: &str) -> CliError {
    CliError::new(Exit::NotFound, format!("no VM {vm} is replicated, and no host has a replica of one"))
        .hint(format!("see sterna replicate list; begin with sterna replicate add {vm} --to HOST"))
}

/// The job that keeps a VM's replica.
pub(super) async fn kept_by(vm: &str, client: &Client) -> Result<Box<JobStatus>, CliError> {
    let Some(job) = of(vm, client).await?.into_iter().find_map(|view| view.replication) else {
        return Err(CliError::new(Exit::Refused, format!("no job replicates VM {vm} at present"))
            .hint(format!("begin again: sterna replicate add {vm} --to HOST")));
    };
    let status = client.job(job).await?.status;
    if !status.policy.recurs() {
        return Err(CliError::new(
            Exit::Refused,
            format!("job {job} is a single cycle of VM {vm}, and ends by itself"),
        )
        .hint(format!("cancel it: sterna job cancel {job}")));
    }
    Ok(status)
}

async fn update(vm: &str, from: &Path, mask: &[String], client: &Client, output: Output) -> Result<Exit, CliError> {
    let wanted = body::from_file(from, |text| VmBody::of(text, mask))?;
    for warning in &wanted.warnings {
        output.remark(&format!("warning: {warning}"));
    }
    let status = kept_by(vm, client).await?;
    if let Some(name) = wanted.name.as_ref().filter(|name| name.vm != status.plan.vm.name) {
        let message = format!("the body is of VM {}, and VM {vm} is to be changed", name.vm);
        return Err(CliError::new(Exit::Usage, message).hint("leave its name out, or name that VM"));
    }
    let changes = wanted.changes(&status.policy);
    if changes.is_empty() {
        return done(Ok(()), format!("{vm}: its replication is so already"), output);
    }
    let told = format!("{vm}: its replication is changed; see it with sterna replicate show {vm}");
    done(client.edit(status.job, changes).await, told, output)
}

fn parse_idle(text: &str) -> Result<u32, String> {
    let within = |seconds: &u32| (1..=IDLE_MAX_SECONDS).contains(seconds);
    schedule::parse_seconds(text)
        .filter(within)
        .ok_or_else(|| format!("give a number with s, m, h or d, from 1s to {}d", IDLE_MAX_SECONDS / 86_400))
}

/// Numbers of snapshots; what is left out is as it is by default.
fn parse_keep(text: &str) -> Result<Retention, String> {
    let mut retention = Retention::default();
    for part in text.split(',') {
        let wanted = || format!("{part:?} is not understood; give last=N, hourly=N and daily=N with commas between");
        let (name, number) = part.split_once('=').ok_or_else(wanted)?;
        let number = number.parse().map_err(|_| wanted())?;
        match name.trim() {
            "last" => retention.last = number,
            "hourly" => retention.hourly = number,
            "daily" => retention.daily = number,
            _ => return Err(wanted()),
        }
    }
    retention.faults().into_iter().next().map_or(Ok(retention), Err)
}

fn parse_pool(text: &str) -> Result<DiskPlacement, String> {
    let placement = parse_placement(text)?;
    if placement.format.is_some() {
        return Err("the layers of a replica are qcow2 always; give NAME=POOL".to_owned());
    }
    Ok(placement)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::now;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: ReplicateCommand,
    }

    fn line(arguments: &[&str]) -> Result<ReplicateCommand, clap::Error> {
        Line::try_parse_from([&["replicate"], arguments].concat()).map(|line| line.command)
    }

    fn added(arguments: &[&str]) -> AddArgs {
        match line(&[&["add", "web", "--to", "beta"], arguments].concat()).expect("a command") {
            ReplicateCommand::Add(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_replication_is_asked_for() {
        let args =
            added(&["--disk", "root=bulk", "--idle", "10m", "--keep", "last=2,daily=7", "--bandwidth", "1MiB/s"]);
        let request = request(&args);
        assert_eq!((request.kind, request.disks.len()), (JobKind::Replicate, 1));
        let retention = request.replication.map(|wish| wish.retention);
        assert_eq!(retention, Some(Retention { last: 2, hourly: 0, daily: 7 }));
        let schedule = |args: &AddArgs| policy(args, "somebody").schedule;
        assert_eq!(schedule(&args), Some(Schedule::after_pauses(600)));
        assert_eq!(schedule(&added(&[])), Some(Schedule::after_pauses(IDLE_DEFAULT_SECONDS)));
        assert_eq!(schedule(&added(&["--once"])), None);
        let labels = policy(&added(&["--label", "team=shop", "--label", "new="]), "somebody").labels;
        assert_eq!(labels::told(&labels), "new=, team=shop");
        let expires = |expires| policy(&added(&["--expires", expires]), "somebody").expiration.map(|of| of.at);
        assert_eq!(expires("2126-11-21T22:47:03Z"), "2126-11-21T22:47:03Z".parse().ok());
        let days = expires("30d").map(|at| at.seconds_since(now()) / 86_400.0);
        assert!(days.is_some_and(|days| days > 29.9 && days <= 30.0), "{days:?}");
    }

    #[test]
    fn a_verification_is_asked_for() {
        let args = |arguments: &[&str]| match line(&[&["verify", "web"], arguments].concat()).expect("a command") {
            ReplicateCommand::Verify(args) => verification(&args),
            other => panic!("{other:?}"),
        };
        let request = args(&["--at", "beta", "--bandwidth", "1MiB/s"]);
        assert_eq!((request.kind, request.vm.as_str()), (JobKind::Verify, "web"));
        assert_eq!(request.target.map(|host| host.to_string()), Some("beta".to_owned()));
        assert_eq!(request.bandwidth, Some(Bandwidth(1 << 20)));
        assert_eq!(args(&[]).target, None, "that with the latest snapshot");
        assert!(line(&["verify"]).is_err());
    }

    #[test]
    fn a_mask_names_fields_with_commas_between() {
        let update = |arguments: &[&str]| line(&[&["update", "web"], arguments].concat());
        let ReplicateCommand::Update { update_mask, .. } =
            update(&["--from", "-", "--update-mask", "policy.idleDuration,labels"]).expect("a command")
        else {
            panic!("another command")
        };
        assert_eq!(update_mask, ["policy.idleDuration", "labels"]);
        assert!(update(&["--from", "vm.json"]).is_ok() && update(&["--update-mask", "labels"]).is_err());
        assert!(line(&["show", "web", "--view", "basic"]).is_ok() && line(&["show", "web", "--view", "some"]).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let wrong: [&[&str]; 10] = [
            &["--once", "--idle", "5m"],
            &["--once", "--expires", "5d"],
            &["--expires", "tomorrow"],
            &["--idle", "0s"],
            &["--idle", "31d"],
            &["--idle", "5"],
            &["--keep", "last=0"],
            &["--keep", "weekly=1"],
            &["--keep", "hourly=99,daily=99"],
            &["--disk", "root=fast:raw"],
        ];
        for arguments in wrong {
            assert!(line(&[&["add", "web", "--to", "beta"], arguments].concat()).is_err(), "{arguments:?}");
        }
        assert!(line(&["add", "web"]).is_err() && line(&["show"]).is_err());
        assert!(line(&["extend", "web"]).is_ok() && line(&["extend", "web", "--by", "0d"]).is_err());
    }
}
