//! The peer for memory and blackouts: QEMU's own migration between two hosts, by nobody but QMP.
//!
//! ```text
//!   peera: QEMU ══ migrate tcp:…, n multifd channels, TLS or not ══▶ peerb: QEMU -incoming defer          and back
//! ```
//!
//! The machine is the very one that Sterna would start, by the same command line, and so are the settings that both
//! know. Each end verifies the other's certificate, as Sterna's do.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};
use sterna_agent::hypervisor::qemu::command_line::{Placement, command_line};
use sterna_agent::hypervisor::qemu::runtime::RuntimeDirectory;
use sterna_agent::hypervisor::qemu::{Machine, MigrationStatus, RunState};
use sterna_shared::host::Accelerator;
use sterna_shared::vm::VmSpec;
use sterna_witness::protocol::DEFAULT_PORT;
use tokio::time::{Instant, sleep, timeout};

use super::OutsideView;
use super::processor::Meter;
use super::report::Sample;
use crate::fleet::{Fleet, WitnessWish};
use crate::guest_image::GuestImage;
use crate::namespace::{Host, Link};
use crate::process::Process;
use crate::witness::Witness;

const PROGRAM: &str = "qemu-system-x86_64";
/// The tap of the guest, on either host.
const TAP: &str = "peer0";
/// Where the incoming QEMU listens.
const PORT: u16 = 4901;
/// How long a QEMU may take to answer.
const QMP_WAIT: Duration = Duration::from_secs(30);
/// How long a guest may take to boot and to fill its memory.
const BOOT_WAIT: Duration = Duration::from_secs(180);
/// How long a migration may take.
const MIGRATION_WAIT: Duration = Duration::from_secs(300);
/// What Sterna tells QEMU too, and what QEMU has for a default unless it is told.
const DOWNTIME_LIMIT_MS: u64 = 100;

/// A guest that QEMU moves between two hosts by itself. Dropping it ends its QEMU.
#[derive(Debug)]
pub(super) struct QemuPair {
    hosts: [Host; 2],
    folder: PathBuf,
    vm: VmSpec,
    accelerator: Accelerator,
    /// The guest's address on the lan.
    pub(super) address: Ipv4Addr,
    here: usize,
    running: Qemu,
    started: u32,
}

#[derive(Debug)]
struct Qemu {
    machine: Machine,
    /// Killed when this is dropped.
    _process: Process,
}

impl QemuPair {
    /// Boots the guest on the first of two hosts, and waits until it answers.
    pub(super) async fn start(fleet: &mut Fleet, hosts: [Host; 2], wish: &WitnessWish) -> anyhow::Result<Self> {
        let folder = fleet.folder().join(format!("qemu-{}", wish.name));
        let address = fleet.network.guest_address();
        let vm: VmSpec = toml::from_str(&wish.specification(address)?)?;
        certificates(&hosts, &folder)?;
        hosts.iter().try_for_each(|host| host.add_tap(&tap(wish.name)))?;
        let accelerator = accelerator(fleet).await?;
        let running = launch(&hosts[0], &folder, &vm, accelerator, 0, false).await?;
        running.tell("cont", Value::Null).await?;
        let pair = Self { hosts, folder, vm, accelerator, address, here: 0, running, started: 0 };
        timeout(BOOT_WAIT, pair.boots(fleet)).await.context("the peer's guest did not boot")?;
        Ok(pair)
    }

