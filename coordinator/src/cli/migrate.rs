//! `sterna migrate`: move a VM, its disks, or both.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use sterna_shared::id::{HostId, JobId, PlannedVmId};
use sterna_shared::job::{
    DiskPlacement, JobKind, JobStatus, ModeWish, MoveRequest, MoveSettings, Plan, Policy, StorageWish,
};
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::view::cim::{BandwidthUnit, Settings};

use super::error::{CliError, Exit};
use super::output::{Output, or_dash, pairs, table};
use super::policy::PolicyArgs;
use super::{job, watch};
use crate::client::Client;
use crate::view::{JobView, PlanView};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Mode {
    /// Live if the guest runs, cold if it is stopped
    Auto,
    /// The guest runs on, but for the blackout
    Live,
    /// The guest is stopped
    Cold,
}

impl From<Mode> for ModeWish {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Live => Self::Live,
            Mode::Cold => Self::Cold,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Storage {
    /// All disks are copied
    All,
    /// No disk is copied: both hosts share the pools
    None,
}

impl From<Storage> for StorageWish {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::All => Self::All,
            Storage::None => Self::None,
        }
    }
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
    /// A setting of Msvm_VirtualSystemMigrationSettingData by its name, such as EnableCompression=true
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,
    /// The planned VM at that host to use; where it is left out, the one that is there for the VM, if any
    #[arg(long, value_name = "UUID", conflicts_with = "storage_only")]
    planned: Option<PlannedVmId>,
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
    #[command(flatten)]
    submit: SubmitArgs,
}

/// How the job is to be treated that comes of it.
#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    pub(super) policy: PolicyArgs,
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
    let mut policy = args.submit.policy.policy(client.sender());
    let request = args.wish.request(JobKind::Move, &mut policy)?;
    args.submit.policy.recover(&request, &mut policy)?;
    args.submit.submit(&request, &policy, show_plan, client, output).await
}

impl SubmitArgs {
    /// Has a wish become a job, and watches it; or tells what it would come to, to people as `show` has it.
    pub(super) async fn submit(
        &self,
        request: &MoveRequest,
        policy: &Policy,
        show: fn(&Plan) -> String,
        client: &Client,
        output: Output,
    ) -> Result<Exit, CliError> {
        let job = self.job.unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::now_v7()));
        if self.dry_run {
            let draft = client.plan(job, request, policy).await?;
            for wait in &draft.waits_for {
                output.remark(&format!("it would wait: {wait}"));
            }
            output.result(&PlanView::new(&draft.plan), || show(&draft.plan))?;
            return Ok(Exit::Ok);
        }
        submit(job, request, policy, self.detach, client, output).await
    }
}

/// Submits a job.
pub(super) async fn begin(
    job: JobId,
    request: &MoveRequest,
    policy: &Policy,
    client: &Client,
) -> Result<Box<JobStatus>, CliError> {
    client.migrate(job, request, policy).await.map_err(|error| {
        let error = CliError::from(error);
        // Only then may the job exist unseen.
        if error.exit == Exit::Unreachable {
            error.hint(format!("if in doubt whether it began: sterna job show {job}"))
        } else {
            error
        }
    })
}

/// Submits a job and, unless it waits for its time, follows it to its end.
pub(super) async fn submit(
    job: JobId,
    request: &MoveRequest,
    policy: &Policy,
    detach: bool,
    client: &Client,
    output: Output,
) -> Result<Exit, CliError> {
    let status = begin(job, request, policy, client).await.map_err(|error| match error.exit {
        Exit::Unreachable => error.hint(format!("the same command with --job={job} makes no second one")),
        _ => error,
    })?;
    let view = JobView::new(&status, None);
    // One that waits for its time is not watched until then.
    if detach || policy.schedule.is_some() {
        output.remark(&format!("watch it: sterna job watch {job}"));
        output.result(&view, || job.to_string())?;
        return Ok(Exit::Ok);
    }
    watch::run(view, client, output).await
}

impl WishArgs {
    /// The wish that they come to. Settings may say something of the policy too.
    ///
    /// # Errors
    /// A setting that there is not, or that is refused.
    pub(super) fn request(&self, kind: JobKind, policy: &mut Policy) -> Result<MoveRequest, CliError> {
        let mut request = MoveRequest {
            kind,
            vm: self.vm.clone(),
            target: self.to.clone(),
            mode: self.mode.into(),
            storage: self.storage.into(),
            disks: self.disks.clone(),
            storage_only: self.storage_only,
            bandwidth: self.bandwidth,
            blackout_max_ms: self.max_blackout,
            lanes: self.lanes,
            settings: MoveSettings::default(),
            planned: self.planned,
            hold_seconds: None,
            replication: None,
            clone: None,
            cutover: None,
        };
        let mut settings = Settings { request: &mut request, policy, unit: BandwidthUnit::default() };
        // What a bandwidth counts in is to be known before it.
        let (units, others): (Vec<_>, Vec<_>) = self.settings.iter().partition(|(name, _)| name == "BandwidthUnit");
        for (name, value) in units.into_iter().chain(others) {
            settings.apply(name, value).map_err(|fault| CliError::new(Exit::Usage, fault.to_string()))?;
        }
        Ok(request)
    }
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE, such as EnableCompression=true")?;
    Ok((name.to_owned(), value.to_owned()))
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

pub(super) fn show_plan(plan: &Plan) -> String {
    let plan = PlanView::new(plan);
    let steps: Vec<&str> = plan.steps.iter().map(|step| step.as_str()).collect();
    let head = pairs([
        ("vm", format!("{} ({})", plan.vm.name, plan.vm.id)),
        ("move", format!("{} → {}", plan.source, plan.target)),
        ("memory to copy", ByteCount(plan.memory_bytes).to_string()),
        ("disks to copy", format!("at most {}", ByteCount(plan.disk_bytes))),
        ("lanes", plan.lanes.to_string()),
        ("rate", plan.bandwidth.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string())),
        ("blackout", format!("at most {} ms", plan.blackout_max_ms)),
        ("planned VM", or_dash(plan.planned)),
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
