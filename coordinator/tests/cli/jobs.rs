//! Jobs under way, as they are listed and as they ask: how far each is, and which answers there are.

use sterna_shared::job::{FailureCode, FailureReport, Progress, StepFigures, StepKind, Volume};

use super::*;

#[test]
fn a_move_whose_target_is_full_waits_for_an_answer_and_not_for_a_fence() {
    let failure = FailureReport {
        code: FailureCode::PoolFull,
        message: "pool fast of beta is full".into(),
        causes: vec![],
        remedy: String::new(),
        host: Some("beta".parse().expect("a name")),
    };
    let asks = status(EventBody::Asked { failure, figures: StepFigures::default() });
    let answer = move |request| match request {
        ApiRequest::Migrate { job, .. } => ApiReply::JobStarted { status: Box::new(JobStatus::planned(plan(job))) },
        ApiRequest::JobShow { .. } => shown(&asks),
        other => panic!("{other:?} was not expected"),
    };
    with_coordinator(answer, |url| {
        let ended = sterna(&["--server", url, "migrate", "web", "--to", "beta", "--job", JOB]);
        let told = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(7), "{told}");
        assert!(text(&ended.stdout).contains("runs on at alpha"), "{}", text(&ended.stdout));
        for says in [
            "because: pool fast of beta is full".to_owned(),
            format!("sterna job answer {JOB} retry"),
            format!("sterna job answer {JOB} place DISK=POOL"),
            format!("sterna job cancel {JOB}"),
        ] {
            assert!(told.contains(&says), "{says} is not told: {told}");
        }
        assert!(!told.contains("fenced") && !told.contains("stands still"), "{told}");
    });
}

#[test]
fn a_list_of_jobs_tells_how_far_each_is() {
    let cold = plan(JOB.parse().expect("a UUID"));
    let live = Plan { mode: MoveMode::Live, steps: Plan::steps_of(cold.kind, MoveMode::Live, false), ..cold };
    let running = status_of(live, EventBody::StepStarted { step: StepKind::CopyMemory });
    let memory = Volume { total: 512 << 20, done: 384 << 20, ..Volume::default() };
    let progress = Progress {
        job: running.job,
        host: "alpha".parse().expect("a name"),
        at: at(9),
        step: StepKind::CopyMemory,
        pass: 1,
        disk: Volume::default(),
        memory,
        bytes_per_second: 0,
        remaining_seconds: None,
    };
    let percent = running.percent(Some(&progress));
    assert!(percent > running.percent(None) + 20.0, "{percent}");
    let answer = move |request| match request {
        ApiRequest::JobList => ApiReply::Jobs { jobs: vec![running.clone()], progress: vec![progress.clone()] },
        other => panic!("{other:?} was not expected"),
    };
    with_coordinator(answer, |url| {
        let ended = sterna(&["--server", url, "job", "list"]);
        assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
        assert!(text(&ended.stdout).contains(&format!("{:.0} %", percent.floor())), "{}", text(&ended.stdout));
        let ended = sterna(&["--server", url, "--output", "json", "job", "list"]);
        let jobs: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
        assert_eq!(jobs[0]["percent"], percent);
        assert_eq!(jobs[0]["progress"]["memory"]["done"], 384 << 20);
    });
}
