//! `sterna migrate`: move a VM, its disks, or both.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::Value;
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{
    DiskPlacement, KEEP_DEFAULT_SECONDS, ModeWish, MoveRequest, PRIORITY_DEFAULT, Policy, Recovery, StorageWish,
};
use sterna_shared::units::{Bandwidth, ByteCount};

use super::error::{CliError, Exit};
use super::output::{Output, pairs, table};
use super::schedule::ScheduleArgs;
use super::{job, watch};
use crate::client::Client;
use crate::view::{JobView, PlanView};

/// The largest file with a move that is read, in bytes.
const REQUEST_LENGTH_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// Live if the guest runs, cold if it is stopped
    Auto,
    /// The guest runs on, but for the blackout
    Live,
    /// The guest is stopped
    Cold,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Storage {
    /// All disks are copied
    All,
    /// No disk is copied: both hosts share the pools
    None,
}

/// What is to be moved, where to and how.
#[derive(Debug, Args)]
pub(super) struct WishArgs {
    /// The VM's name or id
    vm: String,
    /// The host to move it to
    #[arg(long, value_name = "HOST", required_unless_present = "storage_only")]
    to: Option<HostId>,
    /// Whether the guest may stop meanwhile
    #[arg(long, value_enum, default_value = "auto")]
    mode: Mode,
    /// Whether its disks go along
    #[arg(long, value_enum, default_value = "all")]
    storage: Storage,
    /// Where one disk goes; the others go to the pool of the same name
    #[arg(long = "disk", value_name = "NAME=POOL[:FORMAT]", value_parser = parse_placement)]
    disks: Vec<DiskPlacement>,
    /// Move disks only; the guest stays on its host, running or not
    #[arg(long, conflicts_with = "storage")]
    storage_only: bool,
    /// A rate that disks and memory together stay under, such as 100MiB/s
    #[arg(long, value_name = "RATE", value_parser = job::parse_rate)]
    bandwidth: Option<Bandwidth>,
    /// The longest the guest may stand still before the move gives up
    #[arg(long, value_name = "MILLISECONDS")]
    max_blackout: Option<u32>,
    /// Connections between the two hosts
    #[arg(long, value_name = "COUNT")]
    lanes: Option<u8>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sterna migrate web --to beta\n  \
    sterna migrate web --to beta --disk root=fast:raw --bandwidth 200MiB/s\n  \
    sterna migrate web --storage-only --disk root=slow\n  \
    sterna migrate web --to beta --dry-run --output json")]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    wish: WishArgs,
    /// Which jobs go first where not all can: lower numbers
    #[arg(long, value_name = "NUMBER", default_value_t = PRIORITY_DEFAULT)]
    priority: u32,
    /// Take the job off the list once it is over and its time there is up
    #[arg(long)]
    delete_on_completion: bool,
    /// How long it is listed then
    #[arg(long, value_name = "SECONDS", default_value_t = KEEP_DEFAULT_SECONDS)]
    keep: u32,
    /// Tell somebody when it is over: subject:NAME, or command:NAME of the coordinators' configuration
    #[arg(long, value_name = "WHOM")]
    notify: Option<String>,
    /// Run it after the jobs of that group that were submitted before it
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// When it fails, let the next job of its group run all the same
    #[arg(long, conflicts_with_all = ["reruns", "on_failure", "otherwise_to", "otherwise"])]
    go_on: bool,
    /// When it fails, try again, at most that often
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["on_failure", "otherwise_to", "otherwise"])]
    reruns: Option<u32>,
    /// The pause before it is tried again, which doubles each time
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "reruns")]
    rerun_pause: u32,
    /// What people do when it fails, in words
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["otherwise_to", "otherwise"])]
    on_failure: Option<String>,
    /// When it fails, move the VM to that host instead, as a job of its own
    #[arg(long, value_name = "HOST", conflicts_with_all = ["otherwise", "storage_only"])]
    otherwise_to: Option<HostId>,
    /// When it fails, run the move that this file asks for in JSON, as a job of its own: vm, target, mode and the like
    #[arg(long, value_name = "FILE")]
    otherwise: Option<PathBuf>,
    #[command(flatten)]
    schedule: ScheduleArgs,
    /// Check and show the plan, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not watch the job; print its id
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Id of the job, a UUID: asking twice with one id makes one job
    #[arg(long, value_name = "UUID")]
    job: Option<JobId>,
}

