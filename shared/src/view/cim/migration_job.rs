//! `Msvm_MigrationJob`: every property, in the order of its published description, and where Sterna takes each from.

use serde::{Serialize, Serializer};

use crate::id::VmId;
use crate::job::{DiskMove, JobKind, JobState, JobStatus, MoveMode, Plan, Progress, Recovery, StepState};
use crate::rehearsal::Rehearsal;
use crate::replica::CloneOf;
use crate::time::Timestamp;
use crate::units::Bandwidth;
use crate::vm::DiskSpec;

use super::condition::{Condition, Contacts, Fault};
use super::values::{
    CommunicationStatus, DayOfWeek, DetailedStatus, ErrorCode, HealthState, JobType, LocalOrUtcTime, MigrationType,
    OperatingStatus, OperationalStatus, PrimaryStatus, RecoveryAction, RunMonth,
};
use super::xml;
use super::{CimDateTime, CimInterval};

/// The longest caption, in characters.
pub const CAPTION_LENGTH_MAX: usize = 64;

/// A job, as CIM has it. `None` is CIM's NULL. Where Sterna has nothing to say, the field says why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
pub struct MigrationJob {
    /// What the job does, in at most [`CAPTION_LENGTH_MAX`] characters.
    pub caption: String,
    /// The plan in a sentence.
    pub description: String,
    /// For people: the VM, and from where to where.
    pub element_name: String,
    /// None: nothing is installed.
    pub install_date: Option<CimDateTime>,
    /// How the job is doing, the most important first. Of its state, and of the contact with its hosts.
    pub operational_status: Vec<OperationalStatus>,
    /// What there is to say to each of these.
    pub status_descriptions: Vec<String>,
    /// The first of these as a word; deprecated there.
    pub status: &'static str,
    /// Whether the job can still do what it is for, by its state.
    pub health_state: HealthState,
    /// Whether its hosts are heard of; not told once it is over.
    pub communication_status: CommunicationStatus,
    /// What there is to add to the primary status.
    pub detailed_status: DetailedStatus,
    /// What the job is doing, by its state.
    pub operating_status: OperatingStatus,
    /// How it is doing, in one word.
    pub primary_status: PrimaryStatus,
    /// The state as Sterna spells it, with the step under way, the blackout, or the reason.
    pub job_status: String,
    /// When it was planned.
    pub time_submitted: CimDateTime,
    /// Its next turn while it waits for one; the word for "is past it" once it has begun; none where it waits for a slot.
    pub scheduled_start_time: Option<CimDateTime>,
    /// When its first step began.
    pub start_time: Option<CimDateTime>,
    /// From its start to its end, or to now.
    pub elapsed_time: CimInterval,
    /// How often it runs; 0 until `UntilTime`.
    pub job_run_times: u32,
    /// The month of its calendar; none where it has none, or runs in every month.
    pub run_month: Option<RunMonth>,
    /// The day of its calendar, from the end of the month where negative.
    pub run_day: Option<i8>,
    /// The weekday that is sought from that day.
    pub run_day_of_week: Option<DayOfWeek>,
    /// The time of day of its calendar.
    pub run_start_interval: Option<CimInterval>,
    /// Whether the calendar is read in a zone of its own, or in UTC.
    pub local_or_utc_time: LocalOrUtcTime,
    /// The last instant at which it may begin.
    pub until_time: CimDateTime,
    /// Who is told when it is over.
    pub notify: Option<String>,
    /// Who submitted it, as he said.
    pub owner: Option<String>,
    /// Which jobs go first where not all can: lower numbers.
    pub priority: u32,
    /// 0 to 100, rounded down. Never 101, CIM's word for "cannot be told".
    pub percent_complete: u16,
    /// Whether it goes from the list of jobs once it is over.
    pub delete_on_completion: bool,
    /// Why it failed or waits; 0 while nothing is wrong.
    pub error_code: ErrorCode,
    /// The failure with its causes, its host and its remedy.
    pub error_description: Option<String>,
    /// What is done when it fails.
    pub recovery_action: RecoveryAction,
    /// The same in words, where it has no number.
    pub other_recovery_action: Option<String>,
    /// `Sterna:` and the job's id.
    #[serde(rename = "InstanceID")]
    pub instance_id: String,
    /// The VM's name, so that jobs can be sought by it.
    pub name: String,
    /// The state's number.
    #[serde(serialize_with = "number")]
    #[cfg_attr(feature = "schema", schemars(schema_with = "state_number_schema"))]
    pub job_state: JobState,
    /// When the state last changed; no time at all while it never has.
    pub time_of_last_state_change: CimDateTime,
    /// How long it is listed once it is over, where it is deleted then.
    pub time_before_removal: CimInterval,
    /// Whether a cancel can still be honoured.
    pub cancellable: bool,
    /// The failure in one sentence.
    pub error_summary_description: Option<String>,
    /// What moves: by the plan's mode and whether disks are copied.
    pub migration_type: MigrationType,
    /// The VM's id in capitals, as Hyper-V writes GUIDs: who has its `Msvm_ComputerSystem.Name` compares with that. Sterna's
    /// own programs have the JSON of the job.
    pub virtual_system_name: String,
    /// The target; none where disks move within their host.
    pub destination_host: Option<String>,
    /// None: a VM has no files but its disks and what goes with them, and no roots to put them under.
    pub new_system_setting_data: Option<String>,
    /// Of a storage move the disks, each an instance of `Msvm_StorageAllocationSettingData` in CIM-XML, whose `Connection`
    /// is the pool it goes to and its name. None of other moves, as CIM has it.
    pub new_resource_setting_data: Option<Vec<String>>,
    /// What the job does, as a number: by the plan's mode and whether disks are copied.
    pub job_type: JobType,
}

