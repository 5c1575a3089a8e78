//! Jobs in this agent's hands: from a plan to the task that carries it out, and from a session to its job.
//!
//! A plan is compared with what is here and journalled before anything is done by it; what will not do is told, and
//! remembered, so that the same plan is not tried again.

use std::sync::Arc;

use sterna_shared::id::{HostId, JobId, TOKEN_LENGTH, Token, VmId};
use sterna_shared::job::{EventBody, FailureCode, FailureReport, JobKind, Plan};
use sterna_shared::ownership::Record;
use sterna_shared::peer::attach::{Admitted, Attach, Refusal, RefusalCode, SessionId};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{Ending, Job, Service, Taken};
use crate::admission;
use crate::clock;
use crate::host::Host;
use crate::journal::{JobRecord, JournalError, Role, Stage, VmRecord};
use crate::link::{Admission, Limiter, Session};
use crate::migration::context::{Context, Outcome};
use crate::migration::gate::{Gate, Wish};
use crate::migration::progress::ProgressBoard;
use crate::migration::reader::Reader;
use crate::migration::source::Source;
use crate::migration::storage::Storage;
use crate::migration::target::Target;
use crate::replication::clone::Cloner;
use crate::replication::source::CycleSource;
use crate::replication::target::CycleTarget;
use crate::replication::verify::Verifier;

/// Sessions that wait for their job.
const SESSIONS_MAX: usize = 4;

impl Service {
    /// Journals a plan and begins with it. A plan that is known already changes nothing; one that goes on with a job that
    /// was suspended takes the older one's place.
    pub(super) async fn take_plan(&mut self, plan: Plan) -> Result<Taken, JournalError> {
        let (here, job) = (self.host.id().clone(), plan.job);
        let known = self.host.journal.job(job)?;
        if !plan.involves(&here) {
            return Ok(Taken::Yes);
        }
        if let Some(known) = known.as_ref().filter(|known| plan.attempt <= known.plan.attempt) {
            // Whoever asks again may not have heard of it.
            if plan.attempt == known.plan.attempt && known.stage != Stage::Over {
                self.tell_accepted(&known.plan).await;
            }
            return Ok(Taken::Yes);
        }
        if self.host.journal.may_be_forgotten(&plan)? {
            warn!(%job, planned_at = %plan.planned_at, "a plan as old as jobs that were forgotten is taken for a repeat");
            return Ok(Taken::Yes);
        }
        // What is only prepared for does not touch the VM.
        if plan.kind != JobKind::Stage && self.is_about_to_be_free(plan.vm.id) {
            return Ok(Taken::Later);
        }
        if plan.kind == JobKind::Replicate && self.merges_layers_of(plan.vm.id) {
            return Ok(Taken::Later);
        }
        if known.is_some_and(|known| known.stage != Stage::Over || self.jobs.contains_key(&job)) {
            return Ok(Taken::Yes);
        }
        self.accept(plan).await?;
        Ok(Taken::Yes)
    }

    /// Whether the VM is in a job that is all but over: what came of it is being written down, or the host that leads it has
    /// told its end already, for all that is known here.
    fn is_about_to_be_free(&self, vm: VmId) -> bool {
        self.jobs.values().any(|job| job.context.plan.vm.id == vm && (job.ends || follows(job.role)))
    }

