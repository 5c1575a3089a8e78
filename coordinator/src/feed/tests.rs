use std::time::Duration;

use sterna_shared::id::HostId;
use sterna_shared::job::{Event, EventBody, JobStatus, Progress, Reporter, StepFigures, StepKind, Volume};
use sterna_shared::replica::{ReplicaState, ReplicaView};

use super::{AGE_INTERVAL_MIN, Document, Limiter, Replicas, host_changed, vm_changed};
use crate::fleet::Fleet;
use crate::planner::{example, plan};
use crate::schema;
use crate::view::JobView;

fn host(name: &str) -> HostId {
    name.parse().expect("a name")
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    let mut source = example::inventory("alpha");
    source.vms = vec![example::report(&example::vm("web"))];
    fleet.heard(source, example::now(), Duration::ZERO);
    fleet.heard(example::inventory("beta"), example::now(), Duration::ZERO);
    fleet
}

fn status() -> JobStatus {
    let plan = plan(&fleet(), [], &example::request(), example::seeds()).expect("a plan");
    let bodies = [
        EventBody::Accepted { plan: Box::new(plan.clone()) },
        EventBody::StepStarted { step: StepKind::Prepare },
        EventBody::StepFinished { step: StepKind::Prepare, figures: StepFigures::default() },
        EventBody::StepStarted { step: StepKind::CopyDisks },
        EventBody::Notice { text: "lane 2 stalled and was dialled again".into() },
    ];
    let mut status = JobStatus::planned(plan);
    for (number, body) in (1..).zip(bodies) {
        let at = example::later(number);
        let sequence = u64::try_from(number).expect("small");
        let event = Event { job: status.job, reporter: Reporter::Host(host("alpha")), sequence, at, body };
        status.apply(&event).expect("legal");
    }
    status
}

fn progress(done: u64, dirtied: u64) -> Progress {
    Progress {
        job: example::job(1),
        host: host("alpha"),
        at: example::later(6),
        step: StepKind::CopyDisks,
        pass: 1,
        disk: Volume { total: 1000, done, dirtied, redone: 0, sent: done, resumed: 0 },
        memory: Volume::default(),
        bytes_per_second: 100,
        remaining_seconds: Some(5),
    }
}

/// A document's body, held against its schema.
fn json(document: &Document) -> serde_json::Value {
    let body = serde_json::from_slice(&document.body).expect("JSON");
    let kind = document.key.split('.').next().expect("a kind");
    schema::expect_valid(kind, &body);
    body
}

#[test]
fn a_job_as_readers_see_it() {
    let document = Limiter::default()
        .job_changed(&host("one"), &status(), Some(&progress(500, 0)), example::later(7), Duration::ZERO)
        .expect("a document");
    assert_eq!(document.subject, format!("sterna.v1.feed.job.{}", example::job(1)));
    assert_eq!(document.key, format!("job.{}", example::job(1)));
    let header = |name| document.headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
    assert_eq!(header("ce-type"), Some("sterna.v1.job.changed"));
    assert_eq!(header("ce-source"), Some("sterna://coordinator/one"));
    assert_eq!(header("ce-subject"), Some(example::job(1).to_string().as_str()));
    let json = json(&document);
    let shown = serde_json::to_value(JobView::new(&status(), Some(&progress(500, 0)))).expect("JSON");
    assert_eq!(json, shown, "what `sterna job show --output json` prints");
    assert_eq!((json["state"].as_str(), json["state_number"].as_u64()), (Some("running"), Some(4)));
}

#[test]
fn the_percentage_never_falls() {
    let (mut limiter, status) = (Limiter::default(), status());
    let mut told = |progress: Option<Progress>| {
        let document = limiter.job_changed(&host("one"), &status, progress.as_ref(), example::now(), Duration::ZERO);
        json(&document.expect("a document"))["percent"].as_f64().expect("a number")
    };
    let half = told(Some(progress(500, 0)));
    assert!(half > 10.0, "{half}");
    // A job that unwinds, and one that has not made progress since another coordinator led, come without.
    assert!(JobView::new(&status, None).percent < half);
    assert_eq!([told(None), told(Some(progress(400, 0))), told(Some(progress(500, 4000)))], [half; 3]);
    assert!(told(Some(progress(700, 4000))) > half);
}

