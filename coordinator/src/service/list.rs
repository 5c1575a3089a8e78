//! The list of jobs: what leaves it once it is over, and that it does not come back; and what stays though the stream of events
//! has forgotten how it began.

use std::collections::BTreeSet;

use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{Dispatch, Event as JobEvent, EventBody, JobStatus, Reporter};
use sterna_shared::view::google::Averages;

use super::state::{Action, Job, Now, State};
use crate::fleet::Member;

/// Jobs held in memory; of further ones the oldest that are over are forgotten, here and in the buckets. Their events stay.
pub(super) const JOBS_MAX: usize = 10_000;

/// Jobs of which the buckets have something, though they are gone, that one leader removes when it begins. There are that many only
/// where coordinators led that did not remove them; the next removes more.
const REMOVED_MAX: usize = 1_000;
const DAY_SECONDS: f64 = 86_400.0;

/// Jobs that were over, and are not listed any more: what is told of them later makes no new jobs of them. The latest
/// [`JOBS_MAX`] are known one by one. Ids are of UUID version 7: of older jobs than these, all that are not listed are gone.
#[derive(Debug, Default)]
pub(super) struct Gone {
    jobs: BTreeSet<JobId>,
    /// This one and all before it.
    oldest: Option<JobId>,
}

impl Gone {
    fn add(&mut self, job: JobId) {
        self.jobs.insert(job);
        if self.jobs.len() > JOBS_MAX {
            self.oldest = self.jobs.pop_first().max(self.oldest);
        }
    }

    /// Whether a job is known to be gone. Who asks for another may give it any id, and no age is read off that.
    pub(super) fn contains(&self, job: JobId) -> bool {
        self.jobs.contains(&job)
    }

    /// Whether a job that is not listed is gone, or so old that it must be.
    fn has(&self, job: JobId) -> bool {
        self.contains(job) || self.oldest.is_some_and(|oldest| job <= oldest)
    }

    /// Whether an event is of a job that is gone, for all that its reporter knows.
    pub(super) fn is_meant_by(&self, event: &JobEvent) -> bool {
        let by_age = event.reporter != Reporter::Coordinator;
        self.contains(event.job) || (by_age && self.has(event.job))
    }
}

impl State {
    /// What an earlier leader has kept of jobs, for those whose first events the stream does not have any more: it keeps events
    /// for so many days.
    pub(super) fn remember(&mut self, kept: impl IntoIterator<Item = JobStatus>, events_days: u32) {
        self.kept = kept.into_iter().map(|status| (status.job, status)).collect();
        self.kept_live = self.kept.values().filter(|kept| !kept.state.is_final()).map(|kept| kept.job).collect();
        self.events_days = events_days;
    }

    /// Whether an event of an agent's journal has left the stream because it is old, and not because it was lost. Agents keep
    /// theirs for longer, and nothing that is over comes back by them; what a host has in hand does, however old.
    pub(super) fn is_past(&self, event: &JobEvent, now: Now) -> bool {
        let kept_seconds = f64::from(self.events_days) * DAY_SECONDS;
        let is_old = self.events_days > 0 && now.at.seconds_since(event.at) > kept_seconds;
        let in_hand = |member: &Member| member.inventory.vms.iter().any(|vm| vm.job == Some(event.job));
        is_old && !self.jobs.contains_key(&event.job) && !self.fleet.hosts().any(in_hand)
    }

    /// Lists a job that is not listed yet, as an event begins it, or as it was kept. Whether it could.
    pub(super) fn list(&mut self, event: &JobEvent, out: &mut Vec<Action>) -> bool {
        let kept = match event.body {
            EventBody::Submitted { .. } => None,
            _ => self.kept.remove(&event.job),
        };
        let status = match kept {
            Some(mut status) => {
                // What was kept has most likely seen it.
                let _ = status.apply(event);
                Some(status)
            }
            None => JobStatus::from_event(event),
        };
        status.map(|status| self.add(status, out)).is_some()
    }

