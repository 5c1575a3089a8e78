//! The handover, explored exhaustively: every interleaving of two agents, their guests, a network that promises nothing,
//! and operators, within the budgets below. See `model/world.rs` for what is modelled and `model/explore.rs` for the search.

#[path = "model/explore.rs"]
mod explore;
#[path = "model/numbered.rs"]
mod numbered;
#[path = "model/world.rs"]
mod world;

use explore::{Outcome, explore};
use world::{Budget, Handover, Label, Mutation, Property};

/// More states than this make the test too slow for everyday use.
const STATES_MAX: usize = 3_000_000;

const NO_FAULTS: Budget = Budget { moves: 0, crashes: 0, guest_deaths: 0, cont_failures: 0, fences: 0, failovers: 0 };

fn run(name: &str, mutation: Option<Mutation>, budget: Budget) -> Outcome<Label, Property> {
    let mut world = Handover::new(mutation);
    let start = world.start(budget);
    let outcome = explore(&mut world, start, STATES_MAX);
    let Outcome { states, edges, good, .. } = &outcome;
    // The one line of output: `cargo xtask model` shows it.
    #[expect(clippy::print_stdout, reason = "what was explored is the result")]
    {
        println!("handover model, {name}: {states} states, {edges} steps, {good} good; {budget:?}");
    }
    outcome
}

#[track_caller]
fn holds(name: &str, budget: Budget) {
    let outcome = run(name, None, budget);
    assert!(outcome.fault.is_none(), "{:#?}", outcome.fault);
    assert!(outcome.good > 1, "the budget must allow a move to succeed");
}

#[track_caller]
fn breaks(mutation: Mutation, budget: Budget, expected: &[Property]) {
    let fault = run(&format!("{mutation:?}"), Some(mutation), budget).fault.expect("the mutation must be noticed");
    let property = fault.property.expect("by a property of safety");
    assert!(expected.contains(&property), "{mutation:?} broke {property:?}: {:#?}", fault.trace);
}

#[test]
fn moves_to_and_fro_with_crashes() {
    holds("there and back, crashes", Budget { moves: 3, crashes: 3, ..NO_FAULTS });
}

#[test]
fn one_move_with_every_fault() {
    let budget = Budget { moves: 1, crashes: 3, guest_deaths: 1, cont_failures: 1, fences: 1, ..NO_FAULTS };
    holds("one move, every fault", budget);
}

#[test]
fn moves_to_and_fro_with_every_fault() {
    let budget = Budget { moves: 2, crashes: 2, guest_deaths: 1, cont_failures: 1, fences: 1, ..NO_FAULTS };
    holds("there and back, every fault", budget);
}

#[test]
fn many_moves() {
    holds("many moves", Budget { moves: 4, crashes: 1, ..NO_FAULTS });
}

#[test]
fn failovers_with_crashes() {
    holds("failovers, crashes", Budget { moves: 1, crashes: 2, failovers: 2, ..NO_FAULTS });
}

#[test]
fn a_failover_with_every_fault() {
    let budget = Budget { moves: 1, crashes: 2, guest_deaths: 1, cont_failures: 1, fences: 1, failovers: 1 };
    holds("one move, one failover, every fault", budget);
}

const MUTANT: Budget = Budget { moves: 2, crashes: 2, ..NO_FAULTS };

#[test]
fn a_lost_ceding_is_noticed() {
    breaks(Mutation::DropCeding, MUTANT, &[Property::OneGuest, Property::NoWriteLost]);
}

#[test]
fn a_lost_owner_is_noticed() {
    breaks(Mutation::DropOwner, MUTANT, &[Property::RunsByRecord]);
}

#[test]
fn a_lost_refusal_is_noticed() {
    breaks(Mutation::DropRefused, MUTANT, &[Property::OneGuest, Property::NoWriteLost, Property::GrantedOnce]);
}

#[test]
fn a_lost_taking_back_is_noticed() {
    breaks(Mutation::DropTakenBack, MUTANT, &[Property::RunsByRecord]);
}

#[test]
fn a_fenced_host_that_is_believed_is_noticed() {
    let budget = Budget { fences: 1, ..MUTANT };
    breaks(Mutation::BelieveFenced, budget, &[Property::OneGuest, Property::NoWriteLost]);
}

#[test]
fn a_failover_that_the_old_owner_need_not_believe_is_noticed() {
    let budget = Budget { failovers: 1, ..MUTANT };
    breaks(Mutation::TakeOverTooLow, budget, &[Property::OneGuest, Property::NoWriteLost, Property::GrantedOnce]);
}

#[test]
fn a_false_claim_that_a_guest_never_ran_is_noticed() {
    let budget = Budget { guest_deaths: 1, ..MUTANT };
    breaks(Mutation::ClaimNeverRan, budget, &[Property::GrantedOnce]);
}
