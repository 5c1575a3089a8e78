//! `sterna job history`: what jobs came to, also after they have left the list.

use clap::Args;
use sterna_shared::bus::ApiErrorKind;
use sterna_shared::id::JobId;
use sterna_shared::job::{JobRecord, JobStatus};
use sterna_shared::time::Timestamp;
use sterna_shared::units::ByteCount;

use super::error::{CliError, Exit};
use super::job::manner;
use super::now;
use super::output::{Output, moment, or_dash, table};
use crate::client::{Client, ClientError, HistoryQuery};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sterna job history --since 2026-12-01T00:00:00Z\n  \
    sterna job history --vm web --limit 5 --output json")]
pub(super) struct HistoryArgs {
    /// Of this job only
    job: Option<JobId>,
    /// Of this VM only: its name at the time, or its id
    #[arg(long, value_name = "NAME", conflicts_with = "job")]
    vm: Option<String>,
    /// Of jobs only that were over then or later, such as 2026-12-01T00:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "job")]
    since: Option<Timestamp>,
    /// No more jobs than that
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

pub(super) async fn run(args: &HistoryArgs, client: &Client, output: Output) -> Result<Exit, CliError> {
    if let Some(status) = listed(args.job, client).await?.filter(|status| status.policy.recurs()) {
        output.result(&status.runs.latest, || runs(&status))?;
        return Ok(Exit::Ok);
    }
    let mut query = HistoryQuery { job: args.job, vm: args.vm.clone(), since: args.since, before: None };
    let mut records = Vec::new();
    loop {
        let page = client.history(&query).await?;
        records.extend(page.records);
        if records.len() > args.limit || page.next.is_none() {
            break;
        }
        query.before = page.next;
    }
    if let (Some(job), true) = (args.job, records.is_empty()) {
        return Err(CliError::new(Exit::NotFound, format!("there is no record of job {job}"))
            .hint("one is kept when a job is over, for as long as the coordinators' archive_days says"));
    }
    if records.len() > args.limit {
        records.truncate(args.limit);
        output.remark("there are more: give --since, --vm or another --limit");
    }
    output.result(&records, || list(&records))?;
    Ok(Exit::Ok)
}

/// The job, if it is on the list.
async fn listed(job: Option<JobId>, client: &Client) -> Result<Option<Box<JobStatus>>, CliError> {
    let Some(job) = job else { return Ok(None) };
    match client.job(job).await {
        Ok(job) => Ok(Some(job.status)),
        Err(ClientError::Api { error }) if error.kind == ApiErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn list(records: &[JobRecord]) -> String {
    let rows = records.iter().map(|record| {
        let blackout = record.blackout_us.filter(|us| *us > 0);
        [
            record.job.to_string(),
            record.vm.to_string(),
            format!("{} → {}", record.source, record.target),
            manner(record.kind, record.mode).to_owned(),
            record.state.to_string(),
            moment(record.finished_at),
            or_dash(record.started_at.map(|began| format!("{:.1}", record.finished_at.seconds_since(began)))),
            or_dash(blackout.map(|us| us.div_ceil(1000))),
            ByteCount(record.figures.bytes_sent).to_string(),
            record.failure.as_ref().map_or_else(String::new, |failure| failure.message.clone()),
        ]
    });
    table(["JOB", "VM", "FROM → TO", "MODE", "STATE", "OVER", "SECONDS", "BLACKOUT MS", "SENT", "FAILURE"], rows)
}

fn runs(status: &JobStatus) -> String {
    let rows = status.runs.latest.iter().map(|run| {
        [
            run.job.to_string(),
            moment(run.turn),
            moment(run.began_at),
            or_dash(run.ended_at.map(moment)),
            run.state.map_or_else(|| "under way".to_owned(), |state| state.to_string()),
            run.failure.as_ref().map_or_else(String::new, |failure| failure.message.clone()),
        ]
    });
    let runs = table(["RUN", "TURN", "BEGAN", "ENDED", "STATE", "FAILURE"], rows);
    let next = or_dash(status.next_turn(now()).map(moment));
    format!("{runs}\n\n{} runs in all; the next turn: {next}", status.runs.count)
}
