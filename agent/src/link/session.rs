//! A session: one job's lanes between two agents, and the ends that the rest of the agent holds of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use sterna_shared::id::{HostId, JobId, Token};
use sterna_shared::peer::attach::{Attach, DATA_LANES_MAX, InstanceId, SessionId};
use sterna_shared::peer::frame::{CONTENT_LENGTH_MAX, FrameKind, charge};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::flow::{BlockFrame, Flow, InFlight, Inlets, MEMORY_CHANNELS_MAX, Outlets, Receiver, Windows, inlets};
use super::handshake::{Acceptor, Dialer, Incoming};
use super::lane::{Command, Frame, Lane, Prefix, Shared, Supply};
use super::limiter::Limiter;
use super::tls::Tls;
use super::{LinkError, Timing};

/// How many data lanes a session has where nothing else is said.
pub const DATA_LANES: u8 = 4;
/// Commands that a lane has not taken over yet. What it has taken over is bounded by the windows.
const COMMANDS_MAX: usize = 256;
/// Connections that a lane of the target has not looked at yet.
const INCOMING_MAX: usize = 2;
/// How long an abort may take to reach the peer.
const ABORT_MAX: Duration = Duration::from_secs(1);

/// What the source needs to open a session.
#[derive(Debug, Clone)]
pub struct Dial {
    /// The target.
    pub peer: HostId,
    /// Where its data-plane port is reached, best first.
    pub addresses: Vec<SocketAddr>,
    /// The job.
    pub job: JobId,
    /// The job's secret.
    pub token: Token,
    /// Drawn at random once a job, and journalled.
    pub session: SessionId,
    /// Raised and journalled each time the session is dialled anew, after this agent was restarted or the target's was.
    pub incarnation: u32,
    /// Data lanes, from 1 to [`DATA_LANES_MAX`].
    pub lanes: u8,
    /// How long things may take.
    pub timing: Timing,
}

/// How a lane is.
#[derive(Debug, Clone)]
pub enum LaneStatus {
    /// It has never been up.
    Connecting,
    /// It has a connection.
    Up,
    /// It has lost its connection, and will go on where it was once it has another.
    Down {
        /// Since when.
        since: Instant,
        /// What happened to the connection.
        why: Arc<LinkError>,
    },
    /// The session has ended.
    Ended,
}

/// One job's lanes. Dropping it ends the session at this end at once; the peer is told only by [`Session::abort`] or
/// [`Session::close`].
#[derive(Debug)]
pub struct Session {
    peer: HostId,
    job: JobId,
    id: SessionId,
    incarnation: u32,
    sender: Sender,
    outlets: Outlets,
}

impl Session {
    /// Opens a session to a target, and waits until all of its lanes are attached.
    ///
    /// # Errors
    /// Where the target is not who it must be or refuses, or cannot be reached within `timing.outage_max`.
    pub async fn dial(dial: Dial, tls: Arc<Tls>, limiter: Arc<Limiter>) -> Result<Self, LinkError> {
        if dial.addresses.is_empty() || dial.lanes == 0 || dial.lanes > DATA_LANES_MAX {
            return Err(LinkError::Misuse { what: "a session needs an address and 1 to 16 data lanes" });
        }
        let addresses: Arc<[SocketAddr]> = dial.addresses.into();
        let instance = Arc::new(OnceLock::new());
        let supply = |lane| Dialer {
            tls: Arc::clone(&tls),
            peer: dial.peer.clone(),
            addresses: Arc::clone(&addresses),
            attach: Attach {
                job: dial.job,
                token: dial.token.clone(),
                session: dial.session,
                incarnation: dial.incarnation,
                lane,
                lanes: dial.lanes,
                received: 0,
                instance: None,
            },
            timing: dial.timing,
            instance: Arc::clone(&instance),
            attached_before: false,
            place: 0,
        };
        let (sender, outlets) = start(dial.lanes, dial.timing, limiter, supply);
        let session = Self {
            peer: dial.peer.clone(),
            job: dial.job,
            id: dial.session,
            incarnation: dial.incarnation,
            sender,
            outlets,
        };
        let mut status = session.status();
        let settled = |lanes: &Vec<LaneStatus>| !lanes.iter().any(|lane| matches!(lane, LaneStatus::Connecting));
        tokio::select! {
            // Lanes that ended are settled as well, so the end is looked at first: it is said before they end.
            biased;
            error = session.ended() => Err(error),
            _ = status.wait_for(settled) => Ok(session),
        }
    }

