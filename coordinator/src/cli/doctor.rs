//! `sterna doctor`: everything that must hold for a fleet to move VMs, checked from here, each with what to mend.
//!
//! First what is near (configuration, broker, coordinator), since without it nothing else is known; then the fleet as
//! the coordinators see it. The findings on a fleet are a pure function of its reports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use sterna_shared::bus::{HostView, NATS_VERSION_ADVISED, SystemView, VmView, version_numbers};
use sterna_shared::host::{Accelerator, VmState};
use sterna_shared::id::HostId;
use sterna_shared::job::{JobState, JobStatus};
use sterna_shared::replica::{ReplicaState, ReplicaView};
use sterna_shared::time::Timestamp;

use super::error::{CliError, Exit};
use super::output::{Output, moment};
use super::{Global, connect_by, lifetime, now, settings};

/// How far two clocks may differ before it is worth a word, in seconds.
const CLOCK_WARN_SECONDS: f64 = 2.0;
/// How far two clocks may differ before certificates and timestamps mislead, in seconds.
const CLOCK_FAIL_SECONDS: f64 = 60.0;
/// How long before its end a certificate is warned of, in days.
const CERTIFICATE_WARN_DAYS: f64 = 30.0;
/// The part of a pool that should be free, in percent.
const POOL_FREE_PERCENT_MIN: u64 = 5;
/// The oldest QEMU that guests are moved on.
const QEMU_VERSION_MIN: (u64, u64, u64) = (7, 2, 0);

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at, such as `broker` or `alpha: clock`.
    check: String,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to mend; empty where nothing is to be.
    remedy: String,
}

impl Check {
    fn new(verdict: Verdict, check: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), verdict, found: found.into(), remedy: remedy.into() }
    }

    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, check, found, "")
    }

    fn error(check: &str, error: &CliError) -> Self {
        let found = [&error.message].into_iter().chain(&error.causes).cloned().collect::<Vec<_>>().join(": ");
        Self::new(Verdict::Fail, check, found, error.hints.join("; "))
    }
}

pub(super) async fn run(global: &Global, output: Output) -> Result<Exit, CliError> {
    let checks = examine(global).await;
    let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    output.result(&checks, || text(&checks))?;
    Ok(if worst == Verdict::Fail { Exit::Failed } else { Exit::Ok })
}

/// Goes as far as it can: what cannot be reached ends the list.
async fn examine(global: &Global) -> Vec<Check> {
    let mut checks = Vec::new();
    let found = match settings::find(global.config.as_deref(), global.server.as_deref()) {
        Ok(found) => found,
        Err(error) => return vec![Check::error("configuration", &error.into())],
    };
    checks.push(configuration(&found));
    let client = match connect_by(&found, global).await {
        Ok(client) => client,
        Err(error) => {
            checks.push(Check::error("broker", &error));
            return checks;
        }
    };
    checks.push(broker(&client.server_version(), client.server_demands_tls()));
    let asked_at = now();
    let system = match client.system().await {
        Ok(system) => system,
        Err(error) => {
            checks.push(Check::error("coordinator", &error.into()));
            return checks;
        }
    };
    checks.extend(coordinator(&system, asked_at, now()));
    match client.hosts().await {
        Ok(hosts) => checks.extend(fleet(&hosts, &system)),
        Err(error) => checks.push(Check::error("hosts", &error.into())),
    }
    match client.vms().await {
        Ok(vms) => checks.extend(machines(&vms)),
        Err(error) => checks.push(Check::error("vms", &error.into())),
    }
    match client.jobs().await {
        Ok(all) => checks.extend(jobs(&all)),
        Err(error) => checks.push(Check::error("jobs", &error.into())),
    }
    match client.replicas().await {
        Ok(views) => checks.extend(replicas(&views)),
        Err(error) => checks.push(Check::error("replicas", &error.into())),
    }
    checks
}

