//! The operators' API as a program of one's own would speak it: typed answers, and also what the command line would not ask.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sterna_shared::bus::{ApiReply, ApiRequest, Envelope, Subject};
use sterna_shared::id::{Epoch, JobId};
use sterna_shared::job::{JobStatus, ReturnCode};
use tokio::sync::{mpsc, oneshot};

use crate::fleet::Fleet;

/// How long one request may take.
const ASK_WAIT: Duration = Duration::from_secs(30);
/// Requests that wait for the one before.
const CALLS_MAX: usize = 16;
/// Who speaks.
const SENDER: &str = "admin";

type Call = (ApiRequest, oneshot::Sender<anyhow::Result<ApiReply>>);

/// An operator, connected to the broker from the control namespace. Dropping it ends the connection.
#[derive(Debug)]
pub struct Operator {
    calls: mpsc::Sender<Call>,
}

impl Operator {
    /// Connects.
    ///
    /// # Errors
    /// The seed cannot be read, or the broker does not let us in.
    pub async fn connect(fleet: &Fleet) -> anyhow::Result<Self> {
        let seed = std::fs::read_to_string(fleet.folder().join("nats/nkeys/operator-admin.nk"))?.trim().to_owned();
        let inbox = format!("_INBOX.{}", nkeys::KeyPair::from_seed(&seed)?.public_key());
        let options = async_nats::ConnectOptions::with_nkey(seed)
            .add_root_certificates(fleet.folder().join("pki/ca.pem"))
            .require_tls(true)
            .custom_inbox_prefix(inbox);
        let server = format!("tls://{}", fleet.nats.address());
        let (calls, queue) = mpsc::channel(CALLS_MAX);
        let (tell, connected) = oneshot::channel();
        let control = fleet.control.clone();
        // A connection stays in the namespace of the thread that makes it.
        std::thread::spawn(move || {
            control.inside(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async move {
                    let client = options.connect(server).await.map_err(io::Error::other);
                    let _ = tell.send(client.as_ref().map(|_| ()).map_err(|error| anyhow::anyhow!("{error}")));
                    answer(client?, queue).await;
                    Ok(())
                })
            })
        });
        connected.await.context("the operator's thread has ended")??;
        Ok(Self { calls })
    }

    /// Asks the coordinator that leads.
    ///
    /// # Errors
    /// No answer came, or none that can be read.
    pub async fn ask(&self, request: ApiRequest) -> anyhow::Result<ApiReply> {
        let (reply, answered) = oneshot::channel();
        self.calls.send((request, reply)).await.ok().context("the operator's thread has ended")?;
        answered.await.context("the operator's thread has ended")?
    }

    /// A job, as its events so far tell it to the coordinator.
    ///
    /// # Errors
    /// As [`Self::ask`], and there is no such job.
    pub async fn status(&self, job: JobId) -> anyhow::Result<JobStatus> {
        match self.ask(ApiRequest::JobShow { job }).await? {
            ApiReply::Job { status, .. } => Ok(*status),
            other => bail!("job {job} is not shown: {other:?}"),
        }
    }

    /// `RequestStateChange` with any number, answered at once: what it returns, and the job then.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn request_state(&self, job: JobId, requested: u16) -> anyhow::Result<(ReturnCode, JobStatus)> {
        match self.ask(ApiRequest::JobState { job, requested, timeout_ms: None }).await? {
            ApiReply::StateRequested { code, status, .. } => Ok((code, *status)),
            other => bail!("state {requested} of job {job} is not answered: {other:?}"),
        }
    }
}

/// Answers one call after the other, until nobody can make one.
async fn answer(client: async_nats::Client, mut queue: mpsc::Receiver<Call>) {
    while let Some((request, reply)) = queue.recv().await {
        let _ = reply.send(exchange(&client, &request).await);
    }
}

async fn exchange(client: &async_nats::Client, request: &ApiRequest) -> anyhow::Result<ApiReply> {
    let (resource, verb) = request.subject_tokens();
    let subject = Subject::Api(resource.to_owned(), verb.to_owned()).to_string();
    let payload = Envelope::seal("api_request", SENDER, Epoch(0), request)?;
    let asked = async_nats::Request::new().payload(payload.into()).timeout(Some(ASK_WAIT));
    let message = client.send_request(subject, asked).await.with_context(|| format!("{request:?}"))?;
    Ok(Envelope::open(&message.payload)?.message("api_reply")?)
}
