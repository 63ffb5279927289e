//! What a primary and its workers share, and nothing that only one of them needs to decide.
//!
//! | module | what |
//! |---|---|
//! | [`message`] | the bytes of a hand-off, a question and an answer |
//! | [`page`] | the memory in which a worker counts |
//! | [`fdpass`] | one message with descriptors, in and out |
//! | [`memory`] | maps the page, and memory that a forked child must not inherit |
//! | [`room`] | how near a process is to its limit of descriptors |
//! | [`take`] | messages taken so that no descriptor is lost for want of a number |
//! | [`control`] | a worker's process asks the primary |
//! | [`post`] | messages between the primary and a worker's process |
//!
//! Promises: only libc, and no allocation anywhere: hooks of the preload library run this code in
//! signal handlers and between fork and exec.

pub mod control;
pub mod fdpass;
pub mod memory;
pub mod message;
pub mod page;
pub mod post;
pub mod room;
pub mod take;
