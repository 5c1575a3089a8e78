//! The replication of a VM in each state that it can come to, letter by letter.

use serde_json::{Value, json};
use sterna_shared::job::{EventBody, Expiration, FailureCode, JobState, JobStatus, StepKind};
use sterna_shared::replica::{Replica, Standing};
use sterna_shared::view::google::{CloneJob, MigratingVm, MigratingVmState, Pace, Replication, ReplicationCycle};

use super::jobs::{self, at, begun, printed, replica, replication, run_begun, run_ended};
use super::{merged, value};

struct Known<'a> {
    runs: &'a [&'a JobStatus],
    clones: &'a [&'a JobStatus],
    replica: Option<&'a Replica>,
}

const NOTHING: Known<'static> = Known { runs: &[], clones: &[], replica: None };

fn read(job: &JobStatus, known: &Known<'_>) -> Value {
    let Known { runs, clones, replica } = *known;
    let (cutovers, cut_over, pace, now) = (&[][..], false, Pace::default(), at(19));
    value(&MigratingVm::of(&Replication { job, runs, clones, cutovers, cut_over, replica, pace, now }))
}

/// What is the same in all of them, and what is not.
fn expected(rest: Value) -> Value {
    let base = json!({
        "computeEngineTargetDefaults": {
            "targetProject": "sterna",
            "zone": "bravo",
            "machineType": "custom-2-512",
            "networkInterfaces": [{}, {}],
            "bootOption": "COMPUTE_ENGINE_BOOT_OPTION_EFI",
        },
        "name": jobs::NAME,
        "sourceVmId": jobs::VM,
        "displayName": "web",
        "description": "replication of VM web from alpha to bravo: disk root to pool slow",
        "policy": { "idleDuration": "300s", "skipOsAdaptation": false },
        "createTime": printed(0),
        "group": "projects/sterna/locations/bravo/groups/night%2Fshift",
    });
    merged(base, rest)
}

fn cycle(number: u32, status: &JobStatus) -> Value {
    value(&ReplicationCycle::of(&jobs::name(), number, status, Pace::default(), at(19)))
}

fn remembered(job: &JobStatus, number: u32) -> Value {
    let run = &job.runs.latest[number as usize - 1];
    value(&ReplicationCycle::of_run(&jobs::name(), number, &job.plan, run))
}

/// A cycle that copies.
fn copying(number: u8) -> JobStatus {
    jobs::told(jobs::cycle_plan(number), vec![begun(StepKind::Prepare)])
}

#[test]
fn before_the_first_cycle_it_is_ready() {
    let job = replication(vec![]);
    let ready = expected(json!({ "state": "READY", "stateTime": printed(0), "updateTime": printed(0) }));
    assert_eq!(read(&job, &NOTHING), ready);
    let held = replication(vec![(3, EventBody::Held)]);
    let held = read(&held, &NOTHING);
    assert_eq!((&held["state"], &held["stateTime"]), (&"READY".into(), &printed(3).into()));
}

#[test]
fn a_clone_has_secure_boot_by_default_where_the_vm_has_it() {
    let mut job = replication(vec![]);
    job.plan.vm.secure_boot = true;
    assert_eq!(read(&job, &NOTHING)["computeEngineTargetDefaults"]["secureBoot"], true);
}

#[test]
fn the_first_cycle_is_the_first_sync() {
    let job = replication(vec![run_begun(1, 11)]);
    let run = copying(11);
    let syncing = json!({
        "state": "FIRST_SYNC",
        "stateTime": printed(1),
        "updateTime": printed(2),
        "currentSyncInfo": cycle(1, &run),
    });
    let empty = replica(0);
    let known = Known { runs: &[&run], replica: Some(&empty), ..NOTHING };
    assert_eq!(read(&job, &known), expected(syncing));
}

