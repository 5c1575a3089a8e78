//! What the bench found, for programs and for people, and the arithmetic of it.

use std::fmt::Write as _;

use serde::Serialize;

/// The width of the case's and the peer's column.
const NAME_WIDTH: usize = 18;
/// The width of a column of figures.
const FIGURE_WIDTH: usize = 13;

/// One run of one side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// What the case measures, in seconds.
    pub seconds: f64,
    /// Processor time of every process of that side on both hosts, from before the run to after it.
    pub cpu_seconds: f64,
    /// For a blackout: how long the guest was not to be heard from outside.
    pub outside_seconds: Option<f64>,
}

/// A case against one peer: medians over the runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// What was measured: `memory`, `disk`, `blackout-idle`, `blackout-busy`.
    pub case: String,
    /// Against whom: `qemu-multifd-tls`, `qemu-multifd`, `nbdcopy`, `qemu-img`, `rsync-ssh`.
    pub peer: String,
    /// What `sterna_seconds` and `peer_seconds` are, in words.
    pub measured: String,
    /// How many runs each side made.
    pub runs: usize,
    /// Sterna's median.
    pub sterna_seconds: f64,
    /// The peer's median.
    pub peer_seconds: f64,
    /// Peer by Sterna: above 1 where Sterna is faster.
    pub ratio: f64,
    /// The median of Sterna's processor time.
    pub sterna_cpu_seconds: f64,
    /// The median of the peer's processor time.
    pub peer_cpu_seconds: f64,
    /// Sterna's least and most.
    pub sterna_range: [f64; 2],
    /// The peer's least and most.
    pub peer_range: [f64; 2],
    /// The median blackout of Sterna's moves as seen from outside; `null` where nobody looked.
    pub sterna_outside_seconds: Option<f64>,
    /// The peer's.
    pub peer_outside_seconds: Option<f64>,
}

/// A case that could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The case.
    pub case: String,
    /// The peer.
    pub peer: String,
    /// Why.
    pub why: String,
}

/// All that was found: `target/bench/report.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// What was measured.
    pub cases: Vec<Case>,
    /// What was not. Nothing is made up for it.
    pub missing: Vec<Missing>,
}

/// The middle of some numbers, or the mean of the two in the middle; none of none.
#[must_use]
pub fn median(numbers: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    let upper = *numbers.get(middle)?;
    Some(if numbers.len() % 2 == 1 { upper } else { f64::midpoint(numbers[middle - 1], upper) })
}

impl Case {
    /// A case from its runs; none where one of the sides has no run.
    #[must_use]
    pub fn of(case: &str, peer: &str, measured: &str, sterna: &[Sample], theirs: &[Sample]) -> Option<Self> {
        let seconds = |samples: &[Sample]| median(samples.iter().map(|sample| sample.seconds));
        let cpu = |samples: &[Sample]| median(samples.iter().map(|sample| sample.cpu_seconds));
        let outside = |samples: &[Sample]| median(samples.iter().filter_map(|sample| sample.outside_seconds));
        let range = |samples: &[Sample]| {
            let numbers = || samples.iter().map(|sample| sample.seconds);
            [numbers().fold(f64::INFINITY, f64::min), numbers().fold(0.0, f64::max)]
        };
        let (sterna_seconds, peer_seconds) = (seconds(sterna)?, seconds(theirs)?);
        Some(Self {
            case: case.to_owned(),
            peer: peer.to_owned(),
            measured: measured.to_owned(),
            runs: sterna.len().min(theirs.len()),
            sterna_seconds,
            peer_seconds,
            ratio: peer_seconds / sterna_seconds,
            sterna_cpu_seconds: cpu(sterna)?,
            peer_cpu_seconds: cpu(theirs)?,
            sterna_range: range(sterna),
            peer_range: range(theirs),
            sterna_outside_seconds: outside(sterna),
            peer_outside_seconds: outside(theirs),
        })
    }
}

