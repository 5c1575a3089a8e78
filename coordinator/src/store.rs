//! JetStream: the streams of commands and events, and the buckets. Made on start where they are absent.
//!
//! | what | kept |
//! | --- | --- |
//! | `STERNA_CMD` | each command until its host's consumer has acknowledged it, or for a day: work-queue retention. Every host has one durable pull consumer named after it, whose filters do not overlap, so that several commands of one job are all kept, in order |
//! | `STERNA_EVT` | events, for ever unless `[retention]` says otherwise |
//! | `STERNA_ARC` | one record of each job that is over, for as long as `[retention]` says ([`Archive`]) |
//! | buckets | the last value of each key |
//!
//! Nothing here is the truth about who runs a VM: all of it can be rebuilt from the agents' journals.

mod archive;

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::kv::{self, Operation, UpdateErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use futures_util::{StreamExt, TryStreamExt};
use sterna_shared::bus::{
    BUCKET_HOSTS, BUCKET_JOBS, BUCKET_LEADER, BUCKET_PLANS, BUCKET_VMS, STREAM_COMMANDS, STREAM_EVENTS, Subject,
    decode, encode,
};
use sterna_shared::id::{Epoch, HostId};

use crate::bus::{Bus, BusError, server};
use crate::config::Retention;
use crate::feed::BUCKET_FEED;
use crate::lease::{Held, Record, Written};

/// How long a command waits for its host. A move that nobody took on was given up long before.
pub const COMMAND_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Commands that wait in all; a further one is refused, and none is thrown away for it.
pub const COMMANDS_MAX: i64 = 100_000;
/// How long after a publication the same message id is known as a repeat.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// How long a host may take to acknowledge a command before it is delivered again.
pub const COMMAND_ACK_WAIT: Duration = Duration::from_secs(30);
/// How often a publication is tried before the coordinator gives its leadership up.
const PUBLISH_TRIES: usize = 3;
/// Values of a bucket that are asked for at once.
const READS_MAX: usize = 64;
const LEADER_KEY: &str = "leader";
const DAY: u64 = 24 * 3600;

pub use archive::{Archive, ArchiveQuery};

/// The buckets that the coordinators write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    /// Folded job statuses.
    Jobs,
    /// Owners and generations.
    Vms,
    /// Plans on their way to their hosts.
    Plans,
    /// Inventories.
    Hosts,
    /// Last values of the feed.
    Feed,
}

/// What came of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is in the stream.
    Now,
    /// One with its id was there already, and that one stays: it was published before, here or by another.
    Before,
}

/// The streams and buckets; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    jetstream: Context,
    jobs: kv::Store,
    vms: kv::Store,
    plans: kv::Store,
    hosts: kv::Store,
    feed: kv::Store,
    leader: kv::Store,
    archive: Option<Archive>,
    retention: Retention,
}

impl Store {
    /// Finds or makes streams and buckets.
    ///
    /// # Errors
    /// [`BusError::Server`] where JetStream does not answer or does not permit it.
    pub async fn open(bus: &Bus, retention: Retention) -> Result<Self, BusError> {
        Box::pin(Self::made(jetstream::new(bus.client().clone()), retention)).await
    }

