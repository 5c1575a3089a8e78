//! Jobs that come of other jobs: the runs of one that recurs, and what follows one that failed.
//!
//! ```text
//!   recurring job ── its turn ──▶ RunBegun ──▶ a job of its own ──▶ over ──▶ RunEnded (more | no more)
//!   failed job ───── its recovery ──────────▶ the same wish again, or another
//! ```
//!
//! What is due is read off the jobs each time, and kept nowhere: a coordinator that takes over finds it as its predecessor did.
//! The wall clock decides when a turn is there ([ADR 18](../../docs/adr/0018-schedules-go-by-the-wall-clock.md)).

use std::collections::BTreeMap;

use sterna_shared::id::{JobId, Token};
use sterna_shared::job::{
    Due, Event as JobEvent, EventBody, FailureCode, FailureReport, JobKind, JobState, JobStatus, MoveRequest, Policy,
    Recovery, Reporter, Schedule,
};
use sterna_shared::time::Timestamp;

use super::replicas::CYCLE_KEEP_SECONDS;
use super::state::{Action, Message, Now, State};
use crate::planner::{self, Draft, Seeds};

/// A pause before a failed job is run again doubles at most that often.
const DOUBLINGS_MAX: u32 = 10;

/// A job that is to be submitted.
struct Submission {
    request: MoveRequest,
    policy: Policy,
    parent: JobId,
    /// The turn of the parent's schedule that it is for.
    turn: Option<Timestamp>,
}

impl State {
    /// Whether a job is to be submitted that nobody asked for.
    pub(super) fn submission_due(&self, now: Now) -> bool {
        self.jobs.values().any(|job| self.follower(&job.status, now).is_some())
    }

    /// Submits the first job that is due; whether there was one.
    pub(super) fn submit_due(
        &mut self,
        (job, token): (JobId, Token),
        now: Now,
        out: &mut Vec<Action>,
        messages: &mut Vec<Message>,
    ) -> bool {
        let Some(submission) = self.jobs.values().find_map(|job| self.follower(&job.status, now)) else { return false };
        let Submission { request, policy, parent, turn } = submission;
        if let Some(turn) = turn {
            self.say(parent, EventBody::RunBegun { run: job, turn }, now, out, messages);
        }
        let seeds = Seeds { job, token, attempt: 0, now: now.at };
        let Draft { plan, .. } = planner::draft(&self.fleet, [], &request, seeds);
        // Where VM or target are not known, the parent's plan names what was meant: the job fails when it is to begin.
        let of_parent = || self.jobs.get(&parent).map(|parent| parent.status.plan.clone());
        let Some(mut plan) = plan.or_else(of_parent) else { return true };
        (plan.job, plan.planned_at, plan.attempt) = (job, now.at, 0);
        let draft = Box::new(JobStatus::planned(plan).plan);
        let body =
            EventBody::Submitted { draft, request: Box::new(request), policy: Box::new(policy), parent: Some(parent) };
        let event = JobEvent { job, reporter: Reporter::Coordinator, sequence: 1, at: now.at, body };
        self.told(&event, now, out);
        messages.push(Message::Event(Box::new(event)));
        true
    }

    /// What is to be submitted because of a job now.
    fn follower(&self, status: &JobStatus, now: Now) -> Option<Submission> {
        if status.policy.recurs() {
            return self.turn(status, now);
        }
        if status.state != JobState::Exception
            || !matches!(status.policy.recovery, Recovery::Rerun { .. } | Recovery::Run { .. })
        {
            return None;
        }
        if self.jobs.values().any(|job| job.status.parent == Some(status.job)) {
            return None; // It has been seen to.
        }
        if self.has_no_more_cycles(status, now) {
            return None;
        }
        // How often it was tried cannot be told any more.
        if self.first_try(status).parent.is_some_and(|parent| !self.jobs.contains_key(&parent)) {
            return None;
        }
        let parent = status.job;
        let policy = Policy { schedule: None, ..status.policy.clone() };
        match &status.policy.recovery {
            Recovery::Rerun { times, pause_seconds } => {
                let tried = u32::try_from(self.tries(status).skip(1).count()).unwrap_or(u32::MAX);
                if tried >= *times {
                    return None;
                }
                let pause = i64::from(*pause_seconds) << tried.min(DOUBLINGS_MAX);
                let failed_at = status.finished_at.unwrap_or(now.at).unix_microseconds();
                let at = Timestamp::from_unix_microseconds(failed_at.saturating_add(pause.saturating_mul(1_000_000)));
                // A pause that ended while nobody led is over.
                let schedule = (at > now.at).then(|| Schedule::once(at));
                Some(Submission {
                    request: status.request.clone(),
                    policy: Policy { schedule, ..policy },
                    parent,
                    turn: None,
                })
            }
            Recovery::Run { request } => {
                let policy = Policy { recovery: Recovery::Stop, group: None, ..policy };
                Some(Submission { request: MoveRequest::clone(request), policy, parent, turn: None })
            }
            Recovery::Stop | Recovery::Next | Recovery::Other { .. } => None,
        }
    }

