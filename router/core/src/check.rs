//! `--ready-probe`: a new worker is ready only when it has answered a request of the primary's.
//!
//! ```text
//!                 all else that ready needs is there         Checked{passed}
//!   Due{after} ──────────────────────────────────────▶ Asked ──────────────▶ Passed
//!      ▲                                                 │
//!      └────────────── Checked{not passed} ──────────────┘
//! ```
//!
//! One request at a time for each worker, and never a second one behind a first that was not even
//! claimed. It has no deadline of its own: whoever does not answer before `--ready-timeout` is not
//! ready, and a slow first answer is an answer. Between two of them the wait doubles.

use core::time::Duration;

use crate::config::ProbeRule;
use crate::event::{Action, Loads, WorkerId};
use crate::primary::Core;
use crate::time::Now;
use crate::worker::{State, Worker};

/// After the first answer that was not as it should be; doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How far the request that a starting worker must answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Not asked, or not again before then.
    Due { after: Now, tries: u8 },
    /// The shell was asked to; the answer is awaited.
    Asked { tries: u8 },
    /// It answered as it should.
    Passed,
}

impl Check {
    fn answered(self, passed: bool, now: Now) -> Self {
        match (self, passed) {
            (Self::Asked { .. }, true) => Self::Passed,
            (Self::Asked { tries }, false) => {
                let wait = FIRST_WAIT.saturating_mul(1 << tries.min(8)).min(LONGEST_WAIT);
                Self::Due { after: now.after(wait), tries: tries.saturating_add(1) }
            }
            // Stale: nothing was asked.
            (Self::Due { .. } | Self::Passed, true | false) => self,
        }
    }
}

impl Check {
    /// Whatever was asked or answered does not count.
    pub(crate) fn again(self, now: Now) -> Self {
        match self {
            Self::Due { .. } => self,
            Self::Asked { tries } => Self::Due { after: now, tries },
            Self::Passed => Self::Due { after: now, tries: 0 },
        }
    }
}

impl Core {
    /// Whether a starting worker has answered, if it must. Asks it where that is due.
    pub(crate) fn has_passed(&mut self, i: usize, loads: &impl Loads) -> bool {
        match self.config.ready_probe {
            ProbeRule::None => return true,
            ProbeRule::Answer => {}
        }
        let now = self.dealer.now;
        let Some((seat, worker)) = self.dealer.both(i) else { return false };
        let tries = match worker.check {
            Check::Passed => return true,
            Check::Asked { .. } => return false,
            Check::Due { after, .. } if after > now => return false,
            Check::Due { tries, .. } => tries,
        };
        let Some(listener) = seat.listens.first() else { return false };
        if loads.load(seat.id).claimed < seat.sent {
            // What it was sent before is still in its queue: it does not accept now.
            worker.check = Check::Asked { tries }.answered(false, now);
            return false;
        }
        worker.check = Check::Asked { tries };
        let worker = seat.id;
        self.actions.push_back(Action::Check { worker, listener });
        false
    }

    /// When a worker is to be asked again.
    pub(crate) fn next_check(&self, worker: &Worker) -> Option<Now> {
        match (worker.state, worker.check) {
            (State::Starting { .. }, Check::Due { after, .. }) => {
                // Without a probe it is due at once, which is never later than now.
                Some(after).filter(|after| *after > self.dealer.now)
            }
            (State::Starting { .. }, Check::Asked { .. } | Check::Passed)
            | (
                State::Ready { .. }
                | State::Parked { .. }
                | State::Finishing { .. }
                | State::Signalled { .. }
                | State::Aborting { .. }
                | State::Killing { .. }
                | State::Dead,
                _,
            ) => None,
        }
    }

    pub(crate) fn check_sent(&mut self, worker: WorkerId) {
        let now = self.dealer.now;
        let Some(i) = self.dealer.find(worker) else { return };
        if let Some(worker) = self.dealer.workers.get_mut(i) {
            worker.count_hand_off(now);
        }
        self.dealer.resent(i);
    }

    pub(crate) fn checked(&mut self, worker: WorkerId, passed: bool) {
        let now = self.dealer.now;
        if let Some(worker) = self.dealer.find(worker).and_then(|i| self.dealer.workers.get_mut(i))
        {
            worker.check = worker.check.answered(passed, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_answer() {
        let now = Now(1_000_000_000);
        let due = Check::Due { after: Now(5), tries: 3 };
        let asked = |tries| Check::Asked { tries };
        let after = |ms, tries| Check::Due { after: now.after(Duration::from_millis(ms)), tries };
        let table = [
            (due, true, due),
            (due, false, due),
            (Check::Passed, true, Check::Passed),
            (Check::Passed, false, Check::Passed),
            (asked(0), true, Check::Passed),
            (asked(7), true, Check::Passed),
            (asked(0), false, after(100, 1)),
            (asked(1), false, after(200, 2)),
            (asked(4), false, after(1600, 5)),
            (asked(5), false, after(2000, 6)),
            (asked(255), false, after(2000, 255)),
        ];
        for (state, passed, expected) in table {
            assert_eq!(state.answered(passed, now), expected, "{state:?} with {passed}");
        }
    }
}
