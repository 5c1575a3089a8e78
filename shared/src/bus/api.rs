//! Requests and their answers: operator to coordinator.

use serde::{Deserialize, Serialize};

use crate::host::{Inventory, LimitsChange, MovesInHand, VmReport};
use crate::id::{Epoch, HostId, JobId, PlannedVmId};
use crate::job::{
    CheckReport, DiskPlacement, JobRecord, JobStatus, MoveRequest, Plan, Policy, Progress, Refusal, ReturnCode,
    Schedule,
};
use crate::planned::PlannedView;
use crate::replica::ReplicaView;
use crate::time::Timestamp;
use crate::units::Bandwidth;
use crate::view::google::{Method, Rates};
use crate::vm::VmSpec;

/// What an operator asks of the coordinators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ApiRequest {
    /// All hosts.
    HostList,
    /// One host.
    HostShow {
        /// Which.
        host: HostId,
    },
    /// Set what a host takes on at once.
    HostSet {
        /// Which.
        host: HostId,
        /// What; the rest stays as it is.
        change: LimitsChange,
        /// Whether what was set before is dropped first, so that its agent.toml holds again.
        reset: bool,
    },
    /// Tell a host of a VM, and make its disks.
    VmDefine {
        /// Where.
        host: HostId,
        /// What.
        spec: Box<VmSpec>,
    },
    /// All VMs.
    VmList,
    /// One VM, by name or id.
    VmShow {
        /// Which.
        vm: String,
    },
    /// Start a VM.
    VmStart {
        /// Which.
        vm: String,
    },
    /// Stop a VM: by ACPI, and by force when that takes too long or force is asked for.
    VmStop {
        /// Which.
        vm: String,
        /// At once.
        force: bool,
        /// How long ACPI may take, in seconds.
        timeout_seconds: u32,
    },
    /// Forget a stopped VM.
    VmDelete {
        /// Which.
        vm: String,
        /// And its images.
        delete_disks: bool,
    },
    /// Remove what moves of a VM into a host have left there when they were cut.
    VmDrop {
        /// Which: its name, or its id.
        vm: String,
        /// At which host.
        host: HostId,
    },
    /// The VM's serial console, from a position of its log on, and what to type.
    VmConsole {
        /// Which.
        vm: String,
        /// Read from this byte of the log; none for its last 4 KiB.
        offset: Option<u64>,
        /// Bytes to type.
        #[serde(with = "serde_bytes")]
        #[cfg_attr(feature = "schema", schemars(with = "Vec<u8>"))]
        input: Vec<u8>,
    },
    /// Declare that a host can no longer run a VM: resolves a handover that it was part of.
    VmResolve {
        /// Which.
        vm: String,
        /// The host that was fenced.
        fenced: HostId,
    },
    /// Have a host run a VM from a snapshot of its replica, since the VM's own host is gone: what was written since is lost.
    VmFailover {
        /// Which, by name or id.
        vm: String,
        /// Its host, which was fenced.
        fenced: HostId,
        /// The host that has the replica.
        target: HostId,
        /// The snapshot.
        snapshot: u32,
    },
    /// Move a VM.
    Migrate {
        /// The wish.
        request: MoveRequest,
        /// Plan and check only.
        dry_run: bool,
        /// A job id chosen by the asker: asking twice with one id makes one job.
        job: JobId,
        /// How the job is to be treated.
        #[serde(default)]
        policy: Box<Policy>,
    },
    /// Check a move: find all that speaks against it, measure, and change nothing.
    Check {
        /// The wish.
        request: MoveRequest,
    },
    /// All planned VMs.
    PlanList,
    /// Drop a planned VM: what it holds is free again.
    PlanDrop {
        /// Which.
        planned: PlannedVmId,
    },
    /// All replicas, and replications that have none yet.
    ReplicaList,
    /// Have a host forget the replica of a VM, and remove its files; or what replication has put up at the VM's own host.
    ReplicaDrop {
        /// The replicated VM, by name or id.
        vm: String,
        /// At which host.
        host: HostId,
    },
    /// Push back when the replication of a VM expires.
    ReplicaExtend {
        /// The replicated VM, by name or id.
        vm: String,
        /// By how long, in seconds; [`EXTENSION_DEFAULT_SECONDS`](crate::job::EXTENSION_DEFAULT_SECONDS) where it is left out.
        by_seconds: Option<u32>,
    },
    /// End the replication of a VM that is cut over for good: its replica goes, and the way back of the cutover.
    ReplicaFinalize {
        /// The replicated VM, by name or id.
        vm: String,
    },
    /// All jobs, newest first.
    JobList,
    /// What of a list had no room in [a part](ApiReply::Part) of it.
    Rest {
        /// The request for the list.
        of: Box<ApiRequest>,
        /// So many of it are known.
        skip: u32,
    },
    /// One job.
    JobShow {
        /// Which.
        job: JobId,
    },
    /// The jobs of a group, in the order in which they run.
    JobGroup {
        /// Its name.
        group: String,
    },
    /// A page of the records of jobs that are over, those that ended last first.
    JobHistory {
        /// Of this job only.
        job: Option<JobId>,
        /// Of jobs of this VM only: its name at the time, or its id.
        vm: Option<String>,
        /// Of jobs only that were over then or later.
        since: Option<Timestamp>,
        /// Go on there: what the page before gave as `next`.
        before: Option<u64>,
    },
    /// Cancel a job.
    JobCancel {
        /// Which.
        job: JobId,
    },
    /// Ask for a job's state: `RequestStateChange`.
    JobState {
        /// Which.
        job: JobId,
        /// The state's number ([`RequestedState`](crate::job::RequestedState)).
        requested: u16,
        /// How long the answer may wait for the state to be reached, in milliseconds; none, or 0, for an answer at once.
        timeout_ms: Option<u64>,
    },
    /// End a job at once: `KillJob`.
    JobKill {
        /// Which.
        job: JobId,
        /// Whether it goes from the list of jobs then, whatever its policy says.
        delete: bool,
    },
    /// Change what may be changed of a job: all of it or nothing.
    JobEdit {
        /// Which.
        job: JobId,
        /// What, in order.
        changes: Vec<JobChange>,
    },
    /// Answer what a job waits for.
    JobAnswer {
        /// Which.
        job: JobId,
        /// What to do.
        answer: JobAnswer,
    },
    /// Change a job's rate limit.
    JobBandwidth {
        /// Which.
        job: JobId,
        /// The new limit; none lifts it.
        bandwidth: Option<Bandwidth>,
    },
    /// A method of Google's Migrate to VMs. On its subject the method's request is also taken by itself, as JSON without an envelope,
    /// and answered so.
    Google {
        /// Which.
        method: Method,
        /// The method's request, in JSON.
        body: String,
        /// The id of the job that comes of it, if any, where the body has no `requestId`.
        job: JobId,
    },
    /// The coordinators' own state.
    SystemShow,
}