pub(super) async fn run(args: &MigrateArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let job = args.job.unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::now_v7()));
    let request = args.wish.request();
    let policy = policy_of(args, &request, client.sender())?;
    if args.dry_run {
        let draft = client.plan(job, &request, &policy).await?;
        for wait in &draft.waits_for {
            output.remark(&format!("it would wait: {wait}"));
        }
        let view = PlanView::new(&draft.plan);
        output.result(&view, || show_plan(&view))?;
        return Ok(Exit::Ok);
    }
    let status = client.migrate(job, &request, &policy).await.map_err(|error| {
        let error = CliError::from(error);
        // Only then may the job exist unseen.
        if error.exit == Exit::Unreachable {
            error.hint(format!("if in doubt whether it began: sterna job show {job}; the same command with --job {job} makes no second one"))
        } else {
            error
        }
    })?;
    let view = JobView::new(&status, None);
    // One that waits for its time is not watched until then.
    if args.detach || policy.schedule.is_some() {
        output.remark(&format!("watch it: sterna job watch {job}"));
        output.result(&view, || job.to_string())?;
        return Ok(Exit::Ok);
    }
    watch::run(view, client, output).await
}

fn policy_of(args: &MigrateArgs, request: &MoveRequest, owner: &str) -> Result<Policy, CliError> {
    Ok(Policy {
        owner: Some(owner.to_owned()),
        priority: args.priority,
        delete_on_completion: args.delete_on_completion,
        keep_seconds: args.keep,
        notify: args.notify.clone(),
        schedule: args.schedule.schedule(),
        recovery: recovery_of(args, request)?,
        group: args.group.clone(),
    })
}

/// At most one of the flags is given.
fn recovery_of(args: &MigrateArgs, request: &MoveRequest) -> Result<Recovery, CliError> {
    Ok(if let Some(times) = args.reruns {
        Recovery::Rerun { times, pause_seconds: args.rerun_pause }
    } else if let Some(text) = &args.on_failure {
        Recovery::Other { text: text.clone() }
    } else if let Some(host) = &args.otherwise_to {
        Recovery::Run { request: Box::new(MoveRequest { target: Some(host.clone()), ..request.clone() }) }
    } else if let Some(file) = &args.otherwise {
        Recovery::Run { request: Box::new(read_request(file)?) }
    } else if args.go_on {
        Recovery::Next
    } else {
        Recovery::Stop
    })
}

