//! What is kept of jobs that are over, once they have left the list: across retention, a kill, and a coordinator that starts
//! anew; and the jobs of a group in their order, one of which is done otherwise when it fails.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, ended};
use sterna_tests::scenario::{eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
/// A time that does not come while the test runs.
const LATE: &str = "2099-01-01T00:00:00Z";

#[tokio::test]
async fn what_a_job_came_to_is_known_after_it_has_left_the_list() {
    on_fleet(async |fleet| {
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
        let moved = guest.begin_move(fleet, "bravo", &["--delete-on-completion", "--keep", "0"]).await?;
        off_the_list(fleet, &moved).await?;
        ensure!(guest.settled_at(fleet, WAIT).await? == "bravo", "it had moved");
        let killed = guest.begin_move(fleet, "alpha", &["--at", LATE, "--keep", "0"]).await?;
        fleet.sterna(&["job", "kill", &killed, "--delete"]).await?;
        off_the_list(fleet, &killed).await?;

        for start_anew in [false, true] {
            if start_anew {
                fleet.start_coordinator().await?;
                guest.hosts_online(fleet, WAIT).await?;
                // It has read what it is told of jobs that are over, and has put them off its list again.
                off_the_list(fleet, &moved).await?;
            }
            let records = history(fleet, &["--vm", guest.name]).await?;
            let ids: Vec<&str> = records.iter().filter_map(|record| record["job"].as_str()).collect();
            ensure!(ids == [&killed, &moved], "once each, the last first: {records:#?}");
            let [killed_record, moved_record] = &records[..] else { unreachable!("two ids") };
            ensure!(killed_record["state"] == "killed" && killed_record["started_at"].is_null(), "{killed_record:#}");
            ensure!(moved_record["state"] == "completed" && moved_record["target"] == "bravo", "{moved_record:#}");
            ensure!(moved_record["policy"]["keep_seconds"] == 0, "{moved_record:#}");
            for figure in ["/blackout_us", "/figures/bytes_sent"] {
                let figure = moved_record.pointer(figure).and_then(Value::as_u64);
                ensure!(figure.is_some_and(|figure| figure > 0), "{moved_record:#}");
            }
            let one = history(fleet, &[&moved]).await?;
            ensure!(one[..] == records[1..], "by its id: {one:#?}");
        }
        for none in [&["--vm", "stranger"][..], &["--since", LATE]] {
            ensure!(history(fleet, none).await?.is_empty(), "{none:?}");
        }
        let at = killed_at(fleet, &killed).await?;
        let since = history(fleet, &["--since", &at]).await?;
        ensure!(since.len() == 1 && since[0]["job"] == killed.as_str(), "{since:#?}");
        let last = history(fleet, &["--limit", "1"]).await?;
        ensure!(last.len() == 1 && last[0]["job"] == killed.as_str(), "{last:#?}");
        let unknown = fleet.try_sterna(&["job", "history", "0197c0de-0000-7000-8000-000000000001"]).await?;
        ensure!(unknown.status.code() == Some(4), "{unknown:?}");
        guest.expect_whole().await
    })
    .await;
}

#[tokio::test]
async fn a_group_is_listed_in_its_order_and_a_failed_job_of_it_is_done_otherwise() {
    on_fleet(async |fleet| {
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
        // The first asks for a pool that is not there; what is done otherwise is in a file, as an operator would write it.
        let file = fleet.folder().join("otherwise.json");
        std::fs::write(&file, serde_json::json!({ "vm": guest.name, "target": "bravo" }).to_string())?;
        let file = file.to_str().context("a path")?;
        let group = ["--group", "night"];
        let refused = fleet.try_sterna(&["job", "group", "night"]).await?;
        ensure!(refused.status.code() == Some(4), "there is no such group yet: {refused:?}");
        let wish = ["--disk", "root=nowhere", "--otherwise", file];
        let first = guest.begin_move(fleet, "bravo", &[&group[..], &wish[..]].concat()).await?;
        let second = guest.begin_move(fleet, "alpha", &group).await?;

        let over = ended(fleet, &second, WAIT).await?;
        ensure!(over["state"] == "completed", "it began when what the first had asked for was done: {over:#}");
        let listed = fleet.sterna(&["job", "group", "night"]).await?;
        let listed: Vec<(&str, &str)> = listed
            .as_array()
            .context("a list")?
            .iter()
            .filter_map(|job| Some((job["job"].as_str()?, job["state"].as_str()?)))
            .collect();
        ensure!(listed == [(first.as_str(), "exception"), (second.as_str(), "completed")], "{listed:?}");
        let records = history(fleet, &["--vm", guest.name]).await?;
        let instead = records.iter().find(|record| record["parent"] == first.as_str()).context("a job of its own")?;
        ensure!(instead["state"] == "completed" && instead["target"] == "bravo", "{instead:#}");
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "the second moved it back");
        guest.expect_whole().await
    })
    .await;
}

async fn history(fleet: &Fleet, wish: &[&str]) -> anyhow::Result<Vec<Value>> {
    let records = fleet.sterna(&[&["job", "history"], wish].concat()).await?;
    Ok(records.as_array().context("a list")?.clone())
}

async fn killed_at(fleet: &Fleet, job: &str) -> anyhow::Result<String> {
    let records = history(fleet, &[job]).await?;
    let record = records.first().context("a record")?;
    Ok(record["finished_at"].as_str().context("a time")?.to_owned())
}

async fn off_the_list(fleet: &Fleet, job: &str) -> anyhow::Result<()> {
    eventually("the job is off the list", WAIT, async || {
        let shown = fleet.try_sterna(&["job", "show", job]).await?;
        Ok((shown.status.code() == Some(4)).then_some(()))
    })
    .await
}
