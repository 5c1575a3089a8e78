//! Partial images: what a move into this host has received so far, and what a move that was cut has left for the next.
//!
//! ```text
//!   (none) ─begin─▶ in hand ─received…─▶ in hand ─keep─▶ kept ─begin (next job)─▶ in hand
//!                      └─ forget ◀── done, or removed ──────┴─ give_up ─▶ kept, given up: the service removes it
//! ```
//!
//! One record a VM. As long as there is one, the images it names are nobody else's: whoever removes the files removes the
//! record after them, so that a crash in between leaves nothing without an owner.

use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use sterna_shared::bus::{decode, encode};
use sterna_shared::id::{JobId, VmId, VmName};
use sterna_shared::time::Timestamp;
use sterna_shared::vm::{DiskSpec, VmSpec};

use super::{Journal, JournalError, write_error};
use crate::disk::extent::{Extent, ExtentSet};

/// The most ranges of one disk that are journalled, the first ones: a disk that is received in order has a handful. Of one that is
/// received scattered the rest is left out, so nothing follows from a range that is not named.
/// With the most disks that a VM may have, a record stays well below the limit of an encoded message.
const RANGES_JOURNALLED_MAX: usize = 1024;

pub(super) const PARTIALS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("partials");

/// Images that are not, or not yet, a VM's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// The VM they would be of.
    pub vm: VmId,
    /// Its name, for people.
    pub name: VmName,
    /// The job that made them, or was the last to write to them.
    pub job: JobId,
    /// The images.
    pub disks: Vec<PartialDisk>,
    /// Since that job's end; none while it is in hand.
    pub kept: Option<Kept>,
    /// Of what a cutover has left for the way back: how long it is kept, in seconds, until an operator drops it.
    #[serde(default)]
    pub way_back_seconds: Option<u32>,
}

/// One of the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialDisk {
    /// Its place and form.
    pub spec: DiskSpec,
    /// What was received of it and is on stable storage, as [`ExtentSet::encode`] has it. A hint: what is there is told
    /// by reading. More may have been written than that.
    #[serde(with = "serde_bytes")]
    received: Vec<u8>,
}

/// How images are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Since when, for people.
    pub since: Timestamp,
    /// Whether nobody wants them any more: they are to be removed at the next opportunity.
    pub given_up: bool,
}

impl PartialDisk {
    /// An image of which that was received.
    #[must_use]
    pub fn new(spec: DiskSpec, received: &ExtentSet) -> Self {
        let bounded: ExtentSet = received.iter().take(RANGES_JOURNALLED_MAX).collect();
        Self { spec, received: bounded.encode() }
    }

    /// What was received of it, or less; a record that is not readable holds nothing.
    #[must_use]
    pub fn received(&self) -> ExtentSet {
        ExtentSet::decode(&self.received).unwrap_or_default()
    }

    /// Whether it is in the same place and of the same form and size as `disk`, so that a move to there can use it on.
    #[must_use]
    pub fn fits(&self, disk: &DiskSpec) -> bool {
        let place = |disk: &DiskSpec| (disk.pool.clone(), disk.name.clone(), disk.format, disk.size);
        place(&self.spec) == place(disk)
    }
}

impl Partial {
    /// What a takeover from a replica is about to make. It is no job: the VM's own id stands in the place of one.
    #[must_use]
    pub fn of_a_takeover(spec: &VmSpec) -> Self {
        let disk = |disk: &DiskSpec| PartialDisk::new(disk.clone(), &ExtentSet::default());
        let disks = spec.disks.iter().map(disk).collect();
        let job = JobId::from_uuid(spec.id.uuid());
        Self { vm: spec.id, name: spec.name.clone(), job, disks, kept: None, way_back_seconds: None }
    }

    /// Whether a takeover makes these images, or has left them when it was cut.
    #[must_use]
    pub fn is_of_a_takeover(&self) -> bool {
        self.job.uuid() == self.vm.uuid()
    }

    /// The bytes received of all its disks.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.received().total()).sum()
    }

    /// As `journal dump` shows it.
    pub(super) fn dump(&self) -> serde_json::Value {
        let disk = |disk: &PartialDisk| {
            let received = disk.received();
            let range = |extent: Extent| [extent.offset(), extent.end()];
            serde_json::json!({
                "name": disk.spec.name, "pool": disk.spec.pool, "format": disk.spec.format, "size": disk.spec.size,
                "received_bytes": received.total(), "received": received.iter().map(range).collect::<Vec<_>>(),
            })
        };
        serde_json::json!({
            "vm": self.vm, "name": self.name, "job": self.job, "kept": self.kept,
            "way_back_seconds": self.way_back_seconds,
            "disks": self.disks.iter().map(disk).collect::<Vec<_>>(),
        })
    }
}

