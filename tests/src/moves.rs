//! A guest whose moves are disturbed: begun, watched step by step, followed to their end, and looked over afterwards.
//!
//! A step is seen to begin in the log of the source's agent, a millisecond after it does: events take the way over the
//! broker, and the short steps are over by the time they arrive.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use sterna_witness::protocol::{DEFAULT_PORT, Verification};
use tokio::time::{Instant, sleep};

use crate::fleet::{Fleet, WitnessWish};
use crate::witness::{Subscription, Witness};

/// How long a step may take to begin.
const STEP_WAIT: Duration = Duration::from_secs(120);
/// How long the witness may take to go on.
const WITNESS_WAIT: Duration = Duration::from_secs(60);
/// Between two looks at what has no event.
const LOOK: Duration = Duration::from_millis(200);
/// How long processor time is watched, to tell a guest that executes from one that does not.
const EXECUTION_WATCH: Duration = Duration::from_millis(1500);
/// In that time a paused QEMU uses less than this of its processor time, in clock ticks of 10 ms, and the witness more.
const EXECUTION_TICKS_MIN: u64 = 8;
/// Where the files of a witness are.
const POOLS: [&str; 2] = ["fast", "bulk"];

/// A witness in a fleet of two hosts, and the hosts.
#[derive(Debug)]
pub struct Guest {
    /// The VM's name.
    pub name: &'static str,
    /// Its address on the lan.
    pub address: Ipv4Addr,
    hosts: [&'static str; 2],
    witness: Witness,
    subscription: Subscription,
    boot_id: String,
    disks: usize,
    /// Images that it has in all.
    images: usize,
}

/// What was found when a guest was looked over.
#[derive(Debug, Clone)]
pub struct Whole {
    /// Whether it is the same run of the guest as ever, with all of its memory as it should be.
    pub sound: bool,
    /// Acknowledged records that are not there.
    pub records_lost: u64,
    /// All that the witness said.
    pub verification: Verification,
    /// Numbers and ticks that came out of order.
    pub faults: Vec<String>,
}

impl Guest {
    /// Starts one on the first host, and waits until it writes.
    pub async fn start(fleet: &mut Fleet, hosts: [&'static str; 2], wish: &WitnessWish) -> anyhow::Result<Self> {
        let address = fleet.start_witness(hosts[0], wish).await?;
        let mut witness = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?;
        let boot_id = witness.hello().await?.boot_id;
        let subscription = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?.subscribe().await?;
        let disks = wish.disks.len();
        let images = disks + wish.ballast.len();
        let guest = Self { name: wish.name, address, hosts, witness, subscription, boot_id, disks, images };
        guest.goes_on().await?;
        Ok(guest)
    }

    /// The host that is not `host`.
    pub fn other(&self, host: &str) -> &'static str {
        if host == self.hosts[0] { self.hosts[1] } else { self.hosts[0] }
    }

    /// Begins to move it; gives back the job's id.
    pub async fn begin_move(&self, fleet: &Fleet, target: &str, more: &[&str]) -> anyhow::Result<String> {
        let arguments = [&["migrate", self.name, "--to", target, "--detach"], more].concat();
        let job = fleet.sterna(&arguments).await?;
        Ok(job["job"].as_str().context("the job has no id")?.to_owned())
    }

    /// Moves it, undisturbed.
    pub async fn move_to(&self, fleet: &Fleet, target: &str) -> anyhow::Result<Value> {
        let job = fleet.sterna(&["migrate", self.name, "--to", target]).await?;
        ensure!(job["state"] == "completed", "the move is {}: {job:#}", job["state"]);
        Ok(job)
    }

    /// Waits until every disk has records acknowledged that were not before: the guest executes, and its disks answer.
    pub async fn goes_on(&self) -> anyhow::Result<()> {
        let before = self.subscription.recording().acknowledged;
        let further = |number: (usize, &u64)| *number.1 > before.get(number.0).copied().unwrap_or(0);
        let all =
            |acknowledged: &[u64]| acknowledged.len() == self.disks && acknowledged.iter().enumerate().all(further);
        self.subscription.wait_for(WITNESS_WAIT, |recording| all(&recording.acknowledged)).await?;
        Ok(())
    }

    /// Looks all of it over.
    pub async fn whole(&mut self) -> anyhow::Result<Whole> {
        let seen = self.subscription.recording().acknowledged;
        let verification = self.witness.verify().await?;
        let same = self.witness.hello().await?.boot_id == self.boot_id;
        let unknown = |(disk, seen): (usize, &u64)| {
            seen.saturating_sub(verification.disks.get(disk).map_or(0, |disk| disk.acknowledged))
        };
        let lost = verification.disks.iter().map(|disk| disk.mismatches).sum::<u64>();
        Ok(Whole {
            sound: same && verification.memory.mismatches == 0 && verification.memory.checked > 0,
            records_lost: lost + seen.iter().enumerate().map(unknown).sum::<u64>(),
            faults: self.subscription.recording().faults,
            verification,
        })
    }

