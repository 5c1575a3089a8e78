//! Putting everything in place that a task needs, and the tasks that then run tests.

use std::path::PathBuf;
use std::process::Command;

use crate::command::{cargo, find_program, run, say, target, workspace};
use crate::packages::{self, Package};
use crate::{debian, guest, nats};

/// Something a task needs beyond the Rust toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// QEMU and its disk tools.
    Qemu,
    /// Network namespaces, bridges and shaping.
    Network,
    /// UEFI.
    Firmware,
    /// Volume groups.
    Volumes,
    /// A nats-server that is new enough.
    Nats,
    /// Kernel and initramfs of the witness, and of the helper guest.
    Guest,
    /// A disk with a Debian on it.
    Debian,
}

/// Where the things are that tests are told about.
#[derive(Debug, Default)]
pub(crate) struct Ground {
    nats_server: Option<PathBuf>,
    guest: Option<PathBuf>,
}

impl Need {
    /// For guests that move between hosts on this machine.
    pub(crate) const MOVES: [Self; 4] = [Self::Qemu, Self::Network, Self::Nats, Self::Guest];
    /// For every test.
    pub(crate) const ALL: [Self; 7] =
        [Self::Qemu, Self::Network, Self::Firmware, Self::Volumes, Self::Nats, Self::Guest, Self::Debian];

    fn packages(self) -> &'static [Package] {
        match self {
            Self::Qemu => &packages::QEMU,
            Self::Network => &packages::NETWORK,
            Self::Firmware => &packages::FIRMWARE,
            Self::Volumes => &packages::VOLUMES,
            Self::Nats => &packages::PYTHON,
            Self::Guest => &[],
            Self::Debian => &packages::DEBIAN,
        }
    }
}

impl Ground {
    /// Tells a test run where things are.
    pub(crate) fn tell(&self, command: &mut Command) {
        if let Some(path) = &self.nats_server {
            command.env("STERNA_NATS_SERVER", path);
        }
        if let Some(path) = &self.guest {
            command.env("STERNA_GUEST_DIR", path);
        }
    }
}

/// Installs, fetches and builds what is missing of `needs`.
///
/// # Errors
/// What is missing and cannot be had, with the command that would help.
pub(crate) fn ensure(needs: &[Need]) -> anyhow::Result<Ground> {
    packages::install(needs.iter().flat_map(|need| need.packages()))?;
    let mut ground = Ground::default();
    if needs.contains(&Need::Nats) {
        ground.nats_server = Some(nats::ensure()?);
    }
    if needs.contains(&Need::Guest) {
        ground.guest = Some(guest::ensure()?);
    }
    if needs.contains(&Need::Debian) {
        debian::ensure()?;
    }
    Ok(ground)
}

/// `cargo xtask test`: everything that can be tested on this machine.
pub(crate) fn test(arguments: &[String]) -> anyhow::Result<()> {
    let ground = ensure(&Need::ALL)?;
    run(cargo().args(["build", "--locked", "--workspace", "--bins"]))?;
    let mut tests = cargo();
    if find_program("cargo-nextest").is_some() {
        tests.args(["nextest", "run", "--locked", "--workspace"]);
    } else {
        // Two at a time, as nextest's group of guests: more would crowd each other out.
        tests.args(["test", "--locked", "--workspace"]).env("RUST_TEST_THREADS", "2");
        say(
            "cargo-nextest is not installed; cargo test is used, which is slower (cargo install --locked cargo-nextest)",
        );
    }
    ground.tell(&mut tests);
    run(tests.args(arguments))
}

/// `cargo xtask faults`: the matrix of faults, on a fleet of its own.
pub(crate) fn faults(arguments: &[String]) -> anyhow::Result<()> {
    let ground = ensure(&Need::MOVES)?;
    run(cargo().args(["build", "--locked", "--workspace", "--bins"]))?;
    let target = target();
    let mut faults = Command::new(target.join("debug/sterna-faults"));
    faults.current_dir(workspace()).arg("--report").arg(target.join("faults/report.json"));
    ground.tell(&mut faults);
    run(faults.args(arguments))
}

/// `cargo xtask model`: the exploration of the handover, with its counts.
pub(crate) fn model() -> anyhow::Result<()> {
    run(cargo().args(["test", "--locked", "--package", "sterna-tests", "--test", "model", "--", "--nocapture"]))
}
