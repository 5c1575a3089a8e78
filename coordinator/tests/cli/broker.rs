//! A nats-server of a test's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long the broker may take to start, and a denied message to be known as such.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A nats-server of this test's own; ends with it.
pub(crate) struct Broker {
    process: std::process::Child,
    pub(crate) url: String,
    _directory: tempfile::TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn nats_server() -> PathBuf {
    let named = std::env::var_os("STERNA_NATS_SERVER").map(PathBuf::from);
    let on_path = std::env::var_os("PATH").and_then(|paths| {
        std::env::split_paths(&paths).map(|path| path.join("nats-server")).find(|path| path.is_file())
    });
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/nats-server");
    named
        .or(on_path)
        .or(Some(tool).filter(|path| path.is_file()))
        .expect("no nats-server: put one on PATH, at target/tools/nats-server, or name it in STERNA_NATS_SERVER")
}

impl Broker {
    /// Starts on a free port, by that configuration if there is one.
    pub(crate) fn start(configuration: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(nats_server());
        if let Some(path) = configuration {
            command.arg("-c").arg(path);
        }
        let process = command
            .args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        let ports = directory.path().to_owned();
        // Made before the wait, so that a broker that never gets ready is ended by its guard all the same.
        let mut broker = Self { process, url: String::new(), _directory: directory };
        let deadline = std::time::Instant::now() + PATIENCE;
        broker.url = loop {
            let known = std::fs::read_dir(&ports).expect("the directory").find_map(|entry| {
                let text = std::fs::read_to_string(entry.ok()?.path()).ok()?;
                let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
                Some(ports["nats"][0].as_str()?.to_owned())
            });
            if let Some(url) = known {
                break url;
            }
            assert!(std::time::Instant::now() < deadline, "nats-server did not say where it listens");
            std::thread::park_timeout(Duration::from_millis(20));
        };
        broker
    }
}
