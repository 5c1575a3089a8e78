//! Schedules against another calendar: the same rules, reckoned by chrono and chrono-tz and by walking from day to day.
//!
//! Nothing of what is tested is used to find what is expected. A rule is drawn in CIM's numbers. The other calendar has
//! a table of all days, made by walking from each to the next, and asks of each day whether the rule means it, looking
//! around for the day that a weekday was sought from; the product goes the other way, from that day to the weekday.
//! Where a clock leaves a time out, it tries the seconds that follow, until the clock shows one; the product asks the
//! zone for the change.
//!
//! `STERNA_SCHEDULE_SEED` draws other rules. The seed is printed.

use std::time::Duration;

use chrono::{DateTime, Datelike, LocalResult, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;
use sterna_shared::job::{DayOfWeek, Month, Rule, Schedule, Zone};
use sterna_shared::time::Timestamp;

const RULES: u64 = 10_000;
/// How many each mistake has to be noticed in.
const FEWER_RULES: u64 = 1000;
/// The seed where none is given.
const SEED: u64 = 20_261_127;
/// How many turns of each rule are compared.
const TURNS: usize = 6;
/// Six turns of the rarest rule, 29 February, take 24 years.
const WALK_YEARS: usize = 30;
/// Rules are asked about from here.
const FIRST_YEAR: i32 = 1990;
/// To here; chrono-tz has changes of the clock up to 2100.
const LAST_YEAR: i32 = 2068;

/// Zones that both databases know the same of, though one is a year older: Morocco and Cuba have since changed their
/// minds, and so Casablanca and Havana are not among them. Clocks change by an hour, by two and by half of one, at
/// midnight, a minute after it and in the evening before, over the date line, in southern summers, backwards in winter
/// (Dublin), and never.
const ZONES: [&str; 18] = [
    "Africa/Cairo",
    "America/Asuncion",
    "America/New_York",
    "America/Nuuk",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Australia/Adelaide",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/Dublin",
    "Europe/London",
    "Pacific/Apia",
    "Pacific/Chatham",
];

/// A rule in CIM's numbers, and from when on it is asked about.
#[derive(Debug, Clone)]
struct Drawn {
    month: Option<u8>,
    day: Option<i8>,
    day_of_week: i8,
    start_us: u64,
    zone: Option<&'static str>,
    after_us: i64,
}

impl Drawn {
    fn rule(&self) -> Rule {
        Rule {
            month: self.month.map(|number| Month::from_number(number).expect("a month of CIM's")),
            day: self.day,
            day_of_week: DayOfWeek::from_number(self.day_of_week).expect("a weekday of CIM's"),
            start: Duration::from_micros(self.start_us),
            zone: self.zone.map_or(Zone::Utc, |name| Zone::Local(name.to_owned())),
        }
    }

    fn clock(&self) -> Tz {
        self.zone.unwrap_or("UTC").parse().expect("a zone of chrono-tz")
    }
}

/// How the clock came to show a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Once,
    LeftOut,
    Twice,
}

/// One day of the table.
struct Day {
    date: NaiveDate,
    month: u8,
    /// Its number in the month, from 1 up, and from the end, from -1 down.
    numbers: [i8; 2],
    /// Its weekday, from Sunday, 1.
    weekday: i8,
}

struct OtherCalendar {
    days: Vec<Day>,
}

impl OtherCalendar {
    fn new() -> Self {
        let begin = NaiveDate::from_ymd_opt(FIRST_YEAR - 1, 12, 1).expect("a date");
        let dates: Vec<NaiveDate> = begin.iter_days().take_while(|date| date.year() <= 2101).collect();
        let small = |number: u32| i8::try_from(number).expect("it is at most 31");
        let mut days: Vec<Day> = Vec::with_capacity(dates.len());
        for date in &dates {
            days.push(Day {
                date: *date,
                month: u8::try_from(date.month0()).expect("it is at most 11"),
                numbers: [small(date.day()), 0],
                weekday: small(date.weekday().number_from_sunday()),
            });
        }
        // Backwards, one less a day, and anew where the month is another.
        let mut from_end = 0;
        for index in (0..days.len()).rev() {
            let is_last = days.get(index + 1).is_none_or(|next| next.month != days[index].month);
            from_end = if is_last { -1 } else { from_end - 1 };
            days[index].numbers[1] = from_end;
        }
        Self { days }
    }

