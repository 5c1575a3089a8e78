//! Core NATS: the connection, what is listened to, requests to agents, and the operators' API as a NATS service.
//!
//! With [`store`](crate::store) the only module of the service that names the NATS client. What comes in is handed on as subject and
//! bytes; what it means is decided elsewhere.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, Service, ServiceExt};
use async_nats::{Client, ConnectOptions, HeaderMap, RequestErrorKind, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use sterna_shared::bus::{NATS_VERSION_MIN, NatsSettings, Subject, version_numbers};
use sterna_shared::id::HostId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::{Endpoint, Written};
use crate::feed::Document;

/// How long a request to the broker itself may take.
pub(crate) const REQUEST_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long an agent that does not listen is waited for: one that was just started, or has lost the broker for a moment,
/// listens again within it.
const NOBODY_LISTENS_MAX: Duration = Duration::from_secs(5);
/// Between two attempts to reach it.
const NOBODY_LISTENS_PAUSE: Duration = Duration::from_millis(100);
/// API requests that wait to be taken in; further ones wait in the client's own bounded queue.
const CALLS_MAX: usize = 256;
/// What the subjects begin with at which members wait for answers.
const INBOX: &str = "_INBOX";
/// The service's name under `$SRV`.
const SERVICE_NAME: &str = "sterna";
/// What of a request in JSON was left aside, a header each.
pub const HEADER_WARNING: &str = "Sterna-Warning";

/// What the NATS client reports, boxed: its error types are many, and here all mean that the broker did not do it.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Others may read the key.
    #[error("{} has mode {mode:03o}; take it from others with `chmod 600 {}`", path.display(), path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A key file cannot be read.
    #[error("the key {} cannot be read; make one with `sterna nats-config`, or correct [nats]", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No server can be reached, or none lets us in.
    #[error("no NATS server of {servers} takes the connection; see that one runs and knows this coordinator's key")]
    Connect {
        /// The servers tried.
        servers: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The server is too old.
    #[error("nats-server {found} is too old; upgrade it to {}.{}.{} or newer", .least.0, .least.1, .least.2)]
    Version {
        /// What it says it is.
        found: String,
        /// What is needed.
        least: (u64, u64, u64),
    },
    /// The server did not do what was asked of it.
    #[error("NATS could not {what}; see its log, and that JetStream is enabled and permitted to this coordinator")]
    Server {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: Cause,
    },
    /// Another coordinator wrote what this one thought its own.
    #[error("another coordinator wrote {key}; this one no longer leads")]
    Fenced {
        /// The key.
        key: String,
    },
}

/// Turns a client's error into ours.
pub(crate) fn server<E: Into<Cause>>(what: &'static str) -> impl FnOnce(E) -> BusError {
    move |source| BusError::Server { what, source: source.into() }
}

/// The connection. It reconnects for ever by itself; cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    client: Client,
}

impl Bus {
    /// Connects, and checks the server's version.
    ///
    /// # Errors
    /// [`BusError`], saying what to do.
    pub async fn connect(settings: &NatsSettings, name: &str) -> Result<Self, BusError> {
        let mut options = ConnectOptions::new()
            .name(format!("sterna-coordinator {name}"))
            .max_reconnects(None)
            .request_timeout(Some(REQUEST_WAIT_MAX))
            .event_callback(|event| async move { tracing::info!(%event, "NATS connection") });
        if let Some(path) = &settings.ca_file {
            options = options.add_root_certificates(path.clone());
        }
        if settings.servers.iter().any(|server| server.starts_with("tls://")) {
            options = options.require_tls(true);
        }
        if let Some(path) = &settings.nkey_file {
            options = options.nkey(secret(path)?.trim().to_owned());
        }
        if let Some(path) = &settings.credentials_file {
            let text = secret(path)?;
            options = options.credentials(&text).map_err(|source| BusError::Key { path: path.clone(), source })?;
        }
        let servers = settings.servers.join(", ");
        let client = options
            .connect(settings.servers.clone())
            .await
            .map_err(|error| BusError::Connect { servers, source: error.into() })?;
        let found = client.server_info().version;
        if version_numbers(&found).is_none_or(|version| version < NATS_VERSION_MIN) {
            return Err(BusError::Version { found, least: NATS_VERSION_MIN });
        }
        Ok(Self { client })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The version of the server we are connected to.
    #[must_use]
    pub fn nats_version(&self) -> String {
        self.client.server_info().version
    }

    /// Listens to a subject, wildcards allowed.
    ///
    /// # Errors
    /// [`BusError::Server`] where the connection is closed.
    pub async fn listen(&self, subject: &'static str) -> Result<Inbox, BusError> {
        let subscriber = self.client.subscribe(subject).await.map_err(server("listen to a subject"))?;
        Ok(Inbox { subscriber })
    }

    /// Asks a host's agent and waits for its answer. While nobody listens it is asked again, for at most
    /// five seconds: such a request has reached nobody, so that nothing is done twice.
    ///
    /// # Errors
    /// [`BusError::Server`] where no answer comes within `wait`, or nobody listens.
    pub async fn ask(&self, host: &HostId, request: Vec<u8>, wait: Duration) -> Result<Vec<u8>, BusError> {
        let subject = Subject::Agent(host.clone()).to_string();
        let payload = Bytes::from(request);
        let begun = Instant::now();
        loop {
            let left = wait.saturating_sub(begun.elapsed());
            let request = async_nats::Request::new().payload(payload.clone()).timeout(Some(left));
            match self.client.send_request(subject.clone(), request).await {
                Err(error)
                    if error.kind() == RequestErrorKind::NoResponders
                        // What is left must do for an answer: it says more than a time-out.
                        && begun.elapsed() < NOBODY_LISTENS_MAX.min(wait / 2) =>
                {
                    tokio::time::sleep(NOBODY_LISTENS_PAUSE).await;
                }
                answer => {
                    return answer.map(|answer| answer.payload.into()).map_err(server("bring a request to the agent"));
                }
            }
        }
    }

    /// Publishes a document of the feed.
    ///
    /// # Errors
    /// [`BusError::Server`] where the connection is closed.
    pub async fn publish(&self, document: &Document) -> Result<(), BusError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &document.headers {
            headers.insert(*name, value.as_str());
        }
        self.client
            .publish_with_headers(document.subject.clone(), headers, document.body.clone().into())
            .await
            .map_err(server("publish the feed"))
    }

