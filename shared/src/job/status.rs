//! Status: what the events of a job add up to.

mod standing;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    CheckReport, Event, EventBody, FailureReport, Finalization, Finding, IllegalTransition, JobState, MoveRequest,
    Plan, Policy, Reporter, Runs, StateInput, StepFigures, StepKind, StepState, StepStatus,
};
use crate::id::{HostId, JobId, Token};
use crate::time::Timestamp;

/// The most notices a status keeps; the oldest go first.
pub const NOTICES_MAX: usize = 64;
/// The most characters of a notice that a status keeps.
const NOTICE_LENGTH_MAX: usize = 2048;

/// A job, as the events so far tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobStatus {
    /// The job.
    pub job: JobId,
    /// Its plan, token blanked. While the job waits to begin, what it would do as far as was known when it was submitted.
    pub plan: Plan,
    /// The wish that its plan was made from.
    pub request: MoveRequest,
    /// How it is to be treated.
    pub policy: Policy,
    /// Whether its plan is in agents' hands.
    pub dispatch: Dispatch,
    /// Whether it was ever sent to agents.
    begun: bool,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// Its state.
    pub state: JobState,
    /// Its steps, in the plan's order.
    pub steps: Vec<StepStatus>,
    /// When its state last changed.
    pub changed_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Option<Timestamp>,
    /// Why it failed; while it waits for a word, why it could not go on.
    pub failure: Option<FailureReport>,
    /// What it had done before it was last suspended.
    #[serde(default)]
    pub before: StepFigures,
    /// Whether the guest is slowed down so that the job gets there.
    pub throttled: bool,
    /// The job that it is a run of: one that recurs, or one that failed.
    pub parent: Option<JobId>,
    /// Its runs, where it recurs.
    pub runs: Runs,
    /// Of a replication that is finalized, or was.
    #[serde(default)]
    pub finalization: Option<Finalization>,
    /// How long the guest did not execute, in microseconds. None of a check, which leaves it alone.
    pub blackout_us: Option<u64>,
    /// What a check has found.
    #[serde(default)]
    pub check: Option<Box<CheckReport>>,
    /// What a deep check has found in the disks, until it has looked at the rest too.
    #[serde(default)]
    pub read: Vec<Finding>,
    /// What watchers should know.
    pub notices: Vec<Notice>,
    /// The last attempt that each host has said it has the plan of.
    #[serde(default)]
    accepted: BTreeMap<String, u32>,
    /// The last sequence number seen of each reporter.
    seen: BTreeMap<String, u64>,
}

/// Whether a job's plan is in agents' hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Dispatch {
    /// It waits for its time or for a slot at its hosts, is suspended or held, or is a check that the coordinator makes: no
    /// agent has anything to do for it.
    Waiting,
    /// Its plan was sent to the agents; the one that leads has not said that it has it.
    Sent,
    /// The agent that leads has it, whether or not others have.
    Taken,
}

/// Something a watcher should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Notice {
    /// When.
    pub at: Timestamp,
    /// Who says so.
    pub host: Option<HostId>,
    /// What.
    pub text: String,
}

/// Why an event left a status as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// It was seen before.
    #[error("event {sequence} was seen before")]
    Repeated {
        /// Its number.
        sequence: u64,
    },
    /// It is about another job.
    #[error("it is about job {0}")]
    OtherJob(JobId),
    /// It is not its reporter's to tell: the host has no part in the job, or speaks for the coordinators.
    #[error("it is not {0}'s to tell")]
    NotItsOwn(HostId),
    /// It tells of a plan that another has followed, or that was put away.
    #[error("it is about attempt {0}, which is over")]
    OldAttempt(u32),
    /// Its step is not part of the plan.
    #[error("the plan has no step {0}")]
    UnknownStep(StepKind),
    /// The state's table does not allow it.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
}

impl JobStatus {
    /// A job that is planned and no more. The token is blanked here, so that no status ever shows it.
    #[must_use]
    pub fn planned(mut plan: Plan) -> Self {
        plan.token = Token::from_bytes([0; crate::id::TOKEN_LENGTH]);
        Self {
            job: plan.job,
            request: MoveRequest::of(&plan),
            policy: Policy::default(),
            dispatch: if plan.parties().is_empty() { Dispatch::Waiting } else { Dispatch::Sent },
            begun: true,
            submitted_at: plan.planned_at,
            state: JobState::New,
            steps: waiting(&plan),
            changed_at: plan.planned_at,
            started_at: None,
            finished_at: None,
            failure: None,
            before: StepFigures::default(),
            throttled: false,
            parent: None,
            runs: Runs { count: 0, considered: plan.planned_at, latest: Vec::new() },
            finalization: None,
            blackout_us: None,
            check: None,
            read: Vec::new(),
            notices: Vec::new(),
            accepted: BTreeMap::new(),
            seen: BTreeMap::new(),
            plan,
        }
    }

