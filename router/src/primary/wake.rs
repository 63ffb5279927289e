//! How a thread wakes the loop.

use nix::poll::poll;

/// Between two tries, milliseconds. Nobody waits for this thread meanwhile: it has left what it has to tell.
const AGAIN: u16 = 10;
/// A write(2) to an eventfd that fails for a second fails for good.
const WAKES_MAX: u32 = 100;

/// Wakes the loop for what the calling thread has left for it. It would not look by itself, and connections
/// may wait there: where write(2) fails it is made again.
pub(super) fn wake(waker: &mio::Waker) {
    for tried in 0..WAKES_MAX {
        let Err(error) = waker.wake() else { return };
        if tried == 0 {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("?");
            log::error!("thread {name} cannot wake the loop: {error}; it tries again");
        }
        // Of no descriptor, so it only waits. Cut short, the next try comes sooner.
        let _ = poll(&mut [], AGAIN);
    }
}
