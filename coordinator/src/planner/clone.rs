//! Clones: a wish and a replica become the specification of a VM, and a plan to make it at the host that has the replica; of a
//! rehearsal likewise, whose VM is deleted again.
//!
//! ```text
//!   MoveRequest.clone ─┐                                          ┌─▶ Plan: the clone's own specification
//!   Replica of a host ─┴─▶ Making ──▶ CHECKS (all of them) ──▶ none ┴─▶ else: Vec<Refusal>, each with a remedy
//! ```
//!
//! The replicated VM is left alone, and so is its host. Which snapshot it is is decided with the plan: a clone that goes on
//! after it was suspended is still made from the same.

use std::collections::{BTreeMap, BTreeSet};

use sterna_shared::host::VmState;
use sterna_shared::id::{DiskName, JobId, PoolName, VmId};
use sterna_shared::job::{JobKind, JobStatus, MoveMode, MoveRequest, Plan, Refusal, RefusalCode, StepKind};
use sterna_shared::rehearsal::{HealthProbe, PROBE_MAX_SECONDS, PROBES_MAX, Rehearsal};
use sterna_shared::replica::{Base, CloneOf, CloneWish, NetworkWish, Replica, SeedWish, Snapshot};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{DISKS_MAX, DiskFormat, DiskSpec, IsolatedAddress, MacAddress, NicSpec, VmSpec};

use super::check::{offline, refusal};
use super::{Draft, Seeds, placement, replica};
use crate::fleet::{Fleet, Member};

/// What a disk that stands on a replica must find free: its own tables, and something to begin with.
const ROOM_OF_A_THIN_DISK: ByteCount = ByteCount::mebibytes(16);

/// A check adds its reasons; that it adds none means that nothing speaks against the clone as far as it can see.
type Check = fn(&Making, &mut Vec<Refusal>);

/// All checks, in the order in which their reasons are told.
const CHECKS: &[Check] = &[
    host_is_online,
    rehearsal_is_sound,
    probes_reach_it,
    snapshot_is_there,
    snapshot_is_sound,
    id_and_name_are_free,
    specification_is_sound,
    it_boots_as_it_is_wanted,
    it_can_have_secure_boot,
    memory_suffices,
    pools_can_hold_it,
    pools_have_room,
    bridges_exist,
    host_can_run_it,
    boot_files_exist,
    adapter_is_there,
    somebody_sets_its_host_name,
];

/// Those that hold for the replicated VM itself, where it is to run from its replica.
const FAILOVER_CHECKS: &[Check] = &[
    snapshot_is_there,
    snapshot_is_sound,
    memory_suffices,
    pools_can_hold_it,
    pools_have_room,
    bridges_exist,
    host_can_run_it,
    boot_files_exist,
];

/// A clone that is to be made, beside what it is made from.
struct Making<'a> {
    fleet: &'a Fleet,
    kind: JobKind,
    wish: &'a CloneWish,
    member: &'a Member,
    replica: &'a Replica,
    /// Jobs that are not over, the clone's own left out.
    jobs: Vec<&'a JobStatus>,
    job: JobId,
    /// The snapshot that an earlier attempt of the job was made from.
    begun_with: Option<u32>,
}

/// What a request for a clone would come to, and all that speaks against it now.
pub(super) fn draft<'a>(
    fleet: &'a Fleet,
    jobs: impl IntoIterator<Item = &'a JobStatus>,
    request: &'a MoveRequest,
    seeds: Seeds,
) -> Draft {
    let found = wished(request).and_then(|wish| replica::find(fleet, request).map(|found| (wish, found)));
    let (wish, (member, replica)) = match found {
        Ok(found) => found,
        Err(refusal) => return Draft { plan: None, refusals: vec![refusal] },
    };
    let (own, others): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|status| status.job == seeds.job);
    let begun = own.into_iter().filter(|status| status.has_begun());
    let making = Making {
        fleet,
        kind: request.kind,
        wish,
        member,
        replica,
        jobs: others.into_iter().filter(|status| !status.state.is_final()).collect(),
        job: seeds.job,
        begun_with: begun.filter_map(|status| status.plan.clone.as_ref()).map(|clone| clone.snapshot).next(),
    };
    let mut refusals = Vec::new();
    for check in CHECKS {
        check(&making, &mut refusals);
    }
    Draft { plan: making.decide(request, seeds), refusals }
}

