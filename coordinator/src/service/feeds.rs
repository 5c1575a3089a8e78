//! What the feed is told beside jobs, hosts and VMs as they change: replications, which grow old by themselves.

use super::state::{Action, Now, State, push_document};

impl State {
    /// Tells how replications stand, as far as there is anything new.
    pub(super) fn tell_replicas(&mut self, now: Now, out: &mut Vec<Action>) {
        let views = self.replicas(now);
        for document in self.replica_feed.tell(&self.name, &views, now.at, now.clock) {
            push_document(document, out);
        }
        // What a host that is silent has of a replication stays with what it last said, and so is not missed here.
        out.extend(self.replica_feed.forget(&views).into_iter().map(Action::RemoveFeed));
    }
}
