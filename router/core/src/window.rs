//! How many connections a worker may have queued, and since when each waits.
//!
//! A connection handed off early waits behind one worker while another may be idle; one handed off
//! late costs a wake-up. The window is the compromise, found by watching: it doubles when clients
//! waited although the whole window was claimed fast, it halves when a connection stood long in its
//! queue, and it halves when it has not been full for a while.
//!
//! | workers | window |
//! |---|---|
//! | blocking, 20 ms a request | stays at 1: what it gets stands for longer than [`FAST`] |
//! | 2 that share 23,000 connections/s | 16: so many stand for 1.4 ms |
//! | 8 that share them | 4 |

use alloc::boxed::Box;
use alloc::vec;
use core::time::Duration;

use crate::time::Now;

/// A window that was claimed within this may double.
pub(crate) const FAST: Duration = Duration::from_millis(1);
/// A connection that has stood for longer halves the window.
pub(crate) const SLOW: Duration = Duration::from_millis(3);
/// How often in a row that must be seen. Once is no proof: an idle worker claims its first connection
/// at once, however long it will then be busy with it.
const PROOFS: u8 = 2;
/// A window that nobody filled for so long halves: too large a window is never full, and only when
/// all are full can the primary sleep while clients wait.
pub(crate) const UNUSED: Duration = Duration::from_millis(100);
/// For how long a window that was not filled is not tried again.
pub(crate) const CEILING: Duration = Duration::from_secs(5);

/// When each of the last hand-offs to a worker happened.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    ring: Box<[Now]>,
}

impl Times {
    /// Room for `limit` queued connections, and a few that were not counted against the limit.
    pub(crate) fn new(limit: u16) -> Self {
        let room = (usize::from(limit) + 4).next_power_of_two();
        Self { ring: vec![Now(0); room].into_boxed_slice() }
    }

    fn place(&self, number: u64) -> usize {
        let mask = self.ring.len() - 1;
        usize::try_from(number & u64::try_from(mask).unwrap_or(0)).unwrap_or(0)
    }

    /// Hand-off `number` (from 0) happened now.
    pub(crate) fn set(&mut self, number: u64, now: Now) {
        let place = self.place(number);
        if let Some(time) = self.ring.get_mut(place) {
            *time = now;
        }
    }

    /// When hand-off `number` happened, if it is among those that can be queued.
    pub(crate) fn get(&self, number: u64) -> Now {
        self.ring.get(self.place(number)).copied().unwrap_or_default()
    }
}

/// What was seen of a worker's queue between two looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// When the oldest connection that was queued at the last look had been handed off; `None`: none was.
    pub(crate) oldest_then: Option<Now>,
    /// The same for now.
    pub(crate) oldest_now: Option<Now>,
    /// How many are queued now.
    pub(crate) queued: u64,
    /// Nobody had room when it was last looked at.
    pub(crate) clients_waited: bool,
}

/// What steers one worker's window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    limit: u16,
    /// Not to grow beyond this, for a while.
    ceiling: (u16, Now),
    /// Connections handed off before this were already counted against the window.
    shrunk: Now,
    /// When the window was last seen full while clients waited.
    filled: Now,
    /// How often in a row a full window was claimed fast.
    fast: u8,
}

impl Window {
    pub(crate) fn new(limit: u16, now: Now) -> Self {
        let limit = limit.max(1);
        Self { limit, ceiling: (limit, now), shrunk: now, filled: now, fast: 0 }
    }

    /// The window was full when a client had to wait.
    pub(crate) fn full(&mut self, now: Now) {
        self.filled = now;
    }

    /// The size that follows from what was seen.
    pub(crate) fn seen(&mut self, size: u16, seen: Seen, now: Now) -> u16 {
        if let Some(oldest) = seen.oldest_now
            && now.since(oldest) > SLOW
        {
            // One standing queue counts once: what stands in it was dealt before the last cut.
            self.fast = 0;
            if size > 1 && oldest >= self.shrunk {
                self.shrunk = now;
                return size / 2;
            }
            return size;
        }
        let Some(oldest) = seen.oldest_then else { return size };
        if seen.queued > u64::from(low_mark(size)) {
            return size;
        }
        let was_full = self.filled >= oldest;
        if !(seen.clients_waited && was_full && now.since(oldest) < FAST) {
            self.fast = 0;
            return size;
        }
        self.fast += 1;
        if self.fast < PROOFS {
            return size;
        }
        self.fast = 0;
        self.grown(size, now)
    }

    fn grown(&self, size: u16, now: Now) -> u16 {
        let (ceiling, until) = self.ceiling;
        let most = if now < until { ceiling.min(self.limit) } else { self.limit };
        size.saturating_mul(2).min(most).max(size)
    }

