//! Checks of a move: the planner's, and what the two agents measure when they are asked, all in one answer.
//!
//! ```text
//!   request ──▶ planner: every reason why not ─┐
//!                                              ├─▶ CheckReport
//!   target: expect a probe ◀── source: probe ──┘   findings, measurements, forecast
//! ```
//!
//! Nothing is changed at either host, and nothing is kept. What cannot be measured is a finding of its own.

use sterna_shared::bus::{AgentReply, AgentRequest, ApiReply};
use sterna_shared::host::Accelerator;
use sterna_shared::id::{HostId, JobId, Token};
use sterna_shared::job::{
    CheckReport, Finding, Forecast, ForecastInput, JobStatus, MoveMode, MoveRequest, Plan, Refusal, RefusalCode,
    Severity,
};
use sterna_shared::probe::{AddressOutcome, ProbePeer, ProbeReport};
use sterna_shared::time::Timestamp;
use sterna_shared::units::{Bandwidth, ByteCount};

use super::request::Outcome;
use super::state::{Action, CallId, Now, State};
use crate::planner::{self, Draft, Seeds};

/// How long each measurement of a probe may take, in milliseconds: the whole check is to be over in two seconds.
const PROBE_TIME_MS: u32 = 300;
/// How far two clocks may differ before it is worth a word, in seconds, and before certificates and times mislead.
const SKEW_WARNED: f64 = 2.0;
const SKEW_MAX: f64 = 60.0;
/// How soon a certificate that will expire is worth a word, in seconds.
const EXPIRY_WARNED: f64 = 14.0 * 86_400.0;

/// A check under way: what is known before the agents answer.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) asker: Asker,
    pub(super) findings: Vec<Finding>,
    pub(super) plan: Box<Plan>,
}

/// For whom a check is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker {
    /// An operator who waits for the answer.
    Call(CallId),
    /// A job, in that attempt.
    Job { job: JobId, attempt: u32 },
}

/// What is asked of the agents for a check.
#[derive(Debug)]
pub(super) struct CheckQuestions {
    pub(super) source: HostId,
    pub(super) target: HostId,
    pub(super) expect: AgentRequest,
    pub(super) probe: AgentRequest,
    /// Its clock.
    pub(super) clock: AgentRequest,
}

/// What they answer.
#[derive(Debug)]
pub(super) struct CheckAnswers {
    pub(super) expect: Result<AgentReply, String>,
    pub(super) probe: Result<AgentReply, String>,
    pub(super) clock: Result<AgentReply, String>,
}

impl CheckQuestions {
    /// `job` and `token` name the probe.
    pub(super) fn new(plan: &Plan, job: JobId, token: Token) -> Self {
        let (source, target) = (plan.source.id.clone(), plan.target.id.clone());
        let addresses = plan.target.addresses.clone();
        let peer = ProbePeer { host: target.clone(), addresses, job, token: token.clone(), lanes: plan.lanes };
        let peer = (plan.mode != MoveMode::Storage).then_some(peer);
        Self {
            expect: AgentRequest::ProbeExpect { job, source: source.clone(), token },
            probe: AgentRequest::Probe { vm: Some(plan.vm.id), peer, time_ms: PROBE_TIME_MS },
            clock: AgentRequest::Probe { vm: None, peer: None, time_ms: PROBE_TIME_MS },
            source,
            target,
        }
    }
}

