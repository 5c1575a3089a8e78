//! A real nats-server: in a namespace or beside the test, stopped and started again with its store kept.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

use crate::guest_image::target;
use crate::namespace::{Host, Link};
use crate::process::Process;

const START_WAIT: Duration = Duration::from_secs(20);
const LISTENING: &str = "Listening for client connections on ";
const READY: &str = "Server is ready";
/// Stands for "any port that is free" on nats-server's command line.
const ANY_PORT: i32 = -1;

/// A nats-server with JetStream. It ends when this is dropped; its store goes with it.
#[derive(Debug)]
pub struct NatsServer {
    folder: TempDir,
    host: Option<Host>,
    address: SocketAddr,
    process: Option<Process>,
}

impl NatsServer {
    /// Starts one in `host`'s namespace (or on loopback beside the test) with the given configuration file's text.
    /// Address and port are set on the command line, over whatever the text says; JetStream's store where it says none.
    pub async fn start(host: Option<&Host>, configuration: &str) -> anyhow::Result<Self> {
        let ip = host.map_or(Ipv4Addr::LOCALHOST, |host| host.address(Link::Data));
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("nats.conf"), configuration)?;
        let mut server = Self { folder, host: host.cloned(), address: (ip, 0).into(), process: None };
        server.restart().await?;
        Ok(server)
    }

    /// Where clients connect: the host's address on the data network, or loopback. The same after a restart.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as clients want it.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// JetStream's store.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The running server.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Kills it, as a crash would; the store stays.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it again (after killing it if it runs) on the same port with the same store.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop();
        let program = program();
        let mut command = match &self.host {
            Some(host) => host.command(&program),
            None => Command::new(&program),
        };
        let port = if self.address.port() == 0 { ANY_PORT } else { self.address.port().into() };
        command.arg("--config").arg(self.folder.path().join("nats.conf"));
        command.args(["--addr", &self.address.ip().to_string(), "--port", &port.to_string()]);
        // nats-server takes a store from the file or from the command line, and not from both.
        if !std::fs::read_to_string(self.folder.path().join("nats.conf"))?.contains("store_dir") {
            command.arg("--jetstream").arg("--store_dir").arg(self.store());
        }
        let process = Process::spawn("nats-server", &mut command, &self.folder.path().join("log"))?;
        let listening = process.wait_for_line(LISTENING, START_WAIT).await?;
        process.wait_for_line(READY, START_WAIT).await?;
        let address = listening.rsplit_once(LISTENING).map(|(_, address)| address);
        self.address =
            address.and_then(|text| text.parse().ok()).with_context(|| format!("no address: {listening}"))?;
        self.process = Some(process);
        Ok(())
    }
}

/// `STERNA_NATS_SERVER`, what `cargo xtask setup` fetched, or the one on PATH.
fn program() -> PathBuf {
    let fetched = target().join("tools/nats-server");
    let found = std::env::var_os("STERNA_NATS_SERVER").map(PathBuf::from);
    found.or_else(|| fetched.is_file().then_some(fetched)).unwrap_or_else(|| "nats-server".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Network;

    #[tokio::test]
    async fn what_is_stored_is_there_after_a_restart() {
        let mut server = NatsServer::start(None, "max_payload: 65536\n").await.expect("starts");
        let address = server.address();
        let client = async_nats::connect(server.url()).await.expect("connects");
        assert_eq!(client.server_info().max_payload, 65_536, "the configuration is read");
        let jetstream = async_nats::jetstream::new(client);
        let bucket = async_nats::jetstream::kv::Config { bucket: "kept".into(), ..Default::default() };
        let bucket = jetstream.create_key_value(bucket).await.expect("a bucket");
        bucket.put("key", "value".into()).await.expect("put");

        server.restart().await.expect("starts again");
        assert_eq!(server.address(), address);
        let client = async_nats::connect(server.url()).await.expect("connects again");
        let bucket = async_nats::jetstream::new(client).get_key_value("kept").await.expect("still there");
        assert_eq!(bucket.get("key").await.expect("read").as_deref(), Some(b"value".as_slice()));
    }

    #[tokio::test]
    async fn in_a_namespace_it_is_reached_from_another_and_by_nobody_else() {
        let mut network = Network::new().expect("a network");
        let (host, client) = (network.host("nats").expect("a host"), network.host("client").expect("a client"));
        let server = NatsServer::start(Some(&host), "").await.expect("starts");
        let mut stream = client.connect_tcp(server.address(), Duration::from_secs(5)).expect("connects");
        let mut greeting = [0; 5];
        std::io::Read::read_exact(&mut stream, &mut greeting).expect("a greeting");
        assert_eq!(&greeting, b"INFO ");
        let beside = std::net::TcpStream::connect_timeout(&server.address(), Duration::from_millis(300));
        assert!(beside.is_err(), "the namespace's addresses are not those of the machine");
    }
}
