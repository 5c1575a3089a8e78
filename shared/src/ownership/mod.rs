//! Who may run a VM.

use serde::{Deserialize, Serialize};

/// A message of the handover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {}
