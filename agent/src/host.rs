//! This host, as every part of the agent may see it: what is configured, what was found at the start, and the journal.
//! Nothing in it changes while the agent runs but the journal, which guards itself.

pub mod headroom;
pub mod room;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sterna_shared::host::{Inventory, Limits, PartialReport, VmReport};
use sterna_shared::id::{DiskName, HostId, JobId, PoolName, VmId};
use sterna_shared::job::{EventBody, FailureCode, FailureReport};
use sterna_shared::planned::PlannedVm;
use sterna_shared::replica::{Base, Replica};
use sterna_shared::units::ByteCount;
use sterna_shared::vm::{BootFile, CacheMode, DiskFormat, DiskSpec, Firmware, VmSpec};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::clock;
use crate::config::Config;
use crate::disk::copy::target::Origin;
use crate::disk::page_cache::PageCache;
use crate::disk::pool::{LayerFile, Pool, PoolError};
use crate::guest::tap;
use crate::hypervisor::qemu::command_line::{Image, Placement, UefiPlacement};
use crate::hypervisor::qemu::probe::{Probe, UefiFirmware};
use crate::hypervisor::qemu::runtime::{RuntimeDirectory, RuntimeError};
use crate::journal::{Journal, JournalError, Partial};
use crate::link::tls::Tls;
use crate::teller::{NotTold, Teller};

/// The most boot files that are reported.
const BOOT_FILES_MAX: usize = 256;
/// How often volume groups are asked for their free space.
const POOL_REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// This host.
#[derive(Debug)]
pub struct Host {
    /// Its configuration.
    pub config: Config,
    /// Its pools, opened.
    pub pools: BTreeMap<PoolName, Pool>,
    /// What its QEMU, processor and memory are.
    pub probe: Probe,
    /// Its certificate and its peers' authority.
    pub tls: Arc<Tls>,
    /// What it must not forget.
    pub journal: Journal,
    /// Held while files of replicas are merged, and while a clone is made of some: one at a time.
    pub layers_in_use: tokio::sync::Mutex<()>,
    /// Held while a layer is begun, and while a replica is forgotten: record and files as one. In it the VM whose replica's layers are
    /// being merged, which takes longer than it is held.
    pub layer_changes: tokio::sync::Mutex<Option<VmId>>,
    teller: Teller,
}

/// Why a VM's parts cannot be laid out on this host.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// A disk's pool is not here.
    #[error("disk {disk} is in pool {pool}, which this host does not have; add it to the agent's configuration")]
    UnknownPool {
        /// The disk.
        disk: String,
        /// The pool.
        pool: PoolName,
    },
    /// An image is not usable.
    #[error("an image of the VM is not usable")]
    Pool(#[from] PoolError),
    /// What a clone stands on is not here.
    #[error(
        "the VM is a clone that stands on layer {layer} of the replica of VM {replica}, which this host does not have"
    )]
    NoLayer {
        /// The replicated VM.
        replica: VmId,
        /// The layer.
        layer: u32,
    },
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The VM has a kernel to start and the host no boot directory.
    #[error(
        "the VM starts a kernel directly, and this host has no boot_directory; set it in the agent's configuration"
    )]
    NoBootDirectory,
    /// The VM needs UEFI firmware.
    #[error("the VM needs UEFI firmware, and this host has none; install the ovmf package")]
    NoFirmware,
    /// The VM needs UEFI firmware with secure boot.
    #[error(
        "the VM has secure boot, and this host has no UEFI firmware with it and with Microsoft's keys; install the ovmf \
         package, and restart the agent"
    )]
    NoSecureBoot,
    /// A UEFI guest's variable store lives beside its first disk.
    #[error("the VM has UEFI firmware and no disk; its variable store lives beside its first disk: give it one")]
    NoPlaceForVariables,
    /// The runtime directory is not usable.
    #[error("the VM's runtime directory is not usable")]
    Runtime(#[from] RuntimeError),
}

impl Host {
    /// Puts together what was found at the start.
    #[must_use]
    pub fn new(
        config: Config,
        pools: BTreeMap<PoolName, Pool>,
        probe: Probe,
        tls: Arc<Tls>,
        journal: Journal,
        teller: Teller,
    ) -> Self {
        let (layers_in_use, layer_changes) = (tokio::sync::Mutex::new(()), tokio::sync::Mutex::new(None));
        Self { config, pools, probe, tls, journal, layers_in_use, layer_changes, teller }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &HostId {
        &self.config.host
    }

    /// Tells of something that has just happened in a job; it is published when the broker is there.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn tell(&self, job: JobId, body: EventBody) -> Result<(), NotTold> {
        self.teller.tell(job, body).await
    }

    /// Waits until what was told is on the disk.
    pub async fn flush(&self) {
        self.teller.flush().await;
    }

