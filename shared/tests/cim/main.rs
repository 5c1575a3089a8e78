//! The CIM face of a job: what it says of six moves and of a job of each kind on a replica, letter by letter; that JSON, XML, the class's published description and
//! docs/job-model.md name the same properties; and that whatever a job says stays text. Its error records are in `errors`.
//!
//! They are in `snapshots/`. After a change that is meant, `INSTA_UPDATE=always` writes them anew.

mod errors;
mod jobs;
mod reader;
mod settings;

use std::path::Path;

use serde_json::Value;
use sterna_shared::job::{
    EventBody, JobKind, JobState, JobStatus, MoveMode, MoveRequest, Plan, Policy, Progress, Recovery, StepKind,
};
use sterna_shared::view::cim::{
    CAPTION_LENGTH_MAX, CimDateTime, Contact, Contacts, EditFault, ErrorCode, MigrationJob, OperationalStatus,
    READ_ONLY, READ_WRITE, edit,
};

use jobs::{ONLINE, at};
use reader::Element;

fn face(status: &JobStatus, progress: Option<&Progress>) -> MigrationJob {
    MigrationJob::of(status, progress, ONLINE, at(60))
}

fn json(job: &MigrationJob) -> Value {
    serde_json::to_value(job).expect("JSON")
}

/// Kinds of jobs that have to do with a replica: the golden file's name, the kind, its job type and its caption.
const ON_REPLICAS: [(&str, JobKind, u16, &str); 5] = [
    ("replicate", JobKind::Replicate, 0, "Replicating VM web from alpha to bravo"),
    ("clone", JobKind::Clone, 0, "Making VM web-test of a replica at bravo"),
    ("rehearse", JobKind::Rehearse, 0, "Rehearsing a replica at bravo as VM web-test"),
    ("verify", JobKind::Verify, 0, "Verifying the replica of VM web at bravo"),
    ("cutover", JobKind::Cutover, 306, "Moving VM web and its disks from alpha to bravo"),
];

/// A job of each kind that there is something to say about.
fn all() -> Vec<MigrationJob> {
    let storage = jobs::told(jobs::plan(MoveMode::Storage, true), vec![]);
    let cold = jobs::told(jobs::plan(MoveMode::Cold, false), vec![]);
    let cancelled = jobs::told(jobs::plan(MoveMode::Live, false), vec![EventBody::CancelAccepted]);
    let statuses = [
        jobs::planned(),
        jobs::running(),
        jobs::completed(),
        jobs::failed("the link was lost"),
        jobs::unwinding("the link was lost"),
        jobs::terminated(),
        jobs::query_pending(),
        storage,
        cold,
        cancelled,
    ];
    let on_replicas = ON_REPLICAS.map(|(_, kind, ..)| jobs::of_a_replica(kind));
    statuses.iter().chain(&on_replicas).map(|status| face(status, Some(&jobs::progress()))).collect()
}

#[test]
fn six_jobs_read_as_promised() {
    let lost = Contacts { target: Contact::Lost, ..ONLINE };
    let progress = jobs::progress();
    for (name, status, progress, contacts) in [
        ("planned", jobs::planned(), None, ONLINE),
        ("running", jobs::running(), Some(&progress), ONLINE),
        ("completed", jobs::completed(), None, ONLINE),
        ("failed", jobs::failed("the link to bravo was lost"), None, ONLINE),
        ("terminated", jobs::terminated(), None, ONLINE),
        ("query_pending", jobs::query_pending(), None, lost),
    ] {
        let job = MigrationJob::of(&status, progress, contacts, at(60));
        insta::assert_snapshot!(format!("{name}.json"), serde_json::to_string_pretty(&job).expect("JSON"));
        insta::assert_snapshot!(format!("{name}.xml"), job.to_xml());
    }
}

