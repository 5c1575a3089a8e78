//! Disks: what they hold, where they live, and how they move.
//!
//! ```text
//!   pool        where images live: paths, creation, checks             (the only part that opens images)
//!   nbd/        how a disk is read and written: QEMU's own NBD server   (the only part that speaks NBD)
//!   copy/       source half and target half of one pass, joined by Blocks, whatever carries them
//!   page_cache  what is written through it does not stay there
//!   extent      ranges of a disk                                        (pure)
//!   digest      what each chunk of a disk is known to hold              (pure)
//! ```
//!
//! Nothing here knows of jobs, lanes or handover: a pass is given a [`nbd::Client`], a list of ranges and a channel.

pub mod copy;
pub mod digest;
pub mod extent;
pub mod nbd;
pub mod page_cache;
pub mod pool;
