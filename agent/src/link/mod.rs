//! The data plane between two agents: sessions of encrypted lanes that outlive their connections.
//!
//! ```text
//!   migration, disk, memory
//!        │ Sender: control, memory, block, zero     ▲ Receiver: control, memory(i), blocks
//!   ┌────▼──────────────────── session ─────────────┴────┐   windows by flow, rate of the job, end, status
//!   │  lane 0: control, main channel   lane 1 … lane n   │   one task each: numbers, keeps, sends again, acknowledges
//!   └────┬──────────────────────────────────────────┬────┘
//!   dial (source): each address in turn      listener (target): handshake, admission, back to the lane
//!        └───────────────── tls ────────────────────┘
//! ```
//!
//! **Acknowledgement and credit are two things.** A frame is acknowledged when the peer has it in memory: it need not be
//! sent again. Credit comes back when its reader has taken it. Each flow (control, each migration channel, the blocks) has a
//! window of its own, so a reader that stalls stalls its own flow and no other, not even on the same lane; and a lane is
//! read at all times, so silence always means trouble on the way, never a slow disk.

pub mod flow;
mod handshake;
mod lane;
pub mod limiter;
pub mod listener;
mod outbox;
mod reach;
mod records;
pub mod session;
pub mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sterna_shared::peer::attach::{AttachError, Refusal};
use sterna_shared::peer::frame::FrameError;
use sterna_shared::peer::hello::HelloError;

pub use flow::{BlockFrame, Content, InFlight, Receiver};
pub use limiter::Limiter;
pub use listener::{Admission, AdmissionRequest, Listener};
pub use reach::reach;
pub use session::{Dial, LaneStatus, Sender, Session};
pub use tls::{Files, Tls, TlsError};

/// How long things may take on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two signs of life.
    pub heartbeat: Duration,
    /// A connection on which nothing is heard for this long is dead.
    pub silence_max: Duration,
    /// From the first packet to the end of attachment.
    pub handshake_max: Duration,
    /// A lane that is down for this long ends its session; `None` is for ever.
    pub outage_max: Option<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            silence_max: Duration::from_secs(5),
            handshake_max: Duration::from_secs(5),
            outage_max: Some(Duration::from_secs(120)),
        }
    }
}

/// Why a connection, or the whole session, is no more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// One end has closed the session after all was delivered.
    #[error("the session is closed")]
    Closed,
    /// This end has given the session up, or dropped it.
    #[error("the session was given up by this host")]
    Abandoned,
    /// The peer has given the session up.
    #[error("the session was given up by the peer; its log says why")]
    AbandonedByPeer,
    /// The target does not take the connection.
    #[error("the target refuses the connection")]
    Refused(#[source] Refusal),
    /// The peer is not who it must be, or does not take us.
    #[error("no trustworthy connection to the peer")]
    Tls(#[source] TlsError),
    /// A lane could not be brought back in time.
    #[error("lane {lane} was down for {limit:?}; check the network between the hosts, then start the job again")]
    Outage {
        /// The lane.
        lane: u8,
        /// How long it may be down.
        limit: Duration,
        /// What went wrong last.
        #[source]
        last: Option<Arc<LinkError>>,
    },
    /// The peer no longer has what was delivered to it: its agent was restarted.
    #[error("the peer's agent was restarted and has lost the state of the lanes; dial anew with a higher incarnation")]
    StateLost,
    /// A later incarnation of the same session has taken its place.
    #[error("the source's agent was restarted and has begun the session anew")]
    Superseded,
    /// Nothing was heard on a connection.
    #[error("nothing was heard of the peer for {limit:?}")]
    Silent {
        /// How long it may be silent.
        limit: Duration,
    },
    /// A handshake took too long.
    #[error("the peer did not answer within {limit:?}")]
    Slow {
        /// How long it may take.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] Arc<io::Error>),
    /// The peer's hello does not fit ours.
    #[error("no common protocol with the peer")]
    Hello(#[from] HelloError),
    /// The peer's attach message or answer is not one.
    #[error("the peer's attachment is malformed")]
    Attach(#[source] Arc<AttachError>),
    /// The peer sent a header that is none.
    #[error("the peer sent a malformed frame")]
    Frame(#[from] FrameError),
    /// The peer broke the rules of a lane.
    #[error("the peer broke the protocol of lane {lane}: {what}")]
    Protocol {
        /// The lane.
        lane: u8,
        /// Which rule.
        what: &'static str,
    },
    /// The caller asks for what a session does not have.
    #[error("{what}; this is a fault of Sterna")]
    Misuse {
        /// What is wrong.
        what: &'static str,
    },
    /// Not all was acknowledged in time.
    #[error("the peer did not acknowledge everything within {limit:?}")]
    Undelivered {
        /// The limit.
        limit: Duration,
    },
}

impl LinkError {
    /// Whether it is the peer's breach of the protocol, which a new connection does not mend for ever.
    fn breach(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Protocol { .. })
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        tls::classify(error).into()
    }
}

impl From<TlsError> for LinkError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Handshake(source) => Self::Io(source),
            other => Self::Tls(other),
        }
    }
}

impl From<AttachError> for LinkError {
    fn from(error: AttachError) -> Self {
        Self::Attach(Arc::new(error))
    }
}
