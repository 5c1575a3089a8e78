//! All that coordinators tell, as Google's lists have it: the replicated VMs, the cycles of one, and the latest clone jobs.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{HostId, JobId, VmId};
use crate::job::{JobKind, JobStatus, Progress};
use crate::replica::{ReplicaState, ReplicaView};
use crate::time::Timestamp;

use super::averages::Rates;
use super::clone_job::CloneJob;
use super::cutover_job::CutoverJob;
use super::cycle::{Pace, ReplicationCycle};
use super::group::Group;
use super::migrating_vm::{MigratingVm, Replication};
use super::name::{GroupName, MigratingVmName};
use super::operation::{Operation, OperationResponse};
use super::page::Page;
use super::wellknown::resource;

/// The jobs of a page where nobody says how many. Google lists as many of the clone and the cutover jobs, and no more of them.
pub const PAGE_DEFAULT: usize = 25;

resource! {
    /// Clone jobs.
    CloneJobList {
        /// The newest first.
        clone_jobs: Vec<CloneJob> = "cloneJobs",
        /// Where the next page begins; left out where there is none.
        next_page_token: Option<String> = "nextPageToken",
    }
}

resource! {
    /// Cutover jobs.
    CutoverJobList {
        /// The newest first.
        cutover_jobs: Vec<CutoverJob> = "cutoverJobs",
        /// Where the next page begins; left out where there is none.
        next_page_token: Option<String> = "nextPageToken",
    }
}

resource! {
    /// Replicated VMs.
    MigratingVmList {
        /// By name, then by the host that has the replica.
        migrating_vms: Vec<MigratingVm> = "migratingVms",
    }
}

resource! {
    /// Cycles of the replication of a VM.
    ReplicationCycleList {
        /// The newest first.
        replication_cycles: Vec<ReplicationCycle> = "replicationCycles",
    }
}

resource! {
    /// Groups.
    GroupList {
        /// By the host that has the replicas, then by name.
        groups: Vec<Group> = "groups",
    }
}

resource! {
    /// Operations.
    OperationList {
        /// The newest first.
        operations: Vec<Operation> = "operations",
    }
}

impl MigratingVmList {
    /// The same in Google's basic view.
    #[must_use]
    pub fn basic(self) -> Self {
        Self { migrating_vms: self.migrating_vms.into_iter().map(MigratingVm::basic).collect() }
    }
}

/// What the coordinators have told.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// All jobs that are listed.
    pub jobs: &'a [JobStatus],
    /// All replicas.
    pub replicas: &'a [ReplicaView],
    /// How far cycles are, and how fast of late; those of [`Known::under_way`] are of use.
    pub progress: &'a [(Progress, Rates)],
    /// For how long things have been paused.
    pub now: Timestamp,
}

impl<'a> Known<'a> {
    /// The cycles and the cutovers that are under way.
    #[must_use]
    pub fn under_way(&self) -> Vec<JobId> {
        let cutovers = self.of_kind(JobKind::Cutover).filter(|job| !job.state.is_final()).map(|job| job.job);
        self.replications().into_iter().filter_map(current).chain(cutovers).collect()
    }

