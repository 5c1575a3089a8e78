//! What holds the fleet together is away for a while: coordinator, broker, agents. Guests and moves do not notice.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended, step};
use sterna_tests::namespace::Link;

const WAIT: Duration = Duration::from_secs(60);
const CLEAN_WAIT: Duration = Duration::from_secs(10);
/// Slow enough that a coordinator can be killed, and another take over, while memory is copied.
const SLOW_MEGABITS: u32 = 100;
/// On a link that is full the last of the memory waits behind what is on its way.
const BLACKOUT_MAX_MS: &str = "10000";

#[tokio::test]
async fn moves_and_guests_outlive_coordinator_broker_and_agents() {
    let mut fleet = Fleet::start(&["alpha", "bravo"]).await.expect("a fleet");
    let outcome = outages(&mut fleet).await;
    if outcome.is_err() {
        eprintln!("{}", fleet.logs());
    }
    outcome.expect("nobody notices");
}

async fn outages(fleet: &mut Fleet) -> anyhow::Result<()> {
    // What it dirties in a second, 64 KiB a record and disk, is well below what the link carries.
    let wish = WitnessWish { fill_mib: 64, rewrite_mib: 2, records: 10, ..WitnessWish::small("witness") };
    let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    without_coordinator(fleet, &mut guest).await.context("without coordinator")?;
    without_broker(fleet, &mut guest).await.context("without broker")?;
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    for crash in [true, false] {
        restarted_agents(fleet, &mut guest, crash).await.with_context(|| format!("agents; crash: {crash}"))?;
    }
    Ok(())
}

async fn without_coordinator(fleet: &mut Fleet, guest: &mut Guest) -> anyhow::Result<()> {
    let job = guest.begin_move(fleet, "bravo", &["--max-blackout", BLACKOUT_MAX_MS]).await?;
    begins(fleet, "alpha", &job, "copy_disks").await?;
    fleet.kill_coordinator()?;
    // The source says so itself: there is nobody else to ask.
    begins(fleet, "alpha", &job, "release").await?;
    guest.goes_on().await?;
    fleet.start_coordinator().await?;
    completed_with_all_steps(fleet, &job).await?;
    looked_over(fleet, guest, "bravo").await
}

async fn without_broker(fleet: &mut Fleet, guest: &mut Guest) -> anyhow::Result<()> {
    let job = guest.begin_move(fleet, "alpha", &["--max-blackout", BLACKOUT_MAX_MS]).await?;
    begins(fleet, "bravo", &job, "copy_disks").await?;
    fleet.nats.stop();
    begins(fleet, "bravo", &job, "release").await?;
    guest.goes_on().await?;
    fleet.nats.restart().await?;
    completed_with_all_steps(fleet, &job).await?;
    looked_over(fleet, guest, "alpha").await
}

/// Both agents end while nothing moves; the guest runs on, is found again, and can be moved.
async fn restarted_agents(fleet: &mut Fleet, guest: &mut Guest, crash: bool) -> anyhow::Result<()> {
    let at = guest.settled_at(fleet, WAIT).await?;
    for host in ["alpha", "bravo"] {
        match crash {
            true => fleet.kill_agent(host)?,
            false => fleet.stop_agent(host).await?,
        }
    }
    guest.goes_on().await?;
    for host in ["alpha", "bravo"] {
        fleet.start_agent(host).await?;
    }
    ensure!(guest.settled_at(fleet, WAIT).await? == at, "the guest is where it was");
    guest.expect_whole().await?;
    let target = guest.other(&at);
    guest.move_to(fleet, target).await?;
    looked_over(fleet, guest, target).await
}

async fn completed_with_all_steps(fleet: &Fleet, job: &str) -> anyhow::Result<()> {
    let over = ended(fleet, job, WAIT).await?;
    ensure!(over["state"] == "completed", "the job ended as {over:#}");
    for name in ["prepare", "copy_disks", "copy_memory", "switchover", "prove", "handover", "release"] {
        let step = step(&over, name).with_context(|| format!("no step {name}: {over:#}"))?;
        let timed = !step["started_at"].is_null() && !step["finished_at"].is_null();
        ensure!(step["state"] == "finished" && timed, "the step {name} is {step:#}");
    }
    Ok(())
}

async fn looked_over(fleet: &Fleet, guest: &mut Guest, at: &str) -> anyhow::Result<()> {
    ensure!(guest.settled_at(fleet, WAIT).await? == at, "the guest is elsewhere");
    let left = guest.left_behind(fleet, at, CLEAN_WAIT).await?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(guest.owners(fleet).await? == 1, "the guest executes at one place");
    guest.expect_whole().await
}