    /// An error of this host as a report.
    #[must_use]
    pub fn failure(&self, code: FailureCode, error: &dyn std::error::Error, remedy: &str) -> FailureReport {
        FailureReport::from_error(code, self.id(), error, remedy)
    }

    /// The pool of a disk.
    ///
    /// # Errors
    /// This host does not have it.
    pub fn pool(&self, disk: &DiskSpec) -> Result<&Pool, PlacementError> {
        self.pools
            .get(&disk.pool)
            .ok_or_else(|| PlacementError::UnknownPool { disk: disk.name.to_string(), pool: disk.pool.clone() })
    }

    /// A disk's image, as QEMU takes it.
    ///
    /// # Errors
    /// This host does not have the disk's pool.
    pub fn image(&self, vm: VmId, disk: &DiskSpec) -> Result<Image, PlacementError> {
        let pool = self.pool(disk)?;
        let layers = match &disk.base {
            None => Vec::new(),
            Some(base) => self.layers(base, &disk.name)?,
        };
        Ok(Image { path: pool.image_path(vm, &disk.name, disk.format), kind: pool.kind(), layers })
    }

    /// The files of the layers that a disk of a clone stands on, the lowest first.
    ///
    /// # Errors
    /// They are not here.
    pub fn layers(&self, base: &Base, disk: &DiskName) -> Result<Vec<PathBuf>, PlacementError> {
        let gone = || PlacementError::NoLayer { replica: base.replica, layer: base.layer };
        let record = self.journal.replica(base.replica)?.ok_or_else(gone)?;
        let pool = self.pools.get(&base.pool);
        let pool =
            pool.ok_or_else(|| PlacementError::UnknownPool { disk: disk.to_string(), pool: base.pool.clone() })?;
        let layers = record.replica.chain(base.layer).ok_or_else(gone)?;
        let paths = layers.into_iter().map(|layer| pool.layer_path(base.replica, disk, LayerFile::Layer(layer)));
        Ok(paths.collect::<Result<_, _>>()?)
    }

    /// How a storage daemon caches the raw files that it fills.
    #[must_use]
    pub fn cache_of_copies(&self) -> CacheMode {
        if self.config.prove_on_medium { CacheMode::None } else { CacheMode::Writeback }
    }

    /// The place in the page cache of an image that a storage daemon fills; none where it has none, or cannot be had.
    #[must_use]
    pub fn page_cache(&self, vm: VmId, disk: &DiskSpec) -> Option<PageCache> {
        let through = self.cache_of_copies() == CacheMode::Writeback && disk.format == DiskFormat::Raw;
        let pool = self.pool(disk).ok().filter(|_| through)?;
        pool.open_image(vm, &disk.name, disk.format).map(PageCache::of)
    }

    /// What a disk's image holds that was made to be filled.
    #[must_use]
    pub fn origin(&self, disk: &DiskSpec) -> Origin {
        self.pool(disk).map_or(Origin::Used, Pool::origin)
    }

    /// Asks volume groups for their free space now and then, for as long as the agent runs: others may use them too.
    pub async fn refresh_pools(self: Arc<Self>) {
        let mut ticks = interval(POOL_REFRESH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for pool in self.pools.values() {
                if let Err(error) = pool.refresh().await {
                    warn!(error = &error as &dyn std::error::Error, "a pool's free space is as it was");
                }
            }
        }
    }

    /// The runtime directory of a VM's QEMU.
    ///
    /// # Errors
    /// The configured directory does not do.
    pub fn runtime(&self, vm: VmId) -> Result<RuntimeDirectory, RuntimeError> {
        RuntimeDirectory::new(self.runtimes().join(vm.to_string()))
    }

    /// Where the runtime directories of VMs are.
    #[must_use]
    pub fn runtimes(&self) -> PathBuf {
        self.config.runtime_directory.join("vm")
    }

    /// The runtime directory of a storage daemon that serves a job's `source` or `target` images.
    ///
    /// # Errors
    /// The configured directory does not do.
    pub fn storage_runtime(&self, job: JobId, part: &str) -> Result<RuntimeDirectory, RuntimeError> {
        // The job's last digits are random enough, and the whole id would not leave room for a socket's name.
        let id = job.uuid().as_simple().to_string();
        RuntimeDirectory::new(self.config.runtime_directory.join(format!("job-{}-{part}", &id[16..])))
    }

    /// Where everything of a VM is on this host. Its images must be there already.
    ///
    /// # Errors
    /// Something that the VM needs is not here.
    pub fn placement(&self, spec: &VmSpec, incoming: bool) -> Result<Placement, PlacementError> {
        let mut images = BTreeMap::new();
        for disk in &spec.disks {
            images.insert(disk.name.clone(), self.image(spec.id, disk)?);
        }
        let boot_directory = match (&spec.kernel, &self.config.boot_directory) {
            (Some(_), None) => return Err(PlacementError::NoBootDirectory),
            (_, directory) => directory.clone().unwrap_or_default(),
        };
        let uefi = match spec.firmware {
            Firmware::Bios => None,
            Firmware::Uefi => {
                let code = self.uefi_firmware(spec)?.code.clone();
                Some(UefiPlacement { code, variables: self.variable_store(spec)? })
            }
        };
        let taps =
            (0_u8..).zip(&spec.nics).map(|(index, nic)| nic.bridge.as_ref().map(|_| tap::tap_name(spec.id, index)));
        Ok(Placement {
            runtime: self.runtime(spec.id)?,
            images,
            boot_directory,
            uefi,
            taps: taps.collect(),
            accelerator: self.probe.hypervisor.accelerator,
            incoming,
        })
    }

