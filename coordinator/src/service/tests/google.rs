//! Google's methods, asked of a coordinator: what is told, a clone or a cutover that is made, a job that is cancelled, and what is to
//! become of a replication.

use serde_json::{Value, json};
use sterna_shared::bus::{ApiError, ApiErrorKind};
use sterna_shared::job::{JobKind, RefusalCode};
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

#[test]
fn a_cutover_is_made_once_of_what_its_request_says() {
    let mut world = World::replicated();
    let job = example::job(1);
    let body = json!({ "parent": VM, "requestId": job.to_string(), "cutoverJob": { "state": "ACTIVE" } });
    let Written { body: operation, warnings, .. } = write_json(world.google(Method::CutoverJobsCreate, &body));
    let operation: Value = serde_json::from_slice(&operation).expect("JSON");
    assert!(warnings[0].starts_with("cutoverJob.state is left aside: "), "{warnings:?}");
    let name = format!("{VM}/cutoverJobs/{job}");
    assert_eq!(operation["name"], format!("{LOCATION}/operations/{job}"));
    assert_eq!((&operation["metadata"]["target"], &operation["metadata"]["verb"]), (&json!(name), &json!("create")));
    assert_eq!(world.told(Method::CutoverJobsGet, &json!({ "name": name }))["name"], name);
    let begun = world.begun.len();
    assert_eq!(world.told(Method::CutoverJobsCreate, &body)["name"], operation["name"]);
    assert_eq!(world.begun.len(), begun, "it is one job, however often it is asked for");
    let plan = &world.state.jobs[&job].status.plan;
    assert_eq!((plan.kind, plan.target.id.as_str()), (JobKind::Cutover, "beta"));
    let of_another = json!({ "parent": VM.replace("vm0", "vm9") });
    assert_eq!(world.refused(Method::CutoverJobsCreate, &of_another).kind, ApiErrorKind::NotFound);
    let taken = json!({ "parent": VM, "requestId": world.begun[0].to_string() });
    let fault = world.refused(Method::CutoverJobsCreate, &taken);
    assert!(fault.kind == ApiErrorKind::Refused && fault.message.starts_with("requestId: job "), "{}", fault.message);
}

#[test]
fn a_replication_is_changed_by_its_name() {
    let mut world = World::replicated();
    let patch = |mask: &str| {
        json!({ "updateMask": mask, "migratingVm": {
            "name": VM, "policy": { "idleDuration": "900s" }, "labels": { "team": "shop" },
        } })
    };
    let answer = world.told(Method::MigratingVmsPatch, &patch("policy.idleDuration"));
    let vm = &answer["response"];
    assert_eq!((&answer["done"], &vm["name"]), (&json!(true), &json!(VM)));
    assert_eq!((&vm["policy"]["idleDuration"], vm["labels"].is_null()), (&json!("900s"), true), "as the mask says");
    assert!(vm["@type"].as_str().is_some_and(|of| of.ends_with(".MigratingVm")), "{vm}");
    let vm = &world.told(Method::MigratingVmsPatch, &patch(" labels , policy"))["response"];
    assert_eq!(vm["labels"], json!({ "team": "shop" }));
    let name = json!({ "migratingVm": VM });
    let member = json!({ "group": format!("{LOCATION}/groups/night"), "migratingVm": VM });
    world.told(Method::GroupsAdd, &member);
    let group = world.told(Method::MigratingVmsGet, &json!({ "name": VM }))["group"].clone();
    assert_eq!(group, member["group"]);
    world.told(Method::GroupsRemove, &member);
    assert_eq!(world.told(Method::MigratingVmsGet, &json!({ "name": VM }))["group"], json!(null));
    let refused = world.refused(Method::MigratingVmsExtend, &name);
    assert_eq!((refused.kind, refused.refusals.len()), (ApiErrorKind::Refused, 1), "it does not expire");
}

#[test]
fn a_replication_is_paused_and_goes_on_by_its_name() {
    let (mut world, _) = World::replicating();
    world.accept();
    let name = json!({ "migratingVm": VM });
    let of = |world: &mut World| world.told(Method::MigratingVmsGet, &json!({ "name": VM }))["state"].clone();
    let begun = world.kinds.len();
    let answer = world.told(Method::MigratingVmsPause, &name);
    assert!(answer["response"]["@type"].as_str().is_some_and(|of| of.ends_with("PauseMigrationResponse")), "{answer}");
    assert!(world.kinds[begun..].iter().any(|kind| kind.starts_with("cancel")), "the cycle under way is cancelled");
    assert_eq!(of(&mut world), "PAUSED");
    world.told(Method::MigratingVmsPause, &name);
    let cycle = *world.begun.last().expect("a cycle");
    world.end(cycle, EventBody::Terminated);
    world.wait(1);
    assert_eq!(world.begun.last(), Some(&cycle), "none begins");
    world.told(Method::MigratingVmsResume, &name);
    world.wait(1);
    assert_ne!(world.begun.last(), Some(&cycle), "one begins");
    assert_eq!(of(&mut world), "FIRST_SYNC");
}

