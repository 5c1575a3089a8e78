//! `sterna check`: all that speaks for and against a move, measured and with remedies, and nothing changed. `sterna migrate
//! --dry-run`: what would be done.

use std::fmt::Write as _;

use clap::Args;
use sterna_shared::job::{CheckReport, Estimate, Policy, Severity};
use sterna_shared::probe::Measured;

use super::error::{CliError, Exit};
use super::migrate::WishArgs;
use super::output::{Output, pairs};
use crate::client::Client;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sterna check web --to beta\n  \
    sterna check web --to beta --disk root=fast:raw --output json")]
pub(super) struct CheckArgs {
    #[command(flatten)]
    wish: WishArgs,
}

pub(super) async fn run(args: &CheckArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let report = client.check(&args.wish.request(&mut Policy::default())?).await?;
    output.result(&report, || told(&report))?;
    Ok(if report.migratable { Exit::Ok } else { Exit::Refused })
}

fn told(report: &CheckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Unknown => "unknown",
        };
        let reason = &finding.reason;
        let _ = writeln!(
            text,
            "{severity:8} {}  {}\n         → {}",
            reason.code.entry().message_id,
            reason.message,
            reason.remedy
        );
    }
    let mut rows = Vec::new();
    if let Some(probe) = &report.probe {
        let measured = |value: Result<String, &String>| value.unwrap_or_else(|why| format!("not measured: {why}"));
        if let Some(path) = &probe.path {
            rows.push(("path", measured(known(&path.throughput).map(ToString::to_string))));
            rows.push(("round trip", measured(known(&path.round_trip_us).map(|us| format!("{us} µs")))));
        }
        if let Some(guest) = &probe.guest {
            rows.push(("memory in use", measured(known(&guest.memory_used).map(ToString::to_string))));
            rows.push(("memory dirtied", measured(known(&guest.memory_dirty_rate).map(ToString::to_string))));
            rows.push(("disks written", measured(known(&guest.disk_write_rate).map(ToString::to_string))));
        }
    }
    if let Some(forecast) = &report.forecast {
        let estimate = |estimate: &Option<Estimate>| match estimate {
            Some(estimate) => format!(
                "{:.1} s, blackout {} ms, {} sent",
                std::time::Duration::from_millis(estimate.duration_ms).as_secs_f64(),
                estimate.blackout_ms,
                estimate.sent
            ),
            None => "does not get there".to_owned(),
        };
        rows.push(("expected", estimate(&forecast.p50)));
        rows.push(("seldom more", estimate(&forecast.p95)));
        rows.push(("because", forecast.reason.clone()));
    }
    if !rows.is_empty() {
        let _ = writeln!(text, "{}", pairs(rows));
    }
    text.push_str(if report.migratable { "it can be moved" } else { "it cannot be moved like that" });
    text
}

fn known<T>(measured: &Measured<T>) -> Result<&T, &String> {
    match measured {
        Measured::Known(value) => Ok(value),
        Measured::Unknown { why } => Err(why),
    }
}
