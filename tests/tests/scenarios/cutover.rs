//! A replicated VM is moved over to the host that has its replica, live and cold, and back: nothing that was acknowledged is lost,
//! little is sent, and whatever falls out in the middle leaves the guest at one place and the replica as it was.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended, processes, step};
use sterna_tests::namespace::Link;
use sterna_tests::replicas::{cycle, detached, expect_recorded, of_one_instant, replica, snapshots, with_slow_images};
use sterna_tests::scenario::{Watched, eventually, on_fleet, vm};

const WAIT: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
/// What the disks hold beside what the witness writes.
const BALLAST_MIB: u64 = 128;
/// For how long the guest writes at the target before it is reverted.
const AT_TARGET: Duration = Duration::from_secs(30);
/// More than a machine that is shared with other tests may take.
const BLACKOUT: [&str; 2] = ["--max-blackout", "60000"];
/// So slow that the disks take a while; and that a guest which writes to its memory gets there still.
const SLOW_MEGABITS: u32 = 60;
const SLOWER_MEGABITS: u32 = 400;
/// The steps of a live cutover; the first four are before the cede.
const MOMENTS: [&str; 7] = ["prepare", "copy_disks", "copy_memory", "switchover", "prove", "handover", "release"];

fn wish() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "qcow2", 64)],
        ballast: vec![("stones", "fast", "raw", BALLAST_MIB)],
        ..WitnessWish::small("web")
    }
}

fn sent(job: &Value, name: &str) -> u64 {
    step(job, name).and_then(|step| step["bytes_sent"].as_u64()).unwrap_or(0)
}

fn report(what: &str, job: &Value) -> anyhow::Result<()> {
    ensure!(job["state"] == "completed", "{what}: {job:#}");
    let seconds: f64 = job["steps"].as_array().into_iter().flatten().filter_map(|step| step["seconds"].as_f64()).sum();
    eprintln!(
        "{what}: {seconds:.1} s, blackout {} ms, {} KiB of disks and {} KiB of memory sent",
        job["blackout_ms"],
        (sent(job, "copy_disks") + sent(job, "switchover")) >> 10,
        sent(job, "copy_memory") >> 10,
    );
    Ok(())
}

/// What was foreseen of it, and how well.
fn foreseen(job: &Value) -> anyhow::Result<()> {
    let (forecast, score) = (&job["forecast"], &job["score"]);
    eprintln!("foreseen: {forecast}; scored: {score}");
    ensure!(forecast["duration_ms"].as_u64().is_some_and(|ms| ms > 0), "a cycle has measured something: {job:#}");
    let took = score["duration_ms"].as_i64().context("a cutover that is over has a score")?;
    let error = score["duration_error_ms"].as_i64().context("an error")?;
    ensure!(forecast["duration_ms"].as_i64() == Some(took - error), "{job:#}");
    ensure!(score["blackout_error_ms"].is_i64(), "it was live: {job:#}");
    Ok(())
}

async fn settled(fleet: &Fleet, at: &str) -> anyhow::Result<()> {
    eventually(&format!("the VM runs at {at}, in no job"), WAIT, async || {
        let vm = vm(fleet, "web").await?;
        let there = vm["host"] == at && vm["report"]["state"] == "running" && vm["report"]["job"].is_null();
        Ok(there.then_some(()))
    })
    .await
}

/// What a host says that it keeps of the VM.
async fn kept(fleet: &Fleet, host: &str) -> anyhow::Result<bool> {
    let shown = fleet.sterna(&["host", "show", host]).await?;
    let partials = shown["inventory"]["partials"].as_array().context("a host tells what it keeps")?;
    Ok(partials.iter().any(|partial| partial["name"] == "web"))
}

/// The images of the VM at a host, its replica left aside.
fn images(fleet: &Fleet, host: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for pool in ["fast", "bulk"] {
        found.extend(fleet.agent(host)?.files(pool).iter().map(|path| path.display().to_string()));
    }
    found.retain(|path| !path.contains(".layer-"));
    Ok(found)
}