    /// Everything in the stream was read: jobs of which it has nothing any more go on as they were kept, and are gone where
    /// they were over, with what the buckets have of them. Those that have come to their end by what was read, and are kept as if they had not.
    pub(super) fn list_kept(&mut self, out: &mut Vec<Action>) -> Vec<JobId> {
        for status in std::mem::take(&mut self.kept).into_values() {
            match self.jobs.contains_key(&status.job) {
                true => {}
                false if status.state.is_final() => self.gone.add(status.job),
                // A status is written before what is told of it. Who fell out in between has told nobody, and whoever asked was told that.
                false if self.was_told_nobody(&status) => out.push(Action::RemoveJob(status.job)),
                false => self.add(status, out),
            }
        }
        let of_gone = |job: &JobId| !self.jobs.contains_key(job) && self.gone.has(*job);
        let removed = std::mem::take(&mut self.left).into_iter().filter(of_gone).take(REMOVED_MAX);
        out.extend(removed.map(Action::RemoveJob));
        let is_over = |job: &JobId| self.jobs.get(job).is_some_and(|job| job.status.state.is_final());
        std::mem::take(&mut self.kept_live).into_iter().filter(is_over).collect()
    }

    /// Whether a job has been planned, and neither is its plan kept, as it is before any host is told of it, nor has a host told of it.
    fn was_told_nobody(&self, status: &JobStatus) -> bool {
        let unheard = |host: &HostId| status.last_seen(&Reporter::Host(host.clone())) == 0;
        status.dispatch == Dispatch::Sent
            && !self.sent.contains_key(&status.job)
            && status.plan.parties().into_iter().all(unheard)
    }

    fn add(&mut self, status: JobStatus, out: &mut Vec<Action>) {
        self.forget_the_oldest(out);
        let own_sequence = status.last_seen(&Reporter::Coordinator);
        self.jobs.insert(status.job, Job { status, progress: None, averages: Averages::new(), own_sequence });
    }

    /// Takes jobs off the list that are over, and were to go. One that failed and its recoveries leave together: by them is counted
    /// how often it was tried, and without them it would be run again.
    pub(super) fn remove_old(&mut self, now: Now, out: &mut Vec<Action>) {
        // Of a job that is over something may be read yet.
        if self.replaying {
            return;
        }
        let old = |status: &JobStatus| {
            let over = status.finished_at.filter(|_| status.state.is_final() && status.policy.delete_on_completion);
            over.is_some_and(|over| now.at.seconds_since(over) >= f64::from(status.policy.keep_seconds))
        };
        let all = || self.jobs.values().map(|job| &job.status);
        if !all().any(old) {
            return;
        }
        let stays = |status: &JobStatus| !old(status) || self.is_followed(status, now) || self.is_current_run(status);
        let stay: BTreeSet<JobId> =
            all().filter(|status| stays(status)).map(|status| self.first_try(status).job).collect();
        let leave: Vec<JobId> =
            all().filter(|status| !stay.contains(&self.first_try(status).job)).map(|status| status.job).collect();
        for job in leave {
            self.jobs.remove(&job);
            self.gone.add(job);
            out.push(Action::RemoveJob(job));
        }
    }

    /// Whether the job that recurs has yet to be told that a run of it is over.
    fn is_current_run(&self, status: &JobStatus) -> bool {
        let parent = status.parent.and_then(|parent| self.jobs.get(&parent)).map(|job| &job.status);
        parent.is_some_and(|parent| !parent.state.is_final() && parent.runs.current() == Some(status.job))
    }

    /// Makes room for one more.
    fn forget_the_oldest(&mut self, out: &mut Vec<Action>) {
        if self.jobs.len() >= JOBS_MAX {
            // One that failed goes before its recoveries, whichever ids they have: without them it would be run again.
            let recovers = |status: &JobStatus| self.first_try(status).job != status.job;
            let mut over = self.jobs.iter().filter(|(_, job)| job.status.state.is_final());
            let oldest = over.find(|(_, job)| !recovers(&job.status)).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.jobs.remove(&oldest);
                // What is kept of it may be older than its end.
                self.kept.remove(&oldest);
                self.gone.add(oldest);
                // What is read again was forgotten before, most of it by predecessors.
                if !self.replaying {
                    out.push(Action::RemoveJob(oldest));
                }
            }
        }
    }
}
