//! A host that is gone for good, and one that comes back from the dead: the VM is taken back and runs once, and whoever still
//! takes it for his own is told.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended, state_becomes};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
/// A cut may come too late: then the handover resolves by itself, and another is tried.
const TRIES: usize = 5;

#[tokio::test]
async fn a_vm_is_taken_back_from_a_host_that_is_gone_and_the_host_is_told_when_it_returns() {
    on_fleet(async |fleet| {
        let hosts = ["alpha", "bravo"];
        let mut guest = Guest::start(fleet, hosts, &WitnessWish::small("witness")).await?;
        for _ in 0..TRIES {
            guest.hosts_online(fleet, WAIT).await?;
            let source = guest.settled_at(fleet, WAIT).await?;
            let target = guest.other(&source);
            let job = guest.begin_move(fleet, target, &["--max-blackout", "60000"]).await?;
            begins(fleet, &source, &job, "ceding").await?;
            let agent = |host: &str| fleet.agent(host)?.process().context("the agent does not run");
            agent(&source)?.signal(Signal::STOP)?;
            fleet.agent(target)?.host.cut(Link::Data)?;
            agent(&source)?.signal(Signal::CONT)?;
            let waits = state_becomes(fleet, &job, "query_pending", Duration::from_secs(20)).await;
            if waits.is_err() {
                eprintln!("the cut came too late; once more");
                fleet.agent(target)?.host.restore(Link::Data)?;
                ended(fleet, &job, WAIT).await?;
                continue;
            }
            if guest.owners(fleet).await? > 0 {
                eprintln!("the target has taken it over before the cut; once more");
                fleet.agent(target)?.host.restore(Link::Data)?;
                ended(fleet, &job, WAIT).await?;
                continue;
            }
            fleet.power_off(target)?;
            let resolved = fleet.try_sterna(&["vm", "resolve", "witness", "--fenced", target, "--yes"]).await?;
            if !resolved.status.success() {
                // The target had said already that the VM is its own: its disks have what the guest wrote there.
                bail!("the word is not taken: {}", String::from_utf8_lossy(&resolved.stderr));
            }
            ensure!(guest.settled_at(fleet, WAIT).await? == source, "the guest is taken back");
            ensure!(guest.owners(fleet).await? == 1, "the guest runs once");
            guest.expect_whole().await?;

            fleet.agent(target)?.host.restore(Link::Data)?;
            fleet.start_agent(target).await?;
            guest.hosts_online(fleet, WAIT).await?;
            let left = guest.left_without_owner(fleet, &source, WAIT).await?;
            ensure!(left.is_empty(), "left behind: {left:?}");
            ensure!(guest.owners(fleet).await? == 1, "the guest runs once");
            guest.expect_whole().await?;
            // And it moves there again.
            guest.move_to(fleet, target).await?;
            return guest.expect_whole().await;
        }
        bail!("no cut came in time in {TRIES} tries")
    })
    .await;
}

#[tokio::test]
async fn a_host_whose_journal_is_older_than_the_fleet_lets_go_of_the_vm() {
    on_fleet(async |fleet| {
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
        guest.hosts_online(fleet, WAIT).await?;
        guest.move_to(fleet, "bravo").await?;
        guest.settled_at(fleet, WAIT).await?;
        // The journal as it is while bravo owns the VM: what a host may come back with that was taken for dead.
        fleet.stop_agent("bravo").await?;
        let state = fleet.folder().join("bravo/state/journal.redb");
        let old = std::fs::read(&state).with_context(|| state.display().to_string())?;
        fleet.start_agent("bravo").await?;
        guest.hosts_online(fleet, WAIT).await?;
        guest.move_to(fleet, "alpha").await?;
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "it has moved back");
        fleet.power_off("bravo")?;
        // Only one that was away comes back.
        eventually("bravo is offline", WAIT, || offline(fleet, "bravo")).await?;
        std::fs::write(&state, old)?;
        fleet.start_agent("bravo").await?;
        guest.hosts_online(fleet, WAIT).await?;
        eventually("bravo lets go of the VM", WAIT, || lets_go(fleet)).await?;
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "the guest is where it was");
        ensure!(guest.owners(fleet).await? == 1, "the guest runs once");
        guest.expect_whole().await?;
        guest.move_to(fleet, "bravo").await?;
        guest.expect_whole().await
    })
    .await;
}

async fn offline(fleet: &Fleet, host: &str) -> anyhow::Result<Option<()>> {
    let shown = fleet.sterna(&["host", "show", host]).await?;
    Ok((shown["online"] == false).then_some(()))
}

/// Bravo reports no VM any more.
async fn lets_go(fleet: &Fleet) -> anyhow::Result<Option<()>> {
    let shown = fleet.sterna(&["host", "show", "bravo"]).await?;
    Ok(shown["inventory"]["vms"].as_array().is_some_and(Vec::is_empty).then_some(()))
}
