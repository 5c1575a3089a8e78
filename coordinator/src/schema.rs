//! What is public, as documents for programs: a JSON Schema of each message in docs/schema, and docs/asyncapi.json, which says
//! on what subject each is. They are made of the types and lists of the code, here, in its tests; messages are held against
//! the files that are kept.
//!
//! ```text
//!   types ──schemars──▶ docs/schema/*.json ◀──boon── messages of the tests: feed, view, snapshots, examples
//!   Subject, ENDPOINTS, examples ─▶ docs/asyncapi.json
//! ```
//!
//! After a change that is meant, `STERNA_WRITE_DOCS=1 cargo test -p sterna-coordinator --lib schema` writes both anew.

mod asyncapi;
mod examples;
mod messages;

use std::path::PathBuf;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};
use sterna_shared::bus::{ApiReply, ApiRequest, Envelope};
use sterna_shared::view::cim::{MigrationJob, MsvmError};

pub(crate) use examples::requests;

use crate::feed::{HostDocument, ReplicaDocument, VmDocument};
use crate::view::{JobView, PlanView};

const WRITE: &str = "STERNA_WRITE_DOCS";

/// A schema that is kept.
struct Kept {
    /// The file's name, without its ending.
    name: &'static str,
    /// What it is of, in a few words.
    title: &'static str,
    make: fn() -> Schema,
}

/// Each message that Sterna writes is described as it is written: nothing that is there is optional. Requests are described
/// as they are read.
const SCHEMAS: &[Kept] = &[
    Kept { name: "job", title: "A job, as the feed and sterna job show tell it", make: written::<JobView> },
    Kept { name: "host", title: "A host, as the feed tells it", make: written::<HostDocument> },
    Kept { name: "vm", title: "A VM, as the feed tells it", make: written::<VmDocument> },
    Kept { name: "replica", title: "A replication, as the feed tells it", make: written::<ReplicaDocument> },
    Kept { name: "plan", title: "A plan, as sterna migrate --dry-run shows it", make: written::<PlanView> },
    Kept { name: "migration-job", title: "A job as Msvm_MigrationJob of CIM", make: written::<MigrationJob> },
    Kept { name: "msvm-error", title: "An error as Msvm_Error of CIM", make: written::<MsvmError> },
    Kept { name: "envelope", title: "What each message of the API is wrapped in", make: written::<Envelope> },
    Kept { name: "api-request", title: "A request of the API, the body of an envelope", make: read::<ApiRequest> },
    Kept { name: "api-reply", title: "An answer of the API, the body of an envelope", make: written::<ApiReply> },
];

fn written<T: JsonSchema>() -> Schema {
    // Readers must bear with fields that are new, also where Sterna itself refuses to read what it does not know.
    let open = RecursiveTransform(|schema: &mut Schema| {
        if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
            schema.remove("additionalProperties");
        }
    });
    let settings = SchemaSettings::draft2020_12().for_serialize().with_transform(RecursiveTransform(plain));
    settings.with_transform(open).into_generator().into_root_schema_for::<T>()
}

fn read<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_deserialize().with_transform(RecursiveTransform(plain));
    settings.into_generator().into_root_schema_for::<T>()
}

/// Links of the code's documentation lead nowhere outside of it.
fn plain(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = without_links(&text.replace('\n', " "));
    }
}

fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, linked)) = rest.split_once('[') {
        plain.push_str(before);
        let (inside, after) = linked.split_once(']').unwrap_or((linked, ""));
        plain.push_str(inside);
        rest = match after.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, after)) => after,
            None => after,
        };
    }
    plain + rest
}

fn documents() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn path_of(name: &str) -> PathBuf {
    documents().join(format!("schema/{name}.schema.json"))
}

/// A schema that is kept, read from its file.
struct Judge {
    schemas: boon::Schemas,
    index: boon::SchemaIndex,
}

impl Judge {
    #[track_caller]
    fn of(name: &str) -> Self {
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.enable_format_assertions();
        match compiler.compile(&path_of(name).to_string_lossy(), &mut schemas) {
            Ok(index) => Self { schemas, index },
            Err(error) => panic!("{error:#}"),
        }
    }

    fn takes(&self, message: &Value) -> bool {
        self.schemas.validate(message, self.index).is_ok()
    }

    #[track_caller]
    fn expect(&self, message: &Value) {
        if let Err(fault) = self.schemas.validate(message, self.index) {
            panic!("{fault}\n{message:#}");
        }
    }
}

/// Holds a message against the schema of that name.
#[track_caller]
pub(crate) fn expect_valid(name: &str, message: &Value) {
    Judge::of(name).expect(message);
}

/// Holds a document against the file that is kept, or writes it.
#[track_caller]
fn expect_kept(file: &str, document: &Value) {
    let text = format!("{document:#}\n");
    let path = documents().join(file);
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder can be made");
        std::fs::write(&path, &text).expect("the file can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = text.lines().zip(kept.lines()).position(|(is, was)| is != was);
    let differs = differs.unwrap_or_else(|| text.lines().count().min(kept.lines().count())) + 1;
    assert!(
        text == kept,
        "docs/{file} is not what the code says, from line {differs} on; to write it anew: {WRITE}=1 cargo test -p \
         sterna-coordinator --lib schema"
    );
}

#[test]
fn the_schemas_are_what_the_types_say() {
    for kept in SCHEMAS {
        let mut schema = json!({ "$schema": "", "title": "", "description": "" });
        let (Value::Object(ordered), Value::Object(made)) = (&mut schema, Value::from((kept.make)())) else {
            panic!("{} is an object", kept.name)
        };
        ordered.extend(made);
        ordered.insert("title".to_owned(), json!(kept.title));
        expect_kept(&format!("schema/{}.schema.json", kept.name), &schema);
    }
    let files = std::fs::read_dir(documents().join("schema")).expect("the folder");
    assert_eq!(files.count(), SCHEMAS.len(), "a file in docs/schema is of no type");
}

#[test]
fn links_of_the_code_are_words_elsewhere() {
    assert_eq!(without_links("At most [`X`], see [there](crate::there) or `[0]`."), "At most `X`, see there or `0`.");
    assert_eq!(without_links("no link"), "no link");
}
