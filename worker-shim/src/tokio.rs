//! The listener for tokio: feature `tokio`; for `axum::serve`: feature `axum`.
//!
//! **Owns** a [`crate::TcpListener`] in non-blocking mode, registered with the runtime. **Promises**
//! that a cancelled `accept` loses nothing: a claim and its return happen in one poll. **Never** spins
//! when the primary is gone: `accept` stays pending until the `SIGTERM` that follows.

use crate::listener::{BACKLOG, Source, TcpListener as Blocking, from_raw};
use crate::worker::worker;
use ::tokio::io::Interest;
use ::tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use ::tokio::net::{TcpStream, ToSocketAddrs, lookup_host};
use croupier_wire::fdpass::check;
use croupier_wire::message::PEER_MAX;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::task::{Context, Poll, ready};

/// A TCP listener whose connections a croupier primary deals; outside croupier, an ordinary one.
/// The methods are those of [`tokio::net::TcpListener`](struct@::tokio::net::TcpListener).
#[derive(Debug)]
pub struct TcpListener {
    inner: AsyncFd<Blocking>,
}

impl TcpListener {
    /// Listens on the first of the addresses that works.
    ///
    /// # Errors
    /// As [`crate::TcpListener::bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled, as all of tokio's sockets do.
    pub async fn bind<A: ToSocketAddrs>(address: A) -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = lookup_host(address).await?.collect();
        Self::from_std(Blocking::open_first(addresses, BACKLOG)?)
    }

    /// Takes over a blocking listener, and makes it a non-blocking one.
    ///
    /// # Errors
    /// That of registering it with the runtime.
    ///
    /// # Panics
    /// As [`Self::bind`].
    pub fn from_std(listener: Blocking) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        // SAFETY: the listener owns its descriptor, and no method of ours closes it. At the end of the
        // primary another file comes under the same number; then this registration has nothing to say
        // any more, and tokio does not mind that it is gone.
        let inner = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?;
        Ok(Self { inner })
    }

    /// Takes one connection. Cancel-safe.
    ///
    /// # Errors
    /// As [`crate::TcpListener::accept`].
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match Tried::on(&mut self.inner.readable().await?) {
                Tried::Taken(taken) => return taken,
                Tried::Empty => {}
                Tried::Ended => std::future::pending().await,
            }
        }
    }

    /// [`Self::accept`] for hand-written futures.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn poll_accept(&self, task: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            match Tried::on(&mut ready!(self.inner.poll_read_ready(task))?) {
                Tried::Taken(taken) => return Poll::Ready(taken),
                Tried::Empty => {}
                Tried::Ended => return Poll::Pending,
            }
        }
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    /// As [`crate::TcpListener::local_addr`].
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.get_ref().local_addr()
    }
}

/// Waits until the primary drains this worker, or is gone: for `with_graceful_shutdown` and its like.
/// Outside croupier, and where the primary cannot be asked, it waits for ever; the stop-signal comes
/// in any case. See [`crate::Worker::draining`].
///
/// # Panics
/// Outside a tokio runtime with I/O enabled.
pub async fn draining() {
    if let Some(Ok(draining)) = worker().map(|worker| worker.draining()) {
        // SAFETY: it owns its descriptor, and nobody but its drop closes it.
        let registered = unsafe { AsyncFd::register_with_interest(draining, Interest::READABLE) };
        let Ok(draining) = registered else { return std::future::pending().await };
        while let Ok(mut readable) = draining.readable().await {
            if readable.get_inner().drains().unwrap_or(true) {
                return;
            }
            readable.clear_ready();
        }
    }
    std::future::pending().await
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for TcpListener {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// What one look at a readable listener gave.
enum Tried {
    Taken(io::Result<(TcpStream, SocketAddr)>),
    Empty,
    /// The primary is gone. tokio never forgets that a descriptor was closed at the other end, so it
    /// would call this listener readable for ever.
    Ended,
}

impl Tried {
    fn on(readable: &mut AsyncFdReadyGuard<'_, Blocking>) -> Self {
        // Read before the attempt: what is empty after the other end was closed stays empty.
        let closed = readable.ready().is_read_closed();
        match readable.try_io(|inner| take(inner.get_ref())) {
            Ok(taken) => Self::Taken(
                taken.and_then(|(stream, peer)| Ok((TcpStream::from_std(stream)?, peer))),
            ),
            Err(_) if closed => Self::Ended,
            Err(_) => Self::Empty,
        }
    }
}

/// Takes one connection, in non-blocking mode, as tokio wants it.
fn take(listener: &Blocking) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    match &listener.source {
        Source::Dealt(..) => listener.claim(flags),
        Source::Given(opened) => match opened.mail(flags) {
            Some(taken) => Ok(taken),
            None => accept4(listener.as_fd(), flags),
        },
        Source::Plain => accept4(listener.as_fd(), flags),
    }
}

/// std's accept cannot ask for `SOCK_NONBLOCK`, and only who asks gets it from the primary for nothing.
fn accept4(listener: BorrowedFd<'_>, flags: i32) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let mut peer = [0_u8; PEER_MAX];
    let mut len = libc::socklen_t::try_from(peer.len()).unwrap_or(0);
    let at = peer.as_mut_ptr().cast();
    // SAFETY: `at` has room for `len` bytes.
    let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), at, &raw mut len, flags) })?;
    // SAFETY: accept4 has just made it.
    let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
    let peer = from_raw(&peer).map_or_else(|| stream.peer_addr(), Ok)?;
    Ok((stream, peer))
}

#[cfg(feature = "axum")]
impl axum::serve::Listener for TcpListener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match Self::accept(self).await {
                Ok(connection) => return connection,
                Err(error) => match error.raw_os_error() {
                    // The listener is over, which this trait has no word for.
                    Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                        std::future::pending().await
                    }
                    // Connections have to end first.
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        ::tokio::time::sleep(PAUSE).await;
                    }
                    // One client that has gone again: a pause would let such clients stop us.
                    _ => ::tokio::task::yield_now().await,
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

#[cfg(feature = "axum")]
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
