//! Rehearsals: a clone is booted where it is alone, probed, and deleted. Whatever comes of it nothing is left, and the replica, the
//! source and the next cycle are as if there had been none.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sterna_shared::bus::{ApiReply, ApiRequest};
use sterna_shared::id::JobId;
use sterna_shared::job::{MoveRequest, Policy, Schedule};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended, step};
use sterna_tests::operator::Operator;
use sterna_tests::replicas::{cycle, detached, expect_nothing_more, expect_recorded, replica};
use sterna_tests::scenario::{Watched, eventually, on_fleet};
use sterna_witness::protocol::DEFAULT_PORT;

const WAIT: Duration = Duration::from_secs(120);
/// What the operators of the host have for its guests: one asks the witness, and the other is never content.
const PROBE_COMMANDS: &str = r#"
[probe_commands]
greets = ["/bin/bash", "-c", 'exec 3<>"/dev/tcp/$STERNA_ADDRESS/$STERNA_PORT" && echo hello >&3 && read -r line <&3 && [[ $line == *boot_id* ]]']
locked = ["/bin/sh", "-c", 'echo "the orders of $STERNA_VM are locked" >&2; exit 3']
"#;
/// Nobody in the guest listens there.
const CLOSED_PORT: &str = "tcp:9";

fn wish() -> WitnessWish {
    WitnessWish {
        lockstep: true,
        guest_agent: true,
        // Each alters a granule of its own: with more of them the disks would have changed altogether before the next cycle.
        records: 2,
        disks: vec![("root", "fast", "qcow2", 64), ("data", "bulk", "qcow2", 64)],
        ..WitnessWish::small("web")
    }
}

/// A witness that is replicated.
struct Rehearsed {
    /// Its address, which it has in its own network too.
    address: String,
    /// Its replica, which no rehearsal changes.
    replica: Value,
}

impl Rehearsed {
    fn command<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let base = ["clone", "rehearse", "web", "--skip-os-adaptation", "--address", &self.address, "--detach"];
        [&base, more].concat()
    }

    /// Begins one, and gives its id.
    async fn begin(&self, fleet: &Fleet, more: &[&str]) -> anyhow::Result<String> {
        detached(fleet, &self.command(more)).await
    }

    /// It ends so, and leaves nothing.
    async fn ends(&self, fleet: &Fleet, at: &str, job: &str, state: &str) -> anyhow::Result<Value> {
        let over = ended(fleet, job, WAIT).await.with_context(|| at.to_owned())?;
        ensure!(over["state"] == state, "{at}: {over:#}");
        expect_nothing_more(fleet, at, &self.replica).await?;
        eprintln!("{at}: {state}");
        Ok(over)
    }
}

#[tokio::test]
async fn a_replica_is_rehearsed_and_nothing_is_left_whatever_falls_out() {
    on_fleet(rehearsals).await;
}

async fn rehearsals(fleet: &mut Fleet) -> anyhow::Result<()> {
    let folder = fleet.folder().to_owned();
    fleet.equip("bravo", &folder, PROBE_COMMANDS).await?;
    let mut web = Watched::start(fleet, "alpha", &wish()).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let replica = replica(fleet, "web").await?.context("there is a replica")?;
    let web_at = Rehearsed { address: format!("{}/24", web.address), replica };
    healthy(fleet, &web_at).await?;
    unhealthy(fleet, &web_at).await?;
    cut(fleet, &web_at).await?;
    again_and_again(fleet, &web_at).await?;
    expect_recorded(fleet, "after all rehearsals", "alpha", &[]).await?;
    web.prove().await
}

async fn healthy(fleet: &Fleet, web: &Rehearsed) -> anyhow::Result<()> {
    let (port, command) = (format!("tcp:{DEFAULT_PORT}"), format!("command:greets:{DEFAULT_PORT}"));
    let unknown = fleet.try_sterna(&web.command(&["--probe", "command:mail:25"])).await?;
    let refused = String::from_utf8_lossy(&unknown.stderr);
    ensure!(!unknown.status.success() && refused.contains("host bravo has no probe command mail"), "{refused}");
    let probes = ["--probe", &port, "--probe", "agent", "--probe", "console:WITNESS READY", "--probe", &command];
    let job = web.begin(fleet, &probes).await?;
    let over = web.ends(fleet, "a healthy guest", &job, "completed").await?;
    let healthy = step(&over, "probe").and_then(|step| step["healthy_ms"].as_u64()).context("a figure")?;
    eprintln!("healthy {healthy} ms after its start");
    for probe in [port.as_str(), "agent", "console:WITNESS READY", &command] {
        ensure!(noticed(&over, &format!("probe {probe}: answered")), "{over:#}");
    }
    Ok(())
}

