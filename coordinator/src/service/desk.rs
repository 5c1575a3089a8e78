//! The leader's hands: takes operators' requests in, carries actions out, and brings agents' answers back.

use std::collections::HashMap;
use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest, ApiErrorKind, ApiReply, Envelope};
use sterna_shared::id::{Epoch, HostId, JobId, TOKEN_LENGTH, Token};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::Standing;
use super::check::{CheckAnswers, CheckQuestions};
use super::perform::{Performer, Work, respond};
use super::request::{AGENT_WAIT_MAX, AGENT_WORK_WAIT_MAX};
use super::state::{Action, CallId, Event, State};
use crate::api::{self, ENDPOINTS, fault};
use crate::bus::{ApiService, Bus, BusError, Call};
use crate::config::Config;
use crate::notify::Commands;
use crate::store::{Archive, ArchiveQuery, Store};

/// Work that waits for the performer; a full queue holds the service back.
const WORK_MAX: usize = 4096;
/// Requests that are open at once; further ones are told to come again.
const CALLS_OPEN_MAX: usize = 1024;

pub(super) struct Desk {
    bus: Bus,
    name: HostId,
    notify: Commands,
    archive: Option<Archive>,
    epoch: Epoch,
    api: Option<ApiService>,
    calls: HashMap<CallId, Call>,
    next_call: CallId,
    asked: JoinSet<Event>,
    work: mpsc::Sender<Work>,
    performer: JoinHandle<Result<(), BusError>>,
}

impl Desk {
    pub(super) fn new(
        bus: &Bus,
        store: &Store,
        config: &Config,
        epoch: Epoch,
        standing: watch::Receiver<Standing>,
    ) -> Self {
        let (work, waiting) = mpsc::channel(WORK_MAX);
        let name = &config.name;
        let performer = Performer::new(bus.clone(), store.clone(), name.clone(), epoch, standing);
        Self {
            bus: bus.clone(),
            name: name.clone(),
            notify: config.notify.clone(),
            archive: store.archive().cloned(),
            epoch,
            api: None,
            calls: HashMap::new(),
            next_call: 0,
            asked: JoinSet::new(),
            work,
            performer: tokio::spawn(performer.run(waiting)),
        }
    }

    /// Offers the API.
    pub(super) async fn open(&mut self) -> Result<(), BusError> {
        self.api = Some(self.bus.serve(ENDPOINTS, env!("CARGO_PKG_VERSION")).await?);
        Ok(())
    }

    /// The next thing that happened here; none where it needs no change of state.
    ///
    /// # Errors
    /// What made the performer give up.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, BusError> {
        let api = async {
            match &mut self.api {
                Some(api) => api.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = &mut self.performer => match ended {
                Ok(result) => result.map(|()| None),
                Err(error) => Err(crate::bus::server("carry out what was decided")(error)),
            },
            Some(event) = self.asked.join_next() => Ok(event.ok()),
            call = api => match call {
                Some(call) => Ok(self.take(call).await),
                None => Err(crate::bus::server("go on with the API")("the connection is closed")),
            },
        }
    }

    async fn take(&mut self, call: Call) -> Option<Event> {
        let refused = match api::read(call.endpoint(), call.body()) {
            Ok(request) if self.calls.len() < CALLS_OPEN_MAX => {
                self.next_call += 1;
                self.calls.insert(self.next_call, call);
                return Some(Event::Asked { call: self.next_call, request: Box::new(request), token: token() });
            }
            Ok(_) => fault(ApiErrorKind::Unreachable, "the coordinator has too much in hand", "ask again in a while"),
            Err(error) => error,
        };
        respond(call, &self.name, self.epoch, ApiReply::Error { error: refused }).await;
        None
    }

