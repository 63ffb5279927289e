//! Client sockets: which source address, how they fail, how many there may be.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use mio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, connect, setsockopt,
    socket, sockopt,
};

use crate::data::Errors;

/// Source addresses that a loop can have; 127.1.0.1 and upwards.
pub(super) const SOURCES_MAX: u32 = 60_000;

/// Raises the soft limit of descriptors to the hard one, and says what it is.
///
/// # Errors
/// If the system refuses.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// The source with a number, without the addresses that end in 0 or 255.
pub(super) fn source(number: u32) -> Ipv4Addr {
    let number = number % SOURCES_MAX;
    let byte = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 1, byte(number / 254), byte(1 + number % 254))
}

/// Begins to connect. Its end is an event of readiness.
pub(super) fn start(target: SocketAddr, from: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    if let Some(from) = from {
        // The port is chosen at connect(2), so that it need only be free towards this target.
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(TcpStream::from_std(std::net::TcpStream::from(fd)))
}

/// This machine, not the server, had nothing left.
pub(super) fn is_out_of_ports(error: &io::Error) -> bool {
    let none_left =
        [Errno::EADDRNOTAVAIL, Errno::EADDRINUSE, Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS];
    error.raw_os_error().is_some_and(|raw| none_left.contains(&Errno::from_raw(raw)))
}

/// Counts a failure by its kind.
pub(super) fn count(errors: &mut Errors, error: &io::Error) {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, TimedOut, UnexpectedEof};
    let kind = error.kind();
    let place = if kind == ConnectionRefused {
        &mut errors.refused
    } else if kind == ConnectionReset || kind == BrokenPipe {
        &mut errors.reset
    } else if kind == TimedOut {
        &mut errors.timeout
    } else if kind == UnexpectedEof {
        &mut errors.short
    } else {
        &mut errors.other
    };
    *place += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_distinct_loopback_addresses() {
        let all: std::collections::BTreeSet<Ipv4Addr> = (0..SOURCES_MAX).map(source).collect();
        assert_eq!(all.len(), 60_000);
        assert!(all.iter().all(|a| a.is_loopback() && a.octets()[3] != 0 && a.octets()[3] != 255));
    }
}