impl MigrationJob {
    /// The job with that status. Progress of another job, or of one that is over, is left out; `now` is for the time it has
    /// taken so far.
    #[must_use]
    pub fn of(status: &JobStatus, progress: Option<&Progress>, contacts: Contacts, now: Timestamp) -> Self {
        let plan = &status.plan;
        let (job_type, migration_type) = kind(plan);
        let (fault_code, summary, fault_description) = match Fault::of(status) {
            Some(fault) => (fault.code, Some(fault.summary), Some(fault.description)),
            None => (ErrorCode::None, None, None),
        };
        let job_status = told(status, status.latest(progress), summary.as_deref());
        let condition = Condition::of(status, contacts, &job_status);
        let (operational_status, status_descriptions): (Vec<_>, Vec<_>) = condition.indicators.into_iter().unzip();
        let is_new = status.state == JobState::New;
        let schedule = status.policy.schedule.as_ref();
        let rule = schedule.and_then(|schedule| schedule.rule.as_ref());
        let (recovery_action, other_recovery_action) = recovery(&status.policy.recovery);
        Self {
            caption: caption(plan, job_type),
            description: description(plan),
            element_name: element_name(plan),
            install_date: None,
            status: operational_status.first().map_or(OperationalStatus::Unknown.status(), |first| first.status()),
            operational_status,
            status_descriptions,
            health_state: condition.health,
            communication_status: condition.communication,
            detailed_status: condition.detailed,
            operating_status: condition.operating,
            primary_status: condition.primary,
            job_status,
            time_submitted: status.submitted_at.into(),
            scheduled_start_time: match is_new {
                true => status.next_turn(now).map(CimDateTime::from),
                false => Some(CimDateTime::ALREADY_EXECUTING),
            },
            start_time: status.started_at.map(CimDateTime::from),
            elapsed_time: status
                .started_at
                .map_or(CimInterval::ZERO, |started| CimInterval::between(started, status.finished_at.unwrap_or(now))),
            job_run_times: schedule.map_or(1, |schedule| schedule.run_times),
            run_month: rule.and_then(|rule| rule.month).map(RunMonth::from),
            run_day: rule.and_then(|rule| rule.day),
            run_day_of_week: rule.map(|rule| rule.day_of_week.into()),
            run_start_interval: rule.map(|rule| rule.start.into()),
            local_or_utc_time: rule.map_or(LocalOrUtcTime::Utc, |rule| (&rule.zone).into()),
            until_time: schedule.and_then(|schedule| schedule.until).map_or(CimDateTime::FOREVER, CimDateTime::from),
            notify: status.policy.notify.clone(),
            owner: status.policy.owner.clone(),
            priority: status.policy.priority,
            percent_complete: percent(status.percent(progress)),
            delete_on_completion: status.policy.delete_on_completion,
            error_code: fault_code,
            error_description: fault_description,
            recovery_action,
            other_recovery_action,
            instance_id: format!("Sterna:{}", status.job),
            name: plan.vm.name.to_string(),
            job_state: status.state,
            time_of_last_state_change: if is_new { CimDateTime::UNCHANGED } else { status.changed_at.into() },
            time_before_removal: CimInterval::from_seconds(status.policy.keep_seconds),
            cancellable: status.cancellable(),
            error_summary_description: summary,
            migration_type,
            virtual_system_name: plan.vm.id.to_string().to_uppercase(),
            destination_host: (plan.mode != MoveMode::Storage).then(|| plan.target.id.to_string()),
            new_system_setting_data: None,
            new_resource_setting_data: (plan.mode == MoveMode::Storage)
                .then(|| plan.disks.iter().map(|disk| allocation(plan.vm.id, disk)).collect()),
            job_type,
        }
    }

