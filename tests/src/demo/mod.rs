//! The demo: a guest under load moves from `alpha` to `bravo` and back, and proves that nothing was lost.
//!
//! ```text
//!   client ── TCP session, open all the while ──┐         ┌── UDP, a tick each 5 ms: the blackout seen from outside
//!                                               ▼         ▼
//!                      alpha ══════════ witness, 512 MiB, a raw and a qcow2 disk ═════════▶ bravo
//! ```
//!
//! Everything runs as an operator would run it; the moves are made by the command line, whose output is passed through.
//! What is found is in [`Report`].

mod report;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use sterna_witness::protocol::{DEFAULT_PORT, Hello, TICK_MS, Verification};

pub use self::report::{MoveReport, Report, WitnessReport};
use crate::fleet::{Fleet, WitnessWish, binary};
use crate::witness::{Recording, Subscription, Ticks, Witness};

/// The moves: from, to.
pub const MOVES: [(&str, &str); 2] = [("alpha", "bravo"), ("bravo", "alpha")];
/// How long the witness may take to acknowledge some more, or to be heard again.
const WAIT: Duration = Duration::from_secs(30);
/// Records that each disk must acknowledge before the first move, and again after each.
const RECORDS_BETWEEN: u64 = 50;
/// Ticks heard before a move begins, and after it has ended: half a second each.
const TICKS_AROUND: u64 = 100;
/// How long the guest may stand still before the move gives up. Far above what a move takes: a demo must also come to
/// its end where two busy processors emulate two hosts. What it did take is measured and shown.
const BLACKOUT_MAX_MS: &str = "10000";
const VM: &str = "witness";

/// A fleet with a witness on `alpha`. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Demo {
    fleet: Fleet,
    address: Ipv4Addr,
    hello: Hello,
    /// The session that stays open over all moves.
    session: Subscription,
}

impl Demo {
    /// Starts the fleet, boots the witness and opens the session. `say` is told what is being done.
    ///
    /// # Errors
    /// Whatever could not be started, and why.
    pub async fn start(say: impl Fn(&str)) -> anyhow::Result<Self> {
        say("starting nats-server with TLS, a coordinator, and an agent on each of alpha and bravo");
        let mut fleet = Fleet::start(&["alpha", "bravo"]).await?;
        let wish = WitnessWish {
            lockstep: false,
            guest_agent: false,
            freeze_ms: None,
            name: VM,
            memory_mib: 512,
            fill_mib: 256,
            rewrite_mib: 16,
            vcpus: 1,
            records: 50,
            disks: vec![("root", "fast", "raw", 256), ("data", "bulk", "qcow2", 256)],
            ballast: Vec::new(),
        };
        let WitnessWish { memory_mib, rewrite_mib, records, .. } = wish;
        say(&format!(
            "booting the witness on alpha: {memory_mib} MiB of memory, of which it rewrites {rewrite_mib} MiB a second; \
             a raw and a qcow2 disk, to each of which it writes {records} records a second"
        ));
        let address = fleet.start_witness("alpha", &wish).await?;
        let hello = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?.hello().await?;
        let session = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?.subscribe().await?;
        let demo = Self { fleet, address, hello, session };
        demo.go_on().await?;
        Ok(demo)
    }

    /// Makes all [`MOVES`], and stops after one that has a fault. Each is put into `report` when it is over.
    ///
    /// # Errors
    /// The witness or the coordinator can no longer be asked.
    pub async fn moves(&self, report: &mut Report, say: impl Fn(&str)) -> anyhow::Result<()> {
        for (source, target) in MOVES {
            let migrate = ["migrate", VM, "--to", target, "--max-blackout", BLACKOUT_MAX_MS];
            say(&format!("moving it from {source} to {target}: sterna {}", migrate.join(" ")));
            let one = self.one_move(&migrate).await?;
            let failed = !one.faults().is_empty();
            report.moves.push(one);
            if failed {
                break;
            }
        }
        Ok(())
    }