/// Why a host cannot run a VM from a snapshot of the replica that it has.
pub fn replica_cannot_run(fleet: &Fleet, member: &Member, replica: &Replica, snapshot: u32) -> Vec<Refusal> {
    let of = &replica.vm;
    let wish = CloneWish {
        id: of.id,
        name: of.name.clone(),
        snapshot: Some(snapshot),
        pool: None,
        vcpus: None,
        memory: None,
        firmware: None,
        secure_boot: None,
        network: NetworkWish::Same,
        full: false,
        start: true,
        skip_os_adaptation: true,
        hostname: None,
        seed: SeedWish::Never,
        rehearsal: None,
    };
    let job = JobId::from_uuid(of.id.uuid());
    let kind = JobKind::Clone;
    let making = Making { fleet, kind, wish: &wish, member, replica, jobs: Vec::new(), job, begun_with: None };
    let mut refusals = Vec::new();
    FAILOVER_CHECKS.iter().for_each(|check| check(&making, &mut refusals));
    refusals
}

fn wished(request: &MoveRequest) -> Result<&CloneWish, Refusal> {
    request.clone.as_deref().ok_or_else(|| {
        refusal(
            RefusalCode::InvalidValue,
            "nothing says what clone is to be made",
            "give its id and its name in `clone`",
        )
    })
}

