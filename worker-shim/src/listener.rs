//! The listener: std's `TcpListener`, except that its connections may be dealt.
//!
//! **Owns** its descriptor: the channel's receiving end, or an ordinary listening socket. **Promises**
//! std's behaviour outside croupier, for port 0 and for addresses that are not dealt; that one
//! `bind` is one channel, whether or not the preload library is there; that the primary hears of the
//! end. **Never** closes a connection that it could hand to the caller.
//!
//! With the preload library in the process the channel already behaves as a listening socket, so
//! std's own methods do everything and closes are counted. Without it nothing sees a close, and a
//! claim counts as closed at once: the primary then balances by what is queued.

use crate::claim::Claim;
use crate::worker::{self, SEAT};
use crossbeam_channel::{Receiver, Select, Sender};
use croupier_wire::control::Contact;
use croupier_wire::message::{
    ADDRESS_MAX, Handoff, Kind, RawAddress, Request, SocketOption, Verdict,
};
use std::io;
use std::net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// What std passes to listen(2). The primary takes the larger of this and its own.
pub(crate) const BACKLOG: i32 = 128;
/// Pause of [`TcpListener::into_receiver`] when there is no descriptor: other threads have to close.
const PAUSE: Duration = Duration::from_millis(10);

/// A TCP listener whose connections a croupier primary deals; outside croupier, std's.
#[derive(Debug)]
pub struct TcpListener {
    pub(crate) socket: net::TcpListener,
    pub(crate) source: Source,
}

/// Where the connections come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// accept(2) on a socket of our own.
    Plain,
    /// accept(2), too: on a socket that the primary made (policies `shared` and `reuseport`), where the
    /// primary may deal something beside, or on a channel that the preload library looks after.
    Given(Arc<Opened>),
    /// Claims from a channel; the address is the listener's.
    Dealt(Arc<Opened>, SocketAddr),
}

/// The primary deals to this process until told otherwise. Shared by clones of one listener.
#[derive(Debug)]
pub(crate) struct Opened {
    channel: u32,
    /// The process that opened it: a forked child that drops its copy ends nothing. 0: nobody tells.
    by: AtomicU32,
    /// `reuseport`: where connections come on that waited at a slot that is down. The primary wakes us
    /// with a connection to our own socket.
    mail: Option<OwnedFd>,
}

impl TcpListener {
    /// Listens, as [`std::net::TcpListener::bind`]: the first address that works.
    ///
    /// # Errors
    /// Those of std, here or in the primary, and the reason why the primary could not be asked.
    pub fn bind<A: ToSocketAddrs>(address: A) -> io::Result<Self> {
        let listener = Self::open_first(address.to_socket_addrs()?, BACKLOG)?;
        // A socket from the primary comes with whatever its other holders last set.
        listener.set_nonblocking(false)?;
        Ok(listener)
    }

