//! A machine's memory on the move: QEMU's migration, from capabilities to the figures at its end.
//!
//! ```text
//!   source   migration_set_up ─▶ migrate ─▶ Active ─▶ PreSwitchover ─▶ migrate_continue ─▶ Completed  (run state PostMigrate)
//!                                              └──────────┴── migrate_cancel ─▶ Cancelled           (guest runs on)
//!   target   migration_set_up ─▶ migrate_incoming ──────────────────────────────────────▶ Completed  (run state Paused)
//! ```
//!
//! A failed or cancelled source leaves the target waiting for ever: whoever gives up kills the target.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use sterna_shared::units::{Bandwidth, ByteCount};
use tokio::time::Instant;

use super::{Machine, MachineError, next_event, text};

/// Without these Sterna moves nothing: the guest must pause before the switchover, and wait.
const CAPABILITIES_NEEDED: [&str; 3] = ["events", "return-path", "pause-before-switchover"];
/// Keeps the target from taking image locks before `cont`. QEMU has it since 3.0, and says so.
const LATE_BLOCK_ACTIVATE: &str = "late-block-activate";
/// The one that costs the least for what it saves; QEMU has it since 5.0.
const COMPRESSION: &str = "zstd";
/// The longest downtime that QEMU can be given.
const DOWNTIME_MAX_MS: u64 = 2_000_000;
/// The shortest time that QEMU reckons with.
const HELD_MS: u64 = 1;

/// How a migration is run. Both sides must be given the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationSettings {
    /// Channels that carry pages, besides the one that carries all else. 0 for one stream without multifd.
    pub multifd_channels: u8,
    /// The most that QEMU sends; `None` for no limit.
    pub bandwidth: Option<Bandwidth>,
    /// QEMU goes to the switchover when it expects to be done in this time. Up to 2,000 s.
    pub downtime_limit: Duration,
    /// How QEMU slows down the vCPUs of a guest that writes faster than it can send; not at all without.
    pub auto_converge: Option<Throttle>,
    /// Whether pages are compressed on their way. Needs multifd; without it nothing is.
    pub compress: bool,
}

/// Parts of a hundred of its time that a guest is kept from executing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// At first.
    pub first: u8,
    /// More in each round that did not help.
    pub step: u8,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Migration {
    /// Its phase.
    #[serde(default)]
    pub status: MigrationStatus,
    /// What is known of memory; from the start of the transfer on, at the source.
    pub ram: Option<Ram>,
    /// Milliseconds since the start.
    #[serde(rename = "total-time", default)]
    pub total_ms: u64,
    /// Milliseconds for which the guest did not execute, as QEMU counts them; at the end.
    #[serde(rename = "downtime")]
    pub downtime_ms: Option<u64>,
    /// Milliseconds that QEMU expects the guest not to execute for; while it is on its way.
    #[serde(rename = "expected-downtime")]
    pub expected_downtime_ms: Option<u64>,
    /// QEMU's reason for a failure, for people; not to be taken apart.
    #[serde(rename = "error-desc")]
    pub description: Option<String>,
    /// Why this guest cannot be migrated now.
    #[serde(rename = "blocked-reasons", default)]
    pub blocked_reasons: Vec<String>,
}

/// How far memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Ram {
    /// Bytes sent.
    pub transferred: ByteCount,
    /// Bytes still to be sent.
    pub remaining: ByteCount,
    /// All of the guest's memory.
    pub total: ByteCount,
    /// Pages that the guest writes in a second.
    #[serde(rename = "dirty-pages-rate", default)]
    pub dirty_pages_per_second: u64,
    /// Bytes in such a page.
    #[serde(rename = "page-size", default)]
    pub page_size: ByteCount,
    /// Rounds over memory begun.
    #[serde(rename = "dirty-sync-count", default)]
    pub iterations: u64,
}

