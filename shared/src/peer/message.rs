//! What the two agents of a move say to each other on the control channel.
//!
//! | message | direction | meaning |
//! | --- | --- | --- |
//! | `Open` / `Opened` | source → target → source | is the VM's place free; which generations has the target seen |
//! | `Prepare` / `Prepared` | source → target → source | reserve, make images, start the incoming QEMU |
//! | `Held` / `HeldDigests` | source → target → source | what is in the images that an earlier move has left |
//! | `PassEnd` / `PassApplied` | source → target → source | so many blocks made up this pass; all of them are applied |
//! | `MemoryOpen` / `MemoryReady` | source → target → source | QEMU's migration channels begin |
//! | `Prove` / `Proof` | source → target → source | flush, read back, tell the digests |
//! | `CycleOpen` / `CycleOpened` | source → target → source | a replication cycle: which snapshot is the latest there |
//! | `CycleBegin` / `Prepared` | source → target → source | of which point in time; the layer is there |
//! | `CycleCommit` / `CycleCommitted` | source → target → source | compare the digests; the snapshot is whole |
//! | `Handover` | both | the messages of [`crate::ownership`] |
//! | `Abort` / `Aborted` | source → target → source | undo the preparation; it is undone |
//! | `Failed` | target → source | the target cannot go on |
//! | `Finished` | source → target | the source has let go; the job is over |

use serde::{Deserialize, Serialize};

use crate::bus::{EnvelopeError, decode, encode};
use crate::id::{Generation, JobId};
use crate::job::FailureReport;
use crate::ownership;
use crate::replica::Consistency;
use crate::time::Timestamp;

/// A message of the control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Source to target: begin.
    Open,
    /// Target to source: ready to be prepared.
    Opened {
        /// The highest generation of this VM that the target has seen; the source offers a higher one.
        seen: Generation,
    },
    /// Source to target: prepare to take the VM.
    Prepare {
        /// The generation that will be ceded.
        generation: Generation,
        /// A UEFI guest's variable store, where it goes along: at most a few hundred KiB.
        #[serde(with = "serde_bytes")]
        variables: Option<Vec<u8>>,
    },
    /// Target to source: images are there and open, and its QEMU waits.
    Prepared {
        /// How many bytes of each disk, in the plan's order, an earlier move has left there. A target that left this out
        /// holds nothing.
        #[serde(default)]
        held: Vec<u64>,
    },
    /// Source to target: tell what chunks of a disk hold, as far as an earlier move has left it.
    Held {
        /// The disk, by its place in the plan.
        disk: u16,
        /// The first chunk (of 1 MiB) that is asked for.
        first: u64,
    },
    /// Target to source: what was read back of them.
    HeldDigests {
        /// The disk.
        disk: u16,
        /// The first chunk that is told.
        first: u64,
        /// One entry a chunk, in order, none left out: 0 (not known), 1 (zeroes), or 2 and its BLAKE3 digest. The target
        /// chooses how many, at least one.
        #[serde(with = "serde_bytes")]
        chunks: Vec<u8>,
    },
    /// Source to target: every block of this pass has been sent.
    PassEnd {
        /// The pass, from 0.
        pass: u32,
        /// Blocks sent in the session so far, all passes together: lanes do not keep order among each other.
        blocks: u64,
    },
    /// Target to source: every block of the pass is written.
    PassApplied {
        /// The pass.
        pass: u32,
    },
    /// Source to target: connect QEMU's migration channels.
    MemoryOpen {
        /// How many, the main channel counted.
        channels: u16,
    },
    /// Target to source: they are connected.
    MemoryReady,
    /// Source to target: nothing more will be written; tell what is there.
    Prove,
    /// Target to source: what was read back.
    Proof {
        /// One root a disk, in the plan's order.
        #[serde(with = "roots")]
        roots: Vec<[u8; 32]>,
    },
    /// Source to target: a cycle of a replication begins.
    CycleOpen,
    /// Target to source: what is there of earlier ones.
    CycleOpened {
        /// The cycle of the latest snapshot that is whole and sound; none where everything is to be sent, or compared.
        latest: Option<JobId>,
        /// Which attempt of that cycle.
        #[serde(default)]
        attempt: u32,
        /// Whether an earlier cycle was cut and has left what it had sent: then digests tell what of it is right.
        #[serde(default)]
        part: bool,
    },
    /// Source to target: the point in time is taken; make a layer for it. Answered by [`Message::Prepared`], whose `held` are the
    /// bytes of each disk that need not be sent where digests are equal.
    CycleBegin {
        /// The point in time, by the source's clock.
        taken_at: Timestamp,
        /// What state the guest had its disks in then.
        consistency: Consistency,
        /// Whether only what was written since the latest snapshot comes, as the source has recorded it.
        changes: bool,
        /// A UEFI guest's variable store then, as in [`Message::Prepare`].
        #[serde(default, with = "serde_bytes")]
        variables: Option<Vec<u8>>,
    },
    /// Source to target: everything has been sent. Compare, and let the snapshot be there.
    CycleCommit {
        /// One digest a disk, in the plan's order: of the whole disk, or of the changes that were sent.
        #[serde(with = "roots")]
        roots: Vec<[u8; 32]>,
    },
    /// Target to source: the snapshot is there, and stays.
    CycleCommitted,
    /// Both ways: the handover.
    Handover {
        /// What is said.
        message: ownership::Message,
    },
    /// Source to target: undo the preparation.
    Abort {
        /// Why.
        failure: FailureReport,
    },
    /// Target to source: nothing is left of it.
    Aborted,
    /// Target to source: it cannot go on, and has begun to undo.
    Failed {
        /// Why.
        failure: FailureReport,
    },
    /// Source to target: the source has let go of its copy.
    Finished,
}

