//! Whatever ends a guest or its QEMU between two cycles, the next cycle is right: incremental where the bitmaps have outlived it, and
//! else everything is compared. Never is something missing that nobody recorded.
//!
//! ```text
//!   a bitmap of a qcow2 image:  QEMU ends well ─▶ kept, records on       ─▶ what has changed is read
//!                               QEMU is killed ─▶ marked, or not there   ─▶ everything is read, what differs is sent
//! ```

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{processes, step};
use sterna_tests::replicas::{cycle, of_one_instant, replica, snapshots};
use sterna_tests::scenario::{Watched, eventually, on_fleet, vm};

const WAIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// What the witness writes to, all over; and what it leaves alone.
const WRITTEN_MIB: u64 = 2 * 16;
const BALLAST_MIB: u64 = 96;
/// More than there are, so that no layers are merged while they are looked at.
const KEEP: [&str; 2] = ["--keep", "last=30"];
/// In which cycles would follow each other, were there anything to be sent.
const SEVERAL_TURNS: Duration = Duration::from_secs(6);

/// What the next cycle has to go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// What has changed.
    Incremental,
    /// Digests of everything.
    Compares,
}

fn wish(format: &'static str) -> WitnessWish {
    WitnessWish {
        lockstep: true,
        records: 10,
        disks: vec![("root", "fast", "qcow2", WRITTEN_MIB / 2), ("data", "bulk", format, WRITTEN_MIB / 2)],
        ballast: vec![("stones", "fast", "qcow2", BALLAST_MIB)],
        ..WitnessWish::small("web")
    }
}

#[tokio::test]
async fn the_cycle_after_a_restart_is_right_and_incremental_where_bitmaps_are_kept() {
    on_fleet(restarts).await;
}

async fn restarts(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = wish("qcow2");
    let web = Watched::start(fleet, "alpha", &wish).await?;
    next_cycle(fleet, "the first cycle", &web, &wish, Next::Compares).await?;
    next_cycle(fleet, "nothing", &web, &wish, Next::Incremental).await?;

    let web = stopped_and_started(fleet, web).await?;
    next_cycle(fleet, "a stop", &web, &wish, Next::Incremental).await?;

    // A bitmap that was never written to the image is gone with QEMU.
    kill(fleet).await?;
    let web = started(fleet, web).await?;
    next_cycle(fleet, "QEMU killed", &web, &wish, Next::Compares).await?;
    next_cycle(fleet, "nothing", &web, &wish, Next::Incremental).await?;

    // One that was is found there, and is not to be trusted.
    let web = stopped_and_started(fleet, web).await?;
    kill(fleet).await?;
    ensure!(bitmaps_in_use(fleet)? > 0, "the image has a bitmap that was not closed");
    let web = started(fleet, web).await?;
    next_cycle(fleet, "QEMU killed after a stop", &web, &wish, Next::Compares).await?;
    next_cycle(fleet, "nothing", &web, &wish, Next::Incremental).await?;
    ensure!(bitmaps_in_use(fleet)? == 0, "what was not to be trusted is removed");

    let mut web = web;
    web.witness.power_off().await?;
    gone(fleet).await?;
    let web = started(fleet, web).await?;
    next_cycle(fleet, "a guest that switched itself off", &web, &wish, Next::Incremental).await?;

    fleet.power_off("alpha")?;
    gone(fleet).await?;
    fleet.start_agent("alpha").await?;
    let web = started(fleet, web).await?;
    let last = next_cycle(fleet, "a loss of power", &web, &wish, Next::Compares).await?;

    boots(fleet, last).await?;
    let mut web = web;
    web.prove().await
}

#[tokio::test]
async fn a_raw_disk_that_was_stopped_is_compared() {
    on_fleet(async |fleet: &mut Fleet| {
        let wish = wish("raw");
        let web = Watched::start(fleet, "alpha", &wish).await?;
        next_cycle(fleet, "the first cycle", &web, &wish, Next::Compares).await?;
        let web = stopped_and_started(fleet, web).await?;
        next_cycle(fleet, "a stop, raw", &web, &wish, Next::Compares).await?;
        next_cycle(fleet, "nothing, raw", &web, &wish, Next::Incremental).await?;
        kill(fleet).await?;
        let mut web = started(fleet, web).await?;
        next_cycle(fleet, "QEMU killed, raw", &web, &wish, Next::Compares).await?;
        web.prove().await
    })
    .await;
}

