//! The journal: what this host must not forget, whatever happens to the agent or the machine.
//!
//! ```text
//!   vms      VmId           → VmRecord    what the VM is, and this host's right to run it
//!   jobs     JobId          → JobRecord   the plan and how far it is
//!   events   number         → Event       what this agent told of its jobs, in order
//!   told     JobId          → number      how many events it told of that job
//!   facts    name           → number      the highest epoch; how far events are published, and jobs forgotten; limits
//!   planned  VmId           → PlannedVm   what is held ready for a VM that is elsewhere
//!   replicas VmId           → ReplicaRecord  the layers of another host's VM's disks
//!   partials VmId           → Partial     images of moves into this host that are not, or not yet, a VM's
//! ```
//!
//! Every write is one transaction that is on the disk (`fsync`) before the call returns: callers act after it, never
//! before. A journal that cannot be written stops the agent from granting rights, and stops nothing that runs.
//!
//! What is kept has limits: events a number, jobs that are over a time and a number ([`retention`]). VMs stay: their
//! tombstones hold the generations that are not to be used again.

pub mod retention;

mod events;
mod file;
mod limits;
mod partial;
mod planned;
mod replica;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Durability, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sterna_shared::bus::{EnvelopeError, decode, encode};
use sterna_shared::id::{Epoch, JobId, VmId};
use sterna_shared::job::{Event, Plan};
use sterna_shared::ownership::Record;
use sterna_shared::peer::attach::Admitted;
use sterna_shared::time::Timestamp;
use sterna_shared::vm::VmSpec;
use tokio::sync::watch;

use self::events::{EVENTS, TOLD};
pub use self::events::{EVENTS_MAX, News, Quiet};
use self::file::File;
use self::partial::PARTIALS;
pub use self::partial::{Kept, Partial, PartialDisk};
use self::planned::PLANNED;
#[cfg(test)]
pub(crate) use self::planned::tests as planned_tests;
use self::replica::REPLICAS;
pub use self::replica::{Part, ReplicaChange, ReplicaRecord};

const VMS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("vms");
const JOBS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("jobs");
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

const FACT_EPOCH: &str = "epoch";
/// Microseconds since 1970: the latest that a job was planned which is forgotten.
const FACT_FORGOTTEN: &str = "forgotten";

/// A VM that this host has, had, or is to have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmRecord {
    /// What it is on this host.
    pub spec: VmSpec,
    /// This host's right to run it.
    pub ownership: Record,
    /// Whether its guest is meant to run: an agent that starts anew on a rebooted host knows by it what ran.
    pub wanted_running: bool,
}

/// A job that this host has a part in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The plan, token included.
    pub plan: Plan,
    /// Which part.
    pub role: Role,
    /// How far it is.
    pub stage: Stage,
    /// The session that the token has admitted (target), or that this host opens (source).
    pub admitted: Option<Admitted>,
    /// Whether a storage move's new images may be there: they are this job's to remove.
    pub images_made: bool,
    /// When the plan was taken.
    pub accepted_at: Timestamp,
    /// When the job was over at this host.
    #[serde(default)]
    pub over_at: Option<Timestamp>,
    /// At the target: the source has nothing more to ask.
    #[serde(default)]
    pub settled: bool,
}

impl JobRecord {
    /// A plan that has just been taken.
    #[must_use]
    pub const fn new(plan: Plan, role: Role, accepted_at: Timestamp) -> Self {
        let (stage, admitted, images_made) = (Stage::InHand, None, false);
        Self { plan, role, stage, admitted, images_made, accepted_at, over_at: None, settled: false }
    }
}

/// A host's part in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It has the VM, and leads.
    Source,
    /// It will have it.
    Target,
    /// Both: disks move under a VM that stays.
    Storage,
    /// It is made ready for a VM that stays where it is.
    Staging,
    /// It has the VM, whose disks are read through for a deep check.
    Reader,
    /// It has the VM, and leads a cycle of its replication.
    CycleSource,
    /// It has the replica.
    Replica,
    /// It makes a clone of a replica.
    Cloner,
    /// It has the replica, which is read through.
    Verifier,
}

