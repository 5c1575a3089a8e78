//! Planned VMs of this host: made by jobs that do nothing else, and ended when the VM is here, when their time is up, or when
//! an operator says so.
//!
//! All of it is done by the service's loop, one thing at a time: two of them never count on the same room. What a move makes
//! meanwhile on its own task is seen, too: a planned VM is written down before room is looked for, and a move that comes in
//! likewise, so that of two at one time at least one sees the other.

use sterna_shared::bus::AgentReply;
use sterna_shared::host::Inventory;
use sterna_shared::id::{JobId, PlannedVmId, VmId};
use sterna_shared::job::{EventBody, FailureCode, FailureReport, Plan, StepFigures, StepKind};
use sterna_shared::ownership::Record;
use sterna_shared::planned::{HOLD_DEFAULT_SECONDS, PLANNED_PER_HOST_MAX, PlannedVm};
use sterna_shared::time::Timestamp;
use sterna_shared::vm::{Firmware, VmSpec};
use tracing::{error, info};

use super::Service;
use crate::clock;
use crate::host::room::{Need, RoomError};
use crate::journal::JournalError;
use crate::requests;

impl Service {
    /// What is held for VMs that are not here. Of one that is, nothing is held any more.
    pub(super) fn planned(&self) -> Vec<PlannedVm> {
        let mut planned = self.host.journal.planned().unwrap_or_else(|failure| {
            error!(%failure, "what is held for planned VMs is not known");
            Vec::new()
        });
        planned.retain(|planned| !self.owns(planned.spec.id));
        planned
    }

    fn owns(&self, vm: VmId) -> bool {
        let record = self.keepers.get(&vm).map(|keeper| keeper.record().ownership);
        record.is_some_and(|record| matches!(record, Record::Owner { .. }))
    }

    /// Carries out a job that makes a planned VM, to whatever end, and tells it. Done anew after a restart of the agent, it
    /// comes to the same.
    pub(super) async fn stage(&mut self, plan: &Plan) -> Result<(), JournalError> {
        let (job, step) = (plan.job, StepKind::Prepare);
        self.tell(job, EventBody::StepStarted { step }).await;
        let outcome = self.hold(plan).await?;
        // The fleet knows what is held before it hears that the job is over.
        self.bus.publish_inventory(&self.inventory()).await;
        match outcome {
            Ok(()) => {
                info!(%job, vm = %plan.vm.name, "planned VM made");
                self.tell(job, EventBody::StepFinished { step, figures: StepFigures::default() }).await;
                self.tell(job, EventBody::Completed { blackout_us: 0 }).await;
            }
            Err(failure) => {
                info!(%job, vm = %plan.vm.name, %failure, "no planned VM is made");
                self.tell(job, EventBody::StepFailed { step, failure: failure.clone() }).await;
                self.tell(job, EventBody::Failed { failure }).await;
            }
        }
        self.host.flush().await;
        self.host.journal.conclude(job, clock::now()).await
    }

    async fn hold(&self, plan: &Plan) -> Result<Result<(), FailureReport>, JournalError> {
        let journal = &self.host.journal;
        let before = journal.planned_of(plan.vm.id)?;
        let planned = planned_of(plan, clock::now());
        if before.as_ref().is_some_and(|before| before.id == planned.id) {
            return Ok(Ok(()));
        }
        let spec = &plan.vm_at_target;
        let mut faults = lacking(&self.host.inventory(Vec::new(), &[], &[]), spec);
        faults.extend(self.name_taken(spec));
        if before.is_none() && journal.planned()?.len() >= PLANNED_PER_HOST_MAX {
            faults.push(format!("{PLANNED_PER_HOST_MAX} planned VMs are held here, and no more can be"));
        }
        if let Some(message) = faults.pop() {
            let remedy = "mend what is named on the host, or choose another".to_owned();
            return Ok(Err(self.refusal(FailureCode::TargetRefused, message, faults, remedy)));
        }
        journal.put_planned(planned.clone()).await?;
        let need = Need { vm: spec.id, memory: spec.memory, disks: &planned.disks, hold: true };
        let Err(error) = self.host.expect_room(need) else { return Ok(Ok(())) };
        match before {
            Some(before) => journal.put_planned(before).await?,
            None => journal.forget_planned(spec.id).await?,
        }
        let code = match error {
            RoomError::Memory { .. } => FailureCode::TargetRefused,
            RoomError::Pool { .. } => FailureCode::PoolFull,
            RoomError::Journal(error) => return Err(error),
        };
        let remedy = "make room there, drop a planned VM (`sterna plan list`), or choose another host".to_owned();
        Ok(Err(self.refusal(code, error.to_string(), Vec::new(), remedy)))
    }

