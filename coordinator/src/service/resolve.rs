//! Handovers that are not resolved: what must be true before a host counts as fenced, and the fence command.
//!
//! A host is declared fenced by an operator (`sterna vm resolve`) or by the configured command; both ways lead through
//! [`State::resolvable`], and then to the agent that has ceded the VM, which alone takes it back.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_shared::bus::{AgentReply, AgentRequest, ApiError, ApiErrorKind};
use sterna_shared::host::VmReport;
use sterna_shared::id::{Generation, HostId, JobId, VmId};
use sterna_shared::job::EventBody;

use super::request::{AGENT_WAIT_MAX, AGENT_WORK_WAIT_MAX, reachable};
use super::state::{Action, CALL_NONE, Message, Now, State};
use crate::api::fault;
use crate::fleet::Member;

/// How often a fence command that came to nothing is told of in the job.
const TELL_INTERVAL: Duration = Duration::from_secs(600);

impl State {
    /// The host that can take the VM back if `fenced` never runs it again.
    ///
    /// # Errors
    /// Why the fleet knows better: another host has the VM, or has had it since.
    pub(super) fn resolvable(&self, vm: VmId, fenced: &HostId) -> Result<HostId, ApiError> {
        let refused = |message: String, hint: &str| Err(fault(ApiErrorKind::Refused, message, hint));
        let unresolved = self
            .jobs
            .values()
            .map(|job| &job.status)
            .find(|status| status.plan.vm.id == vm && status.plan.target.id == *fenced && status.is_unresolved());
        let others = self.fleet.records(vm).filter(|(member, _)| member.inventory.host != *fenced);
        // Where the job is not known, its agent will know better than to take back what it has not ceded.
        let likely = |member: &Member, report: &VmReport| {
            let is_source = unresolved.is_some_and(|status| status.plan.source.id == member.inventory.host);
            (is_source, member.online, report.generation)
        };
        let Some((taker, ceded)) = others.max_by_key(|(member, report)| likely(member, report)) else {
            let message = format!("no other host than {fenced} has a record of the VM");
            return Err(fault(ApiErrorKind::NotFound, message, "see `sterna vm list` and `sterna host list`"));
        };
        let name = &ceded.spec.name;
        if ceded.owned {
            let message = format!("{} owns VM {name}: no handover of it is unresolved", taker.inventory.host);
            return refused(message, "see `sterna vm show`; there is nothing to resolve");
        }
        let newer = self.fleet.records(vm).find(|(member, report)| {
            member.inventory.host != taker.inventory.host
                && (report.generation > ceded.generation || (report.owned && report.generation >= ceded.generation))
        });
        if let Some((member, report)) = newer {
            let (host, said) = (&member.inventory.host, if report.owned { "is its owner" } else { "knows of it" });
            let message = format!(
                "{} offered VM {name} as generation {}, and {host} said at {} that it {said} in generation {}: what the \
                 guest wrote there would be lost",
                taker.inventory.host, ceded.generation, member.heard_at, report.generation
            );
            return refused(message, "bring that host back: the handover then resolves by itself");
        }
        reachable(taker)
    }

