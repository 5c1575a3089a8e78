//! The files of a replica's layers: made, served, merged, removed.
//!
//! **Contract.** The journal's record says which layers there are; a file that it does not name is nobody's. What clones stand
//! on is never written to. Files are merged, and opened for a new clone, by one at a time ([`Host::layers_in_use`]): that may take
//! hours, and who would merge does it another time. Layers are begun and removed by one at a time too ([`hold`]), which is short.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sterna_shared::id::VmId;
use sterna_shared::job::Plan;
use sterna_shared::replica::{Replica, Retention};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{CacheMode, DiskSpec};
use tokio::sync::MutexGuard;
use tracing::{debug, info, warn};

use crate::disk::digest::{DigestTable, unpack};
use crate::disk::extent::{Extent, ExtentSet};
use crate::disk::nbd::Client;
use crate::disk::pool::{LayerFile, Note};
use crate::guest::launcher::Launched;
use crate::guest::storage_daemon::{self, Access};
use crate::host::{Host, PlacementError};
use crate::hypervisor::qemu::command_line::{Image, format_node};
use crate::hypervisor::qemu::{COMMAND_WAIT_MAX, Machine, MachineError};
use crate::journal::{JournalError, Part, ReplicaChange, ReplicaRecord};
use crate::migration::context::MoveError;
use crate::migration::images::{DAEMON_WAIT, ImageError, REPLICA, STORAGE_DAEMON};
use crate::migration::target_disks::TargetDiskError;

/// The context that tells which image of a chain has a range.
const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
/// What it says of a range that the uppermost image has for itself, as data or as zeroes.
const OWN_DEPTH: u32 = 1;
/// It is asked for in steps of this, so that no answer has more ranges than are accepted, however scattered they are.
const DEPTH_STEP: u64 = 64 << 30;
/// How long an export may take to go.
const EXPORT_REMOVAL_WAIT: Duration = Duration::from_secs(10);

/// Waits until nobody else begins or removes layers, for the time it takes to make or remove some files. Nobody does as long as what
/// is returned lives.
pub async fn hold(host: &Host) -> MutexGuard<'_, Option<VmId>> {
    host.layer_changes.lock().await
}

/// Makes the files of a new layer.
///
/// # Errors
/// [`ImageError`]; then none of them is left.
pub async fn make(host: &Host, replica: &Replica, layer: u32) -> Result<(), ImageError> {
    for disk in &replica.disks {
        let made = host.pool(disk)?.create_layer(replica.vm.id, &disk.name, LayerFile::Layer(layer), disk.size).await;
        if let Err(error) = made {
            remove(host, replica, layer);
            return Err(error.into());
        }
    }
    Ok(())
}

/// Whether a layer has all of its files.
#[must_use]
pub fn is_there(host: &Host, replica: &Replica, layer: u32) -> bool {
    replica.disks.iter().all(|disk| {
        let path = host.pool(disk).map(|pool| pool.layer_path(replica.vm.id, &disk.name, LayerFile::Layer(layer)));
        matches!(path, Ok(Ok(path)) if path.is_file())
    })
}

/// Removes the files of a layer; what does not go is told in the log, and is nobody's.
pub fn remove(host: &Host, replica: &Replica, layer: u32) {
    for disk in &replica.disks {
        let Ok(pool) = host.pool(disk) else { continue };
        if let Err(error) = pool.delete_layer(replica.vm.id, &disk.name, LayerFile::Layer(layer)) {
            warn!(vm = %replica.vm.id, layer, %error, "a file of a replica is left over");
        }
    }
}

/// Serves a layer to be filled, on those that the replica has.
///
/// # Errors
/// [`ImageError`].
pub async fn serve(host: &Host, plan: &Plan, replica: &Replica, layer: u32) -> Result<Launched, ImageError> {
    let mut images = Vec::new();
    for disk in &replica.disks {
        let pool = host.pool(disk)?;
        let path = |layer| pool.layer_path(replica.vm.id, &disk.name, LayerFile::Layer(layer));
        let layers = replica.layers.iter().map(|layer| path(layer.number)).collect::<Result<_, _>>()?;
        images.push((disk, Image { path: path(layer)?, kind: pool.kind(), layers }));
    }
    let access = Access::Write { raw_files: host.cache_of_copies() };
    let runtime = host.storage_runtime(plan.job, REPLICA).map_err(PlacementError::from)?;
    let unit = format!("sterna-job-{}-{REPLICA}", plan.job);
    Ok(storage_daemon::serve(Path::new(STORAGE_DAEMON), &images, access, &runtime, unit, DAEMON_WAIT).await?)
}

