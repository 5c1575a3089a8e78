//! The files of a VM on this host, made, served and removed: what a move must leave behind, and what it must not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sterna_shared::id::VmId;
use sterna_shared::job::Plan;
use sterna_shared::vm::{DiskSpec, Firmware, VmSpec};
use tracing::{info, warn};

use crate::disk::pool::PoolError;
use crate::guest::launcher::{self, AttachError, LaunchError, Launched};
use crate::guest::storage_daemon::{self, Access};
use crate::host::{Host, PlacementError};
use crate::journal::JournalError;
use crate::migration::cutover;

/// QEMU's storage daemon.
pub const STORAGE_DAEMON: &str = "qemu-storage-daemon";
/// How long a storage daemon may take to answer, and to end in good order.
pub const DAEMON_WAIT: Duration = Duration::from_secs(20);

/// How long one of an earlier agent may take to answer.
const LEFTOVER_WAIT: Duration = Duration::from_secs(2);
/// The two parts that a storage daemon can play in a job.
const SOURCE: &str = "source";
const TARGET: &str = "target";
/// And in a cycle of a replication, at its target.
pub const REPLICA: &str = "replica";
/// The helper guest that adapts a clone.
pub const ADAPTER: &str = "adapter";

/// Why a VM's files could not be made or served.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A part of the VM is not here.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A file could not be made or read.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The template of a UEFI variable store could not be read.
    #[error("the UEFI variable template {} could not be read; install the ovmf package anew", path.display())]
    Template {
        /// The template.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is where a new image is to be.
    #[error("{} is there already; remove it if nothing needs it, or choose another pool", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
    },
    /// Images that nobody needs any more did not go.
    #[error("images of VM {vm} could not be removed, and are left over; the agent's log says why")]
    LeftOver {
        /// The VM, after which their directory is named.
        vm: VmId,
    },
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is kept of a UEFI guest's variables is not what it was.
    #[error("the UEFI variables in layer {layer} of the replica are not what was written there")]
    VariablesDamaged {
        /// The layer.
        layer: u32,
    },
    /// The seed of a clone could not be put together.
    #[error("the seed of the clone, for its cloud-init, could not be put together")]
    Seed(#[source] std::io::Error),
    /// The peer sent no variable store for a UEFI guest.
    #[error("the VM has UEFI firmware, and the source sent no variable store")]
    NoVariables,
    /// The storage daemon did not start.
    #[error("qemu-storage-daemon did not start; install qemu-system-common or qemu-utils")]
    Daemon(#[from] LaunchError),
}

/// Makes what a newly defined VM needs and does not find: its images, empty, and its UEFI variables. What is there
/// already is checked and kept. On failure nothing new is left.
///
/// # Errors
/// [`ImageError`].
pub async fn make_defined(host: &Host, spec: &VmSpec) -> Result<(), ImageError> {
    let mut made = Vec::new();
    for disk in &spec.disks {
        let pool = host.pool(disk)?;
        let outcome = if pool.image_path(spec.id, &disk.name, disk.format).exists() {
            pool.check(spec.id, &disk.name, disk.format, disk.size).await.map(drop)
        } else {
            pool.create(spec.id, &disk.name, disk.format, disk.size).await.map(|_| made.push(disk))
        };
        if let Err(error) = outcome {
            remove(host, spec.id, &made).await;
            return Err(error.into());
        }
    }
    // What an earlier VM of that id has left may have no keys, and firmware without keys starts anything.
    let store = if spec.secure_boot { renew_variable_store } else { ensure_variable_store };
    if let Err(error) = store(host, spec) {
        remove(host, spec.id, &made).await;
        return Err(error);
    }
    Ok(())
}

/// Makes a UEFI guest's variable store from the firmware's template, where it is not there yet.
///
/// # Errors
/// [`ImageError`].
pub fn ensure_variable_store(host: &Host, spec: &VmSpec) -> Result<(), ImageError> {
    if spec.firmware != Firmware::Uefi || host.variable_store(spec)?.exists() {
        return Ok(());
    }
    renew_variable_store(host, spec)
}

/// Makes a UEFI guest's variable store from the firmware's template, in place of one that may be there.
///
/// # Errors
/// [`ImageError`].
pub fn renew_variable_store(host: &Host, spec: &VmSpec) -> Result<(), ImageError> {
    let path = &host.uefi_firmware(spec)?.variables_template;
    let template = std::fs::read(path).map_err(|source| ImageError::Template { path: path.clone(), source })?;
    replace_variable_store(host, spec, &template)
}

/// Makes the variable store of `to` what that of `from` is: the same VM, whose first disk has changed its pool.
///
/// # Errors
/// [`ImageError`].
pub fn copy_variable_store(host: &Host, from: &VmSpec, to: &VmSpec) -> Result<(), ImageError> {
    let disk = from.disks.first().ok_or(PlacementError::NoPlaceForVariables)?;
    replace_variable_store(host, to, &host.pool(disk)?.read_variable_store(from.id)?)
}

/// Makes a VM's variable store, in place of one that may be there.
///
/// # Errors
/// [`ImageError`].
pub fn replace_variable_store(host: &Host, spec: &VmSpec, content: &[u8]) -> Result<(), ImageError> {
    remove_variable_store(host, spec);
    write_variable_store(host, spec, content)
}

/// Removes all files of a VM; whether its images are gone.
pub async fn remove_all(host: &Host, spec: &VmSpec) -> bool {
    remove_variable_store(host, spec);
    remove(host, spec.id, &spec.disks.iter().collect::<Vec<_>>()).await
}

/// What of a UEFI guest's variables goes with its disks.
///
/// # Errors
/// The store cannot be read.
pub fn read_variable_store(host: &Host, plan: &Plan) -> Result<Option<Vec<u8>>, ImageError> {
    if !carries_variables(plan) {
        return Ok(None);
    }
    let Some(disk) = plan.vm.disks.first() else { return Ok(None) };
    Ok(Some(host.pool(disk)?.read_variable_store(plan.vm.id)?))
}

/// Makes what a storage move needs: an empty image for each disk that moves, and the UEFI variables. The journal knows of
/// it first, so that a crash leaves nothing that nobody removes. On failure nothing is left.
///
/// # Errors
/// [`ImageError`]; also where a file is there already, which is then left alone.
pub async fn prepare_incoming(host: &Host, plan: &Plan, variables: Option<Vec<u8>>) -> Result<(), ImageError> {
    let disks: Vec<DiskSpec> = plan.disks.iter().map(|disk| disk.target.clone()).collect();
    expect_free(host, plan.vm.id, &disks)?;
    host.journal.note_images_made(plan.job, true).await?;
    let made = make_incoming(host, plan, &disks, variables).await;
    if made.is_err() {
        host.journal.note_images_made(plan.job, false).await?;
    }
    made
}

/// Checks that no file is where these images are to be.
///
/// # Errors
/// [`ImageError::InTheWay`], or a disk's pool is not here.
pub fn expect_free<'a>(host: &Host, vm: VmId, disks: impl IntoIterator<Item = &'a DiskSpec>) -> Result<(), ImageError> {
    for disk in disks {
        let path = host.pool(disk)?.image_path(vm, &disk.name, disk.format);
        if path.exists() {
            return Err(ImageError::InTheWay { path });
        }
    }
    Ok(())
}

