//! The error records of a job: which there are, and what they say. What each code is in CIM's numbers is pinned in
//! `tests/errors.rs`.

use serde_json::Value;
use sterna_shared::job::{
    EventBody, FailureCode, FailureReport, Finding, JobState, JobStatus, MoveMode, Refusal, RefusalCode, Severity,
    StepKind,
};
use sterna_shared::view::cim::{
    Contact, Contacts, ERRORS_MAX, ErrorCode, MigrationJob, MsvmError, OWNING_ENTITY, OperationalStatus, get_error,
    get_error_ex,
};

use super::jobs::{self, ONLINE, at};
use super::{page, reader, value_of};

/// Types, names and order as the class is published.
const PUBLISHED: [&str; 15] = [
    "uint16 ErrorType",
    "string OtherErrorType",
    "string OwningEntity",
    "string MessageID",
    "string Message",
    "string MessageArguments[]",
    "uint16 PerceivedSeverity",
    "uint16 ProbableCause",
    "string ProbableCauseDescription",
    "string RecommendedActions[]",
    "string ErrorSource",
    "uint16 ErrorSourceFormat",
    "string OtherErrorSourceFormat",
    "uint32 CIMStatusCode",
    "string CIMStatusCodeDescription",
];

const JOB: &str = "0197c0de-0000-7000-8000-00000000000a";

/// A job of each kind that has something to tell, with the contact with its hosts.
fn all() -> Vec<(JobStatus, Contacts)> {
    let lost = Contacts { target: Contact::Lost, ..ONLINE };
    vec![
        (jobs::failed("the link was lost"), ONLINE),
        (jobs::unwinding("the link was lost"), lost),
        (jobs::terminated(), ONLINE),
        (in_state(JobState::Killed), ONLINE),
        (jobs::query_pending(), lost),
        (jobs::running(), lost),
        (in_state(JobState::Service), ONLINE),
        (in_state(JobState::Exception), ONLINE),
    ]
}

/// Also a state that no event leads to yet.
fn in_state(state: JobState) -> JobStatus {
    let mut status = jobs::running();
    status.state = state;
    status
}

fn ids(errors: &[MsvmError]) -> Vec<&'static str> {
    errors.iter().map(|error| error.message_id).collect()
}

/// A live move in which the copy of the memory failed with one report, and the job with the other.
fn failed(of_the_step: FailureReport, failure: FailureReport) -> JobStatus {
    let step = StepKind::CopyMemory;
    let bodies = vec![
        EventBody::StepStarted { step },
        EventBody::StepFailed { step, failure: of_the_step },
        EventBody::Failed { failure },
    ];
    jobs::told(jobs::plan(MoveMode::Live, true), bodies)
}

#[test]
fn properties_are_those_of_the_published_error_class() {
    for (status, contacts) in all() {
        for text in get_error_ex(&status, contacts).expect("errors") {
            let xml = reader::read(&text).expect("well-formed");
            assert_eq!((xml.name.as_str(), xml.attribute("CLASSNAME")), ("INSTANCE", Some("Msvm_Error")));
            let ours = xml.elements.iter().map(|element| {
                let array = if element.name == "PROPERTY.ARRAY" { "[]" } else { "" };
                let attribute = |name| element.attribute(name).expect("an attribute");
                format!("{} {}{array}", attribute("TYPE"), attribute("NAME"))
            });
            assert_eq!(ours.collect::<Vec<_>>(), PUBLISHED);
        }
    }
}

#[test]
fn json_and_xml_of_an_error_say_the_same() {
    for (status, contacts) in all() {
        for error in MsvmError::with_contacts(&status, contacts) {
            let xml = reader::read(&error.to_xml()).expect("well-formed");
            let json = serde_json::to_value(&error).expect("JSON");
            let json = json.as_object().expect("an object");
            let names: Vec<&str> = xml.elements.iter().filter_map(|element| element.attribute("NAME")).collect();
            assert_eq!(names, json.keys().map(String::as_str).collect::<Vec<_>>());
            for element in &xml.elements {
                let name = element.attribute("NAME").expect("a name");
                assert_eq!(value_of(element), json[name], "{name}");
            }
        }
    }
}

#[test]
fn errors_of_a_failed_job_read_as_promised() {
    let status = jobs::failed("the link to bravo was lost");
    insta::assert_snapshot!("errors.xml", get_error_ex(&status, ONLINE).expect("errors").join("\n"));
}

