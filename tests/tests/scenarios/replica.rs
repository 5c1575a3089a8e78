//! Replication on a real fleet: cycles of a guest that writes to two disks in lockstep, what they leave, and clones of it.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended, step};
use sterna_tests::namespace::Link;
use sterna_tests::replicas::{cycle, of_one_instant, replica, snapshots, strays};
use sterna_tests::scenario::{Watched, eventually, expect_nothing_left, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
const CYCLES: u64 = 20;
const CLONES_AT_ONCE: usize = 5;
/// More than there are, so that no layers are merged while they are looked at.
const KEEP: [&str; 2] = ["--keep", "last=30"];
const SLOW_MEGABITS: u32 = 60;
/// So slow that what a few records have changed is surely under way when the fault comes.
const SLOWEST_MEGABITS: u32 = 8;
const MIB: u64 = 1 << 20;

fn lockstep() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        records: 100,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "raw", 64)],
        ..WitnessWish::small("web")
    }
}

#[tokio::test]
async fn every_snapshot_is_one_instant_of_all_disks_and_boots() {
    on_fleet(instants).await;
}

async fn instants(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = lockstep();
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    let (mut sent, mut before) = (Vec::new(), Vec::new());
    for _ in 0..CYCLES {
        before.push(web.acknowledged());
        let job = cycle(fleet, "web", "bravo", &["--keep", "last=30"]).await?;
        sent.push(step(&job, "copy_disks").and_then(|step| step["bytes_sent"].as_u64()).unwrap_or(0) >> 10);
    }
    eprintln!("{CYCLES} cycles sent {sent:?} KiB");
    web.prove().await.context("the guest is left alone")?;
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    ensure!(snapshots(&found) == (1..=CYCLES).collect::<Vec<_>>(), "{found:#}");
    for (number, before) in (1..).zip(&before) {
        of_one_instant(fleet, "bravo", &found, number, &wish, before)?;
    }
    // A clone of each boots, beside the VM that it is of, and finds its disks.
    for numbers in (1..=CYCLES).collect::<Vec<_>>().chunks(CLONES_AT_ONCE) {
        for number in numbers {
            let (name, snapshot) = (format!("copy{number}"), number.to_string());
            let arguments =
                ["clone", "create", "web", "--skip-os-adaptation", "--name", &name, "--snapshot", &snapshot, "--start"];
            let clone = fleet.sterna(&arguments).await?;
            ensure!(clone["state"] == "completed", "{clone:#}");
        }
        for number in numbers {
            let name = format!("copy{number}");
            eventually(&format!("{name} writes to both disks"), WAIT, async || {
                let console = fleet.try_sterna(&["vm", "console", &name, "--no-follow"]).await?;
                let console = String::from_utf8_lossy(&console.stdout).into_owned();
                Ok((console.contains("ACK 0 ") && console.contains("ACK 1 ")).then_some(()))
            })
            .await?;
            fleet.sterna(&["vm", "stop", &name, "--force"]).await?;
            fleet.sterna(&["vm", "delete", &name, "--delete-disks", "--yes"]).await?;
        }
    }
    web.prove().await.context("nobody was disturbed by that")?;
    // Fewer are kept: layers are merged, and what is left is as it was.
    let before_last = web.acknowledged();
    cycle(fleet, "web", "bravo", &["--keep", "last=2"]).await?;
    let pruned = eventually("layers are merged", WAIT, async || {
        let found = replica(fleet, "web").await?.context("there is a replica")?;
        Ok((found["layers"].as_array().map(Vec::len) == Some(2)).then_some(found))
    })
    .await?;
    ensure!(snapshots(&pruned) == [CYCLES, CYCLES + 1], "{pruned:#}");
    of_one_instant(fleet, "bravo", &pruned, CYCLES, &wish, &before[before.len() - 1])?;
    of_one_instant(fleet, "bravo", &pruned, CYCLES + 1, &wish, &before_last)?;
    fleet.sterna(&["replicate", "remove", "web", "--yes"]).await?;
    eventually("nothing is left of the replica", WAIT, async || Ok(expect_nothing_left(fleet, "bravo").ok())).await?;
    web.prove().await
}

#[tokio::test]
async fn a_cycle_that_is_cut_leaves_the_replica_as_it_was_and_the_next_sends_changes_alone() {
    on_fleet(cuts).await;
}

