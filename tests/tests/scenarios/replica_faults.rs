//! Replication, clones and verifications that are disturbed: the coordinator falls out in each step, jobs are cancelled while they
//! wait, and verifications are cut. Each time nothing is left over, the replica is as it was, and the next cycle is incremental.
//!
//! Cycles that are cancelled, or whose agents fall out, are in `replica.rs`; clones likewise in
//! `replica_schedule.rs`.

#![expect(clippy::print_stderr, reason = "the cells are for whoever reads the output of a test")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use sterna_shared::bus::{ApiReply, ApiRequest};
use sterna_shared::id::JobId;
use sterna_shared::job::{MoveRequest, Policy, Schedule};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended, processes};
use sterna_tests::namespace::Link;
use sterna_tests::operator::Operator;
use sterna_tests::replicas::{
    cycle, detached, expect_nothing_more, expect_recorded, replica, snapshots, with_slow_images,
};
use sterna_tests::scenario::{Watched, eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
const SLOW_MEGABITS: u32 = 60;
/// So slow that a verification is under way for as long as is wanted.
const SLOW_READ: &str = "16MiB/s";
/// Slow enough to be under way when the coordinator goes, and fast enough to be waited for.
const STEADY_READ: &str = "64MiB/s";
/// A time that does not come while the test runs.
const LATE: &str = "2099-01-01T00:00:00Z";
/// More than there are, so that no layers are merged while they are looked at.
const KEEP: [&str; 2] = ["--keep", "last=30"];

fn wish() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        // Each alters a granule of its own: with more of them the disks would have changed altogether before a cycle comes.
        records: 10,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "qcow2", 64)],
        ..WitnessWish::small("web")
    }
}

#[tokio::test]
async fn whatever_falls_out_nothing_is_left_and_the_next_cycle_is_incremental() {
    on_fleet(faults).await;
}

async fn faults(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    cycle(fleet, "web", "bravo", &KEEP).await?;
    cycles_without_a_coordinator(fleet, &web).await?;
    clones_without_a_coordinator(fleet).await?;
    thin_clones_that_are_cancelled(fleet).await?;
    expect_recorded(fleet, "after the clones", "alpha", &KEEP).await?;
    jobs_that_never_begin(fleet).await?;
    expect_recorded(fleet, "after jobs that never began", "alpha", &KEEP).await?;
    verifications_that_are_cut(fleet).await?;
    expect_recorded(fleet, "in the end", "alpha", &KEEP).await?;
    web.prove().await
}

async fn cycles_without_a_coordinator(fleet: &mut Fleet, web: &Watched) -> anyhow::Result<()> {
    for moment in ["prepare", "copy_disks", "commit"] {
        let (at, began) = (format!("cycle, coordinator killed in {moment}"), Instant::now());
        let before = latest(fleet).await?;
        web.more_records().await?;
        fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
        let add = [&["replicate", "add", "web", "--to", "bravo", "--once", "--detach"][..], &KEEP].concat();
        let job = detached(fleet, &add).await?;
        begins(fleet, "alpha", &job, moment).await?;
        fleet.kill_coordinator()?;
        fleet.agent("bravo")?.host.unshape(Link::Data)?;
        fleet.start_coordinator().await?;
        let over = ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
        ensure!(over["state"] == "completed", "{at}: the agents need no coordinator: {over:#}");
        let newest = eventually(&format!("{at}: its snapshot is told"), WAIT, async || {
            let newest = latest(fleet).await?;
            Ok((newest > before).then_some(newest))
        })
        .await?;
        ensure!(newest == before + 1, "{at}: one cycle makes one snapshot");
        let untouched = replica(fleet, "web").await?.context("there is a replica")?;
        expect_nothing_more(fleet, &at, &untouched).await?;
        expect_recorded(fleet, &at, "alpha", &KEEP).await?;
        eprintln!("{at}: completed, {} ms", began.elapsed().as_millis());
    }
    Ok(())
}

async fn clones_without_a_coordinator(fleet: &mut Fleet) -> anyhow::Result<()> {
    let untouched = replica(fleet, "web").await?.context("there is a replica")?;
    for moment in ["clone_disks", "instantiate"] {
        let (at, began) = (format!("clone, coordinator killed in {moment}"), Instant::now());
        let create = ["clone", "create", "web", "--name", "copy", "--full", "--start", "--detach"];
        let job = detached(fleet, &create).await?;
        begins(fleet, "bravo", &job, moment).await?;
        fleet.replace_coordinator().await?;
        let over = ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
        ensure!(over["state"] == "completed", "{at}: the agent needs no coordinator: {over:#}");
        delete_clone(fleet).await.with_context(|| at.clone())?;
        expect_nothing_more(fleet, &at, &untouched).await?;
        eprintln!("{at}: completed, {} ms", began.elapsed().as_millis());
    }
    Ok(())
}

