//! Results that nobody measured, drawn from a seeded law: to test what is made of results.
//!
//! Promises: the same seed, the same results; they say that they are synthetic. Never does: imitate
//! what croupier measures so that it could be taken for it.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::expect_used,
    reason = "invented numbers, small by construction"
)]

use croupier_bench::data::{
    Absent, Calibration, CellWarning, Cpu, EngineInfo, EngineKind, Environment, Errors, Figure,
    Generator, Histogram, Latencies, Memory, Pinning, Plan, ProgramVersion, Reason, Results,
    SCHEMA, Sample, Schedule, TimelineEvent, TimelinePoint, Warning, WorkerCount, WorkerKind,
    WorkloadInfo, WrkRun,
};

/// A small generator of numbers that look random (xorshift).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 0 to 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Around 1, give or take `width`.
    pub(crate) fn near_one(&mut self, width: f64) -> f64 {
        1.0 + width * (self.share() * 2.0 - 1.0)
    }
}

/// How one made-up engine behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Law {
    /// Connections per second.
    pub(crate) rate: f64,
    /// Median latency, ns.
    pub(crate) median: f64,
    /// How many times the median the 99.9th percentile is.
    pub(crate) tail: f64,
    /// How unevenly it deals: 0 is even.
    pub(crate) skew: f64,
    /// CPU of the primary per connection, ns; `None`: it has none.
    pub(crate) primary: Option<f64>,
    /// Of a thousand requests, how many fail under a disturbance.
    pub(crate) failing: f64,
}

type Made = (&'static str, &'static str, EngineKind, WorkerKind, Law);

const fn law(
    rate: f64,
    median: f64,
    tail: f64,
    skew: f64,
    primary: Option<f64>,
    failing: f64,
) -> Law {
    Law { rate, median, tail, skew, primary, failing }
}

/// Ids as the harness names them; the laws are invented.
pub(crate) const ENGINES: [Made; 15] = [
    (
        "least",
        "croupier least",
        EngineKind::Croupier,
        WorkerKind::Rust,
        law(20e3, 2e5, 20.0, 0.02, Some(5e3), 0.0),
    ),
    (
        "least-1",
        "croupier least --max-active 1",
        EngineKind::Croupier,
        WorkerKind::Rust,
        law(18e3, 2.2e5, 15.0, 0.02, Some(6e3), 0.0),
    ),
    (
        "rr",
        "croupier rr",
        EngineKind::Croupier,
        WorkerKind::Rust,
        law(20e3, 2e5, 60.0, 0.0, Some(5e3), 0.0),
    ),
    (
        "ip",
        "croupier ip",
        EngineKind::Croupier,
        WorkerKind::Rust,
        law(19e3, 2e5, 80.0, 0.4, Some(5.5e3), 0.0),
    ),
    (
        "shared",
        "croupier shared",
        EngineKind::Croupier,
        WorkerKind::Rust,
        law(21e3, 1.8e5, 16.0, 0.9, Some(10.0), 0.1),
    ),
    (
        "reuseport",
        "croupier reuseport",
        EngineKind::Croupier,
        WorkerKind::Rust,
        law(21e3, 1.9e5, 70.0, 0.1, Some(10.0), 0.1),
    ),
    (
        "plain-reuseport",
        "SO_REUSEPORT",
        EngineKind::Kernel,
        WorkerKind::Rust,
        law(21.5e3, 1.9e5, 75.0, 0.1, None, 4.0),
    ),
    (
        "single",
        "one process",
        EngineKind::Single,
        WorkerKind::Rust,
        law(11e3, 4e5, 300.0, 0.0, None, 80.0),
    ),
    (
        "floor",
        "the plain loop",
        EngineKind::Floor,
        WorkerKind::Rust,
        law(17e3, 2.5e5, 70.0, 0.0, Some(12e3), 2.0),
    ),
    (
        "haproxy",
        "haproxy tcp leastconn",
        EngineKind::Proxy,
        WorkerKind::Rust,
        law(12e3, 4e5, 22.0, 0.02, Some(7e4), 0.5),
    ),
    (
        "nginx",
        "nginx stream least_conn",
        EngineKind::Proxy,
        WorkerKind::Rust,
        law(12e3, 4e5, 22.0, 0.02, Some(7e4), 0.5),
    ),
    (
        "node-croupier",
        "croupier least, Node workers",
        EngineKind::Croupier,
        WorkerKind::Node,
        law(9e3, 9e5, 15.0, 0.02, Some(6e3), 0.0),
    ),
    (
        "node-rr",
        "node:cluster rr",
        EngineKind::NodeCluster,
        WorkerKind::Node,
        law(5e3, 2e6, 20.0, 0.02, Some(5e4), 1.0),
    ),
    (
        "node-none",
        "node:cluster none",
        EngineKind::NodeCluster,
        WorkerKind::Node,
        law(8e3, 1e6, 30.0, 1.2, Some(100.0), 1.0),
    ),
    (
        "node-single",
        "one Node process",
        EngineKind::Single,
        WorkerKind::Node,
        law(4e3, 3e6, 80.0, 0.0, None, 90.0),
    ),
];

