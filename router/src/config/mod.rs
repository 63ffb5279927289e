//! What a run is to be: one validated [`RunConfig`].
//!
//! Owns: the types of the configuration, the parsers of single values, and the checks between
//! values. Promises: whoever holds a `RunConfig` need not doubt any of it; every refusal names the
//! flag, the value and what would be right. Never does: print, or change anything of the process.

mod address;
mod care;
mod file;
mod ids;
mod inherited;
mod load;
mod run;
mod surroundings;
mod template;
mod values;

use std::fmt;

use croupier_core::config::SLOTS_MAX;
pub use croupier_core::config::Surge;

pub use address::{ListenAddress, ListenSpec, ProgramAddress, parse_listen, program_port};
pub use care::{Care, parse_umask};
pub use file::{DEFAULT_FILE, Place};
pub use ids::{Ids, user_name};
pub use inherited::Inherited;
pub use load::{LoadError, Loaded, Origin, Setting, Source, changes_at_reload, load};
pub use run::{IP_QUEUE_MAX, Machine, MaxRss, RunConfig, Workers};
pub use surroundings::Surroundings;
pub use template::expand;
pub use values::{
    AdapterChoice, LogFormat, MaxRssArg, ReadyProbe, Shed, WorkersArg, bytes_text, parse_adapter,
    parse_any_signal, parse_bound, parse_bytes, parse_duration, parse_exit_code, parse_log_format,
    parse_max_rss, parse_name, parse_policy, parse_probe, parse_ready, parse_scale, parse_shed,
    parse_signal, parse_slot, parse_surge, parse_workers, policy_name,
};

/// Most slots that one primary has.
pub const WORKERS_MAX: u16 = SLOTS_MAX;

/// Largest `--queue-limit`: what fits a channel's send buffer on hosts with large ones.
pub const QUEUE_LIMIT_MAX: u16 = 4096;

/// Why a configuration is refused: usage errors all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that the parser could not judge alone.
    #[error("{flag} {value}: {why}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A line of a file.
    #[error("{place}: {why}")]
    File {
        /// File and line.
        place: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// Two settings that exclude each other.
    #[error("{0}")]
    Conflict(String),
}

impl ConfigError {
    fn value(flag: &'static str, value: impl fmt::Display, why: impl Into<String>) -> Self {
        Self::Value { flag, value: value.to_string(), why: why.into() }
    }
}

#[cfg(test)]
mod tests;
