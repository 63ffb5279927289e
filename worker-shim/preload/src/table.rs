//! What this process knows of each descriptor number: one byte a number, read at every close(2).
//!
//! **Owns** the bytes, in a private mapping that the kernel zeroes in a forked child, where all is
//! unknown again. **Promises** that a stale byte is harmless: closes happen where no hook sees them, so
//! an entry is a memory aid, and whoever acts on it looks first or survives being wrong. **Never**
//! lets a vforked child, which runs in its parent's memory, change the parent's entries.

use crate::place::PlaceId;
use croupier_wire::memory::map_wiped_on_fork;
use libc::c_int;
use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

/// Numbers from here up are not tracked: their closes go uncounted. The kernel's default `fs.nr_open`.
pub(crate) const NUMBERS_MAX: usize = 1 << 20;

/// What a number was when we last looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Never looked at, or closed since.
    Unknown,
    /// Nothing of croupier's.
    Foreign,
    /// Claimed by this process, not yet closed.
    Connection,
    /// A socket that is reserved or has become a channel.
    Place(PlaceId),
}

const FOREIGN: u8 = 1;
const CONNECTION: u8 = 2;
/// [`Entry::Unknown`], but made here by socket(2).
const MADE: u8 = 3;
const PLACES_FROM: u8 = 16;

impl Entry {
    fn byte(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Foreign => FOREIGN,
            Self::Connection => CONNECTION,
            Self::Place(PlaceId(index)) => PLACES_FROM.saturating_add(index),
        }
    }

    fn of(byte: u8) -> Self {
        match byte {
            FOREIGN => Self::Foreign,
            CONNECTION => Self::Connection,
            PLACES_FROM.. => Self::Place(PlaceId(byte - PLACES_FROM)),
            _ => Self::Unknown,
        }
    }
}

/// The entries of this process.
pub(crate) struct Table {
    memory: &'static Memory,
}

#[repr(C)]
struct Memory {
    /// The process whose entries these are; 0: none since the fork.
    owner: AtomicU32,
    /// No entry above this number.
    highest: AtomicU32,
    entries: [AtomicU8; NUMBERS_MAX],
    /// Of a connection: its client's mark. Untouched memory where clients have none.
    marks: [AtomicU16; NUMBERS_MAX],
}

impl Table {
    pub(crate) fn new() -> io::Result<Self> {
        let memory = map_wiped_on_fork(size_of::<Memory>())?.cast::<Memory>();
        // SAFETY: mapped above, as large, never unmapped; zero is a valid value of all its parts.
        let memory = unsafe { &*memory };
        memory.owner.store(std::process::id(), SeqCst);
        // SAFETY: the handlers take no arguments and do nothing that is unsafe around a fork. If they
        // cannot be registered, `is_ours` still finds out, except in a vfork right after a fork.
        unsafe { libc::pthread_atfork(Some(before_fork), None, Some(own_again)) };
        Ok(Self { memory })
    }

    pub(crate) fn get(&self, fd: c_int) -> Entry {
        self.entry(fd).map_or(Entry::Unknown, |entry| Entry::of(entry.load(SeqCst)))
    }

    /// Sets what `fd` is; returns what it was.
    pub(crate) fn set(&self, fd: c_int, to: Entry) -> Entry {
        let number = fd.unsigned_abs();
        if to != Entry::Unknown && number > self.memory.highest.load(SeqCst) {
            self.memory.highest.fetch_max(number, SeqCst);
        }
        self.entry(fd).map_or(Entry::Unknown, |entry| Entry::of(entry.swap(to.byte(), SeqCst)))
    }

    /// `fd` is about to be closed: forgets it and returns what it was. In a vforked child, where it is
    /// the parent's entry and the parent's descriptor stays open: `Unknown`, and nothing is forgotten.
    pub(crate) fn take(&self, fd: c_int) -> Entry {
        match self.get(fd) {
            Entry::Unknown => {
                self.swap(fd, (MADE, 0));
                Entry::Unknown
            }
            Entry::Foreign | Entry::Connection | Entry::Place(_) if !self.is_ours() => {
                Entry::Unknown
            }
            Entry::Foreign | Entry::Connection | Entry::Place(_) => self.set(fd, Entry::Unknown),
        }
    }

    /// `fd` was made by socket(2): nobody has bound it anywhere.
    pub(crate) fn note_made(&self, fd: c_int) {
        self.memory.highest.fetch_max(fd.unsigned_abs(), SeqCst);
        self.swap(fd, (0, MADE));
    }

    /// Whether it was, and nothing more is known of it.
    pub(crate) fn is_made(&self, fd: c_int) -> bool {
        self.entry(fd).is_some_and(|entry| entry.load(SeqCst) == MADE)
    }

    fn swap(&self, fd: c_int, (from, to): (u8, u8)) {
        if let Some(entry) = self.entry(fd)
            && entry.load(SeqCst) == from
        {
            // Another thread's word about the number is the later one.
            let _ = entry.compare_exchange(from, to, SeqCst, SeqCst);
        }
    }

    /// The mark of the client whose connection `fd` is, or was.
    pub(crate) fn mark(&self, fd: c_int) -> u16 {
        self.mark_of(fd).map_or(0, |mark| mark.load(Relaxed))
    }

    /// Sets what [`Self::mark`] gives.
    pub(crate) fn set_mark(&self, fd: c_int, to: u16) {
        if let Some(mark) = self.mark_of(fd)
            && mark.load(Relaxed) != to
        {
            mark.store(to, Relaxed);
        }
    }

    fn mark_of(&self, fd: c_int) -> Option<&AtomicU16> {
        self.memory.marks.get(usize::try_from(fd).ok()?)
    }

    /// The numbers of `range` that can have an entry.
    pub(crate) fn known(&self, range: RangeInclusive<u32>) -> RangeInclusive<u32> {
        *range.start()..=*range.end().min(&self.memory.highest.load(SeqCst))
    }

    /// Becomes this process's. Called in a forked child.
    pub(crate) fn own(&self) {
        self.memory.owner.store(std::process::id(), SeqCst);
    }

    fn is_ours(&self) -> bool {
        let pid = std::process::id();
        match self.memory.owner.compare_exchange(0, pid, SeqCst, SeqCst) {
            Ok(_) => true,
            Err(owner) => owner == pid,
        }
    }

    fn entry(&self, fd: c_int) -> Option<&AtomicU8> {
        self.memory.entries.get(usize::try_from(fd).ok()?)
    }
}

/// A master that replaces its workers would go on for ever after the primary's end.
extern "C" fn before_fork() {
    crate::SEAT.follow();
}

extern "C" fn own_again() {
    if let Some(state) = crate::state() {
        state.table.own();
    }
}
