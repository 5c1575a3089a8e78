//! The matrix of faults: what becomes of a move when an agent dies or the link is cut, in each of its phases.
//!
//! ```text
//!   a guest moves ─▶ the phase begins ─▶ the fault ─▶ the agent is back, the link restored ─▶ settled? ─▶ looked over
//!                       (source's log)      └─ the agents are frozen while a link is cut, so that the phase is not over first
//! ```
//!
//! One guest goes through all cells of a run, each starting where the one before left it: what a fault leaves behind in
//! QEMU or in a journal is met by the next move.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use serde::Serialize;
use sterna_witness::protocol::DEFAULT_PORT;
use tokio::time::{Instant, sleep};

use crate::fleet::{Fleet, WitnessWish};
use crate::moves::{Guest, begins, ended, last_begun};
use crate::namespace::Link;
use crate::witness::Ticks;

/// How long a job may take to end once the fault is over.
const SETTLE_WAIT: Duration = Duration::from_secs(180);
/// How long what is left may take to go after that.
const CLEAN_WAIT: Duration = Duration::from_secs(30);
/// How long a killed agent stays away.
const AWAY: Duration = Duration::from_secs(2);
/// How far into a long phase the fault comes.
const INTO: Duration = Duration::from_millis(300);
/// The limit of a move's blackout: above what a busy machine needs, below the shorter cut.
const BLACKOUT_MAX_MS: &str = "4000";
/// That limit, and what it takes to let the guest go on and to hear of it on a busy machine.
const BLACKOUT_TAKEN_BACK_MS: u64 = 7000;
/// Attempts to do a fault in a phase that may be over sooner.
const ATTEMPTS_MAX: usize = 5;
/// Ticks that must have come before a move begins.
const TICKS_BEFORE: u64 = 50;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The source's agent is killed, and started again.
    SourceKilled,
    /// The target's agent is killed, and started again.
    TargetKilled,
    /// The target is unreachable for 5 s, over the data network and for the broker.
    LinkCut5s,
    /// The same for 60 s.
    LinkCut60s,
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The target makes images and starts its QEMU.
    Prepare,
    /// Disk passes.
    CopyDisks,
    /// Memory, and disk passes beside it.
    CopyMemory,
    /// The guest is paused: the last pass.
    Switchover,
    /// Digests are compared.
    Prove,
    /// QEMU sends the rest.
    Handover,
    /// The source has journalled that it may not run the guest any more. A part of the step `handover`.
    Ceded,
    /// The target's guest runs, and the source's goes with its images. The step `release` ends with it.
    Release,
}

/// What came of one fault in one phase.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// The step in which the fault was meant to come.
    pub phase: &'static str,
    /// Which moment of it, where it has several that matter.
    pub moment: &'static str,
    /// What happened.
    pub fault: Fault,
    /// The last step that had begun when it did, by the source's log.
    pub hit: Option<String>,
    /// How the job ended, and where the guest is.
    pub outcome: String,
    /// Hosts on which the guest executes in the end.
    pub owners: usize,
    /// Whether all settled without anybody's help.
    pub resolvable: bool,
    /// Acknowledged records that are gone.
    pub records_lost: u64,
    /// Whether it is the same run of the guest, with its memory as it should be.
    pub guest_sound: bool,
    /// The longest time without a tick of the guest.
    pub blackout_ms: u64,
    /// From the fault's end until the job was over.
    pub settled_s: f64,
    /// What is somewhere and should not be. Images that a host says it keeps for the guest's next move have their owner;
    /// the next cell's move takes them over.
    pub left_behind: Vec<String>,
    /// What operators were told.
    pub told: String,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::SourceKilled, Self::TargetKilled, Self::LinkCut5s, Self::LinkCut60s];
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Prepare,
        Self::CopyDisks,
        Self::CopyMemory,
        Self::Switchover,
        Self::Prove,
        Self::Handover,
        Self::Ceded,
        Self::Release,
    ];

    /// The step that it is, or is a part of.
    pub const fn step(self) -> &'static str {
        match self {
            Self::Ceded => "handover",
            Self::Release => "release",
            phase => phase.moment(),
        }
    }

    const fn moment(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::CopyDisks => "copy_disks",
            Self::CopyMemory => "copy_memory",
            Self::Switchover => "switchover",
            Self::Prove => "prove",
            Self::Handover => "handover",
            Self::Ceded => "ceding",
            Self::Release => "ceded",
        }
    }

    const fn is_long(self) -> bool {
        matches!(self, Self::CopyDisks | Self::CopyMemory)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SourceKilled => "source killed",
            Self::TargetKilled => "target killed",
            Self::LinkCut5s => "link cut 5 s",
            Self::LinkCut60s => "link cut 60 s",
        })
    }
}

impl Cell {
    /// Whether nobody came to harm, whatever became of the move, and the fault came where it was meant to.
    pub fn is_sound(&self) -> bool {
        self.amiss().is_none()
    }

    /// What is not as it must be; of several things the worst.
    pub fn amiss(&self) -> Option<String> {
        self.harm().or_else(|| self.miss())
    }

