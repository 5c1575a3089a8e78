//! docs/clone-job.md is held to the code, and both to what Google has published where that lies beside the workspace. What it names
//! as a test is one.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sterna_shared::job::{FailureCode, JobKind, JobState, Notice};
use sterna_shared::replica::{CutoverStanding, Standing};
use sterna_shared::view::google::{
    BootOption, CloneJob, CloneJobState, CloneStage, CloneStep, ComputeEngineBootOption, ComputeEngineTargetDefaults,
    ComputeEngineTargetDetails, CutoverForecast, CutoverJob, CutoverJobState, CutoverStep, CycleStep, ErrorInfo,
    Expiration, Group, GroupName, HelpLink, LocalizedMessage, MigratingVm, MigratingVmState, MigrationError,
    MigrationErrorCode, MigrationTargetType, MigrationWarning, MigrationWarningCode, NetworkInterface, Operation,
    OperationMetadata, ReplicatingStep, ReplicationCycle, ReplicationCycleState, ReplicationSync, RpcCode, RpcStatus,
    SchedulePolicy, TargetVmDetails,
};
use sterna_shared::vm::Firmware;

use super::jobs;

/// The methods there are of each resource, also of those that have no counterpart here.
const METHODS: [(&str, &[&str]); 6] = [
    ("cloneJobs", &["create", "get", "list", "cancel"]),
    ("cutoverJobs", &["create", "get", "list", "cancel"]),
    (
        "migratingVms",
        &[
            "create",
            "get",
            "list",
            "patch",
            "delete",
            "startMigration",
            "pauseMigration",
            "resumeMigration",
            "finalizeMigration",
            "extendMigration",
        ],
    ),
    ("replicationCycles", &["get", "list"]),
    ("groups", &["create", "get", "list", "patch", "delete", "addGroupMigration", "removeGroupMigration"]),
    ("operations", &["get", "list", "delete", "cancel"]),
];
/// Where the tests are that the page names.
const TESTS: [&str; 11] = [
    "tests/google",
    "src/view/google",
    "../coordinator/src/cli",
    "../coordinator/src/cli/replicate",
    "../coordinator/src/google",
    "../coordinator/src/planner/tests",
    "../coordinator/src/service",
    "../coordinator/src/service/tests",
    "../coordinator/tests",
    "../coordinator/tests/cli",
    "../tests/tests/scenarios",
];

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn page() -> String {
    std::fs::read_to_string(folder().join("../docs/clone-job.md")).expect("docs/clone-job.md")
}

/// The cells of a line, where that is a table's.
fn cells(line: &str) -> Option<Vec<&str>> {
    let cells = line.strip_prefix("| ")?.trim_end().strip_suffix('|')?;
    Some(cells.split('|').map(str::trim).collect())
}

/// The page's tables, each with the row that says what its columns are.
fn tables(page: &str) -> Vec<Vec<Vec<&str>>> {
    let mut tables = Vec::new();
    let mut lines = page.lines().map(cells).peekable();
    while lines.peek().is_some() {
        let table = std::iter::from_fn(|| lines.next_if(Option::is_some).flatten());
        let table: Vec<_> = table.filter(|row| !row[0].starts_with("---")).collect();
        if table.is_empty() {
            lines.next();
        } else {
            tables.push(table);
        }
    }
    tables
}

/// The cells of each row of the page's tables.
pub(crate) fn rows(page: &str) -> Vec<Vec<&str>> {
    tables(page).concat()
}