async fn cuts(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = lockstep();
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    cycle(fleet, "web", "bravo", &KEEP).await?;
    let mut cut = 0;
    for fault in ["cancel", "alpha", "bravo"] {
        for moment in ["prepare", "copy_disks", "commit"] {
            let at = format!("{fault} in {moment}");
            let untouched = snapshots(&replica(fleet, "web").await?.context("there is a replica")?);
            web.more_records().await?;
            let copies = moment != "commit";
            fleet.agent("bravo")?.host.shape(Link::Data, if copies { SLOWEST_MEGABITS } else { SLOW_MEGABITS })?;
            let arguments = [&["replicate", "add", "web", "--to", "bravo", "--once", "--detach"][..], &KEEP].concat();
            let job = fleet.sterna(&arguments).await?;
            let job = job["job"].as_str().context("an id")?.to_owned();
            begins(fleet, "alpha", &job, moment).await?;
            match fault {
                "cancel" => drop(fleet.try_sterna(&["job", "cancel", &job]).await?),
                host => {
                    fleet.replace_agent(host).await?;
                }
            }
            fleet.agent("bravo")?.host.unshape(Link::Data)?;
            let over = ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
            let wanted = if fault == "cancel" { "terminated" } else { "exception" };
            // Only in its last moment it may have been over before.
            let too_late = !copies && over["state"] == "completed";
            ensure!(over["state"] == wanted || too_late, "{at}: it was to be cut: {over:#}");
            cut += usize::from(!too_late);
            eventually(&format!("{at}: both hosts are free"), WAIT, async || {
                let vm = fleet.sterna(&["vm", "show", "web"]).await?;
                Ok(vm["report"]["job"].is_null().then_some(()))
            })
            .await?;
            let left = strays(fleet, &replica(fleet, "web").await?.context("there is a replica")?)?;
            ensure!(left.is_empty(), "{at}: left over: {left:?}");
            let now = snapshots(&replica(fleet, "web").await?.context("there is a replica")?);
            let last = untouched.last().copied().unwrap_or(0);
            ensure!(now.contains(&last), "{at}: {last} was there before: {now:?}");

            let before = web.acknowledged();
            let next = cycle(fleet, "web", "bravo", &KEEP).await.with_context(|| at.clone())?;
            let carried = step(&next, "copy_disks").and_then(|step| step["bytes_total"].as_u64()).context("bytes")?;
            eprintln!("{at}: {}, the next cycle read {} KiB", over["state"], carried >> 10);
            ensure!(carried < 128 * MIB, "{at}: everything was read again: {next:#}");
            let found = replica(fleet, "web").await?.context("there is a replica")?;
            let newest = snapshots(&found).last().copied().context("a snapshot")?;
            of_one_instant(fleet, "bravo", &found, newest, &wish, &before).with_context(|| at.clone())?;
        }
    }
    eprintln!("{cut} of 9 cycles were cut");
    ensure!(cut >= 6, "only {cut} of 9 cycles were cut");
    web.prove().await
}

#[tokio::test]
async fn a_first_cycle_that_is_cut_goes_on_where_it_was() {
    on_fleet(goes_on).await;
}

async fn goes_on(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { ballast: vec![("ballast", "fast", "raw", 96)], ..lockstep() };
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    for fault in ["cancel", "alpha", "bravo"] {
        fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
        let job = fleet.sterna(&["replicate", "add", "web", "--to", "bravo", "--once", "--detach"]).await?;
        let job = job["job"].as_str().context("an id")?.to_owned();
        begins(fleet, "alpha", &job, "copy_disks").await?;
        // 4 of the 15 s that it would take, and two times what is written down is written down.
        tokio::time::sleep(Duration::from_secs(4)).await;
        match fault {
            "cancel" => drop(fleet.sterna(&["job", "cancel", &job]).await?),
            host => {
                fleet.replace_agent(host).await?;
            }
        }
        fleet.agent("bravo")?.host.unshape(Link::Data)?;
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] != "completed", "{fault}: the cycle was over before: {over:#}");
        eventually("both hosts are free", WAIT, async || {
            Ok(fleet.sterna(&["vm", "show", "web"]).await?["report"]["job"].is_null().then_some(()))
        })
        .await?;
        let begun = replica(fleet, "web").await?.context("it is known that one was begun")?;
        ensure!(snapshots(&begun).is_empty(), "{fault}: half a snapshot is to be seen: {begun:#}");
    }
    let before = web.acknowledged();
    let job = cycle(fleet, "web", "bravo", &[]).await?;
    let resumed = step(&job, "copy_disks").and_then(|step| step["bytes_resumed"].as_u64()).context("bytes")?;
    eprintln!("after three cuts {} MiB were not sent again", resumed / MIB);
    ensure!(resumed > 16 * MIB, "{job:#}");
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    of_one_instant(fleet, "bravo", &found, 1, &wish, &before)?;
    web.prove().await
}
