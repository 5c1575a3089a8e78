//! `MigratingVm`: the replication of a VM, with its cycles and its clones.

use std::collections::BTreeMap;

use crate::id::{JobId, VmId, VmName};
use crate::job::{DiskMove, FailureReport, JobKind, JobState, JobStatus, Plan, Run};
use crate::replica::{CutoverStanding, Replica, ReplicaState, Standing};
use crate::time::Timestamp;

use super::clone_job::CloneJob;
use super::cutover_job::{CutoverForecast, CutoverJob};
use super::cycle::{Pace, ReplicationCycle};
use super::error::RpcStatus;
use super::name::{GroupName, MigratingVmName};
use super::target::ComputeEngineTargetDefaults;
use super::values::MigratingVmState;
use super::wellknown::{ProtoDuration, ProtoTimestamp, Unset, resource};

resource! {
    /// The replication of a VM, as Google has it. What Sterna has nothing to say of is left out.
    MigratingVm {
        /// What a clone is like where nothing is said of it.
        compute_engine_target_defaults: ComputeEngineTargetDefaults = "computeEngineTargetDefaults",
        /// Its name.
        name: MigratingVmName = "name",
        /// The VM's id.
        source_vm_id: VmId = "sourceVmId",
        /// The VM's name.
        display_name: VmName = "displayName",
        /// What is replicated, from where to where, in a sentence.
        description: String = "description",
        /// When cycles are made.
        policy: SchedulePolicy = "policy",
        /// When the replication was submitted.
        create_time: ProtoTimestamp = "createTime",
        /// When something last happened to it, or to a cycle of it.
        update_time: ProtoTimestamp = "updateTime",
        /// The latest snapshot.
        last_sync: Option<ReplicationSync> = "lastSync",
        /// How it stands.
        state: MigratingVmState = "state",
        /// Since when.
        state_time: ProtoTimestamp = "stateTime",
        /// The cycle that is under way.
        current_sync_info: Option<ReplicationCycle> = "currentSyncInfo",
        /// The cycle that was last over, whatever came of it.
        last_replication_cycle: Option<ReplicationCycle> = "lastReplicationCycle",
        /// The group that its job is in.
        group: Option<GroupName> = "group",
        /// Its job's labels.
        labels: BTreeMap<String, String> = "labels",
        /// The clone job that was last over, and those that are not. Google has them in its full view only.
        recent_clone_jobs: Vec<CloneJob> = "recentCloneJobs",
        /// What a cutover would take now. Left out where no cycle has measured anything, and once it is cut over.
        cutover_forecast: Option<CutoverForecast> = "cutoverForecast",
        /// The cutover job that was last over, and those that are not. Google has them in its full view only.
        recent_cutover_jobs: Vec<CutoverJob> = "recentCutoverJobs",
        /// What went wrong, in state `ERROR`.
        error: Option<RpcStatus> = "error",
        /// When it expires. None of a replication that does not.
        expiration: Option<Expiration> = "expiration",
    }
}

resource! {
    /// When a replication expires.
    Expiration {
        /// From then on no cycle is made.
        expire_time: ProtoTimestamp = "expireTime",
        /// How often it was pushed back.
        extension_count: u32 = "extensionCount",
        /// Whether it may be pushed back, again.
        extendable: bool = "extendable",
    }
}

resource! {
    /// When cycles are made.
    SchedulePolicy {
        /// How long nothing is done between two cycles. None of a replication that is made once, or by a calendar.
        idle_duration: Option<ProtoDuration> = "idleDuration",
        /// Whether clones are left as they are. Not unless one is asked for so, which is a matter of the clone alone.
        skip_os_adaptation: bool = "skipOsAdaptation",
    }
}

resource! {
    /// A snapshot.
    ReplicationSync {
        /// The point in time that it is of, by the source's clock.
        last_sync_time: ProtoTimestamp = "lastSyncTime",
    }
}

impl Unset for VmId {
    fn is_unset(&self) -> bool {
        false
    }
}

/// All that is known of a replication.
#[derive(Debug, Clone, Copy)]
pub struct Replication<'a> {
    /// Its job: one that recurs, whose runs are the cycles; or one that is itself the only cycle.
    pub job: &'a JobStatus,
    /// The runs of it that are still listed. Of the others its job remembers the main things.
    pub runs: &'a [&'a JobStatus],
    /// Clone jobs; those of other replicas are left aside.
    pub clones: &'a [&'a JobStatus],
    /// Cutover jobs likewise.
    pub cutovers: &'a [&'a JobStatus],
    /// Whether the VM is at the host that has the replica.
    pub cut_over: bool,
    /// The replica, as its host last told of it.
    pub replica: Option<&'a Replica>,
    /// How far the cycle is that is under way.
    pub pace: Pace<'a>,
    /// For how long it has been paused.
    pub now: Timestamp,
}