impl State {
    /// Begins a check, or answers it where there is nobody to ask.
    pub(super) fn check(
        &self,
        call: CallId,
        request: &MoveRequest,
        (job, token): (JobId, Token),
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<Outcome> {
        let seeds = Seeds { job, token: token.clone(), attempt: 0, now: now.at };
        let (findings, plan) = self.look_at_plan(request, seeds, now);
        match plan {
            Some(plan) if self.can_be_asked(&plan) => {
                let questions = Box::new(CheckQuestions::new(&plan, job, token));
                let check = Box::new(Check { asker: Asker::Call(call), findings, plan });
                out.push(Action::Check { check, questions });
                None
            }
            plan => Some(Outcome::Reply(checked(CheckReport::new(findings, plan, None, None)))),
        }
    }

    /// What is found without asking anybody, and the plan that a request would come to, token blanked.
    pub(super) fn look_at_plan(
        &self,
        request: &MoveRequest,
        seeds: Seeds,
        now: Now,
    ) -> (Vec<Finding>, Option<Box<Plan>>) {
        let jobs = self.jobs.values().map(|job| &job.status).filter(|status| status.holds_vm(now.at));
        let Draft { plan, refusals } = planner::draft(&self.fleet, jobs, request, seeds);
        let mut findings: Vec<Finding> = refusals
            .into_iter()
            .map(|reason| {
                let severity = if planner::passes(reason.code) { Severity::Warning } else { Severity::Error };
                Finding { severity, reason }
            })
            .collect();
        let plan = plan.map(|plan| Box::new(JobStatus::planned(plan).plan));
        if let Some(plan) = &plan {
            self.look_at_hosts(plan, now.at, &mut findings);
        }
        (findings, plan)
    }

    /// Whether both agents of a plan are there to measure something.
    pub(super) fn can_be_asked(&self, plan: &Plan) -> bool {
        let online = |host: &HostId| self.fleet.host(host).is_some_and(|member| member.online);
        online(&plan.source.id) && online(&plan.target.id)
    }

    /// What the inventories tell beside what keeps a plan from being made.
    fn look_at_hosts(&self, plan: &Plan, now: Timestamp, findings: &mut Vec<Finding>) {
        let hosts = (self.fleet.host(&plan.source.id), self.fleet.host(&plan.target.id));
        let (Some(source), Some(target)) = hosts else { return };
        let mut warn = |code, message: String, remedy: String| {
            findings.push(Finding { severity: Severity::Warning, reason: Refusal { code, message, remedy } });
        };
        for member in std::iter::once(source).chain((plan.source.id != plan.target.id).then_some(target)) {
            let (host, until) = (&member.inventory.host, member.inventory.certificate.not_after);
            let left = until.seconds_since(now);
            if (0.0..EXPIRY_WARNED).contains(&left) {
                warn(
                    RefusalCode::CertificateExpiring,
                    format!("the certificate of {host} expires at {until}"),
                    format!(
                        "issue a new one: `sterna pki issue host {host} --address ADDRESS --dir DIRECTORY --force`"
                    ),
                );
            }
        }
        if plan.mode != MoveMode::Live {
            return;
        }
        let (from, to) = (&source.inventory.hypervisor, &target.inventory.hypervisor);
        if version(&to.version) < version(&from.version) {
            warn(
                RefusalCode::OlderHypervisor,
                format!(
                    "QEMU {} of {} is older than {} of {}",
                    to.version, plan.target.id, from.version, plan.source.id
                ),
                format!("upgrade QEMU on {}; a guest may have states that the older one does not know", plan.target.id),
            );
        }
        if plan.vm.vcpus > target.inventory.cpu.count && to.accelerator == Accelerator::Kvm {
            warn(
                RefusalCode::FewProcessors,
                format!(
                    "VM {} has {} vcpus, and {} has {} processors",
                    plan.vm.name, plan.vm.vcpus, plan.target.id, target.inventory.cpu.count
                ),
                "choose a larger target, or define the VM with fewer".to_owned(),
            );
        }
    }

    /// The agents have answered a check.
    pub(super) fn checked(&mut self, check: Check, answers: CheckAnswers, now: Now, out: &mut Vec<Action>) {
        let Check { asker, mut findings, plan } = check;
        let mut find = |severity, code, message: String, remedy: String| {
            findings.push(Finding { severity, reason: Refusal { code, message, remedy } });
        };
        let clock = |host: &HostId, at: Timestamp| {
            let skew = at.seconds_since(now.at);
            let severity = if skew.abs() > SKEW_MAX { Severity::Error } else { Severity::Warning };
            let message = format!("the clock of {host} is {skew:+.1} s from the coordinator's");
            (skew.abs() > SKEW_WARNED)
                .then(|| (severity, RefusalCode::ClockSkew, message, "set the clocks right, by NTP".to_owned()))
        };
        let unknown = |host: &HostId, what: &str, why: &str| {
            let remedy =
                format!("see that sterna-agent on {host} is of the coordinator's version, and `sterna doctor`");
            (
                Severity::Unknown,
                RefusalCode::NotMeasured,
                format!("{what} could not be measured by {host}: {why}"),
                remedy,
            )
        };
        let (source, target) = (&plan.source.id, &plan.target.id);
        match &answers.clock {
            Ok(AgentReply::Probed { report }) => {
                if let Some((severity, code, message, remedy)) = clock(target, report.at) {
                    find(severity, code, message, remedy);
                }
            }
            other => {
                let (severity, code, message, remedy) = unknown(target, "the clock", &said(other));
                find(severity, code, message, remedy);
            }
        }
        let probe = match answers.probe {
            Ok(AgentReply::Probed { report }) => {
                if let Some((severity, code, message, remedy)) = clock(source, report.at) {
                    find(severity, code, message, remedy);
                }
                Some(*report)
            }
            other => {
                let (severity, code, message, remedy) = unknown(source, "path and guest", &said(&other));
                find(severity, code, message, remedy);
                None
            }
        };
        if let (Some(_), other @ (Err(_) | Ok(AgentReply::Error { .. }))) =
            (probe.as_ref().and_then(|probe| probe.path.as_ref()), &answers.expect)
        {
            let (severity, code, message, remedy) = unknown(target, "the path", &said(other));
            find(severity, code, message, remedy);
        }
        if let Some(path) = probe.as_ref().and_then(|probe| probe.path.as_ref()) {
            let reached = path.addresses.iter().any(|address| address.outcome == AddressOutcome::Reached);
            for address in path.addresses.iter().filter(|address| address.outcome != AddressOutcome::Reached) {
                let severity = if reached { Severity::Warning } else { Severity::Error };
                let (code, remedy) = match address.outcome {
                    AddressOutcome::CertificateNotAccepted => (
                        RefusalCode::PeerCertificate,
                        format!(
                            "issue {source} and {target} certificates of one authority, and see `advertise` on {target}"
                        ),
                    ),
                    _ => (
                        RefusalCode::PortUnreachable,
                        format!(
                            "let {source} reach the data-plane port of {target} there, or correct `advertise` on {target}"
                        ),
                    ),
                };
                find(
                    severity,
                    code,
                    format!("{target} is not reached at {}: {}", address.address, address.text),
                    remedy,
                );
            }
        }
        let forecast = probe.as_ref().and_then(|probe| forecast(&plan, probe));
        if let Some(forecast) = forecast.as_ref().filter(|forecast| !forecast.converges) {
            let remedy = "move it at a quieter time, raise --max-blackout, or stop it and move it with --mode cold";
            find(Severity::Warning, RefusalCode::NotConverging, forecast.reason.clone(), remedy.to_owned());
        }
        match asker {
            Asker::Call(call) => {
                let report = CheckReport::new(findings, Some(plan), probe, forecast);
                out.push(Action::Answer { call, reply: Box::new(checked(report)) });
            }
            Asker::Job { job, attempt } => {
                // The job has its plan already.
                let report = CheckReport::new(findings, None, probe, forecast);
                self.job_checked((job, attempt), report, now, out);
            }
        }
    }
}

fn checked(report: CheckReport) -> ApiReply {
    ApiReply::Checked { report: Box::new(report) }
}

/// What is to be expected of a move; none where the path was not measured.
fn forecast(plan: &Plan, probe: &ProbeReport) -> Option<Forecast> {
    let path = *probe.path.as_ref()?.throughput.known()?;
    let guest = probe.guest.as_ref()?;
    let live = plan.mode == MoveMode::Live;
    let uses = guest.disks.known();
    let disks = plan.disks.iter().map(|disk| {
        let used = uses.and_then(|uses| uses.iter().find(|used| used.disk == disk.source.name));
        used.and_then(|used| used.allocated).unwrap_or(disk.source.size)
    });
    Some(Forecast::of(&ForecastInput {
        live,
        memory: if live { guest.memory_used.known().copied().unwrap_or(plan.vm.memory) } else { ByteCount(0) },
        disks: disks.fold(ByteCount(0), ByteCount::plus),
        path,
        limit: plan.bandwidth,
        memory_dirty_rate: guest.memory_dirty_rate.known().copied().unwrap_or(Bandwidth(0)),
        disk_write_rate: guest.disk_write_rate.known().copied().unwrap_or(Bandwidth(0)),
        lanes: plan.lanes,
        blackout_max_ms: plan.blackout_max_ms,
    }))
}

fn said(answer: &Result<AgentReply, String>) -> String {
    match answer {
        Ok(AgentReply::Error { error }) => error.message.clone(),
        Ok(_) => "it answered something else".to_owned(),
        Err(why) => why.clone(),
    }
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').map_while(|part| part.parse().ok()).collect()
}
