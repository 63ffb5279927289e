//! A slot: a numbered place for a worker, which outlives the worker.
//!
//! Want and state stand apart: the operator edits the want, the world edits the state, and
//! `Core::reconcile` looks at both.
//!
//! ```text
//!            Raise                    Start                 Ready
//!   Down ───────────▶ Backoff{until} ────────▶ Starting{w} ────────▶ Up{w}
//!    ▲                  ▲    ▲                    │                    │
//!    │ Withdraw         │    └───── Lost{w} ──────┴─────── Lost{w} ────┤
//!    │ (from anywhere)  │ Raise                                        │
//!    └───────────────  Failed  ◀──────────── UsedUp{w} ◀───────────────┘
//!
//!   A reload:  Replace{v} from anywhere but Down ───▶ Up{v}
//! ```
//!
//! Beside the worker that sits here a reload has at most one other ([`Beside`]): first the next one,
//! that is not ready yet; then, parked, the last one.
//!
//! An input that names another worker than the one that sits here is stale and changes nothing.

use crate::event::{Generation, SlotId, WorkerId};
use crate::pause::Rest;
use crate::recycle::Needs;
use crate::restart::Streak;
use crate::time::Now;

/// What is wanted of a slot. Only the operator, and a worker that ends for good, change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A worker.
    Up,
    /// Nobody: the operator stopped it.
    DownByHand,
    /// Nobody: its worker exited with one of `--stop-exit-codes`.
    DownByExit,
    /// Nobody, and it is none of the slots: a scale took it away. Its place is kept, as under
    /// `reuseport` the primary goes on emptying its socket.
    Gone,
}

/// What is true of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// Nobody is wanted here.
    Down,
    /// The next worker starts then.
    Backoff {
        until: Now,
    },
    Starting {
        worker: WorkerId,
    },
    Up {
        worker: WorkerId,
    },
    /// The crash budget is used up.
    Failed,
}

/// What happens to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotInput {
    /// Somebody is wanted here.
    Raise {
        at: Now,
    },
    /// Nobody is wanted here any more. Who sits here leaves by the way of workers.
    Withdraw,
    /// A worker is being started here.
    Start {
        worker: WorkerId,
    },
    Ready {
        worker: WorkerId,
    },
    /// The worker is over; the next one starts then.
    Lost {
        worker: WorkerId,
        until: Now,
    },
    /// The worker is over, and there will be no next one.
    UsedUp {
        worker: WorkerId,
    },
    /// A worker that is ready takes over, from whoever sits here.
    Replace {
        worker: WorkerId,
    },
}

impl SlotState {
    #[must_use]
    pub(crate) fn next(self, input: SlotInput) -> Self {
        use SlotInput::{Lost, Raise, Ready, Replace, Start, UsedUp, Withdraw};
        use SlotState::{Backoff, Down, Failed, Starting, Up};
        match (self, input) {
            (Backoff { .. } | Starting { .. } | Up { .. } | Failed, Replace { worker }) => {
                Up { worker }
            }
            (Down | Failed, Raise { at }) => Backoff { until: at },
            (Down | Backoff { .. } | Starting { .. } | Up { .. } | Failed, Withdraw) => Down,
            (Backoff { .. }, Start { worker }) => Starting { worker },
            (Starting { worker }, Ready { worker: said }) if worker == said => Up { worker },
            (Starting { worker } | Up { worker }, Lost { worker: lost, until })
                if worker == lost =>
            {
                Backoff { until }
            }
            (Starting { worker } | Up { worker }, UsedUp { worker: lost }) if worker == lost => {
                Failed
            }
            // Stale, or already so; each was considered:
            (Down, Replace { .. })
            | (Backoff { .. } | Starting { .. } | Up { .. }, Raise { .. })
            | (Down | Starting { .. } | Up { .. } | Failed, Start { .. })
            | (Down | Backoff { .. } | Starting { .. } | Up { .. } | Failed, Ready { .. })
            | (
                Down | Backoff { .. } | Starting { .. } | Up { .. } | Failed,
                Lost { .. } | UsedUp { .. },
            ) => self,
        }
    }

    /// Who sits here.
    pub(crate) fn worker(self) -> Option<WorkerId> {
        match self {
            Self::Starting { worker } | Self::Up { worker } => Some(worker),
            Self::Down | Self::Backoff { .. } | Self::Failed => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Backoff { .. } => "backoff",
            Self::Starting { .. } => "starting",
            Self::Up { .. } => "up",
            Self::Failed => "failed",
        }
    }
}