impl MigratingVmState {
    /// The state of a replication, by the table that every face has.
    #[must_use]
    pub const fn of(standing: Standing) -> Self {
        match ReplicaState::of(standing) {
            ReplicaState::Ready => Self::Ready,
            ReplicaState::FirstSync => Self::FirstSync,
            ReplicaState::Active => Self::Active,
            ReplicaState::Paused => Self::Paused,
            ReplicaState::Error => Self::Error,
            ReplicaState::CuttingOver => Self::CuttingOver,
            ReplicaState::FinalSync => Self::FinalSync,
            ReplicaState::Cutover => Self::Cutover,
            ReplicaState::Expired => Self::Expired,
            ReplicaState::Finalizing => Self::Finalizing,
            ReplicaState::Finalized => Self::Finalized,
            ReplicaState::FinalizedExpired => Self::FinalizedExpired,
        }
    }
}

/// A cycle, as far as it is known.
#[derive(Clone, Copy)]
struct Cycle<'a> {
    number: u32,
    /// What the replication's job remembers of it; none where that is the cycle itself.
    run: Option<&'a Run>,
    /// Its own status, where it is still listed.
    status: Option<&'a JobStatus>,
}

impl<'a> Cycle<'a> {
    /// How it ended. The word that a run is over comes a moment after the run's own last one.
    fn end(self) -> Option<JobState> {
        let told = self.run.and_then(|run| run.state);
        told.or_else(|| self.status.map(|status| status.state).filter(|state| state.is_final()))
    }

    fn failure(self) -> Option<&'a FailureReport> {
        let told = self.run.and_then(|run| run.failure.as_ref());
        told.or_else(|| self.status.and_then(|status| status.failure.as_ref()))
    }

    fn ended_at(self) -> Option<Timestamp> {
        self.status.and_then(|status| status.finished_at).or_else(|| self.run.and_then(|run| run.ended_at))
    }

    fn began_at(self) -> Option<Timestamp> {
        self.run.map(|run| run.began_at).or_else(|| self.status.and_then(|status| status.started_at))
    }
}

