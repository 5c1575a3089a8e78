//! Planned VMs on a real fleet: what one holds is really held, over a restart of the agent too; the move that comes has it, and
//! nobody else does; and its time ends.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{Watched, eventually, on_fleet, vm};

const WAIT: Duration = Duration::from_secs(150);
const SLOW_MEGABITS: u32 = 50;
const MIB: u64 = 1 << 20;
const MEMORY: u64 = 192 * MIB;

#[tokio::test]
async fn what_a_planned_vm_holds_is_for_its_move_and_for_nobody_else() {
    on_fleet(planned).await;
}

async fn planned(fleet: &mut Fleet) -> anyhow::Result<()> {
    // Two thirds of what is free: two such disks do not fit, and as long as they are empty they take next to nothing.
    let large = pool(&shown(fleet).await?, "fast", "free")? / 3 * 2 / MIB;
    let address = fleet.network.guest_address();
    let wish = WitnessWish { disks: vec![("root", "fast", "raw", 64)], ..WitnessWish::small("web") };
    let specification = wish.specification(address)? + &disk("fast", large);
    fleet.define("alpha", "web", &specification).await?;
    fleet.sterna(&["vm", "start", "web"]).await?;
    fleet.wait_for_witness("web", address).await?;
    let mut web = Watched::watch(fleet, address).await?;
    define(fleet, "alpha", "other", "fast", large).await?;
    define(fleet, "alpha", "small", "fast", 1).await?;

    // Held for as short as can be; at the end of all this its time is up.
    let small = stage(fleet, &["small", "--to", "bravo", "--hold", "90s"]).await?;
    let before = shown(fleet).await?;
    let staged = stage(fleet, &["web", "--to", "bravo", "--hold", "2h", "--disk", "large=bulk"]).await?;
    let held = shown(fleet).await?;
    ensure!(held["inventory"]["planned"].as_array().map(Vec::len) == Some(2), "both are there: {held:#}");
    ensure!(memory(&before, "free")? - memory(&held, "free")? == MEMORY, "memory is held: {held:#}");
    ensure!(memory(&held, "reserved")? - memory(&before, "reserved")? == MEMORY, "and told: {held:#}");
    ensure!(pool(&held, "fast", "reserved")? == (64 + 1) * MIB, "{held:#}");
    ensure!(pool(&held, "bulk", "reserved")? == large * MIB, "{held:#}");
    ensure!(pool(&held, "bulk", "free")? < large * MIB, "it is not free any more: {held:#}");
    web.prove().await.context("the guest is not touched")?;
    ensure!(vm(fleet, "web").await?["host"] == "alpha", "and stays where it is");

    fleet.stop_agent("bravo").await?;
    fleet.start_agent("bravo").await?;
    eventually("bravo is heard of again", WAIT, async || Ok((shown(fleet).await?["online"] == true).then_some(())))
        .await?;
    let kept = shown(fleet).await?;
    ensure!(kept["inventory"]["planned"] == held["inventory"]["planned"], "a restart changes nothing: {kept:#}");
    ensure!(pool(&kept, "bulk", "reserved")? == large * MIB, "{kept:#}");

    // Others have no room there: neither a move, nor a planned VM, nor a VM that the agent itself is told of.
    for asked in [&["migrate", "other"][..], &["plan", "other"]] {
        let arguments = [asked, &["--to", "bravo", "--disk", "large=bulk", "--detach"]].concat();
        let (codes, told) = refused(fleet, &arguments).await?;
        ensure!(codes == ["pool_space"] && told.contains("held for planned VMs"), "{asked:?}: {told}");
    }
    let told = define(fleet, "bravo", "third", "bulk", large).await.expect_err("its disk has no room").to_string();
    ensure!(told.contains("held for planned VMs"), "the agent says so itself: {told}");

    // What cannot be used is refused by name.
    for (planned, why) in [(small.as_str(), "planned_mismatch"), (&uuid::Uuid::new_v4().to_string(), "planned_unknown")]
    {
        let (codes, told) =
            refused(fleet, &["migrate", "web", "--to", "bravo", "--planned", planned, "--detach"]).await?;
        ensure!(codes == [why], "{told}");
    }

    // A move that is cancelled leaves it to the next.
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    let job = fleet.sterna(&["migrate", "web", "--to", "bravo", "--detach"]).await?;
    let job = job["job"].as_str().context("an id")?.to_owned();
    begins(fleet, "alpha", &job, "copy_disks").await?;
    fleet.sterna(&["job", "cancel", &job]).await?;
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    ensure!(ended(fleet, &job, WAIT).await?["state"] == "terminated", "it was cancelled");
    let listed = fleet.sterna(&["plan", "list"]).await?;
    let web_listed = entry(&listed, &staged).with_context(|| format!("it is still there: {listed:#}"))?;
    ensure!(web_listed["usable"] == true && web_listed["host"] == "bravo", "{web_listed:#}");

    let plan = fleet.sterna(&["migrate", "web", "--to", "bravo", "--dry-run"]).await?;
    ensure!(plan["planned"] == staged.as_str(), "the move uses it without being told: {plan:#}");
    let moved = fleet.sterna(&["migrate", "web", "--to", "bravo", "--planned", &staged]).await?;
    ensure!(moved["state"] == "completed", "{moved:#}");
    web.prove().await?;
    let there = vm(fleet, "web").await?;
    let large_at = there["report"]["spec"]["disk"].as_array().and_then(|disks| disks.last()).context("disks")?;
    ensure!(there["host"] == "bravo" && large_at["pool"] == "bulk", "its disks are where it was planned: {there:#}");
    let used = shown(fleet).await?;
    ensure!(entry(&fleet.sterna(&["plan", "list"]).await?, &staged).is_none(), "it is used up");
    ensure!(pool(&used, "bulk", "reserved")? == 0, "{used:#}");
    let spare = |host: &Value| anyhow::Ok(memory(host, "free")? + memory(host, "reserved")?);
    ensure!(spare(&used)? + MEMORY == spare(&held)?, "the guest has what was held: {used:#}");

    // Of two at one time that do not both fit one is held, whoever of planner and agent sees it.
    define(fleet, "alpha", "another", "fast", large).await?;
    let [one, two] = ["other", "another"].map(|name| stage_owned(fleet, name));
    let (one, two) = tokio::join!(one, two);
    let listed = fleet.sterna(&["plan", "list"]).await?;
    let other = match (one, two) {
        (Ok(held), Err(refused)) | (Err(refused), Ok(held)) => {
            let told = format!("{refused:#}");
            ensure!(told.contains("held for planned VMs"), "{told}");
            held
        }
        other => anyhow::bail!("one is held, and one is not: {other:?}: {listed:#}"),
    };
    // The one that is dropped: the room is back.
    ensure!(pool(&shown(fleet).await?, "fast", "reserved")? >= large * MIB, "it is held");
    fleet.sterna(&["plan", "drop", &other]).await?;
    let dropped = shown(fleet).await?;
    ensure!(pool(&dropped, "fast", "reserved")? <= MIB, "it is held no more: {dropped:#}");
    let again = fleet.try_sterna(&["plan", "drop", &other]).await?;
    ensure!(again.status.code() != Some(0), "it is there no more");

    // And one whose time is up.
    eventually("the small one's time is up", WAIT, async || {
        Ok(entry(&fleet.sterna(&["plan", "list"]).await?, &small).is_none().then_some(()))
    })
    .await?;
    let free = shown(fleet).await?;
    ensure!(memory(&free, "reserved")? == 0 && pool(&free, "fast", "reserved")? == 0, "nothing is held: {free:#}");
    Ok(())
}

