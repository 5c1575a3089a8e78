//! What happens on a connection before its first frame: hello, Attach, answer.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sterna_shared::id::HostId;
use sterna_shared::peer::attach::{self, Answer, Attach, InstanceId};
use sterna_shared::peer::hello::{self, HELLO_LENGTH, HelloError, SUPPORTED};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::lane::{Chain, Supply};
use super::records::Records;
use super::tls::{Stream, Tls, into_records};
use super::{LinkError, Timing};

/// Between two rounds over the addresses, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The source's way to connections: it dials each address in turn.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) tls: Arc<Tls>,
    pub(super) peer: HostId,
    pub(super) addresses: Arc<[SocketAddr]>,
    pub(super) attach: Attach,
    pub(super) timing: Timing,
    /// The target's lane state that this session met first; one for all lanes.
    pub(super) instance: Arc<OnceLock<InstanceId>>,
    pub(super) attached_before: bool,
    /// Where the last connection went; the next is tried there first.
    pub(super) place: usize,
}

impl Supply for Dialer {
    type Connection = Records<TcpStream>;

    async fn next(&mut self, received: u64) -> Result<(Records<TcpStream>, u64), LinkError> {
        let mut last = None;
        let Some(limit) = self.timing.outage_max else { return self.dial(received, &mut last).await };
        let lane = self.attach.lane;
        match timeout(limit, self.dial(received, &mut last)).await {
            Ok(result) => result,
            Err(_) => Err(LinkError::Outage { lane, limit, last: last.map(Arc::new) }),
        }
    }

    async fn replaced(&mut self) {
        // Only this end dials.
        std::future::pending().await
    }
}

impl Dialer {
    async fn dial(
        &mut self,
        received: u64,
        last: &mut Option<LinkError>,
    ) -> Result<(Records<TcpStream>, u64), LinkError> {
        let limit = self.timing.handshake_max;
        let mut pause = PAUSE_MIN;
        loop {
            let mut hopeless = true;
            for _ in 0..self.addresses.len() {
                let address = self.addresses[self.place % self.addresses.len()];
                let attempt = timeout(limit, self.attempt(address, received)).await;
                let error = match attempt.unwrap_or(Err(LinkError::Slow { limit })) {
                    Ok(attached) => {
                        self.attached_before = true;
                        return Ok(attached);
                    }
                    Err(error) => error,
                };
                self.place = self.place.wrapping_add(1);
                tracing::debug!(lane = self.attach.lane, %address, reason = %Chain(&error), "dialling failed");
                match &error {
                    LinkError::StateLost => return Err(error),
                    LinkError::Refused(refusal) if !refusal.code.passes() => return Err(error),
                    LinkError::Tls(_) | LinkError::Hello(_) => {}
                    _ => hopeless = false,
                }
                *last = Some(error);
            }
            // Who the peer is does not mend itself. Later on it may: a certificate is being renewed.
            if hopeless && !self.attached_before {
                return Err(last.take().unwrap_or(LinkError::Misuse { what: "there is no address to dial" }));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&mut self, address: SocketAddr, received: u64) -> Result<(Records<TcpStream>, u64), LinkError> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        if self.attach.lane != 0 {
            // What a connection of a data lane has not delivered when it is dropped is sent again over the next one, or is
            // of no use any more: the kernel must not go on sending it, ahead of what matters. Lane 0 has the last word of
            // a session, which may still be on its way then.
            tcp.set_zero_linger()?;
        }
        let mut stream = self.tls.connect(&self.peer, tcp).await?;
        stream.write_all(&hello::encode_offer(SUPPORTED)).await?;
        self.attach.received = received;
        self.attach.instance = self.instance.get().copied();
        write_message(&mut stream, &self.attach).await?;
        let mut reply = [0; HELLO_LENGTH];
        stream.read_exact(&mut reply).await?;
        // There is one version so far, so the one chosen changes nothing.
        hello::decode_reply(&reply, SUPPORTED)?;
        match read_message(&mut stream).await? {
            Answer::Refused(refusal) => Err(LinkError::Refused(refusal)),
            Answer::Attached { received, instance } => {
                if *self.instance.get_or_init(|| instance) == instance {
                    Ok((into_records(stream)?, received))
                } else {
                    Err(LinkError::StateLost)
                }
            }
        }
    }
}

/// A connection that the listener hands to a lane: admitted, and waiting for the lane's answer.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) stream: Stream,
    pub(super) peer_received: u64,
}

