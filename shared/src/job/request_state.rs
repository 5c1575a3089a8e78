//! What a client may ask of a job's state, and what becomes of it: `RequestStateChange` of `Msvm_MigrationJob` as one table.
//!
//! Numbers and names are those of the published method. Of its two families of return codes the generic one of CIM is used;
//! [`ReturnCode::hyper_v`] gives the other.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{JobState, JobStatus};

/// A state that a client may ask for (`RequestStateChange.RequestedState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum RequestedState {
    /// Run, or run on.
    Start = 2,
    /// Stop so that it can go on.
    Suspend = 3,
    /// End in good order.
    Terminate = 4,
    /// End at once; what is left is cleaned up afterwards.
    Kill = 5,
    /// Hold it for whoever looks into it.
    Service = 6,
}

/// What `RequestStateChange` and `KillJob` return, in CIM's generic family (`CIM_ConcreteJob`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum ReturnCode {
    /// Done; the job is in the state asked for.
    Completed = 0,
    /// The method is not supported.
    NotSupported = 1,
    /// It is not known what became of it.
    Unknown = 2,
    /// The state was not reached in the time given; the change goes on.
    Timeout = 3,
    /// It failed.
    Failed = 4,
    /// No such state can be asked for.
    InvalidParameter = 5,
    /// Something else holds the job.
    InUse = 6,
    /// The change is under way.
    Started = 4096,
    /// The job cannot go from its state to that one.
    InvalidTransition = 4097,
    /// A time limit cannot be kept.
    TimeoutUnsupported = 4098,
    /// The job has too much in hand.
    Busy = 4099,
}

/// What a request for a state comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What the method returns.
    pub code: ReturnCode,
    /// The state that the job is in, or will be in when the change is made; none where there is no change.
    pub goal: Option<JobState>,
}

/// In whose hands a job is, which decides who carries a change out, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hands {
    /// No agent has anything to do for it: the coordinator changes its state at once.
    Coordinator,
    /// Agents have it, and can still put everything back.
    Agents,
    /// The right to run the VM is on its way: it can only go on.
    Ceded,
}

impl RequestedState {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Start, Self::Suspend, Self::Terminate, Self::Kill, Self::Service];

    /// CIM's number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The state with that number; none for numbers that CIM or a vendor has reserved.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }

    /// The state that a job is in when the change is made.
    #[must_use]
    pub const fn state(self) -> JobState {
        match self {
            Self::Start => JobState::Running,
            Self::Suspend => JobState::Suspended,
            Self::Terminate => JobState::Terminated,
            Self::Kill => JobState::Killed,
            Self::Service => JobState::Service,
        }
    }
}

impl ReturnCode {
    /// CIM's number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The same in the numbers that Hyper-V's own methods return.
    #[must_use]
    pub const fn hyper_v(self) -> u16 {
        match self {
            Self::Completed => 0,
            Self::Started => 4096,
            Self::NotSupported | Self::TimeoutUnsupported => 32770,
            Self::Unknown => 32771,
            Self::Timeout => 32772,
            Self::InvalidParameter => 32773,
            Self::InUse | Self::Busy => 32774,
            Self::InvalidTransition => 32775,
            Self::Failed => 32768,
        }
    }
}

/// The whole table.
#[must_use]
pub const fn verdict(state: JobState, hands: Hands, requested: RequestedState) -> Verdict {
    use JobState as J;
    use RequestedState as R;
    const REFUSED: Verdict = Verdict { code: ReturnCode::InvalidTransition, goal: None };
    const fn at_once(goal: JobState) -> Verdict {
        Verdict { code: ReturnCode::Completed, goal: Some(goal) }
    }
    const fn begun(goal: JobState) -> Verdict {
        Verdict { code: ReturnCode::Started, goal: Some(goal) }
    }
    match (state, hands, requested) {
        // It is over, and can only be done again as a new job.
        (J::Completed | J::Terminated | J::Killed | J::Exception, ..) => REFUSED,

        // What is so already is so.
        (J::Starting | J::Running, _, R::Start) => at_once(state),
        (J::Suspended, _, R::Suspend) | (J::Service, _, R::Service) => at_once(state),

        // Nobody may call back the right to run the VM.
        (_, Hands::Ceded, _) => REFUSED,

        // It waits for its turn, or for a word, with nothing under way anywhere.
        (J::New | J::Suspended | J::Service, Hands::Coordinator, R::Start) => begun(J::Running),
        // A question is answered, and not run over.
        (J::QueryPending, _, R::Start) => REFUSED,
        (
            J::New | J::Starting | J::Running | J::Suspended | J::Service | J::QueryPending,
            Hands::Coordinator,
            R::Suspend | R::Terminate | R::Kill | R::Service,
        ) => at_once(requested.state()),

        // Agents have it.
        (J::New | J::Suspended | J::Service, Hands::Agents, R::Start) => at_once(state),
        (J::New | J::Starting | J::Running, Hands::Agents, R::Suspend) => begun(J::Suspended),
        (J::New | J::Starting | J::Running | J::ShuttingDown, Hands::Agents, R::Terminate) => begun(J::Terminated),
        (J::New | J::Starting | J::Running | J::ShuttingDown, Hands::Agents, R::Kill) => begun(J::Killed),
        // A job under way is suspended first.
        (J::New | J::Starting | J::Running, Hands::Agents, R::Service) => REFUSED,

        // It unwinds, and ends soon.
        (J::ShuttingDown, Hands::Agents, R::Start | R::Suspend | R::Service) => REFUSED,
        // None of these states is ever in those hands.
        (J::ShuttingDown, Hands::Coordinator, _) => REFUSED,
        (J::Suspended | J::Service | J::QueryPending, Hands::Agents, _) => REFUSED,
    }
}

