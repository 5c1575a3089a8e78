//! QEMU, driven over QMP: a running one is a [`Machine`].
//!
//! ```text
//!   probe           what QEMU on this host can do                 ─▶ Inventory
//!   command_line    VmSpec + Placement ─▶ arguments               ─▶ guest::launcher
//!   qmp ─▶ Machine  blocks     exports, bitmaps, passes           ─▶ disk, migration
//!                   migration  capabilities, phases, figures      ─▶ migration, memory
//!                   measure    what the guest dirties             ─▶ probe
//!                   network    ways into an isolated guest        ─▶ replication
//!   guest_agent     file systems frozen and thawed            ─▶ replication
//! ```
//!
//! [`Machine`] adds no state to the connection: QEMU is asked, and never remembered, so that an agent that starts anew
//! knows as much as one that ran all along.

mod blocks;
pub mod command_line;
pub mod extra_arguments;
pub mod guest_agent;
mod measure;
mod migration;
mod network;
pub mod probe;
pub mod qmp;
pub mod runtime;
mod snapshot;

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use blocks::{Bitmap, BitmapOptions, Export, NBD_CONNECTIONS_MAX, Node};
pub use migration::{Migration, MigrationSettings, MigrationStatus, Ram, Throttle};
use qmp::{Events, Lost, Qmp, QmpError};
pub use snapshot::{FrozenDisk, frozen_node};

/// QEMU, as the PATH has it.
pub const QEMU: &str = "qemu-system-x86_64";
/// How long QEMU may take over one command. Some wait for guest I/O in flight, which a slow disk can hold up.
pub const COMMAND_WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a state is asked for while its event is waited for: events may be missed, states may not.
const STATE_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A running QEMU, or a running storage daemon: the commands Sterna gives it. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Machine {
    qmp: Qmp,
}

/// What QEMU does when its guest shuts itself down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownAction {
    /// It ends too, as it does where nobody says otherwise.
    PowerOff,
    /// It stays, with its disks open and its guest off.
    Pause,
}

impl Machine {
    /// Drives the QEMU at the other end.
    #[must_use]
    pub fn new(qmp: Qmp) -> Self {
        Self { qmp }
    }

    /// Connects to the monitor at `path`, within `wait`.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn connect(path: &Path, wait: Duration) -> Result<Self, QmpError> {
        Qmp::connect(path, wait).await.map(Self::new)
    }

    /// The connection, for commands that have no method here.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// QEMU's events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.qmp.events()
    }

    /// Whether the guest executes, and if not why.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn run_state(&self) -> Result<RunState, MachineError> {
        #[derive(Deserialize)]
        struct Status {
            status: RunState,
        }
        self.ask("query-status", Value::Null).await.map(|Status { status }| status)
    }

    /// Waits until the run state is one of `wanted`, and returns it.
    ///
    /// # Errors
    /// [`MachineError::RunStateNotReached`] after `wait`.
    pub async fn run_state_reached(&self, wanted: &[RunState], wait: Duration) -> Result<RunState, MachineError> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut events = self.events();
        loop {
            let state = self.run_state().await?;
            if wanted.contains(&state) {
                return Ok(state);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(MachineError::RunStateNotReached { wanted: wanted.to_vec(), state, wait });
            }
            next_event(&mut events, &["STOP", "RESUME", "SHUTDOWN", "MIGRATION"], deadline).await;
        }
    }

    /// Pauses the guest, and returns when no vCPU executes and its I/O is done.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn stop(&self) -> Result<(), MachineError> {
        self.tell("stop", Value::Null).await
    }

    /// Lets the guest execute. **Only `migration::handover` calls this**, after it has journalled that this host owns the
    /// VM (invariant 1).
    ///
    /// # Errors
    /// [`MachineError`]. After a lost connection or a timeout the guest may run.
    pub(crate) async fn cont(&self) -> Result<(), MachineError> {
        self.tell("cont", Value::Null).await
    }

    /// Presses the guest's power button. Whether it obeys is its own affair.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn power_button(&self) -> Result<(), MachineError> {
        self.tell("system_powerdown", Value::Null).await
    }

    /// Says what QEMU does when its guest shuts itself down, from here on.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn on_shutdown(&self, action: ShutdownAction) -> Result<(), MachineError> {
        let shutdown = match action {
            ShutdownAction::PowerOff => "poweroff",
            ShutdownAction::Pause => "pause",
        };
        self.tell("set-action", serde_json::json!({ "shutdown": shutdown })).await
    }

    /// Ends QEMU in good order: disks flushed and persistent bitmaps written. It has ended when its process has.
    ///
    /// # Errors
    /// [`MachineError`]; QEMU closing the connection before it answers is none.
    pub async fn quit(&self) -> Result<(), MachineError> {
        match self.tell("quit", Value::Null).await {
            Err(MachineError::Qmp(QmpError::Lost { lost: Lost::Closed | Lost::Io(_), .. })) => Ok(()),
            outcome => outcome,
        }
    }

    /// Gives a command whose answer says nothing.
    async fn tell(&self, command: &'static str, arguments: Value) -> Result<(), MachineError> {
        self.qmp.execute(command, arguments, COMMAND_WAIT_MAX).await?;
        Ok(())
    }

    /// Gives a command and reads its answer.
    async fn ask<T: DeserializeOwned>(&self, command: &'static str, arguments: Value) -> Result<T, MachineError> {
        let answer = self.qmp.execute(command, arguments, COMMAND_WAIT_MAX).await?;
        serde_json::from_value(answer).map_err(|source| MachineError::Answer { command, source })
    }

    /// Runs actions as one: all take effect at the same instant, or none does.
    async fn transaction(&self, actions: Vec<Value>) -> Result<(), MachineError> {
        self.tell("transaction", json!({ "actions": actions })).await
    }
}