impl Making<'_> {
    fn snapshot(&self) -> Option<&Snapshot> {
        match self.wish.snapshot.or(self.begun_with) {
            Some(number) => self.replica.snapshots().find(|snapshot| snapshot.number == number),
            None => self.replica.latest(),
        }
    }

    /// A rehearsal may be made again and again, each time of another VM.
    fn id(&self) -> VmId {
        if self.kind == JobKind::Rehearse { VmId::from_uuid(self.job.uuid()) } else { self.wish.id }
    }

    /// The clone, as it is to be.
    fn spec(&self) -> VmSpec {
        let (of, wish) = (&self.replica.vm, self.wish);
        VmSpec {
            id: self.id(),
            name: wish.name.clone(),
            vcpus: wish.vcpus.unwrap_or(of.vcpus),
            memory: wish.memory.unwrap_or(of.memory),
            secure_boot: wish.secure_boot.unwrap_or(of.secure_boot),
            disks: self.disks(),
            nics: self.nics(),
            ..of.clone()
        }
    }

    /// With the seed, which is the last, so that no other changes its name in the guest. One of the VM itself is the VM's.
    fn disks(&self) -> Vec<DiskSpec> {
        let has_seed = self.seed() != SeedWish::Never;
        let kept = self.replica.vm.disks.iter().filter(|disk| !(has_seed && disk.is_seed()));
        let mut disks: Vec<_> = kept.map(|disk| self.disk(disk)).collect();
        let seed = disks.first().filter(|_| has_seed).map(|first| DiskSpec::seed(first.pool.clone()));
        disks.extend(seed);
        disks
    }

    /// Whether it has a seed, as far as that is known without a look at its system. A VM that has one shows that it needs one;
    /// another disk of that name is somebody's own, and in the place of the seed.
    fn seed(&self) -> SeedWish {
        let disks = &self.replica.vm.disks;
        let own = self.replica.vm.disk(&DiskName::seed());
        match (self.wish.seed, own) {
            (SeedWish::Auto, _) if self.wish.skip_os_adaptation => SeedWish::Never,
            // What comes after it would change its name in the guest.
            (SeedWish::Auto, Some(own)) if own.is_seed() && disks.last() == Some(own) => SeedWish::Always,
            (SeedWish::Auto, None) if disks.len() >= DISKS_MAX => SeedWish::Never,
            (SeedWish::Auto, Some(_)) => SeedWish::Never,
            (wish, _) => wish,
        }
    }

    fn disk(&self, of: &DiskSpec) -> DiskSpec {
        let at = self.replica.disks.iter().find(|disk| disk.name == of.name).unwrap_or(of);
        let layer = self.snapshot().filter(|_| !self.wish.full).and_then(|one| self.replica.layer_of(one.number));
        let base = layer.map(|layer| Base { replica: self.replica.vm.id, layer, pool: at.pool.clone() });
        let pool = self.wish.pool.clone().unwrap_or_else(|| at.pool.clone());
        DiskSpec { pool, format: DiskFormat::Qcow2, size: at.size, base, ..of.clone() }
    }

    fn nics(&self) -> Vec<NicSpec> {
        let taken: BTreeSet<MacAddress> = self.replica.vm.nics.iter().map(|nic| nic.mac).collect();
        let macs = addresses(self.id()).filter(|mac| !taken.contains(mac));
        let bridge = |nic: &NicSpec| match &self.wish.network {
            NetworkWish::Isolated => None,
            NetworkWish::Same => nic.bridge.clone(),
            NetworkWish::Bridge(bridge) => Some(bridge.clone()),
        };
        // Two interfaces in one network would answer by whichever comes first.
        let first = self.wish.rehearsal.as_ref().map_or_else(IsolatedAddress::default, |rehearsal| rehearsal.address);
        let addresses = std::iter::once(first).chain(first.apart());
        let isolated = |nic: &NicSpec, address| match &self.wish.network {
            NetworkWish::Isolated => Some(address),
            NetworkWish::Same => nic.isolated,
            NetworkWish::Bridge(_) => None,
        };
        let nics = self.replica.vm.nics.iter().zip(macs).zip(addresses);
        nics.map(|((nic, mac), address)| NicSpec { mac, bridge: bridge(nic), isolated: isolated(nic, address) })
            .collect()
    }

    fn steps(&self) -> Vec<StepKind> {
        let mut steps = Plan::steps_of(self.kind, MoveMode::Cold, false);
        steps.retain(|step| *step != StepKind::AdaptOs || !self.wish.skip_os_adaptation);
        steps
    }

    fn decide(&self, request: &MoveRequest, seeds: Seeds) -> Option<Plan> {
        let snapshot = self.snapshot()?.number;
        let CloneWish { full, start, rehearsal, hostname, .. } = self.wish.clone();
        let seed = self.seed();
        let clone = CloneOf { replica: self.replica.vm.id, snapshot, full, start, hostname, seed, rehearsal };
        // The host adds the seed, where it is needed.
        let mut spec = self.spec();
        spec.disks.retain(|disk| seed == SeedWish::Never || !disk.is_seed());
        let plan = replica::plan(self.member, self.kind, spec, request, seeds);
        Some(Plan { clone: Some(clone), steps: self.steps(), ..plan })
    }
}

/// Addresses for a VM of that id, each another, without end: its last bytes are drawn at random.
fn addresses(id: VmId) -> impl Iterator<Item = MacAddress> {
    let (_, drawn) = id.uuid().as_u64_pair();
    (0_u64..).map(move |index| {
        let [_, _, _, b, c, d, e, g] = drawn.wrapping_add(index).to_be_bytes();
        MacAddress::local([b, c, d, e, g])
    })
}

fn host_is_online(making: &Making, out: &mut Vec<Refusal>) {
    out.extend(Some(making.member).filter(|member| !member.online).map(offline));
}

fn rehearsal_is_sound(making: &Making, out: &mut Vec<Refusal>) {
    let wish = making.wish;
    let fault = match &wish.rehearsal {
        None if making.kind == JobKind::Rehearse => "a rehearsal does not say what it is about",
        None => return,
        Some(_) if making.kind != JobKind::Rehearse => "a clone that stays is given probes",
        Some(_) if !wish.start || wish.network != NetworkWish::Isolated => {
            "a rehearsal is not started, or not isolated"
        }
        Some(Rehearsal { probes, .. }) if !(1..=PROBES_MAX).contains(&probes.len()) => {
            "the number of probes is not taken"
        }
        Some(Rehearsal { probe_seconds, .. }) if !(1..=PROBE_MAX_SECONDS).contains(probe_seconds) => {
            "the time for the probes is not taken"
        }
        Some(_) => return,
    };
    out.push(refusal(
        RefusalCode::InvalidValue,
        fault,
        format!(
            "give a rehearsal 1 to {PROBES_MAX} probes with --probe, and up to {PROBE_MAX_SECONDS} s with --probe-timeout"
        ),
    ));
}

