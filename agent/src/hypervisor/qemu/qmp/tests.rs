//! The QMP client, tested.

use super::*;
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream};

const WAIT: Duration = Duration::from_secs(5);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

/// The other end, played by the test.
struct Peer(BufReader<DuplexStream>);

impl Peer {
    async fn says(&mut self, text: &str) {
        // The client may have hung up on what was said before.
        let _ = self.0.get_mut().write_all(text.as_bytes()).await;
    }

    async fn hears(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.expect("the client's line");
        serde_json::from_str(&line).expect("JSON")
    }

    async fn answers(&mut self, id: &Value, answer: &str) {
        self.says(&format!("{{\"return\": {answer}, \"id\": {id}}}\n")).await;
    }
}

fn pair() -> (DuplexStream, Peer) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    (ours, Peer(BufReader::new(theirs)))
}

async fn connected() -> (Qmp, Peer) {
    let (ours, mut peer) = pair();
    let negotiation = async {
        peer.says(GREETING).await;
        let hello = peer.hears().await;
        assert_eq!(hello["execute"], "qmp_capabilities");
        peer.answers(&hello["id"], "{}").await;
    };
    let (qmp, ()) = tokio::join!(Qmp::over(ours, WAIT), negotiation);
    (qmp.expect("a connection"), peer)
}

#[tokio::test]
async fn answers_find_their_commands_out_of_order() {
    let (qmp, mut peer) = connected().await;
    let play = async {
        let (first, second) = (peer.hears().await, peer.hears().await);
        peer.answers(&second["id"], "\"second\"").await;
        peer.answers(&first["id"], "\"first\"").await;
        (first, second)
    };
    let (first, second, heard) =
        tokio::join!(qmp.execute("one", json!({"a": 1}), WAIT), qmp.execute("two", Value::Null, WAIT), play);
    assert_eq!((first.expect("an answer"), second.expect("an answer")), (json!("first"), json!("second")));
    assert_eq!(heard.0["arguments"], json!({"a": 1}));
    assert_eq!(heard.1.get("arguments"), None);
}