/// What Hyper-V has no job type for says in words what it is; a cutover is a move there.
#[test]
fn jobs_on_replicas_read_as_promised() {
    for (name, kind, job_type, caption) in ON_REPLICAS {
        let job = face(&jobs::of_a_replica(kind), None);
        let said = json(&job);
        assert_eq!(
            (&said["JobType"], &said["JobState"], &said["PercentComplete"]),
            (&job_type.into(), &7.into(), &100.into())
        );
        assert_eq!(job.caption, caption);
        // That its XML says the same is looked at below.
        insta::assert_snapshot!(format!("{name}.json"), serde_json::to_string_pretty(&job).expect("JSON"));
    }
}

#[test]
fn json_and_xml_say_the_same() {
    for job in all() {
        let xml = reader::read(&job.to_xml()).expect("well-formed");
        assert_eq!((xml.name.as_str(), xml.attribute("CLASSNAME")), ("INSTANCE", Some("Msvm_MigrationJob")));
        let json = json(&job);
        let json = json.as_object().expect("an object");
        let names: Vec<&str> = xml.elements.iter().filter_map(|element| element.attribute("NAME")).collect();
        assert_eq!(names, json.keys().map(String::as_str).collect::<Vec<_>>());
        for element in &xml.elements {
            let name = element.attribute("NAME").expect("a name");
            assert_eq!(value_of(element), json[name], "{name}");
        }
    }
}

/// What a property's element says, as the JSON has it.
fn value_of(element: &Element) -> Value {
    let cim_type = element.attribute("TYPE").expect("a type");
    let scalar = |value: &Element| {
        assert_eq!(value.name, "VALUE");
        match cim_type {
            "string" | "datetime" => Value::from(value.text.clone()),
            "boolean" => Value::from(value.text == "TRUE"),
            _ => Value::from(value.text.parse::<i64>().expect("a number")),
        }
    };
    match (element.name.as_str(), element.elements.as_slice()) {
        (_, []) => Value::Null,
        ("PROPERTY", [value]) => scalar(value),
        ("PROPERTY.ARRAY", [array]) if array.name == "VALUE.ARRAY" => array.elements.iter().map(scalar).collect(),
        other => panic!("{other:?} is no property"),
    }
}

#[test]
fn every_datetime_is_one() {
    for job in all() {
        for element in &reader::read(&job.to_xml()).expect("well-formed").elements {
            if let ("datetime", Value::String(text)) = (element.attribute("TYPE").expect("a type"), value_of(element)) {
                assert_eq!(text.parse::<CimDateTime>().map(|value| value.to_string()), Ok(text));
            }
        }
    }
}

#[test]
fn whatever_a_job_says_stays_text() {
    let hostile = "<&\">'</VALUE></PROPERTY>]]>\u{0}\u{1b}[2J\r\n\u{fffe}&amp;";
    let job = face(&jobs::failed(hostile), None);
    let xml = reader::read(&job.to_xml()).expect("well-formed");
    let said = |name: &str| xml.elements.iter().find(|element| element.attribute("NAME") == Some(name)).map(value_of);
    let kept = hostile.replace(['\u{0}', '\u{1b}', '\u{fffe}'], "\u{fffd}");
    assert_eq!(said("ErrorSummaryDescription"), Some(Value::from(kept)));
    assert_eq!(json(&job)["ErrorSummaryDescription"], hostile);
    let text = serde_json::to_string(&job).expect("JSON");
    assert!(!text.contains(|character: char| character < ' '), "JSON escapes what a terminal would obey");
}

#[test]
fn type_and_destination_follow_the_plan() {
    for (mode, copies_disks, job_type, migration_type) in [
        (MoveMode::Live, false, 305, 32768),
        (MoveMode::Cold, false, 305, 32768),
        (MoveMode::Live, true, 306, 32771),
        (MoveMode::Cold, true, 306, 32771),
        (MoveMode::Storage, true, 307, 32769),
    ] {
        let job = json(&face(&JobStatus::planned(jobs::plan(mode, copies_disks)), None));
        assert_eq!((&job["JobType"], &job["MigrationType"]), (&job_type.into(), &migration_type.into()));
        let stays = mode == MoveMode::Storage;
        assert_eq!(job["DestinationHost"], if stays { Value::Null } else { "bravo".into() });
        assert_eq!(job["NewResourceSettingData"].is_array(), stays);
    }
    for (kind, mode, copies_disks, job_type, migration_type) in [
        (JobKind::Stage, MoveMode::Live, true, 300, 32770),
        (JobKind::Check, MoveMode::Live, false, 301, 32768),
        (JobKind::Check, MoveMode::Cold, true, 302, 32771),
        (JobKind::DeepCheck, MoveMode::Live, true, 303, 32772),
        (JobKind::Check, MoveMode::Storage, true, 304, 32769),
    ] {
        let plan = Plan { kind, ..jobs::plan(mode, copies_disks) };
        let job = json(&face(&JobStatus::planned(plan), None));
        assert_eq!((&job["JobType"], &job["MigrationType"]), (&job_type.into(), &migration_type.into()));
    }
}