    async fn boots(&self, fleet: &Fleet) {
        while Witness::connect(&fleet.client, self.address, DEFAULT_PORT).await.is_err() {
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Moves the guest to the other host. Measured is what `blackout` says: the pause, as the source's QEMU counts it,
    /// or all the time from `migrate` until the guest runs at the target.
    pub(super) async fn migrate(
        &mut self,
        fleet: &Fleet,
        channels: u8,
        tls: bool,
        blackout: bool,
    ) -> anyhow::Result<Sample> {
        let outside = if blackout { Some(OutsideView::open(fleet, self.address).await?) } else { None };
        let meter = Meter::start(&[&self.hosts[0], &self.hosts[1]])?;
        let there = 1 - self.here;
        self.started += 1;
        let target = launch(&self.hosts[there], &self.folder, &self.vm, self.accelerator, self.started, true).await?;
        let address = self.hosts[there].address(Link::Data);
        let source_name = format!("source-{}", self.started);
        for (qemu, host, endpoint) in [(&self.running, self.here, "client"), (&target, there, "server")] {
            let credentials = if tls { format!("{endpoint}-{}", self.started) } else { String::new() };
            if tls {
                let folder = self.folder.join(self.hosts[host].name());
                let object = json!({ "qom-type": "tls-creds-x509", "id": credentials, "dir": folder,
                    "endpoint": endpoint, "verify-peer": true });
                qemu.tell("object-add", object).await?;
            }
            qemu.set_up(channels, &credentials).await?;
        }
        target.tell("migrate-incoming", json!({ "uri": format!("tcp:{address}:{PORT}") })).await?;

        let begun = Instant::now();
        self.running.tell("migrate", json!({ "uri": format!("tcp:{address}:{PORT}") })).await?;
        let completed = [MigrationStatus::Completed];
        let migration = self.running.machine.migration_reached(&completed, MIGRATION_WAIT).await;
        let migration = migration.with_context(|| format!("QEMU's own migration {source_name} failed"))?;
        target.machine.run_state_reached(&[RunState::Running], QMP_WAIT).await?;
        let whole = begun.elapsed();

        // The old QEMU ends here.
        self.running = target;
        self.here = there;
        let cpu_seconds = meter.stop().await?;
        let paused = migration.downtime_ms.context("QEMU does not say how long the guest was paused")?;
        let outside_seconds = match outside {
            Some(outside) => Some(outside.close().await?),
            None => None,
        };
        let seconds = if blackout { Duration::from_millis(paused) } else { whole };
        Ok(Sample { seconds: seconds.as_secs_f64(), cpu_seconds, outside_seconds })
    }

    /// The guest itself, to be asked.
    pub(super) async fn witness(&self, fleet: &Fleet) -> anyhow::Result<Witness> {
        Witness::connect(&fleet.client, self.address, DEFAULT_PORT).await
    }
}

impl Qemu {
    async fn tell(&self, command: &'static str, arguments: Value) -> anyhow::Result<()> {
        self.machine.qmp().execute(command, arguments, QMP_WAIT).await?;
        Ok(())
    }

    /// As Sterna sets it up, but for the pause before the switchover, which QEMU by itself does not need.
    async fn set_up(&self, channels: u8, credentials: &str) -> anyhow::Result<()> {
        let capabilities: Value = ["events", "return-path", "multifd", "auto-converge"]
            .map(|capability| json!({ "capability": capability, "state": true }))
            .into_iter()
            .collect();
        self.tell("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
        let parameters = json!({ "max-bandwidth": 0, "downtime-limit": DOWNTIME_LIMIT_MS,
            "multifd-channels": channels, "tls-creds": credentials });
        self.tell("migrate-set-parameters", parameters).await
    }
}

/// Starts the QEMU that Sterna would start, in a host's namespace.
async fn launch(
    host: &Host,
    folder: &Path,
    vm: &VmSpec,
    accelerator: Accelerator,
    number: u32,
    incoming: bool,
) -> anyhow::Result<Qemu> {
    let runtime = RuntimeDirectory::new(folder.join(format!("run{number}")))?;
    runtime.create()?;
    let boot = GuestImage::find()?.kernel;
    let placement = Placement {
        runtime: runtime.clone(),
        images: Default::default(),
        boot_directory: boot.parent().context("the kernel is in a folder")?.to_owned(),
        uefi: None,
        taps: vec![Some(tap(vm.name.as_str()))],
        accelerator,
        incoming,
    };
    let arguments = command_line(vm, &placement)?;
    // An incoming guest starts by itself here: there is no handover to wait for.
    let arguments = arguments.into_iter().filter(|argument| !(incoming && argument == "-S"));
    let process = Process::spawn("QEMU", host.command(PROGRAM).args(arguments), &runtime.log())?;
    let deadline = Instant::now() + QMP_WAIT;
    let machine = loop {
        match Machine::connect(&runtime.qmp_socket(), QMP_WAIT).await {
            Ok(machine) => break machine,
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(10)).await,
            Err(error) => return Err(error).with_context(|| format!("QEMU said: {:?}", process.lines())),
        }
    };
    Ok(Qemu { machine, _process: process })
}

fn tap(guest: &str) -> String {
    format!("{TAP}{}", &guest[..guest.len().min(8)])
}

/// Certificates for both hosts, of an authority of their own, under the names that QEMU wants. QEMU refuses the fleet's:
/// it insists on a key usage that TLS 1.3 has no use for. Keys and signatures are of the same kind as Sterna's.
fn certificates(hosts: &[Host], folder: &Path) -> anyhow::Result<()> {
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "bench");
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);
    for host in hosts {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, host.name());
        params.subject_alt_names = vec![SanType::IpAddress(host.address(Link::Data).into())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer)?;
        let folder = folder.join(host.name());
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("ca-cert.pem"), authority_certificate.pem())?;
        for end in ["server", "client"] {
            std::fs::write(folder.join(format!("{end}-cert.pem")), certificate.pem())?;
            std::fs::write(folder.join(format!("{end}-key.pem")), key.serialize_pem())?;
        }
    }
    Ok(())
}

/// What the agents chose to execute guests with.
async fn accelerator(fleet: &Fleet) -> anyhow::Result<Accelerator> {
    fn find(value: &Value) -> Option<&Value> {
        match value {
            Value::Object(fields) => fields.get("accelerator").or_else(|| fields.values().find_map(find)),
            Value::Array(items) => items.iter().find_map(find),
            _ => None,
        }
    }
    let shown = fleet.sterna(&["host", "show", "alpha"]).await?;
    let found = find(&shown).cloned();
    ensure!(found.is_some(), "the fleet does not say what executes guests: {shown:#}");
    Ok(serde_json::from_value(found.unwrap_or_default())?)
}
