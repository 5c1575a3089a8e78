//! Following a job: bars on a terminal, lines elsewhere, one JSON document a change for programs.
//!
//! The job is asked for twice a second. What is done and what was dirtied anew are shown apart, and the percentage
//! keeps its highest value, so that progress never runs backwards. Ctrl-C stops the watching and never the job.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use sterna_shared::id::JobId;
use sterna_shared::job::{JobKind, JobRecord, JobState, StepKind};
use sterna_shared::units::{Bandwidth, ByteCount};
use tokio::time::{Instant, MissedTickBehavior};

use super::error::{CliError, Exit};
use super::output::Output;
use super::{check, job};
use crate::client::{Client, HistoryQuery};
use crate::view::{JobView, ProgressView, Question, VolumeView};

/// How often the job is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long nobody may answer before the watching gives up: longer than a coordinator's failover takes.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a job may wait for an operator before the watching ends with that word: agents often resolve by themselves
/// when the link comes back.
const PENDING_PATIENCE: Duration = Duration::from_secs(10);
/// How far apart progress lines are where bars cannot be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(first: JobView, client: &Client, output: Output) -> Result<Exit, CliError> {
    let mut watch = Watch::new(output, false);
    let (view, exit) = watch.follow(first, client).await?;
    if exit != Exit::Interrupted {
        watch.finish(&view, exit)?;
    }
    Ok(exit)
}

/// Follows a job, one of several, and says nothing meanwhile; gives back how it was when that ended.
pub(super) async fn quietly(first: JobView, client: &Client, output: Output) -> Result<(JobView, Exit), CliError> {
    Watch::new(output, true).follow(first, client).await
}

/// What is kept of a job that is over.
async fn record_of(job: JobId, client: &Client) -> Result<Option<JobRecord>, CliError> {
    let query = HistoryQuery { job: Some(job), ..HistoryQuery::default() };
    Ok(client.history(&query).await?.records.into_iter().next())
}

/// What is on the screen, and what was told already.
struct Watch {
    output: Output,
    /// Whether nobody is told of what the job does.
    quiet: bool,
    bars: Option<Bars>,
    last: Option<JobView>,
    percent: f64,
    line_at: Option<Instant>,
    was_silent: bool,
}

impl Watch {
    fn new(output: Output, quiet: bool) -> Self {
        let bars = (output.draws() && !quiet).then(Bars::new);
        Self { output, quiet, bars, last: None, percent: 0.0, line_at: None, was_silent: false }
    }

