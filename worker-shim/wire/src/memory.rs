//! Memory that does not come from an allocator: a worker's page, and what must not outlive fork(2).

use libc::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;

use crate::fdpass::check;
use crate::page::{PAGE_LEN, PAGE_MAGIC, Page};

const SEALS: c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Maps the page that an answer of the primary brought. The mapping is never undone.
///
/// # Errors
/// `EPROTO` when `page` is not a sealed page of this version; the errno of what else failed.
pub fn map_page(page: &OwnedFd) -> io::Result<NonNull<Page>> {
    let refused = || io::Error::from_raw_os_error(libc::EPROTO);
    // SAFETY: asks for seals.
    let seals = check(unsafe { libc::fcntl(page.as_raw_fd(), libc::F_GET_SEALS) })?;
    let size = stat(page.as_raw_fd()).and_then(|found| usize::try_from(found.st_size).ok());
    if seals & SEALS != SEALS || size.is_none_or(|size| size < PAGE_LEN) {
        return Err(refused());
    }
    let mapped = map(PAGE_LEN, libc::MAP_SHARED, page.as_raw_fd())?;
    let mapped = NonNull::new(mapped.cast::<Page>()).ok_or_else(refused)?;
    // SAFETY: mapped, sealed against shrinking, and valid for every bit pattern.
    let magic = unsafe { mapped.as_ref() }.head.magic.load(Relaxed);
    if magic == PAGE_MAGIC { Ok(mapped) } else { Err(refused()) }
}

/// Memory that is private to this process and zero in a child made by fork(2) (not by vfork(2)).
///
/// # Errors
/// The errno of mmap(2) or madvise(2).
pub fn map_wiped_on_fork(len: usize) -> io::Result<*mut c_void> {
    let memory = map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: the mapping just made, whole.
    check(unsafe { libc::madvise(memory, len, libc::MADV_WIPEONFORK) })?;
    Ok(memory)
}

fn map(len: usize, flags: c_int, fd: c_int) -> io::Result<*mut c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, fd, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory) }
}

/// fstat(2); `None` for a number that is not open.
#[must_use]
pub fn stat(number: c_int) -> Option<libc::stat> {
    // SAFETY: plain integers, for which zero is valid.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is ours.
    (unsafe { libc::fstat(number, &raw mut found) } == 0).then_some(found)
}
