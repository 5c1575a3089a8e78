//! Cycles that are put down in the middle and go on: one that is suspended and resumed under its own id, and one of a replication that
//! is paused. Nothing is sent twice, the snapshot is right, and the cycle after it is incremental.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended, state_becomes, step};
use sterna_tests::namespace::Link;
use sterna_tests::replicas::{detached, expect_recorded, of_one_instant, replica, snapshots};
use sterna_tests::scenario::{Watched, eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
const BALLAST_MIB: u64 = 96;
/// So slow that all of the disks takes a quarter of a minute, and what a few records have changed some seconds.
const SLOW_MEGABITS: u32 = 60;
const SLOWEST_MEGABITS: u32 = 4;
/// How much the lanes were given when a cycle is put down. What they hold has not crossed, and of what has some was not yet written
/// down: together that is less than the rest.
const GIVEN_MIB: u64 = 80;
const KEPT_MIB: u64 = 16;
const KEEP: [&str; 2] = ["--keep", "last=30"];

fn wish() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        records: 10,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "raw", 64)],
        ballast: vec![("stones", "fast", "raw", BALLAST_MIB)],
        ..WitnessWish::small("web")
    }
}

#[tokio::test]
async fn a_cycle_that_is_suspended_goes_on_under_its_own_id() {
    on_fleet(suspended).await;
}

async fn suspended(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    // The first cycle, which reads everything; and one that reads what was recorded, put down twice.
    for (megabits, times) in [(SLOW_MEGABITS, 1), (SLOWEST_MEGABITS, 2)] {
        let first = megabits == SLOW_MEGABITS;
        for _ in 0..2 {
            web.more_records().await?;
        }
        fleet.agent("bravo")?.host.shape(Link::Data, megabits)?;
        let add = [&["replicate", "add", "web", "--to", "bravo", "--once", "--detach"][..], &KEEP].concat();
        let job = detached(fleet, &add).await?;
        begins(fleet, "alpha", &job, "copy_disks").await?;
        if first {
            crossed(fleet, &job).await?;
        }
        for time in 0..times {
            if time > 0 {
                fleet.agent("bravo")?.host.shape(Link::Data, megabits)?;
                fleet.sterna(&["job", "resume", &job]).await?;
                copies(fleet, &job).await?;
            }
            fleet.sterna(&["job", "suspend", &job]).await?;
            state_becomes(fleet, &job, "suspended", WAIT).await.context("it was in the middle")?;
            fleet.agent("bravo")?.host.unshape(Link::Data)?;
            web.more_records().await.context("the guest writes on meanwhile")?;
        }
        let before = web.acknowledged();
        fleet.sterna(&["job", "resume", &job]).await?;
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] == "completed", "it goes on: {over:#}");
        let resumed = step(&over, "copy_disks").and_then(|step| step["bytes_resumed"].as_u64()).unwrap_or(0);
        eprintln!("suspended {times} times: {} MiB were not sent again", resumed / MIB);
        ensure!(!first || resumed >= KEPT_MIB * MIB, "what it had sent was there: {over:#}");
        newest_is_right(fleet, &before).await.context("of the cycle that was suspended")?;
        let before = web.acknowledged();
        expect_recorded(fleet, "after a cycle that was suspended", "alpha", &KEEP).await?;
        newest_is_right(fleet, &before).await.context("of the next cycle")?;
    }
    web.prove().await
}

#[tokio::test]
async fn a_pause_stops_the_cycle_under_way_and_keeps_what_it_has_sent() {
    on_fleet(paused).await;
}

async fn paused(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    fleet
        .sterna(&["replicate", "add", "web", "--to", "bravo", "--idle", "1s", "--keep", "last=30", "--detach"])
        .await?;
    let cycle = newest_cycle(fleet).await?;
    begins(fleet, "alpha", &cycle, "copy_disks").await?;
    crossed(fleet, &cycle).await?;
    fleet.sterna(&["replicate", "pause", "web"]).await?;
    let over = ended(fleet, &cycle, WAIT).await?;
    ensure!(over["state"] == "terminated", "the cycle was stopped: {over:#}");
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    let view = view(fleet).await?;
    ensure!(view["state"] == "PAUSED" && snapshots(&view["replica"]).is_empty(), "{view:#}");
    // There is nothing to be stopped any more, and it is paused all the same.
    fleet.sterna(&["replicate", "pause", "web"]).await?;

    let before = web.acknowledged();
    fleet.sterna(&["replicate", "resume", "web"]).await?;
    let next = eventually("another cycle begins", WAIT, async || {
        Ok(Some(newest_cycle(fleet).await?).filter(|next| *next != cycle))
    })
    .await?;
    let over = ended(fleet, &next, WAIT).await?;
    let resumed = step(&over, "copy_disks").and_then(|step| step["bytes_resumed"].as_u64()).unwrap_or(0);
    eprintln!("after a pause {} MiB were not sent again", resumed / MIB);
    ensure!(over["state"] == "completed" && resumed >= KEPT_MIB * MIB, "{over:#}");
    fleet.sterna(&["replicate", "pause", "web"]).await?;
    eventually("no cycle runs any more", WAIT, async || {
        Ok(fleet.sterna(&["vm", "show", "web"]).await?["report"]["job"].is_null().then_some(()))
    })
    .await?;
    newest_is_right(fleet, &before).await?;
    web.prove().await
}

/// Waits until a good part of a cycle has crossed.
async fn crossed(fleet: &Fleet, job: &str) -> anyhow::Result<()> {
    eventually("enough has crossed", WAIT, async || {
        let shown = fleet.sterna(&["job", "show", job]).await?;
        let sent = shown["progress"]["disk"]["sent"].as_u64().unwrap_or(0);
        Ok((sent >= GIVEN_MIB * MIB).then_some(()))
    })
    .await
}

/// Waits until a cycle that was resumed copies again: an earlier attempt has said that it does, too.
async fn copies(fleet: &Fleet, job: &str) -> anyhow::Result<()> {
    eventually("it copies again", WAIT, async || {
        let shown = fleet.sterna(&["job", "show", job]).await?;
        ensure!(shown["state"] != "completed", "it was over before it could be put down: {shown:#}");
        Ok(step(&shown, "copy_disks").is_some_and(|step| step["state"] == "running").then_some(()))
    })
    .await
}

async fn view(fleet: &Fleet) -> anyhow::Result<Value> {
    let views = fleet.sterna(&["replicate", "list"]).await?;
    views.as_array().and_then(|views| views.first()).cloned().context("there is a replication")
}

/// The cycle that the replication has begun last.
async fn newest_cycle(fleet: &Fleet) -> anyhow::Result<String> {
    eventually("a cycle begins", WAIT, async || {
        let view = view(fleet).await?;
        let cycles = view["cycles"].as_array().and_then(|cycles| cycles.last());
        Ok(cycles.and_then(|cycle| cycle["job"].as_str()).map(ToOwned::to_owned))
    })
    .await
}

/// The newest snapshot holds what the guest had acknowledged `before` it.
async fn newest_is_right(fleet: &Fleet, before: &[u64]) -> anyhow::Result<()> {
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    let newest = snapshots(&found).last().copied().context("a snapshot")?;
    of_one_instant(fleet, "bravo", &found, newest, &wish(), before)
}
