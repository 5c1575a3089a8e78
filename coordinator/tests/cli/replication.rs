//! `sterna replicate` and `sterna clone`: what they ask for, in which order, and what comes of it.

use std::sync::{Arc, Mutex};

use sterna_shared::job::{Expiration, Policy, Schedule};
use sterna_shared::replica::{Consistency, CutoverStanding, Replica, ReplicaView, Snapshot};
use sterna_shared::units::ByteCount;

use super::*;

/// The cycle under way in these tests.
const CYCLE: &str = "0197c0de-0000-7000-8000-00000000000b";
/// The replication of a VM that is never in the state in which something can be done with it.
const DB: &str = "0197c0de-0000-7000-8000-00000000000c";

/// A recurring replication with a cycle under way.
fn replication() -> JobStatus {
    let mut status = replicating(JOB);
    let policy = Policy { schedule: Some(Schedule::after_pauses(300)), ..Policy::default() };
    let request = Box::new(status.request.clone());
    let draft = Box::new(status.plan.clone());
    let cycle = CYCLE.parse().expect("a UUID");
    let bodies = [
        EventBody::Submitted { draft, request, policy: Box::new(policy), parent: None },
        EventBody::RunBegun { run: cycle, turn: at(1) },
    ];
    for (sequence, body) in (1..).zip(bodies) {
        let event = Event { job: status.job, reporter: Reporter::Coordinator, sequence, at: at(1), body };
        status.apply(&event).expect("a legal event");
    }
    status
}

fn replicating(job: &str) -> JobStatus {
    let mut plan = plan(job.parse().expect("a UUID"));
    plan.kind = JobKind::Replicate;
    JobStatus::planned(plan)
}

fn over() -> JobStatus {
    let mut status = replicating(CYCLE);
    let event =
        Event { job: status.job, reporter: Reporter::Coordinator, sequence: 1, at: at(9), body: EventBody::Terminated };
    status.apply(&event).expect("a legal event");
    status
}

fn view(job: Option<&JobStatus>, cutover: Option<CutoverStanding>) -> ReplicaView {
    let mut replica = Replica::new(plan(JOB.parse().expect("a UUID")).vm, vec![], "alpha".parse().expect("a name"));
    let cycle = CYCLE.parse().expect("a UUID");
    let (consistency, written) = (Consistency::Application, ByteCount(4096));
    replica.add(Snapshot {
        number: 1,
        cycle,
        attempt: 0,
        taken_at: at(2),
        complete_at: at(3),
        consistency,
        written,
        damaged: false,
    });
    ReplicaView::of(&"beta".parse().expect("a name"), Some(&replica), job, cutover, at(62)).expect("a view")
}

/// The replication of another VM, in the same group.
fn of_db() -> JobStatus {
    let mut status = replication();
    status.job = DB.parse().expect("a UUID");
    status.plan.vm.name = "db".parse().expect("a name");
    status.runs.latest.clear();
    status
}

