//! The table, pair by pair. How two of these machines behave together is explored in the model (`tests/tests/model.rs`).

use proptest::prelude::*;

use super::*;
use crate::id::{Generation, HostId};

fn peer(name: &str) -> Move {
    Move {
        job: "0197c0de-0000-7000-8000-000000000001".parse().expect("a valid job id"),
        peer: name.parse().expect("a valid host id"),
    }
}

fn host(name: &str) -> HostId {
    peer(name).peer
}

const fn g(generation: u64) -> Generation {
    Generation(generation)
}

fn from(name: &str, message: Message) -> Input {
    Input::Received { from: host(name), message }
}

fn send(to: &str, message: Message) -> Action {
    Action::Send { to: host(to), message }
}

fn cede(n: u64) -> Message {
    Message::Cede { generation: g(n) }
}

fn resolve(n: u64) -> Message {
    Message::Resolve { generation: g(n) }
}

fn activated(n: u64) -> Message {
    Message::Activated { generation: g(n) }
}

fn refused(n: u64) -> Message {
    Message::Refused { generation: g(n) }
}

fn absent(owned: u64, seen: u64) -> Record {
    Record::Absent { owned: g(owned), seen: g(seen) }
}

fn incoming() -> Record {
    Record::Incoming { owned: g(2), generation: g(7), from: peer("a") }
}

fn activating() -> Record {
    Record::Activating { owned: g(2), generation: g(7), ceded_by: Some(peer("a")) }
}

fn taken_back() -> Record {
    Record::Activating { owned: g(6), generation: g(8), ceded_by: None }
}

fn owner() -> Record {
    Record::Owner { generation: g(7) }
}

fn ceding() -> Record {
    Record::Ceding { owned: g(6), generation: g(7), to: peer("a") }
}

fn ceded() -> Record {
    Record::Ceded { owned: g(6), generation: g(7), to: peer("a") }
}

/// Every state, with generations around 7 and `a` as the peer.
fn records() -> Vec<Record> {
    vec![absent(0, 0), absent(2, 7), absent(7, 7), incoming(), activating(), taken_back(), owner(), ceding(), ceded()]
}

/// Every input, with generations below, at and above those of [`records`], from the peer and from a stranger.
fn inputs() -> Vec<Input> {
    use Input as I;
    let mut inputs =
        vec![I::Create, I::Delete, I::Abort, I::Journalled, I::GuestRuns, I::CannotRun, I::Released, I::Tick];
    for name in ["a", "stranger"] {
        inputs.push(I::Fenced { host: host(name) });
        for n in [0, 1, 2, 3, 6, 7, 8, 9, GENERATION_JUMP_MAX + 99, u64::MAX] {
            inputs.extend([cede(n), resolve(n), activated(n), refused(n)].map(|message| from(name, message)));
            inputs.push(I::Prepare { generation: g(n), from: peer(name) });
            inputs.push(I::BeginCede { generation: g(n), to: peer(name) });
            inputs.push(I::Superseded { generation: g(n) });
            inputs.push(I::TakeOver { above: g(n) });
        }
    }
    inputs
}

/// Applies an input and lets the journal confirm; the record written, and everything to do after it.
fn settle(machine: &mut Ownership, input: &Input) -> Result<(Option<Record>, Vec<Action>), Illegal> {
    match machine.apply(input)?.as_slice() {
        [Action::Journal(record)] => {
            let after = machine.apply(&Input::Journalled).expect("a write is pending");
            assert_eq!(machine.record(), record);
            Ok((Some(record.clone()), after))
        }
        actions => Ok((None, actions.to_vec())),
    }
}

#[track_caller]
fn goes(record: Record, input: &Input, to: Record, after: &[Action]) {
    assert_eq!(settle(&mut Ownership::restore(record), input), Ok((Some(to), after.to_vec())));
}

#[track_caller]
fn stays(record: Record, input: &Input, actions: &[Action]) {
    assert_eq!(settle(&mut Ownership::restore(record), input), Ok((None, actions.to_vec())));
}

