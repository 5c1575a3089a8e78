//! The `sterna` command: one file a command, one place for output, errors and exit codes.
//!
//! ```text
//!   arguments ──▶ command ──ask──▶ client ──NATS──▶ coordinators
//!                    │                                  │
//!                    ▼                                  ▼
//!        output: results → stdout         error: kind → exit code, reasons, what to do next
//! ```
//!
//! A command asks and shows; it decides nothing about a VM. What it shows of a job is [`crate::view`], which the feed
//! shares. Watching polls and subscribes to nothing, so that a lost message or a coordinator's failover costs a moment
//! and never the watch.

mod body;
mod check;
mod clone;
mod console;
mod cutover;
mod doctor;
mod error;
mod failover;
mod group;
mod history;
mod host;
mod job;
mod labels;
mod lifetime;
mod manual;
mod migrate;
mod nats_config;
mod operation;
mod output;
mod page;
mod pki;
mod plan;
mod policy;
mod rehearse;
mod replicate;
mod schedule;
mod settings;
mod vm;
mod watch;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use sterna_shared::time::Timestamp;

use error::{CliError, EXIT_CODES_HELP, Exit};
use output::{Format, Output};

use crate::client::Client;

/// The longest a request may be allowed to take, in seconds.
const TIMEOUT_SECONDS_MAX: u64 = 86_400;

/// Moves virtual machines across a fleet.
#[derive(Debug, Parser)]
#[command(name = "sterna", version, after_help = EXIT_CODES_HELP, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file [default: ~/.config/sterna/sterna.toml, then /etc/sterna/sterna.toml]
    #[arg(long, global = true, value_name = "FILE", env = "STERNA_CONFIG", help_heading = "Global options")]
    config: Option<PathBuf>,
    /// Broker to connect to in place of the configuration's; several with commas between
    #[arg(long, global = true, value_name = "URL", env = "STERNA_SERVER", help_heading = "Global options")]
    server: Option<String>,
    /// How results are written
    #[arg(long, global = true, value_enum, default_value = "table", help_heading = "Global options")]
    output: Format,
    /// Seconds that one request may take
    #[arg(
        long, global = true, value_name = "SECONDS", default_value_t = 30, help_heading = "Global options",
        value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_SECONDS_MAX)
    )]
    timeout: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The hosts of the fleet
    #[command(subcommand)]
    Host(host::HostCommand),
    /// The VMs of the fleet
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Move a VM, its disks, or both
    Migrate(migrate::MigrateArgs),
    /// Check a move: find all that speaks against it, measure, and change nothing
    Check(check::CheckArgs),
    /// Prepare another host for a VM: hold there what a later move needs
    Plan(plan::PlanArgs),
    /// Keep a VM's disks at another host as they were at points in time, while it runs where it is
    #[command(subcommand)]
    Replicate(replicate::ReplicateCommand),
    /// Make VMs of replicas
    #[command(subcommand)]
    Clone(clone::CloneCommand),
    /// Move VMs over to the hosts that have their replicas, and back
    #[command(subcommand)]
    Cutover(cutover::CutoverCommand),
    /// Replications, and other jobs, that belong together
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// What has become of requests, as the long-running operations of Google's Migrate to VMs
    #[command(subcommand)]
    Operation(operation::OperationCommand),
    /// Jobs: moves in hand, and those that are over
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Check broker, certificates, clocks, agents, QEMU and pools, and say what to mend
    Doctor,
    /// The fleet's certificates
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Write a nats-server configuration with a key and permissions for each agent, coordinator and operator
    NatsConfig(nats_config::NatsConfigArgs),
    /// Print completions for a shell
    Completions(manual::CompletionsArgs),
    /// Write the manual pages
    Man(manual::ManArgs),
}

/// Runs the command line; the whole of `main`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout with 0, a wrong command line to stderr with 2: clap's own way.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let output = Output { format: cli.global.output };
    match run(cli, output) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output.error(&error);
            error.exit.into()
        }
    }
}

fn run(cli: Cli, output: Output) -> Result<Exit, CliError> {
    let global = &cli.global;
    if let Some(face) = output.format.face().filter(|_| !has_face(&cli.command, output.format)) {
        return Err(no_face(face, output.format));
    }
    // What needs no fleet is done without one.
    match cli.command {
        Command::Pki(command) => return pki::run(&command, output),
        Command::NatsConfig(args) => return nats_config::run(&args, output),
        Command::Completions(args) => return manual::completions(&args, Cli::command()),
        Command::Man(args) => return manual::pages(&args, Cli::command(), output),
        Command::Host(_)
        | Command::Vm(_)
        | Command::Migrate(_)
        | Command::Check(_)
        | Command::Plan(_)
        | Command::Replicate(_)
        | Command::Clone(_)
        | Command::Cutover(_)
        | Command::Group(_)
        | Command::Operation(_)
        | Command::Job(_)
        | Command::Doctor => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::from_source(Exit::Failed, &error))?;
    runtime.block_on(async {
        match &cli.command {
            Command::Host(command) => host::run(command, &connect(global).await?, output).await,
            Command::Vm(command) => vm::run(command, global, output).await,
            Command::Migrate(args) => migrate::run(args, &connect(global).await?, output).await,
            Command::Check(args) => check::run(args, &connect(global).await?, output).await,
            Command::Plan(args) => plan::run(args, &connect(global).await?, output).await,
            Command::Replicate(command) => replicate::run(command, &connect(global).await?, output).await,
            Command::Clone(command) => clone::run(command, &connect(global).await?, output).await,
            Command::Cutover(command) => cutover::run(command, &connect(global).await?, output).await,
            Command::Group(command) => group::run(command, &connect(global).await?, output).await,
            Command::Operation(command) => operation::run(command, &connect(global).await?, output).await,
            Command::Job(command) => job::run(command, &connect(global).await?, output).await,
            Command::Doctor => doctor::run(global, output).await,
            Command::Pki(_) | Command::NatsConfig(_) | Command::Completions(_) | Command::Man(_) => Ok(Exit::Ok),
        }
    })
}

