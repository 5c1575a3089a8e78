//! `cargo xtask bench`: Sterna against QEMU's own migration and against programs that copy disks.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;

use crate::command::{cargo, run, say, shown, target};
use crate::packages;
use crate::setup::{self, Need};

/// The packages whose programs the bench runs.
const PACKAGES: [&str; 3] = ["sterna-agent", "sterna-coordinator", "sterna-tests"];

/// Sets up, the peers included, builds all for release, and becomes the bench.
///
/// # Errors
/// What Sterna needs is missing, or does not build. A peer that cannot be had is no error: the bench reports it missing.
pub(crate) fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let ground = setup::ensure(&Need::MOVES)?;
    for package in &packages::PEERS {
        if let Err(error) = packages::install([package]) {
            say(format_args!("{error:#}; what is compared with it will be reported missing"));
        }
    }
    let mut build = cargo();
    build.args(["build", "--locked", "--release", "--bins"]);
    run(build.args(PACKAGES.iter().flat_map(|package| ["--package", package])))?;
    let mut bench = Command::new(target().join("release/sterna-bench"));
    bench.arg("--report").arg(target().join("bench/report.json")).args(arguments);
    ground.tell(&mut bench);
    say(format_args!("$ {}", shown(&bench)));
    Err(bench.exec()).with_context(|| format!("cannot run {}", shown(&bench)))
}
