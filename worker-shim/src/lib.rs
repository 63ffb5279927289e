//! croupier-worker: how a process takes connections that a croupier primary deals.
//!
//! Change one line, and a server is a worker; outside croupier it is what it was:
//!
//! ```no_run
//! use croupier_worker::TcpListener; // instead of std::net::TcpListener
//!
//! for client in TcpListener::bind("127.0.0.1:8080")?.incoming() {
//!     let _client: std::net::TcpStream = client?;
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! * [`TcpListener`] takes connections; [`TcpListener::into_receiver`] feeds a thread pool;
//! * [`worker()`] says who this worker is, and when it drains ([`Worker::draining`] waits for that);
//! * feature `tokio` (and `axum`): the async listener; feature `capi`: `include/croupier.h`.
//!
//! [`claim`], which also the preload library stands on, takes connections; it allocates nothing.
//! The contract with the primary is the package `croupier-wire`.

pub mod claim;
#[cfg(feature = "capi")]
pub mod ffi;
mod listener;
#[cfg(feature = "tokio")]
pub mod tokio;
mod worker;

pub use listener::TcpListener;
pub use worker::{Draining, Worker, worker};
