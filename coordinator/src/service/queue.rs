//! The queue: jobs that were submitted and have not begun, or are to go on. The first of them whose hosts have a slot gets a
//! plan of that moment, and its plan goes to the agents.
//!
//! ```text
//!   Submitted ──▶ waits ──▶ Planned ──▶ commands to target and source
//!                  ▲  │ by priority, then by age
//!   Resumed ───────┘  └─ what speaks against it does not pass ─▶ Failed (new) or Asked (resumed)
//! ```
//!
//! A plan needs a token, which no pure function can make: it is asked for ([`Action::Draw`]) when there may be something to
//! plan, and what is planned is decided when it is there.

use std::time::Duration;

use sterna_shared::bus::Command;
use sterna_shared::id::{JobId, Token};
use sterna_shared::job::{
    EventBody, FailureCode, FailureReport, JobState, JobStatus, Plan, Recovery, Refusal, RefusalCode, StepFigures,
};

use super::request::to_parties;
use super::sent::run;
use super::state::{Action, Message, Now, State};
use crate::planner::{self, Seeds};

/// How long what speaks against a job that waited must go on doing so: what is known of hosts is some seconds old.
const REFUSED_WAIT: Duration = Duration::from_secs(6);

impl State {
    /// Asks for what a new job or a new plan needs where there may be one.
    pub(super) fn tend_queue(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.replaying || self.drawing {
            return;
        }
        self.tend_runs(now, out);
        let waits = |status: &JobStatus| status.is_queued() && status.is_due(now.at) || self.is_unattended(status);
        if self.jobs.values().any(|job| waits(&job.status)) || self.submission_due(now) {
            self.drawing = true;
            out.push(Action::Draw);
        }
    }

    /// What was asked for is there: a job that is due is submitted, or the first that can begin does.
    pub(super) fn drawn(&mut self, drawn: (JobId, Token), now: Now, out: &mut Vec<Action>) {
        self.drawing = false;
        let mut messages = Vec::new();
        let token = drawn.1.clone();
        if !self.submit_due(drawn, now, out, &mut messages) {
            self.end_followers(now, out, &mut messages);
            self.begin_next(token, now, out, &mut messages);
        }
        if !messages.is_empty() {
            out.push(Action::Publish { messages, answer: None });
            // There may be more.
            self.tend_queue(now, out);
        }
    }

    /// Plans the first job of the queue that can begin; says what is to be published.
    pub(super) fn begin_next(&mut self, token: Token, now: Now, out: &mut Vec<Action>, messages: &mut Vec<Message>) {
        let ready = |status: &&JobStatus| {
            let begins = status.is_queued() && status.is_due(now.at) && self.may_follow(status) == Some(true);
            (begins && !self.has_no_more_cycles(status, now)) || self.is_unattended(status)
        };
        let mut queue: Vec<_> = self.jobs.values().map(|job| &job.status).filter(ready).collect();
        queue.sort_by_key(|status| (status.policy.priority, status.job));
        let queue: Vec<JobId> = queue.into_iter().map(|status| status.job).collect();
        self.refused_since.retain(|job, _| queue.contains(job));
        for job in queue {
            let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { continue };
            if status.request.kind.only_looks() {
                match self.begin_check(job, &token, now, out, messages) {
                    true => return,
                    false => continue,
                }
            }
            // A job that goes on has begun before, with the plan that it still has.
            let seeds = Seeds { job, token: token.clone(), attempt: status.next_attempt(), now: now.at };
            let others = self.jobs.values().map(|job| &job.status);
            let others = others.filter(|other| other.has_begun() && other.is_in_the_way(now.at));
            match planner::plan(&self.fleet, others, &status.request, seeds) {
                Ok(mut plan) => {
                    if let Some(of) = &mut plan.cutover {
                        of.forecast = self.forecast(&plan.vm, &plan.target.id, plan.mode, now);
                    }
                    return self.begin(plan, now, out, messages);
                }
                Err(refusals) => self.refused(job, &refusals, now, out, messages),
            }
        }
    }

    /// Whether the jobs of its group that were submitted before a job are settled, and it may follow them; none while they
    /// are not.
    fn may_follow(&self, status: &JobStatus) -> Option<bool> {
        let Some(group) = &status.policy.group else { return Some(true) };
        // A recovery stands where the job stood that failed: those behind it wait for it.
        let first = self.first_try(status);
        let earlier = self.jobs.range(..first.job).map(|(_, job)| &job.status);
        // What was over before this one was submitted is no business of it, and of runs of one job one is over before the next.
        let before = |other: &&JobStatus| {
            other.policy.group.as_ref() == Some(group)
                && !other.policy.recurs()
                && (first.parent.is_none() || other.parent != first.parent)
                && self.first_try(other).job != first.job
                && other.finished_at.is_none_or(|finished| finished >= first.submitted_at)
        };
        earlier.filter(before).map(|other| self.went_well(other)).try_fold(true, |well, one| Some(well && one?))
    }

