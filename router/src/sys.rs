//! The system calls for which no safe wrapper fits, and nothing else: the crate's only `unsafe`.
//!
//! Why not nix for accept4: it drops the peer address, and a getpeername(2) per connection is a
//! system call more. (Sending is `croupier_wire::fdpass::send`, because nix allocates the control
//! buffer on every call.)
//! Promises: every descriptor that the kernel returns is owned before anything else happens.

mod child;

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use croupier_wire::message::{PEER_MAX, RawAddress};
use croupier_wire::page::{PAGE_LEN, Page};
use libc::c_int;
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid};

pub use child::{ChildSetup, ERRNO_LEN, INHERIT_MAX, Program, fork_and_exec};

/// accept4(2) with `SOCK_CLOEXEC` and `flags` (0 or `SOCK_NONBLOCK`), and the peer's address in the
/// kernel's own bytes.
///
/// # Errors
/// The errno of accept4(2).
pub fn accept4(
    listener: BorrowedFd<'_>,
    flags: c_int,
) -> io::Result<(OwnedFd, RawAddress<PEER_MAX>)> {
    let mut bytes = [0u8; PEER_MAX];
    let mut len = socklen(PEER_MAX);
    let flags = libc::SOCK_CLOEXEC | flags;
    // SAFETY: `bytes` lives through the call and `len` is its length; the kernel writes no more.
    let fd = unsafe {
        libc::accept4(listener.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len, flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: accept4 has just returned this descriptor; nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let known = bytes.get(..(len as usize).min(PEER_MAX)).unwrap_or(&bytes);
    Ok((fd, RawAddress::new(known)))
}

/// Gives SIGPIPE its default back: who writes into a pipe that nobody reads ends, as tail(1) does.
pub fn end_with_the_reader() {
    // SAFETY: no handler is installed, only the default; signal(2) cannot fail for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A shared mapping of one worker's page. Unmapped on drop.
#[derive(Debug)]
pub struct PageMap {
    at: NonNull<Page>,
}

// SAFETY: the page is atomics only; the mapping belongs to no thread.
unsafe impl Send for PageMap {}

impl PageMap {
    /// Maps the first [`PAGE_LEN`] bytes of a sealed memfd.
    ///
    /// # Errors
    /// The errno of mmap(2).
    pub fn new(memfd: BorrowedFd<'_>) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; the seals keep the
        // file from ever being shorter than the mapping, so no access can raise SIGBUS.
        let at = unsafe {
            libc::mmap(null_mut(), PAGE_LEN, protection, libc::MAP_SHARED, memfd.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at.cast()).map(|at| Self { at }).ok_or_else(io::Error::last_os_error)
    }

    /// The page. Other processes write it at any time; it is atomics only.
    #[must_use]
    pub fn page(&self) -> &Page {
        // SAFETY: the mapping lives as long as `self`, is page-aligned and at least PAGE_LEN long,
        // and every bit pattern is a valid Page.
        unsafe { self.at.as_ref() }
    }
}

impl Drop for PageMap {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; no reference outlives `self`.
        let result = unsafe { libc::munmap(self.at.as_ptr().cast(), PAGE_LEN) };
        debug_assert_eq!(result, 0, "munmap of our own mapping cannot fail");
    }
}

/// setsockopt(2) with one or two ints.
///
/// # Errors
/// The errno of setsockopt(2).
pub fn set_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    words: &[c_int],
) -> io::Result<()> {
    let len = socklen(size_of_val(words));
    // SAFETY: pointer and length are those of `words`.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, words.as_ptr().cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a filter that drops every packet: no new client completes its handshake (socket(7)).
///
/// # Errors
/// The errno of setsockopt(2).
pub fn attach_drop_filter(listener: BorrowedFd<'_>) -> io::Result<()> {
    // BPF_RET | BPF_K with 0: keep 0 bytes of the packet.
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    attach(listener, libc::SO_ATTACH_FILTER, &mut program)
}

/// Undoes [`steer_reuseport`] (asm-generic/socket.h; libc has no name for it).
pub const SO_DETACH_REUSEPORT_BPF: c_int = 68;

/// Chooses among the sockets of an `SO_REUSEPORT` group: `indices` lists the places (in order of
/// bind) of those that shall get new connections, spread at random (socket(7),
/// `SO_ATTACH_REUSEPORT_CBPF`).
///
/// # Errors
/// The errno of setsockopt(2).
pub fn steer_reuseport(member: BorrowedFd<'_>, indices: &[u32]) -> io::Result<()> {
    const RANDOM: u32 = 0xffff_f000 + 56; // SKF_AD_OFF + SKF_AD_RANDOM
    let count = u32::try_from(indices.len()).unwrap_or(u32::MAX).max(1);
    let op = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let mut program = vec![op(0x20, 0, 0, RANDOM), op(0x94, 0, 0, count)]; // A = random % count
    for (place, index) in indices.iter().enumerate() {
        program.push(op(0x15, 0, 1, u32::try_from(place).unwrap_or(u32::MAX))); // if A == place
        program.push(op(0x06, 0, 0, *index)); // return index
    }
    program.push(op(0x06, 0, 0, indices.first().copied().unwrap_or(0)));
    attach(member, libc::SO_ATTACH_REUSEPORT_CBPF, &mut program)
}

fn attach(fd: BorrowedFd<'_>, option: c_int, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(u16::MAX),
        filter: program.as_mut_ptr(),
    };
    let len = socklen(size_of::<libc::sock_fprog>());
    // SAFETY: the kernel copies the program, which outlives the call; `len` is its descriptor's size.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const program).cast(), len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of send buffer that the peer has not taken out yet (`SIOCOUTQ`, unix(7)): O(1), and not
/// blockable by the peer.
///
/// # Errors
/// The errno of ioctl(2).
pub fn unread_by_peer(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) writes one int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// How many connections wait in a TCP listener's backlog, and its limit (`TCP_INFO` of a listening
/// socket: `tcpi_unacked` and `tcpi_sacked`).
///
/// # Errors
/// The errno of getsockopt(2): a Unix listener has none.
pub fn backlog(listener: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // SAFETY: all-zero bytes are a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut len = socklen(size_of::<libc::tcp_info>());
    // SAFETY: pointer and length are those of `info`.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok((info.tcpi_unacked, info.tcpi_sacked))
    }
}

/// Packets that a socket had no room for since it was made (`SK_MEMINFO_DROPS`): of a listening one,
/// clients that did not get into its backlog.
///
/// # Errors
/// The errno of getsockopt(2).
pub fn drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    /// include/uapi/linux/sock_diag.h
    const SK_MEMINFO_DROPS: usize = 8;
    let mut info = [0u32; SK_MEMINFO_DROPS + 1];
    let mut len = socklen(size_of_val(&info));
    // SAFETY: pointer and length are those of `info`; the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(info[SK_MEMINFO_DROPS]) }
}

/// A child that ended, as waitid(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedChild {
    /// The process.
    pub pid: u32,
    /// `CLD_EXITED`, `CLD_KILLED` or `CLD_DUMPED`.
    pub how: c_int,
    /// The exit status, or the signal: any number, as realtime signals have no names.
    pub status: c_int,
}

