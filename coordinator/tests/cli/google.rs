//! Replications and clones in the form of Google's Migrate to VMs, from the command line.

use serde_json::{Value, json};
use sterna_shared::bus::{ApiReply, ApiRequest};
use sterna_shared::job::{JobKind, JobStatus, MoveMode, Plan};
use sterna_shared::replica::{CloneOf, SeedWish};

use super::{JOB, plan, sterna, text, with_coordinator};

const OTHER: &str = "0197c0de-0000-7000-8000-0000000000ff";

fn clone_job(id: &str) -> JobStatus {
    let plan = plan(id.parse().expect("a UUID"));
    let of = CloneOf {
        replica: OTHER.parse().expect("a UUID"),
        snapshot: 2,
        full: false,
        start: true,
        hostname: None,
        seed: SeedWish::Never,
        rehearsal: None,
    };
    let steps = Plan::steps_of(JobKind::Clone, MoveMode::Cold, true);
    let source = plan.target.clone();
    let mut status = JobStatus::planned(Plan { kind: JobKind::Clone, clone: Some(of), steps, source, ..plan });
    status.request.vm = "shop".to_owned();
    status
}

fn answer(request: ApiRequest) -> ApiReply {
    match request {
        ApiRequest::JobList => ApiReply::Jobs { jobs: vec![clone_job(JOB)], progress: vec![] },
        ApiRequest::ReplicaList => ApiReply::Replicas { replicas: vec![] },
        ApiRequest::Migrate { request, job, .. } => {
            assert_eq!(request.clone.map(|wish| wish.name.to_string()).as_deref(), Some("trial"));
            ApiReply::JobStarted { status: Box::new(clone_job(&job.to_string())) }
        }
        other => panic!("{other:?} was not expected"),
    }
}

#[test]
fn clones_are_listed_and_shown_as_google_has_them() {
    with_coordinator(answer, |url| {
        let google = |command: &[&str]| sterna(&[&["--server", url, "--output", "google"], command].concat());
        let list = google(&["clone", "list"]);
        assert_eq!(list.status.code(), Some(0), "{}", text(&list.stderr));
        let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
        let clone = &list["cloneJobs"][0];
        let name = format!("projects/sterna/locations/beta/sources/beta/migratingVms/shop/cloneJobs/{JOB}");
        assert_eq!((&clone["name"], &clone["state"]), (&json!(name), &json!("PENDING")));
        assert_eq!(clone["computeEngineTargetDetails"]["machineType"], "custom-1-512");
        let shown = google(&["clone", "show", JOB]);
        assert_eq!(serde_json::from_slice::<Value>(&shown.stdout).expect("JSON"), *clone);
        assert_eq!(google(&["clone", "show", OTHER]).status.code(), Some(4));
        let list: Value = serde_json::from_slice(&google(&["operation", "list"]).stdout).expect("JSON");
        let operation = &list["operations"][0];
        assert_eq!((&operation["metadata"]["target"], &operation["done"]), (&clone["name"], &json!(false)));
        for name in [JOB, operation["name"].as_str().expect("a name")] {
            let shown = google(&["operation", "show", name]);
            assert_eq!(serde_json::from_slice::<Value>(&shown.stdout).expect("JSON"), *operation);
        }
        assert_eq!(google(&["operation", "show", OTHER]).status.code(), Some(4));
        let told = text(&sterna(&["--server", url, "operation", "list"]).stdout);
        assert!(told.contains("create") && told.contains("new"), "{told}");
        assert_eq!(text(&google(&["replicate", "list"]).stdout).trim(), "{}");
        assert_eq!(text(&google(&["group", "list"]).stdout).trim(), "{}");
        assert_eq!(google(&["group", "show", "shop"]).status.code(), Some(4));
        assert_eq!(google(&["group", "pause", "shop"]).status.code(), Some(2));
        for command in ["show", "cycles"] {
            assert_eq!(google(&["replicate", command, "web"]).status.code(), Some(4), "{command}");
        }
        assert_eq!(google(&["job", "show", JOB]).status.code(), Some(2), "a job alone has no such face");
    });
}

#[test]
fn a_clone_is_asked_for_by_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("clone.json");
    let ask = |url: &str, body: &Value| {
        std::fs::write(&path, body.to_string()).expect("written");
        sterna(&["--server", url, "clone", "create", "shop", "--detach", "--from", path.to_str().expect("UTF-8")])
    };
    with_coordinator(answer, |url| {
        let body = json!({
            "requestId": OTHER,
            "targetDetails": { "name": "trial", "serviceAccount": "nobody" },
        });
        let asked = ask(url, &body);
        assert_eq!((asked.status.code(), text(&asked.stdout).trim()), (Some(0), OTHER), "{}", text(&asked.stderr));
        let told = text(&asked.stderr);
        assert!(told.contains("warning: targetDetails is deprecated; give computeEngineTargetDetails"), "{told}");
        assert!(told.contains("warning: targetDetails.serviceAccount is left aside"), "{told}");
        let wrong = ask(url, &json!({ "computeEngineTargetDetails": { "vmName": "trial", "cpus": 2 } }));
        assert_eq!(wrong.status.code(), Some(2));
        assert!(text(&wrong.stderr).contains("computeEngineTargetDetails.cpus: there is no such field"));
    });
}