    /// Begins a status from any event that carries the plan.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        match &event.body {
            EventBody::Submitted { draft: plan, .. } | EventBody::Planned { plan } | EventBody::Accepted { plan }
                if plan.job == event.job && may_tell(&event.reporter, plan, &event.body) =>
            {
                let mut status = Self::planned(Plan::clone(plan));
                status.apply(event).ok().map(|()| status)
            }
            _ => None,
        }
    }

    /// Takes an event in.
    ///
    /// # Errors
    /// [`Ignored`] says why the event changed nothing; the status is then as it was, but for remembering that it was seen.
    pub fn apply(&mut self, event: &Event) -> Result<(), Ignored> {
        if event.job != self.job {
            return Err(Ignored::OtherJob(event.job));
        }
        if let Reporter::Host(host) = &event.reporter
            && !self.hears(&event.reporter, &event.body)
        {
            return Err(Ignored::NotItsOwn(host.clone()));
        }
        let seen = self.seen.entry(seen_as(&event.reporter)).or_default();
        // An agent that has forgotten an earlier attempt, of long ago, counts from the beginning.
        if let (EventBody::Accepted { plan }, Reporter::Host(host)) = (&event.body, &event.reporter)
            && self.accepted.get(host.as_str()).map_or(plan.attempt > self.plan.attempt, |known| plan.attempt > *known)
        {
            *seen = 0;
        }
        if event.sequence <= *seen {
            return Err(Ignored::Repeated { sequence: event.sequence });
        }
        *seen = event.sequence;
        self.fold(event)
    }

    /// The number of the last event seen of a reporter; 0 before the first.
    #[must_use]
    pub fn last_seen(&self, reporter: &Reporter) -> u64 {
        self.seen.get(&seen_as(reporter)).copied().unwrap_or(0)
    }

    /// Whether an event is its reporter's to tell. A host that has no part in the plan that is known may have one in a later
    /// one, if the word of that was lost; it brings the plan along, and nobody may have the job in hand by another.
    fn hears(&self, reporter: &Reporter, body: &EventBody) -> bool {
        match body {
            EventBody::Accepted { plan } => {
                let waits = self.dispatch == Dispatch::Waiting && !self.state.is_final() && !self.policy.recurs();
                plan.job == self.job
                    && plan.attempt <= self.plan.attempt.saturating_add(1)
                    && may_tell(reporter, plan, body)
                    && (waits || may_tell(reporter, &self.plan, body))
            }
            body => may_tell(reporter, &self.plan, body),
        }
    }

    /// Leaves out what a host tells of an attempt that another has followed since, by another host's word: journals are read one
    /// after the other where the stream is lost. What was done then counts all the same.
    fn is_of_this_attempt(&mut self, event: &Event) -> Result<(), Ignored> {
        let (Reporter::Host(host), false) = (&event.reporter, matches!(event.body, EventBody::Accepted { .. })) else {
            return Ok(());
        };
        match self.accepted.get(host.as_str()) {
            Some(attempt) if *attempt < self.plan.attempt => {
                if let EventBody::Suspended { figures } | EventBody::Asked { figures, .. } = &event.body {
                    self.before = self.before.plus(figures);
                }
                Err(Ignored::OldAttempt(*attempt))
            }
            _ => Ok(()),
        }
    }

    fn fold(&mut self, event: &Event) -> Result<(), Ignored> {
        self.is_of_this_attempt(event)?;
        match &event.body {
            EventBody::Ownership { .. } => {}
            EventBody::Submitted { request, policy, parent, .. } => {
                self.parent = *parent;
                self.runs.considered = event.at;
                self.request = MoveRequest::clone(request);
                self.policy = Policy::clone(policy);
                (self.dispatch, self.begun) = (Dispatch::Waiting, false);
                self.submitted_at = event.at;
            }
            EventBody::RunBegun { run, turn } => {
                self.enter(StateInput::Progressed, event.at)?;
                self.started_at.get_or_insert(event.at);
                self.runs.begin(*run, *turn, event.at);
            }
            EventBody::RunsSkipped { turn, missed } => {
                self.runs.considered = *turn;
                self.note(event, &format!("{missed} turns up to {turn} were missed and are not made up for"));
            }
            EventBody::RunEnded { run, state, failure, more } => {
                self.runs.end(*run, *state, failure.clone(), event.at);
                // Its pause is counted from the end of the run.
                if self.policy.schedule.as_ref().is_some_and(|schedule| schedule.idle_seconds.is_some()) {
                    self.runs.considered = event.at;
                }
                self.enter(if *more { StateInput::Rested } else { StateInput::Completed }, event.at)?;
            }
            EventBody::Edited { policy } => self.policy = Policy::clone(policy),
            EventBody::Limited { bandwidth } => {
                self.request.bandwidth = *bandwidth;
                self.plan.bandwidth = *bandwidth;
            }
            EventBody::Finalizing { hosts } => {
                self.finalization.get_or_insert(Finalization { asked_at: event.at, hosts: hosts.clone() });
            }
            EventBody::Planned { plan } => {
                self.follow(plan)?;
                // A check is the coordinator's own: no agent has anything to do for it.
                if !self.plan.parties().is_empty() {
                    self.dispatch = Dispatch::Sent;
                }
            }
            EventBody::Accepted { plan } => {
                if let Reporter::Host(host) = &event.reporter {
                    self.accepted.insert(host.to_string(), plan.attempt);
                }
                // Told before the job was put away, and heard after it: nobody has that attempt any more.
                if self.begun && self.dispatch == Dispatch::Waiting && plan.attempt <= self.plan.attempt {
                    return Err(Ignored::OldAttempt(plan.attempt));
                }
                // That it was to go on was told by nobody who is heard any more, and its agents go on.
                let at_rest = matches!(self.state, JobState::Suspended | JobState::Service | JobState::QueryPending);
                if at_rest && self.dispatch == Dispatch::Waiting {
                    self.enter(StateInput::Resumed, event.at)?;
                    self.failure = None;
                }
                let raises = plan.attempt > self.plan.attempt;
                self.follow(plan)?;
                self.enter(StateInput::Accepted, event.at)?;
                // Who follows only waits for the host that leads, which may never have been told.
                if self.plan.leader() == host_of(event).as_ref() {
                    self.dispatch = Dispatch::Taken;
                } else if raises || self.dispatch == Dispatch::Waiting {
                    self.dispatch = Dispatch::Sent;
                }
            }
            EventBody::StepStarted { step } => {
                self.enter(StateInput::Progressed, event.at)?;
                self.started_at.get_or_insert(event.at);
                let status = self.step(*step)?;
                status.state = StepState::Running;
                status.host = host_of(event);
                status.started_at.get_or_insert(event.at);
            }
            EventBody::StepFinished { step, figures } => {
                self.enter(StateInput::Progressed, event.at)?;
                let status = self.step(*step)?;
                status.state = StepState::Finished;
                status.finished_at = Some(event.at);
                status.figures = *figures;
            }
            EventBody::StepFailed { step, failure } => {
                self.enter(StateInput::Unwinding, event.at)?;
                let status = self.step(*step)?;
                status.state = StepState::Failed;
                status.finished_at = Some(event.at);
                status.failure = Some(failure.clone());
            }
            EventBody::Notice { text } => self.note(event, text),
            EventBody::Throttled { held_back, text } => {
                self.throttled = *held_back;
                self.note(event, text);
            }
            EventBody::DisksRead { findings, figures } => {
                self.enter(StateInput::Progressed, event.at)?;
                let step = self.step(StepKind::ReadDisks)?;
                (step.state, step.finished_at, step.figures) = (StepState::Finished, Some(event.at), *figures);
                self.read.clone_from(findings);
                self.dispatch = Dispatch::Waiting;
            }
            EventBody::Checked { report } => {
                self.enter(StateInput::Progressed, event.at)?;
                self.check = Some(report.clone());
                self.read.clear();
            }
            EventBody::CancelAccepted => {
                self.enter(StateInput::Unwinding, event.at)?;
                self.note(event, "cancel accepted; the job unwinds");
            }
            EventBody::CancelRefused { reason } => self.note(event, &format!("cancel refused: {reason}")),
            EventBody::Suspended { figures } => {
                self.enter(StateInput::Suspended, event.at)?;
                self.rest(*figures);
            }
            EventBody::Resumed => {
                self.enter(StateInput::Resumed, event.at)?;
                self.failure = None;
                self.dispatch = Dispatch::Waiting;
            }
            EventBody::Held => {
                self.enter(StateInput::Held, event.at)?;
                self.dispatch = Dispatch::Waiting;
            }
            EventBody::Asked { failure, figures } => {
                self.enter(StateInput::Asked, event.at)?;
                self.failure = Some(failure.clone());
                self.rest(*figures);
            }
            EventBody::Answered { request, text } => {
                self.request = MoveRequest::clone(request);
                self.note(event, &format!("answered: {text}"));
            }
            EventBody::Unresolved { reason } => {
                self.enter(StateInput::Asked, event.at)?;
                self.note(event, reason);
            }
            EventBody::Completed { blackout_us } => {
                self.enter(StateInput::Completed, event.at)?;
                self.blackout_us = self.plan.moves().then_some(*blackout_us);
            }
            EventBody::Terminated => self.enter(StateInput::Terminated, event.at)?,
            EventBody::Killed => self.enter(StateInput::Killed, event.at)?,
            EventBody::Failed { failure } => {
                self.enter(StateInput::Failed, event.at)?;
                self.failure = Some(failure.clone());
            }
        }
        Ok(())
    }

    /// Takes a plan up that is newer than the one it has; a job that is begun anew goes through all its steps again.
    fn follow(&mut self, plan: &Plan) -> Result<(), Ignored> {
        let known = (self.plan.attempt, self.dispatch != Dispatch::Waiting);
        if plan.attempt < known.0 {
            return Err(Ignored::OldAttempt(plan.attempt));
        }
        if known != (plan.attempt, true) {
            self.plan = Plan { token: self.plan.token.clone(), ..plan.clone() };
            self.steps = waiting(&self.plan);
            (self.check, self.begun) = (None, true);
            self.read.clear();
        }
        Ok(())
    }

    /// Nothing is under way any more: what was done is kept as figures, and the steps will be gone through again.
    fn rest(&mut self, figures: StepFigures) {
        self.before = self.before.plus(&figures);
        self.steps = waiting(&self.plan);
        self.throttled = false;
        self.dispatch = Dispatch::Waiting;
    }

    fn enter(&mut self, input: StateInput, at: Timestamp) -> Result<(), IllegalTransition> {
        let next = self.state.next(input)?;
        if next != self.state {
            self.state = next;
            self.changed_at = at;
        }
        if next.is_final() {
            self.finished_at = Some(at);
            for step in self.steps.iter_mut().filter(|step| step.state == StepState::Running) {
                step.state = if next == JobState::Completed { StepState::Finished } else { StepState::Failed };
                step.finished_at.get_or_insert(at);
            }
        }
        Ok(())
    }

    fn step(&mut self, kind: StepKind) -> Result<&mut StepStatus, Ignored> {
        self.steps.iter_mut().find(|step| step.kind == kind).ok_or(Ignored::UnknownStep(kind))
    }

    fn note(&mut self, event: &Event, text: &str) {
        if self.notices.len() == NOTICES_MAX {
            self.notices.remove(0);
        }
        let text = text.chars().take(NOTICE_LENGTH_MAX).collect();
        self.notices.push(Notice { at: event.at, host: host_of(event), text });
    }
}

fn waiting(plan: &Plan) -> Vec<StepStatus> {
    plan.steps.iter().copied().map(StepStatus::waiting).collect()
}

/// By what a reporter goes among those that were seen.
fn seen_as(reporter: &Reporter) -> String {
    match reporter {
        Reporter::Coordinator => String::new(),
        Reporter::Host(host) => host.to_string(),
    }
}

/// Whether a reporter may tell this of a job with that plan: coordinators all of it, a host what agents tell of jobs in which
/// they have a part.
fn may_tell(reporter: &Reporter, plan: &Plan, body: &EventBody) -> bool {
    match reporter {
        Reporter::Coordinator => true,
        Reporter::Host(host) => body.is_of_agents() && plan.involves(host),
    }
}

fn host_of(event: &Event) -> Option<HostId> {
    match &event.reporter {
        Reporter::Coordinator => None,
        Reporter::Host(host) => Some(host.clone()),
    }
}

#[cfg(test)]
mod tests;
