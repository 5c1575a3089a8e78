//! The one port of an agent: from a TCP connection to a lane of an admitted session.
//!
//! ```text
//!   accept ─▶ TLS ─▶ host? ─▶ hello ─▶ Attach ─▶ admission by the owner ─▶ lane of a session, new or known
//!      └────── a task each, bounded in number and time ──────┘               (single owner: the listener)
//! ```
//!
//! Nothing of a connection goes further before all of that has passed; and whatever it sends until then costs only itself.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sterna_shared::id::{HostId, JobId};
use sterna_shared::peer::attach::{Admitted, Answer, Attach, InstanceId, Refusal, RefusalCode};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use super::handshake::{self, Incoming};
use super::lane::Chain;
use super::session::{Ender, Session};
use super::tls::{Stream, Tls};
use super::{LinkError, Timing};

/// Connections that are not yet attached.
pub const HANDSHAKES_MAX: usize = 64;
/// Of them, how many may come from one address: one peer cannot keep the others out.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 40;
/// Sessions that one peer may have at a time. Each has as many connections as lanes.
pub const SESSIONS_PER_PEER_MAX: usize = 16;
/// Sessions in all.
pub const SESSIONS_MAX: usize = 256;
/// After a failure to accept, such as too many open files, how long to let others finish.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// What the owner of the listener decides: may this connection be attached?
///
/// It checks that its journal has the job, that `peer` is the job's source, that the token matches, and by
/// [`Admitted::admit`] that the token has admitted no other session; and journals what that returns before it answers.
/// It is asked for each connection, also of a session that is known.
#[derive(Debug)]
pub struct AdmissionRequest {
    /// The host that the certificate names.
    pub peer: HostId,
    /// What it asks.
    pub attach: Attach,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Admission>,
}

/// The owner's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may be attached.
    Admit,
    /// It may not.
    Refuse(Refusal),
}

/// The listening half of the data plane.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<TcpListener>,
    tls: Arc<Tls>,
    timing: Timing,
    admission: mpsc::Sender<AdmissionRequest>,
    sessions: mpsc::Sender<Session>,
    known: HashMap<JobId, Known>,
    handshakes: JoinSet<Result<Candidate, ()>>,
    from: HashMap<Id, IpAddr>,
    turn: usize,
}

/// A session that was handed out.
#[derive(Debug)]
struct Known {
    peer: HostId,
    admitted: Admitted,
    lanes: u8,
    instance: InstanceId,
    connections: Vec<mpsc::Sender<Incoming>>,
    ender: Ender,
}

/// A connection that the owner admits.
#[derive(Debug)]
struct Candidate {
    stream: Stream,
    address: SocketAddr,
    peer: HostId,
    attach: Attach,
}

#[derive(Debug)]
enum Event {
    Accepted(TcpStream, SocketAddr),
    AcceptFailed(std::io::Error),
    Handshaken(Id, Option<Box<Candidate>>),
}

impl Listener {
    /// A listener on `sockets`, which asks `admission` and hands new sessions to `sessions`. Both channels are bounded by
    /// their makers; where one is full, the peer is told to come back later.
    #[must_use]
    pub fn new(
        sockets: Vec<TcpListener>,
        tls: Arc<Tls>,
        timing: Timing,
        admission: mpsc::Sender<AdmissionRequest>,
        sessions: mpsc::Sender<Session>,
    ) -> Self {
        Self {
            sockets,
            tls,
            timing,
            admission,
            sessions,
            known: HashMap::new(),
            handshakes: JoinSet::new(),
            from: HashMap::new(),
            turn: 0,
        }
    }

