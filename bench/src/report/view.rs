//! What the samples of a run come to, cell by cell.
//!
//! Owns: decoding each histogram once, and the figures by which engines are compared. Promises: every
//! cell of the plan is there, also one without a sample, and says why it is empty; a ratio is made
//! within rounds. Never does: words, pictures, I/O.

use hdrhistogram::Histogram;

use super::chart::{Look, Unit};
use super::names;
use super::soak::Soak;
use crate::data::{
    self, EngineInfo, EngineKind, Figure, Latencies, Reason, Results, Sample, Warning, WorkerKind,
    WorkloadInfo,
};
use crate::stats::{Balance, Spread, ratios};

/// A few places of a distribution, in ns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tally {
    pub(crate) n: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Tally {
    /// `None` of no values.
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| as_f64(histogram.value_at_quantile(quantile));
        Some(Self {
            n: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: as_f64(histogram.max()),
        })
    }
}

/// A count as a number to compute with.
#[expect(clippy::cast_precision_loss, reason = "figures of a run are far below 2^52")]
pub(crate) const fn as_f64(value: u64) -> f64 {
    value as f64
}

/// One round of a cell.
#[derive(Debug, Clone)]
pub(crate) struct Round<'a> {
    pub(crate) sample: &'a Sample,
    pub(crate) total: Option<Tally>,
    /// Of the cheap requests alone, where there are others.
    pub(crate) cheap: Option<Tally>,
}

impl Round<'_> {
    fn balance(&self) -> Option<Balance> {
        Balance::of(&self.counts())
    }

    /// Connections of each worker.
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.sample.per_worker.iter().map(|worker| worker.connections).collect()
    }
}

/// Latencies of all rounds of a cell together.
#[derive(Debug, Clone)]
pub(crate) struct Pooled {
    pub(crate) total: Tally,
    pub(crate) naive: Option<Tally>,
    pub(crate) connect: Option<Tally>,
    pub(crate) first_byte: Option<Tally>,
    /// Of the cheap requests alone, where there are others.
    pub(crate) cheap: Option<Tally>,
    /// Quantile and ns, for a chart.
    pub(crate) curve: Vec<(f64, f64)>,
    histogram: Histogram<u64>,
}

impl Pooled {
    /// How many took longer than `ns`.
    pub(crate) fn beyond(&self, ns: u64) -> u64 {
        let within = self.histogram.count_between(0, ns);
        self.histogram.len().saturating_sub(within)
    }
}

/// One engine under one workload.
#[derive(Debug, Clone)]
pub(crate) struct Cell<'a> {
    pub(crate) engine: &'a EngineInfo,
    /// How it looks in every chart.
    pub(crate) look: Look,
    pub(crate) workload: &'a WorkloadInfo,
    pub(crate) rounds: Vec<Round<'a>>,
    pub(crate) pooled: Option<Pooled>,
    pub(crate) warnings: Vec<&'a Warning>,
    /// Why there is no sample, or not of every round.
    pub(crate) absent: Vec<String>,
    /// Nobody meant to run it here: why, if that was said.
    pub(crate) unplanned: Option<String>,
}

