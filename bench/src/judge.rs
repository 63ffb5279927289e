//! When a figure is not to be trusted.
//!
//! Owns: the thresholds. Promises: pure functions of what was measured; every warning of `warn` is given
//! here and nowhere else. Never does: drop or change a figure.

use crate::data::{
    CellWarning, Cpu, Environment, Figure, Generator, Histogram, Results, Sample, Schedule,
};
use crate::stats::{needed_for, outliers};
use crate::warn::Warning;
use crate::workload::{Disturbance, Workload};

const BUSY: f64 = 0.8;
const LATE_SHARE: f64 = 0.01;
const FOREIGN: f64 = 0.05;
const KEPT_UP: f64 = 0.95;
const MISCOUNTED: f64 = 0.01;
const ROUNDS: u32 = 5;
/// So many values beyond a percentile make it one.
const BEYOND: u32 = 10;
const PERCENTILES: [f64; 2] = [99.0, 99.9];

/// What a generator saw, as far as it is for nobody's table.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aside {
    /// Failures of the generator's own machine.
    pub out_of_ports: u64,
    /// Connections that the workers counted, where all of them could be asked.
    pub counted: Option<u64>,
    /// Threads of the generator; 0 is as 1.
    pub threads: u32,
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds are far below 2^52")]
const fn float(count: u64) -> f64 {
    count as f64
}

/// What spoils one sample.
#[must_use]
pub fn of_sample(sample: &Sample, workload: &Workload, aside: Aside) -> Vec<Warning> {
    let mut found = Vec::new();
    if let Some(cpu) = &sample.cpu {
        found.extend(of_cpu(cpu, sample.seconds, aside.threads, workload));
    }
    if let Some(schedule) = &sample.schedule {
        found.extend(of_schedule(schedule, sample.intended));
    }
    if sample.errors.total() > 0 {
        let (errors, intended) = (sample.errors, sample.intended);
        found.push(Warning::Lost { errors, intended });
    }
    if aside.out_of_ports > 0 {
        found.push(Warning::OutOfPorts { times: aside.out_of_ports });
    }
    if workload.info.generator == Generator::Open {
        let (rate, intended) = (sample.connection_rate(), float(sample.intended) / sample.seconds);
        let unstarted = sample.schedule.is_some_and(|schedule| schedule.unstarted > 0);
        if rate < KEPT_UP * intended || unstarted {
            found.push(Warning::Overloaded { rate, intended });
        }
    }
    if let Some(workers) = aside.counted {
        // A closed loop leaves its clients in the midst of something at both ends.
        let slack = 2 * u64::from(workload.info.clients.unwrap_or(0)) + 2;
        let apart = workers.abs_diff(sample.connections);
        if float(apart) > float(slack) + MISCOUNTED * float(sample.connections) {
            found.push(Warning::Miscounted { workers, generator: sample.connections });
        }
    }
    found
}

fn of_cpu(cpu: &Cpu, seconds: f64, threads: u32, workload: &Workload) -> Vec<Warning> {
    let mut found = Vec::new();
    let share = float(cpu.generator_ns) / 1e9 / seconds / f64::from(threads.max(1));
    if share > BUSY {
        found.push(Warning::GeneratorBusy { share });
    }
    // Where processes come and go, what the dead had used counts as somebody else's.
    let steady = matches!(workload.disturbance, Disturbance::None | Disturbance::Block);
    if steady && cpu.foreign_share > FOREIGN {
        found.push(Warning::Foreign { share: cpu.foreign_share });
    }
    found
}

fn of_schedule(schedule: &Schedule, intended: u64) -> Option<Warning> {
    let share = float(schedule.late) / float(intended.max(1));
    (share > LATE_SHARE).then_some(Warning::ScheduleSlipped { share, worst_ns: schedule.worst_ns })
}

