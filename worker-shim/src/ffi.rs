//! The C API: feature `capi`. `include/croupier.h` is its reference.
//!
//! **Owns** one word, whether this process claims by itself. **Promises** -1 and an errno of libc's,
//! never a panic and never a code of its own. **Never** keeps a descriptor: all belong to the caller.

use crate::claim::Claim;
use crate::listener::{Source, TcpListener};
use crate::worker::{SEAT, Worker, ended, worker};
use croupier_wire::control::Contact;
use croupier_wire::message::{CHANNEL_PREFIX, Kind, Request};
use libc::{c_char, c_int, sockaddr, socklen_t};
use std::ffi::CStr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The channels of this process are not listening sockets to accept(2): no preload library is here.
static CLAIMS: AtomicBool = AtomicBool::new(false);

/// See croupier.h.
///
/// # Safety
/// `address` is null or a string that ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn croupier_listen(address: *const c_char, backlog: c_int) -> c_int {
    if address.is_null() {
        return fail(libc::EINVAL);
    }
    // SAFETY: not null, so by contract a string.
    let Ok(address) = unsafe { CStr::from_ptr(address) }.to_str() else {
        return fail(libc::EINVAL);
    };
    match listen(address, backlog) {
        Ok(fd) => fd.into_raw_fd(),
        Err(error) => fail(errno_of(&error)),
    }
}

/// See croupier.h.
///
/// # Safety
/// As accept4(2): `address` and `length` are null, or `address` has room for `*length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn croupier_accept(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
) -> c_int {
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return fail(libc::EINVAL);
    }
    if fd < 0 {
        return fail(libc::EBADF);
    }
    // SAFETY: the caller's, for the length of this call; a closed one gives EBADF below.
    let channel = unsafe { BorrowedFd::borrow_raw(fd) };
    while CLAIMS.load(Ordering::Relaxed) {
        match SEAT.claim(channel, flags) {
            Claim::Taken(taken, handoff) => {
                SEAT.count_close();
                // SAFETY: by contract, as for accept4(2).
                unsafe { copy_address(handoff.peer.bytes(), address, length) };
                return taken.into_raw_fd();
            }
            // A TCP listener beside the channel: an address that is not dealt.
            Claim::Empty(libc::ENOTCONN | libc::ENOTSOCK) => break,
            Claim::Empty(errno) => return fail(errno),
            Claim::Ended => {
                if let Err(errno) = ended(channel) {
                    return fail(errno);
                }
            }
        }
    }
    // SAFETY: by contract.
    unsafe { libc::accept4(fd, address, length, flags) }
}

/// See croupier.h.
#[unsafe(no_mangle)]
pub extern "C" fn croupier_close(fd: c_int) -> c_int {
    if let (Some(channel), Some(contact)) = (channel_of(fd), Contact::from_environment()) {
        let mut request = Request::new(Kind::Close, contact.token);
        request.channel = channel;
        // Unheard, the primary is gone, and with it the reason to tell it.
        drop(contact.ask(&request));
    }
    // SAFETY: the caller hands it over.
    unsafe { libc::close(fd) }
}

/// See croupier.h.
#[unsafe(no_mangle)]
pub extern "C" fn croupier_worker_id() -> c_int {
    number(|worker| worker.id())
}

/// See croupier.h.
#[unsafe(no_mangle)]
pub extern "C" fn croupier_slot() -> c_int {
    number(|worker| worker.slot())
}

/// See croupier.h.
#[unsafe(no_mangle)]
pub extern "C" fn croupier_generation() -> c_int {
    number(|worker| worker.generation())
}

/// See croupier.h.
#[unsafe(no_mangle)]
pub extern "C" fn croupier_ready() -> c_int {
    let missing = || Err(io::Error::from_raw_os_error(libc::ENOENT));
    match worker().map_or_else(missing, |worker| worker.ready()) {
        Ok(()) => 0,
        Err(error) => fail(errno_of(&error)),
    }
}

/// See croupier.h.
#[unsafe(no_mangle)]
pub extern "C" fn croupier_is_draining() -> c_int {
    c_int::from(worker().is_some_and(|worker| worker.is_draining()))
}

