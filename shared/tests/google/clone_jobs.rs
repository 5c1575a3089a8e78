//! A clone job in each state that it can come to, letter by letter.

use serde_json::{Value, json};
use sterna_shared::job::{EventBody, FailureCode, JobState, JobStatus, StepKind};
use sterna_shared::view::google::{CloneJob, CloneJobState, CloneStage, MigrationErrorCode};
use sterna_shared::vm::Firmware;

use super::jobs::{self, begun, done, printed};
use super::{merged, value};

/// What is the same in all of them, and what is not.
fn expected(rest: Value) -> Value {
    let old = json!({
        "name": "web-test",
        "targetProject": "sterna",
        "zone": "bravo",
        "machineType": "custom-2-512",
        "networkInterfaces": [{ "network": "br0" }, {}],
        "bootOption": "EFI",
    });
    let base = json!({
        "createTime": printed(0),
        "name": format!("{}/cloneJobs/{}", jobs::NAME, jobs::job(1)),
        "targetDetails": old,
        "computeEngineVmDetails": old,
        "computeEngineTargetDetails": {
            "vmName": "web-test",
            "project": "sterna",
            "zone": "bravo",
            "machineType": "custom-2-512",
            "networkInterfaces": [{ "network": "br0" }, {}],
            "bootOption": "COMPUTE_ENGINE_BOOT_OPTION_EFI",
            "hostname": "web.example",
        },
    });
    merged(base, rest)
}

fn told(bodies: Vec<EventBody>) -> JobStatus {
    jobs::told(jobs::clone_plan(1), bodies)
}

#[track_caller]
fn reads(status: &JobStatus, rest: Value) {
    assert_eq!(value(&CloneJob::of(&jobs::name(), status)), expected(rest));
}

#[test]
fn a_clone_that_has_not_begun_is_pending() {
    reads(&JobStatus::planned(jobs::clone_plan(1)), json!({ "state": "PENDING", "stateTime": printed(0) }));
    reads(&told(vec![]), json!({ "state": "PENDING", "stateTime": printed(1) }));
}

#[test]
fn a_clone_has_the_labels_that_it_was_asked_for_with() {
    let mut status = JobStatus::planned(jobs::clone_plan(1));
    status.policy.labels = [("for".to_owned(), "tests".to_owned())].into();
    let job = value(&CloneJob::of(&jobs::name(), &status));
    for details in ["targetDetails", "computeEngineVmDetails", "computeEngineTargetDetails"] {
        assert_eq!(job[details]["labels"], json!({ "for": "tests" }), "{details}");
    }
}

#[test]
fn a_clone_that_is_made_is_active_and_succeeds() {
    let disks = json!({ "startTime": printed(2), "preparingVmDisks": {} });
    let disks_done = json!({ "startTime": printed(2), "endTime": printed(3), "preparingVmDisks": {} });
    let mut bodies = vec![begun(StepKind::CloneDisks)];
    reads(&told(bodies.clone()), json!({ "state": "ACTIVE", "stateTime": printed(2), "steps": [disks] }));
    bodies.extend([done(StepKind::CloneDisks, 0), begun(StepKind::Instantiate)]);
    let instantiating = json!({ "startTime": printed(4), "instantiatingMigratedVm": {} });
    let steps = json!([disks_done, instantiating]);
    reads(&told(bodies.clone()), json!({ "state": "ACTIVE", "stateTime": printed(2), "steps": steps }));
    bodies.extend([done(StepKind::Instantiate, 0), EventBody::Completed { blackout_us: 0 }]);
    let instantiated = json!({ "startTime": printed(4), "endTime": printed(5), "instantiatingMigratedVm": {} });
    reads(
        &told(bodies),
        json!({
            "state": "SUCCEEDED",
            "stateTime": printed(6),
            "endTime": printed(6),
            "steps": [disks_done, instantiated],
        }),
    );
}

#[test]
fn a_clone_whose_system_is_adapted_says_so_as_long_as_it_is() {
    let disks = json!({ "startTime": printed(2), "endTime": printed(3), "preparingVmDisks": {} });
    let mut bodies = vec![begun(StepKind::CloneDisks), done(StepKind::CloneDisks, 0), begun(StepKind::AdaptOs)];
    let adapting = json!({ "startTime": printed(4), "adaptingOs": {} });
    let steps = json!([disks, adapting]);
    reads(&told(bodies.clone()), json!({ "state": "ADAPTING_OS", "stateTime": printed(4), "steps": steps }));
    bodies.push(done(StepKind::AdaptOs, 0));
    let adapted = json!({ "startTime": printed(4), "endTime": printed(5), "adaptingOs": {} });
    let steps = json!([disks, adapted]);
    reads(&told(bodies.clone()), json!({ "state": "ACTIVE", "stateTime": printed(5), "steps": steps }));
    bodies.pop();
    bodies.push(EventBody::CancelAccepted);
    let status = told(bodies);
    assert_eq!(CloneJob::of(&jobs::name(), &status).state, CloneJobState::Cancelling);
}

