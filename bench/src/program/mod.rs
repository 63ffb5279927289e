//! The same comparison for a program of the user's own: which policy suits it.
//!
//! Owns: the plan (every policy in turn, round after round, at its peak and at one common rate).
//! Promises: each policy is started afresh and gone before the next; one that does not work costs only its
//! own row; every client's request is the one that was asked for. Never does: advise (`report`).

mod subject;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::data::{
    Absent, Cpu, EngineInfo, EngineKind, Figure, Generator, HistogramError, Memory, Plan, Reason,
    Results, SCHEMA, Sample, WorkerCount, WorkerKind, WorkloadInfo,
};
use crate::engine::{Programs, Serving};
use crate::environment;
use crate::judge::{self, Aside};
use crate::load::{
    Arrivals, Common, OpenLoad, RequestKind, WrkError, WrkLoad, raise_descriptor_limit,
};
use crate::process;
use crate::workload::{Disturbance, Load, Workload};

pub use subject::SubjectError;
use subject::{Reading, Subject};

/// The ids of the two loads.
pub(crate) const PEAK: &str = "peak";
pub(crate) const PACED: &str = "paced";

/// wrk's clients for each worker, and most of all.
const CLIENTS_PER_WORKER: u32 = 16;
const CLIENTS_MAX: u32 = 1_024;
/// The common rate is this share of the peak that was found first.
const SHARE_OF_PEAK: f64 = 0.6;
/// Where no peak can be found: without wrk, or when nothing served it.
const RATE_WITHOUT_PEAK: f64 = 200.0;
/// Client addresses of the paced load, so that a policy by address has something to choose from.
const SOURCES: u32 = 256;
const OPEN_MAX: usize = 4_000;
const PATIENCE: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_millis(500);
const SEED: u64 = 4_711;

/// How connections come to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// croupier, the least loaded worker.
    Least,
    /// croupier, the next worker in turn.
    Rr,
    /// croupier, by the client's address.
    Ip,
    /// croupier's workers share one socket.
    Shared,
    /// croupier's workers have SO_REUSEPORT sockets.
    Reuseport,
    /// The program alone, without croupier.
    Single,
}