type Kind = (&'static str, &'static str, &'static str, Generator, u32, &'static [Figure]);

const RATE: &[Figure] = &[Figure::ConnectionRate, Figure::Balance, Figure::Cpu, Figure::Memory];
const TAIL: &[Figure] = &[Figure::Latency, Figure::Balance, Figure::Cpu];
const EVEN: &[Figure] = &[Figure::Balance, Figure::Latency];
const COURSE: &[Figure] = &[Figure::Timeline, Figure::Latency, Figure::Errors];

pub(crate) const WORKLOADS: [Kind; 17] = [
    ("short", "Short connections, maximum rate", "short", Generator::ClosedWrk, 8, RATE),
    ("short-full", "Short connections, all CPUs busy", "short-full", Generator::ClosedWrk, 8, RATE),
    ("short-paced", "Short connections, fixed rate", "short-paced", Generator::Open, 8, TAIL),
    ("one-by-one", "One client at a time", "one-by-one", Generator::Open, 8, EVEN),
    ("cpu", "Expensive short connections (1 ms of CPU)", "cpu", Generator::Open, 8, TAIL),
    ("tail-50", "Heavy tail, load 0.5", "tail", Generator::Open, 8, TAIL),
    ("tail-70", "Heavy tail, load 0.7", "tail", Generator::Open, 8, TAIL),
    ("keepalive", "Keep-alive", "keepalive", Generator::ClosedWrk, 8, &[Figure::RequestRate]),
    ("long-few", "Long-lived, few", "long", Generator::LongLived, 8, &[Figure::Balance]),
    ("stall", "One worker of four blocked", "stall", Generator::Open, 4, COURSE),
    ("kill", "A worker killed every 200 ms", "kill", Generator::Open, 4, COURSE),
    ("reload", "A reload under load", "reload", Generator::Open, 4, COURSE),
    ("sticky", "Sticky, 1,000 addresses", "sticky", Generator::Open, 8, TAIL),
    ("workers-2", "2 workers", "workers", Generator::ClosedWrk, 2, RATE),
    ("workers-8", "8 workers", "workers", Generator::ClosedWrk, 8, RATE),
    ("workers-64", "64 workers", "workers", Generator::ClosedWrk, 64, RATE),
    ("workers-256", "256 workers", "workers", Generator::ClosedWrk, 256, RATE),
];

/// Results of a whole run by `seed`, with nginx not installed and Node left out of what it cannot do.
pub(crate) fn whole(seed: u64, rounds: u32) -> Results {
    let mut dice = Dice::new(seed);
    let mut samples = Vec::new();
    let mut absent = vec![Absent {
        engine: "nginx".into(),
        workload: None,
        round: None,
        why: Reason::NotInstalled { program: "nginx".into() },
    }];
    for (workload, _, family, generator, workers, figures) in WORKLOADS {
        for (engine, _, kind, worker, law) in ENGINES {
            if engine == "nginx" {
                continue;
            }
            if worker == WorkerKind::Node && family == "workers" {
                absent.push(Absent {
                    engine: engine.into(),
                    workload: Some(workload.into()),
                    round: None,
                    why: Reason::NotApplicable { because: "one Node program is enough".into() },
                });
                continue;
            }
            let served = if kind == EngineKind::Single { 1 } else { workers };
            for round in 0..rounds {
                let mut sample = sample(&mut dice, law, generator, served, figures);
                sample.engine = engine.into();
                sample.workload = workload.into();
                sample.round = round;
                samples.push(sample);
            }
        }
    }
    let mut results = empty(rounds);
    results.samples = samples;
    results.absent = absent;
    results.calibrations = vec![calibration(&mut dice)];
    results.warnings = vec![Warning::SharedCores { cpus: 2 }, Warning::VirtualMachine];
    results.cell_warnings = vec![
        CellWarning {
            engine: "ip".into(),
            workload: "tail-70".into(),
            warning: Warning::FewSamples { percentile: 99.9, n: 4000, needed: 10_000 },
        },
        CellWarning {
            engine: "haproxy".into(),
            workload: "short".into(),
            warning: Warning::Outliers { figure: Figure::ConnectionRate, rounds: vec![1] },
        },
    ];
    results
}