#[tokio::test]
async fn a_refusal_keeps_class_and_description() {
    let (qmp, mut peer) = connected().await;
    let play = async {
        let id = peer.hears().await["id"].clone();
        peer.says(&format!("{{\"id\": {id}, \"error\": {{\"class\": \"DeviceNotFound\", \"desc\": \"no x\"}}}}\n"))
            .await;
    };
    let (outcome, ()) = tokio::join!(qmp.execute("one", Value::Null, WAIT), play);
    assert!(matches!(outcome, Err(QmpError::Refused { class, description, .. })
        if class == "DeviceNotFound" && description == "no x"));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_dropped_and_the_connection_goes_on() {
    let (qmp, mut peer) = connected().await;
    let outcome = qmp.execute("slow", Value::Null, Duration::from_secs(1)).await;
    assert!(matches!(outcome, Err(QmpError::Timeout { command: "slow", .. })));
    let slow = peer.hears().await;
    peer.answers(&slow["id"], "\"late\"").await;
    let play = async {
        let quick = peer.hears().await;
        peer.answers(&quick["id"], "\"in time\"").await;
    };
    let (outcome, ()) = tokio::join!(qmp.execute("quick", Value::Null, WAIT), play);
    assert_eq!(outcome.expect("an answer"), json!("in time"));
}

#[tokio::test]
async fn the_end_of_qemu_fails_everything_in_flight() {
    let (qmp, mut peer) = connected().await;
    let mut events = qmp.events();
    let play = async {
        peer.hears().await;
        drop(peer);
    };
    let (outcome, ()) = tokio::join!(qmp.execute("one", Value::Null, WAIT), play);
    assert!(matches!(outcome, Err(QmpError::Lost { command: "one", lost: Lost::Closed })), "{outcome:?}");
    let later = qmp.execute("two", Value::Null, WAIT).await;
    assert!(matches!(later, Err(QmpError::Lost { command: "two", lost: Lost::Closed })), "{later:?}");
    assert!(matches!(events.next().await, Err(EventGap::Lost(Lost::Closed))));
    assert!(matches!(qmp.lost().await, Lost::Closed));
}

#[tokio::test]
async fn events_pass_through_and_a_slow_reader_learns_what_it_missed() {
    let (qmp, mut peer) = connected().await;
    let mut events = qmp.events();
    peer.says("{\"event\": \"NEW_IN_QEMU_99\", \"data\": {\"x\": [1]}, \"more\": 1}\n").await;
    let event = events.next().await.expect("an event");
    assert_eq!((event.name.as_str(), event.data["x"].clone()), ("NEW_IN_QEMU_99", json!([1])));
    for _ in 0..EVENTS_KEPT_MAX + 10 {
        peer.says("{\"event\": \"TICK\"}\n").await;
    }
    // The answer comes after the events, so they have all been taken in.
    let play = async {
        let id = peer.hears().await["id"].clone();
        peer.answers(&id, "{}").await;
    };
    let (outcome, ()) = tokio::join!(qmp.execute("fence", Value::Null, WAIT), play);
    outcome.expect("an answer");
    assert!(matches!(events.next().await, Err(EventGap::Missed { count: 10 })));
    assert_eq!(events.next().await.expect("an event").name, "TICK");
}

#[tokio::test]
async fn hostile_bytes_end_the_connection_and_say_why() {
    let deep = format!("{}\n", "[".repeat(100_000));
    let cases: [(&str, &str); 9] = [
        ("garbage\n", "a JSON object"),
        ("\n", "a JSON object"),
        ("\u{0}\u{1}\u{2}\n", "a JSON object"),
        ("[1, 2]\n", "a JSON object"),
        (&deep, "a JSON object"),
        ("{\"return\": {}, \"id\": 4711}\n", "the id of a command in flight"),
        ("{\"error\": {\"class\": \"GenericError\", \"desc\": \"what?\"}}\n", "the id of a command in flight"),
        ("{\"return\": 1, \"error\": 2, \"id\": 1}\n", "one of event, return and error"),
        ("{\"error\": 7, \"id\": 1}\n", "an error with class and desc"),
    ];
    for (bytes, wanted) in cases {
        let (qmp, mut peer) = connected().await;
        peer.says(bytes).await;
        let lost = qmp.lost().await;
        assert!(
            matches!(&lost, Lost::Violation { expected, got } if *expected == wanted && got.len() < 1000),
            "{lost}"
        );
    }
}

#[tokio::test]
async fn an_endless_line_is_cut_off() {
    let (qmp, mut peer) = connected().await;
    let flood = async {
        let block = "x".repeat(1 << 14);
        let mut sent = 0;
        while peer.0.get_mut().write_all(block.as_bytes()).await.is_ok() {
            sent += block.len();
        }
        sent
    };
    let (lost, sent) = tokio::join!(qmp.lost(), flood);
    assert!(matches!(lost, Lost::Violation { expected: "a line of at most 1 MiB", .. }), "{lost}");
    assert!(sent < 2 * LINE_BYTES_MAX, "{sent} bytes were taken");
}

#[tokio::test(start_paused = true)]
async fn no_greeting_a_wrong_one_and_half_of_one_are_told_apart() {
    let (ours, _peer) = pair();
    assert!(matches!(Qmp::over(ours, WAIT).await, Err(QmpError::Timeout { .. })));
    let (ours, mut peer) = pair();
    peer.says("{\"hello\": 1}\n").await;
    let outcome = Qmp::over(ours, WAIT).await;
    assert!(matches!(outcome, Err(QmpError::Lost { lost: Lost::Violation { .. }, .. })), "{outcome:?}");
    let (ours, mut peer) = pair();
    peer.says("{\"QMP\": {\"ver").await;
    drop(peer);
    assert!(matches!(Qmp::over(ours, WAIT).await, Err(QmpError::Lost { lost: Lost::Closed, .. })));
}

#[tokio::test(start_paused = true)]
async fn commands_beyond_the_limit_wait_within_their_own_time() {
    let (qmp, mut peer) = connected().await;
    let commands = (0..=COMMANDS_IN_FLIGHT_MAX).map(|_| qmp.execute("hang", Value::Null, Duration::from_secs(1)));
    let outcomes = futures_util::future::join_all(commands).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(QmpError::Timeout { .. }))));
    for _ in 0..COMMANDS_IN_FLIGHT_MAX {
        assert_eq!(peer.hears().await["execute"], "hang");
    }
    // All that were sent are still unanswered, so nothing more may be sent; the one left over never is.
    let blocked = qmp.execute("more", Value::Null, Duration::from_secs(1)).await;
    assert!(matches!(blocked, Err(QmpError::Timeout { command: "more", .. })));
    peer.answers(&json!(1), "{}").await;
    let play = async {
        let heard = peer.hears().await;
        assert_eq!(heard["execute"], "last");
        peer.answers(&heard["id"], "{}").await;
    };
    let (outcome, ()) = tokio::join!(qmp.execute("last", Value::Null, WAIT), play);
    outcome.expect("an answer");
}
