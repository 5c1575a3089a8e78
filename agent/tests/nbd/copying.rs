//! The copy loop, source half to target half over a channel, between images of both formats.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use sterna_agent::disk::copy::changes::{digest_changes, send_changes};
use sterna_agent::disk::copy::source::{self, Known, PassStatistics, Span};
use sterna_agent::disk::copy::target::{Origin, Writer};
use sterna_agent::disk::copy::{Block, Body, CopyError};
use sterna_agent::disk::digest::{Chunk, DigestTable};
use sterna_agent::disk::extent::{Extent, ExtentSet};
use sterna_agent::disk::nbd::{BASE_ALLOCATION, Client, ZeroMode, dirty_bitmap};
use sterna_agent::disk::page_cache::PageCache;
use tokio::sync::mpsc;

use crate::harness::{Server, directory, equal, image, patchwork, qemu_img, random};

const MIB: u64 = 1 << 20;
/// Not whole chunks, so that the last is short.
const SIZE: u64 = 41 * MIB + (64 << 10);

/// One pass through both halves; `tamper` stands for what may happen to a block on its way.
pub(crate) async fn pass(
    client: &Client,
    spans: Vec<Span>,
    table: &mut DigestTable,
    writer: &mut Writer,
    tamper: impl Fn(Block) -> Block,
) -> PassStatistics {
    pass_beyond(client, spans, table, None, writer, tamper).await
}

/// The same, without what is known to be at the target.
async fn pass_beyond(
    client: &Client,
    spans: Vec<Span>,
    table: &mut DigestTable,
    known: Option<Known<'_>>,
    writer: &mut Writer,
    tamper: impl Fn(Block) -> Block,
) -> PassStatistics {
    let (sender, mut blocks) = mpsc::channel(8);
    let sending = async {
        let statistics = source::send_pass(client, 0, spans, table, known, &sender, std::future::pending()).await;
        drop(sender);
        statistics.expect("the pass is sent")
    };
    let writing = async {
        while let Some(block) = blocks.recv().await {
            writer.apply(tamper(block)).await.expect("the block is applied");
        }
    };
    tokio::join!(sending, writing).0
}

fn page_cache(image: &Path) -> PageCache {
    PageCache::of(File::open(image).expect("the image"))
}

/// Copies a whole image, proves it by roots and by QEMU, and says what the pass did.
async fn copy(from: (&Path, &str), to: (&Path, &str)) -> PassStatistics {
    let (from_server, to_server) = (Server::start(from.0, from.1, &["-r"]), Server::start(to.0, to.1, &[]));
    let (reader, target) = (from_server.plain_client().await, to_server.plain_client().await);
    let mut table = DigestTable::new(SIZE);
    let writer = Writer::new(target.clone(), 0, SIZE, Origin::Fresh).expect("sizes agree");
    // As an agent does it where a raw image is filled.
    let mut writer = writer.through((to.1 == "raw").then(|| page_cache(to.0)));
    let spans = source::whole_disk(&reader).await.expect("a block status");
    let statistics = pass(&reader, spans, &mut table, &mut writer, |block| block).await;
    writer.verify().await.expect("it reads back");
    writer.flush().await.expect("a flush");
    assert!(table.root().is_some());
    assert_eq!(table.root(), writer.table().root());
    assert_eq!(writer.received().iter().collect::<Vec<_>>(), [Extent::new(0, SIZE).expect("not empty")]);
    assert_eq!(writer.statistics().data_bytes, statistics.data_bytes);
    assert!(writer.statistics().read_back_bytes >= statistics.data_bytes);
    drop(writer);
    reader.close().await;
    target.close().await;
    from_server.stop().await;
    to_server.stop().await;
    assert!(equal(from, to));
    statistics
}

#[tokio::test]
async fn a_disk_goes_from_raw_to_qcow2_and_back_and_stays_sparse() {
    let directory = directory();
    let first = patchwork(&directory, "first", SIZE);
    let middle = image(&directory, "middle", "qcow2", SIZE);
    let last = image(&directory, "last", "raw", SIZE);
    let there = copy((&first, "raw"), (&middle, "qcow2")).await;
    let back = copy((&middle, "qcow2"), (&last, "raw")).await;
    // Of each 4 MiB, 1 MiB is data, and 128 KiB of that are zeroes.
    assert_eq!(there.data_bytes, 11 * (896 << 10));
    assert_eq!(there.data_bytes, back.data_bytes);
    assert_eq!(there.data_bytes + there.zero_bytes, SIZE);
    let allocated = last.metadata().expect("the image").blocks() * 512;
    assert!(allocated <= there.data_bytes + MIB, "{allocated} bytes allocated for {} of data", there.data_bytes);
    assert!(equal((&first, "raw"), (&last, "raw")));
}