impl ApiRequest {
    /// The resource and the verb its subject names.
    #[must_use]
    pub fn subject_tokens(&self) -> (&'static str, &'static str) {
        match self {
            Self::HostList => ("host", "list"),
            Self::HostShow { .. } => ("host", "show"),
            Self::HostSet { .. } => ("host", "set"),
            Self::VmDefine { .. } => ("vm", "define"),
            Self::VmList => ("vm", "list"),
            Self::VmShow { .. } => ("vm", "show"),
            Self::VmStart { .. } => ("vm", "start"),
            Self::VmStop { .. } => ("vm", "stop"),
            Self::VmDelete { .. } => ("vm", "delete"),
            Self::VmDrop { .. } => ("vm", "drop"),
            Self::VmConsole { .. } => ("vm", "console"),
            Self::VmResolve { .. } => ("vm", "resolve"),
            Self::VmFailover { .. } => ("vm", "failover"),
            Self::Migrate { .. } => ("job", "migrate"),
            Self::Check { .. } => ("job", "check"),
            Self::PlanList => ("plan", "list"),
            Self::PlanDrop { .. } => ("plan", "drop"),
            Self::ReplicaList => ("replica", "list"),
            Self::ReplicaDrop { .. } => ("replica", "drop"),
            Self::ReplicaExtend { .. } => ("replica", "extend"),
            Self::ReplicaFinalize { .. } => ("replica", "finalize"),
            Self::Rest { of, .. } => of.subject_tokens(),
            Self::JobList => ("job", "list"),
            Self::JobShow { .. } => ("job", "show"),
            Self::JobGroup { .. } => ("job", "group"),
            Self::JobHistory { .. } => ("job", "history"),
            Self::JobCancel { .. } => ("job", "cancel"),
            Self::JobState { .. } => ("job", "state"),
            Self::JobKill { .. } => ("job", "kill"),
            Self::JobEdit { .. } => ("job", "edit"),
            Self::JobAnswer { .. } => ("job", "answer"),
            Self::JobBandwidth { .. } => ("job", "bandwidth"),
            Self::Google { method, .. } => method.tokens(),
            Self::SystemShow => ("system", "show"),
        }
    }
}

