//! Forgetting jobs that are over: after a time, and the oldest first where there are many.
//!
//! A job's record is what this host answers its peers by: the token that proves a message, the session that was let in.
//! So it stays, whatever its age, for as long as another host may still ask who runs the VM:
//!
//! | part | open until |
//! | --- | --- |
//! | source, storage | this host's own record of the VM no longer names the job |
//! | target | nothing was prepared, or the source has said that it let go or gave up ([`Journal::note_settled`]), or it has led a later move of the VM, which only an owner does |
//!
//! A plan that was made no later than one that was forgotten is not taken any more: it can only be a repeat, and nobody
//! here could tell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redb::ReadableTable as _;
use serde::Deserialize;
use sterna_shared::bus::decode;
use sterna_shared::id::{HostId, JobId, VmId};
use sterna_shared::job::{JobKind, Plan};
use sterna_shared::ownership::Record;
use sterna_shared::time::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{
    FACT_FORGOTTEN, FACTS, JOBS, JobRecord, Journal, JournalError, Role, Stage, TOLD, VMS, VmRecord, write_error,
};

/// The least [`Retention::jobs_max`] that makes sense: so many that the clocks of two coordinators cannot differ by more
/// than the time in which a host sees them.
pub const JOBS_MAX_LEAST: u32 = 100;
/// The longest [`Retention::jobs_days`]: ten years.
pub const JOBS_DAYS_MAX: u32 = 3650;

/// How often old jobs are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(3600);

/// For how long jobs are remembered that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Days after their end.
    pub jobs_days: u32,
    /// The most of them; the oldest go first.
    pub jobs_max: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { jobs_days: 7, jobs_max: 10_000 }
    }
}

impl Journal {
    /// Forgets old jobs now and then, for ever.
    pub async fn keep_to(self, retention: Retention, now: fn() -> Timestamp) {
        let mut ticks = interval(FORGET_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.forget_jobs(retention, now()).await {
                Ok(0) => {}
                Ok(jobs) => info!(jobs, "old jobs forgotten"),
                Err(error) => warn!(error = &error as &dyn std::error::Error, "old jobs are kept"),
            }
        }
    }

    /// Forgets the jobs that are over and that nothing can depend on any more; how many.
    ///
    /// # Errors
    /// The journal cannot be read or written; nothing is forgotten then.
    pub async fn forget_jobs(&self, retention: Retention, now: Timestamp) -> Result<usize, JournalError> {
        self.write(move |tables| {
            let mut jobs = tables.open_table(JOBS).map_err(write_error)?;
            let mut told = tables.open_table(TOLD).map_err(write_error)?;
            let mut facts = tables.open_table(FACTS).map_err(write_error)?;
            let mut vms = tables.open_table(VMS).map_err(write_error)?;
            let records_of_vms = records::<VmRecord>(&vms)?;
            let forgotten = forgettable(records(&jobs)?, &records_of_vms, retention, now);
            for vm in rehearsed(&forgotten, &records_of_vms) {
                vms.remove(vm.uuid().into_bytes()).map_err(write_error)?;
            }
            let mut latest = facts.get(FACT_FORGOTTEN).map_err(write_error)?.map_or(0, |value| value.value());
            for JobRecord { plan, .. } in &forgotten {
                let key = plan.job.uuid().into_bytes();
                jobs.remove(key).map_err(write_error)?;
                told.remove(key).map_err(write_error)?;
                // A coordinator's clock may have been ahead; nothing that is planned from now on is as old as this.
                latest = latest.max(microseconds(plan.planned_at).min(microseconds(now)));
            }
            facts.insert(FACT_FORGOTTEN, latest).map_err(write_error)?;
            Ok(forgotten.len())
        })
        .await
    }

    /// Whether a plan that is not known may be one that was forgotten.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn may_be_forgotten(&self, plan: &Plan) -> Result<bool, JournalError> {
        Ok(microseconds(plan.planned_at) <= self.fact(FACT_FORGOTTEN)?)
    }

    /// Notes that the source of a job that this host followed has nothing more to ask about it.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn note_settled(&self, job: JobId) -> Result<(), JournalError> {
        self.change_job(job, |record| record.settled = true).await
    }
}

fn records<T: serde::de::DeserializeOwned>(
    table: &impl redb::ReadableTable<[u8; 16], &'static [u8]>,
) -> Result<Vec<T>, JournalError> {
    let mut records = Vec::new();
    for entry in table.iter().map_err(write_error)? {
        records.push(decode("record", entry.map_err(write_error)?.1.value())?);
    }
    Ok(records)
}

/// The facts are counts; nothing was planned before 1970.
fn microseconds(at: Timestamp) -> u64 {
    u64::try_from(at.unix_microseconds()).unwrap_or(0)
}

