//! Refusals: every reason at once, by its code and with a remedy, before a byte moves.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_shared::bus::{AgentReply, AgentRequest};
use sterna_shared::vm::VmSpec;
use sterna_tests::fleet::{Fleet, WitnessWish, binary};
use sterna_tests::scenario::{eventually, expect_nothing_left, left_behind, on_fleet_of};

/// How long the fleet may take to hear of a change: a heartbeat and more.
const HEARD_WAIT: Duration = Duration::from_secs(60);
/// For what is defined beside `small`: bridge and pool that only alpha has.
const ONLY_ALPHA: [&str; 2] = ["br9", "scratch"];

#[tokio::test]
async fn every_reason_is_told_before_a_byte_moves() {
    on_fleet_of(&["alpha", "bravo", "carol"], refusals).await;
}

async fn refusals(fleet: &mut Fleet) -> anyhow::Result<()> {
    give_alpha_more(fleet).await?;
    for vm in vms() {
        fleet.define("alpha", vm.name, &vm.text).await?;
    }
    // What is wrong with the request, and with the target.
    for (arguments, expected) in [
        (&["nobody", "--to", "bravo"][..], &["unknown_vm"][..]),
        (&["small", "--to", "nowhere"], &["unknown_host"]),
        (&["nobody", "--to", "nowhere"], &["unknown_host", "unknown_vm"]),
        (&["small", "--to", "alpha"], &["same_host"]),
        (&["small", "--to", "bravo", "--mode", "live"], &["vm_state"]),
        (
            &["small", "--to", "bravo", "--disk", "root=nopool", "--disk", "other=fast"],
            &["unknown_disk", "unknown_pool"],
        ),
        (&["small", "--to", "bravo", "--storage", "none"], &["pool_not_shared"]),
        (&["small", "--storage-only"], &["nothing_to_move"]),
        (&["small", "--to", "bravo", "--lanes", "99", "--bandwidth", "1", "--max-blackout", "1"], &["invalid_value"]),
        (&["vast", "--to", "bravo"], &["pool_space"]),
        (&["large", "--to", "bravo", "--mode", "live"], &["memory", "vm_state"]),
        (&["moored", "--to", "bravo"], &["unknown_bridge", "unknown_pool"]),
        (&["newer", "--to", "bravo"], &["machine_type"]),
        (&["clever", "--to", "bravo"], &["cpu_model"]),
        (
            &["hopeless", "--to", "bravo", "--mode", "live", "--lanes", "99"],
            &[
                "cpu_model",
                "invalid_value",
                "machine_type",
                "memory",
                "pool_space",
                "unknown_bridge",
                "unknown_pool",
                "vm_state",
            ],
        ),
    ] {
        expect_refusal(fleet, arguments, expected).await?;
    }
    twin_at_the_target(fleet).await?;
    in_a_job(fleet).await?;
    certificates(fleet).await?;
    offline(fleet).await?;
    // Nothing came of any of them.
    let jobs = fleet.sterna(&["job", "list"]).await?;
    ensure!(jobs.as_array().is_some_and(|jobs| jobs.len() == 1), "one job, the one that was wanted: {jobs:#}");
    expect_nothing_left(fleet, "bravo")?;
    expect_nothing_left(fleet, "carol")
}

struct Vm {
    name: &'static str,
    text: String,
}

/// VMs that are never started.
fn vms() -> Vec<Vm> {
    let vm = |name: &'static str, head: &str, disks: &[(&str, &str, &str)]| {
        let mut text = format!("name = \"{name}\"\nid = \"{}\"\n{head}\n", uuid::Uuid::new_v4());
        for (name, pool, size) in disks {
            text += &format!("[[disk]]\nname = \"{name}\"\npool = \"{pool}\"\nsize = \"{size}\"\n");
        }
        Vm { name, text }
    };
    let nic = "[[nic]]\nmac = \"52:54:00:00:99:01\"\nbridge = \"br9\"";
    let small = "memory = \"64 MiB\"";
    vec![
        vm("small", small, &[("root", "fast", "16 MiB")]),
        vm("vast", small, &[("root", "fast", "20 TiB")]),
        vm("large", "memory = \"8 TiB\"", &[("root", "fast", "16 MiB")]),
        vm("moored", &format!("{small}\n{nic}"), &[("root", "scratch", "16 MiB")]),
        vm("newer", "memory = \"64 MiB\"\nmachine = \"pc-q35-99.9\"", &[("root", "fast", "16 MiB")]),
        vm("clever", "memory = \"64 MiB\"\ncpu = \"No-Such-Processor\"", &[("root", "fast", "16 MiB")]),
        vm(
            "hopeless",
            &format!("memory = \"8 TiB\"\nmachine = \"pc-q35-99.9\"\ncpu = \"No-Such-Processor\"\n{nic}"),
            &[("root", "scratch", "16 MiB"), ("data", "fast", "20 TiB")],
        ),
    ]
}

