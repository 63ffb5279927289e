//! The channel: the Unix socket by which one listener of a worker gets its connections.
//!
//! Owns both the primary's send end and a duplicate of the worker's receive end. The duplicate is
//! why nothing queued is ever lost when a worker dies; nobody reads from it but the rescue thread.
//! Promises: never blocks, never receives anything (the upward direction is shut down, so a worker
//! cannot queue descriptors here whose close would block the primary).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use croupier_core::event::{ListenerId, WorkerId};
use croupier_wire::fdpass;
use croupier_wire::message::{CHANNEL_PREFIX, HANDOFF_LEN, Handoff, RawAddress};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, bind, setsockopt, shutdown, socketpair,
    sockopt,
};

use crate::sys;

/// Send buffer per queued message that the kernel charges for a message below 192 bytes; measured
/// once at start, this is only what is assumed until then.
static MESSAGE_COST: AtomicU32 = AtomicU32::new(768);
/// Tells this primary's channels from those of another with the same number in another PID namespace
/// that shares the network namespace, and so the abstract names.
static NAMES: AtomicU32 = AtomicU32::new(0);

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Its number within the worker, the last part of its name.
    pub(crate) number: u32,
    pub(crate) listener: ListenerId,
    /// Other `-l` for the same address of the program: their clients come here, too.
    pub(crate) also: Vec<ListenerId>,
    /// What is rescued from here counts as the first one's, and with a mark as the second one's, whichever
    /// brought it: all workers share all of them.
    pub(crate) by_mark: [ListenerId; 2],
    /// The process that asked for it.
    pub(crate) owner: u32,
    /// The program closed its listening descriptor.
    pub(crate) closed: bool,
    send: OwnedFd,
    receive: Arc<OwnedFd>,
}

impl Channel {
    /// A pair, its receive end bound to its name, with room for `depth` connections.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub(crate) fn open(
        worker: WorkerId,
        number: u32,
        listener: ListenerId,
        owner: u32,
        depth: u32,
    ) -> io::Result<Self> {
        let (send, receive) = pair()?;
        let prefix = String::from_utf8_lossy(CHANNEL_PREFIX).into_owned();
        let own = NAMES.load(Ordering::Relaxed);
        let name = format!("{prefix}{}/{own:08x}/{}/{number}", std::process::id(), worker.0);
        bind(std::os::fd::AsRawFd::as_raw_fd(&receive), &UnixAddr::new_abstract(name.as_bytes())?)?;
        // Only the sender's buffer counts. Twice what is needed: with an exact fit the kernel
        // reports room late.
        let wanted = 2 * (depth as usize + 1) * MESSAGE_COST.load(Ordering::Relaxed) as usize;
        if setsockopt(&send, sockopt::SndBufForce, &wanted).is_err() {
            setsockopt(&send, sockopt::SndBuf, &wanted)?;
        }
        let (also, by_mark, receive) = (Vec::new(), [listener; 2], Arc::new(receive));
        Ok(Self { number, listener, also, by_mark, owner, closed: false, send, receive })
    }

    /// Whether the program takes this listener's clients here.
    pub(crate) fn serves(&self, listener: ListenerId) -> bool {
        !self.closed && (self.listener == listener || self.also.contains(&listener))
    }

    /// What the worker gets.
    pub(crate) fn receive_end(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }

    /// What the primary writes to.
    pub(crate) fn send_end(&self) -> BorrowedFd<'_> {
        self.send.as_fd()
    }

    /// What the rescue thread reads from.
    pub(crate) fn duplicate(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.receive)
    }

    /// Hands a connection off. The caller still has to close its own copy, at once: a copy kept
    /// here delays the FIN that the worker sends.
    ///
    /// # Errors
    /// The errno of sendmsg(2); the connection is then still only the caller's.
    pub(crate) fn send(&self, header: &[u8; HANDOFF_LEN], conn: BorrowedFd<'_>) -> io::Result<()> {
        fdpass::send(self.send.as_fd(), header, &[conn])
    }

    /// The inode of the worker's end, by which it is found among a process's descriptors.
    pub(crate) fn inode(&self) -> Option<u64> {
        nix::sys::stat::fstat(&self.receive).ok().map(|found| found.st_ino)
    }

    /// Connections in the queue: exact, from the kernel's own count.
    pub(crate) fn queued(&self) -> Option<u32> {
        let bytes = sys::unread_by_peer(self.send.as_fd()).ok()?;
        Some(bytes / MESSAGE_COST.load(Ordering::Relaxed).max(1))
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (send, receive) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    shutdown(std::os::fd::AsRawFd::as_raw_fd(&send), Shutdown::Read)?;
    Ok((send, receive))
}

/// Makes the names of this primary's channels its own.
pub(crate) fn name_after(random: [u8; 4]) {
    NAMES.store(u32::from_ne_bytes(random), Ordering::Relaxed);
}

/// Measures what one queued message costs, so that `SIOCOUTQ` can be read as a number of messages.
///
/// # Errors
/// A kernel that cannot pass descriptors over `SOCK_SEQPACKET`, or does not count them.
pub(crate) fn calibrate() -> io::Result<()> {
    let (send, _receive) = pair()?;
    let header =
        Handoff { nonblocking: false, mark: 0, handed_off_at: 0, peer: RawAddress::NONE }.encode();
    fdpass::send(send.as_fd(), &header, &[send.as_fd()])?;
    let one = sys::unread_by_peer(send.as_fd())?;
    fdpass::send(send.as_fd(), &header, &[send.as_fd()])?;
    let two = sys::unread_by_peer(send.as_fd())?;
    if one == 0 || two != 2 * one {
        let found = format!("SIOCOUTQ counts {one} bytes for one message and {two} for two");
        return Err(io::Error::other(found));
    }
    MESSAGE_COST.store(one, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_what_is_queued() {
        calibrate().unwrap();
        let channel = Channel::open(WorkerId(1), 1, ListenerId(0), 1, 300).unwrap();
        let (other, _kept) = pair().unwrap();
        let header =
            Handoff { nonblocking: false, mark: 0, handed_off_at: 0, peer: RawAddress::NONE }
                .encode();
        for sent in 0..300 {
            assert_eq!(channel.queued(), Some(sent));
            channel.send(&header, other.as_fd()).unwrap();
        }
    }

    #[test]
    fn a_worker_cannot_send_up() {
        let channel = Channel::open(WorkerId(1), 2, ListenerId(0), 1, 6).unwrap();
        let error = fdpass::send(channel.receive_end(), &[0; HANDOFF_LEN], &[]);
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }
}