    /// The firmware that a UEFI VM starts from.
    ///
    /// # Errors
    /// This host has none of that kind.
    pub fn uefi_firmware(&self, spec: &VmSpec) -> Result<&UefiFirmware, PlacementError> {
        match spec.secure_boot {
            true => self.probe.secure_boot.as_ref().ok_or(PlacementError::NoSecureBoot),
            false => self.probe.uefi.as_ref().ok_or(PlacementError::NoFirmware),
        }
    }

    /// The path of a UEFI VM's variable store: beside its first disk, so that it lives and goes where the VM does.
    ///
    /// # Errors
    /// The VM has no disk, or its pool is not here.
    pub fn variable_store(&self, spec: &VmSpec) -> Result<PathBuf, PlacementError> {
        let disk = spec.disks.first().ok_or(PlacementError::NoPlaceForVariables)?;
        Ok(self.pool(disk)?.variable_store_path(spec.id)?)
    }

    /// What the fleet is told of this host. `partials` are those that are kept, `planned` what is held for VMs that are not
    /// here.
    #[must_use]
    pub fn inventory(&self, vms: Vec<VmReport>, partials: &[Partial], planned: &[PlannedVm]) -> Inventory {
        let used = vms.iter().filter(|vm| vm.owned).fold(ByteCount(0), |sum, vm| sum.plus(vm.spec.memory));
        let unused = ByteCount(self.probe.memory.0.saturating_sub(used.0));
        let held = planned.iter().fold(ByteCount(0), |sum, planned| sum.plus(planned.spec.memory)).min(unused);
        let pools = self.pools.values().map(|pool| self.pool_report(pool, partials, planned));
        Inventory {
            host: self.id().clone(),
            at: clock::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: self.config.advertise.clone(),
            hypervisor: self.probe.hypervisor.clone(),
            cpu: self.probe.cpu.clone(),
            memory_total: self.probe.memory,
            memory_free: ByteCount(unused.0 - held.0),
            memory_reserved: held,
            pools: pools.collect(),
            bridges: self.config.bridges.clone(),
            boot_files: self.boot_files(),
            certificate: self.tls.certificate(),
            limits: self.limits(),
            limits_set: self.journal.limits_set().unwrap_or_default(),
            epoch: self.journal.epoch().unwrap_or_default(),
            vms,
            partials: partials.iter().filter_map(|partial| self.partial_report(partial)).collect(),
            planned: planned.to_vec(),
            replicas: self.replicas(),
            adapts: self.config.adapter.as_ref().is_some_and(|of| of.kernel.is_file() && of.initrd.is_file()),
            probe_commands: self.config.probe_commands.keys().cloned().collect(),
        }
    }

    /// The replicas here of which a snapshot can be had.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        let records = self.journal.replicas().unwrap_or_default();
        records.into_iter().filter(|record| !record.dropped).map(|record| record.replica).collect()
    }

    /// What it takes on at once: as the configuration says, but for what was set since.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.config.limits.with(self.journal.limits_set().unwrap_or_default())
    }

    fn partial_report(&self, partial: &Partial) -> Option<PartialReport> {
        Some(PartialReport {
            vm: partial.vm,
            name: partial.name.clone(),
            job: partial.job,
            since: partial.kept.as_ref()?.since,
            received: ByteCount(partial.received_bytes()),
            allocated: self.allocated(partial, None),
        })
    }

    /// What the partial images of a VM take of this host's pools, or of one of them.
    #[must_use]
    pub fn allocated(&self, partial: &Partial, pool: Option<&PoolName>) -> ByteCount {
        let disks =
            partial.disks.iter().map(|disk| &disk.spec).filter(|disk| pool.is_none_or(|pool| disk.pool == *pool));
        disks.fold(ByteCount(0), |sum, disk| {
            let taken = self.pool(disk).map(|pool| pool.allocated(partial.vm, &disk.name, disk.format));
            sum.plus(taken.unwrap_or(ByteCount(0)))
        })
    }

    fn boot_files(&self) -> Vec<BootFile> {
        let Some(directory) = &self.config.boot_directory else { return Vec::new() };
        let names = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let files = names.filter_map(|entry| BootFile::try_from(entry.file_name().into_string().ok()?).ok());
        files.take(BOOT_FILES_MAX).collect()
    }
}