    /// The run of a recurring job whose turn is there; one at a time.
    fn turn(&self, status: &JobStatus, now: Now) -> Option<Submission> {
        let schedule = status.policy.schedule.as_ref()?;
        if status.runs.current().is_some() {
            return None;
        }
        let turn = match status.state {
            JobState::New => match schedule.due(status.runs.considered, now.at, status.runs.count) {
                Due::Run { turn, .. } => turn,
                Due::Nothing | Due::Skip { .. } => return None,
            },
            // Somebody said that it is to run now, if it has a run left.
            JobState::Starting if has_runs_left(status) => now.at,
            _ => return None,
        };
        let mut policy = Policy { schedule: None, expiration: None, ..status.policy.clone() };
        if self.turn_waits(status, now) {
            return None;
        }
        if status.request.kind == JobKind::Replicate {
            (policy.delete_on_completion, policy.keep_seconds) = (true, CYCLE_KEEP_SECONDS);
            // Replications belong together without waiting for each other; and who looks for labels finds the replication.
            (policy.group, policy.labels) = (None, BTreeMap::new());
        }
        Some(Submission { request: status.request.clone(), policy, parent: status.job, turn: Some(turn) })
    }

    /// Whether a turn of a replication has to wait: no cycle may begin, or there is nothing that one would send. Of a VM that stands
    /// still a cycle is made where somebody says so.
    fn turn_waits(&self, status: &JobStatus, now: Now) -> bool {
        let target = status.request.target.as_ref().filter(|_| status.state == JobState::New);
        let is_up_to_date = || target.is_some_and(|host| self.is_up_to_date(status.plan.vm.id, host));
        status.request.kind == JobKind::Replicate && (is_up_to_date() || !self.may_replicate(status, now))
    }

    /// Whether something is to be submitted because of a job now.
    pub(super) fn is_followed(&self, status: &JobStatus, now: Now) -> bool {
        self.follower(status, now).is_some()
    }

    /// A job, the one whose failure it is the recovery of, the one before that, and so on.
    fn tries<'a>(&'a self, status: &'a JobStatus) -> impl Iterator<Item = &'a JobStatus> {
        std::iter::successors(Some(status), |status| {
            let parent = status.parent.and_then(|parent| self.jobs.get(&parent)).map(|job| &job.status);
            parent.filter(|parent| !parent.policy.recurs())
        })
    }

    /// The job that was tried first, of which another is the recovery; any other job is that itself.
    pub(super) fn first_try<'a>(&'a self, status: &'a JobStatus) -> &'a JobStatus {
        self.tries(status).last().unwrap_or(status)
    }

    /// How a run has ended, if it has. One that is not known never will: whoever began it fell out before it was submitted.
    fn ended(&self, run: JobId) -> Option<(JobState, Option<FailureReport>)> {
        let Some(status) = self.jobs.get(&run).map(|job| &job.status) else {
            return Some((JobState::Terminated, None));
        };
        status.state.is_final().then(|| (status.state, status.failure.clone()))
    }

    /// Tells jobs which of their runs are over, and which turns nobody was there for.
    pub(super) fn tend_runs(&mut self, now: Now, out: &mut Vec<Action>) {
        let mut told = Vec::new();
        for status in self.jobs.values().map(|job| &job.status).filter(|status| status.policy.schedule.is_some()) {
            let Some(schedule) = status.policy.schedule.as_ref().filter(|_| !status.state.is_final()) else { continue };
            let runs = &status.runs;
            // Once only: the job is its own run.
            if !status.policy.recurs() && !status.is_queued() {
                continue;
            }
            if let Some((run, (state, failure))) = runs.current().and_then(|run| Some((run, self.ended(run)?))) {
                // What is finalized is over once nothing of it is left, and not with its last run.
                let more = status.is_finalizing() || schedule.next(runs.considered, runs.count).is_some();
                told.push((status.job, EventBody::RunEnded { run, state, failure, more }));
            } else if status.state == JobState::New && !status.is_finalizing() {
                // Turn by turn nothing is told while all of them have to wait: the one that comes when that is over tells of them
                // all. The last one is told in any case, since the job ends with it.
                let waits = || {
                    let comes_another = schedule.next(now.at, runs.count).is_some();
                    status.policy.recurs() && comes_another && self.turn_waits(status, now)
                };
                match schedule.due(runs.considered, now.at, runs.count) {
                    Due::Skip { .. } if waits() => {}
                    Due::Skip { turn, missed } => told.push((status.job, EventBody::RunsSkipped { turn, missed })),
                    Due::Nothing if schedule.next(now.at, runs.count).is_none() && runs.current().is_none() => {
                        told.push((status.job, no_more_turns(status)));
                    }
                    Due::Nothing | Due::Run { .. } => {}
                }
            } else if status.state == JobState::Starting
                && status.policy.recurs()
                && runs.current().is_none()
                && !has_runs_left(status)
                && !status.is_finalizing()
            {
                // It was to run now, and has had all its runs.
                told.push((status.job, no_more_turns(status)));
            }
        }
        let mut messages = Vec::new();
        for (job, body) in told {
            self.say(job, body, now, out, &mut messages);
        }
        if !messages.is_empty() {
            out.push(Action::Publish { messages, answer: None });
        }
    }
}

/// Whether a recurring job has had fewer runs than it is to have.
fn has_runs_left(status: &JobStatus) -> bool {
    let times = status.policy.schedule.as_ref().map_or(1, |schedule| schedule.run_times);
    times == 0 || status.runs.count < times
}

/// How a job ends that has no turn left: a recurring one has done what it should, any other one never began.
fn no_more_turns(status: &JobStatus) -> EventBody {
    if status.policy.recurs() {
        return EventBody::Completed { blackout_us: 0 };
    }
    let failure = FailureReport {
        code: FailureCode::PlanStale,
        message: "the time at which the job was to begin has passed, and it is not to be made up for".to_owned(),
        causes: Vec::new(),
        remedy: "give the same command again, with another time".to_owned(),
        host: None,
    };
    EventBody::Failed { failure }
}
