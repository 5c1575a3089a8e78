//! Requests that are answered: what an operator wants of one VM on this host, and what other agents ask.
//!
//! Each runs on a task of its own; what it does to a VM goes through the VM's keeper, one order after another.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest, ApiError, ApiErrorKind, ConsoleChunk, encode};
use sterna_shared::host::LimitsChange;
use sterna_shared::id::{HostId, JobId, Token, VmId};
use sterna_shared::ownership::{Input, Message, Record};
use sterna_shared::vm::VmSpec;

use crate::host::Host;
use crate::hypervisor::qemu::extra_arguments;
use crate::hypervisor::qemu::runtime::RuntimeDirectory;
use crate::migration::images::{self, ImageError};
use crate::migration::keeper::{Keeper, KeeperError};

/// The longest a guest may be given to obey its power button.
const STOP_TIMEOUT_SECONDS_MAX: u32 = 3600;
/// The most of a console's log in one answer.
const CONSOLE_CHUNK_MAX: u64 = 64 << 10;
/// What is shown of a console's past to somebody who comes anew.
const CONSOLE_TAIL: u64 = 4 << 10;
/// How long typing into a console may take.
const CONSOLE_WAIT: Duration = Duration::from_secs(2);
/// Events in one answer.
const EVENTS_PAGE: usize = 256;

/// What carries a request out.
#[derive(Debug)]
pub struct Handler {
    /// This host.
    pub host: Arc<Host>,
    /// The keeper of the VM that the request names, if this host has one.
    pub keeper: Option<Keeper>,
    /// The job that holds that VM, if one does.
    pub job: Option<JobId>,
}

/// The VM that a request is about.
#[must_use]
pub fn vm_of(request: &AgentRequest) -> Option<VmId> {
    match request {
        AgentRequest::VmDefine { spec } => Some(spec.id),
        AgentRequest::VmStart { vm }
        | AgentRequest::VmStop { vm, .. }
        | AgentRequest::VmDelete { vm, .. }
        | AgentRequest::VmDrop { vm }
        | AgentRequest::ReplicaDrop { vm }
        | AgentRequest::VmConsole { vm, .. }
        | AgentRequest::VmFenced { vm, .. }
        | AgentRequest::VmSuperseded { vm, .. }
        | AgentRequest::VmTakeOver { vm, .. }
        | AgentRequest::Handover { vm, .. } => Some(*vm),
        AgentRequest::Probe { vm, .. } => *vm,
        AgentRequest::HostSet { .. }
        | AgentRequest::PlannedDrop { .. }
        | AgentRequest::Events { .. }
        | AgentRequest::Inventory
        | AgentRequest::ProbeExpect { .. } => None,
    }
}

/// What proves that a message of the handover, sent over NATS, is from the job's other host: the token is the key, and
/// only the two agents and the coordinators have it.
///
/// # Errors
/// The message does not encode: a fault of ours.
pub fn proof(
    token: &Token,
    vm: VmId,
    job: JobId,
    from: &HostId,
    message: &Message,
) -> Result<[u8; 32], sterna_shared::bus::EnvelopeError> {
    let content = encode("handover message", &(vm, job, from, message))?;
    Ok(*blake3::keyed_hash(token.bytes(), &content).as_bytes())
}

/// Sets what the host takes on at once; what is wrong with it, if anything.
pub(crate) async fn set_limits(host: &Host, change: LimitsChange, reset: bool) -> Option<AgentReply> {
    let faults = change.faults();
    if !faults.is_empty() {
        let message = format!("{} cannot be set like that", host.id());
        let error = ApiError { kind: ApiErrorKind::Invalid, message, hints: faults, refusals: Vec::new() };
        return Some(AgentReply::Error { error });
    }
    match host.journal.set_limits(change, reset).await {
        Ok(()) => None,
        Err(failure) => Some(failed(&failure)),
    }
}

