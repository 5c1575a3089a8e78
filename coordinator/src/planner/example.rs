//! Examples for tests: hosts, a VM and a request that nothing speaks against.

use sterna_shared::host::{
    Accelerator, Certificate, Cpu, Hypervisor, Inventory, Limits, LimitsChange, PartialReport, Pool, VmReport, VmState,
};
use sterna_shared::id::{Epoch, Generation, JobId, PlannedVmId, TOKEN_LENGTH, Token};
use sterna_shared::job::{JobKind, MoveRequest};
use sterna_shared::planned::PlannedVm;
use sterna_shared::replica::{CloneWish, Consistency, NetworkWish, Replica, SeedWish, Snapshot};
use sterna_shared::time::Timestamp;
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{BootFile, CacheMode, DiskBus, DiskFormat, DiskSpec, Firmware, KernelBoot, NicSpec, VmSpec};

use super::Seeds;

pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix_microseconds(1_795_300_000_000_000)
}

pub(crate) fn later(seconds: i64) -> Timestamp {
    Timestamp::from_unix_microseconds(now().unix_microseconds() + seconds * 1_000_000)
}

pub(crate) fn job(number: u8) -> JobId {
    format!("0197c0de-0000-7000-8000-0000000001{number:02x}").parse().expect("a UUID")
}

pub(crate) fn seeds() -> Seeds {
    Seeds { job: job(1), token: Token::from_bytes([7; TOKEN_LENGTH]), attempt: 0, now: now() }
}

pub(crate) fn boot_file(name: &str) -> BootFile {
    name.to_owned().try_into().expect("a boot file")
}

pub(crate) fn vm(name: &str) -> VmSpec {
    let disk = |disk: &str, pool: &str| DiskSpec {
        name: disk.parse().expect("a name"),
        pool: pool.parse().expect("a name"),
        format: DiskFormat::Qcow2,
        size: ByteCount::mebibytes(1024),
        bus: DiskBus::Virtio,
        cache: CacheMode::None,
        discard: true,
        read_only: false,
        base: None,
    };
    VmSpec {
        name: name.parse().expect("a name"),
        id: "0197c0de-0000-7000-8000-000000000001".parse().expect("a UUID"),
        memory: ByteCount::mebibytes(512),
        vcpus: 1,
        cpu: "max".into(),
        machine: "pc-q35-7.2".into(),
        firmware: Firmware::Bios,
        secure_boot: false,
        kernel: Some(KernelBoot { image: boot_file("vmlinuz"), initrd: None, append: String::new() }),
        disks: vec![disk("root", "fast"), disk("data", "san")],
        nics: vec![NicSpec {
            mac: "52:54:00:00:00:01".parse().expect("a MAC"),
            bridge: Some("lan".parse().expect("a name")),
            isolated: None,
        }],
        guest_agent: false,
        extra_arguments: vec![],
    }
}

pub(crate) fn report(spec: &VmSpec) -> VmReport {
    VmReport {
        spec: spec.clone(),
        state: VmState::Running,
        generation: Generation(3),
        owned: true,
        job: None,
        unchanged_since: None,
    }
}

/// What its host keeps of a VM that was moved away, or of a move that was cut.
pub(crate) fn partial(spec: &VmSpec) -> PartialReport {
    PartialReport {
        vm: spec.id,
        name: spec.name.clone(),
        job: job(9),
        since: now(),
        received: ByteCount::mebibytes(1),
        allocated: ByteCount::mebibytes(2),
    }
}

/// A planned VM for it, held for a minute: room for its first disk.
pub(crate) fn planned(spec: &VmSpec) -> PlannedVm {
    PlannedVm {
        id: PlannedVmId::from_uuid(job(9).uuid()),
        spec: spec.clone(),
        disks: vec![spec.disks[0].clone()],
        job: job(9),
        source: "alpha".parse().expect("a name"),
        made_at: now(),
        expires_at: later(60),
    }
}

/// The replica of VM `web` at `beta`, its disks all in pool `fast`, with two snapshots.
pub(crate) fn replica() -> Replica {
    let vm = vm("web");
    let fast = |disk: &DiskSpec| DiskSpec { pool: "fast".parse().expect("a name"), ..disk.clone() };
    let disks = vm.disks.iter().map(fast).collect();
    let mut replica = Replica::new(vm, disks, "alpha".parse().expect("a name"));
    for number in [1, 2] {
        let taken_at = later(i64::from(number) - 300);
        let complete_at = later(i64::from(number) - 290);
        let (consistency, written) = (Consistency::Crash, ByteCount::mebibytes(7));
        replica.add(Snapshot {
            number,
            cycle: job(40),
            attempt: 0,
            taken_at,
            complete_at,
            consistency,
            written,
            damaged: false,
        });
    }
    replica
}

/// A request for a clone of VM `web` that is started.
pub(crate) fn clone_request() -> MoveRequest {
    let wish = CloneWish {
        id: "0197c0de-0000-7000-8000-0000000000c1".parse().expect("a UUID"),
        name: "trial".parse().expect("a name"),
        snapshot: None,
        pool: None,
        vcpus: None,
        memory: None,
        firmware: None,
        secure_boot: None,
        network: NetworkWish::Isolated,
        full: false,
        start: true,
        skip_os_adaptation: false,
        hostname: None,
        seed: SeedWish::Auto,
        rehearsal: None,
    };
    MoveRequest { kind: JobKind::Clone, target: None, clone: Some(Box::new(wish)), ..request() }
}

/// A host with a pool `fast` of its own, a pool `san` that all hosts share, a bridge and a boot file; no VM.
pub(crate) fn inventory(host: &str) -> Inventory {
    let pool = |name: &str, shared: Option<&str>| Pool {
        name: name.parse().expect("a name"),
        shared: shared.map(str::to_owned),
        capacity: ByteCount::mebibytes(1 << 20),
        free: ByteCount::mebibytes(1 << 19),
        reserved: ByteCount(0),
        extent: None,
    };
    Inventory {
        host: host.parse().expect("a name"),
        at: now(),
        version: "0.1.0".into(),
        addresses: vec!["127.0.0.1:7001".parse().expect("an address")],
        hypervisor: Hypervisor {
            version: "10.0.2".into(),
            accelerator: Accelerator::Tcg,
            machines: vec!["pc-q35-7.2".into()],
            cpu_models: vec!["max".into(), "qemu64".into()],
            uefi: true,
            secure_boot: true,
        },
        cpu: Cpu { model: "any".into(), features: vec!["avx2".into(), "sse4_2".into()], count: 4 },
        memory_total: ByteCount::mebibytes(8192),
        memory_free: ByteCount::mebibytes(4096),
        pools: vec![pool("fast", None), pool("san", Some("san-1"))],
        bridges: vec!["lan".parse().expect("a name")],
        boot_files: vec![boot_file("vmlinuz")],
        certificate: Certificate { authority: "ab12".into(), not_before: later(-1000), not_after: later(1_000_000) },
        limits: Limits::default(),
        limits_set: LimitsChange::default(),
        epoch: Epoch(0),
        vms: vec![],
        partials: vec![],
        memory_reserved: ByteCount(0),
        planned: vec![],
        replicas: vec![],
        adapts: true,
        probe_commands: vec![],
    }
}

pub(crate) fn request() -> MoveRequest {
    MoveRequest::plain(JobKind::Move, "web", Some("beta".parse().expect("a name")))
}
