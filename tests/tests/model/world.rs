//! Two hosts, one VM, and everything that can go wrong between them.
//!
//! What is modelled, and how the state is kept small without losing behaviour:
//!
//! * The **network** is the set of all messages ever sent; each may be delivered at any later time, any number of times, or
//!   never. That is loss, repetition, delay and reordering without bound.
//! * An **agent** carries out one action at a time and may crash before and after each. Crash and restart are one step: a
//!   host that is down for a while is a host that takes no step for a while.
//! * A **guest** (QEMU) outlives its agent, and may die by itself, also between `cont` and its confirmation; `cont` may fail.
//! * **Copies**: a host's copy is *current* if it includes all that the guest ever wrote. Pausing the source and copying the
//!   rest makes the target's copy current; a guest that runs makes every other copy stale.
//! * **Operators** begin moves to and fro, cancel them before the cede, fence a silent target and let it in again. They fence an owner
//!   and have the VM run elsewhere from a replica, whose lag they have accepted: it counts as current from then on.
//!
//! The machines are those of `sterna_shared::ownership`, the very code the agent runs. States hold numbers in their place.

use std::collections::HashMap;

use sterna_shared::id::{Generation, HostId, JobId};
use sterna_shared::ownership::{Action, Illegal, Input, Message, Move, Ownership, Record};

use super::explore::{Step, World};
use super::numbered::Numbered;

/// How often each thing may happen in one history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) moves: u8,
    pub(crate) crashes: u8,
    pub(crate) guest_deaths: u8,
    pub(crate) cont_failures: u8,
    pub(crate) fences: u8,
    pub(crate) failovers: u8,
}

/// A fault put into the driver, which the properties must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The source's `Ceding` never reaches the disk.
    DropCeding,
    /// The target's `Activating`, its first record as the owner, never reaches the disk.
    DropOwner,
    /// The target's promise not to run a generation never reaches the disk.
    DropRefused,
    /// The source's record that it has taken the guest back never reaches the disk.
    DropTakenBack,
    /// A fenced host is let in again without being told that its record is void.
    BelieveFenced,
    /// A replica is run as a generation that its VM's owner knows already.
    TakeOverTooLow,
    /// The driver says that a guest never ran which ran and died before that was confirmed.
    ClaimNeverRan,
}

/// What must hold in every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Property {
    /// Two guests run.
    OneGuest,
    /// A guest runs on a host whose journal does not allow it.
    RunsByRecord,
    /// A generation was granted a second time, or after it had been refused, or refused after it had run.
    GrantedOnce,
    /// The source was released before the target's guest ran.
    ReleasedLast,
    /// A guest runs from a copy that lacks what it wrote elsewhere.
    NoWriteLost,
    /// An honest host was taken for a dishonest or mistaken one.
    HonestBelieved,
}