/// How far a job is at this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Accepted, and not over: an agent that starts anew takes it up.
    InHand,
    /// Over. Kept, so that a repeated command or a late peer gets the same answer.
    Over,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be opened.
    #[error("the journal {} cannot be opened; is another agent running on it, or is the disk failing?", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the store says.
        #[source]
        source: Box<redb::DatabaseError>,
    },
    /// It cannot be read or written.
    #[error("the journal cannot be {action}; is the disk full or failing?")]
    Access {
        /// `read` or `written`.
        action: &'static str,
        /// What the store says.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record in it is not readable by this build.
    #[error("a record of the journal is not readable; it may be of a newer version")]
    Record(#[from] EnvelopeError),
    /// The thread that does it is gone.
    #[error("the journal's thread ended early")]
    Gone,
}

fn read_error(source: impl Into<redb::Error>) -> JournalError {
    JournalError::Access { action: "read", source: Box::new(source.into()) }
}

fn write_error(source: impl Into<redb::Error>) -> JournalError {
    JournalError::Access { action: "written", source: Box::new(source.into()) }
}

/// A handle to the journal.
#[derive(Debug, Clone)]
pub struct Journal {
    file: Arc<File>,
    /// How many have asked for quiet.
    quiet: Arc<watch::Sender<usize>>,
}

impl Journal {
    /// Opens the journal in a state directory, making it if it is not there.
    ///
    /// # Errors
    /// It is held by another process, or not readable.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let journal = Self { file: Arc::new(File::open(path)?), quiet: Arc::new(watch::Sender::new(0)) };
        journal.transact(|tables| {
            tables.open_table(VMS).map_err(write_error)?;
            tables.open_table(JOBS).map_err(write_error)?;
            tables.open_table(EVENTS).map_err(write_error)?;
            tables.open_table(TOLD).map_err(write_error)?;
            tables.open_table(FACTS).map_err(write_error)?;
            tables.open_table(PARTIALS).map_err(write_error)?;
            tables.open_table(PLANNED).map_err(write_error)?;
            tables.open_table(REPLICAS).map_err(write_error)?;
            Ok(())
        })?;
        Ok(journal)
    }

    fn transact<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, JournalError>) -> Result<T, JournalError> {
        self.file.with(|database| {
            let mut transaction = database.begin_write().map_err(write_error)?;
            transaction.set_durability(Durability::Immediate).map_err(write_error)?;
            let result = work(&transaction)?;
            transaction.commit().map_err(write_error)?;
            Ok(result)
        })
    }

    /// Runs a transaction where blocking is allowed: an `fsync` takes milliseconds, or seconds on a bad day.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let journal = self.clone();
        tokio::task::spawn_blocking(move || journal.transact(work)).await.map_err(|_| JournalError::Gone)?
    }

    /// Writes a VM's record.
    ///
    /// # Errors
    /// The journal cannot be written; the record is as it was.
    pub async fn put_vm(&self, record: VmRecord) -> Result<(), JournalError> {
        let bytes = encode("VM record", &record)?;
        self.write(move |tables| {
            let mut table = tables.open_table(VMS).map_err(write_error)?;
            table.insert(record.spec.id.uuid().into_bytes(), bytes.as_slice()).map_err(write_error)?;
            Ok(())
        })
        .await
    }

    /// All VMs.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn vms(&self) -> Result<Vec<VmRecord>, JournalError> {
        self.all(VMS)
    }

    /// One VM.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn vm(&self, vm: VmId) -> Result<Option<VmRecord>, JournalError> {
        self.one(VMS, vm.uuid().into_bytes())
    }

    /// Writes a job's record.
    ///
    /// # Errors
    /// The journal cannot be written; the record is as it was.
    pub async fn put_job(&self, record: JobRecord) -> Result<(), JournalError> {
        let bytes = encode("job record", &record)?;
        self.write(move |tables| {
            let mut table = tables.open_table(JOBS).map_err(write_error)?;
            table.insert(record.plan.job.uuid().into_bytes(), bytes.as_slice()).map_err(write_error)?;
            Ok(())
        })
        .await
    }

    /// One job.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn job(&self, job: JobId) -> Result<Option<JobRecord>, JournalError> {
        self.one(JOBS, job.uuid().into_bytes())
    }

    /// All jobs.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn jobs(&self) -> Result<Vec<JobRecord>, JournalError> {
        self.all(JOBS)
    }

    /// Notes that the new images of a storage move may be there, or are there no more.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn note_images_made(&self, job: JobId, made: bool) -> Result<(), JournalError> {
        self.change_job(job, move |record| record.images_made = made).await
    }

    /// Notes which session the token of a job has admitted.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn note_admitted(&self, job: JobId, admitted: Admitted) -> Result<(), JournalError> {
        self.change_job(job, move |record| record.admitted = Some(admitted)).await
    }

    /// Raises the incarnation of a job's session by one, and gives it back: for dialling anew.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn raise_incarnation(&self, job: JobId) -> Result<u32, JournalError> {
        self.change_job(job, |record| match &mut record.admitted {
            Some(admitted) => {
                admitted.incarnation += 1;
                admitted.incarnation
            }
            None => 0,
        })
        .await
    }

    /// Notes that a job is over at this host.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn conclude(&self, job: JobId, now: Timestamp) -> Result<(), JournalError> {
        self.change_job(job, move |record| (record.stage, record.over_at) = (Stage::Over, Some(now))).await
    }

    /// Changes a job's record in one transaction: the loop, which admits, and the job's own task both do, and neither may
    /// undo what the other wrote. A job that is not there is not changed.
    async fn change_job<T: Default + Send + 'static>(
        &self,
        job: JobId,
        change: impl FnOnce(&mut JobRecord) -> T + Send + 'static,
    ) -> Result<T, JournalError> {
        self.write(move |tables| {
            let mut table = tables.open_table(JOBS).map_err(write_error)?;
            let key = job.uuid().into_bytes();
            let found = table.get(key).map_err(write_error)?.map(|bytes| decode::<JobRecord>("record", bytes.value()));
            let Some(mut record) = found.transpose()? else { return Ok(T::default()) };
            let outcome = change(&mut record);
            let bytes = encode("job record", &record)?;
            table.insert(key, bytes.as_slice()).map_err(write_error)?;
            Ok(outcome)
        })
        .await
    }

    /// Whether the new images of a storage move may be there.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn images_made(&self, job: JobId) -> Result<bool, JournalError> {
        Ok(self.job(job)?.is_some_and(|record| record.images_made))
    }

    /// The highest coordinator epoch a command was taken of.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn epoch(&self) -> Result<Epoch, JournalError> {
        self.fact(FACT_EPOCH).map(Epoch)
    }

    /// Remembers an epoch; a lower one changes nothing.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn raise_epoch(&self, epoch: Epoch) -> Result<(), JournalError> {
        self.raise(FACT_EPOCH, epoch.0).await
    }

    async fn raise(&self, name: &'static str, value: u64) -> Result<(), JournalError> {
        if self.fact(name)? >= value {
            return Ok(());
        }
        self.write(move |tables| {
            tables.open_table(FACTS).map_err(write_error)?.insert(name, value).map_err(write_error)?;
            Ok(())
        })
        .await
    }

    fn fact(&self, name: &str) -> Result<u64, JournalError> {
        self.file.read(|transaction| {
            let table = transaction.open_table(FACTS).map_err(read_error)?;
            Ok(table.get(name).map_err(read_error)?.map_or(0, |value| value.value()))
        })
    }

    fn one<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, [u8; 16], &'static [u8]>,
        key: [u8; 16],
    ) -> Result<Option<T>, JournalError> {
        self.file.read(|transaction| {
            let table = transaction.open_table(table).map_err(read_error)?;
            let bytes = table.get(key).map_err(read_error)?;
            bytes.map(|bytes| decode("record", bytes.value())).transpose().map_err(JournalError::from)
        })
    }

    fn all<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, [u8; 16], &'static [u8]>,
    ) -> Result<Vec<T>, JournalError> {
        self.file.read(|transaction| {
            let table = transaction.open_table(table).map_err(read_error)?;
            let mut records = Vec::new();
            for entry in table.iter().map_err(read_error)? {
                records.push(decode("record", entry.map_err(read_error)?.1.value())?);
            }
            Ok(records)
        })
    }

    /// The whole journal as JSON, tokens blanked.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn dump(&self) -> Result<serde_json::Value, JournalError> {
        let blank = |mut job: JobRecord| {
            job.plan.token = sterna_shared::id::Token::from_bytes([0; sterna_shared::id::TOKEN_LENGTH]);
            job
        };
        let events: Vec<Event> = self.events_after(0, usize::MAX)?.into_iter().map(|(_, event)| event).collect();
        Ok(serde_json::json!({
            "vms": self.vms()?,
            "jobs": self.jobs()?.into_iter().map(blank).collect::<Vec<_>>(),
            "partials": self.partials()?.iter().map(Partial::dump).collect::<Vec<_>>(),
            "planned": self.planned()?,
            "replicas": self.replicas()?,
            "events": events,
            "epoch": self.epoch()?,
            "limits_set": self.limits_set()?,
            "published": self.published()?,
        }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use sterna_shared::id::{Generation, Token};
    use sterna_shared::job::{EventBody, Host, JobKind, MoveMode, MoveSettings, Reporter};
    use sterna_shared::units::ByteCount;
    use sterna_shared::vm::Firmware;

    use super::*;

    /// A job of `alpha`'s, moving to `bravo`, with a token of sevens.
    pub(crate) fn job_record(role: Role) -> JobRecord {
        let host = |id: &str| Host { id: id.parse().expect("a name"), addresses: Vec::new() };
        let vm = spec();
        let plan = Plan {
            job: "0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID"),
            planned_at: Timestamp::from_unix_microseconds(0),
            attempt: 0,
            kind: JobKind::Move,
            mode: MoveMode::Live,
            vm_at_target: vm.clone(),
            vm,
            source: host("alpha"),
            target: host("bravo"),
            disks: Vec::new(),
            generation: Generation(1),
            token: Token::from_bytes([7; 32]),
            lanes: 4,
            bandwidth: None,
            blackout_max_ms: 2000,
            settings: MoveSettings::default(),
            planned: None,
            hold_seconds: None,
            retention: None,
            clone: None,
            cutover: None,
            steps: Plan::steps_of(JobKind::Move, MoveMode::Live, false),
        };
        let accepted_at = plan.planned_at;
        JobRecord::new(plan, role, accepted_at)
    }

    fn spec() -> VmSpec {
        VmSpec {
            name: "web".parse().expect("a name"),
            id: "0197c0de-0000-7000-8000-000000000002".parse().expect("a UUID"),
            memory: ByteCount::mebibytes(64),
            vcpus: 1,
            cpu: "max".into(),
            machine: "pc-q35-7.2".into(),
            firmware: Firmware::Bios,
            secure_boot: false,
            kernel: None,
            disks: Vec::new(),
            nics: Vec::new(),
            guest_agent: false,
            extra_arguments: Vec::new(),
        }
    }

    pub(super) fn news(count: usize) -> Vec<News> {
        let job = job_record(Role::Source).plan.job;
        let at = Timestamp::from_unix_microseconds(0);
        (0..count).map(|index| News { job, at, body: EventBody::Notice { text: index.to_string() } }).collect()
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_reopening() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal.redb");
        let reporter = Reporter::Host("alpha".parse().expect("a name"));
        let vm =
            VmRecord { spec: spec(), ownership: Record::Owner { generation: Generation(3) }, wanted_running: true };
        {
            let journal = Journal::open(&path).expect("opened");
            journal.put_vm(vm.clone()).await.expect("written");
            journal.put_job(job_record(Role::Source)).await.expect("written");
            journal.tell(reporter.clone(), news(2)).await.expect("told");
            journal.tell(reporter, news(1)).await.expect("told");
            journal.raise_epoch(Epoch(5)).await.expect("raised");
            journal.raise_epoch(Epoch(4)).await.expect("a lower one changes nothing");
            assert!(Journal::open(&path).is_err(), "two agents never share a journal");
        }
        let journal = Journal::open(&path).expect("opened anew");
        assert_eq!(journal.vms().expect("read"), vec![vm]);
        assert_eq!(journal.jobs().expect("read"), vec![job_record(Role::Source)]);
        assert_eq!(journal.epoch().expect("read"), Epoch(5));
        let events = journal.events_after(0, 10).expect("read");
        let numbers: Vec<(u64, u64)> = events.iter().map(|(number, event)| (*number, event.sequence)).collect();
        assert_eq!(numbers, vec![(1, 1), (2, 2), (3, 3)]);
        assert_eq!(
            journal.events_page(1, 1).map(|(events, more)| (events[0].sequence, more)).expect("read"),
            (2, true)
        );
        let dump = journal.dump().expect("dumped").to_string();
        assert!(dump.contains("\"owner\"") && !dump.contains("7,7,7,7"), "{dump}");
    }
}
