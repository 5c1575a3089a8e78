//! Commands past the coordinator, as one would give them that no longer leads or does not know what it has said already:
//! an older epoch or generation is refused, and what is said twice is done once.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sterna_shared::bus::{AgentReply, AgentRequest, Command};
use sterna_shared::host::VmState;
use sterna_shared::id::{Epoch, Generation, JobId};
use sterna_shared::job::Plan;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins, ended, processes};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{eventually, on_fleet};
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(120);
/// So slow that the move is in hand while commands about it come.
const SLOW_MEGABITS: u32 = 40;
/// On a link that is full the last of the memory waits behind what is on its way.
const BLACKOUT_MAX_MS: &str = "30000";

#[tokio::test]
async fn old_commands_are_refused_and_repeated_ones_change_nothing() {
    on_fleet(old_and_repeated).await;
}

async fn old_and_repeated(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    let job = guest.begin_move(fleet, "bravo", &["--max-blackout", BLACKOUT_MAX_MS]).await?;
    begins(fleet, "alpha", &job, "copy_disks").await?;
    let plan = fleet.plan_of("alpha", job.parse()?)?;
    let epoch = fleet.inventory("alpha").await?.epoch;
    ensure!(epoch > Epoch(0), "a coordinator has led");
    for host in ["alpha", "bravo"] {
        repeated(fleet, host, epoch, &plan).await?;
    }
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "completed", "the move took notice: {over:#}");

    // Now that it is over, and the guest elsewhere, the plan means harm: it is known, and over.
    for host in ["alpha", "bravo"] {
        repeated(fleet, host, epoch, &plan).await?;
    }
    ensure!(guest.settled_at(fleet, WAIT).await? == "bravo", "the guest is elsewhere");
    older_generation(fleet, epoch, &plan).await?;
    let left = guest.left_behind(fleet, "bravo", WAIT).await?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(guest.owners(fleet).await? == 1, "the guest executes at one place");
    guest.expect_whole().await?;
    // Nobody is the worse for it.
    guest.move_to(fleet, "alpha").await?;
    guest.expect_whole().await
}

/// The plan once more, and then a cancel by a coordinator of an earlier epoch. Commands are taken in order, so that both
/// were taken once the second is refused.
async fn repeated(fleet: &Fleet, host: &str, epoch: Epoch, plan: &Plan) -> anyhow::Result<()> {
    let log = || anyhow::Ok(std::fs::read_to_string(fleet.agent(host)?.log())?);
    let refusal = format!("no longer leads is refused job={}", plan.job);
    let refusals = |log: &str| log.lines().filter(|line| line.contains(&refusal)).count();
    let before = log()?;
    fleet.command(host, epoch, &Command::Run { plan: Box::new(plan.clone()) }).await?;
    fleet.command(host, Epoch(epoch.0 - 1), &Command::Cancel { job: plan.job }).await?;
    let refused = || async { Ok((refusals(&log()?) > refusals(&before)).then_some(())) };
    eventually("the refusal of an older epoch", WAIT, refused).await?;
    let begun = format!("step begins job={} step=prepare", plan.job);
    let begun = log()?.lines().filter(|line| line.contains(&begun)).count();
    ensure!(begun <= 1, "{host} began {begun} times");
    ensure!(!log()?.contains(&format!("cancel accepted job={}", plan.job)), "{host} has taken the cancel");
    Ok(())
}

/// A plan of its own, made when the VM was of another generation, and still at alpha.
async fn older_generation(fleet: &Fleet, epoch: Epoch, plan: &Plan) -> anyhow::Result<()> {
    let now = fleet.inventory("bravo").await?;
    let owned = now.vms.iter().find(|vm| vm.spec.id == plan.vm.id).context("bravo has the VM")?;
    ensure!(owned.generation > plan.generation, "a move raises the generation");
    for (source, target, generation) in [
        ("bravo", "alpha", plan.generation),
        ("bravo", "alpha", Generation(owned.generation.0 + 1)),
        ("alpha", "bravo", plan.generation),
    ] {
        let (there, here) = if source == "alpha" {
            (plan.source.clone(), plan.target.clone())
        } else {
            (plan.target.clone(), plan.source.clone())
        };
        let job = JobId::from_uuid(Uuid::now_v7());
        let stale = Plan { job, generation, source: there, target: here, vm: owned.spec.clone(), ..plan.clone() };
        fleet.command(source, epoch, &Command::Run { plan: Box::new(stale) }).await?;
        let over = ended(fleet, &job.to_string(), WAIT).await?;
        ensure!(
            over["state"] == "exception" && over["failure"]["code"] == "plan_stale",
            "{source} to {target} at generation {generation}: {over:#}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_left_alone_until_it_does() {
    on_fleet(out_of_reach).await;
}

/// An agent starts while the guest's QEMU hangs: the VM is this host's all the same, and nobody takes it on anew.
async fn out_of_reach(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
    let record = fleet.inventory("alpha").await?.vms.pop().context("alpha has the VM")?;
    let [(qemu, _)] = processes(fleet, "alpha", "qemu-system")?[..] else { bail!("not one QEMU at alpha") };
    let qemu = i32::try_from(qemu).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(qemu, Signal::STOP)?;
    fleet.replace_agent("alpha").await?;

    let told = fleet.inventory("alpha").await?.vms.pop().context("alpha has the VM still")?;
    ensure!((told.generation, told.owned, told.state) == (record.generation, true, VmState::Failed), "{told:?}");
    for request in [
        AgentRequest::VmDefine { spec: Box::new(record.spec.clone()) },
        AgentRequest::VmStart { vm: record.id() },
        AgentRequest::VmDelete { vm: record.id(), delete_disks: true },
    ] {
        let reply = fleet.ask_agent("alpha", &request).await?;
        let AgentReply::Error { error } = &reply else { bail!("{request:?}: {reply:?}") };
        ensure!(error.message.contains("does not answer") && !error.hints.is_empty(), "{request:?}: {error:?}");
    }

    kill_process(qemu, Signal::CONT)?;
    let kept = async || {
        let told = fleet.inventory("alpha").await?.vms.pop().context("alpha has the VM still")?;
        Ok((told.state == VmState::Running).then_some(told))
    };
    let told = eventually("the VM is kept again", WAIT, kept).await?;
    ensure!((told.generation, told.owned) == (record.generation, true), "{told:?}");
    guest.expect_whole().await?;
    guest.move_to(fleet, "bravo").await?;
    guest.expect_whole().await
}
