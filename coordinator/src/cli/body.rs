//! Bodies of requests in Google's form that come of a file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::{CliError, Exit};
use crate::google::{BODY_LENGTH_MAX, BodyFault};

/// Reads a body from a file, or from stdin where that is `-`.
pub(super) fn from_file<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, BodyFault>) -> Result<T, CliError> {
    let wrong = |what: String| CliError::new(Exit::Usage, format!("{}: {what}", path.display()));
    let mut text = String::new();
    let reader: io::Result<Box<dyn Read>> = if path == Path::new("-") {
        Ok(Box::new(io::stdin()))
    } else {
        File::open(path).map(|file| Box::new(file) as _)
    };
    // One byte more tells that it is too long.
    let most = BODY_LENGTH_MAX as u64 + 1;
    let read = reader.and_then(|reader| reader.take(most).read_to_string(&mut text));
    read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    parse(&text)
        .map_err(|fault| wrong(fault.to_string()).hint("docs/clone-job.md says of each field what it means here"))
}
