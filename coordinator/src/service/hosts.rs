//! Hosts as operators see and set them.

use sterna_shared::bus::{AgentRequest, ApiError, ApiErrorKind, ApiReply, HostView};
use sterna_shared::host::{Inventory, LimitsChange};
use sterna_shared::id::HostId;

use super::request::{AGENT_WAIT_MAX, Outcome, reachable};
use super::state::{Action, Now, State};
use crate::api::fault;
use crate::fleet::Member;
use crate::planner;

impl State {
    /// Hosts with the moves that they have in hand.
    pub(super) fn host_views<'a>(&self, members: impl IntoIterator<Item = &'a Member>) -> Vec<HostView> {
        // Few of the jobs are, and many hosts may be asked about at once.
        let active: Vec<_> = self.jobs.values().map(|job| &job.status).filter(|status| status.is_active()).collect();
        let view = |member: &Member| {
            let moves = planner::in_hand(&member.inventory.host, active.iter().copied());
            HostView { moves, ..member.view() }
        };
        members.into_iter().map(view).collect()
    }

    /// Has a host take on more or less at once. What is in hand there goes on, whatever is set.
    pub(super) fn set_host(&self, host: &HostId, change: LimitsChange, reset: bool) -> Result<Outcome, ApiError> {
        let member = self.member(host)?;
        if change.is_empty() && !reset {
            let hint = "give a setting and its value, or reset what was set: `sterna host set --help`";
            return Err(fault(ApiErrorKind::Invalid, format!("nothing is to be set at {host}"), hint));
        }
        let faults = change.faults();
        if !faults.is_empty() {
            let message = format!("{host} cannot be set like that");
            return Err(ApiError { kind: ApiErrorKind::Invalid, message, hints: faults, refusals: vec![] });
        }
        let request = AgentRequest::HostSet { change, reset };
        Ok(Outcome::Forward { host: reachable(member)?, request, wait: AGENT_WAIT_MAX })
    }

    /// What was set holds from the answer on, and not only from the next heartbeat: a job that waits may begin by it.
    pub(super) fn host_was_set(&mut self, inventory: Inventory, now: Now, out: &mut Vec<Action>) -> ApiReply {
        let host = inventory.host.clone();
        self.heard(inventory, now, out);
        self.tend_queue(now, out);
        ApiReply::Hosts { hosts: self.host_views(self.fleet.host(&host)) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sterna_shared::bus::{AgentReply, ApiRequest};
    use sterna_shared::id::Epoch;

    use super::super::state::Event;
    use super::*;
    use crate::fleet::Fleet;
    use crate::planner::example;

    fn leader() -> State {
        let mut fleet = Fleet::default();
        fleet.heard(example::inventory("alpha"), example::now(), Duration::ZERO);
        let mut state = State::new("main".parse().expect("a name"), Epoch(1), String::new(), fleet, None);
        state.apply(Event::Replayed, now());
        state
    }

    fn now() -> Now {
        Now { at: example::now(), clock: Duration::ZERO }
    }

    fn set(state: &mut State, change: LimitsChange, reset: bool) -> Vec<Action> {
        let request = ApiRequest::HostSet { host: "alpha".parse().expect("a name"), change, reset };
        state.apply(Event::Asked { call: 1, request: Box::new(request), token: example::seeds().token }, now())
    }

    fn error(actions: &[Action]) -> &ApiError {
        match actions {
            [Action::Answer { reply, .. }] => match &**reply {
                ApiReply::Error { error } => error,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_setting_goes_to_its_host_and_holds_with_the_answer() {
        let mut state = leader();
        let change = LimitsChange { inbound_moves_max: Some(1), ..LimitsChange::default() };
        let forwarded = set(&mut state, change, false);
        let [Action::Forward { call: 1, host, request, .. }] = &forwarded[..] else { panic!("{forwarded:?}") };
        assert_eq!(**request, AgentRequest::HostSet { change, reset: false });
        let mut inventory = example::inventory("alpha");
        (inventory.limits, inventory.limits_set) = (inventory.limits.with(change), change);
        let reply = Ok(AgentReply::Inventory { inventory: Box::new(inventory.clone()) });
        let answered = state.apply(Event::Answered { call: 1, host: host.clone(), reply }, now());
        assert_eq!(state.fleet.host(host).expect("known").inventory, inventory);
        let answer = answered.iter().find_map(|action| match action {
            Action::Answer { call: 1, reply } => Some(&**reply),
            _ => None,
        });
        assert!(
            matches!(answer, Some(ApiReply::Hosts { hosts }) if hosts.len() == 1 && hosts[0].inventory == inventory),
            "{answer:?}"
        );
    }

    #[test]
    fn what_makes_no_sense_does_not_reach_the_host() {
        let mut state = leader();
        let nothing = set(&mut state, LimitsChange::default(), false);
        assert_eq!(error(&nothing).kind, ApiErrorKind::Invalid);
        let lanes = set(&mut state, LimitsChange { lanes_max: Some(0), ..LimitsChange::default() }, true);
        assert_eq!(error(&lanes).kind, ApiErrorKind::Invalid);
        assert!(error(&lanes).hints[0].starts_with("lanes_max is 0; give 1 to "), "{lanes:?}");
        let reset = set(&mut state, LimitsChange::default(), true);
        assert!(matches!(&reset[..], [Action::Forward { .. }]), "{reset:?}");
    }
}
