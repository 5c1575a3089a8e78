//! The `sterna` command as people and scripts meet it: against a real nats-server, with a coordinator that answers
//! from a script of the test, and the permissions that `sterna nats-config` writes, one by one.

mod broker;
mod google;
mod jobs;
mod old_broker;
mod replication;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use futures_util::StreamExt;
use sterna_coordinator::client::{Client, ClientError};
use sterna_shared::bus::{ApiError, ApiErrorKind, ApiReply, ApiRequest, Envelope, NatsSettings, Subject};
use sterna_shared::id::{Epoch, Generation, HostId, JobId, Token};
use sterna_shared::job::{
    Event, EventBody, Host, JobKind, JobState, JobStatus, MoveMode, MoveSettings, Plan, Refusal, RefusalCode, Reporter,
};
use sterna_shared::time::Timestamp;
use sterna_shared::view::google::Rates;
use sterna_shared::vm::VmSpec;

use broker::{Broker, PATIENCE};

fn sterna(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sterna"))
        .args(arguments)
        .env_remove("STERNA_CONFIG")
        .env_remove("STERNA_SERVER")
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME")
        .stdin(Stdio::null())
        .output()
        .expect("sterna runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a coordinator that answers by `answer` while `test` runs.
fn with_coordinator(answer: impl Fn(ApiRequest) -> ApiReply + Send + 'static, test: impl FnOnce(&str)) {
    let broker = Broker::start(None);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut requests = runtime.block_on(async {
        let client = async_nats::connect(&broker.url).await.expect("connected");
        let requests = client.subscribe(Subject::API).await.expect("subscribed");
        client.flush().await.expect("flushed");
        (client, requests)
    });
    runtime.spawn(async move {
        while let Some(message) = requests.1.next().await {
            let envelope = Envelope::open(&message.payload).expect("an envelope");
            let request = envelope.message("api_request").expect("a request");
            let reply = Envelope::seal("api_reply", "test", Epoch(1), &answer(request)).expect("sealed");
            let to = message.reply.expect("somewhere to answer to");
            requests.0.publish(to, reply.into()).await.expect("answered");
        }
    });
    test(&broker.url);
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_unix_microseconds((1_795_300_000 + second) * 1_000_000)
}

fn plan(job: JobId) -> Plan {
    let spec: VmSpec = toml::from_str(SPEC).expect("a specification");
    let host = |name: &str| Host { id: name.parse().expect("a name"), addresses: vec![] };
    Plan {
        job,
        planned_at: at(0),
        attempt: 0,
        kind: JobKind::Move,
        mode: MoveMode::Cold,
        vm: spec.clone(),
        vm_at_target: spec,
        source: host("alpha"),
        target: host("beta"),
        disks: vec![],
        generation: Generation(3),
        token: Token::from_bytes([9; 32]),
        lanes: 4,
        bandwidth: None,
        blackout_max_ms: 2000,
        settings: MoveSettings::default(),
        planned: None,
        hold_seconds: None,
        retention: None,
        clone: None,
        cutover: None,
        steps: Plan::steps_of(JobKind::Move, MoveMode::Cold, false),
    }
}

const SPEC: &str = "name = \"web\"\nid = \"0197c0de-0000-7000-8000-000000000001\"\nmemory = \"512 MiB\"\n";
const JOB: &str = "0197c0de-0000-7000-8000-00000000000a";

fn status(ending: EventBody) -> JobStatus {
    status_of(plan(JOB.parse().expect("a UUID")), ending)
}

/// A job with that plan, of which alpha has told this.
fn status_of(plan: Plan, ending: EventBody) -> JobStatus {
    let mut status = JobStatus::planned(plan);
    let reporter = Reporter::Host("alpha".parse().expect("a name"));
    let accepted = EventBody::Accepted { plan: Box::new(status.plan.clone()) };
    for (sequence, body) in [(1, accepted), (2, ending)] {
        let event = Event { job: status.job, reporter: reporter.clone(), sequence, at: at(7), body };
        status.apply(&event).expect("a legal event");
    }
    status
}

fn shown(status: &JobStatus) -> ApiReply {
    ApiReply::Job { status: Box::new(status.clone()), progress: None, rates: Rates::default() }
}

#[test]
fn help_is_a_result_and_a_wrong_command_line_is_2() {
    let help = sterna(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Exit codes:") && help.stderr.is_empty());
    for wrong in [
        &["fly"][..],
        &["migrate", "web"],
        &["migrate", "web", "--to", "no such host"],
        &["migrate", "web", "--to", "beta", "--disk", "root"],
        &["migrate", "web", "--to", "beta", "--dry-run", "--detach"],
        &["migrate", "web", "--to", "beta", "--bandwidth", "0"],
        &["job", "show", "7"],
        &["vm", "resolve", "web", "--fenced", "beta"],
        &["vm", "define", "/nowhere.toml", "--host", "alpha"],
        &["--config", "/nowhere.toml", "host", "list"],
    ] {
        let ended = sterna(wrong);
        assert_eq!(ended.status.code(), Some(2), "{wrong:?}: {}", text(&ended.stderr));
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn cim_is_refused_where_there_is_none_before_anybody_is_asked() {
    for (output, command) in [
        ("cim", &["job", "list"][..]),
        ("cim-xml", &["job", "watch", JOB]),
        ("cim", &["host", "list"]),
        ("cim-xml", &["migrate", "web", "--to", "beta"]),
        ("cim", &["vm", "stop", "web"]),
        ("cim-xml", &["pki", "init", "--dir", "/nonexistent/pki"]),
        ("cim", &["completions", "bash"]),
    ] {
        let ended = sterna(&[&["--server", "nats://127.0.0.1:1", "--output", output], command].concat());
        assert_eq!(ended.status.code(), Some(2), "{command:?}: {}", text(&ended.stderr));
        assert!(ended.stdout.is_empty(), "{command:?}");
        let error: serde_json::Value = serde_json::from_slice(&ended.stderr).expect("JSON");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains(&format!("--output {output} is for sterna job show")), "{message}");
        let hint = error["error"]["hints"][0].as_str().expect("a hint");
        assert!(hint.contains("use --output json here"), "{hint}");
    }
}

#[test]
fn a_job_is_shown_as_cim_has_it_with_the_contact_to_its_hosts() {
    let finished = status(EventBody::Unresolved { reason: "beta is silent".into() });
    let answer = move |request| match request {
        ApiRequest::JobShow { .. } => shown(&finished),
        ApiRequest::HostList => ApiReply::Hosts { hosts: vec![] },
        other => panic!("{other:?} was not expected"),
    };
    with_coordinator(answer, |url| {
        let ended = sterna(&["--server", url, "job", "show", JOB, "--output", "cim"]);
        assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
        let job: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
        assert_eq!((&job["JobState"], &job["JobType"]), (&12.into(), &305.into()));
        assert_eq!(job["InstanceID"], format!("Sterna:{JOB}"));
        assert_eq!(job["OperationalStatus"], serde_json::json!([6, 16, 12]));
        assert_eq!(job["StatusDescriptions"][2], "alpha, beta: never heard of");
        let ended = sterna(&["--server", url, "--output", "cim-xml", "job", "show", JOB]);
        assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
        let xml = text(&ended.stdout);
        assert!(xml.starts_with("<INSTANCE CLASSNAME=\"Msvm_MigrationJob\">"), "{xml}");
        assert!(xml.contains("<PROPERTY NAME=\"JobState\" TYPE=\"uint16\"><VALUE>12</VALUE></PROPERTY>"), "{xml}");
    });
}

#[test]
fn a_broker_out_of_reach_is_5_also_for_programs() {
    let ended = sterna(&["--server", "nats://127.0.0.1:1", "--output", "json", "vm", "list"]);
    assert_eq!(ended.status.code(), Some(5), "{}", text(&ended.stderr));
    let error: serde_json::Value = serde_json::from_slice(&ended.stderr).expect("JSON");
    assert_eq!(error["exit_code"], 5);
    assert_eq!(error["error"]["kind"], "unreachable");
    assert!(error["error"]["hints"][0].as_str().is_some_and(|hint| hint.contains("nats-server")));
}

#[test]
fn nobody_to_answer_is_5_and_said_at_once() {
    let broker = Broker::start(None);
    let ended = sterna(&["--server", &broker.url, "host", "list"]);
    assert_eq!(ended.status.code(), Some(5));
    assert!(text(&ended.stderr).contains("no coordinator answers"), "{}", text(&ended.stderr));
    let doctor = sterna(&["--server", &broker.url, "doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "{}", text(&doctor.stderr));
    assert!(text(&doctor.stdout).contains("FAIL  coordinator"), "{}", text(&doctor.stdout));
}

#[test]
fn each_kind_of_error_has_its_code_and_every_reason_is_shown() {
    let answer = |request: ApiRequest| {
        let (kind, refusals) = match request {
            ApiRequest::HostList => (ApiErrorKind::Failed, vec![]),
            ApiRequest::HostShow { .. } => (ApiErrorKind::NotFound, vec![]),
            ApiRequest::VmList => (ApiErrorKind::Unreachable, vec![]),
            ApiRequest::VmShow { .. } => (ApiErrorKind::Invalid, vec![]),
            _ => {
                let refusal = |code, message: &str| Refusal { code, message: message.into(), remedy: "mend it".into() };
                let reasons =
                    vec![refusal(RefusalCode::Memory, "no memory"), refusal(RefusalCode::UnknownPool, "no pool")];
                (ApiErrorKind::Refused, reasons)
            }
        };
        ApiReply::Error { error: ApiError { kind, message: "told".into(), hints: vec!["a hint".into()], refusals } }
    };
    with_coordinator(answer, |url| {
        let run = |arguments: &[&str]| sterna(&[&["--server", url], arguments].concat());
        for (arguments, code) in [
            (&["host", "list"][..], 1),
            (&["vm", "show", "web"], 2),
            (&["migrate", "web", "--to", "beta"], 3),
            (&["host", "show", "beta"], 4),
            (&["vm", "list"], 5),
        ] {
            let ended = run(arguments);
            assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {}", text(&ended.stderr));
            assert!(text(&ended.stderr).contains("error: told"), "{}", text(&ended.stderr));
        }
        let refused = text(&run(&["migrate", "web", "--to", "beta"]).stderr);
        assert!(
            refused.contains("no memory") && refused.contains("no pool") && refused.contains("→ mend it"),
            "{refused}"
        );
    });
}

#[test]
fn a_move_is_watched_to_its_end_and_the_code_tells_how_it_ended() {
    let failure = sterna_shared::job::FailureReport {
        code: sterna_shared::job::FailureCode::LinkLost,
        message: "the link was lost".into(),
        causes: vec!["no answer for 60 s".into()],
        remedy: "look at the switch".into(),
        host: None,
    };
    for (ending, code, told) in [
        (EventBody::Completed { blackout_us: 12_300 }, 0, "web: moved to beta, blackout 12.3 ms"),
        (EventBody::Terminated, 6, "web: cancelled; it is on alpha as before"),
        (EventBody::Failed { failure }, 1, "web: failed"),
        (EventBody::Unresolved { reason: "beta is silent".into() }, 7, "the handover is not resolved"),
    ] {
        let finished = status(ending);
        let answer = move |request| match request {
            ApiRequest::Migrate { job, .. } => ApiReply::JobStarted { status: Box::new(JobStatus::planned(plan(job))) },
            ApiRequest::JobShow { .. } => shown(&finished),
            other => panic!("{other:?} was not expected"),
        };
        with_coordinator(answer, |url| {
            let ended = sterna(&["--server", url, "migrate", "web", "--to", "beta", "--job", JOB]);
            assert_eq!(ended.status.code(), Some(code), "{}", text(&ended.stderr));
            assert!(
                text(&ended.stdout).starts_with(told) || text(&ended.stdout).contains(told),
                "{}",
                text(&ended.stdout)
            );
            // A job that is pending is watched for a while, in case it resolves: once is enough.
            if code == 7 {
                return;
            }
            let ended = sterna(&["--server", url, "--output", "json", "job", "watch", JOB]);
            assert_eq!(ended.status.code(), Some(code), "{}", text(&ended.stderr));
            let last = text(&ended.stdout);
            let last: serde_json::Value = serde_json::from_str(last.lines().last().expect("a line")).expect("JSON");
            assert_eq!(last["job"], JOB);
        });
    }
}

#[test]
fn a_detached_move_prints_its_id_and_a_dry_run_hides_the_token() {
    let answer = |request| match request {
        ApiRequest::Migrate { job, dry_run: true, .. } => {
            ApiReply::Plan { plan: Box::new(plan(job)), waits_for: vec![] }
        }
        ApiRequest::Migrate { job, .. } => ApiReply::JobStarted { status: Box::new(JobStatus::planned(plan(job))) },
        other => panic!("{other:?} was not expected"),
    };
    with_coordinator(answer, |url| {
        let ended = sterna(&["--server", url, "migrate", "web", "--to", "beta", "--detach", "--job", JOB]);
        assert_eq!((ended.status.code(), text(&ended.stdout).trim()), (Some(0), JOB));
        let ended = sterna(&["--server", url, "--output", "json", "migrate", "web", "--to", "beta", "--dry-run"]);
        assert_eq!(ended.status.code(), Some(0));
        let plan: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
        assert_eq!((plan["source"].as_str(), plan["lanes"].as_u64()), (Some("alpha"), Some(4)));
        assert!(plan.get("token").is_none());
    });
}

#[test]
fn a_program_asks_by_the_client_and_has_typed_answers() {
    let answer = |request| match request {
        ApiRequest::JobShow { .. } => shown(&status(EventBody::Terminated)),
        ApiRequest::JobCancel { .. } => ApiReply::Jobs { jobs: vec![], progress: vec![] },
        _ => ApiReply::Hosts { hosts: vec![] },
    };
    with_coordinator(answer, |url| {
        let settings =
            NatsSettings { servers: vec![url.into()], ca_file: None, nkey_file: None, credentials_file: None };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let client = Client::connect(&settings, "a test", PATIENCE).await.expect("connected");
            let job = JOB.parse().expect("a UUID");
            assert_eq!(client.job(job).await.expect("a job").view().state, JobState::Terminated);
            let host = client.host(&"alpha".parse().expect("a name")).await;
            assert!(matches!(host, Err(ClientError::NotFound { what: "host", .. })), "{host:?}");
            let cancelled = client.cancel(job).await;
            assert!(matches!(cancelled, Err(ClientError::Unexpected { found: "jobs" })), "{cancelled:?}");
        });
    });
}

/// What one member may do is tried on the wire: a message either arrives at one who hears everything, or is denied.
#[test]
fn an_agent_may_do_its_part_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let fleet = directory.path().join("fleet");
    let fleet_text = fleet.display().to_string();
    let made = sterna(&[
        "nats-config",
        "--dir",
        &fleet_text,
        "--host",
        "alpha,beta",
        "--listen",
        "127.0.0.1:4222",
        "--no-tls",
        "--store",
        &directory.path().join("store").display().to_string(),
    ]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let broker = Broker::start(Some(&fleet.join("nats-server.conf")));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(matrix(&broker.url, &fleet.join("nkeys")));
}

/// A member's connection, and what the broker complained of.
struct Member {
    client: async_nats::Client,
    complaints: tokio::sync::mpsc::Receiver<String>,
}

impl Member {
    async fn connect(url: &str, seed: &Path, inbox: &str) -> Self {
        let seed = std::fs::read_to_string(seed).expect("a seed");
        let (sender, complaints) = tokio::sync::mpsc::channel(64);
        let client = async_nats::ConnectOptions::with_nkey(seed.trim().to_owned())
            .custom_inbox_prefix(inbox)
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if let async_nats::Event::ServerError(error) = event {
                        let _ = sender.try_send(error.to_string());
                    }
                }
            })
            .connect(url)
            .await
            .expect("connected");
        Self { client, complaints }
    }

    async fn publishes(&mut self, subject: &str, may: bool) {
        self.client.publish(subject.to_owned(), "x".into()).await.expect("sent");
        self.is_let(may, subject).await;
    }

    async fn hears(&mut self, subject: &str, may: bool) {
        let _subscription = self.client.subscribe(subject.to_owned()).await.expect("sent");
        self.is_let(may, subject).await;
    }

    /// Holds the last thing sent to what the broker says of it. A complaint that comes late, about something that
    /// should have been allowed, is met by the next check, which expects none or another: every list ends in a denial.
    async fn is_let(&mut self, may: bool, subject: &str) {
        self.client.flush().await.expect("flushed");
        if may {
            // The broker handles one connection's messages in order: this one is back after it handled the last.
            let inbox = self.client.new_inbox();
            let mut own = self.client.subscribe(inbox.clone()).await.expect("subscribed");
            self.client.publish(inbox, "sentinel".into()).await.expect("sent");
            tokio::time::timeout(PATIENCE, own.next()).await.expect("the sentinel is back").expect("a message");
            assert_eq!(self.complaints.try_recv().ok(), None, "{subject} should be allowed");
        } else {
            let complaint = tokio::time::timeout(PATIENCE, self.complaints.recv()).await;
            let complaint = complaint.unwrap_or_else(|_| panic!("{subject} was not denied")).expect("a complaint");
            assert!(complaint.to_lowercase().contains("permissions violation"), "{complaint}");
            assert!(complaint.contains(&format!("\"{subject}\"")), "{complaint} is not about {subject}");
        }
    }
}

async fn matrix(url: &str, keys: &Path) {
    use async_nats::jetstream::{self, consumer::pull};

    let key_of = |path: &Path| {
        let seed = std::fs::read_to_string(path).expect("a seed");
        nkeys::KeyPair::from_seed(seed.trim()).expect("a seed").public_key()
    };
    let coordinator = Member::connect(url, &keys.join("coordinator-main.nk"), "_INBOX").await;
    let mut alpha = Member::connect(url, &keys.join("host-alpha.nk"), "_INBOX_alpha").await;
    let operator_seed = keys.join("operator-admin.nk");
    let operator_inbox = format!("_INBOX.{}", key_of(&operator_seed));
    // As the command itself does, by the key.
    let mut operator = Member::connect(url, &operator_seed, &operator_inbox).await;

    // The coordinator sets up what an agent works with.
    let context = jetstream::new(coordinator.client.clone());
    let stream_of = |name: &str, subject: &str| jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        ..Default::default()
    };
    let commands =
        context.create_stream(stream_of("STERNA_CMD", Subject::COMMANDS)).await.expect("a stream of commands");
    context.create_stream(stream_of("STERNA_EVT", Subject::EVENTS)).await.expect("a stream of events");
    for host in ["alpha", "beta"] {
        let host: HostId = host.parse().expect("a name");
        let config = pull::Config {
            durable_name: Some(host.to_string()),
            filter_subject: Subject::commands_of(&host),
            ..Default::default()
        };
        commands.create_consumer(config).await.expect("a consumer");
    }

    // What an agent's work needs: take a command, acknowledge it, publish an event that is kept.
    let command = format!("sterna.v1.cmd.alpha.{JOB}");
    context.publish(command, "a command".into()).await.expect("published").await.expect("kept");
    let agent = jetstream::new(alpha.client.clone());
    let consumer: jetstream::consumer::PullConsumer =
        agent.get_consumer_from_stream("alpha", "STERNA_CMD").await.expect("the agent's own consumer");
    let mut batch = consumer.fetch().max_messages(1).messages().await.expect("pulled");
    let message = batch.next().await.expect("one command").expect("a command");
    assert_eq!(message.payload, "a command");
    message.double_ack().await.expect("acknowledged");
    agent
        .publish(format!("sterna.v1.evt.alpha.{JOB}"), "an event".into())
        .await
        .expect("published")
        .await
        .expect("an agent's event is kept, and it hears so");
    // A request of the coordinator reaches the agent and is answered.
    let mut requests = alpha.client.subscribe("sterna.v1.agent.alpha").await.expect("subscribed");
    // Nobody may be there yet when the first is asked: a subscription is known to the broker some time after it is sent.
    let asked = async {
        loop {
            match coordinator.client.request("sterna.v1.agent.alpha", "question".into()).await {
                Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {}
                answered => break answered,
            }
        }
    };
    let answered = async {
        let request = requests.next().await.expect("a request");
        alpha.client.publish(request.reply.expect("a reply"), "answer".into()).await.expect("answered");
    };
    let both = async { tokio::join!(asked, answered) };
    let (answer, ()) = tokio::time::timeout(PATIENCE, both).await.expect("asked and answered");
    assert_eq!(answer.expect("an answer").payload, "answer");

    let event_of_beta = format!("sterna.v1.evt.beta.{JOB}");
    let coordinators_event = format!("sterna.v1.evt._coordinator.{JOB}");
    let command_to_beta = format!("sterna.v1.cmd.beta.{JOB}");
    let command_to_self = format!("sterna.v1.cmd.alpha.{JOB}");
    let feed = format!("sterna.v1.feed.job.{JOB}");
    for (subject, may) in [
        (format!("sterna.v1.evt.alpha.{JOB}").as_str(), true),
        (&format!("sterna.v1.progress.alpha.{JOB}"), true),
        ("sterna.v1.host.alpha", true),
        ("sterna.v1.handover.beta", true),
        ("sterna.v1.agent.beta", false),
        ("_INBOX_alpha.x", true),
        (&event_of_beta, false),
        (&coordinators_event, false),
        (&format!("sterna.v1.progress.beta.{JOB}"), false),
        ("sterna.v1.host.beta", false),
        (&command_to_beta, false),
        (&command_to_self, false),
        (&feed, false),
        ("sterna.v1.api.vm.stop", false),
        ("_INBOX_beta.x", false),
        ("_INBOX.x", false),
        ("$JS.API.INFO", false),
        ("$JS.API.STREAM.NAMES", false),
        ("$JS.API.STREAM.INFO.STERNA_CMD", false),
        ("$JS.API.STREAM.DELETE.STERNA_CMD", false),
        ("$JS.API.STREAM.PURGE.STERNA_EVT", false),
        ("$JS.API.STREAM.MSG.GET.STERNA_CMD", false),
        ("$JS.API.DIRECT.GET.STERNA_CMD", false),
        ("$JS.API.CONSUMER.CREATE.STERNA_CMD", false),
        ("$JS.API.CONSUMER.DELETE.STERNA_CMD.alpha", false),
        ("$JS.API.CONSUMER.INFO.STERNA_CMD.beta", false),
        ("$JS.API.CONSUMER.MSG.NEXT.STERNA_CMD.beta", false),
        ("$JS.ACK.STERNA_CMD.beta.1.1.1.1.0", false),
        ("$KV.sterna_leader.leader", false),
        ("$SRV.PING", false),
    ] {
        alpha.publishes(subject, may).await;
    }
    for (subject, may) in [
        ("sterna.v1.agent.alpha", true),
        ("_INBOX_alpha.y.>", true),
        ("sterna.v1.agent.beta", false),
        ("sterna.v1.agent.*", false),
        ("sterna.v1.feed.>", false),
        ("sterna.v1.cmd.alpha.*", false),
        ("sterna.v1.evt.>", false),
        ("sterna.v1.api.>", false),
        ("_INBOX_beta.>", false),
        ("_INBOX.>", false),
        ("$JS.>", false),
        (">", false),
    ] {
        alpha.hears(subject, may).await;
    }

    for (subject, may) in
        [("sterna.v1.feed.>", true), ("_INBOX.>", false), ("sterna.v1.cmd.>", false), ("$KV.>", false)]
    {
        operator.hears(subject, may).await;
    }
    for (subject, may) in [
        ("sterna.v1.api.vm.list", true),
        (&*command_to_beta, false),
        (&*event_of_beta, false),
        ("sterna.v1.agent.beta", false),
        (&*feed, false),
        ("$JS.API.STREAM.DELETE.STERNA_CMD", false),
        ("$KV.sterna_leader.leader", false),
    ] {
        operator.publishes(subject, may).await;
    }
}
