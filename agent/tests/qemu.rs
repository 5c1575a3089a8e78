//! The hypervisor's part against real QEMUs. Nothing here has a kernel: the guest sits in its BIOS, or was never let go.

#[path = "qemu/bench.rs"]
mod bench;

use std::time::Duration;

use bench::{Bench, Guard, QEMU, WAIT, qemu_io};
use serde_json::{Value, json};
use sterna_agent::disk::extent::{Extent, ExtentSet};
use sterna_agent::disk::pool::{LayerFile, Pool};
use sterna_agent::guest::launcher::{AttachError, LaunchError, Launched, attach, launch};
use sterna_agent::guest::process::{Ended, touched_bytes};
use sterna_agent::guest::storage_daemon::{Access, serve};
use sterna_agent::guest::tap;
use sterna_agent::hypervisor::qemu::command_line::{Image, ImageKind, disk_nodes, format_node, top_node};
use sterna_agent::hypervisor::qemu::probe::{Verdict, WORK_WAIT_MAX, probe, try_out};
use sterna_agent::hypervisor::qemu::qmp::{Qmp, QmpError};
use sterna_agent::hypervisor::qemu::{
    BitmapOptions, Export, MachineError, MigrationSettings, MigrationStatus, RunState, Throttle,
};
use sterna_agent::probe::measure_machine;
use sterna_agent::replication::layers::own_content;
use sterna_shared::host::Accelerator;
use sterna_shared::probe::Measured;
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::vm::{CacheMode, DiskBus, DiskFormat, DiskSpec, Firmware};

const BITMAP: BitmapOptions = BitmapOptions { granularity: 65536, persistent: false };

fn export(id: &str, node: &str, writable: bool, bitmaps: &[(&str, &str)]) -> Export {
    let bitmaps = bitmaps.iter().map(|(node, name)| ((*node).to_owned(), (*name).to_owned())).collect();
    Export { id: id.to_owned(), node: node.to_owned(), name: id.to_owned(), writable, bitmaps }
}

/// Lets a guest execute, as a person at the second monitor would: only the handover has a method for it.
async fn let_go(guest: &Guard) {
    let monitor = Qmp::connect(&guest.runtime.diagnosis_socket(), WAIT).await.expect("the second monitor");
    monitor.execute("cont", Value::Null, WAIT).await.expect("it runs");
}

/// Writes to the first disk as its guest does: through the device, and so through the top node.
async fn guest_writes(guest: &Guard, command: &str) {
    let line = format!("qemu-io -d /machine/peripheral/disk-root/virtio-backend \"{command}\"");
    let arguments = json!({ "command-line": line });
    let output = guest.machine.qmp().execute("human-monitor-command", arguments, WAIT).await.expect("an answer");
    // It says nothing, or what went wrong.
    assert_eq!(output, json!(""));
}

fn session_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, rest) = stat.rsplit_once(')').expect("a command name");
    rest.split_whitespace().nth(3).expect("a session").parse().expect("a number")
}

#[tokio::test]
async fn a_host_is_probed() {
    let folder = tempfile::tempdir().expect("a folder");
    let found = probe(QEMU.as_ref(), folder.path()).await.expect("an answer");
    assert!(found.hypervisor.machines.contains(&"pc-q35-7.2".to_owned()), "{:?}", found.hypervisor.machines);
    assert!(found.hypervisor.cpu_models.contains(&"max".to_owned()));
    assert!(
        found.hypervisor.version.split('.').count() == 3 && found.cpu.count > 0 && found.memory > ByteCount(1 << 28)
    );
    assert_eq!(found.hypervisor.uefi, found.uefi.is_some());
    assert_eq!(found.hypervisor.secure_boot, found.secure_boot.is_some());
    // A KVM without either is there, starts guests, and interprets their kernels.
    let virtualises = |feature: &String| feature == "vmx" || feature == "svm";
    if !found.cpu.features.iter().any(virtualises) {
        assert_eq!(found.hypervisor.accelerator, Accelerator::Tcg);
    }
    assert!(probe("/nonexistent/qemu".as_ref(), folder.path()).await.is_err());
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "the ROM is removed");
}

