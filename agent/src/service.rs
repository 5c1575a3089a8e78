//! The agent's one loop: commands, requests, sessions and the heartbeat come in here, and nowhere else.
//!
//! ```text
//!   bus ── Inbound ────────┐                       ┌─▶ Keeper   one task a VM
//!   listener ── admission ─┼─▶ select ─▶ apply ────┼─▶ job      one task a job: Source, Target or Storage
//!   listener ── session ───┤   (waits)   (changes) └─▶ request  one short task each
//!   jobs ── JobOver ───────┤
//!   guest that answers ────┤
//!   tick ──────────────────┘
//! ```
//!
//! What the loop itself does is short: it looks things up, writes what must be in the journal before anything is done by
//! it, and starts tasks. It never waits for a guest, a peer or the broker.

mod jobs;
mod kept;
mod planned;
mod replicas;
mod unreachable;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sterna_shared::bus::{AgentReply, AgentRequest, Command};
use sterna_shared::host::{HEARTBEAT_INTERVAL_SECONDS, Inventory};
use sterna_shared::id::{Epoch, JobId, VmId};
use sterna_shared::job::EventBody;
use sterna_shared::ownership::Record;
use sterna_shared::vm::VmSpec;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use self::kept::KnownSince;
use self::replicas::Merges;
use self::unreachable::Reached;
use crate::bus::{Bus, Inbound};
use crate::clock;
use crate::guest::launcher::{self, AttachError, Launched};
use crate::host::Host;
use crate::journal::{JobRecord, JournalError, Role, Stage, VmRecord};
use crate::link::{AdmissionRequest, Listener, Session, Timing};
use crate::migration::context::Context;
use crate::migration::gate::Wish;
use crate::migration::images;
use crate::migration::keeper::Keeper;
use crate::probe::{ExpectedProbes, Prober, TooMany};
use crate::requests::{self, Handler};

/// Admissions, sessions and ended jobs that may wait for the loop.
const QUEUE_MAX: usize = 64;
/// How long a guest of an earlier agent may take to answer.
const ATTACH_WAIT: Duration = Duration::from_secs(10);

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// An address cannot be listened on.
    #[error(
        "the data-plane port {address} cannot be listened on; is another agent running, or the address not this host's?"
    )]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The agent.
#[derive(Debug)]
pub struct Service {
    host: Arc<Host>,
    bus: Bus,
    inbound: mpsc::Receiver<Inbound>,
    admissions: mpsc::Receiver<AdmissionRequest>,
    sessions: mpsc::Receiver<Session>,
    endings: mpsc::Receiver<Ending>,
    tell_ending: mpsc::Sender<Ending>,
    answers: mpsc::Receiver<Answer>,
    give_answer: mpsc::Sender<Answer>,
    changes: Arc<Notify>,
    keepers: BTreeMap<VmId, Keeper>,
    unreachable: BTreeMap<VmId, VmRecord>,
    reached: mpsc::Receiver<Reached>,
    tell_reached: mpsc::Sender<Reached>,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs whose plans wait until their VM is free here.
    postponed: BTreeSet<JobId>,
    known_since: KnownSince,
    prober: Prober,
    probes: ExpectedProbes,
    tends_replicas: Option<tokio::task::JoinHandle<()>>,
    merges: Option<Merges>,
    /// VMs that are being taken over from their replicas, which is no job: nothing else is done with them.
    taking_over: BTreeSet<VmId>,
    /// VMs whose replicas are being removed, which is no job either: no cycle of theirs begins.
    dropping: BTreeSet<VmId>,
}

/// A job in hand.
#[derive(Debug)]
struct Job {
    context: Arc<Context>,
    role: Role,
    sessions: mpsc::Sender<Session>,
    /// Its work is done, and what came of it is being written down: it holds its VM no more.
    ends: bool,
}

/// Whether a command has been dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    /// It is wanted again in a moment.
    Later,
}

