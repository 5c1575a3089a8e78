//! Pools that fill up while a VM is replicated: the cycle fails, at whichever host, and no guest notices.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended};
use sterna_tests::namespace::Link;
use sterna_tests::replicas::{cycle, records, replica, snapshots, strays};
use sterna_tests::scenario::{Watched, eventually, on_fleet};
use sterna_tests::small_pool::SmallPool;

const WAIT: Duration = Duration::from_secs(120);
/// What the file system of a small pool has. A tenth of it is its headroom.
const POOL_MIB: u64 = 400;
/// Less than the headroom, and more than half of it.
const TOO_LITTLE_TO_BEGIN_MIB: u64 = 28;
/// Less than half of it.
const TOO_LITTLE_MIB: u64 = 10;
/// What a cycle that was cut has left: more than the headroom lacks then, by all that the next may write.
const PART_MIB: usize = 64;
/// So slow that a first cycle takes a while.
const SLOW_MEGABITS: u32 = 60;
/// So slow that a later one does.
const SLOWER_MEGABITS: u32 = 8;

#[tokio::test]
async fn a_pool_that_fills_up_costs_the_cycle_and_not_the_guest() {
    on_fleet(fills_up).await;
}

async fn fills_up(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut pools = Vec::new();
    for host in ["alpha", "bravo"] {
        fleet.stop_agent(host).await?;
        pools.push((host, SmallPool::mount(fleet, host, "fast", POOL_MIB)?));
        fleet.start_agent(host).await?;
    }
    let wish = WitnessWish {
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "raw", 64)],
        ballast: vec![("stones", "fast", "raw", 96)],
        ..WitnessWish::small("web")
    };
    let mut web = Watched::start(fleet, "alpha", &wish).await?;

    // Too little from the beginning, where a first cycle puts aside; at the target the coordinator asks for more than that.
    let (source, target) = (&pools[0], &pools[1]);
    expect_no_beginning(fleet, &mut web, source).await?;
    // It becomes too little.
    for (host, pool) in &pools {
        fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
        let job = begun(fleet).await?;
        begins(fleet, "alpha", &job, "copy_disks").await?;
        let somebody_elses = pool.fill(TOO_LITTLE_MIB)?;
        let over = ended(fleet, &job, WAIT).await?;
        fleet.agent("bravo")?.host.unshape(Link::Data)?;
        expect_too_full(&over, host, "that runs leaves")?;
        // The guest writes on, into what was left for it.
        web.more_records().await?;
        std::fs::remove_file(somebody_elses)?;
        expect_as_before(fleet, &mut web).await?;
    }

    let before = web.acknowledged();
    // The coordinator goes by what the host has told.
    eventually("the room is told", WAIT, async || {
        let shown = fleet.sterna(&["host", "show", "bravo"]).await?;
        let pools = shown["inventory"]["pools"].as_array().context("a host tells its pools")?;
        let free = pools.iter().find(|pool| pool["name"] == "fast").and_then(|pool| pool["free"].as_u64());
        Ok((free > Some(200 << 20)).then_some(()))
    })
    .await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let found = replica(fleet, "web").await?.context("there is a replica")?;
    let snapshot = snapshots(&found).last().copied().context("a snapshot")?;
    for (disk, before) in records(fleet, "bravo", &found, snapshot, &wish)?.iter().zip(before) {
        ensure!(disk.mismatches == 0 && disk.acknowledged >= before, "of {before}: {disk:?}");
    }
    // A later one needs no more than the headroom there.
    expect_no_beginning(fleet, &mut web, target).await?;
    let left = snapshots(&replica(fleet, "web").await?.context("the replica is still there")?);
    ensure!(left == [snapshot], "as it was: {left:?}");
    expect_part_to_make_room(fleet, &mut web, target).await?;
    cycle(fleet, "web", "bravo", &[]).await.map(drop)
}

/// What a cycle that was cut has left for the next is what the headroom lacks: it goes, and the next cycle does not fail.
async fn expect_part_to_make_room(fleet: &Fleet, web: &mut Watched, at: &(&str, SmallPool)) -> anyhow::Result<()> {
    let (host, pool) = at;
    web.more_records().await?;
    fleet.agent(host)?.host.shape(Link::Data, SLOWER_MEGABITS)?;
    let job = begun(fleet).await?;
    begins(fleet, "alpha", &job, "copy_disks").await?;
    fleet.sterna(&["job", "cancel", &job]).await?;
    let over = ended(fleet, &job, WAIT).await?;
    fleet.agent(host)?.host.unshape(Link::Data)?;
    ensure!(over["state"] == "terminated", "{over:#}");
    expect_as_before(fleet, web).await?;
    let found = replica(fleet, "web").await?.context("the replica is still there")?;
    let (vm, next) = (found["vm"]["id"].as_str().context("an id")?, &found["next"]);
    let part = fleet.agent(host)?.pool("fast").join(vm).join(format!("root.layer-{next}.qcow2"));
    // As if that much had come. Closed again: what somebody has open takes room also when it is removed.
    let file = std::fs::File::options().append(true).open(&part).context("the part is kept")?;
    (&file).write_all(&vec![1; PART_MIB << 20])?;
    drop(file);
    let somebody_elses = pool.fill(TOO_LITTLE_TO_BEGIN_MIB)?;
    cycle(fleet, "web", "bravo", &[]).await.context("where the part was lacking")?;
    std::fs::remove_file(somebody_elses)?;
    expect_as_before(fleet, web).await
}

async fn expect_no_beginning(fleet: &Fleet, web: &mut Watched, at: &(&str, SmallPool)) -> anyhow::Result<()> {
    let (host, pool) = at;
    let somebody_elses = pool.fill(TOO_LITTLE_TO_BEGIN_MIB)?;
    let job = begun(fleet).await?;
    let over = ended(fleet, &job, WAIT).await?;
    expect_too_full(&over, host, "begins only with")?;
    std::fs::remove_file(somebody_elses)?;
    expect_as_before(fleet, web).await
}

async fn begun(fleet: &Fleet) -> anyhow::Result<String> {
    let job = fleet.sterna(&["replicate", "add", "web", "--to", "bravo", "--once", "--detach"]).await?;
    Ok(job["job"].as_str().context("an id")?.to_owned())
}

fn expect_too_full(job: &Value, host: &str, told: &str) -> anyhow::Result<()> {
    let failure = &job["failure"];
    eprintln!("{host}: {}", failure["message"]);
    ensure!(job["state"] == "exception" && failure["code"] == "pool_nearly_full", "{job:#}");
    ensure!(failure["host"] == host, "whose pool it is: {failure:#}");
    ensure!(
        failure["message"].as_str().is_some_and(|text| text.contains("pool fast") && text.contains(told)),
        "{failure:#}"
    );
    Ok(())
}

/// The guest is whole, and nothing is put aside for anybody or half made.
async fn expect_as_before(fleet: &Fleet, web: &mut Watched) -> anyhow::Result<()> {
    web.prove().await?;
    eventually("nothing is left of the cycle", WAIT, async || {
        let free = fleet.sterna(&["vm", "show", "web"]).await?["report"]["job"].is_null();
        let open = fleet.agent("alpha")?.open_files("qemu")?;
        let scratch = open.iter().any(|path| path.display().to_string().contains(".scratch."));
        let layers = strays(fleet, &replica(fleet, "web").await?.unwrap_or_default())?;
        Ok((free && !scratch && layers.is_empty()).then_some(()))
    })
    .await
}
