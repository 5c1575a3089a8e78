//! Every cell of the table of `RequestStateChange` (`shared/src/job/request_state.rs`) on real jobs: each standing that a job
//! can have is brought about, each state is asked for in it, and code and new state are held against the table.
//!
//! ```text
//!   a standing ─▶ how it comes about ─▶ five jobs that stand so, one a guest ─▶ each asked for another state
//!                                                   └─ held there: an agent stands still, a slot is taken …
//!   ─▶ code = table's? ─▶ let go ─▶ the state that the table promised ─▶ all guests at home, nothing left
//! ```
//!
//! What the table says is nowhere repeated here: it is asked for its own cells.
#![allow(clippy::print_stderr, reason = "the cells are for whoever runs the test")]

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use sterna_shared::bus::{ApiReply, ApiRequest};
use sterna_shared::id::JobId;
use sterna_shared::job::{Hands, JobState, JobStatus, RequestedState, ReturnCode, STANDINGS, Verdict, verdict};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{Guest, begins};
use sterna_tests::operator::Operator;
use sterna_tests::scenario::{eventually, left_behind, on_fleet};

const WAIT: Duration = Duration::from_secs(60);
/// One guest for each state that can be asked for.
const GUESTS: [&str; RequestedState::ALL.len()] = ["one", "two", "three", "four", "five"];
/// A VM that is stopped; its move takes the slot that others wait for.
const HOLDER: &str = "holder";
const HOLDER_MIB: u64 = 16;
/// So slow that no job that is asked is at its end before the others are.
const SLOW: &str = "2MiB/s";
const SLOWER: &str = "64KiB/s";
const BALLAST_MIB: u64 = 128;
/// Above all that a guest is paused for here.
const BLACKOUT_MAX_MS: &str = "60000";
/// A time that does not come while the test runs.
const LATE: &str = "2099-01-01T00:00:00Z";
/// Attempts to stop a target's agent between the cede and its answer, which may come sooner.
const ATTEMPTS_MAX: usize = 8;
/// Numbers of no state: below and above those that there are, CIM's reserved ones, and a vendor's.
const UNKNOWN: [u16; 5] = [0, 1, 7, 32_767, u16::MAX];

type Standing = (JobState, Hands);

/// How a standing is brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Its time has not come.
    Scheduled,
    /// It is sent, and both agents stand still.
    NobodyTakesIt,
    /// It is to begin, and its source has no slot.
    NoSlot,
    /// The target's agent has it, and the source's stands still.
    SourceStandsStill,
    /// It copies.
    Copies,
    /// It has a run under way, which is a job of its own.
    Recurs,
    /// It has ceded, and the target's agent stands still.
    CededToSilence,
    /// The same, until it asks what has become of the target.
    CededAndAsks,
    /// It copied, and was suspended.
    Suspended,
    /// It copied, was suspended, and is held.
    Held,
    /// It copied, was cancelled, and the target's agent stands still: nobody says that its part is undone.
    Unwinds,
    /// It copied, was suspended, and is to go on to a target that is switched off.
    Asks,
    /// The move is over.
    Moves,
    /// It copied, and was cancelled.
    Cancelled,
    /// It copied, and was killed.
    Killed,
    /// It copied, and its target's agent died.
    Fails,
}