/// Translation works on every host: it tells a trial that works from one that turns everything down.
#[tokio::test]
async fn an_accelerator_is_tried_with_a_kernels_work_and_a_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let trial = async |program: &str, work_max| {
        let verdict = try_out(program.as_ref(), Accelerator::Tcg, work_max, folder.path()).await;
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "the ROM is removed");
        verdict.expect("a verdict")
    };
    assert_eq!(trial(QEMU, WORK_WAIT_MAX).await, Verdict::Works);
    // 40 million instructions take every translation longer.
    assert_eq!(trial(QEMU, Duration::from_millis(1)).await, Verdict::TooSlow);
    assert_eq!(trial("false", WORK_WAIT_MAX).await, Verdict::Unusable, "it ends without a word");
}

#[tokio::test]
async fn a_machine_starts_paused_answers_and_outlives_its_agent() {
    let bench = Bench::new();
    let guest = bench.start("source", false).await;
    let identity = guest.process.identity();
    assert_eq!(session_of(identity.pid), identity.pid, "it leads a session of its own");
    assert_eq!(guest.machine.run_state().await.expect("a state"), RunState::Prelaunch);
    let pid: u32 =
        std::fs::read_to_string(guest.runtime.pid_file()).expect("a pid file").trim().parse().expect("a number");
    assert_eq!(pid, identity.pid);
    let data = &bench.vm.disks[1];
    assert_eq!(guest.machine.node_size(&top_node(&data.name)).await.expect("a size"), data.size);
    let refused = guest.machine.qmp().execute("no-such-command", Value::Null, WAIT).await;
    assert!(matches!(refused, Err(QmpError::Refused { class, .. }) if class == "CommandNotFound"));

    let_go(&guest).await;
    guest.machine.run_state_reached(&[RunState::Running], WAIT).await.expect("it runs");
    guest.machine.stop().await.expect("it stops");
    assert_eq!(guest.machine.run_state().await.expect("a state"), RunState::Paused);

    // While an agent holds the monitor a second one gets no greeting: it runs and cannot be driven, and is not "stopped".
    let occupied = attach(&guest.runtime, Duration::from_millis(300)).await;
    let Err(AttachError::Unreachable { process, .. }) = occupied else { panic!("{occupied:?}") };
    assert_eq!(process.identity(), identity);
    drop(process);

    // Nor is it started a second time.
    let twice = launch(&bench.launch_options("source", false, vec![]), WAIT).await;
    assert!(matches!(twice, Err(LaunchError::Occupied { .. })), "{twice:?}");
    assert!(guest.runtime.qmp_socket().exists() && identity.lives());

    // The agent ends: all its handles are gone.
    let runtime = guest.runtime.clone();
    let _reaper = guest.abandon();
    let again = attach(&runtime, WAIT).await.expect("an answer").expect("it is found");
    assert_eq!(again.process.identity(), identity);
    assert_eq!(again.machine.run_state().await.expect("a state"), RunState::Paused);
    let ended = again.end(WAIT).await.expect("ended");
    assert_eq!(ended, Ended { status: None }, "the status of another agent's child is not known");
    assert!(!runtime.path().exists());
    assert!(attach(&runtime, WAIT).await.expect("an answer").is_none());
}

#[tokio::test]
async fn a_machine_that_cannot_start_says_why() {
    let bench = Bench::new();
    let options = bench.launch_options("source", false, vec![]);
    std::fs::write(bench.image("source", 1).path, "no qcow2").expect("written");
    let error = launch(&options, WAIT).await.expect_err("it ends");
    let LaunchError::Ended { log, ended, .. } = &error else { panic!("{error}") };
    assert!(log.contains("qcow2") && ended.status.is_some_and(|status| !status.success()), "{error}");
}

#[tokio::test]
async fn a_machine_ends_when_it_is_told_to_quit() {
    let bench = Bench::new();
    let guest = bench.start("source", false).await;
    guest.machine.quit().await.expect("it quits");
    assert_eq!(guest.process.ended().await.status.and_then(|status| status.code()), Some(0));
    assert!(matches!(guest.machine.stop().await, Err(MachineError::Qmp(QmpError::Lost { .. }))));
}

