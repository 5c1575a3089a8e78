//! A guest at rest while the point in time is taken, where its own agent can have it so.

use std::time::Instant;

use sterna_shared::job::EventBody;
use sterna_shared::replica::Consistency;
use tracing::{info, warn};

use crate::hypervisor::qemu::guest_agent::{self, GuestAgent, GuestAgentError};
use crate::hypervisor::qemu::runtime::RuntimeDirectory;
use crate::migration::context::{Context, MoveError};

/// A guest whose file systems are frozen, or one that goes on writing. Dropped, it goes on as well.
#[derive(Debug)]
pub struct Rest(Option<(GuestAgent, Instant)>);

impl Rest {
    /// Freezes the guest's file systems, where its specification says that it runs an agent. Where they cannot be frozen the job
    /// says why, and the guest goes on writing.
    ///
    /// # Errors
    /// There is no way to name the agent's port.
    pub async fn begin(context: &Context) -> Result<Self, MoveError> {
        if !context.plan.vm.guest_agent {
            return Ok(Self(None));
        }
        let path = runtime(context)?.guest_agent_socket();
        let frozen = async {
            let mut agent = GuestAgent::connect(&path).await?;
            let begun = Instant::now();
            agent.freeze().await?;
            Ok::<_, GuestAgentError>((agent, begun))
        };
        match frozen.await {
            Ok(frozen) => Ok(Self(Some(frozen))),
            Err(error) => {
                not_at_rest(context, &error).await;
                Ok(Self(None))
            }
        }
    }

    /// Thaws them: how consistent what was taken in between is.
    pub async fn end(self, context: &Context) -> Consistency {
        let Some((mut agent, begun)) = self.0 else { return Consistency::Crash };
        match agent.thaw().await {
            Ok(()) => {
                let frozen_ms = begun.elapsed().as_millis();
                info!(job = %context.plan.job, frozen_ms, "the guest's file systems were frozen, and are thawed");
                Consistency::Application
            }
            // It may have thawed by itself before its time, as Windows does.
            Err(error) => {
                not_at_rest(context, &error).await;
                Consistency::Crash
            }
        }
    }
}

async fn not_at_rest(context: &Context, error: &GuestAgentError) {
    warn!(job = %context.plan.job, error = error as &dyn std::error::Error, "the snapshot is crash-consistent");
    context.tell(EventBody::Notice { text: format!("the snapshot is crash-consistent: {error}") }).await;
}

/// Lets a guest go on that an agent left frozen which was killed in the middle of it. Takes 2 s at the most.
pub async fn end_left_over(context: &Context) {
    if context.plan.vm.guest_agent
        && let Ok(runtime) = runtime(context)
    {
        guest_agent::thaw_left_frozen(&runtime.guest_agent_socket()).await;
    }
}

fn runtime(context: &Context) -> Result<RuntimeDirectory, MoveError> {
    context.host.runtime(context.plan.vm.id).map_err(MoveError::Runtime)
}