#[track_caller]
fn denies(record: Record, input: &Input) -> Illegal {
    let mut machine = Ownership::restore(record);
    let before = machine.clone();
    let illegal = machine.apply(input).expect_err("an input that does not fit");
    assert_eq!(machine, before, "a denied input must change nothing");
    illegal
}

#[test]
fn the_way_of_the_source() {
    let begin = Input::BeginCede { generation: g(7), to: peer("a") };
    goes(Record::Owner { generation: g(6) }, &begin, ceding(), &[send("a", cede(7))]);
    goes(ceding(), &from("a", activated(7)), ceded(), &[Action::Release]);
    goes(ceding(), &from("a", refused(7)), taken_back(), &[Action::Cont]);
    goes(ceding(), &Input::Fenced { host: host("a") }, taken_back(), &[Action::Cont]);
    goes(taken_back(), &Input::GuestRuns, Record::Owner { generation: g(8) }, &[]);
    goes(ceded(), &Input::Released, absent(6, 7), &[]);
}

#[test]
fn the_way_of_the_target() {
    let prepare = Input::Prepare { generation: g(7), from: peer("a") };
    goes(absent(2, 3), &prepare, incoming(), &[]);
    goes(incoming(), &from("a", cede(7)), activating(), &[Action::Cont]);
    goes(activating(), &Input::GuestRuns, owner(), &[send("a", activated(7))]);
    goes(incoming(), &Input::Abort, absent(2, 7), &[Action::Destroy]);
    goes(incoming(), &from("a", resolve(7)), absent(2, 7), &[Action::Destroy, send("a", refused(7))]);
}

#[test]
fn a_guest_that_never_ran_goes_back() {
    let mut machine = Ownership::restore(incoming());
    settle(&mut machine, &from("a", cede(7))).expect("the cede is taken");
    let back = settle(&mut machine, &Input::CannotRun);
    assert_eq!(back, Ok((Some(absent(2, 7)), vec![Action::Destroy, send("a", refused(7))])));
}

#[test]
fn a_guest_that_may_have_run_stays() {
    // After a restart, or after a first cont whose end nobody saw, "it never ran" is no longer certain.
    assert_eq!(denies(activating(), &Input::CannotRun), Illegal::MustRun { generation: g(7) });
    let mut machine = Ownership::restore(incoming());
    settle(&mut machine, &from("a", cede(7))).expect("the cede is taken");
    assert_eq!(settle(&mut machine, &Input::Tick), Ok((None, vec![Action::Cont])));
    assert_eq!(machine.apply(&Input::CannotRun), Err(Illegal::MustRun { generation: g(7) }));
    assert_eq!(denies(taken_back(), &Input::CannotRun), Illegal::MustRun { generation: g(8) });
}

#[test]
fn a_restart_goes_on() {
    stays(activating(), &Input::Tick, &[Action::Cont]);
    stays(taken_back(), &Input::Tick, &[Action::Cont]);
    stays(ceding(), &Input::Tick, &[send("a", cede(7))]);
    stays(ceded(), &Input::Tick, &[Action::Release]);
    stays(absent(2, 7), &Input::Tick, &[Action::Destroy]);
    stays(incoming(), &Input::Tick, &[]);
    stays(owner(), &Input::Tick, &[]);
}

#[test]
fn questions_are_answered_long_after() {
    for question in [cede(7), resolve(7)] {
        // Owned 7 or later: taken, also when handed on since.
        for record in [owner(), Record::Owner { generation: g(9) }, absent(7, 9), absent(8, 9)] {
            stays(record, &from("a", question), &[send("a", activated(7))]);
        }
        let on = Record::Ceding { owned: g(7), generation: g(9), to: peer("c") };
        stays(on, &from("a", question), &[send("a", activated(7))]);
        // Seen, never owned.
        stays(absent(2, 7), &from("a", question), &[send("a", refused(7))]);
        // Never heard of: promised first.
        goes(absent(2, 3), &from("a", question), absent(2, 7), &[send("a", refused(7))]);
        // Taken, and not seen to run: the answer follows.
        stays(activating(), &from("a", question), &[]);
    }
}

