//! `sterna clone`: make a VM of a replica, while its replication goes on and the replicated VM is left alone.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sterna_shared::id::{HostId, HostName, JobId, PoolName, VmId, VmName};
use sterna_shared::job::{JobKind, JobStatus, MoveRequest, Plan, Policy, StepKind};
use sterna_shared::replica::{CloneWish, NetworkWish, SeedWish};
use sterna_shared::units::ByteCount;

use super::error::{CliError, Exit};
use super::migrate::submit;
use super::output::{Format, Output, moment, or_dash, pairs, table};
use super::page::{self, PageArgs};
use super::rehearse::{self, RehearseArgs};
use super::vm::{done, yes_or_no};
use super::{body, job, labels, now};
use crate::client::Client;
use crate::google::{CloneBody, parse_request};
use crate::view::PlanView;

#[derive(Debug, Subcommand)]
pub(super) enum CloneCommand {
    /// Make a VM of a replica, at the host that has it
    Create(Box<CreateArgs>),
    /// See whether a VM would come up from its replica: boot a clone that reaches nothing, probe it, delete it
    Rehearse(Box<RehearseArgs>),
    /// List the jobs that make clones, or made them, newest first; also as Google has them, with --output google
    #[command(visible_alias = "ls")]
    List(PageArgs),
    /// Show one such job; also as Google has it, with --output google
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
    sterna clone create web --at beta --full --pool bulk --dry-run\n  \
    sterna clone create web --from clone.json --start")]
pub(super) struct CreateArgs {
    /// The replicated VM's name or id
    vm: String,
    /// A file with a CloneJob as Google's Migrate to VMs has it, in JSON; - reads stdin. What is given here besides counts more
    #[arg(long, value_name = "FILE.json")]
    from: Option<PathBuf>,
    /// The clone's name [default: the VM's, and -clone behind it]
    #[arg(long)]
    name: Option<VmName>,
    /// A label to find it again by; may be given more than once
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::parse_label)]
    labels: Vec<(String, String)>,
    /// The host whose replica it is made of; where it is left out, that with the latest snapshot
    #[arg(long, value_name = "HOST")]
    at: Option<HostId>,
    #[command(flatten)]
    made: MadeArgs,
    /// Whether its UEFI firmware starts only what is signed: on or off; where it is left out, as the VM's
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    secure_boot: Option<bool>,
    /// What it is connected to: isolated (nothing), same (the bridges the VM is connected to), or a bridge [default: isolated]
    #[arg(long, value_name = "isolated|same|BRIDGE", value_parser = parse_network)]
    network: Option<NetworkWish>,
    /// Copy all that the snapshot holds, so that it stands on nothing but its own disks
    #[arg(long)]
    full: bool,
    /// Start it
    #[arg(long)]
    start: bool,
    /// What that system calls itself, with or without a domain [default: made of the clone's name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<HostName>,
    /// Whether it has a read-only disk that tells cloud-init who it is: auto (where its system has cloud-init), always, or never
    #[arg(long, value_name = "auto|always|never", default_value_t)]
    seed: SeedWish,
    /// Check and show what it would be, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not watch the job; print its id
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Id of the job, a UUID: asking twice with one id makes one job
    #[arg(long, visible_alias = "request-id", value_name = "UUID", value_parser = parse_request)]
    job: Option<JobId>,
}

/// What every VM that is made of a replica is made of, and how large it is.
#[derive(Debug, Args)]
pub(super) struct MadeArgs {
    /// The snapshot it is made from; where it is left out, the latest
    #[arg(long, value_name = "NUMBER")]
    pub(super) snapshot: Option<u32>,
    /// The pool its disks are made in; where it is left out, those of the replica
    #[arg(long)]
    pub(super) pool: Option<PoolName>,
    /// Its virtual processors; where it is left out, as many as the VM has
    #[arg(long, value_name = "COUNT")]
    pub(super) vcpus: Option<u16>,
    /// Its memory, such as 512MiB; where it is left out, as much as the VM has
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Option<ByteCount>,
    /// Leave the system on its disks as it is, with the host name, keys and ids of the VM
    #[arg(long)]
    pub(super) skip_os_adaptation: bool,
}

