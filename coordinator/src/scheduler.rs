//! Deadlines of planned jobs: one that no agent takes on in time is given up, so that its VM is free again. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_shared::id::JobId;
use sterna_shared::job::{Dispatch, FailureCode, FailureReport, JobStatus};

/// How long a planned job may wait for an agent to accept it.
pub const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(30);

/// The jobs that wait for an agent, each with the end of its patience on the coordinator's monotonic clock.
#[derive(Debug, Default)]
pub struct Scheduler {
    deadlines: BTreeMap<JobId, Duration>,
}

impl Scheduler {
    /// Takes note of where a job stands. A job first seen waiting is given the whole of [`ACCEPT_WAIT_MAX`] from now,
    /// also by a coordinator that has just taken over: nobody's wall clock decides.
    pub fn observe(&mut self, status: &JobStatus, clock: Duration) {
        if status.dispatch == Dispatch::Sent {
            self.deadlines.entry(status.job).or_insert(clock + ACCEPT_WAIT_MAX);
        } else {
            self.deadlines.remove(&status.job);
        }
    }

    /// The jobs whose time is over; each is told once.
    pub fn overdue(&mut self, clock: Duration) -> Vec<JobId> {
        let due: Vec<JobId> =
            self.deadlines.iter().filter(|(_, deadline)| **deadline <= clock).map(|(job, _)| *job).collect();
        for job in &due {
            self.deadlines.remove(job);
        }
        due
    }
}

/// Why an overdue job fails.
#[must_use]
pub fn not_accepted(status: &JobStatus) -> FailureReport {
    let (source, target) = (&status.plan.source.id, &status.plan.target.id);
    FailureReport {
        code: FailureCode::PlanStale,
        message: format!("no agent took the job on within {} s", ACCEPT_WAIT_MAX.as_secs()),
        causes: vec![],
        remedy: format!(
            "see that sterna-agent runs on {source} and {target} and reaches NATS (`sterna doctor`), then ask again"
        ),
        host: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::example;
    use sterna_shared::job::{Event, EventBody, Reporter};

    #[test]
    fn an_accepted_job_is_never_overdue() {
        let mut fleet = crate::fleet::Fleet::default();
        let mut source = example::inventory("alpha");
        source.vms = vec![example::report(&example::vm("web"))];
        fleet.heard(source, example::now(), Duration::ZERO);
        fleet.heard(example::inventory("beta"), example::now(), Duration::ZERO);
        let plan = crate::planner::plan(&fleet, [], &example::request(), example::seeds()).expect("a plan");
        let mut status = JobStatus::planned(plan.clone());

        let mut scheduler = Scheduler::default();
        scheduler.observe(&status, Duration::from_secs(5));
        scheduler.observe(&status, Duration::from_secs(20));
        assert_eq!(scheduler.overdue(Duration::from_secs(34)), vec![]);
        assert_eq!(scheduler.overdue(Duration::from_secs(35)), vec![status.job]);
        assert_eq!(scheduler.overdue(Duration::from_secs(99)), vec![], "told once");

        scheduler.observe(&status, Duration::from_secs(100));
        let accepted = Event {
            job: status.job,
            reporter: Reporter::Host("alpha".parse().expect("a name")),
            sequence: 1,
            at: example::now(),
            body: EventBody::Accepted { plan: Box::new(plan) },
        };
        status.apply(&accepted).expect("legal");
        scheduler.observe(&status, Duration::from_secs(101));
        assert_eq!(scheduler.overdue(Duration::from_secs(999)), vec![]);
    }
}
