//! The step probe of a rehearsal: a clone that runs where it reaches nothing is asked whether it is healthy, until it is or its
//! time is up. Each probe is tried again until it is answered; what it sees, and when, is told.

use std::time::Duration;

use futures_util::future::join_all;
use sterna_shared::host::VmState;
use sterna_shared::job::{EventBody, StepFigures};
use sterna_shared::rehearsal::{HealthProbe, Rehearsal};
use tokio::time::{Instant, sleep, timeout_at};

use crate::guest::health::{Miss, Patient, Search, Unhealthy};
use crate::migration::context::{Context, MoveError};

/// The pause between two tries of a probe.
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// Probes the guest that was started at that instant.
///
/// # Errors
/// [`MoveError::Unhealthy`] and others; the guest may run.
pub async fn probe(context: &Context, rehearsal: &Rehearsal, started: Instant) -> Result<StepFigures, MoveError> {
    let runtime = context.host.runtime(context.plan.vm.id).map_err(MoveError::Runtime)?;
    let seconds = started.elapsed().as_secs();
    let machine = context.keeper.machine().await?.ok_or(Unhealthy::Ended { seconds })?;
    let (vm, commands) = (context.plan.vm.name.clone(), context.host.config.probe_commands.clone());
    let guest = Patient::reach(machine, runtime, rehearsal, vm, commands).await?;
    let probing = Probing { context, rehearsal, guest, started };
    let healthy = probing.is_healthy().await;
    if healthy.is_err()
        && let Some(text) = probing.guest.last_words().await
    {
        probing.tell(format!("its console ends with: {text}")).await;
    }
    healthy?;
    let healthy_ms = u64::try_from(started.elapsed().as_millis()).ok();
    Ok(StepFigures { healthy_ms, ..StepFigures::default() })
}

struct Probing<'a> {
    context: &'a Context,
    rehearsal: &'a Rehearsal,
    guest: Patient,
    started: Instant,
}

impl Probing<'_> {
    async fn is_healthy(&self) -> Result<(), Unhealthy> {
        let mut view = self.context.keeper.view();
        let answers = join_all(self.rehearsal.probes.iter().map(|probe| self.until_answered(probe)));
        tokio::select! {
            biased;
            answers = answers => answers.into_iter().collect(),
            _ = view.wait_for(|view| matches!(view.state, VmState::Stopped | VmState::Failed)) => {
                Err(Unhealthy::Ended { seconds: self.started.elapsed().as_secs() })
            }
        }
    }

    async fn until_answered(&self, probe: &HealthProbe) -> Result<(), Unhealthy> {
        let seconds = self.rehearsal.probe_seconds;
        let deadline = self.started + Duration::from_secs(seconds.into());
        let (mut search, mut last) = (Search::default(), Miss::Silent);
        while let Ok(tried) = timeout_at(deadline, self.guest.answers(probe, &mut search)).await {
            let Err(miss) = tried else {
                let after = self.started.elapsed().as_secs_f64();
                self.tell(format!("probe {probe}: answered {after:.1} s after the guest's start")).await;
                return Ok(());
            };
            last = miss;
            sleep(TRY_PAUSE).await;
        }
        self.tell(format!("probe {probe}: not answered within {seconds} s of the guest's start: {last}")).await;
        Err(Unhealthy::Unanswered { probe: probe.clone(), seconds, seen: Box::new(last) })
    }

    async fn tell(&self, text: String) {
        self.context.tell(EventBody::Notice { text }).await;
    }
}
