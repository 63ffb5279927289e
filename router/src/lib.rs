//! croupier: accepts TCP connections in one process and deals each, as a file descriptor, to the
//! least loaded of N worker processes, in turn; it starts, watches, drains and replaces them.
//!
//! The decisions are `croupier-core`'s; this crate is the shell around it.
//!
//! | module | what is in it |
//! |---|---|
//! | [`config`] | flags and environment → one validated configuration |
//! | [`cli`] | one file for each subcommand |
//! | [`adapter`] | the ways a program becomes a worker |
//! | [`primary`] | the event loop and what it owns |
//! | [`control`] | the control socket between command line and primary |
//! | [`output`] | workers' output, line by line |
//! | [`memory`] | how much memory there is |
//! | [`doctor`] | whether this machine lets croupier do its work |
//! | [`diagnose`] | why something is not as it should be, from /proc |

#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("croupier runs on Linux only: it passes descriptors, seals memfds and reads /proc");

pub mod adapter;
pub mod cli;
pub mod config;
pub mod control;
pub mod diagnose;
pub mod doctor;
pub mod memory;
pub mod name;
pub mod output;
pub mod primary;
#[expect(unsafe_code, reason = "the one place for system calls without a safe wrapper")]
pub mod sys;
#[cfg(test)]
mod testing;
