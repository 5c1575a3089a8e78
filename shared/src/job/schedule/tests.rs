use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().expect("an instant")
}

fn two_oclock() -> Schedule {
    Schedule::repeated(Rule::daily(Duration::from_secs(7200), Zone::Utc))
}

#[track_caller]
fn has_fault(schedule: &Schedule, words: &str) {
    let faults = schedule.faults();
    assert!(faults.len() == 1 && faults[0].contains(words), "{words}: {faults:?}");
    assert_eq!(schedule.next(Timestamp::from_unix_microseconds(0), 0), None);
    assert_eq!(schedule.due(Timestamp::from_unix_microseconds(0), at("2026-01-01T00:00:00Z"), 0), Due::Nothing);
}

#[test]
fn each_fault_is_told_and_nothing_runs() {
    let moment = at("2026-03-01T00:00:00Z");
    has_fault(&Schedule::default(), "give a moment or a calendar rule");
    has_fault(&Schedule { at: Some(moment), ..two_oclock() }, "leave one of them out");
    has_fault(&Schedule { run_times: 0, ..Schedule::once(moment) }, "cannot run 0 times at one moment");
    has_fault(&Schedule { until: Some(at("2026-02-01T00:00:00Z")), ..Schedule::once(moment) }, "move one of the two");
    has_fault(&Schedule { late_after: Duration::from_nanos(1), ..two_oclock() }, "round it");
    has_fault(&Schedule { late_after: Duration::MAX, ..two_oclock() }, "round it");
    let mut schedule = two_oclock();
    schedule.rule.as_mut().expect("a rule").day = Some(0);
    has_fault(&schedule, "day 0");
}

#[test]
fn what_runs_after_pauses_runs_at_once_and_then_a_pause_after_it_has_ended() {
    let schedule = Schedule::after_pauses(300);
    assert_eq!(schedule.faults(), Vec::<String>::new());
    let submitted = at("2026-03-01T00:00:00Z");
    assert_eq!(schedule.due(submitted, submitted, 0), Due::Run { turn: submitted, missed: 0 });
    // From then on what was considered is the end of the latest run.
    let ended = at("2026-03-01T00:10:00Z");
    assert_eq!(schedule.due(ended, at("2026-03-01T00:14:59Z"), 1), Due::Nothing);
    assert_eq!(schedule.next(ended, 1), Some(at("2026-03-01T00:15:00Z")));
    for later in ["2026-03-01T00:15:00Z", "2026-03-09T00:00:00Z"] {
        assert_eq!(schedule.due(ended, at(later), 1), Due::Run { turn: at(later), missed: 0 }, "no turn is missed");
    }
    let twice = Schedule { run_times: 2, ..schedule.clone() };
    assert_eq!((twice.next(ended, 2), twice.due(ended, at("2026-03-09T00:00:00Z"), 2)), (None, Due::Nothing));
    let until = Schedule { until: Some(at("2026-03-01T00:14:00Z")), ..schedule };
    assert_eq!((until.next(ended, 1), until.due(ended, at("2026-03-09T00:00:00Z"), 1)), (None, Due::Nothing));
}

#[test]
fn a_pause_is_neither_nothing_nor_endless_and_stands_alone() {
    has_fault(&Schedule::after_pauses(0), "out of range");
    has_fault(&Schedule::after_pauses(IDLE_MAX_SECONDS + 1), "out of range");
    has_fault(&Schedule { at: Some(at("2026-03-01T00:00:00Z")), ..Schedule::after_pauses(5) }, "leave one of them out");
    has_fault(&Schedule { idle_seconds: Some(5), ..two_oclock() }, "leave one of them out");
    assert_eq!(Schedule::after_pauses(IDLE_MAX_SECONDS).faults(), Vec::<String>::new());
}

#[test]
fn a_moment_comes_once() {
    let schedule = Schedule::once(at("2026-03-01T00:00:00Z"));
    assert_eq!(schedule.faults(), Vec::<String>::new());
    assert_eq!(schedule.next(at("2026-02-01T00:00:00Z"), 0), schedule.at);
    assert_eq!(schedule.next(at("2026-02-01T00:00:00Z"), 1), None);
    assert_eq!(schedule.next(at("2026-03-01T00:00:00Z"), 0), None);
}