    /// Follows a job until it is over, or waits for an operator, or nobody wants to see it any more.
    async fn follow(&mut self, first: JobView, client: &Client) -> Result<(JobView, Exit), CliError> {
        let job = first.job;
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut view, mut heard_at, mut pending_since) = (first, Instant::now(), None);
        loop {
            view.percent = self.see(&view)?;
            pending_since = (view.state == JobState::QueryPending).then(|| pending_since.unwrap_or_else(Instant::now));
            let waited_enough = pending_since.is_none_or(|since: Instant| since.elapsed() >= PENDING_PATIENCE);
            if let Some(exit) = Exit::of_job(view.state).filter(|_| waited_enough) {
                return Ok((view, exit));
            }
            let answer = tokio::select! {
                _ = &mut interrupt => {
                    self.clear();
                    self.output.remark(&format!(
                        "stopped watching; the job goes on. Watch again: sterna job watch {job}; \
                         cancel: sterna job cancel {job}"
                    ));
                    return Ok((view, Exit::Interrupted));
                }
                answer = async {
                    ticks.tick().await;
                    client.job(job).await.map(|job| job.view()).map_err(CliError::from)
                } => answer,
            };
            match answer {
                Ok(next) => (view, heard_at) = (next, Instant::now()),
                Err(error) if error.exit == Exit::Unreachable && heard_at.elapsed() < SILENCE_MAX => {
                    self.silent(&error);
                }
                // It is over, and was to leave the list then: what it came to is kept elsewhere.
                Err(error) if error.exit == Exit::NotFound => match record_of(job, client).await? {
                    Some(record) => (view, heard_at) = (view.ended(record), Instant::now()),
                    None => {
                        self.clear();
                        return Err(error.hint("it has left the list; sterna job history has jobs that are over"));
                    }
                },
                Err(error) => {
                    self.clear();
                    return Err(error.hint(format!("the job goes on; watch again: sterna job watch {job}")));
                }
            }
        }
    }

    /// Shows what is new of a view; gives the percentage, which never falls.
    fn see(&mut self, view: &JobView) -> Result<f64, CliError> {
        self.was_silent = false;
        self.percent = self.percent.max(view.percent);
        let view = JobView { percent: self.percent, ..view.clone() };
        if self.quiet || self.last.as_ref() == Some(&view) {
            return Ok(self.percent);
        }
        self.output.json_line(&view)?;
        if !self.output.for_programs() {
            self.tell(&view);
        }
        self.last = Some(view);
        Ok(self.percent)
    }

    fn tell(&mut self, view: &JobView) {
        let lines = news(self.last.as_ref(), view);
        match &mut self.bars {
            Some(bars) => {
                for line in lines {
                    bars.println(&line);
                }
                bars.draw(view);
            }
            None => {
                for line in lines {
                    self.output.remark(&line);
                }
                if let Some(progress) = &view.progress
                    && self.line_at.is_none_or(|at| at.elapsed() >= LINE_INTERVAL)
                {
                    self.line_at = Some(Instant::now());
                    self.output.remark(&format!("{:5.1} %  {}", view.percent, progress_text(progress)));
                }
            }
        }
    }

    fn silent(&mut self, error: &CliError) {
        if !self.was_silent {
            self.was_silent = true;
            let text = format!("{}; still asking, and the job goes on meanwhile", error.message);
            match &self.bars {
                Some(bars) => bars.println(&text),
                None => self.output.remark(&text),
            }
        }
    }

    fn clear(&self) {
        if let Some(bars) = &self.bars {
            bars.clear();
        }
    }

    /// The result, on stdout for people; programs had it as the last document.
    fn finish(&self, view: &JobView, exit: Exit) -> Result<(), CliError> {
        self.clear();
        if !self.output.for_programs() {
            self.output.result(view, || summary(view))?;
            if let Some(error) = fault(view, exit) {
                self.output.error(&error);
            }
        }
        Ok(())
    }
}

/// What a job waits for, and what to do about it: that depends on the question, and so does whether the guest runs.
fn waiting(view: &JobView) -> CliError {
    let JobView { job, vm, source, failure, .. } = view;
    if view.question == Some(Question::Target) {
        let mut error =
            CliError::new(Exit::NeedsOperator, format!("{} waits for an answer; it runs on at {source}", vm.name));
        if let Some(failure) = failure {
            error.causes.push(failure.message.clone());
            error.causes.extend_from_slice(&failure.causes);
        }
        return error
            .hint(format!("once what stands in the way is mended: sterna job answer {job} retry"))
            .hint(format!("to put a disk into another pool: sterna job answer {job} place DISK=POOL"))
            .hint(format!("to give it up: sterna job cancel {job}"));
    }
    CliError::new(Exit::NeedsOperator, format!("{} waits for an operator", vm.name)).hint(format!(
        "the guest stands still until both hosts can talk; if one is gone for good and fenced: \
         sterna vm resolve {} --fenced HOST",
        vm.name
    ))
}

/// Why a job failed, or what it waits for; none of one that is over otherwise.
pub(super) fn fault(view: &JobView, exit: Exit) -> Option<CliError> {
    let name = &view.vm.name;
    match (exit, &view.failure) {
        (Exit::Failed, Some(failure)) => {
            let head = match view.kind {
                // What is wrong with the replica says itself whose it is.
                JobKind::Verify | JobKind::Rehearse => String::new(),
                kind if kind.only_looks() => String::new(),
                JobKind::Replicate => format!("{name} was not replicated: "),
                JobKind::Clone => format!("{name} was not made: "),
                JobKind::Cutover => format!("{name} was not cut over: "),
                _ => format!("{name} was not moved: "),
            };
            let mut error = CliError::new(exit, format!("{head}{}", failure.message));
            error.hints.extend(Some(failure.remedy.clone()).filter(|remedy| !remedy.is_empty()));
            // What a check has found is told above, each with its remedy.
            if view.check.is_none() {
                error.causes.clone_from(&failure.causes);
            }
            Some(error.hint(format!("sterna job show {} tells every step", view.job)))
        }
        (Exit::NeedsOperator, _) => Some(waiting(view)),
        _ => None,
    }
}