#[tokio::test]
async fn a_vm_that_is_shut_down_is_replicated_once_until_it_may_have_run() {
    on_fleet(shut_down).await;
}

async fn shut_down(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = wish("qcow2");
    let web = Watched::start(fleet, "alpha", &wish).await?;
    fleet
        .sterna(&[&["replicate", "add", "web", "--to", "bravo", "--idle", "1s", "--detach"][..], &KEEP].concat())
        .await?;
    up_to_date(fleet, false, 0).await?;
    stop(fleet).await?;
    let before = web.acknowledged();
    let last = up_to_date(fleet, true, 0).await?;
    tokio::time::sleep(SEVERAL_TURNS).await;
    ensure!(newest(fleet).await? == last, "there is nothing to be sent");
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    of_one_instant(fleet, "bravo", &found, last, &wish, &before)?;

    // An agent that starts anew cannot know.
    fleet.replace_agent("alpha").await?;
    let last = up_to_date(fleet, true, last).await?;
    tokio::time::sleep(SEVERAL_TURNS).await;
    ensure!(newest(fleet).await? == last, "there is nothing to be sent again");

    // It runs, and is stopped again, maybe between two cycles.
    let web = started(fleet, web).await?;
    web.more_records().await?;
    stop(fleet).await?;
    let before = web.acknowledged();
    let last = up_to_date(fleet, true, last).await?;
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    of_one_instant(fleet, "bravo", &found, last, &wish, &before)?;
    fleet.sterna(&["replicate", "remove", "web", "--yes"]).await.map(drop)
}

/// Waits for a snapshot after `last`, of a guest that runs or of one that is shut down, of which nothing can be missing; its number.
async fn up_to_date(fleet: &Fleet, stopped: bool, last: u64) -> anyhow::Result<u64> {
    eventually("there is a snapshot of it as it is", WAIT, async || {
        let views = fleet.sterna(&["replicate", "list"]).await?;
        let view = &views[0];
        let Some(newest) = snapshots(&view["replica"]).last().copied().filter(|newest| *newest > last) else {
            return Ok(None);
        };
        let layers = view["replica"]["layers"].as_array().and_then(|layers| layers.last());
        let of_stopped = layers.is_some_and(|layer| layer["snapshot"]["consistency"] == "stopped");
        let told = view["age_seconds"] == 0 && view["late"] == false;
        Ok((of_stopped == stopped && (!stopped || told)).then_some(newest))
    })
    .await
}

async fn newest(fleet: &Fleet) -> anyhow::Result<u64> {
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    snapshots(&found).last().copied().context("a snapshot")
}

/// Makes a cycle after something, holds its snapshot against what the guest has acknowledged, and looks at what was read and sent
/// for it; the snapshot's number.
async fn next_cycle(
    fleet: &Fleet,
    after: &str,
    web: &Watched,
    wish: &WitnessWish,
    expected: Next,
) -> anyhow::Result<u64> {
    web.more_records().await?;
    let before = web.acknowledged();
    let job = cycle(fleet, "web", "bravo", &KEEP).await.with_context(|| format!("after {after}"))?;
    let copied = step(&job, "copy_disks").context("disks were copied")?;
    let figure = |name: &str| copied[name].as_u64().unwrap_or(0);
    let (read, sent) = (figure("bytes_total"), figure("bytes_sent"));
    eprintln!("after {after}: {expected:?}, {} KiB were read and {} KiB sent", read >> 10, sent >> 10);
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    let newest = snapshots(&found).last().copied().context("a snapshot")?;
    of_one_instant(fleet, "bravo", &found, newest, wish, &before).with_context(|| format!("after {after}"))?;
    match expected {
        Next::Incremental => ensure!(read <= WRITTEN_MIB * MIB, "after {after}: more than has changed: {job:#}"),
        Next::Compares => ensure!(read >= BALLAST_MIB * MIB, "after {after}: no bitmap can say that: {job:#}"),
    }
    let there = newest > 1;
    ensure!(!there || sent <= WRITTEN_MIB * MIB, "after {after}: what was there is sent again: {job:#}");
    Ok(newest)
}

