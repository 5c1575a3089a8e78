//! The archive: one record of each job that is over. It outlives the list of jobs, and goes by its own age.
//!
//! A record is written on condition that its subject has none, so that it is written once however many coordinators find
//! that the job is over, and however late.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{Config as StreamConfig, DirectGetErrorKind, RetentionPolicy, Stream};
use sterna_shared::bus::{Envelope, STREAM_ARCHIVE, Subject};
use sterna_shared::id::JobId;
use sterna_shared::job::JobRecord;
use sterna_shared::time::Timestamp;

use super::{DAY, stream};
use crate::bus::{BusError, server};
use crate::config::Retention;

/// Records in a page.
const PAGE_RECORDS_MAX: usize = 100;
/// Bytes in a page, as they are kept; one record may go beyond.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Records looked at for a page: an operator's request ends within its time.
const PAGE_LOOKED_AT_MAX: usize = 1000;
/// How often a record is tried to be kept.
const TRIES: usize = 3;
/// A record is kept soon after its job was over, by the clocks of two machines.
const KEPT_AFTER_MAX: Duration = Duration::from_secs(DAY);

/// The archive; cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    jetstream: Context,
    stream: Stream<()>,
}

/// Which records are asked for: those that fit all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveQuery {
    /// Of this job.
    pub job: Option<JobId>,
    /// Of this VM, by name or id.
    pub vm: Option<String>,
    /// Of jobs that were over then or later.
    pub since: Option<Timestamp>,
    /// Before this place of the stream.
    pub before: Option<u64>,
}

impl Archive {
    /// Finds or makes the stream, and has it keep records for as long as is configured now; none where nothing is to be kept.
    /// What an earlier configuration had kept stays in the stream for as long as that said.
    pub(super) async fn open(jetstream: &Context, retention: Retention) -> Result<Option<Self>, BusError> {
        if retention.archive_days == 0 {
            return Ok(None);
        }
        let what = "make the archive";
        let wanted = config(usize::from(retention.replicas), retention.archive_days);
        let made = jetstream.get_or_create_stream(&wanted).await.map_err(server(what))?;
        let found = &made.cached_info().config;
        if found.max_age != wanted.max_age {
            let config = StreamConfig { max_age: wanted.max_age, ..found.clone() };
            jetstream.update_stream(&config).await.map_err(server(what))?;
        }
        let stream = jetstream.get_stream_no_info(STREAM_ARCHIVE).await.map_err(server(what))?;
        Ok(Some(Self { jetstream: jetstream.clone(), stream }))
    }

    /// Keeps the record of a job, unless one is kept already.
    ///
    /// # Errors
    /// [`BusError::Server`] after three tries.
    pub async fn keep(&self, job: JobId, body: Vec<u8>) -> Result<(), BusError> {
        let mut last = None;
        for _ in 0..TRIES {
            let message = PublishMessage::build()
                .payload(body.clone().into())
                .message_id(format!("{job}-record"))
                .expected_last_subject_sequence(0);
            let sent = self.jetstream.send_publish(Subject::Archive(job).to_string(), message).await;
            match sent {
                Ok(acknowledged) => match acknowledged.await {
                    Ok(_) => return Ok(()),
                    Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => return Ok(()),
                    Err(error) => last = Some(error),
                },
                Err(error) => last = Some(error),
            }
        }
        let error = last.map_or_else(|| "it was not tried".into(), |error| Box::new(error) as crate::bus::Cause);
        Err(server("keep a record")(error))
    }

    /// A page of records, those kept last first, and where the next page begins if there is one.
    ///
    /// # Errors
    /// [`BusError::Server`].
    pub async fn read(&self, query: &ArchiveQuery) -> Result<(Vec<JobRecord>, Option<u64>), BusError> {
        let what = "read the archive";
        let fits = |record: &JobRecord| record.fits(query.vm.as_deref(), query.since);
        if let Some(job) = query.job {
            let found = self.stream.direct_get_last_for_subject(Subject::Archive(job).to_string()).await;
            return match found {
                Ok(message) => Ok((record(&message).into_iter().filter(fits).collect(), None)),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok((Vec::new(), None)),
                Err(error) => Err(server(what)(error)),
            };
        }
        let state = self.stream.get_info().await.map_err(server(what))?.state;
        let mut place = query.before.unwrap_or(u64::MAX).min(state.last_sequence.saturating_add(1));
        let (mut records, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
        while place > state.first_sequence.max(1) {
            if records.len() >= PAGE_RECORDS_MAX || bytes >= PAGE_BYTES_MAX || looked_at >= PAGE_LOOKED_AT_MAX {
                return Ok((records, Some(place)));
            }
            place -= 1;
            looked_at += 1;
            let message = match self.stream.direct_get(place).await {
                Ok(message) => message,
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => continue,
                Err(error) => return Err(server(what)(error)),
            };
            if query.since.is_some_and(|since| is_older(&message, since)) {
                break;
            }
            if let Some(record) = record(&message).filter(fits) {
                bytes += message.payload.len();
                records.push(record);
            }
        }
        Ok((records, None))
    }
}

/// What cannot be read was written by another version, and is left out.
fn record(message: &StreamMessage) -> Option<JobRecord> {
    let read = Envelope::open(&message.payload).and_then(|envelope| envelope.message("job_record"));
    read.inspect_err(|error| tracing::warn!(sequence = message.sequence, %error, "a record cannot be read")).ok()
}

/// Whether it and all that was kept before it is of jobs that were over long before `since`.
fn is_older(message: &StreamMessage, since: Timestamp) -> bool {
    let kept_at = message.time.unix_timestamp().saturating_mul(1_000_000);
    let margin = i64::try_from(KEPT_AFTER_MAX.as_micros()).unwrap_or(i64::MAX);
    kept_at.saturating_add(margin) < since.unix_microseconds()
}

fn config(replicas: usize, days: u32) -> StreamConfig {
    StreamConfig {
        name: STREAM_ARCHIVE.into(),
        subjects: vec![Subject::ARCHIVE.into()],
        retention: RetentionPolicy::Limits,
        max_age: Duration::from_secs(u64::from(days) * DAY),
        ..stream(replicas)
    }
}