/// What is new of a job, in the order in which it happened.
fn news(before: Option<&JobView>, view: &JobView) -> Vec<String> {
    let mut news = Vec::new();
    for (index, step) in view.steps.iter().enumerate() {
        let known = before.and_then(|before| before.steps.get(index)).map(|step| step.state);
        if known.unwrap_or_default() != step.state {
            let state = format!("{:?}", step.state).to_lowercase();
            let took = step.seconds.map_or_else(String::new, |seconds| format!(" after {seconds:.1} s"));
            let at = step.finished_at.or(step.started_at).unwrap_or(view.changed_at);
            news.push((at, format!("{} {state}{took}", step.step)));
        }
    }
    // The oldest notices fall out of a status, so that they are known by content and not by position.
    let known = before.map_or(&[][..], |before| &before.notices);
    news.extend(view.notices.iter().filter(|notice| !known.contains(notice)).map(|notice| {
        let who = notice.host.as_ref().map_or("coordinator", |host| host.as_str());
        (notice.at, format!("{who}: {}", notice.text))
    }));
    if before.is_some_and(|before| before.state != view.state) {
        news.push((view.changed_at, format!("job is {}", view.state)));
    }
    news.sort_by_key(|(at, _)| *at);
    let head = before.is_none().then(|| {
        let JobView { job, vm, source, target, .. } = view;
        let of = if view.kind == JobKind::Move { String::new() } else { format!("{} of ", job::kind_name(view.kind)) };
        match view.kind {
            JobKind::Clone => format!("job {job}: clone {} at {target}", vm.name),
            JobKind::Rehearse => format!("job {job}: {} at {target}", vm.name),
            JobKind::Verify => format!("job {job}: {of}the replica of {} at {target}", vm.name),
            JobKind::Replicate => format!("job {job}: {of}{} from {source} to {target}", vm.name),
            _ => format!("job {job}: {of}{} from {source} to {target} ({})", vm.name, job::mode_name(view.mode)),
        }
    });
    head.into_iter().chain(news.into_iter().map(|(_, line)| line)).collect()
}

/// What became of a job, in a line.
pub(super) fn summary(view: &JobView) -> String {
    let took = match (view.started_at, view.finished_at) {
        (Some(started), Some(finished)) => format!(" after {:.1} s", finished.seconds_since(started)),
        _ => String::new(),
    };
    let name = &view.vm.name;
    if let Some(report) = &view.check {
        return format!("{}{took}", check::told(report));
    }
    match view.state {
        JobState::Terminated | JobState::Killed
            if view.kind.only_looks() || matches!(view.kind, JobKind::Verify | JobKind::Rehearse) =>
        {
            format!("{name}: cancelled{took}")
        }
        JobState::Completed => {
            let blackout = view.blackout_ms.map_or_else(String::new, |ms| format!(", blackout {ms:.1} ms"));
            if view.kind == JobKind::Replicate {
                format!("{name}: replicated to {}{took}; its snapshots: sterna replicate show {name}", view.target)
            } else if view.kind == JobKind::Clone {
                format!("{name}: made at {}{took}", view.target)
            } else if view.kind == JobKind::Rehearse {
                let healthy = view.steps.iter().find_map(|step| step.healthy_ms).unwrap_or_default();
                format!("{name}: healthy {}.{} s after its start; deleted{took}", healthy / 1000, healthy % 1000 / 100)
            } else if view.kind == JobKind::Verify {
                format!("{name}: its replica at {} holds what was written to it{took}", view.target)
            } else if view.kind == JobKind::Stage {
                format!(
                    "{name}: {} is prepared for it{took}; the planned VM has the job's id, see `sterna plan list`",
                    view.target
                )
            } else if view.kind == JobKind::Cutover {
                format!("{name}: cut over to {}{took}{blackout}; back with sterna cutover revert {name}", view.target)
            } else if view.source == view.target {
                format!("{name}: disks moved on {}{took}{blackout}", view.target)
            } else {
                format!("{name}: moved to {}{took}{blackout}", view.target)
            }
        }
        JobState::Terminated | JobState::Killed if view.kind == JobKind::Clone => {
            format!("{name}: cancelled{took}; it was not made")
        }
        JobState::Terminated | JobState::Killed => {
            format!("{name}: cancelled{took}; it is on {} as before", view.source)
        }
        JobState::QueryPending => match view.question {
            Some(Question::Target) => {
                format!("{name}: the target cannot take it as planned; it runs on at {}", view.source)
            }
            _ => format!("{name}: the handover is not resolved"),
        },
        _ => format!("{name}: failed{took}"),
    }
}

