//! The way to another host: which addresses lead there, how long a message takes, and how much gets through.
//!
//! Within 300 ms, over loopback that was held to a rate (`tc … tbf`), the measurement was right to a sixth from 100 Mbit/s on, and
//! up to a half too low at 20 Mbit/s, where few frames arrive in the time. At 5 Mbit/s nothing is acknowledged, and it says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sterna_shared::id::HostId;
use sterna_shared::peer::attach::{DATA_LANES_MAX, SessionId};
use sterna_shared::probe::{
    AddressOutcome, AddressReport, Measured, PROBE_ADDRESSES_MAX, PROBE_BYTES_MAX, PathReport, ProbePeer,
};
use sterna_shared::units::Bandwidth;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};
use uuid::Uuid;

use super::in_words;
use crate::link::{Dial, Limiter, LinkError, Sender, Session, Timing, Tls, TlsError, reach};

/// How long an address may take to let us in.
const REACH_MAX: Duration = Duration::from_millis(400);
/// How long all lanes may take to attach.
const DIAL_MAX: Duration = Duration::from_millis(400);
/// Round trips, of which the best counts.
const ROUND_TRIPS: u32 = 5;
/// How long they may take together.
const ROUND_TRIPS_MAX: Duration = Duration::from_millis(250);
/// Bytes in a frame: so few that a slow path acknowledges several within the time.
const PIECE: usize = 32 << 10;
/// How often it is looked how much was acknowledged.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Between two signs of life of ours, each of which asks for acknowledgement while there is something to acknowledge.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// What comes in this part of the time is not counted where there is more: TCP has to find its pace first.
const WARM_UP_PART: u32 = 4;
/// How long what was sent may take to arrive before it is given up.
const LEAVE_MAX: Duration = Duration::from_millis(300);

/// Measures the way to `peer`, sending for `time`.
pub(super) async fn measure(tls: &Arc<Tls>, peer: ProbePeer, time: Duration) -> PathReport {
    let tried = peer.addresses.iter().take(PROBE_ADDRESSES_MAX);
    let addresses = join_all(tried.map(|address| look(tls, &peer.host, *address))).await;
    let reached = addresses.iter().filter(|report| report.outcome == AddressOutcome::Reached);
    let reached: Vec<SocketAddr> = reached.map(|report| report.address).collect();
    if reached.is_empty() {
        let why = format!("no address of {} lets this host in", peer.host);
        let (throughput, round_trip_us) = (Measured::unknown(why.as_str()), Measured::unknown(why));
        return PathReport { addresses, throughput, round_trip_us };
    }
    let dial = Dial {
        peer: peer.host,
        addresses: reached,
        job: peer.job,
        token: peer.token,
        session: SessionId(Uuid::new_v4()),
        incarnation: 0,
        lanes: peer.lanes.clamp(1, DATA_LANES_MAX),
        timing: Timing {
            heartbeat: HEARTBEAT,
            handshake_max: DIAL_MAX,
            outage_max: Some(DIAL_MAX),
            ..Timing::default()
        },
    };
    let (throughput, round_trip_us) = match Session::dial(dial, Arc::clone(tls), Arc::new(Limiter::new(None))).await {
        Ok(session) => {
            let sender = session.sender();
            let round_trip = round_trip(&sender).await;
            let throughput = throughput(&sender, time).await;
            // Whoever asked does not wait for the end of the session: on a slow path there is a lot still on its way.
            tokio::spawn(leave(session));
            (throughput.into(), round_trip.into())
        }
        Err(error) => {
            let why = in_words(&error);
            (Measured::unknown(why.as_str()), Measured::unknown(why))
        }
    };
    PathReport { addresses, throughput, round_trip_us }
}

async fn look(tls: &Tls, host: &HostId, address: SocketAddr) -> AddressReport {
    match reach(tls, host, address, REACH_MAX).await {
        Ok(certificate) => AddressReport {
            address,
            outcome: AddressOutcome::Reached,
            text: format!("{host} answers, and each end accepts the other's certificate"),
            certificate,
        },
        Err(error) => {
            let outcome = outcome_of(&error);
            let text = match outcome {
                AddressOutcome::Refused => format!("nothing listens there; does the agent of {host} run?"),
                AddressOutcome::TimedOut => {
                    format!("no answer within {REACH_MAX:?}; look at routes and firewalls between the hosts")
                }
                _ => in_words(&error),
            };
            AddressReport::failed(address, outcome, text)
        }
    }
}

fn outcome_of(error: &LinkError) -> AddressOutcome {
    match error {
        LinkError::Io(source) => match source.kind() {
            std::io::ErrorKind::ConnectionRefused => AddressOutcome::Refused,
            std::io::ErrorKind::TimedOut => AddressOutcome::TimedOut,
            _ => AddressOutcome::Failed,
        },
        LinkError::Slow { .. } => AddressOutcome::TimedOut,
        LinkError::Tls(TlsError::Incompatible(_)) => AddressOutcome::Failed,
        LinkError::Tls(_) => AddressOutcome::CertificateNotAccepted,
        _ => AddressOutcome::Failed,
    }
}

/// The best of a few, in microseconds.
async fn round_trip(sender: &Sender) -> Result<u64, String> {
    let deadline = Instant::now() + ROUND_TRIPS_MAX;
    let mut best = None;
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        let there_and_back = async {
            sender.control(Bytes::from_static(b"?")).await?;
            sender.drain().await
        };
        match timeout_at(deadline, there_and_back).await {
            Ok(Ok(())) => {
                let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                best = Some(best.map_or(took, |best: u64| best.min(took)));
            }
            Ok(Err(error)) => return Err(in_words(&error)),
            Err(_) => break,
        }
    }
    best.ok_or_else(|| format!("nothing came back within {ROUND_TRIPS_MAX:?}"))
}

