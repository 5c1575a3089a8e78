//! What a cutover begins with at its target, and what it leaves at its source.
//!
//! ```text
//!   target   layers of the replica ──copy──▶ images, held ──▶ a move that finds what an earlier one has left
//!   source   images ──▶ kept for the way back ──▶ the move back finds them likewise
//! ```
//!
//! All in between is a move ([`super::source`], [`super::target`]). What is held is compared, and never believed: a layer that is
//! older than was thought, or damaged, costs that more is sent.

use sterna_shared::job::Plan;
use sterna_shared::vm::DiskSpec;
use tracing::{info, warn};

use super::images::ImageError;
use crate::clock;
use crate::disk::extent::{Extent, ExtentSet};
use crate::disk::pool::{LayerFile, Pool};
use crate::host::Host;
use crate::journal::{Kept, Partial, PartialDisk};

/// Copies what the replica holds into those images of a cutover that hold nothing, and notes it as held: those that were just made,
/// and those that an earlier one was copying into when it was cut. A disk that the replica has not is left empty.
///
/// # Errors
/// [`ImageError`]; what was copied until then is noted.
pub async fn fill(host: &Host, plan: &Plan, held: &mut [Option<ExtentSet>]) -> Result<(), ImageError> {
    let Some(of) = &plan.cutover else { return Ok(()) };
    for (index, disk) in plan.disks.iter().map(|moved| &moved.target).enumerate() {
        let is_to_fill = held.get(index).is_some_and(|held| held.as_ref().is_none_or(ExtentSet::is_empty));
        if !is_to_fill || !copy(host, plan, disk, of.snapshot).await? {
            continue;
        }
        held[index] = Some(whole(disk));
        let received = held.iter().map(|held| held.clone().unwrap_or_default()).collect();
        host.journal.note_received(plan.vm.id, plan.job, received).await?;
    }
    Ok(())
}

/// Whether there is anything to copy.
async fn copy(host: &Host, plan: &Plan, disk: &DiskSpec, snapshot: u32) -> Result<bool, ImageError> {
    let vm = plan.vm.id;
    let image = host.pool(disk)?.image_path(vm, &disk.name, disk.format);
    // Layers are merged and removed by one at a time.
    let _in_use = host.layers_in_use.lock().await;
    let Some(record) = host.journal.replica(vm)?.filter(|record| !record.dropped) else { return Ok(false) };
    let replica = record.replica;
    let origin = replica.disks.iter().find(|origin| origin.name == disk.name && origin.size == disk.size);
    // The snapshot may have been given up since the job was planned: any will do.
    let layer = replica.layer_of(snapshot).or_else(|| Some(replica.layers.last()?.number));
    let (Some(origin), Some(layers)) = (origin, layer.and_then(|layer| replica.chain(layer))) else { return Ok(false) };
    let pool = host.pool(origin)?;
    let files = layers.into_iter().map(|layer| pool.layer_path(vm, &disk.name, LayerFile::Layer(layer)));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    pool.copy_layers(&files, &image, disk.format).await?;
    info!(%vm, disk = %disk.name, layers = files.len(), "image made of the replica");
    Ok(true)
}

fn whole(disk: &DiskSpec) -> ExtentSet {
    Extent::new(0, disk.size.0).into_iter().collect()
}

/// The target has the VM: the source's images are kept for the way back, where the plan says so and their pools may keep any.
/// Whether they are; what is not is the caller's to remove.
pub async fn keep_way_back(host: &Host, plan: &Plan) -> bool {
    let seconds = plan.cutover.as_ref().map_or(0, |of| of.revert_seconds);
    let keeps = plan.disks.iter().all(|disk| host.pool(&disk.source).is_ok_and(Pool::may_keep));
    if seconds == 0 || plan.disks.is_empty() || !keeps {
        return false;
    }
    let disks = plan.disks.iter().map(|disk| PartialDisk::new(disk.source.clone(), &whole(&disk.source))).collect();
    let (vm, name, job) = (plan.vm.id, plan.vm.name.clone(), plan.job);
    let kept = Some(Kept { since: clock::now(), given_up: false });
    let kept =
        host.journal.begin_partial(Partial { vm, name, job, disks, kept, way_back_seconds: Some(seconds) }).await;
    match kept {
        Ok(()) => info!(%vm, seconds, "images kept for the way back"),
        Err(ref error) => warn!(%vm, %error, "the way back is not kept"),
    }
    kept.is_ok()
}
