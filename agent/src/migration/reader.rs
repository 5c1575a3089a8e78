//! A deep check: every disk of a VM is read through where it is, whether its guest runs or not.
//!
//! ```text
//!   open          an NBD server of the guest's QEMU, or a storage daemon over a stopped guest's images: read only
//!   each disk     every extent of base:allocation that is not zero, a chunk at a time, at the job's rate; thrown away
//!   a chunk fails its units one by one, so that the finding says where
//!   put away      exports and server, or the daemon, are gone
//! ```
//!
//! **Contract.** Nothing is written, and the guest is left alone but for the load. What cannot be read is found and not fatal:
//! the rest of the disk is read all the same. The job ends at this host with what was found; the coordinator goes on with
//! the check. An agent that starts anew does not know what was read, so that the check fails then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sterna_shared::job::{Finding, Refusal, RefusalCode, Severity, StepFigures, StepKind, Volume};
use sterna_shared::vm::{DiskFormat, DiskSpec};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::disk::copy::source::{Content, Span, whole_disk};
use crate::disk::copy::{CopyError, UNIT};
use crate::disk::digest::CHUNK_SIZE;
use crate::disk::extent::{Extent, ExtentSet};
use crate::disk::nbd::{BASE_ALLOCATION, Client, NbdError};
use crate::guest::launcher::Launched;
use crate::hypervisor::qemu::command_line::format_node;
use crate::hypervisor::qemu::{Export, Machine};
use crate::migration::context::{Context, MoveError, Outcome};
use crate::migration::disks::{DiskError, SourceDisks};
use crate::migration::images;

/// NBD connections to the disk that is read: one read is under way at a time.
const CONNECTIONS: usize = 1;
/// How long an export may take to go.
const EXPORT_REMOVAL_WAIT: Duration = Duration::from_secs(10);
/// Ranges of one disk that are told apart; what is beyond them is told as a sum.
const RANGES_MAX: usize = 16;

/// A deep check.
pub struct Reader {
    context: Arc<Context>,
    machine: Option<Machine>,
    daemon: Option<Launched>,
    volume: watch::Sender<Volume>,
    findings: Vec<Finding>,
}

impl Reader {
    /// A check that has just been accepted, or is taken up after a restart of the agent.
    #[must_use]
    pub fn new(context: Arc<Context>) -> Self {
        let total = context.plan.vm.disks.iter().map(|disk| disk.size.0).sum();
        let volume = watch::Sender::new(Volume { total, ..Volume::default() });
        Self { context, machine: None, daemon: None, volume, findings: Vec::new() }
    }

    /// Reads all disks, to whatever end.
    pub async fn run(mut self) -> Outcome {
        let context = Arc::clone(&self.context);
        let read = tokio::select! {
            biased;
            wish = context.gate.ended() => Err(MoveError::Ended(wish)),
            read = self.read() => read,
        };
        match read {
            Ok(()) if context.gate.close() => {
                self.put_away().await;
                Outcome::Read { figures: self.figures(), findings: self.findings }
            }
            Ok(()) => {
                let wish = context.gate.ended().await;
                self.unwind(MoveError::Ended(wish)).await
            }
            Err(error) => self.unwind(error).await,
        }
    }

    /// After a restart of the agent.
    pub async fn recover(mut self) -> Outcome {
        self.machine = self.context.keeper.machine().await.ok().flatten();
        self.unwind(MoveError::AgentRestarted).await
    }

    async fn read(&mut self) -> Result<(), MoveError> {
        let context = Arc::clone(&self.context);
        let (host, plan) = (&context.host, &context.plan);
        context.begin(StepKind::ReadDisks).await?;
        context.progress.disks(self.volume.subscribe());
        self.machine = context.keeper.machine().await?;
        let (machine, socket) = match &self.machine {
            Some(machine) => (machine.clone(), host.runtime(plan.vm.id).map_err(MoveError::Runtime)?.nbd_socket()),
            None => {
                let daemon = images::serve_whole(host, plan).await?;
                let parts = (daemon.machine.clone(), daemon.runtime.nbd_socket());
                self.daemon = Some(daemon);
                parts
            }
        };
        let _ = std::fs::remove_file(&socket);
        machine.nbd_server_start(&socket).await?;
        for (index, disk) in plan.vm.disks.iter().enumerate() {
            let node = match &self.machine {
                Some(machine) => machine.format_node_in_use(disk).await?,
                None => format_node(&disk.name),
            };
            let id = format!("sterna-check-{index}");
            let export = Export { name: id.clone(), id, node, writable: false, bitmaps: Vec::new() };
            machine.export_add(&export).await?;
            self.read_export(&socket, &export.name, index, disk).await?;
            machine.export_remove(&export.id, EXPORT_REMOVAL_WAIT).await?;
        }
        Ok(())
    }

