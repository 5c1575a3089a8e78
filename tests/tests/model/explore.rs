//! Breadth-first search over every reachable state, with the shortest way to a fault and a check that nothing gets stuck.
//!
//! Why not a library: the liveness asked for here ("from *every* state, a good one can be reached without further faults")
//! is a search backwards over the fault-free edges, which needs the graph itself, and the rest is forty lines.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

/// What can happen in a state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<S, L> {
    pub(crate) label: L,
    pub(crate) next: S,
    /// Counts towards liveness: neither a fault nor a new wish of the operator's.
    pub(crate) helps: bool,
}

/// A system to explore.
pub(crate) trait World {
    type State: Copy + Eq + Hash;
    type Label: Copy + Debug;
    type Property: Copy + Eq + Debug;
    /// Every step possible in a state.
    fn steps(&mut self, state: &Self::State) -> Vec<Step<Self::State, Self::Label>>;
    /// The property that a state breaks.
    fn broken(&self, state: &Self::State) -> Option<Self::Property>;
    /// Whether all is well: what every state must be able to come to.
    fn good(&self, state: &Self::State) -> bool;
}

/// How an exploration ended.
#[derive(Debug)]
pub(crate) struct Outcome<L, P> {
    pub(crate) states: usize,
    pub(crate) edges: usize,
    pub(crate) good: usize,
    pub(crate) fault: Option<Fault<L, P>>,
}

/// The shortest way to a broken property; `property` is `None` where no good state can be reached any more.
#[derive(Debug)]
pub(crate) struct Fault<L, P> {
    pub(crate) property: Option<P>,
    pub(crate) trace: Vec<L>,
}

/// Explores every state reachable from `start`. `states_max` is a limit, not a goal: reaching it is a failure.
pub(crate) fn explore<W: World>(world: &mut W, start: W::State, states_max: usize) -> Outcome<W::Label, W::Property> {
    let mut ids: HashMap<W::State, usize> = HashMap::from([(start, 0)]);
    let mut states = vec![start];
    let mut parents = vec![0];
    let mut helping: Vec<(u32, u32)> = Vec::new();
    let (mut at, mut edges) = (0, 0);
    let fault = |world: &mut W, states: &[W::State], parents: &[usize], id, property| {
        Some(Fault { property, trace: trace(world, states, parents, id) })
    };
    while at < states.len() {
        if let Some(property) = world.broken(&states[at]) {
            let fault = fault(world, &states, &parents, at, Some(property));
            return Outcome { states: states.len(), edges, good: 0, fault };
        }
        for step in world.steps(&states[at]) {
            edges += 1;
            let id = *ids.entry(step.next).or_insert_with(|| {
                states.push(step.next);
                parents.push(at);
                states.len() - 1
            });
            if step.helps && id != at {
                let small = |id: usize| u32::try_from(id).expect("fewer states than states_max, which fits");
                helping.push((small(id), small(at)));
            }
        }
        assert!(states.len() <= states_max, "more than {states_max} states: the model has grown, bound it anew");
        at += 1;
    }
    let good: Vec<usize> = (0..states.len()).filter(|&id| world.good(&states[id])).collect();
    let stuck = stuck(states.len(), helping, &good);
    let fault = stuck.and_then(|id| fault(world, &states, &parents, id, None));
    Outcome { states: states.len(), edges, good: good.len(), fault }
}

/// The first state from which no good one can be reached, searching backwards over `(to, from)` edges.
fn stuck(count: usize, mut backwards: Vec<(u32, u32)>, good: &[usize]) -> Option<usize> {
    backwards.sort_unstable();
    let mut reached = vec![false; count];
    let mut queue = good.to_vec();
    queue.iter().for_each(|&id| reached[id] = true);
    while let Some(id) = queue.pop() {
        let first = backwards.partition_point(|&(to, _)| (to as usize) < id);
        for &(_, from) in backwards[first..].iter().take_while(|&&(to, _)| to as usize == id) {
            if !std::mem::replace(&mut reached[from as usize], true) {
                queue.push(from as usize);
            }
        }
    }
    reached.iter().position(|&reached| !reached)
}

fn trace<W: World>(world: &mut W, states: &[W::State], parents: &[usize], mut id: usize) -> Vec<W::Label> {
    let mut labels = Vec::new();
    while id != 0 {
        let (from, to) = (states[parents[id]], states[id]);
        labels.extend(world.steps(&from).into_iter().find(|step| step.next == to).map(|step| step.label));
        id = parents[id];
    }
    labels.reverse();
    labels
}
