//! croupier's benchmark: the same worker behind croupier, the kernel, proxies and Node's cluster.
//!
//! Owns: the measuring (engines, workloads, load, statistics) and what is shown of it. Promises:
//! engines are compared within a round on one machine; every raw figure is kept; what spoils a
//! figure stands with it. Never does: become part of croupier itself.

pub mod data;
pub mod stats;
pub mod warn;