async fn thin_clones_that_are_cancelled(fleet: &mut Fleet) -> anyhow::Result<()> {
    let untouched = replica(fleet, "web").await?.context("there is a replica")?;
    // Its disks are made in a moment, which nobody would meet.
    let programs = with_slow_images(fleet, "bravo").await?;
    for moment in ["clone_disks", "instantiate"] {
        let at = format!("thin clone, cancelled in {moment}");
        let job = detached(fleet, &["clone", "create", "web", "--name", "copy", "--start", "--detach"]).await?;
        begins(fleet, "bravo", &job, moment).await?;
        // It may be too late for one that is all but made: then it is a clone, and stays.
        drop(fleet.try_sterna(&["clone", "cancel", &job]).await?);
        let over = ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
        match over["state"].as_str() {
            Some("terminated") => {}
            Some("completed") if moment == "instantiate" => {
                delete_clone(fleet).await.with_context(|| at.clone())?;
            }
            _ => bail!("{at}: {over:#}"),
        }
        expect_nothing_more(fleet, &at, &untouched).await?;
        eprintln!("{at}: {}", over["state"]);
    }
    std::fs::remove_dir_all(programs).context("everybody finds the usual one again")
}

async fn jobs_that_never_begin(fleet: &mut Fleet) -> anyhow::Result<()> {
    let untouched = replica(fleet, "web").await?.context("there is a replica")?;
    let operator = Operator::connect(fleet).await?;
    let clone = json!({ "id": "0197c0de-0000-7000-8000-0000000000c1", "name": "copy", "start": true });
    for (kind, target, clone) in
        [("replicate", Some("bravo"), Value::Null), ("clone", None, clone), ("verify", None, Value::Null)]
    {
        let at = format!("{kind}, cancelled before its time");
        let request: MoveRequest =
            serde_json::from_value(json!({ "kind": kind, "vm": "web", "target": target, "clone": clone }))?;
        let schedule = Schedule { at: Some(LATE.parse()?), ..Schedule::default() };
        let policy = Box::new(Policy { schedule: Some(schedule), ..Policy::default() });
        let job = JobId::from_uuid(uuid::Uuid::now_v7());
        let reply = operator.ask(ApiRequest::Migrate { request, dry_run: false, job, policy }).await?;
        ensure!(!matches!(reply, ApiReply::Error { .. }), "{at}: {reply:?}");
        expect_cancelled_while_it_waits(fleet, &at, &job.to_string()).await?;
        expect_nothing_more(fleet, &at, &untouched).await?;
        eprintln!("{at}: terminated");
    }
    Ok(())
}

/// It has begun nothing, and nobody has to undo anything.
async fn expect_cancelled_while_it_waits(fleet: &Fleet, at: &str, job: &str) -> anyhow::Result<()> {
    let shown = fleet.sterna(&["job", "show", job]).await?;
    ensure!(shown["state"] == "new", "{at}: it waits: {shown:#}");
    fleet.sterna(&["job", "cancel", job]).await.with_context(|| at.to_owned())?;
    let over = ended(fleet, job, WAIT).await?;
    ensure!(over["state"] == "terminated", "{at}: {over:#}");
    let steps = over["steps"].as_array().map_or(0, Vec::len);
    let begun = over["steps"].as_array().into_iter().flatten().filter(|step| step["state"] != "waiting").count();
    ensure!(begun == 0, "{at}: {begun} of {steps} steps have begun: {over:#}");
    Ok(())
}

async fn verifications_that_are_cut(fleet: &mut Fleet) -> anyhow::Result<()> {
    let untouched = replica(fleet, "web").await?.context("there is a replica")?;
    for fault in ["cancelled", "its agent killed", "the coordinator killed"] {
        let (at, began) = (format!("verification, {fault}"), Instant::now());
        let rate = if fault == "the coordinator killed" { STEADY_READ } else { SLOW_READ };
        let job = detached(fleet, &["replicate", "verify", "web", "--bandwidth", rate, "--detach"]).await?;
        begins(fleet, "bravo", &job, "read_disks").await?;
        eventually(&format!("{at}: it reads"), WAIT, async || {
            Ok((!processes(fleet, "bravo", "qemu-storage-daemon")?.is_empty()).then_some(()))
        })
        .await?;
        let wanted = match fault {
            "cancelled" => {
                // A cycle waits for it, and is cancelled while it does.
                let cycle =
                    detached(fleet, &["replicate", "add", "web", "--to", "bravo", "--once", "--detach"]).await?;
                expect_cancelled_while_it_waits(fleet, "cycle that waits for a verification", &cycle).await?;
                eprintln!("cycle that waits for a verification, cancelled: terminated");
                fleet.sterna(&["job", "cancel", &job]).await?;
                "terminated"
            }
            "its agent killed" => {
                fleet.replace_agent("bravo").await?;
                "exception"
            }
            _ => {
                fleet.replace_coordinator().await?;
                "completed"
            }
        };
        let over = ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
        ensure!(over["state"] == wanted, "{at}: {over:#}");
        expect_nothing_more(fleet, &at, &untouched).await?;
        eprintln!("{at}: {wanted}, {} ms", began.elapsed().as_millis());
    }
    // The last of them was whole: nothing was marked by what was cut.
    Ok(())
}

async fn latest(fleet: &Fleet) -> anyhow::Result<u64> {
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    Ok(snapshots(&found).last().copied().unwrap_or(0))
}

async fn delete_clone(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.sterna(&["vm", "stop", "copy", "--force"]).await?;
    fleet.sterna(&["vm", "delete", "copy", "--delete-disks", "--yes"]).await.map(drop)
}
