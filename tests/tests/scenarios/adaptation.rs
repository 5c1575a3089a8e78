//! Clones of a real Debian: who the clone says that it is, and what is left where its adaptation is cut.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sterna_tests::debian::{self, HOSTNAME, Ssh};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended, step};
use sterna_tests::namespace::Link;
use sterna_tests::replicas::cycle;
use sterna_tests::scenario::{eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);

fn notices(job: &Value) -> Vec<&str> {
    job["notices"].as_array().into_iter().flatten().filter_map(|notice| notice["text"].as_str()).collect()
}

#[tokio::test]
async fn a_clone_of_a_debian_guest_is_somebody_else() {
    on_fleet(somebody_else).await;
}

async fn somebody_else(fleet: &mut Fleet) -> anyhow::Result<()> {
    debian::define(fleet, "alpha", "web").await?;
    fleet.sterna(&["vm", "start", "web"]).await?;
    let to_web = Ssh::from(&fleet.client, fleet.folder())?;
    to_web.answers(fleet, "web").await?;
    let web = to_web.identity().await?;
    ensure!(web.hostname == HOSTNAME && web.host_keys.len() == 3, "{web:?}");
    let cycle = cycle(fleet, "web", "bravo", &[]).await?;
    eprintln!("the cycle read {:?} bytes", step(&cycle, "copy_disks").map(|step| step["bytes_total"].clone()));

    // Both guests have one address, so the clone is on a network of its own.
    let bravo = fleet.agent("bravo")?.host.clone();
    bravo.cut(Link::Lan)?;
    let arguments = ["clone", "create", "web", "--name", "Trial_1", "--network", "same", "--start"];
    let job = fleet.sterna(&arguments).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    eprintln!("adapted in {} s: {:#?}", step(&job, "adapt_os").context("the step")?["seconds"], notices(&job));
    for told in ["the system on vda1 is adapted: Debian GNU/Linux 12", "host name: trial-1, which was original"] {
        ensure!(notices(&job).iter().any(|text| text.starts_with(told)), "{told}: {job:#}");
    }
    let to_clone = Ssh::from(&bravo, fleet.folder())?;
    to_clone.answers(fleet, "Trial_1").await?;
    let clone = to_clone.identity().await?;
    ensure!(clone.hostname == "trial-1", "{clone:?}");
    let told = format!("machine id: {}, in /etc/machine-id", clone.machine_id);
    ensure!(notices(&job).iter().any(|text| text.starts_with(&told)), "{told}: {job:#}");
    let differ = [
        clone.machine_id != web.machine_id,
        clone.mac != web.mac,
        clone.uuid != web.uuid,
        clone.shown_key != web.shown_key,
        clone.host_keys.len() == web.host_keys.len(),
        clone.host_keys.iter().all(|key| !web.host_keys.contains(key)),
    ];
    ensure!(differ == [true; 6], "{differ:?}: {web:#?} {clone:#?}");
    let kept = to_clone.run("cat /etc/fstab /etc/hosts; ls /etc/udev/rules.d; mount | grep ' / '").await?;
    let uuid = to_clone.run("/sbin/blkid -o value -s UUID /dev/vda1").await?;
    let root = format!("\nUUID={}\t/\text4\t", uuid.trim());
    ensure!(!uuid.trim().is_empty() && kept.contains(&root) && !kept.contains("\n/dev/vda1\t"), "{uuid} {kept}");
    ensure!(kept.contains("trial-1.example\ttrial-1") && !kept.contains("original"), "{kept}");
    ensure!(!kept.contains("persistent-net") && kept.contains("/dev/vda1 on / type ext4 (rw"), "{kept}");
    eventually("its login prompt", WAIT, async || {
        let console = fleet.try_sterna(&["vm", "console", "Trial_1", "--no-follow"]).await?;
        Ok(String::from_utf8_lossy(&console.stdout).contains("trial-1 login:").then_some(()))
    })
    .await?;
    ensure!(to_web.identity().await? == web, "the VM that it is a clone of is who it was");
    Ok(())
}

#[tokio::test]
async fn a_clone_that_is_ended_while_its_system_is_adapted_leaves_nothing() {
    on_fleet(ends).await;
}

