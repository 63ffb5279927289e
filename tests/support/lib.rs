//! What the end-to-end tests stand on: run a real primary, talk to it as a client does, leave nothing.
//!
//! Owns: starting and ending of processes, free ports, clients, and the count of everything that
//! could leak. Promises: every wait has a deadline and says what it saw when it passes; every
//! process that a test starts carries that test's mark and is gone when its [`Guard`] is dropped.
//! Never does: sleep, end a process that the test did not start, use a fixed port or a fixed path.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a harness fails by panicking, with the message that the test's reader needs"
)]

mod binaries;
mod figures;
mod guard;
mod http;
mod lines;
mod primary;
mod process;
mod skip;
mod wait;
mod wrk;

pub use binaries::{bench, croupier, example, fixture, preload, rust_library, target_dir};
pub use figures::{Figure, figure, record, soak, soak_or};
pub use guard::Guard;
pub use http::{Client, Failure, Outcome, Pending, Reply, hammer};
pub use lines::Lines;
pub use primary::{Advice, Croupier, Finished, ListenerStatus, Status, Totals, WorkerStatus};
pub use process::{
    Process, children_of, cpu_time, descriptors, field_of_status, line_of_status, marked,
    parent_of, state_of, stop_process, wake_ups,
};
pub use skip::{deps, find_program, record_skip};
pub use wait::{PATIENCE, now, observe, wait_until};
pub use wrk::{Wrk, wrk};

/// Ends the running test as skipped, by name and with the reason. In CI the set of skipped tests
/// must equal `tests/expected-skips`, so nothing is skipped unseen.
#[macro_export]
macro_rules! skip {
    ($name:expr, $($reason:tt)+) => {{
        $crate::record_skip($name, &format!($($reason)+));
        return;
    }};
}