    async fn accept(&mut self, plan: Plan) -> Result<(), JournalError> {
        let (here, job) = (self.host.id().clone(), plan.job);
        let role = match (plan.source.id == here, plan.target.id == here) {
            _ if plan.kind == JobKind::Stage => Role::Staging,
            _ if plan.kind == JobKind::DeepCheck => Role::Reader,
            _ if matches!(plan.kind, JobKind::Clone | JobKind::Rehearse) => Role::Cloner,
            _ if plan.kind == JobKind::Verify => Role::Verifier,
            (true, _) if plan.kind == JobKind::Replicate => Role::CycleSource,
            _ if plan.kind == JobKind::Replicate => Role::Replica,
            (true, true) => Role::Storage,
            (true, false) => Role::Source,
            _ => Role::Target,
        };
        let fault = self.fault_of(&plan, role);
        let leads = matches!(role, Role::Source | Role::CycleSource);
        let admitted = leads.then(|| Admitted { session: SessionId(Uuid::new_v4()), incarnation: 0 });
        let mut record = JobRecord { admitted, ..JobRecord::new(plan, role, clock::now()) };
        if fault.is_some() {
            (record.stage, record.over_at, record.settled) = (Stage::Over, Some(record.accepted_at), true);
        }
        self.host.journal.put_job(record.clone()).await?;
        self.tell_accepted(&record.plan).await;
        match fault {
            None if role == Role::Staging => self.stage(&record.plan).await,
            None => {
                if role == Role::Target {
                    self.make_room(&record.plan).await;
                }
                self.begin(record, false).await
            }
            // The source speaks for the job; a target that will not take it says so when the source comes.
            Some(message) if !follows(role) => {
                let failure = FailureReport {
                    code: FailureCode::PlanStale,
                    message,
                    causes: Vec::new(),
                    remedy: "look at the VM with `sterna vm show` and plan the move again".to_owned(),
                    host: Some(here),
                };
                self.tell(job, EventBody::Failed { failure }).await;
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    pub(super) async fn tell_accepted(&self, plan: &Plan) {
        let blanked = Plan { token: Token::from_bytes([0; TOKEN_LENGTH]), ..plan.clone() };
        self.tell(plan.job, EventBody::Accepted { plan: Box::new(blanked) }).await;
    }

    /// What keeps this host from its part in a plan: the world may have changed since it was made.
    fn fault_of(&self, plan: &Plan, role: Role) -> Option<String> {
        let vm = plan.vm.id;
        if let Some(job) = self.job_of(vm).filter(|_| role != Role::Staging) {
            return Some(format!("VM {} is in job {job}", plan.vm.name));
        }
        if self.taking_over.contains(&vm) {
            return Some(format!("VM {} is being taken over from its replica", plan.vm.name));
        }
        if self.dropping.contains(&vm) && (role == Role::Replica || (role == Role::Target && plan.cutover.is_some())) {
            return Some(format!("the replica of VM {} is being removed", plan.vm.name));
        }
        if self.is_out_of_reach(vm) {
            return Some(format!("the guest of VM {} does not answer at this host", plan.vm.name));
        }
        let record = self.keepers.get(&vm).map(|keeper| keeper.record());
        match (role, record) {
            // Whether the VM itself is here does not matter.
            (Role::Verifier, _) => self.cloning(vm).map(|job| format!("job {job} makes a clone of the replica")),
            (Role::Cloner, None | Some(VmRecord { ownership: Record::Absent { .. }, .. })) => self.name_taken(&plan.vm),
            (Role::Target | Role::Staging | Role::Replica, None) => None,
            (Role::Target | Role::Staging | Role::Replica, Some(VmRecord { ownership: Record::Absent { .. }, .. })) => {
                None
            }
            (Role::Target | Role::Staging | Role::Replica | Role::Cloner, Some(record)) => {
                Some(format!("VM {} is here already, as {}", plan.vm.name, record.ownership.name()))
            }
            (_, Some(VmRecord { ownership: Record::Owner { generation }, spec, .. }))
                if generation == plan.generation && spec == plan.vm =>
            {
                None
            }
            (_, Some(_)) => Some(format!("VM {} is not what it was when the job was planned", plan.vm.name)),
            (_, None) => Some(format!("VM {} is not on this host", plan.vm.name)),
        }
    }

    /// The job that makes a clone of the replica of a VM.
    fn cloning(&self, vm: VmId) -> Option<JobId> {
        let of = |job: &Job| job.context.plan.clone.as_ref().is_some_and(|clone| clone.replica == vm);
        self.jobs.iter().find(|(_, job)| of(job)).map(|(job, _)| *job)
    }

    /// Starts the task of a job.
    pub(super) async fn begin(&mut self, record: JobRecord, recovered: bool) -> Result<(), JournalError> {
        let JobRecord { plan, role, admitted, .. } = record;
        let (job, vm) = (plan.job, plan.vm.id);
        let keeper = match self.keepers.get(&vm) {
            Some(keeper) => keeper.clone(),
            None if self.is_out_of_reach(vm) => {
                error!(%job, %vm, "the VM's guest does not answer; its job is taken up when it does");
                return Ok(());
            }
            None => {
                let record =
                    VmRecord { spec: plan.vm_at_target.clone(), ownership: Record::default(), wanted_running: false };
                self.host.journal.put_vm(record.clone()).await?;
                let keeper = self.keep(record, None);
                self.keepers.insert(vm, keeper.clone());
                keeper
            }
        };
        let context = Arc::new(Context {
            host: Arc::clone(&self.host),
            limiter: Arc::new(Limiter::new(plan.bandwidth)),
            gate: Gate::default(),
            progress: ProgressBoard::start(self.bus.clone(), job, self.host.id().clone(), !follows(role)),
            plan,
            keeper,
        });
        let (session_sender, sessions) = mpsc::channel(SESSIONS_MAX);
        let admitted = match (role, admitted) {
            (Role::Source | Role::CycleSource, Some(admitted)) if recovered => {
                let incarnation = self.host.journal.raise_incarnation(job).await?;
                Some(Admitted { incarnation, ..admitted })
            }
            (_, admitted) => admitted,
        };
        let task = run_job(Arc::clone(&context), role, admitted, sessions, recovered);
        let (host, tell_ending) = (Arc::clone(&self.host), self.tell_ending.clone());
        tokio::spawn(async move {
            let outcome = task.await;
            if outcome != Outcome::Stopping {
                // The fleet knows how the VM is before it hears that the job is over: who hears it may build on it at once.
                let (reply, published) = oneshot::channel();
                let _ = tell_ending.send(Ending::Work(job, reply)).await;
                let _ = published.await;
                conclude(&host, job, outcome).await;
                let _ = tell_ending.send(Ending::Written(job)).await;
            }
        });
        self.jobs.insert(job, Job { context, role, sessions: session_sender, ends: false });
        Ok(())
    }

    /// Carries out what an operator wants of a job under way. `attempt` is the plan that he means, where it matters.
    pub(super) async fn end(&mut self, job: JobId, wish: Wish, attempt: Option<u32>) {
        let Some(Job { context, role, .. }) = self.jobs.get(&job) else {
            // What it has left here is wanted no more, unless it is to go on.
            if wish != Wish::Suspend {
                self.drop_left_by(job).await;
                self.drop_planned_by(job).await;
            }
            return;
        };
        if attempt.is_some_and(|attempt| attempt != context.plan.attempt) {
            return;
        }
        if follows(*role) {
            // The source leads, and has been told too; a target that still waits for it need not wait longer.
            let _ = context.gate.end(wish);
            return;
        }
        let accepted = context.gate.end(wish);
        info!(%job, "{wish} {}", if accepted { "accepted" } else { "refused" });
        let body = match (accepted, wish) {
            (true, Wish::Cancel) => EventBody::CancelAccepted,
            (true, Wish::Suspend) => EventBody::Notice { text: "suspend accepted; the copying stops".to_owned() },
            (true, Wish::Kill) => EventBody::Killed,
            (false, _) if *role == Role::Reader => {
                EventBody::CancelRefused { reason: "the disks are read, and the check is over in a moment".to_owned() }
            }
            (false, _) if *role == Role::Verifier => {
                EventBody::CancelRefused { reason: "the replica is read, and what was found is told".to_owned() }
            }
            (false, _) if context.plan.kind == JobKind::Rehearse => EventBody::CancelRefused {
                reason: "every probe was answered, and the clone is being deleted".to_owned(),
            },
            (false, _) if *role == Role::Cloner => {
                EventBody::CancelRefused { reason: "the clone is made; delete it with `sterna vm delete`".to_owned() }
            }
            (false, _) => EventBody::CancelRefused {
                reason: format!(
                    "the VM has been offered to {}: from here on the move can only be completed, or refused by it",
                    context.plan.target.id
                ),
            },
        };
        self.tell(job, body).await;
    }

    pub(super) async fn admit(&mut self, peer: &HostId, attach: &Attach) -> Admission {
        let record = match self.host.journal.job(attach.job) {
            Ok(None) if self.postponed.contains(&attach.job) => return Admission::Refuse(postponed()),
            // What no job is may be a probe.
            Ok(None) => return self.probes.admit(peer, attach).map_or_else(Admission::Refuse, |()| Admission::Admit),
            Ok(record) => record,
            Err(error) => return Admission::Refuse(unreadable(&error)),
        };
        match admission::admit(record.as_ref(), peer, attach) {
            Ok(admitted) => match record {
                Some(record) if record.admitted != Some(admitted) => {
                    let noted = self.host.journal.note_admitted(record.plan.job, admitted).await;
                    noted.map_or_else(|error| Admission::Refuse(unreadable(&error)), |()| Admission::Admit)
                }
                _ => Admission::Admit,
            },
            // The record is that of an earlier attempt.
            Err(_) if self.postponed.contains(&attach.job) => Admission::Refuse(postponed()),
            Err(refusal) => Admission::Refuse(refusal),
        }
    }

    pub(super) async fn take_session(&mut self, session: Session) {
        let job = session.job();
        let Some(Job { context, sessions, .. }) = self.jobs.get(&job) else {
            if let Some(session) = self.probes.take(session) {
                self.answer_late(session).await;
            }
            return;
        };
        if let Err(mpsc::error::TrySendError::Full(session) | mpsc::error::TrySendError::Closed(session)) =
            sessions.try_send(session)
        {
            tokio::spawn(Target::answer(Arc::clone(context), session));
        }
    }

    /// A source that comes for a job that is over here still has a handover to settle, or a preparation to give up.
    async fn answer_late(&mut self, session: Session) {
        let Ok(Some(record)) = self.host.journal.job(session.job()) else { return };
        let Some(keeper) = self.keepers.get(&record.plan.vm.id).cloned() else { return };
        let (bus, id) = (self.bus.clone(), self.host.id().clone());
        let context = Arc::new(Context {
            host: Arc::clone(&self.host),
            limiter: Arc::new(Limiter::new(None)),
            gate: Gate::default(),
            progress: ProgressBoard::start(bus, record.plan.job, id, false),
            plan: record.plan,
            keeper,
        });
        tokio::spawn(Target::answer(context, session));
    }
}

/// Whether another host leads, and speaks for the job.
fn follows(role: Role) -> bool {
    matches!(role, Role::Target | Role::Replica)
}

fn postponed() -> Refusal {
    Refusal::new(RefusalCode::Busy, "the VM's last job is not over yet at the target; it is waited for")
}

fn unreadable(error: &JournalError) -> Refusal {
    Refusal::new(RefusalCode::Busy, format!("the target's journal cannot be used: {error}"))
}

async fn run_job(
    context: Arc<Context>,
    role: Role,
    admitted: Option<Admitted>,
    sessions: mpsc::Receiver<Session>,
    recovered: bool,
) -> Outcome {
    match (role, recovered) {
        (Role::Source, _) => {
            let Some(admitted) = admitted else { return Outcome::Stopping };
            let source = Source::new(context, admitted.session, admitted.incarnation);
            if recovered { source.recover().await } else { source.run().await }
        }
        (Role::Target, false) => Target::new(context).run(sessions).await,
        (Role::Target, true) => Target::new(context).recover(sessions).await,
        (Role::Storage, false) => Storage::new(context).run().await,
        (Role::Storage, true) => Storage::new(context).recover().await,
        (Role::CycleSource, _) => {
            let Some(admitted) = admitted else { return Outcome::Stopping };
            let source = CycleSource::new(context, admitted.session, admitted.incarnation);
            if recovered { source.recover().await } else { source.run().await }
        }
        (Role::Replica, false) => CycleTarget::new(context).run(sessions).await,
        (Role::Replica, true) => CycleTarget::new(context).recover().await,
        (Role::Cloner, false) => Cloner::new(context).run().await,
        (Role::Cloner, true) => Cloner::new(context).recover().await,
        (Role::Verifier, false) => Verifier::new(context).run().await,
        (Role::Verifier, true) => Verifier::new(context).recover().await,
        // The loop itself carries it out, and makes no task of it.
        (Role::Staging, _) => Outcome::Stopping,
        (Role::Reader, false) => Reader::new(context).run().await,
        (Role::Reader, true) => Reader::new(context).recover().await,
    }
}

/// Tells how a job ended, and remembers that it did.
async fn conclude(host: &Host, job: JobId, outcome: Outcome) {
    let body = match outcome {
        Outcome::Completed { blackout_us } => Some(EventBody::Completed { blackout_us }),
        Outcome::Terminated => Some(EventBody::Terminated),
        Outcome::Failed(failure) => Some(EventBody::Failed { failure }),
        Outcome::Suspended { figures } => Some(EventBody::Suspended { figures }),
        Outcome::Asked { failure, figures } => Some(EventBody::Asked { failure, figures }),
        Outcome::Read { findings, figures } => Some(EventBody::DisksRead { findings, figures }),
        Outcome::Killed | Outcome::Followed | Outcome::Stopping => None,
    };
    if let Some(body) = body
        && let Err(error) = host.tell(job, body).await
    {
        warn!(%job, %error, "an event was lost");
    }
    host.flush().await;
    if let Err(error) = host.journal.conclude(job, clock::now()).await {
        warn!(%job, error = &error as &dyn std::error::Error, "the job will be concluded again");
    }
}
