//! Jobs of every kind as CIM has them, at each state that they come to on real guests: held against `tests/golden/cim`, times and
//! ids masked.
//!
//! After a change that is meant, `STERNA_WRITE_GOLDEN=1` writes the files anew.
#![allow(clippy::print_stderr, reason = "what differs is for whoever runs the test")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended, state_becomes};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::on_fleet;

const WAIT: Duration = Duration::from_secs(120);
/// So slow that a job can be looked at while it copies its disks.
const SLOW_MEGABITS: u32 = 100;
const WRITE: &str = "STERNA_WRITE_GOLDEN";

#[tokio::test]
async fn jobs_that_move_read_as_they_should_at_every_state() {
    on_fleet(async |fleet| {
        let guest = start(fleet).await?;
        let planned = fleet.sterna(&["plan", guest.name, "--to", "bravo", "--hold", "1h"]).await?;
        let planned = planned["job"].as_str().context("an id")?;
        look(fleet, planned, "stage", "completed").await?;
        fleet.sterna(&["plan", "drop", planned]).await?;
        let job = slow_move(fleet, &guest, &[]).await?;
        look(fleet, &job, "live_move", "running").await?;
        fast(fleet)?;
        ended(fleet, &job, WAIT).await?;
        look(fleet, &job, "live_move", "completed").await?;
        guest.move_to(fleet, "alpha").await?;

        let moved = fleet.sterna(&["migrate", guest.name, "--storage-only", "--disk", "root=bulk"]).await?;
        look(fleet, moved["job"].as_str().context("an id")?, "storage_move", "completed").await?;

        let job = slow_move(fleet, &guest, &[]).await?;
        fleet.sterna(&["job", "cancel", &job]).await?;
        fast(fleet)?;
        ended(fleet, &job, WAIT).await?;
        look(fleet, &job, "cancelled_move", "terminated").await?;
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "it stays");

        let job = slow_move(fleet, &guest, &[]).await?;
        fleet.sterna(&["job", "kill", &job]).await?;
        fast(fleet)?;
        ended(fleet, &job, WAIT).await?;
        look(fleet, &job, "killed_move", "killed").await?;
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "it stays");
        let left = guest.left_behind(fleet, "alpha", WAIT).await?;
        ensure!(left.is_empty(), "a kill leaves nothing behind either: {left:?}");

        let job = slow_move(fleet, &guest, &[]).await?;
        fleet.sterna(&["job", "suspend", &job]).await?;
        state_becomes(fleet, &job, "suspended", WAIT).await?;
        look(fleet, &job, "suspended_move", "suspended").await?;
        fleet.sterna(&["job", "state", &job, "service"]).await?;
        look(fleet, &job, "suspended_move", "service").await?;
        fast(fleet)?;
        fleet.sterna(&["job", "resume", &job]).await?;
        ended(fleet, &job, WAIT).await?;
        look(fleet, &job, "suspended_move", "completed").await
    })
    .await;
}

#[tokio::test]
async fn jobs_that_wait_read_as_they_should_at_every_state() {
    on_fleet(async |fleet| {
        let guest = start(fleet).await?;
        let job = guest.begin_move(fleet, "bravo", &["--at", "2099-01-01T00:00:00Z", "--priority", "7"]).await?;
        look(fleet, &job, "scheduled_move", "new").await?;
        fleet.sterna(&["job", "resume", &job]).await?;
        ended(fleet, &job, WAIT).await?;
        look(fleet, &job, "scheduled_move", "completed").await?;

        let calendar = ["--start", "03:00", "--weekday", "-sunday", "--day", "-1", "--times", "2"];
        let job = guest.begin_move(fleet, "alpha", &calendar).await?;
        look(fleet, &job, "recurring_move", "new").await?;
        fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
        fleet.sterna(&["job", "resume", &job]).await?;
        state_becomes(fleet, &job, "running", WAIT).await?;
        look(fleet, &job, "recurring_move", "running").await?;
        fast(fleet)?;
        state_becomes(fleet, &job, "new", WAIT).await?;
        look(fleet, &job, "recurring_move", "new_again").await?;
        guest.move_to(fleet, "bravo").await?;
        fleet.sterna(&["job", "resume", &job]).await?;
        state_becomes(fleet, &job, "completed", WAIT).await?;
        look(fleet, &job, "recurring_move", "completed").await
    })
    .await;
}