impl<'a> Replication<'a> {
    /// All cycles that are remembered, the oldest first.
    fn cycles(&self) -> Vec<Cycle<'a>> {
        if !self.job.policy.recurs() {
            let only = self.job.started_at.map(|_| Cycle { number: 1, run: None, status: Some(self.job) });
            return only.into_iter().collect();
        }
        let listed = |job: JobId| self.runs.iter().copied().find(|run| run.job == job);
        let latest = &self.job.runs.latest;
        let forgotten = self.job.runs.count.saturating_sub(u32::try_from(latest.len()).unwrap_or(u32::MAX));
        let numbered = (forgotten.saturating_add(1)..).zip(latest);
        numbered.map(|(number, run)| Cycle { number, run: Some(run), status: listed(run.job) }).collect()
    }

    fn standing(&self, cycles: &[Cycle<'a>]) -> Standing {
        let ends: Vec<Option<JobState>> = cycles.iter().map(|cycle| cycle.end()).collect();
        Standing::of(self.job, &ends, self.replica, self.cutover_standing(), self.now)
    }

    fn our_cutovers(&self) -> impl Iterator<Item = &'a JobStatus> {
        let plan = &self.job.plan;
        let is_ours = move |cutover: &Plan| cutover.vm.id == plan.vm.id && cutover.target.id == plan.target.id;
        self.cutovers.iter().copied().filter(move |status| is_ours(&status.plan))
    }

    fn cutover_standing(&self) -> Option<CutoverStanding> {
        let plan = &self.job.plan;
        CutoverStanding::of(plan.vm.id, &plan.target.id, self.cutovers.iter().copied(), self.cut_over)
    }

    /// Since when it has been in that state, as far as the cycles tell that are remembered.
    fn state_time(&self, cycles: &[Cycle<'a>], standing: Standing) -> Timestamp {
        let job = self.job;
        if let Some(finalization) = job.finalization.as_ref().filter(|_| standing.finalizing) {
            return finalization.asked_at;
        }
        if standing.cutover.is_some() && !job.state.is_final() {
            // Since it began, or since it was over.
            let changed = self.our_cutovers().map(|status| status.changed_at).max();
            return changed.unwrap_or(job.changed_at);
        }
        if let Some(expiration) = job.policy.expiration.filter(|_| standing.expired && !job.state.is_final()) {
            return expiration.at;
        }
        let is_at_rest = matches!(job.state, JobState::Suspended | JobState::ShuttingDown) || job.state.is_final();
        let Some(first) = cycles.first().filter(|_| job.policy.recurs() && !is_at_rest) else {
            return job.changed_at;
        };
        // A snapshot that none of the cycles has made was there before them.
        let synced_before = standing.synced && !cycles.iter().any(|cycle| cycle.end() == Some(JobState::Completed));
        let begun_before = first.number > 1;
        let before = Standing { synced: begun_before || synced_before, ..Standing::without_job(None) };
        let mut since = if begun_before { first.began_at() } else { None }.unwrap_or(job.submitted_at);
        for pair in gone_through(before, cycles).windows(2) {
            if MigratingVmState::of(pair[0].0) != MigratingVmState::of(pair[1].0) {
                since = pair[1].1.unwrap_or(since);
            }
        }
        // Somebody held it, or let it go on.
        if matches!(job.state, JobState::Service | JobState::Starting) { since.max(job.changed_at) } else { since }
    }

    fn update_time(&self, cycles: &[Cycle<'a>]) -> Timestamp {
        let of_cycles = cycles.iter().flat_map(|cycle| {
            [cycle.began_at(), cycle.ended_at(), cycle.status.map(|status| status.changed_at)].into_iter().flatten()
        });
        let asked = self.job.finalization.as_ref().map(|finalization| finalization.asked_at);
        of_cycles.chain(asked).fold(self.job.changed_at.max(self.job.submitted_at), Timestamp::max)
    }

    fn cycle(&self, name: &MigratingVmName, cycle: Cycle<'a>) -> Option<ReplicationCycle> {
        match (cycle.status, cycle.run) {
            (Some(status), _) => Some(ReplicationCycle::of(name, cycle.number, status, self.pace, self.now)),
            (None, Some(run)) => Some(ReplicationCycle::of_run(name, cycle.number, &self.job.plan, run)),
            (None, None) => None,
        }
    }

    /// All cycles that are remembered, the newest first.
    #[must_use]
    pub fn replication_cycles(&self) -> Vec<ReplicationCycle> {
        let name = MigratingVmName::of(self.job);
        self.cycles().into_iter().rev().filter_map(|cycle| self.cycle(&name, cycle)).collect()
    }

    fn error(&self, cycles: &[Cycle<'a>]) -> Option<RpcStatus> {
        let job = self.job;
        let of_cycle = || {
            let last = cycles.iter().rev().find(|cycle| cycle.end() == Some(JobState::Exception))?;
            Some(RpcStatus::of(&job.plan, last.failure()?, last.ended_at().unwrap_or(job.changed_at)))
        };
        let of_step = || {
            let step = job.steps.iter().find(|step| step.failure.is_some())?;
            Some(RpcStatus::of(&job.plan, step.failure.as_ref()?, step.finished_at.unwrap_or(job.changed_at)))
        };
        RpcStatus::of_job(job).or_else(of_step).or_else(of_cycle)
    }

    /// The cutover job that was last over, then those that are not, as they were submitted.
    fn recent_cutovers(&self, name: &MigratingVmName) -> Vec<CutoverJob> {
        let last = self.our_cutovers().filter(|status| status.state.is_final()).max_by_key(|status| status.finished_at);
        let mut running: Vec<&JobStatus> = self.our_cutovers().filter(|status| !status.state.is_final()).collect();
        running.sort_by_key(|status| (status.submitted_at, status.job));
        last.into_iter().chain(running).map(|status| CutoverJob::of(name, status, None)).collect()
    }

    /// What a live cutover would take now.
    fn forecast(&self) -> Option<CutoverForecast> {
        let replica = self.replica.filter(|_| !self.cut_over)?;
        let cycles = self.runs.iter().copied().chain([self.job]);
        let forecast = crate::job::CutoverForecast::of(&self.job.plan.vm, replica, true, cycles, self.now)?;
        let estimated_cutover_job_duration = ProtoDuration::from_milliseconds(forecast.duration_ms);
        Some(CutoverForecast { estimated_cutover_job_duration })
    }

    /// The clone job that was last over, then those that are not, as they were submitted.
    fn recent_clones(&self, name: &MigratingVmName) -> Vec<CloneJob> {
        let plan = &self.job.plan;
        let is_ours = |clone: &Plan| {
            let of = clone.clone.as_ref().map(|of| of.replica);
            clone.kind == JobKind::Clone && of == Some(plan.vm.id) && clone.target.id == plan.target.id
        };
        let ours = || self.clones.iter().filter(|status| is_ours(&status.plan));
        let last = ours().filter(|status| status.state.is_final()).max_by_key(|status| status.finished_at);
        let mut running: Vec<&&JobStatus> = ours().filter(|status| !status.state.is_final()).collect();
        running.sort_by_key(|status| (status.submitted_at, status.job));
        last.into_iter().chain(running).map(|status| CloneJob::of(name, status)).collect()
    }
}

impl MigratingVm {
    /// What Google's basic view has of it: all but the jobs that were made of it.
    #[must_use]
    pub fn basic(self) -> Self {
        Self { recent_clone_jobs: Vec::new(), recent_cutover_jobs: Vec::new(), ..self }
    }

    /// The replication of which that is known, in the full view.
    #[must_use]
    pub fn of(replication: &Replication<'_>) -> Self {
        let job = replication.job;
        let plan = &job.plan;
        let name = MigratingVmName::of(job);
        let cycles = replication.cycles();
        let standing = replication.standing(&cycles);
        let state = MigratingVmState::of(standing);
        let cycle = |found: Option<&Cycle<'_>>| found.and_then(|cycle| replication.cycle(&name, *cycle));
        let vm = replication.replica.map_or(&plan.vm, |replica| &replica.vm);
        let latest = replication.replica.and_then(Replica::latest);
        Self {
            compute_engine_target_defaults: ComputeEngineTargetDefaults::of(vm, &plan.target.id),
            source_vm_id: plan.vm.id,
            display_name: plan.vm.name.clone(),
            description: description(plan),
            policy: SchedulePolicy {
                idle_duration: job
                    .policy
                    .schedule
                    .as_ref()
                    .and_then(|schedule| schedule.idle_seconds)
                    .map(ProtoDuration::from_seconds),
                skip_os_adaptation: false,
            },
            create_time: job.submitted_at.into(),
            update_time: replication.update_time(&cycles).into(),
            last_sync: latest.map(|snapshot| ReplicationSync { last_sync_time: snapshot.taken_at.into() }),
            state,
            state_time: replication.state_time(&cycles, standing).into(),
            current_sync_info: cycle(cycles.last().filter(|cycle| cycle.end().is_none())),
            last_replication_cycle: cycle(cycles.iter().rev().find(|cycle| cycle.end().is_some())),
            group: name.group(&job.policy),
            labels: job.policy.labels.clone(),
            recent_clone_jobs: replication.recent_clones(&name),
            cutover_forecast: replication.forecast(),
            recent_cutover_jobs: replication.recent_cutovers(&name),
            expiration: job.policy.expiration.map(|of| Expiration {
                expire_time: of.at.into(),
                extension_count: of.extensions,
                extendable: of.is_extendable() && !job.state.is_final() && !standing.finalizing,
            }),
            error: if state == MigratingVmState::Error { replication.error(&cycles) } else { None },
            name,
        }
    }
}

/// How a replication stood before its cycles, and after the beginning and the end of each, with the time of that.
fn gone_through(before: Standing, cycles: &[Cycle<'_>]) -> Vec<(Standing, Option<Timestamp>)> {
    let mut now = before;
    let mut all = vec![(now, None)];
    for cycle in cycles {
        now.under_way = true;
        all.push((now, cycle.began_at()));
        if let Some(end) = cycle.end() {
            let synced = now.synced || end == JobState::Completed;
            now = Standing { under_way: false, synced, failed: end == JobState::Exception, ..now };
            all.push((now, cycle.ended_at()));
        }
    }
    all
}

fn description(plan: &Plan) -> String {
    let one = |disk: &DiskMove| format!("disk {} to pool {}", disk.source.name, disk.target.pool);
    let disks: Vec<String> = plan.disks.iter().map(one).collect();
    let disks = if disks.is_empty() { "no disk".to_owned() } else { disks.join(", ") };
    format!("replication of VM {} from {} to {}: {disks}", plan.vm.name, plan.source.id, plan.target.id)
}