#[tokio::test]
async fn a_copy_that_was_cut_goes_on_with_what_is_missing_or_has_changed() {
    for format in ["raw", "qcow2"] {
        let directory = directory();
        let from = image(&directory, "from", "raw", SIZE);
        let to = image(&directory, "to", format, SIZE);
        let (server, target_server) = (Server::start(&from, "raw", &[]), Server::start(&to, format, &[]));
        let guest = server.plain_client().await;
        for at in 0..20 {
            guest.write(at * 2 * MIB, random(1 << 20, at).into()).await.expect("a write");
        }
        // The first attempt comes as far as the middle, between two chunks.
        let half = Extent::new(0, 20 * MIB + (512 << 10)).expect("not empty");
        let mut writer = Writer::new(target_server.plain_client().await, 0, SIZE, Origin::Fresh).expect("sizes agree");
        let spans = source::whole_disk(&guest).await.expect("a block status");
        let clip = |span: Span| span.extent.clip(half).map(|extent| Span { extent, ..span });
        let first: Vec<Span> = spans.iter().copied().filter_map(clip).collect();
        pass(&guest, first, &mut DigestTable::new(SIZE), &mut writer, |block| block).await;
        writer.flush().await.expect("a flush");
        let received = writer.received().clone();
        drop(writer);
        // Meanwhile the guest writes one chunk that was sent, zeroes another, and the target's disk spoils a third.
        guest.write(2 * MIB + 4096, random(4096, 99).into()).await.expect("a write");
        guest.write_zeroes(4 * MIB, MIB, ZeroMode::MayPunch).await.expect("a write");
        let target = target_server.plain_client().await;
        target.write(6 * MIB, vec![0xEE; 512].into()).await.expect("a write");

        let mut writer = Writer::resume(target.clone(), 0, SIZE, received).expect("sizes agree");
        let (mut known, mut table) = (DigestTable::new(SIZE), DigestTable::new(SIZE));
        let chunks = writer.held(0).await.expect("it reads back");
        assert_eq!(chunks.len(), known.count());
        chunks.into_iter().enumerate().for_each(|(index, chunk)| known.set(index, chunk));
        assert_eq!((known.chunk(20), known.chunk(22)), (Chunk::Unknown, Chunk::Zero), "half a chunk, and none of one");
        let skipped = AtomicU64::new(0);
        let skip = |bytes: u64| {
            skipped.fetch_add(bytes, Ordering::Relaxed);
        };
        let known = Known { table: &known, skipped: &skip };
        let spans = source::whole_disk(&guest).await.expect("a block status");
        let statistics = pass_beyond(&guest, spans, &mut table, Some(known), &mut writer, |block| block).await;
        // Of the eleven chunks of data up to the middle, the last was cut in two and three have changed; of the nine behind it
        // nothing had come.
        assert_eq!(statistics.data_bytes, (1 + 2 + 9) * MIB, "{format}");
        assert_eq!(statistics.data_bytes + statistics.zero_bytes + skipped.into_inner(), SIZE, "{format}");
        assert_eq!(statistics.zero_bytes, MIB, "{format}: all other zeroes are there already");
        writer.verify().await.expect("it reads back");
        writer.flush().await.expect("a flush");
        assert!(table.root().is_some());
        assert_eq!(table.root(), writer.table().root(), "{format}");
        drop(writer);
        guest.close().await;
        target.close().await;
        server.stop().await;
        target_server.stop().await;
        assert!(equal((&from, "raw"), (&to, format)));
    }
}

