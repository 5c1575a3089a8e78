//! The worker: this program once more, inside the guest's root. It looks what system that is, or adapts it.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::protocol::{Order, Report};
use crate::{ROOT, actions, boot, chain, hooks, say};

/// This program, whatever its file is called.
pub(crate) const PROGRAM: &str = "/proc/self/exe";
/// The longest task that is read, in bytes.
const TASK_BYTES_MAX: u64 = 2 << 20;
const CLOUD_INIT: &str = "/usr/bin/cloud-init";
/// Where this is, cloud-init does nothing.
const CLOUD_INIT_DISABLED: &str = "/etc/cloud/cloud-init.disabled";

/// What a worker is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Says what system it is.
    Look,
    /// Changes it.
    Adapt,
}

impl Mode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Adapt => "adapt",
        }
    }

    pub(crate) fn of(text: &str) -> Option<Self> {
        [Self::Look, Self::Adapt].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// What a worker that looks has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct System {
    /// What it calls itself.
    pub(crate) name: String,
    /// Whether cloud-init is in it, and runs.
    pub(crate) cloud_init: bool,
}

/// What a worker that adapts is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Who the clone is.
    pub(crate) order: Order,
    /// Of each device by its name in the guest, the UUID of what is on it.
    pub(crate) devices: BTreeMap<String, String>,
}

/// Does what the mode says, and ends the process.
pub(crate) fn run(mode: Mode) -> ! {
    let outcome = enter().and_then(|()| match mode {
        Mode::Look => look(),
        Mode::Adapt => adapt(),
    });
    match outcome {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            boot::console(&format!("the worker that was to {}: {}", mode.as_str(), chain(&*error)));
            std::process::exit(1)
        }
    }
}

/// From here on the guest's root is all there is.
fn enter() -> Result<(), crate::Fault> {
    rustix::process::chroot(ROOT)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn look() -> Result<(), crate::Fault> {
    let release = actions::read_bytes("/etc/os-release")?;
    actions::open(Path::new("/etc/fstab"), OFlags::RDONLY)?;
    let is_there = |path| Path::new(path).exists();
    let system = System {
        name: name_of(&String::from_utf8_lossy(&release)),
        cloud_init: is_there(CLOUD_INIT) && !is_there(CLOUD_INIT_DISABLED),
    };
    Ok(serde_json::to_writer(io::stdout().lock(), &system)?)
}

/// What a system calls itself in its `os-release`.
fn name_of(release: &str) -> String {
    let value = |key: &str| {
        let found = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(found.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "a system without a name".to_owned())
}

fn adapt() -> Result<(), crate::Fault> {
    let mut text = String::new();
    io::stdin().lock().take(TASK_BYTES_MAX).read_to_string(&mut text)?;
    let task: Task = serde_json::from_str(&text)?;
    boot::mount_kernel("devtmpfs", "/dev")?;
    let mut tell = |report: Report| say(&mut io::stdout().lock(), &report);
    let outcome = actions::all(&task, &mut tell).and_then(|()| hooks::all(&task.order, &mut tell));
    // Said here, where it is known what failed; pid 1 knows only that something did.
    if let Err(error) = &outcome {
        tell(Report::Failed { text: chain(error) })?;
    }
    boot::unmount("/dev")?;
    Ok(outcome?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_has_the_name_that_it_gives_itself() {
        assert_eq!(name_of("NAME=\"Debian\"\nPRETTY_NAME=\"Debian 12 (bookworm)\"\n"), "Debian 12 (bookworm)");
        assert_eq!(name_of("NAME='Alpine Linux'\nPRETTY_NAME=\"\""), "Alpine Linux");
        assert_eq!(name_of("ID=x"), "a system without a name");
    }

    #[test]
    fn modes_read_as_they_are_written() {
        for mode in [Mode::Look, Mode::Adapt] {
            assert_eq!(Mode::of(mode.as_str()), Some(mode));
        }
        assert_eq!(Mode::of("quiet"), None);
    }
}
