//! Flows: the independently bounded streams within a session, their windows and their readers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use sterna_shared::peer::frame::{CHARGE_MIN, CONTENT_LENGTH_MAX, FrameKind, Header, charge};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::LinkError;

/// QEMU's main migration channel; it travels on lane 0.
pub const MAIN_CHANNEL: u16 = 0;
/// How many migration channels a session has room for, the main one included.
pub const MEMORY_CHANNELS_MAX: u16 = 33;
/// Bytes of control messages that the peer has not read yet.
pub const CONTROL_WINDOW: usize = 4 << 20;
/// Bytes of one migration channel that the peer has not read yet.
pub const MEMORY_WINDOW: usize = 4 << 20;
/// Bytes of disk content that the peer has not read yet, for each data lane.
pub const BLOCKS_WINDOW_PER_LANE: usize = 8 << 20;
/// Credit for blocks and control is given back in pieces of this part of a window.
const CREDIT_PART: usize = 4;
/// And for memory: of it a sender may want little to be on its way.
const MEMORY_CREDIT_PART: usize = 16;
/// The least of a migration channel that may be on its way. Credit for less than a step does not come back, so there must be
/// room for that and for a piece of the usual half MiB that was begun when more was allowed.
pub const MEMORY_IN_FLIGHT_MIN: usize = 4 * MEMORY_WINDOW / MEMORY_CREDIT_PART;

/// One bounded stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Control,
    Memory(u16),
    Blocks,
}

impl Flow {
    pub(super) fn of(kind: FrameKind, channel: u16) -> Option<Self> {
        match kind {
            FrameKind::Control => Some(Self::Control),
            FrameKind::Memory if channel < MEMORY_CHANNELS_MAX => Some(Self::Memory(channel)),
            FrameKind::Data | FrameKind::Zero => Some(Self::Blocks),
            _ => None,
        }
    }

    /// What a Credit frame calls it.
    pub(super) fn name(self) -> (FrameKind, u16) {
        match self {
            Self::Control => (FrameKind::Control, 0),
            Self::Memory(channel) => (FrameKind::Memory, channel),
            Self::Blocks => (FrameKind::Data, 0),
        }
    }

    /// The lane it is pinned to; `None` for any data lane.
    pub(super) fn lane(self, lanes: u8) -> Option<u8> {
        match self {
            Self::Control | Self::Memory(MAIN_CHANNEL) => Some(0),
            Self::Memory(channel) => {
                let lane = 1 + (channel - 1) % u16::from(lanes);
                Some(u8::try_from(lane).unwrap_or(1))
            }
            Self::Blocks => None,
        }
    }

    /// Whether frames of it may come on `lane`.
    pub(super) fn allowed_on(self, lane: u8, lanes: u8) -> bool {
        self.lane(lanes).map_or(lane != 0, |pinned| pinned == lane)
    }

    fn window(self, lanes: u8) -> usize {
        match self {
            Self::Control => CONTROL_WINDOW,
            Self::Memory(_) => MEMORY_WINDOW,
            Self::Blocks => BLOCKS_WINDOW_PER_LANE * usize::from(lanes),
        }
    }

    /// After how many bytes read credit is given back. It is reached on each lane by itself.
    fn credit_step(self) -> usize {
        match self {
            Self::Blocks => BLOCKS_WINDOW_PER_LANE / CREDIT_PART,
            Self::Control => CONTROL_WINDOW / CREDIT_PART,
            Self::Memory(_) => MEMORY_WINDOW / MEMORY_CREDIT_PART,
        }
    }
}

/// A piece of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockFrame {
    /// The disk, by its place in the plan.
    pub disk: u16,
    /// Where it begins, in bytes. Not checked here against the size of the disk.
    pub offset: u64,
    /// What is there.
    pub content: Content,
}

/// What a piece of a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes; at least one.
    Data(Bytes),
    /// That many zeroes; at least one, and `offset + length` does not overflow.
    Zero(u64),
}

/// What of a migration channel is on its way, in bytes as the window counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// The most that may be.
    pub most: usize,
    /// What was sent and is not yet read by the peer, up to the step in which it says so.
    pub now: usize,
}

impl InFlight {
    /// The longest piece that may be sent, in bytes: a small room takes several.
    #[must_use]
    pub fn piece_length(&self) -> usize {
        (self.most / 4 - CHARGE_MIN).min(CONTENT_LENGTH_MAX)
    }
}

/// Room of one migration channel that we leave unused. Locked for a few additions, and never while anybody waits.
#[derive(Debug, Default)]
struct Unused {
    now: usize,
    /// What it is to become. Room in use cannot be left unused before it comes back.
    wanted: usize,
}

