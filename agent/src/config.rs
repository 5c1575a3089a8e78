//! `/etc/sterna/agent.toml`: what this host is and what it may touch.
//!
//! Everything is checked before anything starts. A fault names the file, the line and what to write instead.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sterna_shared::bus::NatsSettings;
use sterna_shared::host::{Accelerator, Limits};
use sterna_shared::id::{BridgeName, HostId, PoolName, ProbeName};
use sterna_shared::units::ByteCount;

use crate::disk::pool::VolumeGroupName;
use crate::journal::retention::{JOBS_DAYS_MAX, JOBS_MAX_LEAST, Retention};

/// The most addresses an agent listens on or advertises: a peer tries each in turn.
pub const ADDRESSES_MAX: usize = 8;
/// For how long the images of a move that was cut are kept where the configuration does not say: a day.
pub const KEEP_PARTIAL_SECONDS: u32 = 24 * 3600;
/// The longest path of a runtime directory: a UNIX socket's whole path must stay below 108 bytes.
pub const RUNTIME_PATH_LENGTH_MAX: usize = 40;

/// The most words of a command that probes a guest, its program included.
pub const COMMAND_WORDS_MAX: usize = 32;
/// The most such commands.
pub const PROBE_COMMANDS_MAX: usize = 32;

/// The agent's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's id: the one in its certificate.
    pub host: HostId,
    /// Where the data-plane port listens.
    pub listen: Vec<SocketAddr>,
    /// Where peers reach it, best first; the listening addresses where it is left out.
    #[serde(default)]
    pub advertise: Vec<SocketAddr>,
    /// What must survive a reboot: the journal.
    #[serde(default = "state_directory")]
    pub state_directory: PathBuf,
    /// What need not: sockets, pid files, console logs.
    #[serde(default = "runtime_directory")]
    pub runtime_directory: PathBuf,
    /// Kernels and RAM disks for direct boot.
    #[serde(default)]
    pub boot_directory: Option<PathBuf>,
    /// The helper guest that adapts the systems of clones; without it they are left as they are.
    #[serde(default)]
    pub adapter: Option<AdapterSettings>,
    /// Commands that a rehearsed guest may be probed with: the program, with its whole path, and its arguments.
    #[serde(default)]
    pub probe_commands: BTreeMap<ProbeName, Vec<String>>,
    /// How guests are executed; found out by trying where it is left out.
    #[serde(default)]
    pub accelerator: Option<Accelerator>,
    /// The bridges that guests may be on.
    #[serde(default)]
    pub bridges: Vec<BridgeName>,
    /// Where images live.
    pub pools: BTreeMap<PoolName, PoolSettings>,
    /// For how long the images of a move that was cut are kept for the next, in seconds; 0 keeps none.
    #[serde(default = "keep_partial_seconds")]
    pub keep_partial_seconds: u32,
    /// Whether the copy of a stopped VM is written past the host's page cache and so read back from the medium. It is
    /// slower where one device does both; without it the proof is of what the kernel gives back, and is flushed.
    #[serde(default)]
    pub prove_on_medium: bool,
    /// What the host takes on at once, as long as operators set nothing else.
    #[serde(default)]
    pub limits: Limits,
    /// For how long jobs are remembered that are over.
    #[serde(default)]
    pub retention: Retention,
    /// The broker.
    pub nats: NatsSettings,
    /// This host's certificate.
    pub tls: TlsSettings,
}

/// A pool: a directory or a volume group, one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSettings {
    /// Its directory.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// Its volume group of LVM, in which disks are logical volumes.
    #[serde(default)]
    pub volume_group: Option<VolumeGroupName>,
    /// What storage it is, where several hosts see the same directory: the same text on each.
    #[serde(default)]
    pub shared: Option<String>,
    /// What replication leaves free of it for guests; a tenth of it, or 4 GiB where that is less, if it is left out.
    #[serde(default)]
    pub headroom: Option<ByteCount>,
}

/// The helper guest that gives the system of a clone an identity of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSettings {
    /// Its kernel.
    pub kernel: PathBuf,
    /// The initramfs that holds it, made for that kernel.
    pub initrd: PathBuf,
    /// The directory with the hooks: scripts that it runs in the system of each clone.
    #[serde(default)]
    pub hooks: Option<PathBuf>,
    /// Whether a clone is made all the same where a hook fails.
    #[serde(default)]
    pub hooks_may_fail: bool,
}

