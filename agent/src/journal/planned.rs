//! Planned VMs: what this host holds ready for VMs that are elsewhere. One record a VM; making another takes its place.

use redb::TableDefinition;
use sterna_shared::bus::encode;
use sterna_shared::id::VmId;
use sterna_shared::planned::PlannedVm;

use super::{Journal, JournalError, write_error};

pub(super) const PLANNED: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("planned");

impl Journal {
    /// All planned VMs.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn planned(&self) -> Result<Vec<PlannedVm>, JournalError> {
        self.all(PLANNED)
    }

    /// The planned VM of a VM.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn planned_of(&self, vm: VmId) -> Result<Option<PlannedVm>, JournalError> {
        self.one(PLANNED, vm.uuid().into_bytes())
    }

    /// Writes a planned VM, in place of the one that the VM has here, if any.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn put_planned(&self, planned: PlannedVm) -> Result<(), JournalError> {
        let bytes = encode("planned VM", &planned)?;
        self.write(move |tables| {
            let mut table = tables.open_table(PLANNED).map_err(write_error)?;
            table.insert(planned.spec.id.uuid().into_bytes(), bytes.as_slice()).map_err(write_error)?;
            Ok(())
        })
        .await
    }

    /// Forgets the planned VM of a VM: what it holds is held no longer.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn forget_planned(&self, vm: VmId) -> Result<(), JournalError> {
        self.write(move |tables| {
            let mut table = tables.open_table(PLANNED).map_err(write_error)?;
            table.remove(vm.uuid().into_bytes()).map_err(write_error)?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use sterna_shared::id::{JobId, PlannedVmId};
    use sterna_shared::time::Timestamp;
    use sterna_shared::vm::{DiskSpec, VmSpec};

    use super::*;
    use crate::journal::Role;
    use crate::journal::tests::job_record;

    /// A planned VM of one disk, held from the first to the 61st second.
    pub(crate) fn planned(vm: &str, pool: &str, disk_bytes: u64) -> PlannedVm {
        let at = Timestamp::from_unix_microseconds;
        let job: JobId = "0197c0de-0000-7000-8000-000000000301".parse().expect("a UUID");
        let disk = serde_json::json!({ "name": "root", "pool": pool, "format": "raw", "size": disk_bytes });
        let disk: DiskSpec = serde_json::from_value(disk).expect("a disk");
        let id = vm.parse().expect("a UUID");
        let spec = VmSpec { id, disks: vec![disk.clone()], ..job_record(Role::Target).plan.vm };
        let (made_at, expires_at) = (at(1_000_000), at(61_000_000));
        let source = "alpha".parse().expect("a name");
        PlannedVm { id: PlannedVmId::from_uuid(job.uuid()), spec, disks: vec![disk], job, source, made_at, expires_at }
    }

    #[tokio::test]
    async fn a_planned_vm_is_there_after_reopening_and_one_of_its_vm_takes_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal.redb");
        let web = planned("0197c0de-0000-7000-8000-000000000011", "fast", 65536);
        let mail = planned("0197c0de-0000-7000-8000-000000000012", "fast", 65536);
        {
            let journal = Journal::open(&path).expect("opened");
            journal.put_planned(web.clone()).await.expect("written");
            journal.put_planned(mail.clone()).await.expect("written");
        }
        let journal = Journal::open(&path).expect("opened anew");
        assert_eq!(journal.planned().expect("read"), [web.clone(), mail.clone()]);
        let dump = journal.dump().expect("dumped");
        assert_eq!(dump["planned"][0]["spec"]["id"], web.spec.id.to_string());
        let larger = PlannedVm { id: PlannedVmId::from_uuid(web.spec.id.uuid()), ..web.clone() };
        journal.put_planned(larger.clone()).await.expect("written");
        assert_eq!(journal.planned_of(web.spec.id).expect("read"), Some(larger));
        journal.forget_planned(web.spec.id).await.expect("forgotten");
        journal.forget_planned(web.spec.id).await.expect("forgotten already");
        assert_eq!(journal.planned().expect("read"), [mail]);
    }
}
