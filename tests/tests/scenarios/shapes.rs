//! VMs of other shapes: stopped, with two processors, with UEFI and its variables.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::replicas::cycle;
use sterna_tests::scenario::{Watched, eventually, expect_nothing_left, expect_on_console, migrate, on_fleet, vm};

/// How long the firmware may take to its shell, under an emulated processor.
const FIRMWARE_WAIT: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_stopped_vm_moves_and_starts_with_all_it_wrote() {
    on_fleet(cold).await;
}

async fn cold(fleet: &mut Fleet) -> anyhow::Result<()> {
    let watched = Watched::start(fleet, "alpha", &WitnessWish::small("witness")).await?;
    watched.more_records().await?;
    fleet.sterna(&["vm", "stop", "witness", "--force"]).await?;
    let job = migrate(fleet, &["witness", "--to", "bravo"]).await?;
    ensure!(job["mode"] == "cold", "{job:#}");
    let shown = vm(fleet, "witness").await?;
    ensure!(shown["host"] == "bravo" && shown["report"]["state"] == "stopped", "{shown:#}");
    expect_nothing_left(fleet, "alpha")?;
    // Once more while nobody has run it, and into other formats and pools.
    migrate(
        fleet,
        &["witness", "--to", "alpha", "--mode", "cold", "--disk", "root=bulk:qcow2", "--disk", "data=fast:raw"],
    )
    .await?;
    expect_nothing_left(fleet, "bravo")?;
    migrate(fleet, &["witness", "--to", "bravo"]).await?;
    fleet.sterna(&["vm", "start", "witness"]).await?;
    watched.prove_after_start(fleet, "witness").await
}

#[tokio::test]
async fn a_guest_with_two_processors_moves() {
    on_fleet(two_processors).await;
}

