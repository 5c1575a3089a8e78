//! Clones: the VM that is made of a replica, and every reason why not.

use sterna_shared::id::DiskName;
use sterna_shared::job::JobKind;
use sterna_shared::replica::{CloneWish, NetworkWish, SEED_SIZE, SeedWish};
use sterna_shared::vm::{DiskSpec, VmSpec};

use super::*;

/// A world in which the target has a replica that a clone is to be made of; the VM's own host is of no use to it.
fn sound() -> World {
    let mut world = World::sound();
    world.source_silent = true;
    world.target.replicas = vec![example::replica()];
    world.request = example::clone_request();
    world
}

fn wish(world: &mut World) -> &mut CloneWish {
    world.request.clone.as_deref_mut().expect("a wish")
}

#[test]
fn a_clone_stands_on_the_latest_snapshot_and_has_addresses_of_its_own() {
    let world = sound();
    let plan = world.plan().expect("a plan");
    assert_eq!((plan.kind, plan.generation), (JobKind::Clone, Generation(0)));
    assert_eq!(plan.steps, [StepKind::CloneDisks, StepKind::AdaptOs, StepKind::Instantiate]);
    assert_eq!(plan.parties(), [&world.target.host]);
    let clone = plan.clone.as_ref().expect("of a snapshot");
    assert_eq!((clone.snapshot, clone.full, clone.start), (2, false, true));
    assert_eq!((plan.vm.name.as_str(), &plan.vm), ("trial", &plan.vm_at_target));
    assert!(plan.disks.is_empty());
    assert_eq!((clone.seed, plan.vm.disks.len()), (SeedWish::Auto, example::vm("web").disks.len()));
    for disk in &plan.vm.disks {
        let base = disk.base.as_ref().expect("a base");
        assert_eq!((base.layer, base.replica, base.pool.as_str()), (2, clone.replica, "fast"));
        assert_eq!((disk.pool.as_str(), disk.format), ("fast", DiskFormat::Qcow2));
    }
    let (of, nic) = (&example::vm("web").nics[0], &plan.vm.nics[0]);
    assert!(nic.bridge.is_none() && nic.isolated.is_some() && nic.mac != of.mac);
    assert_eq!(nic.mac.bytes()[0], 0x52);
    assert_eq!(world.plan().expect("a plan").vm, plan.vm, "the same each time");
}

#[test]
fn what_is_wished_of_a_clone_it_has() {
    let mut world = sound();
    world.target.replicas[0].vm.nics.push(sterna_shared::vm::NicSpec {
        mac: "52:54:00:00:00:02".parse().expect("a MAC"),
        bridge: None,
        isolated: None,
    });
    *wish(&mut world) = CloneWish {
        snapshot: Some(1),
        pool: Some("san".parse().expect("a name")),
        vcpus: Some(3),
        memory: Some(ByteCount::mebibytes(128)),
        network: NetworkWish::Same,
        full: true,
        ..wish(&mut world).clone()
    };
    let plan = world.plan().expect("a plan");
    assert_eq!(plan.clone.map(|clone| clone.snapshot), Some(1));
    let VmSpec { vcpus, memory, disks, nics, .. } = plan.vm;
    assert_eq!((vcpus, memory), (3, ByteCount::mebibytes(128)));
    assert!(disks.iter().all(|disk| disk.base.is_none() && disk.pool.as_str() == "san"));
    let bridges: Vec<_> = nics.iter().map(|nic| nic.bridge.as_ref().map(|bridge| bridge.as_str().to_owned())).collect();
    assert_eq!(bridges, [Some("lan".to_owned()), None]);
    assert_ne!(nics[0].mac, nics[1].mac);
    wish(&mut world).network = NetworkWish::Bridge("lan".parse().expect("a name"));
    assert!(world.plan().expect("a plan").vm.nics.iter().all(|nic| nic.bridge.is_some()));
}

