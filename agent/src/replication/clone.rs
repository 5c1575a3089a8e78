//! A clone: a VM of its own, made of a snapshot of a replica on this host. The replica, the replicated VM and its host are left
//! alone, and replication goes on meanwhile.
//!
//! ```text
//!   clone_disks ─────────────▶ adapt_os ─────────────▶ instantiate
//!   empty images that stand     the system on them       a seed for its cloud-init ([`super::seed`]); the VM is this
//!   on the snapshot's layers,   gets an identity of      host's, from the first generation on, and is started where
//!   or copies of these          its own ([`super::adapt`])    that is asked
//!      └────────── any failure, any cancel: everything that was made is gone ──────────┘
//! ```
//!
//! A rehearsal goes on with the step probe ([`super::rehearsal`]), and ends like that too where all goes well.
//!
//! **Contract.** Once the job is over, a rehearsal has left nothing. A clone is a VM like any other, and nothing here touches it
//! again but the layers that its disks stand on, which stay ([`crate::journal::ReplicaChange`]).

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{EventBody, JobKind, StepFigures, StepKind};
use sterna_shared::ownership::{Input, Record};
use sterna_shared::replica::{CloneOf, SeedWish};
use sterna_shared::vm::{DiskSpec, VmSpec};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::adapt::{Alive, adapt, hostname};
use super::{layers, rehearsal, seed, variables};
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::images::{self, ImageError};

/// The making of a clone.
#[derive(Debug)]
pub struct Cloner {
    context: Arc<Context>,
}

impl Cloner {
    /// A clone that is to be made, or was being made when the agent was restarted.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Makes it, to whatever end.
    pub async fn run(self) -> Outcome {
        let context = Arc::clone(&self.context);
        let (alive, mut gone) = mpsc::channel(1);
        let made = tokio::select! {
            biased;
            wish = context.gate.ended() => Err(MoveError::Ended(wish)),
            made = self.make(alive) => made,
        };
        // What still has the disks open is ended first, by whoever started it.
        let None = gone.recv().await;
        match made {
            Ok(()) if context.gate.close() => match self.keep().await {
                Ok(()) => Outcome::Completed { blackout_us: 0 },
                Err(error) => error_outcome(&context, &error),
            },
            Ok(()) => {
                let wish = context.gate.ended().await;
                self.undo(MoveError::Ended(wish)).await
            }
            Err(error) => self.undo(error).await,
        }
    }

    /// After a restart of the agent. A clone that is there may have been told of, and been used since; what was not made to its end goes.
    pub async fn recover(self) -> Outcome {
        let context = &self.context;
        let is_there = matches!(context.keeper.record().ownership, Record::Owner { .. });
        if !is_there || context.plan.kind == JobKind::Rehearse {
            return self.undo(MoveError::AgentRestarted).await;
        }
        let starts = context.plan.clone.as_ref().is_some_and(|clone| clone.start);
        if starts
            && matches!(context.keeper.machine().await, Ok(None))
            && let Err(error) = context.keeper.start().await
        {
            return error_outcome(context, &error.into());
        }
        Outcome::Completed { blackout_us: 0 }
    }

    async fn make(&self, alive: Alive) -> Result<(), MoveError> {
        let context = &self.context;
        let step = context.begin(StepKind::CloneDisks).await?;
        let mut spec = self.clone_disks().await?;
        context.end(step, StepFigures::default()).await?;
        let mut has_cloud_init = false;
        if context.plan.steps.contains(&StepKind::AdaptOs) {
            let step = context.begin(StepKind::AdaptOs).await?;
            has_cloud_init = adapt(context, &spec, alive).await?;
            context.end(step, StepFigures::default()).await?;
        }
        let step = context.begin(StepKind::Instantiate).await?;
        if let Some((wish, disk)) = self.seed()
            && (wish == SeedWish::Always || has_cloud_init)
        {
            self.add_seed(&mut spec, disk, has_cloud_init).await?;
        }
        context.keeper.respecify(spec).await?;
        context.keeper.feed(Input::Create).await?;
        if context.plan.clone.as_ref().is_some_and(|clone| clone.start) {
            context.keeper.start().await?;
        }
        let started = Instant::now();
        context.end(step, StepFigures::default()).await?;
        let Some(wanted) = context.plan.clone.as_ref().and_then(|clone| clone.rehearsal.as_ref()) else {
            return Ok(());
        };
        let step = context.begin(StepKind::Probe).await?;
        let figures = rehearsal::probe(context, wanted, started).await?;
        context.end(step, figures).await
    }

    /// Of what was made, what is to stay.
    async fn keep(&self) -> Result<(), MoveError> {
        if self.context.plan.kind == JobKind::Rehearse { self.remove().await } else { Ok(()) }
    }

