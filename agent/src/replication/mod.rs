//! Replication: a VM's disks, as they were at points in time, at another host, while the VM runs on; and clones of them.
//!
//! ```text
//!   source ═ conversation ═ target            the steps of a cycle at either host
//!     └─ frozen                └─ layers      the disks at one point in time · what was received, and is kept
//!          └─ rest                ├─ variables   its file systems frozen for that · a UEFI guest's variables then
//!                                 ├─ clone    a VM of its own, of a snapshot
//!                                 ├─ failover the VM itself, of a snapshot, since its host is gone
//!                                 │    ├─ adapt   the system on its disks gets an identity of its own
//!                                 │    ├─ seed    who it is, for its cloud-init
//!                                 │    └─ rehearsal   whether one that is booted for that is healthy
//!                                 └─ verify   whether what is kept is still what was written
//! ```

pub mod adapt;
pub mod clone;
pub mod failover;
pub mod frozen;
pub mod layers;
pub mod rehearsal;
pub mod rest;
pub mod seed;
pub mod source;
pub mod target;
pub mod variables;
pub mod verify;