async fn ends(fleet: &mut Fleet) -> anyhow::Result<()> {
    debian::define(fleet, "alpha", "web").await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let before = files(fleet)?;
    ensure!(!before.is_empty(), "the replica has files");
    for fault in ["cancel", "kill", "agent", "coordinator"] {
        let job = fleet.sterna(&["clone", "create", "web", "--name", "copy", "--start", "--detach"]).await?;
        let job = job["job"].as_str().context("an id")?.to_owned();
        begins(fleet, "bravo", &job, "adapt_os").await?;
        // In the middle: the clone's disks are mounted in the helper guest, and changed.
        let agent = fleet.agent("bravo")?.process().context("the agent runs")?;
        agent.wait_for_line(&format!("adapted job={job} text=host name"), WAIT).await?;
        let shown = fleet.try_sterna(&["clone", "show", &job, "--output", "google"]).await?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(shown.contains("\"ADAPTING_OS\"") && shown.contains("\"adaptingOs\""), "{fault}: {shown}");
        let expected = match fault {
            "cancel" => {
                fleet.sterna(&["clone", "cancel", &job]).await?;
                "terminated"
            }
            "kill" => {
                fleet.sterna(&["job", "kill", &job]).await?;
                "killed"
            }
            "agent" => {
                fleet.kill_agent("bravo")?;
                fleet.start_agent("bravo").await?;
                "exception"
            }
            _ => {
                fleet.kill_coordinator()?;
                fleet.start_coordinator().await?;
                "completed"
            }
        };
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] == expected, "{fault}: {over:#}");
        if expected == "completed" {
            // The agent needs no coordinator, and nothing that it told is lost.
            ensure!(notices(&over).iter().any(|text| text.starts_with("ssh host keys: made anew")), "{over:#}");
            fleet.sterna(&["vm", "stop", "copy", "--force"]).await?;
            fleet.sterna(&["vm", "delete", "copy", "--delete-disks", "--yes"]).await?;
        }
        eventually(&format!("{fault}: nothing is left of the clone"), WAIT, async || {
            let agent = fleet.agent("bravo")?;
            let (processes, taps) = agent.processes_and_taps()?;
            let guests = processes.iter().filter(|name| name.starts_with("qemu")).count();
            let clean = guests == 0 && taps.is_empty() && agent.runtime_entries().is_empty();
            Ok((clean && agent.files("fast").len() == before.len()).then_some(()))
        })
        .await?;
        ensure!(files(fleet)? == before, "{fault}: the replica is not as it was");
    }
    Ok(())
}

/// The files in the replica's pool, each with a digest of what it holds.
fn files(fleet: &Fleet) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let agent = fleet.agent("bravo")?;
    let digest = |file: PathBuf| {
        let output = Command::new("sha256sum").arg(agent.pool("fast").join(&file)).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok((file, text.split_whitespace().next().context("a digest")?.to_owned()))
    };
    agent.files("fast").into_iter().map(digest).collect()
}

#[tokio::test]
async fn a_system_that_is_not_recognised_is_left_as_it_is() {
    on_fleet(not_recognised).await;
}

async fn not_recognised(fleet: &mut Fleet) -> anyhow::Result<()> {
    fleet.start_witness("alpha", &WitnessWish::small("web")).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let job = fleet.sterna(&["clone", "create", "web", "--name", "copy", "--start"]).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    ensure!(
        notices(&job).iter().any(|text| text.starts_with("the system is left as it is: no file system")),
        "{job:#}"
    );
    eprintln!("looked at in {} s", step(&job, "adapt_os").context("the step")?["seconds"]);
    // Without a helper guest there is an answer that says so, and another way.
    let configuration = fleet.agent("bravo")?.configuration();
    let text = std::fs::read_to_string(&configuration)?;
    fleet.stop_agent("bravo").await?;
    std::fs::write(&configuration, text.replace("adapter.initrd", "no-such.initrd"))?;
    fleet.start_agent("bravo").await?;
    let refused = fleet.try_sterna(&["clone", "create", "web", "--name", "other"]).await?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains("--skip-os-adaptation"), "{words}");
    let arguments = ["clone", "create", "web", "--name", "other", "--skip-os-adaptation"];
    let job = fleet.sterna(&arguments).await?;
    ensure!(job["state"] == "completed" && step(&job, "adapt_os").is_none(), "{job:#}");
    Ok(())
}