/// Runs a move that must be refused by exactly these reasons, each with a remedy.
async fn expect_refusal(fleet: &Fleet, arguments: &[&str], expected: &[&str]) -> anyhow::Result<()> {
    let (codes, error) = refusal(fleet, arguments).await?;
    ensure!(codes.iter().eq(expected), "{arguments:?} is refused by {codes:?} in place of {expected:?}: {error:#}");
    eprintln!("{}: {codes:?}", arguments.join(" "));
    Ok(())
}

/// The codes by which a move is refused; it must be, also as a dry run.
async fn refusal(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<(BTreeSet<String>, Value)> {
    let mut told = Vec::new();
    for further in [&["--dry-run"][..], &[]] {
        let output = fleet.try_sterna(&[&["--output", "json", "migrate"], arguments, further].concat()).await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(3), "{arguments:?} ended with {}: {text}", output.status);
        let error: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        told.push(error["error"].clone());
    }
    let error = told.swap_remove(1);
    let refusals = error["refusals"].as_array().map_or(&[][..], Vec::as_slice);
    let codes = |error: &Value| -> BTreeSet<String> {
        let refusals = error["refusals"].as_array().into_iter().flatten();
        refusals.filter_map(|refusal| refusal["code"].as_str().map(str::to_owned)).collect()
    };
    let worded = |refusal: &Value| {
        ["message", "remedy"].iter().all(|part| refusal[part].as_str().is_some_and(|text| !text.is_empty()))
    };
    ensure!(refusals.iter().all(worded), "a reason without words: {error:#}");
    ensure!(codes(&told[0]) == codes(&error), "the dry run tells the same: {:#}", told[0]);
    Ok((codes(&error), error))
}

/// Gives alpha a bridge and a pool that no other host has.
async fn give_alpha_more(fleet: &mut Fleet) -> anyhow::Result<()> {
    let [bridge, pool] = ONLY_ALPHA;
    let agent = fleet.agent("alpha")?;
    let made = agent.host.command("ip").args(["link", "add", bridge, "type", "bridge"]).status()?;
    ensure!(made.success(), "the bridge {bridge} is made");
    let directory = agent.pool(pool);
    std::fs::create_dir_all(&directory)?;
    let section = format!("[pools.{pool}]\ndirectory = \"{}\"\n[nats]\n", directory.display());
    reconfigure(fleet, "alpha", |text| {
        text.replace("\"br0\"", &format!("\"br0\", \"{bridge}\"")).replace("[nats]\n", &section)
    })
    .await
}

/// Changes a host's configuration, and starts its agent anew.
async fn reconfigure(fleet: &mut Fleet, host: &str, change: impl FnOnce(String) -> String) -> anyhow::Result<()> {
    let path = fleet.agent(host)?.configuration();
    let before = std::fs::read_to_string(&path)?;
    let after = change(before.clone());
    ensure!(before != after, "the configuration of {host} changes");
    std::fs::write(&path, after)?;
    fleet.kill_agent(host)?;
    fleet.start_agent(host).await
}

/// The target's own agent was given VMs of that name, and of that id: the coordinator would not have allowed it.
async fn twin_at_the_target(fleet: &Fleet) -> anyhow::Result<()> {
    let small = std::fs::read_to_string(fleet.folder().join("small-alpha.toml"))?;
    let id = small.split('"').nth(3).context("an id")?.to_owned();
    let same_name = small.replace(&id, &uuid::Uuid::new_v4().to_string());
    let same_id = small.replace("\"small\"", "\"twin\"");
    // Of two hosts that both say they own one id, the later by name speaks for it: to alpha it cannot go.
    for (host, specification, target) in [("bravo", same_name, "bravo"), ("carol", same_id, "alpha")] {
        let spec: VmSpec = toml::from_str(&specification)?;
        let vm = spec.id;
        let request = AgentRequest::VmDefine { spec: Box::new(spec) };
        ensure!(matches!(fleet.ask_agent(host, &request).await?, AgentReply::Done), "{host} takes the twin");
        let heard = || async {
            // Of two VMs called `small` the id tells which is meant.
            let (codes, _) = match refusal(fleet, &[&id, "--to", target]).await {
                Ok(refused) => refused,
                Err(_) => return Ok(None),
            };
            Ok(codes.contains("name_taken").then_some(codes))
        };
        eprintln!("a twin at {target}: {:?}", eventually("the refusal", HEARD_WAIT, heard).await?);
        let request = AgentRequest::VmDelete { vm, delete_disks: true };
        ensure!(matches!(fleet.ask_agent(host, &request).await?, AgentReply::Done), "{host} forgets the twin");
    }
    Ok(())
}

