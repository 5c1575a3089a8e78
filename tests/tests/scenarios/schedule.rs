//! Jobs whose time has not come: scheduled, recurring, in a group, tried again after a failure; what is told when they are over,
//! and what may be changed of them.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, ended, state_becomes};
use sterna_tests::scenario::{eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
/// A time that does not come while the test runs.
const LATE: &str = "2099-01-01T00:00:00Z";

#[tokio::test]
async fn a_job_begins_when_its_time_has_come_and_not_before() {
    on_fleet(async |fleet| {
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
        let job = guest.begin_move(fleet, "bravo", &["--at", LATE, "--notify", "subject:night"]).await?;
        let shown = fleet.cim_of(&job).await?;
        ensure!(shown["JobState"] == 2 && shown["ScheduledStartTime"] == "20990101000000.000000+000", "{shown:#}");
        // It holds nothing meanwhile: the VM may move, and its hosts have their slots.
        guest.move_to(fleet, "bravo").await?;
        guest.move_to(fleet, "alpha").await?;

        let past = fleet.try_sterna(&["migrate", guest.name, "--to", "bravo", "--at", "2026-01-01T00:00:00Z"]).await?;
        let text = String::from_utf8_lossy(&past.stderr).into_owned();
        ensure!(!past.status.success() && text.contains("has passed"), "a time that is past is refused: {text}");

        // What may be changed is; what may not is refused by its name, and nothing is changed then.
        for (property, told) in [
            ("Owner=me", "Owner is read-only"),
            ("Colour=red", "no property Colour"),
            ("Priority=-1", "no value of Priority"),
        ] {
            let refused = fleet.try_sterna(&["job", "edit", &job, "DeleteOnCompletion=true", property]).await?;
            let text = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(!refused.status.success() && text.contains(told), "{property}: {text}");
        }
        fleet.sterna(&["job", "edit", &job, "Priority=7", "TimeBeforeRemoval=00000000000030.000000:000"]).await?;
        let shown = fleet.cim_of(&job).await?;
        ensure!(shown["Priority"] == 7 && shown["TimeBeforeRemoval"] == "00000000000030.000000:000", "{shown:#}");
        ensure!(shown["DeleteOnCompletion"] == false, "a refused edit changes nothing: {shown:#}");

        // A coordinator that starts anew knows of it.
        fleet.start_coordinator().await?;
        guest.hosts_online(fleet, WAIT).await?;
        fleet.sterna(&["job", "edit", &job, "ScheduledStartTime=00000000000005.000000:000"]).await?;
        let shown = fleet.sterna(&["job", "show", &job]).await?;
        ensure!(shown["state"] == "new", "not before its time: {shown:#}");
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] == "completed", "{over:#}");
        ensure!(guest.settled_at(fleet, WAIT).await? == "bravo", "it moved");
        guest.expect_whole().await?;

        // It goes from the list when it was to go, and its time there is up.
        let job = guest.begin_move(fleet, "alpha", &["--delete-on-completion", "--keep", "2"]).await?;
        eventually("the job is off the list", WAIT, async || {
            let shown = fleet.try_sterna(&["job", "show", &job]).await?;
            Ok((shown.status.code() == Some(4)).then_some(()))
        })
        .await?;
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "it had moved");
        guest.expect_whole().await
    })
    .await;
}