#[test]
fn a_clone_has_a_seed_of_its_own_where_somebody_may_need_it() {
    let mut world = sound();
    let count = world.target.replicas[0].vm.disks.len();
    let planned = |world: &World| {
        let plan = world.plan().expect("a plan");
        (plan.clone.expect("of a snapshot").seed, plan.vm.disks)
    };
    wish(&mut world).skip_os_adaptation = true;
    let (seed, disks) = planned(&world);
    assert_eq!((seed, disks.len()), (SeedWish::Never, count), "nobody looks what system it is");
    wish(&mut world).seed = SeedWish::Always;
    let (seed, disks) = planned(&world);
    assert_eq!((seed, disks.len()), (SeedWish::Always, count), "the host adds it");
    // The VM is itself a clone with a seed, which says who the VM is.
    let own = DiskSpec::seed("san".parse().expect("a name"));
    world.target.replicas[0].vm.disks.push(own.clone());
    world.target.replicas[0].disks.push(DiskSpec { format: DiskFormat::Qcow2, ..own });
    *wish(&mut world) = CloneWish { skip_os_adaptation: false, seed: SeedWish::Auto, ..wish(&mut world).clone() };
    let (seed, disks) = planned(&world);
    assert_eq!((seed, disks.len()), (SeedWish::Always, count), "the VM's own is left out");
    assert!(disks.iter().all(|disk| !disk.is_seed()));
    wish(&mut world).seed = SeedWish::Never;
    let (_, disks) = planned(&world);
    assert!(disks.len() == count + 1 && disks[count].base.is_some(), "and is a disk like any other where none is made");
    // Without it those behind it would have other names in the guest.
    let disks = &mut world.target.replicas[0].vm.disks;
    disks.rotate_right(1);
    wish(&mut world).seed = SeedWish::Auto;
    assert_eq!(planned(&world).0, SeedWish::Never);
    world.target.replicas[0].vm.disks.rotate_left(1);
    // A disk that only has its name.
    world.target.replicas[0].vm.disks[count].size = SEED_SIZE.plus(SEED_SIZE);
    wish(&mut world).seed = SeedWish::Auto;
    let (seed, disks) = planned(&world);
    assert_eq!((seed, disks.len(), &disks[count].name), (SeedWish::Never, count + 1, &DiskName::seed()));
    wish(&mut world).seed = SeedWish::Always;
    assert!(world.codes().contains(&RefusalCode::InvalidValue), "it is in the place of the seed");
}

#[test]
fn a_host_name_is_told_to_whoever_sets_it() {
    let mut world = sound();
    let hostname = Some("shop.example".parse().expect("a host name"));
    wish(&mut world).hostname.clone_from(&hostname);
    assert_eq!(world.plan().expect("a plan").clone.expect("of a snapshot").hostname, hostname);
    wish(&mut world).skip_os_adaptation = true;
    assert_eq!(world.codes(), BTreeSet::from([RefusalCode::InvalidValue]));
    wish(&mut world).seed = SeedWish::Always;
    assert!(world.plan().is_ok());
}

#[test]
fn a_clone_has_secure_boot_as_the_vm_has_where_nothing_else_is_asked() {
    let mut world = sound();
    let vm = &mut world.target.replicas[0].vm;
    (vm.firmware, vm.kernel) = (Firmware::Uefi, None);
    for (of, wished, is) in [
        (false, None, false),
        (true, None, true),
        (false, Some(true), true),
        (true, Some(true), true),
        (true, Some(false), false),
    ] {
        world.target.replicas[0].vm.secure_boot = of;
        wish(&mut world).secure_boot = wished;
        assert_eq!(world.plan().expect("a plan").vm.secure_boot, is, "{wished:?} of a VM with {of}");
        // Its host needs the firmware that the clone has, and not that of the VM.
        world.target.hypervisor.secure_boot = !is;
        world.target.hypervisor.uefi = is;
        assert_eq!(world.codes(), [RefusalCode::Firmware].into());
        (world.target.hypervisor.secure_boot, world.target.hypervisor.uefi) = (true, true);
    }
}

#[test]
fn a_clone_boots_as_the_vm_does_or_is_not_made() {
    let mut world = sound();
    wish(&mut world).firmware = Some(Firmware::Bios);
    assert!(world.plan().is_ok(), "so it does");
    wish(&mut world).firmware = Some(Firmware::Uefi);
    assert_eq!(world.codes(), [RefusalCode::BootOptionImpossible].into());
    let vm = &mut world.target.replicas[0].vm;
    (vm.firmware, vm.kernel) = (Firmware::Uefi, None);
    assert!(world.plan().is_ok());
}

#[test]
fn secure_boot_is_refused_for_each_thing_that_the_vm_lacks() {
    let mut world = sound();
    wish(&mut world).secure_boot = Some(true);
    let refused = |world: &World| {
        let refusals = world.plan().expect_err("refused");
        assert!(refusals.iter().all(|refusal| refusal.code == RefusalCode::SecureBootImpossible), "{refusals:?}");
        refusals.into_iter().map(|refusal| refusal.message).collect::<Vec<_>>()
    };
    assert_eq!(
        refused(&world),
        ["clone trial is to have secure boot, which needs firmware = \"uefi\"; VM web has not"]
    );
    world.target.hypervisor.machines.push("pc-i440fx-7.2".to_owned());
    world.target.replicas[0].vm.machine = "pc-i440fx-7.2".to_owned();
    assert_eq!(refused(&world).len(), 2);
    wish(&mut world).secure_boot = Some(false);
    assert!(world.plan().is_ok());
}

#[test]
fn of_several_replicas_that_with_the_latest_snapshot_is_taken() {
    let mut world = sound();
    let mut older = example::replica();
    older.layers.pop();
    (world.source.replicas, world.source_silent) = (vec![older], false);
    let chosen = |world: &World| world.plan().expect("a plan").target.id;
    world.request.vm = example::vm("web").id.to_string();
    wish(&mut world).name = "other".parse().expect("a name");
    assert_eq!(chosen(&world), world.target.host);
    world.request.target = Some(world.source.host.clone());
    assert_eq!(chosen(&world), world.source.host);
}

