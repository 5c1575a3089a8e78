//! `sterna group`: replications, and other jobs, that belong together. A group is there as long as a job is in it.
//!
//! What is done to a whole group is done to each replication in it, as the command for one does it. Where one is refused the others
//! have their turn all the same.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;
use sterna_shared::bus::JobChange;
use sterna_shared::id::{JobId, VmName};
use sterna_shared::job::{JobKind, JobStatus, Policy};

use super::cutover::{self, LimitArgs, MannerArgs};
use super::error::{CliError, Exit};
use super::output::{Format, Output, table};
use super::vm::done;
use super::{confirm, job, lifetime, migrate, now, replicate, watch};
use crate::client::Client;
use crate::view::JobView;

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// List all groups; those of replications also as Google has them, with --output google
    #[command(visible_alias = "ls")]
    List,
    /// Show the jobs of a group, in the order in which they were submitted; those that are no replications run in that order. Also
    /// the group itself as Google has it, with --output google
    Show {
        /// Its name
        group: String,
    },
    /// Put the replication of a VM into a group, and take it out of the one that it was in
    Add {
        /// The group's name
        group: String,
        /// The VM's name or id
        vm: String,
    },
    /// Take the replication of a VM out of a group
    Remove {
        /// The group's name
        group: String,
        /// The VM's name or id
        vm: String,
    },
    /// Stop all replications of a group until they are resumed, as sterna replicate pause does one
    Pause {
        /// The group's name
        group: String,
    },
    /// Have all replications of a group go on, as sterna replicate resume does one
    Resume {
        /// The group's name
        group: String,
    },
    /// Move all replicated VMs of a group over to the hosts that have their replicas, as sterna cutover start does one
    Cutover(CutoverArgs),
    /// End all replications of a group for good, as sterna replicate finalize does one; their VMs are cut over before
    Finalize {
        /// The group's name
        group: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Do not wait until nothing of them is left
        #[arg(long)]
        detach: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sterna group cutover shop --dry-run\n  \
    sterna group cutover shop --cold --revert-window 3d")]
pub(super) struct CutoverArgs {
    /// The group's name
    group: String,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    manner: MannerArgs,
    /// Check each, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until they are over; print the jobs' ids
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
}

/// A group.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Group {
    name: String,
    /// VMs whose replications are in it.
    replicated: Vec<VmName>,
    /// Its other jobs, as far as they are listed.
    jobs: Vec<JobId>,
}

pub(super) async fn run(command: &GroupCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    match command {
        GroupCommand::List if output.format == Format::Google => {
            output.json(&client.replications(now()).await?.known().groups(None))?;
            Ok(Exit::Ok)
        }
        GroupCommand::Show { group } if output.format == Format::Google => {
            let found = client.replications(now()).await?.known().groups(Some(group));
            if found.groups.is_empty() {
                return Err(no_member(group));
            }
            output.json(&found)?;
            Ok(Exit::Ok)
        }
        GroupCommand::List => {
            let groups = groups(&client.jobs().await?);
            output.result(&groups, || list(&groups))?;
            Ok(Exit::Ok)
        }
        GroupCommand::Show { group } => job::show_group(group, client, output).await,
        GroupCommand::Add { group, vm } => {
            let status = replicate::kept_by(vm, client).await?;
            change(&status, Some(group.clone()), client).await?;
            done(Ok(()), format!("{vm}: its replication is in group {group}"), output)
        }
        GroupCommand::Remove { group, vm } => {
            let status = replicate::kept_by(vm, client).await?;
            if status.policy.group.as_ref() != Some(group) {
                let message = format!("the replication of VM {vm} is not in group {group}");
                return Err(CliError::new(Exit::Refused, message).hint(format!("see sterna group show {group}")));
            }
            change(&status, None, client).await?;
            done(Ok(()), format!("{vm}: its replication is in no group"), output)
        }
        GroupCommand::Pause { group } => {
            let mut outcomes = Vec::new();
            for member in members(group, client).await? {
                outcomes.push(Outcome::of(&member, replicate::pause(&member, client).await));
            }
            tell(&outcomes, output)
        }
        GroupCommand::Resume { group } => {
            let mut outcomes = Vec::new();
            for member in members(group, client).await? {
                outcomes.push(Outcome::of(&member, replicate::resume(&member, client).await));
            }
            tell(&outcomes, output)
        }
        GroupCommand::Cutover(args) => Box::pin(cut_over(args, client, output)).await,
        GroupCommand::Finalize { group, yes, detach } => finalize(group, *yes, *detach, client, output).await,
    }
}

