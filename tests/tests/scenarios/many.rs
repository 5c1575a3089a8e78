//! Twenty moves in a row: what one of them leaves behind, twenty make plain.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::process::Command;
use std::time::Instant;

use anyhow::ensure;
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish, binary};
use sterna_tests::scenario::{Watched, expect_nothing_left, migrate, on_fleet, vm};

const MOVES: usize = 20;

#[tokio::test]
async fn twenty_moves_leave_nothing_behind() {
    on_fleet(many).await;
}

async fn many(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { memory_mib: 128, fill_mib: 24, records: 10, ..WitnessWish::small("witness") };
    let mut watched = Watched::start(fleet, "alpha", &wish).await?;
    let files_of = |fleet: &Fleet, host: &str| -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", fleet.agent_process_id(host)?))?.count())
    };
    let mut open_files = Vec::new();
    let (mut blackouts, began) = (Vec::new(), Instant::now());
    for round in 0..MOVES {
        let (source, target) = if round % 2 == 0 { ("alpha", "bravo") } else { ("bravo", "alpha") };
        let job = migrate(fleet, &["witness", "--to", target]).await?;
        watched.more_records().await?;
        expect_nothing_left(fleet, source)?;
        blackouts.push(job["blackout_ms"].as_f64().unwrap_or(f64::NAN));
        if round % 2 == 1 {
            open_files.push((files_of(fleet, "alpha")?, files_of(fleet, "bravo")?));
        }
    }
    watched.prove().await?;
    blackouts.sort_by(f64::total_cmp);
    eprintln!(
        "{MOVES} moves in {:.1} s; blackout median {:.0} ms, longest {:.0} ms; files open in the agents after each pair: {open_files:?}",
        began.elapsed().as_secs_f64(),
        blackouts[MOVES / 2],
        blackouts[MOVES - 1],
    );
    // Every pair of moves begins and ends alike, and so do the agents' open files.
    let ((first_alpha, first_bravo), (last_alpha, last_bravo)) = (open_files[1], open_files[open_files.len() - 1]);
    ensure!(last_alpha <= first_alpha + 2 && last_bravo <= first_bravo + 2, "open files grow: {open_files:?}");
    ensure!(vm(fleet, "witness").await?["host"] == "alpha", "it is back");
    ensure!(fleet.agent("alpha")?.processes_and_taps()?.1.len() == 1, "one guest, one tap device");
    let jobs = fleet.sterna(&["job", "list"]).await?;
    let completed = jobs.as_array().map_or(0, |jobs| jobs.iter().filter(|job| job["state"] == "completed").count());
    ensure!(completed == MOVES, "{completed} jobs are completed");
    let mut records = Vec::new();
    for host in ["alpha", "bravo"] {
        let journal = journal(fleet, host)?;
        let jobs = journal["jobs"].as_array().map_or(&[][..], Vec::as_slice);
        let in_hand: Vec<&Value> = jobs.iter().filter(|job| job["stage"] != "over").collect();
        ensure!(in_hand.is_empty(), "{host} has jobs in hand: {in_hand:#?}");
        for held in ["partials", "planned"] {
            ensure!(journal[held].as_array().is_some_and(Vec::is_empty), "{host} holds {held}: {:#}", journal[held]);
        }
        let vms: Vec<&Value> = journal["vms"].as_array().into_iter().flatten().map(|vm| &vm["ownership"]).collect();
        eprintln!("{host}: {} jobs in the journal, all over; VM records {vms:?}", jobs.len());
        ensure!(vms.len() == 1, "{host} has one record of the one VM: {vms:?}");
        records.push(vms[0].clone());
    }
    // Alpha has the VM, and bravo remembers what it must not run any more.
    let (owned, seen) = (&records[0]["owner"]["generation"], &records[1]["absent"]["seen"]);
    ensure!(owned.as_u64().zip(seen.as_u64()).is_some_and(|(owned, seen)| owned <= seen), "{records:?}");
    Ok(())
}

/// The journal of a host, whose agent ends for it: its guests run on.
fn journal(fleet: &mut Fleet, host: &str) -> anyhow::Result<Value> {
    fleet.kill_agent(host)?;
    let configuration = fleet.agent(host)?.configuration();
    let output =
        Command::new(binary("sterna-agent")).arg("--config").arg(configuration).args(["journal", "dump"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}
