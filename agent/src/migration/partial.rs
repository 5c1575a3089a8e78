//! Images of a move into this host, from the first of them until they are the VM's or gone: made, used on, kept, removed.
//!
//! ```text
//!   prepare ──▶ in hand ──┬─ the VM is this host's ─▶ forget                      the images are the VM's
//!                         ├─ another try may do ────▶ keep ─▶ prepare (next job)  or remove, by the service
//!                         └─ else ──────────────────▶ remove
//! ```
//!
//! The journal's record comes before the files and goes after them: at no instant is there a file that nobody owns. Who calls
//! these sees to it that nobody else does for the same VM: the job in hand, or else the service's loop. Removing goes by the
//! record and not by a plan.

use sterna_shared::id::VmId;
use sterna_shared::job::{DiskMove, FailureCode, Plan};
use sterna_shared::vm::{DiskFormat, DiskSpec};
use tracing::info;

use crate::clock;
use crate::disk::extent::ExtentSet;
use crate::disk::pool::Pool;
use crate::host::Host;
use crate::journal::{JournalError, Partial, PartialDisk};
use crate::migration::images::{self, ImageError};

/// So little received that keeping it would spare nobody anything.
const KEPT_BYTES_MIN: u64 = 1 << 20;

/// Whether a move that ended this way may go better the next time, so that what was received is worth keeping. `cause` is
/// what the source said; a source that is gone says nothing.
#[must_use]
pub fn worth_keeping(cause: Option<FailureCode>) -> bool {
    use FailureCode as F;
    match cause {
        None
        | Some(
            F::GuestNotShutDown
            | F::Suspended
            | F::LinkLost
            | F::AgentRestarted
            | F::MemoryCopy
            | F::BlackoutExceeded
            | F::Hypervisor,
        ) => true,
        // Nobody wants it, or the room is needed, or the target's disk or its journal is at fault, or one end does not do as it
        // should.
        Some(
            F::Cancelled
            | F::TargetRefused
            | F::PeerMisbehaved
            | F::DiskRead
            | F::DiskWrite
            | F::PoolFull
            | F::PoolNearlyFull
            | F::DigestMismatch
            | F::Journal
            | F::PlanStale
            | F::Internal
            | F::NotMigratable
            | F::OsAdaptation
            | F::Unhealthy,
        ) => false,
    }
}

/// Whether what was received of a move that ended this way may still be used on: the target's disk or its journal was not at
/// fault, and there is room.
#[must_use]
pub fn is_sound(cause: Option<FailureCode>) -> bool {
    use FailureCode as F;
    !matches!(cause, Some(F::DiskWrite | F::PoolFull | F::DigestMismatch | F::Journal))
}

/// Makes what the target of a move needs: an image for each disk that comes, and the UEFI variables. An image that an
/// earlier move has left in the same place is used on: then the answer has, for that disk, what was received of it. On
/// failure nothing new is left.
///
/// # Errors
/// [`ImageError`]; also where a file is there that is nobody's to use on, which is then left alone.
pub async fn prepare(
    host: &Host,
    plan: &Plan,
    variables: Option<Vec<u8>>,
) -> Result<Vec<Option<ExtentSet>>, ImageError> {
    let found = host.journal.partial(plan.vm.id)?;
    let way_back_seconds = found.as_ref().and_then(|partial| partial.way_back_seconds);
    // What a takeover has left stands on layers.
    let made_by_a_move = found.as_ref().is_some_and(|partial| !partial.is_of_a_takeover());
    let mut left = found.map_or_else(Vec::new, |partial| partial.disks);
    let mut held = Vec::with_capacity(plan.disks.len());
    for DiskMove { target: disk, .. } in &plan.disks {
        let found = left.iter().position(|left| made_by_a_move && left.fits(disk));
        let usable = match found {
            Some(_) => usable(host, plan.vm.id, disk).await,
            None => false,
        };
        // What cannot be used on stays in the list, and goes.
        held.push(found.filter(|_| usable).map(|found| left.swap_remove(found).received()));
    }
    // A way back of which a part is gone is none.
    let way_back_seconds = way_back_seconds.filter(|_| left.is_empty());
    images::remove(host, plan.vm.id, &left.iter().map(|disk| &disk.spec).collect::<Vec<_>>()).await;
    let (mut disks, mut missing, mut used_on) = (Vec::new(), Vec::new(), Vec::new());
    for (DiskMove { target: disk, .. }, held) in plan.disks.iter().zip(&held) {
        let received = held.clone().unwrap_or_default();
        disks.push(PartialDisk::new(disk.clone(), &received));
        let list = if held.is_some() { &mut used_on } else { &mut missing };
        list.push(disk.clone());
    }
    images::expect_free(host, plan.vm.id, &missing)?;
    let (vm, name, job) = (plan.vm.id, plan.vm.name.clone(), plan.job);
    if disks.is_empty() {
        host.journal.forget_partial(vm).await?; // Of images that are gone now.
        return Ok(held);
    }
    host.journal.begin_partial(Partial { vm, name, job, disks, kept: None, way_back_seconds }).await?;
    let made = images::make_incoming(host, plan, &missing, variables).await;
    if made.is_err() && images::remove(host, vm, &used_on.iter().collect::<Vec<_>>()).await {
        host.journal.forget_partial(vm).await?;
    }
    made.map(|()| held)
}