/// Stops the guest, between two cycles.
async fn stop(fleet: &Fleet) -> anyhow::Result<()> {
    eventually("the guest is stopped", WAIT, async || {
        Ok(fleet.try_sterna(&["vm", "stop", "web", "--force"]).await?.status.success().then_some(()))
    })
    .await
}

async fn stopped_and_started(fleet: &Fleet, web: Watched) -> anyhow::Result<Watched> {
    stop(fleet).await?;
    started(fleet, web).await
}

/// Starts the guest as soon as its QEMU is known to be gone; it lacks nothing that it had acknowledged.
async fn started(fleet: &Fleet, web: Watched) -> anyhow::Result<Watched> {
    eventually("the guest is started", WAIT, async || {
        if !processes(fleet, "alpha", "qemu-system")?.is_empty() {
            // An agent that comes back may have started what was to run.
            return Ok((vm(fleet, "web").await?["report"]["state"] == "running").then_some(()));
        }
        Ok(fleet.try_sterna(&["vm", "start", "web"]).await?.status.success().then_some(()))
    })
    .await?;
    let address = web.address;
    web.prove_after_start(fleet, "web").await?;
    Watched::watch(fleet, address).await
}

/// Ends the guest's QEMU as a crash would.
async fn kill(fleet: &Fleet) -> anyhow::Result<()> {
    for (pid, _) in processes(fleet, "alpha", "qemu-system")? {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has that number")?;
        kill_process(pid, Signal::KILL)?;
    }
    gone(fleet).await
}

async fn gone(fleet: &Fleet) -> anyhow::Result<()> {
    eventually("the guest's QEMU is gone", WAIT, async || {
        Ok(processes(fleet, "alpha", "qemu-system")?.is_empty().then_some(()))
    })
    .await
}

/// How many bitmaps of the guest's images in one pool were not closed.
fn bitmaps_in_use(fleet: &Fleet) -> anyhow::Result<usize> {
    let agent = fleet.agent("alpha")?;
    let mut found = 0;
    for file in agent.files("fast").iter().filter(|file| file.extension().is_some_and(|kind| kind == "qcow2")) {
        let told = Command::new("qemu-img")
            .args(["info", "-U", "-f", "qcow2", "--output=json"])
            .arg(agent.pool("fast").join(file))
            .output()?;
        ensure!(told.status.success(), "qemu-img: {}", String::from_utf8_lossy(&told.stderr));
        let image: Value = serde_json::from_slice(&told.stdout)?;
        let bitmaps = image["format-specific"]["data"]["bitmaps"].as_array().into_iter().flatten();
        let in_use = |flags: &Value| flags.as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "in-use"));
        found += bitmaps.filter(|bitmap| in_use(&bitmap["flags"])).count();
    }
    Ok(found)
}

/// A clone of a snapshot starts, and writes to its disks.
async fn boots(fleet: &Fleet, snapshot: u64) -> anyhow::Result<()> {
    let snapshot = snapshot.to_string();
    let create =
        ["clone", "create", "web", "--skip-os-adaptation", "--name", "copy", "--start", "--snapshot", &snapshot];
    let clone = fleet.sterna(&create).await?;
    ensure!(clone["state"] == "completed", "{clone:#}");
    eventually("the clone writes to both disks", WAIT, async || {
        let console = fleet.try_sterna(&["vm", "console", "copy", "--no-follow"]).await?;
        let console = String::from_utf8_lossy(&console.stdout).into_owned();
        Ok((console.contains("ACK 0 ") && console.contains("ACK 1 ")).then_some(()))
    })
    .await?;
    fleet.sterna(&["vm", "stop", "copy", "--force"]).await?;
    fleet.sterna(&["vm", "delete", "copy", "--delete-disks", "--yes"]).await.map(drop)
}