    /// Whether a rule means a day.
    fn means(&self, drawn: &Drawn, index: usize) -> bool {
        let day = &self.days[index];
        if drawn.day_of_week != 0 && drawn.day_of_week.abs() != day.weekday {
            return false;
        }
        let in_month = |day: &Day| drawn.month.is_none_or(|month| month == day.month);
        let Some(number) = drawn.day else { return in_month(day) };
        // The seven days from which a search would have come upon this one first.
        let sought_from = match drawn.day_of_week {
            0 => index..=index,
            1.. => index - 6..=index,
            _ => index..=index + 6,
        };
        self.days[sought_from].iter().any(|day| in_month(day) && day.numbers.contains(&number))
    }

    /// The first turns of a rule, in microseconds since 1970 began.
    fn turns(&self, drawn: &Drawn) -> Vec<(i64, Shown)> {
        let clock = drawn.clock();
        let after = utc(drawn.after_us).date_naive();
        let today = usize::try_from((after - self.days[0].date).num_days()).expect("the table begins earlier");
        let mut turns: Vec<(i64, Shown)> = Vec::new();
        for index in today - 2..today + WALK_YEARS * 366 {
            if turns.len() == TURNS {
                break;
            }
            if self.means(drawn, index) {
                let midnight = self.days[index].date.and_hms_opt(0, 0, 0).expect("midnight");
                let start = TimeDelta::microseconds(drawn.start_us.cast_signed());
                let turn = first_shown(clock, midnight + start);
                let is_later = turns.last().map_or(drawn.after_us, |last| last.0) < turn.0;
                if is_later {
                    turns.push(turn);
                }
            }
        }
        turns
    }
}

fn first_shown(clock: Tz, local: NaiveDateTime) -> (i64, Shown) {
    match clock.from_local_datetime(&local) {
        LocalResult::Single(turn) => (turn.timestamp_micros(), Shown::Once),
        LocalResult::Ambiguous(a, b) => (a.timestamp_micros().min(b.timestamp_micros()), Shown::Twice),
        LocalResult::None => {
            let second = local.with_nanosecond(0).expect("a whole second");
            let mut later = (1..=2 * 86_400).map(|seconds| second + TimeDelta::seconds(seconds));
            let turn = later.find_map(|local| clock.from_local_datetime(&local).earliest()).expect("clocks go on");
            (turn.timestamp_micros(), Shown::LeftOut)
        }
    }
}

fn utc(microseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(microseconds).expect("a date within the table")
}

/// Draws numbers from a seed: a counter, each of whose steps is stirred.
struct Lot(u64);

impl Lot {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        const STIR: u64 = 0xd6e8_feb8_6659_fd93;
        let high = (u128::from(self.0) * u128::from(STIR)) >> 64;
        self.0.wrapping_mul(STIR) ^ u64::try_from(high).expect("the upper half")
    }

    /// One of them all, from the first to the last.
    fn among(&mut self, first: i64, last: i64) -> i64 {
        let many = u64::try_from(last - first + 1).expect("the last is no earlier than the first");
        first + (self.number() % many).cast_signed()
    }

    fn small(&mut self, first: i64, last: i64) -> i8 {
        i8::try_from(self.among(first, last)).expect("it is small")
    }

    fn one_in(&mut self, many: i64) -> bool {
        self.among(1, many) == 1
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.among(0, all.len() as i64 - 1)).expect("an index")]
    }
}

/// What rules are drawn from: the instants at which clocks were changed, to the day, and else any.
struct Hat {
    lot: Lot,
    changes: Vec<(&'static str, Vec<i64>)>,
}

const DAY_US: i64 = 86_400_000_000;

impl Hat {
    fn new(seed: u64, calendar: &OtherCalendar) -> Self {
        let noons: Vec<NaiveDateTime> = calendar.days.iter().filter_map(|day| day.date.and_hms_opt(12, 0, 0)).collect();
        let changes_of = |name: &'static str| {
            let clock: Tz = name.parse().expect("a zone of chrono-tz");
            let offset = |noon: &NaiveDateTime| clock.offset_from_utc_datetime(noon).fix();
            let pairs = noons.windows(2).filter(|pair| (FIRST_YEAR..=LAST_YEAR).contains(&pair[0].year()));
            let changed = pairs.filter(|pair| offset(&pair[0]) != offset(&pair[1]));
            (name, changed.map(|pair| pair[0].and_utc().timestamp_micros()).collect())
        };
        Self { lot: Lot(seed), changes: ZONES.into_iter().map(changes_of).collect() }
    }

