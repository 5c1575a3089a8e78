//! The witness is proven before anything is proven by it: it runs, it counts, and it can fail.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use sterna_tests::guest_image::GuestImage;
use sterna_tests::namespace::{Host, Link, Network, PREFIX, sweep};
use sterna_tests::process::Process;
use sterna_tests::witness::{Ticks, Witness};
use sterna_witness::protocol::DEFAULT_PORT;
use sterna_witness::record::{Block, RECORD_BYTES, Records};
use tempfile::TempDir;

const BOOT_WAIT: Duration = Duration::from_secs(90);
const WAIT: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 16 << 20;
const SEED: u64 = 0x5eed;

/// A guest run by QEMU alone, without any agent: two disks, one tap.
struct Direct {
    folder: TempDir,
    address: Ipv4Addr,
    qemu: Process,
}

impl Direct {
    async fn boot(network: &mut Network, host: &Host) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (raw, qcow2) = (folder.path().join("0.raw"), folder.path().join("1.qcow2"));
        File::create(&raw).and_then(|file| file.set_len(DISK_BYTES)).expect("a raw disk");
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(&qcow2).arg(DISK_BYTES.to_string());
        assert!(create.status().expect("qemu-img runs").success());
        host.add_tap("tap0").expect("a tap");
        let address = network.guest_address();
        let qemu = start(host, address, folder.path(), "");
        Self { folder, address, qemu }
    }

    async fn ready(&self) {
        self.qemu.wait_for_line("WITNESS READY", BOOT_WAIT).await.expect("the guest starts");
    }

    fn raw(&self) -> PathBuf {
        self.folder.path().join("0.raw")
    }
}