#[test]
fn progress_is_told_twice_a_second_and_changes_at_once() {
    let (mut limiter, status) = (Limiter::default(), status());
    let mut told = 0;
    for millisecond in (0..2_000).step_by(20) {
        let clock = Duration::from_millis(millisecond);
        told += usize::from(
            limiter
                .job_progressed(&host("one"), &status, &progress(1, 0), example::now(), clock)
                .expect("JSON")
                .is_some(),
        );
    }
    assert_eq!(told, 4);
    assert!(limiter.job_changed(&host("one"), &status, None, example::now(), Duration::from_millis(1981)).is_ok());
}

#[test]
fn hosts_and_vms_have_documents() {
    let fleet = fleet();
    let (member, report) = fleet.find("web").expect("there");
    let vm = vm_changed(&host("one"), member, report, example::now()).expect("a document");
    assert_eq!(json(&vm)["state"], "running");
    assert_eq!(json(&vm)["generation"], 3);
    let document = host_changed(&host("one"), member, example::now()).expect("a document");
    assert_eq!((json(&document)["host"].as_str(), json(&document)["online"].as_bool()), (Some("alpha"), Some(true)));
    assert_eq!(document.key, "host.alpha");
}

#[test]
fn a_replication_is_told_when_it_changes_and_now_and_then_while_it_grows_old() {
    let mut replicas = Replicas::default();
    let mut tell = |view: &ReplicaView, second: u64| {
        let view = ReplicaView { age_seconds: Some(300 + second), ..view.clone() };
        let documents = replicas.tell(&host("one"), &[view], example::now(), Duration::from_secs(second));
        documents.into_iter().map(|document| json(&document.expect("a document"))).collect::<Vec<_>>()
    };
    let view = ReplicaView::of(&host("beta"), Some(&example::replica()), None, None, example::now()).expect("a view");
    let first = tell(&view, 0);
    assert_eq!((first[0]["snapshot"].as_u64(), first[0]["age_seconds"].as_u64()), (Some(2), Some(300)));
    assert_eq!(first[0]["taken_at"], serde_json::json!(example::later(-298)));
    let interval = AGE_INTERVAL_MIN.as_secs();
    assert!((1..interval).all(|second| tell(&view, second).is_empty()));
    assert_eq!(tell(&view, interval)[0]["age_seconds"], 300 + interval);
    let late = ReplicaView { late: true, ..view };
    assert_eq!(tell(&late, interval + 1)[0]["late"], true);
    let paused = ReplicaView { state: ReplicaState::Paused, ..late };
    assert_eq!(tell(&paused, interval + 2)[0]["state"], "PAUSED");
    assert!(tell(&paused, interval + 3).is_empty());
}

#[test]
fn of_several_replicas_of_a_vm_that_which_is_kept_is_told() {
    let view = |name: &str| {
        ReplicaView::of(&host(name), Some(&example::replica()), None, None, example::now()).expect("a view")
    };
    let kept = ReplicaView { replication: Some(example::job(1)), replica: None, ..view("beta") };
    let (mut replicas, views) = (Replicas::default(), [kept, view("gamma")]);
    let documents = replicas.tell(&host("one"), &views, example::now(), Duration::ZERO);
    assert_eq!(documents.len(), 1);
    let key = documents[0].as_ref().expect("a document").key.clone();
    assert_eq!(json(documents[0].as_ref().expect("a document"))["host"], "beta");
    assert_eq!((replicas.forget(&views, true), replicas.forget(&[], false)), (vec![], vec![key.clone()]));
    replicas.remember([example::vm("web").id].into());
    assert_eq!((replicas.forget(&[], false), replicas.forget(&[], true)), (vec![], vec![key]));
}
