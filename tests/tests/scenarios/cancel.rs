//! `job cancel` in each phase before the cede: the guest runs on at the source, nothing is left at the target. After the
//! cede it is refused, with the reason, by the coordinator and by the source's agent.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sterna_shared::bus::Command;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended, last_begun, processes, step};
use sterna_tests::namespace::Link;

/// From the operator's word to the end of the job.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the command line may take to see that.
const WAIT: Duration = Duration::from_secs(30);
/// Above all that a guest is paused for here.
const BLACKOUT_MAX_MS: &str = "60000";
/// How long bulk flows before a cancel that comes in the middle of it: until all that can be queued is.
const FILLING: Duration = Duration::from_secs(2);
/// Attempts to hang a QEMU in a phase that it may be through with sooner.
const ATTEMPTS_MAX: usize = 20;

/// Why a phase lasts until the cancel comes.
#[derive(Debug, Clone, Copy)]
enum Because {
    /// The link carries so many Mbit/s.
    SlowLink(u32),
    /// The link does from the phase's beginning on, and is full by the time of the cancel.
    FullLink(u32),
    /// The QEMU of this host hangs.
    Hangs(&'static str),
}

const CANCELS: [(&str, Because); 7] = [
    ("prepare", Because::SlowLink(40)),
    ("copy_disks", Because::SlowLink(40)),
    ("copy_disks", Because::FullLink(10)),
    ("copy_memory", Because::FullLink(40)),
    ("copy_memory", Because::FullLink(10)),
    ("switchover", Because::Hangs("alpha")),
    ("prove", Because::Hangs("bravo")),
];

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
    for (phase, because) in CANCELS {
        cancel(fleet, &mut guest, phase, because).await.with_context(|| format!("{phase}, {because:?}"))?;
    }
    refused_after_the_cede(fleet, &mut guest).await
}

async fn cancel(fleet: &Fleet, guest: &mut Guest, phase: &str, because: Because) -> anyhow::Result<()> {
    let (over, took) = match because {
        Because::SlowLink(_) | Because::FullLink(_) => on_a_slow_link(fleet, guest, phase, because).await?,
        Because::Hangs(host) => beside_a_hung_guest(fleet, guest, phase, host).await?,
    };
    eprintln!("cancelled in {phase} ({because:?}): over after {:.1} s", took.as_secs_f64());
    ensure!(over["state"] == "terminated", "the job ended as {over:#}");
    ensure!(took <= LIMIT, "it took {took:?}: {over:#}");
    let begun = |name| step(&over, name).is_some_and(|step| step["state"] != "waiting");
    ensure!(begun(phase) && !begun("handover"), "the cancel came in another phase: {over:#}");
    // A cancel that is repeated is told what has become of the job.
    let job = over["job"].as_str().context("a job id")?;
    let again = fleet.try_sterna(&["job", "cancel", job]).await?;
    ensure!(!again.status.success() && text(&again.stderr).contains("is over"), "{}", text(&again.stderr));
    ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "the guest is elsewhere");
    let left = guest.left_behind(fleet, "alpha", LIMIT).await?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(guest.owners(fleet).await? == 1, "the guest executes at one place");
    guest.expect_whole().await
}

/// Begins a move, cancels it, and gives back what became of it and how long that took.
async fn on_a_slow_link(
    fleet: &Fleet,
    guest: &Guest,
    phase: &str,
    because: Because,
) -> anyhow::Result<(Value, Duration)> {
    let host = &fleet.agent("bravo")?.host;
    if let Because::SlowLink(megabits) = because {
        host.shape(Link::Data, megabits)?;
    }
    let job = guest.begin_move(fleet, "bravo", &["--max-blackout", BLACKOUT_MAX_MS]).await?;
    begins(fleet, "alpha", &job, phase).await?;
    if let Because::FullLink(megabits) = because {
        host.shape(Link::Data, megabits)?;
        tokio::time::sleep(FILLING).await;
    }
    let outcome = end_by_cancel(fleet, &job).await;
    host.unshape(Link::Data)?;
    outcome
}

