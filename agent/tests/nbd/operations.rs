//! Each operation of the client against `qemu-nbd`.

use bytes::Bytes;
use sterna_agent::disk::extent::Extent;
use sterna_agent::disk::nbd::{BASE_ALLOCATION, Client, NbdError, Piece, ZeroMode, dirty_bitmap};

use crate::harness::{EXPORT, Server, directory, image, qemu_img, random};

const MIB: u64 = 1 << 20;

async fn content(client: &Client, offset: u64, length: u32) -> Vec<u8> {
    let pieces = client.read(offset, length).await.expect("a read");
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Hole(zeroes) => bytes.resize(bytes.len() + usize::try_from(zeroes).expect("small"), 0),
        }
    }
    bytes
}

#[tokio::test]
async fn what_is_written_is_read_and_what_is_zeroed_is_zero() {
    for format in ["raw", "qcow2"] {
        let directory = directory();
        let server = Server::start(&image(&directory, "disk", format, 8 * MIB), format, &[]);
        let client = server.plain_client().await;
        assert_eq!((client.size(), client.connections(), client.is_read_only()), (8 * MIB, 2, false));

        let data = Bytes::from(random(1 << 20, 1));
        client.write(MIB, data.clone()).await.expect("a write");
        client.write_durable(3 * MIB, data.clone()).await.expect("a durable write");
        assert_eq!(content(&client, MIB, 1 << 20).await, data);
        let around = content(&client, 0, 4 << 20).await;
        assert!(around[..1 << 20].iter().all(|byte| *byte == 0) && around[3 << 20..] == data);

        client.write_zeroes(MIB, 512 << 10, ZeroMode::MayPunch).await.expect("zeroes");
        client.write_zeroes(3 * MIB, 64 << 10, ZeroMode::Allocate).await.expect("zeroes");
        client.trim(4 * MIB, MIB).await.expect("a trim");
        client.flush().await.expect("a flush");
        let after = content(&client, MIB, 1 << 20).await;
        assert!(after[..512 << 10].iter().all(|byte| *byte == 0) && after[512 << 10..] == data[512 << 10..]);

        let whole = client.extents(BASE_ALLOCATION).await.expect("a block status");
        assert_eq!(whole.first().map(|status| status.extent.offset()), Some(0));
        assert_eq!(whole.last().map(|status| status.extent.end()), Some(8 * MIB));
        assert!(whole.windows(2).all(|pair| pair[0].extent.end() == pair[1].extent.offset()));
        assert!(whole.windows(2).all(|pair| pair[0].flags != pair[1].flags), "neighbours are merged");
        let data_bytes: u64 = whole.iter().filter(|s| !s.reads_as_zero()).map(|s| s.extent.length()).sum();
        assert!((MIB..=2 * MIB).contains(&data_bytes), "{format}: {data_bytes} bytes of data");
        client.close().await;
        server.stop().await;
    }
}

#[tokio::test]
async fn many_requests_in_flight_keep_their_answers_apart() {
    let directory = directory();
    let server = Server::start(&image(&directory, "disk", "raw", 64 * MIB), "raw", &[]);
    let client = server.client(&[], 4).await;
    assert_eq!(client.connections(), 4);
    let unit = 64 << 10;
    let writes = (0..1024_u64).map(|index| client.write(index * unit, random(64 << 10, index).into()));
    for outcome in futures_util::future::join_all(writes).await {
        outcome.expect("a write");
    }
    let reads = (0..1024_u64).rev().map(|index| {
        let client = &client;
        async move { (index, content(client, index * unit, 64 << 10).await) }
    });
    for (index, bytes) in futures_util::future::join_all(reads).await {
        assert_eq!(bytes, random(64 << 10, index), "unit {index}");
    }
    client.close().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_reason() {
    let directory = directory();
    let path = image(&directory, "disk", "raw", MIB);
    let server = Server::start(&path, "raw", &["-r"]);
    let client = server.plain_client().await;
    assert!(client.is_read_only());
    assert!(matches!(client.write(0, vec![1; 512].into()).await, Err(NbdError::NotAllowed { .. })));
    assert!(matches!(client.read(MIB - 512, 1024).await, Err(NbdError::Range { .. })));
    assert!(matches!(client.read(u64::MAX, 1024).await, Err(NbdError::Range { .. })));
    assert!(matches!(client.read(0, 0).await, Err(NbdError::Range { .. })));
    let range = Extent::new(0, MIB).expect("not empty");
    assert!(matches!(client.block_status("qemu:dirty-bitmap:x", range).await, Err(NbdError::NoContext { .. })));

    let connect = async |export, contexts: &[&str]| Client::connect(server.socket(), export, contexts, 1).await;
    assert!(matches!(connect("other", &[]).await, Err(NbdError::Refused { .. })));
    assert!(matches!(connect(EXPORT, &["qemu:dirty-bitmap:no"]).await, Err(NbdError::NoContext { .. })));
    assert!(matches!(connect(&"x".repeat(5000), &[]).await, Err(NbdError::Argument { .. })));
    let nowhere = directory.path().join("nowhere");
    assert!(matches!(Client::connect(&nowhere, EXPORT, &[], 1).await, Err(NbdError::Connect { .. })));
}

#[tokio::test]
async fn requests_after_a_close_fail_and_do_not_hang() {
    let directory = directory();
    let server = Server::start(&image(&directory, "disk", "raw", MIB), "raw", &[]);
    let client = server.plain_client().await;
    let clone = client.clone();
    client.close().await;
    assert!(matches!(clone.read(0, 512).await, Err(NbdError::Lost { .. })));
    clone.close().await;
}

#[tokio::test]
async fn a_server_that_dies_ends_what_is_asked_of_it() {
    let directory = directory();
    let server = Server::start(&image(&directory, "disk", "raw", MIB), "raw", &[]);
    let client = server.plain_client().await;
    server.stop().await;
    assert!(matches!(client.read(0, 512).await, Err(NbdError::Lost { .. })));
    assert!(matches!(client.flush().await, Err(NbdError::Lost { .. })));
}

#[tokio::test]
async fn a_dirty_bitmap_tells_what_was_written_beside_the_allocation() {
    let directory = directory();
    let path = image(&directory, "disk", "qcow2", 8 * MIB);
    qemu_img(&["bitmap", "--add", "-g", "65536", "-f", "qcow2"], &path, &["b0"]);
    let server = Server::start(&path, "qcow2", &[]);
    let client = server.plain_client().await;
    client.write(MIB + 512, vec![1; 512].into()).await.expect("a write");
    client.close().await;
    server.stop().await;

    let server = Server::start(&path, "qcow2", &["-r", "-B", "b0"]);
    let context = dirty_bitmap("b0");
    let client = server.client(&[BASE_ALLOCATION, &context], 1).await;
    let statuses = client.extents(&context).await.expect("a block status");
    let dirty: Vec<_> = statuses.iter().filter(|status| status.is_dirty()).map(|status| status.extent).collect();
    assert_eq!(dirty, [Extent::new(MIB, 64 << 10).expect("not empty")]);
    assert!(client.extents(BASE_ALLOCATION).await.expect("a block status").len() > 1);
}
