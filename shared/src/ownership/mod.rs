//! Who may run a VM: the handover of that right between two hosts, without I/O and without a clock.
//!
//! Each host keeps one [`Record`] a VM in its journal. A guest may run on a host exactly while that host's record says so
//! ([`Record::may_run`]), and the right travels only by the table below. [`Ownership`] is that table as a machine: inputs
//! go in, [`Action`]s come out, and an action that depends on a record comes out only after the record is on the disk.
//!
//! ```text
//!  source                                                 target
//!    Owner(g)                                               Absent(seen < n)
//!      │ begin cede n > g                                     │ prepare n
//!      ▼                                                      ▼                abort, or resolve(n)
//!    Ceding(n) ───────────── cede(n) ──────────────────▶    Incoming(n) ─────────────────┐ before any cede
//!      │    │ ▲                                               │ cede(n)                  │
//!      │    │ └─ tick: cede(n) again, for ever               ▼       the only cont      ▼
//!      │    │                                               Activating(n) ─────────▶ Absent(seen n)
//!      │    │                                                 │ cont, and    failed;    never runs n
//!      │    │                                                 │ it runs      it never ran   │
//!      │    │                                                 ▼                          │
//!      │    │                       ┌──── activated(n) ──── Owner(n)                     │
//!      │    └── or fenced ──────────┼──── refused(n) ────────────────────────────────────┘
//!      │              │             │
//!      │ activated    │ refused     │                       Superseded by an operator, anywhere the host
//!      ▼              ▼             │                       is fenced: Absent(seen), the guest destroyed
//!    Ceded(n)       Activating(n+1) ── cont, it runs ──▶ Owner(n+1)
//!      │ released
//!      ▼
//!    Absent(owned g, seen n)        the tombstone: no generation up to `seen` is ever accepted here again
//! ```
//!
//! # Why it is safe
//!
//! The right is one token. The source gives it away by journalling `Ceding` *before* it says so; the target takes it by
//! journalling `Activating` *before* its guest executes; and the target either takes generation *n* or promises, in its
//! journal, never to take it, *before* it answers `refused`. So whatever is lost, repeated, delayed or restarted, *n* is
//! run by the target or by nobody, and the source learns which, or waits. Generations only grow, and nobody waits in
//! `Ceding(n)` while a later one exists, short of one granted by its own target: hence a host that has owned *n* or
//! later answers `activated(n)`, also long after, and also when it has handed the VM on since.
//!
//! # The contract of whoever drives it
//!
//! 1. One driver a VM feeds the inputs one at a time and carries out the actions of each *in order, each to its end*. It
//!    alone calls `cont`.
//! 2. [`Action::Journal`] is fsynced, then [`Input::Journalled`] is fed, before anything else. If the write fails, nobody
//!    knows what the disk holds: drop the machine and build it again from the journal.
//! 3. An action that fails, or is interrupted, needs no undoing: feed [`Input::Tick`], which asks again for what is left.
//!    After a restart build the machine with [`Ownership::restore`] and feed one `Tick`.
//! 4. After [`Action::Cont`] feed [`Input::GuestRuns`] when QEMU says `running`, [`Input::CannotRun`] when it is certain
//!    that the guest executed nothing, and only `Tick` when neither is certain.
//! 5. A lost journal is a lost host. An empty one must not be started in its place under the same host id: it would answer
//!    `refused` for what it runs. Such a host is fenced first.
//! 6. [`Input::BeginCede`] is fed only with the guest paused, everything sent and proven equal, the target's guest loaded.
//! 7. A source that restarts as `Owner` and finds its guest paused by a move lets it run on; that move has failed. A target
//!    that restarts as `Incoming` keeps its guest until the source speaks or the job gives up ([`Input::Abort`]).
//!
//! What is then true of the VM, at every instant: at most one host may run it, and
//!
//! | the handover ends in | source | target |
//! | --- | --- | --- |
//! | success | `Absent`, its copy released after the target's guest ran | `Owner(n)`, running |
//! | failure before `Ceding` | `Owner(g)`: runs on | `Absent` after an abort; `Incoming` until then |
//! | target refuses, or cannot run the guest | `Owner(n+1)`: same guest, memory included | `Absent`: never runs *n* |
//! | target silent | `Ceding(n)`: paused, offers it again for ever | as its journal says, found when it comes back |
//! | target fenced | `Owner(n+1)` | not believed any more; see below |
//!
//! # What fencing means
//!
//! [`Input::Fenced`] is an operator's word, or a fence device's, that the target *executes nothing and will not start
//! again on its own*: it is powered off, or its storage and network are cut for good. It also vouches that the VM did not
//! travel on from that target. It is the one input that can break every promise here if it is false, and what the target
//! had run and acknowledged since the cede is given up by it. It takes effect with the record `Activating(n+1)` on the
//! disk, and is acknowledged to the operator only then: lost in a crash before, it has to be declared again, and an
//! `activated` that arrives in between wins, because then the target is known to own the VM.
//!
//! A host that was fenced and comes back may hold `Owner(n)` in its journal while the source has `Owner(n+1)`: it must not
//! be believed. A coordinator that hears it say so, while the owner of the later generation is there, has it told
//! [`Input::Superseded`]. Until then nothing keeps a guest that was never ended from executing: fencing is what ends it.
//!
//! # What a failover means
//!
//! [`Input::TakeOver`] is the same word about an owner that has ceded nothing: it is gone, and another host has a replica of the VM's
//! disks. That host owns the VM from the record on, and starts it from these disks like any owner. What the guest wrote since they
//! were taken is given up by the word. It is given only where no handover of the VM is under way, and with a generation well above
//! the last one heard of, so that whatever the old owner had come to unheard is below; it learns of its end as above.