    /// Asserts that the guest goes on and is whole.
    pub async fn expect_whole(&mut self) -> anyhow::Result<()> {
        self.goes_on().await?;
        let whole = self.whole().await?;
        ensure!(whole.sound && whole.records_lost == 0 && whole.faults.is_empty(), "the guest came to harm: {whole:?}");
        Ok(())
    }

    /// Waits until all hosts are online: nothing is planned for one that is not.
    pub async fn hosts_online(&self, fleet: &Fleet, wait: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            let list = fleet.sterna(&["host", "list"]).await;
            let online =
                |list: &Value| list.as_array().is_some_and(|all| all.iter().all(|host| host["online"] == true));
            if list.as_ref().is_ok_and(online) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not all hosts are online after {wait:?}: {list:#?}");
            sleep(LOOK).await;
        }
    }

    /// Where the fleet says that it is, once no job holds it and the fleet says that it runs.
    pub async fn settled_at(&self, fleet: &Fleet, wait: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + wait;
        loop {
            let vm = fleet.sterna(&["vm", "show", self.name]).await;
            if let Ok(vm) = &vm
                && vm["report"]["state"] == "running"
                && vm["report"]["job"].is_null()
                && let Some(host) = vm["host"].as_str()
            {
                return Ok(host.to_owned());
            }
            ensure!(Instant::now() < deadline, "the guest is not settled after {wait:?}: {vm:#?}");
            sleep(LOOK).await;
        }
    }

    /// Waits until a host says of nothing of the guest that it runs, or was to run, there.
    pub async fn gone_from(&self, fleet: &Fleet, host: &str, wait: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            let shown = fleet.sterna(&["host", "show", host]).await?;
            let vms = shown["inventory"]["vms"].as_array().context("a host tells which VMs it has")?;
            if vms.iter().all(|vm| vm["spec"]["name"] != self.name) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{host} still has the guest after {wait:?}: {vms:#?}");
            sleep(LOOK).await;
        }
    }

    /// Waits until only the host `at` has anything of the guest, and gives back what is too much if that takes too long.
    pub async fn left_behind(&self, fleet: &Fleet, at: &str, wait: Duration) -> anyhow::Result<Vec<String>> {
        self.too_much(fleet, at, wait, false).await
    }

    /// The same, but for images of which the other host says itself that it keeps them for the next move of the guest.
    pub async fn left_without_owner(&self, fleet: &Fleet, at: &str, wait: Duration) -> anyhow::Result<Vec<String>> {
        self.too_much(fleet, at, wait, true).await
    }

    /// What a host says that it keeps for the next move of the guest.
    pub async fn kept_at(&self, fleet: &Fleet, host: &str) -> anyhow::Result<Option<Value>> {
        let shown = fleet.sterna(&["host", "show", host]).await?;
        let partials = shown["inventory"]["partials"].as_array().context("a host tells what it keeps")?;
        Ok(partials.iter().find(|partial| partial["name"] == self.name).cloned())
    }

    async fn too_much(&self, fleet: &Fleet, at: &str, wait: Duration, may_keep: bool) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + wait;
        loop {
            let mut left = Vec::new();
            for host in self.hosts {
                let kept = if may_keep && host != at { self.kept_at(fleet, host).await? } else { None };
                let kept = kept.as_ref().and_then(|kept| kept["vm"].as_str());
                left.extend(leftovers(fleet, host, (host == at).then_some(self.images), kept)?);
            }
            if left.is_empty() || Instant::now() >= deadline {
                return Ok(left);
            }
            sleep(LOOK).await;
        }
    }

    /// On how many hosts the guest executes: by the processor time that each QEMU uses, whatever the agents say.
    pub async fn owners(&self, fleet: &Fleet) -> anyhow::Result<usize> {
        let mut before = Vec::new();
        for host in self.hosts {
            before.extend(processes(fleet, host, "qemu-system")?.into_iter().map(|(pid, _)| (pid, used(pid))));
        }
        sleep(EXECUTION_WATCH).await;
        let executes = |(pid, before): &(u32, Option<u64>)| match (before, used(*pid)) {
            (Some(before), Some(now)) => now.saturating_sub(*before) >= EXECUTION_TICKS_MIN,
            _ => false,
        };
        Ok(before.iter().filter(|process| executes(process)).count())
    }
}