async fn newest(fleet: &Fleet) -> anyhow::Result<u64> {
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    snapshots(&found).last().copied().context("a snapshot")
}

/// Waits for a cycle that has begun after now, and holds its snapshot against what the guest has acknowledged.
async fn next_cycle_is_right(fleet: &Fleet, web: &Watched) -> anyhow::Result<()> {
    let before = web.acknowledged();
    cycle(fleet, "web", "bravo", &[]).await?;
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    let last = snapshots(&found).last().copied().context("a snapshot")?;
    of_one_instant(fleet, "bravo", &found, last, &wish(), &before)
}

#[tokio::test]
async fn a_live_cutover_and_its_revert_lose_nothing_and_send_little() {
    on_fleet(live).await;
}

async fn live(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    let early = fleet.try_sterna(&["cutover", "start", "web"]).await?;
    let said = String::from_utf8_lossy(&early.stderr).into_owned();
    ensure!(!early.status.success() && said.contains("no host has a replica"), "{said}");
    cycle(fleet, "web", "bravo", &[]).await?;
    web.more_records().await?;
    let before = newest(fleet).await?;

    let job = fleet.sterna(&[&["cutover", "start", "web"][..], &BLACKOUT].concat()).await?;
    report("live cutover", &job)?;
    foreseen(&job)?;
    ensure!(job["kind"] == "cutover" && job["target"] == "bravo", "{job:#}");
    ensure!(sent(&job, "copy_disks") < BALLAST_MIB * MIB / 2, "most was there: {job:#}");
    ensure!(job["notices"].to_string().contains("made of its replica"), "it is told: {job:#}");
    web.prove().await.context("after the cutover")?;
    settled(fleet, "bravo").await?;
    ensure!(newest(fleet).await? == before, "the replica is left alone");
    ensure!(kept(fleet, "alpha").await? && images(fleet, "alpha")?.len() == 3, "the way back is kept");
    ensure!(processes(fleet, "alpha", "qemu")?.is_empty(), "nothing runs at alpha");

    // What is written meanwhile is not there.
    tokio::time::sleep(AT_TARGET).await;
    web.more_records().await?;
    let back = fleet.sterna(&[&["cutover", "revert", "web"][..], &BLACKOUT].concat()).await?;
    report("revert after 30 s of writes at the target", &back)?;
    // The witness writes all over its own disks; what it leaves alone was there.
    let resumed = step(&back, "copy_disks").and_then(|step| step["bytes_resumed"].as_u64()).unwrap_or(0);
    ensure!(resumed >= BALLAST_MIB * MIB, "what was not written to was there: {back:#}");
    web.prove().await.context("after the revert")?;
    settled(fleet, "alpha").await?;
    eventually("nothing is left at bravo but the replica", WAIT, async || {
        Ok(images(fleet, "bravo")?.is_empty().then_some(()))
    })
    .await?;
    ensure!(!kept(fleet, "alpha").await?, "the images are the VM's again");
    next_cycle_is_right(fleet, &web).await.context("the replication goes on")?;
    web.prove().await
}

#[tokio::test]
async fn cycles_stand_still_while_a_vm_is_cut_over() {
    on_fleet(standing).await;
}