    /// Makes those streams and buckets again that the broker has lost.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn make(&self) -> Result<(), BusError> {
        // By their names they are the same.
        Box::pin(Self::made(self.jetstream.clone(), self.retention)).await.map(|_| ())
    }

    async fn made(jetstream: jetstream::Context, retention: Retention) -> Result<Self, BusError> {
        let replicas = usize::from(retention.replicas);
        for config in [commands(replicas), events(replicas, retention.events_days)] {
            jetstream.get_or_create_stream(config).await.map_err(server("make a stream"))?;
        }
        let bucket = |name| open_bucket(&jetstream, name, replicas, Duration::ZERO);
        Ok(Self {
            jobs: bucket(BUCKET_JOBS).await?,
            vms: bucket(BUCKET_VMS).await?,
            // What is left of plans that were removed goes as well; there is one for each job.
            plans: open_bucket(&jetstream, BUCKET_PLANS, replicas, COMMAND_AGE_MAX).await?,
            hosts: bucket(BUCKET_HOSTS).await?,
            feed: bucket(BUCKET_FEED).await?,
            leader: bucket(BUCKET_LEADER).await?,
            archive: Archive::open(&jetstream, retention).await?,
            retention,
            jetstream,
        })
    }

    /// Finds or makes the durable consumer by which a host takes its commands.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn ensure_consumer(&self, host: &HostId) -> Result<(), BusError> {
        let config = pull::Config {
            durable_name: Some(host.to_string()),
            filter_subject: Subject::commands_of(host),
            ack_policy: AckPolicy::Explicit,
            ack_wait: COMMAND_ACK_WAIT,
            max_deliver: -1,
            ..Default::default()
        };
        let made = self.jetstream.create_consumer_on_stream(config, STREAM_COMMANDS).await;
        made.map(|_| ()).map_err(server("make a host's consumer"))
    }

    /// Publishes to a stream and waits until it is kept. The id makes a repeat within [`DUPLICATE_WINDOW`] harmless.
    ///
    /// # Errors
    /// [`BusError::Server`] after three tries.
    pub async fn publish(&self, subject: &Subject, id: &str, body: Vec<u8>) -> Result<Kept, BusError> {
        let mut last = None;
        for tried in 0..PUBLISH_TRIES {
            let message = PublishMessage::build().payload(body.clone().into()).message_id(id);
            match self.jetstream.send_publish(subject.to_string(), message).await {
                Ok(acknowledged) => match acknowledged.await {
                    // After a try whose answer was lost, a repeat is of that try.
                    Ok(kept) if kept.duplicate && tried == 0 => return Ok(Kept::Before),
                    Ok(_) => return Ok(Kept::Now),
                    Err(error) => last = Some(error),
                },
                Err(error) => last = Some(error),
            }
        }
        let error = last.map_or_else(|| "it was not tried".into(), |error| Box::new(error) as crate::bus::Cause);
        Err(server("keep a message")(error))
    }

    /// What is kept of jobs that are over; none where the configuration has nothing kept.
    #[must_use]
    pub fn archive(&self) -> Option<&Archive> {
        self.archive.as_ref()
    }

    /// Reads all events from the first on, and then those that come.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn events(&self) -> Result<EventReader, BusError> {
        let what = "read the events";
        let stream = self.jetstream.get_stream(STREAM_EVENTS).await.map_err(server(what))?;
        let end = stream.cached_info().state.last_sequence;
        let replayed = stream.cached_info().state.messages == 0;
        let config = pull::OrderedConfig { deliver_policy: DeliverPolicy::All, ..Default::default() };
        let consumer = stream.create_consumer(config).await.map_err(server(what))?;
        let messages = consumer.messages().await.map_err(server(what))?;
        Ok(EventReader { messages, end, replayed })
    }

    /// Reads the lease.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn read_lease(&self) -> Result<Option<Held>, BusError> {
        let entry = self.leader.entry(LEADER_KEY).await.map_err(server("read the lease"))?;
        Ok(entry.map(|entry| {
            let blank = |released| Record { name: String::new(), instance: String::new(), epoch: Epoch(0), released };
            let record = match entry.operation {
                Operation::Put => decode("lease", &entry.value).unwrap_or_else(|_| blank(false)),
                _ => blank(true),
            };
            Held { record, revision: entry.revision }
        }))
    }

    /// Writes the lease over that revision.
    pub async fn write_lease(&self, record: &Record, revision: u64) -> Written {
        let Ok(body) = encode("lease", record) else { return Written::Conflict };
        match self.leader.update(LEADER_KEY, body.into(), revision).await {
            Ok(revision) => Written::Done(revision),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Written::Conflict,
            Err(_) => Written::Unknown,
        }
    }

    /// All values of a bucket, in no order.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn values(&self, bucket: Bucket) -> Result<Vec<Vec<u8>>, BusError> {
        let store = self.bucket(bucket);
        let read = |key: String| async move { store.get(key).await.map_err(server("read a bucket")) };
        let values = futures_util::stream::iter(self.keys(bucket).await?).map(read).buffer_unordered(READS_MAX);
        values.try_filter_map(|value| async move { Ok(value.map(Vec::from)) }).try_collect().await
    }

    /// All keys of a bucket, in no order.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn keys(&self, bucket: Bucket) -> Result<Vec<String>, BusError> {
        let keys = self.bucket(bucket).keys().await.map_err(server("read a bucket"))?;
        keys.try_collect().await.map_err(server("read a bucket"))
    }

    /// Writes a value whatever was there.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn put(&self, bucket: Bucket, key: &str, value: Vec<u8>) -> Result<(), BusError> {
        self.bucket(bucket).put(key, value.into()).await.map(|_| ()).map_err(server("write a bucket"))
    }

    /// Removes a value; one that is not there is removed already.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn remove(&self, bucket: Bucket, key: &str) -> Result<(), BusError> {
        self.bucket(bucket).purge(key).await.map_err(server("remove from a bucket"))
    }

    fn bucket(&self, bucket: Bucket) -> &kv::Store {
        match bucket {
            Bucket::Jobs => &self.jobs,
            Bucket::Vms => &self.vms,
            Bucket::Plans => &self.plans,
            Bucket::Hosts => &self.hosts,
            Bucket::Feed => &self.feed,
        }
    }
}