fn probes_reach_it(making: &Making, out: &mut Vec<Refusal>) {
    let (of, inventory) = (&making.replica.vm, &making.member.inventory);
    for probe in making.wish.rehearsal.iter().flat_map(|rehearsal| &rehearsal.probes) {
        let mut cannot = |lacks: String, remedy: &str| {
            out.push(refusal(
                RefusalCode::ProbeImpossible,
                format!("probe {probe} cannot be made: {lacks}"),
                format!("{remedy}, or ask for something else, such as --probe console:login:"),
            ));
        };
        if let HealthProbe::Agent = probe
            && !of.guest_agent
        {
            cannot(
                format!("VM {} has no channel for a guest agent", of.name),
                "set guest_agent of the VM and wait for the next cycle",
            );
        }
        if probe.port().is_some() && of.nics.is_empty() {
            cannot(format!("VM {} has no network interface", of.name), "give the VM one and wait for the next cycle");
        }
        if let HealthProbe::Command { name, .. } = probe
            && !inventory.probe_commands.contains(name)
        {
            cannot(
                format!("host {} has no probe command {name}", inventory.host),
                "name it under [probe_commands] in the agent.toml of the host and restart its agent",
            );
        }
    }
}

fn snapshot_is_there(making: &Making, out: &mut Vec<Refusal>) {
    if making.snapshot().is_some() {
        return;
    }
    let (replica, host) = (making.replica, &making.member.inventory.host);
    let name = &replica.vm.name;
    let there: Vec<_> = replica.snapshots().map(|snapshot| snapshot.number.to_string()).collect();
    out.push(match making.wish.snapshot.or(making.begun_with).filter(|_| !there.is_empty()) {
        Some(number) => refusal(
            RefusalCode::SnapshotUnknown,
            format!("the replica of VM {name} at {host} has no snapshot {number}"),
            format!("it has: {}; leave out --snapshot for the latest", there.join(", ")),
        ),
        None => refusal(
            RefusalCode::SnapshotUnknown,
            format!("the replica of VM {name} at {host} has no complete snapshot yet"),
            format!("wait until its first cycle is over: `sterna replicate show {name}`"),
        ),
    });
}

fn snapshot_is_sound(making: &Making, out: &mut Vec<Refusal>) {
    let Some(snapshot) = making.snapshot().filter(|snapshot| snapshot.damaged) else { return };
    let (replica, host) = (making.replica, &making.member.inventory.host);
    let (name, number) = (&replica.vm.name, snapshot.number);
    let sound = replica.snapshots().rev().find(|snapshot| !snapshot.damaged).map(|snapshot| snapshot.number);
    out.push(refusal(
        RefusalCode::SnapshotDamaged,
        format!("snapshot {number} of the replica of VM {name} at {host} does not hold what was written to it"),
        match sound {
            Some(sound) => format!("give the latest that is not damaged: --snapshot {sound}"),
            None => format!("wait for the next cycle, whose snapshot is right: `sterna replicate show {name}`"),
        },
    ));
}

