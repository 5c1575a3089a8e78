//! Operations: done as soon as their jobs have begun, and called off where these never began.

use serde_json::{Value, json};
use sterna_shared::job::{EventBody, JobState, JobStatus, StepKind};
use sterna_shared::view::google::{CloneJob, Known};

use super::jobs::{self, at, begun, printed, replication, run_begun, run_ended};
use super::value;

const PREFIX: &str = "projects/sterna/locations/bravo/operations";

fn read(jobs: &[JobStatus]) -> Vec<Value> {
    let list = value(&Known { jobs, replicas: &[], progress: &[], now: at(19) }.operations());
    list.get("operations").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// That of a clone that went through this.
fn cloning(bodies: Vec<EventBody>) -> Value {
    let [operation]: [Value; 1] = read(&[jobs::told(jobs::clone_plan(1), bodies), replication(vec![])])
        .into_iter()
        .filter(|operation| operation["metadata"]["target"].to_string().contains("cloneJobs"))
        .collect::<Vec<_>>()
        .try_into()
        .expect("one");
    operation
}

/// What a program must know that waits for it.
#[test]
fn an_operation_is_done_when_its_job_has_begun_and_not_when_that_is_over() {
    let mut expected = json!({
        "name": format!("{PREFIX}/{}", jobs::job(1)),
        "metadata": {
            "@type": "type.googleapis.com/google.cloud.vmmigration.v1.OperationMetadata",
            "createTime": printed(0),
            "target": format!("{}/cloneJobs/{}", jobs::NAME, jobs::job(1)),
            "verb": "create",
            "statusMessage": "starting",
            "requestedCancellation": false,
            "apiVersion": "v1",
        },
        "done": false,
    });
    assert_eq!(cloning(vec![]), expected);
    let bodies = vec![begun(StepKind::CloneDisks)];
    let job = jobs::told(jobs::clone_plan(1), bodies.clone());
    let mut response = value(&CloneJob::of(&jobs::name(), &job));
    assert_eq!(response["state"], "ACTIVE");
    response["@type"] = "type.googleapis.com/google.cloud.vmmigration.v1.CloneJob".into();
    expected["metadata"]["endTime"] = printed(2).into();
    expected["metadata"]["statusMessage"] = "running".into();
    (expected["done"], expected["response"]) = (true.into(), response);
    assert_eq!(cloning(bodies), expected);
}

#[test]
fn an_operation_is_cancelled_where_its_job_never_began() {
    let cancelled = cloning(vec![EventBody::Terminated]);
    assert_eq!((&cancelled["done"], &cancelled["error"]["code"]), (&true.into(), &1.into()));
    assert_eq!((&cancelled["metadata"]["requestedCancellation"], cancelled.get("response")), (&true.into(), None));
    // Afterwards it is the job that is cancelled.
    let later = cloning(vec![begun(StepKind::CloneDisks), EventBody::Terminated]);
    assert_eq!((later.get("error"), &later["response"]["state"]), (None, &"CANCELLED".into()));
    assert_eq!(later["metadata"]["requestedCancellation"], false);
}

#[test]
fn a_finalization_is_an_operation_that_is_done_when_nothing_is_left() {
    let events = |last: Option<EventBody>| {
        let hosts = vec!["alpha".parse().expect("a name")];
        let mut events = vec![run_begun(1, 11), run_ended(3, 11, JobState::Completed)];
        events.push((7, EventBody::Finalizing { hosts }));
        events.extend(last.map(|last| (9, last)));
        read(&[replication(events)])
    };
    let both = events(None);
    assert_eq!(both.len(), 2, "the newest first");
    assert_eq!(both[0]["name"], format!("{PREFIX}/finalize-{}", jobs::job(10)));
    assert_eq!((&both[0]["metadata"]["verb"], &both[0]["done"]), (&"finalize".into(), &false.into()));
    assert_eq!((&both[1]["metadata"]["target"], &both[1]["done"]), (&jobs::NAME.into(), &true.into()));
    assert_eq!(both[1]["response"]["state"], "FINALIZING");
    let done = &events(Some(EventBody::Completed { blackout_us: 0 }))[0];
    let nothing = json!({ "@type": "type.googleapis.com/google.cloud.vmmigration.v1.FinalizeMigrationResponse" });
    assert_eq!((&done["done"], &done["response"]), (&true.into(), &nothing));
    let ended = &events(Some(EventBody::Terminated))[0];
    assert_eq!((&ended["error"]["code"], &ended["metadata"]["endTime"]), (&1.into(), &printed(9).into()));
}