#[test]
fn with_a_snapshot_it_is_active_between_cycles_and_in_them() {
    let mut events = vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed)];
    let synced = replica(1);
    let resting = replication(events.clone());
    let last = json!({
        "state": "ACTIVE",
        "stateTime": printed(3),
        "updateTime": printed(3),
        "lastSync": { "lastSyncTime": "2026-11-21T22:26:42.250Z" },
        "lastReplicationCycle": remembered(&resting, 1),
    });
    let known = Known { replica: Some(&synced), ..NOTHING };
    assert_eq!(read(&resting, &known), expected(last.clone()));
    events.push(run_begun(7, 12));
    let job = replication(events);
    let run = copying(12);
    let known = Known { runs: &[&run], ..known };
    let both = merged(last, json!({ "updateTime": printed(7), "currentSyncInfo": cycle(2, &run) }));
    assert_eq!(read(&job, &known), expected(both));
}

#[test]
fn after_a_failed_cycle_it_is_in_error_until_the_next() {
    let mut events = vec![run_begun(1, 11), run_ended(3, 11, JobState::Exception)];
    let job = replication(events.clone());
    let failed = remembered(&job, 1);
    assert_eq!(failed["error"]["details"][0]["code"], "TARGET_REPLICATION_ERROR");
    let error = json!({
        "state": "ERROR",
        "stateTime": printed(3),
        "updateTime": printed(3),
        "lastReplicationCycle": failed,
        "error": failed["error"],
    });
    assert_eq!(read(&job, &NOTHING), expected(error));
    events.push(run_begun(8, 12));
    let again = replication(events);
    let again = read(&again, &NOTHING);
    assert_eq!((&again["state"], &again["stateTime"]), (&"FIRST_SYNC".into(), &printed(8).into()));
    assert_eq!((again.get("error"), &again["lastReplicationCycle"]["cycleNumber"]), (None, &1.into()));
    assert_eq!(again["currentSyncInfo"]["cycleNumber"], 2);
}

/// The run's own last word comes before its replication hears of it.
#[test]
fn a_cycle_is_over_when_it_says_so_itself() {
    let job = replication(vec![run_begun(1, 11)]);
    let failure = jobs::failure(FailureCode::LinkLost, Some("alpha"));
    let run = jobs::told(jobs::cycle_plan(11), vec![begun(StepKind::Prepare), EventBody::Failed { failure }]);
    let vm = read(&job, &Known { runs: &[&run], ..NOTHING });
    assert_eq!((&vm["state"], vm.get("currentSyncInfo")), (&"ERROR".into(), None));
    assert_eq!(vm["lastReplicationCycle"], cycle(1, &run));
    assert_eq!(vm["error"]["details"][1]["reason"], "LINK_LOST");
    assert_eq!(vm["stateTime"], printed(3));
}

#[test]
fn suspended_it_is_paused() {
    let figures = Default::default();
    let events = vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed), (5, EventBody::Suspended { figures })];
    let job = replication(events.clone());
    let paused = json!({
        "state": "PAUSED",
        "stateTime": printed(5),
        "updateTime": printed(5),
        "lastReplicationCycle": remembered(&job, 1),
    });
    assert_eq!(read(&job, &NOTHING), expected(paused));
    // Let go on, it is active from then on.
    let mut resumed = events.clone();
    resumed.push((9, EventBody::Resumed));
    let vm = read(&replication(resumed), &NOTHING);
    assert_eq!((&vm["state"], &vm["stateTime"]), (&"ACTIVE".into(), &printed(9).into()));
    // Held by the service it makes no cycles either.
    let mut held = events;
    held.pop();
    held.push((6, EventBody::Held));
    let vm = read(&replication(held), &NOTHING);
    assert_eq!((&vm["state"], &vm["stateTime"]), (&"PAUSED".into(), &printed(6).into()));
}

