//! Probes over loopback, between real listeners: what is measured, and who is not let in.

#[path = "link/certificates.rs"]
mod certificates;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certificates::Authority;
use sterna_agent::link::{Admission, AdmissionRequest, Dial, Limiter, LinkError, Listener, Session, Timing, Tls};
use sterna_agent::probe::{DrainLimits, EXPECTED_FOR, ExpectedProbes, PROBES_MAX, Prober};
use sterna_shared::id::{HostId, JobId, Token, VmId};
use sterna_shared::peer::attach::{RefusalCode, SessionId};
use sterna_shared::probe::{AddressOutcome, Measured, PathReport, ProbePeer, ProbeReport};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// Whatever is awaited in a test comes within this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// A probe is over by then, also on a machine that has other things to do: its own limits are within 2 s.
const PROBE_MAX: Duration = Duration::from_secs(4);

/// A target agent that was told of one probe, from alpha.
struct Target {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Target {
    async fn new(tls: Arc<Tls>, limits: DrainLimits) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let (admission, mut requests) = mpsc::channel::<AdmissionRequest>(16);
        let (handed, mut sessions) = mpsc::channel(4);
        let mut probes = ExpectedProbes::new(limits);
        probes.expect(job(), host("alpha"), token()).expect("room");
        let mut tasks = JoinSet::new();
        tasks.spawn(Listener::new(vec![socket], tls, Timing::default(), admission, handed).run());
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    Some(AdmissionRequest { peer, attach, reply }) = requests.recv() => {
                        let admitted = probes.admit(&peer, &attach);
                        let _ = reply.send(admitted.map_or_else(Admission::Refuse, |()| Admission::Admit));
                    }
                    Some(session) = sessions.recv() => {
                        assert!(probes.take(session).is_none(), "every session here is a probe's");
                    }
                    else => return,
                }
            }
        });
        Self { address, _tasks: tasks }
    }
}

fn host(name: &str) -> HostId {
    name.parse().expect("a host")
}

fn job() -> JobId {
    JobId::from_uuid(Uuid::from_u128(1))
}

fn token() -> Token {
    Token::from_bytes([9; 32])
}

fn peer(addresses: &[SocketAddr]) -> ProbePeer {
    ProbePeer { host: host("beta"), addresses: addresses.to_vec(), job: job(), token: token(), lanes: 4 }
}

async fn probe(tls: &Arc<Tls>, peer: ProbePeer) -> PathReport {
    let begun = Instant::now();
    let ProbeReport { path, guest, .. } = Prober::new(Arc::clone(tls)).probe(None, None, Some(peer), 300).await;
    assert!(begun.elapsed() < PROBE_MAX, "it took {:?}", begun.elapsed());
    assert!(guest.is_none(), "nobody asked for a guest");
    path.expect("a path was asked for")
}

fn why<T: std::fmt::Debug>(measured: &Measured<T>) -> &str {
    match measured {
        Measured::Unknown { why } => why,
        Measured::Known(value) => panic!("{value:?} was measured"),
    }
}

/// An address at which nothing listens.
async fn closed() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    socket.local_addr().expect("an address")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_is_measured_and_each_address_told_of() {
    let authority = Authority::new("fleet");
    let target = Target::new(authority.host("beta"), DrainLimits::default()).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let alpha = authority.host("alpha");
    let addresses = [closed().await, silent.local_addr().expect("an address"), target.address];
    let report = probe(&alpha, peer(&addresses)).await;
    let outcomes: Vec<AddressOutcome> = report.addresses.iter().map(|address| address.outcome).collect();
    assert_eq!(outcomes, [AddressOutcome::Refused, AddressOutcome::TimedOut, AddressOutcome::Reached], "{report:?}");
    let shown = report.addresses[2].certificate.as_ref().expect("it is told of");
    assert_eq!(shown.authority, alpha.certificate().authority);
    assert!(report.addresses.iter().all(|address| !address.text.is_empty()));
    // Loopback carries a hundred times as much; so little that no machine is too slow.
    let throughput = report.throughput.known().expect("a rate");
    assert!(throughput.0 > 4 << 20, "{throughput}");
    let round_trip_us = *report.round_trip_us.known().expect("a time");
    assert!((1..250_000).contains(&round_trip_us), "{round_trip_us} µs");
    println!("{throughput}, {round_trip_us} µs");

    // The same once more is refused: whoever has overheard the token has nothing from it.
    let again = probe(&alpha, peer(&[target.address])).await;
    assert_eq!(again.addresses[0].outcome, AddressOutcome::Reached);
    assert!(why(&again.throughput).contains("Replayed"), "{}", why(&again.throughput));
    assert_eq!(why(&again.throughput), why(&again.round_trip_us));
}

