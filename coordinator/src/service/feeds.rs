//! What the feed is told beside jobs, hosts and VMs as they change: replications, which grow old by themselves, and that VMs are gone.
//!
//! A VM is gone when nobody has it. That a host does not say that it has it tells so of this host alone, and only while it is heard
//! of; one that never comes back keeps every last value of a VM, since it may have any.

use std::collections::BTreeSet;

use sterna_shared::host::VmReport;
use sterna_shared::id::{JobId, VmId};

use super::state::{Action, Now, State, push_document};

impl State {
    /// Takes note of what predecessors have left in the buckets.
    pub(super) fn kept(&mut self, jobs: BTreeSet<JobId>, vms: BTreeSet<VmId>, replicas: BTreeSet<VmId>) {
        self.left = jobs;
        for vm in vms {
            self.vms.entry(vm).or_insert(None);
        }
        self.replica_feed.remember(replicas);
    }

    /// Tells how replications stand, as far as there is anything new.
    pub(super) fn tell_replicas(&mut self, now: Now, out: &mut Vec<Action>) {
        // They stand as they did when what is read now was told.
        if self.replaying {
            return;
        }
        let views = self.replicas(now);
        for document in self.replica_feed.tell(&self.name, &views, now.at, now.clock) {
            push_document(document, out);
        }
        // What a host that is silent has of a replication stays with what it last said, and so is not missed here.
        let gone = self.replica_feed.forget(&views, self.fleet.is_complete());
        out.extend(gone.into_iter().map(Action::RemoveFeed));
    }

    /// Removes what is kept of VMs that no host has, and no job is about.
    pub(super) fn remove_gone_vms(&mut self, out: &mut Vec<Action>) {
        if self.replaying || !self.fleet.is_complete() {
            return;
        }
        let reported = self.fleet.hosts().flat_map(|member| member.inventory.vms.iter().map(VmReport::id));
        let live = self.jobs.values().map(|job| &job.status).filter(|status| !status.state.is_final());
        let there: BTreeSet<VmId> = reported.chain(live.map(|status| status.plan.vm.id)).collect();
        out.extend(self.vms.keys().copied().filter(|vm| !there.contains(vm)).map(Action::RemoveVm));
        self.vms.retain(|vm, _| there.contains(vm));
        self.owners.retain(|vm, _| there.contains(vm));
    }
}