pub(super) async fn run(command: &CloneCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    match command {
        CloneCommand::Create(args) => create(args, client, output).await,
        CloneCommand::Rehearse(args) => rehearse::run(args, client, output).await,
        CloneCommand::List(args) if output.format == Format::Google => {
            let page = args.page(output.format);
            output.json(&client.replications(now()).await?.known().clone_jobs(&page))?;
            Ok(Exit::Ok)
        }
        CloneCommand::Show { job } if output.format == Format::Google => {
            let found = client.replications(now()).await?.known().clone_job(*job);
            output.json(&found.ok_or_else(|| no_clone(*job))?)?;
            Ok(Exit::Ok)
        }
        CloneCommand::List(args) => page::list(JobKind::Clone, args, list, client, output).await,
        CloneCommand::Show { job } => {
            let view = job::of_kind(*job, JobKind::Clone, client).await?.ok_or_else(|| no_clone(*job))?.view();
            output.result(&view, || job::show(&view))?;
            Ok(Exit::Ok)
        }
        CloneCommand::Cancel { job } => {
            job::of_kind(*job, JobKind::Clone, client).await?.ok_or_else(|| no_clone(*job))?;
            let told = format!("cancel of {job} was sent; sterna job watch {job} tells when everything is back");
            done(client.cancel(*job).await, told, output)
        }
    }
}

async fn create(args: &CreateArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let body = args.from.as_deref().map_or_else(|| Ok(CloneBody::default()), read_body)?;
    for warning in &body.warnings {
        output.remark(&format!("warning: {warning}"));
    }
    let id = args.job.or(body.request).unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::now_v7()));
    let request = request(args, &body, VmId::from_uuid(uuid::Uuid::now_v7()))?;
    let labels = body.labels.into_iter().chain(args.labels.iter().cloned()).collect();
    let policy = Policy { owner: Some(client.sender().to_owned()), labels, ..Policy::default() };
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

fn no_clone(job: JobId) -> CliError {
    CliError::new(
        Exit::NotFound,
        format!("no job {job} is listed that makes a clone of a VM which is still known by name"),
    )
    .hint(format!("see sterna clone list, or sterna clone show {job} --output json"))
}

fn read_body(path: &Path) -> Result<CloneBody, CliError> {
    body::from_file(path, str::parse::<CloneBody>)
}

fn request(args: &CreateArgs, body: &CloneBody, id: VmId) -> Result<MoveRequest, CliError> {
    let body = CloneBody {
        name: args.name.clone().or_else(|| body.name.clone()),
        host: args.at.clone().or_else(|| body.host.clone()),
        secure_boot: args.secure_boot.or(body.secure_boot),
        network: args.network.clone().or_else(|| body.network.clone()),
        hostname: args.hostname.clone().or_else(|| body.hostname.clone()),
        ..body.clone()
    };
    let wish = body.wish(&args.vm, id).map_err(unnamed)?;
    let wish = CloneWish {
        snapshot: args.made.snapshot,
        pool: args.made.pool.clone(),
        vcpus: args.made.vcpus.or(wish.vcpus),
        memory: args.made.memory.or(wish.memory),
        full: args.full,
        start: args.start,
        skip_os_adaptation: args.made.skip_os_adaptation,
        seed: args.seed,
        ..wish
    };
    Ok(MoveRequest::making(JobKind::Clone, &args.vm, body.host, wish))
}

/// That what is made of a VM cannot be called after it.
pub(super) fn unnamed(what: String) -> CliError {
    CliError::new(Exit::Usage, what).hint("give --name")
}

