//! Messages of a real fleet, held against the schemas that are published in docs/schema.

use std::path::Path;

use anyhow::{Context as _, anyhow, ensure};
use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;

/// The kinds of document that the feed has, each with its schema.
const FEED: [&str; 4] = ["job", "host", "vm", "replica"];

/// One schema, read from its file.
pub struct Schema {
    name: String,
    schemas: Schemas,
    index: SchemaIndex,
}

impl Schema {
    /// Reads docs/schema/`name`.schema.json.
    ///
    /// # Errors
    /// Where it is not there, or is no schema.
    pub fn read(name: &str) -> anyhow::Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema");
        let path = folder.join(format!("{name}.schema.json"));
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.enable_format_assertions();
        let index = compiler
            .compile(&path.to_string_lossy(), &mut schemas)
            .map_err(|error| anyhow!("{}: {error:#}", path.display()))?;
        Ok(Self { name: name.to_owned(), schemas, index })
    }

    /// Holds a message against the schema.
    ///
    /// # Errors
    /// Where it is not of it: every place at which it is not, and the message.
    pub fn expect(&self, message: &Value) -> anyhow::Result<()> {
        let held = self.schemas.validate(message, self.index);
        held.map_err(|error| anyhow!("no {} by its schema: {error}\n{message:#}", self.name))
    }
}

/// The schemas of the feed's documents.
pub struct FeedSchemas {
    schemas: [Schema; FEED.len()],
}

impl FeedSchemas {
    /// Reads them.
    ///
    /// # Errors
    /// Where one is not there, or is no schema.
    pub fn read() -> anyhow::Result<Self> {
        let [job, host, vm, replica] = FEED.map(Schema::read);
        Ok(Self { schemas: [job?, host?, vm?, replica?] })
    }

    /// Holds a document against the schema of what its subject says it is of.
    ///
    /// # Errors
    /// Where it is not of it, or the subject is not of the feed.
    pub fn expect(&self, subject: &str, document: &Value) -> anyhow::Result<()> {
        let mut tokens = subject.strip_prefix("sterna.v1.feed.").context("a subject of the feed")?.split('.');
        let kind = tokens.next().unwrap_or_default();
        ensure!(tokens.next().is_some() && tokens.next().is_none(), "{subject} is no subject of the feed");
        let schema = self.schemas.iter().find(|schema| schema.name == kind);
        schema.with_context(|| format!("{subject} is of no kind with a schema"))?.expect(document)
    }
}
