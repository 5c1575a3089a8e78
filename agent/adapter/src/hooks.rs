//! Hooks: scripts of the host's operators, run in the guest's root when all else is done, one after another.
//!
//! They are in memory, as is what they say, so that nothing of them stays in the system but what they have done. One that takes
//! too long is killed, with what it has started; what it leaves running all the same keeps the file system from being unmounted,
//! which fails the step.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::actions::{Told, Undone};
use crate::boot;
use crate::protocol::{Action, HOOK_WAIT, Hook, Order, Report};

/// Where they are, in the guest's root. Nothing that is there at a start was there before it.
const FOLDER: &str = "/run";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const POLL: Duration = Duration::from_millis(20);
/// As much of the end of what a hook says as is looked at, in bytes.
const WORDS_BYTES: u64 = 1 << 10;

/// Runs all of them, and says of each what came of it.
///
/// # Errors
/// [`Undone`]: one has failed that may not, or what they need cannot be had.
pub(crate) fn all(order: &Order, say: &mut dyn FnMut(Report) -> Told) -> Result<(), Undone> {
    if order.hooks.is_empty() {
        return Ok(());
    }
    boot::mount_memory(FOLDER)?;
    boot::mount_kernel("proc", "/proc")?;
    let outcome = order.hooks.iter().try_for_each(|hook| {
        let text = match run(hook, order, FOLDER, HOOK_WAIT) {
            Ok(words) if words.is_empty() => hook.name.clone(),
            Ok(words) => format!("{}: {words}", hook.name),
            Err(why) if order.hooks_may_fail => format!("{}: {why}; the configuration lets it fail", hook.name),
            Err(why) => return Err(Undone::Hook { name: hook.name.clone(), why }),
        };
        say(Report::Changed { action: Action::Hook, text }).map_err(Undone::Untold)
    });
    let unmounted = ["/proc", FOLDER].into_iter().try_for_each(boot::unmount);
    outcome.and(unmounted.map_err(Undone::from))
}

/// Runs one to its end: the last that it says.
fn run(hook: &Hook, order: &Order, folder: &str, wait: Duration) -> io::Result<String> {
    let path = format!("{folder}/{}", hook.name);
    let mut file = File::options().write(true).create_new(true).mode(0o700).open(&path)?;
    file.write_all(hook.script.as_bytes())?;
    drop(file);
    // Not a pipe, which something that it leaves behind would hold open.
    let words = File::options().read(true).write(true).create_new(true).open(format!("{path}.said"))?;
    let mut command = Command::new(&path);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
    command.env("STERNA_HOSTNAME", &order.hostname).env("STERNA_MACHINE_ID", &order.machine_id);
    command.current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words.try_clone()?);
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);
    let in_time = has_ended(pid, wait);
    // Before it is reaped: until then the group is its own.
    kill_process_group(pid, Signal::KILL)?;
    let status = child.wait()?;
    let said = last_line(&words)?;
    let ended = match in_time? {
        true if status.success() => return Ok(said),
        true => format!("it ended with {status}"),
        false => format!("it was not over after {wait:?}"),
    };
    Err(io::Error::other(if said.is_empty() { ended } else { format!("{ended}: {said}") }))
}

/// Waits for its end; whether it came in time.
fn has_ended(pid: Pid, wait: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + wait;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), look)?.is_none() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// The last line that is not empty.
fn last_line(words: &File) -> io::Result<String> {
    let length = words.metadata()?.len();
    let mut end = vec![0; usize::try_from(length.min(WORDS_BYTES)).map_err(io::Error::other)?];
    words.read_exact_at(&mut end, length.saturating_sub(WORDS_BYTES))?;
    let end = String::from_utf8_lossy(&end);
    Ok(end.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_hook_is_run_to_its_end_and_leaves_nothing_running() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let order = Order {
            hostname: "trial".into(),
            machine_id: "0123".into(),
            disks: vec![],
            hooks: vec![],
            hooks_may_fail: false,
        };
        let outcome = |name: &str, script: &str, wait: Duration| {
            let hook =
                Hook { name: name.to_owned(), script: script.replace("FOLDER", folder.path().to_str().expect("text")) };
            run(&hook, &order, folder.path().to_str().expect("text"), wait).map_err(|error| error.to_string())
        };
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(300));
        let said =
            outcome("who", "#!/bin/sh\nid=$STERNA_MACHINE_ID\necho a; echo $STERNA_HOSTNAME $id $STERNA; echo\n", long);
        assert_eq!(said.as_deref(), Ok("trial 0123"));
        assert_eq!(outcome("quiet", "#!/bin/sh\n", long).as_deref(), Ok(""));
        let failed = outcome("fails", "#!/bin/sh\necho first\necho why >&2\nexit 3\n", long).expect_err("fails");
        assert!(failed.contains("exit status: 3") && failed.ends_with(": why"), "{failed}");
        assert!(outcome("none", "#!/no/such/program\n", long).is_err());
        assert!(outcome("none", "#!/bin/sh\n", long).is_err(), "it is there already");
        let much = outcome("much", "#!/bin/sh\nhead -c 4000000 /dev/zero | tr '\\0' a\n", long).expect("over");
        assert!(much.len() <= 1024, "{}", much.len());
        let left = "#!/bin/sh\n(sleep 600; touch FOLDER/late) & echo $! > FOLDER/pid\n";
        assert_eq!(outcome("leaves", left, long).as_deref(), Ok(""));
        let child: i32 = fs::read_to_string(path("pid")).expect("a number").trim().parse().expect("a number");
        let is_gone = || fs::read_to_string(format!("/proc/{child}/stat")).map_or(true, |stat| stat.contains(") Z "));
        let deadline = Instant::now() + long;
        while !is_gone() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        assert!(is_gone() && !path("late").exists(), "what it left behind was killed");
        let begun = Instant::now();
        let slow = outcome("slow", "#!/bin/sh\necho begun\nsleep 600\n", short).expect_err("too slow");
        assert_eq!(slow, "it was not over after 300ms: begun");
        assert!(begun.elapsed() < long, "it was killed and not waited for");
    }
}