#[tokio::test]
async fn passes_record_move_and_come_back() {
    let bench = Bench::new();
    let guest = bench.start("source", false).await;
    let machine = &guest.machine;
    let names: Vec<String> = bench.vm.disks.iter().map(|disk| format_node(&disk.name)).collect();
    let nodes: Vec<&str> = names.iter().map(String::as_str).collect();
    let socket = guest.runtime.nbd_socket();
    machine.nbd_server_start(&socket).await.expect("a server");
    machine.bitmap_add(&nodes, "main", BITMAP).await.expect("bitmaps");
    machine.export_add(&export("w", nodes[0], false, &[])).await.expect("an export");
    guest_writes(&guest, "write -P 7 1M 128k").await;
    assert_eq!(machine.dirty_bytes(&nodes, "main").await.expect("a count"), ByteCount(128 << 10));

    machine.pass_begin(&nodes, "main", "pass1", BITMAP.granularity).await.expect("a pass");
    assert_eq!(machine.dirty_bytes(&nodes, "main").await.expect("a count"), ByteCount(0));
    assert_eq!(machine.dirty_bytes(&nodes, "pass1").await.expect("a count"), ByteCount(128 << 10));
    guest_writes(&guest, "write -P 8 4M 64k").await;
    assert_eq!(machine.dirty_bytes(&nodes, "pass1").await.expect("a count"), ByteCount(128 << 10), "it stands still");
    machine.export_add(&export("p", nodes[0], false, &[(nodes[0], "pass1")])).await.expect("an export");
    assert!(machine.pass_end(&nodes, "pass1").await.is_err(), "it is in use");
    qemu_io("p", &socket, "read -P 7 1M 128k");
    machine.export_remove("p", WAIT).await.expect("gone");
    machine.export_remove("p", WAIT).await.expect("gone already");
    assert_eq!(machine.exports().await.expect("exports"), ["w"]);

    machine.pass_abandon(&nodes, "main", "pass1").await.expect("given up");
    assert_eq!(
        machine.dirty_bytes(&nodes, "main").await.expect("a count"),
        ByteCount(192 << 10),
        "nothing is forgotten"
    );
    assert!(matches!(machine.dirty_bytes(&nodes, "pass1").await, Err(MachineError::NoBitmap { .. })));
    machine.pass_begin(&nodes, "main", "pass2", BITMAP.granularity).await.expect("a pass");
    machine.pass_end(&nodes, "pass2").await.expect("done");
    assert!(machine.pass_begin(&nodes, "no-such", "pass3", BITMAP.granularity).await.is_err());
    machine.bitmap_remove(&nodes, "main").await.expect("removed");
    machine.nbd_server_stop().await.expect("stopped");
}

/// The BIOS of a guest without a disk to start from writes next to nothing; what does is the second monitor.
#[tokio::test]
async fn a_guest_is_measured_and_goes_on() {
    let bench = Bench::new();
    let guest = bench.start("source", false).await;
    let machine = &guest.machine;
    assert_eq!(machine.memory_size().await.expect("a size"), bench.vm.memory);
    let_go(&guest).await;
    let measured = async |time| machine.memory_dirty_rate(bench.vm.memory, time, WAIT).await;
    let rate = measured(Duration::from_millis(300)).await.expect("a rate");
    assert!(rate.0 < 64 << 20, "{rate} of a guest with {}", bench.vm.memory);
    // Shorter and longer than QEMU takes; and two at a time, of which it makes one.
    let first = measured(Duration::ZERO);
    let second = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        measured(Duration::ZERO).await
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok(), "{first:?}");
    assert!(matches!(second, Err(MachineError::Qmp(QmpError::Refused { .. }))), "{second:?}");
    assert_eq!(machine.run_state().await.expect("a state"), RunState::Running, "it was not slowed or stopped");

    guest_writes(&guest, "write -P 7 1M 128k").await;
    let disks = machine.disk_use(&bench.vm.disks).await.expect("disks");
    let sizes: Vec<_> = disks.iter().map(|disk| (disk.disk.clone(), disk.size)).collect();
    assert_eq!(sizes, bench.vm.disks.iter().map(|disk| (disk.name.clone(), disk.size)).collect::<Vec<_>>());
    let taken = disks[0].allocated.expect("a file tells");
    assert!(taken >= ByteCount(128 << 10) && taken < disks[0].size, "{taken} of a sparse {}", disks[0].size);

    let pid = machine.qmp().peer_pid().expect("a process");
    assert_eq!(pid, guest.process.identity().pid);
    let touched = touched_bytes(pid).expect("the kernel tells");
    assert!(touched > 1 << 20 && touched < 1 << 30, "{touched} bytes");
}

