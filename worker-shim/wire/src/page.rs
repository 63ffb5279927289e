//! The page: memory that a worker and the primary share, so that load costs a read and no call.
//!
//! One sealed memfd per worker (`F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL`, memfd_create(2)). Who
//! writes what:
//!
//! | part | written by | read by |
//! |---|---|---|
//! | [`Head`] | primary | worker |
//! | [`Totals`], histogram, [`Line`]s | the worker's processes | primary, as a claim to be checked |
//! | [`BellWords`] | primary; a worker only swaps a word to 0 | worker, at each claim and close |
//!
//! The rule of the doorbell (Dekker's, so all of it sequentially consistent): the worker adds to
//! `claimed`, *then* reads `ring_at`; the primary writes `ring_at`, *then* reads `claimed`. One of
//! the two sees the other, so no wake-up is lost.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// First word of every page: "crp2".
pub const PAGE_MAGIC: u32 = 0x6372_7032;
/// Processes of one worker that have a line of their own; more are counted in the totals only.
pub const LINES_MAX: usize = 128;
/// Buckets of the histogram of queued time: bucket `i` counts waits of `2^i` to `2^(i+1)` µs, the
/// first also shorter ones, the last also longer ones.
pub const WAITED_BUCKETS: usize = 32;
/// Marks that clients may have, 0 among them, which is nobody's. Clients with one mark are taken for one.
pub const MARKS_MAX: usize = 16_384;
/// Bytes of the memfd: whole pages of memory. Most workers need only the first: the lines of their
/// first 59 processes are in it, and nobody touches the marks but under `ip`.
pub const PAGE_LEN: usize = 45_056;

/// [`Head::flags`]: the worker is draining; a program that asks `is_draining()` hears yes.
pub const HEAD_DRAINING: u32 = 1;
/// [`Head::flags`]: the primary is gone. The one bit of the head that a worker's process sets: others
/// of that worker may not have seen the end, or may be beyond its signals (another uid).
pub const HEAD_GONE: u32 = 2;

/// Who this page belongs to.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Head {
    /// [`PAGE_MAGIC`].
    pub magic: AtomicU32,
    /// The worker id.
    pub worker: AtomicU32,
    /// `HEAD_…` bits.
    pub flags: AtomicU32,
}

/// Counters over all processes of the worker, living and dead. They only grow.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Totals {
    /// Connections taken out of the worker's channels.
    pub claimed: AtomicU64,
    /// Claimed connections that were closed again.
    pub closed: AtomicU64,
    /// Not 0: the program's last accept asked for `SOCK_NONBLOCK`, so the primary may set it.
    pub nonblocking: AtomicU32,
    /// No line from this one on was ever taken: see [`Page::lines_in_use`]. It only grows.
    pub lines: AtomicU32,
}

/// When the worker is to ring. 0 means: do not.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct BellWords {
    /// Ring once `claimed` has reached this.
    pub ring_at: AtomicU64,
    /// Not 0: ring at the next close.
    pub ring_on_close: AtomicU32,
    /// So many connections are in the channels of a worker that accepts from its own sockets
    /// (`reuseport`), or about to be. Each process looks into its own channels only.
    pub mail: AtomicU32,
}

/// The share of one process in the totals. When it dies, `claimed - closed` of its line was active
/// and is no more: the primary takes that off and frees the line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line {
    /// The process; 0 = free.
    pub pid: AtomicU32,
    /// Its claims.
    pub claimed: AtomicU64,
    /// Its closes.
    pub closed: AtomicU64,
}

