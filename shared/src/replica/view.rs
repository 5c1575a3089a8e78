//! A replication as operators see it: the replica, the job that keeps it, and how old what it holds is. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CutoverStanding, Replica, ReplicaState, Standing};
use crate::id::{HostId, JobId, VmId, VmName};
use crate::job::{JobState, JobStatus, Run};
use crate::time::Timestamp;

/// A replica, or a replication that has none yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReplicaView {
    /// The replicated VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The host that the latest cycle came from; before the first, that which has the VM.
    pub source: HostId,
    /// The host that has the replica, or is to have it.
    pub host: HostId,
    /// The replica; none until its host has begun one.
    pub replica: Option<Replica>,
    /// The job that keeps it: a recurring one, or a single cycle. None where nothing does.
    pub replication: Option<JobId>,
    /// How it stands.
    pub state: ReplicaState,
    /// The pause between two cycles, in seconds; none where there is no schedule, or another one.
    pub idle_seconds: Option<u32>,
    /// When the replication expires; none where it does not.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Whether that is soon, and was not yet.
    #[serde(default)]
    pub expires_soon: bool,
    /// How long ago its latest snapshot was taken, in seconds: what a clone would lack.
    pub age_seconds: Option<u64>,
    /// Whether that is longer ago than the schedule and the latest cycle would have it.
    pub late: bool,
    /// The labels of the replication.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The latest cycles, the oldest first.
    pub cycles: Vec<Run>,
    /// How many cycles have begun: the number of the last one.
    #[serde(default)]
    pub cycle_count: u32,
}

impl ReplicaView {
    /// The view of a replica at a host, of the latest job that replicates there, or of both. `None` where there is neither.
    /// `cutover` says how far the VM is on its way there.
    #[must_use]
    pub fn of(
        host: &HostId,
        replica: Option<&Replica>,
        job: Option<&JobStatus>,
        cutover: Option<CutoverStanding>,
        now: Timestamp,
    ) -> Option<Self> {
        let vm = replica.map(|replica| &replica.vm).or(job.map(|job| &job.plan.vm))?;
        let source = replica.map(|replica| &replica.source).or(job.map(|job| &job.plan.source.id))?;
        let live = job.filter(|job| !job.state.is_final());
        let idle_seconds = live.and_then(|job| job.policy.schedule.as_ref()?.idle_seconds);
        let taken_at = replica.and_then(Replica::latest).map(|snapshot| snapshot.taken_at);
        let cycles = job.map(cycles).unwrap_or_default();
        let ends: Vec<Option<JobState>> = cycles.iter().map(|cycle| cycle.state).collect();
        let standing =
            job.map_or_else(|| Standing::without_job(cutover), |job| Standing::of(job, &ends, replica, cutover, now));
        let state = ReplicaState::of(standing);
        let expiration = live.and_then(|job| job.policy.expiration);
        Some(Self {
            vm: vm.id,
            name: vm.name.clone(),
            source: source.clone(),
            host: host.clone(),
            replica: replica.cloned(),
            replication: live.map(|job| job.job),
            state,
            idle_seconds,
            expires_at: expiration.map(|expiration| expiration.at),
            expires_soon: expiration.is_some_and(|expiration| expiration.is_near(now)),
            age_seconds: taken_at.map(|taken_at| seconds(taken_at, now)),
            late: live.filter(|_| !state.is_at_rest()).zip(idle_seconds).is_some_and(|(job, idle)| {
                let since = taken_at.unwrap_or(job.submitted_at);
                seconds(since, now) > 2 * u64::from(idle) + last_took(&cycles)
            }),
            labels: job.map(|job| job.policy.labels.clone()).unwrap_or_default(),
            cycle_count: job.map_or(0, |job| if job.policy.recurs() { job.runs.count } else { 1 }),
            cycles,
        })
    }

    /// The latest cycles with their numbers, from 1 of the first that there was; the oldest first.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &Run)> {
        let listed = u32::try_from(self.cycles.len()).unwrap_or(u32::MAX);
        (self.cycle_count.saturating_sub(listed) + 1..).zip(&self.cycles)
    }
}

impl ReplicaView {
    /// The same, where the VM is shut down and nothing can have changed since the latest snapshot: a clone of it would lack nothing.
    #[must_use]
    pub fn up_to_date(self) -> Self {
        Self { age_seconds: self.age_seconds.map(|_| 0), late: false, ..self }
    }
}

/// The runs of a recurring job; of a cycle that is no run of one, itself.
fn cycles(job: &JobStatus) -> Vec<Run> {
    if job.policy.recurs() {
        return job.runs.latest.clone();
    }
    if job.started_at.is_none() && !job.state.is_final() {
        return Vec::new();
    }
    vec![Run {
        job: job.job,
        turn: job.submitted_at,
        began_at: job.submitted_at,
        ended_at: job.finished_at,
        state: Some(job.state).filter(|state| state.is_final()),
        failure: job.failure.clone(),
    }]
}

/// How long the latest cycle took that is over, in seconds.
fn last_took(cycles: &[Run]) -> u64 {
    let over = cycles.iter().rev().find_map(|cycle| Some((cycle.began_at, cycle.ended_at?)));
    over.map_or(0, |(began_at, ended_at)| seconds(began_at, ended_at))
}

fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.unix_microseconds().saturating_sub(from.unix_microseconds()) / 1_000_000).unwrap_or(0)
}