impl Cell<'_> {
    /// A figure of each round that has it.
    pub(crate) fn values(&self, measure: Measure) -> Vec<(u32, f64)> {
        self.rounds
            .iter()
            .filter_map(|round| Some((round.sample.round, measure.of(round)?)))
            .collect()
    }

    /// Over all rounds; `None` when no round has it.
    pub(crate) fn spread(&self, measure: Measure) -> Option<Spread> {
        let values: Vec<f64> = self.values(measure).into_iter().map(|(_, value)| value).collect();
        Spread::of(&values)
    }

    pub(crate) fn errors(&self) -> data::Errors {
        let mut sum = data::Errors::default();
        for Round { sample, .. } in &self.rounds {
            sum.refused = sum.refused.saturating_add(sample.errors.refused);
            sum.reset = sum.reset.saturating_add(sample.errors.reset);
            sum.timeout = sum.timeout.saturating_add(sample.errors.timeout);
            sum.short = sum.short.saturating_add(sample.errors.short);
            sum.other = sum.other.saturating_add(sample.errors.other);
        }
        sum
    }

    /// Nothing was ever answered.
    pub(crate) fn all_failed(&self) -> bool {
        !self.rounds.is_empty() && self.rounds.iter().all(|round| round.sample.requests == 0)
    }

    /// The round in the middle of `measure`; the first where none has it.
    pub(crate) fn typical(&self, measure: Measure) -> Option<&Round<'_>> {
        let mut by_value: Vec<(f64, &Round<'_>)> =
            self.rounds.iter().filter_map(|round| Some((measure.of(round)?, round))).collect();
        by_value.sort_by(|a, b| a.0.total_cmp(&b.0));
        by_value.get(by_value.len() / 2).map(|(_, round)| *round).or_else(|| self.rounds.first())
    }
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// A figure by which engines are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Measure {
    ConnectionRate,
    RequestRate,
    P99,
    /// The same of the cheap requests of a mixed load: what they waited because of others.
    CheapP99,
    Max,
    /// Client addresses that more than one worker answered.
    Moved,
    /// Coefficient of variation of connections over workers.
    Unevenness,
    PrimaryCpu,
    /// The same for each request: of connections that stay open.
    RequestCpu,
    WorkersCpu,
    PrimaryMemory,
    FailedShare,
}

impl Measure {
    /// The figure of one round; `None` where it was not measured or has no meaning.
    pub(crate) fn of(self, round: &Round<'_>) -> Option<f64> {
        let sample = round.sample;
        let value = match self {
            Self::ConnectionRate => sample.connection_rate(),
            Self::RequestRate => sample.request_rate(),
            Self::P99 => round.total?.p99,
            Self::CheapP99 => round.cheap?.p99,
            Self::Max => round.total?.max,
            Self::Moved => f64::from(sample.schedule?.sources_moved?),
            Self::Unevenness => round.balance().filter(|_| sample.per_worker.len() > 1)?.cv,
            Self::PrimaryCpu => sample.primary_ns_per_connection()?,
            Self::RequestCpu => sample.primary_ns_per_request()?,
            Self::WorkersCpu => sample.workers_ns_per_connection()?,
            Self::PrimaryMemory => as_f64(sample.memory?.primary_bytes?),
            Self::FailedShare => {
                let errors = sample.errors.total();
                let all = sample.intended.max(sample.requests.saturating_add(errors));
                if all == 0 {
                    return None;
                }
                as_f64(errors) / as_f64(all)
            }
        };
        value.is_finite().then_some(value)
    }

    pub(crate) const fn better(self) -> Better {
        match self {
            Self::ConnectionRate | Self::RequestRate => Better::Higher,
            Self::P99
            | Self::CheapP99
            | Self::Max
            | Self::Moved
            | Self::Unevenness
            | Self::PrimaryCpu
            | Self::RequestCpu
            | Self::WorkersCpu
            | Self::PrimaryMemory
            | Self::FailedShare => Better::Lower,
        }
    }

    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ConnectionRate => "connections/s",
            Self::RequestRate => "requests/s",
            Self::P99 => "p99 latency",
            Self::CheapP99 => "p99 latency of cheap requests",
            Self::Max => "largest latency",
            Self::Moved => "client addresses that moved between workers",
            Self::Unevenness => "unevenness (CV) over workers",
            Self::PrimaryCpu => "CPU of the primary or proxy per connection",
            Self::RequestCpu => "CPU of the primary or proxy per request",
            Self::WorkersCpu => "CPU of the workers per connection",
            Self::PrimaryMemory => "memory of the primary or proxy",
            Self::FailedShare => "share of failed requests",
        }
    }

    pub(crate) const fn unit(self) -> Unit {
        match self {
            Self::ConnectionRate | Self::RequestRate => Unit::PerSecond,
            Self::P99
            | Self::CheapP99
            | Self::Max
            | Self::PrimaryCpu
            | Self::RequestCpu
            | Self::WorkersCpu => Unit::Nanos,
            Self::Moved | Self::Unevenness => Unit::Plain,
            Self::PrimaryMemory => Unit::Bytes,
            Self::FailedShare => Unit::Share,
        }
    }

    /// With its unit.
    pub(crate) fn show(self, value: f64) -> String {
        self.unit().show(value)
    }

    /// What a primary or proxy costs is counted by connections; where they stay open, by requests.
    pub(crate) fn cost(workload: &WorkloadInfo) -> Self {
        let stay = workload.figures.contains(&Figure::RequestRate);
        if stay { Self::RequestCpu } else { Self::PrimaryCpu }
    }

    /// The figure that stands for `figure`.
    pub(crate) const fn leading(figure: Figure) -> Self {
        match figure {
            Figure::ConnectionRate => Self::ConnectionRate,
            Figure::RequestRate => Self::RequestRate,
            Figure::Latency | Figure::Timeline => Self::P99,
            Figure::Balance => Self::Unevenness,
            Figure::Cpu => Self::PrimaryCpu,
            Figure::Memory => Self::PrimaryMemory,
            Figure::Errors => Self::FailedShare,
        }
    }
}

