//! Replicas looked at from outside: what the layers of a snapshot hold is read by QEMU's own programs, and held against what the
//! witness has written.

use std::fs::Permissions;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use sterna_witness::protocol::DiskVerification;
use sterna_witness::record::{Block, RECORD_BYTES, Records};

use crate::fleet::{Fleet, WitnessWish};
use crate::moves::processes;
use crate::scenario::eventually;

/// How long it may take until what a job has left is gone, and told.
const LEFT_WAIT: Duration = Duration::from_secs(30);
/// The seed that every witness of a fleet has.
const SEED: u64 = 7;

/// Makes images and merges layers slowly, and does all else as the one that is found behind it.
const SLOW_QEMU_IMG: &str = r#"#!/bin/sh
case "$1" in create|commit) sleep 3 ;; esac
PATH="${PATH#*:}" exec qemu-img "$@"
"#;
/// Gives a command that begins a job and does not wait for it; the job's id.
pub async fn detached(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<String> {
    Ok(fleet.sterna(arguments).await?["job"].as_str().context("an id")?.to_owned())
}

/// Runs one cycle to its end, which must be a good one.
pub async fn cycle(fleet: &Fleet, vm: &str, target: &str, more: &[&str]) -> anyhow::Result<Value> {
    let arguments = [&["replicate", "add", vm, "--to", target, "--once"], more].concat();
    let job = fleet.sterna(&arguments).await?;
    ensure!(job["state"] == "completed", "the cycle ended as {job:#}");
    Ok(job)
}

/// From now on a host takes some seconds over every image that it makes, and over every layer that it merges, so that it can be met while it does: its agent, which is
/// started again, finds another `qemu-img`, in the directory that is given back, as long as that is there.
pub async fn with_slow_images(fleet: &mut Fleet, host: &str) -> anyhow::Result<PathBuf> {
    let programs = fleet.folder().join("slow-programs");
    std::fs::create_dir(&programs)?;
    let program = programs.join("qemu-img");
    std::fs::write(&program, SLOW_QEMU_IMG)?;
    std::fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    fleet.equip(host, &programs, "").await?;
    Ok(programs)
}

/// The replica of a VM as the fleet shows it; nothing where there is none.
pub async fn replica(fleet: &Fleet, vm: &str) -> anyhow::Result<Option<Value>> {
    let listed = fleet.sterna(&["replicate", "list"]).await?;
    let found = listed.as_array().and_then(|views| views.iter().find(|view| view["name"] == vm));
    Ok(found.map(|view| view["replica"].clone()).filter(Value::is_object))
}

/// The numbers of a replica's snapshots, the oldest first.
pub fn snapshots(replica: &Value) -> Vec<u64> {
    let layers = replica["layers"].as_array().into_iter().flatten();
    layers.filter_map(|layer| layer["snapshot"]["number"].as_u64()).collect()
}

/// Files that a cycle has left: beside the guest's images at the source `alpha`, and beside the layers of the record at the target
/// `bravo`.
pub fn strays(fleet: &Fleet, replica: &Value) -> anyhow::Result<Vec<String>> {
    let layers = replica["layers"].as_array().into_iter().flatten();
    // What a cycle that was cut has left for the next is there too, under the next number.
    let numbers = layers.map(|layer| &layer["number"]).chain([&replica["next"]]);
    let numbers: Vec<String> = numbers.map(|number| format!(".layer-{number}.")).collect();
    let mut left = Vec::new();
    for pool in ["fast", "bulk"] {
        let files = |host| anyhow::Ok(fleet.agent(host)?.files(pool));
        let named = |path: &PathBuf| path.display().to_string();
        left.extend(files("alpha")?.iter().map(named).filter(|path| path.contains(".scratch.")));
        let known = |path: &String| numbers.iter().any(|number| path.contains(number.as_str()));
        left.extend(files("bravo")?.iter().map(named).filter(|path| !known(path)));
    }
    Ok(left)
}

/// What each disk of a snapshot holds of the witness' records: how far they go, and whether they are all there.
pub fn records(
    fleet: &Fleet,
    host: &str,
    replica: &Value,
    snapshot: u64,
    wish: &WitnessWish,
) -> anyhow::Result<Vec<DiskVerification>> {
    let vm = replica["vm"]["id"].as_str().context("the replica's VM has no id")?;
    let layers = replica["layers"].as_array().context("the replica has no layers")?;
    let last = layers.iter().position(|layer| layer["snapshot"]["number"] == snapshot).context("no such snapshot")?;
    let mut found = Vec::new();
    for (index, (disk, pool, _, mib)) in (0..).zip(&wish.disks) {
        let file = |layer: &Value| -> anyhow::Result<PathBuf> {
            let number = layer["number"].as_u64().context("a layer has no number")?;
            Ok(fleet.agent(host)?.pool(pool).join(vm).join(format!("{disk}.layer-{number}.qcow2")))
        };
        let files = layers[..=last].iter().map(file).collect::<Result<Vec<_>, _>>()?;
        let raw = fleet.folder().join("snapshot.raw");
        let image = format!("json:{}", chain(&files));
        let read =
            Command::new("qemu-img").args(["convert", "-U", "-f", "qcow2", "-O", "raw", &image]).arg(&raw).output()?;
        ensure!(read.status.success(), "qemu-img: {}", String::from_utf8_lossy(&read.stderr));
        found.push(surveyed(&raw, index, mib << 20)?);
        std::fs::remove_file(raw)?;
    }
    Ok(found)
}

/// The target `bravo` has the replica of `web` as it was, and nothing else; the source `alpha` nothing but its guest. Both take jobs.
pub async fn expect_nothing_more(fleet: &Fleet, at: &str, untouched: &Value) -> anyhow::Result<()> {
    let mut seen = String::new();
    let wanted = async || {
        let vm = fleet.sterna(&["vm", "show", "web"]).await?;
        let found = replica(fleet, "web").await?.context("there is a replica")?;
        let vms = fleet.sterna(&["vm", "list"]).await?;
        let listed = vms.as_array().is_some_and(|vms| vms.iter().any(|vm| vm["report"]["spec"]["name"] != "web"));
        let mut more = strays(fleet, &found)?;
        more.extend(fleet.agent("bravo")?.runtime_entries());
        for program in ["qemu-system", "qemu-storage-daemon", "qemu-img"] {
            more.extend(processes(fleet, "bravo", program)?.into_iter().map(|(_, name)| name));
        }
        let scratch = |path: &PathBuf| path.display().to_string().contains(".scratch.");
        more.extend(
            fleet
                .agent("alpha")?
                .open_files("qemu")?
                .iter()
                .filter(|path| scratch(path))
                .map(|path| path.display().to_string()),
        );
        let same = found == *untouched;
        anyhow::Ok((
            vm["report"]["job"].is_null() && !listed && more.is_empty() && same,
            format!("{listed} {more:?} {found:#}"),
        ))
    };
    let deadline = Instant::now() + LEFT_WAIT;
    while Instant::now() < deadline {
        let (good, what) = wanted().await?;
        if good {
            return Ok(());
        }
        seen = what;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("{at}: there is more, or other: {seen}")
}

/// A cycle of `web`, which is at `source`, goes by what was recorded since the latest snapshot, however much that is.
pub async fn expect_recorded(fleet: &Fleet, at: &str, source: &str, more: &[&str]) -> anyhow::Result<()> {
    let job = cycle(fleet, "web", "bravo", more).await.with_context(|| at.to_owned())?;
    let id = job["job"].as_str().context("an id")?;
    let process = fleet.agent(source)?.process().context("the source's agent does not run")?;
    let line = process.wait_for_line(&format!("the point in time is taken job={id}"), LEFT_WAIT).await?;
    ensure!(line.contains("changes=true"), "{at}: everything was compared: {job:#}");
    told(fleet, at, &job).await
}

/// Waits until the snapshot of a cycle that is over is told.
pub async fn told(fleet: &Fleet, at: &str, job: &Value) -> anyhow::Result<()> {
    let number = job["job"].clone();
    eventually(&format!("{at}: its snapshot is told"), LEFT_WAIT, async || {
        let found = replica(fleet, "web").await?.context("there is a replica")?;
        let layers = found["layers"].as_array().into_iter().flatten();
        Ok(layers.into_iter().any(|layer| layer["snapshot"]["cycle"] == number).then_some(()))
    })
    .await
}

/// Holds a snapshot against what the guest had acknowledged `before` it: nothing of that is missing, and of a guest that writes in
/// lockstep both disks are of one instant.
pub fn of_one_instant(
    fleet: &Fleet,
    host: &str,
    replica: &Value,
    snapshot: u64,
    wish: &WitnessWish,
    before: &[u64],
) -> anyhow::Result<()> {
    let found = records(fleet, host, replica, snapshot, wish)?;
    for (disk, before) in found.iter().zip(before) {
        ensure!(disk.mismatches == 0 && disk.acknowledged >= *before, "snapshot {snapshot}, of {before}: {disk:?}");
    }
    let numbers: Vec<u64> = found.iter().map(|disk| disk.acknowledged).collect();
    ensure!(numbers[0].abs_diff(numbers[1]) <= 1, "snapshot {snapshot} is of two instants: {numbers:?}");
    Ok(())
}

fn surveyed(raw: &std::path::Path, disk: u64, bytes: u64) -> anyhow::Result<DiskVerification> {
    let file = std::fs::File::open(raw)?;
    let records = Records::new(SEED, disk, bytes).context("a disk without room")?;
    let read = |offset: u64, blocks: &mut [Block]| {
        blocks.iter_mut().zip(0..).try_for_each(|(block, place): (&mut Block, u64)| {
            file.read_exact_at(&mut block.0, offset + place * RECORD_BYTES as u64)
        })
    };
    let highest = records.highest(read)?;
    Ok(records.verify(highest, read)?)
}

fn chain(files: &[PathBuf]) -> Value {
    files.iter().fold(Value::Null, |backing, path| {
        json!({ "driver": "qcow2", "file": { "driver": "file", "filename": path }, "backing": backing })
    })
}