/// Who else a slot has while a reload is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Nobody,
    /// The next worker, not ready yet.
    Next {
        worker: WorkerId,
    },
    /// The last worker, parked: it comes back if the reload fails.
    Last {
        worker: WorkerId,
    },
}

/// Whether the primary empties this slot's `reuseport` sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// A worker does, or none was ever here.
    Own,
    /// Nobody does, since then.
    Left { since: Now },
    /// The primary does.
    Adopted,
}

/// One slot.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) id: SlotId,
    pub(crate) want: Want,
    pub(crate) state: SlotState,
    pub(crate) beside: Beside,
    /// Of the workers that are started here after crashes.
    pub(crate) generation: Generation,
    pub(crate) streak: Streak,
    /// Workers started here, those of reloads not counted.
    pub(crate) starts: u32,
    pub(crate) sockets: Sockets,
    pub(crate) needs: Needs,
    pub(crate) rest: Rest,
}

impl Slot {
    pub(crate) fn new(id: SlotId) -> Self {
        Self {
            id,
            want: Want::Up,
            state: SlotState::Down,
            beside: Beside::Nobody,
            generation: Generation(1),
            streak: Streak::default(),
            starts: 0,
            sockets: Sockets::Own,
            needs: Needs::default(),
            rest: Rest::No,
        }
    }

    /// Whether it is one of the slots that there are.
    pub(crate) fn exists(&self) -> bool {
        self.want != Want::Gone
    }

    pub(crate) fn take(&mut self, input: SlotInput) {
        self.state = self.state.next(input);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_input() {
        use SlotInput::{Lost, Raise, Ready, Replace, Start, UsedUp, Withdraw};
        use SlotState::{Backoff, Down, Failed, Starting, Up};
        let (a, b) = (WorkerId(1), WorkerId(2));
        let (t, u) = (Now(5), Now(9));
        let back = Backoff { until: t };
        let (starting, up) = (Starting { worker: a }, Up { worker: a });
        #[rustfmt::skip]
        let table = [
            (Down,     Raise { at: u },               Backoff { until: u }),
            (Down,     Withdraw,                      Down),
            (Down,     Start { worker: a },           Down),
            (Down,     Ready { worker: a },           Down),
            (Down,     Lost { worker: a, until: u },  Down),
            (Down,     UsedUp { worker: a },          Down),
            (back,     Raise { at: u },               back),
            (back,     Withdraw,                      Down),
            (back,     Start { worker: a },           starting),
            (back,     Ready { worker: a },           back),
            (back,     Lost { worker: a, until: u },  back),
            (back,     UsedUp { worker: a },          back),
            (starting, Raise { at: u },               starting),
            (starting, Withdraw,                      Down),
            (starting, Start { worker: b },           starting),
            (starting, Ready { worker: a },           up),
            (starting, Ready { worker: b },           starting),
            (starting, Lost { worker: a, until: u },  Backoff { until: u }),
            (starting, Lost { worker: b, until: u },  starting),
            (starting, UsedUp { worker: a },          Failed),
            (starting, UsedUp { worker: b },          starting),
            (up,       Raise { at: u },               up),
            (up,       Withdraw,                      Down),
            (up,       Start { worker: b },           up),
            (up,       Ready { worker: a },           up),
            (up,       Ready { worker: b },           up),
            (up,       Lost { worker: a, until: u },  Backoff { until: u }),
            (up,       Lost { worker: b, until: u },  up),
            (up,       UsedUp { worker: a },          Failed),
            (up,       UsedUp { worker: b },          up),
            (Failed,   Raise { at: u },               Backoff { until: u }),
            (Failed,   Withdraw,                      Down),
            (Failed,   Start { worker: a },           Failed),
            (Failed,   Ready { worker: a },           Failed),
            (Failed,   Lost { worker: a, until: u },  Failed),
            (Failed,   UsedUp { worker: a },          Failed),
            (Down,     Replace { worker: b },         Down),
            (back,     Replace { worker: b },         Up { worker: b }),
            (starting, Replace { worker: b },         Up { worker: b }),
            (up,       Replace { worker: b },         Up { worker: b }),
            (Failed,   Replace { worker: b },         Up { worker: b }),
        ];
        for (state, input, expected) in table {
            assert_eq!(state.next(input), expected, "{state:?} with {input:?}");
        }
    }
}
