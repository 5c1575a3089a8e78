//! Failovers: what must be true before a host runs a VM from its replica because the VM's own host is gone.
//!
//! That the host is gone is an operator's word, as in a handover that is not resolved ([`super::resolve`]). What the fleet knows
//! better is refused: a host that is heard of, a VM that is elsewhere, a handover that is not settled. When the host comes back it
//! is told that its VM is another's ([`State::supersede`]).

use sterna_shared::bus::{AgentRequest, ApiError, ApiErrorKind};
use sterna_shared::id::{Generation, HostId, VmId};
use sterna_shared::job::Refusal;
use sterna_shared::replica::Replica;

use super::request::{AGENT_WORK_WAIT_MAX, Outcome, reachable};
use super::state::State;
use crate::api::{fault, refused};
use crate::fleet::Member;
use crate::planner;

/// How far above the last generation that was heard of a VM is taken over: its host may have come to later ones unheard, by two a
/// move. Far below what an agent follows ([`sterna_shared::ownership::GENERATION_JUMP_MAX`]).
const GENERATIONS_ABOVE: u64 = 1 << 16;

impl State {
    /// Has `target` run a VM from a snapshot of its replica, if nothing speaks against it.
    ///
    /// # Errors
    /// What does.
    pub(super) fn fail_over(
        &self,
        vm: &str,
        fenced: &HostId,
        target: &HostId,
        snapshot: u32,
    ) -> Result<Outcome, ApiError> {
        let member = self.member(target)?;
        let id: Option<VmId> = vm.parse().ok();
        let is_meant = |replica: &&Replica| replica.vm.name.as_str() == vm || Some(replica.vm.id) == id;
        let Some(replica) = member.inventory.replicas.iter().find(is_meant) else {
            let message = format!("host {target} has no replica of a VM {vm:?}");
            return Err(fault(ApiErrorKind::NotFound, message, "see `sterna replicate list`"));
        };
        let generation = self.given_up(replica.vm.id, fenced)?;
        let host = reachable(member)?;
        let refusals = planner::replica_cannot_run(&self.fleet, member, replica, snapshot);
        if !refusals.is_empty() {
            let again = |refusal: Refusal| {
                let remedy = format!("mend that at {target}, then give the command again");
                Refusal { remedy, ..refusal }
            };
            let message = format!("VM {vm} cannot run at {target}");
            return Err(refused(message, refusals.into_iter().map(again).collect()));
        }
        let above = Generation(generation.0.saturating_add(GENERATIONS_ABOVE));
        let request = AgentRequest::VmTakeOver { vm: replica.vm.id, snapshot, above };
        Ok(Outcome::Forward { host, request, wait: AGENT_WORK_WAIT_MAX })
    }

