//! What operators ask, answered from the state or handed on to an agent.

use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest, ApiError, ApiErrorKind, ApiReply, ApiRequest, Command, SystemView};
use sterna_shared::host::PartialReport;
use sterna_shared::id::{HostId, JobId, Token};
use sterna_shared::job::{
    Event as JobEvent, EventBody, JobKind, JobStatus, MoveRequest, Plan, Policy, RefusalCode, Reporter, RequestedState,
};
use sterna_shared::planned::{PlannedView, PlannedVm};
use sterna_shared::units::Bandwidth;

use super::methods::StateRequest;
use super::state::{Action, CallId, Job, Message, Now, State};
use crate::api::{fault, refused};
use crate::fleet::{FindError, Member, vm_view};
use crate::planner::{self, BANDWIDTH_MIN, Draft, Seeds};
use crate::store::ArchiveQuery;

/// How long an agent may take to answer.
pub(super) const AGENT_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long it may take over work: making images, starting or ending a QEMU.
pub(super) const AGENT_WORK_WAIT_MAX: Duration = Duration::from_secs(60);
/// The longest ACPI stop that can be waited for, in seconds.
pub(super) const STOP_SECONDS_MAX: u32 = 3600;

/// An answer now, or what to do for one.
pub(super) enum Outcome {
    Reply(ApiReply),
    Forward {
        host: HostId,
        request: AgentRequest,
        wait: Duration,
    },
    Publish {
        messages: Vec<Message>,
        reply: ApiReply,
    },
    /// The asker waits for what comes of it.
    Later {
        messages: Vec<Message>,
    },
}