    /// The same as a CIM-XML instance.
    #[must_use]
    pub fn to_xml(&self) -> String {
        xml::of(self)
    }
}

#[cfg(feature = "schema")]
fn state_number_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    super::values::number_schema(JobState::ALL.iter().map(|state| (state.number().into(), state.to_string())))
}

fn number<S: Serializer>(state: &JobState, serializer: S) -> Result<S::Ok, S::Error> {
    state.number().serialize(serializer)
}

fn recovery(recovery: &Recovery) -> (RecoveryAction, Option<String>) {
    match recovery {
        Recovery::Stop => (RecoveryAction::DoNotContinue, None),
        Recovery::Next => (RecoveryAction::ContinueWithNextJob, None),
        Recovery::Rerun { .. } => (RecoveryAction::RerunJob, None),
        Recovery::Run { .. } => (RecoveryAction::RunRecoveryJob, None),
        Recovery::Other { text } => (RecoveryAction::Other, Some(text.clone())),
    }
}

/// A storage move is one of disks; any other one of the VM, with its disks where any are copied. A check has the migration
/// type of the move that it is about.
fn kind(plan: &Plan) -> (JobType, MigrationType) {
    let migration = match plan.mode {
        MoveMode::Storage => MigrationType::Storage,
        MoveMode::Live | MoveMode::Cold if plan.disks.is_empty() => MigrationType::VirtualSystem,
        MoveMode::Live | MoveMode::Cold => MigrationType::VirtualSystemAndStorage,
    };
    match (plan.kind, migration) {
        (JobKind::Stage, _) => (JobType::CreatingRemoteVirtualMachine, MigrationType::Staged),
        // Hyper-V has other classes for what comes nearest, and no number here.
        (JobKind::Replicate | JobKind::Clone | JobKind::Rehearse | JobKind::Verify, _) => (JobType::Unknown, migration),
        (JobKind::DeepCheck, _) => (JobType::CheckingStorage, MigrationType::StorageDeepCheck),
        (JobKind::Check, MigrationType::Storage) => (JobType::CheckingStorageMigration, migration),
        (JobKind::Check, MigrationType::VirtualSystem) => (JobType::CheckingVirtualMachine, migration),
        (JobKind::Check, _) => (JobType::CheckingVirtualMachineAndStorage, migration),
        (JobKind::Move | JobKind::Cutover, MigrationType::Storage) => (JobType::MovingStorage, migration),
        (JobKind::Move | JobKind::Cutover, MigrationType::VirtualSystem) => (JobType::MovingVirtualMachine, migration),
        (JobKind::Move | JobKind::Cutover, _) => (JobType::MovingVirtualMachineAndStorage, migration),
    }
}

