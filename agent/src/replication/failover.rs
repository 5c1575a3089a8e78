//! A failover: the host that has a VM's replica runs the VM itself, since the VM's own host is gone for good.
//!
//! ```text
//!   images that stand on the snapshot's layers ─▶ the journal: the VM is this host's ─▶ started from these disks
//!      └─ any failure, any death: they go ────────┘      └─ from here on it is a VM like any other
//! ```
//!
//! It is the same VM, with its id, name and addresses. What it wrote after the snapshot is not here. That its old host runs it no
//! more is the operator's word ([`sterna_shared::ownership`]); that host is told when it comes back.

use std::time::Duration;

use sterna_shared::id::Generation;
use sterna_shared::ownership::{Input, Record};
use sterna_shared::replica::{Base, Replica};
use sterna_shared::vm::{DiskFormat, DiskSpec, VmSpec};
use tokio::time::timeout;
use tracing::{info, warn};

use super::variables;
use crate::host::Host;
use crate::hypervisor::qemu::RunState;
use crate::journal::Partial;
use crate::migration::context::MoveError;
use crate::migration::images::{self, ImageError};
use crate::migration::keeper::Keeper;
use crate::migration::partial;

/// How long it waits until no layer is merged or copied: far less than whoever asked does.
const LAYERS_WAIT: Duration = Duration::from_secs(15);

/// The VM as it is here, on a layer of its replica.
fn spec_on(replica: &Replica, layer: u32) -> VmSpec {
    let on = |of: &DiskSpec| {
        let at = replica.disks.iter().find(|disk| disk.name == of.name).unwrap_or(of);
        let base = Some(Base { replica: replica.vm.id, layer, pool: at.pool.clone() });
        DiskSpec { pool: at.pool.clone(), format: DiskFormat::Qcow2, size: at.size, base, ..of.clone() }
    };
    VmSpec { disks: replica.vm.disks.iter().map(on).collect(), ..replica.vm.clone() }
}

/// Takes a VM over from its replica, and starts it. Asked again it starts what it has taken over, if that does not run.
///
/// # Errors
/// Before the record is on the disk nothing has changed; after it the VM is this host's and does not run.
pub async fn take_over(host: &Host, keeper: &Keeper, snapshot: u32, above: Generation) -> Result<(), MoveError> {
    if !runs_above(keeper, above) {
        own(host, keeper, snapshot, above).await?;
    }
    let runs = match keeper.machine().await? {
        Some(machine) => machine.run_state().await? == RunState::Running,
        None => false,
    };
    if !runs {
        keeper.start().await?;
    }
    Ok(())
}

fn runs_above(keeper: &Keeper, above: Generation) -> bool {
    matches!(keeper.record().ownership, Record::Owner { generation } if generation > above)
}

async fn own(host: &Host, keeper: &Keeper, snapshot: u32, above: Generation) -> Result<(), MoveError> {
    let vm = keeper.record().spec.id;
    // From here to the record no layer goes that the snapshot needs. Who asked waits a minute; what he said may not be true later.
    let in_use = timeout(LAYERS_WAIT, host.layers_in_use.lock()).await;
    let _in_use = in_use.map_err(|_| MoveError::Stale {
        what: "layers of replicas are being merged or copied at this host; give the command again in a while",
    })?;
    if runs_above(keeper, above) {
        return Ok(()); // It was asked for twice.
    }
    let record = host.journal.replica(vm)?.filter(|record| !record.dropped);
    let replica = record.ok_or(MoveError::Stale { what: "the replica is no longer there" })?.replica;
    let layer = replica.layer_of(snapshot).ok_or(MoveError::Stale { what: "the snapshot is no longer there" })?;
    let spec = spec_on(&replica, layer);
    images::expect_free(host, vm, &spec.disks)?;
    // An agent that ends in between finds by it what nobody wants.
    let partial = Partial::of_a_takeover(&spec);
    host.journal.begin_partial(partial.clone()).await?;
    let owned = async {
        for disk in &spec.disks {
            let pool = host.pool(disk).map_err(ImageError::from)?;
            pool.create(vm, &disk.name, disk.format, disk.size).await.map_err(ImageError::from)?;
        }
        if let Some(text) = variables::place(host, &replica, layer, &spec)? {
            warn!(%vm, text, "variables are lost");
        }
        keeper.respecify(spec.clone()).await?;
        keeper.feed(Input::TakeOver { above }).await?;
        Ok::<_, MoveError>(())
    };
    let outcome = owned.await;
    match keeper.record().ownership.may_run() {
        Some(generation) => {
            info!(%vm, snapshot, %generation, "the VM is taken over from its replica");
            host.journal.forget_partial(vm).await?;
        }
        // What does not go now the service sees to.
        None => drop(partial::drop_all(host, &partial).await),
    }
    outcome
}

#[cfg(test)]
mod tests {
    use sterna_shared::id::PoolName;
    use sterna_shared::units::ByteCount;

    use super::*;
    use crate::journal::planned_tests::planned;

    #[test]
    fn it_is_the_same_vm_on_the_disks_of_the_replica() {
        let vm = planned("0197c0de-0000-7000-8000-000000000011", "fast", 1 << 20).spec;
        let bulk: PoolName = "bulk".parse().expect("a name");
        let disks: Vec<DiskSpec> = vm
            .disks
            .iter()
            .map(|disk| DiskSpec { pool: bulk.clone(), size: ByteCount(2 << 20), ..disk.clone() })
            .collect();
        let replica = Replica::new(vm.clone(), disks, "alpha".parse().expect("a name"));
        let here = spec_on(&replica, 7);
        assert_eq!((here.id, &here.name, &here.nics, here.memory), (vm.id, &vm.name, &vm.nics, vm.memory));
        assert_eq!(here.disks.len(), vm.disks.len());
        for disk in &here.disks {
            assert_eq!((&disk.pool, disk.format, disk.size), (&bulk, DiskFormat::Qcow2, ByteCount(2 << 20)));
            assert_eq!(disk.base, Some(Base { replica: vm.id, layer: 7, pool: bulk.clone() }));
        }
    }
}
