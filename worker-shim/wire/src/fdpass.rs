//! One message with descriptors, in and out: the only place where control messages are read.
//!
//! **Owns** nothing. **Promises** that every descriptor which arrives is owned before anything is
//! checked, so that no error leaks one; that truncation is an error and the end of the stream is not
//! mistaken for a message; that nothing allocates (hooks run in signal handlers and after fork).
//! **Never** keeps state, retries, or blocks on its own account: the caller's flags decide.

use libc::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Descriptors that one message may carry, either way.
pub const FDS_MAX: usize = 4;

/// `CMSG_LEN(fds * sizeof(int))`: with `CMSG_SPACE` the kernel would fill the padding with one more.
const fn control_len(fds: usize) -> usize {
    size_of::<libc::cmsghdr>() + fds * size_of::<c_int>()
}

/// Room for the largest control message, aligned as a `struct cmsghdr`.
#[repr(C, align(8))]
struct Control([u8; control_len(FDS_MAX)]);

/// What [`recv`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// A message of that many bytes.
    Message(usize),
    /// The other end is gone and everything it sent was read.
    Ended,
}

/// Turns a system call's `-1` into its errno.
pub fn check(returned: c_int) -> io::Result<c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// A `struct msghdr` over `bytes` and `control`; both must outlive its use.
fn header(part: &mut libc::iovec, control: &mut Control, fds: usize) -> libc::msghdr {
    // SAFETY: msghdr is plain integers and pointers, for which zero is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = part;
    header.msg_iovlen = 1;
    if fds > 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control_len(fds);
    }
    header
}

