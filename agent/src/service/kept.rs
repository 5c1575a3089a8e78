//! Images that moves into this host have left when they were cut: until when they are kept, and who removes them.
//!
//! Only the service's loop removes them, and only while the VM is neither in a job nor this host's: one thing happens at a
//! time there, so that nothing begins to use an image while it goes. An `unlink` is short, also of a large image.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_shared::bus::AgentReply;
use sterna_shared::id::{JobId, PoolName, VmId};
use sterna_shared::job::Plan;
use sterna_shared::ownership::Record;
use sterna_shared::units::ByteCount;
use sterna_shared::vm::VmSpec;
use tokio::time::Instant;
use tracing::{error, info};

use super::Service;
use crate::host::room::{Need, RoomError};
use crate::journal::Partial;
use crate::migration::partial;
use crate::requests;

/// Since when each is known to be kept, by this run of the agent: nothing is decided by the wall clock.
pub(super) type KnownSince = BTreeMap<(VmId, JobId), Instant>;

impl Service {
    /// The kept images, the oldest first; and, before them, those of jobs that ended without a word of what becomes of them.
    pub(super) fn kept(&self) -> Vec<Partial> {
        let mut kept = self.host.journal.partials().unwrap_or_else(|failure| {
            error!(%failure, "what is kept for further moves is not known");
            Vec::new()
        });
        kept.retain(|partial| partial.kept.is_some() || !self.jobs.contains_key(&partial.job));
        kept.sort_by_key(|partial| partial.kept.as_ref().map(|kept| kept.since));
        kept
    }

    /// Removes what is given up, or has been kept for long enough.
    pub(super) async fn tend_kept(&mut self) {
        let kept = self.kept();
        self.known_since.retain(|key, _| kept.iter().any(|partial| (partial.vm, partial.job) == *key));
        for partial in kept {
            let since = *self.known_since.entry((partial.vm, partial.job)).or_insert_with(Instant::now);
            let seconds = partial.way_back_seconds.unwrap_or(self.host.config.keep_partial_seconds);
            let limit = Duration::from_secs(seconds.into());
            let given_up = partial.kept.as_ref().is_none_or(|kept| kept.given_up);
            if given_up || since.elapsed() >= limit {
                self.drop_kept(&partial, if given_up { "nobody wants them" } else { "their time is up" }).await;
            }
        }
    }

    /// Makes room for the images of a plan: what is kept of other VMs goes, the oldest first, until there is enough.
    pub(super) async fn make_room(&self, plan: &Plan) {
        let mut needed: BTreeMap<PoolName, ByteCount> = BTreeMap::new();
        for disk in &plan.disks {
            let sum = needed.entry(disk.target.pool.clone()).or_default();
            *sum = sum.plus(disk.target.size);
        }
        let (own, mut others): (Vec<_>, Vec<_>) = self.kept().into_iter().partition(|partial| partial.vm == plan.vm.id);
        // Ways back go last.
        others.sort_by_key(|partial| partial.way_back_seconds.is_some());
        for (name, bytes) in needed {
            let own = own.iter().map(|own| self.host.allocated(own, Some(&name)));
            let missing = ByteCount(bytes.0.saturating_sub(own.fold(ByteCount(0), ByteCount::plus).0));
            // What is held for planned VMs is not for this one.
            let pool = self.host.pools.get(&name);
            let held = pool.and_then(|pool| self.host.spoken_for(pool, plan.vm.id).ok()).unwrap_or_default();
            let missing = missing.plus(held);
            for partial in &others {
                let free = self.host.pools.get(&name).and_then(|pool| pool.space().ok()).map(|space| space.free);
                if free.is_none_or(|free| free >= missing) {
                    break;
                }
                if self.host.allocated(partial, Some(&name)) > ByteCount(0) {
                    self.drop_kept(partial, "a move needs the room").await;
                }
            }
        }
    }

    /// Removes what is kept of a VM that is about to be defined here, or that an operator wants no more; why not is the answer.
    pub(super) async fn drop_kept_of(&self, vm: VmId) -> Result<(), AgentReply> {
        match self.kept().into_iter().find(|partial| partial.vm == vm) {
            Some(partial) if self.drop_kept(&partial, "an operator said so").await => Ok(()),
            Some(partial) => Err(requests::refused(
                format!("the images kept of VM {} could not be removed", partial.name),
                "wait until no job holds the VM, and see the agent's log",
            )),
            None => {
                Err(requests::refused(format!("{} keeps nothing of that VM", self.host.id()), "see `sterna host show`"))
            }
        }
    }

    /// What keeps a VM from being taken over here from its replica, where its disks stand on layers and need no room of their own.
    pub(super) async fn hindrance_of_takeover(&self, spec: &VmSpec) -> Option<AgentReply> {
        let way_back = |partial: &Partial| partial.vm == spec.id && partial.way_back_seconds.is_some();
        if self.kept().iter().any(way_back) {
            return Some(requests::refused(
                format!(
                    "{} keeps images of the VM from when it was cut over from here, which may be newer than the snapshot",
                    self.host.id()
                ),
                &format!(
                    "save what is in them, then give them up: `sterna vm drop {} --host {}`",
                    spec.name,
                    self.host.id()
                ),
            ));
        }
        self.hindrance(&VmSpec { disks: Vec::new(), ..spec.clone() }).await
    }

    /// What keeps a VM from being defined here.
    pub(super) async fn hindrance(&self, spec: &VmSpec) -> Option<AgentReply> {
        if let Some(taken) = self.name_taken(spec) {
            return Some(requests::refused(taken, "choose another name, or delete that VM"));
        }
        // Its images are made anew, and are not what a move happens to have left.
        let kept = self.kept().iter().any(|partial| partial.vm == spec.id);
        if kept && let Err(reply) = self.drop_kept_of(spec.id).await {
            return Some(reply);
        }
        let need = Need { vm: spec.id, memory: spec.memory, disks: &spec.disks, hold: false };
        let lacks = |error: RoomError| {
            requests::refused(
                error.to_string(),
                "choose another host or pool, or drop a planned VM: `sterna plan list`",
            )
        };
        self.host.expect_room(need).err().map(lacks)
    }

    /// Removes what a job that is over here has left: it is cancelled, and nobody wants that any more.
    pub(super) async fn drop_left_by(&self, job: JobId) {
        let left = |partial: &Partial| partial.job == job && partial.way_back_seconds.is_none();
        if let Some(partial) = self.kept().into_iter().find(left) {
            self.drop_kept(&partial, "its job was cancelled").await;
        }
    }

    /// Whether they are gone.
    async fn drop_kept(&self, partial: &Partial, reason: &'static str) -> bool {
        let record = self.keepers.get(&partial.vm).map(|keeper| keeper.record().ownership);
        let dropped = match record {
            _ if self.job_of(partial.vm).is_some() || self.is_out_of_reach(partial.vm) => return false,
            _ if self.taking_over.contains(&partial.vm) => return false,
            None | Some(Record::Absent { .. }) => {
                info!(vm = %partial.vm, job = %partial.job, reason, "images kept for a further move go");
                partial::drop_all(&self.host, partial).await
            }
            Some(Record::Owner { .. }) => {
                info!(vm = %partial.vm, "images of a move are the VM's, which is here");
                self.host.journal.forget_partial(partial.vm).await
            }
            Some(_) => return false, // Not decided yet.
        };
        if let Err(failure) = &dropped {
            error!(vm = %partial.vm, %failure, "removed images are forgotten later");
        }
        dropped.is_ok() && self.host.journal.partial(partial.vm).is_ok_and(|left| left.is_none())
    }
}