fn parse_network(text: &str) -> Result<NetworkWish, String> {
    Ok(match text {
        "isolated" => NetworkWish::Isolated,
        "same" => NetworkWish::Same,
        bridge => NetworkWish::Bridge(bridge.parse().map_err(|error: sterna_shared::id::InvalidId| error.to_string())?),
    })
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
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

pub(super) fn show_plan(plan: &Plan) -> String {
    let spec = &plan.vm;
    let of = plan.clone.as_ref();
    let head = pairs([
        ("clone", format!("{} ({})", spec.name, spec.id)),
        ("host", plan.target.id.to_string()),
        ("of", or_dash(of.map(|of| format!("{}, snapshot {}", of.replica, of.snapshot)))),
        ("memory", spec.memory.to_string()),
        ("vcpus", spec.vcpus.to_string()),
        ("secure boot", yes_or_no(spec.secure_boot).to_owned()),
        ("adapted", yes_or_no(plan.steps.contains(&StepKind::AdaptOs)).to_owned()),
        ("host name", or_dash(of.and_then(|of| of.hostname.as_ref()))),
        ("seed", or_dash(of.map(|of| of.seed))),
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
    use sterna_shared::replica::ReplicaView;
    use sterna_shared::view::google::{Known, Page};

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
        let request = made(arguments, &CloneBody::default());
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
        assert_eq!(wished(&["--seed", "always"]).seed, SeedWish::Always);
        let switches = [&[][..], &["--secure-boot", "on"], &["--secure-boot", "off"]];
        assert_eq!(switches.map(|arguments| wished(arguments).secure_boot), [None, Some(true), Some(false)]);
        assert_eq!(wished(&["--network", "lan"]).network, NetworkWish::Bridge("lan".parse().expect("a name")));
        for wrong in [
            &["create"][..],
            &["create", "web", "--network", "a/b"],
            &["create", "web", "--dry-run", "--detach"],
            &["create", "web", "--hostname", "a b"],
            &["create", "web", "--seed", "perhaps"],
            &["create", "web", "--secure-boot"],
            &["create", "web", "--secure-boot", "true"],
        ] {
            assert!(line(wrong).is_err(), "{wrong:?}");
        }
    }

    fn made(arguments: &[&str], body: &CloneBody) -> MoveRequest {
        let CloneCommand::Create(args) = line(&[&["create", "web"], arguments].concat()).expect("a command") else {
            panic!("another command")
        };
        request(&args, body, example::vm("web").id).expect("a request")
    }

    #[test]
    fn a_body_is_a_wish_and_the_command_line_counts_more() {
        let text = r#"{ "computeEngineTargetDetails": {
            "vmName": "trial", "zone": "beta", "machineType": "custom-2-1024", "networkInterfaces": [{ "network": "lan" }],
            "hostname": "trial.example", "secureBoot": true
        } }"#;
        let body: CloneBody = text.parse().expect("a body");
        let wish = |request: MoveRequest| *request.clone.expect("a wish");
        let from = made(&[], &body);
        assert_eq!((from.kind, from.target.as_ref().map(HostId::as_str)), (JobKind::Clone, Some("beta")));
        let from = wish(from);
        assert_eq!((from.name.as_str(), from.vcpus, from.memory), ("trial", Some(2), Some(ByteCount::mebibytes(1024))));
        assert_eq!(
            (from.hostname.as_ref().map(HostName::as_str), from.secure_boot),
            (Some("trial.example"), Some(true))
        );
        assert_eq!((from.network, from.start), (NetworkWish::Bridge("lan".parse().expect("a name")), false));
        let both = made(
            &[
                "--name",
                "other",
                "--hostname",
                "other",
                "--at",
                "gamma",
                "--vcpus",
                "1",
                "--network",
                "isolated",
                "--start",
                "--secure-boot",
                "off",
            ],
            &body,
        );
        assert_eq!(both.target.as_ref().map(HostId::as_str), Some("gamma"));
        let both = wish(both);
        assert_eq!((both.hostname.as_ref().map(HostName::as_str), both.seed), (Some("other"), SeedWish::Auto));
        assert_eq!((both.name.as_str(), both.vcpus, both.network), ("other", Some(1), NetworkWish::Isolated));
        assert_eq!((both.memory, both.start), (Some(ByteCount::mebibytes(1024)), true));
        assert_eq!(both.secure_boot, Some(false));
    }

    #[test]
    fn a_body_comes_of_a_file_of_some_length() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("clone.json");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read_body(&path)
        };
        assert_eq!(read(r#"{ "computeEngineTargetDetails": {} }"#), Ok(CloneBody::default()));
        let long = read(&" ".repeat(70_000)).expect_err("too long");
        assert!(long.message.contains("clone.json: the body: it is longer than 65536 bytes"), "{}", long.message);
        let wrong = read(r#"{ "a": 1 }"#).expect_err("no field");
        assert_eq!(wrong.exit, Exit::Usage);
        assert!(wrong.message.contains("clone.json: a: there is no such field"), "{}", wrong.message);
        assert_eq!(read_body(&directory.path().join("none")).expect_err("no file").exit, Exit::Usage);
    }

    #[test]
    fn an_id_of_zeroes_is_no_request() {
        let asked = |id: &str| line(&["create", "web", "--request-id", id]);
        assert!(asked("0197c0de-0000-7000-8000-000000000101").is_ok());
        assert!(asked("00000000-0000-0000-0000-000000000000").is_err());
        let CloneCommand::Create(args) = asked("0197c0de-0000-7000-8000-000000000101").expect("a command") else {
            panic!("another command")
        };
        assert_eq!(args.job, Some(example::job(1)), "the same as --job");
    }

    /// A plan of the example's clone.
    fn planned() -> Plan {
        let mut target = example::inventory("beta");
        target.replicas = vec![example::replica()];
        let mut fleet = Fleet::default();
        fleet.heard(target, example::now(), Duration::ZERO);
        plan(&fleet, [], &example::clone_request(), example::seeds()).expect("a plan")
    }

    #[test]
    fn a_list_in_google_s_form_reads_as_promised() {
        let beta = "beta".parse().expect("a name");
        let replica =
            ReplicaView::of(&beta, Some(&example::replica()), None, None, example::later(60)).expect("a view");
        let jobs = [JobStatus::planned(planned())];
        let known = Known { jobs: &jobs, replicas: &[replica], progress: &[], now: example::later(60) };
        let text = serde_json::to_string_pretty(&known.clone_jobs(&Page::latest(25))).expect("JSON");
        assert_eq!(text, LIST);
        let one = serde_json::to_value(known.clone_job(example::job(1))).expect("JSON");
        let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(list["cloneJobs"][0], one);
        // What a job tells of itself can be asked for again.
        let again: CloneBody = one.to_string().parse().expect("a body");
        assert_eq!((again.name, again.host), (Some("trial".parse().expect("a name")), Some(beta)));
    }

    const LIST: &str = r#"{
  "cloneJobs": [
    {
      "createTime": "2026-11-21T22:26:40Z",
      "name": "projects/sterna/locations/beta/sources/alpha/migratingVms/web/cloneJobs/0197c0de-0000-7000-8000-000000000101",
      "targetDetails": {
        "name": "trial",
        "targetProject": "sterna",
        "zone": "beta",
        "machineType": "custom-1-512",
        "networkInterfaces": [
          {}
        ],
        "bootOption": "BIOS"
      },
      "state": "PENDING",
      "stateTime": "2026-11-21T22:26:40Z",
      "computeEngineVmDetails": {
        "name": "trial",
        "targetProject": "sterna",
        "zone": "beta",
        "machineType": "custom-1-512",
        "networkInterfaces": [
          {}
        ],
        "bootOption": "BIOS"
      },
      "computeEngineTargetDetails": {
        "vmName": "trial",
        "project": "sterna",
        "zone": "beta",
        "machineType": "custom-1-512",
        "networkInterfaces": [
          {}
        ],
        "bootOption": "COMPUTE_ENGINE_BOOT_OPTION_BIOS"
      }
    }
  ]
}"#;

    #[test]
    fn people_see_what_it_would_be() {
        let plan = planned();
        let text = show_plan(&plan);
        assert!(
            text.contains("trial") && text.contains("snapshot 2") && text.contains("layer 2 in pool fast"),
            "{text}"
        );
        let text = list(&[JobStatus::planned(plan)]);
        assert!(text.contains("trial") && text.contains("beta"), "{text}");
    }
}
