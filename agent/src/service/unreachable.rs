//! VMs whose guests ran when this agent started, and could not be driven.
//!
//! Nobody knows what such a guest does; its disks may be written to. So its VM is here, nothing is done with it, and the guest is
//! looked at again until it answers or has ended. Then the VM is kept as any other, and its jobs are taken up.

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::bus::AgentReply;
use sterna_shared::host::{VmReport, VmState};
use sterna_shared::id::VmId;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{ATTACH_WAIT, Service};
use crate::guest::launcher::{self, Launched};
use crate::journal::{JournalError, Stage, VmRecord};
use crate::migration::handover::View;
use crate::requests;

/// The pause between two looks at a guest.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A guest that answers, or is gone.
#[derive(Debug)]
pub(super) struct Reached {
    vm: VmId,
    guest: Option<Launched>,
}

impl Service {
    /// Keeps in mind that a VM's guest cannot be driven, and has it looked at.
    pub(super) fn cannot_reach(&mut self, record: VmRecord) {
        let (vm, host, reached) = (record.spec.id, Arc::clone(&self.host), self.tell_reached.clone());
        self.unreachable.insert(vm, record);
        tokio::spawn(async move {
            loop {
                sleep(LOOK_INTERVAL).await;
                let Ok(runtime) = host.runtime(vm) else { continue };
                if let Ok(guest) = launcher::attach(&runtime, ATTACH_WAIT).await {
                    // Whoever would hear it is gone with the agent.
                    let _ = reached.send(Reached { vm, guest }).await;
                    return;
                }
            }
        });
    }

    /// Takes a VM up whose guest could not be driven before.
    pub(super) async fn reached(&mut self, Reached { vm, guest }: Reached) {
        let Some(record) = self.unreachable.remove(&vm) else { return };
        info!(%vm, name = %record.spec.name, running = guest.is_some(), "a guest that was out of reach is kept again");
        self.keepers.insert(vm, self.keep(record, guest));
        if let Err(failure) = self.take_up_jobs_of(vm).await {
            error!(%vm, error = &failure as &dyn std::error::Error, "jobs are taken up by the next agent");
        }
    }

    async fn take_up_jobs_of(&mut self, vm: VmId) -> Result<(), JournalError> {
        for record in self.host.journal.jobs()? {
            let job = record.plan.job;
            if record.plan.vm.id == vm && record.stage != Stage::Over && !self.jobs.contains_key(&job) {
                warn!(%job, "a job is taken up late");
                self.begin(record, true).await?;
            }
        }
        Ok(())
    }

    /// Whether nobody keeps a VM that is here, since its guest cannot be driven.
    pub(super) fn is_out_of_reach(&self, vm: VmId) -> bool {
        self.unreachable.contains_key(&vm)
    }

    /// What is answered to whoever wants something of such a VM.
    pub(super) fn out_of_reach(&self, vm: VmId) -> Option<AgentReply> {
        let record = self.unreachable.get(&vm)?;
        Some(requests::refused(
            format!("the guest of VM {} may run at this host, and does not answer", record.spec.name),
            "see what hinders its QEMU (storage that hangs, a stopped process), or end that process; its VM is taken up by itself then",
        ))
    }

    /// What the fleet is told of these VMs.
    pub(super) fn unreachable_reports(&self) -> impl Iterator<Item = VmReport> {
        let view = |record: &VmRecord| View { record: record.clone(), state: VmState::Failed, unchanged_since: None };
        self.unreachable.values().map(move |record| view(record).report(None))
    }
}
