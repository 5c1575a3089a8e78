//! Google's methods, asked of the coordinators; and what its lists and resources are computed from, of one moment as near as can be.

use sterna_shared::bus::{ApiErrorKind, ApiReply, ApiRequest};
use sterna_shared::id::JobId;
use sterna_shared::time::Timestamp;
use sterna_shared::view::google::Method;

use super::{Client, ClientError};
use crate::google::Replications;

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

    /// Asks a method of Google's, whose request is JSON: its answer in JSON, and what of the request was left aside. The id is of the
    /// job that comes of it, if any, where the request has none.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn google(
        &self,
        method: Method,
        request: &str,
        job: JobId,
    ) -> Result<(String, Vec<String>), ClientError> {
        match self.ask(&ApiRequest::Google { method, body: request.to_owned(), job }).await? {
            ApiReply::Google { body, warnings } => Ok((body, warnings)),
            other => Err(ClientError::unexpected(&other)),
        }
    }
}
