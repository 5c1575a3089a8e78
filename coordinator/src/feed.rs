//! The public feed: JSON for people with `nats sub`, dashboards and scripts. Described in docs/feed.md.
//!
//! ```text
//!   JobStatus + Progress ─▶ JobView ─┐              ┌─▶ sterna.v1.feed.job.<job>   CloudEvents headers, JSON body
//!   Member ──────────────────────────┼─▶ Document ──┤
//!   VmReport ────────────────────────┤              └─▶ bucket sterna_feed, key job.<job>   the last value
//!   ReplicaView ─────────────────────┘
//! ```
//!
//! A job is told as its [`JobView`], which `sterna job show --output json` prints too. That one and the structures here
//! are the contract with readers: they are apart from the internal ones on purpose, so that those may change and the
//! feed does not. Everything is pure; [`Limiter`] is handed the time.

mod replicas;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sterna_shared::bus::Subject;
use sterna_shared::host::{Accelerator, VmReport, VmState};
use sterna_shared::id::{Generation, HostId, JobId, PoolName, VmId, VmName};
use sterna_shared::job::{JobStatus, Progress};
use sterna_shared::time::Timestamp;
use sterna_shared::units::ByteCount;

use crate::fleet::Member;
use crate::view::JobView;

pub use replicas::AGE_INTERVAL_MIN;
#[cfg(test)]
pub(crate) use replicas::ReplicaDocument;
pub(crate) use replicas::Replicas;

/// The bucket of last values.
pub const BUCKET_FEED: &str = "sterna_feed";
/// The shortest time between two documents of one job that tell of progress only.
pub const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// One message of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it is published.
    pub subject: String,
    /// Its key in [`BUCKET_FEED`].
    pub key: String,
    /// CloudEvents attributes, as headers.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Vec<u8>,
}

/// A host.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct HostDocument {
    /// Its id.
    host: HostId,
    /// Whether it was heard of lately.
    online: bool,
    /// When it was last heard of, by the coordinator's clock.
    heard_at: Timestamp,
    /// Its agent's version.
    version: String,
    /// QEMU's version.
    hypervisor: String,
    /// How guests are executed.
    accelerator: Accelerator,
    /// Memory for guests in all, in bytes.
    memory_total: ByteCount,
    /// Memory that no guest and no reservation holds, in bytes.
    memory_free: ByteCount,
    /// What of the rest is held for planned VMs, in bytes.
    memory_reserved: ByteCount,
    /// Its pools.
    pools: Vec<PoolDocument>,
    /// Until when its certificate holds.
    certificate_not_after: Timestamp,
    /// How many VMs it has a record of.
    vms: usize,
}

/// A pool of a host.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct PoolDocument {
    /// Its name on this host.
    name: PoolName,
    /// What storage it is, where several hosts see the same.
    shared: Option<String>,
    /// What it can hold, in bytes.
    capacity: ByteCount,
    /// What is free, in bytes.
    free: ByteCount,
    /// What is free and held for planned VMs, in bytes.
    reserved: ByteCount,
    /// The extents of a volume group, in bytes; none for a directory.
    extent: Option<ByteCount>,
}

/// A VM.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VmDocument {
    /// Its id.
    vm: VmId,
    /// Its name.
    name: VmName,
    /// The host that owns it.
    host: HostId,
    /// Whether its guest executes.
    state: VmState,
    /// False while a handover of it is unresolved.
    owned: bool,
    /// The generation of its owner's record.
    generation: Generation,
    /// The job that holds it.
    job: Option<JobId>,
    /// Its memory in bytes.
    memory: ByteCount,
    /// Its virtual processors.
    vcpus: u16,
}

/// Keeps what the feed must remember of each job: when it was last told of, and the highest percentage told.
#[derive(Debug, Default)]
pub struct Limiter {
    jobs: BTreeMap<JobId, Told>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    at: Option<Duration>,
    percent: f64,
}

impl Limiter {
    /// The document of a job whose state changed; always one.
    ///
    /// # Errors
    /// Where it does not become JSON, a fault of Sterna's.
    pub fn job_changed(
        &mut self,
        source: &HostId,
        status: &JobStatus,
        progress: Option<&Progress>,
        now: Timestamp,
        clock: Duration,
    ) -> Result<Document, serde_json::Error> {
        let mut view = JobView::new(status, progress);
        let told = self.jobs.entry(status.job).or_default();
        view.percent = view.percent.max(told.percent);
        *told = Told { at: Some(clock), percent: view.percent };
        if status.state.is_final() {
            self.jobs.remove(&status.job);
        }
        document(Subject::FeedJob(status.job), "job", source, now, &view)
    }

