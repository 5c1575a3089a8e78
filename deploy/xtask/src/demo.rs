//! `cargo xtask demo`: two hosts in namespaces, and a guest that moves between them.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;

use crate::command::{cargo, run, say, shown, target};
use crate::setup::{self, Need};

/// The packages whose programs the demo runs.
const PACKAGES: [&str; 3] = ["sterna-agent", "sterna-coordinator", "sterna-tests"];

/// Sets up, builds, and becomes the demo, so that Ctrl-C and the exit status are its own.
///
/// # Errors
/// What is missing, or does not build.
pub(crate) fn demo(keep: bool) -> anyhow::Result<()> {
    let ground = setup::ensure(&Need::MOVES)?;
    let mut build = cargo();
    build.args(["build", "--locked", "--bins"]);
    run(build.args(PACKAGES.iter().flat_map(|package| ["--package", package])))?;
    let mut demo = Command::new(target().join("debug/sterna-demo"));
    demo.arg("--report").arg(target().join("demo/report.json")).args(keep.then_some("--keep"));
    ground.tell(&mut demo);
    say(format_args!("$ {}", shown(&demo)));
    Err(demo.exec()).with_context(|| format!("cannot run {}", shown(&demo)))
}
