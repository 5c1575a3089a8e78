//! The step adapt_os: the system on a clone's disks gets an identity of its own, before the clone is anybody's.
//!
//! ```text
//!   the disks ──▶ helper guest ──▶ what it reports, a notice each
//! ```
//!
//! A system that is not recognised is left as it is, and the clone is made; one that was begun with and not brought to an end
//! fails the job, which throws the disks away. It runs as a task of its own, since a QEMU must be seen to its end also where the
//! job is not: whoever holds the other end of [`Alive`] knows when it is over.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sterna_adapter::protocol::{Order, Report};
use sterna_shared::job::{EventBody, Plan};
use sterna_shared::vm::VmSpec;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::config::AdapterSettings;
use crate::guest::adapter::{self, Adapter, AdapterError};
use crate::guest::hooks;
use crate::guest::launcher::LaunchError;
use crate::host::PlacementError;
use crate::hypervisor::qemu::QEMU;
use crate::migration::context::{Context, MoveError};
use crate::migration::images::{self, ImageError};

/// Held by what must have ended before the clone's disks are anybody else's.
pub type Alive = mpsc::Sender<Infallible>;

/// Adapts the system on the disks of a clone; whether it has cloud-init.
///
/// # Errors
/// [`MoveError`]; the disks are in an unknown state then.
pub async fn adapt(context: &Arc<Context>, spec: &VmSpec, alive: Alive) -> Result<bool, MoveError> {
    let (of, spec) = (Arc::clone(context), spec.clone());
    let task = tokio::spawn(async move {
        let outcome = by_helper_guest(&of, &spec).await;
        drop(alive);
        outcome
    });
    // A task ends otherwise only with the agent.
    task.await.unwrap_or(Err(MoveError::AgentRestarted))
}

async fn by_helper_guest(context: &Context, spec: &VmSpec) -> Result<bool, MoveError> {
    let host = &context.host;
    let Some(settings) = &host.config.adapter else {
        return Err(MoveError::Stale { what: "the host no longer has a helper guest" });
    };
    let mut disks = Vec::new();
    for disk in &spec.disks {
        disks.push((disk, host.image(spec.id, disk).map_err(ImageError::from)?));
    }
    let order = order(context, settings, spec).await?;
    let adapter = Adapter {
        program: Path::new(QEMU),
        kernel: &settings.kernel,
        initrd: &settings.initrd,
        accelerator: host.probe.hypervisor.accelerator,
        disks,
        runtime: host
            .storage_runtime(context.plan.job, images::ADAPTER)
            .map_err(|error| ImageError::from(PlacementError::from(error)))?,
        unit: format!("sterna-job-{}-{}", context.plan.job, images::ADAPTER),
    };
    let launched = match adapter.start().await {
        Ok(launched) => launched,
        Err(error) => {
            // Where something runs, its directory is what it is found by.
            let runs = matches!(error, AdapterError::Launch(LaunchError::Occupied { .. } | LaunchError::Kill(_)));
            if !runs && let Err(error) = adapter.runtime.remove() {
                warn!(directory = %adapter.runtime.path().display(), %error, "a runtime directory is left over");
            }
            return Err(error.into());
        }
    };
    let mut has_cloud_init = false;
    let hear = |report: Report| {
        has_cloud_init |= matches!(report, Report::Found { cloud_init: true, .. });
        tell(context, report)
    };
    let outcome = tokio::select! {
        biased;
        wish = context.gate.ended() => Err(MoveError::Ended(wish)),
        outcome = adapter::adapt(&launched, &order, hear) => outcome.map_err(MoveError::from),
    };
    let runtime = launched.runtime.clone();
    if let Err(error) = launched.end(Duration::ZERO).await {
        warn!(directory = %runtime.path().display(), %error, "a helper guest is left over");
        return outcome.and(Err(AdapterError::Launch(error).into()));
    }
    outcome.map(|()| has_cloud_init)
}

/// What the system of a clone calls itself.
#[must_use]
pub fn hostname(plan: &Plan) -> String {
    let wished = plan.clone.as_ref().and_then(|clone| clone.hostname.clone());
    wished.map_or_else(|| Order::hostname_of(plan.vm.name.as_str()), String::from)
}

async fn order(context: &Context, settings: &AdapterSettings, spec: &VmSpec) -> Result<Order, AdapterError> {
    let hooks = settings.hooks.as_deref().map(hooks::read).transpose()?.unwrap_or_default();
    for name in hooks.left_out {
        context.tell(EventBody::Notice { text: format!("hook {name} is left out: nobody may execute it") }).await;
    }
    Ok(Order {
        hostname: hostname(&context.plan),
        // As systemd itself makes it of a virtual machine's UUID.
        machine_id: spec.id.uuid().as_simple().to_string(),
        disks: adapter::names_in_guest(spec),
        hooks: hooks.run,
        hooks_may_fail: settings.hooks_may_fail,
    })
}

async fn tell(context: &Context, report: Report) {
    let text = match report {
        Report::Found { device, system, .. } => format!("the system on {device} is adapted: {system}"),
        Report::Unrecognised { text } => format!("the system is left as it is: {text}"),
        Report::Changed { action, text } => format!("{}: {text}", action.as_str()),
        Report::Left { action, text } => format!("{} left as it was: {text}", action.as_str()),
        Report::Failed { .. } | Report::Over => return,
    };
    info!(job = %context.plan.job, %text, "adapted");
    context.tell(EventBody::Notice { text }).await;
}