fn read_request(file: &Path) -> Result<MoveRequest, CliError> {
    let faulty = |cause: String| {
        let mut error = CliError::new(Exit::Usage, format!("{} holds no move", file.display()))
            .hint("give a file such as {\"vm\": \"web\", \"target\": \"beta\"}; docs/schema has all there may be in a request");
        error.causes.push(cause);
        error
    };
    let length = std::fs::metadata(file).map_err(|error| faulty(error.to_string()))?.len();
    if length > REQUEST_LENGTH_MAX {
        return Err(faulty(format!("it has {length} bytes, over the limit of {REQUEST_LENGTH_MAX}")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| faulty(error.to_string()))?;
    parse_request(&text).map_err(faulty)
}

/// A wish in JSON. What it does not know it does not pass over: a limit that is misspelt would be none.
fn parse_request(text: &str) -> Result<MoveRequest, String> {
    let request: MoveRequest = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (given, known) = (serde_json::from_str(text), serde_json::to_value(&request));
    let (Ok(Value::Object(given)), Ok(Value::Object(known))) = (given, known) else {
        return Err("it is no JSON object".to_owned());
    };
    match given.keys().find(|key| !known.contains_key(*key)) {
        Some(key) => Err(format!("a move has no {key:?}")),
        None => Ok(request),
    }
}

impl WishArgs {
    /// The wish that they come to.
    pub(super) fn request(&self) -> MoveRequest {
        MoveRequest {
            vm: self.vm.clone(),
            target: self.to.clone(),
            mode: match self.mode {
                Mode::Auto => ModeWish::Auto,
                Mode::Live => ModeWish::Live,
                Mode::Cold => ModeWish::Cold,
            },
            storage: match self.storage {
                Storage::All => StorageWish::All,
                Storage::None => StorageWish::None,
            },
            disks: self.disks.clone(),
            storage_only: self.storage_only,
            bandwidth: self.bandwidth,
            blackout_max_ms: self.max_blackout,
            lanes: self.lanes,
        }
    }
}

pub(super) fn parse_placement(text: &str) -> Result<DiskPlacement, String> {
    let (disk, place) =
        text.split_once('=').ok_or_else(|| "give NAME=POOL or NAME=POOL:FORMAT, such as root=fast:raw".to_owned())?;
    let (pool, format) = match place.split_once(':') {
        Some((pool, format)) => (pool, Some(format.parse()?)),
        None => (place, None),
    };
    let invalid = |error: sterna_shared::id::InvalidId| error.to_string();
    Ok(DiskPlacement { disk: disk.parse().map_err(invalid)?, pool: pool.parse().map_err(invalid)?, format })
}

fn show_plan(plan: &PlanView) -> String {
    let steps: Vec<&str> = plan.steps.iter().map(|step| step.as_str()).collect();
    let head = pairs([
        ("vm", format!("{} ({})", plan.vm.name, plan.vm.id)),
        ("move", format!("{} → {}", plan.source, plan.target)),
        ("memory to copy", ByteCount(plan.memory_bytes).to_string()),
        ("disks to copy", format!("at most {}", ByteCount(plan.disk_bytes))),
        ("lanes", plan.lanes.to_string()),
        ("rate", plan.bandwidth.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string())),
        ("blackout", format!("at most {} ms", plan.blackout_max_ms)),
        ("steps", steps.join(", ")),
    ]);
    let mut text = head;
    if !plan.disks.is_empty() {
        let disks = table(
            ["DISK", "SIZE", "FROM", "TO"],
            plan.disks.iter().map(|disk| {
                [
                    disk.disk.to_string(),
                    ByteCount(disk.bytes).to_string(),
                    format!("{} ({})", disk.source_pool, disk.source_format),
                    format!("{} ({})", disk.target_pool, disk.target_format),
                ]
            }),
        );
        let _ = write!(text, "\n\n{disks}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_in_a_file_is_parsed_or_explained() {
        let request = parse_request(r#"{"vm": "web", "target": "beta", "lanes": 2}"#).expect("a move");
        assert_eq!((request.vm.as_str(), request.lanes, request.mode), ("web", Some(2), ModeWish::Auto));
        for (bad, told) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"target": "beta"}"#, "missing field `vm`"),
            (r#"{"vm": "web", "max_blackout": 5}"#, "no \"max_blackout\""),
        ] {
            let error = parse_request(bad).expect_err(bad);
            assert!(error.contains(told), "{bad}: {error}");
        }
    }

    #[test]
    fn placements_are_parsed_or_explained() {
        let placement = parse_placement("root=fast:raw").expect("a placement");
        assert_eq!((placement.disk.as_str(), placement.pool.as_str()), ("root", "fast"));
        assert_eq!(placement.format.map(|format| format.as_str()), Some("raw"));
        assert_eq!(parse_placement("root=fast").expect("a placement").format, None);
        for bad in ["root", "root=", "=fast", "root=fast:vmdk", "root=a/b"] {
            assert!(!parse_placement(bad).expect_err(bad).is_empty());
        }
    }
}
