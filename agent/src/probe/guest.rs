//! A guest, measured by asking its QEMU, and what the kernel says of that.

use std::time::Duration;

use sterna_shared::probe::GuestReport;
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::vm::DiskSpec;
use tokio::time::{Instant, timeout, timeout_at};

use super::in_words;
use crate::guest::process;
use crate::hypervisor::qemu::{Machine, RunState};
use crate::migration::keeper::Keeper;

/// How long a VM's keeper may take to say which QEMU it has: it may be about to start one.
const KEEPER_WAIT_MAX: Duration = Duration::from_millis(250);
/// How long QEMU may take beyond the time of a measurement.
const OVERTIME_MAX: Duration = Duration::from_millis(400);
/// How long all of it may take: what is missing by then is told as missing. A QEMU before 8.2 measures for a second.
const GUEST_WAIT_MAX: Duration = Duration::from_millis(1500);

/// Measures the guest that `keeper` keeps; none where this host does not have the VM.
pub(super) async fn measure(keeper: Option<Keeper>, time: Duration) -> GuestReport {
    let Some(keeper) = keeper else { return GuestReport::unknown("this host has no such VM") };
    match timeout(KEEPER_WAIT_MAX, keeper.machine()).await {
        Ok(Ok(Some(machine))) => measure_machine(&machine, &keeper.record().spec.disks, time).await,
        Ok(Ok(None)) => GuestReport::unknown("the VM is stopped"),
        Ok(Err(stopping)) => GuestReport::unknown(&in_words(&stopping)),
        Err(_) => GuestReport::unknown("the VM is being started, stopped or handed over; ask again in a moment"),
    }
}

/// Measures the guest of a QEMU that runs, with these disks; each measurement takes about `time`. What cannot be measured says
/// why.
pub async fn measure_machine(machine: &Machine, disks: &[DiskSpec], time: Duration) -> GuestReport {
    let deadline = Instant::now() + GUEST_WAIT_MAX;
    // Of a guest that does not execute QEMU would measure what it has just stopped doing.
    let executes = match by(deadline, machine.run_state()).await {
        Ok(state) => state == RunState::Running,
        Err(why) => return GuestReport::unknown(&why),
    };
    let size = by(deadline, machine.memory_size()).await;
    let dirty_rate = async {
        match (&size, executes) {
            (_, false) => Ok(Bandwidth(0)),
            (Ok(size), true) => by(deadline, machine.memory_dirty_rate(*size, time, OVERTIME_MAX)).await,
            (Err(why), true) => Err(why.clone()),
        }
    };
    let write_rate = async {
        match executes {
            false => Ok(Bandwidth(0)),
            true => by(deadline, machine.disk_write_rate(time)).await,
        }
    };
    let disks = by(deadline, machine.disk_use(disks));
    let (dirty_rate, write_rate, disks) = tokio::join!(dirty_rate, write_rate, disks);
    GuestReport {
        memory_used: used(machine, size.as_ref().ok()).into(),
        memory_total: size.into(),
        memory_dirty_rate: dirty_rate.into(),
        disk_write_rate: write_rate.into(),
        disks: disks.into(),
    }
}

/// What the guest has touched of its memory, by what QEMU has: never more than there is, where that is known.
fn used(machine: &Machine, size: Option<&ByteCount>) -> Result<ByteCount, String> {
    let pid = machine.qmp().peer_pid().ok_or("the kernel does not say which process QEMU is")?;
    let touched = process::touched_bytes(pid).map_err(|error| in_words(&error))?;
    Ok(size.map_or(ByteCount(touched), |size| ByteCount(touched).min(*size)))
}

/// An answer of QEMU's, or why there is none by the deadline of the whole.
async fn by<T, E: std::error::Error>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout_at(deadline, answer).await {
        Ok(outcome) => outcome.map_err(|error| in_words(&error)),
        Err(_) => Err(format!("QEMU did not answer within {GUEST_WAIT_MAX:?}")),
    }
}