/// The phase of a migration, in QEMU's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// There has been none.
    #[default]
    None,
    /// Connecting.
    Setup,
    /// Being cancelled.
    Cancelling,
    /// Cancelled: the source's guest goes on as before.
    Cancelled,
    /// Memory crosses while the guest executes.
    Active,
    /// The source's guest is paused, and QEMU waits for `migrate_continue`.
    PreSwitchover,
    /// The rest of memory and the devices cross.
    Device,
    /// Everything is at the target.
    Completed,
    /// It failed; at the source the guest goes on as before.
    Failed,
    /// Memory crosses while the target's guest executes.
    PostcopyActive,
    /// Postcopy lost its connection.
    PostcopyPaused,
    /// Postcopy has a new connection.
    PostcopyRecover,
    /// A phase this version of Sterna does not know.
    #[serde(untagged)]
    Other(String),
}

impl MigrationStatus {
    /// Whether nothing follows but a new migration.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Completed | Self::Failed)
    }
}

impl Machine {
    /// Sets capabilities and parameters, before [`Machine::migrate`] or [`Machine::migrate_incoming`].
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] where this QEMU lacks what a move needs.
    pub async fn migration_set_up(&self, settings: &MigrationSettings) -> Result<(), MachineError> {
        let supported = self.migration_capabilities().await?;
        let multifd = settings.multifd_channels > 0;
        let needed = CAPABILITIES_NEEDED.into_iter().chain(multifd.then_some("multifd"));
        if let Some(capability) = needed.into_iter().find(|capability| !supported.contains(*capability)) {
            return Err(MachineError::Unsupported { capability });
        }
        let wanted = CAPABILITIES_NEEDED.into_iter().chain([LATE_BLOCK_ACTIVATE]).map(|capability| (capability, true));
        let chosen = wanted.chain([("multifd", multifd), ("auto-converge", settings.auto_converge.is_some())]);
        let capabilities: Value = chosen
            .filter(|(capability, _)| supported.contains(*capability))
            .map(|(capability, state)| json!({ "capability": capability, "state": state }))
            .collect();
        self.tell("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
        let downtime_ms = milliseconds(settings.downtime_limit);
        let mut parameters = json!({ "max-bandwidth": rate(settings.bandwidth), "downtime-limit": downtime_ms });
        if multifd {
            parameters["multifd-channels"] = json!(settings.multifd_channels);
            // Said also where it is not wished for: a move before this one may have been.
            parameters["multifd-compression"] = json!(if settings.compress { COMPRESSION } else { "none" });
        }
        if let Some(throttle) = settings.auto_converge {
            parameters["cpu-throttle-initial"] = json!(throttle.first);
            parameters["cpu-throttle-increment"] = json!(throttle.step);
        }
        self.tell("migrate-set-parameters", parameters).await
    }

    /// Changes the bandwidth, also of a migration under way; `None` for no limit.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn migration_limit(&self, bandwidth: Option<Bandwidth>) -> Result<(), MachineError> {
        self.tell("migrate-set-parameters", json!({ "max-bandwidth": rate(bandwidth) })).await
    }

    /// Lets memory cross at `bandwidth`, `None` for no limit, and QEMU pause the guest once it expects to send the rest of it
    /// in `limit`.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn migration_go_on(&self, bandwidth: Option<Bandwidth>, limit: Duration) -> Result<(), MachineError> {
        let parameters = json!({ "max-bandwidth": rate(bandwidth), "downtime-limit": milliseconds(limit) });
        self.tell("migrate-set-parameters", parameters).await
    }

    /// Has memory go on without an end in sight: QEMU pauses the guest only where next to nothing of it is left.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn migration_hold(&self, bandwidth: Option<Bandwidth>) -> Result<(), MachineError> {
        // Never a downtime of 0: QEMU then no longer looks at what is dirty before it pauses the guest.
        self.migration_go_on(bandwidth, Duration::from_millis(HELD_MS)).await
    }

    /// Starts to send this guest to the UNIX socket at `path`, once for the main channel and once for each of multifd's.
    ///
    /// # Errors
    /// [`MachineError`], where QEMU does not begin.
    pub async fn migrate(&self, path: &Path) -> Result<(), MachineError> {
        self.tell("migrate", json!({ "uri": format!("unix:{}", text(path)?) })).await
    }

    /// Listens at `path` for a guest. For a QEMU started as incoming.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn migrate_incoming(&self, path: &Path) -> Result<(), MachineError> {
        self.tell("migrate-incoming", json!({ "uri": format!("unix:{}", text(path)?) })).await
    }

    /// Goes on from [`MigrationStatus::PreSwitchover`].
    ///
    /// # Errors
    /// [`MachineError`], also where the migration is not there.
    pub async fn migrate_continue(&self) -> Result<(), MachineError> {
        self.tell("migrate-continue", json!({ "state": "pre-switchover" })).await
    }

    /// Gives up the migration. The guest is back in the state it had before when the status is
    /// [`MigrationStatus::Cancelled`] — or everything had been sent, and the status is [`MigrationStatus::Completed`].
    ///
    /// # Errors
    /// [`MachineError`]; not where there is nothing to cancel.
    pub async fn migrate_cancel(&self) -> Result<(), MachineError> {
        self.tell("migrate_cancel", Value::Null).await
    }

    /// How far the migration is.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn migration(&self) -> Result<Migration, MachineError> {
        self.ask("query-migrate", Value::Null).await
    }

    /// Waits until the migration is in one of the phases `wanted`, and returns how far it is then.
    ///
    /// # Errors
    /// [`MachineError::MigrationEnded`] as soon as it can no longer get there, [`MachineError::MigrationNotReached`]
    /// after `wait`.
    pub async fn migration_reached(
        &self,
        wanted: &[MigrationStatus],
        wait: Duration,
    ) -> Result<Migration, MachineError> {
        let deadline = Instant::now() + wait;
        // Subscribed before the first question, so that no change falls between the two.
        let mut events = self.events();
        loop {
            let Migration { status, description, .. } = match self.migration().await? {
                migration if wanted.contains(&migration.status) => return Ok(migration),
                migration => migration,
            };
            if status.is_final() {
                return Err(MachineError::MigrationEnded { wanted: wanted.to_vec(), status, description });
            }
            if Instant::now() >= deadline {
                return Err(MachineError::MigrationNotReached { wanted: wanted.to_vec(), status, wait });
            }
            next_event(&mut events, &["MIGRATION"], deadline).await;
        }
    }

    /// The names of all migration capabilities that this QEMU has.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn migration_capabilities(&self) -> Result<HashSet<String>, MachineError> {
        #[derive(Deserialize)]
        struct Capability {
            capability: String,
        }
        let capabilities: Vec<Capability> = self.ask("query-migrate-capabilities", Value::Null).await?;
        Ok(capabilities.into_iter().map(|capability| capability.capability).collect())
    }
}

