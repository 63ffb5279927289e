//! The post: messages between the primary and a process of a worker, over a socket of their own.
//!
//! One `AF_UNIX` `SOCK_SEQPACKET` pair for each process that asks for it ([`Kind::Post`]). A message is
//! one packet, a head of four bytes and, for kinds that will have one, a body:
//!
//! ```text
//! 0 'm'  1 version  2 kind  3 zero
//! ```
//!
//! **Promises**: sending never blocks; when the other end does not read, what does not fit is refused,
//! and what has been sent stays bounded by the socket's buffer. **Never** carries a connection, and no
//! descriptor; a program that never asks for its post pays nothing.

use crate::control::Contact;
use crate::fdpass::{self, Received};
use crate::message::{Kind, Request, VERSION, Verdict, WireError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longest message.
pub const MESSAGE_MAX: usize = 4096;
/// Bytes of a message without a body.
pub const MESSAGE_HEAD: usize = 4;

const MAGIC: u8 = b'm';

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Message {
    /// Up: the worker is ready, as [`Kind::Ready`] says it.
    Ready = 1,
    /// Down: nothing more comes; finish, and go when done. Said once, and at once to a process that
    /// asks for its post later.
    Disconnect = 2,
}

impl Message {
    const ALL: [Self; 2] = [Self::Ready, Self::Disconnect];

    /// The message's bytes.
    #[must_use]
    pub const fn encode(self) -> [u8; MESSAGE_HEAD] {
        [MAGIC, VERSION, self as u8, 0]
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`WireError`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match *bytes {
            [MAGIC, VERSION, kind, 0] => {
                Self::ALL.into_iter().find(|m| *m as u8 == kind).ok_or(WireError::Kind(kind))
            }
            [_, version, _, _] => Err(WireError::Version(version)),
            _ => Err(WireError::Length),
        }
    }
}

/// The worker's end. Its descriptor becomes readable when the primary drains the worker, or is gone.
#[derive(Debug)]
pub struct Post {
    socket: OwnedFd,
}

impl Post {
    /// Asks the primary for one.
    ///
    /// # Errors
    /// Those of [`Contact::ask`]; `ENOSPC` when the worker has too many already; `EPROTO` from a primary
    /// that has none.
    pub fn open(contact: &Contact) -> io::Result<Self> {
        match contact.ask(&Request::new(Kind::Post, contact.token))? {
            (answer, [Some(socket), ..]) if answer.verdict == Verdict::Done => Ok(Self { socket }),
            (answer, _) if answer.verdict == Verdict::Refused => {
                Err(io::Error::from_raw_os_error(answer.errno))
            }
            _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
        }
    }

    /// Sends a message. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock` when the primary does not read; `BrokenPipe` when it is gone.
    pub fn send(&self, message: Message) -> io::Result<()> {
        fdpass::send(self.socket.as_fd(), &message.encode(), &[])
    }

    /// Whether the primary drains this worker, or is gone, as far as was said until now.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn drains(&self) -> io::Result<bool> {
        loop {
            // Only looked at: what was said stays said, to every copy of this descriptor.
            let mut bytes = [0; MESSAGE_MAX];
            let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
            match self.receive(&mut bytes, flags) {
                Ok(Received::Ended) => return Ok(true),
                Ok(Received::Message(len)) => {
                    if Message::decode(bytes.get(..len).unwrap_or(&[])) == Ok(Message::Disconnect) {
                        return Ok(true);
                    }
                    // Of a later version: nothing that this one knows what to do with.
                    let _ = self.receive(&mut bytes, libc::MSG_DONTWAIT)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until [`Self::drains`].
    ///
    /// # Errors
    /// Those of recvmsg(2), a signal aside; `WouldBlock` when the program made it non-blocking.
    pub fn wait(&self) -> io::Result<()> {
        while !self.drains()? {
            match self.receive(&mut [0; MESSAGE_MAX], libc::MSG_PEEK) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn receive(&self, bytes: &mut [u8], flags: i32) -> io::Result<Received> {
        fdpass::recv(self.socket.as_fd(), bytes, &mut [], flags | libc::MSG_CMSG_CLOEXEC)
    }
}

impl AsFd for Post {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Post {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

impl From<Post> for OwnedFd {
    fn from(post: Post) -> Self {
        post.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdpass::check;
    use std::os::fd::FromRawFd;

    fn post() -> (OwnedFd, Post) {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: `ends` has room for two.
        check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }).unwrap();
        // SAFETY: freshly made, ours.
        let [primary, socket] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        (primary, Post { socket })
    }

    #[test]
    fn messages_survive_the_wire_and_garbage_has_names() {
        for message in Message::ALL {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        let table: [(&[u8], WireError); 6] = [
            (b"", WireError::Length),
            (b"m\x01\x02", WireError::Length),
            (b"m\x01\x02\0\0", WireError::Length),
            (b"m\x01\x03\0", WireError::Kind(3)),
            (b"m\x02\x01\0", WireError::Version(2)),
            (b"q\x01\x01\0", WireError::Version(1)),
        ];
        for (bytes, error) in table {
            assert_eq!(Message::decode(bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn a_disconnect_is_heard_once_and_for_all() {
        let (primary, post) = post();
        assert!(!post.drains().unwrap());
        fdpass::send(primary.as_fd(), b"something of a later version", &[]).unwrap();
        assert!(!post.drains().unwrap());
        let waiting = std::thread::spawn(move || post.wait().map(|()| post));
        fdpass::send(primary.as_fd(), &Message::Disconnect.encode(), &[]).unwrap();
        let post = waiting.join().unwrap().unwrap();
        assert!(post.drains().unwrap() && post.drains().unwrap());
    }

    #[test]
    fn a_primary_that_is_gone_deals_nothing_more() {
        let (primary, post) = post();
        drop(primary);
        assert!(post.drains().unwrap());
        post.wait().unwrap();
        assert_eq!(post.send(Message::Ready).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