/// Every state, also those that no event leads to yet.
#[test]
fn there_is_an_error_exactly_where_the_first_indicator_is_not_ok() {
    let contacts = [Contact::Online, Contact::Lost, Contact::Never];
    let contacts = contacts.iter().flat_map(|source| contacts.map(|target| Contacts { source: *source, target }));
    for (state, contacts) in JobState::ALL.into_iter().flat_map(|state| contacts.clone().map(move |it| (state, it))) {
        for mut status in [jobs::planned(), jobs::running(), jobs::unwinding("no"), jobs::failed("no")] {
            status.state = state;
            let job = MigrationJob::of(&status, None, contacts, at(60));
            let well = job.operational_status[0] == OperationalStatus::Ok;
            let first = get_error(&status, contacts);
            assert_eq!(first.is_none(), well, "{state} {contacts:?}");
            assert_eq!(get_error_ex(&status, contacts).map(|all| all[0].clone()), first);
            if job.error_code != ErrorCode::None {
                let told = MsvmError::of(&status).swap_remove(0).message;
                assert_eq!(job.error_summary_description, Some(told), "{state}");
            }
        }
    }
}

#[test]
fn every_code_has_its_record() {
    for code in FailureCode::ALL {
        let failure = FailureReport { code: *code, ..jobs::failure("no") };
        let errors = MsvmError::of(&failed(failure.clone(), failure));
        assert_eq!(errors[0].message_id, code.entry().message_id);
        assert_eq!(errors[0].recommended_actions[0], "look at the network, then move it again");
        assert_eq!(errors[0].recommended_actions.len(), 1 + code.entry().remedies.len());
        assert_eq!((errors[0].owning_entity, errors[0].error_source_format.number()), (OWNING_ENTITY, 0));
    }
    for code in RefusalCode::ALL {
        let refusal = Refusal { code: *code, message: "no".into(), remedy: "do".into() };
        let error = MsvmError::of_refusal(&refusal);
        assert_eq!((error.message_id, error.message.as_str()), (code.entry().message_id, "no"));
        assert_eq!((&*error.recommended_actions[0], error.error_source), ("do", None));
    }
}

#[test]
fn causes_follow_where_they_say_something_of_their_own() {
    let causes = ["the link was lost", "connection reset", " ", "reset", "disk root, at its end", "connection reset"];
    let message = "disk rooted in pool fast: the link was lost";
    let failure = FailureReport { causes: causes.map(str::to_owned).into(), ..jobs::failure(message) };
    let errors = MsvmError::of(&failed(failure.clone(), failure));
    assert_eq!(ids(&errors), ["STERNA-F003", "STERNA-J005", "STERNA-J005"]);
    assert_eq!(errors[1].message, "connection reset");
    // What it is about: the disk is one that a text names, and `rooted` is no disk.
    let arguments = [JOB, "web", "alpha", "bravo", "alpha", "copy_memory"];
    assert_eq!(errors[0].message_arguments[..6], arguments);
    assert_eq!(errors[0].message_arguments[6..], ["root"]);
    assert_eq!(errors[1].message_arguments, arguments);
    assert_eq!(errors[2].message_arguments[6..], ["root"]);
    assert_eq!(errors[0].error_source.as_deref(), Some("alpha"));
    // How bad it is, is told once.
    assert_eq!([0, 1].map(|it: usize| errors[it].perceived_severity.number()), [3, 0]);
}

#[test]
fn each_finding_of_a_check_is_an_error_with_its_remedy() {
    let finding = |severity, code, message: &str| Finding {
        severity,
        reason: Refusal { code, message: message.to_owned(), remedy: format!("see to it: {message}") },
    };
    let errors = MsvmError::of(&jobs::check_failed(vec![
        finding(Severity::Error, RefusalCode::Memory, "bravo has too little memory"),
        finding(Severity::Error, RefusalCode::UnknownPool, "bravo has no pool for disk root"),
        finding(Severity::Warning, RefusalCode::OlderHypervisor, "QEMU of bravo is older"),
    ]));
    assert_eq!(ids(&errors), ["STERNA-F018", "STERNA-R010", "STERNA-R012", "STERNA-R036"]);
    assert_eq!(errors[0].message, "VM web cannot be moved like that: bravo has too little memory");
    assert_eq!(errors[0].message_arguments[5], "check");
    for error in &errors[1..] {
        assert_eq!(error.recommended_actions[0], format!("see to it: {}", error.message));
    }
    assert_eq!(errors[2].message_arguments[6..], ["root"]);
}

