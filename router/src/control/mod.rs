//! The control socket of the command line: where `croupier status` and its like ask a primary.
//!
//! | file | part |
//! |---|---|
//! | `messages` | what is asked and answered |
//! | `outbox` | what is on its way to a client that reads a stream |
//! | `place` | where sockets lie, how a name is taken |
//! | `server` | the primary's end, in its loop |
//! | `client` | the command line's end |
//!
//! The socket by which workers ask to listen is another one (`primary`).

pub mod client;
pub mod messages;
pub mod outbox;
pub mod place;
pub mod server;
