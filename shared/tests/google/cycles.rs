//! A replication cycle in each state that it can come to, letter by letter.

use serde_json::{Value, json};
use sterna_shared::job::{EventBody, FailureCode, JobState, JobStatus, Run, StepFigures, StepKind};
use sterna_shared::view::google::{Averages, Pace, Rates, ReplicationCycle, ReplicationCycleState};

use super::jobs::{self, MIB, at, begun, done, printed};
use super::{merged, value};

fn told(bodies: Vec<EventBody>) -> JobStatus {
    jobs::told(jobs::cycle_plan(1), bodies)
}

/// A cycle that copies since second 4.
fn copying() -> Vec<EventBody> {
    vec![begun(StepKind::Prepare), done(StepKind::Prepare, 0), begun(StepKind::CopyDisks)]
}

fn prepared() -> Value {
    json!({ "startTime": printed(2), "endTime": printed(3), "initializingReplication": {} })
}

#[track_caller]
fn reads(status: &JobStatus, pace: Pace<'_>, rest: Value) {
    let base = json!({
        "name": format!("{}/replicationCycles/{}", jobs::NAME, jobs::job(1)),
        "cycleNumber": 7,
        "totalPauseDuration": "0s",
    });
    let cycle = ReplicationCycle::of(&jobs::name(), 7, status, pace, at(14));
    assert_eq!(value(&cycle), merged(base, rest));
}

#[test]
fn a_cycle_runs_and_tells_how_far_it_is() {
    reads(&told(vec![]), Pace::default(), json!({ "state": "RUNNING", "progressPercent": 0 }));
    let mut running = json!({
        "state": "RUNNING",
        "startTime": printed(2),
        "progressPercent": 2,
        "steps": [prepared(), { "startTime": printed(4), "replicating": {} }],
    });
    reads(&told(copying()), Pace::default(), running.clone());
    let progress = jobs::progress(1, 14, 128 * MIB);
    let pace = Pace { progress: Some(&progress), rates: Rates::default() };
    running["progressPercent"] = 25.into();
    // Over the whole step: nobody has told of the last minutes.
    running["steps"][1]["replicating"] = json!({
        "totalBytes": "536870912",
        "replicatedBytes": "134217728",
        "lastTwoMinutesAverageBytesPerSecond": "13421772",
        "lastThirtyMinutesAverageBytesPerSecond": "13421772",
    });
    reads(&told(copying()), pace, running.clone());
    let mut averages = Averages::new();
    averages.feed(at(-200), 0);
    averages.feed(at(-106), 32 * MIB);
    averages.feed(at(14), 128 * MIB);
    let replicating = &mut running["steps"][1]["replicating"];
    replicating["lastTwoMinutesAverageBytesPerSecond"] = (96 * MIB / 120).to_string().into();
    replicating["lastThirtyMinutesAverageBytesPerSecond"] = (128 * MIB / 214).to_string().into();
    reads(&told(copying()), Pace { rates: averages.rates(at(14)), ..pace }, running);
}

#[test]
fn progress_of_another_job_is_left_aside() {
    let progress = jobs::progress(2, 14, 128 * MIB);
    let pace = Pace { progress: Some(&progress), rates: Rates::default() };
    let cycle = value(&ReplicationCycle::of(&jobs::name(), 7, &told(copying()), pace, at(14)));
    assert_eq!(cycle["steps"][1]["replicating"], json!({}));
}

#[test]
fn a_cycle_succeeds() {
    let mut bodies = copying();
    let text = "lane 2 was lost and is there again".to_owned();
    bodies.extend([
        EventBody::Notice { text: text.clone() },
        done(StepKind::CopyDisks, 512 * MIB),
        begun(StepKind::Commit),
        done(StepKind::Commit, 0),
        EventBody::Completed { blackout_us: 0 },
    ]);
    reads(
        &told(bodies),
        Pace::default(),
        json!({
            "state": "SUCCEEDED",
            "startTime": printed(2),
            "endTime": printed(9),
            "progressPercent": 100,
            "steps": [
                prepared(),
                {
                    "startTime": printed(4),
                    "endTime": printed(6),
                    "replicating": {
                        "totalBytes": "536870912",
                        "replicatedBytes": "536870912",
                        "lastTwoMinutesAverageBytesPerSecond": "268435456",
                        "lastThirtyMinutesAverageBytesPerSecond": "268435456",
                    },
                },
                { "startTime": printed(7), "endTime": printed(8), "postProcessing": {} },
            ],
            "warnings": [{
                "warningMessage": { "locale": "en-US", "message": text },
                "warningTime": printed(5),
            }],
        }),
    );
}

fn error(code: i32, about: &str, reason: FailureCode, host: Option<&str>, second: u32) -> Value {
    let mut metadata = json!({ "messageId": reason.entry().message_id });
    if let Some(host) = host {
        metadata["host"] = host.into();
    }
    json!({
        "code": code,
        "message": "image root of web could not be written: no space left on device",
        "details": [
            {
                "@type": "type.googleapis.com/google.cloud.vmmigration.v1.MigrationError",
                "code": about,
                "errorMessage": { "locale": "en-US", "message": "image root of web could not be written" },
                "actionItem": { "locale": "en-US", "message": "make room in pool slow" },
                "errorTime": printed(second),
            },
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason.entry().name.to_uppercase(),
                "domain": "sterna",
                "metadata": metadata,
            },
        ],
    })
}

