//! What a descriptor is, asked of the kernel: after fork, exec and dup the table knows nothing, and
//! at all times what it says may be out of date.
//!
//! **Promises** one real getsockname(2) for a descriptor seen for the first time, and that a channel
//! is recognised under any number, in any process of the worker. **Never** closes or changes anything.

use crate::place::{PlaceId, Role};
use crate::table::Entry;
use crate::version::sit;
use crate::{State, real};
use croupier_wire::message::{ADDRESS_MAX, CHANNEL_PREFIX, Kind, RawAddress, Request, Verdict};
use libc::{c_int, socklen_t};

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Nothing of croupier's.
    Foreign,
    /// Its bind(2) was granted; the socket itself is unbound.
    Reserved(PlaceId),
    /// The receive end of a channel.
    Channel(PlaceId),
}

/// What `fd` is. Trusts the table only where it says that nothing is ours.
pub(crate) fn identify(state: &State, fd: c_int) -> What {
    match state.table.get(fd) {
        Entry::Foreign | Entry::Connection => What::Foreign,
        Entry::Unknown | Entry::Place(_) => look(state, fd),
    }
}

/// As [`identify`], trusting nothing.
pub(crate) fn look(state: &State, fd: c_int) -> What {
    let Some(name) = real_name(fd) else { return What::Foreign };
    let what = match channel_of(&name) {
        Some(channel) => find_channel(state, channel).map_or(What::Foreign, What::Channel),
        None => find_reserved(fd).map_or(What::Foreign, What::Reserved),
    };
    state.table.set(
        fd,
        match what {
            What::Foreign => Entry::Foreign,
            What::Reserved(id) | What::Channel(id) => Entry::Place(id),
        },
    );
    what
}

/// getsockname(2) by libc. `None`: not a socket, not open.
pub(crate) fn real_name(fd: c_int) -> Option<RawAddress<ADDRESS_MAX>> {
    // SAFETY: plain integers, for which zero is valid.
    let mut name: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut len = socklen_t::try_from(size_of_val(&name)).ok()?;
    // SAFETY: `name` has `len` bytes.
    let failed = unsafe { real::getsockname(fd, (&raw mut name).cast(), &raw mut len) } != 0;
    let mut bytes = [0; ADDRESS_MAX];
    let path = name.sun_path.iter().flat_map(|byte| byte.to_ne_bytes());
    let all = name.sun_family.to_ne_bytes().into_iter().chain(path);
    bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
    (!failed).then(|| RawAddress::new(bytes.get(..len as usize).unwrap_or(&bytes)))
}

/// The channel's number, when `name` is a channel's: `\0croupier/<pid>/<random>/<worker>/<channel>`.
fn channel_of(name: &RawAddress<ADDRESS_MAX>) -> Option<u32> {
    let (family, path) = name.bytes().split_first_chunk::<2>()?;
    if c_int::from(u16::from_ne_bytes(*family)) != libc::AF_UNIX {
        return None;
    }
    let rest = path.strip_prefix(b"\0")?.strip_prefix(CHANNEL_PREFIX)?;
    std::str::from_utf8(rest.rsplit(|byte| *byte == b'/').next()?).ok()?.parse().ok()
}

fn find_channel(state: &State, channel: u32) -> Option<PlaceId> {
    let known = || {
        PlaceId::find(|place| {
            matches!(place.role(), Role::Channel | Role::Shut) && place.channel() == channel
        })
    };
    if let Some(id) = known() {
        return Some(id);
    }
    let mut request = Request::new(Kind::Attach, state.contact.token);
    request.channel = channel;
    let (answer, [page, bell, surplus, _]) = state.contact.ask(&request).ok()?;
    drop(surplus);
    if answer.verdict != Verdict::Dealt || sit(&page?, bell?).is_err() {
        return None;
    }
    // Another thread may have found it meanwhile.
    known().or_else(|| PlaceId::attach(channel, &answer.address))
}

fn find_reserved(fd: c_int) -> Option<PlaceId> {
    PlaceId::find(|place| place.role() == Role::Reserved)?;
    let cookie = cookie(fd)?;
    PlaceId::find(|place| place.role() == Role::Reserved && place.cookie() == cookie)
}

/// The kernel's name for a socket, the same for every descriptor of it (socket(7), `SO_COOKIE`).
pub(crate) fn cookie(fd: c_int) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut len = 8;
    let to = (&raw mut cookie).cast();
    // SAFETY: `cookie` has eight bytes.
    let failed =
        unsafe { real::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, to, &raw mut len) };
    (failed == 0).then_some(cookie)
}