    /// Its seed, where it may have one.
    fn seed(&self) -> Option<(SeedWish, DiskSpec)> {
        let plan = &self.context.plan;
        let wish = plan.clone.as_ref()?.seed;
        let disk = DiskSpec::seed(plan.vm.disks.first()?.pool.clone());
        (wish != SeedWish::Never).then_some((wish, disk))
    }

    /// Makes its seed, the last of its disks.
    async fn add_seed(&self, spec: &mut VmSpec, disk: DiskSpec, adapted: bool) -> Result<(), MoveError> {
        let hostname = hostname(&self.context.plan);
        let image = seed::image(spec, &hostname, adapted).map_err(ImageError::Seed)?;
        let pool = self.context.host.pool(&disk).map_err(ImageError::from)?;
        pool.create_of(spec.id, &disk.name, &image).map_err(ImageError::from)?;
        let text = format!("disk {} is a seed for cloud-init: instance {}, host name {hostname}", disk.name, spec.id);
        self.context.tell(EventBody::Notice { text }).await;
        spec.disks.push(disk);
        Ok(())
    }

    /// Makes its disks; what it is then. Layers may have been merged since it was planned.
    async fn clone_disks(&self) -> Result<VmSpec, MoveError> {
        let (host, plan) = (&self.context.host, &self.context.plan);
        let Some(CloneOf { replica, snapshot, .. }) = &plan.clone else {
            return Err(MoveError::Stale { what: "the plan does not say what the clone is made of" });
        };
        // The plan is in the journal: from here on no layer goes that this snapshot needs.
        let _in_use = host.layers_in_use.lock().await;
        let record = host.journal.replica(*replica)?.filter(|record| !record.dropped);
        let replica = record.ok_or(MoveError::Stale { what: "the replica is no longer there" })?.replica;
        let layer = replica.layer_of(*snapshot).ok_or(MoveError::Stale { what: "the snapshot is no longer there" })?;
        let seed = self.seed().map(|(_, disk)| disk);
        images::expect_free(host, plan.vm.id, plan.vm.disks.iter().chain(&seed))?;
        host.journal.note_images_made(plan.job, true).await?;
        let mut spec = plan.vm.clone();
        for disk in &mut spec.disks {
            let pool = host.pool(disk).map_err(ImageError::from)?;
            let image = pool.create(plan.vm.id, &disk.name, disk.format, disk.size).await.map_err(ImageError::from)?;
            let origin = replica.disks.iter().find(|origin| origin.name == disk.name);
            let origin = origin.ok_or(MoveError::Stale { what: "the replica has no such disk" })?;
            match &mut disk.base {
                Some(base) => base.layer = layer,
                None => {
                    let files = layers::files_of(host, &replica, origin, layer)?;
                    pool.copy_layers(&files, &image, disk.format).await.map_err(ImageError::from)?;
                }
            }
        }
        if let Some(text) = variables::place(host, &replica, layer, &spec)? {
            self.context.tell(EventBody::Notice { text }).await;
        }
        Ok(spec)
    }

    async fn undo(&self, error: MoveError) -> Outcome {
        let context = &self.context;
        info!(job = %context.plan.job, reason = %error, "unwinding");
        let error = context.gate.wish().map_or(error, MoveError::Ended);
        context.unwinding(&error).await;
        let removed = self.remove().await;
        error_outcome(context, &removed.err().unwrap_or(error))
    }

    async fn remove(&self) -> Result<(), MoveError> {
        let context = &self.context;
        if matches!(context.keeper.machine().await, Ok(Some(_)))
            && let Err(error) = context.keeper.stop(true, Duration::ZERO).await
        {
            warn!(job = %context.plan.job, %error, "the clone's guest is left over");
        }
        if let Record::Owner { .. } = context.keeper.record().ownership
            && let Err(error) = context.keeper.feed(Input::Delete).await
        {
            warn!(job = %context.plan.job, %error, "the clone is left over");
            return Err(error.into());
        }
        if context.host.journal.images_made(context.plan.job).unwrap_or(false) {
            let VmSpec { id: vm, .. } = context.plan.vm;
            let seed = self.seed().map(|(_, disk)| disk);
            let seed_is_gone = images::remove(&context.host, vm, &seed.iter().collect::<Vec<_>>()).await;
            if !images::remove_all(&context.host, &context.plan.vm).await || !seed_is_gone {
                return Err(ImageError::LeftOver { vm }.into());
            }
        }
        Ok(())
    }
}

fn error_outcome(context: &Context, error: &MoveError) -> Outcome {
    error.outcome(&context.host, StepFigures::default())
}
