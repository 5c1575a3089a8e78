//! A job that is asked to stop while it is under way: suspended and resumed across restarts of everything. What else it can be
//! asked for, in every state: `scenarios::standings`.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::WitnessWish;
use sterna_tests::moves::{Guest, ended, step};
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
