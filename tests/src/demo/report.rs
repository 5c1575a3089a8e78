//! What the demo found, for programs and for people.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{JobState, StepKind, StepState};
use sterna_shared::time::Timestamp;
use sterna_shared::units::ByteCount;

/// The width of the names before the columns.
const NAMES_WIDTH: usize = 24;
/// The least width of a column.
const COLUMN_WIDTH: usize = 16;

/// What the demo found: `target/demo/report.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The moves, in the order in which they were made.
    pub moves: Vec<MoveReport>,
}

/// One move: what Sterna, QEMU and the guest say of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MoveReport {
    /// The job.
    pub job: JobId,
    /// The host the guest ran on before.
    pub source: HostId,
    /// The host it was to run on.
    pub target: HostId,
    /// How the job ended.
    pub state: JobState,
    /// From the operator's request to the job's end, in seconds; `null` for a job that has not ended.
    pub seconds: Option<f64>,
    /// How long the guest was not to be heard, in milliseconds, measured from outside: the longest time between two of
    /// its datagrams during the move, less the 5 ms that lie between two anyway.
    pub blackout_ms_guest: f64,
    /// The same as the source's QEMU counts it (`downtime` of `query-migrate`): from the pause of the guest to when all
    /// of it was sent, and not to when it executes at the target. `null` where the job does not carry it.
    pub blackout_ms_qemu: Option<u64>,
    /// Bytes of memory that were put on the link, in all steps.
    pub memory_bytes_sent: u64,
    /// Bytes of disk content that were put on the link, in all steps.
    pub disk_bytes_sent: u64,
    /// Whether both hosts' digests of every disk were found equal: the step `prove` finished.
    pub disk_digests_equal: bool,
    /// What the guest itself proves after the move.
    pub witness: WitnessReport,
}

/// What the witness says once the move is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WitnessReport {
    /// Whether all of its memory is what it wrote.
    pub memory_ok: bool,
    /// Records that the client saw acknowledged since the guest was booted, of all disks.
    pub records_acknowledged: u64,
    /// Acknowledged records that are not on their disk, or not whole.
    pub records_lost: u64,
    /// Whether it is the very run of the guest that was started at the beginning.
    pub boot_id_same: bool,
    /// Whether the TCP session that was opened before the first move went on after this one, with every line in its
    /// place.
    pub tcp_session_survived: bool,
    /// The longest time between two ticks on a TCP session that was opened just before the move, in milliseconds.
    pub longest_gap_ms: f64,
}

/// A job as `sterna job show --output json` prints it; of that, what the report needs.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Job {
    pub(super) job: JobId,
    pub(super) source: HostId,
    pub(super) target: HostId,
    pub(super) state: JobState,
    hypervisor_blackout_ms: Option<u64>,
    steps: Vec<Step>,
    submitted_at: Timestamp,
    finished_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Deserialize)]
struct Step {
    step: StepKind,
    state: StepState,
    bytes_sent: u64,
}

impl MoveReport {
    pub(super) fn new(job: Job, blackout_ms_guest: f64, witness: WitnessReport) -> Self {
        let sent = |kinds: &[StepKind]| -> u64 {
            job.steps.iter().filter(|step| kinds.contains(&step.step)).map(|step| step.bytes_sent).sum()
        };
        let proven = |step: &Step| step.step == StepKind::Prove && step.state == StepState::Finished;
        Self {
            seconds: job.finished_at.map(|finished| finished.seconds_since(job.submitted_at)),
            blackout_ms_guest,
            blackout_ms_qemu: job.hypervisor_blackout_ms,
            memory_bytes_sent: sent(&[StepKind::CopyMemory, StepKind::Handover]),
            disk_bytes_sent: sent(&[StepKind::CopyDisks, StepKind::Switchover]),
            disk_digests_equal: job.steps.iter().any(proven),
            witness,
            job: job.job,
            source: job.source,
            target: job.target,
            state: job.state,
        }
    }

    /// Everything about the move that is not as it must be. Empty is good.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let witness = &self.witness;
        let must = [
            (self.state == JobState::Completed, format!("the job ended as {}", self.state)),
            (self.disk_digests_equal, "the disks were not proven equal".to_owned()),
            (witness.memory_ok, "the guest's memory is damaged".to_owned()),
            (witness.records_acknowledged > 0, "the guest acknowledged no record".to_owned()),
            (witness.records_lost == 0, format!("{} acknowledged records are lost", witness.records_lost)),
            (witness.boot_id_same, "the guest was started anew".to_owned()),
            (witness.tcp_session_survived, "the TCP session did not survive".to_owned()),
        ];
        let broken = must.into_iter().filter(|(kept, _)| !kept);
        broken.map(|(_, fault)| format!("{} → {}: {fault}", self.source, self.target)).collect()
    }
}

