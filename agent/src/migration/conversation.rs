//! The control channel of a session: questions, answers, and what comes unasked.
//!
//! ```text
//!   lanes ──▶ reader ──┬─ Handover ──▶ keeper                 at once, whatever the job is doing
//!                      ├─ Failed ────▶ `failure`              the target cannot go on
//!                      ├─ Abort ─────▶ `given_up`, `next`     the source gives up, also while the target is busy
//!                      └─ the rest ──▶ `next`, `ask`          in order
//!   keeper ── Handover ──▶ pump ──▶ lanes
//! ```

use std::time::Duration;

use bytes::Bytes;
use sterna_shared::bus::EnvelopeError;
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::FailureReport;
use sterna_shared::ownership::Input;
use sterna_shared::peer::message::Message;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::link::{LinkError, Receiver, Sender};
use crate::migration::keeper::Keeper;

/// Messages that wait for the job to take them, each way.
const MESSAGES_MAX: usize = 16;

/// Why a conversation came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    /// The session ended.
    #[error("the session with {peer} ended")]
    Link {
        /// The other host.
        peer: HostId,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The peer said something else than it should.
    #[error("{peer} said {found:?} where {expected:?} was due; the agents may be of versions that do not fit")]
    Unexpected {
        /// The other host.
        peer: HostId,
        /// What was due.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// The peer did not answer in time.
    #[error("{peer} did not say {expected:?} within {wait:?}; look at its agent's log")]
    Late {
        /// The other host.
        peer: HostId,
        /// What was due.
        expected: &'static str,
        /// How long it was waited for.
        wait: Duration,
    },
    /// The target cannot go on.
    #[error("{peer} cannot go on: {}", failure)]
    Failed {
        /// The other host.
        peer: HostId,
        /// Why.
        failure: Box<FailureReport>,
    },
    /// A message could not be encoded: a fault of ours.
    #[error("a message could not be encoded")]
    Encode(#[from] EnvelopeError),
}

/// One end of a control channel. Dropping it closes the keeper's route.
#[derive(Debug)]
pub struct Conversation {
    peer: HostId,
    sender: Sender,
    inbox: mpsc::Receiver<Result<Message, LinkError>>,
    failed: watch::Receiver<Option<FailureReport>>,
    given_up: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

impl Conversation {
    /// Begins to read, and opens the lanes as a route to the peer for the handover of the keeper's VM.
    pub async fn open(peer: HostId, job: JobId, sender: Sender, control: Receiver<Bytes>, keeper: Keeper) -> Self {
        let (inbox_sender, inbox) = mpsc::channel(MESSAGES_MAX);
        let (failed_sender, failed) = watch::channel(None);
        let (give_up, given_up) = watch::channel(false);
        let (route, outbox) = mpsc::channel(MESSAGES_MAX);
        keeper.route(peer.clone(), job, route).await;
        let mut tasks = JoinSet::new();
        let signals = Signals { failed: failed_sender, give_up };
        tasks.spawn(read(peer.clone(), control, keeper, inbox_sender, signals));
        tasks.spawn(pump(outbox, sender.clone()));
        Self { peer, sender, inbox, failed, given_up, _tasks: tasks }
    }

    /// The other host.
    #[must_use]
    pub fn peer(&self) -> &HostId {
        &self.peer
    }

    /// Says something.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn say(&self, message: &Message) -> Result<(), ConversationError> {
        self.sender.control(Bytes::from(message.to_bytes()?)).await.map_err(|source| self.link(source))
    }

    /// The next message that is not about the handover.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn next(&mut self) -> Result<Message, ConversationError> {
        match self.inbox.recv().await {
            Some(Ok(message)) => Ok(message),
            Some(Err(source)) => Err(self.link(source)),
            None => Err(self.link(LinkError::Closed)),
        }
    }

    /// Says something and waits for the answer, out of which `pick` takes what is due.
    ///
    /// # Errors
    /// The session ends, the peer cannot go on, another message comes, or none within `wait`.
    pub async fn ask<T>(
        &mut self,
        message: &Message,
        expected: &'static str,
        wait: Duration,
        pick: impl FnOnce(&Message) -> Option<T>,
    ) -> Result<T, ConversationError> {
        self.say(message).await?;
        self.hear(expected, wait, pick).await
    }

    /// Waits for the answer to something said before, out of which `pick` takes what is due. Answers come in the order of
    /// the questions.
    ///
    /// # Errors
    /// The session ends, the peer cannot go on, another message comes, or none within `wait`.
    pub async fn hear<T>(
        &mut self,
        expected: &'static str,
        wait: Duration,
        pick: impl FnOnce(&Message) -> Option<T>,
    ) -> Result<T, ConversationError> {
        let late = || ConversationError::Late { peer: self.peer.clone(), expected, wait };
        let late = late();
        let failure = self.failure();
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout(wait, self.next()) => answer.map_err(|_| late)??,
            failed = failure => return Err(failed),
        };
        pick(&answer).ok_or_else(|| ConversationError::Unexpected {
            peer: self.peer.clone(),
            expected,
            found: answer.name(),
        })
    }

    /// Waits until the source says that it gives the move up; [`Conversation::next`] has its words.
    pub fn given_up(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut given_up = self.given_up.clone();
        async move {
            if given_up.wait_for(|given_up| *given_up).await.is_err() {
                std::future::pending::<()>().await; // The session has ended; `next` tells that.
            }
        }
    }

    /// Waits until the target says that it cannot go on, or the session ends.
    pub fn failure(&self) -> impl Future<Output = ConversationError> + Send + 'static {
        let (mut failed, peer, sender) = (self.failed.clone(), self.peer.clone(), self.sender.clone());
        async move {
            let failure = match failed.wait_for(Option::is_some).await {
                Ok(failure) => failure.clone(),
                Err(_) => None,
            };
            match failure {
                Some(failure) => ConversationError::Failed { peer, failure: Box::new(failure) },
                // The reader has ended, and so has the session.
                None => ConversationError::Link { peer, source: sender.ended().await },
            }
        }
    }

    fn link(&self, source: LinkError) -> ConversationError {
        ConversationError::Link { peer: self.peer.clone(), source }
    }
}

