//! The host's side of Sterna: it owns this host's guests, a crash-safe journal, and the data plane to other agents.
//!
//! ```text
//!   service     commands, requests, sessions, heartbeat: one loop
//!   ├─ migration   source · target · storage: a visible list of phases each · handover, which alone lets guests run
//!   │  ├─ memory      QEMU's migration channels over the lanes
//!   │  ├─ disk        NBD client, passes, digests, pools
//!   │  ├─ link        TLS, lanes, sessions
//!   │  └─ guest       QEMU processes that outlive the agent
//!   │     └─ hypervisor  QMP
//!   ├─ replication cycles at their source and target, the layers they leave, clones of them
//!   ├─ probe       measurements for the checks of a move: the way to a peer, a guest
//!   └─ bus, journal, teller, config, host
//! ```

pub mod admission;
mod buffers;
pub mod bus;
pub mod clock;
pub mod config;
pub mod disk;
pub mod guest;
pub mod host;
pub mod hypervisor;
pub mod journal;
pub mod link;
pub mod memory;
pub mod migration;
pub mod probe;
pub mod replication;
pub mod requests;
pub mod service;
pub mod teller;
