//! Mail: connections for a worker that accepts from a socket of its own (`reuseport`).
//!
//! What waits at the socket of a slot that is down is accepted by the primary and sent to another
//! worker's channel. That worker polls its own socket and not the channel, so it looks there whenever it
//! accepts and the page says that there is mail; the primary wakes it with a connection of its own.
//! **Owns** the channel's descriptor, one for each listener, kept at a high number until the program closes
//! the listener. **Promises** that a worker without mail pays one read of memory per accept(2), and that a
//! number is only kept from the program's close(2) while it still is the channel's.

use crate::{SEAT, fds};
use croupier_wire::message::Handoff;
use libc::c_int;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

/// Listeners of one process that can have mail; more accept from their own sockets only.
const BOXES_MAX: usize = 16;
/// Out of the way of programs that count on small numbers.
const BOX_NUMBER: c_int = 900;

/// A listening descriptor and the channel beside it; -1: free.
struct Box {
    listener: AtomicI32,
    channel: AtomicI32,
    /// The channel's inode: by its number alone it may be the program's file by now.
    inode: AtomicU64,
}

impl Box {
    const fn free() -> Self {
        Self { listener: AtomicI32::new(-1), channel: AtomicI32::new(-1), inode: AtomicU64::new(0) }
    }

    fn is_at(&self, number: c_int) -> bool {
        number >= 0
            && self.channel.load(SeqCst) == number
            && fds::file(number).is_ok_and(|(_, inode)| inode == self.inode.load(SeqCst))
    }

    fn close(&self) {
        let number = self.channel.load(SeqCst);
        let ours = self.is_at(number);
        // Before the close: from then on the number may be the program's.
        self.channel.store(-1, SeqCst);
        if ours {
            // SAFETY: it is this box's, and nobody else's.
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
}

static BOXES: [Box; BOXES_MAX] = [const { Box::free() }; BOXES_MAX];

/// `listener` has become the worker's own socket; what is dealt to it beside comes on `channel`.
pub(crate) fn expect(listener: c_int, channel: OwnedFd) {
    let known = BOXES.iter().find(|one| one.listener.load(SeqCst) == listener);
    let free = || BOXES.iter().find(|one| one.listener.load(SeqCst) == -1);
    let Some(one) = known.or_else(free) else { return };
    one.close();
    let number = channel.as_raw_fd();
    // SAFETY: duplicates a descriptor of ours.
    let high = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, BOX_NUMBER) };
    let kept = if high < 0 { channel.into_raw_fd() } else { high };
    let Ok((_, inode)) = fds::file(kept) else { return };
    // A thread that comes too late must go on to the socket.
    // SAFETY: sets the flags of a channel of ours; the primary's end of the file never waits.
    unsafe { libc::fcntl(kept, libc::F_SETFL, libc::O_NONBLOCK) };
    one.inode.store(inode, SeqCst);
    one.channel.store(kept, SeqCst);
    one.listener.store(listener, SeqCst);
}

/// The program closes what listens in `numbers`: nobody asks for its mail any more.
pub(crate) fn give_up(numbers: &RangeInclusive<c_int>) {
    for one in &BOXES {
        if numbers.contains(&one.listener.load(SeqCst)) {
            one.close();
            one.listener.store(-1, SeqCst);
        }
    }
}

/// The next piece of mail for a listener.
pub(crate) fn take(listener: c_int, flags: c_int) -> Option<(OwnedFd, Handoff)> {
    if SEAT.page()?.bell.mail.load(SeqCst) == 0 {
        return None;
    }
    let one = BOXES.iter().find(|one| one.listener.load(SeqCst) == listener)?;
    let number = one.channel.load(SeqCst);
    if number < 0 {
        return None;
    }
    // SAFETY: not -1; should it be another's descriptor by now, recvmsg says that it is no channel.
    SEAT.take_mail(unsafe { BorrowedFd::borrow_raw(number) }, flags)
}

/// Whether `number` is a channel of ours beside a listener: not the program's to close.
pub(crate) fn holds(number: c_int) -> bool {
    number >= BOX_NUMBER && BOXES.iter().any(|one| one.is_at(number))
}

/// The lowest number from `from` on that [`holds`].
pub(crate) fn next(from: c_int) -> Option<c_int> {
    let numbers = BOXES.iter().map(|one| one.channel.load(SeqCst));
    numbers.filter(|number| *number >= from && holds(*number)).min()
}