    /// The length of an image that is a plain file of bytes.
    fn file_length(&self, disk: &DiskSpec) -> Option<u64> {
        let pool = self.context.host.pool(disk).ok().filter(|_| disk.format == DiskFormat::Raw)?;
        let path = pool.image_path(self.context.plan.vm.id, &disk.name, disk.format);
        std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len())
    }

    /// Reads one disk, and finds what of it cannot be read.
    async fn read_export(
        &mut self,
        socket: &Path,
        export: &str,
        index: usize,
        disk: &DiskSpec,
    ) -> Result<(), MoveError> {
        let number = u16::try_from(index).unwrap_or(u16::MAX);
        let open = |source| DiskError::Open { disk: number, source };
        let client = Client::connect(socket, export, &[BASE_ALLOCATION], CONNECTIONS).await.map_err(open)?;
        // A guest that runs has the length from when it was started, and QEMU takes what is beyond the end for zeroes.
        let end = self.file_length(disk).map_or(client.size(), |length| length.min(client.size()));
        if end < disk.size.0 {
            self.find(format!(
                "disk {} has no content from {end} on: its image ends there, of {}",
                disk.name, disk.size
            ));
        }
        let spans = match whole_disk(&client).await {
            Ok(spans) => spans,
            // What says where its zeroes are may be what is damaged.
            Err(NbdError::Server { .. }) => {
                let whole = Extent::between(0, client.size());
                whole.map(|extent| Span { extent, content: Content::Unread }).into_iter().collect()
            }
            Err(error) => return Err(open(error).into()),
        };
        let mut bad = ExtentSet::new();
        let mut words = None;
        for Span { extent, content } in spans {
            if content == Content::Unread {
                for chunk in extent.split(CHUNK_SIZE) {
                    if self.fails(&client, number, chunk).await?.is_some() {
                        for unit in chunk.split(UNIT) {
                            if let Some(why) = self.fails(&client, number, unit).await? {
                                bad.insert(unit);
                                words.get_or_insert(why);
                            }
                        }
                    }
                    self.volume.send_modify(|volume| volume.done += chunk.length());
                }
            } else {
                self.volume.send_modify(|volume| volume.done += extent.length());
            }
        }
        client.close().await;
        let words = words.unwrap_or_default();
        for range in bad.iter().take(RANGES_MAX) {
            let (offset, length) = (range.offset(), range.length());
            self.find(format!("disk {} cannot be read at {offset}, for {length} bytes: {words}", disk.name));
        }
        if bad.count() > RANGES_MAX {
            let more = bad.count() - RANGES_MAX;
            self.find(format!("disk {} has {more} more such ranges; {} bytes in all", disk.name, bad.total()));
        }
        Ok(())
    }

    /// Reads a range at the job's rate; the server's words where it cannot be read.
    async fn fails(&self, client: &Client, disk: u16, extent: Extent) -> Result<Option<String>, MoveError> {
        let length = u32::try_from(extent.length()).unwrap_or(u32::MAX);
        self.context.limiter.take(usize::try_from(extent.length()).unwrap_or(0)).await;
        match client.read(extent.offset(), length).await {
            Ok(_) => Ok(None),
            Err(NbdError::Server { errno, message, .. }) => Ok(Some(format!("error {errno} {message}"))),
            Err(source) => Err(CopyError::Read { disk, offset: extent.offset(), source }.into()),
        }
    }

    fn find(&mut self, message: String) {
        let host = self.context.host.id();
        warn!(job = %self.context.plan.job, message, "a disk is damaged");
        let remedy = format!(
            "save what the guest holds before anything else, and look for errors of the medium: `journalctl -k` on {host}"
        );
        let reason = Refusal { code: RefusalCode::DiskUnreadable, message, remedy };
        self.findings.push(Finding { severity: Severity::Error, reason });
    }

    fn figures(&self) -> StepFigures {
        StepFigures { bytes_total: self.volume.borrow().done, passes: 1, ..StepFigures::default() }
    }

    async fn unwind(mut self, error: MoveError) -> Outcome {
        let context = Arc::clone(&self.context);
        info!(job = %context.plan.job, reason = %error, "unwinding");
        context.unwinding(&error).await;
        self.put_away().await;
        let error = context.gate.wish().map_or(error, MoveError::Ended);
        error.outcome(&context.host, self.figures())
    }

    /// Ends what serves the disks.
    async fn put_away(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            images::end_daemon(daemon).await;
        }
        if let Some(machine) = self.machine.take()
            && let Err(error) = SourceDisks::clear(&machine, self.context.plan.job).await
        {
            warn!(job = %self.context.plan.job, %error, "exports are left over until the guest ends");
        }
    }
}