#[test]
fn ended_it_is_finalized() {
    for (last, state) in [
        (EventBody::CancelAccepted, "FINALIZING"),
        (EventBody::Terminated, "FINALIZED"),
        (EventBody::Killed, "FINALIZED"),
        (EventBody::Completed { blackout_us: 0 }, "FINALIZED"),
    ] {
        let job = replication(vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed), (6, last)]);
        let ended = json!({
            "state": state,
            "stateTime": printed(6),
            "updateTime": printed(6),
            "lastReplicationCycle": remembered(&job, 1),
        });
        assert_eq!(read(&job, &NOTHING), expected(ended));
    }
}

#[test]
fn a_replication_has_its_job_s_labels() {
    let mut job = replication(vec![]);
    job.policy.labels = [("team".to_owned(), "shop".to_owned())].into();
    assert_eq!(read(&job, &NOTHING)["labels"], json!({ "team": "shop" }));
}

/// Also where it is paused; and after its end as well, if it had expired before.
#[test]
fn what_has_expired_says_so_until_it_is_extended() {
    let expiring = |second: i64, events: Vec<(i64, EventBody)>| {
        let mut job = replication(events);
        job.policy.expiration = Some(Expiration { extensions: 1, ..Expiration::at(at(second)) });
        job
    };
    let paused = (5, EventBody::Suspended { figures: Default::default() });
    let job = expiring(12, vec![paused.clone()]);
    let expiration = json!({ "expireTime": printed(12), "extensionCount": 1, "extendable": true });
    let expired = json!({
        "state": "EXPIRED",
        "stateTime": printed(12),
        "updateTime": printed(5),
        "expiration": expiration,
    });
    assert_eq!(read(&job, &NOTHING), expected(expired));
    let later = read(&expiring(30, vec![paused]), &NOTHING);
    assert_eq!(later["state"], "PAUSED");
    let states = [6, 15].map(|second| {
        let ended = read(&expiring(12, vec![(second, EventBody::Terminated)]), &NOTHING);
        assert_eq!(ended["expiration"]["extendable"], false);
        ended["state"].clone()
    });
    assert_eq!(states, ["FINALIZED", "FINALIZED_EXPIRED"]);
}

/// Whatever the VM's state was, and until none of its hosts keeps anything.
#[test]
fn finalized_it_is_finalizing_until_nothing_of_it_is_left() {
    let hosts = vec!["alpha".parse().expect("a name")];
    let paused = (5, EventBody::Suspended { figures: Default::default() });
    let mut events = vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed), paused];
    events.push((7, EventBody::Finalizing { hosts }));
    let job = replication(events.clone());
    let finalizing = json!({
        "state": "FINALIZING",
        "stateTime": printed(7),
        "updateTime": printed(7),
        "lastReplicationCycle": remembered(&job, 1),
    });
    assert_eq!(read(&job, &NOTHING), expected(finalizing));
    events.push((9, EventBody::Completed { blackout_us: 0 }));
    let vm = read(&replication(events), &NOTHING);
    assert_eq!((&vm["state"], &vm["stateTime"]), (&"FINALIZED".into(), &printed(9).into()));
}

#[test]
fn a_replication_that_itself_failed_is_in_error() {
    let failure = jobs::failure(FailureCode::PlanStale, None);
    let job = replication(vec![(4, EventBody::Failed { failure })]);
    let vm = read(&job, &NOTHING);
    assert_eq!((&vm["state"], &vm["stateTime"]), (&"ERROR".into(), &printed(4).into()));
    assert_eq!(vm["error"]["details"][0]["code"], "SOURCE_REPLICATION_ERROR");
}

/// One that is made once is its own only cycle.
#[test]
fn a_replication_without_a_schedule_is_its_own_cycle() {
    let waits = JobStatus::planned(jobs::cycle_plan(10));
    let vm = read(&waits, &NOTHING);
    assert_eq!((&vm["state"], vm.get("currentSyncInfo")), (&"READY".into(), None));
    assert_eq!(vm["policy"], json!({ "skipOsAdaptation": false }));
    let runs = copying(10);
    let vm = read(&runs, &NOTHING);
    assert_eq!((&vm["state"], &vm["currentSyncInfo"]), (&"FIRST_SYNC".into(), &cycle(1, &runs)));
    let failure = jobs::failure(FailureCode::DiskRead, Some("alpha"));
    let failed = EventBody::StepFailed { step: StepKind::Prepare, failure };
    let unwinds = jobs::told(jobs::cycle_plan(10), vec![begun(StepKind::Prepare), failed]);
    let vm = read(&unwinds, &NOTHING);
    assert_eq!((&vm["state"], &vm["error"]["code"]), (&"ERROR".into(), &15.into()));
}