#[test]
fn a_system_that_cannot_be_adapted_has_an_error_of_its_own() {
    let plan = jobs::clone_plan(1);
    let code = |code| MigrationErrorCode::of(&plan, &jobs::failure(code, Some("bravo")));
    assert_eq!(code(FailureCode::OsAdaptation), MigrationErrorCode::OsAdaptation);
    assert_eq!(code(FailureCode::Hypervisor), MigrationErrorCode::Clone);
}

#[test]
fn a_clone_that_fails_says_why() {
    let failure = jobs::failure(FailureCode::PoolFull, Some("bravo"));
    let failed = EventBody::StepFailed { step: StepKind::CloneDisks, failure: failure.clone() };
    let mut bodies = vec![begun(StepKind::CloneDisks), failed];
    let steps = json!([{ "startTime": printed(2), "endTime": printed(3), "preparingVmDisks": {} }]);
    reads(&told(bodies.clone()), json!({ "state": "ACTIVE", "stateTime": printed(3), "steps": steps }));
    bodies.push(EventBody::Failed { failure });
    reads(
        &told(bodies),
        json!({
            "state": "FAILED",
            "stateTime": printed(4),
            "endTime": printed(4),
            "steps": steps,
            "error": {
                "code": 8,
                "message": "image root of web could not be written: no space left on device",
                "details": [
                    {
                        "@type": "type.googleapis.com/google.cloud.vmmigration.v1.MigrationError",
                        "code": "CLONE_ERROR",
                        "errorMessage": { "locale": "en-US", "message": "image root of web could not be written" },
                        "actionItem": { "locale": "en-US", "message": "make room in pool slow" },
                        "errorTime": printed(4),
                    },
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "POOL_FULL",
                        "domain": "sterna",
                        "metadata": { "host": "bravo", "messageId": FailureCode::PoolFull.entry().message_id },
                    },
                ],
            },
        }),
    );
}

#[test]
fn a_clone_that_is_cancelled_is_cancelling_and_then_cancelled() {
    let mut bodies = vec![begun(StepKind::CloneDisks), EventBody::CancelAccepted];
    let steps = json!([{ "startTime": printed(2), "preparingVmDisks": {} }]);
    reads(&told(bodies.clone()), json!({ "state": "CANCELLING", "stateTime": printed(3), "steps": steps }));
    bodies.push(EventBody::Terminated);
    let steps = json!([{ "startTime": printed(2), "endTime": printed(4), "preparingVmDisks": {} }]);
    let over = json!({ "state": "CANCELLED", "stateTime": printed(4), "endTime": printed(4), "steps": steps });
    reads(&told(bodies.clone()), over.clone());
    bodies.pop();
    bodies.push(EventBody::Killed);
    reads(&told(bodies), over);
}

/// A step that ends because of a cancel fails with that, and is no failure of the clone.
#[test]
fn a_step_that_was_cancelled_is_no_failure() {
    let failure = jobs::failure(FailureCode::Cancelled, Some("bravo"));
    let status = told(vec![begun(StepKind::CloneDisks), EventBody::StepFailed { step: StepKind::CloneDisks, failure }]);
    assert_eq!(CloneJob::of(&jobs::name(), &status).state, CloneJobState::Cancelling);
}

#[test]
fn a_bios_is_told_as_one() {
    let mut status = JobStatus::planned(jobs::clone_plan(1));
    status.plan.vm.firmware = Firmware::Bios;
    status.plan.vm_at_target.firmware = Firmware::Bios;
    let clone = value(&CloneJob::of(&jobs::name(), &status));
    assert_eq!(clone["computeEngineTargetDetails"]["bootOption"], "COMPUTE_ENGINE_BOOT_OPTION_BIOS");
    assert_eq!(clone["targetDetails"]["bootOption"], "BIOS");
}

#[test]
fn secure_boot_is_told_where_it_is_on() {
    let mut status = JobStatus::planned(jobs::clone_plan(1));
    (status.plan.vm.secure_boot, status.plan.vm_at_target.secure_boot) = (true, true);
    let clone = value(&CloneJob::of(&jobs::name(), &status));
    for details in ["targetDetails", "computeEngineVmDetails", "computeEngineTargetDetails"] {
        assert_eq!(clone[details]["secureBoot"], true, "{details}");
    }
}

#[test]
fn its_states_are_over_when_the_job_is() {
    for state in JobState::ALL {
        for (stage, fails) in CloneStage::ALL.into_iter().flat_map(|stage| [(stage, false), (stage, true)]) {
            let said = CloneJobState::of(state, stage, fails);
            assert!(said != CloneJobState::Unspecified, "{state}");
            let adapts = state == JobState::Running && stage == CloneStage::AdaptingOs;
            assert_eq!(said == CloneJobState::AdaptingOs, adapts, "{state}");
            let over = [CloneJobState::Succeeded, CloneJobState::Failed, CloneJobState::Cancelled];
            assert_eq!(over.contains(&said), state.is_final(), "{state}");
        }
    }
}
