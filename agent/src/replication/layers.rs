//! The files of a replica's layers: made, served, merged, removed.
//!
//! **Contract.** The journal's record says which layers there are; a file that it does not name is nobody's. What clones stand
//! on is never written to. Files are merged, and opened for a new clone, by one at a time ([`Host::layers_in_use`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sterna_shared::id::VmId;
use sterna_shared::job::Plan;
use sterna_shared::replica::{Replica, Retention};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{CacheMode, DiskSpec};
use tracing::{info, warn};

use crate::disk::digest::{DigestTable, unpack};
use crate::disk::pool::{LayerFile, Note};
use crate::guest::launcher::Launched;
use crate::guest::storage_daemon::{self, Access};
use crate::host::{Host, PlacementError};
use crate::hypervisor::qemu::command_line::Image;
use crate::journal::{JournalError, Part, ReplicaChange, ReplicaRecord};
use crate::migration::images::{DAEMON_WAIT, ImageError, REPLICA, STORAGE_DAEMON};

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
/// no room are merged another time.
///
/// # Errors
/// The journal cannot be written, or layers cannot be merged: what is left is merged the next time.
pub async fn tidy(host: &Host, vm: VmId, retention: Option<Retention>) -> Result<(), ImageError> {
    let Some(record) = host.journal.replica(vm)? else { return Ok(()) };
    remove_orphans(host, &record.replica, record.part.as_ref());
    let change = retention.map_or(ReplicaChange::Keep, ReplicaChange::Prune);
    let mut state = host.journal.change_replica(vm, change).await?;
    while let Some((record, used)) = state {
        if record.dropped && used.is_empty() {
            return forget(host, &record).await.map_err(ImageError::from);
        }
        let _in_use = host.layers_in_use.lock().await;
        let Some((lower, upper)) = record.replica.mergeable(&used) else { return Ok(()) };
        if !has_room_to_merge(host, &record.replica, upper) {
            warn!(%vm, lower, upper, "layers are not merged until their pool has room for what is there twice meanwhile");
            return Ok(());
        }
        merge(host, &record.replica, lower, upper).await?;
        let merged = host.journal.change_replica(vm, ReplicaChange::Merged { lower, upper }).await?;
        let Some((after, used)) = merged else { return Ok(()) };
        if after.replica.layers.len() == record.replica.layers.len() {
            return Ok(()); // A clone stands on it by now.
        }
        remove(host, &record.replica, upper);
        info!(%vm, lower, upper, "layers merged");
        state = Some((after, used));
    }
    Ok(())
}

/// What the upper layer takes is written into the lower one before it is removed.
fn has_room_to_merge(host: &Host, replica: &Replica, upper: u32) -> bool {
    host.has_room_to_merge(replica.disks.iter().map(|disk| {
        let taken = host.pool(disk).map(|pool| pool.layer_allocated(replica.vm.id, &disk.name, upper));
        (disk, taken.unwrap_or(ByteCount(0)))
    }))
}

async fn merge(host: &Host, replica: &Replica, lower: u32, upper: u32) -> Result<(), ImageError> {
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

/// Nobody wants it and nobody stands on it: its record goes first.
async fn forget(host: &Host, record: &ReplicaRecord) -> Result<(), JournalError> {
    let replica = &record.replica;
    host.journal.change_replica(replica.vm.id, ReplicaChange::Forget).await?;
    let part = record.part.iter().map(|part| part.number);
    replica.layers.iter().map(|layer| layer.number).chain(part).for_each(|layer| remove(host, replica, layer));
    info!(vm = %replica.vm.id, "replica removed");
    Ok(())
}

/// Removes the files of layers that the record does not name: an agent fell out between the two.
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
