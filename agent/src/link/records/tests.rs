use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::super::tls::into_records;
use super::*;

/// What a socket holds: less than a batch, so that writing has to wait.
const SOCKET_LENGTH: usize = 100_000;

type Ours = Records<DuplexStream>;
type Theirs<S> = TlsStream<S>;

/// The two ends of a connection, after the handshake.
async fn ends<C, S>(client: C, server: S) -> (Theirs<C>, Theirs<S>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["peer".to_owned()]).expect("a name").self_signed(&key);
    let certificate = certificate.expect("a certificate").der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let mut server_side = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a server");
    server_side.enable_secret_extraction = true;
    server_side.send_tls13_tickets = 0;
    let mut client_side = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client_side.enable_secret_extraction = true;
    let name = ServerName::try_from("peer").expect("a name");
    let (client, server) = tokio::join!(
        TlsConnector::from(Arc::new(client_side)).connect(name, client),
        TlsAcceptor::from(Arc::new(server_side)).accept(server),
    );
    (TlsStream::Client(client.expect("connected")), TlsStream::Server(server.expect("accepted")))
}

/// Two ends of ours, and what carries them.
async fn ours() -> (Ours, Ours) {
    let (left, right) = duplex(SOCKET_LENGTH);
    let (left, right) = ends(Cork::new(left), Cork::new(right)).await;
    (into_records(left).expect("taken over"), into_records(right).expect("taken over"))
}

/// One end of ours and one of rustls.
async fn mixed() -> (Ours, Theirs<DuplexStream>) {
    let (left, right) = duplex(SOCKET_LENGTH);
    let (left, right) = ends(Cork::new(left), right).await;
    (into_records(left).expect("taken over"), right)
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % 251).unwrap_or(0)).collect()
}

/// Sends `lengths` of content one after the other, and reads it in pieces of other lengths.
async fn carries(
    mut sender: impl AsyncWrite + Unpin,
    mut receiver: impl AsyncRead + Unpin,
    lengths: &[usize],
    read: &[usize],
) {
    let sent = content(lengths.iter().sum());
    let send = async {
        let mut rest = &sent[..];
        for length in lengths {
            let (now, later) = rest.split_at(*length);
            sender.write_all(now).await.expect("sent");
            rest = later;
        }
        sender.flush().await.expect("sent");
    };
    let receive = async {
        let mut received = Vec::new();
        for length in read.iter().cycle() {
            if received.len() == sent.len() {
                break;
            }
            let mut piece = vec![0; (*length).min(sent.len() - received.len())];
            receiver.read_exact(&mut piece).await.expect("received");
            received.extend(piece);
        }
        received
    };
    let ((), received) = tokio::join!(send, receive);
    assert!(received == sent, "what arrives is what was sent");
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_is_sent_arrives_in_whatever_pieces_it_is_read(
        lengths in prop::collection::vec(1_usize..300_000, 1..6),
        read in prop::collection::vec(prop_oneof![1_usize..100, 10_000_usize..40_000, 200_000_usize..1_000_000], 1..4),
    ) {
        run(async {
            let (left, right) = ours().await;
            carries(left, right, &lengths, &read).await;
        });
    }
}

#[tokio::test]
async fn on_the_wire_it_is_tls() {
    let lengths = [1, 16 << 10, (16 << 10) + 1, 700_000];
    let (ours, theirs) = mixed().await;
    carries(ours, theirs, &lengths, &[24, 500_000]).await;
    let (ours, theirs) = mixed().await;
    carries(theirs, ours, &lengths, &[24, 500_000]).await;
}

#[tokio::test]
async fn what_was_received_early_is_not_lost() {
    let (left, right) = duplex(SOCKET_LENGTH);
    let (mut left, mut right) = ends(Cork::new(left), Cork::new(right)).await;
    right.write_all(b"answer").await.expect("sent");
    right.flush().await.expect("sent");
    let mut right = into_records(right).expect("taken over");
    // All of this is in the socket before the other end looks at its answer.
    right.write_all(b"first frames").await.expect("sent");
    right.flush().await.expect("sent");
    let mut answer = [0; 6];
    left.read_exact(&mut answer).await.expect("the answer");
    let mut left = into_records(left).expect("taken over");
    let mut frames = [0; 12];
    left.read_exact(&mut frames).await.expect("the frames");
    assert_eq!((&answer, &frames), (b"answer", b"first frames"));
}

#[tokio::test]
async fn content_that_belongs_to_no_attachment_is_refused() {
    let (left, right) = duplex(SOCKET_LENGTH);
    let (mut left, mut right) = ends(Cork::new(left), right).await;
    right.write_all(b"answer and more").await.expect("sent");
    right.flush().await.expect("sent");
    left.read_exact(&mut [0; 6]).await.expect("the answer");
    let refused = into_records(left).map(drop).expect_err("more than the answer");
    assert!(format!("{refused:?}").contains("more than its attachment"), "{refused:?}");
}

