//! What replication costs: what a cycle reads and sends of a large disk of which little has changed, what the guest notices of
//! it, and how soon a clone is up.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{ended, step};
use sterna_tests::replicas::{cycle, records, replica, snapshots};
use sterna_tests::scenario::{Watched, eventually, on_fleet};
use sterna_witness::record::{RECORD_BYTES, Records};

const WAIT: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
const DISK_MIB: u64 = 4096;
/// What a bitmap tells apart.
const UNIT: u64 = 64 << 10;
/// Units that the guest changes between two cycles.
const CHANGED: u64 = 64 * MIB / UNIT;
const SEED: u64 = 7;
const CLONES: usize = 10;

#[tokio::test]
async fn a_cycle_reads_and_sends_what_has_changed_and_clones_are_up_at_once() {
    on_fleet(costs).await;
}

async fn costs(fleet: &mut Fleet) -> anyhow::Result<()> {
    let disks = vec![("root", "fast", "qcow2", DISK_MIB)];
    let wish = WitnessWish { records: 200, disks, memory_mib: 128, fill_mib: 16, ..WitnessWish::small("web") };
    let mut web = Watched::start(fleet, "alpha", &wish).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    web.witness.tell("pause-writes").await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let first = web.witness.status().await?.disks[0].acknowledged;
    web.witness.tell("resume-writes").await?;
    let last = eventually("64 MiB are changed", WAIT, async || {
        let now = web.acknowledged()[0];
        Ok((now >= first + CHANGED).then_some(now))
    });
    last.await?;
    web.witness.tell("pause-writes").await?;
    let last = web.witness.status().await?.disks[0].acknowledged;
    let changed = changed(first, last)?;
    let read_before = read_by(fleet, "alpha")?;
    let job = cycle(fleet, "web", "bravo", &[]).await?;
    let read_by_qemu = read_by(fleet, "alpha")? - read_before;
    let (read, sent) = (figure(&job, "bytes_total")?, figure(&job, "bytes_sent")?);
    eprintln!(
        "changed {} KiB of {DISK_MIB} MiB; read {} KiB, sent {} KiB; QEMU read {} KiB in all",
        changed >> 10,
        read >> 10,
        sent >> 10,
        read_by_qemu >> 10
    );
    ensure!(changed >= 60 * MIB, "the guest has changed too little for the test: {changed}");
    ensure!(sent * 10 <= changed * 11 && read * 10 <= changed * 11, "{job:#}");
    // Beside the data: what the image itself needs to be read.
    ensure!(read_by_qemu * 10 <= changed * 11 + 40 * MIB, "QEMU read {read_by_qemu}");
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    let newest = snapshots(&found).last().copied().context("a snapshot")?;
    let held = records(fleet, "bravo", &found, newest, &wish)?;
    ensure!(held[0].mismatches == 0 && held[0].acknowledged == last, "{held:?}");

    // What the guest notices: beside itself without a cycle.
    web.witness.tell("resume-writes").await?;
    web.witness.latency(0).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let without = web.witness.latency(0).await?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        cycle(fleet, "web", "bravo", &["--bandwidth", "4MiB/s"]).await?;
    }
    let with = web.witness.latency(0).await?;
    eprintln!("write latency without a cycle {without:?}, during cycles {with:?}");
    ensure!(with.count > 0 && without.count > 0, "the guest has written");
    web.prove().await?;

    clones(fleet).await
}

/// One clone, and ten at once.
async fn clones(fleet: &Fleet) -> anyhow::Result<()> {
    let began = Instant::now();
    let job = fleet
        .sterna(&["clone", "create", "web", "--skip-os-adaptation", "--name", "one", "--start", "--detach"])
        .await?;
    let job = job["job"].as_str().context("an id")?.to_owned();
    first_line(fleet, "one").await?;
    let up = began.elapsed();
    let job = ended(fleet, &job, WAIT).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    let own: f64 = job["steps"].as_array().into_iter().flatten().filter_map(|step| step["seconds"].as_f64()).sum();
    eprintln!("clone of {DISK_MIB} MiB: the guest's first line after {up:?}, of it {own:.2} s in the steps of the job");
    let began = Instant::now();
    let mut jobs = Vec::new();
    for number in 0..CLONES {
        let name = format!("ten{number}");
        let job = fleet
            .sterna(&["clone", "create", "web", "--skip-os-adaptation", "--name", &name, "--start", "--detach"])
            .await?;
        jobs.push(job["job"].as_str().context("an id")?.to_owned());
    }
    for job in &jobs {
        let job = ended(fleet, job, WAIT).await?;
        ensure!(job["state"] == "completed", "{job:#}");
    }
    let made = began.elapsed();
    for number in 0..CLONES {
        first_line(fleet, &format!("ten{number}")).await?;
    }
    eprintln!("{CLONES} at once: made after {made:?}, all first lines after {:?}", began.elapsed());
    for name in (0..CLONES).map(|number| format!("ten{number}")).chain(["one".to_owned()]) {
        fleet.sterna(&["vm", "stop", &name, "--force"]).await?;
        fleet.sterna(&["vm", "delete", &name, "--delete-disks", "--yes"]).await?;
    }
    Ok(())
}

async fn first_line(fleet: &Fleet, name: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} says something"), WAIT, async || {
        let console = fleet.try_sterna(&["vm", "console", name, "--no-follow"]).await?;
        Ok(String::from_utf8_lossy(&console.stdout).lines().any(|line| !line.trim().is_empty()).then_some(()))
    })
    .await
}

/// Bytes of the units that the records from one to another touch.
fn changed(first: u64, last: u64) -> anyhow::Result<u64> {
    let records = Records::new(SEED, 0, DISK_MIB << 20).context("a disk without room")?;
    let unit = |number| records.block_of(number) * RECORD_BYTES as u64 / UNIT;
    let units: BTreeSet<u64> = (first + 1..=last).map(unit).collect();
    Ok(units.len() as u64 * UNIT)
}

fn figure(job: &Value, name: &str) -> anyhow::Result<u64> {
    step(job, "copy_disks").and_then(|step| step[name].as_u64()).with_context(|| format!("no {name}: {job:#}"))
}

/// What the QEMU of a host has read so far, whatever for.
fn read_by(fleet: &Fleet, host: &str) -> anyhow::Result<u64> {
    let processes = sterna_tests::moves::processes(fleet, host, "qemu-system-x86")?;
    let (process, _) = processes.first().context("no QEMU runs")?;
    let io = std::fs::read_to_string(format!("/proc/{process}/io"))?;
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).context("no rchar")?;
    Ok(read.trim().parse()?)
}
