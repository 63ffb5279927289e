//! A run: engines × workloads × rounds.
//!
//! Owns: the plan, the order and the file. Promises: within a round every engine runs once under a
//! workload before any runs again, and the order begins one further each round and turns round;
//! `results.json` is whole after every sample; an engine that fails costs its own cell only. Never does: present anything but
//! progress.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::calibrate;
use crate::data::{Absent, Plan, Reason, Results, ResultsError, SCHEMA};
use crate::engine::{self, BASELINE, Engine, NODE_BASELINE, Programs};
use crate::environment;
use crate::judge;
use crate::load::raise_descriptor_limit;
use crate::measure::{Bench, SampleError};
use crate::workload::{self, Load, Workload};

/// Longest warm-up, in seconds; half of a load that is shorter than twice as long.
const WARMUP: f64 = 0.5;
/// Rounds in which an engine may fail under a workload before it is left out there.
const FAILURES_MAX: usize = 2;
const SEED: u64 = 20_210_000;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The named plan to start from.
    pub preset: Preset,
    /// Engines by id instead of the plan's.
    pub engines: Vec<String>,
    /// Workloads by id, or by family, instead of the plan's.
    pub workloads: Vec<String>,
    /// Instead of the plan's.
    pub rounds: Option<u32>,
    /// Instead of the plan's.
    pub seconds: Option<f64>,
    /// Where the results go.
    pub out: PathBuf,
    /// The programs.
    pub programs: Programs,
    /// The command line, for the results.
    pub command: Vec<String>,
}

/// A named plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// 7 engines × 6 workloads × 5 rounds × 4 s.
    Bench,
    /// About two minutes.
    Quick,
    /// Everything: 5 rounds × 2 s.
    Full,
}

/// A run that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A name that nobody has.
    #[error("no {what} is called {name:?}: there are {known}")]
    Unknown {
        /// Engine or workload.
        what: &'static str,
        /// As it was given.
        name: String,
        /// All that there are.
        known: String,
    },
    /// The results cannot be written.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The system refused.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        error: std::io::Error,
    },
    /// A generator does not work at all.
    #[error("calibration: {0}")]
    Calibration(SampleError),
}

const BENCH_WORKLOADS: [&str; 6] = ["short", "short-paced", "cpu", "tail-70", "long-many", "stall"];
const QUICK_WORKLOADS: [&str; 3] = ["short", "tail-70", "stall"];
const QUICK_ENGINES: [&str; 5] = ["least", "rr", "shared", BASELINE, "haproxy"];
/// Engines of a workload that `make bench` compares.
const BENCH_ENGINES: usize = 7;

/// A cell that is to run.
#[derive(Debug, Clone, Copy)]
struct Cell<'a> {
    workload: &'a Workload,
    engine: &'a Engine,
    round: u32,
}

/// What runs, chosen from the catalogues.
#[derive(Debug)]
struct Chosen {
    workloads: Vec<Workload>,
    engines: Vec<Engine>,
    /// Engines that were named run everywhere; else each workload has its own.
    named: bool,
    per_workload: usize,
}

impl Request {
    fn choose(&self) -> Result<Chosen, RunError> {
        let catalogue = workload::catalogue(environment::subject_cpus());
        let workloads = self.choose_workloads(catalogue)?;
        let all = engine::catalogue();
        let (named, wanted): (bool, Vec<String>) = match (self.engines.is_empty(), self.preset) {
            (false, _) => (true, self.engines.clone()),
            (true, Preset::Quick) => (true, QUICK_ENGINES.map(str::to_owned).to_vec()),
            (true, Preset::Bench | Preset::Full) => {
                let per = self.per_workload();
                let ids = workloads.iter().flat_map(|w| w.engines.iter().take(per));
                (false, ids.map(|id| (*id).to_owned()).collect())
            }
        };
        for name in &wanted {
            if !all.iter().any(|engine| engine.info.id == *name) {
                let known = all.iter().map(|e| e.info.id.as_str()).collect::<Vec<_>>().join(", ");
                return Err(RunError::Unknown { what: "engine", name: name.clone(), known });
            }
        }
        let engines = all.into_iter().filter(|engine| wanted.contains(&engine.info.id)).collect();
        Ok(Chosen { workloads, engines, named, per_workload: self.per_workload() })
    }

