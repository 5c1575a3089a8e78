//! The bench: Sterna against what is there without it, on one machine, in one go, in turns.
//!
//! ```text
//!   one fleet:   alpha ═══ bravo     Sterna, as an operator runs it       each side has hosts of its own on the same
//!                peera ═══ peerb     QEMU by QMP · nbdcopy …              two bridges, so its processor time is its own
//!
//!   each case:   Sterna · peer · peer · peer · peer · Sterna · …          medians; a machine that is busy is so for all,
//!                                                                         and who comes first pays for what comes after
//! ```
//!
//! What is measured, on both sides alike:
//!
//! | case | Sterna | peer |
//! | --- | --- | --- |
//! | memory | from the step `copy_memory` to the end of `handover` | from `migrate` until the guest runs at the target |
//! | disk | from the step `copy_disks` to the end of `prove` | from the program's start to its end |
//! | blackout | the job's, from the pause until the source knows that the guest runs | QEMU's `downtime` |
//!
//! Left out is what comes before: processes that are started, connections that are made beforehand (Sterna's lanes; QEMU
//! connects within its time). Both sides' guests are there all the time, so each runs beside one idle guest.

mod disk_peers;
mod processor;
mod qemu_pair;
pub mod report;

use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use sterna_shared::job::{StepKind, StepState};
use sterna_shared::time::Timestamp;
use sterna_witness::pattern::Words;
use sterna_witness::protocol::{DEFAULT_PORT, TICK_MS};

use self::disk_peers::{DiskPeers, Program, out_of_cache};
use self::processor::Meter;
use self::qemu_pair::QemuPair;
use self::report::{Case, Missing, Report, Sample};
use crate::fleet::{Fleet, WitnessWish};
use crate::namespace::Host;
use crate::witness::{Ticks, Witness};

/// Runs of each side, where nobody says otherwise.
pub const RUNS_DEFAULT: usize = 5;
/// Names of the cases.
pub const CASES: [&str; 4] = ["memory", "disk", "blackout-idle", "blackout-busy"];

/// What both sides of `memory` carry, and what the guest has besides.
const MEMORY_MIB: u64 = 1024;
const MEMORY_BESIDES_MIB: u64 = 192;
/// The disk of `disk`: as large as this, with that much in it, in pieces that long.
const DISK_MIB: u64 = 4096;
const DATA_MIB: u64 = 1024;
const DATA_PIECE_MIB: u64 = 16;
/// The guest of the blackouts; the busy one rewrites memory and, where it has disks, writes records.
const BLACKOUT_MEMORY_MIB: u64 = 512;
const BLACKOUT_FILL_MIB: u64 = 256;
const BUSY_REWRITE_MIB: u64 = 16;
const BUSY_RECORDS: u64 = 50;
/// The longest blackout before a move gives up: what is measured must not be cut off.
const BLACKOUT_MAX_MS: &str = "30000";
/// How long a guest may take to be heard.
const TICKS_WAIT: Duration = Duration::from_secs(60);
/// Ticks heard before a move and after it.
const TICKS_AROUND: u64 = 100;
const TICK: Duration = Duration::from_millis(TICK_MS);

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Runs of each side.
    pub runs: usize,
    /// Only the cases whose name contains this.
    pub case: String,
    /// Lanes of Sterna, and multifd channels of QEMU.
    pub lanes: u8,
}

/// A fleet, and the peers' hosts. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Bench {
    fleet: Fleet,
    peers: [Host; 2],
    parameters: Parameters,
}

impl Bench {
    /// Starts the fleet and makes the peers' hosts.
    ///
    /// # Errors
    /// Whatever could not be started, and why.
    pub async fn start(parameters: Parameters) -> anyhow::Result<Self> {
        let mut fleet = Fleet::start(&["alpha", "bravo"]).await?;
        let peers = [fleet.network.host("peera")?, fleet.network.host("peerb")?];
        Ok(Self { fleet, peers, parameters })
    }

    /// Runs a case, each side in turn, and puts what was found into `report`. `say` is told how each run went.
    ///
    /// # Errors
    /// A side fails: what was found before is in the report.
    pub async fn case(&mut self, case: &str, report: &mut Report, say: impl Fn(&str)) -> anyhow::Result<()> {
        match case {
            "memory" => self.memory(report, say).await,
            "disk" => self.disk(report, say).await,
            "blackout-idle" => self.blackout(case, false, report, say).await,
            "blackout-busy" => self.blackout(case, true, report, say).await,
            other => anyhow::bail!("there is no case {other}; there are {CASES:?}"),
        }
    }

