//! The handover: the one place where a guest is let run.
//!
//! [`Handover`] drives the pure machine of [`sterna_shared::ownership`] for one VM: it feeds inputs one at a time, carries
//! out the actions of each in order, each to its end, and keeps the machine's contract (its module doc). The record is on
//! the disk before anything is done by it.
//!
//! ```text
//!             Input                       Action
//!   keeper ──────────▶ ownership machine ────────▶ Journal   write, fsync, then feed `Journalled`
//!                                                  Cont      the guest runs; this is the only caller of QMP `cont`
//!                                                  Send      given back to the keeper, who has the routes
//!                                                  Release   the source's guest ends, its images go
//!                                                  Destroy   the guest's process ends; no image is touched
//! ```
//!
//! What is true of the VM: whatever this returns, the journal's record says whether this host may run the guest, and a
//! guest that may not run does not. An error leaves the record as it is on the disk; `Tick` asks again for what is left.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sterna_shared::host::{VmReport, VmState};
use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{EventBody, MoveMode};
use sterna_shared::ownership::{Action, Illegal, Input, Message, Ownership, Record};
use sterna_shared::vm::{Firmware, VmSpec};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::guest::launcher::{self, Launch, LaunchError, Launched};
use crate::guest::tap::{self, TapError};
use crate::host::{Host, PlacementError};
use crate::hypervisor::qemu::command_line::{CommandLineError, command_line};
use crate::hypervisor::qemu::qmp::QmpError;
use crate::hypervisor::qemu::{Machine, MachineError, MigrationStatus, QEMU, RunState};
use crate::journal::{JournalError, Role, VmRecord};
use crate::migration::images::{self, ImageError};

/// How long after it could not be read or written the journal is tried again.
const JOURNAL_RETRY: Duration = Duration::from_secs(1);
/// How long QEMU may take from its start to its monitor's first answer.
const LAUNCH_WAIT: Duration = Duration::from_secs(30);
/// How long a guest may take from `cont` to executing.
const RUN_WAIT: Duration = Duration::from_secs(10);
/// How long the target's QEMU may take to finish loading after the source has sent everything.
const LOADED_WAIT: Duration = Duration::from_secs(30);
/// How long a QEMU that was told to quit may take to close its images: it answers before it does.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// What the machine wants said, and to whom.
pub type Outbound = (HostId, Message);

/// What others see of a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// What the journal has.
    pub record: VmRecord,
    /// Whether its guest executes.
    pub state: VmState,
    /// The replication cycle since whose point in time nothing can have written to its disks. An agent that starts anew knows of
    /// none.
    pub unchanged_since: Option<JobId>,
}

impl View {
    /// As the fleet is told.
    #[must_use]
    pub fn report(&self, job: Option<JobId>) -> VmReport {
        VmReport {
            spec: self.record.spec.clone(),
            state: self.state,
            generation: self.record.ownership.seen(),
            owned: self.record.ownership.may_run().is_some(),
            job,
            unchanged_since: self.unchanged_since,
        }
    }
}

/// One VM on this host: its record, its right to run, its guest.
#[derive(Debug)]
pub struct Handover {
    host: Arc<Host>,
    record: VmRecord,
    ownership: Ownership,
    guest: Option<Launched>,
    view: watch::Sender<View>,
}

