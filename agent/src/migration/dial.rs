//! How the two sides of a job meet: the source's way to its target, a session and the conversation on it; and the target's waiting.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sterna_shared::peer::attach::{RefusalCode, SessionId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::info;

use crate::disk::copy::{Block, Body};
use crate::link::{Dial, LinkError, Sender, Session, Timing};
use crate::migration::context::{Context, MoveError};
use crate::migration::conversation::Conversation;

/// How long the target may take to learn of the job before its lanes are refused for good.
pub const ADMISSION_WAIT: Duration = Duration::from_secs(30);
/// How long the source may take to come after the plan did.
const SOURCE_WAIT: Duration = Duration::from_secs(120);
/// Between two attempts at a target that has not learnt of the job yet.
const ADMISSION_PAUSE: Duration = Duration::from_millis(50);

/// What waiting for the source has come to.
#[derive(Debug)]
pub enum Arrival {
    /// It is here.
    Came(Session),
    /// It did not come, or the job was ended before.
    Nobody,
    /// The agent is stopping.
    Stopping,
}

/// Waits for the source of a job.
pub async fn arrival(context: &Context, sessions: &mut mpsc::Receiver<Session>) -> Arrival {
    let job = context.plan.job;
    tokio::select! {
        biased;
        session = sessions.recv() => return session.map_or(Arrival::Stopping, Arrival::Came),
        _ = context.gate.ended() => info!(%job, "ended before the source came"),
        () = tokio::time::sleep(SOURCE_WAIT) => info!(%job, "the source did not come"),
    }
    Arrival::Nobody
}

/// Opens the job's session with its target.
///
/// # Errors
/// [`MoveError::Connect`].
pub async fn dial(
    context: &Arc<Context>,
    session: SessionId,
    incarnation: u32,
) -> Result<(Session, Conversation), MoveError> {
    let plan = &context.plan;
    let failed = |source| MoveError::Connect { peer: plan.target.id.clone(), source };
    // Counted from the first answer: a target that is away says nothing, and is waited for by the dial itself.
    let mut deadline = None;
    let mut session = loop {
        let dial = Dial {
            peer: plan.target.id.clone(),
            addresses: plan.target.addresses.clone(),
            job: plan.job,
            token: plan.token.clone(),
            session,
            incarnation,
            lanes: plan.lanes,
            timing: Timing::default(),
        };
        let tls = Arc::clone(&context.host.tls);
        match Session::dial(dial, tls, Arc::clone(&context.limiter)).await {
            Ok(session) => break session,
            // The target learns of the job by its own command, which may come a little later.
            Err(LinkError::Refused(refusal))
                if refusal.code == RefusalCode::UnknownJob
                    && Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + ADMISSION_WAIT) =>
            {
                tokio::time::sleep(ADMISSION_PAUSE).await;
            }
            Err(source) => return Err(failed(source)),
        }
    };
    let control: crate::link::Receiver<Bytes> = session.control().map_err(failed)?;
    let (peer, keeper) = (plan.target.id.clone(), context.keeper.clone());
    let conversation = Conversation::open(peer, plan.job, session.sender(), control, keeper).await;
    context.watch_lanes(session.status());
    Ok((session, conversation))
}

/// Carries blocks to the lanes until there are no more; how many there were.
pub async fn pump(mut queue: mpsc::Receiver<Block>, sender: Sender) -> u64 {
    let mut blocks = 0;
    while let Some(Block { disk, offset, body }) = queue.recv().await {
        let sent = match body {
            Body::Data(bytes) => sender.block(disk, offset, bytes).await,
            Body::Zero(length) => sender.zero(disk, offset, length).await,
        };
        if sent.is_err() {
            break; // The queue closes, and the pass sees that.
        }
        blocks += 1;
    }
    blocks
}
