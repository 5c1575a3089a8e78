//! `sterna-demo`: two hosts, a guest under load, there and back; then a summary. Run it by `cargo xtask demo`.
//!
//! The exit status is 0 only if nothing was lost: 1 if something was, 2 if the demo could not be carried out, 130 after
//! Ctrl-C.

// A demo talks to whoever watches it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use sterna_tests::demo::{Demo, MOVES, Report};
use tokio::signal::unix::{SignalKind, signal};

const FAILED: u8 = 1;
const BROKEN: u8 = 2;
const INTERRUPTED: u8 = 130;

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
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: no runtime: {error}");
            return ExitCode::from(BROKEN);
        }
    };
    let code = runtime.block_on(demo(&arguments));
    // Somebody may still be knocking at a guest that is gone, on a thread that cannot be called off.
    runtime.shutdown_background();
    code
}

async fn demo(arguments: &Arguments) -> ExitCode {
    let outcome = tokio::select! {
        outcome = run(&arguments.report) => outcome,
        interrupted = interrupted() => interrupted.map(|()| None),
    };
    match outcome {
        Ok(Some((demo, faults))) => {
            if arguments.keep {
                println!("\n{}", demo.how_to_use());
                if let Err(error) = interrupted().await {
                    eprintln!("demo: {error:#}");
                }
            }
            say("putting everything away");
            drop(demo);
            ExitCode::from(if faults == 0 { 0 } else { FAILED })
        }
        Ok(None) => {
            eprintln!("demo: interrupted; everything was put away");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(BROKEN)
        }
    }
}

/// Carries the demo out and says how it was; gives back what is running and the number of faults.
async fn run(file: &Path) -> anyhow::Result<Option<(Demo, usize)>> {
    // An old report must not be taken for this one's.
    if let Err(error) = std::fs::remove_file(file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot replace {}", file.display()));
    }
    let demo = Demo::start(say).await?;
    let mut report = Report { moves: Vec::new() };
    let moved = demo.moves(&mut report, say).await;
    write(&report, file)?;
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
    Ok(Some((demo, faults.len())))
}

fn write(report: &Report, file: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Ends when somebody wants the demo to end.
async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn say(text: &str) {
    println!("demo: {text}");
}
