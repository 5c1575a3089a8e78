//! Requests and their answers: coordinator to agent.

use serde::{Deserialize, Serialize};

use super::{ApiError, ConsoleChunk};
use crate::host::{Inventory, LimitsChange};
use crate::id::{Generation, HostId, JobId, PlannedVmId, Token, VmId};
use crate::job::Event;
use crate::ownership::Message;
use crate::probe::{ProbePeer, ProbeReport};
use crate::vm::VmSpec;

/// What an agent is asked, over request and reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentRequest {
    /// Take a VM on, and make its disks.
    VmDefine {
        /// What.
        spec: Box<VmSpec>,
    },
    /// Start it.
    VmStart {
        /// Which.
        vm: VmId,
    },
    /// Stop it.
    VmStop {
        /// Which.
        vm: VmId,
        /// At once.
        force: bool,
        /// How long ACPI may take, in seconds.
        timeout_seconds: u32,
    },
    /// Forget it.
    VmDelete {
        /// Which.
        vm: VmId,
        /// And its images.
        delete_disks: bool,
    },
    /// Remove what moves of it into this host have left when they were cut.
    VmDrop {
        /// Which.
        vm: VmId,
    },
    /// Forget the replica of a VM, and remove its files, or what replication has put up at the VM's own host.
    ReplicaDrop {
        /// The replicated VM.
        vm: VmId,
    },
    /// Drop a planned VM.
    PlannedDrop {
        /// Which.
        planned: PlannedVmId,
    },
    /// Its console.
    VmConsole {
        /// Which.
        vm: VmId,
        /// Read from this byte of the log; none for its last 4 KiB.
        offset: Option<u64>,
        /// Bytes to type.
        #[serde(with = "serde_bytes")]
        input: Vec<u8>,
    },
    /// An operator's word that a host can no longer run the VM.
    VmFenced {
        /// Which.
        vm: VmId,
        /// The host that was fenced.
        fenced: HostId,
    },
    /// Another host owns the VM in a later generation: what this host's journal says of it is over. For a host that comes back
    /// after it was fenced.
    VmSuperseded {
        /// Which.
        vm: VmId,
        /// That generation.
        generation: Generation,
    },
    /// An operator's word that the VM's host can no longer run it: this one, which has its replica, is to.
    VmTakeOver {
        /// The replicated VM.
        vm: VmId,
        /// The snapshot that it is started from.
        snapshot: u32,
        /// It runs as a generation above this one.
        above: Generation,
    },
    /// Set what the host takes on at once. The answer is the inventory.
    HostSet {
        /// What; the rest stays as it is.
        change: LimitsChange,
        /// Whether what was set before is dropped first, so that agent.toml holds again.
        reset: bool,
    },
    /// A message of the handover, where the lanes cannot carry it.
    Handover {
        /// Which VM.
        vm: VmId,
        /// The job it belongs to.
        job: JobId,
        /// The host that sends it.
        from: HostId,
        /// What it says.
        message: Message,
        /// BLAKE3 of the other fields, keyed with the job's token: only the plan's two hosts can make it.
        #[serde(with = "serde_bytes")]
        proof: Vec<u8>,
    },
    /// All events of the agent's journal, for a coordinator that has lost its own: from this position on.
    Events {
        /// Skip that many.
        skip: u64,
    },
    /// The inventory, now.
    Inventory,
    /// Admit one probe of another host within the next seconds. Asked again it changes nothing; an agent that starts anew
    /// has forgotten it.
    ProbeExpect {
        /// The probe's id.
        job: JobId,
        /// The host that it comes from.
        source: HostId,
        /// What it must present.
        token: Token,
    },
    /// Measure what the checks of a move need; see [`crate::probe`]. Changes nothing, and takes little longer than
    /// `time_ms`, but for a QEMU before 8.2, which takes a second.
    Probe {
        /// The VM to measure the guest of, if any.
        vm: Option<VmId>,
        /// The host to measure the way to, if any. It must have been told by [`AgentRequest::ProbeExpect`].
        peer: Option<ProbePeer>,
        /// How long each measurement may take, in milliseconds; held to
        /// [`PROBE_TIME_MS_MIN`](crate::probe::PROBE_TIME_MS_MIN) and
        /// [`PROBE_TIME_MS_MAX`](crate::probe::PROBE_TIME_MS_MAX).
        time_ms: u32,
    },
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AgentReply {
    /// Done.
    Done,
    /// Part of a console.
    Console {
        /// What was read.
        chunk: ConsoleChunk,
    },
    /// The answer to a message of the handover, where there is one.
    Handover {
        /// What it says.
        message: Option<Message>,
    },
    /// Events.
    Events {
        /// In order.
        events: Vec<Event>,
        /// Whether there are more behind these.
        more: bool,
    },
    /// The inventory.
    Inventory {
        /// As it is.
        inventory: Box<Inventory>,
    },
    /// What a probe has measured.
    Probed {
        /// The measurements, or why there are none.
        report: Box<ProbeReport>,
    },
    /// It cannot be done.
    Error {
        /// Why.
        error: ApiError,
    },
}
