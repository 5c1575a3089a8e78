//! What can be asked of a job: the methods of `Msvm_MigrationJob`, and the answer to what it waits for. The table of states is
//! [`sterna_shared::job::verdict`]; here is who carries a change out.
//!
//! What no agent has in hand the coordinator changes at once. The rest is a command to both hosts, and the agents' events tell
//! what became of it; an asker who gave a time waits for that.

use std::time::Duration;

use sterna_shared::bus::{ApiError, ApiErrorKind, ApiReply, Command, JobAnswer, JobChange};
use sterna_shared::id::{JobId, Token};
use sterna_shared::job::{
    EventBody, Hands, JobState, JobStatus, MoveRequest, RequestedState, ReturnCode, StepFigures, Verdict,
};

use sterna_shared::view::cim;

use super::request::{AGENT_WAIT_MAX, Outcome, faults_of, no_job, to_parties};
use super::state::{Action, CallId, Message, Now, State};
use crate::api::fault;

/// The longest that an answer may be waited for: the asker's own patience ends before.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Askers that may wait for a job's state.
const WAITS_MAX: usize = 256;

/// An asker who waits until a job is in a state.
#[derive(Debug)]
pub(super) struct Wait {
    call: CallId,
    job: JobId,
    goal: JobState,
    until: Duration,
}

/// A request for a state, with what it needs to be carried out.
pub(super) struct StateRequest {
    pub(super) call: CallId,
    pub(super) job: JobId,
    pub(super) requested: u16,
    pub(super) timeout: Duration,
    pub(super) token: Token,
}

impl State {
    /// `RequestStateChange`.
    pub(super) fn request_state(
        &mut self,
        request: StateRequest,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let StateRequest { call, job, requested, timeout, token } = request;
        let status = &self.jobs.get(&job).ok_or_else(|| no_job(job))?.status;
        let Some(wanted) = RequestedState::from_number(requested) else {
            let reason = format!("{requested} is no state that can be asked for; 2 to 6 are");
            return Ok(Outcome::Reply(answer(status, ReturnCode::InvalidParameter, Some(reason))));
        };
        if timeout > TIMEOUT_MAX || (!timeout.is_zero() && self.waits.len() >= WAITS_MAX) {
            let reason = format!("an answer can wait for at most {} s", TIMEOUT_MAX.as_secs());
            return Ok(Outcome::Reply(answer(status, ReturnCode::TimeoutUnsupported, Some(reason))));
        }
        let Verdict { code, goal } = status.requested(wanted);
        let Some(goal) = goal else {
            return Ok(Outcome::Reply(answer(status, code, Some(refusal(status, wanted)))));
        };
        if goal == status.state {
            return Ok(Outcome::Reply(answer(status, code, None)));
        }
        let messages = self.change_state(job, wanted, token, now, out);
        let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { return Err(no_job(job)) };
        if code == ReturnCode::Started && !timeout.is_zero() && !reached(status, goal) {
            self.waits.push(Wait { call, job, goal, until: now.clock + timeout });
            return Ok(Outcome::Later { messages });
        }
        let reply = answer(status, code, None);
        Ok(Outcome::Publish { messages, reply })
    }