/// The target's way to connections: the listener hands them over.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub(super) incoming: mpsc::Receiver<Incoming>,
    pub(super) waiting: Option<Incoming>,
    pub(super) lane: u8,
    pub(super) instance: InstanceId,
    pub(super) timing: Timing,
}

impl Supply for Acceptor {
    type Connection = Records<TcpStream>;

    async fn next(&mut self, received: u64) -> Result<(Records<TcpStream>, u64), LinkError> {
        loop {
            let Incoming { mut stream, peer_received } = self.take().await?;
            let answer = Answer::Attached { received, instance: self.instance };
            let written = timeout(self.timing.handshake_max, write_message(&mut stream, &answer)).await;
            if matches!(written, Ok(Ok(())))
                && let Ok(records) = into_records(stream)
            {
                return Ok((records, peer_received));
            }
        }
    }

    async fn replaced(&mut self) {
        match self.incoming.recv().await {
            Some(incoming) => self.waiting = Some(incoming),
            // The listener has ended; the connection in use may go on.
            None => std::future::pending().await,
        }
    }
}

impl Acceptor {
    async fn take(&mut self) -> Result<Incoming, LinkError> {
        if let Some(incoming) = self.waiting.take() {
            return Ok(incoming);
        }
        let incoming = self.incoming.recv();
        let incoming = match self.timing.outage_max {
            None => incoming.await,
            Some(limit) => {
                timeout(limit, incoming).await.map_err(|_| LinkError::Outage { lane: self.lane, limit, last: None })?
            }
        };
        incoming.ok_or(LinkError::Abandoned)
    }
}

/// Offers our hello and reads the answer: by then the other end has looked at our certificate, and takes it.
pub(super) async fn greet(stream: &mut Stream) -> Result<(), LinkError> {
    stream.write_all(&hello::encode_offer(SUPPORTED)).await?;
    stream.flush().await?;
    let mut reply = [0; HELLO_LENGTH];
    stream.read_exact(&mut reply).await?;
    hello::decode_reply(&reply, SUPPORTED)?;
    Ok(())
}

/// Reads what the dialling end opens with, and answers its hello. `None` where it goes after that, and asks for no lane: it
/// wanted to know whether it gets so far.
pub(super) async fn accept(stream: &mut Stream) -> Result<Option<Attach>, LinkError> {
    let mut offer = [0; HELLO_LENGTH];
    stream.read_exact(&mut offer).await?;
    let offered = hello::decode_offer(&offer)?;
    let chosen = offered.common(SUPPORTED);
    stream.write_all(&hello::encode_reply(chosen, SUPPORTED)).await?;
    stream.flush().await?;
    if chosen.is_none() {
        let (oldest, newest) = offered.bounds();
        return Err(HelloError::NoCommonVersion { oldest, newest }.into());
    }
    let mut first = [0];
    if stream.read(&mut first).await? == 0 {
        return Ok(None);
    }
    let attach: Attach = read_message(&mut first.as_slice().chain(stream)).await?;
    attach.check()?;
    Ok(Some(attach))
}

pub(super) async fn write_message<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), LinkError> {
    stream.write_all(&attach::encode(message)?).await?;
    Ok(stream.flush().await?)
}

async fn read_message<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, LinkError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut body = vec![0; attach::decode_length(prefix)?];
    stream.read_exact(&mut body).await?;
    Ok(attach::decode(&body)?)
}