fn id_and_name_are_free(making: &Making, out: &mut Vec<Refusal>) {
    let (id, name, host) = (making.id(), &making.wish.name, &making.member.inventory.host);
    for (member, report) in making.fleet.records(id).filter(|(_, report)| report.job != Some(making.job)) {
        out.push(refusal(
            RefusalCode::NameTaken,
            format!("{} has a VM with the id {id} already ({})", member.inventory.host, report.spec.name),
            "give the clone another id",
        ));
    }
    let named = |report: &&sterna_shared::host::VmReport| {
        let idle = !report.owned && report.state == VmState::Stopped && report.job.is_none();
        report.spec.name == *name && report.id() != id && !idle
    };
    if let Some(other) = making.member.inventory.vms.iter().find(named) {
        out.push(refusal(
            RefusalCode::NameTaken,
            format!("host {host} has a VM called {name} already ({})", other.id()),
            "give the clone another name with --name",
        ));
    }
    let made = |status: &&&JobStatus| {
        let plan = &status.plan;
        let makes = matches!(plan.kind, JobKind::Clone | JobKind::Rehearse);
        makes && (plan.vm.id == id || (plan.vm.name == *name && plan.target.id == *host))
    };
    if let Some(other) = making.jobs.iter().find(made) {
        out.push(refusal(
            RefusalCode::NameTaken,
            format!("job {} makes a clone of that name or id already", other.job),
            "give the clone another name with --name, and another id",
        ));
    }
}

fn specification_is_sound(making: &Making, out: &mut Vec<Refusal>) {
    // What speaks against secure boot has a code of its own.
    for fault in (VmSpec { secure_boot: false, ..making.spec() }).faults() {
        out.push(refusal(RefusalCode::InvalidValue, fault, "give other values with --vcpus, --memory and --seed"));
    }
}

fn it_boots_as_it_is_wanted(making: &Making, out: &mut Vec<Refusal>) {
    let (of, wanted) = (&making.replica.vm, making.wish.firmware);
    if let Some(wanted) = wanted.filter(|wanted| *wanted != of.firmware) {
        let name = &making.wish.name;
        out.push(refusal(
            RefusalCode::BootOptionImpossible,
            format!(
                "clone {name} is to boot by {wanted}, and what is on the disks of VM {} boots by {}",
                of.name, of.firmware
            ),
            "leave bootOption out, or give that of the VM",
        ));
    }
}

fn it_can_have_secure_boot(making: &Making, out: &mut Vec<Refusal>) {
    let (of, spec) = (&making.replica.vm, making.spec());
    for need in spec.secure_boot_lacks().filter(|_| spec.secure_boot) {
        out.push(refusal(
            RefusalCode::SecureBootImpossible,
            format!("clone {} is to have secure boot, which needs {need}; VM {} has not", spec.name, of.name),
            "leave out --secure-boot, or define the VM so and wait for the next cycle",
        ));
    }
}

fn memory_suffices(making: &Making, out: &mut Vec<Refusal>) {
    let (spec, inventory) = (making.spec(), &making.member.inventory);
    if making.wish.start && inventory.memory_free < spec.memory {
        out.push(refusal(
            RefusalCode::Memory,
            format!(
                "{} needs {} of memory; {} has {} free",
                spec.name, spec.memory, inventory.host, inventory.memory_free
            ),
            "free memory there, give the clone less with --memory, or leave out --start",
        ));
    }
}

fn pools_can_hold_it(making: &Making, out: &mut Vec<Refusal>) {
    let inventory = &making.member.inventory;
    let host = &inventory.host;
    let pools: BTreeSet<PoolName> = making.spec().disks.into_iter().map(|disk| disk.pool).collect();
    for name in pools {
        match placement::pool(making.member, &name) {
            None => {
                let have: Vec<_> = inventory.pools.iter().map(|pool| pool.name.to_string()).collect();
                out.push(refusal(
                    RefusalCode::UnknownPool,
                    format!("host {host} has no pool {name}"),
                    format!("give --pool with one of: {}", have.join(", ")),
                ));
            }
            Some(pool) if pool.extent.is_some() => out.push(refusal(
                RefusalCode::PoolKind,
                format!("pool {name} of {host} is a volume group, and the disks of a clone are files"),
                "give --pool with one that is a directory",
            )),
            Some(_) => {}
        }
    }
}