impl Policy {
    /// As croupier's -p and the results call it.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Least => "least",
            Self::Rr => "rr",
            Self::Ip => "ip",
            Self::Shared => "shared",
            Self::Reuseport => "reuseport",
            Self::Single => "single",
        }
    }

    const fn about(self) -> &'static str {
        match self {
            Self::Least => "each connection to the worker with the least load",
            Self::Rr => "each connection to the next worker in turn",
            Self::Ip => "the client's address chooses the worker",
            Self::Shared => "the workers share one listening socket; nobody deals",
            Self::Reuseport => "each worker has an SO_REUSEPORT socket; nobody deals",
            Self::Single => "one process of the program, without croupier",
        }
    }

    fn info(self) -> EngineInfo {
        let alone = self == Self::Single;
        EngineInfo {
            id: self.id().to_owned(),
            name: if alone { "one process".into() } else { format!("croupier {}", self.id()) },
            about: self.about().to_owned(),
            kind: if alone { EngineKind::Single } else { EngineKind::Croupier },
            worker: WorkerKind::Own,
            has_primary: !alone,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The program and its arguments.
    pub command: Vec<std::ffi::OsString>,
    /// What clients ask for: `/`.
    pub path: String,
    /// Workers under croupier.
    pub workers: u32,
    /// Which policies, in this order.
    pub policies: Vec<Policy>,
    /// Rounds.
    pub rounds: u32,
    /// Length of each load, seconds.
    pub seconds: f64,
    /// The common rate, connections per second; `None`: found out.
    pub rate: Option<f64>,
    /// Flags for `croupier run`, as they are.
    pub run_flags: Vec<std::ffi::OsString>,
    /// The croupier to use, and this program.
    pub programs: Programs,
    /// The command line, for the results.
    pub words: Vec<String>,
}

/// A comparison that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Under no policy a client was answered.
    #[error("{0}")]
    NothingWorks(SubjectError),
    /// The system refused.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// One load of one policy that failed.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Wrk(#[from] WrkError),
    #[error("the harness: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Histogram(#[from] HistogramError),
    #[error(transparent)]
    Subject(#[from] SubjectError),
}

impl Request {
    /// Runs it. `say` is told what is under way, a line at a time; `stop` ends it before the next policy.
    ///
    /// # Errors
    /// If the program works under no policy, or the system refuses.
    pub fn run(
        &self,
        stop: &AtomicBool,
        mut say: impl FnMut(&str),
    ) -> Result<Results, ProgramError> {
        let began = Instant::now();
        let io = |what| move |error| ProgramError::Io { what, error };
        raise_descriptor_limit().map_err(io("the limit of descriptors"))?;
        let pinning = environment::pin();
        let mut results = self.empty(environment::look(&self.programs, pinning.clone()));
        say("looking at the program");
        let (target, rate) = self.look(&pinning.subject, &pinning.generator)?;
        say(&format!(
            "{target}: {} rounds of {} policies, {rate:.0} connections/s in the paced load",
            self.rounds,
            self.policies.len()
        ));
        let paced = self.paced(rate);
        let peak = self.peak();
        results.workloads = vec![peak.info.clone(), paced.info.clone()];
        results.plan.workloads = vec![PEAK.to_owned(), PACED.to_owned()];
        self.leave_out(&mut results);
        let turns = self.policies.len().max(1);
        for round in 0..self.rounds {
            let turn = usize::try_from(round).unwrap_or(0) % turns;
            let (last, first) = self.policies.split_at(turn);
            for policy in first.iter().chain(last) {
                if stop.load(Ordering::Relaxed) {
                    results.absent.push(absent(*policy, round, Reason::Interrupted));
                    continue;
                }
                say(&format!("round {} of {}: {}", round + 1, self.rounds, policy.id()));
                let cpus = (&*pinning.subject, &*pinning.generator);
                let made = self.turn(*policy, round, target, (&peak, &paced), cpus, &mut results);
                if let Err(error) = made {
                    let error = error.to_string();
                    results.absent.push(absent(*policy, round, Reason::Failed { error }));
                }
            }
        }
        results.cell_warnings = judge::of_cells(&results);
        results.plan.took_seconds = Some(began.elapsed().as_secs_f64());
        Ok(results)
    }

    fn empty(&self, environment: crate::data::Environment) -> Results {
        let ids = || self.policies.iter().map(|policy| policy.id().to_owned());
        Results {
            schema: SCHEMA,
            synthetic: false,
            warnings: judge::of_run(&environment),
            environment,
            plan: Plan {
                name: "program".to_owned(),
                engines: ids().collect(),
                workloads: Vec::new(),
                rounds: self.rounds,
                seconds: self.seconds,
                warmup_seconds: WARM_UP.as_secs_f64(),
                // What somebody compares who wonders whether dealing is worth it.
                baseline: Policy::Reuseport.id().to_owned(),
                node_baseline: Policy::Reuseport.id().to_owned(),
                command: self.words.clone(),
                took_seconds: None,
            },
            engines: self.policies.iter().map(|policy| policy.info()).collect(),
            workloads: Vec::new(),
            calibrations: Vec::new(),
            samples: Vec::new(),
            absent: Vec::new(),
            cell_warnings: Vec::new(),
        }
    }

    /// What cannot be run by nature, or for lack of wrk.
    fn leave_out(&self, results: &mut Results) {
        let no_wrk = process::find("wrk".as_ref()).is_none();
        for policy in &self.policies {
            let why = if no_wrk {
                Reason::NotInstalled { program: "wrk".to_owned() }
            } else if *policy == Policy::Ip {
                let because = "wrk's clients have one address, which is one worker's";
                Reason::NotApplicable { because: because.to_owned() }
            } else {
                continue;
            };
            results.absent.push(Absent {
                engine: policy.id().to_owned(),
                workload: Some(PEAK.to_owned()),
                round: None,
                why,
            });
        }
    }

    /// Starts the program once, under the first policy that works, to learn where it listens and what it
    /// can do.
    fn look(&self, cpus: &[u32], generator: &[u32]) -> Result<(SocketAddr, f64), ProgramError> {
        let attempt = |policy| {
            let subject = Subject::start(self, policy, None, cpus)?;
            let rate = self.rate.unwrap_or_else(|| self.rate_for(&subject, generator));
            Ok((subject.target(), rate))
        };
        let (first, others) = self.looking();
        attempt(first)
            .or_else(|error| others.into_iter().find_map(|one| attempt(one).ok()).ok_or(error))
            .map_err(ProgramError::NothingWorks)
    }

    /// Under croupier the program's address need not be known.
    fn looking(&self) -> (Policy, Vec<Policy>) {
        let named = self.policies.iter().copied().filter(|policy| *policy != Policy::Single);
        let mut order = named.chain([Policy::Least, Policy::Shared]);
        let first = order.next().unwrap_or(Policy::Least);
        let mut others = Vec::new();
        for policy in order {
            if policy != first && !others.contains(&policy) {
                others.push(policy);
            }
        }
        (first, others)
    }

    fn rate_for(&self, subject: &Subject, generator: &[u32]) -> f64 {
        if process::find("wrk".as_ref()).is_none() {
            return RATE_WITHOUT_PEAK;
        }
        match self.wrk(subject.target(), Duration::from_secs(1), generator).run(|| {}) {
            Ok(seen) if seen.seconds > 0.0 && seen.requests > 0 => {
                (SHARE_OF_PEAK * seen.run.rate).max(1.0).round()
            }
            Ok(_) | Err(_) => RATE_WITHOUT_PEAK,
        }
    }

    fn clients(&self) -> u32 {
        self.workers.saturating_mul(CLIENTS_PER_WORKER).min(CLIENTS_MAX)
    }

    fn wrk(&self, target: SocketAddr, length: Duration, cpus: &[u32]) -> WrkLoad {
        let whole = length.as_secs() + u64::from(length.subsec_nanos() > 0);
        WrkLoad {
            url: format!("http://{target}{}", self.path),
            clients: self.clients(),
            seconds: u32::try_from(whole.max(1)).unwrap_or(u32::MAX),
            keep_alive: false,
            threads: 1,
            patience: PATIENCE,
            cpus: cpus.to_vec(),
        }
    }

    fn open(&self, target: SocketAddr, rate: f64, length: Duration, seed: u64) -> OpenLoad {
        OpenLoad {
            common: Common {
                target,
                length,
                // Only 127.0.0.0/8 has addresses to spare.
                sources: if target.is_ipv4() { SOURCES } else { 0 },
                patience: PATIENCE,
                seed,
                timeline: None,
                begun: None,
            },
            rate,
            arrivals: Arrivals::Random,
            kinds: vec![RequestKind { path: self.path.clone(), weight: 1.0 }],
            open_max: OPEN_MAX,
            sticky: false,
        }
    }

    /// One policy in one round: both loads on one start.
    fn turn(
        &self,
        policy: Policy,
        round: u32,
        target: SocketAddr,
        (peak, paced): (&Workload, &Workload),
        (subject_cpus, generator): (&[u32], &[u32]),
        results: &mut Results,
    ) -> Result<(), LoadError> {
        let subject = Subject::start(self, policy, Some(target), subject_cpus)?;
        let rate = paced.info.rate.unwrap_or(RATE_WITHOUT_PEAK);
        self.open(target, rate, WARM_UP, SEED ^ 1).run()?;
        let with_wrk = !results
            .absent
            .iter()
            .any(|absent| absent.engine == policy.id() && absent.workload.as_deref() == Some(PEAK));
        let length = Duration::from_secs_f64(self.seconds);
        let mut made = Vec::new();
        // The paced load first: the other leaves queues and windows as a flood does.
        let before = subject.read()?;
        let seen = self.open(target, rate, length, SEED + u64::from(round)).run()?;
        let mut sample = Sample {
            seconds: seen.seconds,
            intended: seen.intended,
            connections: seen.connections,
            requests: seen.requests,
            errors: seen.errors,
            latency: Some(seen.recorder.latencies()?),
            schedule: Some(seen.schedule),
            ..Sample::default()
        };
        complete(&mut sample, &before, &subject.read()?, policy, Some(seen.cpu_ns));
        let aside = Aside { out_of_ports: seen.out_of_ports, ..Aside::default() };
        sample.warnings = judge::of_sample(&sample, paced, aside);
        made.push((PACED, sample));
        if with_wrk {
            let before = subject.read()?;
            let seen = self.wrk(target, length, generator).run(|| {})?;
            let mut sample = Sample {
                seconds: seen.seconds,
                intended: seen.requests + seen.errors.total(),
                connections: seen.requests,
                requests: seen.requests,
                errors: seen.errors,
                wrk: Some(seen.run),
                ..Sample::default()
            };
            complete(&mut sample, &before, &subject.read()?, policy, None);
            sample.warnings = judge::of_sample(&sample, peak, Aside::default());
            made.push((PEAK, sample));
        }
        for (workload, mut sample) in made {
            sample.engine = policy.id().to_owned();
            sample.workload = workload.to_owned();
            sample.round = round;
            sample.workers = if policy == Policy::Single { 1 } else { self.workers };
            results.samples.push(sample);
        }
        Ok(())
    }

    fn peak(&self) -> Workload {
        let clients = self.clients();
        let method = format!(
            "wrk -t1 -c{clients}, a closed loop with a new connection for each request of {}",
            self.path
        );
        let figures = [Figure::ConnectionRate, Figure::Cpu, Figure::Memory, Figure::Errors];
        self.workload(PEAK, "as much as it can take", method, &figures, None)
    }

    fn paced(&self, rate: f64) -> Workload {
        let method = format!(
            "open loop, {rate:.0} connections/s at random moments from {SOURCES} addresses, each with one \
             request of {}; latency from the intended start",
            self.path
        );
        let figures = [Figure::Latency, Figure::Balance, Figure::Cpu, Figure::Errors];
        self.workload(PACED, "at a steady rate", method, &figures, Some(rate))
    }

    fn workload(
        &self,
        id: &str,
        name: &str,
        method: String,
        figures: &[Figure],
        rate: Option<f64>,
    ) -> Workload {
        let generator = if rate.is_some() { Generator::Open } else { Generator::ClosedWrk };
        let clients = self.clients();
        Workload {
            info: WorkloadInfo {
                id: id.to_owned(),
                name: name.to_owned(),
                family: id.to_owned(),
                method,
                generator,
                workers: self.workers,
                clients: rate.is_none().then_some(clients),
                rate,
                load: None,
                figures: figures.to_vec(),
            },
            load: match rate {
                None => Load::Closed { clients, keep_alive: false, every_cpu: false },
                Some(rate) => Load::Open {
                    rate,
                    arrivals: Arrivals::Random,
                    kinds: vec![RequestKind { path: self.path.clone(), weight: 1.0 }],
                    sources: SOURCES,
                    at_once: OPEN_MAX,
                },
            },
            serving: Serving::OneByOne,
            disturbance: Disturbance::None,
            sticky: false,
            engines: Vec::new(),
        }
    }
}

fn absent(policy: Policy, round: u32, why: Reason) -> Absent {
    Absent { engine: policy.id().to_owned(), workload: None, round: Some(round), why }
}

/// What two readings say of the time between them.
fn complete(
    sample: &mut Sample,
    before: &Reading,
    after: &Reading,
    policy: Policy,
    generator_ns: Option<u64>,
) {
    let deals = policy != Policy::Single;
    let primary = after.primary_ns.saturating_sub(before.primary_ns);
    let workers_ns = after.workers_since(before);
    let generator_ns = generator_ns.unwrap_or_else(|| after.children_since(before));
    sample.cpu = Some(Cpu {
        primary_ns: deals.then_some(primary),
        workers_ns,
        generator_ns,
        foreign_share: after.foreign_since(before, primary.saturating_add(workers_ns)),
        ..Cpu::default()
    });
    sample.memory = Some(Memory {
        primary_bytes: deals.then_some(after.primary_bytes),
        workers_bytes: after.workers_bytes,
    });
    sample.per_worker = after
        .claims_since(before)
        .into_iter()
        .map(|(pid, connections)| WorkerCount { pid, connections, requests: connections })
        .collect();
}