    fn refusal(&self, code: FailureCode, message: String, causes: Vec<String>, remedy: String) -> FailureReport {
        FailureReport { code, message, causes, remedy, host: Some(self.host.id().clone()) }
    }

    /// Ends those whose time is up, and those whose VM is here.
    pub(super) async fn tend_planned(&self) {
        let planned = self.host.journal.planned().unwrap_or_default();
        for (vm, reason) in over(&planned, clock::now(), |vm| self.owns(vm)) {
            self.drop_planned(vm, reason).await;
        }
    }

    /// Ends one that an operator wants no more.
    pub(super) async fn drop_planned_by_id(&self, id: PlannedVmId) -> AgentReply {
        let found = self.planned().into_iter().find(|planned| planned.id == id);
        match found {
            Some(planned) if self.drop_planned(planned.spec.id, "an operator said so").await => AgentReply::Done,
            Some(_) => requests::refused(format!("planned VM {id} could not be dropped"), "see the agent's log"),
            None => {
                let message = format!("{} has no planned VM {id}", self.host.id());
                requests::refused(message, "see `sterna plan list`")
            }
        }
    }

    /// Ends the one that a job has made: it is called off.
    pub(super) async fn drop_planned_by(&self, job: JobId) {
        let planned = self.host.journal.planned().unwrap_or_default();
        if let Some(planned) = planned.into_iter().find(|planned| planned.job == job) {
            self.drop_planned(planned.spec.id, "its job was cancelled").await;
        }
    }

    /// Whether it is gone.
    async fn drop_planned(&self, vm: VmId, reason: &'static str) -> bool {
        let dropped = self.host.journal.forget_planned(vm).await;
        match &dropped {
            Ok(()) => info!(%vm, reason, "planned VM ends"),
            Err(failure) => error!(%vm, %failure, "a planned VM is held for longer than it need be"),
        }
        dropped.is_ok()
    }
}

fn planned_of(plan: &Plan, now: Timestamp) -> PlannedVm {
    let held = i64::from(plan.hold_seconds.unwrap_or(HOLD_DEFAULT_SECONDS)) * 1_000_000;
    PlannedVm {
        id: plan.planned.unwrap_or_else(|| PlannedVmId::from_uuid(plan.job.uuid())),
        spec: plan.vm_at_target.clone(),
        disks: plan.disks.iter().map(|disk| disk.target.clone()).collect(),
        job: plan.job,
        source: plan.source.id.clone(),
        made_at: now,
        expires_at: Timestamp::from_unix_microseconds(now.unix_microseconds().saturating_add(held)),
    }
}

/// Which are over, and why.
fn over(planned: &[PlannedVm], now: Timestamp, owns: impl Fn(VmId) -> bool) -> Vec<(VmId, &'static str)> {
    let reason = |planned: &PlannedVm| match (owns(planned.spec.id), planned.is_expired(now)) {
        (true, _) => Some("the VM is here"),
        (false, true) => Some("its time is up"),
        (false, false) => None,
    };
    planned.iter().filter_map(|planned| Some((planned.spec.id, reason(planned)?))).collect()
}

/// What a VM needs and a host lacks; that it has it at the instant is no promise for later.
fn lacking(host: &Inventory, spec: &VmSpec) -> Vec<String> {
    let mut faults = Vec::new();
    for disk in &spec.disks {
        if !host.pools.iter().any(|pool| pool.name == disk.pool) {
            faults.push(format!("there is no pool {} for disk {}", disk.pool, disk.name));
        }
    }
    for bridge in spec.nics.iter().filter_map(|nic| nic.bridge.as_ref()) {
        if !host.bridges.contains(bridge) {
            faults.push(format!("there is no bridge {bridge}"));
        }
    }
    for file in spec.kernel.iter().flat_map(|kernel| std::iter::once(&kernel.image).chain(&kernel.initrd)) {
        if !host.boot_files.contains(file) {
            faults.push(format!("there is no boot file {}", file.as_str()));
        }
    }
    if spec.firmware == Firmware::Uefi && !host.hypervisor.uefi {
        faults.push("there is no UEFI firmware".to_owned());
    }
    if !host.hypervisor.machines.contains(&spec.machine) {
        faults.push(format!("QEMU has no machine type {}", spec.machine));
    }
    let model = spec.cpu.split(',').next().unwrap_or_default();
    if !matches!(model, "host" | "max") && !host.hypervisor.cpu_models.iter().any(|known| known == model) {
        faults.push(format!("CPU model {model} does not run here"));
    }
    faults
}