/// The resources, with the names of their fields.
fn resources() -> [(&'static str, &'static [&'static str]); 25] {
    [
        ("CloneJob", CloneJob::FIELDS),
        ("CloneStep", CloneStep::FIELDS),
        ("CutoverJob", CutoverJob::FIELDS),
        ("CutoverStep", CutoverStep::FIELDS),
        ("CutoverForecast", CutoverForecast::FIELDS),
        ("ComputeEngineTargetDetails", ComputeEngineTargetDetails::FIELDS),
        ("ComputeEngineTargetDefaults", ComputeEngineTargetDefaults::FIELDS),
        ("TargetVMDetails", TargetVmDetails::FIELDS),
        ("NetworkInterface", NetworkInterface::FIELDS),
        ("ReplicationCycle", ReplicationCycle::FIELDS),
        ("CycleStep", CycleStep::FIELDS),
        ("ReplicatingStep", ReplicatingStep::FIELDS),
        ("MigratingVm", MigratingVm::FIELDS),
        ("Expiration", Expiration::FIELDS),
        ("SchedulePolicy", SchedulePolicy::FIELDS),
        ("ReplicationSync", ReplicationSync::FIELDS),
        ("Group", Group::FIELDS),
        ("Operation", Operation::FIELDS),
        ("OperationMetadata", OperationMetadata::FIELDS),
        ("Status", RpcStatus::FIELDS),
        ("MigrationError", MigrationError::FIELDS),
        ("MigrationWarning", MigrationWarning::FIELDS),
        ("ErrorInfo", ErrorInfo::FIELDS),
        ("LocalizedMessage", LocalizedMessage::FIELDS),
        ("Link", HelpLink::FIELDS),
    ]
}

/// Whether a row says plainly that what it is about is not there.
fn is_absent(row: &[&str]) -> bool {
    row.iter().skip(1).any(|told| told.starts_with("not built yet: ") || told.starts_with("no counterpart: "))
}

#[test]
fn every_field_has_its_row_and_no_row_makes_one_up() {
    let page = page();
    let rows = rows(&page);
    let mut missing = Vec::new();
    for (resource, fields) in resources() {
        let named = |field: &str| format!("`{resource}.{field}`");
        for field in fields {
            match rows.iter().find(|row| row[0] == named(field)) {
                Some(row) => assert!(row.len() == 3 && !row[1].is_empty() && !is_absent(row), "{row:?}"),
                None => missing.push(named(field)),
            }
        }
        let prefix = format!("`{resource}.");
        for row in rows.iter().filter(|row| row[0].starts_with(&prefix)) {
            let field = row[0][prefix.len()..].trim_end_matches('`').trim_end_matches("[]");
            assert!(
                fields.contains(&field) || is_absent(row),
                "the code has no {}, and its row does not say so",
                row[0]
            );
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "docs/clone-job.md has no row of these");
}

#[test]
fn every_value_has_its_row_with_its_number() {
    let page = page();
    let rows = rows(&page);
    let mut values: Vec<(&str, i32, &str)> = Vec::new();
    macro_rules! all {
        ($($list:ident),*) => {
            $(values.extend($list::ALL.iter().map(|value| ($list::PROTO, value.number(), value.name())));)*
        };
    }
    all!(
        CloneJobState,
        CutoverJobState,
        ReplicationCycleState,
        MigratingVmState,
        MigrationTargetType,
        MigrationErrorCode,
        MigrationWarningCode,
        ComputeEngineBootOption,
        BootOption
    );
    let told: BTreeSet<(&str, &str, &str)> =
        rows.iter().filter(|row| row.len() == 5).map(|row| (row[0], row[1], row[2])).collect();
    for (list, number, name) in &values {
        let (number, name) = (number.to_string(), format!("`{name}`"));
        assert!(told.contains(&(*list, number.as_str(), name.as_str())), "no row of {list} {number} {name}");
    }
    let lists: BTreeSet<&str> = values.iter().map(|(list, ..)| *list).collect();
    let of_ours = told.iter().filter(|(list, ..)| lists.contains(list)).count();
    assert_eq!(of_ours, values.len(), "a row of a value that the code has not");
}

#[test]
fn values_are_their_names_in_json() {
    for state in MigratingVmState::ALL {
        assert_eq!(serde_json::to_value(state).expect("JSON"), state.name());
    }
    for code in MigrationErrorCode::ALL {
        assert_eq!(serde_json::to_value(code).expect("JSON"), code.name());
    }
    let numbers: Vec<i32> = MigratingVmState::ALL.iter().map(|state| state.number()).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 17]);
    let numbers: Vec<i32> = CloneJobState::ALL.iter().map(|state| state.number()).collect();
    assert_eq!(numbers, (0..=7).collect::<Vec<_>>());
}

/// A job's states as the tables have them: of one that unwinds there are two.
fn standings() -> impl Iterator<Item = (String, JobState, bool)> {
    JobState::ALL.into_iter().flat_map(|state| {
        let both = [(format!("{state}, cancelled"), state, false), (format!("{state}, failed"), state, true)];
        if state == JobState::ShuttingDown { both.to_vec() } else { vec![(state.to_string(), state, false)] }
    })
}

#[test]
fn the_documented_states_are_these() {
    let page = page();
    let rows = rows(&page);
    let row = |table: &str, name: &str| {
        let wanted = format!("{table}: {name}");
        rows.iter().find(|row| row[0] == wanted).unwrap_or_else(|| panic!("no row {wanted:?}"))[1..].to_vec()
    };
    for (name, state, fails) in standings() {
        let clone = CloneStage::ALL.map(|stage| CloneJobState::of(state, stage, fails).name());
        assert_eq!(row("clone", &name), clone, "clone: {name}");
        let cutover = [false, true].map(|begun| CutoverJobState::of(state, begun, fails).name());
        assert_eq!(row("cutover", &name), cutover, "cutover: {name}");
        assert_eq!(row("cycle", &name), [ReplicationCycleState::of(state).name()], "cycle: {name}");
        // Nothing is there, the first cycle, a snapshot, a cycle beside it, after a cycle that failed, expired.
        let vm = [
            (false, false, false, false),
            (true, false, false, false),
            (false, true, false, false),
            (true, true, false, false),
            (false, true, true, false),
            (false, true, false, true),
        ]
        .map(|(under_way, synced, failed, expired)| {
            let (cutover, finalizing) = (None, false);
            MigratingVmState::of(Standing { state, fails, under_way, synced, failed, cutover, finalizing, expired })
                .name()
        });
        assert_eq!(row("replication", &name), vm, "replication: {name}");
    }
}

#[test]
fn every_failure_has_its_number() {
    let page = page();
    let rows = rows(&page);
    for code in FailureCode::ALL {
        let number = RpcCode::from(*code).number().to_string();
        let told = [format!("`{}`", code.entry().name), number];
        assert!(rows.iter().any(|row| row.len() >= 2 && row[..2] == told), "no row {told:?}");
    }
}

/// Every value is among those that are told, in all that can be, or its row says that it never is.
#[test]
fn what_the_page_says_is_never_told_is_never_told() {
    let mut told = BTreeSet::new();
    macro_rules! told {
        ($list:ident: $value:expr) => {{
            let value: $list = $value;
            told.insert(($list::PROTO, value.number()));
        }};
    }
    for (_, state, fails) in standings() {
        for stage in CloneStage::ALL {
            told!(CloneJobState: CloneJobState::of(state, stage, fails));
        }
        for begun in [false, true] {
            told!(CutoverJobState: CutoverJobState::of(state, begun, fails));
        }
        told!(ReplicationCycleState: ReplicationCycleState::of(state));
        use CutoverStanding as C;
        for cutover in [None, Some(C::UnderWay), Some(C::FinalSync), Some(C::Over)] {
            for bits in 0..32_u8 {
                let [under_way, synced, failed, finalizing, expired] = [1, 2, 4, 8, 16].map(|bit| bits & bit != 0);
                let standing = Standing { state, fails, under_way, synced, failed, cutover, finalizing, expired };
                told!(MigratingVmState: MigratingVmState::of(standing));
            }
        }
    }
    for kind in [JobKind::Clone, JobKind::Cutover, JobKind::Replicate, JobKind::Rehearse, JobKind::Move] {
        let mut plan = jobs::clone_plan(1);
        plan.kind = kind;
        for code in FailureCode::ALL {
            for host in [None, Some("alpha"), Some("bravo"), Some("charlie")] {
                told!(MigrationErrorCode: MigrationErrorCode::of(&plan, &jobs::failure(*code, host)));
            }
        }
    }
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        told!(ComputeEngineBootOption: firmware.into());
        told!(BootOption: firmware.into());
    }
    let notice = Notice { at: jobs::at(1), host: None, text: "no room".to_owned() };
    told!(MigrationWarningCode: MigrationWarning::from(&notice).code);
    let group = GroupName { location: "bravo".parse().expect("a name"), group: "night".to_owned() };
    told!(MigrationTargetType: Group::from(group).migration_target_type);

    let page = page();
    let mut wrong = Vec::new();
    for row in rows(&page).into_iter().filter(|row| row.len() == 5) {
        let Ok(number) = row[1].parse::<i32>() else { continue };
        if told.contains(&(row[0], number)) == row[3].starts_with("never: ") {
            wrong.push(row);
        }
    }
    assert!(wrong.is_empty(), "told and said to be never told, or neither: {wrong:?}");
}

