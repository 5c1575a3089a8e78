//! Links over loopback: everything arrives exactly once and in order whatever the network does, and nobody gets in who
//! should not.

#[path = "link/certificates.rs"]
mod certificates;
#[path = "link/identity.rs"]
mod identity;
#[path = "link/memory.rs"]
mod memory;
#[path = "link/proxy.rs"]
mod proxy;
#[path = "link/stream.rs"]
mod stream;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certificates::Authority;
use sterna_agent::link::{
    Admission, AdmissionRequest, Dial, Limiter, LinkError, Listener, Session, Timing, Tls, TlsError,
};
use sterna_shared::id::{JobId, Token};
use sterna_shared::peer::attach::{Admitted, Refusal, RefusalCode, SessionId};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

/// Whatever is awaited in a test comes within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it comes in time")
}

fn quick() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(100),
        silence_max: Duration::from_millis(500),
        handshake_max: Duration::from_millis(1000),
        outage_max: Some(Duration::from_secs(20)),
    }
}

/// A target agent: a listener, and an owner that knows one job.
struct Target {
    address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    asked: Arc<Mutex<u32>>,
    _tasks: JoinSet<()>,
}

impl Target {
    async fn new(tls: Arc<Tls>, timing: Timing) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::on(socket, tls, timing)
    }

    fn on(socket: TcpListener, tls: Arc<Tls>, timing: Timing) -> Self {
        let address = socket.local_addr().expect("an address");
        let (admission, mut requests) = mpsc::channel::<AdmissionRequest>(16);
        let (handed, sessions) = mpsc::channel(4);
        let asked = Arc::new(Mutex::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(Listener::new(vec![socket], tls, timing, admission, handed).run());
        let count = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut admitted: Option<Admitted> = None;
            while let Some(AdmissionRequest { peer, attach, reply }) = requests.recv().await {
                *count.lock().expect("no panic") += 1;
                let no = |code| Admission::Refuse(Refusal::new(code, "the test says so"));
                let answer = if attach.job != job() {
                    no(RefusalCode::UnknownJob)
                } else if peer.as_str() != "alpha" {
                    no(RefusalCode::WrongHost)
                } else if !token().matches(attach.token.bytes()) {
                    no(RefusalCode::WrongToken)
                } else {
                    match Admitted::admit(admitted, &attach) {
                        Ok(now) => {
                            admitted = Some(now);
                            Admission::Admit
                        }
                        Err(refusal) => Admission::Refuse(refusal),
                    }
                };
                // A peer that has gone does not wait for it.
                let _ = reply.send(answer);
            }
        });
        Self { address, sessions, asked, _tasks: tasks }
    }

    async fn session(&mut self) -> Session {
        soon(self.sessions.recv()).await.expect("a session")
    }
}

fn job() -> JobId {
    JobId::from_uuid(Uuid::from_u128(1))
}

fn token() -> Token {
    Token::from_bytes([9; 32])
}

fn dial(address: SocketAddr) -> Dial {
    Dial {
        peer: "beta".parse().expect("a host"),
        addresses: vec![address],
        job: job(),
        token: token(),
        session: SessionId(Uuid::from_u128(5)),
        incarnation: 1,
        lanes: 4,
        timing: quick(),
    }
}

async fn open(dial: Dial, tls: &Arc<Tls>) -> Result<Session, LinkError> {
    soon(Session::dial(dial, Arc::clone(tls), Arc::new(Limiter::new(None)))).await
}

/// Two sessions' ends, connected through `address` or directly.
async fn pair(authority: &Authority, target: &mut Target, address: Option<SocketAddr>) -> (Session, Session) {
    let source = open(dial(address.unwrap_or(target.address)), &authority.host("alpha")).await.expect("a session");
    (source, target.session().await)
}