/// The states and hands that a job can be in: the rows of the table.
pub const STANDINGS: [(JobState, Hands); 16] = [
    (JobState::New, Hands::Coordinator),
    (JobState::New, Hands::Agents),
    (JobState::Starting, Hands::Coordinator),
    (JobState::Starting, Hands::Agents),
    (JobState::Running, Hands::Agents),
    (JobState::Running, Hands::Ceded),
    (JobState::Suspended, Hands::Coordinator),
    (JobState::ShuttingDown, Hands::Agents),
    (JobState::Completed, Hands::Coordinator),
    (JobState::Terminated, Hands::Coordinator),
    (JobState::Killed, Hands::Coordinator),
    (JobState::Exception, Hands::Coordinator),
    (JobState::Service, Hands::Coordinator),
    (JobState::QueryPending, Hands::Coordinator),
    (JobState::QueryPending, Hands::Ceded),
    (JobState::Running, Hands::Coordinator),
];

impl JobStatus {
    /// What becomes of a request for a state now.
    #[must_use]
    pub fn requested(&self, requested: RequestedState) -> Verdict {
        verdict(self.state, self.hands(), requested)
    }
}

impl fmt::Display for RequestedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Suspend => "suspend",
            Self::Terminate => "terminate",
            Self::Kill => "kill",
            Self::Service => "service",
        })
    }
}

impl std::str::FromStr for RequestedState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|state| state.to_string() == text);
        named.or_else(|| text.parse().ok().and_then(Self::from_number)).ok_or_else(|| {
            let known = Self::ALL.map(|state| format!("{state} ({})", state.number()));
            format!("no state {text} can be asked for; give one of: {}", known.join(", "))
        })
    }
}

impl fmt::Display for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Coordinator => "coordinator",
            Self::Agents => "agents",
            Self::Ceded => "agents, after the cede",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The table as docs/job-model.md has it.
    fn printed() -> String {
        let mut text = String::from("| state | in the hands of |");
        for requested in RequestedState::ALL {
            let _ = write!(text, " {requested} ({}) |", requested.number());
        }
        text.push_str("\n| --- | --- | --- | --- | --- | --- | --- |\n");
        for (state, hands) in STANDINGS {
            let _ = write!(text, "| {state} | {hands} |");
            for requested in RequestedState::ALL {
                let Verdict { code, goal } = verdict(state, hands, requested);
                let goal = goal.map_or_else(String::new, |goal| format!(" → {goal}"));
                let _ = write!(text, " {}{goal} |", code.number());
            }
            text.push('\n');
        }
        text
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let table = printed();
        println!("{table}");
        let document = include_str!("../../../docs/job-model.md");
        assert!(document.contains(&table), "docs/job-model.md must have this table:\n\n{table}");
    }

    #[test]
    fn what_is_refused_has_no_goal_and_what_is_not_has_one() {
        for state in JobState::ALL {
            for hands in [Hands::Coordinator, Hands::Agents, Hands::Ceded] {
                for requested in RequestedState::ALL {
                    let Verdict { code, goal } = verdict(state, hands, requested);
                    assert_eq!(goal.is_none(), code == ReturnCode::InvalidTransition, "{state} {hands} {requested}");
                    if code == ReturnCode::Completed && goal != Some(state) {
                        assert_eq!(hands, Hands::Coordinator, "only the coordinator changes a state at once");
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_calls_back_what_was_ceded_and_nothing_wakes_what_is_over() {
        for requested in [RequestedState::Suspend, RequestedState::Terminate, RequestedState::Kill] {
            for state in [JobState::Running, JobState::QueryPending, JobState::ShuttingDown] {
                assert_eq!(verdict(state, Hands::Ceded, requested).code, ReturnCode::InvalidTransition);
            }
        }
        for state in JobState::ALL.into_iter().filter(|state| state.is_final()) {
            for requested in RequestedState::ALL {
                assert_eq!(verdict(state, Hands::Coordinator, requested).code, ReturnCode::InvalidTransition);
            }
        }
    }

    #[test]
    fn numbers_are_those_of_cim() {
        assert_eq!(RequestedState::ALL.map(RequestedState::number), [2, 3, 4, 5, 6]);
        assert_eq!(RequestedState::from_number(7), None, "7 to 32767 are reserved");
        assert_eq!("suspend".parse(), Ok(RequestedState::Suspend));
        assert_eq!("3".parse(), Ok(RequestedState::Suspend));
        assert!("pause".parse::<RequestedState>().expect_err("no such state").contains("suspend (3)"));
    }
}
