//! Taking messages that bring a descriptor, so that none is lost for want of a free number.
//!
//! **Owns** what one process knows of its [`Room`] and of its channels. **Promises** one recvmsg(2) for a
//! message in the ordinary case. **Never** blocks other than as the channel's own `O_NONBLOCK` says.

use crate::fdpass::{self, Received};
use crate::room::{LOOK_EVERY, Room, monotonic};
use libc::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

/// A process's. All zero is one that has taken nothing yet.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Taker {
    room: Room,
    /// The channel that was non-blocking when last asked; 0: none.
    nonblocking: AtomicI32,
}

impl Taker {
    /// Takes a message, and says when (`CLOCK_MONOTONIC`, nanoseconds). While a thread sleeps others may
    /// use up what is free, so unless it is `alone` it sleeps before the recvmsg(2) that takes, and not
    /// in it.
    ///
    /// # Errors
    /// The errno of recvmsg(2); `EMFILE`: nothing is free, and the message stays queued.
    pub fn take<const LEN: usize>(
        &self,
        channel: BorrowedFd<'_>,
        bytes: &mut [u8; LEN],
        fd: &mut [Option<OwnedFd>; 1],
        flags: c_int,
        alone: bool,
    ) -> io::Result<(Received, u64)> {
        let number = channel.as_raw_fd();
        loop {
            let begun = monotonic();
            let room = self.room.has(begun);
            // A channel known as non-blocking is not asked again when it is empty.
            let known = self.nonblocking.load(SeqCst) == number;
            let direct = room && (known || alone);
            let flags = if direct { flags } else { flags | libc::MSG_DONTWAIT };
            let received = if room {
                fdpass::recv(channel, bytes, fd, flags)
            } else {
                self.room.in_turn(|| fdpass::recv_or_leave(channel, bytes, fd, flags))
            };
            let now = monotonic();
            match received {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !direct => {}
                Err(e) => {
                    if e.raw_os_error() == Some(libc::EMFILE) {
                        self.room.ran_out();
                    }
                    return Err(e);
                }
                Ok(received) => {
                    if direct && known && now.saturating_sub(begun) >= LOOK_EVERY {
                        // It has slept: the program has made the channel a blocking one.
                        self.nonblocking.store(0, SeqCst);
                    }
                    return Ok((received, now));
                }
            }
            if let Err(e) = fdpass::sleep(channel) {
                if e.kind() == io::ErrorKind::WouldBlock {
                    self.nonblocking.store(number, SeqCst);
                }
                return Err(e);
            }
        }
    }

    /// What was taken has got this number.
    pub fn took(&self, number: c_int) {
        self.room.took(number);
    }
}