#[test]
fn a_step_that_failed_otherwise_is_told_too() {
    let at_target = FailureReport {
        code: FailureCode::DiskWrite,
        host: Some("bravo".parse().expect("a name")),
        causes: vec![],
        ..jobs::failure("disk root could not be written")
    };
    let errors = MsvmError::of(&failed(at_target.clone(), jobs::failure("the link was lost")));
    assert_eq!(ids(&errors), ["STERNA-F003", "STERNA-J005", "STERNA-F006"]);
    assert_eq!(errors[2].error_source.as_deref(), Some("bravo"));
    let unresolved = EventBody::Unresolved { reason: "bravo is silent".into() };
    let step = StepKind::CopyMemory;
    let bodies = vec![EventBody::StepStarted { step }, EventBody::StepFailed { step, failure: at_target }, unresolved];
    let status = jobs::told(jobs::plan(MoveMode::Live, true), bodies);
    assert_eq!(ids(&MsvmError::of(&status)), ["STERNA-J002", "STERNA-F006"]);
}

#[test]
fn who_cancels_a_job_finds_an_error_there() {
    let errors = MsvmError::of(&jobs::terminated());
    assert_eq!(ids(&errors), ["STERNA-F001"]);
    assert_eq!((errors[0].error_type.number(), errors[0].other_error_type), (1, Some("cancelled by a client")));
    assert_eq!(errors[0].error_source, Some(format!("Sterna:{JOB}")));
    assert_eq!(ids(&MsvmError::of(&in_state(JobState::Killed))), ["STERNA-J001"]);
}

#[test]
fn an_unresolved_handover_says_what_to_do_with_its_names() {
    let lost = Contacts { target: Contact::Lost, ..ONLINE };
    let errors = MsvmError::with_contacts(&jobs::query_pending(), lost);
    assert_eq!(ids(&errors), ["STERNA-J002", "STERNA-J003"]);
    assert_eq!(errors[0].message, "bravo does not answer whether it has taken web");
    assert_eq!(errors[0].message_arguments[5], "handover");
    assert!(errors[0].recommended_actions.concat().contains("`sterna vm resolve web --fenced HOST`"));
    assert_eq!(ids(&MsvmError::of(&jobs::query_pending())), ["STERNA-J002"]);
}

#[test]
fn a_degraded_job_tells_of_its_silent_hosts_and_of_itself_nothing() {
    let contacts = Contacts { source: Contact::Never, target: Contact::Lost };
    assert_eq!(MsvmError::of(&jobs::running()), []);
    let errors = MsvmError::with_contacts(&jobs::running(), contacts);
    let told: Vec<_> = errors.iter().map(|error| (error.message_id, error.message.as_str())).collect();
    assert_eq!(told, [("STERNA-J003", "bravo: not heard of lately"), ("STERNA-J003", "alpha: never heard of")]);
    assert!(errors[1].recommended_actions.concat().contains("on alpha"));
    let job = MigrationJob::of(&jobs::running(), None, contacts, at(60));
    assert_eq!(job.error_code, ErrorCode::None);
}

#[test]
fn whatever_an_error_says_stays_text() {
    let hostile = "<&\">'</VALUE></PROPERTY>]]>\u{0}\u{1b}[2J\r\n\u{fffe}&amp;{vm}";
    let failure = FailureReport {
        causes: vec![format!("cause {hostile}")],
        remedy: format!("remedy {hostile}"),
        ..jobs::failure(hostile)
    };
    let status = failed(failure.clone(), failure);
    let kept = hostile.replace(['\u{0}', '\u{1b}', '\u{fffe}'], "\u{fffd}");
    let texts = get_error_ex(&status, ONLINE).expect("errors");
    let said = |text: &str, name: &str| {
        let xml = reader::read(text).expect("well-formed");
        xml.elements.iter().find(|element| element.attribute("NAME") == Some(name)).map(value_of).expect("a property")
    };
    assert_eq!(said(&texts[0], "Message"), Value::from(kept.clone()));
    assert_eq!(said(&texts[0], "RecommendedActions")[0], Value::from(format!("remedy {kept}")));
    assert_eq!(said(&texts[1], "Message"), Value::from(format!("cause {kept}")));
    let json = serde_json::to_string(&MsvmError::of(&status)).expect("JSON");
    assert!(!json.contains(|character: char| character < ' '), "JSON escapes what a terminal would obey");
}

#[test]
fn no_report_makes_more_records_than_there_may_be() {
    let causes = (0..200).map(|cause| format!("cause {cause} of many")).collect();
    let failure = FailureReport { causes, ..jobs::failure("no") };
    assert_eq!(MsvmError::of(&failed(failure.clone(), failure)).len(), ERRORS_MAX);
}

#[test]
fn every_property_of_an_error_has_its_row_in_the_documents() {
    let page = page();
    let names = PUBLISHED.iter().filter_map(|row| row.split([' ', '[']).nth(1));
    let missing: Vec<&str> = names.filter(|name| !page.contains(&format!("| `{name}` |"))).collect();
    assert_eq!(missing, Vec::<&str>::new(), "docs/job-model.md has no row of these");
}