/// The room that the peer leaves us, by flow.
#[derive(Debug)]
pub(super) struct Windows {
    control: Semaphore,
    memory: Vec<Semaphore>,
    /// By migration channel, room that we leave unused ourselves.
    unused: Vec<Mutex<Unused>>,
    blocks: Semaphore,
    /// Of the blocks, how many bytes each data lane has yet to deliver: the least loaded lane takes the next.
    outstanding: Vec<AtomicUsize>,
    lanes: u8,
}

impl Windows {
    pub(super) fn new(lanes: u8) -> Self {
        let semaphore = |flow: Flow| Semaphore::new(flow.window(lanes));
        Self {
            control: semaphore(Flow::Control),
            memory: (0..MEMORY_CHANNELS_MAX).map(|channel| semaphore(Flow::Memory(channel))).collect(),
            unused: (0..MEMORY_CHANNELS_MAX).map(|_| Mutex::default()).collect(),
            blocks: semaphore(Flow::Blocks),
            outstanding: (0..=lanes).map(|_| AtomicUsize::new(0)).collect(),
            lanes,
        }
    }

    pub(super) fn of(&self, flow: Flow) -> &Semaphore {
        match flow {
            Flow::Control => &self.control,
            Flow::Memory(channel) => &self.memory[usize::from(channel)],
            Flow::Blocks => &self.blocks,
        }
    }

    /// Leaves so much of a migration channel's room unused that at most `bytes` are on their way, as soon as what is more
    /// has come back.
    pub(super) fn limit_in_flight(&self, channel: u16, bytes: usize) -> InFlight {
        let most = bytes.clamp(MEMORY_IN_FLIGHT_MIN, MEMORY_WINDOW);
        let room = &self.memory[usize::from(channel)];
        let mut unused = self.unused(channel);
        unused.wanted = MEMORY_WINDOW - most;
        if unused.wanted > unused.now {
            unused.now += room.forget_permits(unused.wanted - unused.now);
        } else {
            room.add_permits(unused.now - unused.wanted);
            unused.now = unused.wanted;
        }
        let now = MEMORY_WINDOW.saturating_sub(unused.now).saturating_sub(room.available_permits());
        InFlight { most, now }
    }

    fn unused(&self, channel: u16) -> MutexGuard<'_, Unused> {
        self.unused[usize::from(channel)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane for the next frame of a flow.
    pub(super) fn lane(&self, flow: Flow) -> u8 {
        let least = || (1..=self.lanes).min_by_key(|lane| self.outstanding[usize::from(*lane)].load(Ordering::Relaxed));
        flow.lane(self.lanes).or_else(least).unwrap_or(1)
    }

    pub(super) fn sent(&self, flow: Flow, lane: u8, charge: usize) {
        if flow == Flow::Blocks {
            self.outstanding[usize::from(lane)].fetch_add(charge, Ordering::Relaxed);
        }
    }

    /// Takes credit back that came on `lane`; false where the peer gives more than it got.
    pub(super) fn credited(&self, flow: Flow, lane: u8, bytes: u64) -> bool {
        let window = flow.window(self.lanes);
        let semaphore = self.of(flow);
        let Ok(bytes) = usize::try_from(bytes) else { return false };
        if bytes > window - semaphore.available_permits().min(window) {
            return false;
        }
        if flow == Flow::Blocks {
            let less = |outstanding: usize| outstanding.checked_sub(bytes);
            let outstanding = &self.outstanding[usize::from(lane)];
            if outstanding.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err() {
                return false;
            }
        }
        let Flow::Memory(channel) = flow else {
            semaphore.add_permits(bytes);
            return true;
        };
        // Whoever waits for room would take it before anybody could leave it unused.
        let mut unused = self.unused(channel);
        let kept = unused.wanted.saturating_sub(unused.now).min(bytes);
        unused.now += kept;
        semaphore.add_permits(bytes - kept);
        true
    }

    pub(super) fn close(&self) {
        self.control.close();
        self.blocks.close();
        self.memory.iter().for_each(Semaphore::close);
    }
}

/// What was received and not yet credited, by flow, and what of it was read, by flow and lane.
#[derive(Debug)]
pub(super) struct Ledger {
    control: Account,
    memory: Vec<Account>,
    blocks: Account,
    wake: Vec<Notify>,
    lanes: u8,
}

#[derive(Debug)]
struct Account {
    held: AtomicUsize,
    /// By lane, for a flow on any lane; else one.
    consumed: Vec<AtomicUsize>,
}

impl Account {
    fn new(lanes: u8) -> Self {
        Self { held: AtomicUsize::new(0), consumed: (0..lanes).map(|_| AtomicUsize::new(0)).collect() }
    }
}

impl Ledger {
    fn new(lanes: u8) -> Self {
        Self {
            control: Account::new(1),
            memory: (0..MEMORY_CHANNELS_MAX).map(|_| Account::new(1)).collect(),
            blocks: Account::new(lanes),
            wake: (0..=lanes).map(|_| Notify::new()).collect(),
            lanes,
        }
    }

