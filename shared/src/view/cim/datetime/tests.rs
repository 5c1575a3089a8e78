//! Each text is one value, and each value its text.

use proptest::prelude::*;

use super::*;

fn instant(text: &str) -> Timestamp {
    text.parse().expect("RFC 3339")
}

#[test]
fn an_instant_is_written_in_utc_to_the_microsecond() {
    let at = instant("2026-11-21T22:47:03.000001Z");
    assert_eq!(CimTimestamp::from(at).to_string(), "20261121224703.000001+000");
    assert_eq!(CimDateTime::from(at).to_string(), "20261121224703.000001+000");
}

#[test]
fn distances_from_utc_are_taken_off() {
    for (text, at) in [
        ("20261121224703.000001+000", "2026-11-21T22:47:03.000001Z"),
        ("20261121224703.000001-000", "2026-11-21T22:47:03.000001Z"),
        ("20261122004703.000001+120", "2026-11-21T22:47:03.000001Z"),
        ("20261121144703.000001-480", "2026-11-21T22:47:03.000001Z"),
    ] {
        let cim: CimTimestamp = text.parse().expect("a CIM instant");
        assert_eq!(Timestamp::try_from(cim), Ok(instant(at)), "{text}");
    }
}

#[test]
fn the_ends_of_time_are_held() {
    let earliest = CimTimestamp::from(Timestamp::from_unix_microseconds(i64::MIN));
    assert_eq!(earliest.to_string(), "00000101000000.000000+000");
    let latest = CimTimestamp::from(Timestamp::from_unix_microseconds(i64::MAX));
    assert_eq!(latest.to_string(), "99991230220000.999999+000");
    let back = Timestamp::try_from(latest).expect("an instant");
    assert_eq!(back.unix_microseconds(), Timestamp::from_unix_microseconds(i64::MAX).unix_microseconds());
    let late: CimTimestamp = "99991231235959.999999+000".parse().expect("a CIM instant");
    assert!(matches!(Timestamp::try_from(late), Err(InvalidDateTime::TooLate { .. })));
}

#[test]
fn intervals_count_days_and_the_rest() {
    for (text, microseconds) in [
        ("00000000000000.000000:000", 0),
        ("00000000000500.000000:000", 5 * 60 * 1_000_000),
        ("00000001120032.000000:000", (36 * 3600 + 32) * 1_000_000),
        ("99999999235959.999999:000", CimInterval::MAX.microseconds()),
    ] {
        assert_eq!(text.parse::<CimInterval>().map(CimInterval::microseconds), Ok(microseconds));
        assert_eq!(CimInterval::from_microseconds(microseconds).to_string(), text);
    }
    assert_eq!(CimInterval::from_microseconds(u64::MAX), CimInterval::MAX);
    let (early, late) = (Timestamp::from_unix_microseconds(3), Timestamp::from_unix_microseconds(5));
    assert_eq!(CimInterval::between(early, late).microseconds(), 2);
    assert_eq!(CimInterval::between(late, early), CimInterval::ZERO);
}

#[test]
fn words_in_zeroes_and_nines_are_told_from_instants() {
    assert_eq!(CimDateTime::NOT_REPORTED.to_string(), "00000000000000.000000+000");
    assert_eq!(CimDateTime::ALREADY_EXECUTING, CimDateTime::NOT_REPORTED);
    assert_eq!(CimDateTime::UNCHANGED.to_string(), "00000000000000.000000:000");
    assert!(CimDateTime::NOT_REPORTED.is_zeroes() && CimDateTime::UNCHANGED.is_zeroes());
    for nines in NINES {
        let forever: CimDateTime = nines.parse().expect("forever");
        assert!(matches!(forever, CimDateTime::Forever(_)) && !forever.is_zeroes(), "{nines}");
        assert_eq!(forever.to_string(), nines);
    }
    for text in ["00000000000000.000000+000", "99999999999999.999999+999"] {
        assert!(text.parse::<CimTimestamp>().is_err(), "{text} is no instant");
    }
    assert!("99999999999999.999999:000".parse::<CimInterval>().is_err());
}

#[test]
fn whole_fields_may_be_unused_and_are_then_missing() {
    for (text, field) in [
        ("****1225******.******+***", "year"),
        ("2026****080000.000000+000", "month"),
        ("202612**080000.000000+000", "day"),
        ("20261225**0000.000000+000", "hour"),
        ("2026122508**00.000000+000", "minute"),
        ("202612250800**.000000+000", "second"),
        ("20261225080000.******-060", "microseconds"),
        ("20261225080000.000000-***", "offset"),
    ] {
        let cim: CimTimestamp = text.parse().expect("a CIM instant");
        assert_eq!(cim.to_string(), text);
        assert_eq!(Timestamp::try_from(cim), Err(InvalidDateTime::Open { text: text.into(), field }));
    }
    // A leap day of an unused year is one of some year.
    assert!("****0229******.******+***".parse::<CimTimestamp>().is_ok());
}