    /// The cases that were asked for.
    #[must_use]
    pub fn cases(&self) -> Vec<&'static str> {
        CASES.into_iter().filter(|case| case.contains(&self.parameters.case)).collect()
    }

    /// The last lines of every part's log.
    #[must_use]
    pub fn logs(&self) -> String {
        self.fleet.logs()
    }

    async fn memory(&mut self, report: &mut Report, say: impl Fn(&str)) -> anyhow::Result<()> {
        let guest = WitnessWish {
            lockstep: false,
            guest_agent: false,
            freeze_ms: None,
            name: "memory",
            memory_mib: MEMORY_MIB + MEMORY_BESIDES_MIB,
            fill_mib: MEMORY_MIB,
            rewrite_mib: 0,
            vcpus: 1,
            records: 0,
            disks: Vec::new(),
            ballast: Vec::new(),
        };
        let peers = [("qemu-multifd-tls", true), ("qemu-multifd", false)];
        let measured = "all of the guest's memory, from the beginning of its copy until the guest runs at the target";
        self.guests(&guest, &guest, &peers, ("memory", measured, false), report, say).await
    }

    async fn blackout(
        &mut self,
        case: &str,
        busy: bool,
        report: &mut Report,
        say: impl Fn(&str),
    ) -> anyhow::Result<()> {
        let peer = WitnessWish {
            lockstep: false,
            guest_agent: false,
            freeze_ms: None,
            name: if busy { "busy" } else { "idle" },
            memory_mib: BLACKOUT_MEMORY_MIB,
            fill_mib: BLACKOUT_FILL_MIB,
            rewrite_mib: if busy { BUSY_REWRITE_MIB } else { 0 },
            vcpus: 1,
            records: 0,
            disks: Vec::new(),
            ballast: Vec::new(),
        };
        let disks = vec![("root", "fast", "raw", 256), ("data", "bulk", "qcow2", 256)];
        // At least one a second: the witness knows no disk without records.
        let guest = WitnessWish { records: if busy { BUSY_RECORDS } else { 1 }, disks, ..peer.clone() };
        let measured = "how long the guest stood still: Sterna with two disks, from the pause until the source knows \
                        that the guest runs at the target; QEMU with memory alone, by its own count (downtime)";
        self.guests(&guest, &peer, &[("qemu-multifd-tls", true)], (case, measured, true), report, say).await
    }

    /// A guest that Sterna moves against one that QEMU moves; for a peer, whether it encrypts.
    async fn guests(
        &mut self,
        guest: &WitnessWish,
        peer: &WitnessWish,
        peers: &[(&str, bool)],
        (case, measured, blackout): (&str, &str, bool),
        report: &mut Report,
        say: impl Fn(&str),
    ) -> anyhow::Result<()> {
        let address = self.fleet.start_witness("alpha", guest).await?;
        let mut pair = QemuPair::start(&mut self.fleet, self.peers.clone(), peer).await?;
        let mut sterna = Vec::new();
        let mut theirs = vec![Vec::new(); peers.len()];
        let mut here = "alpha";
        for run in 1..=self.parameters.runs {
            for turn in turns(run, peers.len()) {
                let Some(peer) = turn else {
                    let there = other(here);
                    let sample = self.sterna_live(guest.name, there, address, blackout).await?;
                    here = there;
                    say(&line(case, run, "sterna", sample));
                    sterna.push(sample);
                    continue;
                };
                let (name, tls) = peers[peer];
                let sample = pair.migrate(&self.fleet, self.parameters.lanes, tls, blackout).await?;
                say(&line(case, run, name, sample));
                theirs[peer].push(sample);
            }
        }
        for (samples, (name, _)) in theirs.iter().zip(peers) {
            report.cases.extend(Case::of(case, name, measured, &sterna, samples));
        }
        // Figures of moves that lose something are worth nothing.
        for mut witness in
            [Witness::connect(&self.fleet.client, address, DEFAULT_PORT).await?, pair.witness(&self.fleet).await?]
        {
            let found = witness.verify().await?;
            ensure!(found.memory.mismatches == 0 && found.memory.checked > 0, "{case}: memory is damaged: {found:?}");
            ensure!(found.disks.iter().all(|disk| disk.mismatches == 0), "{case}: records are lost: {found:?}");
        }
        drop(pair);
        self.fleet.sterna(&["vm", "stop", guest.name, "--force"]).await?;
        self.fleet.sterna(&["vm", "delete", guest.name]).await?;
        Ok(())
    }

    async fn sterna_live(&self, vm: &str, target: &str, address: Ipv4Addr, blackout: bool) -> anyhow::Result<Sample> {
        let outside = if blackout { Some(OutsideView::open(&self.fleet, address).await?) } else { None };
        let (job, cpu_seconds) = self.migrate(vm, target).await?;
        let outside_seconds = match outside {
            Some(outside) => Some(outside.close().await?),
            None => None,
        };
        let seconds = match blackout {
            true => job.blackout_ms.context("the job does not say how long the guest stood still")? / 1000.0,
            false => job.seconds(StepKind::CopyMemory, StepKind::Handover)?,
        };
        Ok(Sample { seconds, cpu_seconds, outside_seconds })
    }

    /// Has Sterna move a VM; gives back the job and the processor time of both hosts.
    async fn migrate(&self, vm: &str, target: &str) -> anyhow::Result<(Job, f64)> {
        let hosts = [&self.fleet.agent("alpha")?.host, &self.fleet.agent("bravo")?.host];
        let meter = Meter::start(&hosts)?;
        let lanes = self.parameters.lanes.to_string();
        let arguments = ["migrate", vm, "--to", target, "--max-blackout", BLACKOUT_MAX_MS, "--lanes", &lanes];
        let shown = self.fleet.sterna(&arguments).await?;
        let cpu_seconds = meter.stop().await?;
        ensure!(shown["state"] == "completed", "the move of {vm} to {target} is {}: {shown:#}", shown["state"]);
        Ok((serde_json::from_value(shown)?, cpu_seconds))
    }

    async fn disk(&mut self, report: &mut Report, say: impl Fn(&str)) -> anyhow::Result<()> {
        let wish = WitnessWish {
            lockstep: false,
            guest_agent: false,
            freeze_ms: None,
            name: "disk",
            memory_mib: BLACKOUT_MEMORY_MIB,
            fill_mib: 0,
            rewrite_mib: 0,
            vcpus: 1,
            records: 1,
            disks: vec![("root", "fast", "raw", DISK_MIB)],
            ballast: Vec::new(),
        };
        let address = self.fleet.network.guest_address();
        self.fleet.define("alpha", wish.name, &wish.specification(address)?).await?;
        let image = self.image("alpha")?;
        fill(&image)?;
        let folder = self.fleet.folder().join("peers");
        std::fs::create_dir_all(&folder)?;
        let source = folder.join("source.raw");
        copy_sparse(&image, &source)?;
        let (programs, missing): (Vec<Program>, Vec<Program>) =
            Program::ALL.into_iter().partition(|program| program.lacks().is_none());
        report.missing.extend(missing.into_iter().filter_map(|program| {
            Some(Missing { case: "disk".to_owned(), peer: program.name().to_owned(), why: program.lacks()? })
        }));
        let mut peers = DiskPeers::new(self.peers.clone(), &folder, source.clone(), DISK_MIB << 20)?;

        let mut sterna = Vec::new();
        let mut theirs = vec![Vec::new(); programs.len()];
        let mut here = "alpha";
        for run in 1..=self.parameters.runs {
            for turn in turns(run, programs.len()) {
                let Some(peer) = turn else {
                    let there = other(here);
                    out_of_cache(&self.image(here)?)?;
                    let (job, cpu_seconds) = self.migrate(wish.name, there).await?;
                    let seconds = job.seconds(StepKind::CopyDisks, StepKind::Prove)?;
                    here = there;
                    let sample = Sample { seconds, cpu_seconds, outside_seconds: None };
                    say(&line("disk", run, "sterna", sample));
                    sterna.push(sample);
                    continue;
                };
                out_of_cache(&source)?;
                let sample = peers.copy(programs[peer]).await?;
                say(&line("disk", run, programs[peer].name(), sample));
                theirs[peer].push(sample);
            }
        }
        let measured = "a raw image of 4 GiB with 1 GiB of data, in no cache, from the beginning of its copy until it is \
                        whole and flushed at the other host; Sterna's is encrypted and proven, rsync's encrypted";
        for (samples, program) in theirs.iter().zip(&programs) {
            report.cases.extend(Case::of("disk", program.name(), measured, &sterna, samples));
        }
        self.fleet.sterna(&["vm", "delete", wish.name]).await?;
        std::fs::remove_dir_all(&folder)?;
        Ok(())
    }

    /// The one image of the VM on a host.
    fn image(&self, host: &str) -> anyhow::Result<PathBuf> {
        let agent = self.fleet.agent(host)?;
        let files = agent.files("fast");
        ensure!(files.len() == 1, "one image was expected at {host}: {files:?}");
        Ok(agent.pool("fast").join(&files[0]))
    }
}

