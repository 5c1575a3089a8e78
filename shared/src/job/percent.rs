//! How far a job is, in one number, for every face of it.

use super::{JobKind, JobState, JobStatus, Progress, StepKind, StepState, Volume};

/// What the copying is worth; the steps around it share the rest.
const COPY_FROM_PERCENT: f64 = 2.0;
const COPY_TO_PERCENT: f64 = 95.0;

impl JobStatus {
    /// Progress that still says something: of this job, and while agents have it in hand. The last of it may come after the
    /// word that the job is suspended.
    #[must_use]
    pub fn latest<'a>(&self, progress: Option<&'a Progress>) -> Option<&'a Progress> {
        progress.filter(|progress| progress.job == self.job && self.is_active())
    }

    /// Percent of the job, 0 to 100, to a tenth. Copying is weighed by what the plan says there is to carry, and not by
    /// what a progress message says its totals are, so that memory joining in later does not throw the number back; steps
    /// that have begun set a floor. What is dirtied anew does not count. 100 is for completed jobs only.
    #[must_use]
    pub fn percent(&self, progress: Option<&Progress>) -> f64 {
        if self.state == JobState::Completed {
            return 100.0;
        }
        let progress = self.latest(progress);
        let finished = |kind| self.steps.iter().any(|step| step.kind == kind && step.state == StepState::Finished);
        let floor = self
            .steps
            .iter()
            .filter(|step| step.state != StepState::Waiting)
            .map(|step| floor_percent(step.kind))
            .fold(0.0, f64::max);
        let share = |kind, volume: Option<Volume>| {
            if finished(kind) { 1.0 } else { volume.map_or(0.0, |volume| ratio(volume.done, volume.total)) }
        };
        let disk_step = match self.plan.kind {
            JobKind::DeepCheck | JobKind::Verify => StepKind::ReadDisks,
            _ => StepKind::CopyDisks,
        };
        let disk = share(disk_step, progress.map(|progress| progress.disk));
        let memory = share(StepKind::CopyMemory, progress.map(|progress| progress.memory));
        let (disk_weight, memory_weight) = match self.plan.kind {
            JobKind::Check => (0, 0),
            JobKind::DeepCheck | JobKind::Verify => (self.plan.vm.disks.iter().map(|disk| disk.size.0).sum(), 0),
            // The guest runs on where it is, and its memory stays with it.
            JobKind::Replicate | JobKind::Clone | JobKind::Rehearse => (self.plan.disk_bytes().0, 0),
            JobKind::Move | JobKind::Cutover | JobKind::Stage => (self.plan.disk_bytes().0, self.plan.memory_bytes().0),
        };
        let whole = float(disk_weight) + float(memory_weight);
        let copied =
            if whole > 0.0 { disk.mul_add(float(disk_weight), memory * float(memory_weight)) / whole } else { 0.0 };
        let copying =
            if copied > 0.0 { copied.mul_add(COPY_TO_PERCENT - COPY_FROM_PERCENT, COPY_FROM_PERCENT) } else { 0.0 };
        // One digit behind the point: more would be noise.
        (copying.max(floor) * 10.0).floor() / 10.0
    }
}

const fn floor_percent(kind: StepKind) -> f64 {
    match kind {
        StepKind::Prepare | StepKind::CloneDisks => 0.0,
        StepKind::CopyDisks | StepKind::CopyMemory | StepKind::AdaptOs => COPY_FROM_PERCENT,
        StepKind::Switchover | StepKind::ShutDown => COPY_TO_PERCENT,
        StepKind::Prove | StepKind::Commit => 97.0,
        StepKind::Handover | StepKind::Instantiate => 98.0,
        StepKind::Release | StepKind::Probe => 99.0,
        // A check is over within seconds; the reading before it is what takes long.
        StepKind::ReadDisks | StepKind::Check => 0.0,
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (float(part) / float(whole)).min(1.0) }
}

/// Counts of bytes are below 2^53 wherever a fraction of them is shown.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}
