//! What a leading coordinator knows, and how each event changes it. No I/O: [`State::apply`] takes one event and the
//! time, and says what is to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest, ApiReply, ApiRequest, Command};
use sterna_shared::host::Inventory;
use sterna_shared::id::{Epoch, Generation, HostId, JobId, Token, VmId};
use sterna_shared::job::{
    Event as JobEvent, EventBody, Ignored, JobKind, JobRecord, JobState, JobStatus, Notify, Plan, Progress, Reporter,
    StepKind,
};
use sterna_shared::time::Timestamp;
use sterna_shared::view::google::Averages;

use super::check::{Check, CheckAnswers, CheckQuestions};
use super::lifetime::LettingGo;
use super::list::Gone;
use super::methods::Wait;
use crate::feed::{self, Document, Limiter, Replicas};
use crate::fence::{Fence, Fencing};
use crate::fleet::{Fleet, Heard};
use crate::scheduler::{Scheduler, not_accepted};
use crate::store::ArchiveQuery;

/// Pages of events asked of one journal in a row.
const JOURNAL_PAGES_MAX: u64 = 10_000;
/// How long after a journal could not be read it is tried again.
const JOURNAL_RETRY: Duration = Duration::from_secs(10);
/// Finished jobs whose status is written afresh after a replay; those of older ones were written by predecessors.
const REWRITTEN_MAX: usize = 100;

/// The time, read once an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Of the wall clock: printed, and held against certificates.
    pub(super) at: Timestamp,
    /// Of the monotonic clock: decides.
    pub(super) clock: Duration,
}

/// Names a request until it is answered.
pub(super) type CallId = u64;
/// Of what no operator asked for: calls are numbered from 1.
pub(super) const CALL_NONE: CallId = 0;

/// What happens to a leading coordinator.
#[derive(Debug)]
pub(super) enum Event {
    /// An agent said what it has.
    Heartbeat(Box<Inventory>),
    /// A job's event came from the stream.
    Told(Box<JobEvent>),
    /// What the buckets have of jobs, of VMs and of replications, left by whoever led before.
    Kept { jobs: BTreeSet<JobId>, vms: BTreeSet<VmId>, replicas: BTreeSet<VmId> },
    /// The stream has been read up to where it stood at the start.
    Replayed,
    /// A job made progress.
    Progressed(Box<Progress>),
    /// An operator asks.
    Asked { call: CallId, request: Box<ApiRequest>, token: Token },
    /// An agent answered what was forwarded to it.
    Answered { call: CallId, host: HostId, reply: Result<AgentReply, String> },
    /// A page of an agent's journal came.
    Journalled { host: HostId, skip: u64, page: Result<AgentReply, String> },
    /// What an operator asked for was read.
    Read { call: CallId, reply: Box<ApiReply> },
    /// The fence command has ended: with its host out of action, or why not.
    Fenced { job: JobId, host: HostId, ended: Result<(), String> },
    /// The agents of a check have answered.
    Checked { check: Box<Check>, answers: Box<CheckAnswers> },
    /// A host was asked to let go of a replication that is finalized.
    LetGo { job: JobId, host: HostId, reply: Result<AgentReply, String> },
    /// An id and a token were drawn for the next job that is due.
    Drawn { job: JobId, token: Token },
    /// Time passes.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Answer an operator.
    Answer { call: CallId, reply: Box<ApiReply> },
    /// Publish, in order and each kept before the next; then answer.
    Publish { messages: Vec<Message>, answer: Option<(CallId, Box<ApiReply>)> },
    /// Ask an agent on an operator's behalf.
    Forward { call: CallId, host: HostId, request: Box<AgentRequest>, wait: Duration },
    /// Run the fence command against a host.
    Fence { job: JobId, host: HostId },
    /// Draw an id and a token for the next job that is due.
    Draw,
    /// Ask the two agents of a check.
    Check { check: Box<Check>, questions: Box<CheckQuestions> },
    /// Run a command that tells that a job is over.
    Notify { job: JobId, name: String, state: JobState, document: Vec<u8> },
    /// Keep what a job has come to.
    Archive(Box<JobRecord>),
    /// Read a page of what jobs have come to, and answer an operator with it.
    ReadArchive { call: CallId, query: Box<ArchiveQuery> },
    /// Remove a plan that all of its hosts have.
    RemovePlan(JobId),
    /// Forget a job that has been over for long enough: its status, and what the feed has of it.
    RemoveJob(JobId),
    /// Have an agent remove what cut moves of a VM have left there.
    DropKept { host: HostId, vm: VmId },
    /// Ask a host to let go of a replication that is finalized.
    LetGo { job: JobId, host: HostId, request: Box<AgentRequest> },
    /// Ask an agent for a page of its journal.
    ReadJournal { host: HostId, skip: u64 },
    /// See that the host can take commands.
    EnsureConsumer(HostId),
    /// Write a status.
    StoreJob(Box<JobStatus>),
    /// Write who owns a VM.
    StoreVm { vm: VmId, host: HostId, generation: Generation },
    /// Write what a host said.
    StoreHost(HostId),
    /// Tell the public.
    Feed(Document),
    /// Remove what is kept of a VM that is no more: its owner, and what the feed has of it.
    RemoveVm(VmId),
    /// Remove a last value of the feed, by its key: what it is of is no more.
    RemoveFeed(String),
}

