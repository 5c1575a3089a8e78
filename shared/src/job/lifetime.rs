//! How a replication ends: for good, once its VM is cut over.

use serde::{Deserialize, Serialize};

use crate::id::HostId;
use crate::time::Timestamp;

/// A replication is over for good as soon as nothing of it is left: neither the replica nor the way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finalization {
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// The hosts that keep something of it, or may.
    pub hosts: Vec<HostId>,
}