/// One engine beside another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Comparison {
    /// First over second, within rounds.
    pub(crate) ratio: Spread,
    pub(crate) first: Spread,
    pub(crate) second: Spread,
}

/// Compares two cells; `None` where no round has the figure of both.
pub(crate) fn compare(first: &Cell<'_>, second: &Cell<'_>, measure: Measure) -> Option<Comparison> {
    let ratio = Spread::of(&ratios(&first.values(measure), &second.values(measure)))?;
    Some(Comparison { ratio, first: first.spread(measure)?, second: second.spread(measure)? })
}

/// All cells of a run.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) results: &'a Results,
    /// How each engine looks, in the order of the plan.
    pub(crate) looks: Vec<Look>,
    /// By workload in the order of the plan, then by engine in its order.
    cells: Vec<Vec<Cell<'a>>>,
    /// Histograms that could not be read: where, and why.
    pub(crate) broken: Vec<String>,
    /// What a soak measured, where one is at hand.
    pub(crate) soak: Option<&'a Soak>,
}

impl<'a> View<'a> {
    pub(crate) fn new(results: &'a Results) -> Self {
        let mut broken = Vec::new();
        let looks = looks(&results.engines);
        let cells = results
            .workloads
            .iter()
            .map(|workload| {
                results
                    .engines
                    .iter()
                    .zip(&looks)
                    .map(|(engine, look)| cell(results, *look, engine, workload, &mut broken))
                    .collect()
            })
            .collect();
        Self { results, looks, cells, broken, soak: None }
    }

    /// With the figures of a soak.
    pub(crate) const fn beside(mut self, soak: Option<&'a Soak>) -> Self {
        self.soak = soak;
        self
    }

    /// All cells of a workload.
    pub(crate) fn of_workload(&self, id: &str) -> &[Cell<'a>] {
        let at = self.results.workloads.iter().position(|workload| workload.id == id);
        at.and_then(|at| self.cells.get(at)).map_or(&[], Vec::as_slice)
    }

    /// One cell; `None` if the run knows no such engine or workload.
    pub(crate) fn cell(&self, engine: &str, workload: &str) -> Option<&Cell<'a>> {
        self.of_workload(workload).iter().find(|cell| cell.engine.id == engine)
    }

    /// Every cell.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Cell<'a>> {
        self.cells.iter().flatten()
    }

    /// Which engine others with this worker are compared with.
    pub(crate) fn baseline(&self, worker: WorkerKind) -> &str {
        match worker {
            WorkerKind::Rust | WorkerKind::Own => &self.results.plan.baseline,
            WorkerKind::Node => &self.results.plan.node_baseline,
        }
    }

    /// The croupier that a workload is about: the default, or the policy that is made for it.
    pub(crate) fn subject(
        &self,
        workload: &WorkloadInfo,
        worker: WorkerKind,
    ) -> Option<&'a EngineInfo> {
        let sticky = workload.id == names::workload::STICKY;
        let ip = sticky.then(|| {
            let mut engines = self.results.engines.iter();
            engines.find(|one| one.id == names::engine::IP && one.worker == worker)
        });
        ip.flatten().or_else(|| self.croupier(worker))
    }

    /// croupier as it is without flags, for this worker.
    pub(crate) fn croupier(&self, worker: WorkerKind) -> Option<&'a EngineInfo> {
        let mut of_kind = self
            .results
            .engines
            .iter()
            .filter(|engine| engine.kind == EngineKind::Croupier && engine.worker == worker);
        let first = of_kind.clone().next();
        of_kind.find(|engine| engine.id == names::engine::LEAST).or(first)
    }
}