/// Whether a command's result is also there as another product has it.
const fn has_face(command: &Command, format: Format) -> bool {
    use clone::CloneCommand as C;
    use cutover::CutoverCommand as O;
    use group::GroupCommand as G;
    use replicate::ReplicateCommand as R;
    match command {
        Command::Job(job::JobCommand::Show { .. } | job::JobCommand::Error { .. }) => {
            matches!(format, Format::Cim | Format::CimXml)
        }
        Command::Operation(_)
        | Command::Group(G::List | G::Show { .. })
        | Command::Clone(C::List(_) | C::Show { .. })
        | Command::Cutover(O::List(_) | O::Show { .. })
        | Command::Replicate(R::List { .. } | R::Show { .. } | R::Cycles { .. }) => matches!(format, Format::Google),
        _ => false,
    }
}

fn no_face(face: &str, format: Format) -> CliError {
    let (of, such) = match format {
        Format::Google => (
            "sterna clone, cutover, group and operation list and show, and sterna replicate list, show and cycles: nothing else has it",
            "sterna clone show JOB",
        ),
        _ => ("sterna job show and sterna job error: only a job has it", "sterna job show JOB"),
    };
    CliError::new(Exit::Usage, format!("--output {face} is for {of}"))
        .hint(format!("use --output json here, or {such} --output {face}"))
}

async fn connect(global: &Global) -> Result<Client, CliError> {
    let found = settings::find(global.config.as_deref(), global.server.as_deref())?;
    connect_by(&found, global).await
}

async fn connect_by(found: &settings::Found, global: &Global) -> Result<Client, CliError> {
    let sender = found.settings.name.clone().or_else(|| std::env::var("USER").ok()).unwrap_or("operator".to_owned());
    let client = Client::connect(&found.settings.nats, &sender, Duration::from_secs(global.timeout)).await;
    client.map_err(|error| {
        let error = CliError::from(error);
        match &found.file {
            Some(path) => error.hint(format!("the configuration is {}", path.display())),
            None => {
                error.hint("no configuration file was found; give --server URL, or write ~/.config/sterna/sterna.toml")
            }
        }
    })
}

/// The command's clock, read in this one place.
fn now() -> Timestamp {
    Timestamp::from_unix_microseconds(jiff::Timestamp::now().as_microsecond())
}

/// Asks a yes-or-no question on a terminal; elsewhere `--yes` must have been given.
fn confirm(question: &str, yes: bool) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(CliError::new(Exit::Usage, format!("{question} Not answered: this is no terminal"))
            .hint("give --yes if you are sure"));
    }
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{question} [y/N] ")
        .and_then(|()| io::stderr().flush())
        .and_then(|()| io::stdin().read_line(&mut answer));
    match asked {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(CliError::new(Exit::Interrupted, "not confirmed; nothing was done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_face_is_for_what_has_it() {
        let job = "0197c0de-0000-7000-8000-000000000101";
        let has = |line: &[&str], face: &str| {
            let cli = Cli::try_parse_from([&["sterna", "--output", face], line].concat()).expect("a command");
            has_face(&cli.command, cli.global.output)
        };
        for line in [
            &["clone", "show", job][..],
            &["clone", "list"],
            &["cutover", "list"],
            &["cutover", "show", job],
            &["replicate", "list"],
            &["operation", "list"],
            &["group", "list"],
            &["group", "show", "shop"],
            &["replicate", "cycles", "a"],
            &["replicate", "cycles", "a", "--cycle", "7"],
            &["replicate", "show", "a", "--view", "basic"],
        ] {
            assert!(has(line, "google") && !has(line, "cim"), "{line:?}");
        }
        assert!(has(&["job", "show", job], "cim-xml") && !has(&["job", "show", job], "google"));
        assert!(!has(&["group", "pause", "shop"], "google"));
        assert!(!has(&["vm", "list"], "google") && !has(&["clone", "cancel", job], "google"));
        let error = no_face("google", Format::Google);
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.message.contains("sterna replicate list"), "{}", error.message);
    }
}
