//! What every scenario asks for: a witness that is watched from its start, a move that must succeed, and nothing left.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::future::Future;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_witness::protocol::DEFAULT_PORT;

use crate::fleet::{Fleet, WitnessWish};
use crate::witness::{Subscription, Witness};

/// How long the witness may take to acknowledge what is waited for.
const RECORDS_WAIT: Duration = Duration::from_secs(60);
/// Records on every disk after each move, before it is judged: the guest must go on, and not only have arrived.
const RECORDS_AFTER: u64 = 20;
/// The longest blackout, in milliseconds: a machine that is shared with other tests must fail none of them by being slow.
const BLACKOUT_MAX_MS: &str = "60000";

/// Runs a scenario on a fleet of two, `alpha` and `bravo`; the logs are shown where it fails.
///
/// # Panics
/// When the scenario does not hold.
pub async fn on_fleet<F>(scenario: F)
where
    F: AsyncFnOnce(&mut Fleet) -> anyhow::Result<()>,
{
    on_fleet_of(&["alpha", "bravo"], scenario).await;
}

/// Runs a scenario on a fleet of these hosts; the logs are shown where it fails.
///
/// # Panics
/// When the scenario does not hold.
pub async fn on_fleet_of<F>(hosts: &[&str], scenario: F)
where
    F: AsyncFnOnce(&mut Fleet) -> anyhow::Result<()>,
{
    let mut fleet = Fleet::start(hosts).await.expect("a fleet");
    let outcome = scenario(&mut fleet).await;
    if let Err(error) = &outcome {
        eprintln!("{error:#}\n{}", fleet.logs());
    }
    outcome.expect("the scenario holds");
}

/// A witness whose every word is kept from its start on.
#[derive(Debug)]
pub struct Watched {
    /// Its address.
    pub address: Ipv4Addr,
    /// A connection that lasts over every move.
    pub witness: Witness,
    subscription: Subscription,
    boot_id: String,
    disks: usize,
}

impl Watched {
    /// Starts a witness on a host, and waits for its first records.
    pub async fn start(fleet: &mut Fleet, host: &str, wish: &WitnessWish) -> anyhow::Result<Self> {
        let address = fleet.start_witness(host, wish).await?;
        Self::watch(fleet, address).await
    }

    /// Watches a witness that runs.
    pub async fn watch(fleet: &Fleet, address: Ipv4Addr) -> anyhow::Result<Self> {
        let mut witness = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?;
        let hello = witness.hello().await?;
        let subscription = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?.subscribe().await?;
        let watched = Self { address, witness, subscription, boot_id: hello.boot_id, disks: hello.disks };
        watched.more_records().await?;
        Ok(watched)
    }

    /// Waits for the guest to be up after a start from its disks, and has it prove all that it acknowledged before.
    pub async fn prove_after_start(self, fleet: &Fleet, name: &str) -> anyhow::Result<()> {
        fleet.wait_for_witness(name, self.address).await?;
        let mut witness = Witness::connect(&fleet.client, self.address, DEFAULT_PORT).await?;
        ensure!(witness.hello().await?.boot_id != self.boot_id, "the guest was not started anew");
        for (disk, number) in self.acknowledged().into_iter().enumerate() {
            let checked = witness.check(disk, number).await?;
            ensure!(checked.mismatches == 0 && checked.checked > 0, "disk {disk} up to {number}: {checked:?}");
        }
        Ok(())
    }