/// Engines that are drawn together look different: those that deal or leave it to the kernel come
/// first, then the rest with the same workers; Node's are drawn by themselves.
fn looks(engines: &[EngineInfo]) -> Vec<Look> {
    let group = |engine: &EngineInfo| match (engine.worker, engine.kind) {
        (WorkerKind::Node, _) => 2,
        (WorkerKind::Rust | WorkerKind::Own, EngineKind::Croupier | EngineKind::Kernel) => 0,
        (
            WorkerKind::Rust | WorkerKind::Own,
            EngineKind::Single
            | EngineKind::Floor
            | EngineKind::Proxy
            | EngineKind::NodeCluster
            | EngineKind::Mock,
        ) => 1,
    };
    let count = |wanted: u8| engines.iter().filter(|engine| group(engine) == wanted).count();
    let mut next = [0, count(0), 0];
    engines
        .iter()
        .map(|engine| {
            let number = next.get_mut(usize::from(group(engine)));
            number.map_or_else(
                || Look::of(0),
                |number| {
                    *number += 1;
                    Look::of(*number - 1)
                },
            )
        })
        .collect()
}

fn cell<'a>(
    results: &'a Results,
    look: Look,
    engine: &'a EngineInfo,
    workload: &'a WorkloadInfo,
    broken: &mut Vec<String>,
) -> Cell<'a> {
    let mut pool = Pool::default();
    let mut rounds = Vec::new();
    for sample in results.cell(&engine.id, &workload.id) {
        let (total, cheap) = sample.latency.as_ref().map_or((None, None), |latencies| {
            pool.add(latencies).unwrap_or_else(|error| {
                broken.push(format!(
                    "{} under {}, round {}: {error}",
                    engine.name,
                    workload.name,
                    sample.round.saturating_add(1)
                ));
                (None, None)
            })
        });
        rounds.push(Round { sample, total, cheap });
    }
    rounds.sort_by_key(|round| round.sample.round);
    let absent: Vec<String> = results
        .absent
        .iter()
        .filter(|absent| absent.engine == engine.id)
        .filter(|absent| absent.workload.as_ref().is_none_or(|id| *id == workload.id))
        .map(|absent| match absent.round {
            None => absent.why.to_string(),
            Some(round) => format!("round {}: {}", round.saturating_add(1), absent.why),
        })
        .collect();
    Cell {
        unplanned: rounds.is_empty().then(|| unplanned(results, engine, workload)).flatten(),
        engine,
        look,
        workload,
        rounds,
        pooled: pool.finish(),
        warnings: results.warnings_of(&engine.id, &workload.id),
        absent,
    }
}

/// Why a cell has no sample although nothing went wrong.
fn unplanned(results: &Results, engine: &EngineInfo, workload: &WorkloadInfo) -> Option<String> {
    let mut why = results.absent.iter().filter(|absent| {
        absent.engine == engine.id && absent.workload.as_ref().is_none_or(|id| *id == workload.id)
    });
    match why.next().map(|absent| &absent.why) {
        Some(Reason::NotApplicable { because }) => Some(because.clone()),
        Some(Reason::NotInstalled { .. } | Reason::Failed { .. } | Reason::Interrupted) => None,
        // Of a run under way it is not known.
        None => results.plan.took_seconds.map(|_| "not in the plan".to_owned()),
    }
}

/// Histograms of a cell's rounds as they are added up.
#[derive(Debug, Default)]
struct Pool {
    total: Option<Histogram<u64>>,
    naive: Option<Histogram<u64>>,
    connect: Option<Histogram<u64>>,
    first_byte: Option<Histogram<u64>>,
    cheap: Option<Histogram<u64>>,
}

