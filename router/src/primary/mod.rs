//! The primary: listens, deals, supervises. One thread, one poll, one loop ([`run`](self::run)).
//!
//! ```text
//!  sockets, signals, doorbells ──▶ run.rs ──events──▶ croupier-core ──actions──▶ perform.rs
//!                                    │                                             │
//!             accept.rs  backlog ──▶ connection ──▶ channel of a worker  ◀─────────┘
//!             answers.rs workers' questions (bind, listen, attach, …)
//!             supervise.rs  starts, ends, families
//!             check.rs      asks a new worker (`--ready-probe`)
//!             posts.rs      messages to and from workers' processes
//!             replace.rs    what a reload says
//!             features.rs   what the kernel must be able to do
//!             hands.rs      slots that the operator starts and stops
//!             drive.rs      scale, pause, resume, restart, kill
//!             happenings.rs `croupier events`
//!             memory.rs     who was killed for lack of memory
//!             limits.rs     what hung workers, recycling and admission say
//!             advice.rs     what the operator could do better
//!             commands.rs   status, stop, reload, wait from the command line
//!             service.rs    tells the service manager (sd_notify)
//!             health.rs     `--report`, and the delay before a stop
//!             pid_file.rs   `--pid-file`
//!             rescue.rs     takes connections back   ┐ what a worker could make block,
//!             disposal.rs   closes what is done with ┘ on threads of their own
//!             rss.rs        looks at memory, on a thread of its own, if asked to
//! ```
//!
//! The core decides, this does. Nothing in here chooses a worker, keeps a deadline of its own for one,
//! or restarts anything.

mod accept;
mod address;
mod adopt;
mod advice;
mod alarm;
mod announce;
mod answers;
mod channel;
mod check;
mod commands;
mod crowd;
mod disposal;
mod drive;
mod edges;
pub mod features;
mod hands;
mod happenings;
mod health;
mod hunt;
mod limits;
mod listener;
mod memory;
mod page;
mod perform;
mod pid_file;
mod posts;
mod probe;
mod process;
mod questions;
mod replace;
mod rescue;
mod rss;
mod run;
mod service;
mod socket_file;
mod start;
mod status;
mod supervise;
mod tokens;
mod turns;
mod versions;
mod wake;
mod watch;
mod worker;

pub use advice::open_files_needed;
pub use start::run;
