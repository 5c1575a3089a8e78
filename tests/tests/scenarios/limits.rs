//! What a host takes on at once, set while it runs: moves wait for their turn by priority, and no host ever has more in hand
//! than it was told.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::{join_all, try_join_all};
use serde_json::Value;
use sterna_shared::id::JobId;
use sterna_shared::time::Timestamp;
use sterna_tests::fleet::Fleet;
use sterna_tests::moves::ended;
use sterna_tests::scenario::{eventually, expect_nothing_left, on_fleet};

/// VMs that are to move.
const VMS: u32 = 20;
/// Moves that a host is told to have in hand at most.
const MOST: usize = 2;
/// So slow that a disk of [`LARGE_MIB`] is on its way until the rate is lifted.
const SLOW: &str = "64KiB/s";
const LARGE_MIB: u64 = 16;
const SMALL_MIB: u64 = 1;
const WAIT: Duration = Duration::from_secs(120);
/// States of a job that takes a slot: it has begun, and is not over.
const IN_HAND: [&str; 4] = ["starting", "running", "shutting_down", "query_pending"];

#[tokio::test]
async fn twenty_moves_go_two_at_a_time_and_by_priority() {
    on_fleet(twenty).await;
}

async fn twenty(fleet: &mut Fleet) -> anyhow::Result<()> {
    for number in 0..VMS {
        define(fleet, number, if number < 2 { LARGE_MIB } else { SMALL_MIB }).await?;
    }
    let set = fleet.sterna(&["host", "set", "alpha", "--outbound", "2"]).await?;
    ensure!(set["inventory"]["limits"]["outbound_moves_max"] == 2, "it holds with the answer: {set:#}");
    fleet.sterna(&["host", "set", "bravo", "--inbound", "2"]).await?;

    // Two begin at once, and hold the slots until everybody else is in the queue.
    let mut jobs = Vec::new();
    for number in 0..2 {
        jobs.push(ask_to_move(fleet, number, 100, &["--bandwidth", SLOW]).await?);
    }
    let others = (2..VMS).map(|number| ask_to_move(fleet, number, priority(number), &[]));
    jobs.extend(try_join_all(others).await?);
    let hosts = fleet.sterna(&["host", "list"]).await?;
    ensure!(in_hand(&hosts, "alpha", "outbound") == Some(MOST), "both slots are taken: {hosts:#}");
    ensure!(in_hand(&hosts, "bravo", "inbound") == Some(MOST), "both slots are taken: {hosts:#}");

    let (began, over) = (Instant::now(), AtomicBool::new(false));
    let fleet = &*fleet;
    let (watched, ended) = tokio::join!(watch(fleet, &over), async {
        let ended = async {
            for job in &jobs[..2] {
                fleet.sterna(&["job", "bandwidth", job, "unlimited"]).await?;
            }
            join_all(jobs.iter().map(|job| ended(fleet, job, WAIT)))
                .await
                .into_iter()
                .collect::<anyhow::Result<Vec<_>>>()
        }
        .await;
        over.store(true, Ordering::Relaxed);
        ended
    });
    let (seen, ended) = (watched?, ended?);
    eprintln!("{VMS} moves in {:.1} s; {seen:?}", began.elapsed().as_secs_f64());
    ensure!(seen.looks >= 5, "looked too rarely to tell: {seen:?}");
    ensure!(seen.most() == MOST, "never more than {MOST} at once, and as many as may: {seen:?}");
    for job in &ended {
        ensure!(job["state"] == "completed", "{job:#}");
    }
    let vms = fleet.sterna(&["vm", "list"]).await?;
    let at_bravo = vms.as_array().map_or(0, |vms| vms.iter().filter(|vm| vm["host"] == "bravo").count());
    ensure!(at_bravo == VMS as usize, "{at_bravo} are at bravo: {vms:#}");
    expect_nothing_left(fleet, "alpha")?;

    // When each was planned the source's journal tells, and the job when it was over: between two looks, too, no slot was
    // taken twice.
    let mut planned: Vec<(Timestamp, u32)> = Vec::new();
    let mut finished: Vec<Timestamp> = Vec::new();
    for (number, job) in (0..).zip(&ended) {
        let id: JobId = job["job"].as_str().context("the job has no id")?.parse()?;
        planned.push((fleet.plan_of("alpha", id)?.planned_at, number));
        finished.push(serde_json::from_value(job["finished_at"].clone())?);
    }
    planned.sort();
    for (before, (at, number)) in planned.iter().enumerate() {
        let over = finished.iter().filter(|finished| *finished <= at).count();
        ensure!(before - over < MOST, "{} began while {} were in hand", name(*number), before - over);
    }
    let order: Vec<u32> = planned[2..].iter().map(|(_, number)| priority(*number)).collect();
    ensure!(order.is_sorted(), "by priority: {order:?}");
    Ok(())
}

