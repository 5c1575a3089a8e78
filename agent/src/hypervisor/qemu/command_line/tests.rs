//! The command line, tested.

use super::*;
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{DiskFormat, Firmware};

fn vm(disks: &str, rest: &str) -> VmSpec {
    let text =
        format!("name = \"web\"\nid = \"0197c0de-0000-7000-8000-000000000001\"\nmemory = \"128 MiB\"\n{rest}\n{disks}");
    toml::from_str(&text).expect("a specification")
}

fn disk(name: &str, rest: &str) -> String {
    format!("[[disk]]\nname = \"{name}\"\npool = \"fast\"\nsize = \"64 MiB\"\n{rest}\n")
}

fn placement(vm: &VmSpec) -> Placement {
    let image = |name: &DiskName| Image {
        path: format!("/pool/a,b/{name}.img").into(),
        kind: ImageKind::File,
        layers: Vec::new(),
    };
    Placement {
        runtime: RuntimeDirectory::new("/run/sterna/x,y").expect("a directory"),
        images: vm.disks.iter().map(|disk| (disk.name.clone(), image(&disk.name))).collect(),
        boot_directory: "/boot".into(),
        uefi: Some(UefiPlacement { code: "/fw/code".into(), variables: "/pool/vars".into() }),
        taps: vec![Some("tap0".to_owned()), None],
        accelerator: Accelerator::Tcg,
        incoming: false,
    }
}

fn line(vm: &VmSpec) -> Vec<String> {
    let line = command_line(vm, &placement(vm)).expect("a command line");
    line.into_iter().map(|argument| argument.into_string().expect("text")).collect()
}

fn values<'a>(line: &'a [String], option: &str) -> Vec<&'a str> {
    line.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

fn json_values(line: &[String], option: &str) -> Vec<Value> {
    values(line, option).into_iter().map(|value| serde_json::from_str(value).expect("JSON")).collect()
}

#[test]
fn a_disk_is_three_nodes_and_a_device() {
    let line = line(&vm(&disk("root", "format = \"qcow2\""), ""));
    let nodes = json_values(&line, "-blockdev");
    let common = json!({ "direct": true, "no-flush": false });
    assert_eq!(
        nodes,
        [
            json!({"driver": "file", "node-name": "file-root", "read-only": false, "discard": "unmap",
                "cache": common, "filename": "/pool/a,b/root.img"}),
            json!({"driver": "qcow2", "node-name": "format-root", "read-only": false, "discard": "unmap",
                "cache": common, "file": "file-root", "detect-zeroes": "unmap"}),
            json!({"driver": "raw", "node-name": "top-root", "read-only": false, "discard": "unmap",
                "cache": common, "file": "format-root"}),
        ]
    );
    let device = &json_values(&line, "-device")[0];
    assert_eq!(
        (&device["driver"], &device["drive"], &device["addr"]),
        (&json!("virtio-blk-pci"), &json!("top-root"), &json!("4.0"))
    );
}

#[test]
fn node_names_fit_qemu_also_for_the_longest_disk_name() {
    let name: DiskName = "x".repeat(sterna_shared::id::NAME_LENGTH_MAX).parse().expect("a name");
    for node in [top_node(&name), format_node(&name), file_node(&name)] {
        assert!(node.len() <= 31, "{node}");
    }
}

#[test]
fn addresses_follow_from_the_place_among_the_own_kind() {
    let disks: String = (0..9).map(|i| disk(&format!("v{i}"), "")).collect::<String>()
        + &(0..7).map(|i| disk(&format!("s{i}"), "bus = \"sata\"")).collect::<String>()
        + &disk("c0", "bus = \"scsi\"")
        + &disk("c1", "bus = \"scsi\"")
        + "[[nic]]\nmac = \"52:54:00:00:00:01\"\nbridge = \"br0\"\n[[nic]]\nmac = \"52:54:00:00:00:02\"\n";
    let line = line(&vm(&disks, "guest_agent = true\nextra_arguments = [\"-device\", \"i6300esb\"]"));
    let devices = json_values(&line, "-device");
    let of = |id: &str| devices.iter().find(|device| device["id"] == id).expect("a device");
    assert_eq!((&of("disk-v0")["addr"], &of("disk-v0")["multifunction"]), (&json!("4.0"), &json!(true)));
    assert_eq!((&of("disk-v7")["addr"], of("disk-v7").get("multifunction")), (&json!("4.7"), None));
    assert_eq!(of("disk-v8")["addr"], "5.0");
    assert_eq!((&of("sata1")["addr"], &of("disk-s6")["bus"]), (&json!("a.1"), &json!("sata1.0")));
    assert_eq!((&of("scsi")["addr"], &of("disk-c1")["scsi-id"]), (&json!("8.0"), &json!(1)));
    assert_eq!((&of("nic-1")["addr"], &of("nic-1")["mac"]), (&json!("2.1"), &json!("52:54:00:00:00:02")));
    assert_eq!(of("guest-agent-port")["bus"], "serial.0");
    assert_eq!((&of("extra-0")["driver"], &of("extra-0")["addr"]), (&json!("i6300esb"), &json!("10.0")));
    let networks = json_values(&line, "-netdev");
    assert_eq!((&networks[0]["ifname"], &networks[0]["script"]), (&json!("tap0"), &json!("no")));
    assert_eq!(networks[1]["type"], "user");
}

