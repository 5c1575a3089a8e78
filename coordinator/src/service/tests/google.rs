//! Google's methods, asked of a coordinator: what is told, a clone that is made, a job that is cancelled.

use serde_json::{Value, json};
use sterna_shared::bus::{ApiError, ApiErrorKind};
use sterna_shared::view::google::Method;

use super::replication::error;
use super::*;
use crate::api::{Written, is_json, read, write_json};

const VM: &str = "projects/sterna/locations/beta/sources/alpha/migratingVms/vm0";
const LOCATION: &str = "projects/sterna/locations/beta";

impl World {
    /// Asks as a program does that speaks JSON and nothing else.
    fn google(&mut self, method: Method, body: &Value) -> ApiReply {
        let endpoint = method.tokens();
        let body = body.to_string();
        assert!(is_json(endpoint, body.as_bytes()));
        let request = read(endpoint, body.as_bytes()).expect("a request");
        self.ask(request)
    }

    #[track_caller]
    fn told(&mut self, method: Method, body: &Value) -> Value {
        let reply = self.google(method, body);
        let Written { body, error, .. } = write_json(reply);
        assert_eq!(error, None);
        serde_json::from_slice(&body).expect("JSON")
    }

    #[track_caller]
    fn refused(&mut self, method: Method, body: &Value) -> ApiError {
        error(self.google(method, body))
    }

    /// A VM that was replicated once.
    fn replicated() -> Self {
        let (mut world, _) = Self::replicating();
        world.accept();
        world.end_cycle();
        world
    }
}

fn clone(id: JobId) -> Value {
    json!({
        "parent": VM,
        "requestId": id.to_string(),
        "cloneJob": { "computeEngineTargetDetails": {
            "vmName": "trial", "zone": "beta", "labels": { "team": "shop" }, "networkTags": ["web"],
        } },
    })
}

#[test]
fn what_is_told_is_what_lists_and_names_say() {
    let mut world = World::replicated();
    let all = world.told(Method::MigratingVmsList, &json!({}));
    let vm = all["migratingVms"][0].clone();
    assert_eq!((&vm["name"], &vm["state"]), (&json!(VM), &json!("ACTIVE")));
    assert_eq!(world.told(Method::MigratingVmsGet, &json!({ "name": VM })), vm);
    let parent = json!({ "parent": "projects/sterna/locations/-/sources/alpha" });
    assert_eq!(world.told(Method::MigratingVmsList, &parent), all);
    let elsewhere = json!({ "parent": "projects/sterna/locations/gamma/sources/-" });
    assert_eq!(world.told(Method::MigratingVmsList, &elsewhere), json!({}), "what is empty is left out");
    let cycles = world.told(Method::ReplicationCyclesList, &json!({ "parent": VM }));
    let cycle = &cycles["replicationCycles"][0];
    assert_eq!((&cycle["cycleNumber"], &cycle["state"]), (&json!(1), &json!("SUCCEEDED")));
    assert_eq!(world.told(Method::ReplicationCyclesGet, &json!({ "name": cycle["name"] })), *cycle);
    let operations = world.told(Method::OperationsList, &json!({ "name": LOCATION }));
    let operation = &operations["operations"][0];
    assert_eq!((&operation["metadata"]["target"], &operation["done"]), (&json!(VM), &json!(true)));
    assert_eq!(world.told(Method::OperationsGet, &json!({ "name": operation["name"] })), *operation);
    for method in [Method::CloneJobsList, Method::CutoverJobsList, Method::GroupsList] {
        assert_eq!(world.told(method, &json!({})), json!({}), "{method}");
    }
}

