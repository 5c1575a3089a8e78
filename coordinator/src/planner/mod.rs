//! Planning: a wish and what is known of the fleet become a plan, or every reason why not.
//!
//! ```text
//!   MoveRequest ─┐
//!   Fleet ───────┼─▶ Case ──▶ CHECKS (all of them, always) ──▶ no refusal: Plan
//!   jobs in hand ┤                                         └─▶ else: Vec<Refusal>, each with a remedy
//!   Seeds ───────┘
//! ```
//!
//! A replication has a list of checks of its own; so have a clone and a rehearsal, which are planned on a replica and not on a VM.
//!
//! Pure: no clock, no randomness, no I/O; the same input gives the same plan. Checks do not depend on one another: one
//! that lacks what it would look at (the target is unknown, say) says nothing, because another says why. That is what
//! lets an operator mend everything in one go. An inventory is a few seconds old when it is read here, so the agents
//! check again what they reserve.

mod check;
mod clone;
mod cpu;
mod cutover;
#[cfg(test)]
pub(crate) mod example;
mod placement;
mod planned;
mod replica;
mod replicate;
mod settings;
mod slots;
#[cfg(test)]
mod tests;
mod verify;

pub use clone::replica_cannot_run;

use sterna_shared::host::{VmReport, VmState};
use sterna_shared::id::{JobId, PlannedVmId, Token};
use sterna_shared::job::{Host, JobKind, JobStatus, ModeWish, MoveMode, MoveRequest, Plan, Refusal, RefusalCode};
use sterna_shared::planned::HOLD_DEFAULT_SECONDS;
use sterna_shared::time::Timestamp;

use crate::fleet::{FindError, Fleet, Member};

pub use cutover::target as cutover_target;
pub use slots::in_hand;

/// Lanes of a session where the request names no number.
pub const LANES_DEFAULT: u8 = 4;
/// The most lanes of a session, whatever the hosts allow.
pub const LANES_MAX: u8 = 16;
/// The longest blackout where the request names none, in milliseconds.
pub const BLACKOUT_DEFAULT_MS: u32 = 2_000;
/// The shortest blackout limit that a request may name, in milliseconds: below it no handover can finish.
pub const BLACKOUT_MIN_MS: u32 = 10;
/// The longest blackout limit that a request may name, in milliseconds.
pub const BLACKOUT_MAX_MS: u32 = 600_000;
/// The lowest rate limit, in bytes a second: below it the protocol's own traffic would not fit.
pub const BANDWIDTH_MIN: u64 = 64 << 10;

/// What a plan needs and no pure function can make.
#[derive(Debug, Clone)]
pub struct Seeds {
    /// The job's id.
    pub job: JobId,
    /// Drawn from a secure source.
    pub token: Token,
    /// How often the job was begun before.
    pub attempt: u32,
    /// The coordinator's wall clock, which certificates are held against.
    pub now: Timestamp,
}

/// Decides a request. `jobs` are those that hold their VMs, and whose plans take slots of hosts; the request's own is left
/// out.
///
/// # Errors
/// Every reason why it cannot be done now, in the order of `check::CHECKS`; never an empty list.
pub fn plan<'a>(
    fleet: &'a Fleet,
    jobs: impl IntoIterator<Item = &'a JobStatus>,
    request: &'a MoveRequest,
    seeds: Seeds,
) -> Result<Plan, Vec<Refusal>> {
    let Draft { plan, refusals } = draft(fleet, jobs, request, seeds);
    if refusals.is_empty() {
        // Where every check passed, source, target and VM are known; a missing one would be a fault of the checks.
        plan.ok_or_else(|| vec![check::incomplete()])
    } else {
        Err(refusals)
    }
}

/// What a request would come to, and all that speaks against it now.
#[derive(Debug)]
pub struct Draft {
    /// The plan; none where VM, source or target are not known.
    pub plan: Option<Plan>,
    /// Every reason why it cannot be carried out now.
    pub refusals: Vec<Refusal>,
}

/// As [`plan`], with both.
pub fn draft<'a>(
    fleet: &'a Fleet,
    jobs: impl IntoIterator<Item = &'a JobStatus>,
    request: &'a MoveRequest,
    seeds: Seeds,
) -> Draft {
    if matches!(request.kind, JobKind::Clone | JobKind::Rehearse) {
        return clone::draft(fleet, jobs, request, seeds);
    }
    if request.kind == JobKind::Verify {
        return verify::draft(fleet, jobs, request, seeds);
    }
    let case = Case::new(fleet, jobs, request, &seeds);
    let mut refusals = Vec::new();
    for check in if case.replicates() { replicate::CHECKS } else { check::CHECKS } {
        check(&case, &mut refusals);
    }
    for check in if request.kind == JobKind::Cutover { cutover::CHECKS } else { &[] } {
        check(&case, &mut refusals);
    }
    Draft { plan: case.decide(seeds), refusals }
}

/// Whether a reason goes away by itself, when other jobs are over: a job waits for it.
#[must_use]
pub const fn passes(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::HostBusy)
}

/// A request laid beside what is known; what is not known is absent here and refused by the check it belongs to.
struct Case<'a> {
    request: &'a MoveRequest,
    fleet: &'a Fleet,
    /// Jobs that are not over and change something: only these hold VMs and take slots.
    jobs: Vec<&'a JobStatus>,
    now: Timestamp,
    /// The job that it is about: what this one holds is no hindrance to it.
    job: JobId,
    /// The VM asked for, or why there is none.
    found: Result<(&'a Member, &'a VmReport), FindError>,
}

