//! The helper guest: the one program that touches the file systems of a clone, and it does so in a machine of its own.
//!
//! A guest's file system is hostile to the kernel that mounts it. No kernel of a host ever does: the agent gives the clone's disks
//! to a QEMU without a network and without privileges, which boots this, a static program, as pid 1 of an initramfs.
//!
//! ```text
//!   agent ── Order ──▶ port ──▶ pid 1: mounts each file system, read-only, and looks for the system
//!                                 │
//!                                 ├─ one: mounted to be written ──▶ worker, in a chroot of it: the actions, one after another,
//!                                 │                                    │     and then the hooks of the host's operators
//!                                 │                                    │
//!   agent ◀── Reports, a line each ── port ◀────────────────────────────┘
//!                                 └─ unmounted, said to be over, powered off
//! ```
//!
//! The worker is this program once more, inside a chroot of the guest's root: no link in there leads out of it. What it runs of
//! the guest's own (`ssh-keygen`, all that a hook calls) can do no more than the guest can to itself. All that is said here is the
//! guest's word: the agent bounds it, in length and in time, and believes nothing but that it was said.
//!
//! The library half ([`protocol`]) is what the agent uses.

pub mod protocol;

mod actions;
mod boot;
mod fstab;
mod hooks;
mod hosts;
mod identify;
mod rules;
mod worker;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use protocol::{LINE_BYTES_MAX, ORDER_BYTES_MAX, Order, Report};

/// Where the guest's root is mounted.
const ROOT: &str = "/root";
/// How long the agent may take to say what there is to do.
const ORDER_WAIT: Duration = Duration::from_secs(60);
const ORDER_POLL: Duration = Duration::from_millis(10);

/// Runs as pid 1, or as the worker, as the first argument says.
pub fn run() {
    let mode = std::env::args_os().nth(1);
    if let Some(mode) = mode.as_deref().and_then(OsStr::to_str).and_then(worker::Mode::of) {
        worker::run(mode);
    }
    if let Err(error) = adapt() {
        boot::console(&format!("ADAPTER FAILED {}", chain(&*error)));
    }
    boot::power_off();
}

type Fault = Box<dyn std::error::Error>;

fn adapt() -> Result<(), Fault> {
    boot::mount_all()?;
    boot::load_modules()?;
    let mut port = File::options().read(true).write(true).open(boot::find_port()?)?;
    let order: Order = serde_json::from_slice(&first_line(&port, ORDER_WAIT)?)?;
    let outcome = look_and_adapt(&order, &port);
    if let Err(error) = &outcome {
        say(&mut port, &Report::Failed { text: chain(&**error) })?;
    } else {
        say(&mut port, &Report::Over)?;
    }
    Ok(())
}

/// The first line that comes. As long as nobody is at the other end of a port, it reads as one that has ended.
fn first_line(port: impl Read, wait: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + wait;
    let mut port = BufReader::new(port.take(ORDER_BYTES_MAX));
    let mut line = Vec::new();
    loop {
        port.read_until(b'\n', &mut line)?;
        if line.ends_with(b"\n") {
            return Ok(line);
        }
        if port.get_ref().limit() == 0 {
            return Err(io::Error::other(format!("the order is longer than {ORDER_BYTES_MAX} bytes")));
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no order came within {wait:?}")));
        }
        std::thread::sleep(ORDER_POLL);
    }
}

/// Finds the one system on the disks, and has it adapted.
fn look_and_adapt(order: &Order, port: &File) -> Result<(), Fault> {
    let parts = boot::find_parts(order.disks.len())?;
    let mut found = Vec::new();
    for part in &parts {
        // What cannot be mounted holds nothing that could be adapted.
        let Some(kind) = identify::mountable(&part.device) else { continue };
        if boot::mount_part(&part.device, kind, ROOT, boot::Access::Look).is_err() {
            continue;
        }
        let system = looked_at();
        boot::unmount(ROOT)?;
        found.extend(system.map(|system| (part, kind, system)));
    }
    let mut port = port.try_clone()?;
    let (part, kind, system) = match found.as_slice() {
        [one] => one,
        [] => {
            let text = "no file system on its disks has an /etc/os-release and an /etc/fstab".to_owned();
            return Ok(say(&mut port, &Report::Unrecognised { text })?);
        }
        several => {
            let names: Vec<&str> = several.iter().map(|(part, ..)| part.name.as_str()).collect();
            let text = format!("there is more than one system on its disks: on {}", names.join(", "));
            return Ok(say(&mut port, &Report::Unrecognised { text })?);
        }
    };
    let held = |at: &boot::Part| {
        let has_partitions = parts.iter().any(|other| other.is_partition_of(at));
        Some(format!("{} on {}", identify::container(&at.device, has_partitions)?, at.name))
    };
    let held: Vec<String> = parts.iter().filter_map(held).collect();
    if !held.is_empty() {
        let (held, on) = (held.join(", "), &part.name);
        let text = format!("there is a system on {on}, but also {held}, which may be a part of it or hold another");
        return Ok(say(&mut port, &Report::Unrecognised { text })?);
    }
    let worker::System { name, cloud_init } = system.clone();
    say(&mut port, &Report::Found { device: part.name.clone(), system: name, cloud_init })?;
    boot::mount_part(&part.device, *kind, ROOT, boot::Access::Change)?;
    // Opened before anything is written, so that no error is told to somebody else.
    let root = File::open(ROOT)?;
    let devices = identify::devices(&parts, order);
    let done = work(&worker::Task { order: order.clone(), devices }, &port);
    let written = boot::sync(&root, ROOT);
    drop(root);
    boot::unmount(ROOT)?;
    done?;
    Ok(written?)
}

/// What system is at [`ROOT`]; none where there is none.
fn looked_at() -> Option<worker::System> {
    let mut worker = Command::new(worker::PROGRAM);
    let mut child = worker.arg(worker::Mode::Look.as_str()).stdout(Stdio::piped()).spawn().ok()?;
    let mut text = String::new();
    let read = child.stdout.take()?.take(LINE_BYTES_MAX).read_to_string(&mut text);
    let status = child.wait().ok()?;
    serde_json::from_str(&text).ok().filter(|_| status.success() && read.is_ok())
}

/// Has the worker do what there is to do; what it says goes straight to the agent.
fn work(task: &worker::Task, port: &File) -> Result<(), Fault> {
    let mut worker = Command::new(worker::PROGRAM);
    worker.arg(worker::Mode::Adapt.as_str()).stdin(Stdio::piped()).stdout(port.try_clone()?);
    let mut child = worker.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        serde_json::to_writer(&mut input, task)?;
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the worker ended with {status}").into()) }
}

/// Says one line, whole.
fn say(out: &mut impl std::io::Write, report: &Report) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has ended as often as there are empty pieces, and goes on each time.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Ok(0) } else { self.0.remove(0).read(buffer) }
        }
    }

    #[test]
    fn an_order_is_waited_for() {
        let line = first_line(Pieces(vec![b"", b"ab", b"", b"", b"c\nd"]), ORDER_WAIT).expect("a line");
        assert_eq!(line, b"abc\n");
        let error = first_line(Pieces(vec![b"", b"ab"]), Duration::from_millis(30)).expect_err("no line");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = first_line(io::repeat(b'a'), ORDER_WAIT).expect_err("too long").to_string();
        assert!(error.contains("longer than"), "{error}");
    }
}