#[test]
fn runs_and_until_bound_it() {
    let schedule = Schedule { run_times: 3, until: Some(at("2026-03-03T02:00:00Z")), ..two_oclock() };
    let after = at("2026-03-02T02:00:00Z");
    assert_eq!(schedule.next(after, 2), Some(at("2026-03-03T02:00:00Z")), "until is the last instant that counts");
    assert_eq!(schedule.next(after, 3), None);
    assert_eq!(schedule.next(at("2026-03-03T02:00:00Z"), 0), None);
    let for_ever = Schedule { run_times: 0, until: None, ..schedule };
    assert!(for_ever.next(after, u32::MAX).is_some());
}

#[test]
fn a_turn_is_taken_when_it_comes() {
    let (considered, turn) = (at("2026-03-02T01:59:00Z"), at("2026-03-02T02:00:00Z"));
    for missed in [Missed::RunOnce, Missed::Skip] {
        let schedule = Schedule { missed, ..two_oclock() };
        assert_eq!(schedule.due(considered, at("2026-03-02T01:59:59Z"), 0), Due::Nothing);
        assert_eq!(schedule.due(considered, turn, 0), Due::Run { turn, missed: 0 });
        assert_eq!(schedule.due(considered, at("2026-03-02T02:05:00Z"), 0), Due::Run { turn, missed: 0 });
        assert_eq!(schedule.due(turn, at("2026-03-02T02:05:00Z"), 0), Due::Nothing);
        assert_eq!(schedule.due(at("2026-03-02T02:05:00Z"), considered, 0), Due::Nothing, "a clock went back");
    }
}

#[test]
fn after_an_outage_it_runs_once_or_waits() {
    let (considered, now) = (at("2026-03-01T12:00:00Z"), at("2026-03-11T12:00:00Z"));
    let turn = at("2026-03-11T02:00:00Z");
    assert_eq!(two_oclock().due(considered, now, 0), Due::Run { turn, missed: 9 });
    let skip = Schedule { missed: Missed::Skip, ..two_oclock() };
    assert_eq!(skip.due(considered, now, 0), Due::Skip { turn, missed: 10 });
    // Back just in time for a turn, it is taken, and the older ones are not made up for.
    assert_eq!(skip.due(considered, at("2026-03-11T02:01:00Z"), 0), Due::Run { turn, missed: 9 });
    // What was skipped used up no run.
    let once = Schedule { run_times: 1, ..skip };
    assert_eq!(once.next(now, 0), Some(at("2026-03-12T02:00:00Z")));
    assert_eq!(once.due(considered, now, 1), Due::Nothing);
}

#[test]
fn nothing_is_made_up_for_once_until_is_past() {
    let turn = at("2026-03-03T02:00:00Z");
    let schedule = Schedule { until: Some(turn), ..two_oclock() };
    let considered = at("2026-03-02T12:00:00Z");
    assert_eq!(schedule.due(considered, at("2026-03-03T02:00:01Z"), 0), Due::Run { turn, missed: 0 }, "on time");
    assert_eq!(schedule.due(considered, at("2026-03-03T09:00:00Z"), 0), Due::Skip { turn, missed: 1 });
}

#[test]
fn an_outage_without_bounds_is_looked_at_within_some() {
    let now = at("2026-03-11T12:00:00Z");
    let due = two_oclock().due(Timestamp::from_unix_microseconds(i64::MIN), now, 0);
    assert_eq!(due, Due::Run { turn: at("2026-03-11T02:00:00Z"), missed: u32::from(SEARCH_YEARS) * 366 - 1 });
}

#[test]
fn what_is_written_is_plain_and_read_back() {
    let rule = Rule { day: Some(8), day_of_week: DayOfWeek::OnOrAfter(Weekday::Tuesday), ..berlin() };
    let schedule = Schedule::repeated(rule);
    let json = serde_json::to_string(&schedule).expect("JSON");
    let expected = concat!(
        r#"{"at":null,"rule":{"month":null,"day":8,"day_of_week":{"on_or_after":"tuesday"},"start_us":9000000000,"#,
        r#""zone":{"local":"Europe/Berlin"}},"run_times":0,"until":null,"missed":"run_once","late_after_us":300000000}"#,
    );
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_str::<Schedule>(&json).expect("what was written"), schedule);
    let misspelt = json.replace("\"until\"", "\"untill\"");
    assert!(serde_json::from_str::<Schedule>(&misspelt).is_err(), "a field that is not known is refused");
}