    /// What each disk has acknowledged.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.subscription.recording().acknowledged
    }

    /// Waits until every disk has acknowledged `RECORDS_AFTER` more records.
    pub async fn more_records(&self) -> anyhow::Result<()> {
        let before = self.acknowledged();
        let wanted = |acknowledged: &[u64]| {
            acknowledged.len() == self.disks
                && acknowledged
                    .iter()
                    .enumerate()
                    .all(|(disk, count)| *count >= before.get(disk).copied().unwrap_or(0) + RECORDS_AFTER)
        };
        self.subscription.wait_for(RECORDS_WAIT, |recording| wanted(&recording.acknowledged)).await.map(drop)
    }

    /// Proves that the guest is the very same run, goes on, and that memory and disks hold all that was acknowledged.
    pub async fn prove(&mut self) -> anyhow::Result<()> {
        self.more_records().await?;
        let verified = self.witness.verify().await?;
        ensure!(verified.ok, "the witness is not whole: {verified:?}");
        let boot_id = self.witness.hello().await?.boot_id;
        ensure!(boot_id == self.boot_id, "the guest was started anew");
        let faults = self.subscription.recording().faults;
        ensure!(faults.is_empty(), "the witness' words are not whole: {faults:?}");
        Ok(())
    }
}

/// Runs `sterna migrate` with these arguments; the job must complete. Its figures are printed.
pub async fn migrate(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<Value> {
    let job = fleet.sterna(&[&["migrate", "--max-blackout", BLACKOUT_MAX_MS], arguments].concat()).await?;
    ensure!(job["state"] == "completed", "{arguments:?} ended as {job:#}");
    let step = |kind: &str| job["steps"].as_array().and_then(|steps| steps.iter().find(|step| step["step"] == kind));
    let sent = |kind: &str| step(kind).map_or(0, |step| step["bytes_sent"].as_u64().unwrap_or(0)) >> 10;
    eprintln!(
        "{}: blackout {} ms, disks {} KiB in {} passes, memory {} KiB",
        arguments.join(" "),
        job["blackout_ms"],
        sent("copy_disks"),
        step("switchover").or(step("copy_disks")).map_or(0, |step| step["passes"].as_u64().unwrap_or(0)),
        sent("copy_memory"),
    );
    Ok(job)
}

/// Waits for a text on a guest's console.
pub async fn expect_on_console(fleet: &Fleet, vm: &str, text: &str, limit: Duration) -> anyhow::Result<()> {
    eventually(&format!("{text:?} on the console of {vm}"), limit, || async {
        let console = fleet.try_sterna(&["vm", "console", vm, "--no-follow", "--from-start"]).await?;
        Ok(String::from_utf8_lossy(&console.stdout).contains(text).then_some(()))
    })
    .await
}

/// The VM as the fleet shows it.
pub async fn vm(fleet: &Fleet, name: &str) -> anyhow::Result<Value> {
    fleet.sterna(&["vm", "show", name]).await
}

/// What a host has of VMs and jobs beside its agent: empty where nothing is left over.
pub fn left_behind(fleet: &Fleet, host: &str) -> anyhow::Result<Vec<String>> {
    let agent = fleet.agent(host)?;
    let mut left: Vec<String> = Vec::new();
    for pool in ["fast", "bulk"] {
        left.extend(std::fs::read_dir(agent.pool(pool))?.flatten().map(|entry| entry.path().display().to_string()));
    }
    left.extend(agent.runtime_entries());
    let (processes, taps) = agent.processes_and_taps()?;
    // A child of the agent may be at its end for a moment; a guest or a daemon is not.
    left.extend(processes.into_iter().filter(|name| name.starts_with("qemu")));
    left.extend(taps);
    Ok(left)
}

/// Checks that a host has nothing of VMs and jobs.
pub fn expect_nothing_left(fleet: &Fleet, host: &str) -> anyhow::Result<()> {
    let left = left_behind(fleet, host)?;
    ensure!(left.is_empty(), "left behind at {host}: {left:#?}");
    Ok(())
}

/// Asks again until an answer comes, at most for `limit`: for what is only told every now and then.
pub async fn eventually<T, F: Future<Output = anyhow::Result<Option<T>>>>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let asked = async {
        loop {
            if let Some(answer) = ask().await? {
                return anyhow::Ok(answer);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(limit, asked).await.with_context(|| format!("{what} did not happen within {limit:?}"))?
}