#[tokio::test]
async fn a_second_pass_sends_what_the_bitmap_says_and_the_roots_agree_again() {
    let directory = directory();
    let from = image(&directory, "from", "qcow2", SIZE);
    let to = image(&directory, "to", "raw", SIZE);
    let server = Server::start(&from, "qcow2", &[]);
    let guest = server.plain_client().await;
    for at in 0..20 {
        guest.write(at * 2 * MIB, random(1 << 20, at).into()).await.expect("a write");
    }
    let target_server = Server::start(&to, "raw", &[]);
    let target = target_server.plain_client().await;
    let mut table = DigestTable::new(SIZE);
    let mut writer = Writer::new(target.clone(), 0, SIZE, Origin::Fresh).expect("sizes agree");
    let spans = source::whole_disk(&guest).await.expect("a block status");
    pass(&guest, spans, &mut table, &mut writer, |block| block).await;
    guest.close().await;
    server.stop().await;
    writer.verify().await.expect("it reads back");
    let root = writer.table().root();
    assert_eq!(table.root(), root);

    // The guest goes on: new data in an old chunk, data where there was none, and a discard of data.
    qemu_img(&["bitmap", "--add", "-g", "65536", "-f", "qcow2"], &from, &["pass"]);
    let server = Server::start(&from, "qcow2", &[]);
    let guest = server.plain_client().await;
    guest.write(4 * MIB + 700 * 1024, random(4096, 99).into()).await.expect("a write");
    guest.write(3 * MIB, random(300 << 10, 98).into()).await.expect("a write");
    guest.write_zeroes(6 * MIB, MIB, sterna_agent::disk::nbd::ZeroMode::MayPunch).await.expect("zeroes");
    guest.close().await;
    server.stop().await;

    let server = Server::start(&from, "qcow2", &["-r", "-B", "pass"]);
    let reader = server.client(&[BASE_ALLOCATION, &dirty_bitmap("pass")], 1).await;
    let spans = source::dirty(&reader, "pass").await.expect("a block status");
    let statistics = pass(&reader, spans, &mut table, &mut writer, |block| block).await;
    assert_eq!((statistics.data_bytes, statistics.zero_bytes), ((64 + 320) << 10, MIB), "{statistics:?}");
    writer.verify().await.expect("it reads back");
    writer.flush().await.expect("a flush");
    assert_ne!(writer.table().root(), root);
    assert_eq!(table.root(), writer.table().root());
    drop(writer);
    target.close().await;
    reader.close().await;
    server.stop().await;
    target_server.stop().await;
    assert!(equal((&from, "qcow2"), (&to, "raw")));
}

#[tokio::test]
async fn one_flipped_bit_is_found_on_the_way_and_on_the_medium() {
    for through in [false, true] {
        one_flipped_bit_is_found(through).await;
    }
}

async fn one_flipped_bit_is_found(through: bool) {
    let directory = directory();
    let from = patchwork(&directory, "from", SIZE);
    let to = image(&directory, "to", "raw", SIZE);
    let (server, target_server) = (Server::start(&from, "raw", &["-r"]), Server::start(&to, "raw", &[]));
    let (reader, target) = (server.plain_client().await, target_server.plain_client().await);
    let mut table = DigestTable::new(SIZE);
    let writer = Writer::new(target.clone(), 0, SIZE, Origin::Fresh).expect("sizes agree");
    let mut writer = writer.through(through.then(|| page_cache(&to)));
    let spans = source::whole_disk(&reader).await.expect("a block status");
    let flip = |mut block: Block| {
        if let (Body::Data(bytes), true) = (&mut block.body, block.offset == 8 * MIB) {
            let mut flipped = bytes.to_vec();
            flipped[77] ^= 4;
            *bytes = flipped.into();
        }
        block
    };
    pass(&reader, spans, &mut table, &mut writer, flip).await;
    writer.verify().await.expect("it reads back");
    let differing = |writer: &mut Writer| table.differing(writer.table()).expect("one size").collect::<Vec<_>>();
    assert_eq!(differing(&mut writer), [8]);
    assert_ne!(table.clone().root(), writer.table().root());

    // Sending that chunk again mends it; a bit that changes on the medium is found by reading again.
    let whole = Extent::new(0, SIZE).expect("not empty");
    let mut good = random(1 << 20, 8 * MIB);
    good[256 << 10..384 << 10].fill(0);
    writer.apply(Block { disk: 0, offset: 8 * MIB, body: Body::Data(good.into()) }).await.expect("applied");
    writer.verify().await.expect("it reads back");
    assert_eq!(differing(&mut writer), Vec::<usize>::new());
    let medium = std::fs::File::options().read(true).write(true).open(&to).expect("the image");
    for seed in 0..100_u8 {
        let place = random(8, seed.into()).iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)) % SIZE;
        let mut byte = [0];
        medium.read_exact_at(&mut byte, place).expect("a byte");
        let chunk = usize::try_from(place / MIB).expect("small");
        for (value, expected) in [(byte[0] ^ (1 << (seed % 8)), vec![chunk]), (byte[0], vec![])] {
            medium.write_all_at(&[value], place).expect("written");
            writer.forget(Extent::new(place, 1).expect("not empty")).await.expect("nothing failed");
            writer.verify().await.expect("it reads back");
            assert_eq!(differing(&mut writer), expected, "bit {} of byte {place}", seed % 8);
        }
    }
    medium.write_all_at(&[0xa5], 20 * MIB + 5).expect("written");
    writer.forget(whole).await.expect("nothing failed");
    writer.verify().await.expect("it reads back");
    assert_eq!(differing(&mut writer), [20]);
}