impl<'a> Case<'a> {
    fn new(
        fleet: &'a Fleet,
        jobs: impl IntoIterator<Item = &'a JobStatus>,
        request: &'a MoveRequest,
        seeds: &Seeds,
    ) -> Self {
        let found = fleet.find(&request.vm);
        // Where the VM's replica is read through, its host takes no other job of the VM.
        let replica = found.as_ref().ok().map(|(_, report)| report.id()).zip(request.target.as_ref());
        let counts = |status: &&JobStatus| {
            let holds = status.plan.kind.holds_vm() || replica.is_some_and(|(vm, host)| status.holds_replica(vm, host));
            !status.state.is_final() && status.job != seeds.job && holds
        };
        let jobs = jobs.into_iter().filter(counts).collect();
        Self { request, fleet, jobs, now: seeds.now, job: seeds.job, found }
    }

    fn vm(&self) -> Option<&'a VmReport> {
        self.found.as_ref().ok().map(|(_, report)| *report)
    }

    fn source(&self) -> Option<&'a Member> {
        self.found.as_ref().ok().map(|(member, _)| *member)
    }

    /// The host that will have the VM; the source itself for a storage move.
    fn target(&self) -> Option<&'a Member> {
        if self.request.storage_only { self.source() } else { self.fleet.host(self.request.target.as_ref()?) }
    }

    /// Source and target, where both are known and differ: what a move between hosts is checked on.
    fn hosts(&self) -> Option<(&'a Member, &'a Member)> {
        let (source, target) = (self.source()?, self.target()?);
        (source.inventory.host != target.inventory.host).then_some((source, target))
    }

    /// How the VM would move, as far as its state tells. Where it is replicated nothing of its memory moves: the guest
    /// runs on, or it is stopped.
    fn mode(&self) -> Option<MoveMode> {
        let state = self.vm()?.state;
        if self.replicates() {
            return Some(MoveMode::Cold);
        }
        let live = match self.request.mode {
            ModeWish::Live => true,
            ModeWish::Cold => false,
            ModeWish::Auto => state != VmState::Stopped,
        };
        let mode = if live { MoveMode::Live } else { MoveMode::Cold };
        Some(if self.request.storage_only { MoveMode::Storage } else { mode })
    }

    /// Whether a planned VM is to be made, and nothing is moved.
    fn stages(&self) -> bool {
        self.request.kind == JobKind::Stage
    }

    /// Whether its disks are replicated, and the VM stays.
    fn replicates(&self) -> bool {
        self.request.kind == JobKind::Replicate
    }

    /// Whether the guest will execute at the target: only then memory and the processor matter.
    fn runs_at_target(&self) -> bool {
        self.mode() == Some(MoveMode::Live)
    }

    /// Whether the guest is shut down in the course of it, and starts at the target: then memory matters too.
    fn boots_at_target(&self) -> bool {
        cutover::shuts_down(self)
    }

    fn lanes_max(&self) -> u8 {
        let of = |member: Option<&Member>| member.map_or(LANES_MAX, |member| member.inventory.limits.lanes_max);
        LANES_MAX.min(of(self.source())).min(of(self.target()))
    }

    fn decide(&self, seeds: Seeds) -> Option<Plan> {
        let (vm, source, target, mode) = (self.vm()?, self.source()?, self.target()?, self.mode()?);
        let stages = self.stages();
        let placed = placement::placed(self);
        let mut vm_at_target = vm.spec.clone();
        vm_at_target.disks = placed.iter().map(|disk| disk.target.clone()).collect();
        let disks: Vec<_> = placed.into_iter().filter(|disk| disk.copied).map(placement::Placed::into_move).collect();
        let host =
            |member: &Member| Host { id: member.inventory.host.clone(), addresses: member.inventory.addresses.clone() };
        let mut target = host(target);
        let chosen = &self.request.settings.addresses;
        if !chosen.is_empty() {
            target.addresses = chosen
                .iter()
                .flat_map(|ip| target.addresses.iter().filter(move |at| at.ip() == *ip))
                .copied()
                .collect();
        }
        Some(Plan {
            job: seeds.job,
            planned_at: seeds.now,
            attempt: seeds.attempt,
            kind: self.request.kind,
            mode,
            steps: cutover::steps(self, mode, !disks.is_empty()),
            vm: vm.spec.clone(),
            vm_at_target,
            source: host(source),
            target,
            disks,
            generation: vm.generation,
            token: seeds.token,
            lanes: self.request.lanes.unwrap_or(LANES_DEFAULT.min(self.lanes_max())),
            bandwidth: self.request.bandwidth,
            blackout_max_ms: self.request.blackout_max_ms.unwrap_or(BLACKOUT_DEFAULT_MS),
            settings: self.request.settings.clone(),
            // The one that is made has the job's UUID: what makes it twice makes one.
            planned: match stages {
                true => Some(PlannedVmId::from_uuid(seeds.job.uuid())),
                false => planned::used(self).map(|planned| planned.id),
            },
            hold_seconds: stages.then(|| self.request.hold_seconds.unwrap_or(HOLD_DEFAULT_SECONDS)),
            retention: self.replicates().then(|| self.request.replication.clone().unwrap_or_default().retention),
            clone: None,
            cutover: cutover::decide(self),
        })
    }
}