async fn standing(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    fleet.sterna(&["replicate", "add", "web", "--to", "bravo", "--idle", "1s", "--detach"]).await?;
    eventually("there is a snapshot", WAIT, async || {
        let found = replica(fleet, "web").await?;
        Ok(found.filter(|found| !snapshots(found).is_empty()).map(drop))
    })
    .await?;
    // Whether a cycle is under way or not: it waits for it.
    let job = fleet.sterna(&[&["cutover", "start", "web"][..], &BLACKOUT].concat()).await?;
    report("cutover beside a schedule of cycles", &job)?;
    settled(fleet, "bravo").await?;
    let at_bravo = newest(fleet).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(newest(fleet).await? == at_bravo, "no cycle is made while it is cut over");
    web.prove().await?;
    let back = fleet.sterna(&[&["cutover", "revert", "web"][..], &BLACKOUT].concat()).await?;
    report("revert beside a schedule of cycles", &back)?;
    eventually("cycles go on", WAIT, async || Ok((newest(fleet).await? > at_bravo + 1).then_some(()))).await?;
    let early = fleet.try_sterna(&["replicate", "finalize", "web", "--yes"]).await?;
    ensure!(String::from_utf8_lossy(&early.stderr).contains("cut it over first"), "it is not cut over: {early:?}");
    finalized(fleet, &mut web).await
}

/// Cut over again, and then for good: whoever falls out meanwhile, in the end nothing is left at either host.
async fn finalized(fleet: &mut Fleet, web: &mut Watched) -> anyhow::Result<()> {
    let job = fleet.sterna(&[&["cutover", "start", "web"][..], &BLACKOUT].concat()).await?;
    report("the last cutover", &job)?;
    settled(fleet, "bravo").await?;
    ensure!(kept(fleet, "alpha").await? && images(fleet, "alpha")?.len() == 3, "the way back is kept");
    fleet.kill_agent("alpha")?;
    let job = fleet.sterna(&["replicate", "finalize", "web", "--yes", "--detach"]).await?;
    let job = job["job"].as_str().context("an id")?.to_owned();
    fleet.replace_coordinator().await?;
    eventually("it is being finalized", WAIT, async || {
        let Ok(list) = google(fleet).await else { return Ok(None) };
        Ok((list["state"] == "FINALIZING").then_some(()))
    })
    .await?;
    fleet.start_agent("alpha").await?;
    ensure!(ended(fleet, &job, WAIT).await?["state"] == "completed", "it is over");
    ensure!(google(fleet).await?["state"] == "FINALIZED", "and Google's programs are told");
    ensure!(replica(fleet, "web").await?.is_none(), "the replica is gone");
    ensure!(!kept(fleet, "alpha").await? && images(fleet, "alpha")?.is_empty(), "the way back is gone");
    let again = fleet.sterna(&["replicate", "finalize", "web", "--yes", "--detach"]).await?;
    ensure!(again["job"] == job.as_str(), "asked again, it is as it was");
    let refused = fleet.try_sterna(&["cutover", "revert", "web"]).await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(3) && said.contains("was finalized"), "{said}");
    web.prove().await
}

/// The VM's replication as Google has it.
async fn google(fleet: &Fleet) -> anyhow::Result<Value> {
    let told = fleet.try_sterna(&["replicate", "list", "--output", "google"]).await?;
    let list: Value = serde_json::from_slice(&told.stdout)?;
    list["migratingVms"].get(0).cloned().context("a replication")
}

#[tokio::test]
async fn a_cold_cutover_loses_nothing_that_was_written_until_the_guest_was_off() {
    on_fleet(cold).await;
}

async fn cold(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    web.more_records().await?;
    let job = fleet.sterna(&["cutover", "start", "web", "--cold", "--detach"]).await?;
    let job = job["job"].as_str().context("an id")?.to_owned();
    begins(fleet, "alpha", &job, "shut_down").await?;
    // The witness has no hand on its power button; it is told by another way, while it writes.
    let off = Instant::now();
    web.witness.power_off().await?;
    let over = ended(fleet, &job, WAIT).await?;
    report("cold cutover", &over)?;
    let (written, address) = (web.acknowledged(), web.address);
    web.prove_after_start(fleet, "web").await.context("after the cold cutover")?;
    eprintln!(
        "cold cutover: {written:?} records, and the guest up again {:.1} s after it was off",
        off.elapsed().as_secs_f64()
    );
    settled(fleet, "bravo").await?;
    ensure!(kept(fleet, "alpha").await?, "the way back is kept");

    let mut web = Watched::watch(fleet, address).await?;
    let back = fleet.sterna(&[&["cutover", "revert", "web"][..], &BLACKOUT].concat()).await?;
    report("revert of a cold cutover", &back)?;
    web.prove().await.context("after the revert")?;
    settled(fleet, "alpha").await?;
    next_cycle_is_right(fleet, &web).await
}