    fn harm(&self) -> Option<String> {
        [
            (self.owners != 1, "the guest does not execute on one host"),
            (self.records_lost > 0, "acknowledged records are gone"),
            (!self.guest_sound, "the guest is not what it was"),
            (!self.resolvable, "it did not settle by itself"),
            (!self.left_behind.is_empty(), "something is left behind"),
            (self.is_only_a_stall() && !self.outcome.starts_with("completed"), "a stall has cost the move"),
            (self.is_taken_back() && self.blackout_ms > BLACKOUT_TAKEN_BACK_MS, "the guest stood still for too long"),
        ]
        .into_iter()
        .find_map(|(is_so, what)| is_so.then(|| what.to_owned()))
    }

    /// A fault in another step than it was meant for says nothing about that one. What is meant for `release` comes as soon as
    /// the record says `ceded`, which is a moment before that step begins.
    fn miss(&self) -> Option<String> {
        let hit = self.hit.as_deref();
        let is_hit = hit == Some(self.phase) || (self.moment == Phase::Release.moment() && hit == Some("handover"));
        (!is_hit).then(|| format!("the fault came in {}, and not in {}", hit.unwrap_or("no step"), self.phase))
    }

    /// Before the cede a paused guest waits for a link no longer than the move's limit allows. The cede may be on its way
    /// by the time of the cut, whatever moment was meant: operators are told then that it is waited for.
    fn is_taken_back(&self) -> bool {
        matches!(self.fault, Fault::LinkCut5s | Fault::LinkCut60s)
            && !["ceding", "ceded"].contains(&self.moment)
            && !self.told.contains("the VM was offered to")
    }

    /// A short cut while things are copied costs time, and not the move.
    fn is_only_a_stall(&self) -> bool {
        self.fault == Fault::LinkCut5s && ["prepare", "copy_disks", "copy_memory"].contains(&self.moment)
    }

    /// The head of the table that cells are the lines of.
    pub fn head() -> String {
        format!(
            "{:<12} {:<14} {:<12} {:<22} {:>6} {:>5} {:>11} {:>9}  {}",
            "PHASE", "FAULT", "HIT", "OUTCOME", "OWNERS", "LOST", "BLACKOUT", "SETTLED", "LEFT BEHIND · TOLD"
        )
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            moment, fault, hit, outcome, owners, records_lost, blackout_ms, settled_s, left_behind, told, ..
        } = self;
        let left = if left_behind.is_empty() { "nothing".to_owned() } else { left_behind.join(", ") };
        let hit = hit.as_deref().unwrap_or("-");
        write!(
            f,
            "{moment:<12} {fault:<14} {hit:<12} {outcome:<22} {owners:>6} {records_lost:>5} {blackout_ms:>8} ms {settled_s:>7.1} s  {left} · {told}"
        )
    }
}

/// A fleet of two hosts with one guest, to which faults are done.
#[derive(Debug)]
pub struct Ordeal {
    /// The fleet.
    pub fleet: Fleet,
    /// The guest.
    pub guest: Guest,
}

impl Ordeal {
    /// Starts both.
    pub async fn start() -> anyhow::Result<Self> {
        let hosts = ["alpha", "bravo"];
        let mut fleet = Fleet::start(&hosts).await?;
        let wish = WitnessWish { memory_mib: 256, fill_mib: 96, ..WitnessWish::small("witness") };
        let guest = Guest::start(&mut fleet, hosts, &wish).await?;
        Ok(Self { fleet, guest })
    }

    /// One fault in one phase. Short phases are over at times before the fault is there: then it is done once more, a few times
    /// at most, unless something came to harm.
    ///
    /// # Errors
    /// The guest did not settle, or does not answer any more: the next cell has nothing to stand on.
    pub async fn suffer(&mut self, phase: Phase, fault: Fault) -> anyhow::Result<Cell> {
        let mut cell = self.attempt(phase, fault).await?;
        for _ in 1..ATTEMPTS_MAX {
            if cell.harm().is_some() || cell.miss().is_none() {
                break;
            }
            cell = self.attempt(phase, fault).await?;
        }
        Ok(cell)
    }

