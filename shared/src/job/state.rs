//! The states of a job, with the numbers of `Msvm_MigrationJob.JobState`, and the one table of their changes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a job. Names and numbers are CIM's (`Msvm_MigrationJob`, `CIM_ConcreteJob` 2.22); the names are spelt
/// in lower case with `_`, like all words of Sterna's, wherever they are shown: `running`, `query_pending`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum JobState {
    /// Planned; no agent has it yet.
    New = 2,
    /// An agent has journalled it.
    Starting = 3,
    /// A step is under way.
    Running = 4,
    /// Stopped on request, can go on.
    Suspended = 5,
    /// Cancelled or failed; unwinding.
    ShuttingDown = 6,
    /// Over, and did what it should.
    Completed = 7,
    /// Over, because it was cancelled in good order.
    Terminated = 8,
    /// Over, because it was ended at once; something may be left to clean.
    Killed = 9,
    /// Over, because of a failure.
    Exception = 10,
    /// Held by the vendor's service.
    Service = 11,
    /// Waits for a word from the operator.
    QueryPending = 12,
}

/// What moves a job from state to state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateInput {
    /// An agent journalled the plan.
    Accepted,
    /// A step began, ended, or told something: the job is under way.
    Progressed,
    /// A cancel was accepted, or a step failed: the job unwinds.
    Unwinding,
    /// An operator's word is needed: nobody may run the VM until the handover is resolved, or the target cannot take it as
    /// it was planned.
    Asked,
    /// It is stopped, and can go on where it was.
    Suspended,
    /// It is to begin, or to go on.
    Resumed,
    /// It is held for whoever looks into it.
    Held,
    /// A run of it is over, and another will come.
    Rested,
    /// It did what it should.
    Completed,
    /// It was cancelled.
    Terminated,
    /// It was ended at once.
    Killed,
    /// It failed.
    Failed,
}

/// An input that is not legal in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} cannot take {input:?}")]
pub struct IllegalTransition {
    /// The state.
    pub from: JobState,
    /// The input.
    pub input: StateInput,
}

impl JobState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::New,
        Self::Starting,
        Self::Running,
        Self::Suspended,
        Self::ShuttingDown,
        Self::Completed,
        Self::Terminated,
        Self::Killed,
        Self::Exception,
        Self::Service,
        Self::QueryPending,
    ];

    /// CIM's number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Whether the job is over: no event changes it any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Terminated | Self::Killed | Self::Exception)
    }

    /// The state after an input: the whole table.
    ///
    /// # Errors
    /// [`IllegalTransition`] where the input has no meaning in the state. Events of two hosts may cross, so an input that
    /// only repeats what is known (`Accepted` by the second agent while running) is legal and changes nothing.
    pub const fn next(self, input: StateInput) -> Result<Self, IllegalTransition> {
        use StateInput as I;
        Ok(match (self, input) {
            (Self::Completed | Self::Terminated | Self::Killed | Self::Exception, _) => {
                return Err(IllegalTransition { from: self, input });
            }
            // Whatever it was in: it is over.
            (_, I::Terminated) => Self::Terminated,
            (_, I::Killed) => Self::Killed,
            (_, I::Failed) => Self::Exception,
            // Also one that unwinds: a cancel that came too late loses against the completed move. And a recurring one that
            // waits, or was told to, when its last turn is over.
            (_, I::Completed) => Self::Completed,

            (Self::New, I::Accepted) => Self::Starting,
            (Self::Starting | Self::Running | Self::ShuttingDown | Self::QueryPending, I::Accepted) => self,
            // A resolved handover goes on where it was; a job that unwinds may still tell of its steps.
            (Self::New | Self::Starting | Self::Running | Self::QueryPending, I::Progressed) => Self::Running,
            (Self::ShuttingDown, I::Progressed) => Self::ShuttingDown,
            (Self::New | Self::Starting | Self::Running | Self::QueryPending | Self::ShuttingDown, I::Unwinding) => {
                Self::ShuttingDown
            }
            (Self::Starting | Self::Running | Self::ShuttingDown | Self::QueryPending, I::Asked) => Self::QueryPending,

            // Also one whose step failed just before the word came: its agents have put it away so that it can go on.
            (
                Self::New
                | Self::Starting
                | Self::Running
                | Self::Suspended
                | Self::ShuttingDown
                | Self::Service
                | Self::QueryPending,
                I::Suspended,
            ) => Self::Suspended,
            (Self::New | Self::Suspended | Self::Service | Self::QueryPending, I::Resumed) => Self::Starting,
            (
                Self::New | Self::Starting | Self::Running | Self::Suspended | Self::Service | Self::QueryPending,
                I::Held,
            ) => Self::Service,
            // Its next run has never been started.
            (Self::New | Self::Starting | Self::Running, I::Rested) => Self::New,
            (Self::Suspended | Self::Service, I::Rested | I::Progressed) => self,
            (from, input) => return Err(IllegalTransition { from, input }),
        })
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::New => "new",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::ShuttingDown => "shutting_down",
            Self::Completed => "completed",
            Self::Terminated => "terminated",
            Self::Killed => "killed",
            Self::Exception => "exception",
            Self::Service => "service",
            Self::QueryPending => "query_pending",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUTS: [StateInput; 12] = [
        StateInput::Accepted,
        StateInput::Progressed,
        StateInput::Unwinding,
        StateInput::Asked,
        StateInput::Suspended,
        StateInput::Resumed,
        StateInput::Held,
        StateInput::Rested,
        StateInput::Completed,
        StateInput::Terminated,
        StateInput::Killed,
        StateInput::Failed,
    ];

    #[test]
    fn final_states_are_final() {
        for state in JobState::ALL.into_iter().filter(|state| state.is_final()) {
            for input in INPUTS {
                assert_eq!(state.next(input), Err(IllegalTransition { from: state, input }));
            }
        }
    }

    #[test]
    fn every_live_state_can_end_badly() {
        for state in JobState::ALL.into_iter().filter(|state| !state.is_final()) {
            assert_eq!(state.next(StateInput::Failed), Ok(JobState::Exception));
            assert_eq!(state.next(StateInput::Terminated), Ok(JobState::Terminated));
            assert_eq!(state.next(StateInput::Killed), Ok(JobState::Killed));
        }
    }

    #[test]
    fn people_and_programs_read_one_spelling() {
        for state in JobState::ALL {
            assert_eq!(serde_json::to_value(state).expect("JSON"), state.to_string());
        }
    }

    #[test]
    fn numbers_are_those_of_cim() {
        let numbers: Vec<u16> = JobState::ALL.into_iter().map(JobState::number).collect();
        assert_eq!(numbers, (2..=12).collect::<Vec<_>>());
    }
}
