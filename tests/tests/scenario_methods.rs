//! What a job can be asked for while it is under way: suspended and resumed across restarts of everything, killed, held, and
//! every cell of the table of states that a real job can come to.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_shared::job::{Hands, JobState, RequestedState, verdict};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended, state_becomes, step};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{eventually, on_fleet};

const MIB: u64 = 1 << 20;
/// What the large disk holds, none of which can be skipped.
const BALLAST_MIB: u64 = 1024;
/// So slow that half of it takes some seconds.
const SLOW_MEGABITS: u32 = 600;
/// The two disks that the witness writes to, all over.
const WITNESS_MIB: u64 = 2 * 16;
const WAIT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_suspended_job_outlives_every_restart_and_sends_nothing_twice() {
    on_fleet(async |fleet| {
        let ballast = vec![("stones", "fast", "raw", BALLAST_MIB)];
        let disks = vec![("root", "fast", "raw", 16), ("data", "bulk", "qcow2", 16)];
        let wish = WitnessWish { rewrite_mib: 1, records: 10, disks, ballast, ..WitnessWish::small("witness") };
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
        fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
        let job = guest.begin_move(fleet, "bravo", &[]).await?;
        eventually("half of the disks has crossed", WAIT, async || {
            let shown = fleet.sterna(&["job", "show", &job]).await?;
            let sent = shown["progress"]["disk"]["sent"].as_u64().unwrap_or(0);
            Ok((sent >= BALLAST_MIB / 2 * MIB).then_some(()))
        })
        .await?;
        let returned = fleet.sterna(&["job", "state", &job, "suspend", "--wait", "60"]).await?;
        ensure!(returned["returned"] == 0 && returned["state"] == "suspended", "{returned:#}");
        let suspended = fleet.sterna(&["job", "show", &job]).await?;
        let before = suspended["bytes_sent"].as_u64().context("what was sent is told")?;
        guest.goes_on().await?;
        ensure!(guest.kept_at(fleet, "bravo").await?.is_some(), "the target keeps what it has");
        let other = fleet.try_sterna(&["migrate", guest.name, "--to", "bravo", "--dry-run"]).await?;
        ensure!(!other.status.success(), "a suspended job holds its VM");

        fleet.kill_agent("alpha")?;
        fleet.kill_agent("bravo")?;
        fleet.start_coordinator().await?;
        fleet.start_agent("alpha").await?;
        fleet.start_agent("bravo").await?;
        guest.hosts_online(fleet, WAIT).await?;
        let shown = fleet.sterna(&["job", "show", &job]).await?;
        ensure!(shown["state"] == "suspended", "a suspended job stays so over restarts: {shown:#}");
        guest.goes_on().await?;

        fleet.agent("bravo")?.host.unshape(Link::Data)?;
        fleet.sterna(&["job", "resume", &job]).await?;
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] == "completed" && over["attempt"] == 1, "{over:#}");
        let again =
            step(&over, "copy_disks").and_then(|step| step["bytes_sent"].as_u64()).context("disks were copied")?;
        let whole = (BALLAST_MIB + WITNESS_MIB) * MIB;
        let twice = (before + again).saturating_sub(whole);
        eprintln!(
            "suspended after {} MiB; resumed and sent {} MiB more; of {} MiB {:.2} % were sent twice",
            before / MIB,
            again / MIB,
            whole / MIB,
            100.0 * twice as f64 / whole as f64
        );
        ensure!(twice * 20 <= whole, "{twice} bytes were sent twice");
        ensure!(guest.settled_at(fleet, WAIT).await? == "bravo", "it moved");
        ensure!(guest.left_behind(fleet, "bravo", SOON).await?.is_empty(), "nothing is left at alpha");
        guest.expect_whole().await
    })
    .await;
}

#[tokio::test]
async fn every_request_in_every_state_that_a_job_comes_to_returns_what_the_table_says() {
    on_fleet(async |fleet| {
        let wish = WitnessWish { ballast: vec![("stones", "fast", "raw", 256)], ..WitnessWish::small("witness") };
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
        let mut tried = 0;
        for requested in RequestedState::ALL {
            for state in [JobState::New, JobState::Running, JobState::Suspended, JobState::Service] {
                let job = bring_to(fleet, &guest, state).await?;
                let hands = if state == JobState::Running { Hands::Agents } else { Hands::Coordinator };
                expect(fleet, &job, state, hands, requested).await?;
                tried += 1;
                end(fleet, &guest, &job).await?;
            }
        }
        // Jobs that are over.
        for state in [JobState::Terminated, JobState::Killed, JobState::Completed] {
            if state == JobState::Completed {
                guest.move_to(fleet, "bravo").await?;
            }
            let over = fleet.sterna(&["job", "list"]).await?;
            let jobs = over.as_array().context("a list")?;
            let found = jobs.iter().find(|job| job["state"] == state.to_string()).and_then(|job| job["job"].as_str());
            let job = found.context("there are jobs that ended so")?;
            for requested in RequestedState::ALL {
                expect(fleet, job, state, Hands::Coordinator, requested).await?;
                tried += 1;
            }
        }
        eprintln!("{tried} cells of the table were tried");
        guest.expect_whole().await
    })
    .await;
}

/// A job of a state, over a slow link; a new one waits for its time.
async fn bring_to(fleet: &Fleet, guest: &Guest, state: JobState) -> anyhow::Result<String> {
    ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "it is where it was");
    fleet.agent("bravo")?.host.shape(Link::Data, 40)?;
    if state == JobState::New {
        return guest.begin_move(fleet, "bravo", &["--max-blackout", "60000", "--at", "2099-01-01T00:00:00Z"]).await;
    }
    let job = guest.begin_move(fleet, "bravo", &["--max-blackout", "60000"]).await?;
    begins(fleet, "alpha", &job, "copy_disks").await?;
    state_becomes(fleet, &job, &JobState::Running.to_string(), WAIT).await?;
    if state != JobState::Running {
        fleet.sterna(&["job", "suspend", &job]).await?;
        state_becomes(fleet, &job, &JobState::Suspended.to_string(), WAIT).await?;
    }
    if state == JobState::Service {
        fleet.sterna(&["job", "state", &job, "service"]).await?;
        state_becomes(fleet, &job, &JobState::Service.to_string(), WAIT).await?;
    }
    Ok(job)
}

/// Asks, and holds code and state against the table.
async fn expect(
    fleet: &Fleet,
    job: &str,
    state: JobState,
    hands: Hands,
    requested: RequestedState,
) -> anyhow::Result<()> {
    let wanted = verdict(state, hands, requested);
    let output = fleet.try_sterna(&["job", "state", job, &requested.to_string(), "--output", "json"]).await?;
    let returned: Value = serde_json::from_slice(&output.stdout).context("an answer in JSON")?;
    ensure!(
        returned["returned"] == wanted.code.number(),
        "{requested} of a job that is {state}: {returned:#}, not {wanted:?}"
    );
    match wanted.goal {
        // A short job may have run on.
        Some(goal) if goal != JobState::Running => state_becomes(fleet, job, &goal.to_string(), WAIT).await.map(drop),
        _ => Ok(()),
    }
}

/// Ends whatever is left of a job.
async fn end(fleet: &Fleet, guest: &Guest, job: &str) -> anyhow::Result<()> {
    let _ = fleet.try_sterna(&["job", "cancel", job]).await?;
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    let over = ended(fleet, job, WAIT).await?;
    ensure!(over["state"] != "completed", "the job was to be ended: {over:#}");
    let left = guest.left_behind(fleet, "alpha", SOON).await?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
