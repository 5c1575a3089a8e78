//! Google's methods, asked of the coordinators: what is told, a clone that is made, a job that is cancelled.

use sterna_shared::bus::{ApiError, ApiErrorKind, ApiReply};
use sterna_shared::id::{HostId, JobId, Token, VmId};
use sterna_shared::job::{JobKind, MoveRequest, Policy};
use sterna_shared::view::google::{Method, MigratingVmName};

use super::request::Outcome;
use super::state::{Action, Now, State};
use crate::api::fault;
use crate::google::{self, Create, Replications, Wanted};
use crate::planner::Seeds;

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
                self.create_clone(*create, (job, token), now, out)
            }
            Wanted::Cancel(job, reply) => Ok(answered(self.cancel(job, token, now, out)?, reply)),
        }
    }

    /// Has a clone made, and answers with the operation of that. One that there is already by that id is told of, whatever is asked for.
    fn create_clone(
        &mut self,
        create: Create,
        (job, token): (JobId, Token),
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Outcome, ApiError> {
        let Create { of, clone, .. } = create;
        match self.jobs.get(&job).map(|known| known.status.plan.kind) {
            None => self.can_be_cloned(&of, clone.host.as_ref(), now)?,
            Some(JobKind::Clone) => {}
            Some(_) => {
                let message = format!("requestId: job {job} is there already, and makes no clone");
                return Err(fault(ApiErrorKind::Refused, message, "give another id, or leave it out"));
            }
        }
        let invalid = |what| fault(ApiErrorKind::Invalid, what, "give vmName");
        // One job makes one clone, which has its id, so that who asks again asks for the same.
        let wish = clone.wish(of.vm.as_str(), VmId::from_uuid(job.uuid())).map_err(invalid)?;
        let request = MoveRequest::making(JobKind::Clone, of.vm.as_str(), Some(of.location), wish);
        let policy = Policy { labels: clone.labels, ..Policy::default() };
        let seeds = Seeds { job, token, attempt: 0, now: now.at };
        let outcome = self.migrate(request, false, Box::new(policy), seeds, now, out)?;
        let operations = self.told_of_replications(now).known().operations().operations;
        let operation = operations.into_iter().find(|operation| operation.name.job == job);
        let operation = operation.ok_or_else(|| google::not_found("operations", &job));
        let reply = operation.and_then(|operation| google::reply(&operation, clone.warnings));
        // The job is there by now, whatever can be told of it.
        Ok(answered(outcome, reply.unwrap_or_else(|error| ApiReply::Error { error })))
    }

    /// Whether there is a replication of that name, and its replica is at the host where a clone is wanted, if any is named.
    fn can_be_cloned(&self, of: &MigratingVmName, zone: Option<&HostId>, now: Now) -> Result<(), ApiError> {
        let vms = self.told_of_replications(now).known().migrating_vms(Some(of.vm.as_str())).migrating_vms;
        if !vms.iter().any(|vm| vm.name == *of) {
            return Err(google::not_found("migratingVms", of));
        }
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