#[test]
fn a_planned_vm_is_named_where_it_is_made_and_where_it_is_used() {
    let planned = Some("0197c0de-0000-7000-8000-0000000000aa".parse().expect("a UUID"));
    let used = Plan { planned, ..jobs::plan(MoveMode::Live, true) };
    let made = Plan { kind: JobKind::Stage, hold_seconds: Some(7200), ..used.clone() };
    let [used, made] = [used, made].map(|plan| face(&JobStatus::planned(plan), None));
    assert!(used.description.contains("using planned VM 0197c0de-0000-7000-8000-0000000000aa"), "{}", used.description);
    assert_eq!(
        made.description,
        "planned VM 0197c0de-0000-7000-8000-0000000000aa at bravo for VM web of alpha: held for 7200 s are 512 MiB of \
         memory, 1.50 GiB of pool slow"
    );
    assert_eq!((made.caption.as_str(), made.new_system_setting_data), ("Preparing VM web of alpha at bravo", None));
}

#[test]
fn a_storage_move_embeds_its_disks() {
    let job = face(&JobStatus::planned(jobs::plan(MoveMode::Storage, true)), None);
    let disks = job.new_resource_setting_data.expect("disks");
    let disk = reader::read(&disks[0]).expect("well-formed");
    assert_eq!(disk.attribute("CLASSNAME"), Some("Msvm_StorageAllocationSettingData"));
    let values: Vec<Value> = disk.elements.iter().map(value_of).collect();
    let id = "Sterna:0197c0de-0000-7000-8000-00000000abcd/root";
    assert_eq!(values, [Value::from("root"), id.into(), vec!["slow/root"].into()]);
}

/// Every state, also those that no event leads to yet: what stands together agrees.
#[test]
fn in_every_state_the_conditions_agree() {
    let contacts = [Contact::Online, Contact::Lost, Contact::Never];
    let contacts = contacts.iter().flat_map(|source| contacts.map(|target| Contacts { source: *source, target }));
    for (state, contacts) in JobState::ALL.into_iter().flat_map(|state| contacts.clone().map(move |it| (state, it))) {
        for mut status in [jobs::planned(), jobs::running(), jobs::unwinding("no"), jobs::failed("no")] {
            status.state = state;
            let job = MigrationJob::of(&status, None, contacts, at(60));
            let first = job.operational_status[0];
            assert_eq!(job.operational_status.len(), job.status_descriptions.len());
            assert!(job.status_descriptions.iter().all(|text| !text.is_empty()));
            assert_eq!(job.status, first.status());
            assert!(job.status != "Unknown" && job.status.len() <= 10, "{state}: {}", job.status);
            use OperationalStatus as Indicator;
            let well = matches!(first, Indicator::Ok | Indicator::Degraded | Indicator::InService);
            // A job that failed always has a report; these were made without events.
            if state != JobState::Exception || status.failure.is_some() {
                assert_eq!(job.error_code == ErrorCode::None, well, "{state}");
            }
            assert_eq!(job.error_description.is_some(), job.error_code != ErrorCode::None);
            assert_eq!(job.error_summary_description.is_some(), job.error_code != ErrorCode::None);
            let reachable = contacts == ONLINE;
            let told = [Indicator::LostCommunication, Indicator::NoContact];
            let told = job.operational_status.iter().any(|indicator| told.contains(indicator));
            assert_eq!(told, !reachable && !state.is_final(), "{state}");
            assert_eq!(job.communication_status.number() == 1, state.is_final(), "{state}");
            assert_eq!(job.communication_status.number() == 2, reachable && !state.is_final(), "{state}");
        }
    }
}

