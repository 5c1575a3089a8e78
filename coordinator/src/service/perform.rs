//! What must happen in order: publications, buckets, the feed. One task, one bounded queue.

use std::time::Duration;

use serde::Serialize;
use sterna_shared::bus::{
    ApiErrorKind, ApiReply, BODY_LENGTH_MAX, Command, Envelope, EnvelopeError, HostView, Subject,
};
use sterna_shared::id::{Epoch, Generation, HostId, JobId, VmId};
use sterna_shared::job::{JobRecord, JobStatus, Reporter};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Standing;
use super::state::Message;
use crate::api::{self, fault};
use crate::bus::{Bus, BusError, Call, server};
use crate::feed::Document;
use crate::store::{Bucket, Kept, Store, Writer};

/// How long one piece of work may take before the leader gives up and starts over.
const WORK_WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) enum Work {
    Publish { messages: Vec<Message>, answer: Option<Box<(Call, ApiReply)>> },
    StoreJob(Box<JobStatus>),
    Archive(Box<JobRecord>),
    RemovePlan(JobId),
    RemoveJob(JobId),
    StoreVm { vm: VmId, host: HostId, generation: Generation },
    RemoveVm(VmId),
    StoreHost(Box<HostView>),
    EnsureConsumer(HostId),
    Feed(Document),
    RemoveFeed(String),
}

pub(super) struct Performer {
    bus: Bus,
    store: Store,
    writer: Writer,
    name: HostId,
    epoch: Epoch,
    standing: watch::Receiver<Standing>,
}

/// Who owns a VM, as the bucket `sterna_vms` says.
#[derive(Debug, Serialize)]
struct Owner {
    host: HostId,
    generation: Generation,
}

