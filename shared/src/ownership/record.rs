//! What the journal holds: one record a VM on each host.

use serde::{Deserialize, Serialize};

use super::{Action, Message};
use crate::id::{Generation, HostId, JobId};

/// The other end of a handover, and the job it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    /// The job, which tells where and with what token the peer is reached.
    pub job: JobId,
    /// The other host.
    pub peer: HostId,
}

/// What one host has journalled about one VM.
///
/// `owned` is the highest generation that this host was granted and settled in, 0 for none; `seen` is the highest that
/// it has ever heard of, and it accepts no preparation up to that one. Both only grow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The VM is not here: never was (both 0), was refused, aborted, released or deleted. The tombstone stays.
    Absent {
        /// The last generation owned here.
        owned: Generation,
        /// No generation up to this one is ever run here (again).
        seen: Generation,
    },
    /// A guest is being filled from the source; it may not run.
    Incoming {
        /// The last generation owned here before.
        owned: Generation,
        /// The generation it will run as, if ceded.
        generation: Generation,
        /// The source.
        from: Move,
    },
    /// The right to run is here; the guest has not been seen to run under it.
    Activating {
        /// The last generation owned here before.
        owned: Generation,
        /// The generation granted.
        generation: Generation,
        /// The source to answer to; `None` where the source takes its own guest back.
        ceded_by: Option<Move>,
    },
    /// The VM is here, and whether it runs is between its user and this host.
    Owner {
        /// The generation it runs as.
        generation: Generation,
    },
    /// The right to run was offered to the target. Not to be run here until the target has refused.
    Ceding {
        /// The generation owned until now.
        owned: Generation,
        /// The generation offered.
        generation: Generation,
        /// The target.
        to: Move,
    },
    /// The target's guest runs. What is left here may be cleaned up.
    Ceded {
        /// The generation owned until the handover.
        owned: Generation,
        /// The generation that the target runs.
        generation: Generation,
        /// The target.
        to: Move,
    },
}

impl Default for Record {
    fn default() -> Self {
        Self::Absent { owned: Generation(0), seen: Generation(0) }
    }
}

impl Record {
    /// The generation as which this host may run the guest; `None` where it may not.
    #[must_use]
    pub const fn may_run(&self) -> Option<Generation> {
        match self {
            Self::Activating { generation, .. } | Self::Owner { generation } => Some(*generation),
            Self::Absent { .. } | Self::Incoming { .. } | Self::Ceding { .. } | Self::Ceded { .. } => None,
        }
    }

    /// The last generation that this host was granted and settled in; 0 for none.
    #[must_use]
    pub const fn owned(&self) -> Generation {
        match self {
            Self::Absent { owned, .. }
            | Self::Incoming { owned, .. }
            | Self::Activating { owned, .. }
            | Self::Ceding { owned, .. }
            | Self::Ceded { owned, .. } => *owned,
            Self::Owner { generation } => *generation,
        }
    }

    /// The highest generation this host knows of. A plan for a move offers one above that of both hosts.
    #[must_use]
    pub const fn seen(&self) -> Generation {
        match self {
            Self::Absent { seen, .. } => *seen,
            Self::Incoming { generation, .. }
            | Self::Activating { generation, .. }
            | Self::Owner { generation }
            | Self::Ceding { generation, .. }
            | Self::Ceded { generation, .. } => *generation,
        }
    }

    /// What is left to do in this state: on restart, and whenever an earlier try may have come to nothing. All of it may
    /// be done again without harm.
    #[must_use]
    pub fn unfinished(&self) -> Option<Action> {
        match self {
            Self::Absent { .. } => Some(Action::Destroy),
            Self::Activating { .. } => Some(Action::Cont),
            // Offered again, and not asked about: a target that is only slow takes it, one that has given up refuses it.
            Self::Ceding { generation, to, .. } => {
                Some(Action::Send { to: to.peer.clone(), message: Message::Cede { generation: *generation } })
            }
            Self::Ceded { .. } => Some(Action::Release),
            Self::Incoming { .. } | Self::Owner { .. } => None,
        }
    }

    /// Whether nothing but a new command will change this record. The others are ticked until they are settled.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Incoming { .. } | Self::Owner { .. })
    }

    /// The state's name, as logs, events and errors say it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "absent",
            Self::Incoming { .. } => "incoming",
            Self::Activating { .. } => "activating",
            Self::Owner { .. } => "owner",
            Self::Ceding { .. } => "ceding",
            Self::Ceded { .. } => "ceded",
        }
    }
}
