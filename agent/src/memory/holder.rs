//! A process that outlives the agent, and lets go of QEMU's migration channels in an order that QEMU bears.
//!
//! To flush its channels QEMU waits for the thread of each in turn. A thread that meets an error says so to whoever waits for it;
//! one that only finds that *another* has met one ends without a word (`multifd_send_sync_main` and `multifd_send_thread`, 7.2 to
//! 10.0). So where all channels break at once, as when the agent at their other ends is killed, QEMU may wait for ever, and at the
//! end of a migration with the lock that its monitor and its guest need: the guest stands still and cannot be helped.
//!
//! ```text
//!   QEMU ══ channels ══ agent ── control ──▶ holder: duplicates of the agent's ends
//!                         ╳        end of file ─▶ main channel shut ─▶ GRACE ─▶ the others shut
//! ```
//!
//! The main channel may break at any time: no thread writes to it but the one that waits. Once nobody reads, the others either have
//! nothing to send or are in the midst of writing, where the error is theirs, and is told.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, recvmsg, sendmsg, shutdown,
};
use tokio::process::Command;

/// The agent's command that is the holder; not for people.
pub const COMMAND: &str = "hold-channels";
/// From the main channel's end to that of the others: as long as QEMU may take to come to rest.
const GRACE: Duration = Duration::from_millis(500);
/// The program that runs, also where another has taken its place on the disk.
const ITSELF: &str = "/proc/self/exe";

/// The agent's hand on the holder. The channels go when it is dropped, and when the agent falls out.
#[derive(Debug)]
pub struct Holder {
    control: UnixStream,
}

impl Holder {
    /// Starts the process.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start() -> io::Result<Self> {
        let (control, far) = UnixStream::pair()?;
        let mut child = Command::new(ITSELF)
            .arg(COMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What is meant for the agent's group is not meant for it.
            .process_group(0)
            .spawn()?;
        tokio::spawn(async move { child.wait().await });
        Ok(Self { control })
    }

    /// Has it hold one more channel; the main one comes first.
    ///
    /// # Errors
    /// It is gone.
    pub fn hold(&self, channel: impl AsFd) -> io::Result<()> {
        let channels = [channel.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&channels));
        sendmsg(&self.control, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The holder's part: takes channels over standard input until that ends, and lets go of them.
#[must_use]
pub fn run() -> ExitCode {
    let channels = take(io::stdin());
    let shut = |channel: &OwnedFd| {
        let _ = shutdown(channel, Shutdown::Both);
    };
    if let Some((main, others)) = channels.split_first() {
        shut(main);
        std::thread::sleep(GRACE);
        others.iter().for_each(shut);
    }
    ExitCode::SUCCESS
}

fn take(control: impl AsFd) -> Vec<OwnedFd> {
    let mut channels = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let message = recvmsg(&control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        match message {
            Ok(message) if message.bytes > 0 => {
                let rights = |message| match message {
                    RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                    _ => None,
                };
                channels.extend(ancillary.drain().filter_map(rights).flatten());
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return channels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_taken_in_their_order_until_the_agent_is_gone() {
        let (control, far) = UnixStream::pair().expect("a pair");
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().expect("a pair")).collect();
        let holder = Holder { control };
        for (_, agents) in &pairs {
            holder.hold(agents).expect("it is there");
        }
        drop(holder);
        let held = take(far);
        assert_eq!(held.len(), 3);
        let qemus: Vec<_> = pairs.into_iter().map(|(qemus, _)| qemus).collect();
        // The agent's own ends are gone by now, and nothing is noticed of that until they are shut.
        for (mut qemus, held) in qemus.into_iter().zip(&held) {
            use std::io::Write as _;
            qemus.write_all(b"page").expect("somebody holds the other end");
            shutdown(held, Shutdown::Both).expect("a socket");
            assert!(qemus.write_all(b"page").is_err(), "it is this one");
        }
    }
}
