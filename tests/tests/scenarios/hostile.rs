//! Peers that have what it takes to be heard, or nearly: a certificate of the fleet for another role, and a stolen
//! certificate with the right job and token. Whatever they send costs them the connection; the agent neither panics nor
//! grows, nothing stays behind, and an honest move follows.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error as RustlsError, SignatureScheme};
use sterna_agent::link::tls::ALPN;
use sterna_shared::job::Plan;
use sterna_shared::peer::attach::{self, Answer, Attach, RefusalCode, SessionId};
use sterna_shared::peer::frame::{CONTENT_LENGTH_MAX, FrameKind, Header};
use sterna_shared::peer::hello;
use sterna_shared::peer::message::Message;
use sterna_tests::fleet::{AGENT_PORT, Fleet, WitnessWish, binary};
use sterna_tests::moves::{Guest, ended};
use sterna_tests::namespace::{Host, Link};
use sterna_tests::scenario::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a move may take to end.
const WAIT: Duration = Duration::from_secs(120);
/// How long the agent may take to hang up, or to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How often everything is sent, each time over another lane.
const ROUNDS: u8 = 12;
/// How much the agent may grow by all that, in KiB.
const GROWTH_MAX_KIB: u64 = 32 << 10;

#[tokio::test]
async fn whatever_an_admitted_peer_sends_harms_nobody() {
    let mut fleet = Fleet::start(&["alpha", "bravo"]).await.expect("a fleet");
    let outcome = hostile(&mut fleet).await;
    if outcome.is_err() {
        eprintln!("{}", fleet.logs());
    }
    outcome.expect("harmless");
}

async fn hostile(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut guest = Guest::start(fleet, ["alpha", "bravo"], &WitnessWish::small("witness")).await?;
    let process = fleet.agent_process_id("bravo")?;
    // The source is held up, so that somebody else comes first with what only it should have.
    let source = fleet.agent("alpha")?.process().context("the source's agent runs")?;
    source.signal(Signal::STOP)?;
    let job = guest.begin_move(fleet, "bravo", &[]).await?;
    let attacked = attack(fleet, &job, process).await;
    source.signal(Signal::CONT)?;
    attacked?;

    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "exception", "the token was used up: {over:#}");
    ensure!(guest.settled_at(fleet, WAIT).await? == "alpha", "the guest is elsewhere");
    let left = guest.left_behind(fleet, "alpha", ANSWER_WAIT).await?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(fleet.agent_process_id("bravo")? == process, "the agent is another");
    let panicked = std::fs::read_to_string(fleet.agent("bravo")?.log())?.contains("panicked");
    ensure!(!panicked, "the agent has panicked");
    guest.hosts_online(fleet, WAIT).await?;
    guest.move_to(fleet, "bravo").await?;
    guest.expect_whole().await
}

async fn attack(fleet: &Fleet, job: &str, process: u32) -> anyhow::Result<()> {
    let job = job.parse()?;
    let known = || async { Ok(fleet.plan_of("bravo", job).ok()) };
    let plan = eventually("the plan at the target", WAIT, known).await?;
    let peer = Peer { from: fleet.client.clone(), to: address(fleet)?, plan };
    let pki = fleet.folder().join("pki");
    for role in ["coordinator", "operator"] {
        issue(&pki, role, "mallory")?;
        match peer.attach(&pki, &format!("{role}-mallory"), 0).await? {
            (_, Answer::Refused(refusal)) if refusal.code == RefusalCode::WrongRole => {
                eprintln!("a {role}: {}", refusal.text);
            }
            (_, answer) => bail!("a {role} is answered by {answer:?}"),
        }
    }

    // Once around before it is measured: buffers and threads are made at their first use.
    for round in 0..peer.plan.lanes {
        peer.send_all(&pki, round).await?;
    }
    let before = resident_kib(process)?;
    for round in 0..ROUNDS {
        peer.send_all(&pki, round).await?;
    }
    let after = resident_kib(process)?;
    eprintln!("the agent: {before} KiB before, {after} KiB after");
    ensure!(after < before + GROWTH_MAX_KIB, "the agent has grown from {before} to {after} KiB");
    Ok(())
}