/// Certificate files, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The fleet's authority.
    pub ca_file: PathBuf,
    /// This host's certificate chain, leaf first.
    pub certificate_file: PathBuf,
    /// Its key, mode 0600.
    pub key_file: PathBuf,
}

fn keep_partial_seconds() -> u32 {
    KEEP_PARTIAL_SECONDS
}

fn state_directory() -> PathBuf {
    PathBuf::from("/var/lib/sterna")
}

fn runtime_directory() -> PathBuf {
    PathBuf::from("/run/sterna")
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("the configuration {} cannot be read; name another with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not the TOML that is expected.
    #[error("{}, line {line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there and what is expected.
        message: String,
    },
    /// Its values do not go together.
    #[error("{}: {}", path.display(), faults.join("; "))]
    Faults {
        /// The file.
        path: PathBuf,
        /// Each fault with its remedy.
        faults: Vec<String>,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is not the expected TOML, or its values do not go together.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is only for messages.
    ///
    /// # Errors
    /// As [`Config::load`], but for reading.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
            ConfigError::Parse { path: path.to_owned(), line, message: error.message().to_owned() }
        })?;
        if config.advertise.is_empty() {
            config.advertise.clone_from(&config.listen);
        }
        let faults = config.faults();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults { path: path.to_owned(), faults }) }
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (key, addresses) in [("listen", &self.listen), ("advertise", &self.advertise)] {
            if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
                faults.push(format!("{key} has {} addresses; give 1 to {ADDRESSES_MAX}", addresses.len()));
            }
        }
        for address in &self.advertise {
            if address.ip().is_unspecified() || address.port() == 0 {
                faults.push(format!("advertise has {address}, which no peer can reach; give an address of this host"));
            }
        }
        if self.pools.is_empty() {
            faults.push("there is no pool; add a section [pools.NAME] with a directory or a volume_group".to_owned());
        }
        for (name, pool) in &self.pools {
            if pool.directory.is_some() == pool.volume_group.is_some() {
                faults.push(format!("pools.{name} needs either a directory or a volume_group; give one of the two"));
            }
            if pool.volume_group.is_some() && pool.shared.is_some() {
                faults.push(format!("pools.{name} is a volume group, which is one host's alone; leave out shared"));
            }
            if pool.volume_group.is_some() && pool.headroom.is_some() {
                faults.push(format!("pools.{name} is a volume group, into which nothing grows; leave out headroom"));
            }
        }
        let directories =
            self.pools.iter().filter_map(|(name, pool)| Some((format!("pools.{name}"), pool.directory.as_ref()?)));
        let adapter = self.adapter.iter().flat_map(|of| {
            let files = [("kernel", &of.kernel), ("initrd", &of.initrd)];
            files.into_iter().chain(of.hooks.as_ref().map(|hooks| ("hooks", hooks)))
        });
        for (key, path) in adapter.filter(|(_, path)| !path.is_absolute()) {
            faults.push(format!("adapter.{key} is {}; give an absolute path", path.display()));
        }
        for (name, command) in &self.probe_commands {
            if !command.first().is_some_and(|program| program.starts_with('/')) || command.len() > COMMAND_WORDS_MAX {
                faults.push(format!(
                    "probe_commands.{name} is {command:?}; give a program's whole path and up to {} arguments",
                    COMMAND_WORDS_MAX - 1
                ));
            }
        }
        if self.probe_commands.len() > PROBE_COMMANDS_MAX {
            faults
                .push(format!("there are more than {PROBE_COMMANDS_MAX} probe_commands; have one do what several did"));
        }
        for (key, directory) in directories.chain([
            ("state_directory".to_owned(), &self.state_directory),
            ("runtime_directory".to_owned(), &self.runtime_directory),
        ]) {
            if !directory.is_absolute() {
                faults.push(format!("{key} is {}; give an absolute path", directory.display()));
            }
        }
        if self.runtime_directory.as_os_str().len() > RUNTIME_PATH_LENGTH_MAX {
            faults.push(format!(
                "runtime_directory {} is longer than {RUNTIME_PATH_LENGTH_MAX} bytes, and sockets in it would not fit the system's limit; give a shorter one",
                self.runtime_directory.display()
            ));
        }
        for server in &self.nats.servers {
            if !server.starts_with("tls://") && !server.starts_with("nats://") {
                faults.push(format!("nats.servers has {server:?}; give an address such as tls://nats.example:4222"));
            }
        }
        let Retention { jobs_days, jobs_max } = self.retention;
        if jobs_days > JOBS_DAYS_MAX {
            faults.push(format!("retention.jobs_days is {jobs_days}; give 0 to {JOBS_DAYS_MAX}"));
        }
        if jobs_max < JOBS_MAX_LEAST {
            faults.push(format!("retention.jobs_max is {jobs_max}; give at least {JOBS_MAX_LEAST}"));
        }
        if self.nats.servers.is_empty() {
            faults.push("nats.servers is empty; give at least one address such as tls://nats.example:4222".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r#"
host = "alpha"
listen = ["0.0.0.0:7411"]
advertise = ["10.0.0.1:7411"]

[pools.fast]
directory = "/srv/fast"

[nats]
servers = ["tls://10.0.0.9:4222"]

[tls]
ca_file = "/etc/sterna/ca.pem"
certificate_file = "/etc/sterna/host.pem"
key_file = "/etc/sterna/host.key"
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_sound_file_is_taken() {
        let config = parse(SOUND).expect("sound");
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.keep_partial_seconds, 86_400);
        assert_eq!(config.runtime_directory, Path::new("/run/sterna"));
        assert!(config.pools.values().all(|pool| pool.headroom.is_none()));
        let config = parse(&SOUND.replace("\"/srv/fast\"", "\"/srv/fast\"\nheadroom = \"1 GiB\"")).expect("sound");
        assert!(config.pools.values().all(|pool| pool.headroom == Some(ByteCount::mebibytes(1024))));
    }

    #[test]
    fn limits_are_taken_one_by_one() {
        let limits = |text: &str| parse(&format!("{SOUND}\n[limits]\n{text}\n")).map(|config| config.limits);
        let old = Limits { outbound_moves_max: 2, inbound_moves_max: 3, lanes_max: 8, ..Limits::default() };
        assert_eq!(limits("outbound_moves_max = 2\ninbound_moves_max = 3\nlanes_max = 8"), Ok(old));
        let new = Limits { enabled: false, storage_moves_max: 1, ..Limits::default() };
        assert_eq!(limits("enabled = false\nstorage_moves_max = 1"), Ok(new));
        let error = limits("storage_moves = 1").expect_err("unknown key");
        assert!(error.contains("storage_moves") && error.contains("storage_moves_max"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse(&SOUND.replace("directory =", "path =")).expect_err("unknown key");
        assert!(error.contains("line 7") && error.contains("path") && error.contains("directory"), "{error}");
    }

    #[test]
    fn a_pool_is_a_directory_or_a_volume_group() {
        let group = SOUND.replace("directory = \"/srv/fast\"", "volume_group = \"vg0\"");
        let config = parse(&group).expect("sound");
        let name =
            config.pools.values().next().and_then(|pool| pool.volume_group.as_ref()).map(VolumeGroupName::as_str);
        assert_eq!(name, Some("vg0"));
        for (text, part) in [
            (SOUND.replace("directory = \"/srv/fast\"", ""), "either a directory or a volume_group"),
            (
                SOUND.replace("\"/srv/fast\"", "\"/srv/fast\"\nvolume_group = \"vg0\""),
                "either a directory or a volume_group",
            ),
            (group.replace("\"vg0\"", "\"vg0\"\nshared = \"san\""), "leave out shared"),
            (group.replace("\"vg0\"", "\"vg0\"\nheadroom = \"1 GiB\""), "leave out headroom"),
            (SOUND.replace("\"/srv/fast\"", "\"/srv/fast\"\nheadroom = \"much\""), "is not a size"),
            (group.replace("vg0", "../sda"), "no name of a volume group"),
        ] {
            let error = parse(&text).expect_err("a fault");
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let text =
            SOUND.replace("10.0.0.1:7411", "0.0.0.0:7411").replace("/srv/fast", "fast").replace("tls://", "http://");
        let text = format!("{text}\n[retention]\njobs_days = 4000\njobs_max = 1\n");
        let text = format!("{text}\n[adapter]\nkernel = \"/k\"\ninitrd = \"/i\"\nhooks = \"adapt.d\"\n");
        let text = format!("{text}\n[probe_commands]\norders = [\"orders-answer\"]\nmail = []\n");
        let error = parse(&text).expect_err("faults");
        for part in [
            "advertise has 0.0.0.0:7411",
            "pools.fast is fast",
            "http://10.0.0.9:4222",
            "jobs_days is 4000",
            "jobs_max is 1;",
            "adapter.hooks is adapt.d",
            "probe_commands.mail is []",
            "probe_commands.orders is [\"orders-answer\"]; give a program's whole path",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
