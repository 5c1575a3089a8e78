//! Telling: events on their way into the journal, in order, without anybody waiting for the disk.
//!
//! A blackout has no time for an `fsync` an event. What is told is queued, and written in one transaction with what came
//! meanwhile; a crash can lose the last few, which changes no decision: those rest on the ownership records alone.

use std::sync::Arc;

use sterna_shared::id::{HostId, JobId};
use sterna_shared::job::{EventBody, Reporter};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::clock;
use crate::journal::{Journal, News};

/// Events that may wait for the disk.
const QUEUE_MAX: usize = 1024;

/// The end to tell by.
#[derive(Debug, Clone)]
pub struct Teller {
    queue: mpsc::Sender<Telling>,
    told: Arc<watch::Sender<u64>>,
}

#[derive(Debug)]
enum Telling {
    News(Box<News>),
    Flush(oneshot::Sender<()>),
}

/// The journal's writer is gone: the agent is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is stopping")]
pub struct NotTold;

impl Teller {
    /// Begins to write.
    #[must_use]
    pub fn start(host: HostId, journal: Journal) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let told = Arc::new(watch::Sender::new(0));
        tokio::spawn(write(Reporter::Host(host), journal, receiver, Arc::clone(&told)));
        Self { queue, told }
    }

    /// Tells of something that has just happened.
    ///
    /// # Errors
    /// [`NotTold`].
    pub async fn tell(&self, job: JobId, body: EventBody) -> Result<(), NotTold> {
        let news = News { job, at: clock::now(), body };
        self.queue.send(Telling::News(Box::new(news))).await.map_err(|_| NotTold)
    }

    /// Waits until everything told before is on the disk, or could not be written.
    pub async fn flush(&self) {
        let (done, waiting) = oneshot::channel();
        if self.queue.send(Telling::Flush(done)).await.is_ok() {
            let _ = waiting.await;
        }
    }

    /// Changes whenever the journal has new events.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }
}

async fn write(
    reporter: Reporter,
    journal: Journal,
    mut queue: mpsc::Receiver<Telling>,
    told: Arc<watch::Sender<u64>>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, QUEUE_MAX).await > 0 {
        let (mut news, mut waiting) = (Vec::new(), Vec::new());
        for telling in batch.drain(..) {
            match telling {
                Telling::News(item) => news.push(*item),
                Telling::Flush(done) => waiting.push(done),
            }
        }
        if !news.is_empty() {
            match journal.tell(reporter.clone(), news).await {
                Ok(()) => told.send_modify(|count| *count += 1),
                Err(error) => error!(error = &error as &dyn std::error::Error, "events were lost"),
            }
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}
