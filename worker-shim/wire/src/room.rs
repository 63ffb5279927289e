//! Room for one more descriptor: how near this process is to its limit.
//!
//! **Owns** what a process found out when it looked last. **Promises** at most one look a millisecond, of
//! two or three system calls, and fewer where the limit is high. **Never** opens or closes anything, and opens are not counted:
//! what a program opens between two looks is only seen by the second.

use libc::c_int;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

/// Nanoseconds that a look is good for at least: too few, as a rule, to open what it found free.
pub const LOOK_EVERY: u64 = 1_000_000;
/// And for each number that it found free: no program opens files and sockets faster for long.
const OPEN_NS: u64 = 1_000;
/// The last numbers below the limit: where they are free, running out is not near.
const HEADROOM: c_int = 256;
/// So many of the numbers are asked about, evenly spread.
const SAMPLES: usize = 16;
/// So many free ones of those asked about are room enough: programs and libraries keep a few there.
const ROOMY_FROM: usize = 12;

/// A process's. All zero is one that has not looked yet.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Room {
    looked_at: AtomicU64,
    /// For how many nanoseconds the look is good.
    good_for: AtomicU64,
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
        let age = now.saturating_sub(self.looked_at.load(SeqCst));
        if age >= LOOK_EVERY && (age >= self.good_for.load(SeqCst) || !self.is_roomy()) {
            let (from, good_for) = look();
            self.looked_at.store(now, SeqCst);
            self.good_for.store(good_for, SeqCst);
            self.highest.store(0, SeqCst);
            self.roomy_below.store(from, SeqCst);
        }
        self.is_roomy()
    }

    fn is_roomy(&self) -> bool {
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

/// From where on numbers are free up to the limit, 0 for nowhere; and for how long that is good. A new
/// descriptor's number does not say as much: it is the lowest free one, which in a full process may be any.
fn look() -> (c_int, u64) {
    let limit = soft_limit();
    let last = limit.saturating_sub(HEADROOM);
    if last <= 0 {
        return (0, 0);
    }
    // The upper half is good for longer, and is what most processes never touch.
    let half = last.min(limit / 2);
    for from in [half, last] {
        if are_free(from, limit) {
            let free = u64::from((limit - from).unsigned_abs());
            return (from, free.saturating_mul(OPEN_NS));
        }
    }
    (0, 0)
}

fn are_free(from: c_int, limit: c_int) -> bool {
    let step = usize::try_from(limit - from).map_or(1, |numbers| (numbers / SAMPLES).max(1));
    let mut asked = [libc::pollfd { fd: from, events: 0, revents: 0 }; SAMPLES];
    (from..).step_by(step).zip(&mut asked).for_each(|(number, one)| one.fd = number);
    // SAFETY: as many as are there; it does not wait. When it fails, none is told to be free.
    unsafe { libc::poll(asked.as_mut_ptr(), SAMPLES as libc::nfds_t, 0) };
    asked.iter().filter(|one| one.revents & libc::POLLNVAL != 0).count() >= ROOMY_FROM
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};

    #[test]
    fn a_look_is_good_until_what_it_found_may_be_used_up() {
        let (from, good_for) = look();
        let limit = soft_limit();
        assert!(
            from >= limit / 2 && good_for == u64::from((limit - from).unsigned_abs()) * OPEN_NS
        );
        let (room, begun) = (Room::default(), LOOK_EVERY);
        assert!(room.has(begun));
        room.took(from);
        assert!(!room.has(begun + 1), "the numbers have come as far as the look has found free");
        assert!(room.has(begun + LOOK_EVERY), "by another look that was none of ours");
        room.ran_out();
        assert!(!room.has(begun + LOOK_EVERY + 1));
        assert!(room.has(begun + 2 * LOOK_EVERY));
        let _files: Vec<OwnedFd> = (300..316)
            .map(|number| {
                // SAFETY: duplicates a descriptor to a number of at least this.
                let copy = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, number) };
                assert!(copy >= number, "{}", std::io::Error::last_os_error());
                // SAFETY: made in the line above.
                unsafe { OwnedFd::from_raw_fd(copy) }
            })
            .collect();
        assert!(!are_free(300, 316));
    }
}
