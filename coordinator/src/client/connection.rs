//! The connection to the broker: how it is made, and one request and its answer as bytes.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{ConnectErrorKind, ConnectOptions};
use sterna_shared::bus::{ApiReply, ApiRequest, Envelope, NATS_VERSION_MIN, NatsSettings, Subject, version_numbers};
use sterna_shared::id::Epoch;

use super::{ClientError, SERVERS_MAX};

/// How long one server may take to be connected to.
const CONNECT_SECONDS_MAX: u64 = 5;
/// The longest secret file that is read.
const SECRET_LENGTH_MAX: u64 = 16 << 10;

/// A connection to the broker.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    nats: async_nats::Client,
    /// The last thing the broker complained of, such as a denied subject: it says so apart from the answer.
    complaint: Arc<Mutex<Option<String>>>,
}

impl Connection {
    pub(super) async fn open(settings: &NatsSettings, sender: &str) -> Result<Self, ClientError> {
        if settings.servers.is_empty() || settings.servers.len() > SERVERS_MAX {
            return Err(ClientError::Servers { count: settings.servers.len() });
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
        let nats = options.connect(&settings.servers).await.map_err(|source| ClientError::Connect {
            servers: settings.servers.join(", "),
            remedy: connect_remedy(source.kind()),
            source,
        })?;
        let found = nats.server_info().version;
        if version_numbers(&found).is_none_or(|version| version < NATS_VERSION_MIN) {
            return Err(ClientError::Version { found });
        }
        Ok(Self { nats, complaint })
    }

    pub(super) fn server_version(&self) -> String {
        self.nats.server_info().version
    }

    pub(super) fn server_demands_tls(&self) -> bool {
        self.nats.server_info().tls_required
    }

    pub(super) async fn exchange(
        &self,
        sender: &str,
        request: &ApiRequest,
        timeout: Duration,
    ) -> Result<ApiReply, ClientError> {
        let (resource, verb) = request.subject_tokens();
        let subject = Subject::Api(resource.to_owned(), verb.to_owned()).to_string();
        let payload = Envelope::seal("api_request", sender, Epoch(0), request)?;
        let asked = async_nats::Request::new().payload(payload.into()).timeout(Some(timeout));
        let message = self.nats.send_request(subject, asked).await.map_err(|source| match source.kind() {
            RequestErrorKind::NoResponders => ClientError::NoCoordinator,
            RequestErrorKind::TimedOut => match self.complaint.lock().ok().and_then(|mut text| text.take()) {
                Some(complaint) => ClientError::Denied { complaint },
                None => ClientError::TimedOut { seconds: timeout.as_secs() },
            },
            _ => ClientError::Request { source },
        })?;
        if message.payload.is_empty() {
            let header =
                |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
            if let Some(text) = header("Nats-Service-Error") {
                return Err(ClientError::Service { code: header("Nats-Service-Error-Code").unwrap_or_default(), text });
            }
        }
        Ok(Envelope::open(&message.payload)?.message("api_reply")?)
    }
}

async fn options_of(settings: &NatsSettings) -> Result<ConnectOptions, ClientError> {
    let mut options =
        ConnectOptions::new().connection_timeout(Duration::from_secs(CONNECT_SECONDS_MAX)).ignore_discovered_servers();
    if let Some(path) = &settings.ca_file {
        File::open(path).map_err(|source| ClientError::File {
            what: "authority's certificate",
            path: path.clone(),
            source,
        })?;
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    if let Some(path) = &settings.nkey_file {
        let seed = read_secret("nkey seed", path)?;
        let key = nkeys::KeyPair::from_seed(seed.trim())
            .map_err(|source| ClientError::Seed { path: path.clone(), source })?;
        // Nobody but this key may listen to its inbox: sterna nats-config allows each operator its own and no other.
        options = options.custom_inbox_prefix(inbox_of(&key.public_key())).nkey(seed.trim().to_owned());
    } else if let Some(path) = &settings.credentials_file {
        let text = read_secret("credentials file", path)?;
        options = options.credentials(&text).map_err(|source| ClientError::File {
            what: "credentials file",
            path: path.clone(),
            source,
        })?;
    }
    Ok(options)
}

/// The inbox prefix of a client that is known by its nkey.
#[must_use]
pub(crate) fn inbox_of(public_key: &str) -> String {
    format!("_INBOX.{public_key}")
}

/// Reads a secret, which only its owner may read. Owner, mode and content are of one open file.
fn read_secret(what: &'static str, path: &Path) -> Result<String, ClientError> {
    let failed = |source| ClientError::File { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(ClientError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(SECRET_LENGTH_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
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