impl State {
    pub(super) fn asked(&mut self, call: CallId, request: ApiRequest, token: Token, now: Now, out: &mut Vec<Action>) {
        let outcome = match request {
            ApiRequest::Check { request } => {
                // Its id names nothing but the probe.
                let probe = (
                    JobId::from_uuid(uuid::Uuid::from_u64_pair(now.at.unix_microseconds().unsigned_abs(), call)),
                    token,
                );
                match self.check(call, &request, probe, now, out) {
                    Some(outcome) => Ok(outcome),
                    None => return,
                }
            }
            ApiRequest::Migrate { request, dry_run, job, policy } => {
                let seeds = Seeds { job, token, attempt: 0, now: now.at };
                self.migrate(request, dry_run, policy, seeds, now, out)
            }
            ApiRequest::JobHistory { job, vm, since, before } => {
                let query = Box::new(ArchiveQuery { job, vm, since, before });
                return out.push(Action::ReadArchive { call, query });
            }
            ApiRequest::ReplicaExtend { vm, by_seconds } => self.extend(&vm, by_seconds, now, out),
            ApiRequest::ReplicaFinalize { vm } => self.finalize(&vm, now, out),
            ApiRequest::JobCancel { job } => self.cancel(job, token, now, out),
            ApiRequest::JobState { job, requested, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms.unwrap_or(0));
                self.request_state(StateRequest { call, job, requested, timeout, token }, now, out)
            }
            ApiRequest::JobKill { job, delete } => {
                let requested = RequestedState::Kill.number();
                let request = StateRequest { call, job, requested, timeout: Duration::ZERO, token };
                self.kill(request, delete, now, out)
            }
            ApiRequest::JobBandwidth { job, bandwidth } => self.bandwidth(job, bandwidth, now, out),
            ApiRequest::JobEdit { job, changes } => self.edit(job, changes, now, out),
            ApiRequest::JobAnswer { job, answer } => self.answered_by_operator(job, answer, token, now, out),
            ApiRequest::Google { method, body, job } => self.google(method, &body, (job, token), now, out),
            request => self.answer(request, now),
        };
        out.push(match outcome.unwrap_or_else(|error| Outcome::Reply(ApiReply::Error { error })) {
            Outcome::Reply(reply) => Action::Answer { call, reply: Box::new(reply) },
            Outcome::Forward { host, request, wait } => {
                if let AgentRequest::VmDelete { vm, .. } = &request {
                    self.deletions.insert(call, *vm);
                }
                Action::Forward { call, host, request: Box::new(request), wait }
            }
            Outcome::Publish { messages, reply } => Action::Publish { messages, answer: Some((call, Box::new(reply))) },
            Outcome::Later { messages } => Action::Publish { messages, answer: None },
        });
    }

    /// An agent has answered a call. A VM that it has deleted will not be moved: what cut moves of it have left at other hosts, and
    /// the way back of a cutover, can go. Not before, since a delete that is refused leaves a VM that may need them. A host that is
    /// away now lets them go when their time is up.
    pub(super) fn deleted(&mut self, call: CallId, reply: &Result<AgentReply, String>, out: &mut Vec<Action>) {
        let Some(vm) = self.deletions.remove(&call).filter(|_| matches!(reply, Ok(AgentReply::Done))) else { return };
        let keeps = |member: &&Member| member.inventory.partials.iter().any(|partial| partial.vm == vm);
        for member in self.fleet.hosts().filter(keeps).filter(|member| member.online) {
            out.push(Action::DropKept { host: member.inventory.host.clone(), vm });
        }
    }

    fn answer(&self, request: ApiRequest, now: Now) -> Result<Outcome, ApiError> {
        let reply = match request {
            ApiRequest::HostList => ApiReply::Hosts { hosts: self.host_views(self.fleet.hosts()) },
            ApiRequest::HostShow { host } => ApiReply::Hosts { hosts: self.host_views([self.member(&host)?]) },
            ApiRequest::VmList => {
                ApiReply::Vms { vms: self.fleet.vms().into_iter().map(|(member, vm)| vm_view(member, vm)).collect() }
            }
            ApiRequest::VmShow { vm } => {
                let (member, report) = self.fleet.find(&vm).map_err(|error| not_found(&error))?;
                ApiReply::Vms { vms: vec![vm_view(member, report)] }
            }
            ApiRequest::ReplicaList => ApiReply::Replicas { replicas: self.replicas(now) },
            ApiRequest::PlanList => ApiReply::Planned { planned: self.planned(now) },
            ApiRequest::JobList => {
                // Ids are of UUID version 7: their order is that of time.
                listed(self.jobs.values().rev())
            }
            ApiRequest::JobGroup { group } => {
                let of_group = |job: &&Job| job.status.policy.group.as_ref() == Some(&group);
                let mut jobs = self.jobs.values().filter(of_group).peekable();
                if jobs.peek().is_none() {
                    let hint = "see `sterna job list`; what is over and off the list is in `sterna job history`";
                    return Err(fault(ApiErrorKind::NotFound, format!("no job listed is of group {group}"), hint));
                }
                listed(jobs)
            }
            ApiRequest::JobShow { job } => {
                let job = self.jobs.get(&job).ok_or_else(|| no_job(job))?;
                ApiReply::Job {
                    status: Box::new(job.status.clone()),
                    progress: job.progress.clone(),
                    rates: job.averages.rates(now.at),
                }
            }
            ApiRequest::SystemShow => ApiReply::System {
                system: SystemView {
                    coordinator: self.name.to_string(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    epoch: self.epoch,
                    nats_version: self.nats_version.clone(),
                    now: now.at,
                },
            },
            ApiRequest::Rest { of, skip } => match self.answer(*of, now)? {
                Outcome::Reply(mut list) if list.listed().is_some() => {
                    list.keep(usize::try_from(skip).unwrap_or(usize::MAX)..usize::MAX);
                    list
                }
                _ => {
                    let message = "the rest of what is no list is asked for";
                    return Err(fault(ApiErrorKind::Invalid, message, "ask for the rest of a list that came in part"));
                }
            },
            request => return self.forward(request),
        };
        Ok(Outcome::Reply(reply))
    }

    fn planned(&self, now: Now) -> Vec<PlannedView> {
        let view = |host: &HostId, planned: &PlannedVm| {
            let unchanged = self.fleet.vm(planned.spec.id).is_some_and(|(_, report)| planned.fits(&report.spec));
            let usable = unchanged && !planned.is_expired(now.at);
            PlannedView { host: host.clone(), planned: planned.clone(), usable }
        };
        let of = |member: &Member| {
            let host = &member.inventory.host;
            member.inventory.planned.iter().map(|planned| view(host, planned)).collect::<Vec<_>>()
        };
        let mut planned: Vec<PlannedView> = self.fleet.hosts().flat_map(of).collect();
        planned.sort_by(|a, b| (&a.host, a.planned.id).cmp(&(&b.host, b.planned.id)));
        planned
    }

    fn forward(&self, request: ApiRequest) -> Result<Outcome, ApiError> {
        let at_owner = |vm: &str| {
            let (member, report) = self.fleet.find(vm).map_err(|error| not_found(&error))?;
            reachable(member).map(|host| (host, report.id()))
        };
        let (host, request, wait) = match request {
            ApiRequest::HostSet { host, change, reset } => return self.set_host(&host, change, reset),
            ApiRequest::ReplicaDrop { vm, host } => return self.drop_replica(&vm, &host),
            ApiRequest::VmFailover { vm, fenced, target, snapshot } => {
                return self.fail_over(&vm, &fenced, &target, snapshot);
            }
            ApiRequest::VmDefine { host, spec } => {
                let mut faults = spec.faults();
                faults.extend(spec.disks.iter().filter(|disk| disk.base.is_some()).map(|disk| {
                    format!(
                        "disk {} names what it stands on; leave `base` out: clones are made by sterna clone create",
                        disk.name
                    )
                }));
                if !faults.is_empty() {
                    let message = format!("VM {} cannot be defined", spec.name);
                    return Err(ApiError { kind: ApiErrorKind::Invalid, message, hints: faults, refusals: vec![] });
                }
                self.name_is_free(&spec)?;
                (reachable(self.member(&host)?)?, AgentRequest::VmDefine { spec }, AGENT_WORK_WAIT_MAX)
            }
            ApiRequest::VmStart { vm } => {
                let (host, vm) = at_owner(&vm)?;
                (host, AgentRequest::VmStart { vm }, AGENT_WORK_WAIT_MAX)
            }
            ApiRequest::VmStop { vm, force, timeout_seconds } => {
                if timeout_seconds > STOP_SECONDS_MAX {
                    let message = format!("a stop of {timeout_seconds} s is too long");
                    return Err(fault(ApiErrorKind::Invalid, message, format!("give at most {STOP_SECONDS_MAX} s")));
                }
                let (host, vm) = at_owner(&vm)?;
                let wait = AGENT_WORK_WAIT_MAX + Duration::from_secs(timeout_seconds.into());
                (host, AgentRequest::VmStop { vm, force, timeout_seconds }, wait)
            }
            ApiRequest::VmDelete { vm, delete_disks } => {
                let (host, vm) = at_owner(&vm)?;
                (host, AgentRequest::VmDelete { vm, delete_disks }, AGENT_WORK_WAIT_MAX)
            }
            ApiRequest::VmDrop { vm, host } => {
                let member = self.member(&host)?;
                let named = |partial: &&PartialReport| partial.name.to_string() == vm || partial.vm.to_string() == vm;
                let Some(partial) = member.inventory.partials.iter().find(named) else {
                    let message = format!("{host} keeps nothing of a move of {vm}");
                    return Err(fault(ApiErrorKind::NotFound, message, format!("see `sterna host show {host}`")));
                };
                (reachable(member)?, AgentRequest::VmDrop { vm: partial.vm }, AGENT_WORK_WAIT_MAX)
            }
            ApiRequest::PlanDrop { planned } => {
                let holds = |member: &&Member| member.inventory.planned.iter().any(|held| held.id == planned);
                let Some(member) = self.fleet.hosts().find(holds) else {
                    let message = format!("no host has a planned VM {planned}");
                    return Err(fault(ApiErrorKind::NotFound, message, "see `sterna plan list`"));
                };
                (reachable(member)?, AgentRequest::PlannedDrop { planned }, AGENT_WAIT_MAX)
            }
            ApiRequest::VmConsole { vm, offset, input } => {
                let (host, vm) = at_owner(&vm)?;
                (host, AgentRequest::VmConsole { vm, offset, input }, AGENT_WAIT_MAX)
            }
            ApiRequest::VmResolve { vm, fenced } => {
                let vm = self.fleet.find(&vm).map_err(|error| not_found(&error))?.1.id();
                (self.resolvable(vm, &fenced)?, AgentRequest::VmFenced { vm, fenced }, AGENT_WAIT_MAX)
            }
            _ => return Err(fault(ApiErrorKind::Invalid, "the request is not known", "upgrade the coordinator")),
        };
        Ok(Outcome::Forward { host, request, wait })
    }

    pub(super) fn migrate(
        &mut self,
        mut request: MoveRequest,
        dry_run: bool,
        policy: Box<Policy>,
        seeds: Seeds,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let (job, token) = (seeds.job, seeds.token.clone());
        if let Some(known) = self.jobs.get(&job) {
            return Ok(Outcome::Reply(ApiReply::JobStarted { status: Box::new(known.status.clone()) }));
        }
        if self.gone.contains(job) {
            let hint = format!("see `sterna job history {job}`; another job needs another id");
            return Err(fault(ApiErrorKind::Refused, format!("job {job} is over, and off the list"), hint));
        }
        let mut faults = faults_of(&policy, now);
        if policy.expiration.is_some() && request.kind != JobKind::Replicate {
            faults.push("only a replication expires; leave the expiry out".to_owned());
        }
        if policy.expiration.is_some_and(|of| of.extensions > 0 || of.noticed) {
            faults.push("a replication that begins was not extended yet; give nothing but when it expires".to_owned());
        }
        if !faults.is_empty() {
            let message = format!("{} like that", cannot(&request));
            return Err(ApiError { kind: ApiErrorKind::Invalid, message, hints: faults, refusals: vec![] });
        }
        if request.kind == JobKind::Cutover && request.target.is_none() {
            request.target = planner::cutover_target(&self.fleet, &request);
        }
        let jobs = self.jobs.values().map(|job| &job.status).filter(|status| status.is_in_the_way(now.at));
        let Draft { plan, refusals } = planner::draft(&self.fleet, jobs, &request, seeds);
        // What is so now may not be so when the job's time has come; then it is looked at again.
        // And what speaks against a move is what a check is for. What runs after pauses runs at once for the first time.
        let pauses = policy.schedule.as_ref().is_some_and(|schedule| schedule.idle_seconds.is_some());
        let scheduled = policy.schedule.is_some() && !pauses;
        let later = scheduled || policy.group.is_some() || request.kind.only_looks();
        // A cycle of a replication is over soon, and the next does not begin before what waits.
        let in_a_cycle =
            |plan: &Plan| self.is_in_a_cycle(plan.vm.id, now) || self.is_verified(plan.vm.id, &plan.target.id);
        let cycle = plan.as_ref().is_some_and(in_a_cycle) || request.kind == JobKind::Verify;
        let waits = |code| later || planner::passes(code) || ((pauses || cycle) && code == RefusalCode::VmInJob);
        let (waits_for, mut refusals): (Vec<_>, Vec<_>) = refusals.into_iter().partition(|refusal| waits(refusal.code));
        let cannot = cannot(&request);
        if let Some(plan) = plan.as_ref().filter(|_| !request.kind.only_looks()) {
            refusals.extend(self.being_finalized(plan.clone.as_ref().map_or(plan.vm.id, |clone| clone.replica)));
        }
        if let Some(plan) = plan.as_ref().filter(|_| request.kind == JobKind::Replicate) {
            refusals.extend(self.replicated_already(plan.vm.id));
            // Another VM of that name is not what was meant, however long the replication goes on.
            request.vm = plan.vm.id.to_string();
        }
        let plan = match plan {
            Some(plan) if refusals.is_empty() => plan,
            Some(_) => return Err(refused(cannot, refusals)),
            // Nothing can be submitted about what nobody knows, now or later.
            None => return Err(refused(cannot, waits_for.into_iter().chain(refusals).collect())),
        };
        let status = JobStatus::planned(plan);
        let draft = Box::new(status.plan.clone());
        if dry_run {
            return Ok(Outcome::Reply(ApiReply::Plan { plan: draft, waits_for }));
        }
        let body = EventBody::Submitted { draft, request: Box::new(request), policy, parent: None };
        let event = JobEvent { job, reporter: Reporter::Coordinator, sequence: 1, at: now.at, body };
        self.told(&event, now, out);
        let mut messages = vec![Message::Event(Box::new(event))];
        self.begin_next(token, now, out, &mut messages);
        let status = self.jobs.get(&job).map_or(status, |job| job.status.clone());
        Ok(Outcome::Publish { messages, reply: ApiReply::JobStarted { status: Box::new(status) } })
    }

    fn bandwidth(
        &mut self,
        job: JobId,
        bandwidth: Option<Bandwidth>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        if bandwidth.is_some_and(|bandwidth| bandwidth.0 < BANDWIDTH_MIN) {
            let hint = format!("give at least {}, or none to lift the limit", Bandwidth(BANDWIDTH_MIN));
            return Err(fault(ApiErrorKind::Invalid, "the bandwidth is too low", hint));
        }
        // Of a recurring job both the run that is under way and those to come.
        let run = self.live(job)?.runs.current().filter(|run| self.live(*run).is_ok());
        let mut messages = Vec::new();
        for job in [Some(job), run].into_iter().flatten() {
            self.say(job, EventBody::Limited { bandwidth }, now, out, &mut messages);
            // Each change is a message of its own, also one back to an earlier value.
            let kind = format!("bandwidth-{}", now.at.unix_microseconds());
            let status = self.live(job)?;
            if status.has_begun() && !status.policy.recurs() {
                messages.extend(to_parties(&status.plan, &kind, || Command::SetBandwidth { job, bandwidth }));
            }
        }
        Ok(Outcome::Publish { messages, reply: ApiReply::Done })
    }

    /// A job that is not over.
    pub(super) fn live(&self, job: JobId) -> Result<&JobStatus, ApiError> {
        let status = &self.jobs.get(&job).ok_or_else(|| no_job(job))?.status;
        if status.state.is_final() {
            let hint = format!("see `sterna job show {job}`");
            return Err(fault(ApiErrorKind::Refused, format!("job {job} is over: {}", status.state), hint));
        }
        Ok(status)
    }

    pub(super) fn member(&self, host: &HostId) -> Result<&Member, ApiError> {
        self.fleet.host(host).ok_or_else(|| {
            fault(ApiErrorKind::NotFound, format!("no host {host} was ever heard of"), "see `sterna host list`")
        })
    }

    fn name_is_free(&self, spec: &sterna_shared::vm::VmSpec) -> Result<(), ApiError> {
        let taken = self.fleet.vms().into_iter().find(|(_, vm)| vm.id() == spec.id || vm.spec.name == spec.name);
        taken.map_or(Ok(()), |(member, vm)| {
            let message = format!("{} has VM {} with id {} already", member.inventory.host, vm.spec.name, vm.id());
            Err(fault(ApiErrorKind::Refused, message, "give the new VM another name and another id"))
        })
    }
}