#[test]
fn what_is_wrong_is_named_with_what_is_right() {
    for (text, told) in [
        ("", "\"\" has 0 characters; a CIM datetime is 25"),
        ("2026-11-21T22:47:03Z", "has 20 characters; a CIM datetime is 25"),
        ("2026112122470３.00000+000", "has 24 characters; a CIM datetime is 25"),
        ("20261121224703,000001+000", "has no point before its microseconds"),
        ("20261121224703.000001Z000", "has 'Z' after its microseconds; write + or - for an instant, : for an interval"),
        ("20261321224703.000001+000", "has \"13\" for its month; write 1 to 12"),
        ("20260021224703.000001+000", "has \"00\" for its month; write 1 to 12"),
        ("20261100224703.000001+000", "has \"00\" for its day; write 1 to 31"),
        ("20261131224703.000001+000", "has day 31 of a month of 30 days"),
        ("20260229224703.000001+000", "has day 29 of a month of 28 days"),
        ("21000229224703.000001+000", "has day 29 of a month of 28 days"),
        ("20261121244703.000001+000", "has \"24\" for its hour; write 0 to 23"),
        ("20261121226003.000001+000", "has \"60\" for its minute; write 0 to 59"),
        ("20261121224760.000001+000", "has \"60\" for its second; write 0 to 59"),
        ("2026112122470*.000001+000", "has \"0*\" for its second"),
        ("20261121224703.000***+000", "has \"000***\" for its microseconds"),
        ("20261121224703.000001+0*0", "has \"0*0\" for its offset"),
        ("+0261121224703.000001+000", "has \"+026\" for its year"),
        ("00000001240032.000000:000", "has \"24\" for its hours; write 0 to 23"),
        ("00000001******.000000:000", "has \"**\" for its hours"),
        ("00000001120032.000000:060", "has \"060\" for its end; write 0 to 0"),
    ] {
        let error = text.parse::<CimDateTime>().expect_err(text).to_string();
        assert!(error.contains(told), "{error}");
        assert!(text.len() > 30 || error.contains(text), "{error} does not name {text}");
    }
    let interval = "00000000000500.000000:000".parse::<CimTimestamp>().expect_err("an interval");
    assert!(interval.to_string().contains("is an interval; write an instant"), "{interval}");
    let timestamp = "20261121224703.000001+000".parse::<CimInterval>().expect_err("an instant");
    assert!(timestamp.to_string().contains("is an instant; write an interval"), "{timestamp}");
}

#[test]
fn serde_reads_and_writes_the_text() {
    let json = "\"20261121224703.000001+000\"";
    let value: CimDateTime = serde_json::from_str(json).expect("a CIM datetime");
    assert_eq!(serde_json::to_string(&value).expect("JSON"), json);
    assert!(serde_json::from_str::<CimDateTime>("\"today\"").is_err());
}

prop_compose! {
    /// A text that may be an instant: some days are not in their month.
    fn instant_text()(
        year in 0..=9999_u16, month in 1..=12_u8, day in 1..=31_u8, hour in 0..=23_u8, minute in 0..=59_u8,
        second in 0..=59_u8, microsecond in 0..=999_999_u32, west: bool, offset in 0..=999_u16,
        unused in proptest::collection::vec(proptest::bool::weighted(0.2), 8),
    ) -> String {
        let fields = [
            format!("{year:04}"), format!("{month:02}"), format!("{day:02}"), format!("{hour:02}"),
            format!("{minute:02}"), format!("{second:02}"), format!("{microsecond:06}"), format!("{offset:03}"),
        ];
        let mut fields = fields.into_iter().zip(unused).map(|(field, unused)| {
            if unused { "*".repeat(field.len()) } else { field }
        });
        let mut next = |count: usize| fields.by_ref().take(count).collect::<String>();
        format!("{}.{}{}{}", next(6), next(1), if west { '-' } else { '+' }, next(1))
    }
}

proptest! {
    #[test]
    fn instants_are_printed_as_they_were_written(text in instant_text()) {
        match text.parse::<CimDateTime>() {
            Ok(value) => {
                prop_assert!(matches!(value, CimDateTime::Timestamp(_)));
                prop_assert_eq!(value.to_string(), text);
            }
            Err(error) => prop_assert!(matches!(error, InvalidDateTime::Day { .. }), "{}", error),
        }
    }

    #[test]
    fn instants_survive_the_way_there_and_back(microseconds in -62_167_219_200_000_000..253_402_200_000_000_000_i64) {
        let at = Timestamp::from_unix_microseconds(microseconds);
        let text = CimDateTime::from(at).to_string();
        let back: CimTimestamp = text.parse().expect("what was printed");
        prop_assert_eq!(Timestamp::try_from(back), Ok(at));
    }

    #[test]
    fn intervals_survive_the_way_there_and_back(microseconds in 0..=CimInterval::MAX.microseconds()) {
        let interval = CimInterval::from_microseconds(microseconds);
        prop_assert_eq!(interval.to_string().parse::<CimInterval>(), Ok(interval));
        prop_assert_eq!(interval.to_string().parse::<CimDateTime>(), Ok(CimDateTime::Interval(interval)));
    }

    /// What is taken at all is printed as it was; the rest is an error and never a panic.
    #[test]
    fn any_text_is_survived(text in "[0-9*.:+-]{20,30}|\\PC{0,40}|[0-9]{14}\\.[0-9]{6}[:+-][0-9]{3}") {
        if let Ok(value) = text.parse::<CimDateTime>() {
            prop_assert_eq!(value.to_string(), text);
        }
    }
}
