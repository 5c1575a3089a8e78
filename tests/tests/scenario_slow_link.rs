//! A guest that makes more of its disks dirty than the link carries: its writes are held back, which is told, and they are
//! let go when the move is cancelled.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::ensure;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, ended};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::on_fleet;

/// How long such a move may take.
const WAIT: Duration = Duration::from_secs(300);
/// How long a move that was cancelled may leave something behind.
const LEFT_WAIT: Duration = Duration::from_secs(10);
/// What the link carries: 10 MB a second.
const SLOW_MEGABITS: u32 = 80;
/// Each record makes a piece of 64 KiB dirty: with two disks that is 26 MB a second.
const RECORDS: u64 = 200;
/// What is told, by the words that every such notice begins with.
const HELD_BACK: &str = "the guest writes faster than the link carries";
const LET_GO: &str = "the guest's disk writes are no longer held back";

#[tokio::test]
async fn a_guest_that_writes_faster_than_the_link_is_held_back_and_let_go() {
    on_fleet(async |fleet| {
        let wish = WitnessWish {
            fill_mib: 8,
            rewrite_mib: 1,
            records: RECORDS,
            disks: vec![("root", "fast", "raw", 16), ("data", "bulk", "qcow2", 16)],
            ..WitnessWish::small("witness")
        };
        let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
        fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
        cancelled_while_held_back(fleet, &mut guest).await
    })
    .await;
}

/// A cancel lets the guest's writes go at once.
async fn cancelled_while_held_back(fleet: &mut Fleet, guest: &mut Guest) -> anyhow::Result<()> {
    let job = guest.begin_move(fleet, "bravo", &[]).await?;
    let agent = fleet.agent("alpha")?.process().ok_or_else(|| anyhow::anyhow!("the agent does not run"))?;
    agent.wait_for_line(HELD_BACK, WAIT).await?;
    fleet.sterna(&["job", "cancel", &job]).await?;
    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "terminated", "{over:#}");
    ensure!(over["notices"].to_string().contains(LET_GO), "that it is let go is told: {over:#}");
    ensure!(guest.left_behind(fleet, "alpha", LEFT_WAIT).await?.is_empty(), "nothing is left at the target");
    guest.expect_whole().await
}
