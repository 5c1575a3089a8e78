//! Snapshots of a guest whose file systems are frozen for them; of one whose agent says nothing; and no guest that is left frozen.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended};
use sterna_tests::replicas::{cycle, records, replica, snapshots};
use sterna_tests::scenario::{Watched, eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
const CYCLES: u64 = 5;
/// How soon a guest must write again whose agent's host was killed while it was frozen.
const GOES_ON: Duration = Duration::from_secs(15);
/// How long the guest takes to freeze where something is to happen meanwhile.
const FREEZE_MS: u64 = 400;
/// When it happens, after the step prepare has begun: before, while and after the guest is frozen.
const CUT_AFTER_MS: [u64; 6] = [0, 100, 200, 300, 400, 600];
/// What an agent says that finds a guest frozen.
const FOUND_FROZEN: &str = "a guest that was left frozen is thawed";

fn wish() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        guest_agent: true,
        records: 200,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "raw", 64)],
        ..WitnessWish::small("web")
    }
}

fn consistencies(replica: &Value) -> Vec<&str> {
    let layers = replica["layers"].as_array().into_iter().flatten();
    layers.filter_map(|layer| layer["snapshot"]["consistency"].as_str()).collect()
}

/// What a cycle says of why the guest was not at rest.
fn crash_consistent(job: &Value) -> Vec<&str> {
    let notices = job["notices"].as_array().into_iter().flatten();
    let said = notices.filter_map(|notice| notice["text"].as_str());
    said.filter(|text| text.contains("crash-consistent")).collect()
}

/// What the disks of a snapshot hold is whole, and goes exactly as far on each.
fn expect_at_rest(fleet: &Fleet, replica: &Value, snapshot: u64, before: &[u64]) -> anyhow::Result<()> {
    let found = records(fleet, "bravo", replica, snapshot, &wish())?;
    for (disk, before) in found.iter().zip(before) {
        ensure!(disk.mismatches == 0 && disk.acknowledged >= *before, "snapshot {snapshot}, of {before}: {disk:?}");
    }
    let numbers: Vec<u64> = found.iter().map(|disk| disk.acknowledged).collect();
    ensure!(numbers.len() == 2 && numbers[0] == numbers[1], "snapshot {snapshot}: the guest was writing: {numbers:?}");
    Ok(())
}

#[tokio::test]
async fn a_guest_with_an_agent_is_at_rest_for_a_snapshot_and_goes_on() {
    on_fleet(at_rest).await;
}

async fn at_rest(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    let mut before = Vec::new();
    for number in 1..=CYCLES {
        before.push(web.acknowledged());
        let job = cycle(fleet, "web", "bravo", &["--keep", "last=30"]).await?;
        ensure!(crash_consistent(&job).is_empty(), "cycle {number}: {job:#}");
        web.more_records().await.with_context(|| format!("after cycle {number}"))?;
    }
    web.prove().await?;
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    ensure!(snapshots(&found) == (1..=CYCLES).collect::<Vec<_>>(), "{found:#}");
    ensure!(consistencies(&found).iter().all(|found| *found == "application"), "{found:#}");
    for (number, before) in (1..).zip(&before) {
        expect_at_rest(fleet, &found, number, before)?;
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_that_says_nothing_costs_the_consistency_and_not_the_cycle() {
    on_fleet(silent).await;
}

async fn silent(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { freeze_ms: None, ..wish() };
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    for _ in 0..2 {
        let job = cycle(fleet, "web", "bravo", &[]).await?;
        let said = crash_consistent(&job);
        ensure!(said.len() == 1 && said[0].contains("did not answer"), "{job:#}");
        web.more_records().await?;
    }
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    ensure!(consistencies(&found) == ["crash", "crash"], "{found:#}");
    web.prove().await
}

#[tokio::test]
async fn no_guest_stays_frozen_whose_hosts_agent_is_killed_or_whose_cycle_is_cancelled() {
    on_fleet(cuts).await;
}

async fn cuts(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { freeze_ms: Some(FREEZE_MS), ..wish() };
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    for fault in ["kill", "cancel"] {
        for after_ms in CUT_AFTER_MS {
            let at = format!("{fault} after {after_ms} ms");
            let job = fleet.sterna(&["replicate", "add", "web", "--to", "bravo", "--once", "--detach"]).await?;
            let job = job["job"].as_str().context("an id")?.to_owned();
            begins(fleet, "alpha", &job, "prepare").await?;
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            if fault == "kill" {
                fleet.replace_agent("alpha").await?;
            } else {
                fleet.try_sterna(&["job", "cancel", &job]).await?;
            }
            let goes_on = tokio::time::timeout(GOES_ON, web.more_records()).await;
            goes_on.with_context(|| format!("{at}: the guest stands still"))??;
            ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
            eventually(&format!("{at}: both hosts are free"), WAIT, async || {
                let vm = fleet.sterna(&["vm", "show", "web"]).await?;
                Ok(vm["report"]["job"].is_null().then_some(()))
            })
            .await?;
            web.more_records().await.with_context(|| at.clone())?;
        }
    }
    let log = std::fs::read_to_string(fleet.agent("alpha")?.log())?;
    let found = log.matches(FOUND_FROZEN).count();
    eprintln!("{found} times the guest was found frozen");
    ensure!(found > 0, "nothing happened while the guest was frozen: another time must be chosen");
    // The agent in the guest is of use to the next one.
    let before = web.acknowledged();
    let job = cycle(fleet, "web", "bravo", &[]).await?;
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    ensure!(consistencies(&found).last() == Some(&"application"), "{job:#}\n{found:#}");
    let newest = snapshots(&found).last().copied().context("a snapshot")?;
    expect_at_rest(fleet, &found, newest, &before)?;
    web.prove().await
}