/// How far a job's end is.
#[derive(Debug)]
enum Ending {
    /// Its work is done. Answered once the fleet was told how the VM is now.
    Work(JobId, oneshot::Sender<()>),
    /// What came of it is written down.
    Written(JobId),
}

/// What a request came to, on its way to the asker.
#[derive(Debug)]
struct Answer {
    answer: AgentReply,
    reply: oneshot::Sender<AgentReply>,
    /// The VM that is taken over with it, or is not; or whose replica is removed.
    taken_over: Option<VmId>,
}

#[derive(Debug)]
enum Event {
    Inbound(Inbound),
    Answer(Answer),
    Admission(AdmissionRequest),
    Session(Session),
    Ending(Ending),
    Reached(Reached),
    Tick,
    Over,
}

impl Service {
    /// Takes up what an earlier agent left, listens, and is ready to [`Service::run`].
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(host: Arc<Host>, bus: Bus, inbound: mpsc::Receiver<Inbound>) -> Result<Self, StartError> {
        let (admission, admissions) = mpsc::channel(QUEUE_MAX);
        let (session, sessions) = mpsc::channel(QUEUE_MAX);
        let (tell_ending, endings) = mpsc::channel(QUEUE_MAX);
        let (give_answer, answers) = mpsc::channel(QUEUE_MAX);
        let (tell_reached, reached) = mpsc::channel(QUEUE_MAX);
        let mut service = Self {
            host: Arc::clone(&host),
            bus,
            inbound,
            admissions,
            sessions,
            endings,
            tell_ending,
            answers,
            give_answer,
            changes: Arc::new(Notify::new()),
            keepers: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            reached,
            tell_reached,
            jobs: BTreeMap::new(),
            postponed: BTreeSet::new(),
            known_since: KnownSince::new(),
            prober: Prober::new(Arc::clone(&host.tls)),
            probes: ExpectedProbes::default(),
            taking_over: BTreeSet::new(),
            dropping: BTreeSet::new(),
            tends_replicas: None,
            merges: None,
        };
        service.take_up_vms().await?;
        service.take_up_jobs().await?;
        let mut sockets = Vec::new();
        for address in &host.config.listen {
            let listen = |source| StartError::Listen { address: *address, source };
            sockets.push(TcpListener::bind(address).await.map_err(listen)?);
        }
        tokio::spawn(Listener::new(sockets, Arc::clone(&host.tls), Timing::default(), admission, session).run());
        tokio::spawn(host.journal.clone().keep_to(host.config.retention, clock::now));
        Ok(service)
    }

