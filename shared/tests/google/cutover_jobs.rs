//! A cutover job in each state that it can come to, and what the replication says of it.

use serde_json::{Value, json};
use sterna_shared::job::{EventBody, FailureCode, JobKind, JobState, JobStatus, MoveMode, Plan, StepFigures, StepKind};
use sterna_shared::replica::{CutoverStanding, ReplicaView};
use sterna_shared::view::google::{
    CutoverJob, CutoverJobName, CutoverJobState, CutoverStepKind, Known, PAGE_DEFAULT, Page,
};

use super::jobs::{self, MIB, at, begun, done, printed, replication, run_begun, run_ended};
use super::value;

/// A cutover that has done these steps, and no more.
fn after(steps: &[StepKind]) -> JobStatus {
    let bodies = steps.iter().flat_map(|step| [begun(*step), done(*step, 0)]).collect();
    jobs::told(jobs::cutover_plan(1), bodies)
}

fn read(status: &JobStatus) -> Value {
    value(&CutoverJob::of(&jobs::name(), status, None))
}

fn steps(job: &Value) -> Vec<String> {
    let named =
        |step: &Value| step.as_object().and_then(|step| step.keys().find(|key| !key.ends_with("Time")).cloned());
    job["steps"].as_array().into_iter().flatten().filter_map(named).collect()
}

#[test]
fn a_cutover_that_has_not_begun_is_pending() {
    let job = read(&JobStatus::planned(jobs::cutover_plan(1)));
    assert_eq!(
        (&job["state"], &job["stateMessage"], &job["progressPercent"]),
        (&json!("PENDING"), &json!("new"), &json!(0))
    );
    assert_eq!(job["name"], format!("{}/cutoverJobs/{}", jobs::NAME, jobs::job(1)));
    assert_eq!(
        job["name"].as_str().map(str::parse::<CutoverJobName>).and_then(Result::ok),
        Some(jobs::name().cutover_job(jobs::job(1)))
    );
    let details = &job["computeEngineTargetDetails"];
    assert_eq!((&details["vmName"], &details["zone"]), (&json!("web"), &json!("bravo")));
    assert_eq!((job.get("steps"), job.get("error"), job.get("endTime")), (None, None, None));
}

#[test]
fn a_cutover_goes_through_google_s_steps() {
    use StepKind::{CopyDisks, Handover, Prepare, Prove, Release, ShutDown, Switchover};
    let all = [Prepare, CopyDisks, ShutDown, Switchover, Prove, Handover, Release];
    let names = [
        "preparingVmDisks",
        "previousReplicationCycle",
        "shuttingDownSourceVm",
        "finalSync",
        "instantiatingMigratedVm",
    ];
    for (count, told) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 5), (7, 5)] {
        let job = read(&after(&all[..count]));
        assert_eq!(
            (&job["state"], steps(&job)),
            (&json!("ACTIVE"), names[..told].iter().map(ToString::to_string).collect())
        );
    }
    // Two of ours are one of Google's, and over when both are.
    let half = read(&after(&all[..4]));
    let (sync, synced) = (&half["steps"][3], read(&after(&all[..5])));
    assert_eq!((&sync["startTime"], sync.get("endTime")), (&json!(printed(8)), None));
    assert_eq!(synced["steps"][3], json!({ "startTime": printed(8), "endTime": printed(11), "finalSync": {} }));
    assert_eq!(Plan::steps_of(JobKind::Cutover, MoveMode::Cold, true), all);
    let live = Plan::steps_of(JobKind::Cutover, MoveMode::Live, true);
    assert!(live.into_iter().all(|step| CutoverStepKind::of(step).is_some()));
}

#[test]
fn a_cutover_says_how_far_it_is_and_how_it_ended() {
    let moving = jobs::told(jobs::cutover_plan(1), vec![begun(StepKind::CopyDisks)]);
    let progress = jobs::progress(1, 3, 256 * MIB);
    let job = value(&CutoverJob::of(&jobs::name(), &moving, Some(&progress)));
    assert_eq!((&job["progressPercent"], &job["stateMessage"]), (&json!(48), &json!("running: copy_disks")));
    let mut over = moving.clone();
    let failure = jobs::failure(FailureCode::GuestNotShutDown, Some("alpha"));
    let told = jobs::told(jobs::cutover_plan(1), vec![begun(StepKind::ShutDown), EventBody::Failed { failure }]);
    let failed = read(&told);
    assert_eq!((&failed["state"], &failed["error"]["details"][0]["code"]), (&json!("FAILED"), &json!("CUTOVER_ERROR")));
    assert_eq!(failed["endTime"], printed(3));
    over.state = JobState::Completed;
    assert_eq!((&read(&over)["state"], &read(&over)["progressPercent"]), (&json!("SUCCEEDED"), &json!(100)));
}

