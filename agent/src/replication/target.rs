//! The target of a replication cycle: it follows, step by step, what the source leads.
//!
//! ```text
//!   CycleOpen ─▶ CycleBegin ─▶ [Held …] ─▶ blocks ─▶ PassEnd ─▶ CycleCommit ─▶ Finished
//!                a new layer                                     digests equal: one write to the journal, and the snapshot
//!                on those there                                  is there, of all disks
//!   any end before that write: nobody has ever seen the layer, and the next cycle goes on with it
//! ```

use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{FailureCode, FailureReport, Plan};
use sterna_shared::peer::message::Message;
use sterna_shared::replica::{Consistency, LAYERS_MAX, Replica, Snapshot, limit_reached};
use sterna_shared::time::Timestamp;
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{DiskSpec, Firmware};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{layers, variables};
use crate::clock;
use crate::disk::copy::target::Origin;
use crate::disk::digest::{DigestTable, pack};
use crate::disk::extent::ExtentSet;
use crate::disk::pool::Note;
use crate::guest::launcher::Launched;
use crate::host::headroom::NearlyFull;
use crate::hypervisor::qemu::Export;
use crate::hypervisor::qemu::command_line::format_node;
use crate::journal::{ReplicaChange, ReplicaRecord};
use crate::link::Session;
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::conversation::Conversation;
use crate::migration::dial::{Arrival, arrival};
use crate::migration::images::{self, ImageError};
use crate::migration::partial;
use crate::migration::target_disks::{Images, Ledger, Place, Proof, TargetDiskError, TargetDisks, export_name};

/// How long it may take to write down what was received, before the layer is let go.
const SAVE_WAIT: Duration = Duration::from_secs(5);
/// How long the lanes may take to deliver the end.
const FINISH_WAIT: Duration = Duration::from_secs(10);

/// A cycle, followed by this host.
#[derive(Debug)]
pub struct CycleTarget {
    context: Arc<Context>,
    layer: Option<NewLayer>,
    daemon: Option<Launched>,
    disks: Option<TargetDisks>,
    /// Why the cycle is given up, as far as that was said.
    cause: Option<FailureCode>,
    /// What the source was told first of why the cycle cannot go on here.
    told: Option<FailureReport>,
}

/// A layer that is being filled.
#[derive(Debug, Clone)]
struct NewLayer {
    /// The replica without it.
    replica: Replica,
    number: u32,
    point: Point,
    /// Whether only changes come.
    changes: bool,
}

/// The point in time that a layer is of.
#[derive(Debug, Clone)]
struct Point {
    taken_at: Timestamp,
    consistency: Consistency,
    variables: Option<Vec<u8>>,
}

