//! A few cells of the matrix of faults; `cargo xtask faults` does all of them.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use sterna_tests::faults::{Cell, Fault, Ordeal, Phase};

const CELLS: [(Phase, Fault); 4] = [
    (Phase::CopyMemory, Fault::SourceKilled),
    (Phase::Switchover, Fault::TargetKilled),
    (Phase::CopyDisks, Fault::LinkCut5s),
    (Phase::Ceded, Fault::SourceKilled),
];

#[tokio::test]
async fn a_fault_in_a_move_harms_nobody() {
    let mut ordeal = Ordeal::start().await.expect("a fleet with a guest");
    eprintln!("{}", Cell::head());
    for (phase, fault) in CELLS {
        let outcome = ordeal.suffer(phase, fault).await;
        if !outcome.as_ref().is_ok_and(Cell::is_sound) {
            eprintln!("{}", ordeal.fleet.logs());
        }
        let cell = outcome.unwrap_or_else(|error| panic!("{phase:?}, {fault}: {error:#}"));
        eprintln!("{cell}");
        assert!(cell.is_sound(), "{cell:#?}");
    }
}
