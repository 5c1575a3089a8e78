//! The lanes of open sessions, as ways to the other hosts of a VM.
//!
//! A VM may be on its way to one host while another, from which it came, opens a session for that older job. So a message goes
//! only by sessions with the host that it is for, and by all of these: a message may be repeated, and which of them is still good
//! nobody knows.

use sterna_shared::id::{HostId, JobId};
use sterna_shared::ownership::Message;
use sterna_shared::peer::message::Message as PeerMessage;
use tokio::sync::mpsc;

/// Sessions that one VM may have at a time, and be heard by.
const ROUTES_MAX: usize = 16;

/// The routes of one VM, the newest last: one for each peer and job.
#[derive(Debug, Default)]
pub(super) struct Routes(Vec<Route>);

#[derive(Debug)]
struct Route {
    peer: HostId,
    job: JobId,
    /// They close with the session.
    lanes: mpsc::Sender<PeerMessage>,
}

impl Routes {
    /// Opens a route. Of one that has closed its job is known until the same peer has another one.
    pub(super) fn open(&mut self, peer: HostId, job: JobId, lanes: mpsc::Sender<PeerMessage>) {
        self.0.retain(|route| route.peer != peer || (route.job != job && !route.lanes.is_closed()));
        if self.0.len() >= ROUTES_MAX {
            // A peer that opens too many harms itself first.
            let closed = self.0.iter().position(|route| route.lanes.is_closed());
            let place = closed.or_else(|| self.0.iter().position(|route| route.peer == peer)).unwrap_or(0);
            self.0.remove(place);
        }
        self.0.push(Route { peer, job, lanes });
    }

    /// Sends to a peer; whether any session took it.
    pub(super) fn send(&self, to: &HostId, message: Message) -> bool {
        let mut taken = false;
        for route in self.0.iter().filter(|route| route.peer == *to) {
            taken |= route.lanes.try_send(PeerMessage::Handover { message }).is_ok();
        }
        taken
    }

    /// The job of the newest session with a peer.
    pub(super) fn job(&self, with: &HostId) -> Option<JobId> {
        self.0.iter().rev().find(|route| route.peer == *with).map(|route| route.job)
    }
}

#[cfg(test)]
mod tests {
    use sterna_shared::id::Generation;
    use uuid::Uuid;

    use super::*;

    const CEDE: Message = Message::Cede { generation: Generation(7) };

    fn host(name: &str) -> HostId {
        name.parse().expect("a name")
    }

    fn job(number: u128) -> JobId {
        JobId::from_uuid(Uuid::from_u128(number))
    }

    fn open(routes: &mut Routes, peer: &str, number: u128) -> mpsc::Receiver<PeerMessage> {
        let (lanes, outbox) = mpsc::channel(1);
        routes.open(host(peer), job(number), lanes);
        outbox
    }

    #[test]
    fn a_session_of_an_older_job_takes_nothing_from_the_job_under_way() {
        let mut routes = Routes::default();
        let mut charlie = open(&mut routes, "charlie", 2);
        let mut alpha = open(&mut routes, "alpha", 1);
        assert!(routes.send(&host("charlie"), CEDE));
        assert_eq!(charlie.try_recv(), Ok(PeerMessage::Handover { message: CEDE }));
        assert!(alpha.try_recv().is_err());
        drop(alpha);
        assert!(routes.send(&host("charlie"), CEDE));
        assert!(!routes.send(&host("alpha"), CEDE));
        assert_eq!(routes.job(&host("charlie")), Some(job(2)));
        assert_eq!(routes.job(&host("alpha")), Some(job(1)));
    }

    #[test]
    fn an_older_job_with_the_same_host_takes_nothing_either() {
        let mut routes = Routes::default();
        let mut under_way = open(&mut routes, "charlie", 2);
        let older = open(&mut routes, "charlie", 1);
        assert!(routes.send(&host("charlie"), CEDE));
        assert!(under_way.try_recv().is_ok());
        drop(older);
        assert!(routes.send(&host("charlie"), CEDE));
        assert!(under_way.try_recv().is_ok());
    }

    #[test]
    fn a_host_that_opens_too_many_sessions_harms_itself() {
        let mut routes = Routes::default();
        let mut charlie = open(&mut routes, "charlie", 1);
        let alphas: Vec<_> = (2..40).map(|number| open(&mut routes, "alpha", number)).collect();
        assert_eq!(routes.0.len(), ROUTES_MAX);
        assert!(routes.send(&host("charlie"), CEDE));
        assert!(charlie.try_recv().is_ok());
        drop(alphas);
    }
}
