//! Replication on a real fleet: cycles of a guest that writes to two disks in lockstep, and clones of what they leave.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::scenario::{Watched, eventually, expect_nothing_left, on_fleet};
use sterna_tests::witness::Witness;
use sterna_witness::protocol::DEFAULT_PORT;

const WAIT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn every_snapshot_is_one_point_in_time_of_all_disks() {
    on_fleet(snapshots).await;
}

async fn snapshots(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish {
        lockstep: true,
        records: 200,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "raw", 64)],
        ..WitnessWish::small("web")
    };
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    // What is acknowledged before a cycle is asked for is in its snapshot.
    let mut before = Vec::new();
    for number in 1..=4 {
        before.push(web.acknowledged());
        let cycle = fleet.sterna(&["replicate", "add", "web", "--to", "bravo", "--once", "--keep", "last=9"]).await?;
        ensure!(cycle["state"] == "completed", "cycle {number}: {cycle:#}");
        web.more_records().await?;
    }
    let listed = replica(fleet, "web").await?;
    ensure!(listed["snapshots"].as_array().map(Vec::len) == Some(4), "{listed:#}");
    web.prove().await.context("the guest was left alone")?;
    for number in 1..=4 {
        let (name, snapshot) = (format!("copy{number}"), number.to_string());
        let arguments = ["clone", "create", "web", "--name", &name, "--snapshot", &snapshot, "--network", "same"];
        let clone = fleet.sterna(&arguments).await?;
        ensure!(clone["state"] == "completed", "{clone:#}");
    }
    fleet.sterna(&["vm", "stop", "web", "--force"]).await?;
    for (number, acknowledged) in (1..).zip(before) {
        let name = format!("copy{number}");
        fleet.sterna(&["vm", "start", &name]).await?;
        fleet.wait_for_witness(&name, web.address).await?;
        let mut witness = Witness::connect(&fleet.client, web.address, DEFAULT_PORT).await?;
        let mut found = Vec::new();
        for (disk, acknowledged) in acknowledged.iter().enumerate() {
            let surveyed = witness.survey(disk).await?;
            ensure!(surveyed.mismatches == 0 && surveyed.acknowledged >= *acknowledged, "{name}: {surveyed:?}");
            found.push(surveyed.acknowledged);
        }
        ensure!(found[0].abs_diff(found[1]) <= 1, "{name}: not one point in time: {found:?}");
        fleet.sterna(&["vm", "stop", &name, "--force"]).await?;
        fleet.sterna(&["vm", "delete", &name, "--disks"]).await?;
    }
    fleet.sterna(&["replicate", "remove", "web"]).await?;
    eventually("nothing is left of the replica", WAIT, async || Ok(expect_nothing_left(fleet, "bravo").ok())).await?;
    Ok(())
}

/// The replica of a VM, as the fleet shows it.
async fn replica(fleet: &Fleet, name: &str) -> anyhow::Result<Value> {
    fleet.sterna(&["replicate", "show", name]).await
}
