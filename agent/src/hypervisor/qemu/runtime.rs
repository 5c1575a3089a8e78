//! The runtime directory of one QEMU: where its sockets, logs and process id are.
//!
//! An agent that starts anew finds a guest by this directory alone, so its names are part of what an upgrade must keep.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The longest path of a UNIX socket on Linux, in bytes (`sun_path` less the closing zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The longest file name in a runtime directory, in bytes.
const FILE_NAME_BYTES_MAX: usize = 24;

/// A directory of one QEMU, or of one storage daemon; only the agent's user may enter it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDirectory {
    path: PathBuf,
}

impl RuntimeDirectory {
    /// Names a directory; nothing is made yet.
    ///
    /// # Errors
    /// [`RuntimeError::Unusable`] where the path is relative, no text, or too long for the sockets in it.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, RuntimeError> {
        let path = path.into();
        let fits = path.as_os_str().len() + 1 + FILE_NAME_BYTES_MAX <= SOCKET_PATH_BYTES_MAX;
        if !fits || !path.is_absolute() || path.to_str().is_none_or(|text| text.contains(char::is_control)) {
            return Err(RuntimeError::Unusable { path });
        }
        Ok(Self { path })
    }

    /// Makes the directory, open to this user only, and removes what an earlier process left in it but its logs.
    ///
    /// # Errors
    /// [`RuntimeError::Io`].
    pub fn create(&self) -> Result<(), RuntimeError> {
        let io = |source| RuntimeError::Io { path: self.path.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(io)?;
        std::fs::set_permissions(&self.path, PermissionsExt::from_mode(0o700)).map_err(io)?;
        for entry in std::fs::read_dir(&self.path).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if matches!(path.extension().and_then(|end| end.to_str()), Some("sock" | "pid")) {
                std::fs::remove_file(&path).map_err(|source| RuntimeError::Io { path: path.clone(), source })?;
            }
        }
        Ok(())
    }

    /// Removes the directory with all that is in it. It being gone already is no error.
    ///
    /// # Errors
    /// [`RuntimeError::Io`].
    pub fn remove(&self) -> Result<(), RuntimeError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::Io { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The monitor that belongs to the agent.
    #[must_use]
    pub fn qmp_socket(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    /// A second monitor, for people who look for a fault.
    #[must_use]
    pub fn diagnosis_socket(&self) -> PathBuf {
        self.path.join("diagnosis.sock")
    }

    /// The serial console; it serves one client.
    #[must_use]
    pub fn console_socket(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    /// What went over the serial console, whether anybody was connected or not.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The guest's end of the QEMU guest agent.
    #[must_use]
    pub fn guest_agent_socket(&self) -> PathBuf {
        self.path.join("guest-agent.sock")
    }

    /// What a helper guest is told, and reports.
    #[must_use]
    pub fn adapter_socket(&self) -> PathBuf {
        self.path.join("adapter.sock")
    }

    /// Where this QEMU serves its disks.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.path.join("nbd.sock")
    }

    /// Where memory leaves (at the source, the agent listens) or arrives (at the target, QEMU listens).
    #[must_use]
    pub fn memory_socket(&self) -> PathBuf {
        self.path.join("memory.sock")
    }

    /// The process id, as QEMU writes it.
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.path.join("qemu.pid")
    }

    /// What QEMU says on its standard output and error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("qemu.log")
    }
}

/// Why a runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The configured path will not do.
    #[error(
        "{path:?} cannot be a runtime directory; give an absolute path of plain text and at most {} bytes, such as /run/sterna/guests/…",
        SOCKET_PATH_BYTES_MAX - FILE_NAME_BYTES_MAX - 1
    )]
    Unusable {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot prepare {path:?}; check its owner, its permissions and the space left")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_fit_and_stale_ones_go() {
        assert!(RuntimeDirectory::new("relative").is_err());
        assert!(RuntimeDirectory::new(format!("/{}", "x".repeat(90))).is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = RuntimeDirectory::new(folder.path().join("guest")).expect("a directory");
        runtime.create().expect("made");
        for file in [runtime.qmp_socket(), runtime.pid_file(), runtime.log()] {
            assert!(file.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
            std::fs::write(file, "").expect("written");
        }
        runtime.create().expect("made anew");
        assert!(!runtime.qmp_socket().exists() && !runtime.pid_file().exists() && runtime.log().exists());
        let mode = std::fs::metadata(runtime.path()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        runtime.remove().expect("removed");
        runtime.remove().expect("removed twice");
        assert!(!runtime.path().exists());
    }
}
