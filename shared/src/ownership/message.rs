//! What goes into the machine and what comes out of it.

use serde::{Deserialize, Serialize};

use super::{GENERATION_JUMP_MAX, Move, Record};
use crate::id::{Generation, HostId};

/// What two hosts say to each other about one VM, which the layer around it names. All four may be lost, repeated,
/// delayed and reordered at will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Source to target: the guest is yours as this generation.
    Cede {
        /// The generation offered.
        generation: Generation,
    },
    /// Source to target: did you take this generation? If not yet, then never do.
    Resolve {
        /// The generation asked about.
        generation: Generation,
    },
    /// Target to source: my guest has run as this generation.
    Activated {
        /// The generation taken.
        generation: Generation,
    },
    /// Target to source: I have not run this generation and never will.
    Refused {
        /// The generation refused.
        generation: Generation,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// A VM with a new id is defined here.
    Create,
    /// The VM is to be no more; its owner, whose guest is stopped, forgets it.
    Delete,
    /// This host is to be a move's target. The incoming guest is started when the record is on the disk, not before.
    Prepare {
        /// The generation the plan offers; above what both hosts have seen.
        generation: Generation,
        /// The source and the job.
        from: Move,
    },
    /// The target gives up: cancelled, the link is gone, the incoming guest died. Legal until the cede has come.
    Abort,
    /// This host, the owner, hands the paused, fully copied guest over (contract, 6).
    BeginCede {
        /// The generation the target was prepared with.
        generation: Generation,
        /// The target and the job.
        to: Move,
    },
    /// A peer said something. The link has proven who it is.
    Received {
        /// The peer.
        from: HostId,
        /// What it said.
        message: Message,
    },
    /// The record of the last [`Action::Journal`] is on the disk.
    Journalled,
    /// QEMU says `running` after [`Action::Cont`].
    GuestRuns,
    /// QEMU refused the `cont`, or died before it was sent: certain knowledge that the guest has executed nothing here.
    CannotRun,
    /// [`Action::Release`] is done.
    Released,
    /// An operator or a fence device vouches that the host executes nothing and will not start by itself.
    Fenced {
        /// The host.
        host: HostId,
    },
    /// This host was fenced and is let in again: the VM was taken back elsewhere as this generation.
    Superseded {
        /// The generation granted elsewhere.
        generation: Generation,
    },
    /// The owner was fenced, and what this host has of the VM's disks is to be the VM from here on: as a generation above all that the
    /// owner may have seen.
    TakeOver {
        /// The highest of these.
        above: Generation,
    },
    /// Some time has passed, or the agent has started: ask again for what is unfinished.
    Tick,
}

impl Input {
    /// The input's name, as logs and errors say it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Prepare { .. } => "prepare",
            Self::Abort => "abort",
            Self::BeginCede { .. } => "begin cede",
            Self::Received { message: Message::Cede { .. }, .. } => "cede",
            Self::Received { message: Message::Resolve { .. }, .. } => "resolve",
            Self::Received { message: Message::Activated { .. }, .. } => "activated",
            Self::Received { message: Message::Refused { .. }, .. } => "refused",
            Self::Journalled => "journalled",
            Self::GuestRuns => "guest runs",
            Self::CannotRun => "cannot run",
            Self::Released => "released",
            Self::Fenced { .. } => "fenced",
            Self::Superseded { .. } => "superseded",
            Self::TakeOver { .. } => "take over",
            Self::Tick => "tick",
        }
    }
}

/// What the driver does. Each may be asked for more than once and must then do no harm.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write the record and fsync it, then feed [`Input::Journalled`].
    Journal(Record),
    /// Send, over whatever reaches the peer. No delivery is assumed.
    Send {
        /// The peer.
        to: HostId,
        /// What to say.
        message: Message,
    },
    /// Make the guest run: `cont` where its process is there, a fresh start from its disks where the process has died
    /// (but see [`Input::CannotRun`]). Then contract, 4.
    Cont,
    /// The source's guest process is ended, its copy of the disks may go. Then feed [`Input::Released`].
    Release,
    /// End this VM's guest process here, if there is one, and wait until it is gone. Never touches a disk.
    Destroy,
}

/// Why an input was not taken. Nothing has changed; it is safe to go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// The driver fed something before it confirmed the write.
    #[error("the record `{record}` is being journalled; confirm that first, then feed this again")]
    Journalling {
        /// The state being written.
        record: &'static str,
    },
    /// The driver confirmed a write that nobody asked for.
    #[error("no write is waiting to be confirmed")]
    NothingJournalled,
    /// A command carries a generation from the past.
    #[error("generation {generation} is not above {seen}, which this host has seen; plan the move again")]
    Stale {
        /// The generation in the command.
        generation: Generation,
        /// The highest seen here.
        seen: Generation,
    },
    /// A generation further ahead than any honest history leads.
    #[error(
        "generation {generation} is more than {GENERATION_JUMP_MAX} above {seen}, which this host has seen; nothing was done"
    )]
    Implausible {
        /// The generation in the command or message.
        generation: Generation,
        /// The highest seen here.
        seen: Generation,
    },
    /// The generations are used up; only a dishonest peer gets there.
    #[error("generation {generation} leaves none to take the guest back with")]
    Exhausted {
        /// The generation in the command.
        generation: Generation,
    },
    /// The right generation, from or about a host that has no part in it.
    #[error("{host} has no part in this handover, {expected} has; nothing was done")]
    WrongPeer {
        /// The host recorded.
        expected: HostId,
        /// The host it came from, or is about.
        host: HostId,
    },
    /// A peer offers or asks about a generation that only an owner could grant, while this host is not done with the VM.
    /// Left unanswered: a `refused` would let the peer run its guest. Either this host settles soon and the peer asks
    /// again, or both own the VM, which a false fencing can bring about and an operator has to look into.
    #[error(
        "{peer} speaks of generation {generation}, but this host is {state} at {held}; look at the VM on both hosts"
    )]
    Contradiction {
        /// The peer.
        peer: HostId,
        /// The generation it speaks of.
        generation: Generation,
        /// This host's state.
        state: &'static str,
        /// This host's generation.
        held: Generation,
    },
    /// The guest may have run here already, so it cannot be given back.
    #[error("the guest may have run as generation {generation}: go on trying, or start it anew from its disks")]
    MustRun {
        /// The generation.
        generation: Generation,
    },
    /// A guest runs that may not. The driver stops it at once.
    #[error("a guest runs while this host is {state}: stop it")]
    MayNotRun {
        /// This host's state.
        state: &'static str,
    },
    /// The input does not fit the state.
    #[error("`{input}` is not possible while this host is {state} for the VM")]
    NotNow {
        /// This host's state.
        state: &'static str,
        /// The input's name.
        input: &'static str,
    },
}