#[test]
fn the_replication_of_a_vm_that_is_cut_over_goes_on_once_that_is_reverted() {
    let (mut world, _) = World::cut_over();
    let name = json!({ "migratingVm": VM });
    let fault = world.refused(Method::MigratingVmsResume, &name);
    assert_eq!(fault.kind, ApiErrorKind::Refused);
    assert!(fault.message.contains("is cut over to beta"), "{}", fault.message);
    assert_eq!(fault.hints, ["revert it first: sterna cutover revert vm0"]);
    world.cut_over = false;
    world.beat(1);
    world.told(Method::MigratingVmsResume, &name);
}

#[test]
fn what_makes_no_sense_for_a_replication_is_refused_by_name() {
    let mut world = World::replicated();
    let nobody = VM.replace("vm0", "vm9");
    for method in [
        Method::MigratingVmsPause,
        Method::MigratingVmsResume,
        Method::MigratingVmsExtend,
        Method::MigratingVmsFinalize,
    ] {
        let fault = world.refused(method, &json!({ "migratingVm": nobody }));
        assert_eq!((fault.kind, fault.message), (ApiErrorKind::NotFound, format!("there is no {nobody}")), "{method}");
        let fault = world.refused(method, &json!({}));
        assert!(fault.message.starts_with(&format!("{method}: migratingVm: it is missing")), "{}", fault.message);
    }
    let fault = world.refused(Method::MigratingVmsFinalize, &json!({ "migratingVm": VM }));
    assert_eq!(fault.refusals[0].code, RefusalCode::NotCutOver);
    let nameless = world.refused(Method::MigratingVmsPatch, &json!({ "migratingVm": {} }));
    assert!(nameless.message.contains("migratingVm.name: it is missing"), "{}", nameless.message);
    let masked = json!({ "migratingVm": { "name": VM }, "updateMask": "state" });
    let masked = world.refused(Method::MigratingVmsPatch, &masked);
    assert!(masked.kind == ApiErrorKind::Invalid && masked.message.contains("state: the mask names it"), "{masked:?}");
    let member = |location: &str| json!({ "group": format!("projects/sterna/locations/{location}/groups/x"), "migratingVm": VM });
    let fault = world.refused(Method::GroupsRemove, &member("beta"));
    assert!(fault.kind == ApiErrorKind::Refused && fault.message.contains("is not in group x"), "{}", fault.message);
    let fault = world.refused(Method::GroupsAdd, &member("alpha"));
    assert!(
        fault.kind == ApiErrorKind::Invalid && fault.message.contains("group: it is at alpha"),
        "{}",
        fault.message
    );
}

#[test]
fn a_list_is_filtered_by_what_its_resources_say() {
    let mut world = World::replicated();
    for number in 1..=3 {
        let mut clone = clone(example::job(number));
        clone["cloneJob"]["computeEngineTargetDetails"]["vmName"] = json!(format!("trial{number}"));
        world.told(Method::CloneJobsCreate, &clone);
    }
    let mut names = |filter: &str, token: Value| {
        let page = json!({ "filter": filter, "pageSize": 1, "pageToken": token });
        let page = world.told(Method::CloneJobsList, &page);
        let names = page["cloneJobs"].as_array().cloned().unwrap_or_default();
        let names =
            names.into_iter().map(|job| job["computeEngineTargetDetails"]["vmName"].clone()).collect::<Vec<_>>();
        (names, page["nextPageToken"].clone())
    };
    let filter = "computeEngineTargetDetails.vmName=trial1 OR computeEngineTargetDetails.vmName=trial3";
    let (first, token) = names(filter, json!(null));
    assert_eq!(first, ["trial3"]);
    assert_eq!(names(filter, token), (vec![json!("trial1")], json!(null)), "there is no more that it takes");
    assert_eq!(names("state=FAILED", json!(null)), (vec![], json!(null)));
}

#[test]
fn a_list_goes_on_where_a_part_of_it_ended() {
    let mut world = World::replicated();
    let whole = world.ask(ApiRequest::JobList);
    let count = whole.listed().expect("a list");
    assert!(count > 1);
    let part = || {
        let mut part = whole.clone();
        part.keep(0..1);
        part
    };
    let (mut list, mut other) = (part(), part());
    let rest = world.ask(ApiRequest::Rest { of: Box::new(ApiRequest::JobList), skip: 0 });
    assert!(list.go_on(rest) && list == whole, "{list:?}");
    let rest = world.ask(ApiRequest::Rest { of: Box::new(ApiRequest::JobList), skip: 1 });
    assert!(!other.go_on(rest), "it does not begin with what the part ends with");
    let beyond = world.ask(ApiRequest::Rest { of: Box::new(ApiRequest::JobList), skip: u32::MAX });
    assert_eq!(beyond.listed(), Some(0));
    let of = Box::new(ApiRequest::SystemShow);
    assert_eq!(error(world.ask(ApiRequest::Rest { of, skip: 0 })).kind, ApiErrorKind::Invalid);
}
