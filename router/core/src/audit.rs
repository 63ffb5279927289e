//! The audit: whether a worker's page agrees with the kernel.
//!
//! Numbers that are impossible by themselves are found where they are read (`dealer.rs`). Here are
//! those that are only untrue. What was sent and is not in the kernel's queue any more was claimed,
//! whatever the page says:
//!
//! | the page is | who that is | found out |
//! |---|---|---|
//! | behind | everybody between recvmsg and count; for good: who hides claims, whose filter drops, who lost a process in that moment | when it was so at every look for [`UNCLAIMED_MAX`] |
//! | ahead | nobody who counts what it has taken | at [`AHEAD_LOOKS`] looks in a row |
//!
//! It does not matter what else is in the queue: one connection that really waits hides nothing.
//! Never does: look without a reason. Looks come with those for late workers, while hand-offs go on
//! or something is queued.

use core::time::Duration;

use crate::event::{Loads, Report};
use crate::primary::Core;
use crate::time::Now;
use crate::worker::State;

/// How long a page may be behind: the time between a worker's recvmsg and its count, stretched by a
/// machine that is out of CPU.
const UNCLAIMED_MAX: Duration = Duration::from_secs(3);
/// Looks at which it must have been so: two that are far apart show two moments, not one state.
const BEHIND_LOOKS: u8 = 10;
/// Looks in a row at which a page may be ahead. One is enough by the rules; the others are for what
/// nobody thought of.
const AHEAD_LOOKS: u8 = 3;
/// Between looks while something is queued and all agrees.
const CALM: Duration = Duration::from_secs(1);
/// Between looks at a page that is ahead.
const DOUBT: Duration = Duration::from_millis(20);

/// What the last looks at a worker's page came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Audit {
    behind: Option<Now>,
    behind_looks: u8,
    ahead: u8,
    next: Now,
    /// So many had been sent when all were claimed and counted.
    settled: u64,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// To be looked at again then, or whenever there is a reason.
    Fits {
        again: Option<Now>,
    },
    Doubtful {
        again: Now,
    },
    Untrue,
}

/// One look: claims as the page said before the kernel was asked and after, and what is so.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    before: u64,
    after: u64,
    truth: u64,
    sent: u64,
}

impl Audit {
    /// Looks may have become more frequent.
    pub(crate) fn look_sooner(&mut self, stall_after: Duration, now: Now) {
        self.next = self.next.min(now.after(pause(stall_after)));
    }

    fn look(&mut self, numbers: Numbers, pause: Duration, now: Now) -> Finding {
        let Numbers { before, after, truth, sent } = numbers;
        self.settled = 0;
        self.ahead = if before > truth { self.ahead.saturating_add(1) } else { 0 };
        if after < truth {
            self.behind_looks = self.behind_looks.saturating_add(1);
        } else {
            (self.behind, self.behind_looks) = (None, 0);
        }
        let behind = match self.behind_looks {
            0 => Duration::ZERO,
            _ => now.since(*self.behind.get_or_insert(now)),
        };
        if self.ahead >= AHEAD_LOOKS
            || (behind >= UNCLAIMED_MAX && self.behind_looks >= BEHIND_LOOKS)
        {
            return Finding::Untrue;
        }
        if self.ahead > 0 || self.behind_looks > 0 {
            let pause = if self.ahead > 0 { DOUBT } else { pause };
            self.next = now.after(pause);
            return Finding::Doubtful { again: self.next };
        }
        self.next = now.after(pause);
        if after == sent {
            self.settled = sent;
        }
        Finding::Fits { again: (after < sent).then(|| now.after(CALM.max(pause))) }
    }
}

