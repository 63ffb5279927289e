//! A client that the primary makes itself: a loopback connection, half-closed unless it is to ask.
//!
//! Real servers choke on an `AF_UNIX` client (two of them die, one hangs) and a naive one on a
//! client that closes at once, so the probe is a TCP connection whose client end has sent a FIN and
//! stays open until the probe is dropped (dealing.md 6: 15 of 15 programs take it well).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use crate::config::ListenAddress;

/// Both ends of a probe.
#[derive(Debug)]
pub(crate) struct Probe {
    /// For the worker.
    pub(crate) conn: OwnedFd,
    /// Its peer address: the client end's own.
    pub(crate) peer: SocketAddr,
    /// Kept open while the worker may still read.
    pub(crate) client: TcpStream,
}

/// Makes one on a private listener, half-closed.
///
/// # Errors
/// As [`connected`].
pub(crate) fn make() -> io::Result<Probe> {
    let probe = connected()?;
    probe.client.shutdown(Shutdown::Write)?;
    Ok(probe)
}

/// Makes one that the client's end can still write to.
///
/// # Errors
/// EMFILE and the like; `PermissionDenied` when somebody else connected in between.
pub(crate) fn connected() -> io::Result<Probe> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The handshake on loopback ends before connect returns; a firewall that drops it would make us
    // wait, so the wait is bounded.
    let patience = std::time::Duration::from_millis(100);
    let client = TcpStream::connect_timeout(&listener.local_addr()?, patience)?;
    let peer = client.local_addr()?;
    listener.set_nonblocking(true)?;
    let (conn, found) = listener.accept()?;
    if found != peer {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a stranger connected to the probe",
        ));
    }
    Ok(Probe { conn: conn.into(), peer, client })
}

/// A half-closed connection to a listener of our own, to wake whoever polls it.
///
/// # Errors
/// EMFILE and the like; a full backlog, in which case somebody is awake anyway.
pub(crate) fn knock(listener: &ListenAddress) -> io::Result<TcpStream> {
    let ListenAddress::Tcp { address, .. } = listener else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let mut to = *address;
    if to.ip().is_unspecified() {
        to.set_ip(if to.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    // On loopback the handshake ends before connect returns; with a full backlog it never does.
    let patience = std::time::Duration::from_millis(5);
    let client = TcpStream::connect_timeout(&to, patience)?;
    client.shutdown(Shutdown::Write)?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_worker_reads_an_end_of_file_and_may_answer() {
        let probe = make().unwrap();
        let mut conn = TcpStream::from(probe.conn);
        assert_eq!(conn.read(&mut [0; 8]).unwrap(), 0);
        io::Write::write_all(&mut conn, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    }
}
