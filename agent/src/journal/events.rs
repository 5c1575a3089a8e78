//! Events: what this agent tells of its jobs, numbered, kept until the broker has them; and the quiet in which none is
//! written.

use std::sync::Arc;
use std::time::Duration;

use redb::{ReadableTable, TableDefinition};
use sterna_shared::bus::{decode, encode};
use sterna_shared::id::JobId;
use sterna_shared::job::{Event, EventBody, Reporter};
use sterna_shared::time::Timestamp;
use tokio::sync::watch;

use super::{FACTS, Journal, JournalError, read_error, write_error};

/// The most events the journal keeps; the oldest published ones go first.
pub const EVENTS_MAX: u64 = 20_000;
/// How long events wait for quiet to end: a guest that stands still for longer is worth being told of.
const QUIET_MAX: Duration = Duration::from_secs(2);

pub(super) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
pub(super) const TOLD: TableDefinition<'_, [u8; 16], u64> = TableDefinition::new("told");

const FACT_PUBLISHED: &str = "published";

/// Something to be told.
#[derive(Debug, Clone)]
pub struct News {
    /// The job.
    pub job: JobId,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub body: EventBody,
}

/// While one is held, events and the publisher's mark are not written: the journal has one writer at a time, and what a
/// paused guest waits for would stand behind them. They wait for two seconds at most.
#[derive(Debug)]
pub struct Quiet(Arc<watch::Sender<usize>>);

impl Drop for Quiet {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Journal {
    /// Keeps what can wait from being written, until what this gives back is dropped.
    #[must_use]
    pub fn quiet(&self) -> Quiet {
        self.quiet.send_modify(|count| *count += 1);
        Quiet(Arc::clone(&self.quiet))
    }

    async fn until_quiet_ends(&self) {
        let mut quiet = self.quiet.subscribe();
        let _ = tokio::time::timeout(QUIET_MAX, quiet.wait_for(|count| *count == 0)).await;
    }

    /// Writes down events of this host, numbered, in one go; they will be published until the broker has them.
    ///
    /// # Errors
    /// The journal cannot be written; none is.
    pub async fn tell(&self, reporter: Reporter, news: Vec<News>) -> Result<(), JournalError> {
        self.until_quiet_ends().await;
        self.write(move |tables| {
            let mut told = tables.open_table(TOLD).map_err(write_error)?;
            let mut events = tables.open_table(EVENTS).map_err(write_error)?;
            let mut last = events.last().map_err(write_error)?.map_or(0, |(number, _)| number.value());
            for News { job, at, body } in news {
                let key = job.uuid().into_bytes();
                let sequence = told.get(key).map_err(write_error)?.map_or(0, |value| value.value()) + 1;
                told.insert(key, sequence).map_err(write_error)?;
                let bytes = encode("event", &Event { job, reporter: reporter.clone(), sequence, at, body })?;
                last += 1;
                events.insert(last, bytes.as_slice()).map_err(write_error)?;
            }
            let published = tables
                .open_table(FACTS)
                .map_err(write_error)?
                .get(FACT_PUBLISHED)
                .map_err(write_error)?
                .map_or(0, |v| v.value());
            // What is not published yet is kept whatever its age: a broker may be away for long.
            if let Some(oldest_kept) = last.checked_sub(EVENTS_MAX).map(|limit| limit.min(published)) {
                events.retain_in(..oldest_kept, |_, _| false).map_err(write_error)?;
            }
            Ok(())
        })
        .await
    }

    /// Events with numbers above `after`, in order, at most `count`.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn events_after(&self, after: u64, count: usize) -> Result<Vec<(u64, Event)>, JournalError> {
        self.file.read(|transaction| {
            let table = transaction.open_table(EVENTS).map_err(read_error)?;
            let mut events = Vec::new();
            for entry in table.range(after.saturating_add(1)..).map_err(read_error)?.take(count) {
                let (number, bytes) = entry.map_err(read_error)?;
                events.push((number.value(), decode("event", bytes.value())?));
            }
            Ok(events)
        })
    }

    /// Events in order, the first `skip` left out, at most `count`; and whether there are more.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn events_page(&self, skip: u64, count: usize) -> Result<(Vec<Event>, bool), JournalError> {
        self.file.read(|transaction| {
            let table = transaction.open_table(EVENTS).map_err(read_error)?;
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            let mut rest = table.iter().map_err(read_error)?.skip(skip);
            let mut events = Vec::new();
            for entry in rest.by_ref().take(count) {
                events.push(decode("event", entry.map_err(read_error)?.1.value())?);
            }
            Ok((events, rest.next().is_some()))
        })
    }

    /// The number up to which the broker has the events.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn published(&self) -> Result<u64, JournalError> {
        self.fact(FACT_PUBLISHED)
    }

    /// Remembers that the broker has the events up to this number.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn set_published(&self, number: u64) -> Result<(), JournalError> {
        self.until_quiet_ends().await;
        self.raise(FACT_PUBLISHED, number).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::news;
    use super::*;

    #[tokio::test]
    async fn old_events_go_only_once_they_are_published() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::open(&folder.path().join("journal.redb")).expect("opened");
        let reporter = Reporter::Host("alpha".parse().expect("a name"));
        let many = usize::try_from(EVENTS_MAX).expect("small") + 10;
        journal.tell(reporter.clone(), news(many)).await.expect("told");
        assert_eq!(journal.events_after(0, usize::MAX).expect("read").len(), many, "nothing unpublished is lost");
        journal.set_published(EVENTS_MAX + 10).await.expect("noted");
        journal.tell(reporter, news(1)).await.expect("told");
        let kept = journal.events_after(0, usize::MAX).expect("read");
        assert_eq!(kept.last().map(|(number, _)| *number), Some(EVENTS_MAX + 11));
        assert!(kept.len() as u64 <= EVENTS_MAX + 1, "{}", kept.len());
    }
}