#[test]
fn an_older_generation_is_refused() {
    let prepare = Input::Prepare { generation: g(7), from: peer("a") };
    assert_eq!(denies(absent(2, 7), &prepare), Illegal::Stale { generation: g(7), seen: g(7) });
    let begin = Input::BeginCede { generation: g(7), to: peer("a") };
    assert_eq!(denies(owner(), &begin), Illegal::Stale { generation: g(7), seen: g(7) });
    stays(incoming(), &from("a", cede(6)), &[send("a", refused(6))]);
}

#[test]
fn a_later_generation_ends_a_preparation() {
    let next = [Action::Destroy, send("c", refused(9))];
    goes(incoming(), &from("c", resolve(9)), absent(2, 9), &next);
    goes(incoming(), &from("c", cede(9)), absent(2, 9), &next);
}

#[test]
fn strangers_have_no_say() {
    for message in [cede(7), resolve(7)] {
        let denied = denies(incoming(), &from("stranger", message));
        assert_eq!(denied, Illegal::WrongPeer { expected: host("a"), host: host("stranger") });
    }
    for message in [activated(7), refused(7)] {
        let denied = denies(ceding(), &from("stranger", message));
        assert_eq!(denied, Illegal::WrongPeer { expected: host("a"), host: host("stranger") });
    }
    denies(ceding(), &Input::Fenced { host: host("stranger") });
}

#[test]
fn an_owner_is_not_talked_out_of_it() {
    for record in [activating(), taken_back(), owner(), ceding(), ceded()] {
        let denied = denies(record.clone(), &from("a", resolve(9)));
        assert!(matches!(denied, Illegal::Contradiction { .. }), "{record:?}");
    }
    goes(owner(), &Input::Superseded { generation: g(9) }, absent(7, 9), &[Action::Destroy]);
    goes(activating(), &Input::Superseded { generation: g(9) }, absent(7, 9), &[Action::Destroy]);
}

#[test]
fn a_replica_is_run_above_all_that_was_seen_here_and_by_the_owner() {
    let take_over = |above| Input::TakeOver { above: g(above) };
    let owns = |generation| Record::Owner { generation: g(generation) };
    goes(absent(0, 0), &take_over(7), owns(8), &[]);
    goes(absent(2, 7), &take_over(3), owns(8), &[]);
    goes(absent(7, 7), &take_over(9), owns(10), &[]);
    stays(owner(), &take_over(6), &[]);
    // Whoever has a part in a handover waits for its end.
    for record in [incoming(), activating(), taken_back(), ceding(), ceded(), owner()] {
        assert!(matches!(denies(record.clone(), &take_over(9)), Illegal::NotNow { .. }), "{record:?}");
    }
    let far = GENERATION_JUMP_MAX + 1;
    assert!(matches!(denies(absent(0, 0), &take_over(far)), Illegal::Implausible { .. }));
    // The host that was taken for dead gives up, whether it comes back at once or never knew of a later one.
    goes(owner(), &Input::Superseded { generation: g(99) }, absent(7, 99), &[Action::Destroy]);
}

#[test]
fn generations_are_not_used_up_by_one_lie() {
    assert!(matches!(denies(absent(0, 0), &from("a", resolve(u64::MAX))), Illegal::Implausible { .. }));
    assert!(matches!(denies(incoming(), &from("a", cede(u64::MAX))), Illegal::Implausible { .. }));
    let last = Input::BeginCede { generation: g(u64::MAX), to: peer("a") };
    assert_eq!(denies(owner(), &last), Illegal::Exhausted { generation: g(u64::MAX) });
}

#[test]
fn nothing_happens_before_the_journal_confirms() {
    let mut machine = Ownership::restore(incoming());
    assert_eq!(machine.apply(&from("a", cede(7))), Ok(vec![Action::Journal(activating())]));
    assert_eq!(machine.record(), &incoming());
    for input in inputs().iter().filter(|input| **input != Input::Journalled) {
        assert_eq!(machine.apply(input), Err(Illegal::Journalling { record: "activating" }));
    }
    assert_eq!(machine.apply(&Input::Journalled), Ok(vec![Action::Cont]));
    assert_eq!(machine.apply(&Input::Journalled), Err(Illegal::NothingJournalled));
}

