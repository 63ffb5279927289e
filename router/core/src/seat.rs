//! The seats at the table: what dealing reads of each worker, one cache line each.
//!
//! Owns the snapshot of loads. A seat is looked at (one read of the worker's page) at most once in
//! an epoch, and only when dealing comes to it; in between the core adds its own hand-offs. An epoch
//! is a turn of the loop, or shorter when nobody had room.

use crate::event::{ListenerId, WorkerId};

/// Listeners that can be dealt at once.
pub const LISTENERS_MAX: u16 = 256;

/// A set of listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Listens {
    bits: [u64; 4],
}

impl Listens {
    fn bit(listener: ListenerId) -> (usize, u64) {
        (usize::from(listener.0 / 64), 1 << (listener.0 % 64))
    }

    pub(crate) fn insert(&mut self, listener: ListenerId) {
        let (word, bit) = Self::bit(listener);
        if let Some(word) = self.bits.get_mut(word) {
            *word |= bit;
        }
    }

    pub(crate) fn remove(&mut self, listener: ListenerId) {
        let (word, bit) = Self::bit(listener);
        if let Some(word) = self.bits.get_mut(word) {
            *word &= !bit;
        }
    }

    pub(crate) fn contains(&self, listener: ListenerId) -> bool {
        let (word, bit) = Self::bit(listener);
        self.bits.get(word).is_some_and(|word| word & bit != 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bits == [0; 4]
    }

    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.bits.iter().zip(&other.bits).all(|(ours, theirs)| theirs & !ours == 0)
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.bits.iter().zip(&other.bits).any(|(ours, theirs)| ours & theirs != 0)
    }

    /// The first listener in the set.
    pub(crate) fn first(&self) -> Option<ListenerId> {
        (0..LISTENERS_MAX).map(ListenerId).find(|listener| self.contains(*listener))
    }
}

/// What dealing may do with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Standing {
    /// Nothing.
    Away,
    /// It drains because everything stops: only what the primary already holds.
    Finishing,
    /// Nothing, until the operator says otherwise.
    Resting,
    /// Nothing for a moment: the kernel would not queue more for it.
    Paused,
    /// Nothing until it claims again: its queue was stolen, and holds no more than a probe.
    Doubtful,
    /// Only if all others are late too.
    Late,
    /// A limited share.
    Fresh,
    /// Its turn.
    Regular,
}

/// [`Seat::active`] of a worker without a page.
pub(crate) const ACTIVE_UNKNOWN: u32 = u32::MAX;

/// One worker in the eyes of dealing.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(crate) struct Seat {
    pub(crate) listens: Listens,
    /// Handed off or on the way, less what was taken back.
    pub(crate) sent: u64,
    /// As of `epoch`, and never more than `sent`.
    pub(crate) claimed: u64,
    pub(crate) id: WorkerId,
    /// When the page was last read.
    pub(crate) epoch: u32,
    /// Claimed and not closed, or [`ACTIVE_UNKNOWN`].
    pub(crate) active: u32,
    /// On listeners that deal by load ([`Ask::window`](crate::scheduler::Ask::window)).
    pub(crate) window: u16,
    pub(crate) standing: Standing,
    /// How often in a row its numbers did not fit.
    pub(crate) misfits: u8,
}

const _: () = assert!(size_of::<Seat>() == 64);

impl Seat {
    pub(crate) fn new(id: WorkerId) -> Self {
        Self {
            listens: Listens::default(),
            sent: 0,
            claimed: 0,
            id,
            epoch: 0,
            active: 0,
            window: 1,
            standing: Standing::Away,
            misfits: 0,
        }
    }

    /// What was sent has changed.
    pub(crate) fn recount(&mut self, sent: u64) {
        self.sent = sent;
        self.claimed = self.claimed.min(sent);
    }

    /// Handed off (or on the way) and not claimed.
    pub(crate) fn queued(&self) -> u64 {
        self.sent.saturating_sub(self.claimed)
    }

    /// Claimed and not closed; 0 where it is unknown.
    pub(crate) fn active(&self) -> u64 {
        if self.active == ACTIVE_UNKNOWN { 0 } else { u64::from(self.active) }
    }

    pub(crate) fn load(&self) -> u64 {
        self.queued() + self.active()
    }

    /// How many more it may have now, with a window of so many.
    pub(crate) fn room(&self, window: u16, max_active: Option<u32>) -> u64 {
        let window = u64::from(window).saturating_sub(self.queued());
        let active = max_active.map_or(u64::MAX, |max| u64::from(max).saturating_sub(self.load()));
        window.min(active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_listeners() {
        let mut set = Listens::default();
        assert!(set.is_empty());
        for listener in [0, 63, 64, 255] {
            set.insert(ListenerId(listener));
            assert!(set.contains(ListenerId(listener)));
        }
        set.insert(ListenerId(256));
        assert!(!set.contains(ListenerId(256)), "beyond the limit: never in a set");
        set.remove(ListenerId(0));
        assert_eq!(set.first(), Some(ListenerId(63)));
        let mut other = Listens::default();
        assert!(!set.meets(&other));
        other.insert(ListenerId(255));
        assert!(set.meets(&other));
        assert!(set.covers(&other) && !other.covers(&set));
        assert!(other.covers(&Listens::default()), "nothing is asked for");
    }

    #[test]
    fn room_is_the_narrower_of_window_and_active() {
        let mut seat = Seat::new(WorkerId(1));
        (seat.sent, seat.claimed, seat.active) = (10, 7, 2);
        assert_eq!((seat.queued(), seat.load()), (3, 5));
        assert_eq!(seat.room(8, None), 5);
        assert_eq!(seat.room(8, Some(6)), 1);
        assert_eq!(seat.room(8, Some(5)), 0);
        assert_eq!(seat.room(2, None), 0, "more queued than the window allows");
    }
}
