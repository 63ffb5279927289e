//! Workloads: what is asked of every engine.
//!
//! Owns: the catalogue, its numbers and the method line of each. Promises: one definition from which
//! both the load and what is said of it come. Never does: run one.

use std::time::Duration;

use crate::data::{EngineKind, Figure, Generator, WorkerKind, WorkloadInfo};
use crate::engine::{Engine, Launch, Serving};
use crate::load::{Arrivals, RequestKind};

/// Clients of a closed loop for each worker, and most of all.
const CLIENTS_PER_WORKER: u32 = 32;
const CLIENTS_MAX: u32 = 2048;
/// Connections per second of loads that are far below what two cores can do.
const PACED: f64 = 4_000.0;
const EASY: f64 = 2_000.0;
/// The heavy tail: one request in a hundred waits so long.
const TAIL_MS: u32 = 50;
/// What one of the others takes a worker, about: accept, read, write, close.
const TRIVIAL_SECONDS: f64 = 0.000_03;
/// Open-loop clients come from so many addresses.
const SOURCES: u32 = 64;
/// Connections of an open loop at once.
const AT_ONCE: usize = 8_000;
/// One client at a time: so rarely that all workers have long been idle when it comes.
const LONE: f64 = 1_000.0;

/// Who makes the load, with its numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// wrk.
    Closed {
        /// Clients.
        clients: u32,
        /// Connections stay open.
        keep_alive: bool,
        /// wrk has a thread for each CPU that it may use; else one, which asks for as much as one core can.
        every_cpu: bool,
    },
    /// Short connections by a schedule.
    Open {
        /// Starts per second.
        rate: f64,
        /// How they follow each other.
        arrivals: Arrivals,
        /// What is asked.
        kinds: Vec<RequestKind>,
        /// Source addresses.
        sources: u32,
        /// Most connections at once; what is due meanwhile waits, and its latency counts from when it was due.
        at_once: usize,
    },
    /// Connections that stay open.
    Long {
        /// How many.
        connections: usize,
        /// How many of them talk.
        chatty: usize,
        /// All at the same moment.
        burst: bool,
        /// Messages of each that talks, per second.
        messages_per_second: f64,
        /// CPU time of each message.
        cpu_us: u64,
    },
}

/// What is done to the engine under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing.
    None,
    /// One request blocks one worker for half of the load.
    Block,
    /// A worker is killed so often.
    Kill(Duration),
    /// All workers are replaced, once.
    Reload,
}

/// One workload of the catalogue.
#[derive(Debug, Clone)]
pub struct Workload {
    /// For `results.json`.
    pub info: WorkloadInfo,
    /// The load.
    pub load: Load,
    /// How workers in Rust serve under it.
    pub serving: Serving,
    /// What is done meanwhile.
    pub disturbance: Disturbance,
    /// Whether an address must stay with its worker; proxies are told so.
    pub sticky: bool,
    /// Engines that a plan compares here; the first seven are those of `make bench`.
    pub engines: Vec<&'static str>,
}

const DEALING: [&str; 7] =
    ["least", "rr", "shared", "plain-reuseport", "floor", "haproxy", "nginx"];
const OTHERS: [&str; 4] = ["least-1", "reuseport", "plain-shared", "single"];
const NODE: [&str; 4] = ["node-croupier", "node-rr", "node-none", "node-single"];

fn kind(path: &str, weight: f64) -> RequestKind {
    RequestKind { path: path.to_owned(), weight }
}

/// All workloads, in the order in which they are shown. `cpus` is what the machine has: the rate of the
/// expensive requests follows it.
#[must_use]
pub fn catalogue(cpus: u32) -> Vec<Workload> {
    let mut all = vec![
        short(),
        full(),
        paced(),
        one_by_one(),
        expensive(cpus),
        tail(50),
        tail(70),
        keep_alive(),
    ];
    all.extend([long_few(), long_many(), burst(), stall(), kill(), reload(), sticky()]);
    all.extend([2, 8, 64, 256].map(scale));
    all
}

/// Parts that every workload has; the rest is by its function.
fn workload(id: &str, name: &str, load: Load, figures: &[Figure]) -> Workload {
    let (generator, clients, rate) = match &load {
        Load::Closed { clients, .. } => (Generator::ClosedWrk, Some(*clients), None),
        Load::Open { rate, .. } => (Generator::Open, None, Some(*rate)),
        Load::Long { connections, .. } => {
            (Generator::LongLived, u32::try_from(*connections).ok(), None)
        }
    };
    Workload {
        info: WorkloadInfo {
            id: id.to_owned(),
            name: name.to_owned(),
            family: id.to_owned(),
            method: String::new(),
            generator,
            workers: 4,
            clients,
            rate,
            load: None,
            figures: figures.to_vec(),
        },
        load,
        serving: Serving::OneByOne,
        disturbance: Disturbance::None,
        sticky: false,
        engines: DEALING.iter().chain(&OTHERS).copied().collect(),
    }
}

