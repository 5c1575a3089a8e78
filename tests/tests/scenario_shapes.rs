//! VMs of other shapes: stopped, with two processors, with UEFI and its variables.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::scenario::{Watched, expect_nothing_left, migrate, on_fleet, vm};

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
    // The firmware starts the witness' kernel, and writes its variables on the way.
    let wish = WitnessWish::small("witness");
    let address = fleet.network.guest_address();
    let text = wish.specification(address)?.replace("[kernel]", "firmware = \"uefi\"\n[kernel]");
    fleet.define("alpha", "witness", &text).await?;
    let template = variables(fleet, "alpha", "fast")?;
    fleet.sterna(&["vm", "start", "witness"]).await?;
    fleet.wait_for_witness("witness", address).await?;
    let mut watched = Watched::watch(fleet, address).await?;
    let written = variables(fleet, "alpha", "fast")?;
    ensure!(written != template, "the firmware has written its variables, or this test shows nothing");

    migrate(fleet, &["witness", "--to", "bravo"]).await?;
    watched.prove().await?;
    ensure!(variables(fleet, "bravo", "fast")? == written, "the variables at the target are those of the source");
    expect_nothing_left(fleet, "alpha")?;

    // They go where the first disk goes, also when that is another pool.
    migrate(fleet, &["witness", "--to", "alpha", "--disk", "root=bulk", "--disk", "data=fast"]).await?;
    watched.prove().await?;
    ensure!(variables(fleet, "alpha", "bulk")? == written, "the variables followed the first disk");
    expect_nothing_left(fleet, "bravo")?;

    // Within a host, under the running guest: another pool, then another format in the same one.
    migrate(fleet, &["witness", "--storage-only", "--disk", "root=fast"]).await?;
    watched.prove().await?;
    ensure!(variables(fleet, "alpha", "fast")? == written, "the variables followed the first disk");
    migrate(fleet, &["witness", "--storage-only", "--disk", "root=fast:qcow2"]).await?;
    watched.prove().await?;
    ensure!(variables(fleet, "alpha", "fast")? == written, "a change of format leaves the variables in place");

    // What QEMU has open is the file that is there: a move from here carries it, and a start finds it.
    migrate(fleet, &["witness", "--to", "bravo"]).await?;
    watched.prove().await?;
    ensure!(variables(fleet, "bravo", "fast")? == written, "the variables at the target are those of the source");
    expect_nothing_left(fleet, "alpha")?;
    fleet.sterna(&["vm", "stop", "witness", "--force"]).await?;
    migrate(fleet, &["witness", "--to", "alpha", "--disk", "root=bulk:raw"]).await?;
    ensure!(variables(fleet, "alpha", "bulk")? == written, "a stopped VM takes its variables along too");
    expect_nothing_left(fleet, "bravo")?;
    fleet.sterna(&["vm", "start", "witness"]).await?;
    watched.prove_after_start(fleet, "witness").await
}

/// The content of the one variable store in a pool.
fn variables(fleet: &Fleet, host: &str, pool: &str) -> anyhow::Result<Vec<u8>> {
    let agent = fleet.agent(host)?;
    let files = agent.files(pool);
    let stores: Vec<&PathBuf> = files.iter().filter(|file| file.extension().is_some_and(|e| e == "fd")).collect();
    ensure!(stores.len() == 1, "not one variable store in {pool} of {host}: {files:?}");
    std::fs::read(agent.pool(pool).join(stores[0])).context("the variable store")
}