/// Engines, workloads and environment, without a sample.
pub(crate) fn empty(rounds: u32) -> Results {
    Results {
        schema: SCHEMA,
        synthetic: true,
        environment: environment(),
        plan: Plan {
            name: "synthetic".into(),
            engines: ENGINES.iter().map(|(id, ..)| (*id).into()).collect(),
            workloads: WORKLOADS.iter().map(|(id, ..)| (*id).into()).collect(),
            rounds,
            seconds: 4.0,
            warmup_seconds: 1.0,
            baseline: "plain-reuseport".into(),
            node_baseline: "node-rr".into(),
            command: vec!["synthetic".into()],
            took_seconds: Some(754.0),
        },
        engines: ENGINES
            .iter()
            .map(|(id, name, kind, worker, law)| EngineInfo {
                id: (*id).into(),
                name: (*name).into(),
                about: format!("{name}, made up"),
                kind: *kind,
                worker: *worker,
                has_primary: law.primary.is_some(),
            })
            .collect(),
        workloads: WORKLOADS
            .iter()
            .map(|(id, name, family, generator, workers, figures)| WorkloadInfo {
                id: (*id).into(),
                name: (*name).into(),
                family: (*family).into(),
                method: format!(
                    "{name}: the figures come from a seeded law, not from a measurement."
                ),
                generator: *generator,
                workers: *workers,
                clients: (*generator == Generator::ClosedWrk).then_some(workers * 32),
                rate: (*generator == Generator::Open).then_some(2000.0),
                load: id.starts_with("tail").then_some(0.7),
                figures: figures.to_vec(),
            })
            .collect(),
        calibrations: Vec::new(),
        samples: Vec::new(),
        absent: Vec::new(),
        warnings: Vec::new(),
        cell_warnings: Vec::new(),
    }
}

fn environment() -> Environment {
    Environment {
        began: "2000-01-01T00:00:00Z".into(),
        kernel: "Synthetic 1.0".into(),
        cpu: "An imagined CPU".into(),
        cpus: 2,
        governor: None,
        virtual_machine: true,
        memory_bytes: 8 << 30,
        nofile: (1024, 1_048_576),
        somaxconn: 4096,
        port_range: (32_768, 60_999),
        tcp_tw_reuse: 2,
        load_average: 0.4,
        commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
        dirty: false,
        debug_build: false,
        versions: vec![
            ProgramVersion { program: "haproxy".into(), version: Some("0.0 synthetic".into()) },
            ProgramVersion { program: "nginx".into(), version: None },
        ],
        pinning: Pinning {
            generator: vec![],
            subject: vec![],
            note: "Two CPUs are too few to give the generator its own.".into(),
        },
    }
}

/// Values of a log-normal-like law: the median and the 99.9th percentile are as asked.
pub(crate) fn histogram(dice: &mut Dice, n: u32, median: f64, tail: f64) -> Histogram {
    let mut recorded = hdrhistogram::Histogram::<u64>::new(3).expect("three digits");
    for _ in 0..n {
        // The sum of twelve shares less six is nearly normal.
        let normal: f64 = (0..12).map(|_| dice.share()).sum::<f64>() - 6.0;
        let value = median * (normal / 3.09 * tail.ln()).exp();
        recorded.record(value.max(1.0) as u64).expect("an auto-resizing histogram");
    }
    Histogram::encode(&recorded).expect("a small histogram")
}