/// What spoils cells, over all of their rounds.
#[must_use]
pub fn of_cells(results: &Results) -> Vec<CellWarning> {
    let mut found = Vec::new();
    for workload in &results.workloads {
        for engine in &results.engines {
            let samples: Vec<&Sample> = results.cell(&engine.id, &workload.id).collect();
            if samples.is_empty() {
                continue;
            }
            let warnings = few_samples(&samples)
                .into_iter()
                .chain(differing(&samples, &workload.figures))
                .chain(few_rounds(&samples));
            found.extend(warnings.map(|warning| CellWarning {
                engine: engine.id.clone(),
                workload: workload.id.clone(),
                warning,
            }));
        }
    }
    found
}

fn few_rounds(samples: &[&Sample]) -> Option<Warning> {
    let rounds = u32::try_from(samples.len()).unwrap_or(u32::MAX);
    (rounds < ROUNDS).then_some(Warning::FewRounds { rounds })
}

/// The lowest percentile that has too few values beyond it, of all rounds together.
fn few_samples(samples: &[&Sample]) -> Option<Warning> {
    let latencies: Vec<&Histogram> =
        samples.iter().filter_map(|sample| Some(&sample.latency.as_ref()?.total)).collect();
    if latencies.is_empty() {
        return None;
    }
    let n: u64 = latencies.iter().map(|histogram| histogram.n).sum();
    PERCENTILES.into_iter().find_map(|percentile| {
        let needed = needed_for(percentile, BEYOND);
        (n < needed).then_some(Warning::FewSamples { percentile, n, needed })
    })
}

fn differing(samples: &[&Sample], figures: &[Figure]) -> Vec<Warning> {
    figures
        .iter()
        .filter_map(|figure| {
            let of = |sample: &&Sample| -> Option<f64> {
                match figure {
                    Figure::ConnectionRate => Some(sample.connection_rate()),
                    Figure::RequestRate => Some(sample.request_rate()),
                    Figure::Cpu => sample.primary_ns_per_connection(),
                    Figure::Latency => {
                        let total = sample.latency.as_ref()?.total.decode().ok()?;
                        Some(float(total.value_at_percentile(99.0)))
                    }
                    Figure::Balance | Figure::Memory | Figure::Errors | Figure::Timeline => None,
                }
            };
            let values: Vec<f64> = samples.iter().map(of).collect::<Option<_>>()?;
            let at = outliers(&values);
            let rounds: Vec<u32> =
                at.iter().filter_map(|at| Some(samples.get(*at)?.round)).collect();
            (!rounds.is_empty()).then_some(Warning::Outliers { figure: *figure, rounds })
        })
        .collect()
}