fn address(fleet: &Fleet) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from((fleet.agent("bravo")?.host.address(Link::Data), AGENT_PORT)))
}

/// Makes what is sent from the number that the lane's next frame has.
type Evil = Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>;

/// Somebody on the network who has learnt of a job.
struct Peer {
    from: Host,
    to: SocketAddr,
    plan: Plan,
}

impl Peer {
    /// Opens a connection with one of the fleet's certificates, and asks for a lane.
    async fn attach(&self, pki: &Path, certificate: &str, lane: u8) -> anyhow::Result<(TlsStream<TcpStream>, Answer)> {
        let (from, to) = (self.from.clone(), self.to);
        let tcp = tokio::task::spawn_blocking(move || from.connect_tcp(to, CONNECT_WAIT)).await??;
        tcp.set_nonblocking(true)?;
        let connector = TlsConnector::from(Arc::new(client(pki, certificate)?));
        let name = ServerName::IpAddress(self.to.ip().into());
        let mut stream = connector.connect(name, TcpStream::from_std(tcp)?).await?;
        let attach = Attach {
            job: self.plan.job,
            token: self.plan.token.clone(),
            session: SessionId(uuid::Uuid::from_u128(7)),
            incarnation: 0,
            lane,
            lanes: self.plan.lanes,
            received: 0,
            instance: None,
        };
        stream.write_all(&hello::encode_offer(hello::SUPPORTED)).await?;
        stream.write_all(&attach::encode(&attach)?).await?;
        stream.flush().await?;
        let answer = async {
            let mut chosen = [0; hello::HELLO_LENGTH];
            stream.read_exact(&mut chosen).await?;
            let length = stream.read_u32().await?;
            let mut answer = vec![0; usize::try_from(length)?];
            stream.read_exact(&mut answer).await?;
            Ok::<Answer, anyhow::Error>(attach::decode(&answer)?)
        };
        let answer = tokio::time::timeout(ANSWER_WAIT, answer).await.context("no answer")??;
        Ok((stream, answer))
    }

    /// Sends each of the things that no honest source sends, over a connection of its own; each must be hung up on.
    async fn send_all(&self, pki: &Path, round: u8) -> anyhow::Result<()> {
        let evil = self.evil(round);
        let (all, mut admitted) = (evil.len(), 0);
        for (what, lane, make) in evil {
            let (mut stream, answer) = self.attach(pki, "host-alpha", lane).await.with_context(|| what.to_owned())?;
            let bytes = match answer {
                Answer::Attached { received, .. } => make(received + 1),
                // A session with too many breaches is ending, and another takes its place.
                Answer::Refused(refusal) if [RefusalCode::StateLost, RefusalCode::Busy].contains(&refusal.code) => {
                    continue;
                }
                Answer::Refused(refusal) => bail!("{what}: not admitted: {refusal}"),
            };
            admitted += 1;
            // The agent may hang up in the middle of it.
            let sent = async {
                stream.write_all(&bytes).await?;
                stream.flush().await
            };
            let _ = tokio::time::timeout(ANSWER_WAIT, sent).await.with_context(|| format!("{what}: not read"))?;
            let mut rest = Vec::new();
            let _ = tokio::time::timeout(ANSWER_WAIT, stream.read_to_end(&mut rest))
                .await
                .with_context(|| format!("{what}: the agent keeps listening"))?;
        }
        ensure!(admitted > all / 2, "only {admitted} of {all} were listened to");
        Ok(())
    }