/// Jobs as a list tells them, each with how far it is.
fn listed<'a>(jobs: impl Iterator<Item = &'a Job>) -> ApiReply {
    let (jobs, progress): (Vec<_>, Vec<_>) = jobs.map(|job| (job.status.clone(), job.progress.clone())).unzip();
    ApiReply::Jobs { jobs, progress: progress.into_iter().flatten().collect() }
}

/// In a sentence: that a wish is refused.
fn cannot(request: &MoveRequest) -> String {
    let what = match request.kind {
        JobKind::Replicate => "replicated",
        JobKind::Clone => "cloned",
        JobKind::Rehearse => "rehearsed",
        JobKind::Verify => "verified",
        JobKind::Cutover => "cut over",
        JobKind::Move | JobKind::Check | JobKind::DeepCheck | JobKind::Stage => "moved",
    };
    format!("VM {} cannot be {what}", request.vm)
}

/// What is wrong with a policy, the clock included.
pub(super) fn faults_of(policy: &Policy, now: Now) -> Vec<String> {
    let mut faults = policy.faults();
    if let Some(at) = policy.schedule.as_ref().and_then(|schedule| schedule.at).filter(|at| *at < now.at) {
        faults.push(format!("{at} has passed; give a time to come, or leave it out to begin at once"));
    }
    if let Some(expiration) = policy.expiration.filter(|expiration| expiration.is_over(now.at)) {
        faults.push(format!(
            "the replication has expired at {}; give a time to come, or push it back: sterna replicate extend VM",
            expiration.at
        ));
    }
    faults
}

