//! Memory: QEMU's migration channels, carried over the lanes.
//!
//! ```text
//!   QEMU A ══ connects ══▶ memory.sock ─ SourceRelay ─▶ lanes ─▶ TargetRelay ═ connects ═▶ memory.sock ══ QEMU B
//!              1 main + n multifd                                              the main channel first
//! ```
//!
//! Opaque for now: bytes in, bytes out, both ways (the main channel has a return path). The relay sees whole pieces of one
//! channel, so that a page-aware one can take its place.
//!
//! The target connects a channel when its first bytes arrive, and no other before the main one: QEMU tells channels apart
//! by their first bytes (before 8.0 by their order), and waits for them where it stands.
//!
//! The source's channels are in the hands of a [`holder`] too: QEMU does not bear it when all of them break at once.

pub mod holder;
mod pace;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use self::holder::Holder;
use self::pace::Pace;
use crate::buffers::{Pool, widen};
use crate::link::{LinkError, Receiver, Sender, Session};

/// Bytes read from QEMU at a time, and so the most in one frame: a little more than a UNIX socket holds.
const PIECE_LENGTH: usize = 256 << 10;
/// What is shorter is copied out of the buffer, so that a trickle does not take up a buffer for each drop.
const PIECE_LENGTH_MIN: usize = 64 << 10;

/// Why memory cannot be carried.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The socket for QEMU cannot be made or reached.
    #[error("the memory socket {} cannot be used", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The session does not have the channel.
    #[error("the session cannot carry the memory")]
    Link(#[from] LinkError),
}

/// The source's half. Dropping it closes QEMU's channels, which fails a migration that is not over.
#[derive(Debug)]
pub struct SourceRelay {
    sent: Arc<AtomicU64>,
    pace: Arc<Pace>,
    _tasks: JoinSet<()>,
}

impl SourceRelay {
    /// Listens for QEMU's channels.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn listen(path: &Path, channels: u16, session: &mut Session) -> Result<Self, RelayError> {
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).map_err(|source| RelayError::Socket { path: path.to_owned(), source })?;
        let sent = Arc::new(AtomicU64::new(0));
        let backwards = (0..channels).map(|channel| session.memory(channel)).collect::<Result<Vec<_>, _>>()?;
        let mut tasks = JoinSet::new();
        let pace = Arc::new(Pace::default());
        let carried = accept(listener, backwards, session.sender(), Arc::clone(&sent), Arc::clone(&pace));
        let sender = session.sender();
        tasks.spawn(async move {
            tokio::select! {
                () = carried => {}
                // Nobody takes any more what QEMU sends: it is to fail, and not to wait.
                _ = sender.ended() => {}
            }
        });
        tasks.spawn(Arc::clone(&pace).keep(session.sender(), channels, Arc::clone(&sent)));
        Ok(Self { sent, pace, _tasks: tasks })
    }

    /// Lets so much of memory be on its way as the link delivers in `time`, within what the channels' windows and the pieces
    /// of their credit allow, and a quarter of a second at most. It never is nothing: a QEMU that cannot send may hold the
    /// lock that its disks and its monitor need.
    pub fn allow_in_flight(&self, time: Duration) {
        self.pace.allow(time);
    }

    /// Bytes that QEMU has sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: UnixListener,
    backwards: Vec<Receiver<Bytes>>,
    sender: Sender,
    sent: Arc<AtomicU64>,
    pace: Arc<Pace>,
) {
    let mut tasks = JoinSet::new();
    let unheld = |error: io::Error| warn!(%error, "should this agent fall out, the guest's QEMU may hang");
    let holder = Holder::start().map_err(unheld).ok();
    // QEMU opens the main channel first, and the others once it is connected.
    for (channel, backwards) in (0_u16..).zip(backwards) {
        let Ok((stream, _)) = listener.accept().await else { break };
        if let Some(Err(error)) = holder.as_ref().map(|holder| holder.hold(&stream)) {
            unheld(error);
        }
        let (reader, writer) = stream.into_split();
        tasks.spawn(forward(reader, channel, sender.clone(), Arc::clone(&sent), Arc::clone(&pace)));
        tasks.spawn(backward(backwards, writer));
    }
    while tasks.join_next().await.is_some() {}
}

/// The target's half. Dropping it closes QEMU's channels.
#[derive(Debug)]
pub struct TargetRelay {
    _tasks: JoinSet<()>,
}

impl TargetRelay {
    /// Connects QEMU's channels as they come alive.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn connect(path: &Path, channels: u16, session: &mut Session) -> Result<Self, RelayError> {
        let mut tasks = JoinSet::new();
        let (main_up, main) = watch::channel(false);
        for channel in 0..channels {
            let receiver = session.memory(channel)?;
            let (path, sender) = (path.to_owned(), session.sender());
            let (main_up, main) = (main_up.clone(), main.clone());
            tasks.spawn(async move {
                if let Err(error) = carry(path, channel, receiver, sender, main_up, main).await {
                    debug!(channel, error = %error, "a migration channel has ended");
                }
            });
        }
        Ok(Self { _tasks: tasks })
    }
}

async fn carry(
    path: PathBuf,
    channel: u16,
    mut receiver: Receiver<Bytes>,
    sender: Sender,
    main_up: watch::Sender<bool>,
    mut main: watch::Receiver<bool>,
) -> Result<(), RelayError> {
    let socket = |source| RelayError::Socket { path: path.clone(), source };
    let Some(mut first) = receiver.recv().await? else { return Ok(()) };
    if channel != 0 {
        let _ = main.wait_for(|up| *up).await;
    }
    let stream = UnixStream::connect(&path).await.map_err(socket)?;
    widen(&stream);
    let (reader, mut writer) = stream.into_split();
    // QEMU knows the main channel by its first bytes, and takes no more of it until the others are there: to wait until
    // all of `first` is written would be to wait for ever.
    writer.write_buf(&mut first).await.map_err(socket)?;
    if channel == 0 {
        main_up.send_replace(true);
    }
    writer.write_all_buf(&mut first).await.map_err(socket)?;
    let counted = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    tasks.spawn(forward(reader, channel, sender, counted, Arc::default()));
    backward(receiver, writer).await;
    // What QEMU has still to say goes out before the channel ends.
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// From QEMU to the lanes.
async fn forward(mut reader: OwnedReadHalf, channel: u16, sender: Sender, sent: Arc<AtomicU64>, pace: Arc<Pace>) {
    let pool = Pool::default();
    let mut buffer = pool.take(PIECE_LENGTH);
    loop {
        let most = pace.piece_length().min(buffer.len());
        let length = match reader.read(&mut buffer[..most]).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        sent.fetch_add(length as u64, Ordering::Relaxed);
        let piece = if length < PIECE_LENGTH_MIN {
            Bytes::copy_from_slice(&buffer[..length])
        } else {
            std::mem::replace(&mut buffer, pool.take(PIECE_LENGTH)).freeze(length)
        };
        if sender.memory(channel, piece).await.is_err() {
            return;
        }
    }
}

/// From the lanes to QEMU.
async fn backward(mut receiver: Receiver<Bytes>, mut writer: OwnedWriteHalf) {
    while let Ok(Some(piece)) = receiver.recv().await {
        if writer.write_all(&piece).await.is_err() {
            return;
        }
    }
}
