//! What a run measured: the types of `results.json`.
//!
//! Owns: every raw figure of a run, and the words of every warning. Promises: whatever a report
//! says can be computed from here alone; fields are only ever added, and what is new has a default,
//! so that an older file is still read. Durations are nanoseconds, moments are milliseconds since
//! the load of that sample began, memory is bytes. Never does: statistics (`stats`), or a figure
//! that was not measured: what a cell does not have is `None` or empty.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

pub use crate::warn::Warning;

/// What `results.json` says in its `schema`; raised only when an older reader would be wrong.
pub const SCHEMA: u32 = 1;
/// The file's name in the output folder.
pub const RESULTS_FILE: &str = "results.json";

/// One run: everything that was measured, on what, and what was not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Made up by a test, not measured: a report says so in its first line.
    #[serde(default)]
    pub synthetic: bool,
    /// The machine and the programs.
    pub environment: Environment,
    /// What was asked for.
    pub plan: Plan,
    /// The engines of the plan, in its order, those that could not run included.
    pub engines: Vec<EngineInfo>,
    /// The workloads of the plan, in its order.
    pub workloads: Vec<WorkloadInfo>,
    /// What the load generators cost by themselves, against a null server.
    #[serde(default)]
    pub calibrations: Vec<Calibration>,
    /// One for each engine, workload and round that ran, in the order in which they ran.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// What did not run, and why.
    #[serde(default)]
    pub absent: Vec<Absent>,
    /// What spoils the whole run.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// What spoils one cell (an engine under a workload) over all of its rounds.
    #[serde(default)]
    pub cell_warnings: Vec<CellWarning>,
}

/// Where and with what it was measured.
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a machine, no states")]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// When it began, RFC 3339, UTC.
    pub began: String,
    /// `uname -sr`.
    pub kernel: String,
    /// The processor's model.
    pub cpu: String,
    /// Logical CPUs that this process may use.
    pub cpus: u32,
    /// The frequency governor; `None` where the kernel shows none (a virtual machine, say).
    pub governor: Option<String>,
    /// Runs on a hypervisor.
    #[serde(default)]
    pub virtual_machine: bool,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// `ulimit -n` of the harness and of the engines: soft and hard.
    pub nofile: (u64, u64),
    /// `net.core.somaxconn`.
    pub somaxconn: u32,
    /// `net.ipv4.ip_local_port_range`.
    pub port_range: (u16, u16),
    /// `net.ipv4.tcp_tw_reuse`.
    pub tcp_tw_reuse: u32,
    /// Load average of one minute when it began.
    pub load_average: f64,
    /// Commit of the source tree; `None` outside one.
    pub commit: Option<String>,
    /// Whether the tree had changes that are not in the commit.
    pub dirty: bool,
    /// croupier was a build with debug assertions.
    pub debug_build: bool,
    /// Every program that took part or was looked for, in the words of its `--version`.
    pub versions: Vec<ProgramVersion>,
    /// Which CPUs belonged to whom.
    pub pinning: Pinning,
}

/// One program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramVersion {
    /// As it is called: `haproxy`.
    pub program: String,
    /// What it says itself; `None`: not installed.
    pub version: Option<String>,
}

/// Who ran on which CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinning {
    /// CPUs of the load generator; empty: not pinned.
    pub generator: Vec<u32>,
    /// CPUs of the engine and its workers; empty: not pinned.
    pub subject: Vec<u32>,
    /// What that means for the figures, in a sentence.
    pub note: String,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `bench`, `quick`, `full`, or `own` where engines or workloads were named.
    pub name: String,
    /// Engines' ids, in the order of the first round; each round begins one further, every other one backwards.
    pub engines: Vec<String>,
    /// Workloads' ids.
    pub workloads: Vec<String>,
    /// Rounds of each cell.
    pub rounds: u32,
    /// Seconds of load of each sample.
    pub seconds: f64,
    /// Seconds of warm-up before each sample, not measured.
    pub warmup_seconds: f64,
    /// The engine that ratios are made against, within each round; of workers in Rust.
    pub baseline: String,
    /// The same for engines with Node workers.
    pub node_baseline: String,
    /// The command line.
    pub command: Vec<String>,
    /// How long it took, once it has ended; until then `None`: the file is of a run under way.
    #[serde(default)]
    pub took_seconds: Option<f64>,
}