fn configuration(found: &settings::Found) -> Check {
    let nats = &found.settings.nats;
    let secret = nats.nkey_file.as_ref().or(nats.credentials_file.as_ref());
    let Some(file) = &found.file else {
        let remedy = "write ~/.config/sterna/sterna.toml (docs/install.md)";
        return Check::new(Verdict::Warn, "configuration", "no file was found; defaults and flags are used", remedy);
    };
    match secret {
        None => Check::new(
            Verdict::Warn,
            "configuration",
            format!("{} names no key: anybody who reaches the broker may do the same", file.display()),
            "set [nats] nkey_file; sterna nats-config makes keys",
        ),
        Some(path) => match mode_of(path) {
            Some(mode) if mode & 0o077 == 0 => Check::ok("configuration", file.display().to_string()),
            Some(mode) => {
                let found = format!("{} has mode {mode:04o}", path.display());
                Check::new(Verdict::Fail, "configuration", found, format!("chmod 600 {}", path.display()))
            }
            None => {
                let found = format!("{} cannot be looked at", path.display());
                Check::new(Verdict::Fail, "configuration", found, "check [nats] nkey_file")
            }
        },
    }
}

/// Whether a file that should be secret is.
fn mode_of(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.mode() & 0o7777)
}

fn broker(version: &str, tls: bool) -> Check {
    let (a, b, c) = NATS_VERSION_ADVISED;
    if version_numbers(version).is_none_or(|found| found < NATS_VERSION_ADVISED) {
        let found = format!("nats-server {version} has known security faults");
        return Check::new(Verdict::Warn, "broker", found, format!("upgrade to {a}.{b}.{c} or later"));
    }
    if !tls {
        let remedy = "give the broker a certificate: sterna pki issue server, sterna nats-config";
        return Check::new(Verdict::Warn, "broker", format!("nats-server {version} does not ask for TLS"), remedy);
    }
    Check::ok("broker", format!("nats-server {version}, TLS"))
}

fn coordinator(system: &SystemView, asked_at: Timestamp, answered_at: Timestamp) -> Vec<Check> {
    let here = env!("CARGO_PKG_VERSION");
    let found = format!("{} {} leads, epoch {}", system.coordinator, system.version, system.epoch);
    let version = if system.version == here {
        Check::ok("coordinator", found)
    } else {
        let remedy = "install the same version of the command and the coordinators";
        Check::new(Verdict::Warn, "coordinator", format!("{found}; this command is {here}"), remedy)
    };
    // Its clock was read at some time between question and answer: only what lies outside is a difference.
    let early = asked_at.seconds_since(system.now).max(0.0);
    let late = system.now.seconds_since(answered_at).max(0.0);
    vec![version, clock("clock here", early.max(late), "the coordinator's")]
}

fn clock(check: &str, difference: f64, of: &str) -> Check {
    let found = format!("differs by {difference:.1} s from {of}");
    let verdict = if difference >= CLOCK_FAIL_SECONDS {
        Verdict::Fail
    } else if difference >= CLOCK_WARN_SECONDS {
        Verdict::Warn
    } else {
        return Check::ok(check, format!("within {CLOCK_WARN_SECONDS:.0} s of {of}"));
    };
    Check::new(verdict, check, found, "run a time service such as chrony there")
}

fn fleet(hosts: &[HostView], system: &SystemView) -> Vec<Check> {
    if hosts.is_empty() {
        let remedy = "start sterna-agent on each host, with the broker and nkey of its own in agent.toml";
        return vec![Check::new(Verdict::Fail, "hosts", "no agent was ever heard of", remedy)];
    }
    let mut checks: Vec<Check> = hosts.iter().flat_map(|host| of_host(host, system)).collect();
    checks.extend(alike(hosts));
    checks
}