/// A command to the agents that have a part in a plan.
pub(super) fn to_parties(plan: &Plan, kind: &str, command: impl Fn() -> Command) -> Vec<Message> {
    let message =
        |host: &HostId| Message::Command { host: host.clone(), command: Box::new(command()), kind: kind.into() };
    plan.parties().into_iter().map(message).collect()
}

/// What an agent's answer is to the operator.
pub(super) fn forwarded(host: &HostId, reply: Result<AgentReply, String>) -> ApiReply {
    let error = match reply {
        Ok(AgentReply::Done) => return ApiReply::Done,
        Ok(AgentReply::Console { chunk }) => return ApiReply::Console { chunk },
        Ok(AgentReply::Error { error }) => error,
        Ok(_) => fault(
            ApiErrorKind::Failed,
            format!("the agent of {host} answered something else than was asked"),
            format!("upgrade sterna-agent on {host} to the coordinator's version"),
        ),
        Err(cause) => fault(
            ApiErrorKind::Unreachable,
            format!("the agent of {host} did not answer: {cause}"),
            format!("see that sterna-agent runs on {host} (`systemctl status sterna-agent`), and `sterna doctor`"),
        ),
    };
    ApiReply::Error { error }
}

pub(super) fn reachable(member: &Member) -> Result<HostId, ApiError> {
    let host = &member.inventory.host;
    if member.online {
        return Ok(host.clone());
    }
    Err(fault(
        ApiErrorKind::Unreachable,
        format!("host {host} was last heard of at {}", member.heard_at),
        format!("start sterna-agent on {host}, or mend its way to NATS (`sterna doctor`)"),
    ))
}

pub(super) fn not_found(error: &FindError) -> ApiError {
    match error {
        FindError::Unknown { .. } => {
            fault(ApiErrorKind::NotFound, error.to_string(), "see `sterna vm list`, and whether its host is online")
        }
        FindError::Ambiguous { ids, .. } => {
            let hints = ids.iter().map(|id| format!("give its id: {id}")).collect();
            ApiError { kind: ApiErrorKind::Invalid, message: error.to_string(), hints, refusals: vec![] }
        }
    }
}

pub(super) fn no_job(job: JobId) -> ApiError {
    fault(ApiErrorKind::NotFound, format!("there is no job {job}"), "see `sterna job list`")
}
