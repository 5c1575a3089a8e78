//! Where the command finds the fleet: flags, environment, and one small file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sterna_shared::bus::NatsSettings;

use super::error::{CliError, Exit};

/// The largest configuration or specification file that is read.
pub(super) const FILE_LENGTH_MAX: u64 = 1 << 20;
/// Where the system's file is.
const SYSTEM_FILE: &str = "/etc/sterna/sterna.toml";
/// Where the broker is when nothing says otherwise: a broker on this machine without TLS, for trying Sterna out.
const SERVER_DEFAULT: &str = "nats://127.0.0.1:4222";

/// The command's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Who asks, as the coordinators' logs name it. The login name where it is left out.
    pub(super) name: Option<String>,
    /// The broker.
    pub(super) nats: NatsSettings,
}

/// Settings, and where they are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The settings.
    pub(super) settings: Settings,
    /// The file, where there is one.
    pub(super) file: Option<PathBuf>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read; check its path and mode", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is too long to be what it should be.
    #[error("{} has {length} bytes; at most {FILE_LENGTH_MAX} are read", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// A line is wrong.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong there, and what would be right.
        message: String,
    },
}

impl From<FileError> for CliError {
    fn from(error: FileError) -> Self {
        Self::from_source(Exit::Usage, &error)
    }
}

/// Finds the settings: `given` (from `--config` or the environment) or the first of the usual files; `server`
/// overrides the file's brokers.
///
/// # Errors
/// When a file that was named is missing, or one that was found is wrong.
pub(super) fn find(given: Option<&Path>, server: Option<&str>) -> Result<Found, FileError> {
    let file = match given {
        Some(path) => Some(path.to_owned()),
        None => usual_files().into_iter().find(|path| path.exists()),
    };
    let mut settings = match &file {
        Some(path) => read_toml::<Settings>(path)?,
        None => Settings {
            name: None,
            nats: NatsSettings {
                servers: vec![SERVER_DEFAULT.to_owned()],
                ca_file: None,
                nkey_file: None,
                credentials_file: None,
            },
        },
    };
    if let Some(server) = server {
        settings.nats.servers = server.split(',').map(|part| part.trim().to_owned()).collect();
    }
    if let Some(directory) = file.as_deref().and_then(Path::parent) {
        // A relative path means the same wherever the command is run.
        let nats = &mut settings.nats;
        for path in [&mut nats.ca_file, &mut nats.nkey_file, &mut nats.credentials_file].into_iter().flatten() {
            *path = directory.join(&*path);
        }
    }
    Ok(Found { settings, file })
}

fn usual_files() -> Vec<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    home.map(|path| path.join("sterna/sterna.toml")).into_iter().chain([PathBuf::from(SYSTEM_FILE)]).collect()
}

/// Reads a TOML file; an error names the file and the line.
///
/// # Errors
/// See [`FileError`].
pub(super) fn read_toml<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > FILE_LENGTH_MAX {
        return Err(FileError::TooLong { path: path.to_owned(), length });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = error.message().trim().replace('\n', "; ");
        FileError::Line { path: path.to_owned(), line, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sterna.toml");
        fs::write(&path, text).expect("written");
        (directory, path)
    }

    #[test]
    fn a_file_is_read_and_overridden() {
        let (directory, path) = file(
            "name = \"ann\"\n[nats]\nservers = [\"tls://a:4222\"]\nca_file = \"ca.pem\"\nnkey_file = \"/k/ann.nk\"\n",
        );
        let found = find(Some(&path), None).expect("settings");
        assert_eq!(found.settings.nats.servers, ["tls://a:4222"]);
        assert_eq!(found.settings.nats.ca_file, Some(directory.path().join("ca.pem")));
        assert_eq!(found.settings.nats.nkey_file, Some(PathBuf::from("/k/ann.nk")));
        let found = find(Some(&path), Some("tls://b:4222, tls://c:4222")).expect("settings");
        assert_eq!(found.settings.nats.servers, ["tls://b:4222", "tls://c:4222"]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let (_directory, path) = file("[nats]\nservers = [\"tls://a:4222\"]\nca = \"ca.pem\"\n");
        let error = find(Some(&path), None).expect_err("an unknown key");
        let text = error.to_string();
        assert!(text.contains("sterna.toml:3: unknown field `ca`"), "{text}");
        let missing = find(Some(Path::new("/nowhere/sterna.toml")), None).expect_err("missing");
        assert!(matches!(missing, FileError::Read { .. }), "{missing}");
    }
}