/// Progress in one line: step and pass, what is done, what was dirtied anew, rate and estimate.
pub(super) fn progress_text(progress: &ProgressView) -> String {
    let mut parts = vec![place(progress)];
    parts.extend(volume_text("disks", &progress.disk));
    parts.extend(volume_text("memory", &progress.memory));
    parts.extend(pace(progress));
    parts.join(", ")
}

/// The step, and the pass where there are any.
fn place(progress: &ProgressView) -> String {
    match progress.step {
        StepKind::CopyDisks | StepKind::CopyMemory => format!("{} pass {}", progress.step, progress.pass),
        step => step.to_string(),
    }
}

/// Rate and estimate, once there are such.
fn pace(progress: &ProgressView) -> impl Iterator<Item = String> {
    let rate = (progress.bytes_per_second > 0).then(|| Bandwidth(progress.bytes_per_second).to_string());
    let left = progress.remaining_seconds.filter(|seconds| *seconds > 0);
    rate.into_iter().chain(left.map(|seconds| format!("about {seconds} s left")))
}

fn volume_text(name: &str, volume: &VolumeView) -> Option<String> {
    if volume.total == 0 && volume.dirtied == 0 {
        return None;
    }
    let mut text = format!("{name} {} of {}", ByteCount(volume.done), ByteCount(volume.total));
    if volume.dirtied > 0 {
        text.push_str(&format!(" (+ {} of {} dirtied anew)", ByteCount(volume.redone), ByteCount(volume.dirtied)));
    }
    Some(text)
}

/// Two bars, one for disks and one for memory, under a line that says where the job is.
struct Bars {
    all: MultiProgress,
    head: ProgressBar,
    disk: ProgressBar,
    memory: ProgressBar,
}

