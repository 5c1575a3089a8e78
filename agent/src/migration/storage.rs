//! A storage move within one host: disks change pool or format under a guest that stays.
//!
//! ```text
//!   prepare ─▶ copy_disks ─▶ switchover ─▶ prove ─▶ release
//!   new images, served    passes    guest paused,     roots    journal the new places, swap the nodes
//!   by a daemon                     last pass         equal    under the running guest, let it go on
//! ```
//!
//! **Contract.** The guest never leaves this host, so nobody else can run it. The specification in the journal names images
//! that hold every acknowledged write, at every instant: it is rewritten while the guest is paused and both sets of images
//! are equal. An agent that starts anew looks at what QEMU has open, and goes on from there ([`Storage::recover`]).

use std::sync::Arc;

use sterna_shared::job::{DiskMove, StepFigures, StepKind, Volume};
use sterna_shared::vm::{DiskSpec, Firmware, VmSpec};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::disk::copy::target::Writer;
use crate::disk::copy::{Block, Body, CopyError};
use crate::disk::digest::Digest;
use crate::disk::nbd::{BASE_ALLOCATION, Client};
use crate::guest::launcher::Launched;
use crate::hypervisor::qemu::command_line::{
    VARIABLES_FILE_NODES, VARIABLES_NODE, disk_nodes, file_node, firmware_file_node, firmware_node, format_node,
    spare_file_node, spare_format_node,
};
use crate::hypervisor::qemu::{Export, Machine, Node, RunState};
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::disks::SourceDisks;
use crate::migration::images;
use crate::migration::tally::Tally;
use crate::migration::target_disks::{TargetDiskError, export_name};

/// Passes while the guest runs.
const PASSES_MAX: u32 = 8;
/// So little dirtied that the guest can be paused for the rest.
const DIRTY_LITTLE: u64 = 4 << 20;
/// NBD connections to one export.
const CONNECTIONS: usize = 4;
/// Blocks between reading and writing.
const BLOCKS_MAX: usize = 16;

/// A storage move.
pub struct Storage {
    context: Arc<Context>,
    machine: Option<Machine>,
    target: Option<Launched>,
    source_daemon: Option<Launched>,
    disks: Option<SourceDisks>,
    writers: Vec<Writer>,
    paused_at: Option<Instant>,
    tally: Tally,
    made: bool,
}