/// An engine: one way to bring connections to workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// `least`, `plain-reuseport`, `haproxy`, …
    pub id: String,
    /// For people: `croupier least`.
    pub name: String,
    /// What it does, in a sentence.
    pub about: String,
    /// Which family it belongs to.
    pub kind: EngineKind,
    /// The worker program behind it; only engines with the same one can be compared.
    pub worker: WorkerKind,
    /// Whether some process of it takes part in dealing: its CPU stands in [`Cpu::primary_ns`].
    pub has_primary: bool,
}

/// Families of engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// croupier with some policy.
    Croupier,
    /// Only the kernel: `SO_REUSEPORT` or one shared socket, without croupier.
    Kernel,
    /// One process, no balancing.
    Single,
    /// accept4 + sendmsg + close and nothing else: the least that a hand-off costs.
    Floor,
    /// A proxy that copies every byte.
    Proxy,
    /// Node's own cluster module.
    NodeCluster,
    /// In-process or made up: calibration and tests.
    Mock,
}

/// Which program serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerKind {
    /// `croupier-bench-worker`.
    Rust,
    /// The Node program of this package.
    Node,
    /// A program of the user's own.
    Own,
}

/// A workload: what is asked of an engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// `short`, `tail-70`, `workers-64`, …
    pub id: String,
    /// For people.
    pub name: String,
    /// Workloads that differ only in a number belong together: `workers-2` … are `workers`.
    pub family: String,
    /// How it is measured, in a sentence or two; stands under each of its tables.
    pub method: String,
    /// Who generates it.
    pub generator: Generator,
    /// Workers of each engine (of `single` always one).
    pub workers: u32,
    /// Connections open at once: clients of a closed loop, or the long-lived ones.
    pub clients: Option<u32>,
    /// Intended starts per second of an open loop.
    pub rate: Option<f64>,
    /// Load of the workers that the rate is meant to make, 0 to 1, where the workload says so.
    #[serde(default)]
    pub load: Option<f64>,
    /// Which figures it is about, the most important first: a report leads with them.
    pub figures: Vec<Figure>,
}

/// Who generates a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generator {
    /// wrk: each client asks again when it has its answer. Gives peak rates; its latencies omit the
    /// waiting of requests that it did not send meanwhile.
    ClosedWrk,
    /// `croupier-bench load`: starts by a schedule; latency counts from the intended start.
    Open,
    /// `croupier-bench load` with connections that stay open and echo by a schedule.
    LongLived,
}

/// A figure that a workload is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Completed connections per second.
    ConnectionRate,
    /// Answers per second.
    RequestRate,
    /// Latency by percentile.
    Latency,
    /// Connections over workers: CV, largest/smallest, Jain.
    Balance,
    /// CPU of the primary or proxy per connection.
    Cpu,
    /// Memory of the primary or proxy.
    Memory,
    /// What was lost, reset, hung.
    Errors,
    /// The course of it: stall, kill, reload.
    Timeline,
}

/// One engine under one workload in one round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// [`EngineInfo::id`].
    pub engine: String,
    /// [`WorkloadInfo::id`].
    pub workload: String,
    /// From 0.
    pub round: u32,
    /// Workers that served.
    pub workers: u32,
    /// Length of the load as it was, seconds.
    pub seconds: f64,
    /// Connections that were to start (open loop), or did (closed loop).
    pub intended: u64,
    /// Connections that were served to their end, or (long-lived) were open when the load ended.
    pub connections: u64,
    /// Answers with their full length.
    pub requests: u64,
    /// What went wrong.
    pub errors: Errors,
    /// Latencies of the own generator; a closed loop by wrk has only [`Sample::wrk`].
    #[serde(default)]
    pub latency: Option<Latencies>,
    /// wrk's own words and what was read from them.
    #[serde(default)]
    pub wrk: Option<WrkRun>,
    /// Who served how much; exact: each worker's own count, or its name in each answer.
    #[serde(default)]
    pub per_worker: Vec<WorkerCount>,
    /// CPU time, from /proc/PID/task/*/schedstat.
    #[serde(default)]
    pub cpu: Option<Cpu>,
    /// Resident memory at the end of the load.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// The open loop's keeping of its schedule.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// The course of the load in steps; only where the workload has [`Figure::Timeline`].
    #[serde(default)]
    pub timeline: Vec<TimelinePoint>,
    /// What was done to the engine meanwhile.
    #[serde(default)]
    pub events: Vec<TimelineEvent>,
    /// What spoils this sample.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

