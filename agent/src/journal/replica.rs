//! Replicas: which layers there are of the disks of other hosts' VMs. Writing a record is the instant from which a snapshot is
//! there, of all disks.

use std::collections::BTreeSet;

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use sterna_shared::bus::{decode, encode};
use sterna_shared::id::VmId;
use sterna_shared::replica::{Replica, Retention, Snapshot};

use super::partial::PartialDisk;
use super::{JOBS, JobRecord, Journal, JournalError, Role, Stage, VMS, VmRecord, read_error, write_error};
use crate::disk::extent::ExtentSet;

pub(super) const REPLICAS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("replicas");

/// A replica that this host has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// What there is of it.
    pub replica: Replica,
    /// Whether an operator wants it no more: what no clone stands on goes.
    pub dropped: bool,
    /// The layer that a cycle has begun, and is not in the replica yet. One that was cut leaves it to the next.
    #[serde(default)]
    pub part: Option<Part>,
}

/// A layer that is being filled, or was when a cycle was cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its number.
    pub number: u32,
    /// What was received of each disk, in the replica's order: at least that. What was written besides, the layer's images alone
    /// know.
    pub disks: Vec<PartialDisk>,
}

/// What becomes of a replica when a layer is added or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaChange {
    /// A cycle begins a new layer of this replica, on those that there are.
    Begin(Box<Replica>),
    /// That much of each disk of the new layer is on stable storage.
    Received(Vec<ExtentSet>),
    /// The new layer is wanted no more.
    GiveUp,
    /// A cycle is over: the replica as it is to be without that cycle's layer, and its snapshot.
    Add(Box<Replica>, Snapshot),
    /// Nothing.
    Keep,
    /// Snapshots that are not to be kept go.
    Prune(Retention),
    /// A layer was merged into the one below it. Nothing, where a clone stands on one of the two by now.
    Merged {
        /// The one below.
        lower: u32,
        /// The one that was merged.
        upper: u32,
    },
    /// Snapshots do not hold what was written to them.
    Damaged(BTreeSet<u32>),
    /// It is wanted no more.
    Drop,
    /// Nothing of it is left.
    Forget,
}

impl Journal {
    /// All replicas.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn replicas(&self) -> Result<Vec<ReplicaRecord>, JournalError> {
        self.all(REPLICAS)
    }

    /// The replica of a VM.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn replica(&self, vm: VmId) -> Result<Option<ReplicaRecord>, JournalError> {
        self.one(REPLICAS, vm.uuid().into_bytes())
    }

    /// Changes a replica: how it is then, and which of its layers clones stand on, or will. A clone that is to be made and comes
    /// to the journal after this finds what is left.
    ///
    /// # Errors
    /// The journal cannot be written: nothing has changed.
    pub async fn change_replica(
        &self,
        vm: VmId,
        change: ReplicaChange,
    ) -> Result<Option<(ReplicaRecord, BTreeSet<u32>)>, JournalError> {
        self.write(move |tables| {
            let used = used_layers(tables, vm)?;
            let mut table = tables.open_table(REPLICAS).map_err(write_error)?;
            let key = vm.uuid().into_bytes();
            let known: Option<ReplicaRecord> =
                table.get(key).map_err(read_error)?.map(|bytes| decode("replica", bytes.value())).transpose()?;
            let record = match (known, change) {
                (_, ReplicaChange::Add(replica, snapshot)) => {
                    let mut replica = *replica;
                    replica.add(snapshot);
                    Some(ReplicaRecord { replica, dropped: false, part: None })
                }
                (_, ReplicaChange::Begin(replica)) => {
                    let disks = replica.disks.iter().map(|disk| PartialDisk::new(disk.clone(), &ExtentSet::new()));
                    let part = Part { number: replica.next, disks: disks.collect() };
                    Some(ReplicaRecord { replica: *replica, dropped: false, part: Some(part) })
                }
                (_, ReplicaChange::Forget) | (None, _) => None,
                // Of one that has no layer yet nothing is left then.
                (Some(record), ReplicaChange::GiveUp) if record.replica.layers.is_empty() => None,
                (Some(record), change) => Some(changed(record, &change, &used)),
            };
            match &record {
                Some(record) => {
                    table.insert(key, encode("replica", record)?.as_slice()).map_err(write_error)?;
                }
                None => drop(table.remove(key).map_err(write_error)?),
            }
            Ok(record.map(|record| (record, used)))
        })
        .await
    }
}

fn changed(mut record: ReplicaRecord, change: &ReplicaChange, used: &BTreeSet<u32>) -> ReplicaRecord {
    match change {
        ReplicaChange::Prune(retention) => drop(record.replica.prune(*retention, used)),
        ReplicaChange::Merged { lower, upper } if !used.contains(lower) && !used.contains(upper) => {
            record.replica.merged(*upper);
        }
        ReplicaChange::Damaged(snapshots) => record.replica.mark_damaged(snapshots),
        ReplicaChange::Drop => record.dropped = true,
        ReplicaChange::GiveUp => record.part = None,
        ReplicaChange::Received(received) => {
            let disks = record.part.iter_mut().flat_map(|part| &mut part.disks);
            disks.zip(received).for_each(|(disk, set)| *disk = PartialDisk::new(disk.spec.clone(), set));
        }
        ReplicaChange::Begin(_)
        | ReplicaChange::Add(..)
        | ReplicaChange::Merged { .. }
        | ReplicaChange::Keep
        | ReplicaChange::Forget => {}
    }
    record
}

/// The layers that disks of VMs here stand on, those that clones are being made of, and those that are read through.
fn used_layers(tables: &WriteTransaction, vm: VmId) -> Result<BTreeSet<u32>, JournalError> {
    let mut used = BTreeSet::new();
    let vms = tables.open_table(VMS).map_err(write_error)?;
    for row in vms.iter().map_err(read_error)? {
        let record: VmRecord = decode("VM", row.map_err(read_error)?.1.value())?;
        if matches!(record.ownership, sterna_shared::ownership::Record::Absent { .. }) {
            continue;
        }
        used.extend(layers_of(&record.spec, vm));
    }
    let jobs = tables.open_table(JOBS).map_err(write_error)?;
    for row in jobs.iter().map_err(read_error)? {
        let record: JobRecord = decode("job", row.map_err(read_error)?.1.value())?;
        if record.stage != Stage::InHand {
            continue;
        }
        let clone = record.plan.clone.as_ref().filter(|clone| clone.replica == vm);
        let verifies = record.role == Role::Verifier && record.plan.vm.id == vm;
        if clone.is_none() && !verifies {
            continue;
        }
        let table = tables.open_table(REPLICAS).map_err(write_error)?;
        let key = vm.uuid().into_bytes();
        let Some(bytes) = table.get(key).map_err(read_error)? else { continue };
        let ReplicaRecord { replica, .. } = decode("replica", bytes.value())?;
        if let Some(clone) = clone {
            used.extend(layers_of(&record.plan.vm, vm).chain(replica.layer_of(clone.snapshot)));
        }
        if verifies {
            used.extend(replica.layers.iter().map(|layer| layer.number));
        }
    }
    Ok(used)
}

fn layers_of(spec: &sterna_shared::vm::VmSpec, replica: VmId) -> impl Iterator<Item = u32> {
    spec.disks
        .iter()
        .filter_map(move |disk| disk.base.as_ref().filter(|base| base.replica == replica).map(|base| base.layer))
}
