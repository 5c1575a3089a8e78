//! Where each disk goes, and whether its content must be copied for that.

use sterna_shared::host::Pool;
use sterna_shared::id::PoolName;
use sterna_shared::job::{DiskMove, JobKind, StorageWish};
use sterna_shared::vm::{DiskFormat, DiskSpec};

use super::{Case, planned, replicate};
use crate::fleet::Member;

/// A disk and where it goes.
pub(super) struct Placed {
    pub(super) source: DiskSpec,
    pub(super) target: DiskSpec,
    /// Whether its content is copied. It is not where both hosts see one and the same image.
    pub(super) copied: bool,
    /// Whether source and target pool are the same storage.
    pub(super) shared: bool,
}

impl Placed {
    pub(super) fn into_move(self) -> DiskMove {
        DiskMove { source: self.source, target: self.target }
    }
}

/// All disks of the VM, in its order; none where the VM or the target is unknown.
pub(super) fn placed(case: &Case) -> Vec<Placed> {
    let (Some(vm), Some(source), Some(target)) = (case.vm(), case.source(), case.target()) else { return vec![] };
    vm.spec.disks.iter().map(|disk| place(case, disk, source, target)).collect()
}

fn place(case: &Case, disk: &DiskSpec, source: &Member, target: &Member) -> Placed {
    // What a clone stands on stays behind: the content of all of it is copied.
    let mut wanted = DiskSpec { base: None, ..disk.clone() };
    if let Some(kept) = replicate::replica(case).filter(|_| case.replicates() || case.request.kind == JobKind::Cutover)
    {
        wanted.pool =
            kept.disks.iter().find(|kept| kept.name == disk.name).map_or(wanted.pool, |kept| kept.pool.clone());
    }
    if let Some(planned) = planned::used(case).and_then(|planned| planned.spec.disk(&disk.name)) {
        (wanted.pool, wanted.format) = (planned.pool.clone(), planned.format);
    }
    if let Some(placement) = case.request.disks.iter().find(|placement| placement.disk == disk.name) {
        wanted.pool = placement.pool.clone();
        wanted.format = placement.format.unwrap_or(disk.format);
    }
    let storage = |member, name| pool(member, name).and_then(|pool| pool.shared.as_deref());
    let same_pool = source.inventory.host == target.inventory.host && disk.pool == wanted.pool;
    let shared = same_pool
        || matches!((storage(source, &disk.pool), storage(target, &wanted.pool)), (Some(a), Some(b)) if a == b);
    if case.replicates() {
        // Also within one storage: a replica's files have names of their own, and are qcow2.
        wanted.format = DiskFormat::Qcow2;
        return Placed { source: disk.clone(), target: wanted, copied: true, shared };
    }
    // A change of format is a copy also within one storage: the image gets another name there.
    let stays = shared && disk.format == wanted.format;
    let copied = !stays && case.request.storage == StorageWish::All;
    if !copied {
        wanted.base.clone_from(&disk.base);
    }
    Placed { source: disk.clone(), target: wanted, copied, shared }
}

/// The pool of that name at a host.
pub(super) fn pool<'a>(member: &'a Member, name: &PoolName) -> Option<&'a Pool> {
    member.inventory.pools.iter().find(|pool| pool.name == *name)
}
