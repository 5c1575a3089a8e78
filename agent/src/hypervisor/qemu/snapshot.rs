//! One point in time of all disks of a running guest, which never waits for whoever reads it.
//!
//! ```text
//!   device ─▶ top-NAME ─▶ cbw-NAME (copy-before-write) ─▶ format-NAME ─▶ …       from one `blockdev-reopen` on
//!                            │ what the guest overwrites, as it was
//!                            ▼
//!                         scr-NAME (qcow2, thrown away)          snap-NAME (snapshot-access) reads what was: exported
//! ```
//!
//! Everything but the swap is put up before it or after it: the guest may be held still for it.
//!
//! A bitmap that records from just before on is what the next point in time will be read by. It is named after the job, and
//! overlaps the point in time by a few extents, which are then read twice: so it need not be made at the same instant.
//!
//! The sequence was tried on QEMU 7.2 and 10.0. Where the scratch image cannot take what the guest overwrites, the point in
//! time is lost and every read of it fails; the guest goes on.

use std::path::PathBuf;

use serde_json::{Value, json};
use sterna_shared::id::DiskName;
use sterna_shared::vm::DiskSpec;

use super::blocks::action;
use super::{Machine, MachineError};

/// Seconds that a guest's write may wait for the scratch image, before the point in time is given up in its place.
const SCRATCH_SECONDS_MAX: u32 = 10;

/// A disk of which a point in time is taken.
#[derive(Debug, Clone)]
pub struct FrozenDisk {
    /// The disk.
    pub spec: DiskSpec,
    /// The node that holds its contents, under its top node.
    pub node: String,
    /// An empty qcow2 image of its size, which is nobody else's.
    pub scratch: PathBuf,
    /// Whether its image keeps a bitmap when QEMU ends well.
    pub keeps_bitmaps: bool,
}

/// The node that reads a disk as it was at the point in time.
#[must_use]
pub fn frozen_node(disk: &DiskName) -> String {
    format!("snap-{disk}")
}

fn filter_node(disk: &DiskName) -> String {
    format!("cbw-{disk}")
}

fn scratch_node(disk: &DiskName) -> String {
    format!("scr-{disk}")
}

impl Machine {
    /// Puts up what a point in time of all `disks` needs. Writes from here on are recorded in the bitmap `records`.
    ///
    /// # Errors
    /// [`MachineError`]; what was put up goes with [`Machine::forget_point_in_time`].
    pub async fn prepare_point_in_time(
        &self,
        disks: &[FrozenDisk],
        records: &str,
        granularity: u32,
    ) -> Result<(), MachineError> {
        for FrozenDisk { spec, scratch, .. } in disks {
            self.blockdev_add(json!({
                "driver": "qcow2",
                "node-name": scratch_node(&spec.name),
                "discard": "unmap",
                // Nothing of it is wanted after a crash.
                "cache": { "no-flush": true },
                "file": { "driver": "file", "filename": scratch.to_string_lossy(), "cache": { "no-flush": true } },
            }))
            .await?;
        }
        let record = disks.iter().map(|disk| {
            let persistent = disk.keeps_bitmaps;
            let data =
                json!({ "node": disk.node, "name": records, "granularity": granularity, "persistent": persistent });
            action("add", data)
        });
        self.transaction(record.collect()).await?;
        for FrozenDisk { spec, node, .. } in disks {
            self.blockdev_add(json!({
                "driver": "copy-before-write",
                "node-name": filter_node(&spec.name),
                "file": node,
                "target": scratch_node(&spec.name),
                "on-cbw-error": "break-snapshot",
                "cbw-timeout": SCRATCH_SECONDS_MAX,
            }))
            .await?;
        }
        Ok(())
    }

    /// Takes the point in time that is prepared, of all `disks` at once.
    ///
    /// # Errors
    /// [`MachineError`]; what was put up goes with [`Machine::forget_point_in_time`].
    pub async fn take_point_in_time(&self, disks: &[FrozenDisk]) -> Result<(), MachineError> {
        let filters: Vec<String> = disks.iter().map(|disk| filter_node(&disk.spec.name)).collect();
        let below: Vec<_> = disks.iter().zip(&filters).map(|(disk, filter)| (&disk.spec, filter.as_str())).collect();
        self.swap_below(&below).await
    }

    /// Has the point in time readable through [`frozen_node`]. The bitmaps `stand_still`, where a disk has them, record nothing any
    /// more.
    ///
    /// # Errors
    /// [`MachineError`]; what was put up goes with [`Machine::forget_point_in_time`].
    pub async fn serve_point_in_time(&self, disks: &[FrozenDisk], stand_still: &[String]) -> Result<(), MachineError> {
        let nodes = self.nodes().await?;
        let mut still = Vec::new();
        for disk in disks {
            let bitmaps = nodes.iter().filter(|node| node.name == disk.node).flat_map(|node| &node.bitmaps);
            let named = bitmaps.filter(|bitmap| bitmap.recording && stand_still.contains(&bitmap.name));
            still.extend(named.map(|bitmap| action("disable", json!({ "node": disk.node, "name": bitmap.name }))));
        }
        if !still.is_empty() {
            self.transaction(still).await?;
        }
        for FrozenDisk { spec, .. } in disks {
            self.blockdev_add(json!({
                "driver": "snapshot-access",
                "node-name": frozen_node(&spec.name),
                "file": filter_node(&spec.name),
            }))
            .await?;
        }
        Ok(())
    }

    /// Takes a point in time away, whatever of it was put up and by whom. Its exports must be gone. The bitmaps stay.
    ///
    /// # Errors
    /// [`MachineError`]: some of it is left.
    pub async fn forget_point_in_time(&self, disks: &[DiskSpec]) -> Result<(), MachineError> {
        let nodes = self.nodes().await?;
        let there = |name: &str| nodes.iter().any(|node| node.name == name);
        for disk in disks.iter().filter(|disk| there(&frozen_node(&disk.name))) {
            self.blockdev_del(&frozen_node(&disk.name)).await?;
        }
        let mut filtered = Vec::new();
        for disk in disks.iter().filter(|disk| there(&filter_node(&disk.name))) {
            filtered.push((disk, self.format_node_in_use(disk).await?));
        }
        if !filtered.is_empty() {
            let below: Vec<_> = filtered.iter().map(|(disk, node)| (*disk, node.as_str())).collect();
            self.swap_below(&below).await?;
        }
        for (disk, _) in filtered {
            self.blockdev_del(&filter_node(&disk.name)).await?;
        }
        for disk in disks.iter().filter(|disk| there(&scratch_node(&disk.name))) {
            self.blockdev_del(&scratch_node(&disk.name)).await?;
        }
        Ok(())
    }

    /// Adds what the bitmaps `others` say to `main`, on one node, and removes them.
    ///
    /// # Errors
    /// [`MachineError`]; then nothing has changed.
    pub async fn bitmaps_join(&self, node: &str, main: &str, others: &[String]) -> Result<(), MachineError> {
        let merge = action("merge", json!({ "node": node, "target": main, "bitmaps": others }));
        let remove = others.iter().map(|other| action("remove", json!({ "node": node, "name": other })));
        let actions: Vec<Value> = std::iter::once(merge).chain(remove).collect();
        self.transaction(actions).await
    }
}
