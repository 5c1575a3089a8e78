//! A plan: a request, wholly decided. The agents that carry it out have no choices left to make.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{JobKind, MoveSettings, StepKind};
use crate::id::{Generation, HostId, JobId, PlannedVmId, Token};
use crate::replica::{CloneOf, CutoverOf, Retention};
use crate::time::Timestamp;
use crate::units::{Bandwidth, ByteCount};
use crate::vm::{DiskSpec, VmSpec};

/// How long a guest that may stand still for as long as it takes does so before the move is given up after all.
const PATIENCE_MAX: Duration = Duration::from_secs(3600);

/// What is to be done, by whom, to what. Immutable: a changed wish is a new plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Plan {
    /// The job.
    pub job: JobId,
    /// When it was planned.
    pub planned_at: Timestamp,
    /// How often the job was begun before: a suspended one goes on with a new plan, and agents tell by this number which of
    /// two is the newer.
    #[serde(default)]
    pub attempt: u32,
    /// What is done about the VM.
    #[serde(default)]
    pub kind: JobKind,
    /// How it moves.
    pub mode: MoveMode,
    /// The VM as it is at the source.
    pub vm: VmSpec,
    /// The VM as it will be: the same, with each disk's pool and format at the target.
    pub vm_at_target: VmSpec,
    /// The host that has the VM, and leads.
    pub source: Host,
    /// The host that will have it. The same as the source in [`MoveMode::Storage`].
    pub target: Host,
    /// The disks whose content is copied.
    pub disks: Vec<DiskMove>,
    /// The generation under which the source owns the VM now.
    pub generation: Generation,
    /// What admits the source's lanes at the target.
    pub token: Token,
    /// Data lanes of the session.
    pub lanes: u8,
    /// The rate limit, if any.
    pub bandwidth: Option<Bandwidth>,
    /// The longest blackout before the move gives up, in milliseconds.
    pub blackout_max_ms: u32,
    /// How it is carried out beside that.
    #[serde(default)]
    pub settings: MoveSettings,
    /// The planned VM that the job makes, or that a move uses, if any.
    #[serde(default)]
    pub planned: Option<PlannedVmId>,
    /// How long the planned VM is held that the job makes, in seconds.
    #[serde(default)]
    pub hold_seconds: Option<u32>,
    /// Of a replication: which snapshots the target keeps.
    #[serde(default)]
    pub retention: Option<Retention>,
    /// Of a clone and of a rehearsal: what it is made from. `vm` is then the clone itself, and both hosts are the one that it is made at.
    #[serde(default)]
    pub clone: Option<CloneOf>,
    /// Of a cutover: what the target begins with, and for how long the way back is kept.
    #[serde(default)]
    pub cutover: Option<CutoverOf>,
    /// What will be done, in order.
    pub steps: Vec<StepKind>,
}

/// How a VM moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum MoveMode {
    /// The guest runs at the source until the blackout, then at the target.
    Live,
    /// The guest is stopped before, during and after.
    Cold,
    /// The guest stays, running or stopped; disks change pool or format under it.
    Storage,
}

/// A host that takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Host {
    /// Its id, which its certificate must carry.
    pub id: HostId,
    /// Where its data-plane port is reached, best first.
    pub addresses: Vec<SocketAddr>,
}

/// A disk whose content is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskMove {
    /// As it is.
    pub source: DiskSpec,
    /// As it will be.
    pub target: DiskSpec,
}

impl Plan {
    /// The steps of a job: the one place that fixes their order.
    #[must_use]
    pub fn steps_of(kind: JobKind, mode: MoveMode, copies_disks: bool) -> Vec<StepKind> {
        use StepKind::{
            AdaptOs, Check, CloneDisks, Commit, CopyDisks, CopyMemory, Handover, Instantiate, Prepare, Probe, Prove,
            ReadDisks, Release, ShutDown, Switchover,
        };
        let all: &[StepKind] = match (kind, mode) {
            (JobKind::Check, _) => &[Check],
            (JobKind::DeepCheck, _) => &[ReadDisks, Check],
            (JobKind::Stage, _) => &[Prepare],
            (JobKind::Replicate, _) => &[Prepare, CopyDisks, Commit],
            (JobKind::Clone, _) => &[CloneDisks, AdaptOs, Instantiate],
            (JobKind::Rehearse, _) => &[CloneDisks, AdaptOs, Instantiate, Probe],
            (JobKind::Verify, _) => &[ReadDisks],
            (JobKind::Move | JobKind::Cutover, MoveMode::Live) => {
                &[Prepare, CopyDisks, CopyMemory, Switchover, Prove, Handover, Release]
            }
            (JobKind::Cutover, MoveMode::Cold) => &[Prepare, CopyDisks, ShutDown, Switchover, Prove, Handover, Release],
            (JobKind::Move, MoveMode::Cold) => &[Prepare, CopyDisks, Prove, Handover, Release],
            (JobKind::Move | JobKind::Cutover, MoveMode::Storage) => &[Prepare, CopyDisks, Switchover, Prove, Release],
        };
        all.iter().copied().filter(|step| copies_disks || !matches!(step, CopyDisks | Prove)).collect()
    }

    /// Whether the VM, or its disks, move. Only then does the job take slots of its hosts.
    #[must_use]
    pub fn moves(&self) -> bool {
        matches!(self.kind, JobKind::Move | JobKind::Cutover)
    }

    /// The hosts whose agents have a part in it, each once, in the order in which they are told. None of a check, which the
    /// coordinator makes; of a deep one that which has the disks; of a planned VM, of a clone and of a rehearsal that which will have it; where a
    /// replica is verified, that which has it.
    #[must_use]
    pub fn parties(&self) -> Vec<&HostId> {
        match self.kind {
            JobKind::Check => Vec::new(),
            JobKind::DeepCheck => vec![&self.source.id],
            JobKind::Stage | JobKind::Clone | JobKind::Rehearse | JobKind::Verify => vec![&self.target.id],
            // The target comes first: it has the plan when the source, which leads, comes.
            JobKind::Move | JobKind::Replicate | JobKind::Cutover if self.source.id != self.target.id => {
                vec![&self.target.id, &self.source.id]
            }
            JobKind::Move | JobKind::Replicate | JobKind::Cutover => vec![&self.source.id],
        }
    }

    /// The host that leads: the job is in its hands, and its agent speaks for it. None of a check, which the coordinator makes.
    #[must_use]
    pub fn leader(&self) -> Option<&HostId> {
        self.parties().pop()
    }

    /// Whether this host has a part in it.
    #[must_use]
    pub fn involves(&self, host: &HostId) -> bool {
        self.parties().contains(&host)
    }

    /// How long the guest may stand still before the move is given up.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match self.settings.exceed_blackout {
            true => PATIENCE_MAX,
            false => Duration::from_millis(self.blackout_max_ms.into()),
        }
    }

    /// Memory that is copied: none unless live.
    #[must_use]
    pub fn memory_bytes(&self) -> ByteCount {
        if self.mode == MoveMode::Live { self.vm.memory } else { ByteCount(0) }
    }

    /// What the disks to be copied hold at most.
    #[must_use]
    pub fn disk_bytes(&self) -> ByteCount {
        self.disks.iter().fold(ByteCount(0), |sum, disk| sum.plus(disk.source.size))
    }
}