    /// Offers the API: one endpoint a resource and verb, which answers `$SRV.PING`, `INFO` and `STATS` too.
    ///
    /// # Errors
    /// [`BusError::Server`] where the connection is closed.
    pub async fn serve(&self, endpoints: &'static [Endpoint], version: &str) -> Result<ApiService, BusError> {
        let start = self.client.service_builder().description("Sterna coordinator").start(SERVICE_NAME, version);
        let service = start.await.map_err(server("offer the API"))?;
        let (sender, calls) = mpsc::channel(CALLS_MAX);
        let mut tasks = JoinSet::new();
        for &endpoint in endpoints {
            let (resource, verb) = endpoint;
            let subject = Subject::Api(resource.into(), verb.into()).to_string();
            let builder = service.endpoint_builder().name(format!("{resource}-{verb}"));
            let mut requests = builder.add(subject).await.map_err(server("offer the API"))?;
            let sender = sender.clone();
            tasks.spawn(async move {
                while let Some(request) = requests.next().await {
                    // An asker chooses where the answer goes, and ours may go to the broker's own interface, which reads JSON.
                    if !request.message.reply.as_ref().is_some_and(|reply| reply.starts_with(INBOX)) {
                        tracing::warn!(subject = %request.message.subject, "a request that is not answered to an inbox is left alone");
                        continue;
                    }
                    if sender.send(Call { endpoint, request }).await.is_err() {
                        return;
                    }
                }
            });
        }
        // Only when the server has the subscriptions does the coordinator say that it leads.
        self.client.flush().await.map_err(server("offer the API"))?;
        Ok(ApiService { service, calls, _tasks: tasks })
    }

    /// Waits until everything published has gone to the server.
    ///
    /// # Errors
    /// [`BusError::Server`] where the connection is closed.
    pub async fn flush(&self) -> Result<(), BusError> {
        self.client.flush().await.map_err(server("take what was published"))
    }
}

/// Reads a key, if nobody else may.
fn secret(path: &Path) -> Result<String, BusError> {
    let fault = |source| BusError::Key { path: path.into(), source };
    let mode = std::fs::metadata(path).map_err(fault)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(BusError::KeyMode { path: path.into(), mode });
    }
    std::fs::read_to_string(path).map_err(fault)
}

/// A subscription.
#[derive(Debug)]
pub struct Inbox {
    subscriber: Subscriber,
}

impl Inbox {
    /// The next message: subject and body; none when the connection is closed for good.
    pub async fn next(&mut self) -> Option<(String, Vec<u8>)> {
        self.subscriber.next().await.map(|message| (message.subject.to_string(), message.payload.into()))
    }
}

/// The API while it is offered.
#[derive(Debug)]
pub struct ApiService {
    service: Service,
    calls: mpsc::Receiver<Call>,
    _tasks: JoinSet<()>,
}

impl ApiService {
    /// The next request.
    pub async fn next(&mut self) -> Option<Call> {
        self.calls.recv().await
    }

    /// Ends the offer.
    pub async fn stop(self) {
        if let Err(error) = self.service.stop().await {
            tracing::debug!(%error, "the API was gone already");
        }
    }
}

/// One API request, to be answered once.
pub struct Call {
    endpoint: Endpoint,
    request: Request,
}

impl Call {
    /// Where it was asked: the broker lets an operator ask there, and perhaps nowhere else.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// What was asked, as it came.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.request.message.payload
    }

    /// Answers. An error is told in the service headers too, so that tools that know only NATS see it; so are warnings.
    pub async fn answer(self, Written { body, error, warnings }: Written) {
        // A header is one line.
        let line = |text: &str| text.replace(['\r', '\n'], " ");
        let mut headers = HeaderMap::new();
        if let Some((code, text)) = error {
            headers.insert(NATS_SERVICE_ERROR, line(&text).as_str());
            headers.insert(NATS_SERVICE_ERROR_CODE, code.to_string().as_str());
        }
        for warning in warnings {
            headers.append(HEADER_WARNING, line(&warning).as_str());
        }
        if let Err(error) = self.request.respond_with_headers(Ok(body.into()), headers).await {
            tracing::debug!(%error, "an asker did not wait for the answer");
        }
    }
}
