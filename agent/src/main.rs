//! `sterna-agent`: the host's side of Sterna.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use sterna_agent::bus::Bus;
use sterna_agent::config::{Config, PoolSettings};
use sterna_agent::disk::pool::{Lvm, Pool};
use sterna_agent::host::Host;
use sterna_agent::hypervisor::qemu::QEMU;
use sterna_agent::hypervisor::qemu::probe::probe;
use sterna_agent::journal::Journal;
use sterna_agent::link::{Files, Tls};
use sterna_agent::memory::holder;
use sterna_agent::service::Service;
use sterna_agent::teller::Teller;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// The longest that one turn of the agent's loop may take before it counts as hung.
const TURN_MAX: Duration = Duration::from_secs(600);

/// The agent of a hypervisor host: keeps its VMs, and moves them to and from other hosts.
#[derive(Debug, Parser)]
#[command(name = "sterna-agent", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = "/etc/sterna/agent.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run the agent (the default).
    Run,
    /// Look at the journal. The agent must not be running.
    Journal {
        #[command(subcommand)]
        command: JournalCommands,
    },
    /// Read the configuration and say what is wrong with it.
    CheckConfig,
    /// What an agent starts beside a live move: see `memory/holder.rs`.
    #[command(name = holder::COMMAND, hide = true)]
    HoldChannels,
}

#[derive(Debug, Subcommand)]
enum JournalCommands {
    /// Print the whole journal as JSON, tokens blanked.
    Dump,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Subcommands::HoldChannels) = arguments.command {
        return holder::run();
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    match arguments.command {
        Some(Subcommands::CheckConfig | Subcommands::HoldChannels) => Ok(()),
        Some(Subcommands::Journal { command: JournalCommands::Dump }) => {
            let journal = Journal::open(&journal_path(&config))?;
            serde_json::to_writer_pretty(std::io::stdout().lock(), &journal.dump()?)?;
            Ok(())
        }
        None | Some(Subcommands::Run) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let outcome = runtime.block_on(serve(config));
            // Tasks that still wait for a peer or a disk are not worth waiting for: the journal has all that counts.
            runtime.shutdown_timeout(Duration::from_secs(1));
            outcome
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    for directory in [&config.state_directory, &config.runtime_directory] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("{} cannot be made; check its parent's permissions", directory.display()))?;
    }
    let mut pools = BTreeMap::new();
    for (name, settings) in &config.pools {
        let pool = match settings {
            PoolSettings { volume_group: Some(group), .. } => {
                Pool::open_volume_group(name.clone(), group.clone(), Lvm::default()).await?
            }
            PoolSettings { directory, shared, .. } => {
                let directory = directory.as_deref().unwrap_or(Path::new(""));
                Pool::open(name.clone(), directory, shared.clone())?
            }
        };
        pools.insert(name.clone(), pool);
    }
    let tls = Arc::new(Tls::load(Files {
        authorities: config.tls.ca_file.clone(),
        chain: config.tls.certificate_file.clone(),
        key: config.tls.key_file.clone(),
    })?);
    anyhow::ensure!(
        tls.host() == config.host,
        "the certificate {} is that of {}, and the configuration says {}; correct one of them",
        config.tls.certificate_file.display(),
        tls.host(),
        config.host
    );
    let journal = Journal::open(&journal_path(&config))?;
    let mut found = probe(Path::new(QEMU), &config.runtime_directory).await?;
    if let Some(accelerator) = config.accelerator {
        found.hypervisor.accelerator = accelerator;
    }
    info!(
        host = %config.host,
        qemu = %found.hypervisor.version,
        accelerator = found.hypervisor.accelerator.as_str(),
        "starting"
    );
    let teller = Teller::start(config.host.clone(), journal.clone());
    let (bus, inbound) = Bus::start(config.host.clone(), &config.nats, journal.clone(), teller.told()).await?;
    let host = Arc::new(Host::new(config, pools, found, tls, journal, teller));
    let service = Service::start(Arc::clone(&host), bus, inbound).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::spawn(reload(Arc::clone(&host)));
    tokio::spawn(Arc::clone(&host).refresh_pools());
    tokio::spawn(sterna_agent::guest::console::keep_bounded(host.runtimes()));
    info!(host = %host.id(), "ready");
    let (turned, turns) = watch::channel(Instant::now());
    tokio::spawn(watchdog(turns));
    let beat = || {
        turned.send_replace(Instant::now());
    };
    service.run(stop(), beat).await;
    host.flush().await;
    info!("stopping; guests run on");
    Ok(())
}

fn journal_path(config: &Config) -> PathBuf {
    config.state_directory.join("journal.redb")
}

/// Ends when the agent is told to.
async fn stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// On SIGHUP new connections use the certificates as they are on the disk now; connections that are up stay up.
async fn reload(host: Arc<Host>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        match host.tls.reload() {
            Ok(()) => info!("certificates read anew"),
            Err(error) => warn!(error = &error as &dyn std::error::Error, "the certificates stay as they were"),
        }
    }
}

/// Tells systemd that the agent's loop still turns, where it wants to know. One turn may take as long as removing large images does.
async fn watchdog(turns: watch::Receiver<Instant>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(limit / 3);
    loop {
        ticks.tick().await;
        if turns.borrow().elapsed() < TURN_MAX {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}
