//! croupier-worker: how a process takes connections that a croupier primary deals.
//!
//! The base, which also the preload library stands on, allocates nothing and needs only libc:
//! [`wire`] and [`page`] are the contract with the primary, [`control`] asks it, [`claim`] takes
//! connections, [`fdpass`] moves descriptors.

pub mod claim;
pub mod control;
pub mod fdpass;
pub mod page;
pub mod wire;
