//! Secure boot: the firmware starts what is signed and nothing else, wherever the VM goes; what is made of it may be asked for without.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_tests::efi;
use sterna_tests::fleet::Fleet;
use sterna_tests::replicas::cycle;
use sterna_tests::scenario::{expect_nothing_left, expect_on_console, migrate, on_fleet, vm};

/// How long the firmware may take until it starts something, under an emulated processor.
const FIRMWARE_WAIT: Duration = Duration::from_secs(90);
/// What it says of a program that is signed by none of those whom it trusts.
const REFUSED: &str = "Access Denied";
/// The bytes of the disk.
const DISK: usize = 16 << 20;

#[tokio::test]
async fn a_uefi_guest_with_secure_boot_starts_nothing_that_is_not_signed() {
    on_fleet(secure_boot).await;
}

async fn secure_boot(fleet: &mut Fleet) -> anyhow::Result<()> {
    let id = uuid::Uuid::new_v4();
    let text = format!(
        "name = \"locked\"\nid = \"{id}\"\nmemory = \"160 MiB\"\nfirmware = \"uefi\"\nsecure_boot = true\n\
         [[disk]]\nname = \"root\"\npool = \"fast\"\nformat = \"raw\"\nsize = {DISK}\n"
    );
    fleet.define("alpha", "locked", &text).await?;
    let image = fleet.agent("alpha")?.pool("fast").join(format!("{id}/root.raw"));
    std::fs::write(image, efi::disk(DISK)?)?;
    fleet.sterna(&["vm", "start", "locked"]).await?;
    expect_on_console(fleet, "locked", REFUSED, FIRMWARE_WAIT).await?;

    migrate(fleet, &["locked", "--to", "bravo"]).await?;
    let shown = vm(fleet, "locked").await?;
    ensure!(shown["host"] == "bravo" && shown["report"]["state"] == "running", "{shown:#}");
    expect_nothing_left(fleet, "alpha")?;
    fleet.sterna(&["vm", "stop", "locked", "--force"]).await?;
    fleet.sterna(&["vm", "start", "locked"]).await?;
    expect_on_console(fleet, "locked", REFUSED, FIRMWARE_WAIT).await?;
    // It has tried all there is, and writes no more variables.
    expect_on_console(fleet, "locked", "No bootable option", FIRMWARE_WAIT).await?;

    cycle(fleet, "locked", "alpha", &[]).await?;
    let [written] = &stores(fleet, "bravo")?[..] else { anyhow::bail!("not one variable store") };
    // Nothing asked, as the VM is; the other then begins with other variables.
    expect_clone(fleet, "same", &[], &[]).await?;
    ensure!(stores(fleet, "alpha")? == [written.clone()], "the clone has other variables");
    expect_clone(fleet, "open", &["--secure-boot", "off"], &["it is without secure boot, unlike VM locked"]).await?;
    let stores = stores(fleet, "alpha")?;
    ensure!(
        stores.len() == 2 && stores.iter().filter(|store| *store == written).count() == 1,
        "the variables are the VM's"
    );
    for clone in ["same", "open"] {
        fleet.sterna(&["vm", "start", clone]).await?;
    }
    expect_on_console(fleet, "same", REFUSED, FIRMWARE_WAIT).await?;
    expect_on_console(fleet, "open", efi::SAID, FIRMWARE_WAIT).await
}

/// Makes a clone at alpha, whose job has these notices.
async fn expect_clone(fleet: &Fleet, name: &str, wish: &[&str], told: &[&str]) -> anyhow::Result<()> {
    let arguments = ["clone", "create", "locked", "--name", name, "--skip-os-adaptation"];
    let job = fleet.sterna(&[&arguments, wish].concat()).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    let notices = job["notices"].as_array().context("notices")?;
    let texts: Vec<&str> = notices.iter().filter_map(|notice| notice["text"].as_str()).collect();
    let all = texts.len() == told.len() && texts.iter().zip(told).all(|(text, told)| text.starts_with(told));
    ensure!(all, "{texts:?} and not {told:?}");
    Ok(())
}

/// The contents of all variable stores of a host.
fn stores(fleet: &Fleet, host: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let agent = fleet.agent(host)?;
    let is_store = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "fd");
    let stores = agent.files("fast").into_iter().filter(is_store);
    stores.map(|path| Ok(std::fs::read(agent.pool("fast").join(path))?)).collect()
}