/// Waits for one of the events named, or until it is time to look at the state again, or until the deadline.
async fn next_event(events: &mut Events, names: &[&str], deadline: tokio::time::Instant) {
    let look_again = deadline.min(tokio::time::Instant::now() + STATE_POLL_INTERVAL);
    let _ = tokio::time::timeout_at(look_again, async {
        // A gap or a lost connection ends the wait too: the state is asked for next, and that tells.
        while events.next().await.is_ok_and(|event| !names.contains(&event.name.as_str())) {}
    })
    .await;
}

/// Whether a guest executes, in QEMU's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It executes.
    Running,
    /// Started with `-S` and not yet let go.
    Prelaunch,
    /// Waiting for a migration, or loading one.
    #[serde(rename = "inmigrate")]
    InMigrate,
    /// Stopped by command; also an incoming guest that is wholly loaded.
    Paused,
    /// The source at pre-switchover, before QEMU has sent the last of it.
    FinishMigrate,
    /// The source when QEMU has sent everything.
    #[serde(rename = "postmigrate")]
    PostMigrate,
    /// Its power is off.
    Shutdown,
    /// It sleeps.
    Suspended,
    /// A disk failed it.
    IoError,
    /// QEMU found itself at fault.
    InternalError,
    /// Its kernel panicked.
    GuestPanicked,
    /// Its watchdog fired.
    Watchdog,
    /// A state this version of Sterna does not know.
    #[serde(untagged)]
    Other(String),
}

/// Why a machine did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The command failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU's answer has not the form that its schema promises.
    #[error("QEMU's answer to {command} has not the expected form; this QEMU may be too new for this agent")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// QEMU cannot do what a move needs.
    #[error("QEMU has no migration capability {capability}; Sterna needs QEMU 7.2 or later")]
    Unsupported {
        /// QEMU's name for it.
        capability: &'static str,
    },
    /// A path is no UTF-8 text, which JSON needs.
    #[error("the path {path:?} is not UTF-8 text; rename it")]
    Path {
        /// The path.
        path: std::path::PathBuf,
    },
    /// An export was told to go and did not.
    #[error("export {id} is still there {wait:?} after it was told to go; a client holds it")]
    ExportStays {
        /// Its id.
        id: String,
        /// How long it was given.
        wait: Duration,
    },
    /// QEMU has no such node.
    #[error("QEMU has no block node {node}")]
    NoNode {
        /// The node's name.
        node: String,
    },
    /// A node has no such bitmap.
    #[error("block node {node} has no dirty bitmap {bitmap}")]
    NoBitmap {
        /// The node's name.
        node: String,
        /// The bitmap's.
        bitmap: String,
    },
    /// A run state was waited for in vain.
    #[error("the guest is {state:?} after {wait:?}, and not one of {wanted:?}")]
    RunStateNotReached {
        /// What was waited for.
        wanted: Vec<RunState>,
        /// What it was at the end.
        state: RunState,
        /// How long.
        wait: Duration,
    },
    /// The migration ended otherwise than it should.
    #[error("the migration is {status:?}, and will not become one of {wanted:?}{}", description.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    MigrationEnded {
        /// What was waited for.
        wanted: Vec<MigrationStatus>,
        /// How it ended.
        status: MigrationStatus,
        /// QEMU's reason, for people; not to be taken apart.
        description: Option<String>,
    },
    /// A measurement was waited for in vain.
    #[error("QEMU has not measured the {what} within {wait:?}; the host is busy, or the guest very large")]
    NotMeasured {
        /// What was to be measured.
        what: &'static str,
        /// How long it was given.
        wait: Duration,
    },
    /// A port of the host does not lead to the guest.
    #[error("QEMU has no port lead to {guest} of its guest: {said}")]
    NotForwarded {
        /// The guest's port.
        guest: std::net::SocketAddrV4,
        /// QEMU's reason, for people.
        said: String,
    },
    /// A migration status was waited for in vain.
    #[error("the migration is {status:?} after {wait:?}, and not one of {wanted:?}")]
    MigrationNotReached {
        /// What was waited for.
        wanted: Vec<MigrationStatus>,
        /// What it was at the end.
        status: MigrationStatus,
        /// How long.
        wait: Duration,
    },
}

fn text(path: &Path) -> Result<&str, MachineError> {
    path.to_str().ok_or_else(|| MachineError::Path { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_states_are_qemus_words_and_an_unknown_one_is_kept() {
        let parse = |text: &str| serde_json::from_value::<RunState>(json!(text)).expect("a state");
        assert_eq!(parse("running"), RunState::Running);
        assert_eq!(parse("inmigrate"), RunState::InMigrate);
        assert_eq!(parse("postmigrate"), RunState::PostMigrate);
        assert_eq!(parse("finish-migrate"), RunState::FinishMigrate);
        assert_eq!(parse("guest-panicked"), RunState::GuestPanicked);
        assert_eq!(parse("dreaming"), RunState::Other("dreaming".to_owned()));
    }
}