fn of_host(host: &HostView, system: &SystemView) -> Vec<Check> {
    let inventory = &host.inventory;
    let named = |what: &str| format!("{}: {what}", inventory.host);
    if !host.online {
        let found = format!("not heard of since {}", moment(host.heard_at));
        let remedy =
            format!("on {}: systemctl status sterna-agent; is the broker reachable from there?", inventory.host);
        return vec![Check::new(Verdict::Fail, named("agent"), found, remedy)];
    }
    let mut checks = vec![if inventory.version == system.version {
        Check::ok(named("agent"), format!("online, {}", inventory.version))
    } else {
        let found = format!("online, {}; the coordinator is {}", inventory.version, system.version);
        Check::new(Verdict::Warn, named("agent"), found, "upgrade the older; guests run on meanwhile")
    }];
    checks.push(clock(&named("clock"), inventory.at.seconds_since(host.heard_at).abs(), "the coordinator's"));

    let certificate = &inventory.certificate;
    let issue = format!(
        "sterna pki issue host {} --address ADDRESS --dir DIRECTORY --force, copy both files, then restart its agent",
        inventory.host
    );
    let days = certificate.not_after.seconds_since(system.now) / 86_400.0;
    checks.push(if days <= 0.0 {
        Check::new(Verdict::Fail, named("certificate"), format!("expired at {}", moment(certificate.not_after)), issue)
    } else if certificate.not_before > system.now {
        let found = format!("does not hold before {}", moment(certificate.not_before));
        Check::new(Verdict::Fail, named("certificate"), found, format!("mend the clock, or {issue}"))
    } else if days < CERTIFICATE_WARN_DAYS {
        Check::new(Verdict::Warn, named("certificate"), format!("expires in {days:.0} days"), issue)
    } else {
        Check::ok(named("certificate"), format!("holds until {}", moment(certificate.not_after)))
    });

    let hypervisor = &inventory.hypervisor;
    let (found, accelerator) =
        (format!("{} ({})", hypervisor.version, hypervisor.accelerator.as_str()), hypervisor.accelerator);
    checks.push(if version_numbers(&hypervisor.version).is_none_or(|version| version < QEMU_VERSION_MIN) {
        Check::new(Verdict::Fail, named("QEMU"), found, "install QEMU 7.2 or later")
    } else if accelerator == Accelerator::Tcg {
        let remedy = "enable virtualisation in the firmware and load kvm; without it guests are slow";
        Check::new(Verdict::Warn, named("QEMU"), found, remedy)
    } else {
        Check::ok(named("QEMU"), found)
    });

    if inventory.pools.is_empty() {
        let remedy = "add a [pools.NAME] section to its agent.toml";
        checks.push(Check::new(Verdict::Warn, named("pools"), "none: no VM with a disk can live there", remedy));
    }
    checks.extend(inventory.pools.iter().map(|pool| {
        let found = format!("{} free of {}", pool.free, pool.capacity);
        let short = u128::from(pool.free.0) * 100 < u128::from(pool.capacity.0) * u128::from(POOL_FREE_PERCENT_MIN);
        let check = named(&format!("pool {}", pool.name));
        match short {
            true => {
                Check::new(Verdict::Warn, check, found, "free room, or move disks: sterna migrate VM --storage-only")
            }
            false => Check::ok(check, found),
        }
    }));
    checks
}

/// What hosts must have in common for VMs to move between them.
fn alike(hosts: &[HostView]) -> Vec<Check> {
    let online: Vec<&HostView> = hosts.iter().filter(|host| host.online).collect();
    if online.len() < 2 {
        return vec![Check::new(Verdict::Warn, "fleet", "fewer than two hosts are online", "a move needs two")];
    }
    let mut authorities: BTreeMap<&str, Vec<&HostId>> = BTreeMap::new();
    for host in &online {
        authorities.entry(&host.inventory.certificate.authority).or_default().push(&host.inventory.host);
    }
    let mut checks = vec![match authorities.len() {
        1 => Check::ok("authority", "one, trusted by every host"),
        _ => {
            let groups: Vec<String> = authorities
                .values()
                .map(|hosts| hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>().join(", "))
                .collect();
            let remedy = "issue all certificates by one authority (sterna pki issue), and give all hosts its ca.pem";
            Check::new(
                Verdict::Fail,
                "authority",
                format!("several; these do not trust each other: {}", groups.join(" | ")),
                remedy,
            )
        }
    }];
    let common = online
        .iter()
        .map(|host| host.inventory.hypervisor.machines.iter().map(String::as_str).collect::<BTreeSet<_>>())
        .reduce(|left, right| &left & &right)
        .unwrap_or_default();
    checks.push(if common.is_empty() {
        let remedy = "install QEMU versions nearer to each other";
        Check::new(Verdict::Fail, "machine types", "no machine type is on every host", remedy)
    } else {
        Check::ok("machine types", format!("{} on every host", common.len()))
    });
    checks
}

fn machines(vms: &[VmView]) -> Vec<Check> {
    let mut checks = Vec::new();
    for vm in vms {
        let name = &vm.report.spec.name;
        if !vm.report.owned {
            let found = "no host may run it: a handover is not resolved";
            let remedy = format!(
                "get both hosts online; if one is gone for good and fenced: sterna vm resolve {name} --fenced HOST"
            );
            checks.push(Check::new(Verdict::Fail, format!("vm {name}"), found, remedy));
        } else if vm.report.state == VmState::Failed {
            let remedy = format!("look at sterna vm console {name} --no-follow and the agent's log on {}", vm.host);
            checks.push(Check::new(Verdict::Warn, format!("vm {name}"), "its QEMU failed", remedy));
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok("vms", format!("{} known, each with an owner", vms.len())));
    }
    checks
}