#[test]
fn silence_of_one_host_is_told_once_and_by_name() {
    let contacts = Contacts { source: Contact::Never, target: Contact::Lost };
    let job = MigrationJob::of(&jobs::running(), None, contacts, at(60));
    assert_eq!(
        job.operational_status,
        [OperationalStatus::Degraded, OperationalStatus::LostCommunication, OperationalStatus::NoContact]
    );
    assert_eq!(job.status_descriptions[1..], ["bravo: not heard of lately", "alpha: never heard of"]);
    assert_eq!((job.communication_status.number(), job.status), (3, "Degraded"));
    let both = Contacts { source: Contact::Lost, target: Contact::Lost };
    let job = MigrationJob::of(&jobs::running(), None, both, at(60));
    assert_eq!(job.status_descriptions[1..], ["alpha, bravo: not heard of lately"]);
    let stays = jobs::told(jobs::plan(MoveMode::Storage, true), vec![]);
    assert_eq!(MigrationJob::of(&stays, None, both, at(60)).status_descriptions[2..], ["alpha: not heard of lately"]);
}

#[test]
fn a_caption_is_cut_at_its_limit() {
    let mut status = jobs::planned();
    let longest = "a-name-of-24-characters-";
    status.plan.vm.name = longest.parse().expect("a name");
    status.plan.target.id = longest.parse().expect("a name");
    let job = face(&status, None);
    assert_eq!(job.caption.chars().count(), CAPTION_LENGTH_MAX);
    assert!(job.caption.starts_with("Moving VM a-name-of-24-characters- and its disks"), "{}", job.caption);
}

#[test]
fn time_passes_from_the_first_step_to_the_end() {
    let elapsed = |status: &JobStatus| face(status, None).elapsed_time.microseconds() / 1_000_000;
    assert_eq!(elapsed(&jobs::planned()), 0);
    // Its first step began in second 2, and it is second 60.
    assert_eq!(elapsed(&jobs::running()), 58);
    // Its end was in second 15.
    assert_eq!(elapsed(&jobs::completed()), 13);
}

fn names() -> Vec<String> {
    json(&face(&jobs::planned(), None)).as_object().expect("an object").keys().cloned().collect()
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/job-model.md");
    std::fs::read_to_string(path).expect("docs/job-model.md")
}

#[test]
fn every_property_has_its_row_in_the_documents() {
    let page = page();
    let rows: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let missing: Vec<String> = names().into_iter().filter(|name| !rows.contains(&name.as_str())).collect();
    assert_eq!(missing, Vec::<String>::new(), "docs/job-model.md has no row of these");
    let codes = ErrorCode::ALL.iter().map(|code| format!("| {} | `{code:?}` |", code.number()));
    let missing: Vec<String> = codes.filter(|row| !page.contains(row)).collect();
    assert_eq!(missing, Vec::<String>::new(), "docs/job-model.md has no row of these codes");
}

#[test]
fn the_documents_tell_every_state_as_it_is() {
    let page = page();
    let failed = jobs::failed("no");
    let unwinding = jobs::unwinding("no");
    let mut rows = vec![("shutting_down, failed".to_owned(), unwinding)];
    rows.extend(JobState::ALL.into_iter().map(|state| {
        let mut status = if state == JobState::Exception { failed.clone() } else { jobs::running() };
        status.state = state;
        let name =
            if state == JobState::ShuttingDown { "shutting_down, cancelled".to_owned() } else { state.to_string() };
        (name, status)
    }));
    for (name, status) in rows {
        let row = page.lines().find_map(|line| line.strip_prefix(&format!("| {name} | "))).expect(&name);
        let told: Vec<u16> = row.split([' ', ',', '|']).filter_map(|word| word.parse().ok()).collect();
        let job = face(&status, None);
        let mut is: Vec<u16> = job.operational_status.iter().map(|indicator| indicator.number()).collect();
        is.extend([job.health_state.number(), job.detailed_status.number()]);
        is.extend([job.operating_status.number(), job.primary_status.number()]);
        assert_eq!(told, is, "{name}");
    }
}