async fn start(fleet: &mut Fleet) -> anyhow::Result<Guest> {
    let wish = WitnessWish { ballast: vec![("stones", "fast", "raw", 128)], ..WitnessWish::small("witness") };
    Guest::start(fleet, ["alpha", "bravo"], &wish).await
}

/// A move that copies its disks for a while.
async fn slow_move(fleet: &Fleet, guest: &Guest, more: &[&str]) -> anyhow::Result<String> {
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    let job = guest.begin_move(fleet, "bravo", &[&["--max-blackout", "60000"], more].concat()).await?;
    begins(fleet, "alpha", &job, "copy_disks").await?;
    state_becomes(fleet, &job, "running", WAIT).await?;
    Ok(job)
}

fn fast(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.agent("bravo")?.host.unshape(Link::Data)
}

/// Holds a job as CIM has it now against the file of its kind and state, and its XML against itself.
async fn look(fleet: &Fleet, job: &str, kind: &str, state: &str) -> anyhow::Result<()> {
    let mut shown = fleet.cim_of(job).await?;
    mask(&mut shown);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/cim/{kind}.{state}.json"));
    let text = serde_json::to_string_pretty(&shown)? + "\n";
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        std::fs::write(&path, &text)?;
    }
    let golden = std::fs::read_to_string(&path).with_context(|| format!("{} is not there", path.display()))?;
    for (found, wanted) in text.lines().zip(golden.lines()).filter(|(found, wanted)| found != wanted) {
        eprintln!("{kind}, {state}: {} and not {}", found.trim(), wanted.trim());
    }
    ensure!(text == golden, "{kind}, {state}: the job does not read as {} does", path.display());
    Ok(())
}

/// Puts words in place of what is another each time.
fn mask(job: &mut Value) {
    let Some(properties) = job.as_object_mut() else { return };
    for (name, value) in properties.iter_mut() {
        mask_value(name, value);
    }
}

fn mask_value(name: &str, value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| mask_value(name, value)),
        Value::Number(number) if name == "PercentComplete" && !matches!(number.as_u64(), Some(0 | 100)) => {
            *value = "PERCENT".into();
        }
        Value::String(text) => *text = masked(name, text),
        _ => {}
    }
}

fn masked(name: &str, text: &str) -> String {
    if matches!(name, "TimeSubmitted" | "StartTime" | "ElapsedTime" | "TimeOfLastStateChange") {
        return if text.bytes().all(|byte| matches!(byte, b'0' | b'.' | b':')) {
            text.to_owned()
        } else {
            "TIME".to_owned()
        };
    }
    if matches!(name, "JobStatus" | "StatusDescriptions") {
        // What follows is how far it is, or how long the guest stood still.
        let head = text.split([',']).next().unwrap_or(text);
        return match head.split_once("blackout of") {
            Some((head, _)) => format!("{head}blackout of N ms"),
            None => head.to_owned(),
        };
    }
    if matches!(name, "InstanceID" | "Description" | "VirtualSystemName" | "NewResourceSettingData") {
        return ids_masked(text);
    }
    if name == "ScheduledStartTime" && text.ends_with("+000") && !text.starts_with("2099") && !text.starts_with("0000")
    {
        // The next turn of a calendar: whenever that is.
        return "TURN".to_owned();
    }
    text.to_owned()
}

/// A text with UUID in the place of each.
fn ids_masked(text: &str) -> String {
    const LENGTH: usize = 36;
    let is_id = |part: &str| part.parse::<uuid::Uuid>().is_ok() && part.len() == LENGTH;
    let mut masked = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match rest.get(..LENGTH).filter(|part| is_id(part)) {
            Some(_) => {
                masked.push_str("UUID");
                rest = &rest[LENGTH..];
            }
            None => {
                masked.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    masked
}
