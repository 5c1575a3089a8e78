//! How long a replication lasts: it expires, which is pushed back (Google's `extendMigration`); and it ends for good, once its VM is cut
//! over (`finalizeMigration`).
//!
//! ```text
//!   finalize ─▶ Finalizing { hosts } ─▶ the target: the replica goes ─▶ each other: the way back goes ─▶ none keeps any ─▶ Completed
//! ```
//!
//! What goes may be all that there is of a VM whose host is lost. So before each thing that goes the target must be heard of and have
//! the VM, and nobody else may have it in hand; else it is waited for. A way back goes last. No job of the VM begins meanwhile.
//!
//! Which hosts those are is decided once, and is in the event stream. How far each of them is, is not: a coordinator that takes
//! over asks all of them anew, which changes nothing where nothing is left.

use std::collections::BTreeSet;
use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest, ApiError, ApiErrorKind, ApiReply};
use sterna_shared::host::PartialReport;
use sterna_shared::id::{HostId, JobId, VmId};
use sterna_shared::job::{
    EXTENSION_DEFAULT_SECONDS, EXTENSION_MAX_SECONDS, EXTENSIONS_MAX, EventBody, Expiration, JobState, JobStatus,
    Policy, Refusal, RefusalCode,
};
use sterna_shared::replica::{ReplicaState, ReplicaView};
use sterna_shared::view::google::Rates;

use super::request::{Outcome, forwarded, no_job, not_found};
use super::state::{Action, Message, Now, State};
use crate::api::{fault, refused};
use crate::fleet::{FindError, Member};

/// How long after a host could not let go of a replication it is asked again.
const RETRY: Duration = Duration::from_secs(10);

/// How far a host is in letting go of a replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LettingGo {
    /// It was asked, and has not answered.
    Asked,
    /// It did what it was asked for last. What it still keeps, its next heartbeat tells.
    Answered,
    /// It could not, and is asked again from then on.
    RetryAt(Duration),
    /// It keeps nothing.
    Gone,
}

impl State {
    /// Finalizes the replication of a VM, by its name or id. Asked again, it tells how far that is.
    ///
    /// # Errors
    /// What speaks against it.
    pub(super) fn finalize(&mut self, vm: &str, now: Now, out: &mut Vec<Action>) -> Result<Outcome, ApiError> {
        let status = self.replication_of(vm)?;
        let (job, name) = (status.job, status.plan.vm.name.clone());
        if status.finalization.is_some() && (!status.state.is_final() || status.state == JobState::Completed) {
            return Ok(Outcome::Reply(told(status)));
        }
        if status.state.is_final() || !status.policy.recurs() {
            let message = format!("no job replicates VM {name} again and again at present");
            let hint = format!(
                "remove what is left of its replica, `sterna replicate remove {name}`, and of the way back: `sterna vm drop {name} --host HOST`"
            );
            return Err(fault(ApiErrorKind::Refused, message, hint));
        }
        if let Some(why) = self.why_not_finalized(status) {
            return Err(refused(format!("the replication of VM {name} cannot be finalized"), vec![why]));
        }
        let host = self.member(&status.plan.target.id)?;
        self.replica_is_free(host, status.plan.vm.id, name.as_str(), Some(job))?;
        let hosts = self.keepers_of(status, now);
        let mut messages = Vec::new();
        self.say(job, EventBody::Finalizing { hosts }, now, out, &mut messages);
        let status = &self.jobs.get(&job).ok_or_else(|| no_job(job))?.status;
        Ok(Outcome::Publish { messages, reply: told(status) })
    }

