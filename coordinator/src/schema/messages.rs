//! Messages against their schemas: what the code makes is valid, and what it does not make is not.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sterna_shared::bus::{Envelope, decode, encode};
use sterna_shared::id::Epoch;
use sterna_shared::view::cim::{Contact, Contacts, MigrationJob, MsvmError};

use super::examples;
use super::{Judge, SCHEMAS, documents, expect_valid, path_of};
use crate::api::ENDPOINTS;
use crate::planner::example;
use crate::view::{JobView, PlanView};

/// The kinds that a schema of tagged messages tells apart.
pub(super) fn kinds(name: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path_of(name)).expect("the schema");
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    let one_of = schema["oneOf"].as_array().expect("tagged messages");
    one_of.iter().map(|kind| kind["properties"]["type"]["const"].as_str().expect("a tag").to_owned()).collect()
}

pub(super) fn kind(message: &Value) -> String {
    message["type"].as_str().expect("a tag").to_owned()
}

/// A message of the API as it is on the wire. Bytes have no place in JSON: a message with some is taken as serde_json has it.
fn on_the_wire<T: serde::Serialize>(message: &T) -> Value {
    let bytes = encode("example", message).expect("encoded");
    decode("example", &bytes).unwrap_or_else(|_| examples::json(message))
}

/// Each schema's name, with messages that are of it.
fn all() -> Vec<(&'static str, Value)> {
    let mut all = vec![("plan", examples::json(&PlanView::new(&examples::a_plan())))];
    for document in examples::documents() {
        let name =
            ["job", "host", "vm", "replica"].into_iter().find(|name| document.key.starts_with(name)).expect("a schema");
        all.push((name, serde_json::from_slice(&document.body).expect("JSON")));
    }
    let silent = Contacts { source: Contact::Online, target: Contact::Never };
    for status in examples::statuses() {
        all.push(("job", examples::json(&JobView::new(&status, None))));
        let job = MigrationJob::of(&status, Some(&examples::progress()), silent, example::later(20));
        all.push(("migration-job", examples::json(&job)));
        let errors = MsvmError::with_contacts(&status, silent);
        all.extend(errors.iter().map(|error| ("msvm-error", examples::json(error))));
    }
    all.extend(examples::requests().iter().map(|(request, _)| ("api-request", on_the_wire(request))));
    all.extend(examples::replies().iter().map(|reply| ("api-reply", on_the_wire(reply))));
    let sealed = Envelope::seal("api_request", "an operator", Epoch(0), &examples::requests()[0].0).expect("sealed");
    all.push(("envelope", examples::json(&Envelope::open(&sealed).expect("an envelope"))));
    all
}

fn judges() -> BTreeMap<&'static str, Judge> {
    SCHEMAS.iter().map(|kept| (kept.name, Judge::of(kept.name))).collect()
}

#[test]
fn every_message_is_of_its_schema() {
    let judges = judges();
    for (name, message) in all() {
        judges[name].expect(&message);
    }
    let seen: BTreeSet<&str> = all().iter().map(|(name, _)| *name).collect();
    assert!(judges.keys().all(|name| seen.contains(name)), "a schema has no example: {seen:?}");
}

#[test]
fn the_snapshots_of_cim_are_of_their_schema() {
    let folder = documents().join("../shared/tests/cim/snapshots");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("a file").path();
        if path.to_string_lossy().ends_with(".json.snap") {
            let text = std::fs::read_to_string(&path).expect("readable");
            // Behind the head, which is between two lines of dashes.
            let body = text.splitn(3, "---\n").nth(2).expect("a body");
            expect_valid("migration-job", &serde_json::from_str(body).expect("JSON"));
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen} snapshots");
}

#[test]
fn a_message_with_a_fault_in_any_place_is_not_valid() {
    // A value of a kind that nothing public has.
    let (judges, strange) = (judges(), json!([[["strange"]]]));
    for (name, message) in all() {
        for place in places(&message, "") {
            let mut wrong = message.clone();
            *wrong.pointer_mut(&place).expect("the place") = strange.clone();
            assert!(!judges[name].takes(&wrong), "{name} takes anything at {place:?}");
        }
    }
}

#[test]
fn of_what_sterna_tells_nothing_may_be_missing() {
    let judges = judges();
    for (name, message) in all() {
        if matches!(name, "api-request" | "api-reply") {
            continue;
        }
        for place in places(&message, "") {
            let Some((parent, field)) = place.rsplit_once('/') else { continue };
            let mut wrong = message.clone();
            if let Some(Value::Object(fields)) = wrong.pointer_mut(parent) {
                fields.remove(field);
                assert!(!judges[name].takes(&wrong), "{name} is valid without {place}");
            }
        }
    }
}

#[test]
fn fields_may_be_added() {
    let judges = judges();
    for (name, mut message) in all() {
        if name != "api-request" {
            message["added_later"] = json!(1);
            judges[name].expect(&message);
        }
    }
}

#[test]
fn every_request_has_an_endpoint_and_an_example() {
    let requests = examples::requests();
    let seen: BTreeSet<String> = requests.iter().map(|(request, _)| kind(&examples::json(request))).collect();
    assert_eq!(seen, kinds("api-request"), "a request has no example");
    let endpoints: BTreeSet<_> = requests.iter().map(|(request, _)| request.subject_tokens()).collect();
    assert_eq!(endpoints, ENDPOINTS.iter().copied().collect(), "a request has no endpoint, or an endpoint no request");
    let replies: BTreeSet<String> = examples::replies().iter().map(|reply| kind(&examples::json(reply))).collect();
    assert_eq!(replies, kinds("api-reply"), "an answer has no example");
}

#[test]
fn names_ids_and_times_have_their_form() {
    let judge = Judge::of("job");
    let job = || examples::json(&JobView::new(&examples::statuses()[0], None));
    for (place, value, valid) in [
        ("/source", json!("alpha-1"), true),
        ("/source", json!("_coordinator"), false),
        ("/source", json!("x".repeat(25)), false),
        ("/job", json!("0197c0de-0000-7000-8000-000000000001"), true),
        ("/job", json!("7"), false),
        ("/submitted_at", json!("2026-11-21T22:26:40.000000Z"), true),
        ("/submitted_at", json!("yesterday"), false),
        ("/state", json!("query_pending"), true),
        ("/state", json!("stuck"), false),
    ] {
        let mut message = job();
        *message.pointer_mut(place).expect("the place") = value;
        assert_eq!(judge.takes(&message), valid, "{place} {message:#}");
    }
}

/// Every place in a message, as a JSON pointer; of a list the first element only, since the others are like it.
fn places(value: &Value, at: &str) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(elements) => elements.first().map(|element| ("0".to_owned(), element)).into_iter().collect(),
        _ => Vec::new(),
    };
    let below = children.iter().flat_map(|(name, value)| places(value, &format!("{at}/{name}")));
    std::iter::once(at.to_owned()).chain(below).collect()
}