/// A VM that is being moved is in that job's hands.
async fn in_a_job(fleet: &Fleet) -> anyhow::Result<()> {
    // Content that no length can stand for, at a rate that leaves time to ask.
    let wish = WitnessWish { disks: vec![("root", "fast", "raw", 16)], ..WitnessWish::small("slow") };
    fleet.define("alpha", "slow", &wish.specification([10, 77, 0, 200].into())?).await?;
    let agent = fleet.agent("alpha")?;
    let raw = agent.files("fast").into_iter().find(|file| file.ends_with("root.raw")).context("the raw image")?;
    let content: Vec<u8> = (0..16 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(agent.pool("fast").join(raw), content)?;
    let job = fleet.sterna(&["migrate", "slow", "--to", "bravo", "--bandwidth", "256KiB/s", "--detach"]).await?;
    let job = job["job"].as_str().context("a job id")?.to_owned();
    expect_refusal(fleet, &["slow", "--to", "carol"], &["vm_in_job"]).await?;
    expect_refusal(fleet, &["slow", "--to", "alpha", "--mode", "live"], &["same_host", "vm_in_job", "vm_state"])
        .await?;
    fleet.sterna(&["job", "cancel", &job]).await?;
    let over = || async {
        let shown = fleet.sterna(&["job", "show", &job]).await?;
        Ok((shown["state"] == "terminated").then_some(()))
    };
    eventually("the end of the cancelled job", HEARD_WAIT, over).await
}

/// A target whose certificate has expired, and one of another authority.
async fn certificates(fleet: &mut Fleet) -> anyhow::Result<()> {
    let pki = fleet.folder().join("pki");
    let other = fleet.folder().join("other");
    let until = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(6)).to_string();
    let (pki_text, other_text) = (pki.display().to_string(), other.display().to_string());
    for arguments in [
        &["pki", "issue", "host", "bravo", "--dir", &pki_text, "--force", "--not-after", &until][..],
        &["pki", "init", "--dir", &other_text],
        &["pki", "issue", "host", "carol", "--dir", &other_text],
    ] {
        let output = Command::new(binary("sterna")).args(arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    fleet.replace_agent("bravo").await?;
    reconfigure(fleet, "carol", |text| {
        let (before, tls) = text.split_at(text.find("[tls]").unwrap_or(0));
        format!("{before}{}", tls.replace(&pki_text, &other_text))
    })
    .await?;
    for (host, code) in [("bravo", "certificate_expired"), ("carol", "certificate_authority")] {
        let refused = || async {
            let output = fleet.try_sterna(&["--output", "json", "migrate", "small", "--to", host, "--dry-run"]).await?;
            let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
            let refusals = error["error"]["refusals"].as_array().cloned().unwrap_or_default();
            Ok(refusals.iter().any(|refusal| refusal["code"] == code).then_some(()))
        };
        eventually(code, HEARD_WAIT, refused).await?;
        expect_refusal(fleet, &["small", "--to", host], &[code]).await?;
    }
    Ok(())
}

/// A target whose agent is gone; what was wrong with it before is still told.
async fn offline(fleet: &mut Fleet) -> anyhow::Result<()> {
    fleet.kill_agent("carol")?;
    let fleet = &*fleet;
    let gone = || async {
        let hosts = fleet.sterna(&["host", "list"]).await?;
        let gone = |host: &Value| host["inventory"]["host"] == "carol" && host["online"] == false;
        Ok(hosts.as_array().is_some_and(|hosts| hosts.iter().any(gone)).then_some(()))
    };
    eventually("carol's silence being noticed", HEARD_WAIT, gone).await?;
    expect_refusal(fleet, &["small", "--to", "carol"], &["certificate_authority", "host_offline"]).await?;
    ensure!(left_behind(fleet, "alpha")?.len() > 1, "the VMs are where they were");
    Ok(())
}