/// Receives one message and up to `N` descriptors; `flags` as recvmsg(2) takes them
/// (`MSG_CMSG_CLOEXEC`, `MSG_DONTWAIT`). Slots of `fds` that nothing arrived for are left alone.
///
/// # Errors
/// The errno of recvmsg(2); `EPROTO` when the message or its descriptors were cut off, in which case
/// what did arrive is closed before the caller sees it. `EMFILE` when that was for want of a free number
/// in this process: the kernel has closed what it could not give.
pub fn recv<const N: usize>(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut [Option<OwnedFd>; N],
    flags: c_int,
) -> io::Result<Received> {
    const { assert!(N <= FDS_MAX) };
    let mut control = Control([0; control_len(FDS_MAX)]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = header(&mut part, &mut control, N);
    // SAFETY: `message` points at `part` and `control`, which live until the end of this function.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let mut arrived = 0;
    let mut slots = fds.iter_mut();
    // SAFETY: the kernel filled in `message`, so its control part is well-formed.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the macros yield null or a header inside `control`, which is aligned and initialised.
    while let Some(found) = unsafe { next.as_ref() } {
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `found` is a header inside `control`.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<c_int>();
            for at in 0..found.cmsg_len.saturating_sub(control_len(0)) / size_of::<c_int>() {
                // SAFETY: cmsg_len covers `at`.
                let place = unsafe { data.add(at) };
                // SAFETY: as above; the data of a control message is aligned for an int.
                let number = unsafe { place.read() };
                // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
                let fd = unsafe { OwnedFd::from_raw_fd(number) };
                arrived += 1;
                if let Some(slot) = slots.next() {
                    *slot = Some(fd);
                }
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    if message.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0 || arrived > N {
        fds.iter_mut().for_each(|slot| *slot = None);
        // Of more than we asked for, all that we asked for come.
        let full = message.msg_flags & libc::MSG_CTRUNC != 0 && arrived < N;
        let errno = if full { libc::EMFILE } else { libc::EPROTO };
        return Err(io::Error::from_raw_os_error(errno));
    }
    // A message without bytes but with a descriptor is a message, if a strange one.
    Ok(if len == 0 && arrived == 0 { Received::Ended } else { Received::Message(len) })
}

/// [`recv`], except that a message stays queued when there is no free number for its descriptor. A peek
/// finds that out: it makes a copy of the descriptor, or leaves all as it is. Where the message then comes
/// without, because the copy has the last number, the copy takes its place.
///
/// # Errors
/// As [`recv`]. `EMFILE` has destroyed a descriptor only when another process took the message that was
/// seen, and this is the next: others of one process must wait for their turn.
pub fn recv_or_leave<const LEN: usize>(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8; LEN],
    fd: &mut [Option<OwnedFd>; 1],
    flags: c_int,
) -> io::Result<Received> {
    let (mut seen, mut copy) = ([0; LEN], [None]);
    let first = recv(socket, &mut seen, &mut copy, flags | libc::MSG_PEEK)?;
    match recv(socket, bytes, fd, flags) {
        Err(e) if e.raw_os_error() == Some(libc::EMFILE) && *bytes == seen => {
            *fd = copy;
            Ok(first)
        }
        received => received,
    }
}

/// Sleeps until a message is there, or the end. Unlike poll(2), which wakes all who wait, it wakes one
/// thread for each message.
///
/// # Errors
/// The errno of recv(2).
pub fn sleep(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut head = 0_u8;
    let to = (&raw mut head).cast();
    // SAFETY: one byte of ours.
    let seen = unsafe { libc::recv(socket.as_raw_fd(), to, size_of_val(&head), libc::MSG_PEEK) };
    if seen < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends one message with up to [`FDS_MAX`] descriptors. Never blocks, never raises `SIGPIPE`; on a
/// `SOCK_SEQPACKET` it is all or nothing. The caller keeps its descriptors.
///
/// # Errors
/// The errno of sendmsg(2); `EINVAL` for too many descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > FDS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut control = Control([0; control_len(FDS_MAX)]);
    let base = bytes.as_ptr().cast::<c_void>().cast_mut();
    let mut part = libc::iovec { iov_base: base, iov_len: bytes.len() };
    let message = header(&mut part, &mut control, fds.len());
    // SAFETY: `message` is ours, and its control part, if any, is `control`.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null, or the aligned start of `control`.
    if let Some(rights) = unsafe { first.as_mut() } {
        rights.cmsg_len = control_len(fds.len());
        rights.cmsg_level = libc::SOL_SOCKET;
        rights.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: `first` is a header inside `control`.
        let data = unsafe { libc::CMSG_DATA(first) };
        let from = fds.as_ptr().cast::<u8>();
        // SAFETY: BorrowedFd is a transparent c_int, and `control` has room for FDS_MAX of them.
        unsafe { from.copy_to_nonoverlapping(data, size_of_val(fds)) };
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: sendmsg only reads what `message` points at, all of which is alive here.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: `ends` has room for two.
        check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }).unwrap();
        // SAFETY: freshly made, ours.
        ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into()
    }

    fn flag_of(fd: &OwnedFd, command: c_int) -> c_int {
        // SAFETY: asks for flags.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), command) }).unwrap()
    }

    /// The writing end of a pipe is a witness: the reading end sees EOF when the last copy closed.
    fn witness() -> (io::PipeReader, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, writer.into())
    }

    fn all_copies_closed(reader: &mut io::PipeReader) -> bool {
        let mut fd = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        check(unsafe { libc::poll(&raw mut fd, 1, 0) }).unwrap();
        fd.revents & libc::POLLHUP != 0
    }

    const WAIT_NOT: c_int = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;

    #[test]
    fn carries_none_one_and_all() {
        let (a, b) = pair();
        for count in [0, 1, FDS_MAX] {
            let fds: Vec<_> = std::iter::repeat_n(a.as_fd(), count).collect();
            send(a.as_fd(), b"hello", &fds).unwrap();
            let (mut bytes, mut got) = ([0; 8], [const { None }; FDS_MAX]);
            let received = recv(b.as_fd(), &mut bytes, &mut got, WAIT_NOT).unwrap();
            assert_eq!(received, Received::Message(5));
            assert_eq!(got.iter().flatten().count(), count);
            assert!(got.iter().flatten().all(|fd| flag_of(fd, libc::F_GETFD) == libc::FD_CLOEXEC));
        }
        let error = send(a.as_fd(), b"x", &[a.as_fd(); FDS_MAX + 1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn cloexec_is_the_callers_choice() {
        let (a, b) = pair();
        send(a.as_fd(), b"x", &[a.as_fd()]).unwrap();
        let mut got = [None];
        let received = recv(b.as_fd(), &mut [0; 8], &mut got, libc::MSG_DONTWAIT).unwrap();
        assert_eq!(received, Received::Message(1));
        assert_eq!(flag_of(got[0].as_ref().unwrap(), libc::F_GETFD), 0);
    }

    #[test]
    fn surplus_descriptors_are_an_error_and_closed() {
        let (a, b) = pair();
        let (mut reader, writer) = witness();
        send(a.as_fd(), b"x", &[writer.as_fd(), writer.as_fd()]).unwrap();
        drop(writer);
        let mut got = [None];
        let error = recv(b.as_fd(), &mut [0; 8], &mut got, WAIT_NOT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPROTO));
        assert!(got[0].is_none() && all_copies_closed(&mut reader));
    }

    #[test]
    fn a_cut_message_is_an_error_and_its_descriptor_closed() {
        let (a, b) = pair();
        let (mut reader, writer) = witness();
        send(a.as_fd(), b"0123456789", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut got = [None];
        let error = recv(b.as_fd(), &mut [0; 4], &mut got, WAIT_NOT).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPROTO));
        assert!(got[0].is_none() && all_copies_closed(&mut reader));
    }

    #[test]
    fn empty_is_not_the_end() {
        let (a, b) = pair();
        let mut got = [None];
        let error = recv(b.as_fd(), &mut [0; 4], &mut got, WAIT_NOT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        send(a.as_fd(), b"", &[a.as_fd()]).unwrap();
        let strange = recv(b.as_fd(), &mut [0; 4], &mut got, WAIT_NOT).unwrap();
        assert_eq!((strange, got[0].is_some()), (Received::Message(0), true));
        got[0] = None;
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut [0; 4], &mut got, WAIT_NOT).unwrap(), Received::Ended);
    }

    #[test]
    fn a_full_queue_is_would_block_and_a_gone_peer_is_no_signal() {
        let (a, b) = pair();
        let sent = (0..10_000).take_while(|_| send(a.as_fd(), b"x", &[a.as_fd()]).is_ok()).count();
        assert!((6..10_000).contains(&sent), "{sent} messages fitted");
        let error = send(a.as_fd(), b"x", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(b);
        let first = send(a.as_fd(), b"x", &[]).unwrap_err().raw_os_error();
        assert!(matches!(first, Some(libc::ECONNRESET | libc::EPIPE)), "{first:?}");
        assert_eq!(send(a.as_fd(), b"x", &[]).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }

    #[test]
    fn nonblocking_travels_with_the_open_file() {
        let (a, b) = pair();
        // SAFETY: sets flags of our own socket.
        check(unsafe { libc::fcntl(a.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).unwrap();
        send(a.as_fd(), b"x", &[a.as_fd()]).unwrap();
        let mut got = [None];
        assert_eq!(recv(b.as_fd(), &mut [0; 4], &mut got, WAIT_NOT).unwrap(), Received::Message(1));
        assert_ne!(flag_of(got[0].as_ref().unwrap(), libc::F_GETFL) & libc::O_NONBLOCK, 0);
    }
}
