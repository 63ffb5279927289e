//! Waiting: always for a condition, always with a deadline, and never silently.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a test waits for what must happen soon. Far beyond what is needed: a loaded machine
/// makes tests slow, never wrong, because tests assert order and not time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The longest pause between two looks at a condition.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// The one clock of the tests.
#[expect(clippy::disallowed_methods, reason = "the one place where the tests read the clock")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Looks again and again until `look` gives `Ok`, and returns what it gave.
///
/// # Panics
/// When `patience` is over; the message has `what` and the last thing that `look` saw.
#[track_caller]
pub fn wait_until<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = match look() {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(now() < deadline, "waited {patience:?} for {what}; last seen: {seen:?}");
        rest(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Lets a window of observation pass: for asserting that nothing happens, or goes on happening, in
/// it. Never a way to wait for something to be done.
pub fn observe(window: Duration) {
    let end = now() + window;
    while let Some(rest_of_it) = end.checked_duration_since(now()) {
        rest(rest_of_it.clamp(Duration::from_millis(1), PAUSE_MAX));
    }
}

/// poll(2) without descriptors: the pause between two looks, not a guess about time.
fn rest(pause: Duration) {
    let millis = u16::try_from(pause.as_millis()).expect("a pause is at most PAUSE_MAX");
    // An early return by a signal only makes the next look come sooner.
    let _ = nix::poll::poll(&mut [], nix::poll::PollTimeout::from(millis));
}
