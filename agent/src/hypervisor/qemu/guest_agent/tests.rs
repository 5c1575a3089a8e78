//! The client of the guest agent, against a guest that a test plays.

use super::*;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;

/// The guest's end.
struct Guest {
    listener: UnixListener,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

/// One client at it.
struct Peer(BufReader<UnixStream>);

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("guest-agent.sock");
        Self { listener: UnixListener::bind(&path).expect("a socket"), path, _folder: folder }
    }

    async fn client(&self) -> Peer {
        Peer(BufReader::new(self.listener.accept().await.expect("a client").0))
    }

    /// A client that is answered after the guest has said `before`.
    async fn connected(&self, before: &[u8]) -> (GuestAgent, Peer) {
        let play = async {
            let mut peer = self.client().await;
            peer.says(before).await;
            peer.syncs().await;
            peer
        };
        let (agent, peer) = tokio::join!(GuestAgent::connect(&self.path), play);
        (agent.expect("the guest answers"), peer)
    }
}

impl Peer {
    async fn says(&mut self, bytes: &[u8]) {
        // The client may have hung up on what was said before.
        let _ = self.0.get_mut().write_all(bytes).await;
    }

    async fn hears(&mut self) -> Value {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).await.expect("a request");
        serde_json::from_slice(line.strip_prefix(&[DELIMITER]).unwrap_or(&line)).expect("JSON")
    }

    async fn hears_command(&mut self) -> String {
        self.hears().await["execute"].as_str().expect("a command").to_owned()
    }

    async fn syncs(&mut self) {
        let request = self.hears().await;
        assert_eq!(request["execute"], SYNC);
        let answer = format!("{{\"return\": {}, \"more\": [1]}}\n", request["arguments"]["id"]);
        self.says(&[&[DELIMITER], answer.as_bytes()].concat()).await;
    }
}

#[tokio::test]
async fn what_others_were_answered_is_passed_over() {
    let guest = Guest::new();
    let garbage =
        [b"{\"return\": 2}\nhalf a li\xff\xff{\"return\": 1}\n\xffno JSON\n".as_slice(), &[b'x'; 200_000]].concat();
    let (mut agent, mut peer) = guest.connected(&garbage).await;
    let play = async {
        assert_eq!(peer.hears_command().await, FREEZE);
        peer.says(b"{\"return\": 3, \"more\": {}}\n").await;
        assert_eq!(peer.hears_command().await, THAW);
        peer.says(b"{\"return\": 3}\n").await;
    };
    let asked = async { (agent.freeze().await, agent.thaw().await) };
    let ((frozen, thawed), ()) = tokio::join!(asked, play);
    assert_eq!(frozen.expect("frozen"), 3);
    thawed.expect("thawed");
    drop(agent);
    let mut rest = Vec::new();
    peer.0.read_to_end(&mut rest).await.expect("the end");
    assert!(rest.is_empty(), "a guest that is thawed is told nothing more");
}

#[tokio::test]
async fn an_endless_line_is_cut_off() {
    let guest = Guest::new();
    let play = async {
        let mut peer = guest.client().await;
        peer.says(&[DELIMITER]).await;
        peer.says(&vec![b'x'; 4 * ANSWER_BYTES_MAX]).await;
    };
    let (agent, ()) = tokio::join!(GuestAgent::connect(&guest.path), play);
    let error = agent.expect_err("no answer");
    assert!(matches!(&error, GuestAgentError::Violation { command: SYNC, .. }), "{error}");
    assert!(error.to_string().len() < 2 * EXCERPT_BYTES_MAX, "{error}");
}

#[tokio::test]
async fn silence_ends_in_time_and_an_absent_port_at_once() {
    let guest = Guest::new();
    let before = std::time::Instant::now();
    let error = GuestAgent::connect(&guest.path).await.expect_err("silence");
    assert!(matches!(error, GuestAgentError::Silent { command: SYNC, wait: SYNC_WAIT }), "{error}");
    assert!(before.elapsed() < 3 * SYNC_WAIT);
    let error = GuestAgent::connect(&guest.path.with_extension("none")).await.expect_err("nothing there");
    assert!(matches!(error, GuestAgentError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_and_nonsense_say_what_they_are_and_the_guest_is_thawed_all_the_same() {
    for (said, named) in [
        ("{\"error\": {\"class\": \"GenericError\", \"desc\": \"failed to freeze /srv\"}}\n", "failed to freeze /srv"),
        ("{\"return\": 0}\n", "no file system"),
        ("{\"return\": \"two\"}\n", "a number"),
        ("[]\n", "\"[]\""),
    ] {
        let guest = Guest::new();
        let (mut agent, mut peer) = guest.connected(b"").await;
        let play = async {
            assert_eq!(peer.hears_command().await, FREEZE);
            peer.says(said.as_bytes()).await;
        };
        let (frozen, ()) = tokio::join!(agent.freeze(), play);
        let error = frozen.expect_err("not frozen").to_string();
        assert!(error.contains(named), "{error}");
        drop(agent);
        assert_eq!(peer.hears_command().await, THAW);
    }
}

#[tokio::test]
async fn a_guest_that_is_left_frozen_is_thawed_by_whoever_comes_next() {
    let guest = Guest::new();
    let (mut agent, mut peer) = guest.connected(b"").await;
    // Dropped in the middle of it: the guest still freezes.
    let freezing = timeout(Duration::from_millis(50), agent.freeze()).await;
    assert!(freezing.is_err());
    drop(agent);
    assert_eq!(peer.hears_command().await, FREEZE);
    assert_eq!(peer.hears_command().await, THAW);
    peer.says(b"{\"return\": 2}\n{\"return\": 2}\n").await;
    peer.syncs().await;
    assert_eq!(peer.hears_command().await, STATUS);
    // The port is closed before it has said so.
    drop(peer);
    let mut next = guest.client().await;
    next.syncs().await;
    assert_eq!(next.hears_command().await, STATUS);
    next.says(b"{\"return\": \"frozen\"}\n").await;
    assert_eq!(next.hears_command().await, THAW);
    next.says(b"{\"return\": 2}\n").await;
    let mut rest = Vec::new();
    next.0.read_to_end(&mut rest).await.expect("the end");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn looking_after_a_guest_that_says_nothing_takes_two_seconds() {
    let guest = Guest::new();
    let before = std::time::Instant::now();
    thaw_left_frozen(&guest.path).await;
    assert!(before.elapsed() < 2 * LEFT_FROZEN_WAIT);
    // It is still seen to.
    let mut peer = guest.client().await;
    peer.syncs().await;
    assert_eq!(peer.hears_command().await, STATUS);
    peer.says(b"{\"return\": \"thawed\"}\n").await;
    let mut rest = Vec::new();
    peer.0.read_to_end(&mut rest).await.expect("the end");
    assert!(rest.is_empty());
}