impl Journal {
    /// The partial images of a VM.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn partial(&self, vm: VmId) -> Result<Option<Partial>, JournalError> {
        self.one(PARTIALS, vm.uuid().into_bytes())
    }

    /// All partial images.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn partials(&self) -> Result<Vec<Partial>, JournalError> {
        self.all(PARTIALS)
    }

    /// Writes a record, in place of the one that the VM has, if any: before an image is made or used on.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn begin_partial(&self, partial: Partial) -> Result<(), JournalError> {
        let bytes = encode("partial images", &partial)?;
        self.write(move |tables| {
            let mut table = tables.open_table(PARTIALS).map_err(write_error)?;
            table.insert(partial.vm.uuid().into_bytes(), bytes.as_slice()).map_err(write_error)?;
            Ok(())
        })
        .await
    }

    /// Notes what was received of each disk, in the record's order. Another job's record is left alone.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn note_received(&self, vm: VmId, job: JobId, received: Vec<ExtentSet>) -> Result<(), JournalError> {
        self.change_partial(vm, job, move |partial| {
            for (disk, set) in partial.disks.iter_mut().zip(&received) {
                *disk = PartialDisk::new(disk.spec.clone(), set);
            }
        })
        .await
    }

    /// Notes that a job has ended and its images are kept. Another job's record is left alone.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn keep_partial(&self, vm: VmId, job: JobId, since: Timestamp) -> Result<(), JournalError> {
        self.change_partial(vm, job, move |partial| {
            partial.kept.get_or_insert(Kept { since, given_up: false });
        })
        .await
    }

    /// Notes that the images kept of a job are not wanted any more. Another job's record, that of a job in hand, and the way back
    /// of a cutover are left alone.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn give_up_partial(&self, vm: VmId, job: JobId) -> Result<(), JournalError> {
        self.change_partial(vm, job, |partial| {
            if let Some(kept) = partial.kept.as_mut().filter(|_| partial.way_back_seconds.is_none()) {
                kept.given_up = true;
            }
        })
        .await
    }

    /// Forgets a record: the images are gone, or have become the VM's.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn forget_partial(&self, vm: VmId) -> Result<(), JournalError> {
        if self.partial(vm)?.is_none() {
            return Ok(()); // No reason for an fsync.
        }
        self.write(move |tables| {
            let mut table = tables.open_table(PARTIALS).map_err(write_error)?;
            table.remove(vm.uuid().into_bytes()).map_err(write_error)?;
            Ok(())
        })
        .await
    }

    async fn change_partial(
        &self,
        vm: VmId,
        job: JobId,
        change: impl FnOnce(&mut Partial) + Send + 'static,
    ) -> Result<(), JournalError> {
        self.write(move |tables| {
            let mut table = tables.open_table(PARTIALS).map_err(write_error)?;
            let key = vm.uuid().into_bytes();
            let found = table.get(key).map_err(write_error)?.map(|bytes| decode::<Partial>("record", bytes.value()));
            let Some(mut partial) = found.transpose()?.filter(|partial| partial.job == job) else { return Ok(()) };
            change(&mut partial);
            let bytes = encode("partial images", &partial)?;
            table.insert(key, bytes.as_slice()).map_err(write_error)?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::units::ByteCount;
    use sterna_shared::vm::{DISKS_MAX, DiskFormat};

    use super::*;
    use crate::journal::Role;
    use crate::journal::tests::job_record;

    fn disk(name: &str, format: &str) -> DiskSpec {
        let text = serde_json::json!({ "name": name, "pool": "fast", "format": format, "size": 1 << 30 });
        serde_json::from_value(text).expect("a disk")
    }

    fn set(ranges: &[(u64, u64)]) -> ExtentSet {
        ranges.iter().filter_map(|(offset, end)| Extent::between(*offset, *end)).collect()
    }

    fn partial() -> Partial {
        let plan = job_record(Role::Target).plan;
        let disks = vec![PartialDisk::new(disk("root", "raw"), &ExtentSet::new())];
        Partial { vm: plan.vm.id, name: plan.vm.name, job: plan.job, disks, kept: None, way_back_seconds: None }
    }

    fn journal() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::open(&folder.path().join("journal.redb")).expect("opened");
        (folder, journal)
    }

    #[tokio::test]
    async fn what_was_received_is_there_after_reopening_and_in_the_dump() {
        let (folder, journal) = journal();
        let partial = partial();
        journal.begin_partial(partial.clone()).await.expect("begun");
        let received = set(&[(0, 4096), (65536, 131_072)]);
        journal.note_received(partial.vm, partial.job, vec![received.clone()]).await.expect("noted");
        drop(journal);
        let journal = Journal::open(&folder.path().join("journal.redb")).expect("opened anew");
        let found = journal.partial(partial.vm).expect("read").expect("a record");
        assert_eq!((found.disks[0].received(), found.received_bytes(), found.kept), (received, 69632, None));
        let dump = journal.dump().expect("dumped");
        assert_eq!(dump["partials"][0]["disks"][0]["received"], serde_json::json!([[0, 4096], [65536, 131_072]]));
        journal.forget_partial(partial.vm).await.expect("forgotten");
        assert_eq!(journal.partials().expect("read"), vec![]);
    }

    #[tokio::test]
    async fn a_job_changes_its_own_record_only_and_one_in_hand_is_not_given_up() {
        let (_folder, journal) = journal();
        let partial = partial();
        let (vm, job) = (partial.vm, partial.job);
        let other: JobId = "0197c0de-0000-7000-8000-0000000000ff".parse().expect("a UUID");
        let since = Timestamp::from_unix_microseconds(7);
        let read = || journal.partial(vm).expect("read").expect("a record");
        journal.begin_partial(partial.clone()).await.expect("begun");
        journal.note_received(vm, other, vec![set(&[(0, 1)])]).await.expect("left alone");
        journal.keep_partial(vm, other, since).await.expect("left alone");
        journal.give_up_partial(vm, job).await.expect("left alone");
        assert_eq!(read(), partial);
        journal.keep_partial(vm, job, since).await.expect("kept");
        journal.keep_partial(vm, job, Timestamp::from_unix_microseconds(9)).await.expect("kept already");
        assert_eq!(read().kept, Some(Kept { since, given_up: false }));
        journal.give_up_partial(vm, other).await.expect("left alone");
        assert_eq!(read().kept, Some(Kept { since, given_up: false }));
        journal.give_up_partial(vm, job).await.expect("given up");
        assert_eq!(read().kept, Some(Kept { since, given_up: true }));
    }

    #[tokio::test]
    async fn the_way_back_of_a_cutover_is_not_given_up_with_its_job() {
        let (_folder, journal) = journal();
        let partial = Partial { way_back_seconds: Some(60), ..partial() };
        let (vm, job) = (partial.vm, partial.job);
        let since = Timestamp::from_unix_microseconds(7);
        journal.begin_partial(partial).await.expect("begun");
        journal.keep_partial(vm, job, since).await.expect("kept");
        journal.give_up_partial(vm, job).await.expect("left alone");
        let found = journal.partial(vm).expect("read").expect("a record");
        assert_eq!((found.kept, found.way_back_seconds), (Some(Kept { since, given_up: false }), Some(60)));
    }

    #[test]
    fn only_the_same_place_form_and_size_fits() {
        let held = PartialDisk::new(disk("root", "raw"), &ExtentSet::new());
        assert!(held.fits(&disk("root", "raw")));
        let others = [
            disk("data", "raw"),
            DiskSpec { format: DiskFormat::Qcow2, ..disk("root", "raw") },
            DiskSpec { size: ByteCount(2 << 30), ..disk("root", "raw") },
            DiskSpec { pool: "bulk".parse().expect("a name"), ..disk("root", "raw") },
        ];
        assert!(others.iter().all(|other| !held.fits(other)));
    }

    #[tokio::test]
    async fn the_most_scattered_record_of_the_largest_vm_is_bounded_and_fits() {
        let (_folder, journal) = journal();
        let far = 1_u64 << 45;
        let scattered: ExtentSet =
            (0..10_000).filter_map(|index| Extent::new(far + index * (1 << 30), (1 << 29) + 1)).collect();
        let spec = disk(&"d".repeat(24), "qcow2");
        let disks = vec![PartialDisk::new(spec, &scattered); DISKS_MAX];
        assert_eq!(disks[0].received().count(), RANGES_JOURNALLED_MAX);
        journal.begin_partial(Partial { disks, ..partial() }).await.expect("below the limit of a record");
    }
}