#[test]
fn what_is_not_there_and_what_makes_no_sense_is_told_so() {
    let mut world = World::replicated();
    for (method, name) in [
        (Method::MigratingVmsGet, VM.replace("vm0", "vm1")),
        (Method::MigratingVmsGet, VM.replace("alpha", "gamma")),
        (Method::ReplicationCyclesGet, format!("{VM}/replicationCycles/{}", example::job(99))),
        (Method::CloneJobsGet, format!("{VM}/cloneJobs/{}", example::job(99))),
        (Method::CloneJobsCancel, format!("{VM}/cloneJobs/{}", world.begun[0])),
        (Method::CutoverJobsCancel, format!("{VM}/cutoverJobs/{}", example::job(99))),
        (Method::GroupsGet, format!("{LOCATION}/groups/shop")),
        (Method::OperationsGet, format!("{LOCATION}/operations/{}", example::job(99))),
    ] {
        let fault = world.refused(method, &json!({ "name": name }));
        let list = format!("{}.list tells those that there are", method.tokens().0);
        assert_eq!(
            (fault.kind, fault.message, fault.hints),
            (ApiErrorKind::NotFound, format!("there is no {name}"), vec![list])
        );
    }
    for method in Method::ALL {
        let fault = world.refused(*method, &json!({ "cpus": 2 }));
        assert_eq!(fault.kind, ApiErrorKind::Invalid);
        assert!(fault.message.starts_with(&format!("{method}: cpus: there is no such field; ")), "{}", fault.message);
    }
    let Written { body, error, .. } = write_json(world.google(Method::CloneJobsGet, &json!({ "name": "x" })));
    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((error.map(|(code, _)| code), &told["error"]["status"]), (Some(400), &json!("INVALID_ARGUMENT")));
    let message = told["error"]["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("cloneJobs.get: name: \"x\" is not the name of a clone job; give one such as"),
        "{message}"
    );
    assert!(message.ends_with("; docs/clone-job.md says of each field what it means here"), "{message}");
}

#[test]
fn a_list_comes_by_pages_that_follow_each_other() {
    let mut world = World::replicated();
    for number in 1..=3 {
        let mut clone = clone(example::job(number));
        clone["cloneJob"]["computeEngineTargetDetails"]["vmName"] = json!(format!("trial{number}"));
        world.told(Method::CloneJobsCreate, &clone);
    }
    let (mut told, mut token) = (Vec::new(), json!(null));
    loop {
        let page = world.told(Method::CloneJobsList, &json!({ "parent": VM, "pageSize": 2, "pageToken": token }));
        told.extend(page["cloneJobs"].as_array().expect("a page").iter().map(|job| job["name"].clone()));
        token = page["nextPageToken"].clone();
        if token.is_null() {
            break;
        }
        assert_eq!(told.len(), 2);
    }
    let expected: Vec<Value> = [3, 2, 1].map(|number| json!(format!("{VM}/cloneJobs/{}", example::job(number)))).into();
    assert_eq!(told, expected);
    let fault = world.refused(Method::CloneJobsList, &json!({ "pageToken": "what was" }));
    assert!(fault.message.starts_with("pageToken: there is no what was any more"), "{}", fault.message);
}

#[test]
fn a_clone_is_made_once_of_what_its_request_says() {
    let mut world = World::replicated();
    let job = example::job(1);
    let reply = world.google(Method::CloneJobsCreate, &clone(job));
    let Written { body, warnings, .. } = write_json(reply);
    let operation: Value = serde_json::from_slice(&body).expect("JSON");
    assert!(warnings[0].starts_with("cloneJob.computeEngineTargetDetails.networkTags is left aside: "), "{warnings:?}");
    let name = format!("{VM}/cloneJobs/{job}");
    assert_eq!(operation["name"], format!("{LOCATION}/operations/{job}"));
    assert_eq!((&operation["metadata"]["target"], &operation["metadata"]["verb"]), (&json!(name), &json!("create")));
    let told = world.told(Method::CloneJobsGet, &json!({ "name": name }));
    let details = &told["computeEngineTargetDetails"];
    assert_eq!((&details["vmName"], &details["labels"]), (&json!("trial"), &json!({ "team": "shop" })));
    let begun = world.begun.len();
    assert_eq!(world.told(Method::CloneJobsCreate, &clone(job))["name"], operation["name"]);
    assert_eq!(world.begun.len(), begun, "it is one job, however often it is asked for");
    let mut without = clone(job);
    without["requestId"] = json!(null);
    without["cloneJob"]["computeEngineTargetDetails"]["vmName"] = json!("other");
    let other = world.told(Method::CloneJobsCreate, &without);
    assert_ne!(other["name"], operation["name"], "without an id each is another");
    assert_eq!(
        world.told(Method::CloneJobsList, &json!({ "parent": VM }))["cloneJobs"].as_array().map(Vec::len),
        Some(2)
    );
}