/// Has a planned VM made; gives back its id.
async fn stage(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<String> {
    let job = fleet.sterna(&[&["plan"], arguments].concat()).await?;
    ensure!(job["state"] == "completed" && job["kind"] == "stage", "{job:#}");
    ensure!(job["blackout_ms"].is_null(), "no guest stood still: {job:#}");
    job["job"].as_str().map(str::to_owned).context("the job has no id")
}

async fn stage_owned(fleet: &Fleet, name: &str) -> anyhow::Result<String> {
    stage(fleet, &[name, "--to", "bravo"]).await
}

async fn shown(fleet: &Fleet) -> anyhow::Result<Value> {
    fleet.sterna(&["host", "show", "bravo"]).await
}

fn memory(host: &Value, what: &str) -> anyhow::Result<u64> {
    host["inventory"][format!("memory_{what}")].as_u64().context("a number of bytes")
}

fn pool(host: &Value, name: &str, what: &str) -> anyhow::Result<u64> {
    let pools = host["inventory"]["pools"].as_array().context("pools")?;
    pools.iter().find(|pool| pool["name"] == name).and_then(|pool| pool[what].as_u64()).context("a number of bytes")
}

fn entry<'a>(listed: &'a Value, id: &str) -> Option<&'a Value> {
    listed.as_array()?.iter().find(|entry| entry["planned"]["id"] == id)
}

/// The codes of a refusal, and all that was told.
async fn refused(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<(Vec<String>, String)> {
    let output = fleet.try_sterna(&[&["--output", "json"], arguments].concat()).await?;
    let error: Value = serde_json::from_slice(&output.stderr).context("an error in JSON")?;
    ensure!(output.status.code() == Some(3), "{error:#}");
    let refusals = error["error"]["refusals"].as_array().into_iter().flatten();
    let codes = refusals.filter_map(|refusal| refusal["code"].as_str()).map(str::to_owned).collect();
    Ok((codes, format!("{error:#}")))
}

/// A stopped VM with one empty disk.
async fn define(fleet: &Fleet, host: &str, name: &str, pool: &str, mib: u64) -> anyhow::Result<()> {
    let head = format!("name = \"{name}\"\nid = \"{}\"\nmemory = \"64 MiB\"\n", uuid::Uuid::new_v4());
    fleet.define(host, name, &(head + &disk(pool, mib))).await
}

fn disk(pool: &str, mib: u64) -> String {
    format!("\n[[disk]]\nname = \"large\"\npool = \"{pool}\"\nformat = \"qcow2\"\nsize = \"{mib} MiB\"\n")
}
