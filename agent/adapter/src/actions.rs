//! What is changed of a system, each by itself: one that cannot be done is told, and the others are done all the same.
//!
//! Files are written in place, so that their owners, rights and labels stay. A job that is cut in the middle throws the clone's
//! disks away, so none of this has to be atomic; but a file that is left half written must end the job.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::OFlags;

use crate::boot::BootError;
use crate::hosts::Names;
use crate::protocol::{Action, Report};
use crate::worker::Task;
use crate::{fstab, rules};

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

pub(crate) type Told = io::Result<()>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undone {
    /// What it is about is as it was.
    #[error(transparent)]
    AsItWas(#[from] io::Error),
    /// A file is neither what it was nor what it was to be: nothing more is done.
    #[error("half written: {0}")]
    HalfWritten(io::Error),
    /// A script of the host's operators: what it has done is in the system, and nobody knows what it has not.
    #[error("hook {name}: {why}")]
    Hook { name: String, why: io::Error },
    /// What hooks need cannot be had, or one of them does not let go of it.
    #[error("hooks have no place to be run in, or leave something running there")]
    Place(#[from] BootError),
    /// Nobody can be told any more.
    #[error("what was done cannot be said")]
    Untold(#[source] io::Error),
}

/// What a part of an action did; none where there was nothing to do.
type Outcome = Result<Option<String>, Undone>;

/// What came of an action. Nothing of either where there was nothing to change.
#[derive(Debug, Default)]
struct Tally {
    done: Vec<String>,
    left: Vec<String>,
}

impl Tally {
    /// Counts what came of a part of it.
    fn count(&mut self, outcome: Outcome) -> Result<(), Undone> {
        match outcome {
            Ok(done) => self.done.extend(done),
            Err(Undone::AsItWas(error)) => self.left.push(error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn report(self, action: Action) -> Option<Report> {
        let (done, left) = (self.done.join("; "), self.left.join("; "));
        match (done.is_empty(), left.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Report::Left { action, text: left }),
            (false, true) => Some(Report::Changed { action, text: done }),
            (false, false) => Some(Report::Changed { action, text: format!("{done}; not done: {left}") }),
        }
    }
}

/// Does all of them, and says of each what came of it.
///
/// # Errors
/// [`Undone`], but never [`Undone::AsItWas`], which costs no more than its own part of an action.
pub(crate) fn all(task: &Task, say: &mut dyn FnMut(Report) -> Told) -> Result<(), Undone> {
    type Do = fn(&Task, &mut Tally) -> Result<(), Undone>;
    let actions: [(Action, Do); 6] = [
        (Action::Hostname, hostname),
        (Action::MachineId, machine_id),
        (Action::HostKeys, host_keys),
        (Action::RandomSeed, random_seed),
        (Action::NetworkRules, network_rules),
        (Action::Fstab, fstab),
    ];
    for (action, run) in actions {
        let mut tally = Tally::default();
        let outcome = run(task, &mut tally);
        tally.count(outcome.map(|()| None))?;
        if let Some(report) = tally.report(action) {
            say(report).map_err(Undone::Untold)?;
        }
    }
    Ok(())
}

fn hostname(task: &Task, tally: &mut Tally) -> Result<(), Undone> {
    let old = found(read_bytes("/etc/hostname"))?.unwrap_or_default();
    let names = Names::of(&String::from_utf8_lossy(&old), &task.order.hostname);
    write("/etc/hostname", &format!("{}\n", names.new))?;
    let was = if names.old.is_empty() { "not set" } else { &names.old };
    tally.done.push(format!("{}, which was {was}", names.new));
    if let Some(hosts) = found(read("/etc/hosts"))?
        && let Some(renamed) = names.renamed(&hosts)
    {
        write("/etc/hosts", &renamed)?;
    }
    Ok(())
}

fn machine_id(task: &Task, tally: &mut Tally) -> Result<(), Undone> {
    let new = &task.order.machine_id;
    // Where it is empty or not set yet the guest makes one by itself when it starts.
    let has_one = |text: &str| text.trim().len() == 32;
    let renew = |path: &str| -> Outcome {
        let own = fs::symlink_metadata(path).is_ok_and(|of| of.is_file());
        if !own || !found(read(path))?.is_some_and(|text| has_one(&text)) {
            return Ok(None);
        }
        write(path, &format!("{new}\n"))?;
        Ok(Some(format!("{new}, in {path}")))
    };
    ["/etc/machine-id", "/var/lib/dbus/machine-id"].into_iter().try_for_each(|path| tally.count(renew(path)))
}

fn host_keys(task: &Task, tally: &mut Tally) -> Result<(), Undone> {
    let Some(entries) = found(fs::read_dir(SSH))? else { return Ok(()) };
    let mut kinds: Vec<String> =
        entries.flatten().filter_map(|entry| kind_of_key(entry.file_name().to_str()?)).collect();
    kinds.sort();
    kinds.truncate(HOST_KEYS_MAX);
    let outcome = kinds.iter().try_for_each(|kind| host_key(kind, &task.order.hostname, tally));
    // Whatever came of them: a spare key is a secret that nobody looks after.
    for spare in [KEY_IN_THE_MAKING.to_owned(), public(KEY_IN_THE_MAKING)] {
        tally.count(remove(&spare).map(|_| None).map_err(Undone::from))?;
    }
    outcome
}

fn host_key(kind: &str, hostname: &str, tally: &mut Tally) -> Result<(), Undone> {
    let path = format!("{SSH}/ssh_host_{kind}_key");
    let Err(why) = make_key(kind, &path, hostname) else {
        tally.done.push(format!("made anew: {kind}"));
        return Ok(());
    };
    // One that somebody else has is worse than none: the guest makes what is missing, or refuses to be reached.
    let removed = [remove(&path), remove(&public(&path))];
    match (removed.into_iter().find_map(Result::err), why) {
        (None, why) => tally.done.push(format!("removed, as it could not be made: {kind} ({why})")),
        (Some(error), Undone::AsItWas(why)) => tally.left.push(format!("{kind}: {why}; {error}")),
        (Some(_), why) => return Err(why),
    }
    Ok(())
}

/// Of `ssh_host_ed25519_key`, `ed25519`.
fn kind_of_key(name: &str) -> Option<String> {
    let kind = name.strip_prefix("ssh_host_")?.strip_suffix("_key")?;
    (kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !kind.is_empty()).then(|| kind.to_owned())
}

fn public(path: &str) -> String {
    format!("{path}.pub")
}

fn make_key(kind: &str, path: &str, hostname: &str) -> Result<(), Undone> {
    remove(KEY_IN_THE_MAKING)?;
    remove(&public(KEY_IN_THE_MAKING))?;
    let status = Command::new(KEYGEN)
        .args(["-q", "-N", "", "-t", kind, "-C", &format!("root@{hostname}"), "-f", KEY_IN_THE_MAKING])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(at(Path::new(KEYGEN)))?;
    if !status.success() {
        return Err(io::Error::other(format!("{KEYGEN} ended with {status}")).into());
    }
    write(path, &read(KEY_IN_THE_MAKING)?)?;
    write(&public(path), &read(public(KEY_IN_THE_MAKING))?)
}

fn random_seed(_: &Task, tally: &mut Tally) -> Result<(), Undone> {
    let take_away = |path: &str| -> Outcome { Ok(remove(path)?.then(|| format!("{path} removed"))) };
    SEEDS.into_iter().try_for_each(|path| tally.count(take_away(path)))
}

fn network_rules(_: &Task, tally: &mut Tally) -> Result<(), Undone> {
    let take_out = |path: &str| -> Outcome {
        // One that leads to /dev/null was put there to have none.
        if !fs::symlink_metadata(path).is_ok_and(|of| of.is_file()) {
            return Ok(None);
        }
        let Some((kept, count)) = rules::without_addresses(&read(path)?) else { return Ok(None) };
        if kept.is_empty() {
            remove(path)?;
            return Ok(Some(format!("{path} removed")));
        }
        write(path, &kept)?;
        Ok(Some(format!("{count} that match by address taken out of {path}")))
    };
    RULES.into_iter().try_for_each(|path| tally.count(take_out(path)))
}

fn fstab(task: &Task, tally: &mut Tally) -> Result<(), Undone> {
    let Some((text, names)) = fstab::by_uuid(&read("/etc/fstab")?, &task.devices) else { return Ok(()) };
    write("/etc/fstab", &text)?;
    tally.done.push(format!("{} by UUID", names.join(", ")));
    Ok(())
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
fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    String::from_utf8(read_bytes(path)?).map_err(|_| at(path)(io::Error::other("not text in UTF-8")))
}

/// Reads a file, of some length, whatever its text is written in.
pub(crate) fn read_bytes(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    let length = open(path, OFlags::RDONLY)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(at(path))?;
    if u64::try_from(length).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(at(path)(io::Error::other(format!("longer than {FILE_BYTES_MAX} bytes"))));
    }
    Ok(bytes)
}

/// Writes a file in place; one that was not there is made, for everybody to read.
fn write(path: &str, text: &str) -> Result<(), Undone> {
    let path = Path::new(path);
    overwrite(&mut open(path, OFlags::WRONLY | OFlags::CREATE)?, path, text.as_bytes())
}

/// Until its first byte is written a file is what it was; so it is cut to its new length last.
fn overwrite(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), Undone> {
    let first = loop {
        match file.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => break outcome.map_err(at(path))?,
        }
    };
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let rest = file.write_all(bytes.get(first..).unwrap_or_default()).and_then(|()| file.set_len(length));
    rest.map_err(|error| Undone::HalfWritten(at(path)(error)))
}

/// Opens a regular file; a pipe or a device in its place holds nobody up.
pub(crate) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
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
    fn what_is_done_is_said_with_what_is_not() {
        let report = |parts: Vec<Outcome>| {
            let mut tally = Tally::default();
            parts.into_iter().for_each(|part| tally.count(part).expect("no more than left"));
            tally.report(Action::HostKeys)
        };
        let (done, left) = (|| Ok(Some("rsa".to_owned())), || Err(io::Error::other("why").into()));
        let (action, text) = (Action::HostKeys, |text: &str| text.to_owned());
        assert_eq!(report(vec![Ok(None)]), None);
        assert_eq!(report(vec![done(), done()]), Some(Report::Changed { action, text: text("rsa; rsa") }));
        assert_eq!(report(vec![left(), Ok(None)]), Some(Report::Left { action, text: text("why") }));
        assert_eq!(report(vec![left(), done()]), Some(Report::Changed { action, text: text("rsa; not done: why") }));
        let torn = Tally::default().count(Err(Undone::HalfWritten(io::Error::other("torn"))));
        assert!(matches!(torn, Err(Undone::HalfWritten(_))), "it is no part of an action: {torn:?}");
    }

    #[test]
    fn a_write_that_fails_leaves_a_file_as_it_was_or_ends_everything() {
        let outcome = |path: &str| {
            let mut file = File::options().write(true).open(path).expect("a device");
            overwrite(&mut file, Path::new(path), b"text").expect_err("no file")
        };
        let full = outcome("/dev/full");
        assert!(matches!(full, Undone::AsItWas(_)) && full.to_string().starts_with("/dev/full: "), "{full:?}");
        let uncut = outcome("/dev/null");
        assert!(matches!(uncut, Undone::HalfWritten(_)), "written, and of no length: {uncut:?}");
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
        fs::write(&path, b"gr\xfc\xdfe").expect("written");
        assert!(read(&path).expect_err("another code").to_string().contains("UTF-8"));
        assert_eq!(read_bytes(&path).expect("read"), b"gr\xfc\xdfe");
    }
}