impl Bars {
    fn new() -> Self {
        // The templates are constants; a wrong one shows as the default style and breaks nothing.
        let style = |template: &str| {
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ")
        };
        let all = MultiProgress::new();
        let head = all.add(ProgressBar::new(1000));
        head.set_style(style("{wide_msg}"));
        let bar = |prefix: &'static str| {
            let bar = all.add(ProgressBar::new(1)); // Empty, where 0 of 0 would be drawn as full.
            bar.set_style(style("{prefix:7} [{bar:30}] {msg}"));
            bar.set_prefix(prefix);
            bar
        };
        let (disk, memory) = (bar("disks"), bar("memory"));
        Self { all, head, disk, memory }
    }

    fn println(&self, line: &str) {
        // That stderr is closed is no reason to stop watching.
        let _ = self.all.println(line);
    }

    fn draw(&self, view: &JobView) {
        let Some(progress) = &view.progress else {
            self.head.set_message(format!("{:5.1} %  {}", view.percent, view.state));
            return;
        };
        let parts: Vec<String> = std::iter::once(place(progress)).chain(pace(progress)).collect();
        self.head.set_message(format!("{:5.1} %  {}", view.percent, parts.join("  ")));
        for (bar, volume) in [(&self.disk, &progress.disk), (&self.memory, &progress.memory)] {
            if volume.total == 0 {
                continue; // Not begun, or there is none: nothing of 0 bytes would look like all of it.
            }
            bar.set_length(volume.total.max(bar.length().unwrap_or(0)));
            bar.set_position(volume.done.max(bar.position()));
            let again = if volume.dirtied > 0 {
                format!("  + {} of {} dirtied anew", ByteCount(volume.redone), ByteCount(volume.dirtied))
            } else {
                String::new()
            };
            let (done, total) = (ByteCount(volume.done), ByteCount(volume.total));
            bar.set_message(format!("{done} of {total}{again}, {} left", ByteCount(volume.remaining)));
        }
    }

    fn clear(&self) {
        let _ = self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::job::{Event, EventBody, JobStatus, Progress, Reporter, StepFigures, Volume};

    use super::*;
    use crate::fleet::Fleet;
    use crate::planner::{example, plan};

    /// A job that has gone through these, one a second.
    fn view(bodies: Vec<EventBody>, progress: Option<&Progress>) -> JobView {
        let mut fleet = Fleet::default();
        let mut source = example::inventory("alpha");
        source.vms = vec![example::report(&example::vm("web"))];
        fleet.heard(source, example::now(), Duration::ZERO);
        fleet.heard(example::inventory("beta"), example::now(), Duration::ZERO);
        let plan = plan(&fleet, [], &example::request(), example::seeds()).expect("a plan");
        let mut status = JobStatus::planned(plan.clone());
        let accepted = EventBody::Accepted { plan: Box::new(plan) };
        for (number, body) in (1..).zip(std::iter::once(accepted).chain(bodies)) {
            let reporter = Reporter::Host("alpha".parse().expect("a name"));
            let (at, sequence) = (example::later(number), u64::try_from(number).expect("small"));
            status.apply(&Event { job: status.job, reporter, sequence, at, body }).expect("legal");
        }
        JobView::new(&status, progress)
    }

    #[test]
    fn news_come_once_and_in_the_order_in_which_they_happened() {
        let started = |step| EventBody::StepStarted { step };
        let finished = |step| EventBody::StepFinished { step, figures: StepFigures::default() };
        let mut bodies = vec![started(StepKind::Prepare)];
        let first = view(bodies.clone(), None);
        assert_eq!(news(None, &first)[1..], ["prepare running"]);
        assert!(news(None, &first)[0].ends_with(": web from alpha to beta (live)"), "{:?}", news(None, &first));
        assert_eq!(news(Some(&first), &first), Vec::<String>::new());
        bodies.extend([
            finished(StepKind::Prepare),
            EventBody::Notice { text: "a lane is down".to_owned() },
            started(StepKind::CopyDisks),
            finished(StepKind::CopyDisks),
            EventBody::Completed { blackout_us: 1 },
        ]);
        let last = view(bodies, None);
        assert_eq!(
            news(Some(&first), &last),
            [
                "prepare finished after 1.0 s",
                "alpha: a lane is down",
                "copy_disks finished after 1.0 s",
                "job is completed"
            ]
        );
    }

    #[test]
    fn a_progress_line_says_nothing_of_what_there_is_not() {
        let volume = Volume { total: 4096, done: 1024, ..Volume::default() };
        let mut progress = Progress {
            job: example::job(1),
            host: "alpha".parse().expect("a name"),
            at: example::later(9),
            step: StepKind::Prepare,
            pass: 0,
            disk: Volume::default(),
            memory: Volume::default(),
            bytes_per_second: 0,
            remaining_seconds: Some(0),
        };
        let line = |progress: &Progress| {
            let view = view(vec![EventBody::StepStarted { step: progress.step }], Some(progress));
            progress_text(&view.progress.expect("it runs"))
        };
        assert_eq!(line(&progress), "prepare");
        progress = Progress { step: StepKind::CopyDisks, pass: 1, disk: volume, ..progress };
        assert_eq!(line(&progress), "copy_disks pass 1, disks 1 KiB of 4 KiB");
        progress = Progress { bytes_per_second: 1024, remaining_seconds: Some(3), ..progress };
        assert_eq!(line(&progress), "copy_disks pass 1, disks 1 KiB of 4 KiB, 1 KiB/s, about 3 s left");
    }
}