#[tokio::test]
async fn settings_hold_over_a_restart_until_they_are_reset() {
    on_fleet(settings).await;
}

async fn settings(fleet: &mut Fleet) -> anyhow::Result<()> {
    define(fleet, 0, LARGE_MIB).await?;
    define(fleet, 1, LARGE_MIB).await?;
    // Nothing of what makes no sense is set.
    for wrong in [&["--lanes", "0"][..], &["--lanes", "17", "--inbound", "1"], &[]] {
        let refused = fleet.try_sterna(&[&["host", "set", "bravo"], wrong].concat()).await?;
        let told = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(2), "{wrong:?}: {told}");
        ensure!(wrong.is_empty() || told.contains("give 1 to 16"), "{wrong:?}: {told}");
    }
    ensure!(limits(fleet, "bravo").await?["inbound_moves_max"] == 4, "as agent.toml says");

    // Switched off: refused both ways, at once and for good, and still so with another agent.
    fleet.sterna(&["host", "set", "bravo", "--migration", "off", "--inbound", "1"]).await?;
    fleet.stop_agent("bravo").await?;
    fleet.start_agent("bravo").await?;
    eventually("bravo is heard of again", WAIT, async || {
        let shown = fleet.sterna(&["host", "show", "bravo"]).await?;
        Ok((shown["online"] == true).then_some(()))
    })
    .await?;
    let kept = limits(fleet, "bravo").await?;
    ensure!(kept["enabled"] == false && kept["inbound_moves_max"] == 1, "{kept:#}");
    let arguments = ["--output", "json", "migrate", &name(0), "--to", "bravo", "--detach"];
    let refused = fleet.try_sterna(&arguments).await?;
    let error: Value = serde_json::from_slice(&refused.stderr).context("an error in JSON")?;
    ensure!(refused.status.code() == Some(3), "{error:#}");
    let codes: Vec<_> = error["error"]["refusals"].as_array().into_iter().flatten().map(|why| &why["code"]).collect();
    ensure!(codes == ["migration_disabled"], "{error:#}");
    let shown = fleet.try_sterna(&["host", "show", "bravo"]).await?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let row = shown.lines().find(|line| line.starts_with("migration")).unwrap_or_default();
    ensure!(row.contains("off") && row.contains("sterna host set"), "{shown}");

    // Storage moves have a limit of their own, and one that waits begins when it is raised.
    fleet.sterna(&["host", "set", "alpha", "--storage", "1", "--migration", "off"]).await?;
    let storage = async |number: u32| {
        let vm = name(number);
        let arguments = ["migrate", &vm, "--storage-only", "--disk", "root=bulk", "--bandwidth", SLOW, "--detach"];
        job_of(&fleet.sterna(&arguments).await?)
    };
    let first = storage(0).await?;
    becomes(fleet, &first, "running").await?;
    let second = storage(1).await?;
    let hosts = fleet.sterna(&["host", "list"]).await?;
    ensure!(in_hand(&hosts, "alpha", "storage") == Some(1), "{hosts:#}");
    ensure!(fleet.sterna(&["job", "show", &second]).await?["state"] == "new", "the second waits");
    fleet.sterna(&["host", "set", "alpha", "--storage", "2"]).await?;
    becomes(fleet, &second, "running").await?;
    ensure!(fleet.sterna(&["job", "show", &first]).await?["state"] == "running", "the first goes on");
    for job in [&first, &second] {
        fleet.sterna(&["job", "cancel", job]).await?;
        ensure!(ended(fleet, job, WAIT).await?["state"] == "terminated", "cancelled");
    }

    // As agent.toml says again.
    for host in ["alpha", "bravo"] {
        fleet.sterna(&["host", "set", host, "--reset"]).await?;
    }
    let default = limits(fleet, "bravo").await?;
    ensure!(default["enabled"] == true && default["inbound_moves_max"] == 4, "{default:#}");
    let moved = fleet.sterna(&["migrate", &name(0), "--to", "bravo"]).await?;
    ensure!(moved["state"] == "completed", "{moved:#}");
    Ok(())
}

