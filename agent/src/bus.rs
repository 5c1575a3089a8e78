//! NATS, from the agent's side: the only module here that names its client.
//!
//! ```text
//!   STERNA_CMD ── durable consumer ──▶ Inbound::Command ─┐
//!   sterna.v1.agent.<host> ──────────▶ Inbound::Request ─┤     of the coordinators
//!   sterna.v1.handover.<host> ───────▶ Inbound::Request ─┴▶ service, of other agents: the handover and nothing else
//!   journal ── events not yet published, in order ───────▶ STERNA_EVT   (publisher, for ever)
//!   service ── inventory, progress ──────────────────────▶ core NATS    (lost when nobody listens)
//! ```
//!
//! The broker may be away at any time, from the start on. Nothing here waits for it but its own loops; a move in progress
//! does not notice (invariant 4).

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, AckKind, consumer::PullConsumer};
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use sterna_shared::bus::{
    AgentReply, AgentRequest, ApiError, ApiErrorKind, Command, Envelope, NatsSettings, STREAM_COMMANDS, Subject,
};
use sterna_shared::host::Inventory;
use sterna_shared::id::{Epoch, HostId};
use sterna_shared::job::{Event, Progress};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use crate::journal::{Journal, JournalError};

/// How long a request to another agent waits for its answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the broker may take to acknowledge an event before it is published again.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed attempt to publish or to consume.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Between two signs of life of ours. After a cut link the old connection looks alive for as long as TCP tries again, up to
/// minutes, in which the fleet takes this host for dead.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// The broker's sign of life on a pull; two missed ones and the consumer is made anew (pulls have stalled for ever after
/// reconnects: nats.go#1729, nats.rs#557).
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Requests that may wait for the service.
const INBOUND_QUEUE: usize = 64;
/// Requests on one subject that are answered at a time.
const REQUESTS_MAX: usize = 256;
/// Events read from the journal at a time.
const PUBLISH_BATCH: usize = 64;
/// A command that cannot be taken now is sent again after this long.
const COMMAND_RETRY: Duration = Duration::from_millis(500);

