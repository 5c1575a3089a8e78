//! `sterna vm`: the VMs of the fleet.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;
use sterna_shared::bus::VmView;
use sterna_shared::id::HostId;
use sterna_shared::vm::{Firmware, VmSpec};

use super::error::{CliError, Exit};
use super::output::{Output, or_dash, pairs, table};
use super::{Global, confirm, connect, console, settings};
use crate::client::ClientError;

/// The longest ACPI may be given to stop a guest, in seconds.
const GRACE_SECONDS_MAX: i64 = 3600;

#[derive(Debug, Subcommand)]
pub(super) enum VmCommand {
    /// Tell a host of a VM, and make its disks
    Define {
        /// The VM's specification, in TOML
        file: PathBuf,
        /// The host that is to have it
        #[arg(long)]
        host: HostId,
        /// Only check the specification
        #[arg(long)]
        dry_run: bool,
    },
    /// List all VMs
    #[command(visible_alias = "ls")]
    List,
    /// Show one VM
    Show {
        /// Its name or id
        vm: String,
    },
    /// Start a VM where it is
    Start {
        /// Its name or id
        vm: String,
    },
    /// Stop a VM: by ACPI, and by force when that takes too long
    Stop {
        /// Its name or id
        vm: String,
        /// At once, as if its power failed
        #[arg(long)]
        force: bool,
        /// Seconds that ACPI may take
        #[arg(long, value_name = "SECONDS", default_value_t = 60,
            value_parser = clap::value_parser!(u32).range(1..=GRACE_SECONDS_MAX))]
        grace: u32,
    },
    /// Forget a stopped VM
    Delete {
        /// Its name or id
        vm: String,
        /// And delete its disks with all they hold
        #[arg(long)]
        delete_disks: bool,
        /// Do not ask before disks are deleted
        #[arg(long, short)]
        yes: bool,
    },
    /// Remove what a move of a VM has left at its target when it was cut
    #[command(long_about = "Remove what a move of a VM has left at its target when it was cut.\n\n\
        The next move to that host would not send it again. `sterna host show` lists what a host keeps; it goes by \
        itself after a day.")]
    Drop {
        /// The VM's name or id
        vm: String,
        /// The host that keeps it
        #[arg(long)]
        host: HostId,
    },
    /// Follow a VM's serial console; on a terminal, type lines into it
    Console {
        /// Its name or id
        vm: String,
        /// Print what there is, and end
        #[arg(long)]
        no_follow: bool,
        /// From the beginning of the log, in place of its last 4 KiB
        #[arg(long)]
        from_start: bool,
    },
    /// Declare that a host can no longer run a VM, and so resolve a handover it was part of
    #[command(long_about = "Declare that a host can no longer run a VM, and so resolve a handover it was part of.\n\n\
        Only do this when the host is off, or cut from all storage the VM uses. If it still runs the VM, the VM runs \
        twice from then on, and its disks are lost.")]
    Resolve {
        /// Its name or id
        vm: String,
        /// The host that was fenced
        #[arg(long, value_name = "HOST")]
        fenced: HostId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(super) async fn run(command: &VmCommand, global: &Global, output: Output) -> Result<Exit, CliError> {
    match command {
        VmCommand::Define { file, host, dry_run } => {
            // Read before connecting: a fault of the file needs no fleet to be told of.
            let spec = read_spec(file)?;
            if *dry_run {
                output.result(&spec, || format!("{} is sound", file.display()))?;
                return Ok(Exit::Ok);
            }
            let told = format!("{} is defined on {host}; start it: sterna vm start {}", spec.name, spec.name);
            done(connect(global).await?.define_vm(host, spec).await, told, output)
        }
        VmCommand::List => {
            let vms = connect(global).await?.vms().await?;
            output.result(&vms, || list(&vms))?;
            Ok(Exit::Ok)
        }
        VmCommand::Show { vm } => {
            let shown = connect(global).await?.vm(vm).await?;
            output.result(&shown, || show(&shown))?;
            Ok(Exit::Ok)
        }
        VmCommand::Start { vm } => done(connect(global).await?.start_vm(vm).await, format!("{vm} runs"), output),
        VmCommand::Stop { vm, force, grace } => {
            done(connect(global).await?.stop_vm(vm, *force, *grace).await, format!("{vm} is stopped"), output)
        }
        VmCommand::Delete { vm, delete_disks, yes } => {
            if *delete_disks {
                confirm(&format!("Delete {vm} and all that its disks hold?"), *yes)?;
            }
            done(connect(global).await?.delete_vm(vm, *delete_disks).await, format!("{vm} is forgotten"), output)
        }
        VmCommand::Drop { vm, host } => {
            let told = format!("{host} keeps nothing of {vm} any more");
            done(connect(global).await?.drop_partial(vm, host).await, told, output)
        }
        VmCommand::Console { vm, no_follow, from_start } => {
            console::run(vm, !no_follow, *from_start, &connect(global).await?, output).await
        }
        VmCommand::Resolve { vm, fenced, yes } => {
            let question = format!(
                "Is {fenced} off, or cut from all storage of {vm}? If it still runs {vm}, the VM runs twice and its \
                 disks are lost. Go on?"
            );
            confirm(&question, *yes)?;
            let told = format!("{vm}: {fenced} counts as fenced; the handover resolves without it");
            done(connect(global).await?.resolve_vm(vm, fenced).await, told, output)
        }
    }
}

/// Tells that something was done, if it was.
pub(super) fn done(outcome: Result<(), ClientError>, told: String, output: Output) -> Result<Exit, CliError> {
    outcome?;
    output.result(&json!({ "done": true, "message": told }), || told.clone())?;
    Ok(Exit::Ok)
}

/// Reads a specification; every fault is told at once.
fn read_spec(path: &Path) -> Result<VmSpec, CliError> {
    let spec: VmSpec = settings::read_toml(path)
        .map_err(|error| CliError::from(error).hint("docs/install.md has a specification to start from"))?;
    let faults = spec.faults();
    if faults.is_empty() {
        return Ok(spec);
    }
    let mut error = CliError::new(Exit::Usage, format!("{} is no sound specification of a VM", path.display()));
    error.causes = faults;
    Err(error)
}

pub(super) const fn yes_or_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn list(vms: &[VmView]) -> String {
    let rows = vms.iter().map(|vm| {
        let spec = &vm.report.spec;
        [
            spec.name.to_string(),
            vm.report.state.to_string(),
            if vm.report.owned { vm.host.to_string() } else { format!("{} (not owned)", vm.host) },
            spec.vcpus.to_string(),
            spec.memory.to_string(),
            spec.disks.iter().fold(sterna_shared::units::ByteCount(0), |sum, disk| sum.plus(disk.size)).to_string(),
            or_dash(vm.report.job),
            spec.id.to_string(),
        ]
    });
    table(["VM", "STATE", "HOST", "VCPUS", "MEMORY", "DISKS", "JOB", "ID"], rows)
}

fn show(vm: &VmView) -> String {
    let spec = &vm.report.spec;
    let mut rows = vec![
        ("vm", spec.name.to_string()),
        ("id", spec.id.to_string()),
        ("state", vm.report.state.to_string()),
        ("host", vm.host.to_string()),
        ("owned", yes_or_no(vm.report.owned).to_owned()),
        ("generation", vm.report.generation.to_string()),
        ("job", or_dash(vm.report.job)),
        ("memory", spec.memory.to_string()),
        ("vcpus", format!("{} × {}", spec.vcpus, spec.cpu)),
        ("machine", spec.machine.clone()),
        (
            "firmware",
            match (spec.firmware, spec.secure_boot) {
                (Firmware::Bios, _) => "bios",
                (Firmware::Uefi, false) => "uefi",
                (Firmware::Uefi, true) => "uefi, with secure boot",
            }
            .to_owned(),
        ),
    ];
    if let Some(kernel) = &spec.kernel {
        rows.push(("kernel", format!("{} {}", kernel.image.as_str(), kernel.append)));
    }
    let disks = table(
        ["DISK", "POOL", "FORMAT", "SIZE"],
        spec.disks
            .iter()
            .map(|disk| [disk.name.to_string(), disk.pool.to_string(), disk.format.to_string(), disk.size.to_string()]),
    );
    let nics = table(
        ["MAC", "BRIDGE"],
        spec.nics
            .iter()
            .map(|nic| [nic.mac.to_string(), nic.bridge.as_ref().map_or("user".to_owned(), ToString::to_string)]),
    );
    format!("{}\n\n{disks}\n\n{nics}", pairs(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of(text: &str) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web.toml");
        std::fs::write(&path, text).expect("written");
        let error = read_spec(&path).expect_err("a fault");
        assert_eq!(error.exit, Exit::Usage);
        error.text().replace(&directory.path().display().to_string(), "DIR")
    }

    #[test]
    fn a_specification_s_faults_name_file_line_and_remedy() {
        let head = "name = \"web\"\nid = \"0197c0de-0000-7000-8000-000000000001\"\n";
        insta::assert_snapshot!(fault_of(&format!("{head}memory = \"512 MB\"\n")), @r#"
        error: DIR/web.toml:3: "512 MB" is not a size; write a number of bytes, or one with a unit, such as 512 MiB or 4G (units are powers of 1024)
        hint: docs/install.md has a specification to start from
        "#);
        insta::assert_snapshot!(fault_of(&format!("{head}memory = \"512 MiB\"\nmemroy = 1\n")), @r"
        error: DIR/web.toml:4: unknown field `memroy`, expected one of `name`, `id`, `memory`, `vcpus`, `cpu`, `machine`, `firmware`, `secure_boot`, `kernel`, `disk`, `nic`, `guest_agent`, `extra_arguments`
        hint: docs/install.md has a specification to start from
        ");
        insta::assert_snapshot!(fault_of(&format!(
            "{head}memory = \"1 KiB\"\nvcpus = 0\nmachine = \"q35\"\n[[disk]]\nname = \"root\"\npool = \"fast\"\nsize = 1000\n"
        )), @r#"
        error: DIR/web.toml is no sound specification of a VM
          because: memory is 1 KiB; give whole MiB from 16 MiB to 16 TiB
          because: vcpus is 0; give 1 to 512
          because: machine "q35" has no version; give a versioned type such as pc-q35-7.2, so that it means the same on every host
          because: disk root has a size of 1000 B; give a multiple of 64 KiB up to 64 TiB
        "#);
    }
}