/// How a job comes to stand so, or why none can.
const fn way_to(state: JobState, hands: Hands) -> Result<Way, &'static str> {
    use Hands as H;
    use JobState as J;
    const OVER: &str = "a job that is over is in nobody's hands but the coordinator's (JobStatus::hands)";
    const RESTS: &str = "with that state agents are done with a job (JobStatus::rest, Held), so that it waits";
    const BEFORE: &str = "a step from which nothing is called back makes a job running (StepStarted)";
    match (state, hands) {
        (J::New, H::Coordinator) => Ok(Way::Scheduled),
        (J::New, H::Agents) => Ok(Way::NobodyTakesIt),
        (J::Starting, H::Coordinator) => Ok(Way::NoSlot),
        (J::Starting, H::Agents) => Ok(Way::SourceStandsStill),
        (J::New | J::Starting, H::Ceded) => Err(BEFORE),
        (J::Running, H::Coordinator) => Ok(Way::Recurs),
        (J::Running, H::Agents) => Ok(Way::Copies),
        (J::Running, H::Ceded) => Ok(Way::CededToSilence),
        (J::Suspended, H::Coordinator) => Ok(Way::Suspended),
        (J::Service, H::Coordinator) => Ok(Way::Held),
        (J::Suspended | J::Service, H::Agents | H::Ceded) => Err(RESTS),
        (J::ShuttingDown, H::Coordinator) => Err("only a job that agents have can be undone (Unwinding)"),
        (J::ShuttingDown, H::Agents) => Ok(Way::Unwinds),
        (J::ShuttingDown, H::Ceded) => Err("what is undone was not ceded (JobStatus::hands)"),
        (J::QueryPending, H::Coordinator) => Ok(Way::Asks),
        (J::QueryPending, H::Agents) => Err("asked after the cede or with nothing under way (Unresolved, Asked)"),
        (J::QueryPending, H::Ceded) => Ok(Way::CededAndAsks),
        (J::Completed, H::Coordinator) => Ok(Way::Moves),
        (J::Terminated, H::Coordinator) => Ok(Way::Cancelled),
        (J::Killed, H::Coordinator) => Ok(Way::Killed),
        (J::Exception, H::Coordinator) => Ok(Way::Fails),
        (J::Completed | J::Terminated | J::Killed | J::Exception, H::Agents | H::Ceded) => Err(OVER),
    }
}

/// Every state in every hands that no row of the table has.
fn outside_the_table() -> impl Iterator<Item = Standing> {
    let all = JobState::ALL
        .into_iter()
        .flat_map(|state| [Hands::Coordinator, Hands::Agents, Hands::Ceded].map(|hands| (state, hands)));
    all.filter(|standing| !STANDINGS.contains(standing))
}

#[test]
fn the_table_has_a_row_for_each_standing_that_can_be_and_for_no_other() {
    for (state, hands) in STANDINGS {
        assert!(way_to(state, hands).is_ok(), "{state}, {hands}: {:?}", way_to(state, hands));
    }
    for (state, hands) in outside_the_table() {
        let way = way_to(state, hands);
        assert!(way.is_err(), "{state}, {hands} comes about ({way:?}); give the table a row for it");
    }
}

#[tokio::test]
async fn every_request_in_every_state_that_a_job_comes_to_returns_what_the_table_says() {
    on_fleet(async |fleet| {
        let mut crew = Crew::start(fleet).await?;
        let mut run = 0;
        for standing in STANDINGS {
            let (state, hands) = standing;
            run += crew.try_all(fleet, standing).await.with_context(|| format!("{state}, {hands}"))?;
        }
        for guest in &mut crew.guests {
            guest.expect_whole().await?;
        }
        let cells = STANDINGS.len() * RequestedState::ALL.len();
        eprintln!("{run} of {cells} cells run on real jobs; not reachable, and no rows of the table:");
        for (state, hands) in outside_the_table() {
            eprintln!("  {state}, {hands}: {}", way_to(state, hands).err().unwrap_or_default());
        }
        ensure!(run == cells, "{run} of {cells} cells were run");
        Ok(())
    })
    .await;
}

/// Five guests, all at alpha between two standings, and who asks for the states of their jobs.
struct Crew {
    operator: Operator,
    guests: Vec<Guest>,
}

/// Jobs that stand as they should, and what holds them there.
#[derive(Default)]
struct Scene {
    /// One for each state that can be asked for, or one for all where none of them changes it.
    jobs: Vec<JobId>,
    /// Agents that stand still.
    still: Vec<&'static str>,
    /// The job that takes the slot.
    holder: Option<JobId>,
}