impl Performer {
    pub(super) fn new(bus: Bus, store: Store, name: HostId, epoch: Epoch, standing: watch::Receiver<Standing>) -> Self {
        let writer = Writer::new(store.clone());
        Self { bus, store, writer, name, epoch, standing }
    }

    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Work>) -> Result<(), BusError> {
        while let Some(work) = waiting.recv().await {
            self.leads()?;
            let done = tokio::time::timeout(WORK_WAIT_MAX, self.perform(work)).await;
            done.map_err(server("do its work in time"))??;
        }
        Ok(())
    }

    /// Between two messages the lease may have run out; then nothing more is said in its name.
    fn leads(&self) -> Result<(), BusError> {
        match *self.standing.borrow() {
            Some((epoch, until)) if epoch == self.epoch && Instant::now() < until => Ok(()),
            _ => Err(BusError::Fenced { key: "the lease".into() }),
        }
    }

    async fn perform(&mut self, work: Work) -> Result<(), BusError> {
        match work {
            Work::Publish { messages, answer } => {
                let published = self.publish(messages).await;
                if let Some((call, reply)) = answer.map(|answer| *answer) {
                    let reply = match &published {
                        Ok(()) => reply,
                        Err(error) => ApiReply::Error {
                            error: fault(
                                ApiErrorKind::Unreachable,
                                format!("it could not be written down: {error}"),
                                "ask again with the same job id once NATS is well: a job is made once only",
                            ),
                        },
                    };
                    respond(call, &self.name, self.epoch, reply).await;
                }
                published
            }
            Work::StoreJob(status) => {
                let Some(body) = self.fitting("job", &status.job.to_string(), &status)? else { return Ok(()) };
                self.writer.write(Bucket::Jobs, &status.job.to_string(), body).await
            }
            Work::Archive(record) => {
                let Some(archive) = self.store.archive() else { return Ok(()) };
                let Some(body) = self.fitting("job_record", &record.job.to_string(), &record)? else { return Ok(()) };
                if let Err(error) = archive.keep(record.job, body).await {
                    // Nothing depends on it; whoever leads next tries again while the job is among the latest.
                    tracing::warn!(job = %record.job, error = &error as &dyn std::error::Error, "no record of the job is kept");
                }
                Ok(())
            }
            Work::RemovePlan(job) => self.writer.remove(Bucket::Plans, &job.to_string()).await,
            Work::RemoveJob(job) => {
                self.writer.remove(Bucket::Jobs, &job.to_string()).await?;
                self.store.remove(Bucket::Feed, &format!("job.{job}")).await
            }
            Work::StoreVm { vm, host, generation } => {
                let body = self.seal("vm", &Owner { host, generation })?;
                self.writer.write(Bucket::Vms, &vm.to_string(), body).await
            }
            Work::RemoveVm(vm) => {
                self.writer.remove(Bucket::Vms, &vm.to_string()).await?;
                self.store.remove(Bucket::Feed, &format!("vm.{vm}")).await
            }
            Work::StoreHost(view) => {
                let host = view.inventory.host.as_str();
                let Some(body) = self.fitting("host", host, &view)? else { return Ok(()) };
                self.store.put(Bucket::Hosts, host, body).await
            }
            Work::EnsureConsumer(host) => self.store.ensure_consumer(&host).await,
            Work::Feed(document) if document.body.len() > BODY_LENGTH_MAX => {
                tracing::error!(
                    key = document.key,
                    length = document.body.len(),
                    "a document is too long for the feed"
                );
                Ok(())
            }
            Work::Feed(document) => {
                self.bus.publish(&document).await?;
                self.store.put(Bucket::Feed, &document.key, document.body).await
            }
            Work::RemoveFeed(key) => self.store.remove(Bucket::Feed, &key).await,
        }
    }

    async fn publish(&mut self, messages: Vec<Message>) -> Result<(), BusError> {
        for message in messages {
            // What an event that is kept entails is said too: without its commands nobody would carry it out.
            if let Message::Event(_) | Message::Plan(_) = &message {
                self.leads()?;
            }
            let (subject, id, body) = match &message {
                Message::Plan(plan) => {
                    let body = self.seal("plan", plan)?;
                    self.writer.write(Bucket::Plans, &plan.job.to_string(), body).await?;
                    continue;
                }
                Message::Event(event) => {
                    let (subject, reporter) = match &event.reporter {
                        Reporter::Coordinator => (Subject::CoordinatorEvent(event.job), "coordinator"),
                        Reporter::Host(host) => (Subject::Event(host.clone(), event.job), host.as_str()),
                    };
                    let id = format!("{}-{reporter}-{}", event.job, event.sequence);
                    // What an agent has told is in its journal, also where an envelope of ours is a little longer than its own.
                    let body = match event.reporter {
                        Reporter::Coordinator => Some(self.seal("event", event)?),
                        Reporter::Host(_) => self.fitting("event", &id, event)?,
                    };
                    let Some(body) = body else { continue };
                    (subject, id, body)
                }
                Message::Command { host, command, kind } => {
                    let job = Command::job(command);
                    // A host may have refused it of a predecessor.
                    let id = format!("{job}-{host}-{kind}-{}", self.epoch);
                    (Subject::Command(host.clone(), job), id, self.seal("command", command)?)
                }
            };
            let kept = self.store.publish(&subject, &id, body).await?;
            // The coordinators' own events have numbers that are given once. A command may be given twice, and an agent's event may
            // have come from its agent meanwhile.
            if kept == Kept::Before && matches!(subject, Subject::CoordinatorEvent(_)) {
                return Err(BusError::Fenced { key: id });
            }
        }
        Ok(())
    }

    /// The same of what others have made as long as it is, and can be left out: none where it is too long, with a word about it.
    /// Nothing that leads on a fleet may stand or fall by one value of it.
    fn fitting<T: Serialize>(&self, kind: &'static str, key: &str, message: &T) -> Result<Option<Vec<u8>>, BusError> {
        match Envelope::seal(kind, self.name.as_str(), self.epoch, message) {
            Err(error @ EnvelopeError::TooLong { .. }) => {
                tracing::error!(kind, key, %error, "a value is too long to be kept, and is left out");
                Ok(None)
            }
            sealed => sealed.map(Some).map_err(server("carry a message")),
        }
    }

    fn seal<T: Serialize>(&self, kind: &'static str, message: &T) -> Result<Vec<u8>, BusError> {
        Envelope::seal(kind, self.name.as_str(), self.epoch, message).map_err(server("carry a message this long"))
    }
}

/// Answers an operator.
pub(super) async fn respond(call: Call, name: &HostId, epoch: Epoch, reply: ApiReply) {
    let written = if api::is_json(call.endpoint(), call.body()) {
        Ok(api::write_json(reply))
    } else {
        api::write(name.as_str(), epoch, reply)
    };
    match written {
        Ok(written) => call.answer(written).await,
        Err(error) => tracing::error!(%error, "an answer could not be written"),
    }
}