impl Core {
    /// Compares worker `i`'s page with the kernel, if it is time to; when that must be done again.
    pub(crate) fn audit(&mut self, i: usize, loads: &impl Loads) -> Option<Now> {
        let (now, pause) = (self.dealer.now, pause(self.config.stall_after));
        let (seat, worker) = self.dealer.both(i)?;
        // Nothing was sent since all was well: without this, workers would keep each other's looks going.
        let serves = matches!(worker.state, State::Ready { .. } | State::Finishing { .. });
        if !serves || seat.sent == worker.audit.settled {
            return None;
        }
        if now < worker.audit.next {
            return Some(worker.audit.next);
        }
        // What is on its way in or out is in neither number.
        if worker.taking.is_some() || worker.in_flight > 0 {
            return Some(now.after(pause));
        }
        let id = seat.id;
        // In this order: what is claimed between the readings makes nobody look untrue.
        let before = loads.load(id).claimed;
        let queued = u64::from(loads.queued_exact(id)?);
        let after = loads.load(id).claimed;
        let truth = seat.sent.saturating_sub(queued);
        let numbers = Numbers { before, after, truth, sent: seat.sent };
        match worker.audit.look(numbers, pause, now) {
            Finding::Fits { again } => again,
            Finding::Doubtful { again } => Some(again),
            Finding::Untrue => {
                self.report(Report::NumbersDoNotFit { worker: id });
                self.condemn(id);
                None
            }
        }
    }
}

/// Between two looks at one worker.
fn pause(stall_after: Duration) -> Duration {
    stall_after.max(DOUBT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Now {
        Now(ms * 1_000_000)
    }

    fn numbers(before: u64, after: u64, truth: u64) -> Numbers {
        Numbers { before, after, truth, sent: 10 }
    }

    /// Looks every 100 ms until it is found out; the millisecond of that.
    fn found_out(mut said: impl FnMut(u64) -> Numbers) -> Option<u64> {
        let mut audit = Audit::default();
        (0..100)
            .map(|look| look * 100)
            .find(|ms| audit.look(said(*ms), PAUSE, at(*ms)) == Finding::Untrue)
    }

    #[test]
    fn one_look() {
        let doubt = |ms| Finding::Doubtful { again: at(ms) };
        let calm = Finding::Fits { again: Some(at(1000)) };
        let table = [
            (numbers(10, 10, 10), Finding::Fits { again: None }),
            // Something is queued, and all agree on it.
            (numbers(4, 4, 4), calm),
            // Claimed and counted while the kernel was asked.
            (numbers(4, 5, 4), calm),
            (numbers(4, 5, 5), calm),
            (numbers(4, 4, 5), doubt(100)),
            (numbers(0, 0, 10), doubt(100)),
            (numbers(5, 5, 4), doubt(20)),
            (numbers(5, 10, 4), doubt(20)),
        ];
        for (numbers, expected) in table {
            assert_eq!(Audit::default().look(numbers, PAUSE, at(0)), expected, "{numbers:?}");
        }
    }

    #[test]
    fn who_is_behind_for_long_is_found_out_whatever_else_moves() {
        assert_eq!(found_out(|_| numbers(0, 0, 1)), Some(3000));
        // It goes on claiming and counting, one less than it claims.
        assert_eq!(found_out(|ms| numbers(ms, ms, ms + 1)), Some(3000));
        // Between recvmsg and count, now and then.
        assert_eq!(found_out(|ms| numbers(4, 4, 4 + u64::from(ms % 2000 > 0))), None);
    }

    #[test]
    fn two_moments_far_apart_are_not_one_state() {
        let mut audit = Audit::default();
        for second in 0..u64::from(BEHIND_LOOKS) - 1 {
            let finding = audit.look(numbers(0, 0, 1), PAUSE, at(second * 4000));
            assert!(matches!(finding, Finding::Doubtful { .. }), "{second}: {finding:?}");
        }
        assert_eq!(audit.look(numbers(0, 0, 1), PAUSE, at(99_000)), Finding::Untrue);
    }

    #[test]
    fn who_is_ahead_is_found_out_soon() {
        assert_eq!(found_out(|_| numbers(5, 5, 4)), Some(200));
        assert_eq!(found_out(|ms| numbers(4 + u64::from(ms % 300 > 0), 5, 4)), None);
    }
}