    /// The target's half: lanes that wait for the listener to hand them connections.
    pub(super) fn accepted(
        peer: HostId,
        attach: &Attach,
        instance: InstanceId,
        timing: Timing,
    ) -> (Self, Vec<mpsc::Sender<Incoming>>) {
        let mut connections = Vec::with_capacity(usize::from(attach.lanes) + 1);
        let supply = |lane| {
            let (connection, incoming) = mpsc::channel(INCOMING_MAX);
            connections.push(connection);
            Acceptor { incoming, waiting: None, lane, instance, timing }
        };
        let (sender, outlets) = start(attach.lanes, timing, Arc::new(Limiter::new(None)), supply);
        let Attach { job, session: id, incarnation, .. } = *attach;
        (Self { peer, job, id, incarnation, sender, outlets }, connections)
    }

    /// The host at the other end.
    #[must_use]
    pub fn peer(&self) -> &HostId {
        &self.peer
    }

    /// The job that it serves.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its incarnation.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// An end to send by; there can be many.
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The reader of control messages. It can be taken once.
    ///
    /// # Errors
    /// [`LinkError::Misuse`] at the second time.
    pub fn control(&mut self) -> Result<Receiver<Bytes>, LinkError> {
        self.outlets.control.take().ok_or(LinkError::Misuse { what: "the control messages have a reader already" })
    }

    /// The reader of a migration channel; channel 0 is QEMU's main one. Each can be taken once, at any time: until then
    /// what arrives for it waits within its window.
    ///
    /// # Errors
    /// [`LinkError::Misuse`] at the second time, or where there is no such channel.
    pub fn memory(&mut self, channel: u16) -> Result<Receiver<Bytes>, LinkError> {
        let outlet = self.outlets.memory.get_mut(usize::from(channel));
        let outlet = outlet.ok_or(LinkError::Misuse { what: "there is no such migration channel" })?;
        outlet.take().ok_or(LinkError::Misuse { what: "the migration channel has a reader already" })
    }

    /// The reader of disk content, of all disks and all lanes. It can be taken once.
    ///
    /// # Errors
    /// [`LinkError::Misuse`] at the second time.
    pub fn blocks(&mut self) -> Result<Receiver<BlockFrame>, LinkError> {
        self.outlets.blocks.take().ok_or(LinkError::Misuse { what: "the blocks have a reader already" })
    }

    /// How each lane is, lane 0 first. A lane that is down stalls what was given to it, and nothing is lost.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Vec<LaneStatus>> {
        self.sender.shared.status.subscribe()
    }

    /// Waits until the session ends, and says why; [`LinkError::Closed`] where all was well.
    pub async fn ended(&self) -> LinkError {
        self.sender.ended().await
    }

    /// Waits until the peer has all that was sent, tells it that this is the end, and ends the session.
    ///
    /// # Errors
    /// Where the peer did not acknowledge everything within `limit`, or the session ended before it had. Once everything
    /// is acknowledged, a peer that vanishes is no error.
    pub async fn close(self, limit: Duration) -> Result<(), LinkError> {
        let shared = Arc::clone(&self.sender.shared);
        let deadline = Instant::now() + limit;
        let drained = timeout(limit, self.sender.drain()).await.unwrap_or(Err(LinkError::Undelivered { limit }));
        if let Err(error) = drained {
            shared.finish(error.clone());
            return Err(error);
        }
        shared.closing.store(true, Ordering::Release);
        // The outcome does not matter any more: everything was delivered.
        let _ = tokio::time::timeout_at(deadline, self.sender.last_frame(false)).await;
        shared.finish(LinkError::Closed);
        Ok(())
    }

    /// Drops all that the data lanes still have to send, here and in the kernel, and ends them, so that nothing is in the
    /// way of what is said about the end of the job. Lane 0 goes on. The peer's data lanes wait for ours in vain, until
    /// the session ends.
    pub fn give_up_bulk(&self) {
        self.sender.shared.bulk_given_up.send_replace(true);
    }

    /// Gives the session up, and tells the peer so if it can be reached at once. What was not delivered is lost.
    pub async fn abort(self) {
        let _ = timeout(ABORT_MAX, self.sender.last_frame(true)).await;
        self.sender.shared.finish(LinkError::Abandoned);
    }

    /// Ends this half because a later incarnation takes its place.
    pub(super) fn ender(&self) -> Ender {
        Ender(Arc::clone(&self.sender.shared))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sender.shared.finish(LinkError::Abandoned);
    }
}