#[test]
fn the_last_clone_and_those_under_way_are_listed() {
    let made = |number: u8, bodies: Vec<EventBody>| jobs::told(jobs::clone_plan(number), bodies);
    let first = made(1, vec![EventBody::Terminated]);
    let second = made(2, vec![begun(StepKind::CloneDisks), EventBody::Completed { blackout_us: 0 }]);
    let running = made(3, vec![begun(StepKind::CloneDisks)]);
    let mut other = made(4, vec![]);
    other.plan.clone.as_mut().expect("a clone").replica =
        "0197c0de-0000-7000-8000-00000000ffff".parse().expect("a UUID");
    let mut elsewhere = made(5, vec![]);
    elsewhere.plan.target.id = "charlie".parse().expect("a name");
    let clones = [&running, &first, &other, &elsewhere, &second];
    let vm = read(&replication(vec![]), &Known { clones: &clones, ..NOTHING });
    let listed = |status| value(&CloneJob::of(&jobs::name(), status));
    assert_eq!(vm["recentCloneJobs"], json!([listed(&second), listed(&running)]));
    assert_eq!(read(&replication(vec![]), &NOTHING).get("recentCloneJobs"), None, "there are none");
}

/// A job remembers the last of its runs, and what was before them is not told.
#[test]
fn of_many_cycles_the_number_stays_right() {
    let mut events = Vec::new();
    for number in 101..=200 {
        let second = i64::from(number) * 2;
        events.push(run_begun(second, number));
        events.push(run_ended(second + 1, number, JobState::Completed));
    }
    let vm = read(&replication(events), &NOTHING);
    assert_eq!((&vm["state"], &vm["lastReplicationCycle"]["cycleNumber"]), (&"ACTIVE".into(), &100.into()));
}

#[test]
fn a_replica_of_an_earlier_replication_makes_it_active_from_the_beginning() {
    let synced = replica(2);
    let job = replication(vec![run_begun(1, 11)]);
    let vm = read(&job, &Known { replica: Some(&synced), ..NOTHING });
    assert_eq!((&vm["state"], &vm["stateTime"]), (&"ACTIVE".into(), &printed(0).into()));
    // One that was dropped is synced anew.
    let job = replication(vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed), run_begun(8, 12)]);
    let empty = replica(0);
    let vm = read(&job, &Known { replica: Some(&empty), ..NOTHING });
    assert_eq!((&vm["state"], vm.get("lastSync")), (&"FIRST_SYNC".into(), None));
}

#[test]
fn states_of_what_is_not_built_yet_are_never_told() {
    use MigratingVmState as Said;
    let said = [
        Said::Ready,
        Said::FirstSync,
        Said::Active,
        Said::Paused,
        Said::Finalizing,
        Said::Finalized,
        Said::Error,
        Said::Expired,
        Said::FinalizedExpired,
    ];
    for state in JobState::ALL {
        for bits in 0..64_u8 {
            let [fails, under_way, synced, failed, finalizing, expired] =
                [1, 2, 4, 8, 16, 32].map(|bit| bits & bit != 0);
            let found =
                Said::of(Standing { state, fails, under_way, synced, failed, cutover: None, finalizing, expired });
            assert!(said.contains(&found), "{state}: {found:?}");
            let over = matches!(found, Said::Finalized | Said::FinalizedExpired | Said::Error);
            assert!(over || !state.is_final(), "{state}: {found:?}");
        }
    }
}