    /// The size at a hand-off: smaller when it has not been needed for a while.
    pub(crate) fn used(&mut self, size: u16, now: Now) -> u16 {
        if size > 1 && now.since(self.filled) > UNUSED {
            self.filled = now;
            self.ceiling = (size / 2, now.after(CEILING));
            return size / 2;
        }
        size
    }
}

/// At how many connections left in its queue a worker rings: early enough that it does not run dry
/// before it gets more (with 0: 17.4 k/s where a quarter gives 22 k/s), late enough to make a batch.
pub(crate) fn low_mark(size: u16) -> u16 {
    if size <= 1 { 0 } else { (size / 4).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A full window, handed off and seen full at `since`, of which all is claimed.
    fn drained(since: u64) -> Seen {
        Seen { oldest_then: Some(Now(since)), oldest_now: None, queued: 0, clients_waited: true }
    }

    #[test]
    fn grows_to_the_limit_while_full_and_fast() {
        let mut window = Window::new(20, Now(0));
        let mut size = 1;
        for (turn, expected) in [2, 4, 8, 16, 20, 20].into_iter().enumerate() {
            let since = 10 * MS * u64::try_from(turn).unwrap();
            window.full(Now(since));
            assert_eq!(window.seen(size, drained(since), Now(since + MS / 2)), size, "once");
            size = window.seen(size, drained(since), Now(since + MS / 2));
            assert_eq!(size, expected);
        }
    }

    #[test]
    fn does_not_grow_when_slow_or_not_needed() {
        let mut window = Window::new(64, Now(0));
        let since = 50 * MS;
        window.full(Now(since));
        let soon = Now(since + MS / 2);
        assert_eq!(window.seen(4, drained(since), Now(since + 2 * MS)), 4, "slow");
        let nobody_waited = Seen { clients_waited: false, ..drained(since) };
        assert_eq!(window.seen(4, nobody_waited, soon), 4);
        let not_yet = Seen { oldest_now: Some(Now(since)), queued: 2, ..drained(since) };
        assert_eq!(window.seen(4, not_yet, soon), 4, "above the low mark");
        let idle = Seen { oldest_then: None, ..drained(since) };
        assert_eq!(window.seen(4, idle, soon), 4);
        assert_eq!(window.seen(4, drained(since + MS), Now(since + 2 * MS)), 4, "was not full");
        assert_eq!(window.seen(4, drained(since), soon), 4, "once");
        assert_eq!(window.seen(4, drained(since), soon), 8);
    }

    #[test]
    fn one_standing_queue_halves_it_once() {
        let mut window = Window::new(64, Now(0));
        let standing = |since| Seen {
            oldest_then: Some(Now(since)),
            oldest_now: Some(Now(since)),
            queued: 1,
            clients_waited: true,
        };
        assert_eq!(window.seen(8, standing(10 * MS), Now(12 * MS)), 8, "not long yet");
        assert_eq!(window.seen(8, standing(10 * MS), Now(14 * MS)), 4);
        assert_eq!(window.seen(4, standing(10 * MS), Now(15 * MS)), 4, "the same queue");
        assert_eq!(window.seen(4, standing(20 * MS), Now(25 * MS)), 2, "a later one");
        assert_eq!(window.seen(1, standing(40 * MS), Now(90 * MS)), 1, "never 0");
    }

    #[test]
    fn shrinks_when_nobody_fills_it_and_does_not_grow_back_at_once() {
        let mut window = Window::new(64, Now(0));
        window.full(Now(MS));
        assert_eq!(window.used(16, Now(90 * MS)), 16);
        assert_eq!(window.used(16, Now(102 * MS)), 8);
        assert_eq!(window.used(8, Now(103 * MS)), 8);
        for (at, expected) in [(110 * MS, 8), (5200 * MS, 16)] {
            window.full(Now(at));
            window.seen(8, drained(at), Now(at + MS / 2));
            assert_eq!(window.seen(8, drained(at), Now(at + MS / 2)), expected);
        }
    }

    #[test]
    fn low_marks() {
        for (size, low) in [(1, 0), (2, 1), (3, 1), (4, 1), (8, 2), (64, 16)] {
            assert_eq!(low_mark(size), low, "window {size}");
        }
    }

    #[test]
    fn times_are_kept_for_all_that_can_be_queued() {
        let mut times = Times::new(64);
        for number in 0..1000 {
            times.set(number, Now(number));
            for back in 0..=number.min(64) {
                assert_eq!(times.get(number - back), Now(number - back));
            }
        }
    }
}
