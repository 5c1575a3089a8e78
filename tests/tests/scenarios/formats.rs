//! Formats change on the way, under a guest that runs: raw and qcow2, each to itself and to the other.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use anyhow::ensure;
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::scenario::{Watched, expect_nothing_left, migrate, on_fleet, vm};

/// Target, source, the places asked for, and the pools and formats of `root` and `data` afterwards.
type Move = (&'static str, &'static str, &'static [&'static str], [(&'static str, &'static str); 2]);

#[tokio::test]
async fn raw_and_qcow2_move_to_themselves_and_to_one_another() {
    on_fleet(formats).await;
}

async fn formats(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut watched = Watched::start(fleet, "alpha", &WitnessWish::small("witness")).await?;
    let moves: [Move; 4] = [
        ("bravo", "alpha", &[], [("fast", "raw"), ("bulk", "qcow2")]),
        (
            "alpha",
            "bravo",
            &["--disk", "root=fast:qcow2", "--disk", "data=bulk:raw"],
            [("fast", "qcow2"), ("bulk", "raw")],
        ),
        ("bravo", "alpha", &["--disk", "root=bulk", "--disk", "data=fast"], [("bulk", "qcow2"), ("fast", "raw")]),
        (
            "alpha",
            "bravo",
            &["--disk", "root=fast:raw", "--disk", "data=bulk:qcow2"],
            [("fast", "raw"), ("bulk", "qcow2")],
        ),
    ];
    for (target, source, placements, expected) in moves {
        migrate(fleet, &[&["witness", "--to", target], placements].concat()).await?;
        watched.prove().await?;
        let shown = vm(fleet, "witness").await?;
        ensure!(shown["host"] == target, "{shown:#}");
        expect_disks(fleet, target, &shown, expected)?;
        expect_nothing_left(fleet, source)?;
    }
    // At rest the images are what they are called, sound, and as sparse as they were.
    fleet.sterna(&["vm", "stop", "witness", "--force"]).await?;
    let agent = fleet.agent("alpha")?;
    for (pool, format) in [("fast", "raw"), ("bulk", "qcow2")] {
        let image = agent.pool(pool).join(&agent.files(pool)[0]);
        let output = std::process::Command::new("qemu-img").args(["info", "--output", "json"]).arg(&image).output()?;
        let info: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(info["format"] == format && info["virtual-size"] == 64 << 20, "{info:#}");
        let actual = info["actual-size"].as_u64().unwrap_or(u64::MAX);
        eprintln!("{}: {} KiB allocated", image.display(), actual >> 10);
        ensure!(actual < 48 << 20, "what was a hole is one no more: {info:#}");
        if format == "qcow2" {
            let check = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&image).output()?;
            ensure!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        }
    }
    Ok(())
}

/// The disks are where and what was asked, by the fleet's word and by the files.
fn expect_disks(fleet: &Fleet, host: &str, shown: &Value, expected: [(&str, &str); 2]) -> anyhow::Result<()> {
    for (name, (pool, format)) in ["root", "data"].into_iter().zip(expected) {
        let disks = shown["report"]["spec"]["disk"].as_array();
        let disk = disks.and_then(|disks| disks.iter().find(|disk| disk["name"] == name));
        ensure!(disk.is_some_and(|disk| disk["pool"] == pool && disk["format"] == format), "{name}: {shown:#}");
        let files = fleet.agent(host)?.files(pool);
        let file = format!("{name}.{format}");
        ensure!(files.len() == 1 && files[0].ends_with(&file), "{file} is not alone in {pool}: {files:?}");
    }
    Ok(())
}
