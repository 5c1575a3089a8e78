//! What is sent arrives, exactly once and in order.

#![allow(clippy::cast_possible_truncation, reason = "places and counts are small")]

use std::collections::HashSet;

use bytes::Bytes;
use sterna_agent::link::{Content, LaneStatus, Receiver, Sender};
use sterna_shared::units::Bandwidth;
use tokio::time::{Instant, sleep};

use super::proxy::{Proxy, Weather};
use super::*;

const MIB: usize = 1 << 20;

/// Content that tells where it belongs.
fn content(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length.div_ceil(8)).flatten().take(length).collect::<Vec<u8>>().into()
}

async fn send_blocks(sender: Sender, count: u64) {
    for place in 0..count {
        let offset = place * MIB as u64;
        if place.is_multiple_of(7) {
            sender.zero(3, offset, MIB as u64).await.expect("sent");
        } else {
            let length = MIB - (place as usize * 977) % 5000;
            sender.block(3, offset, content(offset, length)).await.expect("sent");
        }
    }
}

async fn check_blocks(mut blocks: Receiver<sterna_agent::link::BlockFrame>, count: u64) {
    let mut seen = HashSet::new();
    while seen.len() < count as usize {
        let block = soon(blocks.recv()).await.expect("no error").expect("not the end");
        assert_eq!(block.disk, 3);
        let place = block.offset / MIB as u64;
        assert!(seen.insert(place), "block {place} came twice");
        match block.content {
            Content::Zero(length) => assert!(place.is_multiple_of(7) && length == MIB as u64),
            Content::Data(data) => {
                assert_eq!(data.len(), MIB - (place as usize * 977) % 5000);
                assert_eq!(data, content(block.offset, data.len()), "block {place}");
            }
        }
    }
    assert!(soon(blocks.recv()).await.expect("closed, not broken").is_none(), "nothing comes after");
}

async fn send_memory(sender: Sender, channel: u16, count: u64) {
    for place in 0..count {
        let length = 1 + (place as usize * 7919) % (256 << 10);
        sender.memory(channel, content(place + u64::from(channel), length)).await.expect("sent");
    }
}

async fn check_memory(mut memory: Receiver<Bytes>, channel: u16, count: u64) {
    for place in 0..count {
        let piece = soon(memory.recv()).await.expect("no error").expect("not the end");
        assert_eq!(piece.len(), 1 + (place as usize * 7919) % (256 << 10), "channel {channel}, piece {place}");
        assert_eq!(piece, content(place + u64::from(channel), piece.len()), "channel {channel}, piece {place}");
    }
    assert!(soon(memory.recv()).await.expect("closed, not broken").is_none(), "nothing comes after");
}

/// Sends over every flow in both directions at once, and checks every byte.
async fn exchange(source: &mut Session, target: &mut Session, blocks: u64, pieces: u64) -> JoinSet<()> {
    let mut senders = JoinSet::new();
    let mut readers = JoinSet::new();
    senders.spawn(send_blocks(source.sender(), blocks));
    readers.spawn(check_blocks(target.blocks().expect("not taken"), blocks));
    for channel in 0..6 {
        senders.spawn(send_memory(source.sender(), channel, pieces));
        readers.spawn(check_memory(target.memory(channel).expect("not taken"), channel, pieces));
    }
    senders.spawn(send_memory(target.sender(), 0, pieces / 4));
    readers.spawn(check_memory(source.memory(0).expect("not taken"), 0, pieces / 4));
    for (from, to) in [(source.sender(), target.control()), (target.sender(), source.control())] {
        let mut control = to.expect("not taken");
        senders.spawn(async move {
            for place in 0..200 {
                from.control(content(place, 100)).await.expect("sent");
            }
        });
        readers.spawn(async move {
            for place in 0..200 {
                assert_eq!(soon(control.recv()).await.expect("no error"), Some(content(place, 100)));
            }
        });
    }
    while let Some(sent) = soon(senders.join_next()).await {
        sent.expect("the sender ends well");
    }
    readers
}