/// The replications of a group that are not over, as they were submitted.
async fn members(group: &str, client: &Client) -> Result<Vec<JobStatus>, CliError> {
    let jobs = client.group(group).await?.into_iter().map(|job| *job.status);
    let jobs: Vec<JobStatus> = jobs.filter(is_member).collect();
    if jobs.is_empty() {
        return Err(no_member(group));
    }
    Ok(jobs)
}

fn no_member(group: &str) -> CliError {
    CliError::new(Exit::NotFound, format!("no replication is in group {group}"))
        .hint(format!("see sterna group list; put one into it: sterna group add {group} VM"))
}

/// All are submitted before one is waited for: they run beside each other as far as their hosts have slots.
async fn cut_over(args: &CutoverArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let CutoverArgs { group, limits, manner, dry_run, detach } = args;
    let policy = Policy { owner: Some(client.sender().to_owned()), ..Policy::default() };
    let mut begun = Vec::new();
    for member in members(group, client).await? {
        let request = cutover::request_of(&member.plan.vm.id.to_string(), limits, manner);
        let job = JobId::from_uuid(uuid::Uuid::now_v7());
        let status = if *dry_run {
            client.plan(job, &request, &policy).await.map(|draft| JobStatus::planned(*draft.plan)).map_err(Into::into)
        } else {
            migrate::begin(job, &request, &policy, client).await.map(|status| *status)
        };
        begun.push((member, status));
    }
    let mut outcomes = Vec::new();
    for (member, status) in begun {
        let (job, outcome) = match status {
            Err(error) => (None, Err(error)),
            Ok(status) if *dry_run => (None, Ok(would_go(&status))),
            Ok(status) if *detach => (Some(status.job), Ok(has_begun(&status))),
            Ok(status) => {
                let followed = watch::quietly(JobView::new(&status, None), client, output).await;
                if let Ok((_, exit @ Exit::Interrupted)) = followed {
                    return Ok(exit);
                }
                (Some(status.job), followed.and_then(|(view, exit)| ended(&view, exit)))
            }
        };
        outcomes.push(Outcome { job, ..Outcome::of(&member, outcome) });
    }
    tell(&outcomes, output)
}

fn would_go(status: &JobStatus) -> String {
    let plan = &status.plan;
    format!("{}: would be cut over from {} to {}", plan.vm.name, plan.source.id, plan.target.id)
}

fn has_begun(status: &JobStatus) -> String {
    format!("{}: is cut over to {}; sterna job watch {}", status.plan.vm.name, status.plan.target.id, status.job)
}

fn ended(view: &JobView, exit: Exit) -> Result<String, CliError> {
    match watch::fault(view, exit) {
        Some(error) => Err(error),
        None if exit == Exit::Ok => Ok(watch::summary(view)),
        None => Err(CliError::new(exit, watch::summary(view))),
    }
}

