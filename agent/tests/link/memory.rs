//! QEMU's channels at the target's end.

use bytes::Bytes;
use sterna_agent::memory::TargetRelay;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

use super::*;

/// More than a UNIX socket holds, in one piece.
const FIRST_LENGTH: usize = 512 << 10;
const CHANNELS: u16 = 3;

/// QEMU looks at the first bytes of the main channel and reads no more of it until it has all the others.
#[tokio::test]
async fn the_other_channels_come_while_the_main_one_is_full() {
    let authority = Authority::new("a");
    let mut target = Target::new(authority.host("beta"), quick()).await;
    let (source, mut session) = pair(&authority, &mut target, None).await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("memory.sock");
    let qemu = UnixListener::bind(&path).expect("a socket");
    let _relay = TargetRelay::connect(&path, CHANNELS, &mut session).expect("a relay");
    for channel in (0..CHANNELS).rev() {
        let length = if channel == 0 { FIRST_LENGTH } else { 8 };
        let piece = Bytes::from(vec![u8::try_from(channel).expect("few"); length]);
        soon(source.sender().memory(channel, piece)).await.expect("sent");
    }
    let mut streams = Vec::new();
    for _ in 0..CHANNELS {
        streams.push(soon(qemu.accept()).await.expect("a channel").0);
    }
    let mut main = vec![1; FIRST_LENGTH];
    soon(streams[0].read_exact(&mut main)).await.expect("all of it");
    assert!(main.iter().all(|byte| *byte == 0), "the main channel comes first, and whole");
    for stream in &mut streams[1..] {
        let mut bytes = [0; 8];
        soon(stream.read_exact(&mut bytes)).await.expect("its first bytes");
        assert!(bytes[0] != 0 && bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
    }
}