    /// Pushes back when the replication of a VM expires.
    ///
    /// # Errors
    /// What speaks against it.
    pub(super) fn extend(
        &mut self,
        vm: &str,
        by_seconds: Option<u32>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let by_seconds = by_seconds.unwrap_or(EXTENSION_DEFAULT_SECONDS);
        if !(1..=EXTENSION_MAX_SECONDS).contains(&by_seconds) {
            let hint = format!("give 1 to {EXTENSION_MAX_SECONDS} s");
            return Err(fault(ApiErrorKind::Invalid, format!("a replication is not extended by {by_seconds} s"), hint));
        }
        let status = self.replication_of(vm)?;
        let (job, name) = (self.live(status.job)?.job, &status.plan.vm.name);
        if status.is_finalizing() {
            let why = self.being_finalized(status.plan.vm.id).into_iter().collect();
            return Err(refused(format!("the replication of VM {name} cannot be extended"), why));
        }
        let expiration = match status.policy.expiration {
            None => Err("does not expire, and need not be extended".to_owned()),
            Some(of) => of
                .extended(by_seconds, now.at)
                .ok_or_else(|| format!("was extended {EXTENSIONS_MAX} times, and expires at {}", of.at)),
        };
        let expiration = expiration.map_err(|why| {
            let remedy = format!(
                "end it, and begin it anew, from the replica that is there: `sterna job cancel {job}`, `sterna replicate add {name} --to HOST`"
            );
            let message = format!("the replication of VM {name} {why}");
            let refusal = Refusal { code: RefusalCode::NotExtendable, message, remedy };
            refused(format!("the replication of VM {name} cannot be extended"), vec![refusal])
        })?;
        let policy = Box::new(Policy { expiration: Some(expiration), ..status.policy.clone() });
        let mut messages = Vec::new();
        self.say(job, EventBody::Edited { policy }, now, out, &mut messages);
        Ok(Outcome::Publish { messages, reply: told(self.live(job)?) })
    }

    /// Replications that are about to expire say so, each once.
    pub(super) fn tend_expiry(&mut self, now: Now, out: &mut Vec<Action>) {
        let near = |status: &JobStatus| {
            let expiration = status.policy.expiration.filter(|of| !of.noticed && of.is_near(now.at))?;
            let is_live = !self.replaying && !status.state.is_final() && !status.is_finalizing();
            is_live.then(|| (status.job, status.plan.vm.name.clone(), expiration, status.policy.clone()))
        };
        let near: Vec<_> = self.jobs.values().filter_map(|job| near(&job.status)).collect();
        let mut messages = Vec::new();
        for (job, name, expiration, policy) in near {
            let text = format!(
                "the replication expires at {}, and no cycle is made from then on; push that back: sterna replicate extend {name}",
                expiration.at
            );
            let policy = Box::new(Policy { expiration: Some(Expiration { noticed: true, ..expiration }), ..policy });
            self.say(job, EventBody::Notice { text }, now, out, &mut messages);
            self.say(job, EventBody::Edited { policy }, now, out, &mut messages);
        }
        if !messages.is_empty() {
            out.push(Action::Publish { messages, answer: None });
        }
    }

    /// The replication of a VM: that which is not over, else the newest.
    fn replication_of(&self, vm: &str) -> Result<&JobStatus, ApiError> {
        let id = match self.fleet.find(vm) {
            Ok((_, report)) => Some(report.id()),
            Err(error @ FindError::Ambiguous { .. }) => return Err(not_found(&error)),
            Err(FindError::Unknown { .. }) => vm.parse().ok(),
        };
        let is_of = |status: &JobStatus| {
            let of = &status.plan.vm;
            id.map_or(of.name.as_str() == vm, |id| of.id == id)
        };
        let all = || self.replications().filter(|status| is_of(status));
        all().find(|status| !status.state.is_final()).or_else(|| all().next()).ok_or_else(|| {
            fault(ApiErrorKind::NotFound, format!("no VM {vm} is replicated"), "see `sterna replicate list`")
        })
    }

    /// Only what is cut over, to a host that is there, and in nobody's hands, is finalized.
    fn why_not_finalized(&self, status: &JobStatus) -> Option<Refusal> {
        let (vm, target) = (&status.plan.vm, &status.plan.target.id);
        let Some((member, _)) = self.fleet.vm(vm.id).filter(|(_, report)| report.owned) else {
            return Some(not_cut_over(status, "at no host that is known".to_owned()));
        };
        let at = &member.inventory.host;
        if at != target {
            return Some(not_cut_over(status, format!("at {at}")));
        }
        let mut others = self.jobs.values().map(|job| &job.status).filter(|other| other.job != status.job);
        if let Some(other) = others.find(|other| other.plan.vm.id == vm.id && !other.state.is_final()) {
            return Some(Refusal {
                code: RefusalCode::VmInJob,
                message: format!("VM {} is in job {}, or will be", vm.name, other.job),
                remedy: format!("wait until it is over, or cancel it: `sterna job cancel {}`", other.job),
            });
        }
        (!member.online).then(|| Refusal {
            code: RefusalCode::HostOffline,
            message: format!("host {at} is not heard of, and the way back may be all that is left of VM {}", vm.name),
            remedy: format!("bring {at} back: `sterna host show {at}`"),
        })
    }