async fn finalize(group: &str, yes: bool, detach: bool, client: &Client, output: Output) -> Result<Exit, CliError> {
    let members = members(group, client).await?;
    let names: Vec<&str> = members.iter().map(|member| member.plan.vm.name.as_str()).collect();
    let names = names.join(", ");
    confirm(
        &format!("End the replications of {names} for good, with their replicas and the way back of their cutovers?"),
        yes,
    )?;
    let mut begun = Vec::new();
    for member in members {
        let asked = client.finalize(&member.plan.vm.id.to_string()).await;
        begun.push((member, asked));
    }
    let mut outcomes = Vec::new();
    for (member, asked) in begun {
        let outcome = match asked {
            Err(error) => Err(error.into()),
            Ok(_) if detach => Ok(format!("{}: is being finalized", member.plan.vm.name)),
            Ok(job) => lifetime::until_gone(*job.status, client).await,
        };
        outcomes.push(Outcome { job: Some(member.job), ..Outcome::of(&member, outcome) });
    }
    tell(&outcomes, output)
}

/// What has become of a member, in what was done to its group.
#[derive(Debug, PartialEq, Serialize)]
struct Outcome {
    vm: VmName,
    done: bool,
    /// What, in one line.
    message: String,
    /// The job that does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<CliError>,
}

impl Outcome {
    fn of(member: &JobStatus, outcome: Result<String, CliError>) -> Self {
        let vm = member.plan.vm.name.clone();
        let (message, error) = match outcome {
            Ok(told) => (told, None),
            Err(error) => {
                let reasons = error.refusals.iter().map(|refusal| &refusal.message).chain(&error.causes);
                let reasons: String = reasons.map(|reason| format!("; {reason}")).collect();
                (format!("{vm}: not done: {}{reasons}", error.message), Some(error))
            }
        };
        Self { vm, done: error.is_none(), message, job: None, error }
    }
}

/// Tells what has become of each, and of those that were not done what to do about it. One that was refused decides how the command
/// ends, else the first that was not done.
fn tell(outcomes: &[Outcome], output: Output) -> Result<Exit, CliError> {
    output
        .result(outcomes, || outcomes.iter().map(|outcome| outcome.message.as_str()).collect::<Vec<_>>().join("\n"))?;
    if !output.for_programs() {
        for Outcome { vm, error, .. } in outcomes {
            let remedies = error.iter().flat_map(|error| error.refusals.iter().map(|refusal| &refusal.remedy));
            for hint in remedies.chain(error.iter().flat_map(|error| &error.hints)).filter(|hint| !hint.is_empty()) {
                output.remark(&format!("hint: {vm}: {hint}"));
            }
        }
    }
    Ok(exit(outcomes))
}

fn exit(outcomes: &[Outcome]) -> Exit {
    let mut failed = outcomes.iter().filter_map(|outcome| outcome.error.as_ref()).map(|error| error.exit);
    if failed.clone().any(|exit| exit == Exit::Refused) {
        return Exit::Refused;
    }
    failed.next().unwrap_or(Exit::Ok)
}

async fn change(status: &JobStatus, group: Option<String>, client: &Client) -> Result<(), CliError> {
    Ok(client.edit(status.job, vec![JobChange::Group { group }]).await?)
}

fn is_replication(status: &JobStatus) -> bool {
    status.plan.kind == JobKind::Replicate && status.policy.recurs()
}

fn is_member(status: &JobStatus) -> bool {
    is_replication(status) && !status.state.is_final()
}