impl Pool {
    /// Adds one round, and says what its own latencies were, of all and of the cheap requests.
    fn add(&mut self, latencies: &Latencies) -> Result<(Option<Tally>, Option<Tally>), String> {
        let total = latencies.total.decode().map_err(|error| error.to_string())?;
        let tally = Tally::of(&total);
        merge(&mut self.total, total)?;
        for (sum, one) in [
            (&mut self.naive, &latencies.naive),
            (&mut self.connect, &latencies.connect),
            (&mut self.first_byte, &latencies.first_byte),
        ] {
            if one.n > 0 {
                merge(sum, one.decode().map_err(|error| error.to_string())?)?;
            }
        }
        let Some(kept) = latencies.first_kind.as_ref().filter(|kept| kept.n > 0) else {
            return Ok((tally, None));
        };
        let cheap = kept.decode().map_err(|error| error.to_string())?;
        let of_cheap = Tally::of(&cheap);
        merge(&mut self.cheap, cheap)?;
        Ok((tally, of_cheap))
    }

    fn finish(self) -> Option<Pooled> {
        let histogram = self.total?;
        let total = Tally::of(&histogram)?;
        let tally = |one: Option<Histogram<u64>>| one.as_ref().and_then(Tally::of);
        Some(Pooled {
            total,
            naive: tally(self.naive),
            connect: tally(self.connect),
            first_byte: tally(self.first_byte),
            cheap: tally(self.cheap),
            curve: curve(&histogram),
            histogram,
        })
    }
}

fn merge(sum: &mut Option<Histogram<u64>>, one: Histogram<u64>) -> Result<(), String> {
    match sum {
        None => *sum = Some(one),
        Some(sum) => {
            sum.auto(true);
            sum.add(one).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Quantiles so close that a chart is smooth, up to where one value is left.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    const STEPS_PER_NINE: u32 = 24;
    const NINES_MAX: u32 = 7;
    let n = as_f64(histogram.len());
    let mut quantiles: Vec<f64> = (0..=STEPS_PER_NINE * NINES_MAX)
        .map(|step| 1.0 - 10f64.powf(-f64::from(step) / f64::from(STEPS_PER_NINE)))
        // The median has a mark, and lies between two steps.
        .chain([0.5])
        .filter(|quantile| (1.0 - quantile) * n >= 1.0)
        .collect();
    quantiles.sort_by(f64::total_cmp);
    let at = |quantile: f64| (quantile, as_f64(histogram.value_at_quantile(quantile)));
    let mut points: Vec<(f64, f64)> = quantiles.into_iter().map(at).collect();
    // The largest of n values stands where 1/n is left.
    points.push((1.0 - 1.0 / n, as_f64(histogram.max())));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_ends_with_the_largest_value() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        for value in 1..=1000_u64 {
            histogram.record(value * 1000).unwrap();
        }
        let points = curve(&histogram);
        let (quantile, value) = *points.last().unwrap();
        assert!((quantile - 0.999).abs() < 1e-9 && value >= 999_000.0, "{quantile} {value}");
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
        let (_, middle) = points.iter().find(|(quantile, _)| *quantile >= 0.5).unwrap();
        assert!((490_000.0..540_000.0).contains(middle), "{middle}");
    }

    #[test]
    fn one_value_has_a_curve_too() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        histogram.record(7).unwrap();
        assert_eq!(curve(&histogram), [(0.0, 7.0), (0.0, 7.0)]);
        assert_eq!(Tally::of(&Histogram::new(3).unwrap()), None);
    }

    #[test]
    fn histograms_of_different_ranges_are_pooled() {
        let encode = |values: &[u64]| {
            let mut histogram = Histogram::<u64>::new(3).unwrap();
            for value in values {
                histogram.record(*value).unwrap();
            }
            data::Histogram::encode(&histogram).unwrap()
        };
        let latencies = |values: &[u64]| Latencies {
            total: encode(values),
            naive: encode(values),
            connect: encode(&[]),
            first_byte: encode(&[]),
            first_kind: Some(encode(values)),
        };
        let mut pool = Pool::default();
        let (first, cheap) = pool.add(&latencies(&[10, 20])).unwrap();
        assert_eq!((first.unwrap().n, cheap.unwrap().n), (2, 2));
        pool.add(&latencies(&[5_000_000_000])).unwrap();
        let pooled = pool.finish().unwrap();
        assert_eq!(pooled.total.n, 3);
        assert!(pooled.total.max >= 5e9);
        assert_eq!(pooled.beyond(100), 1);
        assert!(pooled.connect.is_none());
    }
}
