//! A pool that fills up in the middle of a move: the guest runs on where it was, the job asks what to do, and goes on with the
//! answer; once there is room again it moves as before.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::ensure;
use sterna_tests::fleet::WitnessWish;
use sterna_tests::moves::{Guest, begins, ended, state_becomes};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{eventually, on_fleet};
use sterna_tests::small_pool::SmallPool;

/// What the file system of the small pool has, which is enough for the disks and little more.
const POOL_MIB: u64 = 320;
const BALLAST_MIB: u64 = 128;
/// So slow that the pool is full before the disks are there.
const SLOW_MEGABITS: u32 = 200;
const WAIT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_pool_that_fills_up_in_the_middle_of_a_move_harms_nobody() {
    on_fleet(async |fleet| {
        fleet.stop_agent("bravo").await?;
        let pool = SmallPool::mount(fleet, "bravo", "fast", POOL_MIB)?;
        fleet.start_agent("bravo").await?;
        let ballast = vec![("stones", "fast", "raw", BALLAST_MIB)];
        let wish = WitnessWish { rewrite_mib: 1, records: 10, ballast, ..WitnessWish::small("witness") };
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
        guest.hosts_online(fleet, WAIT).await?;

        let target = &fleet.agent("bravo")?.host;
        target.shape(Link::Data, SLOW_MEGABITS)?;
        let job = guest.begin_move(fleet, "bravo", &[]).await?;
        begins(fleet, "alpha", &job, "copy_disks").await?;
        let somebody_elses = pool.fill(0)?;
        let asks = state_becomes(fleet, &job, "query_pending", WAIT).await?;
        target.unshape(Link::Data)?;
        eprintln!("{:#}", asks["failure"]);
        ensure!(asks["question"] == "target", "what to do is asked: {asks:#}");
        let told = asks["failure"].to_string();
        ensure!(asks["failure"]["code"] == "pool_full", "{told}");
        ensure!(asks["failure"]["host"] == "bravo", "and where: {told}");
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "the guest is elsewhere");
        let left = guest.left_without_owner(fleet, "alpha", SOON).await?;
        ensure!(left.iter().all(|left| left.contains("somebody_elses")), "left behind: {left:?}");
        guest.expect_whole().await?;

        // Another try meets the same; a pool that is not there is no answer; with room it goes on.
        fleet.sterna(&["job", "answer", &job, "place", "stones=nowhere"]).await?;
        state_becomes(fleet, &job, "query_pending", WAIT).await?;
        let errors = fleet.sterna(&["job", "error", &job]).await?;
        ensure!(errors.to_string().contains("nowhere"), "the error says which pool: {errors:#}");
        fleet.sterna(&["job", "answer", &job, "place", "stones=bulk", "root=bulk"]).await?;
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] == "completed", "the answer let it go on: {over:#}");
        ensure!(guest.settled_at(fleet, WAIT).await? == "bravo", "the guest moved");
        guest.expect_whole().await?;
        guest.move_to(fleet, "alpha").await?;

        std::fs::remove_file(somebody_elses)?;
        eventually("the fleet knows of the room", SOON, async || {
            let plan = fleet.try_sterna(&["migrate", guest.name, "--to", "bravo", "--dry-run"]).await?;
            Ok(plan.status.success().then_some(()))
        })
        .await?;
        guest.move_to(fleet, "bravo").await?;
        guest.expect_whole().await
    })
    .await;
}
