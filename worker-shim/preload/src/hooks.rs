//! The exported symbols: each hook decides whether a call is croupier's, and ends in libc if not.
//!
//! **Promises** that errno is what libc would have left: untouched on success. **Never** holds logic:
//! that is in the other files.

use crate::accept::{Out, accept as claim};
use crate::real::{errno, set_errno};
use crate::{State, close as closing, listen as listening, options, real, state};
use libc::{FILE, c_int, c_long, c_uint, c_void, sockaddr, socklen_t};

/// What a hook decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Not croupier's: call libc.
    Libc,
    /// Done; the hook returns this.
    Return(c_int),
    /// Failed with this errno.
    Errno(c_int),
}

impl Outcome {
    /// The outcome of a call of libc's that has been made already.
    pub(crate) fn of(returned: c_int) -> Self {
        if returned < 0 { Self::Errno(errno()) } else { Self::Return(returned) }
    }
}

fn hook(ours: impl FnOnce(&'static State) -> Outcome, libc: impl FnOnce() -> c_int) -> c_int {
    let saved = errno();
    let outcome = state().map_or(Outcome::Libc, ours);
    set_errno(saved);
    match outcome {
        Outcome::Libc => libc(),
        Outcome::Return(value) => value,
        Outcome::Errno(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// socket(2): a socket that is made here was bound nowhere else.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    let made = unsafe { real::socket(domain, kind, protocol) };
    if let (0.., Some(state)) = (made, state()) {
        state.table.note_made(made);
    }
    made
}

/// bind(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    hook(
        // SAFETY: the caller's promise: `address` has `len` bytes.
        |state| unsafe { listening::bind(state, fd, address, len) },
        // SAFETY: the caller's arguments.
        || unsafe { real::bind(fd, address, len) },
    )
}

/// listen(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    hook(|state| listening::listen(state, fd, backlog), || unsafe { real::listen(fd, backlog) })
}

/// connect(2): a socket that was bound to be a client gets its bind(2) first.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    hook(
        |state| listening::bind_after_all(state, fd),
        // SAFETY: the caller's arguments.
        || unsafe { real::connect(fd, address, len) },
    )
}

/// accept(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int {
    hook(
        // SAFETY: the caller's promise: both null, or `address` has `*len` bytes.
        |state| claim(state, fd, unsafe { Out::new(address.cast(), len) }, 0),
        // SAFETY: the caller's arguments.
        || unsafe { real::accept(fd, address, len) },
    )
}

/// accept4(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    hook(
        // SAFETY: the caller's promise: both null, or `address` has `*len` bytes.
        |state| claim(state, fd, unsafe { Out::new(address.cast(), len) }, flags),
        // SAFETY: the caller's arguments.
        || unsafe { real::accept4(fd, address, len, flags) },
    )
}

/// getsockname(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    hook(
        // SAFETY: the caller's promise: `address` has `*len` bytes.
        |state| options::name(state, fd, unsafe { Out::new(address.cast(), len) }),
        // SAFETY: the caller's arguments.
        || unsafe { real::getsockname(fd, address, len) },
    )
}

/// getsockopt(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    hook(
        // SAFETY: the caller's promise: `value` has `*len` bytes.
        |state| options::get(state, fd, (level, name), unsafe { Out::new(value, len) }),
        // SAFETY: the caller's arguments.
        || unsafe { real::getsockopt(fd, level, name, value, len) },
    )
}

/// setsockopt(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    hook(
        // SAFETY: the caller's promise: `value` has `len` bytes.
        |state| unsafe { options::set(state, fd, (level, name), value, len) },
        // SAFETY: the caller's arguments.
        || unsafe { real::setsockopt(fd, level, name, value, len) },
    )
}

/// shutdown(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    hook(|state| closing::shutdown(state, fd, how), || unsafe { real::shutdown(fd, how) })
}

/// close(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    // SAFETY: the caller's argument.
    let real = || unsafe { real::close(fd) };
    hook(|state| closing::close(state, fd, real), real)
}

/// fclose(3), whose close(2) inside libc no hook sees.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fclose(file: *mut FILE) -> c_int {
    hook(
        // SAFETY: the caller's promise: an open stream.
        |state| unsafe { closing::fclose(state, file) },
        // SAFETY: the caller's arguments.
        || unsafe { real::fclose(file) },
    )
}

/// close_range(2).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    hook(
        |state| closing::close_range(state, first, last, flags),
        // SAFETY: the caller's arguments.
        || unsafe { real::close_range(first, last, flags) },
    )
}

/// closefrom(3).
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn closefrom(low: c_int) {
    hook(
        |state| closing::close_range(state, low.max(0).unsigned_abs(), c_uint::MAX, 0),
        || {
            // SAFETY: the caller's argument.
            unsafe { real::closefrom(low) };
            0
        },
    );
}

/// dup2(2): closes `new`, if it is open.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    let real = || unsafe { real::dup2(old, new) };
    hook(|state| closing::replace(state, old, new, real), real)
}

/// dup3(2): closes `new`, if it is open.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's arguments.
    let real = || unsafe { real::dup3(old, new, flags) };
    hook(|state| closing::replace(state, old, new, real), real)
}

/// syscall(2), for the sake of close(2): libuv, and so Node, closes this way.
///
/// Variadic in C. Its arguments are words, which both of our architectures' calling conventions pass
/// as for a function of seven; libc's own reads all six, too, however many there are.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    // SAFETY: the caller's arguments.
    let real = || unsafe { real::syscall(number, a, b, c, d, e, f) };
    match (number, c_int::try_from(a)) {
        (libc::SYS_close, Ok(fd)) => {
            let real = || c_int::try_from(real()).unwrap_or(-1);
            c_long::from(hook(|state| closing::close(state, fd, real), real))
        }
        _ => real(),
    }
}
