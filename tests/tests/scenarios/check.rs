//! Checks of a move: planted faults are all found at once, each with its remedy, in little time and without changing anything;
//! and what is foretold of a move beside what it then takes.
#![allow(clippy::print_stderr, reason = "figures are for whoever runs the test")]

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, processes};
use sterna_tests::namespace::Link;
use sterna_tests::scenario::{eventually, on_fleet};

/// The longest that a check may take.
const CHECK_MAX: Duration = Duration::from_secs(2);
const WAIT: Duration = Duration::from_secs(120);

/// A VM that no host here can run, and that is not small.
const PLANTED: &str = r#"
name = "planted"
id = "0197c0de-0000-7000-8000-00000000face"
memory = "1 TiB"
machine = "pc-q35-99.0"
cpu = "NoSuchProcessor"
[kernel]
image = "IMAGE"
[[disk]]
name = "root"
pool = "fast"
size = "900 GiB"
[[disk]]
name = "data"
pool = "bulk"
size = "1 MiB"
[[nic]]
mac = "52:54:00:00:fa:ce"
bridge = "br0"
"#;

/// What is wrong with its move, by code.
const FAULTS: [&str; 11] = [
    "boot_file",
    "cpu_model",
    "invalid_value",
    "machine_type",
    "memory",
    "pool_space",
    "port_unreachable",
    "unknown_bridge",
    "unknown_disk",
    "unknown_pool",
    "vm_state",
];

