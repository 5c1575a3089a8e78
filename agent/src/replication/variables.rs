//! A replicated UEFI guest's variables, as they were at a snapshot's point in time.
//!
//! They come whole with every cycle, and are kept in one small file beside the layer of the VM's first disk, a digest before them.
//! Where the layer is merged they go with it.

use sterna_shared::job::Plan;
use sterna_shared::replica::Replica;
use sterna_shared::vm::{Firmware, VmSpec};

use crate::disk::pool::{Note, PoolError, VARIABLE_STORE_MAX};
use crate::host::{Host, PlacementError};
use crate::migration::images::{self, ImageError};

/// How often it is read anew while the guest writes to it. One that is cut short by a loss of power it puts in order by itself, and
/// what is read so is no worse.
const READINGS_MAX: usize = 5;

/// The variables of the VM that a cycle replicates, if it has any.
///
/// # Errors
/// The store cannot be read.
pub fn capture(host: &Host, plan: &Plan) -> Result<Option<Vec<u8>>, ImageError> {
    let mut read = images::read_variable_store(host, plan)?;
    for _ in 1..READINGS_MAX {
        let again = images::read_variable_store(host, plan)?;
        if again == read {
            break;
        }
        read = again;
    }
    Ok(read)
}

/// Keeps them with a layer, on stable storage.
///
/// # Errors
/// There are none, or far too many, or the file system fails.
pub fn write(host: &Host, replica: &Replica, layer: u32, content: &[u8]) -> Result<(), ImageError> {
    if content.is_empty() || content.len() > VARIABLE_STORE_MAX {
        return Err(PoolError::VariableStore { length: content.len() }.into());
    }
    let disk = replica.disks.first().ok_or(PlacementError::NoPlaceForVariables)?;
    let kept = [blake3::hash(content).as_bytes().as_slice(), content].concat();
    Ok(host.pool(disk)?.write_note(replica.vm.id, &disk.name, layer, Note::Variables, &kept)?)
}

/// What was written so.
///
/// # Errors
/// It is not there, or no longer what it was.
pub fn read(host: &Host, replica: &Replica, layer: u32) -> Result<Vec<u8>, ImageError> {
    let disk = replica.disks.first().ok_or(PlacementError::NoPlaceForVariables)?;
    let kept = host.pool(disk)?.read_note(replica.vm.id, &disk.name, layer, Note::Variables)?;
    match kept.split_first_chunk::<32>() {
        Some((digest, content)) if blake3::hash(content) == *digest => Ok(content.to_vec()),
        _ => Err(ImageError::VariablesDamaged { layer }),
    }
}

/// Gives a VM that is made of a snapshot the variables of its layer. Where these are lost, its disks are not: it begins with those
/// of the firmware's template, and the answer says why. So does one with secure boot whose VM has none, and the other way round: the
/// keys, or that there are none, are among the variables.
///
/// # Errors
/// They cannot be written.
pub fn place(host: &Host, replica: &Replica, layer: u32, spec: &VmSpec) -> Result<Option<String>, ImageError> {
    if spec.firmware == Firmware::Bios {
        return Ok(None);
    }
    if spec.secure_boot != replica.vm.secure_boot {
        images::renew_variable_store(host, spec)?;
        let with = if spec.secure_boot { "with" } else { "without" };
        return Ok(Some(format!(
            "it is {with} secure boot, unlike VM {}: it begins with the firmware's own UEFI variables, and since the VM's boot entries \
             are not among them it starts \\EFI\\BOOT\\BOOTX64.EFI",
            replica.vm.name
        )));
    }
    match read(host, replica, layer) {
        Ok(content) => images::replace_variable_store(host, spec, &content).map(|()| None),
        Err(lost) => {
            images::ensure_variable_store(host, spec)?;
            Ok(Some(format!(
                "it begins with the firmware's own UEFI variables, and finds its system by itself: {lost}"
            )))
        }
    }
}