#[tokio::test]
async fn a_report_on_a_guest_comes_whatever_it_does() {
    let bench = Bench::new();
    let guest = bench.start("source", false).await;
    let measured = async || measure_machine(&guest.machine, &bench.vm.disks, Duration::from_millis(50)).await;
    let waiting = measured().await;
    assert_eq!(waiting.memory_dirty_rate, Measured::Known(Bandwidth(0)), "it does not execute");
    assert_eq!(waiting.disk_write_rate, Measured::Known(Bandwidth(0)));
    let_go(&guest).await;
    let running = measured().await;
    assert_eq!(running.memory_total, Measured::Known(bench.vm.memory));
    assert!(running.memory_used.known().is_some_and(|used| used.0 > 0 && *used <= bench.vm.memory), "{running:?}");
    assert!(running.memory_dirty_rate.known().is_some(), "{running:?}");
    assert_eq!(running.disk_write_rate, Measured::Known(Bandwidth(0)), "it has nothing to write");
    assert_eq!(running.disks.known().map(Vec::len), Some(bench.vm.disks.len()));
    guest.machine.quit().await.expect("it quits");
    guest.process.ended().await;
    let gone = measured().await;
    assert!(matches!(&gone.memory_total, Measured::Unknown { why } if why.contains("monitor")), "{gone:?}");
    assert!(gone.disks.known().is_none() && gone.memory_dirty_rate.known().is_none());
}

#[tokio::test]
async fn another_image_goes_under_a_running_guest() {
    let bench = Bench::new();
    let guest = bench.start("source", false).await;
    let_go(&guest).await;
    let mut moved = bench.vm.disks[0].clone();
    let disk = moved.clone();
    moved.name = "moved".parse().expect("a name");
    for node in disk_nodes(&moved, &bench.image("elsewhere", 0)).expect("nodes").into_iter().take(2) {
        guest.machine.blockdev_add(node).await.expect("a node");
    }
    assert!(guest.machine.blockdev_del(&format_node(&disk.name)).await.is_err(), "it is in use");
    guest.machine.swap_below(&[(&disk, "format-moved")]).await.expect("swapped");
    guest.machine.blockdev_del(&format_node(&disk.name)).await.expect("nothing uses it");
    guest.machine.throttle_writes(&disk, Some(Bandwidth(1 << 20))).await.expect("throttled");
    guest.machine.throttle_writes(&disk, None).await.expect("free");
    assert_eq!(guest.machine.run_state().await.expect("a state"), RunState::Running);
}

