//! End-to-end tests: real primaries, real servers, real signals. One module per subject.
//!
//! Every test has a [`croupier_tests::Guard`], asserts order and not time, and leaves nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adopted;
mod advice;
mod attacks;
mod bench;
mod bench_program;
mod blocked;
mod capacity;
mod care;
mod cells;
mod cli;
mod config;
mod crash;
mod doctor;
mod drain;
mod drive;
mod events;
mod examples;
mod faults;
mod flags;
mod haproxy;
mod harness;
mod hostile;
mod idle;
mod kill;
mod limits;
mod logs;
mod longlived;
mod messages;
mod mixed;
mod output;
mod policies;
mod programs;
mod reload;
mod servers;
mod service;
mod slots;
mod start;
mod sticky;
mod stop;
mod systemd;
mod tidy;
mod troubles;
mod tutorials;
mod watch;