    fn choose_workloads(&self, all: Vec<Workload>) -> Result<Vec<Workload>, RunError> {
        let wanted: Vec<&str> = match (self.workloads.is_empty(), self.preset) {
            (false, _) => self.workloads.iter().map(String::as_str).collect(),
            (true, Preset::Bench) => BENCH_WORKLOADS.to_vec(),
            (true, Preset::Quick) => QUICK_WORKLOADS.to_vec(),
            (true, Preset::Full) => return Ok(all),
        };
        let is = |w: &Workload, name: &str| w.info.id == name || w.info.family == name;
        if let Some(name) = wanted.iter().find(|name| !all.iter().any(|w| is(w, name))) {
            let known = all.iter().map(|w| w.info.id.as_str()).collect::<Vec<_>>().join(", ");
            return Err(RunError::Unknown { what: "workload", name: (*name).to_owned(), known });
        }
        Ok(all.into_iter().filter(|w| wanted.iter().any(|name| is(w, name))).collect())
    }

    const fn per_workload(&self) -> usize {
        match self.preset {
            Preset::Bench | Preset::Quick => BENCH_ENGINES,
            Preset::Full => usize::MAX,
        }
    }

    fn plan(&self, chosen: &Chosen) -> Plan {
        let (name, rounds, seconds) = match self.preset {
            Preset::Bench => ("bench", 5, 4.0),
            Preset::Quick => ("quick", 2, 2.0),
            Preset::Full => ("full", 5, 2.0),
        };
        let own = !self.engines.is_empty() || !self.workloads.is_empty();
        Plan {
            name: if own { "own" } else { name }.to_owned(),
            engines: chosen.engines.iter().map(|engine| engine.info.id.clone()).collect(),
            workloads: chosen.workloads.iter().map(|w| w.info.id.clone()).collect(),
            rounds: self.rounds.unwrap_or(rounds),
            seconds: self.seconds.unwrap_or(seconds),
            warmup_seconds: self.seconds.unwrap_or(seconds).min(2.0 * WARMUP) / 2.0,
            baseline: BASELINE.to_owned(),
            node_baseline: NODE_BASELINE.to_owned(),
            command: self.command.clone(),
            took_seconds: None,
        }
    }

    /// Runs it; the results are in the folder, and returned.
    ///
    /// # Errors
    /// If a name is unknown, a generator does not work or the folder cannot be written.
    pub fn run(&self) -> Result<Results, RunError> {
        let began = Instant::now();
        let chosen = self.choose()?;
        let io = |what: &str| {
            let what = what.to_owned();
            move |error| RunError::Io { what, error }
        };
        std::fs::create_dir_all(&self.out).map_err(io(&self.out.display().to_string()))?;
        raise_descriptor_limit().map_err(io("the limit of descriptors"))?;
        let stop = interrupts().map_err(io("signals"))?;
        let pinning = environment::pin();
        let environment = environment::look(&self.programs, pinning.clone());
        let plan = self.plan(&chosen);
        let bench = Bench {
            programs: self.programs.clone(),
            pinning,
            length: Duration::from_secs_f64(plan.seconds),
            warmup: Duration::from_secs_f64(plan.warmup_seconds),
            seed: SEED,
        };
        let mut results = Results {
            schema: SCHEMA,
            synthetic: false,
            warnings: judge::of_run(&environment),
            environment,
            plan,
            engines: chosen.engines.iter().map(|engine| engine.info.clone()).collect(),
            workloads: chosen.workloads.iter().map(|w| w.info.clone()).collect(),
            calibrations: Vec::new(),
            samples: Vec::new(),
            absent: Vec::new(),
            cell_warnings: Vec::new(),
        };
        let cells = chosen.cells(&self.programs, &mut results);
        calibrate(&bench, &mut results)?;
        results.write(&self.out)?;
        measure(&bench, &cells, &stop, &self.out, &mut results)?;
        results.plan.took_seconds = Some(began.elapsed().as_secs_f64());
        results.write(&self.out)?;
        Ok(results)
    }
}

