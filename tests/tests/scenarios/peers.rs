//! Peers that should not be let in, at the door of a real agent with a move in hand: refused before a byte reaches QEMU,
//! and neither the agent nor the move takes notice. What needs no agent is in the agent's own tests of its links.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sterna_agent::journal::Journal;
use sterna_agent::link::{Dial, Files, Limiter, LinkError, Session, Timing, Tls};
use sterna_shared::id::{JobId, Token};
use sterna_shared::job::Plan;
use sterna_shared::peer::attach::{RefusalCode, SessionId};
use sterna_tests::fleet::{AGENT_PORT, Fleet, WitnessWish, binary};
use sterna_tests::moves::{Guest, begins, ended};
use sterna_tests::namespace::{Host, Link};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const WAIT: Duration = Duration::from_secs(120);
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// So slow that the move is in hand while everybody knocks.
const SLOW_MEGABITS: u32 = 30;
/// On a link that is full the last of the memory waits behind what is on its way.
const BLACKOUT_MAX_MS: &str = "10000";
/// Connections that send what is no TLS.
const GARBAGE_CONNECTIONS: u64 = 150;
/// What one of them sends.
const GARBAGE_BYTES: usize = 16 << 10;
/// How much the agent may grow by all that, in KiB.
const GROWTH_MAX_KIB: u64 = 32 << 10;

#[tokio::test]
async fn nobody_gets_in_who_should_not() {
    let mut fleet = Fleet::start(&["alpha", "bravo"]).await.expect("a fleet");
    let outcome = knock(&mut fleet).await;
    if outcome.is_err() {
        eprintln!("{}", fleet.logs());
    }
    outcome.expect("refused");
}

async fn knock(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { fill_mib: 96, ..WitnessWish::small("witness") };
    let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
    fleet.agent("bravo")?.host.shape(Link::Data, SLOW_MEGABITS)?;
    let job = guest.begin_move(fleet, "bravo", &["--max-blackout", BLACKOUT_MAX_MS]).await?;
    begins(fleet, "alpha", &job, "copy_disks").await?;
    let plan = plan_of(fleet, "bravo", job.parse()?)?;
    let agent = fleet.agent("bravo")?;
    let address = SocketAddr::from((agent.host.address(Link::Data), AGENT_PORT));
    let process = agent.process().context("the agent runs")?.id();
    let before = resident_kib(process)?;

    let door = Door::open(&fleet.client, address).await?;
    let pki = fleet.folder().join("pki");
    pki_issue(&pki, "mallory")?;
    let alpha = Arc::new(certificate(&pki, &pki, "alpha")?);
    let mallory = Arc::new(certificate(&pki, &pki, "mallory")?);
    let other = fleet.folder().join("other-pki");
    sterna(&["pki", "init", "--dir", text(&other)?])?;
    pki_issue(&other, "alpha")?;
    let stranger = Arc::new(certificate(&other, &pki, "alpha")?);

    let wrong = Token::from_bytes([7; 32]);
    for (who, tls, token, code) in [
        ("the right certificate of another host", &mallory, &plan.token, RefusalCode::WrongHost),
        ("a wrong token", &alpha, &wrong, RefusalCode::WrongToken),
        ("a replayed token", &alpha, &plan.token, RefusalCode::Replayed),
    ] {
        match dial(&door, &plan, tls, token).await {
            Err(LinkError::Refused(refusal)) if refusal.code == code => eprintln!("{who}: {}", refusal.text),
            other => bail!("{who} is answered by {other:?}"),
        }
    }
    match dial(&door, &plan, &stranger, &plan.token).await {
        Err(error @ (LinkError::Tls(_) | LinkError::Io(_) | LinkError::Outage { .. })) => {
            eprintln!("a certificate of another authority: {error}");
        }
        other => bail!("a certificate of another authority is answered by {other:?}"),
    }
    garbage(&fleet.client, address).await?;

    let agent = fleet.agent("bravo")?.process().context("the agent runs")?;
    ensure!(agent.id() == process, "the agent is another");
    let after = resident_kib(process)?;
    eprintln!("the agent: {before} KiB before, {after} KiB after");
    ensure!(after < before + GROWTH_MAX_KIB, "the agent has grown from {before} to {after} KiB");
    let panicked = std::fs::read_to_string(fleet.agent("bravo")?.log())?.contains("panicked");
    ensure!(!panicked, "the agent has panicked");
    fleet.agent("bravo")?.host.unshape(Link::Data)?;
    let over = ended(fleet, &job, WAIT).await?;
    ensure!(over["state"] == "completed", "the move took notice: {over:#}");
    guest.expect_whole().await
}

