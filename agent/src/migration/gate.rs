//! Until when a job can be cancelled: one atomic decision between an operator's wish and the point of no return.

use tokio::sync::watch;

/// Where a job stands between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Cancelled,
    Closed,
}

/// A gate that either a cancel or the handover passes, and never both. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct CancelGate {
    state: watch::Sender<State>,
}

impl Default for CancelGate {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::Open) }
    }
}

impl CancelGate {
    /// Asks for a cancel; whether it will be honoured.
    #[must_use]
    pub fn cancel(&self) -> bool {
        self.state.send_if_modified(|state| {
            let open = *state == State::Open;
            if open {
                *state = State::Cancelled;
            }
            open
        });
        *self.state.borrow() == State::Cancelled
    }

    /// Whether a cancel was asked for and is honoured.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.state.borrow() == State::Cancelled
    }

    /// Passes the point of no return; whether that was still possible.
    #[must_use]
    pub fn close(&self) -> bool {
        self.state.send_if_modified(|state| {
            let open = *state == State::Open;
            if open {
                *state = State::Closed;
            }
            open
        });
        *self.state.borrow() == State::Closed
    }

    /// Waits for a cancel, for ever where none comes.
    pub async fn cancelled(&self) {
        let mut state = self.state.subscribe();
        if state.wait_for(|state| *state == State::Cancelled).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_passes() {
        let gate = CancelGate::default();
        assert!(gate.cancel());
        assert!(gate.cancel(), "a repeated cancel is the same cancel");
        assert!(!gate.close());
        let gate = CancelGate::default();
        assert!(gate.close());
        assert!(!gate.cancel());
    }
}
