//! `ip`: a client that has connections open at a worker that leaves goes on to it with new ones.
//!
//! A browser with a WebSocket to the old worker, a client that polls a session there: half of its
//! requests would meet a worker that knows nothing of it. So a worker that is parked, or drains while
//! others go on, *keeps* the clients that have something open there, and only those; what they have in
//! its queue is not taken back meanwhile. Clients of listeners that deal otherwise are not concerned.
//!
//! Owns nothing but the list of such workers ([`Core::keepers`]); who has something open where, the
//! pages say ([`Loads::holds`]: one read of memory for each worker that leaves, and none while nobody
//! does). Promises: bounded memory whatever addresses come; an end: a parked worker keeps for as long
//! as the reload lasts, a draining one for three quarters of the drain-timeout, so that what comes
//! last can still be finished. Where a page does not say, or the worker is full, the hash decides.

use crate::event::{Loads, Whose};
use crate::pause::Rest;
use crate::primary::Core;
use crate::scheduler::Ask;
use crate::sticky::Sticky;
use crate::time::Now;
use crate::worker::{State, Worker};

impl Core {
    /// A worker is about to drain: until when it keeps its clients.
    pub(crate) fn keep_clients(&mut self, i: usize) {
        let until = self.dealer.now.after(self.config.drain_timeout / 4 * 3);
        if let Some(worker) = self.dealer.workers.get_mut(i) {
            worker.keeps_until = until;
        }
    }

    /// Whether a worker keeps its clients now.
    pub(crate) fn keeps(&self, i: usize) -> bool {
        if !self.dealer.policies.sticks() || self.stop.is_under_way() {
            return false;
        }
        self.dealer.workers.get(i).is_some_and(|worker| match worker.state {
            State::Parked { .. } => true,
            State::Finishing { .. } => worker.keeps_until > self.dealer.now,
            State::Starting { .. }
            | State::Ready { .. }
            | State::Signalled { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Dead => false,
        })
    }

    /// Which connections in the queue of a worker that leaves others may have; `None`: none.
    pub(crate) fn gives(&self, i: usize) -> Option<Whose> {
        match (self.keeps(i), self.dealer.policies.mixed()) {
            (false, _) => Some(Whose::All),
            (true, true) => Some(Whose::Loose),
            (true, false) => None,
        }
    }

    /// When a worker stops keeping its clients.
    pub(crate) fn keep_ends(&self, worker: &Worker) -> Option<Now> {
        let drains = matches!(worker.state, State::Finishing { .. });
        let keeps = self.dealer.policies.sticks() && drains;
        Some(worker.keeps_until).filter(|until| keeps && *until > self.dealer.now)
    }

    /// Works the list out again, after anything that bears on it has changed.
    pub(crate) fn find_keepers(&mut self) {
        if !self.dealer.policies.sticks() {
            return;
        }
        let mut keepers = core::mem::take(&mut self.keepers);
        keepers.clear();
        let ids = self.dealer.seats.iter().enumerate();
        keepers.extend(ids.filter(|(i, _)| self.keeps(*i)).map(|(_, seat)| seat.id));
        self.keepers = keepers;
    }

    /// The leaving worker that a client goes on to, the youngest first.
    pub(crate) fn kept(&mut self, ask: Ask, client: Sticky, loads: &impl Loads) -> Option<usize> {
        // While all pause nobody gets anything, whoever has him.
        let mut left = if self.dealer.rest == Rest::ByHand { 0 } else { self.keepers.len() };
        while left > 0 {
            left -= 1;
            let id = *self.keepers.get(left)?;
            let Some(i) = self.dealer.find(id) else { continue };
            if !loads.holds(id, client.mark()) {
                continue;
            }
            self.dealer.look(i, loads);
            let Some((seat, worker)) = self.dealer.both(i) else { continue };
            let may = seat.listens.contains(ask.listener) && worker.paused.is_none();
            if may && ask.room(seat, self.config.max_active) > 0 {
                return Some(i);
            }
        }
        None
    }
}
