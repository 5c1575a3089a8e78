//! Hooks: scripts of this host's operators, which the helper guest runs in the system of each clone.
//!
//! They are read here and run there, never on this host. Whoever may change one decides what every clone does, so that all that
//! is unusual about them is an error: a clone is not made with half of them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sterna_adapter::protocol::{HOOKS_BYTES_MAX, HOOKS_MAX, Hook};

/// What a directory of hooks holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Those that are run, in the order of their names.
    pub run: Vec<Hook>,
    /// The names of files that nobody may execute, by which a hook is switched off.
    pub left_out: Vec<String>,
}

/// Why hooks cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The directory or a file cannot be read.
    #[error("{} cannot be read; make it, or take `hooks` out of agent.toml", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner could have changed it, or its owner is somebody else.
    #[error("{} can be changed by others than root and the agent's user; chown root and chmod go-w it", path.display())]
    Writable {
        /// The directory or the file.
        path: PathBuf,
    },
    /// It has another kind of name.
    #[error("{} is no name of a hook; give letters, digits, - and _ only, and begin a file with a point that is none", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// It is a link, a directory or something else.
    #[error("{} is no plain file; put the hook itself there, and no link to it", path.display())]
    NotPlain {
        /// The file.
        path: PathBuf,
    },
    /// It is no script.
    #[error("{} is no script; begin it with #! and an interpreter of the guest, and write it in UTF-8", path.display())]
    NotScript {
        /// The file.
        path: PathBuf,
    },
    /// There are too many.
    #[error("{} has more than {HOOKS_MAX} files; have one hook do what several did", path.display())]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// They are too long together.
    #[error("with {} the hooks have more than {HOOKS_BYTES_MAX} bytes; have it fetch from the clone's system what it needs", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the hooks of a directory.
///
/// # Errors
/// [`HookError`], about the first of them.
pub fn read(directory: &Path) -> Result<Hooks, HookError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |errno: Errno| HookError::Read { path, source: errno.into() }
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed(directory))?;
    expect_ours(directory, &rustix::fs::fstat(&opened).map_err(failed(directory))?)?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&opened).map_err(failed(directory))? {
        let name = entry.map_err(failed(directory))?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
        if names.len() > HOOKS_MAX {
            return Err(HookError::TooMany { path: directory.to_owned() });
        }
    }
    names.sort();
    let (mut hooks, mut room) = (Hooks::default(), HOOKS_BYTES_MAX);
    for name in names {
        let path = directory.join(&name);
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return Err(HookError::Name { path });
        }
        // Not blocking: nobody may be at the other end of a pipe.
        let file = match rustix::fs::openat(&opened, &name, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty())
        {
            Err(Errno::LOOP | Errno::NXIO) => return Err(HookError::NotPlain { path }),
            file => file.map_err(failed(&path))?,
        };
        let status = rustix::fs::fstat(&file).map_err(failed(&path))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(HookError::NotPlain { path });
        }
        expect_ours(&path, &status)?;
        if !Mode::from_raw_mode(status.st_mode).contains(Mode::XUSR) {
            hooks.left_out.push(name);
            continue;
        }
        let mut script = Vec::new();
        let read = File::from(file).take(room as u64 + 1).read_to_end(&mut script);
        read.map_err(|source| HookError::Read { path: path.clone(), source })?;
        room = room.checked_sub(script.len()).ok_or_else(|| HookError::TooLong { path: path.clone() })?;
        let script = String::from_utf8(script).ok().filter(|text| text.starts_with("#!"));
        hooks.run.push(Hook { name, script: script.ok_or(HookError::NotScript { path })? });
    }
    Ok(hooks)
}

fn expect_ours(path: &Path, status: &Stat) -> Result<(), HookError> {
    let owners = [0, rustix::process::geteuid().as_raw()];
    let of_others = Mode::from_raw_mode(status.st_mode).intersects(Mode::WGRP | Mode::WOTH);
    match owners.contains(&status.st_uid) && !of_others {
        true => Ok(()),
        false => Err(HookError::Writable { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const SCRIPT: &str = "#!/bin/sh\n";

    fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>, mode: u32) {
        fs::write(folder.join(name), content).expect("written");
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        put(folder.path(), "50-b", SCRIPT, 0o755);
        folder
    }

    #[test]
    fn hooks_are_in_the_order_of_their_names() {
        let folder = folder();
        put(folder.path(), "10-a", "#!/bin/sh\necho a\n", 0o700);
        put(folder.path(), "README", "what these are", 0o644);
        put(folder.path(), ".10-a.swp", [0; 9], 0o777);
        let hook = |name: &str, script: &str| Hook { name: name.to_owned(), script: script.to_owned() };
        let run = vec![hook("10-a", "#!/bin/sh\necho a\n"), hook("50-b", SCRIPT)];
        assert_eq!(read(folder.path()).expect("hooks"), Hooks { run, left_out: vec!["README".to_owned()] });
    }

    #[test]
    fn what_is_unusual_about_a_hook_is_told_by_its_name() {
        type Plant = fn(&Path);
        let faults: [(Plant, &str, &str); 13] = [
            (|at| symlink("50-b", at.join("60-c")).expect("a link"), "60-c", "no plain file"),
            (|at| symlink("/etc", at.join("60-c")).expect("a link"), "60-c", "no plain file"),
            (|at| fs::create_dir(at.join("60-c")).expect("a folder"), "60-c", "no plain file"),
            (|at| drop(std::os::unix::net::UnixListener::bind(at.join("60-c"))), "60-c", "no plain file"),
            (|at| put(at, "60-c", SCRIPT, 0o775), "60-c", "chmod go-w"),
            (|at| put(at, "60-c", SCRIPT, 0o757), "60-c", "chmod go-w"),
            (|at| put(at, "60-c.sh", SCRIPT, 0o755), "60-c.sh", "no name of a hook"),
            (|at| put(at, "60 c\n", SCRIPT, 0o755), "60 c\n", "no name of a hook"),
            (|at| put(at, "60-c", "echo\n", 0o755), "60-c", "no script"),
            (|at| put(at, "60-c", b"#!\xff", 0o755), "60-c", "no script"),
            (|at| put(at, "60-c", [SCRIPT.as_bytes(), &[b'#'; HOOKS_BYTES_MAX - 19]].concat(), 0o755), "60-c", "bytes"),
            (
                |at| (0..HOOKS_MAX).for_each(|count| put(at, &format!("{count}"), SCRIPT, 0o755)),
                "",
                "more than 16 files",
            ),
            (|at| fs::set_permissions(at, fs::Permissions::from_mode(0o777)).expect("a mode"), "", "chmod go-w"),
        ];
        for (plant, name, what) in faults {
            let folder = folder();
            plant(folder.path());
            let error = read(folder.path()).expect_err(what).to_string();
            let path = folder.path().join(name);
            let path = path.to_str().expect("text").trim_end_matches('/');
            assert!(error.contains(&format!("{path} ")) && error.contains(what), "{what}: {error}");
        }
        let error = read(Path::new("/no/such/folder")).expect_err("none").to_string();
        assert!(error.contains("/no/such/folder cannot be read"), "{error}");
        let folder = folder();
        put(folder.path(), "60-c", [SCRIPT.as_bytes(), &[b'#'; HOOKS_BYTES_MAX - 20]].concat(), 0o755);
        assert_eq!(read(folder.path()).expect("just so long").run.len(), 2);
    }
}