/// Where the class's published description lies beside the workspace, its properties, their order and their types are held
/// to it. Elsewhere there is nothing to compare with.
#[test]
fn properties_are_those_of_the_published_class() {
    let Some(page) = published() else { return };
    let (_, class) = page.split_once("class Msvm_MigrationJob :").expect("the class");
    let (_, body) = class.split_once('{').expect("a beginning");
    let (body, _) = body.split_once("};").expect("an end");
    let published: Vec<String> = body
        .lines()
        .filter_map(|line| {
            let (cim_type, rest) = line.trim().split_once(' ')?;
            let name = rest.trim().split([' ', ';', '[']).next()?;
            let array = if rest.contains("[]") { "[]" } else { "" };
            Some(format!("{cim_type} {name}{array}"))
        })
        .collect();
    let xml = reader::read(&face(&jobs::planned(), None).to_xml()).expect("well-formed");
    let ours = xml.elements.iter().map(|element| {
        let array = if element.name == "PROPERTY.ARRAY" { "[]" } else { "" };
        let attribute = |name| element.attribute(name).expect("an attribute");
        format!("{} {}{array}", attribute("TYPE"), attribute("NAME"))
    });
    assert_eq!(ours.collect::<Vec<_>>(), published);
}

/// The published description, where it lies beside the workspace.
fn published() -> Option<String> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/seeds");
    let texts = std::fs::read_dir(seeds).ok()?.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.into_iter().find(|text| text.contains("class Msvm_MigrationJob :"))
}

/// Each value that the description has of a property, such as `OK (2)` under `OperationalStatus`, has a row that says when it is
/// told. Elsewhere than beside the description the lists in the code are all there is to compare with.
#[test]
fn every_value_has_its_row_in_the_documents() {
    let rows: std::collections::BTreeSet<(String, i64)> = page()
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let (property, number) = (cells.next()?.to_owned(), cells.next()?.parse().ok()?);
            Some((property, number))
        })
        .collect();
    let mut wanted: Vec<(String, i64)> = Vec::new();
    let mut add =
        |property: &str, numbers: &[i64]| wanted.extend(numbers.iter().map(|number| (property.to_owned(), *number)));
    add("OperationalStatus", &OperationalStatus::ALL.iter().map(|value| value.number().into()).collect::<Vec<_>>());
    add("JobState", &JobState::ALL.map(|state| state.number().into()));
    if let Some(text) = published() {
        let names = names();
        let mut property = None;
        for line in text.lines().map(str::trim) {
            if let Some(name) = names.iter().find(|name| *name == line) {
                property = Some(name.clone());
            }
            if line.starts_with("Qualifiers") {
                continue;
            }
            let number = line.strip_suffix(')').and_then(|line| line.rsplit_once('(')).map(|(_, number)| number);
            if let (Some(property), Some(number)) = (&property, number.and_then(|number| number.parse().ok())) {
                add(property, &[number]);
            }
        }
        assert!(wanted.len() > 120, "the description has more values than {}", wanted.len());
    }
    let missing: Vec<_> = wanted.iter().filter(|value| !rows.contains(value)).collect();
    assert!(missing.is_empty(), "docs/job-model.md has no row of {missing:?}");
}

#[test]
fn policy_is_what_was_submitted() {
    let policy = Policy {
        owner: Some("ops".into()),
        priority: 7,
        delete_on_completion: true,
        keep_seconds: 90,
        ..Policy::default()
    };
    let job = json(&face(&jobs::submitted(policy), None));
    assert_eq!((&job["Owner"], &job["Priority"]), (&"ops".into(), &7.into()));
    assert_eq!(
        (&job["DeleteOnCompletion"], &job["TimeBeforeRemoval"]),
        (&true.into(), &"00000000000130.000000:000".into())
    );
    assert_eq!(job["JobState"], 2);
}

