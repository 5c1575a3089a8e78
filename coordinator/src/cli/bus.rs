//! The command's side of NATS: connect, ask, read the answer. The only module of the command line that names
//! async-nats.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, ConnectErrorKind, ConnectOptions};
use sterna_shared::bus::{
    ApiReply, ApiRequest, Envelope, EnvelopeError, NATS_VERSION_MIN, NatsSettings, Subject, version_numbers,
};
use sterna_shared::id::Epoch;

use super::error::{CliError, Exit};

/// How long one server may take to be connected to.
const CONNECT_SECONDS_MAX: u64 = 5;
/// The most servers a configuration may name.
const SERVERS_MAX: usize = 16;
/// The longest secret file that is read.
const SECRET_LENGTH_MAX: u64 = 16 << 10;

/// A connection to the broker.
#[derive(Debug, Clone)]
pub(super) struct Bus {
    client: Client,
    sender: String,
    timeout: Duration,
    /// The last thing the broker complained of, such as a denied subject: it says so apart from the answer.
    complaint: Arc<Mutex<Option<String>>>,
}

/// Why the fleet cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    /// The operator's: no server, or too many.
    #[error("{count} servers are configured; give 1 to {SERVERS_MAX}")]
    Servers {
        /// How many.
        count: usize,
    },
    /// The operator's: a file named in the configuration cannot be used.
    #[error("the {what} {} cannot be read", path.display())]
    File {
        /// What it should hold.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The operator's: a secret is readable by others.
    #[error("{} has mode {mode:04o}: others may read or change it; run: chmod 600 {}", path.display(), path.display())]
    Mode {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The operator's: a seed is none.
    #[error("{} holds no nkey seed of a user (SU…); make one with sterna nats-config", path.display())]
    Seed {
        /// Which.
        path: PathBuf,
        /// What the library says.
        #[source]
        source: nkeys::error::Error,
    },
    /// The broker cannot be reached, or will not have us.
    #[error("no connection to the broker at {servers}")]
    Connect {
        /// Which were tried.
        servers: String,
        /// What to do.
        remedy: &'static str,
        /// What the library says.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The broker is too old.
    #[error("the broker is nats-server {found}; Sterna needs {}.{}.{} or later: upgrade it", NATS_VERSION_MIN.0, NATS_VERSION_MIN.1, NATS_VERSION_MIN.2)]
    Version {
        /// What it is.
        found: String,
    },
    /// Nobody answers API requests.
    #[error("no coordinator answers at the broker")]
    NoCoordinator,
    /// The broker does not let us ask.
    #[error("the broker does not allow this request: {complaint}")]
    Denied {
        /// What it says.
        complaint: String,
    },
    /// The coordinator took too long.
    #[error("the coordinators did not answer within {seconds} s; whether the request was carried out is not known")]
    TimedOut {
        /// How long was waited.
        seconds: u64,
    },
    /// The request could not be sent.
    #[error("the request could not be sent")]
    Request {
        /// What the library says.
        #[source]
        source: async_nats::RequestError,
    },
    /// Request or answer cannot be written or read.
    #[error("the coordinators' answer cannot be read")]
    Envelope {
        /// What is wrong with it.
        #[from]
        source: EnvelopeError,
    },
    /// The coordinator's service framework refused the request.
    #[error("the coordinators refused the request: {text} (code {code})")]
    Service {
        /// The service error's code.
        code: String,
        /// Its text.
        text: String,
    },
}

impl From<BusError> for CliError {
    fn from(error: BusError) -> Self {
        let exit = match &error {
            BusError::Servers { .. } | BusError::File { .. } | BusError::Mode { .. } | BusError::Seed { .. } => {
                Exit::Usage
            }
            BusError::Connect { .. }
            | BusError::NoCoordinator
            | BusError::TimedOut { .. }
            | BusError::Request { .. } => Exit::Unreachable,
            BusError::Denied { .. } => Exit::Refused,
            BusError::Version { .. } | BusError::Envelope { .. } | BusError::Service { .. } => Exit::Failed,
        };
        let flat = Self::from_source(exit, &error);
        match error {
            BusError::Connect { remedy, .. } => flat.hint(remedy),
            BusError::NoCoordinator => {
                flat.hint("start one: systemctl start sterna-coordinator; after a failover one answers within 10 s")
            }
            BusError::TimedOut { .. } => flat.hint("sterna doctor tells what is amiss; --timeout allows more time"),
            BusError::Denied { .. } => {
                flat.hint("use an operator's nkey; sterna nats-config --operator NAME makes one")
            }
            BusError::Envelope { .. } => flat.hint("are command and coordinator of one version? sterna doctor tells"),
            _ => flat,
        }
    }
}

impl Bus {
    /// Connects. Each request may take `timeout`.
    ///
    /// # Errors
    /// See [`BusError`]; each names what to do.
    pub(super) async fn connect(settings: &NatsSettings, sender: &str, timeout: Duration) -> Result<Self, BusError> {
        if settings.servers.is_empty() || settings.servers.len() > SERVERS_MAX {
            return Err(BusError::Servers { count: settings.servers.len() });
        }
        let complaint = Arc::new(Mutex::new(None));
        let mut options = options_of(settings).await?.name(format!("sterna {sender}"));
        let heard = Arc::clone(&complaint);
        options = options.event_callback(move |event| {
            if let async_nats::Event::ServerError(error) = &event
                && let Ok(mut complaint) = heard.lock()
            {
                *complaint = Some(error.to_string());
            }
            async {}
        });
        let client = options.connect(&settings.servers).await.map_err(|source| BusError::Connect {
            servers: settings.servers.join(", "),
            remedy: connect_remedy(source.kind()),
            source,
        })?;
        let found = client.server_info().version;
        if version_numbers(&found).is_none_or(|version| version < NATS_VERSION_MIN) {
            return Err(BusError::Version { found });
        }
        Ok(Self { client, sender: sender.to_owned(), timeout, complaint })
    }

    /// Who asks, as he calls himself.
    pub(super) fn sender(&self) -> &str {
        &self.sender
    }

    /// nats-server's version.
    #[must_use]
    pub(super) fn server_version(&self) -> String {
        self.client.server_info().version
    }

    /// Whether the server asks for TLS.
    #[must_use]
    pub(super) fn server_demands_tls(&self) -> bool {
        self.client.server_info().tls_required
    }

    /// Asks the coordinators. An answer that is an error of theirs comes as one.
    ///
    /// # Errors
    /// See [`BusError`] and [`sterna_shared::bus::ApiError`].
    pub(super) async fn ask(&self, request: &ApiRequest) -> Result<ApiReply, CliError> {
        self.ask_for(request, Duration::ZERO).await
    }

    /// Asks for something that takes `longer` than the usual time.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) async fn ask_for(&self, request: &ApiRequest, longer: Duration) -> Result<ApiReply, CliError> {
        match self.exchange(request, self.timeout.saturating_add(longer)).await? {
            ApiReply::Error { error } => Err(error.into()),
            reply => Ok(reply),
        }
    }

    async fn exchange(&self, request: &ApiRequest, timeout: Duration) -> Result<ApiReply, BusError> {
        let (resource, verb) = request.subject_tokens();
        let subject = Subject::Api(resource.to_owned(), verb.to_owned()).to_string();
        let payload = Envelope::seal("api_request", &self.sender, Epoch(0), request)?;
        let asked = async_nats::Request::new().payload(payload.into()).timeout(Some(timeout));
        let message = self.client.send_request(subject, asked).await.map_err(|source| match source.kind() {
            RequestErrorKind::NoResponders => BusError::NoCoordinator,
            RequestErrorKind::TimedOut => match self.complaint.lock().ok().and_then(|mut text| text.take()) {
                Some(complaint) => BusError::Denied { complaint },
                None => BusError::TimedOut { seconds: timeout.as_secs() },
            },
            _ => BusError::Request { source },
        })?;
        if message.payload.is_empty() {
            let header =
                |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
            if let Some(text) = header("Nats-Service-Error") {
                return Err(BusError::Service { code: header("Nats-Service-Error-Code").unwrap_or_default(), text });
            }
        }
        Ok(Envelope::open(&message.payload)?.message("api_reply")?)
    }
}

async fn options_of(settings: &NatsSettings) -> Result<ConnectOptions, BusError> {
    let mut options =
        ConnectOptions::new().connection_timeout(Duration::from_secs(CONNECT_SECONDS_MAX)).ignore_discovered_servers();
    if let Some(path) = &settings.ca_file {
        File::open(path).map_err(|source| BusError::File {
            what: "authority's certificate",
            path: path.clone(),
            source,
        })?;
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    if let Some(path) = &settings.nkey_file {
        let seed = read_secret("nkey seed", path)?;
        let key =
            nkeys::KeyPair::from_seed(seed.trim()).map_err(|source| BusError::Seed { path: path.clone(), source })?;
        // Nobody but this key may listen to its inbox: sterna nats-config allows each operator its own and no other.
        options = options.custom_inbox_prefix(inbox_of(&key.public_key())).nkey(seed.trim().to_owned());
    } else if let Some(path) = &settings.credentials_file {
        let text = read_secret("credentials file", path)?;
        options = options.credentials(&text).map_err(|source| BusError::File {
            what: "credentials file",
            path: path.clone(),
            source,
        })?;
    }
    Ok(options)
}

/// The inbox prefix of a client that is known by its nkey.
#[must_use]
pub(super) fn inbox_of(public_key: &str) -> String {
    format!("_INBOX.{public_key}")
}

/// Reads a secret, which only its owner may read. Owner, mode and content are of one open file.
fn read_secret(what: &'static str, path: &Path) -> Result<String, BusError> {
    let failed = |source| BusError::File { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(BusError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(SECRET_LENGTH_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Whether a file that should be secret is; for `sterna doctor`.
#[must_use]
pub(super) fn secret_mode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.mode() & 0o7777)
}

const fn connect_remedy(kind: ConnectErrorKind) -> &'static str {
    match kind {
        ConnectErrorKind::ServerParse | ConnectErrorKind::Dns => {
            "check [nats] servers in sterna.toml, or --server: a URL such as tls://nats.example:4222"
        }
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            "check [nats] nkey_file: it must hold a seed whose public key nats-server.conf lists (sterna nats-config)"
        }
        ConnectErrorKind::Tls => {
            "check [nats] ca_file: it must be the authority of the broker's certificate, whose names must have the server's"
        }
        ConnectErrorKind::TimedOut | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            "is nats-server running there, and is its port reachable from here? sterna doctor tells more"
        }
    }
}