mod message;
mod record;
mod table;
#[cfg(test)]
mod tests;

pub use message::{Action, Illegal, Input, Message};
pub use record::{Move, Record};
pub use table::GENERATION_JUMP_MAX;

/// The ownership of one VM on one host: its record, and the write that is on its way to the disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ownership {
    record: Record,
    /// The first and only `cont` of a ceded guest is on its way, and this agent was there from before it.
    first_cont: bool,
    pending: Option<Pending>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pending {
    record: Record,
    after: Vec<Action>,
}

impl Ownership {
    /// Builds the machine from what the journal holds; [`Record::default`] where it holds nothing.
    #[must_use]
    pub const fn restore(record: Record) -> Self {
        Self { record, first_cont: false, pending: None }
    }

    /// The record in force: the last one known to be on the disk.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Takes one input and says what to do about it, in order. Where that starts with a [`Action::Journal`] it is the only
    /// action: the others come as the answer to [`Input::Journalled`].
    ///
    /// # Errors
    ///
    /// [`Illegal`] where the input does not fit; nothing has changed then.
    pub fn apply(&mut self, input: &Input) -> Result<Vec<Action>, Illegal> {
        match (self.pending.take(), input) {
            (Some(Pending { record, after }), Input::Journalled) => {
                self.first_cont = matches!(record, Record::Activating { ceded_by: Some(_), .. });
                self.record = record;
                return Ok(after);
            }
            (Some(pending), _) => {
                let record = pending.record.name();
                self.pending = Some(pending);
                return Err(Illegal::Journalling { record });
            }
            (None, Input::Journalled) => return Err(Illegal::NothingJournalled),
            (None, _) => {}
        }
        match table::next(&self.record, self.first_cont, input)? {
            table::Step::Stay(actions) => {
                // A second cont is asked for because the first one's end is unknown: from here on nobody can be certain
                // that the guest executed nothing.
                if actions.contains(&Action::Cont) {
                    self.first_cont = false;
                }
                Ok(actions)
            }
            table::Step::Go(record, after) => {
                self.pending = Some(Pending { record: record.clone(), after });
                Ok(vec![Action::Journal(record)])
            }
        }
    }
}