async fn finish(source: Session, target: Session, mut readers: JoinSet<()>) {
    soon(target.sender().drain()).await.expect("the target's side is delivered");
    soon(source.close(PATIENCE)).await.expect("everything is acknowledged");
    assert!(matches!(soon(target.ended()).await, LinkError::Closed));
    while let Some(read) = soon(readers.join_next()).await {
        read.expect("the reader is content");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flow_carries_every_byte() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let (mut source, mut session) = pair(&authority, &mut target, None).await;
    let readers = exchange(&mut source, &mut session, 256, 200).await;
    finish(source, session, readers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_fails_at_random_loses_nothing() {
    let seed = std::env::var("STERNA_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(Uuid::new_v4().as_fields().0));
    #[allow(clippy::print_stdout, reason = "a failure is repeated by its seed")]
    {
        println!("STERNA_SEED={seed}");
    }
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let proxy = Proxy::new(target.address).await;
    let (mut source, mut session) = pair(&authority, &mut target, Some(proxy.address)).await;
    let weather = async {
        let turns = content(seed, 24);
        for turn in turns.chunks(2) {
            let pause = Duration::from_millis(20 + u64::from(turn[0]));
            sleep(pause).await;
            proxy.turn(if turn[1] % 4 == 0 { Weather::Blackhole } else { Weather::Cut });
            let pause = if turn[1] % 4 == 0 { Duration::from_millis(700) } else { pause / 4 };
            sleep(pause).await;
            proxy.turn(Weather::Fair);
        }
    };
    let (readers, ()) = tokio::join!(exchange(&mut source, &mut session, 192, 300), weather);
    finish(source, session, readers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_of_two_seconds_is_a_stall() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let proxy = Proxy::new(target.address).await;
    let (source, mut session) = pair(&authority, &mut target, Some(proxy.address)).await;
    let mut control = session.control().expect("not taken");
    let mut status = source.status();
    proxy.turn(Weather::Cut);
    soon(status.wait_for(|lanes| lanes.iter().all(|lane| matches!(lane, LaneStatus::Down { .. }))))
        .await
        .expect("known");
    source.sender().control(content(1, 10)).await.expect("it waits in the window");
    sleep(Duration::from_secs(2)).await;
    proxy.turn(Weather::Fair);
    assert_eq!(soon(control.recv()).await.expect("no error"), Some(content(1, 10)));
    soon(status.wait_for(|lanes| lanes.iter().all(|lane| matches!(lane, LaneStatus::Up)))).await.expect("all resume");
    soon(source.close(PATIENCE)).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_noticed_at_both_ends_while_a_write_is_blocked() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let proxy = Proxy::new(target.address).await;
    let (source, session) = pair(&authority, &mut target, Some(proxy.address)).await;
    let sender = source.sender();
    let writer = tokio::spawn(async move { while sender.memory(1, content(1, MIB)).await.is_ok() {} });
    proxy.turn(Weather::Blackhole);
    let start = Instant::now();
    for mut status in [source.status(), session.status()] {
        let silent = |lane: &LaneStatus| matches!(lane, LaneStatus::Down { why, .. } if matches!(**why, LinkError::Silent { .. } | LinkError::Io(_)));
        soon(status.wait_for(|lanes| lanes.iter().all(silent))).await.expect("all are down");
    }
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_millis(350) && elapsed < Duration::from_secs(5), "after {elapsed:?}");
    source.abort().await;
    soon(writer).await.expect("the writer is told");
}

#[tokio::test]
async fn an_outage_beyond_the_limit_ends_the_session() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let proxy = Proxy::new(target.address).await;
    let timing = Timing { outage_max: Some(Duration::from_millis(700)), ..quick() };
    let dial = Dial { timing, ..dial(proxy.address) };
    let mut source = open(dial, &authority.host("alpha")).await.expect("a session");
    let _session = target.session().await;
    let mut control = source.control().expect("not taken");
    proxy.turn(Weather::Cut);
    assert!(matches!(soon(source.ended()).await, LinkError::Outage { .. }));
    assert!(matches!(source.sender().control(content(1, 1)).await, Err(LinkError::Outage { .. })));
    assert!(matches!(soon(control.recv()).await, Err(LinkError::Outage { .. })), "not taken for a good end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_stalls_its_own_flow_only() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let (source, mut session) = pair(&authority, &mut target, None).await;
    // With four data lanes, the channels 1 and 5 share lane 1; the main channel shares lane 0 with control.
    for channel in [0, 1] {
        let sender = source.sender();
        tokio::spawn(async move { while sender.memory(channel, content(0, 100_000)).await.is_ok() {} });
    }
    let mut stalled = session.memory(1).expect("not taken");
    let mut beside = session.memory(5).expect("not taken");
    let mut control = session.control().expect("not taken");
    for place in 0..200 {
        soon(source.sender().memory(5, content(place, 100_000))).await.expect("sent");
        soon(source.sender().control(content(place, 50))).await.expect("sent");
        assert_eq!(soon(beside.recv()).await.expect("no error"), Some(content(place, 100_000)));
        assert_eq!(soon(control.recv()).await.expect("no error"), Some(content(place, 50)));
    }
    // A stall of longer than the silence allowed is no silence.
    sleep(quick().silence_max * 2).await;
    assert!(source.status().borrow().iter().all(|lane| matches!(lane, LaneStatus::Up)));
    for _ in 0..200 {
        assert_eq!(soon(stalled.recv()).await.expect("no error"), Some(content(0, 100_000)));
    }
    source.abort().await;
    assert!(matches!(soon(session.ended()).await, LinkError::AbandonedByPeer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_that_is_given_up_is_not_sent_and_control_goes_on() {
    const PIECES: u64 = 12;
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let proxy = Proxy::new(target.address).await;
    let (mut source, mut session) = pair(&authority, &mut target, Some(proxy.address)).await;
    let mut memory = session.memory(1).expect("not taken");
    let mut control = session.control().expect("not taken");
    let mut answers = source.control().expect("not taken");
    let mut status = source.status();
    // Pieces wait in the agent and in the kernel, and no window is full.
    proxy.turn(Weather::Blackhole);
    for place in 0..PIECES {
        soon(source.sender().memory(1, content(place, MIB / 4))).await.expect("sent");
    }
    source.give_up_bulk();
    let data_ended = |lanes: &Vec<LaneStatus>| lanes[1..].iter().all(|lane| matches!(lane, LaneStatus::Ended));
    soon(status.wait_for(data_ended)).await.expect("all but lane 0 end");
    soon(source.sender().control(content(1, 100))).await.expect("sent");
    proxy.turn(Weather::Fair);
    assert_eq!(soon(control.recv()).await.expect("no error"), Some(content(1, 100)));
    soon(session.sender().control(content(2, 100))).await.expect("sent");
    assert_eq!(soon(answers.recv()).await.expect("no error"), Some(content(2, 100)));
    // The lanes are not dialled again.
    sleep(quick().silence_max).await;
    assert!(data_ended(&status.borrow()));
    soon(source.abort()).await;
    assert!(matches!(soon(session.ended()).await, LinkError::AbandonedByPeer));
    let mut came = 0;
    while let Ok(Some(_)) = soon(memory.recv()).await {
        came += 1;
    }
    assert!(came < PIECES, "all {came} pieces came all the same");
}

#[tokio::test]
async fn the_rate_of_the_job_is_kept() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let limiter = Arc::new(Limiter::new(Some(Bandwidth(8 * MIB as u64))));
    let tls = authority.host("alpha");
    let source = soon(Session::dial(dial(target.address), tls, Arc::clone(&limiter))).await.expect("a session");
    let mut session = target.session().await;
    let _discarded = session.blocks().expect("not taken");
    let start = Instant::now();
    for place in 0..8 {
        soon(source.sender().block(0, place, content(place, MIB))).await.expect("sent");
    }
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_millis(700) && elapsed < Duration::from_secs(3), "{elapsed:?}");
}

#[tokio::test]
async fn a_target_that_was_restarted_is_never_mistaken_for_the_one_before() {
    let authority = Authority::new("fleet");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let proxy = Proxy::new(target.address).await;
    let (source, session) = pair(&authority, &mut target, Some(proxy.address)).await;
    source.sender().control(content(1, 1)).await.expect("sent");
    soon(source.sender().drain()).await.expect("delivered");
    // The target's session vanishes; its listener, as that of a new process, admits the same session again.
    drop(session);
    proxy.turn(Weather::Cut);
    proxy.turn(Weather::Fair);
    let end = soon(source.ended()).await;
    assert!(
        matches!(&end, LinkError::Refused(refusal) if refusal.code == RefusalCode::StateLost)
            || matches!(end, LinkError::StateLost),
        "{end:?}"
    );
    let again = Dial { incarnation: 2, ..dial(target.address) };
    let source = open(again, &authority.host("alpha")).await.expect("a new incarnation begins anew");
    let first = target.session().await;
    assert_eq!(first.incarnation(), 2);
    let third = Dial { incarnation: 3, ..dial(target.address) };
    let _third = open(third, &authority.host("alpha")).await.expect("a session");
    assert!(matches!(soon(first.ended()).await, LinkError::Superseded));
    drop(source);
}