/// Makes those of a move's images at its target that are `missing`, and the UEFI variables. On failure none of these is
/// left.
///
/// # Errors
/// [`ImageError`].
pub async fn make_incoming(
    host: &Host,
    plan: &Plan,
    missing: &[DiskSpec],
    variables: Option<Vec<u8>>,
) -> Result<(), ImageError> {
    let mut made = Vec::new();
    let outcome = async {
        for disk in missing {
            host.pool(disk)?.create_to_fill(plan.vm.id, &disk.name, disk.format, disk.size).await?;
            made.push(disk);
        }
        match variables {
            _ if !carries_variables(plan) => Ok(()),
            // One that is there is nobody's, since the VM is not here.
            Some(variables) => replace_variable_store(host, &plan.vm_at_target, &variables),
            None => Err(ImageError::NoVariables),
        }
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        remove(host, plan.vm.id, &made).await;
    }
    outcome
}

/// Removes what was made for a move at its target.
pub async fn remove_incoming(host: &Host, plan: &Plan) {
    remove(host, plan.vm.id, &plan.disks.iter().map(|disk| &disk.target).collect::<Vec<_>>()).await;
    remove_incoming_variables(host, plan);
}

/// Removes the UEFI variables that were made for a move at its target.
pub fn remove_incoming_variables(host: &Host, plan: &Plan) {
    if carries_variables(plan) {
        remove_variable_store(host, &plan.vm_at_target);
    }
}

/// Removes the source's copies of what a move has carried away, or puts them aside where they are to be kept. Those of a cutover
/// stay where they are, for the way back.
pub async fn remove_moved(host: &Host, plan: &Plan) {
    let disks: Vec<&DiskSpec> = plan.disks.iter().map(|disk| &disk.source).collect();
    match plan.settings.keep_source_images {
        true => keep(host, plan, &disks),
        false if cutover::keep_way_back(host, plan).await => {}
        false => drop(remove(host, plan.vm.id, &disks).await),
    }
    if carries_variables(plan) {
        remove_variable_store(host, &plan.vm);
    }
}

/// Serves the images of a stopped VM that are to be read.
///
/// # Errors
/// [`ImageError`].
pub async fn serve_source(host: &Host, plan: &Plan) -> Result<Launched, ImageError> {
    serve(host, plan, plan.disks.iter().map(|disk| &disk.source), Access::Read, SOURCE).await
}

/// Serves all images of a stopped VM, to be read through.
///
/// # Errors
/// [`ImageError`].
pub async fn serve_whole(host: &Host, plan: &Plan) -> Result<Launched, ImageError> {
    serve(host, plan, plan.vm.disks.iter(), Access::Read, SOURCE).await
}