async fn two_processors(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { vcpus: 2, ..WitnessWish::small("witness") };
    let mut watched = Watched::start(fleet, "alpha", &wish).await?;
    for (target, source) in [("bravo", "alpha"), ("alpha", "bravo")] {
        migrate(fleet, &["witness", "--to", target]).await?;
        watched.prove().await?;
        expect_nothing_left(fleet, source)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_uefi_guest_takes_its_variables_along() {
    on_fleet(uefi).await;
}

async fn uefi(fleet: &mut Fleet) -> anyhow::Result<()> {
    // There is no system to boot: the firmware writes its variables and ends in its shell.
    let text = format!(
        "name = \"shell\"\nid = \"{}\"\nmemory = \"160 MiB\"\nfirmware = \"uefi\"\n\
         [[disk]]\nname = \"root\"\npool = \"fast\"\nformat = \"raw\"\nsize = \"16 MiB\"\n\
         [[disk]]\nname = \"data\"\npool = \"bulk\"\nsize = \"16 MiB\"\n",
        uuid::Uuid::new_v4()
    );
    fleet.define("alpha", "shell", &text).await?;
    let template = variables(fleet, "alpha", "fast")?;
    fleet.sterna(&["vm", "start", "shell"]).await?;
    expect_on_console(fleet, "shell", "Shell>", FIRMWARE_WAIT).await?;
    let written = variables(fleet, "alpha", "fast")?;
    ensure!(written != template, "the firmware has written its variables, or this test shows nothing");

    // Each move, where the first disk is afterwards, and the host that has nothing left then.
    let bravo: &[&str] = &["--to", "bravo"];
    let moves: [(&[&str], &str, &str, Option<&str>); 7] = [
        (bravo, "bravo", "fast", Some("alpha")),
        // They go where the first disk goes, also when that is another pool.
        (&["--to", "alpha", "--disk", "root=bulk", "--disk", "data=fast"], "alpha", "bulk", Some("bravo")),
        // Within the host, under the running guest: another pool, another format in the same one, another disk alone.
        (&["--storage-only", "--disk", "root=fast"], "alpha", "fast", None),
        (&["--storage-only", "--disk", "root=fast:qcow2"], "alpha", "fast", None),
        (&["--storage-only", "--disk", "data=bulk"], "alpha", "fast", None),
        (&["--storage-only", "--disk", "root=bulk:raw"], "alpha", "bulk", None),
        (&["--to", "bravo", "--disk", "root=fast"], "bravo", "fast", Some("alpha")),
    ];
    for (arguments, host, pool, left) in moves {
        migrate(fleet, &[&["shell"], arguments].concat()).await?;
        let shown = vm(fleet, "shell").await?;
        ensure!(shown["host"] == host && shown["report"]["state"] == "running", "{shown:#}");
        ensure!(variables(fleet, host, pool)? == written, "the variables are in {pool} of {host}, as they were");
        expect_open(fleet, host, pool)?;
        if let Some(left) = left {
            expect_nothing_left(fleet, left)?;
        }
    }
    replicated(fleet, &written).await?;
    // A stopped VM takes them along too, and finds them when it starts.
    fleet.sterna(&["vm", "stop", "shell", "--force"]).await?;
    for (arguments, host, pool) in [
        (&["--to", "alpha", "--disk", "root=bulk:qcow2"][..], "alpha", "bulk"),
        (&["--storage-only", "--disk", "root=fast"], "alpha", "fast"),
    ] {
        migrate(fleet, &[&["shell"], arguments].concat()).await?;
        ensure!(variables(fleet, host, pool)? == written, "the variables are in {pool} of {host}, as they were");
    }
    expect_nothing_left(fleet, "bravo")?;
    fleet.sterna(&["vm", "start", "shell"]).await?;
    expect_open(fleet, "alpha", "fast")
}

/// A snapshot at alpha has the variables too: what is made of it begins with them, and such that are altered are found.
async fn replicated(fleet: &Fleet, written: &[u8]) -> anyhow::Result<()> {
    let keep = ["--keep", "last=1"];
    cycle(fleet, "shell", "alpha", &keep).await?;
    expect_in_clone(fleet, written).await?;
    cycle(fleet, "shell", "alpha", &keep).await?;
    eventually("layers are merged", FIRMWARE_WAIT, async || Ok((notes(fleet)?.len() == 1).then_some(()))).await?;
    expect_in_clone(fleet, written).await.context("of a layer that was merged")?;

    let mut kept = std::fs::read(&notes(fleet)?[0])?;
    *kept.last_mut().context("an empty note")? ^= 1;
    std::fs::write(&notes(fleet)?[0], kept)?;
    let found = fleet.try_sterna(&["replicate", "verify", "shell"]).await?;
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    ensure!(!found.status.success() && said.contains("UEFI variables"), "{said}");
    cycle(fleet, "shell", "alpha", &keep).await?;
    expect_in_clone(fleet, written).await.context("after it was repaired")?;
    fleet.sterna(&["replicate", "remove", "shell", "--yes"]).await?;
    eventually("the replica is gone", FIRMWARE_WAIT, async || {
        Ok(fleet.agent("alpha")?.files("fast").is_empty().then_some(()))
    })
    .await
}

async fn expect_in_clone(fleet: &Fleet, written: &[u8]) -> anyhow::Result<()> {
    let job = fleet.sterna(&["clone", "create", "shell", "--name", "copy", "--skip-os-adaptation"]).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    ensure!(variables(fleet, "alpha", "fast")? == written, "the clone has other variables");
    fleet.sterna(&["vm", "delete", "copy", "--delete-disks", "--yes"]).await.map(drop)
}

/// The variables that replicas at alpha have, a file each.
fn notes(fleet: &Fleet) -> anyhow::Result<Vec<PathBuf>> {
    let agent = fleet.agent("alpha")?;
    let named = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "variables");
    Ok(agent.files("fast").into_iter().filter(named).map(|path| agent.pool("fast").join(path)).collect())
}

/// The running QEMU has the variable store of that pool open: what the guest writes goes where the next start reads.
fn expect_open(fleet: &Fleet, host: &str, pool: &str) -> anyhow::Result<()> {
    let agent = fleet.agent(host)?;
    let directory = agent.pool(pool);
    let files = agent.open_files("qemu")?;
    let stores: Vec<&PathBuf> = files.iter().filter(|file| file.to_string_lossy().contains("uefi-variables")).collect();
    ensure!(
        !stores.is_empty() && stores.iter().all(|file| file.starts_with(&directory) && file.exists()),
        "{stores:?}"
    );
    Ok(())
}

/// The content of the one variable store in a pool.
fn variables(fleet: &Fleet, host: &str, pool: &str) -> anyhow::Result<Vec<u8>> {
    let agent = fleet.agent(host)?;
    let files = agent.files(pool);
    let stores: Vec<&PathBuf> = files.iter().filter(|file| file.extension().is_some_and(|e| e == "fd")).collect();
    ensure!(stores.len() == 1, "not one variable store in {pool} of {host}: {files:?}");
    std::fs::read(agent.pool(pool).join(stores[0])).context("the variable store")
}
