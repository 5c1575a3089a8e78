//! Google's methods, asked of the coordinators: what is told, a clone or a cutover that is made, a job that is cancelled, and what is to
//! become of a replication.

use sterna_shared::bus::{ApiError, ApiErrorKind, ApiReply, JobChange};
use sterna_shared::id::{HostId, JobId, Token, VmId};
use sterna_shared::job::{JobKind, JobStatus, MoveRequest, Policy, RequestedState};
use sterna_shared::replica::CutoverWish;
use sterna_shared::view::google::{Method, MigratingVm, MigratingVmName, OperationName};

use super::lifetime::not_resumed;
use super::request::Outcome;
use super::state::{Action, Now, State};
use crate::api::fault;
use crate::google::{self, Change, Create, CreateCutover, Replications, Wanted};
use crate::planner::Seeds;

/// A job that is to be made, and what of its request was left aside.
struct Made {
    request: MoveRequest,
    policy: Policy,
    warnings: Vec<String>,
}

impl State {
    /// Answers a method of Google's. The id is of the job that comes of it, unless its request has one.
    pub(super) fn google(
        &mut self,
        method: Method,
        body: &str,
        (job, token): (JobId, Token),
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        match google::read(&self.told_of_replications(now).known(), method, body)? {
            Wanted::Told(reply) => Ok(Outcome::Reply(reply)),
            Wanted::Clone(create) => {
                let job = create.request.unwrap_or(job);
                let made = self.clone_wanted(*create, job, now)?;
                self.create(made, Seeds { job, token, attempt: 0, now: now.at }, now, out)
            }
            Wanted::Cutover(create) => {
                let job = create.request.unwrap_or(job);
                let made = self.cutover_wanted(create, job, now)?;
                self.create(made, Seeds { job, token, attempt: 0, now: now.at }, now, out)
            }
            Wanted::Change(of, change) => self.change_replication(&of, change, token, now, out),
            Wanted::Cancel(job, reply) => Ok(answered(self.cancel(job, token, now, out)?, reply)),
        }
    }

    /// The clone that is to be made. One that there is already by that id is told of, whatever is asked for.
    fn clone_wanted(&self, create: Create, job: JobId, now: Now) -> Result<Made, ApiError> {
        let Create { of, clone, .. } = create;
        if self.is_to_be_made(job, JobKind::Clone)? {
            self.can_be_cloned(&of, clone.host.as_ref(), now)?;
        }
        let invalid = |what| fault(ApiErrorKind::Invalid, what, "give vmName");
        // One job makes one clone, which has its id, so that who asks again asks for the same.
        let wish = clone.wish(of.vm.as_str(), VmId::from_uuid(job.uuid())).map_err(invalid)?;
        let request = MoveRequest::making(JobKind::Clone, of.vm.as_str(), Some(of.location), wish);
        let policy = Policy { labels: clone.labels, ..Policy::default() };
        Ok(Made { request, policy, warnings: clone.warnings })
    }

    /// The cutover likewise: as nothing else is said, live where the guest runs.
    fn cutover_wanted(&self, create: CreateCutover, job: JobId, now: Now) -> Result<Made, ApiError> {
        let CreateCutover { of, warnings, .. } = create;
        let vm = if self.is_to_be_made(job, JobKind::Cutover)? {
            self.replication_named(&of, now)?.plan.vm.id.to_string()
        } else {
            of.vm.to_string()
        };
        let plain = MoveRequest::plain(JobKind::Cutover, &vm, Some(of.location));
        let request = MoveRequest { cutover: Some(CutoverWish::default()), ..plain };
        Ok(Made { request, policy: Policy::default(), warnings })
    }

    /// Whether there is no job of that id yet; an error where there is one of another kind.
    fn is_to_be_made(&self, job: JobId, kind: JobKind) -> Result<bool, ApiError> {
        match self.jobs.get(&job).map(|known| known.status.plan.kind) {
            None => Ok(true),
            Some(known) if known == kind => Ok(false),
            Some(_) => {
                let message = format!("requestId: job {job} is there already, and does something else");
                Err(fault(ApiErrorKind::Refused, message, "give another id, or leave it out"))
            }
        }
    }

    /// Has a job made, and answers with the operation of that.
    fn create(&mut self, made: Made, seeds: Seeds, now: Now, out: &mut Vec<Action>) -> Result<Outcome, ApiError> {
        let (job, Made { request, policy, warnings }) = (seeds.job, made);
        let outcome = self.migrate(request, false, Box::new(policy), seeds, now, out)?;
        // The job is there by now, whatever can be told of it.
        let told = self.operation(|name| name.job == job && !name.finalizes, now, warnings);
        Ok(answered(outcome, told.unwrap_or_else(|error| ApiReply::Error { error })))
    }

    fn operation(
        &self,
        wanted: impl Fn(&OperationName) -> bool,
        now: Now,
        warnings: Vec<String>,
    ) -> Result<ApiReply, ApiError> {
        let operations = self.told_of_replications(now).known().operations().operations;
        let operation = operations.into_iter().find(|operation| wanted(&operation.name));
        let none = || {
            fault(
                ApiErrorKind::Failed,
                "the operation is not listed".to_owned(),
                "operations.list tells those that are",
            )
        };
        google::reply(&operation.ok_or_else(none)?, warnings)
    }

    /// The job of the replication of that name.
    fn replication_named(&self, of: &MigratingVmName, now: Now) -> Result<JobStatus, ApiError> {
        let told = self.told_of_replications(now);
        told.known().replication(of).cloned().ok_or_else(|| google::not_found("migratingVms", of))
    }