#[tokio::test]
async fn what_reads_as_something_else_on_a_used_image_is_overwritten_or_found() {
    let directory = directory();
    let to = patchwork(&directory, "used", SIZE);
    let server = Server::start(&to, "raw", &[]);
    let target = server.plain_client().await;
    // Said to be fresh and is not: zeroes are skipped, and reading back finds what was there.
    let mut writer = Writer::new(target.clone(), 0, SIZE, Origin::Fresh).expect("sizes agree");
    let zero = Block { disk: 0, offset: 0, body: Body::Zero(SIZE) };
    writer.apply(zero.clone()).await.expect("applied");
    writer.verify().await.expect("it reads back");
    let mut zeroes = DigestTable::new(SIZE);
    (0..zeroes.count()).for_each(|index| zeroes.set(index, sterna_agent::disk::digest::Chunk::Zero));
    assert_ne!(writer.table().root(), zeroes.root());
    drop(writer);
    let mut writer = Writer::new(target, 0, SIZE, Origin::Used).expect("sizes agree");
    writer.apply(zero).await.expect("applied");
    writer.verify().await.expect("it reads back");
    assert_eq!(writer.table().root(), zeroes.root());
}

#[tokio::test]
async fn blocks_take_effect_in_the_order_they_were_accepted() {
    let directory = directory();
    let server = Server::start(&image(&directory, "disk", "raw", SIZE), "raw", &[]);
    let client = server.plain_client().await;
    let mut writer = Writer::new(client.clone(), 0, SIZE, Origin::Fresh).expect("sizes agree");
    for seed in 0..60 {
        let offset = (seed % 3) * (32 << 10);
        let body = Body::Data(random(64 << 10, seed).into());
        writer.apply(Block { disk: 0, offset, body }).await.expect("applied");
    }
    writer.apply(Block { disk: 0, offset: 0, body: Body::Zero(32 << 10) }).await.expect("applied");
    writer.verify().await.expect("it reads back");
    let mut expected = vec![0; 1 << 20];
    for seed in 57..60 {
        let offset = usize::try_from(seed % 3).expect("small") * (32 << 10);
        expected[offset..offset + (64 << 10)].copy_from_slice(&random(64 << 10, seed));
    }
    expected[..32 << 10].fill(0);
    let known = sterna_agent::disk::digest::Chunk::Known(*blake3::hash(&expected).as_bytes());
    assert_eq!(writer.table().chunk(0), known);
}

#[tokio::test]
async fn a_hostile_peer_writes_nothing() {
    let directory = directory();
    let server = Server::start(&image(&directory, "disk", "raw", SIZE), "raw", &[]);
    let client = server.plain_client().await;
    assert!(matches!(Writer::new(client.clone(), 0, SIZE + 65536, Origin::Used), Err(CopyError::Size { .. })));
    let mut writer = Writer::new(client, 3, SIZE, Origin::Used).expect("sizes agree");
    let block = |disk, offset, body| Block { disk, offset, body };
    let data = |length: usize| Body::Data(vec![1; length].into());
    for (bad, is_right) in [
        (block(3, SIZE, data(512)), (|e| matches!(e, CopyError::Outside { .. })) as fn(&CopyError) -> bool),
        (block(3, SIZE - 512, data(1024)), |e| matches!(e, CopyError::Outside { .. })),
        (block(3, u64::MAX - 3, Body::Zero(u64::MAX)), |e| matches!(e, CopyError::Outside { .. })),
        (block(3, 0, Body::Zero(0)), |e| matches!(e, CopyError::Outside { .. })),
        (block(3, 0, data((1 << 20) + 1)), |e| matches!(e, CopyError::TooLong { .. })),
        (block(2, 0, data(512)), |e| matches!(e, CopyError::WrongDisk { .. })),
    ] {
        let error = writer.apply(bad).await.expect_err("refused");
        assert!(is_right(&error), "{error:?}");
    }
    writer.barrier().await.expect("nothing was started");
    assert_eq!(writer.statistics(), sterna_agent::disk::copy::target::WriteStatistics::default());
}