#[tokio::test]
async fn planted_faults_are_all_found_and_nothing_is_changed() {
    on_fleet(async |fleet| {
        let image = sterna_tests::guest_image::GuestImage::find()?.kernel;
        let image = image.file_name().context("a file")?.to_string_lossy().into_owned();
        fleet.define("alpha", "planted", &PLANTED.replace("IMAGE", &image)).await?;
        // The target has neither bridge nor boot files, and says that it is reached where nothing listens.
        let configuration = fleet.agent("bravo")?.configuration();
        let text = std::fs::read_to_string(&configuration)?;
        let boot = text.lines().find(|line| line.starts_with("boot_directory")).context("a boot directory")?.to_owned();
        let empty = fleet.folder().join("empty");
        std::fs::create_dir(&empty)?;
        let address = fleet.agent("bravo")?.host.address(Link::Data);
        let text = text
            .replace(&boot, &format!("boot_directory = \"{}\"\nadvertise = [\"{address}:9\"]", empty.display()))
            .replace("bridges = [\"br0\"]", "bridges = []");
        fleet.stop_agent("bravo").await?;
        std::fs::write(&configuration, text)?;
        fleet.start_agent("bravo").await?;
        eventually("the fleet knows of it", WAIT, async || {
            let shown = fleet.sterna(&["host", "show", "bravo"]).await?;
            Ok((shown["inventory"]["bridges"] == Value::Array(vec![]) && shown["online"] == true).then_some(()))
        })
        .await?;

        let before = [all_of(fleet, "alpha").await?, all_of(fleet, "bravo").await?];
        let wish = [
            "--output",
            "json",
            "check",
            "planted",
            "--to",
            "bravo",
            "--mode",
            "live",
            "--disk",
            "swap=fast",
            "--disk",
            "data=nowhere",
            "--lanes",
            "17",
        ];
        let began = Instant::now();
        let output = fleet.try_sterna(&wish).await?;
        let took = began.elapsed();
        ensure!(output.status.code() == Some(3), "it cannot be moved: {}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let findings = report["findings"].as_array().context("findings")?;
        let errors: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] == "error").collect();
        for finding in &errors {
            eprintln!("{}: {} → {}", finding["code"], finding["message"], finding["remedy"]);
        }
        let codes: BTreeSet<&str> = errors.iter().filter_map(|finding| finding["code"].as_str()).collect();
        ensure!(codes == FAULTS.into_iter().collect(), "found {codes:?}");
        ensure!(errors.iter().all(|finding| finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty())));
        eprintln!("{} faults of {} kinds in {took:?}", errors.len(), codes.len());
        ensure!(took < CHECK_MAX, "the check took {took:?}");
        ensure!(report["migratable"] == false, "{report:#}");
        let after = [all_of(fleet, "alpha").await?, all_of(fleet, "bravo").await?];
        ensure!(before == after, "a check changes nothing: {before:#?}\nand then {after:#?}");
        let jobs = fleet.sterna(&["job", "list"]).await?;
        ensure!(jobs == Value::Array(vec![]), "a check is no move: {jobs:#}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_is_foretold_stands_beside_what_it_takes() {
    on_fleet(async |fleet| {
        // The load of the guest, in MiB that it rewrites in a round, and the rate of the path, in Mbit/s; 0 is as it is.
        let loads: [(u64, [u32; 5]); 2] = [(1, [0, 800, 400, 0, 200]), (32, [0, 800, 600, 0, 400])];
        let mut within = 0;
        for (rewrite_mib, rates) in loads {
            let name: &'static str = if rewrite_mib == 1 { "idle" } else { "busy" };
            let wish = WitnessWish { rewrite_mib, ..WitnessWish::small(name) };
            let mut guest = Guest::start(fleet, ["alpha", "bravo"], &wish).await?;
            for megabits in rates {
                let target = guest.other(&guest.settled_at(fleet, WAIT).await?);
                if megabits > 0 {
                    fleet.agent("bravo")?.host.shape(Link::Data, megabits)?;
                }
                let report = fleet.sterna(&["check", name, "--to", target, "--max-blackout", "60000"]).await?;
                let began = Instant::now();
                let job = fleet.sterna(&["migrate", name, "--to", target, "--max-blackout", "60000"]).await?;
                let took = began.elapsed();
                if megabits > 0 {
                    fleet.agent("bravo")?.host.unshape(Link::Data)?;
                }
                ensure!(job["state"] == "completed", "{job:#}");
                let (p50, p95) = (&report["forecast"]["p50"], &report["forecast"]["p95"]);
                ensure!(report["migratable"] == true && report["forecast"].is_object(), "{report:#}");
                let seconds = |estimate: &Value| estimate["duration_ms"].as_f64().map(|ms| ms / 1000.0);
                eprintln!(
                    "{name}, path of {megabits} Mbit/s: foretold {:?} s and blackout {} ms, seldom over {:?} s and {} ms; it took {:.1} s and {} ms",
                    seconds(p50),
                    p50["blackout_ms"],
                    seconds(p95),
                    p95["blackout_ms"],
                    took.as_secs_f64(),
                    job["blackout_ms"],
                );
                within += u32::from(seconds(p95).is_none_or(|p95| took.as_secs_f64() <= p95 * 2.0));
            }
            guest.expect_whole().await?;
            fleet.sterna(&["vm", "stop", name, "--force"]).await?;
        }
        eprintln!("{within} of 10 took less than twice of what they should seldom exceed");
        ensure!(within >= 8, "the forecast is of no use");
        Ok(())
    })
    .await;
}

/// All that a host has of VMs and jobs: files, its agent's journal byte by byte, processes, and what its agent says.
async fn all_of(fleet: &Fleet, host: &str) -> anyhow::Result<Value> {
    let agent = fleet.agent(host)?;
    let mut journal = DefaultHasher::new();
    std::fs::read(fleet.folder().join(host).join("state/journal.redb"))?.hash(&mut journal);
    let shown = fleet.sterna(&["host", "show", host]).await?;
    let inventory = &shown["inventory"];
    Ok(serde_json::json!({
        "files": [agent.files("fast"), agent.files("bulk")],
        "journal": journal.finish(),
        "runtime": agent.runtime_entries(),
        "processes": processes(fleet, host, "qemu")?.len(),
        "vms": inventory["vms"],
        "partials": inventory["partials"],
    }))
}