    /// What is sent, over which lane, and how it is made from the number that the lane's next frame has.
    fn evil(&self, round: u8) -> Vec<(&'static str, u8, Evil)> {
        let data = 1 + round % self.plan.lanes;
        let memory = u16::from(data);
        let control = |message: Message| -> Evil {
            Box::new(move |next| hung_up_on(next, frame(FrameKind::Control, 0, next, &bytes_of(&message))))
        };
        let mut evil: Vec<(&'static str, u8, Evil)> = vec![
            ("noise", 0, Box::new(move |_| noise(round, 64 << 10))),
            ("noise on a data lane", data, Box::new(move |_| noise(round, 64 << 10))),
            (
                "a frame of an unknown kind",
                0,
                Box::new(|next| [&[200][..], &header(FrameKind::Control, 1, next)[1..]].concat()),
            ),
            ("a length of 4 GiB", data, Box::new(|next| header(FrameKind::Memory, u32::MAX, next))),
            ("a length beyond the limit", data, Box::new(|next| header(FrameKind::Data, 2 << 20, next))),
            ("a frame out of turn", 0, Box::new(|next| frame(FrameKind::Control, 0, next + 8, b"x"))),
            (
                "a frame that skips one",
                data,
                Box::new(|next| {
                    let block = |number| frame(FrameKind::Data, 0, number, &[0; 520]);
                    [block(next), block(next + 2)].concat()
                }),
            ),
            ("a block on lane 0", 0, Box::new(|next| frame(FrameKind::Data, 0, next, &[0; 520]))),
            ("a channel that is not there", data, Box::new(|next| frame(FrameKind::Memory, 999, next, &[0; 64]))),
            ("a block beyond all disks", data, Box::new(|next| frame(FrameKind::Data, 0, next, &[0xff; 520]))),
            ("credit for nothing", 0, Box::new(|next| frame(FrameKind::Credit, 0, next, &[0xff; 8]))),
            (
                "what is no message",
                0,
                Box::new(move |next| hung_up_on(next, frame(FrameKind::Control, 0, next, &noise(round, 4096)))),
            ),
            ("a proof before there is anything", 0, control(Message::Prove)),
            ("memory before there is a guest", 0, control(Message::MemoryOpen { channels: u16::MAX })),
            ("a pass that cannot be", 0, control(Message::PassEnd { pass: 7, blocks: u64::MAX })),
            ("an answer in place of a question", 0, control(Message::Prepared { held: Vec::new() })),
            (
                "more than the window holds",
                data,
                Box::new(move |next| {
                    let pieces = (next..next + 12)
                        .map(|number| frame(FrameKind::Memory, memory, number, &vec![round; CONTENT_LENGTH_MAX]));
                    pieces.collect::<Vec<_>>().concat()
                }),
            ),
        ];
        if round == 0 {
            // The agent waits for the rest as long as for any sign of life, so this is tried once only.
            evil.push(("half a frame", 0, Box::new(|next| header(FrameKind::Control, 4096, next))));
        }
        evil
    }
}

fn header(kind: FrameKind, length: u32, sequence: u64) -> Vec<u8> {
    Header { kind, flags: 0, channel: 0, length, sequence, acknowledged: 0 }.encode().to_vec()
}

fn frame(kind: FrameKind, channel: u16, sequence: u64, payload: &[u8]) -> Vec<u8> {
    // The flags of a credit name its flow; others have none.
    let flags = if kind == FrameKind::Credit { FrameKind::Control as u8 } else { 0 };
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let header = Header { kind, flags, channel, length, sequence, acknowledged: 0 };
    [&header.encode()[..], payload].concat()
}

/// A frame that is sound, but for what it says, and after it one that no lane takes: the agent would listen on.
fn hung_up_on(next: u64, frame: Vec<u8>) -> Vec<u8> {
    [frame, header(FrameKind::Control, 1, next + 98), vec![0]].concat()
}

fn bytes_of(message: &Message) -> Vec<u8> {
    message.to_bytes().expect("a message encodes")
}

/// Bytes of a simple generator.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[6]
    });
    bytes.take(length).collect()
}

/// A client with a certificate of any role: what an agent loads must be a host's.
fn client(pki: &Path, certificate: &str) -> anyhow::Result<ClientConfig> {
    let chain = CertificateDer::pem_file_iter(pki.join(format!("{certificate}.pem")))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(pki.join(format!("{certificate}-key.pem")))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Somebody who attacks does not care whom.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn issue(pki: &Path, role: &str, name: &str) -> anyhow::Result<()> {
    let output = Command::new(binary("sterna")).args(["pki", "issue", role, name, "--dir"]).arg(pki).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The memory that a process has resident.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
