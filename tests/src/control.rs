//! The control plane as a coordinator speaks it, for what the command line would not let through.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use sterna_agent::journal::Journal;
use sterna_coordinator::bus::Bus;
use sterna_coordinator::config::Retention;
use sterna_coordinator::store::Store;
use sterna_shared::bus::{AgentReply, AgentRequest, Command, Envelope, NatsSettings, Subject};
use sterna_shared::host::Inventory;
use sterna_shared::id::{Epoch, HostId, JobId};
use sterna_shared::job::Plan;
use tokio::time::Instant;

use crate::fleet::Fleet;

/// How long a process may take to stand still once it is told.
const STOPPED_AFTER: Duration = Duration::from_millis(50);

/// How long one request may take.
const ASK_WAIT: Duration = Duration::from_secs(60);
/// How long an agent that is just starting may take over one: what it does not answer then is asked again.
const START_ASK_WAIT: Duration = Duration::from_secs(5);
/// Who speaks.
const SENDER: &str = "main";

impl Fleet {
    /// Asks an agent as a coordinator does.
    pub async fn ask_agent(&self, host: &str, request: &AgentRequest) -> anyhow::Result<AgentReply> {
        self.ask_agent_within(host, request, ASK_WAIT).await
    }

    async fn ask_agent_within(&self, host: &str, request: &AgentRequest, wait: Duration) -> anyhow::Result<AgentReply> {
        let request = Envelope::seal("agent_request", SENDER, Epoch(0), request)?;
        let host: HostId = host.parse()?;
        let answer =
            self.as_coordinator(async move |bus| bus.ask(&host, request, wait).await.map_err(io::Error::other)).await?;
        Ok(Envelope::open(&answer)?.message("agent_reply")?)
    }

    /// What an agent says that its host is and has.
    pub async fn inventory(&self, host: &str) -> anyhow::Result<Inventory> {
        match self.ask_agent(host, &AgentRequest::Inventory).await? {
            AgentReply::Inventory { inventory } => Ok(*inventory),
            other => bail!("the agent of {host} answers {other:?}"),
        }
    }

    /// Waits until a host's agent answers over the broker: it says that it is ready before the broker knows of it.
    pub async fn wait_for_agent(&self, host: &str, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.ask_agent_within(host, &AgentRequest::Inventory, START_ASK_WAIT).await {
                Ok(_) => return Ok(()),
                Err(error) => ensure!(Instant::now() < deadline, "the agent of {host} does not answer: {error:#}"),
            }
        }
    }

    /// Gives an agent a command, as the coordinator of that epoch does. Commands reach it in the order in which they were
    /// given.
    pub async fn command(&self, host: &str, epoch: Epoch, command: &Command) -> anyhow::Result<()> {
        let subject = Subject::Command(host.parse()?, command.job());
        let body = Envelope::seal("command", SENDER, epoch, command)?;
        // The broker drops a message whose id it has seen.
        let id = uuid::Uuid::new_v4().to_string();
        self.as_coordinator(async move |bus| {
            let store = Box::pin(Store::open(&bus, Retention::default())).await.map_err(io::Error::other)?;
            store.publish(&subject, &id, body).await.map(drop).map_err(io::Error::other)
        })
        .await
    }

    /// The plan of a job as a host has it, token included: from a copy of its journal.
    pub fn plan_of(&self, host: &str, job: JobId) -> anyhow::Result<Plan> {
        let journal = self.folder().join(host).join("state/journal.redb");
        let copy = self.folder().join(format!("journal-{host}-{job}.redb"));
        // Not in the middle of a write: as a crash would leave it.
        let agent = self.agent(host)?.process();
        agent.map_or(Ok(()), |agent| agent.signal(Signal::STOP))?;
        std::thread::sleep(STOPPED_AFTER);
        let copied = std::fs::copy(&journal, &copy);
        agent.map_or(Ok(()), |agent| agent.signal(Signal::CONT))?;
        copied?;
        Ok(Journal::open(&copy)?.job(job)?.with_context(|| format!("{host} does not know job {job}"))?.plan)
    }

    /// Does something with a coordinator's connection, which is made in the control namespace.
    async fn as_coordinator<T, F>(&self, work: F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce(Bus) -> io::Result<T> + Send + 'static,
    {
        let settings = NatsSettings {
            servers: vec![format!("tls://{}", self.nats.address())],
            ca_file: Some(self.folder().join("pki/ca.pem")),
            nkey_file: Some(self.folder().join("nats/nkeys/coordinator-main.nk")),
            credentials_file: None,
        };
        let control = self.control.clone();
        let run = move || {
            control.inside(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async move {
                    let bus = Bus::connect(&settings, "test").await.map_err(io::Error::other)?;
                    work(bus).await
                })
            })
        };
        tokio::task::spawn_blocking(run).await?.context("over the control namespace")
    }
}
