//! docs/asyncapi.json: on which subject is what, by AsyncAPI 3.0. Subjects come from [`Subject`], endpoints from [`ENDPOINTS`],
//! headers from a document of the feed, requests and answers from the examples, which are held against the types.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sterna_shared::bus::Subject;
use sterna_shared::view::google::Method;

use super::{examples, expect_kept, messages, path_of};
use crate::api::ENDPOINTS;
use crate::bus::HEADER_WARNING;
use crate::feed::Document;

/// Draft 2020-12, in the manner in which AsyncAPI names formats other than its own.
const SCHEMA_FORMAT: &str = "application/schema+json;version=draft-2020-12";
const JSON: &str = "application/json";
/// The name that MessagePack has with IANA.
const MESSAGE_PACK: &str = "application/vnd.msgpack";
/// The channel of the answers.
const REPLY: &str = "api.reply";
/// The answers to Google's methods that are JSON by themselves.
const RESOURCE: &str = "api.reply.resource";
const STATUS: &str = "api.reply.status";

fn document() -> Value {
    let mut parts = Parts::default();
    for document in examples::documents() {
        parts.feed(&document);
    }
    parts.reply();
    for (resource, verb) in ENDPOINTS {
        parts.endpoint(resource, verb);
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Sterna",
            "version": "1.0.0",
            "description": "What a fleet of Sterna tells and takes on NATS, from the coordinators' side: they send the feed and \
                receive requests. Made of the code by its tests; docs/feed.md says in words what the feed is.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "servers": {
            "broker": {
                "host": "nats.example:4222",
                "protocol": "nats",
                "description": "The fleet's nats-server. Who connects is known by an nkey, whose permissions `sterna \
                    nats-config` writes; the connection is TLS.",
            },
        },
        "defaultContentType": JSON,
        "channels": parts.channels,
        "operations": parts.operations,
        "components": { "messages": parts.messages },
    })
}

/// The document's three lists, as they grow.
#[derive(Default)]
struct Parts {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
}

impl Parts {
    fn feed(&mut self, document: &Document) {
        let (kind, thing) = document.key.split_once('.').expect("a kind and a thing");
        let name = format!("feed.{kind}");
        let address = document.subject.replace(thing, &format!("{{{kind}}}"));
        let about = match kind {
            "host" => "The host's id: its name.",
            "replica" => "The id of the replicated VM, a UUID.",
            _ => "Its id, a UUID.",
        };
        self.channels.insert(
            name.clone(),
            json!({
                "address": address,
                "description": format!("The whole state of a {kind}, whenever it changes. The last message of each is also in \
                    the bucket `{}`, under the key `{kind}.{{{kind}}}`.", crate::feed::BUCKET_FEED),
                "parameters": { (kind): { "description": about } },
                "messages": { (name.as_str()): reference("components/messages", &name) },
            }),
        );
        self.operations.insert(
            name.clone(),
            json!({
                "action": "send",
                "channel": reference("channels", &name),
                "messages": [in_channel(&name, &name)],
            }),
        );
        let message = json!({
            "title": format!("A {kind} changed"),
            "contentType": JSON,
            "headers": headers(document),
            "payload": payload(json!({ "$ref": file_of(kind) })),
        });
        self.messages.insert(name, message);
    }

    /// Answers of all endpoints come to one place, which the asker chooses.
    fn reply(&mut self) {
        let mut messages = Map::new();
        for kind in messages::kinds("api-reply") {
            let name = format!("{REPLY}.{kind}");
            messages.insert(name.clone(), reference("components/messages", &name));
            let body = tagged("api-reply", &[kind.as_str()]);
            self.messages.insert(name, enveloped(&format!("The answer {kind}"), "api_reply", &body));
        }
        for (name, title, about) in [
            (
                RESOURCE,
                "What a method of Google's returns",
                "A resource, a list of some, or an operation: docs/clone-job.md.",
            ),
            (
                STATUS,
                "Why a method of Google's returns nothing",
                "An `error` with `code`, `message`, `status` and `details`.",
            ),
        ] {
            messages.insert(name.to_owned(), reference("components/messages", name));
            self.messages.insert(name.to_owned(), plain(title, about));
        }
        self.channels.insert(
            REPLY.to_owned(),
            json!({
                "address": null,
                "description": format!("The reply subject of the request, below the asker's inbox. An answer that is an error \
                    also has the headers Nats-Service-Error and Nats-Service-Error-Code; of what was left aside of a request \
                    in JSON there is a header {HEADER_WARNING} each. What is asked in JSON is answered in JSON."),
                "messages": messages,
            }),
        );
    }