/// True after INT or TERM.
fn interrupts() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop)?;
    Ok(stop)
}

/// Sets `stop` at INT or TERM; a second one ends the program as if nobody listened.
///
/// # Errors
/// If the system refuses.
pub fn stop_on_signals(stop: &Arc<AtomicBool>) -> std::io::Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order: the first signal finds the flag unset.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(stop))?;
        signal_hook::flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

fn calibrate(bench: &Bench, results: &mut Results) -> Result<(), RunError> {
    let open = calibrate::open(bench.length).map_err(RunError::Calibration)?;
    results.calibrations.push(open);
    // Without wrk the closed loops cannot run; each of their cells says so.
    if crate::process::find("wrk".as_ref()).is_some() {
        let wrk = calibrate::wrk(bench.length, &bench.pinning.generator);
        results.calibrations.push(wrk.map_err(RunError::Calibration)?);
    }
    Ok(())
}

impl Chosen {
    /// The cells in the order in which they run; what does not is said in the results.
    fn cells<'a>(&'a self, programs: &Programs, results: &mut Results) -> Vec<Cell<'a>> {
        let mut all = Vec::new();
        let no_wrk = crate::process::find("wrk".as_ref()).is_none();
        let mut absent = |engine: &Engine, workload: Option<&Workload>, why: Reason| {
            results.absent.push(Absent {
                engine: engine.info.id.clone(),
                workload: workload.map(|w| w.info.id.clone()),
                round: None,
                why,
            });
        };
        let mut there = Vec::new();
        for engine in &self.engines {
            match engine.missing(programs) {
                Some(why) => absent(engine, None, why),
                None => there.push(engine),
            }
        }
        for workload in &self.workloads {
            let mut here = Vec::new();
            for engine in &there {
                let planned = workload.engines.iter().take(self.per_workload);
                let left_out = !self.named && !planned.copied().any(|id| id == engine.info.id);
                let because = workload
                    .excludes(engine)
                    .or_else(|| left_out.then_some("the plan leaves it out here"));
                let closed = matches!(workload.load, Load::Closed { .. });
                match because {
                    Some(because) => {
                        let because = because.to_owned();
                        absent(engine, Some(workload), Reason::NotApplicable { because });
                    }
                    None if closed && no_wrk => {
                        let program = "wrk".to_owned();
                        absent(engine, Some(workload), Reason::NotInstalled { program });
                    }
                    None => here.push(*engine),
                }
            }
            for round in 0..results.plan.rounds {
                let order = order(&here, round).into_iter();
                all.extend(order.map(|engine| Cell { workload, engine, round }));
            }
        }
        // All workloads of a round before the next round: what changes over minutes hits all alike.
        all.sort_by_key(|cell| cell.round);
        all
    }
}

