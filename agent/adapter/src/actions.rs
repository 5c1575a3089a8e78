//! What is changed of a system, each by itself: one that cannot be done is told, and the others are done all the same.
//!
//! Files are written in place, so that their owners, rights and labels stay. A job that is cut in the middle throws the clone's
//! disks away, so none of this has to be atomic.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::OFlags;

use crate::fstab;
use crate::protocol::{Action, Report};
use crate::worker::Task;

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// The most host keys that are made anew.
const HOST_KEYS_MAX: usize = 8;
const KEYGEN: &str = "/usr/bin/ssh-keygen";
/// Where a key is made, whose content is then put in the place of the old one.
const KEY_IN_THE_MAKING: &str = "/etc/ssh/.sterna-key";
const SSH: &str = "/etc/ssh";
/// Where a system keeps what the next start's random numbers begin with.
const SEEDS: [&str; 2] = ["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed"];
/// Rules that older systems write down, one for each address that they have seen.
const RULES: [&str; 2] = ["/etc/udev/rules.d/70-persistent-net.rules", "/etc/udev/rules.d/80-net-name-slot.rules"];

type Told = io::Result<()>;

/// What came of an action: a sentence where something was changed, none where there was nothing to change.
type Outcome = io::Result<Option<String>>;

/// Does all of them, and says of each what came of it.
pub(crate) fn all(task: &Task, say: &mut dyn FnMut(Report) -> Told) -> Told {
    type Do = fn(&Task) -> Outcome;
    let actions: [(Action, Do); 6] = [
        (Action::Hostname, hostname),
        (Action::MachineId, machine_id),
        (Action::HostKeys, host_keys),
        (Action::RandomSeed, random_seed),
        (Action::NetworkRules, network_rules),
        (Action::Fstab, fstab),
    ];
    for (action, run) in actions {
        match run(task) {
            Ok(Some(text)) => say(Report::Changed { action, text })?,
            Ok(None) => {}
            Err(error) => say(Report::Left { action, text: error.to_string() })?,
        }
    }
    Ok(())
}

fn hostname(task: &Task) -> Outcome {
    let new = &task.order.hostname;
    let old = found(read("/etc/hostname"))?.unwrap_or_default();
    let old = old.trim();
    write("/etc/hostname", &format!("{new}\n"))?;
    if let Some(hosts) = found(read("/etc/hosts"))?
        && let Some(renamed) = renamed(&hosts, old, new)
    {
        write("/etc/hosts", &renamed)?;
    }
    Ok(Some(format!("{new}, which was {}", if old.is_empty() { "not set" } else { old })))
}

/// A table of hosts in which one has another name; none where the old one is not in it.
fn renamed(hosts: &str, old: &str, new: &str) -> Option<String> {
    // The machine itself is called so in every table.
    if old.is_empty() || old == "localhost" {
        return None;
    }
    let word = |word: &str| -> String {
        let bare = word.trim_end();
        let space = &word[bare.len()..];
        match bare.strip_prefix(old) {
            Some(rest) if rest.is_empty() || rest.starts_with('.') => format!("{new}{rest}{space}"),
            _ => word.to_owned(),
        }
    };
    let line = |line: &str| -> String {
        let (text, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
        let words: String = text.split_inclusive([' ', '\t', '\n']).map(word).collect();
        words + comment
    };
    let changed: String = hosts.split_inclusive('\n').map(line).collect();
    (changed != hosts).then_some(changed)
}

fn machine_id(task: &Task) -> Outcome {
    let new = &task.order.machine_id;
    // Where it is empty or not set yet the guest makes one by itself when it starts.
    let has_one = |text: &str| text.trim().len() == 32;
    let mut changed = Vec::new();
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        let own = fs::symlink_metadata(path).is_ok_and(|of| of.is_file());
        if own && found(read(path))?.is_some_and(|text| has_one(&text)) {
            write(path, &format!("{new}\n"))?;
            changed.push(path);
        }
    }
    Ok((!changed.is_empty()).then(|| format!("{new}, in {}", changed.join(" and "))))
}

fn host_keys(task: &Task) -> Outcome {
    let Some(entries) = found(fs::read_dir(SSH))? else { return Ok(None) };
    let mut kinds: Vec<String> =
        entries.flatten().filter_map(|entry| kind_of_key(entry.file_name().to_str()?)).collect();
    kinds.sort();
    kinds.truncate(HOST_KEYS_MAX);
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for kind in kinds {
        let path = format!("{SSH}/ssh_host_{kind}_key");
        match make_key(&kind, &path, &task.order.hostname) {
            Ok(()) => made.push(kind),
            // One that somebody else has is worse than none: the guest makes what is missing, or refuses to be reached.
            Err(_) => {
                remove(&path)?;
                remove(&format!("{path}.pub"))?;
                removed.push(kind);
            }
        }
    }
    for left in [KEY_IN_THE_MAKING.to_owned(), format!("{KEY_IN_THE_MAKING}.pub")] {
        remove(&left)?;
    }
    let told = [("made anew: ", made), ("removed, as they could not be made: ", removed)];
    let told: Vec<String> = told
        .into_iter()
        .filter(|(_, kinds)| !kinds.is_empty())
        .map(|(what, kinds)| format!("{what}{}", kinds.join(", ")))
        .collect();
    Ok((!told.is_empty()).then(|| told.join("; ")))
}

