//! What the programs have in common that people run by hand: they end when somebody says so, with everything put away, and leave a
//! report.

#![expect(clippy::print_stderr, reason = "they talk to whoever runs them")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

/// It could not be carried out.
pub const BROKEN: u8 = 2;
/// Somebody has ended it.
pub const INTERRUPTED: u8 = 130;

/// Carries a program out, or until somebody ends it: what it has made goes with it in any case.
#[must_use]
pub fn carry_out(name: &str, program: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return broken(name, &error.into()),
    };
    let code = runtime.block_on(async {
        let outcome = tokio::select! {
            // One that waits for the end itself has the first word.
            biased;
            outcome = program => outcome.map(Some),
            interrupted = interrupted() => interrupted.map(|()| None),
        };
        match outcome {
            Ok(Some(code)) => code,
            Ok(None) => {
                eprintln!("{name}: interrupted; everything was put away");
                ExitCode::from(INTERRUPTED)
            }
            Err(error) => broken(name, &error),
        }
    });
    // Somebody may still be knocking at a guest that is gone, on a thread that cannot be called off.
    runtime.shutdown_background();
    code
}

fn broken(name: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{name}: {error:#}");
    ExitCode::from(BROKEN)
}

/// Ends when somebody wants the program to end.
///
/// # Errors
/// The system does not say when that is.
pub async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Removes the report of an earlier run, which must not be taken for this one's.
///
/// # Errors
/// It is there, and cannot be removed.
pub fn clear_report(file: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a report, in a folder that is made.
///
/// # Errors
/// It cannot be written.
pub fn write_report(report: &impl Serialize, file: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
