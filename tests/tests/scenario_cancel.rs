//! `job cancel` in each phase before the cede: the guest runs on at the source, nothing is left at the target. After the
//! cede it is refused, with the reason.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended};
use sterna_tests::namespace::Link;

/// From the operator's word to the end of the job.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the command line may take to see that.
const WAIT: Duration = Duration::from_secs(30);
/// So slow that copying takes long enough to be cancelled.
const SLOW_MEGABITS: u32 = 80;

#[tokio::test]
async fn a_cancelled_move_leaves_everything_as_it_was() {
    let mut fleet = Fleet::start(&["alpha", "bravo"]).await.expect("a fleet");
    let outcome = cancelled(&mut fleet).await;
    if outcome.is_err() {
        eprintln!("{}", fleet.logs());
    }
    outcome.expect("cancelled in good order");
}

async fn cancelled(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { fill_mib: 64, ..WitnessWish::small("witness") };
    let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    for phase in ["prepare", "copy_disks", "copy_memory"] {
        let job = guest.begin_move(fleet, "bravo", &[]).await?;
        begins(fleet, "alpha", &job, phase).await?;
        let since = Instant::now();
        fleet.sterna(&["job", "cancel", &job]).await?;
        let over = ended(fleet, &job, WAIT).await?;
        let took = since.elapsed();
        eprintln!("cancelled in {phase}: over after {:.1} s", took.as_secs_f64());
        ensure!(over["state"] == "terminated", "in {phase} the job ended as {over:#}");
        ensure!(took <= LIMIT, "in {phase} it took {took:?}: {over:#}");
        let steps = over["steps"].as_array().context("steps")?;
        let beyond = steps.iter().any(|step| step["step"] == "handover" && step["state"] != "waiting");
        ensure!(!beyond, "nothing was handed over: {over:#}");
        // A cancel that is repeated is told what has become of the job.
        let again = fleet.try_sterna(&["job", "cancel", &job]).await?;
        ensure!(!again.status.success() && text(&again.stderr).contains("is over"), "{}", text(&again.stderr));
        ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "after {phase} the guest is elsewhere");
        let left = guest.left_behind(fleet, "alpha", LIMIT).await?;
        ensure!(left.is_empty(), "after {phase}: {left:?}");
        ensure!(guest.owners(fleet).await? == 1, "the guest executes at one place");
        guest.expect_whole().await.with_context(|| format!("after a cancel in {phase}"))?;
    }
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    refused_after_the_cede(fleet, &mut guest).await
}

/// A cancel at the very moment of the cede comes too late, whoever is the first to know.
async fn refused_after_the_cede(fleet: &mut Fleet, guest: &mut Guest) -> anyhow::Result<()> {
    let job = guest.begin_move(fleet, "bravo", &[]).await?;
    begins(fleet, "alpha", &job, "ceding").await?;
    let refusal = async {
        // What the coordinator knows comes by events; until it knows, the source's agent is the one that refuses.
        let cancel = fleet.try_sterna(&["job", "cancel", &job]).await?;
        Ok::<_, anyhow::Error>((cancel.status.success(), text(&cancel.stderr)))
    };
    let (taken, said) = refusal.await?;
    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "completed", "a move that was ceded is completed: {over:#}");
    let notices = over["notices"].to_string();
    let by_agent = taken && notices.contains("cancel refused: the VM has been offered to bravo");
    let by_coordinator = said.contains("cannot be called back") || said.contains("is over: Completed");
    ensure!(by_agent || by_coordinator, "the reason is told: {said} {notices}");
    eprintln!("after the cede: {}", if by_coordinator { said } else { notices });
    guest.expect_whole().await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