/// A refusal as an answer.
#[must_use]
pub fn refused(message: String, hint: &str) -> AgentReply {
    error(ApiErrorKind::Refused, message, hint)
}

fn error(kind: ApiErrorKind, message: String, hint: &str) -> AgentReply {
    let hints = if hint.is_empty() { Vec::new() } else { vec![hint.to_owned()] };
    AgentReply::Error { error: ApiError { kind, message, hints, refusals: Vec::new() } }
}

pub(crate) fn failed(failure: &dyn std::error::Error) -> AgentReply {
    let mut message = failure.to_string();
    let mut source = failure.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    error(ApiErrorKind::Failed, message, "")
}

fn done(outcome: Result<(), KeeperError>) -> AgentReply {
    outcome.map_or_else(|failure| failed(&failure), |()| AgentReply::Done)
}

impl Handler {
    /// Takes a VM on. Its keeper is there, with a record that says the VM is not here yet.
    pub async fn define(self, spec: VmSpec) -> AgentReply {
        let Some(keeper) = &self.keeper else { return self.unknown() };
        let mut faults = spec.faults();
        faults.extend(extra_arguments::check(&spec.extra_arguments).err().map(|fault| fault.to_string()));
        if let Some(job) = self.job {
            faults.push(format!("the VM is in job {job}; wait until it is over"));
        }
        if !faults.is_empty() {
            return error(ApiErrorKind::Invalid, faults.join("; "), "mend the specification and define it again");
        }
        let record = keeper.record();
        match record.ownership {
            Record::Absent { .. } => {}
            Record::Owner { .. } if record.spec == spec => return AgentReply::Done,
            _ => return refused(format!("VM {} is defined here already", spec.name), "delete it first to change it"),
        }
        if let Err(failure) = keeper.respecify(spec.clone()).await {
            return failed(&failure);
        }
        if let Err(failure) = images::make_defined(&self.host, &spec).await {
            return failed(&failure);
        }
        done(keeper.feed(Input::Create).await.map(drop))
    }

    /// Carries out any other request.
    pub async fn carry_out(self, request: AgentRequest) -> AgentReply {
        if let AgentRequest::Events { skip } = request {
            return match self.host.journal.events_page(skip, EVENTS_PAGE) {
                Ok((events, more)) => AgentReply::Events { events, more },
                Err(failure) => failed(&failure),
            };
        }
        let Some(keeper) = &self.keeper else { return self.unknown() };
        match request {
            AgentRequest::VmStart { .. } => match self.job {
                Some(job) => self.in_job(job),
                None => done(keeper.start().await),
            },
            AgentRequest::VmStop { force, timeout_seconds, .. } => match self.job {
                Some(job) => self.in_job(job),
                None => {
                    let timeout = Duration::from_secs(timeout_seconds.min(STOP_TIMEOUT_SECONDS_MAX).into());
                    done(keeper.stop(force, timeout).await)
                }
            },
            AgentRequest::VmDelete { delete_disks, .. } => self.delete(keeper, delete_disks).await,
            AgentRequest::VmConsole { vm, offset, input } => self.console(vm, offset, input).await,
            AgentRequest::VmFenced { fenced, .. } => done(keeper.feed(Input::Fenced { host: fenced }).await.map(drop)),
            AgentRequest::VmSuperseded { generation, .. } => {
                done(keeper.feed(Input::Superseded { generation }).await.map(drop))
            }
            AgentRequest::Handover { vm, job, from, message, proof } => {
                self.hand_over(keeper, vm, job, from, message, &proof).await
            }
            // These are answered by the service itself.
            AgentRequest::HostSet { .. }
            | AgentRequest::VmDefine { .. }
            | AgentRequest::VmDrop { .. }
            | AgentRequest::PlannedDrop { .. }
            | AgentRequest::ReplicaDrop { .. }
            | AgentRequest::VmTakeOver { .. }
            | AgentRequest::Events { .. }
            | AgentRequest::Inventory
            | AgentRequest::ProbeExpect { .. }
            | AgentRequest::Probe { .. } => self.unknown(),
        }
    }

