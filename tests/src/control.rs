//! The control plane as a coordinator speaks it, for what the command line would not let through.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sterna_coordinator::bus::Bus;
use sterna_shared::bus::{AgentReply, AgentRequest, Envelope, NatsSettings};
use sterna_shared::id::{Epoch, HostId};
use tokio::time::Instant;

use crate::fleet::Fleet;

/// How long one request may take.
const ASK_WAIT: Duration = Duration::from_secs(60);
/// Who asks.
const SENDER: &str = "main";

impl Fleet {
    /// Asks an agent as a coordinator does.
    pub async fn ask_agent(&self, host: &str, request: &AgentRequest) -> anyhow::Result<AgentReply> {
        let settings = self.coordinator_settings();
        let request = Envelope::seal("agent_request", SENDER, Epoch(0), request)?;
        let host: HostId = host.parse()?;
        let answer = self
            .in_control(async move {
                let bus = Bus::connect(&settings, "test").await.map_err(io::Error::other)?;
                bus.ask(&host, request, ASK_WAIT).await.map_err(io::Error::other)
            })
            .await?;
        Ok(Envelope::open(&answer)?.message("agent_reply")?)
    }

    /// Waits until a host's agent answers over the broker: it says that it is ready before the broker knows of it.
    pub async fn wait_for_agent(&self, host: &str, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.ask_agent(host, &AgentRequest::Inventory).await {
                Ok(AgentReply::Inventory { .. }) => return Ok(()),
                other => ensure!(Instant::now() < deadline, "the agent of {host} does not answer: {other:?}"),
            }
        }
    }

    fn coordinator_settings(&self) -> NatsSettings {
        NatsSettings {
            servers: vec![format!("tls://{}", self.nats.address())],
            ca_file: Some(self.folder().join("pki/ca.pem")),
            nkey_file: Some(self.folder().join("nats/nkeys/coordinator-main.nk")),
            credentials_file: None,
        }
    }

    /// Runs to its end what makes connections of the control namespace.
    async fn in_control<T, F>(&self, work: F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
    {
        let control = self.control.clone();
        let run = move || {
            control.inside(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(work)
            })
        };
        tokio::task::spawn_blocking(run).await?.context("over the control namespace")
    }
}