    /// Runs until `stop` ends, and calls `beat` at each turn. Guests run on; jobs in hand are taken up by the next agent.
    pub async fn run(mut self, stop: impl Future<Output = ()>, beat: impl Fn()) {
        tokio::pin!(stop);
        let mut ticks = interval(Duration::from_secs(HEARTBEAT_INTERVAL_SECONDS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat();
            let event = tokio::select! {
                () = &mut stop => Event::Over,
                inbound = self.inbound.recv() => inbound.map_or(Event::Over, Event::Inbound),
                Some(request) = self.admissions.recv() => Event::Admission(request),
                Some(session) = self.sessions.recv() => Event::Session(session),
                Some(ending) = self.endings.recv() => Event::Ending(ending),
                Some(answer) = self.answers.recv() => Event::Answer(answer),
                Some(reached) = self.reached.recv() => Event::Reached(reached),
                () = self.changes.notified() => Event::Tick,
                _ = ticks.tick() => Event::Tick,
            };
            match event {
                Event::Inbound(Inbound::Command { command, epoch, taken }) => {
                    let outcome = self.take_command(command, epoch).await;
                    if let Err(error) = &outcome {
                        error!(error = error as &dyn std::error::Error, "a command was not taken");
                    }
                    // What was not taken is sent again in a moment.
                    let _ = taken.send(matches!(outcome, Ok(Taken::Yes)));
                }
                Event::Inbound(Inbound::Request { request, reply, .. }) => self.answer(request, reply).await,
                Event::Admission(AdmissionRequest { peer, attach, reply }) => {
                    let _ = reply.send(self.admit(&peer, &attach).await);
                }
                Event::Session(session) => self.take_session(session).await,
                Event::Ending(ending) => {
                    let told = match ending {
                        Ending::Work(job, told) => {
                            self.jobs.entry(job).and_modify(|job| job.ends = true);
                            Some(told)
                        }
                        Ending::Written(job) => {
                            self.jobs.remove(&job);
                            self.tend_planned().await;
                            None
                        }
                    };
                    self.bus.publish_inventory(&self.inventory()).await;
                    // Whoever waits for it has gone only with the agent.
                    told.map(|told| told.send(()));
                }
                Event::Answer(Answer { answer, reply, taken_over }) => {
                    taken_over.map(|vm| self.taking_over.remove(&vm) || self.dropping.remove(&vm));
                    // The fleet knows of the change before the asker does, who may build on it at once.
                    self.bus.publish_inventory(&self.inventory()).await;
                    let _ = reply.send(answer);
                }
                Event::Reached(reached) => {
                    self.reached(reached).await;
                    self.bus.publish_inventory(&self.inventory()).await;
                }
                Event::Tick => {
                    self.tend_kept().await;
                    self.tend_planned().await;
                    self.tend_replicas();
                    self.bus.publish_inventory(&self.inventory()).await;
                }
                Event::Over => return,
            }
        }
    }

    /// Finds the guests of an earlier agent, and begins to keep every VM.
    async fn take_up_vms(&mut self) -> Result<(), StartError> {
        let jobs = self.host.journal.jobs()?;
        let in_the_making = |job: &&JobRecord| job.stage != Stage::Over && job.role == Role::Cloner;
        let in_the_making: BTreeSet<VmId> = jobs.iter().filter(in_the_making).map(|job| job.plan.vm.id).collect();
        // Beside each other: where many do not answer the agent is there no later.
        let host = &self.host;
        let looked = join_all(self.host.journal.vms()?.into_iter().map(|record| async move {
            let attached = match host.runtime(record.spec.id) {
                Ok(runtime) => Ok(launcher::attach(&runtime, ATTACH_WAIT).await),
                Err(error) => Err(error),
            };
            (record, attached)
        }));
        for (record, attached) in looked.await {
            let vm = record.spec.id;
            let attached = match attached {
                Ok(attached) => attached,
                Err(error) => {
                    error!(%vm, %error, "a VM is not kept yet");
                    self.cannot_reach(record);
                    continue;
                }
            };
            let guest = match attached {
                Ok(guest) => guest,
                // What may not run, or is being made of a replica, goes in any case.
                Err(AttachError::Unreachable { process, .. })
                    if record.ownership.may_run().is_none() || in_the_making.contains(&vm) =>
                {
                    warn!(%vm, "a guest that may not run, or is to go, does not answer and is ended");
                    if let Err(error) = process.kill(Duration::ZERO).await {
                        error!(%vm, %error, "it could not be ended");
                    }
                    None
                }
                Err(error) => {
                    error!(%vm, %error, "a guest cannot be driven; the VM is not kept yet");
                    self.cannot_reach(record);
                    continue;
                }
            };
            info!(%vm, name = %record.spec.name, record = record.ownership.name(), running = guest.is_some(), "VM");
            self.keepers.insert(vm, self.keep(record, guest));
        }
        Ok(())
    }

    /// Takes up the jobs that an earlier agent had in hand.
    async fn take_up_jobs(&mut self) -> Result<(), StartError> {
        for record in self.host.journal.jobs()? {
            if record.stage == Stage::Over {
                continue;
            }
            info!(job = %record.plan.job, role = ?record.role, "job taken up");
            // The earlier agent may not have come to it.
            self.tell_accepted(&record.plan).await;
            if record.role == Role::Staging {
                self.stage(&record.plan).await?;
                continue;
            }
            images::end_leftover_daemons(&self.host, &record.plan).await;
            self.begin(record, true).await?;
        }
        Ok(())
    }

    async fn take_command(&mut self, command: Command, epoch: Epoch) -> Result<Taken, JournalError> {
        let (known, job) = (self.host.journal.epoch()?, command.job());
        let postponed = self.postponed.contains(&job);
        if epoch < known {
            warn!(%job, %epoch, %known, "a command of a coordinator that no longer leads is refused");
            if matches!(command, Command::Run { .. }) {
                self.postponed.remove(&job);
            }
            return Ok(Taken::Yes);
        }
        self.host.journal.raise_epoch(epoch).await?;
        // What is to end a job comes again once its plan is taken; an earlier attempt of it may be in hand.
        if postponed && !matches!(command, Command::Run { .. }) && !self.jobs.contains_key(&job) {
            return Ok(Taken::Later);
        }
        match command {
            Command::Run { plan } => {
                let taken = self.take_plan(*plan).await?;
                match taken {
                    Taken::Later if self.postponed.insert(job) => {
                        info!(%job, "the plan waits until the VM's last job is over here");
                    }
                    Taken::Later => {}
                    Taken::Yes => {
                        self.postponed.remove(&job);
                    }
                }
                return Ok(taken);
            }
            Command::Cancel { job } => self.end(job, Wish::Cancel, None).await,
            Command::Suspend { job, attempt } => self.end(job, Wish::Suspend, Some(attempt)).await,
            Command::Kill { job } => self.end(job, Wish::Kill, None).await,
            Command::SetBandwidth { job, bandwidth } => {
                if let Some(Job { context, .. }) = self.jobs.get(&job) {
                    context.limiter.change(bandwidth);
                    let keeper = context.keeper.clone();
                    // A QEMU that is not sending has no use for it, and is told anew when it begins.
                    tokio::spawn(async move {
                        if let Ok(Some(machine)) = keeper.machine().await
                            && let Err(error) = machine.migration_limit(bandwidth).await
                        {
                            warn!(%job, error = &error as &dyn std::error::Error, "QEMU keeps to the old rate");
                        }
                    });
                }
            }
        }
        Ok(if postponed { Taken::Later } else { Taken::Yes })
    }

    async fn answer(&mut self, request: AgentRequest, reply: oneshot::Sender<AgentReply>) {
        let vm = requests::vm_of(&request);
        // What the hosts of a handover say to each other they say again; people get a reason.
        if !matches!(request, AgentRequest::Handover { .. })
            && let Some(refusal) = vm.and_then(|vm| self.out_of_reach(vm))
        {
            let _ = reply.send(refusal);
            return;
        }
        let handler = Handler {
            host: Arc::clone(&self.host),
            keeper: vm.and_then(|vm| self.keepers.get(&vm).cloned()),
            job: vm.and_then(|vm| self.job_of(vm)),
        };
        match request {
            AgentRequest::Inventory => {
                let _ = reply.send(AgentReply::Inventory { inventory: Box::new(self.inventory()) });
            }
            AgentRequest::HostSet { change, reset } => {
                let fault = requests::set_limits(&self.host, change, reset).await;
                let inventory = self.inventory();
                if fault.is_none() {
                    info!(limits = ?inventory.limits, "what is taken on at once was set");
                    self.bus.publish_inventory(&inventory).await;
                }
                let _ = reply.send(fault.unwrap_or(AgentReply::Inventory { inventory: Box::new(inventory) }));
            }
            AgentRequest::VmDrop { vm } => {
                let dropped = self.drop_kept_of(vm).await;
                let _ = reply.send(dropped.err().unwrap_or(AgentReply::Done));
                self.bus.publish_inventory(&self.inventory()).await;
            }
            AgentRequest::ReplicaDrop { vm } => self.drop_replica(vm, reply),
            AgentRequest::VmTakeOver { vm, snapshot, above } => self.take_over(vm, snapshot, above, reply).await,
            AgentRequest::PlannedDrop { planned } => {
                let dropped = self.drop_planned_by_id(planned).await;
                self.bus.publish_inventory(&self.inventory()).await;
                let _ = reply.send(dropped);
            }
            AgentRequest::VmDefine { spec } => match self.hindrance(&spec).await {
                Some(hindrance) => {
                    let _ = reply.send(hindrance);
                }
                None => {
                    // A VM that is new here has a keeper from the first moment, so that nobody defines it twice.
                    let keeper = handler.keeper.clone().unwrap_or_else(|| {
                        let ownership = Record::default();
                        let record = VmRecord { spec: (*spec).clone(), ownership, wanted_running: false };
                        self.keep(record, None)
                    });
                    self.keepers.insert(spec.id, keeper.clone());
                    let handler = Handler { keeper: Some(keeper), ..handler };
                    let answers = self.give_answer.clone();
                    tokio::spawn(async move {
                        let answer = handler.define(*spec).await;
                        let _ = answers.send(Answer { answer, reply, taken_over: None }).await;
                    });
                }
            },
            AgentRequest::ProbeExpect { job, source, token } => {
                let expected = self.probes.expect(job, source, token);
                let full = |error: TooMany| requests::refused(error.to_string(), "");
                let _ = reply.send(expected.map_or_else(full, |()| AgentReply::Done));
            }
            AgentRequest::Probe { vm, peer, time_ms } => {
                let prober = self.prober.clone();
                tokio::spawn(async move {
                    let report = prober.probe(vm, handler.keeper, peer, time_ms).await;
                    reply.send(AgentReply::Probed { report: Box::new(report) })
                });
            }
            // The handover and the console have no time to lose, and change nothing that the fleet must know first.
            request
            @ (AgentRequest::Handover { .. } | AgentRequest::VmConsole { .. } | AgentRequest::Events { .. }) => {
                tokio::spawn(async move { reply.send(handler.carry_out(request).await) });
            }
            request => {
                let answers = self.give_answer.clone();
                tokio::spawn(async move {
                    let answer = handler.carry_out(request).await;
                    let _ = answers.send(Answer { answer, reply, taken_over: None }).await;
                });
            }
        }
    }

    fn keep(&self, record: VmRecord, guest: Option<Launched>) -> Keeper {
        Keeper::spawn(Arc::clone(&self.host), self.bus.clone(), Arc::clone(&self.changes), record, guest)
    }

    fn name_taken(&self, spec: &VmSpec) -> Option<String> {
        let records = self.keepers.values().map(|keeper| keeper.record()).chain(self.unreachable.values().cloned());
        let mut others = records.filter(|record| is_here(record) && record.spec.id != spec.id);
        others.find(|record| record.spec.name == spec.name).map(|other| {
            format!("this host has a VM called {} already, with the id {}", other.spec.name, other.spec.id)
        })
    }

    fn job_of(&self, vm: VmId) -> Option<JobId> {
        self.jobs.iter().find(|(_, job)| job.context.plan.vm.id == vm && !job.ends).map(|(id, _)| *id)
    }

    fn inventory(&self) -> Inventory {
        let views = self.keepers.values().map(|keeper| keeper.view().borrow().clone());
        let reports = views.filter(|view| is_here(&view.record)).map(|view| {
            let job = self.job_of(view.record.spec.id);
            view.report(job)
        });
        self.host.inventory(reports.chain(self.unreachable_reports()).collect(), &self.kept(), &self.planned())
    }

    async fn tell(&self, job: JobId, body: EventBody) {
        if let Err(error) = self.host.tell(job, body).await {
            warn!(%job, %error, "an event was lost");
        }
    }
}

/// Whether a VM is, was to be, or has just been here; the tombstones of the others are nobody's business.
fn is_here(record: &VmRecord) -> bool {
    !matches!(record.ownership, Record::Absent { .. })
}