    /// Does to a replication what is asked for, and answers with an operation: that of its end where it is finalized, else one that is
    /// done.
    fn change_replication(
        &mut self,
        of: &MigratingVmName,
        change: Change,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let status = self.replication_named(of, now)?;
        let (job, vm) = (status.job, status.plan.vm.id.to_string());
        // Whether it can be finalized is asked elsewhere, also of one that is over.
        if change != Change::Finalize {
            self.live(job)?;
            if !status.policy.recurs() {
                let message = format!("job {job} is a single cycle of VM {}, and ends by itself", of.vm);
                return Err(fault(ApiErrorKind::Refused, message, format!("cancel it: sterna job cancel {job}")));
            }
        }
        let group = |group| vec![JobChange::Group { group }];
        let (kind, outcome, warnings) = match change {
            Change::Patch(body) => {
                let outcome = self.edit(job, body.changes(&status.policy), now, out)?;
                ("MigratingVm", outcome, body.warnings)
            }
            Change::Pause => ("PauseMigrationResponse", self.pause(&status, token, now, out)?, Vec::new()),
            Change::Resume => ("ResumeMigrationResponse", self.resume(&status, token, now, out)?, Vec::new()),
            Change::Extend => ("ExtendMigrationResponse", self.extend(&vm, None, now, out)?, Vec::new()),
            Change::Join(name) => {
                ("AddGroupMigrationResponse", self.edit(job, group(Some(name)), now, out)?, Vec::new())
            }
            Change::Leave(name) if status.policy.group.as_ref() != Some(&name) => {
                let message = format!("group: the replication of VM {} is not in group {name}", of.vm);
                return Err(fault(ApiErrorKind::Refused, message, "migratingVms.get tells the group that it is in"));
            }
            Change::Leave(_) => ("RemoveGroupMigrationResponse", self.edit(job, group(None), now, out)?, Vec::new()),
            Change::Finalize => {
                let outcome = self.finalize(&vm, now, out)?;
                let told = self.operation(|name| name.job == job && name.finalizes, now, Vec::new());
                return Ok(answered(outcome, told.unwrap_or_else(|error| ApiReply::Error { error })));
            }
        };
        // A response is empty; only of what is patched it is what that is now.
        let told = self.told_of_replications(now);
        let is_it = |vm: &MigratingVm| kind == "MigratingVm" && vm.name == *of;
        let patched = told.known().migrating_vms(Some(of.vm.as_str())).migrating_vms.into_iter().find(is_it);
        Ok(answered(outcome, google::done(kind, &patched, warnings)))
    }

    /// Makes no cycles for a time; the one that is under way is cancelled, as with Google.
    fn pause(
        &mut self,
        status: &JobStatus,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let mut messages = self.ask_for_state(status, RequestedState::Suspend, token.clone(), now, out)?;
        let cycle = status.runs.current().and_then(|cycle| self.jobs.get(&cycle)).map(|job| job.status.clone());
        // One that can no longer be cancelled is all but over.
        if let Some(cycle) = cycle.filter(|cycle| cycle.requested(RequestedState::Terminate).goal.is_some()) {
            messages.extend(self.ask_for_state(&cycle, RequestedState::Terminate, token, now, out)?);
        }
        Ok(Outcome::Publish { messages, reply: ApiReply::Done })
    }

    /// Makes cycles again.
    fn resume(
        &mut self,
        status: &JobStatus,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let replicas = self.replicas(now);
        let view = replicas.iter().find(|view| view.replication == Some(status.job));
        if let Some(why) = view.and_then(not_resumed) {
            return Err(why);
        }
        let messages = self.ask_for_state(status, RequestedState::Start, token, now, out)?;
        Ok(Outcome::Publish { messages, reply: ApiReply::Done })
    }

    /// Whether there is a replication of that name, and its replica is at the host where a clone is wanted, if any is named.
    fn can_be_cloned(&self, of: &MigratingVmName, zone: Option<&HostId>, now: Now) -> Result<(), ApiError> {
        self.replication_named(of, now)?;
        let Some(zone) = zone.filter(|zone| **zone != of.location) else { return Ok(()) };
        let message = format!("zone: a clone of {of} is made at {}, and not at {zone}", of.location);
        Err(fault(ApiErrorKind::Invalid, message, "leave the zone out, or give the parent whose location it is"))
    }

    /// What Google's resources are computed from.
    fn told_of_replications(&self, now: Now) -> Replications {
        let has_a_face = |kind: JobKind| matches!(kind, JobKind::Replicate | JobKind::Clone | JobKind::Cutover);
        let jobs = || self.jobs.values().rev().filter(|job| has_a_face(job.status.plan.kind));
        let under_way = |job: &&super::state::Job| !job.status.state.is_final();
        let progress =
            jobs().filter(under_way).filter_map(|job| Some((job.progress.clone()?, job.averages.rates(now.at))));
        Replications {
            jobs: jobs().map(|job| job.status.clone()).collect(),
            replicas: self.replicas(now),
            progress: progress.collect(),
            now: now.at,
        }
    }
}

/// The same outcome with another answer.
fn answered(outcome: Outcome, reply: ApiReply) -> Outcome {
    match outcome {
        Outcome::Publish { messages, .. } => Outcome::Publish { messages, reply },
        _ => Outcome::Reply(reply),
    }
}