/// What came in over the broker.
#[derive(Debug)]
pub enum Inbound {
    /// A command of the coordinators. Answering acknowledges it to the broker.
    Command {
        /// What to do.
        command: Command,
        /// The epoch it was given in.
        epoch: Epoch,
        /// `true` once it is journalled (or is of no use); `false` to be sent it again.
        taken: oneshot::Sender<bool>,
    },
    /// A request that is answered.
    Request {
        /// What is asked.
        request: AgentRequest,
        /// The epoch of the asker; zero from another agent.
        epoch: Epoch,
        /// Where the answer goes.
        reply: oneshot::Sender<AgentReply>,
    },
}

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A file of the settings is not usable.
    #[error("the NATS {what} {} cannot be used: {remedy}", path.display())]
    File {
        /// Which.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The settings are refused by the client.
    #[error("the NATS settings cannot be used")]
    Connect(#[source] async_nats::ConnectError),
    /// The broker could not be reached, or did not answer in time.
    #[error("no answer over NATS from {whom}")]
    NoAnswer {
        /// Who was asked.
        whom: String,
    },
    /// What came is not a message of ours.
    #[error("an answer over NATS was not understood")]
    Malformed(#[from] sterna_shared::bus::EnvelopeError),
}

/// A handle to the broker.
#[derive(Debug, Clone)]
pub struct Bus {
    host: HostId,
    client: Client,
}

impl Bus {
    /// Connects, or goes on trying in the background; starts the loops. `told` changes when the journal has new events.
    ///
    /// # Errors
    /// The settings name files that cannot be used.
    pub async fn start(
        host: HostId,
        settings: &NatsSettings,
        journal: Journal,
        told: watch::Receiver<u64>,
    ) -> Result<(Self, mpsc::Receiver<Inbound>), BusError> {
        let options = options(&host, settings)?;
        let client = options.connect(settings.servers.as_slice()).await.map_err(BusError::Connect)?;
        let bus = Self { host, client };
        let (inbound, receiver) = mpsc::channel(INBOUND_QUEUE);
        tokio::spawn(bus.clone().consume_commands(inbound.clone()));
        for subject in [Subject::Agent(bus.host.clone()), Subject::Handover(bus.host.clone())] {
            tokio::spawn(bus.clone().serve_requests(subject, inbound.clone()));
        }
        tokio::spawn(bus.clone().publish_events(journal, told));
        Ok((bus, receiver))
    }

    /// Tells the fleet what this host is and has. Lost when nobody listens.
    pub async fn publish_inventory(&self, inventory: &Inventory) {
        self.publish(&Subject::Host(self.host.clone()), "inventory", inventory).await;
    }

    /// Tells how far a job is. Lost when nobody listens.
    pub async fn publish_progress(&self, progress: &Progress) {
        self.publish(&Subject::Progress(self.host.clone(), progress.job), "progress", progress).await;
    }

    /// Asks another agent something of the handover.
    ///
    /// # Errors
    /// It does not answer, or not in a way that is understood.
    pub async fn ask(&self, host: &HostId, request: &AgentRequest) -> Result<AgentReply, BusError> {
        let sealed = Envelope::seal("agent_request", self.host.as_str(), Epoch(0), request)?;
        let subject = Subject::Handover(host.clone()).to_string();
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.client.request(subject, sealed.into())).await;
        let message = answer.ok().and_then(Result::ok).ok_or_else(|| BusError::NoAnswer { whom: host.to_string() })?;
        Ok(Envelope::open(&message.payload)?.message("agent_reply")?)
    }

    async fn publish<T: serde::Serialize>(&self, subject: &Subject, kind: &'static str, message: &T) {
        // While the broker is away the client keeps what it is given, up to a limit at which it makes the giver wait: what
        // nobody would hear must not fill it.
        if self.client.connection_state() != State::Connected {
            return;
        }
        match Envelope::seal(kind, self.host.as_str(), Epoch(0), message) {
            Ok(sealed) => {
                // Nor may one that has stalled, and is not known to be away yet, hold whoever tells.
                let published = self.client.publish(subject.to_string(), sealed.into());
                match tokio::time::timeout(PUBLISH_TIMEOUT, published).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%subject, %error, "not published"),
                    Err(_) => debug!(%subject, "not published: the broker takes nothing"),
                }
            }
            Err(error) => warn!(%subject, %error, "not published"),
        }
    }

    async fn consume_commands(self, inbound: mpsc::Sender<Inbound>) {
        let context = jetstream::new(self.client.clone());
        let mut announced = false;
        while !inbound.is_closed() {
            let consumer: PullConsumer =
                match context.get_consumer_from_stream(self.host.as_str(), STREAM_COMMANDS).await {
                    Ok(consumer) => consumer,
                    Err(error) => {
                        if !announced {
                            info!(%error, "no commands yet: the broker is away, or no coordinator has seen this host");
                            announced = true;
                        }
                        tokio::time::sleep(RETRY_PAUSE).await;
                        continue;
                    }
                };
            announced = false;
            match consumer.stream().heartbeat(PULL_HEARTBEAT).max_messages_per_batch(16).messages().await {
                Ok(mut messages) => {
                    while let Some(next) = messages.next().await {
                        match next {
                            Ok(message) => self.take_command(message, &inbound).await,
                            Err(error) => {
                                debug!(%error, "pulling commands anew");
                                break;
                            }
                        }
                    }
                }
                Err(error) => debug!(%error, "commands cannot be pulled"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn take_command(&self, message: jetstream::Message, inbound: &mpsc::Sender<Inbound>) {
        let parsed = Envelope::open(&message.payload)
            .and_then(|envelope| Ok((envelope.epoch, envelope.message::<Command>("command")?)));
        let kind = match parsed {
            Ok((epoch, command)) => {
                let (taken, outcome) = oneshot::channel();
                let sent = inbound.send(Inbound::Command { command, epoch, taken }).await.is_ok();
                match sent && outcome.await.unwrap_or(false) {
                    true => AckKind::Ack,
                    false => AckKind::Nak(Some(COMMAND_RETRY)),
                }
            }
            Err(error) => {
                // It will not get better by being sent again.
                warn!(subject = %message.subject, %error, "a command was not understood and is dropped");
                AckKind::Term
            }
        };
        if let Err(error) = message.ack_with(kind).await {
            debug!(%error, "a command will be sent again: its acknowledgement was not sent");
        }
    }

    async fn serve_requests(self, subject: Subject, inbound: mpsc::Sender<Inbound>) {
        let places = Arc::new(Semaphore::new(REQUESTS_MAX));
        while !inbound.is_closed() {
            match self.client.subscribe(subject.to_string()).await {
                Ok(mut requests) => {
                    while let Some(message) = requests.next().await {
                        // One that finds no place is dropped, and whoever asked asks again: nobody fills this host's memory.
                        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                        // Each is answered on its own task: one that takes long holds up no other.
                        let of_agents = matches!(subject, Subject::Handover(_));
                        let answer = self.clone().serve_request(message, of_agents, inbound.clone());
                        tokio::spawn(async move {
                            answer.await;
                            drop(place);
                        });
                    }
                }
                Err(error) => debug!(%error, "requests cannot be received"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn serve_request(self, message: async_nats::Message, of_agents: bool, inbound: mpsc::Sender<Inbound>) {
        let Some(answer_to) = message.reply else { return };
        let parsed = Envelope::open(&message.payload)
            .and_then(|envelope| Ok((envelope.epoch, envelope.message::<AgentRequest>("agent_request")?)));
        let answer = match parsed {
            // The broker lets agents say only this to each other, and coordinators have no part in it.
            Ok((_, request)) if of_agents != matches!(request, AgentRequest::Handover { .. }) => {
                error_reply(ApiErrorKind::Invalid, "this is not asked here".to_owned())
            }
            Ok((epoch, request)) => {
                let (reply, outcome) = oneshot::channel();
                let sent = inbound.send(Inbound::Request { request, epoch, reply }).await.is_ok();
                let stopping = || error_reply(ApiErrorKind::Unreachable, "the agent is stopping".to_owned());
                if sent { outcome.await.unwrap_or_else(|_| stopping()) } else { stopping() }
            }
            Err(error) => error_reply(ApiErrorKind::Invalid, error.to_string()),
        };
        match Envelope::seal("agent_reply", self.host.as_str(), Epoch(0), &answer) {
            Ok(sealed) => {
                let _ = self.client.publish(answer_to, sealed.into()).await;
            }
            Err(error) => warn!(%error, "an answer could not be sent"),
        }
    }

    /// Publishes what the journal has, in order, for ever. The broker's acknowledgement moves the journal's mark on; what
    /// is acknowledged and lost all the same is asked for again by the coordinator.
    async fn publish_events(self, journal: Journal, mut told: watch::Receiver<u64>) {
        let context = jetstream::new(self.client.clone());
        loop {
            match self.publish_pending(&context, &journal).await {
                Ok(0) => {
                    if told.changed().await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    debug!(error = error.as_ref() as &dyn std::error::Error, "events wait for the broker");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn publish_pending(
        &self,
        context: &jetstream::Context,
        journal: &Journal,
    ) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        let events = journal.events_after(journal.published()?, PUBLISH_BATCH)?;
        for (number, event) in &events {
            self.publish_event(context, event).await?;
            journal.set_published(*number).await?;
        }
        Ok(events.len())
    }

    async fn publish_event(
        &self,
        context: &jetstream::Context,
        event: &Event,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let subject = Subject::Event(self.host.clone(), event.job).to_string();
        let sealed = Envelope::seal("event", self.host.as_str(), Epoch(0), event)?;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{}-{}-{}", self.host, event.job, event.sequence));
        let stored = tokio::time::timeout(PUBLISH_TIMEOUT, async {
            context.publish_with_headers(subject, headers, sealed.into()).await?.await
        });
        stored.await??;
        Ok(())
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        let hints = vec!["look at the disk that holds the agent's state directory".to_owned()];
        Self { kind: ApiErrorKind::Failed, message: error.to_string(), hints, refusals: Vec::new() }
    }
}

fn error_reply(kind: ApiErrorKind, message: String) -> AgentReply {
    AgentReply::Error { error: ApiError { kind, message, hints: Vec::new(), refusals: Vec::new() } }
}

fn options(host: &HostId, settings: &NatsSettings) -> Result<ConnectOptions, BusError> {
    let mut options = ConnectOptions::new()
        .name(format!("sterna-agent {host}"))
        .custom_inbox_prefix(format!("_INBOX_{host}"))
        .retry_on_initial_connect()
        .ping_interval(PING_INTERVAL)
        .max_reconnects(None);
    if let Some(path) = &settings.ca_file {
        // Read once here, so that a wrong path is told at the start and not as an endless reconnect.
        read("CA file", path, false)?;
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    if let Some(path) = &settings.nkey_file {
        options = options.nkey(read("nkey file", path, true)?);
    }
    if let Some(path) = &settings.credentials_file {
        let text = read("credentials file", path, true)?;
        options = options.credentials(&text).map_err(|source| BusError::File {
            what: "credentials file",
            path: path.clone(),
            remedy: "give a file with a user JWT and its seed",
            source,
        })?;
    }
    Ok(options)
}

fn read(what: &'static str, path: &Path, secret: bool) -> Result<String, BusError> {
    let fault = |remedy, source| BusError::File { what, path: path.to_owned(), remedy, source };
    if secret {
        let mode = std::fs::metadata(path).map_err(|e| fault("name a file that is there", e))?.permissions().mode();
        if mode & 0o077 != 0 {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "others may read it");
            return Err(fault("take the others' right to read away (chmod 600)", source));
        }
    }
    let text = std::fs::read_to_string(path).map_err(|e| fault("name a file that is there", e))?;
    Ok(text.trim().to_owned())
}
