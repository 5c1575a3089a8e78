//! Checks that are jobs: they wait in the queue as moves do, take no slot, and the coordinator itself carries them out.
//!
//! ```text
//!   check        Submitted ──▶ Planned, StepStarted ──▶ [the two agents measure] ──▶ Checked ──▶ Completed | Failed
//!   deep check   Submitted ──▶ Planned ──▶ the source's agent reads every disk ──▶ DisksRead ──▶ StepStarted ──▶ …
//! ```
//!
//! What is under way is read off the jobs: [`JobStatus::is_checking`] says that somebody has to look, and [`State::checks`]
//! at what this coordinator looks. One that takes over looks at nothing yet, so that what its predecessor had begun begins
//! anew, and no job waits for an answer that nobody will get.

use std::time::Duration;

use sterna_shared::id::{JobId, Token};
use sterna_shared::job::{
    CheckReport, EventBody, FailureCode, FailureReport, Finding, JobKind, JobStatus, Plan, RefusalCode, Severity,
    StepFigures, StepKind,
};

use super::check::{Asker, Check, CheckQuestions};
use super::sent::run;
use super::state::{Action, Message, Now, State};
use crate::planner::Seeds;

/// How long a host or a VM may be unknown before that is a finding: a coordinator that has just taken over, or a host that
/// has just come, is heard of within that.
const UNHEARD_WAIT: Duration = Duration::from_secs(6);

impl State {
    /// Whether a job is a check at which somebody has to look, and nobody does.
    pub(super) fn is_unattended(&self, status: &JobStatus) -> bool {
        status.is_checking() && !self.checks.contains(&(status.job, status.plan.attempt))
    }

    /// Begins a check whose turn it is, or goes on with it; false where it has to wait.
    pub(super) fn begin_check(
        &mut self,
        job: JobId,
        token: &Token,
        now: Now,
        out: &mut Vec<Action>,
        messages: &mut Vec<Message>,
    ) -> bool {
        let Some(status) = self.jobs.get(&job).map(|job| job.status.clone()) else { return false };
        let goes_on = status.is_checking();
        let attempt = if goes_on { status.plan.attempt } else { status.next_attempt() };
        let seeds = Seeds { job, token: token.clone(), attempt, now: now.at };
        let (findings, plan) = self.look_at_plan(&status.request, seeds, now);
        let finds = |code| findings.iter().any(|finding| finding.reason.code == code);
        let unheard = [RefusalCode::UnknownVm, RefusalCode::UnknownHost, RefusalCode::HostOffline];
        if unheard.into_iter().any(finds) {
            if now.clock < *self.refused_since.entry(job).or_insert(now.clock) + UNHEARD_WAIT {
                return false;
            }
        } else {
            self.refused_since.remove(&job);
        }
        if !goes_on {
            // It reads what a move would hand over or take away.
            if status.request.kind == JobKind::DeepCheck && finds(RefusalCode::VmInJob) {
                return false;
            }
            // Where nothing is known any more of what it is about, the draft tells what was meant.
            let blanked = plan.clone().unwrap_or_else(|| Box::new(Plan { attempt, ..status.plan.clone() }));
            let online = |plan: &Plan| self.fleet.host(&plan.source.id).is_some_and(|source| source.online);
            let readable = plan.as_deref().is_some_and(online) && !finds(RefusalCode::VmUnresolved);
            let reads = status.request.kind == JobKind::DeepCheck && readable;
            let sent = Plan { token: token.clone(), ..Plan::clone(&blanked) };
            if reads {
                self.keep_sent(&sent, messages);
            }
            self.say(job, EventBody::Planned { plan: blanked }, now, out, messages);
            if reads {
                messages.extend(run(&sent, sent.parties()));
                return true;
            }
        }
        self.say(job, EventBody::StepStarted { step: StepKind::Check }, now, out, messages);
        match plan {
            Some(plan) if self.can_be_asked(&plan) => {
                self.checks.insert((job, attempt));
                let questions = Box::new(CheckQuestions::new(&plan, job, token.clone()));
                let check = Box::new(Check { asker: Asker::Job { job, attempt }, findings, plan });
                out.push(Action::Check { check, questions });
            }
            _ => self.conclude_check(job, CheckReport::new(findings, None, None, None), now, out, messages),
        }
        true
    }

    /// The agents have answered a check that is a job. Where it was ended or suspended meanwhile, nobody wants to know.
    pub(super) fn job_checked(
        &mut self,
        (job, attempt): (JobId, u32),
        report: CheckReport,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        self.checks.remove(&(job, attempt));
        let wanted = |status: &JobStatus| status.is_checking() && status.plan.attempt == attempt;
        if !self.jobs.get(&job).is_some_and(|job| wanted(&job.status)) {
            return;
        }
        let mut messages = Vec::new();
        self.conclude_check(job, report, now, out, &mut messages);
        out.push(Action::Publish { messages, answer: None });
    }

    fn conclude_check(
        &mut self,
        job: JobId,
        report: CheckReport,
        now: Now,
        out: &mut Vec<Action>,
        messages: &mut Vec<Message>,
    ) {
        let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { return };
        let CheckReport { mut findings, probe, forecast, .. } = report;
        findings.extend(status.read.iter().cloned());
        let report = CheckReport::new(findings, None, probe, forecast);
        let ended = match failure(status, &report) {
            Some(failure) => vec![EventBody::Failed { failure }],
            None => vec![
                EventBody::StepFinished { step: StepKind::Check, figures: StepFigures::default() },
                EventBody::Completed { blackout_us: 0 },
            ],
        };
        for body in std::iter::once(EventBody::Checked { report: Box::new(report) }).chain(ended) {
            self.say(job, body, now, out, messages);
        }
    }
}

/// Why a check was not passed: its first error, and then all else that it has found.
fn failure(status: &JobStatus, report: &CheckReport) -> Option<FailureReport> {
    let mut findings = report.findings.iter();
    let Finding { reason: first, .. } = findings.next().filter(|finding| finding.severity == Severity::Error)?;
    let code = match first.code {
        RefusalCode::DiskUnreadable => FailureCode::DiskRead,
        _ => FailureCode::NotMigratable,
    };
    Some(FailureReport {
        code,
        message: match code {
            FailureCode::DiskRead => first.message.clone(),
            _ => format!("VM {} cannot be moved like that: {}", status.plan.vm.name, first.message),
        },
        causes: findings.map(|finding| finding.reason.to_string()).collect(),
        remedy: first.remedy.clone(),
        host: None,
    })
}