#[test]
fn every_method_has_its_row_and_its_command_and_no_row_makes_one_up() {
    let page = page();
    let tables = tables(&page);
    let methods = tables.iter().find(|table| table[0][0] == "method").expect("a table of methods");
    assert_eq!(methods[0], ["method", "Google's words", "among Sterna's jobs", "command", "test"]);
    let mut told = Vec::new();
    for row in &methods[1..] {
        assert!(row.len() == 5 && !row[2].is_empty() && row[3].is_empty() == is_absent(row), "{row:?}");
        told.extend(row[0].split('`').filter(|name| name.contains('.')).map(str::to_owned));
    }
    let there = |(resource, names): (&str, &[&str])| names.iter().map(|name| format!("{resource}.{name}")).collect();
    let mut wanted: Vec<String> = METHODS.into_iter().flat_map(|of| -> Vec<String> { there(of) }).collect();
    told.sort();
    wanted.sort();
    assert_eq!(told, wanted);
}

/// The names of all tests in those folders.
fn tests_there_are() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for place in TESTS {
        let entries = std::fs::read_dir(folder().join(place)).expect("a folder");
        for path in entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()) {
            let code = std::fs::read_to_string(path).expect("a text");
            let mut is_test = false;
            for line in code.lines().map(str::trim_start) {
                match line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
                    Some(rest) if is_test => tests.extend(rest.split('(').next().map(str::to_owned)),
                    _ => {}
                }
                // What else is said of a test stands between this and its name.
                is_test = line.starts_with("#[test]")
                    || line.starts_with("#[tokio::test")
                    || (is_test && line.starts_with("#["));
            }
        }
    }
    tests
}