/// What goes into a stream.
#[derive(Debug)]
pub(super) enum Message {
    /// An event: the coordinator's own, or one that an agent had and the stream had not.
    Event(Box<JobEvent>),
    /// A plan, token and all, that is kept until all of its hosts have it.
    Plan(Box<Plan>),
    /// A command. `kind` tells it from other commands of the job to that host.
    Command { host: HostId, command: Box<Command>, kind: String },
}

/// A job as it stands.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) status: JobStatus,
    pub(super) progress: Option<Progress>,
    /// Of a cycle of a replication: what its progress has said of late.
    pub(super) averages: Averages,
    /// The last sequence number of the coordinators' own events.
    pub(super) own_sequence: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reading {
    UnderWay,
    RetryAt(Duration),
}

/// All that a leading coordinator knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) name: HostId,
    pub(super) epoch: Epoch,
    pub(super) nats_version: String,
    pub(super) fleet: Fleet,
    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Jobs that were over, and are not listed any more.
    pub(super) gone: Gone,
    /// Jobs as an earlier leader has kept them, until the stream has been read.
    pub(super) kept: BTreeMap<JobId, JobStatus>,
    /// Those of them that are not over by what was kept.
    pub(super) kept_live: BTreeSet<JobId>,
    /// Jobs of which the buckets have something, until the stream has been read.
    pub(super) left: BTreeSet<JobId>,
    /// For how many days the stream has events; 0 for ever.
    pub(super) events_days: u32,
    /// Plans that were sent, tokens and all, and that not all of their hosts have.
    pub(super) sent: BTreeMap<JobId, Plan>,
    scheduler: Scheduler,
    /// Since when something speaks against a job that waits, and does not pass.
    pub(super) refused_since: BTreeMap<JobId, Duration>,
    /// Checks that are jobs, each in its attempt, at which this coordinator looks.
    pub(super) checks: BTreeSet<(JobId, u32)>,
    /// How far hosts are in letting go of replications that are finalized.
    pub(super) letting_go: BTreeMap<(JobId, HostId), LettingGo>,
    /// An id and a token are on their way.
    pub(super) drawing: bool,
    pub(super) waits: Vec<Wait>,
    /// The VMs whose delete an agent was asked for, and has not answered.
    pub(super) deletions: BTreeMap<CallId, VmId>,
    pub(super) fence: Option<Fence>,
    pub(super) fencing: Fencing,
    limiter: Limiter,
    pub(super) replica_feed: Replicas,
    /// What was last published of each VM; none of what predecessors did.
    pub(super) vms: BTreeMap<VmId, Option<Document>>,
    pub(super) owners: BTreeMap<VmId, (HostId, Generation)>,
    /// Agents' journals that are being read, or have to be.
    pub(super) journals: BTreeMap<HostId, Reading>,
    pub(super) replaying: bool,
}