/// What the image of a disk has for itself in a layer that is served to be filled, data and zeroes: all that was ever written to it,
/// whatever was written down of that.
///
/// # Errors
/// QEMU does not say.
pub async fn own_content(
    machine: &Machine,
    socket: &Path,
    index: usize,
    disk: &DiskSpec,
) -> Result<ExtentSet, MoveError> {
    let id = format!("sterna-layer-{index}");
    let export = json!({
        "type": "nbd", "id": id, "node-name": format_node(&disk.name), "name": id, "writable": false,
        "allocation-depth": true,
    });
    let added = machine.qmp().execute("block-export-add", export, COMMAND_WAIT_MAX).await;
    added.map_err(MachineError::from)?;
    let open = |source| TargetDiskError::Open { disk: index, source };
    let client = Client::connect(socket, &id, &[ALLOCATION_DEPTH], 1).await.map_err(open)?;
    let mut own = ExtentSet::new();
    for range in Extent::new(0, client.size()).into_iter().flat_map(|whole| whole.split(DEPTH_STEP)) {
        let statuses = client.block_status(ALLOCATION_DEPTH, range).await.map_err(open)?;
        statuses.iter().filter(|status| status.flags == OWN_DEPTH).for_each(|status| own.insert(status.extent));
    }
    client.close().await;
    machine.export_remove(&id, EXPORT_REMOVAL_WAIT).await?;
    Ok(own)
}

/// Serves a layer and those below it, to be read from the medium.
///
/// # Errors
/// [`ImageError`].
pub async fn serve_to_read(host: &Host, plan: &Plan, replica: &Replica, layer: u32) -> Result<Launched, ImageError> {
    let disks: Vec<DiskSpec> =
        replica.disks.iter().map(|disk| DiskSpec { cache: CacheMode::None, ..disk.clone() }).collect();
    let mut images = Vec::new();
    for disk in &disks {
        let mut layers = files_of(host, replica, disk, layer)?;
        let path = layers.pop().unwrap_or_default();
        images.push((disk, Image { path, kind: host.pool(disk)?.kind(), layers }));
    }
    let runtime = host.storage_runtime(plan.job, REPLICA).map_err(PlacementError::from)?;
    let unit = format!("sterna-job-{}-{REPLICA}", plan.job);
    Ok(storage_daemon::serve(Path::new(STORAGE_DAEMON), &images, Access::Read, &runtime, unit, DAEMON_WAIT).await?)
}

/// What a disk of a replica holds, as far as was noted when its latest layer was made.
#[must_use]
pub fn table(host: &Host, replica: &Replica, disk: &DiskSpec) -> Option<DigestTable> {
    table_of(host, replica, disk, replica.layers.last()?.number)
}

/// As [`table`], of a layer with those below it.
#[must_use]
pub fn table_of(host: &Host, replica: &Replica, disk: &DiskSpec, layer: u32) -> Option<DigestTable> {
    let read = host.pool(disk).ok()?.read_note(replica.vm.id, &disk.name, layer, Note::Digests);
    let chunks = read.ok().and_then(|bytes| unpack(&bytes))?;
    let mut table = DigestTable::new(disk.size.0);
    if chunks.len() != table.count() {
        return None;
    }
    chunks.into_iter().enumerate().for_each(|(index, chunk)| table.set(index, chunk));
    Some(table)
}

/// Gives up the snapshots that are not to be kept, and merges or removes layers that are needed no more. Layers for which there is
/// no room, or while others are merged or copied, are merged another time: after the next cycle, or by the agent where none comes.
///
/// # Errors
/// The journal cannot be written, or layers cannot be merged: what is left is merged the next time.
pub async fn tidy(host: &Host, vm: VmId, retention: Option<Retention>) -> Result<(), ImageError> {
    {
        let _changes = hold(host).await;
        let Some(record) = host.journal.replica(vm)? else { return Ok(()) };
        remove_orphans(host, &record.replica, record.part.as_ref());
    }
    let change = retention.map_or(ReplicaChange::Keep, ReplicaChange::Prune);
    let mut state = host.journal.change_replica(vm, change).await?;
    while let Some((record, used)) = state {
        if record.dropped && used.is_empty() {
            return forget(host, vm).await.map_err(ImageError::from);
        }
        if record.replica.mergeable(&used).is_none() {
            return Ok(());
        }
        // Whoever copies a replica holds it for hours, and a cycle is not over before this is.
        let Ok(_in_use) = host.layers_in_use.try_lock() else {
            debug!(%vm, "layers are merged later, since others are being merged or copied");
            return Ok(());
        };
        state = merge_next(host, vm).await?;
    }
    Ok(())
}

/// Whether it looks as if layers of a replica could be merged now: nobody merges or copies any, and there is room. Clones may stand
/// on them all the same.
#[must_use]
pub fn may_be_merged(host: &Host, record: &ReplicaRecord) -> bool {
    let next = record.replica.mergeable(&BTreeSet::new());
    next.is_some_and(|(_, upper)| has_room_to_merge(host, &record.replica, upper))
        && host.layers_in_use.try_lock().is_ok()
}

