//! `sterna group`: replications, and other jobs, that belong together. A group is there as long as a job is in it.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Serialize;
use sterna_shared::bus::JobChange;
use sterna_shared::id::{JobId, VmName};
use sterna_shared::job::{JobKind, JobStatus};

use super::error::{CliError, Exit};
use super::output::{Output, table};
use super::vm::done;
use super::{job, replicate};
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// List all groups
    #[command(visible_alias = "ls")]
    List,
    /// Show the jobs of a group, in the order in which they were submitted; those that are no replications run in that order
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
    }
}

async fn change(status: &JobStatus, group: Option<String>, client: &Client) -> Result<(), CliError> {
    Ok(client.edit(status.job, vec![JobChange::Group { group }]).await?)
}

/// All groups of those jobs, by name. Of replications those count that are not over.
fn groups(jobs: &[JobStatus]) -> Vec<Group> {
    let mut groups: BTreeMap<&String, Group> = BTreeMap::new();
    for status in jobs {
        let Some(name) = &status.policy.group else { continue };
        let replicates = status.plan.kind == JobKind::Replicate && status.policy.recurs();
        if replicates && status.state.is_final() {
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
    use sterna_shared::job::{JobState, Schedule};

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
}