#[tokio::test]
async fn a_guest_moves_and_the_target_ends_paused() {
    for (multifd_channels, compress) in [(2, false), (0, false), (2, true)] {
        let bench = Bench::new();
        let (source, target) = (bench.start("source", false).await, bench.start("target", true).await);
        let_go(&source).await;
        let settings = MigrationSettings {
            multifd_channels,
            bandwidth: None,
            downtime_limit: Duration::from_millis(300),
            auto_converge: None,
            compress,
        };
        for side in [&source, &target] {
            side.machine.migration_set_up(&settings).await.expect("set up");
        }
        assert_eq!(target.machine.run_state().await.expect("a state"), RunState::InMigrate);
        assert_eq!(source.machine.migration().await.expect("an answer").status, MigrationStatus::None);
        // The disks of a waiting target are filled below its devices.
        let nbd = target.runtime.nbd_socket();
        target.machine.nbd_server_start(&nbd).await.expect("a server");
        for disk in &bench.vm.disks {
            let export = export(disk.name.as_str(), &format_node(&disk.name), true, &[]);
            target.machine.export_add(&export).await.expect("an export");
            qemu_io(disk.name.as_str(), &nbd, "write -P 5 1M 64k");
        }
        let socket = bench.path("memory.sock");
        target.machine.migrate_incoming(&socket).await.expect("listening");
        source.machine.migrate(&socket).await.expect("started");
        let paused = source.machine.migration_reached(&[MigrationStatus::PreSwitchover], WAIT).await.expect("paused");
        assert!(paused.ram.is_some_and(|ram| ram.total >= bench.vm.memory && ram.iterations > 0), "{paused:?}");
        assert_ne!(source.machine.run_state().await.expect("a state"), RunState::Running);
        source.machine.migrate_continue().await.expect("goes on");
        let done = source.machine.migration_reached(&[MigrationStatus::Completed], WAIT).await.expect("completed");
        assert!(done.downtime_ms.is_some(), "{done:?}");
        source.machine.run_state_reached(&[RunState::PostMigrate], WAIT).await.expect("over");
        target.machine.migration_reached(&[MigrationStatus::Completed], WAIT).await.expect("loaded");
        target.machine.run_state_reached(&[RunState::Paused], WAIT).await.expect("it waits");
        qemu_io("root", &nbd, "read -P 5 1M 64k");
        target.machine.nbd_server_stop().await.expect("stopped");
        let_go(&target).await;
        target.machine.run_state_reached(&[RunState::Running], WAIT).await.expect("it runs");
        guest_writes(&target, "write -P 6 2M 64k").await;
    }
}

#[tokio::test]
async fn a_move_given_up_at_the_switchover_leaves_the_guest_running() {
    let bench = Bench::new();
    let (source, target) = (bench.start("source", false).await, bench.start("target", true).await);
    let_go(&source).await;
    let settings = MigrationSettings {
        multifd_channels: 2,
        bandwidth: Some(Bandwidth(1 << 30)),
        downtime_limit: Duration::from_millis(300),
        auto_converge: Some(Throttle { first: 20, step: 10 }),
        compress: false,
    };
    for side in [&source, &target] {
        side.machine.migration_set_up(&settings).await.expect("set up");
    }
    let socket = bench.path("memory.sock");
    target.machine.migrate_incoming(&socket).await.expect("listening");
    source.machine.migrate(&socket).await.expect("started");
    source.machine.migration_limit(None).await.expect("no limit");
    source.machine.migration_reached(&[MigrationStatus::PreSwitchover], WAIT).await.expect("paused");
    source.machine.migrate_cancel().await.expect("cancelled");
    source.machine.migration_reached(&[MigrationStatus::Cancelled], WAIT).await.expect("cancelled");
    source.machine.run_state_reached(&[RunState::Running], WAIT).await.expect("it runs on");
    let late = source.machine.migration_reached(&[MigrationStatus::Completed], WAIT).await;
    assert!(matches!(late, Err(MachineError::MigrationEnded { status: MigrationStatus::Cancelled, .. })), "{late:?}");
    target.process.kill(Duration::ZERO).await.expect("the target is ended");
    let gone = target.machine.migration_reached(&[MigrationStatus::Completed], WAIT).await;
    assert!(matches!(gone, Err(MachineError::Qmp(QmpError::Lost { .. }))), "{gone:?}");
}

