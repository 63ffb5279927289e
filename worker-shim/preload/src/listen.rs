//! bind(2) and listen(2) as requests to the primary.
//!
//! **Promises**: an address that is dealt is bound by the primary alone, and the program's socket stays
//! unbound until the channel takes its number; `O_NONBLOCK`, close-on-exec, the receive time-out and
//! epoll registrations carry over. A primary that cannot be asked is `EADDRNOTAVAIL`, and one of another
//! version `EPROTO`: to bind for real instead would let one worker take the port from all others. **Never** keeps a descriptor open.

use crate::close::leave;
use crate::hooks::Outcome;
use crate::identify::{What, cookie, identify, real_name};
use crate::place::{Place, PlaceId};
use crate::table::Entry;
use crate::version::{sit, unanswered};
use crate::{State, epoll, mail, options, passed, real};
use croupier_wire::message::{ADDRESS_MAX, Answer, Kind, RawAddress, Request, Verdict};
use libc::{SOL_SOCKET, c_int, c_void, sockaddr, socklen_t};
use std::os::fd::{AsRawFd, OwnedFd};

type Address = RawAddress<ADDRESS_MAX>;

/// # Safety
/// `address` has `len` bytes, or is null.
pub(crate) unsafe fn bind(
    state: &State,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> Outcome {
    // SAFETY: the caller's promise.
    let Some(shown) = (unsafe { dealable(fd, address, len) }) else { return Outcome::Libc };
    if identify(state, fd) != What::Foreign {
        return Outcome::Errno(libc::EINVAL);
    }
    let Some(asked) = absolute(&shown) else { return Outcome::Libc };
    let mut request = Request::new(Kind::Bind, state.contact.token);
    request.address = asked;
    options::for_bind(fd, &mut request);
    let cookie = cookie(fd);
    if let Some(cookie) = cookie {
        request.push_cookie(cookie);
    }
    let answer = match state.contact.ask(&request) {
        Ok((answer, _)) => answer,
        Err(error) => return Outcome::Errno(unanswered(&error)),
    };
    match answer.verdict {
        Verdict::Pass => Outcome::Libc,
        Verdict::Done => {
            let renamed = asked != shown || answer.address.bytes().is_empty();
            let shown = if renamed { shown } else { answer.address };
            let Some(id) = cookie.and_then(|cookie| PlaceId::reserve(cookie, &shown)) else {
                request.kind = Kind::Unbind;
                drop(state.contact.ask(&request));
                return Outcome::Errno(libc::ENOBUFS);
            };
            state.table.set(fd, Entry::Place(id));
            Outcome::Return(0)
        }
        Verdict::Dealt | Verdict::Socket | Verdict::Refused => Outcome::Errno(errno_of(&answer)),
    }
}

pub(crate) fn listen(state: &State, fd: c_int, backlog: c_int) -> Outcome {
    let what = match identify(state, fd) {
        What::Foreign => match recall(state, fd) {
            Ok(found) => found.map_or(What::Foreign, What::Reserved),
            Err(errno) => return Outcome::Errno(errno),
        },
        known @ (What::Reserved(_) | What::Channel(_)) => known,
    };
    match what {
        What::Foreign => Outcome::Libc,
        // nginx listens again to change the backlog, which is the primary's.
        What::Channel(_) => Outcome::Return(0),
        What::Reserved(id) => match id.place() {
            Some(place) => ask_to_listen(state, fd, backlog, id, place),
            None => Outcome::Libc,
        },
    }
}

/// A socket that another program of the worker bound, and that came here by exec(2) or over a socket
/// (`uvicorn --workers`, multiprocessing "spawn"): it has no address, and nothing here knows of one. The
/// primary does. libc's listen(2) would take any free port.
///
/// Only a stream socket without an address is worth the question; hardly any program listens on one.
///
/// # Errors
/// The errno for listen(2), of a socket that may well have been bound: what the primary refused with;
/// `EADDRNOTAVAIL` when it cannot be asked; `ENOBUFS` when all places are taken.
pub(crate) fn recall(state: &State, fd: c_int) -> Result<Option<PlaceId>, c_int> {
    match cookie_of_nameless(fd) {
        Some(cookie) => recall_by(state, fd, cookie),
        None => Ok(None),
    }
}

/// As [`recall`], for getsockname(2), which client programs call as often as they like: one question for a
/// socket, because the primary ends a worker that asks too much. What goes wrong listen(2) says.
pub(crate) fn recall_once(state: &State, fd: c_int) -> Option<PlaceId> {
    let cookie = cookie_of_nameless(fd).filter(|cookie| !passed::knows(*cookie))?;
    let found = recall_by(state, fd, cookie).unwrap_or_default();
    if found.is_none() {
        passed::note(cookie);
    }
    found
}

fn recall_by(state: &State, fd: c_int, cookie: u64) -> Result<Option<PlaceId>, c_int> {
    let mut request = Request::new(Kind::Bind, state.contact.token);
    options::for_bind(fd, &mut request);
    request.push_cookie(cookie);
    let (answer, _) = state.contact.ask(&request).map_err(|error| unanswered(&error))?;
    match answer.verdict {
        Verdict::Pass => Ok(None),
        Verdict::Done if !answer.address.bytes().is_empty() => {
            let id = PlaceId::recall(cookie, &answer.address).ok_or(libc::ENOBUFS)?;
            state.table.set(fd, Entry::Place(id));
            Ok(Some(id))
        }
        Verdict::Done | Verdict::Dealt | Verdict::Socket | Verdict::Refused => {
            Err(errno_of(&answer))
        }
    }
}

/// `SO_COOKIE` of a stream socket that bind(2) and connect(2) could still name.
fn cookie_of_nameless(fd: c_int) -> Option<u64> {
    if is_nameless(fd) { cookie(fd) } else { None }
}

fn is_nameless(fd: c_int) -> bool {
    let Some(name) = real_name(fd) else { return false };
    let Some((family, rest)) = name.bytes().split_first_chunk::<2>() else { return false };
    let nameless = match c_int::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET | libc::AF_INET6 => rest.first_chunk::<2>() == Some(&[0, 0]),
        libc::AF_UNIX => rest.is_empty(),
        _ => false,
    };
    let kind = || options::read(fd, (SOL_SOCKET, libc::SO_TYPE)).map(|option| option.value);
    nameless && kind() == Some(libc::SOCK_STREAM) && !has_peer(fd)
}

