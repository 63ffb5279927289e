//! accept(2) on a channel is a claim; on anything else it is libc's.
//!
//! **Promises** accept(2)'s own rules: the peer's address cut to the caller's room with its true
//! length reported, `SOCK_CLOEXEC` and `SOCK_NONBLOCK` as asked and not otherwise, blocking as the
//! descriptor's `O_NONBLOCK` says, `EMFILE` without losing the connection. **Never** trusts the table
//! against the kernel: recvmsg(2) on what is no channel says so, accept(2) on a channel is `EINVAL`.

use crate::close::shut;
use crate::hooks::Outcome;
use crate::identify::{What, look};
use crate::place::{Place, PlaceId, Role};
use crate::table::Entry;
use crate::{SEAT, State, epoll, mail, real};
use croupier_wire::message::{Kind, PEER_MAX, RawAddress, Request};
use croupier_worker::claim::Claim;
use libc::{c_int, c_void, socklen_t};
use std::os::fd::{BorrowedFd, IntoRawFd};

/// The caller's room for an address or an option: a value-result pair, as in accept(2).
pub(crate) struct Out {
    to: *mut c_void,
    len: *mut socklen_t,
}

impl Out {
    /// # Safety
    /// Where neither is null, `to` has room for `*len` bytes until the hook returns.
    pub(crate) unsafe fn new(to: *mut c_void, len: *mut socklen_t) -> Self {
        Self { to, len }
    }

    /// The room in bytes; `None`: the caller does not want it.
    fn room(&self) -> Result<Option<usize>, c_int> {
        if self.to.is_null() {
            return Ok(None);
        }
        if self.len.is_null() {
            return Err(libc::EFAULT);
        }
        // SAFETY: not null, and the promise of `new`.
        let room = unsafe { self.len.read() };
        let room = c_int::try_from(room).and_then(usize::try_from);
        room.map(Some).map_err(|_| libc::EINVAL)
    }

    fn put(&self, bytes: &[u8], room: usize, report: usize) {
        let fitting = bytes.len().min(room);
        // SAFETY: the promise of `new`: `room` bytes, of which no more are written.
        unsafe { self.to.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), fitting) };
        // SAFETY: `room` has seen that it is not null.
        unsafe { self.len.write(socklen_t::try_from(report).unwrap_or(0)) };
    }

    /// As accept(2) and getsockname(2): cuts, and reports the whole length.
    pub(crate) fn put_address(&self, bytes: &[u8]) -> Result<(), c_int> {
        let room = self.room()?.ok_or(libc::EFAULT)?;
        self.put(bytes, room, bytes.len());
        Ok(())
    }

    /// As getsockopt(2): cuts, and reports what was written.
    pub(crate) fn put_value(&self, bytes: &[u8]) -> Result<(), c_int> {
        let room = self.room()?.ok_or(libc::EFAULT)?;
        self.put(bytes, room, bytes.len().min(room));
        Ok(())
    }
}

pub(crate) fn accept(state: &State, fd: c_int, out: Out, flags: c_int) -> Outcome {
    let id = match state.table.get(fd) {
        Entry::Place(id) => id,
        Entry::Foreign => return accept_own(state, fd, &out, flags),
        Entry::Connection => return accept_foreign(state, fd, &out, flags),
        Entry::Unknown => match look(state, fd) {
            What::Channel(id) => id,
            What::Foreign | What::Reserved(_) => return accept_foreign(state, fd, &out, flags),
        },
    };
    match id.place().map(Place::role) {
        Some(Role::Channel) => claim(state, id, fd, &out, flags),
        Some(Role::Shut) => Outcome::Errno(libc::EINVAL),
        Some(Role::Free | Role::Filling | Role::Reserved) | None => {
            accept_foreign(state, fd, &out, flags)
        }
    }
}

/// A socket of the program's own may have mail.
fn accept_own(state: &State, fd: c_int, out: &Out, flags: c_int) -> Outcome {
    match mail::take(fd, flags) {
        Some((connection, handoff)) => {
            let number = connection.into_raw_fd();
            claimed(state, number, handoff.mark);
            if let Ok(Some(room)) = out.room() {
                let peer = handoff.peer.bytes();
                out.put(peer, room, peer.len());
            }
            Outcome::Return(number)
        }
        None => accept_foreign(state, fd, out, flags),
    }
}

/// By libc. `EINVAL` is also what it says of a channel, so then the table may have been out of date.
fn accept_foreign(state: &State, fd: c_int, out: &Out, flags: c_int) -> Outcome {
    // SAFETY: the caller's arguments; accept4(2) without flags is accept(2).
    let outcome = Outcome::of(unsafe { real::accept4(fd, out.to.cast(), out.len, flags) });
    match outcome {
        Outcome::Return(number) => arrived(state, number, Entry::Unknown),
        Outcome::Errno(libc::EINVAL) => {
            let was = state.table.get(fd);
            match (look(state, fd), was) {
                (What::Channel(id), Entry::Connection) => {
                    shut(state, fd);
                    SEAT.count_close();
                    return claim(state, id, fd, out, flags);
                }
                (What::Channel(id), Entry::Unknown | Entry::Foreign) => {
                    return claim(state, id, fd, out, flags);
                }
                // Still a connection: its close is to be counted.
                (What::Foreign | What::Reserved(_), Entry::Connection) => {
                    state.table.set(fd, was);
                }
                (What::Channel(_), Entry::Place(_))
                | (
                    What::Foreign | What::Reserved(_),
                    Entry::Unknown | Entry::Foreign | Entry::Place(_),
                ) => {}
            }
        }
        Outcome::Libc | Outcome::Errno(_) => {}
    }
    outcome
}