/// What spoils the whole run.
#[must_use]
pub fn of_run(environment: &Environment) -> Vec<Warning> {
    let mut found = Vec::new();
    if environment.debug_build {
        found.push(Warning::DebugBuild);
    }
    if environment.pinning.generator.is_empty() {
        found.push(Warning::SharedCores { cpus: environment.cpus });
    }
    if let Some(governor) = environment.governor.as_ref().filter(|name| *name != "performance") {
        found.push(Warning::Governor { governor: governor.clone() });
    }
    if environment.virtual_machine {
        found.push(Warning::VirtualMachine);
    }
    if environment.dirty {
        found.push(Warning::DirtyTree);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Errors, Latencies, Pinning};
    use crate::workload;

    fn of(id: &str) -> Workload {
        workload::catalogue(2).into_iter().find(|w| w.info.id == id).unwrap()
    }

    fn sample() -> Sample {
        Sample {
            seconds: 2.0,
            intended: 1_000,
            connections: 1_000,
            requests: 1_000,
            cpu: Some(Cpu { generator_ns: 1_000_000_000, ..Cpu::default() }),
            schedule: Some(Schedule::default()),
            ..Sample::default()
        }
    }

    fn names(warnings: &[Warning]) -> Vec<&str> {
        warnings.iter().map(Warning::name).collect()
    }

    fn judged(change: impl FnOnce(&mut Sample, &mut Aside)) -> Vec<&'static str> {
        let (mut sample, mut aside) = (sample(), Aside::default());
        change(&mut sample, &mut aside);
        let of = of_sample(&sample, &of("short-paced"), aside);
        of.iter().map(Warning::name).collect()
    }

    #[test]
    fn a_clean_sample_has_no_warning() {
        assert!(judged(|_, _| {}).is_empty());
    }

    #[test]
    fn each_fault_is_named_and_only_it() {
        let cpu = |change: fn(&mut Cpu)| judged(|s, _| change(s.cpu.as_mut().unwrap()));
        assert_eq!(cpu(|c| c.generator_ns = 1_700_000_000), ["generator busy"]);
        let of_two = judged(|s, a| {
            s.cpu.as_mut().unwrap().generator_ns = 1_700_000_000;
            a.threads = 2;
        });
        assert!(of_two.is_empty(), "each of its threads has room: {of_two:?}");
        assert_eq!(cpu(|c| c.foreign_share = 0.06), ["other programs"]);
        let late = judged(|s, _| s.schedule.as_mut().unwrap().late = 11);
        assert_eq!(late, ["schedule slipped"]);
        let unstarted = judged(|s, _| s.schedule.as_mut().unwrap().unstarted = 1);
        assert_eq!(unstarted, ["overloaded"]);
        assert_eq!(judged(|s, _| s.connections = 900), ["overloaded"]);
        assert_eq!(judged(|_, a| a.out_of_ports = 1), ["out of ports"]);
        assert_eq!(judged(|_, a| a.counted = Some(1_013)), ["miscounted"]);
        assert_eq!(judged(|_, a| a.counted = Some(1_012)), [""; 0]);
        let lost = judged(|s, _| s.errors = Errors { reset: 1, ..Errors::default() });
        assert_eq!(lost, ["lost clients"]);
    }

    #[test]
    fn a_machine_that_spoils_is_named() {
        let mut environment = Environment { cpus: 2, ..Environment::default() };
        assert_eq!(names(&of_run(&environment)), ["shared cores"]);
        environment.pinning = Pinning { generator: vec![3], ..Pinning::default() };
        assert!(of_run(&environment).is_empty());
        environment.debug_build = true;
        environment.governor = Some("powersave".to_owned());
        environment.virtual_machine = true;
        environment.dirty = true;
        let expected = ["debug build", "governor", "virtual machine", "dirty tree"];
        assert_eq!(names(&of_run(&environment)), expected);
    }

    fn histogram(values: u64) -> Histogram {
        let mut recorded = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        recorded.record_n(1_000_000, values).unwrap();
        Histogram::encode(&recorded).unwrap()
    }

    fn with_latency(values: u64) -> Sample {
        let h = histogram(values);
        let latency = Latencies {
            total: h.clone(),
            naive: h.clone(),
            connect: h.clone(),
            first_byte: h,
            first_kind: None,
        };
        Sample { latency: Some(latency), ..sample() }
    }

    #[test]
    fn rounds_together_make_a_percentile() {
        let few = [with_latency(400), with_latency(400)];
        let warning = few_samples(&few.iter().collect::<Vec<_>>());
        let expected = Warning::FewSamples { percentile: 99.0, n: 800, needed: 1_000 };
        assert_eq!(warning, Some(expected));
        let some = [with_latency(5_000)];
        let warning = few_samples(&some.iter().collect::<Vec<_>>());
        let expected = Warning::FewSamples { percentile: 99.9, n: 5_000, needed: 10_000 };
        assert_eq!(warning, Some(expected));
        let many = [with_latency(10_000)];
        assert_eq!(few_samples(&many.iter().collect::<Vec<_>>()), None);
    }

    #[test]
    fn a_round_that_was_something_else_is_named() {
        let rounds: Vec<Sample> = [1_000, 1_010, 990, 400, 1_000]
            .into_iter()
            .zip(0..)
            .map(|(connections, round)| Sample { connections, round, ..sample() })
            .collect();
        let refs: Vec<&Sample> = rounds.iter().collect();
        let expected = Warning::Outliers { figure: Figure::ConnectionRate, rounds: vec![3] };
        assert_eq!(differing(&refs, &[Figure::ConnectionRate]), [expected]);
        assert_eq!(few_rounds(&refs), None);
        assert_eq!(few_rounds(&refs[..2]), Some(Warning::FewRounds { rounds: 2 }));
    }
}