/// All groups of those jobs, by name. Of replications those count that are not over.
fn groups(jobs: &[JobStatus]) -> Vec<Group> {
    let mut groups: BTreeMap<&String, Group> = BTreeMap::new();
    for status in jobs {
        let Some(name) = &status.policy.group else { continue };
        let replicates = is_replication(status);
        if replicates && !is_member(status) {
            continue;
        }
        let group = groups.entry(name).or_insert_with(|| Group { name: name.clone(), ..Group::default() });
        if replicates {
            group.replicated.push(status.plan.vm.name.clone());
        } else {
            group.jobs.push(status.job);
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.replicated.sort();
    }
    groups
}

fn list(groups: &[Group]) -> String {
    let rows = groups.iter().map(|group| {
        let replicated: Vec<&str> = group.replicated.iter().map(VmName::as_str).collect();
        let replicated = if replicated.is_empty() { "-".to_owned() } else { replicated.join(", ") };
        [group.name.clone(), replicated, group.jobs.len().to_string()]
    });
    table(["GROUP", "REPLICATED VMS", "OTHER JOBS"], rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sterna_shared::job::{JobState, ModeWish, Refusal, RefusalCode, Schedule};

    use super::*;
    use crate::planner::{example, plan};

    fn in_group(number: u8, vm: &str, kind: JobKind, state: JobState) -> JobStatus {
        let mut fleet = crate::fleet::Fleet::default();
        let mut source = example::inventory("alpha");
        source.vms = vec![example::report(&example::vm("web"))];
        for inventory in [source, example::inventory("beta")] {
            fleet.heard(inventory, example::now(), std::time::Duration::ZERO);
        }
        let mut status = JobStatus::planned(plan(&fleet, [], &example::request(), example::seeds()).expect("a plan"));
        (status.job, status.plan.kind, status.state) = (example::job(number), kind, state);
        status.plan.vm.name = vm.parse().expect("a name");
        status.policy.group = Some("shop".to_owned());
        if kind == JobKind::Replicate {
            status.policy.schedule = Some(Schedule::after_pauses(10));
        }
        status
    }

    #[test]
    fn a_group_is_what_its_jobs_say() {
        let mut alone = in_group(1, "alone", JobKind::Move, JobState::New);
        alone.policy.group = None;
        let jobs = [
            alone,
            in_group(2, "web", JobKind::Replicate, JobState::New),
            in_group(3, "base", JobKind::Replicate, JobState::Running),
            in_group(4, "gone", JobKind::Replicate, JobState::Terminated),
            in_group(5, "web", JobKind::Move, JobState::Completed),
        ];
        let found = groups(&jobs);
        assert_eq!(found.len(), 1);
        let replicated: Vec<&str> = found[0].replicated.iter().map(VmName::as_str).collect();
        assert_eq!((replicated, found[0].jobs.as_slice()), (vec!["base", "web"], &[example::job(5)][..]));
        assert!(list(&found).contains("base, web"), "{}", list(&found));
    }

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: GroupCommand,
    }

    #[test]
    fn a_group_is_cut_over_as_one_vm_is() {
        let line = |arguments: &[&str]| {
            Line::try_parse_from([&["group", "cutover", "shop"], arguments].concat()).map(|line| line.command)
        };
        let GroupCommand::Cutover(args) = line(&["--cold", "--revert-window", "3d", "--detach"]).expect("a command")
        else {
            panic!("another command")
        };
        let request = cutover::request_of("web", &args.limits, &args.manner);
        assert_eq!((request.kind, request.mode, request.vm.as_str()), (JobKind::Cutover, ModeWish::Cold, "web"));
        assert_eq!(request.cutover.and_then(|wish| wish.revert_seconds), Some(3 * 86_400));
        for wrong in [&["--force"][..], &["--dry-run", "--detach"], &["--to", "beta"]] {
            assert!(line(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn one_that_is_refused_decides_how_a_group_s_command_ends() {
        let member = in_group(1, "web", JobKind::Replicate, JobState::Running);
        let outcome = |outcome| Outcome::of(&member, outcome);
        let failed = |exit| outcome(Err(CliError::new(exit, "no")));
        assert_eq!(exit(&[outcome(Ok("web: done".to_owned()))]), Exit::Ok);
        assert_eq!(
            exit(&[failed(Exit::Unreachable), outcome(Ok(String::new())), failed(Exit::Failed)]),
            Exit::Unreachable
        );
        let mut error = CliError::new(Exit::Refused, "web cannot be cut over");
        error.refusals.push(Refusal {
            code: RefusalCode::NotCutOver,
            message: "it is at alpha".to_owned(),
            remedy: "wait".to_owned(),
        });
        let refused = outcome(Err(error));
        assert_eq!(
            (refused.done, refused.message.as_str()),
            (false, "web: not done: web cannot be cut over; it is at alpha")
        );
        assert_eq!(exit(&[failed(Exit::Unreachable), refused]), Exit::Refused);
    }
}