/// The job is over, and the VM is not this host's. Where the images are `wanted` for another try they stay for it, unless
/// little is in them, or their pool is none for that ([`Pool::may_keep`]); else they go. What a cutover has left for the way back
/// stays as long as it is `sound`: that somebody cancels a revert does not mean that he wants none.
///
/// # Errors
/// The journal cannot be written: they stay this job's, and are seen to by the next agent.
pub async fn settle(host: &Host, plan: &Plan, wanted: bool, sound: bool) -> Result<(), JournalError> {
    let Some(partial) = of_job_in_hand(host, plan)? else { return Ok(()) };
    let own = |disk: &DiskMove| host.pool(&disk.target).is_ok_and(Pool::may_keep);
    let received = partial.received_bytes();
    images::remove_incoming_variables(host, plan);
    let wanted = wanted || (sound && partial.way_back_seconds.is_some());
    if wanted && received >= KEPT_BYTES_MIN && plan.disks.iter().all(own) {
        info!(job = %plan.job, received, "images kept for the next move");
        return host.journal.keep_partial(plan.vm.id, plan.job, clock::now()).await;
    }
    drop_all(host, &partial).await
}

/// The VM is this host's, and the images are the VM's.
///
/// # Errors
/// The journal cannot be written.
pub async fn forget(host: &Host, plan: &Plan) -> Result<(), JournalError> {
    match of_job_in_hand(host, plan)? {
        Some(_) => host.journal.forget_partial(plan.vm.id).await,
        None => Ok(()),
    }
}

/// Removes images, and forgets them. The VM must neither be this host's, nor be in a job.
///
/// # Errors
/// The journal cannot be written: they will be removed again, which does no harm.
pub async fn drop_all(host: &Host, partial: &Partial) -> Result<(), JournalError> {
    if let Some(first) = partial.disks.first().filter(|_| partial.is_of_a_takeover()) {
        images::remove_variables_beside(host, partial.vm, &first.spec);
    }
    match images::remove(host, partial.vm, &partial.disks.iter().map(|disk| &disk.spec).collect::<Vec<_>>()).await {
        true => host.journal.forget_partial(partial.vm).await,
        false => Ok(()), // What is left has an owner still.
    }
}

fn of_job_in_hand(host: &Host, plan: &Plan) -> Result<Option<Partial>, JournalError> {
    let found = host.journal.partial(plan.vm.id)?;
    Ok(found.filter(|partial| partial.job == plan.job && partial.kept.is_none()))
}

/// Whether an image that was left is sound; a qcow2 one that QEMU did not close is put in order.
async fn usable(host: &Host, vm: VmId, disk: &DiskSpec) -> bool {
    let checked = async {
        let pool = host.pool(disk)?;
        pool.check(vm, &disk.name, disk.format, disk.size).await?;
        if disk.format == DiskFormat::Qcow2 {
            pool.free_leaks(vm, &disk.name).await?;
        }
        Ok::<(), ImageError>(())
    };
    match checked.await {
        Ok(()) => true,
        Err(error) => {
            info!(%vm, disk = %disk.name, error = &error as &dyn std::error::Error, "an image that was kept is not used on");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_go_better_the_next_time_is_kept() {
        for cause in [None, Some(FailureCode::LinkLost), Some(FailureCode::AgentRestarted)] {
            assert!(worth_keeping(cause), "{cause:?}");
        }
        for cause in [FailureCode::Cancelled, FailureCode::DigestMismatch, FailureCode::DiskWrite] {
            assert!(!worth_keeping(Some(cause)), "{cause:?}");
        }
        // A way back is no less a way back because somebody cancelled a revert.
        assert!(is_sound(Some(FailureCode::Cancelled)) && is_sound(None) && is_sound(Some(FailureCode::TargetRefused)));
        assert!(!is_sound(Some(FailureCode::DigestMismatch)) && !is_sound(Some(FailureCode::PoolFull)));
    }
}