    fn draw(&mut self) -> Drawn {
        let lot = &mut self.lot;
        let zone =
            (!lot.one_in(10)).then(|| lot.among(0, ZONES.len() as i64 - 1)).and_then(|at| usize::try_from(at).ok());
        let near = zone.map(|at| self.changes[at].1.as_slice()).filter(|changes| !changes.is_empty() && !lot.one_in(4));
        let begin =
            |year| NaiveDate::from_ymd_opt(year, 1, 1).and_then(|date| date.and_hms_opt(0, 0, 0)).expect("a date");
        let [first, last] = [FIRST_YEAR, LAST_YEAR].map(|year| begin(year).and_utc().timestamp_micros());
        let after_us = match near {
            Some(changes) => (lot.of(changes) + lot.among(-5 * DAY_US, DAY_US)).max(first),
            None => lot.among(first, last),
        };
        // Near a change, the rules that run daily and at night tell most.
        let is_daily = near.is_some() && lot.one_in(2);
        let day = (!is_daily && !lot.one_in(4)).then(|| (lot.small(1, 31), lot.one_in(2)));
        let day = day.map(|(day, from_end)| if from_end { -day } else { day });
        let least = if day.is_some() { -7 } else { 0 };
        Drawn {
            month: (!is_daily && lot.one_in(2)).then(|| lot.among(0, 11)).and_then(|month| u8::try_from(month).ok()),
            day,
            day_of_week: if is_daily || lot.one_in(3) { 0 } else { lot.small(least, 7) },
            start_us: match lot.among(0, 3) {
                0 => lot.among(0, DAY_US - 1),
                1 => lot.among(0, 4 * 3_600_000_000),
                _ => lot.among(0, 4 * 4) * 900_000_000,
            }
            .cast_unsigned(),
            zone: zone.map(|at| ZONES[at]),
            after_us,
        }
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
struct Findings {
    turns: usize,
    left_out: usize,
    twice: usize,
    never: usize,
    differences: Vec<String>,
}

type Reckoning = dyn Fn(&Drawn, &Schedule, Timestamp) -> Option<Timestamp>;

/// Draws rules, and holds what `next` says of each against the other calendar.
fn compare(seed: u64, rules: u64, next: &Reckoning) -> Findings {
    let calendar = OtherCalendar::new();
    let mut hat = Hat::new(seed, &calendar);
    let mut findings = Findings::default();
    for _ in 0..rules {
        let drawn = hat.draw();
        let expected = calendar.turns(&drawn);
        let schedule = Schedule::repeated(drawn.rule());
        let first = next(&drawn, &schedule, Timestamp::from_unix_microseconds(drawn.after_us));
        let found = std::iter::successors(first, |turn| next(&drawn, &schedule, *turn));
        let found: Vec<i64> = found.take(TURNS).map(Timestamp::unix_microseconds).collect();

        let many = |how| expected.iter().filter(|(_, shown)| *shown == how).count();
        findings.turns += expected.len();
        findings.left_out += many(Shown::LeftOut);
        findings.twice += many(Shown::Twice);
        findings.never += usize::from(expected.is_empty());
        if !found.iter().eq(expected.iter().map(|(turn, _)| turn)) {
            let expected: Vec<_> = expected.iter().map(|(turn, shown)| (utc(*turn).to_string(), shown)).collect();
            let found: Vec<_> = found.iter().map(|turn| utc(*turn).to_string()).collect();
            findings.differences.push(format!("{drawn:?}\n  expected {expected:?}\n  found    {found:?}"));
        }
    }
    findings
}

/// If this fails after an update, it is the world that changed: take the zone out of the list.
#[test]
fn both_databases_know_the_same_of_these_zones() {
    let calendar = OtherCalendar::new();
    let zones = jiff::tz::TimeZoneDatabase::bundled();
    for name in ZONES {
        let (ours, other) = (zones.get(name).expect("a zone"), name.parse::<Tz>().expect("a zone of chrono-tz"));
        for day in calendar.days.iter().filter(|day| day.date.year() < 2100) {
            let noon = day.date.and_hms_opt(12, 0, 0).expect("noon");
            let instant = jiff::Timestamp::from_second(noon.and_utc().timestamp()).expect("an instant");
            let offset = other.offset_from_utc_datetime(&noon).fix().local_minus_utc();
            assert_eq!(ours.to_offset(instant).seconds(), offset, "{name} on {}", day.date);
        }
    }
}

fn as_it_is(_: &Drawn, schedule: &Schedule, after: Timestamp) -> Option<Timestamp> {
    schedule.next(after, 0)
}

fn seed() -> u64 {
    let given = std::env::var("STERNA_SCHEDULE_SEED").ok();
    given.map_or(SEED, |text| text.parse().expect("STERNA_SCHEDULE_SEED is a whole number"))
}

#[test]
fn another_calendar_finds_the_same_turns() {
    let seed = seed();
    println!("seed {seed} (STERNA_SCHEDULE_SEED)");
    let findings = compare(seed, RULES, &as_it_is);
    let Findings { turns, left_out, twice, never, differences } = &findings;
    println!("{RULES} rules, {turns} occurrences, {} differences", differences.len());
    println!(
        "  of the occurrences, {left_out} at a time left out, {twice} at one that comes twice; {never} rules never fire"
    );
    assert!(differences.is_empty(), "{}", differences[..differences.len().min(5)].join("\n"));
    assert!(*left_out > 150 && *twice > 150 && *never > 0, "the rules drawn say little: {findings:?}");
}

/// What the clock of a rule shows at an instant.
fn shown(drawn: &Drawn, at: Timestamp) -> NaiveDateTime {
    utc(at.unix_microseconds()).with_timezone(&drawn.clock()).naive_local()
}

fn later(at: Timestamp, microseconds: i64) -> Timestamp {
    Timestamp::from_unix_microseconds(at.unix_microseconds() + microseconds)
}

/// Reckons another rule than the one that was drawn.
fn mistaken(change: impl Fn(&mut Rule) + 'static) -> Box<Reckoning> {
    Box::new(move |_, schedule, after| {
        let mut schedule = schedule.clone();
        schedule.rule.as_mut().map(&change);
        schedule.next(after, 0)
    })
}

#[test]
fn the_other_calendar_notices_what_is_wrong() {
    let fold: Box<Reckoning> = Box::new(|drawn, schedule, after| {
        let turn = schedule.next(after, 0)?;
        let again = later(turn, 3_600_000_000);
        Some(if shown(drawn, again) == shown(drawn, turn) { again } else { turn })
    });
    let gap: Box<Reckoning> = Box::new(|drawn, schedule, after| {
        let turn = schedule.next(after, 0)?;
        let since_midnight = shown(drawn, turn).num_seconds_from_midnight();
        Some(if u64::from(since_midnight) == drawn.start_us / 1_000_000 { turn } else { later(turn, 60_000_000) })
    });
    let cases = [
        ("a start a microsecond late", mistaken(|rule| rule.start += Duration::from_micros(1))),
        ("a local time read as UTC", mistaken(|rule| rule.zone = Zone::Utc)),
        ("a clock of another place", mistaken(|rule| rule.zone = Zone::Local("Europe/Paris".into()))),
        (
            "months from 1",
            mistaken(|rule| rule.month = rule.month.and_then(|month| Month::from_number(month.number() + 1))),
        ),
        ("the 31st as the 30th", mistaken(|rule| rule.day = rule.day.map(|day| day.min(30)))),
        (
            "days from the end one off",
            mistaken(|rule| rule.day = rule.day.map(|day| if day < -1 { day + 1 } else { day })),
        ),
        (
            "Sundays sought backwards",
            mistaken(|rule| {
                if rule.day_of_week.number() == 1 && rule.day.is_some() {
                    rule.day_of_week = DayOfWeek::from_number(-1).expect("a Sunday");
                }
            }),
        ),
        ("the second of two equal times", fold),
        ("a time left out a minute late", gap),
        ("a turn left out", Box::new(|_, schedule, after| schedule.next(schedule.next(after, 0)?, 0))),
    ];
    for (what, reckoning) in cases {
        let findings = compare(SEED, FEWER_RULES, &*reckoning);
        println!("{what}: {} of {FEWER_RULES} rules differ", findings.differences.len());
        assert!(!findings.differences.is_empty(), "not noticed: {what}");
    }
    assert_eq!(compare(SEED, FEWER_RULES, &as_it_is).differences, Vec::<String>::new());
}
