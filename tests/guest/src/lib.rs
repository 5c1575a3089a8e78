//! The witness: the one guest that every scenario runs, and how a test knows that nothing was lost.
//!
//! It is a static program, pid 1 of an initramfs on Debian's cloud kernel. It fills memory with a pattern that it can
//! compute again and rewrites it at a set rate; it writes numbered records to its disks and says each number only after
//! the disk has acknowledged it; it ticks every 5 ms; and on demand it proves all of its memory and all of its disks.
//!
//! ```text
//!   command line ─▶ config        boot: mounts, modules, network, disks
//!                                   │
//!        ┌──────────────────────────┼───────────────────┐
//!        ▼                          ▼                   ▼
//!   memory thread             disk thread 0 … n     server: one thread a connection
//!   owns every page           owns its disk          │ verify, rate, pause: asked of the owners
//!        │ passes                   │ ack D N           ▼
//!        └──────────────▶ hub ◀─────┴──────────── subscribe, status
//!                          ticks every 5 ms, counts, feeds the subscribers and the console
//! ```
//!
//! Each thing has one owner, a thread that takes requests from a bounded channel; nothing is locked and shared. The
//! library half ([`pattern`], [`record`], [`protocol`]) is what the harness uses too: it reads a stopped guest's disks
//! with the very rules that wrote them.
//!
//! # Kernel command line
//!
//! | parameter | default | meaning |
//! | --- | --- | --- |
//! | `witness.seed=N` | 1 | of the memory pattern and of the records |
//! | `witness.memory=MIB` | 0 | memory to fill |
//! | `witness.rewrite=MIB` | 0 | memory rewritten per second |
//! | `witness.disks=N` | 0 | disks to wait for: `vda…`, then `sda…`, then `nvme…`; fewer is an error |
//! | `witness.records=N` | 20 | records per second and disk |
//! | `witness.continue=0\|1` | 0 | go on after the last record found on each disk (a guest started anew from a copy) |
//! | `witness.lockstep=0\|1` | 0 | write a record only once all disks have the one before: at every instant they are one apart at most |
//! | `witness.agent=0\|1` | 0 | answer as the guest agent does, on its virtio-serial port: freezing is pausing all writers between two records, in lockstep at the same one |
//! | `witness.freeze=MS` | 0 | how long it then takes until it says so, as a guest does that has much to write out |
//! | `witness.root=NAME` | none | the system on this device is started in place of the witness |
//! | `witness.ip=A.B.C.D/P` | none | address of `eth0`; without it there is no network, and the console tells everything |
//! | `witness.gateway=A.B.C.D` | none | default route |
//! | `witness.port=N` | 7007 | TCP port of the protocol and UDP port of the ticks |
//!
//! # Console
//!
//! One event a line, each begun by a word in capitals: `WITNESS READY boot=… seed=… memory=… disks=…`, `ACK DISK N`,
//! `TICK N` once a second, `DISK-ERROR DISK N reason`, `WITNESS FAILED reason` followed by power-off. Up to 100 records a
//! second and disk each acknowledgement is printed; above, every k-th, so that the serial line does not set the pace.
//!
//! The protocol is described in [`protocol`].

#![allow(clippy::cast_possible_truncation, reason = "a guest of 64 bits: usize and u64 are the same")]

pub mod pattern;
pub mod protocol;
pub mod record;

mod agent;
mod boot;
mod config;
mod disk;
mod hub;
mod memory;
mod netlink;
mod root;
mod server;

use std::io::Write as _;

/// Runs the witness as pid 1. Powers the machine off when it cannot start; never returns otherwise.
pub fn run() {
    if let Err(error) = start() {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        console(format_args!("WITNESS FAILED {text}"));
        boot::power_off();
    }
}

fn start() -> Result<(), Box<dyn std::error::Error>> {
    boot::mount_all()?;
    boot::load_modules()?;
    let config = config::Config::from_command_line(&std::fs::read_to_string("/proc/cmdline")?)?;
    if let Some(device) = &config.root {
        root::hand_over(device)?;
    }
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    if let Some(network) = &config.network {
        boot::bring_up(network)?;
    }
    let disks = boot::find_disks(config.disks)?;

    let (hub, hub_side) = hub::channel();
    let memory = memory::spawn(&config, hub.clone())?;
    let pace = disk::Pace::new(disks.len(), config.lockstep);
    let disks = disks
        .into_iter()
        .enumerate()
        .map(|(index, path)| disk::spawn(&config, index, &path, hub.clone(), pace.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    if config.agent {
        agent::spawn(&config, disks.clone())?;
    }
    let hello = protocol::Hello {
        version: protocol::VERSION,
        boot_id,
        seed: config.seed,
        memory_mib: config.memory_mib,
        disks: disks.len(),
    };
    let ready = format!(
        "WITNESS READY boot={} seed={} memory={} disks={}",
        hello.boot_id, hello.seed, hello.memory_mib, hello.disks
    );
    if config.network.is_some() {
        server::spawn(config.port, server::Owners { hello, hub, memory, disks })?;
    }
    // Only now: whoever reads it may connect at once.
    console(format_args!("{ready}"));
    hub_side.run(&config)
}

/// Prints one line on the console. A console that cannot be written to is nobody's fault in here.
pub(crate) fn console(line: std::fmt::Arguments<'_>) {
    let mut text = line.to_string();
    text.push('\n');
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
