//! Following a job: bars on a terminal, lines elsewhere, one JSON document a change for programs.
//!
//! The job is asked for twice a second. What is done and what was dirtied anew are shown apart, and the percentage
//! keeps its highest value, so that progress never runs backwards. Ctrl-C stops the watching and never the job.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use sterna_shared::job::JobState;
use sterna_shared::units::{Bandwidth, ByteCount};
use tokio::time::{Instant, MissedTickBehavior};

use super::bus::Bus;
use super::error::{CliError, Exit};
use super::job;
use super::output::Output;
use crate::view::{JobView, ProgressView, VolumeView};

/// How often the job is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long nobody may answer before the watching gives up: longer than a coordinator's failover takes.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a job may wait for an operator before the watching ends with that word: agents often resolve by themselves
/// when the link comes back.
const PENDING_PATIENCE: Duration = Duration::from_secs(10);
/// How far apart progress lines are where bars cannot be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(first: JobView, bus: &Bus, output: Output) -> Result<Exit, CliError> {
    let job = first.job;
    let mut watch = Watch::new(output);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut view, mut heard_at, mut pending_since) = (first, Instant::now(), None);
    loop {
        view.percent = watch.see(&view)?;
        pending_since = (view.state == JobState::QueryPending).then(|| pending_since.unwrap_or_else(Instant::now));
        let waited_enough = pending_since.is_none_or(|since: Instant| since.elapsed() >= PENDING_PATIENCE);
        if let Some(exit) = Exit::of_job(view.state).filter(|_| waited_enough) {
            watch.finish(&view, exit)?;
            return Ok(exit);
        }
        let answer = tokio::select! {
            _ = &mut interrupt => {
                watch.clear();
                output.remark(&format!(
                    "stopped watching; the job goes on. Watch again: sterna job watch {job}; \
                     cancel: sterna job cancel {job}"
                ));
                return Ok(Exit::Interrupted);
            }
            answer = async {
                ticks.tick().await;
                job::ask(bus, job).await
            } => answer,
        };
        match answer {
            Ok(next) => (view, heard_at) = (next, Instant::now()),
            Err(error) if error.exit == Exit::Unreachable && heard_at.elapsed() < SILENCE_MAX => watch.silent(&error),
            Err(error) => {
                watch.clear();
                return Err(error.hint(format!("the job goes on; watch again: sterna job watch {job}")));
            }
        }
    }
}

/// What is on the screen, and what was told already.
struct Watch {
    output: Output,
    bars: Option<Bars>,
    last: Option<JobView>,
    percent: f64,
    told: Vec<sterna_shared::job::Notice>,
    line_at: Option<Instant>,
    was_silent: bool,
}

impl Watch {
    fn new(output: Output) -> Self {
        let bars = output.draws().then(Bars::new);
        Self { output, bars, last: None, percent: 0.0, told: Vec::new(), line_at: None, was_silent: false }
    }

    /// Shows what is new of a view; gives the percentage, which never falls.
    fn see(&mut self, view: &JobView) -> Result<f64, CliError> {
        self.was_silent = false;
        self.percent = self.percent.max(view.percent);
        let view = JobView { percent: self.percent, ..view.clone() };
        if self.last.as_ref() == Some(&view) {
            return Ok(self.percent);
        }
        self.output.json_line(&view)?;
        if !self.output.is_json() {
            self.tell(&view);
        }
        self.last = Some(view);
        Ok(self.percent)
    }

    fn tell(&mut self, view: &JobView) {
        let before = self.last.as_ref();
        let mut lines = Vec::new();
        if before.is_none() {
            lines.push(format!(
                "job {}: {} from {} to {} ({})",
                view.job,
                view.vm.name,
                view.source,
                view.target,
                job::mode(view)
            ));
        }
        for (index, step) in view.steps.iter().enumerate() {
            let known = before.and_then(|before| before.steps.get(index)).map(|step| step.state);
            if known.unwrap_or_default() != step.state {
                let state = format!("{:?}", step.state).to_lowercase();
                let took = step.seconds.map_or_else(String::new, |seconds| format!(" after {seconds:.1} s"));
                lines.push(format!("{} {state}{took}", step.step));
            }
        }
        // The oldest notices fall out of a status, so that they are known by content and not by position.
        lines.extend(view.notices.iter().filter(|notice| !self.told.contains(notice)).map(|notice| {
            format!("{}: {}", notice.host.as_ref().map_or("coordinator", |host| host.as_str()), notice.text)
        }));
        self.told.clone_from(&view.notices);
        if before.is_some_and(|before| before.state != view.state) {
            lines.push(format!("job is {}", view.state));
        }
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
        if !self.output.is_json() {
            self.output.result(view, || summary(view))?;
            if exit == Exit::Failed
                && let Some(failure) = &view.failure
            {
                let mut error = CliError::new(exit, format!("{} was not moved: {}", view.vm.name, failure.message));
                error.causes.clone_from(&failure.causes);
                error.hints.extend(Some(failure.remedy.clone()).filter(|remedy| !remedy.is_empty()));
                self.output.error(&error.hint(format!("sterna job show {} tells every step", view.job)));
            }
            if exit == Exit::NeedsOperator {
                let hint = format!(
                    "the guest stands still until both hosts can talk; if one is gone for good and fenced: \
                     sterna vm resolve {} --fenced HOST",
                    view.vm.name
                );
                let message = format!("{} waits for an operator", view.vm.name);
                self.output.error(&CliError::new(exit, message).hint(hint));
            }
        }
        Ok(())
    }
}

fn summary(view: &JobView) -> String {
    let took = match (view.started_at, view.finished_at) {
        (Some(started), Some(finished)) => format!(" after {:.1} s", finished.seconds_since(started)),
        _ => String::new(),
    };
    let name = &view.vm.name;
    match view.state {
        JobState::Completed => {
            let blackout = view.blackout_ms.map_or_else(String::new, |ms| format!(", blackout {ms:.1} ms"));
            if view.source == view.target {
                format!("{name}: disks moved on {}{took}{blackout}", view.target)
            } else {
                format!("{name}: moved to {}{took}{blackout}", view.target)
            }
        }
        JobState::Terminated | JobState::Killed => {
            format!("{name}: cancelled{took}; it is on {} as before", view.source)
        }
        JobState::QueryPending => format!("{name}: the handover is not resolved"),
        _ => format!("{name}: failed{took}"),
    }
}

/// Progress in one line: step and pass, what is done, what was dirtied anew, rate and estimate.
pub(super) fn progress_text(progress: &ProgressView) -> String {
    let mut parts = vec![format!("{} pass {}", progress.step, progress.pass)];
    parts.extend(volume_text("disks", &progress.disk));
    parts.extend(volume_text("memory", &progress.memory));
    parts.push(format!("{}", Bandwidth(progress.bytes_per_second)));
    if let Some(seconds) = progress.remaining_seconds {
        parts.push(format!("about {seconds} s left"));
    }
    parts.join(", ")
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
            let bar = all.add(ProgressBar::new(0));
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
        let left = progress.remaining_seconds.map_or_else(String::new, |seconds| format!("  about {seconds} s left"));
        self.head.set_message(format!(
            "{:5.1} %  {} pass {}  {}{left}",
            view.percent,
            progress.step,
            progress.pass,
            Bandwidth(progress.bytes_per_second)
        ));
        for (bar, volume) in [(&self.disk, &progress.disk), (&self.memory, &progress.memory)] {
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
