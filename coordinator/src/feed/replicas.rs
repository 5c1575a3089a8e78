//! Replications in the feed: how old what is kept of each VM is, and whether it should be younger.
//!
//! A change is told at once. Ages grow by themselves, and a document a second of each VM would tell nothing new, so that one which differs
//! in its age alone waits. What that costs: the age in a last value may be a minute old, and `taken_at` is what to reckon from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use sterna_shared::bus::Subject;
use sterna_shared::id::{HostId, JobId, VmId, VmName};
use sterna_shared::replica::{Replica, ReplicaState, ReplicaView};
use sterna_shared::time::Timestamp;

use super::{Document, document};

/// The shortest time between two documents of one replication that differ in its age only.
pub const AGE_INTERVAL_MIN: Duration = Duration::from_secs(60);
const KIND: &str = "replica";

/// How the replication of a VM stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ReplicaDocument {
    /// The replicated VM's id.
    vm: VmId,
    /// Its name.
    name: VmName,
    /// The host that the latest cycle came from.
    source: HostId,
    /// The host that has the replica, or is to have it.
    host: HostId,
    /// The job that keeps it; none where nothing does.
    job: Option<JobId>,
    /// How it stands.
    state: ReplicaState,
    /// The number of the latest complete snapshot; none before the first.
    snapshot: Option<u32>,
    /// The point in time of which that is.
    taken_at: Option<Timestamp>,
    /// How long ago that was, in seconds: what would be lost if the VM's host were.
    age_seconds: Option<u64>,
    /// Whether that is longer ago than the schedule and the latest cycle would have it.
    late: bool,
}

/// Remembers what was told of each replication, and when.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    told: BTreeMap<VmId, (ReplicaDocument, Duration)>,
    /// Of which predecessors have told, and which may be no more.
    kept: BTreeSet<VmId>,
}

impl Replicas {
    /// Takes note of the replications of which predecessors have told.
    pub(crate) fn remember(&mut self, vms: BTreeSet<VmId>) {
        self.kept = vms;
    }

    /// What is to be told now of the replications that there are.
    ///
    /// # Errors
    /// Where a document does not become JSON, a fault of Sterna's.
    pub(crate) fn tell(
        &mut self,
        source: &HostId,
        views: &[ReplicaView],
        now: Timestamp,
        clock: Duration,
    ) -> Vec<Result<Document, serde_json::Error>> {
        let mut documents = Vec::new();
        for (vm, data) in by_vm(views) {
            let waits = self.told.get(&vm).is_some_and(|(told, at)| {
                let ages = ReplicaDocument { age_seconds: told.age_seconds, ..data.clone() };
                *told == data || (*told == ages && clock.saturating_sub(*at) < AGE_INTERVAL_MIN)
            });
            if !waits {
                documents.push(document(Subject::FeedReplica(vm), KIND, source, now, &data));
                self.told.insert(vm, (data, clock));
            }
        }
        documents
    }

    /// Forgets the replications that are no more; the keys of their last values. What predecessors knew is missed only where these are
    /// all that there are.
    pub(crate) fn forget(&mut self, views: &[ReplicaView], are_all: bool) -> Vec<String> {
        let there: BTreeSet<VmId> = views.iter().map(|view| view.vm).collect();
        let kept = if are_all { std::mem::take(&mut self.kept) } else { BTreeSet::new() };
        let gone: BTreeSet<VmId> = self.told.keys().copied().chain(kept).filter(|vm| !there.contains(vm)).collect();
        self.told.retain(|vm, _| there.contains(vm));
        gone.into_iter().map(|vm| format!("{KIND}.{vm}")).collect()
    }
}

/// One a VM: of several replicas that which a job keeps, and then the youngest.
fn by_vm(views: &[ReplicaView]) -> BTreeMap<VmId, ReplicaDocument> {
    let taken_at = |view: &ReplicaView| latest(view).map(|(_, taken_at)| taken_at);
    let mut sorted: Vec<&ReplicaView> = views.iter().collect();
    sorted.sort_by_key(|view| (view.replication.is_some(), taken_at(view)));
    sorted.into_iter().map(|view| (view.vm, ReplicaDocument::of(view))).collect()
}

fn latest(view: &ReplicaView) -> Option<(u32, Timestamp)> {
    view.replica.as_ref().and_then(Replica::latest).map(|snapshot| (snapshot.number, snapshot.taken_at))
}

impl ReplicaDocument {
    fn of(view: &ReplicaView) -> Self {
        let (snapshot, taken_at) = latest(view).unzip();
        Self {
            vm: view.vm,
            name: view.name.clone(),
            source: view.source.clone(),
            host: view.host.clone(),
            job: view.replication,
            state: view.state,
            snapshot,
            taken_at,
            age_seconds: view.age_seconds,
            late: view.late,
        }
    }
}