/// One end of ours whose peer's bytes on the wire are the test's to change.
async fn hostile() -> (Ours, Ours, DuplexStream) {
    let (mut sender, receiver) = ours().await;
    let (wire, other) = duplex(SOCKET_LENGTH);
    sender.socket = other;
    (sender, receiver, wire)
}

/// Has the receiver read what the sender has sealed, once `change` has been at it.
async fn read_changed(change: impl FnOnce(&mut Vec<u8>)) -> io::Error {
    let (mut sender, mut receiver, mut wire) = hostile().await;
    sender.write_all(&content(1000)).await.expect("sent");
    sender.flush().await.expect("sent");
    drop(sender);
    let mut bytes = Vec::new();
    wire.read_to_end(&mut bytes).await.expect("what is on the wire");
    change(&mut bytes);
    let (mut feed, socket) = duplex(SOCKET_LENGTH);
    feed.write_all(&bytes).await.expect("fed");
    drop(feed);
    receiver.socket = socket;
    receiver.read_exact(&mut [0; 1000]).await.expect_err("refused")
}

#[tokio::test]
async fn every_changed_byte_is_noticed() {
    for place in [0, 1, 2, 3, 4, 5, 500, 1004, 1005, 1006, 1021] {
        read_changed(|bytes| bytes[place] ^= 1).await;
    }
    let error = read_changed(|bytes| bytes[500] ^= 1).await;
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[tokio::test]
async fn records_that_are_cut_in_the_clear_or_of_a_wrong_length_are_refused() {
    assert_eq!(read_changed(|bytes| bytes.truncate(1000)).await.kind(), io::ErrorKind::UnexpectedEof);
    let clear = read_changed(|bytes| {
        bytes.clear();
        bytes.extend([21, 3, 3, 0, 2, 2, 40]);
    });
    assert!(clear.await.to_string().contains("not protected"));
    let long = read_changed(|bytes| bytes[3..5].copy_from_slice(&[0xff, 0xff]));
    assert!(long.await.to_string().contains("longer than any"));
    let short = read_changed(|bytes| bytes[3..5].copy_from_slice(&[0, 3]));
    assert!(short.await.to_string().contains("too short"));
}

#[tokio::test]
async fn a_replayed_record_is_refused() {
    let (mut sender, mut receiver, mut wire) = hostile().await;
    sender.write_all(b"once").await.expect("sent");
    sender.flush().await.expect("sent");
    let mut record = vec![0; 5 + 4 + 1 + 16];
    wire.read_exact(&mut record).await.expect("a record");
    let (mut feed, socket) = duplex(SOCKET_LENGTH);
    receiver.socket = socket;
    feed.write_all(&[&record[..], &record[..]].concat()).await.expect("fed");
    receiver.read_exact(&mut [0; 4]).await.expect("the first time");
    assert!(receiver.read_exact(&mut [0; 4]).await.expect_err("again").to_string().contains("damaged"));
}

#[tokio::test]
async fn empty_records_are_not_taken_for_ever() {
    let (mut sender, mut receiver) = ours().await;
    for _ in 0..=EMPTY_MAX {
        // What rustls would never write.
        let header = [APPLICATION_DATA, 3, 3, 0, 17];
        let mut inner = [APPLICATION_DATA];
        let nonce = sender.sealing.nonce().expect("a nonce");
        let tag = sender.sealing.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut inner).expect("sealed");
        let record = [&header[..], &inner[..], tag.as_ref()].concat();
        sender.socket.write_all(&record).await.expect("sent");
    }
    let error = receiver.read_exact(&mut [0; 4]).await.expect_err("enough");
    assert!(error.to_string().contains("without content"), "{error}");
}

#[tokio::test]
async fn messages_after_the_handshake_are_refused_and_a_farewell_is_an_end() {
    let (mut ours, mut theirs) = mixed().await;
    let TlsStream::Server(server) = &mut theirs else { panic!("the end that accepted") };
    server.get_mut().1.refresh_traffic_keys().expect("a key update");
    theirs.write_all(b"with new keys").await.expect("sent");
    theirs.flush().await.expect("sent");
    let error = ours.read_exact(&mut [0; 4]).await.expect_err("refused");
    assert!(error.to_string().contains("not expected"), "{error}");

    let (mut ours, mut theirs) = mixed().await;
    theirs.shutdown().await.expect("said");
    assert_eq!(ours.read(&mut [0; 4]).await.expect("an end"), 0);
}

#[tokio::test]
async fn a_key_is_not_used_for_more_than_it_may() {
    let (mut sender, mut receiver) = ours().await;
    for key in [&mut sender.sealing, &mut receiver.opening] {
        key.number = RECORDS_MAX - 1;
    }
    sender.write_all(b"last").await.expect("sent");
    receiver.read_exact(&mut [0; 4]).await.expect("received");
    let error = sender.write_all(b"one more").await.expect_err("used up");
    assert!(error.to_string().contains("made anew"), "{error}");
}
