//! A client of the operators' API, for Rust programs: connect, ask, and have a typed answer. The command line is one such
//! program and has no other way to the fleet.
//!
//! ```text
//!   Client::jobs, migrate, kill …  ──▶ ask ──▶ connection ──NATS──▶ coordinators
//!      what the request calls for ◀── ApiReply ◀──────────────────────┘
//! ```
//!
//! There is a method for each request. After [`ClientError::TimedOut`] it is not known whether the request was carried out: look,
//! before it is made again. A move may be asked for again at will, since its id is the asker's ([`Client::migrate`]).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use sterna_coordinator::client::{Client, ClientError};
//! use sterna_shared::bus::NatsSettings;
//! use sterna_shared::job::RequestedState;
//!
//! # async fn example(settings: NatsSettings) -> Result<(), ClientError> {
//! let client = Client::connect(&settings, "night shift", Duration::from_secs(30)).await?;
//! for status in client.jobs().await? {
//!     if !status.state.is_final() {
//!         let change = client.request_state(status.job, RequestedState::Suspend, None).await?;
//!         println!("{}: {}", status.job, change.code.number());
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod connection;
mod error;
mod google;

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_shared::bus::{
    ApiReply, ApiRequest, ConsoleChunk, HostView, JobAnswer, JobChange, NatsSettings, SystemView, VmView,
};
use sterna_shared::host::LimitsChange;
use sterna_shared::id::{HostId, JobId, PlannedVmId};
use sterna_shared::job::{
    CheckReport, JobRecord, JobStatus, MoveRequest, Plan, Policy, Progress, Refusal, RequestedState, ReturnCode,
};
use sterna_shared::planned::PlannedView;
use sterna_shared::replica::ReplicaView;
use sterna_shared::time::Timestamp;
use sterna_shared::units::Bandwidth;
use sterna_shared::view::cim::{Contacts, MigrationJob, MsvmError};
use sterna_shared::view::google::Rates;
use sterna_shared::vm::VmSpec;

use connection::Connection;
pub(crate) use connection::inbox_of;
pub use error::ClientError;

pub use crate::google::Replications;
use crate::view::JobView;

/// The most servers that settings may name.
const SERVERS_MAX: usize = 16;
/// How often a list that has changed while its parts were asked for is asked for anew.
const LIST_TRIES: usize = 8;

/// A connection to the fleet. It reconnects by itself; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
    sender: String,
    timeout: Duration,
}

/// A job, with the latest of its progress while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What its events add up to.
    pub status: Box<JobStatus>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// Of a cycle that copies: bytes done a second of late.
    pub rates: Rates,
}

impl Job {
    /// The job as the feed and `sterna job show --output json` tell it.
    #[must_use]
    pub fn view(&self) -> JobView {
        JobView::new(&self.status, self.progress.as_ref())
    }
}

/// Each job with its progress, which comes apart.
fn with_progress(jobs: Vec<JobStatus>, progress: Vec<Progress>) -> Vec<Job> {
    let mut progress: BTreeMap<JobId, Progress> =
        progress.into_iter().map(|progress| (progress.job, progress)).collect();
    let job = |status: JobStatus| Job {
        progress: progress.remove(&status.job),
        status: Box::new(status),
        rates: Rates::default(),
    };
    jobs.into_iter().map(job).collect()
}

/// What a dry run has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The plan, its token blanked.
    pub plan: Box<Plan>,
    /// What a job would wait for before it began.
    pub waits_for: Vec<Refusal>,
}

/// What a request for a job's state has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct StateChange {
    /// What the method returns.
    pub code: ReturnCode,
    /// Why, where it was refused.
    pub reason: Option<String>,
    /// The job now.
    pub status: Box<JobStatus>,
}

/// Which jobs that are over are asked for: those that fit all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryQuery {
    /// This one.
    pub job: Option<JobId>,
    /// Those of this VM: its name at the time, or its id.
    pub vm: Option<String>,
    /// Those that were over then or later.
    pub since: Option<Timestamp>,
    /// Those from there on: what the page before gave as [`HistoryPage::next`].
    pub before: Option<u64>,
}

