//! Keepers: one task a VM, which alone owns its record, its right to run and its guest.
//!
//! ```text
//!   service, jobs ── Order ──▶ keeper ── drives ──▶ Handover ── cont, kill ──▶ QEMU
//!                                │  ▲
//!        watch: View ◀───────────┘  └── tick: what is unfinished; guest ended
//!                                │
//!                       Courier ◀┘  messages of the handover, over the lanes and over NATS
//! ```
//!
//! Orders are carried out one after another, so no two parts of the agent can ever disagree about one VM. While a handover
//! is unsettled the keeper asks again every [`TICK`], over every route there is, for ever.
//!
//! A guest whose power button is pressed may take an hour. It is waited for beside the orders, so that it can still be stopped by
//! force, or given up; what would begin something with it waits too, or is refused.

mod routes;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest};
use sterna_shared::host::VmState;
use sterna_shared::id::{HostId, JobId, VmId};
use sterna_shared::ownership::{Input, Message, Record};
use sterna_shared::peer::message::Message as PeerMessage;
use sterna_shared::vm::VmSpec;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use crate::bus::Bus;
use crate::guest::launcher::Launched;
use crate::host::Host;
use crate::hypervisor::qemu::{Machine, RunState};
use crate::journal::{JobRecord, VmRecord};
use crate::migration::handover::{Handover, HandoverError, Outbound, View};
use crate::requests;
use routes::Routes;

/// How often an unsettled handover is asked about, and a guest's state is looked at.
pub const TICK: Duration = Duration::from_secs(1);
/// How long a QEMU that does not answer holds its keeper up: orders, above all to end it, must not wait for one that hangs.
const STATE_WAIT: Duration = Duration::from_millis(200);
/// Orders that may wait; and of each kind those that wait until a guest is off.
const ORDERS_MAX: usize = 32;

/// A handle to a VM's keeper.
#[derive(Debug, Clone)]
pub struct Keeper {
    vm: VmId,
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<View>,
}

/// Ends when a guest is off, or has had its time.
type Off = Pin<Box<dyn Future<Output = ()> + Send>>;
type Reply<T> = oneshot::Sender<Result<T, HandoverError>>;

enum Order {
    Feed { input: Input, reply: Reply<Vec<Outbound>> },
    Prepare { input: Input, spec: Box<VmSpec>, wanted_running: bool, reply: Reply<()> },
    LaunchIncoming { reply: Reply<Machine> },
    Start { reply: Reply<()> },
    Resume { reply: Reply<()> },
    Stop { force: bool, timeout: Duration, reply: Reply<()> },
    Respecify { spec: Box<VmSpec>, reply: Reply<()> },
    StandsStill { since: Option<JobId> },
    Machine { reply: oneshot::Sender<Option<Machine>> },
    Route { peer: HostId, job: JobId, lanes: mpsc::Sender<PeerMessage> },
}

