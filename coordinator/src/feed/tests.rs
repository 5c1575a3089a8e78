use std::time::Duration;

use sterna_shared::id::HostId;
use sterna_shared::job::{Event, EventBody, JobStatus, Progress, Reporter, StepFigures, StepKind, Volume};

use super::{Document, Limiter, host_changed, vm_changed};
use crate::fleet::Fleet;
use crate::planner::{example, plan};

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
        disk: Volume { total: 1000, done, dirtied, redone: 0, sent: done },
        memory: Volume::default(),
        bytes_per_second: 100,
        remaining_seconds: Some(5),
    }
}

fn json(document: &Document) -> serde_json::Value {
    serde_json::from_slice(&document.body).expect("JSON")
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
    let keys: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "job",
            "state",
            "state_number",
            "vm",
            "source",
            "target",
            "mode",
            "percent",
            "steps",
            "progress",
            "failure",
            "blackout_ms",
            "hypervisor_blackout_ms",
            "notices",
            "submitted_at",
            "started_at",
            "finished_at",
            "changed_at"
        ]
    );
    insta::assert_snapshot!(json["steps"][0].to_string() + "\n" + &json["progress"].to_string() + "\n" + &json["notices"].to_string(), @r#"
    {"step":"prepare","state":"finished","host":"alpha","started_at":"2026-11-21T22:26:42.000000Z","finished_at":"2026-11-21T22:26:43.000000Z","seconds":1.0,"bytes_total":0,"bytes_sent":0,"passes":0,"bytes_per_second":null}
    {"step":"copy_disks","pass":1,"disk":{"total":1000,"done":500,"dirtied":0,"redone":0,"sent":500,"remaining":500},"memory":{"total":0,"done":0,"dirtied":0,"redone":0,"sent":0,"remaining":0},"bytes_per_second":100,"remaining_seconds":5,"at":"2026-11-21T22:26:46.000000Z"}
    [{"at":"2026-11-21T22:26:45.000000Z","host":"alpha","text":"lane 2 stalled and was dialled again"}]
    "#);
    assert_eq!((json["state"].as_str(), json["state_number"].as_u64()), (Some("Running"), Some(4)));
    assert_eq!(json["percent"], 49);
}

#[test]
fn the_percentage_never_falls() {
    let (mut limiter, status) = (Limiter::default(), status());
    let mut told = Vec::new();
    for (second, dirtied) in [(0, 0), (1, 4000), (2, 0)] {
        let progress = progress(500 + 100 * second, dirtied);
        let document = limiter
            .job_progressed(&host("one"), &status, &progress, example::now(), Duration::from_secs(second))
            .expect("JSON")
            .expect("not too soon");
        told.push(json(&document)["percent"].as_u64().expect("a number"));
    }
    assert_eq!(told, [49, 49, 68]);
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