    /// Why nothing is begun with a VM, or its replica: its replication is being finalized.
    pub(super) fn being_finalized(&self, vm: VmId) -> Option<Refusal> {
        let is_it = |status: &&JobStatus| status.plan.vm.id == vm && status.is_finalizing();
        let status = self.jobs.values().map(|job| &job.status).find(is_it)?;
        Some(Refusal {
            code: RefusalCode::VmInJob,
            message: format!("the replication of VM {} is being finalized, by job {}", status.plan.vm.name, status.job),
            remedy: format!(
                "wait until it is over: `sterna job show {0}`; where one of its hosts is gone for good: `sterna job cancel {0}`",
                status.job
            ),
        })
    }

    /// The hosts that keep something of a replication: the target its replica, others the way back of a cutover.
    fn keepers_of(&self, status: &JobStatus, now: Now) -> Vec<HostId> {
        let (vm, target) = (status.plan.vm.id, &status.plan.target.id);
        let keeps = |member: &&Member| member.inventory.partials.iter().any(|partial| partial.vm == vm);
        let kept = self.fleet.hosts().filter(keeps).map(|member| &member.inventory.host);
        // One that was left a moment ago may not have said so yet. Where there is nothing its next heartbeat tells.
        let way_back = |of: &JobStatus| {
            let seconds = i64::from(of.plan.cutover.as_ref()?.revert_seconds);
            let until = of.finished_at?.unix_microseconds().saturating_add(seconds.saturating_mul(1_000_000));
            let is_ours = of.state == JobState::Completed && (of.plan.vm.id, &of.plan.target.id) == (vm, target);
            (is_ours && now.at.unix_microseconds() < until).then(|| of.plan.source.id.clone())
        };
        let sources = self.jobs.values().filter_map(|job| way_back(&job.status));
        let known = sources.filter(|host| self.fleet.host(host).is_some());
        let hosts: BTreeSet<HostId> = known.chain(kept.chain([target]).cloned()).collect();
        hosts.into_iter().collect()
    }

    /// A host was heard of: it is asked to let go of replications that are finalized, and they are over once nobody keeps anything.
    pub(super) fn tend_finalized(&mut self, host: &HostId, now: Now, out: &mut Vec<Action>) {
        if self.replaying {
            return;
        }
        let Self { jobs, letting_go, .. } = self;
        letting_go.retain(|(job, _), _| jobs.get(job).is_some_and(|job| job.status.is_finalizing()));
        let of_host = |status: &&JobStatus| {
            status.is_finalizing() && status.finalization.as_ref().is_some_and(|of| of.hosts.contains(host))
        };
        let ours = self.jobs.values().map(|job| &job.status).filter(of_host);
        let asked: Vec<(JobId, VmId, bool)> = ours
            .filter(|status| self.may_let_go(status, host, now))
            .map(|status| (status.job, status.plan.vm.id, status.plan.target.id == *host))
            .collect();
        for (job, vm, is_target) in asked {
            let keeps = self.fleet.host(host).is_some_and(|member| {
                let of_vm = |partial: &PartialReport| partial.vm == vm;
                member.inventory.partials.iter().any(of_vm)
            });
            let next = match self.letting_go.get(&(job, host.clone())) {
                Some(LettingGo::Asked | LettingGo::Gone) => continue,
                Some(LettingGo::Answered) if is_target => LettingGo::Gone,
                _ if !is_target && !keeps => LettingGo::Gone,
                // Its next heartbeat tells.
                Some(LettingGo::Answered) => continue,
                Some(LettingGo::RetryAt(at)) if *at > now.clock => continue,
                Some(LettingGo::RetryAt(_)) | None => LettingGo::Asked,
            };
            self.letting_go.insert((job, host.clone()), next);
            match next {
                LettingGo::Gone => self.end_finalized(job, now, out),
                _ => {
                    let request =
                        if is_target { AgentRequest::ReplicaDrop { vm } } else { AgentRequest::VmDrop { vm } };
                    out.push(Action::LetGo { job, host: host.clone(), request: Box::new(request) });
                }
            }
        }
    }

