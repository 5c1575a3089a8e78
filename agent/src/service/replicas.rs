//! Replicas beside the jobs that make them: those that nobody wants any more, whose files and bitmaps go at either host; and those
//! that become the VM itself, since its own host is gone.

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::bus::AgentReply;
use sterna_shared::id::{Generation, VmId};
use sterna_shared::ownership::Record;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use super::{Answer, Service};
use crate::journal::{ReplicaChange, ReplicaRecord, VmRecord};
use crate::replication::{failover, frozen, layers};
use crate::requests;

/// Between two looks at layers that no cycle has merged: a look may cost a writing of the journal, and merging may fail.
const MERGE_INTERVAL: Duration = Duration::from_secs(60);

/// The replica whose layers are merged outside of a cycle, or were last.
#[derive(Debug)]
pub(super) struct Merges {
    vm: VmId,
    begun: Instant,
    task: JoinHandle<()>,
}

impl Service {
    /// Forgets the replica of a VM here, and has a guest that is here no longer record for one.
    pub(super) fn drop_replica(&mut self, vm: VmId, reply: oneshot::Sender<AgentReply>) {
        let holds = self.jobs.iter().find(|(_, job)| {
            let plan = &job.context.plan;
            plan.vm.id == vm || plan.clone.as_ref().is_some_and(|clone| clone.replica == vm)
        });
        if let Some((job, _)) = holds {
            let held = format!("the VM, or its replica, is in job {job}");
            let _ = reply.send(requests::refused(held, "wait until it is over, or cancel it with `sterna job cancel`"));
            return;
        }
        if self.dropping.contains(&vm) || self.taking_over.contains(&vm) {
            let held = "the VM is being taken over from its replica here, or that is being removed already";
            let _ = reply.send(requests::refused(held.to_owned(), "wait until it is"));
            return;
        }
        self.dropping.insert(vm);
        let (host, keeper) = (Arc::clone(&self.host), self.keepers.get(&vm).cloned());
        let answers = self.give_answer.clone();
        tokio::spawn(async move {
            let dropped = async {
                host.journal.change_replica(vm, ReplicaChange::Drop).await?;
                layers::tidy(&host, vm, None).await?;
                if let Some(keeper) = keeper
                    && let Some(machine) = keeper.machine().await?
                {
                    frozen::forget_bitmaps(&machine, &keeper.record().spec.disks, None).await?;
                }
                Ok::<_, crate::migration::context::MoveError>(())
            };
            let answer = match dropped.await {
                Ok(()) => AgentReply::Done,
                Err(error) => requests::failed(&error),
            };
            let _ = answers.send(Answer { answer, reply, taken_over: Some(vm) }).await;
        });
    }

    /// Runs the VM of a replica here, from one of its snapshots.
    pub(super) async fn take_over(
        &mut self,
        vm: VmId,
        snapshot: u32,
        above: Generation,
        reply: oneshot::Sender<AgentReply>,
    ) {
        let refused = match (self.job_of(vm), self.host.journal.replica(vm)) {
            _ if self.taking_over.contains(&vm) => {
                Err(requests::refused("the VM is being taken over here already".to_owned(), "wait until it is"))
            }
            _ if self.dropping.contains(&vm) => {
                Err(requests::refused("the replica of the VM is being removed here".to_owned(), ""))
            }
            (Some(job), _) => Err(requests::refused(
                format!("the VM is in job {job} here"),
                "wait until that has noticed that the host is gone, a few minutes, or cancel it with `sterna job cancel`",
            )),
            (None, Err(error)) => Err(requests::failed(&error)),
            (None, Ok(None)) => Err(requests::refused(format!("{} has no replica of the VM", self.host.id()), "")),
            (None, Ok(Some(record))) => match self.hindrance_of_takeover(&record.replica.vm).await {
                Some(hindrance) => Err(hindrance),
                None => Ok(record.replica.vm),
            },
        };
        let spec = match refused {
            Ok(spec) => spec,
            Err(refusal) => return drop(reply.send(refusal)),
        };
        let keeper =
            self.keepers.get(&vm).cloned().unwrap_or_else(|| {
                self.keep(VmRecord { spec, ownership: Record::default(), wanted_running: false }, None)
            });
        self.keepers.insert(vm, keeper.clone());
        self.taking_over.insert(vm);
        let (host, answers) = (Arc::clone(&self.host), self.give_answer.clone());
        tokio::spawn(async move {
            let answer = match failover::take_over(&host, &keeper, snapshot, above).await {
                Ok(()) => AgentReply::Done,
                Err(error) => requests::failed(&error),
            };
            let _ = answers.send(Answer { answer, reply, taken_over: Some(vm) }).await;
        });
    }

    /// Removes what is left of replicas that are wanted no more, once no clone stands on it, and merges what cycles have not.
    pub(super) fn tend_replicas(&mut self) {
        let records = self.host.journal.replicas().unwrap_or_default();
        self.tend_layers(&records);
        if self.tends_replicas.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let dropped: Vec<VmId> =
            records.into_iter().filter(|record| record.dropped).map(|record| record.replica.vm.id).collect();
        if dropped.is_empty() {
            return;
        }
        let host = Arc::clone(&self.host);
        self.tends_replicas = Some(tokio::spawn(async move {
            for vm in dropped {
                if let Err(error) = layers::tidy(&host, vm, None).await {
                    warn!(%vm, error = &error as &dyn std::error::Error, "a replica is removed later");
                }
            }
        }));
    }

    /// Merges layers of one replica that is in no job, where a cycle has found others being merged or copied, or a clone that is gone
    /// since. A cycle of it waits meanwhile.
    fn tend_layers(&mut self, records: &[ReplicaRecord]) {
        let last = self.merges.as_ref();
        if last.is_some_and(|last| !last.task.is_finished() || last.begun.elapsed() < MERGE_INTERVAL) {
            return;
        }
        let last = last.map(|last| last.vm);
        let is_free = |vm: VmId| {
            let in_job = self.jobs.values().any(|job| job.context.plan.vm.id == vm);
            !in_job && !self.dropping.contains(&vm) && !self.taking_over.contains(&vm)
        };
        let wanted = records.iter().filter(|record| {
            !record.dropped && is_free(record.replica.vm.id) && layers::may_be_merged(&self.host, record)
        });
        // In turn, so that one that fails keeps no other from it.
        let next = wanted.map(|record| record.replica.vm.id).min_by_key(|vm| (Some(*vm) <= last, *vm));
        let Some(vm) = next else { return };
        let host = Arc::clone(&self.host);
        let task = tokio::spawn(async move {
            if let Err(error) = layers::tidy(&host, vm, None).await {
                warn!(%vm, error = &error as &dyn std::error::Error, "layers are merged later");
            }
        });
        self.merges = Some(Merges { vm, begun: Instant::now(), task });
    }

    /// Whether layers of a VM's replica are being merged outside of a cycle.
    pub(super) fn merges_layers_of(&self, vm: VmId) -> bool {
        self.merges.as_ref().is_some_and(|merges| merges.vm == vm && !merges.task.is_finished())
    }
}
