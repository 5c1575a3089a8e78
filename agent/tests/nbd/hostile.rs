//! NBD servers that lie: every one ends in a typed error, without a hang, a panic or a large allocation.

use std::time::Duration;

use proptest::prelude::*;
use sterna_agent::disk::nbd::{BASE_ALLOCATION, Client, Failure, NbdError, Piece, SILENCE_READING_MAX, Violation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::harness::directory;

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
const SIZE: u64 = 1 << 20;

fn option_reply(option: u32, reply: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for word in [option, reply, u32::try_from(payload.len()).expect("short")] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// An honest negotiation of an export of that size: nothing the client says changes the answers.
fn negotiation(size: u64) -> Vec<u8> {
    negotiation_of(size, 0b0110_1101)
}

/// The same with these flags of the export, of which 2 is that it is only read.
fn negotiation_of(size: u64, flags: u8) -> Vec<u8> {
    let mut bytes = GREETING.to_vec();
    bytes.extend(option_reply(8, 1, &[]));
    bytes.extend(option_reply(10, 4, &[&7_u32.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat()));
    bytes.extend(option_reply(10, 1, &[]));
    bytes.extend(option_reply(7, 3, &[&[0, 0][..], &size.to_be_bytes(), &[0, flags]].concat()));
    bytes.extend(option_reply(7, 1, &[]));
    bytes
}

/// What the client sends in such a negotiation, so that the server can wait for the request after it.
const CLIENT_NEGOTIATION: usize = 4 + 16 + (16 + 4 + 1 + 4 + 4 + 15) + (16 + 4 + 1 + 4);

/// A part of a structured reply to the first request.
fn chunk(flags: u16, kind: u16, cookie: u64, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Serves one connection: `opening`, then after the first request `answer`, then nothing more; it keeps the connection
/// open if `stays`.
async fn serve(listener: UnixListener, opening: Vec<u8>, answer: Vec<u8>, stays: bool) -> Option<UnixStream> {
    let (mut stream, _) = listener.accept().await.ok()?;
    // The client may hang up at any time, which is what is tested.
    stream.write_all(&opening).await.ok()?;
    let mut sent = vec![0; CLIENT_NEGOTIATION + 28];
    stream.read_exact(&mut sent).await.ok()?;
    stream.write_all(&answer).await.ok()?;
    stays.then_some(stream)
}

async fn connect(opening: Vec<u8>, answer: Vec<u8>, stays: bool, act: Act) -> Result<(), NbdError> {
    let directory = directory();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let server = tokio::spawn(serve(listener, opening, answer, stays));
    let client = async {
        let client = Client::connect(&socket, "x", &[BASE_ALLOCATION], 1).await?;
        match act {
            Act::Read => client.read(0, 65536).await.map(drop),
            Act::Status => client.extents(BASE_ALLOCATION).await.map(drop),
            Act::Flush => client.flush().await,
        }
    };
    let outcome = timeout(Duration::from_secs(20), client).await.expect("no hang");
    server.abort();
    outcome
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Read,
    Status,
    Flush,
}

/// The violation that a request answered so ends in.
async fn violation(act: Act, answer: Vec<u8>) -> Violation {
    let error = connect(negotiation(SIZE), answer, true, act).await.expect_err("a lie");
    let NbdError::Lost { cause, .. } = error else { panic!("{error:?}") };
    match &*cause {
        Failure::Violation(violation) => violation.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_honest_server_of_this_kind_is_believed() {
    let data = [&0_u64.to_be_bytes()[..], &[9; 65536]].concat();
    let length = u32::try_from(data.len()).expect("short");
    connect(negotiation(SIZE), chunk(1, 1, 1, length, &data), true, Act::Read).await.expect("a read");
    let simple = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &1_u64.to_be_bytes()].concat();
    connect(negotiation(SIZE), simple, true, Act::Flush).await.expect("a flush");
}

#[tokio::test]
async fn a_wrong_greeting_is_no_nbd_server() {
    for opening in [b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), b"NBDMAGICxxxxxxxx\x00\x03".to_vec()] {
        let outcome = connect(opening, vec![], true, Act::Read).await;
        let Err(NbdError::Negotiation { cause: Failure::Violation(Violation::Magic { .. }) }) = outcome else {
            panic!("{outcome:?}")
        };
    }
    let old = connect(b"NBDMAGICIHAVEOPT\x00\x00".to_vec(), vec![], true, Act::Read).await;
    assert!(matches!(old, Err(NbdError::Incompatible { .. })));
}

#[tokio::test]
async fn lies_in_the_negotiation_are_named() {
    let mut huge = GREETING.to_vec();
    huge.extend(&option_reply(8, 1, &[])[..16]);
    huge.extend([0xff; 4]);
    let outcome = connect(huge, vec![], true, Act::Read).await;
    assert!(matches!(outcome, Err(NbdError::Negotiation { cause: Failure::Violation(Violation::TooLong { .. }) })));

    let mut endless = GREETING.to_vec();
    endless.extend(option_reply(8, 1, &[]));
    (0..100).for_each(|_| endless.extend(option_reply(10, 4, b"\0\0\0\x01base:allocation")));
    let outcome = connect(endless, vec![], true, Act::Read).await;
    let Err(NbdError::Negotiation { cause: Failure::Violation(Violation::EndlessOption { option: 10 }) }) = outcome
    else {
        panic!("{outcome:?}")
    };

    let outcome = connect(negotiation(u64::MAX), vec![], true, Act::Read).await;
    assert!(matches!(outcome, Err(NbdError::TooLarge { size: u64::MAX })));

    let half = negotiation(SIZE)[..40].to_vec();
    let directory = directory();
    let listener = UnixListener::bind(directory.path().join("s")).expect("a socket");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.write_all(&half).await.expect("written");
    });
    let outcome = Client::connect(&directory.path().join("s"), "x", &[], 1).await;
    assert!(matches!(outcome, Err(NbdError::Negotiation { .. })), "{outcome:?}");
    server.await.expect("served");
}

#[tokio::test]
async fn lies_in_replies_are_named() {
    let offset = |value: u64| value.to_be_bytes().to_vec();
    let hole = |at: u64, length: u32| [&at.to_be_bytes()[..], &length.to_be_bytes()].concat();
    assert!(matches!(violation(Act::Read, vec![0x55; 64]).await, Violation::Magic { .. }));
    assert!(matches!(violation(Act::Read, chunk(1, 0, 2, 0, &[])).await, Violation::UnknownCookie { cookie: 2 }));
    // A length of 4 GiB, refused by what was asked for and before anything is allocated.
    assert!(matches!(violation(Act::Read, chunk(1, 1, 1, u32::MAX, &offset(0))).await, Violation::WrongRange { .. }));
    assert!(matches!(violation(Act::Read, chunk(1, 1, 1, 7, &[0; 7])).await, Violation::Length { .. }));
    assert!(matches!(violation(Act::Read, chunk(1, 2, 1, 12, &hole(u64::MAX, 5))).await, Violation::WrongRange { .. }));
    assert!(matches!(violation(Act::Read, chunk(1, 2, 1, 12, &hole(0, 512))).await, Violation::Incomplete { .. }));
    let twice = [chunk(0, 2, 1, 12, &hole(0, 32768)), chunk(1, 2, 1, 12, &hole(0, 32768))].concat();
    assert!(matches!(violation(Act::Read, twice).await, Violation::WrongRange { .. }));
    let endless = chunk(0, 0, 1, 0, &[]).repeat(10_000);
    assert!(matches!(violation(Act::Read, endless).await, Violation::EndlessReply { .. }));
    assert!(matches!(violation(Act::Read, chunk(1, 5, 1, 12, &[0; 12])).await, Violation::WrongReply { .. }));
    let simple = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &1_u64.to_be_bytes()].concat();
    assert!(matches!(violation(Act::Read, simple).await, Violation::WrongReply { .. }));
    assert!(matches!(violation(Act::Status, chunk(1, 5, 1, u32::MAX, &[])).await, Violation::TooLong { .. }));
    assert!(matches!(violation(Act::Status, chunk(1, 5, 1, 12, &[0; 12])).await, Violation::Length { .. }));
    assert!(matches!(violation(Act::Status, chunk(1, 0, 1, 0, &[])).await, Violation::Incomplete { .. }));
    assert!(matches!(violation(Act::Flush, chunk(1, 0x8001, 1, 6, &[0; 6])).await, Violation::ErrorZero));
    assert!(matches!(violation(Act::Flush, chunk(1, 0x8001, 1, u32::MAX, &[])).await, Violation::TooLong { .. }));
}

#[tokio::test]
async fn an_error_of_the_server_is_told_with_its_number_and_words() {
    let payload = [&28_u32.to_be_bytes()[..], &[0, 4], b"full"].concat();
    let outcome = connect(negotiation(SIZE), chunk(1, 0x8001, 1, 10, &payload), true, Act::Flush).await;
    let Err(NbdError::Server { errno: 28, message, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(message, "full");
}

#[tokio::test]
async fn an_end_in_the_middle_of_a_reply_ends_the_request() {
    let data = [&0_u64.to_be_bytes()[..], &[9; 100]].concat();
    let outcome = connect(negotiation(SIZE), chunk(1, 1, 1, 65544, &data), false, Act::Read).await;
    let Err(NbdError::Lost { cause, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(matches!(*cause, Failure::Ended | Failure::Io(_)), "{cause:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A reply with bytes changed, cut or made up ends in an answer or a typed error.
    #[test]
    fn mutated_replies_never_hang_or_panic(
        noise in proptest::collection::vec((0_usize..60, any::<u8>()), 0..6),
        cut in 0_usize..200,
        act in prop_oneof![Just(Act::Read), Just(Act::Status), Just(Act::Flush)],
    ) {
        let mut answer = match act {
            Act::Read => [
                chunk(0, 2, 1, 12, &[&0_u64.to_be_bytes()[..], &65024_u32.to_be_bytes()].concat()),
                chunk(1, 1, 1, 520, &[&65024_u64.to_be_bytes()[..], &[3; 512]].concat()),
            ].concat(),
            Act::Status => chunk(1, 5, 1, 12, &[0, 0, 0, 7, 0, 16, 0, 0, 0, 0, 0, 3]),
            Act::Flush => chunk(1, 0, 1, 0, &[]),
        };
        for (at, byte) in noise {
            let at = at % answer.len();
            answer[at] = byte;
        }
        answer.truncate(answer.len().saturating_sub(cut % 64));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _ = runtime.block_on(connect(negotiation(SIZE), answer, false, act));
    }
}

/// A server that swallows the first request, and answers it on the next connection.
#[tokio::test]
async fn a_read_that_is_not_answered_is_asked_again_over_a_new_connection() {
    let directory = directory();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let data = [&0_u64.to_be_bytes()[..], &[9; 65536]].concat();
    let answer = chunk(1, 1, 1, u32::try_from(data.len()).expect("short"), &data);
    let server = tokio::spawn(async move {
        let mut silent = Vec::new();
        for answer in [Vec::new(), answer] {
            let (mut stream, _) = listener.accept().await.expect("a client");
            stream.write_all(&negotiation_of(SIZE, 0b0000_0011)).await.expect("written");
            let mut sent = vec![0; CLIENT_NEGOTIATION + 28];
            stream.read_exact(&mut sent).await.expect("a request");
            stream.write_all(&answer).await.expect("written");
            silent.push(stream);
        }
        silent
    });
    let client = Client::connect(&socket, "x", &[BASE_ALLOCATION], 1).await.expect("a client");
    let read = timeout(3 * SILENCE_READING_MAX, client.read(0, 65536)).await.expect("no hang").expect("a read");
    assert_eq!(read.iter().map(Piece::length).sum::<u64>(), 65536);
    server.await.expect("served");
}