    /// Whether a host may let go of its part now: the VM is at the target, which is there, in nobody's hands; and the target has let go
    /// of its own part before.
    fn may_let_go(&self, status: &JobStatus, host: &HostId, now: Now) -> bool {
        let (vm, target) = (status.plan.vm.id, &status.plan.target.id);
        let is_there = self.fleet.vm(vm).is_some_and(|(member, report)| {
            report.owned && member.online && member.inventory.host == *target && report.job.is_none()
        });
        let held = |other: &JobStatus| other.plan.vm.id == vm && other.job != status.job && other.holds_vm(now.at);
        let comes_next = host == target || self.letting_go.get(&(status.job, target.clone())) == Some(&LettingGo::Gone);
        is_there && comes_next && !self.jobs.values().any(|other| held(&other.status))
    }

    /// A host has answered.
    pub(super) fn let_go(
        &mut self,
        job: JobId,
        host: HostId,
        reply: Result<AgentReply, String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let why = match forwarded(&host, reply) {
            ApiReply::Error { error } => Some(error.message),
            _ => None,
        };
        let text = why.map(|why| format!("{host} does not let go of the replication yet, and is asked again: {why}"));
        let next = if text.is_some() { LettingGo::RetryAt(now.clock + RETRY) } else { LettingGo::Answered };
        self.letting_go.insert((job, host), next);
        // Once, and not each time.
        let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { return };
        let new = text.filter(|text| status.notices.iter().all(|notice| notice.text != *text));
        if let Some(text) = new {
            let mut messages = Vec::new();
            self.say(job, EventBody::Notice { text }, now, out, &mut messages);
            out.push(Action::Publish { messages, answer: None });
        }
    }

    /// A finalized replication is over once none of its hosts keeps anything.
    fn end_finalized(&mut self, job: JobId, now: Now, out: &mut Vec<Action>) {
        let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { return };
        let gone = |host: &HostId| self.letting_go.get(&(job, host.clone())) == Some(&LettingGo::Gone);
        if !status.finalization.iter().flat_map(|of| &of.hosts).all(gone) {
            return;
        }
        let mut messages: Vec<Message> = Vec::new();
        self.say(job, EventBody::Completed { blackout_us: 0 }, now, out, &mut messages);
        out.push(Action::Publish { messages, answer: None });
    }
}

/// Why a replication does not go on because somebody says so: it has expired, or its VM is at the host that it is copied to.
pub(super) fn not_resumed(view: &ReplicaView) -> Option<ApiError> {
    let (vm, host) = (&view.name, &view.host);
    let message = format!("the replication of {vm} does not go on");
    match view.state {
        ReplicaState::Expired => {
            let why = Refusal {
                code: RefusalCode::ReplicationExpired,
                message: format!("the replication of VM {vm} has expired"),
                remedy: format!("push its expiry back: `sterna replicate extend {vm}`"),
            };
            Some(refused(message, vec![why]))
        }
        ReplicaState::Cutover => {
            let message = format!("{message}: the VM is cut over to {host}");
            Some(fault(ApiErrorKind::Refused, message, format!("revert it first: sterna cutover revert {vm}")))
        }
        _ => None,
    }
}

fn not_cut_over(status: &JobStatus, at: String) -> Refusal {
    let (name, target) = (&status.plan.vm.name, &status.plan.target.id);
    Refusal {
        code: RefusalCode::NotCutOver,
        message: format!("VM {name} is {at}, and its replica at {target}"),
        remedy: format!(
            "cut it over first: `sterna cutover start {name}`; to end the replication where it is: `sterna replicate remove {name}`"
        ),
    }
}

fn told(status: &JobStatus) -> ApiReply {
    ApiReply::Job { status: Box::new(status.clone()), progress: None, rates: Rates::default() }
}