/// Some jobs that are over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPage {
    /// Those that ended last first.
    pub records: Vec<JobRecord>,
    /// Where the next page begins; none where there is no more. A page may be empty, and not the last.
    pub next: Option<u64>,
}

/// What is taken out of the answer that a request calls for; any other answer is an error.
macro_rules! answer {
    ($reply:expr, $expected:pat => $taken:expr) => {
        match $reply {
            $expected => Ok($taken),
            other => Err(ClientError::unexpected(&other)),
        }
    };
}

impl Client {
    /// Connects, and checks the broker's version. `sender` is who asks, as he calls himself; each request may take `timeout`.
    ///
    /// # Errors
    /// Those of [`ClientError`] that are about settings and the broker; each names what to do.
    pub async fn connect(settings: &NatsSettings, sender: &str, timeout: Duration) -> Result<Self, ClientError> {
        let connection = Connection::open(settings, sender).await?;
        Ok(Self { connection, sender: sender.to_owned(), timeout })
    }

    /// Who asks, as he calls himself.
    #[must_use]
    pub fn sender(&self) -> &str {
        &self.sender
    }

    /// nats-server's version.
    #[must_use]
    pub fn server_version(&self) -> String {
        self.connection.server_version()
    }

    /// Whether the server asks for TLS.
    #[must_use]
    pub fn server_demands_tls(&self) -> bool {
        self.connection.server_demands_tls()
    }

