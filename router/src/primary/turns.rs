//! How long a turn of the loop takes, and how much of that it only waited for a CPU.
//!
//! Owns the two largest numbers. A turn that is long because other processes had the CPU says nothing
//! about the primary, so that is taken off:
//!
//! | turn | what is taken off | by |
//! |---|---|---|
//! | one with something rare in it | the time on the run queue, exactly; whatever blocked counts | two readings of schedstat |
//! | one that only deals | all that was not CPU time: nothing in it blocks. At most [`CPU_EVERY`] too long | the thread's CPU clock |
//!
//! Promises: a turn that only deals costs one reading of the monotonic clock (no system call), and,
//! once in [`CPU_EVERY`] at most, one of the CPU clock. Where the kernel has no schedstat, a turn is
//! as long as the clock on the wall says.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::time::{ClockId, clock_gettime};

use crate::sys;

/// Between two readings of the CPU clock, in nanoseconds: at 0.2 µs each they cost 0.02 % of a CPU.
const CPU_EVERY: u64 = 1_000_000;
/// Time on the run queue so far, of the thread that opens it (proc(5)).
const SCHEDSTAT: &str = "/proc/thread-self/schedstat";

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    schedstat: Option<File>,
    /// Time on the run queue when this turn began, if it has something rare in it.
    waited: Option<u64>,
    /// The CPU clock when it was last read, and when that was.
    cpu: u64,
    cpu_at: u64,
    worked: u64,
    stood: u64,
}

/// What is to be done in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Accept, deal, hear doorbells.
    Deal,
    /// Anything else as well.
    Rare,
}

impl Turns {
    /// In the loop's thread.
    pub(super) fn new(now: u64) -> Self {
        let schedstat = File::open(SCHEDSTAT)
            .inspect_err(|error| log::debug!("{SCHEDSTAT}: {error}; turns are not told apart"))
            .ok();
        let cpu = cpu_ns().unwrap_or(0);
        Self { schedstat, waited: None, cpu, cpu_at: now, worked: 0, stood: 0 }
    }

    /// The longest time that the loop was at work, or blocked, without looking for what is new: µs.
    pub(super) const fn longest_us(&self) -> u64 {
        self.worked / 1000
    }

    /// The longest time that it waited for a CPU in the midst of a turn: µs.
    pub(super) const fn longest_wait_us(&self) -> u64 {
        self.stood / 1000
    }

    pub(super) fn began(&mut self, work: Work) {
        self.waited = match work {
            Work::Deal => None,
            Work::Rare => self.run_queue(),
        };
    }

    /// A turn that began at `began` (monotonic) has ended. One reading of the clock a turn, not a
    /// connection.
    pub(super) fn ended(&mut self, began: u64) {
        let now = sys::monotonic_ns();
        let took = now.saturating_sub(began);
        let waited = match self.waited {
            // A shorter one can be neither: this is not worth a system call.
            Some(_) if took <= self.worked.min(self.stood) => None,
            Some(before) => self.run_queue().map(|after| after.saturating_sub(before)),
            None => None,
        };
        let cpu = self.cpu_since(now);
        if let Some(waited) = waited {
            self.note(took.saturating_sub(waited), waited.min(took));
        } else if let (None, Some(cpu)) = (self.waited, cpu) {
            self.note(took.min(cpu), took.saturating_sub(cpu));
        } else {
            // So short that it does not matter, or nobody knows.
            self.note(took, 0);
        }
    }

    fn note(&mut self, worked: u64, stood: u64) {
        self.worked = self.worked.max(worked);
        self.stood = self.stood.max(stood);
    }

    /// CPU time since the clock was last read, if that is long enough ago.
    fn cpu_since(&mut self, now: u64) -> Option<u64> {
        if now.saturating_sub(self.cpu_at) < CPU_EVERY {
            return None;
        }
        let cpu = cpu_ns()?;
        let used = cpu.saturating_sub(self.cpu);
        (self.cpu, self.cpu_at) = (cpu, now);
        Some(used)
    }

    /// The second number of schedstat, nanoseconds.
    fn run_queue(&self) -> Option<u64> {
        let mut text = [0; 80];
        let len = self.schedstat.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..len)?).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    }
}

fn cpu_ns() -> Option<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?;
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Uses the CPU for so long.
    fn burn(ns: u64) {
        let begun = cpu_ns().unwrap();
        while cpu_ns().unwrap() - begun < ns {}
    }

    fn turn(work: Work, body: impl FnOnce()) -> Turns {
        let mut turns = Turns::new(sys::monotonic_ns());
        let began = sys::monotonic_ns();
        turns.began(work);
        body();
        turns.ended(began);
        turns
    }

    #[test]
    fn work_counts_in_every_turn() {
        for work in [Work::Deal, Work::Rare] {
            let turns = turn(work, || burn(5 * MS));
            assert!(turns.worked >= 5 * MS, "{work:?}: {turns:?}");
        }
    }

    /// Blocked is not at work, and as bad: only where nothing blocks it may be left out.
    #[test]
    fn what_blocks_counts_where_something_may_block() {
        let mut fds = [];
        let mut wait = || {
            nix::poll::poll(&mut fds, 20_u8).unwrap();
        };
        let rare = turn(Work::Rare, &mut wait);
        assert!(rare.worked >= 19 * MS, "{rare:?}");
        let deals = turn(Work::Deal, &mut wait);
        assert!(deals.worked < 19 * MS, "{deals:?}");
    }

    /// Two threads on one CPU: each waits for about as long as it works.
    #[test]
    fn what_waits_for_a_cpu_is_taken_off() {
        use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
        use nix::unistd::Pid;
        use std::sync::atomic::{AtomicBool, Ordering};

        let this = Pid::from_raw(0);
        let all = sched_getaffinity(this).unwrap();
        let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
        let mut one = CpuSet::new();
        one.set(first).unwrap();
        for work in [Work::Deal, Work::Rare] {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        sched_setaffinity(this, &one).unwrap();
                        while !over.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    });
                }
                let turns = scope.spawn(|| {
                    sched_setaffinity(this, &one).unwrap();
                    // Each slice of a scheduler is some milliseconds, of which it has a quarter.
                    turn(work, || burn(60 * MS))
                });
                let turns = turns.join().unwrap();
                over.store(true, Ordering::Relaxed);
                assert!(turns.worked >= 60 * MS, "{work:?}: {turns:?}");
                assert!(turns.stood > turns.worked / 2, "{work:?}: {turns:?}");
            });
        }
    }

    #[test]
    fn a_kernel_without_schedstat_is_measured_by_the_wall() {
        let mut turns = Turns { schedstat: None, ..Turns::new(sys::monotonic_ns()) };
        turns.began(Work::Rare);
        turns.ended(sys::monotonic_ns() - 3 * MS);
        assert!(turns.worked >= 3 * MS && turns.stood == 0, "{turns:?}");
    }
}
