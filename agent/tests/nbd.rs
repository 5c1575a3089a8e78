//! Disks against the real thing: QEMU's NBD server, images of both formats, and servers that mean harm.

#[path = "nbd/copying.rs"]
mod copying;
#[path = "nbd/harness.rs"]
mod harness;
#[path = "nbd/hostile.rs"]
mod hostile;
#[path = "nbd/layers.rs"]
mod layers;
#[path = "nbd/lvm.rs"]
mod lvm;
#[path = "nbd/operations.rs"]
mod operations;
#[path = "nbd/pools.rs"]
mod pools;
#[path = "nbd/volume_groups.rs"]
mod volume_groups;
