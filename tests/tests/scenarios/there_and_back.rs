//! Moves of a running guest, each ending with the witness whole.
#![allow(clippy::print_stderr)] // What a test measured is read by people.

use std::time::Duration;

use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::witness::Witness;
use sterna_witness::protocol::DEFAULT_PORT;

const WAIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_running_guest_moves_there_and_back() {
    let mut fleet = Fleet::start(&["alpha", "bravo"]).await.expect("a fleet");
    let outcome = there_and_back(&mut fleet).await;
    if outcome.is_err() {
        eprintln!("{}", fleet.logs());
    }
    outcome.expect("the guest moves");
}

async fn there_and_back(fleet: &mut Fleet) -> anyhow::Result<()> {
    let address = fleet.start_witness("alpha", &WitnessWish::small("witness")).await?;
    let mut witness = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?;
    let hello = witness.hello().await?;
    let listener = Witness::connect(&fleet.client, address, DEFAULT_PORT).await?;
    let subscription = listener.subscribe().await?;
    let acknowledged = |count: u64| {
        move |r: &sterna_tests::witness::Recording| r.acknowledged.iter().filter(|n| **n >= count).count() == 2
    };
    subscription.wait_for(WAIT, acknowledged(30)).await?;
    for (target, source, count) in [("bravo", "alpha", 60), ("alpha", "bravo", 90)] {
        let job = fleet.sterna(&["migrate", "witness", "--to", target]).await?;
        assert_eq!(job["state"], "completed", "{job:#}");
        eprintln!("{target}: blackout {} ms", job["blackout_ms"]);
        subscription.wait_for(WAIT, acknowledged(count)).await?;
        let result = witness.verify().await?;
        assert!(result.ok, "{result:?}");
        assert_eq!(witness.hello().await?.boot_id, hello.boot_id, "it is the same guest");
        let vm = fleet.sterna(&["vm", "show", "witness"]).await?;
        assert_eq!(vm["host"], target, "{vm:#}");
        // Nothing is left at the source.
        for pool in ["fast", "bulk"] {
            assert_eq!(fleet.agent(source)?.files(pool), Vec::<std::path::PathBuf>::new());
        }
        assert_eq!(fleet.agent(source)?.runtime_entries(), Vec::<String>::new());
    }
    assert_eq!(subscription.recording().faults, Vec::<String>::new());
    Ok(())
}
