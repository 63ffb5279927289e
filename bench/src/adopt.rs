//! The one place of this package with unsafe code: a received descriptor gets an owner.
//!
//! Owns: [`receive`]. Promises: what it returns was just received and belongs to nobody else. Never
//! does: anything else.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use passfd::FdPassingExt;

/// The next connection of a channel, as `floor` sends them.
///
/// # Errors
/// `WouldBlock` when a non-blocking channel is empty; any other error when the other end is gone.
pub fn receive(channel: &UnixStream) -> io::Result<TcpStream> {
    let fd = channel.as_raw_fd().recv_fd()?;
    // SAFETY: recv_fd has just received this descriptor, and nothing else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(TcpStream::from(owned))
}