impl Storage {
    /// A move that has just been accepted, or is taken up after a restart of the agent.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            machine: None,
            target: None,
            source_daemon: None,
            disks: None,
            writers: Vec::new(),
            paused_at: None,
            tally: Tally::default(),
            made: false,
        }
    }

    /// Carries the move out, to whatever end.
    pub async fn run(mut self) -> Outcome {
        let context = Arc::clone(&self.context);
        let copied = tokio::select! {
            biased;
            wish = context.gate.ended() => Err(MoveError::Ended(wish)),
            copied = self.copy() => copied,
        };
        let done = match copied {
            Ok(()) if context.gate.close() => self.release().await,
            Ok(()) => Err(MoveError::Ended(context.gate.ended().await)),
            Err(error) => Err(error),
        };
        match done {
            Ok(blackout_us) => Outcome::Completed { blackout_us },
            Err(error) => self.unwind(error).await,
        }
    }

    /// After a restart of the agent: on, where QEMU has the new images open; else back.
    pub async fn recover(mut self) -> Outcome {
        let context = Arc::clone(&self.context);
        self.machine = context.keeper.machine().await.ok().flatten();
        self.made = context.host.journal.images_made(context.plan.job).unwrap_or(false);
        let respecified = context.keeper.record().spec == context.plan.vm_at_target;
        let swapped = match &self.machine {
            None => respecified,
            Some(machine) => respecified && on_new_images(machine, &context).await,
        };
        if !swapped {
            return self.unwind(MoveError::AgentRestarted).await;
        }
        self.go_on().await;
        images::remove_moved(&context.host, &context.plan).await;
        Outcome::Completed { blackout_us: 0 }
    }

    async fn copy(&mut self) -> Result<(), MoveError> {
        self.prepare().await?;
        self.copy_disks().await?;
        self.switchover().await?;
        self.prove().await
    }

    async fn prepare(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let (host, plan) = (&context.host, &context.plan);
        let step = context.begin(StepKind::Prepare).await?;
        host.expect_room_for(plan)?;
        let variables = images::read_variable_store(host, plan)?;
        self.made = true;
        images::prepare_incoming(host, plan, variables).await?;
        let target = images::serve_target(host, plan).await?;
        let socket = target.runtime.nbd_socket();
        target.machine.nbd_server_start(&socket).await?;
        for (index, DiskMove { target: disk, .. }) in plan.disks.iter().enumerate() {
            let (name, node) = (export_name(index), format_node(&disk.name));
            let export = Export { id: name.clone(), node, name: name.clone(), writable: true, bitmaps: Vec::new() };
            target.machine.export_add(&export).await?;
            let client = Client::connect(&socket, &name, &[BASE_ALLOCATION], CONNECTIONS).await;
            let client = client.map_err(|source| TargetDiskError::Open { disk: index, source })?;
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            let writer = Writer::new(client, number, disk.size.0, host.origin(disk))?;
            self.writers.push(writer.through(host.page_cache(plan.vm.id, disk)));
        }
        self.target = Some(target);
        self.machine = context.keeper.machine().await?;
        let (machine, socket) = match &self.machine {
            Some(machine) => (machine.clone(), host.runtime(plan.vm.id).map_err(MoveError::Runtime)?.nbd_socket()),
            None => {
                let daemon = images::serve_source(host, plan).await?;
                let parts = (daemon.machine.clone(), daemon.runtime.nbd_socket());
                self.source_daemon = Some(daemon);
                parts
            }
        };
        let disks = SourceDisks::open(machine, socket, plan.job, &plan.disks, self.machine.is_some()).await?;
        context.progress.disks(disks.volume());
        self.disks = Some(disks);
        context.end(step, StepFigures::default()).await
    }

    async fn copy_disks(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::CopyDisks).await?;
        self.pass().await?;
        let mut before = u64::MAX;
        for _ in 1..PASSES_MAX {
            let Some(disks) = &self.disks else { return Err(MoveError::NotConnected) };
            let dirty = disks.dirty().await?.0;
            if dirty <= DIRTY_LITTLE || dirty >= before {
                break;
            }
            before = dirty;
            self.pass().await?;
        }
        for writer in &mut self.writers {
            writer.verify().await?;
        }
        let figures = self.figures();
        context.end(step, figures).await
    }

    async fn switchover(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Switchover).await?;
        if let Some(machine) = &self.machine
            && machine.run_state().await? == RunState::Running
        {
            machine.stop().await?;
            self.paused_at = Some(Instant::now());
        }
        if self.paused_at.is_some() {
            let exceeded = |_| MoveError::Blackout { limit_ms: context.plan.blackout_max_ms };
            tokio::time::timeout(context.plan.patience(), self.pass()).await.map_err(exceeded)??;
        } else {
            self.pass().await?;
        }
        let figures = StepFigures { blackout_us: self.blackout_us(), ..self.figures() };
        context.end(step, figures).await
    }

    async fn prove(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Prove).await?;
        let Some(disks) = &mut self.disks else { return Err(MoveError::NotConnected) };
        let ours = disks.roots()?;
        for ((writer, root), disk) in self.writers.iter_mut().zip(&ours).zip(&context.plan.disks) {
            writer.flush().await?;
            writer.verify().await?;
            let theirs: Option<Digest> = writer.table().root();
            if theirs != Some(*root) {
                return Err(MoveError::DigestsDiffer { disk: disk.source.name.clone() });
            }
        }
        context.end(step, StepFigures { blackout_us: self.blackout_us(), ..StepFigures::default() }).await
    }

    /// From here on nothing is undone: both sets of images are equal, and the new one takes over.
    async fn release(&mut self) -> Result<u64, MoveError> {
        let context = Arc::clone(&self.context);
        let step = context.begin(StepKind::Release).await?;
        self.put_away().await?;
        context.keeper.respecify(context.plan.vm_at_target.clone()).await?;
        if let Some(machine) = self.machine.clone() {
            let swapped = match place_variables(&machine, &context, &context.plan.vm_at_target).await {
                Ok(()) => swap(&machine, &context).await,
                Err(error) => Err(error),
            };
            // An answer that did not come may hide that it was done: what QEMU has open decides.
            if let Err(error) = swapped
                && !on_new_images(&machine, &context).await
            {
                close_spare_nodes(&machine, &context).await;
                return Err(error);
            }
        }
        self.go_on().await;
        let blackout_us = self.blackout_us();
        if let Some(machine) = &self.machine {
            close_spare_nodes(machine, &context).await;
        }
        images::remove_moved(&context.host, &context.plan).await;
        // That this cannot be told undoes nothing any more.
        context.end(step, StepFigures { blackout_us, ..StepFigures::default() }).await.ok();
        Ok(blackout_us)
    }

    async fn unwind(mut self, error: MoveError) -> Outcome {
        let context = Arc::clone(&self.context);
        info!(job = %context.plan.job, reason = %error, "unwinding");
        context.unwinding(&error).await;
        let volume = self.disks.as_ref().map_or_else(Volume::default, |disks| *disks.volume().borrow());
        // What is made of a new image goes with it: nothing crosses a link, and the next try copies it anew.
        let figures = StepFigures { bytes_total: volume.done, bytes_sent: volume.sent, ..StepFigures::default() };
        if let Err(error) = self.put_away().await {
            warn!(job = %context.plan.job, %error, "exports or bitmaps are left over until the guest ends");
        }
        if context.keeper.record().spec == context.plan.vm_at_target {
            let _ = context.keeper.respecify(context.plan.vm.clone()).await;
        }
        if let Some(machine) = &self.machine
            && let Err(error) = place_variables(machine, &context, &context.plan.vm).await
        {
            warn!(job = %context.plan.job, %error, "the UEFI variables are not where the VM's specification says");
        }
        self.go_on().await;
        if self.made && !self.new_images_open().await {
            images::remove_incoming(&context.host, &context.plan).await;
        }
        let error = context.gate.wish().map_or(error, MoveError::Ended);
        error.outcome(&context.host, figures)
    }

    /// One pass, written when this returns.
    async fn pass(&mut self) -> Result<(), MoveError> {
        let Some(disks) = &mut self.disks else { return Err(MoveError::NotConnected) };
        self.context.progress.pass(disks.passes());
        let (blocks, mut queue) = mpsc::channel::<Block>(BLOCKS_MAX);
        let writers = &mut self.writers;
        // While the guest stands still there is nothing to spare it from.
        let limiter = self.paused_at.is_none().then(|| Arc::clone(&self.context.limiter));
        // The queue ends with this block: a writer that fails stops the reader.
        let write = async move {
            while let Some(block) = queue.recv().await {
                if let (Some(limiter), Body::Data(data)) = (&limiter, &block.body) {
                    limiter.take(data.len()).await;
                }
                if let Some(writer) = writers.get_mut(usize::from(block.disk)) {
                    writer.apply(block).await?;
                }
            }
            for writer in writers.iter_mut() {
                writer.barrier().await?;
            }
            Ok::<(), CopyError>(())
        };
        let read = async {
            let read = disks.pass(&blocks).await;
            drop(blocks);
            read
        };
        let (read, written) = tokio::join!(read, write);
        written?;
        read?;
        Ok(())
    }

    /// Whether the guest may have one of the new images open: then none is removed.
    async fn new_images_open(&self) -> bool {
        let Some(machine) = &self.machine else { return false };
        let Ok(nodes) = machine.nodes().await else {
            warn!(job = %self.context.plan.job, "QEMU does not say what it has open: the new images are left over");
            return true;
        };
        let plan = &self.context.plan;
        plan.disks.iter().any(|DiskMove { target: disk, .. }| {
            let Ok(pool) = self.context.host.pool(disk) else { return false };
            let path = pool.image_path(plan.vm.id, &disk.name, disk.format);
            nodes.iter().any(|node| path.to_str().is_some_and(|path| node.file.contains(path)))
        })
    }

    /// Lets the guest go on, if it was this move that paused it.
    async fn go_on(&mut self) {
        let Some(machine) = &self.machine else { return };
        let wanted = self.context.keeper.record().wanted_running;
        if wanted
            && matches!(machine.run_state().await, Ok(RunState::Paused))
            && let Err(error) = self.context.keeper.resume().await
        {
            warn!(job = %self.context.plan.job, %error, "the guest is still paused");
        }
    }

    /// Ends what serves the move: afterwards nobody but the guest has the images open.
    async fn put_away(&mut self) -> Result<(), MoveError> {
        self.writers.clear();
        if let Some(target) = self.target.take() {
            images::end_daemon(target).await;
        }
        if let Some(daemon) = self.source_daemon.take() {
            images::end_daemon(daemon).await;
        }
        self.disks = None;
        if let Some(machine) = &self.machine {
            SourceDisks::clear(machine, self.context.plan.job).await?;
        }
        Ok(())
    }

    fn figures(&mut self) -> StepFigures {
        let Some(disks) = &self.disks else { return StepFigures::default() };
        self.tally.disks(*disks.volume().borrow(), disks.passes())
    }

    fn blackout_us(&self) -> u64 {
        self.paused_at.map_or(0, |at| u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// The nodes of a disk's image: there are two sets of names, and a storage move changes from one to the other.
struct NodeNames {
    file: String,
    format: String,
}

impl NodeNames {
    fn first(disk: &DiskSpec) -> Self {
        Self { file: file_node(&disk.name), format: format_node(&disk.name) }
    }

    fn second(disk: &DiskSpec) -> Self {
        Self { file: spare_file_node(&disk.name), format: spare_format_node(&disk.name) }
    }

    /// The names in use, and those that are free.
    async fn of(machine: &Machine, disk: &DiskSpec) -> Result<(Self, Self), MoveError> {
        let (first, second) = (Self::first(disk), Self::second(disk));
        let used = machine.format_node_in_use(disk).await?;
        Ok(if used == first.format { (first, second) } else { (second, first) })
    }
}

/// Has a running UEFI guest keep its variables where `spec` has them. Nothing is done where it does so already.
async fn place_variables(machine: &Machine, context: &Context, spec: &VmSpec) -> Result<(), MoveError> {
    if spec.firmware != Firmware::Uefi {
        return Ok(());
    }
    let path = context.host.variable_store(spec).map_err(images::ImageError::from)?;
    let nodes = machine.nodes().await?;
    let named = |name: &str| nodes.iter().find(|node| node.name == name);
    let there = |node: &Node| path.to_str().is_some_and(|path| node.file.contains(path));
    if named(VARIABLES_NODE).is_none_or(there) {
        return Ok(());
    }
    let [first, second] = VARIABLES_FILE_NODES;
    let (used, free) = if named(first).is_some() { (first, second) } else { (second, first) };
    let from = if *spec == context.plan.vm { &context.plan.vm_at_target } else { &context.plan.vm };
    images::copy_variable_store(&context.host, from, spec)?;
    machine.blockdev_add(firmware_file_node(free, &path, false).map_err(|_| MoveError::NotConnected)?).await?;
    machine.blockdev_reopen(firmware_node(VARIABLES_NODE, free, false)).await?;
    if let Err(error) = machine.blockdev_del(used).await {
        warn!(job = %context.plan.job, %error, "the old variable store stays open until the guest ends");
    }
    Ok(())
}

/// Opens the new images and puts them under the guest's devices, all disks at one instant.
async fn swap(machine: &Machine, context: &Context) -> Result<(), MoveError> {
    let mut below = Vec::new();
    for DiskMove { target: disk, .. } in &context.plan.disks {
        let (_, free) = NodeNames::of(machine, disk).await?;
        let image = context.host.image(context.plan.vm.id, disk).map_err(images::ImageError::from)?;
        let [mut file, mut format, _] = disk_nodes(disk, &image).map_err(|_| MoveError::NotConnected)?;
        file["node-name"] = free.file.clone().into();
        format["node-name"] = free.format.clone().into();
        format["file"] = free.file.into();
        machine.blockdev_add(file).await?;
        machine.blockdev_add(format).await?;
        below.push((disk, free.format));
    }
    let swaps: Vec<(&DiskSpec, &str)> = below.iter().map(|(disk, node)| (*disk, node.as_str())).collect();
    machine.swap_below(&swaps).await?;
    Ok(())
}

/// Closes the images that no device is on.
async fn close_spare_nodes(machine: &Machine, context: &Context) {
    for DiskMove { source: disk, .. } in &context.plan.disks {
        let Ok((_, old)) = NodeNames::of(machine, disk).await else { continue };
        for node in [old.format, old.file] {
            if let Err(error) = machine.blockdev_del(&node).await {
                warn!(job = %context.plan.job, node, %error, "an old image stays open until the guest ends");
            }
        }
    }
}

/// Whether every disk of the plan is on its new image.
async fn on_new_images(machine: &Machine, context: &Context) -> bool {
    let Ok(nodes) = machine.nodes().await else { return false };
    for DiskMove { target: disk, .. } in &context.plan.disks {
        let (Ok(below), Ok(pool)) = (machine.format_node_in_use(disk).await, context.host.pool(disk)) else {
            return false;
        };
        let path = pool.image_path(context.plan.vm.id, &disk.name, disk.format);
        let on_it = |node: &Node| node.name == below && path.to_str().is_some_and(|path| node.file.contains(path));
        if !nodes.iter().any(on_it) {
            return false;
        }
    }
    true
}