#[tokio::test]
async fn a_pass_stops_when_told_to_and_when_nobody_listens() {
    let directory = directory();
    let server = Server::start(&patchwork(&directory, "disk", SIZE), "raw", &["-r"]);
    let client = server.plain_client().await;
    let spans = source::whole_disk(&client).await.expect("a block status");
    let mut table = DigestTable::new(SIZE);

    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let stopped = source::send_pass(&client, 0, spans.clone(), &mut table, None, &sender, std::future::pending()).await;
    assert!(matches!(stopped, Err(CopyError::Stopped { disk: 0 })));

    // The receiver takes one block and no more: only the cancellation can end the pass.
    let (sender, mut receiver) = mpsc::channel(1);
    let cancelled = async { drop(receiver.recv().await) };
    let stopped = source::send_pass(&client, 0, spans, &mut table, None, &sender, cancelled).await;
    assert!(matches!(stopped, Err(CopyError::Stopped { disk: 0 })));
    assert_eq!(table.root(), None);
}

#[tokio::test]
async fn a_server_that_dies_breaks_the_writer_for_good() {
    let directory = directory();
    let server = Server::start(&image(&directory, "disk", "raw", SIZE), "raw", &[]);
    let client = server.plain_client().await;
    let mut writer = Writer::new(client, 0, SIZE, Origin::Used).expect("sizes agree");
    server.stop().await;
    let block = Block { disk: 0, offset: 0, body: Body::Data(vec![1; 512].into()) };
    writer.apply(block.clone()).await.expect("accepted");
    assert!(matches!(writer.barrier().await, Err(CopyError::Write { .. })));
    assert!(matches!(writer.barrier().await, Err(CopyError::Broken { .. })));
    assert!(matches!(writer.apply(block).await, Err(CopyError::Broken { .. })));
    assert!(writer.received().is_empty());
}

#[tokio::test]
async fn changes_alone_are_read_sent_and_proven() {
    let folder = directory();
    let from = patchwork(&folder, "from.raw", SIZE);
    let to = image(&folder, "to.qcow2", "qcow2", SIZE);
    copy((&from, "raw"), (&to, "qcow2")).await;
    let unit = 64 << 10;
    let changes = [(3 * MIB, unit), (7 * MIB - unit, 3 * unit), (SIZE - unit, unit)];
    let file = std::fs::OpenOptions::new().write(true).open(&from).expect("the image");
    let mut extents = ExtentSet::new();
    for (number, (offset, length)) in (1..).zip(changes) {
        // The second becomes zeroes where there was something.
        let bytes = usize::try_from(length).expect("small");
        let content = if number == 2 { vec![0; bytes] } else { random(bytes, number) };
        file.write_all_at(&content, offset).expect("written");
        extents.insert(Extent::new(offset, length).expect("not empty"));
    }
    let (from_server, to_server) = (Server::start(&from, "raw", &["-r"]), Server::start(&to, "qcow2", &[]));
    let (reader, target) = (from_server.plain_client().await, to_server.plain_client().await);
    let mut writer = Writer::new(target.clone(), 0, SIZE, Origin::Used).expect("sizes agree");
    let (sender, mut blocks) = mpsc::channel(8);
    let sending = async {
        let sent = send_changes(&reader, 0, &extents, &sender).await.expect("sent");
        drop(sender);
        sent
    };
    let writing = async {
        while let Some(block) = blocks.recv().await {
            writer.apply(block).await.expect("applied");
        }
    };
    let ((statistics, digest), ()) = tokio::join!(sending, writing);
    assert_eq!(statistics.read_bytes, 5 * unit, "nothing is read but what has changed");
    assert_eq!((statistics.data_bytes, statistics.zero_bytes), (2 * unit, 3 * unit));
    writer.flush().await.expect("a flush");
    assert_eq!(writer.received(), &extents);
    assert_eq!(digest_changes(&target, 0, &extents).await.expect("read back"), digest);
    target.write(3 * MIB, bytes::Bytes::from_static(b"x")).await.expect("written");
    assert_ne!(digest_changes(&target, 0, &extents).await.expect("read back"), digest, "one byte is seen");
    reader.close().await;
    drop(writer);
    target.close().await;
    from_server.stop().await;
    to_server.stop().await;
}