#[test]
fn a_schedule_reads_as_it_was_edited() {
    let mut policy = Policy::default();
    let changes = [
        ("RunStartInterval", "00000000023000.000000:000"),
        ("RunMonth", "2"),
        ("RunDay", "-1"),
        ("RunDayOfWeek", "-1"),
        ("JobRunTimes", "5"),
        ("UntilTime", "20301231235959.000000+000"),
        ("Notify", "subject:night"),
        ("Priority", "3"),
        ("DeleteOnCompletion", "true"),
        ("TimeBeforeRemoval", "00000001000000.000000:000"),
    ];
    for (name, value) in changes {
        edit(&mut policy, name, value, at(0)).expect(name);
    }
    assert_eq!(policy.faults(), Vec::<String>::new());
    let job = json(&face(&jobs::submitted(policy.clone()), None));
    for (name, value) in changes {
        let told = &job[name];
        assert_eq!(told.as_str().map_or_else(|| told.to_string(), str::to_owned), value, "{name}");
    }
    assert_eq!(job["LocalOrUtcTime"], 2);
    // The last Sunday on or before the last day of March 2027.
    assert_eq!(job["ScheduledStartTime"], "20270328023000.000000+000");
    for (name, value) in [("UntilTime", "99999999999999.999999:000"), ("RunMonth", ""), ("Notify", "")] {
        edit(&mut policy, name, value, at(0)).expect(name);
    }
    let job = json(&face(&jobs::submitted(policy), None));
    assert_eq!((&job["UntilTime"], &job["RunMonth"]), (&"99999999999999.999999:000".into(), &Value::Null));
}

#[test]
fn what_cannot_be_edited_is_refused_by_name_and_changes_nothing() {
    let properties = json(&face(&jobs::planned(), None));
    let names: std::collections::BTreeSet<&str> =
        properties.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, READ_ONLY.into_iter().chain(READ_WRITE).collect(), "every property is in one of the lists");
    let mut policy = Policy::default();
    for name in READ_ONLY {
        assert_eq!(edit(&mut policy, name, "1", at(0)), Err(EditFault::ReadOnly { name }));
    }
    for (name, value) in [
        ("RunDay", "1"),
        ("JobRunTimes", "2"),
        ("Priority", "high"),
        ("RunStartInterval", "noon"),
        ("UntilTime", "soon"),
    ] {
        assert!(edit(&mut policy, name, value, at(0)).is_err(), "{name}");
    }
    assert_eq!(policy, Policy::default());
}

#[test]
fn recovery_is_told_by_its_number() {
    let request = Box::new(MoveRequest::of(&jobs::plan(MoveMode::Live, true)));
    let words = "call the night shift".to_owned();
    for (recovery, number) in [
        (Recovery::Other { text: words.clone() }, 1),
        (Recovery::Stop, 2),
        (Recovery::Next, 3),
        (Recovery::Rerun { times: 2, pause_seconds: 60 }, 4),
        (Recovery::Run { request }, 5),
    ] {
        let job = json(&face(&jobs::submitted(Policy { recovery, ..Policy::default() }), None));
        assert_eq!(job["RecoveryAction"], number);
        assert_eq!(job["OtherRecoveryAction"], if number == 1 { words.clone().into() } else { Value::Null });
    }
}

#[test]
fn a_throttled_job_is_stressed_until_it_no_longer_is() {
    let throttled = |held_back| EventBody::Throttled { held_back, text: "slowly".into() };
    let mut bodies = vec![EventBody::StepStarted { step: StepKind::Prepare }, throttled(true)];
    let told = |bodies: &[EventBody]| json(&face(&jobs::told(jobs::plan(MoveMode::Live, true), bodies.to_vec()), None));
    let job = told(&bodies);
    assert_eq!((&job["OperationalStatus"], &job["DetailedStatus"]), (&serde_json::json!([2, 4]), &2.into()));
    bodies.push(throttled(false));
    let job = told(&bodies);
    assert_eq!((&job["OperationalStatus"], &job["DetailedStatus"]), (&serde_json::json!([2]), &1.into()));
}