/// What the listener keeps of a session that it has handed out.
#[derive(Debug)]
pub(super) struct Ender(Arc<Shared>);

impl Ender {
    pub(super) fn ended(&self) -> bool {
        self.0.end.borrow().is_some()
    }

    pub(super) fn supersede(&self) {
        self.0.finish(LinkError::Superseded);
    }
}

/// Starts the lanes, each with its supply of connections.
fn start<S: Supply + 'static>(
    lanes: u8,
    timing: Timing,
    limiter: Arc<Limiter>,
    mut supply: impl FnMut(u8) -> S,
) -> (Sender, Outlets) {
    let count = usize::from(lanes) + 1;
    let end = watch::Sender::new(None);
    let (inlets, outlets): (Inlets, Outlets) = inlets(lanes, &end.subscribe());
    let shared = Arc::new(Shared {
        lanes,
        timing,
        windows: Windows::new(lanes),
        end,
        status: watch::Sender::new(vec![LaneStatus::Connecting; count]),
        delivered: (0..count).map(|_| watch::Sender::new(0)).collect(),
        closing: AtomicBool::new(false),
        bulk_given_up: watch::Sender::new(false),
    });
    let queues = (0..=lanes).map(|index| {
        let (queue, commands) = mpsc::channel(COMMANDS_MAX);
        let lane = Lane::new(index, Arc::clone(&shared), inlets.clone(), commands);
        tokio::spawn(lane.run(supply(index)));
        Queue { commands: queue, sent: AtomicU64::new(0) }
    });
    let queues = queues.collect();
    (Sender { shared, queues, limiter }, outlets)
}

/// The way into a session. Each call waits for the rate of the job and for room in the window of its flow; cancelled
/// before it returns, it has sent nothing. Frames of one flow that are sent one after the other arrive in that order,
/// but for blocks, which any data lane may carry: [`Sender::drain`] is the barrier between two passes.
#[derive(Debug, Clone)]
pub struct Sender {
    shared: Arc<Shared>,
    queues: Arc<[Queue]>,
    limiter: Arc<Limiter>,
}

#[derive(Debug)]
struct Queue {
    commands: mpsc::Sender<Command>,
    sent: AtomicU64,
}

impl Sender {
    /// Sends a control message, of 1 to [`CONTENT_LENGTH_MAX`] bytes. The job's rate does not hold it back.
    ///
    /// # Errors
    /// Where the message is empty or too long, or the session has ended.
    pub async fn control(&self, message: Bytes) -> Result<(), LinkError> {
        self.send(FrameKind::Control, 0, Prefix::default(), message).await
    }

    /// Sends a piece of a migration channel, of 1 to [`CONTENT_LENGTH_MAX`] bytes.
    ///
    /// # Errors
    /// As [`Sender::control`], or where there is no such channel.
    pub async fn memory(&self, channel: u16, piece: Bytes) -> Result<(), LinkError> {
        self.send(FrameKind::Memory, channel, Prefix::default(), piece).await
    }

    /// Lets at most `bytes` of a migration channel be on their way, within what its window and the pieces in which credit
    /// comes back allow; none where there is no such channel. What is on its way already is not called back, but its room
    /// is not used again.
    pub fn limit_in_flight(&self, channel: u16, bytes: usize) -> Option<InFlight> {
        (channel < MEMORY_CHANNELS_MAX).then(|| self.shared.windows.limit_in_flight(channel, bytes))
    }

    /// Sends 1 to [`CONTENT_LENGTH_MAX`] bytes of a disk.
    ///
    /// # Errors
    /// As [`Sender::control`].
    pub async fn block(&self, disk: u16, offset: u64, data: Bytes) -> Result<(), LinkError> {
        check_range(offset, u64::try_from(data.len()).unwrap_or(u64::MAX))?;
        self.send(FrameKind::Data, disk, Prefix::one(offset), data).await
    }

