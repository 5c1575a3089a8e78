//! Until when a job can be ended: one atomic decision between an operator's wish and the point of no return.

use std::fmt;

use tokio::sync::watch;

/// What an operator wants of a job under way. A later one counts for more: who suspends and then cancels has cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Stop, and go on later.
    Suspend,
    /// End, and put everything back.
    Cancel,
    /// End at once, and put everything back afterwards.
    Kill,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Suspend => "suspend",
            Self::Cancel => "cancel",
            Self::Kill => "kill",
        })
    }
}

/// Where a job stands between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended(Wish),
    Closed,
}

/// A gate that either an operator's wish or the handover passes, and never both. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    state: watch::Sender<State>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::Open) }
    }
}

impl Gate {
    /// Asks for the job's end; whether it will be honoured.
    #[must_use]
    pub fn end(&self, wish: Wish) -> bool {
        self.state.send_if_modified(|state| {
            let stronger = match *state {
                State::Open => true,
                State::Ended(before) => wish > before,
                State::Closed => false,
            };
            if stronger {
                *state = State::Ended(wish);
            }
            stronger
        });
        self.wish().is_some_and(|ended| ended >= wish)
    }

    /// What was asked for and is honoured.
    #[must_use]
    pub fn wish(&self) -> Option<Wish> {
        match *self.state.borrow() {
            State::Ended(wish) => Some(wish),
            State::Open | State::Closed => None,
        }
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

    /// Waits until the job's end is asked for, for ever where it is not.
    pub async fn ended(&self) -> Wish {
        let mut state = self.state.subscribe();
        loop {
            if let State::Ended(wish) = *state.borrow_and_update() {
                return wish;
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_passes() {
        let gate = Gate::default();
        assert!(gate.end(Wish::Cancel));
        assert!(gate.end(Wish::Cancel), "a repeated cancel is the same cancel");
        assert!(!gate.close());
        let gate = Gate::default();
        assert!(gate.close());
        assert!(!gate.end(Wish::Kill));
    }

    #[test]
    fn who_wants_more_gets_it_and_nobody_takes_it_back() {
        let gate = Gate::default();
        assert!(gate.end(Wish::Suspend));
        assert!(gate.end(Wish::Cancel));
        assert_eq!(gate.wish(), Some(Wish::Cancel));
        assert!(gate.end(Wish::Suspend), "what was asked for is more than that");
        assert_eq!(gate.wish(), Some(Wish::Cancel));
    }
}