    /// Runs until nobody takes sessions any more. Sessions outlive it, but their lanes get no new connections.
    pub async fn run(mut self) {
        let sessions = self.sessions.clone();
        loop {
            let event = tokio::select! {
                event = self.select() => event,
                () = sessions.closed() => return,
            };
            if let Event::AcceptFailed(_) = event {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            self.apply(event);
        }
    }

    async fn select(&mut self) -> Event {
        let Self { sockets, handshakes, turn, .. } = self;
        let accepted = std::future::poll_fn(|cx| {
            // Each socket gets its turn to be first.
            *turn = turn.wrapping_add(1);
            let count = sockets.len();
            for place in 0..count {
                if let std::task::Poll::Ready(result) = sockets[(*turn + place) % count].poll_accept(cx) {
                    return std::task::Poll::Ready(result);
                }
            }
            std::task::Poll::Pending
        });
        tokio::select! {
            accepted = accepted => match accepted {
                Ok((tcp, address)) => Event::Accepted(tcp, address),
                Err(error) => Event::AcceptFailed(error),
            },
            Some(ended) = handshakes.join_next_with_id() => match ended {
                Ok((id, outcome)) => Event::Handshaken(id, outcome.ok().map(Box::new)),
                Err(error) => Event::Handshaken(error.id(), None),
            },
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::AcceptFailed(error) => tracing::warn!(%error, "cannot accept a connection"),
            Event::Accepted(tcp, address) => {
                let of_address = self.from.values().filter(|from| **from == address.ip()).count();
                if self.from.len() >= HANDSHAKES_MAX || of_address >= HANDSHAKES_PER_ADDRESS_MAX {
                    tracing::warn!(%address, "refused: too many connections are being opened");
                    return;
                }
                let task = open(tcp, address, Arc::clone(&self.tls), self.timing, self.admission.clone());
                let id = self.handshakes.spawn(task).id();
                self.from.insert(id, address.ip());
            }
            Event::Handshaken(id, candidate) => {
                self.from.remove(&id);
                self.known.retain(|_, known| !known.ender.ended());
                let Some(candidate) = candidate else { return };
                if let Err((candidate, refusal)) = self.attach(*candidate) {
                    let limit = self.timing.handshake_max;
                    let address = candidate.address.ip();
                    let task = async move {
                        let Candidate { mut stream, address, peer, .. } = *candidate;
                        let _ = timeout(limit, refuse(&mut stream, address, Some(&peer), refusal)).await;
                        Err(())
                    };
                    self.from.insert(self.handshakes.spawn(task).id(), address);
                }
            }
        }
    }

    /// Hands an admitted connection to its lane, and makes the session where it is new.
    fn attach(&mut self, candidate: Candidate) -> Result<(), (Box<Candidate>, Refusal)> {
        let attach = &candidate.attach;
        let no = |candidate, code, text: &str| Err((Box::new(candidate), Refusal::new(code, text)));
        let before = self.known.get(&attach.job);
        let admitted = match Admitted::admit(before.map(|known| known.admitted), attach) {
            Ok(admitted) => admitted,
            Err(refusal) => return Err((Box::new(candidate), refusal)),
        };
        match before {
            Some(known) if known.peer != candidate.peer => {
                return no(candidate, RefusalCode::WrongHost, "this job's session is another host's");
            }
            Some(known) if known.admitted == admitted && known.lanes != attach.lanes => {
                return no(candidate, RefusalCode::Malformed, "the session has another number of lanes");
            }
            Some(known) if known.admitted == admitted => {}
            _ => {
                let of_peer = self.known.values().filter(|known| known.peer == candidate.peer).count();
                if self.known.len() >= SESSIONS_MAX || of_peer >= SESSIONS_PER_PEER_MAX {
                    return no(candidate, RefusalCode::Busy, "too many sessions are open; try again later");
                }
                if attach.instance.is_some() {
                    return no(
                        candidate,
                        RefusalCode::StateLost,
                        "this session has ended here, or the agent restarted",
                    );
                }
                let instance = InstanceId(Uuid::new_v4());
                let Ok(slot) = self.sessions.try_reserve() else {
                    return no(candidate, RefusalCode::Busy, "the agent cannot take sessions now; try again later");
                };
                let (session, connections) = Session::accepted(candidate.peer.clone(), attach, instance, self.timing);
                let peer = candidate.peer.clone();
                let known =
                    Known { peer, admitted, lanes: attach.lanes, instance, connections, ender: session.ender() };
                if let Some(old) = self.known.insert(attach.job, known) {
                    old.ender.supersede();
                }
                slot.send(session);
            }
        }
        let Some(known) = self.known.get(&attach.job) else {
            return no(candidate, RefusalCode::StateLost, "this session has ended here");
        };
        if attach.instance.is_some_and(|instance| instance != known.instance) {
            return no(candidate, RefusalCode::StateLost, "the agent was restarted; dial with a higher incarnation");
        }
        // A lane that has two connections waiting has no use for a third: it is dropped, and the peer dials again.
        let connection = &known.connections[usize::from(attach.lane)];
        let incoming = Incoming { stream: candidate.stream, peer_received: attach.received };
        if connection.try_send(incoming).is_err() {
            tracing::warn!(address = %candidate.address, peer = %candidate.peer, "dropped: the lane is taken");
        }
        Ok(())
    }
}

/// Takes a connection from TCP to admission. Refusals are told and logged here.
async fn open(
    tcp: TcpStream,
    address: SocketAddr,
    tls: Arc<Tls>,
    timing: Timing,
    admission: mpsc::Sender<AdmissionRequest>,
) -> Result<Candidate, ()> {
    let limit = timing.handshake_max;
    let opened = timeout(limit, greet(tcp, address, &tls)).await;
    let (mut stream, peer, attach) = match opened.unwrap_or(Err(LinkError::Slow { limit })) {
        Ok(Some(greeted)) => greeted,
        Ok(None) => return Err(()),
        Err(error) => {
            tracing::warn!(%address, reason = %Chain(&error), "refused: no lane was opened");
            return Err(());
        }
    };
    let (reply, answer) = oneshot::channel();
    let request = AdmissionRequest { peer: peer.clone(), attach: attach.clone(), reply };
    let busy = || Refusal::new(RefusalCode::Busy, "the agent cannot admit connections now; try again later");
    let admitted = match admission.try_send(request) {
        Err(_) => Admission::Refuse(busy()),
        Ok(()) => match timeout(limit, answer).await {
            Ok(Ok(admitted)) => admitted,
            Ok(Err(_)) | Err(_) => Admission::Refuse(busy()),
        },
    };
    match admitted {
        Admission::Admit => Ok(Candidate { stream, address, peer, attach }),
        Admission::Refuse(refusal) => {
            let _ = timeout(limit, refuse(&mut stream, address, Some(&peer), refusal)).await;
            Err(())
        }
    }
}

/// TLS, the host's name, hello and Attach. `None` where the peer was refused and told so, or only looked whether it gets in.
async fn greet(tcp: TcpStream, address: SocketAddr, tls: &Tls) -> Result<Option<(Stream, HostId, Attach)>, LinkError> {
    tcp.set_nodelay(true)?;
    let (mut stream, host) = tls.accept(tcp).await.map_err(LinkError::Tls)?;
    let attach = handshake::accept(&mut stream).await;
    let refusal = match (host, attach) {
        (Ok(host), Ok(Some(attach))) => return Ok(Some((stream, host, attach))),
        (Ok(host), Ok(None)) => {
            tracing::debug!(%address, peer = %host, "a host has looked whether it gets in");
            return Ok(None);
        }
        (Err(error), _) => Refusal::new(RefusalCode::WrongRole, error.to_string()),
        (Ok(_), Err(error @ LinkError::Attach(_))) => Refusal::new(RefusalCode::Malformed, Chain(&error).to_string()),
        (Ok(_), Err(error)) => return Err(error),
    };
    refuse(&mut stream, address, None, refusal).await;
    Ok(None)
}

async fn refuse(stream: &mut Stream, address: SocketAddr, peer: Option<&HostId>, refusal: Refusal) {
    let peer = peer.map_or("unknown", HostId::as_str);
    tracing::warn!(%address, peer, code = ?refusal.code, reason = %refusal.text, "refused a connection");
    // The peer may have gone already; it loses only the reason.
    let _ = handshake::write_message(stream, &Answer::Refused(refusal)).await;
    let _ = stream.shutdown().await;
}
