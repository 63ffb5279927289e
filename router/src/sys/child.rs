//! A child: fork, what it does before its exec, and how its parent hears what came of it.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::c_int;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};

/// Descriptors that a worker may inherit.
pub const INHERIT_MAX: usize = 16;

/// What a child does between fork and exec.
#[derive(Debug, Clone)]
pub struct ChildSetup {
    /// `RLIMIT_NOFILE` to restore (the primary raised its own).
    pub nofile: libc::rlimit,
    /// User, group and supplementary groups to become.
    pub ids: Option<(libc::uid_t, libc::gid_t, Vec<libc::gid_t>)>,
    /// Die with this signal when the primary does (only where no channel tells the worker).
    pub death_signal: Option<c_int>,
    /// Descriptors to hand to the program, as 3, 4, …
    pub inherit: Vec<c_int>,
    /// `umask` of the program; `None`: the primary's.
    pub umask: Option<libc::mode_t>,
    /// Where the program starts, looked up with its own rights; `None`: where the primary is.
    pub folder: Option<CString>,
}

/// What a child executes.
#[derive(Debug)]
pub struct Program {
    /// Absolute.
    pub path: CString,
    /// From `argv[0]` on.
    pub arguments: Vec<CString>,
    /// Each `NAME=value`.
    pub environment: Vec<CString>,
    /// 0, 1 and 2; `None`: the primary's.
    pub standard: [Option<OwnedFd>; 3],
}

/// Starts `program` in a child with `setup` and a process group of its own, and does not wait for its exec,
/// as `std::process::Command` would: that is a disk's time, and on a busy machine a scheduler's.
///
/// `report` is the writing end of a pipe, CLOEXEC. Its reader finds the end of the file once the program runs
/// (or the child was killed before), or [`ERRNO_LEN`] bytes: the errno of what the child failed in, which then exits
/// with 127. The caller closes it then: the child's copy is the one that matters.
///
/// # Errors
/// fork(2)'s errno.
pub fn fork_and_exec(
    program: &Program,
    setup: &ChildSetup,
    report: BorrowedFd<'_>,
) -> io::Result<u32> {
    let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
        words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&program.arguments), pointers(&program.environment));
    let primary = std::process::id();
    // The child has the primary's handlers until it resets them: no signal may run one there, as it would
    // write to the primary's own pipe.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: until its exec the child makes system calls only: no allocation, no lock, no panic.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let (report, errno) = execute(program, &argv, &envp, setup, primary, report.as_raw_fd());
        let errno = errno.to_ne_bytes();
        // SAFETY: pointer and length are those of `errno`. Should it fail, nobody is there to hear of it.
        unsafe { libc::write(report, errno.as_ptr().cast(), errno.len()) };
        // SAFETY: no memory is involved; nothing of the primary's is flushed or run.
        unsafe { libc::_exit(127) };
    }
    let failed = (pid < 0).then(io::Error::last_os_error);
    let restored = before.thread_set_mask();
    debug_assert!(restored.is_ok(), "a mask that was in force is valid");
    if let Some(error) = failed {
        return Err(error);
    }
    // The child does so, too: whoever comes first, a signal to the group finds it. Refused once it executes.
    // SAFETY: no memory is involved.
    unsafe { libc::setpgid(pid, pid) };
    Ok(pid.cast_unsigned())
}

/// Bytes of an errno, as the child reports it.
pub const ERRNO_LEN: usize = size_of::<c_int>();

/// The child, up to its exec. Returns only where that is refused: where to report it, and the errno.
fn execute(
    program: &Program,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    setup: &ChildSetup,
    primary: u32,
    report: c_int,
) -> (c_int, c_int) {
    // Beyond every number that is given out below.
    // SAFETY: no memory is involved.
    let parked = unsafe { libc::fcntl(report, libc::F_DUPFD_CLOEXEC, PARKED) };
    if parked < 0 {
        return (report, Errno::last_raw());
    }
    if become_worker(program, setup, primary, parked).is_ok() {
        // SAFETY: path, vectors and their strings live until the exec, and each vector ends in null.
        unsafe { libc::execvpe(program.path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    }
    (parked, Errno::last_raw())
}

/// All that the child does before its exec. An error has its errno.
fn become_worker(
    program: &Program,
    setup: &ChildSetup,
    primary: u32,
    report: c_int,
) -> Result<(), ()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::setpgid(0, 0) })?;
    for (number, fd) in (0..).zip(&program.standard) {
        if let Some(fd) = fd {
            // SAFETY: no memory is involved; dup2 clears CLOEXEC on the copy.
            check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
        }
    }
    hand_over(&setup.inherit, report)?;
    reset_signals();
    restrict(setup, primary)?;
    SigSet::empty().thread_set_mask().map_err(Errno::set)
}

const fn check(result: c_int) -> Result<(), ()> {
    if result < 0 { Err(()) } else { Ok(()) }
}

/// Above the numbers of what a child inherits, and no higher: the limit of open files may be low.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is 16")]
const PARKED: c_int = libc::STDERR_FILENO + 1 + INHERIT_MAX as c_int;

/// Puts the descriptors in their places, 3, 4, …, and closes all others but the report: who waits for the
/// end of a connection that was in the primary's hands does not wait for this exec.
fn hand_over(inherit: &[c_int], report: c_int) -> Result<(), ()> {
    // First out of the way of 3, 4, …, then into place: the numbers may overlap.
    let mut place = libc::STDERR_FILENO + 1;
    let mut parked = [-1; INHERIT_MAX];
    for (fd, parked) in inherit.iter().zip(&mut parked) {
        // SAFETY: no memory is involved.
        *parked = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, PARKED) };
        check(*parked)?;
    }
    for fd in parked.iter().take_while(|fd| **fd >= 0) {
        // SAFETY: no memory is involved; dup2 clears CLOEXEC on the copy.
        check(unsafe { libc::dup2(*fd, place) })?;
        place += 1;
    }
    for (first, last) in [(place, report - 1), (report + 1, c_int::MAX)] {
        // SAFETY: no memory is involved. Where it is refused (seccomp), exec(2) closes them all.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
    Ok(())
}

/// Limits, identity and folder.
fn restrict(setup: &ChildSetup, primary: u32) -> Result<(), ()> {
    // SAFETY: the pointer is to a valid rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const setup.nofile) })?;
    if let Some(mask) = setup.umask {
        // SAFETY: no memory is involved.
        unsafe { libc::umask(mask) };
    }
    if let Some((uid, gid, groups)) = &setup.ids {
        // SAFETY: pointer and length are those of `groups`.
        check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::setgid(*gid) })?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::setuid(*uid) })?;
    }
    if let Some(folder) = &setup.folder {
        // SAFETY: the pointer is to a string that ends in NUL.
        check(unsafe { libc::chdir(folder.as_ptr()) })?;
    }
    if let Some(signal) = setup.death_signal {
        // SAFETY: no memory is involved. Set after the change of identity, which would clear it.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })?;
        // SAFETY: no memory is involved.
        let parent = unsafe { libc::getppid() };
        if u32::try_from(parent) != Ok(primary) {
            Errno::ESRCH.set();
            return Err(());
        }
    }
    Ok(())
}

/// Ignored signals stay ignored over exec(2) (signal(7)), and whoever started the primary may have
/// ignored any: under nohup(1) HUP, from some supervisors CHLD, from Rust and Python PIPE. std resets
/// the mask and PIPE only.
fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: no memory is involved. KILL, STOP and those of libc itself are refused, which is right.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
