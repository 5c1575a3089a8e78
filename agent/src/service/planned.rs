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
use sterna_shared::vm::VmSpec;
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
    if let Some(lacking) = host.hypervisor.lacks_firmware(spec) {
        faults.push(format!("there is no {lacking}"));
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

#[cfg(test)]
mod tests {
    use sterna_shared::job::JobKind;
    use sterna_shared::vm::Firmware;

    use super::*;
    use crate::journal::Role;
    use crate::journal::planned_tests::planned;
    use crate::journal::tests::job_record;

    const WEB: &str = "0197c0de-0000-7000-8000-000000000011";
    const MAIL: &str = "0197c0de-0000-7000-8000-000000000012";

    fn second(number: i64) -> Timestamp {
        Timestamp::from_unix_microseconds(number * 1_000_000)
    }

    #[test]
    fn one_ends_when_its_time_is_up_or_its_vm_is_here_and_not_before() {
        let held = [planned(WEB, "fast", 1 << 20), planned(MAIL, "fast", 1 << 20)];
        let ended = |now: Timestamp, here: &[&str]| {
            let over = over(&held, now, |vm| here.contains(&vm.to_string().as_str()));
            over.into_iter().map(|(vm, _)| vm.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ended(second(60), &[]), Vec::<String>::new());
        assert_eq!(ended(second(61), &[]), [WEB, MAIL]);
        assert_eq!(ended(second(60), &[MAIL]), [MAIL]);
        assert_eq!(ended(second(0), &[]), Vec::<String>::new(), "a clock that was put back ends nothing");
    }

    #[test]
    fn one_is_held_for_as_long_as_the_plan_says_from_when_it_is_made() {
        let mut plan = job_record(Role::Target).plan;
        (plan.kind, plan.hold_seconds) = (JobKind::Stage, Some(120));
        let made = planned_of(&plan, second(7));
        assert_eq!((made.made_at, made.expires_at), (second(7), second(127)));
        assert_eq!((made.id.uuid(), made.job), (plan.job.uuid(), plan.job), "twice is once");
        plan.hold_seconds = None;
        assert_eq!(planned_of(&plan, second(7)).expires_at, second(7 + i64::from(HOLD_DEFAULT_SECONDS)));
    }

    /// A host that has all that [`needy`] needs.
    fn rich() -> Inventory {
        serde_json::from_value(serde_json::json!({
            "host": "bravo", "at": "2026-01-01T00:00:00Z", "version": "0.1.0", "addresses": [],
            "hypervisor": {
                "version": "10.0.2", "accelerator": "tcg", "machines": ["pc-q35-7.2"], "cpu_models": ["EPYC"], "uefi": true
            },
            "cpu": { "model": "any", "features": [], "count": 1 }, "memory_total": 0, "memory_free": 0,
            "pools": [{ "name": "fast", "shared": null, "capacity": 0, "free": 0 }],
            "bridges": ["lan"], "boot_files": ["vmlinuz", "initrd"],
            "certificate": { "authority": "a", "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-01-01T00:00:00Z" },
            "limits": {}, "epoch": 0, "vms": [],
        }))
        .expect("an inventory")
    }

    fn needy() -> VmSpec {
        let mut spec = planned(WEB, "fast", 1 << 20).spec;
        (spec.cpu, spec.firmware) = ("EPYC,+x".to_owned(), Firmware::Uefi);
        spec.kernel =
            serde_json::from_value(serde_json::json!({ "image": "vmlinuz", "initrd": "initrd" })).expect("a kernel");
        let nic = serde_json::json!([{ "mac": "52:54:00:00:00:01", "bridge": "lan" }]);
        spec.nics = serde_json::from_value(nic).expect("nics");
        spec
    }

    type Lack = fn(&mut Inventory);

    #[test]
    fn all_that_a_host_lacks_is_told() {
        assert_eq!(lacking(&rich(), &needy()), Vec::<String>::new());
        let lacks: [(&str, Lack); 7] = [
            ("no pool fast", |host| host.pools.clear()),
            ("no bridge lan", |host| host.bridges.clear()),
            ("no boot file vmlinuz", |host| drop(host.boot_files.remove(0))),
            ("no boot file initrd", |host| drop(host.boot_files.pop())),
            ("no UEFI firmware", |host| host.hypervisor.uefi = false),
            ("no machine type pc-q35-7.2", |host| host.hypervisor.machines.clear()),
            ("CPU model EPYC", |host| host.hypervisor.cpu_models.clear()),
        ];
        for (told, lack) in lacks {
            let mut host = rich();
            lack(&mut host);
            let faults = lacking(&host, &needy());
            assert!(faults.len() == 1 && faults[0].contains(told), "{told}: {faults:?}");
        }
        let secure = VmSpec { secure_boot: true, ..needy() };
        assert_eq!(
            lacking(&rich(), &secure),
            ["there is no UEFI firmware with secure boot"],
            "nor does an older agent tell of any"
        );
        let mut host = rich();
        (host.hypervisor.machines, host.bridges) = (Vec::new(), Vec::new());
        assert_eq!(lacking(&host, &needy()).len(), 2);
    }
}
