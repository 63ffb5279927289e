//! Room for one more descriptor: how near this process is to its limit.
//!
//! **Owns** what a process found out when it looked last. **Promises** at most one look a millisecond, of
//! two system calls, whatever the limit. **Never** opens or closes anything, and opens are not counted:
//! what a program opens between two looks is only seen by the second.

use libc::c_int;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

/// Nanoseconds that a look is good for: too few, as a rule, to open what it found free.
pub const LOOK_EVERY: u64 = 1_000_000;
/// The last numbers below the limit: where they are free, running out is not near.
const HEADROOM: c_int = 256;
/// Every so many of them a look asks about one. All of them would take four times as long.
const STEP: usize = 8;
const SAMPLES: usize = 32;
/// So many free ones of those asked about are room enough: programs and libraries keep a few there.
const ROOMY_FROM: usize = 24;

/// A process's. All zero is one that has not looked yet.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Room {
    looked_at: AtomicU64,
    /// While new descriptors get numbers below this one there is room; 0: there is none.
    roomy_below: AtomicI32,
    /// The highest number since the look.
    highest: AtomicI32,
    /// Since when a thread has its turn; 0: none has.
    turn: AtomicU64,
}

impl Room {
    /// Whether a new descriptor finds a free number for certain, as far as a look can say.
    pub fn has(&self, now: u64) -> bool {
        if now.saturating_sub(self.looked_at.load(SeqCst)) >= LOOK_EVERY {
            self.looked_at.store(now, SeqCst);
            self.highest.store(0, SeqCst);
            self.roomy_below.store(roomy_below(), SeqCst);
        }
        self.highest.load(SeqCst) < self.roomy_below.load(SeqCst)
    }

    /// A new descriptor has got this number.
    pub fn took(&self, number: c_int) {
        if number > self.highest.load(SeqCst) {
            self.highest.store(number, SeqCst);
        }
    }

    /// There was no free number.
    pub fn ran_out(&self) {
        self.roomy_below.store(0, SeqCst);
    }

    /// Runs `take` while no other thread of this process does. The lock is a time, so that a thread that
    /// was cancelled in `take`, or a signal handler that interrupts one, holds up nobody for long.
    pub fn in_turn<T>(&self, take: impl FnOnce() -> T) -> T {
        loop {
            let (before, now) = (self.turn.load(SeqCst), monotonic());
            if now.saturating_sub(before) >= LOOK_EVERY
                && self.turn.compare_exchange(before, now, SeqCst, SeqCst).is_ok()
            {
                break;
            }
            std::thread::yield_now();
        }
        let taken = take();
        self.turn.store(0, SeqCst);
        taken
    }
}

/// `RLIMIT_NOFILE`, as it is in force.
#[must_use]
pub fn soft_limit() -> c_int {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours; this cannot fail.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    c_int::try_from(limit.rlim_cur).unwrap_or(c_int::MAX)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Where the last numbers below the limit begin, when they are free; else 0. A new descriptor's number
/// does not say as much: it is the lowest free one, which in a full process may be any.
fn roomy_below() -> c_int {
    let from = soft_limit().saturating_sub(HEADROOM);
    if from <= 0 {
        return 0;
    }
    let mut asked = [libc::pollfd { fd: from, events: 0, revents: 0 }; SAMPLES];
    (from..).step_by(STEP).zip(&mut asked).for_each(|(number, one)| one.fd = number);
    // SAFETY: as many as are there; it does not wait. When it fails, none is told to be free.
    unsafe { libc::poll(asked.as_mut_ptr(), SAMPLES as libc::nfds_t, 0) };
    let free = asked.iter().filter(|one| one.revents & libc::POLLNVAL != 0).count();
    if free >= ROOMY_FROM { from } else { 0 }
}