/// A change of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobChange {
    /// A property of `Msvm_MigrationJob`, by its name.
    Property {
        /// The name.
        name: String,
        /// The value as text; none in it is CIM's NULL.
        value: String,
    },
    /// A label.
    Label {
        /// Its key.
        key: String,
        /// Its value; none for it to go.
        value: Option<String>,
    },
    /// The group that it is part of.
    Group {
        /// Its name; none for no group.
        group: Option<String>,
    },
    /// When it runs.
    Schedule {
        /// None for as soon as its hosts have a slot.
        schedule: Option<Box<Schedule>>,
    },
}

/// What an operator says to a job that waits for a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobAnswer {
    /// Try again as it was planned.
    Retry,
    /// Try again with some disks in other pools.
    Place {
        /// Which, and where.
        disks: Vec<DiskPlacement>,
    },
    /// The target is out of action for good: the source takes the VM back.
    Fenced,
}

/// What the coordinators answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ApiReply {
    /// Hosts.
    Hosts {
        /// By name.
        hosts: Vec<HostView>,
    },
    /// VMs.
    Vms {
        /// By name.
        vms: Vec<VmView>,
    },
    /// Done.
    Done,
    /// Part of a console.
    Console {
        /// What was read.
        chunk: ConsoleChunk,
    },
    /// The plan that a dry run came to.
    Plan {
        /// Token blanked.
        plan: Box<Plan>,
        /// What a job would wait for before it began.
        #[serde(default)]
        waits_for: Vec<Refusal>,
    },
    /// What came of a check.
    Checked {
        /// Findings, measurements and forecast.
        report: Box<CheckReport>,
    },
    /// Planned VMs.
    Planned {
        /// By host, then in the order in which they were made.
        planned: Vec<PlannedView>,
    },
    /// Replicas, and replications that have none yet.
    Replicas {
        /// By the VM's name, then by host.
        replicas: Vec<ReplicaView>,
    },
    /// A job was made, or existed under that id.
    JobStarted {
        /// Its status now.
        status: Box<JobStatus>,
    },
    /// What came of a request for a state.
    StateRequested {
        /// What the method returns.
        code: ReturnCode,
        /// Why, where it was refused.
        reason: Option<String>,
        /// The job now.
        status: Box<JobStatus>,
    },
    /// Jobs.
    Jobs {
        /// Newest first; of a group, in the order in which they run.
        jobs: Vec<JobStatus>,
        /// The latest progress of those that have some, each with its job's id; a coordinator of before tells none.
        #[serde(default)]
        progress: Vec<Progress>,
    },
    /// The beginning of a list that is too long for one message; [`ApiRequest::Rest`] has more of it.
    Part {
        /// So much of it as there was room for.
        list: Box<ApiReply>,
    },
    /// One job.
    Job {
        /// Its status.
        status: Box<JobStatus>,
        /// The latest progress, while it runs.
        progress: Option<Progress>,
        /// Of a cycle that copies: bytes done a second of late.
        #[serde(default)]
        rates: Rates,
    },
    /// Records of jobs that are over.
    History {
        /// Those that ended last first.
        records: Vec<JobRecord>,
        /// Where the next page begins; none where there is no more. A page may be empty, and not the last.
        next: Option<u64>,
    },
    /// What a method of Google's returns.
    Google {
        /// In JSON.
        body: String,
        /// What of the request was left aside, and why.
        warnings: Vec<String>,
    },
    /// The coordinators.
    System {
        /// As they are.
        system: SystemView,
    },
    /// It cannot be done.
    Error {
        /// Why.
        error: ApiError,
    },
}