/// A port here that leads to the agent, which is in a namespace of its own.
struct Door {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Door {
    async fn open(from: &Host, to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, from) = (listener.local_addr()?, from.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let from = from.clone();
                tokio::spawn(async move {
                    let connect = move || from.connect_tcp(to, CONNECT_WAIT);
                    let Ok(Ok(far)) = tokio::task::spawn_blocking(connect).await else { return };
                    let far = far.set_nonblocking(true).and_then(|()| TcpStream::from_std(far));
                    if let Ok(mut far) = far {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn dial(door: &Door, plan: &Plan, tls: &Arc<Tls>, token: &Token) -> Result<Session, LinkError> {
    let timing = Timing { outage_max: Some(CONNECT_WAIT), ..Timing::default() };
    let dial = Dial {
        peer: plan.target.id.clone(),
        addresses: vec![door.address],
        job: plan.job,
        token: token.clone(),
        session: SessionId(uuid::Uuid::new_v4()),
        incarnation: 7,
        lanes: plan.lanes,
        timing,
    };
    Session::dial(dial, Arc::clone(tls), Arc::new(Limiter::new(None))).await
}

/// Many connections that speak no TLS: each must be ended by the agent.
async fn garbage(from: &Host, to: SocketAddr) -> anyhow::Result<()> {
    for round in 0..GARBAGE_CONNECTIONS {
        let from = from.clone();
        tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let mut stream = from.connect_tcp(to, CONNECT_WAIT)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            // A TLS record's header that promises the most it can, and then whatever a simple generator gives.
            let mut state = round.wrapping_add(1);
            let noise = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_le_bytes()[6]
            });
            let header: &[u8] = if round % 2 == 0 { &[0x16, 0x03, 0x03, 0xff, 0xff] } else { &[] };
            let bytes: Vec<u8> = header.iter().copied().chain(noise).take(GARBAGE_BYTES).collect();
            // The agent may hang up in the middle of it.
            let _ = stream.write_all(&bytes);
            match stream.read_to_end(&mut Vec::new()) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("the agent keeps listening"),
                _ => Ok(()),
            }
        })
        .await??;
    }
    Ok(())
}

/// The plan as the target has it, token included: from a copy of its journal.
fn plan_of(fleet: &Fleet, host: &str, job: JobId) -> anyhow::Result<Plan> {
    let journal = fleet.folder().join(host).join("state/journal.redb");
    let copy = fleet.folder().join("journal-copy.redb");
    std::fs::copy(&journal, &copy)?;
    let record = Journal::open(&copy)?.job(job)?.context("the target does not know the job")?;
    Ok(record.plan)
}

fn certificate(pki: &Path, trusted: &Path, host: &str) -> anyhow::Result<Tls> {
    Ok(Tls::load(Files {
        authorities: trusted.join("ca.pem"),
        chain: pki.join(format!("host-{host}.pem")),
        key: pki.join(format!("host-{host}-key.pem")),
    })?)
}

fn pki_issue(pki: &Path, host: &str) -> anyhow::Result<()> {
    sterna(&["pki", "issue", "host", host, "--dir", text(pki)?])
}

fn sterna(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(binary("sterna")).args(arguments).output()?;
    ensure!(output.status.success(), "sterna {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path of the test is not text")
}

/// The memory that a process has resident.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(PathBuf::from("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
