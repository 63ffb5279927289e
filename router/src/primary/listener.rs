//! Listeners: listening sockets, made and owned by the primary.
//!
//! Owns the sockets of one address: for the hand-off policies and `shared` one socket, for
//! `reuseport` one for each slot. Promises: accept never blocks, an edge is never lost (a listener
//! that is not read to its end is remembered as `pending`), and no option of a worker makes a close
//! of the primary's block.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use croupier_core::config::Policy;
use croupier_core::event::{ListenerId, SlotId, WorkerId};
use croupier_wire::message::{PEER_MAX, RawAddress, SocketOption};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen,
    setsockopt, socket, sockopt,
};

use super::socket_file::{Rights, SocketFile};
use crate::config::ListenAddress;
use crate::sys;

/// What accept(2) came to (its error classes: accept(2), "Error handling").
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection and who it is.
    Conn(OwnedFd, RawAddress<PEER_MAX>),
    /// The backlog is empty; an edge will come.
    Empty,
    /// This one connection is gone already; go on.
    Skipped,
    /// The process or the machine has no descriptor or memory left: no edge will come, use a timer.
    Exhausted(io::Error),
    /// The listener itself is unusable.
    Broken(io::Error),
}

/// What a listener does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Bound for a worker that has not called listen() yet.
    Bound,
    /// Clients connect.
    Listening,
    /// Clients connect, and workers have the socket itself (`shared`).
    HandedOut,
    /// Stopping: a filter drops new clients, the backlog is accepted to its end.
    Quiet,
}

/// Who named the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `-l`.
    Declared,
    /// The program, by its bind(2).
    Asked,
}

/// Who opened the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opened {
    /// The primary: it ends with it.
    Here,
    /// The service manager, which keeps it: clients that wait there are the next one's.
    ByManager,
}

/// Whether the loop's poll knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// A new client is an event.
    Armed,
    /// Nobody has room: a new client wakes nobody.
    Disarmed,
}

/// One address that is dealt.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) id: ListenerId,
    /// As asked for by `-l` or the first worker.
    pub(crate) address: ListenAddress,
    /// How its clients are dealt.
    pub(crate) policy: Policy,
    pub(crate) origin: Origin,
    pub(crate) phase: Phase,
    pub(crate) watch: Watch,
    /// There may be clients in the backlog that no edge will announce again.
    pub(crate) pending: bool,
    /// Do not accept before this (nanoseconds, monotonic): descriptors had run out.
    pub(crate) retry_at: Option<u64>,
    pub(crate) accepted: u64,
    /// What accept4(2) sets on a connection: `SOCK_NONBLOCK` when the workers want it.
    pub(crate) accept_flags: i32,
    pub(crate) backlog: i32,
    /// Workers that have bound it and not given it back.
    pub(crate) reserved: Vec<WorkerId>,
    socket: OwnedFd,
    /// A Unix listener's names.
    file: Option<SocketFile>,
    opened: Opened,
    /// `reuseport`: the socket of each slot.
    slots: Vec<(SlotId, OwnedFd)>,
    options: Vec<SocketOption>,
}

impl Listener {
    /// Binds, without listening yet.
    ///
    /// # Errors
    /// bind(2)'s errno, for the worker or the command line.
    pub(crate) fn bind(
        id: ListenerId,
        address: ListenAddress,
        policy: Policy,
        rights: Rights,
    ) -> io::Result<Self> {
        let reuseport = policy == Policy::Reuseport;
        let (socket, file) = bound_socket(&address, reuseport, rights)?;
        Ok(Self::of(id, (address, policy), socket, file, Opened::Here))
    }

