//! Sockets that the primary has been asked about: this worker did not bind them.
//!
//! **Owns** the latest [`PASSED_MAX`] of them, by `SO_COOKIE`, in static memory, which a forked child
//! inherits by copy. **Never** is what listen(2) goes by: the socket may have been bound since.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Sockets of which one process remembers that the primary does not know them.
pub(crate) const PASSED_MAX: usize = 64;

/// 0 is no cookie.
static PASSED: [AtomicU64; PASSED_MAX] = [const { AtomicU64::new(0) }; PASSED_MAX];
static NEXT: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn knows(cookie: u64) -> bool {
    PASSED.iter().any(|known| known.load(Relaxed) == cookie)
}

pub(crate) fn note(cookie: u64) {
    let oldest = PASSED.get(NEXT.fetch_add(1, Relaxed) % PASSED_MAX);
    oldest.into_iter().for_each(|oldest| oldest.store(cookie, Relaxed));
}