impl Report {
    /// A table: one line a case and peer, and what is missing below.
    #[must_use]
    pub fn table(&self) -> String {
        let heads = ["Sterna", "peer", "ratio", "Sterna CPU", "peer CPU", "Sterna, seen", "peer, seen", "difference"];
        let mut text = format!("{:<NAME_WIDTH$}{:<NAME_WIDTH$}", "case", "peer");
        heads.iter().for_each(|head| text += &format!("{head:>FIGURE_WIDTH$}"));
        text.push('\n');
        for case in &self.cases {
            let _ = write!(text, "{:<NAME_WIDTH$}{:<NAME_WIDTH$}", case.case, case.peer);
            let outside = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), duration);
            let figures = [
                duration(case.sterna_seconds),
                duration(case.peer_seconds),
                format!("{:.2}", case.ratio),
                duration(case.sterna_cpu_seconds),
                duration(case.peer_cpu_seconds),
                outside(case.sterna_outside_seconds),
                outside(case.peer_outside_seconds),
                duration(case.sterna_seconds - case.peer_seconds),
            ];
            figures.iter().for_each(|figure| text += &format!("{figure:>FIGURE_WIDTH$}"));
            text.push('\n');
        }
        for missing in &self.missing {
            let _ =
                writeln!(text, "{:<NAME_WIDTH$}{:<NAME_WIDTH$}missing: {}", missing.case, missing.peer, missing.why);
        }
        text += "\nratio: peer by Sterna, above 1 where Sterna is faster; seen: from outside, where it was looked at\n";
        let mut told: Vec<&str> = Vec::new();
        for case in &self.cases {
            if !told.contains(&case.case.as_str()) {
                told.push(&case.case);
                let _ = writeln!(text, "{}: {}", case.case, case.measured);
            }
        }
        text
    }
}

/// As a person reads it: milliseconds below a second.
fn duration(seconds: f64) -> String {
    if seconds.abs() < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seconds: &[f64]) -> Vec<Sample> {
        let sample = |seconds: &f64| Sample { seconds: *seconds, cpu_seconds: seconds * 2.0, outside_seconds: None };
        seconds.iter().map(sample).collect()
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0]), Some(3.0));
        assert_eq!(median([9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median([4.0, 1.0, 100.0, 2.0]), Some(3.0));
    }

    #[test]
    fn the_ratio_is_above_one_where_sterna_is_faster() {
        let case = Case::of("memory", "qemu-multifd", "m", &samples(&[2.0, 1.0, 9.0]), &samples(&[3.0, 3.0, 4.0]));
        let case = case.expect("a case");
        assert_eq!((case.sterna_seconds, case.peer_seconds, case.ratio), (2.0, 3.0, 1.5));
        assert_eq!((case.sterna_cpu_seconds, case.peer_cpu_seconds, case.runs), (4.0, 6.0, 3));
        assert_eq!((case.sterna_range, case.peer_range), ([1.0, 9.0], [3.0, 4.0]));
        assert_eq!((case.sterna_outside_seconds, case.peer_outside_seconds), (None, None));
        assert_eq!(Case::of("memory", "qemu-multifd", "m", &samples(&[1.0]), &[]), None);
    }

    #[test]
    fn the_report_names_every_figure_and_what_is_missing() {
        let seen = [Sample { outside_seconds: Some(0.040), ..samples(&[0.030])[0] }];
        let cases = vec![
            Case::of("blackout-idle", "qemu-multifd-tls", "the pause", &seen, &samples(&[0.060])).expect("a case"),
        ];
        let missing = vec![Missing { case: "disk".into(), peer: "rsync-ssh".into(), why: "no sshd".into() }];
        let report = Report { cases, missing };
        let table = report.table();
        for part in ["blackout-idle", "30 ms", "60 ms", "2.00", "40 ms", "-30 ms", "missing: no sshd", "the pause"] {
            assert!(table.contains(part), "{part}: {table}");
        }
        let json = serde_json::to_value(&report).expect("JSON");
        let keys =
            ["case", "peer", "sterna_seconds", "peer_seconds", "ratio", "sterna_cpu_seconds", "peer_cpu_seconds"];
        assert!(keys.iter().all(|key| !json["cases"][0][key].is_null()), "{json:#}");
        assert_eq!(json["missing"][0]["peer"], "rsync-ssh");
    }
}