#[tokio::test]
async fn a_storage_daemon_serves_what_a_machine_would() {
    let bench = Bench::new();
    let runtime = bench.runtime("daemon");
    let disks = [(&bench.vm.disks[0], bench.image("source", 0)), (&bench.vm.disks[1], bench.image("source", 1))];
    let program = "qemu-storage-daemon".as_ref();
    let unit = || format!("sterna-test-{}-daemon", std::process::id());
    let daemon = Guard::new(
        serve(program, &disks, Access::Write { raw_files: CacheMode::Writeback }, &runtime, unit(), WAIT)
            .await
            .expect("a daemon"),
    );
    let node = format_node(&disks[1].0.name);
    let socket = runtime.nbd_socket();
    daemon.machine.nbd_server_start(&socket).await.expect("a server");
    let persistent = BitmapOptions { persistent: true, ..BITMAP };
    daemon.machine.bitmap_add(&[&node], "main", persistent).await.expect("a bitmap");
    daemon.machine.export_add(&export("data", &node, true, &[])).await.expect("an export");
    qemu_io("data", &socket, "write -P 9 0 64k");
    // An agent's restart: the connection goes, the daemon and its exports stay.
    let identity = daemon.process.identity();
    let _reaper = daemon.abandon();
    let daemon = Guard::new(attach(&runtime, WAIT).await.expect("an answer").expect("it is found"));
    assert_eq!(daemon.process.identity(), identity);
    assert_eq!(daemon.machine.exports().await.expect("exports"), ["data"]);
    daemon.machine.quit().await.expect("it quits");
    daemon.process.ended().await;

    let reader = Guard::new(serve(program, &disks, Access::Read, &runtime, unit(), WAIT).await.expect("a daemon"));
    let bitmaps = reader.machine.node(&node).await.expect("a node").bitmaps;
    assert!(bitmaps.iter().any(|bitmap| bitmap.name == "main" && bitmap.persistent), "it is in the image: {bitmaps:?}");
    assert!(reader.machine.export_add(&export("data", &node, true, &[])).await.is_err(), "nothing may be written");
    Launched::clone(&reader).end(WAIT).await.expect("ended");
}

#[tokio::test]
async fn a_layer_tells_of_all_that_was_ever_written_to_it_and_of_nothing_below() {
    const SIZE: ByteCount = ByteCount::mebibytes(4);
    let bench = Bench::new();
    let folder = tempfile::tempdir().expect("a folder");
    let pool = Pool::open("fast".parse().expect("a name"), folder.path(), None).expect("a pool");
    let disk = DiskSpec { format: DiskFormat::Qcow2, size: SIZE, ..bench.vm.disks[1].clone() };
    let make = |number| pool.create_layer(bench.vm.id, &disk.name, LayerFile::Layer(number), SIZE);
    let (lower, upper) = (make(1).await.expect("made"), make(2).await.expect("made"));
    let mut fill = std::process::Command::new("qemu-io");
    assert!(fill.args(["-f", "qcow2", "-c", "write -q -P 1 0 2M"]).arg(&lower).status().expect("it runs").success());
    let images = [(&disk, Image { path: upper, kind: ImageKind::File, layers: vec![lower] })];
    let (runtime, unit) = (bench.runtime("layers"), format!("sterna-test-{}-layers", std::process::id()));
    let access = Access::Write { raw_files: CacheMode::Writeback };
    let daemon = serve("qemu-storage-daemon".as_ref(), &images, access, &runtime, unit, WAIT).await;
    let daemon = Guard::new(daemon.expect("a daemon"));
    let socket = runtime.nbd_socket();
    daemon.machine.nbd_server_start(&socket).await.expect("a server");
    daemon.machine.export_add(&export("data", &format_node(&disk.name), true, &[])).await.expect("an export");
    let own = async || own_content(&daemon.machine, &socket, 0, &disk).await.expect("an answer");
    assert_eq!(own().await, ExtentSet::new());
    // What is below already, what is not, and zeroes where nothing is.
    for command in ["write -P 1 0 64k", "write -P 2 1M 64k", "write -z 3M 64k"] {
        qemu_io("data", &socket, command);
    }
    let written = [0, 1 << 20, 3 << 20].map(|start| Extent::new(start, 64 << 10).expect("in range"));
    assert_eq!(own().await.iter().collect::<Vec<_>>(), written);
    assert_eq!(daemon.machine.exports().await.expect("exports"), ["data"], "what was asked by is gone");
}