    /// Takes one connection: see [`std::net::TcpListener::accept`].
    ///
    /// # Errors
    /// Those of std. At `EMFILE` the connection stays queued.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.source {
            Source::Plain => self.socket.accept(),
            Source::Given(opened) => match opened.mail(libc::SOCK_CLOEXEC) {
                Some(taken) => Ok(taken),
                None => self.socket.accept(),
            },
            Source::Dealt(..) => self.claim(libc::SOCK_CLOEXEC),
        }
    }

    /// Connections for ever: see [`std::net::TcpListener::incoming`].
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<TcpStream>> + '_ {
        std::iter::repeat_with(|| self.accept().map(|(stream, _)| stream))
    }

    /// Gives connections to a thread pool. A connection is claimed only while a thread waits for one,
    /// so that what nobody has time for stays queued, where the primary sees it.
    ///
    /// The receiver ends when the listener does. Once every receiver was dropped, the accepting
    /// thread ends at the next connection, which it closes.
    ///
    /// # Errors
    /// That of starting the thread.
    pub fn into_receiver(self) -> io::Result<Receiver<(TcpStream, SocketAddr)>> {
        self.set_nonblocking(false)?;
        let (sender, receiver) = crossbeam_channel::bounded(0);
        let accepting = thread::Builder::new().name("croupier-accept".to_owned());
        accepting.spawn(move || self.serve(&sender))?;
        Ok(receiver)
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// Those of std.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.source {
            Source::Plain | Source::Given(_) => self.socket.local_addr(),
            Source::Dealt(_, address) => Ok(*address),
        }
    }

    /// Another handle of the same listener.
    ///
    /// # Errors
    /// Those of std.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, source: self.source.clone() })
    }

    /// Whether [`Self::accept`] says `WouldBlock` instead of waiting.
    ///
    /// # Errors
    /// Those of std.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    /// The pending error of the socket, if any.
    ///
    /// # Errors
    /// Those of std.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket.take_error()
    }

    /// The time to live of packets from here.
    ///
    /// # Errors
    /// Those of std; `EOPNOTSUPP` on a dealt listener without the preload library.
    pub fn ttl(&self) -> io::Result<u32> {
        self.socket.ttl()
    }

    /// Sets what [`Self::ttl`] gives.
    ///
    /// # Errors
    /// As [`Self::ttl`].
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.socket.set_ttl(ttl)
    }

    /// Listens on the first of `addresses` that works, in whatever blocking mode it comes.
    pub(crate) fn open_first(
        addresses: impl IntoIterator<Item = SocketAddr>,
        backlog: i32,
    ) -> io::Result<Self> {
        let mut failed = None;
        for address in addresses {
            match Self::open(address, backlog) {
                Ok(listener) => return Ok(listener),
                Err(error) => failed = Some(error),
            }
        }
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        Err(failed.unwrap_or_else(none))
    }

    fn open(address: SocketAddr, backlog: i32) -> io::Result<Self> {
        // Port 0 is never dealt: nobody could know which port is meant.
        if address.port() != 0
            && let Some(contact) = Contact::from_environment()
            && let Some(dealt) = Self::open_dealt(&contact, address, backlog)?
        {
            return Ok(dealt);
        }
        net::TcpListener::bind(address).map(Self::from)
    }

    /// `None`: the primary deals other addresses.
    fn open_dealt(
        contact: &Contact,
        address: SocketAddr,
        backlog: i32,
    ) -> io::Result<Option<Self>> {
        let unheard = |error: io::Error| {
            if error.raw_os_error() == Some(libc::EPROTO) {
                return other_version(&error);
            }
            let what = format!("cannot ask croupier's primary for {address}: {error}");
            io::Error::new(error.kind(), what)
        };
        let strange = || unheard(errno(libc::EPROTO));
        let about = |kind| {
            let mut request = Request::new(kind, contact.token);
            request.address = to_raw(address);
            request
        };
        let mut request = about(Kind::Bind);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
        // std sets it, too.
        request.push_option(SocketOption { level, name, value: 1, extra: 0 });
        let (answer, _) = contact.ask(&request).map_err(unheard)?;
        match answer.verdict {
            Verdict::Pass => return Ok(None),
            Verdict::Refused => return Err(errno(answer.errno)),
            Verdict::Done => {}
            Verdict::Dealt | Verdict::Socket => return Err(strange()),
        }
        let mut request = about(Kind::Listen);
        request.backlog = backlog;
        let (answer, fds) = contact.ask(&request).map_err(unheard)?;
        match (answer.verdict, fds) {
            (Verdict::Pass, _) => Ok(None),
            (Verdict::Refused, _) => Err(errno(answer.errno)),
            (Verdict::Socket, [page, bell, Some(socket), channel]) => {
                let mail = match (page, bell, channel) {
                    (Some(page), Some(bell), Some(channel)) => {
                        worker::sit(&page, bell).map_err(unseated)?;
                        let channel = UnixDatagram::from(channel);
                        channel.set_nonblocking(true)?;
                        Some(channel.into())
                    }
                    _ => None,
                };
                let source = Source::Given(Opened::here(answer.channel, mail));
                Ok(Some(Self { socket: socket.into(), source }))
            }
            (Verdict::Dealt, [Some(page), Some(bell), Some(channel), _]) => {
                let (socket, opened) =
                    (net::TcpListener::from(channel), Opened::here(answer.channel, None));
                // The kernel's name for a channel is no IP address: if there is one, the preload library
                // answered, and has found the channel by this.
                if socket.local_addr().is_ok() {
                    return Ok(Some(Self { socket, source: Source::Given(opened) }));
                }
                worker::sit(&page, bell).map_err(unseated)?;
                let address = from_raw(answer.address.bytes()).unwrap_or(address);
                Ok(Some(Self { socket, source: Source::Dealt(opened, address) }))
            }
            (Verdict::Done | Verdict::Socket | Verdict::Dealt, _) => Err(strange()),
        }
    }

    /// Takes one connection out of the channel; `flags` as accept4(2).
    pub(crate) fn claim(&self, flags: i32) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match SEAT.claim(self.socket.as_fd(), flags) {
                Claim::Taken(fd, handoff) => return Ok(taken(fd, &handoff)),
                // As std does: a signal is no error of the listener.
                Claim::Empty(libc::EINTR) => {}
                Claim::Empty(number) => return Err(errno(number)),
                Claim::Ended => worker::ended(self.socket.as_fd()).map_err(errno)?,
            }
        }
    }

    /// The accepting thread of [`Self::into_receiver`].
    fn serve(&self, sender: &Sender<(TcpStream, SocketAddr)>) {
        loop {
            // Becomes ready when a thread waits in recv(), or all receivers are gone.
            let mut waiting = Select::new();
            waiting.send(sender);
            waiting.ready();
            match self.accept() {
                Ok(connection) => {
                    if sender.send(connection).is_err() {
                        return;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => return,
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        thread::park_timeout(PAUSE);
                    }
                    // A client that has gone again: the next one has not.
                    _ => {}
                },
            }
        }
    }
}