    /// Takes a socket that the service manager opened, and that it keeps: others may have it too.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub(crate) fn inherited(
        id: ListenerId,
        address: ListenAddress,
        policy: Policy,
        socket: OwnedFd,
    ) -> io::Result<Self> {
        sys::set_nonblocking(socket.as_fd())?;
        let file = match &address {
            ListenAddress::Unix(path) => SocketFile::lent(path),
            ListenAddress::Tcp { .. } => None,
        };
        Ok(Self::of(id, (address, policy), socket, file, Opened::ByManager))
    }

    fn of(
        id: ListenerId,
        (address, policy): (ListenAddress, Policy),
        socket: OwnedFd,
        file: Option<SocketFile>,
        opened: Opened,
    ) -> Self {
        Self {
            id,
            address,
            policy,
            origin: Origin::Asked,
            phase: Phase::Bound,
            watch: Watch::Disarmed,
            pending: false,
            retry_at: None,
            accepted: 0,
            accept_flags: 0,
            backlog: 0,
            reserved: Vec::new(),
            socket,
            file,
            opened,
            slots: Vec::new(),
            options: Vec::new(),
        }
    }

    /// listen(2), or a larger backlog on a socket that listens already.
    ///
    /// # Errors
    /// listen(2)'s errno.
    pub(crate) fn listen(&mut self, backlog: i32) -> io::Result<()> {
        if self.phase == Phase::Bound || backlog > self.backlog {
            self.backlog = backlog.max(self.backlog);
            listen(&self.socket, limit(self.backlog))?;
        }
        if self.phase == Phase::Bound {
            self.phase = Phase::Listening;
            self.pending = true;
        }
        Ok(())
    }

    /// Whether the primary accepts its clients.
    pub(crate) fn deals(&self) -> bool {
        self.policy.by_hand() && self.phase != Phase::Bound
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Makes a Unix listener reachable by its path again: programs remove the file before they bind.
    pub(crate) fn restore_path(&mut self) {
        if let Some(file) = &self.file {
            file.restore();
        }
    }

    /// The mode of a Unix listener's file is what the program's own umask makes of it.
    pub(crate) fn apply_umask(&self, umask: u32) {
        if let Some(file) = &self.file {
            file.set_mode(0o777 & !umask);
        }
    }

    /// `shared`: the socket itself. Programs expect it to block, so it does at its first hand-out;
    /// later its flags are left alone, because the open file is in other workers' event loops.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub(crate) fn shared_socket(&mut self) -> io::Result<OwnedFd> {
        self.block()?;
        sys::duplicate(&self.socket)
    }

    fn block(&mut self) -> io::Result<()> {
        if self.phase != Phase::HandedOut {
            fcntl(&self.socket, FcntlArg::F_SETFL(OFlag::empty()))?;
            self.phase = Phase::HandedOut;
        }
        Ok(())
    }

    /// `reuseport`: the slot's own socket, made at its first listen and kept for its successors. The
    /// first slot gets the socket that reserved the address: it must not listen without an owner. A
    /// Unix path has one socket for all: the kernel spreads only TCP.
    ///
    /// # Errors
    /// EMFILE, EADDRINUSE and the like.
    pub(crate) fn slot_socket(&mut self, slot: SlotId, backlog: i32) -> io::Result<BorrowedFd<'_>> {
        if let Some(at) = self.slots.iter().position(|(owner, _)| *owner == slot) {
            let (_, socket) = self.slots.get(at).ok_or(io::ErrorKind::NotFound)?;
            // The predecessor's O_NONBLOCK is on the open file; the successor starts as it would.
            fcntl(socket, FcntlArg::F_SETFL(OFlag::empty()))?;
            return Ok(socket.as_fd());
        }
        if matches!(self.address, ListenAddress::Unix(_)) {
            self.listen(backlog)?;
            self.block()?;
            return Ok(self.socket.as_fd());
        }
        let fresh = if self.slots.is_empty() {
            sys::duplicate(&self.socket)?
        } else {
            bound_socket(&self.address, true, Rights::Own)?.0
        };
        for option in &self.options {
            apply(fresh.as_fd(), *option);
        }
        fcntl(&fresh, FcntlArg::F_SETFL(OFlag::empty()))?;
        listen(&fresh, limit(backlog))?;
        self.phase = Phase::Listening;
        self.slots.push((slot, fresh));
        self.slots
            .last()
            .map(|(_, socket)| socket.as_fd())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// `reuseport`: every slot that has a socket here, in order of bind (as the kernel counts them).
    pub(crate) fn slots(&self) -> impl Iterator<Item = (SlotId, BorrowedFd<'_>)> {
        self.slots.iter().map(|(slot, socket)| (*slot, socket.as_fd()))
    }

    /// `reuseport`: spreads new clients over the slots that `wanted` says yes to, if there are any.
    pub(crate) fn steer(&self, wanted: impl Fn(SlotId) -> bool) {
        let places = self.slots.iter().enumerate().filter(|(_, (slot, _))| wanted(*slot));
        let places: Vec<u32> = places.filter_map(|(place, _)| u32::try_from(place).ok()).collect();
        let Some((_, member)) = self.slots.first().filter(|_| !places.is_empty()) else { return };
        // With everybody wanted the kernel's own hash is as good, and what people expect.
        let steered = if places.len() == self.slots.len() {
            sys::set_option(member.as_fd(), libc::SOL_SOCKET, sys::SO_DETACH_REUSEPORT_BPF, &[0])
        } else {
            sys::steer_reuseport(member.as_fd(), &places)
        };
        match steered {
            // Nothing was attached yet.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => log::warn!("cannot choose who gets new clients of {self}: {error}"),
            Ok(()) => {}
        }
    }

    /// Applies a worker's socket option to the listener, whose connections inherit it. Options that
    /// are not on the named list are ignored: a worker may not change what is the primary's.
    pub(crate) fn set_option(&mut self, option: SocketOption) {
        if !DEALT_OPTIONS.contains(&(option.level, option.name)) || self.options.contains(&option) {
            return;
        }
        apply(self.socket.as_fd(), option);
        for (_, socket) in &self.slots {
            apply(socket.as_fd(), option);
        }
        self.options.retain(|known| (known.level, known.name) != (option.level, option.name));
        self.options.push(option);
    }

    /// Takes one connection out of the backlog of `socket` (the listener's own or a slot's).
    pub(crate) fn accept(&self) -> Accepted {
        if self.phase == Phase::Quiet {
            return self.accept_the_last();
        }
        accept(self.socket.as_fd(), self.accept_flags)
    }

    fn accept_the_last(&self) -> Accepted {
        if self.opened == Opened::ByManager {
            return Accepted::Empty;
        }
        let accepted = accept(self.socket.as_fd(), self.accept_flags);
        // A handshake that had begun may have inherited it; what was dropped meanwhile is sent again.
        if let (Accepted::Conn(conn, _), ListenAddress::Tcp { address, .. }) =
            (&accepted, &self.address)
            && let Err(error) = least_ttl(conn.as_fd(), address.is_ipv6(), 0)
        {
            log::debug!("a last client of {self} may hear nothing: {error}");
        }
        accepted
    }

    /// How many clients wait in the backlog at least, 0 if none does. accept4(2) makes a socket and a
    /// descriptor before it looks for a client: to hear that there is none costs it 3.2 µs, and this
    /// 0.2 to 0.3.
    pub(crate) fn waiting(&self) -> u32 {
        let known = match &self.address {
            ListenAddress::Tcp { .. } => sys::backlog(self.socket.as_fd()).map(|(depth, _)| depth),
            ListenAddress::Unix(_) => is_readable(self.socket.as_fd()).map(u32::from),
        };
        // Then accept4 says what is wrong.
        known.unwrap_or(1)
    }

    /// Step 1 of stopping without a reset (dealing.md 7): new clients are dropped, so they retry,
    /// and the backlog can be accepted to its end. A socket that outlives this process gets no filter,
    /// which would outlive it too, and its backlog is left to whoever is started for it next.
    pub(crate) fn quiet(&mut self) {
        self.phase = Phase::Quiet;
        self.pending = true;
        let ListenAddress::Tcp { address, .. } = &self.address else { return };
        if self.opened == Opened::Here
            // Some kernels attach filters for privileged processes only. Packets that have crossed no router
            // and claim the largest TTL are then all that is let in, which is nobody's (ip(7), IP_MINTTL).
            && sys::attach_drop_filter(self.socket.as_fd()).is_err()
            && let Err(error) = least_ttl(self.socket.as_fd(), address.is_ipv6(), 255)
        {
            log::warn!(
                "cannot attach a filter to {self}: {error}; clients that connect while it closes may be reset"
            );
        }
    }

    /// The address with the port that the kernel chose.
    pub(crate) fn bound(&self) -> ListenAddress {
        match &self.address {
            ListenAddress::Tcp { dual_stack, address } => {
                let found = getsockname::<SockaddrStorage>(self.socket.as_raw_fd()).ok();
                let found = found.and_then(|name| {
                    let v4 =
                        name.as_sockaddr_in().map(|v4| std::net::SocketAddrV4::from(*v4).into());
                    v4.or_else(|| {
                        name.as_sockaddr_in6().map(|v6| std::net::SocketAddrV6::from(*v6).into())
                    })
                });
                ListenAddress::Tcp { address: found.unwrap_or(*address), dual_stack: *dual_stack }
            }
            ListenAddress::Unix(path) => ListenAddress::Unix(path.clone()),
        }
    }

    /// Packets that found no room here: of clients that found the backlog full, mostly.
    pub(crate) fn drops(&self) -> u32 {
        sys::drops(self.socket.as_fd()).unwrap_or(0)
    }

    /// Clients in the backlog and its limit; `None` for a Unix socket.
    pub(crate) fn backlog_depth(&self) -> Option<(u32, u32)> {
        sys::backlog(self.socket.as_fd()).ok()
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bound().fmt(f)
    }
}

