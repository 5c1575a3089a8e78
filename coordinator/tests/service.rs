//! The service against a real nats-server, with an agent played by the test.

use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, consumer::Consumer, consumer::pull};
use futures_util::StreamExt;
use sterna_coordinator::bus::Bus;
use sterna_coordinator::config::{Config, Retention};
use sterna_coordinator::{fence::Fence, fleet::Fleet, planner, service};
use sterna_shared::bus::{
    AgentReply, AgentRequest, ApiReply, ApiRequest, Command, Envelope, NatsSettings, STREAM_COMMANDS, Subject,
    SystemView,
};
use sterna_shared::host::{Inventory, VmReport};
use sterna_shared::id::{Epoch, Generation, HostId, JobId, Token};
use sterna_shared::job::{Event, EventBody, JobState, JobStatus, MoveRequest, Plan, Reporter};
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, JoinSet};

const WAIT_MAX: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(100);

/// A nats-server of the test's own, ended with it.
struct Broker {
    process: Child,
    port: u16,
    _store: tempfile::TempDir,
}

impl Broker {
    async fn start() -> Self {
        Self::start_at(free_port()).await
    }

    async fn start_at(port: u16) -> Self {
        let store = tempfile::tempdir().expect("a directory");
        let built = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/nats-server"));
        let path = std::env::var_os("STERNA_NATS_SERVER").map(PathBuf::from);
        let path = path.or_else(|| built.exists().then_some(built)).unwrap_or_else(|| "nats-server".into());
        let process = Process::new(&path)
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(store.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("no nats-server at {}: {error}; set STERNA_NATS_SERVER", path.display()));
        let broker = Self { process, port, _store: store };
        let up = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(TURN).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, up).await.expect("nats-server listens");
        broker
    }

    async fn client(&self) -> Client {
        async_nats::connect(&self.settings().servers).await.expect("connected")
    }

    fn settings(&self) -> NatsSettings {
        settings(self.port)
    }

    fn config(&self, name: &str) -> Config {
        config(name, self.port)
    }

    fn coordinator(&self, name: &str) -> Coordinator {
        Coordinator::start(self.config(name), || {})
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

fn config(name: &str, port: u16) -> Config {
    let name = name.parse().expect("a name");
    Config { name, nats: settings(port), retention: Retention::default(), fence: None, notify: Default::default() }
}

fn settings(port: u16) -> NatsSettings {
    let servers = vec![format!("nats://127.0.0.1:{port}")];
    NatsSettings { servers, ca_file: None, nkey_file: None, credentials_file: None }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Coordinator {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Coordinator {
    fn start(config: Config, beat: impl Fn() + Send + Sync + 'static) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            Box::pin(service::run(config, async { drop(stopped.await) }, beat)).await.expect("ran");
        });
        Self { stop, task }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.expect("ended well");
    }
}

/// A host's agent, as far as the coordinators can tell: it says what it has, and answers with its journal.
fn play_agent(tasks: &mut JoinSet<()>, client: &Client, inventory: Inventory, journal: Vec<Event>) {
    let host = inventory.host.clone();
    let (publisher, client) = (client.clone(), client.clone());
    let heartbeat = seal("inventory", &inventory);
    let subject = Subject::Host(host.clone()).to_string();
    tasks.spawn(async move {
        loop {
            publisher.publish(subject.clone(), heartbeat.clone().into()).await.expect("published");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    tasks.spawn(async move {
        let mut asked = client.subscribe(Subject::Agent(host).to_string()).await.expect("subscribed");
        while let Some(message) = asked.next().await {
            let reply = match Envelope::open(&message.payload).and_then(|e| e.message("agent_request")) {
                Ok(AgentRequest::Events { skip }) => {
                    let skip = usize::try_from(skip).expect("small");
                    let events = journal.iter().skip(skip).take(2).cloned().collect();
                    AgentReply::Events { events, more: journal.len() > skip + 2 }
                }
                _ => AgentReply::Done,
            };
            let reply = seal("agent_reply", &reply);
            client.publish(message.reply.expect("a reply subject"), reply.into()).await.expect("published");
        }
    });
}

fn seal<T: serde::Serialize>(kind: &'static str, message: &T) -> Vec<u8> {
    Envelope::seal(kind, "test", Epoch(0), message).expect("sealed")
}

async fn ask(client: &Client, request: &ApiRequest) -> Option<ApiReply> {
    let (resource, verb) = request.subject_tokens();
    let subject = Subject::Api(resource.into(), verb.into()).to_string();
    let reply = client.request(subject, seal("api_request", request).into()).await.ok()?;
    Some(Envelope::open(&reply.payload).and_then(|e| e.message("api_reply")).expect("a reply"))
}

/// Asks until the answer is as wished.
async fn until<T>(client: &Client, request: &ApiRequest, wished: impl Fn(ApiReply) -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(found) = ask(client, request).await.and_then(&wished) {
                return found;
            }
            tokio::time::sleep(TURN).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, asking).await.expect("an answer as wished")
}

async fn leader(client: &Client, name: &str) -> SystemView {
    until(client, &ApiRequest::SystemShow, |reply| match reply {
        ApiReply::System { system } if system.coordinator == name => Some(system),
        _ => None,
    })
    .await
}

async fn completed(client: &Client, job: JobId) -> JobStatus {
    until(client, &ApiRequest::JobShow { job }, |reply| match reply {
        ApiReply::Job { status, .. } if status.state == JobState::Completed => Some(*status),
        _ => None,
    })
    .await
}

fn inventory(host: &str, with_vm: bool) -> Inventory {
    let report = || -> VmReport {
        serde_json::from_value(serde_json::json!({
            "spec": {
                "name": "web", "id": "0197c0de-0000-7000-8000-000000000001", "memory": 1 << 29,
                "disk": [{"name": "root", "pool": "fast", "size": 1 << 30}],
            },
            "state": "running", "generation": 3, "owned": true, "job": null,
        }))
        .expect("a report")
    };
    let mut inventory: Inventory = serde_json::from_value(serde_json::json!({
        "host": host, "at": "2026-01-01T00:00:00Z", "version": "0.1.0", "addresses": ["127.0.0.1:1"],
        "hypervisor": {"version": "10.0.2", "accelerator": "tcg", "machines": ["pc-q35-7.2"], "cpu_models": [], "uefi": false},
        "cpu": {"model": "any", "features": [], "count": 2},
        "memory_total": 1_u64 << 33, "memory_free": 1_u64 << 32,
        "pools": [{"name": "fast", "shared": null, "capacity": 1_u64 << 40, "free": 1_u64 << 39}],
        "bridges": [], "boot_files": [],
        "certificate": {"authority": "ab", "not_before": "2000-01-01T00:00:00Z", "not_after": "2100-01-01T00:00:00Z"},
        "limits": {}, "epoch": 0, "vms": [],
    }))
    .expect("an inventory");
    inventory.vms = with_vm.then(report).into_iter().collect();
    inventory
}

fn request() -> MoveRequest {
    serde_json::from_value(serde_json::json!({
        "vm": "web", "target": "beta", "mode": "auto", "storage": "all", "disks": [], "storage_only": false,
        "bandwidth": null, "blackout_max_ms": null, "lanes": null,
    }))
    .expect("a request")
}

fn job() -> JobId {
    "0197c0de-0000-7000-8000-0000000000a1".parse().expect("a UUID")
}

fn alpha() -> HostId {
    "alpha".parse().expect("a name")
}

/// What the move is planned to be while both hosts are well.
fn planned() -> Box<Plan> {
    let now = "2026-01-01T00:00:00Z".parse().expect("a time");
    let mut fleet = Fleet::default();
    for host in [inventory("alpha", true), inventory("beta", false)] {
        fleet.heard(host, now, Duration::ZERO);
    }
    let seeds = planner::Seeds { job: job(), token: Token::from_bytes([0; 32]), attempt: 0, now };
    Box::new(planner::plan(&fleet, [], &request(), seeds).expect("a plan"))
}

fn event(sequence: u64, body: EventBody) -> Event {
    let at = "2026-01-01T00:00:01Z".parse().expect("a time");
    Event { job: job(), reporter: Reporter::Host(alpha()), sequence, at, body }
}

/// Takes the host's next command, as an agent does.
async fn command(client: &Client, host: &str) -> Envelope {
    let consumer: Consumer<pull::Config> =
        jetstream::new(client.clone()).get_consumer_from_stream(host, STREAM_COMMANDS).await.expect("a consumer");
    let mut messages = consumer.messages().await.expect("messages");
    let message = tokio::time::timeout(WAIT_MAX, messages.next()).await.expect("in time").expect("one").expect("well");
    message.ack().await.expect("acknowledged");
    Envelope::open(&message.payload).expect("an envelope")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_planned_sent_followed_and_rebuilt() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut tasks = JoinSet::new();
    play_agent(&mut tasks, &client, inventory("alpha", true), vec![]);
    play_agent(&mut tasks, &client, inventory("beta", false), vec![]);
    let mut feed = client.subscribe(Subject::FeedJob(job()).to_string()).await.expect("subscribed");

    let one = broker.coordinator("one");
    let first = leader(&client, "one").await;
    let started = |reply| match reply {
        ApiReply::JobStarted { status } => Some(*status),
        _ => None,
    };
    let migrate = ApiRequest::Migrate { request: request(), dry_run: false, job: job(), policy: Box::default() };
    let status = until(&client, &migrate, started).await;
    assert_eq!(status.state, JobState::New);
    assert!(ask(&client, &migrate).await.and_then(started).is_some(), "asked twice, made once");

    let mut tokens = Vec::new();
    for host in ["beta", "alpha"] {
        let envelope = command(&client, host).await;
        assert_eq!(envelope.epoch, first.epoch);
        let Ok(Command::Run { plan }) = envelope.message("command") else { panic!("no plan") };
        tokens.push(plan.token.clone());
    }
    assert_eq!(tokens[0], tokens[1]);
    assert_ne!(tokens[0], status.plan.token, "the status never shows the token");

    let accepted = event(1, EventBody::Accepted { plan: Box::new(Plan::clone(&status.plan)) });
    let done = event(2, EventBody::Completed { blackout_us: 42_000 });
    for event in [&accepted, &done] {
        let subject = Subject::Event(alpha(), job()).to_string();
        client.publish(subject, seal("event", event).into()).await.expect("published");
    }
    assert_eq!(completed(&client, job()).await.blackout_us, Some(42_000));
    let told = async {
        loop {
            let message = feed.next().await.expect("a document");
            let headers = message.headers.expect("headers");
            assert_eq!(headers.get("ce-type").map(|value| value.as_str()), Some("sterna.v1.job.changed"));
            let json: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
            if json["state"] == "completed" {
                return json;
            }
        }
    };
    let json = tokio::time::timeout(WAIT_MAX, told).await.expect("in time");
    assert_eq!((json["percent"].as_f64(), json["blackout_ms"].as_f64()), (Some(100.0), Some(42.0)));

    one.stop().await;
    let two = broker.coordinator("two");
    assert!(leader(&client, "two").await.epoch > first.epoch);
    assert_eq!(completed(&client, job()).await.blackout_us, Some(42_000), "rebuilt from the stream");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_speaks_json_is_answered_in_json() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let one = broker.coordinator("one");
    leader(&client, "one").await;
    let list =
        client.request("sterna.v1.api.migratingVms.list", r#"{"orderBy": "name"}"#.into()).await.expect("a list");
    assert_eq!(&list.payload[..], b"{}", "there are none");
    let warning = list.headers.as_ref().and_then(|headers| headers.get("Sterna-Warning"));
    assert!(warning.is_some_and(|text| text.as_str().starts_with("orderBy is left aside: ")), "{warning:?}");
    let all = client.request("sterna.v1.api.cloneJobs.list", "".into()).await.expect("a list");
    assert_eq!(&all.payload[..], b"{}", "nothing is a request without fields");
    let wrong = client.request("sterna.v1.api.cloneJobs.get", r#"{"name": "x"}"#.into()).await.expect("an error");
    let told: serde_json::Value = serde_json::from_slice(&wrong.payload).expect("JSON");
    assert_eq!(told["error"]["status"], "INVALID_ARGUMENT");
    let code = wrong.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code"));
    assert_eq!(code.map(|code| code.as_str()), Some("400"));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_stream_is_rebuilt_from_the_agents() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut tasks = JoinSet::new();
    let plan = planned();
    let journal = vec![
        event(1, EventBody::Accepted { plan }),
        event(2, EventBody::Notice { text: "one".into() }),
        event(3, EventBody::Completed { blackout_us: 7 }),
    ];
    let mut seen = inventory("alpha", true);
    seen.epoch = Epoch(41);
    play_agent(&mut tasks, &client, seen, journal);

    let one = broker.coordinator("one");
    assert_eq!(leader(&client, "one").await.epoch, Epoch(42), "above what the agent has seen");
    let status = completed(&client, job()).await;
    assert_eq!((status.blackout_us, status.notices.len()), (Some(7), 1));
    let mut stream = jetstream::new(client.clone()).get_stream("STERNA_EVT").await.expect("the stream");
    let restored = async {
        while stream.info().await.expect("info").state.messages < 3 {
            tokio::time::sleep(TURN).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, restored).await.expect("the events are back in the stream");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_has_lost_everything_is_led_on_again() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut tasks = JoinSet::new();
    let journal =
        vec![event(1, EventBody::Accepted { plan: planned() }), event(2, EventBody::Completed { blackout_us: 7 })];
    play_agent(&mut tasks, &client, inventory("alpha", true), journal);
    let one = broker.coordinator("one");
    completed(&client, job()).await;
    let streams = jetstream::new(client.clone());
    for lost in ["STERNA_EVT", "STERNA_CMD", "KV_sterna_jobs", "KV_sterna_leader", "KV_sterna_feed"] {
        streams.delete_stream(lost).await.expect("deleted");
    }
    let made_again = async {
        while streams.get_stream("STERNA_EVT").await.is_err() || streams.get_stream("KV_sterna_leader").await.is_err() {
            tokio::time::sleep(TURN).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, made_again).await.expect("they are there again");
    leader(&client, "one").await;
    assert_eq!(completed(&client, job()).await.blackout_us, Some(7), "by what agents have in their journals");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_coordinators_one_leads_and_the_other_takes_over() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let one = broker.coordinator("one");
    let first = leader(&client, "one").await;
    let two = broker.coordinator("two");
    for _ in 0..20 {
        let Some(ApiReply::System { system }) = ask(&client, &ApiRequest::SystemShow).await else { continue };
        assert_eq!(system.coordinator, "one", "only the leader answers");
    }
    // Killed, and not stopped: nothing is laid down.
    one.task.abort();
    drop(one.task.await);
    assert!(leader(&client, "two").await.epoch > first.epoch);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_has_told_under_its_number_is_not_taken_for_kept() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut tasks = JoinSet::new();
    play_agent(&mut tasks, &client, inventory("alpha", true), vec![]);
    play_agent(&mut tasks, &client, inventory("beta", false), vec![]);
    let one = broker.coordinator("one");
    leader(&client, "one").await;
    until(&client, &ApiRequest::HostList, |reply| match reply {
        ApiReply::Hosts { hosts } if hosts.len() == 2 => Some(()),
        _ => None,
    })
    .await;
    // Of another that believes it leads; that it cannot be read keeps this one from seeing it before it writes.
    let theirs = PublishMessage::build().payload("theirs".into()).message_id(format!("{}-coordinator-1", job()));
    let subject = Subject::CoordinatorEvent(job()).to_string();
    let kept = jetstream::new(client.clone()).send_publish(subject, theirs).await.expect("sent");
    kept.await.expect("kept");
    let migrate = ApiRequest::Migrate { request: request(), dry_run: false, job: job(), policy: Box::default() };
    let reply = ask(&client, &migrate).await.expect("an answer");
    let ApiReply::Error { error } = reply else { panic!("{reply:?}") };
    assert!(error.message.contains("could not be written down"), "{}", error.message);
    leader(&client, "one").await;
    one.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_starts_before_its_broker_waits_for_it() {
    let port = free_port();
    let waits = Arc::new(Notify::new());
    let told = Arc::clone(&waits);
    let one = Coordinator::start(config("one", port), move || told.notify_one());
    tokio::time::timeout(WAIT_MAX, waits.notified()).await.expect("it says that it lives");
    let broker = Broker::start_at(port).await;
    leader(&broker.client().await, "one").await;
    one.stop().await;
}

#[tokio::test]
async fn an_agent_that_starts_anew_is_asked_again_until_it_listens() {
    const SOON: Duration = Duration::from_millis(500);
    let broker = Broker::start().await;
    let client = broker.client().await;
    let bus = Bus::connect(&broker.settings(), "test").await.expect("connected");
    let nobody = bus.ask(&alpha(), Vec::new(), 4 * SOON).await.expect_err("nobody listens");
    let cause = std::error::Error::source(&nobody).expect("a cause").to_string();
    assert!(cause.contains("no responders"), "{cause}");

    let subscribe = async {
        // That nobody listens is told by the broker, and seen by nobody but the asker: only time can pass here.
        tokio::time::sleep(SOON).await;
        let mut asked = client.subscribe(Subject::Agent(alpha()).to_string()).await.expect("subscribed");
        let message = asked.next().await.expect("asked");
        client.publish(message.reply.expect("a reply subject"), message.payload).await.expect("published");
        assert!(tokio::time::timeout(SOON, asked.next()).await.is_err(), "asked once only");
    };
    let host = alpha();
    let (answer, ()) = tokio::join!(bus.ask(&host, b"one".to_vec(), WAIT_MAX), subscribe);
    assert_eq!(answer.expect("an answer"), b"one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fence_command_resolves_a_handover_with_a_host_that_is_gone() {
    let broker = Broker::start().await;
    let client = broker.client().await;
    let mut tasks = JoinSet::new();
    // Beta is never heard of; alpha has ceded.
    let mut ceded = inventory("alpha", true);
    (ceded.vms[0].owned, ceded.vms[0].generation) = (false, Generation(4));
    play_agent(&mut tasks, &client, ceded, vec![]);
    let mut asked = client.subscribe(Subject::Agent(alpha()).to_string()).await.expect("subscribed");
    let folder = tempfile::tempdir().expect("a directory");
    let ran_for = folder.path().join("ran-for");
    let script = "echo \"$1\" > \"$0\"";
    let command = ["/bin/sh", "-c", script, ran_for.to_str().expect("text")].map(str::to_owned).to_vec();
    let one = Coordinator::start(
        Config { fence: Some(Fence { command, after_seconds: 0, timeout_seconds: 30 }), ..broker.config("one") },
        || {},
    );
    leader(&client, "one").await;
    until(&client, &ApiRequest::VmList, |reply| match reply {
        ApiReply::Vms { vms } if vms.len() == 1 => Some(()),
        _ => None,
    })
    .await;
    for event in [
        event(1, EventBody::Accepted { plan: planned() }),
        event(2, EventBody::Unresolved { reason: "beta does not answer".into() }),
    ] {
        let subject = Subject::Event(alpha(), job()).to_string();
        client.publish(subject, seal("event", &event).into()).await.expect("published");
    }
    let told = async {
        loop {
            let message = asked.next().await.expect("a request");
            let request = Envelope::open(&message.payload).and_then(|envelope| envelope.message("agent_request"));
            if let Ok(AgentRequest::VmFenced { vm, fenced }) = request {
                return (vm, fenced);
            }
        }
    };
    let (vm, fenced) = tokio::time::timeout(WAIT_MAX, told).await.expect("in time");
    assert_eq!((vm, fenced.as_str()), (planned().vm.id, "beta"));
    assert_eq!(std::fs::read_to_string(&ran_for).expect("it ran"), "beta\n");
    one.stop().await;
}
