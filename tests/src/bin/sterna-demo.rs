//! `sterna-demo`: two hosts, a guest under load, there and back; then a summary. Run it by `cargo xtask demo`.
//!
//! The exit status is 0 only if nothing was lost: 1 if something was, 2 if the demo could not be carried out, 130 after
//! Ctrl-C.

// A demo talks to whoever watches it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use sterna_tests::demo::{Demo, MOVES, Report};
use sterna_tests::program::{carry_out, clear_report, interrupted, write_report};

const FAILED: u8 = 1;

#[derive(Debug, Parser)]
#[command(about = "Move a guest under load to another host and back, and prove that nothing was lost")]
struct Arguments {
    /// Leave everything running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where the report goes
    #[arg(long, value_name = "FILE", default_value = "target/demo/report.json")]
    report: PathBuf,
}

fn main() -> ExitCode {
    carry_out("demo", demo(Arguments::parse()))
}

async fn demo(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let (demo, faults) = run(&arguments.report).await?;
    if arguments.keep {
        println!("\n{}", demo.how_to_use());
        interrupted().await?;
    }
    say("putting everything away");
    drop(demo);
    Ok(ExitCode::from(if faults == 0 { 0 } else { FAILED }))
}

/// Carries the demo out and says how it was; gives back what is running and the number of faults.
async fn run(file: &Path) -> anyhow::Result<(Demo, usize)> {
    clear_report(file)?;
    let demo = Demo::start(say).await?;
    let mut report = Report { moves: Vec::new() };
    let moved = demo.moves(&mut report, say).await;
    write_report(&report, file)?;
    println!("\n{}", report.table());
    let mut faults = report.faults(MOVES.len());
    faults.extend(moved.err().map(|error| format!("{error:#}")));
    if faults.is_empty() {
        println!("Nothing was lost. The report is {}", file.display());
    } else {
        eprintln!("{}", demo.logs());
        for fault in &faults {
            println!("FAULT: {fault}");
        }
        println!("The report is {}", file.display());
    }
    Ok((demo, faults.len()))
}

fn say(text: &str) {
    println!("demo: {text}");
}