/// Probes that are not answered are told with what they saw, and those that are beside them.
async fn unhealthy(fleet: &Fleet, web: &Rehearsed) -> anyhow::Result<()> {
    let (port, page) = (format!("tcp:{DEFAULT_PORT}"), format!("http:{DEFAULT_PORT}/"));
    let command = format!("command:locked:{DEFAULT_PORT}");
    let probes = [&port, CLOSED_PORT, &page, &command].map(|probe| ["--probe", probe]).concat();
    let probes = [&probes, &["--probe-timeout", "25s"][..]].concat();
    let job = web.begin(fleet, &probes).await?;
    begins(fleet, "bravo", &job, "probe").await?;
    for taken in [&["vm", "stop", "web-rehearsal", "--force"][..], &["migrate", "web-rehearsal", "--to", "alpha"]] {
        let refused = fleet.try_sterna(taken).await?;
        ensure!(!refused.status.success(), "{taken:?} was not refused");
    }
    let over = web.ends(fleet, "a guest that is not", &job, "exception").await?;
    let failure = &over["failure"];
    let message = failure["message"].as_str().unwrap_or_default();
    let wanted = format!("probe {CLOSED_PORT} was not answered within 25 s of the guest's start: the guest refuses");
    ensure!(failure["code"] == "unhealthy" && message.contains(&wanted), "{over:#}");
    ensure!(failure["remedy"].to_string().contains("--probe-timeout"), "{over:#}");
    for text in [
        format!("probe {port}: answered"),
        format!("probe {page}: not answered"),
        "exit status: 3: the orders of web-rehearsal are locked".to_owned(),
        "its console ends".to_owned(),
    ] {
        ensure!(noticed(&over, &text), "{text}: {over:#}");
    }
    Ok(())
}

/// Cancelled, or left by its agent or the coordinator, in each step.
async fn cut(fleet: &mut Fleet, web: &Rehearsed) -> anyhow::Result<()> {
    let never = ["--probe", CLOSED_PORT, "--probe-timeout", "10m"];
    for moment in ["clone_disks", "instantiate", "probe"] {
        let job = web.begin(fleet, &never).await?;
        begins(fleet, "bravo", &job, moment).await?;
        fleet.sterna(&["job", "cancel", &job]).await?;
        web.ends(fleet, &format!("cancelled in {moment}"), &job, "terminated").await?;

        let job = web.begin(fleet, &never).await?;
        begins(fleet, "bravo", &job, moment).await?;
        fleet.replace_agent("bravo").await?;
        let over = web.ends(fleet, &format!("its agent killed in {moment}"), &job, "exception").await?;
        ensure!(over["failure"]["code"] == "agent_restarted", "{over:#}");
    }
    let job = web.begin(fleet, &["--probe", "console:WITNESS READY"]).await?;
    begins(fleet, "bravo", &job, "probe").await?;
    fleet.replace_coordinator().await?;
    web.ends(fleet, "the coordinator killed in probe", &job, "completed").await.map(drop)
}

/// Each run of one that recurs is a job of its own, and makes a VM of its own.
async fn again_and_again(fleet: &Fleet, web: &Rehearsed) -> anyhow::Result<()> {
    let rehearsal = json!({ "probes": ["console:WITNESS READY"] });
    let clone = json!({
        "id": "0197c0de-0000-7000-8000-0000000000c1", "name": "again", "start": true, "skip_os_adaptation": true,
        "rehearsal": rehearsal,
    });
    let request: MoveRequest = serde_json::from_value(json!({ "kind": "rehearse", "vm": "web", "clone": clone }))?;
    let schedule = Schedule { run_times: 2, ..Schedule::after_pauses(1) };
    let policy = Box::new(Policy { schedule: Some(schedule), ..Policy::default() });
    let job = JobId::from_uuid(uuid::Uuid::now_v7());
    let reply =
        Operator::connect(fleet).await?.ask(ApiRequest::Migrate { request, dry_run: false, job, policy }).await?;
    ensure!(!matches!(reply, ApiReply::Error { .. }), "{reply:?}");
    let job = job.to_string();
    web.ends(fleet, "again and again", &job, "completed").await?;
    let made = eventually("its runs are told", WAIT, async || {
        let jobs = fleet.sterna(&["job", "list"]).await?;
        let runs =
            jobs.as_array().into_iter().flatten().filter(|run| run["vm"]["name"] == "again" && run["job"] != job);
        let made: std::collections::BTreeSet<String> =
            runs.filter(|run| run["state"] == "completed").map(|run| run["vm"]["id"].to_string()).collect();
        Ok((made.len() == 2).then_some(made))
    })
    .await?;
    eprintln!("made {made:?}");
    Ok(())
}

fn noticed(job: &Value, text: &str) -> bool {
    let notices = job["notices"].as_array().into_iter().flatten();
    notices.into_iter().any(|notice| notice["text"].as_str().is_some_and(|said| said.contains(text)))
}