fn claim(state: &State, id: PlaceId, fd: c_int, out: &Out, flags: c_int) -> Outcome {
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Outcome::Errno(libc::EINVAL);
    }
    let room = match out.room() {
        Ok(room) => room,
        Err(errno) => return Outcome::Errno(errno),
    };
    // SAFETY: callers found a channel at `fd`, so it is not -1; if the program closes it meanwhile,
    // the calls on it fail as they would in accept(2).
    let channel = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut retired = false;
    loop {
        match SEAT.claim(channel, flags) {
            Claim::Taken(connection, handoff) => {
                let number = connection.into_raw_fd();
                claimed(state, number, handoff.mark);
                if let Some(room) = room {
                    let own = id.place().map_or(0, |place| place.address().family());
                    let peer = in_family(&handoff.peer, own);
                    out.put(peer.bytes(), room, peer.bytes().len());
                }
                return Outcome::Return(number);
            }
            // No channel any more: the program closed it where no hook saw it.
            Claim::Empty(libc::ENOTCONN | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                state.table.set(fd, Entry::Unknown);
                return accept_foreign(state, fd, out, flags);
            }
            // A broken message is not the program's business; the next one may be whole.
            Claim::Empty(libc::EPROTO | libc::ECONNRESET) => {}
            Claim::Empty(errno) => return Outcome::Errno(errno),
            Claim::Ended if primary_answers(state) => {
                if let Some(place) = id.place() {
                    place.shut();
                }
                return Outcome::Errno(libc::EINVAL);
            }
            // No descriptor for the inert socket: the truth is better than a spin in here.
            Claim::Ended if retired => return Outcome::Errno(libc::EMFILE),
            Claim::Ended => {
                epoll::keep_registered(fd, || SEAT.retire(channel));
                retired = true;
            }
        }
    }
}

/// The peer in the family of the program's own socket, as accept(2) would give it: an IPv4 client is
/// `::ffff:a.b.c.d` to an IPv6 socket, and the other way round (the primary may listen on both with one
/// socket where the program asked for one). A client of a Unix path (`-l unix:PATH=PORT`) has no address,
/// and programs with IP sockets trip over one of its family: it is the loopback's, port 0.
fn in_family(peer: &RawAddress<PEER_MAX>, own: u16) -> RawAddress<PEER_MAX> {
    const V4: [u8; 2] = 2u16.to_ne_bytes();
    const V6: [u8; 2] = 10u16.to_ne_bytes();
    const UNIX: [u8; 2] = 1u16.to_ne_bytes();
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    match (own.to_ne_bytes(), peer.bytes()) {
        (V6, [2, 0, p, q, a, b, c, d, ..]) => {
            let mut mapped = [0; PEER_MAX];
            let head = V6.iter().chain([p, q]).chain(&[0; 4]).chain(&MAPPED).chain([a, b, c, d]);
            mapped.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
            RawAddress::new(&mapped)
        }
        (V4, [10, 0, p, q, _, _, _, _, rest @ ..]) => match rest.split_first_chunk::<12>() {
            Some((&MAPPED, [a, b, c, d, ..])) => {
                let [f, g] = V4;
                RawAddress::new(&[f, g, *p, *q, *a, *b, *c, *d, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            Some(_) | None => *peer,
        },
        (V4, [f, g, ..]) if [*f, *g] == UNIX => {
            let [f, g] = V4;
            RawAddress::new(&[f, g, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])
        }
        (V6, [f, g, ..]) if [*f, *g] == UNIX => {
            let mut loopback = [0; PEER_MAX];
            let head = V6.iter().chain(&[0; 6]).chain(&[0; 15]).chain(&[1]);
            loopback.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
            RawAddress::new(&loopback)
        }
        _ => *peer,
    }
}

/// The end of a channel is not yet the end of the primary: it may have closed this listener only.
fn primary_answers(state: &State) -> bool {
    state.contact.ask(&Request::new(Kind::Attach, state.contact.token)).is_ok()
}

/// `number` is a new descriptor. If the table still has a connection there, its close was missed (a
/// raw system call, a close inside libc) and is counted now.
fn arrived(state: &State, number: c_int, entry: Entry) {
    if state.table.set(number, entry) == Entry::Connection {
        shut(state, number);
        SEAT.count_close();
    }
}

/// `number` is a connection of a client with this mark, from the primary.
fn claimed(state: &State, number: c_int, mark: u16) {
    arrived(state, number, Entry::Connection);
    state.table.set_mark(number, mark);
    if let (1.., Some(page)) = (mark, SEAT.page()) {
        page.note_open(mark);
    }
}
