//! Rules of the house that no compiler knows. Each finding names the place, the rule and the way out.

use std::path::Path;

/// A file that is longer is split.
const LINES_MAX: usize = 600;
/// Folder and file names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 4] = ["utils", "common", "helpers", "types"];
/// The one module that may let a guest run: invariant 1.
const MAY_CONT: &str = "agent/src/migration/handover.rs";
/// The modules that may name async-nats, wherever they are.
const MAY_NATS: [&str; 2] = ["bus", "store"];
/// The module of the coordinator's that may, too: there are clients of other things.
const MAY_NATS_CLIENT: &str = "coordinator/src/client";
/// The page whose commands are run as they stand, and what it calls the clone of this repository.
const INSTALL_PAGE: (&str, &str) = ("docs/install.md", "$SRC/");
/// What is made, and is in no repository.
const MADE: &str = "target/";
/// Lines after the name of `qemu-img` within which its arguments stand.
const ARGUMENT_LINES: usize = 12;

/// What is against the rules in the file at `path` (from the root of the workspace).
pub(crate) fn examine(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut find = |line: usize, what: String| findings.push(format!("{path}:{line}: {what}"));

    let stem = Path::new(path).with_extension("");
    let parts: Vec<&str> = stem.iter().filter_map(|part| part.to_str()).collect();
    if let Some(name) = parts.iter().find(|part| EMPTY_NAMES.contains(part)) {
        find(1, format!("{name:?} says nothing: name it for what is inside"));
    }
    if !path.ends_with(".rs") {
        return findings;
    }
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LINES_MAX {
        find(LINES_MAX, format!("{} lines, at most {LINES_MAX}: split it by what it is about", lines.len()));
    }
    // Tests come last in a file, and may do what the code may not.
    let code = lines.iter().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(lines.len());
    let product = ["agent/src/", "coordinator/src/", "shared/src/"].iter().any(|folder| path.starts_with(folder));
    for (line, number) in lines[..code].iter().map(|line| line.trim()).zip(1..) {
        if line.starts_with("//") {
            continue;
        }
        if product && line.contains(".cont(") && path != MAY_CONT {
            find(number, format!("only {MAY_CONT} may let a guest run"));
        }
        let may_nats = parts.iter().any(|part| MAY_NATS.contains(part)) || stem.starts_with(MAY_NATS_CLIENT);
        if product && line.contains("async_nats") && !may_nats {
            find(
                number,
                "only the modules bus and store, and the coordinator's client, name async_nats: go through them".into(),
            );
        }
        if line.contains("Command::new(\"qemu-img\")") {
            let call = &lines[number - 1..(number - 1 + ARGUMENT_LINES).min(lines.len())];
            // One function may run it for several callers of its file: the format is named where they are.
            let passed_on = call.iter().any(|line| line.contains(".args(arguments)"));
            let place = if passed_on { &lines[..code] } else { call };
            if !place.iter().any(|line| line.contains("\"-f\"") || line.contains("\"--version\"")) {
                find(number, "qemu-img without -f trusts what an image says of itself: name the format".into());
            }
        }
    }
    findings
}