fn jobs(jobs: &[JobStatus]) -> Vec<Check> {
    let mut checks: Vec<Check> = jobs
        .iter()
        .filter(|job| job.state == JobState::QueryPending)
        .map(|job| {
            let remedy = format!("sterna job show {} tells what is missing", job.job);
            Check::new(Verdict::Fail, format!("job {}", job.job), "waits for an operator", remedy)
        })
        .collect();
    if checks.is_empty() {
        let running = jobs.iter().filter(|job| !job.state.is_final()).count();
        checks.push(Check::ok("jobs", format!("{running} in hand, none waits for an operator")));
    }
    checks
}

fn replicas(views: &[ReplicaView]) -> Vec<Check> {
    let mut checks = Vec::new();
    for view in views {
        let (why, extend) = (format!("sterna replicate show {} tells why", view.name), || {
            format!("push that back: sterna replicate extend {}", view.name)
        });
        let (found, remedy) = match (view.late, view.age_seconds, view.state) {
            (true, Some(age), _) => {
                (format!("its latest snapshot is {age} s old, longer than its cycles should take"), why)
            }
            (true, None, _) => ("it has no snapshot yet, longer than its first cycle should take".to_owned(), why),
            (false, _, ReplicaState::Error) => ("its latest cycle failed".to_owned(), why),
            (false, _, ReplicaState::Expired) => ("it has expired, and no cycle is made".to_owned(), extend()),
            (false, ..) if view.expires_soon => (format!("it expires at {}", lifetime::expiry(view)), extend()),
            (false, ..) => continue,
        };
        checks.push(Check::new(Verdict::Warn, format!("replica of {} at {}", view.name, view.host), found, remedy));
    }
    if checks.is_empty() && !views.is_empty() {
        checks.push(Check::ok("replicas", format!("{} known, none late", views.len())));
    }
    checks
}

