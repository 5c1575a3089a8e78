//! `sterna check`: all that speaks for and against a move, measured and with remedies, and nothing changed. `sterna plan`: what
//! would be done.

use std::fmt::Write as _;

use clap::Args;
use sterna_shared::id::JobId;
use sterna_shared::job::{CheckReport, Estimate, JobKind, Policy, Severity};
use sterna_shared::probe::Measured;

use super::error::{CliError, Exit};
use super::migrate::{WishArgs, submit};
use super::output::{Output, pairs};
use super::policy::PolicyArgs;
use crate::client::Client;

#[derive(Debug, Args)]
#[command(mut_arg("to", |to| to.required_unless_present("deep")), after_help = "Examples:\n  \
    sterna check web --to beta\n  \
    sterna check web --to beta --disk root=fast:raw --output json\n  \
    sterna check web --to beta --job --start 02:00 --times 0\n  \
    sterna check web --deep --bandwidth 50MiB/s")]
pub(super) struct CheckArgs {
    #[command(flatten)]
    wish: WishArgs,
    /// Make it a job, which is listed, can wait for its time, and keeps what it has found; asking twice with one id makes one
    /// job
    #[arg(long, value_name = "UUID", num_args = 0..=1, require_equals = true)]
    job: Option<Option<JobId>>,
    /// Read every disk of the VM through as well, at the rate of --bandwidth; always a job. Without --to only that
    #[arg(long)]
    deep: bool,
    /// Do not watch the job; print its id
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    policy: PolicyArgs,
}

pub(super) async fn run(args: &CheckArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    let mut policy = args.policy.policy(client.sender());
    if args.job.is_some() || args.deep {
        let job = args.job.flatten().unwrap_or_else(|| JobId::from_uuid(uuid::Uuid::now_v7()));
        let kind = if args.deep { JobKind::DeepCheck } else { JobKind::Check };
        let mut request = args.wish.request(kind, &mut policy)?;
        // What is read and goes nowhere stays on its host.
        request.storage_only |= args.deep && request.target.is_none();
        args.policy.recover(&request, &mut policy)?;
        return submit(job, &request, &policy, args.detach, client, output).await;
    }
    // An answer that comes at once has no use for what a job is told.
    if args.detach || policy != (Policy { owner: policy.owner.clone(), ..Policy::default() }) {
        return Err(CliError::new(Exit::Usage, "what is said of a job goes with one").hint("give --job as well"));
    }
    let report = client.check(&args.wish.request(JobKind::Check, &mut policy)?).await?;
    output.result(&report, || told(&report))?;
    Ok(if report.migratable { Exit::Ok } else { Exit::Refused })
}

/// What a check has found and measured, as people read it.
pub(super) fn told(report: &CheckReport) -> String {
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