impl Crew {
    async fn start(fleet: &mut Fleet) -> anyhow::Result<Self> {
        let operator = Operator::connect(fleet).await?;
        let mut guests = Vec::new();
        for name in GUESTS {
            let wish = WitnessWish {
                memory_mib: 128,
                fill_mib: 8,
                rewrite_mib: 1,
                records: 5,
                disks: vec![("root", "fast", "raw", 8)],
                ballast: vec![("stones", "fast", "raw", BALLAST_MIB)],
                ..WitnessWish::small(name)
            };
            guests.push(Guest::start(fleet, ["alpha", "bravo"], &wish).await?);
        }
        define_holder(fleet).await?;
        fleet.sterna(&["host", "set", "bravo", "--inbound", "8"]).await?;
        fleet.sterna(&["host", "set", "alpha", "--outbound", "8"]).await?;
        Ok(Self { operator, guests })
    }

    /// The whole row of a standing; how many cells it has.
    async fn try_all(&self, fleet: &mut Fleet, standing: Standing) -> anyhow::Result<usize> {
        let since = Instant::now();
        let way = way_to(standing.0, standing.1).map_err(anyhow::Error::msg)?;
        let mut scene = self.bring_about(fleet, way).await?;
        let brought = since.elapsed();
        let mut goals = Vec::new();
        for (index, requested) in RequestedState::ALL.into_iter().enumerate() {
            let job = *scene.jobs.get(index).or(scene.jobs.last()).context("no job was brought there")?;
            if let Some(goal) = self.try_one(job, standing, requested).await? {
                goals.push((job, requested, goal));
            }
        }
        if way == Way::Copies {
            self.try_unknown(*scene.jobs.first().context("a job")?, standing).await?;
        }
        scene.go_on(fleet)?;
        if way == Way::Copies {
            for (job, ..) in goals.iter().filter(|(.., goal)| *goal == JobState::Suspended) {
                self.let_run_dry(*job).await?;
            }
        }
        for (job, requested, goal) in goals {
            let reached = self.comes_to(job, |status| status.state == goal).await;
            reached.with_context(|| format!("{requested} was begun and {goal} never reached"))?;
        }
        let asked = since.elapsed();
        self.home(fleet, &scene).await?;
        let (state, hands) = standing;
        eprintln!(
            "  {state}, {hands}: there after {:.1} s, asked after {:.1} s, at home after {:.1} s",
            brought.as_secs_f64(),
            asked.as_secs_f64(),
            since.elapsed().as_secs_f64()
        );
        Ok(RequestedState::ALL.len())
    }

    /// One cell. Where the change goes on, the state that it is to come to.
    async fn try_one(
        &self,
        job: JobId,
        standing: Standing,
        requested: RequestedState,
    ) -> anyhow::Result<Option<JobState>> {
        let (state, hands) = standing;
        let before = self.operator.status(job).await?;
        ensure!(stands(&before) == standing, "{requested}: the job is {:?} before it is asked", stands(&before));
        let expected @ Verdict { code, goal } = verdict(state, hands, requested);
        let (returned, after) = self.operator.request_state(job, requested.number()).await?;
        ensure!(returned == code, "{requested} returned {returned:?} ({}), not {expected:?}", after.state);
        let told = goal.map_or_else(|| "no change".to_owned(), |goal| goal.to_string());
        eprintln!("{state}, {hands}: {requested} ({}) → {}, {told}", requested.number(), code.number());
        match goal {
            Some(goal) if goal == state => {}
            None => {}
            Some(goal) if code == ReturnCode::Completed => {
                ensure!(after.state == goal, "{requested} is done, and the job is {}", after.state);
                return Ok(None);
            }
            Some(goal) => return Ok(Some(goal)),
        }
        let later = self.operator.status(job).await?;
        for now in [&after, &later] {
            ensure!(stands(now) == standing, "{requested} changes nothing, and the job is {:?}", stands(now));
        }
        Ok(None)
    }