fn name(number: u32) -> String {
    format!("vm{number}")
}

/// No two are the same, and the order is another than that of the numbers.
fn priority(number: u32) -> u32 {
    10 + (number * 7) % 19
}

/// A stopped VM at alpha whose disk holds so much that cannot be skipped.
async fn define(fleet: &Fleet, number: u32, mib: u64) -> anyhow::Result<()> {
    let (name, id) = (name(number), uuid::Uuid::new_v4());
    let specification = format!(
        "name = \"{name}\"\nid = \"{id}\"\nmemory = \"16 MiB\"\n\n\
         [[disk]]\nname = \"root\"\npool = \"fast\"\nformat = \"raw\"\nsize = \"{mib} MiB\"\n"
    );
    fleet.define("alpha", &name, &specification).await?;
    let image = fleet.agent("alpha")?.pool("fast").join(id.to_string()).join("root.raw");
    let mut file = std::fs::OpenOptions::new().write(true).open(image)?;
    std::io::copy(&mut std::fs::File::open("/dev/urandom")?.take(mib << 20), &mut file)?;
    Ok(())
}

async fn ask_to_move(fleet: &Fleet, number: u32, priority: u32, more: &[&str]) -> anyhow::Result<String> {
    let (vm, priority) = (name(number), priority.to_string());
    let arguments = ["migrate", &vm, "--to", "bravo", "--priority", &priority, "--detach"];
    job_of(&fleet.sterna(&[&arguments, more].concat()).await?)
}

fn job_of(answer: &Value) -> anyhow::Result<String> {
    Ok(answer["job"].as_str().context("the job has no id")?.to_owned())
}

async fn limits(fleet: &Fleet, host: &str) -> anyhow::Result<Value> {
    Ok(fleet.sterna(&["host", "show", host]).await?["inventory"]["limits"].clone())
}

async fn becomes(fleet: &Fleet, job: &str, state: &str) -> anyhow::Result<()> {
    eventually(&format!("the job is {state}"), WAIT, async || {
        Ok((fleet.sterna(&["job", "show", job]).await?["state"] == state).then_some(()))
    })
    .await
}

fn in_hand(hosts: &Value, host: &str, kind: &str) -> Option<usize> {
    let hosts = hosts.as_array()?;
    hosts.iter().find(|of| of["inventory"]["host"] == host)?["moves"][kind].as_u64()?.try_into().ok()
}

/// The most moves that were seen under way at once.
#[derive(Debug, Default)]
struct Seen {
    looks: u32,
    /// Jobs that have begun and are not over.
    jobs: usize,
    /// What the fleet counts as in hand.
    in_hand: usize,
    /// VMs that alpha has and a job holds, as its agent says.
    leaving: usize,
    /// VMs that bravo has not and a job holds, as its agent says.
    coming: usize,
}

impl Seen {
    fn most(&self) -> usize {
        self.jobs.max(self.in_hand).max(self.leaving).max(self.coming)
    }
}

/// Looks again and again until it is over.
async fn watch(fleet: &Fleet, over: &AtomicBool) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let (jobs, hosts) = tokio::try_join!(fleet.sterna(&["job", "list"]), fleet.sterna(&["host", "list"]))?;
        let begun = |job: &&Value| job["state"].as_str().is_some_and(|state| IN_HAND.contains(&state));
        seen.jobs = seen.jobs.max(jobs.as_array().map_or(0, |jobs| jobs.iter().filter(begun).count()));
        for (host, kind) in [("alpha", "outbound"), ("bravo", "inbound")] {
            seen.in_hand = seen.in_hand.max(in_hand(&hosts, host, kind).context("moves in hand are told")?);
        }
        let vms: BTreeMap<_, _> = hosts
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|of| Some((of["inventory"]["host"].as_str()?, of["inventory"]["vms"].as_array()?)))
            .collect();
        let held = |host: &str, owned: bool| {
            let vms = vms.get(host).map_or(&[][..], |vms| vms.as_slice());
            vms.iter().filter(|vm| vm["owned"] == owned && !vm["job"].is_null()).count()
        };
        seen.leaving = seen.leaving.max(held("alpha", true));
        seen.coming = seen.coming.max(held("bravo", false));
        seen.looks += 1;
    }
    Ok(seen)
}