/// In QEMU's terms: up to 2,000 s.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(DOWNTIME_MAX_MS)
}

/// In QEMU's terms: 0 is no limit, so the least limit is 1.
fn rate(bandwidth: Option<Bandwidth>) -> u64 {
    bandwidth.map_or(0, |bandwidth| bandwidth.0.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whatever_qemu_adds_or_leaves_out() {
        let none: Migration = serde_json::from_value(json!({})).expect("an answer");
        assert_eq!(none.status, MigrationStatus::None);
        let active: Migration = serde_json::from_value(json!({
            "status": "active", "total-time": 12, "expected-downtime": 300, "new-in-99": {},
            "ram": { "transferred": 1, "remaining": 2, "total": 3, "dirty-sync-count": 4, "dirty-pages-rate": 5,
                "page-size": 4096, "mbps": 1.5 },
        }))
        .expect("an answer");
        let ram = active.ram.expect("figures of memory");
        assert_eq!((ram.iterations, ram.dirty_pages_per_second, ram.page_size), (4, 5, ByteCount(4096)));
        let odd: Migration = serde_json::from_value(json!({ "status": "wait-unplug" })).expect("an answer");
        assert_eq!(odd.status, MigrationStatus::Other("wait-unplug".to_owned()));
        assert_eq!((rate(None), rate(Some(Bandwidth(0))), rate(Some(Bandwidth(9)))), (0, 1, 9));
    }
}
