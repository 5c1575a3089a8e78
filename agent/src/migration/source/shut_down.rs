//! A cold cutover of a guest that runs: it is copied while it runs on, shut down, and what it wrote until then follows.
//!
//! ```text
//!   copy_disks ─▶ power button ─▶ off: QEMU stays, with disks and bitmaps ─▶ switchover: the last pass ─▶ prove
//!                     └─ not in time: the job fails, or with `force` the guest is stopped where it is
//! ```
//!
//! QEMU is told not to end with its guest: it serves what the last pass reads, and its bitmap says what that is. A guest that is
//! off has still to be started again where the job comes to nothing, which is told by QEMU's run state alone: so an agent that
//! was restarted finds it too.

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{EventBody, MoveMode, Plan, StepFigures, StepKind};
use tokio::time::timeout;
use tracing::{info, warn};

use super::Source;
use crate::hypervisor::qemu::{Machine, RunState, ShutdownAction};
use crate::migration::context::MoveError;

/// How long a guest may take to obey its power button.
const SHUT_DOWN_WAIT: Duration = Duration::from_secs(120);
/// How long a guest that has had its power button pressed may go down after a job that was given up: it is started again then.
const ON_ITS_WAY_WAIT: Duration = SHUT_DOWN_WAIT;
/// How long the job itself waits for that.
const UNWIND_WAIT: Duration = Duration::from_secs(20);

/// Whether the guest of a plan runs until the job shuts it down.
pub(super) fn shuts_down(plan: &Plan) -> bool {
    plan.mode == MoveMode::Cold && plan.cutover.is_some_and(|of| of.runs)
}

impl Source {
    /// Has the guest shut itself down.
    pub(super) async fn shut_down(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::ShutDown).await?;
        let machine = self.machine.clone().ok_or(MoveError::NotConnected)?;
        machine.on_shutdown(ShutdownAction::Pause).await?;
        self.power_button_pressed = true;
        machine.power_button().await?;
        info!(job = %context.plan.job, "the guest's power button is pressed");
        if let Err(error) = machine.run_state_reached(&[RunState::Shutdown], SHUT_DOWN_WAIT).await {
            let force = context.plan.cutover.is_some_and(|of| of.force);
            if !force {
                warn!(job = %context.plan.job, %error, "the guest does not shut down");
                return Err(MoveError::NotShutDown { seconds: SHUT_DOWN_WAIT.as_secs() });
            }
            let text = format!("the guest did not shut down within {} s, and is stopped", SHUT_DOWN_WAIT.as_secs());
            context.tell(EventBody::Notice { text }).await;
            machine.stop().await?;
        }
        context.end(step, StepFigures::default()).await
    }

    /// What the guest wrote until it was off follows.
    pub(super) async fn final_sync(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Switchover).await?;
        self.pass().await?;
        let figures = self.disk_figures();
        context.end(step, figures).await
    }

    /// The job comes to nothing: the guest runs on, or is started again; also where it is on its way down and goes off later.
    pub(super) async fn let_run_again(&self, machine: &Machine) {
        let (job, keeper, machine) = (self.plan().job, self.context.keeper.clone(), machine.clone());
        let pressed = self.power_button_pressed;
        let waits = async move {
            let runs = machine.run_state().await.is_ok_and(|state| state == RunState::Running);
            let wait = if pressed && runs { ON_ITS_WAY_WAIT } else { Duration::ZERO };
            let _ = machine.run_state_reached(&[RunState::Shutdown], wait).await;
            // From here on its QEMU ends with it; whether it went off before is asked after that.
            if let Err(error) = machine.on_shutdown(ShutdownAction::PowerOff).await {
                warn!(%job, %error, "when the guest shuts down its QEMU will stay");
            }
            if !matches!(machine.run_state().await, Ok(RunState::Shutdown)) {
                return;
            }
            if !keeper.record().wanted_running {
                let _ = machine.quit().await; // Somebody has stopped it meanwhile.
                return;
            }
            info!(%job, "the guest was shut down by the job, and is started again");
            if let Err(error) = keeper.start().await {
                warn!(%job, %error, "the guest is off; start it with `sterna vm start`");
            }
        };
        let task = tokio::spawn(waits);
        // The job does not wait longer than it takes most guests; the rest goes on without it.
        let _ = timeout(UNWIND_WAIT, task).await;
    }
}