/// What the commands of the page at `path` name and the repository, whose files are `files`, does not have; and what they
/// name so that it is found from one directory only.
pub(crate) fn astray(path: &str, text: &str, files: &[&str]) -> Vec<String> {
    let (page, clone) = INSTALL_PAGE;
    if path != page {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut is_command = false;
    for (line, number) in text.lines().zip(1..) {
        if line.starts_with("```") {
            is_command = line == "```sh";
            continue;
        }
        let command = line.split_once(" #").map_or(line, |(command, _)| command);
        for word in command.split_whitespace().filter(|_| is_command) {
            if let Some(named) = word.strip_prefix(clone) {
                if !named.starts_with(MADE) && !files.iter().any(|file| is_meant(named, file)) {
                    findings.push(format!("{path}:{number}: there is no {named} in the repository"));
                }
            } else if word.starts_with(MADE) || files.iter().any(|file| word.contains('/') && is_meant(word, file)) {
                findings.push(format!("{path}:{number}: {word} is found from one directory only: write {clone}{word}"));
            }
        }
    }
    findings
}

/// Whether what is named, with one asterisk at most, is that file or a folder that has it.
fn is_meant(named: &str, file: &str) -> bool {
    match named.split_once('*') {
        Some((head, tail)) => {
            file.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail)).is_some_and(|name| !name.contains('/'))
        }
        None => {
            file.strip_prefix(named.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn finds(path: &str, text: &str, what: &str) {
        let findings = examine(path, text);
        assert!(findings.len() == 1 && findings[0].contains(what), "{findings:?}");
    }

    #[test]
    fn each_rule_finds_its_fault() {
        finds("agent/src/utils/mod.rs", "", "says nothing");
        finds("docs/common.md", "", "says nothing");
        finds("agent/src/service.rs", &"\n".repeat(601), "at most 600");
        finds("agent/src/service.rs", "fn f() {\n    hypervisor.cont().await\n}\n", ":2: only agent/src/migration");
        finds("agent/src/service.rs", "use async_nats::Client;\n", "bus and store");
        finds("agent/src/disk/nbd/client.rs", "use async_nats::Client;\n", "bus and store");
        finds("tests/src/a.rs", "Command::new(\"qemu-img\").args(arguments)\n", "name the format");
        finds("tests/src/a.rs", "Command::new(\"qemu-img\").args([\"convert\", a, b])\n", "name the format");
    }

    #[test]
    fn a_page_names_what_is_there_and_wherever_one_stands() {
        let files = ["deploy/config/agent.toml", "deploy/systemd/sterna-agent.service"];
        let found = |command: &str| astray("docs/install.md", &format!("`deploy/x`\n```sh\n{command}\n```\n"), &files);
        for right in [
            "install $SRC/deploy/config/agent.toml /etc/sterna/  # not deploy/config/agent.toml",
            "install $SRC/deploy/systemd/sterna-*.service $SRC/deploy/systemd $SRC/target/release/sterna /etc/",
            "install ca.pem nats/nkeys/host-alpha.nk /etc/sterna/",
        ] {
            assert_eq!(found(right), Vec::<String>::new());
        }
        for (wrong, what) in [
            ("install $SRC/deploy/config/agents.toml /etc/", ":3: there is no deploy/config/agents.toml"),
            ("install $SRC/deploy/systemd/sterna-*.socket /etc/", ":3: there is no deploy/systemd/sterna-*.socket"),
            ("install deploy/config/agent.toml /etc/", "write $SRC/deploy/config/agent.toml"),
            ("install target/release/sterna /usr/bin/", "write $SRC/target/release/sterna"),
        ] {
            let findings = found(wrong);
            assert!(findings.len() == 1 && findings[0].contains(what), "{findings:?}");
        }
        assert_eq!(astray("docs/other.md", "```sh\ncat deploy/config/agent.toml\n", &files), Vec::<String>::new());
    }

    #[test]
    fn what_is_allowed_is_passed_over() {
        for (path, text) in [
            ("agent/src/migration/handover.rs", "qmp.cont().await\n"),
            ("agent/src/bus/mod.rs", "use async_nats::Client;\n"),
            ("coordinator/src/store.rs", "use async_nats::Client;\n"),
            ("coordinator/src/client.rs", "use async_nats::Client;\n"),
            ("coordinator/src/client/connection.rs", "use async_nats::Client;\n"),
            ("agent/src/service.rs", "// never .cont( here\n#[cfg(test)]\nmod tests { fn f() { qmp.cont(); } }\n"),
            ("tests/src/a.rs", "Command::new(\"qemu-img\")\n    .args([\"create\", \"-f\", format])\n"),
            ("tests/src/a.rs", "Command::new(\"qemu-img\").arg(\"--version\")\n"),
            ("tests/src/a.rs", "run(&[\"info\", \"-f\", f]);\nCommand::new(\"qemu-img\").args(arguments)\n"),
        ] {
            assert_eq!(examine(path, text), Vec::<String>::new());
        }
    }
}