/// A guest's ticks, heard from outside while it moves.
#[derive(Debug)]
struct OutsideView {
    ticks: Ticks,
}

impl OutsideView {
    async fn open(fleet: &Fleet, address: Ipv4Addr) -> anyhow::Result<Self> {
        let mut ticks = Ticks::listen(&fleet.client, address, DEFAULT_PORT)?;
        ticks.wait_for(TICKS_AROUND, TICKS_WAIT).await?;
        Ok(Self { ticks })
    }

    /// The longest silence, less what lies between two ticks anyway.
    async fn close(mut self) -> anyhow::Result<f64> {
        let count = self.ticks.gaps().count;
        let gaps = self.ticks.wait_for(count + TICKS_AROUND, TICKS_WAIT).await?;
        Ok(gaps.longest.saturating_sub(TICK).as_secs_f64())
    }
}

/// A job as `sterna migrate --output json` prints it; of that, what is measured.
#[derive(Debug, Clone, Deserialize)]
struct Job {
    blackout_ms: Option<f64>,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Deserialize)]
struct Step {
    step: StepKind,
    state: StepState,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

impl Job {
    /// From the beginning of one step to the end of another.
    fn seconds(&self, first: StepKind, last: StepKind) -> anyhow::Result<f64> {
        let step = |kind| {
            let found = self.steps.iter().find(|step| step.step == kind && step.state == StepState::Finished);
            found.with_context(|| format!("the job has no finished step {kind}"))
        };
        let begun = step(first)?.started_at.with_context(|| format!("{first} does not say when it began"))?;
        let ended = step(last)?.finished_at.with_context(|| format!("{last} does not say when it ended"))?;
        Ok(ended.seconds_since(begun))
    }
}

fn other(host: &str) -> &'static str {
    if host == "alpha" { "bravo" } else { "alpha" }
}