fn pools_have_room(making: &Making, out: &mut Vec<Refusal>) {
    let mut needed: BTreeMap<PoolName, ByteCount> = BTreeMap::new();
    for disk in making.spec().disks {
        let takes = if making.wish.full || disk.is_seed() { disk.size } else { ROOM_OF_A_THIN_DISK };
        let sum = needed.entry(disk.pool).or_default();
        *sum = sum.plus(takes);
    }
    let host = &making.member.inventory.host;
    for (name, bytes) in needed {
        let Some(pool) = placement::pool(making.member, &name).filter(|pool| pool.free < bytes) else { continue };
        out.push(refusal(
            RefusalCode::PoolSpace,
            format!("the clone's disks need {bytes} in pool {name} of {host}; it has {} free", pool.free),
            "free room there, give another pool with --pool, or leave out --full",
        ));
    }
}

fn bridges_exist(making: &Making, out: &mut Vec<Refusal>) {
    let inventory = &making.member.inventory;
    let wanted: BTreeSet<_> = making.spec().nics.into_iter().filter_map(|nic| nic.bridge).collect();
    for bridge in wanted.iter().filter(|bridge| !inventory.bridges.contains(bridge)) {
        let have: Vec<_> = inventory.bridges.iter().map(ToString::to_string).collect();
        let have =
            if have.is_empty() { "it has none at all".to_owned() } else { format!("it has: {}", have.join(", ")) };
        out.push(refusal(
            RefusalCode::UnknownBridge,
            format!("host {} has no bridge {bridge}", inventory.host),
            format!("{have}; or leave out --network for a clone that reaches nothing"),
        ));
    }
}

/// Whether its QEMU has what the clone names. One that is not started yet is to be started there later.
fn host_can_run_it(making: &Making, out: &mut Vec<Refusal>) {
    let (spec, inventory) = (&making.replica.vm, &making.member.inventory);
    let (host, hypervisor) = (&inventory.host, &inventory.hypervisor);
    if !hypervisor.machines.contains(&spec.machine) {
        out.push(refusal(
            RefusalCode::MachineType,
            format!("QEMU {} of {host} has no machine type {}", hypervisor.version, spec.machine),
            "upgrade QEMU there",
        ));
    }
    let model = spec.cpu.split(',').next().unwrap_or_default();
    if !matches!(model, "host" | "max") && !hypervisor.cpu_models.iter().any(|known| known == model) {
        out.push(refusal(
            RefusalCode::CpuModel,
            format!("host {host} cannot run CPU model {model}"),
            "replicate the VM to a host with at least that processor",
        ));
    }
    if let Some(lacking) = hypervisor.lacks_firmware(&making.spec()) {
        out.push(refusal(
            RefusalCode::Firmware,
            format!("host {host} has no {lacking}"),
            "install OVMF there (package ovmf)",
        ));
    }
}

fn boot_files_exist(making: &Making, out: &mut Vec<Refusal>) {
    let inventory = &making.member.inventory;
    let Some(kernel) = &making.replica.vm.kernel else { return };
    for file in std::iter::once(&kernel.image).chain(&kernel.initrd) {
        if !inventory.boot_files.contains(file) {
            out.push(refusal(
                RefusalCode::BootFile,
                format!("host {} has no boot file {}", inventory.host, file.as_str()),
                "copy it into the boot directory there, under the same name",
            ));
        }
    }
}

fn adapter_is_there(making: &Making, out: &mut Vec<Refusal>) {
    let inventory = &making.member.inventory;
    if !making.wish.skip_os_adaptation && !inventory.adapts {
        out.push(refusal(
            RefusalCode::NoAdapter,
            format!(
                "host {} has no helper guest, which gives the system of a clone an identity of its own",
                inventory.host
            ),
            "install it there, or leave the system as it is with --skip-os-adaptation",
        ));
    }
}

fn somebody_sets_its_host_name(making: &Making, out: &mut Vec<Refusal>) {
    let CloneWish { hostname: Some(hostname), skip_os_adaptation: true, .. } = making.wish else { return };
    if making.seed() == SeedWish::Never {
        out.push(refusal(
            RefusalCode::InvalidValue,
            format!("the clone's host name is to be {hostname}, and its system is to be left as it is"),
            "leave out --hostname or --skip-os-adaptation, or have its cloud-init set it with --seed always",
        ));
    }
}
