//! A machine's disks: NBD exports, dirty bitmaps and the passes over them, and the block graph.
//!
//! A pass, as the disk loop runs it (design §6):
//!
//! ```text
//!   pass_begin ─▶ export_add with the pass bitmap ─▶ reader copies ─▶ export_remove ─▶ pass_end
//!                                                        └── failed ─▶ export_remove ─▶ pass_abandon: nothing is forgotten
//! ```

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use sterna_shared::units::{Bandwidth, ByteCount};
use sterna_shared::vm::{DiskBus, DiskSpec};
use tokio::time::Instant;

use super::command_line::{device_id, format_node, spare_format_node, top_node, top_options};
use super::qmp::QmpError;
use super::{Machine, MachineError, next_event, text};

/// The most clients one NBD server takes at a time: readers of every disk and every pass of one VM.
pub const NBD_CONNECTIONS_MAX: u32 = 256;

/// A node, served over NBD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// QEMU's name for the export, unique in this QEMU.
    pub id: String,
    /// The node served.
    pub node: String,
    /// The name that clients ask for.
    pub name: String,
    /// Whether clients may write.
    pub writable: bool,
    /// Bitmaps shown as `qemu:dirty-bitmap:NAME`, each with the node it is on.
    pub bitmaps: Vec<(String, String)>,
}

/// How a bitmap is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapOptions {
    /// Bytes that one bit stands for: a power of two.
    pub granularity: u32,
    /// Whether it is kept in the image when QEMU ends well. qcow2 only.
    pub persistent: bool,
}

/// A block node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Its name.
    #[serde(rename = "node-name")]
    pub name: String,
    /// Its driver.
    #[serde(rename = "drv")]
    pub driver: String,
    /// Whether it refuses writes.
    #[serde(rename = "ro")]
    pub read_only: bool,
    /// What it reads and writes, in the end: a path, or a description that has the path in it.
    #[serde(default)]
    pub file: String,
    /// Its image.
    pub image: NodeImage,
    /// The dirty bitmaps on it.
    #[serde(rename = "dirty-bitmaps", default)]
    pub bitmaps: Vec<Bitmap>,
}

/// The image of a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeImage {
    /// Its size as a guest sees it.
    #[serde(rename = "virtual-size")]
    pub size: ByteCount,
    /// What it takes where it lies, as the system says: nothing of a device.
    #[serde(rename = "actual-size")]
    pub allocated: Option<ByteCount>,
}

/// A dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Bitmap {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// How many bytes it says are dirty.
    #[serde(rename = "count")]
    pub dirty: ByteCount,
    /// Bytes that one bit stands for.
    pub granularity: u32,
    /// Whether it follows writes.
    pub recording: bool,
    /// Whether something uses it, which keeps it from being changed.
    pub busy: bool,
    /// Whether it is kept in the image.
    pub persistent: bool,
    /// Whether it was not closed well and says nothing: it can only be removed.
    #[serde(default)]
    pub inconsistent: bool,
}

impl Machine {
    /// Starts the NBD server on a UNIX socket at `path`. One QEMU has one server.
    ///
    /// # Errors
    /// [`MachineError`], also where one runs already.
    pub async fn nbd_server_start(&self, path: &Path) -> Result<(), MachineError> {
        let address = json!({ "type": "unix", "data": { "path": text(path)? } });
        self.tell("nbd-server-start", json!({ "addr": address, "max-connections": NBD_CONNECTIONS_MAX })).await
    }

    /// Stops the NBD server, and every export and client with it.
    ///
    /// # Errors
    /// [`MachineError`], also where none runs.
    pub async fn nbd_server_stop(&self) -> Result<(), MachineError> {
        self.tell("nbd-server-stop", Value::Null).await
    }