    /// The generation as which a VM was its host's, which is gone.
    fn given_up(&self, vm: VmId, fenced: &HostId) -> Result<Generation, ApiError> {
        let no = |message: String, hint: String| Err(fault(ApiErrorKind::Refused, message, hint));
        let Some((owner, report)) = self.fleet.vm(vm) else {
            let message = format!("no host reports the VM, and so it is not known as what {fenced} had it");
            return no(message, "make a clone of the replica: `sterna clone create`".into());
        };
        let (host, name) = (&owner.inventory.host, &report.spec.name);
        if !report.owned {
            let message = format!("a handover of VM {name} is not resolved: no host owns it");
            return no(message, format!("resolve it first: `sterna vm resolve {name} --fenced HOST`"));
        }
        if host != fenced {
            let message = format!("{host} owns VM {name}, and not {fenced}");
            return no(message, format!("see `sterna vm show {name}`"));
        }
        let knows = |member: &Member| member.inventory.host != *fenced;
        let mut others = self.fleet.records(vm).filter(|(member, _)| knows(member));
        if let Some((member, _)) = others.find(|(_, other)| other.generation > report.generation) {
            let other = &member.inventory.host;
            let message = format!("{other} knows of a later generation of VM {name} than {fenced} had");
            return no(message, format!("bring {other} and {fenced} together: the handover then resolves by itself"));
        }
        if owner.online {
            let message = format!("{fenced} is not gone: it was heard of at {}", owner.heard_at);
            return no(message, format!("stop the VM there, or move it: `sterna migrate {name} --to HOST`"));
        }
        let moves = |plan: &sterna_shared::job::Plan| plan.moves() && plan.vm.id == vm;
        let mut jobs = self.jobs.values().map(|job| &job.status);
        if let Some(job) = jobs.find(|job| job.has_begun() && !job.state.is_final() && moves(&job.plan)) {
            let message = format!("job {} moves VM {name}, and whose it is then is not known", job.job);
            return no(message, format!("end it first: `sterna job show {}`", job.job));
        }
        Ok(report.generation)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sterna_shared::bus::{ApiReply, ApiRequest};
    use sterna_shared::id::{Epoch, Token};

    use super::super::state::{Action, Event, Now};
    use super::*;
    use crate::planner::example;

    /// `alpha` owns VM `web` as generation 3, and `beta` has a replica of it; both were heard of at 0 s.
    struct World {
        state: State,
        clock: u64,
    }

    impl World {
        fn new() -> Self {
            let host = "one".parse().expect("a name");
            let state = State::new(host, Epoch(1), "2.11".into(), crate::fleet::Fleet::default(), None);
            let mut world = Self { state, clock: 0 };
            world.apply(Event::Replayed);
            world.hear("alpha", Some((3, true)));
            world
        }

        /// A host is heard of, with the VM in that generation or without it; `beta` has the replica.
        fn hear(&mut self, name: &str, has: Option<(u64, bool)>) -> Vec<Action> {
            let mut inventory = example::inventory(name);
            inventory.vms.extend(has.map(|(generation, owned)| {
                let mut report = example::report(&example::vm("web"));
                (report.generation, report.owned) = (Generation(generation), owned);
                report
            }));
            inventory.replicas.extend((name == "beta").then(example::replica));
            self.apply(Event::Heartbeat(Box::new(inventory)))
        }

        fn apply(&mut self, event: Event) -> Vec<Action> {
            let now = Now { at: example::now(), clock: Duration::from_secs(self.clock) };
            self.state.apply(event, now)
        }

        /// A minute passes in which only `beta` is heard of.
        fn alpha_falls_silent(&mut self) {
            for _ in 0..60 {
                self.clock += 1;
                self.hear("beta", None);
                self.apply(Event::Tick);
            }
        }

        /// Who is asked, for a generation above which one; or why nobody is.
        fn fail_over(&mut self, snapshot: u32) -> Result<(String, u64), String> {
            let (fenced, target) = ("alpha".parse().expect("a name"), "beta".parse().expect("a name"));
            let request = Box::new(ApiRequest::VmFailover { vm: "web".into(), fenced, target, snapshot });
            match self.apply(Event::Asked { call: 7, request, token: Token::from_bytes([0; 32]) }).pop() {
                Some(Action::Forward { call: 7, host, request, .. }) => match *request {
                    AgentRequest::VmTakeOver { snapshot: asked, above, .. } => {
                        assert_eq!(asked, snapshot);
                        Ok((host.to_string(), above.0))
                    }
                    other => panic!("{other:?}"),
                },
                Some(Action::Answer { reply, .. }) => match *reply {
                    ApiReply::Error { error } => Err(format!("{} {:?}", error.message, error.refusals)),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_vm_is_taken_over_well_above_what_its_host_was_heard_to_be_at() {
        let mut world = World::new();
        world.alpha_falls_silent();
        assert_eq!(world.fail_over(2), Ok(("beta".into(), 3 + GENERATIONS_ABOVE)));
    }

    #[test]
    fn what_the_fleet_knows_better_is_refused() {
        let mut world = World::new();
        world.hear("beta", None);
        assert!(world.fail_over(2).is_err_and(|why| why.contains("alpha is not gone")));
        world.alpha_falls_silent();
        assert!(world.fail_over(9).is_err_and(|why| why.contains("no snapshot 9")));
        world.hear("beta", Some((70_000, true)));
        assert!(world.fail_over(2).is_err_and(|why| why.contains("beta owns VM web")));
        world.hear("beta", Some((4, false)));
        assert!(world.fail_over(2).is_err_and(|why| why.contains("a later generation")));

        let mut world = World::new();
        world.hear("alpha", Some((4, false)));
        world.alpha_falls_silent();
        assert!(world.fail_over(2).is_err_and(|why| why.contains("not resolved")));
    }

    #[test]
    fn the_old_host_is_told_when_it_comes_back() {
        let mut world = World::new();
        world.alpha_falls_silent();
        world.hear("beta", Some((3 + GENERATIONS_ABOVE + 1, true)));
        let told = world.hear("alpha", Some((5, true)));
        let superseded = |action: &Action| {
            matches!(action, Action::Forward { host, request, .. } if host.as_str() == "alpha"
                && matches!(**request, AgentRequest::VmSuperseded { generation, .. } if generation.0 == 4 + GENERATIONS_ABOVE))
        };
        assert!(told.iter().any(superseded), "{told:?}");
    }
}
