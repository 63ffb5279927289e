//! How many connections a worker may have queued, and since when each waits.
//!
//! A connection handed off early waits behind one worker while another may be idle; one handed off
//! late costs a wake-up of the primary. Times say little about the right size: they depend on the
//! machine, and where workers outnumber CPUs everything stands. What a wake-up achieves means the
//! same everywhere, so that is what is steered ([`Pace`]): while clients wait and a wake-up deals
//! fewer than [`BATCH`] connections, or fewer than [`SHARE`] for each worker, all windows double; when
//! connections are few anyway ([`CALM`]), when wake-ups deal far more than that, or find that clients
//! cannot fill the windows, they halve. Beyond [`DEEP`] a larger window only makes what is queued older.
//!
//! Only workers that are known to be fast get the large window ([`Window`]); all others one
//! connection. Fast is a worker that claims in less than [`FAST`] what had to wait for it, or that ran
//! out of work while clients waited.
//!
//! | workers | windows |
//! |---|---|
//! | blocking, 20 ms a request, any number | 1: never claims fast what had to wait |
//! | 2 that share 40,000 connections/s | 8 |
//! | 64 that share them on 2 CPUs | 8 |
//! | 256 with 8 clients each, who cannot fill 8 | 4 |

use alloc::boxed::Box;
use alloc::vec;
use core::time::Duration;

use crate::time::Now;

/// Connections that a wake-up shall deal while clients wait: its cost is then a small part of theirs.
pub(crate) const BATCH: u32 = 6;
/// Connections that a wake-up shall deal for each worker: whoever gets one at a time sleeps before
/// each, and its wake-up takes the CPU from the primary (64 workers on 2 CPUs: 0.3 times a connection
/// with windows of 1 to 4, 0.1 with 8).
pub(crate) const SHARE: u32 = 4;
/// The largest window that more than [`BATCH`] can be a reason for (2, 8 and 64 workers: with 16
/// fewer connections/s than with 8, at the same cost).
pub(crate) const DEEP: u16 = 8;
/// Where connections come more seldom than this, the primary can afford a wake-up for each.
pub(crate) const CALM: Duration = Duration::from_micros(500);
/// A connection that had to wait and is claimed within this proves that its worker is fast.
pub(crate) const FAST: Duration = Duration::from_millis(1);
/// For how long that proof holds.
pub(crate) const PROOF: Duration = Duration::from_secs(1);
/// After so long without dealing, the windows are not what the next clients need.
pub(crate) const UNUSED: Duration = Duration::from_millis(50);
/// Turns after which windows may grow, and after which they may shrink.
const SHORT: u32 = 8;
const LONG: u32 = 64;
/// For how long a window that clients could not fill is not tried again: at first, and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

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

    /// Room for a larger limit, when so many hand-offs have happened.
    pub(crate) fn grow(&mut self, limit: u16, count: u64) {
        let larger = Self::new(limit);
        if larger.ring.len() <= self.ring.len() {
            return;
        }
        let known = u64::try_from(self.ring.len()).unwrap_or(u64::MAX);
        let smaller = core::mem::replace(self, larger);
        for number in count.saturating_sub(known)..count {
            self.set(number, smaller.get(number));
        }
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

/// How a turn of the loop ended for the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// There may be more of them, or workers are too slow for larger windows.
    Open,
    /// Nobody had room for the next.
    Full,
    /// All are dealt.
    Empty,
}

/// One turn of the loop, in the eyes of the clients.
#[derive(Debug, Clone, Copy)]
struct Turn {
    began: Now,
    dealt: u32,
    end: End,
}

/// What some turns came to, one after another.
#[derive(Debug, Clone, Copy)]
struct Sample {
    turns: u32,
    dealt: u32,
    /// Turns that ended with full windows.
    filled: u32,
    since: Now,
}

impl Sample {
    fn new(since: Now) -> Self {
        Self { turns: 0, dealt: 0, filled: 0, since }
    }

    fn add(&mut self, turn: Turn) {
        if self.turns == 0 {
            *self = Self::new(turn.began);
        }
        self.turns += 1;
        self.dealt = self.dealt.saturating_add(turn.dealt);
        self.filled += u32::from(turn.end == End::Full);
    }

    /// Connections that a turn dealt.
    fn batch(&self) -> u32 {
        self.dealt / self.turns.max(1)
    }

    /// Whether there were few connections, for the time that the turns and their sleeps took.
    fn is_calm(&self, now: Now) -> bool {
        now.since(self.since) / self.dealt.max(1) > CALM
    }
}

