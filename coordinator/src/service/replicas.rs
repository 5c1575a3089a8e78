//! Replications: which replicas there are and how they stand, when a cycle may begin, and when a replica may go.

use std::collections::BTreeSet;

use sterna_shared::bus::{AgentRequest, ApiError, ApiErrorKind};
use sterna_shared::host::{VmReport, VmState};
use sterna_shared::id::{HostId, JobId, VmId};
use sterna_shared::job::{CutoverForecast, JobKind, JobStatus, MoveMode, Refusal, RefusalCode};
use sterna_shared::replica::{CutoverStanding, Replica, ReplicaView};
use sterna_shared::vm::VmSpec;

use super::request::{AGENT_WORK_WAIT_MAX, Outcome, reachable};
use super::state::{Now, State};
use crate::api::fault;
use crate::fleet::Member;

/// How long a cycle that is over is listed, in seconds: one every few minutes would fill the list for ever.
pub(super) const CYCLE_KEEP_SECONDS: u32 = 86_400;

impl State {
    /// All replicas, and the replications that have none yet: by the VM's name, then by host.
    pub(super) fn replicas(&self, now: Now) -> Vec<ReplicaView> {
        // Few of the jobs are, and many places are asked about.
        let replications: Vec<&JobStatus> = self.replications().collect();
        let live = self.jobs.values().map(|job| &job.status).filter(|status| !status.state.is_final());
        let cutovers: Vec<&JobStatus> = live.filter(|status| status.plan.kind == JobKind::Cutover).collect();
        let at = |member: &Member| {
            let host = member.inventory.host.clone();
            member.inventory.replicas.iter().map(move |replica| (replica.vm.id, host.clone())).collect::<Vec<_>>()
        };
        let kept = self.fleet.hosts().flat_map(at);
        let begun = replications.iter().filter(|status| !status.state.is_final());
        let begun = begun.map(|status| (status.plan.vm.id, status.plan.target.id.clone()));
        let places: BTreeSet<(VmId, HostId)> = kept.chain(begun).collect();
        let view = |(vm, host): (VmId, HostId)| {
            let member = self.fleet.host(&host);
            let replica = member.and_then(|member| member.inventory.replicas.iter().find(|one| one.vm.id == vm));
            let of = |status: &&JobStatus| status.plan.vm.id == vm && status.plan.target.id == host;
            let all = || replications.iter().copied().filter(of);
            let job = all().find(|status| !status.state.is_final()).or_else(|| all().next());
            let is_here = |(member, vm): (&Member, &VmReport)| vm.owned && member.inventory.host == host;
            let is_there = self.fleet.vm(vm).is_some_and(is_here);
            let cutover = CutoverStanding::of(vm, &host, cutovers.iter().copied(), is_there);
            let view = ReplicaView::of(&host, replica, job, cutover, now.at)?;
            Some(if self.is_up_to_date(vm, &host) { view.up_to_date() } else { view })
        };
        let mut views: Vec<ReplicaView> = places.into_iter().filter_map(view).collect();
        views.sort_by(|a, b| (&a.name, &a.host).cmp(&(&b.name, &b.host)));
        views
    }

    /// The jobs that operators know as replications, the newest first: those that recur, and cycles that are no runs of such.
    pub(super) fn replications(&self) -> impl Iterator<Item = &JobStatus> {
        let jobs = self.jobs.values().rev().map(|job| &job.status);
        jobs.filter(|status| status.plan.kind == JobKind::Replicate && !self.comes_of_a_recurring_job(status))
    }

    /// Whether a job is a run of one that recurs, or the recovery of such a run.
    fn comes_of_a_recurring_job(&self, status: &JobStatus) -> bool {
        let parent =
            |status: &JobStatus| status.parent.and_then(|parent| self.jobs.get(&parent)).map(|job| &job.status);
        std::iter::successors(parent(status), |status| parent(status)).any(|status| status.policy.recurs())
    }

    /// Whether a job is a cycle of a replication that has expired, or is being finalized.
    pub(super) fn has_no_more_cycles(&self, status: &JobStatus, now: Now) -> bool {
        let parent =
            |status: &JobStatus| status.parent.and_then(|parent| self.jobs.get(&parent)).map(|job| &job.status);
        let is_over = |of: &JobStatus| of.policy.recurs() && (of.is_finalizing() || of.has_expired(now.at));
        status.plan.kind == JobKind::Replicate
            && std::iter::successors(parent(status), |status| parent(status)).any(is_over)
    }

    /// Why a VM is not replicated a second time.
    pub(super) fn replicated_already(&self, vm: VmId) -> Option<Refusal> {
        let of = |status: &&JobStatus| status.plan.vm.id == vm && !status.state.is_final() && !status.is_finalizing();
        let status = self.replications().find(of)?;
        let (job, name, host) = (status.job, &status.plan.vm.name, &status.plan.target.id);
        Some(Refusal {
            code: RefusalCode::VmInJob,
            message: format!("VM {name} is replicated to {host} already, by job {job}"),
            remedy: format!("see `sterna replicate show {name}`, or end it: `sterna replicate remove {name}`"),
        })
    }

    /// Whether a cycle of its replication holds a VM.
    pub(super) fn is_in_a_cycle(&self, vm: VmId, now: Now) -> bool {
        let holds = |status: &JobStatus| {
            status.plan.kind == JobKind::Replicate && status.plan.vm.id == vm && status.holds_vm(now.at)
        };
        self.jobs.values().any(|job| holds(&job.status))
    }

