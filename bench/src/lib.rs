//! croupier's benchmark: the same worker behind croupier, the kernel, proxies and Node's cluster.
//!
//! Owns: the measuring (engines, workloads, load, statistics) and what is shown of it. Promises:
//! engines are compared within a round on one machine; every raw figure is kept; what spoils a
//! figure stands with it. Never does: become part of croupier itself.

pub mod adopt;
pub mod calibrate;
pub mod counts;
pub mod data;
pub mod engine;
pub mod environment;
pub mod judge;
pub mod load;
pub mod measure;
pub mod mock;
pub mod process;
pub mod program;
pub mod report;
pub mod run;
pub mod stats;
pub mod warn;
pub mod workload;

// Made-up results name this crate as the tests outside of it do.
#[cfg(test)]
extern crate self as croupier_bench;