    async fn attempt(&mut self, phase: Phase, fault: Fault) -> anyhow::Result<Cell> {
        let Self { fleet, guest } = self;
        guest.hosts_online(fleet, SETTLE_WAIT).await?;
        let source = guest.settled_at(fleet, SETTLE_WAIT).await.context("before the fault")?;
        let target = guest.other(&source);
        // Of the last move it may have the record yet.
        guest.gone_from(fleet, target, SETTLE_WAIT).await.context("before the fault")?;
        let mut ticks = Ticks::listen(&fleet.client, guest.address, DEFAULT_PORT)?;
        ticks.wait_for(TICKS_BEFORE, SETTLE_WAIT).await?;

        let job = guest.begin_move(fleet, target, &["--max-blackout", BLACKOUT_MAX_MS]).await?;
        begins(fleet, &source, &job, phase.moment()).await?;
        if phase.is_long() {
            sleep(INTO).await;
        }
        let hit = inflict(fleet, &source, target, &job, fault).await?;

        let since = Instant::now();
        let over = ended(fleet, &job, SETTLE_WAIT).await;
        let settled_s = since.elapsed().as_secs_f64();
        let at = guest.settled_at(fleet, SETTLE_WAIT).await.context("after the fault")?;
        let left_behind = guest.left_without_owner(fleet, &at, CLEAN_WAIT).await?;
        let owners = guest.owners(fleet).await?;
        guest.goes_on().await?;
        let blackout = ticks.gaps().longest;
        let whole = guest.whole().await?;
        let place = if at == source { "at the source" } else { "at the target" };
        let state = match &over {
            Ok(job) => job["state"].as_str().unwrap_or("unknown").to_owned(),
            Err(_) => "unsettled".to_owned(),
        };
        let told = match &over {
            Ok(job) => told(job),
            Err(error) => format!("{error:#}").lines().next().unwrap_or_default().to_owned(),
        };
        Ok(Cell {
            phase: phase.step(),
            moment: phase.moment(),
            fault,
            hit,
            outcome: format!("{state} {place}"),
            owners,
            resolvable: over.is_ok(),
            records_lost: whole.records_lost,
            guest_sound: whole.sound && whole.faults.is_empty(),
            blackout_ms: u64::try_from(blackout.as_millis()).unwrap_or(u64::MAX),
            settled_s,
            left_behind,
            told,
        })
    }
}

/// Does the fault, and ends it. Gives back the last step that had begun at its start.
async fn inflict(
    fleet: &mut Fleet,
    source: &str,
    target: &str,
    job: &str,
    fault: Fault,
) -> anyhow::Result<Option<String>> {
    let (killed, cut) = match fault {
        Fault::SourceKilled => (Some(source), None),
        Fault::TargetKilled => (Some(target), None),
        Fault::LinkCut5s => (None, Some(Duration::from_secs(5))),
        Fault::LinkCut60s => (None, Some(Duration::from_secs(60))),
    };
    if let Some(host) = killed {
        fleet.kill_agent(host)?;
        let hit = last_begun(fleet, source, job)?;
        sleep(AWAY).await;
        fleet.start_agent(host).await?;
        return Ok(hit);
    }
    let signal = |host: &str, signal| -> anyhow::Result<()> {
        Ok(fleet.agent(host)?.process().context("the agent does not run")?.signal(signal)?)
    };
    signal(source, Signal::STOP)?;
    let hit = last_begun(fleet, source, job)?;
    let severed = fleet.agent(target)?.host.cut(Link::Data);
    signal(source, Signal::CONT)?;
    severed?;
    sleep(cut.unwrap_or_default()).await;
    fleet.agent(target)?.host.restore(Link::Data)?;
    Ok(hit)
}

/// The last words about a job: why it failed, or what was said on the way.
fn told(job: &serde_json::Value) -> String {
    let failure = &job["failure"];
    let words = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let notices = job["notices"].as_array().into_iter().flatten().map(|notice| words(&notice["text"]));
    let mut said: Vec<String> = notices.collect();
    if !failure.is_null() {
        said.push(format!(
            "{} ({}): {}",
            words(&failure["message"]),
            words(&failure["code"]),
            words(&failure["remedy"])
        ));
    }
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(phase: Phase, hit: Option<&str>) -> Cell {
        Cell {
            phase: phase.step(),
            moment: phase.moment(),
            fault: Fault::SourceKilled,
            hit: hit.map(str::to_owned),
            outcome: "completed at the target".to_owned(),
            owners: 1,
            resolvable: true,
            records_lost: 0,
            guest_sound: true,
            blackout_ms: 100,
            settled_s: 1.0,
            left_behind: vec![],
            told: String::new(),
        }
    }

    #[test]
    fn a_fault_counts_for_the_step_that_it_came_in_only() {
        for phase in Phase::ALL {
            assert!(cell(phase, Some(phase.step())).is_sound(), "{phase:?}");
        }
        assert!(cell(Phase::Release, Some("handover")).is_sound(), "release begins with the record");
        let late = cell(Phase::Prove, Some("release"));
        assert_eq!(late.amiss().as_deref(), Some("the fault came in release, and not in prove"));
        assert!(!cell(Phase::Prepare, None).is_sound(), "nothing had begun");
        assert!(!cell(Phase::Ceded, Some("release")).is_sound());
    }

    #[test]
    fn harm_is_told_before_a_miss() {
        let lost = Cell { records_lost: 1, ..cell(Phase::Prove, Some("release")) };
        assert_eq!(lost.amiss().as_deref(), Some("acknowledged records are gone"));
        let stalled = Cell {
            fault: Fault::LinkCut5s,
            outcome: "exception at the source".to_owned(),
            ..cell(Phase::CopyDisks, Some("copy_disks"))
        };
        assert_eq!(stalled.amiss().as_deref(), Some("a stall has cost the move"));
    }
}
