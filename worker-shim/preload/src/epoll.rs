//! A descriptor that was registered in epoll before its file is replaced stays registered.
//!
//! epoll(7) watches files, not numbers: after dup3(2) over a watched listener it would go on watching
//! the old one. **Owns** nothing: `/proc/self/fdinfo` has what the program registered, so epoll_ctl
//! needs no hook. **Promises** the same events and data afterwards, in up to [`EPOLLS_MAX`] sets.

use crate::fds;
use libc::c_int;
use std::ops::ControlFlow;

/// Epoll sets of one process that may watch one descriptor.
pub(crate) const EPOLLS_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Registration {
    epoll: c_int,
    events: u32,
    data: u64,
}

/// Runs `replace`, which puts another file under the number `fd`.
pub(crate) fn keep_registered<T>(fd: c_int, replace: impl FnOnce() -> T) -> T {
    let mut found = [None; EPOLLS_MAX];
    collect(fd, &mut found);
    for registration in found.iter().flatten() {
        // SAFETY: no event is needed for a removal.
        unsafe {
            libc::epoll_ctl(registration.epoll, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
        };
    }
    let done = replace();
    for registration in found.iter().flatten() {
        let mut event = libc::epoll_event { events: registration.events, u64: registration.data };
        // SAFETY: `event` is ours. If this fails the program does not hear of connections here, and
        // the primary sees that it claims none.
        unsafe { libc::epoll_ctl(registration.epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    }
    done
}

fn collect(fd: c_int, into: &mut [Option<Registration>; EPOLLS_MAX]) {
    let mut slots = into.iter_mut();
    let inode = fds::file(fd).map_or(0, |(_, inode)| inode);
    fds::each(|number| {
        if fds::Path::new("fd", number).link(&mut [0; 32]) == b"anon_inode:[eventpoll]" {
            let found = registration(number, fd, inode);
            match (found, slots.next()) {
                (Some(_), Some(slot)) => *slot = found,
                (Some(_), None) => return ControlFlow::Break(()),
                (None, _) => {}
            }
        }
        ControlFlow::Continue(())
    });
}

/// How `epoll` watches `fd`, by its fdinfo (proc_pid_fdinfo(5)).
fn registration(epoll: c_int, fd: c_int, inode: u64) -> Option<Registration> {
    let info = fds::Path::new("fdinfo", epoll).open()?;
    let mut buffer = [0_u8; 512];
    let mut have = 0;
    loop {
        let got = fds::read(&info, buffer.get_mut(have..)?);
        have += got;
        let text = buffer.get(..have)?;
        // The last part has no end of line yet: it is kept for the next round.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in text.get(..whole)?.split(|byte| *byte == b'\n') {
            if let Some((events, data)) = parse(line, fd, inode) {
                return Some(Registration { epoll, events, data });
            }
        }
        if got == 0 {
            return None;
        }
        buffer.copy_within(whole..have, 0);
        have -= whole;
    }
}

/// `tfd:        5 events:       19 data:                5  pos:0 ino:1d3f sdev:8`: events and data
/// where the line is about `fd` and the file with that inode.
fn parse(line: &[u8], fd: c_int, inode: u64) -> Option<(u32, u64)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let mut after = |name: &str| match words.next() {
        Some(word) if word == name => words.next(),
        Some(_) | None => None,
    };
    let number: c_int = after("tfd:")?.parse().ok()?;
    let events = u32::from_str_radix(after("events:")?, 16).ok()?;
    let data = u64::from_str_radix(after("data:")?, 16).ok()?;
    let file = words.find_map(|word| word.strip_prefix("ino:"))?;
    let same = number == fd && u64::from_str_radix(file, 16).ok()? == inode;
    same.then_some((events, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_read_as_the_kernel_writes_it() {
        let line = b"tfd:        5 events: 80000019 data: ffff0000deadbeef  pos:0 ino:1d3f sdev:8";
        assert_eq!(parse(line, 5, 0x1d3f), Some((0x8000_0019, 0xffff_0000_dead_beef)));
        assert_eq!(parse(line, 6, 0x1d3f), None, "another number");
        assert_eq!(parse(line, 5, 0x1d40), None, "the number was another file then");
        assert_eq!(parse(b"pos:\t0", 5, 0), None);
        assert_eq!(parse(b"", 5, 0), None);
    }
}