#[tokio::test]
async fn qemu_takes_every_bus_and_firmware_that_is_laid_out() {
    for (machine, firmware, secure_boot) in [
        ("pc-q35-7.2", Firmware::Uefi, false),
        ("pc-q35-7.2", Firmware::Uefi, true),
        ("pc-i440fx-7.2", Firmware::Bios, false),
    ] {
        let mut bench = Bench::new();
        machine.clone_into(&mut bench.vm.machine);
        (bench.vm.firmware, bench.vm.secure_boot) = (firmware, secure_boot);
        let extra = ["virtio-rng-pci", "virtio-balloon-pci", "i6300esb", "pvpanic-pci"].map(|model| ["-device", model]);
        let plain =
            ["-no-reboot", "-rtc", "base=utc,clock=host", "-smbios", "type=1,product=a b", "-action", "panic=none"];
        bench.vm.extra_arguments = extra.into_iter().flatten().chain(plain).map(str::to_owned).collect();
        let model = bench.vm.disks[1].clone();
        let buses = [(DiskBus::Virtio, 9), (DiskBus::Scsi, 2), (DiskBus::Sata, 7)];
        let places = buses.iter().flat_map(|(bus, count)| (0..*count).map(move |index| (*bus, index)));
        bench.vm.disks = places
            .map(|(bus, index)| DiskSpec {
                name: format!("{bus:?}-of-a-long-name-{index}").parse().expect("a name"),
                bus,
                read_only: bus != DiskBus::Sata && index == 0,
                base: None,
                ..model.clone()
            })
            .collect();
        let guest = bench.start("source", false).await;
        for disk in &bench.vm.disks {
            guest.machine.throttle_writes(disk, Some(Bandwidth(1 << 20))).await.expect("its device is found");
            let node = guest.machine.node(&top_node(&disk.name)).await.expect("a node");
            assert_eq!((node.image.size, node.read_only), (disk.size, disk.read_only), "{}", disk.name);
        }
        let_go(&guest).await;
        guest.machine.run_state_reached(&[RunState::Running], WAIT).await.expect("it runs");
    }
}

/// A bridge that goes with the test.
struct Bridge(String);

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "delete", "dev", &self.0]).status();
    }
}

#[tokio::test]
async fn a_nic_is_on_its_bridge() {
    let mut bench = Bench::new();
    let bridge = Bridge(format!("stbr{}", std::process::id()));
    let made = std::process::Command::new("ip").args(["link", "add", "dev", &bridge.0, "type", "bridge"]).status();
    assert!(made.expect("ip").success(), "this test makes a bridge: run it as root");
    let id = uuid::Uuid::new_v4().to_string().parse().expect("an id");
    let tap = tap::tap_name(id, 0);
    let name: sterna_shared::id::BridgeName = bridge.0.parse().expect("a name");
    tap::create(&tap, &name).await.expect("made");
    tap::create(&tap, &name).await.expect("made already");
    let master = std::fs::read_link(format!("/sys/class/net/{tap}/master")).expect("a master");
    assert!(master.ends_with(&bridge.0));

    bench.vm.nics[0].bridge = Some(name);
    let options = bench.launch_options("source", false, vec![Some(tap.clone())]);
    let guest = Guard::new(launch(&options, WAIT).await.expect("a machine"));
    let network =
        guest.machine.qmp().execute("query-rx-filter", json!({ "name": "nic-0" }), WAIT).await.expect("a nic");
    assert_eq!(network[0]["main-mac"], "52:54:00:00:00:01");
    drop(guest);
    tap::delete(&tap).await.expect("removed");
    tap::delete(&tap).await.expect("removed already");
}

#[tokio::test]
async fn a_port_leads_to_an_isolated_guest_and_whether_it_accepts_is_known() {
    let mut bench = Bench::new();
    bench.vm.nics[0].isolated = Some("192.0.2.10/24".parse().expect("an address"));
    let guest = bench.start("source", false).await;
    let [open, taken] = [22, 80].map(|port| std::net::SocketAddrV4::new([192, 0, 2, 10].into(), port));
    let host = guest.machine.forward(0, open).await.expect("a port");
    assert!(host.ip().is_loopback() && host.port() != 0);
    assert_ne!(guest.machine.forward(0, taken).await.expect("another"), host);
    // QEMU takes it in, and the guest, which is in its BIOS, does not.
    tokio::net::TcpStream::connect(host).await.expect("a connection");
    assert!(!guest.machine.has_accepted(open).await.expect("an answer"));
    let error = guest.machine.forward(1, open).await.expect_err("there is no second nic");
    assert!(error.to_string().contains("192.0.2.10:22"), "{error}");
}
