//! A move that was cut leaves what it has received, and the next one sends what is missing: whichever agent died, for both
//! formats. What is kept has an owner, and goes when it is cancelled, dropped, or its time is up.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish, binary};
use sterna_tests::moves::{Guest, begins, ended, step};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{eventually, on_fleet};

const MIB: u64 = 1 << 20;
/// What the disks hold that cannot be compressed or skipped.
const BALLAST_MIB: u64 = 256;
/// So slow that copying takes long enough to be cut.
const SLOW_MEGABITS: u32 = 200;
/// How much has crossed when the move is cut: a part of both of the full disks.
const CUT_AT_MIB: u64 = 200;
/// The size of the two disks that the witness writes to, all over, and of the chunks that were cut in two.
const CHANGED_MIB: u64 = 2 * 16 + 4;
const WAIT: Duration = Duration::from_secs(180);
/// From an operator's word to the last file.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_a_cut_move_has_received_is_not_sent_again() {
    on_fleet(async |fleet| {
        let mut guest = start(fleet).await?;
        for (source, target, killed) in [("alpha", "bravo", "bravo"), ("bravo", "alpha", "bravo")] {
            let received = cut(fleet, &guest, source, target, killed).await?;
            ensure!(guest.settled_at(fleet, WAIT).await? == source, "the guest stays where it was");
            let left = guest.left_without_owner(fleet, source, SOON).await?;
            ensure!(left.is_empty(), "nobody owns {left:?}");
            let job = guest.move_to(fleet, target).await?;
            let copied = step(&job, "copy_disks").context("disks were copied")?;
            let figure = |name: &str| copied[name].as_u64().unwrap_or(0);
            let (sent, resumed) = (figure("bytes_sent"), figure("bytes_resumed"));
            eprintln!(
                "{killed}'s agent killed on the way from {source} to {target}: {} MiB were received; then {} MiB were \
                 sent and {} MiB were not",
                received / MIB,
                sent / MIB,
                resumed / MIB
            );
            ensure!(resumed + CHANGED_MIB * MIB >= received, "what was journalled was spared: {job:#}");
            ensure!(sent + received <= (BALLAST_MIB + 2 * CHANGED_MIB) * MIB, "too much was sent: {job:#}");
            ensure!(received >= CUT_AT_MIB * MIB / 3, "a good part was received: {job:#}");
            ensure!(job["notices"].to_string().contains("were not sent again"), "it is told: {job:#}");
            ensure!(guest.left_behind(fleet, target, SOON).await?.is_empty(), "nothing is left at {source}");
            ensure!(guest.kept_at(fleet, target).await?.is_none(), "the images are the VM's now");
            guest.expect_whole().await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_is_kept_goes_when_nobody_wants_it() {
    on_fleet(async |fleet| {
        let mut guest = start(fleet).await?;
        // A cancel keeps nothing, neither what it received itself nor what an earlier move had left.
        let job = begun(fleet, &guest, "bravo").await?;
        cancel(fleet, &guest, &job).await?;
        cut(fleet, &guest, "alpha", "bravo", "bravo").await?;
        let job = begun(fleet, &guest, "bravo").await?;
        cancel(fleet, &guest, &job).await?;

        cut(fleet, &guest, "alpha", "bravo", "bravo").await?;
        fleet.sterna(&["vm", "drop", guest.name, "--host", "bravo"]).await?;
        expect_nothing(fleet, &guest).await.context("after a drop")?;
        let again = fleet.try_sterna(&["vm", "drop", guest.name, "--host", "bravo"]).await?;
        ensure!(!again.status.success(), "there is nothing to drop twice");

        cut(fleet, &guest, "alpha", "bravo", "alpha").await?;
        let configuration = fleet.agent("bravo")?.configuration();
        let text = std::fs::read_to_string(&configuration)?;
        fleet.stop_agent("bravo").await?;
        std::fs::write(&configuration, format!("keep_partial_seconds = 1\n{text}"))?;
        fleet.start_agent("bravo").await?;
        expect_nothing(fleet, &guest).await.context("after its time was up")?;
        guest.expect_whole().await?;

        std::fs::write(&configuration, text)?;
        fleet.stop_agent("bravo").await?;
        fleet.start_agent("bravo").await?;
        cut(fleet, &guest, "alpha", "bravo", "bravo").await?;
        fleet.sterna(&["vm", "stop", guest.name, "--force"]).await?;
        fleet.sterna(&["vm", "delete", guest.name, "--delete-disks", "--yes"]).await?;
        eventually("nothing is left of a VM that was deleted", SOON, async || {
            Ok((fleet.agent("bravo")?.files("fast").is_empty() && fleet.agent("bravo")?.files("bulk").is_empty())
                .then_some(()))
        })
        .await
    })
    .await;
}

async fn start(fleet: &mut Fleet) -> anyhow::Result<Guest> {
    let ballast = vec![("stones", "fast", "raw", BALLAST_MIB / 2), ("sand", "bulk", "qcow2", BALLAST_MIB / 2)];
    let disks = vec![("root", "fast", "raw", 16), ("data", "bulk", "qcow2", 16)];
    let wish = WitnessWish { rewrite_mib: 1, records: 10, disks, ballast, ..WitnessWish::small("witness") };
    Guest::start(fleet, ["alpha", "bravo"], &wish).await
}

/// Begins a move over a slow link, and waits until some of it has crossed; the job.
async fn begun(fleet: &Fleet, guest: &Guest, target: &str) -> anyhow::Result<String> {
    guest.hosts_online(fleet, WAIT).await?;
    let source = guest.other(target);
    ensure!(guest.settled_at(fleet, WAIT).await? == source, "the guest is where it was left");
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    let job = guest.begin_move(fleet, target, &[]).await?;
    begins(fleet, source, &job, "copy_disks").await?;
    eventually("enough has crossed", WAIT, async || {
        let shown = fleet.sterna(&["job", "show", &job]).await?;
        let disk = &shown["progress"]["disk"];
        let crossed = disk["sent"].as_u64().unwrap_or(0) + disk["resumed"].as_u64().unwrap_or(0);
        Ok((crossed >= CUT_AT_MIB * MIB).then_some(()))
    })
    .await?;
    Ok(job)
}

/// Kills an agent in the middle of a move, and has it come back; how many bytes the target's journal has as received.
async fn cut(fleet: &mut Fleet, guest: &Guest, source: &str, target: &str, killed: &str) -> anyhow::Result<u64> {
    let job = begun(fleet, guest, target).await?;
    fleet.kill_agent(killed)?;
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    let dumped = if killed == target { Some(journalled(fleet, target)?) } else { None };
    fleet.start_agent(killed).await?;
    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "exception", "the move was cut: {over:#}");
    let kept = eventually("the target keeps what it has", WAIT, async || guest.kept_at(fleet, target).await).await?;
    let received = kept["received"].as_u64().context("how much was received")?;
    ensure!(kept["job"] == job.as_str() && received > 0, "{source} to {target}: {kept:#}");
    if let Some(dumped) = dumped {
        let disks = dumped["partials"][0]["disks"].as_array().context("the journal names the disks")?;
        let sum: u64 = disks.iter().filter_map(|disk| disk["received_bytes"].as_u64()).sum();
        ensure!(sum == received, "the journal had {sum} when the agent died, and {received} are told");
    }
    Ok(received)
}

/// A host's journal, while its agent does not run.
fn journalled(fleet: &Fleet, host: &str) -> anyhow::Result<Value> {
    let mut command = std::process::Command::new(binary("sterna-agent"));
    let output = command.arg("--config").arg(fleet.agent(host)?.configuration()).args(["journal", "dump"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn cancel(fleet: &Fleet, guest: &Guest, job: &str) -> anyhow::Result<()> {
    fleet.sterna(&["job", "cancel", job]).await?;
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    let over = ended(fleet, job, WAIT).await?;
    ensure!(over["state"] == "terminated", "the job was cancelled: {over:#}");
    expect_nothing(fleet, guest).await.context("after a cancel")
}

/// Nothing is left at bravo, by its files and by its own word.
async fn expect_nothing(fleet: &Fleet, guest: &Guest) -> anyhow::Result<()> {
    let left = guest.left_behind(fleet, "alpha", SOON).await?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    eventually("bravo says so", SOON, async || Ok(guest.kept_at(fleet, "bravo").await?.is_none().then_some(()))).await
}