#[test]
fn every_input_is_idempotent_in_every_state() {
    for record in records() {
        for input in inputs() {
            let mut machine = Ownership::restore(record.clone());
            let Ok((_, first)) = settle(&mut machine, &input) else { continue };
            let after = machine.record().clone();
            match settle(&mut machine, &input) {
                Ok((again, actions)) => {
                    assert_eq!(again, None, "{record:?} and twice {input:?} journals twice");
                    let repeats =
                        input != Input::Tick && first.contains(&Action::Cont) && actions.contains(&Action::Cont);
                    assert!(!repeats, "{record:?} and twice {input:?} conts twice");
                }
                Err(_) => assert_eq!(machine.record(), &after),
            }
        }
    }
}

#[test]
fn a_guest_is_started_only_where_it_may_run() {
    for record in records() {
        for input in inputs() {
            let mut machine = Ownership::restore(record.clone());
            let Ok((_, actions)) = settle(&mut machine, &input) else { continue };
            assert!(!actions.contains(&Action::Cont) || machine.record().may_run().is_some(), "{record:?} {input:?}");
            // The right comes from a cede, a refusal, a fencing, a failover or a creation, and from nothing else.
            if record.may_run().is_none() && machine.record().may_run().is_some() {
                let grants =
                    [from("a", cede(7)), from("a", refused(7)), Input::Fenced { host: host("a") }, Input::Create];
                let taken_over = matches!((&record, &input), (Record::Absent { .. }, Input::TakeOver { .. }));
                assert!(grants.contains(&input) || taken_over, "{record:?} {input:?}");
            }
        }
    }
}

#[test]
fn records_and_messages_survive_encoding() {
    for record in records() {
        let bytes = rmp_serde::to_vec_named(&record).expect("a record encodes");
        assert_eq!(rmp_serde::from_slice::<Record>(&bytes).expect("and decodes"), record);
        let text = serde_json::to_string(&record).expect("a record encodes");
        assert_eq!(serde_json::from_str::<Record>(&text).expect("and decodes"), record);
    }
    let text = serde_json::to_string(&incoming()).expect("a record encodes");
    assert_eq!(
        text,
        r#"{"incoming":{"owned":2,"generation":7,"from":{"job":"0197c0de-0000-7000-8000-000000000001","peer":"a"}}}"#,
        "journals of older agents must stay readable"
    );
    for message in [cede(7), resolve(7), activated(7), refused(7)] {
        let bytes = rmp_serde::to_vec_named(&message).expect("a message encodes");
        assert_eq!(rmp_serde::from_slice::<Message>(&bytes).expect("and decodes"), message);
    }
}

proptest! {
    /// Any history, with restarts in between: no panic, generations only grow, and no grant is made twice.
    #[test]
    fn generations_only_grow(history in prop::collection::vec((0..inputs().len(), 0..4_u8), 0..60)) {
        let inputs = inputs();
        let mut machine = Ownership::restore(Record::default());
        let mut granted = Vec::new();
        for (input, fate) in history {
            let before = machine.record().clone();
            let wrote = match machine.apply(&inputs[input]) {
                Ok(actions) => matches!(actions.as_slice(), [Action::Journal(_)]),
                Err(_) => false,
            };
            if wrote && fate > 0 {
                machine.apply(&Input::Journalled).expect("a write is pending");
            }
            // A crash: before the write (0), or after it (1).
            if fate < 2 {
                machine = Ownership::restore(machine.record().clone());
            }
            let after = machine.record();
            prop_assert!(after.seen() >= before.seen() && after.owned() >= before.owned());
            prop_assert!(after.owned() <= after.seen());
            if before.may_run() != after.may_run() && after.may_run().is_some() {
                prop_assert!(!granted.contains(&after.may_run()), "{before:?} {after:?}");
                granted.push(after.may_run());
            }
        }
    }
}