/// What must be seen at once, whatever waits in the inbox.
struct Signals {
    failed: watch::Sender<Option<FailureReport>>,
    give_up: watch::Sender<bool>,
}

async fn read(
    peer: HostId,
    mut control: Receiver<Bytes>,
    keeper: Keeper,
    inbox: mpsc::Sender<Result<Message, LinkError>>,
    signals: Signals,
) {
    loop {
        let bytes = match control.recv().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(error) => {
                let _ = inbox.send(Err(error)).await;
                break;
            }
        };
        match Message::from_bytes(&bytes) {
            Ok(Message::Handover { message }) => {
                let input = Input::Received { from: peer.clone(), message };
                // What it answers goes out by the keeper's own routes.
                if let Err(error) = keeper.feed(input).await {
                    warn!(%peer, %error, "a message of the handover was not taken");
                }
            }
            Ok(Message::Failed { failure }) => {
                signals.failed.send_replace(Some(failure));
            }
            Ok(message) => {
                if matches!(message, Message::Abort { .. }) {
                    signals.give_up.send_replace(true);
                }
                if inbox.send(Ok(message)).await.is_err() {
                    debug!(%peer, "a message came after the job had ended");
                }
            }
            Err(error) => {
                warn!(%peer, %error, "the peer sent what is no message");
                let _ =
                    inbox.send(Err(LinkError::Protocol { lane: 0, what: "a control message is not readable" })).await;
                break;
            }
        }
    }
}

async fn pump(mut outbox: mpsc::Receiver<Message>, sender: Sender) {
    while let Some(message) = outbox.recv().await {
        let Ok(bytes) = message.to_bytes() else { continue };
        if sender.control(Bytes::from(bytes)).await.is_err() {
            return; // The keeper goes on over NATS.
        }
    }
}