fn text(checks: &[Check]) -> String {
    let lines = checks.iter().map(|check| {
        let word = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let remedy = if check.remedy.is_empty() { String::new() } else { format!("\n      → {}", check.remedy) };
        format!("{word}  {}: {}{remedy}", check.check, check.found)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use sterna_shared::host::{Certificate, Cpu, Hypervisor, Inventory, Limits, LimitsChange, MovesInHand, Pool};
    use sterna_shared::id::Epoch;
    use sterna_shared::units::ByteCount;

    use super::*;
    use crate::planner::example;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_unix_microseconds((1_795_300_000 + second) * 1_000_000)
    }

    fn system() -> SystemView {
        SystemView {
            coordinator: "main".to_owned(),
            version: "0.1.0".to_owned(),
            epoch: Epoch(1),
            nats_version: "2.15.1".to_owned(),
            now: at(0),
        }
    }

    fn sound(name: &str) -> HostView {
        HostView {
            inventory: Inventory {
                host: name.parse().expect("a name"),
                at: at(0),
                version: "0.1.0".to_owned(),
                addresses: vec![],
                hypervisor: Hypervisor {
                    version: "10.0.2".to_owned(),
                    accelerator: Accelerator::Kvm,
                    machines: vec!["pc-q35-7.2".to_owned()],
                    cpu_models: vec![],
                    uefi: false,
                    secure_boot: false,
                },
                cpu: Cpu { model: "x".to_owned(), features: vec![], count: 1 },
                memory_total: ByteCount(2),
                memory_free: ByteCount(1),
                pools: vec![Pool {
                    name: "fast".parse().expect("a name"),
                    shared: None,
                    capacity: ByteCount(100),
                    free: ByteCount(50),
                    reserved: ByteCount(0),
                    extent: None,
                }],
                bridges: vec![],
                boot_files: vec![],
                certificate: Certificate {
                    authority: "a".to_owned(),
                    not_before: at(-1000),
                    not_after: at(90 * 86_400),
                },
                limits: Limits::default(),
                limits_set: LimitsChange::default(),
                epoch: Epoch(1),
                vms: vec![],
                partials: vec![],
                memory_reserved: ByteCount(0),
                planned: vec![],
                replicas: vec![],
                adapts: false,
                probe_commands: vec![],
            },
            online: true,
            heard_at: at(0),
            moves: MovesInHand::default(),
        }
    }

    /// The verdict on a fleet of two, one of which was spoilt, under that check's name.
    fn verdict(check: &str, spoil: impl FnOnce(&mut HostView)) -> Verdict {
        let mut alpha = sound("alpha");
        spoil(&mut alpha);
        let checks = fleet(&[alpha, sound("beta")], &system());
        let found =
            checks.iter().find(|found| found.check == check).unwrap_or_else(|| panic!("no {check}: {checks:?}"));
        assert_eq!(found.remedy.is_empty(), found.verdict == Verdict::Ok, "{found:?}");
        found.verdict
    }

    #[test]
    fn a_sound_fleet_is_found_sound() {
        let checks = fleet(&[sound("alpha"), sound("beta")], &system());
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok), "{checks:?}");
    }

    #[test]
    fn each_fault_is_found_and_has_a_remedy() {
        assert_eq!(verdict("alpha: agent", |host| host.online = false), Verdict::Fail);
        assert_eq!(verdict("alpha: agent", |host| host.inventory.version = "0.0.9".into()), Verdict::Warn);
        assert_eq!(verdict("alpha: clock", |host| host.heard_at = at(5)), Verdict::Warn);
        assert_eq!(verdict("alpha: clock", |host| host.heard_at = at(-100)), Verdict::Fail);
        assert_eq!(verdict("alpha: certificate", |host| host.inventory.certificate.not_after = at(0)), Verdict::Fail);
        assert_eq!(verdict("alpha: certificate", |host| host.inventory.certificate.not_before = at(9)), Verdict::Fail);
        assert_eq!(
            verdict("alpha: certificate", |host| host.inventory.certificate.not_after = at(5 * 86_400)),
            Verdict::Warn
        );
        assert_eq!(verdict("alpha: QEMU", |host| host.inventory.hypervisor.version = "6.2.0".into()), Verdict::Fail);
        assert_eq!(
            verdict("alpha: QEMU", |host| host.inventory.hypervisor.accelerator = Accelerator::Tcg),
            Verdict::Warn
        );
        assert_eq!(verdict("alpha: pool fast", |host| host.inventory.pools[0].free = ByteCount(4)), Verdict::Warn);
        assert_eq!(verdict("alpha: pools", |host| host.inventory.pools.clear()), Verdict::Warn);
        assert_eq!(verdict("authority", |host| host.inventory.certificate.authority = "b".into()), Verdict::Fail);
        assert_eq!(verdict("machine types", |host| host.inventory.hypervisor.machines.clear()), Verdict::Fail);
        assert_eq!(verdict("fleet", |host| host.online = false), Verdict::Warn);
    }

    #[test]
    fn a_replica_that_is_late_or_whose_cycle_failed_is_warned_of() {
        let host = "beta".parse().expect("a name");
        let sound = ReplicaView::of(&host, Some(&example::replica()), None, None, example::later(60)).expect("a view");
        assert!(replicas(&[]).is_empty());
        assert_eq!(replicas(std::slice::from_ref(&sound))[0].verdict, Verdict::Ok);
        for faulty in [
            ReplicaView { late: true, ..sound.clone() },
            ReplicaView { late: true, age_seconds: None, ..sound.clone() },
            ReplicaView { state: ReplicaState::Error, ..sound.clone() },
        ] {
            let checks = replicas(&[sound.clone(), faulty]);
            assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Warn));
            assert!(checks[0].remedy.contains("sterna replicate show web"));
        }
        for expiring in [
            ReplicaView { expires_at: Some(example::later(99)), expires_soon: true, ..sound.clone() },
            ReplicaView { state: ReplicaState::Expired, ..sound.clone() },
        ] {
            let checks = replicas(&[sound.clone(), expiring]);
            assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Warn));
            assert!(checks[0].remedy.contains("sterna replicate extend web"));
        }
    }

    #[test]
    fn a_clock_is_not_blamed_for_the_time_an_answer_takes() {
        let verdict = |asked, answered| coordinator(&system(), at(asked), at(answered))[1].verdict;
        assert_eq!(verdict(-20, 20), Verdict::Ok);
        assert_eq!(verdict(3, 4), Verdict::Warn);
        assert_eq!(verdict(-200, -100), Verdict::Fail);
    }

    #[test]
    fn an_old_or_open_broker_is_warned_of() {
        assert_eq!(broker("2.15.1", true).verdict, Verdict::Ok);
        assert_eq!(broker("2.11.0", true).verdict, Verdict::Warn);
        assert_eq!(broker("2.15.1", false).verdict, Verdict::Warn);
    }
}