/// The same while a QEMU hangs from the phase's beginning on. It may have done its part by then: once more.
async fn beside_a_hung_guest(
    fleet: &Fleet,
    guest: &mut Guest,
    phase: &str,
    host: &str,
) -> anyhow::Result<(Value, Duration)> {
    for _ in 0..ATTEMPTS_MAX {
        let job = guest.begin_move(fleet, "bravo", &["--max-blackout", BLACKOUT_MAX_MS]).await?;
        begins(fleet, "alpha", &job, "copy_memory").await?;
        let [(qemu, _)] = processes(fleet, host, "qemu-system")?[..] else { bail!("not one QEMU at {host}") };
        let qemu = i32::try_from(qemu).ok().and_then(Pid::from_raw).context("a process id")?;
        begins(fleet, "alpha", &job, phase).await?;
        kill_process(qemu, Signal::STOP)?;
        let since = Instant::now();
        fleet.sterna(&["job", "cancel", &job]).await?;
        if host == "alpha" {
            // The guest is to run on; the target's is killed as it is.
            let taken = format!("cancel accepted job={job}");
            fleet.agent(host)?.process().context("the agent runs")?.wait_for_line(&taken, WAIT).await?;
            kill_process(qemu, Signal::CONT)?;
        }
        let over = ended(fleet, &job, WAIT).await?;
        if last_begun(fleet, "alpha", &job)?.as_deref() == Some(phase) {
            return Ok((over, since.elapsed()));
        }
        eprintln!("{phase} was over before {host}'s QEMU hung: {}", over["state"]);
        ensure!(over["state"] == "terminated", "{over:#}");
    }
    bail!("{phase} was always over too soon")
}

async fn end_by_cancel(fleet: &Fleet, job: &str) -> anyhow::Result<(Value, Duration)> {
    let since = Instant::now();
    fleet.sterna(&["job", "cancel", job]).await?;
    let over = ended(fleet, job, WAIT).await?;
    Ok((over, since.elapsed()))
}

/// A cancel after the cede comes too late. The target's agent stands still meanwhile, so that the job is not over; and for so
/// long that the lanes are given up and the cede is repeated over NATS: whichever it reads first, it takes the guest.
async fn refused_after_the_cede(fleet: &mut Fleet, guest: &mut Guest) -> anyhow::Result<()> {
    let job = guest.begin_move(fleet, "bravo", &["--max-blackout", BLACKOUT_MAX_MS]).await?;
    begins(fleet, "alpha", &job, "ceding").await?;
    let target = fleet.agent("bravo")?.process().context("the target's agent runs")?;
    target.signal(Signal::STOP)?;
    let refused = refused_by_both(fleet, &job).await;
    let source = fleet.agent("alpha")?.process().context("the source's agent runs")?;
    let given_up = source.wait_for_line("the lane is down lane=0 reason=nothing was heard", WAIT).await;
    target.signal(Signal::CONT)?;
    refused?;
    given_up?;
    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "completed", "a move that was ceded is completed: {over:#}");
    let notices = over["notices"].to_string();
    ensure!(notices.contains("cancel refused: the VM has been offered to bravo"), "the agent says why: {notices}");
    guest.expect_whole().await
}

async fn refused_by_both(fleet: &Fleet, job: &str) -> anyhow::Result<()> {
    // The agent itself, past the coordinator, which would not let it through.
    let epoch = fleet.inventory("alpha").await?.epoch;
    fleet.command("alpha", epoch, &Command::Cancel { job: job.parse()? }).await?;
    let told = format!("cancel refused job={job}");
    fleet.agent("alpha")?.process().context("the source's agent runs")?.wait_for_line(&told, WAIT).await?;
    // What the coordinator knows comes by events; from then on it refuses by itself.
    let told = async {
        while fleet.sterna(&["job", "show", job]).await?["steps"]
            .as_array()
            .is_none_or(|steps| !steps.iter().any(|step| step["step"] == "handover" && step["state"] != "waiting"))
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(WAIT, told).await.context("the coordinator does not hear of the handover")??;
    let cancel = fleet.try_sterna(&["job", "cancel", job]).await?;
    let said = text(&cancel.stderr);
    ensure!(!cancel.status.success() && said.contains("cannot be called back"), "the coordinator refuses: {said}");
    eprintln!("after the cede: {said}");
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
