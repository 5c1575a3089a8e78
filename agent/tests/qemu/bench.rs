//! A bench for real QEMUs: a folder, a specification, and machines that end with the test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sterna_agent::guest::launcher::{Launch, Launched, launch};
use sterna_agent::guest::process::Identity;
use sterna_agent::hypervisor::qemu::command_line::{Image, ImageKind, Placement, UefiPlacement, command_line};
use sterna_agent::hypervisor::qemu::probe::uefi_firmware;
use sterna_agent::hypervisor::qemu::runtime::RuntimeDirectory;
use sterna_shared::host::Accelerator;
use sterna_shared::vm::{Firmware, VmSpec};
use tempfile::TempDir;

/// Generous: other work shares the machine.
pub(crate) const WAIT: Duration = Duration::from_secs(60);
pub(crate) const QEMU: &str = "qemu-system-x86_64";

pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) vm: VmSpec,
}

/// A running machine, ended with the test, however that ends.
pub(crate) struct Guard {
    launched: Launched,
    reaper: Reaper,
}

/// Ends a process when it is dropped.
pub(crate) struct Reaper(Identity);

impl Guard {
    pub(crate) fn new(launched: Launched) -> Self {
        let reaper = Reaper(launched.process.identity());
        Self { launched, reaper }
    }

    /// As when an agent is killed: its handles vanish, the process stays.
    pub(crate) fn abandon(self) -> Reaper {
        self.reaper
    }
}

impl std::ops::Deref for Guard {
    type Target = Launched;
    fn deref(&self) -> &Launched {
        &self.launched
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.0.lives()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Bench {
    /// A VM of two disks, raw and qcow2, without anything to start from: it sits in its BIOS.
    pub(crate) fn new() -> Self {
        let vm = toml::from_str(
            r#"
            name = "bench"
            id = "0197c0de-0000-7000-8000-0000000000aa"
            memory = "64 MiB"
            guest_agent = true
            extra_arguments = ["-device", "virtio-rng-pci"]
            [[disk]]
            name = "root"
            pool = "fast"
            format = "raw"
            size = "16 MiB"
            cache = "writeback"
            [[disk]]
            name = "data"
            pool = "fast"
            format = "qcow2"
            size = "32 MiB"
            cache = "writeback"
            [[nic]]
            mac = "52:54:00:00:00:01"
            "#,
        );
        Self { folder: tempfile::tempdir().expect("a folder"), vm: vm.expect("a specification") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn runtime(&self, name: &str) -> RuntimeDirectory {
        // With a comma, which QEMU splits at where it is not told otherwise.
        RuntimeDirectory::new(self.path(&format!("{name},1"))).expect("a short path")
    }

    /// New, empty images for one side.
    pub(crate) fn image(&self, side: &str, index: usize) -> Image {
        let disk = &self.vm.disks[index];
        let path = self.path(&format!("{side},{}.{}", disk.name, disk.format));
        if !path.exists() {
            create_image(&path, disk.format.as_str(), disk.size.0);
        }
        Image { path, kind: ImageKind::File, layers: Vec::new() }
    }

    /// Firmware for a VM that wants it, with a variable store of its own.
    fn uefi(&self, side: &str) -> Option<UefiPlacement> {
        (self.vm.firmware == Firmware::Uefi).then(|| {
            let found = uefi_firmware(self.vm.secure_boot).expect("UEFI firmware: install ovmf");
            let variables = self.path(&format!("{side}.variables"));
            std::fs::copy(found.variables_template, &variables).expect("copied");
            UefiPlacement { code: found.code, variables }
        })
    }

    pub(crate) fn launch_options(&self, side: &str, incoming: bool, taps: Vec<Option<String>>) -> Launch {
        let images = (0..self.vm.disks.len()).map(|index| (self.vm.disks[index].name.clone(), self.image(side, index)));
        let placement = Placement {
            runtime: self.runtime(side),
            images: images.collect(),
            boot_directory: self.folder.path().to_owned(),
            uefi: self.uefi(side),
            taps,
            accelerator: Accelerator::Tcg,
            incoming,
        };
        Launch {
            program: QEMU.into(),
            arguments: command_line(&self.vm, &placement).expect("a command line"),
            runtime: placement.runtime,
            unit: format!("sterna-test-{}-{side}", std::process::id()),
        }
    }

    pub(crate) async fn start(&self, side: &str, incoming: bool) -> Guard {
        let options = self.launch_options(side, incoming, vec![]);
        Guard::new(launch(&options, WAIT).await.expect("a machine"))
    }
}

pub(crate) fn create_image(path: &Path, format: &str, size: u64) {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", format])
        .arg(path)
        .arg(size.to_string())
        .status()
        .expect("qemu-img");
    assert!(status.success());
}

/// Reads or writes an export with QEMU's own client; a pattern that is not there fails the test.
pub(crate) fn qemu_io(export: &str, socket: &Path, command: &str) {
    let image = format!(
        "driver=nbd,export={export},server.type=unix,server.path={}",
        socket.display().to_string().replace(',', ",,")
    );
    let access = if command.starts_with("read") { "--read-only" } else { "--discard=unmap" };
    let output =
        Command::new("qemu-io").args(["--image-opts", access, "-c", command]).arg(image).output().expect("qemu-io");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("failed"), "{text}");
}