/// The size of all windows, by how many connections a wake-up of the primary deals.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    size: u16,
    limit: u16,
    /// Not to grow beyond this until then, and for how long that was.
    ceiling: (u16, Now, Duration),
    turn: Turn,
    /// Soon seen: that larger windows would make wake-ups better.
    short: Sample,
    /// Seen only after a while, because clients come in waves: that they are too large.
    long: Sample,
    /// How often they would have grown beyond the limit.
    capped: u64,
}

impl Pace {
    pub(crate) fn new(limit: u16, now: Now) -> Self {
        let limit = limit.max(1);
        Self {
            size: 1,
            limit,
            ceiling: (limit, now, PATIENCE.0),
            turn: Turn { began: now, dealt: 0, end: End::Open },
            short: Sample::new(now),
            long: Sample::new(now),
            capped: 0,
        }
    }

    /// How often a larger limit would have made wake-ups better.
    pub(crate) fn capped(&self) -> u64 {
        self.capped
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// A client's connection was dealt.
    pub(crate) fn dealt(&mut self) {
        self.turn.dealt += 1;
    }

    /// Nobody had room. `large`: most of the windows that were full are of the full size, so larger
    /// ones would make a difference.
    pub(crate) fn full(&mut self, large: bool) {
        self.turn.end = if large { End::Full } else { End::Open };
    }

    /// No client waits.
    pub(crate) fn empty(&mut self) {
        self.turn.end = End::Empty;
    }

    /// A new turn begins, with so many workers: draws conclusions from those before. True: the size has
    /// changed.
    pub(crate) fn turn(&mut self, workers: usize, now: Now) -> bool {
        let fresh = Turn { began: now, dealt: 0, end: End::Open };
        let turn = core::mem::replace(&mut self.turn, fresh);
        if turn.dealt == 0 {
            return false;
        }
        self.short.add(turn);
        self.long.add(turn);
        let before = self.size;
        let share = u32::try_from(workers).unwrap_or(u32::MAX).saturating_mul(SHARE);
        if now.since(turn.began) > UNUSED {
            self.size = self.half();
        } else if self.long.turns >= LONG {
            self.size = self.shrunk(share, now);
            self.long.turns = 0;
        } else if self.short.turns >= SHORT {
            let wanted = self.grown(share, now);
            self.capped += u64::from(wanted > self.limit);
            self.size = wanted.min(self.limit);
            self.short.turns = 0;
        }
        if self.size != before {
            (self.short.turns, self.long.turns) = (0, 0);
        }
        self.size != before
    }

    fn half(&self) -> u16 {
        (self.size / 2).max(1)
    }

    /// Larger, if most of the last turns were for a few connections that filled the windows. The limit is
    /// not looked at.
    fn grown(&self, share: u32, now: Now) -> u16 {
        let filled = self.short.filled * 2 >= self.short.turns;
        let enough = if self.size < DEEP { share.max(BATCH) } else { BATCH };
        if !filled || self.short.batch() >= enough || self.short.is_calm(now) {
            return self.size;
        }
        let (ceiling, until, _) = self.ceiling;
        let most = if now < until { ceiling } else { u16::MAX };
        self.size.saturating_mul(2).min(most).max(self.size)
    }

    /// Smaller, if turns are seldom, deal more than they need to, or do not fill the windows.
    fn shrunk(&mut self, share: u32, now: Now) -> u16 {
        let (batch, half) = (self.long.batch(), self.half());
        let deep = self.size > DEEP && batch >= 2 * BATCH;
        if self.long.is_calm(now) || deep || batch > share.saturating_mul(2).max(8 * BATCH) {
            return half;
        }
        let swallows_all = self.long.filled * 4 < self.long.turns && batch < BATCH;
        if !swallows_all || self.size == 1 {
            return self.size;
        }
        // Each new client finds room, so each wakes the primary.
        let (ceiling, until, patience) = self.ceiling;
        let again = ceiling == half && now.since(until) < PATIENCE.1;
        let patience = if again { (patience * 2).min(PATIENCE.1) } else { PATIENCE.0 };
        self.ceiling = (half, now.after(patience), patience);
        half
    }
}

/// What was seen of a worker's queue between two looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// When the oldest connection that was queued at the last look had been handed off; `None`: none was.
    pub(crate) oldest_then: Option<Now>,
    /// How many it had active at the last look (1 where it is unknown), and has now.
    pub(crate) active: (u64, u64),
    /// How many are queued now.
    pub(crate) queued: u64,
}

