//! `sterna-bench`: Sterna against QEMU's own migration and against programs that copy disks. Run it by
//! `cargo xtask bench`, which builds it and all that it measures for release.
//!
//! The exit status says whether it could be carried out, and not who won: 0, or 2 where a case failed, 130 after Ctrl-C.

// It talks to whoever watches it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sterna_tests::bench::report::Report;
use sterna_tests::bench::{Bench, Parameters, RUNS_DEFAULT};
use sterna_tests::program::{BROKEN, carry_out, clear_report, write_report};

#[derive(Debug, Parser)]
#[command(about = "Measure Sterna against QEMU's own migration and against programs that copy disks")]
struct Arguments {
    /// Runs of each side; what is told is their median
    #[arg(long, default_value_t = RUNS_DEFAULT, value_parser = runs)]
    runs: usize,
    /// Only the cases whose name contains this: memory, disk, blackout-idle, blackout-busy
    #[arg(long, default_value = "")]
    case: String,
    /// Lanes of Sterna, and as many multifd channels of QEMU
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    lanes: u8,
    /// Where the report goes
    #[arg(long, value_name = "FILE", default_value = "target/bench/report.json")]
    report: PathBuf,
}

fn runs(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|runs| (1..=1000).contains(runs)).ok_or_else(|| "give 1 to 1000".to_owned())
}

fn main() -> ExitCode {
    carry_out("bench", run(Arguments::parse()))
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    clear_report(&arguments.report)?;
    let Arguments { runs, case, lanes, report: file } = arguments;
    say("starting a fleet of two hosts, and two hosts for the peers");
    let mut bench = Bench::start(Parameters { runs, case, lanes }).await?;
    let cases = bench.cases();
    anyhow::ensure!(!cases.is_empty(), "no case has such a name; see --help");
    let mut report = Report::default();
    let mut broken = None;
    for case in cases {
        broken = bench.case(case, &mut report, say).await.err();
        // What was found so far is kept, however the rest goes.
        write_report(&report, &file)?;
        if broken.is_some() {
            break;
        }
    }
    println!("\n{}\nThe report is {}", report.table(), file.display());
    let Some(error) = broken else { return Ok(ExitCode::SUCCESS) };
    eprintln!("{}\nbench: {error:#}", bench.logs());
    Ok(ExitCode::from(BROKEN))
}

fn say(text: &str) {
    println!("bench: {text}");
}