/// The keeper's task is gone: the agent is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is stopping; ask again when it is back")]
pub struct Stopping;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The agent is stopping.
    #[error(transparent)]
    Stopping(#[from] Stopping),
    /// The VM does not allow it.
    #[error(transparent)]
    Handover(#[from] HandoverError),
}

impl Keeper {
    /// Begins to keep a VM. What its record says is unfinished is taken up at once. `changes` hears of every change.
    #[must_use]
    pub fn spawn(host: Arc<Host>, bus: Bus, changes: Arc<Notify>, record: VmRecord, guest: Option<Launched>) -> Self {
        let vm = record.spec.id;
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let (publisher, view) =
            watch::channel(View { record: record.clone(), state: VmState::Stopped, unchanged_since: None });
        let handover = Handover::restore(Arc::clone(&host), record, guest, publisher);
        let (routes, feedback) = (Routes::default(), orders.downgrade());
        let task = Task { vm, host, handover, bus, routes, leaving: None, asked: None, changes, feedback };
        tokio::spawn(task.run(receiver));
        Self { vm, orders, view }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// What it is now, and every change of it.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// What the journal has of it.
    #[must_use]
    pub fn record(&self) -> VmRecord {
        self.view.borrow().record.clone()
    }

    /// Feeds the handover; gives back what it answers to peers.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn feed(&self, input: Input) -> Result<Vec<Outbound>, KeeperError> {
        self.order(|reply| Order::Feed { input, reply }).await
    }

    /// Feeds a `Prepare`, and notes what the VM will be here.
    ///
    /// # Errors
    /// [`KeeperError`]; the record may be `Incoming` all the same, and an `Abort` is due.
    pub async fn prepare(&self, input: Input, spec: VmSpec, wanted_running: bool) -> Result<(), KeeperError> {
        self.order(|reply| Order::Prepare { input, spec: Box::new(spec), wanted_running, reply }).await
    }

    /// Starts a QEMU that waits for the guest's memory. Its images must be there.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn launch_incoming(&self) -> Result<Machine, KeeperError> {
        self.order(|reply| Order::LaunchIncoming { reply }).await
    }

    /// Starts the guest.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn start(&self) -> Result<(), KeeperError> {
        self.order(|reply| Order::Start { reply }).await
    }

    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn resume(&self) -> Result<(), KeeperError> {
        self.order(|reply| Order::Resume { reply }).await
    }

    /// Stops the guest: by its power button, and by force after `timeout`, or at once. One that is being stopped already is waited
    /// for by all who asked, until the first of their times is up.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn stop(&self, force: bool, timeout: Duration) -> Result<(), KeeperError> {
        self.order(|reply| Order::Stop { force, timeout, reply }).await
    }

    /// Replaces the specification.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn respecify(&self, spec: VmSpec) -> Result<(), KeeperError> {
        self.order(|reply| Order::Respecify { spec: Box::new(spec), reply }).await
    }

    /// Notes that a cycle takes the disks as they are, of a guest that is shut down; or that what was noted is not to be gone by.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn stands_still(&self, since: Option<JobId>) -> Result<(), Stopping> {
        self.orders.send(Order::StandsStill { since }).await.map_err(|_| Stopping)
    }

    /// Its QEMU, if there is one.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn machine(&self) -> Result<Option<Machine>, Stopping> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::Machine { reply }).await.map_err(|_| Stopping)?;
        answer.await.map_err(|_| Stopping)
    }

    /// Opens the lanes of a job as a route for the handover's messages to a peer. It closes with them.
    pub async fn route(&self, peer: HostId, job: JobId, lanes: mpsc::Sender<PeerMessage>) {
        let _ = self.orders.send(Order::Route { peer, job, lanes }).await;
    }

    async fn order<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, KeeperError> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| Stopping)?;
        Ok(answer.await.map_err(|_| Stopping)??)
    }
}

struct Task {
    vm: VmId,
    host: Arc<Host>,
    handover: Handover,
    bus: Bus,
    routes: Routes,
    /// The guest is on its way down.
    leaving: Option<Leaving>,
    /// How the guest is, while QEMU has not answered that yet.
    asked: Option<JoinHandle<VmState>>,
    changes: Arc<Notify>,
    /// Answers over NATS come back as orders; weak, so that the keeper ends when its last handle goes.
    feedback: mpsc::WeakSender<Order>,
}

/// A guest whose power button is pressed.
struct Leaving {
    off: Off,
    until: Instant,
    /// Who had it pressed.
    replies: Vec<Reply<()>>,
    /// Who would begin something with its QEMU.
    machines: Vec<oneshot::Sender<Option<Machine>>>,
}

/// What a keeper waits for.
enum Event {
    Order(Order),
    GuestEnded,
    GuestOff,
    Tick,
    Over,
}