impl Sample {
    /// Connections per second.
    #[must_use]
    pub fn connection_rate(&self) -> f64 {
        per_second(self.connections, self.seconds)
    }

    /// Answers per second.
    #[must_use]
    pub fn request_rate(&self) -> f64 {
        per_second(self.requests, self.seconds)
    }

    /// CPU time of the primary or proxy, all of its processes, for each connection, in ns. `None` where there is
    /// no such process, or nothing was served.
    #[must_use]
    pub fn primary_ns_per_connection(&self) -> Option<f64> {
        per_connection(self.cpu.as_ref()?.primary_ns?, self.connections)
    }

    /// The same for each answer: what counts where connections stay open.
    #[must_use]
    pub fn primary_ns_per_request(&self) -> Option<f64> {
        per_connection(self.cpu.as_ref()?.primary_ns?, self.requests)
    }

    /// CPU time of all workers for each connection, in ns.
    #[must_use]
    pub fn workers_ns_per_connection(&self) -> Option<f64> {
        per_connection(self.cpu.as_ref()?.workers_ns, self.connections)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are far below 2^52")]
fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "CPU time of a few seconds is far below 2^52 ns")]
fn per_connection(ns: u64, connections: u64) -> Option<f64> {
    (connections > 0).then(|| ns as f64 / connections as f64)
}

/// Connections (of wrk: requests) that failed, by kind. Each is counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// connect(2) was refused.
    pub refused: u64,
    /// Reset by the peer, after connect(2).
    pub reset: u64,
    /// No full answer within the time-out, and not closed either: hung.
    pub timeout: u64,
    /// Closed in order before the whole answer had come.
    pub short: u64,
    /// Anything else: a bad answer, an error of the generator's own machine.
    pub other: u64,
}

impl Errors {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.refused + self.reset + self.timeout + self.short + self.other
    }

    /// The kinds with their names, in the order of the fields.
    #[must_use]
    pub const fn by_kind(&self) -> [(&'static str, u64); 5] {
        [
            ("refused", self.refused),
            ("reset", self.reset),
            ("timed out", self.timeout),
            ("short answer", self.short),
            ("other", self.other),
        ]
    }
}

impl Display for Errors {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (kind, count) in self.by_kind() {
            if count > 0 {
                write!(f, "{between}{count} {kind}")?;
                between = ", ";
            }
        }
        if between.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// Latencies of completed connections or requests, in ns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Intended start to completion: the honest one.
    pub total: Histogram,
    /// Actual start to completion: what a generator that forgets its schedule would have said.
    pub naive: Histogram,
    /// Actual start to connected.
    pub connect: Histogram,
    /// Intended start to the first byte of the answer. Of long-lived connections: of the answer that
    /// opens them, and `connect` likewise.
    pub first_byte: Histogram,
    /// [`Latencies::total`] of the first, cheapest kind of request alone, where a load has more than one: what
    /// waited because of others, without those that take long by themselves.
    #[serde(default)]
    pub first_kind: Option<Histogram>,
}

/// A recorded distribution: an HDR histogram (V2, deflated) in base64, as HdrHistogram's own tools
/// read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many values.
    pub n: u64,
    /// The histogram.
    pub hdr: String,
}

/// A histogram that is not one.
#[derive(Debug, thiserror::Error)]
#[error("results: not an HDR histogram: {0}; the file was changed or cut short")]
pub struct HistogramError(String);

impl Histogram {
    /// # Errors
    /// If the histogram cannot be written; it then has more than 2^32 places.
    pub fn encode(of: &hdrhistogram::Histogram<u64>) -> Result<Self, HistogramError> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(of, &mut bytes)
            .map_err(|error| HistogramError(error.to_string()))?;
        Ok(Self { n: of.len(), hdr: BASE64_STANDARD.encode(bytes) })
    }

    /// # Errors
    /// If it is not base64, or not a histogram.
    pub fn decode(&self) -> Result<hdrhistogram::Histogram<u64>, HistogramError> {
        let bytes =
            BASE64_STANDARD.decode(&self.hdr).map_err(|error| HistogramError(error.to_string()))?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| HistogramError(error.to_string()))
    }
}