fn open(rate: f64, kinds: Vec<RequestKind>) -> Load {
    Load::Open { rate, arrivals: Arrivals::Random, kinds, sources: SOURCES, at_once: AT_ONCE }
}

fn short() -> Workload {
    let clients = 4 * CLIENTS_PER_WORKER;
    let figures = [Figure::ConnectionRate, Figure::Cpu, Figure::Balance, Figure::Memory];
    let load = Load::Closed { clients, keep_alive: false, every_cpu: false };
    let mut w = workload("short", "cheap short connections, at the maximum rate", load, &figures);
    w.info.method = format!(
        "wrk -t1 -c{clients}, a closed loop with a new connection for each request of nothing; 4 \
         blocking workers. Its latencies omit what it did not send meanwhile"
    );
    w.engines.extend(NODE);
    w
}

/// One thread of wrk is at its own limit before two cores are at theirs: an engine that costs more then only
/// uses what would have been idle. With as many threads as CPUs, whatever it costs is missing.
fn full() -> Workload {
    let clients = 4 * CLIENTS_PER_WORKER;
    let figures = [Figure::ConnectionRate, Figure::Cpu, Figure::Balance];
    let load = Load::Closed { clients, keep_alive: false, every_cpu: true };
    let name = "cheap short connections, all CPUs busy";
    let mut w = workload("short-full", name, load, &figures);
    w.info.method = format!(
        "wrk -c{clients} with a thread for each CPU that it may use, a closed loop with a new connection for each \
         request of nothing; 4 blocking workers. Its latencies omit what it did not send meanwhile"
    );
    w.engines.extend(NODE);
    w
}

fn paced() -> Workload {
    let figures = [Figure::Latency, Figure::Cpu, Figure::Balance];
    let load = open(PACED, vec![kind("/", 1.0)]);
    let mut w = workload("short-paced", "cheap short connections, at a fixed rate", load, &figures);
    w.info.method = format!(
        "open loop, {PACED} connections/s at random moments from {SOURCES} addresses, each with a \
         request of nothing; 4 blocking workers; latency from the intended start"
    );
    w.engines.extend(NODE);
    w
}

/// What Node's manual says of SCHED_NONE shows here: with nobody who deals, idle workers race for each client.
fn one_by_one() -> Workload {
    let figures = [Figure::Balance, Figure::Latency];
    let load = Load::Open {
        rate: LONE,
        arrivals: Arrivals::Even,
        kinds: vec![kind("/", 1.0)],
        sources: SOURCES,
        at_once: 1,
    };
    let name = "one client at a time, all workers idle";
    let mut w = workload("one-by-one", name, load, &figures);
    w.serving = Serving::EventLoop;
    w.info.workers = 8;
    w.info.method = format!(
        "{LONE} connections/s at equal distances from {SOURCES} addresses, each with a request of \
         nothing, and none before the last one was answered and closed; 8 workers with event loops; \
         latency from the intended start"
    );
    w.engines = DEALING.iter().copied().chain(["reuseport", "plain-shared"]).chain(NODE).collect();
    w
}

fn expensive(cpus: u32) -> Workload {
    let rate = 0.6 * f64::from(cpus) * 1_000.0;
    let figures = [Figure::Latency, Figure::Balance, Figure::Cpu];
    let load = open(rate, vec![kind("/cpu/1000", 1.0)]);
    let mut w = workload("cpu", "expensive short connections, 1 ms of CPU each", load, &figures);
    w.info.load = Some(0.6);
    w.info.method = format!(
        "open loop, {rate} connections/s at random moments, each 1 ms of a worker's CPU: 0.6 of \
         what {cpus} CPUs have; 4 blocking workers; latency from the intended start"
    );
    w.engines.extend(NODE);
    w
}

fn tail(percent: u32) -> Workload {
    let load = f64::from(percent) / 100.0;
    let busy = 0.99 * TRIVIAL_SECONDS + 0.01 * f64::from(TAIL_MS) / 1_000.0;
    let rate = (4.0 * load / busy).round();
    let kinds = vec![kind("/", 99.0), kind(&format!("/wait/{TAIL_MS}"), 1.0)];
    let id = format!("tail-{percent}");
    let name = format!("heavy tail, load {load}");
    let mut w = workload(&id, &name, open(rate, kinds), &[Figure::Latency, Figure::Balance]);
    "tail".clone_into(&mut w.info.family);
    w.info.load = Some(load);
    w.info.method = format!(
        "open loop, {rate} connections/s at random moments; 99 % ask for nothing, 1 % block their \
         worker for {TAIL_MS} ms: 4 blocking workers are busy {load} of the time; latency from the \
         intended start, of the cheap requests also by themselves"
    );
    // The floor is the plain round robin that the default is held against.
    let here = ["least", "least-1", "rr", "shared", "plain-reuseport", "floor", "haproxy"];
    w.engines = here.into_iter().chain(["nginx", "ip", "reuseport", "plain-shared"]).collect();
    w
}