    /// Tells a host that is heard of which of its VMs were taken back from it, or over, meanwhile. Only the word of a host that is there
    /// counts, and only of one that owns the VM in a later generation: such a one is run by nobody else, by the table.
    pub(super) fn supersede(&self, host: &HostId, out: &mut Vec<Action>) {
        let Some(back) = self.fleet.host(host) else { return };
        let owned = |member: &'_ Member| -> Vec<(VmId, Generation)> {
            let owned = member.inventory.vms.iter().filter(|report| report.owned);
            owned.map(|report| (report.id(), report.generation)).collect()
        };
        let ours: BTreeMap<VmId, Generation> = owned(back).into_iter().collect();
        // One pass over the fleet: this is done with each heartbeat of each host.
        let mut newest: BTreeMap<VmId, (Generation, &Member)> = BTreeMap::new();
        for member in self.fleet.hosts().filter(|member| member.inventory.host != *host) {
            for (vm, generation) in owned(member) {
                let known = newest.get(&vm).map_or(Generation::default(), |(known, _)| *known);
                if ours.get(&vm).is_some_and(|ours| generation > *ours) && generation > known {
                    newest.insert(vm, (generation, member));
                }
            }
        }
        for (vm, (generation, owner)) in newest.into_iter().filter(|(_, (_, owner))| owner.online) {
            tracing::warn!(%host, %vm, %generation, owner = %owner.inventory.host, "the host takes the VM for its own; it is told");
            let request = Box::new(AgentRequest::VmSuperseded { vm, generation });
            out.push(Action::Forward { call: CALL_NONE, host: host.clone(), request, wait: AGENT_WORK_WAIT_MAX });
        }
    }

    /// The fence commands that are to be run now.
    pub(super) fn fence_due(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.fence.is_none() {
            return;
        }
        let (jobs, fleet) = (&self.jobs, &self.fleet);
        let offline = |job: JobId| {
            let target = jobs.get(&job).map(|job| &job.status.plan.target.id);
            target.is_some_and(|target| fleet.host(target).is_none_or(|member| !member.online))
        };
        for job in self.fencing.due(now.clock, offline) {
            let Some(plan) = self.jobs.get(&job).map(|job| &job.status.plan) else { continue };
            let host = plan.target.id.clone();
            // The host that gives the VM back is asked first: to cut a host off for nothing helps nobody.
            match self.resolvable(plan.vm.id, &host) {
                Ok(_) => {
                    tracing::warn!(%job, %host, "the fence command is run");
                    out.push(Action::Fence { job, host });
                }
                Err(error) => self.not_fenced(job, &host, &error.message, now, out),
            }
        }
    }

    /// A fence command has ended.
    pub(super) fn fenced(
        &mut self,
        job: JobId,
        host: &HostId,
        ended: Result<(), String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(status) = self.jobs.get(&job).map(|job| &job.status) else { return };
        if !status.is_unresolved() {
            return; // It was resolved meanwhile.
        }
        let vm = status.plan.vm.id;
        let taker = ended.and_then(|()| self.resolvable(vm, host).map_err(|error| error.message));
        match taker {
            Ok(taker) => {
                self.notice(
                    job,
                    format!("the fence command has put {host} out of action; {taker} takes the VM back"),
                    now,
                    out,
                );
                let request = Box::new(AgentRequest::VmFenced { vm, fenced: host.clone() });
                out.push(Action::Forward { call: CALL_NONE, host: taker, request, wait: AGENT_WAIT_MAX });
                // Until the job says that it is resolved, it is not: the agent may not have heard.
                self.fencing.failed(job, now.clock);
            }
            Err(why) => self.not_fenced(job, host, &why, now, out),
        }
    }

    /// An agent has answered what no operator asked.
    pub(super) fn answered_to_nobody(host: &HostId, reply: &Result<AgentReply, String>) {
        match reply {
            Ok(AgentReply::Done) => {}
            other => tracing::warn!(%host, answer = ?other, "the agent did not take the VM back; it is asked again"),
        }
    }

    fn not_fenced(&mut self, job: JobId, host: &HostId, why: &str, now: Now, out: &mut Vec<Action>) {
        tracing::warn!(%job, %host, why, "the host does not count as fenced");
        self.fencing.failed(job, now.clock);
        if self.fencing.may_tell(job, now.clock, TELL_INTERVAL) {
            self.notice(job, format!("{host} does not count as fenced: {why}"), now, out);
        }
    }

    fn notice(&mut self, job: JobId, text: String, now: Now, out: &mut Vec<Action>) {
        if let Some(event) = self.own_event(job, EventBody::Notice { text }, now) {
            self.told(&event, now, out);
            out.push(Action::Publish { messages: vec![Message::Event(Box::new(event))], answer: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::bus::{ApiReply, ApiRequest};
    use sterna_shared::id::{Epoch, Generation, Token};
    use sterna_shared::job::JobState;
    use sterna_shared::job::{Event as JobEvent, Reporter};

    use super::super::state::Event;
    use super::*;
    use crate::fence::Fence;
    use crate::planner::example;

    /// `alpha` has ceded generation 4 to `beta`, and the job waits for an operator.
    struct World {
        state: State,
        clock: u64,
    }

    impl World {
        fn new(fence: Option<Fence>) -> Self {
            let state = State::new(host("one"), Epoch(1), "2.11".into(), crate::fleet::Fleet::default(), fence);
            let mut world = Self { state, clock: 0 };
            world.apply(Event::Replayed);
            world.hear("alpha", Some((3, true)));
            world.hear("beta", None);
            let plan =
                crate::planner::plan(&world.state.fleet, [], &example::request(), example::seeds()).expect("a plan");
            world.hear("alpha", Some((4, false)));
            for (sequence, body) in [
                (1, EventBody::Accepted { plan: Box::new(plan) }),
                (2, EventBody::Unresolved { reason: "beta does not answer".into() }),
            ] {
                let event = JobEvent {
                    job: example::job(1),
                    reporter: Reporter::Host(host("alpha")),
                    sequence,
                    at: example::now(),
                    body,
                };
                world.apply(Event::Told(Box::new(event)));
            }
            assert_eq!(world.state.jobs[&example::job(1)].status.state, JobState::QueryPending);
            world
        }

        /// A host says that it has the VM, in that generation and as its owner or not; or that it has none.
        fn hear(&mut self, name: &str, has: Option<(u64, bool)>) -> Vec<Action> {
            let mut inventory = example::inventory(name);
            inventory.vms = has
                .map(|(generation, owned)| {
                    let mut report = example::report(&example::vm("web"));
                    (report.generation, report.owned) = (Generation(generation), owned);
                    report
                })
                .into_iter()
                .collect();
            self.apply(Event::Heartbeat(Box::new(inventory)))
        }

        fn apply(&mut self, event: Event) -> Vec<Action> {
            let now = Now { at: example::now(), clock: Duration::from_secs(self.clock) };
            self.state.apply(event, now)
        }

        /// Time passes while `alpha` is heard and `beta` is not; the hosts against which the fence command was run.
        fn wait(&mut self, seconds: u64) -> Vec<HostId> {
            let mut run = Vec::new();
            for _ in 0..seconds {
                self.clock += 1;
                let mut actions = self.hear("alpha", Some((4, false)));
                actions.extend(self.apply(Event::Tick));
                run.extend(actions.into_iter().filter_map(|action| match action {
                    Action::Fence { host, .. } => Some(host),
                    _ => None,
                }));
            }
            run
        }

        fn resolve(&mut self, fenced: &str) -> Result<HostId, String> {
            let request = Box::new(ApiRequest::VmResolve { vm: "web".into(), fenced: host(fenced) });
            let token = Token::from_bytes([0; 32]);
            match self.apply(Event::Asked { call: 7, request, token }).pop() {
                Some(Action::Forward { call: 7, host, request, .. }) => {
                    assert!(
                        matches!(*request, AgentRequest::VmFenced { fenced: named, .. } if named.as_str() == fenced)
                    );
                    Ok(host)
                }
                Some(Action::Answer { reply, .. }) => match *reply {
                    ApiReply::Error { error } => Err(error.message),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        }

        fn fenced(&mut self, ended: Result<(), String>) -> Vec<Action> {
            self.apply(Event::Fenced { job: example::job(1), host: host("beta"), ended })
        }
    }

    fn host(name: &str) -> HostId {
        name.parse().expect("a name")
    }

    fn fence() -> Option<Fence> {
        Some(Fence { command: vec!["/bin/true".into()], after_seconds: 30, timeout_seconds: 10 })
    }

    fn taken_back(actions: &[Action]) -> bool {
        actions.iter().any(|action| {
            matches!(action, Action::Forward { call: CALL_NONE, host: taker, request, .. } if *taker == host("alpha")
                && matches!(&**request, AgentRequest::VmFenced { fenced, .. } if *fenced == host("beta")))
        })
    }

    #[test]
    fn a_host_that_comes_back_is_told_what_was_taken_back_from_it() {
        let superseded = |actions: Vec<Action>| {
            actions.into_iter().find_map(|action| match action {
                Action::Forward { call: CALL_NONE, host, request, .. } => match *request {
                    AgentRequest::VmSuperseded { generation, .. } => Some((host, generation)),
                    _ => None,
                },
                _ => None,
            })
        };
        let both_away = || {
            let mut world = World::new(None);
            world.clock += 60;
            world.apply(Event::Tick);
            world
        };
        // While `beta` was away `alpha` came to own a later generation.
        let mut world = both_away();
        world.hear("alpha", Some((5, true)));
        assert_eq!(superseded(world.hear("beta", Some((4, true)))), Some((host("beta"), Generation(5))));
        // The word may be lost: it is told until it has let go.
        assert_eq!(superseded(world.hear("beta", Some((4, true)))), Some((host("beta"), Generation(5))));
        assert_eq!(superseded(world.hear("beta", Some((5, false)))), None, "it has let go");
        // Neither a host that knows better, nor the word of one that is away.
        for (there, back) in
            [((5, true), (6, true)), ((5, false), (4, true)), ((5, true), (5, true)), ((5, true), (4, false))]
        {
            let mut world = both_away();
            world.hear("alpha", Some(there));
            assert_eq!(superseded(world.hear("beta", Some(back))), None, "{there:?} {back:?}");
        }
        let mut world = both_away();
        world.hear("alpha", Some((5, true)));
        world.clock += 3600;
        world.apply(Event::Tick);
        assert_eq!(superseded(world.hear("beta", Some((4, true)))), None, "alpha is away too");
    }

    #[test]
    fn a_target_that_never_took_the_vm_can_be_declared_fenced() {
        let mut world = World::new(None);
        assert_eq!(world.resolve("beta"), Ok(host("alpha")));
        world.hear("beta", Some((4, false)));
        assert_eq!(world.resolve("beta"), Ok(host("alpha")), "prepared, and no more");
        world.hear("beta", Some((3, true)));
        assert_eq!(world.resolve("beta"), Ok(host("alpha")), "what it owned before was given up since");
        assert!(world.wait(300).is_empty(), "no command is configured");
    }

    #[test]
    fn a_host_that_has_the_vm_or_had_it_since_speaks_against_it() {
        for (other, generation, owned) in
            [("beta", 4, true), ("beta", 5, false), ("gamma", 5, true), ("gamma", 6, false)]
        {
            let mut world = World::new(fence());
            world.hear(other, Some((generation, owned)));
            let refused = world.resolve("beta").expect_err("refused");
            assert!(refused.contains(other) || refused.contains("owns"), "{refused}");
            // Also when it is silent by then: and no command is run for nothing.
            assert_eq!(world.wait(100), []);
            let refused = world.resolve("beta").expect_err("refused");
            assert!(refused.contains(other), "{refused}");
            assert!(!taken_back(&world.fenced(Ok(()))));
        }
        let mut world = World::new(None);
        world.hear("alpha", Some((3, true)));
        let refused = world.resolve("beta").expect_err("refused");
        assert!(refused.contains("alpha owns VM web"), "{refused}");
    }

    #[test]
    fn the_command_is_run_once_the_target_is_silent_for_long_and_its_success_is_believed() {
        let mut world = World::new(fence());
        assert_eq!(world.wait(29), []);
        assert_eq!(world.wait(1), [host("beta")]);
        assert_eq!(world.wait(100), [], "it runs");
        let actions = world.fenced(Ok(()));
        assert!(taken_back(&actions), "{actions:?}");
        let told = &world.state.jobs[&example::job(1)].status.notices;
        assert!(told.iter().any(|notice| notice.text.contains("put beta out of action")), "{told:?}");
        assert_eq!(world.wait(59), []);
        assert_eq!(world.wait(2), [host("beta")], "the agent did not hear of it");
    }

    #[test]
    fn a_command_that_fails_declares_nothing_and_is_run_again() {
        let mut world = World::new(fence());
        assert_eq!(world.wait(30), [host("beta")]);
        for _ in 0..5 {
            assert!(!taken_back(&world.fenced(Err("no answer".into()))));
            assert_eq!(world.wait(60), [host("beta")]);
        }
        let told = &world.state.jobs[&example::job(1)].status.notices;
        let count = told.iter().filter(|notice| notice.text.contains("does not count as fenced: no answer")).count();
        assert_eq!(count, 1, "it is told, and not every minute: {told:?}");
    }

    #[test]
    fn a_target_that_is_heard_of_is_not_fenced_and_a_resolved_job_neither() {
        let mut world = World::new(fence());
        for _ in 0..100 {
            world.hear("beta", None);
            assert_eq!(world.wait(1), []);
        }
        let mut world = World::new(fence());
        assert_eq!(world.wait(30), [host("beta")]);
        let body = EventBody::Completed { blackout_us: 1 };
        let event = JobEvent {
            job: example::job(1),
            reporter: Reporter::Host(host("alpha")),
            sequence: 3,
            at: example::now(),
            body,
        };
        world.apply(Event::Told(Box::new(event)));
        assert!(!taken_back(&world.fenced(Ok(()))), "resolved meanwhile");
        assert_eq!(world.wait(300), []);
    }
}
