//! The ledger: every connection that the primary holds, and where all of them went.
//!
//! Owns the connections in the primary's hands: waiting for room, on their way to a worker, about
//! to be refused. Promises that none gets lost:
//! accepted + taken back = handed off + held + in flight + waiting + refused + shed.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::event::{Arrival, ConnId, ListenerId, WorkerId};
use crate::views::Totals;

/// Connections that the primary may hold while nobody has room for them; take-backs ask for no more.
pub const HELD_MAX: usize = 256;

/// A hand-off that was asked for and not yet answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight {
    pub(crate) arrival: Arrival,
    pub(crate) worker: WorkerId,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    pub(crate) held: VecDeque<Arrival>,
    pub(crate) in_flight: VecDeque<Flight>,
    pub(crate) refusing: Vec<ConnId>,
    pub(crate) totals: Totals,
    /// Came out of queues, for whatever reason.
    pub(crate) taken_back: u64,
    /// Largest number of connections that take-backs under way may still bring.
    pub(crate) expected: u32,
}

impl Ledger {
    /// The flight of a connection to a worker ends. Flights end in the order in which they began,
    /// so this is nearly always the first.
    pub(crate) fn land(&mut self, conn: ConnId, worker: WorkerId) -> Option<Arrival> {
        let is_it = |flight: &Flight| flight.arrival.conn == conn && flight.worker == worker;
        if self.in_flight.front().is_some_and(is_it) {
            return self.in_flight.pop_front().map(|flight| flight.arrival);
        }
        let at = self.in_flight.iter().position(is_it)?;
        self.in_flight.remove(at).map(|flight| flight.arrival)
    }

    /// How many more a take-back may bring.
    pub(crate) fn room(&self) -> u32 {
        // What is in flight may come back.
        let expected = usize::try_from(self.expected).unwrap_or(HELD_MAX);
        let spoken_for = self.held.len() + self.in_flight.len() + expected;
        u32::try_from(HELD_MAX.saturating_sub(spoken_for)).unwrap_or(0)
    }

    pub(crate) fn held_on(&self, listener: ListenerId) -> u64 {
        let count = self.held.iter().filter(|arrival| arrival.listener == listener).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// Whether every connection is accounted for, with those that admission has.
    #[cfg(debug_assertions)]
    pub(crate) fn balances(&self, admission: usize) -> bool {
        let here = self.held.len() + self.in_flight.len() + self.refusing.len() + admission;
        self.totals.accepted + self.taken_back
            == self.totals.handed_off
                + self.totals.refused
                + self.totals.shed
                + u64::try_from(here).unwrap_or(u64::MAX)
    }
}