    /// Whether the replica of a VM at a host is read through.
    pub(super) fn is_verified(&self, vm: VmId, host: &HostId) -> bool {
        self.jobs.values().any(|job| job.status.holds_replica(vm, host))
    }

    /// Whether a cycle of a replication may begin: both hosts are there, and no other job holds the VM or its replica. Where one
    /// does, what it does may change where the VM is.
    pub(super) fn may_replicate(&self, status: &JobStatus, now: Now) -> bool {
        let online = |host: &HostId| self.fleet.host(host).is_some_and(|member| member.online);
        let vm = status.plan.vm.id;
        let held = |other: &JobStatus| other.job != status.job && other.plan.vm.id == vm && other.holds_vm(now.at);
        // A VM that is where its replica is was cut over, or moved there; its cycles go on when it is elsewhere again.
        let elsewhere = |member: &Member| status.request.target.as_ref() != Some(&member.inventory.host);
        !status.is_finalizing()
            && !status.has_expired(now.at)
            && self.fleet.vm(vm).is_some_and(|(member, _)| member.online && elsewhere(member))
            && status.request.target.as_ref().is_none_or(online)
            && !self.jobs.values().any(|other| held(&other.status))
            && !status.request.target.as_ref().is_some_and(|host| self.is_verified(vm, host))
    }

    /// Whether a VM is shut down, and the latest snapshot at a host has all that its disks hold: it was taken of the VM as it stands, and
    /// that has not run since, by its host's word. Where nothing is known of that, it may have.
    pub(super) fn is_up_to_date(&self, vm: VmId, host: &HostId) -> bool {
        let replica = self.fleet.host(host).and_then(|member| {
            let replicas = &member.inventory.replicas;
            replicas.iter().find(|replica| replica.vm.id == vm)
        });
        let latest = replica.and_then(Replica::latest).filter(|latest| !latest.damaged);
        let Some((member, report)) = self.fleet.vm(vm) else { return false };
        let stands_still = member.online && report.owned && report.state == VmState::Stopped;
        stands_still && latest.is_some_and(|latest| report.unchanged_since == Some(latest.cycle))
    }

    /// What a cutover of a VM to its replica at a host would take now.
    pub(super) fn forecast(&self, vm: &VmSpec, host: &HostId, mode: MoveMode, now: Now) -> Option<CutoverForecast> {
        let member = self.fleet.host(host)?;
        let replica = member.inventory.replicas.iter().find(|replica| replica.vm.id == vm.id)?;
        let jobs = self.jobs.values().map(|job| &job.status);
        CutoverForecast::of(vm, replica, mode == MoveMode::Live, jobs, now.at)
    }

    /// Has a host remove what it has of a replication.
    pub(super) fn drop_replica(&self, vm: &str, host: &HostId) -> Result<Outcome, ApiError> {
        let member = self.member(host)?;
        let named = |replica: &&Replica| replica.vm.name.as_str() == vm || replica.vm.id.to_string() == vm;
        let kept = member.inventory.replicas.iter().find(named).map(|replica| replica.vm.id);
        let known = || self.fleet.find(vm).ok().map(|(_, report)| report.id());
        let Some(id) = kept.or_else(known).or_else(|| vm.parse().ok()) else {
            let message = format!("{host} has no replica of a VM {vm:?}, and no host has that VM");
            return Err(fault(ApiErrorKind::NotFound, message, "see `sterna replicate list`"));
        };
        self.replica_is_free(member, id, vm, None)?;
        let request = AgentRequest::ReplicaDrop { vm: id };
        Ok(Outcome::Forward { host: reachable(member)?, request, wait: AGENT_WORK_WAIT_MAX })
    }

    /// Whether no job uses what a host has of the replication of a VM, and no clone stands on it. The job that keeps the replica may
    /// be left out.
    pub(super) fn replica_is_free(
        &self,
        member: &Member,
        id: VmId,
        vm: &str,
        but: Option<JobId>,
    ) -> Result<(), ApiError> {
        let host = &member.inventory.host;
        let uses = |status: &JobStatus| match &status.plan.clone {
            Some(clone) => clone.replica == id && status.plan.target.id == *host,
            None if Some(status.job) == but => false,
            None => {
                matches!(status.plan.kind, JobKind::Replicate | JobKind::Verify | JobKind::Cutover)
                    && status.plan.vm.id == id
            }
        };
        let jobs = self.jobs.values().map(|job| &job.status);
        if let Some(status) = jobs.into_iter().find(|status| !status.state.is_final() && uses(status)) {
            let message = format!("job {} uses the replica of VM {vm}", status.job);
            let hint = format!("wait for it, or cancel it: sterna job cancel {}", status.job);
            return Err(fault(ApiErrorKind::Refused, message, hint));
        }
        let stands = |report: &&sterna_shared::host::VmReport| {
            report.spec.disks.iter().any(|disk| disk.base.as_ref().is_some_and(|base| base.replica == id))
        };
        if member.inventory.vms.iter().filter(stands).any(|report| report.id() == id) {
            let message = format!("VM {vm} itself runs on its replica at {host}, since it was taken over from it");
            let hint = format!("move it off first, which copies its disks: sterna migrate {vm} --to HOST");
            return Err(fault(ApiErrorKind::Refused, message, hint));
        }
        if let Some(clone) = member.inventory.vms.iter().find(stands).map(|report| &report.spec.name) {
            let message = format!("VM {clone} of {host} is a clone that stands on the replica of VM {vm}");
            let hint = format!("delete it first: sterna vm delete {clone} --delete-disks");
            return Err(fault(ApiErrorKind::Refused, message, hint));
        }
        Ok(())
    }
}