/// What decides about one worker's window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// When its window was last seen full while clients waited.
    filled: Option<Now>,
    /// When it last proved to be fast.
    fast: Option<Now>,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { filled: None, fast: None }
    }

    /// The window was full when a client had to wait.
    pub(crate) fn full(&mut self, now: Now) {
        self.filled = Some(now);
    }

    /// Draws conclusions from what was seen of a worker whose window is `size`.
    pub(crate) fn seen(&mut self, size: u16, seen: Seen, now: Now) {
        let Some(oldest) = seen.oldest_then else { return };
        let drained = seen.queued <= u64::from(low_mark(size));
        let was_full = self.filled.is_some_and(|filled| filled >= oldest);
        if !drained || !was_full {
            return;
        }
        // An idle worker claims at once, however long it will then be busy: that proves nothing. It
        // is idle again though clients wait: whatever its speed, it had too little.
        let (active_then, active_now) = seen.active;
        let soon = active_then > 0 && now.since(oldest) < FAST;
        let starved = active_now == 0 && seen.queued == 0;
        if soon || starved {
            self.fast = Some(now);
        }
    }

    /// Its size, when that of the fast is `pace`.
    pub(crate) fn size(&self, pace: u16, now: Now) -> u16 {
        if self.fast.is_some_and(|fast| now.since(fast) < PROOF) { pace } else { 1 }
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

    const US: u64 = 1000;
    const MS: u64 = 1_000_000;

    /// Turns of one kind, one after another.
    fn turns(pace: &mut Pace, now: &mut u64, count: u32, batch: u32, each: u64, end: End) -> u16 {
        for _ in 0..count {
            for _ in 0..batch {
                pace.dealt();
            }
            match end {
                End::Full => pace.full(true),
                End::Empty => pace.empty(),
                End::Open => {}
            }
            *now += each;
            pace.turn(1, Now(*now));
        }
        pace.size()
    }

    #[test]
    fn times_are_kept_when_more_must_be_known() {
        let mut times = Times::new(4);
        for number in 0..20 {
            times.set(number, Now(100 + number));
        }
        times.grow(2, 20);
        assert_eq!(times.ring.len(), 8, "never less");
        times.grow(256, 20);
        for number in 12..20 {
            assert_eq!(times.get(number), Now(100 + number));
        }
        times.set(20, Now(9));
        assert_eq!((times.get(20), times.get(12)), (Now(9), Now(112)));
    }

    #[test]
    fn grows_while_wake_ups_deal_little_and_shrinks_when_they_deal_much() {
        let (mut pace, mut now) = (Pace::new(20, Now(0)), 0);
        for expected in [2, 4, 8, 16, 20, 20] {
            assert_eq!(turns(&mut pace, &mut now, SHORT, 3, 100 * US, End::Full), expected);
        }
        let right = turns(&mut pace, &mut now, 3 * LONG, BATCH, 600 * US, End::Full);
        assert_eq!(right, 20, "as it should be");
        let deep = turns(&mut pace, &mut now, 2 * LONG - 1, 2 * BATCH, 600 * US, End::Full);
        assert_eq!(deep, 10, "half would do");
        assert_eq!(turns(&mut pace, &mut now, 4 * LONG, 2 * BATCH, 600 * US, End::Full), 5);
        assert_eq!(
            turns(&mut pace, &mut now, 2 * LONG - 1, 50, 600 * US, End::Full),
            2,
            "far too early"
        );
    }

    #[test]
    fn a_limit_that_is_too_low_is_counted() {
        let mut now = 0;
        let mut pace = Pace::new(2, Now(0));
        assert_eq!(turns(&mut pace, &mut now, 8, 1, 20 * US, End::Full), 2);
        assert_eq!(pace.capped(), 0);
        assert_eq!(turns(&mut pace, &mut now, 80, 1, 20 * US, End::Full), 2);
        assert!(pace.capped() >= 8, "{}", pace.capped());
        // Seldom, or full of what slow workers leave: a larger limit would not help.
        for (each, end) in [(MS, End::Full), (20 * US, End::Open), (20 * US, End::Empty)] {
            let mut pace = Pace::new(1, Now(now));
            turns(&mut pace, &mut now, 200, 1, each, end);
            assert_eq!(pace.capped(), 0, "{end:?}");
        }
    }

    #[test]
    fn many_workers_want_a_share_each_but_no_deep_windows() {
        let (mut pace, mut now) = (Pace::new(64, Now(0)), 0);
        let mut many = |pace: &mut Pace, batch: u32| {
            for _ in 0..4 * LONG {
                (0..batch).for_each(|_| pace.dealt());
                pace.full(true);
                now += 4 * MS;
                pace.turn(64, Now(now));
            }
            pace.size()
        };
        assert_eq!(many(&mut pace, 60), DEEP, "less than four for each of 64");
        assert_eq!(many(&mut pace, 300), DEEP, "right");
        assert_eq!(many(&mut pace, 600), 1, "nine for each");
    }

    #[test]
    fn seldom_wake_ups_never_make_it_grow() {
        let (mut pace, mut now) = (Pace::new(64, Now(0)), 0);
        for each in [3 * MS, 20 * MS] {
            assert_eq!(turns(&mut pace, &mut now, 100, 1, each, End::Full), 1);
        }
        assert_eq!(turns(&mut pace, &mut now, 3 * SHORT, 1, 100 * US, End::Full), 4);
        assert_eq!(turns(&mut pace, &mut now, 4 * LONG, 1, 3 * MS, End::Full), 1);
    }

    #[test]
    fn slow_workers_do_not_let_it_grow() {
        let (mut pace, mut now) = (Pace::new(64, Now(0)), 0);
        for _ in 0..1000 {
            pace.dealt();
            pace.full(pace.size() == 1);
            now += 100 * US;
            pace.turn(1, Now(now));
        }
        assert!(pace.size() <= 2);
    }

    #[test]
    fn clients_that_cannot_fill_it_make_it_shrink_and_it_is_not_tried_again_at_once() {
        let (mut pace, mut now) = (Pace::new(64, Now(0)), 0);
        assert_eq!(turns(&mut pace, &mut now, 5 * SHORT, 1, 100 * US, End::Full), 32);
        assert_eq!(turns(&mut pace, &mut now, LONG, 1, 50 * US, End::Empty), 16);
        let mut retries = 0;
        // At 16 clients fill it, at 32 they do not.
        for _ in 0..24_000 {
            let end = if pace.size() >= 32 { End::Empty } else { End::Full };
            let before = pace.size();
            retries += u32::from(turns(&mut pace, &mut now, 1, 1, 200 * US, end) > before);
            assert!((16..=32).contains(&pace.size()));
        }
        // 4.8 seconds, at waits of 0.1, 0.2, 0.4, …
        assert!((3..=7).contains(&retries), "{retries}");
    }

    #[test]
    fn waves_of_clients_do_not_make_it_shrink() {
        let (mut pace, mut now) = (Pace::new(64, Now(0)), 0);
        assert_eq!(turns(&mut pace, &mut now, 3 * SHORT, 3, 100 * US, End::Full), 8);
        for _ in 0..200 {
            turns(&mut pace, &mut now, 5, 3, 100 * US, End::Empty);
            turns(&mut pace, &mut now, 3, 3, 100 * US, End::Full);
            assert!(pace.size() >= 8);
        }
    }

    #[test]
    fn a_pause_halves_it() {
        let (mut pace, mut now) = (Pace::new(64, Now(0)), 0);
        assert_eq!(turns(&mut pace, &mut now, 3 * SHORT, 1, 100 * US, End::Full), 8);
        assert_eq!(turns(&mut pace, &mut now, 1, 1, 60 * MS, End::Empty), 4);
        // Turns that deal nothing say nothing.
        for _ in 0..100 {
            now += 100 * MS;
            assert!(!pace.turn(1, Now(now)));
        }
        assert_eq!(pace.size(), 4);
    }

    #[test]
    fn who_is_fast() {
        let at = 50 * MS;
        let seen = |active, queued| Seen { oldest_then: Some(Now(at)), active, queued };
        #[rustfmt::skip]
        let table = [
            // Waited while the worker was busy, and was claimed soon.
            (seen((1, 1), 0), 500 * US, true),
            (seen((1, 1), 0), 2 * MS,   false),
            // The worker was idle: claimed at once, but that says nothing …
            (seen((0, 1), 0), 20 * US,  false),
            // … unless it is idle again, though clients wait.
            (seen((0, 0), 0), 60 * US,  true),
            (seen((0, 0), 0), 30 * MS,  true),
            // Not claimed yet.
            (seen((1, 1), 1), 500 * US, false),
            (Seen { oldest_then: None, ..seen((1, 1), 0) }, 500 * US, false),
        ];
        for (seen, after, expected) in table {
            let mut window = Window::new();
            window.full(Now(at + 1));
            let now = Now(at + after);
            window.seen(1, seen, now);
            assert_eq!(window.size(8, now), if expected { 8 } else { 1 }, "{seen:?} after {after}");
        }
    }

    #[test]
    fn a_proof_needs_a_full_window_and_holds_for_a_while() {
        let at = 50 * MS;
        let seen = Seen { oldest_then: Some(Now(at)), active: (1, 1), queued: 0 };
        let mut window = Window::new();
        window.seen(1, seen, Now(at + US));
        assert_eq!(window.size(8, Now(at + US)), 1, "nobody waited");
        window.full(Now(at));
        window.seen(1, seen, Now(at + US));
        assert_eq!(window.size(8, Now(at + 900 * MS)), 8);
        assert_eq!(window.size(8, Now(at + 1100 * MS)), 1);
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