    fn of_kind(&self, kind: JobKind) -> impl Iterator<Item = &'a JobStatus> {
        self.jobs.iter().filter(move |job| job.plan.kind == kind)
    }

    /// A page of the cutover jobs.
    #[must_use]
    pub fn cutover_jobs(&self, page: &Page) -> CutoverJobList {
        let (jobs, next) = page.of(self.of_kind(JobKind::Cutover));
        let replications = self.replications();
        let cutover_jobs = jobs.into_iter().map(|job| self.cutover(job, &replications)).collect();
        CutoverJobList { cutover_jobs, next_page_token: next.map(|next| next.to_string()) }
    }

    /// One cutover job; none where there is no such job.
    #[must_use]
    pub fn cutover_job(&self, job: JobId) -> Option<CutoverJob> {
        self.of_kind(JobKind::Cutover)
            .find(|status| status.job == job)
            .map(|status| self.cutover(status, &self.replications()))
    }

    fn cutover(&self, status: &JobStatus, replications: &[&JobStatus]) -> CutoverJob {
        let progress = self.progress.iter().map(|(progress, _)| progress).find(|told| told.job == status.job);
        let replication = replications.iter().copied().find(|job| place(job) == place(status));
        // Where the replication is listed no more, the cutover says itself what goes where.
        let name = MigratingVmName::of(replication.unwrap_or(status));
        CutoverJob::of(&name, status, progress)
    }

    /// The job of the replication that has that name.
    #[must_use]
    pub fn replication(&self, name: &MigratingVmName) -> Option<&'a JobStatus> {
        self.replications().into_iter().find(|job| MigratingVmName::of(job) == *name)
    }

    /// All replications with their clones; or those of one VM, by its name or id.
    #[must_use]
    pub fn migrating_vms(&self, vm: Option<&str>) -> MigratingVmList {
        let ours = self.replications().into_iter().filter(|job| vm.is_none_or(|vm| is_of(job, vm)));
        MigratingVmList { migrating_vms: ours.map(|job| self.look_at(job, MigratingVm::of)).collect() }
    }

    /// The cycles of a VM, by its name or id, that its replications remember.
    #[must_use]
    pub fn replication_cycles(&self, vm: &str) -> ReplicationCycleList {
        let ours = self.replications().into_iter().filter(|job| is_of(job, vm));
        let cycles = ours.flat_map(|job| self.look_at(job, |all| all.replication_cycles()));
        ReplicationCycleList { replication_cycles: cycles.collect() }
    }

    /// All groups that replications are in which are not over; or those of one name.
    #[must_use]
    pub fn groups(&self, group: Option<&str>) -> GroupList {
        let live = self.replications().into_iter().filter(|job| !job.state.is_final());
        let names = live.filter_map(|job| MigratingVmName::of(job).group(&job.policy));
        let names: BTreeSet<GroupName> = names.filter(|name| group.is_none_or(|group| name.group == group)).collect();
        GroupList { groups: names.into_iter().map(Group::from).collect() }
    }

    /// The cycle of that number; none where it is not remembered. What goes on counts more than what is over.
    #[must_use]
    pub fn replication_cycle(&self, vm: &str, number: u32) -> Option<ReplicationCycle> {
        let mut ours: Vec<_> = self.replications().into_iter().filter(|job| is_of(job, vm)).collect();
        ours.sort_by_key(|job| job.state.is_final());
        let mut cycles = ours.into_iter().flat_map(|job| self.look_at(job, |all| all.replication_cycles()));
        cycles.find(|cycle| cycle.cycle_number == number)
    }

    /// A page of the clone jobs.
    #[must_use]
    pub fn clone_jobs(&self, page: &Page) -> CloneJobList {
        let replications = self.replications();
        let named = self.of_kind(JobKind::Clone).filter(|job| self.replicated(job, &replications).is_some());
        let (jobs, next) = page.of(named);
        let clone_jobs = jobs.into_iter().filter_map(|job| self.named(job, &replications)).collect();
        CloneJobList { clone_jobs, next_page_token: next.map(|next| next.to_string()) }
    }

    /// One clone job; none where there is no such job, or nobody knows any more what it is a clone of.
    #[must_use]
    pub fn clone_job(&self, job: JobId) -> Option<CloneJob> {
        let is_it = |status: &&JobStatus| status.job == job && status.plan.kind == JobKind::Clone;
        self.named(self.jobs.iter().find(is_it)?, &self.replications())
    }

    fn named(&self, clone: &JobStatus, replications: &[&JobStatus]) -> Option<CloneJob> {
        Some(CloneJob::of(&self.replicated(clone, replications)?, clone))
    }

    /// The name of what a clone is one of: that of the replication; where that is listed no more, of the replica; where that is
    /// gone too, the name that the clone was asked for by, at the host where it was made.
    fn replicated(&self, clone: &JobStatus, replications: &[&JobStatus]) -> Option<MigratingVmName> {
        let (vm, host) = (clone.plan.clone.as_ref()?.replica, &clone.plan.target.id);
        if let Some(job) = replications.iter().find(|job| place(job) == (vm, host)) {
            return Some(MigratingVmName::of(job));
        }
        let location = host.clone();
        if let Some(view) = self.replica(vm, host) {
            return Some(MigratingVmName { location, source: view.source.clone(), vm: view.name.clone() });
        }
        let vm = clone.request.vm.parse().ok()?;
        Some(MigratingVmName { source: location.clone(), location, vm })
    }

    /// All operations of which jobs that are listed tell.
    #[must_use]
    pub fn operations(&self) -> OperationList {
        let (recurring, replications) = (self.recurring(), self.replications());
        let of = |job| self.operations_of(job, &recurring, &replications);
        let mut operations: Vec<Operation> = self.jobs.iter().flat_map(of).collect();
        operations.sort_by_key(|of| std::cmp::Reverse((of.metadata().create_time, of.name.clone())));
        OperationList { operations }
    }

    /// The making of a job, and the end of a replication.
    fn operations_of(
        &self,
        status: &JobStatus,
        recurring: &BTreeSet<JobId>,
        replications: &[&JobStatus],
    ) -> Vec<Operation> {
        match status.plan.kind {
            JobKind::Clone => {
                let made = self.named(status, replications).map(|made| {
                    let (vm, target) = (made.name.vm.clone(), made.name.to_string());
                    Operation::creating(&vm, status, target, OperationResponse::CloneJob(Box::new(made)))
                });
                made.into_iter().collect()
            }
            JobKind::Cutover => {
                let made = self.cutover(status, replications);
                let (vm, target) = (made.name.vm.clone(), made.name.to_string());
                vec![Operation::creating(&vm, status, target, OperationResponse::CutoverJob(Box::new(made)))]
            }
            JobKind::Replicate if is_replication(status, recurring) => {
                let vm = MigratingVmName::of(status);
                let made = OperationResponse::MigratingVm(Box::new(self.look_at(status, MigratingVm::of)));
                let made = Operation::creating(&vm, status, vm.to_string(), made);
                std::iter::once(made).chain(Operation::finalizing(&vm, status)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The jobs that recur. There may be many runs of each, whose parents are looked for among them.
    fn recurring(&self) -> BTreeSet<JobId> {
        self.jobs.iter().filter(|job| job.policy.recurs()).map(|job| job.job).collect()
    }

    /// Of each VM and host the replication that is not over, or the newest; and of those that go by one name, since a VM may have been
    /// deleted and another be called so.
    fn replications(&self) -> Vec<&'a JobStatus> {
        let mut found: BTreeMap<(VmId, &HostId), &JobStatus> = BTreeMap::new();
        let recurring = self.recurring();
        for job in self.jobs.iter().filter(|job| is_replication(job, &recurring)) {
            let known = found.entry(place(job)).or_insert(job);
            if rank(job) > rank(known) {
                *known = job;
            }
        }
        let mut named: BTreeMap<MigratingVmName, &JobStatus> = BTreeMap::new();
        for job in found.into_values() {
            let known = named.entry(MigratingVmName::of(job)).or_insert(job);
            if rank(job) > rank(known) {
                *known = job;
            }
        }
        let mut found: Vec<&JobStatus> = named.into_values().collect();
        found.sort_by(|a, b| (&a.plan.vm.name, &a.plan.target.id).cmp(&(&b.plan.vm.name, &b.plan.target.id)));
        found
    }

    fn replica(&self, vm: VmId, host: &HostId) -> Option<&'a ReplicaView> {
        self.replicas.iter().find(|view| view.vm == vm && view.host == *host)
    }

    /// All that is known of a replication.
    fn look_at<T>(&self, job: &JobStatus, see: impl FnOnce(&Replication<'_>) -> T) -> T {
        let (vm, host) = place(job);
        let runs: Vec<&JobStatus> = self.jobs.iter().filter(|run| run.parent == Some(job.job)).collect();
        let clones: Vec<&JobStatus> = self.of_kind(JobKind::Clone).collect();
        let cutovers: Vec<&JobStatus> = self.of_kind(JobKind::Cutover).collect();
        let progress = current(job).and_then(|cycle| self.progress.iter().find(|told| told.0.job == cycle));
        let pace =
            progress.map_or_else(Pace::default, |(progress, rates)| Pace { progress: Some(progress), rates: *rates });
        see(&Replication {
            job,
            runs: &runs,
            clones: &clones,
            cutovers: &cutovers,
            cut_over: self
                .replica(vm, host)
                .is_some_and(|view| matches!(view.state, ReplicaState::Cutover | ReplicaState::Finalizing)),
            replica: self.replica(vm, host).and_then(|view| view.replica.as_ref()),
            pace,
            now: self.now,
        })
    }
}

/// Whether a job is a replication: one that recurs, or a cycle that is no run of such.
fn is_replication(job: &JobStatus, recurring: &BTreeSet<JobId>) -> bool {
    job.plan.kind == JobKind::Replicate && !job.parent.is_some_and(|parent| recurring.contains(&parent))
}

/// Which of several counts most.
fn rank(job: &JobStatus) -> (bool, Timestamp, JobId) {
    (!job.state.is_final(), job.submitted_at, job.job)
}

fn place(job: &JobStatus) -> (VmId, &HostId) {
    let plan = &job.plan;
    (plan.clone.as_ref().map_or(plan.vm.id, |clone| clone.replica), &plan.target.id)
}

fn is_of(job: &JobStatus, vm: &str) -> bool {
    job.plan.vm.name.as_str() == vm || job.plan.vm.id.to_string() == vm
}

/// The cycle that is under way.
fn current(job: &JobStatus) -> Option<JobId> {
    if job.policy.recurs() { job.runs.current() } else { Some(job.job).filter(|_| !job.state.is_final()) }
}