/// The jobs to forget.
fn forgettable(jobs: Vec<JobRecord>, vms: &[VmRecord], retention: Retention, now: Timestamp) -> Vec<JobRecord> {
    let named: Vec<JobId> = vms.iter().filter_map(|vm| job_named(&vm.ownership)).collect();
    let mut last_led: BTreeMap<(VmId, HostId), Timestamp> = BTreeMap::new();
    for record in jobs.iter().filter(|record| record.role == Role::Target && record.settled) {
        let planned_at = last_led.entry(led(&record.plan)).or_insert(record.plan.planned_at);
        *planned_at = record.plan.planned_at.max(*planned_at);
    }
    let open = |record: &JobRecord| {
        let asked = match record.role {
            Role::Source
            | Role::Storage
            | Role::Staging
            | Role::Reader
            | Role::CycleSource
            | Role::Replica
            | Role::Cloner
            | Role::Verifier => false,
            Role::Target => {
                !record.settled && last_led.get(&led(&record.plan)).is_none_or(|last| *last <= record.plan.planned_at)
            }
        };
        record.stage == Stage::InHand || named.contains(&record.plan.job) || asked
    };
    // A record of an earlier version does not say when the job ended.
    let ended = |record: &JobRecord| record.over_at.unwrap_or(record.accepted_at);
    let mut over: Vec<JobRecord> = jobs.into_iter().filter(|record| !open(record)).collect();
    over.sort_by_key(ended);
    let too_many = over.len().saturating_sub(retention.jobs_max as usize);
    let age_max = f64::from(retention.jobs_days) * 86_400.0;
    let old = over.partition_point(|record| now.seconds_since(ended(record)) > age_max);
    over.truncate(old.max(too_many));
    over
}

/// The VMs that were there for one of these rehearsals only. No other host has ever heard of one, and no later job has its id, so
/// that nobody is left whom its tombstone could answer.
fn rehearsed(forgotten: &[JobRecord], vms: &[VmRecord]) -> Vec<VmId> {
    let of_rehearsals: BTreeSet<VmId> = forgotten
        .iter()
        .filter(|record| record.plan.kind == JobKind::Rehearse)
        .map(|record| record.plan.vm.id)
        .collect();
    let gone = vms.iter().filter(|vm| matches!(vm.ownership, Record::Absent { .. }));
    gone.map(|vm| vm.spec.id).filter(|vm| of_rehearsals.contains(vm)).collect()
}

/// Which VM, and who led its move.
fn led(plan: &Plan) -> (VmId, HostId) {
    (plan.vm.id, plan.source.id.clone())
}

