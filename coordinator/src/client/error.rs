//! Why the fleet cannot be asked, or what it answered in place of what was wanted.

use std::io;
use std::path::PathBuf;

use sterna_shared::bus::{ApiError, ApiReply, EnvelopeError, NATS_VERSION_MIN};

use super::SERVERS_MAX;

/// Why a request has not come to what it asks for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The asker's: no server, or too many.
    #[error("{count} servers are configured; give 1 to {SERVERS_MAX}")]
    Servers {
        /// How many.
        count: usize,
    },
    /// The asker's: a file named in the configuration cannot be used.
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
    /// The asker's: a secret is readable by others.
    #[error("{} has mode {mode:04o}: others may read or change it; run: chmod 600 {}", path.display(), path.display())]
    Mode {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The asker's: a seed is none.
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
    /// The coordinators answered that it cannot be done, and why.
    #[error("{}", error.message)]
    Api {
        /// Their answer, with every reason and what to do.
        error: ApiError,
    },
    /// A list that comes in parts was another each time.
    #[error("the list changes faster than its parts can be asked for")]
    Changing,
    /// There is nothing of that name.
    #[error("no {what} is called {name}")]
    NotFound {
        /// What was sought.
        what: &'static str,
        /// The name it was sought by.
        name: String,
    },
    /// An answer of another kind than the request calls for: a fault of the coordinator's, or another version of it.
    #[error("the coordinators answered something else than was asked: {found}")]
    Unexpected {
        /// What came.
        found: &'static str,
    },
}

impl ClientError {
    /// An answer that the request does not call for.
    #[must_use]
    pub fn unexpected(reply: &ApiReply) -> Self {
        let found = match reply {
            ApiReply::Hosts { .. } => "hosts",
            ApiReply::Vms { .. } => "vms",
            ApiReply::Done => "done",
            ApiReply::Console { .. } => "console",
            ApiReply::Plan { .. } => "plan",
            ApiReply::Planned { .. } => "planned",
            ApiReply::Checked { .. } => "checked",
            ApiReply::Replicas { .. } => "replicas",
            ApiReply::JobStarted { .. } => "job started",
            ApiReply::StateRequested { .. } => "state requested",
            ApiReply::Jobs { .. } => "jobs",
            ApiReply::Part { .. } => "part",
            ApiReply::Job { .. } => "job",
            ApiReply::History { .. } => "history",
            ApiReply::Google { .. } => "google",
            ApiReply::System { .. } => "system",
            ApiReply::Error { .. } => "error",
        };
        Self::Unexpected { found }
    }
}