impl ApiReply {
    /// How many a list has; none where it is no list.
    #[must_use]
    pub fn listed(&self) -> Option<usize> {
        Some(match self {
            Self::Hosts { hosts } => hosts.len(),
            Self::Vms { vms } => vms.len(),
            Self::Planned { planned } => planned.len(),
            Self::Replicas { replicas } => replicas.len(),
            Self::Jobs { jobs, .. } => jobs.len(),
            _ => return None,
        })
    }

    /// Leaves all of a list out but these of it.
    pub fn keep(&mut self, range: std::ops::Range<usize>) {
        fn keep<T>(list: &mut Vec<T>, range: std::ops::Range<usize>) {
            list.truncate(range.end);
            list.drain(..range.start.min(list.len()));
        }
        match self {
            Self::Hosts { hosts } => keep(hosts, range),
            Self::Vms { vms } => keep(vms, range),
            Self::Planned { planned } => keep(planned, range),
            Self::Replicas { replicas } => keep(replicas, range),
            Self::Jobs { jobs, progress } => {
                keep(jobs, range);
                progress.retain(|progress| jobs.iter().any(|status| status.job == progress.job));
            }
            _ => {}
        }
    }

    /// Adds to a list what comes after it, which begins with its last. Whether it does: a list may have changed meanwhile.
    pub fn go_on(&mut self, rest: Self) -> bool {
        fn go_on<T, K: PartialEq>(list: &mut Vec<T>, rest: Vec<T>, key: impl Fn(&T) -> K) -> bool {
            let follows = list.last().map(&key) == rest.first().map(&key);
            list.extend(rest.into_iter().skip(1).filter(|_| follows));
            follows
        }
        match (self, rest) {
            (Self::Hosts { hosts }, Self::Hosts { hosts: rest }) => {
                go_on(hosts, rest, |view| view.inventory.host.clone())
            }
            (Self::Vms { vms }, Self::Vms { vms: rest }) => go_on(vms, rest, |view| view.report.id()),
            (Self::Planned { planned }, Self::Planned { planned: rest }) => {
                go_on(planned, rest, |view| view.planned.id)
            }
            (Self::Replicas { replicas }, Self::Replicas { replicas: rest }) => {
                go_on(replicas, rest, |view| (view.vm, view.host.clone()))
            }
            (Self::Jobs { jobs, progress }, Self::Jobs { jobs: rest, progress: more }) => {
                progress.extend(more);
                go_on(jobs, rest, |status| status.job)
            }
            _ => false,
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ApiError {
    /// Its kind, which sets the exit code.
    pub kind: ApiErrorKind,
    /// What, naming the thing.
    pub message: String,
    /// What to do next.
    pub hints: Vec<String>,
    /// Every reason, where a plan was refused.
    pub refusals: Vec<Refusal>,
}

/// Kinds of error, each with an exit code of its own (docs/operations.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ApiErrorKind {
    /// The request makes no sense.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// It cannot be done now, for reasons that are all given.
    Refused,
    /// Who must do it cannot be reached.
    Unreachable,
    /// It was tried and failed.
    Failed,
}

/// A host, as the coordinators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostView {
    /// What its agent last said.
    pub inventory: Inventory,
    /// Whether it was heard of lately.
    pub online: bool,
    /// When it was last heard of, by the coordinator's clock.
    pub heard_at: Timestamp,
    /// The moves that it has in hand. They are counted when an operator asks, and zero in what is kept.
    #[serde(default)]
    pub moves: MovesInHand,
}

/// A VM, as the coordinators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmView {
    /// The host that owns it; where none does, one that has a record of it.
    pub host: HostId,
    /// What that host says.
    pub report: VmReport,
}

/// Part of a console's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConsoleChunk {
    /// Where in the log the bytes end: the next offset to ask for.
    pub end: u64,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<u8>"))]
    pub bytes: Vec<u8>,
}

/// The coordinators' own state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SystemView {
    /// The answering coordinator's name.
    pub coordinator: String,
    /// Its version.
    pub version: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// nats-server's version.
    pub nats_version: String,
    /// The coordinator's clock.
    pub now: Timestamp,
}
