//! Admission: may this peer open a lane for this job? Pure, but for the record that it reads and changes.
//!
//! All three must fit before a byte reaches QEMU: the job is in this host's journal with this host as its target, the
//! certificate names that job's source, and the token is that job's, used by this session and no other. A probe stands in
//! no journal, and is held to the same: this host was told to expect it, from that host, with that token, once.

use sterna_shared::id::{HostId, JobId, Token};
use sterna_shared::peer::attach::{Admitted, Attach, Refusal, RefusalCode};

use crate::journal::{JobRecord, Role};

/// Decides on an attachment; what the job's record must say before it is let in.
///
/// # Errors
/// The refusal that the peer is sent.
pub fn admit(record: Option<&JobRecord>, peer: &HostId, attach: &Attach) -> Result<Admitted, Refusal> {
    let Some(record) = record.filter(|record| matches!(record.role, Role::Target | Role::Replica)) else {
        return Err(unknown(attach.job));
    };
    fits(&record.plan.source.id, &record.plan.token, peer, attach)?;
    if attach.lanes != record.plan.lanes {
        let text = format!("{} lanes were planned, and {} are asked for", record.plan.lanes, attach.lanes);
        return Err(Refusal::new(RefusalCode::Malformed, text));
    }
    Admitted::admit(record.admitted, attach)
}

/// A probe that this host was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedProbe {
    /// The host that it comes from.
    pub source: HostId,
    /// What it must present.
    pub token: Token,
    /// Which session the token has admitted.
    pub admitted: Option<Admitted>,
    /// Whether that session has ended.
    pub over: bool,
}

/// Decides on an attachment for an id of which the journal says nothing; what is to be remembered before it is let in.
///
/// # Errors
/// The refusal that the peer is sent.
pub fn admit_probe(probe: Option<&ExpectedProbe>, peer: &HostId, attach: &Attach) -> Result<Admitted, Refusal> {
    let Some(probe) = probe else { return Err(unknown(attach.job)) };
    fits(&probe.source, &probe.token, peer, attach)?;
    let admitted = Admitted::admit(probe.admitted, attach)?;
    // A job's session may begin anew where an agent was restarted. Whoever probes asks for another probe.
    if probe.over || probe.admitted.is_some_and(|before| before != admitted) {
        return Err(Refusal::new(RefusalCode::Replayed, "this probe has been made; ask for another"));
    }
    Ok(admitted)
}

fn unknown(job: JobId) -> Refusal {
    let text = format!("this host is not the target of job {job}; it may not have learnt of it yet");
    Refusal::new(RefusalCode::UnknownJob, text)
}

fn fits(source: &HostId, token: &Token, peer: &HostId, attach: &Attach) -> Result<(), Refusal> {
    if source != peer {
        let text = format!("job {} comes from {source}, and the certificate says {peer}", attach.job);
        return Err(Refusal::new(RefusalCode::WrongHost, text));
    }
    if !token.matches(attach.token.bytes()) {
        return Err(Refusal::new(RefusalCode::WrongToken, "the token is not this job's; plan the move again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sterna_shared::id::Token;
    use sterna_shared::peer::attach::SessionId;
    use uuid::Uuid;

    use super::*;
    use crate::journal::tests::job_record;

    fn attach(token: u8, session: u128, incarnation: u32) -> Attach {
        Attach {
            job: job_record(Role::Target).plan.job,
            token: Token::from_bytes([token; 32]),
            session: SessionId(Uuid::from_u128(session)),
            incarnation,
            lane: 0,
            lanes: 4,
            received: 0,
            instance: None,
        }
    }

    fn code(record: Option<&JobRecord>, peer: &str, attach: &Attach) -> Result<(), RefusalCode> {
        admit(record, &peer.parse().expect("a name"), attach).map(drop).map_err(|refusal| refusal.code)
    }

    #[test]
    fn all_three_must_fit() {
        let record = job_record(Role::Target);
        assert_eq!(code(Some(&record), "alpha", &attach(7, 1, 0)), Ok(()));
        assert_eq!(code(None, "alpha", &attach(7, 1, 0)), Err(RefusalCode::UnknownJob));
        assert_eq!(code(Some(&job_record(Role::Source)), "alpha", &attach(7, 1, 0)), Err(RefusalCode::UnknownJob));
        assert_eq!(code(Some(&record), "mallory", &attach(7, 1, 0)), Err(RefusalCode::WrongHost));
        assert_eq!(code(Some(&record), "alpha", &attach(8, 1, 0)), Err(RefusalCode::WrongToken));
    }

    #[test]
    fn a_token_admits_one_session() {
        let first = admit(Some(&job_record(Role::Target)), &"alpha".parse().expect("a name"), &attach(7, 1, 1));
        let record = JobRecord { admitted: first.ok(), ..job_record(Role::Target) };
        assert_eq!(code(Some(&record), "alpha", &attach(7, 1, 1)), Ok(()));
        assert_eq!(code(Some(&record), "alpha", &attach(7, 1, 2)), Ok(()));
        assert_eq!(code(Some(&record), "alpha", &attach(7, 2, 1)), Err(RefusalCode::Replayed));
        assert_eq!(code(Some(&record), "alpha", &attach(7, 1, 0)), Err(RefusalCode::Outdated));
    }

    #[test]
    fn a_probe_is_held_to_the_same_and_made_once() {
        let source: HostId = "alpha".parse().expect("a name");
        let probe = ExpectedProbe { source, token: Token::from_bytes([7; 32]), admitted: None, over: false };
        let code = |probe: Option<&ExpectedProbe>, peer: &str, attach: &Attach| {
            admit_probe(probe, &peer.parse().expect("a name"), attach).map_err(|refusal| refusal.code)
        };
        assert_eq!(code(None, "alpha", &attach(7, 1, 0)), Err(RefusalCode::UnknownJob));
        assert_eq!(code(Some(&probe), "mallory", &attach(7, 1, 0)), Err(RefusalCode::WrongHost));
        assert_eq!(code(Some(&probe), "alpha", &attach(8, 1, 0)), Err(RefusalCode::WrongToken));
        let admitted = code(Some(&probe), "alpha", &attach(7, 1, 0)).ok();
        assert!(admitted.is_some());
        let begun = ExpectedProbe { admitted, ..probe };
        assert_eq!(code(Some(&begun), "alpha", &attach(7, 1, 0)).ok(), admitted, "another lane of it");
        assert_eq!(code(Some(&begun), "alpha", &attach(7, 2, 0)), Err(RefusalCode::Replayed));
        assert_eq!(code(Some(&begun), "alpha", &attach(7, 1, 1)), Err(RefusalCode::Replayed), "begun anew");
        let made = ExpectedProbe { over: true, ..begun };
        assert_eq!(code(Some(&made), "alpha", &attach(7, 1, 0)), Err(RefusalCode::Replayed));
    }
}