fn latencies(dice: &mut Dice, law: Law) -> Latencies {
    Latencies {
        total: histogram(dice, 4000, law.median, law.tail),
        naive: histogram(dice, 4000, law.median, law.tail.sqrt()),
        connect: histogram(dice, 4000, law.median / 4.0, 4.0),
        first_byte: histogram(dice, 4000, law.median * 0.9, law.tail),
        first_kind: None,
    }
}

fn sample(
    dice: &mut Dice,
    law: Law,
    generator: Generator,
    workers: u32,
    figures: &[Figure],
) -> Sample {
    let rate = match generator {
        Generator::ClosedWrk => law.rate * dice.near_one(0.04),
        Generator::Open => 2000.0,
        Generator::LongLived => 8.0,
    };
    let connections = (rate * 4.0) as u64;
    let disturbed = figures.contains(&Figure::Timeline);
    let failed = if disturbed { (law.failing * 8.0 * dice.near_one(0.3)) as u64 } else { 0 };
    let per_worker = (0..workers)
        .map(|number| {
            let lean =
                1.0 + law.skew * (f64::from(number) / f64::from(workers.max(2) - 1) * 2.0 - 1.0);
            let count = (connections as f64 / f64::from(workers) * lean.max(0.0)) as u64;
            WorkerCount { pid: 1000 + number, connections: count, requests: count }
        })
        .collect();
    let many = 1.0 + f64::from(workers) / 200.0;
    Sample {
        workers,
        seconds: 4.0,
        intended: connections + failed,
        connections,
        requests: connections,
        errors: Errors { reset: failed, ..Errors::default() },
        latency: (generator != Generator::ClosedWrk).then(|| latencies(dice, law)),
        wrk: (generator == Generator::ClosedWrk).then(|| WrkRun {
            command: vec!["wrk".into(), "-t1".into(), "http://127.0.0.1/".into()],
            output: format!("Running 4s test\n  Requests/sec: {rate:.2} (synthetic)"),
            rate,
            percentiles: vec![(50.0, law.median as u64), (99.0, (law.median * 9.0) as u64)],
        }),
        per_worker,
        cpu: Some(Cpu {
            primary_ns: law
                .primary
                .map(|ns| (ns * many * dice.near_one(0.05) * connections as f64) as u64),
            workers_ns: (3e4 * dice.near_one(0.05) * connections as f64) as u64,
            generator_ns: 2_000_000_000,
            foreign_share: 0.01,
            ..Cpu::default()
        }),
        memory: Some(Memory {
            primary_bytes: law.primary.map(|ns| 4_000_000 + (ns * 500.0) as u64),
            workers_bytes: u64::from(workers) * 3_000_000,
        }),
        schedule: (generator == Generator::Open).then(|| Schedule {
            late: 3,
            sources_moved: Some((law.skew * 100.0) as u32),
            ..Schedule::default()
        }),
        timeline: if disturbed { timeline(dice, law) } else { Vec::new() },
        events: if disturbed {
            let until_ms = Some(2200);
            vec![TimelineEvent { at_ms: 1000, until_ms, what: "disturbed".into() }]
        } else {
            Vec::new()
        },
        ..Sample::default()
    }
}

fn timeline(dice: &mut Dice, law: Law) -> Vec<TimelinePoint> {
    (0..80)
        .map(|step| {
            let at_ms = step * 50;
            let hit = (1000..2200).contains(&at_ms) && law.tail > 50.0;
            let left = (2200u64.saturating_sub(at_ms) * 1_000_000) as f64;
            let worst = if hit { left } else { law.median * law.tail.sqrt() };
            TimelinePoint {
                at_ms,
                step_ms: 50,
                intended: 100,
                completed: 100,
                errors: if hit && law.failing > 1.0 { 2 } else { 0 },
                p50_ns: law.median as u64,
                p99_ns: (worst * 0.8) as u64,
                max_ns: (worst * dice.near_one(0.2)).max(1.0) as u64,
            }
        })
        .collect()
}

fn calibration(dice: &mut Dice) -> Calibration {
    Calibration {
        generator: Generator::Open,
        method: "A null server, made up.".into(),
        rate: 2000.0,
        generator_share: 0.2,
        latency: Some(latencies(dice, law(0.0, 5e4, 4.0, 0.0, None, 0.0))),
        wrk: None,
    }
}
