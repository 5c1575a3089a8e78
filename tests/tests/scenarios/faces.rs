//! Jobs of every kind as CIM has them, at each state that they come to on real guests: held against `tests/golden/cim`, times and
//! ids masked.
//!
//! After a change that is meant, `STERNA_WRITE_GOLDEN=1` writes the files anew.
#![allow(clippy::print_stderr, reason = "what differs is for whoever runs the test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended, state_becomes, step};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{eventually, on_fleet};

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

/// What it is asked that cannot be.
const IN_VAIN: [&str; 4] = ["--disk", "root=nowhere", "--lanes", "17"];

#[tokio::test]
async fn checks_read_as_they_should_at_every_state() {
    on_fleet(async |fleet| {
        let mut guest = start(fleet).await?;
        let job = begin_check(fleet, &guest, &[&["--at", "2099-01-01T00:00:00Z"][..], &IN_VAIN].concat()).await?;
        look(fleet, &job, "failed_check", "new").await?;
        fleet.sterna(&["job", "suspend", &job]).await?;
        look(fleet, &job, "failed_check", "suspended").await?;
        fleet.sterna(&["job", "state", &job, "service"]).await?;
        look(fleet, &job, "failed_check", "service").await?;
        // The agents answer within a second, unless one of them stands still.
        signal(fleet, "bravo", Signal::STOP)?;
        fleet.sterna(&["job", "resume", &job]).await?;
        state_becomes(fleet, &job, "running", WAIT).await?;
        look(fleet, &job, "failed_check", "running").await?;
        signal(fleet, "bravo", Signal::CONT)?;
        ended(fleet, &job, WAIT).await?;
        look(fleet, &job, "failed_check", "exception").await?;

        let errors = fleet.sterna(&["job", "error", &job]).await?;
        let ids: Vec<&str> =
            errors.as_array().context("errors")?.iter().filter_map(|e| e["MessageID"].as_str()).collect();
        ensure!(ids == ["STERNA-F018", "STERNA-R012", "STERNA-R026"], "each finding is an error: {ids:?}");
        let shown = fleet.try_sterna(&["job", "show", &job]).await?;
        let shown = String::from_utf8_lossy(&shown.stdout);
        for told in ["host bravo has no pool nowhere", "17 lanes are out of range", "it cannot be moved like that"] {
            ensure!(shown.contains(told), "{told} is not among what people read: {shown}");
        }

        let job = begin_check(fleet, &guest, &["--at", "2099-01-01T00:00:00Z"]).await?;
        fleet.sterna(&["job", "cancel", &job]).await?;
        look(fleet, &job, "cancelled_check", "terminated").await?;

        let passed = fleet.sterna(&["check", guest.name, "--to", "bravo", "--job"]).await?;
        ensure!(passed["check"]["migratable"] == true && passed["check"]["forecast"].is_object(), "{passed:#}");
        look(fleet, passed["job"].as_str().context("an id")?, "passed_check", "completed").await?;
        let passed = fleet.sterna(&["check", guest.name, "--storage-only", "--disk", "root=bulk", "--job"]).await?;
        look(fleet, passed["job"].as_str().context("an id")?, "passed_storage_check", "completed").await?;
        fleet.define("alpha", "bare", BARE).await?;
        let passed = fleet.sterna(&["check", "bare", "--to", "bravo", "--job"]).await?;
        look(fleet, passed["job"].as_str().context("an id")?, "passed_bare_check", "completed").await?;

        let answered = fleet.try_sterna(&["check", "bare", "--to", "bravo", "--priority", "3"]).await?;
        ensure!(answered.status.code() == Some(2), "what is answered at once has no priority");

        // Who made a check is gone in the middle of it: who comes after makes it anew.
        signal(fleet, "bravo", Signal::STOP)?;
        let job = begin_check(fleet, &guest, &[]).await?;
        state_becomes(fleet, &job, "running", WAIT).await?;
        fleet.kill_coordinator()?;
        signal(fleet, "bravo", Signal::CONT)?;
        fleet.start_coordinator().await?;
        let job = ended(fleet, &job, WAIT).await?;
        ensure!(job["state"] == "completed" && job["check"]["migratable"] == true, "{job:#}");
        guest.expect_whole().await
    })
    .await;
}

