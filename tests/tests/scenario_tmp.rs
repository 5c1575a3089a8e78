//! temporary
#![allow(clippy::print_stderr)]
use std::time::{Duration, Instant};
use sterna_shared::bus::AgentRequest;
use sterna_tests::fleet::Fleet;

#[tokio::test]
async fn restarts() {
    let mut fleet = Fleet::start(&["alpha", "bravo"]).await.expect("a fleet");
    for round in 0..80 {
        fleet.kill_agent("bravo").expect("killed");
        fleet.start_agent("bravo").await.expect("started");
        let since = Instant::now();
        let asked =
            tokio::time::timeout(Duration::from_secs(8), fleet.ask_agent("bravo", &AgentRequest::Inventory)).await;
        eprintln!(
            "{round}: {:?} {}",
            since.elapsed(),
            match &asked {
                Ok(Ok(_)) => "ok".to_owned(),
                Ok(Err(e)) => format!("{e:#}"),
                Err(_) => "TIMEOUT".to_owned(),
            }
        );
        if asked.is_err() {
            let again =
                tokio::time::timeout(Duration::from_secs(8), fleet.ask_agent("bravo", &AgentRequest::Inventory)).await;
            eprintln!("again: {}", again.is_ok());
            eprintln!("{}", fleet.logs());
            panic!("reproduced");
        }
    }
}
