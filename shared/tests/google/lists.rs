//! Lists, of all that coordinators tell.

use serde_json::json;
use sterna_shared::id::JobId;
use sterna_shared::job::{EventBody, JobState, JobStatus, MoveMode, Progress, StepKind};
use sterna_shared::replica::ReplicaView;
use sterna_shared::view::google::{Known, MachineType, PAGE_DEFAULT, Pace, Page, PageToken, Rates, ReplicationCycle};

use super::jobs::{self, MIB, at, begun, done, printed, replication, run_begun, run_ended};
use super::value;

fn known<'a>(jobs: &'a [JobStatus], replicas: &'a [ReplicaView], progress: &'a [(Progress, Rates)]) -> Known<'a> {
    Known { jobs, replicas, progress, now: at(14) }
}

/// A clone that was submitted so many seconds after the plan.
fn clone_of(number: u8, second: i64) -> JobStatus {
    let mut status = JobStatus::planned(jobs::clone_plan(number));
    status.submitted_at = at(second);
    status
}

/// A cycle that copies since second 4, as a run of job 10.
fn copying(number: u8) -> JobStatus {
    let bodies = vec![begun(StepKind::Prepare), done(StepKind::Prepare, 0), begun(StepKind::CopyDisks)];
    let mut status = jobs::told(jobs::cycle_plan(number), bodies);
    status.parent = Some(jobs::job(10));
    status
}

#[test]
fn the_latest_clone_jobs_are_listed_newest_first() {
    let mut all: Vec<JobStatus> = (1..=30).map(|number| clone_of(number, i64::from(number))).collect();
    // An id that somebody has drawn himself says nothing of the time.
    all[0].submitted_at = at(100);
    all.push(replication(vec![]));
    let list = known(&all, &[], &[]).clone_jobs(&Page::latest(PAGE_DEFAULT)).clone_jobs;
    let told: Vec<JobId> = list.iter().map(|job| job.name.job).collect();
    let expected: Vec<JobId> = [1].into_iter().chain((7..=30).rev()).map(jobs::job).collect();
    assert_eq!((told.len(), told), (PAGE_DEFAULT, expected));
    assert_eq!(list[0].name.vm, jobs::name());
    assert_eq!(value(&known(&[], &[], &[]).clone_jobs(&Page::latest(1))), json!({}), "what is not set is left out");
}

#[test]
fn pages_follow_each_other_also_where_a_job_has_left_the_list() {
    let mut all: Vec<JobStatus> = (1..=7).map(|number| clone_of(number, i64::from(number / 2))).collect();
    all.push(replication(vec![]));
    let mut page = Page::latest(3);
    let mut told = Vec::new();
    loop {
        let list = known(&all, &[], &[]).clone_jobs(&page);
        told.extend(list.clone_jobs.iter().map(|job| job.name.job));
        let Some(token) = list.next_page_token else { break };
        // The last of the page is removed meanwhile.
        all.retain(|job| Some(&job.job) != told.last());
        page.after = Some(token.parse().expect("a token"));
    }
    assert_eq!(told, (1..=7).rev().map(jobs::job).collect::<Vec<_>>());
    for hostile in ["", "1", "1.", ".0197c0de-0000-7000-8000-000000000101", "99999999999999999999.x"] {
        assert!(hostile.parse::<PageToken>().is_err(), "{hostile}");
    }
}

#[test]
fn lists_are_of_what_is_looked_for() {
    let mut all: Vec<JobStatus> = (1..=4).map(|number| clone_of(number, i64::from(number))).collect();
    all[1].state = JobState::Completed;
    all[3].state = JobState::Exception;
    let replicated = all[0].plan.clone.as_ref().expect("a clone").replica.to_string();
    let listed = |vm: Option<&str>, states: &[JobState]| {
        let page = Page { vm: vm.map(str::to_owned), states: states.to_vec(), ..Page::latest(9) };
        page.of(&all).0.iter().map(|job| job.job).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, &[JobState::Completed, JobState::Exception]), [4, 2].map(jobs::job));
    assert_eq!(listed(Some(&replicated), &[]).len(), 4);
    assert_eq!(listed(Some(all[0].plan.vm.name.as_str()), &[JobState::Completed]), [2].map(jobs::job));
    assert!(listed(Some("other"), &[]).is_empty());
}