/// What happened, for traces; the number is the host.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "read through Debug, in traces")]
pub(crate) enum Label {
    Does(usize, &'static str),
    ContFails(usize),
    Receives(usize, Message),
    Ticks(usize),
    Prepares(usize, Generation),
    Aborts(usize),
    Switchover(usize),
    BeginsCede(usize, u8),
    Resumes(usize),
    Crashes(usize),
    GuestDies(usize),
    Fences(usize),
    Readmitted(usize),
    FailsOver(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Guest {
    None,
    Filling,
    Paused,
    Running,
}

/// What an agent has still to do, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Todo {
    Do(Action),
    /// Ask QEMU whether the guest runs.
    Confirm,
    /// Say that the source is cleaned up.
    Cleaned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Host {
    machine: u16,
    journal: u16,
    todo: u16,
    guest: Guest,
    current: bool,
    /// Fenced: powered off.
    off: bool,
    /// The source paused its guest and everything is at the target, prepared with this generation; 0 for no.
    switched: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    hosts: [Host; 2],
    network: u128,
    budget: Budget,
    granted: u16,
    refused: u16,
    ran: u16,
    broken: Option<Property>,
}

/// Generations are bits and message numbers in a state.
const GENERATIONS_MAX: u64 = 16;

/// The transition system.
pub(crate) struct Handover {
    mutation: Option<Mutation>,
    names: [HostId; 2],
    job: JobId,
    machines: Numbered<Ownership>,
    records: Numbered<Record>,
    todos: Numbered<Vec<Todo>>,
    inputs: Numbered<Input>,
    /// What a machine answers to an input: the machine after it and what to do.
    answers: HashMap<(u16, u16), (u16, Answer)>,
}

type Steps = Vec<Step<State, Label>>;
type Answer = Result<Vec<Todo>, Illegal>;

impl Handover {
    pub(crate) fn new(mutation: Option<Mutation>) -> Self {
        Self {
            mutation,
            names: ["a", "b"].map(|name| name.parse().expect("a valid host id")),
            job: "0197c0de-0000-7000-8000-000000000001".parse().expect("a valid job id"),
            machines: Numbered::new(),
            records: Numbered::new(),
            todos: Numbered::new(),
            inputs: Numbered::new(),
            answers: HashMap::new(),
        }
    }

    /// The VM runs on host 0 as generation 1; host 1 has never heard of it.
    pub(crate) fn start(&mut self, budget: Budget) -> State {
        let mut host = |record: Record, guest| Host {
            machine: self.machines.number(Ownership::restore(record.clone())),
            journal: self.records.number(record),
            todo: self.todos.number(Vec::new()),
            guest,
            current: guest == Guest::Running,
            off: false,
            switched: 0,
        };
        let hosts =
            [host(Record::Owner { generation: Generation(1) }, Guest::Running), host(Record::default(), Guest::None)];
        State { hosts, network: 0, budget, granted: 0b10, refused: 0, ran: 0b10, broken: None }
    }

    fn record(&self, host: &Host) -> &Record {
        self.machines.get(host.machine).record()
    }

    fn journal(&self, host: &Host) -> &Record {
        self.records.get(host.journal)
    }

    fn idle(&self, host: &Host) -> bool {
        !host.off && self.todos.get(host.todo).is_empty()
    }

    fn peer(&self, host: usize) -> Move {
        Move { job: self.job, peer: self.names[host].clone() }
    }

    /// Feeds an input to a host's machine and queues what it answers; says whether the machine took it.
    fn feed(&mut self, state: &mut State, h: usize, input: Input) -> bool {
        let key = (state.hosts[h].machine, self.inputs.number(input));
        if !self.answers.contains_key(&key) {
            let mut machine = self.machines.get(key.0).clone();
            let answer = machine.apply(self.inputs.get(key.1)).map(|all| all.into_iter().map(Todo::Do).collect());
            self.answers.insert(key, (self.machines.number(machine), answer));
        }
        let (machine, answer) = &self.answers[&key];
        match answer {
            Ok(todo) => {
                state.hosts[h].machine = *machine;
                let todo = todo.clone();
                self.queue(state, h, todo);
                true
            }
            Err(Illegal::Contradiction { .. } | Illegal::WrongPeer { .. } | Illegal::MayNotRun { .. }) => {
                state.broken = state.broken.or(Some(Property::HonestBelieved));
                false
            }
            Err(_) => false,
        }
    }

    /// Sets what a host has to do; leading actions that would change nothing are done already.
    fn queue(&mut self, state: &mut State, h: usize, mut todo: Vec<Todo>) {
        while let Some(Todo::Do(action)) = todo.first() {
            let done = match action {
                Action::Destroy => state.hosts[h].guest == Guest::None,
                Action::Send { message: Message::Refused { generation }, .. } if state.ran & bit(*generation) != 0 => {
                    false
                }
                Action::Send { message, .. } => state.network & sent(1 - h, message) != 0,
                _ => false,
            };
            if !done {
                break;
            }
            todo.remove(0);
        }
        state.hosts[h].todo = self.todos.number(todo);
    }

    /// The agent carries out the next thing it has to do.
    fn work(&mut self, state: &State, h: usize, steps: &mut Steps) {
        let mut todo = self.todos.get(state.hosts[h].todo).clone();
        let head = todo.remove(0);
        let mut next = *state;
        self.queue(&mut next, h, todo.clone());
        let name = match head {
            Todo::Do(Action::Journal(record)) => {
                self.write(&mut next, h, record);
                "journals"
            }
            Todo::Do(Action::Send { message, .. }) => {
                if let Message::Refused { generation } = message {
                    next.refused |= bit(generation);
                    if next.ran & bit(generation) != 0 {
                        next.broken = Some(Property::GrantedOnce);
                    }
                }
                next.network |= sent(1 - h, &message);
                self.queue(&mut next, h, todo);
                "sends"
            }
            Todo::Do(Action::Destroy) => {
                next.hosts[h].guest = Guest::None;
                self.queue(&mut next, h, todo);
                "destroys"
            }
            Todo::Do(Action::Release) => {
                if next.ran & bit(self.record(&next.hosts[h]).seen()) == 0 {
                    next.broken = Some(Property::ReleasedLast);
                }
                next.hosts[h].guest = Guest::None;
                next.hosts[h].current = false;
                self.queue(&mut next, h, vec![Todo::Cleaned]);
                "releases"
            }
            Todo::Do(Action::Cont) => return self.cont(state, next, h, steps),
            Todo::Confirm if next.hosts[h].guest == Guest::Running => {
                self.feed(&mut next, h, Input::GuestRuns);
                "confirms"
            }
            Todo::Confirm => {
                if self.mutation == Some(Mutation::ClaimNeverRan) {
                    self.feed(&mut next, h, Input::CannotRun);
                }
                "finds the guest dead"
            }
            Todo::Cleaned => {
                self.feed(&mut next, h, Input::Released);
                "is cleaned up"
            }
        };
        steps.push(Step { label: Label::Does(h, name), next, helps: true });
    }

    fn cont(&mut self, state: &State, next: State, h: usize, steps: &mut Steps) {
        let mut runs = next;
        let mut fails = next;
        let knows = self.feed(&mut fails, h, Input::CannotRun);
        match state.hosts[h].guest {
            Guest::Running => {}
            // Dead before the cont: certain not to have run, if the machine agrees that this is the first one.
            Guest::None | Guest::Filling if knows => {
                return steps.push(Step { label: Label::ContFails(h), next: fails, helps: true });
            }
            Guest::None | Guest::Filling => self.run(&mut runs, h),
            Guest::Paused => {
                if state.budget.cont_failures > 0 {
                    fails.budget.cont_failures -= 1;
                    steps.push(Step { label: Label::ContFails(h), next: fails, helps: false });
                }
                self.run(&mut runs, h);
            }
        }
        self.queue(&mut runs, h, vec![Todo::Confirm]);
        steps.push(Step { label: Label::Does(h, "conts"), next: runs, helps: true });
    }

    fn run(&self, state: &mut State, h: usize) {
        let generation = self.record(&state.hosts[h]).may_run();
        let ran = generation.map_or(0, bit);
        if !state.hosts[h].current {
            state.broken = Some(Property::NoWriteLost);
        } else if state.refused & ran != 0 {
            state.broken = Some(Property::GrantedOnce);
        }
        state.hosts[h].guest = Guest::Running;
        state.hosts[h].switched = 0;
        state.hosts[1 - h].current = false;
        state.ran |= ran;
    }

    fn write(&mut self, state: &mut State, h: usize, record: Record) {
        let before = self.record(&state.hosts[h]).clone();
        let grants = match (&before, &record) {
            (_, Record::Activating { generation, .. }) | (Record::Absent { .. }, Record::Owner { generation }) => {
                Some(*generation)
            }
            _ => None,
        };
        if let Some(generation) = grants {
            if state.granted & bit(generation) != 0 {
                state.broken = Some(Property::GrantedOnce);
            }
            state.granted |= bit(generation);
            if state.hosts[1 - h].off {
                // Taken from a fenced host: what that one wrote is given up by the operator's word.
                state.hosts[h].current = true;
                state.hosts[1 - h].current = false;
            }
        }
        let dropped = match (self.mutation, &before, &record) {
            (Some(Mutation::DropCeding), _, Record::Ceding { .. }) => true,
            (Some(Mutation::DropOwner), _, Record::Activating { ceded_by, .. }) => ceded_by.is_some(),
            (Some(Mutation::DropTakenBack), _, Record::Activating { ceded_by, .. }) => ceded_by.is_none(),
            (Some(Mutation::DropRefused), Record::Incoming { .. }, Record::Absent { .. }) => true,
            _ => false,
        };
        if matches!(record, Record::Incoming { .. }) {
            state.hosts[h].guest = Guest::Filling;
        }
        if !dropped {
            state.hosts[h].journal = self.records.number(record);
        }
        self.feed(state, h, Input::Journalled);
    }

    /// The agent starts from its journal.
    fn restart(&mut self, state: &mut State, h: usize) {
        let journal = self.journal(&state.hosts[h]).clone();
        state.hosts[h].machine = self.machines.number(Ownership::restore(journal));
        state.hosts[h].switched = 0;
        self.feed(state, h, Input::Tick);
    }

    /// What an agent with nothing to do may turn to, and what its operators may wish.
    fn turn(&mut self, state: &State, h: usize, steps: &mut Steps) {
        for (message, bits) in all_messages(h) {
            if state.network & bits != 0 {
                let mut next = *state;
                self.feed(&mut next, h, Input::Received { from: self.names[1 - h].clone(), message });
                steps.push(Step { label: Label::Receives(h, message), next, helps: true });
            }
        }
        let mut next = *state;
        self.feed(&mut next, h, Input::Tick);
        steps.push(Step { label: Label::Ticks(h), next, helps: true });

        let (host, other) = (&state.hosts[h], &state.hosts[1 - h]);
        let (mine, theirs) = (self.record(host).clone(), self.record(other).clone());
        self.fail_over(state, h, steps);
        match mine {
            Record::Incoming { .. } => {
                let mut next = *state;
                self.feed(&mut next, h, Input::Abort);
                steps.push(Step { label: Label::Aborts(h), next, helps: true });
            }
            Record::Absent { .. } if state.budget.moves > 0 && matches!(theirs, Record::Owner { .. }) && !other.off => {
                let generation = Generation(mine.seen().max(theirs.seen()).0 + 1);
                let mut next = *state;
                next.budget.moves -= 1;
                self.feed(&mut next, h, Input::Prepare { generation, from: self.peer(1 - h) });
                steps.push(Step { label: Label::Prepares(h, generation), next, helps: false });
            }
            Record::Owner { .. } if host.guest != Guest::Running => {
                // Cancelled, restarted by the user, or a restarted agent that finds its guest paused.
                let mut next = *state;
                self.run(&mut next, h);
                steps.push(Step { label: Label::Resumes(h), next, helps: true });
                if host.switched != 0 {
                    let mut next = *state;
                    let generation = Generation(host.switched.into());
                    next.hosts[h].switched = 0;
                    self.feed(&mut next, h, Input::BeginCede { generation, to: self.peer(1 - h) });
                    steps.push(Step { label: Label::BeginsCede(h, host.switched), next, helps: true });
                }
            }
            Record::Owner { .. } if other.guest == Guest::Filling && self.idle(other) => {
                if let Record::Incoming { generation, .. } = theirs {
                    let mut next = *state;
                    next.hosts[h].guest = Guest::Paused;
                    next.hosts[h].switched = u8::try_from(generation.0).expect("generations are few");
                    next.hosts[1 - h].guest = Guest::Paused;
                    next.hosts[1 - h].current = host.current;
                    steps.push(Step { label: Label::Switchover(h), next, helps: true });
                }
            }
            // A declaration lost in a crash, before it was journalled, is made again.
            Record::Ceding { .. } if state.budget.fences > 0 || other.off => {
                let mut next = *state;
                if !other.off {
                    next.budget.fences -= 1;
                    self.power_off(&mut next, 1 - h);
                }
                self.feed(&mut next, h, Input::Fenced { host: self.names[1 - h].clone() });
                steps.push(Step { label: Label::Fences(h), next, helps: other.off });
            }
            _ => {}
        }
    }

    /// The owner is gone, or was before this agent fell out in the midst of it, and the replica here is to be the VM.
    fn fail_over(&mut self, state: &State, h: usize, steps: &mut Steps) {
        let other = state.hosts[1 - h];
        let owned = self.journal(&other).may_run().is_some();
        let absent = matches!(self.record(&state.hosts[h]), Record::Absent { .. });
        if !absent || !owned || !(other.off || state.budget.failovers > 0) {
            return;
        }
        let mut next = *state;
        if !other.off {
            next.budget.failovers -= 1;
            self.power_off(&mut next, 1 - h);
        }
        let too_low = self.mutation == Some(Mutation::TakeOverTooLow);
        let above = if too_low { Generation(0) } else { self.journal(&other).seen() };
        self.feed(&mut next, h, Input::TakeOver { above });
        steps.push(Step { label: Label::FailsOver(h), next, helps: other.off });
    }

    fn power_off(&mut self, state: &mut State, h: usize) {
        let journal = self.journal(&state.hosts[h]).clone();
        let machine = self.machines.number(Ownership::restore(journal));
        let todo = self.todos.number(Vec::new());
        let host = &mut state.hosts[h];
        *host = Host { machine, todo, guest: Guest::None, off: true, switched: 0, ..*host };
    }

    /// A fenced host is let in again, but not while the other is about to journal the declaration.
    fn readmit(&mut self, state: &State, h: usize, steps: &mut Steps) {
        let other = &state.hosts[1 - h];
        let taken_back = self.journal(other).may_run();
        if taken_back.is_none() && !self.idle(other) {
            return;
        }
        let mut next = *state;
        next.hosts[h].off = false;
        // Where the source never journalled the declaration, nothing was taken back, and the record stands.
        if let Some(generation) = taken_back.filter(|_| self.mutation != Some(Mutation::BelieveFenced)) {
            // Part of letting it in: not let in until this is on the disk.
            self.feed(&mut next, h, Input::Superseded { generation });
            if let Some(Todo::Do(Action::Journal(record))) = self.todos.get(next.hosts[h].todo).first().cloned() {
                self.write(&mut next, h, record);
            }
        }
        self.restart(&mut next, h);
        steps.push(Step { label: Label::Readmitted(h), next, helps: true });
    }

    fn faults(&mut self, state: &State, h: usize, steps: &mut Steps) {
        let host = state.hosts[h];
        let restored = self.machines.number(Ownership::restore(self.journal(&host).clone()));
        // A crash of an idle agent that has nothing in its memory is a tick.
        let has_memory = !self.idle(&host) || host.machine != restored || host.switched != 0;
        if state.budget.crashes > 0 && has_memory {
            let mut next = *state;
            next.budget.crashes -= 1;
            self.restart(&mut next, h);
            steps.push(Step { label: Label::Crashes(h), next, helps: false });
        }
        if state.budget.guest_deaths > 0 && host.guest != Guest::None {
            let mut next = *state;
            next.budget.guest_deaths -= 1;
            next.hosts[h].guest = Guest::None;
            steps.push(Step { label: Label::GuestDies(h), next, helps: false });
        }
    }
}

impl World for Handover {
    type State = State;
    type Label = Label;
    type Property = Property;

    fn steps(&mut self, state: &State) -> Steps {
        let mut steps = Vec::new();
        for h in 0..2 {
            if state.hosts[h].off {
                self.readmit(state, h, &mut steps);
                continue;
            }
            if self.idle(&state.hosts[h]) {
                self.turn(state, h, &mut steps);
            } else {
                self.work(state, h, &mut steps);
            }
            self.faults(state, h, &mut steps);
        }
        steps
    }

    fn broken(&self, state: &State) -> Option<Property> {
        let running = |host: &&Host| host.guest == Guest::Running;
        if state.hosts.iter().filter(running).count() > 1 {
            return Some(Property::OneGuest);
        }
        if state.hosts.iter().filter(running).any(|host| self.journal(host).may_run().is_none()) {
            return Some(Property::RunsByRecord);
        }
        state.broken
    }

    /// One host owns the VM and runs it; the other knows that it does not; nothing is left to do.
    fn good(&self, state: &State) -> bool {
        let owns = |host: &Host| matches!(self.journal(host), Record::Owner { .. }) && host.guest == Guest::Running;
        let free = |host: &Host| matches!(self.journal(host), Record::Absent { .. }) && host.guest == Guest::None;
        let [a, b] = &state.hosts;
        (owns(a) && free(b) || free(a) && owns(b)) && self.idle(a) && self.idle(b)
    }
}

fn bit(generation: Generation) -> u16 {
    assert!(generation.0 < GENERATIONS_MAX, "the budget of moves lets generations grow beyond {GENERATIONS_MAX}");
    1 << generation.0
}

/// A message on its way to a host, as a bit of the network.
fn sent(to: usize, message: &Message) -> u128 {
    let (kind, generation) = match message {
        Message::Cede { generation } => (0, generation),
        Message::Resolve { generation } => (1, generation),
        Message::Activated { generation } => (2, generation),
        Message::Refused { generation } => (3, generation),
    };
    assert!(generation.0 < GENERATIONS_MAX, "the budget of moves lets generations grow beyond {GENERATIONS_MAX}");
    1 << ((generation.0 * 4 + kind) * 2 + to as u64)
}

fn all_messages(to: usize) -> impl Iterator<Item = (Message, u128)> {
    (1..GENERATIONS_MAX).map(Generation).flat_map(move |generation| {
        [
            Message::Cede { generation },
            Message::Resolve { generation },
            Message::Activated { generation },
            Message::Refused { generation },
        ]
        .map(|message| (message, sent(to, &message)))
    })
}