fn keep_alive() -> Workload {
    let load = Load::Closed { clients: 64, keep_alive: true, every_cpu: false };
    let figures = [Figure::RequestRate, Figure::Cpu];
    let mut w = workload("keepalive", "requests in connections that stay open", load, &figures);
    w.serving = Serving::EventLoop;
    w.info.method = "wrk -t1 -c64, a closed loop of requests of nothing in 64 connections that \
        stay open; 4 workers with event loops"
        .to_owned();
    w.engines.extend(NODE);
    w
}

fn long(id: &str, name: &str, load: Load, figures: &[Figure]) -> Workload {
    let mut w = workload(id, name, load, figures);
    w.serving = Serving::EventLoop;
    w.info.workers = 8;
    w.engines = DEALING.iter().copied().chain(["ip", "reuseport", "plain-shared"]).collect();
    w
}

fn long_few() -> Workload {
    let load = Load::Long {
        connections: 8,
        chatty: 8,
        burst: false,
        messages_per_second: 50.0,
        cpu_us: 200,
    };
    let figures = [Figure::Balance, Figure::Latency];
    let mut w = long("long-few", "8 long-lived connections on 8 workers", load, &figures);
    w.info.rate = Some(400.0);
    w.info.method =
        "8 connections opened one after another, then 50 messages/s in each, 200 µs of \
        CPU for each; 8 workers with event loops; balance counts open connections, latency is of \
        messages from their intended start"
            .to_owned();
    w
}

fn long_many() -> Workload {
    let load = Load::Long {
        connections: 5_000,
        chatty: 500,
        burst: false,
        messages_per_second: 4.0,
        cpu_us: 50,
    };
    let figures = [Figure::Balance, Figure::Latency, Figure::Cpu, Figure::Memory];
    let mut w = long("long-many", "5,000 long-lived connections on 8 workers", load, &figures);
    w.info.rate = Some(2_000.0);
    w.info.method = "5,000 connections opened at 4,000/s, then 500 of them say 4 messages/s, 50 µs \
        of CPU for each; 8 workers with event loops; balance counts open connections, latency is of \
        messages from their intended start, CPU per connection is of opening and talking"
        .to_owned();
    w
}

fn burst() -> Workload {
    let load = Load::Long {
        connections: 800,
        chatty: 800,
        burst: true,
        messages_per_second: 2.0,
        cpu_us: 100,
    };
    let figures = [Figure::Latency, Figure::Balance];
    let mut w = long("burst", "800 long-lived connections that talk all at once", load, &figures);
    w.info.rate = Some(1_600.0);
    w.info.method = "800 connections opened at 4,000/s, then each says one message every 500 ms, \
        all at the same moment, 100 µs of CPU for each; 8 workers with event loops; latency from \
        that moment, so the few ms in which one generator sends them all count too"
        .to_owned();
    w
}

fn stall() -> Workload {
    let figures = [Figure::Timeline, Figure::Latency, Figure::Errors];
    let load = open(EASY, vec![kind("/", 1.0)]);
    let mut w = workload("stall", "one worker of four blocked for seconds", load, &figures);
    w.disturbance = Disturbance::Block;
    w.info.method = format!(
        "open loop, {EASY} connections/s at random moments, each with a request of nothing; from a \
         quarter to three quarters of the time one request more blocks one of 4 blocking workers; \
         latency from the intended start, also in steps of 100 ms"
    );
    w.engines = DEALING.iter().copied().chain(["least-1", "reuseport", "plain-shared"]).collect();
    w
}

fn kill() -> Workload {
    let figures = [Figure::Timeline, Figure::Errors, Figure::Latency];
    let load = open(EASY, vec![kind("/", 1.0)]);
    let mut w = workload("kill", "a worker killed every 200 ms", load, &figures);
    w.disturbance = Disturbance::Kill(Duration::from_millis(200));
    w.info.method = format!(
        "open loop, {EASY} connections/s at random moments, each with a request of nothing; every \
         200 ms the next of 4 blocking workers gets SIGKILL; who has no supervisor of its own is \
         started again by the harness at once"
    );
    w.engines =
        vec!["least", "rr", "shared", "reuseport", "plain-reuseport", "haproxy", "nginx", "ip"];
    w
}