/// The next child of this process that ended, without reaping it: its number stays its own. (nix
/// refuses to tell of children that a realtime signal ended.)
///
/// # Errors
/// The errno of waitid(2); ECHILD when there is no child at all.
pub fn next_ended_child() -> io::Result<Option<EndedChild>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: all-zero bytes are a valid siginfo_t.
        let mut info: libc::siginfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: `info` lives through the call; the kernel writes no more than a siginfo_t.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        // SAFETY: waitid(2) fills in the fields of SIGCHLD, or leaves the zeros.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0);
        return Ok(pid.map(|pid| EndedChild { pid, how: info.si_code, status }));
    }
}

/// Does `work` with another user's rights to files: its file-system ids (setfsuid(2), setfsgid(2)) and
/// supplementary groups, for this thread only, as system calls do it (setgroups(3) would change all).
/// What is made belongs to that user. Without root's rights nothing can change, and nothing needs to.
///
/// # Errors
/// `EPERM` when the ids cannot be taken; nothing was done then.
pub fn with_file_rights<T>(
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: &[libc::gid_t],
    work: impl FnOnce() -> T,
) -> io::Result<T> {
    let (own_uid, own_gid) = (geteuid(), getegid());
    if !own_uid.is_root() {
        return Ok(work());
    }
    let own_groups: Vec<libc::gid_t> = getgroups()?.into_iter().map(Gid::as_raw).collect();
    let ids = (Uid::from_raw(uid), Gid::from_raw(gid));
    let taken = set_groups(groups).and_then(|()| set_file_ids(ids.0, ids.1));
    let done = taken.map(|()| work());
    // The uid first: with root's again, the others are allowed.
    let back = set_file_ids(own_uid, own_gid).and_then(|()| set_groups(&own_groups));
    if let Err(error) = back {
        log::error!("the primary's own rights to files did not come back: {error}; restart it");
    }
    done
}