#[test]
fn a_clone_that_goes_on_is_made_from_the_same_snapshot() {
    let mut world = sound();
    wish(&mut world).snapshot = Some(1);
    world.jobs = vec![JobStatus::planned(world.plan().expect("a plan"))];
    wish(&mut world).snapshot = None;
    assert_eq!(world.plan().expect("a plan").clone.map(|clone| clone.snapshot), Some(1));
}

#[test]
fn every_reason_why_there_is_no_clone_is_told() {
    let faults: [(RefusalCode, Plant); 24] = [
        (RefusalCode::InvalidValue, |world| world.request.clone = None),
        (RefusalCode::ReplicaUnknown, |world| world.target.replicas.clear()),
        (RefusalCode::ReplicaUnknown, |world| world.request.target = Some("alpha".parse().expect("a name"))),
        (RefusalCode::UnknownHost, |world| world.request.target = Some("gamma".parse().expect("a name"))),
        (RefusalCode::AmbiguousVm, |world| {
            let mut other = example::replica();
            other.vm.id = "0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID");
            world.target.replicas.push(other);
        }),
        (RefusalCode::HostOffline, |world| world.target_silent = true),
        (RefusalCode::SnapshotUnknown, |world| world.target.replicas[0].layers.clear()),
        (RefusalCode::SnapshotUnknown, |world| wish(world).snapshot = Some(7)),
        (RefusalCode::SnapshotDamaged, |world| world.target.replicas[0].mark_damaged(&BTreeSet::from([2]))),
        (RefusalCode::NameTaken, |world| wish(world).id = example::vm("web").id),
        (RefusalCode::NameTaken, |world| {
            let mut other = example::vm("trial");
            other.id = "0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID");
            world.target.vms.push(example::report(&other));
        }),
        (RefusalCode::NameTaken, |world| {
            let mut plan = world.plan().expect("a plan");
            plan.job = example::job(5);
            world.jobs.push(JobStatus::planned(plan));
        }),
        (RefusalCode::InvalidValue, |world| wish(world).vcpus = Some(0)),
        (RefusalCode::InvalidValue, |world| wish(world).memory = Some(ByteCount(1))),
        (RefusalCode::Memory, |world| world.target.memory_free = ByteCount(0)),
        (RefusalCode::UnknownPool, |world| wish(world).pool = Some("slow".parse().expect("a name"))),
        (RefusalCode::PoolKind, |world| world.target.pools[0].extent = Some(ByteCount::mebibytes(4))),
        (RefusalCode::PoolSpace, |world| world.target.pools[0].free = ByteCount::mebibytes(31)),
        (RefusalCode::UnknownBridge, |world| {
            wish(world).network = NetworkWish::Bridge("wan".parse().expect("a name"));
        }),
        (RefusalCode::MachineType, |world| world.target.hypervisor.machines.clear()),
        (RefusalCode::CpuModel, |world| world.target.replicas[0].vm.cpu = "EPYC".into()),
        (RefusalCode::Firmware, |world| {
            world.target.replicas[0].vm.firmware = Firmware::Uefi;
            world.target.replicas[0].vm.kernel = None;
            world.target.hypervisor.uefi = false;
        }),
        (RefusalCode::BootFile, |world| world.target.boot_files.clear()),
        (RefusalCode::NoAdapter, |world| world.target.adapts = false),
    ];
    for (number, (code, plant)) in faults.iter().enumerate() {
        let mut world = sound();
        plant(&mut world);
        assert_eq!(world.codes(), BTreeSet::from([*code]), "{number}");
        assert!(world.plan().expect_err("refused").iter().all(|refusal| !refusal.remedy.is_empty()), "{number}");
    }
}

#[test]
fn room_is_needed_for_what_is_copied_and_memory_for_what_is_started() {
    let mut world = sound();
    world.target.pools[0].free = ByteCount::mebibytes(33);
    assert_eq!(world.codes(), BTreeSet::new(), "two thin disks, and a seed");
    wish(&mut world).full = true;
    assert_eq!(world.codes(), BTreeSet::from([RefusalCode::PoolSpace]));
    let mut world = sound();
    world.target.memory_free = ByteCount(0);
    wish(&mut world).start = false;
    assert_eq!(world.codes(), BTreeSet::new());
}

#[test]
fn a_system_that_is_left_as_it_is_needs_no_helper_guest() {
    let mut world = sound();
    world.target.adapts = false;
    wish(&mut world).skip_os_adaptation = true;
    assert_eq!(world.plan().expect("a plan").steps, [StepKind::CloneDisks, StepKind::Instantiate]);
}