    fn endpoint(&mut self, resource: &str, verb: &str) {
        let name = format!("api.{resource}.{verb}");
        let asked: Vec<_> =
            examples::requests().into_iter().filter(|(r, _)| r.subject_tokens() == (resource, verb)).collect();
        let kinds: BTreeSet<String> = asked.iter().map(|(r, _)| messages::kind(&examples::json(r))).collect();
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        let answers: BTreeSet<&str> =
            asked.iter().flat_map(|(_, answers)| *answers).copied().chain(["error"]).collect();
        let mut answers: Vec<Value> =
            answers.iter().map(|kind| in_channel(REPLY, &format!("{REPLY}.{kind}"))).collect();
        let mut messages = Map::new();
        messages.insert(name.clone(), reference("components/messages", &name));
        let mut taken = vec![in_channel(&name, &name)];
        if let Some(method) = Method::of((resource, verb)) {
            let json = format!("{name}.json");
            let about = "The method's request as Google has it, field by field: docs/clone-job.md.";
            self.messages.insert(json.clone(), plain(&format!("The request of {method}"), about));
            messages.insert(json.clone(), reference("components/messages", &json));
            taken.push(in_channel(&name, &json));
            answers.extend([RESOURCE, STATUS].map(|message| in_channel(REPLY, message)));
        }
        self.channels.insert(
            name.clone(),
            json!({
                "address": Subject::Api(resource.to_owned(), verb.to_owned()).to_string(),
                "messages": messages,
            }),
        );
        self.operations.insert(
            name.clone(),
            json!({
                "action": "receive",
                "channel": reference("channels", &name),
                "messages": taken,
                "reply": { "channel": reference("channels", REPLY), "messages": answers },
            }),
        );
        let body = tagged("api-request", &kinds);
        self.messages.insert(name, enveloped(&format!("The request {}", kinds.join(" or ")), "api_request", &body));
    }
}

fn reference(list: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/{list}/{name}") })
}

fn in_channel(channel: &str, message: &str) -> Value {
    json!({ "$ref": format!("#/channels/{channel}/messages/{message}") })
}

fn file_of(name: &str) -> String {
    format!("schema/{name}.schema.json")
}

fn payload(schema: Value) -> Value {
    json!({ "schemaFormat": SCHEMA_FORMAT, "schema": schema })
}

/// One of these messages of a schema that has more.
fn tagged(name: &str, kinds: &[&str]) -> Value {
    json!({ "allOf": [{ "$ref": file_of(name) }, { "properties": { "type": { "enum": kinds } } }] })
}

/// An object by itself.
fn plain(title: &str, about: &str) -> Value {
    json!({
        "title": title,
        "contentType": JSON,
        "payload": payload(json!({ "type": "object", "description": about })),
    })
}

fn enveloped(title: &str, kind: &str, body: &Value) -> Value {
    json!({
        "title": title,
        "contentType": MESSAGE_PACK,
        "payload": payload(json!({
            "allOf": [{ "$ref": file_of("envelope") }],
            "properties": {
                "kind": { "const": kind },
                "body": {
                    "description": "MessagePack with named fields, as a `bin` of the envelope. Byte strings, which JSON has not, \
                        are `bin` too.",
                    "contentMediaType": MESSAGE_PACK,
                    "contentSchema": body,
                },
            },
        })),
    })
}