#[test]
fn an_isolated_guest_is_alone_in_its_network() {
    let line = line(&vm("[[nic]]\nmac = \"52:54:00:00:00:01\"\nisolated = \"192.0.2.10/24\"\n", ""));
    let network = json!({ "type": "user", "id": "net-0", "restrict": true, "ipv6": false, "net": "192.0.2.0/24",
        "host": "192.0.2.1", "dns": "192.0.2.2", "dhcpstart": "192.0.2.10" });
    assert_eq!(json_values(&line, "-netdev"), [network]);
}

#[test]
fn commas_in_paths_are_doubled_only_where_qemu_splits_at_them() {
    let line = line(&vm("", ""));
    assert_eq!(values(&line, "-qmp")[0], "unix:/run/sterna/x,,y/qmp.sock,server=on,wait=off");
    assert_eq!(values(&line, "-pidfile"), ["/run/sterna/x,y/qemu.pid"]);
    assert!(values(&line, "-chardev")[0].contains("logfile=/run/sterna/x,,y/console.log,logappend=on"));
}

#[test]
fn every_start_is_stopped_and_an_incoming_one_waits() {
    let spec = vm("", "");
    assert_eq!(line(&spec).last().map(String::as_str), Some("-S"));
    let incoming = Placement { incoming: true, ..placement(&spec) };
    let arguments = command_line(&spec, &incoming).expect("a command line");
    assert_eq!(arguments[arguments.len() - 3..], ["-incoming", "defer", "-S"]);
}

#[test]
fn firmware_and_kernel_are_found_in_their_places() {
    let uefi = line(&vm("", "firmware = \"uefi\""));
    assert!(values(&uefi, "-machine")[0].ends_with(",pflash0=uefi-code,pflash1=uefi-variables"));
    let nodes = json_values(&uefi, "-blockdev");
    assert_eq!((&nodes[0]["filename"], &nodes[0]["read-only"]), (&json!("/fw/code"), &json!(true)));
    assert_eq!((&nodes[2]["filename"], &nodes[2]["read-only"]), (&json!("/pool/vars"), &json!(false)));
    assert_eq!(values(&uefi, "-global"), Vec::<&str>::new());
    let secure = line(&vm("", "firmware = \"uefi\"\nsecure_boot = true"));
    assert!(values(&secure, "-machine")[0].ends_with(",smm=on"));
    let globals = ["driver=cfi.pflash01,property=secure,value=on", "ICH9-LPC.disable_s3=1"];
    assert_eq!(values(&secure, "-global"), globals);
    let kernel = line(&vm("", "kernel = { image = \"vmlinuz\", initrd = \"initrd\", append = \"a=1,b quiet\" }"));
    assert_eq!(values(&kernel, "-kernel"), ["/boot/vmlinuz"]);
    assert_eq!(values(&kernel, "-initrd"), ["/boot/initrd"]);
    assert_eq!(values(&kernel, "-append"), ["a=1,b quiet"]);
}

#[test]
fn an_incoming_read_only_disk_is_filled_below_its_device() {
    let spec = vm(&disk("root", "read_only = true"), "");
    let read_only = |incoming: bool| {
        let arguments = command_line(&spec, &Placement { incoming, ..placement(&spec) }).expect("a command line");
        let nodes = arguments.iter().filter_map(|text| serde_json::from_str::<Value>(text.to_str()?).ok());
        nodes.filter_map(|node| node.get("read-only")?.as_bool()).collect::<Vec<_>>()
    };
    assert_eq!((read_only(false), read_only(true)), (vec![true; 3], vec![false, false, true]));
}

#[test]
fn what_cannot_be_built_is_refused_by_name() {
    let refused = |vm: &VmSpec, placement: &Placement| command_line(vm, placement).expect_err("refused");
    let mut spec = vm(&disk("root", ""), "");
    let unplaced = Placement { images: BTreeMap::new(), ..placement(&spec) };
    assert!(matches!(refused(&spec, &unplaced), CommandLineError::NotPlaced { what } if what.contains("root")));
    spec.machine = "microvm-1.0".to_owned();
    assert!(matches!(refused(&spec, &placement(&spec)), CommandLineError::Machine { .. }));
    let sata = vm(&disk("root", "bus = \"sata\"\nread_only = true"), "");
    assert!(matches!(refused(&sata, &placement(&sata)), CommandLineError::ReadOnlySata { .. }));
    let uefi = VmSpec { firmware: Firmware::Uefi, ..vm("", "") };
    let bare = Placement { uefi: None, ..placement(&uefi) };
    assert!(matches!(refused(&uefi, &bare), CommandLineError::NotPlaced { .. }));
    let evil = vm("", "extra_arguments = [\"-monitor\", \"stdio\"]");
    assert!(matches!(refused(&evil, &placement(&evil)), CommandLineError::ExtraArgument { .. }));
}

#[test]
fn a_block_device_and_a_read_only_disk_keep_their_kind() {
    let mut spec = vm(&disk("root", "read_only = true\ncache = \"writeback\""), "").disks.remove(0);
    spec.format = DiskFormat::Raw;
    spec.size = ByteCount::mebibytes(1);
    let image = Image { path: "/dev/vg/root".into(), kind: ImageKind::BlockDevice, layers: Vec::new() };
    let [file, format, top] = disk_nodes(&spec, &image).expect("nodes");
    assert_eq!((&file["driver"], &file["cache"]["direct"]), (&json!("host_device"), &json!(false)));
    assert_eq!((&format["read-only"], format.get("detect-zeroes")), (&json!(true), None));
    assert_eq!(format["size"], json!(1 << 20), "what is beyond it of the device is not the guest's");
    assert_eq!(top["read-only"], json!(true));
}