    async fn delete(&self, keeper: &Keeper, delete_disks: bool) -> AgentReply {
        if let Some(job) = self.job {
            return self.in_job(job);
        }
        let record = keeper.record();
        match keeper.machine().await {
            Ok(None) => {}
            Ok(Some(_)) => return refused(format!("VM {} runs", record.spec.name), "stop it first"),
            Err(stopping) => return failed(&stopping),
        }
        let forgotten = keeper.feed(Input::Delete).await;
        if forgotten.is_ok() && delete_disks && !images::remove_all(&self.host, &record.spec).await {
            return failed(&ImageError::LeftOver { vm: record.spec.id });
        }
        done(forgotten.map(drop))
    }

    async fn console(&self, vm: VmId, offset: Option<u64>, input: Vec<u8>) -> AgentReply {
        let runtime = match self.host.runtime(vm) {
            Ok(runtime) => runtime,
            Err(failure) => return failed(&failure),
        };
        let outcome = tokio::task::spawn_blocking(move || read_console(&runtime, offset, &input)).await;
        match outcome {
            Ok(Ok(chunk)) => AgentReply::Console { chunk },
            Ok(Err(failure)) if failure.kind() == std::io::ErrorKind::NotFound => {
                refused("the VM has no console now".to_owned(), "start it first")
            }
            Ok(Err(failure)) => failed(&failure),
            Err(failure) => failed(&failure),
        }
    }

    /// A message of the handover from the job's other host.
    async fn hand_over(
        &self,
        keeper: &Keeper,
        vm: VmId,
        job: JobId,
        from: HostId,
        message: Message,
        given: &[u8],
    ) -> AgentReply {
        let plan = match self.host.journal.job(job) {
            Ok(Some(record)) => record.plan,
            Ok(None) => return refused(format!("job {job} is not known here"), ""),
            Err(failure) => return failed(&failure),
        };
        let expected = proof(&plan.token, vm, job, &from, &message).map(blake3::Hash::from_bytes);
        let proven = given.len() == blake3::OUT_LEN
            && expected.is_ok_and(|expected| blake3::Hash::from_slice(given).is_ok_and(|given| given == expected));
        if !proven || plan.vm.id != vm || !plan.involves(&from) || from == *self.host.id() {
            return refused(format!("a message about job {job} does not prove that it is from {from}"), "");
        }
        match keeper.feed(Input::Received { from: from.clone(), message }).await {
            Ok(outbound) => {
                let answer = outbound.into_iter().find(|(to, _)| *to == from).map(|(_, message)| message);
                AgentReply::Handover { message: answer }
            }
            Err(failure) => failed(&failure),
        }
    }

    fn in_job(&self, job: JobId) -> AgentReply {
        refused(format!("the VM is in job {job}"), "wait until it is over, or cancel it with `sterna job cancel`")
    }

    fn unknown(&self) -> AgentReply {
        error(ApiErrorKind::NotFound, format!("{} has no such VM", self.host.id()), "see `sterna vm list`")
    }
}

fn read_console(runtime: &RuntimeDirectory, offset: Option<u64>, input: &[u8]) -> std::io::Result<ConsoleChunk> {
    let mut log = std::fs::File::open(runtime.console_log())?;
    if !input.is_empty() {
        let mut console = UnixStream::connect(runtime.console_socket())?;
        console.set_write_timeout(Some(CONSOLE_WAIT))?;
        console.write_all(input)?;
    }
    let length = log.metadata()?.len();
    // A log that is shorter than the reader remembers was begun anew.
    let start = offset.filter(|offset| *offset <= length).unwrap_or_else(|| length.saturating_sub(CONSOLE_TAIL));
    log.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    log.take(CONSOLE_CHUNK_MAX).read_to_end(&mut bytes)?;
    Ok(ConsoleChunk { end: start + bytes.len() as u64, bytes })
}