    /// The document of a job that made progress; none where the last one is less than [`PROGRESS_INTERVAL_MIN`] old.
    ///
    /// # Errors
    /// Where it does not become JSON, a fault of Sterna's.
    pub fn job_progressed(
        &mut self,
        source: &HostId,
        status: &JobStatus,
        progress: &Progress,
        now: Timestamp,
        clock: Duration,
    ) -> Result<Option<Document>, serde_json::Error> {
        let last = self.jobs.get(&status.job).and_then(|told| told.at);
        if status.state.is_final() || last.is_some_and(|last| clock.saturating_sub(last) < PROGRESS_INTERVAL_MIN) {
            return Ok(None);
        }
        self.job_changed(source, status, Some(progress), now, clock).map(Some)
    }
}

/// The document of a host.
///
/// # Errors
/// Where it does not become JSON, a fault of Sterna's.
pub fn host_changed(source: &HostId, member: &Member, now: Timestamp) -> Result<Document, serde_json::Error> {
    let inventory = &member.inventory;
    let pools = inventory.pools.iter().map(|pool| PoolDocument {
        name: pool.name.clone(),
        shared: pool.shared.clone(),
        capacity: pool.capacity,
        free: pool.free,
        reserved: pool.reserved,
        extent: pool.extent,
    });
    let data = HostDocument {
        host: inventory.host.clone(),
        online: member.online,
        heard_at: member.heard_at,
        version: inventory.version.clone(),
        hypervisor: inventory.hypervisor.version.clone(),
        accelerator: inventory.hypervisor.accelerator,
        memory_total: inventory.memory_total,
        memory_free: inventory.memory_free,
        memory_reserved: inventory.memory_reserved,
        pools: pools.collect(),
        certificate_not_after: inventory.certificate.not_after,
        vms: inventory.vms.len(),
    };
    document(Subject::FeedHost(inventory.host.clone()), "host", source, now, &data)
}

/// The document of a VM.
///
/// # Errors
/// Where it does not become JSON, a fault of Sterna's.
pub fn vm_changed(
    source: &HostId,
    member: &Member,
    report: &VmReport,
    now: Timestamp,
) -> Result<Document, serde_json::Error> {
    let data = VmDocument {
        vm: report.id(),
        name: report.spec.name.clone(),
        host: member.inventory.host.clone(),
        state: report.state,
        owned: report.owned,
        generation: report.generation,
        job: report.job,
        memory: report.spec.memory,
        vcpus: report.spec.vcpus,
    };
    document(Subject::FeedVm(report.id()), "vm", source, now, &data)
}

/// The document of a job that is over, for those who wait for it under a name of their own.
///
/// # Errors
/// Where it does not become JSON, a fault of Sterna's.
pub fn job_over(
    source: &HostId,
    name: &str,
    status: &JobStatus,
    now: Timestamp,
) -> Result<Document, serde_json::Error> {
    document(Subject::FeedNotify(name.to_owned()), "notify", source, now, &JobView::new(status, None))
}

fn document<T: Serialize>(
    subject: Subject,
    kind: &str,
    source: &HostId,
    now: Timestamp,
    data: &T,
) -> Result<Document, serde_json::Error> {
    let body = serde_json::to_vec(data)?;
    let subject = subject.to_string();
    let thing = subject.rsplit('.').next().unwrap_or_default().to_owned();
    let headers = vec![
        ("ce-specversion", "1.0".to_owned()),
        // Random and not derived: the same change told by two coordinators is two events.
        ("ce-id", uuid::Uuid::now_v7().to_string()),
        ("ce-source", format!("sterna://coordinator/{source}")),
        ("ce-type", format!("sterna.v1.{kind}.changed")),
        ("ce-time", now.to_string()),
        ("ce-subject", thing.clone()),
        ("ce-datacontenttype", "application/json".to_owned()),
    ];
    Ok(Document { key: format!("{kind}.{thing}"), subject, headers, body })
}

#[cfg(test)]
mod tests;
