//! `sterna-faults`: the whole matrix of faults, as a table on the terminal and as JSON in a file.
//!
//! `cargo xtask faults` builds everything and runs it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is its output")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use serde_json::json;
use sterna_tests::faults::{Cell, Fault, Ordeal, Phase};

/// Does each fault in each phase of a move to a running guest, and says what came of it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where the report goes.
    #[arg(long, default_value = "target/faults/report.json")]
    report: PathBuf,
    /// Only the phases whose name contains this.
    #[arg(long, default_value = "")]
    phase: String,
    /// Only the faults whose name contains this.
    #[arg(long, default_value = "")]
    fault: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut ordeal = Ordeal::start().await?;
    let mut cells = Vec::new();
    println!("{}", Cell::head());
    let outcome = run(&arguments, &mut ordeal, &mut cells).await;
    if let Some(folder) = arguments.report.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let report = serde_json::to_vec_pretty(&json!({ "cells": cells }))?;
    std::fs::write(&arguments.report, report)
        .with_context(|| format!("the report {} cannot be written", arguments.report.display()))?;
    if outcome.is_err() {
        eprintln!("{}", ordeal.fleet.logs());
    }
    outcome?;
    let harmed = cells.iter().filter(|cell| !cell.is_sound()).count();
    println!("{} cells, {harmed} not as they must be; {}", cells.len(), arguments.report.display());
    Ok(if harmed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(arguments: &Arguments, ordeal: &mut Ordeal, cells: &mut Vec<Cell>) -> anyhow::Result<()> {
    for phase in Phase::ALL.into_iter().filter(|phase| format!("{phase:?}").to_lowercase().contains(&arguments.phase)) {
        for fault in Fault::ALL.into_iter().filter(|fault| fault.to_string().contains(&arguments.fault)) {
            let cell = ordeal.suffer(phase, fault).await.with_context(|| format!("{phase:?}, {fault}"))?;
            println!("{cell}{}", if cell.is_sound() { "" } else { "   ← NOT AS IT MUST BE" });
            cells.push(cell);
        }
    }
    Ok(())
}