    /// Whether what comes after a job may begin; none while it, or what is done about its failure, is under way.
    fn went_well(&self, status: &JobStatus) -> Option<bool> {
        match (status.state, &status.policy.recovery) {
            (state, _) if !state.is_final() => None,
            (JobState::Completed, _) | (JobState::Exception, Recovery::Next) => Some(true),
            (JobState::Exception, Recovery::Rerun { .. } | Recovery::Run { .. }) => {
                match self.jobs.values().find(|job| job.status.parent == Some(status.job)) {
                    Some(again) => self.went_well(&again.status),
                    None => Some(false),
                }
            }
            _ => Some(false),
        }
    }

    /// Ends the jobs that were to follow one that failed, and cycles that come too late.
    fn end_followers(&mut self, now: Now, out: &mut Vec<Action>, messages: &mut Vec<Message>) {
        let queued = self.jobs.values().map(|job| &job.status).filter(|status| status.is_queued());
        let held: Vec<JobId> =
            queued.filter(|status| self.may_follow(status) == Some(false)).map(|status| status.job).collect();
        let held = held
            .into_iter()
            .map(|job| (job, "a job before it in its group has failed, and its recovery is not to go on"));
        let queued = self.jobs.values().map(|job| &job.status).filter(|status| status.is_queued());
        let late: Vec<JobId> =
            queued.filter(|status| self.has_no_more_cycles(status, now)).map(|status| status.job).collect();
        let late = late
            .into_iter()
            .map(|job| (job, "its replication has expired, or is being finalized, and makes no cycle any more"));
        for (job, text) in held.chain(late) {
            let text = text.to_owned();
            // What its hosts keep for when it goes on is wanted no more.
            let begun = self.jobs.get(&job).map(|job| &job.status).filter(|status| status.has_begun());
            if let Some(JobStatus { plan, .. }) = begun {
                let kind = format!("cancel-{}-{}", plan.attempt, now.at.unix_microseconds());
                messages.extend(to_parties(plan, &kind, || Command::Cancel { job }));
            }
            self.say(job, EventBody::Notice { text }, now, out, messages);
            self.say(job, EventBody::Terminated, now, out, messages);
        }
    }

    fn begin(&mut self, plan: Plan, now: Now, out: &mut Vec<Action>, messages: &mut Vec<Message>) {
        let blanked = Box::new(JobStatus::planned(plan.clone()).plan);
        let Some(event) = self.own_event(plan.job, EventBody::Planned { plan: blanked }, now) else { return };
        self.keep_sent(&plan, messages);
        self.told(&event, now, out);
        messages.push(Message::Event(Box::new(event)));
        messages.extend(run(&plan, plan.parties()));
    }

    /// Something speaks against a job that waits. What passes by itself, or may just not be known yet, is waited for.
    fn refused(
        &mut self,
        job: JobId,
        refusals: &[Refusal],
        now: Now,
        out: &mut Vec<Action>,
        messages: &mut Vec<Message>,
    ) {
        let waits = |refusal: &Refusal| planner::passes(refusal.code) || refusal.code == RefusalCode::VmInJob;
        if refusals.iter().all(waits) {
            self.refused_since.remove(&job);
            return;
        }
        if now.clock < *self.refused_since.entry(job).or_insert(now.clock) + REFUSED_WAIT {
            return;
        }
        let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { return };
        let mut reasons = refusals.iter().filter(|refusal| !waits(refusal));
        let Some(first) = reasons.next() else { return };
        let failure = FailureReport {
            code: FailureCode::PlanStale,
            message: format!(
                "the job cannot {}: {}",
                if status.has_begun() { "go on" } else { "begin" },
                first.message
            ),
            causes: reasons.map(|refusal| refusal.message.clone()).collect(),
            remedy: first.remedy.clone(),
            host: None,
        };
        let body = match status.has_begun() {
            true => EventBody::Asked { failure, figures: StepFigures::default() },
            false => EventBody::Failed { failure },
        };
        self.say(job, body, now, out, messages);
    }

    /// An event of the coordinators' own: folded in, and to be published.
    pub(super) fn say(
        &mut self,
        job: JobId,
        body: EventBody,
        now: Now,
        out: &mut Vec<Action>,
        messages: &mut Vec<Message>,
    ) {
        if let Some(event) = self.own_event(job, body, now) {
            self.told(&event, now, out);
            messages.push(Message::Event(Box::new(event)));
        }
    }
}