    /// Numbers that are no states.
    async fn try_unknown(&self, job: JobId, standing: Standing) -> anyhow::Result<()> {
        for number in UNKNOWN {
            let (returned, after) = self.operator.request_state(job, number).await?;
            ensure!(returned == ReturnCode::InvalidParameter, "{number} returned {returned:?}");
            ensure!(stands(&after) == standing, "{number} made the job {:?}", stands(&after));
            eprintln!("{}, {}: {number} → {}, no such state", standing.0, standing.1, returned.number());
        }
        Ok(())
    }

    async fn bring_about(&self, fleet: &mut Fleet, way: Way) -> anyhow::Result<Scene> {
        use RequestedState as R;
        let jobs = match way {
            Way::Scheduled => self.begin(fleet, &["--at", LATE]).await?,
            Way::NobodyTakesIt => return self.not_taken(fleet, &["alpha", "bravo"], JobState::New).await,
            Way::SourceStandsStill => return self.not_taken(fleet, &["alpha"], JobState::Starting).await,
            Way::NoSlot => return self.without_a_slot(fleet).await,
            Way::Copies => self.copying(fleet).await?,
            Way::Recurs => {
                let jobs = self.begin(fleet, &["--start", "03:00", "--times", "3", "--zone", "UTC"]).await?;
                self.ask_all(&jobs, R::Start, JobState::Running).await?;
                jobs
            }
            Way::CededToSilence => return self.ceded(fleet).await,
            Way::CededAndAsks => {
                let scene = self.ceded(fleet).await?;
                self.all_come_to(&scene.jobs, JobState::QueryPending).await?;
                return Ok(scene);
            }
            Way::Suspended | Way::Held | Way::Asks => {
                let jobs = self.copying(fleet).await?;
                self.ask_all(&jobs, R::Suspend, JobState::Suspended).await?;
                if way == Way::Held {
                    self.ask_all(&jobs, R::Service, JobState::Service).await?;
                }
                if way == Way::Asks {
                    fleet.sterna(&["host", "set", "bravo", "--migration", "off"]).await?;
                    self.ask_all(&jobs, R::Start, JobState::QueryPending).await?;
                }
                jobs
            }
            Way::Unwinds => {
                let scene = Scene { jobs: self.copying(fleet).await?, ..Scene::default() };
                let scene = scene.stand_still(fleet, &["bravo"])?;
                self.ask_all(&scene.jobs, R::Terminate, JobState::ShuttingDown).await?;
                return Ok(scene);
            }
            Way::Moves => {
                let job = self.guests[0].move_to(fleet, "bravo").await?;
                vec![job["job"].as_str().context("the job has no id")?.parse()?]
            }
            Way::Cancelled => {
                let jobs = self.one_copying(fleet).await?;
                self.ask_all(&jobs, R::Terminate, JobState::Terminated).await?;
                jobs
            }
            Way::Killed => {
                let jobs = self.one_copying(fleet).await?;
                self.ask_all(&jobs, R::Kill, JobState::Killed).await?;
                jobs
            }
            Way::Fails => {
                let jobs = self.one_copying(fleet).await?;
                fleet.kill_agent("bravo")?;
                // Until it is back the source waits for it.
                fleet.start_agent("bravo").await?;
                self.all_come_to(&jobs, JobState::Exception).await?;
                jobs
            }
        };
        Ok(Scene { jobs, ..Scene::default() })
    }

