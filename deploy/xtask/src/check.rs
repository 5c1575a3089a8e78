//! `cargo xtask check`: what a change must pass without being run. Every step is taken, then all failures are named.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{cargo, find_program, output, run, say, target, workspace};
use crate::tidy;

/// The most exposure that `systemd-analyze security` may find, in tenths of its scale; each unit has its own.
const EXPOSURES_MAX: [(&str, &str); 3] =
    [("nats-server.service", "20"), ("sterna-agent.service", "40"), ("sterna-coordinator.service", "20")];

type Step = (&'static str, fn() -> anyhow::Result<()>);

const STEPS: [Step; 6] = [
    ("formatting", || run(cargo().args(["fmt", "--all", "--check"]))),
    ("lints", || run(cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
    ("documentation", || {
        let mut doc = cargo();
        doc.args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"]);
        run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    }),
    ("licences and bans", licences),
    ("systemd units", units),
    ("tidiness", tidiness),
];

/// Takes every step.
///
/// # Errors
/// Names the steps that failed.
pub(crate) fn run_all() -> anyhow::Result<()> {
    let failed = STEPS.iter().filter(|(name, step)| {
        let result = step();
        if let Err(error) = &result {
            say(format_args!("{name}: {error:#}"));
        }
        result.is_err()
    });
    let failed: Vec<&str> = failed.map(|(name, _)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    say("all is well");
    Ok(())
}

fn licences() -> anyhow::Result<()> {
    if find_program("cargo-deny").is_none() {
        say("licences and bans: left out, cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(());
    }
    // Advisories need a database from the network; they are looked up where there is one.
    run(cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]))
}

fn units() -> anyhow::Result<()> {
    let folder = workspace().join("deploy/systemd");
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let units: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "service")).collect();
    if units.is_empty() {
        return Ok(());
    }
    if find_program("systemd-analyze").is_none() {
        say("systemd units: left out, systemd-analyze is not installed (package systemd)");
        return Ok(());
    }
    // What the units start is installed nowhere here: the copies that are verified start a program that is.
    let folder = target().join("units");
    fs::create_dir_all(&folder)?;
    for unit in &units {
        let name = unit.file_name().unwrap_or_default();
        let copy = folder.join(name);
        fs::write(&copy, stand_in(&fs::read_to_string(unit)?))?;
        run(&mut verification(&copy))?;
        let (_, exposure) = EXPOSURES_MAX
            .iter()
            .find(|(limited, _)| name == *limited)
            .with_context(|| format!("{}: EXPOSURES_MAX says nothing of it", name.display()))?;
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager", "--threshold", exposure]).arg(&copy);
        // The table is long; the verdict is what counts.
        output(&mut security)?;
    }
    Ok(())
}

/// What a unit is verified with. Without that option systemd 252 and later warn of a key that they do not know, and succeed.
fn verification(unit: &Path) -> Command {
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(unit);
    command
}

/// A unit with every program replaced by one that is there.
fn stand_in(unit: &str) -> String {
    let line = |line: &str| match line.split_once('=') {
        Some((key, command)) if key.starts_with("Exec") => {
            let rest = command.split_once(' ').map_or("", |(_, rest)| rest);
            format!("{key}=/bin/true {rest}")
        }
        _ => line.to_owned(),
    };
    unit.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn tidiness() -> anyhow::Result<()> {
    let mut list = Command::new("git");
    list.current_dir(workspace()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let files = output(&mut list)?;
    let files: Vec<&str> = files.lines().collect();
    let findings: Vec<String> = files
        .iter()
        .filter_map(|path| Some((path, fs::read_to_string(workspace().join(path)).ok()?)))
        .flat_map(|(path, text)| [tidy::examine(path, &text), tidy::astray(path, &text, &files)])
        .flatten()
        .collect();
    findings.iter().for_each(say);
    if findings.is_empty() { Ok(()) } else { bail!("{} findings", findings.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::succeeds;

    #[test]
    fn a_key_that_is_mistyped_is_no_mere_warning() {
        if find_program("systemd-analyze").is_none() {
            return;
        }
        let folder = target().join("units-of-tests");
        fs::create_dir_all(&folder).expect("a folder");
        for (name, key, passes) in [("right", "NoNewPrivileges", true), ("mistyped", "NoNewPrivilege", false)] {
            let unit = folder.join(format!("{name}.service"));
            fs::write(&unit, format!("[Service]\nExecStart=/bin/true\n{key}=yes\n")).expect("written");
            assert_eq!(succeeds(&mut verification(&unit)), passes, "{name}");
        }
    }
}
