//! One sample: one engine under one workload, once.
//!
//! Owns: the order of things: start, warm up, read, load, read, stop. Promises: what is read before and
//! after brackets the load and nothing else; the engine is gone when this returns. Never does: judge, or
//! repeat what looks wrong.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::counts;
use crate::data::{Cpu, HistogramError, Memory, Pinning, Sample, TimelineEvent, WorkerCount};
use crate::engine::{Engine, EngineError, Launch, Programs, Running, Setup};
use crate::environment::own_cpus;
use crate::judge::{self, Aside};
use crate::load::{Common, LongLoad, OpenLoad, Seen, Wrk, WrkError, WrkLoad};
use crate::process::{Machine, cpu_ns, main_thread_cpu_ns, own_cpu, resident_bytes, sleeps};
use crate::workload::{Disturbance, Load, Workload};

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(100);
/// When memory is read, as a share of the load.
const LATE_IN_THE_LOAD: f64 = 0.9;
const LONG_OPEN_RATE: f64 = 4_000.0;
const LONG_SOURCES: u32 = 64;

/// A sample that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// wrk.
    #[error(transparent)]
    Wrk(#[from] WrkError),
    /// The generator or /proc.
    #[error("the harness: {0}")]
    Io(#[from] io::Error),
    /// A histogram.
    #[error(transparent)]
    Histogram(#[from] HistogramError),
    /// Nothing was answered.
    #[error("{0}")]
    Nothing(EngineError),
}

/// What all samples of a run have in common.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The programs.
    pub programs: Programs,
    /// Who has which CPUs.
    pub pinning: Pinning,
    /// Length of a load.
    pub length: Duration,
    /// Length of a warm-up.
    pub warmup: Duration,
    /// Seed of the first round's schedules.
    pub seed: u64,
}

/// CPU times and counts at one moment.
#[derive(Debug)]
struct Reading {
    dealers: BTreeMap<u32, u64>,
    main_ns: u64,
    sleeps: u64,
    workers: BTreeMap<u32, u64>,
    counts: Vec<WorkerCount>,
    machine: Machine,
    own: Duration,
    children: Duration,
    at: Instant,
}

impl Reading {
    /// Before a load. Workers are asked first: what their answers cost them is not the load's.
    fn before(running: &Running) -> io::Result<Self> {
        let counts = running.ask();
        Self::take(running, counts)
    }

    /// After it: for the same reason, they are asked last.
    fn after(running: &Running) -> io::Result<Self> {
        let reading = Self::take(running, Vec::new())?;
        Ok(Self { counts: running.ask(), ..reading })
    }

    fn take(running: &Running, counts: Vec<WorkerCount>) -> io::Result<Self> {
        let dealers = running.dealers();
        let main = dealers.first().copied();
        let workers = running.announced();
        let of = |pids: Vec<u32>| pids.into_iter().map(|pid| (pid, cpu_ns(pid))).collect();
        let (own, children) = own_cpu()?;
        Ok(Self {
            machine: Machine::look()?,
            at: Instant::now(),
            main_ns: main.map_or(0, main_thread_cpu_ns),
            sleeps: main.map_or(0, sleeps),
            dealers: of(dealers),
            workers: of(workers),
            counts,
            own,
            children,
        })
    }
}

/// CPU time of processes between two readings; those that are new since count from their start.
fn grown(before: &BTreeMap<u32, u64>, after: &BTreeMap<u32, u64>) -> u64 {
    let grown =
        |(pid, now): (&u32, &u64)| now.saturating_sub(before.get(pid).copied().unwrap_or(0));
    after.iter().map(grown).sum()
}

/// What a generator of either kind saw.
#[derive(Debug)]
enum Result {
    Own(Box<Seen>),
    Wrk(Wrk),
}

/// What the main thread did and saw while the load ran.
#[derive(Debug, Default)]
struct Meanwhile {
    memory: Memory,
    events: Vec<TimelineEvent>,
    error: Option<EngineError>,
}

impl Bench {
    /// Makes one sample.
    ///
    /// # Errors
    /// If the engine does not serve, or a part of the harness fails. What happens to clients is in the sample.
    pub fn sample(
        &self,
        engine: &Engine,
        workload: &Workload,
        round: u32,
    ) -> std::result::Result<Sample, SampleError> {
        let setup = Setup {
            programs: &self.programs,
            workers: workload.info.workers,
            serving: workload.serving,
            sticky: workload.sticky,
            cpus: &self.pinning.subject,
        };
        let mut running = Running::start(engine, &setup)?;
        self.warm_up(&running, workload)?;
        let before = Reading::before(&running)?;
        let seed = self.seed + u64::from(round);
        let (result, meanwhile) = self.load(&mut running, engine, workload, seed)?;
        let after = Reading::after(&running)?;
        running.check()?;
        if let Some(error) = meanwhile.error {
            return Err(error.into());
        }
        let mut sample = Sample {
            engine: engine.info.id.clone(),
            workload: workload.info.id.clone(),
            round,
            workers: u32::try_from(running.announced().len()).unwrap_or(0),
            memory: Some(meanwhile.memory),
            events: meanwhile.events,
            ..Sample::default()
        };
        let counted = counts::between(&before.counts, &after.counts);
        let threads = self.threads(&workload.load);
        let aside = Aside { threads, ..fill(&mut sample, result, &counted, workload)? };
        sample.cpu = Some(cpu(&before, &after, sample.cpu, engine.info.has_primary));
        if sample.connections == 0 && sample.requests == 0 {
            let errors = sample.errors;
            return Err(SampleError::Nothing(
                running.failed(format!("nobody was served ({errors})")),
            ));
        }
        sample.warnings = judge::of_sample(&sample, workload, aside);
        Ok(sample)
    }

    /// So that caches are full and windows have adapted; its figures are nobody's.
    fn warm_up(
        &self,
        running: &Running,
        workload: &Workload,
    ) -> std::result::Result<(), SampleError> {
        match &workload.load {
            Load::Closed { .. } => {
                self.wrk(running, &workload.load, self.warmup).run(|| {})?;
            }
            Load::Open { .. } => {
                if let Some(load) = self.open(running, workload, self.seed ^ 1, self.warmup) {
                    load.run()?;
                }
            }
            // Opening is the warm-up.
            Load::Long { .. } => {}
        }
        Ok(())
    }

    /// Of the generator.
    fn threads(&self, load: &Load) -> u32 {
        let cpus = match self.pinning.generator.len() {
            0 => own_cpus().len(),
            pinned => pinned,
        };
        match load {
            Load::Closed { every_cpu: true, .. } => u32::try_from(cpus).unwrap_or(1),
            Load::Closed { .. } | Load::Open { .. } | Load::Long { .. } => 1,
        }
    }

    fn wrk(&self, running: &Running, load: &Load, length: Duration) -> WrkLoad {
        let (clients, keep_alive) = match load {
            Load::Closed { clients, keep_alive, .. } => (*clients, *keep_alive),
            Load::Open { .. } | Load::Long { .. } => (1, false),
        };
        let whole = length.as_secs() + u64::from(length.subsec_nanos() > 0);
        WrkLoad {
            url: format!("http://{}/", running.address()),
            clients,
            seconds: u32::try_from(whole.max(1)).unwrap_or(u32::MAX),
            keep_alive,
            threads: self.threads(load),
            patience: PATIENCE,
            cpus: self.pinning.generator.clone(),
        }
    }

    fn common(&self, running: &Running, sources: u32, seed: u64, length: Duration) -> Common {
        Common {
            target: running.address(),
            length,
            sources,
            patience: PATIENCE.max(self.length + Duration::from_secs(1)),
            seed,
            timeline: None,
            begun: None,
        }
    }

    fn open(
        &self,
        running: &Running,
        workload: &Workload,
        seed: u64,
        length: Duration,
    ) -> Option<OpenLoad> {
        let Load::Open { rate, arrivals, kinds, sources, at_once } = &workload.load else {
            return None;
        };
        Some(OpenLoad {
            common: self.common(running, *sources, seed, length),
            rate: *rate,
            arrivals: *arrivals,
            kinds: kinds.clone(),
            open_max: *at_once,
            sticky: workload.sticky,
        })
    }

    fn load(
        &self,
        running: &mut Running,
        engine: &Engine,
        workload: &Workload,
        seed: u64,
    ) -> std::result::Result<(Result, Meanwhile), SampleError> {
        match &workload.load {
            Load::Closed { .. } => {
                let load = self.wrk(running, &workload.load, self.length);
                let mut meanwhile = Meanwhile::default();
                let wrk = load.run(|| {
                    let begin = Instant::now();
                    until(begin, self.length.mul_f64(LATE_IN_THE_LOAD));
                    meanwhile.memory = memory(running);
                })?;
                Ok((Result::Wrk(wrk), meanwhile))
            }
            Load::Open { .. } => {
                let Some(mut load) = self.open(running, workload, seed, self.length) else {
                    return Err(io::Error::other("an open loop").into());
                };
                load.common.timeline = workload.has_timeline().then_some(STEP);
                let (sender, begun) = channel();
                load.common.begun = Some(sender);
                self.own(running, engine, workload, &begun, move || load.run())
            }
            Load::Long { connections, chatty, burst, messages_per_second, cpu_us } => {
                let (sender, begun) = channel();
                let common = self.common(running, LONG_SOURCES, seed, self.length);
                let load = LongLoad {
                    common: Common { begun: Some(sender), ..common },
                    connections: *connections,
                    open_rate: LONG_OPEN_RATE.min(*connections as f64 * 4.0),
                    chatty: *chatty,
                    burst: *burst,
                    messages_per_second: *messages_per_second,
                    cpu_us: *cpu_us,
                };
                self.own(running, engine, workload, &begun, move || load.run())
            }
        }
    }

    /// The generator on a thread of its own, and this one for what is done meanwhile: processes must be
    /// started by a thread that stays.
    fn own(
        &self,
        running: &mut Running,
        engine: &Engine,
        workload: &Workload,
        begun: &Receiver<Instant>,
        run: impl FnOnce() -> io::Result<Seen> + Send,
    ) -> std::result::Result<(Result, Meanwhile), SampleError> {
        thread::scope(|scope| {
            let generator = scope.spawn(run);
            let mut meanwhile = Meanwhile::default();
            // It ends without a word only if it has failed.
            if let Ok(begin) = begun.recv() {
                self.disturb(running, engine, workload, begin, &mut meanwhile);
                until(begin, self.length.mul_f64(LATE_IN_THE_LOAD));
                meanwhile.memory = memory(running);
            }
            let seen = generator.join().map_err(|_| io::Error::other("the generator panicked"))?;
            Ok((Result::Own(Box::new(seen?)), meanwhile))
        })
    }

    fn disturb(
        &self,
        running: &mut Running,
        engine: &Engine,
        workload: &Workload,
        begin: Instant,
        meanwhile: &mut Meanwhile,
    ) {
        let done = match workload.disturbance {
            Disturbance::None => Ok(()),
            Disturbance::Block => {
                until(begin, self.length / 4);
                let event = block(running, begin, self.length / 2);
                meanwhile.events.extend(event);
                Ok(())
            }
            Disturbance::Kill(every) => self.kill(running, every, begin, &mut meanwhile.events),
            Disturbance::Reload => {
                until(begin, self.length / 10);
                let at_ms = milliseconds(begin.elapsed());
                let done = if engine.launch == Launch::Reuseport {
                    running.replace_workers()
                } else {
                    running.reload()
                };
                let until_ms = Some(milliseconds(begin.elapsed()));
                let what = "all workers replaced".to_owned();
                meanwhile.events.push(TimelineEvent { at_ms, until_ms, what });
                done
            }
        };
        meanwhile.error = done.err();
    }

    fn kill(
        &self,
        running: &mut Running,
        every: Duration,
        begin: Instant,
        events: &mut Vec<TimelineEvent>,
    ) -> std::result::Result<(), EngineError> {
        let mut at = every;
        let mut number = 0;
        while at < self.length.mul_f64(LATE_IN_THE_LOAD) {
            until(begin, at);
            let at_ms = milliseconds(begin.elapsed());
            if let Some(pid) = running.kill_worker(number)? {
                let what = format!("worker {pid} killed");
                events.push(TimelineEvent { at_ms, until_ms: None, what });
            }
            number += 1;
            at += every;
        }
        Ok(())
    }
}

/// Sleeps until so long after `begin`.
fn until(begin: Instant, after: Duration) {
    thread::sleep((begin + after).saturating_duration_since(Instant::now()));
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One request that blocks whoever gets it.
fn block(running: &Running, begin: Instant, time: Duration) -> Option<TimelineEvent> {
    let at_ms = milliseconds(begin.elapsed());
    let wait = milliseconds(time);
    let mut stream = TcpStream::connect(running.address()).ok()?;
    stream.set_read_timeout(Some(time + PATIENCE)).ok()?;
    let path = format!("/wait/{wait}");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let pid = answer.lines().last().unwrap_or_default().to_owned();
    let what = format!("worker {pid} blocked for {wait} ms");
    Some(TimelineEvent { at_ms, until_ms: Some(milliseconds(begin.elapsed())), what })
}

fn memory(running: &Running) -> Memory {
    let dealers = running.dealers();
    let sum = |pids: &[u32]| pids.iter().map(|pid| resident_bytes(*pid)).sum();
    Memory {
        primary_bytes: (!dealers.is_empty()).then(|| sum(&dealers)),
        workers_bytes: sum(&running.announced()),
    }
}

/// Puts what the generator saw into the sample. The generator's CPU time, if it is known, stands in `cpu`.
fn fill(
    sample: &mut Sample,
    result: Result,
    counted: &[WorkerCount],
    workload: &Workload,
) -> std::result::Result<Aside, SampleError> {
    let steady = workload.disturbance == Disturbance::None;
    let all = u32::try_from(counted.len()).ok() == Some(sample.workers);
    let sum = counted.iter().map(|worker| worker.connections).sum();
    let mut aside = Aside { counted: (steady && all).then_some(sum), ..Aside::default() };
    match result {
        Result::Wrk(wrk) => {
            let keep_alive = matches!(workload.load, Load::Closed { keep_alive: true, .. });
            sample.seconds = wrk.seconds;
            sample.requests = wrk.requests;
            sample.connections = if keep_alive { sum } else { wrk.requests };
            sample.intended = wrk.requests + wrk.errors.total();
            sample.errors = wrk.errors;
            sample.wrk = Some(wrk.run);
            sample.per_worker = counted.to_vec();
        }
        Result::Own(seen) => {
            aside.out_of_ports = seen.out_of_ports;
            if matches!(workload.load, Load::Long { .. }) {
                // Its connections include those that were lost.
                aside.counted = None;
            }
            sample.seconds = seen.seconds;
            sample.requests = seen.requests;
            sample.connections = seen.connections;
            sample.intended = seen.intended;
            sample.errors = seen.errors;
            sample.latency = Some(seen.recorder.latencies()?);
            sample.schedule = Some(seen.schedule);
            sample.timeline = seen.timeline;
            sample.per_worker = seen
                .per_worker
                .into_iter()
                .map(|(pid, (connections, requests))| WorkerCount { pid, connections, requests })
                .collect();
            // A worker that got nothing answered nobody, but it was there.
            for worker in counted {
                if !sample.per_worker.iter().any(|known| known.pid == worker.pid) {
                    let nothing = WorkerCount { pid: worker.pid, connections: 0, requests: 0 };
                    sample.per_worker.push(nothing);
                }
            }
            sample.cpu = Some(Cpu { generator_ns: seen.cpu_ns, ..Cpu::default() });
        }
    }
    Ok(aside)
}

fn cpu(before: &Reading, after: &Reading, known: Option<Cpu>, has_primary: bool) -> Cpu {
    let primary = grown(&before.dealers, &after.dealers);
    let workers_ns = grown(&before.workers, &after.workers);
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let children = after.children.saturating_sub(before.children);
    let generator_ns = known.map_or_else(|| nanoseconds(children), |cpu| cpu.generator_ns);
    let own = after.own.saturating_sub(before.own);
    let ours = Duration::from_nanos(primary + workers_ns) + children + own;
    let wall = after.at.saturating_duration_since(before.at);
    let foreign_share = after.machine.foreign_share(&before.machine, wall, ours);
    Cpu {
        primary_ns: has_primary.then_some(primary),
        primary_main_ns: has_primary.then(|| after.main_ns.saturating_sub(before.main_ns)),
        primary_sleeps: has_primary.then(|| after.sleeps.saturating_sub(before.sleeps)),
        workers_ns,
        generator_ns,
        foreign_share,
    }
}