/// The job by which this host reaches the other end of a handover.
fn job_named(record: &Record) -> Option<JobId> {
    match record {
        Record::Incoming { from: other, .. }
        | Record::Activating { ceded_by: Some(other), .. }
        | Record::Ceding { to: other, .. }
        | Record::Ceded { to: other, .. } => Some(other.job),
        Record::Absent { .. } | Record::Owner { .. } | Record::Activating { ceded_by: None, .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::id::Generation;
    use sterna_shared::job::{EventBody, Reporter};
    use sterna_shared::ownership::Move;

    use super::super::tests::job_record;
    use super::super::{News, VmRecord};
    use super::*;

    const WEEK: Retention = Retention { jobs_days: 7, jobs_max: 100 };

    fn day(day: u32) -> Timestamp {
        Timestamp::from_unix_microseconds(i64::from(day) * 86_400 * 1_000_000)
    }

    fn id(number: u32) -> JobId {
        format!("0197c0de-0000-7000-8000-{number:012}").parse().expect("a UUID")
    }

    /// A settled job that was planned, and over, on that day.
    fn job(role: Role, number: u32) -> JobRecord {
        let mut record = job_record(role);
        (record.plan.job, record.plan.planned_at) = (id(number), day(number));
        JobRecord { stage: Stage::Over, settled: true, accepted_at: day(number), over_at: Some(day(number)), ..record }
    }

    fn vm(ownership: Record) -> VmRecord {
        VmRecord { spec: job_record(Role::Source).plan.vm, ownership, wanted_running: true }
    }

    fn forgotten(jobs: &[JobRecord], vms: &[VmRecord], retention: Retention, today: u32) -> Vec<JobId> {
        forgettable(jobs.to_vec(), vms, retention, day(today)).iter().map(|record| record.plan.job).collect()
    }

    #[test]
    fn jobs_go_after_their_time() {
        let jobs = [job(Role::Source, 3), job(Role::Storage, 1), job(Role::Target, 2)];
        assert_eq!(forgotten(&jobs, &[], WEEK, 8), []);
        assert_eq!(forgotten(&jobs, &[], WEEK, 9), [id(1)]);
        assert_eq!(forgotten(&jobs, &[], WEEK, 100), [id(1), id(2), id(3)]);
    }

    #[test]
    fn the_oldest_go_first_where_there_are_many() {
        let jobs: Vec<_> = (1..=5).rev().map(|number| job(Role::Source, number)).collect();
        assert_eq!(forgotten(&jobs, &[], Retention { jobs_days: 3650, jobs_max: 3 }, 6), [id(1), id(2)]);
    }

    #[test]
    fn a_job_in_hand_stays() {
        let jobs = [JobRecord { stage: Stage::InHand, ..job(Role::Source, 1) }];
        assert_eq!(forgotten(&jobs, &[], WEEK, 1000), []);
    }

    #[test]
    fn a_job_that_a_record_names_stays() {
        let other = || Move { job: id(1), peer: "bravo".parse().expect("a name") };
        let (owned, generation) = (Generation(1), Generation(2));
        for (role, ownership) in [
            (Role::Source, Record::Ceding { owned, generation, to: other() }),
            (Role::Source, Record::Ceded { owned, generation, to: other() }),
            (Role::Target, Record::Activating { owned, generation, ceded_by: Some(other()) }),
            (Role::Target, Record::Incoming { owned, generation, from: other() }),
        ] {
            let none = Retention { jobs_days: 0, jobs_max: 0 };
            assert_eq!(forgotten(&[job(role, 1)], &[vm(ownership.clone())], none, 1000), [], "{ownership:?}");
        }
        assert_eq!(forgotten(&[job(Role::Source, 1)], &[vm(Record::Owner { generation })], WEEK, 9), [id(1)]);
    }

    #[test]
    fn a_target_remembers_until_its_source_knows() {
        let unsettled = || JobRecord { settled: false, ..job(Role::Target, 1) };
        let owner = [vm(Record::Owner { generation: Generation(2) })];
        assert_eq!(forgotten(&[unsettled()], &owner, WEEK, 1000), [], "the source may still be asking");
        let back_and_here_again = [unsettled(), job(Role::Source, 2), job(Role::Target, 3)];
        assert_eq!(forgotten(&back_and_here_again, &owner, WEEK, 1000), [id(1), id(2), id(3)]);
        let never_came_back = [unsettled(), job(Role::Source, 2)];
        assert_eq!(forgotten(&never_came_back, &owner, WEEK, 1000), [id(2)]);
        let mut from_elsewhere = job(Role::Target, 3);
        from_elsewhere.plan.source.id = "charlie".parse().expect("a name");
        assert_eq!(forgotten(&[unsettled(), from_elsewhere], &owner, WEEK, 1000), [id(3)]);
    }

    #[test]
    fn a_rehearsed_vm_is_forgotten_with_its_rehearsal() {
        let of = |kind, number: u32| {
            let mut record = job(Role::Cloner, number);
            (record.plan.kind, record.plan.vm.id) = (kind, VmId::from_uuid(id(number).uuid()));
            record
        };
        let jobs = [of(JobKind::Rehearse, 1), of(JobKind::Rehearse, 2), of(JobKind::Clone, 3)];
        let absent = Record::Absent { owned: Generation(1), seen: Generation(1) };
        // What could not be removed yet is no tombstone.
        let ownerships = [absent.clone(), Record::Owner { generation: Generation(1) }, absent];
        let vms: Vec<VmRecord> = (1..)
            .zip(ownerships)
            .map(|(number, ownership)| {
                let mut record = vm(ownership);
                record.spec.id = VmId::from_uuid(id(number).uuid());
                record
            })
            .collect();
        assert_eq!(rehearsed(&jobs, &vms), [vms[0].spec.id]);
        assert_eq!(rehearsed(&jobs[1..], &vms), []);
    }

    #[tokio::test]
    async fn what_was_forgotten_is_gone_and_not_taken_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::open(&folder.path().join("journal.redb")).expect("opened");
        let reporter = Reporter::Host("alpha".parse().expect("a name"));
        for number in [1, 5] {
            let record = JobRecord { settled: false, over_at: None, stage: Stage::InHand, ..job(Role::Target, number) };
            journal.put_job(record).await.expect("written");
            let body = EventBody::Notice { text: "here".into() };
            journal.tell(reporter.clone(), vec![News { job: id(number), at: day(number), body }]).await.expect("told");
        }
        journal.note_settled(id(1)).await.expect("noted");
        assert_eq!(journal.forget_jobs(WEEK, day(100)).await.expect("read"), 0, "in hand");
        journal.conclude(id(1), day(2)).await.expect("noted");
        journal.conclude(id(5), day(6)).await.expect("noted");
        assert_eq!(journal.forget_jobs(WEEK, day(9)).await.expect("read"), 0, "the time counts from its end");
        assert_eq!(journal.forget_jobs(WEEK, day(10)).await.expect("forgotten"), 1);
        let kept: Vec<JobId> = journal.jobs().expect("read").iter().map(|record| record.plan.job).collect();
        assert_eq!(kept, [id(5)]);
        assert_eq!(journal.events_after(0, 10).expect("read").len(), 2, "events have a limit of their own");
        let planned = |number| job(Role::Target, number).plan;
        assert!(journal.may_be_forgotten(&planned(1)).expect("read"));
        assert!(!journal.may_be_forgotten(&planned(2)).expect("read"));
        // Nothing to forget changes nothing.
        assert_eq!(journal.forget_jobs(WEEK, day(10)).await.expect("forgotten"), 0);
        assert!(journal.may_be_forgotten(&planned(1)).expect("read"));
    }
}