#[test]
fn a_cycle_that_fails_says_whose_failure_it_is() {
    for (code, host, about, number) in [
        (FailureCode::DiskWrite, Some("bravo"), "TARGET_REPLICATION_ERROR", 13),
        (FailureCode::DiskRead, Some("alpha"), "SOURCE_REPLICATION_ERROR", 15),
        (FailureCode::LinkLost, Some("alpha"), "SOURCE_REPLICATION_ERROR", 14),
        // What the target refuses is the target's, whoever tells of it.
        (FailureCode::TargetRefused, Some("alpha"), "TARGET_REPLICATION_ERROR", 9),
        (FailureCode::PoolFull, Some("alpha"), "TARGET_REPLICATION_ERROR", 8),
        // Both hosts have pools that guests write to.
        (FailureCode::PoolNearlyFull, Some("alpha"), "SOURCE_REPLICATION_ERROR", 8),
        (FailureCode::PoolNearlyFull, Some("bravo"), "TARGET_REPLICATION_ERROR", 8),
        (FailureCode::DiskWrite, None, "TARGET_REPLICATION_ERROR", 13),
        (FailureCode::PlanStale, None, "SOURCE_REPLICATION_ERROR", 9),
        (FailureCode::Internal, None, "UNKNOWN_ERROR", 13),
        (FailureCode::Internal, Some("charlie"), "UNKNOWN_ERROR", 13),
    ] {
        let failure = jobs::failure(code, host);
        let mut bodies = copying();
        bodies.extend([
            EventBody::StepFailed { step: StepKind::CopyDisks, failure: failure.clone() },
            EventBody::Failed { failure },
        ]);
        reads(
            &told(bodies),
            Pace::default(),
            json!({
                "state": "FAILED",
                "startTime": printed(2),
                "endTime": printed(6),
                "progressPercent": 2,
                "steps": [prepared(), { "startTime": printed(4), "endTime": printed(5), "replicating": {} }],
                "error": error(number, about, code, host, 6),
            }),
        );
    }
}

#[test]
fn a_cycle_that_is_cancelled_has_failed_and_says_so() {
    for (last, message) in
        [(EventBody::Terminated, "the cycle was cancelled"), (EventBody::Killed, "the cycle was ended at once")]
    {
        let mut bodies = copying();
        bodies.extend([EventBody::CancelAccepted, last]);
        let status = told(bodies);
        let cycle = value(&ReplicationCycle::of(&jobs::name(), 7, &status, Pace::default(), at(14)));
        assert_eq!((&cycle["state"], &cycle["error"]["code"]), (&"FAILED".into(), &1.into()));
        assert_eq!(cycle["error"]["message"], message);
        assert_eq!(cycle["error"]["details"][0]["code"], "UNKNOWN_ERROR");
        assert_eq!(cycle["error"]["details"][0].get("actionItem"), None);
    }
}

#[test]
fn a_cycle_that_waits_is_paused_for_as_long_as_it_can_tell() {
    let paused = json!({
        "state": "PAUSED",
        "startTime": printed(2),
        "progressPercent": 0,
        "totalPauseDuration": "9s",
    });
    let figures = StepFigures::default();
    let mut bodies = copying();
    bodies.push(EventBody::Suspended { figures });
    reads(&told(bodies.clone()), Pace::default(), paused.clone());
    // The target's pool is full: why it waits is its error.
    let failure = jobs::failure(FailureCode::PoolFull, Some("bravo"));
    let mut asked = copying();
    asked.push(EventBody::Asked { failure, figures });
    let error = json!({ "error": error(8, "TARGET_REPLICATION_ERROR", FailureCode::PoolFull, Some("bravo"), 5) });
    reads(&told(asked), Pace::default(), merged(paused, error));
    // It goes on with a newer plan. How long it stood still its status no longer tells.
    let mut plan = jobs::cycle_plan(1);
    plan.attempt = 1;
    let plan = Box::new(plan);
    bodies.extend([EventBody::Resumed, EventBody::Planned { plan: plan.clone() }, EventBody::Accepted { plan }]);
    bodies.push(begun(StepKind::Prepare));
    let cycle = value(&ReplicationCycle::of(&jobs::name(), 7, &told(bodies), Pace::default(), at(14)));
    assert_eq!((&cycle["state"], cycle.get("totalPauseDuration")), (&"RUNNING".into(), None));
    assert_eq!(cycle["startTime"], printed(2), "it began when it began");
}

#[test]
fn a_cycle_that_has_left_the_list_is_told_by_its_replication() {
    let failure = jobs::failure(FailureCode::DiskWrite, Some("bravo"));
    let plan = jobs::cycle_plan(10);
    let mut run = Run {
        job: jobs::job(1),
        turn: at(0),
        began_at: at(1),
        ended_at: Some(at(4)),
        state: Some(JobState::Exception),
        failure: Some(failure),
    };
    let base = json!({
        "name": format!("{}/replicationCycles/{}", jobs::NAME, jobs::job(1)),
        "cycleNumber": 3,
        "startTime": printed(1),
        "endTime": printed(4),
    });
    let error = error(13, "TARGET_REPLICATION_ERROR", FailureCode::DiskWrite, Some("bravo"), 4);
    let failed = merged(base.clone(), json!({ "state": "FAILED", "error": error }));
    assert_eq!(value(&ReplicationCycle::of_run(&jobs::name(), 3, &plan, &run)), failed);
    (run.state, run.failure) = (Some(JobState::Completed), None);
    let succeeded = merged(base, json!({ "state": "SUCCEEDED", "progressPercent": 100 }));
    assert_eq!(value(&ReplicationCycle::of_run(&jobs::name(), 3, &plan, &run)), succeeded);
}

#[test]
fn a_cycle_is_over_where_its_job_is() {
    for state in JobState::ALL {
        let said = ReplicationCycleState::of(state);
        let over = matches!(said, ReplicationCycleState::Succeeded | ReplicationCycleState::Failed);
        assert_eq!(over, state.is_final(), "{state}");
    }
}