/// Writes values by compare-and-set, and so notices when another coordinator writes too.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    revisions: BTreeMap<(Bucket, String), u64>,
}

impl Writer {
    /// A writer that knows of no revision yet: the first write of each key asks for it.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, revisions: BTreeMap::new() }
    }

    /// Writes a value if nobody else has written the key since this writer first did.
    ///
    /// # Errors
    /// [`BusError::Fenced`] where somebody has; [`BusError::Server`].
    pub async fn write(&mut self, bucket: Bucket, key: &str, value: Vec<u8>) -> Result<(), BusError> {
        let place = (bucket, key.to_owned());
        let revision = match self.revisions.get(&place) {
            Some(revision) => *revision,
            None => {
                let entry = self.store.bucket(bucket).entry(key).await.map_err(server("read a bucket"))?;
                entry.map_or(0, |entry| entry.revision)
            }
        };
        match self.store.bucket(bucket).update(key, value.into(), revision).await {
            Ok(revision) => {
                self.revisions.insert(place, revision);
                Ok(())
            }
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                Err(BusError::Fenced { key: key.to_owned() })
            }
            Err(error) => Err(server("write a bucket")(error)),
        }
    }

    /// Removes a value, and what this writer knew of its key: should it be written again, its revision is asked for.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn remove(&mut self, bucket: Bucket, key: &str) -> Result<(), BusError> {
        self.revisions.remove(&(bucket, key.to_owned()));
        self.store.remove(bucket, key).await
    }
}

/// The events of the stream, in order.
pub struct EventReader {
    messages: pull::Ordered,
    end: u64,
    replayed: bool,
}

impl EventReader {
    /// Whether everything that was there at the start has been read.
    #[must_use]
    pub fn replayed(&self) -> bool {
        self.replayed
    }

    /// The next event: subject and body.
    ///
    /// # Errors
    /// [`BusError::Server`] where the stream is gone; a new reader starts over.
    pub async fn next(&mut self) -> Result<(String, Vec<u8>), BusError> {
        let what = "go on reading the events";
        let message = match self.messages.next().await {
            Some(message) => message.map_err(server(what))?,
            None => return Err(server(what)("the stream of events ended")),
        };
        let info = message.info().map_err(server(what))?;
        self.replayed |= info.pending == 0 || info.stream_sequence >= self.end;
        Ok((message.subject.to_string(), message.payload.clone().into()))
    }
}

/// Finds or makes a bucket whose values go after `max_age`, or never where that is zero.
async fn open_bucket(
    jetstream: &Context,
    name: &str,
    replicas: usize,
    max_age: Duration,
) -> Result<kv::Store, BusError> {
    if let Ok(store) = jetstream.get_key_value(name).await {
        return Ok(store);
    }
    let config =
        kv::Config { bucket: name.to_owned(), history: 1, num_replicas: replicas, max_age, ..Default::default() };
    jetstream.create_key_value(config).await.map_err(server("make a bucket"))
}

fn commands(replicas: usize) -> StreamConfig {
    StreamConfig {
        name: STREAM_COMMANDS.into(),
        subjects: vec![Subject::COMMANDS.into()],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_messages: COMMANDS_MAX,
        max_age: COMMAND_AGE_MAX,
        ..stream(replicas)
    }
}

fn events(replicas: usize, days: u32) -> StreamConfig {
    StreamConfig {
        name: STREAM_EVENTS.into(),
        subjects: vec![Subject::EVENTS.into()],
        retention: RetentionPolicy::Limits,
        max_age: Duration::from_secs(u64::from(days) * DAY),
        ..stream(replicas)
    }
}

fn stream(replicas: usize) -> StreamConfig {
    StreamConfig {
        storage: StorageType::File,
        num_replicas: replicas,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..Default::default()
    }
}
