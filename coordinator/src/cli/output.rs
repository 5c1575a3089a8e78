//! Where output goes: results to stdout, everything else to stderr; tables for people, JSON for programs, CIM for
//! programs that know Hyper-V's jobs, and Google's resources for those that know Migrate to VMs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use sterna_shared::time::Timestamp;

use super::error::{CliError, Exit};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Tables and sentences.
    Table,
    /// JSON: one document, or one a line where a command goes on telling.
    Json,
    /// Of a job: the properties of CIM's `Msvm_MigrationJob`, in JSON.
    Cim,
    /// Of a job: the same as a CIM-XML instance.
    CimXml,
    /// Of replications and clones: the resources of Google's Migrate to VMs, in JSON.
    Google,
}

impl Format {
    /// Its name on the command line, if it is one that only some commands have.
    #[must_use]
    pub(super) const fn face(self) -> Option<&'static str> {
        match self {
            Self::Table | Self::Json => None,
            Self::Cim => Some("cim"),
            Self::CimXml => Some("cim-xml"),
            Self::Google => Some("google"),
        }
    }
}

/// The two streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    /// How results are written.
    pub(super) format: Format,
}

impl Output {
    /// Whether programs read the results.
    #[must_use]
    pub(super) fn for_programs(self) -> bool {
        self.format != Format::Table
    }

    /// Whether a person sees stderr as it is written, so that lines may be drawn over.
    #[must_use]
    pub(super) fn draws(self) -> bool {
        !self.for_programs() && io::stderr().is_terminal()
    }

    /// A result: `value` for programs, `text` for people.
    ///
    /// # Errors
    /// When stdout cannot be written to.
    pub(super) fn result<T: Serialize + ?Sized>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        if self.for_programs() { self.json(value) } else { self.document(&text()) }
    }

    /// A result that is JSON whoever reads it.
    ///
    /// # Errors
    /// When stdout cannot be written to.
    pub(super) fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(|error| CliError::from_source(Exit::Failed, &error))?;
        self.document(&text)
    }

    /// A result that is text already.
    ///
    /// # Errors
    /// When stdout cannot be written to.
    pub(super) fn document(self, text: &str) -> Result<(), CliError> {
        write_out(format!("{text}\n").as_bytes())
    }

    /// One of several results: for programs one document on one line, for people nothing.
    ///
    /// # Errors
    /// When stdout cannot be written to.
    pub(super) fn json_line<T: Serialize>(self, value: &T) -> Result<(), CliError> {
        if !self.for_programs() {
            return Ok(());
        }
        let text = serde_json::to_string(value).map_err(|error| CliError::from_source(Exit::Failed, &error))?;
        write_out(format!("{text}\n").as_bytes())
    }

    /// A remark. That stderr is closed is no reason to fail.
    pub(super) fn remark(self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// An error, in the form that was asked for.
    pub(super) fn error(self, error: &CliError) {
        self.remark(&if self.for_programs() { error.json().to_string() } else { error.text() });
    }
}

/// Writes to stdout. A reader that has gone away (`sterna … | head`) ends the command quietly.
///
/// # Errors
/// When stdout cannot be written to for another reason.
pub(super) fn write_out(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::from_source(Exit::Failed, &error)),
        _ => Ok(()),
    }
}

/// A table of columns with headings, as plain text.
#[must_use]
pub(super) fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    trimmed(&table.to_string())
}

/// Pairs of a name and a value, one a line.
#[must_use]
pub(super) fn pairs(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    trimmed(&table.to_string())
}

fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    // The first column needs no space before it.
    let indent = lines.iter().filter(|line| !line.is_empty()).map(|line| line.len() - line.trim_start().len()).min();
    lines.iter().map(|line| line.get(indent.unwrap_or(0)..).unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// An instant for people, to the second; the exact one is in the JSON.
#[must_use]
pub(super) fn moment(at: Timestamp) -> String {
    format!("{} UTC", at.to_string().chars().take(19).collect::<String>().replace('T', " "))
}

/// Something that may be missing, for a table.
#[must_use]
pub(super) fn or_dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
