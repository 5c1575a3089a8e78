//! `sterna job`: moves in hand, and those that are over.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use sterna_shared::bus::{JobAnswer, JobChange};
use sterna_shared::id::JobId;
use sterna_shared::job::{CutoverForecast, CutoverScore, DiskPlacement, JobKind, MoveMode, RequestedState, ReturnCode};
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::view::cim::MsvmError;

use super::error::{CliError, Exit};
use super::history::{self, HistoryArgs};
use super::migrate::parse_placement;
use super::output::{Format, Output, moment, or_dash, pairs, table};
use super::schedule::ScheduleArgs;
use super::vm::done;
use super::{check, confirm, labels, now, watch};
use crate::client::{Client, Job, StateChange};
use crate::view::JobView;

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// List all jobs, newest first
    #[command(visible_alias = "ls")]
    List,
    /// Show one job with its steps; also as CIM has it, with --output cim or cim-xml
    Show {
        /// Its id
        job: JobId,
    },
    /// Show what is wrong with a job, as Msvm_MigrationJob.GetErrorEx does: each error with causes and remedies
    Error {
        /// Its id
        job: JobId,
        /// The main one only, as GetError does
        #[arg(long)]
        main: bool,
    },
    /// Follow a job until it is over; the exit code tells how it ended
    Watch {
        /// Its id
        job: JobId,
    },
    /// Cancel a job: it puts everything back
    Cancel {
        /// Its id
        job: JobId,
    },
    /// Ask for a job's state, as Msvm_MigrationJob.RequestStateChange does; prints what the method returns
    State {
        /// Its id
        job: JobId,
        /// start, suspend, terminate, kill or service; or its number, 2 to 6
        requested: RequestedState,
        /// Wait that long for the state to be reached
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u32>,
    },
    /// Stop a job so that it can go on later; the VM runs on where it is
    Suspend {
        /// Its id
        job: JobId,
    },
    /// Let a suspended job go on, or begin one that waits
    Resume {
        /// Its id
        job: JobId,
    },
    /// End a job at once; what it put up is taken away afterwards
    Kill {
        /// Its id
        job: JobId,
        /// Take it off the list of jobs
        #[arg(long)]
        delete: bool,
    },
    /// Change properties of a job by their names in Msvm_MigrationJob, such as Priority=5; those that are read-only are refused
    Edit {
        /// Its id
        job: JobId,
        /// What to change; nothing after the = is NULL
        #[arg(value_name = "NAME=VALUE", required = true, value_parser = parse_property)]
        properties: Vec<JobChange>,
    },
    /// Change when a job runs that has not begun
    Schedule {
        /// Its id
        job: JobId,
        #[command(flatten)]
        schedule: ScheduleArgs,
        /// As soon as its hosts have a slot
        #[arg(long, conflicts_with_all = ["at", "start"])]
        now: bool,
    },
    /// Show the jobs of a group, in the order in which they run
    Group {
        /// Its name
        name: String,
    },
    /// Show what jobs came to that are over, those that ended last first, also after they have left the list; of a
    /// recurring job on the list, its runs
    History(HistoryArgs),
    /// Answer what a job in state query_pending waits for
    Answer {
        /// Its id
        job: JobId,
        #[command(subcommand)]
        answer: Answer,
    },
    /// Change the rate that a running job stays under
    Bandwidth {
        /// Its id
        job: JobId,
        /// The rate, such as 100M or 100MiB/s (powers of 1024), or "unlimited"
        #[arg(value_parser = parse_bandwidth)]
        rate: BandwidthWish,
    },
}

