//! The service: follows until the lease is its own, then leads until it is lost.
//!
//! ```text
//!   run ── follow ◀──── lease lost, broker in trouble ────┐
//!            │ lease won: epoch e                         │
//!            ▼                                            │
//!          lead:  replay STERNA_EVT ▶ ask every agent's journal ▶ offer the API
//!                 loop { select() ──Event──▶ state.apply() ──Action──▶ perform }
//! ```
//!
//! One task owns the state: `select` waits, `state::State::apply` changes, and nothing else does. What must be kept
//! in order (events, commands, buckets, the answers that depend on them) goes through one further task over a bounded
//! queue. That task gives up when the broker does; the service then follows anew and rebuilds, so that there is one way
//! to recover and it is used often.

mod check;
mod check_jobs;
mod desk;
mod failover;
mod feeds;
mod google;
mod hosts;
mod keeper;
mod lifetime;
mod list;
mod methods;
mod perform;
mod queue;
mod replicas;
mod request;
mod resolve;
mod runs;
mod sent;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

use sterna_shared::bus::{BODY_LENGTH_MAX, Envelope, HostView, Subject};
use sterna_shared::id::Epoch;
use sterna_shared::job::{Event as JobEvent, JobStatus, Plan, Progress, Reporter};
use sterna_shared::time::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::bus::{Bus, BusError, Inbox};
use crate::config::Config;
use crate::fleet::{Fleet, HOSTS_MAX};
use crate::store::{Bucket, Store};
use desk::Desk;
use state::{Event, Now, State};

/// How often the service looks at its clock, and tells the watchdog that it lives.
pub const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// How long it rests before leading again after the broker failed it.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What the lease says: the epoch we lead in, and until when.
type Standing = Option<(Epoch, Instant)>;

/// Runs a coordinator until `shutdown` ends. `beat` is called about once a second while it lives, first when it is
/// ready, or waits for the broker.
///
/// # Errors
/// [`BusError`] where a key cannot be read or the broker is too old; its absence is waited out.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>, beat: impl Fn()) -> Result<(), BusError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let (bus, store) = loop {
        let opened = tokio::select! {
            opened = open(&config) => opened,
            () = &mut shutdown => return Ok(()),
        };
        match opened {
            // Started before the broker, or before the broker was told of this coordinator's key.
            Err(error @ (BusError::Connect { .. } | BusError::Server { .. })) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "waiting for the broker");
                beat();
                tokio::time::sleep(RESTART_PAUSE).await;
            }
            opened => break opened?,
        }
    };
    let clock = Clock { start: Instant::now() };
    let (floor, floor_seen) = watch::channel(Epoch(0));
    let (standing_set, standing) = watch::channel(None);
    let (stop, stopped) = watch::channel(false);
    // In a set, so that it ends with this future also where that is dropped: nobody renews a lease for a dead service.
    let mut keeper = tokio::task::JoinSet::new();
    keeper.spawn(keeper::keep(config.name.clone(), store.clone(), clock, floor_seen, standing_set, stopped));
    let mut service = Service {
        heartbeats: bus.listen(Subject::HOSTS).await?,
        fleet: remembered(&store).await?,
        config,
        bus,
        store,
        clock,
        floor,
        standing,
    };
    beat();
    tokio::select! {
        () = service.serve(&beat) => {}
        () = &mut shutdown => tracing::info!("stopping"),
    }
    // The lease is laid down, so that another coordinator need not wait for it to run out.
    let _ = stop.send(true);
    if let Some(Err(error)) = keeper.join_next().await {
        tracing::error!(%error, "the keeper of the lease ended badly");
    }
    service.bus.flush().await
}

async fn open(config: &Config) -> Result<(Bus, Store), BusError> {
    let bus = Bus::connect(&config.nats, config.name.as_str()).await?;
    let store = Store::open(&bus, config.retention).await?;
    Ok((bus, store))
}

/// Monotonic and wall clock, read in one place.
#[derive(Debug, Clone, Copy)]
struct Clock {
    start: Instant,
}

impl Clock {
    // The one place that reads the wall clock: for display, and to hold certificates against.
    #[allow(clippy::disallowed_methods)]
    fn now(self) -> Now {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let at = Timestamp::from_unix_microseconds(i64::try_from(wall.as_micros()).unwrap_or(i64::MAX));
        Now { at, clock: self.start.elapsed() }
    }