fn start(host: &Host, address: Ipv4Addr, folder: &Path, more: &str) -> Process {
    let image = GuestImage::find().expect("the guest is built");
    let append = format!(
        "console=ttyS0 quiet panic=-1 witness.seed={SEED} witness.memory=32 witness.rewrite=8 witness.disks=2 \
         witness.records=50 witness.ip={address}/{PREFIX} {more}"
    );
    let mut qemu = host.command("qemu-system-x86_64");
    qemu.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-reboot"]);
    qemu.args(["-display", "none", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(image.kernel).arg("-initrd").arg(image.initrd).arg("-append").arg(append);
    for (name, format) in [("0.raw", "raw"), ("1.qcow2", "qcow2")] {
        let file = folder.join(name);
        qemu.arg("-drive").arg(format!("file={},format={format},if=virtio,cache=writeback", file.display()));
    }
    qemu.args(["-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=net0"]);
    Process::spawn("qemu", &mut qemu, &folder.join("console")).expect("QEMU starts")
}

#[tokio::test]
async fn the_witness_counts_and_verifies_and_finds_what_is_lost() {
    let mut network = Network::new().expect("a network");
    let host = network.host("a").expect("a host");
    let client = network.host("client").expect("a client");
    let mut guest = Direct::boot(&mut network, &host).await;
    guest.ready().await;

    let mut witness = Witness::connect(&client, guest.address, DEFAULT_PORT).await.expect("connects");
    let hello = witness.hello().await.expect("hello");
    assert_eq!((hello.seed, hello.memory_mib, hello.disks), (SEED, 32, 2));
    let listener = Witness::connect(&client, guest.address, DEFAULT_PORT).await.expect("connects");
    let subscription = listener.subscribe().await.expect("subscribes");
    let far = |last: u64| {
        move |r: &sterna_tests::witness::Recording| r.acknowledged.iter().filter(|n| **n >= last).count() == 2
    };
    subscription.wait_for(WAIT, far(50)).await.expect("records are acknowledged");

    // Nothing is lost, and what the test saw acknowledged is what the witness has.
    let result = witness.verify().await.expect("verifies");
    assert!(result.ok, "{result:?}");
    assert_eq!(result.memory.checked, 32 * 256);
    let status = witness.status().await.expect("status");
    assert!(status.memory_pages_rewritten > 0 && status.ticks > 0, "{status:?}");
    assert!(result.disks.iter().all(|disk| disk.checked >= 50), "{result:?}");

    // Console and network tell the same numbers.
    guest.qemu.wait_for_line("ACK 1 50", WAIT).await.expect("acknowledgements are on the console");

    // A pause from outside is seen from outside, whatever the guest's own clock says.
    let mut ticks = Ticks::listen(&client, guest.address, DEFAULT_PORT).expect("listens");
    ticks.wait_for(20, WAIT).await.expect("ticks by datagram");
    guest.qemu.signal(Signal::STOP).expect("frozen");
    tokio::time::sleep(Duration::from_millis(700)).await;
    guest.qemu.signal(Signal::CONT).expect("goes on");
    let count = ticks.gaps().count;
    let gaps = ticks.wait_for(count + 20, WAIT).await.expect("ticks again");
    assert!(gaps.longest >= Duration::from_millis(600), "{gaps:?}");
    subscription.wait_for(WAIT, far(100)).await.expect("goes on");

    // A cut is silent: the connection is still there afterwards, and nothing was lost.
    host.cut(Link::Lan).expect("cut");
    let before = subscription.recording().tick_last;
    tokio::time::sleep(Duration::from_millis(500)).await;
    host.restore(Link::Lan).expect("restored");
    subscription.wait_for(WAIT, |r| r.tick_last > before).await.expect("the stream goes on");
    subscription.wait_for(WAIT, far(130)).await.expect("goes on");
    let recording = subscription.recording();
    assert!(recording.gap_max >= Duration::from_millis(400), "{recording:?}");
    assert_eq!(recording.faults, Vec::<String>::new());

    // It can fail: a byte of a record flipped behind its back, a record taken back to zeroes, a word of memory.
    witness.tell("pause-writes").await.expect("paused");
    let acknowledged = witness.status().await.expect("status").disks[0].acknowledged;
    let records = Records::new(SEED, 0, DISK_BYTES).expect("room");
    let image = File::options().read(true).write(true).open(guest.raw()).expect("the raw disk");
    let place = records.block_of(acknowledged - 3) * RECORD_BYTES as u64;
    let mut original = vec![0; RECORD_BYTES];
    image.read_exact_at(&mut original, place).expect("read");
    let mut flipped = original.clone();
    flipped[1234] ^= 0x10;
    for (wrong, named) in [(flipped, "Damaged"), (vec![0; RECORD_BYTES], "Zeroes")] {
        image.write_all_at(&wrong, place).expect("planted");
        let result = witness.verify().await.expect("verifies");
        assert!(!result.ok && result.disks[0].mismatches == 1 && result.disks[1].mismatches == 0, "{result:?}");
        let first = result.disks[0].first.as_deref().unwrap_or_default();
        assert!(first.contains(&format!("record {} ", acknowledged - 3)) && first.contains(named), "{first}");
    }
    image.write_all_at(&original, place).expect("repaired");
    assert!(witness.verify().await.expect("verifies").ok);
    witness.tell("poke memory 77").await.expect("poked");
    let result = witness.verify().await.expect("verifies");
    assert!(!result.ok && result.memory.mismatches == 1, "{result:?}");
    assert!(result.memory.first.expect("described").starts_with("page 77:"));

    // Killed without warning, every acknowledged record is on the stopped disk, by the same rules.
    witness.tell("resume-writes").await.expect("goes on");
    subscription.wait_for(WAIT, far(acknowledged + 20)).await.expect("goes on");
    guest.qemu.kill().expect("killed");
    let acknowledged = subscription.recording().acknowledged;
    let read = |offset: u64, blocks: &mut [Block]| {
        (offset..).step_by(RECORD_BYTES).zip(blocks).try_for_each(|(at, block)| image.read_exact_at(&mut block.0, at))
    };
    let highest = records.highest(read).expect("read");
    assert!(highest >= acknowledged[0], "{highest} on the disk, {acknowledged:?} acknowledged");
    let offline = records.verify(highest, read).expect("read");
    assert_eq!((offline.mismatches, offline.checked), (0, highest), "{:?}", offline.first);

    // Started anew it is another run, and finds on the disks what the last one left.
    guest.qemu = start(&host, guest.address, guest.folder.path(), "witness.continue=1");
    guest.ready().await;
    let mut witness = Witness::connect(&client, guest.address, DEFAULT_PORT).await.expect("connects");
    assert_ne!(witness.hello().await.expect("hello").boot_id, hello.boot_id);
    for (disk, number) in acknowledged.iter().enumerate() {
        let checked = witness.check(disk, *number).await.expect("checks");
        assert_eq!(checked.mismatches, 0, "{checked:?}");
        let survey = witness.survey(disk).await.expect("surveys");
        assert!(survey.mismatches == 0 && survey.acknowledged >= *number, "{survey:?}");
    }
    witness.power_off().await.expect("told");
    assert!(guest.qemu.wait(WAIT).await.expect("ends").success());
}

#[test]
fn a_network_goes_away_with_its_processes_and_so_does_that_of_a_dead_test() {
    let mut network = Network::new().expect("a network");
    let host = network.host("a").expect("a host");
    let other = network.host("b").expect("another");
    assert!(network.host("a").is_err() && network.host("much-too-long-a-name").is_err());
    // Nobody listens there: a refusal is an answer, and silence is none.
    let reach = |link| {
        let answer = host.connect_tcp((other.address(link), 9).into(), Duration::from_millis(500));
        answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    for link in [Link::Lan, Link::Data] {
        assert!(reach(link), "{link:?} joins the hosts");
        other.cut(link).expect("cut");
        assert!(!reach(link), "{link:?} is cut");
        other.restore(link).expect("restored");
        assert!(reach(link), "{link:?} is back");
        other.shape(link, 10).expect("shaped");
        assert!(reach(link), "{link:?} is shaped");
        other.unshape(link).expect("free again");
    }

    let mut sleeper = host.command("sleep").arg("600").spawn().expect("sleep runs");
    let namespaces = network.namespaces();
    let present = |name: &String| Path::new("/run/netns").join(name).exists();
    assert!(namespaces.len() == 3 && namespaces.iter().all(present));
    drop(network);
    assert!(!namespaces.iter().any(present));
    assert!(!sleeper.wait().expect("ended").success(), "what ran inside was killed");

    // A pid that is no more: that of a child that has ended and was waited for.
    let mut gone = Command::new("true").spawn().expect("true runs");
    gone.wait().expect("ended");
    let left = format!("st{}x0-a", gone.id());
    assert!(Command::new("ip").args(["netns", "add", &left]).status().expect("ip runs").success());
    sweep().expect("swept");
    assert!(!present(&left));
}
