//! A VM whose host is gone runs where its replica is, with everything up to the snapshot; the host comes back, and does not run it.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::processes;
use sterna_tests::namespace::Link;
use sterna_tests::replicas::{cycle, with_slow_images};
use sterna_tests::scenario::{Watched, eventually, on_fleet};
use sterna_tests::witness::Witness;
use sterna_witness::protocol::DEFAULT_PORT;

const WAIT: Duration = Duration::from_secs(120);

fn wish() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        records: 20,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "raw", 64)],
        ..WitnessWish::small("web")
    }
}

#[tokio::test]
async fn a_vm_whose_host_is_gone_runs_from_its_replica_and_nowhere_else() {
    on_fleet(failover).await;
}

async fn failover(fleet: &mut Fleet) -> anyhow::Result<()> {
    let web = Watched::start(fleet, "alpha", &wish()).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    web.more_records().await?;
    let before = web.acknowledged();
    cycle(fleet, "web", "bravo", &[]).await?;
    web.more_records().await?;
    let spec = fleet.sterna(&["vm", "show", "web"]).await?["report"]["spec"].clone();
    let variables = with_uefi(fleet).await?;

    let take_over = ["cutover", "start", "web", "--from-replica", "--fenced", "alpha"];
    let sure = [&take_over[..], &["--yes"]].concat();
    let refused = fleet.try_sterna(&sure).await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("alpha is not gone"), "{said}");

    fleet.agent("alpha")?.host.cut(Link::Data)?;
    fleet.power_off("alpha")?;
    eventually("alpha is offline", WAIT, async || {
        Ok((fleet.sterna(&["host", "show", "alpha"]).await?["online"] == false).then_some(()))
    })
    .await?;
    let unsure = fleet.try_sterna(&take_over).await?;
    let said = String::from_utf8_lossy(&unsure.stderr).into_owned();
    ensure!(unsure.status.code() == Some(2) && said.contains("Not answered"), "somebody has to be sure: {said}");
    let other = fleet.try_sterna(&["cutover", "start", "web", "--from-replica", "--fenced", "bravo", "--yes"]).await?;
    ensure!(!other.status.success(), "bravo does not have it");
    cut_while_it_makes_images(fleet, &sure).await?;
    let taken = fleet.try_sterna(&sure).await?;
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    ensure!(taken.status.success(), "{said}");
    eprintln!("{}", said.trim());
    ensure!(said.contains("from snapshot 2") && said.contains("is lost"), "{said}");

    fleet.sterna(&["cutover", "start", "shell", "--from-replica", "--fenced", "alpha", "--yes"]).await?;
    ensure!(store(fleet, "bravo")?.is_some_and(|found| found.len() == variables.len()), "it has a variable store");
    ensure!(fleet.sterna(&["vm", "show", "shell"]).await?["report"]["state"] == "running", "it runs");
    fleet.sterna(&["vm", "stop", "shell", "--force"]).await?;

    // The same VM, with all that it had acknowledged before the snapshot.
    expect_whole(fleet, &web, &before).await?;
    let shown = fleet.sterna(&["vm", "show", "web"]).await?;
    let here = &shown["report"]["spec"];
    ensure!(shown["host"] == "bravo" && here["id"] == spec["id"] && here["nics"] == spec["nics"], "{shown:#}");
    // Said twice it is done once.
    let again = fleet.try_sterna(&sure).await?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(!again.status.success() && said.contains("bravo owns VM web"), "{said}");

    fleet.agent("alpha")?.host.restore(Link::Data)?;
    fleet.start_agent("alpha").await?;
    eventually("alpha lets go of the VM", WAIT, async || {
        let shown = fleet.sterna(&["host", "show", "alpha"]).await?;
        let none = shown["inventory"]["vms"].as_array().is_some_and(Vec::is_empty);
        Ok((shown["online"] == true && none).then_some(()))
    })
    .await?;
    ensure!(processes(fleet, "alpha", "qemu-system")?.is_empty(), "it runs nowhere else");
    let vms = fleet.sterna(&["vm", "list"]).await?;
    let vms = vms.as_array().context("a list")?;
    let all_here = vms.iter().all(|vm| vm["host"] == "bravo" && vm["report"]["owned"] == true);
    ensure!(vms.len() == 2 && all_here, "{vms:#?}");
    ensure!(!fleet.agent("alpha")?.files("fast").is_empty(), "its images there are kept");
    expect_whole(fleet, &web, &before).await?;
    // From where it is now it is replicated to where it was.
    cycle(fleet, "web", "alpha", &[]).await?;
    expect_whole(fleet, &web, &before).await
}

/// A VM with UEFI firmware, replicated too; the variables that it begins with.
async fn with_uefi(fleet: &Fleet) -> anyhow::Result<Vec<u8>> {
    let text = format!(
        "name = \"shell\"\nid = \"{}\"\nmemory = \"160 MiB\"\nfirmware = \"uefi\"\n\
         [[disk]]\nname = \"root\"\npool = \"fast\"\nsize = \"16 MiB\"\n",
        uuid::Uuid::new_v4()
    );
    fleet.define("alpha", "shell", &text).await?;
    cycle(fleet, "shell", "bravo", &[]).await?;
    store(fleet, "alpha")?.context("a variable store")
}

/// The one variable store of a host.
fn store(fleet: &Fleet, host: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let agent = fleet.agent(host)?;
    let found =
        agent.files("fast").into_iter().find(|path| path.extension().is_some_and(|extension| extension == "fd"));
    Ok(found.map(|path| std::fs::read(agent.pool("fast").join(path))).transpose()?)
}

/// The agent that takes the VM over falls out in the middle: nothing is left that is in the way of the next try.
async fn cut_while_it_makes_images(fleet: &mut Fleet, take_over: &[&str]) -> anyhow::Result<()> {
    let images = |fleet: &Fleet| {
        let files = fleet.agent("bravo")?.files("fast");
        anyhow::Ok(files.iter().filter(|path| path.ends_with("root.qcow2")).count())
    };
    let programs = with_slow_images(fleet, "bravo").await?;
    let mut asked = fleet.sterna_command(take_over).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begun = eventually("an image is made", WAIT, async || Ok((images(fleet)? > 0).then_some(()))).await;
    asked.kill()?;
    asked.wait()?;
    begun?;
    fleet.kill_agent("bravo")?;
    std::fs::remove_dir_all(programs)?;
    fleet.start_agent("bravo").await?;
    eventually("what it had made is gone", WAIT, async || Ok((images(fleet)? == 0).then_some(()))).await
}

/// The guest answers, writes on, and its disks hold what it had acknowledged.
async fn expect_whole(fleet: &Fleet, web: &Watched, before: &[u64]) -> anyhow::Result<()> {
    fleet.wait_for_witness("web", web.address).await?;
    let mut witness = Witness::connect(&fleet.client, web.address, DEFAULT_PORT).await?;
    for (disk, number) in before.iter().enumerate() {
        let checked = witness.check(disk, *number).await?;
        ensure!(checked.mismatches == 0 && checked.checked > 0, "disk {disk} up to {number}: {checked:?}");
    }
    Watched::watch(fleet, web.address).await.map(drop)
}