    fn instant(self, clock: Duration) -> Instant {
        self.start + clock
    }
}

struct Service {
    config: Config,
    bus: Bus,
    store: Store,
    clock: Clock,
    heartbeats: Inbox,
    /// Kept warm while following; handed to the state while leading.
    fleet: Fleet,
    floor: watch::Sender<Epoch>,
    standing: watch::Receiver<Standing>,
}

impl Service {
    async fn serve(&mut self, beat: &impl Fn()) {
        loop {
            let epoch = self.follow(beat).await;
            tracing::info!(%epoch, "leading");
            let ended = self.lead(epoch, beat).await;
            match ended {
                Ok(()) => tracing::warn!(%epoch, "no longer leading"),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "leading was interrupted; starting over");
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
            }
        }
    }

    /// Listens to the agents until the lease is ours.
    async fn follow(&mut self, beat: &impl Fn()) -> Epoch {
        let mut ticks = ticks();
        loop {
            if let Some((epoch, until)) = *self.standing.borrow_and_update()
                && Instant::now() < until
            {
                return epoch;
            }
            tokio::select! {
                _ = ticks.tick() => {
                    beat();
                    let _ = self.fleet.silence(self.clock.now().clock);
                }
                changed = self.standing.changed() => if changed.is_err() {
                    // The keeper is gone, which only a stop brings about.
                    std::future::pending::<()>().await;
                },
                message = self.heartbeats.next() => match message {
                    Some((subject, body)) => if let Some(Event::Heartbeat(inventory)) = read_heartbeat(&subject, &body) {
                        let now = self.clock.now();
                        self.fleet.heard(*inventory, now.at, now.clock);
                        raise(&self.floor, self.fleet.epoch_max());
                    },
                    None => std::future::pending::<()>().await,
                },
            }
        }
    }

    /// Leads until the lease is lost, or the broker fails.
    async fn lead(&mut self, epoch: Epoch, beat: &impl Fn()) -> Result<(), BusError> {
        let fleet = self.fleet.clone();
        let fence = self.config.fence.clone();
        let mut state = State::new(self.config.name.clone(), epoch, self.bus.nats_version(), fleet, fence);
        // A broker that was restarted may have come back with nothing.
        self.store.make().await?;
        let kept_jobs = kept::<JobStatus>(&self.store, Bucket::Jobs, "job").await?;
        state.remember(kept_jobs, self.config.retention.events_days);
        state.remember_sent(kept::<Plan>(&self.store, Bucket::Plans, "plan").await?);
        let mut events = self.store.events().await?;
        let mut progress = self.bus.listen(Subject::PROGRESS).await?;
        let mut desk = Desk::new(&self.bus, &self.store, &self.config, epoch, self.standing.clone());
        let actions = state.apply(left(&self.store).await?, self.clock.now());
        desk.perform(&state, actions).await?;
        let mut ticks = ticks();
        let mut replayed = false;
        let ended = loop {
            if events.replayed() && !replayed {
                replayed = true;
                let actions = state.apply(Event::Replayed, self.clock.now());
                desk.perform(&state, actions).await?;
                desk.open().await?;
                tracing::info!(%epoch, jobs = state.jobs.len(), "rebuilt; the API is open");
            }
            let until = match *self.standing.borrow_and_update() {
                Some((leads, until)) if leads == epoch && Instant::now() < until => until,
                _ => break Ok(()),
            };
            let event = tokio::select! {
                () = tokio::time::sleep_until(until) => break Ok(()),
                changed = self.standing.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => break Ok(()),
                },
                _ = ticks.tick() => { beat(); Some(Event::Tick) }
                message = self.heartbeats.next() => match message {
                    Some((subject, body)) => read_heartbeat(&subject, &body),
                    None => break Ok(()),
                },
                message = events.next() => match message {
                    Ok((subject, body)) => read_event(&subject, &body),
                    Err(error) => break Err(error),
                },
                Some((subject, body)) = progress.next() => read_progress(&subject, &body),
                event = desk.next() => match event {
                    Ok(event) => event,
                    Err(error) => break Err(error),
                },
            };
            let Some(event) = event else { continue };
            let actions = state.apply(event, self.clock.now());
            raise(&self.floor, state.fleet.epoch_max());
            if let Err(error) = desk.perform(&state, actions).await {
                break Err(error);
            }
        };
        desk.close().await;
        self.fleet = state.fleet;
        ended
    }
}