    /// Serves a node over NBD.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn export_add(&self, export: &Export) -> Result<(), MachineError> {
        let mut arguments = json!({
            "type": "nbd", "id": export.id, "node-name": export.node, "name": export.name, "writable": export.writable,
        });
        if !export.bitmaps.is_empty() {
            let bitmaps = export.bitmaps.iter().map(|(node, name)| json!({ "node": node, "name": name }));
            arguments["bitmaps"] = bitmaps.collect();
        }
        self.tell("block-export-add", arguments).await
    }

    /// Ends an export, throws its clients out, and returns when it is gone. It being gone already is no error.
    ///
    /// # Errors
    /// [`MachineError::ExportStays`] after `wait`.
    pub async fn export_remove(&self, id: &str, wait: Duration) -> Result<(), MachineError> {
        let deadline = Instant::now() + wait;
        let mut events = self.events();
        if !self.exports().await?.iter().any(|export| export == id) {
            return Ok(());
        }
        let removal = self.tell("block-export-del", json!({ "id": id, "mode": "hard" })).await;
        // Refused where it is going already, or has gone since: the list below decides.
        if let Err(error) = removal
            && !matches!(error, MachineError::Qmp(QmpError::Refused { .. }))
        {
            return Err(error);
        }
        while self.exports().await?.iter().any(|export| export == id) {
            if Instant::now() >= deadline {
                return Err(MachineError::ExportStays { id: id.to_owned(), wait });
            }
            next_event(&mut events, &["BLOCK_EXPORT_DELETED"], deadline).await;
        }
        Ok(())
    }

    /// The ids of all exports.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn exports(&self) -> Result<Vec<String>, MachineError> {
        #[derive(Deserialize)]
        struct Info {
            id: String,
        }
        let exports: Vec<Info> = self.ask("query-block-exports", Value::Null).await?;
        Ok(exports.into_iter().map(|export| export.id).collect())
    }

    /// All named nodes, with their sizes and bitmaps.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn nodes(&self) -> Result<Vec<Node>, MachineError> {
        self.ask("query-named-block-nodes", json!({ "flat": true })).await
    }

    /// One node.
    ///
    /// # Errors
    /// [`MachineError::NoNode`].
    pub async fn node(&self, name: &str) -> Result<Node, MachineError> {
        let nodes = self.nodes().await?;
        nodes.into_iter().find(|node| node.name == name).ok_or_else(|| MachineError::NoNode { node: name.to_owned() })
    }

    /// The size of a node as a guest sees it.
    ///
    /// # Errors
    /// [`MachineError::NoNode`].
    pub async fn node_size(&self, name: &str) -> Result<ByteCount, MachineError> {
        self.node(name).await.map(|node| node.image.size)
    }

    /// How many bytes `bitmap` says are dirty, over all of `nodes`.
    ///
    /// # Errors
    /// [`MachineError::NoNode`], [`MachineError::NoBitmap`].
    pub async fn dirty_bytes(&self, nodes: &[&str], bitmap: &str) -> Result<ByteCount, MachineError> {
        let dirty = self.dirty_bytes_each(nodes, bitmap).await?;
        Ok(dirty.into_iter().fold(ByteCount(0), ByteCount::plus))
    }

    /// How many bytes `bitmap` says are dirty on each of `nodes`, in one question.
    ///
    /// # Errors
    /// [`MachineError::NoNode`], [`MachineError::NoBitmap`].
    pub async fn dirty_bytes_each(&self, nodes: &[&str], bitmap: &str) -> Result<Vec<ByteCount>, MachineError> {
        let known = self.nodes().await?;
        let dirty = nodes.iter().map(|name| {
            let node = known.iter().find(|node| node.name == *name);
            let node = node.ok_or_else(|| MachineError::NoNode { node: (*name).to_owned() })?;
            let found = node.bitmaps.iter().find(|candidate| candidate.name == bitmap);
            let missing = || MachineError::NoBitmap { node: (*name).to_owned(), bitmap: bitmap.to_owned() };
            Ok(found.ok_or_else(missing)?.dirty)
        });
        dirty.collect()
    }

    /// Starts to record writes to all of `nodes`, from one instant.
    ///
    /// # Errors
    /// [`MachineError`]; then it is on none of them.
    pub async fn bitmap_add(&self, nodes: &[&str], name: &str, options: BitmapOptions) -> Result<(), MachineError> {
        let actions = nodes.iter().map(|node| {
            let BitmapOptions { granularity, persistent } = options;
            action("add", json!({ "node": node, "name": name, "granularity": granularity, "persistent": persistent }))
        });
        self.transaction(actions.collect()).await
    }

    /// Forgets a bitmap on all of `nodes`, also an inconsistent one.
    ///
    /// # Errors
    /// [`MachineError`]; then it is still on all of them.
    pub async fn bitmap_remove(&self, nodes: &[&str], name: &str) -> Result<(), MachineError> {
        self.transaction(nodes.iter().map(|node| action("remove", json!({ "node": node, "name": name }))).collect())
            .await
    }

    /// Begins a pass at one instant over all of `nodes`: what `main` has recorded moves to the new bitmap `pass`, which
    /// stands still, and `main` records from empty. The `granularity` is that of `main`, so that the merge neither widens
    /// nor shifts an extent.
    ///
    /// # Errors
    /// [`MachineError`]; then nothing has changed.
    pub async fn pass_begin(
        &self,
        nodes: &[&str],
        main: &str,
        pass: &str,
        granularity: u32,
    ) -> Result<(), MachineError> {
        let mut actions = Vec::new();
        for node in nodes {
            actions.extend([
                action("add", json!({ "node": node, "name": pass, "granularity": granularity, "disabled": true })),
                action("merge", json!({ "node": node, "target": pass, "bitmaps": [main] })),
                action("clear", json!({ "node": node, "name": main })),
            ]);
        }
        self.transaction(actions).await
    }

    /// Ends a pass whose extents are all at the target.
    ///
    /// # Errors
    /// [`MachineError`], also while the pass is still exported.
    pub async fn pass_end(&self, nodes: &[&str], pass: &str) -> Result<(), MachineError> {
        self.bitmap_remove(nodes, pass).await
    }

    /// Gives up a pass: its extents go back to `main`, to be sent by the next one.
    ///
    /// # Errors
    /// [`MachineError`]; then nothing has changed.
    pub async fn pass_abandon(&self, nodes: &[&str], main: &str, pass: &str) -> Result<(), MachineError> {
        let actions = nodes.iter().flat_map(|node| {
            [
                action("merge", json!({ "node": node, "target": main, "bitmaps": [pass] })),
                action("remove", json!({ "node": node, "name": pass })),
            ]
        });
        self.transaction(actions.collect()).await
    }

    /// Opens a node; see `command_line::disk_nodes` for those of a disk.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn blockdev_add(&self, options: Value) -> Result<(), MachineError> {
        self.tell("blockdev-add", options).await
    }

    /// Closes a node that nothing uses.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn blockdev_del(&self, node: &str) -> Result<(), MachineError> {
        self.tell("blockdev-del", json!({ "node-name": node })).await
    }

    /// Puts other nodes under the devices of the disks named, all at one instant and under a running guest: what a
    /// point-in-time filter and a move between pools need.
    ///
    /// # Errors
    /// [`MachineError`]; then nothing has changed.
    pub async fn swap_below(&self, disks: &[(&DiskSpec, &str)]) -> Result<(), MachineError> {
        let options: Value = disks.iter().map(|(disk, below)| top_options(disk, below)).collect();
        self.tell("blockdev-reopen", json!({ "options": options })).await
    }

    /// Puts another node under one that stays: `options` are those of the node that stays.
    ///
    /// # Errors
    /// [`MachineError`]; then nothing has changed.
    pub async fn blockdev_reopen(&self, options: Value) -> Result<(), MachineError> {
        self.tell("blockdev-reopen", json!({ "options": [options] })).await
    }

    /// The node below the top node of a disk, out of the two names that it can have (see [`spare_format_node`]).
    ///
    /// # Errors
    /// [`MachineError::NoNode`] where the disk has no such nodes.
    pub async fn format_node_in_use(&self, disk: &DiskSpec) -> Result<String, MachineError> {
        let nodes = self.nodes().await?;
        let named = |name: String| nodes.iter().find(|node| node.name == name);
        let first = named(format_node(&disk.name));
        let top = named(top_node(&disk.name));
        let used = match (first, named(spare_format_node(&disk.name)), top) {
            // Both are open only in the middle of a swap: the top node says which one it stands on.
            (Some(first), Some(second), Some(top)) => {
                // A node with options of its own, such as a length, is named by them, and nested in those of the top.
                let below = |node: &&Node| top.file.contains(node.file.trim_start_matches("json:"));
                [second, first].into_iter().find(below)
            }
            (first, second, _) => first.or(second),
        };
        let used = used.ok_or_else(|| MachineError::NoNode { node: format_node(&disk.name) })?;
        Ok(used.name.clone())
    }

    /// How many bytes the guest has written to all of its disks since QEMU was started.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn written_bytes(&self) -> Result<ByteCount, MachineError> {
        #[derive(Deserialize)]
        struct Device {
            stats: Statistics,
        }
        #[derive(Deserialize)]
        struct Statistics {
            wr_bytes: ByteCount,
        }
        let devices: Vec<Device> = self.ask("query-blockstats", Value::Null).await?;
        Ok(devices.into_iter().fold(ByteCount(0), |sum, device| sum.plus(device.stats.wr_bytes)))
    }

    /// Limits how fast the guest may write to a disk; `None` lifts the limit.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn throttle_writes(&self, disk: &DiskSpec, limit: Option<Bandwidth>) -> Result<(), MachineError> {
        let device = match disk.bus {
            // A virtio-blk disk is a device within the PCI device that carries the id.
            DiskBus::Virtio => format!("/machine/peripheral/{}/virtio-backend", device_id(&disk.name)),
            DiskBus::Scsi | DiskBus::Sata => device_id(&disk.name),
        };
        self.tell(
            "block_set_io_throttle",
            json!({
                "id": device,
                "bps": 0, "bps_rd": 0, "bps_wr": limit.map_or(0, |limit| limit.0),
                "iops": 0, "iops_rd": 0, "iops_wr": 0,
            }),
        )
        .await
    }
}

pub(super) fn action(verb: &str, data: Value) -> Value {
    json!({ "type": format!("block-dirty-bitmap-{verb}"), "data": data })
}
