//! docs/clone-job.md is held to the code, and both to what Google has published where that lies beside the workspace.

use std::collections::BTreeSet;
use std::path::Path;

use sterna_shared::job::{FailureCode, JobState};
use sterna_shared::replica::Standing;
use sterna_shared::view::google::{
    BootOption, CloneJob, CloneJobState, CloneStage, CloneStep, ComputeEngineBootOption, ComputeEngineTargetDefaults,
    ComputeEngineTargetDetails, CutoverForecast, CutoverJob, CutoverJobState, CutoverStep, CycleStep, ErrorInfo,
    Expiration, Group, HelpLink, LocalizedMessage, MigratingVm, MigratingVmState, MigrationError, MigrationErrorCode,
    MigrationTargetType, MigrationWarning, MigrationWarningCode, NetworkInterface, Operation, OperationMetadata,
    ReplicatingStep, ReplicationCycle, ReplicationCycleState, ReplicationSync, RpcCode, RpcStatus, SchedulePolicy,
    TargetVmDetails,
};

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    std::fs::read_to_string(folder().join("../docs/clone-job.md")).expect("docs/clone-job.md")
}

/// The cells of each row of the page's tables.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let table = page.lines().filter_map(|line| line.strip_prefix("| ")?.trim_end().strip_suffix('|'));
    let told = table.filter(|line| !line.starts_with("---"));
    told.map(|line| line.split(" | ").map(str::trim).collect()).collect()
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
    row.get(1).is_some_and(|told| told.starts_with("not built yet: ") || told.starts_with("no counterpart: "))
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

#[test]
fn every_test_that_is_named_is_there() {
    let mut code = String::new();
    for place in ["tests/google", "src/view/google", "../coordinator/src/cli"] {
        let entries = std::fs::read_dir(folder().join(place)).expect("a folder");
        let files = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
        code.extend(files.map(|file| std::fs::read_to_string(file).expect("a text")));
    }
    let page = page();
    let mut named = 0;
    for row in rows(&page) {
        let last = row.last().copied().unwrap_or_default();
        for test in last.split('`').filter(|word| word.contains('_') && word.bytes().all(is_of_a_test)) {
            assert!(code.contains(&format!("fn {test}()")), "there is no test {test}, which docs/clone-job.md names");
            named += 1;
        }
    }
    assert!(named > 60, "{named} tests are named");
}

fn is_of_a_test(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

/// Google's description of a clone job, where it lies beside the workspace.
fn published() -> Option<String> {
    let seeds = folder().join("../../shared/seeds");
    let texts = std::fs::read_dir(seeds).ok()?.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.into_iter().find(|text| text.starts_with("Resource: CloneJob"))
}

/// Every field, value, step and method that is published has its row. Elsewhere there is nothing to compare with.
#[test]
fn all_that_is_published_has_its_row() {
    let Some(text) = published() else { return };
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
