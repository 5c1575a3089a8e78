//! `sterna-faults`: the whole matrix of faults, as a table on the terminal and as JSON in a file.
//!
//! `cargo xtask faults` builds everything and runs it. The exit status is 0 only if every cell is as it must be: 1 if one is not, 2 if
//! the matrix could not be carried out, 130 after Ctrl-C.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is its output")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use serde_json::json;
use sterna_tests::faults::{Cell, Fault, Ordeal, Phase};
use sterna_tests::program::{carry_out, clear_report, write_report};

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

fn main() -> ExitCode {
    carry_out("faults", matrix(Arguments::parse()))
}

async fn matrix(arguments: Arguments) -> anyhow::Result<ExitCode> {
    clear_report(&arguments.report)?;
    let mut ordeal = Ordeal::start().await?;
    let mut cells = Vec::new();
    println!("{}", Cell::head());
    let outcome = run(&arguments, &mut ordeal, &mut cells).await;
    write_report(&json!({ "cells": cells }), &arguments.report)?;
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
            let amiss = cell.amiss().map_or_else(String::new, |what| format!("   ← NOT AS IT MUST BE: {what}"));
            println!("{cell}{amiss}");
            cells.push(cell);
        }
    }
    Ok(())
}