/// One run of wrk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WrkRun {
    /// The command line.
    pub command: Vec<String>,
    /// What it printed, whole.
    pub output: String,
    /// Requests per second, by its own clock.
    pub rate: f64,
    /// Its percentiles of latency (share in percent, ns): of a closed loop, so only to be compared
    /// with another run of the same.
    pub percentiles: Vec<(f64, u64)>,
}

/// What one worker served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCount {
    /// Its process.
    pub pid: u32,
    /// Connections that it served, or (long-lived) has open.
    pub connections: u64,
    /// Answers that it gave.
    pub requests: u64,
}

/// CPU time during the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// All processes of the primary or proxy, all threads. `None`: the engine has none.
    pub primary_ns: Option<u64>,
    /// The primary's main thread alone, where it is one process.
    #[serde(default)]
    pub primary_main_ns: Option<u64>,
    /// Times that its main thread went to sleep.
    #[serde(default)]
    pub primary_sleeps: Option<u64>,
    /// All workers.
    pub workers_ns: u64,
    /// The load generator, user and system, of one core = `seconds`.
    pub generator_ns: u64,
    /// Share of the machine's CPU time that neither engine nor generator used but others did, 0 to 1. The kernel's
    /// work in interrupts is in it where it belongs to nobody.
    pub foreign_share: f64,
}

/// Resident memory at the end of the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All processes of the primary or proxy. `None`: the engine has none.
    pub primary_bytes: Option<u64>,
    /// All workers together (pages that they share are counted in each).
    pub workers_bytes: u64,
}

/// How an open loop kept its schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Starts that were more than 1 ms behind their intended moment.
    pub late: u64,
    /// The worst of them, ns.
    pub worst_ns: u64,
    /// Starts that were never made: too many connections were open already, or the time was up.
    pub unstarted: u64,
    /// Most connections open at once.
    pub open_max: u64,
    /// Source addresses in use.
    #[serde(default)]
    pub sources: u32,
    /// Sticky loads: source addresses that more than one worker answered.
    #[serde(default)]
    pub sources_moved: Option<u32>,
}

/// A step of the course, of what was *intended* to start in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelinePoint {
    /// When the step begins.
    pub at_ms: u64,
    /// How long it is.
    pub step_ms: u64,
    /// Intended starts.
    pub intended: u64,
    /// Of those, answered.
    pub completed: u64,
    /// Of those, failed.
    pub errors: u64,
    /// Latencies of those that completed; 0 where none did.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

/// Something that was done to the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// When.
    pub at_ms: u64,
    /// When it was over, if it lasts.
    #[serde(default)]
    pub until_ms: Option<u64>,
    /// What: `worker 1234 killed`, `reload`, `one worker blocked for 3 s`.
    pub what: String,
}

/// What a generator costs by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Which.
    pub generator: Generator,
    /// How it was found, in a sentence.
    pub method: String,
    /// Connections per second that it made of a server that accepts, answers and closes and does
    /// nothing else, or was asked to make.
    pub rate: f64,
    /// Share of one core that it used for that rate.
    pub generator_share: f64,
    /// The null server's latencies as this generator sees them: no engine can show less.
    #[serde(default)]
    pub latency: Option<Latencies>,
    /// wrk's own words.
    #[serde(default)]
    pub wrk: Option<WrkRun>,
}

/// Something that did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The engine.
    pub engine: String,
    /// The workload; `None`: all of them.
    pub workload: Option<String>,
    /// The round; `None`: all of them.
    #[serde(default)]
    pub round: Option<u32>,
    /// Why.
    pub why: Reason,
}

/// Why something did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Reason {
    /// A program that it needs is not there.
    NotInstalled {
        /// Which.
        program: String,
    },
    /// It has no meaning for this engine.
    NotApplicable {
        /// Why, in a clause.
        because: String,
    },
    /// It was tried and failed.
    Failed {
        /// The error.
        error: String,
    },
    /// The run ended before.
    Interrupted,
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled { program } => {
                write!(f, "{program} is not installed: make bench-deps installs it")
            }
            Self::NotApplicable { because } => write!(f, "does not apply: {because}"),
            Self::Failed { error } => write!(f, "failed: {error}"),
            Self::Interrupted => f.write_str("the run was interrupted before"),
        }
    }
}