/// Sends for `time`, and counts what was acknowledged.
async fn throughput(sender: &Sender, time: Duration) -> Result<Bandwidth, String> {
    let mut random = vec![0; PIECE];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| "the system gives no random bytes".to_owned())?;
    let piece = Bytes::from(random);
    let begun = Instant::now();
    let over = sleep_until(begun + time);
    tokio::pin!(over);
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lanes: Vec<Seen> = sender.acknowledged().map(|begin| Seen::new(begin, time / WARM_UP_PART)).collect();
    let mut look = |at: Instant| {
        let at = at.saturating_duration_since(begun);
        lanes.iter_mut().zip(sender.acknowledged()).for_each(|(lane, pieces)| lane.look(at, pieces));
    };
    let mut sent = 0_u64;
    loop {
        tokio::select! {
            biased;
            () = &mut over => break,
            now = looks.tick() => look(now),
            // Cancelled, it has sent nothing.
            outcome = sender.block(0, sent, piece.clone()), if sent < PROBE_BYTES_MAX => {
                outcome.map_err(|error| in_words(&error))?;
                sent += PIECE as u64;
            }
        }
    }
    look(Instant::now());
    let rate = lanes.iter().fold(0, |sum: u64, lane| sum.saturating_add(lane.rate()));
    if rate > 0 {
        Ok(Bandwidth(rate))
    } else {
        Err(format!("nothing was acknowledged within {time:?}; the path is very slow, or something else fills it"))
    }
}

/// Ends a session in good order where that is soon done, and at once where it is not.
async fn leave(session: Session) {
    let arrived = timeout(LEAVE_MAX, session.sender().drain()).await;
    let outcome = match arrived {
        Ok(Ok(())) => session.close(LEAVE_MAX).await,
        _ => {
            session.give_up_bulk();
            session.abort().await;
            Ok(())
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(reason = in_words(&error), "a probe's session was not closed");
    }
}

/// When more was acknowledged on a lane, and how much by then. Acknowledgements come in bursts: the rate is what came after
/// the first of them up to the last, over the time between the two. Each lane has bursts of its own, so what is one lane's
/// first is in the middle of nothing. Where the two are close they may be the halves of one burst, and tell nothing: then it
/// is what came since the beginning, which is too little rather than too much.
#[derive(Debug)]
struct Seen {
    /// What is not counted at the beginning, and how far apart the first and the last must be.
    warm_up: Duration,
    /// Pieces acknowledged before.
    begin: u64,
    /// As they were last seen to grow.
    last: (Duration, u64),
    /// As they first grew after the warm-up.
    first: Option<(Duration, u64)>,
}

impl Seen {
    fn new(begin: u64, warm_up: Duration) -> Self {
        Self { warm_up, begin, last: (Duration::ZERO, begin), first: None }
    }

    fn look(&mut self, at: Duration, pieces: u64) {
        if pieces <= self.last.1 {
            return;
        }
        self.last = (at, pieces);
        if at >= self.warm_up && self.first.is_none() {
            self.first = Some(self.last);
        }
    }

    /// In bytes a second.
    fn rate(&self) -> u64 {
        let first =
            self.first.filter(|first| self.last.0 - first.0 >= self.warm_up).unwrap_or((Duration::ZERO, self.begin));
        let bytes = u128::from(self.last.1 - first.1) * PIECE as u128;
        u64::try_from(bytes * 1_000_000 / (self.last.0 - first.0).as_micros().max(1)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(looks: &[(u64, u64)]) -> u64 {
        let mut seen = Seen::new(5, Duration::from_millis(100));
        for (at_ms, pieces) in looks {
            seen.look(Duration::from_millis(*at_ms), *pieces);
        }
        seen.rate()
    }

    #[test]
    fn the_rate_is_what_came_between_the_first_and_the_last() {
        let pieces = |count: u64| count * PIECE as u64;
        // A slow start, then 1000 pieces a second; looks at which nothing is new do not count.
        assert_eq!(rate(&[(50, 6), (120, 10), (220, 110), (320, 210), (400, 210)]), pieces(1000));
        // One acknowledgement, or all of them in the warm-up: from the beginning on.
        assert_eq!(rate(&[(200, 15), (400, 15)]), pieces(50));
        assert_eq!(rate(&[(50, 15), (400, 15)]), pieces(200));
        assert_eq!(rate(&[(398, 15), (400, 45)]), pieces(100), "halves of one burst");
        assert_eq!(rate(&[(2, 5), (400, 5)]), 0);
        assert_eq!(rate(&[]), 0);
        assert!(rate(&[(0, u64::MAX)]) > 0, "no division by zero, no overflow");
    }

    #[test]
    fn outcomes_are_told_apart() {
        let io = |kind| LinkError::Io(Arc::new(std::io::Error::from(kind)));
        assert_eq!(outcome_of(&io(std::io::ErrorKind::ConnectionRefused)), AddressOutcome::Refused);
        assert_eq!(outcome_of(&io(std::io::ErrorKind::NetworkUnreachable)), AddressOutcome::Failed);
        assert_eq!(outcome_of(&LinkError::Slow { limit: REACH_MAX }), AddressOutcome::TimedOut);
        let expired = LinkError::Tls(TlsError::Expired);
        assert_eq!(outcome_of(&expired), AddressOutcome::CertificateNotAccepted);
    }
}