fn berlin() -> Rule {
    Rule::daily(Duration::from_secs(9000), Zone::Local("Europe/Berlin".into()))
}

prop_compose! {
    /// Rules with and without faults, near the changes of clocks as often as not.
    fn rules()(
        month in proptest::option::of(0_u8..12),
        day in proptest::option::of(-32_i8..=32),
        weekday in -7_i8..=7,
        start in prop_oneof![0_u64..=86_400_000_000, (0_u64..24).prop_map(|quarter| quarter * 900_000_000)],
        zone in prop_oneof![
            Just(Zone::Utc),
            proptest::sample::select(&["Europe/Berlin", "Australia/Lord_Howe", "Asia/Beirut", "Pacific/Apia", "None/Such"][..])
                .prop_map(|name| Zone::Local(name.into())),
        ],
    ) -> Rule {
        Rule {
            month: month.and_then(Month::from_number),
            day,
            day_of_week: DayOfWeek::from_number(weekday).unwrap_or_default(),
            start: Duration::from_micros(start),
            zone,
        }
    }
}

/// From 2009 to 2030.
fn instants() -> impl Strategy<Value = Timestamp> {
    (1_230_768_000_000_000_i64..1_900_000_000_000_000).prop_map(Timestamp::from_unix_microseconds)
}

/// None is later than any instant.
fn no_later(a: Option<Timestamp>, b: Option<Timestamp>) -> bool {
    b.is_none_or(|b| a.is_some_and(|a| a <= b))
}

proptest! {
    #[test]
    fn the_next_turn_is_later_and_the_first(rule in rules(), after in instants(), share in 0.0_f64..1.0) {
        let schedule = Schedule::repeated(rule);
        let next = schedule.next(after, 0);
        prop_assert_eq!(next.is_some(), schedule.faults().is_empty());
        if let Some(turn) = next {
            prop_assert!(turn > after);
            // Whoever asks again at any time before the turn is told the same one.
            #[allow(clippy::cast_possible_truncation)]
            let passed = (turn.seconds_since(after) * 1e6 * share) as i64;
            let between = Timestamp::from_unix_microseconds(after.unix_microseconds() + passed);
            prop_assert_eq!(schedule.next(between, 0), next);
        }
    }

    #[test]
    fn a_later_instant_gives_no_earlier_turn(rule in rules(), a in instants(), b in instants(), until in instants()) {
        let (a, b) = (a.min(b), a.max(b));
        let for_ever = Schedule::repeated(rule);
        prop_assert!(no_later(for_ever.next(a, 0), for_ever.next(b, 0)));
        let bounded = Schedule { until: Some(until), ..for_ever.clone() };
        prop_assert!(no_later(bounded.next(a, 0), bounded.next(b, 0)));
        let expected = for_ever.next(a, 0).filter(|turn| *turn <= until);
        prop_assert_eq!(bounded.next(a, 0), expected);
    }

    #[test]
    fn what_is_due_is_the_newest_turn(rule in rules(), considered in instants(), days in 0_i64..1000) {
        let schedule = Schedule::repeated(rule);
        let now = Timestamp::from_unix_microseconds(considered.unix_microseconds() + days * 86_400_000_000);
        match schedule.due(considered, now, 0) {
            Due::Run { turn, missed } => {
                prop_assert!(considered < turn && turn <= now);
                prop_assert!(schedule.next(turn, 0).is_none_or(|turn| turn > now));
                prop_assert!(i64::from(missed) <= days);
            }
            Due::Skip { .. } => prop_assert!(false, "it makes up for what was missed"),
            Due::Nothing => prop_assert!(schedule.next(considered, 0).is_none_or(|turn| turn > now)),
        }
    }

    #[test]
    fn it_is_written_without_loss(rule in rules(), until in instants(), run_times: u32) {
        let schedule = Schedule { until: Some(until), run_times, missed: Missed::Skip, ..Schedule::repeated(rule) };
        let packed = rmp_serde::to_vec_named(&schedule).expect("bytes");
        prop_assert_eq!(rmp_serde::from_slice::<Schedule>(&packed).expect("what was written"), schedule);
    }
}