/// What an operator says to a job that waits for a word.
#[derive(Debug, Subcommand)]
pub(super) enum Answer {
    /// Try again, now that what stood in the way is mended
    Retry,
    /// Try again with disks in other pools
    Place {
        /// Where one disk goes; the others go where they were to go
        #[arg(value_name = "NAME=POOL[:FORMAT]", required = true, value_parser = parse_placement)]
        disks: Vec<DiskPlacement>,
    },
    /// The target will never run the VM again, and somebody has seen to that: the source takes it back
    Fenced {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// A rate, or none.
#[derive(Debug, Clone, Copy)]
pub(super) struct BandwidthWish(Option<Bandwidth>);

pub(super) fn parse_bandwidth(text: &str) -> Result<BandwidthWish, String> {
    if text == "unlimited" {
        return Ok(BandwidthWish(None));
    }
    parse_rate(text).map(|rate| BandwidthWish(Some(rate)))
}

/// A rate above nothing.
pub(super) fn parse_rate(text: &str) -> Result<Bandwidth, String> {
    match text.parse::<Bandwidth>() {
        Ok(Bandwidth(0)) => Err("a rate of 0 would never end; cancel the job instead".to_owned()),
        Ok(rate) => Ok(rate),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) async fn run(command: &JobCommand, client: &Client, output: Output) -> Result<Exit, CliError> {
    match command {
        JobCommand::List => {
            let views: Vec<JobView> = client.jobs_and_progress().await?.iter().map(Job::view).collect();
            output.result(&views, || list(&views))?;
            Ok(Exit::Ok)
        }
        JobCommand::Show { job } => {
            match output.format {
                // Of Google's face a job alone has nothing: the command line does not let it come here.
                Format::Table | Format::Json | Format::Google => {
                    let view = client.job(*job).await?.view();
                    output.result(&view, || show(&view))?;
                }
                Format::Cim => output.json(&client.migration_job(*job, now()).await?)?,
                Format::CimXml => output.document(&client.migration_job(*job, now()).await?.to_xml())?,
            }
            Ok(Exit::Ok)
        }
        JobCommand::Error { job, main } => error(client, *job, *main, output).await,
        JobCommand::Watch { job } => {
            let view = client.job(*job).await?.view();
            watch::run(view, client, output).await
        }
        JobCommand::Cancel { job } => {
            let told = format!("cancel of {job} was sent; sterna job watch {job} tells when everything is back");
            done(client.cancel(*job).await, told, output)
        }
        JobCommand::State { job, requested, wait } => state(client, *job, *requested, *wait, output).await,
        JobCommand::Suspend { job } => state(client, *job, RequestedState::Suspend, None, output).await,
        JobCommand::Resume { job } => state(client, *job, RequestedState::Start, None, output).await,
        JobCommand::Kill { job, delete } => returned(&client.kill(*job, *delete).await?, RequestedState::Kill, output),
        JobCommand::Edit { job, properties } => {
            let told = format!("{job} is changed; see it with sterna job show {job} --output cim");
            done(client.edit(*job, properties.clone()).await, told, output)
        }
        JobCommand::Schedule { job, schedule, now } => {
            let schedule = schedule.schedule().map(Box::new);
            if schedule.is_none() && !now {
                return Err(CliError::new(Exit::Usage, "nothing says when it runs").hint("give --at, --start or --now"));
            }
            let told = format!("{job} has another schedule; see it with sterna job show {job} --output cim");
            done(client.edit(*job, vec![JobChange::Schedule { schedule }]).await, told, output)
        }
        JobCommand::Group { name } => show_group(name, client, output).await,
        JobCommand::History(args) => history::run(args, client, output).await,
        JobCommand::Answer { job, answer } => {
            let answer = match answer {
                Answer::Retry => JobAnswer::Retry,
                Answer::Place { disks } => JobAnswer::Place { disks: disks.clone() },
                Answer::Fenced { yes } => {
                    confirm("Is the target switched off, so that it cannot run the VM any more?", *yes)?;
                    JobAnswer::Fenced
                }
            };
            let told = format!("{job} has its answer; sterna job watch {job} tells what comes of it");
            done(client.answer(*job, answer).await, told, output)
        }
        JobCommand::Bandwidth { job, rate: BandwidthWish(bandwidth) } => {
            let told = match bandwidth {
                Some(rate) => format!("{job} stays under {rate}"),
                None => format!("{job} has no rate limit"),
            };
            done(client.set_bandwidth(*job, *bandwidth).await, told, output)
        }
    }
}

/// What is wrong with a job. Nothing is, where there is nothing to show.
async fn error(client: &Client, job: JobId, main: bool, output: Output) -> Result<Exit, CliError> {
    let mut errors = client.job_errors(job).await?;
    if main {
        errors.truncate(1);
    }
    match output.format {
        Format::CimXml => {
            for error in &errors {
                output.document(&error.to_xml())?;
            }
        }
        Format::Cim => output.json(&errors)?,
        Format::Table | Format::Json | Format::Google => output.result(&errors, || told(&errors))?,
    }
    Ok(Exit::Ok)
}

fn parse_property(text: &str) -> Result<JobChange, String> {
    let (name, value) = text.split_once('=').ok_or_else(|| "give NAME=VALUE, such as Priority=5".to_owned())?;
    Ok(JobChange::Property { name: name.to_owned(), value: value.to_owned() })
}

fn told(errors: &[MsvmError]) -> String {
    if errors.is_empty() {
        return "nothing is wrong".to_owned();
    }
    let one = |error: &MsvmError| {
        let mut text = format!("{}  {}", error.message_id, error.message);
        for action in &error.recommended_actions {
            let _ = write!(text, "\n  → {action}");
        }
        text
    };
    errors.iter().map(one).collect::<Vec<_>>().join("\n")
}

async fn state(
    client: &Client,
    job: JobId,
    requested: RequestedState,
    wait: Option<u32>,
    output: Output,
) -> Result<Exit, CliError> {
    let wait = wait.map(|seconds| Duration::from_secs(seconds.into()));
    returned(&client.request_state(job, requested, wait).await?, requested, output)
}

/// What a method of a job has returned.
fn returned(change: &StateChange, requested: RequestedState, output: Output) -> Result<Exit, CliError> {
    let StateChange { code, reason, status } = change;
    let done = matches!(code, ReturnCode::Completed | ReturnCode::Started);
    let told = match reason {
        Some(reason) => format!("{requested}: {} ({reason})", code.number()),
        None => format!("{requested}: {}, {} is {}", code.number(), status.job, status.state),
    };
    output.result(
        &json!({
            "returned": code.number(),
            "name": code,
            "hyper_v": code.hyper_v(),
            "reason": reason,
            "job": status.job,
            "state": status.state,
        }),
        || told,
    )?;
    Ok(if done { Exit::Ok } else { Exit::Refused })
}

fn list(jobs: &[JobView]) -> String {
    let rows = jobs.iter().map(|job| {
        [
            job.job.to_string(),
            job.vm.name.to_string(),
            format!("{} → {}", job.source, job.target),
            manner(job.kind, job.mode).to_owned(),
            job.state.to_string(),
            format!("{:.0} %", job.percent.floor()),
            moment(job.submitted_at),
        ]
    });
    table(["JOB", "VM", "FROM → TO", "MODE", "STATE", "DONE", "SUBMITTED"], rows)
}

/// What a job does, in a word; of a move how.
pub(super) const fn manner(kind: JobKind, mode: MoveMode) -> &'static str {
    match kind {
        JobKind::Move => mode_name(mode),
        _ => kind_name(kind),
    }
}

/// What a job does, in a word.
pub(super) const fn kind_name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Move => "move",
        JobKind::Check => "check",
        JobKind::DeepCheck => "deep check",
        JobKind::Stage => "preparation",
        JobKind::Replicate => "replication",
        JobKind::Clone => "clone",
        JobKind::Rehearse => "rehearsal",
        JobKind::Verify => "verification",
        JobKind::Cutover => "cutover",
    }
}