/// Options that a program sets on its listening socket for its connections to inherit. Not
/// `SO_LINGER`: the primary closes its copy of each connection, and that close would block.
const DEALT_OPTIONS: [(i32, i32); 12] = [
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
];

fn apply(socket: BorrowedFd<'_>, option: SocketOption) {
    // getsockopt(2) answers twice what setsockopt(2) was told (socket(7)).
    let doubled = matches!(option.name, libc::SO_RCVBUF | libc::SO_SNDBUF);
    let value =
        if option.level == libc::SOL_SOCKET && doubled { option.value / 2 } else { option.value };
    if let Err(error) = sys::set_option(socket, option.level, option.name, &[value]) {
        log::debug!(
            "socket option {}/{} of a worker was not taken: {error}",
            option.level,
            option.name
        );
    }
}

fn accept(socket: BorrowedFd<'_>, flags: i32) -> Accepted {
    match sys::accept4(socket, flags) {
        Ok((conn, peer)) => Accepted::Conn(conn, peer),
        Err(error) => classify(error),
    }
}

/// Drops packets whose TTL or hop limit is below `least`.
fn least_ttl(socket: BorrowedFd<'_>, ipv6: bool, least: i32) -> io::Result<()> {
    if ipv6 {
        sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &[least])?;
    }
    // Of an IPv6 socket too: IPv4 clients come in by it.
    sys::set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &[least])
}