    /// Moves the witness, and has it prove that it is whole.
    async fn one_move(&self, migrate: &[&str]) -> anyhow::Result<MoveReport> {
        let mut ticks = Ticks::listen(&self.fleet.client, self.address, DEFAULT_PORT)?;
        let beside = Witness::connect(&self.fleet.client, self.address, DEFAULT_PORT).await?.subscribe().await?;
        ticks.wait_for(TICKS_AROUND, WAIT).await?;

        let id = uuid::Uuid::now_v7().to_string();
        let mut migrate = self.fleet.sterna_command(&[migrate, &["--job", &id]].concat());
        // How it ended is in the job; what is to be said of a failure it has said itself.
        tokio::task::spawn_blocking(move || migrate.status()).await?.context("sterna cannot be run")?;
        let job = serde_json::from_value(self.fleet.sterna(&["job", "show", &id]).await?)?;

        let count = ticks.gaps().count;
        let gaps = ticks.wait_for(count + TICKS_AROUND, WAIT).await?;
        let tcp_session_survived = self.go_on().await.is_ok_and(|recording| recording.faults.is_empty());
        // Read before the witness is asked: what the client saw by now must be there.
        let seen = self.session.recording();
        let mut witness = Witness::connect(&self.fleet.client, self.address, DEFAULT_PORT).await?;
        let found = witness.verify().await?;
        let witness = WitnessReport {
            memory_ok: found.memory.mismatches == 0 && found.memory.checked > 0,
            records_acknowledged: seen.acknowledged.iter().sum(),
            records_lost: records_lost(&seen.acknowledged, &found),
            boot_id_same: witness.hello().await?.boot_id == self.hello.boot_id,
            tcp_session_survived,
            longest_gap_ms: milliseconds(beside.recording().gap_max),
        };
        let blackout = gaps.longest.saturating_sub(Duration::from_millis(TICK_MS));
        Ok(MoveReport::new(job, milliseconds(blackout), witness))
    }

    /// Waits until the session has brought more ticks, and more records of each disk.
    async fn go_on(&self) -> anyhow::Result<Recording> {
        let before = self.session.recording();
        let known = |disk: usize| before.acknowledged.get(disk).copied().unwrap_or(0);
        let more = |now: &Recording| {
            let disks = now.acknowledged.iter().enumerate();
            now.tick_last > before.tick_last
                && disks.filter(|(disk, number)| **number >= known(*disk) + RECORDS_BETWEEN).count() == self.hello.disks
        };
        self.session.wait_for(WAIT, more).await
    }

    /// How to look around in it while it is running.
    #[must_use]
    pub fn how_to_use(&self) -> String {
        let folder = self.fleet.folder();
        let inside = |host: &crate::namespace::Host| format!("ip netns exec {}", host.namespace());
        format!(
            "The fleet is running. As root, in another terminal:\n\n  \
             alias sterna='{control} env STERNA_CONFIG={configuration} {sterna}'\n  \
             sterna vm list\n  \
             sterna migrate {VM} --to bravo\n  \
             sterna vm console {VM}\n  \
             sterna doctor\n\n\
             The witness answers lines such as `status` and `verify` over TCP:\n\n  \
             {client} bash -c 'exec 3<>/dev/tcp/{address}/{DEFAULT_PORT}; echo status >&3; head -1 <&3'\n\n\
             Configurations, pools and logs are in {folder}\n\
             Ctrl-C ends it all.",
            control = inside(&self.fleet.control),
            client = inside(&self.fleet.client),
            configuration = folder.join("sterna.toml").display(),
            sterna = binary("sterna").display(),
            address = self.address,
            folder = folder.display(),
        )
    }

    /// The last lines of every part's log.
    #[must_use]
    pub fn logs(&self) -> String {
        self.fleet.logs()
    }
}

/// Records that the client saw acknowledged and the witness does not find: those that it expects and that are not whole,
/// and those above the last number that it still knows of.
fn records_lost(seen: &[u64], found: &Verification) -> u64 {
    let of_disk = |(disk, seen): (usize, &u64)| match found.disks.get(disk) {
        Some(found) => found.mismatches + seen.saturating_sub(found.acknowledged),
        None => *seen,
    };
    seen.iter().enumerate().map(of_disk).sum()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use sterna_witness::protocol::DiskVerification;

    use super::*;

    #[test]
    fn lost_is_what_was_seen_and_is_not_found() {
        let disk = |acknowledged, mismatches| DiskVerification { acknowledged, mismatches, ..Default::default() };
        let found = |disks| Verification { disks, ..Default::default() };
        assert_eq!(records_lost(&[10, 20], &found(vec![disk(11, 0), disk(20, 0)])), 0);
        assert_eq!(records_lost(&[10, 20], &found(vec![disk(11, 2), disk(17, 0)])), 5);
        assert_eq!(records_lost(&[10, 20], &found(vec![disk(10, 0)])), 20);
    }
}
