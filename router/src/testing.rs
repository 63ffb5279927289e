//! What unit tests share.

use std::time::Duration;

use crate::sys;

/// Looks again until there is an answer; a machine under load may take seconds.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = sys::monotonic_ns() + u64::try_from(Duration::from_secs(20).as_nanos()).unwrap();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(sys::monotonic_ns() < end, "still waiting: {what}");
        std::thread::yield_now();
    }
}
