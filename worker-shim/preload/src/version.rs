//! A primary of another version: the files were upgraded under one that runs.
//!
//! **Promises** `EPROTO`, and one line to stderr in the life of a process, because no errno says what to
//! do, and what the program makes of it is about its port.

use crate::SEAT;
use libc::c_int;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const LINE: &str = "croupier: the preload library and the primary are of different versions, as after an \
                    upgrade; stop croupier and start it again\n";

static SAID: AtomicBool = AtomicBool::new(false);

/// Takes the seat at the page that an answer brought.
///
/// # Errors
/// The errno for the program.
pub(crate) fn sit(page: &OwnedFd, bell: OwnedFd) -> Result<(), c_int> {
    SEAT.take(page, bell).map_err(|error| if is_other(&error) { other() } else { libc::ENOBUFS })
}

/// The errno for the program when the primary did not answer what could be read.
pub(crate) fn unanswered(error: &io::Error) -> c_int {
    if is_other(error) { other() } else { libc::EADDRNOTAVAIL }
}

fn is_other(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPROTO)
}

fn other() -> c_int {
    if !SAID.swap(true, Relaxed) {
        // SAFETY: `LINE` has that many bytes; a signal handler may do this, too.
        unsafe { libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len()) };
    }
    libc::EPROTO
}