    fn account(&self, flow: Flow) -> &Account {
        match flow {
            Flow::Control => &self.control,
            Flow::Memory(channel) => &self.memory[usize::from(channel)],
            Flow::Blocks => &self.blocks,
        }
    }

    fn consumed(&self, flow: Flow, lane: u8) -> &AtomicUsize {
        let place = if flow == Flow::Blocks { usize::from(lane.saturating_sub(1)) } else { 0 };
        &self.account(flow).consumed[place]
    }

    /// Counts what arrived; false where the peer has left its window.
    fn hold(&self, flow: Flow, charge: usize) -> bool {
        let held = self.account(flow).held.fetch_add(charge, Ordering::Relaxed);
        held + charge <= flow.window(self.lanes)
    }

    /// Counts what was read, and wakes the lane once there is enough to tell the peer.
    fn consume(&self, flow: Flow, lane: u8, charge: usize) {
        let before = self.consumed(flow, lane).fetch_add(charge, Ordering::Relaxed);
        if before < flow.credit_step() && before + charge >= flow.credit_step() {
            self.wake[usize::from(lane)].notify_one();
        }
    }

    /// Waits until there may be credit to give on `lane`.
    pub(super) async fn creditable(&self, lane: u8) {
        self.wake[usize::from(lane)].notified().await;
    }

    /// The credit that is now to be given on `lane`.
    pub(super) fn credits(&self, lane: u8) -> Vec<(Flow, usize)> {
        let memory = (0..MEMORY_CHANNELS_MAX).map(Flow::Memory);
        let flows = [Flow::Control, Flow::Blocks].into_iter().chain(memory);
        flows
            .filter(|flow| flow.allowed_on(lane, self.lanes))
            .filter(|flow| self.consumed(*flow, lane).load(Ordering::Relaxed) >= flow.credit_step())
            .map(|flow| {
                let bytes = self.consumed(flow, lane).swap(0, Ordering::Relaxed);
                self.account(flow).held.fetch_sub(bytes, Ordering::Relaxed);
                (flow, bytes)
            })
            .collect()
    }
}

#[derive(Debug)]
struct Delivered<T> {
    item: T,
    charge: usize,
    lane: u8,
}

/// The readers' queues, as the lanes see them. Each holds as many frames as its window allows, so filling one never waits.
#[derive(Debug, Clone)]
pub(super) struct Inlets {
    control: mpsc::Sender<Delivered<Bytes>>,
    memory: Vec<mpsc::Sender<Delivered<Bytes>>>,
    blocks: mpsc::Sender<Delivered<BlockFrame>>,
    pub(super) ledger: Arc<Ledger>,
}

/// The readers of a session that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Outlets {
    pub(super) control: Option<Receiver<Bytes>>,
    pub(super) memory: Vec<Option<Receiver<Bytes>>>,
    pub(super) blocks: Option<Receiver<BlockFrame>>,
}

pub(super) fn inlets(lanes: u8, end: &watch::Receiver<Option<LinkError>>) -> (Inlets, Outlets) {
    fn queue<T>(
        flow: Flow,
        ledger: &Arc<Ledger>,
        end: &watch::Receiver<Option<LinkError>>,
    ) -> (mpsc::Sender<Delivered<T>>, Receiver<T>) {
        let (inlet, queue) = mpsc::channel(flow.window(ledger.lanes) / CHARGE_MIN);
        (inlet, Receiver { queue, flow, ledger: Arc::clone(ledger), end: end.clone() })
    }
    let ledger = Arc::new(Ledger::new(lanes));
    let (control, control_out) = queue(Flow::Control, &ledger, end);
    let (blocks, blocks_out) = queue(Flow::Blocks, &ledger, end);
    let memory = (0..MEMORY_CHANNELS_MAX).map(|channel| queue(Flow::Memory(channel), &ledger, end));
    let (memory, memory_out) = memory.map(|(inlet, outlet)| (inlet, Some(outlet))).unzip();
    (
        Inlets { control, memory, blocks, ledger },
        Outlets { control: Some(control_out), memory: memory_out, blocks: Some(blocks_out) },
    )
}