    /// Carries actions out.
    ///
    /// # Errors
    /// What made the performer give up.
    pub(super) async fn perform(&mut self, state: &State, actions: Vec<Action>) -> Result<(), BusError> {
        for action in actions {
            let work = match action {
                Action::Answer { call, reply } => {
                    if let Some(call) = self.calls.remove(&call) {
                        respond(call, &self.name, self.epoch, *reply).await;
                    }
                    continue;
                }
                Action::Forward { call, host, request, wait } => {
                    let asked = self.ask(host.clone(), &request, wait);
                    self.asked.spawn(async move { Event::Answered { call, host, reply: asked.await } });
                    continue;
                }
                Action::Fence { job, host } => {
                    if let Some(fence) = state.fence.clone() {
                        self.asked.spawn(async move {
                            let ended = fence.run(&host).await;
                            Event::Fenced { job, host, ended }
                        });
                    }
                    continue;
                }
                Action::Check { check, questions } => {
                    let CheckQuestions { source, target, expect, probe, clock } = *questions;
                    let expect = self.ask(target.clone(), &expect, AGENT_WAIT_MAX);
                    let probe = self.ask(source, &probe, AGENT_WAIT_MAX);
                    let clock = self.ask(target, &clock, AGENT_WAIT_MAX);
                    self.asked.spawn(async move {
                        let (expect, probe) = (expect.await, probe.await);
                        // Last, so that both clocks are looked at at about the same time.
                        let answers = Box::new(CheckAnswers { expect, probe, clock: clock.await });
                        Event::Checked { check, answers }
                    });
                    continue;
                }
                Action::Notify { job, name, state, document } => {
                    let Some(command) = self.notify.get(&name).cloned() else {
                        tracing::warn!(%job, name, "the configuration has no [notify] of that name; nobody is told");
                        continue;
                    };
                    self.asked.spawn(async move {
                        if let Err(why) = command.run(&state.to_string(), &document).await {
                            tracing::warn!(%job, name, why, "nobody was told that the job is over");
                        }
                        Event::Tick
                    });
                    continue;
                }
                Action::ReadArchive { call, query } => {
                    let archive = self.archive.clone();
                    self.asked.spawn(async move { Event::Read { call, reply: Box::new(read(archive, *query).await) } });
                    continue;
                }
                Action::Draw => {
                    self.asked
                        .spawn(async { Event::Drawn { job: JobId::from_uuid(uuid::Uuid::now_v7()), token: token() } });
                    continue;
                }
                Action::DropKept { host, vm } => {
                    let asked = self.ask(host, &AgentRequest::VmDrop { vm }, AGENT_WORK_WAIT_MAX);
                    // Nobody waits for it: what stays has an owner, and its time.
                    self.asked.spawn(async move {
                        let _ = asked.await;
                        Event::Tick
                    });
                    continue;
                }
                Action::LetGo { job, host, request } => {
                    let asked = self.ask(host.clone(), &request, AGENT_WORK_WAIT_MAX);
                    self.asked.spawn(async move { Event::LetGo { job, host, reply: asked.await } });
                    continue;
                }
                Action::ReadJournal { host, skip } => {
                    let asked = self.ask(host.clone(), &AgentRequest::Events { skip }, AGENT_WAIT_MAX);
                    self.asked.spawn(async move { Event::Journalled { host, skip, page: asked.await } });
                    continue;
                }
                Action::Publish { messages, answer } => {
                    let answer = answer.and_then(|(call, reply)| Some(Box::new((self.calls.remove(&call)?, *reply))));
                    Work::Publish { messages, answer }
                }
                Action::StoreHost(host) => match state.fleet.host(&host) {
                    Some(member) => Work::StoreHost(Box::new(member.view())),
                    None => continue,
                },
                Action::EnsureConsumer(host) => Work::EnsureConsumer(host),
                Action::StoreJob(status) => Work::StoreJob(status),
                Action::Archive(record) => Work::Archive(record),
                Action::RemovePlan(job) => Work::RemovePlan(job),
                Action::RemoveJob(job) => Work::RemoveJob(job),
                Action::StoreVm { vm, host, generation } => Work::StoreVm { vm, host, generation },
                Action::Feed(document) => Work::Feed(document),
                Action::RemoveVm(vm) => Work::RemoveVm(vm),
                Action::RemoveFeed(key) => Work::RemoveFeed(key),
            };
            if self.work.send(work).await.is_err() {
                // The performer has given up; why, `next` will tell.
                return Ok(());
            }
        }
        Ok(())
    }

    /// A question to an agent, ready to be waited for. Their number is bounded by that of open calls and of hosts.
    fn ask(
        &self,
        host: HostId,
        request: &AgentRequest,
        wait: Duration,
    ) -> impl Future<Output = Result<AgentReply, String>> + Send + 'static {
        let sealed = Envelope::seal("agent_request", self.name.as_str(), self.epoch, request);
        let bus = self.bus.clone();
        async move {
            let body = sealed.map_err(|error| error.to_string())?;
            let answer = bus.ask(&host, body, wait).await.map_err(|error| {
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
            })?;
            let read = Envelope::open(&answer).and_then(|envelope| envelope.message("agent_reply"));
            read.map_err(|error| error.to_string())
        }
    }

    /// Withdraws the API and lets everything go.
    pub(super) async fn close(self) {
        if let Some(api) = self.api {
            api.stop().await;
        }
        self.performer.abort();
    }
}

/// A page of the archive, or why there is none.
async fn read(archive: Option<Archive>, query: ArchiveQuery) -> ApiReply {
    let Some(archive) = archive else {
        let hint = "give [retention] archive_days in the coordinators' configuration, for jobs to come";
        return ApiReply::Error {
            error: fault(ApiErrorKind::Refused, "no record is kept of jobs that are over", hint),
        };
    };
    match archive.read(&query).await {
        Ok((records, next)) => ApiReply::History { records, next },
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let message = format!("the records cannot be read: {error}{cause}");
            ApiReply::Error { error: fault(ApiErrorKind::Unreachable, message, "look at the broker (`sterna doctor`)") }
        }
    }
}

/// A token drawn from the system's source of randomness: two random UUIDs, 244 bits that nobody can guess.
fn token() -> Token {
    let mut bytes = [0; TOKEN_LENGTH];
    let (front, back) = bytes.split_at_mut(TOKEN_LENGTH / 2);
    front.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    back.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    Token::from_bytes(bytes)
}