/// CloudEvents attributes, of which some are the same in each message.
fn headers(document: &Document) -> Value {
    let fixed = ["ce-specversion", "ce-type", "ce-datacontenttype"];
    let properties: Map<String, Value> = document
        .headers
        .iter()
        .map(|(name, value)| {
            let schema = match *name {
                name if fixed.contains(&name) => json!({ "type": "string", "const": value }),
                "ce-time" => json!({ "type": "string", "format": "date-time" }),
                _ => json!({ "type": "string" }),
            };
            ((*name).to_owned(), schema)
        })
        .collect();
    let required: Vec<&String> = properties.keys().collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

#[test]
fn the_document_is_what_the_code_says() {
    expect_kept("asyncapi.json", &document());
}

#[test]
fn the_document_holds_together() {
    let document = document();
    let is_there = |reference: &Value| {
        let place = reference["$ref"].as_str().and_then(|text| text.strip_prefix('#')).expect("a reference");
        document.pointer(place).unwrap_or_else(|| panic!("there is no {place}"))
    };
    assert_eq!(document["asyncapi"], "3.0.0");
    let channels = document["channels"].as_object().expect("channels");
    for (name, channel) in channels {
        let messages = channel["messages"].as_object().expect("messages");
        assert!(!messages.is_empty() && messages.values().all(|message| is_there(message).is_object()), "{name}");
        let address = channel["address"].as_str().unwrap_or_default();
        let named: BTreeSet<&str> = address.split(['{', '}']).skip(1).step_by(2).collect();
        let told = channel["parameters"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(named, told, "{name}");
        let sample = address.replace("{job}", JOB).replace("{vm}", JOB).replace("{replica}", JOB);
        let sample = sample.replace("{host}", "alpha");
        assert!(name == REPLY || sample.parse::<Subject>().is_ok(), "{sample}");
    }
    let operations = document["operations"].as_object().expect("operations");
    for (name, operation) in operations {
        let both = [Some(operation), operation.get("reply")];
        for side in both.into_iter().flatten() {
            let channel = side["channel"]["$ref"].as_str().expect("a channel");
            is_there(&side["channel"]);
            for message in side["messages"].as_array().expect("messages") {
                is_there(message);
                let of = message["$ref"].as_str().expect("a message");
                assert!(of.starts_with(&format!("{channel}/messages/")), "{name}: {of} is not of {channel}");
            }
        }
        assert_eq!(operation["action"] == "receive", operation.get("reply").is_some(), "{name}");
    }
    let answered: BTreeSet<&str> = operations.keys().filter_map(|name| name.strip_prefix("api.")).collect();
    let endpoints: BTreeSet<String> = ENDPOINTS.iter().map(|(resource, verb)| format!("{resource}.{verb}")).collect();
    assert_eq!(answered, endpoints.iter().map(String::as_str).collect());
}

const JOB: &str = "0197c0de-0000-7000-8000-000000000001";

#[test]
fn what_the_messages_refer_to_is_kept_and_takes_the_examples() {
    let document = document();
    for (name, message) in document["components"]["messages"].as_object().expect("messages") {
        let payload = &message["payload"];
        assert_eq!(payload["schemaFormat"], SCHEMA_FORMAT);
        let text = payload.to_string();
        for file in text.split("schema/").skip(1).filter_map(|rest| rest.split_once(".schema.json")) {
            assert!(path_of(file.0).exists(), "{name}: there is no schema {}", file.0);
        }
    }
    // The payload of each message of the API takes its own kind and no other.
    for (request, _) in examples::requests() {
        let (resource, verb) = request.subject_tokens();
        let message = &document["components"]["messages"][format!("api.{resource}.{verb}")];
        let body = &message["payload"]["schema"]["properties"]["body"]["contentSchema"];
        assert!(takes(body, &examples::json(&request)), "{request:?}");
        let other = &examples::requests()[usize::from(verb == "list" && resource == "host")].0;
        assert!(!takes(body, &examples::json(other)), "{request:?}");
    }
}

/// Whether a schema that stands in the document takes a message.
fn takes(schema: &Value, message: &Value) -> bool {
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    let place = super::documents().canonicalize().expect("the folder").join("asyncapi.json#");
    let place = place.to_string_lossy().trim_end_matches('#').to_owned();
    compiler.add_resource(&place, schema.clone()).expect("a resource");
    let compiled = compiler.compile(&place, &mut schemas).expect("a schema");
    schemas.validate(message, compiled).is_ok()
}