impl Task {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = self.select(&mut orders, &mut ticks).await;
            let before = self.handover.view();
            match event {
                Event::Order(order) => {
                    self.carry_out(order).await;
                    // An answer to what was asked before the order may tell of how it was before.
                    self.asked = None;
                }
                Event::GuestEnded => self.guest_ended().await,
                Event::GuestOff => self.guest_off().await,
                Event::Tick => self.tick().await,
                Event::Over => return,
            }
            if self.handover.guest().is_none() {
                self.left();
            }
            if let Some(state) = self.look().await {
                self.handover.show(state);
            }
            if self.handover.view() != before {
                self.changes.notify_one();
            }
        }
    }

    async fn select(&mut self, orders: &mut mpsc::Receiver<Order>, ticks: &mut tokio::time::Interval) -> Event {
        let Self { handover, leaving, .. } = self;
        let guest_ended = async {
            match handover.guest() {
                Some(guest) => drop(guest.process.ended().await),
                None => std::future::pending().await,
            }
        };
        let guest_off = async {
            match leaving.as_mut() {
                Some(leaving) => leaving.off.as_mut().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => order.map_or(Event::Over, Event::Order),
            () = guest_ended => Event::GuestEnded,
            () = guest_off => Event::GuestOff,
            _ = ticks.tick() => Event::Tick,
        }
    }

    async fn carry_out(&mut self, order: Order) {
        let Some(order) = self.put_off(order) else { return };
        // An answer that nobody waits for any more is dropped: the order was carried out all the same.
        match order {
            Order::Feed { input, reply } => {
                let outcome = self.handover.feed(input).await;
                if let Ok(outbound) = &outcome {
                    self.send(outbound, true);
                }
                let _ = reply.send(outcome);
            }
            Order::Prepare { input, spec, wanted_running, reply } => {
                let outcome = self.prepare(input, *spec, wanted_running).await;
                let _ = reply.send(outcome);
            }
            Order::LaunchIncoming { reply } => {
                let outcome = self.handover.launch_incoming().await;
                let _ = reply.send(outcome);
            }
            Order::Start { reply } => {
                let outcome = self.handover.start().await;
                let _ = reply.send(outcome);
            }
            Order::Resume { reply } => {
                let outcome = self.handover.resume().await;
                let _ = reply.send(outcome);
            }
            Order::Stop { force, timeout, reply } => match self.stop(force).await {
                Ok(Some(machine)) => self.await_off(machine, timeout, reply),
                outcome => drop(reply.send(outcome.map(drop))),
            },
            Order::Respecify { spec, reply } => {
                let outcome = self.handover.respecify(*spec).await;
                let _ = reply.send(outcome);
            }
            Order::StandsStill { since } => self.handover.stands_still(since),
            Order::Machine { reply } => drop(reply.send(self.handover.machine())),
            Order::Route { peer, job, lanes } => self.routes.open(peer, job, lanes),
        }
    }

    async fn prepare(&mut self, input: Input, spec: VmSpec, wanted_running: bool) -> Result<(), HandoverError> {
        self.handover.feed(input).await?;
        self.handover.respecify(spec).await?;
        self.handover.want_running(wanted_running).await
    }

    /// Has what begins something with a guest that is on its way down wait, or refuses it. Gives back what is to be done at once.
    fn put_off(&mut self, order: Order) -> Option<Order> {
        let Some(leaving) = &mut self.leaving else { return Some(order) };
        let refusal = || HandoverError::State {
            state: VmState::Running,
            remedy: "it is being stopped; wait until it is, or stop it with `--force`",
        };
        match order {
            Order::Machine { reply } => {
                leaving.machines.retain(|reply| !reply.is_closed());
                if leaving.machines.len() >= ORDERS_MAX {
                    return Some(Order::Machine { reply });
                }
                leaving.machines.push(reply);
            }
            Order::Start { reply } | Order::Prepare { reply, .. } => drop(reply.send(Err(refusal()))),
            Order::LaunchIncoming { reply } => drop(reply.send(Err(refusal()))),
            Order::Feed { input: Input::BeginCede { .. } | Input::Delete, reply } => {
                drop(reply.send(Err(refusal())));
            }
            order => return Some(order),
        }
        None
    }

    /// Stops the guest, or presses its power button: then its QEMU is given back, and it is to be waited for.
    async fn stop(&mut self, force: bool) -> Result<Option<Machine>, HandoverError> {
        let Some(machine) = self.handover.machine() else {
            self.handover.want_running(false).await?;
            return Ok(None);
        };
        self.expect_settled()?;
        self.handover.want_running(false).await?;
        if !force && machine.power_button().await.is_ok() {
            return Ok(Some(machine));
        }
        self.handover.end_in_good_order().await;
        self.left();
        Ok(None)
    }

    /// Answers when the guest is off, or `grace` is over.
    fn await_off(&mut self, machine: Machine, grace: Duration, reply: Reply<()>) {
        let until = Instant::now() + grace;
        let off: Off = Box::pin(async move {
            let _ = machine.run_state_reached(&[RunState::Shutdown], grace).await;
        });
        let Some(leaving) = &mut self.leaving else {
            self.leaving = Some(Leaving { off, until, replies: vec![reply], machines: Vec::new() });
            return;
        };
        if until < leaving.until {
            (leaving.off, leaving.until) = (off, until);
        }
        leaving.replies.retain(|reply| !reply.is_closed());
        if leaving.replies.len() >= ORDERS_MAX {
            let remedy = "it is being stopped, and too many wait for that already";
            drop(reply.send(Err(HandoverError::State { state: VmState::Running, remedy })));
            return;
        }
        leaving.replies.push(reply);
    }

    /// The guest is off, or has had its time.
    async fn guest_off(&mut self) {
        // A guest that came by a move may have been let run meanwhile, and be neither here nor there.
        if self.expect_settled().is_ok() {
            self.handover.end_in_good_order().await;
        }
        self.left();
    }

    /// The guest is not waited for any more: whoever did is answered.
    fn left(&mut self) {
        let Some(Leaving { replies, machines, .. }) = self.leaving.take() else { return };
        for reply in replies {
            let _ = reply.send(self.expect_settled());
        }
        for reply in machines {
            let _ = reply.send(self.handover.machine());
        }
    }

    fn expect_settled(&self) -> Result<(), HandoverError> {
        let ownership = &self.handover.record().ownership;
        if ownership.is_settled() { Ok(()) } else { Err(HandoverError::NotOwner { state: ownership.name() }) }
    }

    async fn guest_ended(&mut self) {
        let ended = self.handover.guest().and_then(|guest| guest.process.has_ended());
        let in_good_order = ended.and_then(|ended| ended.status).is_some_and(|status| status.success());
        info!(vm = %self.vm, in_good_order, "the guest's process has ended");
        self.handover.guest_ended().await;
        // A guest that switched itself off is stopped, and not missing.
        if in_good_order && let Err(error) = self.handover.want_running(false).await {
            warn!(vm = %self.vm, %error, "that the guest is stopped was not noted");
        }
    }

    /// Asks again for whatever is unfinished.
    async fn tick(&mut self) {
        let record = &self.handover.record().ownership;
        let leftover_guest = matches!(record, Record::Absent { .. }) && self.handover.guest().is_some();
        if record.is_settled() && !leftover_guest {
            return;
        }
        match self.handover.feed(Input::Tick).await {
            Ok(outbound) => self.send(&outbound, false),
            Err(error) => warn!(vm = %self.vm, %error, "the handover waits"),
        }
    }

    /// Sends by the lanes of sessions with the peer, and by NATS where they are not there or nothing came of them.
    fn send(&self, outbound: &[Outbound], first: bool) {
        for (to, message) in outbound {
            let by_lanes = self.routes.send(to, *message);
            if !(by_lanes && first) {
                self.send_by_bus(to.clone(), *message);
            }
        }
    }

    fn send_by_bus(&self, to: HostId, message: Message) {
        let job = job_of(&self.handover.record().ownership).or_else(|| self.routes.job(&to));
        let Some(Ok(Some(JobRecord { plan, .. }))) = job.map(|job| self.host.journal.job(job)) else { return };
        let (bus, feedback, vm, job) = (self.bus.clone(), self.feedback.clone(), self.vm, plan.job);
        let from = self.host.id().clone();
        let Ok(proof) = requests::proof(&plan.token, vm, job, &from, &message) else { return };
        tokio::spawn(async move {
            let request = AgentRequest::Handover { vm, job, from, message, proof: proof.to_vec() };
            match bus.ask(&to, &request).await {
                Ok(AgentReply::Handover { message: Some(message) }) => {
                    if let Some(orders) = feedback.upgrade() {
                        let (reply, _) = oneshot::channel();
                        let _ = orders.send(Order::Feed { input: Input::Received { from: to, message }, reply }).await;
                    }
                }
                Ok(_) => {}
                Err(error) => debug!(%vm, %to, %error, "not reached over NATS"),
            }
        });
    }

    /// Whether the guest executes; none where QEMU takes its time over the answer, which is looked at again later.
    async fn look(&mut self) -> Option<VmState> {
        let Some(machine) = self.handover.machine() else {
            self.asked = None;
            let VmRecord { wanted_running, ownership, .. } = self.handover.record();
            let missing = *wanted_running && ownership.may_run().is_some();
            return Some(if missing { VmState::Failed } else { VmState::Stopped });
        };
        let mut asked = self.asked.take().unwrap_or_else(|| tokio::spawn(state(machine)));
        match timeout(STATE_WAIT, &mut asked).await {
            Ok(state) => state.ok(),
            Err(_) => {
                self.asked = Some(asked);
                None
            }
        }
    }
}

async fn state(machine: Machine) -> VmState {
    match machine.run_state().await {
        Ok(RunState::Running) => VmState::Running,
        Ok(RunState::InMigrate) => VmState::Incoming,
        Ok(RunState::Shutdown) => VmState::Stopped,
        Ok(RunState::InternalError | RunState::IoError | RunState::GuestPanicked) | Err(_) => VmState::Failed,
        Ok(_) => VmState::Paused,
    }
}

fn job_of(record: &Record) -> Option<JobId> {
    match record {
        Record::Incoming { from: by, .. } | Record::Activating { ceded_by: Some(by), .. } => Some(by.job),
        Record::Ceding { to, .. } | Record::Ceded { to, .. } => Some(to.job),
        Record::Absent { .. } | Record::Owner { .. } | Record::Activating { ceded_by: None, .. } => None,
    }
}