/// Merges two layers, while no others are merged or copied: how the replica is then, where there may be more to do.
async fn merge_next(host: &Host, vm: VmId) -> Result<Option<(ReplicaRecord, BTreeSet<u32>)>, ImageError> {
    let mut changes = hold(host).await;
    // Since it was looked at, a clone may have come to stand on them.
    let Some((record, used)) = host.journal.change_replica(vm, ReplicaChange::Keep).await? else { return Ok(None) };
    let Some((lower, upper)) = record.replica.mergeable(&used) else { return Ok(None) };
    if !has_room_to_merge(host, &record.replica, upper) {
        warn!(%vm, lower, upper, "layers are not merged until their pool has room for what is there twice meanwhile");
        return Ok(None);
    }
    *changes = Some(vm);
    drop(changes);
    let merged = merge(host, &record.replica, lower, upper).await;
    *hold(host).await = None;
    merged
}

/// What the upper layer takes is written into the lower one before it is removed.
fn has_room_to_merge(host: &Host, replica: &Replica, upper: u32) -> bool {
    host.has_room_to_merge(replica.disks.iter().map(|disk| {
        let taken = host.pool(disk).map(|pool| pool.layer_allocated(replica.vm.id, &disk.name, upper));
        (disk, taken.unwrap_or(ByteCount(0)))
    }))
}

/// Merges a layer into the one below it, in the files and then in the record.
async fn merge(
    host: &Host,
    replica: &Replica,
    lower: u32,
    upper: u32,
) -> Result<Option<(ReplicaRecord, BTreeSet<u32>)>, ImageError> {
    let vm = replica.vm.id;
    merge_files(host, replica, lower, upper).await?;
    let merged = host.journal.change_replica(vm, ReplicaChange::Merged { lower, upper }).await?;
    // Where there are as many as before, a clone stands on it by now.
    let Some((after, used)) = merged.filter(|(after, _)| after.replica.layers.len() != replica.layers.len()) else {
        return Ok(None);
    };
    remove(host, replica, upper);
    info!(%vm, lower, upper, "layers merged");
    Ok(Some((after, used)))
}

async fn merge_files(host: &Host, replica: &Replica, lower: u32, upper: u32) -> Result<(), ImageError> {
    let Some(layers) = replica.chain(upper) else { return Ok(()) };
    for disk in &replica.disks {
        let pool = host.pool(disk)?;
        pool.merge_layer(replica.vm.id, &disk.name, &layers).await?;
        pool.take_over_note(replica.vm.id, &disk.name, Note::Variables, upper, lower)?;
        // Without them the next cycle compares nothing, and sends everything.
        if let Err(error) = pool.take_over_note(replica.vm.id, &disk.name, Note::Digests, upper, lower) {
            warn!(vm = %replica.vm.id, disk = %disk.name, %error, "the digests of a layer are not there");
        }
    }
    Ok(())
}

/// Removes a replica that nobody wants and nobody stands on, the record after the files: an agent that falls out in between removes
/// it anew. One whose layers are being merged goes another time.
async fn forget(host: &Host, vm: VmId) -> Result<(), JournalError> {
    let merging = hold(host).await;
    if *merging == Some(vm) {
        return Ok(());
    }
    // Since it was looked at, it may have been removed, and begun anew.
    let state = host.journal.change_replica(vm, ReplicaChange::Keep).await?;
    let Some((record, _)) = state.filter(|(record, used)| record.dropped && used.is_empty()) else { return Ok(()) };
    let replica = &record.replica;
    let part = record.part.iter().map(|part| part.number);
    replica.layers.iter().map(|layer| layer.number).chain(part).for_each(|layer| remove(host, replica, layer));
    host.journal.change_replica(vm, ReplicaChange::Forget).await?;
    info!(%vm, "replica removed");
    Ok(())
}

/// Removes the files of layers that the record does not name: an agent fell out between the two. Where a cycle may begin meanwhile
/// the record is read, and this is done, in one [`hold`].
pub fn remove_orphans(host: &Host, replica: &Replica, part: Option<&Part>) {
    let numbers = replica.layers.iter().map(|layer| layer.number);
    let known: BTreeSet<u32> = numbers.chain(part.map(|part| part.number)).collect();
    for disk in &replica.disks {
        let Ok(pool) = host.pool(disk) else { continue };
        for layer in pool.layers_there(replica.vm.id, &disk.name).into_iter().filter(|layer| !known.contains(layer)) {
            info!(vm = %replica.vm.id, layer, "a file of a replica that is in no record goes");
            let _ = pool.delete_layer(replica.vm.id, &disk.name, LayerFile::Layer(layer));
        }
    }
}

/// The files that a snapshot of one disk consists of, the lowest first.
///
/// # Errors
/// The pool is not here.
pub fn files_of(host: &Host, replica: &Replica, disk: &DiskSpec, layer: u32) -> Result<Vec<PathBuf>, ImageError> {
    let pool = host.pool(disk)?;
    let layers = replica.chain(layer).unwrap_or_default();
    let paths = layers.into_iter().map(|layer| pool.layer_path(replica.vm.id, &disk.name, LayerFile::Layer(layer)));
    Ok(paths.collect::<Result<_, _>>()?)
}
