//! The descriptors of this process, by `/proc/self/fd`: read when a program listens or stops listening.
//!
//! **Promises** not to allocate, and to see nothing rather than fail where there is no /proc.

use libc::c_int;
use std::io;
use std::ops::{ControlFlow, RangeInclusive};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A path under /proc/self, with its NUL.
pub(crate) struct Path([u8; 48]);

impl Path {
    /// `/proc/self/<folder>/<number>`.
    pub(crate) fn new(folder: &str, number: c_int) -> Self {
        let mut path = Self([0; 48]);
        let mut digits = [0; 10];
        let mut left = number.unsigned_abs();
        let mut used = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
            left /= 10;
            used += 1;
            if left == 0 {
                break;
            }
        }
        let name = folder.bytes().chain([b'/']);
        let all = b"/proc/self/".iter().copied().chain(name);
        let all = all.chain(digits.into_iter().skip(digits.len() - used));
        path.0.iter_mut().take(47).zip(all).for_each(|(to, from)| *to = from);
        path
    }

    pub(crate) fn open(&self) -> Option<OwnedFd> {
        open(&self.0)
    }

    /// Where the link points, cut to the room.
    pub(crate) fn link<'to>(&self, to: &'to mut [u8]) -> &'to [u8] {
        // SAFETY: `self.0` ends with a NUL; `to` has that many bytes.
        let len =
            unsafe { libc::readlink(self.0.as_ptr().cast(), to.as_mut_ptr().cast(), to.len()) };
        usize::try_from(len).ok().and_then(|len| to.get(..len)).unwrap_or(&[])
    }
}

fn open(path: &[u8; 48]) -> Option<OwnedFd> {
    // SAFETY: `path` ends with a NUL.
    let number = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    // SAFETY: opened in the line above, ours alone.
    (number >= 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads into `to`; 0 at the end and on errors.
pub(crate) fn read(fd: &OwnedFd, to: &mut [u8]) -> usize {
    // SAFETY: `to` has that many bytes.
    let len = unsafe { libc::read(fd.as_raw_fd(), to.as_mut_ptr().cast(), to.len()) };
    usize::try_from(len).unwrap_or(0)
}

/// Calls `visit` with each open number, until it breaks.
pub(crate) fn each(mut visit: impl FnMut(c_int) -> ControlFlow<()>) {
    let mut path = Path([0; 48]);
    path.0.iter_mut().zip(b"/proc/self/fd").for_each(|(to, from)| *to = *from);
    let Some(folder) = path.open() else { return };
    let mut buffer = [0_u8; 2048];
    loop {
        let to = buffer.as_mut_ptr();
        // SAFETY: `buffer` has that many bytes. There is no other call that reads a folder without
        // allocating (getdents64(2)).
        let len =
            unsafe { libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), to, buffer.len()) };
        let Some(mut rest) = usize::try_from(len).ok().and_then(|len| buffer.get(..len)) else {
            return;
        };
        if rest.is_empty() {
            return;
        }
        while let Some((name, after)) = entry(rest) {
            rest = after;
            let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            if let Some(number) = number
                && number != folder.as_raw_fd()
                && visit(number).is_break()
            {
                return;
            }
        }
    }
}

/// The first name in a buffer of `struct linux_dirent64`, and what follows it.
fn entry(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    const NAME_AT: usize = 19;
    let len = u16::from_ne_bytes(*rest.get(16..)?.first_chunk()?);
    let (this, after) = rest.split_at_checked(usize::from(len))?;
    Some((this.get(NAME_AT..)?.split(|byte| *byte == 0).next()?, after))
}

/// Whether this process has the open file at `fd` under another number that is not in `closing`.
pub(crate) fn has_copy(fd: c_int, closing: &RangeInclusive<c_int>) -> bool {
    let Ok(wanted) = file(fd) else { return false };
    let mut found = false;
    each(|number| {
        found =
            number != fd && !closing.contains(&number) && file(number).is_ok_and(|f| f == wanted);
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// Device and inode: for a socket, which socket.
pub(crate) fn file(fd: c_int) -> io::Result<(u64, u64)> {
    // SAFETY: plain integers, for which zero is valid.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is ours.
    if unsafe { libc::fstat(fd, &raw mut found) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_spelled() {
        for (number, wanted) in
            [(0, "fd/0\0"), (7, "fd/7\0"), (10, "fd/10\0"), (i32::MAX, "fd/2147483647\0")]
        {
            let path = Path::new("fd", number);
            assert!(path.0.starts_with(format!("/proc/self/{wanted}").as_bytes()), "{number}");
        }
        assert_eq!(Path::new("fd", 1 << 20).link(&mut [0; 8]), b"");
    }

    #[test]
    fn every_descriptor_is_visited_and_copies_are_found() {
        let (reader, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = reader.as_raw_fd();
        assert!(!has_copy(fd, &(fd..=fd)));
        let copy = reader.try_clone().unwrap();
        assert!(has_copy(fd, &(fd..=fd)));
        assert!(!has_copy(fd, &(0..=copy.as_raw_fd().max(fd))));
        let mut seen = 0;
        each(|number| {
            seen += usize::from(number == fd || number == copy.as_raw_fd());
            ControlFlow::Continue(())
        });
        assert_eq!(seen, 2);
    }
}