/// As one of a socketpair(2), which has no name either.
fn has_peer(fd: c_int) -> bool {
    let mut family = 0_u16;
    let mut len = 2;
    // SAFETY: `family` has `len` bytes, and more are cut off.
    unsafe { libc::getpeername(fd, (&raw mut family).cast(), &raw mut len) == 0 }
}

/// A socket with a reserved address is to have it for real: a client that chose its port, or a listener
/// that the primary does not deal after all. Ends in libc's call.
pub(crate) fn bind_after_all(state: &State, fd: c_int) -> Outcome {
    if !matches!(state.table.get(fd), Entry::Place(_)) {
        return Outcome::Libc;
    }
    let What::Reserved(id) = identify(state, fd) else { return Outcome::Libc };
    let Some(place) = id.place() else { return Outcome::Libc };
    leave(state, place);
    bind_for_real(state, fd, place)
}

fn bind_for_real(state: &State, fd: c_int, place: &Place) -> Outcome {
    let address = place.address();
    let bytes = address.bytes();
    let len = socklen_t::try_from(bytes.len()).unwrap_or(0);
    // SAFETY: `bytes` has `len` bytes.
    let bound = unsafe { real::bind(fd, bytes.as_ptr().cast(), len) };
    if bound < 0 {
        return Outcome::of(bound);
    }
    place.give_up();
    state.table.set(fd, Entry::Foreign);
    Outcome::Libc
}

fn ask_to_listen(state: &State, fd: c_int, backlog: c_int, id: PlaceId, place: &Place) -> Outcome {
    let mut request = Request::new(Kind::Listen, state.contact.token);
    request.backlog = backlog;
    let Some(address) = absolute(&place.address()) else { return Outcome::Libc };
    request.address = address;
    options::for_listen(fd, &mut request);
    let (answer, fds) = match state.contact.ask(&request) {
        Ok(answered) => answered,
        Err(error) => return Outcome::Errno(unanswered(&error)),
    };
    match (answer.verdict, fds) {
        (Verdict::Pass, _) => bind_for_real(state, fd, place),
        (Verdict::Dealt, [Some(page), Some(bell), Some(channel), _]) => {
            let put = match sit(&page, bell) {
                Ok(()) => put_over(fd, &channel),
                Err(errno) => Outcome::Errno(errno),
            };
            if put == Outcome::Return(0) {
                let renamed = address != place.address() || answer.address.bytes().is_empty();
                let shown = if renamed { place.address() } else { answer.address };
                place.listen(answer.channel, &shown);
                state.table.set(fd, Entry::Place(id));
            } else {
                // The primary thinks that somebody listens, and would deal to it.
                let mut request = Request::new(Kind::Close, state.contact.token);
                request.channel = answer.channel;
                drop(state.contact.ask(&request));
            }
            put
        }
        (Verdict::Socket, [page, bell, Some(socket), channel]) => {
            let put = put_over(fd, &socket);
            if put == Outcome::Return(0) {
                // Without page or channel the program has its own socket, and no mail.
                if let (Some(page), Some(bell), Some(channel)) = (page, bell, channel)
                    && sit(&page, bell).is_ok()
                {
                    mail::expect(fd, channel);
                }
                place.give_up();
                state.table.set(fd, Entry::Foreign);
            }
            put
        }
        (Verdict::Done | Verdict::Dealt | Verdict::Socket | Verdict::Refused, _) => {
            Outcome::Errno(errno_of(&answer))
        }
    }
}

