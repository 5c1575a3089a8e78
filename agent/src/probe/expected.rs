//! The target's side of a probe: which ones are expected, and what becomes of their sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use sterna_shared::id::{HostId, JobId, Token};
use sterna_shared::peer::attach::{Attach, Refusal};
use sterna_shared::probe::PROBE_BYTES_MAX;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::admission::{self, ExpectedProbe};
use crate::link::{Content, Session};

/// Probes that are expected at a time.
pub const EXPECTED_MAX: usize = 64;
/// How long a probe is expected for. Its session may go on a little beyond that: see [`DrainLimits`].
pub const EXPECTED_FOR: Duration = Duration::from_secs(10);

/// What a probe's session may cost this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainLimits {
    /// How long it may go on.
    pub time: Duration,
    /// Bytes that are taken.
    pub bytes: u64,
}

impl Default for DrainLimits {
    fn default() -> Self {
        Self { time: Duration::from_secs(5), bytes: 2 * PROBE_BYTES_MAX }
    }
}

/// Why a probe is not expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// Others are.
    #[error("this host expects {EXPECTED_MAX} probes already; ask again in a few seconds")]
    Expected,
    /// Another one has that id.
    #[error("this host expects another probe with the id {0}; draw a new one")]
    SameId(JobId),
}

/// The probes that this host was told of: in memory only, so that an agent that starts anew expects none.
#[derive(Debug, Default)]
pub struct ExpectedProbes {
    limits: DrainLimits,
    known: BTreeMap<JobId, Known>,
}

#[derive(Debug)]
struct Known {
    probe: ExpectedProbe,
    until: Instant,
    /// What reads its session, once there is one.
    drain: Option<AbortHandle>,
}

impl ExpectedProbes {
    /// Expects none yet; sessions are held to `limits`.
    #[must_use]
    pub fn new(limits: DrainLimits) -> Self {
        Self { limits, known: BTreeMap::new() }
    }

    /// Expects a probe from `source` for [`EXPECTED_FOR`]. Told again it changes nothing, and expects it no longer.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn expect(&mut self, job: JobId, source: HostId, token: Token) -> Result<(), TooMany> {
        self.forget_old();
        if let Some(Known { probe, .. }) = self.known.get(&job) {
            let same = probe.source == source && probe.token == token;
            return if same { Ok(()) } else { Err(TooMany::SameId(job)) };
        }
        if self.known.len() >= EXPECTED_MAX {
            return Err(TooMany::Expected);
        }
        let probe = ExpectedProbe { source, token, admitted: None, over: false };
        self.known.insert(job, Known { probe, until: Instant::now() + EXPECTED_FOR, drain: None });
        Ok(())
    }

    /// Decides on an attachment for an id that no job of this host has.
    ///
    /// # Errors
    /// The refusal that the peer is sent.
    pub fn admit(&mut self, peer: &HostId, attach: &Attach) -> Result<(), Refusal> {
        self.forget_old();
        let known = self.known.get_mut(&attach.job);
        let admitted = admission::admit_probe(known.as_ref().map(|known| &known.probe), peer, attach)?;
        if let Some(known) = known {
            known.probe.admitted = Some(admitted);
        }
        Ok(())
    }

    /// Takes the session of an expected probe, which is read and thrown away from here on; gives any other back.
    pub fn take(&mut self, session: Session) -> Option<Session> {
        let Some(known) = self.known.get_mut(&session.job()) else { return Some(session) };
        known.drain = Some(tokio::spawn(drain(session, self.limits)).abort_handle());
        None
    }

    /// Forgets what is no longer expected, and notes whose session has ended. A session under way reads on.
    fn forget_old(&mut self) {
        let now = Instant::now();
        self.known.retain(|_, known| known.until > now);
        for known in self.known.values_mut() {
            known.probe.over |= known.drain.as_ref().is_some_and(AbortHandle::is_finished);
        }
    }
}

/// Reads a session until its source ends it, or it has had enough.
async fn drain(mut session: Session, limits: DrainLimits) {
    let (Ok(mut blocks), Ok(mut control)) = (session.blocks(), session.control()) else { return };
    let over = sleep(limits.time);
    tokio::pin!(over);
    let mut bytes = 0_u64;
    while bytes <= limits.bytes {
        let taken = tokio::select! {
            () = &mut over => break,
            block = blocks.recv() => match block {
                Ok(Some(block)) => match block.content {
                    Content::Data(data) => data.len(),
                    Content::Zero(_) => 0,
                },
                Ok(None) | Err(_) => return,
            },
            message = control.recv() => match message {
                Ok(Some(message)) => message.len(),
                Ok(None) | Err(_) => return,
            },
        };
        bytes = bytes.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
    }
    tracing::warn!(peer = %session.peer(), job = %session.job(), bytes, "a probe takes too long or too much; it is ended");
    session.abort().await;
}

#[cfg(test)]
mod tests {
    use sterna_shared::peer::attach::{RefusalCode, SessionId};
    use uuid::Uuid;

    use super::*;

    fn job(number: u128) -> JobId {
        JobId::from_uuid(Uuid::from_u128(number))
    }

    fn host(name: &str) -> HostId {
        name.parse().expect("a name")
    }

    fn attach(job: JobId, session: u128) -> Attach {
        let (token, session) = (Token::from_bytes([7; 32]), SessionId(Uuid::from_u128(session)));
        Attach { job, token, session, incarnation: 0, lane: 0, lanes: 4, received: 0, instance: None }
    }

    fn expecting(count: u128) -> ExpectedProbes {
        let mut probes = ExpectedProbes::default();
        for number in 0..count {
            probes.expect(job(number), host("alpha"), Token::from_bytes([7; 32])).expect("room");
        }
        probes
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_is_expected_for_a_while_and_once() {
        let mut probes = expecting(1);
        assert_eq!(probes.admit(&host("alpha"), &attach(job(0), 1)), Ok(()));
        assert_eq!(probes.expect(job(0), host("alpha"), Token::from_bytes([7; 32])), Ok(()), "told again");
        let code = |probes: &mut ExpectedProbes, session| {
            probes.admit(&host("alpha"), &attach(job(0), session)).map_err(|refusal| refusal.code)
        };
        assert_eq!(code(&mut probes, 2), Err(RefusalCode::Replayed), "telling it again changes nothing");
        tokio::time::advance(EXPECTED_FOR - Duration::from_millis(1)).await;
        assert_eq!(code(&mut probes, 1), Ok(()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(code(&mut probes, 1), Err(RefusalCode::UnknownJob));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_expected_than_the_limit_and_no_two_under_one_id() {
        let mut probes = expecting(EXPECTED_MAX as u128);
        let more = |probes: &mut ExpectedProbes| probes.expect(job(1000), host("alpha"), Token::from_bytes([7; 32]));
        assert_eq!(more(&mut probes), Err(TooMany::Expected));
        for (source, token) in [("mallory", 7), ("alpha", 8)] {
            let other = probes.expect(job(1), host(source), Token::from_bytes([token; 32]));
            assert_eq!(other, Err(TooMany::SameId(job(1))));
        }
        tokio::time::advance(EXPECTED_FOR).await;
        assert_eq!(more(&mut probes), Ok(()), "the old ones are forgotten");
        assert_eq!(probes.known.len(), 1);
    }
}
