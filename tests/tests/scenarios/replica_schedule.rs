//! A replication that goes on by itself: cycle after cycle, paused, resumed, over restarts of all that takes part and beside a
//! move of the VM; a group of them, which is paused, resumed, cut over and finalized as a whole; and clones that are ended in the middle of their making.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended};
use sterna_tests::replicas::{cycle, expect_recorded, records, replica, snapshots};
use sterna_tests::scenario::{Watched, eventually, migrate, on_fleet, on_fleet_of};

const WAIT: Duration = Duration::from_secs(120);

fn wish() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "qcow2", 64)],
        ..WitnessWish::small("web")
    }
}

#[tokio::test]
async fn cycles_follow_each_other_until_they_are_paused_and_whatever_falls_out() {
    on_fleet_of(&["alpha", "bravo", "charlie"], schedule).await;
}

async fn schedule(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    fleet.sterna(&["replicate", "add", "web", "--to", "bravo", "--idle", "1s", "--keep", "last=3", "--detach"]).await?;
    let newest = newer_than(fleet, 2).await?;
    let second = fleet.try_sterna(&["replicate", "add", "web", "--to", "bravo"]).await?;
    ensure!(second.status.code() != Some(0), "one replication of a VM is enough");

    let paused = pause(fleet).await?;
    let at_pause = snapshots(&paused["replica"]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(snapshots(&view(fleet).await?["replica"]) == at_pause, "no cycle begins while it is paused");
    fleet.sterna(&["replicate", "resume", "web"]).await?;
    let newest = newer_than(fleet, newest.max(at_pause.last().copied().unwrap_or(0))).await?;

    // All that takes part falls out, one after the other.
    fleet.replace_coordinator().await?;
    let newest = newer_than(fleet, newest).await?;
    for host in ["alpha", "bravo"] {
        fleet.replace_agent(host).await?;
    }
    let newest = newer_than(fleet, newest).await?;
    web.prove().await?;

    // The VM moves, and is replicated from where it is.
    migrate(fleet, &["web", "--to", "charlie"]).await?;
    web.prove().await?;
    newer_than(fleet, newest).await?;
    let before = web.acknowledged();
    // The next but one has certainly begun after that.
    let newest = snapshots(&view(fleet).await?["replica"]).last().copied().context("a snapshot")?;
    newer_than(fleet, newest + 1).await?;
    // Layers of a replication that goes on are merged while they are looked at.
    let view = pause(fleet).await?;
    ensure!(view["source"] == "charlie", "it comes from where the VM is: {view:#}");
    let newest = snapshots(&view["replica"]).last().copied().context("a snapshot")?;
    let held = records(fleet, "bravo", &view["replica"], newest, &wish())?;
    for (disk, before) in held.iter().zip(before) {
        ensure!(disk.mismatches == 0 && disk.acknowledged >= before, "{before}: {held:?}");
    }
    fleet.sterna(&["replicate", "remove", "web", "--yes"]).await?;
    eventually("the replica is gone", WAIT, async || Ok(replica(fleet, "web").await?.is_none().then_some(()))).await?;
    expiry(fleet).await?;
    web.prove().await
}

/// A replication expires while cycles follow each other, and goes on once it is extended.
async fn expiry(fleet: &Fleet) -> anyhow::Result<()> {
    let add = ["replicate", "add", "web", "--to", "bravo", "--idle", "1s", "--expires", "20s", "--detach"];
    fleet.sterna(&add).await?;
    eventually("it has expired", WAIT, async || {
        // In this order: a cycle may begin in the last moment before.
        let expired = view(fleet).await?["state"] == "EXPIRED";
        let free = fleet.sterna(&["vm", "show", "web"]).await?["report"]["job"].is_null();
        Ok((expired && free).then_some(()))
    })
    .await?;
    // The last snapshot is told a heartbeat later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let expired = view(fleet).await?;
    let newest = snapshots(&expired["replica"]).last().copied().context("it was long enough for a snapshot")?;
    let resumed = fleet.try_sterna(&["replicate", "resume", "web"]).await?;
    ensure!(resumed.status.code() == Some(3), "it does not go on because somebody says so: {resumed:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(snapshots(&view(fleet).await?["replica"]) == snapshots(&expired["replica"]), "no cycle is made any more");
    fleet.sterna(&["replicate", "extend", "web", "--by", "1h"]).await?;
    newer_than(fleet, newest).await?;
    fleet.sterna(&["replicate", "remove", "web", "--yes"]).await.map(drop)
}

/// Pauses the replication, and gives back how it stands once no cycle runs any more.
async fn pause(fleet: &Fleet) -> anyhow::Result<Value> {
    fleet.sterna(&["replicate", "pause", "web"]).await?;
    eventually("it is paused", WAIT, async || {
        let free = fleet.sterna(&["vm", "show", "web"]).await?["report"]["job"].is_null();
        let view = view(fleet).await?;
        Ok((view["state"] == "PAUSED" && free).then_some(view))
    })
    .await
}

async fn view(fleet: &Fleet) -> anyhow::Result<Value> {
    let views = fleet.sterna(&["replicate", "list"]).await?;
    views.as_array().and_then(|views| views.first()).cloned().context("there is a replication")
}

/// Waits for a snapshot with a higher number, and gives its number back.
async fn newer_than(fleet: &Fleet, number: u64) -> anyhow::Result<u64> {
    eventually(&format!("a snapshot after {number}"), WAIT, async || {
        // A coordinator that has just started does not answer yet.
        let Ok(view) = view(fleet).await else { return Ok(None) };
        Ok(snapshots(&view["replica"]).last().copied().filter(|newest| *newest > number))
    })
    .await
}

#[tokio::test]
async fn a_group_is_paused_resumed_cut_over_and_finalized_as_a_whole() {
    on_fleet(group).await;
}

async fn group(fleet: &mut Fleet) -> anyhow::Result<()> {
    let vms = ["web", "db"];
    let mut web = Watched::start(fleet, "alpha", &WitnessWish::small(vms[0])).await?;
    let mut db = Watched::start(fleet, "alpha", &WitnessWish::small(vms[1])).await?;
    for vm in vms {
        fleet.sterna(&["replicate", "add", vm, "--to", "bravo", "--idle", "1s", "--detach"]).await?;
        fleet.sterna(&["group", "add", "shop", vm]).await?;
    }
    let first = newest_of(fleet, vms, [0, 0]).await?;
    whole(fleet, &["pause", "shop"]).await?;
    let paused = eventually("both are paused", WAIT, async || {
        let mut newest = [0; 2];
        for (vm, newest) in vms.into_iter().zip(&mut newest) {
            let free = fleet.sterna(&["vm", "show", vm]).await?["report"]["job"].is_null();
            let view = fleet.sterna(&["replicate", "show", vm]).await?[0].clone();
            if view["state"] != "PAUSED" || !free {
                return Ok(None);
            }
            *newest = snapshots(&view["replica"]).last().copied().unwrap_or(0);
        }
        Ok(Some(newest))
    })
    .await?;
    ensure!(paused.iter().zip(first).all(|(paused, first)| *paused >= first), "{first:?}, then {paused:?}");

    // Neither is cut over: each is refused, and told.
    let refused = fleet.try_sterna(&["--output", "json", "group", "finalize", "shop", "--yes"]).await?;
    let told: Value = serde_json::from_slice(&refused.stdout)?;
    let told = told.as_array().context("a list")?;
    ensure!(refused.status.code() == Some(3) && told.len() == 2, "{refused:?}");
    ensure!(told.iter().all(|of| of["error"]["refusals"][0]["code"] == "not_cut_over"), "{told:#?}");

    whole(fleet, &["resume", "shop"]).await?;
    newest_of(fleet, vms, paused).await?;
    whole(fleet, &["cutover", "shop", "--max-blackout", "60000"]).await?;
    for (vm, watched) in vms.into_iter().zip([&mut web, &mut db]) {
        ensure!(fleet.sterna(&["vm", "show", vm]).await?["host"] == "bravo", "{vm} is where its replica was");
        watched.prove().await.with_context(|| vm.to_owned())?;
    }
    whole(fleet, &["finalize", "shop", "--yes"]).await?;
    let left = fleet.sterna(&["replicate", "list"]).await?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "nothing is left: {left:#}");
    web.prove().await
}

/// Does something to a whole group, which both of its replications have to take part in.
async fn whole(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<()> {
    let told = fleet.sterna(&[&["group"], arguments].concat()).await?;
    let done = told.as_array().map(|all| all.iter().filter(|of| of["done"] == true).count());
    ensure!(done == Some(2), "{arguments:?}: {told:#}");
    Ok(())
}

/// Waits for a snapshot of each that has a higher number, and gives their numbers back.
async fn newest_of(fleet: &Fleet, vms: [&str; 2], before: [u64; 2]) -> anyhow::Result<[u64; 2]> {
    eventually(&format!("snapshots after {before:?}"), WAIT, async || {
        let mut newest = [0; 2];
        for (vm, newest) in vms.into_iter().zip(&mut newest) {
            *newest = replica(fleet, vm).await?.and_then(|found| snapshots(&found).last().copied()).unwrap_or(0);
        }
        Ok(newest.iter().zip(before).all(|(newest, before)| *newest > before).then_some(newest))
    })
    .await
}

#[tokio::test]
async fn a_clone_that_is_ended_leaves_nothing_and_the_replica_as_it_was() {
    on_fleet(ended_clones).await;
}

async fn ended_clones(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    let before = web.acknowledged();
    cycle(fleet, "web", "bravo", &[]).await?;
    let untouched = replica(fleet, "web").await?.context("there is a replica")?;
    for fault in ["cancel", "kill"] {
        for moment in ["clone_disks", "instantiate"] {
            let at = format!("{fault} in {moment}");
            // With all that a clone can have: copied disks, a seed, a guest.
            let create = ["clone", "create", "web", "--skip-os-adaptation", "--name", "copy", "--full", "--detach"];
            let job = fleet.sterna(&[&create[..], &["--seed", "always", "--start"]].concat()).await?;
            let job = job["job"].as_str().context("an id")?.to_owned();
            begins(fleet, "bravo", &job, moment).await?;
            match fault {
                "cancel" => drop(fleet.try_sterna(&["clone", "cancel", &job]).await?),
                _ => {
                    fleet.replace_agent("bravo").await?;
                }
            }
            let over = ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
            eprintln!("{at}: {}", over["state"]);
            if over["state"] == "completed" {
                fleet.sterna(&["vm", "stop", "copy", "--force"]).await?;
                fleet.sterna(&["vm", "delete", "copy", "--delete-disks", "--yes"]).await?;
            }
            eventually(&format!("{at}: nothing of the clone is left"), WAIT, async || {
                let vms = fleet.sterna(&["vm", "list"]).await?;
                let listed =
                    vms.as_array().is_some_and(|vms| vms.iter().any(|vm| vm["report"]["spec"]["name"] == "copy"));
                let files = ["fast", "bulk"].into_iter().map(|pool| anyhow::Ok(fleet.agent("bravo")?.files(pool)));
                let files = files.collect::<Result<Vec<_>, _>>()?.concat();
                let others = files.iter().any(|file| !file.display().to_string().contains(".layer-"));
                Ok((!listed && !others).then_some(()))
            })
            .await?;
            ensure!(replica(fleet, "web").await?.as_ref() == Some(&untouched), "{at}: the replica is as it was");
        }
    }
    // A clone stands on a snapshot that the retention would have given up.
    fleet.sterna(&["clone", "create", "web", "--skip-os-adaptation", "--name", "copy"]).await?;
    expect_recorded(fleet, "after clones that were ended", "alpha", &[]).await?;
    for _ in 0..3 {
        cycle(fleet, "web", "bravo", &["--keep", "last=1"]).await?;
    }
    let pinned = replica(fleet, "web").await?.context("there is a replica")?;
    ensure!(snapshots(&pinned).contains(&1), "what a clone stands on stays: {pinned:#}");
    let held = records(fleet, "bravo", &pinned, 1, &wish())?;
    ensure!(
        held.iter().zip(&before).all(|(disk, before)| disk.mismatches == 0 && disk.acknowledged >= *before),
        "{held:?}"
    );
    let refused = fleet.try_sterna(&["replicate", "remove", "web", "--yes"]).await?;
    ensure!(refused.status.code() != Some(0), "a clone stands on it");
    fleet.sterna(&["vm", "delete", "copy", "--delete-disks", "--yes"]).await?;
    fleet.sterna(&["replicate", "remove", "web", "--yes"]).await?;
    eventually("the replica is gone", WAIT, async || Ok(replica(fleet, "web").await?.is_none().then_some(()))).await?;
    web.prove().await
}
