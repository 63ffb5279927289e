//! What a program asks and tells its listening socket.
//!
//! **Promises** that a channel answers as the listening socket it stands for, and that options which
//! connections inherit (`TCP_NODELAY`, buffer sizes, keep-alive, …) reach the primary's listener.
//! **Never** sets an option on the channel that could lose a connection (a filter, `SO_PASSCRED`).

use crate::accept::Out;
use crate::hooks::Outcome;
use crate::identify::{What, identify};
use crate::listen::recall_once;
use crate::place::{PlaceId, Role};
use crate::table::Entry;
use crate::{State, real};
use croupier_wire::message::{Kind, Request, SocketOption, Verdict};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, c_int, c_void, socklen_t};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Level and name of an option.
pub(crate) type Name = (c_int, c_int);

/// Those of interest at bind(2).
const AT_BIND: [Name; 3] = [
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_REUSEPORT),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY),
];

/// Those that a listener is given before listen(2), and after.
const INHERITED: [Name; 13] = [
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_PRIORITY),
    (SOL_SOCKET, libc::SO_RCVBUF),
    (SOL_SOCKET, libc::SO_SNDBUF),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, libc::TCP_FASTOPEN),
    (IPPROTO_IP, libc::IP_TOS),
];

/// `tcpi_state` of a listening socket (`TCP_LISTEN`).
const TCP_LISTEN: u8 = 10;

/// Adds the options that decide about a bind(2), where they are set.
pub(crate) fn for_bind(fd: c_int, request: &mut Request) {
    for name in AT_BIND {
        match read(fd, name) {
            Some(option) if option.value != 0 => {
                request.push_option(option);
            }
            Some(_) | None => {}
        }
    }
}

/// Adds the options in which `fd` differs from a fresh socket of its kind.
pub(crate) fn for_listen(fd: c_int, request: &mut Request) {
    let Some(domain) = read(fd, (SOL_SOCKET, libc::SO_DOMAIN)) else { return };
    // SAFETY: makes a socket.
    let fresh = unsafe { libc::socket(domain.value, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fresh < 0 {
        return;
    }
    // SAFETY: made above, ours alone.
    let fresh = unsafe { OwnedFd::from_raw_fd(fresh) };
    for name in INHERITED.into_iter().chain([(IPPROTO_IPV6, libc::IPV6_V6ONLY)]) {
        let ours = read(fd, name);
        if let Some(option) = ours
            && ours != read(fresh.as_raw_fd(), name)
        {
            request.push_option(option);
        }
    }
}

/// One integer option of `fd`, by libc.
pub(crate) fn read(fd: c_int, (level, name): Name) -> Option<SocketOption> {
    let mut words = [0_i32; 2];
    let mut len = 8;
    let to = words.as_mut_ptr().cast();
    // SAFETY: `words` has eight bytes.
    let failed = unsafe { real::getsockopt(fd, level, name, to, &raw mut len) } != 0;
    let [value, extra] = words;
    (!failed).then_some(SocketOption { level, name, value, extra })
}

/// getsockname(2).
pub(crate) fn name(state: &State, fd: c_int, out: Out) -> Outcome {
    // A connection that comes to its name again and again is looked at once, and a socket that was made
    // here has no name that we do not know.
    let is_new = state.table.get(fd) == Entry::Unknown && !state.table.is_made(fd);
    let place = match identify(state, fd) {
        What::Foreign if is_new => recall_once(state, fd).and_then(PlaceId::place),
        What::Foreign => None,
        What::Reserved(id) | What::Channel(id) => id.place(),
    };
    place.map_or(Outcome::Libc, |place| done(out.put_address(place.address().bytes())))
}

/// getsockopt(2).
pub(crate) fn get(state: &State, fd: c_int, name: Name, out: Out) -> Outcome {
    let What::Channel(id) = identify(state, fd) else { return Outcome::Libc };
    let family = family(id);
    let value = match name {
        (SOL_SOCKET, libc::SO_TYPE) => libc::SOCK_STREAM,
        (SOL_SOCKET, libc::SO_DOMAIN) => family,
        (SOL_SOCKET, libc::SO_PROTOCOL) if family == libc::AF_UNIX => 0,
        (SOL_SOCKET, libc::SO_PROTOCOL) => IPPROTO_TCP,
        (SOL_SOCKET, libc::SO_ACCEPTCONN) => {
            c_int::from(id.place().is_some_and(|place| place.role() == Role::Channel))
        }
        (IPPROTO_TCP, libc::TCP_INFO) if family != libc::AF_UNIX => {
            let mut info = [0; 104];
            info.iter_mut().take(1).for_each(|state| *state = TCP_LISTEN);
            return done(out.put_value(&info));
        }
        (IPPROTO_TCP | IPPROTO_IP | IPPROTO_IPV6, _) if family != libc::AF_UNIX => 0,
        _ => return Outcome::Libc,
    };
    done(out.put_value(&value.to_ne_bytes()))
}

/// setsockopt(2).
///
/// # Safety
/// `value` has `len` bytes, or is null.
pub(crate) unsafe fn set(
    state: &State,
    fd: c_int,
    name: Name,
    value: *const c_void,
    len: socklen_t,
) -> Outcome {
    let What::Channel(_) = identify(state, fd) else { return Outcome::Libc };
    if matches!(name, (SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO)) {
        // Of the descriptor, not of its connections: recvmsg(2) obeys it as accept(2) does.
        return Outcome::Libc;
    }
    if !INHERITED.contains(&name) {
        return Outcome::Return(0);
    }
    let words = if name == (SOL_SOCKET, libc::SO_LINGER) { 2 } else { 1 };
    if value.is_null() {
        return Outcome::Errno(libc::EFAULT);
    }
    if len < words * 4 {
        return Outcome::Errno(libc::EINVAL);
    }
    let value = value.cast::<i32>();
    // SAFETY: `value` has `len` bytes, which are at least four.
    let first = unsafe { value.read_unaligned() };
    // SAFETY: as above, and eight where there are two words.
    let extra = if words == 2 { unsafe { value.wrapping_add(1).read_unaligned() } } else { 0 };
    let (level, name) = name;
    let mut request = Request::new(Kind::SetOption, state.contact.token);
    request.channel = match identify(state, fd) {
        What::Channel(id) => id.place().map_or(0, |place| place.channel()),
        What::Foreign | What::Reserved(_) => 0,
    };
    request.push_option(SocketOption { level, name, value: first, extra });
    match state.contact.ask(&request) {
        Ok((answer, _)) if answer.verdict == Verdict::Refused => Outcome::Errno(answer.errno),
        // Not reached: connections come without the option, which beats a program that gives up.
        Ok(_) | Err(_) => Outcome::Return(0),
    }
}

fn family(id: PlaceId) -> c_int {
    id.place().map_or(libc::AF_INET, |place| c_int::from(place.address().family()))
}

fn done(result: Result<(), c_int>) -> Outcome {
    result.map_or_else(Outcome::Errno, |()| Outcome::Return(0))
}
