//! Moves that leave a half behind: memory without disks, over storage that both hosts share, and disks without memory,
//! within one host.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::scenario::{Watched, eventually, expect_nothing_left, left_behind, migrate, on_fleet, vm};

/// How long a cancelled job may take to its end.
const CANCEL_WAIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn on_shared_storage_only_memory_moves() {
    on_fleet(shared).await;
}

async fn shared(fleet: &mut Fleet) -> anyhow::Result<()> {
    let disks = vec![("root", "shared", "raw", 64), ("data", "shared", "qcow2", 64)];
    let mut watched = Watched::start(fleet, "alpha", &WitnessWish { disks, ..WitnessWish::small("witness") }).await?;
    let images = shared_images(fleet)?;
    ensure!(images.len() == 2, "{images:?}");
    for (target, source) in [("bravo", "alpha"), ("alpha", "bravo")] {
        let job = migrate(fleet, &["witness", "--to", target, "--storage", "none"]).await?;
        let steps: Vec<&str> =
            job["steps"].as_array().into_iter().flatten().filter_map(|step| step["step"].as_str()).collect();
        ensure!(steps == ["prepare", "copy_memory", "switchover", "handover", "release"], "{steps:?}");
        watched.prove().await?;
        ensure!(vm(fleet, "witness").await?["host"] == target, "it is at {target}");
        ensure!(shared_images(fleet)? == images, "the images are the same files, and no others");
        expect_nothing_left(fleet, source)?;
    }
    // With the pool shared, `--storage all` has nothing to copy either.
    let job = migrate(fleet, &["witness", "--to", "bravo"]).await?;
    ensure!(
        job["steps"].as_array().is_some_and(|steps| steps.iter().all(|step| step["step"] != "copy_disks")),
        "{job:#}"
    );
    watched.prove().await?;
    // A change of format is a copy, also within one storage.
    migrate(fleet, &["witness", "--to", "alpha", "--disk", "root=shared:qcow2"]).await?;
    watched.prove().await?;
    let names: Vec<String> = shared_images(fleet)?.into_iter().map(|(name, _)| name).collect();
    ensure!(names == ["data.qcow2", "root.qcow2"], "{names:?}");
    expect_nothing_left(fleet, "bravo")
}

/// Name and inode of every file in the shared pool.
fn shared_images(fleet: &Fleet) -> anyhow::Result<Vec<(String, u64)>> {
    use std::os::unix::fs::DirEntryExt as _;
    let mut found = Vec::new();
    for vm in std::fs::read_dir(fleet.folder().join("shared"))?.flatten() {
        let files = std::fs::read_dir(vm.path())?.flatten();
        found.extend(files.map(|file| (file.file_name().to_string_lossy().into_owned(), file.ino())));
    }
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn disks_move_between_pools_under_a_guest_that_stays() {
    on_fleet(within_a_host).await;
}

async fn within_a_host(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut watched = Watched::start(fleet, "alpha", &WitnessWish::small("witness")).await?;
    // Each move goes from one set of node names to the other: the third is on the first set again.
    let moves: [(&[&str], [&str; 2]); 4] = [
        (&["--disk", "root=bulk:qcow2", "--disk", "data=fast:raw"], ["bulk/root.qcow2", "fast/data.raw"]),
        (&["--disk", "root=fast:raw", "--disk", "data=bulk:qcow2"], ["bulk/data.qcow2", "fast/root.raw"]),
        // One disk alone, and no other pool: only its format.
        (&["--disk", "root=fast:qcow2"], ["bulk/data.qcow2", "fast/root.qcow2"]),
        (&["--disk", "data=fast"], ["fast/data.qcow2", "fast/root.qcow2"]),
    ];
    for (placements, expected) in moves {
        let job = migrate(fleet, &[&["witness", "--storage-only"], placements].concat()).await?;
        ensure!(job["mode"] == "storage" && job["source"] == job["target"], "{job:#}");
        watched.prove().await?;
        expect_images(fleet, &expected)?;
        expect_no_daemon(fleet)?;
    }
    cancelled(fleet).await?;
    watched.prove().await?;
    // It still moves live, and back.
    for (target, source) in [("bravo", "alpha"), ("alpha", "bravo")] {
        migrate(fleet, &["witness", "--to", target]).await?;
        watched.prove().await?;
        expect_nothing_left(fleet, source)?;
    }
    // A VM that is stopped: the records are there when it starts anew.
    fleet.sterna(&["vm", "stop", "witness", "--force"]).await?;
    migrate(fleet, &["witness", "--storage-only", "--disk", "root=bulk:raw", "--disk", "data=bulk:raw"]).await?;
    expect_images(fleet, &["bulk/data.raw", "bulk/root.raw"])?;
    ensure!(left_behind(fleet, "alpha")?.iter().all(|entry| !entry.starts_with("qemu")), "nobody runs it");
    fleet.sterna(&["vm", "start", "witness"]).await?;
    watched.prove_after_start(fleet, "witness").await
}

/// A storage move that is given up half-way leaves the guest on its old images, and nothing of the new ones.
async fn cancelled(fleet: &Fleet) -> anyhow::Result<()> {
    let arguments =
        ["migrate", "witness", "--storage-only", "--disk", "root=bulk:raw", "--bandwidth", "64KiB/s", "--detach"];
    let job = fleet.sterna(&arguments).await?["job"].as_str().context("a job")?.to_owned();
    let state = async |wanted: &str, step: &str| {
        let shown = fleet.sterna(&["job", "show", &job]).await?;
        let running =
            shown["steps"].as_array().into_iter().flatten().any(|s| s["step"] == step && s["state"] == "running");
        Ok((shown["state"] == wanted && (running || step.is_empty())).then_some(()))
    };
    eventually("the copy of the disk", CANCEL_WAIT, || state("running", "copy_disks")).await?;
    fleet.sterna(&["job", "cancel", &job]).await?;
    eventually("the end of the cancelled job", CANCEL_WAIT, || state("terminated", "")).await?;
    expect_images(fleet, &["fast/data.qcow2", "fast/root.qcow2"])?;
    expect_no_daemon(fleet)
}

/// The images at alpha are these and no others, and the fleet says the same.
fn expect_images(fleet: &Fleet, expected: &[&str]) -> anyhow::Result<()> {
    let agent = fleet.agent("alpha")?;
    let mut found = Vec::new();
    for pool in ["bulk", "fast"] {
        let files = agent.files(pool).into_iter();
        found.extend(files.filter_map(|file| Some(format!("{pool}/{}", file.file_name()?.to_str()?))));
    }
    found.sort();
    ensure!(found == expected, "{found:?} in place of {expected:?}");
    Ok(())
}

/// The guest is all that runs: the daemon that served its new images has ended.
fn expect_no_daemon(fleet: &Fleet) -> anyhow::Result<()> {
    let agent = fleet.agent("alpha")?;
    let (processes, _) = agent.processes_and_taps()?;
    let of_qemu: Vec<&String> = processes.iter().filter(|name| name.starts_with("qemu")).collect();
    ensure!(of_qemu.len() == 1, "{of_qemu:?}");
    let entries = agent.runtime_entries();
    ensure!(entries.len() == 1 && entries[0].starts_with("vm/"), "{entries:?}");
    Ok(())
}