#[tokio::test]
async fn whoever_is_not_expected_measures_nothing() {
    let authority = Authority::new("fleet");
    let target = Target::new(authority.host("beta"), DrainLimits::default()).await;
    let here = peer(&[target.address]);
    let alpha = authority.host("alpha");
    let refused = async |tls: &Arc<Tls>, peer: ProbePeer, code: RefusalCode| {
        let report = probe(tls, peer).await;
        assert_eq!(report.addresses[0].outcome, AddressOutcome::Reached);
        assert!(why(&report.throughput).contains(&format!("{code:?}")), "{}", why(&report.throughput));
    };
    refused(&authority.host("gamma"), here.clone(), RefusalCode::WrongHost).await;
    let wrong = ProbePeer { token: Token::from_bytes([8; 32]), ..here.clone() };
    refused(&alpha, wrong, RefusalCode::WrongToken).await;
    let unknown = ProbePeer { job: JobId::from_uuid(Uuid::from_u128(2)), ..here.clone() };
    refused(&alpha, unknown, RefusalCode::UnknownJob).await;

    let foreign = Authority::new("elsewhere");
    let untrusting = foreign.host("alpha");
    let untrusted = Arc::new(
        Tls::load(foreign.issue("alpha", &["sterna://host/alpha"], (2020, 2090), &authority)).expect("loaded"),
    );
    let another = ProbePeer { host: host("gamma"), ..here.clone() };
    for (tls, peer) in [(&untrusting, here.clone()), (&untrusted, here.clone()), (&alpha, another)] {
        let report = probe(tls, peer).await;
        let address = &report.addresses[0];
        assert_eq!(address.outcome, AddressOutcome::CertificateNotAccepted, "{address:?}");
        assert!(address.certificate.is_none());
        assert!(why(&report.throughput).contains("no address"), "{}", why(&report.throughput));
    }

    // None of these has used the probe up.
    assert!(probe(&alpha, here).await.throughput.known().is_some());
}

async fn open(address: SocketAddr, tls: &Arc<Tls>, session: u128) -> Result<Session, LinkError> {
    let dial = Dial {
        peer: host("beta"),
        addresses: vec![address],
        job: job(),
        token: token(),
        session: SessionId(Uuid::from_u128(session)),
        incarnation: 0,
        lanes: 2,
        timing: Timing::default(),
    };
    let dialled = Session::dial(dial, Arc::clone(tls), Arc::new(Limiter::new(None)));
    timeout(PATIENCE, dialled).await.expect("it comes in time")
}

#[tokio::test]
async fn a_session_that_takes_too_long_or_sends_too_much_is_ended() {
    let authority = Authority::new("fleet");
    let alpha = authority.host("alpha");
    let long = DrainLimits { time: Duration::from_millis(300), ..DrainLimits::default() };
    let much = DrainLimits { bytes: 1 << 20, ..DrainLimits::default() };
    for (limits, sends) in [(long, false), (much, true)] {
        let target = Target::new(authority.host("beta"), limits).await;
        let session = open(target.address, &alpha, 1).await.expect("it is let in");
        let (sender, begun) = (session.sender(), Instant::now());
        let sending = async {
            loop {
                if let Err(error) = sender.block(0, 0, Bytes::from(vec![7; 256 << 10])).await {
                    return error;
                }
            }
        };
        let ended = async { if sends { sending.await } else { session.ended().await } };
        let ended = timeout(PATIENCE, ended).await.expect("it is ended");
        assert!(matches!(ended, LinkError::AbandonedByPeer), "{ended:?}");
        assert!(begun.elapsed() < EXPECTED_FOR, "by its limit, and not because it was forgotten");
        drop(session);
        // That one is over, for good.
        let again = open(target.address, &alpha, 1).await;
        let Err(LinkError::Refused(refusal)) = again else { panic!("{again:?}") };
        assert_eq!(refusal.code, RefusalCode::Replayed);
    }
}

#[tokio::test]
async fn what_cannot_be_measured_says_why_and_the_report_comes_all_the_same() {
    let authority = Authority::new("fleet");
    let prober = Prober::new(authority.host("alpha"));
    let vm = Some(VmId::from_uuid(Uuid::from_u128(3)));
    let report = prober.probe(vm, None, Some(peer(&[])), 0).await;
    let (path, guest) = (report.path.expect("a path"), report.guest.expect("a guest"));
    assert!(path.addresses.is_empty() && why(&path.throughput).contains("no address"));
    assert!(why(&guest.memory_dirty_rate).contains("no such VM"));
    let clock = prober.probe(None, None, None, 0).await;
    assert!(clock.path.is_none() && clock.guest.is_none() && clock.at >= report.at);

    // A few at a time; the others are told so at once.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address");
    let mut probes = JoinSet::new();
    for _ in 0..=PROBES_MAX {
        let prober = prober.clone();
        probes.spawn(async move { prober.probe(None, None, Some(peer(&[address])), 0).await });
    }
    let reports = timeout(PATIENCE, probes.join_all()).await.expect("all are there");
    let turned_away =
        reports.iter().filter(|report| report.path.as_ref().is_some_and(|path| path.addresses.is_empty()));
    assert_eq!(turned_away.count(), 1);
}
