//! Every way in which a program closes a descriptor: what was claimed is counted, a listener given up.
//!
//! **Promises** that each claimed connection is counted once; that the entry is forgotten *before* the
//! descriptor is closed, because another thread may get the number right after; that a listener ends
//! only when the process that made it closes its last copy of it; any other forgets it at its own last
//! copy, and says nothing. **Never** lets a program that closes
//! everything close the doorbell or a channel with mail.

use crate::hooks::Outcome;
use crate::identify::{What, identify};
use crate::place::{PLACES_MAX, Place, PlaceId, Role};
use crate::table::Entry;
use crate::{SEAT, State, fds, mail, real};
use croupier_wire::message::{Kind, Request};
use libc::{FILE, c_int, c_uint};
use std::ops::RangeInclusive;

/// What is to be done once a descriptor is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// Count the close of a connection.
    Count,
    /// Give up the listener, and tell the primary if it was made here.
    Leave(PlaceId),
}

pub(crate) fn close(state: &State, fd: c_int, real: impl FnOnce() -> c_int) -> Outcome {
    if SEAT.holds(fd) || mail::holds(fd) { Outcome::Return(0) } else { close_by(state, fd, real) }
}

/// # Safety
/// As fclose(3).
pub(crate) unsafe fn fclose(state: &State, file: *mut FILE) -> Outcome {
    // SAFETY: the caller's promise: an open stream.
    let fd = unsafe { libc::fileno(file) };
    // SAFETY: as above.
    close_by(state, fd, || unsafe { real::fclose(file) })
}

fn close_by(state: &State, fd: c_int, real: impl FnOnce() -> c_int) -> Outcome {
    let entry = state.table.take(fd);
    if entry == Entry::Unknown {
        return Outcome::Libc;
    }
    let owed = owed(state, fd, entry, &(fd..=fd));
    let outcome = Outcome::of(real());
    settle(state, owed);
    outcome
}

/// dup2(2) and dup3(2): `new` is closed, if the call succeeds.
pub(crate) fn replace(
    state: &State,
    old: c_int,
    new: c_int,
    real: impl FnOnce() -> c_int,
) -> Outcome {
    let entry = if old == new { Entry::Unknown } else { state.table.take(new) };
    if entry == Entry::Unknown {
        return Outcome::Libc;
    }
    let owed = owed(state, new, entry, &(new..=new));
    let outcome = Outcome::of(real());
    match outcome {
        Outcome::Return(_) => settle(state, owed),
        Outcome::Libc | Outcome::Errno(_) => {
            state.table.set(new, entry);
            if let (Entry::Connection, Some(page)) = (entry, SEAT.page()) {
                page.note_open(state.table.mark(new));
            }
        }
    }
    outcome
}

/// close_range(2) and closefrom(3), around what is not the program's to close.
pub(crate) fn close_range(state: &State, first: c_uint, last: c_uint, flags: c_int) -> Outcome {
    if first > last || flags & CLOSE_RANGE_CLOEXEC != 0 {
        return Outcome::Libc;
    }
    let numbers =
        c_int::try_from(first).unwrap_or(c_int::MAX)..=c_int::try_from(last).unwrap_or(c_int::MAX);
    let mut closes = 0;
    let mut left = [None; PLACES_MAX];
    let mut free = left.iter_mut();
    for number in state.table.known(first..=last) {
        let Ok(fd) = c_int::try_from(number) else { break };
        let entry = state.table.take(fd);
        match owed(state, fd, entry, &numbers) {
            Owed::Nothing => {}
            Owed::Count => closes += 1,
            Owed::Leave(id) => {
                if let Some(slot) = free.next() {
                    *slot = Some(id);
                }
            }
        }
    }
    let outcome = close_around(first, last, flags);
    (0..closes).for_each(|_| SEAT.count_close());
    left.into_iter().flatten().for_each(|id| settle(state, Owed::Leave(id)));
    outcome
}

const CLOSE_RANGE_CLOEXEC: c_int = 4;

fn close_around(first: c_uint, last: c_uint, flags: c_int) -> Outcome {
    let mut from = first;
    while let Some(hole) = next_held(from) {
        if hole > last {
            break;
        }
        if from < hole {
            // SAFETY: a part of the caller's range.
            let failed = Outcome::of(unsafe { real::close_range(from, hole - 1, flags) });
            if matches!(failed, Outcome::Errno(_)) {
                return failed;
            }
        }
        from = hole + 1;
    }
    if from > last {
        return Outcome::Return(0);
    }
    // SAFETY: a part of the caller's range.
    Outcome::of(unsafe { real::close_range(from, last, flags) })
}

/// The lowest number from `from` on that is not the program's to close.
fn next_held(from: c_uint) -> Option<c_uint> {
    let from = c_int::try_from(from).ok()?;
    let bell = Some(SEAT.bell()).filter(|bell| *bell >= from && SEAT.holds(*bell));
    let held = bell.into_iter().chain(mail::next(from)).min()?;
    c_uint::try_from(held).ok()
}

/// shutdown(2) on a listener: accept(2) fails from now on. The channel itself stays whole, because the
/// worker's other processes and the primary share it.
pub(crate) fn shutdown(state: &State, fd: c_int, how: c_int) -> Outcome {
    let What::Channel(id) = identify(state, fd) else { return Outcome::Libc };
    match (how, id.place()) {
        (libc::SHUT_RD | libc::SHUT_RDWR, Some(place)) => {
            if place.is_ours() && place.role() == Role::Channel {
                leave(state, place);
            }
            place.shut();
            Outcome::Return(0)
        }
        (libc::SHUT_WR, _) => Outcome::Return(0),
        _ => Outcome::Errno(libc::EINVAL),
    }
}

fn owed(state: &State, fd: c_int, entry: Entry, closing: &RangeInclusive<c_int>) -> Owed {
    match entry {
        Entry::Unknown => Owed::Nothing,
        Entry::Foreign => {
            mail::give_up(&(fd..=fd));
            Owed::Nothing
        }
        Entry::Connection => {
            // A moment before it is true; by the close itself the number may be another thread's.
            shut(state, fd);
            Owed::Count
        }
        Entry::Place(id) => {
            if fds::has_copy(fd, closing) {
                Owed::Nothing
            } else {
                Owed::Leave(id)
            }
        }
    }
}

/// The client of connection `fd` has one less open.
pub(crate) fn shut(state: &State, fd: c_int) {
    if let (mark @ 1.., Some(page)) = (state.table.mark(fd), SEAT.page()) {
        page.note_shut(mark);
    }
}

fn settle(state: &State, owed: Owed) {
    match owed {
        Owed::Nothing => {}
        Owed::Count => SEAT.count_close(),
        Owed::Leave(id) => {
            if let Some(place) = id.place() {
                if place.is_ours() {
                    leave(state, place);
                }
                place.give_up();
            }
        }
    }
}

/// Tells the primary that nobody listens here any more. If it cannot be told, it sees soon enough that
/// nothing is claimed.
pub(crate) fn leave(state: &State, place: &Place) {
    let kind = match place.role() {
        Role::Reserved => Kind::Unbind,
        Role::Channel => Kind::Close,
        Role::Free | Role::Filling | Role::Shut => return,
    };
    let mut request = Request::new(kind, state.contact.token);
    request.channel = place.channel();
    request.address = place.address();
    drop(state.contact.ask(&request));
}