fn reload() -> Workload {
    let figures = [Figure::Timeline, Figure::Errors, Figure::Latency];
    let load = open(EASY, vec![kind("/", 1.0)]);
    let mut w = workload("reload", "all workers replaced under load", load, &figures);
    w.disturbance = Disturbance::Reload;
    w.info.method = format!(
        "open loop, {EASY} connections/s at random moments, each with a request of nothing; after \
         a tenth of the time all of 4 blocking workers are replaced: by croupier reload; without \
         croupier one after another, the new one first, then TERM to the old"
    );
    w.engines = vec!["least", "rr", "shared", "reuseport", "plain-reuseport", "ip"];
    w
}

fn sticky() -> Workload {
    let figures = [Figure::Errors, Figure::Balance, Figure::Latency];
    let load = Load::Open {
        rate: EASY,
        arrivals: Arrivals::Random,
        kinds: vec![kind("/", 1.0)],
        sources: 1_000,
        at_once: AT_ONCE,
    };
    let mut w = workload("sticky", "1,000 client addresses that must stay", load, &figures);
    w.sticky = true;
    w.info.method = format!(
        "open loop, {EASY} connections/s at random moments, each from one of 1,000 addresses of \
         127.0.0.0/8; 4 blocking workers; addresses that more than one worker answered are counted; \
         haproxy balances by source, nginx by a hash of the address"
    );
    w.engines = vec!["ip", "haproxy", "nginx", "least", "plain-reuseport"];
    w
}

fn scale(workers: u32) -> Workload {
    let clients = (workers * CLIENTS_PER_WORKER).min(CLIENTS_MAX);
    let figures = [Figure::ConnectionRate, Figure::Cpu, Figure::Balance, Figure::Memory];
    let load = Load::Closed { clients, keep_alive: false, every_cpu: false };
    let (id, name) = (format!("workers-{workers}"), format!("{workers} workers"));
    let mut w = workload(&id, &name, load, &figures);
    "workers".clone_into(&mut w.info.family);
    w.info.workers = workers;
    w.info.method = format!(
        "wrk -t1 -c{clients}, a closed loop with a new connection for each request of nothing; \
         {workers} blocking workers"
    );
    w.engines = DEALING.iter().copied().chain(["reuseport"]).collect();
    w
}

impl Workload {
    /// Why an engine has nothing to show here, if so.
    #[must_use]
    pub fn excludes(&self, engine: &Engine) -> Option<&'static str> {
        let node = engine.info.worker == WorkerKind::Node;
        let supervised = matches!(engine.info.kind, EngineKind::Croupier);
        let long = matches!(self.load, Load::Long { .. });
        let one_address = matches!(self.load, Load::Closed { .. });
        match self.disturbance {
            _ if one_address && engine.info.id == "ip" => {
                Some("wrk has one address, so one worker would get everything")
            }
            _ if node && (long || self.disturbance != Disturbance::None || self.sticky) => {
                Some("the Node program has no such work")
            }
            Disturbance::Reload if !supervised && engine.launch != Launch::Reuseport => {
                Some("it has nobody who replaces workers")
            }
            Disturbance::Kill(_) if engine.launch == Launch::Floor => {
                Some("the floor does not watch its workers")
            }
            Disturbance::None | Disturbance::Block | Disturbance::Kill(_) | Disturbance::Reload => {
                None
            }
        }
    }

    /// Whether its course is kept.
    #[must_use]
    pub fn has_timeline(&self) -> bool {
        self.info.figures.contains(&Figure::Timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;

    #[test]
    fn every_workload_says_how_and_names_engines_that_exist() {
        let engines = engine::catalogue();
        let all = catalogue(2);
        let ids: std::collections::BTreeSet<&str> =
            all.iter().map(|w| w.info.id.as_str()).collect();
        assert_eq!(ids.len(), all.len());
        for w in &all {
            assert!(w.info.method.len() > 40, "{}", w.info.id);
            assert!(!w.info.method.contains("  "), "{}", w.info.method);
            for id in &w.engines {
                let engine = engines.iter().find(|engine| engine.info.id == *id);
                let engine = engine.unwrap_or_else(|| panic!("{}: {id}", w.info.id));
                assert_eq!(w.excludes(engine), None, "{} under {id}", w.info.id);
            }
            assert!(w.engines.contains(&"plain-reuseport"), "{}: a baseline", w.info.id);
        }
    }

    #[test]
    fn the_tail_makes_the_load_that_it_names() {
        let Load::Open { rate, .. } = tail(70).load else { panic!("an open loop") };
        // 1 % of 50 ms and 99 % of 30 µs on four workers.
        assert!((rate * (0.01 * 0.05 + 0.99 * 0.000_03) / 4.0 - 0.7).abs() < 0.001);
    }
}
