//! Plans on their way to their hosts.
//!
//! ```text
//!   plan and token kept ──▶ Planned ──▶ a command to each host ──▶ Accepted by each ──▶ removed
//!                                        └─ a leader falls out here ─▶ the next sends it to those that have not accepted
//! ```
//!
//! What is sent again has to have the token of what was sent before: one of two hosts may have that, and would not let the other
//! in with another. To a host that has the plan a second command is nothing new.

use sterna_shared::bus::Command;
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{JobStatus, Plan, Reporter};

use super::state::{Action, Message, State};

impl State {
    /// What an earlier leader has kept of plans that it sent.
    pub(super) fn remember_sent(&mut self, plans: impl IntoIterator<Item = Plan>) {
        self.sent = plans.into_iter().map(|plan| (plan.job, plan)).collect();
    }

    /// Keeps a plan that is sent next. Before anything is told of it: where nothing is kept, no host was told.
    pub(super) fn keep_sent(&mut self, plan: &Plan, messages: &mut Vec<Message>) {
        self.sent.insert(plan.job, plan.clone());
        messages.push(Message::Plan(Box::new(plan.clone())));
    }

    /// Something was told of a job: its plan is kept no longer than a host may lack it.
    pub(super) fn arrived(&mut self, job: JobId, out: &mut Vec<Action>) {
        let lacks = self.jobs.get(&job).is_some_and(|job| !job.status.missing().is_empty());
        if !lacks && self.sent.remove(&job).is_some() {
            out.push(Action::RemovePlan(job));
        }
    }

    /// Everything in the stream was read: plans go once more to the hosts that have not said that they have them.
    pub(super) fn send_again(&mut self, out: &mut Vec<Action>) {
        let jobs = &self.jobs;
        self.sent.retain(|job, plan| {
            let status = jobs.get(job).map(|job| &job.status).filter(|status| status.plan.attempt == plan.attempt);
            let missing = status.map(JobStatus::missing).unwrap_or_default();
            if missing.is_empty() {
                out.push(Action::RemovePlan(*job));
                return false;
            }
            tracing::info!(%job, ?missing, "a plan is sent again to hosts that have not accepted it");
            out.push(Action::Publish { messages: run(plan, missing), answer: None });
            true
        });
    }

    /// Whether the host that leads a job may have it all the same, though it has not said so: the job is known by the word of
    /// another host alone, since the stream was lost, and the journal of this one was not read.
    pub(super) fn may_be_taken(&self, status: &JobStatus) -> bool {
        let online = |host: &HostId| self.fleet.host(host).is_some_and(|member| member.online);
        let unread = |host: &HostId| !online(host) || self.journals.contains_key(host);
        status.last_seen(&Reporter::Coordinator) == 0 && status.plan.leader().is_some_and(unread)
    }
}

/// The commands to some of a plan's hosts to carry it out.
pub(super) fn run(plan: &Plan, hosts: Vec<&HostId>) -> Vec<Message> {
    let message = |host: &HostId| Message::Command {
        host: host.clone(),
        command: Box::new(Command::Run { plan: Box::new(plan.clone()) }),
        kind: format!("run-{}", plan.attempt),
    };
    hosts.into_iter().map(message).collect()
}
