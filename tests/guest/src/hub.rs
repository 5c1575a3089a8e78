//! The thread that ticks, counts, and feeds those who listen: pid 1's own.
//!
//! It takes events from the owners of memory and disks, and is the only one that knows all counts. A subscriber who does
//! not keep up is cut off, so that nobody's slowness holds a record back.

use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::config::Config;
use crate::console;
use crate::protocol::{DATAGRAM_LEASE_MS, DiskStatus, Status, TICK_MS};

/// Events that may wait; senders wait for room.
const EVENTS_MAX: usize = 4096;
/// Receivers of datagrams at once; the one whose lease ends first makes room.
const LISTENERS_MAX: usize = 16;
/// Acknowledgements printed per second and disk, at least.
const CONSOLE_RATE: u64 = 100;
const TICKS_PER_SECOND: u64 = 1000 / TICK_MS;

/// What happened, or what is wanted.
#[derive(Debug)]
pub(crate) enum Event {
    /// A record is on its disk; `rate` is the disk's present one.
    Acknowledged { disk: usize, number: u64, rate: u64 },
    /// A record could not be written and will be tried again.
    DiskError { disk: usize, reason: String },
    /// So many pages were rewritten since the start, of so many.
    Memory { rewritten: u64, pages: u64 },
    /// Send every line to this channel from now on.
    Subscribe(SyncSender<String>),
    /// Send ticks from this socket to this address for a while.
    Listen(UdpSocket, SocketAddr),
    /// Say how it is going.
    Status(SyncSender<Status>),
}

/// The way to tell the hub something.
#[derive(Debug, Clone)]
pub(crate) struct Hub(SyncSender<Event>);

/// The hub's own side.
pub(crate) struct HubSide(Receiver<Event>);

pub(crate) fn channel() -> (Hub, HubSide) {
    let (sender, receiver) = sync_channel(EVENTS_MAX);
    (Hub(sender), HubSide(receiver))
}

impl Hub {
    /// Tells, and waits while the hub is full. The hub ends only with the machine.
    pub(crate) fn tell(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

impl HubSide {
    /// Ticks and counts for ever.
    pub(crate) fn run(self, config: &Config) -> ! {
        let mut state = State::new(config.disks);
        loop {
            match self.0.recv_timeout(state.next_tick.saturating_duration_since(Instant::now())) {
                Ok(event) => state.apply(event),
                Err(RecvTimeoutError::Timeout) => {}
                // The last sender is gone, which only happens without a network; ticks go on.
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(state.next_tick.saturating_duration_since(Instant::now()));
                }
            }
            if Instant::now() >= state.next_tick {
                state.tick();
            }
        }
    }
}

struct State {
    status: Status,
    next_tick: Instant,
    last_tick: Instant,
    last_tick_boottime: Duration,
    subscribers: Vec<SyncSender<String>>,
    listeners: Vec<Listener>,
}

struct Listener {
    socket: UdpSocket,
    address: SocketAddr,
    until: Instant,
}

impl State {
    fn new(disks: usize) -> Self {
        let now = Instant::now();
        Self {
            status: Status { disks: vec![DiskStatus::default(); disks], ..Status::default() },
            next_tick: now,
            last_tick: now,
            last_tick_boottime: boottime(),
            subscribers: Vec::new(),
            listeners: Vec::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Acknowledged { disk, number, rate } => {
                self.status.disks[disk].acknowledged = number;
                if number.is_multiple_of(rate.div_ceil(CONSOLE_RATE).max(1)) {
                    console(format_args!("ACK {disk} {number}"));
                }
                self.publish(&format!("ack {disk} {number}\n"));
            }
            Event::DiskError { disk, reason } => {
                console(format_args!("DISK-ERROR {disk} {reason}"));
                self.status.disks[disk].errors += 1;
                self.status.disks[disk].error_last = Some(reason);
            }
            Event::Memory { rewritten, pages } => {
                self.status.memory_pages_rewritten = rewritten;
                self.status.memory_passes = rewritten.checked_div(pages).unwrap_or(0);
            }
            Event::Subscribe(subscriber) => self.subscribers.push(subscriber),
            Event::Listen(socket, address) => self.listen(socket, address),
            Event::Status(answer) => {
                let _ = answer.send(self.status.clone());
            }
        }
    }

    fn tick(&mut self) {
        let (now, now_boottime) = (Instant::now(), boottime());
        let gap = now - self.last_tick;
        let gap_boottime = now_boottime.saturating_sub(self.last_tick_boottime);
        self.status.gap_monotonic_ms_max = self.status.gap_monotonic_ms_max.max(gap.as_millis() as u64);
        self.status.gap_boottime_ms_max = self.status.gap_boottime_ms_max.max(gap_boottime.as_millis() as u64);
        (self.last_tick, self.last_tick_boottime) = (now, now_boottime);
        // A tick that comes late is not made up for: the gap is the finding.
        self.next_tick = (self.next_tick + Duration::from_millis(TICK_MS)).max(now);

        self.status.ticks += 1;
        let ticks = self.status.ticks;
        if ticks.is_multiple_of(TICKS_PER_SECOND) {
            console(format_args!("TICK {ticks}"));
        }
        let line = format!("tick {ticks}\n");
        self.publish(&line);
        self.listeners.retain(|listener| {
            // A datagram that is lost is what the listener wants to know about.
            let _ = listener.socket.send_to(line.as_bytes(), listener.address);
            listener.until > now
        });
    }

    fn listen(&mut self, socket: UdpSocket, address: SocketAddr) {
        self.listeners.retain(|listener| listener.address != address);
        if self.listeners.len() == LISTENERS_MAX {
            self.listeners.remove(0);
        }
        let until = Instant::now() + Duration::from_millis(DATAGRAM_LEASE_MS);
        self.listeners.push(Listener { socket, address, until });
    }

    fn publish(&mut self, line: &str) {
        let lagged = &mut self.status.subscribers_lagged;
        self.subscribers.retain(|subscriber| match subscriber.try_send(line.to_owned()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                *lagged += 1;
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        });
    }
}

fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_keep_up_is_cut_off_and_the_others_get_every_line() {
        let mut state = State::new(1);
        let (slow, slow_lines) = sync_channel(2);
        let (quick, quick_lines) = sync_channel(10);
        state.apply(Event::Subscribe(slow));
        state.apply(Event::Subscribe(quick));
        for number in 1..=3 {
            state.apply(Event::Acknowledged { disk: 0, number, rate: 1000 });
        }
        state.tick();
        assert_eq!(slow_lines.iter().collect::<Vec<_>>(), ["ack 0 1\n", "ack 0 2\n"]);
        drop(state.subscribers);
        assert_eq!(quick_lines.iter().collect::<Vec<_>>(), ["ack 0 1\n", "ack 0 2\n", "ack 0 3\n", "tick 1\n"]);
        assert_eq!((state.status.subscribers_lagged, state.status.disks[0].acknowledged), (1, 3));
    }
}