impl CycleTarget {
    /// A cycle that has just been accepted, or is taken up after a restart of the agent.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, layer: None, daemon: None, disks: None, cause: None, told: None }
    }

    /// Follows the source, to whatever end.
    pub async fn run(mut self, mut sessions: mpsc::Receiver<Session>) -> Outcome {
        match arrival(&self.context, &mut sessions).await {
            Arrival::Came(session) => self.follow(session).await,
            Arrival::Nobody => {}
            Arrival::Stopping => return Outcome::Stopping,
        }
        self.put_away().await;
        self.tidy().await;
        Outcome::Followed
    }

    /// After a restart of the agent: a layer that is in no record goes, and the source begins anew.
    pub async fn recover(self) -> Outcome {
        let (host, plan) = (&self.context.host, &self.context.plan);
        images::end_leftover_daemons(host, plan).await;
        if let Ok(None) = host.journal.replica(plan.vm.id) {
            layers::remove_orphans(
                host,
                &Replica::new(plan.vm.clone(), disks_here(plan), plan.source.id.clone()),
                None,
            );
        }
        self.tidy().await;
        Outcome::Followed
    }

    async fn follow(&mut self, mut session: Session) {
        let context = Arc::clone(&self.context);
        let (job, peer) = (context.plan.job, session.peer().clone());
        let Ok(control) = session.control() else { return };
        let mut conversation = Conversation::open(peer, job, session.sender(), control, context.keeper.clone()).await;
        let mut failed = false;
        loop {
            let next = tokio::select! {
                biased;
                next = conversation.next() => next,
                error = fault_of(self.disks.as_ref()), if !failed => {
                    failed = true;
                    let failure = self.cannot_go_on("writing", &error.into());
                    match conversation.say(&failure).await {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
                full = pools_fill_up(&context, self.layer.is_some()), if !failed => {
                    failed = true;
                    let failure = self.cannot_go_on("writing", &full.into());
                    // Whether the source obeys or not, no more is written.
                    self.disks = None;
                    match conversation.say(&failure).await {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
            };
            let message = match next {
                Ok(message) => message,
                Err(error) => return info!(%job, %error, "the source is gone"),
            };
            let name = message.name();
            let over = matches!(message, Message::Abort { .. });
            // What makes files or processes is done to its end, or nobody would know what to undo.
            let patient = matches!(message, Message::CycleBegin { .. } | Message::CycleCommit { .. });
            let given_up = conversation.given_up();
            let obeyed = tokio::select! {
                biased;
                () = given_up, if !patient && !over => continue,
                obeyed = self.obey(message, &mut session) => obeyed,
            };
            let answer = match obeyed {
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    let _ = tokio::time::timeout(FINISH_WAIT, session.ended()).await;
                    return;
                }
                Err(error) => {
                    failed = true;
                    self.cannot_go_on(name, &error)
                }
            };
            if over {
                self.put_away().await;
            }
            if let Err(error) = conversation.say(&answer).await {
                return info!(%job, %error, "the source is gone");
            }
        }
    }

    fn cannot_go_on(&mut self, what: &str, error: &MoveError) -> Message {
        warn!(job = %self.context.plan.job, what, error = error as &dyn std::error::Error, "the cycle cannot go on here");
        // What cannot be done any more for that reason is no other reason.
        let failure = self.told.get_or_insert_with(|| error.report(&self.context.host)).clone();
        self.cause = Some(failure.code);
        Message::Failed { failure }
    }

    /// Does what the source asks; nothing is answered to what ends the cycle.
    async fn obey(&mut self, message: Message, session: &mut Session) -> Result<Option<Message>, MoveError> {
        Ok(Some(match message {
            Message::CycleOpen => self.open()?,
            Message::CycleBegin { taken_at, consistency, changes, variables } => {
                let held = self.begin(session, Point { taken_at, consistency, variables }, changes).await?;
                Message::Prepared { held }
            }
            Message::Held { disk, first } => {
                let disks = self.disks.as_ref().ok_or(MoveError::OutOfOrder { message: "held" })?;
                let chunks = disks.held(disk, first).await?;
                Message::HeldDigests { disk, first, chunks: pack(&chunks) }
            }
            Message::PassEnd { pass, blocks } => {
                let disks = self.disks.as_ref().ok_or(MoveError::OutOfOrder { message: "pass end" })?;
                disks.applied(blocks).await?;
                Message::PassApplied { pass }
            }
            Message::CycleCommit { roots } => {
                self.commit(&roots).await?;
                Message::CycleCommitted
            }
            Message::Abort { failure } => {
                info!(job = %self.context.plan.job, reason = %failure, "the source gives the cycle up");
                self.cause = self.cause.or(Some(failure.code));
                Message::Aborted
            }
            Message::Finished => return Ok(None),
            other => return Err(MoveError::OutOfOrder { message: other.name() }),
        }))
    }

    /// What is here of earlier cycles. A latest snapshot of which the digests are not there, or that a verification has found
    /// damaged, is none on which changes can be laid: everything is compared, or sent.
    fn open(&self) -> Result<Message, MoveError> {
        let host = &self.context.host;
        let record = host.journal.replica(self.context.plan.vm.id)?;
        let part = record.as_ref().is_some_and(|record| record.part.is_some());
        let replica = record.map(|record| record.replica);
        let known = |replica: &Replica| replica.disks.iter().all(|disk| layers::table(host, replica, disk).is_some());
        let latest = replica.filter(known).and_then(|replica| replica.latest().cloned());
        let latest = latest.filter(|latest| !latest.damaged);
        let attempt = latest.as_ref().map_or(0, |latest| latest.attempt);
        Ok(Message::CycleOpened { latest: latest.map(|latest| latest.cycle), attempt, part })
    }

    async fn begin(&mut self, session: &mut Session, point: Point, changes: bool) -> Result<Vec<u64>, MoveError> {
        let context = Arc::clone(&self.context);
        let (host, plan) = (&context.host, &context.plan);
        if self.layer.is_some() {
            return Err(MoveError::OutOfOrder { message: "cycle begin" });
        }
        if plan.vm.firmware == Firmware::Uefi && point.variables.is_none() {
            return Err(ImageError::NoVariables.into());
        }
        let disks = disks_here(plan);
        // From the look at the record until it names the new layer: what an earlier replica has left goes before that, or after.
        let changes_of_layers = layers::hold(host).await;
        let record = self.expect_headroom(&disks).await?;
        let part = record.as_ref().and_then(|record| record.part.clone());
        let replica = match record {
            None => Replica::new(plan.vm.clone(), disks, plan.source.id.clone()),
            Some(record) if record.dropped => {
                return Err(MoveError::Stale {
                    what: "a replica of the VM was removed here, and is not gone yet: clones stand on it, or its layers are merged",
                });
            }
            Some(record) if !same_disks(&record.replica.disks, &disks) => {
                return Err(MoveError::Stale { what: "the VM's disks are not those of its replica" });
            }
            Some(record) if record.replica.layers.len() >= LAYERS_MAX => {
                return Err(MoveError::Stale { what: "the replica has as many layers as it may; delete clones of it" });
            }
            Some(record) => record.replica,
        };
        if limit_reached(&host.replicas(), plan.vm.id).is_some() {
            return Err(MoveError::Stale { what: "the host has as many layers of replicas as it may" });
        }
        if changes && replica.layers.is_empty() {
            return Err(MoveError::OutOfOrder { message: "cycle begin" });
        }
        let number = replica.next;
        // Known to be made from here on, so that it goes however this ends.
        self.layer = Some(NewLayer { replica: replica.clone(), number, point, changes });
        let part = part.filter(|part| part.number == number && layers::is_there(host, &replica, number));
        if part.is_none() {
            layers::make(host, &replica, number).await?;
            host.journal.change_replica(plan.vm.id, ReplicaChange::Begin(Box::new(replica.clone()))).await?;
        }
        drop(changes_of_layers);
        let daemon = layers::serve(host, plan, &replica, number).await?;
        let (machine, socket) = (daemon.machine.clone(), daemon.runtime.nbd_socket());
        self.daemon = Some(daemon);
        machine.nbd_server_start(&socket).await?;
        for (index, disk) in replica.disks.iter().enumerate() {
            let (name, node) = (export_name(index), format_node(&disk.name));
            machine.export_add(&Export { id: name.clone(), node, name, writable: true, bitmaps: Vec::new() }).await?;
        }
        let blocks = session.blocks().map_err(|source| MoveError::Connect { peer: plan.source.id.clone(), source })?;
        let mut tables: Vec<Option<DigestTable>> =
            replica.disks.iter().map(|disk| layers::table(host, &replica, disk)).collect();
        let mut received: Vec<Option<ExtentSet>> = match &part {
            Some(part) => part.disks.iter().map(|disk| Some(disk.received())).collect(),
            None => vec![None; replica.disks.len()],
        };
        let mut held = Vec::new();
        for (index, disk) in replica.disks.iter().enumerate() {
            let (table, received) = (&mut tables[index], received.get_mut(index).and_then(Option::as_mut));
            let of_part = received.as_ref().map_or(0, |received| received.total());
            held.push(table.as_ref().map_or(of_part, |_| disk.size.0));
            let (Some(table), Some(received)) = (table, received) else { continue };
            // What a cycle that was cut has written is not what the latest snapshot holds. Its image alone knows all of it: what
            // was written down is older, or less, and a chunk that is believed to be as it was is neither sent nor read back.
            let own = layers::own_content(&machine, &socket, index, disk).await?;
            own.iter().for_each(|extent| received.insert(extent));
            received.iter().for_each(|extent| table.mark_stale(extent));
        }
        let ledger = Ledger { journal: host.journal.clone(), vm: plan.vm.id, job: plan.job, place: Place::Replica };
        let origin = if replica.layers.is_empty() { Origin::Fresh } else { Origin::Used };
        let images = Images {
            held: received,
            origin: |_: &DiskSpec| origin,
            page_caches: Vec::new(),
            tables,
            ledger: Some(ledger),
        };
        self.disks = Some(TargetDisks::open(&socket, &plan.disks, images, blocks).await?);
        Ok(held)
    }

    /// The replica's record, where there is room for a cycle. What one that was cut has left may be what is lacking: then it goes,
    /// and is sent anew.
    async fn expect_headroom(&self, disks: &[DiskSpec]) -> Result<Option<ReplicaRecord>, MoveError> {
        let (host, vm) = (&self.context.host, self.context.plan.vm.id);
        let record = host.journal.replica(vm)?;
        let Err(full) = host.expect_headroom(disks) else { return Ok(record) };
        let Some(ReplicaRecord { replica, part: Some(part), .. }) = &record else { return Err(full.into()) };
        let left = host.journal.change_replica(vm, ReplicaChange::GiveUp).await?;
        layers::remove(host, replica, part.number);
        info!(job = %self.context.plan.job, layer = part.number, %full, "what an earlier cycle has left goes");
        host.expect_headroom(disks)?;
        Ok(left.map(|(record, _)| record))
    }

    /// What was written is compared with what the source read; then the snapshot is there.
    async fn commit(&mut self, roots: &[[u8; 32]]) -> Result<(), MoveError> {
        let out_of_order = || MoveError::OutOfOrder { message: "cycle commit" };
        let context = Arc::clone(&self.context);
        let (host, plan) = (&context.host, &context.plan);
        let disks = self.disks.take().ok_or_else(out_of_order)?;
        let layer = self.layer.clone().ok_or_else(out_of_order)?;
        let proofs: Vec<Proof> = disks.prove(layer.changes).await?;
        if proofs.len() != roots.len() {
            return Err(MoveError::ProofIncomplete { expected: proofs.len(), found: roots.len() });
        }
        let differing = proofs.iter().zip(roots).position(|(proof, root)| proof.digest != *root);
        if let Some(disk) = differing.and_then(|index| plan.disks.get(index)) {
            return Err(MoveError::DigestsDiffer { disk: disk.source.name.clone() });
        }
        // Closed well, so that all of it is on stable storage before the journal says so.
        if let Some(daemon) = self.daemon.take() {
            images::end_daemon(daemon).await;
        }
        let NewLayer { mut replica, number, point, .. } = layer;
        let mut layers_of_it = replica.layers.iter().map(|layer| layer.number).chain([number]);
        if !layers_of_it.all(|layer| layers::is_there(host, &replica, layer)) {
            return Err(MoveError::Stale { what: "files of the VM's replica were removed in the course of the cycle" });
        }
        for (disk, proof) in replica.disks.iter().zip(&proofs) {
            let chunks: Vec<_> = (0..proof.table.count()).map(|index| proof.table.chunk(index)).collect();
            let pool = host.pool(disk).map_err(ImageError::from)?;
            let written = pool.write_note(replica.vm.id, &disk.name, number, Note::Digests, &pack(&chunks));
            written.map_err(ImageError::from)?;
        }
        if let Some(content) = &point.variables {
            variables::write(host, &replica, number, content)?;
        }
        let written = ByteCount(proofs.iter().map(|proof| proof.received).sum());
        let (cycle, attempt, complete_at, damaged) = (plan.job, plan.attempt, clock::now(), false);
        let Point { taken_at, consistency, .. } = point;
        let snapshot = Snapshot { number, cycle, attempt, taken_at, complete_at, consistency, written, damaged };
        (replica.vm, replica.source) = (plan.vm.clone(), plan.source.id.clone());
        let add = ReplicaChange::Add(Box::new(replica), snapshot);
        host.journal.change_replica(plan.vm.id, add).await?;
        self.layer = None;
        info!(job = %plan.job, vm = %plan.vm.id, snapshot = number, "snapshot complete");
        Ok(())
    }

    /// Ends what serves the layer. One that did not come to be a snapshot stays for the next cycle, unless it is no good.
    async fn put_away(&mut self) {
        let (host, vm) = (&self.context.host, self.context.plan.vm.id);
        let wanted = self.cause == Some(FailureCode::Cancelled) || partial::worth_keeping(self.cause);
        if let Some(disks) = self.disks.as_ref().filter(|_| wanted) {
            // In vain where the disk does not do; then what was written down before is what there is.
            let _ = tokio::time::timeout(SAVE_WAIT, disks.save()).await;
        }
        self.disks = None;
        if let Some(daemon) = self.daemon.take() {
            images::end_daemon(daemon).await;
        }
        let Some(layer) = self.layer.take().filter(|_| !wanted) else { return };
        match host.journal.change_replica(vm, ReplicaChange::GiveUp).await {
            Ok(_) => layers::remove(host, &layer.replica, layer.number),
            Err(error) => warn!(%vm, %error, "the next cycle goes on with a layer that is no good, and compares it"),
        }
    }

    async fn tidy(&self) {
        let plan = &self.context.plan;
        if let Err(error) = layers::tidy(&self.context.host, plan.vm.id, plan.retention).await {
            warn!(job = %plan.job, error = &error as &dyn std::error::Error, "layers are merged after the next cycle");
        }
    }
}

fn disks_here(plan: &Plan) -> Vec<DiskSpec> {
    plan.disks.iter().map(|disk| disk.target.clone()).collect()
}

fn same_disks(there: &[DiskSpec], wanted: &[DiskSpec]) -> bool {
    let of = |disk: &DiskSpec| (disk.name.clone(), disk.size, disk.pool.clone());
    there.iter().map(of).eq(wanted.iter().map(of))
}

/// Ends once guests of this host might not find room any more beside the layer that is being filled.
async fn pools_fill_up(context: &Context, filling: bool) -> NearlyFull {
    match filling {
        true => context.host.headroom_is_used_up(context.plan.disks.iter().map(|disk| &disk.target)).await,
        false => std::future::pending().await,
    }
}

/// Why the disks can no longer be written, once they cannot.
async fn fault_of(disks: Option<&TargetDisks>) -> TargetDiskError {
    match disks {
        Some(disks) => disks.failed().await,
        None => std::future::pending().await,
    }
}