pub(super) const fn mode_name(mode: MoveMode) -> &'static str {
    match mode {
        MoveMode::Live => "live",
        MoveMode::Cold => "cold",
        MoveMode::Storage => "storage",
    }
}

/// From where to where, and of a move how.
fn way(job: &JobView) -> String {
    match job.kind {
        JobKind::Clone | JobKind::Rehearse | JobKind::Verify => job.target.to_string(),
        JobKind::Replicate => format!("{} → {}", job.source, job.target),
        _ => format!("{} → {}, {}", job.source, job.target, mode_name(job.mode)),
    }
}

/// What a cutover was expected to take.
fn expected(forecast: &CutoverForecast) -> String {
    let cautious =
        forecast.duration_cautious_ms.map_or_else(String::new, |ms| format!(" (seldom over {})", seconds(ms)));
    let (duration, blackout) = (seconds(forecast.duration_ms), forecast.blackout_ms);
    format!("{duration}{cautious}, blackout {blackout} ms, {} sent", forecast.sent)
}

/// How well that was foreseen.
fn scored(score: &CutoverScore) -> String {
    let off = |error: i64, shown: fn(u64) -> String| match error {
        0 => "as expected".to_owned(),
        1.. => format!("{} more than expected", shown(error.unsigned_abs())),
        _ => format!("{} less than expected", shown(error.unsigned_abs())),
    };
    let range = match score.within_range {
        Some(true) => " (within what is seldom exceeded)",
        Some(false) => " (over what is seldom exceeded)",
        None => "",
    };
    let blackout = score
        .blackout_error_ms
        .map_or_else(String::new, |error| format!("; blackout {}", off(error, |ms| format!("{ms} ms"))));
    format!("{}, {}{range}{blackout}", seconds(score.duration_ms), off(score.duration_error_ms, seconds))
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// A job as people read it: head, steps, and whatever went wrong.
pub(super) fn show(job: &JobView) -> String {
    let mut rows = vec![
        ("job", job.job.to_string()),
        ("vm", format!("{} ({})", job.vm.name, job.vm.id)),
        (kind_name(job.kind), way(job)),
        ("state", format!("{} ({})", job.state, job.state_number)),
        ("done", format!("{:.1} %", job.percent)),
        ("submitted", moment(job.submitted_at)),
        ("started", or_dash(job.started_at.map(moment))),
        ("finished", or_dash(job.finished_at.map(moment))),
    ];
    if let Some(blackout) = job.blackout_ms {
        let hypervisor = job.hypervisor_blackout_ms.map_or_else(String::new, |ms| format!(" (QEMU counts {ms} ms)"));
        rows.push(("blackout", format!("{blackout:.1} ms{hypervisor}")));
    }
    if let Some(forecast) = &job.forecast {
        rows.push(("expected", expected(forecast)));
    }
    if let Some(score) = &job.score {
        rows.push(("took", scored(score)));
    }
    if !job.labels.is_empty() {
        rows.push(("labels", labels::told(&job.labels)));
    }
    let steps = table(
        ["STEP", "STATE", "HOST", "SECONDS", "CONTENT", "SENT", "RATE", "PASSES"],
        job.steps.iter().map(|step| {
            let bytes = |count: u64| if count == 0 { "-".to_owned() } else { ByteCount(count).to_string() };
            [
                step.step.to_string(),
                format!("{:?}", step.state).to_lowercase(),
                or_dash(step.host.as_ref()),
                step.seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}")),
                bytes(step.bytes_total),
                bytes(step.bytes_sent),
                or_dash(step.bytes_per_second.map(Bandwidth)),
                if step.passes == 0 { "-".to_owned() } else { step.passes.to_string() },
            ]
        }),
    );
    let mut text = format!("{}\n\n{steps}", pairs(rows));
    if let Some(progress) = &job.progress {
        let _ = write!(text, "\n\nprogress  {}", watch::progress_text(progress));
    }
    for notice in &job.notices {
        let _ = write!(text, "\nnotice    {}  {}  {}", moment(notice.at), or_dash(notice.host.as_ref()), notice.text);
    }
    if let Some(report) = &job.check {
        // What it failed for is among what it has found.
        let _ = write!(text, "\n\n{}", check::told(report));
        return text;
    }
    if let Some(failure) = &job.failure {
        let _ = write!(text, "\n\nfailed on {}: {}", or_dash(failure.host.as_ref()), failure.message);
        for cause in &failure.causes {
            let _ = write!(text, "\n  because: {cause}");
        }
        if !failure.remedy.is_empty() {
            let _ = write!(text, "\n  → {}", failure.remedy);
        }
    }
    text
}

/// Shows the jobs of a group.
pub(super) async fn show_group(name: &str, client: &Client, output: Output) -> Result<Exit, CliError> {
    let views: Vec<JobView> = client.group(name).await?.iter().map(Job::view).collect();
    output.result(&views, || list(&views))?;
    Ok(Exit::Ok)
}

/// The job with that id, if it is of that kind.
pub(super) async fn of_kind(id: JobId, kind: JobKind, client: &Client) -> Result<Option<Job>, CliError> {
    Ok(Some(client.job(id).await?).filter(|job| job.status.plan.kind == kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_says_by_how_much_and_which_way() {
        let score = CutoverScore {
            duration_ms: 12_340,
            duration_error_ms: 2_340,
            within_range: Some(true),
            blackout_error_ms: Some(-12),
        };
        assert_eq!(
            scored(&score),
            "12.3 s, 2.3 s more than expected (within what is seldom exceeded); blackout 12 ms less than expected"
        );
        let cold = CutoverScore { duration_error_ms: 0, within_range: None, blackout_error_ms: None, ..score };
        assert_eq!(scored(&cold), "12.3 s, as expected");
    }
}