#[test]
fn a_clone_that_cannot_be_made_is_refused_by_name() {
    let mut world = World::replicated();
    let replication = world.begun[0];
    let mut ask = |change: fn(&mut Value)| {
        let mut body = clone(example::job(1));
        change(&mut body);
        let fault = world.refused(Method::CloneJobsCreate, &body);
        (fault.kind, fault.message)
    };
    let (kind, message) = ask(|body| body["parent"] = json!(VM.replace("vm0", "vm9")));
    assert_eq!((kind, message), (ApiErrorKind::NotFound, format!("there is no {}", VM.replace("vm0", "vm9"))));
    let (kind, message) = ask(|body| body["cloneJob"]["computeEngineTargetDetails"]["zone"] = json!("alpha"));
    assert!(kind == ApiErrorKind::Invalid && message.starts_with("zone: a clone of "), "{message}");
    let (kind, message) = ask(|body| body["cloneJob"]["computeEngineTargetDetails"]["secureBoot"] = json!(true));
    assert!(kind == ApiErrorKind::Refused && message == "VM vm0 cannot be cloned", "{message}");
    let (kind, message) = ask(|body| body["cloneJob"]["computeEngineTargetDetails"]["labels"] = json!({ "A b": "" }));
    assert!(kind == ApiErrorKind::Invalid && message == "VM vm0 cannot be cloned like that", "{message}");
    let fault = world.refused(Method::CloneJobsCreate, &clone(replication));
    assert!(fault.kind == ApiErrorKind::Refused && fault.message.starts_with("requestId: "), "{}", fault.message);
    let mut body = clone(example::job(1));
    body["cloneJob"]["computeEngineTargetDetails"]["secureBoot"] = json!(true);
    let refused = write_json(world.google(Method::CloneJobsCreate, &body));
    let told: Value = serde_json::from_slice(&refused.body).expect("JSON");
    assert_eq!(told["error"]["status"], "FAILED_PRECONDITION");
    assert_eq!(told["error"]["details"][0]["reason"], "SECURE_BOOT_IMPOSSIBLE", "each reason has its code");
}

#[test]
fn a_clone_job_is_cancelled_by_its_name() {
    let mut world = World::replicated();
    let job = example::job(1);
    world.told(Method::CloneJobsCreate, &clone(job));
    let name = json!({ "name": format!("{VM}/cloneJobs/{job}") });
    let answer = world.told(Method::CloneJobsCancel, &name);
    assert_eq!((&answer["done"], answer["name"].is_null()), (&json!(true), true));
    assert!(answer["response"]["@type"].as_str().is_some_and(|of| of.ends_with("CancelCloneJobResponse")));
    let commanded = world.kinds.iter().any(|kind| kind.starts_with("cancel"));
    assert!(commanded || world.state_of(job) == JobState::Terminated, "its host is told");
    world.end(job, EventBody::Terminated);
    assert_eq!(world.told(Method::CloneJobsGet, &name)["state"], "CANCELLED");
    assert_eq!(world.refused(Method::CloneJobsCancel, &name).kind, ApiErrorKind::Refused, "it is over");
}