fn caption(plan: &Plan, job_type: JobType) -> String {
    let (vm, source, target) = (&plan.vm.name, &plan.source.id, &plan.target.id);
    let whole = match job_type {
        JobType::Unknown if plan.kind == JobKind::Clone => format!("Making VM {vm} of a replica at {target}"),
        JobType::Unknown if plan.kind == JobKind::Rehearse => format!("Rehearsing a replica at {target} as VM {vm}"),
        JobType::Unknown if plan.kind == JobKind::Verify => format!("Verifying the replica of VM {vm} at {target}"),
        JobType::Unknown => format!("Replicating VM {vm} from {source} to {target}"),
        JobType::CreatingRemoteVirtualMachine => format!("Preparing VM {vm} of {source} at {target}"),
        JobType::CheckingVirtualMachine => format!("Checking a move of VM {vm} from {source} to {target}"),
        JobType::CheckingVirtualMachineAndStorage => {
            format!("Checking a move of VM {vm} and its disks from {source} to {target}")
        }
        JobType::CheckingStorage => format!("Reading the disks of VM {vm} on {source} through"),
        JobType::CheckingStorageMigration => format!("Checking a move of disks of VM {vm} on {source}"),
        JobType::MovingStorage => format!("Moving disks of VM {vm} on {source}"),
        JobType::MovingVirtualMachineAndStorage => format!("Moving VM {vm} and its disks from {source} to {target}"),
        _ => format!("Moving VM {vm} from {source} to {target}"),
    };
    whole.chars().take(CAPTION_LENGTH_MAX).collect()
}

fn element_name(plan: &Plan) -> String {
    let (vm, source, target) = (&plan.vm.name, &plan.source.id, &plan.target.id);
    if plan.kind == JobKind::Clone {
        format!("{vm}: clone at {target}")
    } else if plan.kind == JobKind::Rehearse {
        format!("{vm}: rehearsal at {target}")
    } else if plan.kind == JobKind::Verify {
        format!("{vm}: replica at {target}")
    } else if plan.mode == MoveMode::Storage {
        format!("{vm}: disks on {source}")
    } else {
        format!("{vm}: {source} to {target}")
    }
}

/// What is held ready, and for how long.
fn description_of_stage(plan: &Plan) -> String {
    let mut held = vec![format!("{} of memory", plan.vm_at_target.memory)];
    held.extend(plan.disks.iter().map(|disk| format!("{} of pool {}", disk.target.size, disk.target.pool)));
    let planned = plan.planned.map_or_else(String::new, |planned| format!(" {planned}"));
    let time = plan.hold_seconds.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
    let (vm, source, target) = (&plan.vm.name, &plan.source.id, &plan.target.id);
    format!("planned VM{planned} at {target} for VM {vm} of {source}: held{time} are {}", held.join(", "))
}