    /// Jobs that were sent while agents stand still.
    async fn not_taken(&self, fleet: &Fleet, still: &[&'static str], state: JobState) -> anyhow::Result<Scene> {
        let scene = Scene::default().stand_still(fleet, still)?;
        let jobs = self.begin(fleet, &[]).await?;
        for job in &jobs {
            self.comes_to(*job, |status| stands(status) == (state, Hands::Agents)).await?;
        }
        Ok(Scene { jobs, ..scene })
    }

    /// Jobs that are to begin while another has the only slot of their source.
    async fn without_a_slot(&self, fleet: &Fleet) -> anyhow::Result<Scene> {
        fleet.sterna(&["host", "set", "alpha", "--outbound", "1"]).await?;
        let holder = fleet.sterna(&["migrate", HOLDER, "--to", "bravo", "--bandwidth", SLOWER, "--detach"]).await?;
        let holder = holder["job"].as_str().context("the job has no id")?.parse()?;
        self.comes_to(holder, |status| status.state == JobState::Running).await?;
        let jobs = self.begin(fleet, &[]).await?;
        self.ask_all(&jobs, RequestedState::Start, JobState::Starting).await?;
        Ok(Scene { jobs, holder: Some(holder), ..Scene::default() })
    }

    /// A job whose target's agent stands still between the cede and its answer.
    async fn ceded(&self, fleet: &Fleet) -> anyhow::Result<Scene> {
        let guest = &self.guests[0];
        for _ in 0..ATTEMPTS_MAX {
            let source = guest.settled_at(fleet, WAIT).await?;
            let target = guest.other(&source);
            let job = guest.begin_move(fleet, target, &["--max-blackout", BLACKOUT_MAX_MS]).await?;
            begins(fleet, &source, &job, "ceding").await?;
            let scene = Scene::default().stand_still(fleet, &[target])?;
            let job = job.parse()?;
            let ceded = |status: &JobStatus| status.hands() == Hands::Ceded || status.state.is_final();
            let state = self.comes_to(job, ceded).await?.state;
            if state == JobState::Running {
                return Ok(Scene { jobs: vec![job], ..scene });
            }
            scene.go_on_with(fleet)?;
            eprintln!("the job was {state} before its target's agent was seen to stand still");
        }
        bail!("the target always answered too soon")
    }

    async fn copying(&self, fleet: &Fleet) -> anyhow::Result<Vec<JobId>> {
        let jobs = self.begin(fleet, &[]).await?;
        self.all_copy(fleet, &jobs).await?;
        Ok(jobs)
    }

    async fn one_copying(&self, fleet: &Fleet) -> anyhow::Result<Vec<JobId>> {
        let jobs = vec![begin_slow(fleet, &self.guests[0], &[]).await?];
        self.all_copy(fleet, &jobs).await?;
        Ok(jobs)
    }

    async fn all_copy(&self, fleet: &Fleet, jobs: &[JobId]) -> anyhow::Result<()> {
        for job in jobs {
            begins(fleet, "alpha", &job.to_string(), "copy_disks").await?;
        }
        self.all_come_to(jobs, JobState::Running).await
    }

    /// Asks for a move of every guest, each so slow that it is under way for as long as it is needed.
    async fn begin(&self, fleet: &Fleet, more: &[&str]) -> anyhow::Result<Vec<JobId>> {
        let mut jobs = Vec::new();
        // One after the other: on a machine with little to spare the broker drops handshakes that come all at once.
        for guest in &self.guests {
            jobs.push(begin_slow(fleet, guest, more).await?);
        }
        Ok(jobs)
    }

    /// Asks for a state, and waits for what comes of it.
    async fn ask_all(&self, jobs: &[JobId], requested: RequestedState, state: JobState) -> anyhow::Result<()> {
        for job in jobs {
            let (returned, _) = self.operator.request_state(*job, requested.number()).await?;
            let taken = matches!(returned, ReturnCode::Completed | ReturnCode::Started);
            ensure!(taken, "{requested}, on the way there, returned {returned:?}");
            if requested == RequestedState::Suspend {
                self.let_run_dry(*job).await?;
            }
        }
        self.all_come_to(jobs, state).await
    }

    /// What a job that is being suspended has on its way need not take as long as its rate says. It has the rate again when
    /// it goes on.
    async fn let_run_dry(&self, job: JobId) -> anyhow::Result<()> {
        match self.operator.ask(ApiRequest::JobBandwidth { job, bandwidth: None }).await? {
            ApiReply::Done => Ok(()),
            other => bail!("the rate of job {job} is not lifted: {other:?}"),
        }
    }

    async fn all_come_to(&self, jobs: &[JobId], state: JobState) -> anyhow::Result<()> {
        for job in jobs {
            self.comes_to(*job, |status| status.state == state).await.with_context(|| format!("to {state}"))?;
        }
        Ok(())
    }

    async fn comes_to(&self, job: JobId, there: impl Fn(&JobStatus) -> bool) -> anyhow::Result<JobStatus> {
        let come = eventually("what the job is to come to", WAIT, async || {
            let status = self.operator.status(job).await?;
            Ok(there(&status).then_some(status))
        });
        match come.await {
            Ok(status) => Ok(status),
            Err(error) => Err(error.context(format!("{:#?}", self.operator.status(job).await?))),
        }
    }

    /// Ends what is left of the jobs and of what held them; all guests are at alpha again, and bravo has nothing of them.
    async fn home(&self, fleet: &Fleet, scene: &Scene) -> anyhow::Result<()> {
        for host in ["alpha", "bravo"] {
            fleet.sterna(&["host", "set", host, "--migration", "on", "--outbound", "8", "--inbound", "8"]).await?;
        }
        for job in scene.jobs.iter().chain(&scene.holder) {
            if self.operator.status(*job).await?.hands() != Hands::Ceded {
                self.operator.request_state(*job, RequestedState::Terminate.number()).await?;
            }
        }
        for job in scene.jobs.iter().chain(&scene.holder) {
            self.comes_to(*job, |status| status.state.is_final()).await?;
        }
        for guest in &self.guests {
            guest.hosts_online(fleet, WAIT).await?;
            if guest.settled_at(fleet, WAIT).await? != "alpha" {
                guest.move_to(fleet, "alpha").await?;
            }
        }
        eventually("nothing is left at bravo", WAIT, async || Ok(left_behind(fleet, "bravo")?.is_empty().then_some(())))
            .await
    }
}

impl Scene {
    fn stand_still(mut self, fleet: &Fleet, hosts: &[&'static str]) -> anyhow::Result<Self> {
        signal(fleet, hosts, Signal::STOP)?;
        self.still.extend(hosts);
        Ok(self)
    }

    fn go_on(&mut self, fleet: &Fleet) -> anyhow::Result<()> {
        signal(fleet, &std::mem::take(&mut self.still), Signal::CONT)
    }

    fn go_on_with(mut self, fleet: &Fleet) -> anyhow::Result<()> {
        self.go_on(fleet)
    }
}

fn signal(fleet: &Fleet, hosts: &[&str], signal: Signal) -> anyhow::Result<()> {
    for host in hosts {
        fleet.agent(host)?.process().with_context(|| format!("the agent of {host} runs"))?.signal(signal)?;
    }
    Ok(())
}

fn stands(status: &JobStatus) -> Standing {
    (status.state, status.hands())
}

async fn begin_slow(fleet: &Fleet, guest: &Guest, more: &[&str]) -> anyhow::Result<JobId> {
    let slow = ["--bandwidth", SLOW, "--max-blackout", BLACKOUT_MAX_MS];
    Ok(guest.begin_move(fleet, "bravo", &[&slow, more].concat()).await?.parse()?)
}

async fn define_holder(fleet: &Fleet) -> anyhow::Result<()> {
    let id = uuid::Uuid::new_v4();
    let specification = format!(
        "name = \"{HOLDER}\"\nid = \"{id}\"\nmemory = \"16 MiB\"\n\n\
         [[disk]]\nname = \"root\"\npool = \"fast\"\nformat = \"raw\"\nsize = \"{HOLDER_MIB} MiB\"\n"
    );
    fleet.define("alpha", HOLDER, &specification).await?;
    let image = fleet.agent("alpha")?.pool("fast").join(id.to_string()).join("root.raw");
    let mut file = std::fs::OpenOptions::new().write(true).open(image)?;
    std::io::copy(&mut std::fs::File::open("/dev/urandom")?.take(HOLDER_MIB << 20), &mut file)?;
    Ok(())
}