impl State {
    /// A leader that has read nothing yet.
    pub(super) fn new(name: HostId, epoch: Epoch, nats_version: String, fleet: Fleet, fence: Option<Fence>) -> Self {
        Self {
            name,
            epoch,
            nats_version,
            fleet,
            jobs: BTreeMap::new(),
            gone: Gone::default(),
            kept: BTreeMap::new(),
            kept_live: BTreeSet::new(),
            left: BTreeSet::new(),
            events_days: 0,
            sent: BTreeMap::new(),
            scheduler: Scheduler::default(),
            refused_since: BTreeMap::new(),
            checks: BTreeSet::new(),
            letting_go: BTreeMap::new(),
            drawing: false,
            waits: Vec::new(),
            deletions: BTreeMap::new(),
            fence,
            fencing: Fencing::default(),
            limiter: Limiter::default(),
            replica_feed: Replicas::default(),
            vms: BTreeMap::new(),
            owners: BTreeMap::new(),
            journals: BTreeMap::new(),
            replaying: true,
        }
    }

    /// The one place where anything changes.
    pub(super) fn apply(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Heartbeat(inventory) => {
                let host = inventory.host.clone();
                self.heard(*inventory, now, &mut out);
                self.tend_finalized(&host, now, &mut out);
                self.tend_queue(now, &mut out);
            }
            Event::Told(event) => {
                self.told(&event, now, &mut out);
                self.tend_queue(now, &mut out);
            }
            Event::Kept { jobs, vms, replicas } => self.kept(jobs, vms, replicas),
            Event::Replayed => self.replayed(now, &mut out),
            Event::Checked { check, answers } => self.checked(*check, *answers, now, &mut out),
            Event::LetGo { job, host, reply } => self.let_go(job, host, reply, now, &mut out),
            Event::Drawn { job, token } => self.drawn((job, token), now, &mut out),
            Event::Progressed(progress) => self.progressed(*progress, now, &mut out),
            Event::Asked { call, request, token } => self.asked(call, *request, token, now, &mut out),
            Event::Answered { call: CALL_NONE, host, reply } => Self::answered_to_nobody(&host, &reply),
            Event::Answered { call, host, reply } => {
                self.deleted(call, &reply, &mut out);
                let reply = match reply {
                    Ok(AgentReply::Inventory { inventory }) if inventory.host == host => {
                        self.host_was_set(*inventory, now, &mut out)
                    }
                    reply => super::request::forwarded(&host, reply),
                };
                out.push(Action::Answer { call, reply: Box::new(reply) });
            }
            Event::Read { call, reply } => out.push(Action::Answer { call, reply }),
            Event::Journalled { host, skip, page } => self.journalled(&host, skip, page, now, &mut out),
            Event::Fenced { job, host, ended } => self.fenced(job, &host, ended, now, &mut out),
            Event::Tick => {
                self.tick(now, &mut out);
                self.fence_due(now, &mut out);
                self.answer_waits(now, &mut out);
                self.remove_old(now, &mut out);
                self.tend_expiry(now, &mut out);
                self.tend_queue(now, &mut out);
                self.tell_replicas(now, &mut out);
                self.remove_gone_vms(&mut out);
            }
        }
        out
    }

    pub(super) fn heard(&mut self, inventory: Inventory, now: Now, out: &mut Vec<Action>) {
        let host = inventory.host.clone();
        let heard = self.fleet.heard(inventory, now.at, now.clock);
        match heard {
            Heard::TooMany => {
                tracing::warn!(%host, "the fleet is full; the host is left out");
                return;
            }
            Heard::CameOnline => {
                out.push(Action::EnsureConsumer(host.clone()));
                self.read_journal(&host, out);
            }
            Heard::Changed | Heard::Same => {
                let due = matches!(self.journals.get(&host), Some(Reading::RetryAt(at)) if *at <= now.clock);
                if due {
                    self.read_journal(&host, out);
                }
            }
        }
        // With each heartbeat, until it has let go: the owner may be heard of after it, and a word to it may be lost.
        self.supersede(&host, out);
        if heard != Heard::Same {
            self.host_changed(&host, now, out);
        }
    }

    fn host_changed(&mut self, host: &HostId, now: Now, out: &mut Vec<Action>) {
        out.push(Action::StoreHost(host.clone()));
        let Some(member) = self.fleet.host(host) else { return };
        push_document(feed::host_changed(&self.name, member, now.at), out);
        for id in member.inventory.vms.iter().map(sterna_shared::host::VmReport::id) {
            let Some((speaker, report)) = self.fleet.vm(id) else { continue };
            let Ok(document) = feed::vm_changed(&self.name, speaker, report, now.at) else { continue };
            let told = self.vms.get(&id).and_then(Option::as_ref);
            if told.is_none_or(|told| told.body != document.body) {
                self.vms.insert(id, Some(document.clone()));
                out.push(Action::Feed(document));
            }
            let owner = (speaker.inventory.host.clone(), report.generation);
            if report.owned && self.owners.get(&id) != Some(&owner) {
                out.push(Action::StoreVm { vm: id, host: owner.0.clone(), generation: owner.1 });
                self.owners.insert(id, owner);
            }
        }
    }

    fn read_journal(&mut self, host: &HostId, out: &mut Vec<Action>) {
        if !matches!(self.journals.get(host), Some(Reading::UnderWay)) {
            self.journals.insert(host.clone(), Reading::UnderWay);
            out.push(Action::ReadJournal { host: host.clone(), skip: 0 });
        }
    }

    fn journalled(
        &mut self,
        host: &HostId,
        skip: u64,
        page: Result<AgentReply, String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let (events, more) = match page {
            Ok(AgentReply::Events { events, more }) => (events, more),
            other => {
                tracing::warn!(%host, answer = ?other.err(), "the agent's journal could not be read; tried again");
                self.journals.insert(host.clone(), Reading::RetryAt(now.clock + JOURNAL_RETRY));
                return;
            }
        };
        let next = skip + events.len() as u64;
        let mut restored = Vec::new();
        for event in events {
            let is_its_own = event.reporter == Reporter::Host(host.clone());
            if is_its_own && !self.is_past(&event, now) && self.told(&event, now, out) {
                restored.push(Message::Event(Box::new(event)));
            }
        }
        if !restored.is_empty() {
            tracing::info!(%host, events = restored.len(), "the stream lacked events; they go back in");
            out.push(Action::Publish { messages: restored, answer: None });
        }
        if more && next > skip && next / 1.max(next - skip) <= JOURNAL_PAGES_MAX {
            out.push(Action::ReadJournal { host: host.clone(), skip: next });
        } else {
            self.journals.remove(host);
        }
    }

    /// Folds an event in. Says whether it was new here.
    pub(super) fn told(&mut self, event: &JobEvent, now: Now, out: &mut Vec<Action>) -> bool {
        let was_over = self.jobs.get(&event.job).is_some_and(|job| job.status.state.is_final());
        let new = match self.jobs.get_mut(&event.job) {
            Some(job) => match job.status.apply(event) {
                Err(Ignored::Repeated { .. } | Ignored::OtherJob(_)) => false,
                Err(ignored @ Ignored::NotItsOwn(_)) => {
                    tracing::warn!(job = %event.job, %ignored, "an event is left out");
                    return false;
                }
                Err(ignored) => {
                    tracing::debug!(job = %event.job, %ignored, "an event changed nothing");
                    true
                }
                Ok(()) => true,
            },
            // Its target may only now say that it has taken it on, and a journal tells of it for long afterwards.
            None if self.gone.is_meant_by(event) => return false,
            None => {
                if !self.list(event, out) {
                    // Its plan is lost here, and not at the agent.
                    if let (Reporter::Host(host), false) = (&event.reporter, self.replaying) {
                        self.read_journal(&host.clone(), out);
                    }
                    return false;
                }
                true
            }
        };
        if let Some(job) = self.jobs.get_mut(&event.job) {
            if event.reporter == Reporter::Coordinator {
                job.own_sequence = job.own_sequence.max(event.sequence);
            }
            if !job.status.is_active() {
                job.progress = None;
                job.averages = Averages::new();
            }
        }
        if new && !self.replaying {
            self.arrived(event.job, out);
            self.job_changed(event.job, now, out);
            self.answer_waits(now, out);
            if !was_over {
                self.archive(event.job, out);
                self.notify(event.job, now.at, out);
            }
        }
        new
    }

    fn job_changed(&mut self, job: JobId, now: Now, out: &mut Vec<Action>) {
        let Some(Job { status, progress, .. }) = self.jobs.get(&job) else { return };
        self.scheduler.observe(status, now.clock);
        if let Some(fence) = &self.fence {
            self.fencing.observe(status, now.clock, Duration::from_secs(fence.after_seconds.into()));
        }
        out.push(Action::StoreJob(Box::new(status.clone())));
        push_document(self.limiter.job_changed(&self.name, status, progress.as_ref(), now.at, now.clock), out);
    }

    /// Keeps what a job has come to, if it is over.
    fn archive(&self, job: JobId, out: &mut Vec<Action>) {
        let record = self.jobs.get(&job).and_then(|job| JobRecord::of(&job.status));
        out.extend(record.map(|record| Action::Archive(Box::new(record))));
    }

    fn replayed(&mut self, now: Now, out: &mut Vec<Action>) {
        self.replaying = false;
        let ended = self.list_kept(out);
        // Nobody has told of their ends, so far as is known; rather twice than never.
        for job in &ended {
            self.notify(*job, now.at, out);
        }
        let (over, live): (Vec<_>, Vec<_>) = self.jobs.iter().partition(|(_, job)| job.status.state.is_final());
        let over = over.iter().rev().take(REWRITTEN_MAX).map(|(id, _)| **id).chain(ended);
        let rewritten: BTreeSet<JobId> = live.iter().map(|(id, _)| **id).chain(over).collect();
        for job in rewritten {
            self.job_changed(job, now, out);
            // One that was over while nobody led has no record yet; one that has keeps it.
            self.archive(job, out);
        }
        self.send_again(out);
        let hosts: Vec<HostId> =
            self.fleet.hosts().filter(|member| member.online).map(|member| member.inventory.host.clone()).collect();
        for host in hosts {
            out.push(Action::EnsureConsumer(host.clone()));
            self.read_journal(&host, out);
            self.host_changed(&host, now, out);
        }
    }

    fn progressed(&mut self, progress: Progress, now: Now, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&progress.job).filter(|job| job.status.is_active()) else { return };
        if !job.status.plan.involves(&progress.host) {
            return;
        }
        match self.limiter.job_progressed(&self.name, &job.status, &progress, now.at, now.clock) {
            Ok(Some(document)) => out.push(Action::Feed(document)),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a document of the feed could not be written"),
        }
        let plan = &job.status.plan;
        // By this clock, by which they are asked for too; the target of a cycle counts otherwise.
        if (plan.kind, progress.step) == (JobKind::Replicate, StepKind::CopyDisks) && progress.host == plan.source.id {
            job.averages.feed(now.at, progress.disk.done);
        }
        job.progress = Some(progress);
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        for host in self.fleet.silence(now.clock) {
            tracing::warn!(%host, "host is offline");
            self.host_changed(&host, now, out);
        }
        for job in self.scheduler.overdue(now.clock) {
            let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { continue };
            if self.may_be_taken(status) {
                self.scheduler.observe(status, now.clock);
                continue;
            }
            let failure = not_accepted(status);
            tracing::warn!(%job, "no agent took the job on");
            let mut messages = super::request::to_parties(&status.plan, "cancel", || Command::Cancel { job });
            if let Some(event) = self.own_event(job, EventBody::Failed { failure }, now) {
                self.told(&event, now, out);
                // Last: a leader that falls out in between leaves a job that the next one cancels again.
                messages.push(Message::Event(Box::new(event)));
            }
            out.push(Action::Publish { messages, answer: None });
        }
    }

    /// An event of the coordinators' own, numbered after the last.
    pub(super) fn own_event(&self, job: JobId, body: EventBody, now: Now) -> Option<JobEvent> {
        let sequence = self.jobs.get(&job)?.own_sequence + 1;
        Some(JobEvent { job, reporter: Reporter::Coordinator, sequence, at: now.at, body })
    }

    /// Tells whom a job names that it is over.
    fn notify(&self, job: JobId, now: Timestamp, out: &mut Vec<Action>) {
        let Some(status) = self.jobs.get(&job).map(|job| &job.status).filter(|status| status.state.is_final()) else {
            return;
        };
        let document = |name: &str| feed::job_over(&self.name, name, status, now);
        match status.policy.notify.as_deref().map(str::parse) {
            Some(Ok(Notify::Subject(name))) => push_document(document(&name), out),
            Some(Ok(Notify::Command(name))) => match document(&name) {
                Ok(document) => out.push(Action::Notify { job, name, state: status.state, document: document.body }),
                Err(error) => tracing::error!(%error, "a document of the feed could not be written"),
            },
            Some(Err(_)) | None => {}
        }
    }
}

pub(super) fn push_document(document: Result<Document, serde_json::Error>, out: &mut Vec<Action>) {
    match document {
        Ok(document) => out.push(Action::Feed(document)),
        Err(error) => tracing::error!(%error, "a document of the feed could not be written"),
    }
}