#[test]
fn a_clone_is_named_by_what_is_still_known() {
    let named = |jobs: &[JobStatus], replicas: &[ReplicaView]| {
        let found = known(jobs, replicas, &[]).clone_job(jobs::job(1));
        found.map(|clone| clone.name.vm.to_string())
    };
    let clone = clone_of(1, 0);
    assert_eq!(named(&[clone.clone(), replication(vec![])], &[]).as_deref(), Some(jobs::NAME));
    let host = "bravo".parse().expect("a name");
    let view = ReplicaView::of(&host, Some(&jobs::replica(1)), None, None, at(9)).expect("a view");
    assert_eq!(named(std::slice::from_ref(&clone), &[view]).as_deref(), Some(jobs::NAME));
    let mut asked = clone.clone();
    asked.request.vm = "web".to_owned();
    let at_its_host = "projects/sterna/locations/bravo/sources/bravo/migratingVms/web";
    assert_eq!(named(&[asked], &[]).as_deref(), Some(at_its_host));
    assert_eq!(named(&[clone], &[]), None, "an id is no name");
    assert_eq!(named(&[replication(vec![])], &[]), None, "another job");
}

#[test]
fn cycles_are_listed_newest_first_with_their_progress() {
    let job = replication(vec![run_begun(1, 11), run_ended(2, 11, JobState::Completed), run_begun(3, 12)]);
    let all = [copying(12), job.clone()];
    let rates = Rates { two_minutes: Some(7), thirty_minutes: None };
    let progress = [(jobs::progress(12, 14, 128 * MIB), rates)];
    let known = known(&all, &[], &progress);
    assert_eq!(known.under_way(), [jobs::job(12)]);
    let list = value(&known.replication_cycles("web"));
    let pace = Pace { progress: Some(&progress[0].0), rates };
    let second = ReplicationCycle::of(&jobs::name(), 2, &all[0], pace, at(14));
    let first = ReplicationCycle::of_run(&jobs::name(), 1, &job.plan, &job.runs.latest[0]);
    assert_eq!(list, json!({ "replicationCycles": [value(&second), value(&first)] }));
    assert_eq!(list["replicationCycles"][0]["progressPercent"], 25);
    let replicating = &list["replicationCycles"][0]["steps"][1]["replicating"];
    assert_eq!(replicating["lastTwoMinutesAverageBytesPerSecond"], "7");
    assert_eq!(replicating["lastThirtyMinutesAverageBytesPerSecond"], "13421772", "of the whole step");
    assert_eq!(known.replication_cycles(jobs::VM), known.replication_cycles("web"), "by its id");
    assert_eq!(value(&known.replication_cycles("other")), json!({}));
}

#[test]
fn a_cycle_is_shown_by_its_number() {
    let job = replication(vec![run_begun(1, 11), run_ended(2, 11, JobState::Completed), run_begun(3, 12)]);
    let mut before = JobStatus::planned(jobs::cycle_plan(20));
    before.plan.target.id = "charlie".parse().expect("a name");
    before.state = JobState::Terminated;
    before.started_at = Some(at(0));
    let all = [before, copying(12), job];
    let known = known(&all, &[], &[]);
    let shown = |vm, number| known.replication_cycle(vm, number).map(|cycle| cycle.job());
    assert_eq!((shown("web", 1), shown("web", 2)), (Some(jobs::job(11)), Some(jobs::job(12))));
    assert_eq!((shown("web", 3), shown("web", 0), shown("other", 1)), (None, None, None));
    assert_eq!(known.replication_cycle("web", 2), known.replication_cycles("web").replication_cycles.first().cloned());
}

#[test]
fn the_basic_view_lacks_the_latest_jobs_and_nothing_else() {
    let mut cutover = jobs::told(jobs::cutover_plan(3), vec![begun(StepKind::Prepare)]);
    cutover.state = JobState::Exception;
    let all = [replication(vec![]), clone_of(1, 3), cutover];
    let list = known(&all, &[], &[]).migrating_vms(None);
    let (mut full, basic) = (value(&list)["migratingVms"][0].clone(), value(&list.basic())["migratingVms"][0].clone());
    for gone in ["recentCloneJobs", "recentCutoverJobs"] {
        assert!(full.as_object_mut().expect("an object").remove(gone).is_some(), "{gone}");
    }
    assert_eq!(basic, full);
}