fn set_groups(groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: pointer and length are those of `groups`.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// setfsuid(2) and setfsgid(2) report no errors; what they return at a second call says what holds.
fn set_file_ids(uid: Uid, gid: Gid) -> io::Result<()> {
    setfsgid(gid);
    setfsuid(uid);
    let is = (setfsuid(uid), setfsgid(gid));
    if is == (uid, gid) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// Makes this process what it would be had it been started by init: no signal is blocked (a mask is
/// inherited, and a blocked TERM would never be heard), and whatever its parent left open is closed at
/// the next exec, so that no worker gets it.
///
/// # Errors
/// /proc cannot be read, or a descriptor not be changed.
pub fn forget_the_parent() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    let numbers = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > libc::STDERR_FILENO);
    // Collected: the descriptor that reads the folder is gone then.
    for number in numbers.collect::<Vec<c_int>>() {
        // SAFETY: no memory is involved; a number that is no descriptor is refused with EBADF.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: as above.
            let set = unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) };
            if set < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// A second descriptor, CLOEXEC, for what this process was started with under `number` (sd_listen_fds(3)).
///
/// # Errors
/// `EBADF`: there is none of this number. EMFILE and the like.
pub fn duplicate_inherited(number: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; a number that is no descriptor is refused with EBADF.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) };
    if copy < 0 { Err(io::Error::last_os_error()) } else { Ok(own(copy)) }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock that the shim compares with.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// A second descriptor for the same open file, CLOEXEC.
///
/// # Errors
/// EMFILE and the like.
pub fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// Makes this process's table of descriptors large enough for `count` of them, as far as its limit allows.
///
/// Before its threads start: the kernel doubles a table that is full, and where threads share it the call
/// that wanted one more descriptor sleeps in `synchronize_rcu` meanwhile (`expand_fdtable` of fs/file.c).
/// Measured on two busy CPUs: 5 to 16 ms in accept4(2) and openat(2). A table never shrinks; it costs the
/// kernel 8 bytes a descriptor.
///
/// # Errors
/// The errno of getrlimit(2), open(2) or fcntl(2): the table stays as it is, and grows when it must.
pub fn widen_descriptor_table(count: u64) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::resource::{Resource, getrlimit};
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let last = c_int::try_from(count.min(limit)).unwrap_or(c_int::MAX) - 1;
    let any = std::fs::File::open("/dev/null")?;
    drop(own(fcntl(any, FcntlArg::F_DUPFD_CLOEXEC(last))?));
    Ok(())
}

/// Owns a descriptor number that a safe wrapper returned bare.
#[must_use]
pub fn own(number: c_int) -> OwnedFd {
    // SAFETY: the callers pass what a system call has just returned; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Sets `O_NONBLOCK` on the open file (all its descriptors share it).
///
/// # Errors
/// The errno of fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(libc::socklen_t::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        line.unwrap().trim().parse().unwrap()
    }

    #[test]
    fn a_table_of_descriptors_is_as_wide_as_asked_for_and_the_limit_allows() {
        use nix::sys::resource::{Resource, getrlimit};
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let narrow = table();
        let wide = (narrow + 1).min(limit);
        widen_descriptor_table(wide).unwrap();
        let widened = table();
        assert!(widened >= wide, "{widened}, asked for {wide}");
        widen_descriptor_table(1).unwrap();
        assert_eq!(table(), widened, "it never shrinks");
    }
}