#[tokio::test]
async fn a_recurring_job_has_runs_and_remembers_them() {
    on_fleet(async |fleet| {
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
        let job =
            guest.begin_move(fleet, "bravo", &["--start", "03:00", "--times", "3", "--zone", "Europe/Berlin"]).await?;
        let shown = fleet.cim_of(&job).await?;
        ensure!(shown["JobRunTimes"] == 3 && shown["RunStartInterval"] == "00000000030000.000000:000", "{shown:#}");
        ensure!(shown["LocalOrUtcTime"] == 1 && shown["JobState"] == 2, "{shown:#}");
        for run in 1..=3 {
            // The turn is a day away: an operator has it run now.
            fleet.sterna(&["job", "resume", &job]).await?;
            let history = eventually("the run is over", WAIT, async || {
                let history = fleet.sterna(&["job", "history", &job]).await?;
                let over = history
                    .as_array()
                    .is_some_and(|runs| runs.len() == run && runs.iter().all(|run| !run["state"].is_null()));
                Ok(over.then_some(history))
            })
            .await?;
            let last = history.as_array().and_then(|runs| runs.last()).context("there is a run")?.clone();
            let expected = if run == 2 { "exception" } else { "completed" };
            ensure!(last["state"] == expected, "run {run}: {history:#}");
            let own = fleet.sterna(&["job", "show", last["job"].as_str().context("a run is a job")?]).await?;
            ensure!(own["state"] == expected, "a run is a job of its own: {own:#}");
            // In the second run the VM is where it is to go.
            if run == 2 {
                guest.move_to(fleet, "alpha").await?;
            }
            let wanted = if run == 3 { "completed" } else { "new" };
            state_becomes(fleet, &job, wanted, WAIT).await?;
            if run == 1 {
                fleet.start_coordinator().await?;
                guest.hosts_online(fleet, WAIT).await?;
                let history = fleet.sterna(&["job", "history", &job]).await?;
                ensure!(history.as_array().map(Vec::len) == Some(1), "the history outlives a coordinator: {history:#}");
            }
        }
        guest.expect_whole().await
    })
    .await;
}

#[tokio::test]
async fn what_follows_a_failure_is_what_was_asked_for() {
    on_fleet(async |fleet| {
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
        // The hosts are reached, and the pool is not there when its time comes: the job fails without harm.
        let at = soon()?;
        let later = |more: &[&'static str]| [&["--disk", "root=nowhere", "--at", at.as_str()], more].concat();

        // Run again, twice at most, and each try is a job of its own.
        let failing = guest.begin_move(fleet, "bravo", &later(&["--reruns", "2", "--rerun-pause", "1"])).await?;
        ensure!(ended(fleet, &failing, WAIT).await?["state"] == "exception", "it cannot begin");
        let tries = eventually("it was tried again twice", WAIT, async || {
            let tries = over(fleet).await?;
            Ok((tries.len() == 3).then_some(tries))
        })
        .await?;
        ensure!(tries.iter().all(|job| job["state"] == "exception"), "{tries:#?}");
        tokio::time::sleep(Duration::from_secs(4)).await;
        ensure!(over(fleet).await?.len() == 3, "and not once more");

        // In a group, what comes after a failed job is not begun, unless the failed one says so.
        for (go_on, expected) in [(false, "terminated"), (true, "completed")] {
            let at = soon()?;
            let later = |more: &[&'static str]| [&["--disk", "root=nowhere", "--at", at.as_str()], more].concat();
            let more: &[&'static str] = if go_on { &["--group", "night", "--go-on"] } else { &["--group", "night"] };
            let first = guest.begin_move(fleet, "bravo", &later(more)).await?;
            let second = guest.begin_move(fleet, "bravo", &["--group", "night"]).await?;
            ensure!(ended(fleet, &first, WAIT).await?["state"] == "exception", "the first cannot begin");
            let over = ended(fleet, &second, WAIT).await?;
            ensure!(over["state"] == expected, "the second, {go_on}: {over:#}");
        }
        ensure!(guest.settled_at(fleet, WAIT).await? == "bravo", "only the last of them moved it");
        guest.expect_whole().await
    })
    .await;
}

/// Two seconds from now.
fn soon() -> anyhow::Result<String> {
    let output = std::process::Command::new("date").args(["-u", "-d", "+2 seconds", "+%Y-%m-%dT%H:%M:%SZ"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The jobs that are over.
async fn over(fleet: &Fleet) -> anyhow::Result<Vec<Value>> {
    let jobs = fleet.sterna(&["job", "list"]).await?;
    let jobs = jobs.as_array().context("a list")?;
    Ok(jobs.iter().filter(|job| !job["finished_at"].is_null()).cloned().collect())
}