/// The tests that a cell or a sentence names: what is written as code and has the words of one.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let is_of_one = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    text.split('`').skip(1).step_by(2).filter(move |word| word.contains('_') && word.bytes().all(is_of_one))
}

#[test]
fn every_row_names_a_test_that_is_there() {
    let there = tests_there_are();
    let page = page();
    let mut without = Vec::new();
    let mut count = 0;
    for table in tables(&page).iter().filter(|table| table[0].last() == Some(&"test")) {
        let columns = table[0].len();
        let mut before = false;
        for row in &table[1..] {
            assert_eq!(row.len(), columns, "{row:?}");
            let last = row[columns - 1];
            let tests: Vec<&str> = named(last).collect();
            for test in &tests {
                assert!(there.contains(*test), "there is no test {test}, which docs/clone-job.md names");
            }
            count += tests.len();
            let has = !tests.is_empty() || (before && last.starts_with("likewise"));
            // Of what is not there nothing can be shown.
            if !has && !is_absent(row) {
                without.push(row[0]);
            }
            before |= has;
        }
    }
    assert!(without.is_empty(), "docs/clone-job.md names no test of {without:?}");
    assert!(count > 150, "{count} tests are named");
}

/// Sentences between the tables name tests too: what is written as code there and has four words or more is one.
#[test]
fn every_test_that_is_told_of_is_there() {
    let there = tests_there_are();
    let page = page();
    let sentences = page.lines().filter(|line| cells(line).is_none()).collect::<Vec<_>>().join(" ");
    let told: Vec<&str> = named(&sentences).filter(|word| word.matches('_').count() > 2).collect();
    assert!(told.len() > 12, "{told:?}");
    let missing: Vec<&&str> = told.iter().filter(|test| !there.contains(**test)).collect();
    assert!(missing.is_empty(), "there are no tests {missing:?}, which docs/clone-job.md names");
}

/// The text that has these words, in a folder beside the workspace. Where there is none, that is said, since a test is then less
/// than its name: past the test runner, which keeps to itself what a test prints that passes.
pub(crate) fn published(place: &str, words: &str) -> Option<String> {
    let folder: PathBuf = folder().join("../../shared").join(place);
    let texts = std::fs::read_dir(&folder).into_iter().flatten();
    let mut texts = texts.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let found = texts.find(|text| text.contains(words));
    if found.is_none() {
        let why = format!("no text with {words:?} lies beside the workspace, in ../shared/{place}");
        let _ = writeln!(std::io::stderr(), "NOT RUN: docs/clone-job.md is not held to what is published: {why}");
    }
    found
}

/// Every field, value, step and method that is published has its row. Elsewhere there is nothing to compare with.
#[test]
fn all_that_is_published_has_its_row() {
    let Some(text) = published("seeds", "Resource: CloneJob") else { return };
    let page = page();
    let rows = rows(&page);
    let (mut part, mut wanted) = ("CloneJob", Vec::new());
    for line in text.lines() {
        let name = line.strip_suffix(" |").unwrap_or(line);
        match name {
            "State" | "CloneStep" | "Methods" => part = name,
            _ if name == line || name.is_empty() => {}
            _ if part == "Methods" => wanted.push(name.to_owned()),
            _ if name.contains(|byte: char| byte.is_whitespace() || byte == '-') => {}
            _ if part == "State" => wanted.push(format!("CloneJob.State `{name}`")),
            _ => wanted.push(format!("`{part}.{}`", name.trim_end_matches("[]"))),
        }
    }
    assert_eq!(wanted.len(), 11 + 8 + 5 + 4, "{wanted:?}");
    let has = |name: &String| {
        rows.iter().any(|row| {
            row[0] == name || row.get(1) == Some(&name.as_str()) || {
                row.len() == 5 && format!("{} {}", row[0], row[2]) == *name
            }
        })
    };
    let missing: Vec<&String> = wanted.iter().filter(|name| !has(name)).collect();
    assert!(missing.is_empty(), "docs/clone-job.md has no row of {missing:?}");
}