/// Of `ssh_host_ed25519_key`, `ed25519`.
fn kind_of_key(name: &str) -> Option<String> {
    let kind = name.strip_prefix("ssh_host_")?.strip_suffix("_key")?;
    (kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !kind.is_empty()).then(|| kind.to_owned())
}

fn make_key(kind: &str, path: &str, hostname: &str) -> io::Result<()> {
    let public = |path: &str| format!("{path}.pub");
    remove(KEY_IN_THE_MAKING)?;
    remove(&public(KEY_IN_THE_MAKING))?;
    let status = Command::new(KEYGEN)
        .args(["-q", "-N", "", "-t", kind, "-C", &format!("root@{hostname}"), "-f", KEY_IN_THE_MAKING])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("{KEYGEN} ended with {status}")));
    }
    write(path, &read(KEY_IN_THE_MAKING)?)?;
    write(&public(path), &read(public(KEY_IN_THE_MAKING))?)
}

fn random_seed(_: &Task) -> Outcome {
    let mut removed = Vec::new();
    for path in SEEDS {
        if remove(path)? {
            removed.push(path);
        }
    }
    Ok((!removed.is_empty()).then(|| format!("{} removed", removed.join(" and "))))
}

fn network_rules(_: &Task) -> Outcome {
    let mut removed = Vec::new();
    for path in RULES {
        // One that leads to /dev/null was put there to have none.
        if fs::symlink_metadata(path).is_ok_and(|of| of.is_file()) && remove(path)? {
            removed.push(path);
        }
    }
    Ok((!removed.is_empty()).then(|| format!("{} removed", removed.join(" and "))))
}

fn fstab(task: &Task) -> Outcome {
    let Some((text, names)) = fstab::by_uuid(&read("/etc/fstab")?, &task.devices) else { return Ok(None) };
    write("/etc/fstab", &text)?;
    Ok(Some(format!("{} by UUID", names.join(", "))))
}

/// What is not there is none, and no fault.
fn found<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a file of text, of some length.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    let mut text = String::new();
    let length = open(path, OFlags::RDONLY)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(at(path))?;
    if u64::try_from(length).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(at(path)(io::Error::other(format!("longer than {FILE_BYTES_MAX} bytes"))));
    }
    Ok(text)
}

/// Writes a file in place; one that was not there is made, for everybody to read.
fn write(path: &str, text: &str) -> io::Result<()> {
    let path = Path::new(path);
    let mut file = open(path, OFlags::WRONLY | OFlags::CREATE)?;
    file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(at(path))
}

/// Opens a regular file; a pipe or a device in its place holds nobody up.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let mut options = File::options();
    options.read(!flags.contains(OFlags::WRONLY)).write(flags.contains(OFlags::WRONLY));
    options.create(flags.contains(OFlags::CREATE)).truncate(false).mode(0o644);
    let nonblocking = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let file = options.custom_flags(nonblocking).open(path).map_err(at(path))?;
    match file.metadata() {
        Ok(of) if of.is_file() => Ok(file),
        Ok(_) => Err(at(path)(io::Error::other("not a regular file"))),
        Err(error) => Err(at(path)(error)),
    }
}

/// Removes a file; whether it was there.
fn remove(path: &str) -> io::Result<bool> {
    Ok(found(fs::remove_file(path).map_err(at(Path::new(path))))?.is_some())
}

/// Names the file that an error is about.
fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + use<> {
    let path: PathBuf = path.to_owned();
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_new_name_in_the_table_of_hosts() {
        let hosts = "127.0.0.1\tlocalhost\n127.0.1.1\tweb.example web # web\n10.0.0.2 webmail my.web web2\n::1 web";
        let expected =
            "127.0.0.1\tlocalhost\n127.0.1.1\ttrial.example trial # web\n10.0.0.2 webmail my.web web2\n::1 trial";
        assert_eq!(renamed(hosts, "web", "trial").as_deref(), Some(expected));
        assert_eq!(renamed(hosts, "other", "trial"), None);
        assert_eq!(renamed(hosts, "localhost", "trial"), None, "that name is everybody's");
        assert_eq!(renamed(hosts, "", "trial"), None);
    }

    #[test]
    fn kinds_of_keys_are_those_of_their_files() {
        assert_eq!(kind_of_key("ssh_host_ed25519_key").as_deref(), Some("ed25519"));
        for other in ["ssh_host_ed25519_key.pub", "ssh_host__key", "ssh_host_-f_key", "ssh_host_a/b_key", "moduli"] {
            assert_eq!(kind_of_key(other), None, "{other}");
        }
    }

    #[test]
    fn files_are_written_in_place_and_others_are_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let text = path.to_str().expect("text");
        write(text, "a longer text").expect("made");
        let before = std::os::unix::fs::MetadataExt::ino(&path.metadata().expect("there"));
        write(text, "short").expect("written");
        assert_eq!(read(&path).expect("read"), "short");
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&path.metadata().expect("there")), before);
        assert!(remove(text).expect("removed") && !remove(text).expect("gone"));
        assert!(found(read(&path)).expect("no fault").is_none());
        let error = read(folder.path()).expect_err("a folder").to_string();
        assert!(error.contains("not a regular file"), "{error}");
        fs::write(&path, vec![b'a'; 300 << 10]).expect("written");
        assert!(read(&path).expect_err("too long").to_string().contains("longer than"));
    }
}