/// Serves the images of a stopped VM that are to be filled.
///
/// # Errors
/// [`ImageError`].
pub async fn serve_target(host: &Host, plan: &Plan) -> Result<Launched, ImageError> {
    let access = Access::Write { raw_files: host.cache_of_copies() };
    serve(host, plan, plan.disks.iter().map(|disk| &disk.target), access, TARGET).await
}

/// Ends storage daemons and helper guests that an earlier agent has left of a job.
pub async fn end_leftover_daemons(host: &Host, plan: &Plan) {
    for part in [SOURCE, TARGET, REPLICA, ADAPTER] {
        let Ok(runtime) = host.storage_runtime(plan.job, part) else { continue };
        match launcher::attach(&runtime, LEFTOVER_WAIT).await {
            Ok(Some(daemon)) => end_daemon(daemon).await,
            Ok(None) => drop(runtime.remove()),
            Err(AttachError::Unreachable { process, .. }) => {
                if let Err(error) = process.kill(Duration::ZERO).await {
                    warn!(job = %plan.job, %error, "a storage daemon is left over");
                }
            }
            Err(error) => warn!(job = %plan.job, %error, "a storage daemon is left over"),
        }
    }
}

/// Ends a storage daemon, in good order first, so that its images are closed well.
pub async fn end_daemon(daemon: Launched) {
    let _ = daemon.machine.quit().await;
    let runtime = daemon.runtime.clone();
    if let Err(error) = daemon.end(DAEMON_WAIT).await {
        warn!(directory = %runtime.path().display(), %error, "a storage daemon is left over");
    }
}

async fn serve<'a>(
    host: &Host,
    plan: &Plan,
    disks: impl Iterator<Item = &'a DiskSpec>,
    access: Access,
    part: &str,
) -> Result<Launched, ImageError> {
    let mut images = Vec::new();
    for disk in disks {
        images.push((disk, host.image(plan.vm.id, disk)?));
    }
    let runtime = host.storage_runtime(plan.job, part).map_err(PlacementError::from)?;
    let unit = format!("sterna-job-{}-{part}", plan.job);
    Ok(storage_daemon::serve(Path::new(STORAGE_DAEMON), &images, access, &runtime, unit, DAEMON_WAIT).await?)
}

/// The variables live beside the VM's first disk: they go where it goes, and stay where only its format changes.
fn carries_variables(plan: &Plan) -> bool {
    let Some(first) = plan.vm.disks.first().filter(|_| plan.vm.firmware == Firmware::Uefi) else { return false };
    let moved = plan.disks.iter().find(|disk| disk.source.name == first.name);
    moved.is_some_and(|disk| plan.source.id != plan.target.id || disk.source.pool != disk.target.pool)
}

fn write_variable_store(host: &Host, spec: &VmSpec, content: &[u8]) -> Result<(), ImageError> {
    let disk = spec.disks.first().ok_or(PlacementError::NoPlaceForVariables)?;
    host.pool(disk)?.create_variable_store(spec.id, content)?;
    Ok(())
}

fn remove_variable_store(host: &Host, spec: &VmSpec) {
    if let Some(disk) = spec.disks.first().filter(|_| spec.firmware == Firmware::Uefi) {
        remove_variables_beside(host, spec.id, disk);
    }
}

/// Removes the variable store of a VM that has this for its first disk, if it has one.
pub fn remove_variables_beside(host: &Host, vm: VmId, disk: &DiskSpec) {
    let removed = host.pool(disk).map(|pool| pool.delete_variable_store(vm));
    if let Ok(Err(error)) = removed {
        warn!(%vm, %error, "a UEFI variable store is left over");
    }
}

/// Puts images aside, where no disk of any VM is looked for.
fn keep(host: &Host, plan: &Plan, disks: &[&DiskSpec]) {
    let vm = plan.vm.id;
    for disk in disks {
        let Ok(pool) = host.pool(disk) else { continue };
        match pool.set_aside(vm, &disk.name, disk.format, &format!("kept-{}", plan.job)) {
            Ok(path) => info!(%vm, disk = %disk.name, path = %path.display(), "image kept, as the job asks"),
            Err(error) => {
                warn!(%vm, disk = %disk.name, %error, "an image could not be put aside, and stays where it was")
            }
        }
    }
}

/// Removes images; whether all are gone. What was gone already is no fault; what does not go is told in the log.
pub async fn remove(host: &Host, vm: VmId, disks: &[&DiskSpec]) -> bool {
    let mut gone = true;
    for disk in disks {
        let Ok(pool) = host.pool(disk) else { continue };
        match pool.delete(vm, &disk.name, disk.format).await {
            Ok(()) => info!(%vm, disk = %disk.name, pool = %disk.pool, "image removed"),
            Err(error) => {
                gone = false;
                warn!(%vm, disk = %disk.name, %error, "an image is left over");
            }
        }
    }
    gone
}
