//! Development tasks: `cargo xtask TASK`.
//!
//! Each task installs what it lacks, says what and why, and then needs nothing else; with everything present no task
//! touches the network. What it makes lies under `target/`: `tools/` (nats-server), `guest/` (kernel and initramfs of the
//! witness and of the helper guest, and a Debian).

mod bench;
mod check;
mod command;
mod debian;
mod demo;
mod guest;
mod initramfs;
mod nats;
mod packages;
mod setup;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Sterna", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need: Debian packages, a nats-server, the guest. Says what and why
    Setup,
    /// Make the helper guest that adapts clones: a kernel, and an initramfs for it
    Adapter,
    /// Set up, build everything, and run the tests of the whole workspace
    Test {
        /// Passed on to `cargo nextest run` (or `cargo test` where nextest is not installed)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything a change must pass without running it: formatting, lints, documentation, licences, tidiness
    Check,
    /// Move a guest under load between two hosts on this machine, and prove that nothing was lost. Needs root
    Demo {
        /// Leave everything running at the end, until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
    /// Measure Sterna against QEMU's own migration and programs that copy disks, and write target/bench/report.json
    Bench {
        /// Passed on to `sterna-bench`: --runs and --case
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Kill agents and cut links in every phase of a move, print what came of it, and write target/faults/report.json
    Faults {
        /// Passed on to `sterna-faults`: --phase and --fault choose among the cells
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Explore every state of the handover and print what was found
    Model,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Setup => setup::ensure(&setup::Need::ALL).map(|_| ()),
        Task::Adapter => guest::ensure().map(|folder| {
            let [kernel, initrd] = ["vmlinuz", "adapter.initrd"].map(|name| folder.join(name));
            command::say(format_args!("the helper guest is {} and {}", kernel.display(), initrd.display()));
        }),
        Task::Test { arguments } => setup::test(&arguments),
        Task::Check => check::run_all(),
        Task::Demo { keep } => demo::demo(keep),
        Task::Bench { arguments } => bench::bench(&arguments),
        Task::Faults { arguments } => setup::faults(&arguments),
        Task::Model => setup::model(),
    }
}