    /// The same for somebody who wants it done and no answer of CIM's.
    pub(super) fn ask_for_state(
        &mut self,
        status: &JobStatus,
        wanted: RequestedState,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Vec<Message>, ApiError> {
        match status.requested(wanted).goal {
            None => {
                let hint = format!("see `sterna job show {}`", status.job);
                Err(fault(ApiErrorKind::Refused, refusal(status, wanted), hint))
            }
            Some(goal) if goal == status.state => Ok(Vec::new()),
            Some(_) => Ok(self.change_state(status.job, wanted, token, now, out)),
        }
    }

    /// `KillJob`: as a kill is asked for, and with a word on whether the job is listed afterwards.
    pub(super) fn kill(
        &mut self,
        request: StateRequest,
        delete: bool,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let job = request.job;
        let status = &self.jobs.get(&job).ok_or_else(|| no_job(job))?.status;
        let mut edited = Vec::new();
        if status.requested(RequestedState::Kill).goal.is_some() && status.policy.delete_on_completion != delete {
            let mut policy = Box::new(status.policy.clone());
            policy.delete_on_completion = delete;
            self.say(job, EventBody::Edited { policy }, now, out, &mut edited);
        }
        let outcome = self.request_state(request, now, out)?;
        Ok(match outcome {
            Outcome::Publish { messages, reply } => {
                edited.extend(messages);
                Outcome::Publish { messages: edited, reply }
            }
            other => other,
        })
    }

    /// Cancels a job: asks for its orderly end.
    pub(super) fn cancel(
        &mut self,
        job: JobId,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let status = self.live(job)?;
        if status.requested(RequestedState::Terminate).goal.is_none() {
            let step = status.current_step().map_or("handover", |step| step.kind.as_str());
            return Err(fault(
                ApiErrorKind::Refused,
                format!("job {job} is in step {step}: the right to run the VM is on its way and cannot be called back"),
                format!("wait for it (`sterna job watch {job}`), then move the VM back if need be"),
            ));
        }
        let messages = self.change_state(job, RequestedState::Terminate, token, now, out);
        Ok(Outcome::Publish { messages, reply: ApiReply::Done })
    }

    /// Changes what may be changed of a job.
    pub(super) fn edit(
        &mut self,
        job: JobId,
        changes: Vec<JobChange>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let status = self.live(job)?;
        let mut policy = status.policy.clone();
        for change in changes {
            match change {
                JobChange::Label { key, value: Some(value) } => drop(policy.labels.insert(key, value)),
                JobChange::Label { key, value: None } => drop(policy.labels.remove(&key)),
                JobChange::Group { group } => policy.group = group,
                JobChange::Schedule { schedule } => policy.schedule = schedule.map(|schedule| *schedule),
                JobChange::Property { name, value } => {
                    cim::edit(&mut policy, &name, &value, now.at).map_err(|fault| {
                        let hint = format!("see them with: sterna job show {job} --output cim");
                        crate::api::fault(ApiErrorKind::Invalid, fault.to_string(), hint)
                    })?;
                }
            }
        }
        let faults = if policy.schedule == status.policy.schedule { policy.faults() } else { faults_of(&policy, now) };
        if !faults.is_empty() {
            let message = format!("job {job} cannot be changed like that");
            return Err(ApiError { kind: ApiErrorKind::Invalid, message, hints: faults, refusals: vec![] });
        }
        if policy.schedule != status.policy.schedule && status.has_begun() {
            let message = format!("job {job} has begun; when it begins can no longer be changed");
            return Err(fault(ApiErrorKind::Refused, message, "suspend it, or submit another"));
        }
        if policy.recurs() != status.policy.recurs() && status.runs.count > 0 {
            let message = format!("job {job} has had runs; it cannot become a job of one run, or cease to be one");
            return Err(fault(ApiErrorKind::Refused, message, "set JobRunTimes to another number than 1"));
        }
        let mut messages = Vec::new();
        if policy != status.policy {
            self.say(job, EventBody::Edited { policy: Box::new(policy) }, now, out, &mut messages);
        }
        Ok(Outcome::Publish { messages, reply: ApiReply::Done })
    }

    /// An operator's word for a job that waits for one.
    pub(super) fn answered_by_operator(
        &mut self,
        job: JobId,
        said: JobAnswer,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let status = self.live(job)?;
        if status.state != JobState::QueryPending {
            let message = format!("job {job} is {} and waits for no answer", status.state);
            return Err(fault(ApiErrorKind::Refused, message, format!("see `sterna job show {job}`")));
        }
        let (vm, target) = (status.plan.vm.id, status.plan.target.id.clone());
        let (request, text) = match (said, status.is_unresolved()) {
            (JobAnswer::Fenced, true) => {
                let host = self.resolvable(vm, &target)?;
                let request = sterna_shared::bus::AgentRequest::VmFenced { vm, fenced: target };
                return Ok(Outcome::Forward { host, request, wait: AGENT_WAIT_MAX });
            }
            (_, true) => {
                let message = format!("job {job} waits until {target} answers, or is out of action for good");
                let hint = format!("if it is: sterna job answer {job} fenced");
                return Err(fault(ApiErrorKind::Refused, message, hint));
            }
            (JobAnswer::Fenced, false) => {
                let message = format!("job {job} waits for no host to be fenced");
                let hint = format!("answer `retry`, give disks other pools, or cancel it: sterna job cancel {job}");
                return Err(fault(ApiErrorKind::Refused, message, hint));
            }
            (JobAnswer::Retry, false) => (status.request.clone(), "try again".to_owned()),
            (JobAnswer::Place { disks }, false) => {
                let places: Vec<_> = disks.iter().map(|place| format!("{} in {}", place.disk, place.pool)).collect();
                let kept = status.request.disks.iter().filter(|old| disks.iter().all(|new| new.disk != old.disk));
                let disks = kept.cloned().chain(disks.iter().cloned()).collect();
                (MoveRequest { disks, ..status.request.clone() }, format!("put {}", places.join(", ")))
            }
        };
        let mut messages = Vec::new();
        self.say(job, EventBody::Answered { request: Box::new(request), text }, now, out, &mut messages);
        self.say(job, EventBody::Resumed, now, out, &mut messages);
        self.begin_next(token, now, out, &mut messages);
        Ok(Outcome::Publish { messages, reply: ApiReply::Done })
    }

    /// Has a change made that the table allows; what is to be published for it.
    fn change_state(
        &mut self,
        job: JobId,
        wanted: RequestedState,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Vec<Message> {
        let Some(status) = self.jobs.get(&job).map(|job| job.status.clone()) else { return Vec::new() };
        let (plan, attempt) = (&status.plan, status.plan.attempt);
        // Each wish is a message of its own, also the same once more: agents may have refused it a moment ago.
        let kind = |wish: &str| format!("{wish}-{attempt}-{}", now.at.unix_microseconds());
        if status.hands() != Hands::Coordinator {
            return match wanted {
                RequestedState::Suspend => to_parties(plan, &kind("suspend"), || Command::Suspend { job, attempt }),
                RequestedState::Kill => to_parties(plan, &kind("kill"), || Command::Kill { job }),
                _ => to_parties(plan, &kind("cancel"), || Command::Cancel { job }),
            };
        }
        let mut messages = Vec::new();
        if let (RequestedState::Terminate | RequestedState::Kill, Some(run)) = (wanted, status.runs.current()) {
            messages = self.change_state(run, wanted, token.clone(), now, out);
        }
        let body = match wanted {
            RequestedState::Start => EventBody::Resumed,
            RequestedState::Suspend => EventBody::Suspended { figures: StepFigures::default() },
            RequestedState::Terminate => EventBody::Terminated,
            RequestedState::Kill => EventBody::Killed,
            RequestedState::Service => EventBody::Held,
        };
        // What its target keeps for when it goes on is wanted no more. Before its end is told: after that nobody would say so again.
        if let (RequestedState::Terminate | RequestedState::Kill, true) = (wanted, status.has_begun()) {
            messages.extend(to_parties(plan, &kind("cancel"), || Command::Cancel { job }));
        }
        self.say(job, body, now, out, &mut messages);
        if wanted == RequestedState::Start {
            self.begin_next(token, now, out, &mut messages);
        }
        messages
    }

    /// Answers those who wait for a state that a job has come to, or can come to no more; and those whose time is up.
    pub(super) fn answer_waits(&mut self, now: Now, out: &mut Vec<Action>) {
        let Self { waits, jobs, .. } = self;
        waits.retain(|wait| {
            let status = jobs.get(&wait.job).map(|job| &job.status);
            let reply = match status {
                None => ApiReply::Error { error: no_job(wait.job) },
                Some(status) if reached(status, wait.goal) => answer(status, ReturnCode::Completed, None),
                Some(status) if status.state.is_final() => {
                    let reason = format!("the job is {} and not {}", status.state, wait.goal);
                    answer(status, ReturnCode::Failed, Some(reason))
                }
                Some(status) if wait.until <= now.clock => {
                    let reason = format!("the job is still {}; the change goes on", status.state);
                    answer(status, ReturnCode::Timeout, Some(reason))
                }
                Some(_) => return true,
            };
            out.push(Action::Answer { call: wait.call, reply: Box::new(reply) });
            false
        });
    }
}

/// Whether a job is where it was to come, or past it: a short one may have run to its end.
fn reached(status: &JobStatus, goal: JobState) -> bool {
    status.state == goal || (goal == JobState::Running && status.state == JobState::Completed)
}

fn answer(status: &JobStatus, code: ReturnCode, reason: Option<String>) -> ApiReply {
    ApiReply::StateRequested { code, reason, status: Box::new(status.clone()) }
}

fn refusal(status: &JobStatus, wanted: RequestedState) -> String {
    let (job, state) = (status.job, status.state);
    match (status.hands(), state) {
        (_, state) if state.is_final() => format!("job {job} is over: {state}; it can only be done again as a new job"),
        (Hands::Ceded, _) => {
            format!("job {job} is {state}: the right to run the VM is on its way and cannot be called back")
        }
        (_, JobState::QueryPending) => format!("job {job} waits for an answer: sterna job answer {job}"),
        (_, JobState::ShuttingDown) => format!("job {job} is being undone, and over soon"),
        _ => format!("job {job} is {state}; suspend it before you ask for {wanted}"),
    }
}