/// A warning about one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellWarning {
    /// The engine.
    pub engine: String,
    /// The workload.
    pub workload: String,
    /// What.
    pub warning: Warning,
}

/// A results file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The system refused.
    #[error("{path}: {error}; name a folder that `croupier-bench run --out` has made")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Not a results file.
    #[error("{path}: not a results file: {error}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        error: serde_json::Error,
    },
    /// Written by another version.
    #[error("{path}: schema {found}, this program reads {SCHEMA}; use the program that wrote it")]
    Schema {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

impl Results {
    /// Reads `results.json` of a folder.
    ///
    /// # Errors
    /// If there is none, or it is not one of this schema.
    pub fn read(folder: &Path) -> Result<Self, ResultsError> {
        let path = folder.join(RESULTS_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => return Err(ResultsError::Io { path, error }),
        };
        let results: Self = match serde_json::from_str(&text) {
            Ok(results) => results,
            Err(error) => return Err(ResultsError::Format { path, error }),
        };
        if results.schema != SCHEMA {
            return Err(ResultsError::Schema { path, found: results.schema });
        }
        Ok(results)
    }

    /// Writes `results.json` so that a reader finds the old or the new one, never half of it.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), ResultsError> {
        let path = folder.join(RESULTS_FILE);
        let text = match serde_json::to_string_pretty(self) {
            Ok(text) => text,
            Err(error) => return Err(ResultsError::Format { path, error }),
        };
        let partial = folder.join(".results.json.new");
        std::fs::write(&partial, text)
            .and_then(|()| std::fs::rename(&partial, &path))
            .map_err(|error| ResultsError::Io { path, error })
    }

    /// The samples of one cell, in the order of rounds.
    pub fn cell<'a>(
        &'a self,
        engine: &'a str,
        workload: &'a str,
    ) -> impl Iterator<Item = &'a Sample> + 'a {
        self.samples.iter().filter(move |s| s.engine == engine && s.workload == workload)
    }

    /// Warnings of a cell: of its samples (each once, the first) and of all its rounds together.
    #[must_use]
    pub fn warnings_of<'a>(&'a self, engine: &'a str, workload: &'a str) -> Vec<&'a Warning> {
        let mut found: Vec<&Warning> = Vec::new();
        let samples = self.cell(engine, workload).flat_map(|sample| &sample.warnings);
        let cells = self
            .cell_warnings
            .iter()
            .filter(|cell| cell.engine == engine && cell.workload == workload)
            .map(|cell| &cell.warning);
        for warning in samples.chain(cells) {
            if !found.iter().any(|known| known.name() == warning.name()) {
                found.push(warning);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_comes_back_as_it_went() {
        let mut recorded = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        for value in 1..=10_000_u64 {
            recorded.record(value * 1_000).unwrap();
        }
        let kept = Histogram::encode(&recorded).unwrap();
        assert_eq!(kept.n, 10_000);
        assert_eq!(kept.decode().unwrap(), recorded);
    }

    #[test]
    fn a_broken_histogram_is_an_error() {
        for hdr in ["", "!", "SElTVEZBQUFB"] {
            let kept = Histogram { n: 1, hdr: hdr.to_owned() };
            assert!(kept.decode().is_err(), "{hdr}");
        }
    }

    #[test]
    fn errors_say_only_what_happened() {
        assert_eq!(Errors::default().to_string(), "none");
        let errors = Errors { reset: 2, short: 1, ..Errors::default() };
        assert_eq!(errors.to_string(), "2 reset, 1 short answer");
        assert_eq!(errors.total(), 3);
    }

    #[test]
    fn a_sample_without_what_came_later_is_read() {
        let text = r#"{"engine":"least","workload":"short","round":0,"workers":4,"seconds":2.0,
            "intended":10,"connections":8,"requests":8,
            "errors":{"refused":0,"reset":2,"timeout":0,"short":0,"other":0}}"#;
        let sample: Sample = serde_json::from_str(text).unwrap();
        assert!((sample.connection_rate() - 4.0).abs() < 1e-9);
        assert_eq!(sample.primary_ns_per_connection(), None);
    }
}
