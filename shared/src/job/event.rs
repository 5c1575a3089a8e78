//! Events: what happened, told by whoever did it, kept for ever.

use serde::{Deserialize, Serialize};

use super::{CheckReport, FailureReport, Finding, JobState, MoveRequest, Plan, Policy, StepFigures, StepKind};
use crate::id::{Generation, HostId, JobId, VmId};
use crate::time::Timestamp;
use crate::units::Bandwidth;

/// Something that happened in a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The job.
    pub job: JobId,
    /// Who says so.
    pub reporter: Reporter,
    /// The how-manieth event of this reporter for this job, from 1: repeats and gaps are seen by it.
    pub sequence: u64,
    /// When, by the reporter's clock.
    pub at: Timestamp,
    /// What.
    pub body: EventBody,
}

/// Who tells of an event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reporter {
    /// The coordinators; one leads at a time.
    Coordinator,
    /// A host's agent.
    Host(HostId),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventBody {
    /// A job was submitted. It begins when its time has come and its hosts have a slot, with a plan of that moment.
    Submitted {
        /// What it would do now; token blanked.
        draft: Box<Plan>,
        /// The wish, from which the plan is made.
        request: Box<MoveRequest>,
        /// How it is to be treated.
        policy: Box<Policy>,
        /// The job that it is a run of: one that recurs, or one that failed.
        #[serde(default)]
        parent: Option<JobId>,
    },
    /// A run of a recurring job was submitted.
    RunBegun {
        /// The run, a job of its own.
        run: JobId,
        /// The turn of the schedule that it is for.
        turn: Timestamp,
    },
    /// Turns of the schedule were missed, and no run is made for them.
    RunsSkipped {
        /// The newest of them.
        turn: Timestamp,
        /// How many.
        missed: u32,
    },
    /// A run of a recurring job is over.
    RunEnded {
        /// The run.
        run: JobId,
        /// How it ended.
        state: JobState,
        /// Why it failed.
        failure: Option<FailureReport>,
        /// Whether there is another turn.
        more: bool,
    },
    /// What may be changed of a job was changed.
    Edited {
        /// How it is to be treated from now on.
        policy: Box<Policy>,
    },
    /// It is to send no faster than this from now on, in this attempt and those to come.
    Limited {
        /// None for as fast as it can.
        bandwidth: Option<Bandwidth>,
    },
    /// A replication is to be over for good: what these hosts keep of it goes first.
    Finalizing {
        /// Which.
        hosts: Vec<HostId>,
    },
    /// The coordinator has decided on a plan. Carries it without its token.
    Planned {
        /// The plan, token blanked.
        plan: Box<Plan>,
    },
    /// An agent has journalled the plan and will carry it out.
    Accepted {
        /// The plan, token blanked: a coordinator that lost everything rebuilds from here.
        plan: Box<Plan>,
    },
    /// A step began.
    StepStarted {
        /// Which.
        step: StepKind,
    },
    /// A step ended well.
    StepFinished {
        /// Which.
        step: StepKind,
        /// What it did.
        figures: StepFigures,
    },
    /// A step failed; the job unwinds.
    StepFailed {
        /// Which.
        step: StepKind,
        /// Why.
        failure: FailureReport,
    },
    /// Something a watcher should know that changes no state: a stall, a resumed lane, a throttle.
    Notice {
        /// In one sentence.
        text: String,
    },
    /// The guest is slowed down so that the job gets there, or is no longer.
    Throttled {
        /// Whether its writes are held back from here on.
        held_back: bool,
        /// In one sentence.
        text: String,
    },
    /// Every disk was read through, by the agent that has them; the check goes on from there.
    DisksRead {
        /// What could not be read, and the like.
        findings: Vec<Finding>,
        /// What was read.
        figures: StepFigures,
    },
    /// A check has come to this; whether it was passed, the event that ends the job tells.
    Checked {
        /// All that was found. Its plan is left out, since the job has it.
        report: Box<CheckReport>,
    },
    /// A cancel was asked for and will be carried out.
    CancelAccepted,
    /// A cancel was asked for and cannot be honoured.
    CancelRefused {
        /// Why not.
        reason: String,
    },
    /// The right to run the VM changed at this host.
    Ownership {
        /// The VM.
        vm: VmId,
        /// The generation of the record.
        generation: Generation,
        /// The record's name, such as `owner` or `ceding`.
        record: String,
    },
    /// The job has stopped where it was, with nothing under way at either host; it can go on.
    Suspended {
        /// What it had done since it last began.
        figures: StepFigures,
    },
    /// A job that had not begun, was suspended, or was held, is to begin or go on as soon as its hosts have a slot.
    Resumed,
    /// A job that no agent has in hand is held for whoever looks into it.
    Held,
    /// The target cannot take the VM as it was planned; nothing is under way, and an operator may say what to do.
    Asked {
        /// Why not.
        failure: FailureReport,
        /// What the job had done since it last began.
        figures: StepFigures,
    },
    /// An operator has answered.
    Answered {
        /// The wish as it is now.
        request: Box<MoveRequest>,
        /// What was answered, in words.
        text: String,
    },
    /// The guest stands still and waits for the handover to be resolved.
    Unresolved {
        /// What is missing, and what an operator can do.
        reason: String,
    },
    /// The job is over and did what it should.
    Completed {
        /// How long the guest did not execute, in microseconds, as the agents measured it.
        blackout_us: u64,
    },
    /// The job is over because it was cancelled; the VM is as it was.
    Terminated,
    /// The job is over because it was killed; what it put up is taken away afterwards.
    Killed,
    /// The job is over because of a failure; the VM is as it was unless the report says otherwise.
    Failed {
        /// Why.
        failure: FailureReport,
    },
}

impl EventBody {
    /// Whether this is a host's agent's to tell. The rest is decided by coordinators, and a host that says it speaks for them;
    /// what agents tell, coordinators may tell too, of jobs that no agent has in hand.
    #[must_use]
    pub const fn is_of_agents(&self) -> bool {
        match self {
            Self::Accepted { .. }
            | Self::StepStarted { .. }
            | Self::StepFinished { .. }
            | Self::StepFailed { .. }
            | Self::Notice { .. }
            | Self::Throttled { .. }
            | Self::DisksRead { .. }
            | Self::CancelAccepted
            | Self::CancelRefused { .. }
            | Self::Ownership { .. }
            | Self::Suspended { .. }
            | Self::Asked { .. }
            | Self::Unresolved { .. }
            | Self::Completed { .. }
            | Self::Terminated
            | Self::Killed
            | Self::Failed { .. } => true,
            Self::Submitted { .. }
            | Self::RunBegun { .. }
            | Self::RunsSkipped { .. }
            | Self::RunEnded { .. }
            | Self::Edited { .. }
            | Self::Limited { .. }
            | Self::Finalizing { .. }
            | Self::Planned { .. }
            | Self::Checked { .. }
            | Self::Resumed
            | Self::Held
            | Self::Answered { .. } => false,
        }
    }
}