#[tokio::test]
async fn a_cutover_that_is_cancelled_leaves_guest_and_replica_as_they_were() {
    on_fleet(async |fleet: &mut Fleet| cuts(fleet, "cancel", &MOMENTS[..4]).await).await;
}

#[tokio::test]
async fn a_cutover_whose_source_falls_out_leaves_guest_and_replica_as_they_were() {
    on_fleet(async |fleet: &mut Fleet| cuts(fleet, "alpha", &MOMENTS).await).await;
}

#[tokio::test]
async fn a_cutover_whose_target_falls_out_leaves_guest_and_replica_as_they_were() {
    on_fleet(async |fleet: &mut Fleet| cuts(fleet, "bravo", &MOMENTS).await).await;
}

#[tokio::test]
async fn a_cutover_right_after_a_cycle_waits_until_the_target_has_tidied() {
    on_fleet(tidying).await;
}

async fn tidying(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    let one = ["--keep", "last=1"];
    cycle(fleet, "web", "bravo", &one).await?;
    let programs = with_slow_images(fleet, "bravo").await?;
    for cancelled in [true, false] {
        web.more_records().await?;
        // It is over, and the target merges three layers yet.
        cycle(fleet, "web", "bravo", &one).await?;
        let job = detached(fleet, &[&["cutover", "start", "web", "--detach"][..], &BLACKOUT].concat()).await?;
        let waits = format!("the plan waits until the VM's last job is over here job={job}");
        fleet.agent("bravo")?.process().context("the agent runs")?.wait_for_line(&waits, WAIT).await?;
        if cancelled {
            fleet.sterna(&["cutover", "cancel", &job]).await?;
        }
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] == if cancelled { "terminated" } else { "completed" }, "{over:#}");
        settled(fleet, if cancelled { "alpha" } else { "bravo" }).await?;
        web.prove().await?;
    }
    ensure!(processes(fleet, "alpha", "qemu")?.is_empty(), "nothing runs at alpha");
    std::fs::remove_dir_all(programs).context("everybody finds the usual one again")
}

#[tokio::test]
async fn a_cutover_needs_no_coordinator_once_it_has_begun() {
    on_fleet(async |fleet: &mut Fleet| cuts(fleet, "coordinator", &["copy_disks", "switchover", "handover"]).await)
        .await;
}

