//! What people and programs see of a move: the watched job, the list of jobs, and the feed by a client of another kind.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::scenario::{Watched, on_fleet};
use sterna_tests::schema::{FeedSchemas, Schema};
use tokio::sync::watch;

const FEED_WAIT: Duration = Duration::from_secs(30);
const STEPS: [&str; 7] = ["prepare", "copy_disks", "copy_memory", "switchover", "prove", "handover", "release"];

#[tokio::test]
async fn a_move_is_seen_by_the_watcher_the_list_and_the_feed() {
    on_fleet(watched_move).await;
}

async fn watched_move(fleet: &mut Fleet) -> anyhow::Result<()> {
    let wish = WitnessWish { rewrite_mib: 1, records: 10, ..WitnessWish::small("witness") };
    let mut watched = Watched::start(fleet, "alpha", &wish).await?;
    let feed = Subscriber::start(fleet, "sterna.v1.feed.>")?;
    feed.wait_for("being subscribed", |said| said.subscribed).await?;

    // A rate at which the copies take some seconds, so that there is something to watch.
    let arguments =
        ["migrate", "witness", "--to", "bravo", "--bandwidth", "24MiB/s", "--max-blackout", "10000", "--detach"];
    let job = fleet.sterna(&arguments).await?["job"].as_str().context("a job")?.to_owned();
    let output = fleet.try_sterna(&["--output", "json", "job", "watch", &job]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let views: Vec<Value> =
        String::from_utf8(output.stdout)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    expect_watched(&views)?;
    watched.prove().await?;

    // For people the same, in words: every step's start and end are told.
    let arguments = ["migrate", "witness", "--to", "alpha", "--bandwidth", "24MiB/s", "--max-blackout", "10000"];
    let output = fleet.try_sterna(&arguments).await?;
    let told = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{told}");
    for step in STEPS {
        ensure!(told.contains(&format!("{step} finished after ")), "{step} is not told:\n{told}");
    }
    ensure!(told.contains("MiB/s") || told.contains("KiB/s") || told.contains("B/s"), "no rate is told:\n{told}");
    let summary = String::from_utf8(output.stdout)?;
    ensure!(summary.contains("moved to alpha") && summary.contains("blackout"), "{summary}");
    watched.prove().await?;

    // `job list` is one JSON document, newest first; `job show` has each step in a row of its table.
    let output = fleet.try_sterna(&["--output", "json", "job", "list"]).await?;
    let jobs: Value = serde_json::from_slice(&output.stdout)?;
    let jobs = jobs.as_array().context("a list")?;
    ensure!(
        jobs.len() == 2 && jobs[1]["job"] == *job && jobs.iter().all(|job| job["state"] == "completed"),
        "{jobs:#?}"
    );
    let shown = fleet.try_sterna(&["job", "show", &job]).await?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(STEPS.iter().all(|step| shown.contains(step)), "{shown}");
    eprintln!("{shown}");

    // The same job as CIM has it, by the numbers of its class; in XML it is one instance.
    let cim = fleet.try_sterna(&["--output", "cim", "job", "show", &job]).await?;
    let cim: Value = serde_json::from_slice(&cim.stdout).context("the CIM face is JSON")?;
    ensure!(
        cim["JobState"] == 7 && cim["JobType"] == 306 && cim["PercentComplete"] == 100 && cim["ErrorCode"] == 0,
        "{cim:#}"
    );
    Schema::read("migration-job")?.expect(&cim)?;
    ensure!(cim["DestinationHost"] == "bravo" && cim["InstanceID"] == format!("Sterna:{job}"), "{cim:#}");
    let xml = fleet.try_sterna(&["--output", "cim-xml", "job", "show", &job]).await?;
    let xml = String::from_utf8(xml.stdout)?;
    ensure!(xml.starts_with("<INSTANCE CLASSNAME=\"Msvm_MigrationJob\">") && xml.contains(&job), "{xml}");

    let said = feed
        .wait_for("the end of the job", |said| said.of_job(&job).any(|message| message["body"]["state"] == "completed"))
        .await?;
    expect_feed(&said, &job)
}

/// The documents of `job watch`: each step begins, ends, and has its figures; progress with rate and estimate on the way.
fn expect_watched(views: &[Value]) -> anyhow::Result<()> {
    let last = views.last().context("a document")?;
    ensure!(last["state"] == "completed" && last["percent"] == 100.0, "{last:#}");
    let steps = last["steps"].as_array().context("steps")?;
    let names: Vec<&str> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    ensure!(names == STEPS, "{names:?}");
    for step in steps {
        let at = |field: &str| step[field].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let (started, finished) = (at("started_at").context("a start")?, at("finished_at").context("an end")?);
        ensure!(step["state"] == "finished" && started <= finished && step["seconds"].is_number(), "{step:#}");
        ensure!(step["host"] == "alpha", "the source reports: {step:#}");
        if step["step"] == "copy_disks" || step["step"] == "copy_memory" {
            let number = |field: &str| step[field].as_u64().unwrap_or(0);
            let figures = ["bytes_total", "bytes_sent", "bytes_per_second", "passes"].map(number);
            ensure!(figures.iter().all(|figure| *figure > 0), "{step:#}");
        }
    }
    let schema = Schema::read("job")?;
    views.iter().try_for_each(|view| schema.expect(view))?;
    let percents: Vec<f64> = views.iter().filter_map(|view| view["percent"].as_f64()).collect();
    let progress: Vec<&Value> =
        views.iter().map(|view| &view["progress"]).filter(|progress| progress.is_object()).collect();
    // The percentage keeps its highest value whatever is told; the figures below it are as the source tells them.
    for (volume, figure) in
        ["disk", "memory"].iter().flat_map(|of| ["done", "redone", "dirtied"].map(|what| (of, what)))
    {
        let told: Vec<u64> = progress.iter().filter_map(|progress| progress[volume][figure].as_u64()).collect();
        ensure!(told.len() == progress.len() && told.is_sorted(), "{figure} of {volume} runs backwards: {told:?}");
    }
    let has = |field: &str| progress.iter().any(|progress| progress[field].as_u64().is_some_and(|number| number > 0));
    eprintln!("{} documents, {} with progress; percent {percents:?}", views.len(), progress.len());
    ensure!(has("bytes_per_second"), "no rate: {progress:#?}");
    ensure!(has("remaining_seconds"), "no estimate: {progress:#?}");
    // A step that is over between two tellings is told by its event alone: the disks of a small guest may be.
    ensure!(progress.iter().any(|progress| progress["step"] == "copy_memory"), "no progress: {progress:#?}");
    let volume = |what: &&str| progress.iter().any(|progress| progress[*what]["total"].as_u64() > Some(0));
    ensure!(["disk", "memory"].iter().all(volume), "progress of both copies: {progress:#?}");
    Ok(())
}

/// The feed told of the job, both hosts and the VM, each message a CloudEvent whose body is as its schema says.
fn expect_feed(said: &Said, job: &str) -> anyhow::Result<()> {
    let schemas = FeedSchemas::read()?;
    for message in &said.messages {
        schemas.expect(message["subject"].as_str().context("a subject")?, &message["body"])?;
        let headers = &message["headers"];
        ensure!(
            headers["ce-specversion"] == "1.0" && headers["ce-datacontenttype"] == "application/json",
            "{message:#}"
        );
        ensure!(headers["ce-type"].as_str().is_some_and(|kind| kind.starts_with("sterna.v1.")), "{message:#}");
    }
    let ids: BTreeSet<&str> = said.messages.iter().filter_map(|message| message["headers"]["ce-id"].as_str()).collect();
    ensure!(ids.len() == said.messages.len(), "an id is there twice");
    let of_job: Vec<&Value> = said.of_job(job).collect();
    let states: BTreeSet<&str> = of_job.iter().filter_map(|message| message["body"]["state"].as_str()).collect();
    ensure!(states.contains("running") && states.contains("completed"), "{states:?}");
    ensure!(of_job.iter().any(|message| message["body"]["progress"]["bytes_per_second"].as_u64() > Some(0)), "a rate");
    let last = of_job.last().context("a message of the job")?;
    let steps = last["body"]["steps"].as_array().context("steps")?;
    ensure!(steps.iter().all(|step| step["state"] == "finished" && step["seconds"].is_number()), "{last:#}");
    let subjects: BTreeSet<&str> = said.messages.iter().filter_map(|message| message["subject"].as_str()).collect();
    eprintln!("{} messages of the feed on {subjects:?}", said.messages.len());
    ensure!(subjects.iter().any(|subject| subject.starts_with("sterna.v1.feed.vm.")), "{subjects:?}");
    ensure!(subjects.iter().any(|subject| subject.starts_with("sterna.v1.feed.host.")), "{subjects:?}");
    Ok(())
}

/// A subscriber that shares no code with Sterna or its client library. It ends when this is dropped.
struct Subscriber {
    child: Child,
    said: watch::Receiver<Said>,
}

#[derive(Debug, Clone, Default)]
struct Said {
    subscribed: bool,
    messages: Vec<Value>,
    fault: Option<String>,
}

impl Said {
    fn of_job(&self, job: &str) -> impl Iterator<Item = &Value> {
        let subject = format!("sterna.v1.feed.job.{job}");
        self.messages.iter().filter(move |message| message["subject"] == *subject)
    }

    fn take(&mut self, line: &str, key: &nkeys::KeyPair, answers: &mut ChildStdin) -> anyhow::Result<()> {
        if let Some(nonce) = line.strip_prefix("nonce ") {
            writeln!(answers, "{}", base64_url(&key.sign(nonce.as_bytes())?))?;
        } else if line == "subscribed" {
            self.subscribed = true;
        } else {
            self.messages.push(serde_json::from_str(line)?);
        }
        Ok(())
    }
}

impl Subscriber {
    fn start(fleet: &Fleet, subject: &str) -> anyhow::Result<Self> {
        let seed = std::fs::read_to_string(fleet.folder().join("nats/nkeys/operator-admin.nk"))?;
        let key = nkeys::KeyPair::from_seed(seed.trim())?;
        let address = fleet.nats.address();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/feed_subscriber.py");
        let mut child = fleet
            .control
            .command("python3")
            .arg(script)
            .args([address.ip().to_string(), address.port().to_string()])
            .arg(fleet.folder().join("pki/ca.pem"))
            .args([key.public_key().as_str(), subject])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("python3 cannot be run: it is of the Debian package python3")?;
        let (mut answers, output) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let (sender, said) = watch::channel(Said::default());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                sender.send_modify(|said| {
                    let taken = said.take(&line, &key, &mut answers);
                    said.fault = taken.err().map(|error| format!("{line}: {error:#}")).or(said.fault.take());
                });
            }
        });
        Ok(Self { child, said })
    }

    async fn wait_for(&self, what: &str, mut wanted: impl FnMut(&Said) -> bool) -> anyhow::Result<Said> {
        let mut said = self.said.clone();
        let there = said.wait_for(|said| said.fault.is_some() || wanted(said));
        let said = match tokio::time::timeout(FEED_WAIT, there).await {
            Ok(Ok(said)) => said.clone(),
            Ok(Err(_)) => bail!("the subscriber ended before {what}: {:#?}", self.said.borrow().messages.last()),
            Err(_) => bail!("no {what} within {FEED_WAIT:?}: {:#?}", self.said.borrow().messages.last()),
        };
        ensure!(said.fault.is_none(), "{said:?}");
        Ok(said)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Base64 with the letters for addresses and no padding, as the server wants a signature.
fn base64_url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let letters = (0..=chunk.len()).map(|at| LETTERS[(word >> (18 - 6 * at) & 63) as usize]);
        text.extend(letters.map(char::from));
    }
    text
}
