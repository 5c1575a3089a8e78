//! Admission: may this peer open a lane for this job? Pure, but for the record that it reads and changes.
//!
//! All three must fit before a byte reaches QEMU: the job is in this host's journal with this host as its target, the
//! certificate names that job's source, and the token is that job's, used by this session and no other.

use sterna_shared::id::HostId;
use sterna_shared::peer::attach::{Admitted, Attach, Refusal, RefusalCode};

use crate::journal::{JobRecord, Role};

/// Decides on an attachment; what the job's record must say before it is let in.
///
/// # Errors
/// The refusal that the peer is sent.
pub fn admit(record: Option<&JobRecord>, peer: &HostId, attach: &Attach) -> Result<Admitted, Refusal> {
    let Some(record) = record.filter(|record| record.role == Role::Target) else {
        let text = format!("this host is not the target of job {}; it may not have learnt of it yet", attach.job);
        return Err(Refusal::new(RefusalCode::UnknownJob, text));
    };
    if record.plan.source.id != *peer {
        let text = format!("job {} comes from {}, and the certificate says {peer}", attach.job, record.plan.source.id);
        return Err(Refusal::new(RefusalCode::WrongHost, text));
    }
    if !record.plan.token.matches(attach.token.bytes()) {
        return Err(Refusal::new(RefusalCode::WrongToken, "the token is not this job's; plan the move again"));
    }
    if attach.lanes != record.plan.lanes {
        let text = format!("{} lanes were planned, and {} are asked for", record.plan.lanes, attach.lanes);
        return Err(Refusal::new(RefusalCode::Malformed, text));
    }
    Admitted::admit(record.admitted, attach)
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
}