/// The hosts that an earlier coordinator knew.
async fn remembered(store: &Store) -> Result<Fleet, BusError> {
    let mut fleet = Fleet::default();
    for view in kept::<HostView>(store, Bucket::Hosts, "host").await?.into_iter().take(HOSTS_MAX) {
        fleet.remember(view);
    }
    Ok(fleet)
}

/// What earlier coordinators have kept in a bucket.
async fn kept<T: serde::de::DeserializeOwned>(
    store: &Store,
    bucket: Bucket,
    kind: &'static str,
) -> Result<Vec<T>, BusError> {
    let read = |value: Vec<u8>| {
        let read = Envelope::open(&value).and_then(|envelope| envelope.message::<T>(kind));
        read.map_err(|error| tracing::warn!(%error, kind, "a value that was kept cannot be read and is left out")).ok()
    };
    Ok(store.values(bucket).await?.into_iter().filter_map(read).collect())
}

/// What an earlier coordinator has left of jobs, of VMs and of replications.
async fn left(store: &Store) -> Result<Event, BusError> {
    let (owners, feed) = (store.keys(Bucket::Vms).await?, store.keys(Bucket::Feed).await?);
    let statuses = store.keys(Bucket::Jobs).await?;
    let of = |kind: &'static str| {
        feed.iter().filter_map(move |key| key.split_once('.').filter(|(found, _)| *found == kind)).map(|(_, vm)| vm)
    };
    let vms = owners.iter().map(String::as_str).chain(of("vm")).filter_map(|vm| vm.parse().ok()).collect();
    let jobs = statuses.iter().map(String::as_str).chain(of("job")).filter_map(|job| job.parse().ok()).collect();
    Ok(Event::Kept { jobs, vms, replicas: of("replica").filter_map(|vm| vm.parse().ok()).collect() })
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(TICK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn raise(floor: &watch::Sender<Epoch>, epoch: Epoch) {
    floor.send_if_modified(|known| {
        let higher = epoch > *known;
        *known = epoch.max(*known);
        higher
    });
}

/// Reads a message of an agent. What it says must be of the host that its subject names: the broker lets each agent
/// publish under its own name only.
fn read<T: serde::de::DeserializeOwned>(
    kind: &'static str,
    subject: &str,
    body: &[u8],
    agrees: impl FnOnce(&Subject, &T) -> bool,
) -> Option<T> {
    if body.len() > BODY_LENGTH_MAX {
        tracing::warn!(subject, length = body.len(), "a message is too long and is left out");
        return None;
    }
    let message: T = Envelope::open(body)
        .and_then(|envelope| envelope.message(kind))
        .map_err(|error| tracing::warn!(subject, %error, "a message cannot be read and is left out"))
        .ok()?;
    let stands = subject.parse::<Subject>().is_ok_and(|subject| agrees(&subject, &message));
    if !stands {
        tracing::warn!(subject, kind, "a message speaks for another than its subject and is left out");
    }
    stands.then_some(message)
}

fn read_heartbeat(subject: &str, body: &[u8]) -> Option<Event> {
    let agrees = |subject: &Subject, said: &sterna_shared::host::Inventory| matches!(subject, Subject::Host(host) if *host == said.host);
    read("inventory", subject, body, agrees).map(|inventory| Event::Heartbeat(Box::new(inventory)))
}

fn read_event(subject: &str, body: &[u8]) -> Option<Event> {
    let agrees = |subject: &Subject, said: &JobEvent| match (subject, &said.reporter) {
        (Subject::Event(host, job), Reporter::Host(reporter)) => host == reporter && *job == said.job,
        (Subject::CoordinatorEvent(job), Reporter::Coordinator) => *job == said.job,
        _ => false,
    };
    read("event", subject, body, agrees).map(|event| Event::Told(Box::new(event)))
}

fn read_progress(subject: &str, body: &[u8]) -> Option<Event> {
    let agrees = |subject: &Subject, said: &Progress| matches!(subject, Subject::Progress(host, job) if *host == said.host && *job == said.job);
    read("progress", subject, body, agrees).map(|progress| Event::Progressed(Box::new(progress)))
}