async fn cuts(fleet: &mut Fleet, fault: &str, moments: &[&str]) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let mut cut = 0;
    for moment in moments {
        let at = format!("{fault} in {moment}");
        let untouched = newest(fleet).await?;
        web.more_records().await?;
        let copies = matches!(*moment, "prepare" | "copy_disks");
        fleet.agent("bravo")?.host.shape(Link::Data, if copies { SLOW_MEGABITS } else { SLOWER_MEGABITS })?;
        let arguments = [&["cutover", "start", "web", "--detach"][..], &BLACKOUT].concat();
        let job = fleet.sterna(&arguments).await?;
        let job = job["job"].as_str().context("an id")?.to_owned();
        begins(fleet, "alpha", &job, moment).await?;
        match fault {
            "cancel" => drop(fleet.try_sterna(&["cutover", "cancel", &job]).await?),
            "coordinator" => {
                fleet.replace_coordinator().await?;
            }
            host => {
                fleet.replace_agent(host).await?;
            }
        }
        fleet.agent("bravo")?.host.unshape(Link::Data)?;
        let over = ended(fleet, &job, WAIT).await.with_context(|| at.clone())?;
        let completed = over["state"] == "completed";
        ensure!(completed || fault != "coordinator", "{at}: the agents need no coordinator: {over:#}");
        eprintln!("{at}: {}", over["state"]);
        let wanted = if fault == "cancel" { "terminated" } else { "exception" };
        // The link is so slow that it cannot have been over before.
        ensure!(!copies || fault == "coordinator" || over["state"] == wanted, "{at}: it was to be cut: {over:#}");
        cut += usize::from(over["state"] == wanted);
        settled(fleet, if completed { "bravo" } else { "alpha" }).await.with_context(|| at.clone())?;
        let elsewhere = if completed { "alpha" } else { "bravo" };
        eventually(&format!("{at}: nothing runs at {elsewhere}"), WAIT, async || {
            Ok(processes(fleet, elsewhere, "qemu")?.is_empty().then_some(()))
        })
        .await?;
        ensure!(newest(fleet).await? == untouched, "{at}: the replica is as it was");
        eventually(&format!("{at}: what is there has an owner"), WAIT, async || {
            Ok((images(fleet, elsewhere)?.is_empty() || kept(fleet, elsewhere).await?).then_some(()))
        })
        .await?;
        if fault == "cancel" && !completed {
            ensure!(images(fleet, "bravo")?.is_empty(), "{at}: a cancel keeps nothing");
        }
        web.prove().await.with_context(|| at.clone())?;
        if completed {
            let back = fleet.sterna(&[&["cutover", "revert", "web"][..], &BLACKOUT].concat()).await?;
            report(&at, &back)?;
        } else {
            expect_recorded(fleet, &at, "alpha", &[]).await?;
        }
    }
    let surely = moments.iter().filter(|moment| matches!(**moment, "prepare" | "copy_disks")).count();
    ensure!(fault == "coordinator" || cut >= surely, "{fault}: {cut} of {} were cut", moments.len());
    let job = fleet.sterna(&[&["cutover", "start", "web"][..], &BLACKOUT].concat()).await?;
    report("after all that", &job)?;
    web.prove().await
}

#[tokio::test]
async fn a_cold_cutover_that_is_cut_leaves_the_guest_running_where_it_was() {
    on_fleet(cold_cuts).await;
}

async fn cold_cuts(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    // Its power button is pressed, and it does not obey: it is the same run of the guest.
    let job = begun_cold(fleet).await?;
    fleet.sterna(&["cutover", "cancel", &job]).await?;
    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "terminated", "{over:#}");
    settled(fleet, "alpha").await?;
    web.prove().await.context("after a cancel")?;
    expect_recorded(fleet, "after a cancel", "alpha", &[]).await?;
    let untouched = newest(fleet).await?;
    // It obeys while nobody is there: it is started anew, at one place, and lacks nothing.
    for host in ["alpha", "bravo"] {
        let job = begun_cold(fleet).await?;
        fleet.kill_agent(host)?;
        web.witness.power_off().await?;
        fleet.start_agent(host).await?;
        let over = ended(fleet, &job, WAIT).await?;
        eprintln!("cold, {host} in shut_down: {}", over["state"]);
        ensure!(over["state"] == "exception", "{over:#}");
        let address = web.address;
        web.prove_after_start(fleet, "web").await.with_context(|| format!("{host} was killed"))?;
        settled(fleet, "alpha").await?;
        ensure!(processes(fleet, "bravo", "qemu")?.is_empty(), "nothing runs at bravo");
        ensure!(newest(fleet).await? == untouched, "the replica is as it was");
        web = Watched::watch(fleet, address).await?;
    }
    Ok(())
}

/// Begins a cold cutover, and waits until the guest's power button was pressed.
async fn begun_cold(fleet: &Fleet) -> anyhow::Result<String> {
    let job = fleet.sterna(&["cutover", "start", "web", "--cold", "--detach"]).await?;
    let job = job["job"].as_str().context("an id")?.to_owned();
    let pressed = format!("power button is pressed job={job}");
    fleet.agent("alpha")?.process().context("the agent runs")?.wait_for_line(&pressed, WAIT).await?;
    Ok(job)
}