    /// Asks the coordinators anything. An answer that is an error of theirs comes as one, [`ClientError::Api`]; so it is
    /// with each method below.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask(&self, request: &ApiRequest) -> Result<ApiReply, ClientError> {
        self.ask_for(request, Duration::ZERO).await
    }

    /// Asks for something that takes `longer` than the usual time.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_for(&self, request: &ApiRequest, longer: Duration) -> Result<ApiReply, ClientError> {
        match self.connection.exchange(&self.sender, request, self.timeout.saturating_add(longer)).await? {
            ApiReply::Error { error } => Err(ClientError::Api { error }),
            reply => Ok(reply),
        }
    }

    /// Asks for a list, and for the rest of it where one answer has no room for all.
    async fn list(&self, request: ApiRequest) -> Result<ApiReply, ClientError> {
        for _ in 0..LIST_TRIES {
            let mut list = match self.ask(&request).await? {
                ApiReply::Part { list } => *list,
                whole => return Ok(whole),
            };
            // Its last is asked for again: where that is another by now, the list has changed, and something may be missing.
            while let Some(known) = list.listed().and_then(|count| count.checked_sub(1)) {
                let skip = u32::try_from(known).unwrap_or(u32::MAX);
                let (rest, is_part) = match self.ask(&ApiRequest::Rest { of: Box::new(request.clone()), skip }).await? {
                    ApiReply::Part { list } => (*list, true),
                    rest => (rest, false),
                };
                let is_more = rest.listed() > Some(1);
                if !list.go_on(rest) || (is_part && !is_more) {
                    break;
                }
                if !is_part {
                    return Ok(list);
                }
            }
        }
        Err(ClientError::Changing)
    }

    /// All hosts.
    ///
    /// # Errors
    /// As [`Self::ask`], and where the answer is of another kind; so it is with each method below.
    pub async fn hosts(&self) -> Result<Vec<HostView>, ClientError> {
        answer!(self.list(ApiRequest::HostList).await?, ApiReply::Hosts { hosts } => hosts)
    }

    /// One host.
    ///
    /// # Errors
    /// As [`Self::hosts`]; [`ClientError::NotFound`] where no host is called so.
    pub async fn host(&self, host: &HostId) -> Result<HostView, ClientError> {
        let reply = self.ask(&ApiRequest::HostShow { host: host.clone() }).await?;
        let hosts: Vec<HostView> = answer!(reply, ApiReply::Hosts { hosts } => hosts)?;
        hosts.into_iter().next().ok_or_else(|| ClientError::NotFound { what: "host", name: host.to_string() })
    }

    /// Changes what a host takes on at once, from now on; with `reset` everything that was changed before is dropped first.
    ///
    /// # Errors
    /// As [`Self::host`].
    pub async fn set_host(&self, host: &HostId, change: LimitsChange, reset: bool) -> Result<HostView, ClientError> {
        let reply = self.ask(&ApiRequest::HostSet { host: host.clone(), change, reset }).await?;
        let hosts: Vec<HostView> = answer!(reply, ApiReply::Hosts { hosts } => hosts)?;
        hosts.into_iter().next().ok_or_else(|| ClientError::NotFound { what: "host", name: host.to_string() })
    }

    /// Tells a host of a VM, which makes its disks.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn define_vm(&self, host: &HostId, spec: VmSpec) -> Result<(), ClientError> {
        self.done(&ApiRequest::VmDefine { host: host.clone(), spec: Box::new(spec) }).await
    }

    /// All VMs.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn vms(&self) -> Result<Vec<VmView>, ClientError> {
        answer!(self.list(ApiRequest::VmList).await?, ApiReply::Vms { vms } => vms)
    }

    /// One VM, by its name or id.
    ///
    /// # Errors
    /// As [`Self::hosts`]; [`ClientError::NotFound`] where no VM is called so.
    pub async fn vm(&self, vm: &str) -> Result<VmView, ClientError> {
        let reply = self.ask(&ApiRequest::VmShow { vm: vm.to_owned() }).await?;
        let vms: Vec<VmView> = answer!(reply, ApiReply::Vms { vms } => vms)?;
        vms.into_iter().next().ok_or_else(|| ClientError::NotFound { what: "VM", name: vm.to_owned() })
    }

    /// Starts a VM where it is.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn start_vm(&self, vm: &str) -> Result<(), ClientError> {
        self.done(&ApiRequest::VmStart { vm: vm.to_owned() }).await
    }

    /// Stops a VM: by ACPI, for which it has `grace_seconds`, and then by force, or by force at once.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn stop_vm(&self, vm: &str, force: bool, grace_seconds: u32) -> Result<(), ClientError> {
        let request = ApiRequest::VmStop { vm: vm.to_owned(), force, timeout_seconds: grace_seconds };
        let reply = self.ask_for(&request, Duration::from_secs(u64::from(grace_seconds))).await?;
        answer!(reply, ApiReply::Done => ())
    }

    /// Forgets a stopped VM, and its images with all they hold where `delete_disks` says so.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn delete_vm(&self, vm: &str, delete_disks: bool) -> Result<(), ClientError> {
        self.done(&ApiRequest::VmDelete { vm: vm.to_owned(), delete_disks }).await
    }

    /// Removes what moves of a VM into a host have left there when they were cut.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn drop_partial(&self, vm: &str, host: &HostId) -> Result<(), ClientError> {
        self.done(&ApiRequest::VmDrop { vm: vm.to_owned(), host: host.clone() }).await
    }

    /// A VM's serial console: its log from `offset` on, or its last 4 KiB, after `input` was typed.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn console(&self, vm: &str, offset: Option<u64>, input: Vec<u8>) -> Result<ConsoleChunk, ClientError> {
        let reply = self.ask(&ApiRequest::VmConsole { vm: vm.to_owned(), offset, input }).await?;
        answer!(reply, ApiReply::Console { chunk } => chunk)
    }

    /// Declares that a host can no longer run a VM. If it still runs it, the VM runs twice from then on, and its disks are lost.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn resolve_vm(&self, vm: &str, fenced: &HostId) -> Result<(), ClientError> {
        self.done(&ApiRequest::VmResolve { vm: vm.to_owned(), fenced: fenced.clone() }).await
    }

    /// Has `target` run a VM from a snapshot of its replica, since its host `fenced` can no longer run it. If it still does, the VM runs
    /// twice until that host is heard of. What was written since the snapshot is lost.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn fail_over(
        &self,
        vm: &str,
        fenced: &HostId,
        target: &HostId,
        snapshot: u32,
    ) -> Result<(), ClientError> {
        let (vm, fenced, target) = (vm.to_owned(), fenced.clone(), target.clone());
        self.done(&ApiRequest::VmFailover { vm, fenced, target, snapshot }).await
    }

    /// What [`Self::migrate`] would do now; nothing is changed.
    ///
    /// # Errors
    /// As [`Self::hosts`]; every reason why not is in [`ClientError::Api`].
    pub async fn plan(&self, job: JobId, request: &MoveRequest, policy: &Policy) -> Result<Draft, ClientError> {
        let reply = self.ask(&migrate_request(job, request, policy, true)).await?;
        answer!(reply, ApiReply::Plan { plan, waits_for } => Draft { plan, waits_for })
    }

    /// Moves a VM, its disks, or both. The job's id is the asker's: asking twice with one id makes one job, so that it can be
    /// asked again where it is not known whether the first was heard.
    ///
    /// # Errors
    /// As [`Self::hosts`]; every reason why not is in [`ClientError::Api`].
    pub async fn migrate(
        &self,
        job: JobId,
        request: &MoveRequest,
        policy: &Policy,
    ) -> Result<Box<JobStatus>, ClientError> {
        let reply = self.ask(&migrate_request(job, request, policy, false)).await?;
        answer!(reply, ApiReply::JobStarted { status } => status)
    }

    /// All planned VMs, by host. One is made as a move is asked for, with a request of kind
    /// [`JobKind::Stage`](sterna_shared::job::JobKind::Stage).
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn planned_vms(&self) -> Result<Vec<PlannedView>, ClientError> {
        answer!(self.list(ApiRequest::PlanList).await?, ApiReply::Planned { planned } => planned)
    }

    /// Drops a planned VM: what it holds is free again.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn drop_planned_vm(&self, planned: PlannedVmId) -> Result<(), ClientError> {
        self.done(&ApiRequest::PlanDrop { planned }).await
    }

    /// All replicas, and replications that have none yet. A replication is begun as a move is asked for, with a request of
    /// kind [`JobKind::Replicate`](sterna_shared::job::JobKind::Replicate).
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn replicas(&self) -> Result<Vec<ReplicaView>, ClientError> {
        answer!(self.list(ApiRequest::ReplicaList).await?, ApiReply::Replicas { replicas } => replicas)
    }

    /// Has a host forget the replica of a VM, and remove its files; the VM's own host what replication has put up there.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn drop_replica(&self, vm: &str, host: &HostId) -> Result<(), ClientError> {
        self.done(&ApiRequest::ReplicaDrop { vm: vm.to_owned(), host: host.clone() }).await
    }

    /// Pushes back when the replication of a VM expires, by a time of its own where none is given.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn extend(&self, vm: &str, by_seconds: Option<u32>) -> Result<Job, ClientError> {
        let reply = self.ask(&ApiRequest::ReplicaExtend { vm: vm.to_owned(), by_seconds }).await?;
        answer!(reply, ApiReply::Job { status, progress, rates } => Job { status, progress, rates })
    }

    /// Ends the replication of a VM that is cut over for good; its job is over once nothing of it is left.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn finalize(&self, vm: &str) -> Result<Job, ClientError> {
        let reply = self.ask(&ApiRequest::ReplicaFinalize { vm: vm.to_owned() }).await?;
        answer!(reply, ApiReply::Job { status, progress, rates } => Job { status, progress, rates })
    }

    /// Checks a move: finds all that speaks against it, measures, and changes nothing.
    ///
    /// # Errors
    /// As [`Self::hosts`]. That the VM cannot be moved is no error: see [`CheckReport::migratable`].
    pub async fn check(&self, request: &MoveRequest) -> Result<Box<CheckReport>, ClientError> {
        let reply = self.ask(&ApiRequest::Check { request: request.clone() }).await?;
        answer!(reply, ApiReply::Checked { report } => report)
    }

    /// All jobs, newest first.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn jobs(&self) -> Result<Vec<JobStatus>, ClientError> {
        answer!(self.list(ApiRequest::JobList).await?, ApiReply::Jobs { jobs, .. } => jobs)
    }

    /// All jobs, newest first, with how far each is. Rates are told of one job only: see [`Self::job`].
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn jobs_and_progress(&self) -> Result<Vec<Job>, ClientError> {
        let reply = self.list(ApiRequest::JobList).await?;
        answer!(reply, ApiReply::Jobs { jobs, progress } => with_progress(jobs, progress))
    }

    /// The jobs of a group, in the order in which they run, with how far each is. Rates are told of one job only.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn group(&self, group: &str) -> Result<Vec<Job>, ClientError> {
        let reply = self.list(ApiRequest::JobGroup { group: group.to_owned() }).await?;
        answer!(reply, ApiReply::Jobs { jobs, progress } => with_progress(jobs, progress))
    }

    /// A page of the records of jobs that are over, those that ended last first.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn history(&self, query: &HistoryQuery) -> Result<HistoryPage, ClientError> {
        let HistoryQuery { job, vm, since, before } = query.clone();
        let reply = self.ask(&ApiRequest::JobHistory { job, vm, since, before }).await?;
        answer!(reply, ApiReply::History { records, next } => HistoryPage { records, next })
    }

    /// One job.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn job(&self, job: JobId) -> Result<Job, ClientError> {
        let reply = self.ask(&ApiRequest::JobShow { job }).await?;
        answer!(reply, ApiReply::Job { status, progress, rates } => Job { status, progress, rates })
    }

    /// A job as CIM has it, which also says whether its hosts are heard of: hence two requests.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn migration_job(&self, job: JobId, now: Timestamp) -> Result<MigrationJob, ClientError> {
        let Job { status, progress, .. } = self.job(job).await?;
        let contacts = Contacts::of(&status.plan, &self.hosts().await?);
        Ok(MigrationJob::of(&status, progress.as_ref(), contacts, now))
    }

    /// What is wrong with a job, the main error first, as `GetErrorEx` tells it. None where nothing is.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn job_errors(&self, job: JobId) -> Result<Vec<MsvmError>, ClientError> {
        let Job { status, .. } = self.job(job).await?;
        let contacts = Contacts::of(&status.plan, &self.hosts().await?);
        Ok(MsvmError::with_contacts(&status, contacts))
    }

    /// Asks for a job's state, as `RequestStateChange` does. With a `wait` the answer comes when the state is reached, or the
    /// time is up.
    ///
    /// # Errors
    /// As [`Self::hosts`]. That the state cannot be had is no error: see [`StateChange::code`].
    pub async fn request_state(
        &self,
        job: JobId,
        requested: RequestedState,
        wait: Option<Duration>,
    ) -> Result<StateChange, ClientError> {
        let timeout_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let request = ApiRequest::JobState { job, requested: requested.number(), timeout_ms };
        state_change(self.ask_for(&request, wait.unwrap_or_default()).await?)
    }

    /// Ends a job at once, as `KillJob` does, and takes it off the list of jobs then where `delete` says so.
    ///
    /// # Errors
    /// As [`Self::request_state`].
    pub async fn kill(&self, job: JobId, delete: bool) -> Result<StateChange, ClientError> {
        state_change(self.ask(&ApiRequest::JobKill { job, delete }).await?)
    }

    /// Cancels a job: it puts everything back, which goes on after the answer.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn cancel(&self, job: JobId) -> Result<(), ClientError> {
        self.done(&ApiRequest::JobCancel { job }).await
    }

    /// Changes what may be changed of a job: all of it or nothing.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn edit(&self, job: JobId, changes: Vec<JobChange>) -> Result<(), ClientError> {
        self.done(&ApiRequest::JobEdit { job, changes }).await
    }

    /// Answers what a job waits for.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn answer(&self, job: JobId, answer: JobAnswer) -> Result<(), ClientError> {
        self.done(&ApiRequest::JobAnswer { job, answer }).await
    }

    /// Changes a job's rate limit; none lifts it.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn set_bandwidth(&self, job: JobId, bandwidth: Option<Bandwidth>) -> Result<(), ClientError> {
        self.done(&ApiRequest::JobBandwidth { job, bandwidth }).await
    }

    /// The coordinators' own state.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn system(&self) -> Result<SystemView, ClientError> {
        answer!(self.ask(&ApiRequest::SystemShow).await?, ApiReply::System { system } => system)
    }

    async fn done(&self, request: &ApiRequest) -> Result<(), ClientError> {
        answer!(self.ask(request).await?, ApiReply::Done => ())
    }
}

fn migrate_request(job: JobId, request: &MoveRequest, policy: &Policy, dry_run: bool) -> ApiRequest {
    ApiRequest::Migrate { request: request.clone(), dry_run, job, policy: Box::new(policy.clone()) }
}

fn state_change(reply: ApiReply) -> Result<StateChange, ClientError> {
    answer!(reply, ApiReply::StateRequested { code, reason, status } => StateChange { code, reason, status })
}