/// See croupier.h.
#[unsafe(no_mangle)]
pub extern "C" fn croupier_draining_fd() -> c_int {
    let missing = || Err(io::Error::from_raw_os_error(libc::ENOENT));
    match worker().map_or_else(missing, |worker| worker.draining()) {
        Ok(draining) => OwnedFd::from(draining).into_raw_fd(),
        Err(error) => fail(errno_of(&error)),
    }
}

fn listen(address: &str, backlog: c_int) -> io::Result<OwnedFd> {
    let anywhere = address.strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
    let addresses = match anywhere {
        // A host without IPv6 refuses the first; with it, the first serves both.
        Some(port) => {
            vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
        }
        None => resolve(address)?,
    };
    let listener = TcpListener::open_first(addresses, backlog)?;
    match &listener.source {
        Source::Dealt(..) => {
            listener.set_nonblocking(false)?;
            CLAIMS.store(true, Ordering::Relaxed);
        }
        Source::Given(_) => listener.set_nonblocking(false)?,
        // std has listened already, with a backlog of its own; a second listen(2) changes it.
        // SAFETY: our own socket.
        Source::Plain => drop(unsafe { libc::listen(listener.as_raw_fd(), backlog) }),
    }
    Ok(listener.into())
}

/// `HOST:PORT`. A bad form is `EINVAL`, a name that does not resolve `EADDRNOTAVAIL`.
fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let form = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    form.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    match address.to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
    }
}

/// The channel's number, if `fd` is the receiving end of one: the last part of its abstract name.
fn channel_of(fd: c_int) -> Option<u32> {
    // SAFETY: plain integers, for which zero is a valid value.
    let mut name: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut len = socklen_t::try_from(size_of_val(&name)).ok()?;
    // Past libc: the preload library answers with the listener's address, not the channel's name.
    // SAFETY: `name` has room for `len` bytes.
    let got = unsafe { libc::syscall(libc::SYS_getsockname, fd, &raw mut name, &raw mut len) };
    if got != 0 || i32::from(name.sun_family) != libc::AF_UNIX {
        return None;
    }
    let path = usize::try_from(len).ok()?.checked_sub(size_of::<libc::sa_family_t>())?;
    let path: Vec<u8> = name.sun_path.iter().take(path).map(|c| c.to_ne_bytes()[0]).collect();
    let rest = path.strip_prefix(&[0])?.strip_prefix(CHANNEL_PREFIX)?;
    std::str::from_utf8(rest).ok()?.rsplit('/').next()?.parse().ok()
}

/// Copies as accept(2): what does not fit is cut off, and `*length` says how long it was.
///
/// # Safety
/// `address` and `length` are null, or `address` has room for `*length` bytes.
unsafe fn copy_address(from: &[u8], address: *mut sockaddr, length: *mut socklen_t) {
    // SAFETY: null, or by contract one to read and write.
    let Some(length) = (unsafe { length.as_mut() }).filter(|_| !address.is_null()) else { return };
    let room = usize::try_from(*length).unwrap_or(0);
    let fits = from.len().min(room);
    // SAFETY: by contract there is room for `*length` bytes, of which this is no more.
    unsafe { from.as_ptr().copy_to_nonoverlapping(address.cast(), fits) };
    *length = socklen_t::try_from(from.len()).unwrap_or(0);
}

fn number(of: impl Fn(&Worker) -> u32) -> c_int {
    worker().map_or(-1, |worker| c_int::try_from(of(&worker)).unwrap_or(c_int::MAX))
}

fn fail(errno: c_int) -> c_int {
    // SAFETY: points at this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { place.write(errno) };
    -1
}

/// Errors that carry a sentence for people have lost their number; the kind brings it back.
fn errno_of(error: &io::Error) -> c_int {
    const WORDY: [c_int; 6] = [
        libc::ECONNREFUSED,
        libc::ECONNRESET,
        libc::EACCES,
        libc::EAGAIN,
        libc::ENOENT,
        libc::EINVAL,
    ];
    let same_kind = |errno: &c_int| io::Error::from_raw_os_error(*errno).kind() == error.kind();
    error.raw_os_error().or_else(|| WORDY.into_iter().find(same_kind)).unwrap_or(libc::EPROTO)
}