/// Why an order about a VM was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The ownership table does not allow it.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// The journal could not be written; nothing was done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// This host may not run the VM.
    #[error("this host is {state} for the VM and may not run it; see where it is with `sterna vm show`")]
    NotOwner {
        /// What it is.
        state: &'static str,
    },
    /// The VM has a guest already, or none.
    #[error("the VM is {state}; {remedy}")]
    State {
        /// What it is.
        state: VmState,
        /// What to do.
        remedy: &'static str,
    },
    /// A part of it is not here.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A UEFI variable store could not be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The specification cannot be put as QEMU's arguments.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// QEMU did not start.
    #[error("QEMU did not start")]
    Launch(#[from] LaunchError),
    /// QEMU did not do as told.
    #[error("QEMU did not do as told")]
    Machine(#[from] MachineError),
    /// A tap device could not be made.
    #[error("a network interface could not be made")]
    Tap(#[from] TapError),
}

/// What came of letting the guest run.
enum Ran {
    /// It executes.
    Runs,
    /// It certainly executed nothing.
    Nothing(String),
    /// Nobody can tell.
    Unknown(String),
}

impl Handover {
    /// Takes a VM up from the journal, with the guest that was found running, if one was.
    #[must_use]
    pub fn restore(host: Arc<Host>, record: VmRecord, guest: Option<Launched>, view: watch::Sender<View>) -> Self {
        let ownership = Ownership::restore(record.ownership.clone());
        Self { host, record, ownership, guest, view }
    }

    /// Shows whether the guest executes. The record is shown as soon as it is on the disk.
    pub fn show(&self, state: VmState) {
        self.view.send_if_modified(|view| std::mem::replace(&mut view.state, state) != state);
    }

    /// Notes that a replication cycle takes the disks of a guest that is shut down as they are, or forgets that. It holds until the guest
    /// is started, or anything of the record changes.
    pub fn stands_still(&self, since: Option<JobId>) {
        let since = since.filter(|_| self.guest.is_none());
        self.view.send_modify(|view| view.unchanged_since = since);
    }

    /// What others see of the VM.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// What the journal has.
    #[must_use]
    pub fn record(&self) -> &VmRecord {
        &self.record
    }

    /// Its guest, if there is one.
    #[must_use]
    pub fn guest(&self) -> Option<&Launched> {
        self.guest.as_ref()
    }

    /// Its QEMU, if there is one.
    #[must_use]
    pub fn machine(&self) -> Option<Machine> {
        self.guest.as_ref().map(|guest| guest.machine.clone())
    }

    /// Takes one input in, and what follows from it. Gives back what is to be said to peers.
    ///
    /// # Errors
    /// The table forbids it, or the journal could not be written: nothing was done by it then.
    pub async fn feed(&mut self, input: Input) -> Result<Vec<Outbound>, HandoverError> {
        // Between two records a guest may stand still: no event is written before the second.
        let mut quiet = Some(self.host.journal.quiet());
        let mut inputs = VecDeque::from([input]);
        let mut outbound = Vec::new();
        while let Some(input) = inputs.pop_front() {
            for action in self.ownership.apply(&input)? {
                match action {
                    Action::Journal(record) => {
                        self.journal(record).await?;
                        inputs.push_back(Input::Journalled);
                    }
                    Action::Send { to, message } => outbound.push((to, message)),
                    Action::Cont => inputs.extend(self.carry_out_cont().await),
                    Action::Release => {
                        quiet = None;
                        self.release().await;
                        inputs.push_back(Input::Released);
                    }
                    Action::Destroy => self.destroy().await,
                }
            }
        }
        drop(quiet);
        Ok(outbound)
    }

    /// Starts the VM's guest from its disks.
    ///
    /// # Errors
    /// This host may not, a guest is there already, or QEMU does not start; then there is none.
    pub async fn start(&mut self) -> Result<(), HandoverError> {
        self.expect_owner()?;
        if let Some(guest) = &self.guest {
            match guest.machine.run_state().await? {
                // A guest that was paused by a person, or by a move that was cut short, is let go on.
                // So is one that was not let go yet, and one that its disks failed: they may have room again.
                RunState::Paused
                | RunState::Prelaunch
                | RunState::FinishMigrate
                | RunState::PostMigrate
                | RunState::IoError => return self.resume().await,
                // One that was shut down for a cutover which came to nothing starts anew.
                RunState::Shutdown => self.end_in_good_order().await,
                _ => {
                    return Err(HandoverError::State {
                        state: VmState::Running,
                        remedy: "it has been started already",
                    });
                }
            }
        }
        self.want_running(true).await?;
        self.stands_still(None);
        let guest = self.launch(&self.record.spec, false).await?;
        let machine = guest.machine.clone();
        self.guest = Some(guest);
        machine.cont().await?;
        self.runs(&machine).await?;
        Ok(())
    }

    /// Lets a paused guest of this host's go on: after a move that was given up before anything was ceded.
    ///
    /// # Errors
    /// This host may not run it, there is no guest, or QEMU refuses.
    pub async fn resume(&mut self) -> Result<(), HandoverError> {
        self.expect_owner()?;
        let stopped = HandoverError::State { state: VmState::Stopped, remedy: "start it" };
        let machine = self.machine().ok_or(stopped)?;
        machine.cont().await?;
        self.runs(&machine).await?;
        Ok(())
    }

    /// Notes whether the guest is meant to run.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn want_running(&mut self, wanted: bool) -> Result<(), HandoverError> {
        if self.record.wanted_running != wanted {
            self.put(VmRecord { wanted_running: wanted, ..self.record.clone() }).await?;
        }
        Ok(())
    }

    /// Replaces the specification: after its disks have moved.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn respecify(&mut self, spec: VmSpec) -> Result<(), HandoverError> {
        self.put(VmRecord { spec, ..self.record.clone() }).await
    }

    /// Starts a guest that waits for its memory. The record must be `Incoming`.
    ///
    /// # Errors
    /// QEMU does not start; then there is no guest.
    pub async fn launch_incoming(&mut self) -> Result<Machine, HandoverError> {
        if !matches!(self.record.ownership, Record::Incoming { .. }) {
            return Err(HandoverError::NotOwner { state: self.record.ownership.name() });
        }
        self.destroy().await;
        self.stands_still(None);
        let guest = self.launch(&self.record.spec, true).await?;
        let machine = guest.machine.clone();
        self.guest = Some(guest);
        Ok(machine)
    }

    /// Ends the guest's process, if there is one, and waits until it is gone. Touches no disk.
    pub async fn destroy(&mut self) {
        if let Some(guest) = self.guest.take()
            && let Err(error) = guest.clone().end(Duration::ZERO).await
        {
            // The process may still be there and could run: it is held on to, and killed again at the next tick.
            error!(vm = %self.record.spec.id, %error, "a guest could not be ended");
            self.guest = Some(guest);
            return;
        }
        // A guest that has ended by itself, as QEMU does when its memory stops coming, leaves its sockets and logs.
        if self.record.ownership.may_run().is_none()
            && let Ok(runtime) = self.host.runtime(self.record.spec.id)
            && let Err(error) = runtime.remove()
        {
            warn!(vm = %self.record.spec.id, %error, "a runtime directory is left over");
        }
        self.remove_taps().await;
    }

    /// Forgets a guest whose process has ended by itself.
    pub async fn guest_ended(&mut self) {
        self.guest = None;
        self.remove_taps().await;
    }

    fn expect_owner(&self) -> Result<(), HandoverError> {
        match self.record.ownership.may_run() {
            Some(_) => Ok(()),
            None => Err(HandoverError::NotOwner { state: self.record.ownership.name() }),
        }
    }

    async fn journal(&mut self, record: Record) -> Result<(), HandoverError> {
        let job = job_of(&record);
        let named = job.map(tracing::field::display);
        info!(vm = %self.record.spec.id, record = record.name(), job = named, generation = %record.seen(), "ownership");
        let written = self.put(VmRecord { ownership: record, ..self.record.clone() }).await;
        if written.is_err() {
            self.read_back().await;
            return written;
        }
        if let Some(job) = job {
            let body = EventBody::Ownership {
                vm: self.record.spec.id,
                generation: self.record.ownership.seen(),
                record: self.record.ownership.name().to_owned(),
            };
            // An event that cannot be written is a pity; the record is on the disk, and that is what counts.
            if let Err(error) = self.host.tell(job, body).await {
                warn!(%error, "an event was lost");
            }
        }
        Ok(())
    }

    /// Finds out which record the disk holds after one could not be written. It may be either, or be gone with the next power cut: only one
    /// that was read, and was written once more, can be acted by. Until then nothing is done with the VM.
    async fn read_back(&mut self) {
        let vm = self.record.spec.id;
        loop {
            match self.host.journal.vm(vm) {
                Ok(Some(record)) => {
                    if self.put(record).await.is_ok() {
                        break;
                    }
                }
                // It never had one.
                Ok(None) => break,
                Err(_) => {}
            }
            error!(%vm, "which record the disk holds of the VM is not known; nothing is done with it until the journal can be written");
            tokio::time::sleep(JOURNAL_RETRY).await;
        }
        self.ownership = Ownership::restore(self.record.ownership.clone());
    }

    async fn put(&mut self, record: VmRecord) -> Result<(), HandoverError> {
        self.host.journal.put_vm(record.clone()).await?;
        self.record = record;
        self.view.send_modify(|view| {
            view.record.clone_from(&self.record);
            view.unchanged_since = None;
        });
        Ok(())
    }

    async fn carry_out_cont(&mut self) -> Option<Input> {
        match self.run().await {
            Ran::Runs => Some(Input::GuestRuns),
            Ran::Nothing(reason) => {
                warn!(vm = %self.record.spec.id, reason, "the guest cannot run here");
                match self.record.ownership {
                    // Taking back one's own guest has no way out but to try again, as the table says.
                    Record::Activating { ceded_by: None, .. } => None,
                    _ => Some(Input::CannotRun),
                }
            }
            Ran::Unknown(reason) => {
                warn!(vm = %self.record.spec.id, reason, "whether the guest runs is not certain; asking again");
                None
            }
        }
    }

    /// Lets the guest of the record in force run, by whatever it needs.
    async fn run(&mut self) -> Ran {
        if !self.record.wanted_running {
            return Ran::Runs; // A stopped VM has moved: the right to run it is here, and nobody runs it.
        }
        let Some(machine) = self.machine() else { return self.run_anew().await };
        match machine.run_state().await {
            Ok(RunState::Running) => return Ran::Runs,
            Ok(RunState::InMigrate) => {
                let loaded = machine.migration_reached(&[MigrationStatus::Completed], LOADED_WAIT).await;
                let paused = match loaded {
                    Ok(_) => machine.run_state_reached(&[RunState::Paused, RunState::Prelaunch], LOADED_WAIT).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = paused {
                    return Ran::Nothing(format!("its memory was not loaded: {error}"));
                }
            }
            // It was shut down for a cutover that the target would not take.
            Ok(RunState::Shutdown) => {
                self.end_in_good_order().await;
                return self.run_anew().await;
            }
            Ok(_) => {}
            Err(error) => return Ran::Unknown(error.to_string()),
        }
        if let Err(error) = machine.cont().await {
            return match error {
                MachineError::Qmp(QmpError::Refused { .. }) => Ran::Nothing(error.to_string()),
                error => Ran::Unknown(error.to_string()),
            };
        }
        match self.runs(&machine).await {
            Ok(()) => Ran::Runs,
            Err(error) => Ran::Unknown(error.to_string()),
        }
    }

    /// Waits until the guest executes, and shows it at once: nobody need ask again.
    async fn runs(&self, machine: &Machine) -> Result<(), MachineError> {
        machine.run_state_reached(&[RunState::Running], RUN_WAIT).await?;
        self.show(VmState::Running);
        Ok(())
    }

    /// The guest's process is gone, or there was none. One that came by a move and never ran is lost with its memory, and the
    /// source still has it; one that may have run starts from its disks, as after a power cut; and so does one that was shut down
    /// to come here.
    async fn run_anew(&mut self) -> Ran {
        let mut first = false;
        if let Record::Activating { ceded_by: Some(by), .. } = &self.record.ownership {
            // The machine knows whether this is the first try; if it is not, it refuses and the guest starts anew below.
            first = self.ownership.clone().apply(&Input::CannotRun).is_ok();
            if first && !self.is_cold_cutover(by.job) {
                return Ran::Nothing("its QEMU has ended".to_owned());
            }
        }
        match self.start_from_disks().await {
            Ok(()) => Ran::Runs,
            // It has not come so far that a guest could execute: there is none.
            Err(error) if first && self.guest.is_none() => Ran::Nothing(error.to_string()),
            Err(error) => Ran::Unknown(error.to_string()),
        }
    }

    /// Whether a job shuts its guest down, which then starts at the target.
    fn is_cold_cutover(&self, job: JobId) -> bool {
        let plan = self.host.journal.job(job).ok().flatten().map(|record| record.plan);
        plan.is_some_and(|plan| plan.mode == MoveMode::Cold && plan.cutover.is_some_and(|of| of.runs))
    }

    /// Ends a guest that is off, or is to be: its QEMU has time to flush its images and to write persistent bitmaps.
    pub async fn end_in_good_order(&mut self) {
        if let Some(guest) = &self.guest
            && guest.machine.quit().await.is_ok()
            && timeout(CLOSE_WAIT, guest.process.ended()).await.is_err()
        {
            warn!(vm = %self.record.spec.id, "QEMU takes too long to close its images, and is ended");
        }
        self.destroy().await;
    }

    async fn start_from_disks(&mut self) -> Result<(), HandoverError> {
        let guest = self.launch(&self.record.spec, false).await?;
        let machine = guest.machine.clone();
        self.guest = Some(guest);
        machine.cont().await?;
        self.runs(&machine).await?;
        Ok(())
    }

    async fn launch(&self, spec: &VmSpec, incoming: bool) -> Result<Launched, HandoverError> {
        let placement = self.host.placement(spec, incoming)?;
        if spec.firmware == Firmware::Uefi && !incoming {
            images::ensure_variable_store(&self.host, spec)?;
        }
        for (tap, nic) in placement.taps.iter().zip(&spec.nics) {
            if let (Some(tap), Some(bridge)) = (tap, &nic.bridge) {
                tap::create(tap, bridge).await?;
            }
        }
        let launch = Launch {
            program: QEMU.into(),
            arguments: command_line(spec, &placement)?,
            runtime: placement.runtime,
            unit: format!("sterna-vm-{}", spec.id),
        };
        Ok(launcher::launch(&launch, LAUNCH_WAIT).await?)
    }

    async fn remove_taps(&self) {
        for (index, nic) in (0_u8..).zip(&self.record.spec.nics) {
            if nic.bridge.is_some()
                && let Err(error) = tap::delete(&tap::tap_name(self.record.spec.id, index)).await
            {
                warn!(vm = %self.record.spec.id, %error, "a network interface is left over");
            }
        }
    }

    /// The target's guest runs: this host's guest ends, and the images that were copied go.
    async fn release(&mut self) {
        let Some(job) = job_of(&self.record.ownership) else { return self.destroy().await };
        match self.is_cold_cutover(job) {
            // Its images are kept, and what QEMU has not written of them would be amiss.
            true => self.end_in_good_order().await,
            false => self.destroy().await,
        }
        match self.host.journal.job(job) {
            Ok(Some(record)) if record.role == Role::Source => images::remove_moved(&self.host, &record.plan).await,
            Ok(_) => {}
            Err(error) => warn!(%job, %error, "the source's images are left over"),
        }
    }
}

fn job_of(record: &Record) -> Option<JobId> {
    match record {
        Record::Incoming { from, .. } => Some(from.job),
        Record::Activating { ceded_by, .. } => ceded_by.as_ref().map(|by| by.job),
        Record::Ceding { to, .. } | Record::Ceded { to, .. } => Some(to.job),
        Record::Absent { .. } | Record::Owner { .. } => None,
    }
}