fn is_readable(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::new(socket, PollFlags::POLLIN)];
    Ok(poll(&mut asked, PollTimeout::ZERO)? > 0)
}

fn classify(error: io::Error) -> Accepted {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Accepted::Empty,
        Some(
            libc::EINTR
            | libc::ECONNABORTED
            | libc::EPERM
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::ETIMEDOUT,
        ) => Accepted::Skipped,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            Accepted::Exhausted(error)
        }
        _ => Accepted::Broken(error),
    }
}

fn limit(backlog: i32) -> Backlog {
    Backlog::new(backlog.max(1)).unwrap_or(Backlog::MAXCONN)
}

fn bound_socket(
    address: &ListenAddress,
    reuseport: bool,
    rights: Rights,
) -> io::Result<(OwnedFd, Option<SocketFile>)> {
    let family = match address {
        ListenAddress::Tcp { address, .. } if address.is_ipv4() => AddressFamily::Inet,
        ListenAddress::Tcp { .. } => AddressFamily::Inet6,
        ListenAddress::Unix(_) => AddressFamily::Unix,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    let mut file = None;
    match address {
        ListenAddress::Tcp { address, dual_stack } => {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            if reuseport {
                setsockopt(&socket, sockopt::ReusePort, &true)?;
            }
            if address.is_ipv6() {
                setsockopt(&socket, sockopt::Ipv6V6Only, &!dual_stack)?;
            }
            bind(socket.as_raw_fd(), &SockaddrStorage::from(*address))?;
        }
        ListenAddress::Unix(path) => file = Some(SocketFile::bind(socket.as_fd(), path, rights)?),
    }
    Ok((socket, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_port() -> ListenAddress {
        ListenAddress::Tcp { address: "127.0.0.1:0".parse().unwrap(), dual_stack: false }
    }

    #[test]
    fn every_errno_of_accept_has_a_class() {
        let class = |errno| classify(io::Error::from_raw_os_error(errno));
        assert!(matches!(class(libc::EAGAIN), Accepted::Empty));
        for errno in [libc::EINTR, libc::ECONNABORTED, libc::EPERM, libc::EPROTO, libc::ENETUNREACH]
        {
            assert!(matches!(class(errno), Accepted::Skipped), "{errno}");
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert!(matches!(class(errno), Accepted::Exhausted(_)), "{errno}");
        }
        for errno in [libc::EBADF, libc::EINVAL, libc::ENOTSOCK] {
            assert!(matches!(class(errno), Accepted::Broken(_)), "{errno}");
        }
    }

    #[test]
    fn accepts_with_the_peer_address_until_empty() {
        let mut listener =
            Listener::bind(ListenerId(0), any_port(), Policy::Least, Rights::Own).unwrap();
        listener.listen(16).unwrap();
        let ListenAddress::Tcp { address, .. } = listener.bound() else { panic!("a TCP listener") };
        let client = std::net::TcpStream::connect(address).unwrap();
        let Accepted::Conn(_conn, peer) = listener.accept() else { panic!("a client waits") };
        assert_eq!(crate::primary::address::inet(&peer), Some(client.local_addr().unwrap()));
        assert!(matches!(listener.accept(), Accepted::Empty));
    }

    #[test]
    fn a_socket_file_in_use_is_left_alone() {
        let path = std::env::temp_dir().join(format!("croupier-listener-{}", std::process::id()));
        let unix = ListenAddress::Unix(path.clone());
        let mut first =
            Listener::bind(ListenerId(0), unix.clone(), Policy::Least, Rights::Own).unwrap();
        first.listen(1).unwrap();
        let second = Listener::bind(ListenerId(1), unix.clone(), Policy::Least, Rights::Own);
        assert_eq!(second.unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert!(path.exists());
        drop(first);
        assert!(!path.exists(), "its owner removes it");
        // Stale: a file that nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(ListenerId(2), unix, Policy::Least, Rights::Own).unwrap());
        assert!(!path.exists());
    }
    #[test]
    fn the_shared_socket_is_made_blocking_once() {
        let mut listener =
            Listener::bind(ListenerId(0), any_port(), Policy::Least, Rights::Own).unwrap();
        listener.listen(1).unwrap();
        let flags = |fd: &OwnedFd| OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
        let first = listener.shared_socket().unwrap();
        assert!(!flags(&first).contains(OFlag::O_NONBLOCK));
        // The first worker's event loop.
        sys::set_nonblocking(first.as_fd()).unwrap();
        let second = listener.shared_socket().unwrap();
        assert!(flags(&second).contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn a_linger_is_not_inherited() {
        let mut listener =
            Listener::bind(ListenerId(0), any_port(), Policy::Least, Rights::Own).unwrap();
        listener.listen(1).unwrap();
        let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
        listener.set_option(SocketOption { level, name, value: 1, extra: 60 });
        let linger = nix::sys::socket::getsockopt(&listener.socket, sockopt::Linger).unwrap();
        assert_eq!(linger.l_onoff, 0);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_KEEPALIVE);
        listener.set_option(SocketOption { level, name, value: 1, extra: 0 });
        assert!(nix::sys::socket::getsockopt(&listener.socket, sockopt::KeepAlive).unwrap());
    }
}