impl Message {
    /// The bytes for a control frame.
    ///
    /// # Errors
    /// When the message is over the limit: a fault of ours.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EnvelopeError> {
        encode("peer message", self)
    }

    /// Reads a control frame, bounded in size and depth.
    ///
    /// # Errors
    /// When it is not a message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        decode("peer message", bytes)
    }

    /// Its name, for errors.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Opened { .. } => "opened",
            Self::Prepare { .. } => "prepare",
            Self::Prepared { .. } => "prepared",
            Self::Held { .. } => "held",
            Self::HeldDigests { .. } => "held digests",
            Self::PassEnd { .. } => "pass end",
            Self::PassApplied { .. } => "pass applied",
            Self::MemoryOpen { .. } => "memory open",
            Self::MemoryReady => "memory ready",
            Self::Prove => "prove",
            Self::Proof { .. } => "proof",
            Self::CycleOpen => "cycle open",
            Self::CycleOpened { .. } => "cycle opened",
            Self::CycleBegin { .. } => "cycle begin",
            Self::CycleCommit { .. } => "cycle commit",
            Self::CycleCommitted => "cycle committed",
            Self::Handover { .. } => "handover",
            Self::Abort { .. } => "abort",
            Self::Aborted => "aborted",
            Self::Failed { .. } => "failed",
            Self::Finished => "finished",
        }
    }
}

/// Roots as binary strings: an array of numbers would take twice the room.
mod roots {
    use serde::{Deserialize, Deserializer, Serializer, de::Error, ser::SerializeSeq};

    use crate::vm::DISKS_MAX;

    pub(super) fn serialize<S: Serializer>(roots: &[[u8; 32]], serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(roots.len()))?;
        for root in roots {
            sequence.serialize_element(serde_bytes::Bytes::new(root))?;
        }
        sequence.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<[u8; 32]>, D::Error> {
        let roots = Vec::<serde_bytes::ByteBuf>::deserialize(deserializer)?;
        if roots.len() > DISKS_MAX {
            return Err(D::Error::custom(format!("{} roots; a VM has at most {DISKS_MAX} disks", roots.len())));
        }
        roots
            .into_iter()
            .map(|root| <[u8; 32]>::try_from(root.as_ref()).map_err(|_| D::Error::custom("a root has 32 bytes")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_come_back_and_stay_small() {
        let proof = Message::Proof { roots: vec![[0xAB; 32]; 32] };
        let bytes = proof.to_bytes().expect("encoded");
        assert!(bytes.len() < 32 * 40, "{}", bytes.len());
        assert_eq!(Message::from_bytes(&bytes).expect("decoded"), proof);
    }

    #[test]
    fn a_target_of_an_earlier_version_holds_nothing() {
        let earlier = crate::bus::encode("peer message", &serde_json::json!({ "type": "prepared" })).expect("encoded");
        assert_eq!(Message::from_bytes(&earlier).expect("decoded"), Message::Prepared { held: Vec::new() });
        let now = Message::HeldDigests { disk: 1, first: 1024, chunks: vec![0, 1] };
        assert_eq!(Message::from_bytes(&now.to_bytes().expect("encoded")).expect("decoded"), now);
    }

    #[test]
    fn too_many_roots_are_refused() {
        let bytes = Message::Proof { roots: vec![[0; 32]; 33] }.to_bytes().expect("encoded");
        assert!(Message::from_bytes(&bytes).is_err());
    }
}
