//! Pages of a list of jobs: Google's `filter`, `pageSize` and `pageToken`.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use crate::id::JobId;
use crate::job::{JobState, JobStatus};
use crate::time::Timestamp;

/// Which of the jobs of one kind are listed, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Those of this VM, by its name or id; of a clone also by those of the VM that it is one of. Of all where it is left out.
    pub vm: Option<String>,
    /// Those in one of these states; in any where it is empty.
    pub states: Vec<JobState>,
    /// So many at most.
    pub size: usize,
    /// Those that come after the page before.
    pub after: Option<PageToken>,
}

/// Where a page ends: its last job. It says as much when that job is listed no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageToken {
    submitted_at: Timestamp,
    job: JobId,
}

impl Page {
    /// The latest of all.
    #[must_use]
    pub const fn latest(size: usize) -> Self {
        Self { vm: None, states: Vec::new(), size, after: None }
    }

    /// The jobs of this page, and where the next one begins if there is more.
    pub fn of<'a>(&self, jobs: impl IntoIterator<Item = &'a JobStatus>) -> (Vec<&'a JobStatus>, Option<PageToken>) {
        let is_left = |job: &&JobStatus| self.after.is_none_or(|after| PageToken::of(job) < after);
        let mut jobs: Vec<_> = jobs.into_iter().filter(|job| self.takes(job)).filter(is_left).collect();
        jobs.sort_by_key(|job| Reverse(PageToken::of(job)));
        let more = jobs.len() > self.size;
        jobs.truncate(self.size);
        let next = jobs.last().filter(|_| more).map(|last| PageToken::of(last));
        (jobs, next)
    }

    fn takes(&self, job: &JobStatus) -> bool {
        let plan = &job.plan;
        let is_of = |vm: &String| {
            let replica = plan.clone.as_ref().map(|clone| clone.replica);
            job.request.vm == *vm
                || plan.vm.name.as_str() == vm
                || [Some(plan.vm.id), replica].into_iter().flatten().any(|id| id.to_string() == *vm)
        };
        self.vm.as_ref().is_none_or(is_of) && (self.states.is_empty() || self.states.contains(&job.state))
    }
}

impl PageToken {
    fn of(job: &JobStatus) -> Self {
        Self { submitted_at: job.submitted_at, job: job.job }
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.submitted_at.unix_microseconds(), self.job)
    }
}

impl FromStr for PageToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('.').and_then(|(at, job)| Some((at.parse().ok()?, job.parse().ok()?)));
        let (at, job) = parts.ok_or("give the token of the page before, as that was told")?;
        Ok(Self { submitted_at: Timestamp::from_unix_microseconds(at), job })
    }
}