    /// Says that a range of a disk reads as zeroes. Its length has no limit but the largest offset.
    ///
    /// # Errors
    /// As [`Sender::control`].
    pub async fn zero(&self, disk: u16, offset: u64, length: u64) -> Result<(), LinkError> {
        check_range(offset, length)?;
        self.send(FrameKind::Zero, disk, Prefix::two(offset, length), Bytes::new()).await
    }

    /// Waits until the peer has in memory all that was sent before this call. Its readers may not have read it yet, but
    /// they will read it before anything that is sent after.
    ///
    /// # Errors
    /// Where the session ends before.
    pub async fn drain(&self) -> Result<(), LinkError> {
        let sent: Vec<u64> = self.queues.iter().map(|queue| queue.sent.load(Ordering::Acquire)).collect();
        for (queue, delivered) in self.queues.iter().zip(&self.shared.delivered) {
            let behind = *delivered.borrow() < queue.sent.load(Ordering::Acquire);
            if behind && queue.commands.send(Command::Solicit).await.is_err() {
                return Err(self.ended().await);
            }
        }
        for (lane, sent) in sent.into_iter().enumerate() {
            self.delivered(lane, sent).await?;
        }
        Ok(())
    }

    /// By lane, how many frames of those that were sent the peer has in memory, by what it has told. It tells so now and then,
    /// and when it is asked: see [`Sender::drain`].
    pub fn acknowledged(&self) -> impl Iterator<Item = u64> {
        self.shared.delivered.iter().map(|delivered| *delivered.borrow())
    }

    async fn delivered(&self, lane: usize, count: u64) -> Result<(), LinkError> {
        let mut delivered = self.shared.delivered[lane].subscribe();
        tokio::select! {
            biased;
            _ = delivered.wait_for(|delivered| *delivered >= count) => Ok(()),
            error = self.ended() => Err(error),
        }
    }

    /// Sends the last frame of all, and waits until the peer has it.
    async fn last_frame(&self, aborted: bool) -> Result<(), LinkError> {
        let queue = &self.queues[0];
        let Ok(slot) = queue.commands.reserve().await else { return Err(self.ended().await) };
        let count = queue.sent.fetch_add(1, Ordering::AcqRel) + 1;
        slot.send(Command::Close { aborted });
        self.delivered(0, count).await
    }

    async fn send(&self, kind: FrameKind, channel: u16, prefix: Prefix, payload: Bytes) -> Result<(), LinkError> {
        let frame = Frame { kind, flags: 0, channel, prefix, payload };
        let length = frame.payload_length();
        let (least, most) = kind.payload_lengths();
        if length < least || length > most {
            return Err(LinkError::Misuse { what: "a frame is empty or longer than 1 MiB" });
        }
        let flow = Flow::of(kind, channel).ok_or(LinkError::Misuse { what: "there is no such migration channel" })?;
        if flow != Flow::Control {
            self.limiter.take(length).await;
        }
        let charge = charge(length);
        let room = self.shared.windows.of(flow).acquire_many(u32::try_from(charge).unwrap_or(u32::MAX));
        let Ok(room) = room.await else { return Err(self.ended().await) };
        let lane = self.shared.windows.lane(flow);
        let queue = &self.queues[usize::from(lane)];
        let Ok(slot) = queue.commands.reserve().await else { return Err(self.ended().await) };
        // From here on nothing waits: either all of it happens or nothing. Credit gives the room back.
        room.forget();
        self.shared.windows.sent(flow, lane, charge);
        queue.sent.fetch_add(1, Ordering::AcqRel);
        slot.send(Command::Send(frame));
        Ok(())
    }

    /// Waits until the session ends, and says why; [`LinkError::Closed`] where all was well.
    pub async fn ended(&self) -> LinkError {
        let mut end = self.shared.end.subscribe();
        let reason = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        reason.unwrap_or(LinkError::Abandoned)
    }
}

fn check_range(offset: u64, length: u64) -> Result<(), LinkError> {
    if length == 0 || offset.checked_add(length).is_none() {
        return Err(LinkError::Misuse { what: "a block is empty or ends beyond the largest offset" });
    }
    Ok(())
}

const _: () = assert!(CONTENT_LENGTH_MAX < super::flow::MEMORY_WINDOW / 2 && MEMORY_CHANNELS_MAX > 1);