impl Report {
    /// Everything that is not as it must be, `expected` being the number of moves. Empty is good.
    #[must_use]
    pub fn faults(&self, expected: usize) -> Vec<String> {
        let mut faults: Vec<String> = self.moves.iter().flat_map(MoveReport::faults).collect();
        if self.moves.len() != expected {
            faults.push(format!("{} of {expected} moves were made", self.moves.len()));
        }
        faults
    }

    /// A table with a column for each move.
    #[must_use]
    pub fn table(&self) -> String {
        type Cell = fn(&MoveReport) -> String;
        let rows: [(&str, Cell); 14] = [
            ("", |one| format!("{} → {}", one.source, one.target)),
            ("job", |one| one.state.to_string()),
            ("time", |one| one.seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"))),
            ("blackout, seen outside", |one| format!("{:.0} ms", one.blackout_ms_guest)),
            ("blackout, QEMU's count", |one| {
                one.blackout_ms_qemu.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"))
            }),
            ("memory sent", |one| ByteCount(one.memory_bytes_sent).to_string()),
            ("disk content sent", |one| ByteCount(one.disk_bytes_sent).to_string()),
            ("disk digests", |one| word(one.disk_digests_equal, "equal", "NOT PROVEN")),
            ("guest memory", |one| word(one.witness.memory_ok, "whole", "DAMAGED")),
            ("records acknowledged", |one| one.witness.records_acknowledged.to_string()),
            ("records lost", |one| one.witness.records_lost.to_string()),
            ("guest", |one| word(one.witness.boot_id_same, "the same run", "STARTED ANEW")),
            ("TCP session", |one| word(one.witness.tcp_session_survived, "survived", "BROKEN")),
            ("longest gap in it", |one| format!("{:.0} ms", one.witness.longest_gap_ms)),
        ];
        let mut text = String::new();
        for (name, cell) in rows {
            let _ = write!(text, "{name:<NAMES_WIDTH$}");
            for one in &self.moves {
                let _ = write!(text, "  {:>COLUMN_WIDTH$}", cell(one));
            }
            text.push('\n');
        }
        text
    }
}

fn word(good: bool, yes: &str, no: &str) -> String {
    if good { yes } else { no }.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(state: &str, prove: &str) -> Job {
        serde_json::from_value(json!({
            "job": "0197c0de-0000-7000-8000-00000000000a", "source": "alpha", "target": "bravo", "state": state,
            "steps": [
                { "step": "copy_disks", "state": "finished", "bytes_sent": 1000 },
                { "step": "copy_memory", "state": "finished", "bytes_sent": 200 },
                { "step": "switchover", "state": "finished", "bytes_sent": 30 },
                { "step": "prove", "state": prove, "bytes_sent": 0 },
                { "step": "handover", "state": "finished", "bytes_sent": 4 },
            ],
            "hypervisor_blackout_ms": 41, "percent": 100.0,
            "submitted_at": "2026-11-21T22:26:40.000000Z", "finished_at": "2026-11-21T22:26:52.500000Z",
        }))
        .expect("a job")
    }

    fn sound() -> MoveReport {
        let witness = WitnessReport {
            memory_ok: true,
            records_acknowledged: 900,
            records_lost: 0,
            boot_id_same: true,
            tcp_session_survived: true,
            longest_gap_ms: 80.0,
        };
        MoveReport::new(job("completed", "finished"), 55.5, witness)
    }

    #[test]
    fn a_sound_move_has_no_fault_and_its_figures_are_the_job_s() {
        let one = sound();
        assert_eq!((one.memory_bytes_sent, one.disk_bytes_sent, one.seconds), (204, 1030, Some(12.5)));
        assert_eq!((one.blackout_ms_qemu, one.disk_digests_equal), (Some(41), true));
        assert_eq!(one.faults(), Vec::<String>::new());
        let report = Report { moves: vec![one] };
        assert_eq!(report.faults(1), Vec::<String>::new());
        assert_eq!(report.faults(2), ["1 of 2 moves were made"]);
        let table = report.table();
        assert!(table.contains("alpha → bravo") && table.contains("41 ms") && table.contains("56 ms"), "{table}");
    }

    #[test]
    fn whatever_is_not_as_it_must_be_is_a_fault() {
        let spoilt: [fn(&mut MoveReport); 8] = [
            |one| one.state = JobState::Exception,
            |one| one.disk_digests_equal = false,
            |one| one.witness.memory_ok = false,
            |one| one.witness.records_acknowledged = 0,
            |one| one.witness.records_lost = 1,
            |one| one.witness.boot_id_same = false,
            |one| one.witness.tcp_session_survived = false,
            |one| *one = MoveReport::new(job("completed", "running"), 1.0, one.witness.clone()),
        ];
        for spoil in spoilt {
            let mut one = sound();
            spoil(&mut one);
            assert_eq!(one.faults().len(), 1, "{one:?}");
        }
    }
}