/// A request of Google's about a VM's replication.
fn of_vm(vm: &str) -> String {
    format!(r#"{{"migratingVm":"projects/sterna/locations/beta/sources/alpha/migratingVms/{vm}"}}"#)
}

/// A coordinator with one replication, and a list of what was asked of it that changes something.
fn coordinator() -> (impl Fn(ApiRequest) -> ApiReply + Send + 'static, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&asked);
    let answer = move |request: ApiRequest| {
        let note = |text: String| told.lock().expect("nobody panicked").push(text);
        match request {
            ApiRequest::ReplicaList => ApiReply::Replicas { replicas: vec![view(Some(&replication()), None)] },
            ApiRequest::JobShow { job } if job.to_string() == JOB => shown(&replication()),
            ApiRequest::JobShow { .. } => shown(&over()),
            ApiRequest::JobGroup { group } if group == "shop" => {
                ApiReply::Jobs { jobs: vec![of_db(), over(), replication()], progress: vec![] }
            }
            ApiRequest::JobGroup { .. } => ApiReply::Jobs { jobs: vec![over()], progress: vec![] },
            ApiRequest::JobEdit { job, changes } => {
                note(format!("edit {job}: {changes:?}"));
                ApiReply::Done
            }
            ApiRequest::Google { method, body, .. } => {
                note(format!("{method} {body}"));
                if body == of_vm("db") {
                    let (kind, message) = (ApiErrorKind::Refused, "db is held".to_owned());
                    return ApiReply::Error { error: ApiError { kind, message, hints: vec![], refusals: vec![] } };
                }
                ApiReply::Google { body: r#"{"done":true}"#.to_owned(), warnings: vec![] }
            }
            ApiRequest::JobCancel { job } => {
                note(format!("cancel {job}"));
                ApiReply::Done
            }
            ApiRequest::ReplicaDrop { host, .. } => {
                note(format!("drop at {host}"));
                ApiReply::Done
            }
            ApiRequest::ReplicaExtend { vm, by_seconds } => {
                note(format!("extend {vm} by {by_seconds:?}"));
                let mut status = replication();
                status.policy.expiration = Some(Expiration::at(at(0)));
                shown(&status)
            }
            ApiRequest::ReplicaFinalize { vm } => {
                note(format!("finalize {vm}"));
                let mut status = replication();
                let body = EventBody::Completed { blackout_us: 0 };
                let event = Event { job: status.job, reporter: Reporter::Coordinator, sequence: 9, at: at(9), body };
                status.apply(&event).expect("a legal event");
                shown(&status)
            }
            ApiRequest::Migrate { request, dry_run, job, policy } => {
                note(format!("{:?} of {}, dry {dry_run}", request.kind, request.vm));
                let mut status = replicating(&job.to_string());
                status.policy = *policy;
                ApiReply::JobStarted { status: Box::new(status) }
            }
            ApiRequest::VmShow { .. } => ApiReply::Vms { vms: vec![] },
            other => panic!("{other:?} was not expected"),
        }
    };
    (answer, asked)
}

/// Runs a command; what it printed, and what it asked for that changes something.
fn ran(arguments: &[&str], code: i32) -> (String, Vec<String>) {
    let (answer, asked) = coordinator();
    let mut printed = String::new();
    with_coordinator(answer, |url| {
        let ended = sterna(&[&["--server", url], arguments].concat());
        assert_eq!(ended.status.code(), Some(code), "{}", text(&ended.stderr));
        printed = text(&ended.stdout);
    });
    let asked = asked.lock().expect("nobody panicked").clone();
    (printed, asked)
}

#[test]
fn a_replication_is_begun_and_not_watched() {
    let (printed, asked) = ran(&["replicate", "add", "web", "--to", "beta", "--idle", "1m", "--job", JOB], 0);
    assert_eq!(printed.trim(), JOB);
    assert_eq!(asked, ["Replicate of web, dry false"]);
}

#[test]
fn replicas_are_listed_and_shown_for_people_and_for_programs() {
    let (printed, asked) = ran(&["replicate", "list"], 0);
    assert!(asked.is_empty());
    for word in ["web", "alpha → beta", "ACTIVE", "60 s", JOB] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    let (printed, _) = ran(&["replicate", "show", "web"], 0);
    assert!(printed.contains("application") && printed.contains("4 KiB"), "{printed}");
    let (printed, _) = ran(&["replicate", "cycles", "web"], 0);
    assert!(printed.contains(CYCLE) && printed.contains("running"), "{printed}");
    let (printed, _) = ran(&["--output", "json", "replicate", "list"], 0);
    let views: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((&views[0]["state"], &views[0]["age_seconds"]), (&"ACTIVE".into(), &60.into()));
    ran(&["replicate", "show", "other"], 4);
}

#[test]
fn a_pause_stops_the_cycle_too_and_is_ended_by_a_resume() {
    let (_, asked) = ran(&["replicate", "pause", "web"], 0);
    assert_eq!(asked, [format!("migratingVms.pauseMigration {}", of_vm("web"))], "which cancels the cycle as well");
    let (_, asked) = ran(&["replicate", "resume", "web"], 0);
    assert_eq!(asked, [format!("migratingVms.resumeMigration {}", of_vm("web"))]);
}

#[test]
fn what_is_done_to_a_group_goes_on_where_one_is_refused() {
    let (printed, asked) = ran(&["group", "pause", "shop"], 3);
    let lines: Vec<&str> = printed.lines().collect();
    let paused = "web: replication is paused; go on with sterna replicate resume web";
    assert_eq!(lines, ["db: not done: db is held", paused]);
    assert_eq!(asked, ["db", "web"].map(|vm| format!("migratingVms.pauseMigration {}", of_vm(vm))));
    let (printed, asked) = ran(&["--output", "json", "group", "resume", "shop"], 3);
    assert_eq!(asked, ["db", "web"].map(|vm| format!("migratingVms.resumeMigration {}", of_vm(vm))));
    let told: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let done: Vec<_> = told.as_array().expect("a list").iter().map(|of| (&of["vm"], &of["done"])).collect();
    assert_eq!(done, [(&"db".into(), &false.into()), (&"web".into(), &true.into())]);
    assert_eq!((&told[0]["error"]["kind"], told[1].get("error")), (&"refused".into(), None));
    let (printed, asked) = ran(&["group", "pause", "night"], 4);
    assert!(printed.is_empty() && asked.is_empty(), "what is over is in it, and no more: {printed}");
}

#[test]
fn a_group_is_cut_over_and_finalized_vm_by_vm() {
    let id = "0197c0de-0000-7000-8000-000000000001";
    let (printed, asked) = ran(&["group", "cutover", "shop", "--cold", "--detach"], 0);
    assert_eq!(asked, [format!("Cutover of {id}, dry false"), format!("Cutover of {id}, dry false")]);
    assert_eq!(printed.lines().count(), 2, "{printed}");
    let (_, asked) = ran(&["group", "finalize", "shop"], 2);
    assert!(asked.is_empty(), "nobody said yes");
    let (printed, asked) = ran(&["group", "finalize", "shop", "--yes"], 0);
    assert_eq!(asked, [format!("finalize {id}"), format!("finalize {id}")]);
    assert_eq!(printed.matches("is finalized").count(), 2, "{printed}");
}

#[test]
fn a_vm_is_put_into_a_group_and_taken_out_of_that_and_no_other() {
    let (printed, asked) = ran(&["group", "add", "shop", "web"], 0);
    assert_eq!(asked, [format!(r#"edit {JOB}: [Group {{ group: Some("shop") }}]"#)]);
    assert!(printed.contains("is in group shop"), "{printed}");
    ran(&["group", "add", "shop", "other"], 4);
    for (group, code, wanted) in
        [("shop", 0, vec![format!("edit {JOB}: [Group {{ group: None }}]")]), ("day", 3, vec![])]
    {
        let (others, asked) = coordinator();
        let answer = move |request| match request {
            ApiRequest::JobShow { job } if job.to_string() == JOB => {
                let mut status = replication();
                status.policy.group = Some("shop".to_owned());
                shown(&status)
            }
            other => others(other),
        };
        with_coordinator(answer, |url| {
            let ended = sterna(&["--server", url, "group", "remove", group, "web"]);
            assert_eq!(ended.status.code(), Some(code), "{}", text(&ended.stderr));
        });
        assert_eq!(*asked.lock().expect("nobody panicked"), wanted, "{group}");
    }
}

#[test]
fn a_replication_is_updated_by_a_file_and_a_mask() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vm.json");
    let path = path.to_str().expect("UTF-8");
    let body = r#"{ "displayName": "shop", "policy": { "idleDuration": "600s" }, "labels": { "team": "shop" } }"#;
    std::fs::write(path, body).expect("written");
    let update = |more: &[&str], code| ran(&[&["replicate", "update", "web", "--from", path], more].concat(), code);
    let (printed, asked) = update(&["--update-mask", "labels"], 0);
    assert_eq!(asked, [format!(r#"edit {JOB}: [Label {{ key: "team", value: Some("shop") }}]"#)]);
    assert!(printed.contains("is changed"), "{printed}");
    let (_, asked) = update(&[], 0);
    assert!(asked[0].contains("idle_seconds: Some(600)") && asked[0].contains("team"), "{asked:?}");
    let (_, asked) = update(&["--update-mask", "displayName"], 2);
    assert!(asked.is_empty(), "all of it or nothing");
    std::fs::write(path, r#"{ "policy": { "idleDuration": "300s" } }"#).expect("written");
    let (printed, asked) = update(&["--update-mask", "policy,labels"], 0);
    assert!(asked.is_empty() && printed.contains("is so already"), "{printed}");
}

#[test]
fn one_cycle_is_shown_by_its_number() {
    let (printed, _) = ran(&["replicate", "cycles", "web", "--cycle", "1"], 0);
    assert!(printed.contains(CYCLE) && printed.contains("running"), "{printed}");
    let (printed, _) = ran(&["--output", "json", "replicate", "cycles", "web", "--cycle", "1"], 0);
    let cycle: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((&cycle["number"], &cycle["job"]), (&1.into(), &CYCLE.into()));
    ran(&["replicate", "cycles", "web", "--cycle", "2"], 4);
    ran(&["replicate", "show", "web", "--view", "basic"], 2);
}

#[test]
fn a_replication_is_ended_before_anything_of_it_is_removed() {
    let (_, asked) = ran(&["replicate", "remove", "web"], 2);
    assert!(asked.is_empty(), "nobody said yes");
    let (_, asked) = ran(&["replicate", "remove", "web", "--yes"], 0);
    assert_eq!(asked, [format!("cancel {JOB}"), "drop at alpha".to_owned(), "drop at beta".to_owned()]);
}

#[test]
fn a_replication_is_extended() {
    let (printed, asked) = ran(&["replicate", "extend", "web", "--by", "2d"], 0);
    assert_eq!(asked, ["extend web by Some(172800)"]);
    assert!(printed.contains("expires at 2026-11-21 22:26:40 UTC"), "{printed}");
}

#[test]
fn a_replication_is_finalized_by_whoever_is_sure() {
    let (_, asked) = ran(&["replicate", "finalize", "web"], 2);
    assert!(asked.is_empty(), "nobody said yes");
    let (printed, asked) = ran(&["replicate", "finalize", "web", "--yes"], 0);
    assert_eq!(asked, ["finalize web"]);
    assert!(printed.contains("is finalized"), "{printed}");
    let (printed, _) = ran(&["replicate", "finalize", "web", "--yes", "--detach"], 0);
    assert_eq!(printed.trim(), JOB);
}

#[test]
fn a_clone_is_asked_for() {
    let (printed, asked) = ran(&["clone", "create", "web", "--detach", "--job", JOB], 0);
    assert_eq!((printed.trim(), asked), (JOB, vec!["Clone of web, dry false".to_owned()]));
}