fn description(plan: &Plan) -> String {
    if plan.kind == JobKind::Stage {
        return description_of_stage(plan);
    }
    if let Some(CloneOf { replica, snapshot, full, rehearsal, .. }) = &plan.clone {
        let (vm, target) = (&plan.vm.name, &plan.target.id);
        let how = if *full { "copied from" } else { "standing on" };
        let made = format!("VM {vm} at {target}, {how} snapshot {snapshot} of the replica of VM {replica}");
        return match rehearsal {
            None => made,
            Some(Rehearsal { probes, probe_seconds, .. }) => {
                let probes: Vec<String> = probes.iter().map(ToString::to_string).collect();
                format!("{made}: asked for {} within {probe_seconds} s, and deleted", probes.join(", "))
            }
        };
    }
    let rate = plan.bandwidth.map_or_else(|| "no rate limit".to_owned(), |rate| format!("at most {rate}"));
    if plan.kind == JobKind::DeepCheck {
        let one = |disk: &DiskSpec| format!("disk {} of {} in pool {}", disk.name, disk.size, disk.pool);
        let disks: Vec<String> = plan.vm.disks.iter().map(one).collect();
        let disks = if disks.is_empty() { "no disk".to_owned() } else { disks.join(", ") };
        return format!("deep check of VM {} on {}: {disks} read through; {rate}", plan.vm.name, plan.source.id);
    }
    if plan.kind == JobKind::Verify {
        let (vm, target) = (&plan.vm.name, &plan.target.id);
        return format!(
            "verification of the replica of VM {vm} at {target}: its disks read through and compared; {rate}"
        );
    }
    if plan.kind == JobKind::Replicate {
        let one = |disk: &DiskMove| format!("disk {} to pool {}", disk.source.name, disk.target.pool);
        let disks: Vec<String> = plan.disks.iter().map(one).collect();
        let (vm, source, target) = (&plan.vm.name, &plan.source.id, &plan.target.id);
        return format!("replication of VM {vm} from {source} to {target}: {}; {rate}", disks.join(", "));
    }
    let mut parts = Vec::new();
    if plan.mode == MoveMode::Live {
        parts.push(format!("{} of memory", plan.memory_bytes()));
    }
    parts.extend(plan.disks.iter().map(|disk| {
        let DiskMove { source, target } = disk;
        format!("disk {} of {} from pool {} to pool {}", source.name, source.size, source.pool, target.pool)
    }));
    let mode = match plan.mode {
        MoveMode::Live => "live",
        MoveMode::Cold => "cold",
        MoveMode::Storage => "storage",
    };
    let carried = if parts.is_empty() { "nothing to copy".to_owned() } else { parts.join(", ") };
    let uses = plan.planned.map_or_else(String::new, |planned| format!(", using planned VM {planned}"));
    let what = match plan.kind {
        JobKind::Move | JobKind::Replicate | JobKind::Clone | JobKind::Rehearse | JobKind::Verify => "",
        JobKind::Cutover => "cutover, a ",
        JobKind::Check | JobKind::DeepCheck => "check of a ",
        JobKind::Stage => "preparation of a ",
    };
    format!(
        "{what}{mode} move of VM {} from {} to {}{uses}: {carried}; {} lanes, {rate}, blackout of at most {} ms",
        plan.vm.name, plan.source.id, plan.target.id, plan.lanes, plan.blackout_max_ms
    )
}

/// The state, and what there is to say in it.
fn told(status: &JobStatus, progress: Option<&Progress>, fault: Option<&str>) -> String {
    // The two come by different ways: what is told of a step that is over is from before its end.
    let over = |kind| status.steps.iter().any(|step| step.kind == kind && step.state == StepState::Finished);
    let progress = progress.filter(|progress| !over(progress.step));
    let detail = match (fault, progress, status.blackout_us) {
        (Some(fault), _, _) => Some(fault.to_owned()),
        (None, Some(progress), _) => {
            Some(format!("{}, pass {}, {}", progress.step, progress.pass, Bandwidth(progress.bytes_per_second)))
        }
        (None, None, Some(blackout_us)) => Some(format!("blackout of {} ms", blackout_us.div_ceil(1000))),
        (None, None, None) => status.current_step().map(|step| step.kind.to_string()),
    };
    detail.map_or_else(|| status.state.to_string(), |detail| format!("{}: {detail}", status.state))
}

fn percent(percent: f64) -> u16 {
    // It is between 0 and 100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = percent.floor() as u16;
    whole.min(100)
}

fn allocation(vm: VmId, disk: &DiskMove) -> String {
    let name = disk.source.name.as_str();
    xml::allocation(&format!("Sterna:{vm}/{name}"), name, &format!("{}/{name}", disk.target.pool))
}
