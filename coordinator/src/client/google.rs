//! Replications and clones as Google's Migrate to VMs has them: what they are computed from, of one moment as near as can be.

use sterna_shared::bus::ApiErrorKind;
use sterna_shared::job::{JobStatus, Progress};
use sterna_shared::replica::ReplicaView;
use sterna_shared::time::Timestamp;
use sterna_shared::view::google::{Known, Rates};

use super::{Client, ClientError};

/// All that the coordinators have told of replications and clones.
#[derive(Debug, Clone)]
pub struct Replications {
    jobs: Vec<JobStatus>,
    replicas: Vec<ReplicaView>,
    progress: Vec<(Progress, Rates)>,
    now: Timestamp,
}

impl Replications {
    /// The same for the face to look at.
    #[must_use]
    pub fn known(&self) -> Known<'_> {
        let Self { jobs, replicas, progress, now } = self;
        Known { jobs, replicas, progress, now: *now }
    }
}

impl Client {
    /// What Google's lists and resources are computed from ([`Replications::known`]). `now` is for how long things have been paused.
    /// Besides jobs and replicas it is asked how far each cycle is that is under way: hence some requests more.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn replications(&self, now: Timestamp) -> Result<Replications, ClientError> {
        let (jobs, replicas) = (self.jobs().await?, self.replicas().await?);
        let mut told = Replications { jobs, replicas, progress: Vec::new(), now };
        for cycle in told.known().under_way() {
            match self.job(cycle).await {
                Ok(job) => told.progress.extend(job.progress.map(|progress| (progress, job.rates))),
                // It was over meanwhile, and is not listed any more.
                Err(ClientError::Api { error }) if error.kind == ApiErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(told)
    }
}
