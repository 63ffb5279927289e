//! Hung workers: those that have something to do and do nothing.
//!
//! Late is normal, hung is not: a worker that has claimed nothing and closed nothing for
//! `--hung-timeout`, although something is queued for it, or was taken out and not counted, or was stolen
//! from it and its probe stands unanswered. It gets SIGABRT (and SIGCONT, should it be stopped), so that it
//! may leave a core; its slot gets the next worker at once; `kill_after` later the family is killed. What is
//! in its queue is taken back as soon as somebody else serves.
//!
//! | it is | then |
//! |---|---|
//! | ready, alone or not, old or new in a reload | it is judged; a new one fails the reload |
//! | starting | it is not: `--ready-timeout` is for those |
//! | parked | it is not: it is given nothing, and its queue is taken back. Unparked, it begins anew |
//! | draining | it is not: its drain has an end |
//! | judged, and a reload brings another time, or fails and takes its own along | its silence counts from then |
//!
//! Promises: nobody is judged by a primary that itself woke late, in less than the time given, or by a
//! time that is not in force; no timer runs while nothing is queued. Off (zero), it costs a hand-off one
//! comparison.

use core::time::Duration;

use crate::bells::closed;
use crate::event::{Fault, Loads, Report};
use crate::primary::Core;
use crate::seat::Seat;
use crate::time::Now;
use crate::worker::{Input, Lateness, State};

/// So many looks in a `--hung-timeout`: a worker is found hung up to one of them late.
const LOOKS: u32 = 4;

/// What was last seen of a worker's progress.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watch {
    claimed: u64,
    closed: u64,
    /// Since when it has had something to do and nothing has changed.
    since: Option<Now>,
}

impl Watch {
    /// Notes what is seen now. How long nothing has changed though there was something to do.
    fn see(&mut self, seat: &Seat, owes: bool, now: Now) -> Duration {
        let (claimed, closed) = (seat.claimed, closed(seat));
        let moved = (claimed, closed) != (self.claimed, self.closed);
        (self.claimed, self.closed) = (claimed, closed);
        if moved || !owes {
            self.since = None;
        }
        if !owes {
            return Duration::ZERO;
        }
        now.since(*self.since.get_or_insert(now))
    }
}

impl Core {
    /// Something was queued for somebody: it may hang.
    pub(crate) fn expect_hung(&mut self) {
        let limit = self.config.limits.hung_timeout;
        if self.hung_at.is_none() && !limit.is_zero() {
            self.hung_at = Some(self.dealer.now.after(look_every(limit)));
        }
    }

    /// Another time is in force. Nobody is judged by it for what was before, and whoever has something
    /// to do already needs no further hand-off to be looked at.
    pub(crate) fn judge_anew(&mut self) {
        self.hung_at = None;
        for worker in &mut self.dealer.workers {
            worker.watch = Watch::default();
        }
        self.expect_hung();
    }

    /// The time to look at everybody's progress has come.
    pub(crate) fn look_for_hung(&mut self, loads: &impl Loads) {
        let (now, limit) = (self.dealer.now, self.config.limits.hung_timeout);
        // Then all that it sees is old.
        let overslept = self.hung_at.take().is_some_and(|at| now.since(at) > look_every(limit));
        if limit.is_zero() {
            return;
        }
        let mut somebody_owes = false;
        for i in 0..self.dealer.workers.len() {
            let owes = self.owes_an_answer(i, loads);
            let Some((seat, worker)) = self.dealer.both(i) else { continue };
            if overslept {
                worker.watch.since = None;
            }
            let silent = worker.watch.see(seat, owes, now);
            if owes && silent >= limit {
                self.abort(i, silent, loads);
            } else {
                somebody_owes |= owes;
            }
        }
        // A reload may have failed with one of them, and its time is not in force any more.
        if somebody_owes {
            self.expect_hung();
        }
    }

    /// Whether a worker that is ready has something that it should claim.
    fn owes_an_answer(&mut self, i: usize, loads: &impl Loads) -> bool {
        let ready = |state: State| matches!(state, State::Ready { .. });
        if !self.dealer.workers.get(i).is_some_and(|worker| ready(worker.state)) {
            return false;
        }
        self.dealer.look(i, loads);
        let Some((seat, worker)) = self.dealer.both(i) else { return false };
        match worker.lateness {
            // Its queue was taken away; the probe, or the wish for one, is what it owes.
            Lateness::Emptied | Lateness::Probed => true,
            // Also what it has taken out and not counted: stopped, or stuck, in that moment, it does not go on.
            Lateness::No | Lateness::Late => {
                seat.queued() > 0 || loads.queued_exact(seat.id).is_some_and(|count| count > 0)
            }
        }
    }

    fn abort(&mut self, i: usize, silent: Duration, loads: &impl Loads) {
        let Some((seat, worker)) = self.dealer.both(i) else { return };
        let (id, slot) = (seat.id, worker.slot);
        worker.fault = Fault::Hung;
        let said = u32::try_from(seat.queued()).unwrap_or(u32::MAX);
        let queued = loads.queued_exact(id).unwrap_or(said);
        self.ledger.totals.hung += 1;
        self.report(Report::Hung { worker: id, slot, silent, queued });
        let kill_at = self.dealer.now.after(self.config.kill_after);
        self.enter(i, Input::Hung { kill_at });
    }
}

fn look_every(limit: Duration) -> Duration {
    (limit / LOOKS).max(Duration::from_millis(1))
}