/// Waits until the source's agent says that a step of a job begins, or that its record is `ceding` or `ceded`.
pub async fn begins(fleet: &Fleet, source: &str, job: &str, moment: &str) -> anyhow::Result<()> {
    let line = match moment {
        "ceding" | "ceded" => format!("record=\"{moment}\" job={job}"),
        step => format!("step begins job={job} step={step}"),
    };
    let process = fleet.agent(source)?.process().context("the source's agent does not run")?;
    process.wait_for_line(&line, STEP_WAIT).await?;
    Ok(())
}

/// The last step of a job that the source's agent said it began.
pub fn last_begun(fleet: &Fleet, source: &str, job: &str) -> anyhow::Result<Option<String>> {
    let log = std::fs::read_to_string(fleet.agent(source)?.log())?;
    let line = format!("step begins job={job} step=");
    Ok(log.lines().rev().find_map(|text| text.split_once(&line)).map(|(_, step)| step.trim().to_owned()))
}

/// Waits until a job is over, and gives it back as `job show` has it.
pub async fn ended(fleet: &Fleet, job: &str, wait: Duration) -> anyhow::Result<Value> {
    let deadline = Instant::now() + wait;
    loop {
        let shown = fleet.sterna(&["job", "show", job]).await;
        match &shown {
            Ok(job)
                if ["completed", "terminated", "exception", "killed"].iter().any(|state| job["state"] == *state) =>
            {
                return shown;
            }
            _ if Instant::now() < deadline => sleep(LOOK).await,
            Ok(job) => bail!("the job is {} after {wait:?}: {job:#}", job["state"]),
            Err(error) => bail!("the job cannot be shown after {wait:?}: {error:#}"),
        }
    }
}

/// Waits until a job is in a state, and gives it back as `job show` has it.
pub async fn state_becomes(fleet: &Fleet, job: &str, state: &str, wait: Duration) -> anyhow::Result<Value> {
    let deadline = Instant::now() + wait;
    loop {
        let shown = fleet.sterna(&["job", "show", job]).await;
        match &shown {
            Ok(job) if job["state"] == state => return shown,
            _ if Instant::now() < deadline => sleep(LOOK).await,
            other => bail!("the job is not {state} after {wait:?}: {other:#?}"),
        }
    }
}

/// A step of a job as `job show` has it.
pub fn step<'a>(job: &'a Value, name: &str) -> Option<&'a Value> {
    job["steps"].as_array()?.iter().find(|step| step["step"] == name)
}

/// What is on a host that should not be: with `disks` the guest is there with so many, without it nothing is but images of
/// the VM that is `kept`.
fn leftovers(fleet: &Fleet, host: &str, disks: Option<usize>, kept: Option<&str>) -> anyhow::Result<Vec<String>> {
    let agent = fleet.agent(host)?;
    let mut left = Vec::new();
    let mut files: Vec<PathBuf> = POOLS.iter().flat_map(|pool| agent.files(pool)).collect();
    files.retain(|file| kept.is_none_or(|vm| !file.starts_with(vm)));
    if files.len() != disks.unwrap_or(0) {
        left.extend(files.iter().map(|file| format!("{host}: file {}", file.display())));
        left.extend(files.is_empty().then(|| format!("{host}: no files")));
    }
    let entries = agent.runtime_entries();
    if entries.len() != usize::from(disks.is_some()) || entries.iter().any(|entry| !entry.starts_with("vm/")) {
        left.push(format!("{host}: runtime entries {entries:?}"));
    }
    for (program, expected) in
        [("qemu-system", usize::from(disks.is_some())), ("qemu-storage-daemon", 0), ("qemu-img", 0)]
    {
        let found = processes(fleet, host, program)?;
        if found.len() != expected {
            left.push(format!("{host}: {} processes of {program}: {found:?}", found.len()));
        }
    }
    let taps = Command::new("ip").args(["-n", agent.host.namespace(), "-o", "link", "show", "type", "tun"]).output()?;
    let taps = String::from_utf8_lossy(&taps.stdout).lines().count();
    if taps != usize::from(disks.is_some()) {
        left.push(format!("{host}: {taps} tap devices"));
    }
    Ok(left)
}

/// The processes of a program in a host's namespace.
pub fn processes(fleet: &Fleet, host: &str, program: &str) -> anyhow::Result<Vec<(u32, String)>> {
    let pids = Command::new("ip").args(["netns", "pids", fleet.agent(host)?.host.namespace()]).output()?;
    let named = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let first = String::from_utf8_lossy(line.split(|byte| *byte == 0).next()?).into_owned();
        first.rsplit('/').next()?.starts_with(program).then_some((pid, first.clone()))
    };
    Ok(String::from_utf8_lossy(&pids.stdout).split_whitespace().filter_map(|pid| named(pid.parse().ok()?)).collect())
}

/// The processor time that a process has used, in clock ticks.
fn used(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, the 12th and 13th fields are the times in user and kernel mode.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
