//! Moves: what the source, the target, or the one host of a storage move does, phase by phase.
//!
//! ```text
//!   source ═ conversation ═ target        storage          the phases of each, one visible list a file
//!      └──────┬────────────────┴─────────────┘
//!           keeper    one task a VM: owns its record, its right to run, its guest
//!             └─ handover    drives `ownership`; the only caller of `cont`
//!   disks, target_disks    passes, and what is written of them       images    files made and removed
//!   dial    the source's way to its target
//!   reader    every disk of a VM read through, of a deep check
//!   cutover    what a move to a replica begins with, and leaves for the way back
//!   partial    images of a move that is not over, or was cut
//!   context, gate, progress, tally    plan and telling · the point of no return · how far it is · what was told of it
//! ```

pub mod context;
pub mod convergence;
pub mod conversation;
pub mod cutover;
pub mod dial;
pub mod disks;
pub mod gate;
pub mod handover;
pub mod images;
pub mod keeper;
pub mod partial;
pub mod progress;
pub mod reader;
pub mod source;
pub mod storage;
pub mod tally;
pub mod target;
pub mod target_disks;