/// Begins one further each round, every other round backwards: none always runs first, or after the same
/// other one.
fn order<T: Copy>(all: &[T], round: u32) -> Vec<T> {
    let turn = usize::try_from(round).unwrap_or(0) % all.len().max(1);
    let (last, first) = all.split_at(turn);
    let mut order: Vec<T> = first.iter().chain(last).copied().collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// What a sample takes, about, in ms: for the time left.
fn estimate(bench: &Bench, workload: &Workload) -> u64 {
    let overhead = match &workload.load {
        Load::Closed { .. } => Duration::from_millis(1_300),
        Load::Open { .. } => Duration::from_millis(900),
        Load::Long { .. } => Duration::from_millis(1_700),
    };
    let workers = Duration::from_millis(10) * workload.info.workers;
    u64::try_from((bench.length + overhead + workers).as_millis()).unwrap_or(u64::MAX)
}

/// A bar on a terminal, lines elsewhere.
#[derive(Debug)]
struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    fn new(total_ms: u64) -> Self {
        let bar = ProgressBar::new(total_ms);
        let style = "{wide_bar} {percent:>3} %, {eta} left: {msg}";
        // The template is a constant; the default style is as good.
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self { bar, lines: !std::io::stderr().is_terminal() }
    }

    #[expect(clippy::print_stderr, reason = "progress, where nobody sees a bar")]
    fn say(&self, text: String) {
        if self.lines {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    fn now(&self, cell: &Cell<'_>) {
        let (engine, workload) = (&cell.engine.info.id, &cell.workload.info.id);
        self.bar.set_message(format!("round {}, {workload}, {engine}", cell.round + 1));
    }
}

fn measure(
    bench: &Bench,
    cells: &[Cell<'_>],
    stop: &AtomicBool,
    out: &Path,
    results: &mut Results,
) -> Result<(), RunError> {
    let progress = Progress::new(cells.iter().map(|cell| estimate(bench, cell.workload)).sum());
    for cell in cells {
        let engine = cell.engine.info.id.clone();
        let workload = cell.workload.info.id.clone();
        let absent = |why| Absent {
            engine: engine.clone(),
            workload: Some(workload.clone()),
            round: Some(cell.round),
            why,
        };
        let failed = |absent: &&Absent| {
            absent.engine == engine
                && absent.workload.as_ref() == Some(&workload)
                && matches!(absent.why, Reason::Failed { .. })
        };
        if stop.load(Ordering::Relaxed) {
            results.absent.push(absent(Reason::Interrupted));
            continue;
        }
        progress.now(cell);
        let failures = results.absent.iter().filter(failed).count();
        if failures >= FAILURES_MAX {
            let error = format!("left out after it had failed {failures} times");
            results.absent.push(absent(Reason::Failed { error }));
        } else {
            match bench.sample(cell.engine, cell.workload, cell.round) {
                Ok(sample) => {
                    progress.say(line(&sample));
                    results.samples.push(sample);
                }
                Err(error) => {
                    let error = error.to_string();
                    progress.say(format!("{workload} {engine}: {error}"));
                    results.absent.push(absent(Reason::Failed { error }));
                }
            }
        }
        progress.bar.inc(estimate(bench, cell.workload));
        results.cell_warnings = judge::of_cells(results);
        results.write(out)?;
    }
    progress.bar.finish_and_clear();
    Ok(())
}

fn line(sample: &crate::data::Sample) -> String {
    let warned: Vec<&str> = sample.warnings.iter().map(crate::warn::Warning::name).collect();
    let p99 = sample.latency.as_ref().and_then(|latency| latency.total.decode().ok());
    let p99 = p99.map(|h| format!(", p99 {} µs", h.value_at_percentile(99.0) / 1_000));
    format!(
        "round {} {} {}: {:.0} connections/s, {:.0} requests/s{}{}{}",
        sample.round + 1,
        sample.workload,
        sample.engine,
        sample.connection_rate(),
        sample.request_rate(),
        p99.unwrap_or_default(),
        if warned.is_empty() { "" } else { "; " },
        warned.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn nobody_always_runs_first_or_after_the_same_one() {
        let all = [0, 1, 2, 3, 4];
        let rounds: Vec<Vec<i32>> = (0..4).map(|round| order(&all, round)).collect();
        for engine in all {
            assert!(rounds.iter().all(|round| round.contains(&engine)), "each runs in each round");
            let before = |round: &Vec<i32>| {
                let at = round.iter().position(|one| *one == engine).unwrap();
                at.checked_sub(1).map(|at| round[at])
            };
            let mut seen: Vec<Option<i32>> = rounds.iter().map(before).collect();
            seen.sort_unstable();
            seen.dedup();
            assert!(seen.len() > 1, "{engine}: {seen:?}");
        }
        assert!(order::<i32>(&[], 3).is_empty());
    }
}
