//! The host's side of Sterna: it owns this host's guests, a crash-safe journal, and the data plane to other agents.

pub mod disk;
pub mod guest;
pub mod hypervisor;
pub mod link;
