//! Replicas that a medium has altered: it is found, no clone is made of it, and the next cycle repairs it.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{ended, step};
use sterna_tests::replicas::{cycle, records, replica};
use sterna_tests::scenario::{Watched, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
const STONES_MIB: u64 = 64;
/// What each record of the witness begins with.
const MAGIC: &[u8] = b"STERNWIT";
/// A byte of a record that is behind its head.
const WITHIN: u64 = 200;

/// A disk that the guest writes to all over, and one that it leaves alone.
fn two_disks() -> WitnessWish {
    WitnessWish {
        disks: vec![("root", "fast", "qcow2", 64)],
        ballast: vec![("stones", "fast", "qcow2", STONES_MIB)],
        ..WitnessWish::small("web")
    }
}

/// Verifies the replica, to whatever end.
async fn verified(fleet: &Fleet, more: &[&str]) -> anyhow::Result<Value> {
    let job = fleet.sterna(&[&["replicate", "verify", "web", "--detach"], more].concat()).await?;
    let job = job["job"].as_str().context("an id")?.to_owned();
    ended(fleet, &job, WAIT).await
}

/// Turns a bit over in a layer's file, as a medium does: in a record of the witness, or in the midst of the stones.
fn flip(fleet: &Fleet, disk: &str, layer: u64) -> anyhow::Result<()> {
    let name = format!("{disk}.layer-{layer}.qcow2");
    let agent = fleet.agent("bravo")?;
    let files = agent.files("fast");
    let found = files.iter().find(|path| path.ends_with(&name)).with_context(|| format!("no {name} in {files:?}"))?;
    let path = agent.pool("fast").join(found);
    let content = std::fs::read(&path)?;
    let record = content.windows(MAGIC.len()).position(|window| window == MAGIC);
    let at = match disk {
        "stones" => content.len() as u64 / 2,
        _ => record.context("no record in the layer")? as u64 + WITHIN,
    };
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(file.sync_all()?)
}

/// The verification fails with what was altered, and these snapshots are marked.
async fn expect_damage(fleet: &Fleet, disk: &str, damaged: &[u64]) -> anyhow::Result<()> {
    let latest = damaged.last().copied().context("a snapshot")?;
    // What was found once is found again, until it is repaired.
    for _ in 0..2 {
        let job = verified(fleet, &[]).await?;
        let failure = &job["failure"];
        ensure!(job["state"] == "exception" && failure["code"] == "digest_mismatch", "{job:#}");
        let message = failure["message"].as_str().unwrap_or_default();
        ensure!(message.contains(&format!("disk {disk} of snapshot {latest} does not hold")), "{failure:#}");
        ensure!(failure["remedy"].to_string().contains("the next cycle repairs it"), "{failure:#}");
    }
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    ensure!(marked(&found) == damaged, "{found:#}");
    let clone = fleet.try_sterna(&["clone", "create", "web", "--skip-os-adaptation", "--name", "copy"]).await?;
    let said = String::from_utf8_lossy(&clone.stderr).into_owned();
    ensure!(!clone.status.success() && said.contains("does not hold what was written"), "{said}");
    Ok(())
}

fn marked(replica: &Value) -> Vec<u64> {
    let snapshots = replica["layers"].as_array().into_iter().flatten().map(|layer| &layer["snapshot"]);
    snapshots.filter(|one| one["damaged"] == true).filter_map(|one| one["number"].as_u64()).collect()
}

/// A cycle compares everything, sends what is damaged and what the guest wrote, and its snapshot is right.
async fn expect_repair(fleet: &Fleet, wish: &WitnessWish, snapshot: u64, before: &[u64]) -> anyhow::Result<()> {
    let job = cycle(fleet, "web", "bravo", &["--keep", "last=9"]).await?;
    let figure = |name: &str| step(&job, "copy_disks").and_then(|step| step[name].as_u64()).context("a figure");
    let (sent, resumed) = (figure("bytes_sent")?, figure("bytes_resumed")?);
    eprintln!("repaired with {} KiB; {} KiB were there", sent >> 10, resumed >> 10);
    ensure!(sent <= (64 + 1) * MIB && resumed >= (STONES_MIB - 1) * MIB, "{job:#}");
    let job = verified(fleet, &["--at", "bravo"]).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    for disk in records(fleet, "bravo", &found, snapshot, wish)? {
        ensure!(disk.mismatches == 0 && disk.acknowledged >= before[0], "of {before:?}: {disk:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_bit_that_a_medium_turns_is_found_and_the_next_cycle_repairs_it() {
    on_fleet(turned).await;
}

async fn turned(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = two_disks();
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    let unknown = fleet.try_sterna(&["replicate", "verify", "web"]).await?;
    ensure!(!unknown.status.success(), "there is nothing to verify yet");
    for _ in 0..2 {
        cycle(fleet, "web", "bravo", &["--keep", "last=9"]).await?;
        web.more_records().await?;
    }
    let job = verified(fleet, &[]).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    let read = step(&job, "read_disks").and_then(|step| step["bytes_total"].as_u64()).context("a figure")?;
    ensure!((128 * MIB..=192 * MIB).contains(&read), "of the older snapshot what differs is read: {job:#}");

    // In what both snapshots stand on.
    flip(fleet, "stones", 1)?;
    expect_damage(fleet, "stones", &[1, 2]).await?;
    let before = web.acknowledged();
    expect_repair(fleet, &wish, 3, &before).await?;

    // In what only the latest has.
    flip(fleet, "root", 3)?;
    expect_damage(fleet, "root", &[1, 2, 3]).await?;
    let before = web.acknowledged();
    expect_repair(fleet, &wish, 4, &before).await?;
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    let old = records(fleet, "bravo", &found, 3, &wish)?;
    ensure!(old[0].mismatches > 0, "what was damaged stays so: {old:?}");
    let clone = fleet.sterna(&["clone", "create", "web", "--skip-os-adaptation", "--name", "copy"]).await?;
    ensure!(clone["state"] == "completed", "{clone:#}");
    web.prove().await
}