impl Inlets {
    /// Puts a frame into its reader's queue. A reader that is gone is the owner's choice: its frames are dropped, and
    /// credited, so that the peer is not held up by it.
    pub(super) fn deliver(&self, lane: u8, lanes: u8, header: Header, payload: Bytes) -> Result<(), &'static str> {
        let flow = Flow::of(header.kind, header.channel).ok_or("there is no such channel")?;
        if !flow.allowed_on(lane, lanes) {
            return Err("this flow belongs on another lane");
        }
        let charge = charge(payload.len());
        if !self.ledger.hold(flow, charge) {
            return Err("more was sent than the window allows");
        }
        let taken = match flow {
            Flow::Control => self.put(&self.control, lane, charge, payload),
            Flow::Memory(channel) => self.put(&self.memory[usize::from(channel)], lane, charge, payload),
            Flow::Blocks => self.put(&self.blocks, lane, charge, block(header, payload)?),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(())) => {
                self.ledger.consume(flow, lane, charge);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => Err("more frames were sent than the window allows"),
        }
    }

    fn put<T>(
        &self,
        queue: &mpsc::Sender<Delivered<T>>,
        lane: u8,
        charge: usize,
        item: T,
    ) -> Result<(), mpsc::error::TrySendError<()>> {
        queue.try_send(Delivered { item, charge, lane }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => mpsc::error::TrySendError::Full(()),
            mpsc::error::TrySendError::Closed(_) => mpsc::error::TrySendError::Closed(()),
        })
    }
}

/// The lengths were checked with the header.
fn block(header: Header, mut payload: Bytes) -> Result<BlockFrame, &'static str> {
    let offset = payload.try_get_u64().map_err(|_| "a block has no offset")?;
    let content = if header.kind == FrameKind::Zero {
        Content::Zero(payload.try_get_u64().map_err(|_| "a range of zeroes has no length")?)
    } else {
        Content::Data(payload)
    };
    let length = match &content {
        Content::Zero(length) => *length,
        Content::Data(data) => u64::try_from(data.len()).unwrap_or(u64::MAX),
    };
    if length == 0 || offset.checked_add(length).is_none() {
        return Err("a block is empty or ends beyond the largest offset");
    }
    Ok(BlockFrame { disk: header.channel, offset, content })
}

/// One flow's reader.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: mpsc::Receiver<Delivered<T>>,
    flow: Flow,
    ledger: Arc<Ledger>,
    end: watch::Receiver<Option<LinkError>>,
}

impl<T> Receiver<T> {
    /// The next item, in the order in which it was sent on its lane; `None` once the session was closed and all was read.
    /// Taking an item gives its room back to the peer. Cancelling loses nothing.
    ///
    /// # Errors
    /// Once all that arrived was read, the reason for which a session ended that was not closed.
    pub async fn recv(&mut self) -> Result<Option<T>, LinkError> {
        if let Some(delivered) = self.queue.recv().await {
            self.ledger.consume(self.flow, delivered.lane, delivered.charge);
            return Ok(Some(delivered.item));
        }
        match self.end.borrow().clone() {
            Some(LinkError::Closed) => Ok(None),
            Some(error) => Err(error),
            None => Err(LinkError::Abandoned),
        }
    }
}

impl<T> Drop for Receiver<T> {
    /// What nobody will read counts as read, so that the peer is not held up by it.
    fn drop(&mut self) {
        self.queue.close();
        while let Ok(delivered) = self.queue.try_recv() {
            self.ledger.consume(self.flow, delivered.lane, delivered.charge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: u16 = 1;

    #[test]
    fn room_that_is_not_to_be_used_again_is_taken_as_it_comes_back() {
        let windows = Windows::new(4);
        let flow = Flow::Memory(CHANNEL);
        // All of the window is on its way, and somebody waits for more: what comes back would be gone at once.
        let room = windows.of(flow);
        room.try_acquire_many(u32::try_from(MEMORY_WINDOW).unwrap_or(u32::MAX)).map(|all| all.forget()).ok();
        let least = InFlight { most: MEMORY_IN_FLIGHT_MIN, now: MEMORY_WINDOW };
        assert_eq!(windows.limit_in_flight(CHANNEL, 0), least);
        assert!(windows.credited(flow, 1, 1 << 20));
        assert_eq!(room.available_permits(), 0, "3 of 4 MiB are still on their way, and 1 is allowed");
        assert!(windows.credited(flow, 1, 5 << 19));
        assert_eq!(room.available_permits(), 1 << 19, "half a MiB is on its way");
        assert_eq!(windows.limit_in_flight(CHANNEL, 0), InFlight { now: 1 << 19, ..least });
        let all = windows.limit_in_flight(CHANNEL, usize::MAX);
        assert_eq!(all, InFlight { most: MEMORY_WINDOW, now: 1 << 19 });
        assert!(windows.credited(flow, 1, 1 << 19) && !windows.credited(flow, 1, 1), "no more than was sent");
    }
}