#[test]
fn no_cutover_adapts_its_os_yet() {
    for state in JobState::ALL {
        for (begun, fails) in [(false, false), (false, true), (true, false), (true, true)] {
            let said = CutoverJobState::of(state, begun, fails);
            assert!(!matches!(said, CutoverJobState::AdaptingOs | CutoverJobState::Unspecified), "{state}");
            let over = [CutoverJobState::Succeeded, CutoverJobState::Failed, CutoverJobState::Cancelled];
            assert_eq!(over.contains(&said), state.is_final(), "{state}");
        }
    }
    // Other numbers than a clone job's.
    let numbers: Vec<i32> = CutoverJobState::ALL.iter().map(|state| state.number()).collect();
    assert_eq!(numbers, (0..=7).collect::<Vec<_>>());
    assert_eq!((CutoverJobState::Failed.number(), CutoverJobState::Active.number()), (2, 6));
}

/// What the replication's state is with these jobs, its VM being elsewhere or where the replica is.
fn replicated(cutover: Option<&JobStatus>, is_there: bool) -> Value {
    let mut all = vec![replication(vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed)])];
    all.extend(cutover.cloned());
    let bravo = "bravo".parse().expect("a name");
    let standing = CutoverStanding::of(all[0].plan.vm.id, &bravo, &all, is_there);
    let view = ReplicaView::of(&bravo, Some(&jobs::replica(1)), Some(&all[0]), standing, at(9)).expect("a view");
    let told = view.state;
    let known = Known { jobs: &all, replicas: &[view], progress: &[], now: at(14) };
    let vm = value(&known.migrating_vms(None))["migratingVms"][0].clone();
    assert_eq!(vm["state"], told.to_string(), "both faces tell the same");
    vm
}

#[test]
fn a_replicated_vm_is_cutting_over_then_at_its_final_sync_then_cut_over() {
    assert_eq!(replicated(None, false)["state"], "ACTIVE");
    let copying = jobs::told(jobs::cutover_plan(1), vec![begun(StepKind::CopyDisks)]);
    let vm = replicated(Some(&copying), false);
    assert_eq!((&vm["state"], &vm["stateTime"]), (&json!("CUTTING_OVER"), &json!(printed(2))));
    assert_eq!(vm["recentCutoverJobs"], json!([read(&copying)]));
    let last = jobs::told(jobs::cutover_plan(1), vec![begun(StepKind::Switchover)]);
    assert_eq!(replicated(Some(&last), false)["state"], "FINAL_SYNC");
    let done =
        jobs::told(jobs::cutover_plan(1), vec![begun(StepKind::Release), EventBody::Completed { blackout_us: 1 }]);
    let vm = replicated(Some(&done), true);
    assert_eq!((&vm["state"], vm.get("cutoverForecast")), (&json!("CUTOVER"), None));
    // It is back.
    assert_eq!(replicated(Some(&done), false)["state"], "ACTIVE");
}

#[test]
fn the_latest_cutover_jobs_are_listed_newest_first() {
    let one = |number: u8| {
        let mut status = JobStatus::planned(jobs::cutover_plan(number));
        status.submitted_at = at(i64::from(number));
        status
    };
    let all: Vec<JobStatus> = (1..=30).map(one).collect();
    let known = Known { jobs: &all, replicas: &[], progress: &[], now: at(14) };
    let list = known.cutover_jobs(&Page::latest(PAGE_DEFAULT)).cutover_jobs;
    let told: Vec<_> = list.iter().map(|job| job.name.job).collect();
    assert_eq!((told.len(), told), (PAGE_DEFAULT, (6..=30).rev().map(jobs::job).collect()));
    assert_eq!(known.cutover_job(jobs::job(3)).map(|job| job.name.vm), Some(jobs::name()));
    assert_eq!(known.cutover_job(jobs::job(77)), None);
    assert_eq!(known.under_way().len(), 30, "it is asked how far they are");
}

#[test]
fn a_forecast_is_made_of_what_cycles_have_measured() {
    let job = replication(vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed)]);
    // 512 MiB sent and read in a second.
    let figures = StepFigures { bytes_total: 512 * MIB, bytes_sent: 512 * MIB, ..StepFigures::default() };
    let copied = EventBody::StepFinished { step: StepKind::CopyDisks, figures };
    let bodies = vec![begun(StepKind::CopyDisks), copied, EventBody::Completed { blackout_us: 0 }];
    let mut cycle = jobs::told(jobs::cycle_plan(11), bodies);
    cycle.parent = Some(job.job);
    let view = ReplicaView::of(&"bravo".parse().expect("a name"), Some(&jobs::replica(2)), Some(&job), None, at(9))
        .expect("a view");
    let seconds = |all: &[JobStatus], now: i64| {
        let known = Known { jobs: all, replicas: std::slice::from_ref(&view), progress: &[], now: at(now) };
        let vm = value(&known.migrating_vms(None))["migratingVms"][0].clone();
        vm["cutoverForecast"]["estimatedCutoverJobDuration"].as_str()?.strip_suffix('s')?.parse::<f64>().ok()
    };
    let both = [job.clone(), cycle];
    // Three readings of 1.5 GiB, and 512 MiB of memory; 0.5 MiB more to send each second.
    let (soon, late) = (seconds(&both, 5).expect("a forecast"), seconds(&both, 1_000_005).expect("a forecast"));
    assert!((9.0..14.0).contains(&soon), "{soon}");
    assert!(late > soon + 900.0, "{late}: what was written since has to be sent");
    assert_eq!(seconds(&[job], 5), None, "nothing was measured");
}