fn unseated(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EPROTO) { other_version(&error) } else { error }
}

/// `EPROTO` in words. The files were upgraded under a primary that runs, or the program was built with
/// the crate of another version.
fn other_version(error: &io::Error) -> io::Error {
    let what = "croupier's primary and this program's croupier-worker are of different versions; after an \
                upgrade stop croupier and start it again, else build the program with the crate of its version";
    io::Error::new(error.kind(), what)
}

/// What a claim gave, for the caller. Nothing sees its close.
fn taken(fd: OwnedFd, handoff: &Handoff) -> (TcpStream, SocketAddr) {
    SEAT.count_close();
    let peer = from_raw(handoff.peer.bytes());
    // A client of a Unix path (`-l unix:PATH=PORT`) has none.
    (TcpStream::from(fd), peer.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into()))
}

impl Opened {
    fn here(channel: u32, mail: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { channel, by: AtomicU32::new(process::id()), mail })
    }

    /// What the primary has dealt beside, if anything; `flags` as accept4(2).
    pub(crate) fn mail(&self, flags: i32) -> Option<(TcpStream, SocketAddr)> {
        let (fd, handoff) = SEAT.take_mail(self.mail.as_ref()?.as_fd(), flags)?;
        Some(taken(fd, &handoff))
    }

    /// From now on nobody tells the primary of the end.
    fn forget(&self) {
        self.by.store(0, Ordering::Relaxed);
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if *self.by.get_mut() == process::id()
            && let Some(contact) = Contact::from_environment()
        {
            let mut request = Request::new(Kind::Close, contact.token);
            request.channel = self.channel;
            // Unheard, the primary is gone, and with it the reason to tell it.
            drop(contact.ask(&request));
        }
    }
}

impl From<net::TcpListener> for TcpListener {
    fn from(socket: net::TcpListener) -> Self {
        Self { socket, source: Source::Plain }
    }
}

impl From<TcpListener> for OwnedFd {
    /// The descriptor alone. When it is closed the primary does not hear of it.
    fn from(listener: TcpListener) -> Self {
        match &listener.source {
            Source::Plain => {}
            // Nobody would look for mail any more: the primary hears that when the source is dropped.
            Source::Given(opened) if opened.mail.is_some() => {}
            Source::Given(opened) | Source::Dealt(opened, _) => opened.forget(),
        }
        listener.socket.into()
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for TcpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn to_raw(address: SocketAddr) -> RawAddress<ADDRESS_MAX> {
    let mut raw = Vec::with_capacity(croupier_wire::message::PEER_MAX);
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    raw.extend(libc::sa_family_t::try_from(family).unwrap_or_default().to_ne_bytes());
    raw.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            raw.extend(v4.ip().octets());
            raw.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            raw.extend(v6.flowinfo().to_ne_bytes());
            raw.extend(v6.ip().octets());
            raw.extend(v6.scope_id().to_ne_bytes());
        }
    }
    RawAddress::new(&raw)
}

/// What [`to_raw`] wrote; `None` for any other family.
pub(crate) fn from_raw(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(libc::sa_family_t::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(*rest.first_chunk::<4>()?);
            Some(SocketAddr::new(IpAddr::V4(ip), port))
        }
        libc::AF_INET6 => {
            let (flow, rest) = rest.split_first_chunk()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let (flow, scope) =
                (u32::from_ne_bytes(*flow), u32::from_ne_bytes(*rest.first_chunk()?));
            Some(net::SocketAddrV6::new(Ipv6Addr::from(*ip), port, flow, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_wire() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::]:8080", "[2001:db8::7]:1"] {
            let address = text.parse().unwrap();
            assert_eq!(from_raw(to_raw(address).bytes()), Some(address), "{text}");
        }
        let scoped = net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9, 5, 3).into();
        assert_eq!(from_raw(to_raw(scoped).bytes()), Some(scoped));
    }

    #[test]
    fn what_is_no_ip_address_is_none() {
        assert_eq!(from_raw(&[]), None);
        assert_eq!(from_raw(b"\x01\x00/run/socket"), None);
        assert_eq!(from_raw(&to_raw("1.2.3.4:5".parse().unwrap()).bytes()[..7]), None);
    }

    #[test]
    fn outside_croupier_it_is_stds() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(listener.source, Source::Plain));
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let taken = TcpListener::bind(address).unwrap_err();
        assert_eq!(taken.raw_os_error(), Some(libc::EADDRINUSE));
        let second = TcpListener::bind(&[address, "127.0.0.1:0".parse().unwrap()][..]).unwrap();
        assert_ne!(second.local_addr().unwrap(), address);
    }
}
