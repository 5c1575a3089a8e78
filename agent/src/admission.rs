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