/// The whole page. Every bit pattern is valid: a worker can write anything here.
#[derive(Debug)]
#[repr(C)]
pub struct Page {
    /// See [`Head`].
    pub head: Head,
    /// See [`Totals`].
    pub totals: Totals,
    /// See [`BellWords`].
    pub bell: BellWords,
    /// Histogram of queued time; see [`WAITED_BUCKETS`].
    pub waited: [AtomicU32; WAITED_BUCKETS],
    /// See [`Line`].
    pub lines: [Line; LINES_MAX],
    /// How many connections are open of clients with each mark: see [`Page::note_open`]. What a process
    /// had open when it died stays counted until the worker is gone.
    pub marks: [AtomicU16; MARKS_MAX],
}

const _: () = assert!(size_of::<Page>() <= PAGE_LEN);
// As `PAGE_LEN` says.
const _: () = assert!((4096 - core::mem::offset_of!(Page, lines)) / size_of::<Line>() == 59);

/// What the caller of [`Page::count_claim`] or [`Page::count_close`] has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Bell {
    /// Nothing.
    Silent,
    /// Write to the doorbell: the primary waits for it, and this caller alone was chosen.
    Ring,
}

impl Page {
    /// Takes a line for process `pid`, which must not have one yet. `None`: all are taken.
    #[must_use]
    pub fn take_line(&self, pid: u32) -> Option<&Line> {
        let free = |(_, line): &(u32, &Line)| line.pid.load(Ordering::Relaxed) == 0;
        (1..).zip(&self.lines).filter(free).find_map(|(end, line)| {
            // First, so that whoever dies in between leaves no line that nobody looks at.
            self.totals.lines.fetch_max(end, Ordering::SeqCst);
            let taken = line.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed);
            taken.is_ok().then_some(line)
        })
    }

    /// The lines that processes may have, free ones among them. Nobody looks further: most workers are
    /// one process, and the lines are two pages of memory more, which a look alone would make real.
    pub fn lines_in_use(&self) -> impl Iterator<Item = &Line> {
        let end = self.totals.lines.load(Ordering::SeqCst);
        self.lines.iter().take(usize::try_from(end).unwrap_or(LINES_MAX))
    }

    /// Counts a claim that waited `waited_us` microseconds.
    pub fn count_claim(&self, line: Option<&Line>, waited_us: u64) -> Bell {
        let bucket = (63 - (waited_us | 1).leading_zeros()) as usize;
        if let Some(count) = self.waited.get(bucket.min(WAITED_BUCKETS - 1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(line) = line {
            line.claimed.fetch_add(1, Ordering::Relaxed);
        }
        let claimed = self.totals.claimed.fetch_add(1, Ordering::SeqCst) + 1;
        let at = self.bell.ring_at.load(Ordering::SeqCst);
        if at != 0 && claimed >= at && self.bell.ring_at.swap(0, Ordering::SeqCst) != 0 {
            Bell::Ring
        } else {
            Bell::Silent
        }
    }

    /// Notes one more open connection of a client with this mark. 0 is nobody's.
    pub fn note_open(&self, mark: u16) {
        if let Some(count) = self.count_of(mark) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// … one less.
    pub fn note_shut(&self, mark: u16) {
        if let Some(count) = self.count_of(mark) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether a client with this mark has a connection open.
    #[must_use]
    pub fn holds(&self, mark: u16) -> bool {
        self.count_of(mark).is_some_and(|count| count.load(Ordering::Relaxed) != 0)
    }

    fn count_of(&self, mark: u16) -> Option<&AtomicU16> {
        self.marks.get(usize::from(mark)).filter(|_| mark != 0)
    }

    /// Counts a close.
    pub fn count_close(&self, line: Option<&Line>) -> Bell {
        if let Some(line) = line {
            line.closed.fetch_add(1, Ordering::Relaxed);
        }
        self.totals.closed.fetch_add(1, Ordering::SeqCst);
        let asked = self.bell.ring_on_close.load(Ordering::SeqCst) != 0;
        if asked && self.bell.ring_on_close.swap(0, Ordering::SeqCst) != 0 {
            Bell::Ring
        } else {
            Bell::Silent
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank() -> Box<Page> {
        let line = || Line {
            pid: AtomicU32::new(0),
            claimed: AtomicU64::new(0),
            closed: AtomicU64::new(0),
        };
        Box::new(Page {
            head: Head {
                magic: AtomicU32::new(PAGE_MAGIC),
                worker: AtomicU32::new(1),
                flags: AtomicU32::new(0),
            },
            totals: Totals {
                claimed: AtomicU64::new(0),
                closed: AtomicU64::new(0),
                nonblocking: AtomicU32::new(0),
                lines: AtomicU32::new(0),
            },
            bell: BellWords {
                ring_at: AtomicU64::new(0),
                ring_on_close: AtomicU32::new(0),
                mail: AtomicU32::new(0),
            },
            waited: [const { AtomicU32::new(0) }; WAITED_BUCKETS],
            lines: std::array::from_fn(|_| line()),
            marks: [const { AtomicU16::new(0) }; MARKS_MAX],
        })
    }

    #[test]
    fn rings_once_when_claims_reach_the_mark() {
        let page = blank();
        let line = page.take_line(42).unwrap();
        assert_eq!(page.count_claim(Some(line), 0), Bell::Silent);
        page.bell.ring_at.store(3, Ordering::SeqCst);
        assert_eq!(page.count_claim(Some(line), 1), Bell::Silent);
        assert_eq!(page.count_claim(Some(line), 1500), Bell::Ring);
        assert_eq!(page.count_claim(Some(line), u64::MAX), Bell::Silent);
        assert_eq!(line.claimed.load(Ordering::Relaxed), 4);
        let at = |i: usize| page.waited[i].load(Ordering::Relaxed);
        assert_eq!((at(0), at(10), at(WAITED_BUCKETS - 1)), (2, 1, 1));
    }

    #[test]
    fn rings_once_on_close_when_asked() {
        let page = blank();
        assert_eq!(page.count_close(None), Bell::Silent);
        page.bell.ring_on_close.store(1, Ordering::SeqCst);
        assert_eq!(page.count_close(None), Bell::Ring);
        assert_eq!(page.count_close(None), Bell::Silent);
        assert_eq!(page.totals.closed.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn open_connections_are_known_by_mark_and_nobody_has_mark_0() {
        let page = blank();
        let last = u16::try_from(MARKS_MAX - 1).unwrap();
        for mark in [1, 77, last] {
            assert!(!page.holds(mark));
            page.note_open(mark);
            page.note_open(mark);
            page.note_shut(mark);
            assert!(page.holds(mark) && !page.holds(mark - 1));
            page.note_shut(mark);
            assert!(!page.holds(mark));
        }
        for nobody in [0, last + 1, u16::MAX] {
            page.note_open(nobody);
            assert!(!page.holds(nobody));
        }
    }

    #[test]
    fn lines_run_out() {
        let page = blank();
        for pid in 1..=LINES_MAX {
            assert!(page.take_line(u32::try_from(pid).unwrap()).is_some());
            assert_eq!(page.lines_in_use().count(), pid);
        }
        assert!(page.take_line(9999).is_none());
        assert_eq!(page.lines_in_use().count(), LINES_MAX);
    }

    #[test]
    fn lines_that_were_never_taken_are_not_looked_at() {
        let page = blank();
        assert_eq!(page.lines_in_use().count(), 0);
        for pid in 1..=3 {
            assert!(page.take_line(pid).is_some());
        }
        // A gap is taken again before any new line, and what is behind it stays in sight.
        page.lines[1].pid.store(0, Ordering::Relaxed);
        let pids = || page.lines_in_use().map(|line| line.pid.load(Ordering::Relaxed));
        assert!(pids().eq([1, 0, 3]));
        assert!(page.take_line(4).is_some());
        assert!(pids().eq([1, 4, 3]));
        // Whatever a worker writes: there are no more lines than there are.
        page.totals.lines.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(page.lines_in_use().count(), LINES_MAX);
    }
}