#[test]
fn a_group_is_where_replicas_are_of_what_is_in_it() {
    let live = replication(vec![]);
    let mut elsewhere = live.clone();
    (elsewhere.job, elsewhere.plan.target.id) = (jobs::job(20), "charlie".parse().expect("a name"));
    elsewhere.policy.group = Some("day".to_owned());
    let mut over = live.clone();
    (over.job, over.plan.target.id, over.state) =
        (jobs::job(30), "delta".parse().expect("a name"), JobState::Terminated);
    let mut moved = clone_of(1, 3);
    moved.policy.group = Some("moves".to_owned());
    let all = [elsewhere, live, over, moved];
    let known = known(&all, &[], &[]);
    let group = |location: &str, part: &str, name: &str| {
        json!({
            "name": format!("projects/sterna/locations/{location}/groups/{part}"),
            "displayName": name,
            "migrationTargetType": "MIGRATION_TARGET_TYPE_GCE",
        })
    };
    let (night, day) = (group("bravo", "night%2Fshift", "night/shift"), group("charlie", "day", "day"));
    assert_eq!(value(&known.groups(None)), json!({ "groups": [night, day] }));
    assert_eq!(value(&known.groups(Some("day"))), json!({ "groups": [day] }));
    assert_eq!(value(&known.groups(Some("moves"))), json!({}), "of replications only");
    let vm = &value(&known.migrating_vms(None))["migratingVms"][0];
    assert_eq!(vm["group"], night["name"], "as its members say");
}

#[test]
fn of_a_vm_and_a_host_there_is_one_replication() {
    let live = replication(vec![run_begun(1, 11)]);
    let mut over = JobStatus::planned(jobs::cycle_plan(20));
    over.submitted_at = at(5);
    over.state = JobState::Terminated;
    let mut run = copying(11);
    run.state = JobState::Running;
    let all = [over.clone(), run, live, clone_of(1, 3)];
    let list = value(&known(&all, &[], &[]).migrating_vms(None));
    assert_eq!(list["migratingVms"].as_array().map(Vec::len), Some(1), "a run is a cycle of it");
    let vm = &list["migratingVms"][0];
    assert_eq!((&vm["state"], &vm["name"]), (&json!("FIRST_SYNC"), &json!(jobs::NAME)));
    let clone = &vm["recentCloneJobs"][0];
    assert_eq!(clone["name"], format!("{}/cloneJobs/{}", jobs::NAME, jobs::job(1)));
    assert_eq!(clone["createTime"], printed(3));
    let over = [over];
    assert_eq!(value(&known(&over, &[], &[]).migrating_vms(Some("web")))["migratingVms"][0]["state"], "FINALIZED");
    assert_eq!(value(&known(&all, &[], &[]).migrating_vms(Some("other"))), json!({}));
}

#[test]
fn memory_is_no_part_of_a_cycle() {
    let mut plan = jobs::cycle_plan(1);
    plan.mode = MoveMode::Live;
    let copy = |bodies: Vec<EventBody>| jobs::told(plan.clone(), bodies);
    let running = copy(vec![begun(StepKind::Prepare), done(StepKind::Prepare, 0), begun(StepKind::CopyDisks)]);
    let whole = jobs::progress(1, 14, 512 * MIB);
    assert_eq!(running.percent(Some(&whole)).to_string(), "95", "all disks are there, and no memory is to come");
    let mut clone = jobs::clone_plan(1);
    clone.mode = MoveMode::Live;
    let status = jobs::told(clone, vec![begun(StepKind::CloneDisks)]);
    assert_eq!(status.percent(None).to_string(), "0");
}

#[test]
fn machine_types_are_read_as_they_are_made() {
    for (vcpus, memory_mib) in [(1, 1), (2, 4096), (u16::MAX, u64::MAX >> 20)] {
        let machine = MachineType { vcpus, memory_mib };
        assert_eq!(machine.to_string().parse(), Ok(machine));
    }
    let too_much = format!("custom-1-{}", (u64::MAX >> 20) + 1);
    for wrong in [
        "",
        "n1-standard-4",
        "custom-0-512",
        "custom-1-0",
        "custom-65536-1",
        "custom-+1-1",
        "custom-1-1-ext",
        &too_much,
    ] {
        let error = wrong.parse::<MachineType>().expect_err(wrong);
        assert!(error.to_string().contains("custom-2-4096"), "{error}");
    }
}