/// Whose turn it is in a run: Sterna's is none, a peer's is its place. The order turns round with the runs, since it counts:
/// who runs after a guest has ended finds memory that is still there.
fn turns(run: usize, peers: usize) -> impl Iterator<Item = Option<usize>> {
    (0..=peers).map(move |turn| ((turn + run - 1) % (peers + 1)).checked_sub(1))
}

fn line(case: &str, run: usize, who: &str, sample: Sample) -> String {
    let outside =
        sample.outside_seconds.map_or_else(String::new, |seconds| format!(", seen {:.0} ms", seconds * 1000.0));
    format!("{case} {run}: {who:<18} {:.3} s, CPU {:.2} s{outside}", sample.seconds, sample.cpu_seconds)
}

/// Puts what does not compress into a sparse image, in pieces with holes between them.
fn fill(image: &Path) -> anyhow::Result<()> {
    let mut file = std::fs::File::options().write(true).open(image)?;
    let pieces = DATA_MIB / DATA_PIECE_MIB;
    let mut bytes = Vec::with_capacity(usize::try_from(DATA_PIECE_MIB << 20)?);
    for piece in 0..pieces {
        bytes.clear();
        let words = Words::new(piece, 0, 0).take(bytes.capacity() / 8);
        words.for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        file.seek(SeekFrom::Start((piece * (DISK_MIB / pieces)) << 20))?;
        file.write_all(&bytes)?;
    }
    file.sync_all()?;
    Ok(())
}

fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = std::process::Command::new("cp").arg("--sparse=always").arg(from).arg(to).status()?;
    ensure!(status.success(), "{} cannot be copied", from.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_is_measured_from_the_beginning_of_one_step_to_the_end_of_another() {
        let step = |name: &str, from: &str, to: &str| {
            let at = |second: &str| format!("2026-11-21T22:26:{second}Z");
            json!({ "step": name, "state": "finished", "started_at": at(from), "finished_at": at(to) })
        };
        let steps = [step("copy_disks", "40.0", "42.0"), step("prove", "42.1", "42.25")];
        let job: Job = serde_json::from_value(json!({ "blackout_ms": 1.5, "steps": steps })).expect("a job");
        assert_eq!(job.seconds(StepKind::CopyDisks, StepKind::Prove).expect("seconds"), 2.25);
        assert!(job.seconds(StepKind::CopyDisks, StepKind::Handover).is_err());
    }

    #[test]
    fn everybody_has_one_turn_a_run_and_all_are_first_in_turn() {
        let runs: Vec<Vec<Option<usize>>> = (1..=4).map(|run| turns(run, 2).collect()).collect();
        assert_eq!(runs[0], [None, Some(0), Some(1)]);
        assert_eq!(runs[1], [Some(0), Some(1), None]);
        assert_eq!(runs[2], [Some(1), None, Some(0)]);
        assert_eq!(runs[3], runs[0]);
    }

    #[test]
    fn an_image_is_filled_as_far_as_it_should_be_and_no_further() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(DISK_MIB << 20).expect("room");
        fill(file.path()).expect("filled");
        let metadata = file.as_file().metadata().expect("metadata");
        assert_eq!(metadata.len(), DISK_MIB << 20);
        let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert_eq!(allocated >> 20, DATA_MIB);
    }
}
