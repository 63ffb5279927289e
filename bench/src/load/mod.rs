//! Load: what clients do, and what they see of it.
//!
//! Owns: the open loop (`open`), long-lived connections (`long`), and wrk (`wrk`). Promises: starts
//! follow a schedule made from a seed, the same for every engine of a round; latency counts from the
//! intended start; every failure is of a kind. Never does: start an engine.

mod client;
mod long;
mod open;
mod record;
mod schedule;
mod socket;
mod timer;
mod wrk;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

pub use long::LongLoad;
pub use open::OpenLoad;
pub use record::Recorder;
pub use socket::raise_descriptor_limit;
pub use wrk::{Wrk, WrkError, WrkLoad};

use crate::data::{Errors, Schedule, TimelinePoint};

/// Starts further behind than this are late.
pub const LATE: Duration = Duration::from_millis(1);

/// How the starts of an open loop follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// At random, as independent clients come (a Poisson process).
    Random,
    /// At equal distances.
    Even,
}

/// One kind of request and how often it comes.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestKind {
    /// `/`.
    pub path: String,
    /// Share of all requests, relative to the others'.
    pub weight: f64,
}

/// What a generator saw.
#[derive(Debug)]
pub struct Seen {
    /// From the first intended start to the end of the schedule.
    pub seconds: f64,
    /// Connections (of long-lived ones: messages) that were to start.
    pub intended: u64,
    /// Connections that were served (of long-lived ones: that were open at the end).
    pub connections: u64,
    /// Whole answers.
    pub requests: u64,
    /// What went wrong.
    pub errors: Errors,
    /// Of those, failures of this machine: no port or descriptor was left.
    pub out_of_ports: u64,
    /// Latencies.
    pub recorder: Recorder,
    /// How the schedule was kept.
    pub schedule: Schedule,
    /// Connections by the worker that answered.
    pub per_worker: BTreeMap<u32, (u64, u64)>,
    /// The course, where it was asked for.
    pub timeline: Vec<TimelinePoint>,
    /// CPU time of the generator's thread.
    pub cpu_ns: u64,
}

/// What both generators are told.
#[derive(Debug, Clone)]
pub struct Common {
    /// Where to.
    pub target: SocketAddr,
    /// How long.
    pub length: Duration,
    /// Source addresses, from 127.1.0.1 upwards; 0: the kernel's choice (127.0.0.1).
    pub sources: u32,
    /// How long a client waits for an answer.
    pub patience: Duration,
    /// The schedule's seed.
    pub seed: u64,
    /// Keeps the course in steps of this.
    pub timeline: Option<Duration>,
    /// Told the moment from which the schedule counts.
    pub begun: Option<Sender<Instant>>,
}

impl Common {
    fn begin(&self) -> Instant {
        let now = Instant::now();
        if let Some(begun) = &self.begun {
            // Nobody may be interested any more.
            begun.send(now).ok();
        }
        now
    }
}