/// Puts `from` under the number `fd`, with what the program set on the descriptor before.
fn put_over(fd: c_int, from: &OwnedFd) -> Outcome {
    let new = from.as_raw_fd();
    // SAFETY: asks for flags.
    let status = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: asks for flags.
    let descriptor = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if status < 0 || descriptor < 0 {
        return Outcome::Errno(libc::EBADF);
    }
    // A channel comes blocking, and a socket that other workers share must never become so again.
    if status & libc::O_NONBLOCK != 0 {
        // SAFETY: sets the flags of a socket of ours.
        unsafe { libc::fcntl(new, libc::F_SETFL, libc::O_NONBLOCK) };
    }
    let mut limit = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut size = socklen_t::try_from(size_of_val(&limit)).unwrap_or(0);
    let value: *mut c_void = (&raw mut limit).cast();
    // SAFETY: `limit` has `size` bytes.
    unsafe { real::getsockopt(fd, SOL_SOCKET, libc::SO_RCVTIMEO, value, &raw mut size) };
    // SAFETY: as above.
    unsafe { real::setsockopt(new, SOL_SOCKET, libc::SO_RCVTIMEO, value, size) };
    let flags = if descriptor & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
    // SAFETY: both are open.
    let put = || Outcome::of(unsafe { real::dup3(new, fd, flags) });
    match epoll::keep_registered(fd, put) {
        Outcome::Return(_) => Outcome::Return(0),
        failed @ (Outcome::Libc | Outcome::Errno(_)) => failed,
    }
}

/// The address in a bind(2) that may be dealt: a stream socket, a fixed port or a path.
///
/// # Safety
/// `address` has `len` bytes, or is null.
unsafe fn dealable(fd: c_int, address: *const sockaddr, len: socklen_t) -> Option<Address> {
    let len = usize::try_from(len).ok()?;
    if address.is_null() || len < 3 {
        return None;
    }
    // Programs pass a whole sockaddr_storage; what is behind the address does not matter.
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), len.min(ADDRESS_MAX)) };
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let family = c_int::from(u16::from_ne_bytes(*family));
    let fixed_port = rest.first_chunk::<2>()? != &[0, 0];
    let bytes = match family {
        libc::AF_INET if fixed_port => bytes.get(..size_of::<libc::sockaddr_in>())?,
        libc::AF_INET6 if fixed_port => bytes.get(..size_of::<libc::sockaddr_in6>())?,
        libc::AF_UNIX if len <= ADDRESS_MAX && rest.first() != Some(&0) => bytes,
        _ => return None,
    };
    let option = |name| options::read(fd, (SOL_SOCKET, name)).map(|option| option.value);
    let stream = option(libc::SO_TYPE)? == libc::SOCK_STREAM
        && option(libc::SO_DOMAIN)? == family
        && matches!(option(libc::SO_PROTOCOL)?, 0 | libc::IPPROTO_TCP | libc::IPPROTO_MPTCP);
    stream.then(|| RawAddress::new(bytes))
}

/// The address with a path that means the same in the primary's folder. `None`: too long.
fn absolute(address: &Address) -> Option<Address> {
    let (family, path) = address.bytes().split_first_chunk::<2>()?;
    if c_int::from(u16::from_ne_bytes(*family)) != libc::AF_UNIX || path.first() == Some(&b'/') {
        return Some(*address);
    }
    let mut bytes = [0; ADDRESS_MAX];
    let (head, folder) = bytes.split_first_chunk_mut::<2>()?;
    *head = *family;
    // SAFETY: `folder` has that many bytes.
    if unsafe { libc::getcwd(folder.as_mut_ptr().cast(), folder.len()) }.is_null() {
        return None;
    }
    let end = folder.iter().position(|byte| *byte == 0)?;
    let path = path.split(|byte| *byte == 0).next()?;
    let room = folder.get_mut(end..end + 1 + path.len())?;
    let tail = b"/".iter().chain(path);
    room.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    Some(RawAddress::new(bytes.get(..2 + end + 1 + path.len())?))
}

fn errno_of(answer: &Answer) -> c_int {
    if answer.errno > 0 { answer.errno } else { libc::EADDRNOTAVAIL }
}