#[tokio::test]
async fn deep_checks_read_the_disks_and_find_what_cannot_be_read() {
    on_fleet(async |fleet| {
        let mut guest = start(fleet).await?;
        let slow = ["--bandwidth", "8MiB/s"];
        let job = begin_deep_check(fleet, &guest, &slow).await?;
        let reads = eventually("it reads", WAIT, async || {
            let shown = fleet.sterna(&["job", "show", &job]).await?;
            Ok((shown["progress"]["disk"]["done"].as_u64() > Some(0)).then_some(shown))
        });
        let reads = reads.await?;
        ensure!(reads["state"] == "running" && reads["progress"]["disk"]["total"] == 256 << 20, "{reads:#}");
        look(fleet, &job, "deep_check", "running").await?;
        let refused = fleet.try_sterna(&["migrate", guest.name, "--to", "bravo"]).await?;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(3) && told.contains(&job), "no move of it begins meanwhile: {told}");
        fleet.sterna(&["job", "cancel", &job]).await?;
        ended(fleet, &job, WAIT).await?;
        look(fleet, &job, "deep_check", "terminated").await?;

        let job = begin_deep_check(fleet, &guest, &slow).await?;
        begins(fleet, "alpha", &job, "read_disks").await?;
        fleet.replace_agent("alpha").await?;
        let cut = ended(fleet, &job, WAIT).await?;
        ensure!(cut["state"] == "exception" && cut["failure"]["code"] == "agent_restarted", "{cut:#}");
        guest.hosts_online(fleet, WAIT).await?;

        let job = begin_deep_check(fleet, &guest, &[]).await?;
        let read = ended(fleet, &job, WAIT).await?;
        ensure!(read["state"] == "completed" && read["check"]["migratable"] == true, "{read:#}");
        ensure!(step(&read, "read_disks").is_some_and(|step| step["bytes_total"] == 256 << 20), "all of it: {read:#}");
        look(fleet, &job, "deep_check", "completed").await?;
        guest.expect_whole().await?;

        fleet.sterna(&["vm", "stop", guest.name, "--force"]).await?;
        let alpha = fleet.agent("alpha")?;
        let image = |pool: &str, name: &str| {
            let file = alpha.files(pool).into_iter().find(|file| file.ends_with(name));
            file.map(|file| alpha.pool(pool).join(file)).with_context(|| format!("there is no {name}"))
        };
        let (data, stones) = (image("bulk", "data.qcow2")?, image("fast", "stones.raw")?);
        let offset = damage(&data)?;
        std::fs::OpenOptions::new().write(true).open(&stones)?.set_len(100 << 20)?;
        let before = std::fs::read(&data)?;
        let job = begin_deep_check(fleet, &guest, &["--to", "bravo"]).await?;
        let failed = ended(fleet, &job, WAIT).await?;
        ensure!(failed["state"] == "exception" && failed["failure"]["code"] == "disk_read", "{failed:#}");
        let findings = failed["check"]["findings"].as_array().context("findings")?;
        let found = |text: &str| {
            findings.iter().any(|finding| finding["message"].as_str().is_some_and(|message| message.starts_with(text)))
        };
        ensure!(found(&format!("disk data cannot be read at {offset}, for 65536 bytes: error 5")), "{findings:#?}");
        ensure!(found("disk stones has no content from 104857600 on"), "{findings:#?}");
        ensure!(findings.iter().filter(|finding| finding["code"] == "disk_unreadable").count() == 2, "{findings:#?}");
        ensure!(std::fs::read(&data)? == before, "a check writes nothing, not even that an image is damaged");
        look(fleet, &job, "failed_deep_check", "exception").await
    })
    .await;
}

async fn begin_deep_check(fleet: &Fleet, guest: &Guest, more: &[&str]) -> anyhow::Result<String> {
    let job = fleet.sterna(&[&["check", guest.name, "--deep", "--detach"], more].concat()).await?;
    Ok(job["job"].as_str().context("the job has no id")?.to_owned())
}

/// Damages a qcow2 image of the common cluster size: of its first cluster that holds something it says that it lies between
/// two. Where the guest sees that cluster.
fn damage(image: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    const CLUSTER: u64 = 64 << 10;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(image)?;
    let number = |at: u64| -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_be_bytes(bytes))
    };
    let table = number(number(40)?)? & OFFSET;
    for index in 0..CLUSTER / 8 {
        let entry = number(table + index * 8)?;
        if entry & OFFSET != 0 {
            file.write_all_at(&(entry | 0x200).to_be_bytes(), table + index * 8)?;
            return Ok(index * CLUSTER);
        }
    }
    bail!("{} holds nothing", image.display())
}

/// A VM without disks, which is never started.
const BARE: &str = "name = \"bare\"\nid = \"0197c0de-0000-7000-8000-0000000000ba\"\nmemory = \"64 MiB\"\n";

async fn begin_check(fleet: &Fleet, guest: &Guest, more: &[&str]) -> anyhow::Result<String> {
    let wish = [&["check", guest.name, "--to", "bravo", "--job", "--detach"], more].concat();
    let job = fleet.sterna(&wish).await?;
    Ok(job["job"].as_str().context("the job has no id")?.to_owned())
}

fn signal(fleet: &Fleet, host: &str, signal: Signal) -> anyhow::Result<()> {
    Ok(fleet.agent(host)?.process().context("the agent does not run")?.signal(signal)?)
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
    // What the agent has begun the coordinator hears of a moment later.
    eventually("the job copies disks", WAIT, async || {
        let shown = fleet.sterna(&["job", "show", &job]).await?;
        Ok(step(&shown, "copy_disks").is_some_and(|step| step["state"] == "running").then_some(()))
    })
    .await?;
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
